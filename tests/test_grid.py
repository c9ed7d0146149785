"""Grids: what a file asks for, what it may not ask for, what a store has of it, and runs that survive being killed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from conftest import unmade

from rddlib.base import SettingError
from rddlib.experiments import grid
from rddlib.experiments.experiment import Experiment
from rddlib.experiments.grid import Job, Ledger, Tally
from rddlib.experiments.presets import SCALES
from rddlib.experiments.records import Record, Store

FAST = {"train_limit": 200, "test_limit": 100, "width": 4, "eval_width": 4, "outer_steps": 2, "inner_steps": 1,
        "batch_real": 4, "net_batch": 16, "eval_steps": 2, "eval_groups": 2, "eval_seeds": 2, "eval_shifts": False,
        "depth": 1, "eval_depth": 1}  # fmt: skip


def toml(value: object) -> str:
    return json.dumps(value)  # TOML writes these numbers, texts, booleans and lists as JSON does


def block(settings: dict[str, object]) -> str:
    return "".join(f"{k} = {toml(v)}\n" for k, v in settings.items())


def write(folder: Path, arms: list[dict[str, object]], more: str = "", name: str = "toy", **common: object) -> Path:
    text = f"[common]\n{block(FAST | common)}" + more
    for number, arm in enumerate(arms):
        text += "[[arm]]\n" + block({"name": f"a{number}", "why": "a test", "value": 1} | arm)
    file = folder / f"{name}.toml"
    file.write_text(text)
    return file


def made(experiment: Experiment, cost: float = 1.0, **changes: object) -> Record:
    """A record as a run would leave it, without the run."""
    known = {"seconds": {"distill": cost}, "device": "cpu, 1 threads, x86_64"}
    return unmade(experiment, {"accuracy": [50.0]}, **known | changes)


# --- files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", grid.names())
def test_every_grid_of_the_book_can_be_made_of_experiments(name: str) -> None:
    found = {scale: grid.jobs([name], scale) for scale in SCALES}
    assert any(found.values())
    for scale, jobs in found.items():
        assert all(job.experiment.scale == scale and job.value > 0 and job.why for job in jobs)
        assert len({job.key for job in jobs}) == len(jobs)


OF_THE_RISK = {
    *("risk", "where", "alpha", "average", "worst", "divide_loss"),
    *("scope", "space", "centres_in_all", "groups_from"),
}
# Grids in which one procedure chose each arm's image rate, so that an arm and its control have each its own; all grids
# do at the scale cpu.
GROUPS = ("real_groups", "real_groups_rates", "real_groups_curves", "real_groups_cifar10", "real_groups_cifar10_rates")
OWN_RATES = (*GROUPS, "rates")
# A grid whose arms move one setting of another's.
AROUND = {
    "real_groups_curves": "real_groups",
    "rates_mass": "rates",
    "step_length": "rates",
    "again_1": "rates_1",
}


@pytest.mark.parametrize("name", grid.names())
def test_every_risk_arm_of_the_book_has_its_control(name: str) -> None:
    """A run with a risk term says nothing without the one that differs from it in the risk term alone."""

    def rest(job: Job) -> tuple[object, ...]:
        own_rate = name in OWN_RATES or job.experiment.scale == "cpu"
        apart = {*OF_THE_RISK, *(["lr_image"] if own_rate else [])}
        return tuple(v for k, v in vars(job.experiment).items() if k not in apart)

    for scale in SCALES:
        jobs = grid.jobs([name], scale)
        around = grid.jobs([AROUND[name]], scale) if name in AROUND else []
        controls = {rest(job) for job in jobs + around if job.experiment.risk == "control"}
        assert [job for job in jobs if rest(job) not in controls] == []


@pytest.mark.parametrize(
    ("test", "scale", "ending"), [("real_groups", "smoke", "_5"), ("real_groups_cifar10", "cpu", "")]
)
def test_arms_with_rates_of_their_own_tried_all_that_control_tried_and_got_one_each(
    test: str, scale: str, ending: str
) -> None:
    """The price of a rate for each arm: as many trials at least as control had, and one rate in the test."""

    def rates(name: str) -> dict[str, set[float]]:
        found: dict[str, set[float]] = {}
        for job in grid.jobs([name], scale):
            for arm in job.arms:
                found.setdefault(arm.removeprefix(f"{name}/").removesuffix(ending), set()).add(job.experiment.lr_image)
        return found

    tried, chosen = rates(f"{test}_rates"), rates(test)
    assert len(tried["control"]) >= 3 and all(tried["control"] <= own for own in tried.values())
    assert all(len(own) == 1 for own in chosen.values())
    assert all(own <= tried[arm] for arm, own in chosen.items() if arm in tried)
    assert set(tried) <= set(chosen)


def test_lists_are_crossed_and_duplicates_are_one_job(tmp_path: Path) -> None:
    file = write(tmp_path, [{"risk": ["control", "upper"], "seed": [0, 1]}, {"risk": "control", "value": 3}])
    jobs = grid.jobs([file], "smoke")
    assert len(jobs) == 4
    shared = next(j for j in jobs if j.experiment.risk == "control" and j.experiment.seed == 0)
    assert shared.value == 3 and shared.arms == ("toy/a0", "toy/a1") and jobs[0] == shared
    twice = grid.jobs([file, write(tmp_path, [{"risk": "upper", "alpha": [0.8, 0.5]}], name="other")], "smoke")
    assert len(twice) == 5  # alpha 0.8 is the default, so the first is there already


def test_pairs_complete_early(tmp_path: Path) -> None:
    file = write(tmp_path, [{"seed": [0, 1]}, {"method": "random", "seed": [0, 1]}, {"ipc": 2, "value": 0.5}])
    found = [(j.experiment.method, j.experiment.seed, j.value) for j in grid.jobs([file], "smoke")]
    assert found == [("idc", 0, 1), ("random", 0, 1), ("idc", 1, 1), ("random", 1, 1), ("idc", 0, 0.5)]


def test_the_narrower_block_wins(tmp_path: Path) -> None:
    more = "[scale.smoke]\nalpha = 0.3\nseed = 7\nrisk = 'upper'\n"
    file = write(tmp_path, [{"alpha": 0.2, "scales": ["smoke"]}], more, alpha=0.1, ipc=2)
    file.write_text(file.read_text() + "[arm.scale.smoke]\nseed = 9\nvalue = 5\n[arm.scale.laptop]\nseed = 4\n")
    (job,) = grid.jobs([file], "smoke")
    e = job.experiment
    assert (e.alpha, e.seed, e.ipc, e.risk, job.value) == (0.3, 9, 2, "upper", 5)
    assert grid.jobs([file], "laptop") == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[arm", "a file in TOML"),
        ("title = 1", "arm = None"),
        ("arm = 3", "arm = 3"),
        ("arms = []\n", "key = 'arms'"),
        ("[common]\nipcs = 1\n[[arm]]\n", r"\[common\]: key = 'ipcs'.*ipc"),
        ("common = 3\n[[arm]]\n", r"\[common\] = 3"),
        ("[scale.huge]\n[[arm]]\n", "key = 'huge'.*laptop"),
        ("[scale.gpu]\nscale = 'gpu'\n[[arm]]\n", r"\[scale.gpu\]: key = 'scale'"),
        ("[[arm]]\nname = 'x'\nwhy = 'y'\n", "arm 'x': value = None"),
        ("[[arm]]\nname = 'x'\nwhy = 'y'\nvalue = true\n", "arm 'x': value = True"),
        ("[[arm]]\nname = 'x'\nwhy = 'y'\nvalue = -1\n", "arm 'x': value = -1"),
        ("[[arm]]\nname = 'x'\nwhy = 'y'\nvalue = nan\n", "arm 'x': value = nan"),
        ("[[arm]]\nname = 'x'\nvalue = 1\n", "arm 'x': why = None"),
        ("[[arm]]\nname = 'x'\nwhy = 'a\\nb'\nvalue = 1\n".replace("'a", '"a').replace("b'", 'b"'), "arm 'x': why"),
        ("[[arm]]\nvalue = 1\nwhy = 'y'\n", "arm 1: name = None"),
        ("[[arm]]\nname = 'x'\nwhy = 'y'\nvalue = 1\nipcs = 2\n", "arm 'x': key = 'ipcs'.*ipc"),
        ("[[arm]]\nname = 'x'\nwhy = 'y'\nvalue = 1\nipc = []\n", r"arm 'x': ipc = \[\]"),
        ("[[arm]]\nname = 'x'\nwhy = 'y'\nvalue = 1\nipc = [[1]]\n", "arm 'x': ipc"),
        ("[[arm]]\nname = 'x'\nwhy = 'y'\nvalue = 1\nipc = {a = 1}\n", "arm 'x': ipc"),
        ("[[arm]]\nname = 'x'\nwhy = 'y'\nvalue = 1\nrisk = ['upper', 'max']\n", "arm 'x': risk = 'max'.*control"),
        ("[[arm]]\nname = 'x'\nwhy = 'y'\nvalue = 1\nscales = ['huge']\n", "arm 'x': scales"),
        ("[[arm]]\nname = 'x'\nwhy = 'y'\nvalue = 1\n[arm.scale.gpu]\nwhy = 'z'\n", r"\[scale.gpu\]: key = 'why'"),
    ],
)
def test_a_faulty_file_is_refused_with_file_block_and_key(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "toy.toml"
    file.write_text(text)
    with pytest.raises(SettingError, match=f"toy.toml.*{words}"):
        grid.jobs([file], "smoke")


def test_unknown_grids_and_scales_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"grid = 'tabel1'.*; did you mean table1\?"):
        grid.jobs(["tabel1"], "smoke")
    with pytest.raises(SettingError, match="grid"):
        grid.jobs([tmp_path / "absent.toml"], "smoke")
    with pytest.raises(SettingError, match="scale = 'huge'"):
        grid.jobs(["table1"], "huge")


def test_words_of_a_grid_are_no_settings() -> None:
    assert not set(grid.ARM_KEYS + grid.TOP_KEYS) & set(grid.FIELDS)


# --- states and costs -------------------------------------------------------------------------------------


def test_states_of_a_store(tmp_path: Path) -> None:
    store, jobs = Store(tmp_path), [Job(Experiment.preset("smoke", seed=s), 1.0, ("t/a",)) for s in range(5)]
    store.add(made(jobs[0].experiment), "g")
    store.add(made(jobs[1].experiment, results=0), "g")
    (tmp_path / "runs" / "g" / f"{jobs[2].key}.json").write_text("{")
    grid.failure_file(store, jobs[3].key).parent.mkdir(parents=True)
    grid.failure_file(store, jobs[3].key).write_text('{"error": "no such luck"}')
    ledger = Ledger(store)
    assert [ledger.state(job.key) for job in jobs] == ["done", "stale", "failed", "failed", "missing"]
    assert "damaged" in ledger.error(jobs[2].key) and ledger.error(jobs[3].key) == "no such luck"
    tally = Tally.of(jobs, ledger)
    assert list(tally.counts.values()) == [1, 1, 1, 2] and tally.seconds == 3.0 and tally.price() == "3 s"
    grid.failure_file(store, jobs[3].key).write_text("{")
    assert "cannot be read" in ledger.error(jobs[3].key)


def test_costs_come_from_the_most_similar_records(tmp_path: Path) -> None:
    store, e = Store(tmp_path), Experiment.preset("laptop", ipc=10)
    assert cost_of(Ledger(store), e) is None
    for experiment, seconds in (
        (e, 100.0), (dataclasses.replace(e, seed=1), 300.0), (dataclasses.replace(e, ipc=1), 10.0),
        (Experiment.preset("laptop", method="random"), 5.0),
    ):  # fmt: skip
        store.add(made(experiment, seconds), "g")
    store.add(made(dataclasses.replace(e, seed=9), 2.0, device="NVIDIA H100"), "g")
    ledger = Ledger(store)
    assert cost_of(ledger, e, seed=5) == cost_of(ledger, e, risk="upper") == 200  # the median of two like it
    assert cost_of(ledger, e, ipc=50) == 100  # of the method: 10, 100, 300
    assert cost_of(ledger, e, method="dm") == 55  # of the scale: 5, 10, 100, 300
    assert cost_of(ledger, Experiment.preset("gpu")) is None
    assert cost_of(Ledger(store, "cuda"), e) == 2


def cost_of(ledger: Ledger, experiment: Experiment, **changes: object) -> float | None:
    return ledger.cost(Job(dataclasses.replace(experiment, **changes), 1.0, ("t/a",)))


def test_a_shared_set_is_paid_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    e = Experiment.preset("smoke", seed=3)
    store.add(made(Experiment.preset("smoke"), seconds={"distill": 100.0, "evaluate": 7.0}), "g")
    jobs = [Job(dataclasses.replace(e, eval_lr=lr), 1.0, ("t/a",)) for lr in (0.01, 0.02, 0.03)]
    assert len({job.set_key for job in jobs}) == 1 and len({job.key for job in jobs}) == 3
    assert Tally.of(jobs, Ledger(store)).seconds == 107 + 7 + 7
    store.distilled(jobs[0].set_key).parent.mkdir()
    store.distilled(jobs[0].set_key).write_bytes(b"")
    assert Tally.of(jobs, Ledger(store)).seconds == 3 * 7


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (89, "89 s"), (300, "5 min"), (5399, "1 h 30 min"), (11_100, "3 h 05 min")]
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert grid.duration(seconds) == words


def test_prices_say_what_is_not_known() -> None:
    count = dict.fromkeys(grid.STATES, 0)
    assert Tally(count, 0.0, 0).price() == "-"
    assert Tally(count | {"missing": 2}, 0.0, 2).price() == "unknown"
    assert Tally(count | {"missing": 1, "failed": 2}, 120.0, 1).price() == "2 min + 1 of unknown cost"
