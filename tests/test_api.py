"""The public names: what a user types first."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import rddlib
from rddlib.base import SettingError
from rddlib.distillation.settings import DISTILLED


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


@pytest.mark.parametrize("method", ["idc", "dm"])
def test_images_can_be_watched_while_they_are_distilled(method: str) -> None:
    """The start, then the set after each outer step: what shorter runs end with, though the run goes on."""
    data = rddlib.load_dataset("digits")
    short = {"method": method, "ipc": 1, "inner_steps": 2, "width": 8, "lr_image": 1.0}
    seen: list[tuple[int, rddlib.distillation.synthetic.SyntheticSet]] = []
    made = rddlib.distill(data, **short, outer_steps=3, on_images=lambda step, images: seen.append((step, images)))
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    assert torch.equal(seen[-1][1].images, made.images)
    ends = {steps: rddlib.distill(data, **short, outer_steps=steps).images for steps in (1, 2, 3)}
    assert all(torch.equal(images.images, ends[step]) for step, images in seen[1:])
    assert not torch.equal(seen[0][1].images, seen[1][1].images)


@pytest.mark.parametrize("method", DISTILLED)
def test_what_was_distilled_can_be_evaluated(method: str) -> None:
    data = rddlib.load_dataset("digits")
    short = {"ipc": 1, "width": 8} | ({"kip_steps": 1} if method == "kip" else {"outer_steps": 1, "inner_steps": 2})
    if method != "kip":
        short |= {"lr_image": 30.0}  # far enough for pixels outside [0, 1], where the method lets them go there
    made = rddlib.distill(data, method=method, **short)
    assert torch.equal(made.images, made.levels / 255)
    scores = rddlib.evaluate(made, data, eval_steps=2, eval_seeds=1, eval_width=8, eval_shifts=False)
    assert len(scores["accuracy"]) == 1


def test_watching_is_refused_where_there_are_no_outer_steps() -> None:
    with pytest.raises(SettingError, match="on_images"):
        rddlib.distill(rddlib.load_dataset("digits"), method="kip", on_images=lambda step, images: None)


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
    with pytest.raises(SettingError, match="seed"):
        rddlib.evaluate(torch.zeros(3, 1, 8, 8), data, torch.zeros(3).long(), seed=0.5)


ONES, CLASSES = torch.ones(10, 1, 8, 8), torch.arange(10)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda data: rddlib.load_dataset(5), "name = 'int'"),
        (lambda data: rddlib.load_dataset("digits", size="32"), "size = '32'"),
        (lambda data: rddlib.load_dataset("digits", train_limit=True), "train_limit = True"),
        (lambda data: rddlib.distill("digits"), "data = 'str': allowed is a DataSet"),
        (lambda data: rddlib.evaluate(ONES, "digits", CLASSES), "data = 'str': allowed is a DataSet"),
        (lambda data: rddlib.evaluate(ONES.numpy(), data, CLASSES), "images = 'ndarray'"),
        (lambda data: rddlib.evaluate(ONES, data, list(range(10))), "labels = 'list'"),
        (lambda data: rddlib.run("smoke"), "experiment = 'str': allowed is an Experiment"),
        (lambda data: rddlib.cvar([1.0, 2.0], 0.5), "losses = 'list': allowed is a tensor"),
        (lambda data: rddlib.group_cvar(torch.ones(2), [0, 1], 2, 0.5), "groups = 'list': allowed is a tensor"),
        (lambda data: rddlib.robust_loss(np.ones(2), CLASSES, 2, rddlib.RiskTerm()), "losses = 'ndarray'"),
    ],
)
def test_an_argument_of_another_type_is_named(call: Callable[[rddlib.DataSet], object], words: str) -> None:
    with pytest.raises(SettingError, match=f"^{words}"):
        call(rddlib.load_dataset("digits"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, d: (d.normalise(x), None), r"images = 'float32 from -0\.\d+ to 1\.\d+': allowed is uint8, or"),
        (lambda x, d: (x * 255, None), r"images = 'float32 from 0 to 255'"),
        (lambda x, d: ((x * 255).long(), None), r"images = 'int64 from 0 to 255'"),
        (lambda x, d: (x * torch.nan, None), r"images = 'float32 from nan to nan'"),
        (lambda x, d: (x.permute(0, 2, 3, 1), None), r"shape \(20, 8, 8, 1\).*\(N, 1, 8, 8\)"),
        (lambda x, d: (x.expand(-1, 3, -1, -1), None), r"shape \(20, 3, 8, 8\)"),
        (lambda x, d: (x[0], None), "shape"),
        (lambda x, d: (x, torch.arange(20)), r"labels = '0\.\.19': allowed is 0\.\.9"),
        (lambda x, d: (x, torch.arange(20) // 2 - 1), r"labels = '-1\.\.8'"),
        (lambda x, d: (x, torch.zeros(20)), r"labels = 'floats \(20,\)'"),
        (lambda x, d: (x, torch.ones(20, 10)), "rows of sum 1"),
        (lambda x, d: (x, torch.tensor([3.0, *[-2 / 9] * 9]).expand(20, 10)), "none below 0"),
        (lambda x, d: (x, torch.eye(10)), "one for each of 20 images"),
    ],
)
def test_what_would_be_normalised_twice_or_read_awry_is_refused(change, words: str) -> None:
    data = rddlib.load_dataset("digits", train_limit=20)
    images, labels = change(data.train_images / 255, data)
    with pytest.raises(SettingError, match=words):
        rddlib.evaluate(images, data, data.train_labels if labels is None else labels)


def test_certain_soft_labels_are_hard_labels() -> None:
    """A distribution that is all on one class trains as the class does, but for rounding; one over all does not."""
    data = rddlib.load_dataset("digits", train_limit=100, test_limit=200)
    quick = {"eval_steps": 40, "eval_seeds": 1, "eval_shifts": False}
    hard = rddlib.evaluate(data.train_images, data, data.train_labels, **quick)["accuracy"]
    certain = torch.eye(10)[data.train_labels]
    assert rddlib.evaluate(data.train_images, data, certain, **quick)["accuracy"] == pytest.approx(hard, abs=1)
    assert rddlib.evaluate(data.train_images, data, torch.full((100, 10), 0.1), **quick)["accuracy"][0] < hard[0] - 10


def test_arguments_that_would_be_dropped_are_refused() -> None:
    data = rddlib.load_dataset("digits")
    made = rddlib.distill(data, ipc=1, outer_steps=1, inner_steps=1)
    with pytest.raises(SettingError, match="eval_part"):
        rddlib.evaluate(made, data, eval_part="validation")
    with pytest.raises(SettingError, match="labels"):
        rddlib.evaluate(made, data, labels=made.labels)
    images, labels = made.decoded()
    with pytest.raises(SettingError, match="int64"):
        rddlib.evaluate(images, data, labels=labels.int())
    with pytest.raises(SettingError, match="start_sha256"):
        rddlib.Experiment.preset("smoke", method="glad", prior_start="latent", start_sha256="0" * 64)


def test_a_store_may_be_named_by_its_folder(tmp_path: Path) -> None:
    e = rddlib.Experiment.preset("smoke", ipc=1, outer_steps=1, inner_steps=1, eval_steps=2, eval_seeds=1)
    record = rddlib.run(e, str(tmp_path))
    assert rddlib.run(e, tmp_path) == record
    assert len(rddlib.load_set(record.key, tmp_path).images) == 10
    assert set(rddlib.results(store=str(tmp_path))["key"]) == {record.key}
