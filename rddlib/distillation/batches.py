"""Which real images are matched, and which a set begins from, where chance alone does not decide.

Representative: k-means in the network's features, and of each cluster the image nearest to its centre. Balanced and
covering: as many of each group.

An option of the loop after DREAM (Liu et al., ICCV 2023): an even choice in the place of a random one, clustered anew
at intervals because the network changes. A batch has as many images as there are clusters and stays until the next
clustering. DREAM clusters all images of a class; `real_pool` clusters a random part, which costs in proportion less.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..data.dataset import DataSet
from ..models import features, networks
from . import synthetic
from .settings import DistillSettings


class Representatives:
    """The representative batches of one outer step.

    `stream`: a generator of this purpose alone, so that every other draw of the loop is that of the random choice.
    """

    def __init__(self, data: DataSet, settings: DistillSettings, stream: torch.Generator) -> None:
        self.data = data
        self.s = settings
        self.stream = stream
        self.calls = [0] * data.n_classes
        self.kept: dict[int, Tensor] = {}

    def batch(self, c: int, net: nn.Module) -> Tensor:
        """Indices (batch_real,) of training images of class `c`, distinct; `net` embeds them where they are due anew.

        Cost: nothing, but at every `real_choice_interval`-th call of a class a forward pass of `real_pool` images.
        """
        if self.calls[c] % self.s.real_choice_interval == 0:
            self.kept[c] = self._choose(c, net)
        self.calls[c] += 1
        return self.kept[c]

    def _choose(self, c: int, net: nn.Module) -> Tensor:
        pool = self.data.members[c]
        if self.s.real_pool is not None:
            pool = pool[torch.randperm(len(pool), generator=self.stream)[: self.s.real_pool]]
        images = self.data.train_images
        with networks.evaluating(net):
            points = features.embedded(net, images[pool.to(images.device)], self.data)
        seed = int(torch.randint(2**31 - 1, (), generator=self.stream))
        return pool[nearest_to_centres(points, self.s.batch_real, seed)]


def batch_of_groups(members: Tensor, groups: Tensor, size: int, stream: torch.Generator) -> Tensor:
    """Indices (size,) of training images, of each group among `members` as many, but for a remainder of one.

    `members`: indices of the images to draw from; `groups` (n_train,): the group of every training image. Which groups
    get one more is drawn. Without replacement; a group with fewer images than its share is drawn from with replacement.
    """
    group_of = groups[members]
    present = group_of.unique()
    order = present[torch.randperm(len(present), generator=stream)].tolist()
    chosen = []
    for place, group in enumerate(order):
        share = size // len(order) + (place < size % len(order))
        pool = members[group_of == group]
        if share <= len(pool):
            index = torch.randperm(len(pool), generator=stream)[:share]
        else:
            index = torch.randint(len(pool), (share,), generator=stream)
        chosen.append(pool[index])
    return torch.cat(chosen)


def start_indices(data: DataSet, settings: DistillSettings, stream: torch.Generator) -> Tensor:
    """Indices (n_classes * ipc * factor**2,) of the real images from which a set begins, class after class."""
    needed = settings.ipc * settings.factor**2
    if settings.start == "random":
        return synthetic.draw_real(data, needed, stream)
    chosen = []
    for members in data.members:
        if settings.start == "covering":
            chosen.append(batch_of_groups(members, data.host_groups, needed, stream))
        else:
            seed = int(torch.randint(2**31 - 1, (), generator=stream))
            points = data.normalise(data.train_images[members.to(data.train_images.device)])
            chosen.append(members[nearest_to_centres(points, needed, seed)])
    return torch.cat(chosen)


def nearest_to_centres(points: Tensor, k: int, seed: int) -> Tensor:
    """Indices (k,) of the points (N, D) nearest to the centres of k clusters, each at most once; k <= N.

    Where two centres share their nearest point, the one that lies closer gets it and the other its next free one.
    scikit-learn's MiniBatchKMeans from one k-means++ start; a fixed seed gives the same indices. Cost: O(N k D).
    """
    from sklearn.cluster import MiniBatchKMeans

    flat = points.flatten(1).float().cpu()
    clustering = MiniBatchKMeans(n_clusters=k, n_init=1, init_size=len(flat), random_state=seed).fit(flat.numpy())
    gaps = torch.cdist(torch.from_numpy(clustering.cluster_centers_), flat)  # (k, N)
    chosen = torch.empty(k, dtype=torch.int64)
    for centre in gaps.amin(1).argsort(stable=True).tolist():
        chosen[centre] = int(gaps[centre].argmin())
        gaps[:, chosen[centre]] = torch.inf
    return chosen
