"""From records to what a reader sees: one plotting style, tables with intervals, image sheets, provenance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor

from ..base import SettingError
from ..experiments.records import Record
from ..stats import Interval, mean_interval, minimum_null
from .results import arm, paired, table

# Okabe & Ito's eight colours, told apart with every common colour vision; black stays for references.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000"]
DARK = [c for c in COLOURS[:-1] if c != "#F0E442"]  # a yellow dot is lost on white, and black is for what is not an arm
TESTS = ("accuracy", "cluster_min", "class_min", "noise", "blur", "invert")


def use_style() -> None:
    """Set the book's one plotting style: small, light figures with colour-blind safe colours on white."""
    plt.rcParams.update(
        {
            "figure.figsize": (6.4, 3.6),
            "figure.dpi": 100,
            "figure.facecolor": "white",
            "figure.constrained_layout.use": True,
            "savefig.facecolor": "white",
            "axes.prop_cycle": cycler(color=COLOURS),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.titlesize": 11,
            "grid.color": "#dddddd",
            "grid.linewidth": 0.6,
            "font.size": 10,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "svg.hashsalt": "rddlib",
        }
    )


# --- tables of arms x tests -------------------------------------------------------------------------------


def values(rows: pd.DataFrame, name: str, test: str) -> pd.DataFrame:
    """Seeds x trainings of one arm and test (`results.table`). Raises SettingError for an arm without values."""
    chosen = rows[rows["arm"] == name]
    if test not in set(chosen["test"]):
        raise SettingError("arm", name, f"one of {', '.join(sorted(set(rows['arm'])))} with test {test!r}")
    return table(chosen, test)


def intervals(rows: pd.DataFrame, arms: Sequence[str], tests: Sequence[str] = TESTS) -> pd.DataFrame:
    """A table of arms x tests, those of `tests` that there are; each cell is an Interval over distillation seeds.

    `rows`: as from `results.tidy`; its column `arm` names the arms.
    """
    present = [test for test in tests if test in set(rows["test"])]
    cells = {test: [mean_interval(values(rows, name, test)) for name in arms] for test in present}
    return pd.DataFrame(cells, index=pd.Index(arms, name="arm"), columns=present)


def differences(rows: pd.DataFrame, control: str, arms: Sequence[str], tests: Sequence[str] = TESTS) -> pd.DataFrame:
    """A table of arms x tests; each cell is the paired difference to `control`, over the seeds both have."""
    present = [test for test in tests if test in set(rows["test"])]
    cells = {test: [paired(values(rows, name, test), values(rows, control, test)) for name in arms] for test in present}
    index = pd.Index([f"{name} - {control}" for name in arms], name="difference")
    return pd.DataFrame(cells, index=index, columns=present)


def nulls(records: Sequence[Record], name: str) -> Interval:
    """The cluster-min that sampling alone gives at the mean accuracy of an arm, with its group sizes."""
    own = [r for r in records if arm(r.experiment) == name]
    return minimum_null(float(np.mean([r.metrics["accuracy"] for r in own])), own[0].metrics["group_sizes"])


def provenance(records: Sequence[Record]) -> pd.DataFrame:
    """One row a record: key, arm, seed, price, device, versions, commit, and whether today's code gives the same."""
    rows = [
        {
            "key": r.key,
            "arm": arm(r.experiment),
            "seed": r.experiment["seed"],
            "seconds": round(sum(r.seconds.values())),
            "cpu s": round(sum(r.cpu_seconds.values())),
            "MB": round(r.peak_memory_mb),
            "device": r.device,
            "torch": r.versions["torch"],
            "commit": r.commit,
            "code": "current" if r.current else "stale",
        }
        for r in records
    ]
    return pd.DataFrame(rows)


def within(name: str, value: float, expected: float, tolerance: float) -> str:
    """Check a live number whose last digits depend on the processor; the text returned is the same everywhere.

    Raises AssertionError, with both numbers, where it lies outside expected +- tolerance.
    """
    if not abs(value - expected) <= tolerance:
        raise AssertionError(f"{name} is {value:.4g}, outside {expected:g} +- {tolerance:g}")
    return f"{name}: within {expected:g} +- {tolerance:g}"


# --- figures ----------------------------------------------------------------------------------------------


def sheet(images: Tensor, columns: int, border: int = 1) -> NDArray[np.float64]:
    """One picture (H, W) or (H, W, 3) of many images (N, C, h, w) in [0, 1] or uint8, row by row, on white."""
    pictures = images.detach().cpu().double()
    if not images.is_floating_point():
        pictures = pictures / 255
    n, c, h, w = pictures.shape
    rows = math.ceil(n / columns)
    canvas = np.ones((c, rows * (h + border) - border, columns * (w + border) - border))
    for i, picture in enumerate(pictures.numpy()):
        top, left = i // columns * (h + border), i % columns * (w + border)
        canvas[:, top : top + h, left : left + w] = picture
    return canvas[0] if c == 1 else canvas.transpose(1, 2, 0)


def show_sheet(axes: Axes, images: Tensor, columns: int, title: str) -> None:
    """Draw a sheet of images without axes; sharp pixels."""
    axes.imshow(sheet(images, columns), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title)
    axes.set_axis_off()


def dots(axes: Axes, rows: pd.DataFrame, arms: Sequence[str], test: str, label: Callable[[str], str] = str) -> None:
    """Each distillation seed as a dot (mean over its evaluations), each arm's mean with its 95 % interval."""
    for y, name in enumerate(arms):
        own = values(rows, name, test)
        found = mean_interval(own)
        span = [[found.mean - found.low], [found.high - found.mean]] if found.n > 1 else None
        colour = DARK[y % len(DARK)]
        axes.plot(own.mean(axis=1), np.full(len(own), y + 0.2), "o", ms=4, color=colour, alpha=0.6)
        axes.errorbar(found.mean, y, xerr=span, fmt="D", ms=6, color=colour, capsize=4)
    axes.set_yticks(range(len(arms)), [label(name) for name in arms])
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_xlabel(f"{test.replace('_', '-')} (%)")
