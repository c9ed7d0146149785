"""Inner steps as replays of one CUDA graph: the host launches once what else are a thousand operations.

An inner step of `ClassLoop` on a card has the same operations each time, on tensors that stay where they are, and no
number of it is read by the host (tests/test_launches.py). So the second of an outer step is captured and, as those
after it, played; the graph reads its draws from one row of bytes. The first step, which makes the optimiser's momentum,
and the last one, where the term is looked at, are taken without it. The images are those of `ClassLoop`, so this is no
setting: ``RDD_CUDA_GRAPH=1`` switches it on.

On an H100 an inner step of control at the scale `cpu` took 16 ms so, and 42 to 57 ms without (the book's page on
performance). The runs of IDC that were made on a card at that scale used it; nothing else has been captured on one.
Tests play a recording of the same operations in the graph's place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ..base import SettingError
from ..data.dataset import DataSet
from . import batched
from .batched import ClassLoop, StepDraws
from .loop import Loop
from .settings import DistillSettings

SWITCH = "RDD_CUDA_GRAPH"


def loop_class(settings: DistillSettings, data: DataSet) -> type[Loop]:
    """As `batched.loop_class`; with the switch a `GraphLoop`, or a SettingError where there can be no graph."""
    asked, device = os.environ.get(SWITCH) or "0", data.train_images.device.type
    if asked == "0":
        return batched.loop_class(settings, data)
    if device != "cuda":
        raise SettingError(SWITCH, asked, f"0 on {device}: only CUDA has graphs")
    if not batched.at_once(settings, data):
        raise SettingError(SWITCH, asked, f"0 {settings.one_by_one() or 'where memory takes one class at a time'}")
    return GraphLoop


class GraphLoop(ClassLoop):
    """`ClassLoop` for an outer step of `inner_step` alone, all but the first and the last of them played."""

    row: Tensor | None = None  # the draws of the present inner step, where the graph reads them
    replay: Callable[[], None] | None = None
    results: Sequence[Tensor] = ()  # where the graph leaves what `inner_step` returns

    def next_draws(self) -> StepDraws:
        """The draws that `inner_step` has put into the row."""
        return self.from_row(cast(Tensor, self.row))

    def inner_step(self, trained: bool = True, first: bool = False, last: bool = False) -> tuple[Tensor, Tensor | None]:
        """As `Loop.inner_step`."""
        row = self.next_row()
        self.row = row.clone() if self.row is None else self.row.copy_(row)
        if first or last or not trained:
            return super().inner_step(trained, first, last)
        if self.replay is None:
            self.replay, self.results = self.capture(super().inner_step)
        self.replay()
        distance, losses = (result.clone() for result in self.results)
        return distance, losses

    @staticmethod
    def capture(work: Callable[[], Any]) -> tuple[Callable[[], None], Sequence[Tensor]]:
        """What plays the operations of `work()`, which are not carried out now, and where their results will be."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = work()
        return graph.replay, results
