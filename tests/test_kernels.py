"""Kernels of infinitely wide networks against integrals, wide finite networks, and each other; kernel regression."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm
from sklearn.kernel_ridge import KernelRidge
from torch import Tensor

from rddlib.base import SettingError, generator
from rddlib.distillation.kip import kernels

POOLINGS = kernels.POOLINGS


def fc_ntk(*given: Any, **named: Any) -> Tensor:
    return kernels.fc_kernels(*given, **named).ntk


def conv_ntk(*given: Any, **named: Any) -> Tensor:
    return kernels.conv_kernels(*given, **named).ntk


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, "kernel tests"), dtype=dtype)


# --- closed forms ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [-0.999, -0.4, 0.0, 0.3, 0.9, 0.999999])
@pytest.mark.parametrize(("q", "r"), [(1.0, 1.0), (0.2, 3.0)])
def test_arc_cosine_forms_equal_integrals(rho: float, q: float, r: float) -> None:
    """Given u, v is normal; what is left is one integral over u > 0."""
    a, b, s = math.sqrt(q), math.sqrt(r), math.sqrt(1 - rho**2)

    def relu_part(u: float) -> float:  # E[relu(v) | u] for unit variances
        return s * norm.pdf(rho * u / s) + rho * u * norm.cdf(rho * u / s)

    product = quad(lambda u: u * norm.pdf(u) * relu_part(u), 0, 12, epsabs=1e-12)[0]
    both = quad(lambda u: norm.pdf(u) * norm.cdf(rho * u / s), 0, 12, epsabs=1e-12, points=[0.01])[0]
    ours = kernels.relu_moments(*(torch.tensor(v, dtype=torch.float64) for v in (rho * a * b, q, r)))
    assert float(ours[0]) == pytest.approx(a * b * product, abs=1e-9)
    assert float(ours[1]) == pytest.approx(both, abs=1e-8)


def test_arc_cosine_forms_at_equal_and_opposite_points() -> None:
    q = torch.tensor([2.0, 2.0], dtype=torch.float64)
    product, both = kernels.relu_moments(torch.tensor([2.0, -2.0], dtype=torch.float64), q, q)
    assert product.tolist() == pytest.approx([1.0, 0.0], abs=1e-15)
    assert both.tolist() == pytest.approx([0.5, 0.0], abs=1e-15)


def test_gradients_of_the_forms() -> None:
    c, q, r = (v.requires_grad_() for v in (normal(5) / 3, normal(5, seed=1).exp(), normal(5, seed=2).exp()))
    assert torch.autograd.gradcheck(lambda c, q, r: kernels.relu_moments(c * (q * r).sqrt() / 2, q, r), (c, q, r))


def test_gradients_at_angle_nought() -> None:
    """Along a point paired with itself the first form is q / 2 and the second 1 / 2: derivatives 1 / 2 and 0."""
    q = torch.tensor([0.3, 5.0], dtype=torch.float64, requires_grad=True)
    product, both = kernels.relu_moments(q, q, q)
    assert torch.autograd.grad(product.sum(), q)[0].tolist() == pytest.approx([0.5, 0.5], abs=1e-12)
    c = q.detach().clone().requires_grad_()
    _, both = kernels.relu_moments(c, q, q)
    assert all(float(g.abs().max()) == 0 for g in torch.autograd.grad(both.sum(), (c, q)))


def test_duplicate_points_have_finite_gradients_and_an_exact_diagonal() -> None:
    x = normal(3, 4).requires_grad_()
    twice = torch.cat([x, x])
    for depth in (1, 3):
        k = fc_ntk(twice, depth=depth)
        assert bool(torch.autograd.grad(k.sum(), x)[0].isfinite().all())
        assert torch.autograd.gradcheck(lambda v, depth=depth: fc_ntk(v, depth=depth).diagonal(), x)
    image = normal(2, 1, 4, 4).requires_grad_()
    for pooling in POOLINGS:
        k = conv_ntk(torch.cat([image, image]), depth=2, pooling=pooling)
        assert bool(torch.autograd.grad(k.sum(), image)[0].isfinite().all())


def test_blank_images_without_bias_are_finite() -> None:
    """Zero variances: kernels 0, gradients finite."""
    x = torch.zeros(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    for k in (fc_ntk(x, b_std=0.0), *(conv_ntk(x, b_std=0.0, pooling=p) for p in POOLINGS)):
        assert float(k.detach().abs().max()) < 1e-300
        assert bool(torch.autograd.grad(k.sum(), x)[0].isfinite().all())


def test_one_hidden_layer_written_out() -> None:
    """NTK of one hidden layer, w_std 1, no bias: k1 + (x.y / d) k0 with the angle between x and y."""
    x, y = normal(3, 5), normal(4, 5, seed=1)
    nx, ny = x.norm(dim=1)[:, None], y.norm(dim=1)
    angle = ((x @ y.T) / (nx * ny)).acos()
    k1 = nx * ny * (angle.sin() + (math.pi - angle) * angle.cos()) / (2 * math.pi) / 5
    k0 = (math.pi - angle) / (2 * math.pi)
    ours = kernels.fc_kernels(x, y, 1, w_std=1.0, b_std=0.0)
    torch.testing.assert_close(ours.nngp, k1, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours.ntk, k1 + (x @ y.T) / 5 * k0, rtol=0, atol=1e-12)


# --- wide finite networks ----------------------------------------------------------------------------------


def empirical(net: Callable[..., Tensor], shapes: list[tuple[int, ...]], x: Tensor, draws: int) -> tuple[Tensor, ...]:
    """Means and standard errors over random networks of outputs' products and of gradients' products."""
    found = []
    for draw in range(draws):
        stream = generator(draw, "wide network")
        theta = tuple(torch.randn(s, generator=stream, dtype=torch.float64) for s in shapes)
        jacobian = torch.func.jacrev(lambda p: net(p, x))(theta)
        ntk = sum(j.flatten(1) @ j.flatten(1).T for j in jacobian)
        out = net(theta, x)
        found.append(torch.stack([out[:, None] * out, ntk]))
    many = torch.stack(found)
    return many.mean(0), many.std(0) / math.sqrt(draws)


W, B = 1.3, 0.4


def linear(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return W / math.sqrt(h.shape[-1]) * h @ w.T + B * b


def check_against(exact: kernels.Kernels, means: Tensor, errors: Tensor, bias: float) -> None:
    """The tangent kernel within sampling error and O(1 / width); outputs' products within sampling error."""
    assert bool(((means[1] - exact.ntk).abs() < 4 * errors[1] + bias * exact.ntk.abs()).all())
    assert bool(((means[0] - exact.nngp).abs() < 5 * errors[0]).all())
    assert float((errors[1] / exact.ntk).abs().median()) < 0.05  # or the check would be empty


@pytest.mark.parametrize("depth", [1, 2])
def test_fc_kernels_are_those_of_wide_networks(depth: int) -> None:
    width, x = 512, normal(4, 6)
    sizes = [6] + [width] * depth + [1]
    shapes: list[tuple[int, ...]] = [s for a, b in pairwise(sizes) for s in ((b, a), (b,))]

    def net(p: tuple[Tensor, ...], h: Tensor) -> Tensor:
        for w, b in zip(p[:-2:2], p[1:-2:2], strict=True):
            h = linear(h, w, b).relu()
        return linear(h, p[-2], p[-1]).squeeze(1)

    means, errors = empirical(net, shapes, x, 24)
    check_against(kernels.fc_kernels(x, None, depth, W, B), means, errors, 0.01)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_conv_kernels_are_those_of_wide_networks(pooling: str) -> None:
    width, x = 96, normal(3, 2, 4, 4)
    features = {"none": 16, "blocks": 1, "global": 1}[pooling] * width
    shapes: list[tuple[int, ...]] = [(width, 2, 3, 3), (width,), (width, width, 3, 3), (width,), (1, features), (1,)]

    def net(p: tuple[Tensor, ...], h: Tensor) -> Tensor:
        for w, b in ((p[0], p[1]), (p[2], p[3])):
            h = F.conv2d(h, w * W / math.sqrt(9 * w.shape[1]), B * b, padding=1).relu()
            h = F.avg_pool2d(h, 2) if pooling == "blocks" else h
        h = h.mean((2, 3)) if pooling == "global" else h.flatten(1)
        return linear(h, p[4], p[5]).squeeze(1)

    means, errors = empirical(net, shapes, x, 24)
    check_against(kernels.conv_kernels(x, None, 2, pooling, W, B), means, errors, 0.02)


# --- properties --------------------------------------------------------------------------------------------


@settings(deadline=None, derandomize=True, max_examples=15)
@given(
    seed=st.integers(0, 1000),
    depth=st.integers(1, 3),
    kind=st.sampled_from(("fc", *POOLINGS)),
    size=st.sampled_from(((8, 8), (9, 10))),
)
def test_kernels_are_symmetric_and_positive(seed: int, depth: int, kind: str, size: tuple[int, int]) -> None:
    if kind != "fc" and kind != "none":
        size = (size[0] // 2, size[1] // 2)
        depth = min(depth, 2)
    x = normal(5, 2, *size, seed=seed)
    found = kernels.fc_kernels(x, None, depth) if kind == "fc" else kernels.conv_kernels(x, None, depth, kind)
    for k in found:
        torch.testing.assert_close(k, k.T, rtol=0, atol=1e-10)
        assert float(torch.linalg.eigvalsh(k).min()) > 0
    assert float(torch.linalg.eigvalsh(found.ntk - found.nngp).min()) > -1e-9  # gradients of the inner layers add


@settings(deadline=None, derandomize=True, max_examples=10)
@given(seed=st.integers(0, 1000), depth=st.integers(1, 3))
def test_conv_kernel_of_single_pixels_is_the_fc_kernel(seed: int, depth: int) -> None:
    """Of nine weights one meets the pixel, so 3 w there is w here; the output layer alone keeps its factor 9."""
    x, y = normal(3, 4, 1, 1, seed=seed), normal(2, 4, 1, 1, seed=seed + 1)
    fc = kernels.fc_kernels(x, y, depth, w_std=1.1, b_std=0.3)
    for pooling in ("none", "global"):
        conv = kernels.conv_kernels(x, y, depth, pooling, w_std=3.3, b_std=0.3)
        for ours, theirs in zip(conv, fc, strict=True):
            torch.testing.assert_close((ours - 0.09) / 9, theirs - 0.09, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_without_pooling_the_diagonal_is_enough(depth: int) -> None:
    x, y = normal(3, 2, 5, 4), normal(2, 2, 5, 4, seed=1)
    full = kernels._Pairwise(depth, W, B, "none")(x, y)
    for ours, theirs in zip(kernels.conv_kernels(x, y, depth, "none", W, B), full, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_blocks_of_work_change_nothing(pooling: str) -> None:
    x, y = normal(5, 1, 4, 4).requires_grad_(), normal(3, 1, 4, 4, seed=1)
    whole = conv_ntk(x, y, 2, pooling)
    for most in (1, 16 * 3, 256 * 5):
        parts = conv_ntk(x, y, 2, pooling, max_elements=most)
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=0)
        pull = normal(5, 3, seed=2)
        torch.testing.assert_close(
            *(torch.autograd.grad((k * pull).sum(), x, retain_graph=True)[0] for k in (parts, whole))
        )


def test_refused_settings() -> None:
    x = normal(2, 1, 4, 4)
    for call, name in (
        (lambda: fc_ntk(x, depth=0), "depth"),
        (lambda: fc_ntk(x, normal(2, 1, 5, 5)), "y"),
        (lambda: conv_ntk(x, normal(2, 1, 5, 5)), "y"),
        (lambda: conv_ntk(x, depth=3, pooling="blocks"), "depth"),
        (lambda: conv_ntk(x, pooling="max"), "pooling"),
    ):
        with pytest.raises(SettingError) as raised:
            call()
        assert raised.value.name == name


# --- regression --------------------------------------------------------------------------------------------


def test_regression_equals_sklearn() -> None:
    s, t, y, ridge = normal(6, 3), normal(4, 3, seed=1), normal(6, 2, seed=2), 0.02
    k_ss, k_ts = fc_ntk(s), fc_ntk(t, s)
    peer = KernelRidge(alpha=ridge * float(k_ss.trace()) / 6, kernel="precomputed").fit(k_ss.numpy(), y.numpy())
    ours = kernels.regress(k_ss, k_ts, y, ridge).numpy()
    np.testing.assert_allclose(ours, peer.predict(k_ts.numpy()), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", ["fc", *POOLINGS])
def test_gradient_of_the_regression_loss(kind: str) -> None:
    t, goal = normal(3, 1, 4, 4, seed=1), normal(3, 2, seed=2)

    def loss(s: Tensor, y: Tensor) -> Tensor:
        k = (lambda a, b: fc_ntk(a, b, 2)) if kind == "fc" else (lambda a, b: conv_ntk(a, b, 2, kind))
        return (kernels.regress(k(s, s), k(t, s), y, 1e-2) - goal).square().mean()

    inputs = (normal(2, 1, 4, 4).requires_grad_(), normal(2, 2, seed=3).requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)
