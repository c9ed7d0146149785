"""How many distillation seeds a comparison needs: spread within and between distillations, and the power of pairing.

A pilot gives the spread, with the interval that so small a pilot deserves; from it come the seeds that a gain needs and
the gain that a number of seeds can see. Sources: Searle, Casella & McCulloch 1992, chapter 3 (components of variance);
Cohen 1988, chapter 2 (power of the paired t test); Browne 1995 (limits of a pilot's variance in planning); Cochran
1977, section 10.6 (how to divide a budget between the two levels).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats

from ..base import SettingError

MOST_SEEDS = 10_000  # beyond it a comparison is called out of reach
WANTED = 0.8  # probability with which a gain is to be found


@dataclass(frozen=True)
class Pilot:
    """Spread of a pilot of A arms, D distillation seeds each, E trainings on every set; in the units of its values.

    `between`: standard deviation of the true means of distillations of one arm. `within`: of trainings on one set;
    `unshared`: the part of it that is left between arms whose trainings of the same number have the same seed, as
    `evaluate` gives them. `paired`: of the difference of two arms at one seed, each arm a mean of `trainings`
    trainings; pairing takes off what a seed does to all arms alike.
    """

    between: float
    within: float
    unshared: float
    paired: float
    paired_df: int
    trainings: int
    arms: int
    seeds: int

    def difference(self, trainings: int | None = None) -> float:
        """`paired`, were each set judged by that many trainings."""
        if trainings is None:
            return self.paired
        return math.sqrt(self.interaction**2 + 2 * self.unshared**2 / trainings)

    @property
    def interaction(self) -> float:
        """The part of `paired` that no number of trainings takes away: what one seed does to one arm alone."""
        return math.sqrt(max(self.paired**2 - 2 * self.unshared**2 / self.trainings, 0.0))

    def limits(self) -> tuple[float, float]:
        """95 % interval of `paired`: chi-square with `paired_df` degrees of freedom. Few seeds give a wide one."""
        low, high = self.paired * np.sqrt(self.paired_df / stats.chi2.ppf([0.975, 0.025], self.paired_df))
        return float(low), float(high)


def pilot(tables: Sequence[ArrayLike]) -> Pilot:
    """The spread of a pilot: for each arm values (D, E), rows of the same distillation seeds, at least two arms.

    Mean squares of the two-way layout arms x seeds with E replicates: the residual, arms by seeds, is that of paired
    differences with (A - 1)(D - 1) degrees of freedom. Raises SettingError where the arms do not share D and E.
    """
    arms = [np.asarray(t, dtype=np.float64) for t in tables]
    if len(arms) < 2 or len({a.shape for a in arms}) != 1 or arms[0].ndim != 2 or min(arms[0].shape) < 2:
        raise SettingError(
            "tables", [a.shape for a in arms], "two arms or more, of the same (seeds, trainings), 2 each"
        )
    values = np.stack(arms)  # (A, D, E)
    a, d, e = values.shape
    means = values.mean(2)
    within = float(values.var(axis=2, ddof=1).mean())
    between = max(float(means.var(axis=1, ddof=1).mean()) - within / e, 0.0)
    residual = means - means.mean(1, keepdims=True) - means.mean(0, keepdims=True) + means.mean()
    df = (a - 1) * (d - 1)
    own = values - values.mean(2, keepdims=True) - values.mean(0, keepdims=True) + values.mean((0, 2), keepdims=True)
    unshared = math.sqrt(float((own**2).sum()) / ((a - 1) * (e - 1) * d))
    paired = math.sqrt(2 * float((residual**2).sum()) / df)
    return Pilot(math.sqrt(between), math.sqrt(within), unshared, paired, df, e, a, d)


def power(gain: float, sd: float, seeds: int, level: float = 0.05) -> float:
    """Probability that the two-sided paired t test at `level` finds a true `gain`, in that direction.

    sd: of the paired differences, in the units of the gain. A one-sided test has half its two-sided level. Noncentral
    t with seeds - 1 degrees of freedom.
    """
    if not sd > 0 or not math.isfinite(gain):
        raise SettingError("sd", sd, "a spread above 0, and a finite gain")
    threshold = stats.t.ppf(1 - level / 2, seeds - 1)
    return float(stats.nct.sf(threshold, seeds - 1, abs(gain) * math.sqrt(seeds) / sd))


def seeds_needed(gain: float, sd: float) -> int | None:
    """The fewest distillation seeds, at least 2, with which `power` reaches 0.8; None beyond 10,000."""
    if gain == 0 or power(gain, sd, MOST_SEEDS) < WANTED:
        return None
    return bisect.bisect_left(range(MOST_SEEDS), WANTED, lo=2, key=lambda seeds: power(gain, sd, seeds))


def seeds_interval(found: Pilot, gain: float) -> tuple[int | None, ...]:
    """Seeds needed at the pilot's spread, and at the lower and the upper limit of that spread."""
    return tuple(seeds_needed(gain, sd) for sd in (found.paired, *found.limits()))


def detectable(sd: float, seeds: int) -> float:
    """The smallest gain that the test finds with probability 0.8, in the units of sd."""
    high = 1.0
    while power(high, 1.0, seeds) < WANTED:
        high *= 2
    return sd * float(optimize.brentq(lambda gain: power(gain, 1.0, seeds) - WANTED, 0.0, high))


def best_trainings(found: Pilot, set_cost: float, training_cost: float) -> int:
    """Trainings on each set that give the narrowest paired interval at a fixed budget, at least 1.

    Costs in one unit, say seconds: of one distillation, of one training with its tests. Cochran 1977, section 10.6:
    sqrt(cost of a set / cost of a training) x within / between, with the parts of the spread that pairing leaves.
    Where that part is nothing, every further training on the same set is as good as a set, and the pilot's number is
    returned: no budget should rest on a spread of zero found in a few seeds.
    """
    if found.interaction == 0:
        return found.trainings
    ratio = math.sqrt(2) * found.unshared / found.interaction
    return max(1, round(math.sqrt(set_cost / training_cost) * ratio))


def half_width(found: Pilot, trainings: int, set_cost: float, training_cost: float, budget: float) -> float:
    """Half the width of the 95 % interval of a difference that a budget buys, were the pilot's spread the true one.

    Budget and costs in one unit; each seed costs two sets with their trainings. nan where it buys fewer than two seeds.
    """
    seeds = int(budget // (2 * (set_cost + trainings * training_cost)))
    if seeds < 2:
        return float("nan")
    return float(stats.t.ppf(0.975, seeds - 1)) * found.difference(trainings) / math.sqrt(seeds)
