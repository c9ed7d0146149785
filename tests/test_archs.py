"""Architectures are those of their definitions: counts, shapes, references written apart, two derivatives."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rddlib.base import generator
from rddlib.models import architectures, networks

OTHERS = tuple(networks.FIXED_DEPTH)


def make(name: str, size: int = 32, channels: int = 3, width: int = 8, seed: int = 0) -> Any:
    return networks.build(name, (channels, size, size), 10, width=width, generator=generator(seed, "net"))


def pictures(n: int, channels: int, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, channels, size, size, dtype=dtype, generator=generator(0, "pictures", size))


# --- counts and shapes ------------------------------------------------------------------------------------


def residual_count(blocks: int, stem: int = 3 * 3) -> int:
    """ResNet of 3 channels, 10 classes, widths 64 to 512, from the definition."""
    total = 3 * 64 * stem + 2 * 64  # the stem and its norm
    inputs = 64
    for outputs in (64, 128, 256, 512):
        total += 9 * inputs * outputs + 9 * outputs**2 + 4 * outputs  # two convolutions, two norms
        total += (blocks - 1) * (18 * outputs**2 + 4 * outputs)
        if inputs != outputs:
            total += inputs * outputs + 2 * outputs  # the shortcut and its norm
        inputs = outputs
    return total + 512 * 10 + 10


def vgg_count(features: int) -> int:
    plan = [(3, 64), (64, 128), (128, 256), (256, 256), (256, 512), (512, 512), (512, 512), (512, 512)]
    return sum(9 * a * b + b + 2 * b for a, b in plan) + features * 10 + 10


def transformer_count(patch: int, patches: int, layers: int, norms: bool) -> int:
    attention = 512 * 3 * 512 + 512 * 512 + 512  # queries, keys, values without bias; the output with
    mixing = 2 * (512 * 512 + 512)
    total = (3 * patch**2 + 1) * 512 + 512 + (1 + patches) * 512  # projection, read-out token, positions
    total += layers * (attention + mixing + (4 * 512 if norms else 0)) + (2 * 512 if norms else 0)
    return total + 512 * 10 + 10


COUNTS = [
    ("resnet10", 32, residual_count(1), 4_903_242),
    ("resnetap10", 32, residual_count(1), 4_903_242),
    ("resnetap10", 224, residual_count(1, stem=7 * 7), 4_910_922),
    ("resnet18", 128, residual_count(2), 11_173_962),
    ("resnetap18", 128, residual_count(2), 11_173_962),
    ("vgg11", 32, vgg_count(512), 9_231_114),
    ("vgg11", 128, vgg_count(512 * 49), 9_476_874),
    ("vit", 32, transformer_count(4, 64, 6, norms=True), 9_523_722),
    ("vit", 128, transformer_count(16, 64, 10, norms=False), 16_176_650),
]


@pytest.mark.parametrize(("name", "size", "counted", "printed"), COUNTS, ids=[f"{c[0]}-{c[1]}" for c in COUNTS])
def test_parameter_counts(name: str, size: int, counted: int, printed: int) -> None:
    """The formula, the number that the docstrings print, and the network agree."""
    net = make(name, size, width=networks.PAPER_WIDTH[name])
    assert sum(p.numel() for p in net.parameters()) == counted == printed


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(("size", "channels"), [(8, 1), (32, 3), (64, 3), (128, 3)])
def test_shapes_and_the_linear_layer_on_top(name: str, size: int, channels: int) -> None:
    net = make(name, size, channels).eval()
    x = pictures(2, channels, size)
    features = {"vit": 8, "vgg11": 64 * (49 if size > 32 else 1)}.get(name, 64)
    with torch.no_grad():
        assert net.embed(x).shape == (2, features)
        assert net(x).shape == (2, 10)
        assert torch.allclose(net.classifier(net.embed(x)), net(x))


@pytest.mark.parametrize(
    ("size", "sides"),
    [(8, [8, 8, 4, 2, 2]), (32, [32, 32, 16, 8, 4]), (128, [64, 64, 32, 16, 8]), (224, [56, 56, 28, 14, 7])],
)
@pytest.mark.parametrize("name", ["resnet10", "resnetap10"])
def test_maps_of_residual_networks(name: str, size: int, sides: list[int]) -> None:
    net, x, found = make(name, size, width=1), pictures(1, 3, size), []
    for layer in net.features:
        x = layer(x)
        found.append(x.shape[-1])
    assert found == sides


def test_the_pooled_form_has_no_strides_and_the_plain_form_has() -> None:
    def strides(name: str) -> set[int]:
        return {m.stride[0] for m in make(name, 224, width=1).modules() if isinstance(m, nn.Conv2d)}

    def pools(name: str) -> set[type]:
        return {type(m) for m in make(name, 224, width=1).modules() if "Pool" in type(m).__name__}

    assert strides("resnetap18") == {1} and pools("resnetap18") == {nn.AvgPool2d}
    assert strides("resnet18") == {1, 2} and pools("resnet18") == {nn.MaxPool2d}


# --- references -------------------------------------------------------------------------------------------


def residual_reference(net: architectures.ResNet, x: Tensor, blocks: int, pooled: bool) -> Tensor:
    """The definition spelled out with F.instance_norm, for 32 px; weights are taken in their order."""
    weights = iter(net.parameters())

    def conv_norm(x: Tensor, stride: int = 1, pool: bool = False, relu: bool = False) -> Tensor:
        w, scale, shift = next(weights), next(weights), next(weights)
        x = F.conv2d(x, w, stride=stride, padding=w.shape[-1] // 2)
        if pool and not relu:  # the shortcut: pooled before the norm
            x = F.avg_pool2d(x, 2)
        x = F.instance_norm(x, weight=scale, bias=shift)
        x = x.relu() if relu else x
        return F.avg_pool2d(x, 2) if pool and relu else x

    x = conv_norm(x, relu=True)
    for stage in range(4):
        for number in range(blocks):
            halve = stage > 0 and number == 0
            stride, pool = (1, halve) if pooled else (1 + halve, False)
            y = conv_norm(conv_norm(x, stride, pool, relu=True))
            x = (y + (conv_norm(x, stride, pool) if halve else x)).relu()
    return F.linear(F.adaptive_avg_pool2d(x, 1).flatten(1), next(weights), next(weights))


@pytest.mark.parametrize("name", ["resnet10", "resnet18", "resnetap10", "resnetap18"])
def test_residual_networks_equal_the_definition(name: str) -> None:
    net, x = make(name, width=2).double(), pictures(2, 3, 32, torch.float64)
    expected = residual_reference(net, x, 1 if name.endswith("10") else 2, "ap" in name)
    assert torch.allclose(net(x), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("size", [32, 128])
def test_vgg_equals_the_definition(size: int) -> None:
    net, x = make("vgg11", size, width=2).double(), pictures(2, 3, size, torch.float64)
    weights = iter(net.parameters())
    expected = x
    for number in range(1, 9):
        expected = F.conv2d(expected, next(weights), next(weights), padding=1)
        expected = F.instance_norm(expected, weight=next(weights), bias=next(weights)).relu()
        expected = F.max_pool2d(expected, 2) if number in (1, 2, 4, 6, 8) else expected
    expected = F.adaptive_max_pool2d(expected, 7) if size == 128 else expected
    expected = F.linear(expected.flatten(1), next(weights), next(weights))
    assert torch.allclose(net(x), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("width", "n_heads"), [(8, 1), (36, 2), (64, 4), (128, 8), (512, 8)])
def test_a_transformer_layer_equals_torchs_own(width: int, n_heads: int) -> None:
    """The 32 px form against nn.TransformerEncoderLayer with the same weights and no bias on its inputs."""
    net = make("vit", width=width).double().eval()
    attend, mix = net.layers[0], net.layers[1]
    theirs = (
        nn.TransformerEncoderLayer(width, n_heads, width, 0.1, "gelu", batch_first=True, norm_first=True)
        .double()
        .eval()
    )
    with torch.no_grad():
        theirs.self_attn.in_proj_bias.zero_()
        pairs = [
            (theirs.self_attn.in_proj_weight, attend[1].inputs.weight),
            *zip(theirs.self_attn.out_proj.parameters(), attend[1].output.parameters(), strict=True),
            *zip(theirs.linear1.parameters(), mix[1].parameters(), strict=True),
            *zip(theirs.linear2.parameters(), mix[4].parameters(), strict=True),
        ]
        for target, source in pairs:
            target.copy_(source)
        x = torch.randn(2, 5, width, dtype=torch.float64, generator=generator(0))
        ours = x + attend(x)
        assert torch.allclose(ours + mix(ours), theirs(x), atol=1e-10, rtol=0)


def test_patches_are_cut_row_by_row() -> None:
    x = pictures(2, 3, 8)
    cut = architectures.patches(x, 4)
    assert cut.shape == (2, 4, 48)
    assert torch.equal(cut[1, 1], x[1, :, :4, 4:].flatten()) and torch.equal(cut[1, 2], x[1, :, 4:, :4].flatten())


@pytest.mark.parametrize(("size", "layers", "norms"), [(8, 6, 13), (32, 6, 13), (64, 10, 0), (128, 10, 0)])
def test_the_transformer_for_larger_images_has_no_layer_norm(size: int, layers: int, norms: int) -> None:
    """GLaD's networks/vit.py comments every LayerNorm out; its vit_cifar.py keeps two a layer and one at the end."""
    modules = list(make("vit", size).modules())
    assert sum(isinstance(m, architectures.Attention) for m in modules) == layers
    assert sum(isinstance(m, nn.LayerNorm) for m in modules) == norms
    assert not any(isinstance(m, nn.GroupNorm) for m in modules)


def test_the_transformer_sees_where_a_patch_is() -> None:
    net, x = make("vit").eval(), pictures(1, 3, 32)
    turned = x.roll(16, dims=3)  # whole patches change places
    assert not torch.allclose(net(x), net(turned), atol=1e-3)
    with torch.no_grad():
        net.tokens.position.zero_()
    assert torch.allclose(net(x), net(turned), atol=1e-5)


# --- norms ------------------------------------------------------------------------------------------------


def test_one_pixel_is_forgotten_by_instance_norm() -> None:
    """Why small images keep their maps: a norm over one value returns its shift, whatever the value is."""
    norm = nn.GroupNorm(4, 4)
    assert norm(pictures(3, 4, 1)).abs().max() < 1e-3  # rounding of x - x, divided by sqrt(eps)


@pytest.mark.parametrize("name", [n for n in OTHERS if n != "vit"])
@pytest.mark.parametrize("size", [2, 3, 5, 8, 12, 28])
def test_small_images_are_not_forgotten(name: str, size: int) -> None:
    net = make(name, size, 1, width=4).double()
    x = pictures(2, 1, size, torch.float64).requires_grad_()
    logits = net(x)
    (slope,) = torch.autograd.grad(logits.square().sum(), x)
    assert (logits[0] - logits[1]).abs().max() > 1e-3 and slope.abs().amax((1, 2, 3)).min() > 1e-6


# --- derivatives ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "size"), [*((n, 8) for n in OTHERS), ("vit", 64), ("vgg11", 36), ("resnet10", 66)])
def test_a_distance_of_gradients_can_be_differentiated(name: str, size: int) -> None:
    """What gradient matching needs: d/dx of the squared length of the loss's gradient, against differences."""
    net = make(name, size, 1, width=8 if name == "vit" else 2).double().eval()
    labels = torch.arange(2)

    def length(x: Tensor) -> Tensor:
        loss = F.cross_entropy(net(x), labels)
        slopes = torch.autograd.grad(loss, [p for p in net.parameters() if p.ndim > 1], create_graph=True)
        return torch.stack([s.square().sum() for s in slopes]).sum()

    x = pictures(2, 1, size, torch.float64).requires_grad_()
    assert torch.autograd.grad(length(x), x)[0].abs().max() > 1e-6  # the check is about something
    assert torch.autograd.gradcheck(length, x, eps=1e-7, atol=1e-4, rtol=1e-4, fast_mode=True)


# --- dropout ----------------------------------------------------------------------------------------------


def seeded(p: float = 0.25, seed: int = 1) -> architectures.Dropout:
    module = architectures.Dropout(p)
    module.reseed(seed)
    return module


def test_dropout_zeroes_a_share_and_keeps_the_mean() -> None:
    x = torch.ones(200, 500)
    y = seeded()(x)
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (y == 0).double().mean().item() == pytest.approx(0.25, abs=0.01)


def test_dropout_has_its_own_stream() -> None:
    x, before = torch.ones(4, 50), torch.random.get_rng_state()
    one, two, other = seeded(), seeded(), seeded(seed=2)
    first, second = one(x), one(x)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.equal(first, second)
    assert torch.equal(two(x), first) and not torch.equal(other(x), first)
    assert torch.equal(copy.deepcopy(two)(x), second) and torch.equal(two(x), second)
    two.reseed(1)
    assert torch.equal(two(x), first)


def test_dropout_in_eval_mode_and_without_a_seed() -> None:
    x = torch.ones(3, 3)
    assert architectures.Dropout(0.5).eval()(x) is x
    with pytest.raises(RuntimeError, match="without a seed"):
        architectures.Dropout(0.5)(x)


def test_a_transformer_drops_by_its_build_seed() -> None:
    x = pictures(2, 3, 32)
    one, two, other = make("vit"), make("vit"), make("vit", seed=1)
    first = one(x)
    assert torch.equal(two(x), first) and not torch.equal(one(x), first)
    assert (
        len({m.seed for net in (one, other) for m in net.modules() if isinstance(m, architectures.Dropout)}) == 2 * 19
    )
    one.eval(), two.eval()
    assert torch.equal(one(x), two(x)) and torch.equal(one(x), one(x))


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("size", [8, 32, 128])
def test_gradients_reach_every_parameter(name: str, size: int) -> None:
    net = make(name, size).double()
    F.cross_entropy(net(pictures(4, 3, size, torch.float64)), torch.arange(4)).backward()
    for path, parameter in net.named_parameters():
        assert parameter.grad is not None, path
        cancelled = name == "vgg11" and path.startswith("features") and parameter.ndim == 1 and "bias" in path
        before_norm = cancelled and isinstance(net.get_submodule(path.rpartition(".")[0]), nn.Conv2d)
        assert before_norm or parameter.grad.abs().max() > 1e-12, path  # a norm takes the bias before it away


@pytest.mark.parametrize("name", OTHERS)
def test_an_image_does_not_see_its_batch(name: str) -> None:
    net, x = make(name).double().eval(), pictures(4, 3, 32, torch.float64)
    assert torch.allclose(net(x)[:2], net(x[:2]), atol=1e-10)
