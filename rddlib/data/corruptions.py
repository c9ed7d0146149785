"""Twelve corruptions in the manner of CIFAR-10-C, written from the published definitions, on whole batches.

Source: Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and Perturbations, ICLR
2019. Every number in `TABLE` is that of the script which made CIFAR-10-C (make_cifar_c.py, severities 1 to 5). They
are settings for 32 px. Elsewhere a length (radius, sigma, displacement) keeps its share of the image side, so that at
8 px the mildest blurs do nothing; noise per pixel, zoom, fog, contrast, brightness and JPEG quality stay as they are.

Where ours deviates: levels are rounded, not cut off to the integer below; random draws come from a seeded stream, the
same for all severities of a kind, and thus differ from those of the published files; elastic_transform interpolates
once where the script does so twice; motion_blur follows ImageMagick's definition (half a Gaussian along a line of
nearest pixels) without taps lighter than 1e-5; the height map of the fog has the next power of two as its side. Snow,
frost and glass blur are left out. Numbers measured here do not stand beside a table of CIFAR-10-C.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Corruption = Callable[[Tensor, Any, torch.Generator], Tensor]  # [0, 1] (N, C, S, S), constants, stream -> the same


# --- noise ------------------------------------------------------------------------------------------------


def gaussian_noise(x: Tensor, sigma: float, stream: torch.Generator) -> Tensor:
    """Add normal noise of the given standard deviation to each value; not yet clipped."""
    return x + sigma * torch.randn(x.shape, generator=stream)


def shot_noise(x: Tensor, photons: float, stream: torch.Generator) -> Tensor:
    """Replace each value by a Poisson count with mean `photons` times the value, over `photons`."""
    return torch.poisson(x * photons, generator=stream) / photons


def impulse_noise(x: Tensor, amount: float, stream: torch.Generator) -> Tensor:
    """Set a share `amount` of all values to 0 or 1, half each (salt and pepper, channel by channel)."""
    draw = torch.rand(x.shape, generator=stream)
    return torch.where(draw < amount / 2, 0.0, torch.where(draw < amount, 1.0, x))


# --- blur -------------------------------------------------------------------------------------------------


def disc(radius: float, softness: float, reach: int) -> Tensor:
    """A filled circle (odd, odd) of the given radius, smoothed by a Gaussian cut at `reach` pixels; sums to one."""
    from scipy.ndimage import convolve1d

    half = math.ceil(radius) + reach
    square = np.arange(-half, half + 1) ** 2
    kernel = (square[:, None] + square <= radius**2).astype(float)
    soft = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * softness**2))
    for axis in (0, 1):
        kernel = convolve1d(kernel, soft / soft.sum(), axis=axis, mode="constant")
    return torch.from_numpy(kernel / kernel.sum()).float()


def defocus_blur(x: Tensor, constants: tuple[float, float], stream: torch.Generator) -> Tensor:
    """Convolve with a softened disc: (radius, softness) in pixels at 32 px; borders are mirrored."""
    scale = x.shape[-1] / 32
    kernel = disc(constants[0] * scale, constants[1] * scale, max(1, round(scale)))
    half = len(kernel) // 2
    planes = F.pad(x.flatten(0, 1)[:, None], (half,) * 4, mode="reflect")
    return F.conv2d(planes, kernel[None, None]).view(x.shape)


def motion_blur(x: Tensor, constants: tuple[float, float], stream: torch.Generator) -> Tensor:
    """Trail each image along a line at -45 to 45 degrees: (radius, sigma) of half a Gaussian, in pixels at 32 px."""
    side, (radius, sigma) = x.shape[-1], (c * x.shape[-1] / 32 for c in constants)
    angle, order = ((torch.rand(len(x), generator=stream) - 0.5) * (math.pi / 2)).sort()
    taps = torch.arange(2 * math.ceil(radius) + 1)
    weights = torch.exp(-(taps**2) / (2 * sigma**2))
    weights = weights / weights.sum()
    taps = taps[weights > 1e-5]
    line = torch.stack([angle.sin(), angle.cos()], 1)[:, None] * taps[:, None]  # (N, taps, 2)
    steps = torch.ceil(line - 0.5).long()
    room = len(taps)
    padded = F.pad(x[order], (room,) * 4, mode="replicate")
    out = torch.zeros_like(x)
    for tap, weight in zip(taps.tolist(), weights.tolist(), strict=False):
        # In the order of their angles, images that share an offset stand together: one slice moves them all.
        offsets, counts = steps[:, tap].unique_consecutive(dim=0, return_counts=True)
        start = 0
        for (down, right), n in zip(offsets.tolist(), counts.tolist(), strict=True):
            top, left = room + down, room + right
            out[start : start + n] += weight * padded[start : start + n, :, top : top + side, left : left + side]
            start += n
    return out[order.argsort()]


def zoom_matrix(side: int, factor: float) -> Tensor:
    """The linear map (S, S) that enlarges one axis about its middle, with the script's rounding to whole pixels."""
    crop = math.ceil(side / factor)
    length = round(crop * factor)
    place = (side - crop) // 2 + ((length - side) // 2 + np.arange(side)) * (crop - 1) / (length - 1)
    low = np.minimum(np.floor(place).astype(int), side - 2)
    matrix = np.zeros((side, side))
    rows = np.arange(side)
    matrix[rows, low], matrix[rows, low + 1] = 1 - (place - low), place - low
    return torch.from_numpy(matrix).float()


def zoom_blur(x: Tensor, end: float, stream: torch.Generator) -> Tensor:
    """Average the image with itself enlarged by 1.00, 1.01, ... up to `end`."""
    factors = np.arange(1, end, 0.01)
    total = x.clone()
    for factor in factors:
        matrix = zoom_matrix(x.shape[-1], float(factor))
        total += matrix @ x @ matrix.T
    return total / (len(factors) + 1)


# --- weather and light ------------------------------------------------------------------------------------


def plasma(n: int, side: int, decay: float, stream: torch.Generator) -> Tensor:
    """`n` height maps (N, S, S) in [0, 1] by the diamond-square rule on a torus; roughness falls by decay^2 a level.

    The square is the script's: it multiplies its random step by the shrinking amplitude twice.
    """
    size = 1 << (side - 1).bit_length()
    field = torch.zeros(n, size, size)
    step, rough = size, 1.0

    def around(total: Tensor, rough: float) -> Tensor:
        return total / 4 + rough * (2 * torch.rand(total.shape, generator=stream) - 1)

    while step >= 2:
        half = step // 2
        corner = field[:, ::step, ::step]
        pairs = corner + corner.roll(-1, 1)
        centre = around(pairs + pairs.roll(-1, 2), rough)
        field[:, half::step, half::step] = centre
        field[:, ::step, half::step] = around(corner + corner.roll(-1, 2) + centre + centre.roll(1, 1), rough)
        field[:, half::step, ::step] = around(pairs + centre + centre.roll(1, 2), rough)
        step, rough = half, rough / decay**2
    field -= field.amin((1, 2), keepdim=True)
    return (field / field.amax((1, 2), keepdim=True))[:, :side, :side]


def fog(x: Tensor, constants: tuple[float, float], stream: torch.Generator) -> Tensor:
    """Add a height map times a strength, then bring the image's highest level back: (strength, decay)."""
    strength, decay = constants
    top = x.amax((1, 2, 3), keepdim=True)
    return (x + strength * plasma(len(x), x.shape[-1], decay, stream)[:, None]) * top / (top + strength)


def brightness(x: Tensor, step: float, stream: torch.Generator) -> Tensor:
    """Raise the value (of hue, saturation, value) by `step`, at most to 1; hue and saturation stay."""
    value = x.amax(1, keepdim=True)
    raised = (value + step).clamp(max=1)
    return torch.where(value > 0, x * (raised / value.clamp_min(1e-6)), raised)


def contrast(x: Tensor, share: float, stream: torch.Generator) -> Tensor:
    """Keep a share of each channel's distance from its mean over the image."""
    mean = x.mean((2, 3), keepdim=True)
    return mean + share * (x - mean)


# --- geometry and coding ----------------------------------------------------------------------------------


def elastic_transform(x: Tensor, constants: tuple[float, float, float], stream: torch.Generator) -> Tensor:
    """Bend: a random affine map, then a smooth random displacement. (amplitude, smoothness, affine) as shares of S."""
    from scipy.ndimage import gaussian_filter1d

    n, side = len(x), x.shape[-1]
    amplitude, smoothness, affine = (c * side for c in constants)
    middle, arm = side // 2, side // 3
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]]) * arm + middle
    moved = corners + affine * (2 * torch.rand(n, 3, 2, generator=stream) - 1)
    back = torch.linalg.solve(torch.cat([moved, torch.ones(n, 3, 1)], 2), corners.expand(n, 3, 2))  # (N, 3, 2)
    smooth = torch.eye(side)
    if smoothness > 0:
        smooth = torch.from_numpy(gaussian_filter1d(np.eye(side), smoothness, axis=0, truncate=3)).float()
    bend = amplitude * (smooth @ (2 * torch.rand(n, 2, side, side, generator=stream) - 1) @ smooth.T)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    here = torch.stack([columns + bend[:, 0], rows + bend[:, 1], torch.ones(n, side, side)], 3)  # (N, S, S, 3)
    source = (here.flatten(1, 2) @ back).view(n, side, side, 2)
    return F.grid_sample(x, 2 * source / (side - 1) - 1, padding_mode="reflection", align_corners=True)


def _by_pillow(x: Tensor, change: Callable[[Any], Any]) -> Tensor:
    """Each image through a function of Pillow images, RGB or grey."""
    from PIL import Image

    arrays = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    changed = [np.asarray(change(Image.fromarray(a[..., 0] if a.shape[2] == 1 else a))) for a in arrays]
    return torch.from_numpy(np.stack(changed)).view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2).float() / 255


def pixelate(x: Tensor, share: float, stream: torch.Generator) -> Tensor:
    """Shrink the side to a share of itself by averaging boxes, and enlarge it again by repeating pixels."""
    from PIL import Image

    side, small = x.shape[-1], int(x.shape[-1] * share)
    box = Image.Resampling.BOX
    return _by_pillow(x, lambda image: image.resize((small, small), box).resize((side, side), box))


def jpeg_compression(x: Tensor, quality: int, stream: torch.Generator) -> Tensor:
    """Write and read each image as a JPEG of this quality. Last bits depend on the JPEG library: keep the images."""
    from PIL import Image

    def coded(image: Any) -> Any:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _by_pillow(x, coded)


TABLE: dict[str, tuple[Corruption, tuple[Any, ...]]] = {
    "gaussian_noise": (gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": (defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    "motion_blur": (motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    "zoom_blur": (zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26)),
    "fog": (fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    "brightness": (brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic_transform": (
        elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    "pixelate": (pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg_compression": (jpeg_compression, (80, 65, 58, 50, 40)),
}
