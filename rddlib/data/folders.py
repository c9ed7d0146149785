"""Image folders: train/<class>/* beside val/ or test/, read so that nothing is dropped or invented without a word.

Hidden files are skipped, a file that is no image is counted and said in one line, and what contradicts itself (two held
out parts, a class in one part only, a pipe among the images) is an error that names it.
"""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..base import DataError

if TYPE_CHECKING:
    from PIL import Image

Arrays = dict[str, NDArray[Any]]
IMAGE_SUFFIXES = {".jpeg", ".jpg", ".png", ".bmp", ".webp"}
LEFT_BY_SYSTEMS = {"thumbs.db", "desktop.ini", "__macosx"}  # beside names that begin with a dot
DEEP = ("I", "I;16", "I;16L", "I;16B", "I;16N")  # Pillow's greyscale modes of more than eight bits

log = logging.getLogger(__name__)


def read_folder(path: Path, size: int | None = None, classes: tuple[str, ...] | None = None) -> Arrays:
    """Read the ImageFolder layout: train/<class>/*.jpg beside val/ or test/. `classes` fixes the label order.

    Images may lie one level deeper, as in ``train/<class>/images/*.jpg``. They are turned upright (EXIF) and to RGB
    and, with `size`, shrunk on the shorter side and cropped in the middle. Without `size` all must be equal squares.
    Greyscale of 16 bits is scaled to 8. Hidden files and folders are skipped; other files that are no images by their
    suffix are counted and said in one line of the log. Raises DataError, with the name of the file or folder, where one
    cannot be decoded, is no plain file or leads in a circle; where a class has images in one part only; and where both
    val/ and test/ are there (with `classes`, as ImageNet has them, val/ is taken).

    Groups: a file `groups.csv` beside train/, with the columns path and group, e.g. ``train/cat/17.jpg,night``. Paths
    are relative to the folder, groups are any text; each image that is read must be listed once, in any order, and
    nothing else (with `classes` the table may be that of all classes).
    """
    parts = {"train": path / "train", "test": _held_out(path, named=classes is not None)}
    left: Counter[str] = Counter()
    names = classes or _class_names(parts, left)
    arrays: Arrays = {"classes": np.array(names)}
    group_of = _read_group_table(path / "groups.csv") if (path / "groups.csv").is_file() else None
    found = {part: _labelled_files(folder, names, left) for part, folder in parts.items()}
    if group_of is not None:
        paths = {part: [f.relative_to(path).as_posix() for f in files] for part, (files, _) in found.items()}
        arrays |= _groups_of(paths, group_of, path / "groups.csv", whole=classes is None)
    for part, (files, labels) in found.items():
        arrays[f"{part}_images"] = _read_images(files, size)
        arrays[f"{part}_labels"] = np.array(labels)
    if left.total():
        log.warning("%s: not taken: %s", path.name, kinds(left))
    return arrays


def hidden(path: Path) -> bool:
    """Whether a file or folder is one that systems and editors leave behind, like .ipynb_checkpoints or Thumbs.db."""
    return path.name.startswith(".") or path.name.lower() in LEFT_BY_SYSTEMS


def image_files(folder: Path, left: Counter[str] | None = None) -> list[Path]:
    """The images of one class, in a fixed order: those in `folder`, then those in the folders in it.

    What is not taken is counted by its kind in `left`. Raises DataError for what is neither a file nor a folder.
    """
    left = Counter() if left is None else left
    entries = list(_entries(folder))
    inner = [entry for folder in entries if folder.is_dir() for entry in _entries(folder)]
    left["folder"] += sum(entry.is_dir() for entry in inner)
    files = [entry for entry in (*entries, *inner) if not entry.is_dir()]
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    left.update(_kind(file) for file in files if file.suffix.lower() not in IMAGE_SUFFIXES)
    return images


def kinds(left: Counter[str]) -> str:
    """What was not taken, in words: '2 .tif, 1 folder'."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted((+left).items()))


def _kind(file: Path) -> str:
    return file.suffix.lower() or "file without suffix"


def _entries(folder: Path) -> Iterator[Path]:
    """What is in a folder and not hidden, sorted; DataError for pipes, devices, broken links and links in a circle."""
    for entry in sorted(folder.iterdir()):
        if hidden(entry):
            continue
        if entry.is_dir():
            if entry.is_symlink() and folder.resolve().is_relative_to(entry.resolve()):
                raise DataError(f"{entry}: is a link to a folder that holds it; images are not sought in a circle")
        elif not entry.is_file():
            raise DataError(f"{entry}: is neither a plain file nor a folder (a pipe, a device, or a link to nowhere)")
        yield entry


def _held_out(path: Path, named: bool) -> Path:
    """The folder of the test part. ImageNet's own test/ has no labels, so a named subset of it is tested on val/."""
    there = [path / name for name in ("val", "test") if (path / name).is_dir()]
    if not (path / "train").is_dir() or not there:
        raise DataError(
            f"no data: looked for {path / 'train'} and {path / 'val'} (or test); each holds one folder a class"
        )
    if len(there) > 1 and not named:
        raise DataError(f"{path}: holds both val and test; keep the one to test on, and move the other away")
    return there[0]


def _class_names(parts: dict[str, Path], left: Counter[str]) -> tuple[str, ...]:
    """The classes, sorted. Raises DataError for a class that has a folder in one part only."""
    folders: dict[str, set[str]] = {}
    for part, folder in parts.items():
        entries = list(_entries(folder))
        folders[part] = {entry.name for entry in entries if entry.is_dir()}
        left.update(_kind(entry) for entry in entries if not entry.is_dir())
    for part, other in (("train", "test"), ("test", "train")):
        alone = sorted(folders[part] - folders[other])
        if alone:
            raise DataError(f"{parts[part] / alone[0]}: this class has no folder in {parts[other].name}/")
    if not folders["train"]:
        raise DataError(f"{parts['train']}: holds no folder; each class needs one")
    return tuple(sorted(folders["train"]))


def _labelled_files(folder: Path, names: tuple[str, ...], left: Counter[str]) -> tuple[list[Path], list[int]]:
    """All images of a part, class after class, and their labels; DataError for a class without images."""
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        if not (folder / name).is_dir():
            raise DataError(f"{folder}: no folder {name!r}; each class needs one")
        images = image_files(folder / name, left)
        if not images:
            kinds = ", ".join(sorted(IMAGE_SUFFIXES))
            raise DataError(f"{folder / name}: no image of this class ({kinds}, there or one folder deeper)")
        files += images
        labels += [label] * len(images)
    return files, labels


def _read_group_table(file: Path) -> dict[str, str]:
    """The group of each path listed in a CSV file with the columns path and group."""
    try:
        with open(file, newline="", encoding="utf-8-sig") as lines:  # spreadsheets put a byte order mark first
            rows = list(csv.DictReader(lines))
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as CSV ({error})") from error
    group_of: dict[str, str] = {}
    for number, row in enumerate(rows, start=2):
        path, group = (row.get("path") or "").strip(), (row.get("group") or "").strip()
        if not path or not group:
            raise DataError(f"{file}: line {number} lacks a path or a group; the first line is path,group")
        if path in group_of:
            raise DataError(f"{file}: {path} is listed twice")
        group_of[path] = group
    return group_of


def _groups_of(paths: dict[str, list[str]], group_of: dict[str, str], file: Path, whole: bool) -> Arrays:
    """The names of the groups and the group of each image of each part. `whole`: the table may list nothing else."""
    read = [name for part in paths.values() for name in part]
    unlisted = [name for name in read if name not in group_of]
    if unlisted:
        raise DataError(f"{file}: {unlisted[0]} is not listed; each image needs a group")
    unknown = sorted(group_of.keys() - set(read))
    if whole and unknown:
        raise DataError(f"{file}: {unknown[0]} is no image that is read; each row names one, as train/cat/17.jpg")
    names = np.array(sorted({group_of[name] for name in read}))
    groups = {f"{part}_groups": np.searchsorted(names, [group_of[n] for n in own]) for part, own in paths.items()}
    return {"group_names": names} | groups


# --- images -----------------------------------------------------------------------------------------------


def _read_images(files: list[Path], size: int | None) -> NDArray[np.uint8]:
    first = read_image(files[0], size)
    images = np.empty((len(files), *first.shape), np.uint8)
    for i, file in enumerate(files):
        image = read_image(file, size)
        if image.shape != first.shape or image.shape[0] != image.shape[1]:
            raise DataError(f"{file}: not a square of the size of the first image; give a size to resize and crop")
        images[i] = image
    return images


def read_image(file: Path, size: int | None = None) -> NDArray[np.uint8]:
    """One image, upright and RGB: uint8 (H, W, 3); with `size` shrunk on the shorter side and cropped in the middle.

    Raises DataError, with the file's name, for one that cannot be decoded, has transparent pixels, or values without a
    known range.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as image:
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # a camera's JPEG with previews behind its image
                raise ValueError(f"{frames} frames; save the one that is meant")
            image.load()
            rgb = _rgb(ImageOps.exif_transpose(image), image.format)
    except Exception as error:  # Pillow raises OSError, SyntaxError, ValueError ... for damaged files
        raise DataError(f"{file}: cannot be read as an image ({error})") from error
    if size is not None:
        rgb = ImageOps.fit(rgb, (size, size), Image.Resampling.BILINEAR)
    return np.asarray(rgb)


def _rgb(image: Image.Image, kind: str | None) -> Image.Image:
    """An image as 8 bits a channel. Pillow's own conversion clips deep greyscale to black and white: it is scaled."""
    from PIL import Image

    if image.mode == "F" or (image.mode == "I" and kind != "PNG"):  # a PNG's deep greyscale has 16 bits, always
        raise ValueError(f"values of mode {image.mode} have no known range; save it with 8 or 16 bits a channel")
    if image.mode not in DEEP:
        if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
            raise ValueError("it has transparent pixels; save it on a background, without them")
        return image.convert("RGB")
    levels = np.asarray(image).astype(np.float64)
    return Image.fromarray((levels / 257).round().astype(np.uint8)).convert("RGB")  # 65535 / 255 = 257
