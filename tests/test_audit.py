"""The selection audit: which images it validates on, when it looks, what it reports."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rddlib.base import SettingError
from rddlib.data import dataset
from rddlib.data.dataset import DataSet
from rddlib.evaluation import best_step


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return dataset.load("digits", train_limit=200, test_limit=100)


@given(st.integers(1, 500), st.integers(1, 50))
@settings(deadline=None, derandomize=True)
def test_checkpoints_are_even_and_end_with_the_training(steps: int, n: int) -> None:
    found = best_step.checkpoints(steps, min(n, steps))
    gaps = np.diff([0, *found])
    assert len(found) == min(n, steps) and found[-1] == steps and gaps.min() >= 1 and gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("form", ["uint8", "float"])
def test_validation_images_are_fixed_stratified_and_not_in_the_set(digits: DataSet, form: str) -> None:
    small = digits.train_images[:120] if form == "uint8" else digits.train_images[:120].float() / 255
    images, labels = best_step.held_out(digits, small)
    rows = {x.numpy().tobytes(): int(y) for x, y in zip(digits.train_images, digits.train_labels, strict=True)}
    assert all(rows[x.numpy().tobytes()] == int(y) for x, y in zip(images, labels, strict=True))
    assert not {x.numpy().tobytes() for x in images} & {x.numpy().tobytes() for x in digits.train_images[:120]}
    left = digits.train_labels[120:].bincount(minlength=10)
    assert (labels.bincount(minlength=10) - 20 * left / 80).abs().max() <= 0.5  # a tenth of 200, in the shares left
    again = best_step.held_out(digits, small)
    assert torch.equal(images, again[0]) and torch.equal(labels, again[1])


def test_validation_is_at_most_so_many(digits: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(best_step, "MOST", 10)
    assert len(best_step.held_out(digits, digits.train_images[:10])[0]) == pytest.approx(10, abs=3)


def test_no_image_left_is_refused(digits: DataSet) -> None:
    but_nines = digits.train_images[digits.train_labels == 9]
    for taken in (digits.train_images, but_nines):
        with pytest.raises(SettingError, match="eval_audit"):
            best_step.held_out(digits, taken)


def test_a_set_so_small_that_a_tenth_is_nothing_is_still_served(digits: DataSet) -> None:
    few = dataclasses.replace(digits, train_images=digits.train_images[:40], train_labels=digits.train_labels[:40])
    first = torch.tensor([int((few.train_labels == c).nonzero()[0]) for c in range(10)])
    assert len(best_step.held_out(few, few.train_images[first])[0]) >= 1


class Says(torch.nn.Module):
    """Answers a fixed list of classes in order, whatever it sees; after the last it begins again."""

    def __init__(self, answers: torch.Tensor) -> None:
        super().__init__()
        self.answers = answers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        now, self.answers = self.answers[: len(x)], self.answers.roll(-len(x))
        return torch.nn.functional.one_hot(now, 10).float()


def test_choice_is_by_validation_and_the_first_of_equals(digits: DataSet) -> None:
    labels = digits.test_labels
    looker = best_step.Audit(digits, digits.test_images, labels.roll(1))  # other labels: validation and test disagree

    def right_on(n_test: int, n_valid: int) -> Says:
        """Right on n_test test images and n_valid validation images, wrong on the rest."""
        apart = (labels != labels.roll(1)).nonzero().flatten()
        answers = torch.tensor([min({0, 1, 2} - {int(labels[i]), int(labels.roll(1)[i])}) for i in range(len(labels))])
        answers[apart[:n_test]] = labels[apart[:n_test]]
        picked = apart[n_test : n_test + n_valid]
        answers[picked] = labels.roll(1)[picked]
        return Says(answers)

    for step, (n_test, n_valid) in enumerate([(10, 20), (40, 5), (25, 30), (15, 30), (20, 10)], 1):
        looker(step, right_on(n_test, n_valid))
    row = looker.row()
    assert row["audit_test"] == [10, 40, 25, 15, 20] and row["audit_validation"] == [20, 5, 30, 30, 10]
    assert (row["audit_last"], row["audit_chosen"], row["audit_best"]) == (20, 25, 40)
