"""Test images that are not like the training images: the paper's three shifts, and twelve corruptions beside them.

The released code gives the three shifts one name each and two severities: on CIFAR-10 they act on the 32 px image that
the network sees, on ImageNet on the photograph before it is shrunk. `shift_parameters` holds those numbers and, as
``noise_matched`` and ``blur_matched``, one severity for all: the same at network resolution. Everything here works on
uint8 (N, C, H, W), draws from explicit generators, rounds to uint8, and is made on the CPU so that every device gets
the same images.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..base import SettingError, check_choice, generator
from .corruptions import TABLE
from .dataset import resized

SHIFTS = ("noise", "blur", "invert")  # the paper's, in the order of its table
MATCHED = ("noise_matched", "blur_matched")  # an inversion is as severe at any size
CORRUPTIONS = tuple(TABLE)
SEVERITIES = (1, 2, 3, 4, 5)
BLOCK = 500  # images made at once; a part of the seed, so a change makes other images


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


# --- one severity for all data sets -----------------------------------------------------------------------


def shift_parameters(dataset: str, kind: str, side: int = 32) -> dict[str, float]:
    """The arguments `sigma` or `radius` of `shifted` for a data set and a kind of shift, at images of `side` px.

    Released (``noise``, ``blur``): sigma sqrt(0.005) on 32 px sets and 0.2 on ImageNet's photographs, both on [0, 1];
    blur of radius 2 px on both. They act on the image as stored, before it is resized. Matched (``noise_matched``,
    ``blur_matched``): sigma sqrt(0.005) and a radius of 2/32 of the side, on the image as the network sees it; at
    32 px they are the released ones. Source: protocol of the released code (data_processing.ipynb, cells 6 and 10).
    """
    check_choice("kind", kind, SHIFTS + MATCHED)
    if kind == "invert":
        return {}
    if kind == "blur_matched":
        return {"radius": side * 2 / 32}
    if kind == "blur":
        return {"radius": 2.0}
    return {"sigma": 0.2 if kind == "noise" and dataset.startswith("imagenet") else 0.005**0.5}


def shifted_as_defined(stored: Tensor, kind: str, dataset: str, size: int | None = None, seed: int = 0) -> Tensor:
    """A shift of `shift_parameters` where its definition puts it: released ones before the resize, matched ones after.

    stored: uint8 (N, C, H, H) at the resolution of the file; `size`: network resolution (default: as stored). A pack
    at 128 px is not the photograph that the released code shifted: `load(name, size=400)` from ImageNet's folders
    comes close to it. The released images were also written as JPEG again, which is not done here.
    """
    late = kind in MATCHED
    images = resized(stored, size) if late else stored
    parameters = shift_parameters(dataset, kind, images.shape[-1])
    images = shifted(images, kind.removesuffix("_matched"), seed, **parameters)
    return images if late else resized(images, size)


def network_severity(dataset: str, kind: str, stored: int, size: int) -> float:
    """How severe a shift is where the network sees it: noise as sigma on [0, 1], blur as a share of the image side.

    `stored`, `size`: side in pixels of the image that is shifted and of the one the network sees. Averaging in the
    resize thins noise out; clipping, which takes a little more off, is not counted. An inversion is 1 at any size.
    """
    parameters = shift_parameters(dataset, kind, size if kind in MATCHED else stored)
    if "sigma" not in parameters:
        return parameters["radius"] / (size if kind in MATCHED else stored) if parameters else 1.0
    if kind in MATCHED or stored == size:
        return parameters["sigma"]
    rows = torch.nn.functional.interpolate(
        torch.eye(stored)[None, None], size=(size, stored), mode="bilinear", antialias=True
    )[0, 0]  # (size, stored): one axis of the resize
    return parameters["sigma"] * float(rows.square().sum(1).mean())  # a square root for each of two axes


# --- the twelve -------------------------------------------------------------------------------------------


def corrupted(images: Tensor, kind: str, severity: int, seed: int = 0) -> Tensor:
    """Images under one of `CORRUPTIONS`: uint8 (N, C, S, S) -> the same, S at least 8.

    `severity`: 1 to 5, with the constants of CIFAR-10-C (`corruptions.TABLE`, whose module says where ours deviates).
    The same seed gives all severities of a kind the same random draws. Raises SettingError for a kind, severity or
    images that it cannot use. Cost on one core: 0.1 to 3 s for 10,000 images of 32 px, 4 to 60 s for 4,000 of 128 px.
    """
    check_choice("kind", kind, CORRUPTIONS)
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise SettingError("severity", severity, "an integer from 1 to 5")
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[2] != images.shape[3] or images.shape[3] < 8:
        raise SettingError("images", f"{images.dtype} {tuple(images.shape)}", "uint8 (N, C, S, S) with S at least 8")
    change, constants = TABLE[kind]
    out = torch.empty_like(images, device="cpu")
    for start in range(0, len(images), BLOCK):
        stream = generator(seed, "corrupted", kind, start)
        changed = change(images[start : start + BLOCK].cpu().float() / 255, constants[severity - 1], stream)
        out[start : start + BLOCK] = (changed.clamp(0, 1) * 255).round().to(torch.uint8)
    return out.to(images.device)
