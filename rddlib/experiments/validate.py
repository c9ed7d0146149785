"""What a record and a distilled set must be to be believed: one check for `list`, `status` and `merge`.

A store may hold files that came from anywhere. So a file is read only where it is a plain one of bearable size, nothing
in it is ever executed, numbers must be finite, and texts, which go to pages, must be plain.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from .. import files
from ..base import SettingError
from ..distillation.settings import LOOPED
from .experiment import Experiment
from .records import Record, StoreError

LARGEST = {".json": 16 * 2**20, ".npz": files.LARGEST}  # bytes of a file, and of what a set holds when unpacked
PLAIN = re.compile(r"[\w +,.:;/\\()=@#%-]{0,200}")  # no markup of HTML or Markdown, no control characters
KINDS: dict[str, Any] = {"str": str, "int": int, "float": (int, float), "dict": dict, "list": list}
NAMED = ("dataset", "method", "risk", "ipc", "factor", "seed", "scale", "eval_network")  # what any list of runs shows
FAULTS = (ValueError, TypeError, KeyError, OverflowError, RecursionError, SettingError)


def read_plain(path: Path) -> bytes:
    """The bytes of a plain file. Raises StoreError for links, pipes, devices and files that are too large."""
    try:
        return files.read_plain(path, LARGEST[path.suffix], follow=False)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read as a plain file ({error.strerror})") from error
    except ValueError as error:
        raise StoreError(f"{path}: {error}") from error


def read_record(path: Path) -> Record:
    """A record that has passed every check. Raises StoreError, with the file's name and the fault, for any other."""
    return check_record(read_plain(path), path)


def check_record(raw: bytes, path: Path) -> Record:
    """The record in the bytes of a file, named by its key. Raises StoreError unless everything in it is in order."""
    try:
        record = Record(**files.from_json(raw))
        _check_types(record)
        _check_numbers(record)
        absent = [name for name in NAMED if name not in record.experiment]
        if absent:
            raise ValueError(f"its settings do not say {absent[0]}")
        experiment = Experiment(**record.experiment)
    except FAULTS as error:
        raise StoreError(
            f"{path}: damaged record ({error}). It is left as it is; delete it to have it run again"
        ) from error
    if not record.key == experiment.key == path.stem:
        raise StoreError(f"{path}: damaged record (it holds key {record.key}, its settings have key {experiment.key})")
    if record.set_key not in ("", experiment.set_key):
        raise StoreError(f"{path}: damaged record (it names the set {record.set_key}, not {experiment.set_key!r})")
    return record


def _check_types(record: Record) -> None:
    for field in dataclasses.fields(Record):
        value = getattr(record, field.name)
        if not isinstance(value, KINDS[str(field.type).split("[")[0]]) or isinstance(value, bool):
            raise ValueError(f"{field.name} is of type {type(value).__name__}, not {field.type}")
        _check_texts(value, field.name)


def _check_texts(value: object, name: str) -> None:
    """Raise ValueError where a text anywhere inside is long, or holds more than plain characters."""
    if isinstance(value, str) and not PLAIN.fullmatch(value):
        raise ValueError(f"{name} holds a text that is not plain or longer than 200 characters")
    if isinstance(value, dict):
        for key, inside in value.items():
            _check_texts(key, name)
            _check_texts(inside, name)
    if isinstance(value, list):
        for inside in value:
            _check_texts(inside, name)


def _check_numbers(record: Record) -> None:
    accuracies = record.metrics.get("accuracy")
    if not isinstance(accuracies, list) or not accuracies or not all(_number(a, 0, 100) for a in accuracies):
        raise ValueError("metrics has no list of accuracies in per cent")
    for name, value in record.metrics.items():
        if not _all_finite(value):
            raise ValueError(f"metrics has a number that is not finite: {name}")
    for entry in record.history:
        if not isinstance(entry, dict) or not all(_number(value) for value in entry.values()):
            raise ValueError("history is not a list of entries of finite numbers")
    for costs in (record.seconds, record.cpu_seconds, {"peak_memory_mb": record.peak_memory_mb}):
        if not all(_number(value, 0) for value in costs.values()):
            raise ValueError(f"what it cost is not told in numbers: {costs}")
    if not all(isinstance(version, str) for version in record.versions.values()):
        raise ValueError("versions are not texts")


def _number(value: object, low: float = -math.inf, high: float = math.inf) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and low <= value <= high


def _all_finite(value: object) -> bool:
    """Whether a metric consists of finite numbers, texts (hashes) and lists of them; an empty group has None."""
    if isinstance(value, list):
        return all(item is None or _all_finite(item) for item in value)
    return isinstance(value, str) or _number(value)


def set_name(record: Record) -> str:
    """The key under which a record's distilled set lies; the oldest sets bear the key of their record."""
    return record.set_key or record.key


def check_set(raw: bytes, path: Path, record: Record) -> dict[str, Any]:
    """The arrays of a distilled set's file. Raises StoreError unless it is the set that `record` has judged."""
    try:
        arrays = files.arrays(raw, LARGEST[".npz"])
        _check_images(arrays, record)
        if "key" in arrays and str(arrays["key"]) != path.stem:
            raise ValueError(f"it is the set of {arrays['key']}")
        if "history" in arrays and json.loads(str(arrays["history"])) != record.history:
            raise ValueError("its history is not that of its record")
        if str(arrays.get("prior_sha256", "")) != record.prior_sha256:
            raise ValueError("it was made with another generator than its record says")
        if "seconds" in arrays:
            costs = json.loads(str(arrays["seconds"]))
            if not all(_number(costs[kind], 0) for kind in ("wall", "cpu")):
                raise ValueError("what it cost is not told in numbers")
    except Exception as error:  # a damaged zip raises many kinds, zlib's own among them
        raise StoreError(f"{path}: is not the distilled set of record {record.key} ({error})") from error
    return arrays


def _check_images(arrays: dict[str, Any], record: Record) -> None:
    """Shape, classes, factor and labels must be those that the settings of the record ask for."""
    experiment = Experiment(**record.experiment)
    images, labels, ipc = arrays["images"], arrays["labels"], experiment.ipc
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) % ipc or not images.size:
        raise ValueError(f"images {images.dtype} {images.shape} do not fit {ipc} images a class")
    if experiment.size is not None and images.shape[2:] != (experiment.size, experiment.size):
        raise ValueError(f"images of {images.shape[2:]} pixels, not {experiment.size} a side")
    n_classes = len(images) // ipc
    if n_classes != len(record.metrics.get("class_sizes", range(n_classes))):
        raise ValueError(f"images of {n_classes} classes, not those of the record")
    factor = experiment.factor if experiment.method in LOOPED else 1
    if int(arrays["ipc"]) != ipc or int(arrays["factor"]) != factor:
        raise ValueError(f"ipc {arrays['ipc']} and factor {arrays['factor']} are not those of its record")
    if not np.array_equal(labels, np.arange(n_classes).repeat(ipc)):
        raise ValueError("labels are not those of its classes in order")
    if "targets" in arrays:
        targets = arrays["targets"]
        if targets.shape != (len(images), n_classes) or not np.isfinite(targets).all():
            raise ValueError("learned labels are not finite, or not one row an image")
