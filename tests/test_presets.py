"""Presets are the published numbers where they say so: IDC's argument.py and reproduce.py, DC's utils.py, GLaD's."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from rddlib.experiments.experiment import Content, Experiment, fitted

PUBLISHED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    # IDC: 1,000 epochs of 7 batches of 64 for 400 decoded images; rate 5e-3 at 10 images a class, times ipc / 10
    ({"ipc": 10}, {"eval_steps": 7000, "lr_image": 5e-3, "net_steps": 8, "outer_steps": 2000, "inner_steps": 100}),
    ({"ipc": 1}, {"eval_steps": 1000, "lr_image": 5e-4}),
    ({"ipc": 50}, {"eval_steps": 32000, "lr_image": 2.5e-2}),
    ({"dataset": "svhn", "ipc": 10}, {"net_steps": 2, "eval_augment": "color_crop_scale_rotate"}),
    (
        {"dataset": "svhn", "ipc": 1, "factor": 1},
        {"eval_cutmix": 0.0, "eval_augment": "color_crop_cutout_scale_rotate"},
    ),
    # IDC on ImageNet-10: l1, 3e-3, 500 outer steps, ten epochs first; 3,000 to 1,000 epochs by the decoded images
    (
        {"dataset": "imagenet10", "ipc": 10, "factor": 3, "network": "resnetap10"},
        {"metric": "l1", "lr_image": 3e-3, "outer_steps": 500, "net_start_steps": 510, "eval_steps": 15000}
        | {"cutmix": 1.0, "eval_cutmix": 1.0},
    ),
    ({"dataset": "imagenet10", "ipc": 1, "factor": 3}, {"lr_image": 3e-4, "eval_steps": 4000}),
    ({"dataset": "imagenet10", "ipc": 1, "method": "random"}, {"eval_steps": 3000}),
    # DC and GLaD judge with batches of 256: one a pass at 10 images a class, two at 50; DC unaugmented: 300 epochs
    ({"method": "dsa", "eval_recipe": "dc", "ipc": 10}, {"eval_steps": 1000, "eval_batch": 256}),
    ({"method": "dsa", "eval_recipe": "dc", "ipc": 50}, {"eval_steps": 2000}),
    ({"method": "glad", "eval_recipe": "glad", "ipc": 10}, {"eval_steps": 1000, "eval_lr": 0.001}),
    ({"method": "dc", "eval_recipe": "dc", "ipc": 10, "eval_augment": "none"}, {"eval_steps": 300, "start": "noise"}),
    # Section 4.1 of the paper: as many groups in all as images a class, at most ten
    ({"risk": "upper", "ipc": 1}, {"centres_in_all": 1}),
    ({"risk": "upper", "ipc": 50}, {"centres_in_all": 10}),
    ({"risk": "upper", "ipc": 10, "scope": "class"}, {"centres_in_all": None, "max_centres": 10}),
]


@pytest.mark.parametrize(("chosen", "expected"), PUBLISHED, ids=lambda case: " ".join(map(str, case.values())))
def test_the_paper_scale_has_the_published_numbers(chosen: dict[str, Any], expected: dict[str, Any]) -> None:
    made = vars(Experiment.preset("paper", **chosen))
    assert {name: made[name] for name in expected} == pytest.approx(expected)


def test_the_cpu_scale_keeps_the_published_inner_loop_whole() -> None:
    """What differs from the paper's scale is size, length, width and the image rate, which is chosen by arm."""
    here, paper = (vars(Experiment.preset(scale, risk="upper")) for scale in ("cpu", "paper"))
    differ = {name for name in here if here[name] != paper[name]}
    assert differ == {
        "scale",
        "width",
        "eval_width",
        "outer_steps",
        "lr_image",
        "eval_steps",
        "eval_seeds",
    }


def test_the_updates_of_a_pass_follow_the_number_of_classes_of_own_data(caplog: pytest.LogCaptureFixture) -> None:
    """Every published set has ten classes; a hundred have ten times the batches in a pass."""
    content = Content("0" * 64, n_classes=100, smallest=500, n_train=50000, n_test=10000)
    own = Experiment.preset("paper", dataset="npz:many.npz", method="dsa", ipc=10, eval_recipe="dc")
    made = fitted(own, content)
    assert (own.eval_steps, own.net_steps) == (1000, 50)  # a pass of 100 images is one batch of 256
    assert (made.eval_steps, made.net_steps) == (1000 * math.ceil(1000 / 256), 50 * math.ceil(1000 / 256))
    assert caplog.messages == ["npz:many.npz has 100 classes: eval_steps = 4000, net_steps = 200"]
    by_hand = replace(own, eval_steps=1500)
    assert fitted(by_hand, content).eval_steps == 1500
    named = Experiment.preset("paper", dataset="cifar10", method="dsa")
    assert fitted(named, content) == named
    assert fitted(own, replace(content, n_classes=10)) == own
