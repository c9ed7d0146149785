"""Network training on a distilled set (400 decoded images): the plain loop against the library's, update by update."""

from __future__ import annotations

from typing import Any

import torch
from measure import KINDS, How, Work, in_turn, random_data
from plain import ImageList, PlainNet, Trainer

from rddlib.base import generator
from rddlib.models import networks, training
from rddlib.models.training import Training

CASES: dict[str, tuple[Any, ...]] = {  # name: (width, batch, updates in one measurement, products of the library's)
    "ConvNet-3, width 128, batch 64": (128, 64, 2),
    "ConvNet-3, width 128, batch 64, bfloat16 products": (128, 64, 2, "bfloat16"),
    "ConvNet-3, width 32, batch 64": (32, 64, 4),
}
QUICK = {"ConvNet-3, width 128, batch 64": (8, 16, 1)}
LIMITS = {"ConvNet-3, width 128, batch 64": 1.3, "ConvNet-3, width 32, batch 64": 1.5}
LIMITS |= {"ConvNet-3, width 128, batch 64, bfloat16 products": 0.3}  # slow where the processor has none


def work(kind: str, device: str, width: int, batch: int, updates: int, precision: str = "float32") -> Work:
    """`updates` updates of a network of the same initial weights, on the same batches and with the same draws."""
    data = random_data(400, device=device)
    images = data.train_images.float() / 255
    how = Training(steps=updates, batch=batch)

    def built() -> torch.nn.Module:
        return networks.build("convnet", data.shape, 10, width=width, generator=generator(0, "net"))

    def ours() -> torch.nn.Module:
        with networks.arithmetic(precision, images.device):
            return training.train(built().to(device), images, data.train_labels, data, how, seed=0)

    if kind == "library":
        return ours
    listed = ImageList(images, data.train_labels, 10)

    def plainly() -> torch.nn.Module:
        net = PlainNet(built()).to(device)
        trainer = Trainer(net, data, how.augment, how.cutmix, generator(0, "evaluate", "augment"))
        for step, index in enumerate(training.batches(400, batch, updates, generator(0, "evaluate", "order"))):
            trainer.optimiser.param_groups[0]["lr"] = training.rate("idc", how.lr, step, updates)
            trainer.step(*listed.batch(index))
        return trainer.net

    return plainly


def results(how: How) -> dict[str, Any]:
    """One entry a case, with images a second of both kinds."""
    found = {}
    for case, (width, batch, updates, *products) in (QUICK if how.quick else CASES).items():
        updates *= 10 if how.device == "cuda" else 1
        entry = in_turn(work, (width, batch, updates, *products), how.rounds(9), how)
        for kind in KINDS:
            seconds = entry[kind]["milliseconds"]["median"] / 1e3
            entry[kind]["images_per_second"] = round(batch * updates / seconds, 1)
        found[case] = entry
    return found
