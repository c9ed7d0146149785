"""The one reader of records: a tidy table of settings x seed x training x test -> value, to be grouped and pivoted.

Levels and differences follow from it in one way: means over the trainings of a set, then an interval over seeds, two
arms paired by their seeds (`rddlib.stats`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from ..base import SettingError
from ..experiments import grid as grids
from ..experiments.experiment import Experiment
from ..experiments.records import Record, Store, known_records
from ..stats import Interval, mean_interval, minimum_null, paired_difference

FACTS = ("_sizes", "_names", "_steps")  # of the test set or of the recipe, not of a training
ABOUT = ("key", "set_key", "arm")  # beside the settings of a run
ORIGIN = ("seconds", "cpu s", "MB", "device", "torch", "commit", "code")
NUMBERS = ("training", "test", "group", "value")
ARM_NAMES = {
    "random": "random images",
    "first_n": "first images",
    "herding": "herded images",
    "mix": "mix start, not distilled",
    "full": "all data",
}
# What readers call methods, risk terms, networks and data sets; the columns of `results` keep the settings' own words.
METHODS = {"idc": "IDC", "glad": "GLaD", "dc": "DC", "dsa": "DSA", "dm": "DM", "kip": "KIP"}
RISKS = {"upper": "upper tail", "lower": "lower tail", "released": "as released", "literal": "as printed"}
NAMES = {
    **{"convnet": "ConvNet", "resnetap10": "ResNet-10", "resnet18": "ResNet-18", "vit": "ViT", "vgg11": "VGG-11"},
    **{"cifar10": "CIFAR-10", "svhn": "SVHN", "imagenet10": "ImageNet-10", "imagenette128": "Imagenette"},
}


def arm(settings: Mapping[Any, Any]) -> str:
    """The name of an arm of a comparison as readers say it, e.g. 'IDC, upper tail' or 'random images'."""
    method, risk = settings["method"], settings["risk"]
    if method == "foreign":
        return f"set {settings['set_sha256'][:8]}"
    if method in ARM_NAMES:
        return ARM_NAMES[method]
    alone = risk == "control" and method in ("dc", "dsa", "dm", "kip")
    return METHODS[method] if alone else f"{METHODS[method]}, {RISKS.get(risk, risk)}"


def results(
    grid: str | Sequence[str] | None = None,
    scale: str | None = None,
    store: Store | str | Path | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """Every number of the records, one row each: all settings, `arm`, then `training`, `test`, `group`, `value`.

    `grid`: names of grids in data/grids (or .toml files) whose runs are wanted, at `scale` (default laptop); without it
    all records of `store`, or those of `scale`. `store`: a Store or its folder; by default the usual one, and the
    records of the book, which come with the library. `settings`: keep the runs with these values, a list meaning any of
    them, e.g. ``results("table1", "laptop", ipc=10, risk=["control", "upper"])``. A setting that a record is too old to
    hold has its default.

    `training` counts the networks trained on one set; `group` is the class or cluster of a value (the checkpoint, in
    an audit), missing where the value is of all test images; accuracies are in per cent. Rows are in order of key,
    test, training and group. What has no record has no row, and a damaged record is left out and named in the log.
    SettingError for an unknown setting, grid or scale, and for a value that the setting cannot have.
    """
    records = known_records() if store is None else Store.of(store).records()
    unknown = sorted(set(settings) - set(asdict(Experiment())))
    if unknown:
        raise SettingError("setting", unknown[0], "a field of Experiment")
    if grid is None:
        settings |= {"scale": scale} if scale else {}
    else:
        names = [grid] if isinstance(grid, str) else list(grid)
        keys = {job.key for job in grids.jobs(names, scale or "laptop")}
        records = [record for record in records if record.key in keys]
    frame = tidy(records)
    for name, wanted in settings.items():
        each = wanted if isinstance(wanted, list | tuple) else [wanted]
        frame = frame[frame[name].isin([Experiment.checked({name: value})[name] for value in each])]
    return frame.reset_index(drop=True)


def tidy(records: Iterable[Record]) -> pd.DataFrame:
    """The table of `results` for records in hand, which keep their order."""
    records = list(records)
    numbers = []
    for place, record in enumerate(records):
        for test, values in sorted(record.metrics.items()):
            numbers += [(place, *row) for row in _numbers(test, values)]
    about = runs(records)[[*Experiment.declared(), *ABOUT]]
    rows = pd.DataFrame(numbers, columns=["place", *NUMBERS])
    return about.loc[rows.pop("place")].reset_index(drop=True).join(rows)


def runs(records: Iterable[Record]) -> pd.DataFrame:
    """One row a record: all settings, `key`, `set_key`, `arm`; what it cost, and where and by which code it was made.

    `seconds` of the clock and `cpu s` of the processor are those of all parts of the run, `MB` is its peak memory.
    """
    defaults = asdict(Experiment())
    rows = []
    for record in records:
        settings = defaults | record.experiment
        about = {"key": record.key, "set_key": record.set_key, "arm": arm(settings)}
        cost = {"seconds": sum(record.seconds.values()), "cpu s": sum(record.cpu_seconds.values())}
        made = {"MB": record.peak_memory_mb, "device": record.device, "torch": record.versions.get("torch", "")}
        code = {"commit": record.commit, "code": "current" if record.current else "stale"}
        rows.append(settings | about | cost | made | code)
    return pd.DataFrame(rows, columns=[*defaults, *ABOUT, *ORIGIN])


def histories(records: Iterable[Record]) -> pd.DataFrame:
    """What runs noted at each outer step, tidy: all settings, `key`, `outer` (from 1), `quantity`, `value`."""
    defaults = asdict(Experiment())
    rows = []
    for record in records:
        head = defaults | record.experiment | {"key": record.key}
        for outer, entry in enumerate(record.history, 1):
            rows += [head | {"outer": outer, "quantity": name, "value": value} for name, value in entry.items()]
    return pd.DataFrame(rows, columns=[*defaults, "key", "outer", "quantity", "value"])


def _numbers(test: str, values: Any) -> list[tuple[int, str, int | None, float | None]]:
    """(training, test, group, value) of one metric, which has a number or a list of numbers for each training."""
    if not isinstance(values, list) or test.endswith(FACTS):
        return []
    rows: list[tuple[int, str, int | None, float | None]] = []
    for training, value in enumerate(values):
        if isinstance(value, list):
            rows += [(training, test, group, v) for group, v in enumerate(value)]
        else:
            rows.append((training, test, None, value))
    return rows


def by_seed(frame: pd.DataFrame, *settings: str) -> pd.DataFrame:
    """Means over the trainings of a set: one row for each combination of `settings`, test, group and seed."""
    keys = [*settings, "test", "group", "seed"]
    return frame.groupby(keys, dropna=False)["value"].mean().reset_index()


def by_run(frame: pd.DataFrame, tests: Sequence[str]) -> pd.DataFrame:
    """One row a run: its settings and, for each of `tests`, the mean over its trainings, nan where it has none."""
    settings = [name for name in frame.columns if name not in NUMBERS]
    own = frame.drop_duplicates("key")[settings].reset_index(drop=True)
    return own.join(by_test(frame).reindex(columns=list(tests)), on="key")


def by_test(frame: pd.DataFrame) -> pd.DataFrame:
    """Runs x tests, indexed by key: means over the trainings of each run, of the tests that are of all test images."""
    return frame[frame["group"].isna()].groupby(["key", "test"])["value"].mean().unstack()


def table(frame: pd.DataFrame, test: str = "accuracy") -> pd.DataFrame:
    """Seeds x trainings of a test, seeds in order; empty where there is no value.

    Raises SettingError where several data sets, numbers of images a class or runs of one seed would be mixed: choose
    among the rows first.
    """
    own = frame[frame["test"] == test]
    kinds = own[["dataset", "ipc"]].drop_duplicates()
    if len(kinds) > 1 or own.duplicated(["seed", "training"]).any():
        given = "; ".join(f"{name}, IPC {ipc}" for name, ipc in kinds.itertuples(index=False))
        raise SettingError("rows", given, f"rows of one data set, IPC and run a seed for {test!r}")
    return own.pivot(index="seed", columns="training", values="value")


def level(frame: pd.DataFrame, test: str = "accuracy") -> Interval | None:
    """The mean of an arm with its interval over seeds; None where nothing has been run."""
    values = table(frame, test)
    return mean_interval(values) if len(values) else None


def cluster_null(records: Sequence[Record]) -> Interval | None:
    """The published cluster-min that sampling alone gives at the mean accuracy of runs, with their group sizes.

    None where there is no run, or its groups have no sizes.
    """
    sizes = records[0].metrics.get("group_sizes") if records else None
    accuracies = [value for record in records for value in record.metrics["accuracy"]]
    return minimum_null(fmean(accuracies), sizes) if sizes else None


def paired(left: pd.DataFrame, right: pd.DataFrame) -> Interval | None:
    """left - right, tables of seeds x trainings, over the seeds that both have; None where there is no such seed."""
    both = left.index.intersection(right.index)
    return paired_difference(left.loc[both], right.loc[both]) if len(both) else None


def difference(a: pd.DataFrame, b: pd.DataFrame, test: str = "accuracy") -> Interval | None:
    """An arm less another on one test, paired by seed; None where there is no pair."""
    return paired(table(a, test), table(b, test))
