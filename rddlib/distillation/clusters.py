"""Groups of training images: clusters around synthetic images (Algorithm 1), or found beforehand without labels.

The released code seeks the nearest synthetic image in the feature space of the current network and over the images of
all classes; the text suggests pixels and, by "cluster number = IPC", one class at a time. Both are settings.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..data.dataset import DataSet
from ..models.features import FeatureNet, embedded, kmeans

Scope = Literal["all", "class"]
Space = Literal["feature", "pixel"]


@torch.no_grad()
def assign(points: Tensor, labels: Tensor, centres: Tensor, centre_labels: Tensor, scope: Scope = "all") -> Tensor:
    """Index (N,) of the centre that is nearest to each point: C(z_t) = argmin_i ||z_t - S_i||^2 (Algorithm 1).

    points (N, ...) and centres (K, ...) are flattened; the first centre wins a tie. Under scope "class" only the
    centres of a point's own class are eligible. Cost: one (N, K) matrix.
    """
    gaps = torch.cdist(points.flatten(1), centres.flatten(1))  # (N, K)
    if scope == "class":
        gaps = gaps.masked_fill(labels[:, None] != centre_labels[None, :], torch.inf)
    return gaps.argmin(1)


def with_found_groups(data: DataSet, k: int) -> DataSet:
    """The data with groups of its training images that nobody labelled: `k` clusters in each class.

    k-means in the features of a ConvNet of width 32 trained on the training part for 300 updates: it tells classes
    apart and not yet single images. `train_groups` is then the cluster within the class, in [0, k), the largest
    cluster 0. Cost: half a minute for CIFAR-10 at 16 px. Deterministic.
    """
    net = FeatureNet(steps=300).train(data)
    points = embedded(net, data.train_images, data)
    groups = torch.empty(len(data.train_labels), dtype=torch.int64)
    for members in data.members:
        clusters = kmeans(points[members.to(points.device)], k, 0, starts=4)
        by_size = np.argsort(-np.bincount(clusters, minlength=k), kind="stable")
        groups[members] = torch.from_numpy(np.argsort(by_size)[clusters])
    return replace(data, train_groups=groups.to(data.train_labels.device))
