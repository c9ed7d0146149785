"""The grid `causes`: which run is which cell, the effects that are asked of it, and what its numbers say in words.

Ten cells are a factorial: images that train the network x (no term, upper, lower) x place of the term, the place having
no meaning without a term. Others are a ladder from control to the paper's term, one thing at a time, because the term's
weights of 1 and 1 also make the loss, and with it the network's step, about three times as large.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from ..data.shifts import CORRUPTIONS
from ..experiments.records import Record
from . import factorial
from .factorial import Effect, Weights

DATA, TAILS, PLACES = ("real", "synthetic"), ("upper", "lower"), ("network", "matching")
CONTROL, LONGER, EQUAL, LARGEST = "real, none", "real, none, 3 x step", "real, equal groups", "real, largest group"
RATE = 0.01  # of the network in every preset
PARTS = {(0.8, 1.0, 1.0): "", (1.0, 2.0, 0.0): "equal groups", (1.0, 1.0, 1.0): "largest group"}
STEPS = {1.0: "", 3.0: ", 3 x step", 0.33: ", step / 3"}
HELD_OUT = {
    "corruptions": "twelve corruptions, mean accuracy",
    "feature_class_min": "worst cluster of a class in independent features",
    "feature_min": "worst label-free cluster in independent features",
    "balanced_min": "worst published cluster, classes weighing the same",
}


def cell(settings: Mapping[str, Any]) -> str:
    """The cell of a run of the grid, in words; '' for a run that has none here."""
    data = settings["net_data"] or "real"
    step = STEPS.get(round(settings["lr_net"] / RATE, 2))
    if settings["method"] != "idc" or step is None:
        return ""
    if settings["risk"] == "control":
        return f"{data}, none{step}"
    part = PARTS.get((settings["alpha"], settings["average"], settings["worst"]))
    if part is None or settings["risk"] not in TAILS or settings["scope"] != "all" or settings["space"] != "feature":
        return ""
    place = ", matching" if settings["where"] == "matching" else ""
    return f"{data}, {part or settings['risk']}{place}{step}"


def of(data: str, tail: str, place: str = "network") -> str:
    """The name of a cell of the factorial with a term."""
    return f"{data}, {tail}{', matching' if place == 'matching' else ''}"


def _some(data: Iterable[str] = DATA, tails: Iterable[str] = TAILS, places: Iterable[str] = PLACES) -> list[str]:
    tails, places = list(tails), list(places)
    return [of(d, t, p) for d in data for t in tails for p in places]


CELLS = [name for d in DATA for name in (f"{d}, none", *_some([d]))]


def effects() -> dict[str, Weights]:
    """The nine effects that the ten cells determine: main effects, then interactions, as differences in points.

    An interaction "A x B" is the effect of A at the second level of B less that at the first.
    """
    tail = {(d, p): factorial.contrast([of(d, "upper", p)], [of(d, "lower", p)]) for d in DATA for p in PLACES}
    place = {d: factorial.contrast(_some([d], places=["matching"]), _some([d], places=["network"])) for d in DATA}
    term = {d: factorial.contrast(_some([d]), [f"{d}, none"]) for d in DATA}
    tail_at = {p: _mean(tail["real", p], tail["synthetic", p]) for p in PLACES}
    tail_by = {d: _mean(tail[d, "network"], tail[d, "matching"]) for d in DATA}
    turn = {d: factorial.minus(tail[d, "matching"], tail[d, "network"]) for d in DATA}
    return {
        "a term - none": _mean(*term.values()),
        "upper - lower tail": _mean(*tail_at.values()),
        "matching - network": _mean(*place.values()),
        "synthetic - real images": factorial.contrast(
            [c for c in CELLS if c.startswith("synthetic")], [c for c in CELLS if c.startswith("real")]
        ),
        "term x images": factorial.minus(term["synthetic"], term["real"]),
        "tail x place": factorial.minus(tail_at["matching"], tail_at["network"]),
        "tail x images": factorial.minus(tail_by["synthetic"], tail_by["real"]),
        "place x images": factorial.minus(place["synthetic"], place["real"]),
        "tail x place x images": factorial.minus(turn["synthetic"], turn["real"]),
    }


def _mean(*weights: Weights) -> Weights:
    total: Weights = {}
    for own in weights:
        total = factorial.added(total, {c: w / len(weights) for c, w in own.items()})
    return total


def ladder() -> dict[str, Weights]:
    """From control to the paper's term, one thing at a time; the last two lines are the tail's own part."""
    steps = {
        "a step three times as long": (LONGER, CONTROL),
        "groups that count alike": (EQUAL, LONGER),
        "the largest group": (LARGEST, EQUAL),
        "the upper tail": (of("real", "upper"), LARGEST),
        "the lower tail": (of("real", "lower"), LARGEST),
    }
    return {name: factorial.contrast([high], [low]) for name, (high, low) in steps.items()}


def against_control(cells: Iterable[str]) -> dict[str, Weights]:
    """Each cell less the control: real images train the network, no term, the usual step."""
    return {name: factorial.contrast([name], [CONTROL]) for name in cells if name != CONTROL}


# --- held-out tests ---------------------------------------------------------------------------------------


def is_held_out(record: Record) -> bool:
    """Whether a run has the tests that chose nothing: corruptions and honest groups."""
    return bool(record.experiment["eval_corruptions"])


def with_corruptions(record: Record) -> Record:
    """The record with "corruptions" added: the mean accuracy over all kinds and severities, for each training."""
    kinds = {m: v for m, v in record.metrics.items() if m.rpartition("_")[0] in CORRUPTIONS}
    if not kinds:
        return record
    mean = np.mean(list(kinds.values()), axis=0).tolist()
    return replace(record, metrics=record.metrics | {"corruptions": mean})


def choose(values: pd.DataFrame, candidates: Sequence[str] | None = None) -> tuple[str, bool]:
    """The cell whose worst group gains most over control, and whether any gain stands against all that were tried.

    values: cells x seeds of the worst group. Only cells with all of the control's seeds are candidates; ('', False)
    where there is none. "Stands": Holm over the candidates at 95 %, and above zero.
    """
    if CONTROL not in values.index:
        return "", False
    there = values.notna().to_numpy()
    needed = there[values.index.get_loc(CONTROL)]
    whole = [str(name) for name, own in zip(values.index, there, strict=True) if own[needed].all()]
    whole = [name for name in whole if candidates is None or name in candidates]
    if not (weights := against_control(whole)):
        return "", False
    found = factorial.fit(values.loc[[CONTROL, *weights]])
    gains = {name: e for name, w in weights.items() if (e := found.effect(w)) is not None}
    stands = factorial.holm(gains)
    best = max(gains, key=lambda name: gains[name].mean)
    return best, any(stands[n] and gains[n].mean > 0 for n in gains)


# --- words ------------------------------------------------------------------------------------------------


def in_words(effects: Mapping[str, Effect | None], test: str) -> str:
    """One sentence on a family of effects: which stand when all are looked at together, and what the rest is."""
    known = {n: e for n, e in effects.items() if e is not None}
    left = len(effects) - len(known)
    tail = f" {left} of {len(effects)} cannot be told yet: their runs are not made." if left else ""
    if not known:
        return f"{test}: no effect can be told yet: the runs are not made."
    if all(not np.isfinite(e.low) for e in known.values()):
        return f"{test}: one seed, so no effect has an interval.{tail}"
    stands = [n for n, ok in factorial.holm(effects).items() if ok]
    words = "; ".join(f"{n} {known[n]} points" for n in stands)
    if not stands:
        widest = max(e.high - e.mean for e in known.values())
        words = f"of {len(known)} effects none stands; intervals reach up to {widest:.1f} points to either side"
        return f"{test}: {words}.{tail}"
    return f"{test}: of {len(known)} effects {len(stands)} stand{'s' if len(stands) == 1 else ''}: {words}.{tail}"
