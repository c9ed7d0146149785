"""The table of records, the explorer of all runs and the slider in a real browser, read from files without a server.

Skipped as the other browser tests are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

import pytest
from test_browser import DESK, HTML, PHONE, launched, open_file

pytestmark = pytest.mark.browser

RECORDS, EXPLORER = HTML / "book" / "records.html", HTML / "book" / "explorer.html"
QUICKSTART = HTML / "notebooks" / "00_quickstart.html"
ROWS, POINTS = "#record-table tbody tr", "#explorer-plot path"


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with launched(EXPLORER) as chromium:
        yield chromium


@pytest.fixture
def visit(browser) -> Iterator[Callable]:
    """Open a file in a window of its own; `page.faults` is what the console complained of."""
    contexts = []

    def go(path, viewport=DESK, scheme="light", anchor=""):
        context = browser.new_context(viewport=viewport, color_scheme=scheme)
        contexts.append(context)
        return open_file(context, path, anchor)

    yield go
    for context in contexts:
        context.close()


# --- the table --------------------------------------------------------------------------------------------


def shown(page) -> list[dict[str, str]]:
    """What the visible rows say of themselves, in order, with their text."""
    return page.eval_on_selector_all(
        ROWS,
        "rows => rows.filter(r => !r.hidden).map(r => ({...r.dataset, key: r.id.slice(7), text: r.textContent}))",
    )


def test_filters_of_the_table_leave_the_records_that_fit(visit) -> None:
    page = visit(RECORDS)
    every = shown(page)
    assert len(every) > 700
    for name in ("dataset", "scale", "method", "term"):
        values = sorted({row[name] for row in every})
        assert page.eval_on_selector_all(f"#record-filters [name={name}] option", "all => all.map(o => o.value)") == [
            "",
            *values,
        ]
        page.select_option(f"#record-filters [name={name}]", values[-1])
        fitting = [row for row in every if row[name] == values[-1]]
        assert shown(page) == fitting
        assert page.inner_text("#record-count") == f"{len(fitting)} of {len(every)} records."
        page.click("#record-filters button[type=reset]")
        page.wait_for_function(f"document.querySelectorAll('{ROWS}:not([hidden])').length === {len(every)}")
    assert page.faults == []


def test_the_search_looks_into_settings_and_the_address_keeps_it(visit) -> None:
    page = visit(RECORDS)
    every = shown(page)
    page.fill("#record-filters [name=words]", "lr_image=0.3 Upper")
    found = shown(page)
    wanted = [r for r in every if all(w in f"{r['text']} {r['settings']}".lower() for w in ("lr_image=0.3", "upper"))]
    assert found == wanted and 0 < len(found) < len(every)
    page.reload(wait_until="load")
    assert shown(page) == wanted


@pytest.mark.parametrize(("name", "column"), [("Accuracy", 2), ("Cost", 4)])
def test_a_click_on_a_heading_sorts_by_its_numbers(visit, name: str, column: int) -> None:
    page = visit(RECORDS)

    def numbers() -> list[float]:
        texts = page.eval_on_selector_all(ROWS, f"rows => rows.map(r => r.cells[{column}].dataset.value)")
        return [float(text) for text in texts if text]

    head = page.locator("#record-table thead th").nth(column)
    assert head.get_attribute("aria-sort") == "none" and name in head.inner_text()
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert numbers() == sorted(numbers(), reverse=True) and len(set(numbers())) > 50
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending" and numbers() == sorted(numbers())
    assert page.locator("#record-table th[aria-sort=ascending]").count() == 1
    page.locator("#record-table thead button").first.click()
    keys = [row["key"] for row in shown(page)]
    assert sorted(keys, key=lambda k: k[:3]) != keys or keys[0] < keys[-1]  # by locale: digits within keys count whole
    assert head.get_attribute("aria-sort") == "none"


def test_a_phone_sorts_from_a_list(visit) -> None:
    page = visit(RECORDS, viewport=PHONE)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.select_option("#record-filters [name=order]", label="Accuracy (%), rising")
    values = page.eval_on_selector_all(ROWS, "rows => rows.map(r => Number(r.cells[2].dataset.value))")
    assert values == sorted(values)


def test_a_link_to_a_record_opens_the_table_there(visit) -> None:
    key = shown(visit(RECORDS))[-1]["key"]
    page = visit(RECORDS, anchor=f"#record-{key}")
    assert page.locator(f"#record-{key}").is_visible() and page.faults == []


# --- the explorer -----------------------------------------------------------------------------------------


def embedded(page) -> tuple[list[str], list[dict]]:
    """The names of the measures and the runs that the page holds."""
    made = json.loads(page.locator("#explorer-data").text_content())
    runs = [dict(zip(made["fields"], row, strict=True)) for row in made["runs"]]
    return [m["name"] for m in made["measures"]], runs


def test_every_pair_of_numbers_is_drawn_with_all_its_runs(visit) -> None:
    page = visit(EXPLORER)
    names, runs = embedded(page)
    logarithmic = {m["name"] for m in json.loads(page.locator("#explorer-data").text_content())["measures"] if m["log"]}
    page.select_option("#explorer-form [name=dataset]", "")
    for x, y in [("lr_image", "accuracy"), ("probe", "cluster_min"), ("minutes", "known_min"), ("seed", "ipc")]:
        page.select_option("#explorer-form [name=x]", x)
        page.select_option("#explorer-form [name=y]", y)

        def drawn(run: dict, chosen: tuple[str, ...] = (x, y)) -> bool:
            values = [run["values"][names.index(name)] for name in chosen]
            return all(v is not None and (v > 0 or n not in logarithmic) for v, n in zip(values, chosen, strict=True))

        wanted = sum(drawn(run) for run in runs)
        assert page.locator(POINTS).count() == wanted > 20
        assert page.inner_text("#explorer-count") == f"{wanted} of {len(runs)} runs have both numbers."
        box = page.locator("#explorer-plot").bounding_box()
        points = page.eval_on_selector_all(POINTS, "all => all.map(p => p.getBoundingClientRect().toJSON())")
        assert all(box["x"] <= p["x"] and p["right"] <= box["x"] + box["width"] + 1 for p in points)
        assert all(box["y"] <= p["y"] and p["bottom"] <= box["y"] + box["height"] for p in points)
        assert page.locator("#explorer-plot .grid").count() >= 4
    assert page.faults == []


def test_a_point_shows_its_images_and_leads_to_its_record(visit) -> None:
    page = visit(EXPLORER)
    page.select_option("#explorer-form [name=x]", "seed")
    _, runs = embedded(page)
    (first,) = [run for run in runs if run["picture"] and run["dataset"] == "CIFAR-10"][:1]
    page.select_option("#explorer-form [name=method]", first["method"])
    for point in page.locator(POINTS).all()[:40]:
        point.dispatch_event("click")
        if page.locator("#explorer-detail img").count():
            break
    picture = page.locator("#explorer-detail img")
    picture.wait_for()
    page.wait_for_function("document.querySelector('#explorer-detail img').complete")
    assert picture.evaluate("i => i.naturalWidth") >= 300 and "Distilled images" in picture.get_attribute("alt")
    href = page.locator("#explorer-detail a").first.get_attribute("href")
    key = href.split("#record-")[1]
    (run,) = [run for run in runs if run["key"] == key]
    assert run["arm"] in page.inner_text("#explorer-detail .what") and run["picture"] in picture.get_attribute("src")
    page.locator("#explorer-detail a").first.click()
    page.wait_for_url("**/records.html#record-*")
    assert page.locator(f"#record-{key}").is_visible()


def test_points_are_reached_with_the_keyboard_and_the_address_keeps_the_choice(visit) -> None:
    page = visit(EXPLORER)
    page.select_option("#explorer-form [name=y]", "cluster_min")
    page.focus("#explorer-form [name=method]")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.matches('#explorer-plot path')")
    before = page.inner_text("#explorer-detail")
    assert "Choose a point" not in before
    page.keyboard.press("End")
    assert page.inner_text("#explorer-detail") != before
    assert page.locator(f"{POINTS}[tabindex='0']").count() == 1 == page.locator(f"{POINTS}.chosen").count()
    page.reload(wait_until="load")
    assert page.input_value("#explorer-form [name=y]") == "cluster_min"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_terms_are_told_apart_by_shape_and_seen_on_their_ground(visit, scheme: str) -> None:
    page = visit(EXPLORER, viewport=PHONE, scheme=scheme)
    page.select_option("#explorer-form [name=dataset]", "")
    page.select_option("#explorer-form [name=x]", "minutes")
    shapes = page.eval_on_selector_all("#explorer-legend path", "all => all.map(p => p.getAttribute('d'))")
    assert len(shapes) == len(set(shapes)) >= 4
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    colours = page.eval_on_selector_all("#explorer-legend path", "all => all.map(p => getComputedStyle(p).fill)")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")

    def light(colour: str) -> float:
        parts = [int(v) / 255 for v in re.findall(r"\d+", colour)[:3]]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for colour in colours:
        low, high = sorted((light(colour), light(ground)))
        assert (high + 0.05) / (low + 0.05) >= 3, (colour, ground)


def test_the_site_stays_light(visit) -> None:
    scripts = sum(p.stat().st_size for p in HTML.rglob("*.js"))
    own = [HTML / "_static" / name for name in ("explorer.js", "records.js", "verdicts.js")]
    assert sum(p.stat().st_size for p in own) < 30_000 and scripts < 3_000_000
    assert sum(p.stat().st_size for p in (HTML / "_static" / "sets").iterdir()) < 6_000_000


def test_every_icon_that_a_page_asks_for_is_there(visit) -> None:
    page = visit(QUICKSTART)
    icons = page.locator("svg.svg-inline--fa")
    assert icons.count() > 5 and page.locator("i.fa-solid").count() == 0  # the script replaces each <i> that it knows
    assert icons.evaluate_all("all => all.every(e => e.querySelector('path').getAttribute('d').length > 20)")


# --- images while they are distilled ----------------------------------------------------------------------


def test_the_slider_shows_another_part_of_its_strip(visit) -> None:
    page = visit(QUICKSTART)
    figure = page.locator("article figure:has(input[type=range])")
    strip, slider = figure.locator("[role=img]"), figure.locator("input")
    start = strip.evaluate("e => getComputedStyle(e).backgroundPositionY")
    assert len(strip.get_attribute("aria-label")) > 40 and figure.locator("output").inner_text() == "0, real digits"
    first = strip.screenshot()
    slider.focus()
    page.keyboard.press("End")
    assert figure.locator("output").inner_text() == slider.get_attribute("max") == "8"
    assert strip.evaluate("e => getComputedStyle(e).backgroundPositionY") != start
    assert strip.screenshot() != first and page.faults == []
