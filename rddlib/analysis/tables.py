"""Tables of the paper beside ours: levels, gains paired by seed, worst groups with their nulls."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from ..base import resources
from ..experiments import grid
from ..experiments.experiment import Experiment
from ..stats import Interval
from . import results
from .report import ARM_COLOURS, COLOURS, NOT_RUN, Arm, Page, cell, side
from .results import paired, table

# The settings in which a run may differ from the paper's, in words and in the order in which a reader wants them.
DIFFERING = {
    "dataset": "data set",
    "size": "pixels a side",
    "network": "network in the loop",
    "width": "channels in the loop",
    "eval_network": "network of the test",
    "eval_width": "channels in the test",
    "factor": "factor of decoding",
    "outer_steps": "outer steps",
    "inner_steps": "image steps an outer step",
    "net_steps": "network updates an image step",
    "batch_real": "real images a class and image step",
    "lr_image": "image rate",
    "eval_steps": "updates of a tested network",
    "eval_seeds": "networks trained on a set",
}
METHODS = {method: results.METHODS[method] for method in ("idc", "glad")}  # the paper's base methods


@dataclass(frozen=True)
class Line:
    """A line of a table: its name, the settings of its arm, the line it is compared with, and the paper's name."""

    name: str
    settings: Mapping[str, Any]
    base: str = ""
    paper: str = ""


@dataclass(frozen=True)
class Column:
    """A column: its name, the settings that it adds, the test, and the paper's values by the paper's line names."""

    name: str
    settings: Mapping[str, Any]
    test: str = "accuracy"
    paper: Mapping[str, float] = field(default_factory=dict)


def _risk_lines(method: str, name: str) -> list[Line]:
    in_network = {"method": method, "where": "network"}
    return [
        Line(name, {"method": method, "risk": "control"}, paper=method),
        Line(f"{name}, upper tail", in_network | {"risk": "upper"}, name, f"{method}_r"),
        Line(f"{name}, lower tail", in_network | {"risk": "lower"}, name, f"{method}_r"),
        Line(f"{name}, upper tail, matched", {"method": method, "where": "matching", "risk": "upper"}, name),
    ]


FLOOR = Line("random images", {"method": "random"}, paper="random")
CEILING = Line("all data", {"method": "full"})
OTHERS = [Line(m.upper(), {"method": m}, paper=m) for m in ("dsa", "dm", "kip")]
IDC, GLAD = _risk_lines("idc", "IDC"), _risk_lines("glad", "GLaD")
LINES = [FLOOR, *OTHERS, *IDC, *GLAD, CEILING]


def reported(table: int, names: str = "method", **where: Any) -> dict[str, float]:
    """What a table of the paper reports where the columns of reported.csv have these values: name -> value."""
    rows = pd.read_csv(resources() / "paper" / "reported.csv")
    rows = rows[rows["table"] == table]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    return dict(zip(rows[names], rows["value"].astype(float), strict=True))


def arm(page: Page, line: Line, column: Column) -> Arm:
    """The runs in a cell."""
    return page.arm(**(dict(column.settings) | dict(line.settings)))


def run_lines(page: Page, lines: Sequence[Line], columns: Sequence[Column]) -> list[Line]:
    """The lines that have a record in any column: a table of these has no gaps for what has not been run."""
    return [line for line in lines if any(arm(page, line, column).records for column in columns)]


def levels(page: Page, lines: Sequence[Line], columns: Sequence[Column]) -> pd.DataFrame:
    """Ours beside the paper's: for each column the paper's value, our mean with interval, and seeds done of planned.

    Lines and columns without a run are left out, unless there is no run at all: then the paper's numbers stand alone.
    A cell of ours that is left without a run is empty; `Page.left` says what is missing.
    """
    there = [column for column in columns if run_lines(page, lines, [column])] or columns
    own_lines = run_lines(page, lines, there) or [x for x in lines if any(arm(page, x, c).planned for c in columns)]
    cells: dict[tuple[str, str], list[str]] = {}
    for column in there:
        own = [arm(page, line, column) for line in own_lines]
        if any(line.paper in column.paper for line in own_lines):
            cells[column.name, "paper"] = [_number(column.paper.get(line.paper)) for line in own_lines]
        cells[column.name, "ours"] = [_level(a.level(column.test)) for a in own]
        cells[column.name, "seeds"] = [a.count() if a.records else "" for a in own]
    return pd.DataFrame(cells, index=pd.Index([line.name for line in own_lines], name="arm"))


def _level(found: Interval | None) -> str:
    """A level beside its count of seeds: of one seed the number alone, as the count says that there is no interval."""
    if found is not None and found.n == 1:
        return f"{found.mean:.1f}"
    return cell(found, planned=False)


def _number(value: float | None, signed: bool = False) -> str:
    if value is None:
        return ""
    return f"{value:+.1f}" if signed else f"{value:.1f}"


@dataclass(frozen=True)
class Gap:
    """One comparison: a line minus its base in a column, ours (None: not run) and the paper's (None: not reported)."""

    line: str
    base: str
    column: str
    ours: Interval | None
    paper: float | None

    @property
    def name(self) -> str:
        """'IDC, upper tail - IDC (10 images a class)'."""
        return f"{self.line} - {self.base} ({self.column})"


def _comparisons(page: Page, lines: Sequence[Line], column: Column) -> Iterator[tuple[Line, Line]]:
    """Each line whose run is planned in a column, with its base."""
    named = {line.name: line for line in lines}
    for line in lines:
        if line.base in named and arm(page, line, column).planned:
            yield line, named[line.base]


def gaps(page: Page, lines: Sequence[Line], columns: Sequence[Column]) -> list[Gap]:
    """Every comparison of a line with its base that is planned here, paired by seed."""
    result = []
    for column in columns:
        for line, base in _comparisons(page, lines, column):
            both = line.paper in column.paper and base.paper in column.paper
            paper = round(column.paper[line.paper] - column.paper[base.paper], 1) if both else None
            ours = arm(page, line, column).minus(arm(page, base, column), column.test)
            result.append(Gap(line.name, base.name, column.name, ours, paper))
    return result


def drops(page: Page, lines: Sequence[Line], columns: Sequence[Column]) -> list[Gap]:
    """By how much more a line falls from the first column, the standard test, to each other than its base does.

    Below zero: the line loses less. Paired by seed; a drop is taken within each training before anything is averaged.
    """
    standard, *others = columns

    def fall(line: Line, column: Column) -> pd.DataFrame:
        rows = arm(page, line, column).rows
        return table(rows, standard.test) - table(rows, column.test)

    def reported_fall(line: Line, column: Column) -> float:
        return standard.paper.get(line.paper, np.nan) - column.paper.get(line.paper, np.nan)

    result = []
    for column in others:
        for line, base in _comparisons(page, lines, column):
            ours = paired(fall(line, column), fall(base, column))
            paper = round(reported_fall(line, column) - reported_fall(base, column), 1)
            result.append(Gap(line.name, base.name, column.name, ours, paper if np.isfinite(paper) else None))
    return result


def gains(comparisons: Sequence[Gap]) -> pd.DataFrame:
    """Comparisons as a table: the paper's gain, ours in points with its interval, seeds, and the side of zero.

    Those without a run are left out, unless none has one: then the paper's gains stand alone.
    """
    run = [gap for gap in comparisons if gap.ours is not None]
    rows = [
        {
            "comparison": f"{gap.line} - {gap.base}",
            "where": gap.column,
            "paper": _number(gap.paper, True),
            "ours (points)": cell(gap.ours, planned=False, signed=True),
            "seeds": gap.ours.n if gap.ours else 0,
            "side of zero": side(gap.ours) if gap.ours else "",
        }
        for gap in run or comparisons
    ]
    columns = ["comparison", "where", "paper", "ours (points)", "seeds", "side of zero"]
    return pd.DataFrame(rows, columns=columns).set_index(["comparison", "where"])


def worst_groups(page: Page, lines: Sequence[Line], columns: Sequence[Column]) -> pd.DataFrame:
    """The worst published cluster of each arm that has been run, and the minimum that chance alone gives.

    Chance is the sampling of test images. A training scatters as well, which lowers the minimum of each training. So
    what is held against chance is the smallest of the clusters' mean accuracies over all sets and trainings.
    """
    rows = {}
    for column, line in itertools.product(columns, lines):
        own = arm(page, line, column)
        null, least = own.null(), own.level("cluster_min")
        if null is None or least is None:
            continue
        of_clusters = own.rows[own.rows["test"] == "cluster_accuracy"].groupby("group")["value"].mean()
        smallest = float(of_clusters.min())
        outside = "below" if smallest < null.low else "above"
        rows[column.name, line.name] = {
            "accuracy": str(own.level()),
            "worst cluster": str(least),
            "smallest mean": f"{smallest:.1f}",
            "by chance alone": f"{null.mean:.1f} ({null.low:.1f} to {null.high:.1f})",
            "place": "inside" if null.low <= smallest <= null.high else outside,
        }
    names = ["accuracy", "worst cluster", "smallest mean", "by chance alone", "place"]
    index = pd.MultiIndex.from_tuples(rows, names=["where", "arm"])
    return pd.DataFrame(list(rows.values()), index=index, columns=names)


def differs(page: Page, name: str, dataset: str) -> pd.DataFrame:
    """Settings in which the runs on a data set differ from those of the grid at paper scale, 'ours (paper)', in words.

    Of runs that have been made; of those planned, where none has been.
    """
    if not page.jobs or page.experiments[0].scale == "paper":
        return pd.DataFrame()
    full = {}
    for job in grid.jobs([name], "paper"):
        full[job.arms[0], job.experiment.method, job.experiment.ipc] = job.experiment
    pairs: dict[str, list[tuple[Experiment, Experiment]]] = {}
    for job in [job for job in page.jobs if job.key in page.records] or page.jobs:
        ours = job.experiment
        places = [(own, ours.method, ours.ipc) for own in job.arms]
        theirs = next((full[place] for place in places if place in full), None)
        if theirs is None or ours.dataset != dataset or ours.method not in METHODS:
            continue
        kind = f"{METHODS[ours.method]}, {ours.ipc} image{'s' * (ours.ipc > 1)} a class"
        pairs.setdefault(kind, []).append((ours, theirs))
    lines = {kind: _differing(own) for kind, own in pairs.items()}
    return pd.DataFrame(lines).fillna("as the paper")


def _differing(pairs: Sequence[tuple[Experiment, Experiment]]) -> dict[str, str]:
    """Setting -> 'ours (paper)' over runs and their counterparts; arms may have a value each: '0.02, 0.15 (0.005)'."""
    words = {}
    for setting, name in DIFFERING.items():
        ours = dict.fromkeys(getattr(own, setting) for own, _ in pairs)
        theirs = getattr(pairs[0][1], setting)
        if set(ours) != {theirs}:
            words[name] = f"{', '.join(map(_value, ours))} ({_value(theirs)})"
    return words


def _value(value: Any) -> str:
    """A value of a setting in words; a size that is not set is the images' own."""
    return "their own" if value is None else results.NAMES.get(value, str(value))


def forest_figure(comparisons: Iterable[Gap], label: str) -> None:
    """Show a forest of the comparisons that have been run, as tall as they are many."""
    run = [gap for gap in comparisons if gap.ours is not None]
    _, axes = plt.subplots(figsize=(7.4, 1.5 + 0.33 * max(len(run), 1)))
    forest(axes, run, label)
    plt.show()


def forest(axes: Axes, comparisons: Sequence[Gap], label: str = "difference (points)") -> None:
    """Each comparison that has been run as a dot with its interval, in its tail's colour; the paper's as a cross."""
    run = [g for g in comparisons if g.ours is not None]
    axes.axvline(0, color=COLOURS[-1], lw=1)
    named = set()
    for y, gap in enumerate(run):
        assert gap.ours is not None  # chosen above
        tail = next((tail for tail in ("upper", "lower") if f"{tail} tail" in gap.line), "")
        span = [[gap.ours.mean - gap.ours.low], [gap.ours.high - gap.ours.mean]]
        interval = span if np.isfinite(gap.ours.low) else None
        name = None if tail in named else f"ours, {tail} tail" if tail else "ours"
        named.add(tail)
        colour = ARM_COLOURS.get(tail, "#333333")
        axes.errorbar(gap.ours.mean, y, xerr=interval, fmt="o", color=colour, capsize=3, ms=5, label=name)
    crosses = [(g.paper, y) for y, g in enumerate(run) if g.paper is not None]
    if crosses:
        axes.plot(*zip(*crosses, strict=True), "x", color=COLOURS[-1], ms=7, mew=2, label="paper")
    axes.set_yticks(range(len(run)), [g.name for g in run], fontsize=9)
    axes.set_ylim(max(len(run), 1) - 0.4, -0.6)
    axes.set_xlabel(label)
    if run:
        axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=3, fontsize=9)
    else:
        axes.text(0.5, 0.5, NOT_RUN, transform=axes.transAxes, ha="center", va="center")
