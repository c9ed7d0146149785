"""Run what is missing of a grid on this machine: some runs side by side, most valuable first, until the time is spent.

Each run has a process of its own, so that one which ends badly takes no other with it and its peak memory is its own.
Nothing is remembered between two calls but what the store has: records, checkpoints, errors of failed runs. So a call
may be killed at any moment, and two may work on one store: each takes what the other does not hold.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing import connection
from typing import Any

import torch

from .. import files
from ..base import SettingError, write_atomic
from .experiment import Experiment, run
from .grid import Job, failure, failure_file
from .records import Store, StoreError

INTERRUPTED = 130  # exit status of a run that was stopped and has kept its checkpoint
GRACE = 60.0  # seconds in which a stopped run must have written its checkpoint
LOOK_AGAIN = 0.2  # seconds between two looks at the clock, and at what another call holds
MADE, FOUND, LEFT, HELD = "made", "found", "left", "held"  # what becomes of a job, if it is no error
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

    def add(self, job: Job, result: str, note: Note) -> None:
        """Count what became of a job, and tell `note` where it has ended."""
        if result == HELD:
            return
        if result == LEFT:
            self.left.append(job.key)
            return
        if result == MADE:
            self.made.append(job.key)
        elif result != FOUND:
            self.failed[job.key] = result
        note(job, self.failed.get(job.key, ""))

    @property
    def status(self) -> int:
        """Exit status: 3 if work is left since the time was spent, else 1 if a run failed, else 0."""
        return 3 if self.left else 1 if self.failed else 0


def work(settings: dict[str, Any], root: str, where: Where, threads: int | None = None) -> None:
    """Make one record in this process, which then ends: status 0, 1 with the error noted, or INTERRUPTED.

    It stops, keeping its checkpoint, on SIGINT, on SIGTERM, and when the process that started it is gone.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop_once)
    threading.Thread(target=_follow_parent, daemon=True).start()
    if threads is not None:
        torch.set_num_threads(threads)
    experiment, store = Experiment(**settings), Store(root)
    try:
        run(experiment, store, device=where.device, data_root=where.data_root, download=where.download)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except Exception as error:
        lines = traceback.format_exc().splitlines()
        note_failure(store, experiment, f"{type(error).__name__}: {error}", lines)
        sys.exit(1)


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


def note_failure(store: Store, experiment: Experiment, error: str, lines: Sequence[str] = ()) -> None:
    """Write down why a run failed, where `grid.failure` finds it."""
    noted = {
        "key": experiment.key,
        "error": error,
        "created": datetime.now(UTC).strftime("%Y-%m-%d"),
        "experiment": dataclasses.asdict(experiment),
        "traceback": list(lines),
    }
    with contextlib.suppress(OSError):  # a full disk must not keep the other runs from going on
        write_atomic(failure_file(store, experiment.key), files.to_json(noted))


@contextlib.contextmanager
def _one_thread_each(threads: int | None) -> Iterator[None]:
    """Processes started inside get OMP_NUM_THREADS: libraries read it as they are loaded, before `work` begins."""
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        yield
    finally:
        if threads is not None:
            del os.environ["OMP_NUM_THREADS"]  # it was not set, or `threads` would be None


class Scheduler:
    """The jobs of one call, in the order in which they begin: what failed before comes after what never ran.

    `processes` runs are made side by side. Where there are several, each has one thread unless OMP_NUM_THREADS says
    otherwise, in PyTorch and in all else that asks OpenMP: on the processors of one machine they would only take time
    from one another.
    """

    def __init__(self, jobs: Sequence[Job], store: Store, processes: int = 1, where: Where | None = None) -> None:
        if processes < 1:
            raise SettingError("jobs", processes, "a number of processes of at least 1")
        self.store = store
        self.processes = processes
        self.where = where or Where()
        self.threads = 1 if processes > 1 and "OMP_NUM_THREADS" not in os.environ else None
        self.queue = sorted(jobs, key=lambda job: bool(failure(store, job.key)))
        self.end = float("inf")
        self.stopped = threading.Event()
        # One server imports once what every run needs, and forks a child a run. Only on Linux is forking safe, and
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
        if minutes is not None:
            self.end = time.monotonic() + 60 * minutes
        outcome = Outcome()
        jobs = self.queue
        with ThreadPoolExecutor(self.processes) as pool, _one_thread_each(self.threads):
            try:
                for wait in (False, True):  # what another call holds is waited for once nothing else is left
                    futures = {pool.submit(self._see_to, job, wait): job for job in jobs}
                    for future in as_completed(futures):
                        outcome.add(futures[future], future.result(), note)
                    jobs = [job for future, job in futures.items() if future.result() == HELD]
            finally:
                self.stopped.set()  # on an interruption the threads end their runs before the pool is left
        return outcome

    def _see_to(self, job: Job, wait: bool) -> str:
        """What became of a job: MADE, FOUND (another call had made it), LEFT, HELD (another call has it), or its error.

        Where its distilled set has to be made, no two jobs make it at once: the second would only wait for the first.
        """
        needs_set = job.set_key and not self.store.distilled(job.set_key).is_file()
        keys = [job.key, job.set_key] if needs_set else [job.key]
        while not self._over():
            with contextlib.ExitStack() as claims:
                if all(claims.enter_context(self.store.lock(f"{key}.claim", wait=False)) for key in keys):
                    return FOUND if self._is_there(job) else self._run(job)
            if not wait:
                return HELD
            time.sleep(LOOK_AGAIN)
        return LEFT

    def _over(self) -> bool:
        return self.stopped.is_set() or time.monotonic() >= self.end

    def _is_there(self, job: Job) -> bool:
        try:
            return self.store.find(job.key) is not None
        except StoreError:  # a damaged record: the run refuses it, in words
            return False

    def _run(self, job: Job) -> str:
        """Make one record in a new process and wait for it; MADE, LEFT where it was stopped, or its error."""
        with contextlib.suppress(OSError):
            failure_file(self.store, job.key).unlink(missing_ok=True)
        arguments = (dataclasses.asdict(job.experiment), str(self.store.root), self.where, self.threads)
        process = self.context.Process(target=work, args=arguments, daemon=True)
        process.start()
        while process.is_alive() and not self._over():
            process.join(LOOK_AGAIN)
        stopped = process.is_alive()
        if stopped:
            with contextlib.suppress(OSError):  # ended meanwhile
                os.kill(process.pid, signal.SIGINT)
            process.join(GRACE)
            process.kill()  # where it still runs, the checkpoint of its last whole step remains
            process.join()
        status = process.exitcode
        if status == 0:
            self.store.finish(job.key)
            return MADE
        if stopped or status == INTERRUPTED:
            return LEFT
        if status < 0:
            error = f"ended by signal {signal.Signals(-status).name}" + (" (out of memory?)" if status == -9 else "")
            note_failure(self.store, job.experiment, error)
            return error
        return failure(self.store, job.key) or f"exit status {status}, and why could not be written"
