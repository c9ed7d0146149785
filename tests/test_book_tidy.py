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


def test_pictures_are_marked_for_dark_pages_and_photographs_in_them_are_kept(tmp_path: Path) -> None:
    """A chart turns dark; of a sheet the images are left out of that; a picture without white stays as it is."""
    white = np.full((80, 100, 3), 255, np.uint8)
    chart, sheet = white.copy(), white.copy()
    chart[20] = 0
    noise = np.random.default_rng(0).integers(0, 250, (60, 60, 3))
    sheet[10:70, 20:80] = noise
    for name, pixels in (("chart", chart), ("sheet", sheet)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    (tmp_path / "lines.svg").write_text("<svg/>")
    files = {path.name: path for path in tmp_path.iterdir()}
    assert book_tidy.pictures('<img alt="a" src="../_images/chart.png" />', files) == (
        '<img class="chart" alt="a" src="../_images/chart.png" />'
    )
    assert 'class="chart"' in book_tidy.pictures('<img alt="a" src="../_images/lines.svg" />', files)
    page = book_tidy.pictures('<img alt="a" src="../_images/sheet.png" />', files)
    assert page.startswith(
        '<span class="sheet" style="--boxes: 0 0, 20.000% 12.500%, 80.000% 12.500%, 80.000% 87.500%, '
    )
    assert '<img class="chart" alt="a" src="../_images/sheet.png" />' in page
    assert page.endswith('<span class="photographs" style="background-image: url(../_images/sheet.png)"></span></span>')
    Image.fromarray(np.where(np.arange(80)[:, None, None] < 30, 200, white).astype(np.uint8)).save(files["chart.png"])
    assert 'class="chart"' in book_tidy.pictures('<img alt="a" src="../_images/chart.png" />', files), "a band"
    Image.fromarray(np.full((80, 100, 3), 200, np.uint8)).save(files["chart.png"])
    photograph = '<img alt="a" src="../_images/chart.png" />'
    assert "sheet" in book_tidy.pictures(photograph, files), "a photograph without white is all its own"
    unknown = '<img src="../_images/elsewhere.png" />'
    assert book_tidy.pictures(unknown, files) == unknown


def test_photographs_are_found_and_bands_and_ticks_are_not(tmp_path: Path) -> None:
    """A map with a tick beside it is found without the tick; axes with a shaded band are no photograph."""
    figure = np.full((200, 300, 3), 255, np.uint8)
    figure[20:80, 30:130] = np.random.default_rng(0).integers(0, 250, (60, 100, 3))
    figure[50, 26:30] = 0  # a tick of the map
    figure[20:180, 160] = figure[179, 160:290] = 0  # axes, open above and at the right
    figure[90:150, 161:290] = 200  # a band
    Image.fromarray(figure).save(tmp_path / "figure.png")
    assert book_tidy.photographs_in(tmp_path / "figure.png") == ([(30, 20, 100, 60)], (300, 200))


def test_punctuation_stays_at_its_formula_and_ranges_stay_in_one_piece() -> None:
    math = r'<span class="math notranslate nohighlight">\(x\)</span>'
    assert book_tidy.joined(f"<p>for {math}. Then</p>") == f'<p>for <span class="joined">{math}.</span> Then</p>'
    assert book_tidy.joined(f"<p>{math} holds.</p>") == f"<p>{math} holds.</p>"
    assert book_tidy.joined('Solution to<a href="#e"> Exercise 1</a>') == 'Solution to <a href="#e">Exercise 1</a>'
    assert book_tidy.held_together("<td>1.5 - 2.25</td>") == "<td>1.5\N{NO-BREAK SPACE}-\N{NO-BREAK SPACE}2.25</td>"


def test_icons_that_no_page_names_go_and_the_others_stay_as_they_are() -> None:
    bars, search = (
        'bars:[448,512,["navicon"],"f0c9","M0 96z"],',
        '"magnifying-glass":[512,512,[128269,"search"],"f002","M416z"]',
    )
    two = '"file":[384,512,[],"f15b",["M0 64z","M1 1z"]],'
    script = f"(()=>{{var c={{{bars}{two}{search}}};go(c)}})()"
    assert book_tidy.icons_of(script, {"bars", "file", "search"}) == script  # by its other name
    assert book_tidy.icons_of(script, {"file"}) == f"(()=>{{var c={{{two}}};go(c)}})()"
    assert book_tidy.icons_of(script, set()) == "(()=>{var c={};go(c)})()"
