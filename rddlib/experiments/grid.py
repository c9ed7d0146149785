"""Grids: files that say which experiments a table or figure needs, what each is worth, and what is still missing.

A grid file is TOML. `[common]` holds settings of an Experiment; each `[[arm]]` has a `name`, a `why` of one line, a
`value` (the larger, the earlier it runs) and settings of its own; a list of values is crossed with every other list.
`[scale.NAME]` and, within an arm, `[arm.scale.NAME]` override at one scale, the latter last; `scales` limits an arm to
some scales. Blocks of one name are one arm. Experiments that several arms or files ask for are one job.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import statistics
import tomllib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .. import files
from ..base import SettingError, check_choice, resources, suggestion
from .experiment import Experiment, identified
from .presets import SCALES
from .records import Store

STATES = ("done", "stale", "missing", "failed")
TOP_KEYS = ("title", "common", "scale", "arm")
ARM_KEYS = ("name", "why", "value", "scales", "scale")
MOST_RUNS = 10_000  # of one arm
LONGEST_LINE = 2_000  # the parser's time grows with the square of the dots in a name, its memory too
FIELDS = tuple(name for name in Experiment.declared() if name != "scale")

# What makes two runs cost the same, from "all of this" to "the scale alone": the first that any record meets is used.
_LOOPS = ("outer_steps", "inner_steps", "eval_steps", "eval_seeds", "width", "eval_width", "train_limit", "test_limit")
LIKENESS = (
    ("scale", "dataset", "method", "ipc", "size", "factor", "network", "eval_network", "risk", *_LOOPS),
    ("scale", "dataset", "method", "ipc", "factor", "network", "eval_network"),
    ("scale", "dataset", "method", "ipc"),
    ("scale", "dataset", "method"),
    ("scale", "method"),
    ("scale",),
)


@dataclass(frozen=True)
class Job:
    """One experiment that is wanted, its value, and the arms ("grid/arm") that want it."""

    experiment: Experiment
    value: float
    arms: tuple[str, ...]
    why: str = ""

    @cached_property
    def key(self) -> str:
        """The experiment's key, computed once."""
        return self.experiment.key

    @cached_property
    def set_key(self) -> str:
        """The key of the distilled set that the run evaluates, which others may share; '' if nothing is distilled."""
        return self.experiment.set_key


# --- reading ----------------------------------------------------------------------------------------------


def names() -> list[str]:
    """Names of the grids of the book, sorted."""
    return sorted(p.stem for p in resources().glob("grids/*.toml"))


def locate(name: str | Path) -> Path:
    """The file of a grid given by name or path. Raises SettingError that lists the names there are."""
    for path in (Path(name).expanduser(), resources() / "grids" / f"{name}.toml"):
        if path.suffix == ".toml" and path.is_file():
            return path
    known = f"a .toml file, or one of {', '.join(names()) or '(no grid in data/grids)'}"
    raise SettingError("grid", str(name), known + suggestion(str(name), names()))


def jobs(grids: Iterable[str | Path], scale: str) -> list[Job]:
    """The jobs of several grids at a scale, each experiment once, in the order in which they should run.

    The most valuable come first; among equals all arms get seed 0 before any gets seed 1, so that pairs complete
    early. Raises SettingError, with file and arm, for anything that no Experiment could be made of.
    """
    check_choice("scale", scale, SCALES)
    merged: dict[str, Job] = {}
    for planned in itertools.chain.from_iterable(read(locate(g), scale) for g in grids):
        job = dataclasses.replace(planned, experiment=identified(planned.experiment))
        first = merged.setdefault(job.key, job)
        if first is not job:
            arms = tuple(dict.fromkeys(first.arms + job.arms))
            merged[job.key] = dataclasses.replace(first, value=max(first.value, job.value), arms=arms)
    return sorted(merged.values(), key=lambda job: (-job.value, job.experiment.seed))


def to_json(wanted: Sequence[Job]) -> str:
    """Jobs as a list for a program that schedules them: key, group of the record, key of the set, value and arms."""
    facts = [
        {"key": job.key, "group": job.experiment.group, "set_key": job.set_key, "value": job.value, "arms": job.arms}
        for job in wanted
    ]
    return json.dumps(facts, indent=1)


def read(path: Path, scale: str) -> list[Job]:
    """The jobs of one file at a scale, in the file's order, duplicates included."""
    try:
        text = path.read_text(encoding="utf-8")
        if max(map(len, text.splitlines()), default=0) > LONGEST_LINE:
            raise ValueError(f"a line of more than {LONGEST_LINE} characters")
        raw = tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise SettingError("grid", str(path), f"a file in TOML; this one cannot be read ({error})") from error
    _only(raw, TOP_KEYS, f"{path}")
    arms = raw.get("arm")
    if not isinstance(arms, list) or not arms or not all(isinstance(a, dict) for a in arms):
        raise SettingError(f"{path}: arm", arms, "at least one [[arm]] block")
    common = _table(raw, "common", FIELDS, f"{path}, [common]")
    scales = _scales(raw, FIELDS, f"{path}, ")
    jobs: list[Job] = []
    for number, arm in enumerate(arms, 1):
        where = f"{path}, arm {arm.get('name', number)!r}"
        jobs += _arm(arm, where, path.stem, scale, common, scales)
    return jobs


def _arm(
    arm: dict[str, Any], where: str, grid: str, scale: str, common: dict[str, Any], scales: dict[str, dict[str, Any]]
) -> list[Job]:
    """Jobs of one arm. Every scale's block is checked, whichever is asked for."""
    _only(arm, (*ARM_KEYS, *FIELDS), where)
    own = _scales(arm, ("value", *FIELDS), f"{where}, ")
    wanted = arm.get("scales", list(SCALES))
    if not isinstance(wanted, list) or not wanted or not set(map(str, wanted)) <= set(SCALES):
        raise SettingError(f"{where}: scales", wanted, f"a list of {', '.join(SCALES)}")
    for text in ("name", "why"):
        if not isinstance(arm.get(text), str) or not arm[text].strip() or "\n" in arm[text]:
            raise SettingError(f"{where}: {text}", arm.get(text), "a text of one line")
    for value in (arm.get("value"), own.get(scale, {}).get("value", arm.get("value"))):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise SettingError(f"{where}: value", value, "a number of at least 0; the larger, the earlier it runs")
    if scale not in wanted:
        return []
    settings = common | {k: v for k, v in arm.items() if k in FIELDS} | scales.get(scale, {}) | own.get(scale, {})
    value = settings.pop("value", arm["value"])
    try:
        experiments = [Experiment.preset(scale, **chosen) for chosen in _crossed(settings, where)]
    except SettingError as error:
        raise error if error.name.startswith(where) else error.within(f"{where}: ") from error
    return [Job(e, float(value), (f"{grid}/{arm['name']}",), arm["why"]) for e in experiments]


def _crossed(settings: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """Every combination of the values of the settings that are lists, the last list moving fastest."""
    lists = {k: v if isinstance(v, list) else [v] for k, v in settings.items()}
    for name, values in lists.items():
        if not values or any(isinstance(v, list | dict) for v in values):
            raise SettingError(f"{where}: {name}", settings[name], "a value or a list of at least one value")
    count = math.prod(map(len, lists.values()))
    if count > MOST_RUNS:
        raise SettingError(f"{where}: lists", f"{count} runs", f"lists whose product is at most {MOST_RUNS}")
    return [dict(zip(lists, combined, strict=True)) for combined in itertools.product(*lists.values())]


def _scales(raw: dict[str, Any], allowed: Sequence[str], where: str) -> dict[str, dict[str, Any]]:
    blocks = _table(raw, "scale", SCALES, f"{where}[scale]")
    return {name: _table(blocks, name, allowed, f"{where}[scale.{name}]") for name in blocks}


def _table(raw: dict[str, Any], key: str, allowed: Sequence[str], where: str) -> dict[str, Any]:
    table = raw.get(key, {})
    if not isinstance(table, dict):
        raise SettingError(where, table, "a block of settings")
    _only(table, allowed, where)
    return table


def _only(table: dict[str, Any], allowed: Sequence[str], where: str) -> None:
    unknown = [name for name in table if name not in allowed]
    if unknown:
        raise SettingError(f"{where}: key", unknown[0], f"one of {', '.join(allowed)}")


# --- what there is, and what it costs ---------------------------------------------------------------------


class Ledger:
    """What a store holds, read once: the state of each job and what a run costs. Writes nothing.

    `device` is where the missing ones would run: a GPU's seconds say nothing about a CPU's.
    """

    def __init__(self, store: Store, device: str = "cpu") -> None:
        self.store, self.on_cpu = store, device == "cpu"
        records, damaged = store.read()
        self.records = {path.stem: record for path, record in records.items()}
        self.damaged = {path.stem: str(error) for path, error in damaged.items()}

    def state(self, key: str) -> str:
        """done: its record is there; stale: made by code of another results version; failed: tried in vain; missing."""
        record = self.records.get(key)
        if record is not None:
            return "done" if record.current else "stale"
        return "failed" if self.error(key) else "missing"

    def error(self, key: str) -> str:
        """Why a key's last run failed, or its record cannot be read; '' if neither."""
        if key in self.records:
            return ""
        return self.damaged.get(key) or failure(self.store, key)

    def cost(self, job: Job, sets: Collection[str] = ()) -> float | None:
        """Seconds that a run will take: the median of the records most like it; None where none is like it at all.

        Where its distilled set is there, or among those of `sets` that will be, only the evaluation counts.
        """
        wanted = dataclasses.asdict(job.experiment)
        ready = bool(job.set_key) and (job.set_key in sets or self.store.distilled(job.set_key).is_file())
        for step, known in zip(LIKENESS, self._known, strict=True):
            alike = known.get(tuple(wanted[name] for name in step))
            if alike:
                return statistics.median(s.get("evaluate", 0.0) if ready else sum(s.values()) for s in alike)
        return None

    @cached_property
    def _known(self) -> list[dict[tuple[Any, ...], list[dict[str, float]]]]:
        """For each step of LIKENESS: the values of its settings -> seconds by part of the records that have them."""
        defaults = dataclasses.asdict(Experiment())
        known: list[dict[tuple[Any, ...], list[dict[str, float]]]] = [{} for _ in LIKENESS]
        for record in self.records.values():
            if record.device.startswith("cpu") == self.on_cpu:
                settings = defaults | record.experiment
                for step, seconds in zip(LIKENESS, known, strict=True):
                    seconds.setdefault(tuple(settings[n] for n in step), []).append(record.price)
        return known


def failure_file(store: Store, key: str) -> Path:
    """Where the error of a failed run is kept; it goes with the folder of the run once that succeeds."""
    return store.work(key) / "failed.json"


def failure(store: Store, key: str) -> str:
    """The error of a key's last run, '' if it did not fail."""
    try:
        return str(files.from_json(files.read_plain(failure_file(store, key)))["error"])
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError):
        return "failed, and what was noted about it cannot be read"


@dataclass(frozen=True)
class Tally:
    """How many jobs are in each state, and what the runs still to be made cost (missing and failed)."""

    counts: dict[str, int]
    seconds: float
    unknown: int  # runs to be made whose cost no record tells

    @classmethod
    def of(cls, wanted: Sequence[Job], ledger: Ledger) -> Tally:
        """Count `wanted` against a ledger. A set that several runs share is paid once."""
        states = [ledger.state(job.key) for job in wanted]
        costs: list[float | None] = []
        sets: set[str] = set()
        for job, state in zip(wanted, states, strict=True):
            if state in ("missing", "failed"):
                costs.append(ledger.cost(job, sets))
                sets.add(job.set_key)
        known = [c for c in costs if c is not None]
        return cls({s: states.count(s) for s in STATES}, sum(known), len(costs) - len(known))

    def price(self) -> str:
        """The cost in words."""
        left = self.counts["missing"] + self.counts["failed"]
        if left == 0 or left == self.unknown:
            return "unknown" if left else "-"
        return duration(self.seconds) + (f" + {self.unknown} of unknown cost" if self.unknown else "")


def duration(seconds: float) -> str:
    """Seconds in words: '45 s', '12 min', '3 h 05 min'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
