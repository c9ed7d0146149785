"""What pages and runs cost, which records a page shows, and whether they are still those of today's code.

`data/pages.json` notes for each page the content of every record that its outputs name, and what executing it took:
`python book/costs.py --note [PAGE ...]` writes the first after a page was executed, `--time` executes each page once
into a scratch file and writes the second. Without options it says which pages are stale.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import html
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import explorer  # noqa: E402

from rddlib.analysis import results  # noqa: E402
from rddlib.base import SettingError, repository_root, write_atomic  # noqa: E402
from rddlib.experiments import grid  # noqa: E402
from rddlib.experiments.experiment import Experiment  # noqa: E402
from rddlib.experiments.grid import Job, Ledger, duration  # noqa: E402
from rddlib.experiments.provenance import describe_device  # noqa: E402
from rddlib.experiments.records import Record, Store  # noqa: E402

PAGES = Path("data/pages.json")
KEY = re.compile(r"(?<![0-9a-f])[0-9a-f]{16}(?![0-9a-f])")
GRIDS = ("table1", "table2", "table3", "table4", "table5", "figure4")
BUDGETS = (("10 minutes", 10), ("an hour", 60), ("a day", 24 * 60))
DEFAULTS = dataclasses.asdict(Experiment())


def seconds(records: Iterable[Record]) -> float:
    """What records cost: a set that several share once, processor time where that is less than the clock's."""
    total, sets = 0.0, set[str]()
    for r in records:
        shared = {"distill"} if r.set_key in sets else set()
        total += sum(price for part, price in r.price.items() if part not in shared)
        sets |= {r.set_key} - {""}
    return total


# --- pages and their records ------------------------------------------------------------------------------


def notebooks(root: Path) -> list[Path]:
    """The notebooks of the book, in order."""
    return sorted((root / "notebooks").glob("*.ipynb"))


def named(page: Path, noted: Iterable[str] = ()) -> list[str]:
    """Keys of records that a page shows: the 16-digit names in its outputs, those of its grid, those noted for it."""
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    text = json.dumps([[o for o in c.get("outputs", ()) if o["output_type"] != "error"] for c in cells])
    return sorted(set(KEY.findall(re.sub(r'"image/png": "[^"]*"', "", text))) | set(of_grid(page)) | set(noted))


def of_grid(page: Path) -> list[str]:
    """Keys of the grids that a page is about, at scales of its parameters: such a page sums records up, unnamed.

    A scale that is no parameter of the page (the variable of a loop) counts as the parameter `scale`.
    """
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    scales = dict(re.findall(r'^(\w+) = "(\w+)"', code, re.MULTILINE))
    asked = re.findall(r'Page\.of\(\s*"(\w+)",\s*(\w+)', code)
    chosen = [(name, scales.get(variable, scales.get("scale"))) for name, variable in asked]
    return list(dict.fromkeys(key for name, scale in chosen if scale for key in keys_of(name, scale)))


@functools.cache
def keys_of(name: str, scale: str) -> tuple[str, ...]:
    """Keys of the runs of a grid at a scale; several pages ask for the same ones."""
    return tuple(job.key for job in grid.jobs([name], scale))


def in_load_mode(page: Path) -> bool:
    """Whether a page reads records: its parameters say mode = "load"."""
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    own = ["".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", ())]
    return any(re.search(r'^mode = "load"', text, re.MULTILINE) for text in own)


def finds_records(page: Path) -> bool:
    """Whether the code of a page takes records out of the store by itself, without the parameter `mode`."""
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    return any("Store()" in "".join(c["source"]) for c in cells if c["cell_type"] == "code")


def contents(store: Store) -> dict[str, str]:
    """Key -> a hash of the record's file."""
    return {p.stem: hashlib.sha256(p.read_bytes()).hexdigest()[:16] for p in store.files() if p.is_file()}


def notes(root: Path) -> dict[str, dict[str, Any]]:
    """What data/pages.json says: page -> records, seconds, peak_memory_mb, device."""
    path = root / PAGES
    return json.loads(path.read_text()) if path.is_file() else {}


def stale_pages(root: Path, ledger: Ledger) -> dict[str, list[str]]:
    """Page -> what has changed under it, in words; pages without fault are left out.

    Records made by other code, records that differ from those that the page was executed with, and records gone.
    """
    now, noted, found = contents(ledger.store), notes(root), dict[str, list[str]]()
    for page in (p for p in notebooks(root) if in_load_mode(p)):
        before = noted.get(page.name, {}).get("records", {})
        keys = [k for k in named(page, before) if k in now or k in before]
        faults = {
            "made by code that has changed since": [k for k in keys if k in now and ledger.state(k) == "stale"],
            "changed since the page was executed": [k for k in keys if k in now and before.get(k, now[k]) != now[k]],
            "are new since the page was executed": [k for k in of_grid(page) if k in now and k not in before],
            "no longer there": [k for k in keys if k not in now],
        }
        said = [f"{len(own)} of {len(keys)} records {why} (first: {own[0]})" for why, own in faults.items() if own]
        if said:
            found[page.name] = said
    return found


def note(root: Path, pages: Sequence[Path], store: Store) -> None:
    """Write down, for pages that have just been executed, the records that they name."""
    now, noted = contents(store), notes(root)
    for page in pages:
        noted.setdefault(page.name, {})["records"] = {k: now[k] for k in named(page) if k in now}
    _keep(root, noted)


def take_time(root: Path, pages: Sequence[Path]) -> None:
    """Execute pages into a scratch file, one after the other, and write down what that took. Let nothing else run."""
    noted = notes(root)
    for page in pages:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            options = ["--no-progress-bar", "-k", "python3"]
            command = [sys.executable, "-m", "papermill", str(page), f"{folder}/out.ipynb", *options]
            subprocess.run(command, cwd=root, check=True)
        spent = time.perf_counter() - start
        # The largest child so far: exact for the largest page, an upper bound for those after it.
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
        noted.setdefault(page.name, {}).update(
            seconds=round(spent, 1), peak_memory_mb=round(peak), device=describe_device(False)
        )
        _keep(root, noted)


def _keep(root: Path, noted: dict[str, dict[str, Any]]) -> None:
    there = {p.name for p in notebooks(root)}
    kept = {name: noted[name] for name in sorted(noted) if name in there}
    write_atomic(root / PAGES, json.dumps(kept, indent=1, sort_keys=True) + "\n")


# --- fragments of the pages -------------------------------------------------------------------------------


def fragments(root: Path, ledger: Ledger, stale: Container[str]) -> dict[str, str]:
    """The generated parts of the pages on cost and on records; `stale` has the names of stale pages."""
    return {
        "cost_answer": answer(ledger),
        "cost_pages": pages_table(root, ledger, stale),
        "cost_runs": runs_table(ledger),
        "cost_budgets": budgets(ledger),
        "records": records_table(ledger),
    }


def plain(text: str) -> str:
    """Text of a record as the cell of a Markdown table: neither markup nor the end of the cell."""
    return re.sub(r"[`|*\[\]\n]", lambda sign: f"&#{ord(sign[0])};", html.escape(text))


def title(page: Path) -> str:
    """The first heading of a notebook, as its readers know it."""
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    head = next((c for c in cells if c["cell_type"] == "markdown" and "".join(c["source"]).startswith("# ")), None)
    return "".join(head["source"]).splitlines()[0][2:].strip() if head else page.stem


def pages_table(root: Path, ledger: Ledger, stale: Container[str]) -> str:
    """Each page: what executing it takes, and what the runs that it shows took."""
    lines = ["| Page | Executing it | Peak memory | Its runs | Peak memory of a run |", "|---|--:|--:|--:|--:|"]
    noted = notes(root)
    for page in notebooks(root):
        own = noted.get(page.name, {})
        found = [ledger.records[k] for k in named(page, own.get("records", ())) if k in ledger.records]
        found = found if in_load_mode(page) else []
        took = (duration(own["seconds"]), f"{own['peak_memory_mb']} MB") if "seconds" in own else ("not measured", "-")
        if found:
            runs = f"{len(found)} runs, {duration(seconds(found))}"
        elif in_load_mode(page):
            runs = "none"
        else:
            runs = "named on the page" if finds_records(page) else "computed live"
        mark = " (stale)" if page.name in stale else ""
        lines.append(
            f"| {page.stem[:2]} [{title(page)}](../notebooks/{page.name}){mark} | {took[0]} | {took[1]} | {runs} | "
            f"{f'{max(r.peak_memory_mb for r in found):.0f} MB' if found else '-'} |"
        )
    return "\n".join(lines) + "\n"


def on(record: Record) -> str:
    """The machine of a record as a reader expects it: records say "1 threads"."""
    return record.device.replace("1 threads", "1 thread")


def runs_table(ledger: Ledger) -> str:
    """Each group of records: how many, how long in all and each, memory, devices."""
    lines = ["| Runs | Number | In all | A run | Peak memory | Device |", "|---|--:|--:|--:|--:|---|"]
    for folder in sorted({p.parent for p in ledger.store.root.glob("runs/*/*.json")}):
        own = [ledger.records[p.stem] for p in folder.glob("*.json") if p.stem in ledger.records]
        if own:
            each = [sum(r.price.values()) for r in own]
            spread = f"{duration(min(each))} to {duration(max(each))}"
            lines.append(
                f"| `{plain(folder.name)}` | {len(own)} | {duration(seconds(own))} | {spread} | "
                f"{max(r.peak_memory_mb for r in own):.0f} MB | {plain('; '.join(sorted({on(r) for r in own})))} |"
            )
    return "\n".join(lines) + "\n"


def plan(scale: str, ledger: Ledger, minutes: float) -> tuple[list[Job], float, int, int]:
    """What a budget buys of the grids in an empty store, in their order: jobs, seconds, of how many, cost unknown."""
    wanted, chosen, sets, spent, unknown, full = grid.jobs(GRIDS, scale), list[Job](), set[str](), 0.0, 0, False
    for job in wanted:
        price = ledger.cost(job, sets)
        unknown += price is None
        if price is not None and not full:
            full = spent + price > 60 * minutes  # what follows waits, though it might be shorter: the order is by value
            chosen += [] if full else [job]
            spent += 0.0 if full else price
            sets.add(job.set_key)
    return chosen, spent, len(wanted), unknown


def _fresh(ledger: Ledger, empty: str, device: str) -> Ledger:
    """A ledger whose prices come from the records here, but which has no run and no set yet."""
    fresh = Ledger(Store(empty), device)
    fresh.records = ledger.records
    return fresh


def answer(ledger: Ledger) -> str:
    """The head of the page on cost: what all runs took, and what an hour repeats."""
    with tempfile.TemporaryDirectory() as empty:
        fresh = _fresh(ledger, empty, "cpu")
        in_an_hour, _, of, _ = plan("laptop", fresh, 60)
        whole, spent, _, _ = plan("laptop", fresh, float("inf"))
    return (
        f"**Answer.** All {len(ledger.records):,} runs took {duration(seconds(ledger.records.values()))}. One process "
        f"repeats {len(in_an_hour)} of the {of} runs that the paper's tables and Figure 4 plan at laptop scale in an "
        f"hour, and {len(whole)} of them in {duration(spent)}.\n"
    )


def budgets(ledger: Ledger) -> str:
    """What can be reproduced in a given time, with the commands."""
    with tempfile.TemporaryDirectory() as empty:
        fresh = {device: _fresh(ledger, empty, device) for device in ("cpu", "cuda")}
        lines = []
        for title, minutes in BUDGETS:
            chosen, spent, of, unknown = plan("laptop", fresh["cpu"], minutes)
            lines.append(
                _budget(f"In {title}", f"--scale laptop --budget-minutes {minutes}", chosen, spent, of, unknown)
            )
        chosen, spent, of, unknown = plan("gpu", fresh["cuda"], float("inf"))
        lines.append(_budget("With one GPU", "--scale gpu --device cuda", chosen, spent, of, unknown))
    return "\n".join(lines)


def _budget(title: str, options: str, chosen: Sequence[Job], spent: float, of: int, unknown: int) -> str:
    arms: dict[str, int] = {}
    for job in chosen:
        arms[job.arms[0]] = arms.get(job.arms[0], 0) + 1
    said = (
        f"{len(chosen)} of {of} runs, {duration(spent)} by earlier records"
        if chosen
        else f"{of} runs, none with a known price"
    )
    said += f"; {unknown} have no record like them" if unknown and chosen else ""
    which = ", ".join(f"{n} of `{arm}`" for arm, n in arms.items()) if len(arms) < 10 else ""
    return f"""### {title}

```bash
python -m rddlib grid {" ".join(GRIDS)} \\
    {options} --store again
```

{said}{f": {which}" if which else ""}.
"""


def options(name: str, label: str, values: Iterable[tuple[str, str]]) -> str:
    """One filter of a table: its script compares the value with the rows' attribute of that name."""
    chosen = "".join(f'<option value="{html.escape(v)}">{html.escape(t)}</option>' for v, t in values)
    return f'<label>{label} <select name="{name}" data-filter><option value="">all</option>{chosen}</select></label>'


def changed_settings(record: Record) -> str:
    """The settings of a record that are not the default: 'lr_image=0.3 outer_steps=60', for the search."""
    settings = {name: value for name, value in record.experiment.items() if DEFAULTS.get(name) != value}
    return " ".join(f"{name}={value}" for name, value in sorted(settings.items()))


def record_row(record: Record, group: str, state: str) -> str:
    """One record as a row: links point to it, its attributes are what the filters ask for."""
    e, x = html.escape, DEFAULTS | record.experiment
    network = results.NAMES.get(x["eval_network"], x["eval_network"])
    data = {"dataset": explorer.dataset(x), "scale": x["scale"], "method": explorer.method(x), "term": explorer.term(x)}
    attributes = " ".join(f'data-{name}="{e(str(value))}"' for name, value in data.items())
    numbers = {"accuracy": "Accuracy (%)", "cluster_min": "Worst cluster (%)"}
    scores = {name: float(np.mean(record.metrics[name])) for name in numbers if name in record.metrics}
    cells = "".join(
        f'<td class="number" data-label="{label}" data-value="{scores[name]:.3f}">{scores[name]:.1f}</td>'
        if name in scores
        else f'<td class="number" data-label="{label}" data-value="">-</td>'
        for name, label in numbers.items()
    )
    arm = f"{explorer.dataset(x)}, {results.arm(record.experiment)}, {x['ipc']} a class"
    what = f"{arm}, seed {x['seed']}, judged by {network}"
    spent = sum(record.seconds.values())
    return (
        f'<tr id="record-{record.key}" {attributes} data-settings="{e(changed_settings(record))}">'
        f'<th scope="row"><a href="../_static/records/{record.key}.json"><code>{record.key}</code></a>'
        f'<span class="note">{e(group)}, {e(x["scale"])}</span></th><td data-label="Run">{e(what)}</td>{cells}'
        f'<td data-label="Cost" data-value="{spent:.0f}">{duration(spent)}<span class="note">'
        f"{record.peak_memory_mb:.0f} MB, {e(on(record))}</span></td>"
        f'<td data-label="Code">{state}<span class="note">{e(record.commit[:8] or "-")}</span></td></tr>'
    )


def records_table(ledger: Ledger) -> str:
    """Every record as a row that links can point to, and filters, which the script shows."""
    paths = sorted(ledger.store.root.glob("runs/*/*.json"), key=lambda p: (p.parent.name, p.stem))
    found = [(ledger.records[path.stem], path.parent.name) for path in paths if path.stem in ledger.records]
    rows = [record_row(r, group, "current" if ledger.state(r.key) == "done" else "stale") for r, group in found]
    settings = [DEFAULTS | r.experiment for r, _ in found]
    kinds = {
        "dataset": ("Data set", {explorer.dataset(x) for x in settings}),
        "scale": ("Scale", {x["scale"] for x in settings}),
        "method": ("Method", {explorer.method(x) for x in settings}),
        "term": ("Risk term", {explorer.term(x) for x in settings}),
    }
    filters = "".join(options(name, label, ((v, v) for v in sorted(own))) for name, (label, own) in kinds.items())
    numeric = ("Accuracy (%)", "Worst cluster (%)", "Cost")
    names = ("Record", "Run", *numeric, "Code")
    head = "".join(f'<th scope="col"{" data-number" if name in numeric else ""}>{name}</th>' for name in names)
    body = "\n".join(rows)
    return f"""```{{raw}} html
<link rel="stylesheet" href="../_static/verdicts.css">
<form id="record-filters" class="filters" hidden aria-label="Filters">
<label class="words">Search, also in the settings <input type="search" name="words" placeholder="lr_image=0.3 seed 2">
</label>{filters}<label class="order">Order <select name="order"><option value="">as they lie</option></select></label>
<button type="reset">show all</button></form>
<p id="record-count" role="status">{len(rows)} records.</p>
<div class="verdict-table"><table id="record-table"><thead><tr>{head}</tr></thead><tbody>
{body}
</tbody></table></div>
<script src="../_static/records.js"></script>
```
"""


# --- command line -----------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if no page is stale."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", type=Path, help="notebooks (default all)")
    parser.add_argument("--note", action="store_true", help="these pages have just been executed: note their records")
    parser.add_argument("--time", action="store_true", help="execute these pages once and note what that takes")
    chosen = parser.parse_args(arguments)
    root = repository_root()
    pages, store = [p.resolve() for p in chosen.pages] or notebooks(root), Store(root / "data")
    if absent := [p for p in pages if p not in notebooks(root)]:
        raise SettingError("pages", str(absent[0]), "notebooks of the book")
    if chosen.time:
        take_time(root, pages)
    if chosen.note:
        note(root, pages, store)
    found = stale_pages(root, Ledger(store))
    for page, why in found.items():
        print(f"stale: notebooks/{page}: {'; '.join(why)}")
    return 1 if found else 0


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
