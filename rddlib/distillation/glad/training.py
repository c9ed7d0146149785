"""Training of a small generator without an adversary, and what its images are worth.

An adversarial network would need hours on a laptop. Here the generator is the decoder of a variational autoencoder
(Kingma & Welling 2014) under the mean absolute error of pixels and of a classifier's features (Johnson et al. 2016).
One variance serves all images, and noise of a class is coloured afterwards by the Gaussian of its codes (Ghosh et al.
2020: constant-variance autoencoder, ex-post density estimation). The price: softer images than an adversary's.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import files
from ...base import SettingError, digest, generator, write_atomic
from ...data.dataset import DataSet
from ...models import networks
from ..synthetic import class_labels
from .generator import Generator, GeneratorSettings, file_stem, save


def train_generator(
    data: DataSet,
    settings: GeneratorSettings,
    on_step: files.OnStep | None = None,
    checkpoint: str | Path | None = None,
    every: int = 100,
) -> Generator:
    """Train a generator on the training images of `data`; the last step is returned, ready to decode.

    `on_step` is called with the number of updates done and the losses (pixel, features, kl). With a `checkpoint` the
    state is kept there after each `every` updates and on KeyboardInterrupt, and training goes on from it to the same
    weights; `on_step` is then called again for the updates that it has. One of other data, settings or code is not
    used. Deterministic for a seed, machine and number of threads. Cost: about 12 minutes on one core for CIFAR-10 with
    the defaults. Raises SettingError for sizes other than 8, 16, 32, .. px, DataError for a damaged checkpoint.
    """
    training = Training(data, settings)
    if checkpoint is not None:
        training.load(checkpoint)

    def save(training: Training) -> None:
        if checkpoint is not None:
            training.save(checkpoint)

    def report(training: Training) -> None:
        if on_step is not None:
            on_step(len(training.history), training.history[-1])

    if on_step is not None:
        for step, losses in enumerate(training.history, 1):
            on_step(step, losses)
    files.run_rounds(settings.steps, training, Training.update, save, every, report)
    _fit_codes(training.net, data)
    for tensor in training.net.state_dict().values():
        tensor.copy_(tensor.half())  # as it will be kept, so that nothing differs after a file
    return training.net.eval().requires_grad_(False)


class Training:
    """A generator under way: everything that its next update depends on, and so what a checkpoint holds."""

    def __init__(self, data: DataSet, settings: GeneratorSettings) -> None:
        self.data = data
        self.settings = settings
        self.between_updates = True  # within one there is nothing to go on from
        with torch.device("meta"):  # as in nets.build: nothing is drawn from the global generator
            net = Generator(settings, data.shape, data.n_classes)
        weights = generator(settings.seed, "generator", "weights")
        net.to_empty(device="cpu").encoder.log_variance.data.fill_(-3)  # at 0 the codes can drown in their own noise
        for part in (net.synthesis, net.encoder.convs, net.encoder.head, net.mapping.first, net.mapping.second):
            networks.initialise(part, weights)
        net.to(data.train_images.device)
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third faster on a processor
        self.net = net
        self.judge = train_judge(data, settings.judge_steps, 32, settings.seed)
        self.streams = {name: generator(settings.seed, "generator", name) for name in ("batch", "noise", "flip")}
        spread = net.encoder.log_variance  # crosses several units, while weights move by hundredths
        rest = [p for p in net.parameters() if p is not spread]
        groups: list[dict[str, Any]] = [{"params": rest}, {"params": [spread], "lr": 10 * settings.lr}]
        self.optimiser = torch.optim.Adam(groups, lr=settings.lr, betas=(0.9, 0.99))
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimiser, settings.steps)
        self.history: list[dict[str, float]] = []

    def update(self) -> Training:
        """One update; its losses are the last entry of the history."""
        s = self.settings
        self.between_updates = False
        x, y = _batch(self.data, s.batch, self.streams["batch"], self.streams["flip"] if s.flip else None)
        parts = _losses(self.net, self.judge, self.data, x, y, self.streams["noise"])
        loss = parts["pixel"] + s.features * parts["features"] + s.kl * parts["kl"]
        _step(self.optimiser, loss, self.schedule)
        self.history.append({name: float(value.detach()) for name, value in parts.items()})
        self.between_updates = True
        return self

    def _origin(self) -> dict[str, Any]:
        return {"settings": asdict(self.settings), "data": self.data.sha256}

    def save(self, path: str | Path) -> None:
        """Write a checkpoint, whole or not at all; none within an update."""
        if not self.between_updates:
            return
        parts = {name: getattr(self, name).state_dict() for name in ("net", "optimiser", "schedule")}
        streams = {name: stream.get_state() for name, stream in self.streams.items()}
        content = {**parts, "streams": streams, "history": self.history, "of": self._origin()}
        files.write_state(path, content, files.origin(self._origin()))

    def load(self, path: str | Path) -> bool:
        """Go on from a checkpoint; False where there is none of this training. DataError, the file left, if damaged."""
        return bool(files.read_state(path, files.origin(self._origin()), self.data.train_images.device, self._restore))

    def _restore(self, raw: dict[str, Any]) -> bool:
        for name in ("net", "optimiser", "schedule"):
            getattr(self, name).load_state_dict(raw[name])
        for name, stream in self.streams.items():
            stream.set_state(raw["streams"][name].cpu())
        self.history = [dict(entry) for entry in raw["history"]]
        return True


def _step(optimiser: torch.optim.Optimizer, loss: Tensor, schedule: torch.optim.lr_scheduler.LRScheduler) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    schedule.step()


def _batch(data: DataSet, size: int, stream: torch.Generator, flip: torch.Generator | None) -> tuple[Tensor, Tensor]:
    index = torch.randint(len(data.train_labels), (size,), generator=stream).to(data.train_labels.device)
    x, y = data.train_images[index].float() / 255, data.train_labels[index]
    if flip is not None:
        mirrored = (torch.rand(size, generator=flip) < 0.5).to(x.device)
        x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
    return x, y


def _losses(
    net: Generator, judge: nn.Module, data: DataSet, x: Tensor, y: Tensor, noise: torch.Generator
) -> dict[str, Tensor]:
    mean, log_variance = net.encoder(x), net.encoder.log_variance
    u = mean + (log_variance / 2).exp() * torch.randn(mean.shape, generator=noise).to(x.device)
    image = net.synthesis(net.mapping.of_code(u, net.one_hot(y))).sigmoid().contiguous()
    with torch.no_grad():
        wanted = block_features(judge, data.normalise(x))
    given = block_features(judge, data.normalise(image))
    features = torch.stack([(a - b).abs().mean() for a, b in zip(wanted, given, strict=True)]).mean()
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
    return {"pixel": (image - x).abs().mean(), "features": features, "kl": kl}


@torch.no_grad()
def _fit_codes(net: Generator, data: DataSet) -> None:
    """Set the Gaussian of each class to that of its codes: mean, and covariance with the encoder's own variance."""
    for c, members in enumerate(data.members):
        images = data.train_images[members.to(data.train_images.device)]
        mean = torch.cat([net.encoder(part.float() / 255) for part in images.split(500)])  # (images, latent)
        covariance = mean.T.cov(correction=0) + torch.diag(net.encoder.log_variance.exp())
        net.mapping.centre[c] = mean.mean(0)
        net.mapping.spread[c] = torch.linalg.cholesky(covariance)


def train_judge(data: DataSet, steps: int, width: int, seed: int) -> nn.Module:
    """A narrow ConvNet classifier of the training images, frozen: its features are a measure of likeness."""
    depth = min(3, (data.shape[1] // 4).bit_length())
    weights = generator(seed, "judge", "weights")
    net = networks.build("convnet", data.shape, data.n_classes, depth=depth, width=width, generator=weights)
    net.to(data.train_images.device)
    stream = generator(seed, "judge", "batch")
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        x, y = _batch(data, min(128, len(data.train_labels)), stream, None)
        _step(optimiser, F.cross_entropy(net(data.normalise(x)), y), schedule)
    return net.eval().requires_grad_(False)


def block_features(judge: nn.Module, x: Tensor) -> list[Tensor]:
    """Features after each block of a ConvNet for normalised images (N, C, H, W)."""
    features = []
    for block in judge.features:  # type: ignore[union-attr]
        x = block(x)
        features.append(x)
    return features


# --- scores -----------------------------------------------------------------------------------------------


@torch.no_grad()
def score(net: Generator, data: DataSet, seed: int = 0, steps: int = 1000, width: int = 64) -> dict[str, float]:
    """What generated images are worth beside real test images, by a classifier that the training never saw.

    The test images are halved. `frechet`: distance of the Gaussians of the classifier's features between as many
    generated images and the one half; `frechet_real`: the same for the other half, the floor. `share`: per cent of
    the generated images that are taken for the class asked for; `share_real`: the accuracy on the other half.
    The classifier is a ConvNet of `width` trained for `steps` updates: numbers compare on one data set, with one
    classifier, and not with those of the Inception network. Cost: about four minutes on one core at 32 px.
    """
    with torch.enable_grad():
        judge = train_judge(data, steps, width, seed + 1)
    order = torch.randperm(len(data.test_labels), generator=generator(seed, "score", "halves"))
    one, other = order.to(data.test_labels.device).chunk(2)
    labels = data.test_labels[other]  # the classes of the half that the generated images stand beside
    z = torch.randn(len(labels), net.z_dim, generator=generator(seed, "score", "noise")).to(labels.device)
    fake = torch.cat([data.normalise(net(*part)) for part in zip(z.split(250), labels.split(250), strict=True)])
    fake_features, fake_classes = _judged(judge, fake)
    real_features, real_classes = _judged(judge, data.normalise(data.test_images[other]))
    reference, _ = _judged(judge, data.normalise(data.test_images[one]))
    return {
        "frechet": frechet(fake_features, reference),
        "frechet_real": frechet(real_features, reference),
        "share": 100 * float((fake_classes == labels).double().mean()),
        "share_real": 100 * float((real_classes == labels).double().mean()),
        "images": float(len(labels)),
    }


def _judged(judge: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Features before the linear layer (N, D) and predicted classes (N,) of normalised images."""
    features = torch.cat([judge.embed(part) for part in x.split(250)])  # type: ignore[operator]
    classes: Tensor = judge.classifier(features).argmax(1)  # type: ignore[operator]
    return features, classes


def frechet(a: Tensor, b: Tensor) -> float:
    """Squared Frechet distance of the Gaussians of two samples (N, D), (M, D) (Heusel et al. 2017, section 2).

    |m_a - m_b|^2 + tr(A + B - 2 (A^(1/2) B A^(1/2))^(1/2)): 0 for equal moments, in the units of the features squared.
    """
    if min(len(a), len(b)) < 2:
        raise SettingError("samples", min(len(a), len(b)), "at least two of each")
    first, second = a.cpu().double(), b.cpu().double()
    cov_a, cov_b = first.T.cov().reshape(a.shape[1], -1), second.T.cov().reshape(a.shape[1], -1)
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    gap = (first.mean(0) - second.mean(0)).square().sum()
    return max(float(gap + cov_a.trace() + cov_b.trace() - 2 * cross), 0.0)


# --- what is kept -----------------------------------------------------------------------------------------

SHEET_BYTES = 150_000


def keep(
    folder: str | Path, net: Generator, data: DataSet, history: Sequence[dict[str, float]], **about: Any
) -> dict[str, Any]:
    """Write STEM.safetensors, its training record STEM.json and a sheet of samples STEM.png (`file_stem`); the record.

    `history`: the losses of every update, kept as means of fifty stretches. `about`: what the caller knows, such as
    seconds, device, versions and `score`. Nothing in the record names a folder.
    """
    folder, stem = Path(folder), file_stem(data)
    weights = save(folder / f"{stem}.safetensors", net, data).read_bytes()
    length = max(len(history) // 50, 1)
    stretches = [history[i : i + length] for i in range(0, len(history), length)]
    losses = {k: [round(sum(h[k] for h in part) / len(part), 4) for part in stretches] for k in history[0]}
    record = {
        "dataset": data.name,
        "data_sha256": data.sha256,
        "shape": list(net.shape),
        "classes": list(data.classes),
        "settings": asdict(net.settings),
        "parameters": sum(p.numel() for p in net.parameters()),
        "bytes": len(weights),
        "weights_sha256": digest(weights),
        "updates_a_stretch": length,
        "losses": losses,
    } | about
    write_atomic(folder / f"{stem}.json", files.to_json(record))
    write_atomic(folder / f"{stem}.png", sheet(net))
    return record


@torch.no_grad()
def sheet(net: Generator, columns: int = 10) -> bytes:
    """A PNG of samples, a row a class, as many columns as fit in 150 kB (at most `columns`)."""
    from PIL import Image

    labels = class_labels(net.c_dim, columns, net.mapping.centre.device)
    z = torch.randn(len(labels), net.z_dim, generator=generator(0, "sheet")).to(labels.device)
    images = net(z, labels).view(net.c_dim, columns, *net.shape)
    for n in range(columns, 0, -1):
        grid = images[:, :n].permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # (K * H, n * W, C)
        pixels = (grid * 255).round().to(torch.uint8).cpu().numpy()
        png = io.BytesIO()
        Image.fromarray(pixels.squeeze(-1) if net.shape[0] == 1 else pixels).save(png, "PNG")
        if png.tell() <= SHEET_BYTES:
            break
    return png.getvalue()
