"""Data sets as uint8 tensors: one call, `load`, for the embedded digits, packs, torchvision and image folders.

The images stay uint8 until they are used, so CIFAR-10 takes 184 MB and travels to a device in one copy
(the idea of KellerJordan/cifar10-airbench). Nothing is downloaded unless `download=True` is said.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..base import SettingError, check_type, digest, home, numpy_generator
from . import looks, sources

# Channel statistics as the field uses them (IDC data.py; the std is the mean of per-image stds).
STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
PARTS = ("train", "test")


@dataclass(frozen=True)
class DataSet:
    """A labelled image set with a train and a test part, all on one device.

    Images are uint8 (N, C, H, W), labels int64 (N,) in [0, n_classes). `mean` and `std` are per channel, of
    images scaled to [0, 1]. Where the group of each image is known, `train_groups` and `test_groups` are int64 (N,) in
    [0, len(group_names)); either may be None. `sha256` covers images, labels and groups of both parts as they are here.
    `held_out`: the test part was held out from the training part (`validation`).
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str
    sha256: str
    train_groups: Tensor | None = None
    test_groups: Tensor | None = None
    group_names: tuple[str, ...] = ()
    held_out: bool = False

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        c, h, w = self.train_images.shape[1:]
        return c, h, w

    @cached_property
    def members(self) -> list[Tensor]:
        """Indices of the training images of each class, in order, on the host."""
        labels = self.train_labels.cpu()
        return [(labels == c).nonzero().flatten() for c in range(self.n_classes)]

    @cached_property
    def host_groups(self) -> Tensor:
        """`train_groups` on the host, where batches are drawn. SettingError where the data has none."""
        if self.train_groups is None:
            raise SettingError("groups_from", "labels", f"'nearest' or 'found': {self.name} has no labels of groups")
        return self.train_groups.cpu()

    def to(self, device: str | torch.device) -> DataSet:
        """The same set with its tensors on `device`."""
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return replace(self, **moved)

    def tensors(self) -> dict[str, Tensor]:
        """Images, labels and, where they are known, groups of both parts, by the names of the fields."""
        fields = [f"{part}_{kind}" for part in PARTS for kind in ("images", "labels", "groups")]
        return {name: getattr(self, name) for name in fields if getattr(self, name) is not None}

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 or [0, 1] float images (N, C, H, W) -> float32 (float64 stays it): zero mean, unit scale a channel."""
        floats = images.to(torch.promote_types(images.dtype, torch.float32))
        if images.dtype == torch.uint8:
            floats = floats / 255
        mean, std = (by_channel(v, images.device, floats.dtype) for v in (self.mean, self.std))
        return (floats - mean) / std

    def validation(self, share: float = 0.1, seed: int = 0) -> DataSet:
        """The train part split in two, the test part dropped: settings are chosen here, never on test data.

        `share` of each class is held out, or of each group of each class where the groups are known; groups go with
        their images. The split has a `sha256` of its own.
        """
        if not 0 < share < 1:
            raise SettingError("share", share, "a value between 0 and 1")
        cell = self.train_labels
        if self.train_groups is not None:
            cell = self.train_groups * self.n_classes + self.train_labels
        held = sources.stratified(cell.cpu().numpy(), share, numpy_generator(seed, "validation"))
        keep = torch.from_numpy(~held).to(self.train_labels.device)
        parts: dict[str, Any] = {}
        for kind in ("images", "labels", "groups"):
            values = getattr(self, f"train_{kind}")
            if values is not None:
                parts |= {f"train_{kind}": values[keep], f"test_{kind}": values[~keep]}
        source = f"{self.source}, validation part (share {share}, seed {seed})"
        parts = {"test_groups": None} | parts | {"sha256": content_hash(parts)}
        return replace(self, **parts, source=source, held_out=True)


def content_hash(parts: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of images, labels and groups in the order of their names, as `DataSet.tensors` names them."""
    return digest(*(parts[name] for name in sorted(parts)))


@lru_cache(maxsize=64)
def by_channel(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """One number a channel as a tensor (C, 1, 1), made once: each copy from the host makes a GPU wait."""
    with torch.inference_mode(False):  # else the one that is kept could not enter a gradient later
        return torch.tensor(values, device=device, dtype=dtype).view(-1, 1, 1)


def load(
    name: str = "digits",
    root: str | Path | None = None,
    device: str | torch.device = "cpu",
    size: int | None = None,
    train_limit: int | None = None,
    test_limit: int | None = None,
    download: bool = False,
    held_out: float | None = None,
) -> DataSet:
    """Load a data set by name.

    `name`: ``digits`` (embedded), ``cifar10``, ``svhn``, an ImageNet subset (``imagenet10``, ``imagenet_a`` ..
    ``imagenet_e``, ``imagenette``), ``folder:PATH``, ``npz:PATH``, or the name of any ``<name>.npz`` under `root`; or a
    set with known groups (``rare_digits``, ``coloured_cifar10`` ...) that `looks` makes from one of these.
    cifar10 and names that begin with svhn or imagenet are normalised by `STATISTICS`, others by their training part.
    SVHN is read from train_32x32.mat and test_32x32.mat in `root` or `root`/svhn; ImageNet from train/<wnid> and
    val/<wnid> (or folders called as the classes) in `root`/imagenet, `root`/<name> or `root`, at 128 px by default.
    Groups of images are read where a pack or a folder tells them (`sources.read_npz`, `folders.read_folder`).
    `root`: where to look; default $RDD_DATA, else data/cache. `size`: resize to size x size (bilinear, antialiased).
    `train_limit`, `test_limit`: keep that many images, the same number of each class, drawn with a fixed seed.
    `held_out`: test on that share of the training part instead (`DataSet.validation`). What `looks` makes is made of
    what these leave: a limit counts images before each test image gets its two looks, held-out ones get both too.
    Raises SettingError for an unknown name, size or limit, DataError for missing or damaged data. Cost on one core,
    packs: CIFAR-10 1 s, 184 MB (peak 0.5 GB); Imagenette at 64 px 7 s, 165 MB (peak 1.2 GB).
    """
    check_type("name", name, str, "the name of a data set, a text")
    for key, value in {"size": size, "train_limit": train_limit, "test_limit": test_limit}.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1):
            raise SettingError(key, value, "an integer of at least 1")
    recipe = looks.recipe(name)
    if recipe is not None:
        base = load(recipe.base, root, device, size, train_limit, test_limit, download, held_out)
        return _with_looks(base, recipe, name)
    folder = data_root(root)
    arrays, source = sources.find(name, folder, size, download)
    _check(arrays, source)
    arrays["group_names"] = _checked_group_names(arrays, source)
    limits = {"train": train_limit, "test": test_limit}
    parts: dict[str, Any] = {}
    for part, limit in limits.items():
        images, labels = arrays.pop(f"{part}_images"), arrays[f"{part}_labels"].astype(np.int64)
        if limit is not None and limit > len(labels):
            raise SettingError(f"{part}_limit", limit, f"at most {len(labels)}, the images there are; None for all")
        keep = balanced(labels, limit, part)
        if len(keep) < len(labels):
            images = images[keep]
        parts[f"{part}_images"] = resized(torch.from_numpy(images).permute(0, 3, 1, 2), size)
        del images  # a large set is not kept twice
        parts[f"{part}_labels"] = torch.from_numpy(labels[keep])
        if f"{part}_groups" in arrays:
            parts[f"{part}_groups"] = torch.from_numpy(arrays[f"{part}_groups"].astype(np.int64)[keep])
    mean, std = _statistics(name, parts["train_images"])
    data = DataSet(
        name=sources.label(name),
        classes=tuple(str(c) for c in arrays["classes"]),
        mean=mean,
        std=std,
        source=source,
        sha256=content_hash(parts),
        group_names=tuple(str(g) for g in arrays["group_names"]),
        **parts,
    ).to(device)
    return data if held_out is None else data.validation(held_out)


def _with_looks(base: DataSet, recipe: looks.Recipe, name: str) -> DataSet:
    """The set with known groups `name`, made from `base`."""
    train_images, train_groups = recipe.train(base.train_images, base.train_labels)
    test_images, test_labels, test_groups = recipe.test(base.test_images, base.test_labels)
    parts: dict[str, Any] = {
        "train_images": train_images,
        "train_labels": base.train_labels,
        "train_groups": train_groups,
        "test_images": test_images,
        "test_labels": test_labels,
        "test_groups": test_groups,
    }
    mean, std = _statistics(base.name, train_images)
    words = "colour by class" if recipe.kind == "coloured" else f"rare look {recipe.look}"
    source = f"{base.source}; {words}, share {recipe.share:g} of the training images"
    parts |= {"mean": mean, "std": std, "group_names": recipe.group_names, "sha256": content_hash(parts)}
    return replace(base, name=name, source=source, **parts)


def _check(arrays: sources.Arrays, source: str) -> None:
    """Shapes, dtypes and label ranges; the message names the file and the array."""
    for name in {"classes", "group_names"} & arrays.keys():
        if arrays[name].ndim != 1 or len(set(arrays[name].tolist())) < len(arrays[name]):
            raise sources.DataError(f"{source}: {name} is no list of different names")
    n_classes = len(arrays["classes"])
    for part in PARTS:
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        square = images.ndim == 4 and images.shape[3] in (1, 3) and images.shape[1] == images.shape[2]
        if images.dtype != np.uint8 or not square or images.shape[1] == 0:
            given = f"{part}_images is {images.dtype} {images.shape}"
            raise sources.DataError(f"{source}: {given}; needed is uint8 (N, S, S, 1 or 3)")
        _check_integers(f"{part}_labels", labels, len(images), n_classes, "classes", source)
    train_shape, test_shape = arrays["train_images"].shape[1:], arrays["test_images"].shape[1:]
    if train_shape != test_shape:
        raise sources.DataError(f"{source}: train images {train_shape} and test images {test_shape} differ in shape")
    counts = np.bincount(arrays["train_labels"].astype(np.int64), minlength=n_classes)
    if counts.min() == 0:
        raise sources.DataError(f"{source}: class {int(counts.argmin())} has no training image")


def _checked_group_names(arrays: sources.Arrays, source: str) -> NDArray[Any]:
    """Names of the groups, their numbers by default; DataError where groups do not fit the images or the names."""
    groups = {part: arrays[f"{part}_groups"] for part in PARTS if f"{part}_groups" in arrays}
    highest = max((int(of.max()) for of in groups.values() if of.size and of.dtype.kind in "iu"), default=-1)
    names = arrays.get("group_names", np.array([str(g) for g in range(highest + 1)]))
    for part, of in groups.items():
        _check_integers(f"{part}_groups", of, len(arrays[f"{part}_images"]), len(names), "groups", source)
    return names


def _check_integers(name: str, values: NDArray[Any], n: int, below: int, kind: str, source: str) -> None:
    """DataError unless `values` are integers (n,) in [0, below), n at least 1."""
    if values.shape != (n,) or values.dtype.kind not in "iu":
        raise sources.DataError(f"{source}: {name} is {values.dtype} {values.shape}; needed is an integer ({n},)")
    if len(values) == 0 or values.min() < 0 or values.max() >= below:
        span = f"{values.min()}..{values.max()}" if len(values) else "nothing"
        allowed = f"0..{below - 1} ({below} {kind}), not empty"
        raise sources.DataError(f"{source}: {name} holds {span}; allowed is {allowed}")


def data_root(root: str | Path | None = None) -> Path:
    """The folder where packs are looked for: `root`, else $RDD_DATA, else cache/ of `base.home()`."""
    if root == "":
        raise SettingError("data_root", root, "a folder; leave it out for the default")
    return Path(root or os.environ.get("RDD_DATA") or home() / "cache").expanduser()


def balanced(labels: NDArray[np.int64], limit: int | None, part: str) -> NDArray[np.int64]:
    """Indices of at most `limit` images, as even over classes as the class sizes allow; all of them by default."""
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    classes = np.unique(labels)
    if limit < len(classes):
        raise SettingError(f"{part}_limit", limit, f"at least one image of each of the {len(classes)} classes")
    order = numpy_generator(0, "limit", part).permutation(len(labels))
    rank = np.empty(len(labels), np.int64)  # position of an image within its class, in the drawn order
    for c in classes:
        members = order[labels[order] == c]
        rank[members] = np.arange(len(members))
    return np.sort(order[np.argsort(rank[order], kind="stable")[:limit]])


def resized(images: Tensor, size: int | None) -> Tensor:
    """Resize uint8 (N, C, H, W) to squares of `size` px, bilinear and antialiased; no size leaves them as they are."""
    if size is None or images.shape[-1] == size:
        return images.contiguous()
    batch = max(1, 16_000_000 // images[0].numel())  # 64 MB of floats at a time
    parts = []
    for part in images.split(batch):
        floats = F.interpolate(part.contiguous().float(), size=(size, size), mode="bilinear", antialias=True)
        parts.append(floats.round().clamp(0, 255).to(torch.uint8))
    return torch.cat(parts)


def _statistics(name: str, images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    key = next((k for k in ("svhn", "imagenet") if name.startswith(k)), name)  # svhn_mini; but cifar100 is no cifar10
    if key in STATISTICS and images.shape[1] == 3:
        return STATISTICS[key]
    mean, std = [], []
    for channel in images.unbind(1):
        floats = channel.double()
        mean.append(float(floats.mean() / 255))
        std.append(max(float(floats.std() / 255), 1e-3))
    return tuple(mean), tuple(std)
