"""Groups of training images: clusters around synthetic images (Algorithm 1), or found beforehand without labels.

The released code seeks the nearest synthetic image in the feature space of the current network and over the images of
all classes; the text suggests pixels and, by "cluster number = IPC", one class at a time. Both are settings.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ..base import check_choice
from ..data.dataset import DataSet
from ..models.features import FeatureNet, embedded, kmeans

Scope = Literal["all", "class"]
Space = Literal["feature", "pixel"]
SCOPES, SPACES = get_args(Scope), get_args(Space)


@torch.no_grad()
def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """Index (N,) of the nearest centre, by squared Euclidean distance: points (N, D), centres (K, D).

    Algorithm 1: C(z_t) = argmin_i ||z_t - S_i||^2; the first centre wins a tie. Cost: one (N, K) matrix.
    """
    return torch.cdist(points.flatten(1), centres.flatten(1)).argmin(1)


@torch.no_grad()
def nearest_of_class(points: Tensor, labels: Tensor, centres: Tensor, centre_labels: Tensor) -> Tensor:
    """As `nearest`, but only the centres of a point's own class are eligible."""
    gap = torch.cdist(points.flatten(1), centres.flatten(1))  # (N, K)
    return gap.masked_fill(labels[:, None] != centre_labels[None, :], torch.inf).argmin(1)


def assign(points: Tensor, labels: Tensor, centres: Tensor, centre_labels: Tensor, scope: str = "all") -> Tensor:
    """Cluster index (N,) of each point under one of the two scopes, ``all`` or ``class``."""
    check_choice("scope", scope, SCOPES)
    if scope == "class":
        return nearest_of_class(points, labels, centres, centre_labels)
    return nearest(points, centres)


def choose_centres(n_classes: int, ipc: int, most: int, generator: torch.Generator) -> Tensor:
    """Indices of the stored images that act as centres: all, or `most` random ones a class where ipc is larger.

    Section 4.1 of the paper: 10 random synthetic samples where IPC exceeds 10.
    """
    if ipc <= most:
        return torch.arange(n_classes * ipc)
    picked = [torch.randperm(ipc, generator=generator)[:most].sort().values + c * ipc for c in range(n_classes)]
    return torch.cat(picked)


def with_found_groups(data: DataSet, k: int, seed: int = 0) -> DataSet:
    """The data with groups of its training images that nobody labelled: `k` clusters in each class.

    k-means in the features of a ConvNet of width 32 trained on the training part for 300 updates: it tells classes
    apart and not yet single images. `train_groups` is then the cluster within the class, in [0, k), the largest
    cluster 0. Cost: half a minute for CIFAR-10 at 16 px. Deterministic from `seed`.
    """
    spec = FeatureNet(steps=300, seed=seed)
    net = spec.train(data)
    points = embedded(net, data.train_images, data)
    labels = data.train_labels.cpu().numpy()
    found = np.empty(len(labels), np.int64)
    for c in range(data.n_classes):
        members = np.flatnonzero(labels == c)
        clusters = kmeans(points[members], k, seed, starts=4)
        order = np.argsort(-np.bincount(clusters, minlength=k), kind="stable")
        found[members] = np.argsort(order)[clusters]
    return replace(data, train_groups=torch.from_numpy(found).to(data.train_labels.device))
