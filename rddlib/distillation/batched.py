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

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, vmap

from ..data import augment
from ..data.dataset import DataSet
from ..models import fused
from . import matching
from .glad.prior import Prior
from .loop import Drawn, Loop, State
from .settings import DistillSettings


def kind(settings: DistillSettings) -> type[Loop]:
    """The loop of these settings."""
    return ClassLoop if settings.classes_at_once else Loop


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
        drawn = self.draws(classes)
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

    def gradients(self, x: Tensor, classes: Sequence[int], drawn: Sequence[Drawn]) -> tuple[Tensor, Tensor]:
        """Distance of each of these classes (n,) and its gradient at their images x (n, ipc, C, H, W), all at once."""
        x = x.detach().requires_grad_()
        labels = torch.tensor(classes, device=x.device)
        with fused.use(False):  # the fused forms are not for torch.func
            wanted = torch.stack([augment.apply(self.real_images(each), each.theta) for each in drawn])
            given = torch.stack([self.seen(images, each) for images, each in zip(x, drawn, strict=True)])
            target = [t.detach() for t in self.statistics(wanted, labels)]
            found = self.statistics(given, labels)
            gaps = vmap(partial(matching.distance, metric=self.parts.metric))(target, found)  # (n,)
            (gradient,) = torch.autograd.grad(gaps.sum(), x)
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
            self._move({c: {"pixels": gradient} for c, gradient in enumerate(gradients)})
            return
        x = self._by_class(self.codes["pixels"])
        v = self._by_class(self.velocity["pixels"])
        g = torch.stack([self.direction(gradient) for gradient in gradients])
        x -= self.rates["pixels"] * (v * _like(self.through, v) + g * _like(self.after, g))
        v.mul_(self.s.momentum_image**self.data.n_classes).add_(g * _like(self.left, g))

    def _by_class(self, code: Tensor) -> Tensor:
        return code.view(self.data.n_classes, self.s.ipc, *code.shape[1:])

    def _powers(self, ends: list[tuple[int, int]]) -> Tensor:
        """m^a + .. + m^b for each class (n_classes,); an empty sum is 0."""
        like = self.codes["pixels"]
        sums = [sum(self.s.momentum_image**j for j in range(a, b + 1)) for a, b in ends]
        return torch.tensor(sums, dtype=like.dtype, device=like.device)


def _like(numbers: Tensor, images: Tensor) -> Tensor:
    """One number a class (n_classes,), shaped to multiply images (n_classes, ipc, C, H, W)."""
    return numbers.view(-1, *[1] * (images.ndim - 1))
