"""Each method's step against a slow, plain one written straight from its description, in float64.

The descriptions are those of the papers and of the released code as the protocol notes have it: DC and DSA (Zhao et
al. 2021; Zhao & Bilen 2021), DM (Zhao & Bilen 2023), GLaD (Cazenavette et al. 2023), IDC (Kim et al. 2022). The plain
steps move *normalised* images with torch's own SGD where the originals do, and loop over rows where the formula does.
IDC's own plain loop is in test_distill.py.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rddlib import risk
from rddlib.base import SettingError, generator
from rddlib.data import augment, dataset
from rddlib.data.dataset import DataSet
from rddlib.distillation import distill, loop, matching, synthetic
from rddlib.distillation.glad import prior
from rddlib.distillation.loop import ClassDraws, Loop, State
from rddlib.distillation.settings import LOOPED, PARTS, DistillSettings, check_fit
from rddlib.models import fused, networks

TINY = DistillSettings(
    depth=2, width=4, ipc=2, factor=1, outer_steps=2, inner_steps=2, batch_real=8, net_steps=2, net_batch=16,
    lr_image=0.05, match_augment="color_crop_cutout_flip_scale_rotate",
    net_augment="color_crop_cutout_flip_scale_rotate", cutmix=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> DataSet:
    """Digits as float64 in [0, 1], three classes: small enough for plain loops."""
    d = dataset.load("digits", train_limit=200, test_limit=100)
    keep = d.train_labels < 3
    return dataclasses.replace(
        d, train_images=d.train_images[keep].double() / 255, train_labels=d.train_labels[keep], classes=("0", "1", "2")
    )


def method(name: str, **changes) -> DistillSettings:
    return dataclasses.replace(TINY, **({"method": name} | changes))


def of_class(d: DataSet, c: int, omega: augment.Draw) -> ClassDraws:
    """The first eight real images of a class under one draw."""
    return ClassDraws(d.members[c][:8], omega, None)


def plain_rows(weight_gradient: Tensor) -> list[Tensor]:
    return [row.flatten() for row in weight_gradient]


def plain_cosine(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """DC, Eq. 10: over layers and output rows, one minus the cosine."""
    total = torch.zeros((), dtype=torch.float64)
    for one, two in zip(a, b, strict=True):
        for r, s in zip(plain_rows(one), plain_rows(two), strict=True):
            total = total + 1 - (r @ s) / (r.norm() * s.norm() + 1e-6)
    return total


class Plain:
    """One outer step of a method, written out. `images` are normalised, float64, and require gradients."""

    def __init__(self, d: DataSet, s: DistillSettings, images: Tensor, outer: int = 0) -> None:
        self.d, self.s = d, s
        self.mean = torch.tensor(d.mean, dtype=torch.float64).view(-1, 1, 1)
        self.std = torch.tensor(d.std, dtype=torch.float64).view(-1, 1, 1)
        self.images = ((images - self.mean) / self.std).requires_grad_()
        self.streams = {n: generator(s.seed, "outer", outer, n) for n in loop.STREAMS}
        self.net = networks.build("convnet", d.shape, d.n_classes, depth=s.depth, width=s.width,
                              generator=self.streams["net"]).double()  # fmt: skip

    def real(self, c: int) -> Tensor:
        members = (self.d.train_labels == c).nonzero().flatten()
        chosen = members[torch.randperm(len(members), generator=self.streams["real"])[: self.s.batch_real]]
        return (self.d.train_images[chosen] - self.mean) / self.std

    def pair(self, c: int) -> tuple[Tensor, Tensor]:
        """Real and synthetic images of a class under one shared draw of one operation."""
        x = self.real(c)
        theta = augment.draw(self.s.match_augment, 1, self.d.shape[1], self.streams["match augment"], "one")
        own = self.images[c * self.s.ipc : (c + 1) * self.s.ipc]
        return augment.apply(x, theta), augment.apply(own, theta)

    def cosine_of_gradients(self, c: int) -> Tensor:
        real, own = self.pair(c)
        weights = [p for p in self.net.parameters() if p.ndim > 1]
        label = torch.full((self.s.batch_real,), c)
        a = torch.autograd.grad(F.cross_entropy(self.net(real), label), weights)
        b = torch.autograd.grad(F.cross_entropy(self.net(own), label[: len(own)]), weights, create_graph=True)
        return plain_cosine([g.detach() for g in a], list(b))

    def mean_gap(self, c: int) -> Tensor:
        real, own = self.pair(c)
        with torch.no_grad():
            wanted = self.net.embed(real).mean(0)
        return ((wanted - self.net.embed(own).mean(0)) ** 2).sum()

    def train(self, images: Tensor, labels: Tensor, optimiser: torch.optim.Optimizer) -> None:
        theta = augment.draw(self.s.net_augment, len(images), self.d.shape[1], self.streams["net augment"], "one")
        torch.rand(4, generator=self.streams["net augment"])  # CutMix is off, but draws
        torch.randperm(len(images), generator=self.streams["net augment"])
        optimiser.zero_grad()
        F.cross_entropy(self.net(augment.apply(images, theta)), labels).backward()
        optimiser.step()


def one_step(d: DataSet, s: DistillSettings) -> tuple[Tensor, Tensor]:
    """The start, and the images after one outer step of the library; pixels, float64."""
    begun = distill.begin(d, s, prior.load("none", d, 1))
    assert begun.codes["pixels"].dtype == torch.float64
    ended = loop.outer_step(d, s, begun, prior.load("none", d, 1))
    return begun.codes["pixels"].flatten(0, 1), ended.codes["pixels"].flatten(0, 1)


@pytest.mark.parametrize("name", ["dc", "dsa"])
def test_dc_and_dsa_equal_the_plain_step(digits: DataSet, name: str) -> None:
    s = method(name, **({"match_augment": "none", "net_augment": "none"} if name == "dc" else {}))
    start, made = one_step(digits, s)
    plain = Plain(digits, s, start)
    of_images = torch.optim.SGD([plain.images], lr=s.lr_image, momentum=0.5)
    of_net = torch.optim.SGD(plain.net.parameters(), lr=s.lr_net)
    labels = torch.arange(3).repeat_interleave(s.ipc)
    for step in range(s.inner_steps):
        of_images.zero_grad()
        sum(plain.cosine_of_gradients(c) for c in range(3)).backward(inputs=[plain.images])
        of_images.step()
        if step + 1 == s.inner_steps:
            break  # the network is thrown away after the last image step
        for _ in range(s.net_steps):
            order = torch.randperm(6, generator=plain.streams["net batch"])[: s.net_batch]
            plain.train(plain.images.detach()[order], labels[order], of_net)
    expected = plain.images.detach() * plain.std + plain.mean
    assert torch.allclose(made, expected, atol=1e-8, rtol=0)
    assert (made - start).abs().max() > 1e-3


def test_dm_equals_the_plain_step(digits: DataSet) -> None:
    s = method("dm", net_steps=0, inner_steps=1, lr_image=0.5)
    start, made = one_step(digits, s)
    plain = Plain(digits, s, start)
    of_images = torch.optim.SGD([plain.images], lr=s.lr_image, momentum=0.5)
    sum(plain.mean_gap(c) for c in range(3)).backward(inputs=[plain.images])
    of_images.step()
    assert torch.allclose(made, plain.images.detach() * plain.std + plain.mean, atol=1e-8, rtol=0)
    assert (made - start).abs().max() > 1e-3


class TinyPrior:
    """Images by a fixed linear map of two codes, squashed to [0, 1]: a prior whose gradients are easily written out."""

    name = "tiny"

    def __init__(self, d: DataSet) -> None:
        g = generator(0, "tiny prior")
        self.of_w = torch.randn(3, d.train_images[0].numel(), generator=g, dtype=torch.float64) / 3
        self.of_f = torch.randn(5, d.train_images[0].numel(), generator=g, dtype=torch.float64) / 3
        self.shape = d.shape

    def encode(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        n = len(labels)
        return {
            "w": torch.randn(n, 3, generator=generator).double(),
            "f": torch.randn(n, 5, generator=generator).double(),
        }

    def decode(self, codes: dict[str, Tensor], labels: Tensor) -> Tensor:
        return (codes["w"] @ self.of_w + codes["f"] @ self.of_f).sigmoid().view(-1, *self.shape)

    def rates(self) -> dict[str, float]:
        return {"w": 1e-3, "f": 1.0}


def test_glad_equals_the_plain_step(digits: DataSet) -> None:
    """Gradients go through the whole graph at once here; the library stops at the pixels and pulls them back."""
    s, source = method("glad", lr_image=2.0, net_steps=2, inner_steps=2), TinyPrior(digits)
    begun = distill.begin(digits, s, source)
    made = loop.outer_step(digits, s, begun, source)

    w, f = (begun.codes[name].flatten(0, 1).clone().requires_grad_() for name in ("w", "f"))
    plain = Plain(digits, s, source.decode({"w": w, "f": f}, torch.arange(3)).detach())
    of_codes = torch.optim.SGD([{"params": [f], "lr": 2.0}, {"params": [w], "lr": 2e-3}], momentum=0.5)
    of_net = torch.optim.SGD(plain.net.parameters(), lr=s.lr_net)
    for step in range(2):
        plain.images = (source.decode({"w": w, "f": f}, torch.arange(3)) - plain.mean) / plain.std
        of_codes.zero_grad()
        sum(plain.cosine_of_gradients(c) for c in range(3)).backward(inputs=[w, f])
        of_codes.step()
        for _ in range(s.net_steps if step == 0 else 0):
            index = torch.randint(len(digits.train_labels), (s.net_batch,), generator=plain.streams["net batch"])
            x = (digits.train_images[index] - plain.mean) / plain.std
            plain.train(x, digits.train_labels[index], of_net)
    assert torch.allclose(made.codes["f"].flatten(0, 1), f.detach(), atol=1e-8, rtol=0)
    assert torch.allclose(made.codes["w"].flatten(0, 1), w.detach(), atol=1e-8, rtol=0)
    assert (made.codes["f"] - begun.codes["f"]).abs().max() > 1e-3


# --- the robust objective in the matched gradient ---------------------------------------------------------


def robust_loop(d: DataSet, variant: str = "upper", **changes) -> Loop:
    s = method("idc", risk=variant, where="matching", scope="class", alpha=0.5, match_augment="none", **changes)
    return Loop(d, s, distill.begin(d, s, prior.load("none", d, 1)), prior.load("none", d, 1))


def plain_robust(losses: Tensor, member_of: list[int], alpha: float, tail: str) -> Tensor:
    """Mean + average + maximum of the clusters' CVaR, divided by the weights' sum."""
    tails = [
        risk.cvar(losses[[i for i, m in enumerate(member_of) if m == g]], alpha, tail) for g in sorted(set(member_of))
    ]
    return (losses.mean() + torch.stack(tails).mean() + torch.stack(tails).max()) / 3


@pytest.mark.parametrize("variant", ["lower", "upper"])
def test_matched_target_is_the_gradient_of_the_robust_objective(digits: DataSet, variant: str) -> None:
    """Against central differences of the objective along random directions of the weights."""
    moving = robust_loop(digits, variant)
    x = digits.normalise(digits.train_images[digits.train_labels == 1][:8])
    theta = augment.draw("none", 1, 8, generator(0))
    target = moving._target(of_class(digits, 1, theta), 1, moving._centre_points())

    with torch.no_grad():
        places = moving.net.embed(digits.normalise(moving.stored().images))[2:4]  # class 1's two images
        member_of = [int(((f - places) ** 2).sum(1).argmin()) for f in moving.net.embed(x)]

    def objective() -> Tensor:
        with torch.no_grad():
            losses = F.cross_entropy(moving.net(x), torch.ones(8, dtype=torch.long), reduction="none")
            return plain_robust(losses, member_of, 0.5, variant)

    stream = generator(0, "directions")
    for parameter, gradient in zip(moving.matched, target, strict=True):
        direction = torch.randn(parameter.shape, generator=stream).double()
        with torch.no_grad():
            parameter += 1e-6 * direction
            above = objective()
            parameter -= 2e-6 * direction
            below = objective()
            parameter += 1e-6 * direction
        assert torch.allclose((above - below) / 2e-6, (gradient * direction).sum(), atol=1e-7, rtol=1e-6)


def test_image_gradient_of_robust_matching_by_finite_differences(digits: DataSet) -> None:
    """The images' gradient is that of the distance to the robust target: differences of the whole distance."""
    moving = robust_loop(digits)
    places, state = moving._centre_points(), {n: g.get_state() for n, g in moving.streams.items()}

    def gap() -> tuple[Tensor, dict[str, Tensor]]:
        for name, stream in moving.streams.items():
            stream.set_state(state[name])
        return moving.matching_gradient(0, places)

    _, gradient = gap()
    direction = torch.randn(gradient["pixels"].shape, generator=generator(0, "direction")).double()
    moving.codes["pixels"][0] += 1e-6 * direction
    above, _ = gap()
    moving.codes["pixels"][0] -= 2e-6 * direction
    below, _ = gap()
    assert torch.allclose((above - below) / 2e-6, (gradient["pixels"] * direction).sum(), rtol=1e-5, atol=0)


def test_robust_target_is_the_plain_one_where_the_tail_is_all(digits: DataSet) -> None:
    """alpha = 1, average only, one cluster: mean + mean, over 2, is the mean again."""
    moving = robust_loop(digits, ipc=1)
    moving.term = dataclasses.replace(moving.term, alpha=1.0, worst=0.0)
    drawn = of_class(digits, 0, augment.draw("none", 1, 8, generator(0)))
    robust, plain = (
        moving._target(drawn, 0, moving._centre_points()),
        moving._target(drawn, 0, None),
    )
    for a, b in zip(robust, plain, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_released_term_leaves_the_target_as_it_is(digits: DataSet) -> None:
    moving = robust_loop(digits, "released")
    drawn = of_class(digits, 0, augment.draw("none", 1, 8, generator(0)))
    for a, b in zip(
        moving._target(drawn, 0, moving._centre_points()),
        moving._target(drawn, 0, None),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-12)


def test_where_decides_which_of_the_two_losses_is_robust(digits: DataSet) -> None:
    made = {w: one_step(digits, method("idc", risk="upper", where=w))[1] for w in ("network", "matching")}
    control = one_step(digits, method("idc"))[1]
    assert not torch.equal(made["network"], made["matching"])
    assert not torch.equal(made["network"], control) and not torch.equal(made["matching"], control)


# --- settings ---------------------------------------------------------------------------------------------


def test_every_looped_method_has_its_parts_and_moves_images(digits: DataSet) -> None:
    assert set(LOOPED) == set(PARTS)
    for name in LOOPED:
        start, made = one_step(digits, method(name, prior="none"))
        assert torch.isfinite(made).all() and not torch.equal(start, made), name


def test_overrides_replace_a_part_and_count_only_if_they_differ() -> None:
    assert method("dsa").parts().net_data == "synthetic" and method("dsa", net_data="real").parts().net_data == "real"
    assert method("idc", metric="idc").differs("metric") is False and method("idc", metric="dc").differs("metric")


def test_feature_means_have_no_loss_to_make_robust() -> None:
    with pytest.raises(SettingError, match="where"):
        method("dm", where="matching")


def test_normalised_coordinates_are_left_unclamped_pixels_are_clamped(digits: DataSet) -> None:
    wild = {"lr_image": 50.0, "inner_steps": 1}
    assert one_step(digits, method("idc", **wild))[1].max() <= 1
    assert one_step(digits, method("idc", coordinates="normalised", **wild))[1].max() > 1


def test_network_of_synthetic_images_never_sees_real_ones(digits: DataSet) -> None:
    """Its random draws leave the real batches alone: the matching batches of both arms are the same."""
    s = method("idc", net_data="synthetic", net_batch=4)
    moving = Loop(digits, s, distill.begin(digits, s, prior.load("none", digits, 1)), prior.load("none", digits, 1))
    whole = moving.stored().decoded()
    x, y = moving._net_batch(whole, moving._indices("net")[0])
    stored = digits.normalise(moving.stored().images)
    assert len(x) == 4 and all((stored == image).flatten(1).all(1).any() for image in x)
    assert set(y.tolist()) <= {0, 1, 2}


def test_greedy_centres_are_the_farthest_from_the_last_chosen() -> None:
    """As released: 0 first, then the farthest from the one before, which is no k-centre choice."""
    at = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])
    images = at.view(5, 1, 1, 1).expand(5, 1, 2, 2).contiguous()
    found = synthetic.choose_centres(synthetic.SyntheticSet(images, 5), 3, "greedy", generator(0))
    assert found.tolist() == [0, 4, 1]
    assert synthetic.choose_centres(synthetic.SyntheticSet(images, 5), 5, "greedy", generator(0)).tolist() == [
        0,
        1,
        2,
        3,
        4,
    ]


def test_history_is_thinned_to_means() -> None:
    history = [{"distance": float(i)} for i in range(250)]
    thin = distill.thinned(history)
    assert len(thin) <= 100 and thin[0]["distance"] == 1.0 and distill.thinned(history[:100]) == history[:100]


def test_matched_weights_of_both_metrics() -> None:
    net = networks.build("convnet", (3, 8, 8), 10, depth=2, width=4, generator=generator(0))
    assert [p.ndim for p in matching.matched_parameters(net, "idc")] == [4, 4]
    assert [p.ndim for p in matching.matched_parameters(net, "dc")] == [4, 4, 2]
    assert isinstance(net, nn.Module)


def test_fit_is_checked_only_where_it_matters(digits: DataSet) -> None:
    check_fit(digits, method("random", batch_real=10**6))
    check_fit(digits, method("dsa", net_batch=10**6))  # the synthetic set is smaller than any batch
    with pytest.raises(SettingError, match="net_batch"):
        check_fit(digits, method("idc", net_batch=10**6))


def test_states_hold_every_code(digits: DataSet) -> None:
    begun = distill.begin(digits, method("glad"), TinyPrior(digits))
    assert isinstance(begun, State) and set(begun.codes) == set(begun.velocity) == {"w", "f"}


@pytest.mark.parametrize("name", ["idc", "dsa"])
def test_fast_and_plain_forms_give_the_same_images(digits: DataSet, name: str) -> None:
    """The hand-written derivatives of `fused` against autograd's, through a whole outer step."""
    fast = one_step(digits, method(name, ipc=3))[1]
    with fused.use(False):
        plain = one_step(digits, method(name, ipc=3))[1]
    assert torch.allclose(fast, plain, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", ["dsa", "glad", "idc"])
def test_feature_means_can_be_matched_under_any_method(digits: DataSet, name: str) -> None:
    """Cosines of rows are for gradients: means are compared by squares, whatever the method's own distance."""
    s = method(name, objective="mean", prior="none", metric="dc")
    start, made = one_step(digits, s)
    assert s.parts().metric == "idc" and not torch.equal(start, made) and torch.isfinite(made).all()
