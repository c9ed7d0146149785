"""Make book/performance.md and its figures from benchmarks/results/*.json: what the fast forms gain, and what is left.

`python book/performance.py` writes them; with ``--check`` it only says whether they are up to date, and exits 1 where
they are not. Every number of the page comes from those files, also those within its sentences; what no file holds is
"not measured". Files made with --quick are no measurements and are passed over.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE, FIGURES, RESULTS = Path("book/performance.md"), Path("book/_static/performance"), Path("benchmarks/results")
FORMAT, DRAWING = "rddlib benchmarks 1", 2  # DRAWING: add one where the figures are drawn in another way
BLUE, ORANGE = "#0072B2", "#D55E00"  # of Okabe & Ito's colours, as in every figure of the book
KINDS = ("reference", "library")
SHARES = ("share_of_arithmetic_peak", "share_of_copy")
WORKS = {"training": "training", "evaluation": "evaluation", "inner_step": "IDC inner step", "augmentation": "DSA"}
GROWS = {"ipc": "images a class", "classes": "classes", "width": "channels", "resolution": "pixels a side"}
SETTING = {"ipc": "ipc", "classes": "n_classes", "width": "width", "resolution": "size"}
PROTOCOL = 2000 * 100  # outer times inner steps of the full protocol
NONE = "not measured"
Found = dict[str, Any]

HEAD = """<!-- Made by book/performance.py from benchmarks/results/. Do not edit. -->
# Performance

How much faster the library is than the plain published loop, and how much of the machine it uses. The reference is
written anew from the protocols of IDC {cite:p}`kim2022dataset` and DSA {cite:p}`zhao2021siamese`: one Python step a
class, batches stacked from lists, parameters spelt out for every sample, autograd's double backward pass, a number
fetched from every loss. Both do the same work on the same inputs and random draws, in processes of their own that
compute in turn; tests hold their results together. A ratio is the reference's time over the library's within one round,
so a disturbance that lasts longer than a round hits both.

Intervals are for the median over rounds, from order statistics, with at least 95 % coverage where there are six rounds
or more; with fewer they are the range. A target counts as met where the whole interval meets it.
"""
ROOFLINE = """
A point's height is the arithmetic done a second (convolutions and matrix products, as torch counts them), its place
along the axis that arithmetic over the bytes of all operands of all operations. Lines are the ceilings that the
benchmark measured on the same machine. Operands that a cache still holds never travel, so a point may lie above the
slope. DSA does no such arithmetic and has no point.
"""
AGAIN = """
## Measure it yourself

```bash
make bench                     # this machine's processor, at most ten minutes; let nothing else run
python book/performance.py     # this page from what was measured
```

`make benchtest` checks that both ways give the same numbers. On a machine with a GPU,
`python benchmarks/gpu_session.py --minutes 30 --out DIR` checks, measures, and spends what is left of its time on the
missing runs of the grids; `DIR` then holds a results file for `benchmarks/results/` and a folder `store` for
`python -m rddlib merge`.
"""


# --- reading ----------------------------------------------------------------------------------------------------


def read(root: Path) -> list[Found]:
    """The results there are, GPUs first, then the processor with two threads, then the others by name."""
    raw = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((root / RESULTS).glob("*.json"))]
    found = [r for r in raw if r.get("format") == FORMAT and not r["quick"]]
    return sorted(found, key=lambda r: (r["kind"] != "gpu", r["threads"] != 2, r["device"]))


def first(results: list[Found], kind: str) -> Found | None:
    """The results that stand in the column of a kind, "cpu" or "gpu"."""
    return next((r for r in results if r["kind"] == kind), None)


def at(found: Any, *path: str) -> Any:
    """What lies at a path of keys, None where it ends early."""
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found


# --- the targets ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Value:
    """A measured number with its interval."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, spread: Found | None, scale: float = 1.0) -> Value | None:
        """Of a spread as the benchmarks write it; None of nothing."""
        return cls(*(scale * spread[name] for name in ("median", "low", "high"))) if spread else None

    @classmethod
    def alone(cls, number: float) -> Value:
        """Of a number that has no interval."""
        return cls(number, number, number)

    def words(self, unit: str) -> str:
        """The number, its interval where it has one, the unit."""
        span = f" ({number(self.low)} to {number(self.high)})" if self.low != self.high else ""
        return f"{number(self.median)}{span} {unit}".strip()


@dataclass(frozen=True)
class Target:
    """A row of the table of targets: where the number stands in a results file, and the bound of each kind."""

    work: str
    find: Callable[[Found], Value | None]
    cpu: float | None = None
    gpu: float | None = None
    unit: str = "x"
    most: bool = False  # whether the bound is an upper one

    def bound(self, kind: str) -> float | None:
        """The bound on a kind of device, None where there is none."""
        return self.cpu if kind == "cpu" else self.gpu

    def cells(self, results: list[Found], kind: str) -> list[str]:
        """Target, measured, met, of one kind."""
        bound, found = self.bound(kind), first(results, kind)
        if bound is None:
            return ["-", "-", "-"]
        value = self.find(found) if found else None
        aim = f"{'at most' if self.most else 'at least'} {number(bound)} {self.unit}".strip()
        return [aim, value.words(self.unit) if value else NONE, self.verdict(value, bound)]

    def verdict(self, value: Value | None, bound: float) -> str:
        """Whether the whole interval meets the bound, only the median, or neither."""
        if value is None:
            return NONE
        sign = -1 if self.most else 1
        if min(sign * value.low, sign * value.high) >= sign * bound:
            return "yes"
        return "the median only" if sign * value.median >= sign * bound else "no"


def ratio(part: str, case: str) -> Callable[[Found], Value | None]:
    """A reader of the ratio of one case."""
    return lambda r: Value.of(at(r, "results", part, case, "ratio"))


def share(r: Found) -> Value | None:
    """Share of the arithmetic peak in per cent; on a GPU of what bare convolutions reach in bfloat16."""
    one = at(r, "results", "training", "ConvNet-3, width 128, batch 64", "library")
    if one is None:
        return None
    if r["kind"] == "cpu":
        return Value.alone(100 * one["share_of_arithmetic_peak"])
    stack = at(r, "ceilings", "stack_bf16_images_per_second")
    return Value.alone(100 * one["images_per_second"] / stack) if stack else None


def memory(r: Found) -> Value | None:
    """Peak memory of laptop runs in GB."""
    largest = at(r, "results", "laptop_memory", "largest_mb")
    return Value.alone(largest / 1e3) if largest else None


def one_run(r: Found) -> Value | None:
    """Minutes of the runs of IDC on CIFAR-10 at ten images a class that the session made, distillation and all."""
    wanted = {"dataset": "cifar10", "method": "idc", "ipc": 10, "scale": "gpu"}
    runs = [run for run in r.get("runs", []) if all(run.get(k) == v for k, v in wanted.items())]
    minutes = [run["seconds"] / 60 for run in runs]
    return Value(statistics.median(minutes), min(minutes), max(minutes)) if minutes else None


def protocol(r: Found) -> Value | None:
    """Minutes of the full protocol, at the median time of its inner step."""
    return Value.of(at(r, "results", "inner_step", "published", "library", "milliseconds"), PROTOCOL / 6e4)


def imports(r: Found) -> Value | None:
    """Seconds of the command line's imports beyond torch."""
    return Value.of(at(r, "results", "imports", "command line", "beyond_torch"))


# fmt: off
TARGETS = (
    Target("network training on a distilled set (ConvNet-3, width 128, 32 px)",
           ratio("training", "ConvNet-3, width 128, batch 64"), 2, 6),
    Target("the same with bfloat16 products, an option for processors and cards that have them",
           ratio("training", "ConvNet-3, width 128, batch 64, bfloat16 products"), 2, 6),
    Target("training: share of the arithmetic peak (processor), of bare bf16 convolutions (GPU)",
           share, 35, 50, "%"),
    Target("one IDC inner step as published (10 classes, 64 real and 40 decoded each, 32 network batches of 64)",
           ratio("inner_step", "published"), 2, 5),
    Target("the same with bfloat16 products", ratio("inner_step", "published, bfloat16 products"), 2, 5),
    Target("evaluation of a distilled set, 5 networks of width 128",
           ratio("evaluation", "5 networks, ConvNet-3, width 128"), 2, 8),
    Target("the same with bfloat16 products",
           ratio("evaluation", "5 networks, ConvNet-3, width 128, bfloat16 products"), 2, 8),
    Target("DSA of a batch, one draw shared, with gradient (matching)",
           ratio("augmentation", "matching: shared draw, with gradient, 64 images"), 3, 5),
    Target("DSA of a batch, one draw an image (network training)",
           ratio("augmentation", "network training: one draw an image, 256 images"), 3, 5),
    Target("DSA of a batch, one draw an image (evaluation)",
           ratio("augmentation", "evaluation: one draw an image, 64 images"), 3, 5),
    Target("peak memory of a laptop run on CIFAR-10, the largest of the committed records",
           memory, 2, None, "GB", True),
    Target("import of everything that the command line needs, beyond torch", imports, 1.5, None, "s", True),
    Target("CIFAR-10, ten images a class, IDC at gpu scale: distillation and evaluation",
           one_run, None, 10, "min", True),
    Target("full protocol (2,000 x 100 inner steps), predicted from the measured inner step",
           protocol, None, 60, "min", True),
)
# fmt: on


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0:
        return "0"
    text = f"{float(f'{value:.3g}'):,.10f}".rstrip("0").rstrip(".")
    return text


def targets(results: list[Found]) -> list[str]:
    """The section with all targets."""
    columns = ["work", "target, 2 cores", "measured", "met", "target, one H100/H200-class GPU", "measured", "met"]
    rows = [[target.work, *target.cells(results, "cpu"), *target.cells(results, "gpu")] for target in TARGETS]
    return ["## Targets", "", tally(results), "", *table(columns, rows)]


def table(columns: list[str], rows: list[list[str]]) -> list[str]:
    """A table in Markdown, and an empty line."""
    return [*(f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)), ""]


def tally(results: list[Found]) -> str:
    """How many targets are met, in words."""
    said = []
    for kind, name in (("cpu", "a processor's two cores"), ("gpu", "one GPU")):
        verdicts = [t.cells(results, kind)[2] for t in TARGETS if t.bound(kind) is not None]
        made = [v for v in verdicts if v != NONE]
        words = f"On {name}, {made.count('yes')} of {len(made)} measured targets are met"
        if near := made.count("the median only"):
            words += f", {near} more by the median only"
        if missing := len(verdicts) - len(made):
            words += f"; {missing} are not measured"
        said.append(f"{words}." if made else f"On {name}, nothing has been measured yet.")
    return " ".join(said)


# --- one device -------------------------------------------------------------------------------------------------


def device(r: Found) -> list[str]:
    """All that was measured on one device."""
    lines = [f"## {r['device']}", "", about(r), ""]
    rows = list(cases(r))
    if rows:
        columns = ["work", "reference, ms", "library, ms", "ratio", "rounds", "arithmetic, GFLOP",
                   "share of the arithmetic peak", "operands over the copy", "memory, MB"]  # fmt: skip
        lines += table(columns, [row(name, entry) for name, entry in rows])
        lines += ["Where two numbers stand in one cell, the first is the reference's.", ""]
    lines += predicted(r)
    if any(has_arithmetic(entry) for _, entry in rows):
        caption = "Arithmetic a second over arithmetic intensity"
        lines += [*figure("roofline", r, roofline_alt(r), caption), ROOFLINE.strip(), ""]
    if at(r, "results", "growth"):
        lines += ["### How the cost grows", "", growth_words(r), ""]
        lines += figure("growth", r, growth_alt(r), "Time of one inner step as one setting grows")
    return lines + others(r)


def about(r: Found) -> str:
    """The device, the clock and the ceilings in words."""
    best = r["ceilings"]
    names = ("matmul_gflop_per_second", "convolution_gflop_per_second", "copy_gb_per_second")
    product, convolution, copy = (number(best[name]) for name in names)
    words = (f"{r['words']}; torch {r['versions']['torch']}, Python {r['versions']['python']}; clock: {r['clock']}. "
             f"Ceilings in float32: {product} GFLOP/s by a matrix product, {convolution} GFLOP/s by a convolution, the "
             f"higher of which counts as the arithmetic peak; {copy} GB/s by a copy.")  # fmt: skip
    if "matmul_bf16_gflop_per_second" in best:
        words += (f" In bfloat16: {number(best['matmul_bf16_gflop_per_second'])} GFLOP/s by a matrix product, "
                  f"{number(best['stack_bf16_images_per_second'])} images/s by bare convolutions.")  # fmt: skip
    return words if r["complete"] else f"{words} The measurement was cut short: what is missing was not reached."


def cases(r: Found) -> Iterator[tuple[str, Found]]:
    """Name and entry of each main measurement."""
    for part, name in WORKS.items():
        for case, entry in (at(r, "results", part) or {}).items():
            yield f"{name}: {case}", entry


def row(name: str, entry: Found) -> list[str]:
    """The cells of one measurement."""
    two = [entry[kind] for kind in KINDS]
    times = [number(one["milliseconds"]["median"]) for one in two]
    value = Value.of(entry["ratio"])
    assert value is not None
    flops = [number(one["flops"] / 1e9) for one in two]
    peak, copy = (", ".join(f"{number(100 * one[of])} %" for one in two) for of in SHARES)
    peak = peak if has_arithmetic(entry) else "-"
    held = ", ".join(number(one["peak_memory_mb"]) for one in two)
    work = ", ".join(dict.fromkeys(flops)) if has_arithmetic(entry) else "-"
    return [name, *times, value.words("x"), str(entry["ratio"]["rounds"]), work, peak, copy, held]


def has_arithmetic(entry: Found) -> bool:
    """Whether torch counted any: DSA has none."""
    return all(entry[kind]["flops"] for kind in KINDS)


def predicted(r: Found) -> list[str]:
    """The full protocol's price at the measured time of its inner step, by both kinds."""
    entry = at(r, "results", "inner_step", "published")
    if not entry:
        return []
    hours = [number(entry[kind]["milliseconds"]["median"] * PROTOCOL / 3.6e6) for kind in KINDS]
    return [f"At the median time of the published inner step the full protocol, {PROTOCOL:,} such steps, takes "
            f"{hours[1]} hours here, against {hours[0]} by the plain loop; evaluation comes on top.", ""]  # fmt: skip


def figure(name: str, r: Found, alt: str, caption: str) -> list[str]:
    """A figure's directive."""
    return [f"```{{figure}} _static/performance/{name}-{r['device']}.svg", f":alt: {alt}", ":width: 100%", "",
            f"{caption}, on {r['device']}.", "```", ""]  # fmt: skip


def roofline_alt(r: Found) -> str:
    """What the roofline shows, in numbers."""
    reached = [f"{name} {number(e['reference']['gflop_per_second'])} and {number(e['library']['gflop_per_second'])}"
               for name, e in cases(r) if has_arithmetic(e)]  # fmt: skip
    return "Roofline. GFLOP/s of reference and library: " + "; ".join(reached) + "."


def curves(r: Found) -> dict[str, list[tuple[float, Found]]]:
    """For each setting that grows: its values with their entries."""
    grown = at(r, "results", "growth") or {}
    return {name: [(e["setting"][SETTING[name]], e) for e in entries] for name, entries in grown.items()}


def growth_words(r: Found) -> str:
    """One sentence a setting: from where to where, how many times the cost."""
    said = ["One inner step, one setting changed at a time."]
    for name, points in curves(r).items():
        (low, one), (high, two) = points[0], points[-1]
        times = [number(two[k]["milliseconds"]["median"] / one[k]["milliseconds"]["median"]) for k in KINDS]
        said.append(f"From {low} to {high} {GROWS[name]} it costs {times[1]} times as much (plain loop: {times[0]}).")
    return " ".join(said)


def growth_alt(r: Found) -> str:
    """What the figure of growth shows, in numbers."""
    said = []
    for name, points in curves(r).items():
        values = ", ".join(f"{value}: {number(e['library']['milliseconds']['median'])}" for value, e in points)
        said.append(f"{GROWS[name]} {values}")
    return "Milliseconds of the library's inner step against " + "; ".join(said) + "."


def others(r: Found) -> list[str]:
    """The smaller measurements, as one table."""
    rows = []
    for case, entry in (at(r, "results", "batched") or {}).items():
        what = f"IDC's image steps ({case}): one class after another over all at once (`classes_at_once`)"
        rows.append((what, Value.of(entry["ratio"]), "x"))
    for idea, entry in (at(r, "results", "ideas") or {}).items():
        told = (
            f", its first call, {number(entry['first_call_seconds'])} s, aside" if "first_call_seconds" in entry else ""
        )
        rows.append((f"weighed and left out: {idea}, its time over the library's{told}", Value.of(entry["ratio"]), "x"))
    for rival, spread in (at(r, "results", "risk", "over_group_cvar") or {}).items():
        what = f"grouped CVaR of {r['results']['risk']['losses']:,} losses, forward and backward: {rival} over it"
        rows.append((what, Value.of(spread), "x"))
    for case, entry in (at(r, "results", "probes") or {}).items():
        rows.append((f"Algorithm 2, a step's evaluations: loop over one batch ({case})", Value.of(entry["ratio"]), "x"))
    for name, entry in (at(r, "results", "imports") or {}).items():
        what = f"import for the {name}, beyond torch"
        rows.append((what, Value.of(entry["beyond_torch"]), "s"))
    held = at(r, "results", "laptop_memory", "by_method") or {}
    for method, entry in held.items():
        largest = Value.alone(entry["largest_mb"])
        rows.append((f"peak memory of {entry['runs']} laptop runs of {method} on CIFAR-10, the largest", largest, "MB"))
    cells = [[what, value.words(unit)] for what, value, unit in rows if value]
    return ["### Beside these", "", *table(["work", "measured"], cells)] if cells else []


def render(results: list[Found]) -> str:
    """The page, MyST Markdown."""
    lines = [HEAD, *targets(results)]
    for r in sorted(results, key=lambda r: r["kind"] == "gpu"):
        lines += device(r)
    return "\n".join([*lines, AGAIN.strip()]).rstrip() + "\n"


# --- figures ----------------------------------------------------------------------------------------------------


def figures(results: list[Found]) -> dict[str, Found]:
    """Name of each figure's file -> what it shows."""
    made: dict[str, Found] = {}
    for r in results:
        points = [{"name": name} | {k: place(e[k]) for k in KINDS} for name, e in cases(r) if has_arithmetic(e)]
        if points:
            made[f"roofline-{r['device']}.svg"] = {"points": points, "ceilings": r["ceilings"]}
        if grown := curves(r):
            made[f"growth-{r['device']}.svg"] = {
                name: [[value, *(e[k]["milliseconds"] for k in KINDS)] for value, e in points]
                for name, points in grown.items()
            }
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
    with plt.rc_context(style):
        made = draw_roofline(plt, shown) if name.startswith("roofline") else draw_growth(plt, shown)
        path.parent.mkdir(parents=True, exist_ok=True)
        made.savefig(path, format="svg", metadata={"Date": None, "Description": stamp(shown)})
        plt.close(made)


def draw_roofline(plt: Any, shown: Found) -> Any:
    """Points of both kinds joined by an arrow, numbered; the ceilings as lines."""
    made, axes = plt.subplots(figsize=(7, 6.4))
    best, points = shown["ceilings"], shown["points"]
    peak, copy = max(best["matmul_gflop_per_second"], best["convolution_gflop_per_second"]), best["copy_gb_per_second"]
    reach = [p[k][0] for p in points for k in KINDS] + [peak / copy]
    low, high = min(reach) / 2, max(reach) * 2
    axes.plot([low, peak / copy, high], [low * copy, peak, peak], color="black", lw=1.2)
    axes.annotate(f"{number(peak)} GFLOP/s in float32", (high, peak), ha="right", va="bottom", fontsize=8)
    axes.annotate(f"{number(copy)} GB/s", (low, low * copy), ha="left", va="top", fontsize=8, xytext=(6, 0),
                  textcoords="offset points")  # fmt: skip
    for i, p in enumerate(points, 1):
        axes.annotate("", p["library"], p["reference"], arrowprops={"arrowstyle": "->", "color": "#888888"})
        axes.plot(*p["reference"], "o", mfc="white", mec=ORANGE, ms=7, label="plain loop" if i == 1 else None)
        axes.plot(*p["library"], "s", color=BLUE, ms=7, label="library" if i == 1 else None)
        axes.annotate(str(i), p["library"], xytext=(-13 if (i - 1) // 2 % 2 else 7, 5), textcoords="offset points")
        axes.plot([], [], " ", label=f"{i}  {p['name']}")
    axes.set(xscale="log", yscale="log", xlabel="arithmetic intensity (FLOP a byte of operands)", ylabel="GFLOP/s")
    for axis, ends in ((axes.xaxis, (low, high)), (axes.yaxis, axes.get_ylim())):
        ticks = [m * 10.0**e for e in range(-6, 9) for m in (1, 2, 5) if ends[0] <= m * 10.0**e <= ends[1]]
        axis.set_ticks(ticks, [number(tick) for tick in ticks])
        axis.set_ticks([], minor=True)
    made.legend(loc="outside lower left", fontsize=8, handlelength=1)
    return made


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
    panels[0][0].set_ylabel("one inner step (ms)")
    made.legend(loc="outside upper center", ncols=2)
    return made


# --- writing and checking ---------------------------------------------------------------------------------------


def stale(root: Path, results: list[Found]) -> list[str]:
    """What is not as the results ask for, in words."""
    page, wanted = root / PAGE, figures(results)
    there = {p.name: p for p in (root / FIGURES).glob("*.svg")}
    found = [] if page.is_file() and page.read_text(encoding="utf-8") == render(results) else [f"{PAGE} differs"]
    found += [f"{FIGURES / name} shows other numbers" for name, shown in wanted.items()
              if name not in there or stamp(shown) not in there[name].read_text(encoding="utf-8")]  # fmt: skip
    return found + [f"{FIGURES / name} belongs to no results" for name in sorted(set(there) - set(wanted))]


def write(root: Path, results: list[Found]) -> None:
    """The page, its figures, and no figure beside these."""
    wanted = figures(results)
    for path in (root / FIGURES).glob("*.svg"):
        if path.name not in wanted:
            path.unlink()
    for name, shown in wanted.items():
        draw(name, shown, root / FIGURES / name)
    (root / PAGE).write_text(render(results), encoding="utf-8")


def main(words: list[str] | None = None, root: Path = ROOT) -> int:
    """Write or check; 0 if all is well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; say whether the page is up to date")
    check, results = parser.parse_args(words).check, read(root)
    faults = stale(root, results)
    if faults and not check:
        write(root, results)
        return 0
    for fault in faults:
        print(f"performance: {fault}: run python book/performance.py", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
