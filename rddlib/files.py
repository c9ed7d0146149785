"""Files that can be believed: sealed with a checksum when written, checked and kept within bounds when read.

JSON holds a field `checksum` over the rest. A zip archive (.npz, a checkpoint of torch.save) holds its checksum, and
what it was made of, in the comment at its end, which other readers pass over. Files from before have neither and are
read without; what is flipped, cut off or edited by hand afterwards is a ValueError, which callers turn into a sentence
with the file's name.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import stat
import struct
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from .base import RESULTS, DataError, digest, write_atomic

Built = TypeVar("Built")
Going = TypeVar("Going", bound="Resumable")
OnStep = Callable[[int, dict[str, float]], None]  # steps done, the last entry of the history

LARGEST = 512 * 2**20  # bytes of a file of ours
UNPACKED = 2**30  # bytes that any archive may unpack to; a larger one must be mostly content, not zeros
RATIO = 100
SEAL = re.compile(rb"\nrddlib of=([0-9a-f]{0,64}) sha256=([0-9a-f]{64})\n\Z")
LITTER = re.compile(r"\..+\.[a-z0-9_]{8}")  # what `write_atomic` writes before it renames it
LITTER_AGE = 3600.0  # seconds after which nobody writes it any more

log = logging.getLogger(__name__)


@contextlib.contextmanager
def open_plain(path: str | Path, most: int = LARGEST, follow: bool = True) -> Iterator[BinaryIO]:
    """A file open for reading. ValueError for pipes, devices and what is larger than `most`; links unless `follow`."""
    flags = getattr(os, "O_NONBLOCK", 0)  # a pipe that nobody writes to is not waited for
    if not follow:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(path, os.O_RDONLY | flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a plain file")
        if status.st_size > most:
            raise ValueError(f"it is too large ({status.st_size} bytes)")
        yield file


def read_plain(path: str | Path, most: int = LARGEST, follow: bool = True) -> bytes:
    """The bytes of a file. Errors as `open_plain`."""
    with open_plain(path, most, follow) as file:
        return file.read()


# --- JSON -------------------------------------------------------------------------------------------------


def to_json(content: dict[str, Any]) -> str:
    """JSON text with sorted keys, one line a field, `checksum` among them."""
    content = json.loads(json.dumps(content))  # as it will be read: keys are texts then
    sealed = content | {"checksum": _checksum(content)}
    lines = [f" {json.dumps(k)}: {json.dumps(v, sort_keys=True)}" for k, v in sorted(sealed.items())]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def from_json(raw: bytes) -> dict[str, Any]:
    """What `to_json` was given. ValueError unless it is an object whose checksum, if it has one, fits."""
    try:
        content = json.loads(raw)
    except RecursionError as error:
        raise ValueError("brackets too deep") from error
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    checksum = content.pop("checksum", None)
    if checksum not in (None, _checksum(content)):
        raise ValueError("its checksum does not fit its content")
    return content


def _checksum(content: dict[str, Any]) -> str:
    return digest(json.dumps(content, sort_keys=True))


# --- archives ---------------------------------------------------------------------------------------------


def sealed(archive: bytes, of: str = "") -> bytes:
    """A zip archive with its checksum, and hex digits that say what it was made of, in its comment."""
    if archive[-2:] != b"\0\0":
        raise ValueError("the archive has a comment already")
    comment = f"\nrddlib of={of} sha256=".encode()
    whole = archive[:-2] + struct.pack("<H", len(comment) + 65) + comment
    return whole + hashlib.sha256(whole).hexdigest().encode() + b"\n"


def sealed_origin(archive: bytes) -> str | None:
    """What the seal of an archive says it was made of; None without one. ValueError where content and seal differ."""
    seal = SEAL.search(archive[-256:])
    if seal is None:
        return None
    if hashlib.sha256(archive[:-65]).hexdigest() != seal[2].decode():
        raise ValueError("its checksum does not fit its content")
    return seal[1].decode()


def check_unpacked(file: BinaryIO, most: int | None = None) -> None:
    """ValueError where an archive would unpack to more than `most` bytes; by default 1 GiB, or 100 times its size."""
    with zipfile.ZipFile(file) as pack:
        unpacked = sum(info.file_size for info in pack.infolist())
    most = max(UNPACKED, RATIO * file.seek(0, os.SEEK_END)) if most is None else most
    file.seek(0)
    if unpacked > most:
        raise ValueError(f"it would be too large when unpacked ({unpacked} bytes)")


def read_npz(
    path: str | Path,
    content: str,
    needed: Collection[str] = (),
    optional: Collection[str] | None = None,
    most: int = LARGEST,
) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file: those `needed` and `optional`; all by default.

    Its seal is checked if it has one, its size before unpacking, and no pickle is loaded. Raises DataError, with the
    file's name and the `content` it should have, where it is missing, damaged, too large or lacks a needed entry.
    """
    try:
        with open_plain(path, most) as file:
            entries = _arrays(file, names=None if optional is None else {*needed, *optional})
        for name in needed:
            if name not in entries:
                raise ValueError(f"entry {name!r} is missing")
    except Exception as error:  # a damaged zip raises many kinds, zlib's own among them
        raise DataError(f"{path}: cannot be read as {content} ({error})") from error
    return entries


def write_npz(path: str | Path, entries: Mapping[str, Any]) -> Path:
    """Write arrays, numbers and texts as a sealed .npz, whole or not at all."""
    buffer = BytesIO()
    np.savez_compressed(buffer, **entries)
    return write_atomic(path, sealed(buffer.getvalue()))


def arrays(raw: bytes, most: int | None = None) -> dict[str, NDArray[Any]]:
    """The arrays in the bytes of an .npz, checked as by `read_npz`; `most`: bytes that it may unpack to."""
    return _arrays(BytesIO(raw), most)


def _arrays(file: BinaryIO, most: int | None = None, names: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 256, 0))
    if SEAL.search(file.read()):  # else a large file is not read twice
        file.seek(0)
        sealed_origin(file.read())
    check_unpacked(file, most)
    with np.load(file, allow_pickle=False) as pack:
        entries = {name: pack[name] for name in pack.files if names is None or name in names}
    for name, array in entries.items():
        if not isinstance(array, np.ndarray):  # NumPy hands out as bytes what it does not know
            raise ValueError(f"{name!r} is no plain array")
    return entries


# --- states of runs that go on ----------------------------------------------------------------------------


def origin(*parts: Any) -> str:
    """64 hex digits of all that a state depends on: `parts`, as JSON has them, and the version of the results."""
    return digest(json.dumps([RESULTS, *parts], sort_keys=True))


class Resumable(Protocol):
    """The state of a computation in rounds, with an entry of the history for each round that is done."""

    history: list[dict[str, float]]


def run_rounds(
    rounds: int,
    state: Going,
    advance: Callable[[Going], Going],
    save: Callable[[Going], object],
    every: int,
    report: Callable[[Going], object],
) -> Going:
    """Advance a state until `rounds` rounds are done, and return it.

    `save` writes a checkpoint: after each `every` rounds, after the last one, and on KeyboardInterrupt. `report` is
    called after each round.
    """
    try:
        while len(state.history) < rounds:
            state = advance(state)
            done = len(state.history)
            if done % every == 0 or done == rounds:
                save(state)
            report(state)
    except KeyboardInterrupt:
        save(state)
        raise
    return state


def write_state(path: str | Path, content: Mapping[str, Any], of: str) -> None:
    """Write a checkpoint of the run `of`, tensors and plain values, sealed, whole or not at all."""
    buffer = BytesIO()
    torch.save(dict(content), buffer)
    write_atomic(path, sealed(buffer.getvalue(), of))


def read_state(
    path: str | Path, of: str, device: torch.device, build: Callable[[dict[str, Any]], Built]
) -> Built | None:
    """What `build` makes of the content of a checkpoint, its tensors on `device`; None where there is no such file.

    None too, with a line of the log, where it is of something else than `of`. Raises DataError, and leaves the file,
    where it is damaged or `build` raises: it is not what was expected.
    """
    if not Path(path).exists():
        return None
    try:
        raw = read_plain(path, sys.maxsize)  # our own, however large the images are
        sealed_of = sealed_origin(raw)
        if sealed_of is None and not zipfile.is_zipfile(BytesIO(raw)):
            raise ValueError("it is no archive")
        if not _same(path, sealed_of, of):
            return None
        return build(torch.load(BytesIO(raw), weights_only=True, map_location=device))
    except Exception as error:  # torch.load raises many kinds for a damaged file
        raise _damaged(path, error) from error


def state_json(path: str | Path, of: str) -> dict[str, Any] | None:
    """The JSON state of a run to go on from, written as ``to_json({"of": of, ...})``; else as `read_state`."""
    if not Path(path).exists():
        return None
    try:
        raw = read_plain(path)
        content = from_json(raw)
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    written_for = content.get("of") if b'"checksum": ' in raw else None
    return content if _same(path, written_for, of) else None


def _damaged(path: str | Path, error: Exception) -> DataError:
    why = str(error).partition("\n")[0]
    return DataError(f"{path}: damaged checkpoint ({why}); delete it to start this run again")


def _same(path: str | Path, written_for: object, of: str) -> bool:
    if written_for != of:
        log.warning("%s: is of other data, settings or code; it is not used, and that part begins anew", path)
    return written_for == of


def collect_litter(*folders: Path) -> None:
    """Remove what writers that were killed have left half written in these folders."""
    for folder in folders:
        for path in folder.glob(".*"):
            if LITTER.fullmatch(path.name) and path.is_file() and time.time() - path.stat().st_mtime > LITTER_AGE:
                path.unlink(missing_ok=True)


def _runs(pid: str) -> bool:
    """Whether a process of that number may run here."""
    if os.name != "posix":  # there os.kill would end it
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (OSError, ValueError):
        return True
    return True


def vanishing_folder() -> str:
    """A new folder for results that nobody keeps: it goes when the process ends, on SIGTERM too.

    Those that killed processes left a day ago or more are removed.
    """
    top = Path(tempfile.gettempdir())
    for path in top.glob("rddlib-live-*"):
        with contextlib.suppress(OSError):  # of another user, or just going
            if time.time() - path.stat().st_mtime > 24 * LITTER_AGE and not _runs(path.name.split("-")[2]):
                shutil.rmtree(path)
    mine = f"rddlib-live-{os.getpid()}-"
    folder = tempfile.mkdtemp(prefix=mine)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)

    def end(number: int, _: object) -> None:
        for path in top.glob(f"{mine}*"):
            shutil.rmtree(path, ignore_errors=True)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    in_main = threading.current_thread() is threading.main_thread()
    if in_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, end)
    return folder
