"""book/print_pdf.py: the order of the pages, and (with a browser and a built book) a PDF with bookmarks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import script
from test_browser import absent

ROOT = Path(__file__).resolve().parent.parent
print_pdf = script("print_pdf")


def test_pages_are_in_the_order_of_the_contents_and_open_their_parts() -> None:
    found = print_pdf.chapters(ROOT / "_toc.yml")
    names, parts = [name for name, _ in found], [part for _, part in found if part]
    assert names[0] == "book/index" and len(names) == len(set(names)) > 40 and "book/records" not in names
    assert parts == re.findall(r"caption: (.*)", (ROOT / "_toc.yml").read_text())


@pytest.mark.browser
def test_the_book_becomes_a_pdf_with_bookmarks(tmp_path: Path) -> None:
    browser, html = print_pdf.chromium(), ROOT / "_build" / "html"
    if browser is None or not (html / "index.html").is_file():
        absent("no browser or no built book: run `make book`")
    print_pdf.print_book(html, print_pdf.chapters(ROOT / "_toc.yml"), tmp_path / "book.pdf", browser)
    made = (tmp_path / "book.pdf").read_bytes()
    assert len(re.findall(rb"/Type\s*/Page\b", made)) > 50 and b"/Outlines" in made
