"""What does one batched call save over a Python loop, for the M evaluations of one step of Algorithm 2?

One thread, medians: 3.6 to 14.7 x (results/zeroth_cpu-2-cores.json, which notebook 4 reads); 5 was asked for.
`python benchmarks/bench_zeroth.py` measures both in turn, in one process, and writes that file; test_speed.py holds the
ratios to limits.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rddlib.base import generator, write_atomic
from rddlib.risk import RiskTerm
from rddlib.theory.algorithms import Task, bilevel_loss

# name: (real items n, synthetic items m, features d, classes, probes M, dtype); the first two are those of notebook 4
CASES = {
    "2-D, 6 synthetic items": (200, 6, 2, 2, 16, torch.float64),
    "digits, 16 features, 10 synthetic items": (200, 10, 16, 10, 32, torch.float32),
    "digits, 64 pixels, 20 synthetic items": (300, 20, 64, 10, 64, torch.float32),
}
LARGEST = "digits, 64 pixels, 20 synthetic items"
TERMS = {"Eq. 2, upper tail": RiskTerm.preset("upper", alpha=0.5), "mean loss": None}


def problem(case: str) -> tuple[Task, Tensor]:
    """A task and the M perturbed synthetic sets of one step (M, m, d)."""
    n, m, d, classes, probes, dtype = CASES[case]
    rng = generator(0, "benchmark", case)
    features = torch.randn(n, d, generator=rng, dtype=dtype)
    task = Task(features, torch.arange(n) % classes, torch.arange(m) % classes)
    return task, features[:m] + 0.1 * torch.randn(probes, m, d, generator=rng, dtype=dtype)


def batched(task: Task, sets: Tensor, term: RiskTerm | None) -> Tensor:
    return bilevel_loss(sets, task, term)


def looped(task: Task, sets: Tensor, term: RiskTerm | None) -> Tensor:
    return torch.cat([bilevel_loss(one[None], task, term) for one in sets])


def seconds(work: Callable[[], Tensor]) -> float:
    """CPU seconds: with one thread these are wall-clock seconds on an idle core, and other load does not enter."""
    start = time.process_time()
    work()
    return time.process_time() - start


def ratios(case: str, term: RiskTerm | None, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of both and their ratio, round by round, alternating so that other load hits both alike."""
    task, sets = problem(case)
    found: dict[str, list[float]] = {"batched_ms": [], "loop_ms": [], "ratio": []}
    for _ in range(rounds + 1):
        fast = np.median([seconds(lambda: batched(task, sets, term)) for _ in range(5)])
        slow = seconds(lambda: looped(task, sets, term))
        for name, value in zip(found, (1e3 * fast, 1e3 * slow, slow / fast), strict=True):
            found[name].append(float(value))
    return {name: values[1:] for name, values in found.items()}  # the first round warms up


if __name__ == "__main__":
    torch.set_num_threads(1)
    rows, names = [], ("quartile_low", "median", "quartile_high")
    for case, term in itertools.product(CASES, TERMS):
        found = ratios(case, TERMS[term], 30)
        quartiles = {k: np.quantile(v, [0.25, 0.5, 0.75]).round(2).tolist() for k, v in found.items()}
        spreads = {k: dict(zip(names, v, strict=True)) for k, v in quartiles.items()}
        rows.append({"case": case, "loss": term, "M": CASES[case][4], **spreads})
    path = Path(__file__).parent / "results" / "zeroth_cpu-2-cores.json"
    write_atomic(path, json.dumps({"threads": 1, "clock": "CPU time", "rows": rows}, indent=1) + "\n")
