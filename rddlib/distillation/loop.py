"""One outer step of distillation: a new random network, image steps and network steps in turn.

The risk variants differ in one loss and in nothing else, so that `control` is their equal-budget arm: same updates,
same random draws (all streams derive from the seed, the outer step and a purpose, never from the variant). Sources:
protocol of IDC (Kim et al. 2022), DC, DSA, DM, GLaD as released; Algorithm 1 and section 4.1 of the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import DivergenceError, SettingError, generator, to_device, to_device_together, to_host
from ..data import augment
from ..data.dataset import DataSet, by_channel
from ..models import fused, networks
from ..risk import group_risk, group_weights, robust_loss
from . import clusters, matching, synthetic
from .batches import Representatives, batch_of_groups
from .glad.prior import Codes, Prior
from .settings import DistillSettings
from .synthetic import SyntheticSet

STREAMS = (
    "net",
    "real",
    "match augment",
    "net batch",
    "net augment",
    "centres",
    "synthetic batch",
    "real choice",
    "risk batch",
    "risk augment",
    "start batch",
    "start augment",
)
TOGETHER = 32  # updates before the first image step whose images are augmented in one call, on devices but a CPU
PROBED = 256  # images on which the loop's network is probed: a few milliseconds beside an outer step


@dataclass
class State:
    """A distillation between two outer steps: all that is needed to go on exactly."""

    codes: Codes  # name -> (n_classes * ipc, ...); pixels in [0, 1] where there is no prior
    velocity: Codes  # the same shapes
    outer: int = 0  # outer steps done
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Drawn:
    """What chance decides for one class in one inner step."""

    real: Tensor  # int64 (batch_real,), of all training images, on their device
    theta: augment.Draw  # shared by the real and the synthetic batch
    some: Tensor | None  # which decoded images are matched, int64 (batch_synthetic,); None: all of them


@dataclass(frozen=True)
class Batch:
    """What one update of the network, or its risk term, is given."""

    x: Tensor  # normalised images (N, C, H, W) before augmentation
    y: Tensor  # labels (N,)
    index: Tensor  # which images they are (N,)
    seen: Tensor  # the images after augmentation and CutMix
    mixed: tuple[Tensor, float] | Tensor  # partners (N,) and the share of its own pixels, or labels (N, n_classes)


def outer_step(
    data: DataSet, settings: DistillSettings, state: State, prior: Prior, make: Callable[..., Loop] | None = None
) -> State:
    """`inner_steps` of images and network with one new network; pixels are then clamped. `state` is left as it is.

    `make`: another kind of `Loop`, which goes the same way (`batched`).
    """
    loop = (make or Loop)(data, settings, state, prior)
    loop.start_network()
    trainings = settings.inner_steps if loop.parts.train_last else settings.inner_steps - 1
    probed = {0: "probe_first", trainings // 2: "probe_middle", trainings - 1: "probe_last"}
    if trainings == 1:
        probed = {0: "probe_last"}
    distances, losses, looks = [], [], dict[str, Tensor]()
    for step in range(settings.inner_steps):
        distance, loss = loop.inner_step(step < trainings, first=step == 0, last=step == trainings - 1)
        distances.append(distance)
        if loss is not None:
            losses.append(loss)
            if step in probed and settings.net_steps:
                looks[probed[step]] = loop.probe()
    loop.finish()
    looks |= loop.mechanism()
    finite = torch.stack([code.isfinite().all() for code in loop.codes.values()]).all()
    trained = torch.stack(losses) if losses else distances[0].new_zeros(0, 2)
    moved, trained, finite, *values = to_host([torch.stack(distances), trained, finite, *looks.values()])
    _check_finite(loop, moved, trained, bool(finite), state.outer)
    entry = {"distance": float(moved.mean()), "cross_entropy": 0.0, "risk": 0.0}
    if losses:
        entry["cross_entropy"], entry["risk"] = trained.mean(0).tolist()
    entry |= {name: float(value) for name, value in zip(looks, values, strict=True)}
    return State(loop.codes, loop.velocity, state.outer + 1, [*state.history, entry])


def _check_finite(loop: Loop, distances: Tensor, losses: Tensor, finite: bool, outer: int) -> None:
    """Raise DivergenceError, with the step, where a distance, a loss or an image is not a finite number.

    `distances` (inner_steps,) and `losses` (trainings, 2) on the host; `finite`: whether all images are.
    """
    where = f"outer step {outer + 1}, inner step"
    bad = (~distances.isfinite()).nonzero().flatten().tolist()
    worse = (~losses.isfinite().all(1)).nonzero().flatten().tolist()
    if worse and (not bad or worse[0] < bad[0]):
        raise DivergenceError(
            f"{where} {worse[0] + 1}: the loss of the loop's network is not finite. A smaller lr_net "
            f"(now {loop.s.lr_net:g}) may help"
        )
    if bad or not finite:
        step = bad[0] + 1 if bad else loop.s.inner_steps
        raise DivergenceError(
            f"{where} {step}: the matched distance or the images are not finite. A smaller lr_image "
            f"(now {loop.s.lr_image:g}) may help"
        )


class Loop:
    """The moving parts of one outer step: codes with their momentum, the network, and the random streams."""

    def __init__(self, data: DataSet, settings: DistillSettings, state: State, prior: Prior) -> None:
        self.data, self.s, self.prior = data, settings, prior
        self.parts, self.term = settings.parts(), settings.risk_term()
        self.codes = {name: code.clone() for name, code in state.codes.items()}
        self.velocity = {name: code.clone() for name, code in state.velocity.items()}
        self.device = data.train_images.device
        self.labels = torch.arange(data.n_classes, device=self.device).repeat_interleave(settings.ipc)
        labels = data.train_labels.cpu()
        self.members = [(labels == c).nonzero().flatten() for c in range(data.n_classes)]
        self.streams = {name: generator(settings.seed, "outer", state.outer, name) for name in STREAMS}
        self.net = networks.build(
            settings.network, data.shape, data.n_classes, depth=settings.depth, width=settings.width,
            generator=self.streams["net"],
        ).to(self.device, next(iter(self.codes.values())).dtype, non_blocking=True)  # fmt: skip
        self.rates = {name: settings.lr_image * rate * self._scale(name) for name, rate in prior.rates().items()}
        self.matched = matching.matched_parameters(self.net, self.parts.metric)
        self.optimiser = torch.optim.SGD(
            self.net.parameters(), lr=settings.lr_net, momentum=self.parts.momentum_net,
            weight_decay=self.parts.decay_net,
        )  # fmt: skip
        self.representatives = Representatives(data, self.members, settings, self.streams["real choice"])
        self.risky = self.term.average > 0 or self.term.worst > 0
        self.in_network = self.risky and settings.where == "network"
        self.in_matching = self.risky and settings.where == "matching"
        self.groups, self.n_groups = self._known_groups()
        self.seen_groups: list[Tensor] = []  # images in each group, (n_groups,), at the first and the last update
        self.seen_gradients: list[Tensor] = []  # ratio and cosine of the term's gradient there, (2,)
        if self.risky:
            if self.groups is None:
                self.centres = to_device(self._choose_centres(), self.device)
                self.n_groups = len(self.centres)
            like = next(iter(self.codes.values()))
            self.group_weights = like.new_full((self.n_groups,), 1 / self.n_groups)

    @torch.no_grad()
    def stored(self) -> SyntheticSet:
        """The images that the codes stand for, as they are now."""
        return SyntheticSet(self.prior.decode(self.codes, self.labels), self.s.ipc, self.s.factor)

    def finish(self) -> None:
        """After the last inner step: pixels are clamped, once an outer step, as published."""
        if set(self.codes) == {"pixels"} and self.parts.coordinates == "pixel":
            self.codes["pixels"].clamp_(0, 1)

    def inner_step(self, trained: bool = True, first: bool = False, last: bool = False) -> tuple[Tensor, Tensor | None]:
        """Image steps and, if it is `trained`, the network's updates; what both return. See `network_steps`."""
        distance = self.image_steps()
        return distance, self.network_steps(first, last) if trained else None

    # --- images -------------------------------------------------------------------------------------------

    def image_steps(self) -> Tensor:
        """Move the images by the matching gradient of every class; returns the distance, summed over classes.

        As published, IDC steps after each class with one momentum shared by all: a step of one class also carries the
        others along. DC, DM and GLaD sum the distances and step once.
        """
        places = self._matched_places()
        distance = torch.zeros((), device=self.device)
        gradients: dict[int, Codes] = {}
        for c, drawn in enumerate(self.draws(range(self.data.n_classes))):
            gap, gradients[c] = self.matching_gradient(c, places, drawn)
            distance += gap
            if self.parts.image_step == "class":
                self._move({c: gradients[c]})
        if self.parts.image_step == "sum":
            self._move(gradients)
        return distance

    def draws(self, classes: Sequence[int]) -> list[Drawn]:
        """The draws of these classes, in order, on the device; sent in one copy."""
        return self._on_device(self.host_draws(classes))

    def host_draws(self, classes: Sequence[int]) -> list[Drawn]:
        """As `draws`, on the host.

        Each kind of draw has a stream of its own, so that a class gets what it would get if it were asked for alone.
        """
        draws = []
        decoded = self.s.ipc * self.s.factor**2
        how = (self.s.match_augment, 1, self.data.shape[1], self.streams["match augment"], self.parts.augment_rule)
        for c in classes:
            real, some = self._real(c), None
            if decoded > self.s.batch_synthetic:
                some = torch.randperm(decoded, generator=self.streams["synthetic batch"])[: self.s.batch_synthetic]
            draws.append(Drawn(real, augment.draw(*how), some))
        return draws

    def _on_device(self, draws: list[Drawn]) -> list[Drawn]:
        """Draws of the host on the device, in one copy; a shared crop stays on the host (see `augment.Draw.to`)."""
        if self.device.type == "cpu":
            return draws
        names = ("flip", "color", "affine", "cutout")
        each = [[d.real, d.some, *(getattr(d.theta, name) for name in names)] for d in draws]
        there = iter(to_device_together([t for tensors in each for t in tensors], self.device))
        result = []
        for d in draws:
            real, some = cast(Tensor, next(there)), next(there)
            theta = replace(d.theta, **{name: next(there) for name in names})
            result.append(Drawn(real, theta, some))
        return result

    def _real(self, c: int) -> Tensor:
        """Indices of the real images of class `c` that are matched next, on the host."""
        if self.s.real_choice == "representative":
            return self.representatives.batch(c, self.net)
        if self.s.real_choice == "balanced":
            return batch_of_groups(self.members[c], self._host_groups, self.s.batch_real, self.streams["real"])
        chosen = torch.randperm(len(self.members[c]), generator=self.streams["real"])[: self.s.batch_real]
        return self.members[c][chosen]

    def real_images(self, drawn: Drawn) -> Tensor:
        """The real batch, normalised: (batch_real, C, H, W)."""
        return self.data.normalise(self.data.train_images[drawn.real])

    def seen(self, images: Tensor, drawn: Drawn) -> Tensor:
        """What the network sees of one class's stored images (ipc, C, H, W); differentiable in them."""
        decoded = synthetic.decode(images, self.s.factor)
        decoded = decoded if drawn.some is None else decoded[drawn.some]
        return augment.apply(self.data.normalise(decoded), drawn.theta)

    def matching_gradient(
        self, c: int, places: Tensor | None = None, drawn: Drawn | None = None, at: Codes | None = None
    ) -> tuple[Tensor, Codes]:
        """Distance of class `c` and its gradient at the codes of that class, as they are or as given by `at`.

        `places`: see `_target`. `drawn`: else it is drawn now.
        """
        drawn = drawn or self.draws([c])[0]
        target = self._target(drawn, c, places)

        rows = slice(c * self.s.ipc, (c + 1) * self.s.ipc)
        at = at or {name: code[rows] for name, code in self.codes.items()}
        codes = {name: code.clone().requires_grad_() for name, code in at.items()}
        images = self.prior.decode(codes, self.labels[rows])
        own = images.detach().requires_grad_()
        seen = self.seen(own, drawn)
        gap, at_seen = self._gap(seen, c, target)
        (pixels,) = torch.autograd.grad(seen, own, at_seen)
        pulled = torch.autograd.grad(images, list(codes.values()), pixels)  # through the prior, as GLaD does
        return gap, dict(zip(codes, pulled, strict=True))

    def _gap(self, seen: Tensor, c: int, target: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Distance of a synthetic batch, as the network sees it, to the target, and the gradient at its images."""
        metric = self.parts.metric

        def loss(logits: Tensor) -> Tensor:
            return F.cross_entropy(logits, torch.full((len(logits),), c, device=logits.device))

        if self.parts.objective == "gradient" and fused.differentiable(self.net) and fused.written_out(seen):
            with fused.one_precision(seen):
                return fused.image_gradient(
                    self.net,
                    seen.detach(),
                    loss,
                    lambda found: matching.distance(target, found, metric),
                    metric == "dc",
                )
        images = seen.detach().requires_grad_()
        gap = matching.distance(target, self._statistic(images, c), metric)
        return gap.detach(), torch.autograd.grad(gap, images)[0]

    def _move(self, gradients: dict[int, Codes]) -> None:
        for name, velocity in self.velocity.items():
            velocity *= self.s.momentum_image
            for c, codes in gradients.items():
                velocity[c * self.s.ipc : (c + 1) * self.s.ipc] += self.direction(codes[name])
            self.codes[name] -= self.rates[name] * velocity

    def direction(self, gradient: Tensor) -> Tensor:
        """What the images of one class follow: their gradient (ipc, ...), or that over its root mean square."""
        if self.s.image_rule == "sgd":
            return gradient
        scale = gradient.square().mean().sqrt()
        return gradient / scale.clamp(min=torch.finfo(gradient.dtype).tiny)

    def _scale(self, name: str) -> Tensor | float:
        """A step in normalised coordinates is one in pixels, times the square of the channel's scale."""
        if name != "pixels" or self.parts.coordinates == "pixel":
            return 1.0
        return by_channel(self.data.std, self.device, torch.float32).square()

    def _target(self, drawn: Drawn, c: int, places: Tensor | None) -> list[Tensor]:
        """What the synthetic batch is to reach: the statistic of a real one.

        With the term in the matched gradient it is the gradient of the robust objective, divided by its total weight
        1 + average + worst: a weighted mean of the images' gradients, as the plain one is (the book's page on matching
        a robust objective). With match_groups "equal" every group of the batch has the same weight, whatever its size,
        which for squared distances moves the images as the distances to all groups' statistics together do (FairDD).
        """
        x = self.real_images(drawn)
        seen = augment.apply(x, drawn.theta)
        if self.s.match_groups == "equal":
            return self._weighted_statistic(seen, c, self._equal_weights(drawn.real))
        if not self.in_matching or (places is None and self.groups is None):
            return [t.detach() for t in self._statistic(seen, c)]
        label = torch.full((len(x),), c, device=x.device)
        losses = F.cross_entropy(self.net(seen), label, reduction="none")
        loss = robust_loss(losses, *self._groups(x, label, places, drawn.real), self.term)
        weight = 1 + self.term.average + self.term.worst if self.term.differentiable else 1
        return matching.gradients(loss / weight, self.matched)

    def _equal_weights(self, real: Tensor) -> Tensor:
        """Weight of each real image (batch_real,), sum 1: the groups alike, and alike the images of one group."""
        if self.groups is None:
            raise SettingError("match_groups", "equal", "with groups known beforehand (groups_from)")
        groups = self.groups[real]
        counts = _sizes(groups, self.n_groups)
        return 1 / (counts[groups] * (counts > 0).sum())

    def _weighted_statistic(self, seen: Tensor, c: int, weights: Tensor) -> list[Tensor]:
        """As `_statistic`, with a weight for each image; not differentiable."""
        if self.parts.objective == "mean":
            with torch.no_grad():
                features: Tensor = self.net.embed(seen)  # type: ignore[operator]
                return [weights.to(features.dtype) @ features]
        losses = F.cross_entropy(self.net(seen), torch.full((len(seen),), c, device=seen.device), reduction="none")
        return matching.gradients((weights.to(losses.dtype) * losses).sum(), self.matched)

    def _statistic(self, x: Tensor, c: int) -> list[Tensor]:
        """What is matched, of one class's augmented images; differentiable in them where they ask for it."""
        if self.parts.objective == "mean":
            with torch.set_grad_enabled(x.requires_grad):
                return matching.feature_mean(self.net, x)
        loss = F.cross_entropy(self.net(x), torch.full((len(x),), c, device=x.device))
        return matching.gradients(loss, self.matched, create_graph=x.requires_grad)

    # --- network ------------------------------------------------------------------------------------------

    def network_steps(self, first: bool = False, last: bool = False) -> Tensor:
        """Train the network; returns the mean cross-entropy and the mean risk term, a tensor (2,).

        `first`, `last`: whether these are the first or the last updates of this network, where `mechanism` looks.
        """
        sums = torch.zeros(2, device=self.device)
        whole = None if self.parts.net_data == "real" or not self.s.net_steps else self.stored().decoded()
        extra = self._update_batches("risk", None)
        tiles = self._centre_tiles() if self.in_network and self.s.net_steps else None
        for number, batch in enumerate(self._update_batches("net", whole)):
            losses = self._losses(batch)
            loss = losses.mean()
            if self.in_network:
                looked_at = (first and number == 0) or (last and number == self.s.net_steps - 1)
                loss = self._with_term(batch, losses, next(extra, None), tiles, looked_at)
            sums += torch.stack([losses.mean(), loss - losses.mean()]).detach()
            if self.in_network and self.s.divide_loss:
                loss = loss / (1 + self.term.average + self.term.worst)
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
            self.optimiser.step()
        return sums / max(self.s.net_steps, 1)

    def start_network(self) -> None:
        """The updates before the first image step: real images, cross-entropy alone (IDC on ImageNet: ten epochs)."""
        indices = self._indices("start")
        for begin in range(0, len(indices), TOGETHER):
            for batch in self._batches(None, indices[begin : begin + TOGETHER], self.streams["start augment"]):
                loss = self._losses(batch).mean()
                self.optimiser.zero_grad(set_to_none=True)
                loss.backward()
                self.optimiser.step()

    def _with_term(
        self, batch: Batch, losses: Tensor, extra: Batch | None, tiles: Tensor | None, looked_at: bool
    ) -> Tensor:
        """Mean of the losses plus the risk term, over the images of the batch and, if any, those of `extra`.

        `tiles`: see `_centre_tiles`.
        """
        mean, all_losses, all_x, all_y, index = losses.mean(), losses, batch.x, batch.y, batch.index
        if extra is not None:
            all_losses = torch.cat([losses, self._losses(extra)])
            all_x, all_y = torch.cat([batch.x, extra.x]), torch.cat([batch.y, extra.y])
            index = torch.cat([index, extra.index])
        if tiles is None or self.device.type == "cpu":
            places, own = None if tiles is None else self._places(tiles), None
        else:  # half the launches
            places, own = self._places(torch.cat([tiles, all_x])).split([len(tiles), len(all_x)])
        groups, n_groups = self._groups(all_x, all_y, places, index, own)
        weights = None
        if self.s.worst_step:
            before = self.group_weights.to(losses.dtype)
            weights = group_weights(before, all_losses, groups, n_groups, self.term, self.s.worst_step)
            self.group_weights.copy_(weights)
        if extra is None and weights is None:
            loss = robust_loss(losses, groups, n_groups, self.term)
        else:
            loss = mean + group_risk(all_losses, groups, n_groups, self.term, weights)
        if looked_at:
            self.seen_groups.append(_sizes(groups, n_groups))
            self.seen_gradients.append(self._term_gradient(mean, loss))
        return loss

    def _term_gradient(self, mean: Tensor, loss: Tensor) -> Tensor:
        """Norm of the term's gradient over that of the mean loss, and their cosine: (2,). Leaves the graph in place."""
        parameters = list(self.net.parameters())
        plain, whole = (
            torch.cat([g.flatten() for g in torch.autograd.grad(each, parameters, retain_graph=True)]).double()
            for each in (mean, loss)
        )
        term = whole - plain
        cosine = F.cosine_similarity(term, plain, dim=0)
        return torch.stack([term.norm() / plain.norm(), cosine])

    def mechanism(self) -> dict[str, Tensor]:
        """What the risk term did at the first and the last update of this network; {} where there is no term in it.

        `gradient_ratio_*`: norm of its gradient over that of the mean loss; `gradient_cosine_*`: their cosine;
        `group_size_median`, `groups_empty`: images in a group (the median), groups without any, means of the two.
        """
        if not self.seen_gradients:
            return {}
        first, last = self.seen_gradients[0], self.seen_gradients[-1]
        sizes = torch.stack(self.seen_groups).double()
        return {
            "gradient_ratio_first": first[0],
            "gradient_cosine_first": first[1],
            "gradient_ratio_last": last[0],
            "gradient_cosine_last": last[1],
            "group_size_median": sizes.quantile(0.5, dim=1).mean(),
            "groups_empty": (sizes == 0).sum(1).double().mean(),
        }

    def probe(self) -> Tensor:
        """Accuracy, in [0, 1], of the network as it is on up to 256 tested images, spread over the test part.

        It is noted, and decides nothing: no stream is drawn from, and nothing is chosen by it.
        """
        number = min(PROBED, len(self.data.test_labels))
        places = torch.linspace(0, len(self.data.test_labels) - 1, number, device=self.device).long()
        self.net.eval()
        with torch.no_grad():
            images = self.data.normalise(self.data.test_images[places]).to(next(self.net.parameters()).dtype)
            predicted = self.net(images).argmax(1)
        self.net.train()
        right: Tensor = predicted == self.data.test_labels[places]
        return right.double().mean()

    def _indices(self, kind: str) -> list[Tensor]:
        """Which images each update takes, drawn on the host.

        Of an inner step: for the training ("net"; real ones, or of the synthetic set) and further real ones for the
        term ("risk"). Before the first image step: "start".
        """
        stream, updates = self.streams[f"{kind} batch"], self.s.net_steps
        if kind == "net" and self.parts.net_data == "synthetic":
            n = self.data.n_classes * self.s.ipc * self.s.factor**2
            return [torch.randperm(n, generator=stream)[: self.s.net_batch] for _ in range(updates)]
        n, size = len(self.data.train_labels), self.s.net_batch
        if kind == "net":
            return [torch.randint(n, (size,), generator=stream) for _ in range(updates)]
        if kind == "start":
            updates = self.s.net_start_steps
        else:
            size = (self.s.risk_images or size) - size if self.in_network else 0
        return list(torch.randint(n, (updates, size), generator=stream)) if updates and size else []

    def _net_batch(self, whole: tuple[Tensor, Tensor] | None, index: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images and labels of one update: real ones, or of the synthetic set as it is now."""
        images, labels = whole or (self.data.train_images, self.data.train_labels)
        return self.data.normalise(images[index]), labels[index]

    def _update_batches(self, kind: str, whole: tuple[Tensor, Tensor] | None) -> Iterator[Batch]:
        """The batches of the updates of one inner step; `kind` as in `_indices`."""
        return self._batches(whole, self._indices(kind), self.streams[f"{kind} augment"])

    def _batches(
        self, whole: tuple[Tensor, Tensor] | None, indices: Sequence[Tensor], stream: torch.Generator
    ) -> Iterator[Batch]:
        """The batches at these indices, augmented by draws of the stream.

        On a CPU one after another, while they are in its caches. On other devices all in one call, and by the same
        operations whatever was drawn: their images are in memory together.
        """
        if self.device.type != "cpu":
            yield from self._batches_together(
                whole, to_device_together(self._update_draws(indices, stream), self.device)
            )
            return
        for index in indices:
            x, y = self._net_batch(whole, index)
            drawn = augment.draw(self.s.net_augment, len(x), x.shape[-1], stream, self.parts.augment_rule)
            seen, partner, share = augment.cutmix(augment.apply(x, drawn), stream, self.s.cutmix)
            yield Batch(x, y, index, seen, (partner, share))

    def _update_draws(self, indices: Sequence[Tensor], stream: torch.Generator) -> list[Tensor | None]:
        """The indices of k updates (k, n) and what `augment.draw_batches` draws for them, on the host; [] of none."""
        if not indices:
            return []
        how = self.s.net_augment, len(indices[0]), self.data.shape[1], [stream] * len(indices), self.parts.augment_rule
        return [torch.stack(list(indices)), *augment.draw_batches(*how, self.s.cutmix)]

    def _batches_together(self, whole: tuple[Tensor, Tensor] | None, drawn: Sequence[Tensor | None]) -> Iterator[Batch]:
        """The batches of what `_update_draws` drew, on the device."""
        if not drawn:
            return
        index = cast(Tensor, drawn[0])
        x, y = self._net_batch(whole, index.flatten())
        labels = F.one_hot(y, self.data.n_classes).to(x.dtype)
        seen, labels = augment.apply_batches(x, labels, drawn[1:])
        for parts in zip(*(t.chunk(len(index)) for t in (x, y, index.flatten(), seen, labels)), strict=True):
            yield Batch(*parts)

    def _losses(self, batch: Batch) -> Tensor:
        """Cross-entropy of each image (N,); a mixed image counts for its own group."""
        logits = self.net(batch.seen)
        if isinstance(batch.mixed, Tensor):
            return F.cross_entropy(logits, batch.mixed, reduction="none")
        partner, share = batch.mixed
        own = F.cross_entropy(logits, batch.y, reduction="none")
        if share == 1:
            return own
        return share * own + (1 - share) * F.cross_entropy(logits, batch.y[partner], reduction="none")

    # --- clusters -----------------------------------------------------------------------------------------

    def _choose_centres(self) -> Tensor:
        """Indices of the stored images around which real ones are clustered in this outer step."""
        stream = self.streams["centres"]
        if self.s.centres_in_all is not None:
            return synthetic.centres_in_all(
                self.data.n_classes, self.s.ipc, self.s.centres_in_all, self.s.scope, stream
            )
        return synthetic.choose_centres(self.stored(), self.s.max_centres, self.s.centre_choice, stream)

    def _matched_places(self) -> Tensor | None:
        """Those of the centres where the matched gradient is that of the robust objective."""
        return self._centre_places() if self.in_matching else None

    def _centre_places(self) -> Tensor | None:
        """Where the centres lie, in the space of `space`."""
        tiles = self._centre_tiles()
        return None if tiles is None else self._places(tiles)

    @torch.no_grad()
    def _centre_tiles(self) -> Tensor | None:
        """The decoded tiles of the chosen stored images, normalised; None where groups are known beforehand."""
        if self.groups is not None:
            return None
        chosen = self.stored().images[self.centres]
        return self.data.normalise(synthetic.decode(chosen, self.s.factor))

    @torch.no_grad()
    def _places(self, tiles: Tensor) -> Tensor:
        return self._place(tiles)

    def _groups(
        self, x: Tensor, y: Tensor, places: Tensor | None, index: Tensor, own: Tensor | None = None
    ) -> tuple[Tensor, int]:
        """Group of each training image, and how many groups there are.

        The stored image that holds the nearest of the decoded ones at `places`; or, where groups are known beforehand,
        that of the training images at `index`. `own`: where the images lie themselves; else that is computed.
        """
        if self.groups is not None:
            return self.groups[index], self.n_groups
        tiles = self.s.factor**2
        owner = (self.centres // self.s.ipc).repeat_interleave(tiles)
        with torch.no_grad():
            own = self._place(x) if own is None else own
            return clusters.assign(own, y, cast(Tensor, places), owner, self.s.scope) // tiles, self.n_groups

    def _known_groups(self) -> tuple[Tensor | None, int]:
        """Groups of the training images that are known beforehand, (n_train,), and their number; else None.

        Under scope "class" a group of the data is divided by class.
        """
        known = self.data.train_groups
        if self.s.groups_from == "nearest" or known is None:
            return None, 0
        number = int(known.max()) + 1
        if self.s.scope == "all":
            return known, number
        return self.data.train_labels * number + known, number * self.data.n_classes

    @cached_property
    def _host_groups(self) -> Tensor:
        """The groups of the data, on the host, where batches are drawn."""
        if self.data.train_groups is None:
            raise SettingError("real_choice", "balanced", "for data with groups, or groups_from = 'found'")
        return self.data.train_groups.cpu()

    def _place(self, x: Tensor) -> Tensor:
        return self.net.embed(x) if self.s.space == "feature" else x  # type: ignore[operator]


def _sizes(groups: Tensor, n_groups: int) -> Tensor:
    """Images in each group (n_groups,): a `bincount` that a graphics processor is not waited for."""
    return groups.new_zeros(n_groups).scatter_add(0, groups, torch.ones_like(groups))
