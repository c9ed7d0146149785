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

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..base import SettingError, resources
from ..experiments import grid
from ..experiments.presets import SCALES
from ..experiments.records import Record
from .results import tidy

TABLES = ("1", "2", "3", "4", "5", "figures", "text")
FAMILIES = (
    "accuracy",
    "worst group",
    "shifts",
    "drops",
    "networks",
    "ablation",
    "alpha",
    "figures",
    "theory and code",
)
READINGS = ("upper", "lower", "-")  # the tail of the risk term that is tested; "-": the claim is not about it
SUPPORTS = ("yes", "no", "-")  # whether the paper's own numbers say what the sentence says; "-": it prints none
RULES = ("more", "proof", "none")
SHAPES = {"id": r"[a-z0-9_-]+", "place": ".+", "claim": ".+", "seen": r"\d+", "fixed_in": "[0-9a-f]{7,40}|pending"}
PROOF = re.compile(r"(supported|contradicted|undecided) (tests/\w+\.py::\w+)")
TERM = re.compile(r"([+-])([\d.]*)\[([^\][]+)\]")
Measures = Mapping[str, Mapping[str, float]]  # set key -> measure -> value


@dataclass(frozen=True)
class Claim:
    """One row of claims.csv. `gain` is the paper's difference in points, `margin` ours: see the rules."""

    id: str
    table: str
    family: str
    place: str
    claim: str
    reading: str
    paper: str
    gain: float | None
    supports: str
    rule: str
    test: str
    margin: float | None
    scales: tuple[str, ...]
    stand_in: str
    seen: int
    why: str
    fixed_in: str


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
    def refuse(column: str, allowed: str) -> SettingError:
        return SettingError(f"{where}: {column}", row[column], allowed)

    def number(column: str, low: float) -> float | None:
        try:
            value = float(row[column]) if row[column] else None
        except ValueError as error:
            raise refuse(column, "a number, or nothing") from error
        if value is not None and not low < value < float("inf"):
            raise refuse(column, f"a number above {low:g}")
        return value

    choices = {"table": TABLES, "family": FAMILIES, "reading": READINGS, "supports": SUPPORTS, "rule": RULES}
    for column, allowed in choices.items():
        if row[column] not in allowed:
            raise refuse(column, f"one of {', '.join(allowed)}")
    for column, shape in SHAPES.items():
        if not re.fullmatch(shape, row[column]):
            raise refuse(column, f"text of the form {shape}")
    scales = tuple(row["scales"].split())
    if not set(scales) <= set(SCALES):
        raise refuse("scales", f"some of {', '.join(SCALES)}, the one to be preferred first")
    measured = row["rule"] == "more"
    if bool(row["test"]) == (row["rule"] == "none") or bool(row["margin"]) != measured or not (measured or row["why"]):
        raise refuse("rule", "more with a test and a margin, proof with a test and a reason, or none with a reason")
    if row["rule"] == "proof" and not PROOF.fullmatch(row["test"]):
        raise refuse("test", f"a verdict and the test that shows it: {PROOF.pattern}")
    values = {"gain": number("gain", -1e3), "margin": number("margin", 0), "scales": scales, "seen": int(row["seen"])}
    return Claim(**{**row, **values})  # type: ignore[arg-type]


def comparisons(claim: Claim, claims: Mapping[str, Claim]) -> list[Comparison]:
    """The comparisons of a claim, none for one that no run decides.

    `@id` stands for those of another row, which refers to none itself; `-@id` for those with the signs turned round.
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
            turned = tuple((-weight, selector) for weight, selector in own.terms)
            result.append(replace(own, terms=turned) if sign else own)
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
    runs = frame[frame["group"].isna()].groupby(["key", "test"])["value"].mean().unstack()
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
