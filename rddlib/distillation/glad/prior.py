"""Generative priors: what is optimised is a code, and a decoder turns it into images (GLaD, Cazenavette et al. 2023).

GLaD cuts a generator after `layer` of its synthesis layers. The codes of an image are the feature map `f` at the cut
and the styles `w` of the layers behind it; both are free. A cut at 0 keeps most of the generator's taste, the last one
leaves it little to say. With the identity the codes are the pixels, and every method is as it was.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ...base import DataError, SettingError, check_choice, digest, resources
from ...data.dataset import DataSet
from . import generator
from .generator import Generator

Codes = dict[str, Tensor]
Start = Literal["latent", "mean", "project"]
STARTS = get_args(Start)
CLIP = 10.0  # bound of the feature map at the start, as in GLaD
MEAN_OF = 1000  # latents averaged by start "mean", as in GLaD


@dataclass(frozen=True)
class Identity:
    """No prior: the code of an image is the image.

    A prior has a word for records (`name`), the hash of its decoder's weights (`sha256`), codes to begin from
    (`encode`), images in [0, 1] that are differentiable in every code (`decode`), and the factors on the learning rate
    of the images, one a kind of code (`rates`). Images are (N, C, H, W), labels (N,).
    """

    name: str = "none"
    sha256: str = ""

    def encode(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Codes:
        """The images themselves; nothing is drawn."""
        return {"pixels": images}

    def decode(self, codes: Codes, labels: Tensor) -> Tensor:
        """The pixels, as they are: what keeps them in [0, 1] is the loop's clamp."""
        return codes["pixels"]

    def rates(self) -> dict[str, float]:
        """One rate, the image's own."""
        return {"pixels": 1.0}


@dataclass(frozen=True, kw_only=True)
class StylePrior:
    """A style generator cut after `layer` synthesis layers: codes w (N, layers behind the cut, dim), f (N, C', h, w).

    `network` has `z_dim`, `c_dim`, `mapping(z, c) -> ws` and `synthesis` with `input(w)`, `layer_names`, the layers
    under those names, called (x, w), and `output_scale`: the interface of StyleGAN3 and StyleGAN-XL, and of ours. The
    first style goes to `input`, the others to the layers. Styles before the cut have no effect and are no code.
    `to_unit` turns what comes out into pixels in [0, 1], `shape` is that of the images wanted, `classes` (K,) the
    class of the network for each label. `start`: "latent", random noise as published; "mean", the mean style of each
    class over 1000 draws (GLaD's option); "project", the given images through `invert` where there is one.
    """

    name: str
    network: Any
    layer: int
    shape: tuple[int, int, int]
    classes: Tensor
    to_unit: Callable[[Tensor], Tensor]
    start: str = "latent"
    invert: Callable[[Tensor, Tensor], Tensor] | None = None
    layer_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        most = len(self.network.synthesis.layer_names) - 1
        if not 0 <= self.layer <= most:
            raise SettingError("prior_layer", self.layer, f"0 to {most}, where this generator can be cut")
        starts = STARTS if self.invert is not None else STARTS[:2]
        check_choice("prior_start", self.start, starts)

    @cached_property
    def sha256(self) -> str:
        """64 hex digits: hash of names and values of the network's weights."""
        weights = self.network.state_dict()
        return digest(*(part for name in sorted(weights) for part in (name, weights[name].float())))

    @torch.no_grad()
    def encode(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Codes:
        """Codes to begin from. `images` are used by start "project" only; f is clipped to [-10, 10]."""
        labels = labels.to(self.classes.device)
        if self.start == "project":
            ws = self.invert(images, labels)  # type: ignore[misc]  # checked above
        elif self.start == "mean":
            present, index = labels.unique(return_inverse=True)
            ws = torch.stack([self._styles(y.expand(MEAN_OF), generator).mean(0) for y in present])[index]
        else:
            ws = self._styles(labels, generator)
        f = self._run(self.network.synthesis.input(ws[:, 0]), ws[:, 1:], 0, self.layer)
        return {"w": ws[:, 1 + self.layer :].clone(), "f": f.nan_to_num().clamp(-CLIP, CLIP)}

    def decode(self, codes: Codes, labels: Tensor) -> Tensor:
        """Images (N, *shape) in [0, 1]; the labels are in the codes already."""
        synthesis = self.network.synthesis
        x = self._run(codes["f"], codes["w"], self.layer, len(synthesis.layer_names))
        x = self.to_unit(x * synthesis.output_scale)
        if x.shape[-1] != self.shape[-1]:
            x = F.interpolate(x, size=self.shape[1:], mode="bilinear", antialias=True).clamp(0, 1)
        return x

    def rates(self) -> dict[str, float]:
        """GLaD's: the feature map at the image's rate, the styles at a thousandth of it."""
        return {"w": 1e-3, "f": 1.0}

    def _styles(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        z = torch.randn(len(labels), self.network.z_dim, generator=generator).to(self.classes.device)
        c = F.one_hot(self.classes[labels], self.network.c_dim)
        ws: Tensor = self.network.mapping(z, c.to(z.dtype))
        return ws

    def _run(self, x: Tensor, ws: Tensor, first: int, last: int) -> Tensor:
        """Layers `first` .. `last` - 1 of the synthesis, a style each."""
        names = self.network.synthesis.layer_names[first:last]
        for name, w in zip(names, ws.unbind(1), strict=False):
            x = getattr(self.network.synthesis, name)(x, w, **self.layer_options)
        return x


Prior = Identity | StylePrior

# --- finding one ------------------------------------------------------------------------------------------


def load(name: str, data: DataSet, layer: int, start: str = "latent", same_data: bool = True) -> Prior:
    """The prior `name` for `data`, on its device.

    ``none``: pixels. ``generator``: ours, as committed for a data set of this name, and for what is left of it where a
    part is held out; ``generator:FILE.safetensors``: one that you trained. ``stylegan:FILE.py``: a StyleGAN-XL of yours
    (see `from_file`). `layer`: where it is cut.
    With `same_data` our generator must have been trained on these very images; else on ones of this shape and classes.
    Raises SettingError for an unknown name, layer or start, DataError for a missing, damaged or foreign file.
    """
    kind, _, path = name.partition(":")
    if name == "none":
        return Identity()
    if kind == "generator":
        file = Path(path) if path else committed(generator.file_stem(data))
        return from_generator(generator.read(file, data, same_data), data, layer, start)
    if kind == "stylegan" and path:
        return from_file(path, data, layer, start)
    raise SettingError("prior", name, "none, generator, generator:FILE.safetensors or stylegan:FILE.py")


def committed(stem: str) -> Path:
    """Where the generator of a data set lies (`generator.file_stem`); raises SettingError where none is kept."""
    folder = resources() / "priors"
    names = sorted(p.stem for p in folder.glob("*.safetensors"))
    if stem not in names:
        raise SettingError("prior", f"generator of {stem}", f"a data set with one: {', '.join(names)}; or train it")
    return folder / f"{stem}.safetensors"


def from_generator(network: Generator, data: DataSet, layer: int, start: str = "latent") -> StylePrior:
    """Our own generator as a prior; it brings an encoder, so it can start from real images."""
    device = data.train_images.device
    return StylePrior(
        name="generator",
        network=network.to(device),
        layer=layer,
        shape=data.shape,
        classes=torch.arange(network.c_dim, device=device),
        to_unit=torch.sigmoid,
        start=start,
        invert=network.project,
    )


def from_stylegan(
    network: Any, classes: list[int], data: DataSet, layer: int, start: str = "latent", **layer_options: Any
) -> StylePrior:
    """A loaded StyleGAN3 or StyleGAN-XL as a prior. `classes`: its class for each class of `data`, in order.

    Its weights are frozen. Its output in [-1, 1] is moved to [0, 1] and cut off there; other sizes are resized.
    `layer_options` go to every layer, e.g. ``force_fp32=True``. Raises SettingError where `classes` does not fit.
    """
    if len(classes) != data.n_classes or not all(0 <= int(c) < network.c_dim for c in classes):
        raise SettingError("classes", classes, f"{data.n_classes} numbers in 0 .. {network.c_dim - 1}, one a class")
    device = data.train_images.device
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return StylePrior(
        name="stylegan",
        network=network.eval().to(device),
        layer=layer,
        shape=data.shape,
        start=start,
        classes=torch.tensor([int(c) for c in classes], device=device),
        to_unit=lambda x: ((x + 1) / 2).clamp(0, 1),
        layer_options=layer_options,
    )


def from_file(path: str | Path, data: DataSet, layer: int, start: str = "latent") -> StylePrior:
    """A StyleGAN-XL that a Python file of yours loads: it defines ``load()`` -> network and ``CLASSES``, a list.

    The file is run as it is, in this process: name only a file that you wrote or read. Weights and the checkout
    they need are yours; nothing is fetched or unpickled here. ``OPTIONS``, a dict, is passed to every layer.
    Raises DataError, with the file's name, where it is missing, fails or lacks one of the two.
    """
    try:
        spec = importlib.util.spec_from_file_location("rddlib_user_prior", path)
        if spec is None or spec.loader is None:
            raise ImportError("not a Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        network, classes = module.load(), list(module.CLASSES)
    except Exception as error:  # whatever the user's file raises
        raise DataError(f"{path}: cannot be used as a prior ({type(error).__name__}: {error})") from error
    return from_stylegan(network, classes, data, layer, start, **getattr(module, "OPTIONS", {}))


# --- inversion --------------------------------------------------------------------------------------------


def project(prior: Prior, codes: Codes, images: Tensor, labels: Tensor, steps: int) -> Codes:
    """Move codes so that they decode to `images` (N, C, H, W): `steps` updates of Adam on the squared error.

    Serves any prior, ours or a user's. All codes move at one rate, not at `rates()`, which suit distillation.
    """
    free = {name: code.detach().clone().requires_grad_() for name, code in codes.items()}
    optimiser = torch.optim.Adam(list(free.values()), lr=0.05)
    for _ in range(steps):
        loss = (prior.decode(free, labels) - images).square().sum((1, 2, 3)).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    return {name: code.detach() for name, code in free.items()}
