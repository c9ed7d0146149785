"""The rule of decision against a table and its properties; planned looks against simulation."""

from __future__ import annotations

import ast
import hashlib
import json
import math
import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from rddlib.analysis import rules
from rddlib.analysis.rules import Mechanism
from rddlib.base import SettingError, numpy_generator, repository_root

ROOT = repository_root()
RULE = json.loads((ROOT / "data" / "claims_rule.json").read_text())
DECIDES = {"mechanism", "t_interval", "decide", "_rose", "_place", "combine", "one_sided", "holm", "looks", "at_looks"}
NUMBERS = {"LEAST_SEEDS", "ROOM", "GATE", "FALL", "LOOKS", "ONE_LOOK", "RATED"}

ON, OFF, NO_GATE = Mechanism("on", ""), Mechanism("off", "chance"), Mechanism("gate not run", "not measured")


def around(mean: float, half: float) -> list[float]:
    """Five differences whose 95 % interval is mean -+ half."""
    shape = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    unit = stats.t.ppf(0.975, 4) * shape.std(ddof=1) / math.sqrt(5)
    return list(mean + half * shape / unit)


@pytest.mark.parametrize(
    ("mean", "half", "gain", "known", "verdict", "why"),
    [
        (2.0, 1.0, 1.1, {}, "supported", "above zero"),
        (0.5, 0.4, 3.0, {}, "supported", "smaller than the paper's gain"),
        (-0.5, 0.4, 1.1, {}, "contradicted", "below zero"),
        (0.0, 0.9, 1.1, {}, "no difference", "within 1"),
        (-1.0, 1.5, 1.1, {}, "contradicted", "gain is excluded"),
        (-1.0, 1.5, None, {}, "undecided", "holds zero"),
        (-1.0, 1.5, -2.0, {}, "undecided", "holds zero"),
        (0.5, 2.0, 1.1, {}, "undecided", "holds zero"),
        (2.0, 1.0, 1.1, {"term": ON}, "supported", "above zero"),
        (2.0, 1.0, 1.1, {"term": OFF}, "mechanism off", "chance"),
        (-2.0, 1.0, 1.1, {"term": OFF}, "mechanism off", "chance"),
        (2.0, 1.0, 1.1, {"term": NO_GATE}, "undecided", "gate not run"),
        (2.0, 1.0, 1.1, {"own_rate": False}, "undecided", "chosen for another"),
        (-2.0, 1.0, 1.1, {"own_rate": False, "term": OFF}, "mechanism off", "chance"),
        (2.0, 1.0, 1.1, {"above_chance": 4.9}, "no room", "above chance"),
        (2.0, 1.0, 1.1, {"above_chance": 4.9, "term": OFF}, "no room", "above chance"),
        (2.0, 1.0, 1.1, {"rise": around(0.0, 0.3)}, "undecided", "standard accuracy fell"),
        (2.0, 1.0, 1.1, {"rise": around(1.1, 3.0)}, "supported", "above zero"),
        (2.0, 1.0, 1.1, {"rise": around(0.5, 0.3)}, "supported", "above zero"),
    ],
)
def test_the_rule(mean: float, half: float, gain: float | None, known: dict, verdict: str, why: str) -> None:
    found = rules.decide(around(mean, half), 1.0, gain, **known)
    assert found.verdict == verdict and why in found.why
    assert found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx((mean - half, mean + half))


def test_two_seeds_are_no_runs_and_a_margin_is_positive() -> None:
    assert rules.decide([1.0, 2.0], 1.0).verdict == "no runs"
    with pytest.raises(SettingError, match="margin"):
        rules.decide([1.0, 2.0, 3.0], 0.0)
    with pytest.raises(SettingError, match="differences"):
        rules.t_interval([1.0, math.nan])


numbers = st.floats(-20, 20).map(lambda v: round(v, 3))


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.lists(numbers, min_size=3, max_size=12), st.floats(0.1, 3), st.none() | st.floats(-3, 10), st.floats(0, 5))
def test_properties_of_the_rule(values: list[float], margin: float, gain: float | None, shift: float) -> None:
    found = rules.decide(values, margin, gain)
    assert found.verdict in rules.VERDICTS
    assert rules.decide(values[::-1], margin, gain).verdict == found.verdict or np.ptp(values) < 1e-6
    assume(np.ptp(values) > 1e-3)
    if found.verdict == "supported":  # a larger difference never loses its support
        assert rules.decide([v + shift for v in values], margin, gain).verdict == "supported"
        assert rules.decide([-v for v in values], margin, gain).verdict == "contradicted"
    off = rules.decide(values, margin, gain, term=OFF)
    assert off.verdict == "mechanism off"  # whatever the numbers are
    if gain is None and found.verdict == "contradicted":
        assert found.interval is not None and found.interval.high < 0


def test_the_mechanism_by_probes_by_entropy_and_by_its_gate() -> None:
    learnt, chance = [{"probe_last": 0.5}, {"probe_last": 0.3}], [{"probe_last": 0.29}, {"probe_last": 0.29}]
    assert rules.mechanism([chance], 10, [5.0]).state == "off"
    assert rules.mechanism([learnt], 10).state == "gate not run"
    assert rules.mechanism([learnt], 10, [1.0, 2.9]).state == "off"
    assert rules.mechanism([learnt], 10, [1.0, 3.1]).state == "on"
    old = [{"cross_entropy": 2.4}, {"cross_entropy": 2.3}, {"cross_entropy": 2.25}, {"cross_entropy": 2.2}]
    assert rules.mechanism([old], 10).state == "off"
    assert rules.mechanism([[{"cross_entropy": 2.4}, {"cross_entropy": 1.8}]], 10).state == "gate not run"
    with pytest.raises(SettingError, match="histories"):
        rules.mechanism([[]], 10)


def test_corrections_of_a_known_family() -> None:
    p = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    assert rules.holm(p) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})  # R's p.adjust, holm
    assert rules.benjamini_hochberg(p) == pytest.approx({"a": 0.02, "b": 0.04, "c": 0.04, "d": 0.02})
    assert rules.holm({}) == rules.benjamini_hochberg({}) == {}


def simulated(effects: list[float], sd: float, trials: int, shared: float) -> list[dict[str, int | None]]:
    """Planned looks on Gaussian families; `shared` is the correlation that one control gives its comparisons."""
    rng = numpy_generator(0, "looks", str(effects), str(sd))
    common = rng.standard_normal((trials, 1, 10))
    noise = math.sqrt(shared) * common + math.sqrt(1 - shared) * rng.standard_normal((trials, len(effects), 10))
    values = np.array(effects)[:, None] + sd * noise
    return [rules.looks({str(i): row for i, row in enumerate(family)}) for family in values]


@pytest.mark.parametrize("shared", [0.0, 0.5])
def test_two_looks_at_four_hypotheses_err_no_more_than_their_levels_add_up_to(shared: float) -> None:
    trials = 3000
    wrong = np.mean([any(family.values()) for family in simulated([0.0] * 4, 0.6, trials, shared)])
    assert wrong <= 0.0275 + 3 * math.sqrt(0.0275 / trials)  # .005 + .0225 by Bonferroni over the looks


def test_one_hypothesis_errs_about_one_time_in_forty_and_finds_a_point() -> None:
    trials = 4000
    null = np.mean([bool(f["0"]) for f in simulated([0.0], 0.6, trials, 0.0)])
    assert null <= 0.0256 + 3 * math.sqrt(0.0256 / trials)
    assert np.mean([bool(f["0"]) for f in simulated([1.0], 0.71, trials, 0.0)]) > 0.96
    assert np.mean([f["0"] == 5 for f in simulated([1.0], 0.71, trials, 0.0)]) > 0.2  # some stop early


def test_a_look_that_is_not_complete_is_not_taken() -> None:
    strong = [5.0, 5.1, 4.9, 5.2, 4.8]
    assert rules.looks({"a": strong[:4]}) == {"a": None}
    assert rules.looks({"a": strong, "b": strong[:3]}) == {"a": None, "b": None}
    assert rules.looks({"a": strong}) == {"a": 5}


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [
        ("s", "supported"), ("ss", "supported"), ("sc", "contradicted"), ("c", "contradicted"), ("cr", "contradicted"),
        ("n", "no difference"), ("nn", "no difference"), ("nr", "undecided"), ("sn", "undecided"), ("sr", "undecided"),
        ("u", "undecided"), ("m", "mechanism off"), ("mr", "mechanism off"), ("mo", "undecided"), ("o", "no room"),
        ("r", "no runs"), ("", "no runs"), ("g", "needs data or GPU"), ("gr", "no runs"), ("mg", "mechanism off"),
    ],
)  # fmt: skip
def test_comparisons_combine_to_one_verdict_in_any_order(parts: str, verdict: str) -> None:
    words = dict(zip("sncumogr", rules.VERDICTS, strict=True))
    assert list(words.values()) == [
        "supported", "no difference", "contradicted", "undecided", "mechanism off", "no room", "needs data or GPU",
        "no runs",
    ]  # fmt: skip
    assert rules.combine([words[p] for p in parts]) == verdict
    assert rules.combine([words[p] for p in reversed(parts)]) == verdict


def test_planned_looks_decide_what_is_supported_and_what_has_to_wait() -> None:
    """Clear after five seeds; clear only after ten; seen at .05 but not after the correction; below zero."""
    strong, weak, none = around(3.0, 0.4), around(0.6, 0.59), around(-2.0, 0.5)
    five = {"a": strong, "b": weak, "c": none, "d": none}
    decided = {name: rules.decide(own, 1.0, term=ON) for name, own in five.items()}
    assert [d.verdict for d in decided.values()] == ["supported", "supported", "contradicted", "contradicted"]
    first = rules.at_looks(decided, five)
    assert first["a"].verdict == "supported" and "look of 5" in first["a"].why
    assert {first[n].verdict for n in "bcd"} == {"undecided"} and "5 of 10" in first["b"].why
    ten = {"a": strong * 2, "b": [1.6, -0.6] * 5, "c": none * 2, "d": none * 2}
    decided = {name: rules.decide(own, 1.0, term=ON) for name, own in ten.items()}
    last = rules.at_looks(decided, ten)
    assert last["a"].verdict == "supported" and last["c"].verdict == "contradicted"
    assert last["b"].verdict == decided["b"].verdict == "undecided"
    seen_once = ten | {"b": [1.5, -0.2] * 5}
    decided = {name: rules.decide(own, 1.0, term=ON) for name, own in seen_once.items()}
    held = rules.at_looks(decided, seen_once)["b"]
    assert decided["b"].verdict == "supported" and held.verdict == "undecided" and "correction" in held.why
    assert rules.at_looks({"b": decided["b"]}, seen_once) == {"b": held}  # the others count though they are not asked
    early = rules.at_looks(decided, {name: own[:7] for name, own in seen_once.items()}, {8: 0.025})
    assert {d.verdict for d in early.values()} == {"undecided"} and "7 of 8 seeds" in early["a"].why
    once = rules.at_looks(decided, seen_once, {8: 0.025})
    assert once["a"].verdict == "supported" and "4 tests" in once["b"].why
    off = {name: rules.decide(own, 1.0, term=OFF) for name, own in ten.items()}
    assert {d.verdict for d in rules.at_looks(off, ten).values()} == {"mechanism off"}


# --- fixed ------------------------------------------------------------------------------------------------


def fingerprint(rules_text: str, mechanism_text: str) -> str:
    """Hash of all that decides: the functions without their docstrings and the thresholds; layout does not matter."""
    parts = []
    for text, names in ((rules_text, NUMBERS), (mechanism_text, {"LEARNT"})):
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef) and node.name in DECIDES and names is NUMBERS:
                node.body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                parts.append(ast.dump(node))
            if isinstance(node, ast.Assign) and {getattr(t, "id", "") for t in node.targets} & names:
                parts.append(ast.dump(node))
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()


def test_the_rule_is_the_one_that_was_fixed() -> None:
    """A change of the rule needs a new entry in data/claims_rule.json, and a line on the page of verdicts."""
    files = [ROOT / "rddlib" / "analysis" / f"{name}.py" for name in ("rules", "mechanism")]
    now = [path.read_text() for path in files]
    assert fingerprint(*now) == RULE["sha256"]
    for before, after in (("GATE = 2.0", "GATE = 1.0"), ("interval.low > 0:", "interval.low > -1:")):
        assert fingerprint(now[0].replace(before, after), now[1]) != RULE["sha256"]
    assert fingerprint(now[0], now[1].replace("LEARNT = 3.0", "LEARNT = 2.0")) != RULE["sha256"]


def test_the_rule_stood_in_the_commit_that_is_said_to_have_fixed_it() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    names = [f"{RULE['fixed_in']}:rddlib/analysis/{name}.py" for name in ("rules", "mechanism")]
    shown = [subprocess.run(["git", "show", n], cwd=ROOT, capture_output=True, text=True, check=False) for n in names]
    if any(done.returncode for done in shown):
        pytest.skip("the history is not here")
    assert fingerprint(*(done.stdout for done in shown)) == RULE["sha256"]
