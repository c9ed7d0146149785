"""Two ways of doing the same work, in turn: ratios with their interval, the arithmetic done, the memory taken.

Each way has a process of its own (what `fused.keep_memory` sets holds for a whole process) and computes only while
the other waits. On a processor with one thread the clock is the process's CPU time, which other work on the machine
disturbs little; with more threads, and on a GPU, it is the wall clock. Arithmetic is counted by torch's own counter
(convolutions and matrix products), and operands by adding up the sizes of what every operation reads and writes:
traffic, were there no caches.

The ceilings beside which all this stands, two threads of a processor (results/cpu-2-threads-x86_64.json), float32: 197
GFLOP/s by a matrix product, 236 by the ConvNet's widest convolution, 32 GB/s read and written by a copy.
"""

from __future__ import annotations

import math
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from rddlib.data.dataset import DataSet
from rddlib.experiments.workers import LATE
from rddlib.models import fused

Work = Callable[[], object]
Factory = Callable[..., Work]  # (kind, device, *arguments) -> work, kind "reference" or "library"
KINDS = ("reference", "library")
LEAST = 3  # rounds that are made however long they take, where as many are asked for


@dataclass(frozen=True)
class How:
    """On what, and how long: rounds end early where their time is spent."""

    threads: int = 1
    device: str = "cpu"
    quick: bool = False  # one round of tiny work: does it run at all?
    end: float = math.inf  # time.monotonic() after which no round begins beyond the least
    stop: float = math.inf  # and after which none begins beyond the first

    def rounds(self, usual: int) -> int:
        return 1 if self.quick else max(LEAST, usual)

    def clock(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.process_time() if self.device == "cpu" and self.threads == 1 else time.perf_counter()

    @property
    def clock_name(self) -> str:
        return "CPU time of the process" if self.device == "cpu" and self.threads == 1 else "wall clock"


class Operands(TorchDispatchMode):
    """Counts the bytes of all operations' tensors, read and written; views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [t for t in tree_leaves((args, result)) if isinstance(t, Tensor)]
            self.bytes += sum(t.numel() * t.element_size() for t in tensors)
        return result


def serve(pipe: Connection, factory: Factory, kind: str, arguments: tuple[Any, ...], how: How) -> None:
    """The process of one kind: count once, which also warms up, then run whenever asked to."""
    torch.set_num_threads(how.threads)
    if kind == "library":
        fused.keep_memory()
    work = factory(kind, how.device, *arguments)
    with FlopCounterMode(display=False) as counter, Operands() as operands:
        work()
    pipe.send({"flops": counter.get_total_flops(), "operand_bytes": operands.bytes})
    while pipe.recv():
        start = how.clock()
        work()
        pipe.send(how.clock() - start)


def context(device: str) -> Any:
    """How processes begin: forked from a server that has imported torch, where nothing has touched a GPU's driver."""
    forks = sys.platform == "linux" and device == "cpu"
    found: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        found.set_forkserver_preload(["rddlib.experiments.workers", *LATE])
    return found


@contextmanager
def process(factory: Factory, kind: str, arguments: tuple[Any, ...], how: How) -> Iterator[Connection]:
    begin = context(how.device)
    ours, theirs = begin.Pipe()
    worker = begin.Process(target=serve, args=(theirs, factory, kind, arguments, how), daemon=True)
    worker.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        worker.join(5)
        worker.kill()


def in_turn(factory: Factory, arguments: tuple[Any, ...], rounds: int, how: How | None = None) -> dict[str, Any]:
    """Seconds, ratio and counts of both kinds of `factory`; which one begins alternates from round to round."""
    how = how or How()
    with process(factory, "reference", arguments, how) as one, process(factory, "library", arguments, how) as two:
        pipes = dict(zip(KINDS, (one, two), strict=True))
        counts = {kind: pipe.recv() for kind, pipe in pipes.items()}
        taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for number in range(-1, rounds):  # one to settle down: the counting run pages memory in too
            now = time.monotonic()
            if (number >= LEAST and now > how.end) or (number >= 1 and now > how.stop):
                break
            for kind in KINDS if number % 2 else reversed(KINDS):
                pipes[kind].send(True)
                seconds = pipes[kind].recv()
                taken[kind] += [seconds] if number >= 0 else []
        for pipe in pipes.values():
            pipe.send(False)
    found: dict[str, Any] = {"ratio": spread([a / b for a, b in zip(*taken.values(), strict=True)])}
    for kind in KINDS:
        speed = significant(counts[kind]["flops"] / statistics.median(taken[kind]) / 1e9)
        times = spread([1e3 * seconds for seconds in taken[kind]])
        found[kind] = {"milliseconds": times, **counts[kind], "gflop_per_second": speed}
    return found


def spread(values: list[float]) -> dict[str, float]:
    """Median, an interval for it, that interval's coverage, and the number of values.

    The interval reaches from the k-th smallest to the k-th largest value, k as large as leaves at least 95 % coverage
    of the true median whatever the distribution (binomial); with fewer than six values it is their whole range.
    """
    ordered, n = sorted(values), len(values)
    inner = max((k for k in range(1, n // 2 + 1) if coverage(n, k) >= 0.95), default=1)
    return {
        "median": significant(statistics.median(ordered)), "low": significant(ordered[inner - 1]),
        "high": significant(ordered[n - inner]), "coverage": round(coverage(n, inner), 3), "rounds": n,
    }  # fmt: skip


def coverage(n: int, k: int) -> float:
    """Probability that the median lies between the k-th smallest and the k-th largest of n independent values."""
    return max(0.0, 1 - 2 * sum(math.comb(n, i) for i in range(k)) / 2**n)


def significant(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")


def random_data(n: int = 1000, size: int = 32, channels: int = 3, n_classes: int = 10, device: str = "cpu") -> DataSet:
    """Random pixels in the shape of a data set: times do not depend on what is in the images."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, channels, size, size), generator=rng, dtype=torch.uint8)
    labels = torch.arange(n) % n_classes
    classes = tuple(f"class {c}" for c in range(n_classes))
    return DataSet("random", images, labels, images[:200], labels[:200], classes, (0.5,) * channels, (0.25,) * channels,
                   "random pixels", "0" * 64).to(device)  # fmt: skip


def device_name(device: str, threads: int) -> str:
    """A name for files and tables, e.g. cpu-2-threads-x86_64 or nvidia-h100, without the machine's own."""
    if device == "cpu":
        return f"cpu-{threads}-threads-{platform.machine()}"
    words = torch.cuda.get_device_name().lower() if device == "cuda" else device
    return "-".join("".join(c if c.isalnum() else " " for c in words).split())


def ceilings(how: How) -> dict[str, float]:
    """GFLOP/s of a float32 matrix product and of the ConvNet's widest convolution, GB/s read and written by a copy."""
    big = how.device == "cuda"
    side, batch, numbers = (8192, 512, 2**28) if big else (1536, 16, 2**25)
    side, batch, numbers = (256, 2, 2**18) if how.quick else (side, batch, numbers)
    a, x = torch.randn(side, side, device=how.device), torch.randn(batch, 128, 16, 16, device=how.device)
    w = torch.randn(128, 128, 3, 3, device=how.device)
    source, target = torch.zeros(numbers, device=how.device), torch.zeros(numbers, device=how.device)
    best = {
        "matmul_gflop_per_second": 2 * side**3 / shortest(lambda: a @ a, how) / 1e9,
        "convolution_gflop_per_second": 2 * batch * 256 * 9 * 128**2
        / shortest(lambda: torch.conv2d(x, w, padding=1), how) / 1e9,
        "copy_gb_per_second": 2 * source.nbytes / shortest(lambda: target.copy_(source), how) / 1e9,
    }  # fmt: skip
    return {name: significant(value) for name, value in best.items()}


def shortest(work: Callable[[], object], how: How, repeats: int = 15) -> float:
    """Least seconds of several calls: a ceiling is what was reached once."""
    taken = []
    for _ in range(2 if how.quick else repeats + 1):
        start = how.clock()
        work()
        taken.append(how.clock() - start)
    return max(min(taken[1:]), 1e-9)
