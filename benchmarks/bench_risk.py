"""Speed and memory of `risk.group_cvar`, as ratios taken in one run.

`python benchmarks/bench_risk.py` measures and stores benchmarks/results/risk_<device>.json; `make benchtest` measures
smaller samples and holds the ratios to the limits below.

* Against the loop over groups and samples that the description of the released code implies: one Python step a sample
  (append it to its cluster's list), then one a cluster (sort, mean, boundary item). Once with the losses kept in the
  graph, forward and backward as `group_cvar`; once as described, where each loss is copied into a zero-padded
  row and the value is a constant, so that there is no backward pass (the same value by `released_group_cvar`
  beside it); once with the loop over samples taken out.
* Against one torch.sort of the same losses, both forward and backward.
* Time, over that of torch.sort and over n log n, and memory, up to 10^6 losses in 1,000 groups.

One thread; times are that thread's CPU time, so that other work on the machine disturbs them little. Candidates are
called in turn within each repeat, on data drawn anew for each repeat: on the same 5,120 numbers over
and over, branch prediction learns the order by heart and torch.sort alone runs some five times as fast.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rddlib.base import generator, repository_root, write_atomic
from rddlib.risk import RiskTerm, group_cvar, released_group_cvar, robust_loss

torch.set_num_threads(1)  # nothing here is large enough to gain from more, and idle threads spin
ALPHA = 0.8
LOOP_AT_LEAST, SORT_AT_MOST, MEMORY_AT_MOST = 100.0, 3.0, 10.0
SAMPLES, GROUPS = 5_120, 100

Candidate = Callable[[Tensor, Tensor, int], object]


def draw(n: int, n_groups: int, dtype: torch.dtype, seed: int) -> tuple[Tensor, Tensor]:
    """Exponential losses, which carry a gradient, and their groups."""
    source = generator(seed, "bench risk", n)
    losses = torch.empty(n, dtype=dtype).exponential_(generator=source)
    return losses.requires_grad_(), torch.randint(0, n_groups, (n,), generator=source)


def grouped(losses: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    values, _ = group_cvar(losses, groups, n_groups, ALPHA)
    return torch.autograd.grad(values, losses, torch.ones_like(values))[0]


def robust(losses: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    return torch.autograd.grad(robust_loss(losses, groups, n_groups, RiskTerm()), losses)[0]


def one_sort(losses: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    ordered = losses.sort().values
    return torch.autograd.grad(ordered, losses, torch.ones_like(ordered))[0]


def released_value(losses: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    return released_group_cvar(losses.detach(), groups, n_groups, ALPHA)[0]


def clusters_of(losses: Tensor, groups: Tensor, n_groups: int) -> list[list[Tensor]]:
    clusters: list[list[Tensor]] = [[] for _ in range(n_groups)]
    for j in range(len(losses)):
        clusters[int(groups[j])].append(losses[j])
    return clusters


def loop_value_only(losses: Tensor, groups: Tensor, n_groups: int) -> tuple[Tensor, Tensor]:
    """The released rule as described. Its value is a constant, so there is no backward pass to time."""
    clusters = clusters_of(losses, groups, n_groups)
    rows = np.zeros((n_groups, max(map(len, clusters))))
    for i, cluster in enumerate(clusters):
        for m, loss in enumerate(cluster):
            rows[i, m] = loss.item()
    values = torch.zeros(n_groups)
    for i, row in enumerate(torch.from_numpy(rows)):
        ordered = row.sort().values
        k = max(1, int(ALPHA * len(row)))
        kept = ordered[:k][ordered[:k] != 0]
        mean = kept.mean() if len(kept) else torch.zeros(())
        values[i] = (mean + ordered[k - 1] * (ALPHA - k / len(row))) / ALPHA
    return values[values != 0].mean(), values.max()


def upper_tail(losses: Tensor) -> Tensor:
    ordered = losses.sort(descending=True).values
    items = ALPHA * len(ordered)
    return (ordered * (items - torch.arange(len(ordered))).clamp(0, 1)).sum() / items


def loop_with_gradient(losses: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    """The same two loops with the losses left in the graph and the upper tail, forward and backward."""
    values = [upper_tail(torch.stack(c)) for c in clusters_of(losses, groups, n_groups) if c]
    return torch.autograd.grad(torch.stack(values).sum(), losses)[0]


def loop_over_groups(losses: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    """A loop over groups only, forward and backward: what a careful first version looks like."""
    values = [upper_tail(losses[groups == i]) for i in range(n_groups)]
    return torch.autograd.grad(torch.stack(values).sum(), losses)[0]


def seconds(candidates: dict[str, Candidate], n: int, n_groups: int, dtype: torch.dtype, repeats: int,
            slow: tuple[str, ...] = (), calls: int = 10) -> dict[str, list[float]]:  # fmt: skip
    """CPU seconds a call of each candidate in each repeat; the order rotates, every call has data of its own.

    A repeat averages `calls` calls; a candidate named in `slow` is called once.
    """
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for repeat in range(-1, repeats):  # one to warm up
        data = [draw(n, n_groups, dtype, calls * (repeat + 1) + call) for call in range(calls)]
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            some = data[:1] if name in slow else data
            start = time.thread_time()
            for losses, groups in some:
                candidates[name](losses, groups, n_groups)
            if repeat >= 0:
                taken[name].append((time.thread_time() - start) / len(some))
    return taken


def spread(values: list[float], digits: int = 4) -> dict[str, float]:
    """Median and quartiles, rounded to significant digits."""
    low, middle, high = statistics.quantiles(values, n=4)
    rounded = [float(f"{v:.{digits}g}") for v in (middle, low, high)]
    return dict(zip(("median", "lower_quartile", "upper_quartile"), rounded, strict=True))


def ratio(over: list[float], under: list[float]) -> dict[str, float]:
    """Spread of the ratio within a repeat."""
    return spread([a / b for a, b in zip(over, under, strict=True)])


def against_sort(dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    candidates = {"group_cvar": grouped, "torch.sort": one_sort, "robust_loss": robust}
    taken = seconds(candidates, SAMPLES, GROUPS, dtype, repeats)
    return {
        "microseconds": {name: spread([1e6 * s for s in values]) for name, values in taken.items()},
        "group_cvar_over_sort": ratio(taken["group_cvar"], taken["torch.sort"]),
        "robust_loss_over_sort": ratio(taken["robust_loss"], taken["torch.sort"]),
    }


def against_loops(dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    loops: dict[str, Candidate] = {
        "loop_with_gradient": loop_with_gradient,
        "loop_value_only": loop_value_only,
        "loop_over_groups": loop_over_groups,
    }
    ours: dict[str, Candidate] = {"group_cvar": grouped, "released_group_cvar": released_value}
    taken = seconds(ours | loops, SAMPLES, GROUPS, dtype, repeats, slow=tuple(loops))
    return {
        "milliseconds": {name: spread([1e3 * s for s in values]) for name, values in taken.items()},
        "loop_value_only_over_released_group_cvar": ratio(taken["loop_value_only"], taken["released_group_cvar"]),
        "over_group_cvar": {name: ratio(taken[name], taken["group_cvar"]) for name in loops},
    }


def scaling(dtype: torch.dtype, repeats: int, sizes: tuple[int, ...] = (10_000, 100_000, 1_000_000)) -> dict[str, Any]:
    """Milliseconds in 1,000 groups for growing n, and over torch.sort, which costs n log n."""
    table = {}
    for n in sizes:
        candidates = {"group_cvar": grouped, "torch.sort": one_sort}
        taken = seconds(candidates, n, 1_000, dtype, repeats, calls=max(1, 100_000 // n))
        table[str(n)] = {
            "milliseconds": spread([1e3 * s for s in taken["group_cvar"]]),
            "nanoseconds_over_n_log2_n": spread([1e9 * s / (n * np.log2(n)) for s in taken["group_cvar"]]),
            "group_cvar_over_sort": ratio(taken["group_cvar"], taken["torch.sort"]),
        }
    return table


def memory(dtype: torch.dtype, n: int = 1_000_000, n_groups: int = 1_000) -> dict[str, float] | None:
    """Peak memory of one forward and backward beyond what stood before, over the bytes of the losses; Linux only.

    in_use: with an allocator that hands freed blocks back at once. resident: with glibc's defaults, where freed blocks
    stay with the process; median of five, as it varies from run to run.
    """
    if not Path("/proc/self/clear_refs").exists():
        return None
    command = [sys.executable, __file__, "--peak", str(dtype).removeprefix("torch."), str(n), str(n_groups)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def child(extra: dict[str, str]) -> float:
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment | extra)
        return float(done.stdout)

    resident_peak = statistics.median(child({}) for _ in range(5))
    return {"in_use": round(child({"MALLOC_MMAP_THRESHOLD_": "1000000"}), 2), "resident": round(resident_peak, 2)}


def peak(dtype: torch.dtype, n: int, n_groups: int) -> float:
    """The child of `memory`: high-water mark of resident memory less the resident memory before, over the losses'."""
    grouped(*draw(1000, 10, dtype, 0), 10)  # load what is loaded lazily
    losses, groups = draw(n, n_groups, dtype, 1)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = resident("VmRSS")
    grouped(losses, groups, n_groups)
    return (resident("VmHWM") - before) / (n * losses.element_size())


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def measure(repeats: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for dtype in (torch.float32, torch.float64):
        results[str(dtype).removeprefix("torch.")] = {
            "against_sort": against_sort(dtype, repeats),
            "against_loops": against_loops(dtype, repeats),
            "scaling_in_1000_groups": scaling(dtype, max(5, repeats // 2)),
            "peak_memory_over_losses": memory(dtype),
        }
    return {
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "clock": "CPU time of the thread",
        "versions": {"python": ".".join(map(str, sys.version_info[:3])), "torch": torch.__version__.split("+")[0]},
        "setting": {"losses": SAMPLES, "groups": GROUPS, "alpha": ALPHA, "tail": "upper", "repeats": repeats},
        "limits": {
            "loop_with_gradient_over_group_cvar_at_least": LOOP_AT_LEAST,
            "group_cvar_over_sort_at_most": SORT_AT_MOST,
            "peak_memory_in_use_over_losses_at_most": MEMORY_AT_MOST,
        },
        "results": results,
    }


def device_name() -> str:
    return f"cpu-{os.cpu_count()}-cores"


def test_group_cvar_against_the_loops(benchmark: Any) -> None:
    result = benchmark.pedantic(against_loops, (torch.float32, 7), rounds=1)
    assert result["over_group_cvar"]["loop_with_gradient"]["median"] >= LOOP_AT_LEAST


def test_group_cvar_against_one_sort(benchmark: Any) -> None:
    result = benchmark.pedantic(against_sort, (torch.float32, 15), rounds=1)
    assert result["group_cvar_over_sort"]["median"] <= SORT_AT_MOST


def test_a_million_losses_cost_as_their_sort_does_and_stay_small(benchmark: Any) -> None:
    result = benchmark.pedantic(scaling, (torch.float32, 5, (1_000_000,)), rounds=1)
    assert result["1000000"]["group_cvar_over_sort"]["median"] <= SORT_AT_MOST
    assert (memory(torch.float32) or {"in_use": 0.0})["in_use"] <= MEMORY_AT_MOST


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--peak", nargs=3, metavar=("DTYPE", "N", "GROUPS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        dtype, n, n_groups = arguments.peak
        print(peak(getattr(torch, dtype), int(n), int(n_groups)))
        return
    results = measure(arguments.repeats)
    path = repository_root() / "benchmarks" / "results" / f"risk_{device_name()}.json"
    write_atomic(path, json.dumps(results, indent=1) + "\n")
    print(json.dumps(results["results"], indent=1))


if __name__ == "__main__":
    main()
