"""What a result cost and where it came from: clock, memory, device, versions, commit, results version."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .. import files
from ..base import RESULTS as RESULTS
from ..base import repository_root, write_atomic

# Records from before the results version was written down count as version 1, but for a few early ones, whose code
# (known by a hash that records bore then) was never compared with the code of version 1.
SUPERSEDED = frozenset({"61cc09999a54bb2a", "53422d15553aa40d", "5c59b2789026e80b", "bd70948eb5bf929f"})


class Clock:
    """Wall and processor seconds by part, kept in a file so that a resumed run counts from where it was.

    `of`: hex digits that say what is run; the seconds of another run are not counted on.
    """

    def __init__(self, file: Path, of: str) -> None:
        self.file, self.of, self.now = file, of, ""
        kept = files.state_json(file, of) or {"wall": {}, "cpu": {}}
        self.spent: dict[str, dict[str, float]] = {kind: kept[kind] for kind in ("wall", "cpu")}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens inside for the part `name`."""
        self.now, self.wall, self.cpu = name, time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.save()

    def save(self) -> None:
        """Add what has passed since the last call to the current part, and write the file."""
        wall, cpu = time.perf_counter(), time.process_time()
        for kind, spent in (("wall", wall - self.wall), ("cpu", cpu - self.cpu)):
            self.spent[kind][self.now] = self.spent[kind].get(self.now, 0.0) + spent
        self.wall, self.cpu = wall, cpu
        write_atomic(self.file, files.to_json({"of": self.of} | self.spent))

    def rounded(self, kind: str) -> dict[str, float]:
        """Seconds by part, `kind` being "wall" or "cpu"."""
        return {k: round(v, 1) for k, v in self.spent[kind].items()}


def of_now(on_gpu: bool) -> dict[str, Any]:
    """The fields of a Record that say where it is made. Taken when a run begins: its code may change on disk later."""
    return {
        "device": describe_device(on_gpu),
        "versions": versions(),
        "commit": commit(),
        "results": RESULTS,
        "threads": torch.get_num_threads(),
    }


def peak_memory_mb(on_gpu: bool) -> float:
    """Most memory held so far, in MB: of the process on a CPU, of tensors on a GPU."""
    if on_gpu:
        return round(torch.cuda.max_memory_allocated() / 1e6, 1)
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def describe_device(on_gpu: bool) -> str:
    """The device in words, without naming the machine."""
    if on_gpu:
        return torch.cuda.get_device_name()
    return f"cpu, {torch.get_num_threads()} threads, {platform.machine()}"


def versions() -> dict[str, str]:
    """Versions that can change a result."""
    result = {"python": platform.python_version()}
    for package in ("torch", "numpy", "scikit-learn", "pillow", "rddlib"):
        try:
            result[package] = version(package).split("+")[0]
        except PackageNotFoundError:  # run from its source folder, not installed
            result[package] = "source"
    return result


def commit() -> str:
    """The commit the code was at, with '+' where tracked code was changed; '' outside a checkout."""
    root = repository_root()
    if root is None:
        return ""
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}

    def git(*words: str) -> str:
        command = ["git", *words]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno", "rddlib") else "")
    except OSError:
        return ""


def version_of(results: int, source_hash: str) -> int:
    """The results version of a record or set; those that bear the hash of superseded code have none, that is 0."""
    return 0 if source_hash in SUPERSEDED else results
