"""The population of Figure 1 with its groups, and logistic regression on it under every robust objective.

The loss is convex in theta, so each objective is a convex problem in three variables. `minimise` solves it by cutting
planes and returns a lower bound beside the value: every optimum here carries its own certificate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.special import expit

from ..base import SettingError
from .f_divergence import BALLS, Array, kl_predictor, worst_case, worst_group


@dataclasses.dataclass(frozen=True)
class Fit:
    """A minimiser with its certificate: `value` is attained at `theta`, and no theta in the box is below `bound`."""

    theta: Array
    value: float
    bound: float


def minimise(
    objective: Callable[[Array], tuple[float, Array]], start: Array, box: float, gap: float = 1e-6, steps: int = 400
) -> Fit:
    """Minimise a convex function over a box by Kelley's cutting planes.

    `objective` returns a value and a subgradient; `start` (d,); the box is |theta_i| <= box. Stops when the best value
    and the lower bound of the model are within `gap`; raises RuntimeError if `steps` do not suffice. Smooth or not, it
    makes no difference to the method. Cost: one evaluation and one linear program in d + 1 variables a step.
    """
    d = len(start)
    theta = start.astype(float)
    best = Fit(start, np.inf, -np.inf)
    rows = np.empty((0, d + 1))
    sides = np.empty(0)
    for _ in range(steps):
        value, slope = objective(theta)
        if value < best.value:
            best = dataclasses.replace(best, theta=theta, value=value)
        rows = np.vstack([rows, np.append(slope, -1.0)])  # value + slope . (x - theta) <= t
        sides = np.append(sides, slope @ theta - value)
        model = linprog(np.append(np.zeros(d), 1.0), A_ub=rows, b_ub=sides, bounds=[(-box, box)] * d + [(None, None)])
        best = dataclasses.replace(best, bound=max(best.bound, float(model.fun)))
        if best.value - best.bound <= gap:
            return best
        theta = model.x[:d]
    raise RuntimeError(f"no certificate within {gap} after {steps} cutting planes: gap {best.value - best.bound:.2g}")


@dataclasses.dataclass(frozen=True)
class Population:
    """A finite population for binary classification: atoms with features, label, group and mass."""

    features: Array  # (n, d), the first column constant
    labels: Array  # (n,), -1 or 1
    groups: NDArray[np.int64]  # (n,)
    masses: Array  # (n,), they sum to 1
    noisy: NDArray[np.bool_]  # (n,), whether the label is one that noise has flipped

    def losses(self, theta: Array) -> Array:
        """Logistic loss of each atom, log(1 + exp(-y theta . x)), in nats; theta (d,) -> (n,)."""
        return np.logaddexp(0, -self.labels * (self.features @ theta))

    def errors(self, theta: Array) -> Array:
        """Zero-one loss of each atom; a score of 0 counts as an error."""
        wrong = self.labels * (self.features @ theta) <= 0
        return wrong.astype(float)

    def pull_back(self, theta: Array, weights: Array) -> Array:
        """Gradient of weights . losses in theta: with worst-case weights, a subgradient of the robust objective."""
        slopes = -self.labels * expit(-self.labels * (self.features @ theta))
        return np.asarray((weights * slopes) @ self.features)


def fit(population: Population, method: str, radius: float = 0.0, gap: float = 1e-6) -> Fit:
    """min over theta of a robust logistic loss on a population, with certificate (Eq. 1 and Eq. 4).

    method: ``erm`` (mean loss), ``group`` (worst group mean), or a ball (`kl`, `chi2`, `cvar`) of the given radius.
    theta is searched in |theta_i| <= 30. Raises SettingError for an unknown method.
    """
    if method not in ("erm", "group", *BALLS):
        raise SettingError("method", method, "erm, group, " + ", ".join(BALLS))

    def objective(theta: Array) -> tuple[float, Array]:
        losses = population.losses(theta)
        if method == "erm":
            value, q = float(population.masses @ losses), population.masses
        elif method == "group":
            value, q = worst_group(losses, population.masses, population.groups)
        else:
            value, q = worst_case(losses, population.masses, method, radius)
        return value, population.pull_back(theta, q)

    return minimise(objective, np.zeros(population.features.shape[1]), 30.0, gap)


def figure1_population(rare: float = 0.05, noise: float = 0.08, step: float = 0.1) -> Population:
    """Figure 1 as a population on D = [-2, 2] x [-1, 1] with groups c1 (left), c2 (right) and a rare, anomalous c3.

    c3 is the square [1.2, 1.8] x [-0.9, -0.3]; c2 is the rest of the right half, a union of rectangles. Mass within a
    group is even; c1 and c2 share what c3 leaves in equal parts. In c1 and c2 the label is the sign of x2, flipped
    with probability `noise`; in c3 it is always +1, against that rule. Atoms are the centres of a grid of cells of
    side `step`, one for each label, so that expectations are sums and nothing is sampled. Raises SettingError for rare
    outside (0, 1) or noise outside [0, 0.5).
    """
    if not 0 < rare < 1:
        raise SettingError("rare", rare, "a mass in (0, 1)")
    if not 0 <= noise < 0.5:
        raise SettingError("noise", noise, "a probability in [0, 0.5)")
    x1, x2 = (a.ravel() for a in np.meshgrid(_centres(-2, 2, step), _centres(-1, 1, step)))
    groups = np.where(x1 < 0, 0, 1)
    groups[(abs(x1 - 1.5) < 0.3) & (abs(x2 + 0.6) < 0.3)] = 2
    share = np.array([(1 - rare) / 2, (1 - rare) / 2, rare])
    density = (share / np.bincount(groups))[groups]
    rule = np.where(groups == 2, 1.0, np.sign(x2))
    flipped = np.where(groups == 2, 0.0, noise)
    features = np.stack([np.ones_like(x1), x1, x2], 1)
    masses = np.concatenate([density * (1 - flipped), density * flipped])
    kept = masses > 0
    return Population(
        features=np.vstack([features, features])[kept],
        labels=np.concatenate([rule, -rule])[kept],
        groups=np.concatenate([groups, groups])[kept],
        masses=masses[kept],
        noisy=np.repeat([False, True], len(x1))[kept],
    )


def synthetic_for(theta: Array) -> Population:
    """A synthetic set S of nine points, on three spots, whose logistic fit theta*(S) is exactly theta.

    It shows that the lower level of Eq. 3 excludes nothing here, so that Eq. 3 and Eq. 4 have the same optimal value.
    On two spots the score is log 2 and two labels of three are +1; on the third it is -log 2 and one of three is: the
    gradient vanishes at theta, and the spots are affinely independent, so the minimiser is unique. theta (3,) is
    (constant, x1, x2) with a slope that is not zero, else SettingError.
    """
    slope = float(np.hypot(*theta[1:]))
    if slope < 1e-9:
        raise SettingError("theta", theta.tolist(), "a model whose score depends on x")
    normal = theta[1:] / slope
    along = np.array([-normal[1], normal[0]])
    spots = [(np.log(2) - theta[0]) / slope * normal + side * along for side in (-1, 1)]
    spots.append((-np.log(2) - theta[0]) / slope * normal)
    features = np.column_stack([np.ones(9), np.repeat(spots, 3, axis=0)])
    labels = np.array([1.0, 1, -1, 1, 1, -1, 1, -1, -1])
    return Population(features, labels, np.zeros(9, dtype=np.int64), np.full(9, 1 / 9), np.zeros(9, dtype=bool))


def data_driven_values(
    population: Population, theta: Array, counts: NDArray[np.int64], rate: float, synthetic: Population | None = None
) -> Array:
    """The inner problem of Eq. 5 and Eq. 9 for each group: sup { E F : D(S + Q_N || Q') <= rate }, shape (q,).

    counts (n,): how often each atom of the population was drawn; the atoms of a group, seen or not, and those of the
    synthetic set are the alphabet. The relative entropy stands where the paper says mutual information, with the
    sample first, as in A.1.2. rate = 0 gives the plain mean over the synthetic set and the group's sample.
    """
    losses = population.losses(theta)
    extra = np.empty(0) if synthetic is None else synthetic.losses(theta)
    values = []
    for group in range(population.groups.max() + 1):
        inside = population.groups == group
        seen = np.concatenate([counts[inside], np.ones(len(extra))])
        alphabet, frequencies = np.concatenate([losses[inside], extra]), seen / seen.sum()
        values.append(float(frequencies @ alphabet if rate == 0 else kl_predictor(frequencies, alphabet, rate)))
    return np.array(values)


def _centres(low: float, high: float, step: float) -> Array:
    return np.asarray(low + step * (np.arange(round((high - low) / step)) + 0.5), dtype=np.float64)
