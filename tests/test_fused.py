"""The fast forms equal the plain ones: values, first and second derivatives, any shape, and the switch between them."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rddlib import fused
from rddlib.base import generator

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


def test_a_piece_is_never_empty() -> None:
    assert fused.piece_size(32, 32) == 64 and fused.piece_size(128, 32) == 16
    assert fused.piece_size(2048, 224) == 1
