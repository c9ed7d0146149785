"""The fast forms equal the plain ones: values, first and second derivatives, any shape, and the switch between them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rddlib import stats
from rddlib.base import generator
from rddlib.data.dataset import load
from rddlib.distillation import distill, loop
from rddlib.distillation.glad import prior
from rddlib.evaluation import evaluate
from rddlib.experiments import small_sets
from rddlib.models import fused, networks

Loss = Callable[[Tensor], Tensor]
Measure = Callable[[list[Tensor]], Tensor]
SHAPES = [(2, 3, 6, 6), (1, 1, 8, 8), (2, 2, 7, 5), (3, 4, 2, 2), (2, 3, 3, 8)]


def inputs(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Images, scale and shift that carry gradients; the scale has both signs."""
    rng = generator(seed, "fused", *shape)
    sizes = (shape, shape[1:2], shape[1:2])
    x, scale, shift = (torch.randn(s, generator=rng, dtype=torch.float64).to(dtype).requires_grad_() for s in sizes)
    return x, scale, shift


def plain(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return F.avg_pool2d(F.group_norm(x, x.shape[1], scale, shift).relu(), 2)


def fast(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.func.functional_call(
        fused.NormReluPool(x.shape[1]).to(x.dtype), {"weight": scale, "bias": shift}, (x,)
    )


def derivatives(f: Callable[..., Tensor], x: Tensor, scale: Tensor, shift: Tensor) -> list[Tensor]:
    """The value, all first derivatives of a random projection, and all second ones of a projection of those."""
    rng = generator(1, "fused", "directions")
    y = f(x, scale, shift)
    dy = torch.randn(y.shape, generator=rng, dtype=torch.float64).to(y.dtype).requires_grad_()
    first = torch.autograd.grad(y, (x, scale, shift), dy, create_graph=True)
    u = [torch.randn(g.shape, generator=rng, dtype=torch.float64).to(g.dtype) for g in first]
    return [y, *first, *torch.autograd.grad(first, (dy, x, scale), u)]


def worst(a: list[Tensor], b: list[Tensor]) -> float:
    """Largest difference, over the largest value of what is compared."""
    pairs = ((x.detach(), y.detach()) for x, y in zip(a, b, strict=True))
    return max(float((x - y).abs().max() / y.abs().max().clamp_min(1e-3)) for x, y in pairs)


@pytest.mark.parametrize("shape", SHAPES)
def test_derivatives_are_those_of_finite_differences(shape: tuple[int, ...]) -> None:
    arguments = inputs(*shape)
    assert torch.autograd.gradcheck(fast, arguments)
    assert torch.autograd.gradgradcheck(fast, arguments)


@pytest.mark.parametrize(("dtype", "least"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@given(n=st.integers(1, 4), c=st.integers(1, 5), h=st.integers(2, 13), w=st.integers(2, 13), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_any_shape_equals_the_plain_operations(
    dtype: torch.dtype, least: float, n: int, c: int, h: int, w: int, seed: int
) -> None:
    """Value, first and second derivatives. ReLU has no derivative at 0, so inputs near it are left out."""
    x, scale, shift = inputs(n, c, h, w, dtype=dtype, seed=seed)
    if (F.group_norm(x, c, scale, shift).abs() > 1e-4).all() and x.var((2, 3)).min() > 0.05:
        assert worst(derivatives(fast, x, scale, shift), derivatives(plain, x, scale, shift)) < least


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_a_second_derivative_of_some_first_ones_only(wanted: tuple[int, ...]) -> None:
    """Matching differentiates gradients of convolutions alone: cotangents that are missing count as zero."""
    arguments = inputs(2, 3, 6, 6)
    found = []
    for f in (fast, plain):
        y = f(*arguments)
        first = torch.autograd.grad(y.square().sum(), arguments, create_graph=True)
        found.append(torch.autograd.grad(sum(first[i].square().sum() for i in wanted), arguments))
    assert worst(*map(list, found)) < 1e-10


def test_a_constant_channel_has_finite_derivatives() -> None:
    """Its variance is zero: only the norm's epsilon stands below the fraction."""
    _, scale, shift = inputs(2, 3, 6, 6)
    x = torch.ones(2, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    a, b = derivatives(fast, x, scale, shift), derivatives(plain, x, scale, shift)
    assert all(t.isfinite().all() for t in a) and worst(a, b) < 1e-8


def test_an_input_that_is_not_contiguous() -> None:
    x, scale, shift = inputs(2, 4, 6, 8)
    for view in (x.transpose(2, 3), x.to(memory_format=torch.channels_last), x[:, :, ::2]):
        assert worst(derivatives(fast, view, scale, shift), derivatives(plain, view, scale, shift)) < 1e-10


def test_the_switch_selects_the_plain_operations_and_goes_back() -> None:
    arguments = inputs(2, 3, 6, 6)
    kinds = []
    for on in (True, False):
        with fused.use(on):
            kinds.append(type(fast(*arguments).grad_fn).__name__)
            assert fused.usable(arguments[0]) is on
    assert fused.usable(arguments[0]) and kinds[0] != kinds[1] and "AvgPool2D" in kinds[1]
    with pytest.raises(KeyError), fused.use(False):
        raise KeyError
    assert fused.usable(arguments[0])
    assert not fused.usable(arguments[0].half()) and not fused.usable(torch.empty(1, device="meta"))


def test_parameters_are_those_of_a_group_norm() -> None:
    ours, theirs = fused.NormReluPool(5), nn.GroupNorm(5, 5)
    assert [(k, v.shape) for k, v in ours.state_dict().items()] == [
        (k, v.shape) for k, v in theirs.state_dict().items()
    ]
    assert isinstance(ours, nn.GroupNorm) and ours.eps == theirs.eps


def test_memory_is_kept_where_the_c_library_can() -> None:
    done = fused.keep_memory()
    assert done is fused.keep_memory()
    assert done or not sys.platform.startswith("linux") or "musl" in str(sys.implementation)


# --- the whole network ---------------------------------------------------------------------------------------


def network(channels: int, size: int, depth: int, seed: int = 0, width: int = 6) -> nn.Module:
    """A ConvNet of fused blocks in float64, norms with a scale and a shift of their own."""
    rng = generator(seed, "fused", "network")
    net = networks.build("convnet", (channels, size, size), 4, depth=depth, width=width, generator=rng)
    with torch.no_grad():
        for p in net.double().parameters():
            p.copy_(torch.randn(p.shape, generator=rng, dtype=p.dtype) * 0.3)
    return net


def by_autograd(net: Any, x: Tensor, loss: Loss, measure: Measure, linear: bool) -> tuple[Tensor, Tensor]:
    """The distance and its gradient at the images with plain operations and autograd's double backward pass."""
    x = x.clone().requires_grad_()
    weights = [p for p in net.parameters() if p.ndim >= (2 if linear else 4)]
    with fused.use(False):
        logits = net.classifier(net.features(x).flatten(1))
        distance = measure(list(torch.autograd.grad(loss(logits), weights, create_graph=True)))
    return distance.detach(), torch.autograd.grad(distance, x)[0]


def cosines(gradients: list[Tensor]) -> Tensor:
    ones = [torch.linspace(-1, 1, g.numel(), dtype=g.dtype).view_as(g) for g in gradients]
    return torch.stack(
        [1 - F.cosine_similarity(g.flatten(1), o.flatten(1)).sum() for g, o in zip(gradients, ones, strict=True)]
    ).sum()


def squares(gradients: list[Tensor]) -> Tensor:
    return torch.stack([(g - 0.1).square().sum() for g in gradients]).sum()


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("measure", [squares, cosines])
@pytest.mark.parametrize(("channels", "size", "depth"), [(3, 16, 3), (1, 8, 2), (1, 8, 3), (3, 13, 2), (6, 6, 1)])
def test_image_gradient_is_that_of_autograd(
    channels: int, size: int, depth: int, measure: Measure, linear: bool
) -> None:
    net = network(channels, size, depth)
    x = torch.randn(5, channels, size, size, dtype=torch.float64, generator=generator(0, "images"))
    weights = torch.tensor([2.0, 0.0, 1.0, 0.5, 1.5], dtype=torch.float64)  # any loss of the logits will do

    def loss(logits: Tensor) -> Tensor:
        return (weights * F.cross_entropy(logits, torch.tensor([0, 1, 2, 3, 0]), reduction="none")).mean()

    ours = fused.image_gradient(net, x, loss, measure, linear)
    theirs = by_autograd(net, x, loss, measure, linear)
    assert ours[1].shape == x.shape and not ours[1].requires_grad
    assert worst(list(ours), list(theirs)) < 1e-10


def test_image_gradient_in_single_precision() -> None:
    """Off from double precision by rounding, as autograd's own is."""
    net = network(3, 16, 3, width=8)
    x = torch.randn(8, 3, 16, 16, dtype=torch.float64, generator=generator(3, "images"))

    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, torch.arange(len(logits)) % 4)

    exact = by_autograd(net, x, loss, squares, False)
    single = fused.image_gradient(net.float(), x.float(), loss, squares, False)
    assert worst([t.double() for t in single], list(exact)) < 1e-4


def test_networks_of_another_form_are_not_taken() -> None:
    assert fused.differentiable(network(3, 8, 2))
    for change in ("conv", "norm", "classifier", "features"):
        net: Any = network(3, 8, 2)
        if change == "conv":
            net.features[1][0].stride = (2, 2)
        elif change == "norm":
            net.features[1][1] = nn.GroupNorm(6, 6)
        else:
            setattr(net, change, nn.Identity())
        assert not fused.differentiable(net), change
    assert not fused.differentiable(nn.Linear(2, 2))


# --- bfloat16 products --------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [{"factor": 2}, {"method": "dm", "net_steps": 0}, {"method": "glad", "cutmix": 0.0}])
def test_bfloat16_moves_images_the_same_way(chosen: dict[str, Any]) -> None:
    """One step: the images stay float32 and move along nearly the same gradient; bfloat16 has 8 bits of mantissa."""
    short = {"outer_steps": 1, "inner_steps": 1, "lr_image": 1e-3, **chosen}
    data = load("digits")
    moved = {}
    for precision in networks.PRECISIONS:
        s = tiny(**short, precision=precision)
        source = prior.load(s.parts().prior, data, s.prior_layer, s.prior_start)
        begun = distill.begin(data, s, source)
        with networks.arithmetic(s.precision, torch.device("cpu")):
            after = loop.outer_step(data, s, begun, source)
        assert all(code.dtype == torch.float32 for code in after.codes.values())
        moved[precision] = torch.cat([(after.codes[n] - begun.codes[n]).flatten() for n in begun.codes])
    gap = (moved["float32"] - moved["bfloat16"]).norm() / moved["float32"].norm()
    assert 1e-5 < gap < 0.1


def test_bfloat16_trains_as_well() -> None:
    """Eight trainings each from the same starts: accuracy equal within three points, by an equivalence test."""
    data = load("digits")
    small = small_sets.drawn(data, tiny(method="random", ipc=20))
    found = {}
    for precision in networks.PRECISIONS:
        s = tiny(eval_precision=precision, eval_steps=60, eval_seeds=8, eval_shifts=False)
        found[precision] = evaluate.evaluate(small.images, small.labels, data, s, 0)["accuracy"]
    assert found["float32"] != found["bfloat16"]
    gap = stats.paired_difference(*(np.array(found[p])[:, None] for p in ("bfloat16", "float32")))
    assert min(found["float32"]) > 40 and gap.low > -3 and gap.high < 3
