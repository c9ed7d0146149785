"""A small class-conditional generator in the form of a StyleGAN, and the file that keeps one.

Noise and class -> mapping -> one style `w` a layer -> synthesis by modulated convolutions, 4 px doubled up to the size
of the data (Karras et al. 2020, 2021). `rddlib.distillation.glad.training` trains it in minutes; a file holds plain
tensors (safetensors) and says in its head which data it was trained on.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import safetensors
import torch
import torch.nn.functional as F
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from ...base import DataError, SettingError, Settings, digest, setting, write_atomic
from ...data.dataset import DataSet

GAIN = 2**0.5  # leaky ReLU halves the power of its input; this gives it back


class GeneratorSettings(Settings):
    """Everything that shapes a trained generator beside the data. Defaults fit 32 px photographs."""

    latent: int = setting(64, "numbers in the noise z and in a style w", low=2)
    width: int = setting(64, "channels up to 8 px; halved with each doubling of the size beyond", low=8)
    convs: int = setting(2, "convolutions a size below the full one", low=1, high=3)
    steps: int = setting(2400, "updates", low=1)
    batch: int = setting(64, "real images in one update", low=2)
    lr: float = setting(2e-3, "learning rate of Adam at its start; a cosine takes it to zero", above=0)
    kl: float = setting(1e-4, "weight of the divergence of the codes from a standard normal, a nat an image", low=0)
    features: float = setting(1.0, "weight of the feature loss beside the mean absolute error of pixels", low=0)
    judge_steps: int = setting(400, "updates of the classifier whose features are compared", low=1)
    flip: bool = setting(True, "mirror images at random; not where letters or digits are read")
    seed: int = setting(0, "seed of weights, batches and noise", low=0)


# --- the network ------------------------------------------------------------------------------------------


class Mapping(nn.Module):
    """Noise z (N, latent) and one-hot class c (N, K) -> styles w (N, num_ws, latent), as StyleGAN's mapping.

    `centre` and `spread` hold mean and Cholesky factor of the codes of each class: u = centre_c + spread_c z.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, latent: int, n_classes: int, num_ws: int) -> None:
        super().__init__()
        self.num_ws = num_ws
        self.first = nn.Linear(latent + n_classes, latent)
        self.second = nn.Linear(latent, latent)
        self.register_buffer("centre", torch.zeros(n_classes, latent))
        self.register_buffer("spread", torch.eye(latent).repeat(n_classes, 1, 1))

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        """Styles of standard normal noise: (N, latent), (N, K) -> (N, num_ws, latent)."""
        spread = torch.einsum("nk,kij->nij", c, self.spread)
        return self.of_code(c @ self.centre + torch.einsum("nij,nj->ni", spread, z), c)

    def of_code(self, u: Tensor, c: Tensor) -> Tensor:
        """Styles of codes as the encoder gives them: (N, latent), (N, K) -> (N, num_ws, latent)."""
        hidden = F.leaky_relu(self.first(torch.cat([u, c], 1)), 0.2)
        w: Tensor = u + self.second(hidden)
        return w[:, None].expand(-1, self.num_ws, -1)


class Input(nn.Module):
    """Style (N, latent) -> the 4 px map (N, channels, 4, 4) that the layers start from."""

    def __init__(self, latent: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(latent, channels * 16)

    def forward(self, w: Tensor) -> Tensor:
        """(N, latent) -> (N, channels, 4, 4)."""
        x: Tensor = self.linear(w)
        return GAIN * F.leaky_relu(x.view(len(w), -1, 4, 4), 0.2)


class StyleLayer(nn.Module):
    """Modulated convolution 3x3 (Karras et al. 2020, Eq. 1-3); `up` doubles the size first, `last` makes pixels."""

    def __init__(self, latent: int, inputs: int, outputs: int, up: bool, last: bool) -> None:
        super().__init__()
        self.up, self.last = up, last
        self.style = nn.Linear(latent, inputs)
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """(N, inputs, h, w), (N, latent) -> (N, outputs, h or 2 h, w or 2 w)."""
        scale = 1 + self.style(w)  # (N, inputs)
        if self.up:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        y = F.conv2d(x * scale[:, :, None, None], self.conv.weight, padding=1)
        shift = self.conv.bias.view(1, -1, 1, 1)  # type: ignore[union-attr]
        if self.last:
            return y + shift
        power = scale.square() @ self.conv.weight.square().sum((2, 3)).T  # (N, outputs)
        level = GAIN * torch.rsqrt(power + 1e-8)[:, :, None, None]
        return F.leaky_relu(torch.addcmul(shift, y, level), 0.2)


class Synthesis(nn.Module):
    """Styles (N, num_ws, latent) -> logits of pixels (N, C, size, size): `input`, then the layers in `layer_names`.

    The attributes and the order (first style to `input`, one to each layer) are those of StyleGAN3 and StyleGAN-XL.
    """

    output_scale = 1.0

    def __init__(self, latent: int, width: int, convs: int, channels: int, size: int) -> None:
        super().__init__()
        sizes = [4 << i for i in range((size // 4).bit_length())]  # 4, 8, .., size
        plan = [(s, s > 4 and i == 0) for s in sizes for i in range(convs if s < size else 1)]
        outputs = [max(min(width, 8 * width // s), 8) for s, _ in plan]
        self.input = Input(latent, outputs[0])
        inputs = [outputs[0], *outputs]
        layers = [StyleLayer(latent, a, b, up, False) for a, b, (_, up) in zip(inputs, outputs, plan, strict=False)]
        layers.append(StyleLayer(latent, outputs[-1], channels, False, True))
        self.layer_names = [f"layer{i}" for i in range(len(layers))]
        for name, layer in zip(self.layer_names, layers, strict=True):
            self.add_module(name, layer)

    def forward(self, ws: Tensor) -> Tensor:
        """(N, num_ws, latent) -> (N, C, size, size)."""
        x: Tensor = self.input(ws[:, 0])
        for name, w in zip(self.layer_names, ws[:, 1:].unbind(1), strict=True):
            x = getattr(self, name)(x, w)
        return x


class Encoder(nn.Module):
    """Images (N, C, size, size) in [0, 1] -> means (N, latent) of their codes; one variance serves all images."""

    def __init__(self, latent: int, width: int, channels: int, size: int) -> None:
        super().__init__()
        halvings = (size // 4).bit_length() - 1
        widths = [channels, *[min(width, width // 2 << i) for i in range(halvings)]]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in pairwise(widths))
        self.head = nn.Linear(widths[-1] * 16, latent)
        self.log_variance = nn.Parameter(torch.zeros(latent))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, size, size) -> (N, latent)."""
        x = 2 * x - 1
        for conv in self.convs:
            x = GAIN * F.leaky_relu(conv(x), 0.2)
        mean: Tensor = self.head(x.flatten(1))
        return mean


class Generator(nn.Module):
    """Mapping, synthesis and encoder for images `shape` (C, size, size) of `n_classes` classes, size 8, 16, 32, ..

    Built without weights; `training.train_generator` and `read` give it some.
    """

    def __init__(self, settings: GeneratorSettings, shape: tuple[int, int, int], n_classes: int) -> None:
        super().__init__()
        channels, size, _ = shape
        if size < 8 or size & (size - 1):
            raise SettingError("size", size, "8, 16, 32, 64 .. px for a generator")
        self.settings = settings
        self.shape = shape
        self.z_dim = settings.latent
        self.c_dim = n_classes
        self.synthesis = Synthesis(settings.latent, settings.width, settings.convs, channels, size)
        self.num_ws = 1 + len(self.synthesis.layer_names)
        self.mapping = Mapping(settings.latent, n_classes, self.num_ws)
        self.encoder = Encoder(settings.latent, settings.width, channels, size)

    def one_hot(self, labels: Tensor) -> Tensor:
        """Labels (N,) as the mapping takes them: (N, K) float."""
        return F.one_hot(labels, self.c_dim).to(self.mapping.centre.dtype)

    def project(self, images: Tensor, labels: Tensor) -> Tensor:
        """Styles (N, num_ws, latent) of the mean codes of images (N, C, H, W) in [0, 1]: the encoder's inversion."""
        return self.mapping.of_code(self.encoder(images), self.one_hot(labels))

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] of noise (N, latent) and labels (N,)."""
        logits: Tensor = self.synthesis(self.mapping(z, self.one_hot(labels)))
        return logits.sigmoid()


# --- files ------------------------------------------------------------------------------------------------


def file_stem(data: DataSet) -> str:
    """The name of the file of a generator for `data`: NAME, or NAME_validation where a part is held out from it."""
    return f"{data.name}_validation" if data.held_out else data.name


def save(path: str | Path, net: Generator, data: DataSet) -> Path:
    """Write a generator and what it was trained on: tensors, and a head with settings, data, its hash and a checksum.

    Numbers are kept as float16, which a trained generator already has been rounded to. Atomic.
    """
    tensors = {name: tensor.detach().cpu().contiguous().half() for name, tensor in net.state_dict().items()}
    about = {
        "dataset": data.name,
        "data_sha256": data.sha256,
        "shape": list(net.shape),
        "n_classes": net.c_dim,
        "settings": asdict(net.settings),
    }
    about["checksum"] = _checksum(about, tensors)
    return write_atomic(path, to_bytes(tensors, {"rddlib": json.dumps(about, sort_keys=True)}))


def _checksum(about: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the head and of the names and values of all tensors."""
    parts = (part for name in sorted(tensors) for part in (name, tensors[name]))
    return digest(json.dumps(about, sort_keys=True), *parts)


def read(path: str | Path, data: DataSet | None = None, same_data: bool = True) -> Generator:
    """Read a generator written by `save`, frozen, on the CPU; nothing in the file is executed.

    With `data` given, it must have been made for images of that shape and number of classes and, with `same_data`,
    for those very images. Raises DataError, with the file's name, where it is missing, damaged or foreign.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["rddlib"])
            kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        checksum = about.pop("checksum", None)
        if checksum not in (None, _checksum(about, kept)):
            raise ValueError("its checksum does not fit its content")
        tensors = {name: tensor.float() for name, tensor in kept.items()}
        with torch.device("meta"):
            net = Generator(GeneratorSettings(**about["settings"]), tuple(about["shape"]), about["n_classes"])
        net.to_empty(device="cpu").load_state_dict(tensors)  # every name and every shape, or RuntimeError
    except Exception as error:  # safetensors, JSON and torch each raise their own
        raise DataError(f"{path}: cannot be read as a generator ({error})") from error
    if not all(bool(t.isfinite().all()) for t in tensors.values()):
        raise DataError(f"{path}: holds numbers that are not finite")
    if data is not None:
        made_for, wanted = (tuple(about["shape"]), about["n_classes"]), (data.shape, data.n_classes)
        if made_for != wanted:
            raise DataError(f"{path}: made for (shape, classes) {made_for}, the data have {wanted}; train one for them")
        if same_data and about["data_sha256"] != data.sha256:
            raise DataError(
                f"{path}: trained on other data ({about['dataset']} {about['data_sha256'][:12]}, not {data.name} "
                f"{data.sha256[:12]}); train one on these, or allow it with same_data=False"
            )
    return net.eval().requires_grad_(False)
