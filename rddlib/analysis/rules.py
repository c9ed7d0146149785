"""The rule that turns a comparison into a verdict, and the corrections for looking more than once.

All but `ONE_LOOK` and `RATED` was fixed before the runs of the scale `cpu` were compared on the test part
(book/fair_test.md). The verdicts, in the order in which they are considered:

no runs          fewer than three distillation seeds are shared by both arms
no room          the test leaves no room: the better arm is less than 5 points above chance
mechanism off    the claim is about the term, and the loop's network has not learnt or training it moves nothing
supported        the interval of the paired differences lies above zero
contradicted     the interval lies below zero, or excludes the paper's gain; the reason says which
no difference    the interval lies within the margin on both sides of zero
undecided        anything else; before that, a claim about the term whose gate has not been run, or one with an arm
                 whose image rate was chosen for another arm

An interval within the margin is "no difference" even where it also excludes the paper's gain. A drop from the standard
test that shrank only because the standard accuracy fell is undecided, not supported. `combine` says what several
comparisons make of one sentence of the paper; `at_looks` what the planned looks add to the comparisons that have them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from ..base import SettingError
from ..stats import Interval
from .mechanism import LEARNT

SUPPORTED, NO_DIFFERENCE, CONTRADICTED, UNDECIDED = "supported", "no difference", "contradicted", "undecided"
MECHANISM_OFF, NO_ROOM, NO_RUNS, NEEDS = "mechanism off", "no room", "no runs", "needs data or GPU"
VERDICTS = (SUPPORTED, NO_DIFFERENCE, CONTRADICTED, UNDECIDED, MECHANISM_OFF, NO_ROOM, NEEDS, NO_RUNS)

LEAST_SEEDS = 3
ROOM = 5.0  # points above chance that the better arm needs
GATE = 2.0  # points by which training the loop's network has to move accuracy, on average over seeds
FALL = 0.2  # share of ln(n_classes) by which the cross-entropy of an old record has to have fallen
# Seeds -> one-sided level of the primary comparison. Simulated with t tests and 200,000 draws, one hypothesis errs
# 2.56 % of the time (at most 2.75 % by Bonferroni); alone, it finds a point with power .98 at a paired spread of .70.
LOOKS = {5: 0.005, 10: 0.0225}
ONE_LOOK = {8: 0.025}  # the same for one image a class
# Scale -> (alpha, weight of the average, weight of the largest) of the terms whose image rate was chosen there. Each
# arm must have a rate of its own; one that has borrowed another's decides nothing.
RATED = {"cpu": {(0.8, 1.0, 1.0)}}


@dataclass(frozen=True)
class Mechanism:
    """Whether the term can act: `state` is "on", "off" or "gate not run", and `why` says what was seen."""

    state: str
    why: str


def mechanism(
    histories: Sequence[Sequence[Mapping[str, float]]], n_classes: int, gate: ArrayLike | None = None
) -> Mechanism:
    """Whether the loop's network of the control arm has learnt, and whether training it matters.

    histories: of the control's records, one entry an outer step. A network has learnt if `probe_last`, a share in
    [0, 1], is on average at least `LEARNT` times chance. Records without probes are judged by the cross-entropy of
    the second half of their outer steps, which has to lie 20 % below ln(n_classes); they need no gate to be off.
    gate: accuracy of control less that of control with an untrained network, in points, one value a seed; None: not
    run.
    Raises SettingError where there is no history.
    """
    steps = [entry for history in histories for entry in history]
    if not steps:
        raise SettingError("histories", len(histories), "at least one record with an outer step")
    if all("probe_last" in entry for entry in steps):
        reached = fmean(entry["probe_last"] for entry in steps)
        if reached < LEARNT / n_classes:
            return Mechanism("off", f"the loop's network ends at {100 * reached:.0f} % accuracy")
    else:
        late = [entry for history in histories for entry in history[len(history) // 2 :]]
        entropy = fmean(entry["cross_entropy"] for entry in late)
        chance = math.log(n_classes)
        if entropy > (1 - FALL) * chance:
            return Mechanism("off", f"the loop's network has a cross-entropy of {entropy:.2f}; chance is {chance:.2f}")
    if gate is None or np.size(gate) == 0:
        return Mechanism("gate not run", "whether training the loop's network matters has not been measured")
    moved = float(np.mean(np.asarray(gate, dtype=np.float64)))
    if moved < GATE:
        return Mechanism("off", f"training the loop's network moves accuracy by {moved:+.1f} points")
    return Mechanism("on", f"training the loop's network moves accuracy by {moved:+.1f} points")


@dataclass(frozen=True)
class Decision:
    """One of VERDICTS, the reason in a few words, and the interval behind it (None without runs)."""

    verdict: str
    why: str
    interval: Interval | None = None


def t_interval(differences: ArrayLike, level: float = 0.95) -> Interval:
    """Mean of differences (D,) with Student's interval, D - 1 degrees of freedom. D is at least 2."""
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise SettingError("differences", values.shape, "two finite numbers or more, one a seed")
    mean = float(values.mean())
    half = float(stats.t.ppf(0.5 + level / 2, len(values) - 1)) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half, len(values))


def decide(
    differences: ArrayLike,
    margin: float,
    gain: float | None = None,
    *,
    above_chance: float = math.inf,
    term: Mechanism | None = None,
    rise: ArrayLike | None = None,
    own_rate: bool = True,
    level: float = 0.95,
) -> Decision:
    """The verdict on "this difference is above zero".

    differences: (D,), paired by distillation seed, in the units of `margin` and `gain` (the paper's difference).
    above_chance: points of the better arm above chance on this test. term: what is known of the mechanism, None for
    a claim that is not about the term. rise: for a drop that gets smaller, the differences (D,) of the accuracy under
    the shifted test; at least half of the change has to come from it, or its own interval has to lie above zero.
    own_rate: whether the image rate of every arm was chosen for it (`RATED`).
    """
    if not margin > 0:
        raise SettingError("margin", margin, "a value above 0")
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < LEAST_SEEDS:
        return Decision(NO_RUNS, f"{len(values)} shared seeds; {LEAST_SEEDS} are the least")
    interval = t_interval(values, level)
    if above_chance < ROOM:
        return Decision(NO_ROOM, f"the better arm is {above_chance:.1f} points above chance", interval)
    if term is not None and term.state == "off":
        return Decision(MECHANISM_OFF, term.why, interval)
    if term is not None and term.state == "gate not run":
        return Decision(UNDECIDED, f"gate not run: {term.why}", interval)
    if not own_rate:
        return Decision(UNDECIDED, "an arm has the image rate that was chosen for another", interval)
    if interval.low > 0 and rise is not None and not _rose(np.asarray(rise, dtype=np.float64), interval.mean, level):
        return Decision(UNDECIDED, "the drop is smaller because the standard accuracy fell", interval)
    return Decision(*_place(interval, margin, gain), interval)


def _rose(rise: NDArray[np.float64], change: float, level: float) -> bool:
    own = t_interval(rise, level)
    return own.low > 0 or own.mean >= change / 2


def _place(interval: Interval, margin: float, gain: float | None) -> tuple[str, str]:
    """Verdict and reason from where an interval lies."""
    if interval.low > 0:
        smaller = gain is not None and interval.high < gain
        return SUPPORTED, "above zero, and smaller than the paper's gain" if smaller else "above zero"
    if interval.high < 0:
        return CONTRADICTED, "below zero"
    if -margin < interval.low and interval.high < margin:
        return NO_DIFFERENCE, f"within {margin:g} of zero"
    if gain is not None and gain > 0 and interval.high < gain:
        return CONTRADICTED, "the paper's gain is excluded"
    return UNDECIDED, "the interval holds zero and more than the margin"


def combine(verdicts: Sequence[str]) -> str:
    """The verdict on a sentence that several comparisons test: it speaks of all of them.

    One contradicted comparison contradicts it; it is supported if all are. Where none is decided that way, it shares
    the verdict of those that have runs if that is one and the same, and is undecided otherwise.
    """
    if CONTRADICTED in verdicts:
        return CONTRADICTED
    if verdicts and all(v == SUPPORTED for v in verdicts):
        return SUPPORTED
    run = [v for v in verdicts if v not in (NO_RUNS, NEEDS)]
    if not run:
        return NEEDS if verdicts and all(v == NEEDS for v in verdicts) else NO_RUNS
    if len(set(run)) > 1 or run[0] == SUPPORTED or (run[0] == NO_DIFFERENCE and len(run) < len(verdicts)):
        return UNDECIDED
    return run[0]


# --- more than one look, more than one hypothesis ---------------------------------------------------------


def one_sided(differences: ArrayLike) -> float:
    """One-sided p of "not above zero" for differences (D,), D at least 2: the paired t test."""
    values = np.asarray(differences, dtype=np.float64)
    interval = t_interval(values)
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    if error == 0:
        return 0.0 if interval.mean > 0 else 1.0
    return float(stats.t.sf(interval.mean / error, len(values) - 1))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p of a family of hypotheses (Holm 1979): reject those at most the family's level."""
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p, key=lambda n: p[n])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p}


def benjamini_hochberg(p: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p of a family (Benjamini & Hochberg 1995): those at most q have a false discovery rate of q."""
    adjusted = stats.false_discovery_control(list(p.values())) if p else []
    return {name: float(value) for name, value in zip(p, adjusted, strict=True)}


def looks(differences: Mapping[str, ArrayLike], plan: Mapping[int, float] | None = None) -> dict[str, int | None]:
    """The number of seeds at which each hypothesis of a family is rejected at a planned look; None: it is not.

    differences: name -> (D,), seeds in order; only the first n count at the look of n seeds, and a look for which any
    member lacks seeds is not taken. plan: seeds -> one-sided level, in the order of the looks. Holm's procedure is
    applied anew at each look, over the whole family.
    """
    rejected: dict[str, int | None] = dict.fromkeys(differences)
    values = {name: np.asarray(own, dtype=np.float64) for name, own in differences.items()}
    for seeds, level in (plan or LOOKS).items():
        if any(len(own) < seeds for own in values.values()):
            break
        adjusted = holm({name: one_sided(own[:seeds]) for name, own in values.items()})
        for name, p in adjusted.items():
            if rejected[name] is None and p <= level:
                rejected[name] = seeds
    return rejected


def at_looks(
    decisions: Mapping[str, Decision],
    differences: Mapping[str, ArrayLike],
    plan: Mapping[int, float] | None = None,
) -> dict[str, Decision]:
    """The decisions on comparisons after their planned looks (book/fair_test.md).

    decisions: by `decide` from all seeds there are, for some or all of the hypotheses in differences. differences,
    plan: see `looks`. A decision that is held back by its mechanism, by missing room or by missing runs stays so. Else
    an effect is supported if and only if its hypothesis is rejected at a look, and anything but support waits for the
    last look.
    """
    plan = plan or LOOKS
    rejected = looks(differences, plan)
    seeds = min((len(np.asarray(own)) for own in differences.values()), default=0)
    found: dict[str, Decision] = {}
    for name, decision in decisions.items():
        found[name] = decision
        if decision.verdict in (MECHANISM_OFF, NO_ROOM, NO_RUNS, NEEDS) or decision.why.startswith("gate not run"):
            continue
        if at := rejected[name]:
            found[name] = replace(decision, verdict=SUPPORTED, why=f"rejected at the look of {at} seeds (Holm)")
        elif seeds < max(plan):
            why = f"not rejected yet; {seeds} of {max(plan)} seeds"
            found[name] = replace(decision, verdict=UNDECIDED, why=why)
        elif decision.verdict == SUPPORTED:
            why = f"above zero, but not after the correction for {len(plan) * len(rejected)} tests"
            found[name] = replace(decision, verdict=UNDECIDED, why=why)
    return found
