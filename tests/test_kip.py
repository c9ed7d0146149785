"""KIP against a plain step written from its description; the way to pixels and back; refusals."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
from pretend_gpu import DEVICE, pretended
from sklearn.kernel_ridge import KernelRidge
from torch import Tensor

from rddlib.base import DivergenceError, SettingError, generator
from rddlib.data import dataset
from rddlib.data.dataset import DataSet
from rddlib.distillation import synthetic
from rddlib.distillation.kip import inducing_points
from rddlib.distillation.kip.inducing_points import KipSettings
from rddlib.distillation.kip.kernels import Space
from rddlib.distillation.synthetic import SyntheticSet

kip = functools.partial(KipSettings, ipc=1)
SMALL = kip(ipc=2, kip_depth=2, kip_steps=50, kip_batch=40, learn_labels=True)


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return dataset.load("digits", train_limit=200, test_limit=100)


@pytest.fixture(scope="module")
def all_digits() -> DataSet:
    return dataset.load("digits")


# --- a plain step ----------------------------------------------------------------------------------------------


def plain_kernel(x: Tensor, y: Tensor, depth: int, same: bool = False) -> Tensor:
    """NTK of a fully connected ReLU network, weights sqrt(2), biases 0.1, pair by pair."""
    rows = []
    for i, a in enumerate(x.flatten(1)):
        row = []
        for j, b in enumerate(y.flatten(1)):
            xx, yy, xy = (2 * (u * v).mean() + 0.01 for u, v in ((a, a), (b, b), (a, b)))
            theta = xy
            for _ in range(depth):
                angle = xy.new_zeros(()) if same and i == j else torch.acos(xy / (xx * yy).sqrt())
                relu_relu = (xx * yy).sqrt() * (angle.sin() + (math.pi - angle) * angle.cos()) / (2 * math.pi)
                step_step = (math.pi - angle) / (2 * math.pi)
                xx, yy, xy = 2 * xx / 2 + 0.01, 2 * yy / 2 + 0.01, 2 * relu_relu + 0.01
                theta = xy + 2 * theta * step_step
            row.append(theta)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def plain_steps(seen: Tensor, d: DataSet, s: KipSettings, support: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """KIP with Adam written out; inverse in the place of a factorisation."""
    values = [support.clone(), labels.clone()]
    first, second = [torch.zeros_like(v) for v in values], [torch.zeros_like(v) for v in values]
    for step in range(s.kip_steps):
        index = torch.randperm(len(seen), generator=generator(s.seed, "kip batch", step))[: s.kip_batch]
        x, y = seen[index].double(), torch.eye(10, dtype=torch.float64)[d.train_labels[index]] - 0.1
        here = [v.clone().requires_grad_() for v in values]
        k_ss, k_ts = plain_kernel(here[0], here[0], s.kip_depth, True), plain_kernel(x, here[0], s.kip_depth)
        ridge = s.kip_ridge * k_ss.trace() / len(k_ss)
        found = k_ts @ torch.linalg.inv(k_ss + ridge * torch.eye(len(k_ss), dtype=torch.float64)) @ here[1]
        gradients = torch.autograd.grad(0.5 * ((found - y) ** 2).mean(), here)
        for i, g in enumerate(gradients[: 2 if s.learn_labels else 1]):
            first[i] = 0.9 * first[i] + 0.1 * g
            second[i] = 0.999 * second[i] + 0.001 * g * g
            mean, spread = first[i] / (1 - 0.9 ** (step + 1)), second[i] / (1 - 0.999 ** (step + 1))
            values[i] = values[i] - s.kip_lr * mean / (spread.sqrt() + 1e-8)
    return values[0], values[1]


@pytest.mark.parametrize(("zca", "learn_labels"), [(True, True), (False, False)])
def test_steps_equal_the_plain_ones(digits: DataSet, zca: bool, learn_labels: bool) -> None:
    s = kip(kip_depth=2, kip_steps=3, kip_batch=6, kip_ridge=1e-3, zca=zca, learn_labels=learn_labels)
    space = Space.of(digits, zca)
    begun = inducing_points._begin(digits, s, space)
    made = inducing_points.optimise(digits, s, space=space)
    seen = space.apply(digits.train_images, torch.float32)
    support, targets = plain_steps(seen, digits, s, begun.support, begun.targets)
    torch.testing.assert_close(made.support, support, rtol=0, atol=1e-8)
    torch.testing.assert_close(made.targets, targets, rtol=0, atol=1e-8)
    assert float((made.support - begun.support).abs().max()) > 0.05
    assert torch.equal(made.targets, begun.targets) != learn_labels


def test_a_kernel_without_a_factor_stops_the_run_at_its_step(digits: DataSet) -> None:
    """Found at the end of a round, so that a graphics processor is not asked at every step."""
    s = kip(kip_steps=3, kip_batch=6, kip_ridge=1e-30, zca=False)
    alike = digits.train_images[:1].expand(20, -1, -1, -1)
    space = Space.of(digits, False)
    state = inducing_points.State(space.apply(alike), inducing_points.centred(torch.arange(20) // 2, 10))
    seen = space.apply(digits.train_images, torch.float32)
    with pytest.raises(DivergenceError, match=r"KIP, step 1: .* kip_ridge \(now 1e-30\)"):
        inducing_points.run_round(seen, digits, s, space, state)
    with pytest.raises(DivergenceError, match="KIP, evaluation"):
        inducing_points._accuracy(state.support, state.targets, digits, s, space)


def test_a_round_waits_once(digits: DataSet) -> None:
    """On the pretended graphics processor, whatever the number of steps; and it ends where the CPU does."""
    s = kip(kip_steps=4, kip_batch=6, kip_ridge=1e-3, zca=False, learn_labels=True)
    expected = inducing_points.optimise(digits, s)
    with pretended() as counts:
        there = digits.to(DEVICE)
        space = Space.of(there, False)
        state = inducing_points._begin(there, s, space)
        seen = space.apply(there.train_images, torch.float32)
        counts.waits.clear()
        found = inducing_points.run_round(seen, there, s, space, state)
        assert len(counts.waits) == 1, counts.waits
        torch.testing.assert_close(found.support.cpu(), expected.support, rtol=0, atol=1e-9)
    assert found.history[0] == pytest.approx(expected.history[0])


def test_accuracy_equals_that_of_sklearn(digits: DataSet) -> None:
    s = kip(ipc=3, zca=False, kip_ridge=0.1)
    start = synthetic.start(digits, 3, 1, generator(0, "start"))
    support, test = (digits.normalise(v).double() for v in (start.images, digits.test_images))
    k_ss, k_ts = plain_kernel(support, support, 1, True).numpy(), plain_kernel(test, support, 1).numpy()
    peer = KernelRidge(alpha=0.1 * np.trace(k_ss) / 30, kernel="precomputed").fit(k_ss, np.eye(10).repeat(3, 0) - 0.1)
    expected = 100 * (peer.predict(k_ts).argmax(1) == digits.test_labels.numpy()).mean()
    assert inducing_points.kernel_accuracy(start, digits, s) == pytest.approx(expected)


# --- the space ---------------------------------------------------------------------------------------------


def test_whitening_has_the_spectrum_it_should(digits: DataSet) -> None:
    """Eigenvalue m of the covariance becomes m / (m + 0.1 mean), in every direction as before."""
    plain = Space.of(digits, zca=False).apply(digits.train_images).flatten(1)
    white = Space.of(digits, zca=True).apply(digits.train_images).flatten(1)
    before, after = (np.cov(v.numpy(), rowvar=False, bias=True) for v in (plain, white))
    values, vectors = np.linalg.eigh(before)
    expected = vectors @ np.diag(values / (values + 0.1 * values.mean())) @ vectors.T
    np.testing.assert_allclose(after, expected, atol=1e-5)  # the products are summed in float32
    assert float(white.mean(0).abs().max()) < 1e-5


@pytest.mark.parametrize("zca", [True, False])
def test_pixels_come_back(digits: DataSet, zca: bool) -> None:
    space = Space.of(digits, zca)
    pixels = digits.test_images.double() / 255
    torch.testing.assert_close(space.pixels(space.apply(pixels)), pixels, rtol=0, atol=1e-10)
    torch.testing.assert_close(space.apply(digits.test_images), space.apply(pixels), rtol=0, atol=1e-12)
    if not zca:
        torch.testing.assert_close(space.apply(pixels), digits.normalise(pixels).double(), rtol=0, atol=1e-5)


def test_storage_says_what_the_clamp_and_the_bits_cost(all_digits: DataSet) -> None:
    s = kip(kip_steps=100, kip_batch=500, learn_labels=True)
    space = Space.of(all_digits, s.zca)
    free, held = (
        inducing_points.storage(inducing_points.optimise(all_digits, v, space=space), all_digits, v, space)
        for v in (s, dataclasses.replace(s, kip_clamp=True))
    )
    assert free["outside"] > 10 and held["outside"] == 0
    assert free["optimised"] - free["clamped"] > 3  # learned labels let the images grow
    assert abs(held["optimised"] - held["8 bits"]) < 1
    assert held["optimised"] > 85
    assert held["clamped"] == pytest.approx(held["optimised"])


def test_clamped_steps_move_pixels_along_the_gradient_of_pixels(digits: DataSet) -> None:
    """The first step of Adam is the sign of the gradient times the rate, here in units of the mean std."""
    s = dataclasses.replace(SMALL, kip_steps=1, kip_clamp=True)
    space, start = Space.of(digits, True), synthetic.start(digits, 2, 1, generator(0, "start")).images.double()
    index = torch.randperm(200, generator=generator(0, "kip batch", 0))[:40]
    pixels = start.clone().requires_grad_()
    x = space.apply(digits.train_images, torch.float32)[index].double()
    y = inducing_points.centred(digits.train_labels[index], 10)
    error = inducing_points.loss(
        s, space.apply(pixels), inducing_points.centred(torch.arange(10).repeat_interleave(2), 10), x, y
    )
    (gradient,) = torch.autograd.grad(error, pixels)
    expected = (start - 0.04 * digits.std[0] * gradient / (gradient.abs() + 1e-8)).clamp(0, 1)
    torch.testing.assert_close(inducing_points.optimise(digits, s, space=space).support, expected, rtol=0, atol=1e-9)


def test_what_is_returned_is_what_was_optimised_in_pixels(digits: DataSet) -> None:
    state, (made, history) = inducing_points.optimise(digits, SMALL), inducing_points.distill(digits, SMALL)
    assert made.images.dtype == torch.float32 and made.images.shape == (20, *digits.shape)
    assert made.images.min() >= 0 and made.images.max() <= 1
    pixels = Space.of(digits, True).pixels(state.support)
    inside = (pixels > 0) & (pixels < 1)
    torch.testing.assert_close(made.images[inside].double(), pixels[inside], rtol=0, atol=1e-6)
    assert made.targets is not None and torch.equal(made.targets, state.targets.float())
    assert history == state.history and [sorted(h) for h in history] == [["loss", "outside"]] * 3
    hard, _ = inducing_points.distill(digits, dataclasses.replace(SMALL, learn_labels=False))
    assert hard.targets is None


def test_tiles_of_a_set_share_its_targets(digits: DataSet) -> None:
    """A set of factor 2 is judged by its decoded images."""
    tiles = synthetic.start(digits, 2, 2, generator(0, "start"))
    images, labels = tiles.decoded()
    apart = SyntheticSet(images, 8, 1, inducing_points.centred(labels, 10))
    together = dataclasses.replace(tiles, targets=inducing_points.centred(tiles.labels, 10))
    scores = [inducing_points.kernel_accuracy(v, digits, SMALL) for v in (tiles, apart, together)]
    assert scores[0] == scores[1] == scores[2] > 15


# --- that it learns ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "gain"),
    [({}, 30), ({"zca": False}, 15), ({"learn_labels": True, "kip_clamp": True}, 30),
     ({"kernel": "conv", "kip_depth": 2, "kip_steps": 40, "kip_batch": 50}, 15),
     ({"kernel": "conv", "kip_pooling": "blocks", "kip_steps": 40, "kip_batch": 50}, 15),
     ({"kernel": "conv", "kip_pooling": "global", "kip_steps": 40, "kip_batch": 50}, 5)],
    ids=str,
)  # fmt: skip
def test_it_beats_the_images_it_starts_from(all_digits: DataSet, change: dict, gain: float) -> None:
    """Pairs of pixels are dear, so those kernels meet digits of 4 px here."""
    d = dataset.load("digits", size=4, test_limit=200) if "kip_pooling" in change else all_digits
    s = kip(**({"kip_steps": 100, "kip_batch": 500} | change))
    made, history = inducing_points.distill(d, s)
    before = inducing_points.kernel_accuracy(synthetic.start(d, 1, 1, generator(0, "start")), d, s)
    assert inducing_points.kernel_accuracy(made, d, s) > before + gain
    assert history[-1]["loss"] < 0.95 * history[0]["loss"]


def test_same_settings_same_bytes_other_seed_others(digits: DataSet) -> None:
    first, again, other = (
        inducing_points.distill(digits, dataclasses.replace(SMALL, seed=seed))[0] for seed in (0, 0, 1)
    )
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)


# --- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [{"ipc": 1000}, {"kip_batch": 201}, {"kip_depth": 4, "kernel": "conv", "kip_pooling": "blocks"}],
    ids=str,
)
def test_settings_that_do_not_fit_the_data_are_refused(digits: DataSet, wrong: dict) -> None:
    with pytest.raises(SettingError) as raised:
        inducing_points.distill(digits, dataclasses.replace(SMALL, **wrong))
    assert raised.value.name == next(iter(wrong))


def test_pairs_of_pixels_of_large_images_are_refused() -> None:
    large = dataset.load("digits", size=32, train_limit=50, test_limit=10)
    with pytest.raises(SettingError) as raised:
        inducing_points.distill(large, dataclasses.replace(SMALL, kernel="conv", kip_pooling="global"))
    assert raised.value.name == "kip_pooling"
    diagonal = kip(kernel="conv", kip_steps=1, kip_batch=10, zca=False)
    assert len(inducing_points.distill(large, diagonal)[1]) == 1


@pytest.mark.parametrize(
    "wrong",
    [{"kernel": "rbf"}, {"kip_depth": 0}, {"kip_steps": 0}, {"kip_batch": 2.5}, {"kip_lr": 0.0}, {"kip_ridge": 0.0},
     {"kip_ridge": float("nan")}, {"kip_pooling": "max"}, {"learn_labels": 1}, {"zca": "yes"}, {"kip_clamp": None}],
    ids=str,
)  # fmt: skip
def test_values_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(SettingError) as raised:
        kip(**wrong)
    assert raised.value.name == next(iter(wrong))
