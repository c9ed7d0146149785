"""One outer step of distillation: a new random network, image steps and network steps in turn.

The risk variants differ in one loss and in nothing else, so that `control` is their equal-budget arm: same updates,
same random draws (all streams derive from the seed, the outer step and a purpose, never from the variant). Sources:
protocol of IDC (Kim et al. 2022), DC, DSA, DM, GLaD as released; Algorithm 1 and section 4.1 of the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import DivergenceError, generator, to_device, to_device_together, to_host
from ..data import augment
from ..data.dataset import DataSet, by_channel
from ..models import fused, networks
from ..risk import group_risk, group_weights, robust_loss
from . import clusters, matching, synthetic
from .batches import Representatives, batch_of_groups
from .glad.prior import Codes, Prior
from .settings import DistillSettings
from .synthetic import SyntheticSet, class_labels

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

    codes: Codes  # name -> (n_classes, ipc, ...); pixels in [0, 1] where there is no prior
    velocity: Codes  # the same shapes
    outer: int = 0  # outer steps done
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class ClassDraws:
    """What chance decides for one class in one inner step."""

    real: Tensor  # int64 (batch_real,), of all training images, on their device
    omega: augment.Draw  # shared by the real and the synthetic batch
    subset: Tensor | None  # which decoded images are matched, int64 (batch_synthetic,); None: all of them


@dataclass(frozen=True)
class Batch:
    """What one update of the network, or its risk term, is given."""

    x: Tensor  # normalised images (N, C, H, W) before augmentation
    y: Tensor  # labels (N,)
    index: Tensor  # which images they are (N,)
    seen: Tensor  # the images after augmentation and CutMix
    mixed: tuple[Tensor, float] | Tensor  # partners (N,) and the share of its own pixels, or labels (N, n_classes)


@torch.no_grad()
def stored_set(codes: Codes, labels: Tensor, prior: Prior, settings: DistillSettings) -> SyntheticSet:
    """The stored images that codes (n_classes, ipc, ...) stand for, with labels (n_classes, ipc), as a set."""
    images = prior.decode({name: code.flatten(0, 1) for name, code in codes.items()}, labels.flatten())
    return SyntheticSet(images, settings.ipc, settings.factor)


def outer_step(
    data: DataSet,
    settings: DistillSettings,
    state: State,
    prior: Prior,
    make_loop: Callable[[DataSet, DistillSettings, State, Prior], Loop] | None = None,
) -> State:
    """`inner_steps` of images and network with one new network; pixels are then clamped. `state` is left as it is.

    `make_loop`: makes another `Loop`, which goes the same way (`batched`). Raises DivergenceError, with the step, where
    a distance, a loss or an image is not a finite number.
    """
    loop = (make_loop or Loop)(data, settings, state, prior)
    loop.start_network()
    trainings = settings.inner_steps if loop.parts.train_last else settings.inner_steps - 1
    probed = {0: "probe_first", trainings // 2: "probe_middle", trainings - 1: "probe_last"}
    if trainings == 1:
        probed = {0: "probe_last"}
    distances, losses = [], []
    notes: dict[str, Tensor] = {}
    for step in range(settings.inner_steps):
        distance, loss = loop.inner_step(step < trainings, first=step == 0, last=step == trainings - 1)
        distances.append(distance)
        if loss is not None:
            losses.append(loss)
            if step in probed and settings.net_steps:
                notes[probed[step]] = loop.probe()
    finite = torch.stack([code.isfinite().all() for code in loop.codes.values()]).all()
    loop.finish()  # clamps: what was infinite would no longer show
    notes |= loop.mechanism()
    trained = torch.stack(losses) if losses else distances[0].new_zeros(0, 2)
    moved, trained, finite, *values = to_host([torch.stack(distances), trained, finite, *notes.values()])
    _check_finite(loop, moved, trained, bool(finite), state.outer)
    entry = {"distance": float(moved.mean()), "cross_entropy": 0.0, "risk": 0.0}
    if losses:
        entry["cross_entropy"], entry["risk"] = trained.mean(0).tolist()
    entry |= {name: float(value) for name, value in zip(notes, values, strict=True)}
    return State(loop.codes, loop.velocity, state.outer + 1, [*state.history, entry])


def _check_finite(loop: Loop, distances: Tensor, losses: Tensor, finite: bool, outer: int) -> None:
    """`distances` (inner_steps,) and `losses` (trainings, 2) on the host; `finite`: whether all images are."""
    bad_distances = (~distances.isfinite()).nonzero().flatten().tolist()
    bad_losses = (~losses.isfinite().all(1)).nonzero().flatten().tolist()
    if bad_losses and (not bad_distances or bad_losses[0] < bad_distances[0]):
        step, what, setting = bad_losses[0] + 1, "the loss of the loop's network is", "lr_net"
    elif bad_distances or not finite:
        step = bad_distances[0] + 1 if bad_distances else loop.s.inner_steps
        what, setting = "the matched distance or the images are", "lr_image"
        if not all(parameter.isfinite().all() for parameter in loop.net.parameters()):
            what, setting = "the weights of the loop's network are", "lr_net"
    else:
        return
    help_ = f"A smaller {setting} (now {getattr(loop.s, setting):g}) may help"
    raise DivergenceError(f"outer step {outer + 1}, inner step {step}: {what} not finite. {help_}")


class Loop:
    """The moving parts of one outer step: codes with their momentum, the network, and the random streams."""

    def __init__(self, data: DataSet, settings: DistillSettings, state: State, prior: Prior) -> None:
        self.data = data
        self.s = settings
        self.prior = prior
        self.parts = settings.parts()
        self.term = settings.risk_term()
        self.codes = {name: code.clone() for name, code in state.codes.items()}
        self.velocity = {name: code.clone() for name, code in state.velocity.items()}
        self.device = data.train_images.device
        self.labels = class_labels(data.n_classes, settings.ipc, self.device).view(data.n_classes, -1)
        self.members = data.members
        self.streams = {name: generator(settings.seed, "outer", state.outer, name) for name in STREAMS}
        dtype = next(iter(self.codes.values())).dtype
        self.net = settings.build_network(data, self.streams["net"]).to(self.device, dtype, non_blocking=True)
        self.rates = {name: settings.lr_image * rate * self._scale(name) for name, rate in prior.rates().items()}
        self.matched = matching.matched_parameters(self.net, self.parts.metric)
        self.optimiser = torch.optim.SGD(
            self.net.parameters(),
            lr=settings.lr_net,
            momentum=self.parts.momentum_net,
            weight_decay=self.parts.decay_net,
        )
        self.representatives = Representatives(data, settings, self.streams["real choice"])
        risky = self.term.average > 0 or self.term.worst > 0
        self.in_network = risky and settings.where == "network"
        self.in_matching = risky and settings.where == "matching"
        self.groups, self.n_groups = self._known_groups()
        self.noted_groups: list[Tensor] = []  # images in each group, (n_groups,), at the first and the last update
        self.noted_gradients: list[Tensor] = []  # ratio and cosine of the term's gradient there, (2,)
        if risky:
            if self.groups is None:
                centres = synthetic.choose_centres(
                    self.stored(),
                    settings.max_centres,
                    settings.centre_choice,
                    self.streams["centres"],
                    settings.centres_in_all,
                    settings.scope,
                )
                self.centres = to_device(centres, self.device)
                self.n_groups = len(self.centres)
            self.group_weights = torch.full((self.n_groups,), 1 / self.n_groups, dtype=dtype, device=self.device)

    def stored(self) -> SyntheticSet:
        """The images that the codes stand for, as they are now."""
        return stored_set(self.codes, self.labels, self.prior, self.s)

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
        centre_points = self._centre_points() if self.in_matching else None
        total = torch.zeros((), device=self.device)
        gradients: dict[int, Codes] = {}
        for c, draws in enumerate(self.draws(range(self.data.n_classes))):
            distance, gradients[c] = self.matching_gradient(c, centre_points, draws)
            total += distance
            if self.parts.image_step == "class":
                self._move({c: gradients[c]})
        if self.parts.image_step == "sum":
            self._move(gradients)
        return total

    def draws(self, classes: Sequence[int]) -> list[ClassDraws]:
        """The draws of these classes, in order, on the device, in one copy."""
        draws = self.host_draws(classes)
        if self.device.type == "cpu":
            return draws
        names = ("flip", "color", "affine", "cutout")  # a shared crop stays on the host, see `augment.Draw.to`
        tensors = [[d.real, d.subset, *(getattr(d.omega, name) for name in names)] for d in draws]
        copies = iter(to_device_together([t for of_class in tensors for t in of_class], self.device))
        result = []
        for d in draws:
            real = cast(Tensor, next(copies))
            subset = next(copies)
            omega = replace(d.omega, **{name: next(copies) for name in names})
            result.append(ClassDraws(real, omega, subset))
        return result

    def host_draws(self, classes: Sequence[int]) -> list[ClassDraws]:
        """As `draws`, on the host.

        Each kind of draw has a stream of its own, so that a class gets what it would get if it were asked for alone.
        """
        result = []
        n_decoded = self.s.ipc * self.s.factor**2
        strategy, size, rule = self.s.match_augment, self.data.shape[1], self.parts.augment_rule
        for c in classes:
            real = self._real(c)
            subset = None
            if n_decoded > self.s.batch_synthetic:
                order = torch.randperm(n_decoded, generator=self.streams["synthetic batch"])
                subset = order[: self.s.batch_synthetic]
            omega = augment.draw(strategy, 1, size, self.streams["match augment"], rule)
            result.append(ClassDraws(real, omega, subset))
        return result

    def _real(self, c: int) -> Tensor:
        """Indices of the real images of class `c` that are matched next, on the host."""
        if self.s.real_choice == "representative":
            return self.representatives.batch(c, self.net)
        members = self.members[c]
        if self.s.real_choice == "balanced":
            return batch_of_groups(members, self.data.host_groups, self.s.batch_real, self.streams["real"])
        return members[torch.randperm(len(members), generator=self.streams["real"])[: self.s.batch_real]]

    def seen(self, images: Tensor, draws: ClassDraws) -> Tensor:
        """What the network sees of one class's stored images (ipc, C, H, W); differentiable in them."""
        decoded = synthetic.decode(images, self.s.factor)
        if draws.subset is not None:
            decoded = decoded[draws.subset]
        return augment.apply(self.data.normalise(decoded), draws.omega)

    def matching_gradient(
        self, c: int, centre_points: Tensor | None = None, draws: ClassDraws | None = None
    ) -> tuple[Tensor, Codes]:
        """Distance of class `c` and its gradient at the codes of that class, (ipc, ...) each.

        `centre_points`: see `_target`. `draws`: made now by default.
        """
        draws = draws or self.draws([c])[0]
        target = self._target(draws, c, centre_points)
        codes = {name: code[c].clone().requires_grad_() for name, code in self.codes.items()}
        images = self.prior.decode(codes, self.labels[c])
        pixels = images.detach().requires_grad_()
        seen = self.seen(pixels, draws)
        distance, at_seen = self._distance(seen, c, target)
        (at_pixels,) = torch.autograd.grad(seen, pixels, at_seen)
        at_codes = torch.autograd.grad(images, list(codes.values()), at_pixels)  # through the prior, as GLaD does
        return distance, dict(zip(codes, at_codes, strict=True))

    def _distance(self, seen: Tensor, c: int, target: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Distance of a synthetic batch, as the network sees it, to the target, and the gradient at its images."""
        metric = self.parts.metric

        def loss(logits: Tensor) -> Tensor:
            return F.cross_entropy(logits, torch.full((len(logits),), c, device=logits.device))

        def distance(gradients: list[Tensor]) -> Tensor:
            return matching.distance(target, gradients, metric)

        if self.parts.objective == "gradient" and fused.differentiable(self.net) and fused.written_out(seen):
            with fused.one_precision(seen):
                return fused.image_gradient(self.net, seen.detach(), loss, distance, metric == "dc")
        images = seen.detach().requires_grad_()
        value = distance(self._statistic(images, c))
        return value.detach(), torch.autograd.grad(value, images)[0]

    def _move(self, gradients: dict[int, Codes]) -> None:
        for name, velocity in self.velocity.items():
            velocity *= self.s.momentum_image
            for c, codes in gradients.items():
                velocity[c] += self.direction(codes[name])
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

    def _target(self, draws: ClassDraws, c: int, centre_points: Tensor | None) -> list[Tensor]:
        """What the synthetic batch is to reach: the statistic of a real one.

        With the term in the matched gradient it is the gradient of the robust objective, divided by its total weight
        1 + average + worst: a weighted mean of the images' gradients, as the plain one is (the book's page on matching
        a robust objective). With match_groups "equal" every group of the batch has the same weight, whatever its size,
        which for squared distances moves the images as the distances to all groups' statistics together do (FairDD).
        """
        x = self.data.normalise(self.data.train_images[draws.real])
        seen = augment.apply(x, draws.omega)
        if self.s.match_groups == "equal":
            return [t.detach() for t in self._statistic(seen, c, self._equal_weights(draws.real))]
        if not self.in_matching or (centre_points is None and self.groups is None):
            return [t.detach() for t in self._statistic(seen, c)]
        labels = torch.full((len(x),), c, device=x.device)
        losses = F.cross_entropy(self.net(seen), labels, reduction="none")
        groups = self._groups(x, labels, centre_points, draws.real)
        loss = robust_loss(losses, groups, self.n_groups, self.term)
        return matching.gradients(loss / self.term.total_weight, self.matched)

    def _equal_weights(self, real: Tensor) -> Tensor:
        """Weight of each real image (batch_real,), sum 1: the groups alike, and alike the images of one group."""
        groups = cast(Tensor, self.groups)[real]
        counts = _sizes(groups, self.n_groups)
        return 1 / (counts[groups] * (counts > 0).sum())

    def _statistic(self, x: Tensor, c: int, weights: Tensor | None = None) -> list[Tensor]:
        """What is matched, of one class's augmented images; differentiable in them where they ask for it.

        `weights` (N,): of the images, sum 1; alike by default.
        """
        if self.parts.objective == "mean":
            with torch.set_grad_enabled(x.requires_grad):
                features: Tensor = self.net.embed(x)  # type: ignore[operator]
                return [features.mean(0) if weights is None else weights.to(features.dtype) @ features]
        labels = torch.full((len(x),), c, device=x.device)
        if weights is None:
            loss = F.cross_entropy(self.net(x), labels)
        else:
            losses = F.cross_entropy(self.net(x), labels, reduction="none")
            loss = (weights.to(losses.dtype) * losses).sum()
        return matching.gradients(loss, self.matched, create_graph=x.requires_grad)

    # --- network ------------------------------------------------------------------------------------------

    def network_steps(self, first: bool = False, last: bool = False) -> Tensor:
        """Train the network; returns the mean cross-entropy and the mean risk term, a tensor (2,).

        `first`, `last`: whether these are the first or the last updates of this network, which `mechanism` is about.
        """
        sums = torch.zeros(2, device=self.device)
        pool = None if self.parts.net_data == "real" or not self.s.net_steps else self.stored().decoded()
        extra = self._update_batches("risk", None)
        tiles = self._centre_tiles() if self.in_network and self.s.net_steps else None
        for number, batch in enumerate(self._update_batches("net", pool)):
            losses = self._losses(batch)
            loss = losses.mean()
            if self.in_network:
                noted = (first and number == 0) or (last and number == self.s.net_steps - 1)
                loss = self._with_term(batch, losses, next(extra, None), tiles, noted)
            sums += torch.stack([losses.mean(), loss - losses.mean()]).detach()
            if self.in_network and self.s.divide_loss:
                loss = loss / self.term.total_weight
            self._update(loss)
        return sums / max(self.s.net_steps, 1)

    def start_network(self) -> None:
        """The updates before the first image step: real images, cross-entropy alone (IDC on ImageNet: ten epochs)."""
        indices = self._indices("start")
        for begin in range(0, len(indices), TOGETHER):
            for batch in self._batches(None, indices[begin : begin + TOGETHER], self.streams["start augment"]):
                self._update(self._losses(batch).mean())

    def _update(self, loss: Tensor) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()

    def _with_term(
        self, batch: Batch, losses: Tensor, extra: Batch | None, tiles: Tensor | None, noted: bool
    ) -> Tensor:
        """Mean of the losses plus the risk term, over the images of the batch and, if any, those of `extra`.

        `tiles`: see `_centre_tiles`.
        """
        mean, all_losses = losses.mean(), losses
        x, y, index = batch.x, batch.y, batch.index
        if extra is not None:
            all_losses = torch.cat([losses, self._losses(extra)])
            x, y, index = (torch.cat(pair) for pair in ((x, extra.x), (y, extra.y), (index, extra.index)))
        points = centre_points = None
        if tiles is not None and self.device.type == "cpu":
            centre_points = self._embed(tiles)
        elif tiles is not None:  # one pass for both: half the launches
            centre_points, points = self._embed(torch.cat([tiles, x])).split([len(tiles), len(x)])
        groups = self._groups(x, y, centre_points, index, points)
        weights = None
        if self.s.worst_step:
            before = self.group_weights.to(losses.dtype)
            weights = group_weights(before, all_losses, groups, self.n_groups, self.term, self.s.worst_step)
            self.group_weights.copy_(weights)
        if extra is None and weights is None:
            loss = robust_loss(losses, groups, self.n_groups, self.term)
        else:
            if not self.term.differentiable:
                all_losses = all_losses.detach()
            loss = mean + group_risk(all_losses, groups, self.n_groups, self.term, weights)
        if noted:
            self.noted_groups.append(_sizes(groups, self.n_groups))
            self.noted_gradients.append(self._term_gradient(mean, loss))
        return loss

    def _term_gradient(self, mean: Tensor, loss: Tensor) -> Tensor:
        """Norm of the term's gradient over that of the mean loss, and their cosine: (2,). Leaves the graph in place."""
        parameters = list(self.net.parameters())
        of_mean, of_loss = (
            torch.cat([g.flatten() for g in torch.autograd.grad(each, parameters, retain_graph=True)]).double()
            for each in (mean, loss)
        )
        of_term = of_loss - of_mean
        return torch.stack([of_term.norm() / of_mean.norm(), F.cosine_similarity(of_term, of_mean, dim=0)])

    def mechanism(self) -> dict[str, Tensor]:
        """What the risk term did at the first and the last update of this network; {} where there is no term in it.

        `gradient_ratio_*`: norm of its gradient over that of the mean loss; `gradient_cosine_*`: their cosine;
        `group_size_median`, `groups_empty`: images in a group (the median), groups without any, means of the two.
        """
        if not self.noted_gradients:
            return {}
        first, last = self.noted_gradients[0], self.noted_gradients[-1]
        sizes = torch.stack(self.noted_groups).double()
        return {
            "gradient_ratio_first": first[0],
            "gradient_cosine_first": first[1],
            "gradient_ratio_last": last[0],
            "gradient_cosine_last": last[1],
            "group_size_median": sizes.quantile(0.5, dim=1).mean(),
            "groups_empty": (sizes == 0).sum(1).double().mean(),
        }

    def probe(self, most: int = PROBED) -> Tensor:
        """Accuracy, in [0, 1], of the network as it is on up to `most` tested images, spread over the test part.

        It is noted: no stream is drawn from, and the run does not depend on it. The rules of the verdicts read it, to
        tell a network that has learnt from one that has not.
        """
        number = min(most, len(self.data.test_labels))
        places = torch.linspace(0, len(self.data.test_labels) - 1, number, device=self.device).long()
        with torch.no_grad(), networks.evaluating(self.net):
            images = self.data.normalise(self.data.test_images[places]).to(next(self.net.parameters()).dtype)
            predicted = self.net(images).argmax(1)
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

    def _net_batch(self, pool: tuple[Tensor, Tensor] | None, index: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images and labels of one update: real ones, or of the synthetic set as it is now."""
        images, labels = pool or (self.data.train_images, self.data.train_labels)
        return self.data.normalise(images[index]), labels[index]

    def _update_batches(self, kind: str, pool: tuple[Tensor, Tensor] | None) -> Iterator[Batch]:
        """The batches of the updates of one inner step; `kind` as in `_indices`."""
        return self._batches(pool, self._indices(kind), self.streams[f"{kind} augment"])

    def _batches(
        self, pool: tuple[Tensor, Tensor] | None, indices: Sequence[Tensor], stream: torch.Generator
    ) -> Iterator[Batch]:
        """The batches at these indices, augmented by draws of the stream.

        On a CPU one after another, while they are in its caches. On other devices all in one call, and by the same
        operations whatever was drawn: their images are in memory together.
        """
        if self.device.type != "cpu":
            draws = to_device_together(self._update_draws(indices, stream), self.device)
            yield from self._batches_together(pool, draws)
            return
        for index in indices:
            x, y = self._net_batch(pool, index)
            omega = augment.draw(self.s.net_augment, len(x), x.shape[-1], stream, self.parts.augment_rule)
            seen, partner, share = augment.cutmix(augment.apply(x, omega), stream, self.s.cutmix)
            yield Batch(x, y, index, seen, (partner, share))

    def _update_draws(self, indices: Sequence[Tensor], stream: torch.Generator) -> list[Tensor | None]:
        """The indices of k updates (k, n) and what `augment.draw_batches` draws for them, on the host; [] of none."""
        if not indices:
            return []
        draws = augment.draw_batches(
            self.s.net_augment,
            len(indices[0]),
            self.data.shape[1],
            [stream] * len(indices),
            self.parts.augment_rule,
            self.s.cutmix,
        )
        return [torch.stack(list(indices)), *draws]

    def _batches_together(self, pool: tuple[Tensor, Tensor] | None, draws: Sequence[Tensor | None]) -> Iterator[Batch]:
        """The batches of what `_update_draws` drew, on the device."""
        if not draws:
            return
        index = cast(Tensor, draws[0])
        x, y = self._net_batch(pool, index.flatten())
        labels = F.one_hot(y, self.data.n_classes).to(x.dtype)
        seen, labels = augment.apply_batches(x, labels, draws[1:])
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

    @torch.no_grad()
    def _centre_tiles(self) -> Tensor | None:
        """The decoded tiles of the chosen stored images, normalised; None where groups are known beforehand."""
        if self.groups is not None:
            return None
        chosen = self.stored().images[self.centres]
        return self.data.normalise(synthetic.decode(chosen, self.s.factor))

    def _centre_points(self) -> Tensor | None:
        """Where these tiles lie, in the space of `space`."""
        tiles = self._centre_tiles()
        return None if tiles is None else self._embed(tiles)

    @torch.no_grad()
    def _embed(self, x: Tensor) -> Tensor:
        """Where normalised images lie in the space in which the nearest one is sought; no dropout, so no draw."""
        if self.s.space != "feature":
            return x
        with networks.evaluating(self.net):
            points: Tensor = self.net.embed(x)  # type: ignore[operator]
        return points

    def _groups(
        self, x: Tensor, y: Tensor, centre_points: Tensor | None, index: Tensor, points: Tensor | None = None
    ) -> Tensor:
        """Group of each training image (N,), in [0, n_groups).

        The stored image that holds the nearest of the decoded ones at `centre_points`; or, where groups are known
        beforehand, that of the training images at `index`. `points`: the images, embedded, if they are already.
        """
        if self.groups is not None:
            return self.groups[index]
        tiles = self.s.factor**2
        owner = (self.centres // self.s.ipc).repeat_interleave(tiles)
        points = self._embed(x) if points is None else points
        return clusters.assign(points, y, cast(Tensor, centre_points), owner, self.s.scope) // tiles

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


def _sizes(groups: Tensor, n_groups: int) -> Tensor:
    """Images in each group (n_groups,): a `bincount` that the host does not wait."""
    return groups.new_zeros(n_groups).scatter_add(0, groups, torch.ones_like(groups))
