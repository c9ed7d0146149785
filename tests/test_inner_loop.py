"""The loop watched from inside: the same run, the weights of the term, and what is kept of CIFAR-10."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny

from rddlib.analysis import inner_loop
from rddlib.analysis.inner_loop import WatchedLoop
from rddlib.data.dataset import load
from rddlib.distillation import clusters, distill, loop
from rddlib.distillation.glad import prior
from rddlib.experiments.records import Store
from rddlib.risk import RiskTerm, group_cvar, group_risk

UPPER = dataclasses.replace(tiny(risk="upper"), ipc=4, centres_in_all=5, inner_steps=3, alpha=0.5)
DIGITS = load("digits", train_limit=300, test_limit=100)


@pytest.mark.parametrize("tail", ["upper", "lower"])
def test_the_weights_are_the_derivative_of_the_term(tail: str) -> None:
    term = RiskTerm.preset(tail, alpha=0.5)
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0, 9.0, 7.0], dtype=torch.float64)
    groups = torch.tensor([0, 0, 0, 0, 1, 1])
    found = inner_loop.term_weights(losses, groups, 2, term)
    step = 1e-6
    for i, weight in enumerate(found.tolist()):
        moved = losses + step * torch.eye(6, dtype=torch.float64)[i]
        slope = (group_risk(moved, groups, 2, term) - group_risk(losses, groups, 2, term)) / step
        assert weight == pytest.approx(float(slope), abs=1e-6)
    # average: half a group's share; worst (the second group): all of it, on one image, half of two
    expected = {"upper": [0, 0, 0.25, 0.25, 1.5, 0], "lower": [0.25, 0.25, 0, 0, 0, 1.5]}
    assert found.tolist() == pytest.approx(expected[tail])


def test_a_watched_outer_step_is_the_outer_step() -> None:
    seen: list[int] = []
    source = prior.load("none", DIGITS, 1, "latent")
    plain = loop.outer_step(DIGITS, UPPER, distill.begin(DIGITS, UPPER, source), source)

    def look(watched: WatchedLoop) -> None:
        seen.append(watched.updates)
        watched.probe(50)
        watched.every_image()

    watched = inner_loop.watch(DIGITS, UPPER, look, every=4)
    assert seen == [0, 4, 5]  # of six updates
    assert torch.equal(watched.codes["pixels"], plain.codes["pixels"])
    sizes = {"group_size_median", "groups_empty"}  # means over more batches than the first and the last
    assert {k: v for k, v in watched.history[0].items() if k not in sizes} == {
        k: v for k, v in plain.history[0].items() if k not in sizes
    }


def test_every_image_has_its_nearest_centre_its_loss_and_its_weight() -> None:
    frames = []

    def look(watched: WatchedLoop) -> None:
        with torch.no_grad():
            points = watched.net.embed(DIGITS.normalise(DIGITS.train_images))
            centres = watched.net.embed(DIGITS.normalise(watched.stored().images[watched.centres]))
            owner = watched.centres // UPPER.ipc
            own = clusters.assign(points, DIGITS.train_labels, centres, owner)
        frames.append((watched.every_image(), own, torch.cdist(points, centres).amin(1)))

    inner_loop.watch(DIGITS, UPPER, look, every=100)
    for frame, own, distance in frames:
        assert np.array_equal(frame["group"], own)
        assert np.array_equal(frame["label"], DIGITS.train_labels)
        assert np.allclose(frame["distance"], distance, atol=1e-3)
        assert frame["weight"].mean() == pytest.approx(1, abs=1e-4)
        values, counts = group_cvar(torch.tensor(frame["loss"].tolist()), own, 5, UPPER.alpha)
        share = frame.groupby("group")["weight"].sum() / len(frame)
        there = int((counts > 0).sum())
        assert share.idxmax() == int(values.argmax())
        assert share.max() == pytest.approx((1 + 1 / there) / 2, abs=1e-4)  # what the pages say of ten groups: 55 %


def test_measurements_are_kept_one_by_one_and_not_made_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = [dataclasses.replace(tiny(), seed=100), dataclasses.replace(UPPER, seed=100)]
    path = tmp_path / "loop" / "kept.json"
    inner_loop.main(path, planned[:1])
    first = inner_loop.read(path)
    measured = []
    measure = inner_loop.measure
    monkeypatch.setattr(inner_loop, "measure", lambda *given: measured.append(given[1]) or measure(*given))
    inner_loop.main(path, planned)
    kept = inner_loop.read(path)
    assert measured == planned[1:] and kept[planned[0].key] == first[planned[0].key]
    control, upper = kept[planned[0].key], kept[planned[1].key]
    assert "gradient_ratio" not in control and "groups" not in control
    assert upper["updates"] == [0, 5] and len(upper["accuracy"]) == len(upper["gradient_cosine"]) == 2
    for name in inner_loop.COLUMNS:
        assert upper[name][0] == pytest.approx(upper["history"][f"{name}_first"], abs=1e-5)
        assert upper[name][1] == pytest.approx(upper["history"][f"{name}_last"], abs=1e-5)
    assert sum(row["size"] for row in upper["groups"]) == 1078
    assert sum(row["weight"] for row in upper["groups"]) == pytest.approx(1, abs=1e-4)
    frame = inner_loop.table(kept)
    assert frame.groupby("arm", sort=False)["seed"].first().to_dict() == {"control": 100, "upper, 5 groups": 100}
    assert frame["accuracy"].iloc[0] == pytest.approx(100 * control["accuracy"][0])


def test_without_measurements_there_is_a_table_without_rows(tmp_path: Path) -> None:
    found = inner_loop.read(tmp_path / "none.json")
    assert found == {} and {"arm", "seed", "updates", "gradient_ratio"} <= set(inner_loop.table(found))


def test_what_is_kept_of_cifar_is_of_the_planned_runs_and_agrees_with_their_records() -> None:
    """The first network of a record is trained by the same draws; rounding on another day is all that may differ."""
    kept = inner_loop.read()
    planned = {e.key: e for e in inner_loop.experiments()}
    assert kept and set(kept) <= set(planned)
    compared = 0
    for key, run in kept.items():
        assert (run["seed"], run["lr_image"]) == (planned[key].seed, planned[key].lr_image)
        assert (run["updates"][0], run["updates"][-1], len(run["accuracy"])) == (0, 799, 41)
        record = Store().find(key)
        if record is not None:
            compared += 1
            for name in ("cross_entropy", "risk", "gradient_ratio_first", "gradient_cosine_first"):
                if name in record.history[0]:
                    assert run["history"][name] == pytest.approx(record.history[0][name], rel=0.02), (key, name)
    assert compared
    text = json.dumps(kept)
    assert len(text) < 100_000 and "png" not in text
