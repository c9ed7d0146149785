"""What does the library save over the plain loop? The same work in both ways, from the same start with the same draws.

Results, two threads of a processor (results/cpu-2-threads-x86_64.json), time of `plain.py` over the library's: network
training at width 128 1.63 x, an IDC inner step as published 1.77 x, evaluation of five networks 1.78 x, with bfloat16
products 2.21, 2.03 and 2.5 x; augmentation 2.3 to 5.7 x. All classes at once are slower than one after another there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from measure import Factory, How, Work, in_turn, random_data
from plain import ImageList, PlainLoop, PlainNet, Trainer, augmented
from torch import Tensor, nn

from rddlib.base import generator
from rddlib.data import augment
from rddlib.distillation import batched
from rddlib.distillation.distill import DistillSettings, begin
from rddlib.distillation.glad import prior
from rddlib.distillation.loop import Loop
from rddlib.models import networks, training
from rddlib.models.training import Training

PUBLISHED = {"ipc": 10, "factor": 2, "width": 128, "batch_real": 64, "net_steps": 32, "net_batch": 64}
LAPTOP = {"ipc": 10, "factor": 2, "width": 32, "batch_real": 32, "net_steps": 1, "net_batch": 256}
TINY = {"ipc": 1, "factor": 1, "width": 8, "batch_real": 8, "net_steps": 1, "net_batch": 16, "n_classes": 2}
# How the cost of an inner step grows: one setting at a time.
GROWTH = {
    "ipc": [{"ipc": ipc} for ipc in (1, 10, 30)],
    "classes": [{"n_classes": n} for n in (2, 5, 10)],
    "width": [{"width": width} for width in (16, 32, 64, 128)],
    "resolution": [{"size": size, "depth": depth} for size, depth in ((16, 2), (32, 3), (64, 4))],
}
CALLS = 10  # of augmentation in one measurement, each with a draw of its own


def train(kind: str, device: str, width: int, batch: int, updates: int, precision: str = "float32") -> Work:
    """`updates` updates of one network on 400 images; its weights are returned, as one vector."""
    made = trained(kind, device, width, Training(steps=updates, batch=batch), precision)
    return lambda: torch.cat([p.detach().flatten() for p in made(0).parameters()])


def evaluate(
    kind: str, device: str, number: int, width: int, updates: int, tests: int, precision: str = "float32"
) -> Work:
    """`number` networks trained for `updates` updates of 64 of 400 images and tested on `tests`: their accuracies."""
    data = random_data(400, device=device)
    images, labels = data.test_images[:tests], data.test_labels[:tests]
    made = trained(kind, device, width, Training(steps=updates), precision)
    listed = ImageList(images, labels, 10)

    def accuracy(net: nn.Module) -> float:
        if kind == "reference":
            return Trainer(net, data, "none", 0.0, generator(0)).test(listed)
        with networks.arithmetic(precision, images.device):
            return 100 * float((training.predict(net, images, data) == labels).double().mean())

    return lambda: [accuracy(made(seed)) for seed in range(number)]


def trained(kind: str, device: str, width: int, how: Training, precision: str) -> Callable[[int], nn.Module]:
    """A function of the seed: the network that is trained one way or the other."""
    data = random_data(400, device=device)
    images, labels = data.train_images.float() / 255, data.train_labels
    listed = ImageList(images, labels, 10)

    def one(seed: int) -> nn.Module:
        net = networks.build("convnet", data.shape, 10, width=width, generator=generator(seed, "net")).to(device)
        if kind == "library":
            with networks.arithmetic(precision, images.device):
                return training.train(net, images, labels, data, how, seed)
        stream = generator(seed, "evaluate", "augment")
        trainer = Trainer(PlainNet(net).to(device), data, how.augment, how.cutmix, stream)
        order = training.batches(400, how.batch, how.steps, generator(seed, "evaluate", "order"))
        for step, index in enumerate(order):
            trainer.optimiser.param_groups[0]["lr"] = training.rate("idc", how.lr, step, how.steps)
            trainer.step(*listed.batch(index))
        return trainer.net

    return one


def augmentation(kind: str, device: str, strategy: str, n: int, shared: bool, gradient: bool) -> Work:
    """`CALLS` augmentations of the same 32 px images: the last images, or the gradient at them."""
    rng = generator(0, "bench augment")
    x = torch.randn(n, 3, 32, 32, generator=rng).to(device).requires_grad_(gradient)
    draws = [augment.draw(strategy, 1 if shared else n, 32, rng) for _ in range(CALLS)]
    form = augment.apply if kind == "library" else augmented

    def run() -> Tensor:
        for draw in draws:
            y = form(x, draw)
            (y,) = torch.autograd.grad(y, x, y.detach()) if gradient else (y,)
        return y

    return run


def begun(device: str, chosen: Mapping[str, Any]) -> Loop:
    """The library's loop at its start, on random images; `chosen` may also hold `n_classes` and `size`."""
    more = {"n_classes": 10, "size": 32} | {k: chosen[k] for k in ("n_classes", "size") if k in chosen}
    data = random_data(150 * more["n_classes"], device=device, **more)
    settings = DistillSettings(**{k: v for k, v in chosen.items() if k not in more})
    source = prior.load("none", data, 1)
    return batched.loop_class(settings, data)(data, settings, begin(data, settings, source), source)


def inner_step(kind: str, device: str, chosen: Mapping[str, Any]) -> Work:
    """One IDC inner step after another from the same start: the images. `chosen` as in `begun`."""
    ours = begun(device, chosen)
    if kind == "reference":
        loop = PlainLoop(ours.data, ours.s, ours.codes["pixels"].flatten(0, 1))
        return lambda: (loop.inner_step(), loop.images.detach())[1]

    def step() -> Tensor:
        with networks.arithmetic(ours.s.precision, ours.device):
            ours.inner_step()
        return ours.codes["pixels"].flatten(0, 1)

    return step


def at_once(kind: str, device: str, chosen: Mapping[str, Any]) -> Work:
    """Image steps of the library, all classes at once against ("reference") one after another."""
    return begun(device, {**chosen, "classes_at_once": kind == "library"}).image_steps


@dataclass(frozen=True)
class Part:
    """One kind of work: cases by name, a tiny one, rounds, and the ratio that a busy machine reaches all the same."""

    work: Factory
    cases: dict[str, tuple[Any, ...]]
    quick: tuple[Any, ...]
    rounds: int
    least: dict[str, float]

    def results(self, how: How) -> dict[str, Any]:
        """One entry a case."""
        cases = {next(iter(self.cases)): self.quick} if how.quick else self.cases
        return {case: in_turn(self.work, each, how.rounds(self.rounds), how) for case, each in cases.items()}


HALF = ", bfloat16 products"  # the library's; slow where the processor has none, so without a limit
WIDE, NARROW, FIVE = "ConvNet-3, width 128, batch 64", "ConvNet-3, width 32, batch 64", "5 networks, ConvNet-3, width"
PARTS = {
    "training": Part(train, {WIDE: (128, 64, 2), WIDE + HALF: (128, 64, 2, "bfloat16"), NARROW: (32, 64, 4)},
                     (8, 16, 1), 9, {WIDE: 1.3, NARROW: 1.5}),
    "augmentation": Part(augmentation, {
        "matching: shared draw, with gradient, 64 images": ("color_crop_cutout", 64, True, True),
        "network training: one draw an image, 256 images": ("color_crop", 256, False, False),
        "evaluation: one draw an image, 64 images": ("color_crop_flip_scale_rotate", 64, False, False),
    }, ("color_crop_cutout", 4, True, True), 15, {"matching: shared draw, with gradient, 64 images": 2.0}),
    "inner_step": Part(inner_step, {"published": (PUBLISHED,), "laptop": (LAPTOP,),
                                    "published" + HALF: (PUBLISHED | {"precision": "bfloat16"},)},
                       (TINY,), 3, {"laptop": 1.4}),
    "evaluation": Part(evaluate, {f"{FIVE} 128": (5, 128, 4, 6), f"{FIVE} 128{HALF}": (5, 128, 4, 6, "bfloat16"),
                                  f"{FIVE} 32": (5, 32, 8, 80)}, (2, 8, 1, 50), 4, {f"{FIVE} 32": 1.2}),
    "batched": Part(at_once, {"laptop": (LAPTOP,)}, (TINY,), 5, {}),
}  # fmt: skip


def growth(how: How) -> dict[str, list[dict[str, Any]]]:
    """Cost of the laptop's inner step as one setting grows; on a GPU of the published one."""
    base = TINY if how.quick else PUBLISHED if how.device == "cuda" else LAPTOP
    wanted = {"ipc": [{"ipc": 1}, {"ipc": 2}]} if how.quick else GROWTH
    made: dict[str, dict[str, Any]] = {}  # three settings have the base among their values: it is measured once

    def one(change: dict[str, int]) -> dict[str, Any]:
        name = json.dumps({"n_classes": 10, "size": 32, "depth": 3} | base | change, sort_keys=True)
        if name not in made:
            made[name] = in_turn(inner_step, (base | change,), how.rounds(3), how)
        return {"setting": change} | made[name]

    return {name: [one(change) for change in changes] for name, changes in wanted.items()}
