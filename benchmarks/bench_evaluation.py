"""Evaluation of a distilled set: five networks trained and tested, the plain loop against the library's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from measure import Work, in_turn, random_data
from plain import ImageList, PlainNet, Trainer

from rddlib import nets, recipes
from rddlib.base import generator
from rddlib.recipes import Training

NETWORKS = 5
CASES = {  # name: (width, updates, test images); at full size 7,000 updates and 10,000 images, about as 8 : 200
    "ConvNet-3, width 128": (128, 4, 100),
    "ConvNet-3, width 32": (32, 8, 200),
}
LIMITS = {"ConvNet-3, width 128": 1.3, "ConvNet-3, width 32": 1.7}


def work(kind: str, width: int, updates: int, tests: int) -> Work:
    """Train `NETWORKS` networks for `updates` updates of 64 of 400 images, and test each; returns accuracies."""
    data = random_data(400)
    images, labels = data.train_images.float() / 255, data.train_labels
    how = Training(steps=updates)

    def built(seed: int) -> torch.nn.Module:
        return nets.build("convnet", data.shape, 10, width=width, generator=generator(seed, "net"))

    def ours(seed: int) -> float:
        net = recipes.train(built(seed), images, labels, data, how, seed)
        correct = recipes.predict(net, data.test_images[:tests], data) == data.test_labels[:tests]
        return 100 * float(correct.double().mean())

    if kind == "library":
        return lambda: [ours(seed) for seed in range(NETWORKS)]
    listed = ImageList(images, labels, 10)
    tested = ImageList(data.test_images[:tests], data.test_labels[:tests], 10)

    def plainly(seed: int) -> float:
        trainer = Trainer(PlainNet(built(seed)), data, how.augment, how.cutmix, generator(seed, "evaluate", "augment"))
        for step, index in enumerate(recipes.batches(400, how.batch, updates, generator(seed, "evaluate", "order"))):
            trainer.optimiser.param_groups[0]["lr"] = recipes.rate("idc", how.lr, step, updates)
            trainer.step(*listed.batch(index))
        return trainer.test(tested)

    return lambda: [plainly(seed) for seed in range(NETWORKS)]


def results(repeats: int, threads: int = 1) -> dict[str, Any]:
    """One entry a case."""
    return {case: in_turn(work, arguments, repeats, threads) for case, arguments in CASES.items()}


def test_both_find_the_same_accuracies() -> None:
    torch.set_num_threads(1)
    plainly, library = (work(kind, 8, 4, 200)() for kind in ("reference", "library"))
    assert library == pytest.approx(plainly, abs=1.0)  # two of 200 predictions may sit on the edge


@pytest.mark.parametrize("case", ["ConvNet-3, width 32"])
def test_evaluation_is_faster(benchmark: Any, case: str) -> None:
    found = benchmark.pedantic(in_turn, (work, CASES[case], 3), rounds=1)
    assert found["ratio"]["median"] >= LIMITS[case]
