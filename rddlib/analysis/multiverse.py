"""How often a headline holds over the choices that a method leaves open: specifications, their curve, their shares.

A specification is one way to make every choice; its gain is the run with the risk term less the control that differs
from it in the term alone, at the same seed. Specifications share controls, so they are not independent: an interval
counts every control as one coin, however many runs are compared with it. Sources: Steegen et al. 2016 (multiverse);
Simonsohn, Simmons & Nelson 2020 (specification curve).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from ..base import SettingError
from ..distillation.settings import OF_THE_TERM
from ..experiments.experiment import Experiment
from .results import by_run

CHOICES = ("tail", "alpha", "scope", "space", "images a class", "network", "width")
CLEAR = 2.0  # a gain this many standard deviations between distillations from zero is called clear of them


@dataclass(frozen=True)
class Share:
    """A share in per cent of n specifications, with an interval that counts their controls."""

    percent: float
    low: float
    high: float
    n: int
    controls: int

    def __str__(self) -> str:
        return f"{self.percent:.0f} % of {self.n} [{self.low:.0f}, {self.high:.0f}]"


def specifications(frame: pd.DataFrame, tests: Sequence[str] = ("accuracy", "cluster_min")) -> pd.DataFrame:
    """One row a run with the term whose control is there: its choices, its gain on each test, and whether it is clear.

    `frame`: as from `results.tidy`. "<test> error" is the standard deviation of a gain between distillation seeds,
    pooled over the specifications that have several; nan where none has. Width is "whole" or "half", by the widest run
    of the same network.
    """
    runs = by_run(frame, tests)
    shared = [name for name in Experiment.declared() if name not in {"risk", *OF_THE_TERM}]
    runs["context"] = runs.groupby(shared, dropna=False).ngroup()  # all that a run shares with its control
    widest = runs.groupby("network")["width"].transform("max")
    runs["width"] = np.where(runs["width"] == widest, "whole", "half")
    is_control = runs["risk"] == "control"
    controls = runs[is_control].drop_duplicates("context", keep="last").set_index("context")
    found = runs[~is_control & runs["context"].isin(controls.index)]
    own = controls.loc[found["context"]]
    gains = {test: found[test].to_numpy() - own[test].to_numpy() for test in tests}
    found = found.rename(columns={"risk": "tail", "ipc": "images a class"})
    found = found[[*CHOICES, "seed", "key"]].assign(control=own["key"].to_numpy(), **gains)
    for test in tests:
        variances = found.groupby(list(CHOICES))[test].var(ddof=1)
        found[f"{test} error"] = float(np.sqrt(variances.mean()))
    return found.reset_index(drop=True)


def share(found: pd.DataFrame, test: str) -> Share:
    """The share of specifications with a gain above zero. Raises SettingError where there is none.

    95 % interval: Clopper & Pearson 1934 with the number of controls in the place of the number of runs. That is exact
    where all runs beside a control rise or fall with it, and too wide where they do not.
    """
    if found.empty:
        raise SettingError("found", "no specification", "at least one run with its control")
    n, part = found["control"].nunique(), float((found[test] > 0).mean())
    hits = part * n
    low = stats.beta.ppf(0.025, hits, n - hits + 1) if hits > 0 else 0.0
    high = stats.beta.ppf(0.975, hits + 1, n - hits) if hits < n else 1.0
    return Share(100 * part, 100 * float(low), 100 * float(high), len(found), n)


def clear(found: pd.DataFrame, test: str) -> tuple[int, int]:
    """How many gains lie above zero, and how many below, by more than twice what scatters between distillations."""
    ratio = found[test] / found[f"{test} error"]
    return int((ratio > CLEAR).sum()), int((ratio < -CLEAR).sum())


def by_choice(found: pd.DataFrame, test: str) -> pd.DataFrame:
    """For each choice and level: specifications, mean gain in points, and the share above zero in per cent."""
    rows = {}
    for choice in CHOICES:
        for level, group in found.groupby(choice):
            above = 100 * float((group[test] > 0).mean())
            rows[choice, str(level)] = {"n": len(group), "mean gain": group[test].mean(), "above 0 (%)": above}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["choice", "level"])


def importance(found: pd.DataFrame, test: str) -> pd.Series:
    """Difference in points between the best and the worst level of each choice, largest first; 0 where there is one."""
    means = by_choice(found, test)["mean gain"].groupby(level="choice", sort=False)
    return (means.max() - means.min()).sort_values(ascending=False)
