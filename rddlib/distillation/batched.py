"""The image steps of an inner step all together: the same images at its end, and no class waits for another.

The published loop steps after every class, with one momentum m shared by all: at the i-th of K steps v <- m v + g_i
(g_i on the rows of class i alone) and x <- x - lr v. The images of class i are read once, before step i, when i steps
of the momentum it came with have moved them: x - lr v (m + .. + m^i). Nothing else reads them until the K steps are
over. So all gradients can be taken first, each at its own reading point, and then

    x_i <- x_i - lr (m + .. + m^K) v_i - lr (1 + .. + m^(K-1-i)) g_i,    v_i <- m^K v_i + m^(K-1-i) g_i,

which is where the K small steps end, exactly but for rounding. Where one step is made for the sum over classes (DC,
DSA, DM, GLaD), all gradients are at the same images anyway. The gradients then come from one network whose weights are
repeated for every class (setting `classes_at_once`), which a graphics processor works through in one large call where
it had K small ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, vmap

from ..base import sent, sent_together
from ..data import augment
from ..data.dataset import DataSet
from ..models import fused
from . import matching, synthetic
from .glad.prior import Prior
from .loop import Drawn, Loop, State
from .settings import DistillSettings

MOST_AT_ONCE = 2**28  # 1 GB of float32; some six times as much is needed. IDC's numbers for CIFAR-10 are 1.7e8.


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


def kind(settings: DistillSettings, data: DataSet) -> type[Loop]:
    """The loop of these settings on the device of `data`."""
    return ClassLoop if at_once(settings, data) else Loop


class ClassLoop(Loop):
    """`Loop` with its image steps in closed form. The activations of all classes are in memory together."""

    def __init__(self, data: DataSet, settings: DistillSettings, state: State, prior: Prior) -> None:
        super().__init__(data, settings, state, prior)
        k = data.n_classes
        self.before = self._powers([(1, i) for i in range(k)])
        self.through = self._powers([(1, k)] * k)
        self.after = self._powers([(0, k - 1 - i) for i in range(k)])
        self.left = self._powers([(k - 1 - i, k - 1 - i) for i in range(k)])
        named = {id(p): name for name, p in self.net.named_parameters()}
        self.names = [named[id(p)] for p in self.matched]

    def image_steps(self) -> Tensor:
        """As `Loop.image_steps`: moves the images of every class, returns the summed distance."""
        classes = range(self.data.n_classes)
        drawn = self.host_draws(classes)
        distances, gradients = self.gradients(self.reading_points(), classes, drawn)
        self._advance(gradients)
        return distances.sum()

    def reading_points(self) -> Tensor:
        """The images (n_classes, ipc, C, H, W) as each class's turn finds them."""
        x = self._by_class(self.codes["pixels"])
        if self.parts.image_step == "sum":
            return x
        v = self._by_class(self.velocity["pixels"])
        return x - self.rates["pixels"] * v * _like(self.before, v)

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
            return vmap(partial(matching.distance, metric=metric))(target, own)

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
            gaps = vmap(partial(matching.distance, metric=self.parts.metric))(target, found)  # (n,)
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

    def _advance(self, gradients: Tensor) -> None:
        """All steps of the images, by the gradients (n_classes, ipc, C, H, W)."""
        if self.parts.image_step == "sum":
            step = gradients
            if self.s.image_rule != "sgd":
                step = torch.stack([self.direction(gradient) for gradient in gradients])
            self.velocity["pixels"].mul_(self.s.momentum_image).add_(step.flatten(0, 1))
            self.codes["pixels"] -= self.rates["pixels"] * self.velocity["pixels"]
            return
        x = self._by_class(self.codes["pixels"])
        v = self._by_class(self.velocity["pixels"])
        g = gradients
        if self.s.image_rule != "sgd":
            g = torch.stack([self.direction(gradient) for gradient in gradients])
        x -= self.rates["pixels"] * (v * _like(self.through, v) + g * _like(self.after, g))
        v.mul_(self.s.momentum_image**self.data.n_classes).add_(g * _like(self.left, g))

    def _by_class(self, code: Tensor) -> Tensor:
        return code.view(self.data.n_classes, self.s.ipc, *code.shape[1:])

    def _powers(self, ends: list[tuple[int, int]]) -> Tensor:
        """m^a + .. + m^b for each class (n_classes,); an empty sum is 0."""
        like = self.codes["pixels"]
        sums = [sum(self.s.momentum_image**j for j in range(a, b + 1)) for a, b in ends]
        return sent(torch.tensor(sums, dtype=like.dtype), like.device)


def _like(numbers: Tensor, images: Tensor) -> Tensor:
    """One number a class (n_classes,), shaped to multiply images (n_classes, ipc, C, H, W)."""
    return numbers.view(-1, *[1] * (images.ndim - 1))
