"""What is measured on a trained network: accuracy in groups, balanced or not, the worst of them, and its null."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rddlib import stats
from rddlib.base import digest, generator
from rddlib.data import dataset
from rddlib.data.dataset import DataSet
from rddlib.data.shifts import corrupted
from rddlib.evaluation import evaluate
from rddlib.evaluation import metrics as bench
from rddlib.evaluation.evaluate import EvaluateSettings
from rddlib.evaluation.groups import Partition
from rddlib.evaluation.metrics import TestBench
from rddlib.models import networks, training


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return dataset.load("digits", train_limit=100, test_limit=200)


def drawn(seed: int, n: int, k: int, c: int) -> tuple[torch.Tensor, Partition, torch.Tensor]:
    stream = generator(seed, "bench")
    groups = torch.randint(k, (n,), generator=stream)
    return (
        torch.rand(n, generator=stream) < 0.7,
        Partition(groups, k, digest(groups)),
        torch.randint(c, (n,), generator=stream),
    )


def test_group_accuracy_by_hand() -> None:
    correct = torch.tensor([True, False, True, True, False])
    found, sizes = bench.group_accuracy(correct, torch.tensor([0, 0, 1, 1, 1]), 3)
    assert found[:2] == pytest.approx([50, 200 / 3]) and found[2] is None  # no images, no accuracy
    assert sizes == [2, 3, 0]


@given(st.integers(0, 10**6), st.integers(1, 120), st.integers(1, 6), st.integers(1, 5))
@settings(deadline=None, derandomize=True, max_examples=60)
def test_balanced_accuracy_and_sizes_equal_a_plain_loop(seed: int, n: int, k: int, c: int) -> None:
    correct, part, labels = drawn(seed, n, k, c)
    found, sizes = bench.balanced_accuracy(correct, part, labels, c), bench.balanced_sizes(part, labels, c)
    for g in range(k):
        rates, inverse = [], []
        for y in range(c):
            mine = [bool(correct[i]) for i in range(n) if part.groups[i] == g and labels[i] == y]
            if len(mine) >= 5:
                rates.append(sum(mine) / len(mine))
                inverse.append(1 / len(mine))
        assert found[g] == pytest.approx(100 * sum(rates) / len(rates) if rates else 0)
        assert sizes[g] == (int(len(rates) ** 2 / sum(inverse) + 1e-9) if rates else 0)


def test_balance_takes_away_a_mixture_of_classes() -> None:
    """Class 0 is always right, class 1 never; one group is mostly class 0, the other mostly class 1."""
    labels = torch.tensor([0] * 90 + [1] * 10 + [0] * 10 + [1] * 90)
    part = Partition(torch.arange(200) // 100, 2, "")
    assert bench.group_accuracy(labels == 0, part.groups, 2)[0] == pytest.approx([90, 10])
    assert bench.balanced_accuracy(labels == 0, part, labels, 2) == pytest.approx([50, 50])
    assert bench.balanced_sizes(part, labels, 2) == [36, 36]  # 4 / (1/90 + 1/10)


def test_effective_size_gives_the_variance_of_the_mean_of_classes() -> None:
    part, labels = Partition(torch.zeros(60, dtype=torch.int64), 1, ""), torch.tensor([0] * 40 + [1] * 15 + [2] * 5)
    stream = generator(0, "variance")
    found = [
        bench.balanced_accuracy(torch.rand(60, generator=stream) < 0.6, part, labels, 3)[0] / 100 for _ in range(4000)
    ]
    assert np.var(found) == pytest.approx(0.6 * 0.4 / (9 / (1 / 40 + 1 / 15 + 1 / 5)), rel=0.08)


def test_an_empty_group_is_never_the_worst(digits: DataSet) -> None:
    tests = TestBench({"accuracy": digits.test_images}, {"odd": Partition(digits.test_labels, 12, "")}, False)
    net = evaluate.train(
        digits.train_images,
        digits.train_labels,
        digits,
        EvaluateSettings(eval_depth=2, eval_width=8, eval_steps=150),
        0,
    )
    found = tests.score(net, digits)
    assert found["odd_accuracy"][10:] == [None, None] and found["odd_min"] == min(found["odd_accuracy"][:10]) > 0


def test_scores_are_consistent(digits: DataSet) -> None:
    tests = TestBench.of(digits, k=4)
    settings = EvaluateSettings(eval_depth=2, eval_width=8, eval_steps=12, eval_batch=16)
    net = evaluate.train(digits.train_images, digits.train_labels, digits, settings, 0)
    found = tests.score(net, digits)
    sizes = tests.partitions["cluster"].sizes
    assert np.average(found["cluster_accuracy"], weights=sizes) == pytest.approx(found["accuracy"])
    assert found["cluster_min"] == min(found["cluster_accuracy"]) <= found["accuracy"]
    assert np.average(found["class_accuracy"], weights=tests.sizes(digits)["class"]) == pytest.approx(found["accuracy"])
    plain = [int(net(digits.normalise(x[None])).argmax()) for x in digits.test_images]
    assert found["accuracy"] == pytest.approx(100 * np.mean(np.array(plain) == digits.test_labels.numpy()))
    assert tests.facts(digits).keys() == {"group_sizes", "groups_sha256", "class_sizes"}


def test_every_minimum_has_its_null() -> None:
    """From the accuracies and sizes that a record holds, at the mean accuracy weighted by sizes."""
    metrics = {
        "accuracy": [60.0, 70.0], "cluster_accuracy": [[50.0, 80.0], [60.0, 90.0]], "cluster_min": [50.0, 60.0],
        "group_sizes": [200, 100], "balanced_accuracy": [[40.0, 60.0], [60.0, 40.0]], "balanced_min": [40.0, 40.0],
        "balanced_sizes": [30, 0],
    }  # fmt: skip
    found = bench.nulls(metrics)
    assert found == {
        "cluster_min": stats.minimum_null(65.0, [200, 100]),
        "balanced_min": stats.minimum_null(50.0, [30, 0]),
    }
    assert found["cluster_min"].low < found["cluster_min"].mean < 65


def test_corruptions_are_tested_on_a_fixed_balanced_choice(digits: DataSet) -> None:
    """Each metric is the accuracy on those images, against a plain count; nothing changes where they are not asked."""
    bench = TestBench.of(digits, 4, shifts=False, corruptions=True)
    assert (
        bench.chosen is not None
        and len(bench.corrupted) == 2 + 12 * 3
        and torch.equal(bench.chosen, bench.chosen.unique())
    )
    net = networks.build("convnet", digits.shape, digits.n_classes, depth=2, width=4, generator=generator(0)).eval()
    metrics = bench.score(net, digits)
    images = corrupted(digits.test_images[bench.chosen], "fog", 3)
    with torch.inference_mode():
        hits = [int(net(digits.normalise(x[None])).argmax()) == int(y)
                for x, y in zip(images, digits.test_labels[bench.chosen], strict=True)]  # fmt: skip
    assert metrics["fog_3"] == pytest.approx(100 * sum(hits) / len(hits))
    assert set(TestBench.of(digits, 4, shifts=False).score(net, digits)) == set(metrics) - set(bench.corrupted)


def test_groups_that_the_data_names_are_scored_by_hand() -> None:
    """Two groups of unlike size: accuracy in each, the worst, the gap, the worst class in a group, and the null."""
    whole = dataset.load("digits", test_limit=100)
    look = (torch.arange(100) % 4 == 0).long()
    named = dataclasses.replace(whole, test_groups=look)
    made = TestBench.of(named, k=2, shifts=False)
    net = networks.build("convnet", named.shape, 10, depth=2, width=4, generator=generator(0)).eval()
    scored = made.score(net, named) | made.facts(named)
    correct = training.predict(net, named.test_images, named) == named.test_labels
    by_hand = [100 * float(correct[look == g].double().mean()) for g in (0, 1)]
    assert scored["known_accuracy"] == pytest.approx(by_hand)
    assert scored["known_min"] == pytest.approx(min(by_hand))
    assert scored["known_gap"] == pytest.approx(max(by_hand) - min(by_hand))
    assert scored["known_sizes"] == [75, 25]
    cells = [(look == g) & (named.test_labels == c) for g in (0, 1) for c in range(10)]
    worst = min(100 * float(correct[cell].double().mean()) for cell in cells if cell.any())
    assert scored["known_class_min"] == pytest.approx(worst)
    lists = {name: [value] if not name.endswith("_sizes") else value for name, value in scored.items()}
    assert bench.nulls(lists)["known_min"].mean <= np.average(by_hand, weights=[75, 25])
    plain = TestBench.of(whole, k=2, shifts=False).score(net, whole)
    assert not any(name.startswith("known") for name in plain)


def test_balanced_is_left_out_where_no_class_counts_in_any_group() -> None:
    """Two test images a class are fewer than the five that a class needs: nothing is measured, so nothing is said."""
    few = dataset.load("digits", train_limit=100, test_limit=20)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    cluster = Partition(torch.arange(20) % 2, 2, "")
    found = TestBench({"accuracy": few.test_images}, {"cluster": cluster}, True).score(net, few)
    assert "cluster_min" in found and not {"balanced_min", "balanced_accuracy"} & set(found)
