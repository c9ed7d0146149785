"""The wheel: what is in it, and that the library works from it alone, far from the project's folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import rddlib
from rddlib.experiments import grid

ROOT = Path(__file__).resolve().parent.parent
TRAVELS = ("claims.csv", "coverage/*.json", "grids/*.toml", "groups/*.npz", "loop/*", "paper/*", "priors/*")
TRAVELS += ("runs/*/*.json",)

# Runs in a folder of its own with the unpacked wheel alone; `python -I` and the working folder keep the project out.
ALONE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import rddlib
from rddlib import base, cli
from rddlib.analysis import claims, tables
from rddlib.distillation.glad import prior
from rddlib.experiments import grid, provenance
assert rddlib.__file__.startswith(sys.argv[1]) and base.repository_root() is None
statuses = [cli.main(words.split()) for words in sys.argv[2:]]
print(json.dumps({
    "statuses": statuses,
    "table1": len(rddlib.results("table1")),
    "own": rddlib.results(scale="smoke", dataset="digits", method="random", seed=77)["key"].nunique(),
    "grids": grid.names(),
    "claims": len(claims.read()),
    "paper": tables.reported(1, dataset="cifar10", ipc=10),
    "prior": prior.committed("digits").is_file(),
    "commit": provenance.commit(),
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the project: setuptools leaves its work in the folder that it builds from."""
    source = tmp_path_factory.mktemp("source")
    for name in ("rddlib", "data"):
        ignored = shutil.ignore_patterns("__pycache__", "distilled", "cache", "work")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    out = source / "out"
    command = ["-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(out), str(source)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("rddlib-*.whl")
    return built


def test_the_wheel_has_every_module_and_what_the_library_reads(wheel: Path) -> None:
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "rddlib").rglob("*.py")}
    read = {path.relative_to(ROOT / "data") for pattern in TRAVELS for path in (ROOT / "data").glob(pattern)}
    names = set(zipfile.ZipFile(wheel).namelist())
    held = {name for name in names if ".dist-info/" not in name}
    assert held == modules | {f"rddlib/resources/{path.as_posix()}" for path in read}
    assert {f"rddlib/resources/grids/{name}.toml" for name in grid.names()} <= held


def test_the_installed_library_works_far_from_the_project(wheel: Path, tmp_path: Path) -> None:
    site, home = tmp_path / "site", tmp_path / "home"
    zipfile.ZipFile(wheel).extractall(site)
    home.mkdir()
    quick = "--eval-steps 2 --eval-seeds 1 --eval-width 4 --train-limit 100 --test-limit 50 --eval-shifts false"
    commands = [f"run --method random --seed 77 {quick}", "grid table1 --dry-run", "status table1 --scale laptop"]
    clean = {name: value for name, value in os.environ.items() if name not in ("RDD_STORE", "RDD_DATA", "PYTHONPATH")}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(site), *commands], cwd=home, env=clean | {"HOME": str(home)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["statuses"] == [0, 0, 0] and told["own"] == 1 and told["prior"] and told["commit"] == ""
    assert told["grids"] == grid.names() and told["claims"] > 50 and len(told["paper"]) > 3
    assert told["table1"] == len(rddlib.results("table1")) > 0  # the records of the book came with it
    assert f"results are kept in {home / 'rddlib_data'}" in done.stderr  # the user is told where
    assert len(list(home.glob("rddlib_data/runs/*/*.json"))) == 1
