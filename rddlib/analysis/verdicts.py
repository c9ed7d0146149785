"""The verdict on each claim of the paper, from the records, by the rules that data/README.md states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..experiments.records import Record
from ..stats import Interval, effect_size, equivalent, mean_interval
from .claims import Claim, Comparison, Measures, Plan, comparisons, value

VERDICTS = ("replicated", "partly", "not", "not tested")
STATES = ("holds", "fails", "undecided", "not run")
LEAST = 3  # shared distillation seeds without which a comparison has no result
SAME = 1.0  # points within which two arms are called equal, beside every difference


@dataclass(frozen=True)
class Finding:
    """What the records say about one comparison.

    `state` is one of STATES; `note` says why there is no number. `means` has the mean of the metric for each term,
    `keys` the records of each, seeds in order; `equal`: the 90 % interval lies within one point.
    """

    comparison: Comparison
    state: str
    note: str = ""
    scale: str = ""
    difference: Interval | None = None
    effect: float = float("nan")
    equal: bool = False
    means: tuple[float, ...] = ()
    keys: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Verdict:
    """A claim, one of VERDICTS, the reason in words, and the findings behind it."""

    claim: Claim
    verdict: str
    why: str
    findings: tuple[Finding, ...] = field(default=())

    def keys(self) -> list[str]:
        """The records behind the verdict, each once."""
        return list(dict.fromkeys(k for f in self.findings for own in f.keys for k in own))


def decide(values: ArrayLike, rule: str, margin: float) -> tuple[str, Interval]:
    """State and 95 % interval of differences (D,), one a distillation seed, under the rules of data/README.md."""
    found = mean_interval(np.asarray(values, dtype=np.float64))
    if found.n < LEAST:
        return "not run", found
    if rule == "equal":
        inside = equivalent(values, np.zeros(found.n), margin)
        outside = found.low > margin or found.high < -margin
        return "holds" if inside else "fails" if outside else "undecided", found
    return "holds" if found.low > 0 else "fails" if found.high < margin else "undecided", found


def find(comparison: Comparison, records: Mapping[str, Record], plan: Plan, extra: Measures | None = None) -> Finding:
    """What the records say about a comparison, at the first of its scales that has enough seeds."""
    notes: list[tuple[int, str]] = []
    for scale in comparison.claim.scales:
        chosen = [plan.select(selector, scale) for _, selector in comparison.terms]
        planned = sorted(set.intersection(*(set(c) for c in chosen)))
        table: dict[int, list[float]] = {}
        for seed in planned:
            own = [records.get(c[seed]) for c in chosen]
            values = [None if r is None else value(r, comparison.metric, extra or {}) for r in own]
            if all(v is not None for v in values):
                table[seed] = [v for v in values if v is not None]
        if len(table) >= LEAST:
            keys = tuple(tuple(c[s] for s in table) for c in chosen)
            return _found(comparison, scale, np.array(list(table.values())), keys)
        notes.append((len(table), f"{len(table)} of {len(planned)} seeds at scale {scale}"))
    best = max(notes, key=lambda n: (n[0], notes.index(n)))  # among equals the cheapest scale, which stands last
    return Finding(comparison, "not run", ("too few runs: " if best[0] else "not run yet: ") + best[1])


def _found(
    comparison: Comparison, scale: str, table: NDArray[np.float64], keys: tuple[tuple[str, ...], ...]
) -> Finding:
    values = table @ np.array([w for w, _ in comparison.terms])  # (D,)
    claim, zero = comparison.claim, np.zeros(len(table))
    state, interval = decide(values, claim.rule, claim.margin or SAME)
    return Finding(comparison, state, "", scale, interval, effect_size(values, zero), equivalent(values, zero, SAME),
                   tuple(float(m) for m in table.mean(0)), keys)  # fmt: skip


def combine(states: Sequence[str]) -> str:
    """The verdict on a claim from the states of its comparisons."""
    holding = sum(s == "holds" for s in states)
    if states and holding == len(states):
        return "replicated"
    if 2 * holding >= max(1, len(states)):
        return "partly"
    enough = 2 * sum(s != "not run" for s in states) >= len(states)
    return "not" if enough and "fails" in states else "not tested"


def judge(
    claims: Iterable[Claim], records: Mapping[str, Record], plan: Plan, extra: Measures | None = None
) -> list[Verdict]:
    """The verdict on each claim, in order. Comparisons that several claims share are decided once."""
    claims = list(claims)
    by_id, known = {c.id: c for c in claims}, dict[Comparison, Finding]()
    return [_judge(c, comparisons(c, by_id), records, plan, extra, known) for c in claims]


def _judge(
    claim: Claim, tests: list[Comparison], records: Mapping[str, Record], plan: Plan, extra: Measures | None,
    known: dict[Comparison, Finding],
) -> Verdict:  # fmt: skip
    if claim.rule == "none":
        return Verdict(claim, "not tested", claim.why)
    for test in tests:
        if test not in known:
            known[test] = find(test, records, plan, extra)
    findings = tuple(known[t] for t in tests)
    states = [f.state for f in findings]
    verdict = combine(states)
    if len(findings) == 1 and findings[0].note:
        return Verdict(claim, verdict, findings[0].note, findings)
    if len(states) == 1:
        return Verdict(claim, verdict, states[0], findings)
    counts = ", ".join(f"{name} {states.count(name)}" for name in STATES if name in states)
    return Verdict(claim, verdict, f"of {len(states)} comparisons: {counts}", findings)


def tally(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """How many claims have each verdict; "undecided" counts those not tested although all their runs are there."""
    found = list(verdicts)
    counts = {name: sum(v.verdict == name for v in found) for name in VERDICTS}
    open_ = [v for v in found if v.verdict == "not tested" and v.findings and all(f.difference for f in v.findings)]
    return counts | {"undecided": len(open_)}
