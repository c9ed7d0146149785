"""The grid `causes`: which run is which cell, and the effects that are asked of it.

Ten cells are a factorial: images that train the network x (no term, upper, lower) x place of the term, the place having
no meaning without a term. Others are a ladder from control to the paper's term, one thing at a time, because the term's
weights of 1 and 1 also make the loss, and with it the network's step, about three times as large.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from ..data.shifts import CORRUPTIONS
from . import factorial
from .factorial import Weights

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


TERMS = tuple(itertools.product(TAILS, PLACES))
CELLS = [name for data in DATA for name in (f"{data}, none", *(of(data, *term) for term in TERMS))]


def effects() -> dict[str, Weights]:
    """The nine effects that the ten cells determine: main effects, then interactions, as differences in points.

    An interaction "A x B" is the effect of A at the second level of B less that at the first.
    """
    contrasts: dict[str, Weights] = {}
    for data, term in itertools.product(DATA, (None, *TERMS)):
        name = of(data, *term) if term else f"{data}, none"
        images = 1 if data == "synthetic" else -1
        has_term = 1 / len(TERMS) if term else -1
        tail = (1 if term[0] == "upper" else -1) if term else 0
        place = (1 if term[1] == "matching" else -1) if term else 0
        weights = {
            "a term - none": has_term / 2,
            "upper - lower tail": tail / 4,
            "matching - network": place / 4,
            "synthetic - real images": images / 5,
            "term x images": has_term * images,
            "tail x place": tail * place / 2,
            "tail x images": tail * images / 2,
            "place x images": place * images / 2,
            "tail x place x images": tail * place * images,
        }
        for effect, weight in weights.items():
            contrasts.setdefault(effect, {})
            if weight:
                contrasts[effect][name] = weight
    return contrasts


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


def with_corruptions(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of `results.tidy` with all kinds and severities of corruption as one test, "corruptions"."""
    kinds = frame["test"].str.replace(r"_\d+$", "", regex=True)  # without the severity
    return frame.assign(test=frame["test"].mask(kinds.isin(CORRUPTIONS), "corruptions"))


def choose(values: pd.DataFrame) -> tuple[str, bool]:
    """The cell whose worst group gains most over control, and whether any gain stands against all that were tried.

    values: cells x seeds of the worst group. Only cells with all of the control's seeds are candidates; ('', False)
    where there is none. "Stands": Holm over the candidates at 95 %, and above zero.
    """
    if CONTROL not in values.index:
        return "", False
    needed = values.columns[values.loc[CONTROL].notna().to_numpy()]
    whole = [str(name) for name in values.index if values.loc[name, needed].notna().all()]
    weights = against_control(whole)
    if not weights:
        return "", False
    effects = factorial.fit(values.loc[[CONTROL, *weights]]).effects(weights)
    gains = {name: effect for name, effect in effects.items() if effect is not None}
    stands = factorial.holm(gains)
    best = max(gains, key=lambda name: gains[name].mean)
    return best, any(stands[name] and gains[name].mean > 0 for name in gains)
