"""Kernels of infinitely wide ReLU networks, exact, and kernel ridge regression with them.

A network in NTK parametrisation (weights N(0, 1) scaled by w_std / sqrt(fan-in), biases N(0, 1) scaled by b_std) is at
infinite width a Gaussian process with the covariance NNGP; trained by gradient flow it is kernel regression with the
tangent kernel NTK (Jacot, Gabriel & Hongler 2018; Lee et al. 2019; convolutions: Arora et al. 2019). Both follow from
layer to layer by the arc-cosine closed forms of Cho & Saul (2009). Compute in float64: regression needs the digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ...base import SettingError, check_choice
from ...data.dataset import DataSet

Pooling = Literal["none", "blocks", "global"]
POOLINGS = get_args(Pooling)
W_STD, B_STD = math.sqrt(2.0), 0.1  # of the published KIP
ZCA_REGULARISATION = 0.1  # in units of the mean eigenvalue, as published


class Kernels(NamedTuple):
    """Two covariance matrices (N, M) of the same network: of its outputs at the start, and of their gradients."""

    nngp: Tensor
    ntk: Tensor


def relu_moments(c: Tensor, q: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """E[relu(u) relu(v)] and P(u > 0 and v > 0) where (u, v) is normal with variances `q`, `r` and covariance `c`.

    The three broadcast. Cho & Saul (2009), degrees 1 and 0: with the angle t, cos t = c / sqrt(q r), they are
    (sqrt(q r) sin t + c (pi - t)) / 2 pi and (pi - t) / 2 pi. Gradients are finite everywhere: in the first form the
    derivative by t is nought, so t counts as fixed there; the second has a kink at t = 0, where the derivative by t
    is taken as 0, which is exact along q = c = r (one point paired with itself) and the mean of both sides else.
    """
    smallest = torch.finfo(c.dtype).tiny
    scale = q.clamp_min(smallest).sqrt() * r.clamp_min(smallest).sqrt()
    cosine = c / scale
    apart = cosine.abs() < 1 - 16 * torch.finfo(c.dtype).eps
    angle = torch.where(apart, cosine, 0.0).acos()
    angle = torch.where(apart, angle, math.pi * (cosine < 0).to(c.dtype))
    fixed = angle.detach()
    product = (scale * fixed.sin() + c * (math.pi - fixed)) / (2 * math.pi)
    return product, (math.pi - angle) / (2 * math.pi)


# --- fully connected --------------------------------------------------------------------------------------


def fc_kernels(
    x: Tensor, y: Tensor | None = None, depth: int = 1, w_std: float = W_STD, b_std: float = B_STD
) -> Kernels:
    """NNGP and NTK of a fully connected ReLU network with `depth` hidden layers and one output.

    `x` (N, ...) and `y` (M, ...) are flattened; `y` None means `x`. Differentiable in both. Time O(N M (D + depth)).
    Raises SettingError for a depth below 1 or sizes that differ.
    """
    x, y = _checked(x, y, depth)
    x, y = x.flatten(1), y.flatten(1)
    w2, b2, n = w_std**2, b_std**2, x.shape[1]
    c = w2 * (x @ y.T) / n + b2
    q, r = (w2 * v.square().mean(1) + b2 for v in (x, y))
    ntk = c
    for _ in range(depth):
        product, both = relu_moments(c, q[:, None], r)
        c = w2 * product + b2
        ntk = c + w2 * both * ntk
        q, r = w2 * q / 2 + b2, w2 * r / 2 + b2
    return Kernels(c, ntk)


# --- convolutional ----------------------------------------------------------------------------------------


def conv_kernels(
    x: Tensor,
    y: Tensor | None = None,
    depth: int = 1,
    pooling: str = "none",
    w_std: float = W_STD,
    b_std: float = B_STD,
    max_elements: int = 2**23,
) -> Kernels:
    """NNGP and NTK of `depth` 3x3 convolutions (zero padding) with ReLU and one linear output.

    `x` (N, C, H, W) and `y` (M, C, H, W); `y` None means `x`. `pooling`: none, the output reads all pixels; blocks,
    2x2 averages after every ReLU, then all pixels, as the ConvNet of the field without its norms; global, the output
    reads the average over pixels. None keeps one covariance a pixel, O(N M P) numbers; the others one a pair of
    pixels, O(N M P^2): small images only. Work goes in blocks of at most `max_elements` covariances; with gradients
    the blocks are computed again in the backward pass. Raises SettingError for settings that do not fit.
    """
    x, y = _checked(x, y, depth)
    check_choice("pooling", pooling, POOLINGS)
    if pooling == "blocks" and min(x.shape[2:]) >> depth < 1:
        raise SettingError("depth", depth, f"so that {min(x.shape[2:])} px can be halved that often")
    pixels = x.shape[2] * x.shape[3]
    recursion: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    if pooling == "none":
        recursion, numbers = _Pixelwise(depth, w_std, b_std), pixels  # numbers a pair of images
    else:
        recursion, numbers = _Pairwise(depth, w_std, b_std, pooling), pixels**2
    rows = max(1, min(len(x), max_elements // numbers))
    columns = max(1, max_elements // (numbers * rows))
    whole = rows >= len(x) and columns >= len(y)
    remembers = torch.is_grad_enabled() and (x.requires_grad or y.requires_grad)

    def block(a: Tensor, b: Tensor) -> Tensor:
        if remembers and not whole:  # a block's states are worth more memory than the second computing of them
            result: Tensor = checkpoint(_stacked, recursion, a, b, use_reentrant=False)
            return result
        return _stacked(recursion, a, b)

    lines = [torch.cat([block(a, b) for b in y.split(columns)], 2) for a in x.split(rows)]
    return Kernels(*torch.cat(lines, 1))


def _stacked(recursion: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], x: Tensor, y: Tensor) -> Tensor:
    return torch.stack(recursion(x, y))  # (2, N, M)


class _Pixelwise:
    """Without pooling each pixel meets only the same pixel of the other image: states (N, M, H, W)."""

    def __init__(self, depth: int, w_std: float, b_std: float) -> None:
        self.depth, self.w2, self.b2 = depth, w_std**2, b_std**2

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        c = self._convolved(torch.einsum("nchw,mchw->nmhw", x, y) / x.shape[1])
        q, r = (self._convolved(v.square().mean(1, keepdim=True)) for v in (x, y))  # (N, 1, H, W)
        ntk = c
        for layer in range(self.depth):
            product, both = relu_moments(c, q, r.transpose(0, 1))
            slope = both * ntk
            if layer < self.depth - 1:
                c, q, r = (self._convolved(v) for v in (product, q / 2, r / 2))
                ntk = c + self._convolved(slope) - self.b2
        nngp = self.w2 * product.mean((2, 3)) + self.b2
        return nngp, nngp + self.w2 * slope.mean((2, 3))

    def _convolved(self, k: Tensor) -> Tensor:
        """Covariance after a 3x3 convolution: the mean over nine shifts, zeros beyond the border."""
        return self.w2 * F.avg_pool2d(k, 3, stride=1, padding=1) + self.b2


class _Pairwise:
    """With pooling every pixel meets every other: states (..., H, W, H, W)."""

    def __init__(self, depth: int, w_std: float, b_std: float, pooling: str) -> None:
        self.depth, self.w2, self.b2, self.pooling = depth, w_std**2, b_std**2, pooling

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        c = self._convolved(torch.einsum("nchw,mcij->nmhwij", x, y) / x.shape[1])
        of_x, of_y = (self._convolved(torch.einsum("nchw,ncij->nhwij", v, v) / v.shape[1]) for v in (x, y))
        ntk = c
        for layer in range(self.depth):
            q, r = _variances(of_x), _variances(of_y)
            product, both = relu_moments(c, q[:, None, :, :, None, None], r[None, :, None, None])
            product, slope = self._pooled(product), self._pooled(both * ntk)
            if layer < self.depth - 1:
                of_x, of_y = self._next(of_x, q), self._next(of_y, r)
                c = self._convolved(product)
                ntk = c + self._convolved(slope) - self.b2
        nngp = self.w2 * self._read(product) + self.b2
        return nngp, nngp + self.w2 * self._read(slope)

    def _next(self, of_x: Tensor, variances: Tensor) -> Tensor:
        """The covariance (N, H, W, H, W) of images with themselves, one layer on."""
        product, _ = relu_moments(of_x, variances[:, :, :, None, None], variances[:, None, None])
        return self._convolved(self._pooled(product))

    def _convolved(self, k: Tensor) -> Tensor:
        """Mean over nine shifts of both pixels together, rows first, then columns; zeros beyond the border."""
        h, w = k.shape[-2:]
        padded = F.pad(k, (0, 0, 1, 1, 0, 0, 1, 1))
        k = padded[..., :h, :, :h, :] + padded[..., 1:-1, :, 1:-1, :] + padded[..., 2:, :, 2:, :]
        padded = F.pad(k, (1, 1, 0, 0, 1, 1))
        k = padded[..., :w, :, :w] + padded[..., 1:-1, :, 1:-1] + padded[..., 2:, :, 2:]
        return self.w2 * k / 9 + self.b2

    def _pooled(self, k: Tensor) -> Tensor:
        if self.pooling != "blocks":
            return k
        h, w = k.shape[-2] // 2, k.shape[-1] // 2
        even = k[..., : 2 * h, : 2 * w, : 2 * h, : 2 * w]
        return even.reshape(*k.shape[:-4], h, 2, w, 2, h, 2, w, 2).mean((-7, -5, -3, -1))

    def _read(self, k: Tensor) -> Tensor:
        return k.mean((-4, -3, -2, -1)) if self.pooling == "global" else _variances(k).mean((-2, -1))


def _variances(k: Tensor) -> Tensor:
    """The entries (..., H, W) of (..., H, W, H, W) where both pixels are the same."""
    h, w = k.shape[-2:]
    return k.reshape(*k.shape[:-4], h * w, h * w).diagonal(dim1=-2, dim2=-1).reshape(*k.shape[:-2])


def _checked(x: Tensor, y: Tensor | None, depth: int) -> tuple[Tensor, Tensor]:
    if depth < 1:
        raise SettingError("depth", depth, "an integer of at least 1")
    y = x if y is None else y
    if x.shape[1:] != y.shape[1:]:
        raise SettingError("y", tuple(y.shape), f"images of the same size as x, {tuple(x.shape[1:])}")
    return x, y


# --- regression -------------------------------------------------------------------------------------------


def coefficients(k_ss: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """The weights of kernel ridge regression: (K_ss + ridge * trace(K_ss) / n * I)^-1 targets, (n, outputs).

    k_ss (n, n), targets (n, outputs). The ridge counts in units of the mean of the diagonal, as in KIP (Nguyen, Chen &
    Lee 2021), and must be above 0. Not a number where rounding leaves the matrix without a Cholesky factor: to raise
    an error here would make a GPU wait for the host.
    """
    size = ridge * k_ss.diagonal().mean()
    matrix = k_ss + size * torch.eye(len(k_ss), dtype=k_ss.dtype, device=k_ss.device)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return torch.cholesky_solve(targets, torch.where(failed > 0, torch.nan, factor))


def regress(k_ss: Tensor, k_ts: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """Predictions (t, outputs) of kernel ridge regression at points whose kernel with the support is k_ts (t, n)."""
    return k_ts @ coefficients(k_ss, targets, ridge)


# --- the space of the kernel ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Space:
    """The affine map between pixels in [0, 1] and what the kernel sees; invertible up to rounding."""

    mean: Tensor  # (C, 1, 1)
    std: Tensor  # (C, 1, 1)
    centre: Tensor | None = None  # (C * H * W,)
    whitening: Tensor | None = None  # (C * H * W, C * H * W), symmetric
    colouring: Tensor | None = None  # its inverse

    @classmethod
    def of(cls, data: DataSet, zca: bool) -> Space:
        """The space of a training set. ZCA costs an eigenvalue problem of C * H * W (3072: some 20 s on one core)."""
        device = data.train_images.device
        mean, std = (torch.tensor(v, dtype=torch.float64, device=device).view(-1, 1, 1) for v in (data.mean, data.std))
        plain = cls(mean, std)
        if not zca:
            return plain
        n, size = len(data.train_images), data.train_images[0].numel()
        total = torch.zeros(size, dtype=torch.float64, device=device)
        products = torch.zeros(size, size, dtype=torch.float64, device=device)
        for part in data.train_images.split(5000):
            flat = plain.apply(part, torch.float32).flatten(1)
            total += flat.double().sum(0)
            products += flat.T @ flat
        centre = total / n
        values, vectors = torch.linalg.eigh(products / n - centre.outer(centre))
        scale = (values.clamp_min(0) + ZCA_REGULARISATION * values.mean()).sqrt()
        return cls(mean, std, centre, vectors / scale @ vectors.T, vectors * scale @ vectors.T)

    def apply(self, images: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
        """uint8 or [0, 1] images (N, C, H, W) -> what the kernel sees, the same shape."""
        scale = 255 if images.dtype == torch.uint8 else 1
        seen = (images.to(dtype) / scale - self.mean.to(dtype)) / self.std.to(dtype)
        if self.whitening is None or self.centre is None:
            return seen
        return ((seen.flatten(1) - self.centre.to(dtype)) @ self.whitening.to(dtype)).view_as(seen)

    def pixels(self, seen: Tensor) -> Tensor:
        """The way back: float64 pixels (N, C, H, W), some of them perhaps outside of [0, 1]."""
        if self.colouring is not None and self.centre is not None:
            seen = (seen.flatten(1) @ self.colouring + self.centre).view_as(seen)
        return seen * self.std + self.mean
