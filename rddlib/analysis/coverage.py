"""How well a distilled set covers its classes: the mean nearest distance from real images, and its nulls.

Distances are Euclidean, in pixels or in the features of an independent network, and count in units of the mean distance
of a class's real images to their own mean: 1 is what one synthetic image at the mean of the class would give, 0 would
be a copy of every image. Real images are test images, so that none is its own neighbour. What is kept are distances
and map coordinates, never an image. The file is made by
`python -m rddlib.analysis.coverage --dataset cifar10 --scale laptop`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..base import SettingError, generator, numpy_generator, resources, write_atomic
from ..data.dataset import DataSet, load
from ..distillation import synthetic
from ..distillation.synthetic import SyntheticSet
from ..models import training
from ..models.features import FeatureNet, embedded
from ..stats import Interval
from .report import Arm, Page

SPACES = ("feature", "pixel")
METHODS, RISKS = ("idc", "glad"), ("control", "upper", "lower")  # whose sets are measured
DRAWS, POOL, MAPPED = 200, 1000, 300  # draws of a null; training images a class to draw from; real images on the map
DEALS = 40  # with fewer ways to deal images out to two arms, the extreme ones are no rarer than 1 in 20: no null
NETWORK = FeatureNet(steps=400, batch=128)  # half a minute on one core for CIFAR-10


def nearest_distance(real: Tensor, synthetic_: Tensor) -> float:
    """Mean over real points (N, D) of the distance to the nearest of the synthetic ones (M, D)."""
    return float(torch.cdist(real, synthetic_).min(1).values.mean())


def spread(real: Tensor) -> float:
    """The unit: the mean distance of real points (N, D) to their mean."""
    return float((real - real.mean(0)).norm(dim=1).mean())


def drawn_null(real: Tensor, pool: Tensor, m: int, draws: int, seed: int = 0) -> NDArray[np.float64]:
    """`nearest_distance` to m points drawn without repetition from `pool` (P, D), many times: (draws,)."""
    rng, gaps = numpy_generator(seed, "coverage", m), torch.cdist(real, pool)  # (N, P)
    picks = [torch.from_numpy(rng.choice(len(pool), m, replace=False)) for _ in range(draws)]
    return np.array([float(gaps[:, pick].min(1).values.mean()) for pick in picks])


def exchange_null(real: Tensor, a: Tensor, b: Tensor, draws: int) -> NDArray[np.float64]:
    """Differences b - a of `nearest_distance` when it is chance which image belongs to which set: (draws,).

    The images of both sets are mixed and dealt out anew. What the two sets truly gave lies within its central part
    where the sets cover alike.
    """
    rng, gaps = numpy_generator(0, "exchange", len(a)), torch.cdist(real, torch.cat([a, b]))
    found = []
    for _ in range(draws):
        order = torch.from_numpy(rng.permutation(len(a) + len(b)))
        one, other = (float(gaps[:, part].min(1).values.mean()) for part in (order[: len(a)], order[len(a) :]))
        found.append(other - one)
    return np.array(found)


def central(values: Sequence[float] | NDArray[np.float64], n: int = 1) -> Interval:
    """Mean and central 95 % of the draws of a null."""
    low, high = np.quantile(values, [0.025, 0.975])
    return Interval(float(np.mean(values)), float(low), float(high), n)


def roughness(images: Tensor) -> float:
    """Mean absolute difference of neighbouring pixels of (N, C, H, W) in [0, 1]: large where shapes are irregular."""
    across, down = images.diff(dim=3).abs().mean(), images.diff(dim=2).abs().mean()
    return float((across + down) / 2)


@dataclass(frozen=True)
class Ruler:
    """Real images of a data set in the two spaces: class by class, with the unit of each."""

    data: DataSet
    net: nn.Module

    def points(self, images: Tensor) -> dict[str, Tensor]:
        """Images (N, C, H, W) as points of each space: (N, D)."""
        pixels = self.data.normalise(images).flatten(1)
        return {"feature": embedded(self.net, images, self.data), "pixel": pixels}

    def real(self, c: int) -> dict[str, Tensor]:
        """The test images of a class."""
        return self.points(self.data.test_images[self.data.test_labels == c])

    def of_set(self, made: SyntheticSet, real: Mapping[int, dict[str, Tensor]]) -> dict[str, list[float]]:
        """Coverage by a set, in units of `spread`: space -> one value a class. Tiles are decoded first."""
        images, labels = made.decoded()
        found: dict[str, list[float]] = {space: [] for space in SPACES}
        for c, points in real.items():
            own = self.points(images[labels == c])
            for space in SPACES:
                found[space].append(nearest_distance(points[space], own[space]) / spread(points[space]))
        return found

    def nulls(self, m: int, factor: int, real: Mapping[int, dict[str, Tensor]]) -> dict[str, dict[str, list[float]]]:
        """Coverage by m random training images a class, the mean over classes of each draw.

        "stored": shrunk and enlarged like the tiles of a set of this factor, its fair null; "whole": as they are.
        """
        sums = {kind: {space: np.zeros(DRAWS) for space in SPACES} for kind in ("stored", "whole")}
        for c, points in real.items():
            chosen = (self.data.train_labels == c).nonzero().flatten()[:POOL]
            images = self.data.train_images[chosen].float() / 255
            kinds = {"whole": self.points(images), "stored": self.points(_stored(images, factor))}
            for kind, pool in kinds.items():
                for space in SPACES:
                    values = drawn_null(points[space], pool[space], m, DRAWS, seed=c) / spread(points[space])
                    sums[kind][space] += values / len(real)
        return {kind: {space: v.tolist() for space, v in by.items()} for kind, by in sums.items()}


def _stored(images: Tensor, factor: int) -> Tensor:
    """Images (N, C, H, W) as they come back from being stored as tiles."""
    whole = images[: len(images) // factor**2 * factor**2]
    return synthetic.decode(synthetic.encode(whole, factor), factor)


def measure(data: DataSet, sets: Mapping[str, Mapping[str, Any]], spec: FeatureNet = NETWORK) -> dict[str, Any]:
    """Coverage by each set (key -> made, method, risk, seed), the nulls, and how far each set went from its start.

    Cost: the training of the network (half a minute for CIFAR-10 on one core), then seconds a set.
    """
    net = spec.train(data).eval()
    right = training.predict(net, data.test_images, data) == data.test_labels
    ruler = Ruler(data, net)
    real = {c: ruler.real(c) for c in range(data.n_classes)}
    found: dict[str, Any] = {}
    kinds: dict[str, tuple[int, int]] = {}
    for key, about in sets.items():
        made: SyntheticSet = about["made"]
        known = {name: about[name] for name in ("method", "risk", "seed")}
        found[key] = known | {"ipc": made.ipc, "factor": made.factor, "coverage": ruler.of_set(made, real)}
        if about["method"] != "glad":  # how far a set of pixels went from its start, and how much rougher it is
            start = synthetic.start(data, made.ipc, made.factor, generator(about["seed"], "start")).images
            found[key]["moved"] = float((made.images - start).square().mean().sqrt())  # a share of the range
            found[key]["rougher"] = roughness(made.images) - roughness(start)
        kinds[f"{made.ipc}x{made.factor}"] = (made.ipc * made.factor**2, made.factor)
    drawn = {method: maps(ruler, sets, method) for method in METHODS}
    return {
        "dataset": data.name,
        "data_sha256": data.sha256,
        "classes": list(data.classes),
        "images": len(right),
        "network": asdict(spec) | {"accuracy": 100 * float(right.double().mean())},
        "sets": found,
        "nulls": {name: ruler.nulls(m, factor, real) for name, (m, factor) in kinds.items()},
        "maps": {method: own for method, own in drawn.items() if own},
    }


def maps(ruler: Ruler, sets: Mapping[str, Mapping[str, Any]], method: str) -> dict[str, Any]:
    """t-SNE of the first class in feature space: real test images and a method's sets of seed 0 together.

    "points" (t-SNE seed, N, 2), "kind" (N,): "real", or the risk of the set; "exchange": the null of upper - control
    there, left out where a handful of images can be dealt out in too few ways. Empty where no set of seed 0 is there.
    Cost: seconds.
    """
    from sklearn.manifold import TSNE

    first = [a for a in sets.values() if a["seed"] == 0 and a["method"] == method]
    shown = {a["risk"]: a["made"] for a in sorted(first, key=lambda a: a["risk"]) if a["risk"] != "lower"}
    if not shown:
        return {}
    real = ruler.real(0)["feature"]
    own = {risk: ruler.points(made.decoded()[0][made.decoded()[1] == 0])["feature"] for risk, made in shown.items()}
    points = torch.cat([real[:MAPPED], *own.values()]).numpy()
    kind = ["real"] * min(MAPPED, len(real)) + [risk for risk, p in own.items() for _ in p]
    around = min(30.0, (len(points) - 1) / 3)
    drawn = [TSNE(2, perplexity=around, init="pca", random_state=s).fit_transform(points) for s in (0, 1)]
    points_by_seed = [np.round(d, 2).tolist() for d in drawn]
    found: dict[str, Any] = {"class": ruler.data.classes[0], "kind": kind, "points": points_by_seed}
    if len(own) == 2:
        control, upper, unit = own["control"], own["upper"], spread(real)
        found["difference"] = (nearest_distance(real, upper) - nearest_distance(real, control)) / unit
        if math.comb(len(control) + len(upper), len(control)) >= DEALS:
            null = exchange_null(real, control, upper, draws=1000) / unit
            found["exchange"] = [round(v, 5) for v in np.quantile(null, [0.025, 0.5, 0.975])]
    return found


def file(dataset: str, scale: str, ipc: int) -> Path:
    """Where the measurements of a data set at a scale are kept, one file for each number of images a class."""
    return resources() / "coverage" / f"{dataset.split(':')[0]}_{scale}_{ipc}.json"


def arms_of(page: Page, dataset: str, ipc: int) -> dict[tuple[str, str], Arm]:
    """The arms of a page whose sets are measured, those that it plans: (method, risk) -> arm."""
    wanted = {"dataset": dataset, "ipc": ipc, "where": "network"}
    found = {(m, r): page.arm(method=m, risk=r, **wanted) for m, r in itertools.product(METHODS, RISKS)}
    return {name: arm for name, arm in found.items() if arm.planned}


def sets_of(page: Page, dataset: str, ipc: int) -> dict[str, dict[str, Any]]:
    """The distilled sets of a page that are there, of IDC and GLaD: key -> made, method, risk, seed."""
    found: dict[str, dict[str, Any]] = {}
    for (method, risk), arm in arms_of(page, dataset, ipc).items():
        for record in arm.records:
            path = page.store.distilled(record.set_key)
            if path.is_file():
                about = {"method": method, "risk": risk, "seed": record.experiment["seed"]}
                found[record.set_key] = {"made": synthetic.read(path), **about}
    return found


def write(path: Path, found: Mapping[str, Any]) -> Path:
    """Keep measurements, numbers rounded to five digits."""
    rounded = json.loads(json.dumps(found), parse_float=lambda digits: round(float(digits), 5))
    return write_atomic(path, json.dumps(rounded, sort_keys=True).replace("}, ", "},\n") + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the distilled sets of Table 2's runs and keep the result in data/coverage/."""
    words = argparse.ArgumentParser(prog="python -m rddlib.analysis.coverage", description=main.__doc__)
    words.add_argument("--dataset", default="cifar10")
    words.add_argument("--scale", default="laptop")
    words.add_argument("--ipc", type=int, default=10)
    chosen = words.parse_args(arguments)
    page = Page.of("table2", chosen.scale, chosen.dataset)
    sets = sets_of(page, chosen.dataset, chosen.ipc)
    if not sets:
        raise SettingError("dataset", chosen.dataset, "one with distilled sets in the store")
    size = page.experiments[0].size
    print(write(file(chosen.dataset, chosen.scale, chosen.ipc), measure(load(chosen.dataset, size=size), sets)))


if __name__ == "__main__":
    main()
