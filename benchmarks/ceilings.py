"""What the machine can do at best, measured here: large matrix products, wide convolutions, copies.

Shares of these stand beside every measurement. On a GPU there is one ceiling more: a bare stack of convolutions of the
ConvNet's shapes, forward and backward, in bfloat16 and channels-last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from measure import KINDS, How, significant
from torch import nn

ARITHMETIC = ("matmul_gflop_per_second", "convolution_gflop_per_second")
STACK_BATCH = 256


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
    if big:
        half = a.bfloat16()
        best["matmul_bf16_gflop_per_second"] = 2 * side**3 / shortest(lambda: half @ half, how) / 1e9
        best["stack_bf16_images_per_second"] = STACK_BATCH / shortest(stack(how.device), how)
    return {name: significant(value) for name, value in best.items()}


def stack(device: str, batch: int = STACK_BATCH, width: int = 128) -> Callable[[], object]:
    """Forward and backward of the ConvNet's three convolutions and nothing else, in bfloat16, channels-last."""
    shapes = [(3, 32), (width, 16), (width, 8)]  # channels in, side
    made: dict[str, Any] = {"device": device, "dtype": torch.bfloat16}
    convs = [nn.Conv2d(c, width, 3, padding=1, **made).to(memory_format=torch.channels_last) for c, _ in shapes]
    inputs = [torch.randn(batch, c, s, s, **made).to(memory_format=torch.channels_last) for c, s in shapes]
    for x in inputs[1:]:
        x.requires_grad_()
    pulls = [torch.randn(batch, width, s, s, **made).to(memory_format=torch.channels_last) for _, s in shapes]

    def run() -> None:
        for conv, x, pull in zip(convs, inputs, pulls, strict=True):
            conv(x).backward(pull)

    return run


def shortest(work: Callable[[], object], how: How, repeats: int = 15) -> float:
    """Least seconds of several calls: a ceiling is what was reached once."""
    taken = []
    for _ in range(2 if how.quick else repeats + 1):
        start = how.clock()
        work()
        taken.append(how.clock() - start)
    return max(min(taken[1:]), 1e-9)


def with_shares(found: Any, best: dict[str, float]) -> Any:
    """`found` with the shares of the ceilings put into every measurement of two kinds, wherever it stands.

    Arithmetic is compared with the higher of the two arithmetic ceilings. The share of the copy may exceed 1: operands
    that a cache still holds never travel.
    """
    if isinstance(found, dict) and set(KINDS) <= set(found):
        peak = max(best[name] for name in ARITHMETIC)
        for kind in KINDS:
            one = found[kind]
            one["share_of_arithmetic_peak"] = significant(one["gflop_per_second"] / peak, 3)
            one["share_of_copy"] = significant(one["operand_gb_per_second"] / best["copy_gb_per_second"], 3)
        return found
    if isinstance(found, dict):
        return {name: with_shares(value, best) for name, value in found.items()}
    return [with_shares(value, best) for value in found] if isinstance(found, list) else found
