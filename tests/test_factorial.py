"""Known effects come back, their intervals cover, pairing and pooling do what they say, holes are not filled in."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import unmade
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from rddlib.analysis import factorial
from rddlib.analysis.results import tidy
from rddlib.base import SettingError, numpy_generator
from rddlib.experiments.records import Record

CELLS = ("real none", "real upper", "made none", "made upper")
MAIN = factorial.contrast(["real upper", "made upper"], ["real none", "made none"])
AT_REAL, AT_MADE = (factorial.contrast([f"{d} upper"], [f"{d} none"]) for d in ("real", "made"))
INTERACTION = AT_MADE | {cell: -weight for cell, weight in AT_REAL.items()}


def design(
    rng: np.random.Generator, seeds: int = 3, upper: float = 0.0, both: float = 0.0, sd: float = 1.0
) -> pd.DataFrame:
    """2 x 2 cells: `upper` is the effect at real, `upper + both` that at made; seeds move all cells alike, by a lot."""
    means = np.array([50, 50 + upper, 45, 45 + upper + both])[:, None]
    values = means + 10 * rng.standard_normal((1, seeds)) + sd * rng.standard_normal((4, seeds))
    return pd.DataFrame(values, index=CELLS, columns=range(seeds))


def record(seed: int, values: list[float], **settings: object) -> Record:
    return unmade({"seed": seed} | settings, {"accuracy": values}, key=f"{seed}{settings}")


def test_exact_effects_of_a_table_without_noise() -> None:
    found = factorial.fit(design(numpy_generator(0, "exact"), upper=2.0, both=3.0, sd=0.0))
    assert [found.effect(w).mean for w in (AT_REAL, AT_MADE, MAIN, INTERACTION)] == pytest.approx([2, 5, 3.5, 3])
    assert found.df == 6 and found.sd == pytest.approx(0, abs=1e-9)


def test_the_rest_and_the_error_are_those_of_the_analysis_of_variance() -> None:
    values = design(numpy_generator(1, "anova"), seeds=5)
    y = values.to_numpy()
    rest = y - y.mean(1, keepdims=True) - y.mean(0) + y.mean()
    found = factorial.fit(values)
    assert found.df == 12 and found.sd**2 == pytest.approx((rest**2).sum() / 12)
    effect = found.effect(MAIN)
    error = found.sd * np.sqrt(sum(w**2 for w in MAIN.values()) / 5)
    assert effect.high - effect.mean == pytest.approx(scipy_stats.t.ppf(0.975, 12) * error)
    assert effect.p == pytest.approx(2 * scipy_stats.t.sf(abs(effect.mean) / error, 12)) and effect.seeds == 5


def test_with_two_cells_it_is_the_paired_t_test() -> None:
    values = design(numpy_generator(2, "paired"), seeds=6, upper=1.0).iloc[:2]
    effect = factorial.fit(values).effect(AT_REAL)
    plain = scipy_stats.ttest_rel(values.iloc[1], values.iloc[0])
    interval = plain.confidence_interval(0.95)
    assert (effect.p, effect.low, effect.high) == pytest.approx((plain.pvalue, interval.low, interval.high))


@pytest.mark.parametrize(("upper", "both"), [(0.0, 0.0), (1.5, 0.0), (1.0, -2.0)])
def test_intervals_cover_and_errors_stay_at_their_rate(upper: float, both: float) -> None:
    rng = numpy_generator(3, "coverage", int(10 * upper))
    true = {"main": upper + both / 2, "interaction": both}
    weights = {"main": MAIN, "interaction": INTERACTION}
    hits = dict.fromkeys(true, 0)
    for _ in range(1000):
        found = factorial.fit(design(rng, upper=upper, both=both))
        for name, value in true.items():
            effect = found.effect(weights[name])
            hits[name] += effect.low <= value <= effect.high
    assert all(0.93 <= n / 1000 <= 0.97 for n in hits.values())


def test_pooling_narrows_the_interval_of_few_seeds() -> None:
    rng = numpy_generator(4, "pooling")
    pooled, alone = [], []
    for _ in range(200):
        values = design(rng)
        for found, frame in ((pooled, values), (alone, values.iloc[:2])):
            effect = factorial.fit(frame).effect(AT_REAL)
            found.append(effect.high - effect.low)
    assert np.mean(pooled) < 0.7 * np.mean(alone)


def test_holm_keeps_the_family_wise_error() -> None:
    rng = numpy_generator(5, "holm")
    wrong = 0
    for _ in range(1000):
        found = factorial.fit(design(rng))
        wrong += any(
            factorial.holm(
                {str(i): found.effect(w) for i, w in enumerate((AT_REAL, AT_MADE, MAIN, INTERACTION))}
            ).values()
        )
    assert wrong / 1000 <= 0.06


def test_holm_by_hand() -> None:
    ps = {"a": 0.001, "b": 0.04, "c": 0.02, "d": None}
    effects = {n: p if p is None else factorial.Effect(1, 0, 2, p, 3, 6) for n, p in ps.items()}
    assert factorial.holm(effects) == {"a": True, "b": True, "c": True, "d": False}
    assert factorial.holm({"a": factorial.Effect(1, 0, 2, 0.03, 3, 6), "b": factorial.Effect(1, 0, 2, 0.04, 3, 6)}) == {
        "a": False,
        "b": False,
    }


def test_holes_do_not_move_an_effect_that_has_all_its_runs() -> None:
    """Seed 2 lacks two cells: what the other cells and seeds say is used, and nothing is made up."""
    values = design(numpy_generator(6, "holes"), upper=2.0, both=3.0, sd=0.0)
    values.iloc[2:, 2] = np.nan
    found = factorial.fit(values)
    assert found.df == 4 and found.effect(MAIN).mean == pytest.approx(3.5)
    assert (found.effect(AT_REAL).seeds, found.effect(AT_MADE).seeds, found.effect(MAIN).seeds) == (3, 2, 2)
    assert list(factorial.by_seed(values, AT_MADE).index) == [0, 1]
    assert list(factorial.by_seed(values, AT_REAL)) == pytest.approx([2.0, 2.0, 2.0])


def test_what_is_not_determined_is_none() -> None:
    values = design(numpy_generator(7, "gaps"))
    values.loc["made upper"] = np.nan
    assert factorial.fit(values).effect(MAIN) is None
    assert factorial.fit(values.dropna()).effect(AT_MADE) is None
    apart = pd.DataFrame({0: [1.0, np.nan], 1: [np.nan, 2.0]}, index=["real none", "real upper"])
    assert factorial.fit(apart).effect(AT_REAL) is None  # no seed pairs them


def test_one_seed_gives_no_interval() -> None:
    effect = factorial.fit(design(numpy_generator(8, "one"), seeds=1)).effect(MAIN)
    assert np.isfinite(effect.mean) and np.isnan(effect.low) and "no interval" in str(effect)
    assert factorial.holm({"one": effect}) == {"one": False}


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.integers(0, 1000), st.floats(-5, 5), st.floats(0.1, 10))
def test_effects_follow_shift_and_scale(seed: int, shift: float, scale: float) -> None:
    values = design(numpy_generator(seed, "invariance"))
    plain, moved = (factorial.fit(v).effect(INTERACTION) for v in (values, shift + scale * values))
    assert moved.mean == pytest.approx(scale * plain.mean, abs=1e-6)
    assert moved.p == pytest.approx(plain.p, abs=1e-6)


def test_table_averages_trainings_and_keeps_holes() -> None:
    records = [
        record(0, [1.0, 3.0], risk="a"),
        record(1, [5.0], risk="a"),
        record(0, [7.0], risk="b"),
        record(9, [0.0], risk=""),
    ]
    frame = tidy(records)
    frame["cell"] = frame["risk"]
    found = factorial.table(frame, "accuracy")
    assert list(found.index) == ["a", "b"] and list(found.columns) == [0, 1]
    assert found.loc["a"].tolist() == [2.0, 5.0] and np.isnan(found.loc["b", 1])
    twice = frame.assign(cell="a")
    with pytest.raises(SettingError, match="a cell of its own"):
        factorial.table(twice, "accuracy")
    assert factorial.table(frame, "noise").empty


def test_an_empty_table_is_refused() -> None:
    with pytest.raises(SettingError, match="empty"):
        factorial.fit(pd.DataFrame())
