"""Tables beside the paper's: every number comes from a record or from data/paper."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import unmade

from rddlib.analysis import tables
from rddlib.analysis.report import Page
from rddlib.analysis.tables import Column, Gap
from rddlib.experiments.experiment import Experiment
from rddlib.experiments.grid import Job
from rddlib.experiments.records import Record, Store
from rddlib.stats import Interval

COLUMNS = [
    Column("standard", {}, "accuracy", {"idc": 67.5, "idc_r": 68.6, "random": 37.2}),
    Column("cluster-min", {}, "cluster_min", {"idc": 63.3, "idc_r": 65.0, "random": 31.4}),
]


def record(experiment: Experiment, accuracy: float, least: float) -> Record:
    metrics = {"accuracy": [accuracy, accuracy + 1], "cluster_min": [least, least], "group_sizes": [1000] * 10}
    return unmade(experiment, metrics)


@pytest.fixture
def page(tmp_path: Path) -> Page:
    """Three seeds of control, upper (two points above, drop one point smaller) and the floor; lower is not run."""
    planned, records = [], {}
    for method, risk in (("idc", "control"), ("idc", "upper"), ("idc", "lower"), ("random", "control")):
        for seed in range(3):
            e = Experiment.preset("laptop", method=method, risk=risk, seed=seed)
            planned.append(Job(e, 1.0, ("table1/cifar10_idc",)))
            more = {"upper": 2.0, "control": 0.0}.get(risk)
            if more is not None:
                level = 50.0 + seed + more - 20 * (method == "random")
                records[e.key] = record(e, level, level - 6 + more / 2)
    return Page(tuple(planned), records, Store(tmp_path))


def test_levels_stand_beside_the_papers(page: Page) -> None:
    table = tables.levels(page, tables.LINES, COLUMNS)
    assert table.index.tolist() == ["random images", "IDC", "IDC, upper tail", "IDC, lower tail"]
    assert table["standard", "paper"].tolist() == ["37.2", "67.5", "68.6", "68.6"]
    assert table.loc["IDC", ("standard", "ours")].startswith("51.5 [")
    assert table.loc["IDC, lower tail", ("standard", "ours")] == ""  # the seeds beside it say that it is planned
    assert table["standard", "seeds"].tolist() == ["3 of 3", "3 of 3", "3 of 3", "0 of 3"]


def test_lines_that_have_been_run_are_chosen(page: Page) -> None:
    names = [line.name for line in tables.run_lines(page, tables.LINES, COLUMNS)]
    assert names == ["random images", "IDC", "IDC, upper tail"]


def test_a_line_that_only_the_paper_has_is_said_not_to_be_planned(page: Page) -> None:
    table = tables.levels(page, tables.LINES, [Column("standard", {}, "accuracy", {"glad": 46.7, "glad_r": 50.2})])
    assert table.loc["GLaD", ("standard", "ours")] == "not planned"
    assert "GLaD, lower tail" not in table.index  # the paper has one GLaD with the risk term, not two


def test_gains_are_paired_and_carry_the_papers(page: Page) -> None:
    found = tables.gaps(page, tables.LINES, COLUMNS)
    assert [(g.line, g.column, g.paper) for g in found] == [
        ("IDC, upper tail", "standard", 1.1), ("IDC, lower tail", "standard", 1.1),
        ("IDC, upper tail", "cluster-min", 1.7), ("IDC, lower tail", "cluster-min", 1.7)]  # fmt: skip
    assert found[0].ours == Interval(2.0, 2.0, 2.0, 3) and found[1].ours is None
    assert found[2].ours is not None and found[2].ours.mean == pytest.approx(3.0)
    table = tables.gains(found)
    assert table.index.tolist() == [("IDC, upper tail - IDC", c) for c in ("standard", "cluster-min")]
    assert table["side of zero"].tolist() == ["above", "above"] and table["paper"].tolist() == ["+1.1", "+1.7"]
    none = tables.gains([found[1], found[3]])  # nothing has been run: the paper's gains stand alone
    assert none["paper"].tolist() == ["+1.1", "+1.7"] and set(none["ours (points)"]) == {""}


def test_a_drop_that_shrinks_lies_below_zero(page: Page) -> None:
    upper, lower = tables.drops(page, tables.LINES, COLUMNS)
    assert upper.ours is not None and upper.ours.mean == pytest.approx(-1.0)
    assert upper.paper == pytest.approx(3.6 - 4.2) and lower.ours is None


def test_worst_groups_stand_beside_their_nulls(page: Page) -> None:
    table = tables.worst_groups(page, tables.LINES, COLUMNS[:1])
    assert table.loc[("standard", "IDC"), "images in a group"] == "1000 to 1000"
    assert table.loc[("standard", "IDC"), "groups"] == 10 and table.loc[("standard", "IDC"), "place"] == "below"
    assert ("standard", "IDC, lower tail") not in table.index


def test_the_papers_numbers_are_read_by_table() -> None:
    assert tables.reported(1, dataset="cifar10", ipc=10)["idc_r"] == 68.6
    assert tables.reported(3, names="eval_arch", method="glad") == {
        "convnet5": 48.2, "resnet10": 50.9, "resnet18": 51.2, "vit": 36.8, "vgg11": 44.2}  # fmt: skip
    assert tables.reported(1, dataset="", ipc=10) == {}


def test_what_differs_from_the_paper_is_listed() -> None:
    table = tables.differs(Page.of("table2", "laptop"), "table2", "imagenette128")
    assert table.loc["dataset", "idc, ipc 10"] == "imagenette128 (imagenet10)"
    assert table.loc["size", "idc, ipc 10"] == "64 (128)" and "seed" not in table.index
    assert tables.differs(Page.of("table5", "paper"), "table5", "imagenet_a").empty
    rates = tables.differs(Page.of("table2", "cpu"), "table2", "cifar10").loc["lr_image"]
    assert rates["idc, ipc 10"] == "0.02, 0.15 (0.005)"  # control's, and that of the arms with the term


def test_the_forest_draws_what_the_gaps_hold() -> None:
    found = [Gap("a", "b", "c", Interval(1.0, 0.5, 1.5, 3), 2.0), Gap("d", "b", "c", None, 3.0),
             Gap("e", "b", "c", Interval(-1.0, np.nan, np.nan, 1), None)]  # fmt: skip
    figure, axes = plt.subplots(layout="constrained")
    tables.forest(axes, found)
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a - b (c)", "e - b (c)"]  # none for what was not run
    (cross,) = [line for line in axes.lines if line.get_label() == "paper"]
    assert cross.get_xdata().tolist() == [2.0]
    figure.canvas.draw()
    _, empty = plt.subplots(layout="constrained")
    tables.forest(empty, found[1:2])
    assert empty.texts[0].get_text() == "not run yet"
    plt.close("all")
