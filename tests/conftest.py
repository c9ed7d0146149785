"""Shared by all tests: scripts of the book as modules, records of runs that nobody made, real images where there are.

One thread, so that results do not depend on how many workers run beside each other.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from rddlib.experiments.experiment import Experiment
from rddlib.experiments.records import Record

ROOT = Path(__file__).resolve().parent.parent
torch.set_num_threads(1)


def script(name: str) -> ModuleType:
    """A script of book/ as a module of its own name, by which the others import it."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "book" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def unmade(of: Experiment | Mapping[str, Any], metrics: Mapping[str, Any], **known: Any) -> Record:
    """A record as a run would leave it, without the run; what a test does not say is empty."""
    settings = dataclasses.asdict(of) if isinstance(of, Experiment) else dict(of)
    blank: dict[str, Any] = {
        "key": of.key if isinstance(of, Experiment) else "", "history": [], "seconds": {}, "cpu_seconds": {},
        "peak_memory_mb": 1.0, "device": "cpu", "versions": {}, "commit": "", "data_sha256": "", "created": "",
    }  # fmt: skip
    return Record(experiment=settings, metrics=dict(metrics), **blank | known)


# A run that touches everything and takes a fraction of a second.
TINY: dict[str, Any] = {
    "width": 8, "eval_width": 8, "depth": 2, "eval_depth": 2, "outer_steps": 2, "inner_steps": 2, "batch_real": 12,
    "net_steps": 2, "net_batch": 48, "lr_image": 0.3, "eval_steps": 6, "eval_batch": 40, "ipc": 2, "factor": 1,
    "match_augment": "color_crop_cutout_flip_scale_rotate", "net_augment": "color_crop_cutout_flip_scale_rotate",
    "eval_augment": "color_crop_cutout_flip_scale_rotate", "cutmix": 0.5, "eval_cutmix": 0.5,
}  # fmt: skip


def tiny(**chosen: Any) -> Experiment:
    """A very short experiment on the embedded digits."""
    return Experiment.preset("smoke", **(TINY | chosen), dataset="digits", seed=5)


@pytest.fixture
def real_data() -> Path:
    """The folder with real CIFAR-10; skips, and says so, where RDD_DATA does not have it."""
    folder = Path(os.environ.get("RDD_DATA", ""))
    if not os.environ.get("RDD_DATA") or not (folder / "cifar10.npz").is_file():
        pytest.skip("RDD_DATA does not name a folder with cifar10.npz: tests on real images are skipped")
    return folder
