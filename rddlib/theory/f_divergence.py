"""Worst cases of a loss over sets of distributions on finitely many atoms: balls, groups, and predictors.

Atoms have masses p that sum to 1. A ball of distributions around p, or a set of groups, turns the losses F of the
atoms into one number, sup { q . F : q in the set }, attained by a worst reweighting q. Each has a dual in one variable,
solved to rounding.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import logsumexp, softmax, xlogy

from ..base import SettingError, check_choice

Array = NDArray[np.float64]
Worst = tuple[float, Array]  # the value of a robust objective and the weights that attain it
BALLS = ("kl", "chi2", "cvar")


def ball_radius(ball: str, mass: float) -> float:
    """The radius at which a ball around P just contains P conditioned on an event of this mass.

    kl: -log(mass). chi2: 1 / mass - 1. cvar: the tail mass itself, the largest at which it does. Raises SettingError
    for another ball or a mass outside (0, 1].
    """
    check_choice("ball", ball, BALLS)
    if not 0 < mass <= 1:
        raise SettingError("mass", mass, "above 0 and at most 1")
    return float({"kl": -np.log(mass), "chi2": 1 / mass - 1, "cvar": mass}[ball])


def worst_case(losses: Array, masses: Array, ball: str, radius: float) -> Worst:
    """max { q . F } over a ball around the masses (Eq. 1, inner problem), and a maximiser q.

    losses (n,), masses (n,) summing to 1 -> value, q (n,). kl: sum q log(q/p) <= radius. chi2: sum (q - p)^2 / p <=
    radius (twice the f-divergence of Duchi & Namkoong for k = 2). cvar: q <= p / radius, i.e. CVaR of tail mass
    `radius`. Atoms without mass take no part. The dual is one-dimensional in each case and solved to rounding. Cost
    O(n log n) or some 50 passes over n. Raises SettingError for an unknown ball, a negative radius, or a tail mass
    outside (0, 1].
    """
    check_choice("ball", ball, BALLS)
    if not (0 < radius <= 1 if ball == "cvar" else radius >= 0):
        raise SettingError("radius", radius, "a tail mass in (0, 1] for cvar, else at least 0")
    inside = masses > 0
    if not inside.all():  # no ball here reaches an atom without mass
        q = np.zeros_like(masses)
        value, q[inside] = worst_case(losses[inside], masses[inside], ball, radius)
        return value, q
    shifted = losses - losses.max()
    at_top = masses[shifted == 0].sum()
    if ball == "cvar":
        q = _largest_share(losses, masses, radius)
    elif radius == 0 or np.ptp(losses) == 0:
        q = masses
    elif radius >= ball_radius(ball, float(min(at_top, 1.0))):
        q = np.where(shifted == 0, masses, 0) / at_top
    else:
        q = (_kl_weights if ball == "kl" else _chi2_weights)(shifted, masses, radius)
    return float(q @ losses), q


def worst_group(losses: Array, masses: Array, groups: NDArray[np.int64]) -> Worst:
    """max over groups of the mean loss within the group (Eq. 4, inner problem), and the weights of that group.

    losses, masses, groups (n,) -> value, q (n,): the masses conditioned on the worst group. An empty group takes no
    part.
    """
    means = group_means(losses, masses, groups)
    inside = groups == np.nanargmax(means)
    return float(np.nanmax(means)), np.where(inside, masses, 0) / masses[inside].sum()


def group_means(losses: Array, masses: Array, groups: NDArray[np.int64]) -> Array:
    """Mean loss within each group, E[F | group], shape (n_groups,); NaN for an empty one."""
    total = np.bincount(groups, masses)
    with np.errstate(invalid="ignore"):
        return np.bincount(groups, masses * losses) / np.where(total > 0, total, np.nan)


def zero_one_ball(error: float, ball: str, radius: float) -> float:
    """The ball's value for a loss of 0 or 1 with this error rate: increasing in the error, so it orders as ERM does.

    This is why a ball of f-divergence leaves the zero-one classifier where it was (Hu et al., 2018).
    """
    return worst_case(np.array([0.0, 1.0]), np.array([1 - error, error]), ball, radius)[0]


# --- predictors: a sup over distributions around observed frequencies ------------------------------------------


def kl_predictor(frequencies: Array, losses: Array, rate: float) -> Array:
    """The distributionally robust predictor of Van Parys et al.: sup { E_P F : D(P' || P) <= rate } (A.1.2).

    frequencies (..., K) of the estimate P', losses (K,) of the whole alphabet, seen or not -> (...). The estimate is
    the FIRST argument of the relative entropy, so P may put mass where nothing was seen. Dual: min over eta >= max F of
    eta - exp(-rate) exp(sum P' log(eta - F)), convex in eta; solved by bisection on its derivative, 80 passes. Raises
    SettingError for rate <= 0.
    """
    if rate <= 0:
        raise SettingError("rate", rate, "above 0")
    spread = np.ptp(losses) or 1.0
    gaps = (losses.max() - losses) / spread  # (K,), from 0 to 1
    low, high = np.full(frequencies.shape[:-1], -40.0), np.full(frequencies.shape[:-1], 40.0)  # log(eta - max F)

    def entropy(log_slack: Array) -> tuple[Array, Array]:
        distance = gaps + np.exp(log_slack)[..., None]
        mean_log = (frequencies * np.log(distance)).sum(-1)
        return mean_log, mean_log + np.log((frequencies / distance).sum(-1))  # the second is D(P' || P_eta)

    for _ in range(80):
        middle = (low + high) / 2
        too_far = entropy(middle)[1] > rate
        low, high = np.where(too_far, middle, low), np.where(too_far, high, middle)
    return np.asarray(losses.max() + spread * (np.exp(high) - np.exp(entropy(high)[0] - rate)))


def reverse_kl_predictor(frequencies: Array, losses: Array, rate: float) -> Array:
    """sup { E_Q F : D(Q || P') <= rate }: the same ball with the arguments exchanged, as Eq. 5 and 9 print it.

    Shapes as `kl_predictor`. Q cannot leave the support of the sample, so what was not seen does not exist. The
    maximiser is P' exp(t F) normalised; t by bisection, 80 passes. Raises SettingError for rate <= 0.
    """
    if rate <= 0:
        raise SettingError("rate", rate, "above 0")
    scaled = (losses - losses.max()) / (np.ptp(losses) or 1.0)
    with np.errstate(divide="ignore"):
        log_p = np.log(frequencies)
    low, high = np.full(frequencies.shape[:-1], -40.0), np.full(frequencies.shape[:-1], 40.0)  # log t

    def tilted(log_t: Array) -> tuple[Array, Array]:
        exponents = log_p + np.exp(log_t)[..., None] * scaled
        log_q = exponents - logsumexp(exponents, axis=-1, keepdims=True)
        q = np.exp(log_q)
        return q, (q * np.where(q > 0, log_q - log_p, 0)).sum(-1)

    with np.errstate(invalid="ignore"):
        for _ in range(80):
            middle = (low + high) / 2
            too_far = tilted(middle)[1] > rate
            low, high = np.where(too_far, low, middle), np.where(too_far, middle, high)
        return np.asarray(tilted(low)[0] @ losses)


def cvar_predictor(frequencies: Array, losses: Array, alpha: float, tail: str = "upper") -> Array:
    """CVaR of the empirical distribution, for many at once: frequencies (..., K), losses (K,) -> (...).

    alpha is the tail mass; the lower tail is the bracket of the paper's display over alpha.
    """
    order = np.argsort(-losses if tail == "upper" else losses, kind="stable")
    reached = frequencies[..., order].cumsum(-1)
    taken = np.diff(np.minimum(reached, alpha), prepend=0.0, axis=-1)
    return np.asarray(taken @ losses[order] / alpha)


def _largest_share(losses: Array, masses: Array, alpha: float) -> Array:
    order = np.argsort(-losses, kind="stable")
    taken = np.diff(np.minimum(masses[order].cumsum(), alpha), prepend=0.0)
    q = np.empty_like(masses)
    q[order] = taken / taken.sum()
    return q


def _kl_weights(shifted: Array, masses: Array, radius: float) -> Array:
    """q proportional to p exp(t F), with t such that the relative entropy is the radius."""
    log_p = np.log(masses)

    def excess(log_t: float) -> float:
        q = softmax(log_p + np.exp(log_t) * shifted)
        return float((xlogy(q, q) - q * log_p).sum()) - radius

    scale = np.log(np.ptp(shifted))
    log_t = brentq(excess, -40 - scale, 40 - scale, xtol=1e-13)
    return np.asarray(softmax(log_p + np.exp(log_t) * shifted))


def _chi2_weights(shifted: Array, masses: Array, radius: float) -> Array:
    """q proportional to p max(F - eta, 0), with eta such that the chi-square divergence is the radius."""

    def excess(log_depth: float) -> float:
        above = np.maximum(shifted + np.exp(log_depth), 0)
        return float(masses @ above**2 / (masses @ above) ** 2) - 1 - radius

    scale = np.log(np.ptp(shifted))
    log_depth = brentq(excess, scale - 30, scale + 30, xtol=1e-13)
    q = masses * np.maximum(shifted + np.exp(log_depth), 0)
    return np.asarray(q / q.sum())
