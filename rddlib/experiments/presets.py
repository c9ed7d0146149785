"""The numbers of each scale: what a data set, a method and a budget ask for. Any of them can be set by hand.

smoke: digits, seconds on two cores. laptop: minutes on two cores, a short loop. cpu: IDC's inner loop whole, so that
the loop's network learns; narrow networks, six outer steps. gpu: the paper's networks and data, a shorter outer loop.
paper: the full published protocol (IDC, DC, DSA, DM, GLaD as the released code of each runs it).
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

from ..data.looks import base_name
from ..models import networks, training

Scale = Literal["smoke", "laptop", "cpu", "gpu", "paper"]
SCALES = get_args(Scale)
IMAGES_OF_TEN_CLASSES = 13000  # about 1,300 a class in ImageNet
SIAMESE = ("dc", "dsa", "dm", "glad")  # one image a tile, DSA's augmentation, no CutMix

# Widths for the short scales: a training step takes about as long as that of a ConvNet of 32 channels.
NARROW = {"resnet10": 8, "resnetap10": 8, "resnet18": 8, "resnetap18": 8, "vgg11": 16, "vit": 32}
# IDC at the short scales. `cpu` has its inner loop whole: 100 steps, and for its 32 updates of 64 images the paper's
# batch, 8 of 256. The image rate of laptop and cpu was chosen at ten images a class, and follows their number as IDC's
# own does.
SHORT: dict[str, dict[str, Any]] = {
    "smoke": {"outer_steps": 3, "inner_steps": 10, "net_steps": 1, "lr_image": 0.02,
              "eval_steps": 120, "eval_seeds": 2, "batch_real": 32, "net_batch": 128, "factor": 1, "ipc": 1},
    "laptop": {"outer_steps": 6, "inner_steps": 20, "net_steps": 1, "lr_image": 0.3,
               "eval_steps": 1000, "eval_seeds": 3, "batch_real": 32},
    "cpu": {"outer_steps": 6, "inner_steps": 100, "net_steps": 8, "lr_image": 0.02,
            "eval_steps": 1000, "eval_seeds": 3},
}  # fmt: skip
# At cpu: the rates of the arms whose network is trained with the term, chosen as that of control was (grid rates) for
# the paper's weights and alpha, 10 groups in all. Other weights, groups and data take them unchosen.
TERM_RATES = {"upper": 0.15, "lower": 0.15}
# What other methods have instead. The image rates of DSA, DM and GLaD at laptop scale were chosen on held-out training
# images (the methods' page); DC takes DSA's, and those of smoke scale have not been chosen by any such comparison.
METHOD_NUMBERS: dict[str, dict[str, dict[str, Any]]] = {
    "smoke": {
        "dc": {"inner_steps": 5, "net_steps": 5, "lr_image": 0.1},
        "dsa": {"inner_steps": 5, "net_steps": 5, "lr_image": 0.1},
        "dm": {"outer_steps": 30, "inner_steps": 1, "net_steps": 0, "lr_image": 1.0},
        "glad": {"outer_steps": 10, "inner_steps": 2, "net_steps": 2, "lr_image": 1.0},
    },
    "laptop": {
        "dc": {"outer_steps": 20, "inner_steps": 10, "net_steps": 10, "lr_image": 3.0},
        "dsa": {"outer_steps": 20, "inner_steps": 10, "net_steps": 10, "lr_image": 3.0},
        "dm": {"outer_steps": 400, "inner_steps": 1, "net_steps": 0, "lr_image": 10.0, "batch_real": 64},
        "glad": {"outer_steps": 60, "inner_steps": 2, "net_steps": 4, "lr_image": 1.0},
    },
}
# DC's published image steps, and its passes over the set after each, by images a class (utils.py); others take those
# of ten.
DC_LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
METHOD_NUMBERS["cpu"] = METHOD_NUMBERS["laptop"] | {"glad": METHOD_NUMBERS["laptop"]["glad"] | {"net_steps": 40}}


def numbers(scale: str, chosen: dict[str, Any], n_classes: int = 10) -> dict[str, Any]:
    """The settings of a scale, as a dict to which those `chosen` by hand are to be added; they decide on it too.

    `n_classes`: of the data; every published set has ten, and the updates of a pass grow with it.
    """
    base = _for_data(chosen.get("dataset", "digits" if scale == "smoke" else "cifar10"), scale)
    return base | _for_scale(scale, base | chosen, n_classes)


def _for_data(name: str, scale: str) -> dict[str, Any]:
    """What depends on the data set: image size, depth, augmentation. Figures that can be read are not mirrored."""
    result: dict[str, Any] = {"dataset": name}
    name = base_name(name)
    if name == "digits":
        result |= {"depth": 2, "eval_depth": 2}
    if name.startswith("imagenet"):
        small = scale in ("laptop", "cpu")
        result |= {"size": 64, "depth": 4, "eval_depth": 4} if small else {"depth": 5, "eval_depth": 5}
    if name == "digits" or name.startswith("svhn"):
        result |= {"eval_augment": "color_crop_scale_rotate"}
    return result


def _for_scale(scale: str, known: dict[str, Any], n_classes: int) -> dict[str, Any]:
    """Loop lengths, widths and rates of a scale; `known` holds what was chosen by hand."""
    result = _short(scale, known) if scale in SHORT else _long(known, n_classes)
    if scale in ("cpu", "gpu", "paper") and known.get("scope", "all") == "all":
        result["centres_in_all"] = min(known.get("ipc", 10), 10)  # section 4.1, read literally
    for part in ("", "eval_"):
        name = known.get(f"{part}network", "convnet")
        if name != "convnet":
            result[f"{part}width"] = NARROW[name] if scale in SHORT else networks.PAPER_WIDTH[name]
    recipe = known.get("eval_recipe", "idc")
    if recipe != "idc":
        mirrored = "flip" in known.get("eval_augment", "flip")
        result |= training.numbers(recipe, known.get("eval_network", "convnet"), mirrored)
    if scale == "gpu":
        result |= {"outer_steps": {"dm": 2000, "glad": 200, "dc": 20, "dsa": 20}.get(known.get("method", "idc"), 40)}
    return result


def _siamese(known: dict[str, Any]) -> dict[str, Any]:
    """DSA's strategy for both steps, one image a tile, no CutMix: what DC, DSA, DM and GLaD share."""
    strategy = "color_crop_cutout_flip_scale_rotate"
    name = base_name(known["dataset"])
    if name == "digits" or name.startswith("svhn"):
        strategy = "color_crop_cutout_scale_rotate"
    strategy = "none" if known["method"] == "dc" else strategy
    return {"factor": 1, "match_augment": strategy, "net_augment": strategy, "cutmix": 0.0}


def _short(scale: str, known: dict[str, Any]) -> dict[str, Any]:
    """Numbers of the scales smoke, laptop and cpu."""
    result = {"width": 32, "eval_width": 32} | SHORT[scale]
    if scale == "cpu" and known.get("where", "network") == "network":
        result["lr_image"] = TERM_RATES.get(known.get("risk", "control"), result["lr_image"])
    if scale != "smoke":
        result["lr_image"] = result["lr_image"] * known.get("ipc", 10) / 10
    method = known.get("method", "idc")
    if method in SIAMESE:
        result |= _siamese(known) | METHOD_NUMBERS[scale][method]
    return result


def _published_updates(known: dict[str, Any], n_classes: int) -> int:
    """Updates of one evaluation as published: epochs of its recipe times the batches of a pass.

    IDC: 1,000 epochs of batches of 64 at 32 px; on ImageNet 3,000 to 1,000, fewer for larger sets (argument.py). DC and
    GLaD: 1,000 epochs of batches of 256, 300 without augmentation (DC).
    """
    method, recipe = known.get("method", "idc"), known.get("eval_recipe", "idc")
    tiles = known.get("factor", 2) ** 2 if method in ("idc", "mix", "foreign") else 1
    decoded: int = known.get("ipc", 10) * tiles
    epochs = 1000
    if recipe == "idc" and known["dataset"].startswith("imagenet"):
        epochs = next(n for most, n in ((1, 3000), (10, 2000), (50, 1500), (math.inf, 1000)) if decoded <= most)
    if recipe == "dc" and known.get("eval_augment") == "none":
        epochs = 300
    return epochs * math.ceil(n_classes * decoded / (64 if recipe == "idc" else 256))


def _long(known: dict[str, Any], n_classes: int) -> dict[str, Any]:
    """The published numbers: IDC's table, DC's rule for loop lengths (utils.py), DM's, and GLaD's as RDD runs it."""
    ipc, method, name = known.get("ipc", 10), known.get("method", "idc"), known["dataset"]
    result = {"lr_image": 5e-3 * ipc / 10, "eval_steps": _published_updates(known, n_classes), "eval_seeds": 5}
    if known.get("eval_recipe", "idc") == "idc" and name.startswith("imagenet"):
        result |= {"eval_cutmix": 1.0}  # its mix_p there; a half at 32 px
    if method == "idc" and name.startswith("svhn"):
        result |= {"net_steps": 2}  # IDC trains on 500 images there, on 2,000 for CIFAR-10
        if ipc == 1 and known.get("factor", 2) == 1:
            result |= {"eval_cutmix": 0.0, "eval_augment": "color_crop_cutout_scale_rotate"}
    if method == "idc" and name.startswith("imagenet"):
        ten_epochs = 10 * math.ceil(IMAGES_OF_TEN_CLASSES / 256)
        result |= {"metric": "l1", "lr_image": round(3e-4 * ipc, 6), "outer_steps": 500, "net_steps": 2,
                  "net_start_steps": ten_epochs, "cutmix": 1.0}  # fmt: skip
    if method == "dc":
        result |= {"start": "noise"}
    if method in ("dc", "dsa"):
        inner, epochs = DC_LOOPS.get(ipc, DC_LOOPS[10])
        result |= {"outer_steps": 1000, "inner_steps": inner, "net_steps": epochs * math.ceil(n_classes * ipc / 256),
                  "lr_image": 0.1, "batch_real": 256}  # fmt: skip
    if method == "dm":
        result |= {"outer_steps": 20000, "inner_steps": 1, "net_steps": 0, "lr_image": 1.0, "batch_real": 256}
    if method == "glad":
        result |= {"outer_steps": 2000, "inner_steps": 2, "net_steps": 40, "lr_image": 1.0, "batch_real": 256}
    return result | (_siamese(known) if method in SIAMESE else {})
