"""The networks that are trained on distilled sets, by name, with weights drawn from an explicit generator.

ConvNet is the field's common network (Gidaris & Komodakis 2018, in the form of DC, IDC and GLaD); the others stand in
`architectures`. Each has `embed()` and `forward()`, one linear layer apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..base import SettingError, check_choice
from . import architectures, fused

# Architectures whose name says how deep they are: for these the setting `depth` has no effect.
FIXED_DEPTH: dict[str, Callable[[int, int, int, int], nn.Module]] = {
    "resnetap10": partial(architectures.ResNet, blocks=1, pooled=True),
    "resnetap18": partial(architectures.ResNet, blocks=2, pooled=True),
    "resnet10": partial(architectures.ResNet, blocks=1),
    "resnet18": partial(architectures.ResNet, blocks=2),
    "vgg11": architectures.VGG,
    "vit": architectures.ViT,
}
Network = Literal["convnet", "resnetap10", "resnetap18", "resnet10", "resnet18", "vgg11", "vit"]
Precision = Literal["float32", "bfloat16"]
NETWORKS, PRECISIONS = get_args(Network), get_args(Precision)

# Channels of every block (ConvNet) or of the first stage (ResNets, VGG; the last has eight times as many); dimensions
# of the tokens (ViT).
PAPER_WIDTH = dict.fromkeys(NETWORKS, 64) | {"convnet": 128, "vit": 512}


class ConvNet(architectures.Network):
    """`depth` blocks of conv 3x3, GroupNorm(C, C) (= instance norm, affine), ReLU, average pool 2; one linear layer.

    Input (N, in_channels, size, size) float, normalised; output logits (N, n_classes). With depth 3, width 128,
    32 px and 10 classes it has 320,010 parameters. `size` must survive `depth` halvings. Cost: about 0.1 GFLOP
    a forward pass of one 32 px image at width 128.
    """

    def __init__(self, in_channels: int, n_classes: int, size: int, depth: int, width: int) -> None:
        super().__init__()
        if depth < 1 or size >> depth < 1:
            raise SettingError("depth", depth, f"at least 1 and at most {int(math.log2(size))} for {size} px images")
        blocks = []
        for inputs, outputs in pairwise([in_channels, *[width] * depth]):
            conv = nn.Conv2d(inputs, outputs, 3, padding=1)
            blocks.append(nn.Sequential(conv, fused.NormReluPool(outputs)))  # norm, ReLU and pool in one operation
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(width * (size >> depth) ** 2, n_classes)

    def embed(self, x: Tensor) -> Tensor:
        """Features before the linear layer: (N, C, H, W) -> (N, width * (size / 2**depth)**2)."""
        features: Tensor = self.features(x)
        return features.flatten(1)


def build(
    name: str,
    shape: tuple[int, int, int],
    n_classes: int,
    *,
    depth: int = 3,
    width: int = 128,
    generator: torch.Generator,
) -> nn.Module:
    """A network with fresh weights drawn from `generator`, and with it the seeds of its dropout, if it has any.

    `shape` is (channels, height, width) of the images; `depth` and `width` as in `conflicts`, which says when
    SettingError is raised.
    """
    net = _skeleton(name, shape, n_classes, depth, width)
    return initialise(net.to_empty(device=generator.device), generator)


def conflicts(
    name: str, shape: tuple[int, int, int], depth: int, width: int, prefix: str = ""
) -> Iterator[SettingError]:
    """Why a network cannot be built for images of `shape` (channels, height, width), if it cannot.

    `depth` counts the blocks of a ConvNet and has no effect on the others (`FIXED_DEPTH`); `width` is explained at
    `PAPER_WIDTH`. Refused are unknown names, images that are not square, too small or (ViT) no multiple of the patch,
    more halvings than a ConvNet's image has, and widths that a ViT's heads cannot share. `prefix` is put before the
    names of settings in the message, e.g. "eval_". Takes milliseconds and no memory.
    """
    try:
        _skeleton(name, shape, 2, depth, width)
    except SettingError as error:
        is_setting = error.name in ("network", "depth", "width")
        yield SettingError(prefix + error.name if is_setting else error.name, error.value, error.allowed)


def _skeleton(name: str, shape: tuple[int, int, int], n_classes: int, depth: int, width: int) -> nn.Module:
    """A network without storage: the default initialisation would draw from the global generator."""
    check_choice("network", name, NETWORKS)
    channels, size, width_px = shape
    if size != width_px:
        raise SettingError("size", f"{size} x {width_px}", "square images")
    if width < 1:
        raise SettingError("width", width, "at least 1")
    with torch.device("meta"):
        if name == "convnet":
            return ConvNet(channels, n_classes, size, depth, width)
        return FIXED_DEPTH[name](channels, n_classes, size, width)


@torch.no_grad()
def initialise(net: nn.Module, generator: torch.Generator) -> nn.Module:
    """Draw all weights from `generator`, by PyTorch's default rule (Kaiming uniform with a = sqrt(5)).

    For a layer with fan-in n, weights and biases are uniform in +-1/sqrt(n); norms start at scale 1, shift 0; tokens
    and positions are standard normal. Convolutions of residual networks are normal with variance 2 / fan-out (He et
    al. 2015), as in IDC. Raises TypeError for a module with parameters or buffers for which there is no rule.
    """
    he = isinstance(net, architectures.ResNet)
    for name, module in net.named_modules():
        tensors = {n for n, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))}
        missed = tensors - _fill(module, generator, he)
        if missed:
            raise TypeError(f"{name or 'network'} ({type(module).__name__}): no rule for {', '.join(sorted(missed))}")
    return net


def _fill(module: nn.Module, generator: torch.Generator, he: bool) -> set[str]:
    """Set what one module holds itself; the names of the parameters and buffers that were set."""
    if isinstance(module, nn.Conv2d) and he:
        module.weight.normal_(0, math.sqrt(2 / module.weight[:, 0].numel()), generator=generator)
        return {"weight"}
    if isinstance(module, nn.Conv2d | nn.Linear):
        bound = 1 / math.sqrt(module.weight[0].numel())
        module.weight.uniform_(-bound, bound, generator=generator)
        if module.bias is not None:
            module.bias.uniform_(-bound, bound, generator=generator)
        return {"weight", "bias"}
    if isinstance(module, nn.GroupNorm | nn.LayerNorm):
        module.reset_parameters()  # constants only: nothing is drawn
        return {"weight", "bias"}
    if isinstance(module, architectures.Tokens):
        module.readout.normal_(generator=generator)
        module.position.normal_(generator=generator)
        return {"readout", "position"}
    if isinstance(module, architectures.Dropout):
        module.reseed(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
    return set()


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Within the block the network is in evaluation mode, so that dropout draws nothing; after it, in training mode."""
    net.eval()
    try:
        yield
    finally:
        net.train()


@contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """Within the block, the arithmetic of the networks: float32, or bfloat16 products with float32 weights and images.

    On a card float32 is as PyTorch has it by default: convolutions round their products to TF32 where they can.

    bfloat16 is PyTorch's autocast, so norms, losses and sums stay in float32; it halves memory traffic and doubles or
    more the rate of products where the device has them (H100-class cards, AVX-512 processors), and is slow elsewhere.
    """
    if precision == "float32":
        yield
        return
    # Without its cache: that keeps the rounded weights until the block ends, and they are trained within it.
    with torch.autocast(device.type, dtype=torch.bfloat16, cache_enabled=False):
        yield
