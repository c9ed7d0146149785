"""What a record and a distilled set must be to be believed: one check for `list`, `status` and `merge`.

A store may hold files that came from anywhere. So a file is read only where it is a plain one of bearable size, nothing
in it is ever executed, numbers must be finite, and texts, which go to pages, must be plain.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic

from .. import files
from ..distillation.settings import LOOPED
from .experiment import Experiment
from .records import Record, StoreError

LARGEST = {".json": 16 * 2**20, ".npz": files.LARGEST}  # bytes of a file, and of what a set holds when unpacked
NAMED = ("dataset", "method", "risk", "ipc", "factor", "seed", "scale", "eval_network")  # what any list of runs shows
FAULTS = (ValueError, TypeError, KeyError, OverflowError, RecursionError)

# What each field of a record may hold, all numbers finite. Texts have no markup of HTML or Markdown and no control
# characters; a metric is a number or a text (a hash), or has one or a list of them a training; an empty group has None.
Text = Annotated[str, pydantic.StringConstraints(pattern=r"^[\w +,.:;/\\()=@#%-]{0,200}$")]
Cost = Annotated[float, pydantic.Field(ge=0)]
Value = float | Text | None
Metric = float | Text | list[Value | list[Value]]
HOLDS: dict[str, Any] = {
    "experiment": dict[Text, float | bool | Text | None],
    "metrics": dict[Text, Metric],
    "history": list[dict[Text, float]],
    "seconds": dict[Text, Cost],
    "cpu_seconds": dict[Text, Cost],
    "peak_memory_mb": Cost,
    "versions": dict[Text, Text],
    "results": int,
    "threads": int,
}
_FIELDS: dict[str, Any] = {field.name: (HOLDS.get(field.name, Text), ...) for field in dataclasses.fields(Record)}
_Form = pydantic.create_model("_Form", __config__={"strict": True, "allow_inf_nan": False}, **_FIELDS)


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
        _check_form(record)
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


def _check_form(record: Record) -> None:
    """ValueError, naming the place, where a field does not hold what it may, or accuracies are not per cent."""
    try:
        _Form.model_validate(vars(record))
    except pydantic.ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"][:2]))
        raise ValueError(f"{place} holds {str(fault['input'])!r:.60}: {fault['msg']}") from error
    accuracy = record.metrics.get("accuracy")
    if not isinstance(accuracy, list) or not accuracy or not all(isinstance(a, float | int) for a in accuracy):
        raise ValueError("metrics has no list of accuracies")
    if not 0 <= min(accuracy) <= max(accuracy) <= 100:
        raise ValueError("accuracies are not in per cent")


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
            if not all(0 <= costs[kind] < math.inf for kind in ("wall", "cpu")):
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
