"""Runs of a grid that are killed, doubled, failing, out of time or out of space: what is kept is whole, and goes on."""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import multiprocessing
import multiprocessing.util
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, thread
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rddlib import cli
from rddlib.base import SettingError, numpy_generator
from rddlib.distillation import synthetic
from rddlib.experiments import grid, workers
from rddlib.experiments.experiment import Experiment, run
from rddlib.experiments.grid import Job, Ledger
from rddlib.experiments.records import Store, StoreError
from rddlib.experiments.workers import Outcome, Scheduler, Where

FAST = {"train_limit": 200, "test_limit": 100, "width": 4, "eval_width": 4, "outer_steps": 2, "inner_steps": 1,
        "batch_real": 4, "net_batch": 16, "eval_steps": 2, "eval_groups": 2, "eval_seeds": 2, "eval_shifts": False,
        "depth": 1, "eval_depth": 1}  # fmt: skip
LONG = {"outer_steps": 500}  # a checkpoint after every tenth step, and much to do after the first
SOON = 300.0  # seconds after which a test gives up waiting

SERVER: Any = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["rddlib.cli", *workers.LATE, "pytest"])


def job(value: float = 1.0, **changes: object) -> Job:
    return Job(Experiment.preset("smoke", **(FAST | changes)), value, ("toy/arm",))


def wait_for(there: Callable[[], object]) -> None:
    end = time.monotonic() + SOON
    while not there():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def forking() -> Any:
    """Runs that begin at once. A child forked from a pool's thread must not wait at its end for the pool's threads."""
    multiprocessing.util.register_after_fork(thread._threads_queues, lambda queues: queues.clear())
    return multiprocessing.get_context("fork")


def call(jobs: list[Job], root: str, report: str, processes: int = 1, largest: int | None = None) -> None:
    """A call of the scheduler in a process group of its own, which forks its jobs: that takes no time."""
    os.setsid()
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    scheduler = Scheduler(jobs, Store(root), processes)
    scheduler.context = forking()
    outcome = scheduler.go()
    Path(report).write_text(json.dumps(dataclasses.asdict(outcome)))
    sys.exit(outcome.status)


def start(jobs: list[Job], store: Store, report: Path, **more: Any) -> Any:
    process = SERVER.Process(target=call, args=(jobs, str(store.root), str(report)), kwargs=more)
    process.start()
    return process


def finish(process: Any, report: Path) -> Outcome:
    process.join(SOON)
    assert process.exitcode in (0, 1, 3), process.exitcode
    outcome = Outcome(**json.loads(report.read_text()))
    assert outcome.status == process.exitcode
    return outcome


def held(store: Store, key: str) -> bool:
    """Whether some process is at work on a key now."""
    if not (store.root / "work" / f"{key}.lock").exists():
        return False
    with store.lock(key, wait=False) as free:
        return not free


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


# --- killed, interrupted, doubled -------------------------------------------------------------------------


def test_ten_kills_at_random_moments_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    store, random = Store(tmp_path / "killed"), numpy_generator(0, "kills")
    jobs = [job(risk=r, seed=s, outer_steps=4, inner_steps=2) for s in (0, 1) for r in ("control", "upper")]
    jobs += [job(method="random", eval_seeds=3)]
    seen: dict[str, tuple[int, int]] = {}  # record -> its file's identity: one that is run again has another
    broken = 0
    for kill in range(10):
        process = start(jobs, store, tmp_path / "report")
        wait_for(lambda p=process: any(held(store, j.key) for j in jobs) or p.exitcode is not None)
        time.sleep(random.uniform(0, 0.25))
        with_jobs = kill % 2 == 0
        (os.killpg if with_jobs else os.kill)(process.pid, signal.SIGKILL)
        process.join()
        wait_for(lambda: not any(held(store, j.key) for j in jobs))  # jobs end when their parent does
        broken += any(store.work(j.key).is_dir() or store.work(j.set_key).is_dir() for j in jobs if j.set_key)
        for record in store.records():
            stat = next(store.root.glob(f"runs/*/{record.key}.json")).stat()
            assert seen.setdefault(record.key, (stat.st_ino, stat.st_mtime_ns)) == (stat.st_ino, stat.st_mtime_ns)
        for path in store.root.glob("distilled/*.npz"):
            synthetic.read(path)
    assert broken >= 3  # else the kills fell between the runs and nothing was shown
    outcome = finish(start(jobs, store, tmp_path / "report"), tmp_path / "report")
    assert (outcome.failed, outcome.left) == ({}, []) and len(store.records()) == len(jobs)
    assert not set(outcome.made) & set(seen)
    # The run that was never killed has a fresh process too: one in which other tests ran before rounds elsewhere.
    uninterrupted = Store(tmp_path / "whole")
    finish(start([jobs[1]], uninterrupted, tmp_path / "report"), tmp_path / "report")
    whole, resumed = uninterrupted.find(jobs[1].key), store.find(jobs[1].key)
    assert whole is not None and resumed is not None
    assert resumed.metrics == whole.metrics and resumed.history == whole.history


def test_two_calls_on_one_store_share_the_work(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    jobs = [job(seed=s, risk=r) for s in (0, 1) for r in ("control", "upper", "lower")]
    calls = [(start(jobs, store, tmp_path / name), tmp_path / name) for name in "ab"]
    outcomes = [finish(*c) for c in calls]
    made = outcomes[0].made + outcomes[1].made
    assert sorted(made) == sorted(j.key for j in jobs) and len(store.records()) == len(jobs)
    assert all(o.failed == {} and o.left == [] for o in outcomes)
    assert finish(start(jobs, store, tmp_path / "c"), tmp_path / "c").made == []


def test_ctrl_c_on_the_command_line_keeps_the_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "toy.toml"
    settings = "".join(f"{k} = {json.dumps(v)}\n" for k, v in (FAST | LONG).items())
    file.write_text(f"[common]\n{settings}[[arm]]\nname = 'a'\nwhy = 'a test'\nvalue = 1\n")
    (wanted,) = grid.jobs([file], "smoke")
    store = Store(tmp_path / "store")
    options = ["grid", str(file), "--scale", "smoke", "--store", str(store.root)]
    with subprocess.Popen(
        [sys.executable, "-m", "rddlib", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # ignored in a background shell
    ) as process:  # fmt: skip
        wait_for(lambda: (store.work(wanted.set_key) / "state.pt").is_file() or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=SOON)
    assert process.returncode == 130, (said, errors)
    assert "1 missing" in said and "goes on from there" in errors and "Traceback" not in errors
    assert (store.work(wanted.set_key) / "state.pt").is_file() and not held(store, wanted.key)
    assert cli.main(["status", str(file), "--scale", "smoke", "--store", str(store.root)]) == 0
    assert re.search(r"toy/a +smoke +0 +0 +1 +0", capsys.readouterr().out)


# --- failing, out of time, out of space -------------------------------------------------------------------


def test_a_failing_run_is_kept_and_the_others_go_on(tmp_path: Path) -> None:
    store, jobs = Store(tmp_path / "store"), [job(method="random"), job(ipc=150), job(method="random", seed=1)]
    outcome = finish(start(jobs, store, tmp_path / "report", processes=2), tmp_path / "report")
    assert outcome.status == 1 and len(outcome.made) == 2 and "ipc = 150" in outcome.failed[jobs[1].key]
    kept = json.loads(grid.failure_file(store, jobs[1].key).read_text())
    assert kept["key"] == jobs[1].key and kept["experiment"]["ipc"] == 150
    assert any("Traceback" in line for line in kept["traceback"])
    ledger = Ledger(store)
    assert [ledger.state(j.key) for j in jobs] == ["done", "failed", "done"] and "ipc" in ledger.error(jobs[1].key)
    later = Scheduler([jobs[1], job(seed=5)], store)
    assert [j.experiment.seed for j in later.queue] == [5, 0]  # what failed comes after what never ran


def test_a_run_that_succeeds_at_last_is_no_failure(tmp_path: Path) -> None:
    store, wanted = Store(tmp_path), job(method="random")
    workers.note_failure(store, wanted.experiment, "no such luck")
    assert Ledger(store).error(wanted.key) == "no such luck"
    outcome = Scheduler([wanted], store).go()
    assert outcome.made == [wanted.key] and Ledger(store).state(wanted.key) == "done"
    assert not store.work(wanted.key).exists()


def test_a_damaged_record_fails_by_name_and_is_left(tmp_path: Path) -> None:
    store, wanted = Store(tmp_path), job(method="random")
    file = tmp_path / "runs" / "g" / f"{wanted.key}.json"
    file.parent.mkdir(parents=True)
    file.write_text("{")
    outcome = Scheduler([wanted], store).go()
    assert outcome.status == 1 and file.name in outcome.failed[wanted.key] and file.read_text() == "{"


def test_a_run_at_the_deadline_is_stopped_with_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, jobs = Store(tmp_path), [job(**LONG), job(method="random")]
    state = store.work(jobs[0].set_key) / "state.pt"
    clock = SimpleNamespace(monotonic=lambda: 1e6 if state.is_file() else 0.0, sleep=time.sleep)
    monkeypatch.setattr(workers, "time", clock)  # the hour strikes once a checkpoint is there
    outcome = Scheduler(jobs, store).go(minutes=1)
    assert (outcome.status, outcome.made, outcome.failed) == (3, [], {})
    assert outcome.left == [j.key for j in jobs] and state.is_file()
    assert not held(store, jobs[0].key) and Ledger(store).state(jobs[0].key) == "missing"


def test_without_time_nothing_begins(tmp_path: Path) -> None:
    wanted = job()
    outcome = Scheduler([wanted], Store(tmp_path)).go(minutes=0)
    assert outcome.status == 3 and outcome.left == [wanted.key] and files(tmp_path) == {}


def test_a_full_disk_fails_the_run_that_needs_it_and_leaves_nothing_half(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    jobs = [job(ipc=20, seed=0), job(method="random")]  # the first writes 100 KB of checkpoint
    limited = finish(start(jobs, store, tmp_path / "report", largest=30_000), tmp_path / "report")
    assert limited.made == [jobs[1].key] and "File too large" in limited.failed[jobs[0].key]
    assert [r.key for r in store.records()] == [jobs[1].key]
    assert not list(store.root.rglob("*.pt")) and not list(store.root.rglob("*.npz.*"))
    assert finish(start(jobs, store, tmp_path / "report"), tmp_path / "report").made == [jobs[0].key]


# --- the rest ---------------------------------------------------------------------------------------------


def test_refusals_of_the_scheduler(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="jobs = 0"):
        Scheduler([job()], Store(tmp_path), 0)
    with pytest.raises(SettingError, match="budget_minutes = -1"):
        Scheduler([job()], Store(tmp_path)).go(-1)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        Scheduler([job()], Store(tmp_path / "file" / "store")).go()


def test_a_run_has_the_threads_that_it_is_given(tmp_path: Path) -> None:
    wanted, store = job(method="random"), Store(tmp_path)
    process = SERVER.Process(target=workers.work, args=(vars(wanted.experiment), str(tmp_path), Where(), 1))
    process.start()
    process.join(SOON)
    (record,) = store.records()
    assert record.device.startswith("cpu, 1 thr") and json.loads(record.to_json())["threads"] == 1


def test_a_run_that_is_killed_is_noted_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, jobs = Store(tmp_path), [job(**LONG), job(method="random")]
    scheduler = Scheduler(jobs, store)
    scheduler.context = forking()
    monkeypatch.setattr(workers, "run", _killed_unless_random)
    outcome = scheduler.go()
    assert outcome.made == [jobs[1].key] and "SIGKILL (out of memory?)" in outcome.failed[jobs[0].key]
    assert "SIGKILL" in Ledger(store).error(jobs[0].key)


def _killed_unless_random(experiment: Experiment, store: Store, **more: Any) -> None:
    if experiment.method != "random":
        os.kill(os.getpid(), signal.SIGKILL)
    run(experiment, store, **more)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere all jobs are spawned")
def test_jobs_of_a_gpu_are_not_forked(tmp_path: Path) -> None:
    starts = [
        Scheduler([], Store(tmp_path), where=Where(device)).context.get_start_method() for device in ("cpu", "cuda")
    ]
    assert starts == ["forkserver", "spawn"]


def test_a_spawned_job_does_the_same(tmp_path: Path) -> None:
    """As on macOS, Windows and for a GPU: nothing is inherited but what is handed over."""
    wanted = job(method="random")
    scheduler = Scheduler([wanted], Store(tmp_path))
    scheduler.context = multiprocessing.get_context("spawn")
    assert scheduler.go().made == [wanted.key] and Store(tmp_path).find(wanted.key) is not None


def test_a_set_is_not_begun_while_another_job_makes_it(tmp_path: Path) -> None:
    first, second, store = job(), job(eval_lr=0.02), Store(tmp_path)
    assert first.set_key == second.set_key and first.key != second.key
    scheduler = Scheduler([], store)
    scheduler._run = lambda job: workers.MADE  # type: ignore[method-assign]
    with store.lock(f"{first.key}.claim"), store.lock(f"{first.set_key}.claim"):
        assert scheduler._see_to(first, wait=False) == scheduler._see_to(second, wait=False) == "held"
        assert scheduler._see_to(job(seed=1), wait=False) == scheduler._see_to(job(method="random"), False) == "made"
        store.distilled(second.set_key).parent.mkdir()
        store.distilled(second.set_key).write_bytes(b"")
        assert scheduler._see_to(second, wait=False) == "made"  # to evaluate a set twice at once is no harm
    assert scheduler._see_to(first, wait=False) == "made"


def test_what_another_call_holds_is_waited_for_and_not_made_again(tmp_path: Path) -> None:
    wanted, store = job(method="random"), Store(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        with store.lock(f"{wanted.key}.claim"):
            outcome = pool.submit(Scheduler([wanted], store).go)
            time.sleep(3 * workers.LOOK_AGAIN)
            assert not outcome.done()
            run(wanted.experiment, store)
        assert outcome.result(SOON) == Outcome()


# --- the command line -------------------------------------------------------------------------------------


LACKING = """[[arm]]
name = 'c'
why = 'a generator that is not here: found when its turn comes'
value = 9
method = 'glad'
prior = 'generator:nowhere.safetensors'
"""


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    file = tmp_path / "toy.toml"
    settings = "".join(f"{k} = {json.dumps(v)}\n" for k, v in FAST.items())
    file.write_text(f"[common]\n{settings}method = 'random'\n[[arm]]\nname = 'a'\nwhy = 'x'\nvalue = 2\nseed = [0, 1]\n"
                    "[[arm]]\nname = 'b'\nwhy = 'y'\nvalue = 9\nipc = 2\n" + LACKING)  # fmt: skip
    return file


def test_a_dry_run_and_a_status_write_nothing(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    common = ["--scale", "smoke", "--store", str(store)]
    assert cli.main(["grid", str(toy), "--dry-run", *common]) == 0
    said = capsys.readouterr().out
    assert "4 experiments, 0 done, 0 stale, 4 missing, 0 failed" in said and "cost unknown in all" in said
    assert [float(v) for v in re.findall(r"value (\S+)", said)] == [9, 9, 2, 2]  # the most valuable first
    assert cli.main(["status", *common]) == cli.main(["status", str(toy), *common]) == 0
    said = capsys.readouterr().out
    assert all(re.search(rf"^{name} +smoke", said, re.M) for name in grid.names())
    assert said.index("toy/b") < said.index("toy/a") and not store.exists()


def test_a_grid_on_the_command_line(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--scale", "smoke", "--store", str(tmp_path / "store")]
    assert cli.main(["grid", str(toy), "--jobs", "2", *common]) == 1
    said, errors = capsys.readouterr()
    assert "3 done, 1 failed, 0 left" in said and said.count("accuracy") == 3
    assert "nowhere.safetensors" in errors and "failed.json" in errors
    assert cli.main(["grid", str(toy), "--budget-minutes", "0", *common]) == 3  # the failed one is tried again
    assert "1 failed\n" in (said := capsys.readouterr().out) and "1 left; the same command" in said
    toy.write_text(toy.read_text().replace(LACKING, ""))
    assert cli.main(["grid", str(toy), *common]) == 0 and "to run: 0" in capsys.readouterr().out


def test_an_engine_gets_the_runs_as_a_list_and_makes_one_by_its_key(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["--scale", "smoke", "--store", str(tmp_path / "store")]
    assert cli.main(["grid", str(toy), "--json", *common]) == 0 and not (tmp_path / "store").exists()
    runs = json.loads(capsys.readouterr().out)
    jobs = grid.jobs([toy], "smoke")
    assert [run["key"] for run in runs] == [job.key for job in jobs] and len(runs) == 4
    last = {"key": jobs[-1].key, "group": "digits_smoke", "set_key": "", "value": 2.0, "arms": ["toy/a"]}
    assert runs[-1] == last
    assert cli.main(["grid", str(toy), "--only", jobs[-1].key, *common]) == 0
    (made,) = (tmp_path / "store").glob("runs/*/*.json")
    assert made == tmp_path / "store" / "runs" / runs[-1]["group"] / f"{runs[-1]['key']}.json"
    assert cli.main(["grid", str(toy), "--only", "zz", *common]) == 2 and "only = 'zz'" in capsys.readouterr().err


def test_a_failure_that_cannot_be_noted_on_a_full_disk_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = Store(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    workers.note_failure(store, job(seed=8).experiment, "why")
    assert not [path for path in tmp_path.rglob("failed.json*") if path.is_file()]
