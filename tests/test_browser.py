"""The built book in a real browser: the system's Chromium, driven by Playwright, over a server on this machine.

Skipped, and said so, where there is no Chromium or no built book (`make book`); RDDLIB_REQUIRE_BROWSER=1 turns that
skip into a failure.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "_build" / "html"
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


def toc_pages() -> list[str]:
    """Every page that the table of contents names, without suffix."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())

    def files(node: object) -> Iterator[str]:
        if isinstance(node, dict):
            yield from ([node["file"]] if "file" in node else [])
            for value in node.values():
                yield from files(value)
        elif isinstance(node, list):
            for item in node:
                yield from files(item)

    return [toc["root"], *files(toc)]


PAGES = toc_pages()
every_page = pytest.mark.parametrize("name", PAGES)


def absent(reason: str) -> None:
    if os.environ.get("RDDLIB_REQUIRE_BROWSER"):
        pytest.fail(reason)
    pytest.skip(reason)


@contextlib.contextmanager
def launched(needed: Path) -> Iterator[object]:
    """The system's Chromium; the tests are `absent` without one, or where the page `needed` has not been built."""
    if not needed.exists():
        absent("the book is not built: run `make book`")
    sync_api = pytest.importorskip("playwright.sync_api")
    names = [os.environ.get("CHROMIUM", ""), *CHROMIUM_NAMES]
    path = next(filter(None, (shutil.which(name) for name in names if name)), None)
    if path is None:
        absent(f"no browser: none of {', '.join(CHROMIUM_NAMES)} is on the PATH, and CHROMIUM is not set")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


def open_file(context, path: Path, anchor: str = ""):
    """A built page read from its file, in a window of `context`; `page.faults` is what the console complained of."""
    page = context.new_page()
    page.faults = []
    page.on("console", lambda m: page.faults.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.goto(path.as_uri() + anchor, wait_until="load")
    return page


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """Address of a server over the built book, on a free port of this machine."""
    if not (HTML / "index.html").exists():
        absent("the book is not built: run `make book`")
    handler = functools.partial(QuietHandler, directory=str(HTML))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser(site: str) -> Iterator[object]:
    with launched(HTML / "index.html") as chromium:
        yield chromium


class Visit:
    """One page in one window, with what went wrong on the way."""

    def __init__(self, browser, site: str, viewport: dict[str, int], scheme: str) -> None:
        self.site, self.errors, self.foreign = site, [], []
        self.context = browser.new_context(viewport=viewport, color_scheme=scheme)
        self.page = self.context.new_page()
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("response", lambda r: self.errors.append(f"{r.status} {r.url}") if r.status >= 400 else None)
        self.page.route("**/*", self._route)

    def _route(self, route) -> None:
        if route.request.url.startswith((self.site, "data:", "blob:")):
            return route.continue_()
        self.foreign.append(route.request.url)
        return route.abort()

    def go(self, name: str) -> Visit:
        self.page.goto(f"{self.site}{name}.html", wait_until="networkidle")
        self.page.evaluate("() => window.MathJax?.startup?.promise")
        return self


@pytest.fixture
def visit(browser, site: str) -> Iterator[Callable[..., Visit]]:
    """Open pages: visit(name, viewport=..., scheme=...)."""
    opened: list[Visit] = []

    def open_page(name: str, viewport: dict[str, int] = DESK, scheme: str = "light") -> Visit:
        opened.append(Visit(browser, site, viewport, scheme))
        return opened[-1].go(name)

    yield open_page
    for each in opened:
        each.context.close()


@pytest.fixture(scope="module")
def seen_page(browser, site: str) -> Iterator[Callable[[str], Visit]]:
    """A page at desk width in light mode, loaded once for all tests that only look: seen_page(name)."""
    kept: dict[str, Visit] = {}

    def look(name: str) -> Visit:
        if name not in kept:
            kept[name] = Visit(browser, site, DESK, "light").go(name)
        return kept[name]

    yield look
    for each in kept.values():
        each.context.close()


@every_page
def test_page_loads_without_an_error_and_from_this_site_alone(seen_page, name: str) -> None:
    seen = seen_page(name)
    assert seen.foreign == []
    assert seen.errors == []


def test_a_foreign_request_and_an_error_are_noticed(visit) -> None:
    seen = visit(PAGES[0])
    seen.page.evaluate("() => fetch('https://example.org/x').catch(() => 0)")
    seen.page.evaluate("() => console.error('planted')")
    assert seen.foreign == ["https://example.org/x"]
    assert "planted" in seen.errors


@every_page
def test_math_is_rendered(seen_page, name: str) -> None:
    page = seen_page(name).page
    formulas = page.locator("article .math").count()
    assert page.locator("article .math mjx-container").count() >= formulas
    assert page.locator("mjx-merror, .MathJax_Error").count() == 0
    assert name != "book/notation" or formulas > 50


@every_page
def test_every_image_has_an_alternative_text(seen_page, name: str) -> None:
    texts = seen_page(name).page.eval_on_selector_all(
        "article img", "images => images.map(i => i.getAttribute('alt') || '')"
    )
    poor = [text for text in texts if len(text.strip()) < 8 or text.strip().endswith((".png", ".svg"))]
    assert poor == []


@every_page
def test_every_figure_of_the_notebook_is_shown(seen_page, name: str) -> None:
    path = ROOT / f"{name}.ipynb"
    cells = json.loads(path.read_text())["cells"] if path.exists() else []
    shown = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    figures = sum("image/png" in data or "image/jpeg" in data for data in shown)
    page = seen_page(name).page
    images = page.locator("article .cell_output img").count()
    broken = page.eval_on_selector_all("article img", "images => images.filter(i => !i.naturalWidth).map(i => i.src)")
    assert images == figures
    assert broken == []


@every_page
def test_no_sideways_scroll_on_a_phone(visit, name: str) -> None:
    page = visit(name, viewport=PHONE).page
    wide = page.evaluate("""() => document.documentElement.scrollWidth <= window.innerWidth ? [] :
        [...document.querySelectorAll('article *')].filter(e => e.getBoundingClientRect().right > window.innerWidth + 1)
        .slice(0, 5).map(e => e.outerHTML.slice(0, 120)).concat(String(document.documentElement.scrollWidth))""")
    assert wide == []


@every_page
def test_no_code_output_or_table_is_wider_than_its_column(seen_page, name: str) -> None:
    """At 1280 px nothing is cut off or scrolls, folded code included."""
    page = seen_page(name).page
    page.evaluate("() => document.querySelectorAll('article details').forEach(d => { d.open = true; })")
    wide = page.evaluate("""() => {
        const article = document.querySelector('article'), style = getComputedStyle(article);
        const right = article.getBoundingClientRect().right - parseFloat(style.paddingRight) + 1;
        return [...article.querySelectorAll('div.highlight pre, .cell_output pre, table')]
            .filter(e => e.getBoundingClientRect().right > right || e.scrollWidth > e.clientWidth + 1)
            .map(e => `${e.tagName}: ${e.textContent.trim().slice(0, 80)}`);
    }""")
    assert wide == []


def test_a_block_that_is_too_wide_is_noticed(visit) -> None:
    page = visit("book/scale_out").page
    page.evaluate("() => { document.querySelector('article div.highlight pre').textContent = 'x'.repeat(300); }")
    with pytest.raises(AssertionError):
        test_no_code_output_or_table_is_wider_than_its_column(lambda _: SimpleNamespace(page=page), "")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@every_page
def test_axe_finds_no_serious_fault(visit, seen_page, name: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    seen = seen_page(name) if scheme == "light" else visit(name, scheme=scheme)
    violations = axe.run(seen.page).response["violations"]
    grave = [
        f"{v['id']}: {node['html'][:160]} {node.get('failureSummary', '')[:300]}"
        for v in violations
        if v["impact"] in ("serious", "critical")
        for node in v["nodes"]
    ]
    assert seen.foreign == []
    assert grave == []


def test_axe_finds_a_planted_fault(visit) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = visit(PAGES[0]).page
    page.evaluate("() => document.querySelector('article').insertAdjacentHTML('beforeend', '<img src=\"x.png\">')")
    assert "image-alt" in {v["id"] for v in axe.run(page).response["violations"]}


def test_search_finds_cvar(visit) -> None:
    page = visit("search").page
    page.goto(page.url + "?q=CVaR")
    # Results come in one by one: the first is there before the list is.
    found = page.locator("#search-results ul.search li a[href*='notation.html']")
    found.first.wait_for(timeout=10_000)
    assert found.count() >= 1


def luminance(page, selector: str, attribute: str) -> float:
    colour = page.eval_on_selector(selector, f"e => getComputedStyle(e).{attribute}")
    red, green, blue = (float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3])
    return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255


def test_dark_mode_follows_the_system_and_the_button(visit) -> None:
    for scheme, dark in [("light", False), ("dark", True)]:
        page = visit(PAGES[0], scheme=scheme).page
        assert (luminance(page, "body", "backgroundColor") < 0.3) == dark
        assert (luminance(page, "article p", "color") > 0.6) == dark
    page = visit(PAGES[0]).page
    for _ in range(3):  # auto, light, dark
        page.locator("button.theme-switch-button:visible").first.click()
        if page.locator("html").get_attribute("data-theme") == "dark":
            break
    assert luminance(page, "body", "backgroundColor") < 0.3
