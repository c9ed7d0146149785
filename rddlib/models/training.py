"""How a network is trained on a small set: the evaluation recipes of IDC, of DC and of GLaD, by name.

A recipe decides how the learning rate moves, which augmentation rule holds and whether averaged weights are tested.
The numbers (steps, batch, rate, strategy, CutMix) are settings; `numbers` has the published ones. All three use SGD
with momentum 0.9 and weight decay 5e-4. Sources: train.py of IDC, utils.py (`evaluate_synset`) of DC and of GLaD.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base import check_choice, generator, to_device, to_device_together
from ..data import augment
from ..data.dataset import DataSet
from . import stacked

Recipe = Literal["idc", "dc", "glad"]
RECIPES = get_args(Recipe)
RULES = {"idc": "idc", "dc": "one", "glad": "one"}  # how augmentation operations are chosen
AVERAGED = {"idc": None, "dc": None, "glad": 0.995}  # decay of the averaged weights, where these are tested
DSA = "color_crop_cutout_flip_scale_rotate"

# Published numbers at 32 px, as settings of an experiment. Steps are left out: they count passes, see `updates`.
RECIPE_NUMBERS: dict[str, dict[str, Any]] = {
    "idc": {"eval_lr": 0.01, "eval_batch": 64, "eval_augment": "color_crop_flip_scale_rotate", "eval_cutmix": 0.5},
    "dc": {"eval_lr": 0.01, "eval_batch": 256, "eval_augment": DSA, "eval_cutmix": 0.0},
    "glad": {"eval_lr": 0.001, "eval_batch": 256, "eval_augment": DSA, "eval_cutmix": 0.0},
}


def numbers(recipe: str, network: str = "convnet", mirrored: bool = True) -> dict[str, Any]:
    """The published numbers of a recipe for a network; `mirrored=False` drops the flip, where digits are read.

    GLaD trains VGG-11 at a tenth of the rate of the others. Raises SettingError for an unknown recipe.
    """
    found = dict(RECIPE_NUMBERS[known(recipe)])
    if recipe == "glad" and network.startswith("vgg"):
        found["eval_lr"] /= 10
    if not mirrored:
        found["eval_augment"] = found["eval_augment"].replace("_flip", "")
    return found


def known(recipe: str) -> str:
    """The recipe's name; SettingError where there is none of this name."""
    check_choice("recipe", recipe, RECIPES)
    return recipe


def rate(recipe: str, lr: float, step: int, steps: int) -> float:
    """Learning rate of update `step` (0 .. steps - 1), for the setting `lr`, the highest rate.

    idc: times 0.2 after 2/3 of the steps and again after 5/6. dc: times 0.1 after half. glad: linear from 0 up to
    half, then a cosine down to 0. The last two count epochs as published; ours count steps, which is the same wherever
    a pass is one batch.
    """
    half = steps // 2
    if known(recipe) == "idc":
        for milestone in (2 * steps // 3, 5 * steps // 6):
            lr = lr * 0.2 if step >= milestone else lr
        return lr
    if recipe == "dc":
        return lr * 0.1 if step >= half else lr
    if step < half:
        return lr * step / half
    return lr * (1 + math.cos(math.pi * (step - half) / (steps - half))) / 2


def updates(eval_steps: int, n_images: int, batch: int, factor: int = 1, scaled: bool = False) -> int:
    """Updates of one training on `n_images` decoded images: `eval_steps`, the same for every set.

    With `scaled` they grow as published: epochs are fixed, so a set of factor f, which decodes to f^2 times as many
    images, gets as many times the updates as its passes have more batches; `eval_steps` then is the number at factor 1.
    """
    if not scaled:
        return eval_steps
    stored = n_images // factor**2
    return eval_steps * -(-n_images // batch) // -(-stored // batch)


@dataclass(frozen=True, kw_only=True)
class Training:
    """One way to train: a recipe's name and its numbers."""

    recipe: str = "idc"
    steps: int = 7000
    batch: int = 64
    lr: float = 0.01
    augment: str = "color_crop_flip_scale_rotate"
    cutmix: float = 0.5


Look = Callable[[int, nn.Module], None]  # updates done, the network that would be tested now


def train(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    data: DataSet,
    how: Training,
    seed: int,
    purpose: str = "evaluate",
    at: Collection[int] = (),
    look: Look | None = None,
) -> nn.Module:
    """Train `net` in place on `images` (N, C, H, W), uint8 or [0, 1]; returns what is tested, in evaluation mode.

    That is the network after the last step or, for glad, its averaged weights. Epochs are reshuffled passes; a set
    smaller than a batch is one batch. After the steps in `at`, `look` gets the number of steps and the network that
    would be tested then; it draws nothing from the streams, so training is the same bit for bit with and without it.
    """
    order, stream = generator(seed, purpose, "order"), generator(seed, purpose, "augment")
    indices = batches(len(images), how.batch, how.steps, order)
    places = to_device(torch.cat(indices), images.device).split([len(index) for index in indices])
    losses = (_loss(net, data.normalise(images[index]), labels[index], how, stream) for index in places)
    return _descend(net, losses, how, len(images), at, look)


def train_together(
    nets: Sequence[nn.Module], images: Tensor, labels: Tensor, data: DataSet, how: Training, seeds: Sequence[int]
) -> list[nn.Module]:
    """As `train` of each network with its seed, all in the operations of one; equal up to rounding.

    For a device that waits for its host more than it computes. Errors as `stacked.stack`.
    """
    whole = stacked.stack(nets)
    orders = [batches(len(images), how.batch, how.steps, generator(seed, "evaluate", "order")) for seed in seeds]
    streams = [generator(seed, "evaluate", "augment") for seed in seeds]
    soft = labels if labels.is_floating_point() else F.one_hot(labels, data.n_classes)

    def losses() -> Iterator[Tensor]:
        for indices in zip(*orders, strict=True):
            n = len(indices[0])
            drawn = augment.draw_batches(how.augment, n, images.shape[-1], streams, RULES[how.recipe], how.cutmix)
            index, *drawn = to_device_together([torch.cat(indices), *drawn], images.device)
            x = data.normalise(images[index])
            x, y = augment.apply_batches(x, soft[index].to(x.dtype), drawn)
            side_by_side = x.unflatten(0, (-1, n)).transpose(0, 1).flatten(1, 2)  # (n, K * C, H, W)
            yield F.cross_entropy(whole(side_by_side).flatten(0, 1), y, reduction="sum") / n

    stacked.unstack(_descend(whole, losses(), how, len(images)), nets)
    return [net.eval() for net in nets]


def _descend(
    net: nn.Module, losses: Iterator[Tensor], how: Training, n: int, at: Collection[int] = (), look: Look | None = None
) -> nn.Module:
    """Train `net` on `n` images by the recipe, an update a loss, computed in its turn; returns what is tested."""
    optimiser = torch.optim.SGD(net.parameters(), lr=how.lr, momentum=0.9, weight_decay=5e-4)
    average = Average(net, decay) if (decay := AVERAGED[known(how.recipe)]) else None
    a_pass = -(-n // how.batch)
    for step, loss in enumerate(losses):
        if how.recipe == "dc" and step == how.steps // 2:
            optimiser.state.clear()  # DC makes a new optimiser when the rate falls
        optimiser.param_groups[0]["lr"] = rate(how.recipe, how.lr, step, how.steps)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        if average and ((step + 1) % a_pass == 0 or step + 1 == how.steps):
            average.update(net)
        if look is not None and step + 1 in at:
            net.eval()
            look(step + 1, average.net if average and average.updates else net)
            net.train()
    return average.net if average else net.eval()


def batches(n: int, size: int, steps: int, stream: torch.Generator) -> list[Tensor]:
    """Index batches of reshuffled passes over `n` items, `steps` in all; the last batch of a pass may be smaller."""
    found: list[Tensor] = []
    while len(found) < steps:
        found.extend(torch.randperm(n, generator=stream).split(size))
    return found[:steps]


def _loss(net: nn.Module, x: Tensor, y: Tensor, how: Training, stream: torch.Generator) -> Tensor:
    x = augment.apply(x, augment.draw(how.augment, len(x), x.shape[-1], stream, rule=RULES[how.recipe]))
    x, partner, share = augment.cutmix(x, stream, how.cutmix)
    logits = net(x)
    own = F.cross_entropy(logits, y)
    return own if share == 1 else share * own + (1 - share) * F.cross_entropy(logits, y[partner])


@torch.inference_mode()
def predict(net: nn.Module, images: Tensor, data: DataSet, batch: int | None = None) -> Tensor:
    """Predicted class (N,) of each image (N, C, H, W), uint8 or [0, 1].

    By default 64 images at once on a CPU, where larger batches leave its caches (measured: half the time of 500 for a
    ConvNet-3 of width 32), and 1,000 on other devices.
    """
    size = batch or (1000 if images.is_cuda else 64)
    return torch.cat([net(data.normalise(part)).argmax(1) for part in images.split(size)])


class Average:
    """Running average of a network's weights, updated once a pass as GLaD does: w <- d w + (1 - d) new.

    The decay d of update n is min((n - 1) / n, `decay`): a plain mean at first, then exponential.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.net = copy.deepcopy(net).requires_grad_(False).eval()
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Take in the present weights; whole-number buffers are copied."""
        self.updates += 1
        keep = min(1 - 1 / self.updates, self.decay)
        for mean, new in zip(self.net.state_dict().values(), net.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(new, 1 - keep)
            else:
                mean.copy_(new)
