"""The explorer of all runs: the numbers that its page draws, and a picture of every distilled set that is kept.

Called by book/verdicts.py. The drawing itself is book/_static/explorer.js.
"""

from __future__ import annotations

import dataclasses
import html
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rddlib.analysis import report, results
from rddlib.distillation import synthetic
from rddlib.distillation.settings import DISTILLED
from rddlib.distillation.synthetic import SyntheticSet
from rddlib.experiments.experiment import Experiment
from rddlib.experiments.records import Record, Store

DEFAULTS = dataclasses.asdict(Experiment())
NOT_DISTILLED = "not distilled"
COLUMNS, ROWS = 10, 5  # classes and images of each that a picture shows
FIRST_SEEN = {"x": "lr_image", "y": "accuracy", "dataset": results.NAMES["cifar10"]}


@dataclass(frozen=True)
class Measure:
    """A number of a run that can be an axis. `log`: it spans powers of ten; `kind`: its group in the lists."""

    name: str
    label: str
    kind: str
    log: bool = False


MEASURES = (
    Measure("accuracy", "accuracy (%)", "Tests"),
    Measure("cluster_min", "worst cluster (%)", "Tests"),
    Measure("class_min", "worst class (%)", "Tests"),
    Measure("known_min", "worst known group (%)", "Tests"),
    Measure("noise", "accuracy under noise (%)", "Tests"),
    Measure("blur", "accuracy under blur (%)", "Tests"),
    Measure("invert", "accuracy inverted (%)", "Tests"),
    Measure("minutes", "core minutes", "Price", log=True),
    Measure("probe", "accuracy of the loop's network (%)", "Mechanism"),
    Measure("ratio", "gradient of the term / of the mean loss", "Mechanism", log=True),
    Measure("ipc", "stored images a class", "Settings", log=True),
    Measure("lr_image", "image rate", "Settings", log=True),
    Measure("image_steps", "image steps", "Settings", log=True),
    Measure("net_steps", "network updates an image step", "Settings"),
    Measure("alpha", "tail mass alpha", "Settings"),
    Measure("width", "width of the loop's network", "Settings", log=True),
    Measure("seed", "distillation seed", "Settings"),
)


def term(settings: dict[str, Any]) -> str:
    """The risk term of a run in words; real images have none."""
    risk = settings["risk"]
    return results.RISKS.get(risk, risk) if settings["method"] in DISTILLED else NOT_DISTILLED


def dataset(settings: dict[str, Any]) -> str:
    """The data set of a run in words."""
    return results.NAMES.get(settings["dataset"], settings["dataset"])


def method(settings: dict[str, Any]) -> str:
    """The method of a run in words."""
    name = settings["method"]
    return results.METHODS.get(name) or results.ARM_NAMES.get(name, name)


def core_minutes(record: Record) -> float:
    """Processor minutes of a run, the clock's where they are fewer."""
    return sum(record.price.values()) / 60


def values(record: Record) -> dict[str, float | None]:
    """Every measure of a run; None where the run has no such number."""
    settings, last = DEFAULTS | record.experiment, (record.history or [{}])[-1]
    found: dict[str, float | None] = {"minutes": core_minutes(record), "seed": settings["seed"]}
    for name in ("accuracy", "cluster_min", "class_min", "known_min", "noise", "blur", "invert"):
        if record.metrics.get(name):
            found[name] = float(np.mean(record.metrics[name]))
    found["ipc"] = settings["ipc"] if settings["method"] != "full" else None
    if settings["method"] in DISTILLED:
        found |= {name: settings[name] for name in ("lr_image", "net_steps", "width")}
        found["image_steps"] = settings["outer_steps"] * settings["inner_steps"]
        found["probe"] = 100 * last["probe_last"] if "probe_last" in last else None
        if settings["risk"] != "control":
            found["alpha"], found["ratio"] = settings["alpha"], last.get("gradient_ratio_last")
    return {m.name: rounded(found.get(m.name)) for m in MEASURES}


def rounded(value: float | None) -> float | None:
    """Four digits, enough for a point; None for what is no finite number."""
    return float(f"{value:.4g}") if value is not None and math.isfinite(value) else None


def data(records: Iterable[Record], pictured: Iterable[str]) -> str:
    """What the script reads, as JSON that may stand in a page: measures, and one list a run."""
    kept = set(pictured)
    runs = []
    for record in records:
        settings, own = DEFAULTS | record.experiment, values(record)
        picture = record.set_key if record.set_key in kept else ""
        named = [dataset(settings), method(settings), term(settings)]
        about = [results.arm(settings), settings["eval_part"]]
        runs.append([record.key, picture, *named, *about, [own[m.name] for m in MEASURES]])
    fields = ("key", "picture", "dataset", "method", "term", "arm", "part", "values")
    content = {"fields": fields, "measures": [dataclasses.asdict(m) for m in MEASURES], "runs": runs}
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


# --- pictures ---------------------------------------------------------------------------------------------


def picture(made: SyntheticSet) -> Image.Image:
    """The first stored images of the first classes, one column a class, pixel for pixel."""
    by_class = made.images.reshape(-1, made.ipc, *made.images.shape[-3:])  # (classes, ipc, C, H, W)
    shown = by_class[:COLUMNS, :ROWS].transpose(0, 1)  # (rows, columns, C, H, W)
    sheet = report.sheet(shown.flatten(0, 1), shown.shape[1])
    return Image.fromarray((sheet * 255).round().clip(0, 255).astype(np.uint8))


def pictures(records: Iterable[Record], store: Store, into: Path) -> list[str]:
    """Write a picture of each set that is kept, some kilobytes each; returns their keys."""
    into.mkdir(parents=True, exist_ok=True)
    keys = sorted({r.set_key for r in records if r.set_key and store.distilled(r.set_key).is_file()})
    for key in keys:
        sheet = picture(synthetic.read(store.distilled(key)))
        sheet.save(into / f"{key}.webp", lossless=sheet.mode == "L", quality=75, method=4)
    return keys


# --- the page ---------------------------------------------------------------------------------------------


def axis(name: str, words: str) -> str:
    """The list from which an axis is chosen, by kinds of measures."""
    parts = []
    for kind in dict.fromkeys(m.kind for m in MEASURES):
        own = ""
        for measure in (m for m in MEASURES if m.kind == kind):
            first = " selected" if measure.name == FIRST_SEEN[name] else ""
            own += f'<option value="{measure.name}"{first}>{html.escape(measure.label)}</option>'
        parts.append(f'<optgroup label="{kind}">{own}</optgroup>')
    return f'<label>{words} <select name="{name}">{"".join(parts)}</select></label>'


def choice(name: str, words: str, found: Iterable[str]) -> str:
    """A list that keeps the runs of one kind."""
    items = "".join(
        f"<option{' selected' if v == FIRST_SEEN.get(name) else ''}>{html.escape(v)}</option>"
        for v in sorted(set(found))
    )
    return f'<label>{words} <select name="{name}"><option value="">all</option>{items}</select></label>'


def fragment(records: Sequence[Record], store: Store, into: Path) -> str:
    """The part of the page that is made: lists, an empty drawing, the numbers. Pictures go to `into`/sets."""
    pictured = pictures(records, store, into / "sets")
    settings = [DEFAULTS | r.experiment for r in records]
    lists = [
        axis("x", "Across"),
        axis("y", "Up"),
        choice("dataset", "Data set", (dataset(s) for s in settings)),
        choice("method", "Method", (method(s) for s in settings)),
    ]
    return f"""```{{raw}} html
<link rel="stylesheet" href="../_static/verdicts.css">
<link rel="stylesheet" href="../_static/explorer.css">
<form id="explorer-form" class="filters" hidden aria-label="What is drawn">{"".join(lists)}</form>
<p id="explorer-count" role="status">The drawing needs JavaScript. Without it, every run stands in
<a href="records.html">the table of records</a>.</p>
<div id="explorer" hidden>
<ul id="explorer-legend"></ul>
<svg id="explorer-plot" role="group" aria-label="All runs as points"></svg>
<div id="explorer-detail" aria-live="polite"><p>Choose a point: click it, or press Tab until the drawing has the
focus and go on with the arrow keys.</p></div>
</div>
<script type="application/json" id="explorer-data">{data(records, pictured)}</script>
<script src="../_static/explorer.js"></script>
```
"""
