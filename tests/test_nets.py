"""The network is the one of the definition, drawn from the generator given and from nothing else."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rddlib.base import SettingError, generator
from rddlib.models import networks


def make(seed: int = 0, size: int = 32, channels: int = 3, depth: int = 3, width: int = 128) -> nn.Module:
    return networks.build(
        "convnet", (channels, size, size), 10, depth=depth, width=width, generator=generator(seed, "net")
    )


def test_the_common_network_has_320010_parameters() -> None:
    assert sum(p.numel() for p in make().parameters()) == 320_010


def test_convnet_draws_weights_then_biases_in_order() -> None:
    """Keys of records lean on this order: a network of a seed stays the same network."""
    net, stream = make(size=8, channels=1, depth=2, width=4), generator(0, "net")
    for module in [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]:
        bound = 1 / math.sqrt(module.weight[0].numel())
        for drawn in (module.weight, module.bias):
            assert torch.equal(drawn, torch.empty_like(drawn).uniform_(-bound, bound, generator=stream))


# --- all networks -----------------------------------------------------------------------------------------


def draw(name: str, seed: int = 0, size: int = 32, width: int = 8) -> nn.Module:
    return networks.build(name, (3, size, size), 10, width=width, generator=generator(seed, "net"))


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_every_network_comes_from_its_generator_alone(name: str) -> None:
    x, before = torch.randn(2, 3, 32, 32, generator=generator(0)), torch.random.get_rng_state()
    one = draw(name)
    logits = one(x)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(draw(name)(x), logits) and not torch.equal(draw(name, 1)(x), logits)
    assert not any(t.is_meta for t in (*one.parameters(), *one.buffers())) and logits.isfinite().all()


def test_he_initialisation_of_residual_networks() -> None:
    """Normal with variance 2 / (k * k * outputs); norms and the linear layer as everywhere."""
    net = draw("resnetap10", width=32)
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            expected = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels))
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05)
            assert module.weight.abs().max().item() > 3 * expected  # no uniform law reaches that
        elif isinstance(module, nn.GroupNorm):
            assert (module.weight == 1).all() and (module.bias == 0).all()
    assert net.classifier.weight.abs().max().item() == pytest.approx(1 / math.sqrt(256), rel=0.05)


def test_tokens_are_standard_normal() -> None:
    tokens = draw("vit", width=128).tokens
    assert tokens.position.std().item() == pytest.approx(1, rel=0.05)
    assert tokens.readout.std().item() == pytest.approx(1, rel=0.25)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.empty(3))


class Offset(nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 2)
        self.register_buffer("offset", torch.zeros(2))


@pytest.mark.parametrize(
    ("module", "said"), [(Scale(), "1 .Scale.*factor"), (Offset(), "1 .Offset.*no rule for offset")]
)
def test_what_has_no_rule_is_not_left_uninitialised(module: nn.Module, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        networks.initialise(nn.Sequential(nn.ReLU(), module), generator(0))


# --- refusals ---------------------------------------------------------------------------------------------

REFUSED = [
    (("resnet", (3, 32, 32), 3, 8), "network = 'resnet'.*resnetap10"),
    (("convnet", (1, 8, 8), 4, 8), "depth = 4.*at most 3 for 8 px"),
    (("convnet", (1, 8, 8), 0, 8), "depth = 0.*at least 1"),
    (("convnet", (3, 32, 32), 3, 0), "width = 0.*at least 1"),
    (("resnet18", (3, 32, 24), 3, 8), "size = '32 x 24'.*square"),
    (("resnetap10", (3, 1, 1), 3, 8), "size = 1.*at least 2 px"),
    (("vgg11", (3, 1, 1), 3, 8), "size = 1.*at least 2 px"),
    (("vit", (3, 33, 33), 3, 8), "size = 33.*multiple of .* 4 px"),
    (("vit", (3, 72, 72), 3, 8), "size = 72.*multiple of 16 px"),
    (("vit", (3, 2, 2), 3, 8), "size = 2.*4, 6"),
    (("vit", (3, 32, 32), 3, 130), "width = 130.*multiple of 8"),
]


@pytest.mark.parametrize(("case", "said"), REFUSED)
def test_refusals(case: tuple, said: str) -> None:
    name, shape, depth, width = case
    (conflict,) = networks.conflicts(name, shape, depth, width)
    assert re.search(said, str(conflict))
    with pytest.raises(SettingError, match=said):
        networks.build(name, shape, 10, depth=depth, width=width, generator=generator(0))


def test_refusals_name_the_setting_of_the_caller() -> None:
    for case, name in (REFUSED[0], "eval_network"), (REFUSED[1], "eval_depth"), (REFUSED[10], "eval_width"):
        assert [conflict.name for conflict in networks.conflicts(*case[0], prefix="eval_")] == [name]
    (conflict,) = networks.conflicts(*REFUSED[7][0], prefix="eval_")
    assert str(conflict).startswith("size = 33")  # a setting of the data, not of the network


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.sampled_from(networks.NETWORKS), st.integers(1, 80), st.integers(1, 7), st.integers(1, 40))
def test_what_fits_can_be_built_and_used(name: str, size: int, depth: int, width: int) -> None:
    shape = (1, size, size)
    for conflict in networks.conflicts(name, shape, depth, width):
        with pytest.raises(SettingError, match=f"^{conflict.name} = "):
            networks.build(name, shape, 3, depth=depth, width=width, generator=generator(0))
        return
    net = networks.build(name, shape, 3, depth=depth, width=width, generator=generator(0))
    logits = net(torch.randn(2, *shape, generator=generator(1)))
    assert logits.shape == (2, 3) and logits.isfinite().all()


def test_depth_is_that_of_the_name() -> None:
    for name in networks.FIXED_DEPTH:
        one, two = (networks.build(name, (3, 32, 32), 10, depth=d, width=8, generator=generator(0)) for d in (1, 8))
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_every_network_has_a_width_of_the_paper() -> None:
    assert set(networks.PAPER_WIDTH) == set(networks.NETWORKS)
    for name, width in networks.PAPER_WIDTH.items():
        assert not list(networks.conflicts(name, (3, 128, 128), 5, width))


def test_weights_come_from_the_generator_alone() -> None:
    before = torch.random.get_rng_state()
    one = make(0, width=8)
    assert torch.equal(torch.random.get_rng_state(), before)  # the global stream is left alone
    torch.manual_seed(99)
    two, other = make(0, width=8), make(1, width=8)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


def test_norm_is_per_image_and_channel() -> None:
    """Instance norm: an image's features do not depend on the rest of the batch, nor on a channel's scale."""
    net = make(width=8).double()
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(net(x)[:2], net(x[:2]))
