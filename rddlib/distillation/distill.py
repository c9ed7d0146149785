"""Distil a data set: the start, the outer steps, checkpoints, and the dispatch to KIP.

A run that is stopped at any moment goes on from its checkpoint and ends in the same bytes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .. import files
from ..base import SettingError, generator, raise_all
from ..data.dataset import DataSet
from ..models import fused, networks
from . import batches, clusters, graph, synthetic
from .glad import prior
from .kip import inducing_points
from .loop import State, outer_step, stored_set
from .settings import DistillSettings, conflicts
from .synthetic import SyntheticSet

MOST_ENTRIES = 100  # of a history: a record stays small however long the loop
OnImages = Callable[[int, SyntheticSet], None]


def distill(
    data: DataSet,
    settings: DistillSettings,
    checkpoint: str | Path | None = None,
    every: int = 1,
    on_step: files.OnStep | None = None,
    begun: SyntheticSet | None = None,
    on_images: OnImages | None = None,
) -> tuple[SyntheticSet, list[dict[str, float]]]:
    """Distil `data` by the method of `settings`; returns the set and the history: means over outer steps.

    `checkpoint`: a file; if it is there the run goes on from it, and equals the uninterrupted run bit for bit on
    the same machine; one of other data, settings or code is not used. It is written every `every` outer steps and when
    the run is interrupted. `on_step` is called with the number of outer steps done and the last history entry,
    `on_images` (not by KIP) with that number and the set as it then is, first with 0 and the start. `begun`: the
    finished set to begin from, where `start_sha256` names one. Runs on the device of `data`.
    Raises SettingError if the settings do not fit the data, DataError for a damaged checkpoint.
    """
    check_begun(data, settings, begun)
    fused.keep_memory()
    if settings.method == "kip":
        if on_images is not None:
            raise SettingError("on_images", on_images, "left out for kip, which has no outer steps")
        return inducing_points.distill(data, settings, checkpoint, every, on_step)
    raise_all(conflicts(data, settings))
    if settings.groups_from == "found" and settings.uses_groups:
        data = clusters.with_found_groups(data, settings.found_groups)
    source = prior.load(settings.parts().prior, data, settings.prior_layer, settings.prior_start)
    state = begin(data, settings, source, begun)
    of = "" if checkpoint is None else origin(data, settings, source.sha256)  # hashing data takes time
    if checkpoint is not None:
        state = load_state(checkpoint, state, of) or state
    loop_class = graph.loop_class(settings, data)
    labels = synthetic.class_labels(data.n_classes, settings.ipc, data.train_images.device)

    def current_set(state: State) -> SyntheticSet:
        result = stored_set(state.codes, labels, source, settings)
        return dataclasses.replace(result, prior_sha256=source.sha256)

    def advance(state: State) -> State:
        with networks.arithmetic(settings.precision, data.train_images.device):
            return outer_step(data, settings, state, source, loop_class)

    def save(state: State) -> None:
        if checkpoint is not None:
            save_state(checkpoint, state, of)

    def report(state: State) -> None:
        if on_step is not None:
            on_step(state.outer, state.history[-1])
        if on_images is not None:
            on_images(state.outer, current_set(state))

    if on_images is not None:
        on_images(state.outer, current_set(state))
    state = files.run_rounds(settings.outer_steps, state, advance, save, every, report)
    return current_set(state), thinned(state.history)


def check_begun(data: DataSet, settings: DistillSettings, begun: SyntheticSet | None) -> None:
    """Raise SettingError unless `begun` is the set that `start_sha256` names, and of the shape that is asked for."""
    known = None if begun is None else begun.sha256
    if settings.start_sha256 != known:
        raise SettingError("start_sha256", settings.start_sha256, f"that of the set that is begun from, {known}")
    if begun is None:
        return
    shape, wanted = tuple(begun.images.shape), (data.n_classes * settings.ipc, *data.shape)
    if (shape, begun.ipc, begun.factor) != (wanted, settings.ipc, settings.factor):
        given = f"{shape}, ipc {begun.ipc}, factor {begun.factor}"
        raise SettingError("from_set", given, f"{wanted}, ipc {settings.ipc}, factor {settings.factor} of {data.name}")


def begin(data: DataSet, settings: DistillSettings, source: prior.Prior, begun: SyntheticSet | None = None) -> State:
    """The state before the first step, with no velocity: codes of `begun`, of real images, or of random latents."""
    stream = generator(settings.seed, "start")
    device = data.train_images.device
    if begun is not None:
        begun = begun.to(device)
    elif settings.start == "noise":
        begun = synthetic.noise(data, settings.ipc, settings.factor, stream)
    else:
        index = batches.start_indices(data, settings, stream)
        begun = synthetic.start(data, settings.ipc, settings.factor, stream, index)
    labels = synthetic.class_labels(data.n_classes, settings.ipc, device)
    codes = source.encode(begun.images, labels, generator(settings.seed, "codes"))
    codes = {name: code.unflatten(0, (data.n_classes, settings.ipc)) for name, code in codes.items()}
    return State(codes, {name: torch.zeros_like(code) for name, code in codes.items()})


def thinned(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """The history in at most `MOST_ENTRIES`: means over equal stretches of steps, all steps where they are few."""
    size = max(1, math.ceil(len(history) / MOST_ENTRIES))
    stretches = [history[i : i + size] for i in range(0, len(history), size)]
    return [{name: sum(e[name] for e in part) / len(part) for name in part[0]} for part in stretches]


# --- checkpoints ------------------------------------------------------------------------------------------


def origin(data: DataSet, settings: DistillSettings, prior_sha256: str = "") -> str:
    """64 hex digits of all that a checkpoint depends on: data, settings, generator, and the results version."""
    idle = settings.idle_in_loop()
    matter = {name: value for name, value in settings.part(DistillSettings).items() if name not in idle}
    return files.origin(data.sha256, prior_sha256, matter)


def save_state(path: str | Path, state: State, of: str) -> None:
    """Write a checkpoint of the run `of` (`origin`), whole or not at all. Its codes are (n_classes * ipc, ...)."""
    codes, velocity = (
        {name: code.flatten(0, 1).cpu() for name, code in part.items()} for part in (state.codes, state.velocity)
    )
    content = {"codes": codes, "velocity": velocity, "outer": state.outer, "history": state.history}
    files.write_state(path, content, of)


def load_state(path: str | Path, like: State, of: str) -> State | None:
    """Read a checkpoint, which must fit `like` in shape; None where there is none of the run `of`.

    Raises DataError, and leaves the file, if it is damaged or does not fit.
    """

    def shaped(codes: dict[str, Any]) -> dict[str, torch.Tensor]:
        shapes = {name: tuple(code.shape) for name, code in codes.items()}
        expected = {name: tuple(code.flatten(0, 1).shape) for name, code in like.codes.items()}
        if shapes != expected:
            raise ValueError(f"of shapes {shapes}, expected {expected}")
        return {name: code.view_as(like.codes[name]) for name, code in codes.items()}

    def build(raw: dict[str, Any]) -> State:
        return State(shaped(raw["codes"]), shaped(raw["velocity"]), int(raw["outer"]), list(raw["history"]))

    return files.read_state(path, of, next(iter(like.codes.values())).device, build)
