"""Tables beside the paper's: every number comes from a record or from data/paper."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import unmade

from rddlib.analysis import report, tables
from rddlib.analysis.report import Page
from rddlib.analysis.tables import Column, Gap
from rddlib.experiments.experiment import Experiment
from rddlib.experiments.grid import Job
from rddlib.experiments.records import Record, Store
from rddlib.stats import Interval

COLUMNS = [
    Column("standard", {}, "accuracy", {"idc": 67.5, "idc_r": 68.6, "random": 37.2}),
    Column("worst cluster", {}, "cluster_min", {"idc": 63.3, "idc_r": 65.0, "random": 31.4}),
]


def record(experiment: Experiment, accuracy: float, least: float) -> Record:
    metrics = {
        "accuracy": [accuracy, accuracy + 1],
        "cluster_min": [least, least],
        "cluster_accuracy": [[least, *[accuracy] * 9]] * 2,
        "group_sizes": [1000] * 10,
    }
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
    assert table.index.tolist() == ["random images", "IDC", "IDC, upper tail"]  # the lower tail has not been run
    assert table["standard", "paper"].tolist() == ["37.2", "67.5", "68.6"]
    assert table.loc["IDC", ("standard", "ours")].startswith("51.5 [")
    assert table["standard", "seeds"].tolist() == ["3 of 3", "3 of 3", "3 of 3"]


def test_a_column_without_a_run_is_left_out_and_a_cell_without_one_is_empty(page: Page) -> None:
    ten = Column("10 images", {"ipc": 10}, "accuracy", {"idc": 67.5})
    one = Column("1 image", {"ipc": 1}, "accuracy", {"idc": 50.6, "random": 14.4})
    assert set(tables.levels(page, tables.LINES, [one, ten]).columns.get_level_values(0)) == {"10 images"}
    single = Experiment.preset("laptop", method="random", ipc=1)
    more = Page(
        (*page.jobs, Job(single, 1.0, ("floor",))), page.records | {single.key: record(single, 20.0, 15.0)}, page.store
    )
    both = tables.levels(more, tables.LINES, [one, ten])
    alone = both.loc["random images", "1 image"]  # one seed: the count says that there is no interval
    assert (alone["ours"], alone["seeds"]) == ("20.5", "1 of 1")
    assert both.loc["IDC", "1 image"].tolist() == ["50.6", "", ""]


def test_lines_that_have_been_run_are_chosen(page: Page) -> None:
    names = [line.name for line in tables.run_lines(page, tables.LINES, COLUMNS)]
    assert names == ["random images", "IDC", "IDC, upper tail"]


def test_where_nothing_has_been_run_the_papers_numbers_stand_alone(page: Page) -> None:
    table = tables.levels(Page(page.jobs, {}, page.store), tables.LINES, COLUMNS)
    assert table.index.tolist() == ["random images", "IDC", "IDC, upper tail", "IDC, lower tail"]
    assert table["standard", "paper"].tolist() == ["37.2", "67.5", "68.6", "68.6"]
    assert set(table["standard", "ours"]) == {""}


def test_gains_are_paired_and_carry_the_papers(page: Page) -> None:
    found = tables.gaps(page, tables.LINES, COLUMNS)
    assert [(g.line, g.column, g.paper) for g in found] == [
        ("IDC, upper tail", "standard", 1.1), ("IDC, lower tail", "standard", 1.1),
        ("IDC, upper tail", "worst cluster", 1.7), ("IDC, lower tail", "worst cluster", 1.7)]  # fmt: skip
    assert found[0].ours == Interval(2.0, 2.0, 2.0, 3) and found[1].ours is None
    assert found[2].ours is not None and found[2].ours.mean == pytest.approx(3.0)
    table = tables.gains(found)
    assert table.index.tolist() == [("IDC, upper tail - IDC", c) for c in ("standard", "worst cluster")]
    assert table["side of zero"].tolist() == ["above", "above"] and table["paper"].tolist() == ["+1.1", "+1.7"]
    none = tables.gains([found[1], found[3]])  # nothing has been run: the paper's gains stand alone
    assert none["paper"].tolist() == ["+1.1", "+1.7"] and set(none["ours (points)"]) == {""}


def test_a_drop_that_shrinks_lies_below_zero(page: Page) -> None:
    upper, lower = tables.drops(page, tables.LINES, COLUMNS)
    assert upper.ours is not None and upper.ours.mean == pytest.approx(-1.0)
    assert upper.paper == pytest.approx(3.6 - 4.2) and lower.ours is None


def test_worst_groups_stand_beside_their_nulls(page: Page) -> None:
    table = tables.worst_groups(page, tables.LINES, COLUMNS[:1])
    assert table.columns.tolist() == ["accuracy", "worst cluster", "smallest mean", "by chance alone", "place"]
    assert table.loc[("standard", "IDC"), "place"] == "below"
    assert ("standard", "IDC, lower tail") not in table.index


@pytest.mark.parametrize(("least", "smallest", "place"), [(47.0, "49.0", "inside"), (37.0, "44.0", "below")])
def test_a_training_that_scatters_does_not_make_groups_differ(
    page: Page, least: float, smallest: str, place: str
) -> None:
    """Each training has another weak cluster, so that a minimum lies low in every training and in no cluster."""
    scattered = {
        "cluster_min": [least, least],
        "cluster_accuracy": [[least, *[51.0] * 9], [*[51.0] * 9, least]],
    }
    records = {k: dataclasses.replace(one, metrics=one.metrics | scattered) for k, one in page.records.items()}
    table = tables.worst_groups(Page(page.jobs, records, page.store), tables.LINES, COLUMNS[:1])
    own = table.loc[("standard", "IDC")]
    assert own["worst cluster"].startswith(f"{least}")
    assert (own["smallest mean"], own["place"]) == (smallest, place)


def test_the_papers_numbers_are_read_by_table() -> None:
    assert tables.reported(1, dataset="cifar10", ipc=10)["idc_r"] == 68.6
    assert tables.reported(3, names="eval_arch", method="glad") == {
        "convnet5": 48.2, "resnet10": 50.9, "resnet18": 51.2, "vit": 36.8, "vgg11": 44.2}  # fmt: skip
    assert tables.reported(1, dataset="", ipc=10) == {}


def test_what_differs_from_the_paper_is_listed() -> None:
    planned = Page.of("table2", "laptop")
    table = tables.differs(Page(planned.jobs, {}, planned.store), "table2", "imagenette128")["IDC, 10 images a class"]
    assert table["data set"] == "Imagenette (ImageNet-10)" and table["pixels a side"] == "64 (128)"
    assert table["network in the loop"] == "ConvNet (ResNet-10)" and "seed" not in table.index
    assert tables.differs(Page.of("table5", "paper"), "table5", "imagenet_a").empty
    rates = tables.differs(Page.of("table2", "cpu"), "table2", "cifar10")["IDC, 10 images a class"]
    assert rates["image rate"] == "0.02, 0.15 (0.005)"  # control's, and that of the arms with the term


def test_what_differs_is_that_of_runs_that_have_been_made() -> None:
    planned = Page.of("table3", "laptop")
    made = {job.key: record(job.experiment, 50.0, 44.0) for job in planned.jobs
            if job.experiment.method == "idc" and job.experiment.eval_network == "convnet"}  # fmt: skip
    table = tables.differs(Page(planned.jobs, made, planned.store), "table3", "cifar10")
    assert list(table) == ["IDC, 10 images a class"] and "network of the test" not in table.index


def test_the_forest_draws_what_the_gaps_hold() -> None:
    found = [Gap("a", "b", "c", Interval(1.0, 0.5, 1.5, 3), 2.0), Gap("d", "b", "c", None, 3.0),
             Gap("e", "b", "c", Interval(-1.0, np.nan, np.nan, 1), None)]  # fmt: skip
    found.append(Gap("x, upper tail", "x", "c", Interval(1.0, 0.5, 1.5, 3), None))
    figure, axes = plt.subplots(layout="constrained")
    tables.forest(axes, found)
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        "a - b (c)", "e - b (c)", "x, upper tail - x (c)"]  # none for what was not run  # fmt: skip
    colours = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    assert colours["ours, upper tail"].lines[0].get_color() == report.ARM_COLOURS["upper"]
    assert "ours" in colours and "ours, lower tail" not in colours
    (cross,) = [line for line in axes.lines if line.get_label() == "paper"]
    assert cross.get_xdata().tolist() == [2.0]
    figure.canvas.draw()
    _, empty = plt.subplots(layout="constrained")
    tables.forest(empty, found[1:2])
    assert empty.texts[0].get_text() == "not run yet"
    plt.close("all")
