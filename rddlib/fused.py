"""Faster forms of the common network's work on a CPU, equal to the plain ones up to rounding.

Three findings stand behind them (benchmarks/): large tensors that the C library hands back to the system are paged in
again at every operation; average pooling is scalar code; and the gradient of a gradient, taken by autograd, passes
over memory some forty times a block. `NormReluPool` is one block's norm, ReLU and pooling with both derivatives
written out; `keep_memory` stops the paging. `use(False)` brings back the plain forms.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

aten = torch.ops.aten
PIECE = 2**21  # numbers in the largest activation of a piece of a batch: 8 MB in float32 stay in the cache
_enabled = [True]


@contextmanager
def use(on: bool) -> Iterator[None]:
    """Within the block, take the fast forms (True, the default) or the plain ones (False)."""
    before, _enabled[0] = _enabled[0], on
    try:
        yield
    finally:
        _enabled[0] = before


def usable(x: Tensor) -> bool:
    """Whether the fast forms serve this tensor: switched on, on a CPU, in single or double precision."""
    return _enabled[0] and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


@cache
def keep_memory() -> bool:
    """Let glibc keep freed memory instead of handing it back, so that it is not paged in anew at each operation.

    For the whole process and for good. Returns whether it was done: False where the C library is not glibc. The
    training step of a narrow network takes half the time; peak memory is as before, but it stays with the process.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    trim, top_pad, mmap = -1, -2, -3
    return bool(library.mallopt(mmap, 2**30) and library.mallopt(trim, 2**31 - 1) and library.mallopt(top_pad, 2**26))


def piece_size(width: int, size: int) -> int:
    """Images of `size` px to put through a network of `width` channels at once, so that activations stay in cache."""
    return max(1, PIECE // (width * size * size))


# --- one block: instance norm, ReLU, average pool 2 ---------------------------------------------------------


class NormReluPool(nn.GroupNorm):
    """GroupNorm(C, C), ReLU and AvgPool2d(2) as one operation: (N, C, H, W) -> (N, C, H // 2, W // 2).

    The parameters have the names and the start of `nn.GroupNorm`. Differentiable twice. Not for torch.func transforms:
    there, and on other devices, `use(False)` or the device itself selects the plain operations.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels, channels, eps)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output; the plain operations where `usable` says no."""
        if not usable(x):
            return F.avg_pool2d(super().forward(x).relu(), 2)
        y: Tensor = _Block.apply(x, self.weight, self.bias, self.eps)  # type: ignore[no-untyped-call]
        return y


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
        y, *kept = block_forward(x.contiguous(), scale, shift, eps)
        ctx.save_for_backward(x, scale, *kept)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        return *_BlockBackward.apply(dy, *ctx.saved_tensors), None  # type: ignore[no-untyped-call]


class _BlockBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dy: Tensor, *kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        dz, *found = block_backward(dy, *kept)
        ctx.save_for_backward(dz, *kept)
        return found[0], found[1], found[2]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *u: Tensor | None) -> tuple[Tensor | None, ...]:
        return *block_second(u, *ctx.saved_tensors), None, None, None


def block_forward(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output y of a block and what its derivatives need: the rectified a, mean and 1 / std of each image's channels."""
    n, c, h, w = x.shape
    a, mean, rstd = torch.native_group_norm(x, scale, shift, n, c, h * w, c, eps)
    return _pool(a.relu_()), a, mean, rstd


def block_backward(
    dy: Tensor, x: Tensor, scale: Tensor, a: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of a block: at the normed z (before ReLU), at x, at scale and at shift."""
    n, c, h, w = x.shape
    dz = _masked(_unpool(dy, h, w), a)
    dx, dscale, dshift = aten.native_group_norm_backward(
        dz, x.contiguous(), mean, rstd, scale, n, c, h * w, c, [True, True, True]
    )
    return dz, dx, dscale, dshift


def block_second(
    u: tuple[Tensor | None, ...], dz: Tensor, x: Tensor, scale: Tensor, a: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of <u[0], dx> + <u[1], dscale> + <u[2], dshift> at dy, x and scale; a None in `u` counts as zero.

    With normed x' = (x - mean) r, means <.> over an image's channel and w = scale dz, the norm's backward pass is
    dx = r (w - <w> - x' <w x'>), whose derivatives are again sums of u, dz, x and 1 with a factor for each image and
    channel: those are computed first, from means alone.
    """
    n, c, h, w = x.shape
    r, mu, g = rstd.view(n, c, 1, 1), mean.view(n, c, 1, 1), scale.view(1, c, 1, 1)
    u_x, u_scale, u_shift = (t if t is None or i == 0 else t.view(1, c, 1, 1) for i, t in enumerate(u))
    d = _mean(dz)
    d_x = r * (_mean(dz * x) - mu * d)  # <dz x'>
    none = torch.zeros_like(d)
    at_dy, at_x, dscale = _Sum(none, none), _Sum(none, none), none
    if u_x is not None:
        m, m_x, m_d = _mean(u_x), _mean(u_x * x), _mean(u_x * dz)
        m_x = r * (m_x - mu * m)  # <u x'>
        left = m_d - m * d - m_x * d_x
        dscale = h * w * r * left
        at_dy = at_dy.plus(normed=-g * r * m_x, one=-g * r * m)
        at_x = at_x.plus(normed=-r * r * g * (left - 2 * m_x * d_x), one=r * r * g * (d_x * m + m_x * d))
        at_dy.terms.append((u_x, g * r))
        at_x.terms += [(u_x, -r * r * g * d_x), (dz, -r * r * g * m_x)]
    if u_scale is not None:
        at_dy = at_dy.plus(normed=u_scale.expand_as(d), one=none)
        at_x = at_x.plus(normed=-u_scale * r * d_x, one=-u_scale * r * d)
        at_x.terms.append((dz, u_scale * r))
    if u_shift is not None:
        at_dy = at_dy.plus(normed=none, one=u_shift)
    return _pool(_masked(at_dy.value(x, mu, r), a)), at_x.value(x, mu, r), dscale.sum(0).flatten()


@dataclass
class _Sum:
    """normed * x' + one + sum of factor * tensor, the factors of shape (N, C, 1, 1)."""

    normed: Tensor
    one: Tensor
    terms: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def plus(self, normed: Tensor, one: Tensor) -> _Sum:
        return _Sum(self.normed + normed, self.one + one, self.terms)

    def value(self, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
        slope = self.normed * rstd
        total = (x * slope).add_(self.one - slope * mean)
        for tensor, factor in self.terms:
            total.addcmul_(tensor, factor)
        return total


def _mean(t: Tensor) -> Tensor:
    return t.mean((2, 3), keepdim=True)


def _masked(t: Tensor, a: Tensor) -> Tensor:
    """`t`, in place, with zeros where the ReLU's output `a` is zero."""
    masked: Tensor = aten.threshold_backward.grad_input(t, a, 0, grad_input=t)
    return masked


def _pool(z: Tensor) -> Tensor:
    """Average pool 2 by sums of slices: some ten times as fast as torch's on a contiguous tensor."""
    h, w = z.shape[2] // 2 * 2, z.shape[3] // 2 * 2
    rows = z[:, :, 0:h:2] + z[:, :, 1:h:2]
    return (rows[..., 0:w:2] + rows[..., 1:w:2]).mul_(0.25)


def _unpool(dy: Tensor, height: int, width: int) -> Tensor:
    """The gradient of `_pool`: a quarter of each number, four times."""
    n, c, h, w = dy.shape
    quarter = dy * 0.25
    # (v, v) side by side, as the parts of complex numbers: the one interleaving copy that is vectorised.
    rows = torch.view_as_real(torch.complex(quarter, quarter)).reshape(n, c, h, 2 * w)
    square = torch.stack((rows, rows), 3).view(n, c, 2 * h, 2 * w)
    return square if (height, width) == (2 * h, 2 * w) else F.pad(square, (0, width - 2 * w, 0, height - 2 * h))
