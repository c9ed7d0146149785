"""Clusters around synthetic images against a loop; test groups, published and honest, with their files; overlap."""

from __future__ import annotations

import dataclasses
import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from rddlib.base import SettingError, generator, repository_root
from rddlib.data import dataset
from rddlib.data.dataset import DataSet
from rddlib.data.sources import DataError
from rddlib.distillation import clusters
from rddlib.distillation.synthetic import SyntheticSet, choose_centres
from rddlib.evaluation import groups
from rddlib.evaluation.groups import Partition
from rddlib.models import networks
from rddlib.models.features import FeatureNet

POINTS = torch.randn(40, 3, 4, 4, generator=generator(0, "points"))
LABELS = torch.arange(40) % 4
CENTRES = torch.randn(8, 3, 4, 4, generator=generator(0, "centres"))
OWNERS = torch.arange(8) // 2


@pytest.mark.equation("algorithm-1")
@pytest.mark.parametrize("scope", ["all", "class"])
def test_algorithm_1_clusters_by_the_nearest_synthetic_image(scope: str) -> None:
    found = clusters.assign(POINTS, LABELS, CENTRES, OWNERS, scope)
    for x, y, g in zip(POINTS, LABELS, found, strict=True):
        gaps = [
            float(((x - s) ** 2).sum()) if scope == "all" or o == y else np.inf
            for s, o in zip(CENTRES, OWNERS, strict=True)
        ]
        assert int(g) == int(np.argmin(gaps))


def test_centres_are_all_or_some_of_each_class() -> None:
    few, many = (SyntheticSet(torch.zeros(3 * ipc, 1, 1, 1), ipc) for ipc in (2, 50))
    assert choose_centres(few, 10, "random", generator(0)).tolist() == list(range(6))
    some = choose_centres(many, 10, "random", generator(0))
    assert len(set(some.tolist())) == 30 and (some // 50).bincount().tolist() == [10] * 3


def test_kmeans_groups_are_kept_and_found_again(tmp_path: Path) -> None:
    found, sha = groups.kmeans_groups(POINTS, 5, 0, tmp_path)
    assert found.shape == (40,) and set(found.tolist()) == set(range(5))
    (file,) = tmp_path.glob("kmeans5-*.npz")
    before = file.stat().st_mtime_ns
    again, same = groups.kmeans_groups(POINTS, 5, 0, tmp_path / "elsewhere", tmp_path)
    assert torch.equal(found, again) and sha == same and file.stat().st_mtime_ns == before
    assert not (tmp_path / "elsewhere").exists()
    assert groups.kmeans_groups(POINTS, 5)[1] == sha  # without a folder nothing is written


def test_rounding_noise_does_not_rename_the_file(tmp_path: Path) -> None:
    groups.kmeans_groups(POINTS, 5, 0, tmp_path)
    groups.kmeans_groups(POINTS + 1e-8, 5, 0, tmp_path)
    assert len(list(tmp_path.glob("*.npz"))) == 1


@pytest.mark.parametrize("fault", ["cut", "changed"])
def test_damaged_groups_are_refused_and_left(tmp_path: Path, fault: str) -> None:
    groups.kmeans_groups(POINTS, 5, 0, tmp_path)
    (file,) = tmp_path.glob("*.npz")
    if fault == "cut":
        file.write_bytes(file.read_bytes()[:50])
    else:
        with np.load(file) as pack:
            sha = pack["sha256"]
        np.savez_compressed(file, groups=np.zeros(40, np.uint8), sha256=sha)
    content = file.read_bytes()
    with pytest.raises(DataError, match=file.name):
        groups.kmeans_groups(POINTS, 5, 0, tmp_path)
    assert file.read_bytes() == content


def test_more_than_256_groups_survive_the_file(tmp_path: Path) -> None:
    points = torch.arange(300.0).view(300, 1, 1, 1)
    found, sha = groups.kmeans_groups(points, 300, 0, tmp_path)
    again, same = groups.kmeans_groups(points, 300, 0, tmp_path)
    assert torch.equal(found, again) and sha == same and len(set(found.tolist())) == 300


# --- groups in features -----------------------------------------------------------------------------------

QUICK = FeatureNet(width=4, steps=3, batch=32)


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return dataset.load("digits", train_limit=100)


def test_feature_clusters_divide_classes(digits: DataSet) -> None:
    found = groups.feature_groups(digits, spec=QUICK)
    each, m = found["feature_class"], groups.clusters_a_class(digits)
    assert m == 2 and each.k == 20 and min(each.sizes) > 0
    assert torch.equal(each.groups // m, digits.test_labels)
    assert found["feature"].k == 10 and min(found["feature"].sizes) > 0


def test_label_free_clusters_do_not_see_test_labels(digits: DataSet) -> None:
    other = dataclasses.replace(digits, test_labels=digits.test_labels.roll(7))
    one, two = (groups.feature_groups(d, spec=QUICK) for d in (digits, other))
    assert one["feature"].sha256 == two["feature"].sha256
    assert one["feature_class"].sha256 != two["feature_class"].sha256


def test_feature_groups_are_kept_and_found_again(
    digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = groups.feature_groups(digits, tmp_path / "committed", tmp_path, spec=QUICK)
    assert len(list(tmp_path.glob("*.npz"))) == 2 and not (tmp_path / "committed").exists()
    with np.load(next(tmp_path.glob("feature-*.npz"))) as pack:
        record = json.loads(str(pack["record"]))
    assert record["net"] == {**dataclasses.asdict(QUICK), "depth": 2} and 0 < record["accuracy"] < 100
    monkeypatch.setattr(FeatureNet, "train", lambda *_: pytest.fail("trained again"))
    found = groups.feature_groups(digits, tmp_path, tmp_path / "elsewhere", spec=QUICK)
    for kind in ("feature_class", "feature"):
        assert torch.equal(found[kind].groups, made[kind].groups) and found[kind].sha256 == made[kind].sha256
        assert found[kind].k == made[kind].k


@pytest.mark.parametrize("change", ["seed", "images", "labels"])
def test_other_data_or_seeds_have_other_files(digits: DataSet, tmp_path: Path, change: str) -> None:
    groups.feature_groups(digits, tmp_path, spec=QUICK)
    spec = dataclasses.replace(QUICK, seed=1) if change == "seed" else QUICK
    if change == "images":
        digits = dataclasses.replace(digits, train_images=255 - digits.train_images)
    if change == "labels":
        digits = dataclasses.replace(digits, test_labels=digits.test_labels.roll(1))
    groups.feature_groups(digits, tmp_path, spec=spec)
    assert len(list(tmp_path.glob("*.npz"))) == 4


def test_too_few_test_images_are_refused(digits: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FeatureNet, "train", lambda *_: pytest.fail("work was done"))
    few = dataclasses.replace(digits, test_images=digits.test_images[:9], test_labels=digits.test_labels[:9])
    with pytest.raises(SettingError, match="eval_honest_groups = True"):
        groups.feature_groups(few)


@pytest.mark.parametrize(("size", "depth"), [(8, 2), (16, 2), (32, 3), (64, 4), (128, 5)])
def test_depth_leaves_a_map_of_four_pixels(size: int, depth: int) -> None:
    assert FeatureNet().depth(size) == depth


def committed(name: str, root: Path | None = None) -> tuple[DataSet, dict[str, Partition]]:
    found = dataset.load(name, root)
    return found, groups.feature_groups(found, repository_root() / "data" / "groups")


def test_groups_of_digits_are_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FeatureNet, "train", lambda *_: pytest.fail("the committed file was not found"))
    whole, found = committed("digits")
    assert torch.equal(found["feature_class"].groups // 2, whole.test_labels)
    near = groups.overlap(found["feature"].groups, whole.test_labels, permutations=5)
    assert near.rand > 0.6  # clusters of good features are nearly classes, without having seen a label of theirs


@pytest.mark.realdata
def test_groups_of_cifar_are_committed(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FeatureNet, "train", lambda *_: pytest.fail("the committed file was not found"))
    whole, found = committed("cifar10", real_data)
    assert torch.equal(found["feature_class"].groups // 4, whole.test_labels)
    assert found["feature_class"].k == 40 and found["feature"].k == 10


# --- overlap ----------------------------------------------------------------------------------------------


def labelled(seed: int, k: int, n: int = 400) -> torch.Tensor:
    return torch.randint(k, (n,), generator=generator(seed, "labelled"))


def test_equal_partitions_overlap_fully_whatever_their_names() -> None:
    a = labelled(0, 6)
    for b in (a, (a * 5 + 1) % 6, 5 - a):
        found = groups.overlap(a, b, permutations=20)
        assert found.rand == pytest.approx(1) and found.information == pytest.approx(1)
        assert found.rand_null.high < 0.05 and found.information_null.high < 0.2


def test_independent_partitions_overlap_as_chance_gives() -> None:
    found = [groups.overlap(labelled(s, 6), labelled(s + 100, 20), permutations=30) for s in range(10)]
    assert abs(np.mean([f.rand for f in found])) < 0.005
    inside = [f.information_null.low <= f.information <= f.information_null.high for f in found]
    assert np.mean(inside) > 0.7
    assert min(f.information_null.mean for f in found) > 0.02  # why mutual information needs its null


def test_adjusted_rand_index_counts_pairs() -> None:
    """Hubert & Arabie: pairs together in both, less what chance gives, over its largest value less the same."""
    a, b = labelled(0, 3, 30), (labelled(0, 3, 30) + (labelled(1, 4, 30) == 0)) % 3
    pairs = list(combinations(range(30), 2))
    in_a, in_b = (np.array([bool(x[i] == x[j]) for i, j in pairs]) for x in (a, b))
    chance = in_a.sum() * in_b.sum() / len(pairs)
    expected = ((in_a & in_b).sum() - chance) / ((in_a.sum() + in_b.sum()) / 2 - chance)
    assert groups.overlap(a, b, 2).rand == pytest.approx(expected)
    assert groups.overlap(a, b, 2) == groups.overlap(a, b, 2)
    assert groups.overlap(b, a, 2).rand == pytest.approx(expected)


def test_overlap_of_different_images_is_refused() -> None:
    with pytest.raises(SettingError, match="b = "):
        groups.overlap(labelled(0, 3), labelled(0, 3, 399))
    with pytest.raises(SettingError, match="permutations = 0"):
        groups.overlap(labelled(0, 3), labelled(0, 3), permutations=0)


@pytest.mark.parametrize("space", ["pixel", "feature"])
def test_test_images_join_the_nearest_synthetic_image(digits: DataSet, space: str) -> None:
    """Four tiles a stored image; the partition that a plain search finds overlaps fully with what is used."""
    net = networks.build("convnet", digits.shape, 10, depth=2, width=4, generator=generator(0, "net")).eval()
    x, y = digits.train_images[:40].float() / 255, digits.train_labels[:40]
    points = {"pixel": digits.normalise, "feature": lambda z: net.embed(digits.normalise(z)).detach()}[space]
    gaps = ((points(digits.test_images).flatten(1)[:, None] - points(x).flatten(1)[None]) ** 2).sum(2)
    parts = {"same": Partition(gaps.argmin(1) // 4, 10, ""), "class": Partition(digits.test_labels, 10, "")}
    found = groups.training_overlap(
        digits, x, y, parts, net=net if space == "feature" else None, tiles=4, permutations=5
    )
    assert found["same"].rand == pytest.approx(1, abs=0.01) and found["class"].rand < 0.9
    own = groups.training_overlap(digits, *by_class(digits), parts, scope="class", permutations=5)
    assert own["class"].rand == pytest.approx(1)  # one synthetic image a class, and only one's own class allowed


def by_class(digits: DataSet) -> tuple[torch.Tensor, torch.Tensor]:
    first = torch.tensor([int((digits.train_labels == c).nonzero()[0]) for c in range(10)])
    return digits.train_images[first], digits.train_labels[first]
