"""Effects in an experiment of several factors whose cells are all run with the same seeds.

Cells x seeds is a block design: a value is the cell's mean, plus what its seed does to all cells, plus a rest. Every
effect is a contrast of cell means; its error comes from the rest of *all* cells, which is what a factorial buys: with
ten cells and three seeds there are eighteen degrees of freedom instead of two (Box, Hunter & Hunter 2005, chapters 4
and 5). Runs that are missing leave holes; an effect that the others do not determine is None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from ..base import SettingError
from . import rules

Weights = dict[str, float]  # cell -> weight; the weights of a contrast sum to 0


@dataclass(frozen=True)
class Effect:
    """A contrast of cell means: estimate, interval, two-sided p of "none", seeds behind it, degrees of freedom."""

    mean: float
    low: float
    high: float
    p: float
    seeds: int
    df: int

    def __str__(self) -> str:
        if not np.isfinite(self.low):
            return f"{self.mean:+.1f} (no interval)"
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


def table(frame: pd.DataFrame, test: str) -> pd.DataFrame:
    """Cells x seeds of a test: the mean over the trainings of a run, nan where there is none.

    `frame`: as from `results.tidy`, with a column `cell`, '' for a run that belongs to none. Raises SettingError if two
    runs claim one cell and seed.
    """
    own = frame[(frame["test"] == test) & (frame["cell"] != "")]
    each = own.groupby(["cell", "seed"], sort=False)
    runs = each["key"].nunique()
    if (runs > 1).any():
        raise SettingError("cell and seed", runs.index[runs > 1][0], "a cell of its own for each run of a seed")
    return each["value"].mean().unstack(sort=False).sort_index(axis=1)


def contrast(high: Sequence[str], low: Sequence[str]) -> Weights:
    """The mean of some cells less the mean of others: a main effect where all else is balanced between them."""
    return {cell: 1 / len(high) for cell in high} | {cell: -1 / len(low) for cell in low}


@dataclass(frozen=True)
class Fit:
    """Least squares of cells + seeds, with the spread of the rest; `df` 0 where nothing is left to estimate it."""

    table: pd.DataFrame  # cells x seeds, nan where there is no run
    design: NDArray[np.float64]  # (n, cells + seeds) of zeros and ones
    solved: NDArray[np.float64]  # its pseudoinverse
    values: NDArray[np.float64]  # (n,)
    sd: float
    df: int

    def effect(self, weights: Mapping[str, float]) -> Effect | None:
        """A contrast with its 95 % interval; None where the runs that there are do not determine it."""
        cells = list(weights)
        if not set(cells) <= set(self.table.index):
            return None
        wanted = np.zeros(self.design.shape[1])
        wanted[self.table.index.get_indexer(pd.Index(cells))] = list(weights.values())
        estimator = wanted @ self.solved  # (n,): the effect is this combination of the values
        if not np.allclose(estimator @ self.design, wanted, atol=1e-8):
            return None
        mean = float(estimator @ self.values)
        error = self.sd * float(np.linalg.norm(estimator))
        seeds = int(self.table.loc[cells].notna().all().sum())  # that every cell of the contrast has
        if self.df < 1 or not np.isfinite(error):
            return Effect(mean, np.nan, np.nan, np.nan, seeds, self.df)
        half = float(stats.t.ppf(0.975, self.df)) * error
        p = float(2 * stats.t.sf(abs(mean) / error, self.df)) if error > 0 else float(mean == 0)
        return Effect(mean, mean - half, mean + half, p, seeds, self.df)

    def effects(self, weights: Mapping[str, Weights]) -> dict[str, Effect | None]:
        """Several contrasts by their names."""
        return {name: self.effect(own) for name, own in weights.items()}


def fit(values: pd.DataFrame) -> Fit:
    """Fit a table of cells x seeds, holes and all. Raises SettingError for an empty one."""
    cells, seeds = np.nonzero(values.notna().to_numpy())  # (n,) each: where there is a value
    if not len(cells):
        raise SettingError("values", "an empty table", "at least one value")
    design = np.hstack([np.eye(len(values.index))[cells], np.eye(len(values.columns))[seeds]])
    y = values.to_numpy(dtype=np.float64)[cells, seeds]
    solved: NDArray[np.float64] = np.linalg.pinv(design).astype(np.float64)
    rest = y - design @ (solved @ y)
    df = len(y) - round(float(np.trace(solved @ design)))  # the trace of a projection is its rank
    sd = float(np.sqrt(rest @ rest / df)) if df > 0 else float("nan")
    return Fit(values, design, solved, y, sd, max(df, 0))


def holm(effects: Mapping[str, Effect | None]) -> dict[str, bool]:
    """Which effects stand when all are looked at together: Holm 1979, family-wise error 5 %.

    Effects that are None, or have no interval, do not stand and do not count among those looked at.
    """
    known = {name: effect.p for name, effect in effects.items() if effect is not None and np.isfinite(effect.p)}
    adjusted = rules.holm(known)
    return {name: adjusted.get(name, 1.0) <= 0.05 for name in effects}


def by_seed(values: pd.DataFrame, weights: Mapping[str, float]) -> pd.Series:
    """A contrast at each seed that has all of its cells: the dots behind an effect."""
    if not set(weights) <= set(values.index):
        return pd.Series(dtype=float)
    return values.loc[list(weights)].mul(pd.Series(weights), axis=0).sum(skipna=False).dropna()
