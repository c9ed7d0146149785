"""Curves of time to accuracy: read by hand, raced against made-up ones with a known answer, and the page on top."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from conftest import unmade
from hypothesis import given, settings
from hypothesis import strategies as st
from test_causes_pages import run_page

from rddlib.analysis import speedups
from rddlib.analysis.report import Page
from rddlib.analysis.speedups import Curve, arrival, at, race
from rddlib.base import numpy_generator
from rddlib.experiments import grid
from rddlib.experiments.experiment import Experiment
from rddlib.experiments.records import Store

mpl.use("Agg")
pytestmark = pytest.mark.filterwarnings("ignore:.*non-interactive.*")
PAGE = "25_time_to_accuracy"
LEFT = "cell-19-progress"  # the line on what has not been run
LINE = (np.array([0.0, 10.0, 30.0]), np.array([40.0, 45.0, 44.0]))
Made = Callable[[Experiment], tuple[float, float]]  # seconds and accuracy of a run


def saturating(speed: float, price: float = 1.0, top: float = 50.0) -> Made:
    """Accuracy 40 at the start and towards `top`; representative batches learn `speed` times as fast a step."""

    def made(e: Experiment) -> tuple[float, float]:
        even = e.real_choice == "representative"
        steps = 0 if e.method == "mix" else e.outer_steps
        rate = speed if even else 1.0
        level = top - (top - 40) * float(np.exp(-0.4 * rate * steps))
        return 16.0 * steps * (price if even else 1.0), level + 0.3 * float(numpy_generator(e.seed, "s").normal())

    return made


def fill(store: Store, made: Made, keep: Callable[[Experiment], bool] = lambda e: True, noise: float = 0.05) -> None:
    for e in (job.experiment for job in grid.jobs(["speedups"], "laptop")):
        seconds, level = made(e)
        values = (level + noise * numpy_generator(0, e.key).standard_normal(e.eval_seeds)).tolist()
        price = {"distill": seconds, "evaluate": 100.0}
        record = unmade(
            e, {"accuracy": values}, seconds=price, cpu_seconds=price, device="cpu, 1 threads",
            versions={"torch": "2"}, set_key=e.set_key,
        )  # fmt: skip
        if keep(e):
            store.add(record, "cifar10_laptop")


def curves(store: Store) -> tuple[Curve, Curve]:
    page = Page.of("speedups", "laptop", store=store)
    return Curve.of(page, "representative"), Curve.of(page, "random")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("RDD_STORE", str(tmp_path))
    return Store(tmp_path)


# --- one curve --------------------------------------------------------------------------------------------


def test_a_curve_is_read_between_its_points_and_never_beyond() -> None:
    assert [at(LINE, t) for t in (0, 5, 10, 20, 30)] == [40, 42.5, 45, 44.5, 44]
    assert np.isnan(at(LINE, 31)) and np.isnan(at(LINE, -1))
    assert [arrival(LINE, a) for a in (39, 40, 42.5, 44, 45)] == [0, 0, 5, 8, 10]  # 44 first on the way up
    assert arrival(LINE, 45.1) == float("inf")


@given(st.lists(st.floats(0, 100), min_size=2, max_size=6), st.floats(0, 100))
@settings(deadline=None, derandomize=True, max_examples=50)
def test_a_curve_has_the_level_where_it_arrives(values: list[float], level: float) -> None:
    line = (np.arange(len(values), dtype=float), np.array(values))
    second = arrival(line, level)
    assert np.isfinite(second) == (max(values) >= level)
    if np.isfinite(second):
        assert at(line, second) >= level - 1e-9
        assert all(v < level for v in values[: int(np.ceil(second))])  # and not before


# --- races with a known answer ----------------------------------------------------------------------------


def test_twice_as_fast_a_step_at_the_same_price_halves_the_time(store: Store) -> None:
    fill(store, saturating(3.0), noise=0.0)
    found = race(*curves(store))
    assert found.seeds == found.arrived == 3
    assert found.ratio is not None and 0.25 < found.ratio.mean < 0.5 and found.ratio.high < 1
    assert found.price is not None and found.price.mean == pytest.approx(1)
    assert found.same_time is not None and found.same_time.low > 0


def test_the_same_curve_is_a_tie_and_a_price_is_a_loss(store: Store) -> None:
    fill(store, saturating(1.0), noise=0.0)
    found = race(*curves(store))
    assert found.ratio is not None and found.ratio.mean == pytest.approx(1) and found.same_time is not None
    assert found.same_time.mean == pytest.approx(0, abs=1e-9)
    fill(store, saturating(1.0, price=4.0), noise=0.0)
    found = race(*curves(store))
    assert found.ratio is not None and found.ratio.mean == pytest.approx(4) and found.price is not None
    assert found.price.mean == pytest.approx(4) and found.same_time is not None and found.same_time.high < 0
    assert found.ratio.low > 1


def test_a_level_that_is_not_reached_has_no_ratio(store: Store) -> None:
    fill(store, saturating(1.0, top=50.0), noise=0.0)
    fill(store, saturating(0.2), lambda e: e.real_choice == "representative", noise=0.0)
    found = race(*curves(store))
    assert found.ratio is None and found.arrived == 0 and found.seeds == 3


def test_seeds_without_both_curves_are_left_out(store: Store) -> None:
    last = {"representative": {0, 1}, "random": {1, 2}}
    fill(store, saturating(3.0), lambda e: e.method == "mix" or e.outer_steps < 6 or e.seed in last[e.real_choice])
    found = race(*curves(store))
    assert found.seeds == 1 and found.ratio is not None and not np.isfinite(found.ratio.low)
    assert speedups.times(found.ratio).endswith("(one seed: no interval) times")


def test_two_points_make_a_curve_and_one_does_not(store: Store) -> None:
    fill(store, saturating(3.0), lambda e: e.method == "mix" or e.outer_steps == 6)
    assert race(*curves(store)).seeds == 3
    other = Store(store.root / "other")
    fill(other, saturating(3.0), lambda e: e.method == "idc" and e.outer_steps == 6)
    assert race(*curves(other)).seeds == 0


# --- the page ---------------------------------------------------------------------------------------------


def test_the_page_follows_the_numbers(store: Store) -> None:
    fill(store, saturating(3.0))
    said, shown = run_page(PAGE)
    assert "All 21 runs" in shown[LEFT].data and said["cell-11-conclusion"].startswith("Not checked")
    assert shown["cell-08-race"].loc["arrival"].iloc[0].startswith("0.")
    fill(store, saturating(1.5, price=4.0))
    _, shown = run_page(PAGE)
    race_of_a_loss = shown["cell-08-race"]["representative against random"]
    assert float(race_of_a_loss["arrival"].split()[0]) > 1 and race_of_a_loss["price"].startswith("4.00")


def test_without_records_the_page_says_so(store: Store) -> None:
    _, shown = run_page(PAGE)
    assert shown[LEFT].data.startswith("Left: 21 of 21 runs")
    assert shown["cell-08-race"].loc["price"].iloc[0] == "not run yet"


def test_with_some_records_the_page_shows_them(store: Store) -> None:
    fill(store, saturating(3.0), lambda e: e.seed == 0 and (e.method == "mix" or e.outer_steps == 2))
    _, shown = run_page(PAGE)
    assert shown[LEFT].data.startswith("Left: 18 of 21 runs")
    assert shown["cell-05-points"].loc[("random", 2), "seeds"] == "1 of 3"
