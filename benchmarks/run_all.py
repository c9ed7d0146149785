"""`make bench`: the plain loop against the library's on this machine's processor, in at most ten minutes.

Writes benchmarks/results/<device>.json: ratios with their intervals, arithmetic, shares of the ceilings, how the cost
of an inner step grows. book/performance.py makes the page of it. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import batched
import bench_augment
import bench_evaluation
import bench_ideas
import bench_inner_step
import bench_training
import small
import torch
from ceilings import ceilings, with_shares
from measure import How, cores, device_name

from rddlib.base import write_atomic
from rddlib.experiments import provenance

FORMAT = "rddlib benchmarks 1"
MAIN = ("training", "inner_step", "evaluation", "augmentation")
# What is measured, in order, and by when of the time allowed each part has to end.
PARTS: dict[str, tuple[Callable[[How], Any], float]] = {
    "training": (bench_training.results, 0.15),
    "augmentation": (bench_augment.results, 0.2),
    "inner_step": (bench_inner_step.results, 0.5),
    "evaluation": (bench_evaluation.results, 0.7),
    "batched": (batched.results, 0.75),
    "ideas": (bench_ideas.results, 0.8),
    "growth": (bench_inner_step.growth, 0.97),
}
ON_A_PROCESSOR: dict[str, tuple[Callable[[How], Any], float]] = {
    "risk": (small.risk, 0.01),
    "probes": (small.probes, 0.02),
    "imports": (small.imports, 0.04),
}


def measured(how: How, minutes: float, keep: Callable[[dict[str, Any]], None] = lambda found: None) -> dict[str, Any]:
    """Every part, in its time; `keep` gets what is known after each. A part for which no time is left is left out."""
    start = time.monotonic()
    found = head(how)
    # The short parts come first: nothing that takes minutes may leave them without time.
    for name, (part, share) in ((ON_A_PROCESSOR if how.device == "cpu" else {}) | PARTS).items():
        if time.monotonic() - start > 60 * minutes:
            print(f"{time.monotonic() - start:5.0f} s  {name}: no time is left, not measured", flush=True)
            continue
        print(f"{time.monotonic() - start:5.0f} s  {name}", flush=True)
        made = part(dataclasses.replace(how, end=start + 60 * minutes * share, stop=start + 60 * minutes))
        found["results"][name] = with_shares(made, found["ceilings"])
        found["seconds"] = round(time.monotonic() - start)
        keep(found)
    return found | {"complete": True}


def head(how: How) -> dict[str, Any]:
    """What is known before the first part: device, clock, versions, ceilings."""
    return {
        "format": FORMAT, "device": device_name(how.device, how.threads),
        "kind": "gpu" if how.device == "cuda" else "cpu", "words": provenance.describe_device(how.device == "cuda"),
        "threads": how.threads, "clock": how.clock_name, "quick": how.quick, "complete": False,
        "versions": {"python": ".".join(map(str, sys.version_info[:3])), "torch": torch.__version__.split("+")[0]},
        "commit": provenance.commit(), "seconds": 0, "ceilings": ceilings(how),
        "results": {},
    }  # fmt: skip


def write(found: dict[str, Any], path: Path) -> Path:
    """Whole or not at all."""
    return write_atomic(path, json.dumps(found, indent=1) + "\n")


def summary(found: dict[str, Any]) -> str:
    """One line a case: the ratio and its interval."""
    rows = [(name, case, entry["ratio"]) for name in MAIN for case, entry in found["results"].get(name, {}).items()]
    return "\n".join(f"{n:13s} {c:50s} {r['median']:5.2f} x  ({r['low']:.2f} to {r['high']:.2f})" for n, c, r in rows)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="time allowed; rounds get fewer, parts are left out")
    parser.add_argument("--effort", type=float, default=1.0, help="rounds, as a multiple of the usual ones")
    parser.add_argument("--threads", type=int, default=min(2, cores()), help="default 2; one is timed by CPU time")
    parser.add_argument("--quick", action="store_true", help="tiny work, once: does it run? Needs --out")
    parser.add_argument("--out", type=Path, help="file to write, default benchmarks/results/<device>.json")
    options = parser.parse_args(words)
    if options.quick and not options.out:
        parser.error("--quick measures nothing: say with --out where its file goes")
    torch.set_num_threads(options.threads)
    how = How(threads=options.threads, effort=options.effort, quick=options.quick)
    found = measured(how, options.minutes)
    found["results"]["laptop_memory"] = small.laptop_memory(small.ROOT / "data")
    path = options.out or Path(__file__).parent / "results" / f"{found['device']}.json"
    write(found, path)
    print(summary(found), f"\nwritten: {path} after {found['seconds']} s. The page: python book/performance.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
