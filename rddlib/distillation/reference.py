"""The method on one page: an outer step of distillation in its plain form.

This is the file to read first, and the one oracle: tests hold the fast loop
(`loop`, `batched`) to it in float64, for each method and each place of the risk
term. No fast path, every symbol of the paper: S the synthetic images, T a batch
of the training set, theta the network, F the losses, c_i the groups, f_alpha in
`risk.cvar`. Sources: the loops of IDC (Kim et al. 2022), DC and DSA (Zhao et al.
2021), DM (Zhao & Bilen 2023); Algorithm 1, Eq. 2 and section 4.1 of the paper.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import risk
from ..base import SettingError, generator
from ..data import augment
from ..data.dataset import DataSet
from . import synthetic
from .loop import STREAMS
from .settings import DistillSettings
from .synthetic import SyntheticSet

# Options of the fast loop that this page leaves out.
WITHOUT = (
    *("real_choice", "groups_from", "match_groups", "risk_images"),
    *("worst_step", "net_start_steps"),
)


def outer_step(
    data: DataSet,
    s: DistillSettings,
    S: Tensor,
    v: Tensor,
    outer: int = 0,
) -> tuple[Tensor, Tensor]:
    """S and its momentum v after one outer step: a new network, then
    `inner_steps` times a step of the images and training of the network.

    S, v: (n_classes, ipc, C, H, W), images in [0, 1]. Draws are those of
    `loop.Loop`: the same streams in the same order. Pixels alone, without a
    generator; SettingError for settings that it does not have (`WITHOUT`).
    """
    for name in WITHOUT:
        if getattr(s, name) != DistillSettings.declared()[name].default:
            default = DistillSettings.declared()[name].default
            raise SettingError(name, getattr(s, name), f"{default!r} here")
    step = Step(data, s, S, v, outer)
    for i in range(s.inner_steps):
        step.move_images()
        if i + 1 < s.inner_steps or step.parts.train_last:
            for _ in range(s.net_steps):
                step.train_network()
    if step.parts.coordinates == "pixel":
        step.S = step.S.clamp(0, 1)
    return step.S, step.v


class Step:
    """The moving parts of one outer step."""

    def __init__(
        self,
        data: DataSet,
        s: DistillSettings,
        S: Tensor,
        v: Tensor,
        outer: int,
    ) -> None:
        self.data, self.s, self.parts = data, s, s.parts()
        self.S, self.v = S, v
        self.draw = {n: generator(s.seed, "outer", outer, n) for n in STREAMS}
        self.theta = s.build_network(data, self.draw["net"]).to(S)
        self.sgd = torch.optim.SGD(
            self.theta.parameters(),
            lr=s.lr_net,
            momentum=self.parts.momentum_net,
            weight_decay=self.parts.decay_net,
        )
        self.rate = s.lr_image * torch.ones_like(S)
        if self.parts.coordinates == "normalised":  # a step of (x - mean) / std
            self.rate *= torch.tensor(data.std).to(S).view(-1, 1, 1) ** 2
        self.centres = self.choose_centres()

    # --- the images: matching ----------------------------------------------

    def move_images(self) -> None:
        """One step of each class's images down the distance to a real batch."""
        before, gradients = self.S, torch.zeros_like(self.S)
        for k in range(self.data.n_classes):
            gradients[k] = self.matching_gradient(k, before)
            if self.parts.image_step == "class":  # one momentum, shared by all
                self.v = self.s.momentum_image * self.v
                self.v[k] += gradients[k]
                self.S = self.S - self.rate * self.v
        if self.parts.image_step == "sum":
            self.v = self.s.momentum_image * self.v + gradients
            self.S = self.S - self.rate * self.v

    def matching_gradient(self, k: int, before: Tensor) -> Tensor:
        """Gradient, at class k's images, of the distance to a real batch."""
        s, data, rule = self.s, self.data, self.parts.augment_rule
        T = data.members[k]
        T = T[torch.randperm(len(T), generator=self.draw["real"])]
        x, y = self.real(T[: s.batch_real])
        S_k = self.S[k].clone().requires_grad_()
        tiles = synthetic.decode(S_k, s.factor)
        if len(tiles) > s.batch_synthetic:
            stream = self.draw["synthetic batch"]
            order = torch.randperm(len(tiles), generator=stream)
            tiles = tiles[order[: s.batch_synthetic]]
        stream = self.draw["match augment"]  # one draw for both batches
        omega = augment.draw(s.match_augment, 1, data.shape[1], stream, rule)
        c = self.clusters(x, y, before) if self.has_term("matching") else None
        target = self.statistic(augment.apply(x, omega), y, c)
        seen = augment.apply(data.normalise(tiles), omega)
        given = self.statistic(seen, torch.full((len(seen),), k))
        (gradient,) = torch.autograd.grad(self.distance(target, given), S_k)
        if s.image_rule == "normalised":
            gradient = gradient / gradient.square().mean().sqrt()
        return gradient

    def statistic(
        self,
        x: Tensor,
        y: Tensor,
        c: Tensor | None = None,
    ) -> list[Tensor]:
        """What is matched: the loss's gradient, or (DM) a mean feature."""
        if self.parts.objective == "mean":
            return [self.theta.embed(x).mean(0)]  # type: ignore[operator]
        F_ = F.cross_entropy(self.theta(x), y, reduction="none")
        loss = F_.mean()
        if c is not None:
            loss = self.robust(F_, c) / (1 + self.s.average + self.s.worst)
        axes = 2 if self.parts.metric == "dc" else 4  # matrices; convolutions
        matched = [p for p in self.theta.parameters() if p.ndim >= axes]
        return list(torch.autograd.grad(loss, matched, create_graph=True))

    def distance(self, target: list[Tensor], given: list[Tensor]) -> Tensor:
        """Squared or absolute differences, or 1 - cosine of every row (DC)."""
        total = torch.zeros((), dtype=given[0].dtype)
        for a, b in zip(target, given, strict=True):
            a = a.detach()
            if self.parts.metric == "idc":
                total = total + ((a - b) ** 2).sum()
            elif self.parts.metric == "l1":
                total = total + (a - b).abs().sum()
            elif self.parts.metric == "l1_mean":
                total = total + (a - b).abs().flatten(1).mean(1).sum()
            else:
                a, b = a.flatten(1), b.flatten(1)
                norms = a.norm(dim=1) * b.norm(dim=1) + 1e-6
                total = total + (1 - (a * b).sum(1) / norms).sum()
        return total

    # --- the network: where the paper's term stands ------------------------

    def train_network(self) -> None:
        """An update of theta on augmented images, with the term if it is on."""
        s, rule = self.s, self.parts.augment_rule
        stream = self.draw["net augment"]
        x, y = self.network_batch()
        omega = augment.draw(s.net_augment, len(x), x.shape[-1], stream, rule)
        seen = augment.apply(x, omega)
        seen, partner, lam = augment.cutmix(seen, stream, s.cutmix)
        logits = self.theta(seen)
        own = F.cross_entropy(logits, y, reduction="none")
        other = F.cross_entropy(logits, y[partner], reduction="none")
        F_ = lam * own + (1 - lam) * other
        loss = F_.mean()
        if self.has_term("network"):
            loss = self.robust(F_, self.clusters(x, y, self.S))
            if s.divide_loss:
                loss = loss / (1 + s.average + s.worst)
        self.sgd.zero_grad()
        loss.backward()
        self.sgd.step()

    def network_batch(self) -> tuple[Tensor, Tensor]:
        """Real images (IDC) or the synthetic ones as they now are (DC, DSA)."""
        n, stream = self.s.net_batch, self.draw["net batch"]
        if self.parts.net_data == "real":
            n_train = len(self.data.train_labels)
            return self.real(torch.randint(n_train, (n,), generator=stream))
        images, labels = self.stored().decoded()
        T = torch.randperm(len(images), generator=stream)[:n]
        return self.data.normalise(images[T]), labels[T]

    def has_term(self, where: str) -> bool:
        """Whether the paper's term stands there and has a gradient."""
        term = self.s.risk in ("upper", "lower", "literal")
        return term and self.s.where == where

    def robust(self, F_: Tensor, c: Tensor) -> Tensor:
        """Cross-entropy + average + largest CVaR over the groups (Eq. 2)."""
        literal = self.s.risk == "literal"  # as printed: minus the lower tail
        tail, sign = ("lower", -1) if literal else (self.s.risk, 1)
        alpha = self.s.alpha
        cvars = [sign * risk.cvar(F_[c == i], alpha, tail) for i in c.unique()]
        mean, largest = torch.stack(cvars).mean(), torch.stack(cvars).max()
        return F_.mean() + self.s.average * mean + self.s.worst * largest

    def clusters(self, x: Tensor, y: Tensor, S: Tensor) -> Tensor:
        """c(x): the stored image whose tile is nearest to x (Algorithm 1)."""
        s = self.s
        stored = S.flatten(0, 1)[self.centres]
        tiles = self.data.normalise(synthetic.decode(stored, s.factor))
        gaps = torch.cdist(self.place(x), self.place(tiles))
        if s.scope == "class":
            owner = (self.centres // s.ipc).repeat_interleave(s.factor**2)
            gaps[y[:, None] != owner[None, :]] = torch.inf
        return gaps.argmin(1) // s.factor**2

    def place(self, x: Tensor) -> Tensor:
        """Where nearness is meant: in features of theta, or among pixels."""
        if self.s.space == "feature":
            self.theta.eval()  # no dropout here
            x = self.theta.embed(x)  # type: ignore[operator]
            self.theta.train()
        return x.detach().flatten(1)

    def choose_centres(self) -> Tensor:
        """The stored images around which the groups lie (section 4.1)."""
        s = self.s
        return synthetic.choose_centres(
            self.stored(),
            s.max_centres,
            s.centre_choice,
            self.draw["centres"],
            s.centres_in_all,
            s.scope,
        )

    def real(self, T: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised training images and their labels."""
        x, y = self.data.train_images[T], self.data.train_labels[T]
        return self.data.normalise(x), y

    def stored(self) -> SyntheticSet:
        """S as a set: (n_classes * ipc, C, H, W)."""
        images = self.S.detach().flatten(0, 1)
        return SyntheticSet(images, self.s.ipc, self.s.factor)
