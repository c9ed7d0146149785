"""Bring results home: records and distilled sets of a store in one file, and back into another store.

An archive is a zip without compression, with fixed times and sorted names, so the same results give the same bytes. Its
manifest holds the SHA-256 of every member. `merge` trusts nothing in it: all of it is checked before the first byte is
written, names lead nowhere but into the store, a record must be what its own settings say, and what is here is kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import stat
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..base import SettingError, write_atomic
from .records import Record, Store, StoreError, read_record
from .validate import MANIFEST, arrays_of, check_member, check_set, checked_record, set_of
from .workers import held

FORMAT = "rddlib archive 1"
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold


@dataclass
class Merged:
    """What a merge did, key by key: added, already here, or kept out and why."""

    added: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    clashes: dict[str, str] = field(default_factory=dict)

    @property
    def status(self) -> int:
        """Exit status: 2 if anything was kept out."""
        return 2 if self.clashes else 0


# --- packing ----------------------------------------------------------------------------------------------


def pack(store: Store, out: str | Path, groups: Iterable[str] = (), keys: Iterable[str] | None = None) -> list[str]:
    """Write the records of a store, with their distilled sets, to one file; returns the names of its members.

    `groups`: only these folders under runs/ (default all); `keys`: only these records. The file is written whole or
    not at all. Raises StoreError where there is nothing to pack, or where a record or its set is damaged.
    """
    wanted, chosen = set(groups), None if keys is None else set(keys)
    members: dict[str, bytes] = {}
    for path in sorted(store.root.glob("runs/*/*.json")):
        if (wanted and path.parent.name not in wanted) or (chosen is not None and path.stem not in chosen):
            continue
        record, name = read_record(path), f"runs/{path.parent.name}/{path.name}"
        members[name] = path.read_bytes()
        checked_record(members[name], name)
        set_file = store.distilled(set_of(record))
        if set_file.is_file():
            members[name := f"distilled/{set_file.name}"] = set_file.read_bytes()
            check_set(members[name], name, record)
    if not members:
        raise StoreError(f"{store.root / 'runs'}: holds none of the records that were asked for, so nothing was packed")
    write_atomic(out, _zipped(members))
    return sorted(members)


def _zipped(members: dict[str, bytes]) -> bytes:
    files = {n: {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()} for n, raw in sorted(members.items())}
    manifest = json.dumps({"format": FORMAT, "files": files}, indent=1) + "\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, raw in [(MANIFEST, manifest.encode()), *sorted(members.items())]:
            info = zipfile.ZipInfo(name, EPOCH)
            info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            archive.writestr(info, raw)
    return buffer.getvalue()


# --- merging ----------------------------------------------------------------------------------------------


def merge(file: str | Path, store: Store, theirs: bool = False) -> Merged:
    """Take the records and sets of an archive into a store. Merging it again changes nothing.

    What is here under the same key with other content is kept, and named in the result; with `theirs` the archive's
    is taken instead. A record whose set differs from the one here is kept out too: a set is what its record judged.
    Raises StoreError, before anything is written, if the archive is not wholly sound.
    """
    path = Path(file)
    try:
        with zipfile.ZipFile(path) as archive:
            incoming = _verified(archive, path)
            plan = _plan(archive, incoming, store, theirs)
            store.check_writable()
            _carry_out(archive, incoming, plan, store)
            return plan
    except (StoreError, SettingError):
        raise
    except FileNotFoundError as error:
        raise StoreError(f"{path}: there is no such file") from error
    except Exception as error:  # a damaged zip raises many kinds; all mean the same to the reader
        raise StoreError(f"{path}: cannot be read as an archive, or not written to the store ({error!r})") from error


@dataclass(frozen=True)
class _Item:
    """One record of an archive: its member, its set's member ('' without), and the hashes of both."""

    record: Record
    name: str
    set_name: str
    sha: dict[str, str]


def _verified(archive: zipfile.ZipFile, path: Path) -> list[_Item]:
    """The records of an archive after every check of names, sizes, hashes and contents."""
    infos = {info.filename: info for info in archive.infolist()}
    if len(infos) != len(archive.infolist()):
        raise StoreError(f"{path}: a name occurs twice")
    for info in infos.values():
        check_member(info, path)
    if sum(info.file_size for info in infos.values()) > path.stat().st_size:
        raise StoreError(f"{path}: its members overlap, they are larger than the file")
    listed = _manifest(archive, path)
    if set(listed) != set(infos) - {MANIFEST}:
        raise StoreError(f"{path}: {MANIFEST} and the members do not name the same files")
    items = []
    for name in (n for n in sorted(listed) if n.startswith("runs/")):
        record = checked_record(_read(archive, name, listed), name)
        set_name = f"distilled/{set_of(record)}.npz"
        items.append(_Item(record, name, set_name if set_name in listed else "", listed))
    if len({item.record.key for item in items}) != len(items):
        raise StoreError(f"{path}: a key occurs in two groups")
    if strange := sorted(set(listed) - {n for item in items for n in (item.name, item.set_name)}):
        raise StoreError(f"{path}: {strange[0]} is the set of no record in the archive")
    for item in items:
        if item.set_name:
            check_set(_read(archive, item.set_name, listed), item.set_name, item.record)
    return items


def _manifest(archive: zipfile.ZipFile, path: Path) -> dict[str, str]:
    """Name -> SHA-256 of every member but the manifest itself."""
    try:
        raw = json.loads(archive.read(MANIFEST))
        listed = {str(name): str(entry["sha256"]) for name, entry in raw["files"].items()}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{path}: {MANIFEST} is missing or damaged ({error!r})") from error
    if raw.get("format") != FORMAT:
        raise StoreError(f"{path}: format {raw.get('format')!r}; this version of rddlib reads {FORMAT!r}")
    return listed


def _read(archive: zipfile.ZipFile, name: str, listed: dict[str, str]) -> bytes:
    """A member, checked against its hash each time it is read: the file may change between two looks."""
    raw = archive.read(name)
    if hashlib.sha256(raw).hexdigest() != listed[name]:
        raise StoreError(f"{archive.filename}: {name} does not have the SHA-256 that {MANIFEST} states")
    return raw


# --- what is here and what comes --------------------------------------------------------------------------


def _plan(archive: zipfile.ZipFile, incoming: list[_Item], store: Store, theirs: bool) -> Merged:
    """Where each key stands. Raises StoreError where taking theirs would leave a record here without its set."""
    plan = Merged()
    here = {p.stem: p for p in store.root.glob("runs/*/*.json")}
    coming = {item.record.key for item in incoming}
    for item in incoming:
        key = item.record.key
        same = key in here and read_record(here[key]).to_json() == item.record.to_json()
        other_set = _set_differs(archive, item, store, same)
        if held(store, key) or held(store, set_of(item.record)):
            plan.clashes[key] = "it is being run here now; merge again when that is done"
        elif other_set and theirs and item.set_name and (left := _relying(here, item, coming)):
            raise StoreError(f"record {left} here relies on the set that {key} would replace; remove that record first")
        elif other_set and not (theirs and item.set_name):
            plan.clashes[key] = f"another {store.distilled(set_of(item.record)).relative_to(store.root)} is here"
        elif key in here and not same and not theirs:
            plan.clashes[key] = f"another record is here, {here[key].relative_to(store.root)}"
        elif same and not other_set and (not item.set_name or (store.root / item.set_name).is_file()):
            plan.same.append(key)
        else:
            plan.added.append(key)
    return plan


def _set_differs(archive: zipfile.ZipFile, item: _Item, store: Store, same_record: bool) -> bool:
    """Whether the store has, under the name of a record's set, another one than the archive's."""
    file = store.distilled(set_of(item.record))
    if not file.is_file():
        return False
    if not item.set_name:  # nothing to compare with: only the very same record can be the one that judged it
        return not same_record
    ours, comes = file.read_bytes(), _read(archive, item.set_name, item.sha)
    if ours == comes:
        return False
    one, two = arrays_of(ours), arrays_of(comes)
    return set(one) != set(two) or not all(np.array_equal(one[n], two[n]) for n in one)


def _relying(here: dict[str, Path], item: _Item, coming: set[str]) -> str:
    """A record of the store, none of the archive's, that judged the set of `item`; '' if there is none."""
    others = (read_record(path) for key, path in sorted(here.items()) if key not in coming)
    return next((r.key for r in others if set_of(r) == set_of(item.record)), "")


def _carry_out(archive: zipfile.ZipFile, incoming: list[_Item], plan: Merged, store: Store) -> None:
    """Write what the plan adds: the set first, so that wherever this stops, a record that is here has its set."""
    for item in (i for i in incoming if i.record.key in plan.added):
        key, own_set = item.record.key, set_of(item.record)
        here = next(iter(store.root.glob(f"runs/*/{key}.json")), store.root / item.name)
        with store.lock(key), contextlib.nullcontext() if own_set == key else store.lock(own_set):
            if item.set_name:
                write_atomic(store.root / item.set_name, _read(archive, item.set_name, item.sha))
            write_atomic(here, _read(archive, item.name, item.sha))
            store.finish(key)
