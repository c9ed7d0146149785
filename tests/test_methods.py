"""Beside test_reference.py: GLaD's codes, distances by loops, the robust objective in matching, parts of methods.

The plain step of GLaD (Cazenavette et al. 2023) pulls the gradients of `reference` back through the decoder.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import test_reference
import torch
import torch.nn.functional as F
from torch import Tensor

from rddlib.base import SettingError, generator
from rddlib.data import augment, dataset
from rddlib.data.dataset import DataSet
from rddlib.distillation import distill, loop, matching, reference, synthetic
from rddlib.distillation.glad import prior
from rddlib.distillation.loop import ClassDraws, Loop
from rddlib.distillation.settings import DistillSettings, conflicts
from rddlib.models import networks

TINY = dataclasses.replace(test_reference.TINY, net_batch=16, **test_reference.SIAMESE)
NET = networks.build("convnet", (1, 8, 8), 10, depth=2, width=4, generator=generator(0, "net")).double()


@pytest.fixture(scope="module")
def digits() -> DataSet:
    """Digits as float64 in [0, 1], three classes: small enough for plain loops."""
    d = dataset.load("digits", train_limit=200, test_limit=100)
    keep = d.train_labels < 3
    return dataclasses.replace(
        d, train_images=d.train_images[keep].double() / 255, train_labels=d.train_labels[keep], classes=("0", "1", "2")
    )


def method(name: str, **changes: Any) -> DistillSettings:
    return dataclasses.replace(TINY, **({"method": name} | changes))


def one_step(d: DataSet, s: DistillSettings) -> tuple[Tensor, Tensor]:
    """The start, and the images after one outer step of the library; pixels, float64."""
    begun = distill.begin(d, s, prior.Identity())
    ended = loop.outer_step(d, s, begun, prior.Identity())
    return begun.codes["pixels"].flatten(0, 1), ended.codes["pixels"].flatten(0, 1)


# --- distances --------------------------------------------------------------------------------------------


def gradient(metric: str, seed: int) -> list[Tensor]:
    x = torch.randn(5, 1, 8, 8, generator=generator(seed), dtype=torch.float64)
    loss = F.cross_entropy(NET(x), torch.arange(5))
    return list(torch.autograd.grad(loss, matching.matched_parameters(NET, metric)))


def by_loops(metric: str, a: list[Tensor], b: list[Tensor]) -> float:
    total = 0.0
    for p, q in zip(a, b, strict=True):
        for x, y in zip(p.flatten(1), q.flatten(1), strict=True):
            if metric == "dc":  # DC, Eq. 10: over layers and output rows, one minus the cosine
                total += 1 - float(x @ y) / (float(x.norm()) * float(y.norm()) + 1e-6)
            elif metric == "idc":
                total += sum(float(u - v) ** 2 for u, v in zip(x, y, strict=True))
            else:
                size = len(x) if metric == "l1_mean" else 1
                total += sum(abs(float(u - v)) for u, v in zip(x, y, strict=True)) / size
    return total


@pytest.mark.parametrize("metric", matching.METRICS)
def test_distances_are_those_of_loops_over_rows_and_elements(metric: str) -> None:
    a, b = gradient(metric, 1), gradient(metric, 2)
    assert sorted(g.ndim for g in a) == ([2, 4, 4] if metric == "dc" else [4, 4])
    assert float(matching.distance(a, b, metric)) == pytest.approx(by_loops(metric, a, b), rel=1e-10)
    assert float(matching.distance(a, a, metric)) == pytest.approx(0, abs=1e-2) != by_loops(metric, a, b)


# --- GLaD -------------------------------------------------------------------------------------------------


class TinyPrior:
    """Images by a fixed linear map of two codes, squashed to [0, 1]: a prior whose gradients are easily written out."""

    name = "tiny"

    def __init__(self, d: DataSet) -> None:
        g = generator(0, "tiny prior")
        self.of_w = torch.randn(3, d.train_images[0].numel(), generator=g, dtype=torch.float64) / 3
        self.of_f = torch.randn(5, d.train_images[0].numel(), generator=g, dtype=torch.float64) / 3
        self.shape = d.shape

    def encode(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        n = len(labels)
        return {
            "w": torch.randn(n, 3, generator=generator).double(),
            "f": torch.randn(n, 5, generator=generator).double(),
        }

    def decode(self, codes: dict[str, Tensor], labels: Tensor) -> Tensor:
        return (codes["w"] @ self.of_w + codes["f"] @ self.of_f).sigmoid().view(-1, *self.shape)

    def rates(self) -> dict[str, float]:
        return {"w": 1e-3, "f": 1.0}


def test_glad_equals_the_plain_step(digits: DataSet) -> None:
    """Codes by torch's own SGD, gradients of all classes through the decoder at once."""
    s, source = method("glad", lr_image=2.0), TinyPrior(digits)
    begun = distill.begin(digits, s, source)
    made = loop.outer_step(digits, s, begun, source)
    codes = {name: code.flatten(0, 1).clone().requires_grad_() for name, code in begun.codes.items()}

    def images() -> Tensor:
        return source.decode(codes, torch.arange(3)).unflatten(0, (3, s.ipc))

    step = reference.Step(digits, s, images().detach(), torch.zeros_like(images()), 0)
    sgd = torch.optim.SGD([{"params": [codes["f"]], "lr": 2.0}, {"params": [codes["w"]], "lr": 2e-3}], momentum=0.5)
    for inner in range(s.inner_steps):
        step.S = images().detach()
        gradients = torch.stack([step.matching_gradient(k, step.S) for k in range(3)])
        sgd.zero_grad()
        images().backward(gradients)
        sgd.step()
        for _ in range(s.net_steps if inner == 0 else 0):  # the network is thrown away after the last image step
            step.train_network()
    for name, code in codes.items():
        assert torch.allclose(made.codes[name].flatten(0, 1), code.detach(), atol=1e-8, rtol=0)
    assert (made.codes["f"] - begun.codes["f"]).abs().max() > 1e-3


# --- the robust objective in the matched gradient ---------------------------------------------------------


def robust_loop(d: DataSet, **changes: Any) -> Loop:
    s = method("idc", risk="upper", where="matching", scope="class", alpha=0.5, match_augment="none", **changes)
    return Loop(d, s, distill.begin(d, s, prior.Identity()), prior.Identity())


def test_image_gradient_of_robust_matching_by_finite_differences(digits: DataSet) -> None:
    """The images' gradient is that of the distance to the robust target: differences of the whole distance."""
    moving = robust_loop(digits)
    places, state = moving._centre_points(), {n: g.get_state() for n, g in moving.streams.items()}

    def gap() -> tuple[Tensor, dict[str, Tensor]]:
        for name, stream in moving.streams.items():
            stream.set_state(state[name])
        return moving.matching_gradient(0, places)

    _, slope = gap()
    direction = torch.randn(slope["pixels"].shape, generator=generator(0, "direction")).double()
    moving.codes["pixels"][0] += 1e-6 * direction
    above, _ = gap()
    moving.codes["pixels"][0] -= 2e-6 * direction
    below, _ = gap()
    assert torch.allclose((above - below) / 2e-6, (slope["pixels"] * direction).sum(), rtol=1e-5, atol=0)


def test_robust_target_is_the_plain_one_where_the_tail_is_all(digits: DataSet) -> None:
    """alpha = 1, average only, one cluster: mean + mean, over 2, is the mean again."""
    moving = robust_loop(digits, ipc=1)
    moving.term = dataclasses.replace(moving.term, alpha=1.0, worst=0.0)
    drawn = ClassDraws(digits.members[0][:8], augment.draw("none", 1, 8, generator(0)), None)
    robust, plain = (moving._target(drawn, 0, points) for points in (moving._centre_points(), None))
    for a, b in zip(robust, plain, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


# --- arms -------------------------------------------------------------------------------------------------


def test_variants_share_every_random_draw(digits: DataSet) -> None:
    """With the term's weight at zero, or as released, a variant is control to the bit; another seed is not."""
    control, again, weightless, other = (
        distill.distill(digits, method("idc", **changes))[0].images
        for changes in ({}, {}, {"risk": "upper", "average": 0.0, "worst": 0.0}, {"seed": 1})
    )
    released, history = distill.distill(digits, method("idc", risk="released"))
    for same in (again, weightless, released.images):
        assert torch.equal(control, same)
    assert history[-1]["risk"] > 0 and not torch.equal(control, other)


def test_a_network_with_dropout_draws_no_more_with_the_term_than_without(digits: DataSet) -> None:
    """Where groups are looked for its dropout is off, so that a term without a gradient changes nothing."""
    vit = {"network": "vit", "width": 8, "factor": 1}
    images = [distill.distill(digits, method("dsa", risk=r, **vit))[0].images for r in ("control", "released")]
    assert torch.equal(*images)


def test_groups_are_looked_for_only_where_they_are_used(digits: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> DataSet:
        raise AssertionError

    monkeypatch.setattr(distill.clusters, "with_found_groups", refuse)
    distill.distill(digits, method("idc", groups_from="found"))
    with pytest.raises(AssertionError):
        distill.distill(digits, method("idc", groups_from="found", risk="upper"))


def test_normalised_coordinates_are_left_unclamped_pixels_are_clamped(digits: DataSet) -> None:
    wild = {"lr_image": 50.0, "inner_steps": 1}
    _, clamped = one_step(digits, method("idc", **wild))
    assert clamped.min() >= 0 and clamped.max() <= 1
    assert one_step(digits, method("idc", coordinates="normalised", **wild))[1].max() > 1


@pytest.mark.parametrize("name", ["dsa", "glad", "idc"])
def test_feature_means_can_be_matched_under_any_method(digits: DataSet, name: str) -> None:
    """Cosines of rows are for gradients: means are compared by squares, whatever the method's own distance."""
    s = method(name, objective="mean", prior="none", metric="dc")
    start, made = one_step(digits, s)
    assert s.parts().metric == "idc" and not torch.equal(start, made) and torch.isfinite(made).all()


def test_overrides_replace_a_part_and_count_only_if_they_differ() -> None:
    assert method("dsa").parts().net_data == "synthetic" and method("dsa", net_data="real").parts().net_data == "real"
    assert method("idc", metric="idc").differs("metric") is False and method("idc", metric="dc").differs("metric")


def test_greedy_centres_are_the_farthest_from_the_last_chosen() -> None:
    """As released: 0 first, then the farthest from the one before, which is no k-centre choice."""
    at = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    stored = synthetic.SyntheticSet(at.view(5, 1, 1, 1).expand(5, 1, 2, 2).contiguous(), 5)
    assert synthetic.choose_centres(stored, 3, "greedy", generator(0)).tolist() == [0, 4, 1]
    assert synthetic.choose_centres(stored, 5, "greedy", generator(0)).tolist() == [0, 1, 2, 3, 4]


def test_history_is_thinned_to_means() -> None:
    history = [{"distance": float(i)} for i in range(250)]
    thin = distill.thinned(history)
    assert len(thin) <= 100 and thin[0]["distance"] == 1.0 and distill.thinned(history[:100]) == history[:100]


def test_fit_is_checked_only_where_it_matters(digits: DataSet) -> None:
    assert not list(conflicts(digits, method("random", batch_real=10**6)))
    assert not list(conflicts(digits, method("dsa", net_batch=10**6)))  # the synthetic set is smaller than any batch
    with pytest.raises(SettingError, match="net_batch"):
        distill.distill(digits, method("idc", net_batch=10**6))
