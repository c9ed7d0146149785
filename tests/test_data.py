"""Loading: the embedded set, packs, folders, torchvision's files; and every way in which they can be wrong."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from rddlib.base import SettingError, digest
from rddlib.data import dataset, sources
from rddlib.data.sources import DataError


def pack(path: Path, **changes: np.ndarray) -> Path:
    rng = np.random.default_rng(0)
    arrays = {
        "train_images": rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8), "train_labels": np.arange(20) % 4,
        "test_images": rng.integers(0, 256, (8, 8, 8, 3), dtype=np.uint8), "test_labels": np.arange(8) % 4,
        "classes": np.array(["a", "b", "c", "d"]),
    }  # fmt: skip
    np.savez(path, **{k: v for k, v in (arrays | changes).items() if v is not None})
    return path


def test_digits_are_embedded_and_split_once_for_all() -> None:
    d = dataset.load()
    assert d.name == "digits" and d.shape == (1, 8, 8) and d.n_classes == 10
    assert d.train_images.dtype == torch.uint8 and len(d.train_labels) + len(d.test_labels) == 1797
    counts = d.test_labels.bincount()
    assert counts.min() >= 69 and counts.max() <= 74  # stratified
    assert d.sha256 == dataset.load("digits").sha256
    assert (
        d.sha256 == "9d73993b6eecfdae0ed86b01e2910d7279b882c441006dcedb41418559e11250"
    )  # the split is a part of every digits record


def test_npz_by_path_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(tmp_path / "mine.npz")
    by_path = dataset.load(f"npz:{tmp_path / 'mine.npz'}")
    by_name = dataset.load("mine", root=tmp_path)
    monkeypatch.setenv("RDD_DATA", str(tmp_path))
    by_environment = dataset.load("mine")
    assert by_path.sha256 == by_name.sha256 == by_environment.sha256
    assert by_name.shape == (3, 8, 8) and by_name.classes == ("a", "b", "c", "d")
    assert str(tmp_path) not in by_path.source  # records never carry a machine's folders
    with np.load(tmp_path / "mine.npz") as raw:
        assert torch.equal(by_name.train_images[3, 1], torch.from_numpy(raw["train_images"][3, :, :, 1]))


def test_statistics_make_the_training_part_standard() -> None:
    d = dataset.load("digits")
    x = d.normalise(d.train_images)
    assert x.mean().abs() < 1e-4 and (x.std() - 1).abs() < 1e-3
    assert torch.allclose(d.normalise(d.train_images.float() / 255), x, atol=1e-5)


def test_limits_are_balanced_fixed_and_nested() -> None:
    small, large = dataset.load("digits", train_limit=50), dataset.load("digits", train_limit=105)
    assert small.train_labels.bincount().tolist() == [5] * 10
    assert set(large.train_labels.bincount().tolist()) == {10, 11} and len(large.train_labels) == 105
    rows = {r.numpy().tobytes() for r in large.train_images}
    assert all(r.numpy().tobytes() in rows for r in small.train_images)


def test_size_resizes_both_parts() -> None:
    d = dataset.load("digits", size=16, train_limit=20)
    assert d.train_images.shape[2:] == d.test_images.shape[2:] == (16, 16) and d.train_images.dtype == torch.uint8


def test_validation_part_is_cut_from_the_training_part() -> None:
    d = dataset.load("digits")
    v = d.validation(0.2, seed=1)
    assert len(v.train_labels) + len(v.test_labels) == len(d.train_labels)
    assert "validation" in v.source and v.test_groups is None
    assert len({d.sha256, v.sha256, d.validation(0.2, seed=2).sha256}) == 3  # what is made on one fits no other
    inside = {r.numpy().tobytes() for r in d.train_images}
    assert all(r.numpy().tobytes() in inside for r in v.test_images)
    assert not torch.equal(v.test_images, d.validation(0.2, seed=2).test_images)
    with pytest.raises(SettingError, match="share"):
        d.validation(1.0)


GROUPS = {"train_groups": np.arange(20) // 5 % 2, "test_groups": np.arange(8) % 2, "group_names": np.array(["m", "f"])}


def test_groups_go_with_their_images(tmp_path: Path) -> None:
    """Each image of the pack carries its own group in its pixels, so that every later step can be checked."""
    images = {f"{part}_images": np.zeros((n, 8, 8, 3), np.uint8) for part, n in (("train", 20), ("test", 8))}
    for part in ("train", "test"):
        images[f"{part}_images"][:] = 100 * GROUPS[f"{part}_groups"][:, None, None, None]
    file = pack(tmp_path / "grouped.npz", **images, **GROUPS)
    whole = dataset.load(f"npz:{file}")
    assert whole.group_names == ("m", "f") and whole.train_groups is not None
    made = [whole, dataset.load(f"npz:{file}", size=16, train_limit=9, test_limit=5), whole.validation(0.4, seed=3)]
    for d in made:
        for pixels, own in ((d.train_images, d.train_groups), (d.test_images, d.test_groups)):
            assert own is not None and own.dtype == torch.int64
            assert torch.equal(pixels[:, 0, 3, 3].long(), 100 * own)
    assert len(made[2].test_labels) == 8 and made[2].test_groups.bincount().tolist() == [4, 4]  # 2 of 5 in each cell


def test_groups_are_a_part_of_the_hash_and_their_absence_is_not(tmp_path: Path) -> None:
    plain, grouped = (dataset.load(f"npz:{pack(tmp_path / 'x.npz', **own)}") for own in ({}, GROUPS))
    assert plain.train_groups is None and plain.group_names == ()
    assert plain.sha256 == digest(plain.test_images, plain.test_labels, plain.train_images, plain.train_labels)
    swapped = dataset.load(f"npz:{pack(tmp_path / 'x.npz', **GROUPS | {'train_groups': 1 - GROUPS['train_groups']})}")
    assert len({plain.sha256, grouped.sha256, swapped.sha256}) == 3
    unnamed = dataset.load(f"npz:{pack(tmp_path / 'x.npz', train_groups=GROUPS['train_groups'])}")
    assert unnamed.group_names == ("0", "1") and unnamed.test_groups is None
    assert unnamed.validation(0.4).test_groups.bincount().tolist() == [4, 4]


EVERY_IMAGE = [f"{part}/{name}/{i}.png,a" for part in ("train", "val") for name in ("cat", "dog") for i in range(3)]


def test_groups_of_a_folder_are_listed_beside_it(tmp_path: Path) -> None:
    root = folder(tmp_path)
    lines = [f"{part}/{name}/{i}.png,{'night' if i == 1 else 'day'}"
             for part in ("val", "train") for name in ("dog", "cat") for i in range(3)]  # fmt: skip
    (root / "groups.csv").write_text("\n".join(["path,group", *lines]), encoding="utf-8-sig")
    d = dataset.load(f"folder:{root}", size=8)
    assert d.group_names == ("day", "night")
    assert d.train_groups.tolist() == d.test_groups.tolist() == [0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["path,group", "train/cat/0.png,a"], "train/cat/1.png is not listed"),
        (["path,group", "train/cat/0.png,a", "train/cat/0.png,b"], "train/cat/0.png is listed twice"),
        (["path,group", "train/cat/0.png,"], "line 2 lacks"),
        (["path,group", *EVERY_IMAGE, "train/cat/7.png,a"], "train/cat/7.png is no image that is read"),
        (["train/cat/0.png,a", "train/cat/1.png,a"], "the first line is path,group"),
    ],
)
def test_faults_of_a_group_table_are_named(tmp_path: Path, lines: list[str], words: str) -> None:
    root = folder(tmp_path)
    (root / "groups.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match=words) as caught:
        dataset.load(f"folder:{root}", size=8)
    assert "groups.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_groups": np.arange(19) % 2}, "train_groups is int64"),
        ({"test_groups": np.zeros(8)}, "test_groups is float64"),
        ({"test_groups": np.full(8, 2), "group_names": np.array(["a", "b"])}, r"test_groups holds 2\.\.2"),
        ({"train_groups": np.full(20, -1)}, "train_groups holds -1"),
        ({"train_images": np.zeros((20, 8, 8, 3), np.float32)}, "train_images is float32"),
        ({"train_images": np.zeros((20, 8, 6, 3), np.uint8)}, "train_images"),
        ({"test_images": np.zeros((8, 16, 16, 3), np.uint8)}, "differ in shape"),
        ({"train_labels": np.arange(19) % 4}, "train_labels"),
        ({"train_labels": np.full(20, 4)}, "0..3"),
        ({"test_labels": np.full(8, -1)}, "-1"),
        ({"test_labels": np.zeros(8)}, "integer"),
        ({"train_labels": np.zeros(20, int)}, "no training image"),
        ({"test_labels": None}, "'test_labels' is missing"),
    ],
)
def test_wrong_arrays_are_named_with_their_file(tmp_path: Path, changes: dict, words: str) -> None:
    file = pack(tmp_path / "odd.npz", **changes)
    with pytest.raises(DataError, match=words) as caught:
        dataset.load(f"npz:{file}")
    assert "odd.npz" in str(caught.value)


def test_damaged_and_pickled_packs_are_refused(tmp_path: Path) -> None:
    whole = pack(tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "objects.npz", train_images=np.array([{}], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "evil.npz", "w") as archive:
        for name in ("train_images", "train_labels", "test_images", "test_labels", "classes"):
            archive.writestr(f"{name}.npy", pickle.dumps({"not": "an array"}))
    for name in ("cut", "text", "objects", "evil"):
        with pytest.raises(DataError, match=f"{name}.npz"):
            dataset.load(f"npz:{tmp_path / name}.npz")


def test_missing_data_says_what_where_and_how(tmp_path: Path) -> None:
    for name in ("cifar10", "svhn", "imagenet_a", "imagenette"):
        with pytest.raises(DataError) as caught:
            dataset.load(name, root=tmp_path)
        text = str(caught.value)
        assert name in text and f"{name}.npz" in text and "RDD_DATA" in text and "Either" in text and " or " in text
    with pytest.raises(SettingError, match="dataset = 'cifra10'"):
        dataset.load("cifra10", root=tmp_path)
    with pytest.raises(DataError, match="absent.npz"):
        dataset.load(f"npz:{tmp_path / 'absent.npz'}")


@pytest.mark.parametrize(
    "limit", [{"size": 0}, {"train_limit": -1}, {"test_limit": 0}, {"train_limit": 3}, {"test_limit": 9999}]
)
def test_bad_limits(limit: dict) -> None:
    with pytest.raises(SettingError, match=next(iter(limit))):
        dataset.load("digits", **limit)


def folder(root: Path, names: tuple[str, ...] = ("cat", "dog"), held_out: str = "val", n: int = 3) -> Path:
    rng = np.random.default_rng(1)
    for part in ("train", held_out):
        for name in names:
            (root / part / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_image_folder(tmp_path: Path, held_out: str) -> None:
    d = dataset.load(f"folder:{folder(tmp_path, held_out=held_out)}", size=16)
    assert d.shape == (3, 16, 16) and d.classes == ("cat", "dog") and d.train_labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_grey_and_cmyk_images_become_rgb(tmp_path: Path) -> None:
    root = folder(tmp_path)
    Image.new("L", (20, 20), 128).save(root / "train" / "cat" / "grey.jpg")
    Image.new("CMYK", (20, 20), (0, 255, 255, 0)).save(root / "train" / "cat" / "ink.jpeg")
    d = dataset.load(f"folder:{root}", size=8)
    assert d.shape == (3, 8, 8) and len(d.train_labels) == 8
    red = d.train_images[d.train_labels == 0][4].float().mean((1, 2))
    assert red[0] > 200 and red[1] < 60


def test_folder_faults_name_the_file(tmp_path: Path) -> None:
    root = folder(tmp_path)
    with pytest.raises(DataError, match="not a square"):
        dataset.load(f"folder:{root}")
    with pytest.raises(DataError, match="train"):
        dataset.load(f"folder:{tmp_path / 'nowhere'}")


def wide(shape: tuple[int, int]) -> np.ndarray:
    """Slow waves, uint8 (H, W, 3): resizing in another order moves them little."""
    rows, columns = np.meshgrid(*(np.linspace(0, 5, n) for n in shape), indexing="ij")
    return (127 + 100 * np.stack([np.sin(rows), np.cos(columns), np.sin(rows + columns)], 2)).astype(np.uint8)


@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (97, 96), (20, 300)])
def test_photographs_are_shrunk_on_the_shorter_side_and_cropped_in_the_middle(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    """GLaD's Resize and CenterCrop, up to a fraction of a pixel."""
    pixels = wide(shape)
    for part in ("train", "val"):
        (tmp_path / part / "cat").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / part / "cat" / "a.png")
    found = dataset.load(f"folder:{tmp_path}", size=64).test_images[0].permute(1, 2, 0).numpy()
    height, width = shape
    scale = 64 / min(shape)
    small = Image.fromarray(pixels).resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
    left, top = (small.width - 64) // 2, (small.height - 64) // 2
    expected = np.asarray(small.crop((left, top, left + 64, top + 64)))
    assert np.abs(found.astype(int) - expected).mean() < 3


def test_camera_orientation_is_followed(tmp_path: Path) -> None:
    root = folder(tmp_path)
    picture = Image.new("RGB", (40, 20), (0, 0, 255))
    picture.paste((255, 0, 0), (0, 0, 20, 20))  # red on the left
    tags = Image.Exif()
    tags[0x0112] = 6  # turn by a quarter, clockwise: the left side comes to the top
    picture.save(root / "train" / "cat" / "turned.jpg", exif=tags)
    last = dataset.load(f"folder:{root}", size=8).train_images[3].float()  # turned.jpg comes after 0.png .. 2.png
    assert last[0, :3].mean() > 200 and last[2, -3:].mean() > 200 and last[2, :3].mean() < 60


def test_other_files_are_passed_over_and_cut_photographs_named(tmp_path: Path) -> None:
    root = folder(tmp_path)
    (root / "train" / "cat" / "notes.txt").write_text("not an image")
    (root / "train" / "README").write_text("not a class")
    Image.fromarray(wide((60, 60))).save(root / "train" / "cat" / "png_inside.JPEG", "PNG")  # ImageNet has one of these
    assert len(dataset.load(f"folder:{root}", size=8).train_labels) == 7
    Image.fromarray(wide((60, 80))).save(root / "val" / "dog" / "whole.JPEG", quality=90)
    whole = (root / "val" / "dog" / "whole.JPEG").read_bytes()
    for content in (whole[: len(whole) // 2], whole[:20], b"", b"text"):
        (root / "val" / "dog" / "broken.JPEG").write_bytes(content)
        with pytest.raises(DataError, match=r"dog.broken\.JPEG: cannot be read as an image"):
            dataset.load(f"folder:{root}", size=8)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_image_of_several_frames_is_not_taken_for_its_first(tmp_path: Path, kind: str) -> None:
    root = folder(tmp_path)
    frames = [Image.fromarray(wide((60, 60))), Image.new("RGB", (60, 60))]
    frames[0].save(root / "train" / "cat" / f"many.{kind.lower()}", kind, save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r"many\.\w+: cannot be read as an image \(2 frames"):
        dataset.load(f"folder:{root}", size=8)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"classes": np.array("one text")}, "classes is no list of different names"),
        ({"classes": np.array([["a", "b"]])}, "classes is no list of different names"),
        ({"classes": np.array(["a", "a"])}, "classes is no list of different names"),
        ({"train_groups": np.zeros(4, int), "group_names": np.array("fog")}, "group_names is no list"),
        ({f"{part}_images": np.zeros((4, 0, 0, 1), np.uint8) for part in ("train", "test")}, "needed is uint8"),
    ],
)
def test_names_and_sizes_of_own_archives_are_checked(tmp_path: Path, changed: dict[str, np.ndarray], said: str) -> None:
    images, labels = np.zeros((4, 8, 8, 1), np.uint8), np.array([0, 0, 1, 1])
    good = {
        f"{part}_{kind}": own for part in ("train", "test") for kind, own in (("images", images), ("labels", labels))
    }
    np.savez(tmp_path / "own.npz", **(good | {"classes": np.array(["a", "b"])} | changed))
    with pytest.raises(DataError, match=said):
        dataset.load(f"npz:{tmp_path / 'own.npz'}")


@pytest.mark.parametrize("place", ["imagenet", "imagenet_b", "."])
def test_imagenet_subset_by_wnid_keeps_the_label_order(tmp_path: Path, place: str) -> None:
    wnids = sources.SUBSETS["imagenet_b"]
    root = folder(tmp_path / place, (*sorted(wnids), "n99999999"), n=1)
    for i, wnid in enumerate(wnids):  # grey of a level of its own, so that the label can be checked
        Image.new("L", (30, 20), 20 * i).save(root / "train" / wnid / "0.png")
    d = dataset.load("imagenet_b", root=tmp_path, size=8)
    assert d.classes[0] == "spoonbill" and d.classes[-1] == "ruddy turnstone"
    assert d.train_labels.tolist() == list(range(10))  # not alphabetical, no stranger
    assert d.train_images.float().mean((1, 2, 3)).tolist() == [20.0 * i for i in range(10)]
    assert d.mean == (0.485, 0.456, 0.406) and d.std == (0.229, 0.224, 0.225)
    assert dataset.load("imagenet_b", root=tmp_path).shape == (3, 128, 128)  # the size of the paper's ImageNet sets


@pytest.mark.parametrize("name", ["imagenet10", "imagenet_e"])
def test_imagenet_subset_by_class_names(tmp_path: Path, name: str) -> None:
    """Folders called green_mamba or potters-wheel are found too; the order of the labels stays."""
    plain = [sources.CLASS_NAMES[w].replace("'", "").replace(" ", "_").lower() for w in sources.SUBSETS[name]]
    folder(tmp_path / name, (*plain, "stranger"), n=1)
    d = dataset.load(name, root=tmp_path, size=8)
    assert d.classes == tuple(sources.CLASS_NAMES[w] for w in sources.SUBSETS[name])
    assert d.train_labels.tolist() == d.test_labels.tolist() == list(range(10))


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_class_without_folder_is_named(tmp_path: Path, part: str) -> None:
    wnids = sources.SUBSETS["imagenet_c"]
    folder(tmp_path / "imagenet", wnids, n=1)
    (tmp_path / "imagenet" / part / wnids[4]).rename(tmp_path / "away")
    with pytest.raises(DataError, match=f"{part}: no folder '{wnids[4]}'; imagenet_c"):
        dataset.load("imagenet_c", root=tmp_path, size=8)


def test_one_wrong_class_name_is_not_guessed(tmp_path: Path) -> None:
    names = [sources.CLASS_NAMES[w] for w in sources.SUBSETS["imagenet_a"]]
    folder(tmp_path / "imagenet", (*names[:-1], "limpkins"), n=1)
    with pytest.raises(DataError, match="no data for 'imagenet_a'"):
        dataset.load("imagenet_a", root=tmp_path, size=8)


def test_subsets_are_ten_distinct_classes_each() -> None:
    assert set(sources.SUBSETS) == {"imagenet10", *(f"imagenet_{x}" for x in "abcde"), "imagenette"}
    for wnids in sources.SUBSETS.values():
        assert len(set(wnids)) == 10 and all(len(w) == 9 and w[0] == "n" and w[1:].isdigit() for w in wnids)
        assert all(sources.CLASS_NAMES[w] == sources.CLASS_NAMES[w].strip() for w in wnids)
    # ImageNet-10 as numbers in the order of all wnids (utils.py of the released code): order follows theirs.
    numbers = [452, 64, 374, 236, 993, 176, 882, 904, 503, 74]
    assert np.argsort(numbers).tolist() == np.argsort(sources.SUBSETS["imagenet10"]).tolist()
    assert len({w for wnids in sources.SUBSETS.values() for w in wnids}) == len(set(sources.CLASS_NAMES.values())) == 70


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("svhn_part", (0.4377, 0.4438, 0.4728)),
        ("imagenette", (0.485, 0.456, 0.406)),
        ("imagenette128", (0.485, 0.456, 0.406)),
        ("imagenet_photos", (0.485, 0.456, 0.406)),
        ("cifar10", (0.4914, 0.4822, 0.4465)),
    ],
)
def test_statistics_go_by_the_family_of_the_name(tmp_path: Path, name: str, expected: tuple[float, ...]) -> None:
    pack(tmp_path / f"{name}.npz")
    assert dataset.load(name, root=tmp_path).mean == expected
    pack(tmp_path / "cifar100.npz")
    for other in (f"npz:{tmp_path / name}.npz", "cifar100"):  # a file by its path, a name of no known family
        measured = dataset.load(other, root=tmp_path)
        assert torch.allclose((measured.train_images / 255).mean((0, 2, 3)), torch.tensor(measured.mean))


def test_torchvision_cifar_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files in CIFAR-10's own layout; torchvision checks md5, so its lists are overridden."""
    datasets = sources.import_torchvision("torchvision.datasets")
    base = tmp_path / "cifar-10-batches-py"
    base.mkdir()
    rng = np.random.default_rng(0)
    for name in ("data_batch_1", "test_batch"):
        pixels = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
        (base / name).write_bytes(pickle.dumps({"data": pixels, "labels": [i % 10 for i in range(20)]}))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [["data_batch_1", None]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", None]])
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": None})
    d = dataset.load("cifar10", root=tmp_path)
    assert d.shape == (3, 32, 32) and d.classes[0] == "a" and len(d.train_labels) == 20
    assert d.mean == (0.4914, 0.4822, 0.4465)


def svhn_files(root: Path, n: int = 20) -> dict[str, np.ndarray]:
    """Small files in SVHN's own layout: X (32, 32, 3, N), y (N, 1) where 10 stands for zero; the pixels of train."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    found = {}
    for part in ("train", "test"):
        found[part] = rng.integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
        labels = (np.arange(n, dtype=np.uint8) % 10 + 1)[:, None]  # 1 .. 10
        savemat(root / f"{part}_32x32.mat", {"X": found[part], "y": labels})
    return found


@pytest.mark.parametrize("place", [".", "svhn"])
def test_svhns_own_files(tmp_path: Path, place: str) -> None:
    pixels = svhn_files(tmp_path / place)
    d = dataset.load("svhn", root=tmp_path)
    assert d.shape == (3, 32, 32) and d.classes == tuple("0123456789") and d.mean == (0.4377, 0.4438, 0.4728)
    assert d.train_labels.tolist() == [(i + 1) % 10 for i in range(20)]  # the tenth is a zero
    assert torch.equal(d.train_images[7, 1], torch.from_numpy(pixels["train"][:, :, 1, 7]))
    assert torch.equal(d.test_images[19, 2], torch.from_numpy(pixels["test"][:, :, 2, 19]))


@pytest.mark.parametrize("damage", ["cut", "text", "no labels", "label", "shape"])
def test_damaged_svhn_files_are_named(tmp_path: Path, damage: str) -> None:
    x = svhn_files(tmp_path)["test"]
    file, labels = tmp_path / "test_32x32.mat", np.ones((20, 1), np.uint8)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:5000])
    elif damage == "text":
        file.write_text("no matrix")
    else:
        content = {"no labels": {"X": x}, "label": {"X": x, "y": 11 * labels}, "shape": {"X": x[..., :5], "y": labels}}
        savemat(file, content[damage])
    with pytest.raises(DataError, match="test_32x32.mat"):
        dataset.load("svhn", root=tmp_path)


def test_svhn_is_downloaded_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = sources.import_torchvision("torchvision.datasets")
    calls: list[str] = []

    def fetch(root: Path, split: str, download: bool) -> None:
        calls.append(split)
        svhn_files(root)

    monkeypatch.setattr(datasets, "SVHN", fetch)
    with pytest.raises(DataError, match="no data for 'svhn'"):
        dataset.load("svhn", root=tmp_path)
    assert calls == []
    assert len(dataset.load("svhn", root=tmp_path, download=True).train_labels) == 20 and calls == ["train", "test"]
    dataset.load("svhn", root=tmp_path, download=True)
    assert len(calls) == 2  # what lies there is used


@pytest.mark.realdata
def test_real_cifar10(real_data: Path) -> None:
    d = dataset.load("cifar10", root=real_data)
    assert d.shape == (3, 32, 32) and len(d.train_labels) == 50000 and len(d.test_labels) == 10000
    assert d.classes == ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    measured = (d.train_images.float() / 255).mean((0, 2, 3))
    assert torch.allclose(measured, torch.tensor(d.mean), atol=1e-3)


def other_real_data(real_data: Path, name: str) -> Path:
    if not (real_data / f"{name}.npz").is_file():
        pytest.skip(f"{real_data} has no {name}.npz")
    return real_data


@pytest.mark.realdata
def test_real_svhn_digits(real_data: Path) -> None:
    """1,083 training digits of SVHN; the pack's own split, 60 to 40 in each class, is known by the hash."""
    d = dataset.load("svhn_mini", root=other_real_data(real_data, "svhn_mini"))
    assert d.shape == (3, 32, 32) and (len(d.train_labels), len(d.test_labels)) == (650, 433)
    assert d.sha256 == "e9f9a18091a7891452c50097dbbb2bd31419ae4b441206027d68edea40c23a14"
    sizes = torch.stack([d.train_labels.bincount(), d.test_labels.bincount()])
    assert (sizes[1] - 0.4 * sizes.sum(0)).abs().max() <= 0.5  # stratified
    assert d.mean == (0.4377, 0.4438, 0.4728) and (d.normalise(d.train_images).mean((0, 2, 3)).abs() < 0.2).all()
    rows = {r.numpy().tobytes() for r in d.train_images}
    assert not any(r.numpy().tobytes() in rows for r in d.test_images)


@pytest.mark.realdata
def test_real_imagenette(real_data: Path) -> None:
    """Half a minute of a busy core and one GB at the peak; the set itself is 165 MB at 64 px."""
    d = dataset.load("imagenette128", root=other_real_data(real_data, "imagenette128"), size=64)
    assert d.shape == (3, 64, 64) and (len(d.train_labels), len(d.test_labels)) == (9469, 3925)
    assert d.classes == tuple(sources.CLASS_NAMES[w] for w in sources.SUBSETS["imagenette"])
    assert d.mean == (0.485, 0.456, 0.406) and (d.normalise(d.train_images).mean((0, 2, 3)).abs() < 0.2).all()
    assert d.train_labels.bincount().min() > 850 and d.test_labels.bincount().min() > 350
