"""theory.large_deviations by exact sums, solvers and simulation.

Eq. 6, 7, 8, 10, the assumptions and the steps of the proof.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rddlib.base import SettingError, numpy_generator
from rddlib.theory.f_divergence import Array, cvar_predictor, kl_predictor, reverse_kl_predictor
from rddlib.theory.large_deviations import (
    SIDES,
    bernoulli_rate,
    covering_radius,
    cvar_bounds,
    cvar_rate,
    disappointment,
    exact_log_probability,
    fitted_rate,
    importance,
    kl_worst_sample,
    mutual_information,
    relative_entropy,
    robustness_bound,
    sanov_rate,
    simulate,
    types,
    uniform_rate,
    uniform_tail,
    unseen_group_rate,
    visits,
)

calm = settings(deadline=None, derandomize=True, max_examples=60)
P, F = np.array([0.5, 0.3, 0.2]), np.array([0.0, 0.5, 1.0])
COIN = np.array([0.0, 1.0])
laws = arrays(float, 4, elements=st.integers(1, 30).map(float)).map(lambda a: a / a.sum())


def mean(frequencies: Array) -> Array:
    return frequencies @ F


def at_least(level: float) -> Callable[[Array], np.ndarray]:
    return lambda frequencies: frequencies @ F >= level - 1e-9


# --- entropies ---------------------------------------------------------------------------------------------------


@calm
@given(q=laws, p=laws)
def test_relative_entropy_is_positive_and_above_pinskers_bound(q: Array, p: Array) -> None:
    assert float(relative_entropy(q, p)) >= np.abs(q - p).sum() ** 2 / 2 - 1e-12
    assert float(relative_entropy(p, p)) == pytest.approx(0, abs=1e-12)


def test_relative_entropy_is_infinite_outside_the_support() -> None:
    assert relative_entropy(np.array([0.5, 0.5]), np.array([1.0, 0.0])) == np.inf
    assert relative_entropy(np.array([1.0, 0.0]), np.array([0.5, 0.5])) == pytest.approx(np.log(2))


@pytest.mark.equation("A.1.2")
@calm
@given(q=laws, p=laws)
def test_a12_mutual_information_of_an_independent_pair_is_zero_whatever_the_laws(q: Array, p: Array) -> None:
    """So {Q : I <= r} holds every law if the coupling is free, and the predictor over it is the largest loss."""
    assert mutual_information(np.outer(q, p)) == pytest.approx(0, abs=1e-12)
    entropy = -float((p * np.log(p)).sum())
    assert mutual_information(np.diag(p)) == pytest.approx(entropy)  # the same marginals, another coupling


# --- Sanov, Cramer -----------------------------------------------------------------------------------------------


@pytest.mark.equation("6")
@pytest.mark.parametrize("seed", range(4))
def test_eq6_sanov_rate_is_that_of_a_convex_solver(seed: int) -> None:
    rng = numpy_generator(seed, "sanov")
    p, functions = rng.dirichlet(np.ones(6)), rng.normal(size=(3, 6))
    bounds = functions @ rng.dirichlet(np.ones(6))  # feasible by construction
    q = cp.Variable(6, nonneg=True)
    problem = cp.Problem(cp.Minimize(cp.sum(cp.kl_div(q, p))), [cp.sum(q) == 1, functions @ q >= bounds])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        problem.solve(solver=cp.CLARABEL)
    rate, found = sanov_rate(p, functions, bounds)
    assert rate == pytest.approx(problem.value, abs=1e-6)
    assert (functions @ found >= bounds - 1e-5).all()
    assert float(relative_entropy(found, p)) == pytest.approx(rate, abs=1e-5)


def test_sanov_rate_of_an_empty_set_is_infinite_and_of_a_true_one_zero() -> None:
    assert sanov_rate(P, F[None], np.array([1.1]))[0] == np.inf
    assert sanov_rate(P, F[None], np.array([0.2]))[0] == pytest.approx(0, abs=1e-10)
    assert sanov_rate(np.array([0.5, 0.5, 0.0]), F[None], np.array([0.6]))[0] == np.inf


@pytest.mark.parametrize("n", [1, 4, 9])
def test_types_are_all_counts_and_their_masses_sum_to_one(n: int) -> None:
    counts = types(n, 3)
    expected = sorted(c for c in itertools.product(range(n + 1), repeat=3) if sum(c) == n)
    assert sorted(map(tuple, counts.tolist())) == expected
    assert exact_log_probability(lambda x: np.ones(len(x), bool), P, n) == pytest.approx(0, abs=1e-12)


def test_exact_log_probability_is_a_binomial_sum() -> None:
    direct = sum(math.comb(20, k) * 0.2**k * 0.8 ** (20 - k) for k in range(9, 21))
    found = exact_log_probability(lambda x: x[:, 1] >= 0.449, np.array([0.8, 0.2]), 20)
    assert found == pytest.approx(math.log(direct), rel=1e-12)
    assert exact_log_probability(lambda x: x[:, 1] > 2, np.array([0.8, 0.2]), 20) == -np.inf


@pytest.mark.parametrize("n", [20, 50])
def test_simulation_and_importance_sampling_cover_the_exact_value(n: int) -> None:
    event, rng = at_least(0.5), numpy_generator(0, "coverage", n)
    _, q = sanov_rate(P, F[None], np.array([0.5]))
    exact = exact_log_probability(event, P, n)
    plain = [simulate(event, P, n, 4000, rng).covers(exact) for _ in range(100)]
    weighted = [importance(event, P, np.stack([q, P]), n, 2000, rng).covers(exact) for _ in range(100)]
    assert sum(plain) >= 88
    assert sum(weighted) >= 88


def test_simulation_without_a_hit_says_so() -> None:
    never = simulate(lambda x: np.zeros(len(x), bool), P, 10, 50, numpy_generator(0, "never"))
    assert (never.hits, never.log_probability, never.low) == (0, -np.inf, -np.inf)
    assert -5 < never.high < 0


@pytest.mark.equation("6")
def test_eq6_simulated_rate_meets_sanov_within_its_interval() -> None:
    rate, q = sanov_rate(P, F[None], np.array([0.6]))
    sizes, rng = np.array([50.0, 100, 200, 400, 800]), numpy_generator(1, "slope")
    estimates = [importance(at_least(0.6), P, q[None], int(n), 20_000, rng) for n in sizes]
    found, half = fitted_rate(sizes, estimates)
    assert half < 3e-4
    assert abs(found - rate) <= 1.5 * half
    for n, e in zip(sizes, estimates, strict=True):
        assert e.log_probability <= -n * rate + 0.01  # Chernoff: a half-space is never likelier than exp(-n I)


@pytest.mark.equation("6")
def test_eq6_simulated_rate_of_a_continuous_loss_meets_cramer() -> None:
    rate, tilt = uniform_rate(0.7)
    assert 1 / -math.expm1(-tilt) - 1 / tilt == pytest.approx(0.7)
    grid = (np.arange(20_000) + 0.5) / 20_000
    assert rate == pytest.approx(sanov_rate(np.full(20_000, 1 / 20_000), grid[None], np.array([0.7]))[0], abs=1e-6)
    exact = sum((-1) ** k * math.comb(6, k) * (6 * 0.3 - k) ** 6 / math.factorial(6) for k in range(2))  # Irwin-Hall
    rng = numpy_generator(2, "uniform")
    assert sum(uniform_tail(0.7, 6, 4000, rng).covers(math.log(exact)) for _ in range(40)) >= 34
    sizes = np.array([50.0, 100, 200, 400])
    found, half = fitted_rate(sizes, [uniform_tail(0.7, int(n), 4000, rng) for n in sizes])
    assert abs(found - rate) <= 1.5 * half
    assert half < 1e-3


@pytest.mark.equation("6")
def test_eq6_holds_for_no_rate_with_the_plain_mean_as_printed() -> None:
    """A non-constant loss and a fixed theta: the probability tends to 1/2, so its rate is 0, not -r."""
    chances = [math.exp(exact_log_probability(disappointment(mean, F, P), P, n)) for n in (50, 100, 200, 400)]
    assert min(chances) > 0.4
    assert max(chances) < 0.55
    assert abs(chances[-1] - 0.5) < abs(chances[0] - 0.5)
    assert math.log(chances[-1]) / 400 > -0.003


@pytest.mark.equation("10")
def test_eq10_a_fixed_synthetic_set_in_the_pool_changes_no_rate() -> None:
    """|S| = 9 points of loss 0 shift the pooled mean by 9 / (N + 9) of itself: above 1/2 at first, 1/2 in the limit."""

    def pooled(n: int) -> float:
        event = disappointment(lambda x: x @ F * n / (n + 9), F, P)
        return math.exp(exact_log_probability(event, P, n))

    chances = [pooled(n) for n in (30, 100, 300)]
    assert 0.95 > chances[0] > chances[1] > chances[2] > 0.5
    assert math.log(chances[-1]) / 300 > -0.003


# --- Eq. 8: disappointment of predictors ---------------------------------------------------------------------


@pytest.mark.equation("8")
@pytest.mark.parametrize("p", [P, np.array([0.9, 0.05, 0.05]), np.array([0.1, 0.2, 0.7])], ids=str)
def test_eq8_kl_predictor_disappoints_at_rate_r_at_least_for_every_law_and_size(p: Array) -> None:
    """The bound is not asymptotic, and disappointment implies D(sample, truth) > r."""
    r = 0.1
    for n in (5, 20, 80):
        event = disappointment(lambda x: kl_predictor(x, F, r), F, p)
        assert exact_log_probability(event, p, n) <= math.log(n + 1) - n * r  # fixed theta: one power is enough
        counts = types(n, 3) / n
        assert (relative_entropy(counts[event(counts)], p) > r - 1e-7).all()


@pytest.mark.equation("9")
def test_eq9_the_bound_for_the_sample_does_not_hold_with_the_synthetic_set_in_the_pool() -> None:
    """Nine pooled losses of 0 beside 20 samples of a loss that is 1 with probability 0.9: more often than the bound."""
    n, pool, r, law = 20, 9, 0.5, np.array([0.1, 0.9])
    pooled = disappointment(lambda x: kl_predictor((n * x + [pool, 0]) / (n + pool), COIN, r), COIN, law)
    alone = disappointment(lambda x: kl_predictor(x, COIN, r), COIN, law)
    bound = math.log(n + 1) - n * r
    chances = [exact_log_probability(event, law, n) for event in (alone, pooled)]
    assert chances[0] <= bound < chances[1]
    assert (f"{math.exp(chances[1]):.4f}", f"{math.exp(bound):.5f}") == ("0.0113", "0.00095")


@pytest.mark.equation("8")
@pytest.mark.parametrize("r", [0.03, 0.1])
def test_eq8_kl_predictor_meets_the_rate_r_exactly(r: float) -> None:
    worst = kl_worst_sample(F, P, r)
    assert worst is not None
    assert float(relative_entropy(worst, P)) == pytest.approx(r)
    assert float(kl_predictor(worst, F, r)) == pytest.approx(float(P @ F))
    sizes, rng = np.array([100.0, 200, 400, 800]), numpy_generator(3, "meets")
    event = disappointment(lambda x: kl_predictor(x, F, r), F, P)
    estimates = [importance(event, P, worst[None], int(n), 10_000, rng) for n in sizes]
    slopes = -np.diff([e.log_probability for e in estimates]) / np.diff(sizes)
    # the prefactor of a level set in two dimensions is n^(-1/2): the slopes fall towards r, with log(2) / (2 dn) left
    expected = r + np.log(sizes[1:] / sizes[:-1]) / (2 * np.diff(sizes))
    np.testing.assert_allclose(slopes, expected, atol=1e-3)


@pytest.mark.equation("8")
def test_eq8_no_smaller_predictor_keeps_the_rate() -> None:
    """A dent of 0.02 around one observation breaks Eq. 8 for the law that this observation pleads for."""
    r, seen = 0.1, np.array([0.5, 0.3, 0.2])
    value = float(kl_predictor(seen, F, r))

    def dented(x: Array) -> Array:
        return kl_predictor(x, F, r) - 0.02 * (np.abs(x - seen).sum(-1) < 0.02)

    # a law whose mean lies between the dented and the true value, and nearer than r to the observation
    laws_near = np.array([kl_law(seen, s) for s in np.linspace(0.01, r, 200)])
    means = laws_near @ F
    p = laws_near[(means > value - 0.02) & (means < value - 1e-3)][0]
    distance = float(relative_entropy(seen, p))
    assert distance < r - 1e-3
    n = 1000  # the dominating type is the observation itself: one term bounds the probability from below
    event = disappointment(dented, F, p)
    counts = (seen * n).round()
    assert event((counts / n)[None])[0]
    log_mass = math.lgamma(n + 1) - sum(map(math.lgamma, counts + 1)) + float(counts @ np.log(p))
    assert log_mass >= -n * distance - 3 * math.log(n + 1)  # so the rate is at most the distance, below r
    assert not disappointment(lambda x: kl_predictor(x, F, r), F, p)(seen[None])[0]


def kl_law(seen: Array, radius: float) -> Array:
    """The maximiser of the KL predictor: P_i proportional to P'_i / (eta - F_i), by a fine search for eta."""
    eta = 1 + np.geomspace(1e-6, 1e4, 20_000)
    q = seen / (eta[:, None] - F)
    q /= q.sum(1, keepdims=True)
    return np.asarray(q[abs(relative_entropy(seen, q) - radius).argmin()])


@pytest.mark.equation("8")
def test_eq8_smaller_radius_and_other_balls_have_smaller_rates() -> None:
    r, ps = 0.05, (0.1, 0.3, 0.6)
    for p in ps:
        assert bernoulli_rate(lambda x: kl_predictor(x, COIN, r), p, 20_001) == pytest.approx(r, abs=3e-4)
        assert bernoulli_rate(lambda x: kl_predictor(x, COIN, r / 2), p, 20_001) == pytest.approx(r / 2, abs=3e-4)
    assert bernoulli_rate(lambda x: kl_predictor(x, COIN, r), 0.04, 20_001) == np.inf  # 0.04 < 1 - exp(-r)
    exchanged = [bernoulli_rate(lambda x: reverse_kl_predictor(x, COIN, r), p, 2001) for p in (0.01, 0.1, 0.9)]
    assert exchanged[0] <= -math.log(1 - 0.01) + 1e-9  # no loss seen, none foreseen
    assert exchanged[1] < r < exchanged[2]


@pytest.mark.equation("8")
@calm
@given(p=st.floats(0.002, 0.2), alpha=st.sampled_from([0.1, 0.4, 0.8, 0.99]))
def test_eq8_cvar_keeps_no_rate_over_all_laws(p: float, alpha: float) -> None:
    """Every alpha: a sample without a loss has CVaR 0, and its probability is (1 - p)^N. The rate is at most p-ish."""
    found = bernoulli_rate(lambda x: cvar_predictor(x, COIN, alpha), p, 20_001)
    assert 0 < found <= -math.log1p(-p) + 1e-9


@pytest.mark.equation("8")
def test_eq8_holds_for_every_theta_at_once_and_so_for_one_chosen_on_the_sample() -> None:
    """Disappointment of any theta implies D(sample, truth) > r: the event does not depend on theta."""
    rng, r, n = numpy_generator(4, "thetas"), 0.08, 40
    tables = rng.random((12, 3))  # losses of 12 parameters
    tables += 0.5 - (tables @ P)[:, None]  # all equally good
    samples = rng.multinomial(n, P, 5000) / n
    predicted = np.stack([kl_predictor(samples, row, r) for row in tables])  # (12, 5000)
    chosen = predicted.argmin(0)  # theta picked on the sample, by the predictor itself
    fooled = (tables @ P)[chosen] > predicted.min(0) + 1e-9
    assert (relative_entropy(samples[fooled], P) > r).all()
    plain = tables @ samples.T
    optimism = ((tables @ P)[plain.argmin(0)] > plain.min(0)).mean()
    assert fooled.mean() < 0.1
    assert optimism > 0.8  # minimising the plain mean makes Eq. 6 worse than a coin


# --- Eq. 7 ---------------------------------------------------------------------------------------------------------


@pytest.mark.equation("7")
def test_eq7_has_the_rate_of_the_unseen_where_the_promise_is_the_largest_loss_seen() -> None:
    masses, losses = np.array([0.6, 0.37, 0.03]), np.array([0.2, 0.4, 1.5])
    assert unseen_group_rate(masses, losses) == pytest.approx(-math.log(0.97))

    def largest_seen(x: Array) -> Array:
        return np.where(x > 0, losses, -np.inf).max(-1)

    for n in (10, 60):
        event = lambda x: largest_seen(x) < losses.max()  # noqa: E731
        assert exact_log_probability(event, masses, n) == pytest.approx(n * math.log(0.97))


@pytest.mark.equation("7")
def test_eq7_bounds_the_average_over_groups_and_not_each_group() -> None:
    """The KL predictor over groups holds at rate r for E_omega, while one group stays above it for ever."""
    masses, losses, r = np.array([0.6, 0.37, 0.03]), np.array([0.2, 0.4, 1.5]), 0.05
    event = disappointment(lambda x: kl_predictor(x, losses, r), losses, masses)
    for n in (20, 100, 300):
        assert exact_log_probability(event, masses, n) <= math.log(n + 1) - n * r
    predicted = float(kl_predictor(masses, losses, r))  # the limit of the predictor as N grows
    assert masses @ losses < predicted < losses.max()


# --- the steps of the proof ------------------------------------------------------------------------------------


@pytest.mark.equation("Step 1")
@pytest.mark.parametrize("alpha", [0.1, 0.4, 0.8, 1.0])
@pytest.mark.parametrize("tail", ["upper", "lower"])
def test_step1_bounds_hold_for_both_tails_and_every_law(alpha: float, tail: str) -> None:
    grid, rng = np.linspace(0, 1, 11), numpy_generator(5, "cvar", tail)
    for p in (np.full(11, 1 / 11), np.eye(11)[0] * 0.9 + np.eye(11)[10] * 0.1, rng.dirichlet(np.ones(11) / 3)):
        for n, error in itertools.product((20, 100), (0.05, 0.1, 0.2)):
            empirical = cvar_predictor(rng.multinomial(n, p, 4000) / n, grid, alpha, tail)
            off = empirical - cvar_predictor(p, grid, alpha, tail)
            for side, share in (("over", (off >= error - 1e-9).mean()), ("under", (off <= -error + 1e-9).mean())):
                for name, bound in cvar_bounds(n, error, alpha, side, tail).items():
                    assert share <= bound + 3 * math.sqrt(bound / 4000), (name, side)


@pytest.mark.equation("Step 1")
@calm
@given(n=st.integers(1, 5000), error=st.floats(0.001, 1), alpha=st.floats(0.01, 1))
def test_step1_our_bound_implies_the_one_quoted_from_brown(n: int, error: float, alpha: float) -> None:
    under = cvar_bounds(n, error, alpha, "under")
    assert under["tail"] <= under["brown"] + 1e-12
    mirrored = cvar_bounds(n, error, alpha, "over", "lower")
    assert mirrored == under


@pytest.mark.equation("Step 1")
@pytest.mark.parametrize("alpha", [0.1, 0.4, 0.8])
@pytest.mark.parametrize("side", SIDES)
def test_step1_exact_rate_is_met_and_above_that_of_the_bounds(alpha: float, side: str) -> None:
    grid, error = np.linspace(0, 1, 6), 0.1 if alpha > 0.3 else 0.03
    p = np.full(6, 1 / 6) if alpha > 0.3 else np.array([0.4, 0.3, 0.15, 0.07, 0.05, 0.03])
    true = float(cvar_predictor(p, grid, alpha))
    level = true + error if side == "over" else true - error
    assert 0 < level < 1
    rate, proposals = cvar_rate(grid, p, alpha, level, side)
    sign = 1 if side == "over" else -1
    event = lambda x: sign * (cvar_predictor(x, grid, alpha) - level) >= -1e-9  # noqa: E731
    for q in proposals:
        assert float(relative_entropy(q, p)) >= rate - 1e-6
    gaps = []
    for n in (100, 400):
        found = importance(event, p, proposals, n, 20_000, numpy_generator(6, "rate", side))
        gaps.append(-found.log_probability / n - rate)
        for bound in cvar_bounds(n, error, alpha, side).values():
            assert found.low <= math.log(bound)
        assert rate >= max(-math.log(b) / n for b in cvar_bounds(n, error, alpha, side).values())
    assert -0.002 < gaps[1] < gaps[0] < 0.06
    assert gaps[1] < 0.02


@pytest.mark.equation("Step 1")
@pytest.mark.equation("Assumption 3.1")
def test_step1_fails_on_a_support_of_finite_measure_without_a_bound() -> None:
    """D is the union of [k, k + 2^-k], of measure 1: a law on it has a CVaR, and one draw far out spoils the estimate.

    With mass k^-3 on the k-th interval the chance of that draw falls like a power of n, above the bound for any U.
    """
    alpha, k = 0.5, np.arange(1.0, 1e6)
    assert (0.5**k).sum() == pytest.approx(1)
    masses = k**-3 / (k**-3).sum()
    true = float(cvar_predictor(masses, k, alpha))
    for n in (10**3, 10**4, 10**5):
        far = alpha * n * (true + 1)  # all other losses at their least, 1
        assert cvar_predictor(np.array([1 - 1 / n, 1 / n]), np.array([1.0, far]), alpha) >= true + 1
        log_chance = math.log(-math.expm1(n * math.log1p(-masses[k >= far].sum())))
        assert log_chance / n > -3 * math.log(n) / n
    for limit in (5, 30):
        assert math.exp(log_chance) > min(cvar_bounds(n, 1 / limit, alpha, "over").values())


@pytest.mark.equation("Step 2")
@pytest.mark.parametrize("alpha", [0.1, 0.3, 0.49, 0.51, 0.8])
def test_step2_one_half_marks_nothing_for_the_tails(alpha: float) -> None:
    """Upper tail: a positive rate on both sides of 1/2. Lower tail, the paper's bracket: disappointment is certain."""
    upper = disappointment(lambda x: cvar_predictor(x, F, alpha), F, P)
    chances = [exact_log_probability(upper, P, n) for n in (40, 80, 160)]
    assert chances[0] > chances[1] > chances[2]
    assert chances[2] < math.log(0.05)
    lower = disappointment(lambda x: cvar_predictor(x, F, alpha, "lower"), F, P)
    assert exact_log_probability(lower, P, 160) > math.log(0.95)
    printed = disappointment(lambda x: -cvar_predictor(x, F, alpha, "lower"), F, P)
    assert exact_log_probability(printed, P, 160) == pytest.approx(0, abs=1e-9)


def value_at_risk(frequencies: Array, losses: Array, alpha: float) -> Array:
    """Upper value at risk of frequencies over increasing losses: the largest loss with mass alpha at or above it."""
    above = frequencies[:, ::-1].cumsum(1)[:, ::-1]
    return np.asarray(np.where(above >= alpha - 1e-12, losses, -np.inf).max(1))


@pytest.mark.equation("Step 2")
def test_step2_one_half_is_the_boundary_of_the_quantile_of_a_symmetric_loss_only() -> None:
    five, even = np.linspace(0, 1, 5), np.array([0.1, 0.2, 0.4, 0.2, 0.1])
    skewed = np.array([0.85, 0.0, 0.0, 0.0, 0.15])

    def chance(p: Array, alpha: float) -> float:
        event = disappointment(lambda x: value_at_risk(x, five, alpha), five, p)
        return math.exp(simulate(event, p, 80, 4000, numpy_generator(9, "quantile")).log_probability)

    assert chance(even, 0.2) < 0.05  # below 1/2: the quantile lies above the mean
    assert chance(even, 0.8) > 0.95
    assert chance(skewed, 0.3) > 0.95  # below 1/2 as well, and yet below the mean


@pytest.mark.equation("Step 2")
@pytest.mark.parametrize("alpha", [0.02, 0.3, 0.8])
def test_step2_minimising_cvar_need_not_minimise_eq10(alpha: float) -> None:
    """Eq. 10 prefers a loss of 1 in 99 % of cases to one in 1 %: its sample mean is less often too small."""
    often, rare = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    p = np.array([0.99, 0.01])
    assert cvar_predictor(p, rare, alpha) < cvar_predictor(p, often, alpha)
    for tail_mass in (1.0, alpha):  # the plain mean of Eq. 10, and the CVaR itself in its place

        def chance(losses: Array, mass: float = tail_mass) -> float:
            event = disappointment(lambda x: cvar_predictor(x, losses, mass), losses, p)
            return exact_log_probability(event, p, 50)

        assert chance(often) < math.log(0.4) < math.log(0.6) < chance(rare)


@pytest.mark.equation("Step 2")
@pytest.mark.parametrize("alpha", [0.3, 0.8])
def test_step2_holds_among_losses_of_one_mean_and_shape_with_a_margin(alpha: float) -> None:
    """The least spread has the least CVaR, and the sample mean plus a margin disappoints least often."""
    shape, law, margin = np.array([-1.0, 0.0, 1.0]), np.array([0.3, 0.4, 0.3]), 0.05
    risks, chances = [], []
    for spread in (0.2, 0.3, 0.4):
        losses = 0.5 + spread * shape
        risks.append(float(cvar_predictor(law, losses, alpha)))
        event = disappointment(lambda x, f=losses: x @ f + margin, losses, law)
        chances.append(exact_log_probability(event, law, 60))
    assert risks[0] < risks[1] < risks[2] and chances[0] < chances[1] < chances[2]


@pytest.mark.equation("Step 3")
def test_step3_a_feasible_predictor_does_not_make_the_minimiser_of_another_feasible() -> None:
    """With CVaR as the promise, at 0.8 and at 0.3, the rate is not kept; with the ball it is, for any theta."""
    r, p = 0.05, 0.06
    assert bernoulli_rate(lambda x: kl_predictor(x, COIN, r), p, 20_001) >= r - 1e-4
    for alpha in (0.3, 0.8):
        assert bernoulli_rate(lambda x, a=alpha: cvar_predictor(x, COIN, a), p, 20_001) < r
    law, n = np.array([0.94, 0.03, 0.03]), 60
    tables = numpy_generator(10, "thetas").random((12, 3))
    tables += 0.5 - (tables @ law)[:, None]  # all equally good
    for alpha in (0.3, 0.8):

        def promised(x: Array, by: str, alpha: float = alpha) -> Array:
            risks = np.stack([cvar_predictor(x, row, alpha) for row in tables])
            chosen = risks.argmin(0)  # the minimiser of the empirical CVaR
            balls = np.stack([kl_predictor(x, row, r) for row in tables])
            return np.asarray({"cvar": risks, "ball": balls}[by][chosen, np.arange(len(x))])

        fooled = {
            by: exact_log_probability(lambda x, by=by: promised(x, by) < 0.5 - 1e-9, law, n) for by in ("cvar", "ball")
        }
        assert fooled["ball"] <= 3 * math.log(n + 1) - n * r
        counts = types(n, 3) / n
        assert (relative_entropy(counts[promised(counts, "ball") < 0.5 - 1e-9], law) > r - 1e-7).all()
        assert fooled["cvar"] > max(-n * r, fooled["ball"])


@pytest.mark.equation("Proposition 3.3")
def test_prop33_closes_with_a_margin_and_a_fixed_theta() -> None:
    """Mean <= CVaR <= empirical CVaR + error except with probability of rate alpha error^2 / 2, for every law."""
    error, n, rng = 0.3, 60, numpy_generator(7, "margin")
    grid = np.linspace(0, 1, 5)
    for alpha in (0.3, 0.8):
        bound = cvar_bounds(n, error, alpha, "under")["tail"]
        for p in [np.array([0.94, 0, 0, 0, 0.06]), *rng.dirichlet(np.ones(5) / 2, 20)]:
            event = disappointment(lambda x, a=alpha: cvar_predictor(x, grid, a) + error, grid, p)
            assert simulate(event, p, n, 2000, rng).low <= math.log(bound)
        # a theta chosen on the sample, out of 12 that are equally good: the bound twelve times over
        tables = rng.random((12, 3)) / 2
        tables += 0.4 - (tables @ P)[:, None]
        samples = rng.multinomial(1000, P, 2000) / 1000
        promised = np.min([cvar_predictor(samples, row, alpha) for row in tables], axis=0)
        bound = 12 * cvar_bounds(1000, 0.2, alpha, "under")["tail"]
        assert (promised + 0.2 < 0.4).mean() <= bound < 0.05
        assert ((tables @ samples.T).min(0) < 0.4).mean() > 0.8  # as printed: the plain mean, without a margin


@pytest.mark.equation("Proposition 3.3")
@calm
@given(laws, laws, arrays(float, 4, elements=st.floats(-1, 1)), st.floats(0, 1), st.sampled_from([0.2, 0.5, 0.8]))
def test_prop33_the_balls_of_theorem_closed_lose_half_of_the_margin_at_most(
    p: Array, q: Array, slopes: Array, chosen: float, alpha: float
) -> None:
    """A theta chosen in any way has a centre next to it that exceeds its promise by half as much."""
    margin, steepest = 0.4, 2.0
    radius = margin / (4 * steepest)
    centres = radius * (2 * np.arange(math.ceil(1 / (2 * radius))) + 1)  # of [0, 1]
    assert covering_radius(np.linspace(0, 1, 999)[:, None], centres[:, None]) <= radius + 1e-12
    start = np.array([0.0, 0.3, 0.6, 1.0])

    def excess(theta: float, slopes: Array = slopes, p: Array = p, q: Array = q) -> float:
        losses = start + steepest * slopes * theta
        return float(p @ losses - cvar_predictor(q, losses, alpha))

    nearest = float(centres[np.abs(centres - chosen).argmin()])
    assert excess(nearest) >= excess(chosen) - margin / 2 - 1e-9
    # the loss falls where the truth is and rises where the sample is: all of it is lost
    opposed, truth, sample = np.array([0.0, -1.0, 0.0, 1.0]), np.eye(4)[1], np.eye(4)[3]
    at = [excess(theta, opposed, truth, sample) for theta in (chosen, chosen + radius)]
    assert at[0] - at[1] == pytest.approx(margin / 2)


# --- the assumptions ---------------------------------------------------------------------------------------------


@pytest.mark.equation("Assumption 3.1")
def test_assumption31_a_relu_network_has_a_gradient_that_jumps_and_logistic_regression_has_not() -> None:
    def slope(loss: Callable[[float], float], at: float) -> float:
        return (loss(at + 1e-6) - loss(at - 1e-6)) / 2e-6

    relu = lambda w: math.log1p(math.exp(-max(w, 0.0)))  # noqa: E731  cross-entropy of one ReLU unit at x = 1
    logistic = lambda w: math.log1p(math.exp(-w))  # noqa: E731
    assert abs(slope(relu, 1e-4) - slope(relu, -1e-4)) > 0.49
    points = np.linspace(-5, 5, 400)
    slopes = [slope(logistic, w) for w in points]
    assert max(abs(np.diff(slopes) / np.diff(points))) <= 0.25 + 1e-6  # Lipschitz with constant |x|^2 / 4


@pytest.mark.equation("Assumption 3.2")
def test_assumption32_holds_for_atoms_and_for_fresh_draws_up_to_closure_only() -> None:
    rng, p = numpy_generator(8, "visits"), np.array([0.7, 0.29, 0.01])
    last = visits(p, 3000, 5, rng)
    assert (last > 2500).all()  # every atom comes back
    assert visits(np.array([1.0, 0.0]), 10, 3, rng).tolist() == [9, -1]
    grid = np.stack(np.meshgrid(np.linspace(0, 1, 15), np.linspace(0, 1, 15)), -1).reshape(-1, 2)
    fresh = rng.random((8000, 2))
    radii = [covering_radius(grid, fresh[:n]) for n in (20, 500, 8000)]
    assert radii[0] > radii[1] > radii[2]
    assert radii[2] < 0.05
    fixed = fresh[:20]  # a finite training set, drawn from again and again, is all that is ever seen
    assert covering_radius(grid, fixed[rng.integers(20, size=8000)]) >= radii[0]
    assert covering_radius(grid, fresh) > 0  # and no finite sample is the support itself


# --- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: uniform_rate(0.4), "threshold"),
        (lambda: cvar_rate(F, P, 0.3, 0.5, "left"), "side"),
        (lambda: cvar_bounds(10, 0.1, 0.3, "left"), "side"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(call, name: str) -> None:
    with pytest.raises(SettingError) as caught:
        call()
    assert caught.value.name == name


def test_robustness_bound_falls_with_n_to_the_spread() -> None:
    assert robustness_bound(4, 0.1, 1.0, 10**9, 0.05) == pytest.approx(0.1, abs=1e-3)
    assert robustness_bound(4, 0.1, 1.0, 100, 0.05) > robustness_bound(2, 0.1, 1.0, 100, 0.05)
