"""What a reading adds, computed by hand and by simulation of a training that only fluctuates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import unmade

from rddlib.analysis import selection
from rddlib.analysis.results import tidy
from rddlib.base import SettingError, numpy_generator
from rddlib.experiments.records import Record


def record(seed: int, test: np.ndarray, valid: np.ndarray) -> Record:
    """A run with the curves (E, K) of its audit and the readings as `best_step.Audit.row` defines them."""
    chosen = [float(t[v.argmax()]) for t, v in zip(test, valid, strict=True)]
    metrics = {
        "audit_last": test[:, -1].tolist(), "audit_chosen": chosen, "audit_best": test.max(1).tolist(),
        "audit_test": test.tolist(), "audit_validation": valid.tolist(),
    }  # fmt: skip
    return unmade({"seed": seed}, metrics, key=f"k{seed}")


def fluctuating(rng: np.random.Generator, seeds: int) -> pd.DataFrame:
    """Rows of an arm whose trainings fluctuate around 50 per cent."""
    pairs = [(50 + rng.standard_normal((3, 10)), rng.standard_normal((3, 10))) for _ in range(seeds)]
    return tidy(record(seed, *pair) for seed, pair in enumerate(pairs))


def test_readings_by_hand_in_the_order_of_the_seeds() -> None:
    test, valid = np.array([[1.0, 5.0, 3.0]]), np.array([[9.0, 1.0, 1.0]])
    records = tidy([record(1, test, valid), record(0, test + 10, valid)])
    assert selection.readings(records, "best").to_numpy().tolist() == [[15.0], [5.0]]
    assert selection.added(records, "best").mean == 2.0 and selection.added(records, "chosen").mean == -2.0
    assert [found.mean for found in selection.looks(records).values()] == [0.0, 2.0, 2.0]


def test_the_best_flatters_and_an_independent_choice_does_not() -> None:
    records = fluctuating(numpy_generator(0, "flatters"), 60)
    best, chosen = selection.added(records, "best"), selection.added(records, "chosen")
    assert best.low < selection.expected_best(1.0, 10) < best.high and best.low > 1.3
    assert abs(chosen.mean) < chosen.high - chosen.low < best.mean / 2  # within some four standard errors of nothing
    # and the interval is as sure as it says: this one draw is among the few that miss
    draws = (selection.added(fluctuating(numpy_generator(n, "chosen"), 12), "chosen") for n in range(60))
    assert sum(found.low < 0 < found.high for found in draws) >= 53  # of 60 at 95 %: fewer in one of 200 cases
    adds = [found.mean for found in selection.looks(records).values()]
    assert adds == sorted(adds) and adds[0] == 0 and adds[-1] == pytest.approx(best.mean)


def test_a_comparison_that_mixes_readings_claims_a_gain_that_is_not_there() -> None:
    rng = numpy_generator(1, "mixed")
    a, b = fluctuating(rng, 12), fluctuating(rng, 12)
    fair, mixed = selection.gain(a, b), selection.gain(a, b, "best", "last")
    assert fair.low < 0 < fair.high and mixed.low > 0
    early, late, first = a[a["seed"] < 3], b[b["seed"] > 0], a[a["seed"] < 1]
    assert selection.gain(early, late).n == 2 and selection.gain(first, late) is None


def test_the_largest_of_one_is_nothing_and_grows_with_the_looks() -> None:
    assert selection.expected_best(2.0, 1) == pytest.approx(0.0, abs=0.05)
    assert selection.expected_best(1.0, 2) == pytest.approx(1 / np.sqrt(np.pi), abs=0.02)


def test_the_best_of_some_trainings() -> None:
    one = record(0, np.zeros((3, 2)), np.zeros((3, 2)))
    values = enumerate(([1.0, 2.0, 6.0], [5.0, 5.0, 5.0]))
    records = [replace(one, metrics={"accuracy": v}, experiment={"seed": seed}) for seed, v in values]
    assert selection.over_trainings(tidy(records), "accuracy").mean == pytest.approx(1.5)


def test_runs_without_an_audit_are_refused() -> None:
    records = fluctuating(numpy_generator(2, "faulty"), 1)
    with pytest.raises(SettingError, match="eval_audit"):
        selection.readings(records[records["test"] == "audit_last"], "best")
