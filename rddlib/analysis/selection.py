"""The selection audit: what reading a training at its best step would add to a number, and to a comparison.

From one and the same training `evaluation.best_step` notes the last step, the step that validation images choose, and
the best on test. What a reading adds is its difference to the last step, in points of accuracy. All functions take
rows of one arm, as from `results.tidy`.
"""

from __future__ import annotations

import pandas as pd

from ..base import SettingError, numpy_generator
from ..stats import Interval, mean_interval
from .results import paired, table

READINGS = {"last": "audit_last", "chosen": "audit_chosen", "best": "audit_best"}


def readings(rows: pd.DataFrame, reading: str) -> pd.DataFrame:
    """Accuracy in per cent, seeds x trainings, at the "last" step, the "chosen" (by validation images) or the "best".

    Raises SettingError for runs without an audit.
    """
    values = table(rows, READINGS[reading])
    if len(values) < rows["seed"].nunique():
        raise SettingError("rows", f"{len(values)} seeds with an audit", "runs with eval_audit above 0")
    return values


def gain(a: pd.DataFrame, b: pd.DataFrame, reading_a: str = "last", reading_b: str = "last") -> Interval | None:
    """Accuracy of a less that of b, paired over the seeds both have, each at its own reading; None without a pair."""
    return paired(readings(a, reading_a), readings(b, reading_b))


def added(rows: pd.DataFrame, reading: str) -> Interval | None:
    """What a reading adds to the last step of the same trainings, with an interval over distillation seeds."""
    return gain(rows, rows, reading, "last")


def looks(rows: pd.DataFrame) -> dict[int, Interval | None]:
    """What the best on test adds to the last step, by the number of looks: the last k checkpoints of each training.

    From 1, the last step alone, to all. Looking more often can only add.
    """
    own = rows[rows["test"] == "audit_test"]
    curves = own.pivot(index=["seed", "training"], columns="group", values="value")  # (seeds x trainings, checkpoints)
    best = {k: curves.iloc[:, -k:].max(axis=1).unstack() for k in range(1, curves.shape[1] + 1)}
    return {k: paired(values, best[1]) for k, values in best.items()}


def over_trainings(rows: pd.DataFrame, test: str) -> Interval:
    """What the best of a set's trainings adds to their mean on a test, with an interval over distillation seeds.

    The other selection of published numbers: several networks are trained on one set and the largest value is told.
    """
    values = table(rows, test)
    return mean_interval(values.max(axis=1) - values.mean(axis=1))


def expected_best(error: float, looks: int) -> float:
    """The mean of the largest of `looks` independent errors of this standard deviation: what chance alone would add.

    Checkpoints of one training share their test images and most of their weights, so that chance adds less than this.
    """
    rng = numpy_generator(0, "looks", looks)
    return error * float(rng.standard_normal((20000, looks)).max(1).mean())
