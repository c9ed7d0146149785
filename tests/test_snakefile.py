"""The graph of grids, notebooks and book: what it asks for, what it does again, what it sends to a cluster.

Everything but the first tests needs Snakemake (extra `grid`), on the PATH or named by $SNAKEMAKE; the commands that the
graph calls are played by a short script, so no run and no notebook is computed here.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import yaml

from rddlib import cli
from rddlib.experiments import grid
from rddlib.experiments.presets import SCALES

ROOT = Path(__file__).resolve().parent.parent
SNAKEMAKE = shutil.which(os.environ.get("SNAKEMAKE") or "snakemake")
SNAKEFILE, PROFILE = ROOT / "Snakefile", ROOT / "profiles" / "slurm" / "config.yaml"
needs_snakemake = pytest.mark.skipif(
    SNAKEMAKE is None, reason="no snakemake on the PATH and none named by $SNAKEMAKE: pip install 'rddlib[grid]'"
)


# --- without Snakemake ------------------------------------------------------------------------------------


def test_the_commands_of_the_graph_are_those_of_the_library() -> None:
    text = SNAKEFILE.read_text()
    command = re.search(r"-m rddlib (grid \{wildcards\.grid\}[^\"]*)\"", text)
    assert command is not None
    filled = (command[1].replace("{wildcards.grid}", "table1").replace("{SCALE}", "laptop").replace("{DEVICE}", "cuda")
              .replace("{MINUTES}", "--budget-minutes 50"))  # fmt: skip
    _, given, _ = cli.application().parse_args(shlex.split(filled))
    assert given.args == ("table1",)
    assert given.kwargs == {"scale": "laptop", "device": "cuda", "budget_minutes": 50}
    scales = re.search(r"^SCALES = (\(.*\))$", text, re.M)
    assert scales is not None and tuple(re.findall(r'"(\w+)"', scales[1])) == SCALES
    assert "--executed" in text and '"--executed"' in (ROOT / "book" / "build.py").read_text()


def test_the_profile_names_rules_of_the_graph() -> None:
    profile = yaml.safe_load(PROFILE.read_text())
    rules = set(re.findall(r"^rule (\w+):", SNAKEFILE.read_text(), re.M))
    assert rules == {"all", "grid", "records", "notebook", "book"}
    assert set(profile["set-resources"]) <= rules and profile["executor"] == "slurm" and profile["keep-going"] is True
    for path in (SNAKEFILE, PROFILE):
        assert not re.search(r"(?<![\w.{}])/(home|root|opt|usr|tmp|work)\b|https?://", path.read_text())


# --- with it ----------------------------------------------------------------------------------------------

# Stands for the Python that has rddlib: notes each call, makes what the call would make, fails where told to.
FAKE = """#!/bin/sh
echo "$@" >> calls.txt
case "$*" in
  *"-m rddlib grid"*) mkdir -p data/runs/g; [ -e data/runs/g/$4.json ] || echo 1 > data/runs/g/$4.json
                      [ ! -e fail.$4 ] || { echo "no such luck"; exit 1; } ;;
  *papermill*) for last; do :; done; cp notebooks/$(basename "$last") "$last" ;;
esac
"""

SOURCES = {
    "00_quickstart": ("mode = 'live'", ""),
    "01_theory": ("seed = 0", 'Page.of("a")  # no mode: reads nothing'),
    "30_any": ("mode = 'load'", "Store().records()"),
    "31_a": ("mode = 'load'", 'Page.of("a", scale)'),
    "40_b": ("mode = 'load'", 'Page.of("b", scale); coverage.file(dataset, scale)'),
}
ALL = Counter(["a", "b", "01_theory", "30_any", "31_a", "40_b", "book"])
BESIDE = ("data/claims.csv", "data/pages.json", "data/coverage/x_laptop.json")


def repository(folder: Path) -> Path:
    """A small repository with two grids, and pages that read no record, any, those of grid a, and b with coverage."""
    for name in ("data/grids", "data/coverage", "rddlib", "notebooks", "book", "profiles"):
        (folder / name).mkdir(parents=True)
    shutil.copy(SNAKEFILE, folder)
    for name in ("data/grids/a.toml", "data/grids/b.toml", "rddlib/risk.py", "book/build.py", "book/index.md", *BESIDE):
        (folder / name).write_text(name)
    for name, (source, body) in SOURCES.items():
        cells = [{"cell_type": "code", "metadata": {"tags": tags}, "source": [text], "outputs": []}
                 for tags, text in ((["parameters"], source), ([], body))]  # fmt: skip
        (folder / f"notebooks/{name}.ipynb").write_text(json.dumps({"cells": cells}))
    (folder / "python").write_text(FAKE)
    (folder / "python").chmod(0o755)
    return folder


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A repository in which nothing has been run."""
    return repository(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which everything has been run once."""
    folder = repository(tmp_path_factory.mktemp("whole"))
    snake(folder)
    assert calls(folder) == ALL
    return folder


def snake(folder: Path, *options: str, config: str = "", status: int = 0) -> str:
    """Run Snakemake; what it said. `status` is what it must end with."""
    quiet = {k: v for k, v in os.environ.items() if k not in ("RDD_STORE", "SNAKEMAKE_PROFILE")}
    done = subprocess.run(
        [str(SNAKEMAKE), "--cores", "2", *options, "--config", "python=./python", *config.split()],
        cwd=folder, env=quiet | {"XDG_CACHE_HOME": str(folder / "cache")}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == status, said
    return said


def calls(folder: Path) -> Counter[str]:
    """What was called since the last look."""
    file = folder / "calls.txt"
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    words = {"rddlib grid": lambda line: line.split()[3], "papermill": lambda line: Path(line.split()[-1]).stem}
    return Counter(next((tell(line) for word, tell in words.items() if word in line), "book") for line in lines)


@needs_snakemake
def test_the_graph_runs_once_and_again_only_what_changed(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, toy := tmp_path / "copy")
    assert "Nothing to be done" in snake(toy) and calls(toy) == Counter()
    (toy / "data/runs/g/merged.json").write_text("2")  # a record from elsewhere: what reads records, and the book
    snake(toy)
    assert calls(toy) == Counter(["30_any", "31_a", "40_b", "book"])
    (toy / "rddlib/risk.py").write_text("changed")  # library files are inputs of all
    snake(toy)
    assert calls(toy) == ALL and "Nothing to be done" in snake(toy)


@needs_snakemake
@pytest.mark.parametrize(("changed", "again"), [
    ("data/grids/a.toml", ["a", "30_any", "31_a", "book"]),  # not b, nor the page of b
    ("data/coverage/x_laptop.json", ["40_b", "book"]),
    ("data/coverage/new_laptop.json", ["40_b", "book"]),
    ("data/claims.csv", ["book"]), ("data/pages.json", ["book"]), ("book/index.md", ["book"]),
])  # fmt: skip
def test_what_lies_beside_the_code_has_its_readers_run_again(
    whole: Path, tmp_path: Path, changed: str, again: list[str]
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    (folder / changed).write_text("changed")
    snake(folder)
    assert calls(folder) == Counter(again)


@needs_snakemake
def test_a_failing_grid_is_told_and_the_others_go_on(toy: Path) -> None:
    (toy / "fail.a").touch()
    said = snake(toy, "--keep-going", status=1)
    assert calls(toy) == Counter(["a", "b", "01_theory", "40_b"]) and "no such luck" in said
    (toy / "fail.a").unlink()
    snake(toy)
    assert calls(toy) == Counter(["a", "30_any", "31_a", "book"])


@needs_snakemake
def test_options_choose_grids_pages_scale_and_calls(toy: Path) -> None:
    snake(toy, config="grids=b notebooks=none calls=2 scale=smoke minutes=5 device=cuda")
    made = (toy / "calls.txt").read_text().splitlines()
    assert made == ["-m rddlib grid b --scale smoke --device cuda --budget-minutes 5"] * 2
    calls(toy)
    snake(toy, config="grids=none notebooks=30_any scale=smoke")
    assert "-p mode run" in (toy / "calls.txt").read_text() and calls(toy) == Counter(["30_any", "book"])
    assert "grids = 'c': allowed is none, or some of a, b" in snake(toy, config="grids=c", status=1)
    assert "scale = 'huge'" in snake(toy, config="scale=huge", status=1)


@needs_snakemake
def test_the_cluster_is_planned_by_a_dry_run(toy: Path) -> None:
    shutil.copytree(PROFILE.parent, toy / "profiles" / "slurm")
    said = snake(toy, "--workflow-profile", "profiles/slurm", "--dry-run", config="scale=gpu device=cuda calls=3")
    assert re.search(r"^grid +6$", said, re.M) and calls(toy) == Counter()
    assert "runtime=600" in said and "gpu=1" in said and "mem_mb=8000" in said


@needs_snakemake
def test_the_graph_of_the_book_can_be_planned() -> None:
    done = subprocess.run(
        [str(SNAKEMAKE), "--cores", "2", "--dry-run", "--quiet", "rules", "--config", "scale=laptop"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert re.search(rf"^grid +{len(grid.names())}$", said, re.M) or "Nothing to be done" in said
