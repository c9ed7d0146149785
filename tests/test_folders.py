"""Thirty folders as users bring them: each is read whole, or refused by a sentence that names what is wrong."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rddlib.base import DataError, SettingError
from rddlib.data import dataset, folders

CLASSES = ("cat", "dog")


def level(label: int, number: int) -> int:
    """The grey of an image, by which it is known again."""
    return 40 * label + 10 * number + 5


def make(root: Path) -> Path:
    """Two images a class and part, each of one grey that tells its label and number."""
    for part in ("train", "val"):
        for label, name in enumerate(CLASSES):
            place = root / part / name
            place.mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (8, 8), (level(label, number),) * 3).save(place / f"{number}.png")
    return root


def extra(path: Path, mode: str = "RGB", colour: object = (200, 200, 200)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (8, 8), colour).save(path)


def text(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("no image")


# What is done to a good folder, and what must be read then: greys of the training images, or the words of the refusal,
# and of the one line that says what was not taken.
PLAIN = [5, 15, 45, 55]
READ: dict[str, tuple[Callable[[Path], object], list[int], str]] = {
    "nothing": (lambda r: None, PLAIN, ""),
    "checkpoints of a notebook": (lambda r: extra(r / "train/.ipynb_checkpoints/0.png"), PLAIN, ""),
    "hidden folder in a class": (lambda r: extra(r / "train/cat/.thumbnails/0.png"), PLAIN, ""),
    "hidden folder in val alone": (lambda r: extra(r / "val/.cache/0.png"), PLAIN, ""),
    "twins of macOS": (lambda r: text(r / "train/cat/._0.png"), PLAIN, ""),
    "archive of macOS": (lambda r: extra(r / "train/__MACOSX/0.png"), PLAIN, ""),
    "thumbnails of Windows": (lambda r: text(r / "train/dog/Thumbs.db"), PLAIN, ""),
    "desktop.ini": (lambda r: text(r / "train/desktop.ini"), PLAIN, ""),
    "notes in a class": (lambda r: text(r / "train/cat/notes.txt"), PLAIN, "not taken: 1 .txt"),
    "notes beside classes": (lambda r: text(r / "train/README"), PLAIN, "1 file without suffix"),
    "unlisted suffix": (lambda r: extra(r / "val/cat/9.tiff"), PLAIN, "1 .tiff"),
    "two kinds": (lambda r: (text(r / "train/cat/a.gif"), text(r / "val/dog/b.TXT")), PLAIN, "1 .gif, 1 .txt"),
    "capital suffix": (lambda r: extra(r / "train/cat/2.PNG"), [5, 15, 200, 45, 55], ""),
    "one level down": (lambda r: extra(r / "train/cat/images/a.png"), [5, 15, 200, 45, 55], ""),
    "two levels down": (lambda r: extra(r / "train/cat/a/b/c.png"), PLAIN, "1 folder"),
    "linked image": (lambda r: (r / "train/dog/z.png").symlink_to(r / "train/cat/0.png"), [*PLAIN, 5], ""),
    "linked class": (
        lambda r: [(r / p / "eel").symlink_to(r / p / "cat") for p in ("train", "val")],
        [*PLAIN, 5, 15],
        "",
    ),
    "pipe in the root": (lambda r: os.mkfifo(r / "pipe"), PLAIN, ""),
}
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "val and test": (lambda r: (r / "test").mkdir(), "holds both val and test"),
    "class in train alone": (lambda r: extra(r / "train/eel/0.png"), r"train.eel: this class has no folder in val/"),
    "class in val alone": (lambda r: extra(r / "val/eel/0.png"), r"val.eel: this class has no folder in train/"),
    "class without images": (lambda r: [(r / p / "eel").mkdir() for p in ("train", "val")], r"eel: no image"),
    "class of texts": (lambda r: [text(r / p / "eel/a.txt") for p in ("train", "val")], r"eel: no image"),
    "pipe among images": (lambda r: os.mkfifo(r / "train/cat/2.png"), r"2\.png: is neither a plain file"),
    "pipe beside classes": (lambda r: os.mkfifo(r / "train/pipe"), r"pipe: is neither"),
    "link to nowhere": (lambda r: (r / "val/cat/2.png").symlink_to("gone"), r"2\.png: is neither"),
    "link to itself": (lambda r: (r / "val/cat/2.png").symlink_to("2.png"), r"2\.png: is neither"),
    "link in a circle": (lambda r: (r / "train/cat/up").symlink_to(".."), r"up: is a link to a folder that holds it"),
    "real numbers": (lambda r: Image.fromarray(np.zeros((8, 8), "f")).save(r / "train/cat/0.png", "TIFF"), "mode F"),
    "32 bits": (lambda r: Image.fromarray(np.zeros((8, 8), "i")).save(r / "train/cat/0.png", "TIFF"), "mode I have no"),
}


@pytest.mark.parametrize("name", READ)
def test_a_folder_is_read_whole(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    change, greys, said = READ[name]
    change(make(tmp_path))
    with caplog.at_level(logging.WARNING):
        found = dataset.load(f"folder:{tmp_path}")
    assert found.train_images[:, 0, 0, 0].tolist() == greys
    assert found.classes == (("cat", "dog", "eel") if name == "linked class" else CLASSES)
    assert found.train_labels[0] == 0 and found.train_labels.diff().min() >= 0
    assert [said in record.getMessage() for record in caplog.records] == [True] * bool(said)
    assert str(tmp_path.parent) not in caplog.text  # a line for a log, without the machine's folders


@pytest.mark.parametrize("name", REFUSED)
def test_a_contradiction_is_refused_by_name(tmp_path: Path, name: str) -> None:
    change, words = REFUSED[name]
    change(make(tmp_path))
    with pytest.raises(DataError, match=words):
        dataset.load(f"folder:{tmp_path}")


@pytest.mark.parametrize("name", ["16.png", "16.jpg"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path, name: str) -> None:
    ramp = np.linspace(0, 65535, 64).astype("uint16").reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / name, "PNG")
    expected = np.round(ramp / 65535 * 255).astype(int)
    found = folders.read_image(tmp_path / name)
    assert np.abs(found.astype(int) - expected[..., None]).max() == 0 and found.shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("LA", (77, 255), (77, 77, 77)),
        ("RGBA", (1, 2, 3, 255), (1, 2, 3)),
        ("P", 0, (0, 0, 0)),
    ],
)
def test_other_modes_keep_their_range(tmp_path: Path, mode: str, value: object, expected: tuple[int, ...]) -> None:
    image = Image.new(mode, (8, 8), value)
    if mode == "P":
        image.putpalette([0, 0, 0])
    image.save(tmp_path / "a.png")
    assert (folders.read_image(tmp_path / "a.png") == np.array(expected)).all()


def test_transparent_pixels_are_refused_and_not_dropped(tmp_path: Path) -> None:
    image = Image.new("RGBA", (8, 8), (128, 25, 0, 255))
    image.putpixel((3, 3), (128, 25, 0, 0))
    image.save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: .*transparent"):
        folders.read_image(tmp_path / "a.png")


def test_imagenets_unlabelled_test_part_does_not_stand_in_the_way(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "test").mkdir()
    assert len(folders.read_folder(tmp_path, None, ("dog", "cat"))["test_labels"]) == 4


def test_home_is_known_by_its_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make(tmp_path / "pets")
    assert dataset.load("folder:~/pets").sha256 == dataset.load(f"folder:{tmp_path}/pets").sha256
    with pytest.raises(DataError, match=f"{tmp_path}/a.npz"):
        dataset.load("npz:~/a.npz")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("CIFAR10", "cifar10"),
        ("cifar-10", "cifar10"),
        ("cifra10", "cifar10"),
        ("SVHN", "svhn"),
        ("digit", "digits"),
        ("imagenet-a", "imagenet_a"),
        ("mypets", "my_pets"),
    ],
)
def test_a_close_name_gets_a_hint(tmp_path: Path, name: str, meant: str) -> None:
    (tmp_path / "my_pets.npz").touch()
    with pytest.raises(SettingError, match=f"Did you mean '{meant}'"):
        dataset.load(name, root=tmp_path)


def test_a_path_without_its_kind_gets_a_hint(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=f"Did you mean 'folder:{tmp_path}'"):
        dataset.load(str(tmp_path))
    with pytest.raises(SettingError) as caught:
        dataset.load("unheard_of", root=tmp_path)
    assert "mean" not in str(caught.value)
