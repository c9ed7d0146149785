"""book/classroom.py: students see no solution, gaps stay, every lesson is a talk with notes that needs no network."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import pytest
from conftest import script

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LESSONS = sorted((ROOT / "book" / "lessons").glob("*.md"))
classroom = script("classroom")


def text_of(notebook: dict) -> str:
    return "\n".join("".join(cell["source"]) for cell in notebook["cells"])


def cell(source: str, *tags: str) -> dict:
    return {
        "cell_type": "code",
        "source": source,
        "metadata": {"tags": list(tags)},
        "outputs": [1],
        "execution_count": 1,
    }


def words(source: str) -> dict:
    return {"cell_type": "markdown", "source": source, "metadata": {}}


PAGE = {
    "cells": [
        words("**Question.** Why?\n\n**Answer.** Told.\n\n* At once.\n\n**Rests on.** Runs.\n\n**Predict.** What?"),
        words("# Title\n\n```{exercise} By hand\n:label: ex-a\nWhat is it?\n```\n"
              "\n```{solution} ex-a\n:class: dropdown\nForty-two.\n```\nBetween."),
        words("```{exercise-start}\n:label: ex-b\n```\nFill the gap.\n```{exercise-end}\n```"),
        cell("x = ...", "exercise-gap"),
        cell("check(x)", "exercise-check"),
        words("```{solution-start} ex-b\n:class: dropdown\n```\nIt is so."),
        cell("x = 42", "exercise-solution"),
        words("Because.\n```{solution-end}\n```\n\nAfter."),
        cell("y = 1"),
    ]
}  # fmt: skip


def test_a_student_sees_exercises_and_gaps_and_no_solution() -> None:
    made = classroom.without_solutions(PAGE)
    said = text_of(made)
    for kept in (
        "**Question.** Why?\n\n**Rests on.** Runs.",
        "**Predict.** What?",
        "# Title",
        "What is it?",
        "Between.",
        "Fill the gap.",
        "x = ...",
        "check(x)",
        "After.",
        "y = 1",
    ):
        assert kept in said
    for gone in ("Told", "At once", "Forty-two", "It is so", "x = 42", "Because", "```{"):
        assert gone not in said
    assert all(c["outputs"] == [] for c in made["cells"] if c["cell_type"] == "code")


def test_an_instructor_sees_them_too() -> None:
    said = text_of(classroom.plain(PAGE))
    assert "**Solution of ex-a.**\n\nForty-two." in said and "x = 42" in said and "```{" not in said
    assert classroom.plain(PAGE)["cells"][-1]["outputs"] == [1]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_solution_of_the_book_reaches_a_student(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    whole, said = text_of(notebook), text_of(classroom.without_solutions(notebook))
    labels = re.findall(r"```\{exercise(?:-start)?\}[^\n]*\n:label: (\S+)", whole)
    assert labels and all(f"**Exercise {label}.**" in said for label in labels)
    assert "**Answer.**" not in said
    assert "solution" not in re.findall(r"\{(\w+)", said)
    worked = re.compile(r"```\{solution(?:-start)?\} \S+\n:class: dropdown\n(?:```\n)?([^\n`][^\n]+)")
    solutions = [text for c in notebook["cells"] for text in worked.findall("".join(c["source"]))]
    solutions += [
        "".join(c["source"]) for c in notebook["cells"] if "exercise-solution" in c["metadata"].get("tags", [])
    ]
    assert [text for text in solutions if text in said] == []
    gaps = ["".join(c["source"]) for c in notebook["cells"] if "exercise-gap" in c["metadata"].get("tags", [])]
    assert all(gap in said for gap in gaps)


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_has_ten_to_fifteen_slides_with_notes_and_works_offline(path: Path) -> None:
    cells = classroom.lesson(path.read_text(encoding="utf-8"), ROOT / "notebooks")["cells"]
    kinds = [c["metadata"]["slideshow"]["slide_type"] for c in cells]
    assert kinds == ["slide", "notes"] * (len(cells) // 2) and 10 <= len(cells) // 2 <= 15
    assert [c["source"] for c in cells if len(c["source"]) < 30] == []
    page = classroom.slides(path, ROOT / "notebooks")
    assert page.count('class="notes"') == len(cells) // 2
    loaded = re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="([^"]*)"', page)
    assert {address.split("/")[0] for address in loaded if not address.startswith("data:")} == {"reveal", "mathjax"}
    assert re.findall(r"https?://|@import", page) == []


def test_a_lesson_names_exercises_and_figures_that_exist() -> None:
    everything = "\n".join(text_of(json.loads(path.read_text(encoding="utf-8"))) for path in NOTEBOOKS)
    for path in LESSONS:
        for label in re.findall(r"`([a-z]+\d?-[a-z-]+)`", path.read_text(encoding="utf-8")):
            assert f":label: {label}\n" in everything, label
    with pytest.raises(ValueError, match="no such cell"):
        classroom.shown(ROOT / "notebooks", "alt", "01_risk_measures", "nothing")


def test_the_zip_holds_it_all(tmp_path: Path) -> None:
    names = set(zipfile.ZipFile(classroom.make(target=tmp_path)).namelist())
    pages = {f"class/{kind}/{path.name}" for kind in ("student", "instructor") for path in NOTEBOOKS}
    assert pages | {f"class/slides/{path.stem}.html" for path in LESSONS} <= names and len(LESSONS) == 9
    for name in ("dist/reveal.js", "dist/reveal.css", "dist/theme/white.css", "plugin/notes/notes.js"):
        assert f"class/slides/reveal/{name}" in names
