"""Algorithms 1 and 2: against slow loops, closed forms, exact gradients; and what each reading of L(S) depends on."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from rddlib.base import SettingError, generator
from rddlib.risk import RiskTerm, cvar, group_risk
from rddlib.theory.algorithms import (
    METHODS,
    Search,
    Task,
    algorithm_1,
    algorithm_2,
    bilevel_loss,
    draw_directions,
    error_bound,
    estimate_gradient,
    fit_ridge,
    hinge_losses,
    minimise_eq2,
    nearest_synthetic,
    quadratic_error,
    rare_group_sample,
    squared_losses,
)

UPPER = RiskTerm.preset("upper", alpha=0.3)


def small_task(seed: int = 0, n: int = 40, m: int = 4, spread: float = 0.7) -> tuple[Task, Tensor]:
    """Real data that no line separates, and a synthetic set of m of its items."""
    features, labels, _ = rare_group_sample(n, generator(seed, "data"), 0.2, spread)
    chosen = torch.cat([torch.where(labels == k)[0][: m // 2] for k in (0, 1)])
    return Task(features, labels, labels[chosen]), features[chosen].clone()


def variants(synthetic: Tensor, count: int, size: float = 0.3) -> Tensor:
    rng = generator(7, "variants")
    return synthetic + size * torch.randn(count, *synthetic.shape, dtype=torch.float64, generator=rng)


# --- the data and the clusters -------------------------------------------------------------------------------


def test_rare_group_sample_has_the_shares_it_says_and_one_class_a_group() -> None:
    features, labels, groups = rare_group_sample(20_000, generator(0), rare=0.1)
    shares = groups.bincount() / len(groups)
    assert torch.allclose(shares, torch.tensor([0.45, 0.45, 0.1]), atol=0.015)
    assert [labels[groups == k].unique().tolist() for k in range(3)] == [[0], [1], [1]]
    assert torch.allclose(features[groups == 2].mean(0), torch.tensor([-1.0, 2.0], dtype=torch.float64), atol=0.05)


@pytest.mark.equation("Algorithm 1")
def test_algorithm_1_clusters_by_the_nearest_synthetic_item() -> None:
    task, synthetic = small_task()
    found = nearest_synthetic(task.features, variants(synthetic, 5))
    for clusters, points in zip(found, variants(synthetic, 5), strict=True):
        slow = [min(range(4), key=lambda i: float((z - points[i]).square().sum())) for z in task.features]
        assert clusters.tolist() == slow


@pytest.mark.equation("Algorithm 1")
def test_algorithm_1_subsample_is_part_of_the_data_without_repeats() -> None:
    task, _ = small_task()
    part = task.subsample(15, generator(3))
    rows = {tuple(row) for row in task.features.tolist()}
    taken = [tuple(row) for row in part.features.tolist()]
    assert len(set(taken)) == 15
    assert set(taken) <= rows
    for size in (0, 41):
        with pytest.raises(SettingError, match="size"):
            task.subsample(size, generator(0))


# --- Eq. 2 and Algorithm 1 as written ------------------------------------------------------------------------


def eq2_slowly(losses: Tensor, clusters: Tensor, alpha: float) -> float:
    values = [float(cvar(losses[clusters == i], alpha, "upper")) for i in clusters.unique()]
    return sum(values) / len(values) + max(values)


@pytest.mark.equation("2")
@pytest.mark.parametrize("alpha", [0.1, 0.37, 0.8, 1.0])
def test_eq2_linear_program_is_the_minimum(alpha: float) -> None:
    task, synthetic = small_task()
    clusters = nearest_synthetic(task.features, synthetic)
    value, theta = minimise_eq2(task.features, task.labels, clusters, alpha)
    assert value == pytest.approx(
        eq2_slowly(hinge_losses(theta, task.features, task.labels), clusters, alpha), abs=1e-9
    )
    assert value > 0.1
    noise = torch.randn(300, 3, dtype=torch.float64, generator=generator(1))
    for k, direction in enumerate(noise):  # convex: no better value at any distance
        other = hinge_losses(theta + 10.0 ** (-(k % 6)) * direction, task.features, task.labels)
        assert eq2_slowly(other, clusters, alpha) >= value - 1e-9


def test_minimise_eq2_refuses_a_third_class() -> None:
    with pytest.raises(SettingError, match="two classes"):
        minimise_eq2(torch.zeros(3, 2), torch.tensor([0, 1, 2]), torch.zeros(3, dtype=torch.int64), 0.5)


@pytest.mark.equation("2")
def test_eq2_with_the_printed_sign_has_no_minimum() -> None:
    task, synthetic = small_task()
    clusters = nearest_synthetic(task.features, synthetic)
    _, theta = minimise_eq2(task.features, task.labels, clusters, 0.8)
    literal = RiskTerm.preset("literal", alpha=0.8)
    values = [
        float(group_risk(hinge_losses(-scale * theta, task.features, task.labels), clusters, 4, literal))
        for scale in (1.0, 10.0, 100.0, 1e3, 1e4)
    ]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 9 * values[-2] < 0  # downwards along a straight line, for ever


@pytest.mark.equation("Algorithm 1")
def test_algorithm_1_is_one_linear_program_a_set() -> None:
    task, synthetic = small_task()
    sets = variants(synthetic, 6)
    slow = [minimise_eq2(task.features, task.labels, nearest_synthetic(task.features, s), 0.5)[0] for s in sets]
    assert torch.allclose(algorithm_1(sets, task, 0.5), torch.tensor(slow, dtype=torch.float64), atol=1e-9)


@pytest.mark.equation("Algorithm 1")
def test_algorithm_1_sees_the_clusters_and_nothing_else() -> None:
    """Two items on either side of one plane: any distance between them gives the same L(S), not the same model."""
    task, _ = small_task(m=2)
    middle, side = torch.tensor([0.1, 0.4], dtype=torch.float64), torch.tensor([1.0, -0.7], dtype=torch.float64)
    sets = torch.stack([torch.stack([middle - t * side, middle + t * side]) for t in (0.1, 1.0, 10.0)])
    values = algorithm_1(sets, task, 0.5)
    assert torch.allclose(values, values[:1].expand(3), atol=1e-9)
    other_labels = Task(task.features, task.labels, 1 - task.synthetic_labels)
    assert torch.equal(algorithm_1(sets, other_labels, 0.5), values)
    bilevel = bilevel_loss(sets, task, UPPER)
    assert float(bilevel.max() - bilevel.min()) > 0.1
    assert not torch.allclose(bilevel_loss(sets, other_labels, UPPER), bilevel)


@pytest.mark.equation("Algorithm 1")
def test_algorithm_1_is_piecewise_constant_along_a_line() -> None:
    task, synthetic = small_task()
    line = (
        synthetic
        + torch.linspace(-0.3, 0.3, 61, dtype=torch.float64)[:, None, None] * variants(0 * synthetic, 1)[0] * 3
    )
    values, clusters = algorithm_1(line, task, 0.5), nearest_synthetic(task.features, line)
    same = (clusters[1:] == clusters[:-1]).all(1)
    assert 5 < int(same.sum()) < 60
    assert torch.equal(values[1:][same], values[:-1][same])
    assert len(values.unique()) > 2
    bilevel = bilevel_loss(line, task, UPPER)
    assert bool((bilevel.diff() != 0).all())


# --- the bilevel reading -------------------------------------------------------------------------------------


@pytest.mark.equation("3")
def test_eq3_inner_problem_is_solved() -> None:
    task, synthetic = small_task()
    free = fit_ridge(synthetic, task).requires_grad_()
    inner = squared_losses(free, synthetic, task.synthetic_labels).mean() + task.ridge * free.square().sum()
    assert float(torch.autograd.grad(inner, free)[0].norm()) < 1e-12


@pytest.mark.equation("3")
@pytest.mark.parametrize("tail", ["upper", "lower"])
def test_eq3_batch_equals_a_loop_over_sets_and_clusters(tail: str) -> None:
    task, synthetic = small_task()
    term = RiskTerm.preset(tail, alpha=0.3)
    sets = variants(synthetic, 7)
    for value, points in zip(bilevel_loss(sets, task, term), sets, strict=True):
        losses = squared_losses(fit_ridge(points, task), task.features, task.labels)
        clusters = nearest_synthetic(task.features, points)
        cvars = [float(cvar(losses[clusters == i], 0.3, tail)) for i in clusters.unique()]
        assert float(value) == pytest.approx(sum(cvars) / len(cvars) + max(cvars), rel=1e-12)
    mean = squared_losses(fit_ridge(sets[0], task), task.features, task.labels).mean()
    assert float(bilevel_loss(sets[:1], task, None)) == pytest.approx(float(mean), rel=1e-12)


@pytest.mark.equation("3")
def test_eq3_value_has_the_right_gradient_in_the_synthetic_set() -> None:
    task, synthetic = small_task()
    free = synthetic.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: bilevel_loss(s[None], task, UPPER), free)
    assert torch.autograd.gradcheck(lambda s: bilevel_loss(s[None], task, None), free)


# --- gradients from values -----------------------------------------------------------------------------------


def probes_for(method: str, n: int, many: int) -> int:
    return n if method.startswith("difference") or method == "interpolation" else many


@pytest.mark.equation("Algorithm 2")
def test_algorithm_2_estimate_is_the_printed_sum() -> None:
    task, synthetic = small_task()
    directions = draw_directions("gaussian_forward", 8, 9, generator(0))
    found = estimate_gradient(lambda s: bilevel_loss(s, task, UPPER), synthetic, "gaussian_forward", directions, 0.1)
    slow, base = torch.zeros_like(synthetic), float(bilevel_loss(synthetic[None], task, UPPER))
    for v in directions.view(9, 4, 2):
        slow += (float(bilevel_loss((synthetic + 0.1 * v)[None], task, UPPER)) - base) / 0.1 * v / 9
    assert torch.allclose(found, slow, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_estimates_approach_the_autograd_gradient_of_the_bilevel_loss(method: str) -> None:
    task, synthetic = small_task()
    free = synthetic.clone().requires_grad_()
    exact = torch.autograd.grad(bilevel_loss(free[None], task, None).sum(), free)[0]
    directions = draw_directions(method, 8, probes_for(method, 8, 40_000), generator(0))
    found = estimate_gradient(lambda s: bilevel_loss(s, task, None), synthetic, method, directions, 1e-4)
    allowed = 1e-3 if method.startswith(("difference", "interpolation")) else 5 * math.sqrt(9 / 40_000)
    assert float((found - exact).norm() / exact.norm()) < allowed


@pytest.mark.parametrize("method", [m for m in METHODS if m.startswith(("gaussian", "sphere"))])
def test_smoothing_is_unbiased_for_the_smoothed_function(method: str) -> None:
    """phi = (a.x)^3: smoothed, 3 a ((a.x)^2 + sigma^2 |a|^2 E[b_1^2]), with b normal or uniform in the ball."""
    a, x = torch.tensor([1.0, -0.5, 0.2], dtype=torch.float64), torch.tensor([0.3, 0.1, -0.4], dtype=torch.float64)
    sigma, n, m = 0.7, 3, 4000
    spread = 1.0 if method.startswith("gaussian") else 1 / (n + 2)
    exact = 3 * a * ((a @ x) ** 2 + sigma**2 * (a @ a) * spread)
    plain = 3 * a * (a @ x) ** 2
    draws = [draw_directions(method, n, m, generator(k)) for k in range(50)]
    found = torch.stack([estimate_gradient(lambda p: (p @ a) ** 3, x, method, each, sigma) for each in draws])
    error = found.std(0) / math.sqrt(50)
    assert bool(((found.mean(0) - exact).abs() < 4 * error).all())
    assert float(((found.mean(0) - plain).abs() / error).max()) > 10  # the plain gradient is told apart


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_quadratic_error_is_the_measured_error(method: str, noise: float) -> None:
    n, sigma, rng = 4, 0.3, generator(5, "quadratic")
    hessian = torch.randn(n, n, generator=rng, dtype=torch.float64)
    hessian, gradient = hessian + hessian.T, torch.randn(n, generator=rng, dtype=torch.float64)

    def values(points: Tensor) -> Tensor:
        clean = points @ gradient + ((points @ hessian) * points).sum(-1) / 2
        return clean + noise * torch.randn(len(points), generator=rng, dtype=torch.float64)

    m = probes_for(method, n, 6)
    errors, zero = [], torch.zeros(n, dtype=torch.float64)
    for _ in range(3000):
        found = estimate_gradient(values, zero, method, draw_directions(method, n, m, rng), sigma)
        errors.append((found - gradient).square().sum())
    squares = torch.stack(errors)
    exact = quadratic_error(method, gradient, hessian, m, sigma, noise) ** 2
    assert abs(float(squares.mean()) - exact) < max(4.5 * float(squares.std()) / math.sqrt(3000), 1e-15)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n", "sigma", "noise"), [(2, 0.5, 0.0), (2, 0.05, 0.01), (10, 0.1, 0.0), (10, 0.5, 0.05)])
def test_error_bound_holds(method: str, n: int, sigma: float, noise: float) -> None:
    """phi = sum cos(x_i): gradient and Hessian are Lipschitz with constant 1. The noise is a bounded function of x."""
    x = torch.linspace(0.2, 1.4, n, dtype=torch.float64)
    gradient, m = -x.sin(), probes_for(method, n, 20)

    def values(points: Tensor) -> Tensor:
        return points.cos().sum(-1) + noise * (1000 * points.sum(-1)).sin().sign()

    found = torch.stack(
        [estimate_gradient(values, x, method, draw_directions(method, n, m, generator(k)), sigma) for k in range(200)]
    )
    errors = (found - gradient).square().sum(-1)
    bound = error_bound(method, n, m, sigma, float(gradient.norm()), 1.0, noise)
    assert float(errors.mean().sqrt()) <= bound
    if method.startswith(("difference", "interpolation")):  # these hold for every draw
        assert float(errors.max().sqrt()) <= bound


def test_error_bound_of_differences_is_attained() -> None:
    n, sigma, noise = 5, 0.2, 0.01

    def values(points: Tensor) -> Tensor:  # gradient 0 at 0, Lipschitz constant 1, the noise against us
        return points.square().sum(-1) / 2 + noise * (1 - 2 * (points == 0).all(-1).double())

    found = estimate_gradient(
        values, torch.zeros(n, dtype=torch.float64), "difference_forward", torch.eye(n, dtype=torch.float64), sigma
    )
    assert float(found.norm()) == pytest.approx(
        error_bound("difference_forward", n, n, sigma, 0.0, 1.0, noise), rel=1e-12
    )


@pytest.mark.parametrize(
    ("method", "probes"), [("gaussian", 4), ("difference_forward", 4), ("interpolation", 2), ("gaussian_forward", 0)]
)
def test_directions_that_cannot_be_drawn(method: str, probes: int) -> None:
    with pytest.raises(SettingError, match=r"method|probes"):
        draw_directions(method, 3, probes, generator(0))


def test_directions_have_the_shape_they_say() -> None:
    sphere = draw_directions("sphere_forward", 5, 8, generator(0))
    assert torch.allclose(sphere.norm(dim=1), torch.ones(8, dtype=torch.float64))
    basis = draw_directions("interpolation", 5, 12, generator(0))
    assert basis.shape == (12, 5)
    assert torch.allclose(basis[:5] @ basis[:5].T, torch.eye(5, dtype=torch.float64), atol=1e-12)


# --- Algorithm 2 ---------------------------------------------------------------------------------------------


@pytest.mark.equation("Algorithm 2")
def test_algorithm_2_step_rule() -> None:
    assert [round(Search().step(e), 12) for e in (1, 3, 99)] == [round(0.1 / math.sqrt(2), 12), 0.05, 0.01]


@pytest.mark.equation("Algorithm 2")
def test_algorithm_2_path_is_the_loop_as_printed() -> None:
    task, synthetic = small_task()
    search, path = Search(epochs=4, probes=5), synthetic
    found = algorithm_2(lambda s, epoch: bilevel_loss(s, task, UPPER), synthetic, search, seed=3)
    assert torch.equal(found[0], synthetic)
    for epoch in range(1, 5):
        v = draw_directions("gaussian_forward", 8, 5, generator(3, "algorithm 2", epoch)).view(5, 4, 2)
        slopes = (bilevel_loss(path + 0.1 * v, task, UPPER) - bilevel_loss(path[None], task, UPPER)) / 0.1
        path = path - 0.1 / math.sqrt(1 + epoch) * (slopes[:, None, None] * v).mean(0)
        assert torch.allclose(found[epoch], path, rtol=1e-9, atol=1e-12)


@pytest.mark.equation("Algorithm 2")
def test_algorithm_2_lowers_the_bilevel_loss() -> None:
    for seed in range(3):
        task, synthetic = small_task(seed, n=200, m=6)
        path = algorithm_2(lambda s, epoch: bilevel_loss(s, task, UPPER), synthetic, Search(epochs=60), seed)  # noqa: B023
        first, last = bilevel_loss(path[[0, -1]], task, UPPER).tolist()
        assert last < 0.8 * first


def test_algorithm_2_hands_each_epoch_one_call_and_is_the_same_again() -> None:
    seen: list[tuple[int, int]] = []

    def value(sets: Tensor, epoch: int) -> Tensor:
        seen.append((epoch, len(sets)))
        return sets.square().flatten(1).sum(1)

    start = torch.ones(2, 3, dtype=torch.float64)
    first = algorithm_2(value, start, Search(epochs=3, probes=4), 0)
    assert seen == [(1, 5), (2, 5), (3, 5)]
    assert torch.equal(algorithm_2(value, start, Search(epochs=3, probes=4), 0), first)
    assert not torch.equal(algorithm_2(value, start, Search(epochs=3, probes=4), 1), first)


def test_a_common_subsample_takes_the_noise_out_of_the_differences() -> None:
    task, synthetic = small_task(n=400, m=4)
    directions = draw_directions("gaussian_forward", 8, 30, generator(0))
    exact = estimate_gradient(lambda s: bilevel_loss(s, task, None), synthetic, "gaussian_forward", directions, 0.01)

    def errors(common: bool) -> float:
        found = []
        for k in range(40):
            rng = generator(k, "subsample")
            part = task.subsample(100, rng)

            def values(sets: Tensor, part: Task = part, rng: torch.Generator = rng) -> Tensor:
                parts = [part if common else task.subsample(100, rng) for _ in sets]
                return torch.cat([bilevel_loss(s[None], p, None) for s, p in zip(sets, parts, strict=True)])

            found.append((estimate_gradient(values, synthetic, "gaussian_forward", directions, 0.01) - exact).norm())
        return float(np.mean(found))

    assert errors(common=False) > 10 * errors(common=True)
