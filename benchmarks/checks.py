"""Is the fast way the slow way, and is one device the other? Small work done twice, and how far the results part.

Differences are of the largest entry, over how far the work moved what it works on where that is said: rounding is then
about 1e-5, and a wrong term of order one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import work
from measure import KINDS, random_data
from torch import Tensor, nn

from rddlib.base import generator
from rddlib.models import networks
from rddlib.models.training import Training, train, train_together

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
    with torch.backends.cudnn.flags(allow_tf32=False):  # its rounding would hide what is looked for
        yield from pairs(f"{device}: library against plain loop", *((kind, device) for kind in KINDS))
        one, two = (inner_steps(("library", device), classes_at_once=each) for each in (False, True))
        yield Check(f"{device}: classes at once against one after another", moved(one, two), ROUNDING)
        yield together(device)
        if device != "cpu":
            yield from pairs(f"{device} against the processor", ("library", device), ("library", "cpu"))


Way = tuple[str, str]  # kind and device


def pairs(name: str, one: Way, two: Way) -> Iterator[Check]:
    """Every kind of work, done in two ways."""
    yield Check(f"{name}, inner steps", moved(inner_steps(one), inner_steps(two)), ROUNDING)
    yield Check(f"{name}, network training", moved(training(one), training(two)), ROUNDING)
    a, b = (work.augmentation(*way, *AUGMENT)().cpu() for way in (one, two))
    yield Check(f"{name}, augmentation", float((a - b).abs().max()), 1e-3)
    found, other = (work.evaluate(*way, 2, 8, 4, 200)() for way in (one, two))
    # one of 200 predictions a network may sit on the edge
    yield Check(f"{name}, accuracies", max(abs(a - b) for a, b in zip(found, other, strict=True)), 1.0)


def moved(one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor]) -> float:
    """Distance of two ends over the way from the start: (start, end) of each."""
    way = (one[1] - one[0]).abs().max()
    return float((one[1] - two[1]).abs().max() / way) + float((one[0] - two[0]).abs().max())


def inner_steps(way: Way, **more: Any) -> tuple[Tensor, Tensor]:
    """Images after one inner step and after three."""
    step: Callable[[], Any] = work.inner_step(*way, STEP | more)
    start = step().detach().clone()
    step()
    return start.cpu(), step().detach().cpu()


def training(way: Way) -> tuple[Tensor, Tensor]:
    """All weights after one update and after three."""
    one, three = (work.train(*way, 8, 32, updates)() for updates in (1, 3))
    return one.cpu(), three.cpu()


def together(device: str) -> Check:
    """Three networks trained side by side against one after another: all weights, over the way of an update."""
    data = random_data(100, device=device)
    images, how = data.train_images.float() / 255, Training(steps=3)

    def weights(nets: list[nn.Module]) -> Tensor:
        return torch.cat([p.detach().flatten() for net in nets for p in net.parameters()])

    def fresh() -> list[nn.Module]:
        build = partial(networks.build, "convnet", data.shape, 10, width=8)
        return [build(generator=generator(seed, "net")).to(device) for seed in range(3)]

    one = [train(net, images, data.train_labels, data, how, seed) for seed, net in enumerate(fresh())]
    two = train_together(fresh(), images, data.train_labels, data, how, range(3))
    start = weights(fresh())
    return Check(f"{device}: trainings side by side", moved((start, weights(one)), (start, weights(two))), ROUNDING)
