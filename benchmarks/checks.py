"""Is the fast way the slow way, and is one device the other? Small work done twice, and how far the results part.

Differences are of the largest entry, over how far the work moved what it works on where that is said: rounding is then
about 1e-5, and a wrong term of order one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import bench_augment
import bench_evaluation
import bench_inner_step
import bench_training
import torch
from measure import KINDS
from torch import Tensor

from rddlib.models import fused

STEP = {"ipc": 2, "factor": 2, "width": 8, "batch_real": 16, "net_steps": 2, "net_batch": 32, "n_classes": 3}
AUGMENT = ("color_crop_cutout_flip_scale_rotate", 8, False, True)
ROUNDING = 1e-2  # share of the way: float32 rounding stays far below, a wrong sum or sign does not


@dataclass(frozen=True)
class Check:
    """What was compared, by how much it differed, and how much it may."""

    name: str
    difference: float
    allowed: float

    @property
    def passed(self) -> bool:
        return self.difference <= self.allowed  # False for a difference that is not a number

    def told(self) -> dict[str, Any]:
        return asdict(self) | {"passed": self.passed}

    def __str__(self) -> str:
        word = "ok" if self.passed else "FAILED"
        return f"{word:6s} {self.name}: differs by {self.difference:.2g}, allowed {self.allowed:g}"


def everything(device: str) -> Iterator[Check]:
    """Fast against slow on the device, with fused forms and without; then the device against the processor."""
    with full_precision():
        yield from pairs(f"{device}: library against plain loop", *((kind, device) for kind in KINDS))
        one, two = (inner_steps(("library", device), classes_at_once=each) for each in (False, True))
        yield Check(f"{device}: classes at once against one after another", moved(one, two), ROUNDING)
        if device == "cpu":  # the only one that the fused forms serve
            with fused.use(False):
                yield from pairs("cpu: library without fused forms against plain loop", *((k, device) for k in KINDS))
        else:
            yield from pairs(f"{device} against the processor", ("library", device), ("library", "cpu"))


@contextmanager
def full_precision() -> Iterator[None]:
    """Without TF32, whose rounding would hide what is looked for."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    try:
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


Way = tuple[str, str]  # kind and device


def pairs(name: str, one: Way, two: Way) -> Iterator[Check]:
    """Every kind of work, done in two ways."""
    yield Check(f"{name}, inner steps", moved(inner_steps(one), inner_steps(two)), ROUNDING)
    yield Check(f"{name}, network training", moved(training(one), training(two)), ROUNDING)
    a, b = (bench_augment.work(*way, *AUGMENT)().cpu() for way in (one, two))
    yield Check(f"{name}, augmentation", float((a - b).abs().max()), 1e-3)
    found, other = (bench_evaluation.work(*way, 2, 8, 4, 200)() for way in (one, two))
    # one of 200 predictions a network may sit on the edge
    yield Check(f"{name}, accuracies", max(abs(a - b) for a, b in zip(found, other, strict=True)), 1.0)


def moved(one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor]) -> float:
    """Distance of two ends over the way from the start: (start, end) of each."""
    way = (one[1] - one[0]).abs().max()
    return float((one[1] - two[1]).abs().max() / way) + float((one[0] - two[0]).abs().max())


def inner_steps(way: Way, **more: Any) -> tuple[Tensor, Tensor]:
    """Images after one inner step and after three."""
    work: Callable[[], Any] = bench_inner_step.work(*way, STEP | more)
    start = work().detach().clone()
    work()
    return start.cpu(), work().detach().cpu()


def training(way: Way) -> tuple[Tensor, Tensor]:
    """All weights after one update and after three."""
    ends = (bench_training.work(*way, 8, 32, updates)() for updates in (1, 3))
    one, three = (torch.cat([p.detach().flatten().cpu() for p in net.parameters()]) for net in ends)
    return one, three
