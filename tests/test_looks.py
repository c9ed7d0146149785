"""Sets with known groups: shares, pairs, colours, and that a name always gives the same images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rddlib.base import SettingError
from rddlib.data import dataset, looks
from rddlib.experiments.experiment import Experiment, load_data

SHA = {
    "rare_digits": "bb226e01fc0b80459e63f64198c257d39fa74e64dab1df029c55d05cda55a375",
    "rare_digits:tinted:0.05": "2170cc330f9072755f53eb89f905bdeeaa32272b9dec43a2594af251e5f8682d",
    "coloured_digits": "7b9f485f2c6a11cd970b0ea29c4eeeb8bc0b81a07680e54b5b01fc7e27723583",
}


@pytest.mark.parametrize("name", SHA)
def test_a_name_gives_the_same_images_everywhere(name: str) -> None:
    assert dataset.load(name).sha256 == SHA[name]


@pytest.mark.parametrize("look", looks.LOOKS)
@pytest.mark.parametrize("share", [0.05, 0.1])
def test_a_share_of_each_class_has_the_rare_look(look: str, share: float) -> None:
    plain, d = dataset.load("digits"), dataset.load(f"rare_digits:{look}:{share}")
    assert d.group_names == ("common", look) and torch.equal(d.train_labels, plain.train_labels)
    for c in range(10):
        own = d.train_groups[d.train_labels == c]
        assert int(own.sum()) == round(share * len(own))
    for image, before, group in zip(d.train_images, plain.train_images, d.train_groups, strict=True):
        changed = looks.LOOKS[look](before[None])[0]
        assert torch.equal(image, changed if group else before.expand_as(image))
        assert not torch.equal(changed, before.expand_as(changed))


@pytest.mark.parametrize("name", ["rare_digits", "rare_digits:tinted", "coloured_digits"])
def test_every_test_image_is_tested_in_both_looks(name: str) -> None:
    plain, d = dataset.load("digits", test_limit=50), dataset.load(name, test_limit=50)
    common, rare = (d.test_images[d.test_groups == g] for g in (0, 1))
    assert len(common) == len(rare) == len(plain.test_labels)
    assert torch.equal(d.test_labels, plain.test_labels.repeat(2))
    if name.startswith("rare"):
        assert torch.equal(common, plain.test_images.expand_as(common))
        assert torch.equal(rare, looks.LOOKS[d.group_names[1]](plain.test_images))
    else:
        ink = plain.test_images[:, 0] > 200  # the same figure in two colours
        assert all(len(torch.cat([a[:, i], b[:, i]], 1).unique(dim=1)[0]) > 1
                   for a, b, i in zip(common, rare, ink, strict=True) if i.any())  # fmt: skip


def hue(image: torch.Tensor) -> int:
    """Which of the ten colours an image of coloured ink has."""
    ink = image.double().flatten(1).sum(1)
    return int(torch.nn.functional.cosine_similarity(looks.palette(10).double(), ink[None]).argmax())


def test_the_colour_tells_the_class_but_for_the_rare_group() -> None:
    d = dataset.load("coloured_digits:0.1")
    for images, labels, groups in (
        (d.train_images, d.train_labels, d.train_groups),
        (d.test_images, d.test_labels, d.test_groups),
    ):
        colours = torch.tensor([hue(image) for image in images])
        assert torch.equal(colours != labels, groups == 1)
        assert (colours[groups == 1] - labels[groups == 1]).remainder(10).unique().tolist() == list(range(1, 10))


def test_colours_are_told_apart() -> None:
    colours = looks.palette(10)
    assert torch.cdist(colours, colours).fill_diagonal_(9).min() > 0.3 and colours.min() >= 0.29 and colours.max() == 1


def test_held_out_images_are_tested_in_both_looks_and_stand_in_no_training_image() -> None:
    """A validation part made before the looks are given: as many of the rare look as of the common."""
    e = Experiment.preset("smoke", dataset="rare_digits", eval_part="validation")
    d, plain = load_data(e), dataset.load("digits").validation(0.1)
    assert d.test_groups.bincount().tolist() == [len(plain.test_labels)] * 2
    assert torch.equal(d.test_images[d.test_groups == 0], plain.test_images)
    assert d.sha256 not in (plain.sha256, dataset.load("rare_digits").sha256)
    assert load_data(Experiment.preset("smoke", eval_part="validation")).sha256 == plain.sha256


def test_normalisation_is_that_of_the_images_or_of_the_field() -> None:
    d = dataset.load("rare_digits:inverted:0.5")
    assert d.normalise(d.train_images).mean().abs() < 1e-4


def test_names_lead_to_what_they_are_made_from() -> None:
    assert looks.recipe("rare_digits") == looks.recipe(f"rare_digits:{looks.LOOK['digits']}:0.1")
    assert looks.base_name("coloured_cifar10:0.1") == "cifar10" and looks.base_name("svhn_mini") == "svhn_mini"
    a, b = (vars(Experiment.preset("smoke", dataset=n, method="dsa")) for n in ("digits", "rare_digits:tinted"))
    assert {k for k in a if a[k] != b[k]} == {"dataset"}


@pytest.mark.parametrize(
    "name",
    ["rare_digits:purple", "rare_digits:rotated:0", "rare_digits:rotated:0.1:x", "coloured_digits:x", "rare_svhn"],
)
def test_names_that_lead_nowhere(name: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=f"dataset = '{name}'"):
        dataset.load(name, root=tmp_path)


def test_too_few_images_for_the_share() -> None:
    with pytest.raises(SettingError, match="dataset = .* whose share, here 0.05"):
        dataset.load("rare_digits:rotated:0.05", train_limit=50)


@pytest.mark.realdata
def test_cifar10_at_both_sizes(real_data: Path) -> None:
    for size in (16, 32):
        d = dataset.load("rare_cifar10:tinted:0.1", root=real_data, size=size, train_limit=1000, test_limit=100)
        assert d.shape == (3, size, size) and d.mean == dataset.STATISTICS["cifar10"][0]
        assert d.train_groups.sum() == 100 and len(d.test_labels) == 200
