"""The architectures beside ConvNet on which distilled sets are judged: residual networks, VGG-11, a vision transformer.

They follow what IDC and GLaD evaluate on, told from the definitions. Every norm is an instance norm, GroupNorm(C, C).
On a map of one pixel it forgets its input (one value minus its own mean is 0), so in small images a stage or a pool
that would leave a single pixel before a norm keeps the map as it is. 32 px images and larger ones get the published
form.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..base import SettingError


class Network(nn.Module):
    """What all share: `embed`, then the linear layer `classifier`."""

    classifier: nn.Linear

    def embed(self, x: Tensor) -> Tensor:
        """Features before the linear layer: (N, C, H, W) -> (N, classifier.in_features)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Logits: (N, C, H, W) -> (N, n_classes)."""
        logits: Tensor = self.classifier(self.embed(x))
        return logits


def halvings(size: int, wanted: int) -> int:
    """How often, at most `wanted` times, a map of `size` pixels can be halved and keep 2 pixels for the next norm.

    Raises SettingError where it has fewer to begin with.
    """
    if size < 2:
        raise SettingError("size", size, "at least 2 px for this network")
    return min(wanted, size.bit_length() - 2)


# --- residual networks ------------------------------------------------------------------------------------


class ResNet(Network):
    """Four stages of `blocks` basic blocks, `width` to 8 x `width` channels, mean over the map, one linear layer.

    `blocks` 1 is ResNet-10, 2 is ResNet-18; `pooled` makes it ResNetAP: what strides in the plain form (convolutions,
    max pools) becomes average pooling. Stem by image size: up to 64 px conv 3x3; up to 128 px conv 3x3 and a pool by 2;
    above, conv 7x7 and a reduction by 4 in all. Stages 2 to 4 halve the map while 2 px remain: 32 px end at 4 px,
    8 px at 2 px (stage 4 does not halve), all sizes from 2 px on work.

    With 10 classes, 32 px, width 64: ResNet-10 4,903,242 parameters, ResNet-18 11,173,962; the AP forms have the same.
    A forward pass of one 32 px image takes 0.51 (10) and 1.1 (18) GFLOP, 0.88 and 1.5 in the AP forms.

    Released IDC runs use half the width on CIFAR (32 to 256 channels), and there and on ImageNet batch norm for the
    plain form in cross-architecture tests; GLaD's ResNet-18 has instance norm and the 3x3 stem at any size. Sources:
    He et al. 2016, section 4.2 and table 1; Kim et al. 2022 (IDC), appendix; Cazenavette et al. 2023.
    """

    def __init__(
        self, in_channels: int, n_classes: int, size: int, width: int, *, blocks: int, pooled: bool = False
    ) -> None:
        super().__init__()
        n_halvings = halvings(size, 3)  # above 64 px three are left whatever the stem takes
        layers: list[nn.Module] = [_stem(in_channels, width, size, pooled)]
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        for stage, (inputs, outputs) in enumerate(pairwise(widths)):
            layers.append(Residual(inputs, outputs, 1 <= stage <= n_halvings, pooled))
            layers += [Residual(outputs, outputs, False, pooled) for _ in range(blocks - 1)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(8 * width, n_classes)

    def embed(self, x: Tensor) -> Tensor:
        """Mean over the last map: (N, C, H, W) -> (N, 8 * width)."""
        features: Tensor = self.features(x)
        return features.mean((2, 3))


class Residual(nn.Module):
    """One basic block: ReLU(conv-norm-ReLU-conv-norm + shortcut); (N, inputs, H, W) -> (N, outputs, H', W').

    With `halve`, H' = H / 2: the first convolution strides, or, where `pooled`, an average pool follows its ReLU.
    The shortcut is a 1x1 convolution and a norm (with its own stride or pool) where the shape changes, else nothing.
    """

    def __init__(self, inputs: int, outputs: int, halve: bool, pooled: bool) -> None:
        super().__init__()
        stride = 2 if halve and not pooled else 1
        pool = [nn.AvgPool2d(2)] if halve and pooled else []
        self.body = nn.Sequential(
            _conv(inputs, outputs, 3, stride),
            _norm(outputs),
            nn.ReLU(),
            *pool,
            _conv(outputs, outputs, 3),
            _norm(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if halve or inputs != outputs:
            self.shortcut = nn.Sequential(_conv(inputs, outputs, 1, stride), *pool, _norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return torch.relu(self.body(x) + self.shortcut(x))


def _stem(inputs: int, outputs: int, size: int, pooled: bool) -> nn.Sequential:
    large = size > 128
    conv = _conv(inputs, outputs, 7 if large else 3, 2 if large and not pooled else 1)
    layers = [conv, _norm(outputs), nn.ReLU()]
    if size > 64:
        layers.append(nn.AvgPool2d(4 if large else 2) if pooled else nn.MaxPool2d(3, 2, padding=1))
    return nn.Sequential(*layers)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def _norm(channels: int) -> nn.Module:
    return nn.GroupNorm(channels, channels)


# --- VGG --------------------------------------------------------------------------------------------------

VGG11 = ((1,), (2,), (4, 4), (8, 8), (8, 8))  # widths of the convolutions before each of the five max pools


class VGG(Network):
    """VGG-11: eight 3x3 convolutions with bias, each with norm and ReLU, five max pools by 2, one linear layer.

    Above 32 px the last map is brought to 7 x 7 by an adaptive max pool (GLaD's form for 128 px: 8 x `width` x 49
    features); up to 32 px it is taken as it is (its CIFAR form: 8 x `width` features at 32 px). Pools that would leave
    one pixel before a norm are left out (28 px: one; 8 px: two); all sizes from 2 px on work.

    With 10 classes and width 64: 9,231,114 parameters at 32 px, 9,476,874 above. A forward pass of one 32 px image
    takes 0.31 GFLOP. Sources: Simonyan & Zisserman 2015, table 1, column A (which has three linear layers and
    no norm); Cazenavette et al. 2023.
    """

    def __init__(self, in_channels: int, n_classes: int, size: int, width: int) -> None:
        super().__init__()
        pools = halvings(size, len(VGG11) - 1)
        layers: list[nn.Module] = []
        inputs = in_channels
        for number, group in enumerate(VGG11, start=1):
            for outputs in (factor * width for factor in group):
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), _norm(outputs), nn.ReLU()]
                inputs = outputs
            if number <= pools or number == len(VGG11):
                layers.append(nn.MaxPool2d(2))
        side = (size >> pools) // 2
        if size > 32:
            layers.append(nn.AdaptiveMaxPool2d(7))
            side = 7
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs * side**2, n_classes)

    def embed(self, x: Tensor) -> Tensor:
        """The last map, flat: (N, C, H, W) -> (N, 8 * width * side**2)."""
        features: Tensor = self.features(x)
        return features.flatten(1)


# --- vision transformer -----------------------------------------------------------------------------------

DROPOUT = 0.1


def heads(width: int) -> int:
    """Attention heads of a ViT: 8, as published, where each keeps 16 dimensions; fewer, at least one, in narrow ones.

    Raises SettingError where `width` cannot be shared equally.
    """
    number = min(8, max(1, width // 16))
    if width % number:
        raise SettingError("width", width, f"a multiple of {number}, the number of heads at this width")
    return number


def patch_size(size: int) -> int:
    """Side of a ViT patch in pixels: 16 from 64 px on, 4 from 16 px on, 2 below.

    Raises SettingError where `size` is no multiple of it or below 4 px.
    """
    patch = 16 if size >= 64 else 4 if size >= 16 else 2
    if size % patch or size < 2 * patch:
        raise SettingError("size", size, "a multiple of 16 px from 64 px on, of 4 px from 16 px on, or 4, 6, ... 14 px")
    return patch


class ViT(Network):
    """Vision transformer of `width` dimensions, 8 heads (`heads`), feed-forward layers of `width`, dropout 0.1.

    From 64 px on: patches of 16 px, 10 layers and, as in GLaD's 128 px network, **no LayerNorm at all** (its lines are
    commented out in the released file). Below: patches of 4 px (2 px under 16), 6 layers, pre-norm LayerNorms as usual
    and one before the linear layer, GLaD's CIFAR form. A learned token is read out, positions are learned. Attention is
    written out, since the fused kernels cannot be differentiated twice.

    With 10 classes and width 512: 16,176,650 parameters at 128 px, 9,523,722 at 32 px. A forward pass of one image
    takes 2.2 GFLOP at 128 px, 1.3 at 32 px. Sources: Dosovitskiy et al. 2021, section 3.1; Cazenavette et al. 2023.
    """

    def __init__(self, in_channels: int, n_classes: int, size: int, width: int) -> None:
        super().__init__()
        self.patch = patch_size(size)
        depth, norm = (10, nn.Identity) if size >= 64 else (6, nn.LayerNorm)
        self.project = nn.Linear(in_channels * self.patch**2, width)
        self.tokens = Tokens((size // self.patch) ** 2, width)
        self.dropout = Dropout(DROPOUT)
        self.layers = nn.ModuleList(part for _ in range(depth) for part in _layer(width, norm))
        self.norm = norm(width)
        self.classifier = nn.Linear(width, n_classes)

    def embed(self, x: Tensor) -> Tensor:
        """The read-out token after the last layer (and norm, if any): (N, C, H, W) -> (N, width)."""
        x = self.dropout(self.tokens(self.project(patches(x, self.patch))))  # (N, 1 + P, width)
        for layer in self.layers:
            x = x + layer(x)
        token: Tensor = self.norm(x[:, 0])
        return token


def patches(x: Tensor, side: int) -> Tensor:
    """Cut images into flat patches: (N, C, H, W) -> (N, H * W / side**2, C * side**2), row by row."""
    n, c, h, w = x.shape
    cut = x.reshape(n, c, h // side, side, w // side, side).permute(0, 2, 4, 1, 3, 5)
    return cut.reshape(n, -1, c * side**2)


class Tokens(nn.Module):
    """Put the read-out token first and add the positions, both learned: (N, P, width) -> (N, 1 + P, width)."""

    def __init__(self, n_patches: int, width: int) -> None:
        super().__init__()
        self.readout = nn.Parameter(torch.empty(1, 1, width))
        self.position = nn.Parameter(torch.empty(1, 1 + n_patches, width))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return torch.cat([self.readout.expand(len(x), -1, -1), x], dim=1) + self.position


class Attention(nn.Module):
    """Softmax attention of several heads, no bias on queries, keys and values: (N, T, width) -> (N, T, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = heads(width)
        self.inputs = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        n, t, width = x.shape
        q, k, v = self.inputs(x).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (N, heads, T, width / heads)
        weights = (q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1)  # (N, heads, T, T)
        mixed: Tensor = self.output((weights @ v).transpose(1, 2).reshape(n, t, width))
        return mixed


def _layer(width: int, norm: Callable[[int], nn.Module]) -> tuple[nn.Sequential, nn.Sequential]:
    wide = (nn.Linear(width, width), nn.GELU(), Dropout(DROPOUT), nn.Linear(width, width))
    return (
        nn.Sequential(norm(width), Attention(width), Dropout(DROPOUT)),
        nn.Sequential(norm(width), *wide, Dropout(DROPOUT)),
    )


class Dropout(nn.Module):
    """Dropout that draws from a stream of its own, never from the global one; nothing is dropped in eval mode.

    The stream starts from `seed`, which `networks.initialise` sets, at the first use on a device; a copy of the module
    goes on where the original stood. Two networks of one seed drop the same units in the same calls.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.seed: int | None = None
        self.stream: torch.Generator | None = None

    def reseed(self, seed: int) -> None:
        """Start the stream anew."""
        self.seed = seed
        self.stream = None

    def forward(self, x: Tensor) -> Tensor:
        """Zero each entry with probability p and divide the others by 1 - p."""
        if not self.training:
            return x
        if self.seed is None:
            raise RuntimeError("dropout without a seed: build the network with networks.build")
        if self.stream is None or self.stream.device != x.device:
            self.stream = torch.Generator(device=x.device).manual_seed(self.seed)
        return x * torch.empty_like(x).bernoulli_(1 - self.p, generator=self.stream).div_(1 - self.p)
