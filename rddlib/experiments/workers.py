"""Run what is missing of a grid: one process a job, most valuable first, until all is done or the time is spent.

Nothing here is remembered between two calls but what the store has: records, checkpoints, errors of failed runs. So a
call may be killed at any moment, and two may work on one store: each takes what the other does not hold.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from ..base import SettingError, write_atomic
from .experiment import Experiment, run
from .grid import Job, failure, failure_file
from .records import Store, StoreError

try:
    import fcntl
except ImportError:  # Windows has no flock; there two processes are not kept apart
    fcntl = None  # type: ignore[assignment]

INTERRUPTED = 130  # exit status of a job that was stopped and has kept its checkpoint
GRACE = 60.0  # seconds in which a stopped job must have written its checkpoint
LOOK_AGAIN = 0.5  # seconds between two looks at what another call holds
LATE = ("torch._dynamo", "sklearn.cluster", "sklearn.datasets")  # imported by the first optimiser, groups and digits
Note = Callable[[Job, str], None]  # a job that has ended, and its error or ""


@dataclass(frozen=True)
class Where:
    """On what the jobs run; none of it is part of a key."""

    device: str = "cpu"
    data_root: str | None = None
    download: bool = False


@dataclass
class Outcome:
    """What became of the jobs of one call: keys made now, errors by key, and keys that are left to a later call."""

    made: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)

    @property
    def status(self) -> int:
        """Exit status: 3 if work is left since the time was spent, else 1 if a run failed, else 0."""
        return 3 if self.left else 1 if self.failed else 0


def held(store: Store, key: str) -> bool:
    """Whether some process is at work on a key now. Writes nothing."""
    if fcntl is not None:
        with contextlib.suppress(FileNotFoundError), open(store.root / "work" / f"{key}.lock", "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


@contextlib.contextmanager
def claim(store: Store, key: str) -> Iterator[bool]:
    """Tell other calls that this one sees to a key, before its job has come as far as to hold it; False if one does."""
    with contextlib.ExitStack() as stack:
        free = True
        with contextlib.suppress(OSError):  # where no claim can be written a run says why, or the key's lock decides
            file = stack.enter_context(open(store.root / "work" / f"{key}.claim", "ab"))
            if fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    free = False
        yield free


def slices(processes: int) -> list[list[int]]:
    """The processor cores of each of several processes that run side by side; they share where there are too few."""
    given = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    each = max(1, len(given) // processes)
    return [[given[(i * each + j) % len(given)] for j in range(each)] for i in range(processes)]


# --- one job, in a process of its own ---------------------------------------------------------------------


def work(settings: dict[str, Any], root: str, cores: Sequence[int], where: Where) -> None:
    """Make one record in this process, which then ends: status 0, 1 with the error on its log, or INTERRUPTED.

    It stops, keeping its checkpoint, on SIGINT, on SIGTERM, and when the process that started it is gone.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop_once)
    threading.Thread(target=_follow_parent, daemon=True).start()
    with contextlib.suppress(AttributeError, OSError):  # macOS and Windows do not pin
        os.sched_setaffinity(0, cores)
    torch.set_num_threads(max(1, min(len(cores), torch.get_num_threads())))
    experiment = Experiment(**settings)
    with contextlib.suppress(OSError):  # a full disk is told by the run itself
        _log_to(Store(root).work(experiment.key) / "log.txt")
    try:
        run(experiment, Store(root), device=where.device, data_root=where.data_root, download=where.download)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _stop_once(number: int, frame: object) -> None:
    """The first signal stops the run; a second one must not disturb the writing of its checkpoint."""
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGINT)


def _log_to(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


# --- all jobs ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """A job under way: its process, the cores that it has, and what is claimed for it."""

    process: BaseProcess
    job: Job
    cores: list[int]
    claims: contextlib.ExitStack


class Scheduler:
    """The jobs of one call: what waits, what runs, which cores are free, and what came of it."""

    def __init__(self, jobs: Sequence[Job], store: Store, processes: int = 1, where: Where | None = None) -> None:
        if processes < 1:
            raise SettingError("jobs", processes, "a number of processes of at least 1")
        self.store, self.where, self.outcome = store, where or Where(), Outcome()
        tried = {job.key for job in jobs if failure(store, job.key)}
        self.queue = sorted(jobs, key=lambda job: job.key in tried)  # what failed before comes after what never ran
        self.free = slices(processes)
        self.running: list[_Run] = []
        # One server imports once what every run needs, and forks a child a job. Only on Linux is forking safe, and
        # only where no import can have touched a GPU's driver, which a fork does not survive.
        forks = sys.platform == "linux" and self.where.device == "cpu"
        self.context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
        if forks:
            self.context.set_forkserver_preload(["rddlib.experiments.workers", *LATE])

    def go(self, minutes: float | None = None, note: Note = lambda job, error: None) -> Outcome:
        """Run all jobs, or as many as the minutes allow; what runs then is stopped and keeps its checkpoint.

        `note` is called after each job, with its error or ''. On KeyboardInterrupt the running jobs are stopped in
        the same way, and the exception goes on. Raises StoreError, before any work, where nothing can be written.
        """
        if minutes is not None and not minutes >= 0:
            raise SettingError("budget_minutes", minutes, "a number of at least 0")
        self.store.check_writable()
        end = float("inf") if minutes is None else time.monotonic() + 60 * minutes
        try:
            while (self.queue or self.running) and time.monotonic() < end:
                self._start(note)
                self._wait(min(end - time.monotonic(), LOOK_AGAIN))
                self._reap(note)
        finally:
            self._stop(note)
        return self.outcome

    def _start(self, note: Note) -> None:
        """Give each free slice of cores the first job that nobody holds; what others made meanwhile is dropped."""
        for job in list(self.queue):
            if not self.free:
                return
            if (claims := self._claim(job)) is None:
                continue
            self.queue.remove(job)
            if self._made(job):
                claims.close()
                note(job, "")
            else:
                self._launch(job, self.free.pop(0), claims)

    def _claim(self, job: Job) -> contextlib.ExitStack | None:
        """Claim a job, and the set that it would distil; None where another job makes either: begin another then."""
        needs_set = job.set_key and not self.store.distilled(job.set_key).is_file()
        with contextlib.ExitStack() as stack:
            for key in (job.key, job.set_key) if needs_set else (job.key,):
                if held(self.store, key) or not stack.enter_context(claim(self.store, key)):
                    return None
            return stack.pop_all()

    def _launch(self, job: Job, cores: list[int], claims: contextlib.ExitStack) -> None:
        with contextlib.suppress(OSError):
            failure_file(self.store, job.key).unlink(missing_ok=True)
        settings = dataclasses.asdict(job.experiment)
        process = self.context.Process(target=work, args=(settings, str(self.store.root), cores, self.where))
        process.daemon = True  # should this process end in a way not foreseen, its jobs are stopped
        process.start()
        self.running.append(_Run(process, job, cores, claims))

    def _made(self, job: Job) -> bool:
        try:
            return self.store.find(job.key) is not None
        except StoreError:  # a damaged record: the run refuses it, in words
            return False

    def _wait(self, seconds: float) -> None:
        """Until a job ends, or for some seconds."""
        if self.running:
            connection.wait([each.process.sentinel for each in self.running], max(0.0, seconds))
        elif self.queue:
            time.sleep(max(0.0, seconds))

    def _reap(self, note: Note, stopped: bool = False) -> None:
        """Book the jobs that have ended, and free their cores. A job that was stopped has not failed."""
        for each in [each for each in self.running if not each.process.is_alive()]:
            job, status = each.job, each.process.exitcode
            self.running.remove(each)
            self.free.append(each.cores)
            if status == 0:
                self.outcome.made.append(job.key)
                self.store.finish(job.key)
                note(job, "")
            elif stopped or status == INTERRUPTED:
                self.outcome.left.append(job.key)
            else:
                self.outcome.failed[job.key] = error = _keep_failure(self.store, job, status)
                note(job, error)
            each.claims.close()

    def _stop(self, note: Note) -> None:
        """Stop what still runs, each with its checkpoint, and book it and what never began as left."""
        for each in self.running:
            with contextlib.suppress(OSError, TypeError):  # ended already
                os.kill(each.process.pid, signal.SIGINT)  # type: ignore[arg-type]
        end = time.monotonic() + GRACE
        for process in (each.process for each in self.running):
            process.join(max(0.0, end - time.monotonic()))
            if process.is_alive():
                process.kill()  # the checkpoint of its last whole step remains
                process.join()
        self._reap(note, stopped=True)
        self.outcome.left += [job.key for job in self.queue]
        self.queue = []


def _keep_failure(store: Store, job: Job, status: int | None) -> str:
    """Write down why a job failed, where `grid.failure` finds it; returns the error."""
    try:
        log = (store.work(job.key) / "log.txt").read_text(errors="replace").splitlines()[-40:]
    except OSError:
        log = []
    if status is not None and status < 0:
        error = f"ended by signal {signal.Signals(-status).name}" + (" (out of memory?)" if status == -9 else "")
    else:
        error = next((line.strip() for line in reversed(log) if line.strip()), f"exit status {status}, nothing said")
    kept = {"key": job.key, "error": error, "status": status, "created": datetime.now(UTC).strftime("%Y-%m-%d"),
            "experiment": dataclasses.asdict(job.experiment), "log": log}  # fmt: skip
    with contextlib.suppress(OSError):  # a full disk must not keep the other jobs from going on
        write_atomic(failure_file(store, job.key), json.dumps(kept, indent=1) + "\n")
    return error
