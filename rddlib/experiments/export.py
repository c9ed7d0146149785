"""A distilled set in the forms that other tools read: class folders of PNGs, one picture, or a pair of tensors."""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from .. import files
from ..base import SettingError, WriteError, write_atomic
from ..data.summary import sheet
from ..distillation import synthetic
from ..distillation.synthetic import SyntheticSet
from .records import Store, StoreError


def load_set(source: str | Path, store: Store | str | Path | None = None) -> SyntheticSet:
    """A distilled set from its file, or that of the record whose key begins so.

    `store`: where the record is, a Store or its folder (default: the usual one).
    ``images, labels = rddlib.load_set("KEY").decoded()`` gives what to train on: float32 (N, C, H, W) in [0, 1], not
    normalised, and int64 (N,). Raises DataError for a damaged file, StoreError where there is no such set.
    """
    file = Path(source).expanduser()
    if file.suffix != ".npz":
        kept = Store.of(store)
        record = kept.match(str(source))
        file = kept.distilled(record.set_name)
        if not file.is_file():
            method = record.experiment["method"]
            why = "is not here" if record.set_key else f"was never kept: its method is {method}, which distils nothing"
            raise StoreError(f"{record.key}: the set of this record {why}")
    return synthetic.read(file)


def _images(distilled: SyntheticSet, stored: bool) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) in [0, 1] and labels (N,), class by class: as one trains on them, or as `stored`."""
    return (distilled.images, distilled.labels) if stored else distilled.decoded()


def as_png(distilled: SyntheticSet, folder: str | Path, stored: bool = False) -> int:
    """Write FOLDER/<number of the class>/<number>.png, all or none; the number of images. Refuses a folder with files.

    Tiles that were enlarged in decoding are rounded to 8 bits. `foreign.read` reads the folder back.
    """
    from PIL import Image

    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingError("png", folder.name, "a folder that is new or empty")
    images, labels = _images(distilled, stored)
    numbers = [0] * (int(labels.max()) + 1)
    with _whole_folder(folder) as place:  # some classes of a set are no set
        for image, label in zip(synthetic.levels(images), labels.tolist(), strict=True):
            pixels = image.permute(1, 2, 0).numpy()
            buffer = io.BytesIO()
            Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
            write_atomic(place / str(label) / f"{numbers[label]:04d}.png", buffer.getvalue())
            numbers[label] += 1
    return len(images)


@contextlib.contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """A place to fill, which takes the name of `folder` (new or empty) when all is done, and goes if it is not.

    What a call for the same folder that was killed has left beside it goes too.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{folder.name}.rddlib-"
        for left in (path for path in folder.parent.iterdir() if path.name.startswith(prefix)):
            if time.time() - left.stat().st_mtime > files.LITTER_AGE:
                shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as temporary:
            yield Path(temporary, "whole")
            Path(temporary, "whole").replace(folder)
    except WriteError:
        raise
    except OSError as error:
        raise WriteError(f"{folder}: cannot be written ({error.strerror or error})") from error


def as_grid(distilled: SyntheticSet, file: str | Path, stored: bool = False) -> int:
    """Write all images as one PNG, a row a class; the number of images."""
    images, labels = _images(distilled, stored)
    n_classes = int(labels.max()) + 1
    sheet(synthetic.levels(images).unflatten(0, (n_classes, -1)), new_file(file, "grid"))
    return len(images)


def as_tensors(distilled: SyntheticSet, file: str | Path, stored: bool = False) -> int:
    """Write [images, labels] with torch.save: float32 (N, C, H, W) in [0, 1] and int64 (N,); the number of images.

    ``images, labels = torch.load(FILE, weights_only=True)`` reads it. It is the layout of IDC's data.pt.
    """
    images, labels = _images(distilled, stored)
    buffer = io.BytesIO()
    torch.save([images.clone(), labels.clone()], buffer)
    write_atomic(new_file(file, "pt"), buffer.getvalue())
    return len(images)


def new_file(file: str | Path, option: str) -> Path:
    """The path that an option names, refused where something is there already (SettingError)."""
    file = Path(file).expanduser()
    if file.exists():
        raise SettingError(option, file.name, "a file that is not there yet")
    return file
