"""What a result cost and where it came from: clock, memory, device, versions, commit, source hash."""

from __future__ import annotations

import ast
import functools
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .base import digest, repository_root, write_atomic

# The modules that make every result, those of the loop, of KIP, and of the evaluation.
MAKERS = ("base", "readers", "data", "augment", "fused", "nets", "synthetic")
LOOP_MAKERS = ("risk", "groups", "match", "methods", "loop", "distill")
KIP_MAKERS = ("kernels", "kip", "distill")
JUDGES = ("groups", "corrupt", "corruptions", "recipes", "bench", "audit", "evaluate")


class Clock:
    """Wall and processor seconds by part, kept in a file so that a resumed run counts from where it was."""

    def __init__(self, file: Path) -> None:
        self.file, self.now = file, ""
        self.spent: dict[str, dict[str, float]] = {"wall": {}, "cpu": {}}
        if file.is_file():
            self.spent = json.loads(file.read_text())

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
        write_atomic(self.file, json.dumps(self.spent))

    def rounded(self, kind: str) -> dict[str, float]:
        """Seconds by part, `kind` being "wall" or "cpu"."""
        return {k: round(v, 1) for k, v in self.spent[kind].items()}


def of_now(experiment: Mapping[str, Any], on_gpu: bool) -> dict[str, Any]:
    """The fields of a Record that say where it is made. Taken when a run begins: its code may change on disk later."""
    return {"device": describe_device(on_gpu), "versions": versions(), "commit": commit(),
            "source_hash": source_hash(makers(experiment))}  # fmt: skip


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
    found = {"python": platform.python_version()}
    for package in ("torch", "numpy", "scikit-learn", "pillow", "rddlib"):
        try:
            found[package] = version(package).split("+")[0]
        except PackageNotFoundError:  # run from its source folder, not installed
            found[package] = "source"
    return found


def commit() -> str:
    """The commit the code was at, with '+' where tracked code was changed; '' outside a checkout."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=repository_root(), capture_output=True, text=True, check=False,
                              env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"})  # fmt: skip
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno", "rddlib") else "")
    except OSError:
        return ""


def makers(experiment: Mapping[str, Any], part: str = "all") -> tuple[str, ...]:
    """The modules that can change the result of these settings; with part "distill", the distilled set alone.

    A run without a prior is not made by `prior`, one with ConvNets only not by `archs`, one that takes classes one
    after another not by `classwise`: split over processes it ends where it would have ended in one.
    """
    e, found = experiment, [*MAKERS, *(JUDGES if part == "all" else ())]
    networks = {e.get("eval_network", "convnet")} if part == "all" else set()
    if e["method"] == "kip":
        found += KIP_MAKERS
    elif e["method"] in ("idc", "dc", "dsa", "dm", "glad"):
        networks.add(e.get("network", "convnet"))
        found += LOOP_MAKERS
        found += ["representative"] if e.get("real_choice") == "representative" else []
        found += ["classwise"] if e.get("classes_at_once") else []
        found += ["generator", "prior"] if e["method"] == "glad" or e.get("prior") not in (None, "none") else []
    found += ["archs"] if networks - {"convnet"} else []
    return tuple(sorted(set(found)))


@functools.cache
def source_hash(modules: tuple[str, ...]) -> str:
    """Hash of the code that makes results: the syntax trees of its modules.

    Docstrings are left out, so a comment makes nothing stale, and so are the declarations in classes of settings (named
    ...Settings): a record holds all its settings itself.
    """
    folder = Path(__file__).parent
    texts = [file.read_text() for m in sorted(set(modules)) if (file := folder / f"{m}.py").is_file()]
    return digest(*(json.dumps(_tree(ast.parse(text))) for text in texts))[:16]


def current(experiment: Mapping[str, Any], code: str, part: str = "all") -> bool:
    """Whether a result made by code of the source hash `code` is what today's code would give.

    That is so if the hash is today's, or if `data/lineage.json` has probes of both and all that go through the makers
    of this result agree (`probes`). `part`: "all", or "distill" for the distilled set alone.
    """
    modules = makers(experiment, part)
    return code == source_hash(modules) or _same(modules, code)


def lineage_file() -> Path:
    """Where the probes of each version of the code are kept."""
    return repository_root() / "data" / "lineage.json"


@functools.cache
def _same(modules: tuple[str, ...], code: str) -> bool:
    try:
        kept = json.loads(lineage_file().read_text())
    except FileNotFoundError:
        return False
    versions: list[dict[str, Any]] = kept["versions"]
    old, now = ([v["values"] for v in versions if h in v["hashes"]] for h in (code, source_hash(modules)))
    needed = [name for name, through in kept["modules"].items() if set(through) <= set(modules)]
    return any(all(agree(a.get(n), b.get(n), kept["tolerance"]) for n in needed) for a in old for b in now)


def agree(a: Sequence[float] | None, b: Sequence[float] | None, tolerance: float) -> bool:
    """Whether two lists of numbers differ by rounding at most: by `tolerance` times the largest of the first."""
    if a is None or b is None or len(a) != len(b):
        return False
    size = max(map(abs, a), default=0.0)
    return all(abs(x - y) <= tolerance * size for x, y in zip(a, b, strict=True))


def _tree(node: Any) -> Any:
    """A syntax tree as plain lists: empty fields and docstrings dropped, so that all Python versions agree."""
    if isinstance(node, list):
        return [_tree(n) for n in node if not _is_docstring(n)]
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.ClassDef) and node.name.endswith("Settings"):
        node.body = [n for n in node.body if not isinstance(n, ast.AnnAssign)]
    parts = [
        (k, v) for k, v in ast.iter_fields(node) if v not in (None, []) and k not in ("ctx", "kind", "type_comment")
    ]
    return [type(node).__name__, *[[k, _tree(v)] for k, v in parts]]


def _is_docstring(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
