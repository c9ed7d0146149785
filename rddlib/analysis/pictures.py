"""Pictures of sets side by side: how two differ, and a slider over steps.

The slider is HTML that works in a notebook and on a page, without a kernel or a script of its own.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from ..base import SettingError
from .report import sheet

# What the slider does when it is moved: shows another part of the strip, and says which.
MOVED = (
    "const figure = this.closest('figure'), words = this.dataset.steps.split('|')[this.value]; "
    "figure.style.setProperty('--step', this.value); "
    "figure.querySelector('output').value = words; this.setAttribute('aria-valuetext', words)"
)


def difference(one: Tensor, other: Tensor, factor: float) -> Tensor:
    """`other` less `one`, `factor` times, on mid grey: float64 of their shape, clipped to [0, 1].

    one, other: (N, C, H, W), floats in [0, 1] or uint8. Grey is equal; brighter is brighter in `other`. Raises
    SettingError where the shapes differ.
    """
    if one.shape != other.shape:
        raise SettingError("other", tuple(other.shape), f"images of shape {tuple(one.shape)}")
    a, b = (images.double() if images.is_floating_point() else images.double() / 255 for images in (one, other))
    return (0.5 + factor * (b - a)).clamp(0, 1)


def slider(frames: Sequence[Tensor], columns: int, rows: Sequence[str], steps: Sequence[str], alt: str) -> str:
    """HTML of a figure that shows one of several sheets of images, chosen by a slider.

    frames: one or more of (len(rows) * columns, C, H, W), in [0, 1] or uint8; `rows`: a name for each row of a sheet;
    `steps`: what is said beside the slider, one for each frame; `alt`: the sheets in words. All frames lie in one
    picture within the HTML. Raises SettingError where the numbers of frames, rows and steps do not fit.
    """
    if len(steps) != len(frames) or not frames:
        raise SettingError("steps", len(steps), f"one for each of {len(frames)} frames, at least one")
    if any(len(frame) != len(rows) * columns for frame in frames):
        counts = sorted({len(frame) for frame in frames})
        raise SettingError("frames", counts, f"{len(rows)} rows of {columns} images each")
    sheets = [np.pad(_colour(sheet(frame, columns)), ((1, 1), (0, 0), (0, 0)), constant_values=1) for frame in frames]
    strip = Image.fromarray((np.concatenate(sheets) * 255).round().clip(0, 255).astype(np.uint8))
    file = io.BytesIO()
    strip.save(file, "PNG", optimize=True)
    source = base64.b64encode(file.getvalue()).decode()
    height, width, _ = sheets[0].shape
    last = len(frames) - 1
    names = "".join(f"<span>{html.escape(name)}</span>" for name in rows)
    said = [html.escape(words, quote=True) for words in steps]
    return f"""<figure style="--step: 0; max-width: 34rem; margin: 1rem 0">
<div style="display: flex; gap: 0.7rem">
<div style="display: flex; flex-direction: column; justify-content: space-around">{names}</div>
<div role="img" aria-label="{html.escape(alt, quote=True)}" style="flex: 1; aspect-ratio: {width} / {height};
image-rendering: pixelated; background: 0 calc(var(--step) * {100 / max(last, 1):.4f}%) / 100% {100 * len(frames)}%
url(data:image/png;base64,{source})"></div>
</div>
<label style="display: block; margin-top: 0.5rem">Step
<input type="range" min="0" max="{last}" value="0" style="vertical-align: middle; width: 55%"
data-steps="{"|".join(said)}" aria-valuetext="{said[0]}" oninput="{MOVED}"> <output>{said[0]}</output></label>
</figure>"""


def _colour(picture: np.ndarray) -> np.ndarray:
    """A sheet (H, W) or (H, W, 3) as (H, W, 3)."""
    return picture if picture.ndim == 3 else picture[:, :, None].repeat(3, axis=2)
