"""Code on pages: no line wider than the page's column, no long cell open; only what teaches is shown at once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROSE = sorted((ROOT / "book").glob("*.md"))
PRINTED = [ROOT / "rddlib/distillation/reference.py"]  # the page "The method on one page" shows it
IN_WORK = {"26_fair_test", "performance"}  # rewritten elsewhere; remove the name when the page fits
WIDTH, LINES = 80, 25
FENCE = re.compile(r"^(`{3,})([^\n]*)\n(.*?)^\1\s*$", re.MULTILINE | re.DOTALL)
FOLDED = {"hide-input", "hide-cell", "remove-input", "remove-cell"}


def code_of(path: Path) -> Iterator[tuple[str, str, set[str]]]:
    """Name, text and tags of every block of code on a page."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        blocks = [found[3] for found in FENCE.finditer(text) if not found[2].startswith("{")]  # a directive is prose
        yield from ((f"block {i}", block, set()) for i, block in enumerate(blocks, start=1))
    elif path.suffix == ".py":
        yield path.name, text.split('"""', 2)[2], set()
    else:
        for cell in json.loads(text)["cells"]:
            if cell["cell_type"] == "code":
                yield cell["id"], "".join(cell["source"]), set(cell["metadata"].get("tags", []))


def faults(name: str, code: str, tags: set[str]) -> list[str]:
    lines = code.splitlines()
    found = [f"{name}: {len(line)} characters: {line.strip()[:60]}" for line in lines if len(line) > WIDTH]
    if len(lines) > LINES and not tags & FOLDED:
        found.append(f"{name}: {len(lines)} lines and open")
    return found


@pytest.mark.parametrize("path", [p for p in (*NOTEBOOKS, *PROSE) if p.stem not in IN_WORK], ids=lambda path: path.stem)
def test_code_fits_its_column_and_long_cells_are_folded(path: Path) -> None:
    assert [fault for block in code_of(path) for fault in faults(*block)] == []


@pytest.mark.parametrize("path", PRINTED, ids=lambda path: path.stem)
def test_printed_code_fits_its_column(path: Path) -> None:
    assert [fault for block in code_of(path) for fault in faults(*block[:2], {"hide-input"})] == []


def test_planted_faults_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```bash\n" + "x" * 81 + "\n```\n\n```{note}\n" + "y" * 200 + "\n```\n")
    assert [fault for block in code_of(page) for fault in faults(*block)] == [f"block 1: 81 characters: {'x' * 60}"]
    assert faults("cell", "x\n" * 26, set()) == ["cell: 26 lines and open"]
    assert faults("cell", "x\n" * 26, {"hide-input"}) == faults("cell", "x\n" * 25, set()) == []
