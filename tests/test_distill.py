"""What the loop keeps to beside `reference` (test_reference.py): momentum, draws; resuming; damaged checkpoints."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from rddlib.base import SettingError
from rddlib.data import dataset
from rddlib.data.dataset import DataSet
from rddlib.data.sources import DataError
from rddlib.distillation import clusters, distill
from rddlib.distillation.glad import prior
from rddlib.distillation.loop import Loop, State
from rddlib.distillation.settings import DistillSettings

SMALL = DistillSettings(
    depth=2,
    width=4,
    ipc=2,
    factor=1,
    outer_steps=3,
    inner_steps=2,
    batch_real=8,
    net_steps=2,
    net_batch=32,
    lr_image=0.05,
)


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return dataset.load("digits", train_limit=200, test_limit=100)


def begun(d: DataSet, s: DistillSettings) -> State:
    return distill.begin(d, s, prior.load("none", d, 1))


def loop_of(d: DataSet, s: DistillSettings) -> Loop:
    return Loop(d, s, begun(d, s), prior.load("none", d, 1))


def pixels(loop: Loop) -> torch.Tensor:
    return loop.codes["pixels"].flatten(0, 1).clone()


def test_shared_momentum_carries_other_classes_along(digits: DataSet) -> None:
    loop = loop_of(digits, SMALL)
    before = pixels(loop)
    loop._move({0: loop.matching_gradient(0)[1]})
    assert torch.equal(pixels(loop)[SMALL.ipc :], before[SMALL.ipc :])  # no velocity yet
    middle = pixels(loop)
    loop._move({1: loop.matching_gradient(1)[1]})
    expected = (
        middle[: SMALL.ipc] - SMALL.lr_image * SMALL.momentum_image * (before - middle)[: SMALL.ipc] / SMALL.lr_image
    )
    assert torch.allclose(pixels(loop)[: SMALL.ipc], expected, atol=1e-6)


def test_variants_share_every_random_draw(digits: DataSet) -> None:
    """With the risk term's weight at zero a variant is control to the bit: nothing else differs between arms."""
    control, _ = distill.distill(digits, SMALL)
    weightless, _ = distill.distill(digits, dataclasses.replace(SMALL, risk="upper", average=0.0, worst=0.0))
    assert torch.equal(control.images, weightless.images)


def test_released_makes_the_images_of_control_and_reports_a_risk(digits: DataSet) -> None:
    control, _ = distill.distill(digits, SMALL)
    released, history = distill.distill(digits, dataclasses.replace(SMALL, risk="released"))
    assert torch.equal(control.images, released.images)
    assert history[-1]["risk"] > 0


def test_upper_makes_other_images_than_control(digits: DataSet) -> None:
    control, _ = distill.distill(digits, SMALL)
    upper, _ = distill.distill(digits, dataclasses.replace(SMALL, risk="upper"))
    assert not torch.equal(control.images, upper.images)


def test_same_settings_same_bytes_other_seed_others(digits: DataSet) -> None:
    one, two = distill.distill(digits, SMALL)[0], distill.distill(digits, SMALL)[0]
    other = distill.distill(digits, dataclasses.replace(SMALL, seed=1))[0]
    assert torch.equal(one.images, two.images) and not torch.equal(one.images, other.images)


class Stop(Exception):
    pass


def stop_after(n: int):
    def check(done: int, _: dict) -> None:
        if done == n:
            raise Stop

    return check


@pytest.mark.parametrize("variant", ["control", "upper"])
def test_resumed_run_equals_the_uninterrupted_one(digits: DataSet, tmp_path: Path, variant: str) -> None:
    s = dataclasses.replace(SMALL, risk=variant)
    whole, history = distill.distill(digits, s)
    with pytest.raises(Stop):
        distill.distill(digits, s, tmp_path / "state.pt", on_step=stop_after(2))
    assert distill.load_state(tmp_path / "state.pt", begun(digits, s), distill.origin(digits, s)).outer == 2
    resumed, again = distill.distill(digits, s, tmp_path / "state.pt")
    assert torch.equal(whole.images, resumed.images) and history == again


def test_interruption_keeps_what_is_done(digits: DataSet, tmp_path: Path) -> None:
    def interrupt(done: int, _: dict) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill.distill(digits, SMALL, tmp_path / "state.pt", every=100, on_step=interrupt)
    assert distill.load_state(tmp_path / "state.pt", begun(digits, SMALL), distill.origin(digits, SMALL)).outer == 1


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
def test_damaged_checkpoint_is_refused_and_left(digits: DataSet, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "state.pt"
    file.write_bytes(content)
    with pytest.raises(DataError, match="state.pt"):
        distill.distill(digits, SMALL, file)
    assert file.read_bytes() == content


def test_checkpoint_of_other_shape_is_refused(digits: DataSet, tmp_path: Path) -> None:
    zeros = torch.zeros(10, 1, 1, 8, 8)
    state = State({"pixels": zeros}, {"pixels": zeros})
    distill.save_state(tmp_path / "state.pt", state, distill.origin(digits, SMALL))
    with pytest.raises(DataError, match="expected"):
        distill.distill(digits, SMALL, tmp_path / "state.pt")


def test_images_stay_in_range(digits: DataSet) -> None:
    made, history = distill.distill(digits, dataclasses.replace(SMALL, lr_image=5.0))
    assert made.images.min() >= 0 and made.images.max() <= 1 and len(history) == 3


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"ipc": 500}, "ipc"),
        ({"batch_real": 99}, "batch_real"),
        ({"net_batch": 5000}, "net_batch"),
        ({"depth": 4}, "depth"),
    ],
)
def test_settings_that_do_not_fit_the_data(digits: DataSet, change: dict, name: str) -> None:
    with pytest.raises(SettingError, match=name):
        distill.distill(digits, dataclasses.replace(SMALL, **change))


@pytest.mark.parametrize(
    ("change", "name"),
    [({"risk": "best"}, "risk"), ({"alpha": 0.0}, "alpha"), ({"alpha": 1.5}, "alpha"), ({"ipc": 0}, "ipc"),
     ({"lr_image": float("nan")}, "lr_image"), ({"ipc": 2.5}, "ipc"), ({"match_augment": "sparkle"}, "match_augment")],
)  # fmt: skip
def test_settings_out_of_range(change: dict, name: str) -> None:
    with pytest.raises(SettingError, match=name):
        dataclasses.replace(SMALL, **change)


def test_batched_classes_are_not_the_published_step() -> None:
    """The guard for later speed-ups: momentum of one class moves the others between their own steps."""
    velocity, m = torch.tensor([1.0, 1.0]), 0.5
    moved = torch.zeros(2)
    for c in range(2):
        velocity = velocity * m
        velocity[c] += 1
        moved += velocity
    batched = 2 * (torch.tensor([1.0, 1.0]) * m + 1)
    assert not torch.allclose(moved, batched)


def test_more_images_than_centres_use_some(digits: DataSet) -> None:
    s = dataclasses.replace(SMALL, ipc=3, max_centres=2, risk="upper")
    loop = loop_of(digits, s)
    assert len(loop.centres) == 20 and len(set(loop.centres.tolist())) == 20
    assert torch.equal(loop.centres // 3, torch.arange(10).repeat_interleave(2))
    x = digits.normalise(digits.train_images[:50])
    found = loop._groups(x, digits.train_labels[:50], loop._centre_points(), torch.arange(50))
    assert loop.n_groups == 20 and int(found.max()) < 20


def test_class_scope_keeps_images_with_their_own(digits: DataSet) -> None:
    s = dataclasses.replace(SMALL, risk="upper", scope="class", space="pixel", factor=2)
    loop = loop_of(digits, s)
    y = digits.train_labels[:64]
    found = loop._groups(digits.normalise(digits.train_images[:64]), y, loop._centre_points(), torch.arange(64))
    assert torch.equal(found // s.ipc, y)
    assert clusters.SCOPES == ("all", "class")
