"""What a graphics processor would be asked for, counted with a pretended one: operations, copies, waits of the host.

The limits are the counts of today and may only fall; those of benchmarks/results/operations.json stand on the page on
performance. They do not depend on widths or sizes of batches, so that small ones stand for those of the scales.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pretend_gpu import DEVICE, Counts, is_view, on_cpu, pretended
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from rddlib.base import SettingError, generator, to_device_together, to_host
from rddlib.data import augment
from rddlib.data import dataset as data
from rddlib.data.dataset import DataSet
from rddlib.distillation import batched, distill, graph, loop
from rddlib.distillation.batched import ClassLoop
from rddlib.distillation.glad import prior
from rddlib.distillation.graph import GraphLoop
from rddlib.distillation.loop import Loop, State
from rddlib.distillation.settings import DistillSettings
from rddlib.models import fused, networks
from rddlib.models import training as recipes

# Depth, tiles, images a class and updates are those of the scales; so are networks with momentum and CutMix.
LAPTOP: dict[str, Any] = {
    "depth": 3, "width": 4, "ipc": 10, "factor": 2, "batch_real": 8, "net_steps": 1, "net_batch": 16, "inner_steps": 3,
    "outer_steps": 1, "batch_synthetic": 128,
}  # fmt: skip
PAPER = LAPTOP | {"net_steps": 8, "risk": "upper", "centres_in_all": 10}
SIAMESE = "color_crop_cutout_flip_scale_rotate"
DSA = LAPTOP | {
    "method": "dsa", "factor": 1, "match_augment": SIAMESE, "net_augment": SIAMESE, "cutmix": 0.0, "net_steps": 2,
}  # fmt: skip
ONCE = {"classes_at_once": True}
FILE = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "operations.json"
OPERATIONS = json.loads(FILE.read_text(encoding="utf-8"))["operations"]
MATCHED = LAPTOP | {"risk": "upper", "where": "matching"}
GLAD = DSA | {"method": "glad", "depth": 2, "ipc": 1}


@pytest.fixture(scope="module")
def images() -> DataSet:
    """Ten classes of 16 px in three channels."""
    d = data.load("digits", size=16, train_limit=600, test_limit=100)
    parts = {n: getattr(d, n).expand(-1, 3, -1, -1).contiguous() for n in ("train_images", "test_images")}
    return dataclasses.replace(d, **parts, mean=d.mean * 3, std=d.std * 3)


def moved(d: DataSet, s: DistillSettings) -> tuple[DataSet, State, prior.Prior]:
    """The data and the state before the first step on the pretended device; to be called where there is one."""
    begun = distill.begin(d, s, prior.load(s.parts().prior, d, 1))
    codes, velocity = ({name: t.to(DEVICE) for name, t in part.items()} for part in (begun.codes, begun.velocity))
    there = d.to(DEVICE)
    return there, State(codes, velocity), prior.load(s.parts().prior, there, 1)


def inner_step(d: DataSet, **chosen: Any) -> tuple[int, int, list[str]]:
    """Operations of the image steps and of the network's updates in an inner step after the first one; waits."""
    s = DistillSettings(**chosen)
    with pretended() as counts:
        there, state, source = moved(d, s)
        each = batched.loop_class(s, there)(there, s, state, source)
        each.image_steps()
        each.network_steps()
        counts.waits.clear()
        begun = counts.launches
        each.image_steps()
        middle = counts.launches
        each.network_steps()
        return middle - begun, counts.launches - middle, counts.waits


@pytest.mark.parametrize(
    ("chosen", "most"),
    [
        (LAPTOP | ONCE, OPERATIONS["laptop"]["now"]),
        (PAPER | ONCE, OPERATIONS["paper"]["now"]),
        (MATCHED | ONCE, OPERATIONS["matched"]["now"]),
        (GLAD | ONCE, OPERATIONS["glad"]["now"]),
        (DSA | ONCE, 715),
        (LAPTOP, 4312),
    ],
    ids=["laptop", "paper, upper", "term in the matched gradient", "glad", "dsa", "laptop, in turn"],
)
def test_an_inner_step_launches_few_operations_and_waits_for_none(
    images: DataSet, chosen: dict[str, Any], most: int
) -> None:
    d = data.load("digits") if chosen.get("method") == "glad" else images
    of_images, of_network, waits = inner_step(d, **chosen)
    assert of_images + of_network <= most
    assert waits == []


@pytest.mark.parametrize("chosen", [LAPTOP, PAPER, DSA], ids=["laptop", "paper, upper", "dsa"])
def test_an_outer_step_waits_twice(images: DataSet, chosen: dict[str, Any]) -> None:
    """For the labels at its begin and for what it reports at its end."""
    s = DistillSettings(**chosen, classes_at_once=True)
    with pretended() as counts:
        there, state, source = moved(images, s)
        images_seen = there.normalise(there.train_images[:1])  # the channels' numbers are sent once a process
        assert images_seen.device == DEVICE
        counts.waits.clear()
        after = loop.outer_step(there, s, state, source, batched.loop_class(s, there))
        assert len(counts.waits) <= 2, counts.waits
    assert after.history[0]["distance"] > 0


@pytest.mark.parametrize(
    "chosen", [LAPTOP, PAPER, DSA | {"match_augment": "crop_scale", "cutmix": 0.5}], ids=["laptop", "paper", "dsa"]
)
def test_every_inner_step_is_the_same_sequence(images: DataSet, chosen: dict[str, Any]) -> None:
    """Names and shapes of all operations, whatever was drawn: a CUDA graph could hold an inner step."""
    s = DistillSettings(**chosen | {"inner_steps": 6}, classes_at_once=True)
    with pretended() as counts:
        there, state, source = moved(images, s)
        each = batched.loop_class(s, there)(there, s, state, source)
        sequences = []
        for _ in range(s.inner_steps):
            begun = counts.launches
            each.image_steps()
            each.network_steps()
            sequences.append(counts.sequence[begun:])
    for later in sequences[2:]:  # the first sends the draws of all and makes the optimiser's momentum
        assert later == sequences[1]


def on_the_cpu(images: DataSet, s: DistillSettings) -> tuple[DataSet, prior.Prior, State]:
    """The images in double precision, their prior, and the state after a plain outer step on them."""
    doubled = dataclasses.replace(images, train_images=images.train_images.double() / 255)
    source = prior.load("none", doubled, 1)
    return doubled, source, loop.outer_step(doubled, s, distill.begin(doubled, s, source), source, Loop)


def check_same_end(found: State, expected: State) -> None:
    for part in ("codes", "velocity"):
        ours, theirs = (getattr(each, part)["pixels"].cpu() for each in (found, expected))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9 * float(theirs.abs().max()))
    assert found.history[0] == pytest.approx(expected.history[0], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("chosen", [LAPTOP, PAPER, DSA], ids=["laptop", "paper, upper", "dsa"])
@pytest.mark.parametrize("at_once", [False, True])
def test_the_device_goes_the_way_of_the_cpu(images: DataSet, chosen: dict[str, Any], at_once: bool) -> None:
    """In double precision: images, momentum and what is reported; streams are where they are on the CPU."""
    s = DistillSettings(**chosen, classes_at_once=at_once)
    doubled, source, expected = on_the_cpu(images, s)
    with pretended():
        there, state, _ = moved(doubled, s)
        check_same_end(loop.outer_step(there, s, state, source, batched.loop_class(s, there)), expected)


# --- as a CUDA graph ----------------------------------------------------------------------------------------


def recorded(work: Callable[[], Any]) -> tuple[Callable[[], None], list[torch.Tensor]]:
    """As `GraphLoop.capture`, without CUDA: every operation again, on the same tensors, into where its result lay.

    As a graph it sees nothing of what Python does meanwhile. A recording has been carried out once; so the first replay
    does nothing.
    """
    calls: list[tuple[Any, ...]] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = operation(*args, **(kwargs or {}))
            calls.append((operation, *on_cpu((args, kwargs or {}, result))))
            return result

    with Recorder():  # type: ignore[no-untyped-call]
        results = list(work())
    played = [False]

    def replay() -> None:
        for operation, args, kwargs, result in calls if played[0] else ():
            if not is_view(operation):
                for old, new in zip(*(tree_flatten(r)[0] for r in (result, operation(*args, **kwargs))), strict=True):
                    if isinstance(old, torch.Tensor) and old is not new:
                        old.copy_(new)
        played[0] = True

    return replay, results


@pytest.mark.parametrize(
    "chosen",
    [LAPTOP, PAPER | {"worst_step": 0.1, "risk_images": 24}, DSA, MATCHED],
    ids=["laptop", "paper, upper", "dsa", "term in the matched gradient"],
)
def test_inner_steps_can_be_played(images: DataSet, chosen: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A played outer step ends where the plain one on the CPU does, in double precision; nothing in it waits."""
    s = DistillSettings(**chosen | {"inner_steps": 5})
    doubled, source, expected = on_the_cpu(images, s)
    asked: list[tuple[int, int]] = []

    def capture(work: Callable[[], Any]) -> tuple[Callable[[], None], list[torch.Tensor]]:
        before = len(counts.waits), len(counts.copies)
        made = recorded(work)
        asked.append((len(counts.waits) - before[0], len(counts.copies) - before[1]))
        return made

    monkeypatch.setattr(GraphLoop, "capture", staticmethod(capture))
    with pretended() as counts:
        there, state, _ = moved(doubled, s)
        there.normalise(there.train_images[:1])
        counts.copies.clear()
        found = loop.outer_step(there, s, state, source, GraphLoop)
        assert asked == [(0, 0)]
        assert sum("batched.py" in place or "base.py" in place for place in counts.copies) <= 6
        check_same_end(found, expected)


def test_a_graph_is_refused_in_a_sentence_where_there_is_no_cuda(
    images: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = DistillSettings(**LAPTOP)
    for off in (None, "0", ""):
        monkeypatch.setenv(graph.SWITCH, off) if off is not None else monkeypatch.delenv(graph.SWITCH, raising=False)
        assert graph.loop_class(s, images) is Loop
    monkeypatch.setenv(graph.SWITCH, "1")
    with pytest.raises(SettingError, match=r"^RDD_CUDA_GRAPH = '1': allowed is 0 on cpu: only CUDA has graphs$"):
        distill.distill(images, s)


def test_the_draws_of_an_outer_step_are_one_copy_and_those_of_the_cpu(images: DataSet) -> None:
    s = DistillSettings(**PAPER | {"risk_images": 24}, classes_at_once=True)
    with pretended() as counts:
        there, state, source = moved(images, s)
        each = ClassLoop(there, s, state, source)
        counts.copies.clear()
        counts.waits.clear()
        rows = [each.next_draws() for _ in range(s.inner_steps)]
        assert (len(counts.copies), counts.waits) == (1, [])
        drawn = [{k: [t if t is None else t.cpu() for t in part] for k, part in row.items()} for row in rows]
    plain = Loop(images, s, distill.begin(images, s, source), source)
    for step in drawn:
        for c, own in enumerate(plain.host_draws(range(10))):
            assert torch.equal(step["images"][0][c::10], own.real)
        for kind in ("net", "risk"):
            indices = plain._indices(kind)
            assert torch.equal(step[kind][0], torch.stack(indices))
            for index, box, share in zip(indices, step[kind][2], step[kind][3], strict=True):
                stream = plain.streams[f"{kind} augment"]
                augment.draw(s.net_augment, len(index), 16, stream)
                one = augment.draw_box(len(index), (16, 16), stream, s.cutmix)
                assert torch.equal(box, one.mask()) and share == pytest.approx(one.share)


def trained(d: DataSet, steps: int, counts: Counts | None) -> tuple[nn.Module, list[str]]:
    """A network trained for so many updates, on the pretended device where there are counts; its waits."""
    net = networks.build("convnet", d.shape, d.n_classes, depth=2, width=4, generator=generator(0, "net"))
    how = recipes.Training(steps=steps, batch=16)
    x, y = d.train_images[:40], d.train_labels[:40]
    if counts is not None:
        d, net, x, y = d.to(DEVICE), net.to(DEVICE), x.to(DEVICE), y.to(DEVICE)
        counts.waits.clear()
    recipes.train(net, x, y, d, how, 0)
    return net, [] if counts is None else list(counts.waits)


def test_training_for_evaluation_waits_for_nothing(images: DataSet) -> None:
    expected, _ = trained(images, 12, None)
    with pretended() as counts:
        trained(images, 1, counts)
        found, waits = trained(images, 12, counts)
        assert waits == []
        for ours, theirs in zip(found.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(ours.detach().cpu(), theirs.detach(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("recipe", recipes.RECIPES)
def test_five_networks_are_trained_in_the_operations_of_one(images: DataSet, recipe: str) -> None:
    """At most 1.3 times as many; the host waits for none of them."""
    how = recipes.Training(**{k.removeprefix("eval_"): v for k, v in recipes.numbers(recipe).items()}, steps=24)
    with pretended() as counts:
        d = images.to(DEVICE)
        x, y = d.train_images[:64], d.train_labels[:64]
        made = []
        for number in (1, 5):
            nets = [
                networks.build("convnet", d.shape, d.n_classes, width=4, generator=generator(seed, "net")).to(DEVICE)
                for seed in range(number)
            ]
            d.normalise(x)
            counts.waits.clear()
            begun = counts.launches
            if number == 1:
                recipes.train(nets[0], x, y, d, how, 0)
            else:
                recipes.train_together(nets, x, y, d, how, range(number))
            assert counts.waits == []
            made.append((counts.launches - begun) / how.steps)
    assert made[1] <= 1.3 * made[0]
    assert recipe != "idc" or made[1] <= OPERATIONS["evaluation"]["now"]


# --- the parts --------------------------------------------------------------------------------------------


def test_tensors_are_sent_and_received_together() -> None:
    tensors = [
        torch.rand(3, 2, dtype=torch.float64), None, torch.arange(5), torch.tensor([True, False, True]), torch.rand(7),
    ]  # fmt: skip
    with pretended() as counts:
        there = to_device_together(tensors, DEVICE)
        assert (len(counts.copies), counts.waits) == (1, [])
        for ours, theirs in zip(there, tensors, strict=True):
            if theirs is None:
                assert ours is None
            else:
                assert ours is not None and ours.device == DEVICE and ours.dtype == theirs.dtype
                assert torch.equal(ours.cpu(), theirs)
        counts.waits.clear()
        whole = [t for t in there if t is not None]
        back = to_host(whole)
        assert len(counts.waits) == 1
    for ours, theirs in zip(back, (t for t in tensors if t is not None), strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def test_the_pretended_device_mixes_no_tensors_and_sees_waits() -> None:
    with pretended() as counts:
        x = torch.rand(4).to(DEVICE)
        with pytest.raises(RuntimeError, match="both devices"):
            x + torch.rand(4)
        assert len(counts.waits) == 1  # the blocking copy
        for wait in (lambda: float(x[0]), lambda: x[x > 0.5], lambda: x.tolist(), lambda: x[torch.tensor([0])]):
            before = len(counts.waits)
            wait()
            assert len(counts.waits) > before
        launches = counts.launches
        assert x.view(2, 2).T.shape == (2, 2)
        assert counts.launches == launches
        assert (x * 2).shape == (4,)
        assert counts.launches == launches + 1


@pytest.mark.parametrize("rule", augment.RULES)
def test_joined_draws_do_what_each_does(rule: str) -> None:
    """Shared draws of four batches as one draw a batch, images in turn; those of two updates one after another."""
    stream, x = generator(0, "joined"), torch.rand(12, 3, 8, 8, dtype=torch.float64, generator=generator(1))
    draws = [augment.draw(SIAMESE, 1, 8, stream, rule) for _ in range(4)]
    assert len({tuple(v is None for v in vars(each).values()) for each in draws}) > 1  # not all the same operations
    found = augment.apply(x, augment.joined(draws, SIAMESE, 1, 8, 3))
    for i, each in enumerate(draws):
        torch.testing.assert_close(found[i::4], augment.apply(x[i::4], each), rtol=0, atol=1e-12)
    draws = [augment.draw(SIAMESE, 6, 8, stream, rule) for _ in range(2)]
    found = augment.apply(x, augment.joined(draws, SIAMESE, 6, 8))
    for part, images, each in zip(found.split(6), x.split(6), draws, strict=True):
        torch.testing.assert_close(part, augment.apply(images, each), rtol=0, atol=1e-12)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize(("channels", "size"), [(3, 8), (6, 9), (1, 8)])
def test_image_gradients_of_batches_in_turn(channels: int, size: int, linear: bool) -> None:
    """One call for three batches equals a call for each."""
    net: Any = networks.build("convnet", (channels, size, size), 4, depth=2, width=6, generator=generator(0, "net"))
    net, n, each = net.double(), 3, 5
    x = torch.randn(each * n, channels, size, size, dtype=torch.float64, generator=generator(0, "images"))
    labels = torch.arange(n)

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits, labels.repeat(each), reduction="sum") / each

    def squares(found: list[torch.Tensor]) -> torch.Tensor:
        own = [(g.unflatten(0, (n, -1)) - 0.1).square().flatten(1).sum(1) for g in found]
        return torch.stack(own).sum(0)

    distances, gradient = fused.image_gradient(net, x, loss, squares, linear, n)
    weights = fused.weight_gradients(net, x, loss, linear, n)
    for i in range(n):

        def own_loss(logits: torch.Tensor, label: int = i) -> torch.Tensor:
            return nn.functional.cross_entropy(logits, torch.full((each,), label))

        def own_squares(found: list[torch.Tensor]) -> torch.Tensor:
            return torch.stack([(g - 0.1).square().sum() for g in found]).sum()

        one = fused.image_gradient(net, x[i::n], own_loss, own_squares, linear)
        torch.testing.assert_close(distances[i], one[0])
        torch.testing.assert_close(gradient[i::n], one[1])
        own = fused.weight_gradients(net, x[i::n], own_loss, linear)
        for all_groups, alone in zip(weights, own, strict=True):
            torch.testing.assert_close(all_groups.unflatten(0, (n, -1))[i], alone)
