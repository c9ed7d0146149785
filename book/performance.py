"""Tables and figures of book/performance.md: from benchmarks/results/*.json and the records.

The page is written by hand, but for what stands between ``<!-- table: NAME -->`` and ``<!-- end -->``.
`python book/performance.py` fills these tables and draws the figures; with ``--check`` it only says whether they are up
to date, and exits 1 where they are not. What no file holds is "not measured"; files made with --quick hold nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scipy import stats

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from rddlib.analysis import power, report  # noqa: E402
from rddlib.experiments.experiment import Experiment  # noqa: E402
from rddlib.experiments.records import Record, Store  # noqa: E402

PAGE, FIGURES, RESULTS = Path("book/performance.md"), Path("book/_static/performance"), Path("benchmarks/results")
FORMAT, DRAWING = "rddlib benchmarks 1", 4  # DRAWING: add one where the figures are drawn in another way
BLUE, ORANGE = "#0072B2", "#D55E00"  # of Okabe & Ito's colours, as in every figure of the book
KINDS = ("reference", "library")
WORKS = {"training": "training", "evaluation": "evaluation", "inner_step": "IDC inner step", "augmentation": "DSA"}
GROWS = {"ipc": "images a class", "classes": "classes", "width": "channels", "resolution": "pixels a side"}
SETTING = {"ipc": "ipc", "classes": "n_classes", "width": "width", "resolution": "size"}
NONE = "not measured"
Found = dict[str, Any]


# --- reading ----------------------------------------------------------------------------------------------------


def read(root: Path) -> list[Found]:
    """The results there are, those with two threads first."""
    raw = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((root / RESULTS).glob("*.json"))]
    found = [r for r in raw if r.get("format") == FORMAT and not r["quick"]]
    return sorted(found, key=lambda r: (r["threads"] != 2, r["device"]))


def first(results: list[Found], kind: str) -> Found:
    """The results that stand in the column of a kind, "cpu" or "gpu"; {} if there are none."""
    return next((r for r in results if r["kind"] == kind), {})


def operations(root: Path) -> Found:
    """Counts of operations and waits on the pretended card; empty where there is no file."""
    file = root / RESULTS / "operations.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"operations": {}, "waits": {}}


def cases(r: Found) -> Iterator[tuple[str, str, str]]:
    """Part, case and name of each main measurement."""
    for part, name in WORKS.items():
        for case in r.get("results", {}).get(part, {}):
            yield part, case, f"{name}: {case}"


def pilot_runs(root: Path) -> dict[str, list[Record]]:
    """IDC's runs on CIFAR-10 at laptop scale, three arms with seeds 0 to 2: the pilot of the page on power."""
    store = Store(root / "data")
    arms = {}
    for arm in ("control", "lower", "upper"):
        wanted = [Experiment.preset("laptop", dataset="cifar10", ipc=10, risk=arm, seed=seed) for seed in range(3)]
        found = [store.find(experiment.key) for experiment in wanted]
        arms[arm] = [record for record in found if record is not None]
    return arms if all(len(records) == 3 for records in arms.values()) else {}


def seeds_for(width: float, sd: float) -> int:
    """The fewest seeds, at least 2, whose 95 % interval of a paired difference is no wider than +- `width`."""
    seeds = 2
    while stats.t.ppf(0.975, seeds - 1) * sd / math.sqrt(seeds) > width:
        seeds += 1
    return seeds


# --- tables -----------------------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{float(f'{value:.3g}'):,.10f}".rstrip("0").rstrip(".") if value else "0"


def interval(spread: Found, unit: str = "") -> str:
    """A median with its interval."""
    median, low, high = (number(spread[name]) for name in ("median", "low", "high"))
    return f"{median}{unit} ({low} to {high})"


def table(columns: list[str], rows: list[list[str]]) -> list[str]:
    """A table in Markdown, numbers to the right; without rows, one that says so."""
    if rows and all(row[-1] == NONE for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]  # a column in which nothing has been measured
    rows = rows or [[NONE] * len(columns)]
    marks = ["---", *["--:"] * (len(columns) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (columns, marks, *rows)]


def cost(root: Path) -> list[str]:
    """What one piece of work takes, on a processor and on a card."""
    cpu, gpu = (first(read(root), kind) for kind in ("cpu", "gpu"))
    rows = []
    for part, case, name in cases(cpu):
        entry = cpu["results"][part][case]
        times = [number(entry[kind]["milliseconds"]["median"]) for kind in KINDS]
        card = gpu.get("results", {}).get(part, {}).get(case)
        on_card = number(card["library"]["milliseconds"]["median"]) if card else NONE
        rows.append([name, *times, interval(entry["ratio"], " x"), on_card])
    return table(["work", "plain loop, ms", "library, ms", "times as fast", "library on one GPU, ms"], rows)


def limit(root: Path) -> list[str]:
    """How much of the arithmetic peak both ways reach."""
    r, rows = first(read(root), "cpu"), []
    for part, case, name in cases(r):
        entry = r["results"][part][case]
        if entry["library"]["flops"]:
            shares = [f"{100 * entry[kind]['gflop_per_second'] / peak(r):.0f} %" for kind in KINDS]
            rows.append([name, number(entry["library"]["flops"] / 1e9), *shares])
    return table(["work", "arithmetic, GFLOP", "plain loop", "library"], rows)


def peak(r: Found) -> float:
    """GFLOP/s in float32: the higher of the two arithmetic ceilings."""
    return max(float(r["ceilings"][f"{kind}_gflop_per_second"]) for kind in ("matmul", "convolution"))


def card(root: Path) -> list[str]:
    """Operations of one piece of work on a card."""
    rows = []
    for each in operations(root)["operations"].values():
        goal = "none set" if each["goal"] is None else f"{each['goal']:,}"
        rows.append([each["work"], f"{each['before']:,}", f"{each['now']:,}", goal])
    return table(["work", "operations before", "now", "goal"], rows)


def waits(root: Path) -> list[str]:
    """How often the host waits for a card."""
    rows = [[name, str(each["before"]), str(each["now"])] for name, each in operations(root)["waits"].items()]
    return table(["in one ...", "waits before", "now"], rows)


def decided(root: Path) -> list[str]:
    """Core minutes for an interval of +- 1 point, now and were the run as slow as the plain loop."""
    arms, cpu = pilot_runs(root), first(read(root), "cpu")
    columns = ["test", "spread of a paired difference", "seeds for ± 1 point", "core minutes", "by the plain loop"]
    if not arms or not cpu:
        return table(columns, [])
    records = [record for each in arms.values() for record in each]
    slower = {"distill": ("inner_step", "laptop"), "evaluate": ("evaluation", "5 networks, ConvNet-3, width 32")}
    ours = {part: statistics.median(r.cpu_seconds[part] for r in records) for part in slower}
    plain = sum(ours[k] * cpu["results"][part][case]["ratio"]["median"] for k, (part, case) in slower.items())
    rows = []
    for test in ("accuracy", "cluster_min", "noise", "blur", "invert"):
        found = power.pilot([[record.metrics[test] for record in each] for each in arms.values()])
        spreads = [found.paired, *found.limits()]
        seeds = [seeds_for(1.0, sd) for sd in spreads]
        cells = [f"{spreads[0]:.2f} ({spreads[1]:.2f} to {spreads[2]:.2f})", f"{seeds[0]} ({seeds[1]} to {seeds[2]})"]
        for seconds in (sum(ours.values()), plain):
            a, b, c = (f"{2 * n * seconds / 60:.0f}" for n in seeds)
            cells.append(f"{a} ({b} to {c})")
        rows.append([report.words_of_test(test), *cells])
    return table(columns, rows)


TABLES: dict[str, Callable[[Path], list[str]]] = {
    "cost": cost, "limit": limit, "card": card, "waits": waits, "decided": decided,
}  # fmt: skip
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str, root: Path) -> str:
    """The page with its tables as they should be."""
    return MARKED.sub(lambda m: f"{m[1]}\n" + "\n".join(TABLES[m[2]](root)) + f"\n\n{m[3]}", page)


# --- figures ----------------------------------------------------------------------------------------------------


def figures(root: Path) -> dict[str, Found]:
    """Name of each figure's file -> what it shows."""
    r, counted, made = first(read(root), "cpu"), operations(root)["operations"], dict[str, Found]()
    if r:
        points = [
            {"name": name} | {k: place(r["results"][part][case][k]) for k in KINDS}
            for part, case, name in cases(r) if r["results"][part][case]["library"]["flops"]
        ]  # fmt: skip
        made["roofline.svg"] = {"points": points, "peak": peak(r), "copy": r["ceilings"]["copy_gb_per_second"]}
    if grown := r.get("results", {}).get("growth"):
        made["growth.svg"] = {
            name: [[e["setting"][SETTING[name]], *(e[k]["milliseconds"] for k in KINDS)] for e in entries]
            for name, entries in grown.items()
        }
    if counted:
        made["operations.svg"] = {each["work"]: [each["before"], each["now"]] for each in counted.values()}
    return made


def place(one: Found) -> tuple[float, float]:
    """Where one kind stands in the roofline: FLOP a byte of operands, GFLOP/s."""
    return one["flops"] / one["operand_bytes"], one["gflop_per_second"]


def stamp(shown: Found) -> str:
    """What tells a figure that shows other numbers."""
    return "sha256 " + hashlib.sha256(json.dumps([DRAWING, shown], sort_keys=True).encode()).hexdigest()


def draw(name: str, shown: Found, path: Path) -> None:
    """Write one figure as SVG; the stamp of what it shows is in its description."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    style = {"svg.hashsalt": "rddlib", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
             "axes.grid": True, "grid.color": "#dddddd", "axes.axisbelow": True, "legend.frameon": False,
             "figure.constrained_layout.use": True, "figure.facecolor": "white"}  # fmt: skip
    form = {"roofline.svg": draw_roofline, "growth.svg": draw_growth, "operations.svg": draw_operations}[name]
    with plt.rc_context(style):
        made = form(plt, shown)
        path.parent.mkdir(parents=True, exist_ok=True)
        made.savefig(path, format="svg", metadata={"Date": None, "Description": stamp(shown)})
        plt.close(made)


def draw_roofline(plt: Any, shown: Found) -> Any:
    """Points of both kinds joined by an arrow, numbered; the ceilings as lines."""
    made, axes = plt.subplots(figsize=(7, 6.4))
    best, copy, points = shown["peak"], shown["copy"], shown["points"]
    reach = [p[k][0] for p in points for k in KINDS] + [best / copy]
    low, high = min(reach) / 2, max(reach) * 2
    axes.plot([low, best / copy, high], [low * copy, best, best], color="black", lw=1.2)
    axes.annotate(f"{number(best)} GFLOP/s in float32", (high, best), ha="right", va="bottom", fontsize=8)
    axes.annotate(f"{number(copy)} GB/s", (low, low * copy), ha="left", va="top", fontsize=8, xytext=(6, 0),
                  textcoords="offset points")  # fmt: skip
    for i, p in enumerate(points, 1):
        axes.annotate("", p["library"], p["reference"], arrowprops={"arrowstyle": "->", "color": "#888888"})
        axes.plot(*p["reference"], "o", mfc="white", mec=ORANGE, ms=7, label="plain loop" if i == 1 else None)
        axes.plot(*p["library"], "s", color=BLUE, ms=7, label="library" if i == 1 else None)
        aside = 7 if p["name"].startswith("training") else -13  # training and evaluation nearly coincide
        axes.annotate(str(i), p["library"], xytext=(aside, 5), textcoords="offset points")
        axes.plot([], [], " ", label=f"{i}  {p['name']}")
    axes.set(xscale="log", yscale="log", xlabel="arithmetic intensity (FLOP a byte of operands)", ylabel="GFLOP/s")
    axes.set_ylim(top=1.25 * best)
    plain_ticks(axes.xaxis, low, high)
    plain_ticks(axes.yaxis, *axes.get_ylim())
    made.legend(loc="outside lower left", fontsize=8, handlelength=1)
    return made


def plain_ticks(axis: Any, low: float, high: float) -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5 times the powers of ten within these ends, as plain numbers."""
    ticks = [m * 10.0**e for e in range(-6, 9) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
    axis.set_ticks(ticks, [number(tick) for tick in ticks])
    axis.set_ticks([], minor=True)


def draw_growth(plt: Any, shown: Found) -> Any:
    """One panel a setting: milliseconds of both kinds with their intervals."""
    made, panels = plt.subplots(1, len(shown), figsize=(7.5, 2.8), sharey=True, squeeze=False)
    for axes, (name, points) in zip(panels[0], shown.items(), strict=True):
        values = [point[0] for point in points]
        for i, (kind, marker, colour) in enumerate(zip(KINDS, "os", (ORANGE, BLUE), strict=True), 1):
            middle = [p[i]["median"] for p in points]
            span = [[p[i]["median"] - p[i]["low"] for p in points], [p[i]["high"] - p[i]["median"] for p in points]]
            label = {"reference": "plain loop", "library": "library"}[kind] if axes is panels[0][0] else None
            axes.errorbar(values, middle, yerr=span, marker=marker, color=colour, capsize=3, ms=5, label=label,
                          mfc="white" if kind == "reference" else colour)  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel=GROWS[name])
        axes.set_xticks(values, [str(v) for v in values])
        axes.minorticks_off()
    plain_ticks(panels[0][0].yaxis, *panels[0][0].get_ylim())
    panels[0][0].set_ylabel("one inner step (ms)")
    made.legend(loc="outside upper center", ncols=2)
    return made


def draw_operations(plt: Any, shown: Found) -> Any:
    """Two bars a piece of work: operations before and now."""
    made, axes = plt.subplots(figsize=(7, 2.6))
    for i, (label, colour, shift) in enumerate((("before", ORANGE, -0.2), ("now", BLUE, 0.2))):
        places = [row + shift for row in range(len(shown))]
        bars = axes.barh(places, [pair[i] for pair in shown.values()], 0.38, color=colour, label=label)
        axes.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
    axes.set(xscale="log", xlabel="operations that the card is asked for", xlim=(50, 20_000))
    axes.set_yticks(range(len(shown)), list(shown), fontsize=8)
    axes.set_xticks([100, 1000, 10_000], ["100", "1,000", "10,000"])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.minorticks_off()
    made.legend(loc="outside upper center", ncols=2)
    return made


# --- writing and checking ---------------------------------------------------------------------------------------


def stale(root: Path) -> list[str]:
    """What is not as the results ask for, in words."""
    text, wanted = (root / PAGE).read_text(encoding="utf-8"), figures(root)
    there = {p.name: p for p in (root / FIGURES).glob("*.svg")}
    found = [] if text == filled(text, root) else [f"{PAGE} differs"]
    found += [f"{FIGURES / name} shows other numbers" for name, shown in wanted.items()
              if name not in there or stamp(shown) not in there[name].read_text(encoding="utf-8")]  # fmt: skip
    return found + [f"{FIGURES / name} belongs to no results" for name in sorted(set(there) - set(wanted))]


def write(root: Path) -> None:
    """The tables of the page, its figures, and no figure beside these."""
    wanted = figures(root)
    for path in (root / FIGURES).glob("*.svg"):
        if path.name not in wanted:
            path.unlink()
    for name, shown in wanted.items():
        draw(name, shown, root / FIGURES / name)
    text = (root / PAGE).read_text(encoding="utf-8")
    (root / PAGE).write_text(filled(text, root), encoding="utf-8")


def main(words: list[str] | None = None, root: Path = ROOT) -> int:
    """Write or check; 0 if all is well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; say whether the page is up to date")
    check, faults = parser.parse_args(words).check, stale(root)
    if faults and not check:
        write(root)
        return 0
    for fault in faults:
        print(f"performance: {fault}: run python book/performance.py", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
