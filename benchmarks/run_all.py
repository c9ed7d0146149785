"""`make bench`: the plain loop against the library's on this machine's processor, in at most ten minutes.

Writes benchmarks/results/<device>.json: ratios with their intervals, arithmetic, shares of the ceilings, how the cost
of an inner step grows; book/performance.py makes tables and figures of it. Run it where nothing else runs.
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

import torch
import work
from measure import How, ceilings, device_name

from rddlib.base import write_atomic
from rddlib.experiments import provenance

FORMAT = "rddlib benchmarks 1"
# What is measured, in order, and by when of the time allowed each part has to end. The short ones come first.
PARTS: dict[str, tuple[Callable[[How], Any], float]] = {
    "training": (work.PARTS["training"].results, 0.15), "augmentation": (work.PARTS["augmentation"].results, 0.2),
    "inner_step": (work.PARTS["inner_step"].results, 0.5), "evaluation": (work.PARTS["evaluation"].results, 0.7),
    "batched": (work.PARTS["batched"].results, 0.75), "growth": (work.growth, 0.97),
}  # fmt: skip


def measured(how: How, minutes: float, keep: Callable[[dict[str, Any]], None] = lambda found: None) -> dict[str, Any]:
    """Every part, in its time; `keep` gets what is known after each. A part for which no time is left is left out."""
    start = time.monotonic()
    found = head(how)
    for name, (part, share) in PARTS.items():
        if time.monotonic() - start > 60 * minutes:
            print(f"{time.monotonic() - start:5.0f} s  {name}: no time is left, not measured", flush=True)
            continue
        print(f"{time.monotonic() - start:5.0f} s  {name}", flush=True)
        stop = start + 60 * minutes
        found["results"][name] = part(dataclasses.replace(how, end=start + 60 * minutes * share, stop=stop))
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


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="time allowed; rounds get fewer, parts are left out")
    parser.add_argument(
        "--threads", type=int, default=min(2, torch.get_num_threads()), help="default 2; one is timed by CPU time"
    )
    parser.add_argument("--quick", action="store_true", help="tiny work, once: does it run? Needs --out")
    parser.add_argument("--out", type=Path, help="file to write, default benchmarks/results/<device>.json")
    options = parser.parse_args(words)
    if options.quick and not options.out:
        parser.error("--quick measures nothing: say with --out where its file goes")
    torch.set_num_threads(options.threads)
    how = How(threads=options.threads, quick=options.quick)
    found = measured(how, options.minutes)
    path = options.out or Path(__file__).parent / "results" / f"{found['device']}.json"
    write(found, path)
    print(f"written: {path} after {found['seconds']} s. The page: python book/performance.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
