"""Distil a data set: the start, the outer steps, checkpoints, and the dispatch to KIP.

A run that is stopped at any moment goes on from its checkpoint and ends in the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from . import classwise, fused, groups, kip, nets, prior, representative, synthetic
from .base import generator, write_atomic
from .data import DataSet
from .loop import State, outer_step
from .methods import DistillSettings, check_fit
from .readers import DataError
from .split import ALONE, SplitError, Team
from .synthetic import SyntheticSet

HISTORY = 100  # entries kept at most: a record stays small however long the loop
OnStep = Callable[[int, dict[str, float]], None]


def distill(
    data: DataSet,
    settings: DistillSettings,
    checkpoint: str | Path | None = None,
    every: int = 1,
    on_step: OnStep | None = None,
    team: Team = ALONE,
) -> tuple[SyntheticSet, list[dict[str, float]]]:
    """Distil `data` by the method of `settings`; returns the set and the history: means over outer steps.

    `checkpoint`: a file; if it is there the run goes on from it, and equals the uninterrupted run bit for bit on
    the same machine. It is written every `every` outer steps and when the run is interrupted. `on_step` is called
    with the number of outer steps done and the last history entry. Runs on the device of `data`. In a `team` of
    processes this is what process 0 does; the others `assist`.
    Raises SettingError if the settings do not fit the data, DataError for a damaged checkpoint, SplitError where a
    process of the team is lost; the checkpoint is then as at the last whole outer step.
    """
    check_fit(data, settings)
    classwise.check_fit(data, settings, team)
    fused.keep_memory()
    if settings.method == "kip":
        return kip.distill(data, settings, None if checkpoint is None else Path(checkpoint), every, on_step)
    if settings.groups_from == "found":
        data = groups.with_found_groups(data, settings.found_groups)
    source = prior.load(settings.parts().prior, data, settings.prior_layer, settings.prior_start)
    state = begin(data, settings, source)
    if checkpoint is not None and Path(checkpoint).is_file():
        state = load_state(checkpoint, state)
    team.send(_plain(state))
    try:
        for now in _steps(data, settings, state, source, team):
            state = now
            if checkpoint is not None and (state.outer % every == 0 or state.outer == settings.outer_steps):
                save_state(checkpoint, state)
            if on_step is not None:
                on_step(state.outer, state.history[-1])
    except (KeyboardInterrupt, SplitError):
        if checkpoint is not None:
            save_state(checkpoint, state)
        raise
    with torch.no_grad():
        images = source.decode(state.codes, labels(data, settings))
    return SyntheticSet(images, settings.ipc, settings.factor), thinned(state.history)


def assist(load: Callable[[], DataSet], settings: DistillSettings, team: Team) -> None:
    """What every process of a team but the first does: the same steps for its own classes; it writes nothing.

    `load` gives the data, once process 0 has it. Returns at once where process 0 has nothing to distil.
    """
    if (begun := team.receive()) is None:
        return
    data = load()
    fused.keep_memory()
    source = prior.load(settings.parts().prior, data, settings.prior_layer, settings.prior_start)
    for _ in _steps(data, settings, _state(begun, data.train_images.device), source, team):
        pass


def _steps(data: DataSet, settings: DistillSettings, state: State, source: prior.Prior, team: Team) -> Iterator[State]:
    """The state after each outer step that is left."""
    made_of = (p.read_bytes() for p in sorted(Path(__file__).parent.glob("*.py"))) if team.size > 1 else ()
    team.agree("settings, data or code", repr(settings), data.sha256, *made_of)
    make = classwise.kind(settings, data, team)
    while state.outer < settings.outer_steps:
        with nets.arithmetic(settings.precision, data.train_images.device):
            state = outer_step(data, settings, state, source, make)
        yield state


def labels(data: DataSet, settings: DistillSettings) -> torch.Tensor:
    """Class of each stored image: int64 (n_classes * ipc,), on the device of the data."""
    return torch.arange(data.n_classes, device=data.train_images.device).repeat_interleave(settings.ipc)


def begin(data: DataSet, settings: DistillSettings, source: prior.Prior) -> State:
    """The state before the first step: codes of real images, or of random latents, with no velocity."""
    stream = generator(settings.seed, "start")
    index = representative.start_indices(data, settings, stream)
    begun = synthetic.start(data, settings.ipc, settings.factor, stream, index)
    codes = source.encode(begun.images, labels(data, settings), generator(settings.seed, "codes"))
    return State(codes, {name: torch.zeros_like(code) for name, code in codes.items()})


def thinned(history: list[dict[str, float]], most: int = HISTORY) -> list[dict[str, float]]:
    """The history in at most `most` entries: means over equal stretches of steps, all steps where they are few."""
    size = -(-len(history) // most)
    stretches = [history[i : i + size] for i in range(0, len(history), size)] if size > 1 else [[e] for e in history]
    return [{name: sum(e[name] for e in part) / len(part) for name in part[0]} for part in stretches]


# --- checkpoints ------------------------------------------------------------------------------------------


def save_state(path: str | Path, state: State) -> None:
    """Write a checkpoint, whole or not at all."""
    buffer = io.BytesIO()
    torch.save(_plain(state), buffer)
    write_atomic(path, buffer.getvalue())


def load_state(path: str | Path, like: State) -> State:
    """Read a checkpoint that must fit `like` in shape. Raises DataError, and leaves the file, if it does not."""
    device = next(iter(like.codes.values())).device
    try:
        raw = torch.load(path, weights_only=True, map_location=device)
        state = _state(raw, device)
        shapes = [{k: tuple(v.shape) for k, v in codes.items()} for codes in (state.codes, state.velocity)]
    except Exception as error:  # torch.load raises many kinds for a damaged file
        raise DataError(f"{path}: damaged checkpoint ({error}); delete it to start this run again") from error
    expected = {k: tuple(v.shape) for k, v in like.codes.items()}
    if shapes != [expected, expected]:
        raise DataError(f"{path}: checkpoint of {shapes[0]}, expected {expected}; delete it to start this run again")
    return state


def _plain(state: State) -> dict[str, Any]:
    """A state as dicts, lists and tensors of the processor."""
    cpu = {part: {k: v.cpu() for k, v in getattr(state, part).items()} for part in ("codes", "velocity")}
    return {**cpu, "outer": state.outer, "history": state.history}


def _state(plain: dict[str, Any], device: torch.device) -> State:
    codes, velocity = ({k: v.to(device) for k, v in plain[part].items()} for part in ("codes", "velocity"))
    return State(codes, velocity, int(plain["outer"]), list(plain["history"]))
