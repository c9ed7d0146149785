"""Groups of test images, and how far the clusters of training reappear in them.

The published test groups are k-means clusters of pixels; beside them stand clusters in the features of a network that
no evaluated set has touched.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import files
from ..base import DataError, SettingError, digest, numpy_generator
from ..data.dataset import DataSet
from ..distillation.clusters import Scope, assign
from ..models import training
from ..models.features import FeatureNet, embedded, kmeans
from ..stats import Interval


@dataclass(frozen=True)
class Partition:
    """Test images in `k` groups: group of each image (N,) in [0, k), and a hash of these numbers."""

    groups: Tensor
    k: int
    sha256: str

    @property
    def sizes(self) -> list[int]:
        """Images in each group."""
        sizes: list[int] = self.groups.bincount(minlength=self.k).tolist()
        return sizes


# --- test groups as published -----------------------------------------------------------------------------


def kmeans_groups(images: Tensor, k: int = 10, seed: int = 0, *folders: str | Path) -> tuple[Tensor, str]:
    """Groups of test images as published: k-means on flattened normalised pixels, all classes together.

    images: (N, C, H, W) float. Returns the group of each image (N,) and a hash of the groups. A file saved in one of
    `folders` is used; else one is written to the last of them, because the groups depend on the versions of
    scikit-learn and NumPy (one start, scikit-learn's default since 1.4, is fixed here). Cost: seconds for 10,000
    images. Source: test_glad.py of the released code.
    """
    # Rounded, because the last bits of normalised pixels depend on the processor and name the file.
    name = f"kmeans{k}-seed{seed}-{digest((images * 1000).round().to(torch.int32))[:16]}.npz"
    saved = _find(name, folders)
    if saved is not None:
        partition = _read_groups(saved, len(images), k)
        return partition.groups, partition.sha256
    labels = kmeans(images, k, seed, starts=1)
    if folders:
        _save_groups(Path(folders[-1]) / name, labels)
    return torch.from_numpy(labels), digest(labels)


def _find(name: str, folders: tuple[str | Path, ...]) -> Path | None:
    return next((Path(folder) / name for folder in folders if (Path(folder) / name).is_file()), None)


def _save_groups(file: Path, labels: NDArray[np.int64], record: str = "") -> None:
    small = labels.astype(np.uint8 if labels.max() < 256 else np.uint16)
    files.write_npz(file, {"groups": small, "sha256": np.array(digest(labels)), "record": np.array(record)})


def _read_groups(file: Path, n: int, k: int) -> Partition:
    entries = files.read_npz(file, "saved groups; delete it to have it made again", ("groups", "sha256"))
    labels, sha = entries["groups"].astype(np.int64), str(entries["sha256"])
    if labels.shape != (n,) or labels.max(initial=0) >= k or digest(labels) != sha:
        raise DataError(f"{file}: saved groups do not fit their hash; delete the file to have it made again")
    return Partition(torch.from_numpy(labels), k, sha)


# --- test groups in the features of an independent network ------------------------------------------------

MOST_A_CLASS, FEWEST_IMAGES = 4, 30  # clusters within a class: at most 4, and on average 30 images in each


def clusters_a_class(data: DataSet) -> int:
    """Clusters within each class: 4, or fewer where that would leave less than 30 test images each on average."""
    return max(1, min(MOST_A_CLASS, len(data.test_labels) // data.n_classes // FEWEST_IMAGES))


def feature_groups(data: DataSet, *folders: str | Path, spec: FeatureNet | None = None) -> dict[str, Partition]:
    """Test groups in the features of a network trained on the whole training part, never on a small set.

    "feature_class": k-means within each class; group c * m + j is cluster j of class c, m = `clusters_a_class`.
    "feature": k-means over all images, as many clusters as classes, labels unused. Files saved in `folders` are used
    (their names bear a hash of images, labels and `spec`); else the network is trained, and both are written to the
    last of them: groups, their hash and a JSON record with the network's settings and its accuracy in per cent.
    """
    spec = spec or FeatureNet()
    if len(data.test_labels) < data.n_classes:
        raise SettingError("eval_honest_groups", True, f"for at least {data.n_classes} tested images, one a class")
    k = {"feature_class": clusters_a_class(data) * data.n_classes, "feature": data.n_classes}
    parts = (data.train_images, data.train_labels, data.test_images, data.test_labels)
    source = f"seed{spec.seed}-{digest(*parts, json.dumps(asdict(spec)))[:16]}"
    saved = {kind: _find(f"{kind}-{source}.npz", folders) for kind in k}
    if None not in saved.values():
        return {kind: _read_groups(file, len(data.test_labels), k[kind]) for kind, file in saved.items() if file}
    groups, accuracy = _cluster_features(data, spec)
    if folders:
        net = asdict(spec) | {"depth": spec.depth(data.shape[1])}
        record = {"dataset": data.name, "data_sha256": data.sha256, "net": net, "accuracy": accuracy}
        for kind, labels in groups.items():
            _save_groups(Path(folders[-1]) / f"{kind}-{source}.npz", labels, json.dumps(record))
    return {kind: Partition(torch.from_numpy(of), k[kind], digest(of)) for kind, of in groups.items()}


def _cluster_features(data: DataSet, spec: FeatureNet) -> tuple[dict[str, NDArray[np.int64]], float]:
    """Both groupings of the test images (N,), and the accuracy of the network behind them in per cent."""
    net = spec.train(data)
    points = embedded(net, data.test_images, data)
    accuracy = float((training.predict(net, data.test_images, data) == data.test_labels).double().mean())
    labels = data.test_labels.cpu().numpy()
    m = clusters_a_class(data)
    by_class = np.empty(len(labels), np.int64)
    for c in range(data.n_classes):
        members = np.flatnonzero(labels == c)
        if len(members):
            by_class[members] = c * m + kmeans(points[members], min(m, len(members)), spec.seed, starts=4)
    groups = {"feature_class": by_class, "feature": kmeans(points, data.n_classes, spec.seed, starts=4)}
    return groups, round(100 * accuracy, 2)


# --- how far two partitions agree -------------------------------------------------------------------------


@dataclass(frozen=True)
class Overlap:
    """Agreement of two partitions of the same images; 1 is identity. Beside each, what chance gives.

    `rand`: adjusted Rand index (Hubert & Arabie 1985), about 0 by chance. `information`: normalised mutual information
    (arithmetic mean of the entropies), above 0 by chance where groups are many: read it beside its null.
    """

    rand: float
    information: float
    rand_null: Interval
    information_null: Interval


def overlap(a: Tensor, b: Tensor, permutations: int = 100) -> Overlap:
    """Agreement of two groupings (N,), with a permutation null: mean and central 95 % over shuffles of `b`.

    Cost: 15 ms a permutation for 10,000 images. Raises SettingError where the lengths differ.
    """
    if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
        raise SettingError("b", f"shape {tuple(b.shape)}", f"one group for each of the {len(a)} images of a")
    if permutations < 1:
        raise SettingError("permutations", permutations, "an integer of at least 1")
    left, right = a.cpu().numpy(), b.cpu().numpy()
    rng = numpy_generator(0, "overlap")
    chance = np.array([_agreement(left, rng.permutation(right)) for _ in range(permutations)])  # (permutations, 2)
    low, high = np.quantile(chance, [0.025, 0.975], axis=0)
    ends = zip(chance.mean(0), low, high, strict=True)
    nulls = [Interval(float(mean), float(lowest), float(highest), permutations) for mean, lowest, highest in ends]
    return Overlap(*_agreement(left, right), *nulls)


def _agreement(a: NDArray[np.int64], b: NDArray[np.int64]) -> tuple[float, float]:
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    return float(adjusted_rand_score(a, b)), float(normalized_mutual_info_score(a, b))


def training_overlap(
    data: DataSet,
    images: Tensor,
    labels: Tensor,
    partitions: dict[str, Partition],
    scope: Scope = "all",
    net: nn.Module | None = None,
    tiles: int = 1,
    permutations: int = 100,
) -> dict[str, Overlap]:
    """Do the clusters of training reappear in the test groups? Test images go to their nearest synthetic image.

    images, labels: a decoded small set (M, C, H, W), (M,), `tiles` images in a row from each stored one. Nearness is of
    normalised pixels, or of the features of `net`. Test labels are used under scope "class" only.
    """
    space = (lambda x: embedded(net, x, data)) if net is not None else data.normalise
    clusters = assign(space(data.test_images), data.test_labels, space(images), labels, scope) // tiles
    return {name: overlap(clusters, part.groups, permutations) for name, part in partitions.items()}
