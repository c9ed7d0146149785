"""Pages 44 and 50 to 52, run on made-up records: what they say follows the numbers, and without records they say so."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
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


def run_page(name: str) -> dict[str, str]:
    """The text that each code cell prints; figures are drawn and thrown away."""
    cells = json.loads((ROOT / f"notebooks/{name}.ipynb").read_text())["cells"]
    space: dict[str, object] = {}
    said = {}
    for cell in (c for c in cells if c["cell_type"] == "code"):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile("".join(cell["source"]), cell["id"], "exec"), space)
        plt.close("all")
        said[cell["id"]] = " ".join(out.getvalue().split())
    return said


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
def test_without_records_a_page_says_not_run(name: str, store: Store) -> None:
    said = run_page(name)
    conclusion = next(text for cell, text in said.items() if cell.endswith("-conclusion"))
    assert "ot run yet" in conclusion and not any(word in conclusion for word in ("points", "holds", "helps"))


def test_causes_find_the_variant_that_helps_and_the_length_of_the_step(store: Store) -> None:
    def gain(e: Experiment) -> float:
        longer = -2.0 if e.risk != "control" and e.where == "network" and e.lr_net == causes.RATE else 0.0
        longer = -2.0 if e.risk == "control" and e.lr_net > causes.RATE else longer
        return longer + (3.0 if e.risk == "upper" and e.where == "matching" and e.net_data is None else 0.0)

    fill(store, ["causes"], "laptop", gain)
    said = run_page("50_causes")
    assert "'real, upper, matching' raises the worst cluster most" in said["cell-19-conclusion"]
    assert "above control in 4 of 4 held-out tests" in said["cell-19-conclusion"]
    assert "a longer step alone by -2" in said["cell-14-ladder-words"]
    assert "upper tail adds to the same loss without a tail: +0" in said["cell-14-ladder-words"] or (
        "upper tail adds to the same loss without a tail: -0" in said["cell-14-ladder-words"]
    )
    assert "matching - network" in said["cell-10-factorial-words"]


def test_causes_say_plainly_when_nothing_helps(store: Store) -> None:
    fill(store, ["causes"], "laptop", lambda e: -1.5 if e.risk != "control" else 0.0)
    said = run_page("50_causes")
    assert "None helps the worst group" in said["cell-19-conclusion"]
    assert "a term - none -1" in said["cell-10-factorial-words"]


def test_audit_and_multiverse_follow_the_numbers(store: Store) -> None:
    fill(store, ["audit", "multiverse"], "laptop", lambda e: 3.0 if e.risk != "control" else 0.0)
    fill(store, ["multiverse"], "smoke", lambda e: 3.0 if e.risk != "control" else 0.0)
    said = run_page("51_selection_audit")["cell-12-conclusion"]
    assert said.startswith("Reading a training at its best step on test adds +1.") and "in 0 of 3 comparisons" in said
    said = run_page("52_multiverse")["cell-12-conclusion"]
    assert "100 % of 192 [74, 100]" in said and "holds in more than half of them, beyond chance" in said


def test_power_reads_the_spread_of_its_records(store: Store) -> None:
    fill(store, ["table2"], "laptop", lambda e: 0.0)
    said = run_page("44_power")
    assert "9 of 9 runs of the pilot are here" in said["cell-03-setup"]
    needed = said["cell-14-conclusion"].split("in accuracy needs ")[1].split()[0]
    assert 2 <= int(needed) <= 12 and np.isfinite(float(needed))
