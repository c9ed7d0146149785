"""book/build.py: a failed step says so, what did not change is not done again, tracked notebooks stay as they are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import script

ROOT = Path(__file__).resolve().parent.parent
build = script("build")

NOTEBOOK = {
    "metadata": {"papermill": {"input_path": "x"}, "kernelspec": {"name": "python3"}},
    "cells": [
        {
            "cell_type": "code",
            "metadata": {"papermill": {"duration": 1}, "tags": ["parameters"]},
            "source": "mode = 'load'",
            "outputs": [],
        }
    ],
}


@pytest.fixture
def small_book(tmp_path: Path) -> Path:
    """A repository with what build.py reads, and nothing more."""
    for name in ("book", "notebooks", "rddlib"):
        (tmp_path / name).mkdir()
    for name in ("_config.yml", "_toc.yml", "constraints.txt", "book/index.md", "rddlib/risk.py"):
        (tmp_path / name).write_text(name)
    (tmp_path / build.QUICKSTART).write_text(json.dumps(NOTEBOOK))
    return tmp_path


class Tools:
    """Stands for papermill and jupyter-book: notes each call, makes what they would make, fails when told to."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls, self.failing = root, [], set()

    def __call__(self, step: str, command: list[str], advice: str, root: Path) -> None:
        self.calls.append(step)
        if step in self.failing:
            raise build.StepError(step, advice)
        if step == "quickstart":
            executed = {
                **NOTEBOOK,
                "cells": [*NOTEBOOK["cells"], {"cell_type": "markdown", "metadata": {}, "source": "ran"}],
            }
            Path(command[4]).write_text(json.dumps(executed))
        else:
            (root / "_build" / "html").mkdir(parents=True)
            (root / "_build" / "html" / "index.html").write_text("book")


@pytest.fixture
def tools(small_book: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    stand_in = Tools(small_book)
    monkeypatch.setattr(build, "run", stand_in)
    return stand_in


def test_builds_prints_path_and_times(small_book: Path, tools: Tools, capsys: pytest.CaptureFixture[str]) -> None:
    index = build.build_book(small_book)
    said = capsys.readouterr().out
    assert index.read_text() == "book"
    assert str(index) in said
    assert [line.split()[0] for line in said.splitlines() if " s   " in line] == [
        "equations",
        "performance",
        "quickstart",
        "stage",
        "verdicts",
        "render",
    ]


def test_nothing_changed_nothing_done(small_book: Path, tools: Tools) -> None:
    build.build_book(small_book)
    build.build_book(small_book)
    assert tools.calls == ["quickstart", "render"]


@pytest.mark.parametrize(
    ("changed", "redone"),
    [
        ("rddlib/risk.py", ["quickstart"]),
        ("book/index.md", ["render"]),
        ("_toc.yml", ["render"]),
        ("constraints.txt", ["quickstart", "render"]),
    ],
)
def test_what_changed_is_done_again(small_book: Path, tools: Tools, changed: str, redone: list[str]) -> None:
    build.build_book(small_book)
    (small_book / changed).write_text("changed")
    build.build_book(small_book)
    assert tools.calls[2:] == redone


def test_same_content_written_again_is_no_change(small_book: Path, tools: Tools) -> None:
    build.build_book(small_book)
    (small_book / "rddlib/risk.py").write_text("rddlib/risk.py")
    build.build_book(small_book)
    assert len(tools.calls) == 2


def test_tracked_notebook_stays_and_the_book_shows_the_executed_one(small_book: Path, tools: Tools) -> None:
    before = (small_book / build.QUICKSTART).read_bytes()
    build.build_book(small_book)
    shown = json.loads((small_book / "_build/source" / build.QUICKSTART).read_text())
    assert (small_book / build.QUICKSTART).read_bytes() == before
    assert shown["cells"][-1]["source"] == "ran"
    assert "papermill" not in shown["metadata"]
    assert "papermill" not in shown["cells"][0]["metadata"]
    assert shown["cells"][0]["metadata"]["tags"] == ["parameters"]


def test_injected_parameters_take_the_place_of_the_pages_own() -> None:
    """A page shows one cell of parameters: its comments, the values that ran."""
    own = {"metadata": {"tags": ["parameters"]}, "source": ["ipc = 1  # images\n", 'mode = "load"\n', "sets = [1, 2]"]}
    injected = {
        "metadata": {"tags": ["injected-parameters"]},
        "source": ["# Parameters\n", 'mode = "live"\n', "sets = [3]\n", "ipc = 5\n"],
    }
    shown = build.without_stamps({"metadata": {}, "cells": [own, injected]})
    assert [cell["source"] for cell in shown["cells"]] == ['ipc = 5  # images\nmode = "live"\nsets = [3]']


def test_the_address_of_the_repository_brings_buttons_and_its_absence_none(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = (ROOT / "_config.yml").read_text(encoding="utf-8")
    config = yaml.safe_load(build.with_repository(plain, "https://example.org/a/b"))
    assert config["repository"] == {"url": "https://example.org/a/b", "branch": "main", "path_to_book": ""}
    assert {config["html"][f"use_{button}_button"] for button in ("repository", "issues", "edit_page")} == {True}
    assert config["launch_buttons"]["binderhub_url"] and config["launch_buttons"]["colab_url"]
    before = yaml.safe_load(plain)
    assert "repository" not in before and not before["html"]["use_edit_page_button"]
    assert {key: value for key, value in config.items() if key in ("sphinx", "parse", "title")} == {
        key: before[key] for key in ("sphinx", "parse", "title")
    }


def test_the_address_comes_from_the_environment(
    small_book: Path, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPOSITORY_URL", "https://example.org/a/b/")
    (small_book / "_build").mkdir()
    (small_book / "_build" / "book.pdf").write_bytes(b"%PDF")
    build.build_book(small_book)
    assert '"https://example.org/a/b"' in (small_book / "_build/source/_config.yml").read_text()
    assert (small_book / "_build/source/book/_static/book.pdf").read_bytes() == b"%PDF"
    assert (small_book / "_config.yml").read_text() == "_config.yml"


@pytest.mark.parametrize("step", ["quickstart", "render"])
def test_failed_step_is_named_and_tried_again(small_book: Path, tools: Tools, step: str) -> None:
    tools.failing = {step}
    for _ in range(2):  # a second try must not pass because of what the first left
        with pytest.raises(build.StepError, match=f"step '{step}' failed"):
            build.build_book(small_book)
    assert tools.calls.count(step) == 2
    tools.failing = set()
    assert build.build_book(small_book).exists()


def test_render_fails_after_success_when_a_page_breaks(small_book: Path, tools: Tools) -> None:
    build.build_book(small_book)
    (small_book / "book/index.md").write_text("broken")
    tools.failing = {"render"}
    with pytest.raises(build.StepError):
        build.build_book(small_book)
    assert not (small_book / "_build/html/index.html").exists(), "an old book must not pass for the new one"


def test_a_command_that_fails_raises_with_the_step_and_the_advice(tmp_path: Path) -> None:
    with pytest.raises(build.StepError, match=r"step 'render' failed\. Look above\."):
        build.run("render", [sys.executable, "-c", "raise SystemExit(3)"], "Look above.", tmp_path)


def test_notebooks_that_have_just_run_are_shown(small_book: Path, tools: Tools) -> None:
    page = small_book / "notebooks" / "30_table.ipynb"
    page.write_text(json.dumps(NOTEBOOK))
    ran = {**NOTEBOOK, "cells": [*NOTEBOOK["cells"], {"cell_type": "markdown", "metadata": {}, "source": "now"}]}
    (small_book / "ran").mkdir()
    (small_book / "ran" / page.name).write_text(json.dumps(ran))
    build.build_book(small_book, small_book / "ran")
    shown = json.loads((small_book / "_build/source/notebooks" / page.name).read_text())
    assert shown["cells"][-1]["source"] == "now" and "papermill" not in shown["metadata"]
    assert json.loads(page.read_text()) == NOTEBOOK
    (small_book / "ran" / "99_absent.ipynb").write_text(json.dumps(ran))
    with pytest.raises(build.StepError, match=r"99_absent\.ipynb has no page"):
        build.build_book(small_book, small_book / "ran")


def test_makefile_offers_what_the_readme_names() -> None:
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = {line.split()[0] for line in said.splitlines() if line.startswith("  ")}
    assert {"help", "env", "book", "test", "run", "grid", "bench", "serve", "lint", "clean"} <= targets


def test_a_grid_without_its_name_is_refused_before_an_environment_is_made(tmp_path: Path) -> None:
    words = ["make", "--no-print-directory", "-C", str(ROOT), "grid", "GRID=", f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "make: say which grid" in done.stdout and "make grid GRID=table1" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_python_that_does_not_fit_is_refused_with_the_way_out(tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nexit 1\n")  # what the version check of any such Python comes to
    fake.chmod(0o755)
    done = subprocess.run(
        ["make", "env", f"PYTHON={fake}", f"VENV={tmp_path / 'venv'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "is not Python 3.11, 3.12 or 3.13" in done.stdout
    assert "make PYTHON=" in done.stdout
