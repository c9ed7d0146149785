"""Bring results home: records and distilled sets out of a folder that somebody copied from another store.

Nothing in the folder is trusted. All of it is checked (`validate`) before the first file is written, names lead nowhere
but into the store, and what is here is kept.
"""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..base import SettingError, write_atomic
from .records import Record, Store, StoreError, plain_name
from .validate import check_record, check_set, read_plain, read_record


@dataclass
class Merged:
    """What a merge did, key by key: added, already here, or kept out and why."""

    added: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    kept_out: dict[str, str] = field(default_factory=dict)

    @property
    def status(self) -> int:
        """Exit status: 2 if anything was kept out."""
        return 2 if self.kept_out else 0


@dataclass(frozen=True)
class _Incoming:
    """One record of the folder with its set, both checked; `set_raw` is None where the folder has no set of it."""

    record: Record
    raw: bytes
    set_raw: bytes | None = None
    set_arrays: dict[str, Any] = field(default_factory=dict)


def merge(folder: str | Path, store: Store) -> Merged:
    """Take records (runs/*/*.json) and their sets (distilled/*.npz) out of a folder into a store.

    What is here under the same key with other content is kept, and named in the result; so is a record whose set
    differs from the one here, since a set is what its record judged. Sets without a record, and all other files, are
    left where they are. Merging again changes nothing. Raises StoreError, before anything is written, where the folder
    has no records, or a file in it is not wholly sound.
    """
    source = Path(folder).expanduser()
    paths = _record_files(source)
    for path in paths:
        _read(source, path)
    store.check_writable()
    merged = Merged()
    for path in paths:
        incoming = _read(source, path)  # once more, checks included: not all sets of a folder fit into memory at once
        try:
            _take(incoming, path.parent.name, store, merged)
        except OSError as error:
            raise StoreError(f"{store.root}: {path.stem} cannot be written there ({error})") from error
    return merged


def _record_files(source: Path) -> list[Path]:
    """The files of records in a folder, sorted. Raises StoreError where there are none, or a key occurs twice."""
    if not source.is_dir():
        raise StoreError(f"{source}: there is no such folder")
    paths = sorted(source.glob("runs/*/*.json"), key=lambda path: path.stem)
    if not paths:
        raise StoreError(f"{source}: holds no records (runs/GROUP/KEY.json)")
    groups = {path.parent for path in paths}
    for folder in (source / "runs", source / "distilled", *groups):
        if folder.is_symlink():
            raise StoreError(f"{folder}: is a link; copy what it points to")
    for folder in groups:
        try:
            plain_name(folder.name)
        except SettingError as error:
            raise StoreError(f"{folder}: {error}") from error
    for one, other in itertools.pairwise(paths):
        if one.stem == other.stem:
            raise StoreError(f"{other}: the key occurs in two groups")
    return paths


def _read(source: Path, path: Path) -> _Incoming:
    raw = read_plain(path)
    record = check_record(raw, path)
    set_file = source / "distilled" / f"{record.set_name}.npz"
    if not set_file.exists() and not set_file.is_symlink():
        return _Incoming(record, raw)
    set_raw = read_plain(set_file)
    return _Incoming(record, raw, set_raw, check_set(set_raw, set_file, record))


def _unlike(record: Record, here: Path) -> str:
    """What lies in the file that is not this record: "another record", "a damaged record", "" where it is the same."""
    try:
        return "" if read_record(here) == record else "another record"
    except StoreError:
        return "a damaged record"


def _take(incoming: _Incoming, group: str, store: Store, merged: Merged) -> None:
    """Write one record and its set, the set first: wherever this stops, a record that is here has its set."""
    record = incoming.record
    with contextlib.ExitStack() as stack:
        for key in {record.key, record.set_name}:
            if not stack.enter_context(store.lock(key, wait=False)):
                merged.kept_out[record.key] = "it is being run here now; merge again when that is done"
                return
        here = store.file(record.key)
        set_file = store.distilled(record.set_name)
        has_set = set_file.is_file()
        if has_set and _differs(incoming, set_file):
            merged.kept_out[record.key] = f"another {set_file.relative_to(store.root)} is here"
            return
        if here is not None and (why := _unlike(record, here)):
            merged.kept_out[record.key] = f"{why} is here, {here.relative_to(store.root)}"
            return
        new_set = None if has_set else incoming.set_raw
        if new_set is not None:
            write_atomic(set_file, new_set)
        if here is None:
            write_atomic(store.root / "runs" / group / f"{record.key}.json", incoming.raw)
        if here is not None and new_set is None:
            merged.same.append(record.key)
        else:
            merged.added.append(record.key)


def _differs(incoming: _Incoming, set_file: Path) -> bool:
    """Whether the set that is here is another than the one that the incoming record has judged."""
    try:
        ours = check_set(read_plain(set_file), set_file, incoming.record)
    except StoreError:
        return True
    if incoming.set_raw is None:
        return False
    names = ("images", "labels", "targets")
    return any(not np.array_equal(ours.get(name, ()), incoming.set_arrays.get(name, ())) for name in names)
