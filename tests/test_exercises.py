"""Exercises with a gap: the solution passes the exercise's check, the gap does not, and they differ in the gap alone.

A gap, its check and its solution are code cells tagged `exercise-gap`, `exercise-check` and `exercise-solution`, in
this order. Cells are run in this process; of the rest of the notebook only those earlier ones that the exercise needs.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import re
import symtable
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import pytest

mpl.use("Agg")

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TAGS = ("exercise-gap", "exercise-check", "exercise-solution")
PASSED = ("passed", "correct")  # what a check says first when it is content


@dataclass(frozen=True)
class Exercise:
    """The sources of one exercise, and those of the code cells before it."""

    gap: str
    check: str
    solution: str
    before: tuple[str, ...]


def exercises(notebook: dict) -> list[Exercise]:
    """All exercises of a notebook; an incomplete or disordered one is an error."""
    found: list[Exercise] = []
    open_parts: list[str] = []
    before: list[str] = []
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        source, tag = "".join(cell["source"]), set(TAGS) & set(cell["metadata"].get("tags", []))
        if not tag:
            before.append(source)
            continue
        assert tag == {TAGS[len(open_parts)]}, f"expected a cell tagged {TAGS[len(open_parts)]}, found {tag}"
        open_parts.append(source)
        if len(open_parts) == len(TAGS):
            gap, check, solution = open_parts
            found.append(Exercise(gap, check, solution, tuple(before)))
            open_parts = []
    assert not open_parts, "a gap without its check or solution"
    return found


@pytest.fixture(autouse=True)
def _no_other_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """IPython warns where an environment other than the one of this Python is active; a page's cells may start it."""
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)


def names_of(source: str) -> tuple[set[str], set[str]]:
    """The names that a cell binds at its top level, and those that it takes from cells before it."""
    top = symtable.symtable(source, "cell", "exec")
    bound = {s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported()}
    free, scopes = {s.get_name() for s in top.get_symbols() if s.is_referenced()}, list(top.get_children())
    while scopes:
        scope = scopes.pop()
        free |= {s.get_name() for s in scope.get_symbols() if s.is_global()}
        scopes += scope.get_children()
    return bound, free - bound


def needed(before: tuple[str, ...], *cells: str) -> list[str]:
    """The earlier cells that these depend on, directly or through others, in their order."""
    chosen: list[str] = []
    wanted: set[str] = set().union(*(names_of(cell)[1] for cell in cells))
    for source in reversed(before):
        bound, free = names_of(source)
        if bound & wanted:
            chosen.insert(0, source)
            wanted = (wanted - bound) | free
    return chosen


def said(exercise: Exercise, answer: str) -> str:
    """What the check prints when `answer` stands in the place of the gap."""
    cells = [*needed(exercise.before, answer, exercise.check), answer, exercise.check]
    names: dict[str, object] = {"__name__": "__main__"}
    printed = io.StringIO()
    for number, cell in enumerate(cells):
        last = number == len(cells) - 1
        with contextlib.redirect_stdout(printed if last else io.StringIO()):
            exec(compile(cell, f"cell {number}", "exec"), names)
    return printed.getvalue().strip()


def is_passed(words: str) -> bool:
    return words.lower().startswith(PASSED)


def lines_beside_the_gap(exercise: Exercise) -> tuple[list[str], list[str]]:
    """Lines that differ between gap and solution: those of the gap, those of the solution."""
    gap, solution = exercise.gap.splitlines(), exercise.solution.splitlines()
    matcher = difflib.SequenceMatcher(None, gap, solution, autojunk=False)
    blocks = [(i, j) for tag, *ij in matcher.get_opcodes() if tag != "equal" for i, j in [(ij[:2], ij[2:])]]
    return [x for (a, b), _ in blocks for x in gap[a:b]], [x for _, (a, b) in blocks for x in solution[a:b]]


def all_exercises() -> Iterator[object]:
    for path in NOTEBOOKS:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for number, exercise in enumerate(exercises(notebook), start=1):
            yield pytest.param(exercise, id=f"{path.stem}-{number}")


EXERCISES = list(all_exercises())


@pytest.fixture(autouse=True)
def _in_the_notebooks_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT / "notebooks")


@pytest.mark.parametrize("exercise", EXERCISES)
def test_the_solution_passes_and_the_gap_does_not(exercise: Exercise) -> None:
    assert is_passed(said(exercise, exercise.solution))
    unfilled = said(exercise, exercise.gap)
    assert unfilled, "the check says nothing of an unfilled gap"
    assert not is_passed(unfilled)


@pytest.mark.parametrize("exercise", EXERCISES)
def test_gap_and_solution_differ_in_the_gap_alone(exercise: Exercise) -> None:
    of_gap, of_solution = lines_beside_the_gap(exercise)
    assert [line for line in of_gap if "..." not in line] == []
    assert len(of_gap) == 1
    assert not any(re.search(r"(?<!\w)\.\.\.(?!\w)", line) for line in of_solution)


# --- the tests tested ----------------------------------------------------------------------------------------------

GAP = "def double(x):\n    y = ...\n    return y"
CHECK = "import math\nprint('Passed' if double(two) == math.floor(4.2) else 'Not yet')"
SOLUTION = "def double(x):\n    y = 2 * x\n    return y"
BEFORE = (
    "one = 1", "x = y = 5\nraise RuntimeError('not needed: x and y of the exercise are its own')",
    "two = [one + x for x in (1,)][0]\nprint('noise')",
)  # fmt: skip


def planted(**change: str) -> Exercise:
    return Exercise(**({"gap": GAP, "check": CHECK, "solution": SOLUTION} | change), before=BEFORE)


def test_a_sound_exercise_runs_with_what_it_needs_and_no_more() -> None:
    assert said(planted(), SOLUTION) == "Passed"
    assert said(planted(), GAP) == "Not yet"
    assert needed(BEFORE, CHECK) == [BEFORE[0], BEFORE[2]]


def test_an_exercise_without_its_solution_is_found() -> None:
    cells = [{"cell_type": "code", "source": GAP, "metadata": {"tags": [tag]}} for tag in TAGS]
    assert len(exercises({"cells": cells})) == 1
    for wrong in (cells[:2], cells[1:], [cells[0], cells[2], cells[1]]):
        with pytest.raises(AssertionError):
            exercises({"cells": wrong})


def test_the_page_for_teachers_lists_every_exercise_once() -> None:
    label = re.compile(r"```\{exercise(?:-start)?\}[^\n]*\n:label: (\S+)")
    there = [name for path in NOTEBOOKS for cell in json.loads(path.read_text())["cells"]
             if cell["cell_type"] == "markdown" for name in label.findall("".join(cell["source"]))]  # fmt: skip
    table = (ROOT / "book" / "teaching.md").read_text().split("## All exercises")[1].split("## Longer work")[0]
    assert sorted(re.findall(r"<([\w-]+)>`", table)) == sorted(there)


def test_pages_and_the_page_for_teachers_agree_on_difficulty_and_minutes() -> None:
    start = re.compile(r"```\{exercise(?:-start)?\}[^\n]*\n:label: (\S+)\n(?:```\n)?\*(\w+), (\d+) minutes\.\*")
    on_pages = [found for path in NOTEBOOKS for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
                for found in start.findall("".join(cell["source"]))]  # fmt: skip
    text = (ROOT / "book" / "teaching.md").read_text(encoding="utf-8")
    listed = re.findall(r"<([\w-]+)>` \| (easy|medium|hard) \| (\d+) \|", text)
    told = {label: (difficulty.lower(), minutes) for label, difficulty, minutes in on_pages}
    assert {label: (d, m) for label, d, m in listed} == told
    assert len(listed) > 70
