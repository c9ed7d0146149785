"""Inside one outer step: whom the risk term weighs, and what it does to the training of the loop's network.

The loop is the one of every run, watched: no draw and no number of it changes. `python -m rddlib.analysis.inner_loop`
measures CIFAR-10 at 16 pixels, one arm and seed after the other, and keeps numbers, never an image; what is kept
already is not made again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import files
from ..base import SettingError, resources, write_atomic
from ..data.dataset import DataSet
from ..distillation import distill
from ..distillation.glad import prior
from ..distillation.loop import Batch, Loop, State, outer_step
from ..distillation.settings import DistillSettings
from ..distillation.synthetic import SyntheticSet
from ..experiments import provenance
from ..experiments.experiment import Experiment, load_data
from ..risk import RiskTerm, group_risk
from .mechanism import arm

EVERY = 20  # updates between two looks at the network
PROBED = 2000  # held-out images on which its accuracy is taken: a standard error of about a point
CHUNK = 1000  # training images that are looked at in one pass
# The arms of the fair test at 16 pixels, each at the image rate that was chosen for it (grid rates_16), and the
# released code's number of groups, for which none was chosen.
ARMS: tuple[dict[str, Any], ...] = (
    {"risk": "control", "lr_image": 0.02},
    {"risk": "upper", "lr_image": 0.05},
    {"risk": "upper", "lr_image": 0.05, "centres_in_all": None},
    {"risk": "lower", "lr_image": 0.05},
)
SEEDS = (100, 101, 102)
COLUMNS = {"gradient_ratio": 0, "gradient_cosine": 1}  # of what the loop notes of the term's gradient


def term_weights(losses: Tensor, groups: Tensor, n_groups: int, term: RiskTerm) -> Tensor:
    """The weight (n,) of each loss in the risk term of Eq. 2, which is the term's derivative.

    losses (n,), groups (n,) in [0, n_groups). The weights sum to average + worst. Not for the released value, which has
    no gradient. Cost: one sort of the losses.
    """
    losses = losses.detach().requires_grad_()
    return torch.autograd.grad(group_risk(losses, groups, n_groups, term), losses)[0]


class WatchedLoop(Loop):
    """A loop that calls `look` before every `every`-th update of its network, from the first on, and the last one."""

    def __init__(self, *given: Any, every: int, look: Callable[[WatchedLoop], None]) -> None:
        super().__init__(*given)
        self.every = every
        self.look = look
        self.updates = 0  # made so far

    @property
    def last(self) -> bool:
        """Whether the next update is this network's last one."""
        return self.updates == self.s.inner_steps * self.s.net_steps - 1

    @property
    def due(self) -> bool:
        """Whether the next update is one that is looked at."""
        return self.updates % self.every == 0 or self.last

    def _with_term(
        self, batch: Batch, losses: Tensor, extra: Batch | None, tiles: Tensor | None, noted: bool
    ) -> Tensor:
        return super()._with_term(batch, losses, extra, tiles, noted or self.due)

    def _update(self, loss: Tensor) -> None:
        if self.due:
            self.look(self)
        super()._update(loss)
        self.updates += 1

    def every_image(self) -> pd.DataFrame:
        """Each training image as the loop's network sees it now, not augmented, a row an image.

        Columns: group, label, loss, distance (to the nearest decoded centre of all), weight (in the term, over that in
        a mean: 1 on average). Raises SettingError where there is no term in the network, or its groups are not the
        nearest images. Cost: one pass over the training images.
        """
        centres = self._centre_points() if self.in_network else None
        if centres is None:
            raise SettingError("groups_from", self.s.groups_from, "'nearest', with a risk term in the network")
        chunks = torch.arange(len(self.data.train_labels)).split(CHUNK)
        rows = [self._seen_now(index, centres) for index in chunks]
        group, loss, distance = (torch.cat(parts) for parts in zip(*rows, strict=True))
        weight = term_weights(loss, group, self.n_groups, self.term)
        columns = {"group": group, "label": self.data.train_labels, "loss": loss, "distance": distance}
        columns["weight"] = weight / weight.mean()
        return pd.DataFrame({name: values.numpy() for name, values in columns.items()})

    @torch.no_grad()
    def _seen_now(self, index: Tensor, centres: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Group, loss and distance, (N,) each, of the training images at `index`."""
        y = self.data.train_labels[index]
        x = self.data.normalise(self.data.train_images[index])
        points = self._embed(x)
        gaps = torch.cdist(points.flatten(1), centres.flatten(1))
        loss = F.cross_entropy(self.net(x), y, reduction="none")
        return self._groups(x, y, centres, index, points), loss, gaps.amin(1)


def watch(
    data: DataSet,
    settings: DistillSettings,
    look: Callable[[WatchedLoop], None],
    every: int = EVERY,
    begun: SyntheticSet | None = None,
) -> State:
    """The first outer step of a run, with `look` called on its loop (see `WatchedLoop`); the state after it.

    `begun`: a set to begin from in the place of the settings' start. Runs on a CPU. Cost: that of the outer step and
    of the looks.
    """
    source = prior.load(settings.parts().prior, data, settings.prior_layer, settings.prior_start)
    state = distill.begin(data, settings, source, begun)
    return outer_step(data, settings, state, source, partial(WatchedLoop, every=every, look=look))


# --- CIFAR-10, measured once ------------------------------------------------------------------------------


def experiments() -> list[Experiment]:
    """The runs whose first outer step is watched: every arm and seed, on held-out training images."""
    shared: dict[str, Any] = {"dataset": "cifar10", "size": 16, "outer_steps": 6, "ipc": 10}
    judged: dict[str, Any] = {"eval_part": "validation", "eval_shifts": False, "eval_seeds": 2}
    return [Experiment.preset("cpu", **shared, **judged, **of_arm, seed=seed) for seed in SEEDS for of_arm in ARMS]


def measure(data: DataSet, settings: DistillSettings, grouped: bool = False) -> dict[str, Any]:
    """Accuracy and the term's gradient over the updates of the first network, and that step's entry of the history.

    `grouped`: also the groups of all training images at the last update. Cost: about a minute.
    """
    loops: list[WatchedLoop] = []
    found: dict[str, Any] = {"updates": [], "accuracy": []}

    def look(loop: WatchedLoop) -> None:
        loops[:] = [loop]
        found["updates"].append(loop.updates)
        found["accuracy"].append(round(float(loop.probe(PROBED)), 5))
        if grouped and loop.last:
            found["groups"] = summary(loop)

    found["history"] = watch(data, settings, look).history[0]
    for name, column in COLUMNS.items() if loops[0].in_network else ():
        found[name] = [round(float(note[column]), 5) for note in loops[0].noted_gradients]
    return found


def summary(loop: WatchedLoop) -> list[dict[str, float]]:
    """A row a group: class of the centre, size, mean loss, weight (share of the term), commonest label and its share.

    An empty group has no row.
    """
    rows: list[dict[str, float]] = []
    images = loop.every_image()
    for group, own in images.groupby("group"):
        counts = own["label"].value_counts()
        row: dict[str, float] = {"centre": int(loop.centres[int(str(group))]) // loop.s.ipc, "size": len(own)}
        row |= {"loss": float(own["loss"].mean()), "weight": float(own["weight"].sum() / len(images))}
        row |= {"label": int(counts.index[0]), "share": float(counts.iloc[0] / len(own))}
        rows.append(row)
    return rows


def file() -> Path:
    """Where the measurements are kept."""
    return resources() / "loop" / "cifar10_16px.json"


def read(path: Path | None = None) -> dict[str, Any]:
    """What is kept: key of a run -> arm, seed, rate, curves, groups, commit, versions; {} where nothing is.

    Raises ValueError where the file is damaged.
    """
    path = path or file()
    return files.from_json(files.read_plain(path)) if path.is_file() else {}


def table(found: dict[str, Any]) -> pd.DataFrame:
    """The curves of all runs, tidy: arm, seed, updates, accuracy (per cent), gradient_ratio, gradient_cosine."""
    names = ("updates", "accuracy", *COLUMNS)
    parts = [
        pd.DataFrame({name: run[name] for name in names if name in run}).assign(arm=run["arm"], seed=run["seed"])
        for run in found.values()
    ]
    frame = pd.concat([pd.DataFrame(columns=["arm", "seed", *names], dtype=float), *parts], ignore_index=True)
    return frame.assign(accuracy=100 * frame["accuracy"])


def main(path: Path | None = None, planned: Sequence[Experiment] | None = None) -> None:
    """Measure what is not kept yet, and keep it after each run. Needs CIFAR-10."""
    path, planned = path or file(), planned or experiments()
    found = read(path)
    data = load_data(planned[0])
    origin = {name: value for name, value in provenance.of_now(False).items() if name != "results"}
    for e in planned:
        if e.key not in found:
            about = {"arm": arm(vars(e)), "seed": e.seed, "lr_image": e.lr_image, "data_sha256": data.sha256}
            grouped = e.seed == SEEDS[0] and e.risk != "control"
            found[e.key] = about | origin | measure(data, e, grouped)
            write_atomic(path, files.to_json(found))
            print(e.key, about["arm"], e.seed, flush=True)


if __name__ == "__main__":
    main()
