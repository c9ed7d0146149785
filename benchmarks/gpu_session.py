"""`make gpu MINUTES=25`: check, measure, then make the most valuable missing runs until the time is spent.

All of it lies in --out, and the same command goes on from there: checks.json (fast against slow), <device>.json (for
benchmarks/results/) and store/ (for `python -m rddlib merge`). Exit status 1: something failed, 3: runs are left.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [folder for folder in (str(ROOT), str(ROOT / "benchmarks")) if folder not in sys.path]

import checks  # noqa: E402
import run_all  # noqa: E402
import torch  # noqa: E402
from measure import How, device_name  # noqa: E402

from rddlib.base import write_atomic  # noqa: E402
from rddlib.experiments import grid  # noqa: E402
from rddlib.experiments.presets import SCALES  # noqa: E402
from rddlib.experiments.records import Store  # noqa: E402
from rddlib.experiments.workers import Scheduler, Where  # noqa: E402


def check(device: str, out: Path) -> bool:
    """Fast against slow, and this device against the processor; True if all agree."""
    done = list(checks.everything(device))
    print(*done, sep="\n", flush=True)
    write_atomic(out / "checks.json", json.dumps([each.told() for each in done], indent=1) + "\n")
    return all(each.passed for each in done)


def measure(how: How, minutes: float, file: Path) -> None:
    """All benchmarks, unless the file has them."""
    if not (file.is_file() and json.loads(file.read_text())["complete"]):
        run_all.write(run_all.measured(how, minutes, lambda found: run_all.write(found, file)), file)


def missing(here: Store, out: Store, options: argparse.Namespace) -> list[grid.Job]:
    """The runs that neither the source tree nor the folder has, most valuable first; sets of theirs that are here."""
    known = {path.stem for store in (here, out) for path in store.files()}
    wanted = grid.jobs(options.grid or grid.names(), options.scale)
    jobs = [job for job in wanted if job.key not in known][: options.runs]
    for job in jobs:
        source = here.distilled(job.set_key)
        if job.set_key and source.is_file():
            write_atomic(out.distilled(job.set_key), source.read_bytes())
    return jobs


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--minutes", type=float, required=True, metavar="M", help="minutes in all")
    top.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for all that is made")
    top.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default cuda")
    top.add_argument("--scale", choices=SCALES, default="gpu", help="of the runs; smoke measures tiny work only")
    top.add_argument("--grid", action="append", metavar="GRID", help="only runs of this grid; may be repeated")
    top.add_argument("--runs", type=int, metavar="N", help="at most N runs")
    top.add_argument("--data-root", metavar="DIR", help="where data lies (default $RDD_DATA, else data/cache)")
    return top


def main(words: Sequence[str] | None = None) -> int:
    options, start, threads = parser().parse_args(words), time.monotonic(), min(2, torch.get_num_threads())
    if options.device == "cuda" and not torch.cuda.is_available():
        print("gpu_session: torch sees no GPU here; --device cpu --scale smoke tries the script out", file=sys.stderr)
        return 2
    torch.set_num_threads(threads)
    if not check(options.device, options.out):
        return 1
    how = How(threads=threads, device=options.device, quick=options.scale == "smoke")
    file, store = options.out / f"{device_name(how.device, how.threads)}.json", Store(options.out / "store")
    measure(how, 0.4 * options.minutes, file)
    where, jobs = Where(options.device, options.data_root), missing(Store(ROOT / "data"), store, options)
    left = max(0.0, options.minutes - (time.monotonic() - start) / 60)
    outcome = Scheduler(jobs, store, 1, where).go(left, lambda job, error: print(job.key, error or "made"))
    return outcome.status


if __name__ == "__main__":
    sys.exit(main())
