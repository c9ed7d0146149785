"""The M evaluations of one step of Algorithm 2: one batched call against a Python loop over the sets.

`python benchmarks/bench_zeroth.py` measures both in turn, in one process, and writes
benchmarks/results/zeroth_<device>.json; test_speed.py holds the ratios to limits. The one asked for is 5. One thread
for both: the gain is that of batching alone.
"""

from __future__ import annotations

import argparse
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


def summary(values: list[float]) -> dict[str, float]:
    low, middle, high = map(float, np.quantile(values, [0.25, 0.5, 0.75]))
    return {"median": round(middle, 2), "quartile_low": round(low, 2), "quartile_high": round(high, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu-2-cores", help="what to call this machine in the file")
    parser.add_argument("--rounds", type=int, default=30, help="rounds a case")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for case, (n, m, d, classes, probes, dtype) in CASES.items():
        for name, term in TERMS.items():
            found = {key: summary(values) for key, values in ratios(case, term, arguments.rounds).items()}
            rows.append(
                {
                    "case": case,
                    "loss": name,
                    "n": n,
                    "m": m,
                    "d": d,
                    "classes": classes,
                    "M": probes,
                    "dtype": str(dtype).removeprefix("torch."),
                    **found,
                }
            )
            print(
                f"{case:42s} {name:18s} batched {found['batched_ms']['median']:7.2f} ms, "
                f"loop {found['loop_ms']['median']:7.2f} ms, ratio {found['ratio']}"
            )
    result = {
        "what": "M evaluations of the bilevel L(S): batched against a Python loop",
        "device": arguments.device,
        "threads": 1,
        "clock": "CPU time",
        "rounds": arguments.rounds,
        "torch": torch.__version__.split("+")[0],
        "rows": rows,
    }
    path = Path(__file__).parent / "results" / f"zeroth_{arguments.device}.json"
    write_atomic(path, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
