"""The image steps of an inner step all together: the same images at its end, and no class waits for another.

The published loop steps after every class, with one momentum m shared by all: at the i-th of K steps v <- m v + g_i
(g_i on the rows of class i alone) and x <- x - lr v. The images of class i are read once, before step i, when i steps
of the momentum it came with have moved them: x - lr v (m + .. + m^i). Nothing else reads them until the K steps are
over. So all gradients can be taken first, each at its own reading point, and then

    x_i <- x_i - lr (m + .. + m^K) v_i - lr (1 + .. + m^(K-1-i)) g_i,    v_i <- m^K v_i + m^(K-1-i) g_i,

which is where the K small steps end, exactly but for rounding. Where one step is made for the sum over classes (DC,
DSA, DM, GLaD), all gradients are at the same images anyway. The gradients may then come from one network whose weights
are repeated for every class (setting `classes_at_once`), which a graphics processor works through in one large call
where it had K small ones, or from several processes that have some classes each (`split`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, vmap

from . import augment, fused, match, synthetic
from .base import SettingError, sent, sent_together
from .data import DataSet
from .loop import Drawn, Loop, State
from .methods import LOOPED, DistillSettings
from .prior import Codes, Prior
from .split import ALONE, Team

MOST_AT_ONCE = 2**28  # 1 GB of float32; some six times as much is needed. IDC's numbers for CIFAR-10 are 1.7e8.


def check_fit(data: DataSet, settings: DistillSettings, team: Team) -> None:
    """Raise SettingError where a run cannot be split over the processes of `team`; one process is always right."""
    if team.size == 1:
        return
    if settings.method not in LOOPED:
        raise SettingError("method", settings.method, f"one of {', '.join(LOOPED)} under torchrun: it has one process")
    if settings.network == "vit":
        raise SettingError("network", "vit", "one without dropout under torchrun: the processes would drop other units")
    if team.size > data.n_classes:
        raise SettingError("--nproc-per-node", team.size, f"at most {data.n_classes}, the classes of {data.name}")


def at_once(settings: DistillSettings, data: DataSet) -> bool:
    """Whether the image gradients of all classes are taken together: as set, and else on CUDA where they can be.

    The images are the same but for rounding, as they are from one device to another anyway, so that this stands in no
    setting and changes no key; a record says on which device it was made. On CUDA one class after another is chosen
    where the activations of one layer for all classes would have more than `MOST_AT_ONCE` numbers.
    """
    if settings.classes_at_once:
        return True
    if data.train_images.device.type != "cuda" or settings.one_by_one():
        return False
    images = max(settings.batch_real, min(settings.ipc * settings.factor**2, settings.batch_synthetic))
    return data.n_classes * images * settings.width * data.shape[1] * data.shape[2] <= MOST_AT_ONCE


def kind(settings: DistillSettings, data: DataSet, team: Team = ALONE) -> Callable[..., Loop]:
    """The loop of these settings on the device of `data`, for one process of `team`."""
    return partial(ClassLoop, team=team) if at_once(settings, data) or team.size > 1 else Loop


class ClassLoop(Loop):
    """`Loop` with its image steps in closed form; works on the classes that `team` gives to this process.

    Where they are taken `at_once` the activations of all these classes are in memory together.
    """

    def __init__(
        self, data: DataSet, settings: DistillSettings, state: State, prior: Prior, team: Team = ALONE
    ) -> None:
        super().__init__(data, settings, state, prior)
        self.team, self.own = team, team.own(data.n_classes)
        k = data.n_classes
        self.before = self._powers([(1, i) for i in range(k)])
        self.through = self._powers([(1, k)] * k)
        self.after = self._powers([(0, k - 1 - i) for i in range(k)])
        self.left = self._powers([(k - 1 - i, k - 1 - i) for i in range(k)])
        named = {id(p): name for name, p in self.net.named_parameters()}
        self.names = [named[id(p)] for p in self.matched]

    def image_steps(self) -> Tensor:
        """As `Loop.image_steps`: moves the images of every class, returns the summed distance."""
        places, drawn, at = self._matched_places(), self.host_draws(range(self.data.n_classes)), self.reading_points()
        found = {name: torch.zeros_like(code) for name, code in at.items()}
        gaps = next(iter(at.values())).new_zeros(self.data.n_classes)
        if at_once(self.s, self.data):
            own = slice(self.own.start, self.own.stop, self.own.step)
            gap, gradient = self.gradients(at["pixels"][own], self.own, drawn[own])
            gaps[own], found["pixels"][own] = gap.to(gaps.dtype), gradient
        else:
            drawn = self._on_device(drawn)
            for c in self.own:
                gap, gradients = self.matching_gradient(c, places, drawn[c], {name: x[c] for name, x in at.items()})
                gaps[c] = gap
                for name, gradient in gradients.items():
                    found[name][c] = gradient
        gaps, found = self._gathered(gaps, found)
        self._advance(found)
        return gaps.sum()

    def reading_points(self) -> Codes:
        """The codes (n_classes, ipc, ...) as each class's turn finds them."""
        x = {name: self._by_class(code) for name, code in self.codes.items()}
        if self.parts.image_step == "sum":
            return x
        moved = {name: self._by_class(v) * _like(self.before, v) for name, v in self.velocity.items()}
        return {name: code - self.rates[name] * moved[name] for name, code in x.items()}

    def gradients(self, x: Tensor, classes: range, drawn: Sequence[Drawn]) -> tuple[Tensor, Tensor]:
        """Distance of each of these classes (n,) and its gradient at their images x (n, ipc, C, H, W), all at once.

        `drawn`: one draw a class, on the host. In the batches that are seen the classes take turns, image by image.
        """
        x = x.detach().requires_grad_()
        real, real_theta, place, theta = self._joined(drawn)
        wanted = augment.apply(self.data.normalise(self.data.train_images[real]), real_theta)
        decoded = synthetic.decode(x.flatten(0, 1), self.s.factor)
        given = augment.apply(self.data.normalise(decoded[place]), theta)
        labels = torch.arange(classes.start, classes.stop, classes.step, device=x.device)
        known = self.parts.objective == "gradient" and fused.differentiable(self.net)
        way = self._written_out if known and fused.allowed(given) and not fused.autocast(x) else self._repeated
        gaps, at_given = way(wanted, given, labels)
        (gradient,) = torch.autograd.grad(given, x, at_given)
        return gaps, gradient

    def _joined(self, drawn: Sequence[Drawn]) -> tuple[Tensor, augment.Draw, Tensor, augment.Draw]:
        """Draws of n classes as those of two batches, classes in turn, on the device: sent in one copy.

        Indices of real images (batch_real * n,), their draw, places of the matched ones among the decoded images of
        these classes (batch_synthetic * n,), and their draw.
        """
        decoded, size = self.s.ipc * self.s.factor**2, self.data.shape[1]
        real = torch.stack([each.real for each in drawn], 1).flatten()
        every = torch.arange(decoded)
        chosen = [(every if each.some is None else each.some) + i * decoded for i, each in enumerate(drawn)]
        place = torch.stack(chosen, 1).flatten()
        thetas = [each.theta for each in drawn]
        joined = [augment.joined(thetas, self.s.match_augment, 1, size, len(t) // len(drawn)) for t in (real, place)]
        fields = [list(vars(theta).values()) for theta in joined]
        there = sent_together([real, place, *fields[0], *fields[1]], self.device)
        number = len(fields[0])
        first, second = augment.Draw(*there[2 : 2 + number]), augment.Draw(*there[2 + number :])
        return cast(Tensor, there[0]), first, cast(Tensor, there[1]), second

    def _written_out(self, wanted: Tensor, given: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Distances (n,) and the gradient of their sum at the images `given`; both batches have classes in turn."""
        n, metric = len(labels), self.parts.metric

        def loss(logits: Tensor) -> Tensor:
            times = len(logits) // n
            return F.cross_entropy(logits, labels.repeat(times), reduction="sum") / times

        def distances(found: list[Tensor]) -> Tensor:
            own = [g.unflatten(0, (n, -1)) for g in found]
            return vmap(partial(match.distance, metric=metric))(target, own)

        linear = metric == "dc"
        target = [g.unflatten(0, (n, -1)) for g in fused.weight_gradients(self.net, wanted, loss, linear, n)]
        return fused.image_gradient(self.net, given.detach(), loss, distances, linear, n)

    def _repeated(self, wanted: Tensor, given: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """As `_written_out` for any network and for feature means: weights repeated for every class, autograd."""
        given, n = given.detach().requires_grad_(), len(labels)
        by_class = [t.unflatten(0, (-1, n)).transpose(0, 1) for t in (wanted, given)]
        with fused.use(False):  # the fused forms are not for torch.func
            target = [t.detach() for t in self.statistics(by_class[0], labels)]
            found = self.statistics(by_class[1], labels)
            gaps = vmap(partial(match.distance, metric=self.parts.metric))(target, found)  # (n,)
            (gradient,) = torch.autograd.grad(gaps.sum(), given)
        return gaps.detach(), gradient

    def statistics(self, x: Tensor, labels: Tensor) -> list[Tensor]:
        """What is matched, of each class's batch: (n, ...) each; images x (n, N, C, H, W), labels (n,).

        Differentiable in the images where they ask for it.
        """
        n, size = x.shape[:2]
        if self.parts.objective == "mean":
            with torch.set_grad_enabled(x.requires_grad):
                features: Tensor = self.net.embed(x.flatten(0, 1))  # type: ignore[operator]
                return [features.unflatten(0, (n, size)).mean(1)]
        weights = {name: p.detach().expand(n, *p.shape) for name, p in self.net.named_parameters()}
        matched = {name: weights[name].clone().requires_grad_() for name in self.names}
        weights |= matched
        logits = vmap(lambda w, batch: functional_call(self.net, w, (batch,)))(weights, x)  # (n, N, n_classes)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(size), reduction="sum") / size
        return list(torch.autograd.grad(loss, list(matched.values()), create_graph=x.requires_grad))

    def finish(self) -> None:
        """As `Loop.finish`; then all processes must hold the same images, network and random streams."""
        super().finish()
        if self.team.size > 1:
            streams = (stream.get_state() for stream in self.streams.values())
            parts = (*self.codes.values(), *self.velocity.values(), *self.net.parameters(), *streams)
            self.team.agree("their images, networks or random streams", *parts)

    def _gathered(self, gaps: Tensor, found: Codes) -> tuple[Tensor, Codes]:
        """What all processes have found, each having zeros for the classes of others: one tensor is sent."""
        if self.team.size == 1:
            return gaps, found
        every = self.team.sum(torch.cat([gaps, *(g.flatten() for g in found.values())]))
        parts = every[len(gaps) :].split([g.numel() for g in found.values()])
        return every[: len(gaps)], {n: p.view_as(g) for (n, g), p in zip(found.items(), parts, strict=True)}

    def _advance(self, found: Codes) -> None:
        """All steps of the images: gradients (n_classes, ipc, ...)."""
        for name, gradients in found.items():
            g = gradients
            if self.s.image_rule != "sgd":
                g = torch.stack([self.direction(each) for each in gradients])
            if self.parts.image_step == "sum":
                self.velocity[name].mul_(self.s.momentum_image).add_(g.flatten(0, 1))
                self.codes[name] -= self.rates[name] * self.velocity[name]
                continue
            x, v = self._by_class(self.codes[name]), self._by_class(self.velocity[name])
            through, after, left = (_like(t, self.codes[name]) for t in (self.through, self.after, self.left))
            x -= self.rates[name] * (v * through + g * after)
            v.mul_(self.s.momentum_image**self.data.n_classes).add_(g * left)

    def _by_class(self, code: Tensor) -> Tensor:
        return code.view(self.data.n_classes, self.s.ipc, *code.shape[1:])

    def _powers(self, ends: list[tuple[int, int]]) -> Tensor:
        """m^a + .. + m^b for each class (n_classes,); an empty sum is 0."""
        like = next(iter(self.codes.values()))
        sums = [sum(self.s.momentum_image**j for j in range(a, b + 1)) for a, b in ends]
        return sent(torch.tensor(sums, dtype=like.dtype), like.device)


def _like(numbers: Tensor, code: Tensor) -> Tensor:
    """One number a class (n_classes,), shaped to multiply codes (n_classes, ipc, ...)."""
    return numbers.view(-1, *[1] * code.ndim)
