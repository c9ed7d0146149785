"""Distances of gradients against loops over rows and elements."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rddlib.base import SettingError, generator
from rddlib.distillation import matching
from rddlib.models import networks

NET = networks.build("convnet", (1, 8, 8), 10, depth=2, width=4, generator=generator(0, "net")).double()


def gradient(metric: str, seed: int) -> list[torch.Tensor]:
    x = torch.randn(5, 1, 8, 8, generator=generator(seed), dtype=torch.float64)
    return matching.gradients(F.cross_entropy(NET(x), torch.arange(5)), matching.matched_parameters(NET, metric))


def test_idc_compares_convolution_weights_only() -> None:
    assert [p.ndim for p in matching.matched_parameters(NET, "idc")] == [4, 4]
    assert sorted(p.ndim for p in matching.matched_parameters(NET, "dc")) == [2, 4, 4]


def test_idc_distance_is_the_sum_of_squares() -> None:
    a, b = gradient("idc", 1), gradient("idc", 2)
    plain = sum(
        float((x - y) ** 2) for p, q in zip(a, b, strict=True) for x, y in zip(p.flatten(), q.flatten(), strict=True)
    )
    assert float(matching.distance(a, b)) == pytest.approx(plain, rel=1e-12)


def test_dc_distance_is_row_wise_cosine() -> None:
    a, b = gradient("dc", 1), gradient("dc", 2)
    plain = 0.0
    for p, q in zip(a, b, strict=True):
        for x, y in zip(p.flatten(1), q.flatten(1), strict=True):
            plain += 1 - float(x @ y) / (float(x.norm()) * float(y.norm()) + 1e-6)
    assert float(matching.distance(a, b, "dc")) == pytest.approx(plain, rel=1e-10)


@pytest.mark.parametrize("metric", matching.METRICS)
def test_zero_only_where_gradients_agree(metric: str) -> None:
    a, b = gradient(metric, 1), gradient(metric, 2)
    assert float(matching.distance(a, a, metric)) == pytest.approx(0, abs=1e-2)
    assert float(matching.distance(a, b, metric)) > 0.02


@pytest.mark.parametrize("metric", matching.METRICS)
def test_gradient_to_the_images_is_that_of_finite_differences(metric: str) -> None:
    target, parameters = gradient(metric, 1), matching.matched_parameters(NET, metric)
    x = torch.randn(2, 1, 8, 8, generator=generator(3), dtype=torch.float64)

    def of(pixels: torch.Tensor) -> torch.Tensor:
        loss = F.cross_entropy(NET(pixels), torch.tensor([0, 1]))
        return matching.distance(target, matching.gradients(loss, parameters, create_graph=True), metric)

    x.requires_grad_()
    (slope,) = torch.autograd.grad(of(x), x)
    x = x.detach()
    direction = torch.randn(x.shape, generator=generator(4), dtype=torch.float64)
    step = 1e-6
    numeric = (of(x + step * direction) - of(x - step * direction)) / (2 * step)
    assert float((slope * direction).sum()) == pytest.approx(float(numeric.detach()), rel=1e-4)


def test_unknown_metric() -> None:
    for call in (lambda: matching.matched_parameters(NET, "l7"), lambda: matching.distance([], [], "l7")):
        with pytest.raises(SettingError, match="metric = 'l7'"):
            call()
