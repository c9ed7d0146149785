"""A data set at a glance: how many images each class has, what can be distilled from them, and a sheet of samples."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import write_atomic
from .dataset import DataSet

MARGIN = 2  # white pixels around each image of a sheet
LEAST_SIDE = 32  # smaller images are enlarged on a sheet, each pixel to a square
FACTORS = (1, 2, 3)  # tiles a side of a stored image


def lines(data: DataSet) -> list[str]:
    """What there is to know before distilling: classes, sizes, groups, the smallest class, the most images a class."""
    channels, height, width = data.shape
    colours = "grey" if channels == 1 else "RGB"
    train_counts, test_counts = (_counts(labels, data.n_classes) for labels in (data.train_labels, data.test_labels))
    result = [f"{data.name}: {data.n_classes} classes, {height} x {width} pixels, {colours} ({data.source})"]
    result += _table("class", data.classes, train_counts, test_counts)
    result.append(f"{'all':<24} {len(data.train_labels):>7} {len(data.test_labels):>7}")
    if data.group_names:
        groups = (_counts(groups, len(data.group_names)) for groups in (data.train_groups, data.test_groups))
        result += _table("group", data.group_names, *groups)
    least = min(train_counts)
    most = ", ".join(f"{least // factor**2} at factor {factor}" for factor in FACTORS)
    smallest = data.classes[train_counts.index(least)]
    result.append(f"smallest class: {smallest!r} with {least} training images; largest ipc: {most}")
    untested = [name for name, n in zip(data.classes, test_counts, strict=True) if n == 0]
    if untested:
        result.append(f"without test images: {', '.join(untested)}")
    result.append(f"sha256 {data.sha256}")
    return result


def _counts(of: Tensor | None, n: int) -> list[int]:
    """Images in each of n classes or groups; a part without groups has none."""
    return [0] * n if of is None else of.bincount(minlength=n).tolist()


def _table(head: str, names: Sequence[str], train: list[int], test: list[int]) -> list[str]:
    return [
        f"{name:<24} {a:>7} {b:>7}"
        for name, a, b in zip([head, *names], ["train", *train], ["test", *test], strict=True)
    ]


def samples(data: DataSet) -> Tensor:
    """The first ten training images of each class: uint8 (n_classes, 10, C, H, W), white where a class has fewer."""
    result = torch.full((data.n_classes, 10, *data.shape), 255, dtype=torch.uint8)
    for label, members in enumerate(data.members):
        first = members[:10]
        result[label, : len(first)] = data.train_images[first.to(data.train_images.device)].cpu()
    return result


def sheet(images: Tensor, path: str | Path) -> Path:
    """Write a table of images, uint8 (rows, columns, C, H, W) with C 1 or 3, as one PNG; whole or not at all."""
    from PIL import Image

    rows, columns, channels, height, _ = images.shape
    scale = max(1, LEAST_SIDE // height)
    cells = images.cpu().repeat_interleave(scale, 3).repeat_interleave(scale, 4)
    cells = F.pad(cells, (0, MARGIN, 0, MARGIN), value=255)  # below and on the right of each image
    tall, wide = cells.shape[3:]
    table = cells.permute(2, 0, 3, 1, 4).reshape(channels, rows * tall, columns * wide)
    canvas = F.pad(table, (MARGIN, 0, MARGIN, 0), value=255).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(canvas.squeeze(2) if channels == 1 else canvas).save(buffer, "PNG")
    return write_atomic(path, buffer.getvalue())
