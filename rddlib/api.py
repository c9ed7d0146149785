"""What a user calls by ``rddlib.NAME``: the whole way from a data set to a record in a few lines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from .base import SettingError, check_type
from .data.dataset import DataSet
from .data.dataset import load as load_dataset
from .distillation import distill as loop
from .distillation.distill import OnImages
from .distillation.settings import DISTILLED, DistillSettings
from .distillation.synthetic import SyntheticSet, quantised
from .evaluation import evaluate as judge
from .evaluation.metrics import Metrics
from .experiments import experiment as runs
from .experiments.experiment import Content, Experiment, fitted
from .experiments.records import Record, Store

__all__ = ["distill", "evaluate", "load_dataset", "run"]

LOADED = "a DataSet, as load_dataset returns"


def distill(data: DataSet, scale: str = "smoke", on_images: OnImages | None = None, **settings: Any) -> SyntheticSet:
    """Distil a data set, on its device, and return the synthetic images as a record has them: rounded to 256 levels.

    `scale` names the preset for everything that `settings` leaves open (smoke: seconds for digits); `settings` are
    fields of an Experiment that shape the set: ``distill(data, method="idc", risk="upper", ipc=1, seed=0)``.
    `on_images` (not for kip) is called with the number of outer steps done and the set as it then is, first with 0 and
    the start. Nothing is written; for runs that are recorded and can be stopped and resumed use `run`. Raises
    SettingError for a setting that is unknown, out of range, or does not fit the data.
    """
    check_type("data", data, DataSet, LOADED)
    if unknown := sorted(set(settings) - set(DistillSettings.declared())):
        raise SettingError(unknown[0], settings[unknown[0]], "a setting of the distillation")
    chosen = fitted(Experiment.preset(scale, **({"dataset": data.name} | settings)), Content.of(data))
    if chosen.method not in DISTILLED:
        raise SettingError("method", chosen.method, f"one that distils: {', '.join(DISTILLED)}")
    watch = None if on_images is None else lambda done, now: on_images(done, quantised(now))
    made, _ = loop.distill(data, chosen, on_images=watch)
    return quantised(made)


def evaluate(images: SyntheticSet | Tensor, data: DataSet, labels: Tensor | None = None, **settings: Any) -> Metrics:
    """Train networks from scratch on a small set and test them on the test part of `data`.

    images: a SyntheticSet, or (N, C, H, W), uint8 or floats in [0, 1], never normalised, with `labels` int64 (N,) or
    float (N, n_classes), a distribution a row. `settings`: fields of
    an Experiment that begin with ``eval_``, and ``scale`` (default smoke) and ``seed`` (default 0). Returns lists with
    one entry a training, accuracies in per cent: `accuracy`, `cluster_min` (worst k-means group), `class_min`, shifts.
    Raises SettingError for unknown settings, images of another type, size, order or range, and labels that do not fit.
    """
    check_type("data", data, DataSet, LOADED)
    scale = settings.pop("scale", "smoke")
    seed: int = Experiment.checked({"seed": settings.pop("seed", 0)})["seed"]
    if unknown := [name for name in settings if not name.startswith("eval_")]:
        raise SettingError(unknown[0], settings[unknown[0]], "a setting that begins with eval_")
    if settings.get("eval_part", "test") != "test":
        allowed = "test; data.validation() has a held-out part in the place of its test part"
        raise SettingError("eval_part", settings["eval_part"], allowed)
    factor = 1
    if isinstance(images, SyntheticSet):
        if labels is not None:
            raise SettingError("labels", tuple(labels.shape), "None beside a SyntheticSet, which has its own")
        factor = images.factor
        images, labels = images.decoded()
    check_type("images", images, Tensor, "a SyntheticSet, or a tensor")
    if labels is None:
        raise SettingError("labels", None, f"one for each of {len(images)} images")
    check_type("labels", labels, Tensor, "a tensor")
    judge.check_images(images, labels, data)
    images, labels = (t.to(data.train_images.device) for t in (images, labels))
    chosen = fitted(Experiment.preset(scale, dataset=data.name, **settings), Content.of(data))
    return judge.evaluate(images, labels, data, chosen, seed, factor=factor)


def run(experiment: Experiment, store: Store | str | Path | None = None, **changes: Any) -> Record:
    """The record of an experiment, from `store` or made now and kept there: a Store or its folder, default as `Store`.

    `changes`: fields that are to differ, as in ``run(Experiment.preset("smoke"), seed=3)``. Errors as
    `rddlib.experiments.experiment.run`.
    """
    check_type("experiment", experiment, Experiment, "an Experiment, as Experiment.preset returns")
    return runs.run(replace(experiment, **changes), Store.of(store))
