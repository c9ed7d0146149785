"""Differentiable Siamese augmentation (DSA, Zhao & Bilen 2021, in IDC's form) and CutMix (Yun et al. 2019).

First a `Draw` is taken from an explicit generator, then it is applied. A shared draw has one entry, which is what
"Siamese" means: real and synthetic batches of any size get the very same transformation. Every operation passes
gradients to the images. Images are float, normalised, (N, C, H, W).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import torch
import torch.nn.functional as F
from pydantic import AfterValidator
from torch import Tensor

from ..base import SettingError, check_choice, to_device

# Strengths as published (IDC misc/augment.py).
SCALE, ROTATE, CROP, CUTOUT = 1.2, 15.0, 0.125, 0.5
BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5
OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")
ALLOWED = f"'none' or names of {', '.join(OPERATIONS)} joined by _"


@dataclass(frozen=True)
class Draw:
    """One draw of augmentation parameters; a field that is None leaves the images as they are.

    Each tensor has B rows: B = 1 is shared by a whole batch, B = N is one per image.
    """

    flip: Tensor | None = None  # (B,) bool
    color: Tensor | None = None  # (B, 3) in [0, 1): brightness, saturation, contrast
    crop: Tensor | None = None  # (B, 2) whole pixels, down and right
    affine: Tensor | None = None  # (B, 2, 3)
    cutout: Tensor | None = None  # (B, 2) centre of the hole, in pixels

    def to(self, device: torch.device) -> Draw:
        """The same draw on another device; a shared crop stays on the host, where its two numbers are read."""
        fields = {name: value for name, value in vars(self).items() if value is not None}
        for name, value in fields.items():
            if name != "crop" or len(value) > 1:
                fields[name] = to_device(value, device)
        return Draw(**fields)


def joined(draws: Sequence[Draw], strategy: str, rows: int, size: int, times: int = 1) -> Draw:
    """Draws by this strategy, each of so many `rows`, as one with all their rows in order, `times` over.

    For images of `size` px. It has all fields that the strategy may need, whatever was drawn, so that the same
    operations follow each time: where a draw has none, its rows leave the images as they are.
    """
    names = operations(strategy)
    still = {
        "flip": torch.zeros(1, dtype=torch.bool),
        "color": torch.full((1, 3), 0.5),
        "crop": torch.zeros(1, 2, dtype=torch.long),
        "affine": torch.eye(2, 3)[None],
        "cutout": torch.full((1, 2), -2.0 * size),
    }
    needed = {"flip", "color", "crop", "cutout"} & set(names)
    if {"scale", "rotate"} & set(names):
        needed.add("affine")
    fields = {}
    for name in needed:
        unchanged = still[name].expand(rows, *still[name].shape[1:])
        values = [getattr(draw, name) for draw in draws]
        joint = torch.cat([unchanged if value is None else value for value in values])
        fields[name] = joint.repeat(times, *[1] * (joint.ndim - 1))
    return Draw(**fields)


def operations(strategy: str) -> tuple[str, ...]:
    """The operations of a strategy string such as ``'color_crop_cutout'``; ``'none'`` has none."""
    names = () if strategy in ("", "none") else tuple(strategy.split("_"))
    unknown = set(names) - set(OPERATIONS)
    if unknown:
        raise SettingError("strategy", strategy, f"{ALLOWED} (not {unknown})")
    return names


def _strategy(text: str) -> str:
    operations(text)
    return text


Strategy = Annotated[str, AfterValidator(_strategy), ALLOWED]
Rule = Literal["idc", "one"]
RULES = get_args(Rule)


def draw(strategy: str, n: int, size: int, generator: torch.Generator, rule: str = "idc") -> Draw:
    """Draw parameters for `n` images of `size` px (n = 1: one draw to be shared).

    rule "idc": colour, flip and cutout always act where named; of crop, scale and rotate one is chosen a call.
    rule "one": of all operations named, one is chosen a call, as in DSA's published evaluation and matching.
    """
    names = operations(strategy)
    check_choice("rule", rule, RULES)
    if rule == "one" and names:
        names = (names[int(torch.randint(len(names), (1,), generator=generator))],)
    # Every stream is drawn whether used or not, so that strategies differ only in what they apply.
    u = torch.rand(n, 8, generator=generator)
    pick = int(torch.randint(6, (1,), generator=generator))
    flip = u[:, 0] < 0.5 if "flip" in names else None
    color = u[:, 1:4] if "color" in names else None
    cutout = (u[:, 4:6] * (size + 1 - int(size * CUTOUT + 0.5) % 2)).floor() if "cutout" in names else None
    movements = [name for name in ("crop", "scale", "rotate") if name in names]
    chosen = movements[pick % len(movements)] if movements else None
    pad = int(size * CROP + 0.5)
    crop = (u[:, 6:8] * (2 * pad + 1)).floor().long() - pad if chosen == "crop" else None
    affine = _affine(chosen, u[:, 6:8]) if chosen in ("scale", "rotate") else None
    return Draw(flip, color, crop, affine, cutout)


def _affine(kind: str | None, u: Tensor) -> Tensor:
    theta = torch.zeros(len(u), 2, 3)
    if kind == "scale":
        theta[:, [0, 1], [0, 1]] = u * (SCALE - 1 / SCALE) + 1 / SCALE
    else:
        angle = (u[:, 0] - 0.5) * 2 * ROTATE / 180 * torch.pi
        theta[:, 0, 0], theta[:, 0, 1] = angle.cos(), angle.sin()
        theta[:, 1, 0], theta[:, 1, 1] = -angle.sin(), angle.cos()
    return theta


def apply(x: Tensor, omega: Draw) -> Tensor:
    """Apply a draw to normalised images (N, C, H, W); same shape, gradients flow to `x`."""
    omega = omega.to(x.device)
    if omega.flip is not None:
        x = torch.where(omega.flip.view(-1, 1, 1, 1), x.flip(3), x)
    if omega.color is not None:
        x = _color(x, omega.color.to(x.dtype))
    if omega.crop is not None:
        x = _shift(x, omega.crop)
    if omega.affine is not None:
        grid = _grid(omega.affine.to(x.dtype), *x.shape[2:]).expand(len(x), -1, -1, -1)
        x = F.grid_sample(x, grid, align_corners=True)
    if omega.cutout is not None:
        x = x * _hole(omega.cutout, x.shape[-1]).to(x.dtype)
    return x


def _color(x: Tensor, u: Tensor) -> Tensor:
    """Brightness, then saturation, then contrast: together an affine map of each pixel and its grey value."""
    brightness, saturation, contrast = (u[:, i].view(-1, 1, 1, 1) for i in range(3))
    shift, mix, gain = (brightness - 0.5) * BRIGHTNESS, saturation * SATURATION, contrast + CONTRAST
    grey = x.mean(1, keepdim=True)
    level = grey.mean((2, 3), keepdim=True)
    return torch.addcmul(grey * (gain * (1 - mix)) + (level * (1 - gain) + shift), x, gain * mix)


def _grid(theta: Tensor, h: int, w: int) -> Tensor:
    """Where each pixel is taken from, (B, h, w, 2): F.affine_grid in a tenth of the time."""
    across = torch.linspace(-1, 1, w, dtype=theta.dtype, device=theta.device)
    down = torch.linspace(-1, 1, h, dtype=theta.dtype, device=theta.device)[:, None]
    t = theta[..., None, None]  # (B, 2, 3, 1, 1)
    return torch.stack([t[:, i, 0] * across + (t[:, i, 1] * down + t[:, i, 2]) for i in (0, 1)], -1)


def _shift(x: Tensor, offset: Tensor) -> Tensor:
    """Move images by whole pixels, zeros coming in: the crop of a zero-padded image."""
    n, c, h, w = x.shape
    pad = int(h * CROP + 0.5)
    padded = F.pad(x, (pad,) * 4)
    if len(offset) == 1:
        i, j = (int(o) for o in offset[0] + pad)
        return padded[:, :, i : i + h, j : j + w]
    wide = w + 2 * pad
    top, left = (offset + pad).T  # (N,) each
    down, right = torch.arange(h, device=x.device), torch.arange(w, device=x.device)
    if x.requires_grad:  # a gather's gradient is cheap, that of overlapping windows is not
        place = (top[:, None, None] + down[:, None]) * wide + left[:, None, None] + right  # (N, h, w)
        return padded.flatten(2).gather(2, place.view(n, 1, -1).expand(n, c, -1)).view_as(x)
    image = torch.arange(n * c, device=x.device).view(n, c, 1) * (h + 2 * pad)
    start = (image + top[:, None, None] + down) * wide + left[:, None, None]  # (N, C, h): where each row begins
    return padded.view(-1).unfold(0, w, 1).index_select(0, start.view(-1)).view(n, c, h, w)


def _hole(centre: Tensor, size: int) -> Tensor:
    """A mask (B, 1, size, size) with a square hole of half the side, cut off at the border."""
    side = int(size * CUTOUT + 0.5)
    pixels = torch.arange(size, device=centre.device)
    start = centre - side // 2  # (B, 2)
    inside = (pixels >= start[:, :, None]) & (pixels < start[:, :, None] + side)  # (B, 2, size)
    return ~(inside[:, 0, :, None] & inside[:, 1, None, :])[:, None]


def cutmix(x: Tensor, generator: torch.Generator, probability: float = 0.5) -> tuple[Tensor, Tensor, float]:
    """CutMix with beta 1: a box of another image of the batch is pasted into each, with the given probability.

    Returns the images (N, C, H, W), the partner of each image (N,) and the share of its own pixels that each
    keeps; the loss of an image is share * loss(own label) + (1 - share) * loss(partner's label).
    """
    box = draw_box(len(x), (x.shape[2], x.shape[3]), generator, probability)
    partner = to_device(box.partner, x.device)
    if box.share == 1:
        return x, partner, 1.0
    return torch.where(to_device(box.mask(), x.device), x[partner], x), partner, box.share


@dataclass(frozen=True)
class Box:
    """A draw of CutMix for a batch; without CutMix the box is empty and the share is 1."""

    partner: Tensor  # (N,)
    share: float  # of its own pixels that an image keeps
    size: tuple[int, int]  # height and width of the images
    rows: slice
    columns: slice

    def mask(self) -> Tensor:
        """Where the partner's pixels go: bool (H, W)."""
        inside = torch.zeros(self.size, dtype=torch.bool)
        inside[self.rows, self.columns] = True
        return inside


def draw_box(n: int, size: tuple[int, int], generator: torch.Generator, probability: float = 0.5) -> Box:
    """Draw CutMix for `n` images of this height and width, on the host."""
    u = torch.rand(4, generator=generator)
    partner = torch.randperm(n, generator=generator)
    h, w = size
    cut = float((1 - u[1]).sqrt())  # side of the box, as a share; lambda = u[1] ~ Beta(1, 1)
    cy, cx = int(u[2] * h), int(u[3] * w)
    top, bottom = max(cy - int(h * cut) // 2, 0), min(cy + int(h * cut) // 2, h)
    left, right = max(cx - int(w * cut) // 2, 0), min(cx + int(w * cut) // 2, w)
    if float(u[0]) >= probability:
        return Box(partner, 1.0, size, slice(0), slice(0))
    share = 1 - (bottom - top) * (right - left) / (h * w)
    return Box(partner, share, size, slice(top, bottom), slice(left, right))


# --- several batches as one ---------------------------------------------------------------------------------


def draw_batches(
    strategy: str, n: int, size: int, streams: Sequence[torch.Generator], rule: str, probability: float
) -> list[Tensor | None]:
    """Draws of augmentation and of CutMix for k batches of `n` images of `size` px, one stream a batch, on the host.

    CutMix's partners (k * n,), boxes (k, size, size) and own shares (k,), then the fields of a `Draw` of k * n rows.
    The same ones are None whatever was drawn: see `joined`. Each batch draws as it would alone.
    """
    draws, boxes = [], []
    for stream in streams:
        draws.append(draw(strategy, n, size, stream, rule))
        boxes.append(draw_box(n, (size, size), stream, probability))
    mixing: list[Tensor | None] = [None, None, None]
    if probability > 0:
        partner = torch.cat([box.partner + i * n for i, box in enumerate(boxes)])
        mixing = [partner, torch.stack([box.mask() for box in boxes]), torch.tensor([box.share for box in boxes])]
    return [*mixing, *vars(joined(draws, strategy, n, size)).values()]


def apply_batches(x: Tensor, y: Tensor, draws: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    """Augment and mix k batches, one after another in `x` (k * n, C, H, W), by `draw_batches` on their device.

    `y` (k * n, n_classes): a distribution over the classes for each image; those of mixed images are mixed alike.
    """
    partner, mask, share, *fields = draws
    x = apply(x, Draw(*fields))
    if partner is None or mask is None or share is None:
        return x, y
    images, partners, labels, partners_labels = (
        t.unflatten(0, (len(mask), -1))
        for t in (x, x[partner], y, y[partner])  # (k, n, ...) each
    )
    mixed = torch.where(mask[:, None, None], partners, images)
    mixed_labels = torch.lerp(partners_labels, labels, share.to(y.dtype).view(-1, 1, 1))
    return mixed.flatten(0, 1), mixed_labels.flatten(0, 1)
