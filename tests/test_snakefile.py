"""The graph of grids, notebooks and book: what it asks for, what it does again, what it sends to a cluster.

Everything but the first tests needs Snakemake (extra `grid`), on the PATH or named by $SNAKEMAKE; the commands that the
graph calls are played by a short script, but for one small grid whose runs are made for good.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from rddlib import cli, commands
from rddlib.experiments import grid
from rddlib.experiments.presets import SCALES
from rddlib.experiments.records import Store

ROOT = Path(__file__).resolve().parent.parent
SNAKEMAKE = shutil.which(os.environ.get("SNAKEMAKE") or "snakemake")
SNAKEFILE, PROFILE = ROOT / "Snakefile", ROOT / "profiles" / "slurm" / "config.yaml"
needs_snakemake = pytest.mark.skipif(
    SNAKEMAKE is None, reason="no snakemake on the PATH and none named by $SNAKEMAKE: pip install 'rddlib[grid]'"
)


# --- without Snakemake ------------------------------------------------------------------------------------


def test_the_commands_of_the_graph_are_those_of_the_library() -> None:
    text = SNAKEFILE.read_text()
    command = re.search(r"-m rddlib (grid \{params\.grid\}[^\"]*)\"\s+\"([^\"]*)\"", text)
    assert command is not None
    names = {"params.grid": "table1", "SCALE": "laptop", "wildcards.key": "0123", "STORE": "data", "DEVICE": "cuda",
             "MINUTES": "--budget-minutes 50"}  # fmt: skip
    filled = re.sub(r"\{([\w.]+)\}", lambda match: names[match[1]], command[1] + command[2])
    _, given, _ = cli.application().parse_args(shlex.split(filled))
    assert given.args == ("table1",)
    place = commands.Place(device="cuda", store="data")
    assert given.kwargs == {"scale": "laptop", "only": "0123", "at": place, "budget_minutes": 50}
    scales = re.search(r"^SCALES = (\(.*\))$", text, re.M)
    assert scales is not None and tuple(re.findall(r'"(\w+)"', scales[1])) == SCALES
    assert "--executed" in text and '"--executed"' in (ROOT / "book" / "build.py").read_text()


def test_the_profile_names_rules_of_the_graph() -> None:
    profile = yaml.safe_load(PROFILE.read_text())
    rules = set(re.findall(r"^rule (\w+):", SNAKEFILE.read_text(), re.M))
    assert rules == {"all", "run", "records", "notebook", "book"}
    assert set(profile["set-resources"]) <= rules and profile["executor"] == "slurm" and profile["keep-going"] is True
    for path in (SNAKEFILE, PROFILE):
        assert not re.search(r"(?<![\w.{}])/(home|root|opt|usr|tmp|work)\b|https?://", path.read_text())


# --- with it ----------------------------------------------------------------------------------------------

# Stands for the Python that has rddlib: says which runs there are, notes each other call, makes what it would make, and
# fails where told to.
FAKE = """#!/bin/sh
case "$*" in *--json*) cat runs.json; exit ;; esac
echo "$@" >> calls.txt
case "$*" in
  *"-m rddlib grid"*) [ ! -e fail.$8 ] || { echo "no such luck"; exit 1; }
                      mkdir -p ${10}/runs/g; echo 1 > ${10}/runs/g/$8.json ;;
  *papermill*) for last; do :; done; cp notebooks/$(basename "$last") "$last" ;;
esac
"""

A1, A2, B1 = "a" * 16, "a" * 15 + "2", "b" * 16  # two runs of grid a, which share a distilled set, and one of b
RUNS = [{"key": B1, "group": "g", "set_key": "", "value": 9.0, "arms": ["b/x"]},
        {"key": A1, "group": "g", "set_key": "5e7", "value": 3.0, "arms": ["a/x"]},
        {"key": A2, "group": "g", "set_key": "5e7", "value": 1.0, "arms": ["a/y", "a/z"]}]  # fmt: skip
SOURCES = {
    "00_quickstart": ("mode = 'live'", ""),
    "01_theory": ("seed = 0", 'Page.of("a")  # no mode: reads nothing'),
    "30_any": ("mode = 'load'", "Store().records()"),
    "31_a": ("mode = 'load'", 'Page.of("a", scale)'),
    "40_b": ("mode = 'load'", 'Page.of("b", scale); coverage.file(dataset, scale)'),
}
PAGES = ["01_theory", "30_any", "31_a", "40_b"]
ALL = Counter([A1, A2, B1, *PAGES, "book"])
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
    (folder / "runs.json").write_text(json.dumps(RUNS))
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


def snake(
    folder: Path, *options: str, config: str = "", python: str = "./python", cores: int = 2, status: int = 0
) -> str:
    """Run Snakemake; what it said. `status` is what it must end with."""
    quiet = {k: v for k, v in os.environ.items() if k not in ("RDD_STORE", "SNAKEMAKE_PROFILE")}
    done = subprocess.run(
        [str(SNAKEMAKE), "--cores", str(cores), *options, "--config", f"python={python}", *config.split()],
        cwd=folder, env=quiet | {"XDG_CACHE_HOME": str(folder / "cache")}, capture_output=True, text=True, timeout=500,
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
    words = {"rddlib grid": lambda line: line.split()[7], "papermill": lambda line: Path(line.split()[-1]).stem}
    return Counter(next((tell(line) for word, tell in words.items() if word in line), "book") for line in lines)


@needs_snakemake
def test_the_graph_runs_once_and_again_only_what_changed(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, toy := tmp_path / "copy")
    assert "Nothing to be done" in snake(toy) and calls(toy) == Counter()
    (toy / "data/runs/g/merged.json").write_text("2")  # a record from elsewhere, in no grid: what reads any record
    snake(toy)
    assert calls(toy) == Counter(["30_any", "book"])
    (toy / "rddlib/risk.py").write_text("changed")  # the library: all pages, and no run, whose key has not changed
    snake(toy)
    assert calls(toy) == Counter([*PAGES, "book"]) and "Nothing to be done" in snake(toy)
    (toy / f"data/runs/g/{A2}.json").unlink()
    snake(toy)
    assert calls(toy) == Counter([A2, "30_any", "31_a", "book"])


@needs_snakemake
def test_a_record_is_never_taken_away(whole: Path, tmp_path: Path) -> None:
    """Not even where all is forced, or the rule of the runs has changed since Snakemake made it."""
    shutil.copytree(whole, toy := tmp_path / "copy")
    before = {path.name: path.stat().st_mtime_ns for path in toy.glob("data/runs/*/*.json")}
    (toy / "Snakefile").write_text((toy / "Snakefile").read_text().replace("--only", "--device cpu --only"))
    assert len(before) == 3
    snake(toy, "--forceall")
    assert calls(toy) == Counter([*PAGES, "book"])
    assert {path.name: path.stat().st_mtime_ns for path in toy.glob("data/runs/*/*.json")} == before


@needs_snakemake
@pytest.mark.parametrize(("changed", "again"), [
    ("data/grids/a.toml", ["31_a", "book"]),  # not the page of b
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
def test_a_failing_run_is_told_tried_again_and_the_others_go_on(toy: Path) -> None:
    (toy / f"fail.{A1}").touch()
    said = snake(toy, "--keep-going", "--retries", "1", status=1)
    assert calls(toy) == Counter([A1, A1, B1, "01_theory", "40_b"]) and "no such luck" in said
    (toy / f"fail.{A1}").unlink()
    snake(toy)
    assert calls(toy) == Counter([A1, A2, "30_any", "31_a", "book"])


@needs_snakemake
def test_the_most_valuable_run_comes_first_and_no_set_is_made_twice_at_once(toy: Path) -> None:
    for run, value in zip(RUNS, (1.0, 2.0, 9.0), strict=True):
        run["value"] = value
    plan = sorted(RUNS, key=lambda run: -run["value"])  # A2, A1, B1, as the library lists them
    (toy / "runs.json").write_text(json.dumps(plan))
    snake(toy, config="notebooks=none", cores=1)
    assert [line.split()[7] for line in (toy / "calls.txt").read_text().splitlines()] == [A2, A1, B1]
    said = snake(repository(toy / "again"), "--dry-run", config="notebooks=none", cores=2)
    assert re.search(rf"input: data/runs/g/{A1}.json\s+output: data/runs/g/{A2}.json", said)  # by value again


@needs_snakemake
def test_options_choose_grids_pages_and_scale(toy: Path) -> None:
    snake(toy, config="grids=b notebooks=none scale=smoke minutes=5 device=cuda")
    command = "-m rddlib grid data/grids/b.toml --scale smoke"
    options = f"--only {B1} --store data --device cuda --budget-minutes 5"
    assert (toy / "calls.txt").read_text() == f"{command} {options}\n"
    calls(toy)
    snake(toy, config="grids=none notebooks=30_any scale=smoke")
    assert "-p mode run" in (toy / "calls.txt").read_text() and calls(toy) == Counter(["30_any", "book"])
    assert "grids = 'c': allowed is none, or some of a, b" in snake(toy, config="grids=c", status=1)
    assert "scale = 'huge'" in snake(toy, config="scale=huge", status=1)


@needs_snakemake
def test_the_cluster_is_planned_by_a_dry_run(toy: Path) -> None:
    shutil.copytree(PROFILE.parent, toy / "profiles" / "slurm")
    said = snake(toy, "--workflow-profile", "profiles/slurm", "--dry-run", config="scale=gpu device=cuda minutes=590")
    assert re.search(r"^run +3$", said, re.M) and calls(toy) == Counter()
    assert "runtime=600" in said and "gpu=1" in said and "mem_mb=8000" in said


GRID = """[common]
dataset = "digits"
train_limit = 100
test_limit = 50
width = 4
eval_width = 4
depth = 1
outer_steps = 1
inner_steps = 1
batch_real = 8
net_batch = 16
eval_steps = 2
eval_groups = 2
eval_seeds = 1
eval_shifts = false
[[arm]]
name = "x"
why = "a set, and a floor"
value = 1
method = ["idc", "random"]
"""


@needs_snakemake
def test_a_small_grid_is_run_on_two_cores(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the library itself: each record is made by a job, and found by the library afterwards."""
    (toy / "data/grids/a.toml").write_text(GRID)
    (toy / "data/grids/b.toml").unlink()
    shutil.rmtree(toy / "rddlib")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    snake(toy, config="notebooks=none scale=smoke", python=sys.executable)
    jobs = grid.jobs([toy / "data/grids/a.toml"], "smoke")
    records = Store(toy / "data").records()
    assert sorted(record.key for record in records) == sorted(job.key for job in jobs) and len(jobs) == 2
    assert len(list(toy.glob("data/distilled/*.npz"))) == 1
    assert "Nothing to be done" in snake(toy, config="notebooks=none scale=smoke", python=sys.executable)


@needs_snakemake
def test_the_graph_of_the_book_can_be_planned() -> None:
    done = subprocess.run(
        [str(SNAKEMAKE), "--cores", "2", "--dry-run", "--quiet", "rules", "--config", "scale=laptop",
         f"python={sys.executable}"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    wanted = {job.key for job in grid.jobs(grid.names(), "laptop")}
    missing = wanted - {path.stem for path in Store(ROOT / "data").files()}
    assert re.search(rf"^run +{len(missing)}$", said, re.M) or "Nothing to be done" in said
