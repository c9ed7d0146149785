"""The distilled set: pixels in [0, 1], one row of images a class, multi-formation decoding (IDC, Kim et al. 2022).

Stored images are never normalised; the data set's own statistics are applied where they are used. A set is saved
as uint8, and what is evaluated is what is saved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import files
from ..base import DataError, SettingError, digest
from ..data.dataset import DataSet


def class_labels(n_classes: int, per_class: int, device: torch.device | None = None) -> Tensor:
    """Labels of sets that go class by class: int64 (n_classes * per_class,)."""
    return torch.arange(n_classes, device=device).repeat_interleave(per_class)


@dataclass(frozen=True)
class SyntheticSet:
    """Distilled images (n_classes * ipc, C, H, W) in [0, 1], class by class, and how they are decoded.

    `factor` f: each stored image holds f x f tiles, each enlarged to full size: f**2 training images from one.
    `targets` (n_classes * ipc, n_classes) float: learned labels, where the method has them (KIP). `prior_sha256`: hash
    of the generator whose codes were optimised (GLaD), "" without one.
    """

    images: Tensor
    ipc: int
    factor: int = 1
    targets: Tensor | None = None
    prior_sha256: str = ""

    @property
    def labels(self) -> Tensor:
        """Labels of the stored images: int64 (n_classes * ipc,)."""
        return class_labels(len(self.images) // self.ipc, self.ipc, self.images.device)

    def to(self, device: torch.device) -> SyntheticSet:
        """The same set on another device."""
        targets = None if self.targets is None else self.targets.to(device)
        return replace(self, images=self.images.to(device), targets=targets)

    @property
    def sha256(self) -> str:
        """Content of the set as it is stored, in 256 levels."""
        return digest(f"{self.ipc} {self.factor}", self.levels.cpu())

    @property
    def levels(self) -> Tensor:
        """The images as they are stored, rounded to 256 levels: uint8 (n_classes * ipc, C, H, W)."""
        return levels(self.images)

    def of_class(self, c: int) -> Tensor:
        """The stored images of class `c`: (ipc, C, H, W); a view."""
        return self.images[c * self.ipc : (c + 1) * self.ipc]

    def decoded(self) -> tuple[Tensor, Tensor]:
        """Training images (n_classes * ipc * factor**2, C, H, W) and their labels."""
        return decode(self.images, self.factor), self.labels.repeat_interleave(self.factor**2)


def levels(images: Tensor) -> Tensor:
    """Images in [0, 1] rounded to 256 levels, what lies outside clipped: uint8 of their shape."""
    return (images.detach() * 255).round().clamp(0, 255).to(torch.uint8)


def decode(images: Tensor, factor: int) -> Tensor:
    """Multi-formation: cut (N, C, H, W) into factor x factor tiles, enlarge each bilinearly to H x W.

    Returns (N * factor**2, C, H, W), the tiles of one image side by side, row by row. A size that `factor` does not
    divide is padded with 0.5 at the right and the bottom. Differentiable. IDC section 4.1.
    """
    if factor == 1:
        return images
    n, c, h, w = images.shape
    padded = F.pad(images, (0, -w % factor, 0, -h % factor), value=0.5)
    th, tw = padded.shape[2] // factor, padded.shape[3] // factor
    tiles = padded.view(n, c, factor, th, factor, tw).permute(0, 2, 4, 1, 3, 5)
    return F.interpolate(tiles.reshape(-1, c, th, tw), size=(h, w), mode="bilinear", align_corners=False)


def encode(tiles: Tensor, factor: int) -> Tensor:
    """Shrink factor**2 images to the tiles of one: (N * factor**2, C, H, W) -> (N, C, H, W), nearest neighbour."""
    if factor == 1:
        return tiles
    c, h, w = tiles.shape[1:]
    th, tw = math.ceil(h / factor), math.ceil(w / factor)
    small = F.interpolate(tiles, size=(th, tw), mode="nearest").view(-1, factor, factor, c, th, tw)
    return small.permute(0, 3, 1, 4, 2, 5).reshape(-1, c, th * factor, tw * factor)[:, :, :h, :w].contiguous()


Choice = Literal["random", "greedy"]
CHOICES = get_args(Choice)


def choose_centres(
    synthetic: SyntheticSet,
    most: int,
    how: Choice,
    generator: torch.Generator,
    in_all: int | None = None,
    scope: str = "all",
) -> Tensor:
    """Indices of the stored images that act as cluster centres: all, or `most` a class where ipc is larger.

    `how` "random": section 4.1 of the paper (10 random synthetic samples where IPC exceeds 10). "greedy": as released,
    the first image, then always the one farthest, in pixels, from the one chosen last (new_strategy.py of the released
    code). With `in_all` instead that many random ones of all classes together, in order: section 4.1 read literally
    ("10 random synthesized samples chosen as the clustering centers"). Under scope "class" an image may join its own
    class only, so the classes then take turns: each has a centre, or one more.
    """
    ipc, count = synthetic.ipc, len(synthetic.images)
    first_of_class = range(0, count, ipc)
    if in_all is not None and scope == "all":
        return torch.randperm(count, generator=generator)[:in_all].sort().values
    if in_all is not None:
        orders = [torch.randperm(ipc, generator=generator) + first for first in first_of_class]
        return torch.stack(orders, 1).flatten()[:in_all].sort().values
    if ipc <= most:
        return torch.arange(count)
    if how == "greedy":
        chosen = [_farthest(synthetic.images[first : first + ipc], most) for first in first_of_class]
    else:
        chosen = [torch.randperm(ipc, generator=generator)[:most].sort().values for _ in first_of_class]
    return torch.cat([index + first for index, first in zip(chosen, first_of_class, strict=True)])


def _farthest(images: Tensor, most: int) -> Tensor:
    flat = images.flatten(1)
    chosen = [0]
    free = torch.ones(len(images), dtype=torch.bool, device=images.device)
    for _ in range(most - 1):
        free[chosen[-1]] = False
        gap = (flat - flat[chosen[-1]]).square().sum(1).masked_fill(~free, -1)
        chosen.append(int(gap.argmax()))
    return torch.tensor(chosen)


def draw_real(data: DataSet, ipc: int, generator: torch.Generator | None) -> Tensor:
    """Indices (n_classes * ipc,) of training images, `ipc` a class, without repetition.

    With `generator` None the first of each class are taken, as the loaders of IDC, RDD and DREAM do. Raises
    SettingError where a class has fewer.
    """
    _check_room(data, ipc)
    chosen = []
    for members in data.members:
        order = torch.randperm(len(members), generator=generator) if generator else torch.arange(len(members))
        chosen.append(members[order[:ipc]])
    return torch.cat(chosen)


def _check_room(data: DataSet, ipc: int) -> None:
    for name, members in zip(data.classes, data.members, strict=True):
        if len(members) < ipc:
            raise SettingError("ipc", ipc, f"at most {len(members)}: class {name!r} has no more images (tiles count)")


def herded(data: DataSet, ipc: int) -> Tensor:
    """Indices (n_classes * ipc,) of training images whose mean follows that of their class: herding (Welling 2009).

    One after another is chosen: the one that brings the mean of the chosen nearest to the mean of the class, in
    normalised pixels, without repetition. There is no chance in it. Source: the order of exemplars in iCaRL (2017).
    Raises SettingError where a class has fewer.
    """
    _check_room(data, ipc)
    chosen = []
    for members in data.members:
        points = data.normalise(data.train_images[members.to(data.train_images.device)]).flatten(1)
        mean = points.mean(0)
        total = torch.zeros_like(mean)
        taken = torch.zeros(len(points), dtype=torch.bool, device=points.device)
        for n in range(1, ipc + 1):
            gaps = (n * mean - total - points).square().sum(1).masked_fill(taken, torch.inf)
            best = int(gaps.argmin())
            taken[best] = True
            total += points[best]
            chosen.append(members[best])
    return torch.stack(chosen)


def start(
    data: DataSet, ipc: int, factor: int, generator: torch.Generator, index: Tensor | None = None
) -> SyntheticSet:
    """The initial set from real images: whole ones (factor 1) or, IDC's 'mix', one real image a tile.

    They are drawn, or those at `index` (n_classes * ipc * factor**2,), class after class.
    """
    if index is None:
        index = draw_real(data, ipc * factor**2, generator)
    tiles = data.train_images[index.to(data.train_images.device)]
    tiles = tiles.float() / 255 if tiles.dtype == torch.uint8 else tiles
    return SyntheticSet(encode(tiles, factor), ipc, factor)


def noise(data: DataSet, ipc: int, factor: int, generator: torch.Generator) -> SyntheticSet:
    """The initial set of DC: standard normal in normalised coordinates, so that many pixels lie outside [0, 1]."""
    shape = (data.n_classes * ipc, *data.shape)
    drawn = torch.randn(shape, generator=generator).to(data.train_images.device)
    mean, std = (torch.tensor(v, device=drawn.device).view(-1, 1, 1) for v in (data.mean, data.std))
    return SyntheticSet(drawn * std + mean, ipc, factor)


def quantised(synthetic: SyntheticSet) -> SyntheticSet:
    """The set as it is stored: rounded to 256 levels."""
    return replace(synthetic, images=synthetic.levels.to(synthetic.images.dtype) / 255)


def save(path: str | Path, synthetic: SyntheticSet, **about: str) -> Path:
    """Write a set to .npz: images uint8 (N, C, H, W), labels, ipc, factor, learned labels if it has them, and text
    entries `about` it, sealed with a checksum. Atomic."""
    entries: dict[str, Any] = {
        "images": synthetic.levels.cpu().numpy(),
        "labels": synthetic.labels.cpu().numpy(),
        "ipc": synthetic.ipc,
        "factor": synthetic.factor,
    }
    entries |= {name: np.array(text) for name, text in about.items()}
    if synthetic.targets is not None:
        entries["targets"] = synthetic.targets.detach().cpu().float().numpy()
    if synthetic.prior_sha256:
        entries["prior_sha256"] = np.array(synthetic.prior_sha256)
    return files.write_npz(path, entries)


def read(path: str | Path) -> SyntheticSet:
    """Read a set written by `save`. Raises DataError, with the file's name, where it is missing or damaged."""
    entries = files.read_npz(path, "a distilled set", ("images", "ipc", "factor"))
    images, ipc, factor = entries["images"], int(entries["ipc"]), int(entries["factor"])
    if images.dtype != np.uint8 or images.ndim != 4 or ipc < 1 or factor < 1 or len(images) % ipc:
        raise DataError(f"{path}: images {images.dtype} {images.shape}, ipc {ipc}, factor {factor} do not fit together")
    expected = class_labels(len(images) // ipc, ipc).numpy()
    if "labels" in entries and not np.array_equal(entries["labels"], expected):
        raise DataError(f"{path}: its labels are not {ipc} of each class in turn, as ipc says")
    targets = torch.from_numpy(entries["targets"]) if "targets" in entries else None
    if targets is not None and targets.shape != (len(images), len(images) // ipc):
        raise DataError(f"{path}: learned labels {tuple(targets.shape)} do not fit {len(images)} images, ipc {ipc}")
    prior_sha256 = str(entries.get("prior_sha256", ""))
    return SyntheticSet(torch.from_numpy(images).float() / 255, ipc, factor, targets, prior_sha256)


def about(path: str | Path) -> dict[str, str]:
    """The text entries of a set's file. Raises DataError as `read`."""
    entries = files.read_npz(path, "a distilled set")
    return {name: str(array) for name, array in entries.items() if array.dtype.kind == "U"}
