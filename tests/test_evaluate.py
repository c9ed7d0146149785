"""Judging a set: seeds, resuming, audits and honest groups in one report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from rddlib.base import DivergenceError, SettingError, generator
from rddlib.data import dataset
from rddlib.data.dataset import DataSet
from rddlib.evaluation import evaluate, groups
from rddlib.evaluation.evaluate import EvaluateSettings
from rddlib.models.features import FeatureNet

SMALL = EvaluateSettings(eval_depth=2, eval_width=8, eval_steps=12, eval_batch=16, eval_seeds=2, eval_groups=4)
AUDITED = dataclasses.replace(SMALL, eval_audit=3)


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return dataset.load("digits", train_limit=100, test_limit=200)


def test_evaluation_learns_and_seeds_differ(digits: DataSet) -> None:
    settings = dataclasses.replace(SMALL, eval_steps=100, eval_batch=32, eval_shifts=False)
    found = evaluate.evaluate(digits.train_images, digits.train_labels, digits, settings, seed=0)
    assert min(found["accuracy"]) > 45 and found["accuracy"][0] != found["accuracy"][1]
    again = evaluate.evaluate(digits.train_images, digits.train_labels, digits, settings, seed=0)
    assert found == again
    shuffled = digits.train_labels[torch.randperm(100, generator=generator(1))]
    wrong = evaluate.evaluate(digits.train_images, shuffled, digits, settings, seed=0)
    assert max(wrong["accuracy"]) < 30  # the score comes from the labels, not from the bench


def test_finished_trainings_are_not_repeated(digits: DataSet) -> None:
    """The audit's rows too, as JSON has kept them."""
    x, y = digits.train_images[:50], digits.train_labels[:50]
    rows, calls = [], []
    whole = evaluate.evaluate(x, y, digits, AUDITED, 0, on_seed=lambda r: rows.append(list(r)))
    done = json.loads(json.dumps(rows[0]))
    resumed = evaluate.evaluate(x, y, digits, AUDITED, 0, done=done, on_seed=lambda r: calls.append(len(r)))
    assert resumed == whole and calls == [2]


# --- what can be asked for --------------------------------------------------------------------------------


@pytest.fixture
def small_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network for the honest groups that is trained in a blink."""
    monkeypatch.setattr(groups, "FeatureNet", lambda: FeatureNet(width=4, steps=3, batch=32))


@pytest.mark.usefixtures("small_features")
def test_everything_asked_for_stands_beside_the_same_numbers(digits: DataSet, tmp_path: Path) -> None:
    """Honest groups and the audit add metrics and move none: the training is the same bit for bit."""
    x, y = digits.train_images[:50], digits.train_labels[:50]
    plain = evaluate.evaluate(x, y, digits, SMALL, 0)
    assert plain["steps"] == 12 and not any("feature" in name or "audit" in name for name in plain)
    asked = dataclasses.replace(SMALL, eval_honest_groups=True, eval_audit=5)
    full = evaluate.evaluate(x, y, digits, asked, 0, [tmp_path])
    assert {name: full[name] for name in plain} == plain
    for kind in ("feature_class", "feature", "balanced"):
        assert len(full[f"{kind}_min"]) == 2 and sum(full[f"{kind}_sizes"]) <= 200
        for least, each in zip(full[f"{kind}_min"], full[f"{kind}_accuracy"], strict=True):
            assert least == min(a for a, n in zip(each, full[f"{kind}_sizes"], strict=True) if n)
    assert full["audit_steps"] == [2, 4, 7, 9, 12] and full["audit_last"] == full["accuracy"]
    assert len(list(tmp_path.glob("feature*.npz"))) == 2 and len(full["feature_sha256"]) == 64


def test_networks_judged_together_are_those_judged_in_turn(digits: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same report but for rounding, a first result that is there already included."""
    x, y = digits.train_images[:50], digits.train_labels[:50]
    asked, rows = dataclasses.replace(SMALL, eval_seeds=3), []
    in_turn = evaluate.evaluate(x, y, digits, asked, 0, on_seed=lambda r: rows.append(list(r)))
    monkeypatch.setattr(evaluate, "side_by_side", lambda *_: True)
    together = evaluate.evaluate(x, y, digits, asked, 0, done=rows[0])
    assert together.keys() == in_turn.keys()
    assert together["accuracy"][0] == in_turn["accuracy"][0]
    for name in ("accuracy", "cluster_min", "class_min", "noise"):
        torch.testing.assert_close(torch.tensor(together[name]), torch.tensor(in_turn[name]), rtol=0, atol=2.0)


def test_trainings_run_side_by_side_where_they_can() -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert evaluate.side_by_side(SMALL, cuda) and not evaluate.side_by_side(SMALL, cpu)
    for change in ({"eval_network": "vit"}, {"eval_audit": 2}):
        assert not evaluate.side_by_side(dataclasses.replace(SMALL, **change), cuda)


def test_steps_are_matched_unless_asked_to_grow(digits: DataSet) -> None:
    """100 images in batches of 16 are seven a pass; at factor 2 they come from 25, two a pass: 3.5 times as many."""
    x, y = digits.train_images, digits.train_labels
    grown = dataclasses.replace(SMALL, eval_scale_steps=True, eval_seeds=1, eval_shifts=False)
    for settings, factor, steps in ((SMALL, 2, 12), (grown, 1, 12), (grown, 2, 42)):
        one = dataclasses.replace(settings, eval_seeds=1, eval_shifts=False)
        assert evaluate.evaluate(x, y, digits, one, 0, factor=factor)["steps"] == steps


@pytest.mark.parametrize("recipe", ["idc", "glad"])
def test_a_training_that_diverges_gives_no_accuracy(digits: DataSet, recipe: str) -> None:
    settings = dataclasses.replace(SMALL, eval_recipe=recipe, eval_lr=1e20)
    with pytest.raises(DivergenceError, match=r"not finite after \d+ updates\. A smaller eval_lr \(now 1e\+20\)"):
        evaluate.evaluate(digits.train_images, digits.train_labels, digits, settings, 0)


def test_what_the_data_cannot_serve_is_refused_before_training(
    digits: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "train", lambda *_: pytest.fail("work was done"))
    monkeypatch.setattr(FeatureNet, "train", lambda *_: pytest.fail("work was done"))
    x, y = digits.train_images, digits.train_labels
    for change, name in (({"eval_audit": 2}, "eval_audit"), ({"eval_groups": 201}, "eval_groups")):
        with pytest.raises(SettingError, match=f"{name} = "):
            evaluate.evaluate(x, y, digits, dataclasses.replace(SMALL, **change), 0)
    few = dataclasses.replace(digits, test_images=digits.test_images[:9], test_labels=digits.test_labels[:9])
    small = dataset.load("digits", size=6, train_limit=30, test_limit=20)
    asked = dataclasses.replace(SMALL, eval_corruptions=True, eval_depth=1)
    assert [str(e) for e in evaluate.conflicts(small, asked)] == [
        "eval_corruptions = True: allowed is false for images of 6 pixels a side (least: 8)"
    ]
    with pytest.raises(SettingError, match="eval_honest_groups = True"):
        evaluate.evaluate(x, y, few, dataclasses.replace(SMALL, eval_honest_groups=True), 0)
    (conflict,) = evaluate.conflicts(digits, dataclasses.replace(SMALL, eval_audit=2), whole=True)
    assert conflict.name == "eval_audit"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eval_steps", 0),
        ("eval_lr", 0.0),
        ("eval_part", "train"),
        ("eval_groups", 1),
        ("eval_shifts", "yes"),
        ("eval_cutmix", 1.5),
        ("eval_recipe", "dsa"),
        ("eval_audit", 13),
        ("eval_audit", -1),
    ],
)
def test_settings_out_of_range(name: str, value: object) -> None:
    with pytest.raises(SettingError, match=f"{name} = "):
        dataclasses.replace(SMALL, **{name: value})
