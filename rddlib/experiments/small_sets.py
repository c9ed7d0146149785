"""The small set that a run evaluates: drawn, or distilled once and kept for every evaluation of it.

Runs that differ only in their evaluation (another network, another recipe) share one distilled set; it is made once,
under its own key, and carries its history, its price and the results version of the code that made it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..base import digest, generator
from ..data.dataset import DataSet
from ..distillation import distill, synthetic
from ..distillation.settings import DistillSettings
from ..distillation.synthetic import SyntheticSet
from . import provenance
from .provenance import Clock
from .records import Store, StoreError

Progress = Callable[[str, int, int, dict[str, Any]], None]  # part, done, of, last figures


@dataclass(frozen=True)
class SmallSet:
    """Training images (N, C, H, W) and labels (N,), how they came about, and what that cost (seconds)."""

    images: Tensor
    labels: Tensor
    made: SyntheticSet | None = None  # the stored set, where one was distilled
    history: list[dict[str, float]] = field(default_factory=list)
    wall: float = 0.0
    cpu: float = 0.0


def drawn(data: DataSet, settings: DistillSettings) -> SmallSet:
    """The sets that nobody distils: all data, real images, or the start of IDC. Never stored: they are real images."""
    s = settings
    if s.method == "full":
        return SmallSet(data.train_images, data.train_labels)
    if s.method == "mix":
        begun = synthetic.start(data, s.ipc, s.factor, generator(s.seed, "start"))
        return SmallSet(*synthetic.quantised(begun).decoded())
    if s.method == "herding":
        index = synthetic.herded(data, s.ipc)
    else:
        index = synthetic.draw_real(data, s.ipc, generator(s.seed, "draw") if s.method == "random" else None)
    index = index.to(data.train_images.device)
    return SmallSet(data.train_images[index], data.train_labels[index])


def distilled(
    data: DataSet,
    settings: DistillSettings,
    key: str,
    store: Store,
    progress: Progress,
    begun: SyntheticSet | None = None,
) -> SmallSet:
    """The distilled set of `key`: the stored one if today's code made it, else made now, resuming where it was.

    `begun`: the set that it begins from, where the settings name one. Raises StoreError where records rest on the
    stored one and it was made from other data of the same name.
    """
    with store.lock(key):
        stored = _stored(store, key, data)
        if stored is not None:
            store.finish(key)  # a run that was killed may have left its checkpoint
            return stored
        clock = Clock(store.work(key) / "clock.json", digest(key, data.sha256, str(provenance.RESULTS)))
        of_kip = settings.method == "kip"
        steps = settings.kip_steps if of_kip else settings.outer_steps
        # A checkpoint costs a write to disk, and DM has thousands of short steps; KIP counts in rounds of twenty.
        every = 1 if of_kip else max(1, steps // 50)

        def note(done: int, entry: dict[str, float]) -> None:
            if done % every == 0:
                clock.save()
            progress("distill", done, steps, entry)

        with clock.part("distill"):
            made, history = distill.distill(data, settings, store.work(key) / "state.pt", every, note, begun)
        price = {kind: clock.rounded(kind)["distill"] for kind in ("wall", "cpu")}
        about = {
            "key": key,
            "dataset": data.name,
            "data_sha256": data.sha256,
            "history": json.dumps(history),
            "seconds": json.dumps(price),
            "results": str(provenance.RESULTS),
        }
        synthetic.save(store.distilled(key), synthetic.quantised(made), **about)
        store.finish(key)
        stored = _stored(store, key, data)
    assert stored is not None  # written above
    return stored


def _stored(store: Store, key: str, data: DataSet) -> SmallSet | None:
    path = store.distilled(key)
    if not path.is_file():
        return None
    about = synthetic.about(path)
    version = provenance.version_of(int(about.get("results", 1)), about.get("source_hash", ""))
    if version != provenance.RESULTS:
        return None
    if about.get("data_sha256") != data.sha256:
        if not any(record.set_name == key for record in store.records()):
            return None
        raise StoreError(
            f"{path.name}: this set was distilled from other data called {data.name!r} than lie here now, and records "
            "rest on it. Give the data another name, or name another store"
        )
    made = synthetic.read(path).to(data.train_images.device)
    price = json.loads(about["seconds"])
    return SmallSet(*made.decoded(), made, json.loads(about["history"]), price["wall"], price["cpu"])
