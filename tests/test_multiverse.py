"""The fraction is balanced, pairs are pairs, shares and their intervals come back from known gains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import unmade

from rddlib.analysis import multiverse
from rddlib.analysis.results import tidy
from rddlib.base import SettingError, numpy_generator
from rddlib.experiments import grid
from rddlib.experiments.experiment import Experiment
from rddlib.experiments.records import Record


def record(experiment: Experiment, values: list[float]) -> Record:
    return unmade(experiment, {"accuracy": values})


def made(scale: str, gain, rng: np.random.Generator, sd: float = 0.1) -> pd.DataFrame:
    """Rows of the grid's runs: each context has a level, each run with the term `gain(settings)` more."""
    found = []
    for job in grid.jobs(["multiverse"], scale):
        e = job.experiment
        level = 40 + 7 * (e.ipc > 1) + 3 * (e.network == "convnet") + (gain(e) if e.risk != "control" else 0.0)
        found.append(record(e, list(level + sd * rng.standard_normal(3))))
    return tidy(found)


def test_the_fraction_is_balanced_and_unmixed_in_its_main_effects() -> None:
    rows = multiverse.specifications(made("laptop", lambda e: 0.0, numpy_generator(0, "fraction")), ["accuracy"])
    assert len(rows) == 8 and rows["control"].nunique() == 4
    signs = np.array([[1 if v == rows[c].iloc[0] else -1 for v in rows[c]] for c in multiverse.CHOICES])  # (7, 8)
    assert (signs.sum(1) == 0).all() and (signs @ signs.T == 8 * np.eye(7)).all()


def test_smoke_scale_crosses_every_choice() -> None:
    rows = multiverse.specifications(made("smoke", lambda e: 0.0, numpy_generator(1, "crossed")), ["accuracy"])
    assert len(rows) == 192 and len(rows.drop_duplicates([*multiverse.CHOICES, "seed"])) == 192
    assert rows["control"].nunique() == 12 and set(rows["seed"]) == {0, 1}


def test_each_run_is_compared_with_its_own_control() -> None:
    rows = multiverse.specifications(
        made("smoke", lambda e: e.alpha, numpy_generator(2, "pairs"), sd=0.0), ["accuracy"]
    )
    assert rows["accuracy"].to_numpy() == pytest.approx(rows["alpha"].to_numpy())
    assert rows["accuracy error"].max() < 1e-12


def test_what_is_clear_is_judged_by_the_spread_between_distillations() -> None:
    """Trainings agree, distillations scatter by 1.5: the spread that is found is theirs; one seed alone has none."""
    rng = numpy_generator(7, "spread")
    rows = multiverse.specifications(made("smoke", lambda e: 1.5 * rng.standard_normal(), rng, sd=0.0), ["accuracy"])
    assert rows["accuracy error"].nunique() == 1 and rows["accuracy error"].iloc[0] == pytest.approx(1.5, rel=0.2)
    alone = rows[rows["seed"] == 0].assign(**{"accuracy error": np.nan})
    assert multiverse.clear(alone, "accuracy") == (0, 0)
    one = multiverse.specifications(made("laptop", lambda e: 9.0, rng), ["accuracy"])
    assert one["accuracy error"].isna().all() and multiverse.clear(one, "accuracy") == (0, 0)


def test_a_record_from_before_a_setting_existed_is_paired_with_a_new_one() -> None:
    new = [Experiment.preset("laptop", dataset="cifar10", ipc=10, risk=risk) for risk in ("control", "upper")]
    control, upper = record(new[0], [50.0, 51.0]), record(new[1], [52.0, 53.0])
    late = ("centres_in_all", "risk_images", "image_rule", "worst_step", "divide_loss")
    old = replace(control, experiment={k: v for k, v in control.experiment.items() if k not in late})
    rows = multiverse.specifications(tidy([old, upper]), ["accuracy"])
    assert rows["accuracy"].tolist() == [2.0]


def test_runs_without_a_control_are_left_out() -> None:
    rows = made("laptop", lambda e: 0.0, numpy_generator(3, "orphans"))
    kept = rows[(rows["risk"] != "control") | (rows["network"] != "convnet")]
    assert set(multiverse.specifications(kept, ["accuracy"])["network"]) == {"resnetap10"}
    assert multiverse.specifications(tidy([]), ["accuracy"]).empty


def test_shares_and_marks_of_a_known_rule() -> None:
    """The upper tail gains two points, the lower loses two: half above, all clear, and the tail is what matters."""
    rng = numpy_generator(4, "rule")
    rows = multiverse.specifications(made("smoke", lambda e: 2.0 if e.risk == "upper" else -2.0, rng), ["accuracy"])
    found = multiverse.share(rows, "accuracy")
    assert (found.percent, found.n, found.controls) == (50.0, 192, 12)
    assert sum(multiverse.clear(rows, "accuracy")) > 180
    assert multiverse.importance(rows, "accuracy").index[0] == "tail"
    assert multiverse.by_choice(rows, "accuracy").loc[("tail", "upper"), "above 0 (%)"] == 100


def test_an_interval_counts_controls_not_runs() -> None:
    """Noise of the controls alone moves whole blocks of gains: the interval must stay wide with many runs."""
    rng = numpy_generator(5, "blocks")
    rows = multiverse.specifications(made("smoke", lambda e: 0.0, rng), ["accuracy"])
    hits = 0
    for _ in range(100):
        noise = {control: -rng.standard_normal() for control in rows["control"].unique()}
        found = multiverse.share(rows.assign(accuracy=rows["control"].map(noise)), "accuracy")
        hits += found.low <= 50 <= found.high
    assert hits / 100 >= 0.93


def test_few_controls_say_little_and_none_is_an_error() -> None:
    """Three controls, every gain above zero: a binomial of three, not of all runs, 29 to 100 %."""
    runs = made("laptop", lambda e: 5.0, numpy_generator(6, "few"))
    rows = multiverse.specifications(runs[runs["ipc"] == 10], ["accuracy"])
    found = multiverse.share(pd.concat([rows, rows.iloc[:1].assign(control="third")]), "accuracy")
    assert (found.percent, found.high) == (100, 100) and found.low == pytest.approx(29.24, abs=0.01)
    with pytest.raises(SettingError, match="no specification"):
        multiverse.share(rows.iloc[:0], "accuracy")
