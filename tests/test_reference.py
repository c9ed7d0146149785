"""The fast loop equals the method on one page (`reference`), in float64: each method family, each place of the term."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from rddlib import risk
from rddlib.base import DivergenceError, SettingError, generator
from rddlib.data import dataset
from rddlib.data.dataset import DataSet
from rddlib.distillation import distill, reference, synthetic
from rddlib.distillation.clusters import with_found_groups
from rddlib.distillation.glad import prior
from rddlib.distillation.loop import Loop
from rddlib.distillation.settings import DistillSettings
from rddlib.distillation.synthetic import SyntheticSet
from rddlib.risk import RiskTerm

TINY = DistillSettings(
    depth=2,
    width=4,
    ipc=2,
    factor=1,
    outer_steps=2,
    inner_steps=2,
    batch_real=8,
    net_steps=2,
    net_batch=32,
    lr_image=0.05,
)
SIAMESE = {
    "match_augment": "color_crop_cutout_flip_scale_rotate",
    "net_augment": "color_crop_cutout_flip_scale_rotate",
    "cutmix": 0.0,
}
UPPER: dict[str, Any] = {"risk": "upper"}
MATCHED: dict[str, Any] = {"risk": "upper", "where": "matching"}
CASES: dict[str, dict[str, Any]] = {
    "idc": {},
    "idc, four tiles, upper": UPPER | {"factor": 2},
    "idc, lower": {"risk": "lower", "alpha": 0.3},
    "five groups in all": UPPER | {"centres_in_all": 5},
    "twelve groups in all, own class": UPPER | {"centres_in_all": 12, "scope": "class"},
    "own class": UPPER | {"scope": "class"},
    "pixel space": UPPER | {"space": "pixel"},
    "as printed": {"risk": "literal", "alpha": 0.5},
    "in the matched gradient": MATCHED,
    "in the matched gradient, own class, lower": MATCHED | {"risk": "lower", "scope": "class"},
    "divided loss": UPPER | {"divide_loss": True, "average": 0.5, "worst": 2.0},
    "normalised image step": {"image_rule": "normalised", "lr_image": 0.005},
    "absolute differences": {"metric": "l1", "lr_image": 1e-3},
    "mean absolute differences": {"metric": "l1_mean", "lr_image": 1.0},
    "some of the tiles": {"factor": 2, "batch_synthetic": 5},
    "some of the images as centres": UPPER | {"ipc": 3, "max_centres": 2},
    "no momentum": {"momentum_image": 0.0},
    "cosine": {"metric": "dc"},
    "network of synthetic images, normalised": {"net_data": "synthetic", "coordinates": "normalised"},
    "released, in the matched gradient": {"risk": "released", "where": "matching", "factor": 2},
    "dsa": SIAMESE | {"method": "dsa", "inner_steps": 3},
    "dsa, upper": SIAMESE | UPPER | {"method": "dsa", "inner_steps": 3},
    "dsa, in the matched gradient": SIAMESE | MATCHED | {"method": "dsa"},
    "dc": {"method": "dc", "match_augment": "none", "net_augment": "none", "cutmix": 0.0},
    "dm": SIAMESE | {"method": "dm", "net_steps": 0, "inner_steps": 1, "lr_image": 0.5},
    "dm, trained, lower": SIAMESE | {"method": "dm", "risk": "lower", "lr_image": 0.5},
}


@pytest.fixture(scope="module")
def digits() -> DataSet:
    """Digits as float64 in [0, 1]."""
    d = dataset.load("digits", train_limit=200, test_limit=100)
    return dataclasses.replace(d, train_images=d.train_images.double() / 255)


def settings(**changes: Any) -> DistillSettings:
    return dataclasses.replace(TINY, **changes)


def loop_of(d: DataSet, s: DistillSettings) -> Loop:
    source = prior.load("none", d, 1)
    return Loop(d, s, distill.begin(d, s, source), source)


@pytest.mark.parametrize("case", CASES)
def test_the_fast_loop_equals_the_method_on_one_page(digits: DataSet, case: str) -> None:
    """One class after another, and all classes at once."""
    s = settings(**CASES[case])
    start = synthetic.start(digits, s.ipc, s.factor, generator(s.seed, "start")).images
    S = start.unflatten(0, (digits.n_classes, s.ipc))
    velocity = torch.zeros_like(S)
    for outer in range(s.outer_steps):
        S, velocity = reference.outer_step(digits, s, S, velocity, outer)
    in_turn, history = distill.distill(digits, s)
    at_once, again = distill.distill(digits, dataclasses.replace(s, classes_at_once=True))
    assert torch.allclose(in_turn.images, S.flatten(0, 1), atol=1e-8, rtol=0)
    assert torch.allclose(at_once.images, in_turn.images, atol=1e-10, rtol=0)
    assert (in_turn.images - start).abs().max() > 1e-3  # and it is not that nothing moved
    for one, other in zip(history, again, strict=True):
        assert one == pytest.approx(other, rel=1e-6)  # added up in single precision


def test_the_method_on_one_page_refuses_what_it_does_not_have(digits: DataSet) -> None:
    S = synthetic.start(digits, 1, 1, generator(0, "start")).images.unflatten(0, (digits.n_classes, 1))
    for name, value in (("net_start_steps", 3), ("risk_images", 64), ("groups_from", "found"), ("worst_step", 0.1)):
        with pytest.raises(SettingError, match=name):
            reference.outer_step(digits, settings(**UPPER | {name: value}), S, torch.zeros_like(S))


# --- the settings of the fair test ------------------------------------------------------------------------


def test_centres_in_all_are_random_stored_images_of_all_classes() -> None:
    stored = SyntheticSet(torch.zeros(100, 1, 1, 1), 10)
    drawn = [synthetic.choose_centres(stored, 10, "random", generator(seed), in_all=10) for seed in range(40)]
    assert all(len(set(c.tolist())) == 10 and c.max() < 100 for c in drawn)
    classes_met = {len({i // 10 for i in c.tolist()}) for c in drawn}
    assert max(classes_met) < 10  # drawn from all together: some class has none
    by_class = synthetic.choose_centres(stored, 10, "random", generator(0), in_all=25, scope="class")
    counts = (by_class // 10).bincount(minlength=10)
    assert len(by_class) == 25 and counts.min() == 2 and counts.max() == 3


@pytest.mark.parametrize("count", [0, 21])
def test_centres_in_all_beyond_the_stored_images_are_refused(digits: DataSet, count: int) -> None:
    with pytest.raises(SettingError, match="centres_in_all"):
        distill.distill(digits, settings(risk="upper", centres_in_all=count))


def test_group_weights_follow_group_dro() -> None:
    """Algorithm 1 of group DRO, group by group; the weights come to the worst group as the step grows."""
    losses = torch.rand(40, generator=generator(0), dtype=torch.float64)
    groups = torch.randint(5, (40,), generator=generator(1))  # of six groups, the last is empty
    term = RiskTerm.preset("upper", alpha=0.5)
    weights = torch.tensor([0.1, 0.2, 0.3, 0.2, 0.1, 0.1], dtype=torch.float64)
    expected = weights.clone()
    for g in range(5):
        expected[g] *= torch.exp(0.7 * risk.cvar(losses[groups == g], 0.5))
    moved = risk.group_weights(weights, losses, groups, 6, term, 0.7)
    torch.testing.assert_close(moved, expected / expected.sum())
    soft = risk.group_risk(losses, groups, 6, RiskTerm.preset("upper", average=0.0), weights)
    values = torch.stack([risk.cvar(losses[groups == g], 0.8) for g in range(5)])
    torch.testing.assert_close(soft, (weights[:5] * values).sum() / weights[:5].sum())
    sharp = risk.group_weights(weights, losses, groups, 6, RiskTerm.preset("upper"), 1e4)
    hard = risk.group_risk(losses, groups, 6, RiskTerm.preset("upper", average=0.0), sharp)
    torch.testing.assert_close(hard, values.max())


def test_a_group_that_was_far_behind_may_come_to_the_front() -> None:
    """A weight never gets to 0, from which no step would lead away."""
    term, groups = RiskTerm.preset("upper", alpha=1.0), torch.tensor([0, 1])
    weights = torch.full((2,), 0.5)
    weights = risk.group_weights(weights, torch.tensor([9.0, 0.0]), groups, 2, term, 100.0)
    assert weights.min() > 0
    alone = risk.group_risk(torch.tensor([2.0]), torch.tensor([1]), 2, term, weights)
    assert alone.isfinite()  # a batch without the group that has all the weight
    for _ in range(2):
        weights = risk.group_weights(weights, torch.tensor([0.0, 9.0]), groups, 2, term, 100.0)
    assert weights[1] > 0.99


@pytest.mark.parametrize("more", [{"risk_images": 96}, {"divide_loss": True}], ids=str)
def test_the_released_term_trains_as_control_whatever_stands_beside_it(digits: DataSet, more: dict[str, Any]) -> None:
    """It has no gradient, over more images too, and nothing to divide by."""
    plain, _ = distill.distill(digits, settings(risk="control"))
    released, _ = distill.distill(digits, settings(risk="released", **more))
    assert torch.equal(plain.images, released.images)


@pytest.mark.parametrize("more", [{}, {"centres_in_all": 5}, {"average": 0.0}, {"where": "matching"}], ids=str)
def test_at_tail_mass_one_both_tails_are_the_same_run(digits: DataSet, more: dict[str, Any]) -> None:
    """Bit for bit, so that Figure 4 needs no runs of the lower tail there; just below one they part."""
    made = {
        (tail, alpha): distill.distill(digits, settings(risk=tail, alpha=alpha, **more))[0].images
        for tail in ("upper", "lower")
        for alpha in (1.0, 0.9)
    }
    assert torch.equal(made["upper", 1.0], made["lower", 1.0])
    assert not torch.equal(made["upper", 0.9], made["lower", 0.9])


def test_weights_of_groups_are_refused_where_the_released_term_would_not_use_them() -> None:
    with pytest.raises(SettingError, match="worst_step"):
        settings(risk="released", worst_step=0.1)


def test_the_term_may_be_taken_over_more_images_than_the_update(digits: DataSet) -> None:
    """One update by hand: cross-entropy of 32 images, the term over these and 64 more from a stream of their own."""
    s = settings(risk="upper", risk_images=96, net_steps=1, cutmix=0.0, net_augment="none", lr_net=0.1)
    fast, plain = loop_of(digits, s), loop_of(digits, s)
    fast.network_steps()
    index = torch.randint(200, (32,), generator=plain.streams["net batch"])
    more = torch.randint(200, (1, 64), generator=plain.streams["risk batch"])[0]
    every = torch.cat([index, more])
    x, y = digits.normalise(digits.train_images[every]), digits.train_labels[every]
    losses = torch.nn.functional.cross_entropy(plain.net(x), y, reduction="none")
    gaps = torch.cdist(plain.net.embed(x), plain.net.embed(digits.normalise(plain.codes["pixels"].flatten(0, 1))))
    nearest = gaps.argmin(1)
    tails = torch.stack([risk.cvar(losses[nearest == g], s.alpha) for g in nearest.unique()])
    loss = losses[:32].mean() + tails.mean() + tails.max()
    torch.optim.SGD(plain.net.parameters(), s.lr_net, 0.9, weight_decay=5e-4).zero_grad()
    loss.backward()
    for ours, theirs in zip(fast.net.parameters(), plain.net.parameters(), strict=True):
        expected = theirs.detach() - s.lr_net * (theirs.grad + 5e-4 * theirs.detach())
        torch.testing.assert_close(ours.detach(), expected, atol=1e-10, rtol=0)


def test_more_images_of_the_term_leave_the_other_draws_alone(digits: DataSet) -> None:
    made, _ = distill.distill(digits, settings(risk="upper", average=0.0, worst=0.0, risk_images=64))
    control, _ = distill.distill(digits, settings())
    assert torch.equal(made.images, control.images)
    with pytest.raises(SettingError, match="risk_images"):
        settings(risk_images=31)


# --- what a record tells of the mechanism -----------------------------------------------------------------


def test_the_history_tells_how_well_the_network_learns_and_what_the_term_does(digits: DataSet) -> None:
    _, history = distill.distill(digits, settings(risk="upper", centres_in_all=4, inner_steps=12, net_steps=4))
    for entry in history:
        assert entry["probe_last"] > entry["probe_first"] + 0.1  # 48 updates of 32 digits teach it something
        assert 0 <= entry["probe_middle"] <= 1
        assert entry["gradient_ratio_first"] > 0.5 and abs(entry["gradient_cosine_first"]) <= 1
        assert 0 < entry["group_size_median"] <= 16 and 0 <= entry["groups_empty"] < 4
    _, plain = distill.distill(digits, settings())
    assert "gradient_ratio_first" not in plain[0] and "probe_last" in plain[0]
    _, untrained = distill.distill(digits, settings(net_steps=0))
    assert "probe_last" not in untrained[0] and untrained[0]["cross_entropy"] == 0


def test_the_terms_gradient_is_measured_against_that_of_the_mean_loss(digits: DataSet) -> None:
    """The group term alone and the mean loss alone, each differentiated by itself, at the first update."""
    s = settings(risk="upper", net_steps=1, cutmix=0.0, net_augment="none")
    seen, plain = loop_of(digits, s), loop_of(digits, s)
    seen.network_steps(first=True)
    index = torch.randint(200, (32,), generator=plain.streams["net batch"])
    x, y = digits.normalise(digits.train_images[index]), digits.train_labels[index]
    losses = torch.nn.functional.cross_entropy(plain.net(x), y, reduction="none")
    gaps = torch.cdist(plain.net.embed(x), plain.net.embed(digits.normalise(plain.codes["pixels"].flatten(0, 1))))
    groups = gaps.argmin(1)
    term = risk.group_risk(losses, groups, 20, RiskTerm.preset("upper"))
    parameters = list(plain.net.parameters())
    gradients = [
        torch.cat([g.flatten() for g in torch.autograd.grad(each, parameters, retain_graph=True)])
        for each in (term, losses.mean())
    ]
    told = seen.mechanism()
    assert float(told["gradient_ratio_first"]) == pytest.approx(float(gradients[0].norm() / gradients[1].norm()))
    cosine = torch.nn.functional.cosine_similarity(*gradients, dim=0)
    assert float(told["gradient_cosine_first"]) == pytest.approx(float(cosine))
    counts = groups.bincount(minlength=20).double()
    assert float(told["group_size_median"]) == pytest.approx(float(counts.quantile(0.5)))
    assert float(told["groups_empty"]) == float((counts == 0).sum())


def test_looking_changes_nothing(digits: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    s = settings(risk="upper", factor=2)
    seen, _ = distill.distill(digits, s)
    monkeypatch.setattr(Loop, "probe", lambda self: torch.zeros(()))
    monkeypatch.setattr(Loop, "_term_gradient", lambda self, mean, loss: torch.zeros(2))
    unseen, _ = distill.distill(digits, s)
    assert torch.equal(seen.images, unseen.images)


def test_means_are_over_the_trainings_made(digits: DataSet) -> None:
    """DSA throws its network away after the last image step: two steps train it once, and the mean is over one."""
    s = settings(method="dsa", risk="upper", inner_steps=2, outer_steps=1, **SIAMESE)
    _, history = distill.distill(digits, s)
    one = loop_of(digits, s)
    one.image_steps()
    cross_entropy, term = one.network_steps().tolist()
    assert history[0]["cross_entropy"] == pytest.approx(cross_entropy)
    assert history[0]["risk"] == pytest.approx(term)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr_image": 1e200}, "inner step [123].*lr_image"),
        ({"lr_net": 1e200}, "inner step [123].*lr_net"),
        ({"lr_net": 1e200, "net_start_steps": 2}, "inner step 1.*lr_net"),
        ({"lr_net": 1e200, "net_steps": 1}, "inner step [123].*lr_net"),
    ],
)
def test_a_run_that_diverges_stops_and_says_where(digits: DataSet, changes: dict[str, float], words: str) -> None:
    with pytest.raises(DivergenceError, match=f"outer step 1, {words}"):
        distill.distill(digits, settings(inner_steps=3, **changes))


# --- groups that are known before the loop ----------------------------------------------------------------


@pytest.fixture(scope="module")
def grouped(digits: DataSet) -> DataSet:
    """Every fifth digit belongs to group 1."""
    return dataclasses.replace(digits, train_groups=(torch.arange(len(digits.train_labels)) % 5 == 0).long())


KNOWN: dict[str, Any] = {"groups_from": "labels", "match_augment": "none"}


@pytest.mark.parametrize("method", ["idc", "dsa", "dm"])
def test_each_group_of_a_class_may_be_matched_alike(grouped: DataSet, method: str) -> None:
    """The target is the mean of the groups' own mean statistics, computed group by group."""
    s = settings(**KNOWN, match_groups="equal", method=method)
    fast, plain = loop_of(grouped, s), loop_of(grouped, s)
    drawn = fast.draws([3])[0]
    target = fast._target(drawn, 3, None)
    by_group = []
    for g in (0, 1):
        own = drawn.real[grouped.train_groups[drawn.real] == g]
        assert len(own) > 0
        x = grouped.normalise(grouped.train_images[own])
        if method == "dm":
            by_group.append([plain.net.embed(x).mean(0)])
            continue
        loss = torch.nn.functional.cross_entropy(plain.net(x), torch.full((len(x),), 3))
        by_group.append(torch.autograd.grad(loss, plain.matched))
    for found, one, two in zip(target, *by_group, strict=True):
        torch.testing.assert_close(found, (one + two) / 2)


@pytest.mark.parametrize("where", ["network", "matching"])
@pytest.mark.parametrize("scope", ["all", "class"])
def test_the_term_takes_the_groups_of_the_data(grouped: DataSet, where: str, scope: str) -> None:
    s = settings(**KNOWN, risk="upper", where=where, scope=scope, net_augment="none", cutmix=0.0, net_steps=1)
    fast, plain = loop_of(grouped, s), loop_of(grouped, s)
    if where == "matching":
        drawn = fast.draws([3])[0]
        index = drawn.real
    else:
        index = torch.randint(200, (32,), generator=plain.streams["net batch"])
    x, y = grouped.normalise(grouped.train_images[index]), grouped.train_labels[index]
    member = grouped.train_groups[index] + (2 * y if scope == "class" else 0)
    losses = torch.nn.functional.cross_entropy(plain.net(x), y, reduction="none")
    tails = torch.stack([risk.cvar(losses[member == g], s.alpha) for g in member.unique()])
    loss = losses.mean() + tails.mean() + tails.max()
    if where == "matching":
        expected = torch.autograd.grad(loss / 3, plain.matched)
        for found, each in zip(fast._target(drawn, 3, None), expected, strict=True):
            torch.testing.assert_close(found, each)
        return
    told = fast.network_steps()
    expected_told = torch.stack([losses.mean(), loss - losses.mean()]).detach()
    torch.testing.assert_close(told, expected_told.float())


def test_batches_and_starts_take_each_group_alike(grouped: DataSet) -> None:
    s = settings(**KNOWN, real_choice="balanced", batch_real=9)
    for drawn in loop_of(grouped, s).draws(range(10)):
        counts = grouped.train_groups[drawn.real].bincount(minlength=2).tolist()
        assert sorted(counts) == [4, 5]
        assert len(grouped.train_labels[drawn.real].unique()) == 1
    s = settings(**KNOWN, start="covering", ipc=4)
    begun = distill.begin(grouped, s, prior.load("none", grouped, 1)).codes["pixels"]
    for c in range(10):
        places = [int((grouped.train_images - image).abs().flatten(1).sum(1).argmin()) for image in begun[c]]
        assert grouped.train_labels[places].tolist() == [c] * 4
        assert sorted(grouped.train_groups[places].tolist()) == [0, 0, 1, 1]


def test_groups_are_found_where_looks_differ() -> None:
    """Digits of which every fourth is inverted: clusters in each class find the look without its label."""
    d = dataset.load("digits", train_limit=600, test_limit=100)
    look = torch.arange(600) % 4 == 0
    images = torch.where(look.view(-1, 1, 1, 1), 255 - d.train_images, d.train_images)
    found = with_found_groups(dataclasses.replace(d, train_images=images), 2)
    again = with_found_groups(dataclasses.replace(d, train_images=images), 2)
    assert torch.equal(found.train_groups, again.train_groups)
    assert float((found.train_groups.bool() == look).double().mean()) > 0.95


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"match_groups": "equal"}, "match_groups"),
        ({"real_choice": "balanced"}, "real_choice"),
        ({"start": "covering"}, "start"),
        (KNOWN | {"match_groups": "equal", "risk": "upper", "where": "matching"}, "match_groups"),
        (KNOWN | {"method": "dsa", "risk": "upper"}, "groups_from"),
    ],
)
def test_groups_that_are_not_known_are_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingError, match=f"^{named} "):
        settings(**changes)


# --- as published -----------------------------------------------------------------------------------------


def test_a_network_may_be_trained_before_the_first_image_step(digits: DataSet) -> None:
    """As many updates by hand, from streams of their own: afterwards the other draws are those of a run without."""
    s = settings(net_start_steps=3)
    fast, plain = loop_of(digits, s), loop_of(digits, s)
    fast.start_network()
    sgd = torch.optim.SGD(plain.net.parameters(), s.lr_net, 0.9, weight_decay=5e-4)
    for index in torch.randint(200, (3, 32), generator=plain.streams["start batch"]):
        loss = plain._losses(next(plain._batches(None, [index], plain.streams["start augment"]))).mean()
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    for ours, theirs in zip(fast.net.parameters(), plain.net.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    untouched = loop_of(digits, settings())
    for name in ("real", "net batch", "net augment", "match augment"):
        assert torch.equal(fast.streams[name].get_state(), untouched.streams[name].get_state())


def test_dc_may_start_from_noise(digits: DataSet) -> None:
    s = settings(method="dc", start="noise", ipc=50)
    begun = distill.begin(digits, s, prior.load("none", digits, 1)).codes["pixels"]
    normalised = digits.normalise(begun)
    assert abs(float(normalised.mean())) < 0.02 and abs(float(normalised.std()) - 1) < 0.02


def test_equal_groups_are_the_distances_to_all_groups_together(grouped: DataSet) -> None:
    """For squares, the gradient at the images of sum_g |t_g - s|^2 is G times that of |mean_g t_g - s|^2 (FairDD)."""
    s = settings(**KNOWN, match_groups="equal")
    fast, plain = loop_of(grouped, s), loop_of(grouped, s)
    drawn = fast.draws([3])[0]
    _, moved = fast.matching_gradient(3, None, drawn)
    own = plain.codes["pixels"][3].clone().requires_grad_()
    given = plain._statistic(plain.seen(own, drawn), 3)
    total = torch.zeros((), dtype=torch.float64)
    for g in (0, 1):
        x = grouped.normalise(grouped.train_images[drawn.real[grouped.train_groups[drawn.real] == g]])
        loss = torch.nn.functional.cross_entropy(plain.net(x), torch.full((len(x),), 3))
        for a, b in zip(torch.autograd.grad(loss, plain.matched), given, strict=True):
            total = total + ((a - b) ** 2).sum()
    (expected,) = torch.autograd.grad(total / 2, own)
    torch.testing.assert_close(moved["pixels"], expected)
