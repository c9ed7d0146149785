"""A pretended graphics processor: tensors on a device of their own that compute on the CPU, and are counted.

A build of PyTorch without CUDA cannot differentiate tensors that claim to be on "cuda", so these claim to be on
`DEVICE`, "meta". Within `pretended()` every tensor made there holds a CPU tensor. As on a card, an operation on tensors
of both devices raises RuntimeError, but for scalars and indices. Counted are operations that a card would launch
(views and empty tensors launch none), copies from the host, and waits of the host: blocking copies to the card, every
copy back, and operations whose result the host needs.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from rddlib.data import dataset as data

DEVICE = torch.device("meta")
COPIES = {"aten::_to_copy", "aten::copy_"}
INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
WAITING = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::bincount",
    "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::_linalg_check_errors",
}  # fmt: skip
NOT_LAUNCHED = {
    "aten::detach", "aten::empty", "aten::empty_like", "aten::new_empty", "aten::empty_strided", "aten::lift_fresh",
    "aten::new_empty_strided", "aten::_unsafe_view", "aten::_reshape_alias", "aten::_local_scalar_dense",
}  # fmt: skip


@dataclass
class Counts:
    """What was asked of the pretended device."""

    sequence: list[tuple[str, str]] = field(default_factory=list)  # name and shapes of each launched operation
    copies: list[str] = field(default_factory=list)  # places in the library of copies that the host does not wait for
    waits: list[str] = field(default_factory=list)  # places where the host waits

    @property
    def launches(self) -> int:
        """Number of launched operations."""
        return len(self.sequence)


class Pretended(torch.Tensor):
    """A tensor that claims to be on `DEVICE` and holds one of the CPU."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Pretended:
        made: Pretended = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            layout=held.layout, device=DEVICE,
        )  # fmt: skip
        made.held = held
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Pretended({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return _run(func, args, kwargs or {}, Counts())

    def tolist(self) -> Any:
        """As a copy to the host."""
        return self.cpu().tolist()


class _Mode(TorchDispatchMode):
    def __init__(self, counts: Counts) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts = counts

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, args, kwargs or {}, self.counts)


@contextmanager
def pretended() -> Iterator[Counts]:
    """Within the block `DEVICE` is a pretended graphics processor; what it is asked for is counted."""
    counts = Counts()
    plain: Callable[..., torch.Tensor] = torch.tensor

    def tensor(values: Any, *, device: Any = None, **how: Any) -> torch.Tensor:
        made = plain(values, **how)
        return made if device is None else made.to(device)

    supported = [torch.Tensor, torch.nn.Parameter, Pretended]
    patches: list[Any] = [mock.patch.object(torch, "tensor", tensor)]
    devices = mock.Mock(return_value=["cuda", DEVICE.type])
    for module in map(import_module, ("torch.utils._foreach_utils", "torch.optim.optimizer")):
        patches.append(mock.patch.object(module, "_foreach_supported_types", supported))
        patches.append(mock.patch.object(module, "_get_foreach_kernels_supported_devices", devices))
    data.by_channel.cache_clear()
    lifts = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        for patch in patches:
            patch.start()
        with _Mode(counts):
            yield counts
    finally:
        for patch in patches:
            patch.stop()
        torch._C._set_only_lift_cpu_tensors(lifts)
        data.by_channel.cache_clear()


def _run(operation: Any, args: Any, kwargs: dict[str, Any], counts: Counts) -> Any:
    name = operation._schema.name
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    here = [x for x in tensors if isinstance(x, Pretended)]
    device = kwargs.get("device")
    there = bool(here) if device is None else torch.device(device).type == DEVICE.type
    if name in COPIES:
        source = args[0] if name == "aten::_to_copy" else args[1]
        if name == "aten::copy_":
            there = isinstance(args[0], Pretended)
        _count_copy(isinstance(source, Pretended), there, kwargs, counts)
    elif here:
        _check_devices(name, args, tensors, counts)
    if (here or there) and not is_view(operation) and name not in NOT_LAUNCHED:
        shapes = str([(tuple(x.shape), str(x.dtype)) for x in tensors])
        counts.sequence.append((name, shapes))
    if here and (name in WAITING or _selects(name, tensors)):
        counts.waits.append(f"{name} {_where()}")
    inner, how = on_cpu((args, kwargs))
    result = operation(*inner, **how)
    if torch.Tag.inplace_view in operation.tags and here:
        with no_dispatch():
            operation(*args, **kwargs)
        return args[0]
    known = {id(x.held): x for x in here}

    def wrapped(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or isinstance(x, Pretended):
            return x
        if id(x) in known:
            return known[id(x)]
        return Pretended(x) if there else x

    return tree_map(wrapped, result)


def on_cpu(call: Any) -> Any:
    """Arguments, or results, of an operation with the tensors and the device of the CPU that stand behind them."""

    def one(x: Any) -> Any:
        if isinstance(x, Pretended):
            return x.held
        return torch.device("cpu") if isinstance(x, torch.device) else x

    return tree_map(one, call)


def _count_copy(source_there: bool, there: bool, kwargs: dict[str, Any], counts: Counts) -> None:
    if source_there and not there:
        counts.waits.append(f"copy to the host {_where()}")
    elif there and not source_there:
        kept = counts.copies if kwargs.get("non_blocking") else counts.waits
        kept.append(f"copy from the host {_where()}")


def _check_devices(name: str, args: Any, tensors: list[torch.Tensor], counts: Counts) -> None:
    """As a card: scalars of the host may join; so may its indices, which are copied; nothing else."""
    foreign = [x for x in tensors if not isinstance(x, Pretended) and x.ndim > 0]
    if not foreign:
        return
    if name not in INDEXED or not isinstance(args[0], Pretended):
        raise RuntimeError(f"{name}: tensors of both devices {_where()}")
    counts.waits.append(f"index of the host {_where()}")


def _selects(name: str, tensors: list[torch.Tensor]) -> bool:
    """Whether a mask selects, so that the size of the result is data."""
    return name in INDEXED and any(x.dtype in (torch.bool, torch.uint8) for x in tensors[1:])


def is_view(operation: Any) -> bool:
    """Whether an operation's result is a part of its input, so that nothing is launched."""
    return any(r.alias_info is not None and not r.alias_info.is_write for r in operation._schema.returns)


def _where() -> str:
    for frame in reversed(traceback.extract_stack()):
        if f"{Path('rddlib')}/" in frame.filename:
            return f"at {Path(frame.filename).name}:{frame.lineno}"
    return "outside the library"
