"""Where image data comes from: the embedded digits, .npz packs, image folders, SVHN's files, torchvision.

Each reader returns plain arrays: train_images, test_images uint8 (N, H, W, C); train_labels, test_labels (N,);
classes (K,); and, where they are known, train_groups, test_groups (N,) and group_names (G,). `rddlib.data.dataset`
turns them into tensors. Nothing here writes, and no pickle is ever loaded.
"""

from __future__ import annotations

import csv
import difflib
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .. import files
from ..base import DataError as DataError
from ..base import SettingError, resources
from .folders import Arrays as Arrays
from .folders import read_folder

ENTRIES = ("train_images", "train_labels", "test_images", "test_labels", "classes")
PACK = f"an .npz with keys {', '.join(ENTRIES)}"
GROUP_ENTRIES = ("train_groups", "test_groups", "group_names")

# ImageNet subsets, wnid and name of each class in the order of the labels. ImageNet-10: IDC; A-E: GLaD; Imagenette:
# fast.ai. The pairs are those of ImageNet's LOC_synset_mapping.txt.
with open(resources() / "paper" / "imagenet_subsets.csv", encoding="utf-8") as _file:
    _ROWS = list(csv.DictReader(_file))
CLASS_NAMES = {row["wnid"]: row["name"] for row in _ROWS}
SUBSETS: dict[str, tuple[str, ...]] = {}
for _row in _ROWS:
    SUBSETS[_row["subset"]] = (*SUBSETS.get(_row["subset"], ()), _row["wnid"])
KNOWN = ("digits", "cifar10", "svhn", *SUBSETS)


# --- where a name leads -----------------------------------------------------------------------------------


def find(name: str, root: Path, size: int | None, download: bool) -> tuple[Arrays, str]:
    """The arrays of the data set `name` and a line that says where they came from.

    Raises SettingError for a name that leads nowhere, DataError where it leads to missing or damaged data.
    """
    kind, _, path = name.partition(":")
    if name == "digits":
        return _digits(), "scikit-learn load_digits (UCI optical digits), fixed stratified split"
    if kind == "npz" and path:
        return read_npz(Path(path).expanduser()), path_label(Path(path))
    if kind == "folder" and path:
        return read_folder(Path(path).expanduser(), size), path_label(Path(path))
    for pack in (f"{name}.npz", f"{name}128.npz"):  # Imagenette travels as imagenette128.npz
        if (root / pack).is_file() and "/" not in name:
            return read_npz(root / pack), pack
    if name == "cifar10":
        return _cifar10(root, download), "torchvision cifar10"
    if name == "svhn":
        return _svhn(root, download), "train_32x32.mat and test_32x32.mat"
    if name in SUBSETS:
        return _imagenet(name, root, size), f"ImageNet folder, {name}"
    raise _unknown(name, root)


def check_name(name: str, root: Path) -> None:
    """Raise SettingError for a name that can be no data set's; whether its data are there is not looked at."""
    kind, _, path = name.partition(":")
    packs = (root / f"{name}.npz", root / f"{name}128.npz")
    if name not in KNOWN and not (kind in ("npz", "folder") and path) and not any(pack.is_file() for pack in packs):
        raise _unknown(name, root)


def _unknown(name: str, root: Path) -> SettingError:
    known = f"{', '.join(KNOWN)}, rare_ or coloured_ before digits or cifar10"
    allowed = f"{known}, folder:PATH, npz:PATH, or a NAME with NAME.npz in {root}"
    return SettingError("dataset", name, allowed + _hint(name, root))


def _hint(name: str, root: Path) -> str:
    """The data set that was probably meant, as the end of a message; "" if none comes close."""
    known = (*KNOWN, *sorted(pack.stem for pack in root.glob("*.npz")))
    by_letters = {_letters(k): k for k in known}
    close = difflib.get_close_matches(_letters(name), by_letters, n=1)
    if close:
        return f". Did you mean {by_letters[close[0]]!r}?"
    for kind, is_it in (("npz", Path.is_file), ("folder", Path.is_dir)):
        if is_it(Path(name).expanduser()):
            return f". Did you mean {kind + ':' + name!r}?"
    return ""


def own_path(name: str) -> Path | None:
    """Where the user's own data lie, for a name like npz:PATH or folder:PATH; None for every other name."""
    kind, _, path = name.partition(":")
    return Path(path).expanduser() if kind in ("npz", "folder") and path else None


def label(name: str) -> str:
    """A data set's name as records and files bear it: of a path its last part alone, as in ``npz:pets.npz``."""
    path = own_path(name)
    return name if path is None else f"{name.partition(':')[0]}:{path_label(path)}"


def stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of the files at `path`, for telling cheaply that nothing has changed; () if none."""
    paths = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [(str(file), file.stat()) for file in paths if file.is_file()]
    return tuple((name, status.st_size, status.st_mtime_ns) for name, status in stats)


def path_label(path: Path) -> str:
    """How a source is named in records: the last part of its path, never the machine's folders."""
    return path.name if path.name not in ("", "..") else path.resolve().name


def stratified(labels: NDArray[Any], share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """A mask (N,) that is True for `share` of each class, drawn by `rng`."""
    mask = np.zeros(len(labels), bool)
    for c in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == c))
        mask[members[: round(share * len(members))]] = True
    return mask


def _digits() -> Arrays:
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = np.round(raw.images * (255 / 16)).astype(np.uint8)[..., None]  # (1797, 8, 8, 1), 17 grey levels
    test = stratified(raw.target, 0.4, np.random.default_rng(0))
    return {
        "train_images": images[~test],
        "train_labels": raw.target[~test],
        "test_images": images[test],
        "test_labels": raw.target[test],
        "classes": np.array([str(digit) for digit in range(10)]),
    }


def read_npz(path: Path) -> Arrays:
    """Read a pack: train_images, test_images uint8 (N, H, W, C); train_labels, test_labels (N,); classes (K,).

    It may hold groups too: train_groups, test_groups, integers (N,) in [0, G), and group_names (G,).
    """
    if not path.is_file():
        raise DataError(f"no data: looked for the file {path}. Give the path of {PACK}.")
    return files.read_npz(path, PACK, ENTRIES, GROUP_ENTRIES, most=sys.maxsize)


# --- ImageNet -------------------------------------------------------------------------------------------------


def _imagenet(name: str, root: Path, size: int | None) -> Arrays:
    for folder in (root / "imagenet", root / name, root):
        class_folders = _class_folders(folder / "train", SUBSETS[name])
        if not class_folders:
            continue
        for part in (folder / "train", folder / "val"):
            absent = [each for each in class_folders if not (part / each).is_dir()]
            if absent:
                raise DataError(f"{part}: no folder {absent[0]!r}; {name} needs one for each of its classes")
        arrays = read_folder(folder, size or 128, class_folders)
        return arrays | {"classes": np.array([CLASS_NAMES[wnid] for wnid in SUBSETS[name]])}
    raise DataError(
        f"no data for {name!r}: looked for {root / (name + '.npz')} and for the folders "
        f"{root}/imagenet/train/{SUBSETS[name][0]}, ... Either set RDD_DATA (or --data-root) to the folder that "
        f"holds imagenet/train and imagenet/val by wnid, or put {name}.npz there."
    )


def _class_folders(train: Path, wnids: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the class folders in the order of the labels: wnids, or else exactly the classes' names; () if neither.

    Names are compared by their letters alone, so ``green_mamba`` will do for ``green mamba``.
    """
    by_letters = {_letters(d.name): d.name for d in sorted(train.glob("*")) if d.is_dir()}
    if any(wnid in by_letters for wnid in wnids):
        return wnids
    names = [by_letters.get(_letters(CLASS_NAMES[wnid])) for wnid in wnids]
    return tuple(name for name in names if name is not None) if all(names) else ()


def _letters(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


# --- SVHN's own files -------------------------------------------------------------------------------------


def _svhn(root: Path, download: bool) -> Arrays:
    parts = {part: f"{part}_32x32.mat" for part in ("train", "test")}
    folder = next((f for f in (root, root / "svhn") if all((f / file).is_file() for file in parts.values())), None)
    if folder is None and download:
        datasets: Any = import_torchvision("torchvision.datasets")
        for part in parts:
            datasets.SVHN(root, split=part, download=True)
        folder = root
    if folder is None:
        raise DataError(
            f"no data for 'svhn': looked for {root / 'svhn.npz'}, and for {' and '.join(parts.values())} there and in "
            f"{root / 'svhn'}. Either set RDD_DATA (or --data-root) to the folder that has them, or allow the download "
            f"with --download."
        )
    arrays: Arrays = {"classes": np.array([str(d) for d in range(10)])}
    for part, file in parts.items():
        arrays[f"{part}_images"], arrays[f"{part}_labels"] = _read_mat(folder / file)
    return arrays


def _read_mat(file: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (N, 32, 32, 3) and labels (N,) of a cropped-digits file: X (32, 32, 3, N), y (N, 1) with 10 for zero."""
    from scipy.io import loadmat

    try:
        raw = loadmat(file, variable_names=("X", "y"))
        images, labels = raw["X"], raw["y"].astype(np.int64).reshape(-1)
    except Exception as error:  # damaged files raise many kinds; a missing variable is a KeyError
        raise DataError(f"{file}: cannot be read as a .mat file with X and y ({error})") from error
    if images.ndim != 4 or images.shape[2:] != (3, len(labels)) or not set(np.unique(labels)) <= set(range(11)):
        raise DataError(f"{file}: X is {images.shape}, y {labels.shape}; needed is (32, 32, 3, N) and (N,) in 1..10")
    return np.ascontiguousarray(images.transpose(3, 0, 1, 2)), labels % 10


# --- torchvision ------------------------------------------------------------------------------------------


def _cifar10(root: Path, download: bool) -> Arrays:
    datasets: Any = import_torchvision("torchvision.datasets")
    try:
        train, test = (datasets.CIFAR10(root, train=part, download=download) for part in (True, False))
    except RuntimeError as error:
        raise DataError(
            f"no data for 'cifar10': looked for {root / 'cifar10.npz'} and for torchvision's files there ({error}). "
            f"Either set RDD_DATA (or --data-root) to the folder that has them, or allow the download with --download."
        ) from error
    return {
        "train_images": train.data,
        "train_labels": np.array(train.targets),
        "test_images": test.data,
        "test_labels": np.array(test.targets),
        "classes": np.array(train.classes),
    }


_SCHEMAS: list[Any] = []  # a torch.library.Library lives only as long as something holds it


def import_torchvision(module: str = "torchvision") -> ModuleType:
    """Import torchvision, also where its wheel was built for CUDA and torch for the CPU only.

    There its compiled operators are absent and the import stops at `torchvision::nms does not exist`. Declaring
    the two schemas lets the Python part in, which is all that data sets and transforms need.
    """
    try:
        return importlib.import_module(module)
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library: Any = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _SCHEMAS.append(library)
    return importlib.import_module(module)
