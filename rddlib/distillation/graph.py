"""Inner steps as replays of one CUDA graph: the host launches once what else are a thousand operations.

An inner step of `ClassLoop` on a card has the same operations each time, on tensors that stay where they are, and no
number of it is read by the host (tests/test_launches.py). So the second step of an outer step is captured, and it and
the next ones are played; their draws are copied into the one row of bytes that the graph reads. The first step, which
makes the optimiser's momentum, and the last one, in which the term is looked at, are taken as without a graph.

The images are those of `ClassLoop`, so this stands in no setting and changes no key; ``RDD_CUDA_GRAPH=1`` switches it
on. **The capture itself has never run on a card**: tests play a recording of the same operations in its place.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..base import SettingError
from ..data.dataset import DataSet
from . import batched
from .batched import ClassLoop, StepDraws
from .loop import Loop
from .settings import DistillSettings

SWITCH = "RDD_CUDA_GRAPH"


def kind(settings: DistillSettings, data: DataSet) -> type[Loop]:
    """As `batched.kind`; with the switch a `GraphLoop`, or a SettingError where there can be no graph."""
    if os.environ.get(SWITCH, "0") in ("", "0"):
        return batched.kind(settings, data)
    device = data.train_images.device.type
    if device != "cuda":
        raise SettingError(SWITCH, os.environ[SWITCH], f"0 on {device}: only CUDA has graphs")
    if not batched.at_once(settings, data):
        why = settings.one_by_one() or "where the classes do not fit into memory together"
        raise SettingError(SWITCH, os.environ[SWITCH], f"0 {why}")
    return GraphLoop


class GraphLoop(ClassLoop):
    """`ClassLoop` for an outer step of `inner_step` alone, all but the first and the last of them played."""

    def __init__(self, *loop: Any) -> None:
        super().__init__(*loop)
        self.row: Tensor | None = None  # the draws of the present inner step, where the graph reads them
        self.replay: Callable[[], None] | None = None
        self.results: list[Tensor] = []  # where the graph leaves what `inner_step` returns

    def next_draws(self) -> StepDraws:
        """The draws in the row, which `inner_step` has filled."""
        assert self.row is not None
        return self.from_row(self.row)

    def inner_step(self, trained: bool = True, first: bool = False, last: bool = False) -> tuple[Tensor, Tensor | None]:
        """As `Loop.inner_step`."""
        row = self.next_row()
        self.row = torch.empty_like(row) if self.row is None else self.row
        self.row.copy_(row)
        if first or last or not trained:
            return super().inner_step(trained, first, last)
        if self.replay is None:
            self.replay, self.results = self.capture(super().inner_step)
        self.replay()
        distance, losses = (result.clone() for result in self.results)
        return distance, losses

    @staticmethod
    def capture(work: Callable[[], Any]) -> tuple[Callable[[], None], list[Tensor]]:
        """What plays the operations of `work()`, which are not carried out now, and where their results will be."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = work()
        return graph.replay, list(results)
