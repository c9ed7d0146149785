"""book/_ext/book_tidy.py: tables of pandas as a reader wants them; nothing that a table says is lost."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

PATH = Path(__file__).resolve().parent.parent / "book" / "_ext" / "book_tidy.py"
spec = importlib.util.spec_from_file_location("book_tidy", PATH)
assert spec is not None and spec.loader is not None
book_tidy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(book_tidy)


def shown(frame: pd.DataFrame) -> str:
    return book_tidy.FRAME.sub(book_tidy.frame, frame.to_html())


def words(html: str) -> list[str]:
    return [
        text for text in (re.sub(r"<wbr>", "", field[2]).strip() for field in book_tidy.FIELD.findall(html)) if text
    ]


NAMED = pd.DataFrame(
    {"accuracy": ["48.6 [47.1, 50.1]", "32.8 [30.0, 35.7]"], "reading": ["higher", "not separated"]},
    index=pd.Index(["idc", "random"], name="arm"),
)
GROUPED = pd.DataFrame({("paper", "noise"): [1.0, 2.0], ("ours", "noise"): [3.0, 4.0]}, index=NAMED.index)
SEEDS = pd.DataFrame({"gain": [1.5, -0.5]}, index=pd.Index([0, 1], name="seed"))


@pytest.mark.parametrize("frame", [NAMED, GROUPED, SEEDS], ids=["named", "grouped", "seeds"])
def test_the_name_of_the_index_stands_in_the_header_and_nothing_is_lost(frame: pd.DataFrame) -> None:
    html = shown(frame)
    assert sorted(words(html)) == sorted(words(frame.to_html()))
    assert html.count("<tr") == len(frame) + frame.columns.nlevels


def test_a_column_that_only_counts_rows_goes() -> None:
    html = shown(pd.DataFrame({"rate": [0.1, 0.3], "seeds": ["3 of 3", "2 of 3"]}))
    assert words(html) == ["rate", "seeds", "0.1", "3 of 3", "0.3", "2 of 3"]
    assert "0" in words(shown(pd.DataFrame({"rate": [0.1]})))  # one row: it may be a number of its own


def test_columns_of_numbers_are_marked_with_their_heading() -> None:
    html = shown(NAMED)
    assert html.count('class="number"') == 3  # heading and two values
    assert '<td class="number">48.6 [47.1, 50.1]</td>' in html and "<td>higher</td>" in html


def test_a_table_that_needs_the_room_takes_smaller_type() -> None:
    wide = pd.DataFrame({f"cluster_min_{i}": ["48.6 [47.1, 50.1]"] * 2 for i in range(8)})
    assert 'class="dataframe wide"' in shown(wide) and "cluster_<wbr>min_<wbr>3" in shown(wide)
    assert 'class="dataframe"' in shown(NAMED)


def test_long_names_in_cells_break_after_a_joint_only() -> None:
    cell = '<td><span class="pre">test_released_gradient</span> <span class="pre">short_name</span></td>'
    assert book_tidy.breakable(cell) == (
        '<td><span class="pre">test_<wbr>released_<wbr>gradient</span> <span class="pre">short_name</span></td>'
    )


def test_a_page_says_how_it_is_run_and_what_there_is_to_download(tmp_path: Path) -> None:
    here = book_tidy.offer(tmp_path, "notebooks/01_x", "")
    assert '../_sources/notebooks/01_x.ipynb" download' in here and "make env" in here and "Colab" not in here
    there = book_tidy.offer(tmp_path, "notebooks/01_x", "https://example.org/a/b")
    assert "git clone --depth 1 https://example.org/a/b project" in there
    assert book_tidy.offer(tmp_path, "book/index", "") == book_tidy.offer(tmp_path, "book/theory", "") == ""
    (tmp_path / "book.pdf").write_bytes(bytes(2_000_000))
    assert '../_static/book.pdf" download>The whole book as one PDF</a> (2 MB)' in book_tidy.offer(
        tmp_path, "book/index", ""
    )


def test_charts_are_marked_for_dark_pages_and_photographs_are_not(tmp_path: Path) -> None:
    white = np.full((40, 40, 3), 255, np.uint8)
    chart, photograph = white.copy(), white.copy()
    chart[20] = 0
    photograph[:20] = np.random.default_rng(0).integers(0, 255, (20, 40, 3))
    for name, pixels in (("chart", chart), ("photograph", photograph)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    (tmp_path / "lines.svg").write_text("<svg/>")
    files = {path.name: path for path in tmp_path.iterdir()}
    body = "".join(f'<img alt="a" src="../_images/{name}" />' for name in ("chart.png", "photograph.png", "lines.svg"))
    assert book_tidy.charts(body, files) == (
        '<img class="chart" alt="a" src="../_images/chart.png" /><img alt="a" src="../_images/photograph.png" />'
        '<img class="chart" alt="a" src="../_images/lines.svg" />'
    )
    unknown = '<img src="../_images/elsewhere.png" />'
    assert book_tidy.charts(unknown, files) == unknown
