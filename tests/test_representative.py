"""Representative batches: what they hold, that they are even, that they disturb no other draw, and that runs resume."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rddlib.base import SettingError, generator, numpy_generator
from rddlib.data import dataset
from rddlib.data.dataset import DataSet
from rddlib.distillation import distill
from rddlib.distillation.batches import Representatives, nearest_to_centres
from rddlib.distillation.glad import prior
from rddlib.distillation.loop import Loop
from rddlib.distillation.settings import DistillSettings, conflicts
from rddlib.experiments.experiment import Experiment
from rddlib.models import features, networks

SMALL = DistillSettings(
    depth=2, width=4, ipc=2, factor=1, outer_steps=3, inner_steps=3, batch_real=8, net_steps=1, net_batch=32,
    lr_image=0.05, real_choice="representative", real_choice_interval=2, real_pool=15,
)  # fmt: skip
RANDOM = dataclasses.replace(SMALL, real_choice="random")


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return dataset.load("digits", train_limit=200, test_limit=100)


def loop_of(d: DataSet, s: DistillSettings) -> Loop:
    source = prior.load("none", d, 1)
    return Loop(d, s, distill.begin(d, s, source), source)


def chooser(d: DataSet, s: DistillSettings, seed: int = 0) -> tuple[Representatives, torch.nn.Module]:
    net = networks.build("convnet", d.shape, d.n_classes, depth=2, width=4, generator=generator(0, "net"))
    return Representatives(d, s, generator(seed, "stream")), net


# --- one batch --------------------------------------------------------------------------------------------


@given(st.integers(1, 25), st.integers(1, 6), st.integers(0, 10**6), st.data())
@settings(deadline=None, derandomize=True, max_examples=10)
def test_chosen_points_are_distinct_and_a_seed_fixes_them(n: int, d: int, seed: int, more: st.DataObject) -> None:
    k = more.draw(st.integers(1, n))
    points = torch.from_numpy(numpy_generator(seed, "points").standard_normal((n, d)))
    chosen = nearest_to_centres(points, k, seed)
    assert chosen.shape == (k,) and len(set(chosen.tolist())) == k and set(chosen.tolist()) <= set(range(n))
    assert torch.equal(chosen, nearest_to_centres(points, k, seed))
    if k == n:
        assert chosen.sort().values.tolist() == list(range(n))


def test_each_of_separate_clusters_gives_its_most_central_point() -> None:
    places = 1000.0 * numpy_generator(0, "separate").permutation(5)
    points = np.concatenate([place + np.array([-20.0, -20.0, 0.0, 20.0, 20.0]) for place in places])[:, None]  # (25, 1)
    chosen = nearest_to_centres(torch.from_numpy(points), 5, 3)
    assert sorted(points[chosen, 0].tolist()) == sorted(places.tolist())


# --- batches of a loop ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", [None, 8, 15])
def test_batches_hold_distinct_images_of_their_class(digits: DataSet, pool: int | None) -> None:
    made, net = chooser(digits, dataclasses.replace(SMALL, real_pool=pool))
    for c in range(digits.n_classes):
        batch = made.batch(c, net)
        assert len(set(batch.tolist())) == SMALL.batch_real
        assert (digits.train_labels[batch] == c).all()


def test_a_batch_stays_for_the_interval_and_then_changes(digits: DataSet) -> None:
    made, net = chooser(digits, SMALL)
    of_zero = [made.batch(0, net).tolist() for _ in range(6)]
    of_one = [made.batch(1, net).tolist() for _ in range(3)]
    assert of_zero[0] == of_zero[1] != of_zero[2] == of_zero[3] != of_zero[4] == of_zero[5]
    assert of_one[0] == of_one[1] != of_one[2]  # each class counts its own steps


def test_the_network_of_the_loop_decides(digits: DataSet) -> None:
    whole = dataclasses.replace(SMALL, real_pool=None)
    batches = []
    for seed in (0, 0, 1):
        made, net = chooser(digits, whole)
        networks.initialise(net, generator(seed, "other weights"))
        batches.append(made.batch(3, net).tolist())
    assert batches[0] == batches[1] and set(batches[0]) != set(batches[2])


def test_no_other_draw_is_disturbed(digits: DataSet) -> None:
    """Both choices see the same networks, augmentations and network batches; random does not touch the new stream."""
    ours, theirs = loop_of(digits, SMALL), loop_of(digits, RANDOM)
    before = theirs.streams["real choice"].get_state()
    for loop in (ours, theirs):
        loop.image_steps()
        loop.network_steps()
    for name in set(ours.streams) - {"real", "real choice"}:
        assert torch.equal(ours.streams[name].get_state(), theirs.streams[name].get_state()), name
    assert torch.equal(theirs.streams["real choice"].get_state(), before)
    for a, b in zip(ours.net.parameters(), theirs.net.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_first_steps_of_a_longer_run_are_a_shorter_one(digits: DataSet, tmp_path: Path) -> None:
    """What makes runs of several lengths points of one curve."""
    file = tmp_path / "state.pt"
    short, _ = distill.distill(digits, dataclasses.replace(SMALL, outer_steps=2), file)
    longer, _ = distill.distill(digits, SMALL, file)  # goes on from there
    assert torch.equal(longer.images, distill.distill(digits, SMALL)[0].images)
    assert not torch.equal(longer.images, short.images)


# --- settings ---------------------------------------------------------------------------------------------


def test_random_is_the_default_and_its_keys_stay() -> None:
    base = Experiment.preset("smoke")
    assert base.real_choice == "random"
    assert dataclasses.replace(base, real_choice_interval=3, real_pool=50).key == base.key
    chosen = dataclasses.replace(base, real_choice="representative")
    keys = {base.key, chosen.key, *(dataclasses.replace(chosen, **c).key for c in ({"real_pool": 50},))}
    keys |= {dataclasses.replace(chosen, real_choice_interval=3).key}
    assert len(keys) == 4


@pytest.mark.parametrize("pool", [7, 500])
def test_a_pool_that_does_not_fit_is_refused_before_any_work(digits: DataSet, pool: int) -> None:
    with pytest.raises(SettingError, match="real_pool.*8 .batch_real. to 20"):
        distill.distill(digits, dataclasses.replace(SMALL, real_pool=pool))
    assert not list(conflicts(digits, dataclasses.replace(RANDOM, real_pool=pool)))  # idle there


def test_points_that_coincide_are_chosen_once_each() -> None:
    assert nearest_to_centres(torch.ones(6, 3), 6, 0).sort().values.tolist() == list(range(6))


def test_a_representative_batch_is_nearer_to_the_class_mean_than_random_ones(digits: DataSet) -> None:
    """How many of 20 random batches lie farther: 50 % on average without an effect, with a spread of 5 % over classes.

    And every image of the class has a chosen one nearer to it, in the mean of squares, than under nearly all of them.
    """
    whole = dataset.load("digits")
    made, net = chooser(whole, dataclasses.replace(SMALL, real_pool=None))
    farther, sparser = [], []
    for c, own in enumerate(whole.members):
        points = features.embedded(net, whole.train_images[own], whole)

        def gap(part: torch.Tensor, points: torch.Tensor = points) -> float:
            return float((part.mean(0) - points.mean(0)).norm())

        def spread(part: torch.Tensor, points: torch.Tensor = points) -> float:
            return float(torch.cdist(points, part).amin(1).square().mean())

        chosen = points[torch.isin(own, made.batch(c, net))]
        rng = generator(0, "random batches", c)
        drawn = [points[torch.randperm(len(own), generator=rng)[: len(chosen)]] for _ in range(20)]
        farther.append(np.mean([gap(part) > gap(chosen) for part in drawn]))
        sparser.append(np.mean([spread(part) > spread(chosen) for part in drawn]))
    assert np.mean(farther) > 0.65 and np.mean(sparser) > 0.95
