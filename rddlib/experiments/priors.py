"""A generative prior from start to end: what can be refused first, then trained, kept, scored and kept again.

The training goes on from its checkpoint, and a generator that is kept already, of the same data and settings, is not
trained again. `distillation.glad.training` holds the training itself.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .. import files
from ..base import SettingError, digest, write_atomic
from ..data.dataset import DataSet
from ..distillation.glad import training
from ..distillation.glad.generator import Generator, GeneratorSettings, file_stem
from . import provenance
from .provenance import Clock
from .records import PROBE, Store, StoreError, plain_name
from .small_sets import Progress

JUDGE = {"seed": 0, "steps": 1000, "width": 64}  # the classifier that scores, where nothing else is asked for


def make(
    data: DataSet,
    settings: GeneratorSettings,
    store: Store,
    folder: str | Path | None = None,
    judge: dict[str, int] | None = None,
    replace: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The training record of a generator for `data`: the kept one, else trained now, scored and kept in `folder`.

    `folder` (default priors/ of the store) gets STEM.safetensors, STEM.json and STEM.png (`generator.file_stem`).
    `judge`: seed, steps and width of the classifier that scores (`training.score`). `replace` lets a generator of other
    data or settings go. A second process waits, and gets the same where it asks for the same. Cost: about 16 minutes on
    one core for CIFAR-10 with the defaults, scoring included. Before any work: SettingError for what cannot be trained
    or scored, StoreError where another generator is kept or nothing can be written.
    """
    folder = Path(folder or store.root / "priors").expanduser()
    judge = JUDGE | (judge or {})
    _check_fit(data, settings, judge)
    kept = _kept(folder, data, settings, judge, replace)
    if kept is not None:
        return kept
    store.check_writable()
    _check_writable(folder)
    key = f"prior-{digest(json.dumps(asdict(settings), sort_keys=True), data.sha256)[:16]}"
    place = f"prior-{digest(str(folder.resolve()), file_stem(data))[:16]}"  # one training at a time for one file
    with store.lock(place):
        kept = _kept(folder, data, settings, judge, replace)  # another process may have made it since
        if kept is None:
            kept = _make(data, settings, store.work(key), folder, judge, progress or (lambda *_: None))
        store.finish(key)
    return kept


def _make(
    data: DataSet, settings: GeneratorSettings, work: Path, folder: Path, judge: dict[str, int], progress: Progress
) -> dict[str, Any]:
    """Train, keep, score, keep: it is kept before it is scored, for scoring may be cut short."""
    on_gpu = data.train_images.is_cuda
    history: list[dict[str, float]] = []
    clock = Clock(work / "clock.json", digest(work.name, str(provenance.RESULTS)))
    about = provenance.of_now(on_gpu)

    def note(step: int, parts: dict[str, float]) -> None:
        history.append(parts)
        if step % 100 == 0:  # as often as there is a checkpoint
            clock.save()
        progress("train", step, settings.steps, parts)

    with clock.part("train"):
        net = training.train_generator(data, settings, note, work / "state.pt")
    about["seconds"] = clock.rounded("wall")["train"]
    about["cpu_seconds"] = clock.rounded("cpu")["train"]
    about["peak_memory_mb"] = provenance.peak_memory_mb(on_gpu)
    training.keep(folder, net, data, history, **about)
    with clock.part("score"):
        scores = {name: round(value, 4) for name, value in training.score(net, data, **judge).items()}
    progress("score", 1, 1, scores)
    about |= {"scores": scores, "score_settings": judge, "score_cpu_seconds": clock.rounded("cpu")["score"]}
    return training.keep(folder, net, data, history, **about)


def _check_fit(data: DataSet, settings: GeneratorSettings, judge: dict[str, int]) -> None:
    """Refuse what could only fail after minutes."""
    plain_name(data.name)
    with torch.device("meta"):
        Generator(settings, data.shape, data.n_classes)
    for name, least in (("steps", 1), ("width", 1)):
        if judge[name] < least:
            raise SettingError(f"score_{name}", judge[name], f"at least {least}")
    if len(data.test_labels) < 4:
        raise SettingError("test images", len(data.test_labels), "at least 4: a score compares two halves of them")
    if int(data.train_labels.bincount(minlength=data.n_classes).min()) < 1:
        raise SettingError("training images", 0, "at least one of each class")


def _kept(
    folder: Path, data: DataSet, settings: GeneratorSettings, judge: dict[str, int], replace: bool
) -> dict[str, Any] | None:
    """The record of the generator that is kept under this name, scored by `judge`; None if there is none, or it may go.

    Raises StoreError where it is damaged, or of other images or settings.
    """
    file = folder / f"{file_stem(data)}.json"
    if replace or not file.is_file():
        return None
    try:
        record = files.from_json(files.read_plain(file))
        same = (record["settings"], record["data_sha256"]) == (asdict(settings), data.sha256)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{file}: damaged record ({error}). It is left as it is; --replace lets it go") from error
    if not same:
        other = _difference(record, data, settings)
        raise StoreError(
            f"{file}: a generator of {other} is kept there. Take another folder with --out, or --replace it"
        )
    whole = "scores" in record and (folder / f"{file_stem(data)}.safetensors").is_file()
    return record if whole and record["score_settings"] == judge else None


def _difference(record: dict[str, Any], data: DataSet, settings: GeneratorSettings) -> str:
    if record["data_sha256"] != data.sha256:
        return "other images"
    ours = asdict(settings)
    return ", ".join(f"{k} {v} (not {ours.get(k)})" for k, v in record["settings"].items() if v != ours.get(k))


def _check_writable(folder: Path) -> None:
    try:
        write_atomic(folder / ".probe", bytes(PROBE)).unlink()
    except OSError as error:
        raise StoreError(f"{folder}: a generator cannot be written there ({error}). Name another with --out") from error


def summary(record: dict[str, Any]) -> str:
    """One line: data, size, what training cost, and the scores beside those of real images."""
    s = record["scores"]
    cost = f"{record['bytes'] / 1e6:.2f} MB, {record['settings']['steps']} updates, {record['cpu_seconds']:.0f} s"
    share = f"of the class asked for: {s['share']:.1f} % (real images {s['share_real']:.1f} %)"
    return f"{record['dataset']}  {cost}; {share}, Frechet {s['frechet']:.2f} ({s['frechet_real']:.2f})"
