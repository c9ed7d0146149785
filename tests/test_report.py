"""What a reader sees follows from the records."""

from __future__ import annotations

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import unmade

from rddlib.analysis import report
from rddlib.analysis.results import tidy
from rddlib.base import SettingError
from rddlib.experiments import provenance
from rddlib.experiments.records import Record

SETTINGS = {"dataset": "digits", "ipc": 1, "method": "idc"}


def record(risk: str, seed: int, accuracy: list[float]) -> Record:
    return unmade(
        SETTINGS | {"risk": risk, "seed": seed}, {"accuracy": accuracy, "group_sizes": [50, 50]}, key=f"{risk}{seed}",
        seconds={"distill": 2.0}, peak_memory_mb=100.0, versions={"torch": "2"}, commit="c", results=0,
    )  # fmt: skip


RECORDS = [record(r, s, [50 + s + g, 52 + s + g]) for s in (2, 0, 1) for r, g in (("control", 0), ("upper", 1.5))]


def test_an_arm_has_its_values_by_seed_and_training() -> None:
    rows = tidy(RECORDS)
    assert len(rows) == 12 and set(rows["arm"]) == {"idc control", "idc upper"} and set(rows["test"]) == {"accuracy"}
    assert report.values(rows, "idc control", "accuracy").to_numpy().tolist() == [[50, 52], [51, 53], [52, 54]]
    with pytest.raises(SettingError, match="arm = 'dm'"):
        report.values(rows, "dm", "accuracy")


def test_differences_are_paired_by_seed() -> None:
    rows = tidy(RECORDS)
    found = report.differences(rows, "idc control", ["idc upper"], ["accuracy"]).iloc[0, 0]
    assert (found.mean, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))  # the seeds' spread cancels
    level = report.intervals(rows, ["idc control"], ["accuracy"]).iloc[0, 0]
    assert level.high - level.low > 3
    fewer = tidy([r for r in RECORDS if r.key != "upper2"])
    assert report.differences(fewer, "idc control", ["idc upper"], ["accuracy"]).iloc[0, 0].n == 2


def test_data_sets_and_images_a_class_are_never_mixed_in_one_interval() -> None:
    other = {"dataset": "cifar10", "seed": 7}
    elsewhere = dataclasses.replace(RECORDS[0], experiment=RECORDS[0].experiment | other)
    more = dataclasses.replace(RECORDS[0], experiment=RECORDS[0].experiment | {"ipc": 10})
    twice = dataclasses.replace(RECORDS[0], key="another")
    for added in (elsewhere, more, twice):
        with pytest.raises(SettingError, match="rows of one data set, IPC and run"):
            report.intervals(tidy([*RECORDS, added]), ["idc control"], ["accuracy"])


def test_null_uses_the_sizes_of_the_groups() -> None:
    assert 44 < report.nulls(RECORDS, "idc control").mean < 51


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
    report.dots(axes, rows, ["idc control", "idc upper"], "accuracy")
    drawn = axes.lines[0].get_xdata()
    assert np.allclose(drawn, report.values(rows, "idc control", "accuracy").mean(axis=1))
    assert axes.get_xlabel() == "accuracy (%)" and [t.get_text() for t in axes.get_yticklabels()] == [
        "idc control",
        "idc upper",
    ]
    plt.close("all")


def test_colours_are_told_apart_in_grey_too() -> None:
    rgb = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in report.COLOURS])
    assert len({tuple(c) for c in rgb}) == 8
    luminance = rgb @ [0.2126, 0.7152, 0.0722]
    assert np.ptp(luminance) > 150
