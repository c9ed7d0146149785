"""The paper's claims, and the test of each as it was fixed before the runs: which records, which number, which rule.

`data/claims.csv` has one row a claim; its section in data/README.md says what the columns mean. `verdicts` decides.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
import pandas as pd
import pydantic
from numpy.typing import NDArray

from ..base import SettingError, resources
from ..experiments import grid
from ..experiments.presets import Scale
from ..experiments.records import Record
from .results import by_test, tidy

Table = Literal["1", "2", "3", "4", "5", "figures", "text"]
Family = Literal[
    "accuracy",
    "worst group",
    "shifts",
    "drops",
    "networks",
    "ablation",
    "alpha",
    "figures",
    "theory and code",
]
FAMILIES = get_args(Family)
PROOF = re.compile(r"(supported|contradicted|undecided) (tests/\w+\.py::\w+)")
TERM = re.compile(r"([+-])([\d.]*)\[([^\][]+)\]")
Measures = Mapping[str, Mapping[str, float]]  # set key -> measure -> value

# What a cell may hold: nothing for a number that there is none of, names separated by spaces, a text of some form.
Filled = Annotated[str, pydantic.StringConstraints(min_length=1)]
NoneIfEmpty = pydantic.BeforeValidator(lambda cell: None if cell == "" else cell)
Words = pydantic.BeforeValidator(lambda cell: tuple(cell.split()) if isinstance(cell, str) else cell)


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(allow_inf_nan=False))
class Claim:
    """One row of claims.csv. `gain` is the paper's difference in points, `margin` ours: see the rules."""

    id: Annotated[str, pydantic.StringConstraints(pattern=r"^[a-z0-9_-]+$")]
    table: Table
    family: Family
    place: Filled
    claim: Filled
    reading: Literal["upper", "lower", "-"]  # the tail that is tested; "-": the claim is not about the term
    paper: str
    gain: Annotated[float | None, NoneIfEmpty]
    supports: Literal["yes", "no", "-"]  # whether the paper's own numbers say what the sentence says; "-": it has none
    rule: Literal["more", "proof", "none"]
    test: str
    margin: Annotated[Annotated[float, pydantic.Field(gt=0)] | None, NoneIfEmpty]
    scales: Annotated[tuple[Scale, ...], Words]
    stand_in: str
    seen: Annotated[int, pydantic.Field(ge=0)]
    why: str
    fixed_in: Annotated[str, pydantic.StringConstraints(pattern="^([0-9a-f]{7,40}|pending)$")]


COLUMNS = tuple(field.name for field in fields(Claim))


@dataclass(frozen=True)
class Comparison:
    """A metric and a weighted sum of selectors (weight, "grid/arm name=value ..."), with the rule that decides."""

    claim: Claim
    metric: str
    terms: tuple[tuple[float, str], ...]

    @property
    def weights(self) -> NDArray[np.float64]:
        """(terms,), adding up to 0."""
        return np.array([weight for weight, _ in self.terms])


def read(path: Path | None = None) -> list[Claim]:
    """The claims of a file (default data/claims.csv). Raises SettingError that names row and column."""
    path = path or resources() / "claims.csv"
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, restkey="more", strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SettingError(
            "claims", str(path), f"a file of comma-separated values that can be read ({error})"
        ) from error
    claims: dict[str, Claim] = {}
    for number, row in enumerate(rows, 2):
        where = f"{path.name}, row {number} ({row.get('id')})"
        if tuple(row) != COLUMNS or None in row.values():
            raise SettingError(where, ", ".join(row), f"the columns {', '.join(COLUMNS)}")
        claim = _claim(row, where)
        if claim.id in claims:
            raise SettingError(f"{where}: id", claim.id, "an id that no other row has")
        claims[claim.id] = claim
    for claim in claims.values():
        comparisons(claim, claims)
    return list(claims.values())


def _claim(row: Mapping[str, str], where: str) -> Claim:
    try:
        claim = Claim(**row)  # type: ignore[arg-type]
    except pydantic.ValidationError as error:
        fault = error.errors()[0]
        column = str(fault["loc"][0])
        raise SettingError(f"{where}: {column}", row[column], f"another value ({fault['msg']})") from error
    decided_by_runs = claim.rule == "more"
    has_test, has_margin = bool(claim.test), claim.margin is not None
    if has_test == (claim.rule == "none") or has_margin != decided_by_runs or not (decided_by_runs or claim.why):
        allowed = "more with a test and a margin, proof with a test and a reason, or none with a reason"
        raise SettingError(f"{where}: rule", claim.rule, allowed)
    if claim.rule == "proof" and not PROOF.fullmatch(claim.test):
        allowed = f"a verdict and the test that shows it: {PROOF.pattern}"
        raise SettingError(f"{where}: test", claim.test, allowed)
    return claim


def comparisons(claim: Claim, claims: Mapping[str, Claim]) -> list[Comparison]:
    """The comparisons of a claim, none for one that no run decides.

    `@id` stands for those of another row, which refers to none itself; `-@id` for those with the signs turned, and
    that of the paper's gain.
    Raises SettingError for a test that cannot be read, names no other row, or has weights that do not add up to 0.
    """
    if claim.rule != "more":
        return []
    where, result = f"claim {claim.id}: test", list[Comparison]()
    for part in claim.test.split() if "@" in claim.test else claim.test.split(" ; "):
        if "@" not in part:
            result.append(_comparison(claim, part, where))
            continue
        sign, _, name = part.partition("@")
        other = claims.get(name)
        if sign not in ("", "-") or other is None or "@" in other.test or other.rule != "more":
            raise SettingError(where, part, "@ and the id of a row that has a test of its own")
        for own in comparisons(other, claims):
            if sign:
                gain = None if other.gain is None else -other.gain
                turned = tuple((-weight, selector) for weight, selector in own.terms)
                own = replace(own, claim=replace(own.claim, gain=gain), terms=turned)
            result.append(own)
    return result


def _comparison(claim: Claim, text: str, where: str) -> Comparison:
    metric, _, terms = text.partition(": ")
    parts = [(float(f"{sign}{weight or 1}"), selector) for sign, weight, selector in TERM.findall(terms)]
    rest = TERM.sub("", terms).strip()
    if not re.fullmatch(r"[a-z_]+(-[a-z_]+)?", metric) or rest or len(parts) < 2:
        raise SettingError(where, text, "METRIC: +[grid/arm name=value ...] -[...]")
    if abs(sum(w for w, _ in parts)) > 1e-9 or not claim.scales:
        raise SettingError(where, text, "weights that add up to 0, and scales")
    for _, selector in parts:
        arm, *filters = selector.split()
        if "/" not in arm or not all(f.partition("=")[0] in grid.FIELDS and "=" in f for f in filters):
            raise SettingError(where, selector, "an arm of a grid, then settings of an Experiment as name=value")
    return Comparison(claim, metric, tuple(parts))


class Plan:
    """The runs that the grids of the book ask for: selectors -> keys. Grids are read when first asked for."""

    def __init__(self, grids: Sequence[str | Path] | None = None) -> None:
        self.grids = grids
        self._arms: dict[str, dict[str, list[grid.Job]]] = {}

    def arms(self, scale: str) -> dict[str, list[grid.Job]]:
        """Jobs of each arm, "grid/name", at a scale."""
        if scale not in self._arms:
            jobs_of: dict[str, list[grid.Job]] = {}
            for job in grid.jobs(self.grids or grid.names(), scale):
                for arm in job.arms:
                    jobs_of.setdefault(arm, []).append(job)
            self._arms[scale] = jobs_of
        return self._arms[scale]

    def select(self, selector: str, scale: str) -> dict[int, str]:
        """The key of each distillation seed. Raises SettingError where more than the seed is left open."""
        arm, *filters = selector.split()
        own = self.arms(scale).get(arm, [])
        for wanted in filters:
            name, _, value = wanted.partition("=")
            own = [job for job in own if str(getattr(job.experiment, name)) == value]
        keys = {job.experiment.seed: job.key for job in own}
        if len(keys) != len(own):
            raise SettingError("selector", selector, f"settings that leave only the seed open at scale {scale}")
        return keys


def measures(folder: Path | None = None) -> dict[str, dict[str, float]]:
    """What was measured on distilled sets beside their records: set key -> {"coverage": value}, see data/README.md."""
    result: dict[str, dict[str, float]] = {}
    for path in sorted((folder or resources() / "coverage").glob("*.json")):
        raw = json.loads(path.read_text())
        for key, about in raw["sets"].items():
            null = np.mean(raw["nulls"][f"{about['ipc']}x{about['factor']}"]["whole"]["feature"])
            result[key] = {"coverage": float(100 * np.mean(about["coverage"]["feature"]) / null)}
    return result


def measured(records: Iterable[Record], extra: Measures | None = None) -> pd.DataFrame:
    """Run x metric, indexed by key: means over the trainings of each run, and what `extra` has on its set.

    `cluster_min` is the smallest over groups of the accuracy that is averaged over trainings, as the fair test has
    it: a mean of minima would be lower, the more so the more a single training scatters.
    """
    frame = tidy(records)
    runs = by_test(frame)
    groups = frame[frame["test"] == "cluster_accuracy"].groupby(["key", "group"])["value"].mean()
    if len(groups):
        runs["cluster_min"] = groups.groupby("key").min().reindex(runs.index).fillna(runs["cluster_min"])
    on_sets = pd.DataFrame.from_dict(dict(extra or {}), orient="index")
    sets = frame.drop_duplicates("key").set_index("key")["set_key"]
    return runs.join(on_sets.reindex(sets).set_axis(sets.index)) if len(on_sets) else runs


def metric_of(runs: pd.DataFrame, metric: str) -> pd.Series:
    """A metric of each run of `measured` that has it; `a-b` is a difference."""
    first, *less = [runs[name] if name in runs else pd.Series(dtype=float) for name in metric.split("-")]
    return (first - less[0] if less else first).dropna()
