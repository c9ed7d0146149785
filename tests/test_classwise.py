"""Image steps of all classes together against one class after another, in double precision; draws taken in one go."""

from __future__ import annotations

import dataclasses
from pathlib import Path
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
WAYS: dict[str, dict[str, Any]] = {
    "idc": {},
    "tiles": {"factor": 2, "batch_synthetic": 3},
    "no momentum": {"momentum_image": 0.0},
    "cosine": {"metric": "dc"},
    "upper": {"risk": "upper"},
    "synthetic": {"net_data": "synthetic", "coordinates": "normalised"},
    "dc": {"method": "dc", "lr_image": 0.1},
    "dsa": {"method": "dsa", "match_augment": "color_crop_cutout_scale_rotate", "lr_image": 0.1},
    "dm": {"method": "dm", "net_steps": 0},
    "upper, matched": {"risk": "upper", "where": "matching"},
    "lower, matched, own class": {"risk": "lower", "where": "matching", "scope": "class", "space": "pixel"},
    "released, matched": {"risk": "released", "where": "matching", "factor": 2},
    "normalised": {"image_rule": "normalised", "lr_image": 0.01},
}


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


@pytest.mark.parametrize("way", WAYS)
def test_all_classes_at_once_end_where_one_after_another_does(digits: DataSet, way: str) -> None:
    one = distill.distill(digits, settings(**WAYS[way]))
    other = distill.distill(digits, settings(**WAYS[way], classes_at_once=True))
    begun = loop(Loop, digits, settings(**WAYS[way])).stored().images
    assert torch.allclose(one[0].images, other[0].images, rtol=0, atol=1e-10)
    assert (one[0].images - begun).abs().max() > 0.01  # they do move
    for a, b in zip(one[1], other[1], strict=True):
        assert a == pytest.approx(b, rel=1e-6)  # added up in single precision


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


def test_the_published_loop_is_not_one_step_for_the_sum(digits: DataSet) -> None:
    """What the tests above would miss if all kinds of steps gave the same."""
    one, other = (distill.distill(digits, settings(image_step=kind))[0] for kind in ("class", "sum"))
    assert not torch.allclose(one.images, other.images, atol=1e-3)


class Stop(Exception):
    pass


def test_one_way_goes_on_from_the_checkpoint_of_the_other(digits: DataSet, tmp_path: Path) -> None:
    def stop(done: int, _: dict[str, float]) -> None:
        raise Stop

    whole, _ = distill.distill(digits, settings())
    for first in (False, True):
        file = tmp_path / f"{first}.pt"
        with pytest.raises(Stop):
            distill.distill(digits, settings(classes_at_once=first), file, on_step=stop)
        resumed, _ = distill.distill(digits, settings(classes_at_once=not first), file)
        assert torch.allclose(whole.images, resumed.images, rtol=0, atol=1e-10)


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
    assert batched.kind(settings(), digits) is Loop
    assert batched.kind(settings(classes_at_once=True), digits) is ClassLoop


# --- draws in one go ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [{}, {"factor": 2, "batch_synthetic": 3}], ids=str)
def test_draws_of_an_inner_step_are_those_of_each_class(digits: DataSet, chosen: dict[str, Any]) -> None:
    """As before they were drawn together: each class in its turn, from the same streams, bit for bit."""
    together, one = (loop(Loop, digits, settings(**chosen)) for _ in range(2))
    s, streams = one.s, one.streams
    for c, drawn in enumerate(together.draws(range(digits.n_classes))):
        members = (digits.train_labels == c).nonzero().flatten()
        assert torch.equal(drawn.real, members[torch.randperm(len(members), generator=streams["real"])[: s.batch_real]])
        theta = augment.draw(s.match_augment, 1, digits.shape[1], streams["match augment"], "idc")
        for field in dataclasses.fields(theta):
            ours, theirs = (getattr(t, field.name) for t in (drawn.omega, theta))
            assert (ours is None and theirs is None) or torch.equal(ours, theirs)
        if "batch_synthetic" in chosen:
            assert drawn.subset is not None
            assert torch.equal(drawn.subset, torch.randperm(8, generator=streams["synthetic batch"])[:3])
        else:
            assert drawn.subset is None
    for name, stream in streams.items():
        assert torch.equal(stream.get_state(), together.streams[name].get_state())


def test_images_of_network_steps_are_those_drawn_one_by_one(digits: DataSet) -> None:
    for kind, n, take in (("real", 80, torch.randint), ("synthetic", 8, torch.randperm)):
        together, one = (loop(Loop, digits, settings(net_steps=3, net_data=kind)) for _ in range(2))
        found = together._indices("net")
        size: Any = (n, (32,)) if kind == "real" else (n,)
        assert len(found) == 3
        for index in found:
            assert torch.equal(index, take(*size, generator=one.streams["net batch"])[:32])
        assert len(found[0]) == (32 if kind == "real" else 8)
        assert not loop(Loop, digits, settings(net_steps=0, net_data=kind))._indices("net")


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
