"""A prototype: the image steps of all classes at once instead of one after another, with the same images at the end.

The published loop steps after every class, with one momentum m shared by all: at the i-th of K steps v <- m v + g_i
(g_i on the rows of class i alone) and x <- x - lr v. The images of class i are read once, before step i, when i steps
of the momentum it came with have moved them: x - lr v (m + .. + m^i). Nothing else reads them until the K steps are
over. So all gradients can be taken at once, each at its own reading point, and then

    x_i <- x_i - lr (m + .. + m^K) v_i - lr (1 + .. + m^(K-1-i)) g_i,    v_i <- m^K v_i + m^(K-1-i) g_i,

which is where the K small steps end, exactly but for rounding. The gradients come from one network whose weights are
repeated for every class (torch.func): its convolutions then are grouped ones, and the graphics processor gets one large
call where it had K small ones.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from bench_inner_step import LAPTOP, PUBLISHED, TINY
from measure import How, Work, in_turn, random_data
from torch import Tensor
from torch.func import functional_call, vmap

from rddlib import augment, fused, match, prior, synthetic
from rddlib.distill import DistillSettings, begin
from rddlib.loop import Loop


class BatchedLoop(Loop):
    """`Loop` for IDC on pixels, its image steps in one; other settings, and classes short of images, are refused."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        robust = self.risky and self.s.where == "matching"
        short = min(map(len, self.members)) < self.s.batch_real
        if set(self.codes) != {"pixels"} or self.parts.image_step != "class" or robust or short:
            raise NotImplementedError("only IDC's image steps on pixels, with full batches of every class")
        self.names = [name for name, p in self.net.named_parameters() if any(p is each for each in self.matched)]

    def image_steps(self) -> Tensor:
        """As `Loop.image_steps`: moves the images of every class, returns the summed distance."""
        k, m = self.data.n_classes, self.s.momentum_image
        shape = (k, self.s.ipc, *self.codes["pixels"].shape[1:])
        x, v = self.codes["pixels"].view(shape), self.velocity["pixels"].view(shape)
        rate = self.s.lr_image * self._scale("pixels")
        with fused.use(False):  # the fused forms are not for torch.func
            distance, g = self.gradients(x - rate * v * self.powers([(1, i) for i in range(k)]))
        x -= rate * (v * self.powers([(1, k)] * k) + g * self.powers([(0, k - 1 - i) for i in range(k)]))
        v.mul_(m**k).add_(g * self.powers([(k - 1 - i, k - 1 - i) for i in range(k)]))
        return distance

    def powers(self, ends: list[tuple[int, int]]) -> Tensor:
        """m^a + .. + m^b for each class (K, 1, 1, 1, 1); an empty sum is 0."""
        m, like = self.s.momentum_image, self.codes["pixels"]
        sums = [sum(m**j for j in range(a, b + 1)) for a, b in ends]
        return torch.tensor(sums, dtype=like.dtype, device=like.device).view(-1, 1, 1, 1, 1)

    def gradients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Summed distance of all classes and its gradient at the images x (K, ipc, C, H, W)."""
        real, seen = [], []
        x = x.detach().requires_grad_()
        for c in range(len(x)):  # draws in the loop's order
            images = self.data.normalise(self.data.train_images[self._real_batch(c)])
            theta = augment.draw(
                self.s.match_augment, 1, self.data.shape[1], self.streams["match augment"], self.parts.augment_rule
            )
            real.append(augment.apply(images, theta))
            own = self._some(synthetic.decode(x[c], self.s.factor))
            seen.append(augment.apply(self.data.normalise(own), theta))
        target = [t.detach() for t in self.weight_gradients(torch.stack(real), create_graph=False)]
        found = self.weight_gradients(torch.stack(seen), create_graph=True)
        each = vmap(lambda a, b: match.distance(a, b, self.parts.metric))(target, found)  # (K,)
        (g,) = torch.autograd.grad(each.sum(), x)
        return each.detach().sum(), g

    def weight_gradients(self, x: Tensor, create_graph: bool) -> list[Tensor]:
        """Gradients of each class's loss at the matched weights, (K, ...) each; images x (K, N, C, H, W)."""
        k, n = x.shape[:2]
        weights = {name: p.detach().expand(k, *p.shape) for name, p in self.net.named_parameters()}
        matched = [weights[name].clone().requires_grad_() for name in self.names]
        weights |= dict(zip(self.names, matched, strict=True))
        logits = vmap(lambda w, batch: functional_call(self.net, w, (batch,)))(weights, x)  # (K, N, n_classes)
        labels = torch.arange(k, device=x.device).repeat_interleave(n)
        loss = F.cross_entropy(logits.flatten(0, 1), labels, reduction="sum") / n
        return list(torch.autograd.grad(loss, matched, create_graph=create_graph))


def work(kind: str, device: str, chosen: dict[str, int]) -> Work:
    """Image steps from the same start, without network steps: "reference" is the library's loop over classes."""
    chosen = dict(chosen)
    n_classes = chosen.pop("n_classes", 10)
    data = random_data(150 * n_classes, n_classes=n_classes, device=device)
    settings = DistillSettings(**chosen)
    source = prior.load("none", data, settings.prior_layer, settings.prior_start)
    loop = (Loop if kind == "reference" else BatchedLoop)(data, settings, begin(data, settings, source), source)
    return loop.image_steps


def results(how: How) -> dict[str, Any]:
    """One entry a case."""
    cases = {"laptop": TINY} if how.quick else {"laptop": LAPTOP}
    cases |= {"published": PUBLISHED} if how.device == "cuda" else {}
    return {case: in_turn(work, (chosen,), how.rounds(5), how) for case, chosen in cases.items()}
