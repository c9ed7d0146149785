"""The benchmarks' own tests (`make benchtest`): both ways give the same numbers, and ratios keep to their limits.

Those of the risk term stand in bench_risk.py. The limits lie below what an idle machine reaches, by what a busy one
costs. Results: see work.py.
"""

from __future__ import annotations

import bench_zeroth
import checks
import numpy as np
import pytest
import torch
import work
from measure import in_turn

LIMITS = [(name, case) for name, part in work.PARTS.items() for case in part.least]


def test_both_ways_give_the_same_numbers() -> None:
    torch.set_num_threads(1)
    made = list(checks.everything("cpu"))
    assert all(check.passed for check in made), "\n".join(map(str, made))


@pytest.mark.parametrize(("name", "case"), LIMITS)
def test_the_library_is_faster(name: str, case: str) -> None:
    part = work.PARTS[name]
    assert in_turn(part.work, part.cases[case], 5)["ratio"]["median"] >= part.least[case]


@pytest.mark.parametrize("name", bench_zeroth.TERMS)
@pytest.mark.parametrize("case", bench_zeroth.CASES)
def test_one_call_for_all_probes(case: str, name: str) -> None:
    torch.set_num_threads(1)
    (task, sets), term = bench_zeroth.problem(case), bench_zeroth.TERMS[name]
    torch.testing.assert_close(
        bench_zeroth.batched(task, sets, term), bench_zeroth.looped(task, sets, term), rtol=1e-4, atol=1e-4
    )
    # The largest case is bound by arithmetic on one thread, not by calls; the two of the notebook are not.
    least = 2 if case == bench_zeroth.LARGEST else 5
    assert np.median(bench_zeroth.ratios(case, term, 5)["ratio"]) >= least
