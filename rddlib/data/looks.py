"""Sets whose groups are known, made from data that is there: images with a rare look, or a colour that tells the class.

Two forms, each with a common and a rare group in every class:

- ``rare_digits``, ``rare_cifar10``: a share of each class's training images has another look. A name may say which look
  and what share: ``rare_cifar10:tinted:0.05``.
- ``coloured_digits``, ``coloured_cifar10``: each class has a colour; a share of its training images has the colour of
  another class (``coloured_digits:0.1``; 0.05 by default). A network may read the colour and not the figure: coloured
  MNIST, as FairDD (Zhou et al. 2024) distils it, with the two groups that matter instead of one for each colour.

**Every test image is tested in both looks**: the two groups hold the same images, so that their difference is that of
the looks alone and has the smaller variance of a paired comparison. All first, in the common look, then all in the rare
one. Draws come from seed 0 and a purpose of their own, so a name always gives the same images.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..base import SettingError, generator, numpy_generator
from .sources import stratified

BASES = ("digits", "cifar10")
SHARE = {"rare": 0.1, "coloured": 0.05}
# The first that qualifies by the rule of the book's page "Where groups are real: the rules"; at 16 pixels for CIFAR-10.
LOOK = {"digits": "rotated", "cifar10": "tinted"}
CLASSES = 10  # of both bases: as many colours
FAINTEST = 0.3  # the least that coloured glass lets through of a channel: dark, but not lost


def tinted(images: Tensor, colours: Tensor) -> Tensor:
    """Images seen through coloured glass: uint8 (N, C, H, W) times colours (N, 3) in [0, 1] -> uint8 (N, 3, H, W).

    Grey images become coloured ink on black.
    """
    rgb = images.expand(-1, 3, -1, -1).float()
    return (rgb * colours[:, :, None, None].to(rgb.device)).round().to(torch.uint8)


def palette(n: int) -> Tensor:
    """`n` colours (n, 3) of full brightness, evenly spread over the hues, red first."""
    return torch.tensor([colorsys.hsv_to_rgb(i / n, 1 - FAINTEST, 1.0) for i in range(n)])


# How an image with the rare look is made, uint8 -> uint8. Where it has colour the common one is given three channels.
LOOKS: dict[str, Callable[[Tensor], Tensor]] = {
    "rotated": lambda images: torch.rot90(images, 1, (2, 3)),  # by 90 degrees, counter-clockwise
    "inverted": lambda images: 255 - images,
    "tinted": lambda images: tinted(images, palette(1).expand(len(images), 3)),  # red
}


@dataclass(frozen=True)
class Recipe:
    """How a set with known groups is made from another: `kind` is "rare" or "coloured", `share` that of the rare group.

    `look` is a name of `LOOKS`; it has no meaning for "coloured".
    """

    kind: str
    base: str
    look: str
    share: float

    @property
    def group_names(self) -> tuple[str, str]:
        """Names of the common and the rare group."""
        return ("own colour", "other colour") if self.kind == "coloured" else ("common", self.look)

    def train(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Training images (N, C, H, W) and groups (N,): `share` of each class in the rare look, in the same order.

        Raises SettingError where a class has so few images that none would be rare.
        """
        rare = stratified(labels.cpu().numpy(), self.share, numpy_generator(0, self.kind, "train"))
        groups = torch.from_numpy(rare).long().to(labels.device)
        if int(labels[groups == 1].unique().numel()) < int(labels.unique().numel()):
            allowed = f"one whose share, here {self.share}, gives each class at least one image of the rare group"
            raise SettingError("dataset", f"{self.kind}_{self.base}", allowed)
        return self._with_look(images, labels, groups, "train"), groups

    def test(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each test image in both looks: images (2 N, C, H, W), labels (2 N,) and groups (2 N,), the common first."""
        twice = labels.repeat(2)
        groups = torch.arange(2, device=labels.device).repeat_interleave(len(labels))
        return self._with_look(images.repeat(2, 1, 1, 1), twice, groups, "test"), twice, groups

    def _with_look(self, images: Tensor, labels: Tensor, groups: Tensor, part: str) -> Tensor:
        rare = groups == 1
        if self.kind == "coloured":
            stream = generator(0, "coloured", part)
            ahead = torch.randint(1, CLASSES, (len(labels),), generator=stream).to(labels.device)
            colour = (labels + ahead * rare) % CLASSES
            return tinted(images, palette(CLASSES)[colour.cpu()])
        changed = LOOKS[self.look](images[rare])
        result = images.expand(-1, changed.shape[1], -1, -1).clone()
        result[rare] = changed
        return result


def recipe(name: str) -> Recipe | None:
    """What a data set's name asks for; None where it is not one of ours.

    Raises SettingError for a look or a share that cannot be used.
    """
    first, *options = name.split(":")
    kind, _, base = first.partition("_")
    if kind not in SHARE or base not in BASES:
        return None
    look = LOOK[base]
    if kind == "rare" and options:
        look = options.pop(0)
    share = options.pop(0) if options else str(SHARE[kind])
    form = f"{first}:LOOK:SHARE" if kind == "rare" else f"{first}:SHARE"
    try:
        fits = not options and look in LOOKS and 0 < float(share) <= 0.5
    except ValueError:
        fits = False
    if not fits:
        raise SettingError("dataset", name, f"{form}, a look of {', '.join(LOOKS)}, a share above 0 and at most 0.5")
    return Recipe(kind, base, look, float(share))


def base_name(name: str) -> str:
    """The data set that `name` is made from; any other name is its own."""
    asked = recipe(name)
    return asked.base if asked else name
