"""The pages for newcomers and on the paper: numbers are the paper's, drawings are what their script makes."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
from conftest import script

ROOT = Path(__file__).resolve().parent.parent
REPORTED = pd.read_csv(ROOT / "data" / "paper" / "reported.csv")
PAPER = (ROOT / "book" / "paper.md").read_text(encoding="utf-8")
NAMES = {"SVHN": "svhn", "CIFAR-10": "cifar10", "ImageNet-10": "imagenet10"}


def value(table: int, dataset: str, ipc: int, method: str, setting: str = "standard") -> float:
    chosen = REPORTED.query(
        "table == @table and dataset == @dataset and ipc == @ipc and method == @method and setting == @setting"
    )
    return float(chosen["value"].iloc[0])


def test_the_headline_table_is_table_1_of_the_paper() -> None:
    rows = re.findall(r"^\| (SVHN|CIFAR-10|ImageNet-10) \|(.*)\|$", PAPER, re.MULTILINE)
    there = REPORTED.query("table == 1 and method == 'idc_r'")
    assert len(rows) == len(there) == 8
    for name, cells in rows:
        ipc, *numbers = (cell.strip() for cell in cells.split("|"))
        for base, (low, high, gain) in zip(("idc", "glad"), (numbers[:3], numbers[3:]), strict=True):
            printed = [value(1, NAMES[name], int(ipc), method) for method in (base, f"{base}_r")]
            assert [low, high, gain] == [f"{printed[0]:.1f}", f"{printed[1]:.1f}", f"{printed[1] - printed[0]:+.1f}"]


def test_the_gains_of_the_worst_cluster_are_those_of_table_2() -> None:
    found = re.findall(
        r"printed gains are (\S+) for IDC and (\S+) for GLaD on CIFAR-10, and (\S+) and (\S+) on",
        " ".join(PAPER.split()),
    )
    pairs = [(dataset, base) for dataset in ("cifar10", "imagenet10") for base in ("idc", "glad")]
    gains = [value(2, d, 10, f"{b}_r", "cluster_min") - value(2, d, 10, b, "cluster_min") for d, b in pairs]
    assert list(found[0]) == [f"{gain:+.1f}" for gain in gains]


def test_every_comparison_with_a_base_method_is_a_gain() -> None:
    keys = ["table", "dataset", "setting", "ipc", "eval_arch", "metric", "method"]
    values = REPORTED[REPORTED["table"].isin([1, 2, 3, 5])].set_index(keys)["value"]
    with_term = values[values.index.get_level_values("method").str.endswith("_r")]
    gains = [number - values[(*place[:-1], place[-1].removesuffix("_r"))] for place, number in with_term.items()]
    assert len(gains) > 40 and min(gains) > 0


def test_the_drawings_are_what_the_script_makes() -> None:
    drawings = script("drawings")
    for name, draw in drawings.DRAWINGS.items():
        assert (drawings.FOLDER / name).read_text(encoding="utf-8") == draw()


def test_the_page_for_newcomers_is_a_page() -> None:
    text = (ROOT / "book" / "newcomers.md").read_text(encoding="utf-8")
    assert 700 <= len(text.split()) <= 1000
