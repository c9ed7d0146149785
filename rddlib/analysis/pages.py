"""The runs that a page of the book shows: arms of a grid, the records there are, and what is missing said so.

A page asks a grid for its runs at a scale; what has no record becomes "not run yet", never a number.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from ..base import SettingError
from ..data import sources
from ..data.dataset import data_root
from ..data.looks import base_name
from ..data.sources import DataError
from ..experiments import grid
from ..experiments.experiment import MODES, Experiment, gather, identified, run
from ..experiments.grid import Job, Ledger, Tally
from ..experiments.records import Record, Store, StoreError
from ..stats import Interval, minimum_null
from .results import arm, difference, level, table, tidy

NOT_RUN, NOT_PLANNED = "not run yet", "not planned"
LIVE_RUNS = 12  # runs of a page that is computed live: less than a minute on two quiet cores
# Our data set -> the paper's, and what a reader must know where its number stands. {size} is that of the runs.
STAND_INS = {
    "cifar10": ("cifar10", "CIFAR-10"),
    "svhn": ("svhn", "SVHN"),
    "svhn_mini": ("svhn", "svhn_mini, 1,083 real SVHN digits, in the place of SVHN"),
    "imagenet10": ("imagenet10", "ImageNet-10"),
    "imagenette": ("imagenet10", "Imagenette at {size} px, in the place of ImageNet-10"),
    "imagenette128": ("imagenet10", "Imagenette at {size} px, in the place of ImageNet-10"),
    "digits": ("", "digits of 8 x 8 pixels, a trial run that the paper has no row for"),
    **{f"imagenet_{letter}": (f"imagenet_{letter}", f"ImageNet-{letter.upper()}") for letter in "abcde"},
}
# What a page of another data set keeps of the runs of a grid: all else comes from the presets.
KEPT = ("method", "ipc", "risk", "where", "alpha", "average", "worst", "eval_network", "seed")


def paper_name(dataset: str) -> str:
    """The paper's name of the data set that ours stands for; '' if it stands for none."""
    name = dataset.split(":")[0]
    return STAND_INS.get(name, (name if name.startswith("imagenet_") else "", ""))[0]


def title(experiment: Experiment) -> str:
    """A data set in words, stand-ins named: 'Imagenette at 64 px, in the place of ImageNet-10'."""
    words = STAND_INS.get(experiment.dataset, ("", experiment.dataset))[1]
    return words.format(size=experiment.size or 128)


# --- runs of a page ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seed alone: those planned, and of those made the records and their rows, by seed."""

    planned: tuple[Experiment, ...] = ()
    records: tuple[Record, ...] = ()
    rows: pd.DataFrame = field(default_factory=lambda: tidy([]))

    def seeds(self, test: str = "accuracy") -> list[int]:
        """The distillation seeds that have a record of this test."""
        return table(self.rows, test).index.tolist()

    def level(self, test: str = "accuracy") -> Interval | None:
        """The mean with its interval; None where nothing has been run."""
        return level(self.rows, test)

    def minus(self, other: Arm, test: str = "accuracy") -> Interval | None:
        """The difference to another arm, paired over the seeds that both have; None where there is no such pair."""
        return difference(self.rows, other.rows, test)

    def null(self) -> Interval | None:
        """The published cluster-min that sampling alone gives at this arm's accuracy, with its group sizes."""
        found = self.level()
        return minimum_null(found.mean, self.sizes()) if found and self.sizes() else None

    def sizes(self) -> list[int]:
        """Test images in each published group."""
        return list(self.records[0].metrics.get("group_sizes", [])) if self.records else []

    def text(self, test: str = "accuracy") -> str:
        """The cell of a table."""
        return cell(self.level(test), bool(self.planned))

    def count(self) -> str:
        """Seeds done of those planned, '3 of 5'."""
        return f"{len(self.records)} of {len(self.planned)}" if self.planned else ""


def cell(found: Interval | None, planned: bool = True, signed: bool = False) -> str:
    """An interval as the cell of a table; 'not run yet' where there is none, empty where none was planned."""
    if found is None:
        return NOT_RUN if planned else ""
    text = str(found)
    if not signed:
        return text
    _, _, interval = text.partition(" ")
    return f"{found.mean:+.1f} {interval}"


def shown(table: pd.DataFrame, columns: Iterable[str] | None = None) -> pd.DataFrame | None:
    """The rows and columns of a table of cells that hold a result; None where none does, which a page leaves out.

    `columns`: those whose cells decide about a row (default all). A gap that is left is a dash: a page says once what
    has not been run (`Page.missing`).
    """
    deciding = table if columns is None else table[list(columns)]
    gaps = (NOT_RUN, NOT_PLANNED, "")
    rows = table[~deciding.isin(gaps).all(axis=1)]
    kept = [name for name in rows if not rows[name].isin(gaps).all()]
    if rows.empty or not kept:
        return None
    return rows[kept].replace(NOT_RUN, "–")


def side(found: Interval | None) -> str:
    """On which side of zero a difference lies: 'above', 'below', 'not separated', 'no interval', or not run."""
    if found is None:
        return NOT_RUN
    if not np.isfinite(found.low):
        return "no interval"
    if found.low > 0:
        return "above"
    return "below" if found.high < 0 else "not separated"


@dataclass(frozen=True)
class Page:
    """The runs that a page shows and the records of those that have been made."""

    jobs: tuple[Job, ...]
    records: dict[str, Record]
    store: Store
    refused: dict[str, str] = field(default_factory=dict)  # key -> why it could not be run here

    @classmethod
    def of(cls, name: str, scale: str, dataset: str = "all", mode: str = "load", store: Store | None = None) -> Page:
        """The runs of a grid: "load" takes the records there are, "run" makes what is missing, most valuable first.

        "live" makes the most valuable ones at smoke scale, on digits unless `dataset` names others, in a folder that
        vanishes. `dataset`: "all", one of the grid's, or another, to which runs of the grid's first are carried over.
        """
        if mode not in MODES:
            raise SettingError("mode", mode, f"one of {', '.join(MODES)}")
        scale = "smoke" if mode == "live" else scale
        jobs = _chosen(name, scale, dataset)
        if mode == "live":
            jobs = jobs[:LIVE_RUNS]
            records, store = gather([job.experiment for job in jobs], mode, store, progress=False)
            return cls(tuple(jobs), {r.key: r for r in records}, store)
        store = store or Store()
        refused = _make([job.experiment for job in jobs], store) if mode == "run" else {}
        found = {job.key: store.find(job.key) for job in jobs}
        planned = {job.experiment.dataset for job in grid.jobs([name], scale)}
        if not any(found.values()) and dataset not in {"all", *STAND_INS, *planned}:
            sources.check_name(base_name(dataset), data_root())  # a typing error is not a page without numbers
        return cls(tuple(jobs), {k: r for k, r in found.items() if r is not None}, store, refused)

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Every number of the page's records (`results.tidy`)."""
        return tidy(self.records.values())

    def arm(self, **settings: Any) -> Arm:
        """The runs with these settings; one that is idle in a run (alpha under control) fits any value of it."""
        settings = Experiment.checked(settings)  # one that cannot be is not a run that is missing
        own = []
        for experiment in self.experiments:
            idle = experiment.idle()
            if all(name in idle or getattr(experiment, name) == value for name, value in settings.items()):
                own.append(experiment)
        kinds = {tuple(getattr(e, n) for n in _NAMES if n not in (*e.idle(), "seed")) for e in own}
        if len(kinds) > 1:
            raise SettingError("arm", settings, "settings that leave only the seed open")
        own.sort(key=lambda e: e.seed)
        made = [e.key for e in own if e.key in self.records]
        rows = self.rows[self.rows["key"].isin(made)]
        return Arm(tuple(own), tuple(self.records[key] for key in made), rows)

    @cached_property
    def experiments(self) -> tuple[Experiment, ...]:
        """The runs, in order of value."""
        return tuple(job.experiment for job in self.jobs)

    def values(self, name: str, **settings: Any) -> list[Any]:
        """The values of a setting over the runs with `settings`, smallest first, each once."""
        own = [e for e in self.experiments if all(getattr(e, n) == v for n, v in settings.items())]
        return sorted({getattr(e, name) for e in own})

    def datasets(self) -> dict[str, str]:
        """The data sets of the page, most valuable first, with their titles."""
        return {e.dataset: title(e) for e in self.experiments}

    def progress(self) -> pd.DataFrame:
        """What is done and what is left, a line a data set, with its price from earlier records."""
        ledger = Ledger(self.store)
        lines = {}
        for dataset, words in self.datasets().items():
            own = [job for job in self.jobs if job.experiment.dataset == dataset]
            done = sum(job.key in self.records for job in own)
            left = len(own) - done
            price = Tally.of(own, ledger).price() if left else "-"
            lines[words] = {"runs": len(own), "done": done, "left": left, "price of those left": price}
        return pd.DataFrame(lines).T.rename_axis("data")

    def provenance(self) -> pd.DataFrame:
        """Where the numbers come from, a line an arm of a data set: seeds, price, commits, the first digits of keys."""
        rows = [
            {
                "data": r.experiment["dataset"],
                "ipc": r.experiment["ipc"],
                "arm": arm(r.experiment),
                "network": r.experiment["eval_network"],
                "seed": r.experiment["seed"],
                "cpu s": sum(r.cpu_seconds.values()),
                "MB": r.peak_memory_mb,
                "commits": r.commit[:8],
                "keys": r.key[:8],
            }
            for r in self.records.values()
        ]
        if not rows:
            return pd.DataFrame()
        each = pd.DataFrame(rows).sort_values("seed").groupby(["data", "ipc", "arm", "network"])
        found = each[["cpu s", "MB"]].median().round().astype(int)
        found.insert(0, "seeds", each.size())
        for name in ("commits", "keys"):
            found[name] = each[name].agg(lambda values: " ".join(dict.fromkeys(values)))
        return found

    def missing(self) -> str:
        """How many runs are there of those planned, and why some could not be made."""
        done, planned = len(self.records), len(self.jobs)
        refused = "".join(f" Refused: {why}." for why in sorted(set(self.refused.values())))
        if not planned:
            return "No run of this page is planned at this scale."
        if done == planned:
            return f"All {planned} runs of this page are here.{refused}"
        return f"{done} of the {planned} runs of this page are here; the others are not run yet.{refused}"


_NAMES = tuple(f.name for f in fields(Experiment))


def _chosen(name: str, scale: str, dataset: str) -> list[Job]:
    """The jobs of a grid at a scale and of a data set, carried over where the grid has none of the kind."""
    found = grid.jobs([name], scale)
    own = [job for job in found if dataset in ("all", job.experiment.dataset)]
    if own:
        return own
    other = "digits" if dataset == "all" else dataset
    small = {"ipc": 1, "seed": 0} if scale == "smoke" else {}
    model = found or grid.jobs([name], "paper")
    carried: dict[str, Job] = {}
    for job in model:
        if job.experiment.dataset != model[0].experiment.dataset:
            continue
        kept = {name: getattr(job.experiment, name) for name in KEPT} | small
        experiment = identified(Experiment.preset(scale, dataset=other, **kept))
        carried.setdefault(experiment.key, Job(experiment, job.value, job.arms, job.why))
    return list(carried.values())


def _make(experiments: Sequence[Experiment], store: Store) -> dict[str, str]:
    """Make what is missing; a run that is refused (its data are not here) is noted and the others go on."""
    refused = {}
    for experiment in experiments:
        try:
            run(experiment, store)
        except (DataError, SettingError, StoreError) as error:
            refused[experiment.key] = str(error)
    return refused
