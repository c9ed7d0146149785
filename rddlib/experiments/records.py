"""Records of runs and the store that keeps them: one small JSON file a run, named by the run's key.

A run that is done is never done twice; a file is written whole or not at all; two processes that want the same key
wait for one another. Reading needs no right to write.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .. import files
from ..base import SettingError, WriteError, home, resources, write_atomic
from . import provenance

log = logging.getLogger(__name__)


class StoreError(RuntimeError):
    """A store that cannot be used, or a record in it that is damaged. The message names the file."""


@dataclass(frozen=True)
class Record:
    """What one run leaves: its settings, its results, its price and its provenance.

    `metrics` has one entry a test and evaluation seed, accuracies in per cent. `seconds` and `cpu_seconds` are by
    part (distill, evaluate); runs with the same `set_key` share one distilled set, whose price each of them names.
    `created` is a date for the reader; nothing is derived from it. `results` is the version of the numbers that the
    code gave then (`provenance.RESULTS`). `prior_sha256` is the hash of the generator whose codes were optimised, ""
    without one; `threads` is how many PyTorch had; records from before lack both. `source_hash` is in records from
    before there was a results version, only there. In the file a `checksum` stands beside the fields.
    """

    key: str
    experiment: dict[str, Any]
    metrics: dict[str, Any]
    history: list[dict[str, float]]
    seconds: dict[str, float]
    cpu_seconds: dict[str, float]
    peak_memory_mb: float
    device: str
    versions: dict[str, str]
    commit: str
    data_sha256: str
    created: str
    set_key: str = ""
    results: int = 1
    source_hash: str = ""
    prior_sha256: str = ""
    threads: int = 0

    @property
    def current(self) -> bool:
        """Whether today's code would give the same numbers for the same settings."""
        return provenance.version_of(self.results, self.source_hash) == provenance.RESULTS

    @property
    def price(self) -> dict[str, float]:
        """Seconds by part: a machine shared with other work inflates the clock's, several threads the processor's."""
        return {part: min(wall, self.cpu_seconds.get(part, wall)) for part, wall in self.seconds.items()}

    @property
    def set_name(self) -> str:
        """The key under which its distilled set lies; the oldest sets bear the key of their record."""
        return self.set_key or self.key

    def to_json(self) -> str:
        """JSON text with sorted keys, one line a field, as in the store."""
        content = dataclasses.asdict(self)
        for name in ("source_hash", "prior_sha256", "threads"):
            if not content[name]:
                del content[name]
        return files.to_json(content)


PROBE = 2**14  # bytes: more than a record takes, and several blocks of any disk


class Store:
    """A folder of records: runs/<group>/<key>.json, distilled/<key>.npz, work/<key>/ while a run goes on.

    The default root is $RDD_STORE, else data/ of the project, else ~/rddlib_data where the library is installed alone.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        if root == "":
            raise SettingError("store", root, "a folder; leave it out for the default")
        self.root = Path(root or os.environ.get("RDD_STORE") or home()).expanduser()

    @classmethod
    def of(cls, store: Store | str | Path | None) -> Store:
        """The store itself, that of a folder, or the default one."""
        return store if isinstance(store, Store) else cls(store)

    def file(self, key: str) -> Path | None:
        """The file of a key's record, or None."""
        return min(self.root.glob(f"runs/*/{key}.json"), default=None)

    def find(self, key: str) -> Record | None:
        """The record of a key, or None."""
        path = self.file(key)
        return None if path is None else self._read(path)

    def match(self, start: str) -> Record:
        """The one record whose key begins with `start`. Raises StoreError if none or several do."""
        if not start or not start.isalnum():
            raise SettingError("key", start, "the first characters of a key, as `list` prints them")
        paths = sorted(self.root.glob(f"runs/*/{start}*.json"))
        if len(paths) != 1:
            keys = ", ".join(p.stem for p in paths) or "none"
            raise StoreError(f"key {start!r}: {len(paths)} records in {self.root / 'runs'} begin so ({keys})")
        return self._read(paths[0])

    def records(self, group: str = "*") -> list[Record]:
        """All records, or those of one group, sorted by key; a damaged one is left out and named in the log."""
        records, damaged = self.read(group)
        for error in damaged.values():
            log.warning("left out: %s", error)
        return list(records.values())

    def read(self, group: str = "*") -> tuple[dict[Path, Record], dict[Path, StoreError]]:
        """All records, or those of one group, by their files, sorted by key; and what is wrong with damaged ones."""
        records: dict[Path, Record] = {}
        damaged: dict[Path, StoreError] = {}
        for path in self.files(group):
            try:
                records[path] = self._read(path)
            except StoreError as error:
                damaged[path] = error
        return records, damaged

    @staticmethod
    def _read(path: Path) -> Record:
        from .validate import read_record  # it needs Experiment, and that needs this module

        return read_record(path)

    def files(self, group: str = "*") -> list[Path]:
        """The files of all records, or of those of one group, sorted by key."""
        return sorted(self.root.glob(f"runs/{group}/*.json"), key=lambda path: path.stem)

    def add(self, record: Record, group: str) -> Path:
        """Keep a record. Raises StoreError for one that could not be read again."""
        from .validate import check_record  # as in `_read`

        path = self.root / "runs" / plain_name(group) / f"{record.key}.json"
        text = record.to_json()
        check_record(text.encode(), path)
        return write_atomic(path, text)

    def distilled(self, key: str) -> Path:
        """Where a distilled set lies; `key` is a record's `set_key`."""
        return self.root / "distilled" / f"{key}.npz"

    def work(self, key: str) -> Path:
        """The folder of a run in progress: checkpoint, finished evaluations, lock."""
        return self.root / "work" / key

    def finish(self, key: str) -> None:
        """Remove what a finished run needed only while it ran."""
        shutil.rmtree(self.work(key), ignore_errors=True)

    def check_writable(self) -> None:
        """Raise StoreError, before any work, where nothing can be written; clear away what killed runs have left."""
        probe = self.root / "work" / f".probe-{os.getpid()}"
        if not self.root.exists() and self.root == home():
            log.warning("results are kept in %s; --store or RDD_STORE names another folder", self.root)
        try:
            write_atomic(probe, bytes(PROBE))
            probe.unlink()
            self._clear()
        except OSError as error:
            raise StoreError(
                f"{self.root}: results cannot be written there ({error}). Name another folder with --store or RDD_STORE"
            ) from error

    def _clear(self) -> None:
        """Remove files that were left half written, and work folders whose run is done."""
        places = ("work", "work/*", "runs/*", "distilled", "groups", "priors")
        files.collect_litter(*(folder for place in places for folder in self.root.glob(place)))
        done = {path.stem for path in self.files()}
        for key in done & {folder.name for folder in self.root.glob("work/*") if folder.is_dir()}:
            with self.lock(key, wait=False) as free:
                if free:
                    self.finish(key)

    @contextmanager
    def lock(self, key: str, wait: bool = True) -> Iterator[bool]:
        """Hold a key: a second process waits here, or gets False at once where it is not to wait.

        The system lets go when the holder ends, however it ends.
        """
        path = self.root / "work" / f"{key}.lock"
        lock = FileLock(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(blocking=wait)
        except Timeout:
            pass  # another holds it
        except OSError as error:
            raise WriteError(f"{path}: cannot be written ({error.strerror or error})") from error
        try:
            yield lock.is_locked
        finally:
            lock.release()


def known_records() -> list[Record]:
    """The records of the book, which come with the library, and those of the default store, sorted by key.

    A record of the store stands for one of the same key in the book.
    """
    roots = (resources(), Store().root)  # one and the same in a checkout, unless $RDD_STORE is set
    by_key = {record.key: record for root in dict.fromkeys(roots) for record in Store(root).records()}
    return [by_key[key] for key in sorted(by_key)]


def plain_name(group: str) -> str:
    """A group's name, refused if it could lead out of the store."""
    if not group or not all(c.isalnum() or c in "-_." for c in group) or group.startswith("."):
        raise SettingError("group", group, "letters, digits, '-', '_' and '.', not starting with '.'")
    return group
