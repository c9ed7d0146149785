"""The one reader of records: a tidy table of settings x seed x training x test -> value, to be grouped and pivoted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from ..base import SettingError
from ..experiments import grid as grids
from ..experiments.experiment import Experiment
from ..experiments.records import Record, Store, known_records

FACTS = ("_sizes", "_names", "_steps")  # of the test set or of the recipe, not of a training
COLUMNS = ("key", "set_key", "training", "test", "group", "value")


def results(
    grid: str | Sequence[str] | None = None, scale: str | None = None, store: Store | None = None, **settings: Any
) -> pd.DataFrame:
    """Every number of the records, one row each: all settings, then `training`, `test`, `group`, `value`.

    `grid`: names of grids in data/grids (or .toml files) whose runs are wanted, at `scale` (default laptop); without it
    all records of `store`, or those of `scale`. `store`: by default the usual one, and the records of the book, which
    come with the library. `settings`: keep the runs with these values, a list meaning any of them, e.g.
    ``results("table1", "laptop", ipc=10, risk=["control", "upper"])``. A setting that a record is too old to hold has
    its default.

    `training` counts the networks trained on one set; `group` is the class or cluster of a value, missing where the
    value is of all test images; accuracies are in per cent. Rows are in order of key, test, training and group. What
    has no record has no row, and a damaged record is left out and named in the log. SettingError for an unknown
    setting, grid or scale.
    """
    records = known_records() if store is None else store.records()
    if unknown := sorted(set(settings) - set(asdict(Experiment()))):
        raise SettingError("setting", unknown[0], "a field of Experiment")
    if grid is None:
        settings |= {"scale": scale} if scale else {}
    else:
        names = [grid] if isinstance(grid, str) else list(grid)
        keys = {job.key for job in grids.jobs(names, scale or "laptop")}
        records = [record for record in records if record.key in keys]
    frame = tidy(records)
    for name, wanted in settings.items():
        frame = frame[frame[name].isin(wanted if isinstance(wanted, list | tuple) else [wanted])]
    return frame.reset_index(drop=True)


def tidy(records: Iterable[Record]) -> pd.DataFrame:
    """The table of `results` for records in hand."""
    defaults = asdict(Experiment())
    rows = []
    for record in records:
        known = defaults | record.experiment | {"key": record.key, "set_key": record.set_key}
        for test, values in sorted(record.metrics.items()):
            rows += [known | row for row in _rows(test, values, known["eval_seeds"])]
    return pd.DataFrame(rows, columns=[*defaults, *COLUMNS])


def _rows(test: str, values: Any, trainings: int) -> list[dict[str, Any]]:
    """Rows of one metric: a number for each training, or a number for each training and group; else none."""
    if not isinstance(values, list) or len(values) != trainings or test.endswith(FACTS):
        return []
    if all(isinstance(v, int | float) for v in values):
        return [{"training": i, "test": test, "group": None, "value": float(v)} for i, v in enumerate(values)]
    if not test.endswith("_accuracy") or not all(isinstance(v, list) for v in values):
        return []
    return [
        {"training": i, "test": test, "group": g, "value": None if v is None else float(v)}
        for i, by_group in enumerate(values)
        for g, v in enumerate(by_group)
    ]


def by_seed(frame: pd.DataFrame, *settings: str) -> pd.DataFrame:
    """Means over the trainings of a set: one row for each combination of `settings`, test, group and seed."""
    keys = [*settings, "test", "group", "seed"]
    return frame.groupby(keys, dropna=False)["value"].mean().reset_index()
