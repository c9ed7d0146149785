"""What a distillation method is: the settings that shape it, and the parts in which methods differ.

One loop serves all of them. A method is a row of `PARTS`: what is matched, on which data the network is trained
between the image steps, how the images move. Each part can be overridden by the setting of its name, so that one
difference between two methods can be studied alone. Sources: IDC (Kim et al. 2022), DC (Zhao et al. 2021), DSA (Zhao &
Bilen 2021), DM (Zhao & Bilen 2023), GLaD (Cazenavette et al. 2023), as their released code runs them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..base import SettingError, check_settings, setting
from ..data import augment
from ..data.dataset import DataSet
from ..models import networks
from ..risk import RiskTerm
from . import clusters, matching, synthetic
from .glad.prior import STARTS
from .kip.inducing_points import KipSettings

GROUPS_FROM = ("nearest", "labels", "found")
STARTS_FROM = ("random", "representative", "covering", "noise")
IMAGE_RULES = ("sgd", "normalised")
RISKS = ("control", "released", "lower", "upper", "literal")


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


_DC = Parts(metric="dc", net_data="synthetic", image_step="sum", coordinates="normalised", augment_rule="one",
            momentum_net=0.0, decay_net=0.0, train_last=False)  # fmt: skip
PARTS = {
    "idc": Parts(),
    "dc": _DC,
    "dsa": _DC,
    "dm": Parts(objective="mean", image_step="sum", coordinates="normalised", augment_rule="one", train_last=False),
    "glad": Parts(metric="dc", image_step="sum", augment_rule="one", prior="generator", momentum_net=0.0,
                  decay_net=0.0, train_last=False),
}  # fmt: skip
LOOPED = tuple(PARTS)  # distilled by the loop
DISTILLED = (*LOOPED, "kip")
METHODS = (*DISTILLED, "mix", "random", "first_n", "full", "foreign")
OVERRIDES = ("objective", "metric", "net_data", "image_step", "coordinates", "augment_rule", "prior")


@dataclass(frozen=True, kw_only=True)
class DistillSettings(KipSettings):
    """Everything that shapes a distilled set. Defaults are IDC's for CIFAR-10 at 10 images a class."""

    method: str = setting(
        "idc",
        "how the set is made: distilled (idc, dc, dsa, dm, glad, kip), the start of idc, drawn images, the first of "
        "each class, all data, or elsewhere (foreign, see `rddlib evaluate`)",
        choices=METHODS,
    )
    risk: str = setting("control", "loss of the network step; control is cross-entropy alone", choices=RISKS)
    where: str = setting(
        "network", "what the risk term enters: the network's training, or the gradient that is matched",
        choices=("network", "matching"),
    )  # fmt: skip
    alpha: float = setting(0.8, "tail mass of the CVaR", above=0, high=1)
    average: float = setting(1.0, "weight of the average of the groups' CVaR", low=0)
    worst: float = setting(1.0, "weight of the largest of the groups' CVaR", low=0)
    scope: str = setting(
        "all", "which synthetic images a real one may join: of all classes, or of its own", choices=clusters.SCOPES
    )
    space: str = setting("feature", "where the nearest synthetic image is sought", choices=clusters.SPACES)
    max_centres: int = setting(10, "clusters a class at most; a choice of the synthetic images beyond", low=1)
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
        False, "divide the network's loss by 1 + average + worst: the term turns the step and does not lengthen it"
    )
    centre_choice: str = setting(
        "random", "how the centres are chosen where there are more: as the paper says, or as released",
        choices=synthetic.CHOICES,
    )  # fmt: skip
    ipc: int = setting(10, "stored images per class", low=1)
    factor: int = setting(2, "tiles a side in one stored image (multi-formation)", choices=(1, 2, 3))
    network: str = setting("convnet", "network that is trained and matched", choices=networks.NETWORKS)
    depth: int = setting(3, "blocks of the network", low=1, high=8)
    width: int = setting(128, "channels of the network", low=1)
    outer_steps: int = setting(2000, "random networks, one after the other", low=1)
    inner_steps: int = setting(100, "steps of images and network with one network", low=1)
    objective: str | None = setting(
        None, "what is matched; default: as the method has it, so too the next six", choices=matching.OBJECTIVES
    )
    metric: str | None = setting(None, "distance of gradients", choices=matching.METRICS)
    net_data: str | None = setting(None, "images of the network step", choices=("real", "synthetic"))
    image_step: str | None = setting(
        None, "one step of the images after each class, or one for all", choices=("class", "sum")
    )
    coordinates: str | None = setting(
        None, "images move as clamped pixels or as normalised values", choices=("pixel", "normalised")
    )
    augment_rule: str | None = setting(
        None, "operations of a strategy in one call: IDC's choice, or one", choices=augment.RULES
    )
    prior: str | None = setting(None, "what images are made of: none (pixels), generator, or stylegan:NAME")
    prior_layer: int = setting(1, "layer after which the feature map of a prior is optimised", low=0, high=30)
    prior_start: str = setting(
        "latent", "codes to begin from: random as published, the class's mean style, or those of real images",
        choices=STARTS,
    )  # fmt: skip
    lr_image: float = setting(5e-3, "learning rate of the images, as used (after IDC's scaling by ipc and size)", low=0)
    momentum_image: float = setting(0.5, "momentum of the images", low=0, high=0.999)
    image_rule: str = setting(
        "sgd",
        "what a step of the images follows: the gradient, or the gradient of a class over its root mean square, so "
        "that the step does not depend on the scale of the distance",
        choices=IMAGE_RULES,
    )
    batch_real: int = setting(64, "real images of a class in one matching step", low=1)
    groups_from: str = setting(
        "nearest",
        "what the groups of training images are: clusters around the nearest synthetic image (Algorithm 1), labels of "
        "groups that the data has, or k-means clusters in each class, in features of a briefly trained network",
        choices=GROUPS_FROM,
    )
    found_groups: int = setting(2, "clusters in each class where groups_from is 'found'", low=2)
    match_groups: str = setting(
        "together",
        "how the groups of a class share its matched statistic: as many images as they have, or each group alike "
        "(after FairDD)",
        choices=("together", "equal"),
    )
    start: str = setting(
        "random",
        "what the set begins from: real images, drawn, nearest to the centres of k-means clusters of a class's pixels, "
        "or drawn from each group alike; or, as DC, standard normal noise in normalised coordinates",
        choices=STARTS_FROM,
    )
    real_choice: str = setting(
        "random",
        "which real images of a class are matched: drawn, the nearest to the centres of k-means clusters in the "
        "network's features (DREAM), or as many of each group (with replacement where a group has fewer)",
        choices=("random", "representative", "balanced"),
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
    match_augment: str = setting("color_crop_cutout", "augmentation shared by real and synthetic images")
    net_augment: str = setting("color_crop", "augmentation of the network step")
    cutmix: float = setting(0.5, "probability of CutMix in the network step", low=0, high=1)
    precision: str = setting(
        "float32", "arithmetic of the loop's networks; bfloat16: products alone, images and weights stay float32",
        choices=networks.PRECISIONS,
    )  # fmt: skip
    seed: int = setting(0, "distillation seed: the unit of replication", low=0)
    classes_at_once: bool = setting(
        False, "gradients of all classes in one call: the same images but for rounding, sooner on a GPU, more memory"
    )

    def __post_init__(self) -> None:
        check_settings(self)
        augment.operations(self.match_augment)
        augment.operations(self.net_augment)
        if self.method in LOOPED and self.where == "matching" and self.parts().objective != "gradient":
            raise SettingError("where", self.where, "'network' where feature means are matched: they have no loss")
        self._check_groups()
        if self.risk_images is not None and self.risk_images < self.net_batch:
            raise SettingError("risk_images", self.risk_images, f"at least net_batch, {self.net_batch}")
        if self.method in LOOPED and self.classes_at_once and (why := self.one_by_one()):
            raise SettingError("classes_at_once", True, f"False {why}")

    def _check_groups(self) -> None:
        """Refuse what needs groups of training images known before the loop where there are none."""
        for name, value in (("match_groups", "equal"), ("real_choice", "balanced"), ("start", "covering")):
            if getattr(self, name) == value and self.groups_from == "nearest":
                raise SettingError(name, value, "with groups_from = 'labels' or 'found': groups known beforehand")
        if self.match_groups == "equal" and self.where == "matching" and self.risk != "control":
            raise SettingError("match_groups", "equal", "'together' where the risk term stands in the matched gradient")
        in_network = self.risk != "control" and self.where == "network"
        if self.groups_from != "nearest" and in_network and self.parts().net_data == "synthetic":
            raise SettingError("groups_from", self.groups_from, "'nearest' where the network sees synthetic images")

    def one_by_one(self) -> str:
        """Why the classes have to be taken one after another, "" if they need not."""
        if self.match_groups == "equal":
            return "with match_groups = 'equal': each class has weights of its own"
        return "for a ViT: its dropout draws batch by batch" if self.network == "vit" else ""

    def parts(self) -> Parts:
        """The parts of this method, with the settings that override them; feature means are compared by squares."""
        own = PARTS.get(self.method, PARTS["idc"])
        chosen: dict[str, Any] = {n: v for n in OVERRIDES if (v := getattr(self, n)) is not None}
        if chosen.get("objective", own.objective) == "mean":
            chosen["metric"] = "idc"  # means have no rows whose cosine could be taken: DM's distance sums squares
        return Parts(**{**vars(own), **chosen})

    def differs(self, name: str) -> bool:
        """Whether an overriding setting says something else than the method itself."""
        return bool(getattr(self.parts(), name) != getattr(PARTS.get(self.method, PARTS["idc"]), name))

    def risk_term(self) -> RiskTerm:
        """The risk term these settings name. `average` and `worst` have no meaning under control."""
        if self.risk == "control":
            return RiskTerm.preset("control")
        return RiskTerm.preset(self.risk, alpha=self.alpha, average=self.average, worst=self.worst)


def check_fit(data: DataSet, settings: DistillSettings) -> None:
    """Refuse settings that the data cannot serve, before any work."""
    smallest = int(data.train_labels.bincount(minlength=data.n_classes).min())
    tiles = settings.factor**2 if settings.method in (*LOOPED, "mix") else 1
    if settings.method not in ("full", "foreign") and (needed := settings.ipc * tiles) > smallest:
        raise SettingError(
            "ipc", settings.ipc, f"what a class can start from: {needed} real images are more than {smallest}"
        )
    if settings.method not in LOOPED:
        return
    if settings.batch_real > smallest:
        raise SettingError("batch_real", settings.batch_real, f"at most {smallest}, the smallest class")
    pool = settings.real_pool if settings.real_choice == "representative" else None
    if pool is not None and not settings.batch_real <= pool <= smallest:
        raise SettingError("real_pool", pool, f"{settings.batch_real} (batch_real) to {smallest}, the smallest class")
    if settings.parts().net_data == "real" and settings.net_batch > len(data.train_labels):
        raise SettingError("net_batch", settings.net_batch, f"at most {len(data.train_labels)}, the training set")
    if settings.groups_from == "labels" and data.train_groups is None:
        raise SettingError("groups_from", "labels", f"'nearest' or 'found': {data.name} has no labels of groups")
    if settings.groups_from == "found" and settings.found_groups > smallest:
        raise SettingError("found_groups", settings.found_groups, f"at most {smallest}, the smallest class")
    if settings.risk_images is not None and settings.risk_images > len(data.train_labels):
        raise SettingError("risk_images", settings.risk_images, f"at most {len(data.train_labels)}, the training set")
    if settings.centres_in_all is not None:
        low = data.n_classes if settings.scope == "class" else 1
        high = data.n_classes * settings.ipc
        if not low <= settings.centres_in_all <= high:
            raise SettingError(
                "centres_in_all", settings.centres_in_all, f"{low} to {high}: one a class under scope 'class', at most "
                "all stored images",
            )  # fmt: skip
    networks.check_fit(settings.network, data.shape, settings.depth, settings.width)
    parts = settings.parts()
    if settings.network == "vit" and parts.objective == "gradient" and parts.metric != "dc":
        raise SettingError("metric", parts.metric, "'dc' for a ViT, which has one convolution only")
