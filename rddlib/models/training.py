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

from ..base import DivergenceError, SettingError, check_choice, generator, to_device, to_device_together
from ..data import augment
from ..data.dataset import DataSet

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
    check_choice("recipe", recipe, RECIPES)
    result = dict(RECIPE_NUMBERS[recipe])
    if recipe == "glad" and network.startswith("vgg"):
        result["eval_lr"] /= 10
    if not mirrored:
        result["eval_augment"] = result["eval_augment"].replace("_flip", "")
    return result


def rate(recipe: str, lr: float, step: int, steps: int) -> float:
    """Learning rate of update `step` (0 .. steps - 1), for the setting `lr`, the highest rate.

    idc: times 0.2 after 2/3 of the steps and again after 5/6. dc: times 0.1 after half. glad: linear from 0 up to
    half, then a cosine down to 0. The last two count epochs as published; ours count steps, which is the same wherever
    a pass is one batch.
    """
    half = steps // 2
    if recipe == "idc":
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
    n_stored = n_images // factor**2
    return eval_steps * math.ceil(n_images / batch) // math.ceil(n_stored / batch)


@dataclass(frozen=True, kw_only=True)
class Training:
    """One way to train: a recipe's name and its numbers."""

    recipe: str = "idc"
    steps: int = 7000
    batch: int = 64
    lr: float = 0.01
    augment: str = "color_crop_flip_scale_rotate"
    cutmix: float = 0.5


Callback = Callable[[int, nn.Module], None]  # updates done, the network that would be tested now


def train(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    data: DataSet,
    how: Training,
    seed: int,
    purpose: str = "evaluate",
    at: Collection[int] = (),
    callback: Callback | None = None,
) -> nn.Module:
    """Train `net` in place on `images` (N, C, H, W), uint8 or [0, 1]; returns what is tested, in evaluation mode.

    That is the network after the last step or, for glad, its averaged weights. Epochs are reshuffled passes; a set
    smaller than a batch is one batch. After the steps in `at`, `callback` gets the number of steps and the network that
    would be tested then; it draws nothing from the streams, so training is the same bit for bit with and without it.
    """
    stream = generator(seed, purpose, "augment")
    indices = batches(len(images), how.batch, how.steps, generator(seed, purpose, "order"))
    together = to_device(torch.cat(indices), images.device)
    on_device = together.split([len(index) for index in indices])
    losses = (_loss(net, data.normalise(images[index]), labels[index], how, stream) for index in on_device)
    return _descend(net, losses, how, len(images), at, callback)


def train_together(
    nets: Sequence[nn.Module], images: Tensor, labels: Tensor, data: DataSet, how: Training, seeds: Sequence[int]
) -> list[nn.Module]:
    """As `train` of each network with its seed, all in the operations of one; equal up to rounding.

    For a device that waits for its host more than it computes. Errors as `stack`.
    """
    stacked = stack(nets)
    orders = [batches(len(images), how.batch, how.steps, generator(seed, "evaluate", "order")) for seed in seeds]
    streams = [generator(seed, "evaluate", "augment") for seed in seeds]
    soft = labels if labels.is_floating_point() else F.one_hot(labels, data.n_classes)

    def losses() -> Iterator[Tensor]:
        for indices in zip(*orders, strict=True):
            n = len(indices[0])
            draws = augment.draw_batches(how.augment, n, images.shape[-1], streams, RULES[how.recipe], how.cutmix)
            index, *draws = to_device_together([torch.cat(indices), *draws], images.device)
            x = data.normalise(images[index])
            x, y = augment.apply_batches(x, soft[index].to(x.dtype), draws)
            side_by_side = x.unflatten(0, (-1, n)).transpose(0, 1).flatten(1, 2)  # (n, K * C, H, W)
            yield F.cross_entropy(stacked(side_by_side).flatten(0, 1), y, reduction="sum") / n

    unstack(_descend(stacked, losses(), how, len(images)), nets)
    return [net.eval() for net in nets]


def _descend(
    net: nn.Module,
    losses: Iterator[Tensor],
    how: Training,
    n: int,
    at: Collection[int] = (),
    callback: Callback | None = None,
) -> nn.Module:
    """Train `net` on `n` images by the recipe, an update a loss, computed in its turn; returns what is tested."""
    optimiser = torch.optim.SGD(net.parameters(), lr=how.lr, momentum=0.9, weight_decay=5e-4)
    decay = AVERAGED[how.recipe]
    average = None if decay is None else Average(net, decay)
    steps_a_pass = math.ceil(n / how.batch)
    for step, loss in enumerate(losses):
        if how.recipe == "dc" and step == how.steps // 2:
            optimiser.state.clear()  # DC makes a new optimiser when the rate falls
        optimiser.param_groups[0]["lr"] = rate(how.recipe, how.lr, step, how.steps)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        done = step + 1
        if average and (done % steps_a_pass == 0 or done == how.steps):
            average.update(net)
        if callback is not None and done in at:
            net.eval()
            callback(done, average.net if average and average.updates else net)
            net.train()
    return average.net if average else net.eval()


def check_finite(net: nn.Module, how: Training) -> None:
    """Raise DivergenceError where a trained network's weights are not finite: it puts every image into one class.

    Cost: one pass over the weights, and a device's host waits once.
    """
    if not bool(torch.stack([weights.isfinite().all() for weights in net.parameters()]).all()):
        lower = f"A smaller eval_lr (now {how.lr:g}) may help"
        raise DivergenceError(f"evaluation: weights are not finite after {how.steps} updates. {lower}")


def batches(n: int, size: int, steps: int, stream: torch.Generator) -> list[Tensor]:
    """Index batches of reshuffled passes over `n` items, `steps` in all; the last batch of a pass may be smaller."""
    result: list[Tensor] = []
    while len(result) < steps:
        result.extend(torch.randperm(n, generator=stream).split(size))
    return result[:steps]


def _loss(net: nn.Module, x: Tensor, y: Tensor, how: Training, stream: torch.Generator) -> Tensor:
    x = augment.apply(x, augment.draw(how.augment, len(x), x.shape[-1], stream, rule=RULES[how.recipe]))
    x, partner, share = augment.cutmix(x, stream, how.cutmix)
    logits = net(x)
    own = F.cross_entropy(logits, y)
    return own if share == 1 else share * own + (1 - share) * F.cross_entropy(logits, y[partner])


@torch.inference_mode()
def predict(net: nn.Module, images: Tensor, data: DataSet) -> Tensor:
    """Predicted class (N,) of each image (N, C, H, W), uint8 or [0, 1].

    64 images at once on a CPU, where larger batches leave its caches (measured: half the time of 500 for a ConvNet-3
    of width 32), and 1,000 on CUDA.
    """
    size = 1000 if images.is_cuda else 64
    return torch.cat([net(data.normalise(part)).argmax(1) for part in images.split(size)])


class Average:
    """Running average of a network's weights, updated once a pass as GLaD does: w <- d w + (1 - d) new.

    The decay d of update n is min((n - 1) / n, `decay`): a plain mean at first, then exponential.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.net = copy.deepcopy(net).requires_grad_(False).eval()
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Take in the present weights."""
        self.updates += 1
        keep = min(1 - 1 / self.updates, self.decay)
        for mean, new in zip(self.net.parameters(), net.parameters(), strict=True):
            mean.lerp_(new, 1 - keep)


# --- several networks as one ------------------------------------------------------------------------------
# An instance norm, a ReLU and a pool know nothing of other channels. So K networks of C channels are one network of
# K * C channels whose convolutions have K groups, and whose linear layer is a batch of K products. Each network's
# weights get the gradient of its own loss, since the loss that is summed over them has no term of two networks.


class Linears(nn.Linear):
    """The linear layers of K networks of `out_features` outputs each: (N, K * D) -> (K, N, out_features)."""

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        weight = self.weight.unflatten(0, (-1, self.out_features))
        features = x.unflatten(1, (len(weight), -1)).transpose(0, 1)  # (K, N, D)
        return torch.baddbmm(self.bias.view(len(weight), 1, -1), features, weight.mT)


def stack(nets: Sequence[nn.Module]) -> nn.Module:
    """One network of the weights of all: images (N, K * C, H, W), network after network, -> logits (K, N, n_classes).

    Each parameter is those of the networks, one after another along the first axis. Raises SettingError for a network
    that has more than convolutions, instance norms and one linear layer: a ViT.
    """
    stacked = copy.deepcopy(nets[0])
    for module, *parts in zip(stacked.modules(), *(net.modules() for net in nets), strict=True):
        if isinstance(module, nn.GroupNorm) and module.num_groups == module.num_channels:
            module.num_groups *= len(nets)
            module.num_channels *= len(nets)
        elif isinstance(module, nn.Conv2d):
            module.groups *= len(nets)
        elif isinstance(module, nn.Linear) and module is getattr(stacked, "classifier", None):
            module.__class__ = Linears
        elif list(module.parameters(recurse=False)):
            raise SettingError("network", type(nets[0]).__name__, "convolutions and instance norms, to train together")
        for name, _ in list(module.named_parameters(recurse=False)):
            joined = torch.cat([getattr(part, name).detach() for part in parts])
            setattr(module, name, nn.Parameter(joined))
    return stacked


@torch.no_grad()
def unstack(stacked: nn.Module, nets: Sequence[nn.Module]) -> None:
    """Give the weights of `stacked` back to the networks that it was made of, in place."""
    for joined, *parameters in zip(stacked.parameters(), *(net.parameters() for net in nets), strict=True):
        for parameter, part in zip(parameters, joined.chunk(len(nets)), strict=True):
            parameter.copy_(part)
