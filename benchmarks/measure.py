"""Two ways of doing the same work, in turn: ratios with their spread, the arithmetic done, the machine's ceilings.

Each way has a process of its own (what `fused.keep_memory` sets holds for a whole process) and computes only while
the other waits. With one thread the clock is the process's CPU time, which other work on the machine disturbs little;
with more it is the wall clock. Arithmetic is counted by torch's own counter (convolutions and matrix products), and
operands by adding up the sizes of what every operation reads and writes: traffic, were there no caches.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from rddlib import fused
from rddlib.data import DataSet

Work = Callable[[], object]
Factory = Callable[..., Work]  # (kind, *arguments) -> work, kind "reference" or "library"
KINDS = ("reference", "library")


class Operands(TorchDispatchMode):
    """Counts the bytes of all operations' tensors, read and written; views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            for t in [*tensors(args), *tensors(result)]:
                self.bytes += t.numel() * t.element_size()
        return result


def tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, tuple | list):
        for value in values:
            yield from tensors(value)


def clock(threads: int) -> float:
    return time.process_time() if threads == 1 else time.perf_counter()


def serve(pipe: Connection, factory: Factory, kind: str, arguments: tuple[Any, ...], threads: int) -> None:
    """The process of one kind: count once, which also warms up, then run whenever asked to."""
    torch.set_num_threads(threads)
    if kind == "library":
        fused.keep_memory()
    work = factory(kind, *arguments)
    with FlopCounterMode(display=False) as counter, Operands() as operands:
        work()
    pipe.send({"flops": counter.get_total_flops(), "operand_bytes": operands.bytes})
    while pipe.recv():
        start = clock(threads)
        work()
        pipe.send(clock(threads) - start)
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


@contextmanager
def process(*arguments: Any) -> Iterator[Connection]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    worker = context.Process(target=serve, args=(theirs, *arguments), daemon=True)
    worker.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        worker.join(5)
        worker.kill()


def in_turn(factory: Factory, arguments: tuple[Any, ...], repeats: int, threads: int = 1) -> dict[str, Any]:
    """Seconds, ratio and counts of both kinds of `factory`; which one begins alternates."""
    with (
        process(factory, "reference", arguments, threads) as one,
        process(factory, "library", arguments, threads) as two,
    ):
        pipes = dict(zip(KINDS, (one, two), strict=True))
        counts = {kind: pipe.recv() for kind, pipe in pipes.items()}
        taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for repeat in range(-1, repeats):  # one to settle down: the counting run pages memory in too
            for kind in KINDS if repeat % 2 else reversed(KINDS):
                pipes[kind].send(True)
                seconds = pipes[kind].recv()
                taken[kind] += [seconds] if repeat >= 0 else []
        for pipe in pipes.values():
            pipe.send(False)
        peaks = {kind: round(pipe.recv()) for kind, pipe in pipes.items()}
    return {
        "ratio": spread([a / b for a, b in zip(*taken.values(), strict=True)]),
        **{kind: {"milliseconds": spread([1e3 * t for t in taken[kind]]), **counts[kind],
                  "gflop_per_second": significant(counts[kind]["flops"] / statistics.median(taken[kind]) / 1e9),
                  "peak_memory_mb": peaks[kind]} for kind in KINDS},
    }  # fmt: skip


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles, rounded to four digits."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"median": significant(middle), "lower_quartile": significant(low), "upper_quartile": significant(high)}


def significant(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")


def ceilings(threads: int = 1, repeats: int = 15) -> dict[str, float]:
    """What the machine can do at best: GFLOP/s of one large float32 matrix product and of the ConvNet's widest
    convolution (batch 16, 128 channels, 16 px), GB/s read and written by copying 256 MB."""
    a, x, w = torch.randn(1536, 1536), torch.randn(16, 128, 16, 16), torch.randn(128, 128, 3, 3)
    source, target = torch.zeros(2**25), torch.zeros(2**25)
    best = {
        "matmul_gflop_per_second": 2 * 1536**3 / shortest(lambda: a @ a, repeats, threads) / 1e9,
        "convolution_gflop_per_second": 2 * 16 * 256 * 9 * 128**2
        / shortest(lambda: torch.conv2d(x, w, padding=1), repeats, threads) / 1e9,
        "copy_gb_per_second": 2 * source.nbytes / shortest(lambda: target.copy_(source), repeats, threads) / 1e9,
    }  # fmt: skip
    return {name: significant(value) for name, value in best.items()}


def shortest(work: Work, repeats: int, threads: int) -> float:
    work()
    taken = []
    for _ in range(repeats):
        start = clock(threads)
        work()
        taken.append(clock(threads) - start)
    return min(taken)


def shares(found: dict[str, Any], best: dict[str, float]) -> dict[str, Any]:
    """`found` of `in_turn`, with the share of the higher of the two arithmetic ceilings that each kind reaches."""
    peak = max(best["matmul_gflop_per_second"], best["convolution_gflop_per_second"])
    for kind in KINDS:
        found[kind]["share_of_arithmetic_peak"] = significant(found[kind]["gflop_per_second"] / peak, 3)
    return found


def random_data(n: int = 1000, size: int = 32, channels: int = 3, n_classes: int = 10) -> DataSet:
    """Random pixels in the shape of a data set: times do not depend on what is in the images."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, channels, size, size), generator=rng, dtype=torch.uint8)
    labels = torch.arange(n) % n_classes
    classes = tuple(f"class {c}" for c in range(n_classes))
    return DataSet("random", images, labels, images[:200], labels[:200], classes, (0.5,) * channels, (0.25,) * channels,
                   "random pixels", "0" * 64)  # fmt: skip


def device_name() -> str:
    return f"cpu-{os.cpu_count()}-cores"
