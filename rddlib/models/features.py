"""Features of images in a network that no evaluated set has touched, and k-means clusters of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..base import generator
from ..data.dataset import DataSet
from . import networks, training


@dataclass(frozen=True)
class FeatureNet:
    """The ConvNet whose features group the test images, and how it is trained on the whole training part."""

    width: int = 32
    steps: int = 1500
    batch: int = 256
    lr: float = 0.05
    augment: str = "crop"  # neither mirrored nor turned, so that one rule serves digits and photographs
    seed: int = 0

    def depth(self, size: int) -> int:
        """Blocks for images of `size` px: the last map is 4 x 4, or smaller where the images are tiny."""
        return max(2, int(math.log2(size)) - 2)

    def train(self, data: DataSet) -> nn.Module:
        """The trained network. Cost: 8 min on one core for CIFAR-10, half a minute for digits."""
        how = training.Training(steps=self.steps, batch=self.batch, lr=self.lr, augment=self.augment, cutmix=0.0)
        net = networks.build(
            "convnet",
            data.shape,
            data.n_classes,
            depth=self.depth(data.shape[1]),
            width=self.width,
            generator=generator(self.seed, "features", "net"),
        ).to(data.train_images.device)
        return training.train(net, data.train_images, data.train_labels, data, how, self.seed, "features")


@torch.inference_mode()
def embedded(net: nn.Module, images: Tensor, data: DataSet) -> Tensor:
    """Features (N, D) of images (N, C, H, W), uint8 or [0, 1], on their device."""
    embed: Callable[[Tensor], Tensor] = net.embed  # type: ignore[assignment]
    return torch.cat([embed(data.normalise(part)) for part in images.split(500)])


def kmeans(points: Tensor, k: int, seed: int, starts: int) -> NDArray[np.int64]:
    """Cluster (N,) in [0, k) of each point (N, ...): scikit-learn's k-means, best of `starts`, float64."""
    from sklearn.cluster import KMeans

    flat = points.flatten(1).double().cpu().numpy()
    clustering = KMeans(n_clusters=k, random_state=seed, n_init=starts).fit(flat)
    labels: NDArray[np.int64] = clustering.labels_.astype(np.int64)
    return labels
