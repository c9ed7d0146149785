"""One run over several processes, started by torchrun: who they are, and what they tell one another.

Each process draws the same random numbers and trains the same network; what is divided is the work on the images, by
class (`classwise`). Here is only what carries it: sums over the processes, a check that they still agree, and the
first message. The first process alone writes files. Where all processes are on one host nothing leaves it.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .base import SettingError, digest

STARTED_BY = "TORCHELASTIC_RUN_ID"  # torchrun, and nothing else, sets it
PATIENCE = timedelta(minutes=30)  # for a process that is alive and silent; one that has ended is noticed at once
WAIT = timedelta(days=30)  # for the first message: the run may be waiting for another that holds its key


class SplitError(RuntimeError):
    """The processes of a run have lost one another, or no longer agree."""


@dataclass
class Team:
    """The processes of a run as one of them sees them; by default there is but one, and nothing is sent."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"
    begun: bool = False  # whether the first message is out
    control: Any = None  # the group for messages between processors

    @property
    def words(self) -> str:
        """What stands before the device in a record, as in "2 x cpu": nothing for one process."""
        return f"{self.size} x " if self.size > 1 else ""

    def own(self, n_classes: int) -> range:
        """The classes that are this process's work: every `size`-th, so that shares differ by one at most."""
        return range(self.rank, n_classes, self.size)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over processes, the same bits in each of them; in place."""
        if self.size > 1:
            with _lost():
                dist.all_reduce(tensor)
        return tensor

    def agree(self, what: str, *parts: Any) -> None:
        """Raise SplitError in every process unless `parts` (see `base.digest`) are the same in all of them."""
        if self.size == 1:
            return
        number = int(digest(*parts)[:15], 16)
        ends = torch.tensor([number, -number])
        with _lost():
            dist.all_reduce(ends, dist.ReduceOp.MAX, self.control)
        if ends[0] != -ends[1]:
            raise SplitError(f"the processes of this run differ in {what}. Each needs the same code, data and kind of "
                             "device; what was done before is kept")  # fmt: skip

    def send(self, message: Any) -> None:
        """Let the waiting processes begin, or with None go home; the first message counts, from process 0 alone.

        `message` holds tensors and plain values.
        """
        if self.size > 1 and self.rank == 0 and not self.begun:
            self.begun = True
            buffer = io.BytesIO()
            torch.save(message, buffer)
            sent = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
            with _lost():
                dist.broadcast(torch.tensor([len(sent)]), 0, self.control)
                dist.broadcast(sent, 0, self.control)

    def receive(self) -> Any:
        """Wait for what process 0 sends; None: there is nothing to do. Read as files are: no code can come along."""
        length = torch.zeros(1, dtype=torch.int64)
        with _lost():
            dist.broadcast(length, 0, self.control)
            got = torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(got, 0, self.control)
        return torch.load(io.BytesIO(got.numpy().tobytes()), weights_only=True)


ALONE = Team()


@contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo and NCCL have no kind of their own for it
        first = str(error).strip().partition("\n")[0]
        raise SplitError(
            f"another process of this run has ended or cannot be reached ({first}). Its own message says why; what was "
            "done is kept, and the same command goes on from there"
        ) from error


@contextmanager
def joined(device: str) -> Iterator[Team]:
    """The team of this process: all that torchrun has started, or this one alone without torchrun.

    `device` "cuda" is the card of the process's number on its host. Raises SettingError where there is none.
    """
    if STARTED_BY not in os.environ or (size := int(os.environ["WORLD_SIZE"])) == 1:
        yield Team(device=device)
        return
    local, on_host = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    own = _card(local, on_host) if device == "cuda" else device
    if on_host == size and sys.platform in ("linux", "darwin"):  # nobody else needs to reach these processes
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    with _lost():
        dist.init_process_group("cpu:gloo,cuda:nccl" if own.startswith("cuda") else "gloo", timeout=PATIENCE)
        team = Team(int(os.environ["RANK"]), size, own, control=dist.new_group(backend="gloo", timeout=WAIT))
    try:
        yield team
    finally:
        try:
            team.send(None)  # where nothing was to be done, or it was refused, the others still wait
        finally:
            dist.destroy_process_group()


def _card(local: int, on_host: int) -> str:
    """The card of a process, with operations whose bits do not depend on chance: all networks must stay the same."""
    if on_host > (cards := torch.cuda.device_count()):
        raise SettingError("--nproc-per-node", on_host, f"at most {cards}, the graphics processors of this host")
    torch.cuda.set_device(local)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    return f"cuda:{local}"
