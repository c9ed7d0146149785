"""Recipes of training: rates in closed form and against torch's schedulers, plain loops, averages, onlookers."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch.optim import lr_scheduler

from rddlib.base import SettingError, generator
from rddlib.data import augment, dataset
from rddlib.data.dataset import DataSet
from rddlib.models import networks, training
from rddlib.models.training import Training

STEPS = 24


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return dataset.load("digits", train_limit=40, test_limit=50)


def net(name: str = "convnet", width: int = 8) -> torch.nn.Module:
    return networks.build(name, (1, 8, 8), 10, depth=2, width=width, generator=generator(1, "net"))


def how(recipe: str, **changes: object) -> Training:
    return dataclasses.replace(Training(recipe=recipe, steps=STEPS, batch=16, lr=0.02), **changes)  # type: ignore[arg-type]


# --- schedules --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 6, 24, 100])
def test_idc_rate_falls_by_five_after_two_thirds_and_five_sixths(steps: int) -> None:
    for step in range(steps):
        falls = (step >= 2 * steps // 3) + (step >= 5 * steps // 6)
        assert training.rate("idc", 0.01, step, steps) == pytest.approx(0.01 / 5**falls, rel=1e-12)


@pytest.mark.parametrize("steps", [2, 7, 100])
def test_dc_rate_falls_by_ten_after_half(steps: int) -> None:
    found = [training.rate("dc", 0.01, step, steps) for step in range(steps)]
    assert found == pytest.approx([0.01] * (steps // 2) + [0.001] * (steps - steps // 2))


def test_glad_rate_is_that_of_torchs_two_schedulers() -> None:
    """As published: LinearLR from 1e-7 for half of the epochs, then CosineAnnealingLR for the other half."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], lr=0.001)
    ramp = lr_scheduler.LinearLR(optimiser, start_factor=1e-7, total_iters=50)
    fall = lr_scheduler.CosineAnnealingLR(torch.optim.SGD([parameter], lr=0.001), T_max=50)
    for step in range(100):
        torch_rate = (ramp if step < 50 else fall).get_last_lr()[0]
        assert training.rate("glad", 0.001, step, 100) == pytest.approx(torch_rate, abs=2e-10)
        (ramp if step < 50 else fall).optimizer.step()
        (ramp if step < 50 else fall).step()


@pytest.mark.parametrize("recipe", training.RECIPES)
def test_training_uses_the_rate_of_each_step(digits: DataSet, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, plain = [], torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD, "step", lambda self, *a: seen.append(self.param_groups[0]["lr"]) or plain(self, *a)
    )
    training.train(net(), digits.train_images, digits.train_labels, digits, how(recipe), 0)
    assert seen == [training.rate(recipe, 0.02, step, STEPS) for step in range(STEPS)]


# --- training ---------------------------------------------------------------------------------------------


def plain_loop(digits: DataSet, numbers: Training) -> torch.nn.Module:
    """The training of IDC, DC and GLaD in the plainest words: what `training.train` must give."""
    x, y, recipe, tested = digits.train_images, digits.train_labels, numbers.recipe, []
    order, stream = generator(5, "evaluate", "order"), generator(5, "evaluate", "augment")
    model, momentum, pending = net(), {}, []
    for step in range(STEPS):
        pending = pending or list(torch.randperm(len(x), generator=order).split(16))
        index = pending.pop(0)
        images = digits.normalise(x[index])
        drawn = augment.draw(numbers.augment, len(index), 8, stream, rule="idc" if recipe == "idc" else "one")
        images, partner, share = augment.cutmix(augment.apply(images, drawn), stream, numbers.cutmix)
        logits, labels = model(images), y[index]
        loss = share * F.cross_entropy(logits, labels) + (1 - share) * F.cross_entropy(logits, labels[partner])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        if recipe == "dc" and step == STEPS // 2:
            momentum = {}
        for i, (p, g) in enumerate(zip(model.parameters(), gradients, strict=True)):
            g = g + 5e-4 * p.detach()
            momentum[i] = 0.9 * momentum[i] + g if i in momentum else g
            p.data -= training.rate(recipe, 0.02, step, STEPS) * momentum[i]
        if not pending or step == STEPS - 1:
            tested.append(copy.deepcopy(model))
    if recipe == "glad":  # fewer than 200 passes: the plain mean of the weights after each
        for average, *each in zip(model.parameters(), *(m.parameters() for m in tested), strict=True):
            average.data = torch.stack(each).mean(0)
    return model


@pytest.mark.parametrize("recipe", training.RECIPES)
def test_training_equals_a_plain_loop(digits: DataSet, recipe: str) -> None:
    numbers = how(recipe) if recipe == "idc" else how(recipe, augment=training.DSA, cutmix=0.0)
    found = training.train(net(), digits.train_images, digits.train_labels, digits, numbers, 5)
    assert not found.training
    for a, b in zip(found.parameters(), plain_loop(digits, numbers).parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-5)


def test_average_is_its_recursion() -> None:
    """The mean of all weights for 200 updates, then 0.995 of the old and 0.005 of the new."""
    model = torch.nn.LayerNorm(3).double()
    average, values = training.Average(model, 0.995), torch.randn(300, 3, generator=generator(0), dtype=torch.float64)
    expected = torch.zeros(3, dtype=torch.float64)
    for n, value in enumerate(values, 1):
        model.weight.data = value.clone()
        average.update(model)
        keep = min((n - 1) / n, 0.995)
        expected = keep * expected + (1 - keep) * value
        assert torch.allclose(average.net.weight, expected, atol=1e-12)
        if n in (1, 7, 200):
            assert torch.allclose(average.net.weight, values[:n].mean(0), atol=1e-12)


@pytest.mark.parametrize(
    ("name", "recipe"), [("convnet", "idc"), ("convnet", "glad"), ("resnet10", "dc"), ("vit", "dc")]
)
def test_an_onlooker_changes_nothing(digits: DataSet, name: str, recipe: str) -> None:
    """Bit for bit, with dropout too; what it is shown is what would be tested at that step."""
    x, y, seen = digits.train_images, digits.train_labels, {}

    def look(step: int, shown: torch.nn.Module) -> None:
        assert not shown.training
        training.predict(shown, digits.test_images, digits)
        seen[step] = copy.deepcopy(shown.state_dict())

    alone = training.train(net(name), x, y, digits, how(recipe), 2)
    watched = training.train(net(name), x, y, digits, how(recipe), 2, at=(1, 7, STEPS), callback=look)
    assert sorted(seen) == [1, 7, STEPS]
    for key, value in alone.state_dict().items():
        assert torch.equal(value, watched.state_dict()[key]) and torch.equal(value, seen[STEPS][key])


def test_predictions_do_not_depend_on_the_batch(digits: DataSet) -> None:
    model, images = net().eval(), torch.cat([digits.train_images, digits.test_images])  # 90: more than one batch
    one = [int(model(digits.normalise(x[None])).argmax()) for x in images]
    assert training.predict(model, images, digits).tolist() == one


def test_batches_are_reshuffled_passes() -> None:
    found = training.batches(10, 4, 7, generator(0))
    assert [len(b) for b in found] == [4, 4, 2, 4, 4, 2, 4]
    assert sorted(torch.cat(found[:3]).tolist()) == sorted(torch.cat(found[3:6]).tolist()) == list(range(10))
    assert torch.cat(found[:3]).tolist() != torch.cat(found[3:6]).tolist()


# --- numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ipc", [1, 10, 50])
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_published_steps_are_a_thousand_passes(ipc: int, factor: int) -> None:
    """IDC trains for 1000 epochs whatever it decodes to."""
    stored, decoded = 10 * ipc, 10 * ipc * factor**2
    at_one = 1000 * math.ceil(stored / 64)
    assert training.updates(at_one, decoded, 64, factor, scaled=True) == 1000 * math.ceil(decoded / 64)
    assert training.updates(at_one, decoded, 64, factor) == at_one


def test_numbers_of_a_recipe_are_settings_of_an_experiment() -> None:
    assert training.numbers("dc") == {
        "eval_lr": 0.01,
        "eval_batch": 256,
        "eval_augment": training.DSA,
        "eval_cutmix": 0.0,
    }
    assert training.numbers("glad")["eval_lr"] == 0.001
    assert training.numbers("glad", "vgg11")["eval_lr"] == pytest.approx(1e-4)
    assert training.numbers("idc", mirrored=False)["eval_augment"] == "color_crop_scale_rotate"
    assert training.RECIPE_NUMBERS["glad"]["eval_lr"] == 0.001, "the table itself was changed"
    with pytest.raises(SettingError, match="recipe = 'dm'"):
        training.numbers("dm")


# --- several networks at once -----------------------------------------------------------------------------


def doubled(size: int | None = None) -> DataSet:
    d = dataset.load("digits", size=size, train_limit=60, test_limit=50)
    return dataclasses.replace(d, train_images=d.train_images.double() / 255)


def built(name: str, d: DataSet, seed: int) -> torch.nn.Module:
    return networks.build(name, d.shape, 10, depth=2, width=4, generator=generator(seed, "net")).double()


@pytest.mark.parametrize("labels", ["hard", "soft"])
@pytest.mark.parametrize(
    ("name", "recipe"),
    [("convnet", "idc"), ("convnet", "dc"), ("convnet", "glad"), ("resnet10", "idc"), ("resnetap10", "glad"),
     ("vgg11", "dc")],
)  # fmt: skip
def test_networks_trained_together_are_those_trained_alone(name: str, recipe: str, labels: str) -> None:
    """In double precision: same streams, same updates, passes that end in a smaller batch."""
    d = doubled(None if name == "convnet" else 16)
    numbers = dataclasses.replace(how(recipe, augment=training.DSA, cutmix=0.7), steps=7)
    y = d.train_labels if labels == "hard" else F.one_hot(d.train_labels, 10).double() * 0.9 + 0.01
    fresh = [built(name, d, seed) for seed in range(3)]
    together = training.train_together(copy.deepcopy(fresh), d.train_images, y, d, numbers, range(3))
    for seed, (start, net) in enumerate(zip(fresh, together, strict=True)):
        alone = training.train(copy.deepcopy(start), d.train_images, y, d, numbers, seed)
        assert not net.training
        ours, theirs, before = (torch.cat([p.detach().flatten() for p in n.parameters()]) for n in (net, alone, start))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
        assert (theirs - before).abs().max() > 1e-3


def test_a_network_that_cannot_be_stacked_is_refused() -> None:
    d = doubled()
    with pytest.raises(SettingError, match="ViT"):
        training.train_together([built("vit", d, 0)] * 2, d.train_images, d.train_labels, d, how("idc"), [0, 1])
