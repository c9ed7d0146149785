"""A set that was distilled elsewhere, read from its file, told in a sentence, and judged like any of ours.

Read are our own .npz, an .npz of images and labels, class folders of images, and .pt files as the released codes write
them: DC, DSA and DM (``res_*.pt``: a dict whose 'data' lists [images, labels], normalised), IDC (``data.pt``: [images,
labels] in [0, 1], several tiles an image), MTT and its successors (``images_*.pt`` beside ``labels_*.pt``, normalised,
labels hard or soft). Images that were whitened (MTT with --zca) are not pixels of the data set, and values near those
of normalised ones do not give them away: convert them first. Nothing in a file is executed: tensors are read with
weights_only, arrays without pickle.
"""

from __future__ import annotations

import math
import sys
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import files
from ..base import DataError, SettingError, digest
from ..data import folders
from ..data.dataset import DataSet
from ..distillation import synthetic
from ..evaluation.evaluate import check_images
from .experiment import Experiment
from .small_sets import SmallSet

RANGES = ("unit", "byte", "normalised")
SUFFIXES = (".npz", ".pt", ".pth")
FAR, MOSTLY = 0.5, 0.5  # more than half of the values that far outside [0, 1]: they were never pixels of this data set


@dataclass(frozen=True)
class ForeignSet:
    """What a file held: decoded images on the scale of pixels, and what was made of them.

    images: float32 (N, C, H, W), [0, 1] but for values that the file itself has outside; labels: int64 (N,), or float32
    (N, n_classes), a distribution a row. `ipc`: stored images a class, `factor`: tiles a side in each. `words`: one
    sentence on how the file was read. `sha256`: of images and labels as they are here.
    """

    images: Tensor
    labels: Tensor
    ipc: int
    factor: int
    words: str

    @property
    def sha256(self) -> str:
        """64 hex digits: the content, whatever the file is called and however it is packed."""
        return digest(self.images, self.labels)

    @property
    def small(self) -> SmallSet:
        """The set as a run takes it."""
        return SmallSet(self.images, self.labels)


def read(
    path: str | Path,
    data: DataSet,
    value_range: str | None = None,
    factor: int | None = None,
    labels: str | Path | None = None,
    number: int = 1,
) -> ForeignSet:
    """Read a set for `data` from a file or a folder of class folders.

    `value_range`: unit ([0, 1]), byte (0..255) or normalised (by the statistics of `data`); by default it is told from
    the values. `factor`: tiles a side of a stored image (IDC), default 1, or what our own .npz says. `labels`: the file
    of the labels where they are apart; default ``labels_X.pt`` beside ``images_X.pt``. `number`: which set, where a
    file has several. Raises DataError, with the file's name, for what cannot be read or does not fit `data`;
    SettingError for a factor or number that cannot be.
    """
    path = Path(path).expanduser()
    if factor not in (None, 1, 2, 3):
        raise SettingError("factor", factor, "1, 2 or 3 tiles a side of a stored image")
    if path.is_dir() or path.suffix == ".npz":
        _refuse_unused(labels, number, f"its own, as {path.name} has them")
    if path.is_dir():
        raw = _folder(path, data)
    elif path.suffix == ".npz" and path.is_file():
        raw = _npz(path)
    elif path.suffix in SUFFIXES and path.is_file():
        raw = _tensors(path, labels, number)
    else:
        raise DataError(f"{path}: is not there, or no {', '.join(SUFFIXES)} file or folder of class folders")
    try:
        return _interpreted(raw, data, value_range, factor, path.name)
    except SettingError as error:
        raise DataError(f"{path}: {error}") from error


def _refuse_unused(labels: str | Path | None, number: int, own: str) -> None:
    """A file of labels, or the number of a set, that would not be looked at is refused."""
    if labels is not None:
        raise SettingError("labels", str(labels), own)
    if number != 1:
        raise SettingError("number", number, "1 where there is one set")


@dataclass(frozen=True)
class _Raw:
    """Images and labels as the file has them, the factor if it says so, and what there is to tell."""

    images: Tensor
    labels: Tensor
    factor: int | None = None
    notes: tuple[str, ...] = ()


# --- the layouts ------------------------------------------------------------------------------------------


def _folder(path: Path, data: DataSet) -> _Raw:
    """One folder a class, all called as the classes or all by their numbers."""
    images: list[np.ndarray[Any, Any]] = []
    labels: list[int] = []
    left: Counter[str] = Counter()
    for label, place in enumerate(_places(path, data)):
        for file in folders.image_files(place, left):
            images.append(folders.read_image(file))
            labels.append(label)
            if images[-1].shape != images[0].shape:
                raise DataError(f"{file}: {images[-1].shape[:2]} pixels, others have {images[0].shape[:2]}")
    if not images:
        raise DataError(f"{path}: holds no image ({', '.join(sorted(folders.IMAGE_SUFFIXES))})")
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    if data.shape[0] == 1:
        if (pixels != pixels[:, :1]).any():
            raise DataError(f"{path}: images have colours, those of {data.name} are grey")
        pixels = pixels[:, :1].contiguous()
    notes = (f"not taken: {folders.kinds(left)}",) if left.total() else ()
    return _Raw(pixels, torch.tensor(labels), notes=notes)


def _places(path: Path, data: DataSet) -> list[Path]:
    """The folder of each class. One way of naming holds for all: class "1" is not taken for the class of number 1."""
    there = {place.name for place in path.iterdir() if place.is_dir() and not place.name.startswith(".")}
    numbers = range(data.n_classes)
    ways = [list(data.classes), *([form.format(n) for n in numbers] for form in ("{}", "{:02d}", "{:03d}"))]
    complete = [names for names in ways if set(names) <= there]
    if not complete:
        absent = next(name for name in data.classes if name not in there)
        needed = f"each class of {data.name} needs one, called as the class, or all by their numbers: 0, 1, .."
        raise DataError(f"{path}: no folder {absent!r}; {needed}")
    if any(names != complete[0] for names in complete[1:] if set(names) == set(complete[0])):
        raise DataError(f"{path}: its folders may be names or numbers of the classes of {data.name}; rename them")
    if more := sorted(there - set(complete[0])):
        raise DataError(f"{path}: folder {more[0]!r} is no class of {data.name}")
    return [path / name for name in complete[0]]


def _npz(path: Path) -> _Raw:
    """Our own file, known by its entries ipc and factor, or images and labels alone."""
    pack = files.read_npz(path, "an .npz with the entries images and labels", ("images", "labels"), most=sys.maxsize)
    if {"ipc", "factor"} <= set(pack):
        own = synthetic.read(path)
        notes = () if own.targets is None else ("its learned labels left out, one class an image",)
        return _Raw(own.levels, own.labels, own.factor, notes)
    arrays = [np.ascontiguousarray(pack[name]) for name in ("images", "labels")]
    if any(array.dtype.kind not in "uif" for array in arrays):
        raise DataError(f"{path}: images and labels are not both numbers")
    try:
        images, labels = (torch.from_numpy(array.astype(array.dtype.newbyteorder("="))) for array in arrays)
    except TypeError as error:
        raise DataError(f"{path}: numbers of a kind that PyTorch lacks ({error})") from error
    return _Raw(images, labels)


class _Unread:
    """Stands in for NumPy's numbers, which DC keeps beside its sets; what they hold is not looked at."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def _load(path: Path) -> Any:
    unread: list[Any] = [
        (_Unread, f"numpy.{name}") for name in ("dtype", "core.multiarray.scalar", "_core.multiarray.scalar")
    ]
    try:
        if zipfile.is_zipfile(path):
            with open(path, "rb") as archive:
                files.check_unpacked(archive)
        with torch.serialization.safe_globals(unread):
            return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch.load raises many kinds for a damaged file
        why = str(error).partition("\n")[0][:120]
        raise DataError(f"{path}: cannot be read as plain tensors, and nothing else is loaded ({why})") from error


def _tensors(path: Path, labels: str | Path | None, number: int) -> _Raw:
    """DC's dict, IDC's pair, or MTT's images with their labels in another file."""
    content = _load(path)
    notes: tuple[str, ...] = ()
    several = isinstance(content, dict) and isinstance(content.get("data"), list)
    apart = isinstance(content, Tensor)
    _refuse_unused(None if apart else labels, 1 if several else number, f"those that {path.name} has")
    if several:
        sets = content["data"]
        if not 1 <= number <= len(sets):
            raise SettingError("number", number, f"1 to {len(sets)}, the sets in {path.name}")
        content = sets[number - 1]
        notes = (f"set {number} of {len(sets)}",) if len(sets) > 1 else ()
    elif isinstance(content, dict) and {"images", "labels"} <= set(content):
        content = [content["images"], content["labels"]]
    if isinstance(content, Tensor):
        file = Path(labels).expanduser() if labels else path.with_name(path.name.replace("images", "labels", 1))
        if file == path or not file.is_file():
            raise DataError(f"{path}: holds images alone; name the file of their labels with --labels")
        content = [content, _load(file)]
        notes = (f"labels from {file.name}",)
    if not (isinstance(content, list | tuple) and len(content) == 2 and all(isinstance(t, Tensor) for t in content)):
        raise DataError(f"{path}: is neither [images, labels], a dict with 'data' or 'images' and 'labels', nor images")
    if any(t.is_complex() or t.is_quantized or t.layout != torch.strided for t in content):
        raise DataError(f"{path}: images and labels are not both dense tensors of real numbers")
    return _Raw(content[0].detach(), content[1].detach(), notes=notes)


# --- what it means ----------------------------------------------------------------------------------------


def _interpreted(raw: _Raw, data: DataSet, value_range: str | None, factor: int | None, name: str) -> ForeignSet:
    stored, order = raw.images, list[str]()
    channels, height, width = data.shape
    if stored.shape[1:] == (height, width, channels) != data.shape:
        stored, order = stored.permute(0, 3, 1, 2).contiguous(), ["channels stood last"]
    labels, kind = _labels(raw.labels, data)
    check_images(stored, labels, data, pixels=False)
    if not labels.is_floating_point() and (counts := labels.bincount(minlength=data.n_classes)).min() == 0:
        raise SettingError("labels", f"none of class {data.classes[int(counts.argmin())]!r}", "images of every class")
    pixels, values = _pixels(stored, data, value_range)
    if factor is not None and raw.factor not in (None, factor):
        raise SettingError("factor", factor, f"{raw.factor}, which the file says")
    tiles = factor or raw.factor or 1
    ipc = math.ceil(len(stored) / data.n_classes)
    words = [f"{len(stored)} images of {data.n_classes} classes", *raw.notes, *order, values, *kind]
    if tiles > 1:
        words.append(f"each decoded to {tiles**2} (factor {tiles})")
    images = synthetic.decode(pixels, tiles)
    return ForeignSet(images, labels.repeat_interleave(tiles**2, 0), ipc, tiles, f"{name}: {'; '.join(words)}")


def _labels(labels: Tensor, data: DataSet) -> tuple[Tensor, list[str]]:
    """Hard labels int64 (N,) or soft ones, as distributions float32 (N, n_classes), and what is to be told of them."""
    if labels.ndim == 2 and labels.shape[1] == data.n_classes > 1:
        soft = labels.float()
        if not soft.isfinite().all():
            raise SettingError("labels", "not finite", "finite numbers")
        if soft.min() >= 0 and torch.allclose(soft.sum(1), torch.ones(()), atol=1e-3):
            return soft / soft.sum(1, keepdim=True), ["soft labels"]
        return soft.softmax(1), ["soft labels, through a softmax"]
    if labels.is_floating_point() and (labels.frac() != 0).any():
        raise SettingError("labels", f"fractions of shape {tuple(labels.shape)}", f"(N, {data.n_classes}) if soft")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    return labels.long(), []


def _pixels(images: Tensor, data: DataSet, value_range: str | None) -> tuple[Tensor, str]:
    """Images on the scale of pixels, float32, and how their values were read."""
    if images.dtype == torch.uint8 and value_range in (None, "byte"):
        return images.float() / 255, "values 0 to 255"
    floats = images.float()
    low, high = (float(end) for end in floats.aminmax())
    seen = f"values {low:.3g} to {high:.3g}"
    if not math.isfinite(low + high):
        raise SettingError("values", f"{low:.3g} to {high:.3g}", "finite numbers")
    kind = value_range or _range(low, high, data)
    if kind is None:
        raise SettingError("values", f"{low:.3g} to {high:.3g}", "declared with --range unit, byte or normalised")
    told = f"{seen} {'declared' if value_range else 'read as'} {kind}"
    if kind == "normalised":
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (data.mean, data.std))
        floats = floats * std + mean
        told += f" with the statistics of {data.name}"
    elif kind == "byte":
        floats = floats / 255
    outside = float(((floats < -1e-3) | (floats > 1 + 1e-3)).float().mean())
    far = float(((floats < -FAR) | (floats > 1 + FAR)).float().mean())
    if far > MOSTLY and value_range != "normalised":
        allowed = f"pixels once the statistics of {data.name} are undone (whitened images are not); or say --range"
        raise SettingError("values", f"{low:.3g} to {high:.3g}", allowed)
    if outside:
        told += f", {100 * outside:.1f} % outside [0, 1], kept as they are"
    return floats, told


def _range(low: float, high: float, data: DataSet) -> str | None:
    """What values from `low` to `high` are beyond doubt: half the way to normalised black and white counts as there.

    Those that fill [-1, 1] may be pixels on the scale of generative networks, whatever the statistics of `data` are.
    """
    black = max(-m / s for m, s in zip(data.mean, data.std, strict=True))
    white = min((1 - m) / s for m, s in zip(data.mean, data.std, strict=True))
    if low >= -1e-3 and high <= 1 + 1e-3:
        return "unit"
    if low >= 0 and 32 < high <= 255:
        return "byte"
    if max(abs(low + 1), abs(high - 1)) < 1e-3:
        return None
    return "normalised" if low < black / 2 and high > white / 2 else None


# --- judged -----------------------------------------------------------------------------------------------


def experiment_of(judged: ForeignSet, **chosen: Any) -> Experiment:
    """The experiment that judges a set, which is known by its content; `chosen`: data, seed and evaluation.

    ``run(experiment_of(judged, ...), store, given=judged.small)`` makes its record.
    """
    about = {"method": "foreign", "ipc": judged.ipc, "factor": judged.factor, "set_sha256": judged.sha256}
    return Experiment.preset(**chosen | about)
