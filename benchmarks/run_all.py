"""`make bench`: the plain loop against the library on this machine's processor, in under ten minutes.

Writes benchmarks/results/<device>.json: ratios with their spread, arithmetic, shares of the ceilings, and how the cost
of an inner step grows. The page on performance is made from it. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_augment
import bench_evaluation
import bench_inner_step
import bench_training
import torch
from measure import KINDS, ceilings, device_name, shares

from rddlib.base import write_atomic

Part = Callable[[], Any]


def parts(effort: float, threads: int) -> dict[str, Part]:
    """What is measured, with repetitions for some five minutes at `effort` 1 on two cores of the kind we have."""

    def times(n: int) -> int:
        return max(2, round(n * effort))

    return {
        "training": lambda: bench_training.results(times(9), threads),
        "inner_step": lambda: bench_inner_step.results({"laptop": times(9), "published": times(3)}, threads),
        "evaluation": lambda: bench_evaluation.results(times(4), threads),
        "augmentation": lambda: bench_augment.results(times(15), threads),
        "growth": lambda: bench_inner_step.growth(times(2), threads),
    }


def with_shares(found: Any, best: dict[str, float]) -> Any:
    """Shares of the ceilings, put into every measurement wherever it stands."""
    if isinstance(found, dict) and set(KINDS) <= set(found):
        return shares(found, best)
    if isinstance(found, dict):
        return {name: with_shares(value, best) for name, value in found.items()}
    return [with_shares(value, best) for value in found] if isinstance(found, list) else found


def measured(effort: float, threads: int) -> dict[str, Any]:
    start, results = time.perf_counter(), {}
    best = ceilings(threads)
    for name, part in parts(effort, threads).items():
        print(f"{time.perf_counter() - start:5.0f} s  {name}", flush=True)
        results[name] = with_shares(part(), best)
    return {
        "device": device_name(),
        "threads": threads,
        "clock": "CPU time of the process" if threads == 1 else "wall clock",
        "versions": {"python": ".".join(map(str, sys.version_info[:3])), "torch": torch.__version__.split("+")[0]},
        "seconds": round(time.perf_counter() - start),
        "ceilings": best,
        "results": results,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--effort", type=float, default=1.0, help="repetitions, as a multiple of the usual ones")
    parser.add_argument("--threads", type=int, default=1, help="threads; more than one is timed by the wall clock")
    parser.add_argument("--out", type=Path, help="file to write, default benchmarks/results/<device>.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    found = measured(arguments.effort, arguments.threads)
    path = arguments.out or Path(__file__).parent / "results" / f"{device_name()}.json"
    write_atomic(path, json.dumps(found, indent=1) + "\n")
    for name in ("training", "inner_step", "evaluation", "augmentation"):
        for case, entry in found["results"][name].items():
            print(f"{name:13s} {case:50s} {entry['ratio']['median']:5.2f} x")
    print(f"written: {path} after {found['seconds']} s")


if __name__ == "__main__":
    main()
