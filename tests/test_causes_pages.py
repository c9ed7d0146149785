"""Pages 44 and 50 to 52, run on made-up records: what they show follows the numbers; without records they say so."""

from __future__ import annotations

import ast
import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
from conftest import unmade

from rddlib.analysis import causes
from rddlib.base import numpy_generator
from rddlib.data import shifts
from rddlib.experiments import grid
from rddlib.experiments.experiment import Experiment
from rddlib.experiments.records import Store

mpl.use("Agg")
pytestmark = pytest.mark.filterwarnings("ignore:.*non-interactive.*")

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("44_power", "50_causes", "51_selection_audit", "52_multiverse")
Gain = Callable[[Experiment], float]


def run_page(name: str) -> tuple[dict[str, str], dict[str, Any]]:
    """What each code cell prints, and the value that it shows; figures are drawn and thrown away."""
    cells = json.loads((ROOT / f"notebooks/{name}.ipynb").read_text())["cells"]
    space: dict[str, object] = {}
    said, shown = {}, {}
    for cell in (c for c in cells if c["cell_type"] == "code"):
        tree = ast.parse("".join(cell["source"]), cell["id"])
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(tree, cell["id"], "exec"), space)
            if last is not None:
                shown[cell["id"]] = eval(compile(ast.Expression(last.value), cell["id"], "eval"), space)
        plt.close("all")
        said[cell["id"]] = " ".join(out.getvalue().split())
    return said, shown


def fill(store: Store, grids: list[str], scale: str, gain: Gain) -> None:
    for e in (job.experiment for job in grid.jobs(grids, scale)):
        rng, level = numpy_generator(0, e.key), 45 + numpy_generator(0, str(e.seed)).standard_normal() + gain(e)
        levels = level + 0.2 * rng.standard_normal() + 0.3 * rng.standard_normal(e.eval_seeds)
        names = ["accuracy", "cluster_min", "noise", "blur", "invert", *(causes.HELD_OUT if e.eval_corruptions else ())]
        names += [f"{kind}_3" for kind in shifts.CORRUPTIONS] if e.eval_corruptions else []
        metrics: dict[str, object] = {n: (levels + 0.1 * rng.standard_normal(len(levels))).tolist() for n in names}
        if e.eval_audit:
            test = levels[:, None] + rng.standard_normal((len(levels), 10))
            metrics |= {
                "audit_last": test[:, -1].tolist(),
                "audit_chosen": test[:, 3].tolist(),
                "audit_test": test.tolist(),
            }
            metrics |= {"audit_best": test.max(1).tolist(), "audit_steps": list(range(100, 1001, 100))}
        price = {"distill": 100.0, "evaluate": 100.0}
        record = unmade(
            e, metrics | {"group_sizes": [1000] * 10}, seconds=price, cpu_seconds=price, device="cpu, 1 threads",
            versions={"torch": "2"}, set_key=e.set_key,
        )  # fmt: skip
        store.add(record, f"{e.dataset}_{scale}")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("RDD_STORE", str(tmp_path))
    return Store(tmp_path)


@pytest.mark.parametrize("name", PAGES)
def test_without_records_a_page_says_not_run_and_its_prose_is_not_checked(name: str, store: Store) -> None:
    said, shown = run_page(name)
    conclusion = next(text for cell, text in said.items() if cell.endswith("-conclusion"))
    assert conclusion.startswith(("Not run yet", "Not checked"))
    assert "[" not in conclusion and any("not run yet" in str(x) for x in (*said.values(), *shown.values()))


def test_causes_find_the_variant_that_helps_and_the_length_of_the_step(store: Store) -> None:
    def gain(e: Experiment) -> float:
        longer = -2.0 if e.risk != "control" and e.where == "network" and e.lr_net == causes.RATE else 0.0
        longer = -2.0 if e.risk == "control" and e.lr_net > causes.RATE else longer
        return longer + (3.0 if e.risk == "upper" and e.where == "matching" and e.net_data is None else 0.0)

    fill(store, ["causes"], "laptop", gain)
    said, shown = run_page("50_causes")
    best = shown["cell-16-best"].iloc[0]
    assert best.name == "real, upper, matching" and best["stands"] == "yes"
    held_out = shown["cell-17-held-out"]["real, upper, matching - control"]
    assert len(held_out) == 4 and all(float(text.split("[")[1].split(",")[0]) > 0 for text in held_out)
    ladder = shown["cell-12-ladder"]["accuracy"]
    assert ladder["+ a step three times as long"].startswith("-2")
    assert ladder["+ the upper tail"].startswith(("+0", "-0"))
    assert shown["cell-08-factorial"].loc["matching - network", "accuracy: stands"] == "yes"
    assert said["cell-19-conclusion"].startswith("Not checked")


def test_causes_say_plainly_when_nothing_helps(store: Store) -> None:
    fill(store, ["causes"], "laptop", lambda e: -1.5 if e.risk != "control" else 0.0)
    _, shown = run_page("50_causes")
    gains = shown["cell-16-best"]
    assert all(row["stands"] == "no" for _, row in gains.iterrows() if row.iloc[0].startswith("+"))
    assert shown["cell-08-factorial"].loc["a term - none", "accuracy"].startswith("-1")


def test_audit_and_multiverse_follow_the_numbers(store: Store) -> None:
    fill(store, ["audit", "multiverse"], "laptop", lambda e: 3.0 if e.risk != "control" else 0.0)
    fill(store, ["multiverse"], "smoke", lambda e: 3.0 if e.risk != "control" else 0.0)
    _, shown = run_page("51_selection_audit")
    assert shown["cell-05-readings"]["best - last"].str.startswith("+1.").all()
    assert (
        shown["cell-08-comparisons"]
        .loc["upper tail - control, 10 images a class", "last, last"]
        .startswith(("+2", "+3"))
    )
    _, shown = run_page("52_multiverse")
    assert shown["cell-05-share"].loc[("digits", "accuracy"), "share above 0"] == "100 % of 192 [74, 100]"


def test_power_reads_the_spread_of_its_records(store: Store) -> None:
    fill(store, ["table2"], "cpu", lambda e: 0.0)
    said, shown = run_page("44_power")
    assert "30 of 30 runs of the pilot are here" in said["cell-03-setup"]
    needed = shown["cell-07-needed"].loc["accuracy", "seeds for a gain of 1"].split()[0]
    assert 2 <= int(needed) <= 12
