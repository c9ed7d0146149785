"""What the pages of the book show: the runs of a grid and which are missing, tables with intervals, pictures of sets.

A page asks a grid for its runs at a scale; what has no record becomes "not run yet", never a number.
"""

from __future__ import annotations

import base64
import html
import io
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..base import DataError, SettingError, check_choice
from ..data import sources
from ..data.dataset import data_root
from ..data.looks import base_name
from ..experiments import grid
from ..experiments.experiment import MODES, Experiment, gather, identified, run
from ..experiments.grid import Job, Ledger, Tally
from ..experiments.records import Record, Store, StoreError
from ..stats import Interval, mean_interval
from . import results
from .results import tidy

NOT_RUN = "not run yet"
LIVE_RUNS = 12  # runs of a page that is computed live: less than a minute on two quiet cores
# Our data set -> the paper's, and what a reader must know where its number stands. {size} is that of the runs.
STAND_INS = {
    "cifar10": ("cifar10", "CIFAR-10"),
    "svhn": ("svhn", "SVHN"),
    "svhn_mini": ("svhn", "svhn_mini, 1,083 real SVHN digits, in the place of SVHN"),
    "imagenet10": ("imagenet10", "ImageNet-10"),
    "imagenette": ("imagenet10", "Imagenette at {size} px, in the place of ImageNet-10"),
    "imagenette128": ("imagenet10", "Imagenette at {size} px, in the place of ImageNet-10"),
    "digits": ("", "digits of 8 x 8 pixels, a trial run that the paper has no row for"),
    **{f"imagenet_{letter}": (f"imagenet_{letter}", f"ImageNet-{letter.upper()}") for letter in "abcde"},
}
# What a page of another data set keeps of the runs of a grid: all else comes from the presets.
KEPT = ("method", "ipc", "risk", "where", "alpha", "average", "worst", "eval_network", "seed")
# Okabe & Ito's eight colours, told apart with every common colour vision; black stays for references.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000"]
# One colour for each arm in the whole book: that of the first of these words that its name holds. Floors are grey.
ARM_COLOURS = {
    "untrained": COLOURS[3],
    "10 groups a class": COLOURS[4],
    "upper": COLOURS[1],
    "lower": COLOURS[2],
    "control": COLOURS[0],
    "random": "#767676",
    "start": "#767676",
    "not distilled": "#767676",
    "all data": COLOURS[-1],
    "idc": COLOURS[0],  # without a risk term: control
    "ERM": COLOURS[0],  # the mean loss: control in two dimensions
}
TESTS = ("accuracy", "cluster_min", "class_min", "noise", "blur", "invert")
# What the slider does when it is moved: shows another part of the strip, and says which.
MOVED = (
    "const figure = this.closest('figure'), words = this.dataset.steps.split('|')[this.value]; "
    "figure.style.setProperty('--step', this.value); "
    "figure.querySelector('output').value = words; this.setAttribute('aria-valuetext', words)"
)


def paper_name(dataset: str) -> str:
    """The paper's name of the data set that ours stands for; '' if it stands for none."""
    name = dataset.split(":")[0]
    return STAND_INS.get(name, (name if name.startswith("imagenet_") else "", ""))[0]


def title(experiment: Experiment) -> str:
    """A data set in words, stand-ins named: 'Imagenette at 64 px, in the place of ImageNet-10'."""
    words = STAND_INS.get(experiment.dataset, ("", experiment.dataset))[1]
    return words.format(size=experiment.size or 128)


# --- runs of a page ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """Runs that differ in their seed alone: those planned, and of those made the records and their rows, by seed."""

    planned: tuple[Experiment, ...] = ()
    records: tuple[Record, ...] = ()
    rows: pd.DataFrame = field(default_factory=lambda: tidy([]))

    def seeds(self) -> list[int]:
        """The distillation seeds that have a record."""
        return results.table(self.rows).index.tolist()

    def level(self, test: str = "accuracy") -> Interval | None:
        """The mean with its interval; None where nothing has been run."""
        return results.level(self.rows, test)

    def minus(self, other: Arm, test: str = "accuracy") -> Interval | None:
        """The difference to another arm, paired over the seeds that both have; None where there is no such pair."""
        return results.difference(self.rows, other.rows, test)

    def null(self) -> Interval | None:
        """The worst published cluster that sampling alone gives at this arm's accuracy, with its group sizes."""
        return results.cluster_null(self.records)

    def sizes(self) -> list[int]:
        """Test images in each published group."""
        return list(self.records[0].metrics.get("group_sizes", [])) if self.records else []

    def text(self, test: str = "accuracy") -> str:
        """The cell of a table."""
        return cell(self.level(test), bool(self.planned))

    def count(self) -> str:
        """Seeds done of those planned, '3 of 5'."""
        return f"{len(self.records)} of {len(self.planned)}" if self.planned else ""


def cell(found: Interval | None, planned: bool = True, signed: bool = False) -> str:
    """An interval as the cell of a table; 'not run yet' where there is none, empty where none was planned."""
    if found is None:
        return NOT_RUN if planned else ""
    text = str(found)
    if not signed:
        return text
    _, _, interval = text.partition(" ")
    return f"{found.mean:+.1f} {interval}"


def shown(table: pd.DataFrame, columns: Iterable[str] | None = None) -> pd.DataFrame | None:
    """The rows and columns of a table of cells that hold a result; None where none does, which a page leaves out.

    `columns`: those whose cells decide about a row (default all). A gap that is left is a dash: a page says once what
    has not been run (`Page.missing`).
    """
    deciding = table if columns is None else table[list(columns)]
    gaps = (NOT_RUN, "")
    rows = table[~deciding.isin(gaps).all(axis=1)]
    kept = [name for name in rows if not rows[name].isin(gaps).all()]
    if rows.empty or not kept:
        return None
    return rows[kept].replace(NOT_RUN, "–")


def side(found: Interval | None) -> str:
    """On which side of zero a difference lies: 'above', 'below', 'not separated', 'no interval', or not run."""
    if found is None:
        return NOT_RUN
    if not np.isfinite(found.low):
        return "no interval"
    if found.low > 0:
        return "above"
    return "below" if found.high < 0 else "not separated"


@dataclass(frozen=True)
class Page:
    """The runs that a page shows and the records of those that have been made."""

    jobs: tuple[Job, ...]
    records: dict[str, Record]
    store: Store
    refused: dict[str, str] = field(default_factory=dict)  # key -> why it could not be run here

    @classmethod
    def of(cls, name: str, scale: str, dataset: str = "all", mode: str = "load", store: Store | None = None) -> Page:
        """The runs of a grid: "load" takes the records there are, "run" makes what is missing, most valuable first.

        "live" makes the most valuable ones at smoke scale, on digits unless `dataset` names others, in a folder that
        vanishes. `dataset`: "all", one of the grid's, or another, to which runs of the grid's first are carried over.
        """
        check_choice("mode", mode, MODES)
        scale = "smoke" if mode == "live" else scale
        jobs = _chosen(name, scale, dataset)
        if mode == "live":
            jobs = jobs[:LIVE_RUNS]
            records, store = gather([job.experiment for job in jobs], mode, store, progress=False)
            return cls(tuple(jobs), {r.key: r for r in records}, store)
        store = store or Store()
        refused = _make_missing([job.experiment for job in jobs], store) if mode == "run" else {}
        found = {job.key: store.find(job.key) for job in jobs}
        planned = {job.experiment.dataset for job in grid.jobs([name], scale)}
        if not any(found.values()) and dataset not in {"all", *STAND_INS, *planned}:
            sources.check_name(base_name(dataset), data_root())  # a typing error is not a page without numbers
        return cls(tuple(jobs), {k: r for k, r in found.items() if r is not None}, store, refused)

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Every number of the page's records (`results.tidy`)."""
        return tidy(self.records.values())

    def arm(self, **settings: Any) -> Arm:
        """The runs with these settings; one that is idle in a run (alpha under control) fits any value of it."""
        settings = Experiment.checked(settings)  # one that cannot be is not a run that is missing
        own = []
        for experiment in self.experiments:
            idle = experiment.idle()
            if all(name in idle or getattr(experiment, name) == value for name, value in settings.items()):
                own.append(experiment)
        kinds = {tuple(getattr(e, n) for n in Experiment.declared() if n not in (*e.idle(), "seed")) for e in own}
        if len(kinds) > 1:
            raise SettingError("arm", settings, "settings that leave only the seed open")
        own.sort(key=lambda e: e.seed)
        made = [e.key for e in own if e.key in self.records]
        rows = self.rows[self.rows["key"].isin(made)]
        return Arm(tuple(own), tuple(self.records[key] for key in made), rows)

    @property
    def experiments(self) -> list[Experiment]:
        """The runs, in order of value."""
        return [job.experiment for job in self.jobs]

    def values(self, name: str, **settings: Any) -> list[Any]:
        """The values of a setting over the runs with `settings`, smallest first, each once."""
        own = [e for e in self.experiments if all(getattr(e, n) == v for n, v in settings.items())]
        return sorted({getattr(e, name) for e in own})

    def datasets(self) -> dict[str, str]:
        """The data sets of the page, most valuable first, with their titles."""
        return {e.dataset: title(e) for e in self.experiments}

    def run_datasets(self) -> dict[str, str]:
        """Those of `datasets` that have a record."""
        made = {e.dataset for e in self.experiments if e.key in self.records}
        return {name: words for name, words in self.datasets().items() if name in made}

    def progress(self) -> pd.DataFrame:
        """What is done and what is left, a line a data set, with its price from earlier records."""
        ledger = Ledger(self.store)
        lines = {}
        for dataset, words in self.datasets().items():
            own = [job for job in self.jobs if job.experiment.dataset == dataset]
            done = sum(job.key in self.records for job in own)
            left = len(own) - done
            price = Tally.of(own, ledger).price() if left else "-"
            lines[words] = {"runs": len(own), "done": done, "left": left, "price of those left": price}
        return pd.DataFrame(lines).T.rename_axis("data")

    def provenance(self) -> pd.DataFrame:
        """Where the numbers come from, a line an arm of a data set: seeds, price, commits, the first digits of keys."""
        runs = results.runs(self.records.values())
        if runs.empty:
            return pd.DataFrame()
        each = runs.sort_values("seed").groupby(["dataset", "ipc", "arm", "eval_network"])
        table = each[["cpu s", "MB"]].median().round().astype(int)
        table.insert(0, "seeds", each.size())
        for name in ("commit", "key"):
            table[f"{name}s"] = each[name].agg(lambda values: " ".join(dict.fromkeys(values.str[:8])))
        table = table.rename(results.NAMES, level="dataset").rename(results.NAMES, level="eval_network")
        return table.rename_axis(["data", "images a class", "arm", "network"])

    def missing(self) -> str:
        """How many runs are there of those planned, and why some could not be made."""
        done, planned = len(self.records), len(self.jobs)
        refused = self._refusals()
        if not planned:
            return "No run of this page is planned at this scale."
        if done == planned:
            return f"All {planned} runs of this page are here.{refused}"
        return f"{done} of the {planned} runs of this page are here; the others are not run yet.{refused}"

    def left(self) -> str:
        """What has not been run, in one line: how many runs of each data set are left, and their price."""
        table = self.progress()
        gaps = [
            f"{row['left']} of {row['runs']} runs on {str(words).split(',')[0]} ({row['price of those left']})"
            for words, row in table[table["left"] > 0].iterrows()
        ]
        return f"Left: {'; '.join(gaps)}.{self._refusals()}" if gaps else self.missing()

    def _refusals(self) -> str:
        """Why runs could not be made, each reason once."""
        return "".join(f" Refused: {why}." for why in sorted(set(self.refused.values())))


def _chosen(name: str, scale: str, dataset: str) -> list[Job]:
    """The jobs of a grid at a scale and of a data set, carried over where the grid has none of the kind."""
    found = grid.jobs([name], scale)
    own = [job for job in found if dataset in ("all", job.experiment.dataset)]
    if own:
        return own
    other = "digits" if dataset == "all" else dataset
    small = {"ipc": 1, "seed": 0} if scale == "smoke" else {}
    model = found or grid.jobs([name], "paper")
    carried: dict[str, Job] = {}
    for job in model:
        if job.experiment.dataset != model[0].experiment.dataset:
            continue
        kept = {name: getattr(job.experiment, name) for name in KEPT} | small
        experiment = identified(Experiment.preset(scale, dataset=other, **kept))
        carried.setdefault(experiment.key, Job(experiment, job.value, job.arms, job.why))
    return list(carried.values())


def _make_missing(experiments: Sequence[Experiment], store: Store) -> dict[str, str]:
    """Make what is missing; a run that is refused (its data are not here) is noted and the others go on."""
    refused = {}
    for experiment in experiments:
        try:
            run(experiment, store)
        except (DataError, SettingError, StoreError) as error:
            refused[experiment.key] = str(error)
    return refused


# --- tables of arms x tests --------------------------------------------------------------------------------


def values(rows: pd.DataFrame, name: str, test: str) -> pd.DataFrame:
    """Seeds x trainings of one arm and test (`results.table`). Raises SettingError for an arm without values."""
    chosen = rows[rows["arm"] == name]
    if test not in set(chosen["test"]):
        raise SettingError("arm", name, f"one of {', '.join(sorted(set(rows['arm'])))} with test {test!r}")
    return results.table(chosen, test)


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
    cells = {}
    for test in present:
        base = values(rows, control, test)
        cells[test] = [results.paired(values(rows, name, test), base) for name in arms]
    index = pd.Index([f"{name} - {control}" for name in arms], name="difference")
    return pd.DataFrame(cells, index=index, columns=present)


def words_of_test(name: str) -> str:
    """A test in words: "worst cluster" for `cluster_min`."""
    test = name.removesuffix("_min").replace("_", " ")
    return f"worst {test}" if name.endswith("_min") else test


def worded(table: pd.DataFrame) -> pd.DataFrame:
    """A table of intervals as text, with its tests in words."""
    found = table.map(str).rename(index=words_of_test, columns=words_of_test)
    found.columns.names = [None] * found.columns.nlevels
    return found


def nulls(records: Sequence[Record], name: str) -> Interval | None:
    """The worst cluster that sampling alone gives at the mean accuracy of an arm (`results.cluster_null`)."""
    return results.cluster_null([record for record in records if results.arm(record.experiment) == name])


def provenance(records: Sequence[Record]) -> pd.DataFrame:
    """One row a record: key, arm in words, seed, price, device, versions, commit, and whether it is of today's code."""
    runs = results.runs(records)
    whole = runs[["seconds", "cpu s", "MB"]].astype(float).round().astype(int)
    return runs.assign(**whole)[["key", "arm", "seed", *results.ORIGIN]]


def within(name: str, value: float, expected: float, tolerance: float) -> str:
    """Check a live number whose last digits depend on the processor; the text returned is the same everywhere.

    Raises AssertionError, with both numbers, where it lies outside expected +- tolerance.
    """
    if not abs(value - expected) <= tolerance:
        raise AssertionError(f"{name} is {value:.4g}, outside {expected:g} +- {tolerance:g}")
    return f"{name}: within {expected:g} +- {tolerance:g}"


# --- figures -----------------------------------------------------------------------------------------------


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


def arm_colours(arms: Iterable[str]) -> dict[str, str]:
    """A colour for each arm: that of `ARM_COLOURS`, or one for each other method, the name's part before a comma."""
    free = itertools.cycle(COLOURS[3:6])
    methods: dict[str, str] = {}
    colours = {}
    for name in arms:
        named = [colour for word, colour in ARM_COLOURS.items() if word in name]
        method = name.split(",")[0]
        if not named and method not in methods:
            methods[method] = next(free)
        colours[name] = named[0] if named else methods[method]
    return colours


def dots(axes: Axes, rows: pd.DataFrame, arms: Sequence[str], test: str) -> None:
    """Each distillation seed as a dot (mean over its evaluations), each arm's mean with its 95 % interval."""
    for y, (name, colour) in enumerate(arm_colours(arms).items()):
        own = values(rows, name, test)
        found = mean_interval(own)
        span = [[found.mean - found.low], [found.high - found.mean]] if found.n > 1 else None
        axes.plot(own.mean(axis=1), np.full(len(own), y + 0.2), "o", ms=4, color=colour, alpha=0.6)
        axes.errorbar(found.mean, y, xerr=span, fmt="D", ms=6, color=colour, capsize=4)
    axes.set_yticks(range(len(arms)), arms)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.set_xlabel(f"{words_of_test(test)} (%)")


def paired_row(axes: Axes, y: float, values: Sequence[float], colour: str, paper: float | None = None) -> None:
    """A row of a figure of differences: a dot a seed and, below them, the mean with its interval.

    `y`: where the mean stands. `values`: points, one a distillation seed; fewer than two have no interval. `paper`: its
    gain, a cross.
    """
    axes.plot(values, np.full(len(values), y - 0.22), "o", ms=4, color=colour, alpha=0.5)
    if len(values) > 1:
        own = mean_interval(values)
        span = [[own.mean - own.low], [own.high - own.mean]]
        axes.errorbar(own.mean, y, xerr=span, fmt="o", color=colour, capsize=3)
    if paper is not None:
        axes.plot(paper, y, "x", color=COLOURS[-1], ms=8, mew=2)


def difference_map(one: Tensor, other: Tensor, factor: float) -> Tensor:
    """`other` less `one`, `factor` times, on mid grey: float64 of their shape, clipped to [0, 1].

    one, other: (N, C, H, W), floats in [0, 1] or uint8. Grey is equal; brighter is brighter in `other`. Raises
    SettingError where the shapes differ.
    """
    if one.shape != other.shape:
        raise SettingError("other", tuple(other.shape), f"images of shape {tuple(one.shape)}")
    a, b = (images.double() if images.is_floating_point() else images.double() / 255 for images in (one, other))
    return (0.5 + factor * (b - a)).clamp(0, 1)


def slider(frames: Sequence[Tensor], columns: int, rows: Sequence[str], steps: Sequence[str], alt: str) -> str:
    """HTML of a figure that shows one of several sheets of images, chosen by a slider.

    frames: one or more of (len(rows) * columns, C, H, W), in [0, 1] or uint8; `rows`: a name for each row of a sheet;
    `steps`: what is said beside the slider, one for each frame; `alt`: the sheets in words. All frames lie in one
    picture within the HTML. Raises SettingError where the numbers of frames, rows and steps do not fit.
    """
    if len(steps) != len(frames) or not frames:
        raise SettingError("steps", len(steps), f"one for each of {len(frames)} frames, at least one")
    if any(len(frame) != len(rows) * columns for frame in frames):
        counts = sorted({len(frame) for frame in frames})
        raise SettingError("frames", counts, f"{len(rows)} rows of {columns} images each")
    channels = (-1, 3, -1, -1)  # grey as colour
    sheets = [sheet(frame.expand(channels), columns) for frame in frames]
    sheets = [np.pad(each, ((1, 1), (0, 0), (0, 0)), constant_values=1) for each in sheets]
    strip = Image.fromarray((np.concatenate(sheets) * 255).round().clip(0, 255).astype(np.uint8))
    file = io.BytesIO()
    strip.save(file, "PNG", optimize=True)
    source = base64.b64encode(file.getvalue()).decode()
    height, width, _ = sheets[0].shape
    last = len(frames) - 1
    names = "".join(f"<span>{html.escape(name)}</span>" for name in rows)
    said = [html.escape(words, quote=True) for words in steps]
    return f"""<figure style="--step: 0; max-width: 34rem; margin: 1rem 0">
<div style="display: flex; gap: 0.7rem">
<div style="display: flex; flex-direction: column; justify-content: space-around">{names}</div>
<div role="img" aria-label="{html.escape(alt, quote=True)}" style="flex: 1; aspect-ratio: {width} / {height};
image-rendering: pixelated; background: 0 calc(var(--step) * {100 / max(last, 1):.4f}%) / 100% {100 * len(frames)}%
url(data:image/png;base64,{source})"></div>
</div>
<label style="display: block; margin-top: 0.5rem">Step
<input type="range" min="0" max="{last}" value="0" style="vertical-align: middle; width: 55%"
data-steps="{"|".join(said)}" aria-valuetext="{said[0]}" oninput="{MOVED}"> <output>{said[0]}</output></label>
</figure>"""
