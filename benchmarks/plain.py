"""The distillation loop and the evaluation in the plain form in which they were published, to measure against.

Written anew from the protocols of IDC (Kim et al. 2022) and DSA (Zhao & Bilen 2021): one Python step a class, batches
stacked from a list of image tensors, transformation parameters spelt out for every sample, the gradient of a gradient
left to autograd, a number fetched from every loss, separate norm, ReLU and pooling in torch's default layout. Random
draws are taken in the library's order from the library's streams, so that both do the same work on the same inputs:
checks.py holds the two together.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rddlib.base import generator
from rddlib.data import augment
from rddlib.data.augment import BRIGHTNESS, CONTRAST, CROP, CUTOUT, SATURATION, Draw
from rddlib.data.dataset import DataSet
from rddlib.distillation.distill import DistillSettings
from rddlib.models import networks


class PlainNet(nn.Module):
    """ConvNet of separate operations, with the weights of one of the library's."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for p in net.features:
            conv, norm = p[0], p[1]
            layers += [
                nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1),
                nn.GroupNorm(norm.num_channels, norm.num_channels),
                nn.ReLU(inplace=True),
                nn.AvgPool2d(2, 2),
            ]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(net.classifier.in_features, net.classifier.out_features)
        for own, given in zip(self.parameters(), net.parameters(), strict=True):
            own.data.copy_(given)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.classifier(x.view(len(x), -1))


class ImageList:
    """A data set in memory as a list of float tensors in [0, 1], with the indices of each class."""

    def __init__(self, images: Tensor, labels: Tensor, n_classes: int) -> None:
        floats = images.float() / 255 if images.dtype == torch.uint8 else images
        self.images, self.labels = list(floats), labels.tolist()
        self.of_class = [[i for i, y in enumerate(self.labels) if y == c] for c in range(n_classes)]

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        chosen = index.tolist()
        images = torch.stack([self.images[i] for i in chosen])
        return images, torch.tensor([self.labels[i] for i in chosen], device=images.device)


# --- augmentation, parameters for every sample -----------------------------------------------------------------


def augmented(x: Tensor, draw: Draw) -> Tensor:
    """Apply a draw with one row of parameters for every sample; a shared one is repeated first."""
    n, draw = len(x), draw.to(x.device)
    crop = None if draw.crop is None else draw.crop.to(x.device)  # a shared one is left on the host
    if draw.flip is not None:
        x = torch.where(repeated(draw.flip, n).view(-1, 1, 1, 1), x.flip(3), x)
    if draw.color is not None:
        x = colored(x, repeated(draw.color, n))
    if crop is not None:
        x = cropped(x, repeated(crop, n))
    if draw.affine is not None:
        theta = torch.tensor([rows.tolist() for rows in repeated(draw.affine, n)], dtype=torch.float, device=x.device)
        x = F.grid_sample(x, F.affine_grid(theta, x.shape, align_corners=True), align_corners=True)
    return x if draw.cutout is None else cut_out(x, repeated(draw.cutout, n))


def repeated(parameters: Tensor, n: int) -> Tensor:
    return parameters if len(parameters) == n else parameters.expand(n, *parameters.shape[1:]).clone()


def colored(x: Tensor, u: Tensor) -> Tensor:
    x = x + (u[:, 0].view(-1, 1, 1, 1) - 0.5) * BRIGHTNESS
    mean = x.mean(dim=1, keepdim=True)
    x = (x - mean) * (u[:, 1].view(-1, 1, 1, 1) * SATURATION) + mean
    mean = x.mean(dim=[1, 2, 3], keepdim=True)
    return (x - mean) * (u[:, 2].view(-1, 1, 1, 1) + CONTRAST) + mean


def cropped(x: Tensor, offset: Tensor) -> Tensor:
    n, _, h, w = x.shape
    pad = int(h * CROP + 0.5)
    which, down, right = places(n, h, w, x.device)
    down = (down + offset[:, 0].view(-1, 1, 1) + pad).clamp(0, h + 2 * pad - 1)
    right = (right + offset[:, 1].view(-1, 1, 1) + pad).clamp(0, w + 2 * pad - 1)
    padded = F.pad(x, [pad, pad, pad, pad, 0, 0, 0, 0])
    return padded.permute(0, 2, 3, 1).contiguous()[which, down, right].permute(0, 3, 1, 2).contiguous()


def cut_out(x: Tensor, centre: Tensor) -> Tensor:
    n, _, h, w = x.shape
    side = int(h * CUTOUT + 0.5)
    which, down, right = places(n, side, side, x.device)
    down = down + centre[:, 0].view(-1, 1, 1).long() - side // 2
    right = right + centre[:, 1].view(-1, 1, 1).long() - side // 2
    inside = (down >= 0) & (down < h) & (right >= 0) & (right < w)
    mask = torch.ones(n, h, w, dtype=x.dtype, device=x.device)
    mask[which[inside], down[inside], right[inside]] = 0
    return x * mask.unsqueeze(1)


def places(n: int, h: int, w: int, device: torch.device) -> tuple[Tensor, ...]:
    """Image, row and column of every pixel, (n, h, w) each."""
    return torch.meshgrid(*(torch.arange(k, device=device) for k in (n, h, w)), indexing="ij")


# --- training ----------------------------------------------------------------------------------------------------


def normalised(x: Tensor, data: DataSet) -> Tensor:
    mean, std = (torch.tensor(t, device=x.device).view(1, -1, 1, 1) for t in (data.mean, data.std))
    return (x - mean) / std


def accuracy(logits: Tensor, target: Tensor) -> float:
    _, predicted = logits.topk(1, 1, True, True)
    return predicted.t().eq(target.view(1, -1)).view(-1).float().sum(0).mul_(100 / len(target)).item()


class Trainer:
    """Training steps of one network as published: augmentation for every sample, CutMix, two numbers fetched."""

    def __init__(self, net: nn.Module, data: DataSet, strategy: str, cutmix: float, stream: torch.Generator) -> None:
        self.net, self.data, self.strategy, self.cutmix, self.stream = net, data, strategy, cutmix, stream
        self.optimiser = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        self.criterion, self.loss, self.top1 = nn.CrossEntropyLoss(), 0.0, 0.0

    def step(self, x: Tensor, y: Tensor) -> None:
        x = augmented(normalised(x, self.data), augment.draw(self.strategy, len(x), x.shape[-1], self.stream))
        x, partner, share = augment.cutmix(x, self.stream, self.cutmix)
        partner = partner.to(x.device)
        output = self.net(x)
        loss = self.criterion(output, y)
        if share < 1:
            loss = loss * share + self.criterion(output, y[partner]) * (1 - share)
        self.loss, self.top1 = loss.item(), accuracy(output.data, y)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()

    @torch.no_grad()
    def test(self, images: ImageList, size: int = 256) -> float:
        self.net.eval()
        right = 0.0
        for index in torch.arange(len(images.images)).split(size):
            x, y = images.batch(index)
            right += accuracy(self.net(normalised(x, self.data)), y) * len(y)
        self.net.train()
        return right / len(images.images)


# --- distillation ------------------------------------------------------------------------------------------------


def decoded(images: Tensor, factor: int) -> Tensor:
    if factor == 1:
        return images
    size = images.shape[-1] // factor
    tiles = [
        images[:, :, i * size : (i + 1) * size, j * size : (j + 1) * size]
        for i in range(factor) for j in range(factor)
    ]  # fmt: skip
    stacked = torch.stack(tiles, 1).flatten(0, 1)  # the tiles of one image side by side
    return nn.Upsample(size=images.shape[-1], mode="bilinear")(stacked)


class PlainLoop:
    """Inner steps of IDC with one network, class after class."""

    def __init__(self, data: DataSet, settings: DistillSettings, images: Tensor) -> None:
        self.data, self.s = data, settings
        self.real = ImageList(data.train_images, data.train_labels, data.n_classes)
        names = ("net", "real", "match augment", "net batch", "net augment")
        self.streams = {name: generator(settings.seed, "outer", 0, name) for name in names}
        built = networks.build("convnet", data.shape, data.n_classes, depth=settings.depth, width=settings.width,
                           generator=self.streams["net"])  # fmt: skip
        self.net = PlainNet(built).to(images.device)
        self.images = images.clone().requires_grad_()
        self.optimiser = torch.optim.SGD([self.images], lr=settings.lr_image, momentum=settings.momentum_image)
        self.trainer = Trainer(self.net, data, settings.net_augment, settings.cutmix, self.streams["net augment"])
        self.criterion = nn.CrossEntropyLoss()

    def inner_step(self) -> float:
        total = 0.0
        for c in range(self.data.n_classes):
            loss = self.class_distance(c)
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            total += loss.item()
        for _ in range(self.s.net_steps):
            index = torch.randint(len(self.real.images), (self.s.net_batch,), generator=self.streams["net batch"])
            self.trainer.step(*self.real.batch(index))
        return total

    def class_distance(self, c: int) -> Tensor:
        members = self.real.of_class[c]
        order = torch.randperm(len(members), generator=self.streams["real"])[: self.s.batch_real]
        real, _ = self.real.batch(torch.tensor([members[i] for i in order.tolist()]))
        own = decoded(self.images[c * self.s.ipc : (c + 1) * self.s.ipc], self.s.factor)
        draw = augment.draw(self.s.match_augment, 1, real.shape[-1], self.streams["match augment"])
        matched = [p for p in self.net.parameters() if p.dim() == 4]
        real = augmented(normalised(real, self.data), draw)
        own = augmented(normalised(own, self.data), draw)
        loss = self.criterion(self.net(real), torch.full((len(real),), c, device=real.device))
        target = [g.detach().clone() for g in torch.autograd.grad(loss, matched)]
        loss = self.criterion(self.net(own), torch.full((len(own),), c, device=own.device))
        found = torch.autograd.grad(loss, matched, create_graph=True)
        distance = torch.zeros((), device=own.device)
        for ours, theirs in zip(target, found, strict=True):
            distance = distance + ((ours - theirs) ** 2).sum()
        return distance
