"""DSA augmentation of a batch of 32 px images: parameters spelt out for every sample against the library's form."""

from __future__ import annotations

from typing import Any

import torch
from measure import How, Work, in_turn
from plain import augmented

from rddlib.base import generator
from rddlib.data import augment

CALLS = 10  # calls in one measurement, each with a draw of its own
CASES = {  # name: (strategy, images, one draw shared by all images, gradient at the images too)
    "matching: shared draw, with gradient, 64 images": ("color_crop_cutout", 64, True, True),
    "network training: one draw an image, 256 images": ("color_crop", 256, False, False),
    "evaluation: one draw an image, 64 images": ("color_crop_flip_scale_rotate", 64, False, False),
}
QUICK = {"matching: shared draw, with gradient, 64 images": ("color_crop_cutout", 4, True, True)}
LIMITS = {
    "matching: shared draw, with gradient, 64 images": 2.0,
    "network training: one draw an image, 256 images": 1.0,
    "evaluation: one draw an image, 64 images": 1.0,
}


def work(kind: str, device: str, strategy: str, n: int, shared: bool, gradient: bool) -> Work:
    """`CALLS` augmentations of the same images; returns the last images, or their gradient."""
    rng = generator(0, "bench augment")
    x = torch.randn(n, 3, 32, 32, generator=rng).to(device).requires_grad_(gradient)
    draws = [augment.draw(strategy, 1 if shared else n, 32, rng) for _ in range(CALLS)]
    form = augment.apply if kind == "library" else augmented

    def run() -> torch.Tensor:
        for draw in draws:
            y = form(x, draw)
            (y,) = torch.autograd.grad(y, x, y.detach()) if gradient else (y,)
        return y

    return run


def results(how: How) -> dict[str, Any]:
    """One entry a case."""
    cases = QUICK if how.quick else CASES
    return {case: in_turn(work, arguments, how.rounds(15), how) for case, arguments in cases.items()}
