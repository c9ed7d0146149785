"""The page of the public names: it has them all, its examples fit their column, and print what stands there."""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from typing import Any

import pytest

import rddlib

PAGE = Path(__file__).resolve().parent.parent / "book" / "api.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```pycon\n(.*?)^```", TEXT, re.M | re.S)


def test_the_page_has_every_public_name_and_no_other() -> None:
    table = "".join(line.split("|")[1] for line in TEXT.splitlines() if line.startswith("| `"))
    names = set(re.findall(r"`(\w+)`", table))
    assert names == set(rddlib.__all__) - {"__version__"} and len(names) == 16 and "sixteen" in TEXT.splitlines()[0]
    code = "".join(BLOCKS)
    shown = {name for name in names if f"rddlib.{name}" in code}
    assert names - shown == {"DataSet", "SyntheticSet", "Record"}  # what other examples return


def test_code_fits_its_column() -> None:
    assert len(BLOCKS) > 8
    assert max(len(line) for block in BLOCKS for line in block.splitlines()) <= 80


def test_the_examples_print_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RDD_STORE", str(tmp_path))
    names: dict[str, Any] = {}
    parser, runner = doctest.DocTestParser(), doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    report: list[str] = []
    for number, block in enumerate(BLOCKS):
        example = parser.get_doctest(block, names, f"example {number}", str(PAGE), 0)
        runner.run(example, out=report.append, clear_globs=False)
        names = example.globs
    assert runner.summarize(verbose=False) == (0, runner.tries) and runner.tries > 30, "".join(report)
