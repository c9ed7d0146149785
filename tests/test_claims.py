"""The paper's claims: the file is sound, thresholds stay as they were fixed, verdicts are right as often as said."""

from __future__ import annotations

import csv
import dataclasses
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import unmade
from numpy.typing import NDArray
from scipy import stats

from rddlib.analysis import claims, verdicts
from rddlib.analysis.claims import COLUMNS, Claim, Plan
from rddlib.base import SettingError, numpy_generator, repository_root
from rddlib.experiments.records import Record

ROOT = repository_root()
FILE = ROOT / "data" / "claims.csv"
ALL = claims.read()
REPORTED = pd.read_csv(ROOT / "data" / "paper" / "reported.csv")
FIXED = ("table", "claim", "reading", "paper", "rule", "test", "margin", "scales", "stand_in", "seen")
PLAN = Plan(["table1", "table2", "table3", "table4", "table5", "figure4"])  # read when first asked for
SIMULATIONS = 1000
ROW = dict(zip(COLUMNS, (
    "a-b", "1", "Table 1", "a is above b", "upper", "2 - 1", "1.0", "more", "accuracy: +[g/a] -[g/b]", "1.0", "laptop",
    "", "0", "", "pending"), strict=True))  # fmt: skip


def written(folder: Path, *rows: dict[str, str]) -> Path:
    with open(path := folder / "claims.csv", "w", newline="") as file:
        out = csv.DictWriter(file, list(rows[0]))
        out.writeheader()
        out.writerows(rows)
    return path


def claim(folder: Path, **changed: str) -> Claim:
    return claims.read(written(folder, ROW | changed))[0]


class Named(Plan):
    """A plan without grids: the selector 'g/a' means the keys a0, a1, ..."""

    def __init__(self, seeds: int) -> None:
        super().__init__([])
        self.seeds = seeds

    def select(self, selector: str, scale: str) -> dict[int, str]:
        return {s: f"{selector[2:]}{s}" for s in range(self.seeds)}


def records(**arms: NDArray[np.float64]) -> dict[str, Record]:
    """Records of arms (D, E) of accuracies."""
    return {
        f"{name}{seed}": unmade(
            {"seed": seed}, {"accuracy": list(own), "noise": list(own / 2)}, key=f"{name}{seed}"
        )
        for name, table in arms.items() for seed, own in enumerate(table)
    }  # fmt: skip


# --- the file ---------------------------------------------------------------------------------------------


def test_every_number_of_the_paper_stands_in_its_tables_and_every_gain_follows_from_them() -> None:
    for row in ALL:
        if re.fullmatch(r"[\d.()\s-]+", row.paper) and row.gain is not None:
            numbers = [float(n) for n in re.findall(r"\d+\.\d", row.paper)]
            assert eval(row.paper) == pytest.approx(row.gain, abs=0.051), row.id  # digits and signs only, see above
            if row.table in "12345":
                own = set(REPORTED[REPORTED.table == int(row.table)].value)
                assert set(numbers) <= own, row.id


def test_every_comparison_of_the_tables_is_a_claim() -> None:
    """Each pair (base, base with the risk term) that the paper prints, by table."""
    pairs = REPORTED[
        REPORTED.method.isin(["idc_r", "glad_r"]) & ~((REPORTED.table == 2) & (REPORTED.setting == "standard"))
    ]
    for table, own in pairs.groupby("table"):
        said = [c for c in ALL if c.table == str(table) and c.reading in ("upper", "-") and re.match(r"t\d-", c.id)]
        said = [
            c for c in said if re.fullmatch(r"[\d.]+ - [\d.]+", c.paper) and "random" not in c.id and c.rule != "none"
        ]
        absent = sum(c.rule == "none" and c.table == str(table) and "-glad" in c.id for c in ALL)
        assert len(said) + absent == len(own), f"Table {table}"


def test_margins_follow_their_rule() -> None:
    for row in (c for c in ALL if c.rule == "more"):
        expected = min(1.0, row.gain) if row.gain is not None and row.gain > 0 else 1.0
        assert row.margin == pytest.approx(expected, abs=0.0051), row.id


def test_every_selector_finds_runs_in_the_grids_at_each_of_its_scales() -> None:
    by_id = {c.id: c for c in ALL}
    for row in ALL:
        for test in claims.comparisons(row, by_id):
            for scale in test.claim.scales:
                seeds = [set(PLAN.select(s, scale)) for _, s in test.terms]
                assert len(set.intersection(*seeds)) >= verdicts.LEAST, (row.id, scale)


def test_a_stand_in_is_named_where_the_data_are_not_the_papers() -> None:
    for row in ALL:
        if "laptop" in row.scales:
            assert row.stand_in, row.id
            assert "imagenet" not in row.test or "Imagenette" in row.stand_in, row.id
            assert "svhn" not in row.test or "svhn_mini" in row.stand_in, row.id


# --- fixed before the runs --------------------------------------------------------------------------------


def git(*words: str) -> str:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what was fixed when is not known")
    done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the history is not here: git {' '.join(words[:2])} says {done.stderr.strip()[:80]}")
    return done.stdout


def changed(now: Sequence[dict[str, str]], then: Sequence[dict[str, str]]) -> list[str]:
    """Ids of rows of `now` that decide otherwise than those of `then`."""
    before = {row["id"]: row for row in then}
    return [r["id"] for r in now if any(r[c] != before.get(r["id"], {}).get(c) for c in FIXED)]


def test_no_threshold_has_changed_since_the_commit_that_fixed_it() -> None:
    now = list(csv.DictReader(FILE.read_text().splitlines()))
    for commit in sorted({row["fixed_in"] for row in now}):
        then = list(csv.DictReader(git("show", f"{commit}:data/claims.csv").splitlines()))
        assert changed([r for r in now if r["fixed_in"] == commit], then) == []
        git("merge-base", "--is-ancestor", commit, "HEAD")


def test_a_changed_threshold_is_found() -> None:
    then = [ROW, ROW | {"id": "other"}]
    assert changed([ROW | {"margin": "2.0"}, ROW | {"id": "other", "why": "a note"}, ROW | {"id": "new"}], then) == [
        "a-b",
        "new",
    ]


def test_no_row_says_that_fewer_records_were_seen_than_its_commit_holds() -> None:
    by_id, there = {c.id: c for c in ALL}, {}
    for row in (c for c in ALL if c.rule != "none" and "@" not in c.test and "coverage" not in c.test):
        if row.fixed_in not in there:
            names = git("ls-tree", "-r", "--name-only", row.fixed_in, "data/runs").split()
            there[row.fixed_in] = {Path(n).stem for n in names}
        tests = claims.comparisons(row, by_id)
        for scale in row.scales:
            arms = [PLAN.select(s, scale) for t in tests for _, s in t.terms]
            seeds = set.intersection(*map(set, arms))
            assert sum(all(a[s] in there[row.fixed_in] for a in arms) for s in seeds) <= row.seen, row.id


# --- refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed_", "said"),
    [
        ({"table": "6"}, "table = '6'.*one of 1, 2"),
        ({"rule": "less"}, "rule = 'less'"),
        ({"margin": "0"}, "margin = '0'"),
        ({"margin": "x"}, "margin = 'x'"),
        ({"margin": "nan"}, "margin = 'nan'"),
        ({"margin": ""}, "rule = 'more'"),
        ({"rule": "none"}, "rule = 'none'"),
        ({"scales": "moon"}, "scales = 'moon'"),
        ({"scales": ""}, "scales"),
        ({"seen": "-1"}, "seen = '-1'"),
        ({"fixed_in": "soon"}, "fixed_in = 'soon'"),
        ({"id": "A b"}, "id = 'A b'"),
        ({"test": "accuracy +[g/a] -[g/b]"}, "METRIC"),
        ({"test": "accuracy: +[g/a]"}, "METRIC"),
        ({"test": "accuracy: +[g/a] -[g/b] or so"}, "METRIC"),
        ({"test": "accuracy: +[g/a] -0.5[g/b]"}, "weights"),
        ({"test": "accuracy: +[g] -[g/b]"}, "arm of a grid"),
        ({"test": "accuracy: +[g/a colour=red] -[g/b]"}, "arm of a grid"),
        ({"test": "@absent"}, "@absent"),
        ({"test": "@a-b"}, "@a-b"),
    ],
)
def test_a_fault_of_a_row_is_named(tmp_path: Path, changed_: dict[str, str], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        claim(tmp_path, **changed_)


def test_a_fault_of_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="an id that no other row has"):
        claims.read(written(tmp_path, ROW, ROW))
    with pytest.raises(SettingError, match="row 2 .* the columns"):
        claims.read(written(tmp_path, {k: v for k, v in ROW.items() if k != "margin"}))
    with pytest.raises(SettingError, match="cannot be read|can be read"):
        claims.read(tmp_path / "absent.csv")


def test_a_selector_that_leaves_more_than_the_seed_open_is_refused() -> None:
    with pytest.raises(SettingError, match="only the seed open"):
        Plan(["table1"]).select("table1/cifar10_idc", "smoke")


# --- verdicts ---------------------------------------------------------------------------------------------


def rate(effect: float, spread: float, rule: str, margin: float, state: str, seeds: int = 5) -> float:
    """How often `decide` gives a state when differences are Gaussian around `effect`."""
    rng = numpy_generator(0, "verdicts", str(effect), str(spread), seeds)
    draws = rng.normal(effect, spread, (SIMULATIONS, seeds))
    return float(np.mean([verdicts.decide(row, rule, margin)[0] == state for row in draws]))


def near(found: float, expected: float) -> bool:
    """Within four standard errors of a share of SIMULATIONS, and one per cent for the bootstrap's own noise."""
    return abs(found - expected) <= 4 * np.sqrt(max(expected * (1 - expected), 1e-3) / SIMULATIONS) + 0.01


@pytest.mark.parametrize(("effect", "spread"), [(0.0, 0.3), (1.0, 0.8), (2.0, 0.8)])
def test_a_gain_is_replicated_as_often_as_its_power_says(effect: float, spread: float) -> None:
    """No effect: one time in forty. A true one: the power of the t test."""
    noncentral = effect / (spread / np.sqrt(5))
    power = float(stats.nct.sf(stats.t.ppf(0.975, 4), 4, noncentral)) if effect else 0.025
    assert near(rate(effect, spread, "more", 1.0, "holds"), power)


def test_a_gain_as_large_as_the_margin_is_called_absent_one_time_in_forty_and_no_gain_nearly_always() -> None:
    assert rate(1.0, 0.8, "more", 1.0, "fails") <= 0.025 + 0.02
    assert rate(0.0, 0.3, "more", 1.0, "fails") > 0.9
    assert rate(-2.0, 0.5, "more", 1.0, "fails") > 0.99
    assert rate(0.0, 3.0, "more", 1.0, "undecided") > 0.5  # wide intervals are neither


def test_equal_arms_are_called_equal_and_those_a_margin_apart_one_time_in_twenty() -> None:
    assert rate(0.0, 0.3, "equal", 1.0, "holds") > 0.95
    assert rate(1.0, 0.5, "equal", 1.0, "holds") <= 0.05 + 0.025
    assert rate(3.0, 0.5, "equal", 1.0, "fails") > 0.95
    assert rate(0.0, 3.0, "equal", 1.0, "holds") < 0.05  # a wide interval is never equal


@pytest.mark.parametrize(("effect", "verdict"), [(3.0, "replicated"), (0.0, "not"), (-3.0, "not")])
def test_known_records_get_the_right_verdict(tmp_path: Path, effect: float, verdict: str) -> None:
    """Whole way: records of five seeds, three trainings each, that share what their seed does to both arms."""
    row, right = claim(tmp_path), 0
    for trial in range(50):
        rng = numpy_generator(trial, "records", str(effect))
        shared, noise = rng.normal(50, 5, (5, 1)), rng.normal(0, 0.3, (2, 5, 3))
        made = records(a=shared + effect + noise[0], b=shared + noise[1])
        (found,) = verdicts.judge([row], made, Named(5))
        right += found.verdict == verdict
    assert right >= 46
    (finding,) = found.findings
    assert finding.difference is not None and finding.difference.n == 5 and len(found.keys()) == 10
    assert finding.means[0] - finding.means[1] == pytest.approx(finding.difference.mean)
    assert finding.equal == (effect == 0)


def test_two_seeds_are_no_result_and_a_missing_one_is_left_out(tmp_path: Path) -> None:
    row, made = claim(tmp_path), records(a=np.full((4, 2), 52.0), b=np.full((4, 2), 50.0))
    del made["a1"]
    (found,) = verdicts.judge([row], made, Named(5))
    assert found.verdict == "replicated" and found.findings[0].difference.n == 3
    del made["b3"]
    (found,) = verdicts.judge([row], made, Named(5))
    assert (found.verdict, found.why) == ("not tested", "too few runs: 2 of 5 seeds at scale laptop")
    (found,) = verdicts.judge([row], {}, Named(5))
    assert (found.verdict, found.why) == ("not tested", "not run yet: 0 of 5 seeds at scale laptop")


def test_the_first_scale_with_enough_seeds_decides(tmp_path: Path) -> None:
    class Two(Named):
        def select(self, selector: str, scale: str) -> dict[int, str]:
            return {s: f"{scale}-{k}" for s, k in super().select(selector, scale).items()}

    row = claim(tmp_path, scales="gpu laptop")
    low = {f"laptop-{k}": r for k, r in records(a=np.full((5, 1), 40.0), b=np.full((5, 1), 50.0)).items()}
    high = {f"gpu-{k}": r for k, r in records(a=np.full((3, 1), 52.0), b=np.full((3, 1), 50.0)).items()}
    (found,) = verdicts.judge([row], low | high, Two(5))
    assert (found.verdict, found.findings[0].scale) == ("replicated", "gpu")
    (found,) = verdicts.judge([row], low | dict(list(high.items())[:5]), Two(5))
    assert (found.verdict, found.findings[0].scale) == ("not", "laptop")


def test_contrasts_take_signs_weights_and_two_metrics(tmp_path: Path) -> None:
    made = records(**{n: np.full((3, 1), v) for n, v in {"a": 60.0, "b": 50.0, "c": 30.0, "d": 26.0}.items()})
    row = claim(tmp_path, test="accuracy: +[g/a] -[g/b] -[g/c] +[g/d]")
    assert verdicts.judge([row], made, Named(3))[0].findings[0].difference.mean == pytest.approx(6)
    row = claim(tmp_path, test="noise-accuracy: +0.5[g/a] -0.5[g/b]")
    assert verdicts.judge([row], made, Named(3))[0].findings[0].difference.mean == pytest.approx(-2.5)
    row = claim(tmp_path, test="coverage: +[g/a] -[g/b]")
    assert verdicts.judge([row], made, Named(3))[0].verdict == "not tested"


@pytest.mark.parametrize(
    ("states", "verdict"),
    [
        ("h", "replicated"), ("hh", "replicated"), ("hf", "partly"), ("hu", "partly"), ("hhn", "partly"), ("f", "not"),
        ("huu", "not tested"), ("huf", "not"), ("u", "not tested"), ("n", "not tested"), ("", "not tested"),
        ("fn", "not"), ("fnn", "not tested"), ("funn", "not"),
    ],
)  # fmt: skip
def test_states_combine_to_a_verdict(states: str, verdict: str) -> None:
    words = {"h": "holds", "f": "fails", "u": "undecided", "n": "not run"}
    assert verdicts.combine([words[s] for s in states]) == verdict


def test_a_row_that_refers_to_others_counts_their_comparisons(tmp_path: Path) -> None:
    rows = claims.read(written(
        tmp_path, ROW, ROW | {"id": "two", "test": "accuracy: +[g/a] -[g/b] ; noise: +[g/b] -[g/a]"},
        ROW | {"id": "all", "test": "@a-b @two", "scales": ""},
        ROW | {"id": "read", "rule": "none", "test": "", "margin": "", "why": "because"},
    ))  # fmt: skip
    found = verdicts.judge(rows, records(a=np.full((3, 1), 52.0), b=np.full((3, 1), 50.0)), Named(3))
    assert [v.verdict for v in found] == ["replicated", "partly", "partly", "not tested"]
    assert found[2].why == "of 3 comparisons: holds 2, fails 1" and found[3].why == "because"
    assert verdicts.tally(found) == {"replicated": 1, "partly": 2, "not": 0, "not tested": 1, "undecided": 0}


def test_the_records_here_give_each_claim_one_of_the_four_verdicts() -> None:
    assert all(dataclasses.is_dataclass(c) and c.rule in claims.RULES for c in ALL)
    found = verdicts.judge(ALL, {}, PLAN)
    assert {v.verdict for v in found} == {"not tested"} and all(v.why for v in found)
