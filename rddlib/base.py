"""What every other module leans on: declared settings, explicit seeds, atomic files.

Nothing here knows about risk or images. It stands first in the layering so that each of these is written once.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, dataclass_transform, get_args, get_origin

import numpy as np
import pydantic
import torch
from pydantic.fields import FieldInfo

# The version of the numbers that this code gives for fixed settings. Raise it by one whenever an edit changes a result
# by more than rounding: tests/test_numbers.py pins short runs and fails then. Records and checkpoints carry it; records
# of another version are called stale, checkpoints are not used.
RESULTS = 1

ALIGNED = 16  # bytes


class SettingError(ValueError):
    """Settings that cannot be used. The message names each of them, its value and what is allowed."""

    def __init__(self, name: str, value: object, allowed: str, *others: SettingError) -> None:
        first = f"{name} = {value!r}: allowed is {allowed}"
        super().__init__("; ".join([first, *map(str, others)]))
        self.name = name
        self.value = value
        self.allowed = allowed
        self.others = others

    def within(self, where: str) -> SettingError:
        """The same errors with `where` before the name of each, as in ``table1.toml, arm 'a': ipc``."""
        others = (other.within(where) for other in self.others)
        return SettingError(f"{where}{self.name}", self.value, self.allowed, *others)


def raise_all(errors: Iterable[SettingError]) -> None:
    """Raise one SettingError that lists all `errors`, each once; nothing where there are none."""
    distinct = {str(error): error for error in errors}
    if distinct:
        first, *others = distinct.values()
        raise SettingError(first.name, first.value, first.allowed, *others)


def check_choice(name: str, value: object, choices: Collection[str]) -> None:
    """Raise SettingError unless `value` is one of the choices."""
    if value not in choices:
        raise SettingError(name, value, f"one of {', '.join(choices)}")


def check_type(name: str, value: object, kind: type, allowed: str) -> None:
    """Raise SettingError, with the type of `value`, unless it is of this class: library calls are not typed by all."""
    if not isinstance(value, kind):
        raise SettingError(name, type(value).__name__, allowed)


class DataError(RuntimeError):
    """Data that is missing or damaged. The message names the file, what is wrong, and what to do."""


class WriteError(DataError, OSError):
    """A file that could not be written: no space, no right. Nothing of it is left, and an older one is as it was."""


class DivergenceError(ArithmeticError):
    """A run whose numbers are no longer finite. The message names the step and the setting to look at."""


def setting(
    default: Any, meaning: str, *, low: float | None = None, high: float | None = None, above: float | None = None
) -> Any:
    """Declare one field of a `Settings` class: its default, one line of meaning, and its bounds.

    `low` and `high` are inclusive, `above` is an exclusive lower bound; a choice is a field of type Literal. The same
    declaration is what values are checked by, and what the command line's help and the book say.
    """
    return pydantic.Field(default=default, description=meaning, ge=low, le=high, gt=above)


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Settings:
    """Base of all settings: a subclass is a frozen pydantic dataclass, flat, each field declared with `setting`.

    Wherever one is made, `dataclasses.replace` included, numbers of NumPy become Python's and ints become floats where
    a float is meant; anything else of another type or range is refused. SettingError lists all that is wrong at once.
    """

    def __init_subclass__(cls) -> None:
        config = pydantic.ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
        pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=config)(cls)
        validate = cls.__init__

        def __init__(self: Settings, **values: Any) -> None:
            errors: list[SettingError] = []
            try:
                validate(self, **{name: plain(value) for name, value in values.items()})
            except pydantic.ValidationError as error:
                errors = [cls.rejection(str(line["loc"][0]), line["input"]) for line in error.errors()]
            raise_all(errors or self.conflicts())

        cls.__init__ = __init__  # type: ignore[method-assign, assignment]

    def conflicts(self) -> Iterator[SettingError]:
        """Settings that are right each for itself and do not go together."""
        yield from ()

    @classmethod
    def declared(cls) -> dict[str, FieldInfo]:
        """The declaration of each field by name."""
        return cls.__pydantic_fields__  # type: ignore[attr-defined, no-any-return]

    def part(self, of: type[Settings]) -> dict[str, Any]:
        """The settings, by name, that a class which this one inherits from declares."""
        return {name: getattr(self, name) for name in of.declared()}

    @classmethod
    def rejection(cls, name: str, value: object) -> SettingError:
        """The error for a value that its field does not take, or for a field that does not exist."""
        if name in cls.declared():
            return SettingError(name, value, allowed_values(cls.declared()[name]))
        return SettingError("field", name, f"a field of {cls.__name__}{suggestion(name, cls.declared())}")

    @classmethod
    def checked(cls, values: Mapping[str, Any], texts: bool = False) -> dict[str, Any]:
        """Some settings, each of its field's type; SettingError lists all that do not fit.

        `texts`: the values are words of a command line, "0.8" for a number and "none" for None.
        """
        result: dict[str, Any] = {}
        errors = []
        for name, value in values.items():
            try:
                validate = _validator(cls, name, texts)  # type: ignore[arg-type]
                result[name] = validate(plain(value))
            except (KeyError, pydantic.ValidationError):
                errors.append(cls.rejection(name, _number(value) if texts else value))
        raise_all(errors)
        return result


@functools.cache
def _validator(cls: Any, name: str, texts: bool) -> Callable[[Any], Any]:
    """A function from a value, or from its text, to the value of a field. Raises KeyError if there is no such field."""
    field = cls.declared()[name]
    kinds = _kinds(field)
    kind: Any = Annotated[field.annotation, field]
    adapter = pydantic.TypeAdapter[Any](kind, config=pydantic.ConfigDict(allow_inf_nan=False))
    if not texts or str in kinds:
        return functools.partial(adapter.validate_python, strict=True)
    words: dict[str, Any] = {"none": None, "None": None} if NoneType in kinds else {}
    for literal in kinds:
        if get_origin(literal) is Literal:
            words |= {str(choice): choice for choice in get_args(literal)}
    return lambda text: words[text] if text in words else adapter.validate_strings(text)


def _number(text: str) -> object:
    """The number that a text is, so that a message shows 1.2 and not '1.2'; other texts as they are."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def plain(value: Any) -> Any:
    """A number of NumPy as Python's; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", NoneType: "none"}


def allowed_values(field: FieldInfo) -> str:
    """What a field may hold, in words, e.g. "a number above 0 and at most 1"."""
    limits = {"gt": "above", "ge": "of at least", "le": "at most"}
    bounds = [
        f"{word} {getattr(m, name):g}" for m in field.metadata for name, word in limits.items() if hasattr(m, name)
    ]
    words = [m for m in field.metadata if isinstance(m, str)]  # of a type that says itself what it takes
    for kind in () if words else _kinds(field):
        if get_origin(kind) is Literal:
            words.append(f"one of {', '.join(map(str, get_args(kind)))}")
        elif kind in (int, float) and bounds:
            words.append(f"{KINDS[kind]} {' and '.join(bounds)}")
        else:
            words.append(KINDS[kind])
    return ", or ".join(words)


def _kinds(field: FieldInfo) -> tuple[Any, ...]:
    """The types of a field: (int, NoneType) where it is declared as int | None."""
    union = get_origin(field.annotation) in (Union, UnionType)
    return get_args(field.annotation) if union else (field.annotation,)


def suggestion(name: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is none of the known ones: the closest of these, "" if none is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def derive_seed(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed from a seed and what it is for, by SHA-256, so that streams of different purposes are unrelated.

    PyTorch's generator on a processor keeps the low 32 bits only, so that two purposes may meet by chance, once in
    four thousand millions.
    Two arms of a comparison that share `seed` share every stream of the same purpose (common random numbers).
    """
    text = json.dumps([int(seed), *purpose])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A torch generator for one purpose, e.g. ``generator(0, "real batches", class_index)``."""
    return torch.Generator().manual_seed(derive_seed(seed, *purpose))


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


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy to `device`, asynchronously on CUDA; no copy if already there."""
    if device.type == "cpu" or tensor.device.type != "cpu":
        return tensor.to(device)
    if device.type == "cuda":
        tensor = tensor.pin_memory()  # without it the host waits; PyTorch keeps it until the copy is over
    return tensor.to(device, non_blocking=True)


def to_device_together(tensors: Sequence[torch.Tensor | None], device: torch.device) -> list[torch.Tensor | None]:
    """Copy tensors of the host to `device`, in one asynchronous copy; None stays None."""
    if device.type == "cpu":
        return list(tensors)
    return unpack_bytes(to_device(pack_bytes(tensors), device), tensors)


def pack_bytes(tensors: Sequence[torch.Tensor | None]) -> torch.Tensor:
    """Tensors as one row of bytes, uint8 (n,), each at a multiple of 16 bytes, where any dtype may begin."""
    parts = [torch.empty(0, dtype=torch.uint8)]
    for tensor in tensors:
        if tensor is not None:
            raw = tensor.contiguous().view(-1).view(torch.uint8)
            parts.append(torch.nn.functional.pad(raw, (0, -len(raw) % ALIGNED)))
    return torch.cat(parts)


def unpack_bytes(row: torch.Tensor, like: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """The tensors in a row of `pack_bytes`, as views of it; `like`: tensors of their dtypes and shapes."""
    result: list[torch.Tensor | None] = []
    begin = 0
    for tensor in like:
        if tensor is None:
            result.append(None)
            continue
        size = tensor.numel() * tensor.element_size()
        result.append(row[begin : begin + size].view(tensor.dtype).view(tensor.shape))
        begin += size + -size % ALIGNED
    return result


def to_host(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Copy tensors of numbers, all on one device, to the host, which waits once for all of them."""
    if not tensors or tensors[0].device.type == "cpu":
        return list(tensors)
    together = torch.cat([t.detach().double().flatten() for t in tensors]).cpu()
    parts = together.split([t.numel() for t in tensors])
    return [part.to(t.dtype).view(t.shape) for part, t in zip(parts, tensors, strict=True)]


def write_atomic(path: str | Path, content: str | bytes) -> Path:
    """Write a file whole or not at all: a reader, or a kill at any moment, never sees half of it.

    Raises WriteError, with the file's name and the reason, where it cannot be written.
    """
    path = Path(path)
    name = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException as error:
        if name:
            Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise WriteError(f"{path}: cannot be written ({error.strerror or error})") from error
        raise
    return path


def check_device(name: str) -> None:
    """Raise SettingError, naming what there is here, for a device that PyTorch cannot compute on."""
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    here = ["cpu"]
    if cards:
        here += ["cuda", *(f"cuda:{number}" for number in range(cards))]
    if name not in here:
        raise SettingError("device", name, f"what there is here: {', '.join(here)}")


def repository_root() -> Path | None:
    """The folder of the project where the library runs from its source; None where it is installed without it."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "pyproject.toml").exists() else None


def resources() -> Path:
    """The folder of what comes with the library: grids, generators, the paper's numbers, the book's records.

    It is data/ of the project, or its copy inside an installed package (pyproject.toml says what is in that).
    """
    root = repository_root()
    return root / "data" if root else Path(__file__).resolve().parent / "resources"


def home() -> Path:
    """The folder of results and data sets unless others are named: data/ of the project, else ~/rddlib_data."""
    return resources() if repository_root() else Path.home() / "rddlib_data"
