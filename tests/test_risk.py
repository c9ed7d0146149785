"""risk.py against the definition, exact rational arithmetic, two linear programs and brute force."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rddlib import risk
from rddlib.base import SettingError, generator, numpy_generator
from rddlib.risk import (
    PRESETS,
    TAILS,
    RiskTerm,
    cvar,
    cvar_as_printed,
    group_cvar,
    group_risk,
    released_group_cvar,
    released_step,
    robust_loss,
    rockafellar_uryasev,
    tail_weights,
    value_at_risk,
)

calm = settings(deadline=None, derandomize=True, max_examples=100)
ACCURACY = 1e-12  # relative to the largest loss, in float64

finite = st.one_of(st.floats(-1e3, 1e3), st.integers(-3, 3).map(float))  # whole numbers make ties likely
samples = st.lists(finite, min_size=1, max_size=25)
tails = st.sampled_from(TAILS)


@st.composite
def problems(draw: st.DrawFn, max_size: int = 25) -> tuple[list[float], float]:
    """Losses and a tail mass, which is on the grid k/n, computed in one of two ways, about half of the time."""
    losses = draw(st.lists(finite, min_size=1, max_size=max_size))
    n, k = len(losses), draw(st.integers(1, len(losses)))
    alpha = draw(st.one_of(st.floats(1e-6, 1), st.just(k / n), st.just(1 - (n - k) / n)))
    return losses, max(alpha, 1e-6)


def vector(losses: Any) -> Tensor:
    return torch.tensor(losses, dtype=torch.float64)


def close(value: Tensor | float, reference: Tensor | Fraction | float, losses: list[float]) -> bool:
    return abs(float(value) - float(reference)) <= ACCURACY * max(map(abs, losses), default=0.0)


def exact_bracket(losses: list[float], alpha: float) -> Fraction:
    """The paper's CVaR display without its minus sign, in rational arithmetic, f_alpha found by trying every loss."""
    items, mass, n = [Fraction(x) for x in losses], Fraction(alpha), len(losses)
    share = {f: Fraction(sum(x <= f for x in items), n) for f in items}
    threshold = min(f for f in items if share[f] >= mass)
    inside = sum((x for x in items if x <= threshold), Fraction(0)) / n
    return (inside + threshold * (mass - share[threshold])) / mass


# --- the displays of section 3 -------------------------------------------------------------------------------------


@pytest.mark.equation("CVaR")
@given(problems())
@calm
def test_cvar_display_is_minus_the_lower_tail_and_on_the_reward_the_upper_tail(problem: Any) -> None:
    losses, alpha = problem
    bracket = exact_bracket(losses, alpha)
    assert close(cvar(vector(losses), alpha, "lower"), bracket, losses)
    upper = -exact_bracket([-x for x in losses], alpha)
    assert close(cvar(vector(losses), alpha, "upper"), upper, losses)
    # The printed formula cancels before it divides by alpha: in floating point its error is that of alpha * CVaR.
    assert close(alpha * cvar_as_printed(vector(losses), alpha), -Fraction(alpha) * bracket, losses)
    assert close(alpha * cvar_as_printed(-vector(losses), alpha), Fraction(alpha) * upper, losses)


@pytest.mark.equation("f_alpha")
@given(samples, st.data())
@calm
def test_f_alpha_display_is_the_least_loss_with_share_alpha_below_it(losses: list[float], data: Any) -> None:
    k = data.draw(st.integers(1, len(losses)))
    eps = Fraction(1, 1000 * len(losses))
    for alpha in (Fraction(k, len(losses)), Fraction(k, len(losses)) - eps):
        reference = min(f for f in losses if Fraction(sum(x <= f for x in losses), len(losses)) >= alpha)
        assert value_at_risk(vector(losses), float(alpha), "lower").item() == reference
        mirrored = value_at_risk(-vector(losses), float(alpha), "upper").item()
        assert mirrored == -reference


@pytest.mark.equation("2")
def test_eq2_is_the_average_plus_the_maximum_of_the_printed_cvar() -> None:
    source = generator(0, "equation 2")
    losses = torch.randn(60, generator=source, dtype=torch.float64)
    groups = torch.arange(60) % 7
    each = torch.stack([cvar_as_printed(losses[groups == i], 0.3) for i in range(7)])
    bracket = group_risk(losses, groups, 7, RiskTerm.preset("literal", alpha=0.3))
    torch.testing.assert_close(bracket, each.sum() / 7 + each.max(), rtol=1e-14, atol=1e-14)
    reward = group_risk(-losses, groups, 7, RiskTerm.preset("literal", alpha=0.3))
    upper = group_risk(losses, groups, 7, RiskTerm.preset("upper", alpha=0.3))
    torch.testing.assert_close(reward, upper, rtol=1e-14, atol=1e-14)


@pytest.mark.equation("2")
def test_eq2_as_printed_has_no_lower_bound_and_its_gradient_raises_losses() -> None:
    losses, groups = torch.rand(30, generator=generator(0, "literal"), dtype=torch.float64), torch.arange(30) % 3
    term = RiskTerm.preset("literal")
    scaled = [robust_loss(losses * 10.0**k, groups, 3, term).item() for k in range(9)]
    assert all(b < a for a, b in itertools.pairwise(scaled))
    assert scaled[-1] < -1e7
    losses.requires_grad_()
    (slope,) = torch.autograd.grad(group_risk(losses, groups, 3, term), losses)
    assert (slope <= 0).all()
    assert slope.sum() == pytest.approx(-2)
    scaled = [robust_loss(losses * 10.0**k, groups, 3, RiskTerm.preset("upper")).item() for k in range(9)]
    assert all(b > a for a, b in itertools.pairwise(scaled))


# --- exact references ----------------------------------------------------------------------------------------------


def primal(losses: np.ndarray, alpha: float) -> float:
    """min over (c, u) of c + sum(u) / (alpha n), with u >= F - c and u >= 0."""
    n = len(losses)
    cost = np.r_[1.0, np.full(n, 1 / (alpha * n))]
    rows = np.hstack([-np.ones((n, 1)), -np.eye(n)])
    return float(linprog(cost, A_ub=rows, b_ub=-losses, bounds=[(None, None)] + [(0, None)] * n).fun)


def dual(losses: np.ndarray, alpha: float) -> float:
    """max of q . F over 0 <= q <= 1 / (alpha n) with sum q = 1."""
    n = len(losses)
    return -float(linprog(-losses, A_eq=np.ones((1, n)), b_eq=[1.0], bounds=(0, 1 / (alpha * n))).fun)


@pytest.mark.parametrize("n", [1, 2, 5, 20, 101])
@pytest.mark.parametrize("alpha", [1e-3, 1 - 0.8, 0.37, 0.5, 0.8, 1.0])
def test_cvar_equals_both_linear_programs(n: int, alpha: float) -> None:
    losses = numpy_generator(n, "linear program").exponential(size=n)
    for values in (losses, np.round(losses, 1), np.zeros(n)):  # the last two have ties
        for program in (primal, dual):
            for tail, sign in (("upper", 1.0), ("lower", -1.0)):
                reference = sign * program(sign * values, alpha)
                assert close(cvar(torch.from_numpy(values), alpha, tail), reference, [1.0, *values])


@given(problems())
@calm
def test_rockafellar_uryasev_is_least_at_the_value_at_risk(problem: Any) -> None:
    losses, alpha = problem
    at_risk = value_at_risk(vector(losses), alpha)
    grid = torch.cat([at_risk[None], vector(losses), torch.linspace(-1100, 1100, 41, dtype=torch.float64)])
    values = rockafellar_uryasev(vector(losses), grid, alpha)
    tolerance = 1e-12 * (1 + max(map(abs, losses))) / alpha  # the formula itself divides by alpha
    assert abs(values[0].item() - cvar(vector(losses), alpha).item()) <= tolerance
    assert (values >= values[0] - tolerance).all()


# --- invariants ----------------------------------------------------------------------------------------------------


@given(problems(), st.data(), finite, st.floats(0, 50))
@calm
def test_coherence_axioms_of_the_upper_tail(problem: Any, data: Any, shift: float, scale: float) -> None:
    losses, alpha = problem
    n, f = len(losses), vector(losses)
    other = vector(data.draw(st.lists(finite, min_size=n, max_size=n)))
    slack = 1e-9
    assert cvar(f + (other - f).clamp(min=0), alpha) >= cvar(f, alpha) - slack  # monotone
    assert cvar(f + shift, alpha).item() == pytest.approx(cvar(f, alpha).item() + shift, abs=slack)  # translation
    assert cvar(scale * f, alpha).item() == pytest.approx(scale * cvar(f, alpha).item(), abs=slack)  # homogeneous
    assert cvar(f + other, alpha) <= cvar(f, alpha) + cvar(other, alpha) + slack  # subadditive


def test_the_lower_tail_is_not_subadditive() -> None:
    f, g = vector([0.0, 1.0]), vector([1.0, 0.0])
    assert cvar(f + g, 0.5, "lower") > cvar(f, 0.5, "lower") + cvar(g, 0.5, "lower")


@given(problems(), tails)
@calm
def test_cvar_lies_between_mean_and_extreme_and_reaches_both(problem: Any, tail: str) -> None:
    losses, alpha = problem
    f, sign = vector(losses), 1 if tail == "upper" else -1
    extreme = sign * max(sign * x for x in losses)
    mean = math.fsum(losses) / len(losses)
    value = sign * cvar(f, alpha, tail).item()
    assert sign * mean - 1e-9 <= value <= sign * extreme + 1e-9
    assert value >= sign * cvar(f, min(1.0, alpha * 1.3), tail).item() - 1e-9  # smaller tails are more extreme
    assert close(cvar(f, 1.0, tail), mean, losses)
    assert close(cvar(f, 1e-9, tail), extreme, losses)
    assert cvar(f, alpha, "upper").item() == pytest.approx(-cvar(-f, alpha, "lower").item(), abs=1e-9)


@given(problems(), tails, st.randoms(use_true_random=False))
@calm
def test_weights_are_the_dual_optimum_and_order_does_not_matter(problem: Any, tail: str, shuffler: Any) -> None:
    losses, alpha = problem
    weights = tail_weights(vector(losses), alpha, tail)
    assert weights.sum().item() == pytest.approx(1, abs=1e-12)
    assert (weights >= 0).all()
    assert (weights <= (1 + 1e-12) / (alpha * len(losses))).all()
    shuffled = list(losses)
    shuffler.shuffle(shuffled)
    assert close(cvar(vector(shuffled), alpha, tail), cvar(vector(losses), alpha, tail).item(), losses)


# --- whole numbers in floating point -------------------------------------------------------------------------------


def test_the_float_trap_of_int_20_times_one_minus_08() -> None:
    assert int(20 * (1 - 0.8)) == 3  # the trap: rounding down loses an item
    losses = torch.arange(20, dtype=torch.float64)
    assert cvar(losses, 1 - 0.8).item() == (19 + 18 + 17 + 16) / 4
    assert value_at_risk(losses, 1 - 0.8).item() == 16
    assert (tail_weights(losses, 1 - 0.8) > 0).sum() == 4
    assert 10 * (0.1 * 3) > 3  # the same trap upwards: rounding up gains one
    assert (tail_weights(losses[:10], 0.1 * 3) > 0).sum() == 3
    losses.requires_grad_()
    both = torch.arange(20) // 10
    (slope,) = torch.autograd.grad(group_cvar(losses, both, 2, 0.1 * 3)[0].sum(), losses)
    assert (slope > 0).sum() == 6


@pytest.mark.parametrize("tail", TAILS)
def test_every_share_k_of_n_is_k_items(tail: str) -> None:
    for n in range(1, 61):
        losses = torch.arange(n, dtype=torch.float64)
        for k in range(1, n + 1):
            item = n - k if tail == "upper" else k - 1
            for alpha in (k / n, 1 - (n - k) / n):
                assert value_at_risk(losses, alpha, tail).item() == item
                assert (tail_weights(losses, alpha, tail) > 0).sum() == k


def test_a_mass_next_to_a_whole_number_is_not_rounded_away() -> None:
    losses = vector([0.0, *[1.0] * 9])
    assert close(cvar(losses, 0.1 + 1e-9, "lower"), exact_bracket(losses.tolist(), 0.1 + 1e-9), [1.0])
    assert value_at_risk(losses, 0.1 + 1e-9, "lower") == 1


# --- gradients -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("alpha", [1e-6, 0.2, 0.37, 1.0])
def test_gradcheck_away_from_ties(alpha: float, tail: str) -> None:
    losses = torch.randperm(12, generator=generator(1, "gradcheck")).double().requires_grad_()
    groups = torch.tensor([0, 1, 1, 3, 3, 3, 0, 3, 3, 1, 3, 0])
    assert torch.autograd.gradcheck(lambda f: cvar(f, alpha, tail), losses)
    assert torch.autograd.gradcheck(lambda f: value_at_risk(f, alpha, tail), losses)
    assert torch.autograd.gradcheck(lambda f: group_cvar(f, groups, 4, alpha, tail)[0], losses)
    term = RiskTerm(alpha=alpha, tail=tail, average=0.7, worst=1.3)
    assert torch.autograd.gradcheck(lambda f: robust_loss(f, groups, 4, term), losses)
    # Gradient matching differentiates twice: through what makes the losses, the weights being constant.
    roots = (losses.detach() + 1).sqrt().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda r: robust_loss(r**2, groups, 4, term), roots)


@given(st.lists(st.integers(0, 2).map(float), min_size=1, max_size=12), st.floats(0.01, 1), tails, st.data())
@calm
def test_at_ties_the_gradient_is_a_subgradient(losses: list[float], alpha: float, tail: str, data: Any) -> None:
    n = len(losses)
    f = vector(losses).requires_grad_()
    other = vector(data.draw(st.lists(st.floats(-3, 5), min_size=n, max_size=n)))
    groups = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    functions: list[tuple[Callable[[Tensor], Tensor], float]] = [
        (lambda x: cvar(x, alpha, tail), 1 if tail == "upper" else -1),  # convex; the lower tail is concave
        (lambda x: robust_loss(x, groups, 4, RiskTerm(alpha=alpha)), 1),
    ]
    for function, sign in functions:
        value = function(f)
        (slope,) = torch.autograd.grad(value, f)
        tangent = value + slope @ (other - f)
        assert sign * function(other).item() >= sign * tangent.item() - 1e-9


# --- groups --------------------------------------------------------------------------------------------------------


def looped(losses: Tensor, groups: Tensor, n_groups: int, alpha: float, tail: str) -> Tensor:
    parts = [losses[groups == i] for i in range(n_groups)]
    return torch.stack([cvar(part, alpha, tail) if len(part) else losses.new_zeros(()) for part in parts])


KINDS = [(torch.float32, 2**16), (torch.float32, 0), (torch.float64, 0)]  # one sort, two sorts, two sorts


@given(st.data(), st.sampled_from(KINDS), st.floats(1e-6, 1), tails)
@calm
def test_group_cvar_equals_a_loop_over_groups(data: Any, kind: Any, alpha: float, tail: str) -> None:
    dtype, one_key = kind
    losses = torch.tensor(data.draw(st.lists(finite, min_size=1, max_size=40)), dtype=dtype)
    n_groups = data.draw(st.integers(1, 9))
    member = st.integers(0, n_groups - 1)
    groups = torch.tensor(data.draw(st.lists(member, min_size=len(losses), max_size=len(losses))))
    with mock.patch.object(risk, "ONE_KEY", one_key):
        values, counts = group_cvar(losses, groups, n_groups, alpha, tail)
    slack = (1e-12 if dtype == torch.float64 else 1e-5) * max(1.0, losses.abs().max().item())
    torch.testing.assert_close(values, looped(losses, groups, n_groups, alpha, tail), rtol=0, atol=slack)
    assert counts.tolist() == [int((groups == i).sum()) for i in range(n_groups)]
    order = torch.randperm(len(losses), generator=generator(0, "shuffle"))
    shuffled, _ = group_cvar(losses[order], groups[order], n_groups, alpha, tail)
    torch.testing.assert_close(shuffled, values, rtol=0, atol=slack)


def test_empty_groups_take_no_part_in_average_or_maximum() -> None:
    losses, groups = vector([-5.0, -1.0, -3.0, -3.0]), torch.tensor([1, 1, 4, 4])
    values, counts = group_cvar(losses, groups, 6, 0.5)
    assert counts.tolist() == [0, 2, 0, 0, 2, 0]
    assert values.tolist() == [0, -1, 0, 0, -3, 0]
    assert group_risk(losses, groups, 6, RiskTerm(alpha=0.5)).item() == -2 + -1  # not 0, the empty groups' value
    assert robust_loss(losses, groups, 6, RiskTerm(alpha=0.5)).item() == -3 - 2 - 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tail_below_one_item_is_the_extreme(dtype: torch.dtype) -> None:
    losses, groups = torch.tensor([1, 5, 2, -7, -7.5], dtype=dtype), torch.tensor([0, 0, 0, 2, 2])
    for alpha in (1e-300, 1e-40, 1e-9, 1 / 3):
        assert group_cvar(losses, groups, 3, alpha)[0].tolist() == [5, 0, -7]
        assert group_cvar(losses, groups, 3, alpha, "lower")[0].tolist() == [1, 0, -7.5]


def test_average_and_worst_are_weights() -> None:
    losses, groups = torch.rand(40, generator=generator(0, "weights")).double(), torch.arange(40) % 4
    values, _ = group_cvar(losses, groups, 4, 0.8)
    for average, worst in itertools.product((0.0, 0.5, 2.0), repeat=2):
        loss = robust_loss(losses, groups, 4, RiskTerm(average=average, worst=worst))
        expected = losses.mean() + average * values.mean() + worst * values.max()
        torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)


def test_several_problems_at_once_by_offset_and_by_vmap() -> None:
    losses = torch.rand(5, 40, generator=generator(0, "batched"), dtype=torch.float64)
    groups = torch.randint(0, 6, (5, 40), generator=generator(1, "batched"))
    one_by_one = torch.stack([group_cvar(f, g, 6, 0.3)[0] for f, g in zip(losses, groups, strict=True)])
    shifted = groups + 6 * torch.arange(5)[:, None]
    flat = group_cvar(losses.flatten(), shifted.flatten(), 30, 0.3)[0].view(5, 6)
    assert torch.equal(flat, one_by_one)
    assert torch.equal(torch.func.vmap(lambda f, g: group_cvar(f, g, 6, 0.3)[0])(losses, groups), one_by_one)


class Operations(TorchDispatchMode):
    """Counts what is dispatched to torch."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def operations(n: int, n_groups: int, term: RiskTerm) -> list[str]:
    losses = torch.rand(n, generator=generator(0, "count"), requires_grad=True)
    groups = torch.arange(n) % n_groups
    with Operations() as seen:
        robust_loss(losses, groups, n_groups, term).backward()
    return seen.names


@pytest.mark.parametrize("name", PRESETS)
def test_the_work_is_vectorised_and_never_looks_at_the_data(name: str) -> None:
    term = RiskTerm.preset(name)
    assert operations(12, 3, term) == operations(2000, 100, term)  # no loop over groups or samples
    on_meta = torch.empty(50, device="meta", requires_grad=True)  # a tensor without data: .item() would raise
    robust_loss(on_meta, torch.empty(50, dtype=torch.int64, device="meta"), 5, term).backward()


def test_control_costs_a_mean_and_no_more() -> None:
    losses = torch.rand(50, requires_grad=True, generator=generator(0, "control"))
    with Operations() as plain:
        losses.mean().backward()
    assert operations(50, 5, RiskTerm.preset("control")) == plain.names


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_precision_follows_float64(dtype: torch.dtype) -> None:
    losses = (4 * torch.randn(300, generator=generator(0, "precision"))).to(dtype)
    groups = torch.randint(0, 20, (300,), generator=generator(1, "precision"))
    for name in PRESETS:
        f = losses.abs() if name.startswith("released") else losses
        loss = robust_loss(f, groups, 20, RiskTerm.preset(name))
        assert loss.dtype == torch.float32
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert robust_loss(f, groups, 20, RiskTerm.preset(name)) == loss
        reference = robust_loss(f.double(), groups, 20, RiskTerm.preset(name))
        assert loss.item() == pytest.approx(reference.item(), rel=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_same_on_cpu_and_gpu_without_a_host_sync() -> None:
    losses = torch.rand(5120, generator=generator(0, "gpu"))
    groups = torch.randint(0, 100, (5120,), generator=generator(1, "gpu"))
    results = {}
    for device in ("cpu", "cuda"):
        f, g = losses.to(device).requires_grad_(), groups.to(device)
        try:
            torch.cuda.set_sync_debug_mode("error" if device == "cuda" else "default")
            values, counts = group_cvar(f, g, 100, 0.8)
            (slope,) = torch.autograd.grad(robust_loss(f, g, 100, RiskTerm()), f)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        results[device] = (values.detach().cpu(), counts.cpu(), slope.cpu())
    for here, there in zip(results["cpu"], results["cuda"], strict=True):
        torch.testing.assert_close(here, there)


# --- the released code's value -------------------------------------------------------------------------------------


def released_loop(losses: Tensor, groups: Tensor, n_groups: int, alpha: float) -> list[float]:
    """Protocol 2.3 in plain Python: a list a group, padded with zeros to the longest."""
    rows = [[x.item() for x in losses[groups == i]] for i in range(n_groups)]
    longest = max(map(len, rows))
    values = []
    for row in rows:
        padded = sorted(row + [0.0] * (longest - len(row)))
        k = max(1, int(alpha * longest))
        kept = [x for x in padded[:k] if x != 0]
        mean = sum(kept) / len(kept) if kept else 0.0
        values.append((mean + padded[k - 1] * (alpha - k / longest)) / alpha)
    return values


def test_released_numbers_of_the_protocol() -> None:
    ten, one = vector([0.1, 0.2, 0.3, 0.4, 0.5, 1, 2, 3, 4, 10]), torch.zeros(10, dtype=torch.int64)
    assert released_group_cvar(ten, one, 1, 0.8)[0].item() == pytest.approx(0.9375 / 0.8)
    assert cvar(ten, 0.2).item() == pytest.approx(7.0)
    assert cvar(ten, 0.8).item() == pytest.approx(2.65)
    for padding, expected in ((0, 1.58), (4, 1.00), (8, 0.66), (16, 0.0)):
        rest = 4 + padding if padding else 0  # a second, longer group makes the padding
        losses, groups = vector([0.5, 1, 2, 4] + [9.0] * rest), torch.tensor([0] * 4 + [1] * rest)
        value = released_group_cvar(losses, groups, 2, 0.8)[0][0].item()
        assert round(value, 2) == expected


@given(st.data(), st.floats(0.01, 1))
@calm
def test_released_value_equals_the_plain_loop(data: Any, alpha: float) -> None:
    losses = vector(data.draw(st.lists(st.floats(0, 10), min_size=1, max_size=30)))
    n_groups = data.draw(st.integers(1, 6))
    member = st.integers(0, n_groups - 1)
    groups = torch.tensor(data.draw(st.lists(member, min_size=len(losses), max_size=len(losses))))
    values, _ = released_group_cvar(losses, groups, n_groups, alpha)
    reference = released_loop(losses, groups, n_groups, alpha)
    np.testing.assert_allclose(values, reference, rtol=1e-10, atol=1e-10 / alpha)
    term = RiskTerm.preset("released", alpha=alpha)
    non_zero = [v for v in reference if v != 0]
    average = sum(non_zero) / max(len(non_zero), 1)
    expected = losses.mean().item() + average + max(reference)
    assert robust_loss(losses, groups, n_groups, term).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("samples", "zero_share"), [(256, 0.49), (768, 0.08)])
def test_padding_gives_many_of_100_clusters_the_value_0(samples: int, zero_share: float) -> None:
    shares = []
    for seed in range(40):
        groups = torch.randint(0, 100, (samples,), generator=generator(seed, "occupancy"))
        losses = torch.rand(samples, generator=generator(seed, "occupancy losses")) + 0.1
        values, counts = released_group_cvar(losses, groups, 100, 0.8)
        shares.append((values[counts > 0] == 0).double().mean().item())
    assert np.mean(shares) == pytest.approx(zero_share, abs=0.02)


@given(st.integers(0, 10**6), st.floats(1e-3, 1))
@calm
def test_released_gradient_is_exactly_that_of_control(seed: int, alpha: float) -> None:
    source = generator(seed, "released gradient")
    images, labels = torch.randn(64, 6, generator=source), torch.randint(0, 4, (64,), generator=source)
    groups = torch.randint(0, 20, (64,), generator=source)
    weights = torch.randn(6, 4, generator=source, requires_grad=True)
    slopes = {}
    for name in PRESETS:
        losses = torch.nn.functional.cross_entropy(images @ weights, labels, reduction="none")
        loss = robust_loss(losses, groups, 20, RiskTerm.preset(name, alpha=alpha))
        (slopes[name],) = torch.autograd.grad(loss, weights)
    assert torch.equal(slopes["released"], slopes["control"])  # |difference| == 0, not merely small
    assert torch.equal(slopes["released_2024"], 2 * slopes["control"])
    for name in ("lower", "upper", "literal"):
        assert (slopes[name] - slopes["control"]).abs().max() > 1e-3


def test_the_two_releases_log_the_same_value_and_step_on_every_third_batch() -> None:
    losses, groups = torch.rand(50, generator=generator(0, "value")), torch.arange(50) % 7
    first, second = (robust_loss(losses, groups, 7, RiskTerm.preset(n)) for n in ("released", "released_2024"))
    assert first == second
    assert first != losses.mean()
    assert [batch for batch in range(8) if released_step(batch)] == [0, 3, 6]


# --- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0, -0.1, 1.0001, math.nan, math.inf, True, "0.5", None])
def test_a_tail_mass_outside_0_1_is_refused(alpha: Any) -> None:
    for function in (cvar, value_at_risk, tail_weights, cvar_as_printed):
        with pytest.raises(SettingError, match="alpha"):
            function(torch.rand(3), alpha)
    with pytest.raises(SettingError, match="alpha"):
        RiskTerm(alpha=alpha)


@pytest.mark.parametrize("losses", [torch.empty(0), torch.tensor(1.0), torch.rand(2, 2), torch.tensor([1, 2])])
def test_losses_of_another_shape_or_kind_are_refused(losses: Tensor) -> None:
    for function in (cvar, value_at_risk):
        with pytest.raises(SettingError, match="losses"):
            function(losses, 0.5)
    for name in PRESETS:
        with pytest.raises(SettingError, match="losses"):
            robust_loss(losses, torch.zeros(losses.shape, dtype=torch.int64), 1, RiskTerm.preset(name))


def test_wrong_groups_and_names_are_refused() -> None:
    losses = torch.rand(3, generator=generator(0, "refused"))
    for groups in (torch.tensor([0, 1]), torch.tensor([0.0, 1.0, 1.0]), torch.tensor([[0, 1, 1]])):
        with pytest.raises(SettingError, match="groups"):
            group_cvar(losses, groups, 2, 0.5)
    for groups in (torch.tensor([0, 1, 2]), torch.tensor([0, -1, 1])):
        for function in (group_cvar, released_group_cvar):
            with pytest.raises(SettingError, match=r"groups.*\[0, 2\)"):
                function(losses, groups, 2, 0.5)
    for n_groups in (0, -1, 2.0, True):
        with pytest.raises(SettingError, match="n_groups"):
            group_cvar(losses, torch.tensor([0, 0, 0]), n_groups, 0.5)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="tail"):
        cvar(losses, 0.5, "middle")


@pytest.mark.parametrize(
    "field",
    [
        {"tail": "both"},
        {"average": -1.0},
        {"worst": math.nan},
        {"sign": 0.5},
        {"differentiable": 1},
        {"alfa": 0.5},
        {"zero_padded": True},
        {"gradient_scale": -1.0},
    ],
)
def test_a_risk_term_refuses_what_it_cannot_use(field: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=r"tail" if "zero_padded" in field else next(iter(field))):
        RiskTerm.preset("upper", **field)
    with pytest.raises(SettingError, match="control, released"):
        RiskTerm.preset("worst")


def test_presets_say_what_they_are() -> None:
    assert RiskTerm.preset("upper") == RiskTerm()
    assert RiskTerm.preset("lower", alpha=0.3) == RiskTerm(alpha=0.3, tail="lower")
    control = RiskTerm.preset("control")
    assert (control.average, control.worst) == (0, 0)
    assert set(PRESETS) >= {"control", "released", "lower", "upper", "literal"}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("tail", TAILS)
def test_a_loss_that_is_not_finite_is_never_sorted_out_of_sight(bad: float, tail: str) -> None:
    for dtype in (torch.float32, torch.float64):
        losses, groups = torch.tensor([1.0, bad, 2.0, 3.0], dtype=dtype), torch.tensor([0, 0, 0, 1])
        assert not cvar(losses, 0.3, tail).isfinite()
        values, _ = group_cvar(losses, groups, 2, 0.3, tail)
        assert values.isfinite().tolist() == [False, True]
    assert value_at_risk(torch.tensor([1.0, math.nan]), 0.3, tail).isnan()
