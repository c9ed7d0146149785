"""The page of verdicts in a real browser, read from files as a reader without a server would: filters, links, phone.

Skipped as the other browser tests are.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from urllib.parse import unquote, urlparse

import pytest
from test_browser import DESK, HTML, PHONE, launched, open_file

from rddlib.analysis import rules

pytestmark = pytest.mark.browser

VERDICTS = HTML / "book" / "verdicts.html"
ROWS = "#verdict-table tbody tr"


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with launched(VERDICTS) as chromium:
        yield chromium


@pytest.fixture
def page(browser):
    """The page of verdicts over file://, with what the console complained of."""
    context = browser.new_context(viewport=DESK)
    page = open_file(context, VERDICTS)
    page.wait_for_selector("#verdict-filters:visible")
    yield page
    context.close()


def shown(page) -> list[dict[str, str]]:
    """What the visible rows say of themselves."""
    return page.eval_on_selector_all(
        ROWS, "rows => rows.filter(r => r.offsetParent !== null).map(r => ({...r.dataset}))"
    )


def test_filters_leave_the_rows_that_fit_and_say_how_many(page) -> None:
    every = shown(page)
    assert len(every) > 200
    for name in ("table", "family", "verdict", "reading"):
        for value in sorted({row[name] for row in every}):
            page.select_option(f"#verdict-filters [name={name}]", value)
            assert shown(page) == [row for row in every if row[name] == value]
            assert page.inner_text("#verdict-count") == f"{len(shown(page))} of {len(every)} claims."
        page.click("#verdict-filters button[type=reset]")
        page.wait_for_function(f"document.querySelectorAll('{ROWS}:not([hidden])').length === {len(every)}")
    assert page.faults == []


def test_decided_claims_stand_before_the_open_ones(page) -> None:
    rank = {name: n for n, name in enumerate(rules.VERDICTS)}
    found = [rank[row["verdict"]] for row in shown(page)]
    assert found == sorted(found)
    bodies = page.eval_on_selector_all(
        "#verdict-table tbody", "all => all.map(b => [...new Set([...b.rows].map(r => r.dataset.verdict))])"
    )
    decided = {rules.SUPPORTED, rules.NO_DIFFERENCE, rules.CONTRADICTED}
    assert set(bodies[0]) <= decided and not decided & set(bodies[-1])


def test_two_filters_hold_together_and_the_address_brings_them_back(page) -> None:
    page.select_option("#verdict-filters [name=table]", "2")
    page.select_option("#verdict-filters [name=reading]", "upper")
    both = shown(page)
    assert both and all(row["table"] == "2" and row["reading"] == "upper" for row in both)
    page.reload(wait_until="load")
    assert shown(page) == both
    assert page.faults == []


def test_filters_work_with_the_keyboard_alone(page) -> None:
    page.focus("#verdict-filters [name=table]")
    page.keyboard.press("ArrowDown")
    assert {row["table"] for row in shown(page)} == {"1"}
    for _ in range(4):
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.type") == "reset"
    page.keyboard.press("Enter")
    page.wait_for_function(f"document.querySelectorAll('{ROWS}:not([hidden])').length > 200")


def test_without_the_script_every_claim_is_there(browser) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(VERDICTS.as_uri())
    assert page.locator(ROWS).count() > 200
    assert not page.locator("#verdict-filters").is_visible()
    context.close()


def test_every_link_of_the_table_leads_somewhere(page) -> None:
    for address in set(page.eval_on_selector_all("#verdict-table a", "links => links.map(a => a.href)")):
        parts = urlparse(address)
        assert parts.scheme == "file" and os.path.exists(unquote(parts.path)), address
    named = set(
        page.eval_on_selector_all("#verdict-table a[href*='#record-']", "links => links.map(a => a.hash.slice(1))")
    )
    page.goto((HTML / "book" / "records.html").as_uri())
    there = set(page.eval_on_selector_all("tr[id^=record-]", "rows => rows.map(r => r.id)"))
    assert named <= there


def test_a_number_leads_to_its_record_and_the_record_is_that_run(page) -> None:
    cell = page.locator(f"{ROWS} details:has(a[href*='#record-'])").first
    if not cell.count():
        pytest.skip("no claim has records yet")
    cell.locator("summary").click()
    link = cell.locator("a").first
    key = link.get_attribute("href").split("#record-")[1]
    link.click()
    page.wait_for_url("**/records.html#record-*")
    row = page.locator(f"#record-{key}")
    assert row.is_visible()
    file = HTML / "book" / row.locator("a").first.get_attribute("href")
    assert json.loads(file.read_text())["key"] == key


@pytest.mark.parametrize("name", ["30_table1_accuracy", "31_table2_robustness", "33_table4_ablation"])
def test_a_table_of_the_paper_leads_to_the_records_of_its_numbers(page, name: str) -> None:
    page.goto((HTML / "notebooks" / f"{name}.html").as_uri(), wait_until="load")
    links = page.locator("article td a[href*='records.html#record-']")
    keys = [address.split("#record-")[1] for address in links.evaluate_all("all => all.map(a => a.href)")]
    assert keys and all(key.startswith(text) for key, text in zip(keys, links.all_inner_texts(), strict=True))
    links.first.click()
    page.wait_for_url("**/records.html#record-*")
    there = set(page.eval_on_selector_all("tr[id^=record-]", "rows => rows.map(r => r.id.slice(7))"))
    assert set(keys) <= there and page.locator(f"#record-{keys[0]}").is_visible()


def test_rows_become_blocks_on_a_phone(browser) -> None:
    context = browser.new_context(viewport=PHONE)
    page = context.new_page()
    page.goto(VERDICTS.as_uri(), wait_until="load")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.eval_on_selector(f"{ROWS} td", "cell => getComputedStyle(cell).display") == "block"
    context.close()


@pytest.mark.parametrize(("name", "image"), [("index", "effects.png"), ("short_loop", "short_loop.png")])
def test_a_figure_of_verdicts_is_there_light_and_described(page, name: str, image: str) -> None:
    page.goto((HTML / "book" / f"{name}.html").as_uri(), wait_until="load")
    picture = page.locator(f"article img[src$='{image}']")
    if name == "index" and not picture.count():
        pytest.skip("no comparison can be judged yet")
    assert picture.evaluate("i => i.naturalWidth") > 300
    assert "95 % intervals" in picture.get_attribute("alt")
    assert (HTML / "_images" / image).stat().st_size <= 150_000
