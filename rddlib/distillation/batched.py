"""The image steps of an inner step all together: the same images at its end, and no class waits for another.

The published loop steps after every class, with one momentum m shared by all: at the i-th of K steps v <- m v + g_i
(g_i on the rows of class i alone) and x <- x - lr v. The images of class i are read once, before step i, when i steps
of the momentum it came with have moved them: x - lr v (m + .. + m^i). Nothing else reads them until the K steps are
over. So all gradients can be taken first, each at its own reading point, and then

    x_i <- x_i - lr (m + .. + m^K) v_i - lr (1 + .. + m^(K-1-i)) g_i,    v_i <- m^K v_i + m^(K-1-i) g_i,

which is where the K small steps end, exactly but for rounding. Where one step is made for the sum over classes (DC,
DSA, DM, GLaD), all gradients are at the same images anyway. The gradients then come from one network whose weights are
repeated for every class (setting `classes_at_once`), which a GPU works through in one large call where
it had K small ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, vmap

from ..base import pack_bytes, to_device, unpack_bytes
from ..data import augment
from ..data.dataset import DataSet
from ..models import fused
from ..risk import robust_loss
from . import matching, synthetic
from .glad.prior import Codes, Prior
from .loop import Batch, Loop, State
from .settings import DistillSettings

StepDraws = dict[str, list[Tensor | None]]  # what chance decides in one inner step, see `ClassLoop.host_step`
Objective = Callable[[Tensor], Tensor]  # losses (n_classes, N), a row a class -> a scalar that has no term of two rows
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


def loop_class(settings: DistillSettings, data: DataSet) -> type[Loop]:
    """The loop of these settings on the device of `data`."""
    return ClassLoop if at_once(settings, data) else Loop


def _mean(losses: Tensor) -> Tensor:
    """The mean loss of each class, summed: losses (n_classes, N)."""
    return losses.sum() / losses.shape[1]


class ClassLoop(Loop):
    """`Loop` with its image steps in closed form. The activations of all classes are in memory together.

    On a card the draws of a whole outer step are made on the host beforehand and sent in one copy, a row of bytes for
    each inner step. Only where the network chooses the images that are matched is a row made when its turn has come.
    """

    def __init__(self, data: DataSet, settings: DistillSettings, state: State, prior: Prior) -> None:
        super().__init__(data, settings, state, prior)
        k = data.n_classes
        self.velocity_before = self._powers([(1, i) for i in range(k)])
        self.velocity_in_all = self._powers([(1, k)] * k)
        self.gradient_in_all = self._powers([(0, k - 1 - i) for i in range(k)])
        self.gradient_left = self._powers([(k - 1 - i, k - 1 - i) for i in range(k)])
        named = {id(p): name for name, p in self.net.named_parameters()}
        self.names = [named[id(p)] for p in self.matched]
        self.classes = torch.arange(k, device=self.device)
        self.rows: list[Tensor] = []  # draws of the inner steps to come, uint8 (bytes,) each, on the device
        self.layout: StepDraws = {}  # tensors of the types and shapes that are in a row
        self.step_draws: StepDraws = {}  # draws of the present inner step, on the device

    # --- draws --------------------------------------------------------------------------------------------

    def host_step(self) -> StepDraws:
        """What chance decides in one inner step, on the host. On a card "net" and "risk" too: `Loop._update_draws`.

        "images": indices of real images (batch_real * n_classes,), places of the matched ones among all decoded images
        (batch_synthetic * n_classes,), classes in turn, and the fields of the draws of augmentation for both.
        """
        draws = self.host_draws(range(self.data.n_classes))
        n_decoded = self.s.ipc * self.s.factor**2
        real = torch.stack([d.real for d in draws], 1).flatten()
        all_of_class = torch.arange(n_decoded)
        subsets = [all_of_class if d.subset is None else d.subset for d in draws]
        place = torch.stack([subset + c * n_decoded for c, subset in enumerate(subsets)], 1).flatten()
        omegas = [d.omega for d in draws]
        step: StepDraws = {"images": [real, place]}
        for batch in (real, place):
            times = len(batch) // len(draws)
            joined = augment.joined(omegas, self.s.match_augment, 1, self.data.shape[1], times)
            step["images"] += vars(joined).values()
        if self.device.type != "cpu" and (self.s.inner_steps > 1 or self.parts.train_last):
            for kind in ("net", "risk"):
                step[kind] = self._update_draws(self._indices(kind), self.streams[f"{kind} augment"])
        return step

    def next_row(self) -> Tensor:
        """The draws of the next inner step on the device, as one row of bytes (n,)."""
        if not self.rows:
            number = 1 if self.s.real_choice == "representative" else self.s.inner_steps
            steps = [self.host_step() for _ in range(number)]
            self.layout = steps[0]
            rows = torch.stack([pack_bytes([t for part in step.values() for t in part]) for step in steps])
            self.rows = list(to_device(rows, self.device))
        return self.rows.pop(0)

    def next_draws(self) -> StepDraws:
        """The draws of the next inner step on the device."""
        return self.from_row(self.next_row())

    def from_row(self, row: Tensor) -> StepDraws:
        """The draws that `next_row` gave as bytes, views of them."""
        tensors = iter(unpack_bytes(row, [t for part in self.layout.values() for t in part]))
        return {name: [next(tensors) for _ in part] for name, part in self.layout.items()}

    def _update_batches(self, kind: str, pool: tuple[Tensor, Tensor] | None) -> Iterator[Batch]:
        if self.device.type == "cpu":
            return super()._update_batches(kind, pool)
        return self._batches_together(pool, self.step_draws[kind])

    # --- images -------------------------------------------------------------------------------------------

    def image_steps(self) -> Tensor:
        """As `Loop.image_steps`: moves the images of every class, returns the summed distance."""
        self.step_draws = self.host_step() if self.device.type == "cpu" else self.next_draws()
        distances, gradients = self.gradients(self.reading_points())
        self._advance(gradients)
        return distances.sum()

    def reading_points(self) -> Codes:
        """The codes of all images (n_classes, ipc, ...) as each class's turn finds them."""
        if self.parts.image_step == "sum":
            return self.codes
        points = {}
        for name, code in self.codes.items():
            velocity = self.velocity[name]
            points[name] = code - self.rates[name] * velocity * _by_class(self.velocity_before, velocity)
        return points

    def gradients(self, at: Codes) -> tuple[Tensor, Codes]:
        """Distance of each class (n_classes,) and its gradient at the codes `at` of its images, all at once.

        In the batches that are seen the classes take turns, image by image.
        """
        codes = {name: code.detach().requires_grad_() for name, code in at.items()}
        flat = {name: code.flatten(0, 1) for name, code in codes.items()}
        images = self.prior.decode(flat, self.labels.flatten())
        pixels = images.detach().requires_grad_()
        real, place, *fields = self.step_draws["images"]
        number = len(fields) // 2
        x = self.data.normalise(self.data.train_images[real])
        seen_real = augment.apply(x, augment.Draw(*fields[:number]))
        decoded = synthetic.decode(pixels, self.s.factor)
        seen = augment.apply(self.data.normalise(decoded[place]), augment.Draw(*fields[number:]))
        known = self.parts.objective == "gradient" and fused.differentiable(self.net)
        written_out = known and fused.allowed(seen) and not fused.autocast(x)
        compare = self._written_out if written_out else self._repeated
        distances, at_seen = compare(seen_real, seen, self._objective(x, cast(Tensor, real)))
        (at_pixels,) = torch.autograd.grad(seen, pixels, at_seen)
        at_codes = torch.autograd.grad(images, list(codes.values()), at_pixels)
        return distances, dict(zip(codes, at_codes, strict=True))

    def _objective(self, x: Tensor, real: Tensor) -> Objective:
        """What the gradients of the real images `x`, at the indices `real`, are taken of, see `Loop._target`."""
        if not self.in_matching:
            return _mean
        groups = self._groups(x, self._labels(len(x)), self._centre_points(), real)
        robust: Callable[..., Tensor] = vmap(partial(robust_loss, n_groups=self.n_groups, term=self.term))
        return lambda losses: robust(losses, self._rows(groups)).sum() / self.term.total_weight

    def _written_out(self, real: Tensor, seen: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
        """Distances (n_classes,) and the gradient of their sum at the images `seen`; classes in turn in both batches.

        `objective`: that of the images `real`.
        """
        n, linear = self.data.n_classes, self.parts.metric == "dc"

        def loss(logits: Tensor, objective: Objective = _mean) -> Tensor:
            losses = F.cross_entropy(logits, self._labels(len(logits)), reduction="none")
            return objective(self._rows(losses))

        def distances(gradients: list[Tensor]) -> Tensor:
            return self._distances(target, [g.unflatten(0, (n, -1)) for g in gradients])

        of_real = fused.weight_gradients(self.net, real, partial(loss, objective=objective), linear, n)
        target = [g.unflatten(0, (n, -1)) for g in of_real]
        return fused.image_gradient(self.net, seen.detach(), loss, distances, linear, n)

    def _repeated(self, real: Tensor, seen: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
        """As `_written_out` for any network and for feature means: weights repeated for every class, autograd."""
        images = seen.detach().requires_grad_()
        by_class = [t.unflatten(0, (-1, self.data.n_classes)).transpose(0, 1) for t in (real, images)]
        with fused.use(False):  # the fused forms are not for torch.func
            target = [t.detach() for t in self.statistics(by_class[0], objective)]
            distances = self._distances(target, self.statistics(by_class[1]))
            (gradient,) = torch.autograd.grad(distances.sum(), images)
        return distances.detach(), gradient

    def _distances(self, target: list[Tensor], statistics: list[Tensor]) -> Tensor:
        """Distance of the statistics of each class (n_classes,); both (n_classes, ...) each."""
        distances: Tensor = vmap(partial(matching.distance, metric=self.parts.metric))(target, statistics)
        return distances

    def statistics(self, x: Tensor, objective: Objective = _mean) -> list[Tensor]:
        """What is matched, of each class's batch: (n_classes, ...) each; images x (n_classes, N, C, H, W).

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
        losses = F.cross_entropy(logits.flatten(0, 1), self.classes.repeat_interleave(size), reduction="none")
        loss = objective(losses.view(n, size))
        return list(torch.autograd.grad(loss, list(matched.values()), create_graph=x.requires_grad))

    def _advance(self, gradients: Codes) -> None:
        """All steps of the images, by the gradients (n_classes, ipc, ...) at their codes."""
        for name, g in gradients.items():
            code, velocity, rate = self.codes[name], self.velocity[name], self.rates[name]
            if self.s.image_rule != "sgd":
                g = vmap(self.direction)(g)
            if self.parts.image_step == "sum":
                velocity.mul_(self.s.momentum_image).add_(g)
                code -= rate * velocity
            else:
                moved = velocity * _by_class(self.velocity_in_all, velocity) + g * _by_class(self.gradient_in_all, g)
                code -= rate * moved
                velocity.mul_(self.s.momentum_image**self.data.n_classes).add_(g * _by_class(self.gradient_left, g))

    # --- shapes -------------------------------------------------------------------------------------------

    def _labels(self, number: int) -> Tensor:
        """Labels of so many images, classes in turn."""
        return self.classes.repeat(number // self.data.n_classes)

    def _rows(self, values: Tensor) -> Tensor:
        """Numbers of images, classes in turn, as a row a class (n_classes, N)."""
        return values.view(-1, self.data.n_classes).T

    def _powers(self, ends: list[tuple[int, int]]) -> Tensor:
        """m^a + .. + m^b for each class (n_classes,); an empty sum is 0."""
        like = next(iter(self.codes.values()))
        sums = [sum(self.s.momentum_image**j for j in range(a, b + 1)) for a, b in ends]
        return to_device(torch.tensor(sums, dtype=like.dtype), like.device)


def _by_class(numbers: Tensor, images: Tensor) -> Tensor:
    """One number a class (n_classes,), shaped to multiply images (n_classes, ipc, C, H, W)."""
    return numbers.view(-1, *[1] * (images.ndim - 1))
