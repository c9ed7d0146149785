"""Test images that are not like the training images: the paper's three shifts, as released.

Everything works on uint8 (N, C, H, W), draws from explicit generators, and rounds back to uint8.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .base import SettingError, generator

SHIFTS = ("noise", "blur", "invert")


def shifted(images: Tensor, kind: str, seed: int = 0, sigma: float = 0.005**0.5, radius: float = 2.0) -> Tensor:
    """Test images under one of the paper's shifts, with the released parameters: uint8 (N, C, H, W) -> the same.

    noise: Gaussian of variance 0.005 on [0, 1] (32 px sets), clipped, seeded here; blur: Pillow's GaussianBlur of
    radius 2 px; invert: 255 - x. Source: data_processing.ipynb of the released code.
    """
    if kind == "invert":
        return 255 - images
    if kind == "noise":
        noise = torch.randn(images.shape, generator=generator(seed, "noise")).to(images.device)
        return ((images.float() / 255 + sigma * noise).clamp(0, 1) * 255).round().to(torch.uint8)
    if kind == "blur":
        from PIL import Image, ImageFilter

        soft = ImageFilter.GaussianBlur(radius)
        planes = images.cpu().numpy().reshape(-1, *images.shape[2:])  # channels are blurred one by one
        blurred = np.stack([np.asarray(Image.fromarray(p).filter(soft)) for p in planes])
        return torch.from_numpy(blurred).view(images.shape).to(images.device)
    raise SettingError("kind", kind, f"one of {', '.join(SHIFTS)}")
