"""One inner step of IDC: image steps of all classes, then network steps. The plain loop against the library's."""

from __future__ import annotations

import json
from typing import Any

from measure import How, Work, in_turn, random_data
from plain import PlainLoop
from torch import Tensor

from rddlib.distillation import batched
from rddlib.distillation.distill import DistillSettings, begin
from rddlib.distillation.glad import prior
from rddlib.distillation.loop import Loop
from rddlib.models import networks

PUBLISHED = {"ipc": 10, "factor": 2, "width": 128, "batch_real": 64, "net_steps": 32, "net_batch": 64}
LAPTOP = {"ipc": 10, "factor": 2, "width": 32, "batch_real": 32, "net_steps": 1, "net_batch": 256}
TINY = {"ipc": 1, "factor": 1, "width": 8, "batch_real": 8, "net_steps": 1, "net_batch": 16, "n_classes": 2}
HALF = PUBLISHED | {"precision": "bfloat16"}  # the library's network steps and targets; the reference stays as it is
CASES = {"laptop": LAPTOP, "published": PUBLISHED, "published, bfloat16 products": HALF}
ROUNDS = {"laptop": 9, "published": 3, "published, bfloat16 products": 3}
LIMITS = {"laptop": 1.4, "published": 1.2, "published, bfloat16 products": 0.3}
# How the cost of a step grows: one setting at a time.
GROWTH = {
    "ipc": [{"ipc": ipc} for ipc in (1, 10, 30)],
    "classes": [{"n_classes": n} for n in (2, 5, 10)],
    "width": [{"width": width} for width in (16, 32, 64, 128)],
    "resolution": [{"size": size, "depth": depth} for size, depth in ((16, 2), (32, 3), (64, 4))],
}


def begun(device: str, chosen: dict[str, Any]) -> Loop:
    """The library's loop at its start, on random images; `chosen` may also hold `n_classes` and `size`."""
    chosen = dict(chosen)
    n_classes, size = chosen.pop("n_classes", 10), chosen.pop("size", 32)
    data = random_data(150 * n_classes, size=size, n_classes=n_classes, device=device)
    settings = DistillSettings(**chosen)
    source = prior.load("none", data, settings.prior_layer, settings.prior_start)
    return batched.kind(settings, data)(data, settings, begin(data, settings, source), source)


def work(kind: str, device: str, chosen: dict[str, Any]) -> Work:
    """One inner step after another from the same start; `chosen` as in `begun`."""
    ours = begun(device, chosen)
    if kind == "reference":
        loop = PlainLoop(ours.data, ours.s, ours.codes["pixels"])
        return lambda: (loop.inner_step(), loop.images.detach())[1]

    def step() -> Tensor:
        with networks.arithmetic(ours.s.precision, ours.device):
            ours.image_steps()
            ours.network_steps()
        return ours.codes["pixels"]

    return step


def results(how: How) -> dict[str, Any]:
    """One entry a case."""
    cases = {"published": TINY} if how.quick else CASES
    return {case: in_turn(work, (chosen,), how.rounds(ROUNDS[case]), how) for case, chosen in cases.items()}


def growth(how: How) -> dict[str, list[dict[str, Any]]]:
    """Cost of the laptop's inner step as one setting grows; on a GPU of the published one."""
    base = TINY if how.quick else PUBLISHED if how.device == "cuda" else LAPTOP
    wanted = {"ipc": [{"ipc": 1}, {"ipc": 2}]} if how.quick else GROWTH
    made: dict[str, dict[str, Any]] = {}  # three settings have the base among their values: it is measured once

    def one(change: dict[str, int]) -> dict[str, Any]:
        name = json.dumps({"n_classes": 10, "size": 32, "depth": 3} | base | change, sort_keys=True)
        if name not in made:
            made[name] = in_turn(work, (base | change,), how.rounds(3), how)
        return {"setting": change} | made[name]

    return {name: [one(change) for change in changes] for name, changes in wanted.items()}
