"""What an archive may hold: names that lead nowhere, plain files of bearable size, records and sets of this library.

Everything here refuses with StoreError and writes nothing. It is all that stands between a file from elsewhere and the
store, so it lists what is allowed and never what is not.
"""

from __future__ import annotations

import io
import json
import math
import re
import stat
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from .experiment import Experiment
from .records import Record, StoreError

MANIFEST = "manifest.json"
NAME = re.compile(r"runs/[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}/[0-9a-f]{16}\.json|distilled/[0-9a-f]{16}\.npz")
LARGEST = {"json": 16 * 2**20, "npz": 512 * 2**20}  # bytes of a member, and of what a set holds when unpacked


def check_member(info: zipfile.ZipInfo, path: Path) -> None:
    """Refuse a member by its entry alone: foreign names, links, folders, compression, encryption, size."""
    name = info.filename
    if (name != MANIFEST and not NAME.fullmatch(name)) or info.orig_filename != name:
        raise StoreError(f"{path}: member {info.orig_filename!r} is not a name that an archive holds")
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG) or info.flag_bits & 1:
        raise StoreError(f"{path}: member {name} is a link, a device or encrypted")
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise StoreError(f"{path}: member {name} is compressed; an archive of rddlib is not")
    if info.file_size > LARGEST[name.rsplit(".")[-1]]:
        raise StoreError(f"{path}: member {name} is too large ({info.file_size} bytes)")


def checked_record(raw: bytes, name: str) -> Record:
    """A record of an archive. Raises StoreError unless it has the record's fields, and the key of its settings."""
    try:
        record = Record(**json.loads(raw))
        _check_types(record)
        experiment = Experiment(**record.experiment)
    except (ValueError, TypeError, RecursionError) as error:
        raise StoreError(f"{name}: is not a record that this version of rddlib could have made ({error})") from error
    if not record.key == experiment.key == Path(name).stem:
        raise StoreError(f"{name}: holds key {record.key}, its settings have key {experiment.key}")
    if record.set_key not in ("", experiment.set_key):
        raise StoreError(f"{name}: names the set {record.set_key}, its settings have {experiment.set_key!r}")
    return record


def _check_types(record: Record) -> None:
    """Raise ValueError where a field holds what no run writes there; texts go to pages, so they stay plain."""
    kinds: dict[str, Any] = {"int": int, "str": str, "float": (int, float), "dict": dict, "list": list}
    for each in fields(Record):
        value = getattr(record, each.name)
        if not isinstance(value, kinds[str(each.type).split("[")[0]]) or isinstance(value, bool):
            raise ValueError(f"{each.name} is of type {type(value).__name__}, not {each.type}")
        if isinstance(value, str) and (len(value) > 200 or not value.isprintable()):
            raise ValueError(f"{each.name} is not a short printable text")
    for numbers in (record.seconds, record.cpu_seconds, {"peak_memory_mb": record.peak_memory_mb}):
        if not all(_number(value, 0, math.inf) for value in numbers.values()):
            raise ValueError(f"what it cost is not told in numbers: {numbers}")
    accuracy = record.metrics.get("accuracy")
    if not isinstance(accuracy, list) or not accuracy or not all(_number(value, 0, 100) for value in accuracy):
        raise ValueError("metrics has no list of accuracies in per cent")
    if not all(isinstance(entry, dict) for entry in record.history):
        raise ValueError("history is not a list of entries")


def _price(told: Any) -> bool:
    return isinstance(told, dict) and all(_number(told.get(kind), 0, math.inf) for kind in ("wall", "cpu"))


def _number(value: object, low: float, high: float) -> bool:
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    return fits and low <= value <= high and value < math.inf  # type: ignore[operator]


def check_set(raw: bytes, name: str, record: Record) -> None:
    """Raise StoreError unless `raw` is a distilled set of the size that the record's settings ask for."""
    try:
        arrays = arrays_of(raw)
        images, e = arrays["images"], record.experiment
        if images.dtype != np.uint8 or images.ndim != 4 or len(images) % e["ipc"] or not len(images):
            raise ValueError(f"images {images.dtype} {images.shape} do not fit {e['ipc']} images a class")
        if int(arrays["ipc"]) != e["ipc"] or int(arrays["factor"]) not in (1, 2, 3):
            raise ValueError(f"ipc {arrays['ipc']} and factor {arrays['factor']} are not those of its record")
        if "key" in arrays and str(arrays["key"]) != Path(name).stem:
            raise ValueError(f"is the set of {arrays['key']}")
        if "history" in arrays and json.loads(str(arrays["history"])) != record.history:
            raise ValueError("its history is not that of its record")
        if "seconds" in arrays and not _price(json.loads(str(arrays["seconds"]))):
            raise ValueError(f"what it cost is not told in numbers: {arrays['seconds']}")
    except Exception as error:  # zip in zip: what is damaged raises many kinds
        raise StoreError(f"{name}: is not the distilled set of record {record.key} ({error})") from error


def arrays_of(raw: bytes) -> dict[str, Any]:
    """The arrays of an .npz, refused before unpacking where they would be too large."""
    with zipfile.ZipFile(io.BytesIO(raw)) as pack:
        if sum(info.file_size for info in pack.infolist()) > LARGEST["npz"]:
            raise ValueError("it would be too large when unpacked")
    with np.load(io.BytesIO(raw), allow_pickle=False) as arrays:
        return {name: np.asarray(arrays[name]) for name in arrays.files}


def set_of(record: Record) -> str:
    """The name of a record's distilled set: runs that differ in their evaluation alone share one."""
    return record.set_key or record.key
