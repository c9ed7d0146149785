"""One lent machine, used well: check, measure, then make the grid's most valuable missing runs until the time is spent.

Needs a source tree, torch and NumPy; runs that need Pillow or scikit-learn, or images that are not there, are left out
and named. Everything lies in --out and is written as it is made, so a machine that vanishes takes little with it, and
the same command with the same folder goes on from there:

* session.json: what was checked, measured and run, and what went wrong;
* <device>.json: the measurements, for benchmarks/results/;
* records.zip: records and distilled sets so far, for `python -m rddlib merge`;
* store/: the same as files, with the checkpoints of what is unfinished.

Exit status: 0; 1 where a check or a run failed; 2 where it cannot begin; 130 where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [folder for folder in (str(ROOT), str(ROOT / "benchmarks")) if folder not in sys.path]
import bare  # noqa: E402

bare.install()  # before the first import of rddlib, here and in each process that is started from here
import checks  # noqa: E402
import run_all  # noqa: E402
import torch  # noqa: E402
from measure import How, cores, device_name  # noqa: E402

from rddlib.base import SettingError, write_atomic  # noqa: E402
from rddlib.data.sources import DataError  # noqa: E402
from rddlib.evaluation.metrics import TestBench  # noqa: E402
from rddlib.experiments import archive, grid, provenance  # noqa: E402
from rddlib.experiments.experiment import Experiment, load_data  # noqa: E402
from rddlib.experiments.presets import SCALES  # noqa: E402
from rddlib.experiments.records import Record, Store, StoreError  # noqa: E402
from rddlib.experiments.workers import Scheduler, Where  # noqa: E402

MEASURING = 0.4  # of the time, at most
RESERVE = 0.05  # of the time, to write the archive and end in peace; at most a minute
REFUSALS = (DataError, SettingError, StoreError, ImportError)


class Session:
    """What is known so far, and the folder in which it is kept."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.out = options, Path(options.out).expanduser()
        self.start = time.monotonic()
        self.minutes = options.minutes
        self.store, self.here = Store(self.out / "store"), Store(ROOT / "data")
        self.how = How(threads=options.threads, device=options.device, quick=options.scale == "smoke")
        self.results = self.out / f"{device_name(options.device, options.threads)}.json"
        self.failed: dict[str, str] = {}
        self.facts: dict[str, Any] = {
            "device": provenance.describe_device(options.device == "cuda"), "scale": options.scale,
            "versions": provenance.versions(), "commit": provenance.commit(), "minutes": options.minutes,
        }  # fmt: skip
        self.note("began")

    def left(self) -> float:
        """Minutes until the runs have to stop."""
        whole = self.minutes - min(1.0, RESERVE * self.minutes)
        return whole - (time.monotonic() - self.start) / 60

    def note(self, step: str, **facts: Any) -> None:
        """Write down how far it has come."""
        self.facts |= facts | {"step": step, "seconds": round(time.monotonic() - self.start)}
        write_atomic(self.out / "session.json", json.dumps(self.facts, indent=1) + "\n")
        print(f"{self.facts['seconds']:5d} s  {step}", flush=True)

    # --- the three steps --------------------------------------------------------------------------------------

    def check(self) -> bool:
        """Fast against slow, and this device against the processor; True if all agree."""
        done: list[checks.Check] = []
        for each in checks.everything(self.options.device):
            done.append(each)
            self.note(str(each), checks=[check.told() for check in done])
        return all(each.passed for each in done)

    def measure(self) -> None:
        """All benchmarks, unless this folder has them from the same code."""
        if self.results.is_file():
            before = json.loads(self.results.read_text())
            if before["complete"] and before["commit"] == provenance.commit():
                return self.note("measured before")
        allowed = max(0.0, min(MEASURING * self.minutes, self.left()))
        found = run_all.measured(self.how, allowed, self.keep)
        self.keep(found)
        self.note("measured")

    def keep(self, found: dict[str, Any]) -> None:
        """Write the measurements so far, with the price of the runs so far."""
        runs = [price(record) for record in self.store.records()]
        run_all.write(found | {"runs": runs}, self.results)

    def run(self) -> None:
        """The missing runs, most valuable first, slice after slice; each slice ends with checkpoints and an archive."""
        jobs = self.missing()
        self.note(f"{len(jobs)} runs are missing")
        while jobs and self.left() > 0:
            batch = self.possible(jobs)
            if not batch:
                break
            for job in batch:
                self.take_set(job)
            where = Where(self.options.device, self.options.data_root)
            scheduler = Scheduler(batch, self.store, self.options.jobs, where)
            scheduler.go(max(0.0, min(self.options.slice_minutes, self.left())), self.ended)
            self.pack()
            jobs = self.missing()
        self.note("done", left=len(jobs), made=[record.key for record in self.store.records()])

    # --- runs -------------------------------------------------------------------------------------------------

    def missing(self) -> list[grid.Job]:
        """What neither the source tree nor this folder has, and has not failed now, in order of value."""
        known = [grid.Ledger(store, self.options.device).records for store in (self.here, self.store)]
        wanted = grid.jobs(self.options.grid or grid.names(), self.options.scale)
        jobs = [job for job in wanted if not any(job.key in keys for keys in known) and job.key not in self.failed]
        made = len(self.store.records())
        return jobs if self.options.runs is None else jobs[: max(0, self.options.runs - made)]

    def possible(self, jobs: Sequence[grid.Job]) -> list[grid.Job]:
        """The jobs up to the first whose data have not been tried; those whose data cannot be used are left out."""
        tried: dict[str, str] = self.facts.setdefault("data", {})
        batch: list[grid.Job] = []
        for job in jobs:
            name = data_name(job.experiment)
            if name not in tried:
                if batch:
                    break
                tried[name] = refused(job.experiment, self.options.data_root, self.store)
                self.note(f"data of {name}: {tried[name] or 'can be used'}")
            batch += [] if tried[name] else [job]
        return batch

    def take_set(self, job: grid.Job) -> None:
        """A distilled set that the source tree has need not be distilled again."""
        target = self.store.distilled(job.set_key)
        if job.set_key and (source := self.here.distilled(job.set_key)).is_file() and not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)

    def ended(self, job: grid.Job, error: str) -> None:
        """After each run: note it, and bring the archive up to date."""
        if error:
            self.failed[job.key] = error
        self.note(f"{job.key} {', '.join(job.arms)}: {error or 'made'}", failed=self.failed,
                  made=[record.key for record in self.store.records()])  # fmt: skip
        if not error:
            self.pack()

    def pack(self) -> None:
        """Everything that is finished, as one file."""
        if not self.store.records():
            return
        archive.pack(self.store, self.out / "records.zip")
        if self.results.is_file():
            self.keep(json.loads(self.results.read_text()))


def data_name(e: Experiment) -> str:
    """The images and test groups that a run needs, in words."""
    parts = {"size": e.size, "train": e.train_limit, "test": e.test_limit, "part": e.eval_part,
             "honest groups": e.eval_honest_groups, "corruptions": e.eval_corruptions}  # fmt: skip
    return ", ".join([e.dataset, *(f"{k} {v}" for k, v in parts.items() if v not in (None, False, "test"))])


def refused(e: Experiment, root: str | None, store: Store) -> str:
    """Why the data of a run cannot be used here; '' if they can. Makes the test groups, which need scikit-learn."""
    try:
        data = load_data(e, "cpu", root)
        folders = (ROOT / "data" / "groups", store.root / "groups")
        TestBench.of(data, e.eval_groups, e.eval_shifts, e.eval_honest_groups, folders, e.eval_corruptions)
    except REFUSALS as error:
        return str(error) or repr(error)
    return ""


def price(record: Record) -> dict[str, Any]:
    """What a run was and what it cost, for the page."""
    names = ("dataset", "method", "risk", "ipc", "factor", "seed", "scale")
    return {"key": record.key, **{n: record.experiment[n] for n in names},
            "seconds": round(sum(record.seconds.values()), 1), "peak_memory_mb": record.peak_memory_mb}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--minutes", type=float, required=True, metavar="M", help="minutes in all")
    top.add_argument("--out", required=True, metavar="DIR", help="folder for all that is made; the same one goes on")
    top.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default cuda")
    top.add_argument("--scale", choices=SCALES, default="gpu", help="of the runs; smoke measures tiny work only")
    top.add_argument("--grid", action="append", metavar="GRID", help="only runs of this grid; may be repeated")
    top.add_argument("--runs", type=int, metavar="N", help="no more than N records in the folder")
    top.add_argument("--jobs", type=int, default=1, metavar="N", help="runs side by side on the device")
    top.add_argument("--slice-minutes", type=float, default=9.0, metavar="S", help="minutes between two archives")
    top.add_argument("--threads", type=int, default=min(2, cores()), help="of measurements on a processor")
    top.add_argument("--data-root", metavar="DIR", help="where data lies (default $RDD_DATA, else data/cache)")
    return top


def main(words: Sequence[str] | None = None) -> int:
    options = parser().parse_args(words)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("gpu_session: torch sees no GPU here; --device cpu --scale smoke tries the script out", file=sys.stderr)
        return 2
    for number in (signal.SIGINT, signal.SIGTERM):  # a background shell may have had them ignored
        signal.signal(number, signal.default_int_handler)
    torch.set_num_threads(options.threads)
    session = Session(options)
    try:
        if not session.check():
            session.note("a check failed: nothing is measured, no run is made")
            return 1
        session.measure()
        session.run()
    except KeyboardInterrupt:
        session.pack()
        session.note("stopped; the same command goes on from there")
        return 130
    except (SettingError, StoreError) as error:
        print(f"gpu_session: {error}", file=sys.stderr)
        return 2
    return 1 if session.failed else 0


if __name__ == "__main__":
    sys.exit(main())
