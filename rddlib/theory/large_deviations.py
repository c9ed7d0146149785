"""Large deviations of empirical losses: exact rates, rare-event simulation, disappointment, CVaR concentration.

Rates are in nats a sample. An alphabet is a finite list of atoms with law p (K,); `frequencies` (..., K) are empirical
distributions on it. Continuous bounded losses appear through the uniform law, whose tilts are explicit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, linprog, minimize
from scipy.special import gammaln, logsumexp, xlogy

from ..base import SettingError, check_choice
from .f_divergence import Array

Event = Callable[[Array], NDArray[np.bool_]]  # frequencies (B, K) -> whether the event occurs, (B,)
SIDES = ("over", "under")


def relative_entropy(q: Array, p: Array) -> Array:
    """D(q || p) = sum q log(q / p) in nats, over the last axis; infinite where q has mass and p has none."""
    with np.errstate(divide="ignore"):
        return np.asarray((xlogy(q, q) - np.where(q > 0, q * np.log(p), 0)).sum(-1))


def mutual_information(joint: Array) -> float:
    """I(A; B) in nats of a pair with this joint law (K, M): the relative entropy to the product of its marginals.

    A function of the joint law, not of the two marginal laws: any two laws can be joined with I = 0.
    """
    product = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    return float(relative_entropy(joint.ravel(), product.ravel()))


# --- Sanov and Cramer --------------------------------------------------------------------------------------


def sanov_rate(p: Array, functions: Array, bounds: Array) -> tuple[float, Array]:
    """min { D(q || p) : E_q g_k >= b_k for all k } and its minimiser: Sanov's rate of that convex set.

    p (K,), functions (m, K), bounds (m,) -> rate, q (K,). The dual, max over lambda >= 0 of lambda . b - log E_p
    exp(lambda . g), is concave with m variables. The rate of an empty set is infinite, q then NaN. With one function
    this is Cramer's theorem for its mean. Cost: a few dozen passes over m K.
    """
    inside = p > 0
    g, sides = functions[:, inside], np.concatenate([bounds, [0.0]])
    feasible = linprog(np.zeros(g.shape[1]), A_ub=-g, b_ub=-bounds, A_eq=np.ones((1, g.shape[1])), b_eq=[1.0])
    if feasible.status == 2:
        return np.inf, np.full(len(p), np.nan)
    centred = g - sides[:-1, None]

    def dual(multipliers: Array) -> tuple[float, Array]:
        exponents = multipliers @ centred + np.log(p[inside])
        total = logsumexp(exponents)
        return float(total), centred @ np.exp(exponents - total)

    options = {"ftol": 1e-15, "gtol": 1e-11, "maxiter": 2000}
    best = minimize(dual, np.zeros(len(g)), jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(g), options=options)
    q = np.zeros(len(p))
    exponents = best.x @ centred + np.log(p[inside])
    q[inside] = np.exp(exponents - logsumexp(exponents))
    return max(-float(best.fun), 0.0), q


def uniform_rate(threshold: float) -> tuple[float, float]:
    """Cramer's rate of {mean >= threshold} for losses uniform on [0, 1], and the tilt lambda that attains it.

    threshold in (1/2, 1), else SettingError.
    """
    if not 0.5 < threshold < 1:
        raise SettingError("threshold", threshold, "above 1/2 and below 1")
    tilt = brentq(lambda t: 1 / -np.expm1(-t) - 1 / t - threshold, 1e-6, 1 / (1 - threshold) + 1, xtol=1e-14)
    return tilt * threshold - float(np.log(np.expm1(tilt) / tilt)), tilt


def uniform_tail(threshold: float, n: int, draws: int, generator: np.random.Generator) -> Estimate:
    """log P(mean of n uniforms >= threshold), by sampling from the tilted law. Cost: draws * n uniforms."""
    _, tilt = uniform_rate(threshold)
    samples = np.log1p(generator.random((draws, n)) * np.expm1(tilt)) / tilt  # inverse of the tilted distribution
    total = samples.sum(1)
    log_weights = n * np.log(np.expm1(tilt) / tilt) - tilt * total
    return _estimate(np.where(total >= n * threshold, log_weights, -np.inf))


# --- probabilities of events about frequencies -------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A simulated log-probability with its 95 % interval, in nats; `hits` draws fell into the event."""

    log_probability: float
    low: float
    high: float
    hits: int

    def covers(self, log_probability: float) -> bool:
        """Whether a log-probability lies within the interval."""
        return self.low <= log_probability <= self.high


def types(n: int, size: int) -> NDArray[np.int64]:
    """All counts (N, size) of n items over an alphabet: N = C(n + size - 1, size - 1) rows."""
    if size == 1:
        return np.full((1, 1), n)
    rows = [np.insert(types(n - first, size - 1), 0, first, axis=1) for first in range(n + 1)]
    return np.concatenate(rows)


def exact_log_probability(event: Event, p: Array, n: int) -> float:
    """log P(event) for n draws from p, summed over all types: no simulation, for small alphabets only."""
    counts = types(n, len(p))
    log_mass = gammaln(n + 1) - gammaln(counts + 1).sum(1) + xlogy(counts, p).sum(1)
    return float(logsumexp(log_mass[event(counts / n)])) if event(counts / n).any() else -np.inf


def simulate(event: Event, p: Array, n: int, draws: int, generator: np.random.Generator) -> Estimate:
    """log P(event) by plain simulation with Wilson's interval; without a hit only the upper end is finite."""
    hits = int(event(generator.multinomial(n, p, draws) / n).sum())
    z2 = 1.96**2
    share = hits / draws
    centre, half = share + z2 / (2 * draws), 1.96 * np.sqrt(share * (1 - share) / draws + z2 / (4 * draws**2))
    with np.errstate(divide="ignore"):
        ends = np.log(np.maximum([share, centre - half, centre + half], 0) / [1, 1 + z2 / draws, 1 + z2 / draws])
    if not hits:
        return Estimate(-np.inf, -np.inf, float(ends[2]), 0)
    return Estimate(float(ends[0]), float(ends[1]), float(ends[2]), hits)


def importance(
    event: Event, p: Array, proposals: Array, n: int, draws: int, generator: np.random.Generator
) -> Estimate:
    """log P(event) under p, by draws from an equal mixture of proposals (M, K), each reweighted to p.

    Unbiased whatever the proposals, if together they give mass wherever p does; precise if one of them is the event's
    dominating law (`sanov_rate`). Interval: normal, for the mean of the weights. Cost: draws * M * K.
    """
    per_proposal = math.ceil(draws / len(proposals))
    counts = np.concatenate([generator.multinomial(n, q, per_proposal) for q in proposals])
    mixture = logsumexp([xlogy(counts, q).sum(1) for q in proposals], axis=0) - np.log(len(proposals))
    log_weights = xlogy(counts, p).sum(1) - mixture
    return _estimate(np.where(event(counts / n), log_weights, -np.inf))


def _estimate(log_weights: Array) -> Estimate:
    """The log of the mean of the weights, with a normal interval carried through the logarithm."""
    hits = int(np.isfinite(log_weights).sum())
    if not hits:
        return Estimate(-np.inf, -np.inf, np.inf, 0)
    log_mean = float(logsumexp(log_weights) - np.log(len(log_weights)))
    relative = np.exp(log_weights - log_mean)
    half = 1.96 * float(relative.std(ddof=1)) / np.sqrt(len(log_weights))
    return Estimate(log_mean, log_mean + float(np.log(max(1 - half, 1e-300))), log_mean + float(np.log1p(half)), hits)


def fitted_rate(sizes: Array, estimates: list[Estimate]) -> tuple[float, float]:
    """The rate I in log P = -n I - log(n) / 2 + a + b / n, by weighted least squares; and its 95 % half-width.

    The form is that of Bahadur & Rao (1960) for a half-space, with one more term. At least three sizes.
    """
    y = np.array([e.log_probability for e in estimates]) + np.log(sizes) / 2
    error = np.array([e.high - e.low for e in estimates]) / (2 * 1.96)
    design = np.stack([-sizes, np.ones_like(sizes), 1 / sizes], 1) / error[:, None]
    covariance = np.linalg.inv(design.T @ design)
    return float((covariance @ design.T @ (y / error))[0]), 1.96 * float(np.sqrt(covariance[0, 0]))


# --- out-of-sample disappointment (Eq. 6, 8, 10) -----------------------------------------------------------


def disappointment(predictor: Callable[[Array], Array], losses: Array, p: Array) -> Event:
    """The event of Eq. 6 and Eq. 10 for a fixed theta: the true mean loss exceeds what the predictor said.

    Ties within 1e-9 of the range of the losses count as no disappointment.
    """
    cost = float(p @ losses) - 1e-9 * float(np.ptp(losses))
    return lambda frequencies: cost > predictor(frequencies)


def kl_worst_sample(losses: Array, p: Array, rate: float) -> Array | None:
    """The law P' with D(P' || p) = rate at which the KL predictor is just right about p; None if there is none.

    It is p_i (eta - F_i) normalised. As eta falls to max F the divergence grows to a limit. Above it the samples that
    disappoint are farther from p than `rate`, and from log((max F - min F) / (max F - E F)) on there is none.
    """

    def tilted(log_slack: float) -> Array:
        weights = p * (losses.max() - losses + np.exp(log_slack))
        return np.asarray(weights / weights.sum())

    def excess(log_slack: float) -> float:
        return float(relative_entropy(tilted(log_slack), p)) - rate

    return None if excess(-40) < 0 else tilted(brentq(excess, -40, 40, xtol=1e-12))


def bernoulli_rate(predictor: Callable[[Array], Array], p: float, points: int = 200_001) -> float:
    """Rate of disappointment for a loss of 0 or 1 with mean p, for a predictor that increases with the frequency.

    inf { kl(x, p) : predictor(x) < p } over a grid of frequencies; infinite if no sample disappoints. predictor takes
    frequencies (B, 2) of (0, 1).
    """
    x = np.linspace(0, 1, points)
    low = predictor(np.stack([1 - x, x], 1)) < p - 1e-9
    rates = relative_entropy(np.stack([1 - x, x], 1)[low], np.array([1 - p, p]))
    return float(rates.min()) if low.any() else np.inf


def unseen_group_rate(masses: Array, losses: Array) -> float:
    """Eq. 7 with "the largest loss among the groups seen so far" as predictor: the exact rate -log(1 - mass of worst).

    masses, losses (q,). After N draws of groups, disappointment means that no group with the largest loss was drawn.
    """
    return float(-np.log1p(-masses[losses == losses.max()].sum()))


# --- concentration of CVaR (step 1 of the proof) -----------------------------------------------------------


def cvar_rate(losses: Array, p: Array, alpha: float, level: float, side: str) -> tuple[float, Array]:
    """Sanov's rate that the empirical upper-tail CVaR is >= level ("over") or <= level ("under"), and the laws.

    Returns rate and dominating laws (M, K), to be used as proposals. CVaR is the least of the Rockafellar-Uryasev
    functions at the atoms: "over" is one convex set, "under" a union of half-spaces, one an atom. Cost: one or K calls
    of `sanov_rate`. Raises SettingError for an unknown side.
    """
    check_choice("side", side, SIDES)
    functions = losses[:, None] + np.maximum(losses[None, :] - losses[:, None], 0) / alpha  # (K atoms, K)
    if side == "over":
        rate, q = sanov_rate(p, functions, np.full(len(p), level))
        return rate, q[None]
    answers = [sanov_rate(p, -row[None], np.array([-level])) for row in functions]
    finite = [a for a in answers if np.isfinite(a[0])]
    return (min(a[0] for a in finite), np.array([a[1] for a in finite])) if finite else (np.inf, p[None])


def cvar_bounds(n: int, error: float, alpha: float, side: str, tail: str = "upper") -> dict[str, float]:
    """Upper bounds on P(empirical CVaR >= CVaR + error) ("over") or <= CVaR - error ("under"), losses in [0, 1].

    For a range U divide the error by U. Each name is proved or cited on the theory page: `hoeffding` and `bernstein`
    (over, any law), `tail` (under, any law), `dkw` (both, any law), and `brown` as later work quotes Brown (2007),
    where the law is continuous. The lower tail is the upper tail of 1 - F, which exchanges the sides. error >= 0.
    """
    check_choice("side", side, SIDES)
    x = n * error**2
    dkw = np.exp(-2 * alpha**2 * x)
    bounds = {"dkw": min(1.0, 2 * dkw)}
    if (side == "over") == (tail == "upper"):
        bounds |= {"hoeffding": dkw, "bernstein": np.exp(-alpha * x / (2 + 2 * error / 3)), "brown": dkw}
    else:
        bounds["tail"] = min(1.0, np.exp(-alpha * x / 2) + np.exp(-2 * alpha * x))
        bounds["brown"] = min(1.0, 3 * np.exp(-alpha * x / 5))
    return {name: float(value) for name, value in bounds.items()}


# --- the assumptions -----------------------------------------------------------------------------------------


def visits(p: Array, steps: int, batch: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """The last step (K,) at which each atom of a finite population was in the batch, -1 if never (Assumption 3.2)."""
    seen = generator.multinomial(batch, p, steps) > 0  # (steps, K)
    return np.asarray(np.where(seen.any(0), steps - 1 - seen[::-1].argmax(0), -1))


def covering_radius(points: Array, samples: Array) -> float:
    """The largest distance from a point (N, d) of a support to the nearest of the samples (M, d)."""
    return float(np.sqrt(((points[:, None] - samples[None]) ** 2).sum(-1).min(1).max()))


def robustness_bound(cells: int, spread: float, width: float, n: int, delta: float) -> float:
    """Bound on |population - empirical| mean loss that holds with probability 1 - delta (Xu & Mannor, 2012).

    The sample space is cut into `cells`, within each of which the loss varies by at most `spread`; the loss has range
    `width`. spread + width sqrt((2 K log 2 + 2 log(1/delta)) / n), by the inequality of Bretagnolle, Huber and Carol.
    """
    return spread + width * float(np.sqrt((2 * cells * np.log(2) + 2 * np.log(1 / delta)) / n))
