"""One inner step of IDC: image steps of all classes, then network steps. The plain loop against the library's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from measure import Work, in_turn, random_data
from plain import PlainLoop

from rddlib import fused, prior
from rddlib.distill import DistillSettings, begin
from rddlib.loop import Loop

PUBLISHED = {"ipc": 10, "factor": 2, "width": 128, "batch_real": 64, "net_steps": 32, "net_batch": 64}
LAPTOP = {"ipc": 10, "factor": 2, "width": 32, "batch_real": 32, "net_steps": 1, "net_batch": 256}
CASES = {"laptop": LAPTOP, "published": PUBLISHED}
LIMITS = {"laptop": 1.6, "published": 1.3}
# How the cost of the laptop's step grows: one setting at a time.
GROWTH = {
    "ipc": [{"ipc": ipc} for ipc in (1, 10, 30)],
    "classes": [{"n_classes": n} for n in (2, 5, 10)],
    "width": [{"width": width} for width in (16, 32, 64, 128)],
    "resolution": [{"size": size, "depth": depth} for size, depth in ((16, 2), (32, 3), (64, 4))],
}


def work(kind: str, chosen: dict[str, int]) -> Work:
    """One inner step after another from the same start; `chosen` may also hold `n_classes` and `size`."""
    chosen = dict(chosen)
    n_classes, size = chosen.pop("n_classes", 10), chosen.pop("size", 32)
    data = random_data(150 * n_classes, size=size, n_classes=n_classes)
    settings = DistillSettings(**chosen)
    source = prior.load("none", data, settings.prior_layer, settings.prior_start)
    state = begin(data, settings, source)
    if kind == "reference":
        loop = PlainLoop(data, settings, state.codes["pixels"])
        return lambda: (loop.inner_step(), loop.images.detach())[1]
    ours = Loop(data, settings, state, source)
    return lambda: (ours.image_steps(), ours.network_steps(), ours.codes["pixels"])[2]


def results(repeats: dict[str, int], threads: int = 1) -> dict[str, Any]:
    """One entry a case; `repeats` for each."""
    return {case: in_turn(work, (CASES[case],), repeats[case], threads) for case in CASES}


def growth(repeats: int, threads: int = 1) -> dict[str, list[dict[str, Any]]]:
    """Cost of the laptop's inner step as one setting grows."""
    return {
        name: [{"setting": change} | in_turn(work, (LAPTOP | change,), repeats, threads) for change in changes]
        for name, changes in GROWTH.items()
    }


@pytest.mark.parametrize(("factor", "on"), [(1, True), (2, True), (2, False)])
def test_both_move_the_images_alike(factor: int, on: bool) -> None:
    """Two inner steps, fast forms and plain ones of the library: images as in the plain loop, up to rounding."""
    torch.set_num_threads(1)
    chosen = {"ipc": 2, "factor": factor, "width": 8, "batch_real": 16, "net_steps": 2, "net_batch": 32,
              "n_classes": 3}  # fmt: skip
    with fused.use(on):
        plainly, library = work("reference", chosen), work("library", chosen)
        start = plainly().clone()
        library()
        a, b = plainly(), library()
    assert (a - start).abs().max() > 1e-4  # they do move
    assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("case", ["laptop"])
def test_an_inner_step_is_faster(benchmark: Any, case: str) -> None:
    found = benchmark.pedantic(in_turn, (work, (CASES[case],), 5), rounds=1)
    assert found["ratio"]["median"] >= LIMITS[case]
    assert found["library"]["peak_memory_mb"] <= 2048
