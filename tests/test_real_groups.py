"""Sets with known groups: the rule for looks, the gate and the comparison on numbers whose answers are known."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re

import pandas as pd
import pytest
from conftest import ROOT, unmade

from rddlib.analysis import real_groups
from rddlib.data import looks
from rddlib.experiments import grid
from rddlib.experiments.experiment import Experiment
from rddlib.experiments.records import Record, Store
from rddlib.stats import mean_interval

SEEDS = range(6)
NOISE = (0.3, -0.4, 0.1, 0.5, -0.2, -0.3)  # of the paired differences: mean 0, small beside the gains below


def table(**gains: float) -> pd.DataFrame:
    """Control at 90 and 30, and every arm that has a gain (points on the rare look), at 5 images a class."""
    rows = []
    for arm, gain in ({"control": 0.0, "start": 0.0} | gains).items():
        for seed in SEEDS:
            base = 30 + 4 * (seed % 3)  # what a seed does to every arm alike: far more than the noise
            rare = base + gain + (NOISE[seed] if gain else 0)
            rows.append({"ipc": 5, "arm": arm, "seed": seed, "common": 90.0 - gain / 10, "rare": rare})
    return pd.DataFrame(rows).set_index(["ipc", "arm", "seed"]).sort_index()


@pytest.mark.parametrize(
    ("everything", "few", "fits"),
    [
        ((98, 90), (88, 32), True),
        ((98, 80), (88, 32), False),  # not learnt from all images
        ((98, 90), (88, 60), False),  # not lost among a few
        ((90, 78), (80, 45), True),  # both limits count as reached: 68 of 80, 35 of 70 above chance
        ((57, 24), (29, 12), False),  # lost, but not learnt: as inverted CIFAR-10
    ],
)
def test_a_look_must_be_learnable_and_losable(everything: tuple, few: tuple, fits: bool) -> None:
    assert real_groups.qualifies(everything, few) is fits


def test_differences_are_paired_by_seed_and_only_over_shared_seeds() -> None:
    found = table(equal_true=20.0).drop(index=(5, "equal_true", 0))
    gap = real_groups.against(found, 5, "equal_true", "control", "rare")
    assert gap.n == 5 and gap.mean == pytest.approx(20 + sum(NOISE[1:]) / 5)
    assert gap.high - gap.low < 1.2  # unpaired, the seeds' own spread would give ten


def test_the_best_arm_is_one_that_wins_and_the_largest_of_these() -> None:
    found = table(network_upper=0.1, matching_upper_class=8.0, equal_found=11.0)
    arms = ("network_upper", "matching_upper_class", "equal_found")
    tested = real_groups.primary(found, arms=arms)
    assert tested["rejected"].tolist() == [False, True, True]
    assert tested["verdict"].tolist() == ["no difference", "supported", "supported"]
    assert real_groups.best_without_labels(tested) == "equal_found"
    assert real_groups.best_without_labels(tested.iloc[:1]) is None


def test_the_gate_names_both_differences() -> None:
    found = real_groups.gate(table(equal_true=20.0, start_covering=-3.0))
    assert found["equal_true - control"].low > 0 > found["start_covering - start"].high


def record(method: str, name: str, common: float, rare: float, **changes: object) -> Record:
    e = Experiment.preset("smoke", method=method, dataset=name, eval_seeds=1, **changes)
    metrics = {"accuracy": [(common + rare) / 2], "known_accuracy": [[common, rare]], "known_min": [rare],
               "known_class_min": [0.0], "cluster_min": [10.0]}  # fmt: skip
    return unmade(e, metrics)


def test_looks_stand_in_the_order_of_the_rule_with_means_over_seeds() -> None:
    records = []
    for look, rare in (("inverted", 95), ("rotated", 70)):
        name = f"rare_digits:{look}:0.1"
        records += [record("full", name, 98, rare + more, seed=200 + more) for more in (0, 2)]
        records.append(record("random", name, 88, 30, ipc=5))
    found = real_groups.looks(records)
    assert found["look"].tolist() == ["rotated", "inverted"] and found["all_rare"].tolist() == [71, 96]
    assert found["qualifies"].tolist() == [False, True]


def test_a_curve_has_the_arm_that_it_moves_around_and_no_other_run() -> None:
    """Base arms at 5 images a class are a point of each curve of theirs; other numbers of images and arms are not."""
    rare, wanted = {}, [("control", 0.1, 5), ("control_by_share", 0.05, 5), ("control", 0.1, 10), ("start", 0.1, 5)]
    records, names = [], {}
    for place, (arm, share, ipc) in enumerate(wanted):
        for seed in (0, 1):
            made = record("idc", f"rare_digits:rotated:{share}", 90, 30 + place + seed, ipc=ipc, seed=seed)
            made = dataclasses.replace(made, key=f"{arm}{ipc}{seed}")
            records.append(made)
            names[made.key] = arm
            rare[arm, share, ipc, seed] = 30 + place + seed
    found = real_groups.curve(records, names, "share")
    expected = {(arm.removesuffix("_by_share"), share, seed): value
                for (arm, share, ipc, seed), value in rare.items() if ipc == 5 and arm != "start"}  # fmt: skip
    assert found["rare"].to_dict() == expected


def test_groups_that_are_not_counted_are_one_for_each_image() -> None:
    records = [record("idc", "rare_digits", 90, 30, ipc=5, centres_in_all=n) for n in (None, 10)]
    records = [dataclasses.replace(r, key=k) for r, k in zip(records, "ab", strict=True)]
    names = {"a": "network_upper", "b": "network_upper_by_groups"}
    assert list(real_groups.curve(records, names, "groups").index.unique("groups")) == [10, 50]


def committed(name: str, scale: str = "smoke") -> tuple[list[Record], dict[str, str]]:
    """The records of a grid that are in the store of the project, and the arm of each."""
    jobs = grid.jobs([name], scale)
    store = Store(ROOT / "data")
    return [r for job in jobs if (r := store.find(job.key))], real_groups.arm_names(jobs)


@pytest.mark.parametrize(("base", "scale"), [("digits", "smoke"), ("cifar10", "cpu")])
def test_the_default_look_is_the_first_that_qualifies(base: str, scale: str) -> None:
    found = real_groups.looks(committed("looks", scale)[0])
    first = found[(found["share"] == looks.SHARE["rare"]) & found["qualifies"]].iloc[0]
    assert first["look"] == looks.LOOK[base]


@pytest.mark.parametrize(("test", "scale", "base"), [("real_groups", "smoke", 5), ("real_groups_cifar10", "cpu", 10)])
def test_every_arm_has_the_rate_that_was_chosen_for_it_and_twice_as_much_at_twice_the_images(
    test: str, scale: str, base: int
) -> None:
    records, names = committed(f"{test}_rates", scale)
    chosen = real_groups.rates(records, names)
    assert len(records) == len(names)
    for job in grid.jobs([test], scale):
        arm = real_groups.arm_names([job])[job.key]
        if arm not in (*real_groups.FLOORS, "full"):
            wanted = chosen.loc[arm, "lr_image"] * job.experiment.ipc / base
            assert job.experiment.lr_image == pytest.approx(wanted), arm


def test_the_page_of_rules_tells_what_was_measured() -> None:
    text = " ".join((ROOT / "book" / "real_groups.md").read_text().split())
    found = real_groups.looks(committed("looks")[0]).set_index(["share", "look"]).round(1)
    told = [(0.1, "rotated", "all"), (0.1, "rotated", "random"), (0.1, "inverted", "all"), (0.1, "inverted", "random")]
    told += [(0.1, "tinted", "random"), (0.05, "rotated", "all")]
    for share, look, head in told:
        own = found.loc[(share, look)]
        assert f"{own[f'{head}_rare']:.1f} of {own[f'{head}_common']:.1f}" in text, (share, look, head)


def page(name: str = "27_real_groups") -> str:
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    return " ".join(" ".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown").split())


def told(text: str) -> set[str]:
    """The means with an interval that a text gives."""
    found = re.findall(r"(-?\d+\.\d)(?: points)? (\[-?\d+\.\d, -?\d+\.\d\])", text)
    return {f"{mean} {span}" for mean, span in found}


@pytest.fixture(scope="module")
def measured() -> pd.DataFrame:
    records, names = committed("real_groups")
    assert len(records) == len(names)
    return real_groups.by_arm(records, names)


@pytest.fixture(scope="module")
def natural() -> pd.DataFrame:
    """The arms on CIFAR-10."""
    records, names = committed("real_groups_cifar10", "cpu")
    assert len(records) == len(names)
    return real_groups.by_arm(records, names)


def test_every_interval_in_the_prose_of_the_page_is_one_that_the_records_give(
    measured: pd.DataFrame, natural: pd.DataFrame
) -> None:
    known = set()
    planned = measured[measured.index.get_level_values("seed") < 10]
    for table, ipc in ((measured, 5), (planned, 5), (natural, 10)):
        arms = real_groups.present(table, ipc)
        pairs = itertools.product(arms, arms, ("common", "rare", "worst cluster"))
        known |= {str(real_groups.against(table, ipc, *pair)) for pair in pairs}
    front = (ROOT / "book" / "index.md").read_text()
    front = " ".join(front.split("**Where groups are real")[1].split("**At the paper")[0].split())
    assert len(told(page())) >= 8 and told(page() + front) <= known


def test_every_interval_on_the_page_of_the_curves_is_one_that_the_records_give() -> None:
    first, names = committed("real_groups")
    second, more = committed("real_groups_curves")
    known = set()
    for by in real_groups.CURVES:
        wide = real_groups.curve([*first, *second], names | more, by).unstack(by)
        for measure in ("common", "rare"):
            arms = wide[measure].unstack("arm")  # seeds x (value, arm)
            known |= {str(mean_interval((arms[a] - arms[b]).dropna())) for a, b in itertools.permutations(arms, 2)
                      if len((arms[a] - arms[b]).dropna()) > 1}  # fmt: skip
    assert len(told(page("28_losing_a_group"))) >= 5
    assert told(page("28_losing_a_group")) <= known


def test_the_advice_stands_on_what_was_measured(measured: pd.DataFrame) -> None:
    arms = ["balanced", "equal_true", "start_covering", "representative", "equal_found"]
    arms += ["matching_upper_all", "network_upper"]
    gaps = {a: [real_groups.against(measured, 5, a, "control", m).mean for m in ("rare", "common")] for a in arms}
    advised = re.findall(r"\((\+\d+\.\d), (-\d+\.\d)\)", page())
    assert advised == [(f"{rare:+.1f}", f"{common:+.1f}") for rare, common in gaps.values()]


def test_the_gate_is_open_and_the_arm_that_the_page_names_has_won(measured: pd.DataFrame) -> None:
    assert all(interval.low > 0 for interval in real_groups.gate(measured).values())
    assert real_groups.best_without_labels(real_groups.primary(measured)) == "representative"


def test_every_arm_has_words_of_its_own() -> None:
    assert list(real_groups.ARM_WORDS) == list(real_groups.ARMS)
    assert len(set(real_groups.ARM_WORDS.values())) == len(real_groups.ARMS)
