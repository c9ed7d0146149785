"""Smaller measurements beside the main ones: the risk term, probes in a batch, imports, memory of committed runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bench_risk
import bench_zeroth
import torch
from measure import How, significant, spread

ROOT = Path(__file__).resolve().parent.parent
IMPORTS = {"command line": "rddlib.cli", "notebooks": "rddlib.analysis.report"}
IMPORT = """
import sys, time
a = time.perf_counter(); import torch
b = time.perf_counter(); import {module}
print(b - a, time.perf_counter() - b)
"""


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def risk(how: How) -> dict[str, Any]:
    """`risk.group_cvar` forward and backward, over the loop that the released code's description implies and a sort."""
    rivals = {"loop over groups and samples": bench_risk.loop_with_gradient, "one torch.sort": bench_risk.one_sort}
    with one_thread():
        candidates: Any = {"group_cvar": bench_risk.grouped, **rivals}
        taken = bench_risk.seconds(candidates, bench_risk.SAMPLES, bench_risk.GROUPS, torch.float32, how.rounds(15),
                                   slow=("loop over groups and samples",))  # fmt: skip
    ours = taken["group_cvar"]
    found = {name: spread([a / b for a, b in zip(taken[name], ours, strict=True)]) for name in rivals}
    return {"losses": bench_risk.SAMPLES, "groups": bench_risk.GROUPS, "over_group_cvar": found,
            "milliseconds": spread([1e3 * s for s in ours])}  # fmt: skip


def probes(how: How) -> dict[str, Any]:
    """The M evaluations of one step of Algorithm 2 in one batch, over a loop: ratio and milliseconds, by case."""
    cases = [next(iter(bench_zeroth.CASES))] if how.quick else list(bench_zeroth.CASES)
    with one_thread():
        taken = {case: bench_zeroth.ratios(case, bench_zeroth.TERMS["Eq. 2, upper tail"], how.rounds(9))
                 for case in cases}  # fmt: skip
    return {case: {"ratio": spread(found["ratio"]), "milliseconds": spread(found["batched_ms"])}
            for case, found in taken.items()}  # fmt: skip


def imports(how: How) -> dict[str, Any]:
    """Seconds to import torch, and the library's parts beyond it, each time in a new process; the wall clock."""
    found = {}
    for name, module in list(IMPORTS.items())[: 1 if how.quick else None]:
        times = [import_seconds(module) for _ in range(how.rounds(6))]
        times = times if how.quick else times[1:]  # the first one reads the disk
        torch_alone, beyond = zip(*times, strict=True)
        found[name] = {"module": module, "torch": spread(list(torch_alone)), "beyond_torch": spread(list(beyond))}
    return found


def import_seconds(module: str) -> tuple[float, float]:
    command = [sys.executable, "-c", IMPORT.format(module=module)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    first, second = map(float, done.stdout.split())
    return first, second


def laptop_memory(folder: Path) -> dict[str, Any]:
    """Peak memory in MB of the committed laptop runs on CIFAR-10 on a CPU: the largest of each method, and of all."""
    peaks: dict[str, list[float]] = {}
    for path in sorted(folder.glob("runs/*/*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        e = record["experiment"]
        if e["scale"] == "laptop" and e["dataset"] == "cifar10" and record["device"].startswith("cpu"):
            peaks.setdefault(e["method"], []).append(record["peak_memory_mb"])
    by_method = {method: {"runs": len(v), "largest_mb": significant(max(v))} for method, v in sorted(peaks.items())}
    largest = max((each["largest_mb"] for each in by_method.values()), default=None)
    return {"runs": sum(map(len, peaks.values())), "largest_mb": largest, "by_method": by_method}
