"""Statistics for results nested in two levels: distillation seeds, and trainings inside each.

The unit of replication is the distillation seed. Numbers come in as arrays (D, E): D distillations, E evaluations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit  # Student's quantile alone: scipy.stats takes most of the import time of a run

from .base import SettingError, numpy_generator


@dataclass(frozen=True)
class Interval:
    """An estimate with a confidence interval; `n` is the number of distillation seeds behind it."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if not np.isfinite(self.low):
            return f"{self.mean:.1f} (one seed: no interval)"
        return f"{self.mean:.1f} [{self.low:.1f}, {self.high:.1f}]"


def mean_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Mean of values (D, E) or (D,) with Student's interval over distillation seeds, D - 1 degrees of freedom.

    Evaluations are averaged within each seed first: their spread is part of that of the means, so that it counts once.
    The interval is exact where the means are Gaussian, and wide where seeds are few. With one distillation there is
    no interval (nan).
    """
    if not 0 < level < 1:
        raise SettingError("level", level, "a value between 0 and 1")
    means = _table(values).mean(1)
    mean, d = float(means.mean()), len(means)
    if d == 1:
        return Interval(mean, float("nan"), float("nan"), 1)
    half = float(stdtrit(d - 1, 0.5 + level / 2) * means.std(ddof=1) / np.sqrt(d))
    return Interval(mean, mean - half, mean + half, d)


def paired_difference(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> Interval:
    """Mean of a - b with an interval, paired by distillation seed: rows of both (D, E) share a seed.

    Evaluations are averaged first: they are nested, and only the seed pairs them.
    """
    left, right = _paired(a, b)
    return mean_interval((left.mean(1) - right.mean(1))[:, None], level)


def effect_size(a: ArrayLike, b: ArrayLike) -> float:
    """Mean paired difference over the standard deviation of the differences (Cohen's d_z); nan for one seed.

    Errors as `paired_difference`.
    """
    left, right = _paired(a, b)
    gap = left.mean(1) - right.mean(1)
    return float(gap.mean() / gap.std(ddof=1)) if len(gap) > 1 and gap.std(ddof=1) > 0 else float("nan")


def minimum_null(accuracy: float, sizes: Sequence[int]) -> Interval:
    """Smallest group accuracy that sampling alone gives: every group has the same true `accuracy` (per cent).

    Returns the expected minimum over groups of the given sizes and the central 95 % of it; `n` is the number of
    groups. A cluster-min inside it says nothing about the groups. Model: independent draws.
    """
    if not 0 <= accuracy <= 100:
        raise SettingError("accuracy", accuracy, "a percentage between 0 and 100")
    counts = np.array([s for s in sizes if s > 0], dtype=np.int64)
    if not len(counts):
        raise SettingError("sizes", list(sizes), "at least one group with images")
    rng = numpy_generator(0, "minimum of groups", len(counts))
    lowest = (100 * rng.binomial(counts, accuracy / 100, size=(20_000, len(counts))) / counts).min(1)
    low, high = np.quantile(lowest, [0.025, 0.975])
    return Interval(float(lowest.mean()), float(low), float(high), len(counts))


def _paired(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    left, right = _table(a), _table(b)
    if len(left) != len(right):
        raise SettingError("b", f"{len(right)} seeds", f"as many distillation seeds as a has ({len(left)})")
    return left, right


def _table(values: ArrayLike) -> NDArray[np.float64]:
    """(D, E) floats; a flat list is D distillations of one evaluation each."""
    table = np.asarray(values, dtype=np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or table.size == 0 or not np.isfinite(table).all():
        allowed = "finite numbers of shape (seeds, evaluations), not empty"
        raise SettingError("values", f"array of shape {table.shape}", allowed)
    return table
