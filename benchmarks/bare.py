"""Stand-ins for packages that a bare machine lacks and that runs import but never call: the progress bar and the like.

A stand-in can be imported, and names can be taken from it; calling one raises ImportError. What is installed is used.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Sequence
from typing import Any

NAMES = ("tqdm", "scipy", "safetensors")


class Missing:
    """A name of a package that is not here."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Missing:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return Missing(f"{self._name}.{attribute}")

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise ImportError(f"{self._name} is not installed on this machine, and is needed here")


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds what nobody else has found."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        known = name.split(".")[0] in NAMES
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        whole = Missing(module.__name__)
        module.__getattr__ = lambda attribute: getattr(whole, attribute)  # type: ignore[method-assign]


def install() -> None:
    """Let stand-ins take the place of what is not installed, in this process."""
    if not any(isinstance(finder, StandIns) for finder in sys.meta_path):
        sys.meta_path.append(StandIns())
