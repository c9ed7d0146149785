"""Kernel inducing points (KIP): images from which kernel regression predicts the training set.

Nguyen, Chen & Lee (2021); with convolutional kernels Nguyen, Novak, Xiao & Lee (2021). No network is trained: the
infinitely wide network's tangent kernel gives the prediction of one trained to the end on the support images, in
closed form, and the images move along the gradient of its squared error on batches of real images.

Images are optimised in the space where the kernel sees them: normalised by channel and, with `zca`, whitened. They
are stored as pixels: mapped back, clamped to [0, 1], rounded to 8 bits; `storage` measures what that loses. With
`kip_clamp`, our addition, the pixels themselves are optimised and clamped after each step: nothing is lost to the
clamp, but on natural images the whitened space is the one where descent is fast. The published code also scales each
image to norm one before whitening; that cannot be undone, so it is not done here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import files
from ...base import DivergenceError, SettingError, Settings, generator, raise_all, setting, to_device, to_host
from ...data.dataset import DataSet
from .. import synthetic
from ..synthetic import SyntheticSet
from . import kernels
from .kernels import Space

ROUND = 20  # steps between two entries of the history
LARGEST_PAIRED = 16  # px: kernels of pixel pairs grow with the fourth power of the side


class KipSettings(Settings):
    """The settings of KIP."""

    title: ClassVar[str] = "Kernel inducing points (method kip)"

    ipc: int = setting(10, "stored images per class", low=1)
    seed: int = setting(0, "distillation seed: the unit of replication", low=0)
    kernel: Literal["fc", "conv"] = setting("fc", "KIP: the infinitely wide network whose tangent kernel is used")
    kip_depth: int = setting(1, "KIP: its hidden layers", low=1, high=8)
    kip_pooling: kernels.Pooling = setting(
        "none", "KIP: pooling of the convolutional kernel: none, 2x2 after each layer, or global at the end"
    )
    kip_steps: int = setting(1000, "KIP: steps of Adam", low=1)
    kip_batch: int = setting(1000, "KIP: real images in one step", low=1)
    kip_lr: float = setting(0.04, "KIP: learning rate of images and labels", above=0)
    kip_ridge: float = setting(1e-6, "KIP: ridge of the regression, times the kernel's mean diagonal", above=0)
    learn_labels: bool = setting(False, "KIP: labels are optimised too")
    kip_clamp: bool = setting(False, "KIP: the pixels are optimised and clamped to [0, 1] after every step")
    zca: bool = setting(True, "KIP: images are whitened (ZCA with a tenth of the mean eigenvalue added)")


# --- one step ---------------------------------------------------------------------------------------------


def centred(labels: Tensor, n_classes: int) -> Tensor:
    """Labels (N,) as regression targets (N, n_classes): one-hot less its mean, float64."""
    return F.one_hot(labels, n_classes).double() - 1 / n_classes


def kernel(settings: KipSettings, x: Tensor, y: Tensor) -> Tensor:
    """The tangent kernel (N, M) that the settings name, between images as the kernel sees them."""
    if settings.kernel == "fc":
        return kernels.fc_kernels(x, y, settings.kip_depth).ntk
    return kernels.conv_kernels(x, y, settings.kip_depth, settings.kip_pooling).ntk


def loss(settings: KipSettings, support: Tensor, targets: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Half the mean squared error on (x, y) of the regression from the support: the objective of KIP.

    support (n, C, H, W), targets (n, K), x (t, C, H, W), y (t, K), float64. Nguyen, Chen & Lee (2021), equation 7.
    """
    k_ss, k_xs = kernel(settings, support, support), kernel(settings, x, support)
    predicted = kernels.regress(k_ss, k_xs, targets, settings.kip_ridge)
    return (predicted - y).square().mean() / 2


@dataclass
class State:
    """A distillation between two rounds of steps: all that is needed to go on exactly."""

    support: Tensor  # (n_classes * ipc, C, H, W) float64, as the kernel sees it; pixels with kip_clamp
    targets: Tensor  # (n_classes * ipc, n_classes) float64
    adam: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def run_round(seen: Tensor, data: DataSet, settings: KipSettings, space: Space, state: State) -> State:
    """Up to `ROUND` steps; `seen` are the training images as the kernel sees them. `state` is left as it is.

    Raises DivergenceError, at the end of the round, with the step at which the loss was no finite number.
    """
    support = state.support.clone().requires_grad_()
    targets = state.targets.clone()
    moved = [support, targets.requires_grad_()] if settings.learn_labels else [support]
    rate = settings.kip_lr * (float(space.std.mean()) if settings.kip_clamp else 1)
    adam = torch.optim.Adam(moved, lr=rate)
    if state.adam:
        adam.load_state_dict(copy.deepcopy(state.adam))
    losses = []
    last = min(state.step + ROUND, settings.kip_steps)
    for step in range(state.step, last):
        stream = generator(settings.seed, "kip batch", step)
        index = to_device(torch.randperm(len(seen), generator=stream)[: settings.kip_batch], seen.device)
        goal = centred(data.train_labels[index], data.n_classes)
        error = loss(settings, _seen(settings, support, space), targets, seen[index].double(), goal)
        adam.zero_grad(set_to_none=True)
        error.backward()
        adam.step()
        if settings.kip_clamp:
            support.data.clamp_(0, 1)
        losses.append(error.detach())
    result = support.detach()
    round_losses, outside = to_host([torch.stack(losses), _outside(_pixels(settings, result, space))])
    bad = (~round_losses.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise _diverged(settings, f"step {state.step + bad[0] + 1}")
    entry = {"loss": float(round_losses.mean()), "outside": float(outside)}
    return State(result, targets.detach(), copy.deepcopy(adam.state_dict()), last, [*state.history, entry])


def _diverged(settings: KipSettings, where: str) -> DivergenceError:
    ridge = f"A larger kip_ridge (now {settings.kip_ridge:g}) may help"
    return DivergenceError(f"KIP, {where}: the kernel of the images has no Cholesky factor, or is not finite. {ridge}")


def _seen(settings: KipSettings, support: Tensor, space: Space) -> Tensor:
    """The support as the kernel sees it."""
    return space.apply(support) if settings.kip_clamp else support


def _pixels(settings: KipSettings, support: Tensor, space: Space) -> Tensor:
    return support if settings.kip_clamp else space.pixels(support)


def _outside(pixels: Tensor) -> Tensor:
    """Share of the pixel values outside of [0, 1] by more than rounding."""
    return ((pixels - 0.5).abs() > 0.5 + 1e-6).double().mean()


# --- the whole --------------------------------------------------------------------------------------------


def distill(
    data: DataSet,
    settings: KipSettings,
    checkpoint: str | Path | None = None,
    every: int = 1,
    on_step: files.OnStep | None = None,
    space: Space | None = None,
) -> tuple[SyntheticSet, list[dict[str, float]]]:
    """Distil `data`; returns the set, clamped to [0, 1], and one entry of the history for each `ROUND` steps.

    An entry has the mean `loss` of its steps and the share of pixel values `outside` of [0, 1] after them. Learned
    labels are the set's `targets`. See `optimise` for the other arguments and the errors.
    """
    space = space or Space.of(data, settings.zca)
    state = optimise(data, settings, checkpoint, every, on_step, space)
    return stored(settings, state, space), state.history


def optimise(
    data: DataSet,
    settings: KipSettings,
    checkpoint: str | Path | None = None,
    every: int = 1,
    on_step: files.OnStep | None = None,
    space: Space | None = None,
) -> State:
    """The optimised support as the kernel sees it. It starts from random real images, those of the other methods.

    `checkpoint`: a file; if it is there the run goes on from it, and equals the uninterrupted run bit for bit on the
    same machine; one of other data, settings or code is not used. It is written after every `every` rounds of `ROUND`
    steps and when the run is interrupted. `on_step` is called with the number of steps done and the last entry of the
    history. `space` spares the whitening's cost. Raises SettingError if the settings do not fit the data, DataError for
    a damaged checkpoint.
    """
    raise_all(conflicts(data, settings))
    space = space or Space.of(data, settings.zca)
    state = _begin(data, settings, space)
    of = "" if checkpoint is None else origin(data, settings)  # hashing data takes time
    if checkpoint is not None:
        state = load_state(checkpoint, state, of) or state
    seen = torch.cat([space.apply(part, torch.float32) for part in data.train_images.split(5000)])

    def advance(state: State) -> State:
        return run_round(seen, data, settings, space, state)

    def save(state: State) -> None:
        if checkpoint is not None:
            files.write_state(checkpoint, vars(state), of)

    def report(state: State) -> None:
        if on_step is not None:
            on_step(state.step, state.history[-1])

    return files.run_rounds(math.ceil(settings.kip_steps / ROUND), state, advance, save, every, report)


def conflicts(data: DataSet, settings: KipSettings) -> Iterator[SettingError]:
    """Each setting that the data cannot serve."""
    smallest = min(len(members) for members in data.members)
    if settings.ipc > smallest:
        yield SettingError("ipc", settings.ipc, f"at most {smallest}, the smallest class")
    if settings.kip_batch > len(data.train_labels):
        yield SettingError("kip_batch", settings.kip_batch, f"at most {len(data.train_labels)}, the training set")
    if settings.kernel == "conv" and settings.kip_pooling != "none":
        side = max(data.shape[1:])
        if side > LARGEST_PAIRED:
            yield SettingError("kip_pooling", settings.kip_pooling, f"none for images above {LARGEST_PAIRED} px")
        if settings.kip_pooling == "blocks" and min(data.shape[1:]) >> settings.kip_depth < 1:
            yield SettingError("kip_depth", settings.kip_depth, f"so that {side} px can be halved that often")


def _begin(data: DataSet, settings: KipSettings, space: Space) -> State:
    begun = synthetic.start(data, settings.ipc, 1, generator(settings.seed, "start"))
    images = begun.images.double()
    return State(images if settings.kip_clamp else space.apply(images), centred(begun.labels, data.n_classes))


def stored(settings: KipSettings, state: State, space: Space) -> SyntheticSet:
    """The support as a set of images: pixels clamped to [0, 1], float32, and the labels if they were learned."""
    pixels = _pixels(settings, state.support, space).clamp(0, 1).float()
    return SyntheticSet(pixels, settings.ipc, 1, state.targets.float() if settings.learn_labels else None)


# --- evaluation -------------------------------------------------------------------------------------------


def kernel_accuracy(small: SyntheticSet, data: DataSet, settings: KipSettings, space: Space | None = None) -> float:
    """Accuracy in per cent, on the test part, of kernel regression from a set (any set) and its labels or targets."""
    space = space or Space.of(data, settings.zca)
    images, labels = small.decoded()
    targets = centred(labels, data.n_classes)
    if small.targets is not None:
        targets = small.targets.double().repeat_interleave(small.factor**2, 0)
    return _accuracy(space.apply(images.double()), targets, data, settings, space)


@torch.no_grad()
def _accuracy(support: Tensor, targets: Tensor, data: DataSet, settings: KipSettings, space: Space) -> float:
    weights = kernels.coefficients(kernel(settings, support, support), targets, settings.kip_ridge)
    if not weights.isfinite().all():
        raise _diverged(settings, "evaluation")
    parts = [space.apply(part, torch.float32).double() for part in data.test_images.split(500)]
    predicted = torch.cat([(kernel(settings, part, support) @ weights).argmax(1) for part in parts])
    return 100 * float((predicted == data.test_labels).double().mean())


def storage(state: State, data: DataSet, settings: KipSettings, space: Space) -> dict[str, float]:
    """What storing loses: `kernel_accuracy` of the support as optimised, clamped to [0, 1], and in 8 bits.

    `outside`: the share of pixel values, in per cent, that the clamp moves.
    """
    clamped = stored(settings, state, space)
    return {
        "optimised": _accuracy(_seen(settings, state.support, space), state.targets, data, settings, space),
        "clamped": kernel_accuracy(clamped, data, settings, space),
        "8 bits": kernel_accuracy(synthetic.quantised(clamped), data, settings, space),
        "outside": 100 * float(_outside(_pixels(settings, state.support, space))),
    }


# --- checkpoints ------------------------------------------------------------------------------------------


def origin(data: DataSet, settings: KipSettings) -> str:
    """64 hex digits of all that a checkpoint depends on: data, settings, and the results version."""
    return files.origin(data.sha256, settings.part(KipSettings))


def load_state(path: str | Path, like: State, of: str) -> State | None:
    """Read a checkpoint, which must fit `like` in shape; None where there is none of the run `of`.

    Raises DataError, and leaves the file, if it is damaged or does not fit.
    """

    def build(raw: dict[str, Any]) -> State:
        state = State(raw["support"], raw["targets"], dict(raw["adam"]), int(raw["step"]), list(raw["history"]))
        if (state.support.shape, state.targets.shape) != (like.support.shape, like.targets.shape):
            raise ValueError(f"of {tuple(state.support.shape)}, expected {tuple(like.support.shape)}")
        return state

    return files.read_state(path, of, like.support.device, build)
