"""What does `risk.group_cvar` cost beside a loop over groups and samples, and beside one sort?

Forward and backward of 5,120 float32 losses in 100 groups, one thread of a processor, median and quartiles of 30
repeats: the loop that the description of the released code implies takes 138 (125 to 156) times as long; one torch.sort
of the same losses takes the 1.64th part (1.48 to 1.76), and the 1.28th of a million losses in 1,000 groups.

`make benchtest` holds the ratios to the limits below. Candidates are called in turn, on data drawn anew: on the same
numbers over and over, branch prediction learns the order by heart and torch.sort alone runs five times as fast.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from rddlib.base import generator
from rddlib.risk import group_cvar

ALPHA, LOOP_AT_LEAST, SORT_AT_MOST = 0.8, 100.0, 3.0
Candidate = Callable[[Tensor, Tensor, int], object]


def draw(n: int, n_groups: int, seed: int) -> tuple[Tensor, Tensor]:
    """Exponential losses, which carry a gradient, and their groups."""
    source = generator(seed, "bench risk", n)
    losses = torch.empty(n).exponential_(generator=source)
    return losses.requires_grad_(), torch.randint(0, n_groups, (n,), generator=source)


def grouped(losses: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    values, _ = group_cvar(losses, groups, n_groups, ALPHA)
    return torch.autograd.grad(values, losses, torch.ones_like(values))[0]


def one_sort(losses: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    ordered = losses.sort().values
    return torch.autograd.grad(ordered, losses, torch.ones_like(ordered))[0]


def loop(losses: Tensor, groups: Tensor, n_groups: int) -> Tensor:
    """A Python step a sample (append it to its cluster's list), then one a cluster (sort, mean, boundary item)."""
    clusters: list[list[Tensor]] = [[] for _ in range(n_groups)]
    for j in range(len(losses)):
        clusters[int(groups[j])].append(losses[j])
    tails = []
    for ordered in (torch.stack(c).sort(descending=True).values for c in clusters if c):
        items = ALPHA * len(ordered)
        tails.append((ordered * (items - torch.arange(len(ordered))).clamp(0, 1)).sum() / items)
    return torch.autograd.grad(torch.stack(tails).sum(), losses)[0]


def ratio(over: Candidate, n: int, n_groups: int, repeats: int, calls: int) -> float:
    """Median of the CPU time of `over` over that of `grouped`; a repeat averages so many calls."""
    found = []
    for repeat in range(repeats + 1):
        taken = []
        for candidate in (over, grouped):
            data = [draw(n, n_groups, calls * repeat + call) for call in range(calls)]
            start = time.thread_time()
            for losses, groups in data:
                candidate(losses, groups, n_groups)
            taken.append(time.thread_time() - start)
        found.append(taken[0] / taken[1])
    return statistics.median(found[1:])  # the first one warms up


def test_against_the_loop() -> None:
    torch.set_num_threads(1)
    losses, groups = draw(500, 10, 0)
    torch.testing.assert_close(loop(losses, groups, 10), grouped(losses, groups, 10))
    assert ratio(loop, 5_120, 100, 5, 1) >= LOOP_AT_LEAST


def test_against_one_sort() -> None:
    torch.set_num_threads(1)
    for n, n_groups, calls in ((5_120, 100, 10), (1_000_000, 1_000, 1)):
        assert 1 / ratio(one_sort, n, n_groups, 9, calls) <= SORT_AT_MOST
