"""Notebooks run with other parameters, from any folder; a broken loop fails the quickstart's checks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rddlib.analysis import report
from rddlib.base import SettingError
from rddlib.distillation.loop import Loop
from rddlib.experiments.experiment import Experiment, run
from rddlib.experiments.records import Store

ROOT = Path(__file__).resolve().parent.parent
QUICK = "notebooks/00_quickstart.ipynb"


def papermill(notebook: str, out: Path, cwd: Path, **parameters: object) -> list[dict]:
    options = [text for k, v in parameters.items() for text in ("-p", k, str(v))]
    quiet = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"} | {
        "OMP_NUM_THREADS": "1",
        "RDD_STORE": str(out.parent / "store"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "papermill", str(ROOT / notebook), str(out), "--no-progress-bar", *options],
        cwd=cwd, env=quiet, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())["cells"]


def text_of(cells: list[dict], identity: str) -> str:
    (cell,) = [c for c in cells if c.get("id") == identity]
    return "".join("".join(o.get("text", o.get("data", {}).get("text/plain", ""))) for o in cell["outputs"])


def test_quickstart_takes_every_parameter(tmp_path: Path) -> None:
    """Other risk, alpha, ipc and seeds, kept in a store; run from a folder that is not the repository."""
    chosen = {"risk": "lower", "alpha": 0.5, "ipc": 2, "seeds": 2, "scale": "smoke", "mode": "run", "dataset": "digits"}
    cells = papermill(QUICK, tmp_path / "out.ipynb", tmp_path, **chosen)
    assert "IDC, lower tail - IDC, control" in text_of(cells, "cell-11-verdict")
    assert "nothing to compare with" in text_of(cells, "cell-13-check")
    records = Store(tmp_path / "store").records()
    assert len(records) == 8 and {r.experiment["ipc"] for r in records if r.experiment["method"] != "full"} == {2}
    assert {r.experiment["alpha"] for r in records if r.experiment["risk"] == "lower"} == {0.5}
    before = {r.key: r for r in records}
    papermill(QUICK, tmp_path / "again.ipynb", tmp_path, **(chosen | {"mode": "load"}))
    assert {r.key: r for r in Store(tmp_path / "store").records()} == before


def test_quickstart_takes_data_of_the_readers_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    parts: dict[str, np.ndarray] = {"classes": np.array(["dark", "light"])}
    for part in ("train", "test"):
        labels = np.arange(24) % 2
        level = rng.integers(0, 100, (24, 8, 8, 1)) + 150 * labels[:, None, None, None]
        parts |= {f"{part}_images": level.astype(np.uint8), f"{part}_labels": labels}
    np.savez(tmp_path / "own.npz", **parts)
    cells = papermill(QUICK, tmp_path / "out.ipynb", tmp_path, dataset=f"npz:{tmp_path / 'own.npz'}", seeds=2)
    assert "nothing to compare with" in text_of(cells, "cell-13-check")


@pytest.mark.realdata
def test_the_loop_runs_on_real_cifar10(real_data: Path, tmp_path: Path) -> None:
    """The loader, the page and the loop meet on real images; short, so that it fits in a test."""
    small = {
        "dataset": "cifar10",
        "train_limit": 1000,
        "test_limit": 500,
        "outer_steps": 1,
        "inner_steps": 2,
        "eval_steps": 20,
        "eval_seeds": 1,
        "width": 8,
        "eval_width": 8,
    }
    record = run(Experiment.preset("laptop", **small, risk="upper"), Store(tmp_path), data_root=real_data)
    assert len(record.metrics["accuracy"]) == 1 and record.metrics["accuracy"][0] > 10


def one_accuracy(folder: Path, **changes: object) -> float:
    """Mean over two seeds, as the quickstart takes it over five."""
    runs = [Experiment.preset("smoke", dataset="digits", ipc=1, eval_shifts=False, seed=s, **changes) for s in (0, 1)]
    found = [value for e in runs for value in run(e, Store(folder)).metrics["accuracy"]]
    return sum(found) / len(found)


def test_a_broken_loop_falls_outside_the_tolerances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quickstart holds "IDC, control" within bounds: the sound loop is inside, three broken ones are not."""
    source = "".join(
        next(c for c in json.loads((ROOT / QUICK).read_text())["cells"] if c["id"] == "cell-13-check")["source"]
    )
    expected, tolerance = (float(x) for x in source.split('"IDC, control": (')[1].split(")")[0].split(","))

    def check(value: float) -> str:
        return report.within("IDC, control", value, expected, tolerance)

    check(one_accuracy(tmp_path / "sound"))
    with pytest.raises(AssertionError):  # images never move
        check(one_accuracy(tmp_path / "still", lr_image=0.0))
    with pytest.raises(AssertionError):  # far too large a rate
        check(one_accuracy(tmp_path / "wild", lr_image=1.0))
    gradient = Loop.matching_gradient

    def uphill(loop: Loop, *given: Any) -> Any:
        gap, codes = gradient(loop, *given)
        return gap, {name: -code for name, code in codes.items()}  # the gradient's sign turned round

    monkeypatch.setattr(Loop, "matching_gradient", uphill)
    with pytest.raises(AssertionError):
        check(one_accuracy(tmp_path / "uphill"))


def test_unknown_parameters_stop_the_page_with_their_name() -> None:
    with pytest.raises(SettingError, match="risk = 'highest'"):
        Experiment.preset("smoke", risk="highest")
