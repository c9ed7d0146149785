"""Training and testing: the recipe against a plain loop, the shifts as released, groups counted right."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter

from rddlib import audit, augment, bench, corrupt, data, evaluate, nets, recipes
from rddlib.base import SettingError, generator
from rddlib.data import DataSet
from rddlib.bench import TestBench
from rddlib.evaluate import EvaluateSettings

SMALL = EvaluateSettings(eval_depth=2, eval_width=8, eval_steps=12, eval_batch=16, eval_seeds=2, eval_groups=4)


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return data.load("digits", train_limit=100, test_limit=200)


def test_training_equals_a_plain_loop(digits: DataSet) -> None:
    """Same draws, torch's SGD, the rate set by hand: times 0.2 after two thirds and five sixths of the steps."""
    x, y = digits.train_images, digits.train_labels
    net = evaluate.train(x, y, digits, SMALL, seed=3)
    order, stream = generator(3, "evaluate", "order"), generator(3, "evaluate", "augment")
    plain = nets.build("convnet", (1, 8, 8), 10, depth=2, width=8, generator=generator(3, "evaluate", "net"))
    optimiser = torch.optim.SGD(plain.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    step, pending = 0, []
    while step < SMALL.eval_steps:
        pending = pending or list(torch.randperm(100, generator=order).split(16))
        index = pending.pop(0)
        optimiser.param_groups[0]["lr"] = 0.01 * 0.2 ** ((step >= 8) + (step >= 10))
        batch, label = digits.normalise(x[index]), y[index]
        batch = augment.apply(batch, augment.draw(SMALL.eval_augment, len(batch), 8, stream))
        batch, partner, share = augment.cutmix(batch, stream, 0.5)
        logits = plain(batch)
        loss = share * F.cross_entropy(logits, label) + (1 - share) * F.cross_entropy(logits, label[partner])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        step += 1
    for a, b in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_batches_are_reshuffled_passes() -> None:
    found = recipes.batches(10, 4, 7, generator(0))
    assert [len(b) for b in found] == [4, 4, 2, 4, 4, 2, 4]
    assert sorted(torch.cat(found[:3]).tolist()) == sorted(torch.cat(found[3:6]).tolist()) == list(range(10))
    assert torch.cat(found[:3]).tolist() != torch.cat(found[3:6]).tolist()


def test_every_set_gets_the_same_number_of_updates(digits: DataSet) -> None:
    assert len(recipes.batches(3, 64, 20, generator(0))) == len(recipes.batches(1000, 64, 20, generator(0))) == 20


def test_evaluation_learns_and_seeds_differ(digits: DataSet) -> None:
    settings = dataclasses.replace(SMALL, eval_steps=150, eval_batch=32)
    found = evaluate.evaluate(digits.train_images, digits.train_labels, digits, settings, seed=0)
    assert min(found["accuracy"]) > 45 and found["accuracy"][0] != found["accuracy"][1]
    again = evaluate.evaluate(digits.train_images, digits.train_labels, digits, settings, seed=0)
    assert found == again
    shuffled = digits.train_labels[torch.randperm(100, generator=generator(1))]
    wrong = evaluate.evaluate(digits.train_images, shuffled, digits, settings, seed=0)
    assert max(wrong["accuracy"]) < 30  # the score comes from the labels, not from the bench


def test_finished_trainings_are_not_repeated(digits: DataSet) -> None:
    rows: list = []
    whole = evaluate.evaluate(
        digits.train_images, digits.train_labels, digits, SMALL, 0, on_seed=lambda r: rows.append(list(r))
    )
    calls: list = []
    resumed = evaluate.evaluate(
        digits.train_images, digits.train_labels, digits, SMALL, 0, done=rows[0], on_seed=lambda r: calls.append(len(r))
    )
    assert resumed == whole and calls == [2]


def test_group_accuracy_by_hand() -> None:
    correct = torch.tensor([True, False, True, True, False])
    found, sizes = bench.group_accuracy(correct, torch.tensor([0, 0, 1, 1, 1]), 3)
    assert found == pytest.approx([50, 200 / 3, 0]) and sizes == [2, 3, 0]


def test_scores_are_consistent(digits: DataSet) -> None:
    tests = TestBench.of(digits, k=4)
    net = evaluate.train(digits.train_images, digits.train_labels, digits, SMALL, 0)
    found = tests.score(net, digits)
    sizes = tests.partitions["cluster"].sizes
    assert np.average(found["cluster_accuracy"], weights=sizes) == pytest.approx(found["accuracy"])
    assert found["cluster_min"] == min(found["cluster_accuracy"]) <= found["accuracy"]
    assert np.average(found["class_accuracy"], weights=digits.test_labels.bincount()) == pytest.approx(
        found["accuracy"]
    )
    plain = [int(net(digits.normalise(x[None])).argmax()) for x in digits.test_images]
    assert found["accuracy"] == pytest.approx(100 * np.mean(np.array(plain) == digits.test_labels.numpy()))


def test_noise_has_the_released_variance_and_a_seed() -> None:
    grey = torch.full((20, 3, 32, 32), 128, dtype=torch.uint8)
    noisy = corrupt.shifted(grey, "noise")
    assert ((noisy.double() - 128) / 255).var().item() == pytest.approx(0.005, rel=0.03)
    assert torch.equal(noisy, corrupt.shifted(grey, "noise")) and not torch.equal(
        noisy, corrupt.shifted(grey, "noise", seed=1)
    )
    assert corrupt.shifted(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "noise").min() == 0  # clipped, not wrapped


def test_blur_is_pillows_on_the_colour_image() -> None:
    image = torch.randint(0, 256, (2, 3, 16, 16), generator=generator(0), dtype=torch.uint8)
    for x, soft in zip(image, corrupt.shifted(image, "blur"), strict=True):
        whole = Image.fromarray(x.permute(1, 2, 0).numpy()).filter(ImageFilter.GaussianBlur(radius=2))
        assert torch.equal(soft.permute(1, 2, 0), torch.from_numpy(np.array(whole)))


def test_invert_twice_is_nothing() -> None:
    image = torch.randint(0, 256, (2, 1, 8, 8), generator=generator(0), dtype=torch.uint8)
    assert torch.equal(corrupt.shifted(corrupt.shifted(image, "invert"), "invert"), image)
    assert (corrupt.shifted(image, "invert").int() + image.int() == 255).all()
    with pytest.raises(SettingError, match="kind = 'fog'"):
        corrupt.shifted(image, "fog")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eval_steps", 0),
        ("eval_lr", 0.0),
        ("eval_part", "train"),
        ("eval_groups", 1),
        ("eval_shifts", "yes"),
        ("eval_cutmix", 1.5),
    ],
)
def test_settings_out_of_range(name: str, value: object) -> None:
    with pytest.raises(SettingError, match=f"{name} = "):
        dataclasses.replace(SMALL, **{name: value})
