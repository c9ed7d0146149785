"""Intervals cover what they say, pairing matters, sampling alone gives low minima."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from rddlib import stats
from rddlib.analysis import rules
from rddlib.base import SettingError, numpy_generator


def simulate(d: int, e: int, between: float, within: float, rng: np.random.Generator) -> np.ndarray:
    return 50 + between * rng.standard_normal((d, 1)) + within * rng.standard_normal((d, e))


@pytest.mark.parametrize(("d", "between", "within"), [(3, 1.0, 1.0), (5, 1.0, 0.3), (5, 0.0, 1.0), (10, 1.0, 1.0)])
def test_intervals_cover_what_they_say(d: int, between: float, within: float) -> None:
    """Whether seeds or trainings scatter more: the spread within a set counts once."""
    rng = numpy_generator(0, "coverage", d)
    found = [stats.mean_interval(simulate(d, 3, between, within, rng)) for _ in range(4000)]
    cover = np.mean([i.low <= 50 <= i.high for i in found])
    assert abs(cover - 0.95) <= 4 * np.sqrt(0.95 * 0.05 / 4000)


def test_an_interval_is_that_of_a_t_test_on_the_means_of_the_seeds() -> None:
    table = simulate(6, 4, 1.0, 1.0, numpy_generator(2, "formula"))
    found = stats.mean_interval(table, 0.9)
    expected = scipy.stats.ttest_1samp(table.mean(1), 0).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert stats.mean_interval(table) == rules.t_interval(table.mean(1))


def test_pairing_removes_what_seeds_share() -> None:
    rng = numpy_generator(3, "pairs")
    seeds = 5 * rng.standard_normal((6, 1))
    a, b = seeds + rng.normal(0.5, 0.1, (6, 3)), seeds + rng.normal(0, 0.1, (6, 3))
    paired = stats.paired_difference(a, b)
    assert paired.low > 0.3 and paired.high < 0.7
    assert stats.mean_interval(a).high - stats.mean_interval(a).low > 5 * (paired.high - paired.low)


def test_effect_size_of_a_known_sample() -> None:
    assert stats.effect_size([3.0, 4.0, 5.0], [2.0, 2.0, 2.0]) == pytest.approx(2.0)
    assert np.isnan(stats.effect_size([1.0], [0.0]))


def test_null_minimum_of_the_protocol() -> None:
    """Protocol 2.6: ten groups of 50 images at 72.8 % give a minimum near 62.9 +- 4.0."""
    found = stats.minimum_null(72.8, [50] * 10)
    assert found.mean == pytest.approx(62.9, abs=0.3)
    assert found.n == 10 and 53 < found.low < found.mean < found.high < 71


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.floats(1, 99), st.lists(st.integers(1, 300), min_size=1, max_size=12))
def test_null_minimum_lies_below_the_accuracy_and_falls_with_more_groups(accuracy: float, sizes: list[int]) -> None:
    one, more = stats.minimum_null(accuracy, sizes), stats.minimum_null(accuracy, sizes * 2)
    assert one.mean <= accuracy + 3 and more.mean <= one.mean + 3


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.integers(2, 6), st.integers(1, 4), st.floats(-100, 100), st.floats(0.1, 10))
def test_intervals_move_and_stretch_with_the_values(d: int, e: int, shift: float, factor: float) -> None:
    table = simulate(d, e, 1, 1, numpy_generator(d, e))
    a, b = stats.mean_interval(table), stats.mean_interval(table * factor + shift)
    assert (b.low, b.mean, b.high) == pytest.approx(
        (a.low * factor + shift, a.mean * factor + shift, a.high * factor + shift), rel=1e-6, abs=1e-6
    )


def test_one_seed_has_no_interval() -> None:
    found = stats.mean_interval([[1.0, 2.0]])
    assert np.isnan(found.low) and "no interval" in str(found)


@pytest.mark.parametrize("values", [[], [[]], [[np.nan]], np.zeros((2, 2, 2))])
def test_bad_tables(values: object) -> None:
    with pytest.raises(SettingError, match="values"):
        stats.mean_interval(values)  # type: ignore[arg-type]


def test_bad_settings() -> None:
    for call in (
        lambda: stats.mean_interval([1, 2], level=95),
        lambda: stats.minimum_null(101, [5]),
        lambda: stats.paired_difference([1, 2], [1, 2, 3]),
    ):
        with pytest.raises(SettingError):
            call()


def test_arms_of_other_lengths_are_no_pairs() -> None:
    with pytest.raises(SettingError, match="as many distillation seeds"):
        stats.effect_size([1.0, 2.0, 3.0], [0.5])
    with pytest.raises(SettingError, match="at least one group"):
        stats.minimum_null(50.0, [0, 0])
