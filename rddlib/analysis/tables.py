"""Tables of the paper beside ours: levels, gains paired by seed, worst groups with their nulls, and sentences on them.

Every word about a result is made here from records, so that it changes with them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from ..base import resources
from ..stats import Interval, paired_difference
from .pages import NOT_PLANNED, NOT_RUN, Arm, Page, cell, side
from .report import COLOURS

TEST_NAMES = {
    "accuracy": "accuracy",
    "cluster_min": "cluster-min",
    "noise": "noise",
    "blur": "blur",
    "invert": "invert",
}
# The settings in which a run may differ from the paper's, in the order in which a reader wants them.
PRICED = ("dataset", "size", "network", "width", "eval_network", "eval_width", "factor", "outer_steps", "inner_steps",
          "net_steps", "batch_real", "lr_image", "eval_steps", "eval_seeds")  # fmt: skip


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


# --- tables -----------------------------------------------------------------------------------------------


def arm(page: Page, line: Line, column: Column) -> Arm:
    """The runs in a cell."""
    return page.arm(**(dict(column.settings) | dict(line.settings)))


def shown(page: Page, lines: Sequence[Line], columns: Sequence[Column]) -> list[Line]:
    """The lines for which the page plans a run in any column, and those that only the paper has."""
    planned = [x for x in lines if any(arm(page, x, c).planned for c in columns)]
    carried, only = {x.paper for x in planned}, dict[str, str]()  # the paper's name -> the line that stands for it
    for x in (x for x in lines if x.paper not in carried and any(x.paper in c.paper for c in columns)):
        only.setdefault(x.paper, x.name)
    return [x for x in lines if x in planned or only.get(x.paper) == x.name]


def levels(page: Page, lines: Sequence[Line], columns: Sequence[Column]) -> pd.DataFrame:
    """Ours beside the paper's: for each column the paper's value, our mean with interval, and seeds done of planned.

    A cell without a run is empty; the seeds beside it say whether one is planned, `Page.missing` how many are left.
    """
    found: dict[tuple[str, str], list[str]] = {}
    lines = shown(page, lines, columns)
    for column in columns:
        own = [arm(page, line, column) for line in lines]
        if any(line.paper in column.paper for line in lines):
            found[column.name, "paper"] = [_number(column.paper.get(line.paper)) for line in lines]
        found[column.name, "ours"] = [_ours(a, x, column) for a, x in zip(own, lines, strict=True)]
        found[column.name, "seeds"] = [a.count() for a in own]
    return pd.DataFrame(found, index=pd.Index([line.name for line in lines], name="arm"))


def _ours(own: Arm, line: Line, column: Column) -> str:
    if not own.planned:
        return NOT_PLANNED if line.paper in column.paper else ""
    return own.text(column.test) if own.seeds(column.test) else ""


def _number(value: float | None, signed: bool = False) -> str:
    return "" if value is None else f"{value:+.1f}" if signed else f"{value:.1f}"


@dataclass(frozen=True)
class Gap:
    """One comparison: a line minus its base in a column, ours (None: not run) and the paper's (None: not reported)."""

    line: str
    base: str
    column: str
    ours: Interval | None
    paper: float | None
    cell: str = ""  # name of the paper's row: our two tails are compared with the same one

    @property
    def name(self) -> str:
        """'IDC, upper tail - IDC (10 images a class)'."""
        return f"{self.line} - {self.base} ({self.column})"


def gaps(page: Page, lines: Sequence[Line], columns: Sequence[Column]) -> list[Gap]:
    """Every comparison of a line with its base that is planned here, paired by seed."""
    named, found = {line.name: line for line in lines}, []
    for column in columns:
        for line in (x for x in lines if x.base in named and arm(page, x, column).planned):
            base = named[line.base]
            both = line.paper in column.paper and base.paper in column.paper
            paper = round(column.paper[line.paper] - column.paper[base.paper], 1) if both else None
            ours = arm(page, line, column).minus(arm(page, base, column), column.test)
            found.append(Gap(line.name, line.base, column.name, ours, paper, line.paper))
    return found


def drops(page: Page, lines: Sequence[Line], columns: Sequence[Column]) -> list[Gap]:
    """By how much more a line falls from the first column, the standard test, to each other than its base does.

    Below zero: the line loses less. Paired by seed; a drop is taken within each training before anything is averaged.
    """
    standard, *others = columns
    named, found = {line.name: line for line in lines}, []
    for column, line in itertools.product(others, lines):
        if line.base not in named or not arm(page, line, column).planned:
            continue
        own, base = arm(page, line, column), arm(page, named[line.base], column)
        both = sorted(set(own.seeds(column.test)) & set(base.seeds(column.test)))
        fall, floor = (a.values(standard.test, both) - a.values(column.test, both) for a in (own, base))
        theirs = [
            standard.paper.get(n, np.nan) - column.paper.get(n, np.nan) for n in (line.paper, named[line.base].paper)
        ]
        gap = round(theirs[0] - theirs[1], 1)
        ours = paired_difference(fall, floor) if both else None
        found.append(Gap(line.name, line.base, column.name, ours, gap if np.isfinite(gap) else None, line.paper))
    return found


def gains(found: Sequence[Gap]) -> pd.DataFrame:
    """Comparisons as a table: the paper's gain, ours in points with its interval, seeds, and the side of zero.

    Those without a run are left out, unless none has one: then the paper's gains stand alone.
    """
    run = [gap for gap in found if gap.ours is not None]
    rows = [
        {
            "comparison": f"{gap.line} - {gap.base}",
            "where": gap.column,
            "paper": _number(gap.paper, True),
            "ours (points)": cell(gap.ours, planned=False, signed=True),
            "seeds": gap.ours.n if gap.ours else 0,
            "zero": side(gap.ours) if gap.ours else "",
        }
        for gap in run or found
    ]
    columns = ["comparison", "where", "paper", "ours (points)", "seeds", "zero"]
    return pd.DataFrame(rows, columns=columns).set_index(["comparison", "where"])


def worst_groups(page: Page, lines: Sequence[Line], columns: Sequence[Column]) -> pd.DataFrame:
    """The published cluster-min of each arm that has been run, with group sizes and the minimum chance alone gives."""
    rows = []
    for column, line in itertools.product(columns, lines):
        own = arm(page, line, column)
        if (null := own.null()) is not None and (least := own.level("cluster_min")) is not None:
            place = "below" if least.mean < null.low else "above" if least.mean > null.high else "inside"
            chance, sizes = f"{null.mean:.1f} ({null.low:.1f} to {null.high:.1f})", own.sizes()
            rows.append((column.name, line.name, str(own.level()), str(least), chance, place, len(sizes),
                         f"{min(sizes)} to {max(sizes)}"))  # fmt: skip
    names = ["where", "arm", "accuracy", "cluster-min", "by chance alone", "place", "groups", "images in a group"]
    return pd.DataFrame(rows, columns=names).set_index(["where", "arm"])


def differs(page: Page, name: str, dataset: str, methods: Sequence[str] = ("idc", "glad")) -> pd.DataFrame:
    """Settings in which the runs on a data set differ from those of the grid at paper scale, 'ours (paper)'."""
    if not page.jobs or page.experiments[0].scale == "paper":
        return pd.DataFrame()
    full = {(j.arms[0], j.experiment.method, j.experiment.ipc): j.experiment for j in Page.of(name, "paper").jobs}
    lines: dict[str, dict[str, str]] = {}
    for job in (j for j in page.jobs if j.experiment.dataset == dataset):
        e = job.experiment
        theirs = next((full[k] for a in job.arms if (k := (a, e.method, e.ipc)) in full), None)
        if theirs is None or e.method not in methods:
            continue
        both = {n: (getattr(e, n), getattr(theirs, n)) for n in PRICED}
        words = {
            n: " ".join(f"{x if x is not None else '-'}" for x in (a, f"({b or '-'})")) for n, (a, b) in both.items()
        }
        lines.setdefault(f"{e.method}, ipc {e.ipc}", {n: words[n] for n, (a, b) in both.items() if a != b})
    return pd.DataFrame(lines).fillna("as the paper")


# --- words ------------------------------------------------------------------------------------------------


def reading(found: Sequence[Gap], what: str = "accuracy") -> str:
    """What the comparisons say, in sentences made of them; says so where none has been run."""
    if not found:
        return f"No comparison of {what} is planned at this scale."
    sides = {g.name: side(g.ours) for g in found}
    tried = [name for name, s in sides.items() if s not in (NOT_RUN, "no interval")]
    text = f"**{what.capitalize()}.** {len(found)} comparisons are planned here; {len(tried)} have been run with two "
    text += "seeds or more. "
    if tried:
        parts = [f"{_count(sides, s)} {words}" for s, words in _SIDES.items()]
        text += f"Of these, {parts[0]}, {parts[1]} and {parts[2]}. "
        text += (
            f"Were there no effect at all, about {0.05 * len(tried):.1f} of {len(tried)} would be separated by chance. "
        )
        text += "".join(_named(sides, s, words) for s, words in (("above", "Above zero"), ("below", "Below zero")))
    single = [name for name, s in sides.items() if s == "no interval"]
    text += f"{len(single)} have one seed only, hence no interval. " if single else ""
    claimed = {(g.cell or g.line, g.base, g.column): g.paper for g in found if g.paper is not None}
    if claimed:
        higher, values = sum(p > 0 for p in claimed.values()), claimed.values()
        text += f"The paper has {len(claimed)} such differences; {higher} of them are above zero, "
        text += f"and they go from {min(values):+.1f} to {max(values):+.1f}."
    return text.strip()


_SIDES = {"above": "lie above zero", "below": "below it", "not separated": "are not separated from it"}


def _count(sides: Mapping[str, str], wanted: str) -> int:
    return sum(s == wanted for s in sides.values())


def _named(sides: Mapping[str, str], wanted: str, words: str) -> str:
    names = [name for name, s in sides.items() if s == wanted]
    return f"{words}: {'; '.join(names)}. " if names else ""


def between(page: Page, lines: Sequence[Line], columns: Sequence[Column]) -> str:
    """Where an arm stands between random images and all data, in sentences; says so where an end is missing."""
    named = {line.name: line for line in lines}
    said = []
    for column in columns:
        wanted = {"IDC": arm(page, named["IDC"], column), "floor": arm(page, FLOOR, column)}
        wanted |= {"ceiling": arm(page, CEILING, column)}
        own, *ends = (a.level(column.test) for a in wanted.values())
        if own is None or ends[0] is None or ends[1] is None:
            absent = {f"{n} {NOT_RUN if a.planned else NOT_PLANNED}" for n, a in wanted.items() if not a.records}
            said.append(f"{column.name}: {', '.join(sorted(absent))}")
            continue
        share = 100 * (own.mean - ends[0].mean) / (ends[1].mean - ends[0].mean)
        said.append(f"{column.name}: IDC covers {share:.0f} % of the way from random images ({ends[0].mean:.1f}) "
                    f"to all data ({ends[1].mean:.1f})")  # fmt: skip
    return "; ".join(said) + "."


# --- figures ----------------------------------------------------------------------------------------------


def forest_figure(found: Iterable[Gap], label: str) -> None:
    """Show a forest of the comparisons that have been run, as tall as they are many."""
    run = [gap for gap in found if gap.ours is not None]
    _, axes = plt.subplots(figsize=(7.4, 1.5 + 0.33 * max(len(run), 1)))
    forest(axes, run, label)
    plt.show()


def forest(axes: Axes, found: Sequence[Gap], label: str = "difference (points)") -> None:
    """Each comparison that has been run as a dot with its interval, the paper's as a cross; zero marked."""
    run = [g for g in found if g.ours is not None]
    axes.axvline(0, color=COLOURS[-1], lw=1)
    for y, gap in enumerate(run):
        assert gap.ours is not None  # chosen above
        span = [[gap.ours.mean - gap.ours.low], [gap.ours.high - gap.ours.mean]]
        interval = span if np.isfinite(gap.ours.low) else None
        name = "ours, 95 % interval" if y == 0 else None
        axes.errorbar(gap.ours.mean, y, xerr=interval, fmt="o", color=COLOURS[0], capsize=3, ms=5, label=name)
    crosses = [(g.paper, y) for y, g in enumerate(run) if g.paper is not None]
    if crosses:
        axes.plot(*zip(*crosses, strict=True), "x", color=COLOURS[1], ms=7, mew=2, label="paper")
    axes.set_yticks(range(len(run)), [g.name for g in run], fontsize=8)
    axes.set_ylim(max(len(run), 1) - 0.4, -0.6)
    axes.set_xlabel(label)
    if run:
        axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=9)
    else:
        axes.text(0.5, 0.5, NOT_RUN, transform=axes.transAxes, ha="center", va="center")
