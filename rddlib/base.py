"""What every other module leans on: declared settings, explicit seeds, atomic files.

Nothing here knows about risk or images. It stands first in the layering so that each of these is written once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

ALIGNED = 16  # bytes


class SettingError(ValueError):
    """A setting that cannot be used. The message names the setting, the value and what is allowed."""

    def __init__(self, name: str, value: object, allowed: str) -> None:
        super().__init__(f"{name} = {value!r}: allowed is {allowed}")
        self.name, self.value, self.allowed = name, value, allowed


class DataError(RuntimeError):
    """Data that is missing or damaged. The message names the file, what is wrong, and what to do."""


class DivergenceError(ArithmeticError):
    """A run whose numbers are no longer finite. The message names the step and the setting to look at."""


def setting(
    default: Any,
    meaning: str,
    *,
    choices: Iterable[Any] | None = None,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
) -> Any:
    """Declare one field of a settings dataclass: its default, one line of meaning, and what is allowed.

    `choices` lists the values; `low` and `high` are inclusive bounds, `above` an exclusive lower bound.
    The same declaration feeds validation (`check_settings`), the command line's help and the book.
    """
    meta = {
        "meaning": meaning,
        "choices": None if choices is None else tuple(choices),
        "low": low,
        "high": high,
        "above": above,
    }
    return dataclasses.field(default=default, metadata=meta)


def allowed_values(field: dataclasses.Field[Any]) -> str:
    """What a field may hold, in words, e.g. ``'a float above 0 and at most 1'``."""
    meta = field.metadata
    if meta.get("choices"):
        return "one of " + ", ".join(map(str, meta["choices"]))
    bounds = [
        f"above {meta['above']}" if meta.get("above") is not None else "",
        f"at least {meta['low']}" if meta.get("low") is not None else "",
        f"at most {meta['high']}" if meta.get("high") is not None else "",
    ]
    return " ".join([f"a value of type {field.type}", " and ".join(b for b in bounds if b)]).strip()


def check_settings(settings: Any) -> None:
    """Check every field of a dataclass made with `setting`.

    Raises SettingError at the first field whose type or value is off. A bool is not taken for an int.
    """
    for field in dataclasses.fields(settings):
        check_setting(field, getattr(settings, field.name))


def check_setting(field: dataclasses.Field[Any], value: Any) -> None:
    """Raise SettingError where `value` is not of the type or in the range that one field declares."""
    meta = field.metadata
    if meta and not (_type_fits(value, str(field.type)) and _value_fits(value, meta)):
        raise SettingError(field.name, value, allowed_values(field))


def _type_fits(value: object, kind: str) -> bool:
    kinds = {k.strip() for k in kind.split("|")}
    if value is None:
        return "None" in kinds
    if isinstance(value, bool):
        return "bool" in kinds
    if isinstance(value, int):
        return bool({"int", "float"} & kinds)
    return type(value).__name__ in kinds


def _value_fits(value: Any, meta: Any) -> bool:
    if value is None:
        return True
    if meta["choices"] and value not in meta["choices"]:
        return False
    if isinstance(value, float) and not np.isfinite(value):
        return False
    return not (
        (meta["low"] is not None and value < meta["low"])
        or (meta["high"] is not None and value > meta["high"])
        or (meta["above"] is not None and value <= meta["above"])
    )


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed from a seed and what it is for, by SHA-256: streams of different purposes are unrelated.

    Two arms of a comparison that share `seed` share every stream of the same purpose (common random numbers).
    """
    text = json.dumps([int(seed), *purpose])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int, device: str = "cpu") -> torch.Generator:
    """A torch generator for one purpose, e.g. ``generator(0, "real batches", class_index)``."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *purpose))


def numpy_generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A NumPy generator for one purpose; the twin of `generator`."""
    return np.random.default_rng(derive_seed(seed, *purpose))


def digest(*parts: Any) -> str:
    """SHA-256 (hex) of strings, bytes and arrays; an array counts with its shape and dtype."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            part = part.detach().cpu().numpy()
        if isinstance(part, np.ndarray):
            sha.update(f"{part.shape}{part.dtype.str}".encode())
            part = np.ascontiguousarray(part).data
        sha.update(part.encode() if isinstance(part, str) else part)
    return sha.hexdigest()


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on `device`; a graphics processor is not waited for. On its own device it is itself."""
    if device.type == "cpu" or tensor.device.type != "cpu":
        return tensor.to(device)
    # The copy is truly asynchronous from pinned memory, which PyTorch keeps until the copy is over.
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def sent_together(tensors: Sequence[torch.Tensor | None], device: torch.device) -> list[torch.Tensor | None]:
    """Tensors of the host on `device`, in one copy that is not waited for; None stays None."""
    if device.type == "cpu":
        return list(tensors)
    return unpacked(sent(packed(tensors), device), tensors)


def packed(tensors: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """Tensors as one row of bytes, uint8 (n,), each beginning where numbers of any kind may begin."""
    parts = [torch.empty(0, dtype=torch.uint8)]
    for tensor in tensors:
        if tensor is not None:
            raw = tensor.contiguous().view(-1).view(torch.uint8)
            parts.append(torch.nn.functional.pad(raw, (0, -len(raw) % ALIGNED)))
    return torch.cat(parts)


def unpacked(row: torch.Tensor, like: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """The tensors of a `packed` row, views of it, wherever it lies; `like`: tensors of their types and shapes."""
    result, begin = list[torch.Tensor | None](), 0
    for tensor in like:
        if tensor is None:
            result.append(None)
            continue
        size = tensor.numel() * tensor.element_size()
        result.append(row[begin : begin + size].view(tensor.dtype).view(tensor.shape))
        begin += size + -size % ALIGNED
    return result


def received(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors of numbers, all on one device, on the host; a graphics processor is waited for once."""
    if not tensors or tensors[0].device.type == "cpu":
        return list(tensors)
    whole = torch.cat([t.detach().double().flatten() for t in tensors]).cpu()
    parts = whole.split([t.numel() for t in tensors])
    return [part.to(t.dtype).view(t.shape) for part, t in zip(parts, tensors, strict=True)]


def write_atomic(path: str | Path, content: str | bytes) -> Path:
    """Write a file whole or not at all: a reader, or a kill at any moment, never sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path


def check_device(name: str) -> None:
    """Raise SettingError, naming what there is here, for a device that PyTorch cannot compute on."""
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = ["cpu"]
    if cards:
        here += ["cuda", *(f"cuda:{number}" for number in range(cards))]
    if torch.backends.mps.is_available():
        here.append("mps")
    if name not in here:
        raise SettingError("device", name, f"what there is here: {', '.join(here)}")


def repository_root() -> Path:
    """The folder that holds pyproject.toml and rddlib/, wherever the caller runs; else the working folder."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "pyproject.toml").exists() else Path.cwd()
