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
from collections.abc import Iterable, Sequence
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
from rddlib.stats import Interval  # noqa: E402

GRIDS = (*(f"table{n}" for n in range(1, 6)), "figure4", "gate", "gate_1", "real_groups", "real_groups_cifar10")
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
NAMES = {"cluster_min": "worst cluster", "invert": "inversion", "coverage": "coverage (relative)"}
# Groups of verdicts as the summary has them.
COLUMNS = {
    "supported": (rules.SUPPORTED,),
    "equal": (rules.NO_DIFFERENCE,),
    "contradicted": (rules.CONTRADICTED,),
    "open": (rules.UNDECIDED,),
    "not judged": (rules.MECHANISM_OFF, rules.NO_ROOM),
    "no runs": (rules.NO_RUNS, rules.NEEDS),
}
# Families of claims in words, as the tables have them.
FAMILIES = {
    "accuracy": "accuracy",
    "worst group": "accuracy in the worst group",
    "shifts": "accuracy under noise, blur, inversion",
    "drops": "drop from the standard to a harder test",
    "networks": "other networks",
    "ablation": "parts of the term",
    "alpha": "tail mass",
    "figures": "Figures 2 and 3",
    "theory and code": "theory and code",
}
# Colour and mark of each tail: those of the whole book.
TAILS = {
    "upper": (report.ARM_COLOURS["upper"], "^"),
    "lower": (report.ARM_COLOURS["lower"], "v"),
    "-": ("#555555", "o"),
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
    """'floor 32.1, ceiling 80.0': random images of as many a class, and all data, on the same test, where run."""
    metric, sample = finding.comparison.metric, DEFAULTS | records[finding.keys[0][0]].experiment
    if "-" in metric or metric == "coverage":
        return ""
    found = []
    for name, method, shared in (("floor", "random", (*SAME_BENCH, "ipc")), ("ceiling", "full", SAME_BENCH)):
        by_seed = {}
        for r in records.values():
            if r.experiment.get("method") == method and metric in r.metrics:
                e = DEFAULTS | r.experiment
                if all(e[n] == sample[n] for n in shared):
                    by_seed[e["seed"]] = float(claims.metric_of(claims.measured([r]), metric).iloc[0])
        if by_seed:
            found.append(f"{name} {np.mean(list(by_seed.values())):.1f}")
    return ", ".join(found)


def null(finding: Finding, records: dict[str, Record]) -> str:
    """What sampling alone makes of the worst of groups of these sizes, for comparisons of the worst cluster."""
    if finding.comparison.metric != "cluster_min":
        return ""
    own = [records[k] for k in finding.keys[0]]
    sizes = own[0].metrics["group_sizes"]
    found = results.cluster_null(own)
    assert found is not None  # a comparison of the worst cluster has records with groups
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
    notes += [SUPPORTS[c.supports]]
    notes += [f"stale: {len(stale)} of {len(keys)} records were made by other code"] if stale else []
    conditions = [c.stand_in] if c.stand_in else []
    conditions += [f"{c.seen} of the seeds were there when the threshold was fixed"] if c.seen else []
    single = number(v.findings[0]) if len(v.findings) == 1 else v.why if v.findings else "-"
    with_runs = [f for f in v.findings if f.difference is not None]
    details = "".join(f"<li>{e(detail(f, ledger.records, len(v.findings) > 1))}</li>" for f in with_runs)
    page = link(c, root)
    jump = f'<br><a href="{page}">page</a>' if page else ""
    links = "".join(
        f'<li><a href="records.html#record-{k}">{e(results.arm(r.experiment))}, '
        f"{r.experiment['ipc']} a class, seed {r.experiment['seed']}</a></li>"
        for k, r in zip(keys, records, strict=True)
    )
    more = f"<details><summary>{len(keys)} records</summary><ul>{links}</ul></details>" if keys else ""
    if len(with_runs) == len(v.findings) == 1:
        conditions += [floor_and_ceiling(with_runs[0], ledger.records), null(with_runs[0], ledger.records)]
        conditions += [f"p {p[0]:.3f} (Holm), {p[1]:.3f} (Benjamini and Hochberg) in its family"] if p else []
    details += "".join(f"<li>{e(each)}</li>" for each in conditions if each)
    body = f"<details><summary>details</summary><ul>{details}</ul></details>" if details else ""
    planned = f"planned: {', '.join(c.scales)}" if c.scales else "-"
    price = f"{', '.join(scales)}; {duration(costs.seconds(records))}" if scales else planned
    why = "; ".join(filter(None, ["" if v.why == single else v.why, c.why if with_runs else ""]))
    return (
        f'<tr id="claim-{e(c.id)}" data-table="{c.table}" data-family="{c.family}" data-verdict="{v.verdict}" '
        f'data-reading="{c.reading}">'
        f'<th scope="row"><span class="where">{e(c.place)}</span> {e(c.claim)}'
        f'<span class="note">{e("; ".join(filter(None, notes)))}</span></th>'
        f'<td data-label="Paper">{e(minus(c.paper))}{"" if c.gain is None else e(minus(f" = {c.gain:+.1f}"))}</td>'
        f'<td data-label="Here">{e(single)}{body}</td>'
        f'<td data-label="Verdict"><strong class="verdict">{v.verdict}</strong>'
        f'<span class="note">{e(why)}</span></td>'
        f'<td data-label="Scale, cost, runs">{e(price)}{jump}{more}</td></tr>'
    )


def table(found: Sequence[Verdict], ledger: Ledger, root: Path) -> str:
    """The filters, which the script shows, and the table; without the script the table is whole."""
    filters = [
        costs.options("table", "Part of the paper", TABLES.items()),
        costs.options("family", "Claims on", FAMILIES.items()),
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
    """One row a family of claims: how many have each verdict; then, which supported ones do not speak of the term."""
    counts = verdicts.tally(found)
    lines = ["| claims on | " + " | ".join(COLUMNS) + " |", "|---" + "|--:" * len(COLUMNS) + "|"]
    for family, own in sorted(counts.items(), key=lambda item: claims.FAMILIES.index(item[0])):
        cells = [sum(own[name] for name in names) for names in COLUMNS.values()]
        lines.append(f"| {FAMILIES[family]} | " + " | ".join(str(c) if c else "" for c in cells) + " |")
    beside = []
    for family in claims.FAMILIES:
        own = [
            v for v in found if v.claim.family == family and v.verdict == rules.SUPPORTED and v.claim.rule != "proof"
        ]
        without = [v for v in own if v.claim.reading == "-"]
        if without:
            beside.append(f"{FAMILIES[family]} {len(without)} of {len(own)}")
    note = f"\nSupported, but on base methods without the term: {', '.join(beside)}.\n" if beside else ""
    return "\n".join(lines) + "\n" + note


def effects(found: Sequence[Verdict], records: dict[str, Record]) -> list[Finding]:
    """Comparisons of the term with control that its mechanism allows to be judged, in the order of the ledger."""
    judged = (*DECIDED, rules.UNDECIDED)
    able = [f for f in of_the_term(found, records) if f.verdict in judged and not f.why.startswith("gate not run")]
    return each_once(able)


def short_loop(found: Sequence[Verdict], records: dict[str, Record]) -> list[Finding]:
    """Comparisons of the term with control in which it could not act."""
    return each_once(f for f in of_the_term(found, records) if f.verdict == rules.MECHANISM_OFF)


def each_once(findings: Iterable[Finding]) -> list[Finding]:
    """Each pair of arms once a test, with all its seeds: several tables ask for the same runs, or for some of them.

    Drops are left to the page of verdicts, and coverage, which is not in points, to its own.
    """
    chosen: dict[tuple[Any, ...], Finding] = {}
    for f in findings:
        if "-" not in f.comparison.metric and f.comparison.metric != "coverage":
            chosen.setdefault((f.comparison.metric, f.keys), f)
    return [f for f in chosen.values() if not any(part_of(f, other) for other in chosen.values())]


def part_of(one: Finding, other: Finding) -> bool:
    """Whether a comparison is another one with fewer seeds."""
    if one is other or one.comparison.metric != other.comparison.metric or len(one.keys) != len(other.keys):
        return False
    return all(set(own) < set(more) for own, more in zip(one.keys, other.keys, strict=True))


def of_the_term(found: Sequence[Verdict], records: dict[str, Record]) -> list[Finding]:
    """The comparisons of two arms of one method of which one is control and the other has the paper's term.

    A part of the term, as in Table 4, or another tail mass, as in Figure 4, is no answer to whether the term helps.
    """
    chosen = []
    for finding in own_findings(found):
        arms = [costs.DEFAULTS | records[keys[0]].experiment for keys in finding.keys]
        terms = [e for e in arms if e["risk"] != "control"]
        papers = all(e[name] == costs.DEFAULTS[name] for e in terms for name in ("average", "worst", "alpha"))
        if (len(arms), len(terms)) == (2, 1) and len({e["method"] for e in arms}) == 1 and papers:
            chosen.append(finding)
    return chosen


def own_findings(found: Sequence[Verdict]) -> list[Finding]:
    """The findings of all claims, each once: rows that only refer to others add none."""
    return list({f.comparison: f for v in found for f in v.findings}.values())


def picture(findings: Sequence[Finding]) -> str:
    """The figure of the term's effects with its caption; a sentence where there is nothing to show."""
    if not findings:
        return "No comparison of the term with control has been run yet in which the term can act.\n"
    return f"""```{{figure}} effects.png
:name: effects
:width: 100%
:alt: What the risk term changes, in percentage points with 95 % intervals: {described(findings)}.

What the risk term changes: difference to control, the same method without the term, with its 95 % interval over
distillation seeds. Each line ends with its verdict. Runs in which the term could not act have [a page of their
own](short_loop.md).
```
"""


def short_picture(findings: Sequence[Finding]) -> str:
    """The figure of the short loop: every comparison in which the mechanism was off."""
    if not findings:
        return ""
    return f"""```{{figure}} short_loop.png
:name: short-loop
:width: 100%
:alt: {len(findings)} differences of the short loop with 95 % intervals: {described(findings)}.

The short loop, in which the term could not act: difference to control with its 95 % interval. [The page of
verdicts](verdicts.md) has its drops and its coverage too.
```
"""


def described(findings: Sequence[Finding]) -> str:
    """Every difference of a figure in words, for those who cannot see it."""
    return "; ".join(f"{label(f)} {shown(f.difference)}" for f in findings if f.difference is not None)


def label(finding: Finding) -> str:
    """'Table 1, CIFAR-10, IPC 10, IDC: accuracy, upper tail'."""
    claim = finding.comparison.claim
    return f"{claim.place}: {words(finding.comparison.metric)}, {READINGS[claim.reading]}"


def tested(finding: Finding, records: dict[str, Record]) -> str:
    """The test of a comparison: 'accuracy'; 'accuracy, ResNet-10' where another network than usual is trained."""
    network = (DEFAULTS | records[finding.keys[0][0]].experiment)["eval_network"]
    usual = network == DEFAULTS["eval_network"]
    return words(finding.comparison.metric) + ("" if usual else f", {results.NAMES.get(network, network)}")


def bench(finding: Finding, records: dict[str, Record]) -> str:
    """What a comparison was made on: 'CIFAR-10, 10 images a class, IDC'."""
    own = DEFAULTS | records[finding.keys[0][0]].experiment
    data = report.STAND_INS[own["dataset"]][1].format(size=own["size"])
    return f"{data}, {own['ipc']} image{'s' if own['ipc'] > 1 else ''} a class, {results.METHODS[own['method']]}"


def forest(findings: Sequence[Finding], records: dict[str, Record], path: Path, verdict: bool = True) -> None:
    """Differences with their intervals, one line each: those of one test on one bench stand together.

    Colour and mark are the tail's, a diamond is the paper's difference; `verdict`: say at the end of a line what was
    decided.
    """
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    report.use_style()
    groups: dict[tuple[str, str], list[Finding]] = {}
    for f in findings:
        groups.setdefault((tested(f, records), bench(f, records)), []).append(f)
    benches = {on for _, on in groups}
    height = 0.24 * len(findings) + 0.16 * len(groups) + 0.95
    figure, axes = plt.subplots(figsize=(5.6, height), dpi=180)
    y, ticks, marks, paper = 0.0, [], {}, None
    for (test, on), own in groups.items():
        ticks.append((y + (len(own) - 1) / 2, test if len(benches) == 1 else f"{test}\n{on}"))
        for f in own:
            assert f.difference is not None
            claim = f.comparison.claim
            colour, mark = TAILS[claim.reading]
            axes.plot([f.difference.low, f.difference.high], [y, y], color=colour)
            (marks[READINGS[claim.reading]],) = axes.plot(f.difference.mean, y, mark, color=colour, ms=6)
            if claim.gain is not None and len(claim.test.split(" ; ")) == 1:
                (paper,) = axes.plot(claim.gain, y, "D", mfc="none", mec="black", mew=0.9, ms=5)
            if verdict:
                place = axes.get_yaxis_transform()
                axes.text(1.02, y, f.verdict, transform=place, va="center", fontsize=8.5, color="#555555")
            y += 1
        y += 0.7
    axes.axvline(0, color="black", lw=0.8)
    axes.set_yticks([place for place, _ in ticks], [name for _, name in ticks])
    axes.set_ylim(y - 1.1, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("difference to control (points)")
    if len(benches) == 1:
        axes.set_title(benches.pop(), loc="left", fontsize=9.5)
    if paper is not None:
        marks["the paper"] = paper
    figure.legend(marks.values(), marks, loc="outside upper right", ncols=3, fontsize=9, handletextpad=0.2)
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
    stale = costs.stale_pages(root, ledger)
    fragments = {
        "summary": summary(found),
        "effects": picture(judged),
        "short_loop": short_picture(off),
        "verdicts": table(found, ledger, root),
        **costs.fragments(root, ledger, stale),
        "explorer": explorer.fragment(list(ledger.records.values()), store, into),
    }
    for name, text in fragments.items():
        write_atomic(into / f"{name}.md", text)
    if judged:
        forest(judged, ledger.records, into / "effects.png")
    if off:
        forest(off, ledger.records, into / "short_loop.png", verdict=False)
    write_atomic(into / "stale.json", json.dumps(stale, indent=1))
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
