"""The verdict on each claim of the paper, from the records, by the rule of `rules`."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from ..experiments.presets import SIAMESE
from ..experiments.records import Record
from ..risk import TAILS
from ..stats import Interval, effect_size
from . import rules
from .claims import PROOF, Claim, Comparison, Measures, Plan, comparisons, measured, metric_of
from .rules import LEAST_SEEDS, NEEDS, NO_RUNS, Decision, Mechanism

# Arms whose tails are looked at as planned in these measures, four hypotheses each, at the scale of the gates.
PLANNED = {"table1/cifar10_idc": rules.LOOKS, "table1/cifar10_idc_1": rules.ONE_LOOK}
LOOKED_AT = ("accuracy", "cluster_min")
# The scale and the arms whose differences are its gates.
GATES = {"cpu": (("gate/control", "gate/untrained"), ("gate_1/control", "gate_1/untrained"))}
# What a run shares with those of the gate, or the gate says nothing about it: its method, data and length of the loop.
OF_THE_GATE = ("method", "dataset", "size", "ipc", "network", "width", "outer_steps", "inner_steps", "net_steps")
# What tells one term from another in rules.RATED, and the paper's values, which a record without them has.
TERM = {"alpha": 0.8, "average": 1.0, "worst": 1.0}
LARGE = ("gpu", "paper")  # scales that need data or a machine that a laptop lacks


@dataclass(frozen=True)
class Finding:
    """What the records say about one comparison.

    `verdict` is one of rules.VERDICTS, `why` the reason. `values` are the differences, one a distillation seed; `means`
    has the mean of the metric for each term, `keys` the records of each, seeds in order.
    """

    comparison: Comparison
    verdict: str
    why: str
    scale: str = ""
    difference: Interval | None = None
    values: tuple[float, ...] = ()
    means: tuple[float, ...] = ()
    keys: tuple[tuple[str, ...], ...] = ()

    @property
    def effect(self) -> float:
        """Mean difference over the standard deviation of the differences (Cohen's d_z), nan without one."""
        return effect_size(self.values, np.zeros(len(self.values))) if self.values else float("nan")

    @property
    def p(self) -> float:
        """One-sided p of "not above zero", nan without runs."""
        return rules.one_sided(self.values) if len(self.values) > 1 else float("nan")


@dataclass(frozen=True)
class Verdict:
    """A claim, one of rules.VERDICTS, the reason in words, and the findings behind it."""

    claim: Claim
    verdict: str
    why: str
    findings: tuple[Finding, ...] = field(default=())

    def keys(self) -> list[str]:
        """The records behind the verdict, each once."""
        return list(dict.fromkeys(k for f in self.findings for own in f.keys for k in own))

    @property
    def p(self) -> float:
        """One-sided p of the claim: the largest of its comparisons, nan where one has no runs (Berger 1982)."""
        return float(np.max([f.p for f in self.findings])) if self.findings else float("nan")


@dataclass(frozen=True)
class Evidence:
    """The records by key, the plan that says which of them are an arm, and what was measured on their sets."""

    records: Mapping[str, Record]
    plan: Plan
    extra: Measures = field(default_factory=dict)
    _metrics: dict[str, dict[str, float]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _gates: dict[str, list[tuple[pd.DataFrame, pd.DataFrame]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @cached_property
    def runs(self) -> pd.DataFrame:
        """Run x metric (`claims.measured`)."""
        return measured(self.records.values(), self.extra)

    def keys(self, selectors: Iterable[str], scale: str) -> pd.DataFrame:
        """The keys of several arms, seeds x arms, over the seeds that are planned for all."""
        arms = [self.plan.select(selector, scale) for selector in selectors]
        seeds = sorted(set.intersection(*map(set, arms)))
        return pd.DataFrame({place: [arm[seed] for seed in seeds] for place, arm in enumerate(arms)}, index=seeds)

    def values(self, keys: pd.DataFrame, metric: str) -> pd.DataFrame:
        """A metric of these runs, seeds x arms, over the seeds for which every run has it."""
        by_key = self.metric(metric)
        found = {place: [by_key.get(key, np.nan) for key in keys[place]] for place in keys}
        return pd.DataFrame(found, index=keys.index, dtype=float).dropna()

    def gates(self, scale: str) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
        """Keys and accuracies of the arms of each gate of a scale; many comparisons ask for them."""
        if scale not in self._gates:
            every = [self.keys(arms, scale) for arms in GATES.get(scale, ())]
            self._gates[scale] = [(keys, self.values(keys, "accuracy")) for keys in every]
        return self._gates[scale]

    def metric(self, name: str) -> dict[str, float]:
        """The metric of each run that has it, by key; worked out once."""
        if name not in self._metrics:
            self._metrics[name] = {str(key): value for key, value in metric_of(self.runs, name).items()}
        return self._metrics[name]


def judge(
    claims: Iterable[Claim], records: Mapping[str, Record], plan: Plan, extra: Measures | None = None
) -> list[Verdict]:
    """The verdict on each claim, in order. Comparisons that several claims share are decided once."""
    claims = list(claims)
    evidence = Evidence(records, plan, extra or {})
    by_id = {claim.id: claim for claim in claims}
    tests = {claim.id: comparisons(claim, by_id) for claim in claims}
    each = dict.fromkeys(test for own in tests.values() for test in own)
    found = {test: find(test, evidence) for test in each}
    found |= _after_looks(found, evidence)
    return [_verdict(claim, tuple(found[test] for test in tests[claim.id])) for claim in claims]


def find(comparison: Comparison, evidence: Evidence) -> Finding:
    """What the records say about a comparison, at the first of its scales that has enough seeds."""
    claim, seen = comparison.claim, ""
    for scale in claim.scales:
        keys = evidence.keys([selector for _, selector in comparison.terms], scale)  # seeds x terms
        values = evidence.values(keys, comparison.metric)
        seen = f"{len(values)} of {len(keys)} seeds at scale {scale}"
        if len(values) >= LEAST_SEEDS:
            break
    else:
        large = all(scale in LARGE for scale in claim.scales)
        return Finding(comparison, NEEDS if large else NO_RUNS, seen)
    keys = keys.loc[values.index]
    differences = values.to_numpy() @ comparison.weights
    acts = claim.reading != "-"
    decision = rules.decide(
        differences,
        claim.margin or 1.0,
        claim.gain if " ; " not in claim.test else None,
        above_chance=_above_chance(comparison.metric, evidence, keys),
        term=_mechanism(scale, evidence, keys) if acts else None,
        rise=_rise(comparison, evidence, keys) if acts else None,
        own_rate=_have_own_rates(scale, evidence, keys),
    )
    return Finding(
        comparison,
        decision.verdict,
        decision.why,
        scale,
        decision.interval,
        tuple(differences.tolist()),
        tuple(values.mean()),
        tuple(tuple(keys[term]) for term in keys),
    )


def _above_chance(metric: str, evidence: Evidence, keys: pd.DataFrame) -> float:
    """Points of the best term above chance, on the test of the metric where the terms have least room."""
    if metric == "coverage":
        return float("inf")
    best = [float(evidence.values(keys, test).mean().max()) for test in metric.split("-")]
    return min(best) - 100 / _classes(evidence.records[str(keys.iloc[0, 0])])


def _classes(record: Record) -> int:
    """Number of classes of a record's data; ten where it does not say."""
    return len(record.metrics.get("class_sizes", ())) or 10


def _mechanism(scale: str, evidence: Evidence, keys: pd.DataFrame) -> Mechanism | None:
    """What is known of the loop's network: that of the control arms where there are any; None without a loop.

    Only the methods of arms with the term count: another method's loop says nothing of theirs.
    """
    every = [evidence.records[key] for term in keys for key in keys[term]]
    acting = {record.experiment.get("method") for record in every if record.experiment.get("risk") != "control"}
    every = [record for record in every if record.experiment.get("method") in acting] or every
    control = [record for record in every if record.experiment.get("risk") == "control"]
    histories = [_history(record) for record in control or every]
    if not any(histories):
        return None
    return rules.mechanism(histories, _classes(every[0]), _gate(scale, evidence, (control or every)[0]))


def _have_own_rates(scale: str, evidence: Evidence, keys: pd.DataFrame) -> bool:
    """Whether the image rate was chosen for the term of every arm, at a scale where rates are chosen (rules.RATED)."""
    every = [evidence.records[key].experiment for term in keys for key in keys[term]]
    terms = {tuple(e.get(name, usual) for name, usual in TERM.items()) for e in every if e.get("risk") in TAILS}
    return terms <= rules.RATED.get(scale, terms)


def _history(record: Record) -> list[dict[str, Any]]:
    """A record's history; records that are older than the probes divided their sums by one training too many."""
    steps = record.experiment.get("inner_steps", 1)
    old = [dict(entry) for entry in record.history if "cross_entropy" in entry]
    if record.experiment.get("method") in SIAMESE and steps > 1:
        for entry in old:
            if "probe_last" not in entry:
                entry["cross_entropy"] *= steps / (steps - 1)
    return old


def _gate(scale: str, evidence: Evidence, judged: Record) -> pd.Series | None:
    """Accuracy of control less that of control with an untrained network, one value a seed; None: not run.

    The gate is the one whose runs have the data and the loop of `judged`; None too where there is no such gate.
    """
    for keys, accuracy in evidence.gates(scale):
        if len(accuracy) < LEAST_SEEDS:
            continue
        trained = evidence.records[keys.loc[accuracy.index[0], 0]]
        if all(judged.experiment.get(name) == trained.experiment.get(name) for name in OF_THE_GATE):
            return accuracy[0] - accuracy[1]
    return None


def _rise(comparison: Comparison, evidence: Evidence, keys: pd.DataFrame) -> np.ndarray | None:
    """For a drop that is said to get smaller with the term: the differences of the accuracy under the shifted test."""
    test, _, standard = comparison.metric.partition("-")
    first = next(selector for weight, selector in comparison.terms if weight > 0)
    if not standard or len(comparison.terms) != 2 or "risk=control" in first or first.endswith("control"):
        return None
    difference: np.ndarray = evidence.values(keys, test).to_numpy() @ comparison.weights
    return difference


def _after_looks(found: Mapping[Comparison, Finding], evidence: Evidence) -> dict[Comparison, Finding]:
    """What the planned looks decide, in whichever claims it stands and on however many of the seeds."""
    decided: dict[Comparison, Finding] = {}
    for (arm, plan), scale in itertools.product(PLANNED.items(), GATES):
        differences: dict[str, pd.Series] = {}
        same: dict[str, dict[Comparison, Finding]] = {}
        for tail, metric in itertools.product(("upper", "lower"), LOOKED_AT):
            keys = evidence.keys([f"{arm} risk={tail}", f"{arm} risk=control"], scale)
            values = evidence.values(keys, metric)
            name, pairs = f"{metric}, {tail}", set(keys.itertuples(index=False, name=None))
            differences[name] = values[0] - values[1]
            same[name] = {c: f for c, f in found.items() if c.metric == metric and _is_of(pairs, f)}
        for name, own in same.items():
            for comparison, f in own.items():
                after = rules.at_looks({name: Decision(f.verdict, f.why, f.difference)}, differences, plan)[name]
                decided[comparison] = replace(f, verdict=after.verdict, why=after.why)
    return decided


def _is_of(pairs: Set[tuple[str, str]], finding: Finding) -> bool:
    """Whether a finding is the difference within these pairs of runs, first less second, or within some of them."""
    is_difference = bool(finding.keys) and tuple(finding.comparison.weights) == (1, -1)
    return is_difference and set(zip(*finding.keys, strict=True)) <= pairs


def _verdict(claim: Claim, findings: tuple[Finding, ...]) -> Verdict:
    if claim.rule == "none":
        return Verdict(claim, NEEDS, claim.why)
    proof = PROOF.fullmatch(claim.test)
    if proof:
        return Verdict(claim, proof[1], claim.why)
    names = [f.verdict for f in findings]
    if len(findings) == 1:
        return Verdict(claim, names[0], findings[0].why, findings)
    counts = ", ".join(f"{name} {count}" for name, count in Counter(sorted(names, key=rules.VERDICTS.index)).items())
    return Verdict(claim, rules.combine(names), f"of {len(names)} comparisons: {counts}", findings)


def tally(verdicts: Iterable[Verdict]) -> dict[str, Counter[str]]:
    """How many claims of each family have each verdict, families in the order of the ledger."""
    counts: dict[str, Counter[str]] = {}
    for verdict in verdicts:
        counts.setdefault(verdict.claim.family, Counter())[verdict.verdict] += 1
    return counts


def corrected(verdicts: Iterable[Verdict]) -> dict[str, tuple[float, float]]:
    """Adjusted one-sided p of each claim with runs, within its family: id -> (Holm, Benjamini and Hochberg).

    Rows that only refer to others, and claims about the term whose mechanism is off, are no tests and do not count.
    """
    families: dict[str, dict[str, float]] = {}
    for v in verdicts:
        if np.isfinite(v.p) and "@" not in v.claim.test and v.verdict not in (rules.MECHANISM_OFF, rules.NO_ROOM):
            families.setdefault(v.claim.family, {})[v.claim.id] = v.p
    adjusted: dict[str, tuple[float, float]] = {}
    for p in families.values():
        first, second = rules.holm(p), rules.benjamini_hochberg(p)
        adjusted |= {name: (first[name], second[name]) for name in p}
    return adjusted
