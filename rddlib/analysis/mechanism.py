"""Is the mechanism on: how well the loop's network learns, what the term does to it, and the rate that each arm got.

Rules: the book's page "A fair test". A comparison of risk terms says something only where the network between the
image steps has learnt; every arm has the image rate that one procedure chose for it on held-out training images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .results import by_seed

# The probes of a history and how far through the training of a network they are taken.
PROBES = {"probe_first": 0.0, "probe_middle": 0.5, "probe_last": 1.0}
LEARNT = 3.0  # times chance: below it, at the last step and on average, the mechanism is off (fixed before the runs)


def arm(settings: Mapping[Any, Any]) -> str:
    """The arm of the fair test that a run belongs to, e.g. 'upper, 10 groups' or 'control, network untrained'."""
    if settings["risk"] == "control":
        return "control" if settings["net_steps"] else "control, network untrained"
    name = str(settings["risk"])
    if settings["where"] == "matching":
        name += " in the matched gradient"
    in_all = settings["centres_in_all"]
    where = "" if in_all else " a class"
    count = in_all or settings["max_centres"]
    return f"{name}, {count} group{'s' * (count > 1)}{where}"


def with_arms(frame: pd.DataFrame) -> pd.DataFrame:
    """A table of `results` whose column `arm` has the arms of the fair test."""
    runs = frame.drop_duplicates("key").set_index("key")
    names = {key: arm(settings) for key, settings in runs.to_dict("index").items()}
    return frame.assign(arm=frame["key"].map(names))


def rates(frame: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of every arm and image rate: columns arm, lr_image, seed, value (mean over trainings, per cent)."""
    means = by_seed(with_arms(frame[frame["test"] == "accuracy"]), "arm", "lr_image")
    return means[["arm", "lr_image", "seed", "value"]]


def chosen_rates(trials: pd.DataFrame) -> pd.DataFrame:
    """The rate of each arm: the largest mean accuracy among the rates that all of an arm's seeds have tried.

    `trials` as from `rates`. Columns: lr_image, value (mean accuracy), trials (rates tried), inside (whether the best
    is neither the smallest nor the largest of them; at an end the grid has to be extended). Of rates with the same mean
    one that lies inside is taken: equal neighbours have the best between them.
    """
    rows = {}
    for name, own in trials.groupby("arm"):
        table = own.pivot(index="lr_image", columns="seed", values="value").dropna()
        if table.empty:
            continue
        means = table.mean(axis=1)
        best = means.index[np.isclose(means, means.max(), atol=1e-9)]
        inside = [rate for rate in best if means.index.min() < rate < means.index.max()]
        rows[name] = {
            "lr_image": float(inside[0] if inside else best[0]),
            "value": float(means.max()),
            "trials": len(means),
            "inside": bool(inside),
        }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["lr_image", "value", "trials", "inside"])


def rates_table(trials: pd.DataFrame) -> pd.DataFrame:
    """The accuracy of every arm at every image rate as text, beside the rate that is chosen and whether it lies inside.

    `trials` as from `rates`; the accuracies are means over seeds.
    """
    wide = trials.pivot_table(index="arm", columns="lr_image", values="value")
    chosen = chosen_rates(trials)[["lr_image", "inside"]].rename(columns={"lr_image": "chosen"})
    shown = wide.map("{:.2f}".format, na_action="ignore").fillna("")
    return shown.join(chosen).rename_axis(index=None, columns="image rate")


def detail(images: Tensor) -> float:
    """Share of the variance of images that lies above a quarter of a cycle a pixel, averaged over images and channels.

    images: float (N, C, H, W), none of one single colour. A blur takes these frequencies away first. White noise has
    about .8, the photographs of CIFAR-10 .08.
    """
    centred = images - images.mean(dim=(-2, -1), keepdim=True)
    power = torch.fft.fft2(centred).abs().square()
    vertical = torch.fft.fftfreq(images.shape[-2], device=images.device)
    horizontal = torch.fft.fftfreq(images.shape[-1], device=images.device)
    high = torch.hypot(vertical[:, None], horizontal) > 0.25
    return float((power[..., high].sum(-1) / power.sum((-2, -1))).mean())
