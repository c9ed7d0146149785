"""theory.f_divergence and theory.figure1 against cvxpy, closed forms and properties.

Eq. 1, 3, 4, 5, 9 on the population of Figure 1.
"""

from __future__ import annotations

import warnings

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rddlib import risk
from rddlib.base import SettingError, numpy_generator
from rddlib.theory.f_divergence import (
    BALLS,
    Array,
    ball_radius,
    cvar_predictor,
    group_means,
    kl_predictor,
    reverse_kl_predictor,
    worst_case,
    worst_group,
    zero_one_ball,
)
from rddlib.theory.figure1 import Population, data_driven_values, figure1_population, fit, minimise, synthetic_for
from rddlib.theory.large_deviations import relative_entropy, robustness_bound

calm = settings(deadline=None, derandomize=True, max_examples=60)
losses_of_six = arrays(float, 6, elements=st.integers(-40, 40).map(lambda i: i / 8))
masses_of_six = arrays(float, 6, elements=st.integers(1, 20).map(float)).map(lambda a: a / a.sum())
share = st.floats(0, 1).map(lambda x: round(x, 9))
RADII = {"kl": 0.3, "chi2": 0.7, "cvar": 0.35}


def divergence(ball: str, q: Array, p: Array) -> float:
    """How far out q is, in the ball's own measure; for cvar the smallest tail mass that allows it."""
    if ball == "kl":
        return float(relative_entropy(q, p))
    return float(((q - p) ** 2 / p).sum()) if ball == "chi2" else float(1 / (q / p).max())


def solved(problem: cp.Problem) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cvxpy speaks of its solvers' versions
        return float(problem.solve(solver=cp.CLARABEL))


@pytest.mark.equation("1")
@pytest.mark.parametrize("ball", BALLS)
@pytest.mark.parametrize("seed", range(3))
def test_eq1_inner_maximum_is_that_of_a_convex_solver(ball: str, seed: int) -> None:
    rng = numpy_generator(seed, "ball", ball)
    losses, p, q = rng.normal(size=12), rng.dirichlet(np.ones(12)), cp.Variable(12, nonneg=True)
    radius = RADII[ball]
    inside = {
        "kl": [cp.sum(cp.kl_div(q, p)) <= radius],
        "chi2": [cp.sum(cp.multiply(1 / p, cp.square(q - p))) <= radius],
        "cvar": [q <= p / radius],
    }[ball]
    value, weights = worst_case(losses, p, ball, radius)
    assert value == pytest.approx(solved(cp.Problem(cp.Maximize(losses @ q), [cp.sum(q) == 1, *inside])), abs=2e-6)
    assert weights.sum() == pytest.approx(1)
    assert divergence(ball, weights, p) == pytest.approx(radius, rel=1e-7)


@pytest.mark.equation("1")
@pytest.mark.parametrize("ball", BALLS)
def test_eq1_an_atom_without_mass_takes_no_part(ball: str) -> None:
    losses, p = np.array([0.3, 5.0, 1.0, 0.1]), np.array([0.5, 0.0, 0.3, 0.2])
    value, q = worst_case(losses, p, ball, RADII[ball])
    kept = p > 0
    expected, weights = worst_case(losses[kept], p[kept], ball, RADII[ball])
    assert (value, q[1]) == (expected, 0)
    np.testing.assert_array_equal(q[kept], weights)


@pytest.mark.equation("1")
@pytest.mark.parametrize(("ball", "radius"), [("kl", 0.02), ("kl", 0.1), ("chi2", 0.05), ("chi2", 0.2)])
def test_eq1_an_unrestricted_logistic_model_decides_as_plain_training_does(ball: str, radius: float) -> None:
    """One score for each of four kinds of features: its sign is that of the likelier label, in any such ball."""
    likely = np.array([0.9, 0.2, 0.65, 0.4])
    population = Population(
        features=np.vstack([np.eye(4), np.eye(4)]),
        labels=np.repeat([1.0, -1.0], 4),
        groups=np.zeros(8, np.int64),
        masses=np.concatenate([likely, 1 - likely]) / 4,
        noisy=np.zeros(8, bool),
    )
    found = fit(population, ball, radius)
    assert (np.sign(found.theta) == np.sign(likely - 0.5)).all()
    assert found.value > fit(population, "erm").value + 0.01


@pytest.mark.equation("1")
@calm
@given(losses=losses_of_six, p=masses_of_six, radius=st.sampled_from([0.0, 0.01, 0.3, 2.0, 50.0]))
def test_eq1_ball_lies_between_mean_and_maximum_and_grows(losses: Array, p: Array, radius: float) -> None:
    for ball in ("kl", "chi2"):
        value, q = worst_case(losses, p, ball, radius)
        assert q.sum() == pytest.approx(1)
        assert (q >= 0).all()
        assert divergence(ball, q, p) <= radius + 1e-6
        assert p @ losses - 1e-9 <= value <= losses.max() + 1e-9
        assert worst_case(losses, p, ball, 2 * radius + 0.01)[0] >= value - 1e-9
        assert worst_case(losses + 3, p, ball, radius)[0] == pytest.approx(value + 3, abs=1e-7)


@pytest.mark.equation("1")
@calm
@given(losses=losses_of_six, alpha=st.floats(0.01, 1))
def test_eq1_cvar_ball_is_the_cvar_of_risk(losses: Array, alpha: float) -> None:
    p = np.full(6, 1 / 6)
    assert worst_case(losses, p, "cvar", alpha)[0] == pytest.approx(float(risk.cvar(torch.tensor(losses), alpha)))
    for tail in risk.TAILS:
        expected = float(risk.cvar(torch.tensor(losses), alpha, tail))
        assert float(cvar_predictor(p, losses, alpha, tail)) == pytest.approx(expected, abs=1e-9)


@calm
@given(losses=losses_of_six, p=masses_of_six, cut=st.integers(1, 5))
def test_groups_are_inside_the_cvar_ball_and_that_inside_the_others(losses: Array, p: Array, cut: int) -> None:
    groups = (np.arange(6) >= cut).astype(np.int64)
    rarest = min(p[:cut].sum(), p[cut:].sum())
    group, cvar, kl, chi2 = (
        worst_group(losses, p, groups)[0],
        *(worst_case(losses, p, ball, ball_radius(ball, rarest))[0] for ball in ("cvar", "kl", "chi2")),
    )
    assert group <= cvar + 1e-9
    assert cvar <= min(kl, chi2) + 1e-6
    # the radius is no larger than it must be: a group is on the edge of each ball
    conditioned = np.where(groups == 0, p, 0) / p[:cut].sum()
    for ball in BALLS:
        assert divergence(ball, conditioned, p) == pytest.approx(ball_radius(ball, p[:cut].sum()), rel=1e-9)


@calm
@given(low=share, high=share, ball=st.sampled_from(["kl", "chi2", "cvar"]))
def test_a_ball_orders_zero_one_classifiers_as_their_error_does(low: float, high: float, ball: str) -> None:
    low, high = sorted((low, high))
    at_low, at_high = (zero_one_ball(error, ball, RADII[ball]) for error in (low, high))
    assert low - 1e-9 <= at_low <= at_high + 1e-9


def test_group_means_leave_an_empty_group_out() -> None:
    losses, p, groups = np.array([1.0, 2, 4]), np.array([0.5, 0.25, 0.25]), np.array([0, 0, 2])
    np.testing.assert_allclose(group_means(losses, p, groups), [4 / 3, np.nan, 4])
    value, q = worst_group(losses, p, groups)
    assert value == 4
    np.testing.assert_array_equal(q, [0, 0, 1])


# --- the data-driven predictor (A.1.2) ------------------------------------------------------------------------


@pytest.mark.equation("A.1.2")
@pytest.mark.parametrize("rate", [0.01, 0.2, 1.5])
def test_a12_kl_predictor_is_that_of_a_convex_solver(rate: float) -> None:
    losses = np.array([0.3, 1.0, -0.5, 2.0])
    frequencies = np.array([[0.5, 0.3, 0.2, 0.0], [0.25, 0.25, 0.25, 0.25], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=float)
    values = kl_predictor(frequencies, losses, rate)
    for observed, value in zip(frequencies, values, strict=True):
        q = cp.Variable(4, nonneg=True)
        seen = np.flatnonzero(observed)
        near = cp.sum(cp.multiply(observed[seen], cp.log(q[seen]))) >= observed[seen] @ np.log(observed[seen]) - rate
        assert value == pytest.approx(solved(cp.Problem(cp.Maximize(losses @ q), [cp.sum(q) == 1, near])), abs=1e-5)


@pytest.mark.equation("A.1.2")
def test_a12_closed_forms_where_one_atom_was_seen() -> None:
    losses, nothing_bad = np.array([0.0, 1.0]), np.array([1.0, 0.0])
    assert float(kl_predictor(nothing_bad, losses, 0.2)) == pytest.approx(1 - np.exp(-0.2))
    assert float(reverse_kl_predictor(nothing_bad, losses, 0.2)) == 0
    assert float(cvar_predictor(nothing_bad, losses, 0.01)) == 0
    assert float(kl_predictor(np.array([0.5, 0.5]), np.array([2.0, 2.0]), 0.2)) == pytest.approx(2)


@calm
@given(losses=losses_of_six, p=masses_of_six, rate=st.floats(0.01, 2))
def test_a12_reverse_ball_is_the_ball_of_eq1(losses: Array, p: Array, rate: float) -> None:
    assert float(reverse_kl_predictor(p, losses, rate)) == pytest.approx(worst_case(losses, p, "kl", rate)[0], abs=1e-6)


# --- Figure 1 ----------------------------------------------------------------------------------------------------


def test_figure1_population_is_what_its_text_says() -> None:
    population = figure1_population(rare=0.03, noise=0.1)
    mass = np.bincount(population.groups, population.masses)
    np.testing.assert_allclose(mass, [0.485, 0.485, 0.03])
    assert population.masses[population.noisy].sum() == pytest.approx(0.1 * 0.97)
    x = population.features[population.groups == 2][:, 1:]
    assert (x.min(0) > [1.2, -0.9]).all()
    assert (x.max(0) < [1.8, -0.3]).all()
    assert (population.labels[population.groups == 2] == 1).all()
    # Lebesgue measures of the groups: 4, 4 - 0.36 and 0.36, by counting cells of side 0.1
    cells = [len(np.unique(population.features[population.groups == g], axis=0)) for g in range(3)]
    np.testing.assert_allclose(np.array(cells) * 0.01, [4, 3.64, 0.36])


def solve_by_cvxpy(population: Population, method: str, radius: float) -> float:
    theta = cp.Variable(3)
    losses = cp.logistic(-cp.multiply(population.labels, population.features @ theta))
    if method == "group":
        objective = cp.max(cp.hstack([
            (np.where(population.groups == g, population.masses, 0) / population.masses[population.groups == g].sum())
            @ losses for g in range(3)
        ]))  # fmt: skip
    elif method == "cvar":
        eta = cp.Variable()
        objective = eta + population.masses @ cp.pos(losses - eta) / radius
    else:
        objective = population.masses @ losses
    return solved(cp.Problem(cp.Minimize(objective)))


@pytest.mark.equation("4")
@pytest.mark.parametrize(("method", "radius"), [("erm", 0.0), ("group", 0.0), ("cvar", 0.5)])
def test_eq4_and_eq1_minima_are_those_of_a_convex_solver(method: str, radius: float) -> None:
    population = figure1_population(step=0.2)
    found = fit(population, method, radius)
    assert found.value == pytest.approx(solve_by_cvxpy(population, method, radius), abs=3e-6)
    assert 0 <= found.value - found.bound <= 1e-6


@pytest.mark.equation("1")
@pytest.mark.parametrize("ball", ["kl", "chi2"])
def test_eq1_outer_minimum_is_below_every_other_theta(ball: str) -> None:
    population, rng = figure1_population(step=0.2), numpy_generator(0, "thetas")
    found = fit(population, ball, 0.2)
    assert found.value - found.bound <= 1e-6
    for theta in found.theta + rng.normal(size=(50, 3)) * rng.choice([0.01, 0.3, 3.0], size=(50, 1)):
        assert worst_case(population.losses(theta), population.masses, ball, 0.2)[0] >= found.value - 1e-6


@pytest.mark.equation("4")
def test_eq4_value_does_not_depend_on_the_masses_of_the_groups() -> None:
    values = [fit(figure1_population(rare, step=0.2), "group").value for rare in (0.001, 0.05, 0.4)]
    np.testing.assert_allclose(values, values[0], atol=3e-6)


@pytest.mark.equation("4")
def test_eq4_group_dro_has_the_least_worst_group_loss() -> None:
    population = figure1_population(step=0.2)

    def worst(method: str, radius: float) -> float:
        theta = fit(population, method, radius).theta
        return worst_group(population.losses(theta), population.masses, population.groups)[0]

    best = worst("group", 0)
    for method, radius in [("erm", 0.0), *((ball, ball_radius(ball, 0.3)) for ball in BALLS)]:
        assert worst(method, radius) > best + 1e-3


@pytest.mark.equation("1")
def test_eq1_ball_that_holds_a_group_rarer_than_the_noise_leaves_no_classifier() -> None:
    """With tail mass at most 2 noise (1 - rare), some law in the ball has labels that are coin flips: value log 2."""
    population = figure1_population(rare=0.05, noise=0.08, step=0.2)
    for mass in (0.05, 0.152):
        for ball in BALLS:
            assert fit(population, ball, ball_radius(ball, mass)).value == pytest.approx(np.log(2), abs=2e-6)
    assert fit(population, "group").value < np.log(2) - 0.1
    clean = figure1_population(rare=0.05, noise=0.0, step=0.2)
    assert fit(clean, "cvar", 0.5).value < np.log(2) - 0.05


@pytest.mark.equation("3")
@pytest.mark.parametrize("theta", [[0.1, 0.9, 1.9], [-0.5, 0.2, -0.4], [2.0, 0.0, 1.0]])
def test_eq3_every_model_is_the_fit_of_some_synthetic_set(theta: list[float]) -> None:
    synthetic = synthetic_for(np.array(theta))
    assert len(synthetic.labels) == 9
    np.testing.assert_allclose(synthetic.pull_back(np.array(theta), synthetic.masses), 0, atol=1e-12)
    np.testing.assert_allclose(fit(synthetic, "erm", gap=3e-8).theta, theta, atol=1e-2)
    assert np.linalg.matrix_rank(synthetic.features) == 3  # strictly convex: the minimiser is the only one


@pytest.mark.equation("3")
def test_eq3_and_eq4_have_the_same_optimal_value_here() -> None:
    population = figure1_population(step=0.2)
    best = fit(population, "group")
    theta_of_s = fit(synthetic_for(best.theta), "erm", gap=3e-8).theta
    value = worst_group(population.losses(theta_of_s), population.masses, population.groups)[0]
    assert value == pytest.approx(best.value, abs=1e-3)
    assert value >= best.bound


def drawn(population: Population, per_group: int, seed: int) -> np.ndarray:
    rng, counts = numpy_generator(seed, "groups"), np.zeros(len(population.masses), dtype=np.int64)
    for group in range(3):
        inside = population.groups == group
        counts[inside] = rng.multinomial(per_group, population.masses[inside] / population.masses[inside].sum())
    return counts


@pytest.mark.equation("5")
def test_eq5_covers_every_group_where_the_plain_mean_does_not() -> None:
    population, theta = figure1_population(step=0.2), np.array([0.3, 0.35, 3.2])
    true = group_means(population.losses(theta), population.masses, population.groups)
    samples = [drawn(population, 40, seed) for seed in range(60)]
    robust, plain = (
        np.array([(data_driven_values(population, theta, c, rate) >= true - 1e-9).all() for c in samples]).mean()
        for rate in (0.15, 0.0)
    )
    assert robust == 1
    assert plain < 0.5


@pytest.mark.equation("9")
def test_eq9_is_eq5_and_pools_the_synthetic_set() -> None:
    population, theta = figure1_population(step=0.2), np.array([0.3, 0.35, 3.2])
    synthetic, counts = synthetic_for(theta), drawn(population, 30, 0)
    plain = data_driven_values(population, theta, counts, 0.0, synthetic)
    own, losses = synthetic.losses(theta), population.losses(theta)
    for group in range(3):
        inside = population.groups == group
        assert plain[group] == pytest.approx((counts[inside] @ losses[inside] + own.sum()) / 39)
    assert (data_driven_values(population, theta, counts, 0.1, synthetic) > plain).all()


@pytest.mark.equation("A.1.1")
def test_a11_robustness_bound_of_xu_and_mannor_holds_and_is_loose_here() -> None:
    population, theta = figure1_population(), np.array([0.3, 0.35, 3.2])
    losses, x = population.losses(theta), population.features[:, 1:]
    corner, sign = np.floor((x + np.array([2, 1])) / 0.5).astype(int), (population.labels > 0).astype(int)
    cells = np.ravel_multi_index((corner[:, 0], corner[:, 1], sign), (8, 4, 2))
    spread = max(np.ptp(losses[cells == c]) for c in np.unique(cells))
    n, rng = 2000, numpy_generator(0, "robustness")
    gaps = abs(rng.multinomial(n, population.masses, 400) @ losses / n - population.masses @ losses)
    bound = robustness_bound(64, float(spread), float(losses.max()), n, 0.05)
    assert (gaps <= bound).mean() >= 0.95
    assert bound > 5 * np.quantile(gaps, 0.95)


# --- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: worst_case(np.ones(2), np.ones(2) / 2, "tv", 0.1), "ball"),
        (lambda: worst_case(np.ones(2), np.ones(2) / 2, "kl", -0.1), "radius"),
        (lambda: worst_case(np.ones(2), np.ones(2) / 2, "cvar", 0.0), "radius"),
        (lambda: ball_radius("kl", 0.0), "mass"),
        (lambda: kl_predictor(np.ones(2) / 2, np.arange(2.0), 0.0), "rate"),
        (lambda: reverse_kl_predictor(np.ones(2) / 2, np.arange(2.0), 0.0), "rate"),
        (lambda: fit(figure1_population(), "sgd"), "method"),
        (lambda: figure1_population(rare=1.0), "rare"),
        (lambda: figure1_population(noise=0.5), "noise"),
        (lambda: synthetic_for(np.array([1.0, 0, 0])), "theta"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(call, name: str) -> None:
    with pytest.raises(SettingError) as caught:
        call()
    assert caught.value.name == name


def test_minimise_says_when_it_has_no_certificate() -> None:
    with pytest.raises(RuntimeError, match="no certificate"):
        minimise(lambda x: (float(x @ x), 2 * x), np.ones(3), 5.0, gap=1e-12, steps=3)
