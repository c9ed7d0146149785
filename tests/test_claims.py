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

from rddlib.analysis import claims, rules, verdicts
from rddlib.analysis.claims import COLUMNS, Claim, Plan
from rddlib.base import SettingError, numpy_generator, repository_root
from rddlib.experiments.records import Record

ROOT = repository_root()
FILE = ROOT / "data" / "claims.csv"
ALL = claims.read()
REPORTED = pd.read_csv(ROOT / "data" / "paper" / "reported.csv")
FIXED = ("table", "claim", "reading", "paper", "rule", "test", "margin", "scales", "stand_in")
GRIDS = [*(f"table{n}" for n in range(1, 6)), "figure4", "gate", "gate_1", "real_groups", "real_groups_cifar10"]
PLAN = Plan(GRIDS)  # read when first asked for
ROW = dict.fromkeys(COLUMNS, "") | {
    "id": "a-b",
    "table": "1",
    "family": "accuracy",
    "place": "Table 1",
    "claim": "a is above b",
    "reading": "-",
    "paper": "2 - 1",
    "gain": "1.0",
    "supports": "yes",
    "rule": "more",
    "test": "accuracy: +[g/a] -[g/b]",
    "margin": "1.0",
    "scales": "laptop",
    "seen": "0",
    "fixed_in": "pending",
}


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
            {"seed": seed},
            {"accuracy": list(own), "cluster_min": list(own - 5), "noise": list(own / 2)},
            key=f"{name}{seed}",
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
        if row.test.startswith("coverage"):
            expected = 0.1  # the arms and random images lie within 1.4 points of each other
        assert row.margin == pytest.approx(expected, abs=0.0051), row.id


def test_every_selector_finds_runs_in_the_grids_at_each_of_its_scales() -> None:
    by_id = {c.id: c for c in ALL}
    for row in ALL:
        for test in claims.comparisons(row, by_id):
            for scale in test.claim.scales:
                seeds = [set(PLAN.select(s, scale)) for _, s in test.terms]
                assert len(set.intersection(*seeds)) >= rules.LEAST_SEEDS, (row.id, scale)


def test_a_stand_in_is_named_where_the_data_are_not_the_papers() -> None:
    for row in ALL:
        if "laptop" in row.scales:
            assert row.stand_in, row.id
            assert ("cpu" in row.scales) == ("cpu: " in row.stand_in), row.id
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


def test_every_row_says_how_many_seeds_its_commit_holds() -> None:
    """Seeds whose records were all there, for the comparison and the scale with most of them."""
    by_id, there = {c.id: c for c in ALL}, {}
    for row in ALL:
        if row.fixed_in not in there:
            names = git("ls-tree", "-r", "--name-only", row.fixed_in, "data/runs").split()
            there[row.fixed_in] = {Path(n).stem for n in names}
        known, most = there[row.fixed_in], 0
        for test in claims.comparisons(row, by_id):
            for scale in test.claim.scales:
                arms = [PLAN.select(selector, scale) for _, selector in test.terms]
                seeds = set.intersection(*map(set, arms))
                most = max(most, sum(all(arm[s] in known for arm in arms) for s in seeds))
        assert row.seen == most, row.id


def test_no_row_tests_the_opposite_of_the_papers_own_number() -> None:
    assert all(row.gain is None or row.gain > 0 for row in ALL)


def test_every_proof_names_a_test_that_is_there() -> None:
    proofs = [claims.PROOF.fullmatch(row.test) for row in ALL if row.rule == "proof"]
    assert len(proofs) >= 10
    for found in proofs:
        assert found is not None
        path, _, name = found[2].partition("::")
        assert f"def {name}(" in (ROOT / path).read_text(), found[2]


# --- refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed_", "said"),
    [
        ({"table": "6"}, "table = '6'.*'1', '2'"),
        ({"rule": "less"}, "rule = 'less'"),
        ({"margin": "0"}, "margin = '0'"),
        ({"margin": "x"}, "margin = 'x'"),
        ({"margin": "nan"}, "margin = 'nan'"),
        ({"margin": ""}, "rule = 'more'"),
        ({"rule": "none", "test": ""}, "rule = 'none'"),
        ({"rule": "proof"}, "rule = 'proof'"),
        ({"rule": "proof", "margin": "", "why": "so"}, "a verdict and the test that shows it"),
        ({"family": "luck"}, "family = 'luck'"),
        ({"supports": "maybe"}, "supports = 'maybe'"),
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
        ({"test": "+@a-b"}, "@a-b"),
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


@pytest.mark.parametrize(("effect", "verdict"), [(3.0, "supported"), (0.0, "no difference"), (-3.0, "contradicted")])
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
    assert finding.difference == rules.t_interval(finding.values)


def test_two_seeds_are_no_result_and_a_missing_one_is_left_out(tmp_path: Path) -> None:
    row, made = claim(tmp_path), records(a=np.full((4, 2), 52.0), b=np.full((4, 2), 50.0))
    del made["a1"]
    (found,) = verdicts.judge([row], made, Named(5))
    assert found.verdict == "supported" and found.findings[0].difference.n == 3
    del made["b3"]
    (found,) = verdicts.judge([row], made, Named(5))
    assert (found.verdict, found.why) == ("no runs", "2 of 5 seeds at scale laptop")
    (found,) = verdicts.judge([claim(tmp_path, scales="paper gpu")], {}, Named(5))
    assert (found.verdict, found.why) == ("needs data or GPU", "0 of 5 seeds at scale gpu")


class Scaled(Named):
    """As Named, with keys that begin with the scale."""

    def select(self, selector: str, scale: str) -> dict[int, str]:
        name = selector.replace("/", "-") if selector.startswith("gate") else selector[2:]
        return {s: f"{scale}-{name}{s}" for s in range(self.seeds)}


def at(scale: str, **arms: NDArray[np.float64]) -> dict[str, Record]:
    return keyed({f"{scale}-{k}": r for k, r in records(**arms).items()})


def keyed(made: dict[str, Record]) -> dict[str, Record]:
    """The records under these keys."""
    return {key: dataclasses.replace(record, key=key) for key, record in made.items()}


def test_the_first_scale_with_enough_seeds_decides(tmp_path: Path) -> None:
    row = claim(tmp_path, scales="gpu laptop")
    low = at("laptop", a=np.full((5, 1), 40.0), b=np.full((5, 1), 50.0))
    high = at("gpu", a=np.full((3, 1), 52.0), b=np.full((3, 1), 50.0))
    (found,) = verdicts.judge([row], low | high, Scaled(5))
    assert (found.verdict, found.findings[0].scale) == ("supported", "gpu")
    (found,) = verdicts.judge([row], low | dict(list(high.items())[:5]), Scaled(5))
    assert (found.verdict, found.findings[0].scale) == ("contradicted", "laptop")


def told(made: dict[str, Record], **history: float) -> dict[str, Record]:
    """The same records with a history of one outer step; arm b is control."""
    changed = {}
    for key, record in made.items():
        settings = record.experiment | {"risk": "control" if key.rstrip("0123456789").endswith("b") else "upper"}
        changed[key] = dataclasses.replace(record, experiment=settings, history=[dict(history)])
    return changed


def test_a_claim_on_the_term_needs_a_network_that_learns_and_a_gate(tmp_path: Path) -> None:
    row = claim(tmp_path, reading="upper", scales="cpu")
    arms = at("cpu", a=np.full((3, 1), 53.0), b=np.full((3, 1), 50.0))
    (found,) = verdicts.judge([row], told(arms, cross_entropy=2.2), Scaled(3))
    assert found.verdict == "mechanism off" and "2.20" in found.why
    learnt = told(arms, cross_entropy=1.5, probe_last=0.5)
    (found,) = verdicts.judge([row], learnt, Scaled(3))
    assert found.verdict == "undecided" and found.why.startswith("gate not run")
    for moved, verdict in ((1.0, "mechanism off"), (4.0, "supported")):
        gate = {f"cpu-gate-control{s}": v for s, v in enumerate(records(c=np.full((3, 1), 50.0 + moved)).values())}
        gate |= {f"cpu-gate-untrained{s}": v for s, v in enumerate(records(c=np.full((3, 1), 50.0)).values())}
        assert verdicts.judge([row], learnt | keyed(gate), Scaled(3))[0].verdict == verdict
    other = {k: dataclasses.replace(r, experiment=r.experiment | {"method": "glad"}) for k, r in learnt.items()}
    (found,) = verdicts.judge([row], other | keyed(gate), Scaled(3))
    assert found.why.startswith("gate not run")  # the gate is of another method
    smaller = {k: dataclasses.replace(r, experiment=r.experiment | {"size": 16}) for k, r in learnt.items()}
    (found,) = verdicts.judge([row], smaller | keyed(gate), Scaled(3))
    assert found.why.startswith("gate not run")  # the gate is of another loop
    own = {k.replace("gate", "gate_1"): r for k, r in gate.items()}
    own = {k: dataclasses.replace(r, experiment=r.experiment | {"size": 16}) for k, r in own.items()}
    assert verdicts.judge([row], smaller | keyed(gate | own), Scaled(3))[0].verdict == "supported"
    assert verdicts.judge([claim(tmp_path, scales="cpu")], told(arms, cross_entropy=2.3), Scaled(3))[0].verdict == (
        "supported"
    )


def test_an_arm_at_the_image_rate_of_another_decides_nothing(tmp_path: Path) -> None:
    row = claim(tmp_path, reading="upper", scales="cpu")
    made = told(at("cpu", a=np.full((3, 1), 53.0), b=np.full((3, 1), 50.0)), cross_entropy=1.5, probe_last=0.5)
    gate = {f"cpu-gate-control{s}": v for s, v in enumerate(records(c=np.full((3, 1), 54.0)).values())}
    gate |= {f"cpu-gate-untrained{s}": v for s, v in enumerate(records(c=np.full((3, 1), 50.0)).values())}
    for changed, why in (({"alpha": 0.8}, "above zero"), ({"alpha": 0.2}, "another"), ({"worst": 0.0}, "another")):
        for key in [key for key in made if key.startswith("cpu-a")]:
            settings = {**made[key].experiment, "alpha": 0.8, "risk": "upper"} | changed
            made[key] = dataclasses.replace(made[key], experiment=settings)
        (found,) = verdicts.judge([row], made | keyed(gate), Scaled(3))
        assert why in found.why


def test_another_methods_loop_says_nothing_of_the_terms(tmp_path: Path) -> None:
    """DM trains no network: where it stands beside a method with the term, the mechanism is that method's."""
    rows = [
        claim(tmp_path, reading="upper", scales="cpu", test=test)
        for test in ("accuracy: +[g/a] -.5[g/b] -.5[g/d]", "accuracy: +[g/a] -[g/d]")
    ]
    arms = at("cpu", a=np.full((3, 1), 53.0), b=np.full((3, 1), 50.0), d=np.full((3, 1), 50.0))
    made = told(arms, cross_entropy=2.2)
    for key, record in made.items():
        settings = record.experiment | {"method": "idc"}
        if key.startswith("cpu-d"):
            settings |= {"method": "dm", "risk": "control"}
            record = dataclasses.replace(record, history=[{"cross_entropy": 0.0}])
        made[key] = dataclasses.replace(record, experiment=settings)
    for row in rows:
        (found,) = verdicts.judge([row], made, Scaled(3))
        assert found.verdict == "mechanism off" and "2.20" in found.why


def test_an_old_history_of_glad_is_read_with_the_trainings_that_were_made() -> None:
    """Two image steps and one training between them: the sum was divided by two."""
    record = unmade({"method": "glad", "inner_steps": 2}, {"accuracy": [30.0]}, history=[{"cross_entropy": 1.17}])
    assert verdicts._history(record) == [{"cross_entropy": pytest.approx(2.34)}]
    new = dataclasses.replace(record, history=[{"cross_entropy": 1.17, "probe_last": 0.4}])
    assert verdicts._history(new) == new.history


def test_a_test_at_chance_leaves_no_room_and_a_drop_that_is_smaller_for_the_worse_is_no_gain(tmp_path: Path) -> None:
    made = records(a=np.full((3, 1), 22.0), b=np.full((3, 1), 20.0))  # noise is half of the accuracy
    row = claim(tmp_path, test="noise: +[g/a] -[g/b]")
    assert verdicts.judge([row], made, Named(3))[0].verdict == "no room"
    learnt = told(records(a=np.full((3, 1), 44.0), b=np.full((3, 1), 50.0)), cross_entropy=1.5)
    row = claim(tmp_path, test="noise-accuracy: +[g/a] -[g/b]", reading="upper")
    evidence = verdicts.Evidence(learnt, Named(3))
    finding = verdicts.find(claims.comparisons(row, {})[0], evidence)
    assert finding.values == (3.0, 3.0, 3.0)  # half of a fall by six
    rise = verdicts._rise(finding.comparison, evidence, evidence.keys(["g/a", "g/b"], "laptop"))
    assert list(rise) == [-3.0, -3.0, -3.0]
    assert rules.decide(finding.values, 1.0, rise=rise).verdict == "undecided"


def test_contrasts_take_signs_weights_and_two_metrics(tmp_path: Path) -> None:
    made = records(**{n: np.full((3, 1), v) for n, v in {"a": 60.0, "b": 50.0, "c": 30.0, "d": 26.0}.items()})
    row = claim(tmp_path, test="accuracy: +[g/a] -[g/b] -[g/c] +[g/d]")
    assert verdicts.judge([row], made, Named(3))[0].findings[0].difference.mean == pytest.approx(6)
    row = claim(tmp_path, test="noise-accuracy: +0.5[g/a] -0.5[g/b]")
    assert verdicts.judge([row], made, Named(3))[0].findings[0].difference.mean == pytest.approx(-2.5)
    row = claim(tmp_path, test="coverage: +[g/a] -[g/b]")
    assert verdicts.judge([row], made, Named(3))[0].verdict == "no runs"


def test_the_worst_group_is_the_smallest_of_the_means_over_trainings() -> None:
    groups = [[40.0, 30.0, None], [20.0, 50.0, None]]
    known = {"cluster_min": [30.0, 20.0], "cluster_accuracy": groups, "accuracy": [45.0, 45.0]}
    old = {"cluster_min": [30.0, 20.0]}
    runs = claims.measured([unmade({}, known, key="known"), unmade({}, old, key="old")])
    assert claims.metric_of(runs, "cluster_min").to_dict() == {"known": 30.0, "old": 25.0}  # 30, 40 and an empty group
    assert claims.metric_of(runs, "cluster_min-accuracy").to_dict() == {"known": -15.0}


def test_a_row_that_refers_to_others_counts_their_comparisons(tmp_path: Path) -> None:
    proof = {"rule": "proof", "test": "contradicted tests/test_a.py::test_b", "margin": "", "why": "see there"}
    rows = claims.read(written(
        tmp_path, ROW, ROW | {"id": "two", "test": "accuracy: +[g/a] -[g/b] ; noise: +[g/b] -[g/a]"},
        ROW | {"id": "all", "test": "@a-b @two", "scales": ""},
        ROW | {"id": "turned", "test": "-@a-b", "scales": ""},
        ROW | {"id": "read", "rule": "none", "test": "", "margin": "", "why": "because"},
        ROW | {"id": "shown"} | proof,
    ))  # fmt: skip
    rng = numpy_generator(0, "rows")
    b = rng.normal(50, 1, (4, 1))
    found = verdicts.judge(rows, records(a=b + 2 + rng.normal(0, 0.1, (4, 1)), b=b), Named(4))
    names = [v.verdict for v in found]
    assert names == [
        "supported", "contradicted", "contradicted", "contradicted", "needs data or GPU", "contradicted",
    ]  # fmt: skip
    assert found[2].why == "of 3 comparisons: supported 2, contradicted 1"
    assert found[3].findings[0].difference.mean == pytest.approx(-found[0].findings[0].difference.mean)
    assert (found[4].why, found[5].why) == ("because", "see there")
    assert found[3].findings[0].comparison.claim.gain == -found[0].findings[0].comparison.claim.gain
    (family,) = verdicts.tally(found).values()
    assert family == {"supported": 1, "contradicted": 4, "needs data or GPU": 1}
    holm, bh = verdicts.corrected(found)["a-b"]
    assert set(verdicts.corrected(found)) == {"a-b", "two"}  # rows of references are no tests of their own
    assert found[0].p <= bh <= holm <= 2 * found[0].p


class Primary(Scaled):
    """As Scaled; a and c are the two tails of the primary comparison, b is its control."""

    def select(self, selector: str, scale: str) -> dict[int, str]:
        arm, _, risk = selector.partition(" risk=")
        if arm.startswith("table1/"):
            selector = "g/" + {"upper": "a", "lower": "c", "control": "b"}[risk]
            return super().select(selector, scale) if arm == "table1/cifar10_idc" else {}
        return super().select(selector, scale)


def test_what_the_looks_decide_waits_for_them_in_whatever_row_it_stands(tmp_path: Path) -> None:
    """Five seeds: what is clear is supported, what is not yet clear waits; other measures and signs have no looks."""
    tests = {
        "clear": "accuracy: +[g/a] -[g/b]",
        "not-clear": "accuracy: +[g/c] -[g/b]",
        "turned": "accuracy: +[g/b] -[g/c]",
        "another-measure": "noise: +[g/c] -[g/b]",
    }
    rows = [ROW | {"id": name, "reading": "upper", "scales": "cpu", "test": test} for name, test in tests.items()]
    own = claims.read(written(tmp_path, *rows))
    noise = numpy_generator(1, "looks").normal(0, 0.1, (5, 1))
    arms = at("cpu", a=53.0 + noise, b=np.full((5, 1), 50.0), c=47.0 + noise)
    made = told(arms, cross_entropy=1.5, probe_last=0.5)
    gate = {f"cpu-gate-control{s}": v for s, v in enumerate(records(c=np.full((5, 1), 54.0)).values())}
    gate |= {f"cpu-gate-untrained{s}": v for s, v in enumerate(records(c=np.full((5, 1), 50.0)).values())}
    found = verdicts.judge(own, made | keyed(gate), Primary(5))
    assert [v.verdict for v in found] == ["supported", "undecided", "supported", "contradicted"]
    assert "look of 5" in found[0].why and "5 of 10 seeds" in found[1].why and found[2].why == "above zero"
    (alone,) = verdicts.judge(own[1:2], made | keyed(gate), Primary(5))
    assert alone.verdict == "undecided"


def test_without_records_no_claim_has_runs_and_all_say_why() -> None:
    found = verdicts.judge(ALL, {}, PLAN)
    measured = [v for v in found if v.claim.rule == "more"]
    assert {v.verdict for v in measured} == {"no runs", "needs data or GPU"} and all(v.why for v in found)
    assert {v.claim.id for v in found if v.verdict == "supported"} == {"p-th-eq8", "p-th-step1"}
