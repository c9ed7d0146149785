"""Train networks from scratch on a small set and test them: accuracy, shifts, groups.

Always the last step, never the best on test data; several evaluation seeds nested in one distillation seed. What the
best step would have claimed is measured by the audit, which looks on and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..base import SettingError, Settings, derive_seed, generator, raise_all, setting
from ..data import augment
from ..data.dataset import DataSet
from ..models import fused, networks
from ..models import training as recipes
from ..models.training import Callback, Training
from .best_step import SHARE, Audit, checkpoints, held_out
from .metrics import Metrics, TestBench

SLACK = 1e-3  # beyond [0, 1] that interpolation in float32 may leave


class EvaluateSettings(Settings):
    """How a set is judged. Defaults are IDC's for 32 px, with the number of steps said outright."""

    title: ClassVar[str] = "Evaluation"

    eval_network: networks.Network = setting("convnet", "network trained on the set")
    eval_depth: int = setting(3, "its blocks", low=1, high=8)
    eval_width: int = setting(128, "its channels", low=1)
    eval_recipe: recipes.Recipe = setting("idc", "schedule, augmentation rule and weights tested")
    eval_steps: int = setting(7000, "updates of one training, the same for every set (IDC: 1000 epochs of 7)", low=1)
    eval_scale_steps: bool = setting(False, "as published: more updates where a set decodes to more batches a pass")
    eval_batch: int = setting(64, "images in one update", low=1)
    eval_lr: float = setting(0.01, "highest learning rate; the recipe says how it moves", above=0)
    eval_augment: augment.Strategy = setting(
        "color_crop_flip_scale_rotate", "augmentation in training; no flip where digits are read"
    )
    eval_cutmix: float = setting(0.5, "probability of CutMix in training", low=0, high=1)
    eval_seeds: int = setting(3, "trainings from scratch, each with its own seed", low=1)
    eval_shifts: bool = setting(True, "test under noise, blur and inversion too")
    eval_corruptions: bool = setting(False, "test under twelve more corruptions, three severities each, too")
    eval_groups: int = setting(10, "k-means groups of test images for cluster-min", low=2)
    eval_honest_groups: bool = setting(False, "test groups in independent features, and balanced by class, too")
    eval_audit: int = setting(0, "steps in each training at which test and validation accuracy are noted", low=0)
    eval_precision: networks.Precision = setting(
        "float32", "arithmetic of these trainings and tests; bfloat16: products alone"
    )
    eval_part: Literal["test", "validation"] = setting(
        "test", "what is tested: the test part, or a tenth of the training part kept out"
    )

    def conflicts(self) -> Iterator[SettingError]:
        """More audits than steps."""
        yield from super().conflicts()
        if self.eval_audit > self.eval_steps:
            yield SettingError("eval_audit", self.eval_audit, f"at most eval_steps, {self.eval_steps}")

    def training(self, n_images: int, factor: int = 1) -> Training:
        """How a network is trained on `n_images` decoded images of a set of this factor."""
        return Training(
            recipe=self.eval_recipe,
            steps=recipes.updates(self.eval_steps, n_images, self.eval_batch, factor, self.eval_scale_steps),
            batch=self.eval_batch,
            lr=self.eval_lr,
            augment=self.eval_augment,
            cutmix=self.eval_cutmix,
        )

    def build_eval_network(self, data: DataSet, seed: int, device: torch.device) -> nn.Module:
        """The network that is trained on a set, for images like `data`, its weights drawn from `seed`."""
        return networks.build(
            self.eval_network,
            data.shape,
            data.n_classes,
            depth=self.eval_depth,
            width=self.eval_width,
            generator=generator(seed, "evaluate", "net"),
        ).to(device, non_blocking=True)


def conflicts(data: DataSet, settings: EvaluateSettings, whole: bool = False) -> Iterator[SettingError]:
    """Each setting that the data cannot serve; `whole`: the set is the training part itself."""
    s = settings
    yield from networks.conflicts(s.eval_network, data.shape, s.eval_depth, s.eval_width, "eval_")
    if s.eval_groups > len(data.test_labels):
        yield SettingError("eval_groups", s.eval_groups, f"at most {len(data.test_labels)}, the tested images")
    if s.eval_corruptions and data.shape[-1] < 8:
        yield SettingError("eval_corruptions", True, f"false for images of {data.shape[-1]} pixels a side (least: 8)")
    if s.eval_honest_groups and len(data.test_labels) < data.n_classes:
        yield SettingError("eval_honest_groups", True, f"for at least {data.n_classes} tested images, one a class")
    if s.eval_audit and (whole or round(SHARE * int(data.train_labels.bincount().max())) == 0):
        yield SettingError("eval_audit", s.eval_audit, "0 where no training image is left for validation")


def check_images(images: Tensor, labels: Tensor, data: DataSet, pixels: bool = True) -> None:
    """Raise SettingError unless a set is what `data` needs: shape, labels and, with `pixels`, values.

    images: (N, C, H, W), uint8 or floats in [0, 1], never normalised: that is done here, and twice would be wrong.
    labels: int64 (N,) in [0, n_classes), or float (N, n_classes), one distribution a row.
    """
    if images.shape[1:] != data.shape or not len(images):
        raise SettingError("images", f"shape {tuple(images.shape)}", f"(N, {', '.join(map(str, data.shape))})")
    if len(labels) != len(images):
        raise SettingError("labels", len(labels), f"one for each of {len(images)} images")
    if labels.is_floating_point():
        fits = labels.shape[1:] == (data.n_classes,) and torch.allclose(labels.sum(1), torch.ones(()).to(labels))
        if not fits or labels.min() < 0:
            allowed = f"integers, or (N, {data.n_classes}), none below 0, with rows of sum 1"
            raise SettingError("labels", f"floats {tuple(labels.shape)}", allowed)
    elif labels.dtype != torch.int64:
        raise SettingError("labels", str(labels.dtype).removeprefix("torch."), "int64, or floats: a distribution a row")
    elif labels.ndim != 1 or labels.min() < 0 or labels.max() >= data.n_classes:
        raise SettingError("labels", f"{int(labels.min())}..{int(labels.max())}", f"0..{data.n_classes - 1}, (N,)")
    if pixels and images.dtype != torch.uint8:
        low, high = (float(end) for end in images.aminmax())
        if not (images.is_floating_point() and low >= -SLACK and high <= 1 + SLACK):
            given = f"{str(images.dtype).removeprefix('torch.')} from {low:.3g} to {high:.3g}"
            raise SettingError("images", given, "uint8, or floats in [0, 1]; they are normalised here, not before")


def train(
    images: Tensor,
    labels: Tensor,
    data: DataSet,
    settings: EvaluateSettings,
    seed: int,
    factor: int = 1,
    at: Collection[int] = (),
    callback: Callback | None = None,
) -> nn.Module:
    """Train one network on `images` (N, C, H, W), uint8 or [0, 1], from scratch, by the recipe of the settings.

    Returns what is tested, in evaluation mode: the last step. `at` and `callback` as in `training.train`.
    """
    how = settings.training(len(images), factor)
    net = settings.build_eval_network(data, seed, images.device)
    return recipes.train(net, images, labels, data, how, seed, at=at, callback=callback)


def side_by_side(settings: EvaluateSettings, device: torch.device) -> bool:
    """Whether the trainings run in one network: on CUDA, unless each is looked into or the network has dropout.

    This is no setting, since the numbers are the same up to rounding, as they are from one device to another.
    """
    return device.type == "cuda" and settings.eval_network != "vit" and not settings.eval_audit


def evaluate(
    images: Tensor,
    labels: Tensor,
    data: DataSet,
    settings: EvaluateSettings,
    seed: int,
    folders: Sequence[str | Path] = (),
    done: Sequence[Metrics] = (),
    on_seed: Callable[[list[Metrics]], None] | None = None,
    factor: int = 1,
) -> Metrics:
    """Train `eval_seeds` networks from scratch on `images` and test each; lists have one entry a network.

    Accuracies are in per cent, None for a group without test images. `cluster_min` is the smallest accuracy of the
    k-means groups as published, `class_min` that of the classes; where the data names groups of its test images,
    `known_accuracy` (by group), `known_min` (worst group), `known_gap` (best less worst) and `known_class_min` (worst
    class in a group); with `eval_honest_groups` there are `feature_class_min`, `feature_min` and, where a class has
    five images in some group, `balanced_min`. `group_sizes`, `class_sizes` and so on stand beside them
    (`metrics.nulls` says what chance gives), and `steps`, the updates of one training. With `eval_audit` there are
    `audit_last`, `audit_chosen`, `audit_best` and the curves behind them at `audit_steps`. `done` holds the results of
    trainings that need not be repeated; `on_seed` is called with all results so far; `folders` are those of
    `groups.kmeans_groups`; `factor` is that of a multi-formation set, used by `eval_scale_steps`.
    """
    raise_all(conflicts(data, settings))
    fused.keep_memory()
    how = settings.training(len(images), factor)
    at = checkpoints(how.steps, settings.eval_audit)
    validation = held_out(data, images) if at else None  # refused, if it must be, before the first training
    bench = TestBench.of(
        data,
        settings.eval_groups,
        settings.eval_shifts,
        settings.eval_honest_groups,
        folders,
        settings.eval_corruptions,
    )
    rows = list(done)
    seeds = [derive_seed(seed, "evaluation", number) for number in range(len(rows), settings.eval_seeds)]
    trained: list[nn.Module] = []
    if seeds and side_by_side(settings, images.device):
        fresh = [settings.build_eval_network(data, each, images.device) for each in seeds]
        with networks.arithmetic(settings.eval_precision, images.device):
            trained = recipes.train_together(fresh, images, labels, data, how, seeds)
    for number, each in enumerate(seeds):
        audit = Audit(data, *validation) if validation else None
        with networks.arithmetic(settings.eval_precision, images.device):
            net = trained[number] if trained else train(images, labels, data, settings, each, factor, at, audit)
            recipes.check_finite(net, how)
            row = bench.score(net, data)
        rows.append(row | audit.row() if audit else row)
        if on_seed is not None:
            on_seed(rows)
    metrics: Metrics = {name: [row[name] for row in rows] for name in rows[0]}
    metrics |= bench.facts(data) | {"steps": how.steps}
    return metrics | {"audit_steps": at} if at else metrics
