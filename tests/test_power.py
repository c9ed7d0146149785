"""Planned seeds give the power they promise, a pilot's spread is that of its population, and its interval covers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from rddlib.analysis import power
from rddlib.base import SettingError, numpy_generator


def arms(
    a: int, d: int, e: int, shared: float, own: float, within: float, rng: np.random.Generator, gain: float = 0.0
) -> np.ndarray:
    """(A, D, E): what a seed does to all arms, what it does to one alone, and trainings; `gain` for the last arm."""
    values = 50 + shared * rng.standard_normal((1, d, 1)) + own * rng.standard_normal((a, d, 1))
    values = values + within * rng.standard_normal((a, d, e))
    values[-1] += gain
    return values


def true_paired(own: float, within: float, e: int) -> float:
    return math.sqrt(2 * (own**2 + within**2 / e))


def test_components_are_those_of_the_population() -> None:
    rng = numpy_generator(0, "components")
    found = [power.pilot(arms(3, 5, 3, 1.0, 0.5, 0.8, rng)) for _ in range(2000)]
    assert np.mean([p.within**2 for p in found]) == pytest.approx(0.64, rel=0.03)
    assert np.mean([p.between**2 for p in found]) == pytest.approx(1.25, rel=0.06)
    assert np.mean([p.paired**2 for p in found]) == pytest.approx(true_paired(0.5, 0.8, 3) ** 2, rel=0.03)
    assert {p.paired_df for p in found} == {8}


def test_two_arms_have_the_spread_of_their_differences() -> None:
    values = arms(2, 6, 3, 1.0, 0.5, 0.8, numpy_generator(1, "two arms"))
    gap = values[1].mean(1) - values[0].mean(1)
    found = power.pilot(values)
    assert found.paired == pytest.approx(gap.std(ddof=1)) and found.paired_df == 5


def test_what_a_seed_does_to_all_arms_does_not_count() -> None:
    few = power.pilot(arms(3, 4, 3, 0.0, 0.5, 0.8, numpy_generator(2, "shared")))
    many = power.pilot(arms(3, 4, 3, 100.0, 0.5, 0.8, numpy_generator(2, "shared")))
    assert many.paired == pytest.approx(few.paired) and many.between > 10 * few.between


def test_what_trainings_of_one_number_share_is_taken_off_too() -> None:
    rng = numpy_generator(6, "trainings shared")
    values = arms(3, 200, 4, 1.0, 0.3, 0.5, rng) + 2.0 * rng.standard_normal((1, 200, 4))
    found = power.pilot(values)
    assert found.unshared == pytest.approx(0.5, rel=0.05) and found.within > 2.0
    assert found.interaction == pytest.approx(math.sqrt(2) * 0.3, rel=0.15)


@pytest.mark.parametrize(("gain", "own", "within"), [(1.0, 0.5, 0.5), (1.0, 0.2, 0.8), (2.0, 1.0, 0.5)])
def test_seeds_needed_reach_the_power_in_simulation(gain: float, own: float, within: float) -> None:
    sd = true_paired(own, within, 3)
    needed = power.seeds_needed(gain, sd)
    assert needed is not None
    for seeds, enough in ((needed, True), (needed - 1, False)):
        values = sd * numpy_generator(3, "power", seeds).standard_normal((20000, seeds)) + gain
        low = scipy_stats.ttest_1samp(values, 0, axis=1).confidence_interval(0.95).low
        share = float((low > 0).mean())
        assert share == pytest.approx(power.power(gain, sd, seeds), abs=0.012)
        assert (share >= 0.8 - 0.012) == enough or abs(share - 0.8) < 0.012


@pytest.mark.parametrize("level", [0.045, 0.01])
def test_power_at_another_level_is_that_of_a_simulation(level: float) -> None:
    """The looks of the fair test have one-sided levels, half of the two-sided one that `power` takes."""
    values = 1.1 * numpy_generator(4, "power", 10).standard_normal((20000, 10)) + 1
    p = scipy_stats.ttest_1samp(values, 0, axis=1, alternative="greater").pvalue
    assert float((p <= level / 2).mean()) == pytest.approx(power.power(1, 1.1, 10, level), abs=0.012)


def test_the_pilots_interval_of_seeds_covers_the_number_needed() -> None:
    needed = power.seeds_needed(1.0, true_paired(0.5, 0.8, 3))
    rng, hits = numpy_generator(4, "coverage"), 0
    for _ in range(400):
        _, low, high = power.seeds_interval(power.pilot(arms(3, 3, 3, 1.0, 0.5, 0.8, rng)), 1.0)
        assert low is not None and high is not None and needed is not None
        hits += low <= needed <= high
    assert hits / 400 >= 0.93


def test_textbook_values() -> None:
    """Paired t test, two-sided 5 %, power 80 %: the well-known 199, 34 and 15 pairs."""
    assert [power.seeds_needed(d, 1.0) for d in (0.2, 0.5, 0.8)] == [199, 34, 15]


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.floats(0.2, 5), st.integers(2, 40))
def test_what_is_detectable_is_detected(sd: float, seeds: int) -> None:
    gain = power.detectable(sd, seeds)
    assert power.power(gain, sd, seeds) == pytest.approx(0.8, abs=1e-6)
    needed = power.seeds_needed(gain * 1.0001, sd)
    assert needed is not None and needed <= seeds


def test_more_trainings_only_help_with_the_part_within() -> None:
    found = power.pilot(arms(3, 40, 3, 1.0, 0.6, 0.9, numpy_generator(5, "trainings")))
    assert found.difference() == found.paired == pytest.approx(found.difference(3))
    assert found.difference(1) > found.difference(3) > found.difference(1000) > found.interaction > 0.5


@pytest.mark.parametrize(("set_cost", "training_cost"), [(100.0, 40.0), (10.0, 40.0), (4000.0, 40.0)])
def test_the_best_number_of_trainings_beats_its_neighbours(set_cost: float, training_cost: float) -> None:
    found = power.Pilot(1.0, 0.9, 0.9, math.sqrt(2 * (0.3**2 + 0.9**2 / 3)), 100, 3, 2, 100)
    best = power.best_trainings(found, set_cost, training_cost)

    def variance_at_equal_budget(trainings: int) -> float:
        return found.difference(trainings) ** 2 * (set_cost + trainings * training_cost)

    for other in (best - 1, best + 1):
        assert other < 1 or variance_at_equal_budget(best) <= variance_at_equal_budget(other) * 1.02


def test_what_a_budget_buys() -> None:
    """100 units buy five seeds of two sets of 10 each: t with 4 degrees of freedom, 2.776."""
    found = power.Pilot(1.0, 0.6, 0.6, 1.0, 100, 3, 2, 100)
    assert power.half_width(found, 3, 4.0, 2.0, 100.0) == pytest.approx(2.776 / math.sqrt(5), rel=1e-3)
    assert math.isnan(power.half_width(found, 3, 4.0, 2.0, 39.0))


def test_a_spread_of_nothing_decides_no_budget() -> None:
    found = power.Pilot(0.0, 0.9, 0.9, 0.1, 4, 3, 3, 3)
    assert found.interaction == 0 and power.best_trainings(found, 100, 40) == 3


def test_a_gain_out_of_reach_is_none() -> None:
    assert power.seeds_needed(0.0, 1.0) is None
    assert power.seeds_needed(0.001, 1.0) is None


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: power.pilot([np.zeros((3, 3))]), "tables"),
        (lambda: power.pilot([np.zeros((3, 3)), np.zeros((2, 3))]), "tables"),
        (lambda: power.power(1, 0, 3), "sd"),
    ],
)
def test_faulty_calls_are_refused(call, name: str) -> None:
    with pytest.raises(SettingError, match=name):
        call()
