"""Make what the pages on verdicts show: `python book/verdicts.py --into FOLDER`, called by book/build.py.

Writes fragments that book/build.py puts in the place of `<!-- generated: NAME -->` on the pages (summary, effects,
short_loop, verdicts, cost, records, explorer), their pictures, and stale.json, which says what each page's runs have
against them. Everything comes from data/claims.csv, data/grids, the records and the distilled sets; nothing is written
by hand or kept in the repository.
"""

from __future__ import annotations

import argparse
import dataclasses
import html
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import costs  # noqa: E402
import explorer  # noqa: E402
import matplotlib as mpl  # noqa: E402

from rddlib.analysis import claims, report, results, rules, verdicts  # noqa: E402
from rddlib.analysis.verdicts import Finding, Verdict  # noqa: E402
from rddlib.base import repository_root, write_atomic  # noqa: E402
from rddlib.experiments.experiment import Experiment  # noqa: E402
from rddlib.experiments.grid import Ledger, duration  # noqa: E402
from rddlib.experiments.records import Record, Store  # noqa: E402
from rddlib.stats import Interval, minimum_null  # noqa: E402

GRIDS = (*(f"table{n}" for n in range(1, 6)), "figure4", "gate", "real_groups", "real_groups_cifar10")
TABLES = {
    "1": "Table 1",
    "2": "Table 2",
    "3": "Table 3",
    "4": "Table 4",
    "5": "Table 5",
    "figures": "Figures",
    "text": "Text",
}
READINGS = {"upper": "upper tail", "lower": "lower tail", "-": "not about the tail"}
SUPPORTS = {"no": "the paper's own numbers do not say so", "yes": "", "-": ""}
# Where in the paper -> the page that shows the runs, by the beginning of its name; the first that is there.
PAGES = (
    ("Figure 2", "40_"),
    ("Figure 3", "41_"),
    ("Figure 4", "42_"),
    ("Table 1", "30_"),
    ("Table 2", "31_"),
    ("Table 3", "32_"),
    ("Table 4", "33_"),
    ("Table 5", "34_"),
    ("4.2", "30_"),
    ("4.3", "31_"),
    ("4.4", "32_"),
    ("4.5", "33_"),
    ("4.6", "34_"),
    ("Algorithm", "04_"),
    ("Section 3", "theory"),
    ("Proof", "theory"),
    ("released code", "errata"),
)
# What two runs have to share for one to be the floor or the ceiling of the other.
SAME_BENCH = (
    "dataset",
    "scale",
    "size",
    "test_limit",
    "eval_network",
    "eval_width",
    "eval_depth",
    "eval_recipe",
    "eval_part",
)
NAMES = {"cluster_min": "worst group", "invert": "inversion", "coverage": "coverage (relative)"}
# Groups of verdicts as the summary has them, and the mark of each verdict in the figures.
COLUMNS = {
    "supported": (rules.SUPPORTED,),
    "equal": (rules.NO_DIFFERENCE,),
    "contradicted": (rules.CONTRADICTED,),
    "open": (rules.UNDECIDED,),
    "not judged": (rules.MECHANISM_OFF, rules.NO_ROOM),
    "no runs": (rules.NO_RUNS, rules.NEEDS),
}
MARKS = {
    rules.SUPPORTED: ("#0072B2", "o"),
    rules.NO_DIFFERENCE: ("#009E73", "s"),
    rules.CONTRADICTED: ("#D55E00", "X"),
    rules.UNDECIDED: ("#666666", "|"),
    rules.MECHANISM_OFF: ("#999999", "|"),
    rules.NO_ROOM: ("#999999", "|"),
}
DECIDED = (rules.SUPPORTED, rules.NO_DIFFERENCE, rules.CONTRADICTED)


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
        return finding.why
    sides = " − ".join(minus(f"{m:.1f}") for m in finding.means) + ": " if len(finding.means) == 2 else ""
    return f"{sides}{shown(finding.difference)}, n = {finding.difference.n}"


def detail(finding: Finding, records: dict[str, Record], several: bool) -> str:
    """All that is known about one comparison, as text."""
    said = [f"{words(finding.comparison.metric)}: {number(finding)}", finding.verdict, finding.why]
    if finding.difference is not None:
        said.append(minus(f"standardised difference {finding.effect:.1f}") if np.isfinite(finding.effect) else "")
        said += [floor_and_ceiling(finding, records), null(finding, records)] if several else []
    return "; ".join(filter(None, said))


# --- the table --------------------------------------------------------------------------------------------


def order(v: Verdict) -> int:
    """Decided claims first, in the order of the rule; else the order of the paper."""
    return rules.VERDICTS.index(v.verdict)


def row(v: Verdict, ledger: Ledger, root: Path, p: tuple[float, float] | None = None) -> str:
    """One claim as a row of the table; `p` is corrected within its family, by Holm and by Benjamini and Hochberg."""
    c, keys = v.claim, v.keys()
    records = [ledger.records[k] for k in keys]
    scales = sorted({f.scale for f in v.findings if f.scale})
    stale = [k for k in keys if ledger.state(k) == "stale"]
    e = html.escape
    notes = [f"tested with the {READINGS[c.reading]}"] if c.reading != "-" else []
    notes += [SUPPORTS[c.supports], c.stand_in]
    notes += [f"{c.seen} of the seeds were there when the threshold was fixed"] if c.seen else []
    notes += [f"stale: {len(stale)} of {len(keys)} records were made by other code"] if stale else []
    single = number(v.findings[0]) if len(v.findings) == 1 else v.why if v.findings else "-"
    with_runs = [f for f in v.findings if f.difference is not None]
    details = "".join(f"<li>{e(detail(f, ledger.records, len(v.findings) > 1))}</li>" for f in with_runs)
    page = link(c, root)
    jump = f'<br><a href="{page}">page</a>' if page else ""
    links = "".join(
        f'<li><a href="records.html#record-{k}">{e(results.arm(r.experiment))}, IPC {r.experiment["ipc"]}, '
        f"seed {r.experiment['seed']}</a></li>"
        for k, r in zip(keys, records, strict=True)
    )
    more = f"<details><summary>{len(keys)} records</summary><ul>{links}</ul></details>" if keys else ""
    body = f"<details><summary>numbers</summary><ul>{details}</ul></details>" if details else ""
    beside = ""
    if len(with_runs) == len(v.findings) == 1:
        known = [floor_and_ceiling(with_runs[0], ledger.records), null(with_runs[0], ledger.records)]
        known += [f"p {p[0]:.3f} (Holm), {p[1]:.3f} (Benjamini and Hochberg) in its family"] if p else []
        beside = f'<span class="note">{e("; ".join(filter(None, known)))}</span>'
    planned = f"planned: {', '.join(c.scales)}" if c.scales else "-"
    price = f"{', '.join(scales)}; {duration(costs.seconds(records))}" if scales else planned
    why = "" if v.why == single else v.why
    return (
        f'<tr id="claim-{e(c.id)}" data-table="{c.table}" data-family="{c.family}" data-verdict="{v.verdict}" '
        f'data-reading="{c.reading}">'
        f'<th scope="row"><span class="where">{e(c.place)}</span> {e(c.claim)}'
        f'<span class="note">{e("; ".join(filter(None, notes)))}</span></th>'
        f'<td data-label="Paper">{e(minus(c.paper))}{"" if c.gain is None else e(minus(f" = {c.gain:+.1f}"))}</td>'
        f'<td data-label="Here">{e(single)}{beside}{body}</td>'
        f'<td data-label="Verdict"><strong class="verdict">{v.verdict}</strong>'
        f'<span class="note">{e(why)}</span></td>'
        f'<td data-label="Scale, cost, runs">{e(price)}{jump}{more}</td></tr>'
    )


def table(found: Sequence[Verdict], ledger: Ledger, root: Path) -> str:
    """The filters, which the script shows, and the table; without the script the table is whole."""
    filters = [
        costs.options("table", "Part of the paper", TABLES.items()),
        costs.options("family", "Family", ((f, f) for f in claims.FAMILIES)),
        costs.options("verdict", "Verdict", ((v, v) for v in rules.VERDICTS)),
        costs.options("reading", "Risk term", READINGS.items()),
    ]
    head = "".join(f'<th scope="col">{h}</th>' for h in ("Claim", "Paper", "Here", "Verdict", "Scale, cost, runs"))
    adjusted = verdicts.corrected(found)
    ordered = sorted(found, key=order)
    parts = [[v for v in ordered if (v.verdict in DECIDED) is first] for first in (True, False)]
    bodies = "".join(
        "<tbody>\n" + "\n".join(row(v, ledger, root, adjusted.get(v.claim.id)) for v in part) + "\n</tbody>"
        for part in parts
        if part
    )
    return f"""```{{raw}} html
<link rel="stylesheet" href="../_static/verdicts.css">
<form id="verdict-filters" class="filters" hidden aria-label="Filters">{"".join(filters)}
<button type="reset">show all</button></form>
<p id="verdict-count" role="status">{len(found)} claims, the {len(parts[0])} decided ones first.</p>
<div class="verdict-table"><table id="verdict-table"><thead><tr>{head}</tr></thead>{bodies}</table></div>
<script src="../_static/verdicts.js"></script>
```
"""


# --- summary and figures ----------------------------------------------------------------------------------


def summary(found: Sequence[Verdict]) -> str:
    """One row a family of claims: how many have each verdict."""
    counts = verdicts.tally(found)
    lines = ["| claims on | " + " | ".join(COLUMNS) + " |", "|---" + "|--:" * len(COLUMNS) + "|"]
    for family, own in sorted(counts.items(), key=lambda item: claims.FAMILIES.index(item[0])):
        cells = [sum(own[name] for name in names) for names in COLUMNS.values()]
        lines.append(f"| {family} | " + " | ".join(str(c) if c else "" for c in cells) + " |")
    return "\n".join(lines) + "\n"


def effects(found: Sequence[Verdict], records: dict[str, Record]) -> list[Finding]:
    """Comparisons of the term with control that its mechanism allows to be judged, in the order of the ledger.

    Each pair of arms once a test: other tables ask for the same runs. Drops are left to the page of verdicts.
    """
    judged = (*DECIDED, rules.UNDECIDED)
    able = [f for f in of_the_term(found, records) if f.verdict in judged and not f.why.startswith("gate not run")]
    chosen: dict[tuple[Any, ...], Finding] = {}
    for f in able:
        if "-" not in f.comparison.metric:
            chosen.setdefault((f.comparison.metric, f.keys), f)
    return list(chosen.values())


def short_loop(found: Sequence[Verdict], records: dict[str, Record]) -> list[Finding]:
    """Comparisons of the term with control in which it could not act."""
    return [f for f in of_the_term(found, records) if f.verdict == rules.MECHANISM_OFF]


def of_the_term(found: Sequence[Verdict], records: dict[str, Record]) -> list[Finding]:
    """The comparisons of two arms of one method of which one, and one only, is control."""
    chosen = []
    for finding in own_findings(found):
        arms = [records[keys[0]].experiment for keys in finding.keys]
        if len({e["method"] for e in arms}) == 1 and sorted(e["risk"] == "control" for e in arms) == [False, True]:
            chosen.append(finding)
    return chosen


def own_findings(found: Sequence[Verdict]) -> list[Finding]:
    """The findings of all claims, each once: rows that only refer to others add none."""
    return list({f.comparison: f for v in found for f in v.findings}.values())


def picture(findings: Sequence[Finding]) -> str:
    """The figure of the term's effects with its caption; a sentence where there is nothing to show."""
    if not findings:
        return "No comparison of the term with control has been run yet in which the term can act.\n"
    alt = "; ".join(f"{label(f)} {shown(f.difference)}" for f in findings if f.difference is not None)
    return f"""```{{figure}} effects.png
:name: effects
:alt: What the risk term changes, in percentage points with 95 % intervals: {alt}.

What the risk term changes: each row is one comparison with control, paired by distillation seed, with its 95 %
interval.
Blue disc: supported. Green square: no difference. Orange cross: contradicted. Grey bar: undecided. Open diamond: what
the paper prints. Runs in which the term could not act are not shown; they have [a page of their own](short_loop.md).
```
"""


def short_picture(findings: Sequence[Finding]) -> str:
    """The figure of the short loop: every comparison in which the mechanism was off."""
    if not findings:
        return ""
    above, below = (sum(side(f) == s for f in findings) for s in (1, -1))
    return f"""```{{figure}} short_loop.png
:name: short-loop
:alt: {len(findings)} differences with 95 % intervals by family of claims; {above} lie above zero, {below} below.

The {len(findings)} comparisons of the short loop, by family of claims: difference to control with its 95 % interval.
Open diamonds are the paper's differences. {above} intervals lie above zero and {below} below. None of them is evidence
on the term. The axis is linear between −2 and 2.
```
"""


def side(finding: Finding) -> int:
    """1 where the interval lies above zero, -1 where it lies below, 0 where it holds zero or there is none."""
    if finding.difference is None:
        return 0
    return int(finding.difference.low > 0) - int(finding.difference.high < 0)


def label(finding: Finding) -> str:
    """'Table 1, CIFAR-10, IPC 10, IDC: accuracy, upper tail'."""
    claim = finding.comparison.claim
    return f"{claim.place}: {words(finding.comparison.metric)}, {READINGS[claim.reading]}"


def forest(groups: dict[str, list[Finding]], path: Path, named: bool) -> None:
    """Differences with their intervals, one line a comparison, in groups; `named`: a label for each, else for each
    group."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    report.use_style()
    number_of_rows = sum(len(own) for own in groups.values())
    step = 0.3 if named else 0.075
    figure, axes = plt.subplots(figsize=(6.4, 1.1 + step * number_of_rows + 0.12 * len(groups)), dpi=110)
    y, ticks = 0.0, []
    for name, own in groups.items():
        if not named:
            ticks.append((y + (len(own) - 1) / 2, f"{name} ({len(own)})"))
        for f in own:
            assert f.difference is not None
            colour, mark = MARKS[f.verdict]
            axes.plot([f.difference.low, f.difference.high], [y, y], color=colour, lw=1.6 if named else 0.9)
            axes.plot(f.difference.mean, y, mark, color=colour, ms=7 if named else 4)
            if f.comparison.claim.gain is not None and len(f.comparison.claim.test.split(" ; ")) == 1:
                size = 6 if named else 2.8
                axes.plot(f.comparison.claim.gain, y, "D", mfc="none", mec="black", mew=0.8, ms=size)
            if named:
                place = f.comparison.claim.place.split(", ", 1)[-1]
                ticks.append((y, f"{place}\n{words(f.comparison.metric)}, {READINGS[f.comparison.claim.reading]}"))
            y += 1
        axes.axhline(y - 0.5 if named else y, color="#bbbbbb", lw=0.6)
        y += 0 if named else 2
    axes.axvline(0, color="black", lw=0.8)
    if not named:
        axes.set_xscale("symlog", linthresh=2, linscale=1)
        marks = [-20, -10, -5, -2, -1, 0, 1, 2, 5, 10, 20]
        axes.set_xticks(marks, [str(m).replace("-", "−") for m in marks])
        axes.minorticks_off()
        axes.set_xlim(-40, 40)
    axes.set_yticks([t for t, _ in ticks], [n for _, n in ticks])
    axes.set_ylim(y - 0.5, -0.7)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("difference to control (percentage points)")
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


# --- all of it --------------------------------------------------------------------------------------------


def make(root: Path, into: Path, store: Store) -> dict[str, Any]:
    """Write every fragment; returns how many claims have each verdict."""
    into.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(store)
    found = verdicts.judge(
        claims.read(root / "data" / "claims.csv"),
        ledger.records,
        claims.Plan(GRIDS),
        claims.measures(root / "data" / "coverage"),
    )
    judged, off = effects(found, ledger.records), short_loop(found, ledger.records)
    fragments = {
        "summary": summary(found),
        "effects": picture(judged),
        "short_loop": short_picture(off),
        "verdicts": table(found, ledger, root),
        **costs.fragments(root, ledger),
        "explorer": explorer.fragment(list(ledger.records.values()), store, into),
    }
    for name, text in fragments.items():
        write_atomic(into / f"{name}.md", text)
    if judged:
        forest({"": judged}, into / "effects.png", named=True)
    if off:
        by_family = {name: [f for f in off if f.comparison.claim.family == name] for name in claims.FAMILIES}
        ordered = {n: sorted(own, key=lambda f: f.difference.mean) for n, own in by_family.items() if own}  # type: ignore[union-attr]
        forest(ordered, into / "short_loop.png", named=False)
    write_atomic(into / "stale.json", json.dumps(costs.stale_pages(root, ledger), indent=1))
    counts = sum(verdicts.tally(found).values(), Counter())
    return {name: counts[name] for name in rules.VERDICTS}


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
