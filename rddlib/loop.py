"""One outer step of distillation: a new random network, image steps and network steps in turn.

The risk variants differ in one loss and in nothing else, so that `control` is their equal-budget arm: same updates,
same random draws (all streams derive from the seed, the outer step and a purpose, never from the variant). Sources:
protocol of IDC (Kim et al. 2022), DC, DSA, DM, GLaD as released; Algorithm 1 and section 4.1 of the paper.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from . import augment, fused, groups, match, nets, synthetic
from .base import generator
from .data import DataSet
from .methods import DistillSettings
from .prior import Codes, Prior
from .representative import Representatives
from .risk import robust_loss
from .synthetic import SyntheticSet

STREAMS = ("net", "real", "match augment", "net batch", "net augment", "centres", "synthetic batch", "real choice")


@dataclass
class State:
    """A distillation between two outer steps: all that is needed to go on exactly."""

    codes: Codes  # name -> (n_classes * ipc, ...); pixels in [0, 1] where there is no prior
    velocity: Codes  # the same shapes
    outer: int = 0  # outer steps done
    history: list[dict[str, float]] = field(default_factory=list)


def outer_step(data: DataSet, settings: DistillSettings, state: State, prior: Prior) -> State:
    """`inner_steps` of images and network with one new network; pixels are then clamped. `state` is left as it is."""
    loop = Loop(data, settings, state, prior)
    totals = torch.zeros(3, device=data.train_images.device)
    for step in range(settings.inner_steps):
        distance = loop.image_steps()
        if loop.parts.train_last or step + 1 < settings.inner_steps:
            totals[1:] += loop.network_steps()
        totals[0] += distance
    if set(loop.codes) == {"pixels"} and loop.parts.coordinates == "pixel":
        loop.codes["pixels"].clamp_(0, 1)  # once an outer step, as published
    means = (totals / settings.inner_steps).tolist()
    entry = dict(zip(("distance", "cross_entropy", "risk"), means, strict=True))
    return State(loop.codes, loop.velocity, state.outer + 1, [*state.history, entry])


class Loop:
    """The moving parts of one outer step: codes with their momentum, the network, and the random streams."""

    def __init__(self, data: DataSet, settings: DistillSettings, state: State, prior: Prior) -> None:
        self.data, self.s, self.prior = data, settings, prior
        self.parts, self.term = settings.parts(), settings.risk_term()
        self.codes = {name: code.clone() for name, code in state.codes.items()}
        self.velocity = {name: code.clone() for name, code in state.velocity.items()}
        self.device = data.train_images.device
        self.labels = torch.arange(data.n_classes, device=self.device).repeat_interleave(settings.ipc)
        self.members = [(data.train_labels == c).nonzero().flatten() for c in range(data.n_classes)]
        self.streams = {name: generator(settings.seed, "outer", state.outer, name) for name in STREAMS}
        self.net = nets.build(
            settings.network, data.shape, data.n_classes, depth=settings.depth, width=settings.width,
            generator=self.streams["net"],
        ).to(next(iter(self.codes.values())))  # fmt: skip
        self.matched = match.matched_parameters(self.net, self.parts.metric)
        self.optimiser = torch.optim.SGD(
            self.net.parameters(), lr=settings.lr_net, momentum=self.parts.momentum_net,
            weight_decay=self.parts.decay_net,
        )  # fmt: skip
        self.representatives = Representatives(data, self.members, settings, self.streams["real choice"])
        self.risky = self.term.average > 0 or self.term.worst > 0
        if self.risky:
            centres = synthetic.choose_centres(
                self.stored(), settings.max_centres, settings.centre_choice, self.streams["centres"]
            )
            self.centres = centres.to(self.device)

    @torch.no_grad()
    def stored(self) -> SyntheticSet:
        """The images that the codes stand for, as they are now."""
        return SyntheticSet(self.prior.decode(self.codes, self.labels), self.s.ipc, self.s.factor)

    # --- images -------------------------------------------------------------------------------------------

    def image_steps(self) -> Tensor:
        """Move the images by the matching gradient of every class; returns the distance, summed over classes.

        As published, IDC steps after each class with one momentum shared by all: a step of one class also carries the
        others along. DC, DM and GLaD sum the distances and step once.
        """
        robust = self.risky and self.s.where == "matching"
        places = self._centre_places() if robust else None
        distance = torch.zeros((), device=self.device)
        gradients: dict[int, Codes] = {}
        for c in range(self.data.n_classes):
            gap, gradients[c] = self.matching_gradient(c, places)
            distance += gap
            if self.parts.image_step == "class":
                self._move({c: gradients[c]})
        if self.parts.image_step == "sum":
            self._move(gradients)
        return distance

    def matching_gradient(self, c: int, places: Tensor | None = None) -> tuple[Tensor, Codes]:
        """Distance of class `c` and its gradient at the codes of that class. `places`: see `_target`."""
        real = self.data.train_images[self._real_batch(c)]
        theta = augment.draw(
            self.s.match_augment, 1, self.data.shape[1], self.streams["match augment"], self.parts.augment_rule
        )
        target = self._target(self.data.normalise(real), c, theta, places)

        rows = slice(c * self.s.ipc, (c + 1) * self.s.ipc)
        codes = {name: code[rows].clone().requires_grad_() for name, code in self.codes.items()}
        images = self.prior.decode(codes, self.labels[rows])
        own = images.detach().requires_grad_()
        decoded = self._some(synthetic.decode(own, self.s.factor))
        seen = augment.apply(self.data.normalise(decoded), theta)
        gap, at_seen = self._gap(seen, c, target)
        (pixels,) = torch.autograd.grad(seen, own, at_seen)
        pulled = torch.autograd.grad(images, list(codes.values()), pixels)  # through the prior, as GLaD does
        return gap, dict(zip(codes, pulled, strict=True))

    def _gap(self, seen: Tensor, c: int, target: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Distance of a synthetic batch, as the network sees it, to the target, and the gradient at its images."""
        metric = self.parts.metric

        def loss(logits: Tensor) -> Tensor:
            return F.cross_entropy(logits, torch.full((len(logits),), c, device=logits.device))

        if self.parts.objective == "gradient" and fused.usable(seen) and fused.differentiable(self.net):
            with torch.autocast(seen.device.type, enabled=False):  # written out for one type of number
                return fused.image_gradient(
                    self.net, seen.detach(), loss, lambda found: match.distance(target, found, metric), metric == "dc"
                )
        images = seen.detach().requires_grad_()
        gap = match.distance(target, self._statistic(images, c), metric)
        return gap.detach(), torch.autograd.grad(gap, images)[0]

    def _move(self, gradients: dict[int, Codes]) -> None:
        rates = self.prior.rates()
        for name, velocity in self.velocity.items():
            velocity *= self.s.momentum_image
            for c, codes in gradients.items():
                velocity[c * self.s.ipc : (c + 1) * self.s.ipc] += codes[name]
            self.codes[name] -= self.s.lr_image * rates[name] * self._scale(name) * velocity

    def _scale(self, name: str) -> Tensor | float:
        """A step in normalised coordinates is one in pixels, times the square of the channel's scale."""
        if name != "pixels" or self.parts.coordinates == "pixel":
            return 1.0
        return torch.tensor(self.data.std, device=self.device).square().view(-1, 1, 1)

    def _target(self, x: Tensor, c: int, theta: augment.Draw, places: Tensor | None) -> list[Tensor]:
        """What the synthetic batch is to reach: the statistic of a real one.

        With `places` (of the centres) it is the gradient of the robust objective, divided by its total weight 1 +
        average + worst: a weighted mean of the images' gradients, as the plain one is. Derivation: the book's page on
        matching a robust objective.
        """
        seen = augment.apply(x, theta)
        if places is None:
            return [t.detach() for t in self._statistic(seen, c)]
        label = torch.full((len(x),), c, device=x.device)
        losses = F.cross_entropy(self.net(seen), label, reduction="none")
        loss = robust_loss(losses, *self._groups(x, label, places), self.term)
        weight = 1 + self.term.average + self.term.worst if self.term.differentiable else 1
        return match.gradients(loss / weight, self.matched)

    def _statistic(self, x: Tensor, c: int) -> list[Tensor]:
        """What is matched, of one class's augmented images; differentiable in them where they ask for it."""
        if self.parts.objective == "mean":
            with torch.set_grad_enabled(x.requires_grad):
                return match.feature_mean(self.net, x)
        loss = F.cross_entropy(self.net(x), torch.full((len(x),), c, device=x.device))
        return match.gradients(loss, self.matched, create_graph=x.requires_grad)

    # --- network ------------------------------------------------------------------------------------------

    def network_steps(self) -> Tensor:
        """Train the network; returns the mean cross-entropy and the mean risk term, a tensor (2,)."""
        sums = torch.zeros(2, device=self.device)
        robust = self.risky and self.s.where == "network"
        whole = None if self.parts.net_data == "real" or not self.s.net_steps else self.stored().decoded()
        for _ in range(self.s.net_steps):
            x, y = self._net_batch(whole)
            losses = self._augmented_losses(x, y)
            loss = losses.mean()
            if robust:
                loss = robust_loss(losses, *self._groups(x, y, self._centre_places()), self.term)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self.optimiser.step()
            sums += torch.stack([losses.mean(), loss - losses.mean()]).detach()
        return sums / max(self.s.net_steps, 1)

    def _net_batch(self, whole: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """Normalised images and labels of one update: drawn real ones, or of the synthetic set as it is now."""
        images, labels = whole or (self.data.train_images, self.data.train_labels)
        if whole is None:
            index = torch.randint(len(labels), (self.s.net_batch,), generator=self.streams["net batch"])
        else:
            index = torch.randperm(len(labels), generator=self.streams["net batch"])[: self.s.net_batch]
        index = index.to(self.device)
        return self.data.normalise(images[index]), labels[index]

    def _augmented_losses(self, x: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy of each image (N,) after augmentation and CutMix; a mixed image counts for its own group."""
        stream = self.streams["net augment"]
        x = augment.apply(x, augment.draw(self.s.net_augment, len(x), x.shape[-1], stream, self.parts.augment_rule))
        x, partner, share = augment.cutmix(x, stream, self.s.cutmix)
        logits = self.net(x)
        own = F.cross_entropy(logits, y, reduction="none")
        return own if share == 1 else share * own + (1 - share) * F.cross_entropy(logits, y[partner], reduction="none")

    # --- clusters -----------------------------------------------------------------------------------------

    @torch.no_grad()
    def _centre_places(self) -> Tensor:
        """Where the centres lie: each decoded tile of the chosen stored images, in the space of `space`."""
        chosen = self.stored().images[self.centres]
        return self._place(self.data.normalise(synthetic.decode(chosen, self.s.factor)))

    def _groups(self, x: Tensor, y: Tensor, places: Tensor) -> tuple[Tensor, int]:
        """Cluster of each image: the stored image that holds the nearest of the decoded ones at `places`."""
        tiles = self.s.factor**2
        owner = (self.centres // self.s.ipc).repeat_interleave(tiles)
        with torch.no_grad():
            return groups.assign(self._place(x), y, places, owner, self.s.scope) // tiles, len(self.centres)

    def _place(self, x: Tensor) -> Tensor:
        return self.net.embed(x) if self.s.space == "feature" else x  # type: ignore[operator]

    # --- batches ------------------------------------------------------------------------------------------

    def _real_batch(self, c: int) -> Tensor:
        if self.s.real_choice == "representative":
            return self.representatives.batch(c, self.net)
        members = self.members[c]
        chosen = torch.randperm(len(members), generator=self.streams["real"])[: self.s.batch_real]
        return members[chosen.to(members.device)]

    def _some(self, decoded: Tensor) -> Tensor:
        if len(decoded) <= self.s.batch_synthetic:
            return decoded
        chosen = torch.randperm(len(decoded), generator=self.streams["synthetic batch"])[: self.s.batch_synthetic]
        return decoded[chosen.to(decoded.device)]
