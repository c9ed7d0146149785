"""A page shows the records there are, says what is missing, and never shows a number that no record carries."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, unmade
from PIL import Image

from rddlib.analysis import report
from rddlib.analysis.report import Page
from rddlib.analysis.results import table, tidy
from rddlib.base import SettingError
from rddlib.experiments import provenance
from rddlib.experiments.experiment import Experiment
from rddlib.experiments.records import Record, Store
from rddlib.stats import Interval, mean_interval

GRID = """
title = "Two arms"
[common]
dataset = "digits"
ipc = 1
seed = [0, 1, 2]
[[arm]]
name = "idc"
why = "with and without"
value = 9
risk = ["control", "upper"]
[[arm]]
name = "floor"
why = "random images"
value = 8
method = "random"
[[arm]]
name = "alphas"
why = "another tail mass"
value = 7
risk = "upper"
alpha = 0.2
seed = 0
[[arm]]
name = "absent"
why = "data that are not here"
value = 1
method = "dm"
dataset = "npz:no_such_file.npz"
seed = 0
"""


def record(experiment: Experiment, accuracy: list[float], least: float = 40.0) -> Record:
    metrics = {"accuracy": accuracy, "cluster_min": [least] * len(accuracy), "group_sizes": [40, 60]}
    return unmade(experiment, metrics, seconds={"evaluate": 2.0}, cpu_seconds={"evaluate": 1.5}, commit="0123456789ab",
                  peak_memory_mb=100.0)  # fmt: skip


@pytest.fixture
def grid_file(tmp_path: Path) -> Path:
    (tmp_path / "two.toml").write_text(GRID)
    return tmp_path / "two.toml"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Control has seeds 0, 1, 2, upper has 1 and 2 and is two points better."""
    found = Store(tmp_path / "store")
    for risk, seeds, more in (("control", (0, 1, 2), 0.0), ("upper", (1, 2), 2.0)):
        for seed in seeds:
            e = Experiment.preset("smoke", dataset="digits", ipc=1, risk=risk, seed=seed)
            found.add(record(e, [50.0 + seed + more, 52.0 + seed + more]), "test")
    return found


def test_an_arm_has_the_records_of_its_seeds_and_counts_those_planned(grid_file: Path, store: Store) -> None:
    page = Page.of(str(grid_file), "smoke", store=store)
    control, upper = page.arm(method="idc", risk="control"), page.arm(method="idc", risk="upper", alpha=0.8)
    assert (control.count(), upper.count()) == ("3 of 3", "2 of 3")
    assert table(control.rows).to_numpy().tolist() == [[50, 52], [51, 53], [52, 54]]
    assert upper.seeds() == [1, 2] and control.level().mean == 52.0 and control.sizes() == [40, 60]
    assert page.missing().startswith("5 of the 11 runs")


def test_differences_are_paired_over_the_seeds_that_both_have(grid_file: Path, store: Store) -> None:
    page = Page.of(str(grid_file), "smoke", store=store)
    gap = page.arm(method="idc", risk="upper", alpha=0.8).minus(page.arm(method="idc", risk="control"))
    assert gap == Interval(2.0, 2.0, 2.0, 2)  # unpaired means would give 2.5
    assert page.arm(method="random").minus(page.arm(method="idc", risk="control")) is None


def test_what_was_not_run_is_no_number(grid_file: Path, store: Store) -> None:
    page = Page.of(str(grid_file), "smoke", store=store)
    floor, nothing = page.arm(method="random"), page.arm(method="dsa")
    assert (floor.text(), floor.count(), floor.level(), floor.null()) == ("not run yet", "0 of 3", None, None)
    assert (nothing.text(), nothing.count()) == ("", "")
    table = page.progress()
    assert table.loc[
        "digits of 8 x 8 pixels, a trial run that the paper has no row for", ["runs", "done", "left"]
    ].tolist() == [10, 5, 5]
    assert page.left().startswith("Left: 5 of 10 runs on digits of 8 x 8 pixels (") and page.left().endswith(".")
    assert set(page.run_datasets()) == {"digits"} and not Page.of(str(grid_file), "paper", store=store).run_datasets()
    assert page.provenance()["seeds"].tolist() == [3, 2]


def test_idle_settings_fit_any_value_and_active_ones_must_be_named(grid_file: Path, store: Store) -> None:
    page = Page.of(str(grid_file), "smoke", store=store)
    assert page.arm(method="idc", risk="control", alpha=0.2).count() == "3 of 3"  # alpha does nothing under control
    with pytest.raises(SettingError, match="only the seed"):
        page.arm(method="idc", risk="upper", dataset="digits")  # two tail masses
    assert page.values("alpha", risk="upper") == [0.2, 0.8]


def test_a_data_set_is_chosen_or_carried_over(grid_file: Path, store: Store) -> None:
    assert len(Page.of(str(grid_file), "smoke", "digits", store=store).jobs) == 10
    carried = Page.of(str(grid_file), "laptop", "npz:mine.npz", store=store)
    assert {e.dataset for e in carried.experiments} == {"npz:mine.npz"} and len(carried.jobs) == 10
    assert {e.outer_steps for e in carried.experiments if e.method == "idc"} == {6}  # the scale's own presets


def test_a_table_without_a_small_form_gets_one() -> None:
    page = Page.of("table5", "smoke")
    assert [(e.dataset, e.method, e.risk, e.ipc, e.seed) for e in page.experiments] == [
        ("digits", "glad", "control", 1, 0), ("digits", "glad", "upper", 1, 0)]  # fmt: skip


def test_run_makes_what_is_missing_and_goes_on_after_a_refusal(grid_file: Path, store: Store, monkeypatch) -> None:
    made = []

    def run(experiment: Experiment, into: Store) -> Record:
        if experiment.dataset.startswith("npz"):
            raise report.DataError("no_such_file.npz: not found")
        made.append(experiment.key)
        into.add(record(experiment, [60.0, 61.0]), "test")
        return record(experiment, [60.0, 61.0])

    monkeypatch.setattr(report, "run", run)
    page = Page.of(str(grid_file), "smoke", mode="run", store=store)
    assert len(page.records) == 10 and list(page.refused.values()) == ["no_such_file.npz: not found"]
    assert len(made) == 10  # `run` itself returns what is stored


def test_live_computes_the_most_valuable_runs_and_leaves_nothing(grid_file: Path, monkeypatch) -> None:
    monkeypatch.setattr(report, "LIVE_RUNS", 2)
    monkeypatch.setattr(report, "gather", lambda runs, *_, **__: ([record(e, [60.0]) for e in runs], Store("nowhere")))
    page = Page.of(str(grid_file), "laptop", mode="live")
    assert [e.scale for e in page.experiments] == ["smoke", "smoke"] and len(page.records) == 2
    with pytest.raises(SettingError, match="mode"):
        Page.of(str(grid_file), "smoke", mode="guess")


@pytest.mark.parametrize(
    ("found", "where", "text"),
    [
        (Interval(1.26, 0.5, 2.0, 3), "above", "+1.3 [0.5, 2.0]"),
        (Interval(-1.0, -2.0, -0.1, 3), "below", "-1.0 [-2.0, -0.1]"),
        (Interval(0.5, -0.5, 1.5, 3), "not separated", "+0.5 [-0.5, 1.5]"),
        (Interval(3.0, np.nan, np.nan, 1), "no interval", "+3.0 (one seed: no interval)"),
        (None, "not run yet", "not run yet"),
    ],
)
def test_a_difference_in_words(found: Interval | None, where: str, text: str) -> None:
    assert report.side(found) == where and report.cell(found, signed=True) == text


def test_stand_ins_are_named_where_they_stand() -> None:
    small = Experiment.preset("laptop", dataset="imagenette128")
    assert report.title(small) == "Imagenette at 64 px, in the place of ImageNet-10"
    assert "in the place of SVHN" in report.title(Experiment.preset("laptop", dataset="svhn_mini"))
    names = [report.paper_name(n) for n in ("svhn_mini", "imagenette128", "imagenet_b", "digits", "npz:x.npz")]
    assert names == ["svhn", "imagenet10", "imagenet_b", "", ""]


# --- what has not been run --------------------------------------------------------------------------------


def test_a_table_shows_the_rows_and_columns_that_hold_a_result() -> None:
    gap = report.NOT_RUN
    cells = {"a": ["1.0", gap, gap], "b": [gap, gap, "2.0"], "c": [gap, "", ""], "n": ["3", "0", "1"]}
    table = pd.DataFrame(cells, index=["x", "y", "z"])
    assert report.shown(table, ["a", "b", "c"]).to_dict("index") == {  # type: ignore[union-attr]
        "x": {"a": "1.0", "b": "–", "n": "3"},
        "z": {"a": "–", "b": "2.0", "n": "1"},
    }
    assert list(report.shown(table).index) == ["x", "y", "z"]  # type: ignore[union-attr]
    assert report.shown(table, ["c"]) is None and report.shown(table[["c"]]) is None
    assert table.loc["y", "a"] == gap  # the table that was given stays as it is


@pytest.mark.parametrize("page", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_a_page_says_at_most_once_that_something_has_not_been_run(page: Path) -> None:
    outputs = [out for c in json.loads(page.read_text())["cells"] for out in c.get("outputs", [])]
    said = 0
    for out in outputs:
        data = out.get("data", {})
        kinds = ("text/html", "text/markdown", "text/plain")
        text = next((data[kind] for kind in kinds if kind in data), out.get("text", ""))
        said += "".join(text).count(report.NOT_RUN)
    assert said <= 1


# --- tables of arms x tests, pictures -----------------------------------------------------------------------


SETTINGS = {"dataset": "digits", "ipc": 1, "method": "idc"}


def made(risk: str, seed: int, accuracy: list[float]) -> Record:
    return unmade(
        SETTINGS | {"risk": risk, "seed": seed}, {"accuracy": accuracy, "group_sizes": [50, 50]}, key=f"{risk}{seed}",
        seconds={"distill": 2.0}, peak_memory_mb=100.0, versions={"torch": "2"}, commit="c", results=0,
    )  # fmt: skip


RECORDS = [made(r, s, [50 + s + g, 52 + s + g]) for s in (2, 0, 1) for r, g in (("control", 0), ("upper", 1.5))]


def test_an_arm_has_its_values_by_seed_and_training() -> None:
    rows = tidy(RECORDS)
    assert (
        len(rows) == 12
        and set(rows["arm"]) == {"IDC, control", "IDC, upper tail"}
        and set(rows["test"]) == {"accuracy"}
    )
    assert report.values(rows, "IDC, control", "accuracy").to_numpy().tolist() == [[50, 52], [51, 53], [52, 54]]
    with pytest.raises(SettingError, match="arm = 'dm'"):
        report.values(rows, "dm", "accuracy")


def test_differences_of_arms_are_paired_by_seed() -> None:
    rows = tidy(RECORDS)
    found = report.differences(rows, "IDC, control", ["IDC, upper tail"], ["accuracy"]).iloc[0, 0]
    assert (found.mean, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))  # the seeds' spread cancels
    level = report.intervals(rows, ["IDC, control"], ["accuracy"]).iloc[0, 0]
    assert level.high - level.low > 3
    fewer = tidy([r for r in RECORDS if r.key != "upper2"])
    assert report.differences(fewer, "IDC, control", ["IDC, upper tail"], ["accuracy"]).iloc[0, 0].n == 2


def test_data_sets_and_images_a_class_are_never_mixed_in_one_interval() -> None:
    other = {"dataset": "cifar10", "seed": 7}
    elsewhere = dataclasses.replace(RECORDS[0], experiment=RECORDS[0].experiment | other)
    more = dataclasses.replace(RECORDS[0], experiment=RECORDS[0].experiment | {"ipc": 10})
    twice = dataclasses.replace(RECORDS[0], key="another")
    for added in (elsewhere, more, twice):
        with pytest.raises(SettingError, match="rows of one data set, IPC and run"):
            report.intervals(tidy([*RECORDS, added]), ["IDC, control"], ["accuracy"])


def test_null_uses_the_sizes_of_the_groups() -> None:
    assert 44 < report.nulls(RECORDS, "IDC, control").mean < 51


def test_another_results_version_is_called_stale() -> None:
    now = dataclasses.replace(RECORDS[0], results=provenance.RESULTS)
    assert report.provenance([RECORDS[1], now])["code"].tolist() == ["stale", "current"]


def test_tolerance_check_gives_the_same_text_everywhere_and_refuses_what_lies_outside() -> None:
    assert report.within("accuracy", 88.1, 87, 3) == report.within("accuracy", 86.2, 87, 3)
    for value in (83.9, 90.1, float("nan")):
        with pytest.raises(AssertionError, match="accuracy"):
            report.within("accuracy", value, 87, 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sheet_holds_every_image_at_its_place(channels: int) -> None:
    images = torch.rand(5, channels, 4, 4, generator=torch.Generator().manual_seed(0))
    picture = report.sheet(images, 3)
    assert picture.shape[:2] == (9, 14)
    fourth = picture[5:9, 0:4]
    expected = images[3].permute(1, 2, 0).numpy() if channels == 3 else images[3, 0].numpy()
    assert np.allclose(fourth, expected, atol=1e-6)
    assert (picture[4] == 1).all()  # the border
    assert np.allclose(report.sheet((images * 255).to(torch.uint8), 3), picture, atol=1 / 255)


def test_dots_draw_what_the_table_holds() -> None:
    rows = tidy(RECORDS)
    _, axes = plt.subplots()
    report.dots(axes, rows, ["IDC, control", "IDC, upper tail"], "accuracy")
    drawn = axes.lines[0].get_xdata()
    assert np.allclose(drawn, report.values(rows, "IDC, control", "accuracy").mean(axis=1))
    assert axes.get_xlabel() == "accuracy (%)" and [t.get_text() for t in axes.get_yticklabels()] == [
        "IDC, control",
        "IDC, upper tail",
    ]
    plt.close("all")


def test_a_difference_is_grey_where_two_are_equal_and_is_enlarged() -> None:
    one = torch.full((2, 1, 4, 4), 0.5)
    other = one.clone()
    other[1] += 0.1
    found = report.difference_map(one, other, 4)
    assert torch.allclose(found[0], torch.tensor(0.5, dtype=torch.float64))
    assert torch.allclose(found[1], torch.tensor(0.9, dtype=torch.float64))
    assert torch.allclose(report.difference_map(other, one, 4)[1], torch.tensor(0.1, dtype=torch.float64))
    assert report.difference_map(one, other, 100).max() == 1
    bytes_ = (torch.stack([one, other]) * 255).to(torch.uint8)
    assert torch.allclose(report.difference_map(*bytes_, 4), found, atol=0.02)
    with pytest.raises(SettingError, match="other"):
        report.difference_map(one, other[:1], 4)


def strip(made: str) -> np.ndarray:
    """The picture within the HTML of a slider, as grey levels."""
    source = re.search(r"base64,([^)]*)\)", made)
    assert source is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source[1]))).convert("L"))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_slider_holds_every_frame_and_says_which(channels: int) -> None:
    frames = [torch.full((6, channels, 8, 8), level) for level in (0.0, 0.4, 0.8)]
    made = report.slider(frames, 3, ["control", "<upper>"], ["0", "1", "2"], 'what "it" shows')
    picture = strip(made)
    height = 2 * 9 - 1 + 2  # two rows with a line between, and a line above and below
    assert picture.shape == (3 * height, 3 * 9 - 1)
    assert [int(picture[k * height + 4, 4]) for k in range(3)] == [0, 102, 204]
    assert 'max="2"' in made and 'data-steps="0|1|2"' in made and "<output>0</output>" in made
    assert "&lt;upper&gt;" in made and "<upper>" not in made
    assert 'aria-label="what &quot;it&quot; shows"' in made and "<script" not in made


def test_what_does_not_fit_a_slider_is_refused() -> None:
    frame = torch.zeros(4, 1, 8, 8)
    with pytest.raises(SettingError, match="steps"):
        report.slider([frame, frame], 2, ["a", "b"], ["0"], "alt")
    with pytest.raises(SettingError, match="steps"):
        report.slider([], 2, ["a", "b"], [], "alt")
    with pytest.raises(SettingError, match="frames"):
        report.slider([frame], 3, ["a", "b"], ["0"], "alt")


def test_a_row_of_differences_shows_every_seed_the_mean_and_the_paper() -> None:
    _, axes = plt.subplots()
    report.paired_row(axes, 2, [1.0, 2.0, 6.0], "red", paper=1.1)
    seeds, mean, *_, cross = axes.lines
    assert list(seeds.get_xdata()) == [1, 2, 6]
    assert (list(mean.get_xdata()), list(cross.get_xdata())) == ([3], [1.1])
    (bar,) = axes.containers[0].lines[2]
    low, high = bar.get_segments()[0][:, 0]
    told = mean_interval([1.0, 2.0, 6.0])
    assert (low, high) == pytest.approx((told.low, told.high))
    report.paired_row(axes, 1, [4.0], "red")  # one seed has no interval
    assert len(axes.containers) == 1
    plt.close()


def test_tests_are_named_in_words_on_either_side_of_a_table() -> None:
    one = Interval(1.0, 0.5, 1.5, 3)
    plain = pd.DataFrame({"cluster_min": [one], "noise_matched": [one]}, index=["IDC, upper tail"])
    found = report.worded(plain)
    assert list(found) == ["worst cluster", "noise matched"] and found.loc["IDC, upper tail", "worst cluster"] == str(
        one
    )
    pd.testing.assert_frame_equal(report.worded(plain.T), found.T)
