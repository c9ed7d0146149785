"""Pictures of a loop on CIFAR-10 that may be kept: the images while they are distilled, and what their groups hold.

Real images are never kept. So the start, which is made of them, is left out, and the members of a group are shown by
their mean. `python -m rddlib.analysis.frames` makes the file, in about an hour on one core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .. import files
from ..base import resources
from ..data.dataset import DataSet
from ..distillation import distill, synthetic
from ..distillation.settings import DistillSettings
from ..distillation.synthetic import SyntheticSet
from ..experiments import provenance
from ..experiments.experiment import Experiment, load_data
from ..experiments.records import Store
from .inner_loop import WatchedLoop, watch

ARMS = ("control", "upper")
CLASSES = (1, 7, 8)  # automobile, horse, ship
SHOWN = 2  # stored images of each class
MEMBERS = 20  # whose mean is taken at either end of a group


def of_run(
    data: DataSet, settings: DistillSettings, classes: Sequence[int], checkpoint: Path | None = None
) -> NDArray[np.uint8]:
    """The first stored images of `classes` after each outer step: (outer steps, classes * SHOWN, C, H, W).

    uint8. The run itself is that of its settings, and is made from its beginning: a `checkpoint` that is there already
    is removed, one of this run is left. Errors as `distill.distill`. Cost: that of the run.
    """
    seen: list[NDArray[np.uint8]] = []
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)  # the steps before it could not be shown

    def keep(step: int, now: SyntheticSet) -> None:
        if step > 0:
            shown = torch.cat([now.of_class(c)[:SHOWN] for c in classes])
            seen.append(synthetic.levels(shown).cpu().numpy())

    distill.distill(data, settings, checkpoint, on_images=keep)
    return np.stack(seen)


def of_groups(data: DataSet, settings: DistillSettings, begun: SyntheticSet | None = None) -> dict[str, Any]:
    """The smallest, the largest and the worst group at the last update of a network that `begun` is distilled with.

    "pictures" (3, 3, C, H, W) uint8: for each group its centre, a stored image, and the means of its MEMBERS nearest
    and farthest images (half of its members each, where it has fewer). "rows": name, size, mean loss, the commonest
    label and its share of each group. The worst has the largest weight in the term. Raises SettingError where there is
    no term in the network, or its groups are not the nearest images. Cost: one outer step.
    """
    kept: dict[str, Any] = {}

    def look(loop: WatchedLoop) -> None:
        if loop.last:
            kept["images"], kept["centres"] = loop.every_image(), loop.stored().images[loop.centres]

    watch(data, settings, look, every=settings.inner_steps * settings.net_steps, begun=begun)
    images = kept["images"].sort_values("distance")
    by_group = images.groupby("group")
    size, weight = by_group["loss"].size(), by_group["weight"].sum()
    pictures, rows = [], []
    for name, group in (("smallest", size.idxmin()), ("largest", size.idxmax()), ("worst", weight.idxmax())):
        own = images[images["group"] == group]
        ends = min(MEMBERS, max(1, len(own) // 2))
        near, far = (data.train_images[torch.tensor(part.to_numpy())] for part in (own.index[:ends], own.index[-ends:]))
        means = [part.float().mean(0) / 255 for part in (near, far)]
        pictures.append(synthetic.levels(torch.stack([kept["centres"][group], *means])).numpy())
        common = own["label"].value_counts()
        row = {"name": name, "size": len(own), "loss": round(float(own["loss"].mean()), 4)}
        rows.append(row | {"label": int(common.index[0]), "share": round(float(common.iloc[0] / len(own)), 4)})
    return {"pictures": np.stack(pictures), "rows": rows}


def file() -> Path:
    """Where the pictures are kept."""
    return resources() / "loop" / "cifar10_cpu.npz"


def read(path: Path | None = None) -> dict[str, Any]:
    """What is kept: an array for each arm, "pictures" of groups, and "about", which holds their rows and the origin.

    Raises DataError, with the file's name, where it is missing or damaged.
    """
    entries: dict[str, Any] = dict(files.read_npz(path or file(), "pictures of a loop"))
    return entries | {"about": json.loads(str(entries["about"]))}


def keep(path: Path, new: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Add arrays and what is said about them to the file, which is written whole or not at all, with a checksum."""
    known = read(path) if path.is_file() else {"about": {}}
    texts = json.dumps(known["about"] | dict(about), sort_keys=True)
    files.write_npz(path, known | dict(new) | {"about": np.array(texts)})


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the pictures that are asked for. Needs CIFAR-10, and the committed set of the upper tail for the groups."""
    words = argparse.ArgumentParser(prog="python -m rddlib.analysis.frames", description=main.__doc__)
    words.add_argument("what", nargs="*", choices=[*ARMS, "groups"], default=[*ARMS, "groups"])
    for what in words.parse_args(arguments).what:
        risk = "upper" if what == "groups" else what
        run = Experiment.preset("cpu", dataset="cifar10", ipc=10, risk=risk, seed=0)
        data = load_data(run)
        origin = {name: value for name, value in provenance.of_now(False).items() if name != "results"}
        about: dict[str, Any] = {"key": run.key, "data_sha256": data.sha256} | origin
        if what == "groups":
            begun = synthetic.read(Store(resources()).distilled(run.set_key))
            found = of_groups(data, run, begun)
            keep(file(), {"pictures": found["pictures"]}, {what: about | {"rows": found["rows"]}})
        else:
            keep(file(), {what: of_run(data, run, CLASSES)}, {what: about})
        print(what, file(), flush=True)


if __name__ == "__main__":
    main()
