"""What a trained network is tested on: standard and shifted images, accuracy in groups, the worst of them, its null.

Partitions of the test images: "cluster" (k-means of pixels, as published), "class", and, where asked for, two in the
features of an independent network (`groups.feature_groups`). "balanced" is the published partition again, with every
class weighing the same in each group. Where the data names groups of its test images there are "known", these groups,
and "known_class", their parts by class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.dataset import DataSet, balanced
from ..data.shifts import CORRUPTIONS, MATCHED, SHIFTS, corrupted, shifted, shifted_as_defined
from ..models.training import predict
from ..stats import Interval, minimum_null
from . import groups
from .groups import Partition

Metrics = dict[str, Any]
PUBLISHED_NAMES = {"cluster_sizes": "group_sizes", "cluster_sha256": "groups_sha256"}  # as records have them
MOST_CORRUPTED, LEVELS = 2000, (1, 3, 5)  # images and severities of the corruptions: 38 tests in tens of seconds
LEAST = 5  # images of a class in a group, for the class to count there under "balanced"


def group_accuracy(correct: Tensor, groups: Tensor, k: int) -> tuple[list[float | None], list[int]]:
    """Accuracy in per cent and size of each of `k` groups; correct bool (N,), groups (N,) in [0, k).

    A group without images has no accuracy: None.
    """
    sizes: list[int] = groups.bincount(minlength=k).tolist()
    hits: list[float] = groups.bincount(weights=correct.double(), minlength=k).tolist()
    return [100 * h / n if n else None for h, n in zip(hits, sizes, strict=True)], sizes


def balanced_accuracy(correct: Tensor, part: Partition, labels: Tensor, n_classes: int) -> list[float]:
    """Accuracy in per cent of each group (k,), every class that has at least 5 images in the group weighing the same.

    That is, the mean over those classes of the accuracy on the class's images in the group; 0 where there is no such
    class, and then `balanced_sizes` says 0 too. It takes away that some groups hold more of the hard classes.
    """
    hits, counts = (_by_class(part, labels, n_classes, weights) for weights in (correct.double(), None))
    counted = counts >= LEAST  # (k, n_classes)
    shares = torch.where(counted, hits / counts.clamp_min(1), 0)
    return (100 * shares.sum(1) / counted.sum(1).clamp_min(1)).tolist()


def balanced_sizes(part: Partition, labels: Tensor, n_classes: int) -> list[int]:
    """Effective size of each group under `balanced_accuracy` (k,), rounded down.

    The mean of m class accuracies from n_1 .. n_m images varies as one accuracy from m^2 / (1/n_1 + .. + 1/n_m) images.
    """
    counts = _by_class(part, labels, n_classes, None)
    counted = counts >= LEAST
    inverse = torch.where(counted, 1 / counts.clamp_min(1), 0).sum(1)
    sizes = torch.where(inverse > 0, counted.sum(1) ** 2 / inverse, 0)
    return (sizes + 1e-9).floor().long().tolist()  # 15 is 15, also where it comes out as 14.999...


def _by_class(part: Partition, labels: Tensor, n_classes: int, weights: Tensor | None) -> Tensor:
    """Images, or their summed weights, of each class in each group: float64 (k, n_classes)."""
    cell = part.groups * n_classes + labels
    return cell.bincount(weights=weights, minlength=part.k * n_classes).double().view(part.k, n_classes)


@dataclass(frozen=True)
class TestBench:
    """The test images of every test and their partitions in groups, made once and shared by all trainings."""

    __test__ = False  # not a test class for pytest

    images: dict[str, Tensor]
    partitions: dict[str, Partition]
    balanced: bool
    corrupted: dict[str, Tensor] = field(default_factory=dict)
    chosen: Tensor | None = None  # indices of the test images that are corrupted

    @classmethod
    def of(
        cls,
        data: DataSet,
        k: int = 10,
        shifts: bool = True,
        honest: bool = False,
        folders: Sequence[str | Path] = (),
        corruptions: bool = False,
    ) -> TestBench:
        """Standard and (`shifts`) shifted images; `k` published groups and (`honest`) the others.

        Noise and blur have the numbers of CIFAR-10 on every data set, on the images as the network sees them; the
        released ones of ImageNet act on the photograph (`shifts.shifted_as_defined`).

        `corruptions`: twelve kinds at severities 1, 3 and 5 and the matched shifts, of at most 2,000 test images, the
        same number of each class. Groups are looked for in `folders`; those that must be made are saved in the last.
        """
        images = {"accuracy": data.test_images}
        if shifts:
            images |= {kind: shifted(data.test_images, kind) for kind in SHIFTS}
        device = data.test_labels.device
        pixel_groups, sha = groups.kmeans_groups(data.normalise(data.test_images), k, 0, *folders)
        partitions = {
            "cluster": Partition(pixel_groups.to(device), k, sha),
            "class": Partition(data.test_labels, data.n_classes, ""),
        }
        partitions |= _known(data)
        if honest:
            for kind, part in groups.feature_groups(data, *folders).items():
                partitions[kind] = Partition(part.groups.to(device), part.k, part.sha256)
        chosen = torch.from_numpy(balanced(data.test_labels.cpu().numpy(), MOST_CORRUPTED, "corruptions"))
        corrupted = _corrupted(data, data.test_images[chosen.to(data.test_images.device)]) if corruptions else {}
        return cls(images, partitions, honest, corrupted, chosen.to(device))

    def score(self, net: nn.Module, data: DataSet) -> Metrics:
        """All metrics of one trained network, accuracies in per cent."""
        metrics: Metrics = {}
        for name, images in self.images.items():
            correct = predict(net, images, data) == data.test_labels
            metrics[name] = 100 * float(correct.double().mean())
            if name == "accuracy":
                metrics |= self._by_group(correct, data)
        for name, images in self.corrupted.items():
            correct = predict(net, images, data) == data.test_labels[self.chosen]
            metrics[name] = 100 * float(correct.double().mean())
        return metrics

    def _by_group(self, correct: Tensor, data: DataSet) -> Metrics:
        """Accuracy in each group of each partition, and the smallest; `correct` bool (N,), of the standard images."""
        metrics: Metrics = {}
        for kind, part in self.partitions.items():
            accuracies, sizes = group_accuracy(correct, part.groups, part.k)
            metrics |= {f"{kind}_accuracy": accuracies, f"{kind}_min": _least(accuracies, sizes)}
        if "known" in self.partitions:
            filled = [accuracy for accuracy in metrics["known_accuracy"] if accuracy is not None]
            metrics["known_gap"] = max(filled) - min(filled)
        if self.balanced and any(sizes := self.sizes(data)["balanced"]):  # else no class counts in any group
            by_class = balanced_accuracy(correct, self.partitions["cluster"], data.test_labels, data.n_classes)
            metrics |= {"balanced_accuracy": by_class, "balanced_min": _least(by_class, sizes)}
        return metrics

    def sizes(self, data: DataSet) -> dict[str, list[int]]:
        """Images in each group of each partition; for "balanced" the effective number."""
        sizes = {kind: part.sizes for kind, part in self.partitions.items()}
        if self.balanced:
            sizes["balanced"] = balanced_sizes(self.partitions["cluster"], data.test_labels, data.n_classes)
        return sizes

    def facts(self, data: DataSet) -> Metrics:
        """What holds for every network: sizes and hashes of the partitions."""
        sizes = {f"{kind}_sizes": sizes for kind, sizes in self.sizes(data).items()}
        hashes = {f"{kind}_sha256": part.sha256 for kind, part in self.partitions.items() if part.sha256}
        return {PUBLISHED_NAMES.get(name, name): value for name, value in (sizes | hashes).items()}


def _known(data: DataSet) -> dict[str, Partition]:
    """The groups that the data names, and their parts by class (group * n_classes + class); {} where it names none."""
    if data.test_groups is None:
        return {}
    known = data.test_groups.to(data.test_labels.device)
    k = int(known.max()) + 1
    by_class = known * data.n_classes + data.test_labels
    return {"known": Partition(known, k, ""), "known_class": Partition(by_class, k * data.n_classes, "")}


def _corrupted(data: DataSet, images: Tensor) -> dict[str, Tensor]:
    """The corrupted images of the held-out robustness test, e.g. "fog_3", and the two matched shifts."""
    matched = {kind: shifted_as_defined(images, kind, data.name) for kind in MATCHED}
    return matched | {f"{kind}_{level}": corrupted(images, kind, level) for kind in CORRUPTIONS for level in LEVELS}


def _least(accuracies: Sequence[float | None], sizes: Sequence[int]) -> float:
    """The smallest accuracy of the groups that hold images."""
    return min(a for a, n in zip(accuracies, sizes, strict=True) if n and a is not None)


def nulls(metrics: Metrics) -> dict[str, Interval]:
    """For each partition in the metrics of `evaluate`, the minimum that sampling alone gives: "cluster_min" and so on.

    `stats.minimum_null` at the mean accuracy of the groups, weighted by their sizes, over all evaluation seeds. Groups
    that truly differ, by their classes for instance, fall below it as well: it excludes chance, not causes.
    """
    intervals = {}
    for kind in ("cluster", "class", "known", "known_class", "feature_class", "feature", "balanced"):
        if f"{kind}_min" in metrics:
            sizes = metrics[PUBLISHED_NAMES.get(f"{kind}_sizes", f"{kind}_sizes")]
            accuracies = np.array(metrics[f"{kind}_accuracy"], dtype=np.float64)  # None, of no weight, is nan
            mean = float(np.average(np.nan_to_num(accuracies).mean(0), weights=sizes))
            intervals[f"{kind}_min"] = minimum_null(mean, sizes)
    return intervals
