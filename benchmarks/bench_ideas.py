"""Ideas that were weighed and left out: what they would have given here, over what the library does.

* Winograd's minimal filtering F(4 x 4, 3 x 3) (Lavin & Gray 2016): a quarter of a convolution's multiplications, for
  transforms that are products of small matrices, at the shape that holds three quarters of a ConvNet-3's arithmetic.
* torch.compile of the plain network, instead of norm, ReLU and pool written out by hand. Its first call, which
  compiles, is told beside it. Needs a C++ compiler; without one there is no entry.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import Any

import torch
import torch._inductor.config as inductor
import torch.nn.functional as F
from measure import How, significant, spread
from torch import Tensor

from rddlib.base import generator
from rddlib.models import fused, networks

Call = Callable[[], object]
# The interpolation points 0, 1, -1, 2, -2 and infinity.
INPUT = [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
         [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]  # fmt: skip
FILTER = [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
          [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]  # fmt: skip
OUTPUT = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]


def winograd(x: Tensor, weight: Tensor) -> Tensor:
    """3 x 3 convolution, padding 1: x (N, C, H, W), H and W multiples of 4, weight (O, C, 3, 3) -> (N, O, H, W)."""
    (n, c, h, w), o = x.shape, len(weight)
    to_input, to_filter, to_output = (
        torch.kron(m, m) for m in (torch.tensor(t, dtype=x.dtype, device=x.device) for t in (INPUT, FILTER, OUTPUT))
    )
    padded = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1).contiguous()
    tiles = padded.unfold(1, 6, 4).unfold(2, 6, 4)  # (N, H / 4, W / 4, C, 6, 6)
    seen = (to_input @ tiles.permute(4, 5, 0, 1, 2, 3).reshape(36, -1)).view(36, -1, c)
    filters = (to_filter @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(36, c, o)
    found = (to_output @ torch.bmm(seen, filters).view(36, -1)).view(4, 4, n, h // 4, w // 4, o)
    return found.permute(2, 5, 3, 0, 4, 1).reshape(n, o, h, w)


def convolutions(device: str, quick: bool) -> tuple[Call, Call]:
    """Winograd's form and torch's, of 64 images of 16 px and 128 channels."""
    n, c = (2, 8) if quick else (64, 128)
    rng = generator(0, "bench ideas")
    x = torch.randn(n, c, 16, 16, generator=rng).to(device)
    weight = torch.randn(c, c, 3, 3, generator=rng).to(device) / (9 * c) ** 0.5
    return lambda: winograd(x, weight), lambda: F.conv2d(x, weight, padding=1)


def training_steps(device: str, quick: bool, width: int) -> tuple[Call, Call, dict[str, float]]:
    """Forward and backward pass of 64 images, compiled and the library's; the first call and the largest difference."""
    net = networks.build("convnet", (3, 32, 32), 10, width=8 if quick else width, generator=generator(0, "net")).to(
        device
    )
    rng = generator(0, "bench ideas")
    x = torch.randn(64, 3, 32, 32, generator=rng).to(device)
    y = torch.randint(10, (64,), generator=rng).to(device)
    compiled = torch.compile(net, dynamic=False)

    def step(forward: Callable[[Tensor], Tensor]) -> list[Tensor]:
        return list(torch.autograd.grad(F.cross_entropy(forward(x), y), list(net.parameters())))

    def other() -> list[Tensor]:
        with fused.use(False):
            return step(compiled)

    start = time.perf_counter()
    with inductor.patch(force_disable_caches=True):  # an earlier call's work would hide what the first one costs
        found = other()
    first = time.perf_counter() - start
    gap = max(float((a - b).abs().max()) for a, b in zip(found, step(net), strict=True))
    return other, lambda: step(net), {"first_call_seconds": significant(first), "difference": significant(gap)}


def in_turn(one: Call, two: Call, how: How, rounds: int) -> dict[str, Any]:
    """Time of `one` over time of `two`, in one process; each runs twice a round and its faster time counts."""
    ratios = []
    for number in range(rounds + 1):
        taken = []
        for work in (one, two) if number % 2 else (two, one):
            times = []
            for _ in range(2):
                start = how.clock()
                work()
                times.append(how.clock() - start)
            taken.append(min(times))
        ratios.append(taken[0] / taken[1] if number % 2 else taken[1] / taken[0])
    return {"ratio": spread(ratios[1:])}  # the first one settles down


def results(how: How) -> dict[str, Any]:
    """One entry an idea: its time over the library's, so more than 1 speaks for the library."""
    fused.keep_memory()  # both sides stand in this process
    with torch.no_grad():
        found = {"Winograd F(4 x 4, 3 x 3)": in_turn(*convolutions(how.device, how.quick), how, how.rounds(9))}
    if how.quick or not (how.device == "cuda" or shutil.which("c++") or shutil.which("g++")):
        return found
    for width in (128, 32):
        one, two, facts = training_steps(how.device, how.quick, width)
        found[f"torch.compile, width {width}"] = in_turn(one, two, how, how.rounds(9)) | facts
    return found
