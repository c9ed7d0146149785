"""Coverage distances against closed forms, their nulls against known sets, and the file that is kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rddlib.analysis import claims, coverage
from rddlib.analysis.report import Page
from rddlib.base import generator
from rddlib.data.dataset import load
from rddlib.distillation import synthetic
from rddlib.models.features import FeatureNet


def cloud(n: int, d: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=generator(seed, "cloud"), dtype=torch.float64)


def test_distance_and_unit_in_closed_form() -> None:
    real = torch.tensor([[0.0, 0.0], [0.0, 2.0], [4.0, 0.0]])
    assert coverage.nearest_distance(real, torch.tensor([[0.0, 1.0], [4.0, 3.0]])) == pytest.approx((1 + 1 + 3) / 3)
    assert coverage.spread(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == 1.0
    assert coverage.nearest_distance(real, real.mean(0, keepdim=True)) == pytest.approx(coverage.spread(real))


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.integers(1, 6), st.integers(0, 1000))
def test_more_images_never_cover_less(m: int, seed: int) -> None:
    real, made = cloud(30, seed=seed), cloud(m + 1, seed=seed + 1)
    assert coverage.nearest_distance(real, made) <= coverage.nearest_distance(real, made[:m]) + 1e-12
    assert coverage.nearest_distance(made, made) < 1e-6


def test_the_null_of_drawing_is_where_drawn_sets_lie() -> None:
    real, pool = cloud(200, seed=1), cloud(400, seed=2)
    null = coverage.central(coverage.drawn_null(real, pool, 10, 300))
    fresh = coverage.nearest_distance(real, cloud(10, seed=3))
    heaped = coverage.nearest_distance(real, pool[:1].repeat(10, 1) + 0.01 * cloud(10, seed=4))
    assert null.low < fresh < null.high < heaped
    assert (coverage.drawn_null(real, pool, 10, 5) == coverage.drawn_null(real, pool, 10, 5)).all()


def test_the_null_of_exchange_tells_alike_from_unlike() -> None:
    real = cloud(300, seed=1)
    a, b, heaped = cloud(12, seed=5), cloud(12, seed=6), cloud(12, seed=7) * 0.05

    def outside(one: torch.Tensor, other: torch.Tensor) -> bool:
        gap = coverage.nearest_distance(real, other) - coverage.nearest_distance(real, one)
        null = coverage.central(coverage.exchange_null(real, one, other, 400))
        return not null.low <= gap <= null.high

    assert not outside(a, b)
    assert outside(a, heaped)


def test_roughness_counts_steps_between_neighbours() -> None:
    board = torch.tensor([[0.0, 1.0], [1.0, 0.0]])[None, None]
    assert coverage.roughness(board) == 1.0 and coverage.roughness(torch.full((2, 3, 4, 4), 0.3)) == 0.0


def test_sets_are_measured_and_nothing_kept_is_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "DRAWS", 5)
    digits = load("digits", train_limit=300, test_limit=200)
    made = {s: synthetic.start(digits, 4, 1, generator(s, "start")) for s in (0, 1)}
    sets = {f"{method} {risk}{s}": {"made": made[s], "method": method, "risk": risk, "seed": s}
            for method in coverage.METHODS for risk in ("control", "upper") for s in (0, 1)}  # fmt: skip
    found = coverage.measure(digits, sets, FeatureNet(steps=5, batch=32, width=8))
    one, other = found["sets"]["idc control0"], found["sets"]["glad control0"]
    assert (one["moved"], one["rougher"], one["ipc"], one["factor"]) == (0.0, 0.0, 4, 1)  # the start itself
    assert other["coverage"] == one["coverage"] and "moved" not in other  # a generator has no start of pixels
    assert {s: len(v) for s, v in one["coverage"].items()} == {"feature": 10, "pixel": 10}
    assert np.shape(found["nulls"]["4x1"]["stored"]["pixel"]) == (5,)
    assert found["nulls"]["4x1"]["stored"] == found["nulls"]["4x1"]["whole"]  # nothing is shrunk at factor 1
    assert set(found["maps"]) == set(coverage.METHODS)
    for drawn in found["maps"].values():
        assert drawn["kind"].count("upper") == 4 and np.shape(drawn["points"])[0] == 2
        assert drawn["difference"] == 0.0 and drawn["exchange"][0] <= 0 <= drawn["exchange"][2]  # the same images
    text = coverage.write(tmp_path / "kept.json", found).read_text()
    assert json.loads(text)["sets"]["glad upper1"]["seed"] == 1 and "made" not in text
    assert len(text) < 60_000


def test_a_map_has_no_null_where_images_are_too_few_and_no_method_that_was_not_run() -> None:
    digits = load("digits", train_limit=300, test_limit=200)
    ruler = coverage.Ruler(digits, FeatureNet(steps=2, batch=32, width=8).train(digits).eval())
    one = {risk: {"made": synthetic.start(digits, 1, 1, generator(n, "start")), "method": "glad",
                       "risk": risk, "seed": 0} for n, risk in enumerate(("control", "upper"))}  # fmt: skip
    drawn = coverage.maps(ruler, one, "glad")
    assert "difference" in drawn and "exchange" not in drawn  # two deals are no null
    assert coverage.maps(ruler, one, "idc") == {}


def test_the_verdict_on_glad_reads_what_was_measured_of_its_sets(tmp_path: Path) -> None:
    """Claim f2-coverage-upper is about GLaD: its measure is coverage by the null of whole images."""
    about = {"method": "glad", "ipc": 10, "factor": 1, "coverage": {"feature": [1.1, 1.3]}}
    nulls = {"10x1": {"whole": {"feature": [1.5, 0.9]}, "stored": {"feature": [2.0, 2.0]}}}
    coverage.write(tmp_path / "a_laptop.json", {"sets": {"k": about}, "nulls": nulls})
    assert claims.measures(tmp_path)["k"]["coverage"] == pytest.approx(100.0)
    (row,) = [c for c in claims.read() if c.id == "f2-coverage-upper"]
    (comparison,) = claims.comparisons(row, {})
    plan = claims.Plan(["table1", "table2"])
    keys = {k for _, selector in comparison.terms for k in plan.select(selector, "laptop").values()}
    page = Page.of("table2", "laptop", "cifar10")  # the runs whose sets rddlib.analysis.coverage takes
    planned = {
        e.key for arm, own in coverage.arms_of(page, "cifar10", 10).items() if arm[0] == "glad" for e in own.planned
    }
    assert keys == planned and len(keys) == 10


def test_storing_as_tiles_blurs_and_keeps_the_number() -> None:
    images = torch.rand(9, 1, 8, 8, generator=generator(0, "images"))
    back = coverage._stored(images, 2)
    assert back.shape == (8, 1, 8, 8) and coverage.roughness(back) < coverage.roughness(images)
    assert torch.equal(coverage._stored(images, 1), images)


def test_each_number_of_images_a_class_has_a_file_of_its_own() -> None:
    assert coverage.file("cifar10", "laptop", 1) != coverage.file("cifar10", "laptop", 10)
    kept = json.loads(coverage.file("cifar10", "laptop", 10).read_text())
    assert {about["ipc"] for about in kept["sets"].values()} == {10}
