"""book/print_pdf.py: the order of the pages, and (with a browser and a built book) a PDF with bookmarks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import script
from test_browser import absent

ROOT = Path(__file__).resolve().parent.parent
print_pdf = script("print_pdf")
INDEX = re.findall(r"^## (.*)$", (ROOT / "book" / "index.md").read_text(), re.MULTILINE)  # they stand beside chapters


def test_pages_are_in_the_order_of_the_contents_and_open_their_parts() -> None:
    found = print_pdf.chapters(ROOT / "_toc.yml")
    names, parts = [name for name, _ in found], [part for _, part in found if part]
    assert names[0] == "book/index" and len(names) == len(set(names)) > 40
    assert not {"book/records", "book/explorer"} & set(names)
    assert parts == re.findall(r"caption: (.*)", (ROOT / "_toc.yml").read_text())


def outline(made: bytes) -> list[tuple[int, str]]:
    """The bookmarks of a PDF by Chromium, which writes them uncompressed: depth and title, in order."""
    objects = {int(m[1]): m[2] for m in re.finditer(rb"(\d+) 0 obj\s*(.*?)endobj", made, re.DOTALL)}

    def entry(text: bytes, name: bytes) -> int:
        found = re.search(rb"/" + name + rb" (\d+) 0 R", text)
        return int(found[1]) if found else 0

    def title(text: bytes) -> str:
        plain, coded = re.search(rb"/Title \((.*?)(?<!\\)\)", text, re.DOTALL), re.search(rb"/Title <(\w+)>", text)
        if plain:
            return re.sub(rb"\\(.)", rb"\1", plain[1]).decode("latin-1")
        assert coded is not None
        return bytes.fromhex(coded[1].decode()).decode("utf-16")

    def below(number: int, depth: int) -> list[tuple[int, str]]:
        found, child = [], entry(objects[number], b"First")
        while child:
            found += [(depth, title(objects[child])), *below(child, depth + 1)]
            child = entry(objects[child], b"Next")
        return found

    (catalog,) = [text for text in objects.values() if b"/Type /Catalog" in text]
    return below(entry(catalog, b"Outlines"), 0)


@pytest.mark.browser
def test_the_book_becomes_a_pdf_with_bookmarks(tmp_path: Path) -> None:
    browser, html = print_pdf.chromium(), ROOT / "_build" / "html"
    if browser is None or not (html / "index.html").is_file():
        absent("no browser or no built book: run `make book`")
    print_pdf.print_book(html, print_pdf.chapters(ROOT / "_toc.yml"), tmp_path / "book.pdf", browser)
    made = (tmp_path / "book.pdf").read_bytes()
    assert len(re.findall(rb"/Type\s*/Page\b", made)) > 50
    found = outline(made)
    pages = print_pdf.chapters(ROOT / "_toc.yml")
    parts = [part for _, part in pages if part]
    assert [title for depth, title in found if depth == 0][1:] == [*parts, "Solutions"]
    assert len([title for depth, title in found if depth == 1 and title not in INDEX]) == len(pages) - 1
    # Chromium doubled the words of headings at the end of a page, and joined two lines of a title without a space.
    assert [title for _, title in found if len(title) > 3 and title == 2 * title[: len(title) // 2]] == []
    assert "Quickstart: distil a data set in a minute" in [title for _, title in found]
