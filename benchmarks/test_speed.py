"""The benchmarks' own tests (`make benchtest`): both ways give the same numbers, and ratios keep to their limits.

Those of the risk term stand in bench_risk.py. The limits lie below what an idle machine reaches, by what a busy one
costs.
"""

from __future__ import annotations

from typing import Any

import bench_augment
import bench_evaluation
import bench_inner_step
import bench_training
import bench_zeroth
import numpy as np
import pytest
import torch
from measure import KINDS, in_turn

from rddlib.models import fused

# --- network training -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [8, 32])
def test_both_train_the_same_network(width: int) -> None:
    torch.set_num_threads(1)
    plainly, library = (bench_training.work(kind, "cpu", width, 32, 3)() for kind in KINDS)
    for a, b in zip(plainly.parameters(), library.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("case", bench_training.CASES)
def test_training_is_faster(benchmark: Any, case: str) -> None:
    found = benchmark.pedantic(in_turn, (bench_training.work, bench_training.CASES[case], 5), rounds=1)
    assert found["ratio"]["median"] >= bench_training.LIMITS[case]


# --- an inner step ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "on"), [(1, True), (2, True), (2, False)])
def test_both_move_the_images_alike(factor: int, on: bool) -> None:
    """Two inner steps, fast forms and plain ones of the library: images as in the plain loop, up to rounding."""
    torch.set_num_threads(1)
    chosen = {"ipc": 2, "factor": factor, "width": 8, "batch_real": 16, "net_steps": 2, "net_batch": 32,
              "n_classes": 3}  # fmt: skip
    with fused.use(on):
        plainly, library = (bench_inner_step.work(kind, "cpu", chosen) for kind in KINDS)
        start = plainly().clone()
        library()
        a, b = plainly(), library()
    assert (a - start).abs().max() > 1e-4  # they do move
    assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("case", ["laptop"])
def test_an_inner_step_is_faster(benchmark: Any, case: str) -> None:
    found = benchmark.pedantic(in_turn, (bench_inner_step.work, (bench_inner_step.CASES[case],), 5), rounds=1)
    assert found["ratio"]["median"] >= bench_inner_step.LIMITS[case]
    assert found["library"]["peak_memory_mb"] <= 2000


# --- evaluation -------------------------------------------------------------------------------------------------


def test_both_find_the_same_accuracies() -> None:
    torch.set_num_threads(1)
    plainly, library = (bench_evaluation.work(kind, "cpu", 5, 8, 4, 200)() for kind in KINDS)
    assert library == pytest.approx(plainly, abs=1.0)  # two of 200 predictions may sit on the edge


@pytest.mark.parametrize("case", ["5 networks, ConvNet-3, width 32"])
def test_evaluation_is_faster(benchmark: Any, case: str) -> None:
    found = benchmark.pedantic(in_turn, (bench_evaluation.work, bench_evaluation.CASES[case], 3), rounds=1)
    assert found["ratio"]["median"] >= bench_evaluation.LIMITS[case]


# --- augmentation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_both_give_the_same_images(shared: bool, gradient: bool) -> None:
    arguments = ("color_crop_cutout_flip_scale_rotate", 8, shared, gradient)
    plainly, library = (bench_augment.work(kind, "cpu", *arguments)() for kind in KINDS)
    assert torch.allclose(plainly, library, atol=1e-4)


@pytest.mark.parametrize("case", bench_augment.CASES)
def test_augmentation_is_faster(benchmark: Any, case: str) -> None:
    found = benchmark.pedantic(in_turn, (bench_augment.work, bench_augment.CASES[case], 9), rounds=1)
    assert found["ratio"]["median"] >= bench_augment.LIMITS[case]


# --- probes of Algorithm 2 --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", bench_zeroth.TERMS)
@pytest.mark.parametrize("case", bench_zeroth.CASES)
def test_same_values(case: str, name: str) -> None:
    (task, sets), term = bench_zeroth.problem(case), bench_zeroth.TERMS[name]
    assert torch.allclose(bench_zeroth.batched(task, sets, term), bench_zeroth.looped(task, sets, term), rtol=1e-4)


@pytest.mark.parametrize("name", bench_zeroth.TERMS)
@pytest.mark.parametrize("case", bench_zeroth.CASES)
def test_batched(benchmark: Any, case: str, name: str) -> None:
    torch.set_num_threads(1)
    (task, sets), term = bench_zeroth.problem(case), bench_zeroth.TERMS[name]
    benchmark(bench_zeroth.batched, task, sets, term)
    # The largest case is bound by arithmetic on one thread, not by calls; the two of the notebook are not.
    least = 2 if case == bench_zeroth.LARGEST else 5
    assert np.median(bench_zeroth.ratios(case, term, 5)["ratio"]) >= least
