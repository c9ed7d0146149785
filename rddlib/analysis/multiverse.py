"""How often a headline holds over the choices that a method leaves open: specifications, their curve, their shares.

A specification is one way to make every choice; its gain is the run with the risk term less the control that differs
from it in the term alone, at the same seed. Specifications share controls, so they are not independent: an interval
counts every control as one coin, however many runs are compared with it. Sources: Steegen et al. 2016 (multiverse);
Simonsohn, Simmons & Nelson 2020 (specification curve).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from ..base import SettingError
from ..experiments.experiment import Experiment
from ..experiments.records import Record

OF_THE_TERM = ("risk", "where", "alpha", "average", "worst", "scope", "space", "max_centres", "centre_choice",
               "centres_in_all", "risk_images", "worst_step", "divide_loss")  # fmt: skip
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


def specifications(records: Iterable[Record], tests: Sequence[str] = ("accuracy", "cluster_min")) -> pd.DataFrame:
    """One row a run with the term whose control is there: its choices, its gain on each test, and whether it is clear.

    "<test> error" is the standard deviation of a gain between distillation seeds, pooled over the specifications that
    have several; nan where none has. Width is "whole" or "half", by the widest run of the same network.
    """
    defaults = asdict(Experiment())  # a record made before a setting existed had that setting's default
    records = [replace(r, experiment=defaults | r.experiment) for r in records]
    controls = {_context(r.experiment): r for r in records if r.experiment["risk"] == "control"}
    widest: dict[str, int] = {}
    for r in records:
        network = r.experiment["network"]
        widest[network] = max(widest.get(network, 0), r.experiment["width"])
    rows = []
    for record in records:
        context = _context(record.experiment)
        if record.experiment["risk"] == "control" or context not in controls:
            continue
        control = controls[context]
        row = _choices(record.experiment, widest) | {"control": control.key, "key": record.key}
        for test in tests:
            a, b = (np.asarray(r.metrics[test], dtype=np.float64) for r in (record, control))
            row[test] = float(a.mean() - b.mean())
        rows.append(row)
    found = pd.DataFrame(rows, columns=[*CHOICES, "seed", "control", "key", *tests])
    for test in tests:
        variances = found.groupby(list(CHOICES))[test].var(ddof=1)
        found[f"{test} error"] = float(np.sqrt(variances.mean()))
    return found


def _context(settings: dict[str, Any]) -> str:
    """All that a run shares with its control."""
    return json.dumps({k: v for k, v in settings.items() if k not in OF_THE_TERM}, sort_keys=True)


def _choices(settings: dict[str, Any], widest: dict[str, int]) -> dict[str, Any]:
    return {
        "tail": settings["risk"], "alpha": settings["alpha"], "scope": settings["scope"], "space": settings["space"],
        "images a class": settings["ipc"], "network": settings["network"],
        "width": "whole" if settings["width"] == widest[settings["network"]] else "half", "seed": settings["seed"],
    }  # fmt: skip


def share(found: pd.DataFrame, test: str, level: float = 0.95) -> Share:
    """The share of specifications with a gain above zero. Raises SettingError where there is none.

    Interval: Clopper & Pearson 1934 with the number of controls in the place of the number of runs. That is exact where
    all runs beside a control rise or fall with it, and too wide where they do not.
    """
    if found.empty:
        raise SettingError("found", "no specification", "at least one run with its control")
    n, part = found["control"].nunique(), float((found[test] > 0).mean())
    tail, hits = (1 - level) / 2, part * n
    low = stats.beta.ppf(tail, hits, n - hits + 1) if hits > 0 else 0.0
    high = stats.beta.ppf(1 - tail, hits + 1, n - hits) if hits < n else 1.0
    return Share(100 * part, 100 * float(low), 100 * float(high), len(found), n)


def clear(found: pd.DataFrame, test: str) -> tuple[int, int]:
    """How many gains lie above zero, and how many below, by more than twice what scatters between distillations."""
    ratio = found[test] / found[f"{test} error"]
    return int((ratio > CLEAR).sum()), int((ratio < -CLEAR).sum())


def by_choice(found: pd.DataFrame, test: str) -> pd.DataFrame:
    """For each choice and level: specifications, mean gain in points, and the share above zero in per cent."""
    rows = [
        {"choice": choice, "level": str(level), "n": len(group), "mean gain": float(group[test].mean()),
         "above 0 (%)": 100 * float((group[test] > 0).mean())}
        for choice in CHOICES for level, group in found.groupby(choice, sort=True)
    ]  # fmt: skip
    return pd.DataFrame(rows).set_index(["choice", "level"])


def importance(found: pd.DataFrame, test: str) -> pd.Series:
    """Difference in points between the best and the worst level of each choice, largest first; 0 where there is one."""
    means = by_choice(found, test)["mean gain"]
    spans = {c: float(means.loc[c].max() - means.loc[c].min()) for c in CHOICES}
    return pd.Series(spans, name=test).sort_values(ascending=False)


def in_words(found: pd.DataFrame, test: str, name: str) -> str:
    """One sentence: in how many specifications the term raises a test, how many are clear, what matters most."""
    if found.empty:
        return f"{name}: not run yet."
    above, below = clear(found, test)
    most = importance(found, test)
    gains = found[test]
    words = f"{name}: the term raises it in {share(found, test)} specifications, by {gains.median():+.1f} points at"
    words += f" the median (from {gains.min():+.1f} to {gains.max():+.1f}). Beyond twice the spread between"
    words += f" distillations, {above} lie above zero and {below} below."
    if most.iloc[0] > 0:
        words += f" The choice that moves the gain most is {most.index[0]}, by {most.iloc[0]:.1f} points."
    return words
