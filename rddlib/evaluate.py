"""Train networks from scratch on a small set and test them: accuracy, shifts, groups. IDC's common recipe.

Always the last step, never the best on test data; several evaluation seeds nested in one distillation seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import augment, nets
from .base import check_settings, derive_seed, generator, setting
from .corrupt import SHIFTS, shifted
from .data import DataSet
from .groups import kmeans_groups

Metrics = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """How a set is judged. Defaults are IDC's for 32 px, with the number of steps said outright."""

    eval_network: str = setting("convnet", "network trained on the set", choices=nets.NETWORKS)
    eval_depth: int = setting(3, "its blocks", low=1, high=8)
    eval_width: int = setting(128, "its channels", low=1)
    eval_steps: int = setting(7000, "updates of one training, the same for every set (IDC: 1000 epochs of 7)", low=1)
    eval_batch: int = setting(64, "images in one update", low=1)
    eval_lr: float = setting(0.01, "learning rate; times 0.2 after 2/3 and again after 5/6", above=0)
    eval_augment: str = setting(
        "color_crop_flip_scale_rotate", "augmentation in training; no flip where digits are read"
    )
    eval_cutmix: float = setting(0.5, "probability of CutMix in training", low=0, high=1)
    eval_seeds: int = setting(3, "trainings from scratch, each with its own seed", low=1)
    eval_shifts: bool = setting(True, "test under noise, blur and inversion too")
    eval_groups: int = setting(10, "k-means groups of test images for cluster-min", low=2)
    eval_part: str = setting("test", "what is tested: the test part, or a tenth of the training part kept out",
                             choices=("test", "validation"))  # fmt: skip

    def __post_init__(self) -> None:
        check_settings(self)
        augment.operations(self.eval_augment)


def train(images: Tensor, labels: Tensor, data: DataSet, settings: EvaluateSettings, seed: int) -> nn.Module:
    """Train one network on `images` (N, C, H, W), uint8 or [0, 1], from scratch; the last step is returned.

    SGD with momentum 0.9 and weight decay 5e-4. Epochs are reshuffled passes; a set smaller than a batch is one batch.
    """
    streams = {name: generator(seed, "evaluate", name) for name in ("net", "order", "augment")}
    net = nets.build(
        settings.eval_network, data.shape, data.n_classes, depth=settings.eval_depth, width=settings.eval_width,
        generator=streams["net"],
    ).to(images.device)  # fmt: skip
    optimiser = torch.optim.SGD(net.parameters(), lr=settings.eval_lr, momentum=0.9, weight_decay=5e-4)
    milestones = [2 * settings.eval_steps // 3, 5 * settings.eval_steps // 6]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, milestones, gamma=0.2)
    for index in batches(len(images), settings.eval_batch, settings.eval_steps, streams["order"]):
        index = index.to(images.device)
        loss = _loss(net, data.normalise(images[index]), labels[index], settings, streams["augment"])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
    return net.eval()


def batches(n: int, size: int, steps: int, stream: torch.Generator) -> list[Tensor]:
    """Index batches of reshuffled passes over `n` items, `steps` in all; the last batch of a pass may be smaller."""
    found: list[Tensor] = []
    while len(found) < steps:
        found.extend(torch.randperm(n, generator=stream).split(size))
    return found[:steps]


def _loss(net: nn.Module, x: Tensor, y: Tensor, settings: EvaluateSettings, stream: torch.Generator) -> Tensor:
    x = augment.apply(x, augment.draw(settings.eval_augment, len(x), x.shape[-1], stream))
    x, partner, share = augment.cutmix(x, stream, settings.eval_cutmix)
    logits = net(x)
    own = F.cross_entropy(logits, y)
    return own if share == 1 else share * own + (1 - share) * F.cross_entropy(logits, y[partner])


@torch.inference_mode()
def predict(net: nn.Module, images: Tensor, data: DataSet, batch: int = 500) -> Tensor:
    """Predicted class (N,) of each image (N, C, H, W), uint8 or [0, 1]."""
    return torch.cat([net(data.normalise(part)).argmax(1) for part in images.split(batch)])


# --- tests ------------------------------------------------------------------------------------------------


def group_accuracy(correct: Tensor, groups: Tensor, k: int) -> tuple[list[float], list[int]]:
    """Accuracy in per cent and size of each of `k` groups; correct bool (N,), groups (N,) in [0, k)."""
    sizes = groups.bincount(minlength=k)
    hits = groups.bincount(weights=correct.double(), minlength=k)
    return (100 * hits / sizes.clamp_min(1)).tolist(), sizes.tolist()


@dataclass(frozen=True)
class TestBench:
    """The test images of every test, made once and shared by all trainings."""

    __test__ = False  # not a test class for pytest

    images: dict[str, Tensor]
    groups: Tensor
    k: int
    groups_sha256: str

    @classmethod
    def of(cls, data: DataSet, settings: EvaluateSettings, folders: Sequence[str | Path] = ()) -> TestBench:
        """Standard and shifted images and the k-means groups, saved in the last of `folders`."""
        images = {"accuracy": data.test_images}
        if settings.eval_shifts:
            images |= {kind: shifted(data.test_images, kind) for kind in SHIFTS}
        points = data.normalise(data.test_images)
        found, sha = kmeans_groups(points, settings.eval_groups, 0, *folders)
        return cls(images, found.to(data.test_images.device), settings.eval_groups, sha)

    def score(self, net: nn.Module, data: DataSet) -> Metrics:
        """All metrics of one trained network, accuracies in per cent."""
        metrics: Metrics = {}
        for name, images in self.images.items():
            correct = predict(net, images, data) == data.test_labels
            metrics[name] = 100 * float(correct.double().mean())
            if name == "accuracy":
                metrics["cluster_accuracy"], _ = group_accuracy(correct, self.groups, self.k)
                metrics["cluster_min"] = min(metrics["cluster_accuracy"])
                metrics["class_accuracy"], _ = group_accuracy(correct, data.test_labels, data.n_classes)
                metrics["class_min"] = min(metrics["class_accuracy"])
        return metrics


def evaluate(
    images: Tensor,
    labels: Tensor,
    data: DataSet,
    settings: EvaluateSettings,
    seed: int,
    folders: Sequence[str | Path] = (),
    done: Sequence[Metrics] = (),
    on_seed: Callable[[list[Metrics]], None] | None = None,
) -> Metrics:
    """Train `eval_seeds` networks from scratch on `images` and test each; lists have one entry a network.

    Accuracies are in per cent. `cluster_min` is the smallest accuracy of the k-means groups as published,
    `class_min` that of the classes; `group_sizes` and `class_sizes` stand beside them. `done` holds the results of
    trainings that need not be repeated; `on_seed` is called with all results so far; `folders` are those of
    `groups.kmeans_groups`.
    """
    bench = TestBench.of(data, settings, folders)
    rows = list(done)
    for number in range(len(rows), settings.eval_seeds):
        net = train(images, labels, data, settings, derive_seed(seed, "evaluation", number))
        rows.append(bench.score(net, data))
        if on_seed is not None:
            on_seed(rows)
    metrics: Metrics = {name: [row[name] for row in rows] for name in rows[0]}
    metrics["group_sizes"] = bench.groups.bincount(minlength=bench.k).tolist()
    metrics["class_sizes"] = data.test_labels.bincount(minlength=data.n_classes).tolist()
    metrics["groups_sha256"] = bench.groups_sha256
    return metrics
