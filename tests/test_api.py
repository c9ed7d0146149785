"""The public names: what a user types first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rddlib
from rddlib.base import SettingError


def test_every_public_name_is_there_and_documented() -> None:
    for name in set(rddlib.__all__) - {"__version__"}:
        assert getattr(rddlib, name).__doc__, name
    assert set(rddlib.__all__) <= set(dir(rddlib))
    with pytest.raises(AttributeError, match="nothing"):
        _ = rddlib.nothing


def test_import_is_quick_because_torch_comes_later() -> None:
    code = "import sys, rddlib; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_from_a_data_set_to_a_record_in_a_few_lines(tmp_path: Path) -> None:
    data = rddlib.load_dataset("digits")
    short = {"outer_steps": 1, "inner_steps": 2, "width": 8}
    images = rddlib.distill(data, method="idc", risk="upper", ipc=1, **short)
    again = rddlib.distill(data, method="idc", risk="upper", ipc=1, **short)
    assert images.images.shape == (10, 1, 8, 8) and torch.equal(images.images, again.images)
    quick = {"eval_steps": 5, "eval_seeds": 2, "eval_width": 8}
    scores = rddlib.evaluate(images, data, **quick)
    assert len(scores["accuracy"]) == 2
    assert rddlib.evaluate(*images.decoded()[:1], data, images.decoded()[1], **quick) == scores
    experiment = rddlib.Experiment.preset("smoke", **short, **quick)
    record = rddlib.run(experiment, rddlib.Store(tmp_path), seed=4)
    assert record.experiment["seed"] == 4
    frame = rddlib.results(store=rddlib.Store(tmp_path))
    assert frame[frame["test"] == "accuracy"]["value"].tolist() == record.metrics["accuracy"]


def test_what_does_not_fit_is_refused() -> None:
    data = rddlib.load_dataset("digits")
    with pytest.raises(SettingError, match="ipcs"):
        rddlib.distill(data, ipcs=1)
    with pytest.raises(SettingError, match="method"):
        rddlib.distill(data, method="random")
    with pytest.raises(SettingError, match="labels"):
        rddlib.evaluate(torch.zeros(3, 1, 8, 8), data)
    with pytest.raises(SettingError, match="width"):
        rddlib.evaluate(torch.zeros(3, 1, 8, 8), data, torch.zeros(3).long(), width=3)
