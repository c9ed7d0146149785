"""The generated parts of book/scale_out.md: what runs cost by the model of rddlib.price, and how far to trust it.

`python book/prices.py --into FOLDER` writes the fragments and the figure, which book/build.py puts on the page. All
of it comes from the records and the grids.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import matplotlib as mpl  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402

from rddlib import grid, price, report  # noqa: E402
from rddlib.base import SettingError, repository_root, write_atomic  # noqa: E402
from rddlib.experiment import Experiment  # noqa: E402
from rddlib.price import PARTS, CostModel  # noqa: E402
from rddlib.stats import Interval  # noqa: E402
from rddlib.store import Record, Store  # noqa: E402

ASSUMED = 5.0  # 10^12 multiply-adds a second that a GPU is taken to sustain: an assumption, said so wherever it is used
SHOWN = ("laptop", "gpu", "paper")
RUNS = {
    "random images": {"method": "random"}, "DM": {"method": "dm"}, "DSA": {"method": "dsa"},
    "IDC": {"method": "idc"}, "IDC, upper tail": {"method": "idc", "risk": "upper"},
    "GLaD, our generator": {"method": "glad"},
}  # fmt: skip
NAMES = {"distill": "distilling, seconds", "evaluate": "evaluating, seconds", "memory": "peak memory, MB"}


def fragments(root: Path, records: Sequence[Record]) -> dict[str, str]:
    """Name -> Markdown of each generated part."""
    model = price.fit(records)
    return {"price_errors": errors(records), "price_runs": runs(model), "price_grids": grids(model),
            "price_install": install(root)}  # fmt: skip


def run(scale: str, name: str) -> Experiment:
    """A run of CIFAR-10 at ten images a class."""
    return Experiment.preset(scale, dataset="cifar10", ipc=10, **RUNS[name])


def errors(records: Sequence[Record]) -> str:
    """How far predictions are off for groups of runs that the model was fitted without."""
    model = price.fit(records)
    lines = ["| | Runs | Groups | Median error | Largest error, and where | 95 % interval of a new group |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for part in PARTS:
        rows = price.rows(part, records)
        found = price.held_out(part, rows)
        if len(found) < 2:
            lines.append(f"| {NAMES[part]} | {len(rows)} | {len(found)} | not enough groups | | |")
            continue
        off = {group: max(told, 1e-9) / made for group, made, told in found}
        worst = max(off, key=lambda group: abs(math.log(off[group])))
        typical = math.exp(statistics.median(abs(math.log(x)) for x in off.values()))
        e = Experiment.preset("laptop", dataset="cifar10", ipc=10)
        wide = model.predict(part, e)
        far = f"{off[worst]:.2f}x: {words(worst)}"
        span = f"{wide.low / wide.mean:.2f}x to {wide.high / wide.mean:.1f}x"
        lines.append(f"| {NAMES[part]} | {len(rows)} | {len(off)} | {typical:.2f}x | {far} | {span} |")
    return "\n".join(lines) + "\n"


def words(group: str) -> str:
    """A group of like runs in words: data, method, images a class."""
    data, _, method, ipc, *_ = (part.strip('" ') for part in group.strip("[]").split(","))
    return f"{method} on {data}, {ipc} a class"


def runs(model: CostModel) -> str:
    """One run of each method at each scale: arithmetic, one core, and a GPU of assumed speed."""
    lines = ["| Run | Scale | 10¹² multiply-adds: distilling | evaluating | One core, hours (95 %) | "
             f"GPU at an assumed {ASSUMED:g}·10¹²/s, hours |", "|---|---|---|---|---|---|"]  # fmt: skip
    for name in RUNS:
        for scale in SHOWN:
            e = run(scale, name)
            w, hours = price.work(e), total(model, e)
            lines.append(f"| {name} | {scale} | {number(w.distill / 1e3)} | {number((w.madds - w.distill) / 1e3)} | "
                         f"{number(hours.mean)} ({number(hours.low)} to {number(hours.high)}) | "
                         f"{number(w.madds / 1e3 / ASSUMED / 3600)} |")  # fmt: skip
    return "\n".join(lines) + "\n"


def total(model: CostModel, e: Experiment) -> Interval:
    """Hours of a run on one core: the parts' errors are taken to agree in sign, which makes the interval wide."""
    parts = [model.predict(part, e) for part in ("distill", "evaluate") if part in model.rates]
    mean, low, high = (sum(getattr(p, name) for p in parts) / 3600 for name in ("mean", "low", "high"))
    return Interval(mean, low, high, min(p.n for p in parts))


def grids(model: CostModel) -> str:
    """All runs of each grid at each scale; a set that several runs share is distilled once."""
    lines = ["| Grid | Scale | Runs | not modelled | 10¹² multiply-adds | One core, hours | "
             f"GPU at an assumed {ASSUMED:g}·10¹²/s, hours | Largest memory of a run, GB |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name in grid.names():
        for scale in SHOWN:
            if jobs := grid.jobs([name], scale):
                lines.append(f"| {name} | {scale} | {len(jobs)} | " + " | ".join(_sum(model, jobs)) + " |")
    return "\n".join(lines) + "\n"


def _sum(model: CostModel, jobs: Sequence[grid.Job]) -> list[str]:
    madds = hours = memory = 0.0
    unknown, sets = 0, set[str]()
    for job in jobs:
        try:
            w = price.work(job.experiment)
        except SettingError:
            unknown += 1
            continue
        parts = ["evaluate"] + ["distill"] * (job.set_key not in sets)
        sets.add(job.set_key)
        madds += w.madds - w.distill * (len(parts) == 1)
        hours += sum(model.point(part, w, job.experiment.method) for part in parts if part in model.rates) / 3600
        memory = max(memory, model.point("memory", w, job.experiment.method))
    if unknown == len(jobs):
        return [str(unknown), "-", "-", "-", "-"]
    gpu = madds / 1e3 / ASSUMED / 3600
    return [str(unknown), number(madds / 1e3), number(hours), number(gpu), number(memory / 1e3)]


def install(root: Path) -> str:
    """The command that makes Snakemake's own environment, at the versions of constraints.txt."""
    pins = re.findall(r"^(snakemake[\w-]*==[\w.]+)$", (root / "constraints.txt").read_text(), re.M)
    return f"```bash\npython3 -m venv .venv-grid\n.venv-grid/bin/pip install {' '.join(pins)}\n```\n"


def number(value: float) -> str:
    """Two significant digits, without an exponent."""
    if value == 0:
        return "0"
    digits = 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, digits):,.{max(0, digits)}f}"


def figure(records: Sequence[Record], path: Path) -> None:
    """Left: groups left out, predicted against measured. Right: hours of one run on one core, by scale."""
    mpl.use("Agg")
    report.use_style()
    model = price.fit(records)
    drawn, (left, right) = plt.subplots(1, 2, figsize=(7.4, 3.4))
    for part, colour, mark in zip(("distill", "evaluate"), report.COLOURS, "os", strict=False):
        found = price.held_out(part, price.rows(part, records))
        left.plot([m for _, m, _ in found], [p for _, _, p in found], mark, color=colour, ms=5, mfc="none", label=part)
    span = [0.5, 500.0]
    left.plot(span, span, color="black", lw=0.8)
    left.set(xscale="log", yscale="log", xlabel="measured, seconds", ylabel="predicted without them, seconds")
    left.legend()
    for i, scale in enumerate(SHOWN):
        for j, name in enumerate(RUNS):
            hours = total(model, run(scale, name))
            y = j + 0.22 * (i - 1)
            right.plot([hours.low, hours.high], [y, y], color=report.COLOURS[i], lw=1.2)
            right.plot(hours.mean, y, "osD"[i], color=report.COLOURS[i], ms=4, label=scale if not j else None)
    right.set(xscale="log", xlabel="one core, hours (predicted)")
    right.set_yticks(range(len(RUNS)), list(RUNS))
    right.invert_yaxis()
    right.legend(fontsize=8)
    drawn.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(drawn)


def make(root: Path, into: Path, records: Sequence[Record]) -> dict[str, str]:
    """Write every fragment and the figure; returns the fragments."""
    found = fragments(root, records)
    for name, text in found.items():
        write_atomic(into / f"{name}.md", text)
    figure(records, into / "price.png")
    return found


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, required=True, metavar="FOLDER", help="where the fragments go")
    root = repository_root()
    make(root, parser.parse_args().into, Store(root / "data").records())
    return 0


if __name__ == "__main__":
    sys.exit(main())
