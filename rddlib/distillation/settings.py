"""What a distillation method is: the settings that shape it, and the parts in which methods differ.

One loop serves all of them. A method is a row of `PARTS`: what is matched, on which data the network is trained
between the image steps, how the images move. Each part can be overridden by the setting of its name, so that one
difference between two methods can be studied alone. Sources: IDC (Kim et al. 2022), DC (Zhao et al. 2021), DSA (Zhao &
Bilen 2021), DM (Zhao & Bilen 2023), GLaD (Cazenavette et al. 2023), as their released code runs them;
GLaD's network is trained as in RDD's fork of it, the original's never is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import nn

from ..base import SettingError, setting
from ..data import augment
from ..data.dataset import DataSet
from ..models import networks
from ..risk import RiskTerm, TermWeights
from . import clusters, matching, synthetic
from .glad.prior import Start
from .kip import inducing_points
from .kip.inducing_points import KipSettings


@dataclass(frozen=True)
class Parts:
    """The parts of the loop that a method fixes."""

    objective: str = "gradient"  # what is matched: gradients of the network, or class means of its features
    metric: str = "idc"  # distance of gradients
    net_data: str = "real"  # images on which the network is trained between the image steps
    image_step: str = "class"  # one step of the images after each class, or one for the sum over classes
    coordinates: str = "pixel"  # images move as [0, 1] pixels, clamped each outer step, or as normalised ones
    augment_rule: str = "idc"  # how many operations of a strategy act in one call
    prior: str = "none"  # what the images are made of: pixels, or codes of a generator
    momentum_net: float = 0.9
    decay_net: float = 5e-4
    train_last: bool = True  # the network is trained after the last image step of an outer step too


_IDC = Parts()
_DC = Parts(
    metric="dc",
    net_data="synthetic",
    image_step="sum",
    coordinates="normalised",
    augment_rule="one",
    momentum_net=0.0,
    decay_net=0.0,
    train_last=False,
)
PARTS = {
    "idc": _IDC,
    "dc": _DC,
    "dsa": _DC,
    "dm": Parts(objective="mean", image_step="sum", coordinates="normalised", augment_rule="one", train_last=False),
    "glad": replace(_DC, net_data="real", coordinates="pixel", prior="generator"),
}
LOOPED = tuple(PARTS)  # distilled by the loop
DISTILLED = (*LOOPED, "kip")
Method = Literal["idc", "dc", "dsa", "dm", "glad", "kip", "mix", "random", "first_n", "herding", "full", "foreign"]
METHODS = get_args(Method)
OVERRIDES = ("objective", "metric", "net_data", "image_step", "coordinates", "augment_rule", "prior")
# What shapes the risk term and is idle where there is none; `risk` itself says whether there is one.
OF_THE_TERM = frozenset(
    {"where", "alpha", "average", "worst", "scope", "space", "max_centres", "centre_choice", "centres_in_all"}
    | {"risk_images", "worst_step", "divide_loss"}
)


class RiskSettings(TermWeights):
    """The robust term: its loss, its groups, and where it stands."""

    risk: Literal["control", "released", "lower", "upper", "literal"] = setting(
        "control", "loss of the network step; control is cross-entropy alone"
    )
    where: Literal["network", "matching"] = setting(
        "network", "what the risk term enters: the network's training, or the gradient that is matched"
    )
    scope: clusters.Scope = setting("all", "which synthetic images a real one may join: of all classes, or of its own")
    space: clusters.Space = setting("feature", "where the nearest synthetic image is sought")
    max_centres: int = setting(10, "clusters a class at most; a choice of the synthetic images beyond", low=1)
    centre_choice: synthetic.Choice = setting(
        "random", "how the centres are chosen where there are more: as the paper says, or as released"
    )
    centres_in_all: int | None = setting(
        None,
        "clusters over all classes together (section 4.1 read literally: IPC, at most 10), random stored images as "
        "centres; default: max_centres for each class, as released",
        low=1,
    )
    risk_images: int | None = setting(
        None,
        "images over which the term of a network update is taken, those of the update among them (released: 768); "
        "default: those of the update, net_batch",
        low=1,
    )
    worst_step: float = setting(
        0.0, "step of group DRO's running weights, whose weighted mean stands for the largest; 0: the largest", low=0
    )
    divide_loss: bool = setting(
        False, "divide the network's loss by 1 + average + worst: the weights no longer lengthen the step"
    )
    groups_from: Literal["nearest", "labels", "found"] = setting(
        "nearest",
        "what the groups of training images are: clusters around the nearest synthetic image (Algorithm 1), labels of "
        "groups that the data has, or k-means clusters in each class, in features of a briefly trained network",
    )
    found_groups: int = setting(2, "clusters in each class where groups_from is 'found'", low=2)
    match_groups: Literal["together", "equal"] = setting(
        "together",
        "how the groups of a class share its matched statistic: as many images as they have, or each group alike "
        "(after FairDD)",
    )

    def risk_term(self) -> RiskTerm:
        """The risk term these settings name. `average` and `worst` have no meaning under control."""
        if self.risk == "control":
            return RiskTerm.preset("control")
        return RiskTerm.preset(self.risk, alpha=self.alpha, average=self.average, worst=self.worst)


class DistillSettings(RiskSettings, KipSettings):
    """Everything that shapes a distilled set. Defaults are IDC's for CIFAR-10 at 10 images a class."""

    title: ClassVar[str] = "Images, network and their steps"

    method: Method = setting(
        "idc",
        "how the set is made: distilled (idc, dc, dsa, dm, glad, kip), the start of idc (mix), drawn images, the first "
        "of each class, those whose mean is nearest to the class's (herding), all data, or elsewhere (foreign, see "
        "`rddlib evaluate`)",
    )
    factor: Literal[1, 2, 3] = setting(2, "tiles a side in one stored image (multi-formation)")
    network: networks.Network = setting("convnet", "network that is trained and matched")
    depth: int = setting(3, "blocks of the network", low=1, high=8)
    width: int = setting(128, "channels of the network", low=1)
    outer_steps: int = setting(2000, "random networks, one after the other", low=1)
    inner_steps: int = setting(100, "steps of images and network with one network", low=1)
    objective: matching.Objective | None = setting(
        None, "what is matched; default: as the method has it, so too the next six"
    )
    metric: matching.Metric | None = setting(None, "distance of gradients")
    net_data: Literal["real", "synthetic"] | None = setting(None, "images of the network step")
    image_step: Literal["class", "sum"] | None = setting(
        None, "one step of the images after each class, or one for all"
    )
    coordinates: Literal["pixel", "normalised"] | None = setting(
        None, "images move as clamped pixels or as normalised values"
    )
    augment_rule: augment.Rule | None = setting(None, "operations of a strategy in one call: IDC's choice, or one")
    prior: str | None = setting(
        None, "what images are made of: none (pixels), generator, generator:FILE, or stylegan:FILE"
    )
    prior_layer: int = setting(1, "layer after which the feature map of a prior is optimised", low=0, high=30)
    prior_start: Start = setting(
        "latent", "codes to begin from: random as published, the class's mean style, or those of real images"
    )
    lr_image: float = setting(5e-3, "learning rate of the images, as used (after IDC's scaling by ipc and size)", low=0)
    momentum_image: float = setting(0.5, "momentum of the images", low=0, high=0.999)
    image_rule: Literal["sgd", "normalised"] = setting(
        "sgd",
        "what a step of the images follows: the gradient, or the gradient of a class over its root mean square, so "
        "that the step does not depend on the scale of the distance",
    )
    batch_real: int = setting(64, "real images of a class in one matching step", low=1)
    start: Literal["random", "representative", "covering", "noise"] = setting(
        "random",
        "what the set begins from: real images, drawn, nearest to the centres of k-means clusters of a class's pixels, "
        "or drawn from each group alike; or, as DC, standard normal noise in normalised coordinates",
    )
    start_sha256: str | None = setting(
        None, "content of a finished set that the images begin from; `rddlib run --from-set` fills it in"
    )
    real_choice: Literal["random", "representative", "balanced"] = setting(
        "random",
        "which real images of a class are matched: drawn, the nearest to the centres of k-means clusters in the "
        "network's features (DREAM), or as many of each group (with replacement where a group has fewer)",
    )
    real_choice_interval: int = setting(10, "image steps between two clusterings of a class", low=1)
    real_pool: int | None = setting(
        None, "images of a class that are clustered, drawn anew each time; default: all of them", low=1
    )
    batch_synthetic: int = setting(128, "decoded images of a class in one matching step, at most", low=1)
    net_start_steps: int = setting(
        0, "updates of a new network on real images, cross-entropy alone, before the first image step with it", low=0
    )
    net_steps: int = setting(8, "network updates after each image step", low=0)
    net_batch: int = setting(256, "images in one network update (the paper's 256)", low=1)
    lr_net: float = setting(0.01, "learning rate of the network", above=0)
    match_augment: augment.Strategy = setting("color_crop_cutout", "augmentation shared by real and synthetic images")
    net_augment: augment.Strategy = setting("color_crop", "augmentation of the network step")
    cutmix: float = setting(0.5, "probability of CutMix in the network step", low=0, high=1)
    precision: networks.Precision = setting(
        "float32", "arithmetic of the loop's networks; bfloat16: products alone, images and weights stay float32"
    )
    classes_at_once: bool = setting(
        False, "gradients of all classes in one call: the same images but for rounding, sooner on a GPU, more memory"
    )

    def conflicts(self) -> Iterator[SettingError]:
        """Settings that do not go together."""
        yield from super().conflicts()
        if self.method in LOOPED and self.where == "matching" and self.parts().objective != "gradient":
            yield SettingError("where", self.where, "'network' where feature means are matched: they have no loss")
        if self.method not in LOOPED and self.start_sha256 is not None:
            yield SettingError("start_sha256", self.start_sha256, f"None but for {', '.join(LOOPED)}")
        yield from self._group_conflicts()
        from_latents = self.method in LOOPED and self.parts().prior != "none" and self.prior_start == "latent"
        if from_latents and self.start_sha256 is not None:
            allowed = "None where images begin from random latents; prior_start = 'project' begins from a set"
            yield SettingError("start_sha256", self.start_sha256, allowed)
        if self.worst_step and self.risk == "released":
            yield SettingError("worst_step", self.worst_step, f"0 under risk {self.risk!r}, which takes the maximum")
        if self.risk_images is not None and self.risk_images < self.net_batch:
            yield SettingError("risk_images", self.risk_images, f"at least net_batch, {self.net_batch}")
        if self.method in LOOPED and self.classes_at_once and self.one_by_one():
            yield SettingError("classes_at_once", True, f"False {self.one_by_one()}")

    def _group_conflicts(self) -> Iterator[SettingError]:
        """What needs groups of training images known before the loop where there are none."""
        for name, value in (("match_groups", "equal"), ("real_choice", "balanced"), ("start", "covering")):
            if getattr(self, name) == value and self.groups_from == "nearest":
                yield SettingError(name, value, "with groups_from = 'labels' or 'found': groups known beforehand")
        if self.match_groups == "equal" and self.where == "matching" and self.risk != "control":
            yield SettingError("match_groups", "equal", "'together' where the risk term stands in the matched gradient")
        in_network = self.risk != "control" and self.where == "network"
        if in_network and self.parts().net_data == "synthetic":
            if self.groups_from != "nearest":
                yield SettingError("groups_from", self.groups_from, "'nearest' where the network sees synthetic images")
            if self.risk_images is not None:
                yield SettingError("risk_images", self.risk_images, "None where the network sees synthetic images")

    @property
    def uses_groups(self) -> bool:
        """Whether anything asks which group a training image is in."""
        by_groups = self.match_groups == "equal" or self.real_choice == "balanced" or self.start == "covering"
        return self.risk != "control" or by_groups

    def idle_in_loop(self) -> set[str]:
        """Settings of the loop without effect on what it makes: alpha under control, a layer of no generator."""
        idle = {name for name in OVERRIDES if not self.differs(name)}
        if self.risk == "control":
            idle |= OF_THE_TERM
        if self.where == "matching":
            idle |= {"risk_images", "worst_step", "divide_loss"}
        if self.centres_in_all is not None:
            idle |= {"max_centres", "centre_choice"}
        if self.real_choice != "representative":
            idle |= {"real_choice_interval", "real_pool"}
        if not self.uses_groups:
            idle |= {"groups_from"}
        if self.groups_from != "found" or "groups_from" in idle:
            idle |= {"found_groups"}
        if self.ipc <= self.max_centres:
            idle.add("centre_choice")
        if self.start_sha256 is not None:
            idle.add("start")
        if self.parts().prior == "none":
            idle |= {"prior_layer", "prior_start"}
        if self.network in networks.FIXED_DEPTH:
            idle.add("depth")
        return idle

    def one_by_one(self) -> str:
        """Why the classes have to be taken one after another, "" if they need not."""
        if self.match_groups == "equal":
            return "with match_groups = 'equal': each class has weights of its own"
        return "for a ViT: its dropout draws batch by batch" if self.network == "vit" else ""

    def build_network(self, data: DataSet, generator: torch.Generator) -> nn.Module:
        """The network that is trained and matched, for images like `data`, its weights drawn from `generator`."""
        return networks.build(
            self.network, data.shape, data.n_classes, depth=self.depth, width=self.width, generator=generator
        )

    def parts(self) -> Parts:
        """The parts of this method, with the settings that override them; feature means are compared by squares."""
        chosen = {name: getattr(self, name) for name in OVERRIDES if getattr(self, name) is not None}
        parts = replace(self._published(), **chosen)
        # Means have no rows whose cosine could be taken: DM's distance sums squares.
        return replace(parts, metric="idc") if parts.objective == "mean" else parts

    def differs(self, name: str) -> bool:
        """Whether an overriding setting says something else than the method itself."""
        return bool(getattr(self.parts(), name) != getattr(self._published(), name))

    def _published(self) -> Parts:
        return PARTS.get(self.method, _IDC)


def conflicts(data: DataSet, settings: DistillSettings) -> Iterator[SettingError]:
    """Each setting that the data cannot serve."""
    s = settings
    n_train = len(data.train_labels)
    smallest = min(len(members) for members in data.members)
    if data.n_classes < 2:
        yield SettingError("dataset", data.name, "one with at least two classes")
    tiles = s.factor**2 if s.method in (*LOOPED, "mix") else 1
    without = s.method in ("full", "foreign") or (s.method in LOOPED and (s.start == "noise" or s.start_sha256))
    if not without and s.ipc * tiles > smallest:
        of = f" of {tiles} real images each" if tiles > 1 else ""
        yield SettingError("ipc", s.ipc, f"at most {smallest // tiles}{of}: the smallest class has {smallest}")
    if s.method == "kip":
        yield from inducing_points.conflicts(data, s)
    if s.method not in LOOPED:
        return
    limits = [("batch_real", smallest), ("risk_images", n_train)]
    if s.parts().net_data == "real":
        limits.append(("net_batch", n_train))
    if s.groups_from == "found":
        limits.append(("found_groups", smallest))
    for name, limit in limits:
        value = getattr(s, name)
        if value is not None and value > limit:
            of = "the training set" if limit == n_train else "the smallest class"
            yield SettingError(name, value, f"at most {limit}, {of}")
    pool = s.real_pool if s.real_choice == "representative" else None
    if pool is not None and not s.batch_real <= pool <= smallest:
        yield SettingError("real_pool", pool, f"{s.batch_real} (batch_real) to {smallest}, the smallest class")
    if s.groups_from == "labels" and data.train_groups is None:
        yield SettingError("groups_from", "labels", f"'nearest' or 'found': {data.name} has no labels of groups")
    low = data.n_classes if s.scope == "class" else 1
    high = data.n_classes * s.ipc
    if s.centres_in_all is not None and not low <= s.centres_in_all <= high:
        allowed = f"{low} to {high}: one a class under scope 'class', at most all stored images"
        yield SettingError("centres_in_all", s.centres_in_all, allowed)
    yield from networks.conflicts(s.network, data.shape, s.depth, s.width)
    parts = s.parts()
    if s.network == "vit" and parts.objective == "gradient" and parts.metric != "dc":
        yield SettingError("metric", parts.metric, "'dc' for a ViT, which has one convolution only")
