"""The method on one page: one outer step of distillation, plain, with every symbol of the paper and no fast path.

This is the file to read first, and the one oracle: tests hold the fast loop (`loop`, `batched`) to it in float64 for
each method and each place of the risk term, and speed is measured against it. Sources: the loop of IDC (Kim et al.
2022), DC and DSA (Zhao et al. 2021), DM (Zhao & Bilen 2023); the robust term of Eq. 2 and section 4.1 of the paper.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import risk
from ..base import generator
from ..data import augment
from ..data.dataset import DataSet
from ..models import networks
from . import synthetic
from .loop import STREAMS
from .settings import DistillSettings


def outer_step(data: DataSet, s: DistillSettings, S: Tensor, velocity: Tensor, outer: int = 0) -> tuple[Tensor, Tensor]:
    """S and its momentum after one outer step: a new network, `inner_steps` of images and network in turn.

    S and `velocity`: (n_classes, ipc, C, H, W), stored images in [0, 1]. Draws are those of `loop.Loop` (same streams,
    same order). Pixels alone: no generator, and none of representative, risk_images, worst_step, fused.
    """
    draw = {name: generator(s.seed, "outer", outer, name) for name in STREAMS}
    parts, tails = s.parts(), s.risk in ("upper", "lower")
    built = networks.build(s.network, data.shape, data.n_classes, depth=s.depth, width=s.width, generator=draw["net"])
    theta = built.to(S)
    train = torch.optim.SGD(theta.parameters(), s.lr_net, parts.momentum_net, weight_decay=parts.decay_net)
    axes = {"idc": 4, "dc": 2}[parts.metric]  # gradients at convolutions alone, or at every matrix
    matched = [p for p in theta.parameters() if p.ndim >= axes]
    rate = s.lr_image * torch.ones_like(S)
    if parts.coordinates == "normalised":
        rate = rate * torch.tensor(data.std).to(S).view(-1, 1, 1) ** 2
    flat = synthetic.SyntheticSet(S.flatten(0, 1), s.ipc, s.factor)
    if s.centres_in_all is None:
        centres = synthetic.choose_centres(flat, s.max_centres, s.centre_choice, draw["centres"])
    else:
        centres = synthetic.centres_in_all(data.n_classes, s.ipc, s.centres_in_all, s.scope, draw["centres"])

    def place(x: Tensor) -> Tensor:
        features: Tensor = theta.embed(x) if s.space == "feature" else x  # type: ignore[operator]
        return features.detach().flatten(1)

    def clusters(x: Tensor, y: Tensor, S: Tensor) -> Tensor:
        """c_i: for each real image the number of its nearest synthetic one (Algorithm 1)."""
        tiles = data.normalise(synthetic.decode(S.detach().flatten(0, 1)[centres], s.factor))
        owner = (centres // s.ipc).repeat_interleave(s.factor**2)
        gaps = torch.cdist(place(x), place(tiles))
        if s.scope == "class":
            gaps[y[:, None] != owner[None, :]] = torch.inf
        return gaps.argmin(1) // s.factor**2

    def robust(losses: Tensor, c: Tensor) -> Tensor:
        """Cross-entropy + average + largest CVaR of the groups (Eq. 2 as section 4 uses it)."""
        cvars = torch.stack([risk.cvar(losses[c == i], s.alpha, s.risk) for i in c.unique()])
        return losses.mean() + s.average * cvars.mean() + s.worst * cvars.max()

    def statistic(x: Tensor, y: Tensor, c: Tensor | None = None) -> list[Tensor]:
        """What is matched: the gradient of the loss at theta, or the mean feature (DM)."""
        if parts.objective == "mean":
            return [theta.embed(x).mean(0)]  # type: ignore[operator]
        losses = F.cross_entropy(theta(x), y, reduction="none")
        loss = losses.mean() if c is None else robust(losses, c) / (1 + s.average + s.worst)
        return list(torch.autograd.grad(loss, matched, create_graph=True))

    def distance(real: list[Tensor], own: list[Tensor]) -> Tensor:
        if parts.metric == "idc":
            return torch.stack([((a.detach() - b) ** 2).sum() for a, b in zip(real, own, strict=True)]).sum()
        rows = [(a.detach().flatten(1), b.flatten(1)) for a, b in zip(real, own, strict=True)]
        norms = [a.norm(dim=1) * b.norm(dim=1) + 1e-6 for a, b in rows]
        cosines = [(a * b).sum(1) / norm for (a, b), norm in zip(rows, norms, strict=True)]
        return (1 - torch.cat(cosines)).sum()

    for step in range(s.inner_steps):
        at_start, gradients = S.clone(), torch.zeros_like(S)
        for k in range(data.n_classes):
            members = (data.train_labels == k).nonzero().flatten()
            real = members[torch.randperm(len(members), generator=draw["real"])[: s.batch_real]]
            x, y = data.normalise(data.train_images[real]), data.train_labels[real]
            own = S[k].clone().requires_grad_()
            tiles = synthetic.decode(own, s.factor)
            if len(tiles) > s.batch_synthetic:
                tiles = tiles[torch.randperm(len(tiles), generator=draw["synthetic batch"])[: s.batch_synthetic]]
            omega = augment.draw(s.match_augment, 1, data.shape[1], draw["match augment"], parts.augment_rule)
            c = clusters(x, y, at_start) if tails and s.where == "matching" else None
            target = statistic(augment.apply(x, omega), y, c)
            given = statistic(augment.apply(data.normalise(tiles), omega), torch.full((len(tiles),), k))
            (g,) = torch.autograd.grad(distance(target, given), own)
            gradients[k] = g if s.image_rule == "sgd" else g / g.square().mean().sqrt()
            if parts.image_step == "class":
                velocity = s.momentum_image * velocity
                velocity[k] += gradients[k]
                S = S - rate * velocity
        if parts.image_step == "sum":
            velocity = s.momentum_image * velocity + gradients
            S = S - rate * velocity
        if step + 1 == s.inner_steps and not parts.train_last:
            break
        for _ in range(s.net_steps):
            if parts.net_data == "real":
                T = torch.randint(len(data.train_labels), (s.net_batch,), generator=draw["net batch"])
                x, y = data.normalise(data.train_images[T]), data.train_labels[T]
            else:
                images, labels = synthetic.SyntheticSet(S.flatten(0, 1), s.ipc, s.factor).decoded()
                T = torch.randperm(len(images), generator=draw["net batch"])[: s.net_batch]
                x, y = data.normalise(images[T]), labels[T]
            omega = augment.draw(s.net_augment, len(x), x.shape[-1], draw["net augment"], parts.augment_rule)
            mixed, partner, lam = augment.cutmix(augment.apply(x, omega), draw["net augment"], s.cutmix)
            logits = theta(mixed)
            losses = lam * F.cross_entropy(logits, y, reduction="none")
            losses = losses + (1 - lam) * F.cross_entropy(logits, y[partner], reduction="none")
            loss = losses.mean()
            if tails and s.where == "network":
                loss = robust(losses, clusters(x, y, S))
                loss = loss / (1 + s.average + s.worst) if s.divide_loss else loss
            train.zero_grad()
            loss.backward()
            train.step()
    return (S.clamp(0, 1) if parts.coordinates == "pixel" else S), velocity
