"""Evaluation of a distilled set: five networks trained and tested, the plain loop against the library's."""

from __future__ import annotations

from typing import Any

import torch
from measure import How, Work, in_turn, random_data
from plain import ImageList, PlainNet, Trainer

from rddlib.base import generator
from rddlib.models import networks as nets
from rddlib.models import training
from rddlib.models.training import Training

# name: (networks, width, updates, test images). 10,000 images are tested after 7,000 updates as published, 1,000 at
# laptop scale; what is measured here has the same proportions.
CASES: dict[str, tuple[Any, ...]] = {
    "5 networks, ConvNet-3, width 128": (5, 128, 4, 6),
    "5 networks, ConvNet-3, width 128, bfloat16 products": (5, 128, 4, 6, "bfloat16"),
    "5 networks, ConvNet-3, width 32": (5, 32, 8, 80),
}
QUICK = {"5 networks, ConvNet-3, width 128": (2, 8, 1, 50)}
LIMITS = {"5 networks, ConvNet-3, width 128": 1.3, "5 networks, ConvNet-3, width 32": 1.2}
LIMITS |= {"5 networks, ConvNet-3, width 128, bfloat16 products": 0.3}


def work(
    kind: str, device: str, networks: int, width: int, updates: int, tests: int, precision: str = "float32"
) -> Work:
    """Train `networks` networks for `updates` updates of 64 of 400 images, and test each; returns accuracies."""
    data = random_data(400, device=device)
    images, labels = data.train_images.float() / 255, data.train_labels
    how = Training(steps=updates)

    def built(seed: int) -> torch.nn.Module:
        return nets.build("convnet", data.shape, 10, width=width, generator=generator(seed, "net"))

    def ours(seed: int) -> float:
        with nets.arithmetic(precision, images.device):
            net = training.train(built(seed).to(device), images, labels, data, how, seed)
            correct = training.predict(net, data.test_images[:tests], data) == data.test_labels[:tests]
        return 100 * float(correct.double().mean())

    if kind == "library":
        return lambda: [ours(seed) for seed in range(networks)]
    listed = ImageList(images, labels, 10)
    tested = ImageList(data.test_images[:tests], data.test_labels[:tests], 10)

    def plainly(seed: int) -> float:
        net = PlainNet(built(seed)).to(device)
        trainer = Trainer(net, data, how.augment, how.cutmix, generator(seed, "evaluate", "augment"))
        for step, index in enumerate(training.batches(400, how.batch, updates, generator(seed, "evaluate", "order"))):
            trainer.optimiser.param_groups[0]["lr"] = training.rate("idc", how.lr, step, updates)
            trainer.step(*listed.batch(index))
        return trainer.test(tested)

    return lambda: [plainly(seed) for seed in range(networks)]


def results(how: How) -> dict[str, Any]:
    """One entry a case."""
    cases = QUICK if how.quick else CASES
    return {case: in_turn(work, arguments, how.rounds(4), how) for case, arguments in cases.items()}
