"""Image steps of all classes together against one class after another, in double precision; draws taken in one go."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from rddlib.base import SettingError
from rddlib.data import augment, dataset
from rddlib.data.dataset import DataSet
from rddlib.distillation import batched, distill
from rddlib.distillation.batched import ClassLoop
from rddlib.distillation.glad import prior
from rddlib.distillation.loop import Loop, State, outer_step
from rddlib.distillation.settings import DistillSettings
from rddlib.experiments.experiment import Experiment
from rddlib.models import networks

SMALL: dict[str, Any] = {
    "depth": 2, "width": 4, "ipc": 2, "factor": 1, "outer_steps": 2, "inner_steps": 3, "batch_real": 8, "net_steps": 2,
    "net_batch": 32, "lr_image": 1.0, "momentum_image": 0.7,
}  # fmt: skip


def few(size: int | None = None, n_classes: int = 4) -> DataSet:
    """Digits of some classes in double precision, so that rounding stays far below every difference of meaning."""
    d = dataset.load("digits", size=size, train_limit=200, test_limit=100)
    keep = d.train_labels < n_classes
    return dataclasses.replace(
        d, train_images=d.train_images[keep].double() / 255, train_labels=d.train_labels[keep],
        classes=d.classes[:n_classes],
    )  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return few()


def settings(**chosen: Any) -> DistillSettings:
    return DistillSettings(**(SMALL | chosen))


def loop(kind: type[Loop], d: DataSet, s: DistillSettings) -> Loop:
    source = prior.load(s.parts().prior, d, s.prior_layer, s.prior_start)
    return kind(d, s, distill.begin(d, s, source), source)


@pytest.mark.parametrize("chosen", [{}, {"image_step": "sum"}, {"coordinates": "normalised"}], ids=str)
def test_the_closed_form_moves_images_and_momentum_as_the_steps_do(digits: DataSet, chosen: dict[str, Any]) -> None:
    looped, closed = (loop(kind, digits, settings(**chosen)) for kind in (Loop, ClassLoop))
    for _ in range(3):
        gaps = [each.image_steps() for each in (looped, closed)]
        for each in (looped, closed):
            each.network_steps()
        assert float(gaps[0]) == pytest.approx(float(gaps[1]), rel=1e-6)  # added up in single precision
        for name in ("codes", "velocity"):
            one, other = (getattr(each, name)["pixels"] for each in (looped, closed))
            assert torch.allclose(one, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("network", ["resnetap10", "vgg11", "resnet10"])
def test_other_networks_at_once(network: str) -> None:
    d = few(size=32, n_classes=3)
    short = {"network": network, "width": 4, "outer_steps": 1, "inner_steps": 2, "batch_real": 4, "ipc": 1}
    one, other = (distill.distill(d, settings(**short, classes_at_once=each))[0] for each in (False, True))
    assert torch.allclose(one.images, other.images, rtol=0, atol=1e-9)


@pytest.mark.parametrize("image_step", ["sum", "class"])
def test_a_prior_at_once(image_step: str) -> None:
    """Codes of a generator, both kinds, in double precision: decoded and pulled back for all classes together."""
    d = dataset.load("digits")
    s = settings(method="glad", ipc=2, inner_steps=2, net_steps=1, image_step=image_step, lr_image=10.0)
    source: Any = prior.load("generator", d, s.prior_layer)
    codes = {name: code.double() for name, code in distill.begin(d, s, source).codes.items()}
    source.network.double()
    d = dataclasses.replace(d, train_images=d.train_images.double() / 255)
    begun = State(codes, {name: torch.zeros_like(code) for name, code in codes.items()})
    one, other = (outer_step(d, s, begun, source, kind) for kind in (Loop, ClassLoop))
    for part in ("codes", "velocity"):
        for name, ours in getattr(one, part).items():
            theirs = getattr(other, part)[name]
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9 * float(ours.abs().max()))
            assert (ours - getattr(begun, part)[name]).abs().max() > 1e-5


def test_at_once_in_lower_precision(digits: DataSet) -> None:
    """bfloat16 products are rounded elsewhere: the same way, to a few per cent."""
    d = dataclasses.replace(digits, train_images=(digits.train_images * 255).round().to(torch.uint8))
    ends = []
    for kind in (Loop, ClassLoop):
        each = loop(kind, d, settings(precision="bfloat16"))
        start = each.codes["pixels"].clone()
        with networks.arithmetic("bfloat16", torch.device("cpu")):
            each.image_steps()
        ends.append(each.codes["pixels"] - start)
    assert (ends[0] - ends[1]).norm() < 0.1 * ends[0].norm()


@pytest.mark.parametrize(
    ("chosen", "why"),
    [
        ({"match_groups": "equal", "groups_from": "labels"}, "match_groups"),
        ({"network": "vit", "metric": "dc"}, "dropout"),
    ],
)
def test_what_cannot_be_taken_at_once_is_refused_before_any_work(chosen: dict[str, Any], why: str) -> None:
    with pytest.raises(SettingError, match=f"classes_at_once = True: allowed is False.*{why}"):
        settings(**chosen, classes_at_once=True)
    settings(**chosen)  # and is fine as it is


def test_the_switch_has_no_effect_where_nothing_is_looped() -> None:
    for method in ("random", "kip"):
        plain, switched = (Experiment(method=method, classes_at_once=on) for on in (False, True))
        assert plain.key == switched.key and plain.set_key == switched.set_key
    assert Experiment().key != Experiment(classes_at_once=True).key  # a float32 run ends elsewhere by rounding


def test_the_loop_of_the_default_is_the_plain_one_on_a_cpu(digits: DataSet) -> None:
    assert batched.loop_class(settings(), digits) is Loop
    assert batched.loop_class(settings(classes_at_once=True), digits) is ClassLoop


# --- draws in one go ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_kept_channel_numbers_give_the_same_bits(dtype: torch.dtype) -> None:
    d = dataset.load("digits", train_limit=50, test_limit=50)
    x = d.train_images if dtype == torch.uint8 else d.train_images.to(dtype) / 255
    floats = x.to(torch.promote_types(dtype, torch.float32))
    mean, std = (torch.tensor(v, dtype=floats.dtype).view(-1, 1, 1) for v in (d.mean, d.std))
    scale = 255.0 if dtype == torch.uint8 else 1.0
    for _ in range(2):
        assert torch.equal(d.normalise(x), (floats / scale - mean) / std)


def test_what_is_kept_in_inference_can_be_differentiated_later() -> None:
    d = dataclasses.replace(dataset.load("digits", train_limit=50, test_limit=50), mean=(0.123,), std=(0.456,))
    with torch.inference_mode():
        d.normalise(d.train_images)
    x = (d.train_images.float() / 255).requires_grad_()
    (gradient,) = torch.autograd.grad(d.normalise(x).sum(), x)
    assert torch.allclose(gradient, torch.full_like(x, 1 / 0.456))


def test_a_shared_crop_stays_where_it_is_read() -> None:
    drawn = augment.Draw(crop=torch.tensor([[1, -1]]), color=torch.rand(1, 3)).to(torch.device("meta"))
    assert drawn.crop is not None and drawn.color is not None
    assert drawn.crop.device.type == "cpu" and drawn.color.device.type == "meta"
    many = augment.Draw(crop=torch.zeros(3, 2, dtype=torch.long)).to(torch.device("meta"))
    assert many.crop is not None and many.crop.device.type == "meta"
