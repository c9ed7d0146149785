"""From records to what a reader sees: frames, tables with intervals, image sheets, one plotting style."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor

from ..base import SettingError
from ..experiments.records import Record
from ..stats import Interval, mean_interval, minimum_null, paired_difference

# Okabe & Ito's eight colours, told apart with every common colour vision; black stays for references.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000"]
DARK = [c for c in COLOURS[:-1] if c != "#F0E442"]  # a yellow dot is lost on white, and black is for what is not an arm
ARM_NAMES = {
    "random": "random images",
    "first_n": "first images",
    "herding": "herded images",
    "mix": "mix start, not distilled",
    "full": "all data",
}
TESTS = ("accuracy", "cluster_min", "class_min", "noise", "blur", "invert")


def use_style() -> None:
    """Set the book's one plotting style: small, light figures with colour-blind safe colours on white."""
    plt.rcParams.update({
        "figure.figsize": (6.4, 3.6), "figure.dpi": 100, "figure.facecolor": "white", "savefig.facecolor": "white",
        "axes.prop_cycle": cycler(color=COLOURS), "axes.spines.top": False, "axes.spines.right": False,
        "axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.6, "axes.axisbelow": True,
        "font.size": 10, "axes.titlesize": 11, "legend.frameon": False, "lines.linewidth": 1.8,
        "figure.constrained_layout.use": True, "svg.hashsalt": "rddlib",
    })  # fmt: skip


def arm(experiment: dict[str, Any]) -> str:
    """The name of an arm of a comparison, e.g. 'idc upper' or 'random images'."""
    if experiment["method"] == "foreign":
        return f"set {experiment['set_sha256'][:8]}"
    if experiment["method"] in ARM_NAMES:
        return ARM_NAMES[experiment["method"]]
    alone = experiment["risk"] == "control" and experiment["method"] in ("dc", "dsa", "dm", "kip")
    return experiment["method"] if alone else f"{experiment['method']} {experiment['risk']}"


def frame(records: Iterable[Record], tests: Sequence[str] = TESTS) -> pd.DataFrame:
    """One row a record, evaluation and test: arm, dataset, ipc, seed, evaluation, test, value (per cent), key."""
    rows = [
        {"arm": arm(r.experiment), "dataset": r.experiment["dataset"], "ipc": r.experiment["ipc"],
         "seed": r.experiment["seed"], "evaluation": i, "test": test, "value": value, "key": r.key}
        for r in records for test in tests if test in r.metrics for i, value in enumerate(r.metrics[test])
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["arm", "dataset", "ipc", "seed", "evaluation", "test", "value", "key"])


def table(rows: pd.DataFrame, name: str, test: str) -> NDArray[np.float64]:
    """Values (D, E) of one arm and test, seeds in order; every seed must have as many evaluations.

    Raises SettingError for an arm without values, and where rows of several data sets or numbers of images a class
    (or of runs that differ in another setting) would be mixed: choose among the rows first.
    """
    chosen = rows[(rows["arm"] == name) & (rows["test"] == test)]
    if chosen.empty:
        raise SettingError("arm", name, f"one of {', '.join(sorted(set(rows['arm'])))} with test {test!r}")
    if chosen.duplicated(["seed", "evaluation"]).any() or len(chosen[["dataset", "ipc"]].drop_duplicates()) > 1:
        kinds = sorted({f"{d}, IPC {i}" for d, i in zip(chosen["dataset"], chosen["ipc"], strict=True)})
        raise SettingError("rows", "; ".join(kinds), f"rows of one data set, IPC and run a seed for arm {name!r}")
    return chosen.pivot(index="seed", columns="evaluation", values="value").to_numpy()


def intervals(rows: pd.DataFrame, arms: Sequence[str], tests: Sequence[str] = TESTS) -> pd.DataFrame:
    """A table of arms x tests; each cell is an Interval over distillation seeds."""
    present = [t for t in tests if t in set(rows["test"])]
    cells = {t: [mean_interval(table(rows, a, t)) for a in arms] for t in present}
    return pd.DataFrame(cells, index=pd.Index(arms, name="arm"), columns=present)


def differences(rows: pd.DataFrame, control: str, arms: Sequence[str], tests: Sequence[str] = TESTS) -> pd.DataFrame:
    """A table of arms x tests; each cell is the paired difference to `control`, over the seeds both have."""
    present = [t for t in tests if t in set(rows["test"])]
    return pd.DataFrame(
        {t: [_difference(rows, a, control, t) for a in arms] for t in present},
        index=pd.Index([f"{a} - {control}" for a in arms], name="difference"), columns=present,
    )  # fmt: skip


def _difference(rows: pd.DataFrame, name: str, control: str, test: str) -> Interval:
    both = set(rows.loc[rows["arm"] == name, "seed"]) & set(rows.loc[rows["arm"] == control, "seed"])
    shared = rows[rows["seed"].isin(both)]
    return paired_difference(table(shared, name, test), table(shared, control, test))


def nulls(records: Sequence[Record], name: str) -> Interval:
    """The cluster-min that sampling alone gives at the mean accuracy of an arm, with its group sizes."""
    own = [r for r in records if arm(r.experiment) == name]
    return minimum_null(float(np.mean([r.metrics["accuracy"] for r in own])), own[0].metrics["group_sizes"])


def provenance(records: Sequence[Record]) -> pd.DataFrame:
    """One row a record: key, arm, seed, price, device, versions, commit, and whether today's code gives the same."""
    return pd.DataFrame([
        {"key": r.key, "arm": arm(r.experiment), "seed": r.experiment["seed"],
         "seconds": round(sum(r.seconds.values())), "cpu s": round(sum(r.cpu_seconds.values())),
         "MB": round(r.peak_memory_mb), "device": r.device, "torch": r.versions["torch"], "commit": r.commit,
         "code": "current" if r.current else "stale"}
        for r in records
    ])  # fmt: skip


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
    rows = -(-n // columns)
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
        values = table(rows, name, test)
        colour = DARK[y % len(DARK)]
        axes.plot(values.mean(1), np.full(len(values), y + 0.2), "o", ms=4, color=colour, alpha=0.6)
        found = mean_interval(values)
        span = [[found.mean - found.low], [found.high - found.mean]] if found.n > 1 else None
        axes.errorbar(found.mean, y, xerr=span, fmt="D", ms=6, color=colour, capsize=4)
    axes.set_yticks(range(len(arms)), [label(a) for a in arms])
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_xlabel(f"{test.replace('_', '-')} (%)")
