"""Make what the pages on verdicts show: `python book/verdicts.py --into FOLDER`, called by book/build.py.

Writes fragments that book/build.py puts in the place of `<!-- generated: NAME -->` on the pages (tally, verdicts, cost,
records), the forest plot, and stale.json, which says what each page's runs have against them. Everything comes from
data/claims.csv, data/grids and the records; nothing is written by hand and nothing is kept in the repository.
"""

from __future__ import annotations

import argparse
import dataclasses
import html
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import costs  # noqa: E402
import matplotlib as mpl  # noqa: E402

from rddlib.analysis import claims, report, verdicts  # noqa: E402
from rddlib.analysis.verdicts import Finding, Verdict  # noqa: E402
from rddlib.base import repository_root, write_atomic  # noqa: E402
from rddlib.experiments.experiment import Experiment  # noqa: E402
from rddlib.experiments.grid import Ledger, duration  # noqa: E402
from rddlib.experiments.records import Record, Store  # noqa: E402
from rddlib.stats import Interval, mean_interval, minimum_null  # noqa: E402

GRIDS = ("table1", "table2", "table3", "table4", "table5", "figure4")
TABLES = {"1": "Table 1", "2": "Table 2", "3": "Table 3", "4": "Table 4", "5": "Table 5", "figures": "Figures",
          "text": "Text"}  # fmt: skip
READINGS = {"upper": "upper tail", "lower": "lower tail", "-": "not about the tail"}
# Where in the paper -> the page that shows the runs, by the beginning of its name; the first that is there.
PAGES = (("Figure 2", "40_"), ("Figure 3", "41_"), ("Figure 4", "42_"), ("Table 1", "30_"), ("Table 2", "31_"),
         ("Table 3", "32_"), ("Table 4", "33_"), ("Table 5", "34_"), ("4.2", "30_"), ("4.3", "31_"), ("4.4", "32_"),
         ("4.5", "33_"), ("4.6", "34_"), ("Section 3", "theory"))  # fmt: skip
SAME_BENCH = ("dataset", "scale", "size", "test_limit", "eval_network", "eval_width", "eval_depth", "eval_recipe",
              "eval_part")  # fmt: skip
NAMES = {"cluster_min": "cluster-min", "invert": "inversion", "coverage": "coverage (relative)"}
SAID = {"not": "not replicated"}
REASONS = ("undecided", "some runs missing", "no runs", "no test")  # why a claim is not tested
MARKS = {"holds": ("#0072B2", "o"), "fails": ("#D55E00", "X"), "undecided": ("#666666", "|")}


def words(metric: str) -> str:
    """A metric as a reader knows it: 'cluster-min less accuracy'."""
    return " less ".join(NAMES.get(name, name) for name in metric.split("-"))


def minus(text: str) -> str:
    """Proper minus signs in front of numbers."""
    return text.replace("-", "−")


def shown(found: Interval) -> str:
    """'+0.4 [−0.2, 1.0]'."""
    return minus(f"{found.mean:+.1f} [{found.low:.1f}, {found.high:.1f}]")


def link(claim: claims.Claim, root: Path) -> str:
    """The built page of a claim's runs, '' where there is none yet."""
    for sign, start in PAGES:
        if sign in claim.place:
            for path in sorted([*(root / "notebooks").glob(f"{start}*.ipynb"), *(root / "book").glob(f"{start}*.md")]):
                return f"../{path.parent.name}/{path.stem}.html"
    return ""


# --- numbers beside the numbers ---------------------------------------------------------------------------

DEFAULTS = dataclasses.asdict(Experiment())


def floor_and_ceiling(finding: Finding, records: dict[str, Record]) -> str:
    """'floor 32.1, ceiling 80.0': random images of as many a class, and all data, on the same test."""
    metric, sample = finding.comparison.metric, DEFAULTS | records[finding.keys[0][0]].experiment
    if "-" in metric or metric == "coverage":
        return ""
    found = []
    for name, method in (("floor", "random"), ("ceiling", "full")):
        by_seed = {}
        for r in records.values():
            e = DEFAULTS | r.experiment
            alike = all(e[n] == sample[n] for n in SAME_BENCH) and (method == "full" or e["ipc"] == sample["ipc"])
            if e["method"] == method and alike and metric in r.metrics:
                by_seed[e["seed"]] = float(np.mean(r.metrics[metric]))
        found.append(f"{name} {np.mean(list(by_seed.values())):.1f}" if by_seed else f"{name} not run yet")
    return ", ".join(found)


def null(finding: Finding, records: dict[str, Record]) -> str:
    """What sampling alone makes of the worst of groups of these sizes, for comparisons of the worst cluster."""
    if finding.comparison.metric != "cluster_min":
        return ""
    own = [records[k] for k in finding.keys[0]]
    sizes = own[0].metrics["group_sizes"]
    found = minimum_null(float(np.mean([np.mean(r.metrics["accuracy"]) for r in own])), sizes)
    return (f"if all clusters were equally hard, the worst would be at {found.mean:.1f} "
            f"[{found.low:.1f}, {found.high:.1f}]; {len(sizes)} clusters of {min(sizes)} to {max(sizes)}")  # fmt: skip


def number(finding: Finding) -> str:
    """Our number in one line: both sides where there are two, the difference, its interval, and the seeds."""
    if finding.difference is None:
        return finding.note
    sides = " − ".join(minus(f"{m:.1f}") for m in finding.means) + ": " if len(finding.means) == 2 else ""
    return f"{sides}{shown(finding.difference)}, n = {finding.difference.n}"


def detail(finding: Finding, records: dict[str, Record], several: bool) -> str:
    """All that is known about one comparison, as text."""
    said = [f"{words(finding.comparison.metric)}: {number(finding)}", finding.state]
    if finding.difference is not None:
        said.append(minus(f"standardised difference {finding.effect:.1f}") if np.isfinite(finding.effect) else "")
        said.append("equal within one point" if finding.equal else "not shown to be equal within one point")
        said += [floor_and_ceiling(finding, records), null(finding, records)] if several else []
    return "; ".join(filter(None, said))


def by_falling(finding: Finding, records: dict[str, Record]) -> str:
    """What to read beside a drop that is smaller because the standard accuracy fell; '' for any other comparison."""
    test, _, standard = finding.comparison.metric.partition("-")
    if not standard or finding.state != "holds":
        return ""
    signed = [(weight, keys) for (weight, _), keys in zip(finding.comparison.terms, finding.keys, strict=True)]
    gain = {m: sum(w * np.array([np.mean(records[k].metrics[m]) for k in keys]) for w, keys in signed)
            for m in (test, standard)}  # fmt: skip
    own = mean_interval(gain[test])
    if own.low > 0 or -gain[standard].mean() <= max(own.mean, 0):  # it rose, or rose by more than the other fell
        return ""
    return (f"holds because {words(standard)} fell ({minus(f'{gain[standard].mean():+.1f}')}), not because accuracy "
            f"under the test rose ({shown(own)})")  # fmt: skip


# --- the table --------------------------------------------------------------------------------------------


def reason(v: Verdict) -> str:
    """Why a claim was not tested, in a word or two."""
    if v.verdict != "not tested":
        return ""
    undecided, some, none, untestable = REASONS
    if v.claim.rule == "none":
        return untestable
    runs = [f.difference is not None for f in v.findings]
    return undecided if all(runs) else some if any(runs) else none


def order(v: Verdict) -> tuple[int, int]:
    """Decided claims first, then those not tested, the nearest to a verdict first; else the order of the paper."""
    return verdicts.VERDICTS.index(v.verdict), REASONS.index(reason(v)) if reason(v) else 0


def row(v: Verdict, ledger: Ledger, root: Path) -> str:
    """One claim as a row of the table."""
    c, keys = v.claim, v.keys()
    records = [ledger.records[k] for k in keys]
    scales = sorted({f.scale for f in v.findings if f.scale})
    stale = [k for k in keys if ledger.state(k) == "stale"]
    e = html.escape
    notes = [f"tested with the {READINGS[c.reading]}"] if c.reading != "-" else []
    notes += [c.stand_in] if c.stand_in else []
    notes += [f"{c.seen} of the seeds were there when the threshold was fixed"] if c.seen else []
    notes += [f"stale: {len(stale)} of {len(keys)} records were made by other code"] if stale else []
    single = number(v.findings[0]) if len(v.findings) == 1 else v.why
    details = "".join(
        f"<li>{e(detail(f, ledger.records, len(v.findings) > 1))}</li>" for f in v.findings if f.difference is not None
    )
    page = link(c, root)
    jump = f'<br><a href="{page}">page</a>' if page else ""
    links = "".join(f'<li><a href="records.html#record-{k}">{e(report.arm(r.experiment))}, IPC {r.experiment["ipc"]}, '
                    f'seed {r.experiment["seed"]}</a></li>' for k, r in zip(keys, records, strict=True))  # fmt: skip
    more = f"<details><summary>{len(keys)} records</summary><ul>{links}</ul></details>" if keys else ""
    body = f"<details><summary>numbers</summary><ul>{details}</ul></details>" if details else ""
    beside = ""
    if len(v.findings) == 1 and v.findings[0].difference is not None:
        known = (floor_and_ceiling(v.findings[0], ledger.records), null(v.findings[0], ledger.records),
                 by_falling(v.findings[0], ledger.records))  # fmt: skip
        beside = f'<span class="note">{e("; ".join(filter(None, known)))}</span>'
    price = f"{', '.join(scales)}; {duration(costs.seconds(records))}" if scales else (
        f"planned: {', '.join(c.scales)}" if c.scales else "-")  # fmt: skip
    return (
        f'<tr id="claim-{e(c.id)}" data-table="{c.table}" data-verdict="{v.verdict}" data-reading="{c.reading}">'
        f'<th scope="row"><span class="where">{e(c.place)}</span> {e(c.claim)}'
        f'<span class="note">{e("; ".join(notes))}</span></th>'
        f'<td data-label="Paper">{e(minus(c.paper))}{"" if c.gain is None else e(minus(f" = {c.gain:+.1f}"))}</td>'
        f'<td data-label="Here">{e(single)}{beside}{body}</td>'
        f'<td data-label="Verdict"><strong class="verdict">{SAID.get(v.verdict, v.verdict)}</strong>'
        f'<span class="note">{reason(v)}</span></td>'
        f'<td data-label="Scale, cost, runs">{e(price)}{jump}{more}</td></tr>'
    )


def options(name: str, label: str, values: Iterable[tuple[str, str]]) -> str:
    """One filter of the table."""
    chosen = "".join(f'<option value="{v}">{html.escape(t)}</option>' for v, t in values)
    return f'<label>{label} <select name="{name}"><option value="">all</option>{chosen}</select></label>'


def table(found: Sequence[Verdict], ledger: Ledger, root: Path) -> str:
    """The filters, which the script shows, and the table; without the script the table is whole."""
    filters = [options("table", "Part of the paper", TABLES.items()),
               options("verdict", "Verdict", ((v, SAID.get(v, v)) for v in verdicts.VERDICTS)),
               options("reading", "Risk term", READINGS.items())]  # fmt: skip
    head = "".join(f'<th scope="col">{h}</th>' for h in ("Claim", "Paper", "Here", "Verdict", "Scale, cost, runs"))
    parts = [[v for v in sorted(found, key=order) if (v.verdict == "not tested") is last] for last in (False, True)]
    bodies = "".join(
        "<tbody>\n" + "\n".join(row(v, ledger, root) for v in part) + "\n</tbody>" for part in parts if part
    )
    return f"""```{{raw}} html
<link rel="stylesheet" href="../_static/verdicts.css">
<form id="verdict-filters" hidden aria-label="Filters">{"".join(filters)}<button type="reset">show all</button></form>
<p id="verdict-count" role="status">{len(found)} claims, the {len(parts[0])} decided ones first.</p>
<div class="verdict-table"><table id="verdict-table"><thead><tr>{head}</tr></thead>{bodies}</table></div>
<script src="../_static/verdicts.js"></script>
```
"""


# --- the front page ---------------------------------------------------------------------------------------


def tally(found: Sequence[Verdict], ledger: Ledger) -> str:
    """One line on all claims, and the figure."""
    counts = verdicts.tally(found)
    tested = [f for f in own_findings(found) if f.difference is not None]
    scales = ", ".join(sorted({f.scale for f in tested})) or "none"
    keys = {k for v in found for k in v.keys()}  # noqa: SIM118 (a method)
    stale = sum(ledger.state(k) == "stale" for k in keys)
    line = (f"Of {len(found)} claims, **{counts['replicated']} are replicated, {counts['partly']} partly, "
            f"{counts['not']} are not, and {counts['not tested']} are not tested** ({counts['undecided']} of these "
            f"because the intervals leave it open, the others for want of runs or a measure). Scales so far: {scales}. "
            "[Each claim with its numbers](verdicts.md).")  # fmt: skip
    falling = sum(v.verdict == "replicated" and any(by_falling(f, ledger.records) for f in v.findings) for v in found)
    if falling:
        line += (f" Of those replicated, {falling} say that a drop from the standard test gets "
                 "smaller, and it does because accuracy on the standard test fell.")  # fmt: skip
    line += f" {stale} of the records behind them were made by code that has changed since." if stale else ""
    states = {s: sum(f.state == s for f in tested) for s in MARKS}
    if not tested:
        return line + "\n"
    alt = (f"Forest plot of {len(tested)} differences in percentage points with 95 % intervals, by table of the paper: "
           f"{states['holds']} lie above zero, {states['fails']} exclude a gain as large as the margin, "
           f"{states['undecided']} are undecided. Open diamonds: the paper's differences.")  # fmt: skip
    return f"""{line}

```{{figure}} forest.png
:name: forest
:alt: {alt}

Every comparison that has runs: the difference with its 95 % interval over distillation seeds. Blue disc: above zero.
Orange cross: a gain as large as the margin is excluded. Grey bar: undecided. Open diamond: what the paper prints.
The axis is linear between -2 and 2. About one comparison in forty would be blue without any effect.
```
"""


def own_findings(found: Sequence[Verdict]) -> list[Finding]:
    """The findings of all claims, each once: rows that only refer to others add none."""
    return list({f.comparison: f for v in found for f in v.findings}.values())


def forest(found: Sequence[Verdict], path: Path) -> None:
    """The forest plot: one thin line a comparison, grouped by part of the paper, sorted within."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    report.use_style()
    tested = [f for f in own_findings(found) if f.difference is not None]
    groups = {name: sorted((f for f in tested if f.comparison.claim.table == key), key=lambda f: f.difference.mean)
              for key, name in TABLES.items()}  # fmt: skip
    groups = {name: own for name, own in groups.items() if own}
    figure, axes = plt.subplots(figsize=(6.4, 1.1 + 0.075 * len(tested) + 0.12 * len(groups)), dpi=110)
    y, ticks = 0.0, []
    for name, own in groups.items():
        ticks.append((y + (len(own) - 1) / 2, f"{name} ({len(own)})"))
        for f in own:
            colour, mark = MARKS[f.state]
            axes.plot([f.difference.low, f.difference.high], [y, y], color=colour, lw=0.9)
            axes.plot(f.difference.mean, y, mark, color=colour, ms={"o": 3.5, "X": 4.5, "|": 6}[mark])
            if f.comparison.claim.gain is not None and len(f.comparison.claim.test.split(" ; ")) == 1:
                axes.plot(f.comparison.claim.gain, y, "D", mfc="none", mec="black", mew=0.6, ms=2.8)
            y += 1
        axes.axhline(y, color="#bbbbbb", lw=0.6)
        y += 2
    axes.axvline(0, color="black", lw=0.8)
    axes.set_xscale("symlog", linthresh=2, linscale=1)
    marks = [-20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20]
    axes.set_xticks(marks, [str(m).replace("-", "−") for m in marks])
    axes.minorticks_off()
    axes.set_xlim(-40, 40)
    axes.set_yticks([t for t, _ in ticks], [n for _, n in ticks])
    axes.set_ylim(y - 1, -1)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("difference (percentage points)")
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


# --- all of it --------------------------------------------------------------------------------------------


def make(root: Path, into: Path, store: Store) -> dict[str, Any]:
    """Write every fragment; returns the tally."""
    into.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(store)
    found = verdicts.judge(claims.read(root / "data" / "claims.csv"), ledger.records, claims.Plan(GRIDS),
                           claims.measures(root / "data" / "coverage"))  # fmt: skip
    fragments = {"tally": tally(found, ledger), "verdicts": table(found, ledger, root), **costs.fragments(root, ledger)}
    for name, text in fragments.items():
        write_atomic(into / f"{name}.md", text)
    if any(f.difference is not None for v in found for f in v.findings):
        forest(found, into / "forest.png")
    write_atomic(into / "stale.json", json.dumps(costs.stale_pages(root, ledger), indent=1))
    return verdicts.tally(found)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, required=True, metavar="FOLDER", help="where the fragments go")
    root = repository_root()
    counts = make(root, parser.parse_args().into, Store(root / "data"))
    print("verdicts: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
