"""The whole book as one PDF: every page of the contents, printed by the system's Chromium. Called by ``make pdf``.

The built pages are joined in one document (links between pages become links within it, solutions move to the end), and
Chromium prints that with bookmarks from the headings. Code that is folded on a page is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.server
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
LEFT_OUT = {"book/records", "book/explorer"}  # for the screen
JOIN = """async (pages) => {
    const slug = name => name.replace('/', '-'), known = new Map(), root = location.origin + '/';
    for (const [name] of pages) known.set(root + name + '.html', slug(name));
    document.body.replaceChildren();
    document.body.className = 'printed';
    const answers = document.createElement('section');
    for (const [name, part] of pages) {
        const address = root + name + '.html';
        const page = new DOMParser().parseFromString(await (await fetch(address)).text(), 'text/html');
        const article = page.querySelector('article');
        article.querySelectorAll('script, .headerlink, .copybtn, .toggle-button, details.hide, .plotly-graph-div')
            .forEach(e => e.remove());
        article.querySelectorAll('[role=heading]').forEach(e => e.removeAttribute('role'));  // no bookmarks
        article.querySelectorAll('.offer').forEach(e => e.remove());  // downloads are for the screen
        article.querySelectorAll('[id]').forEach(e => { e.id = slug(name) + '--' + e.id; });
        article.querySelectorAll('img[src]').forEach(e => { e.src = new URL(e.getAttribute('src'), address); });
        for (const link of article.querySelectorAll('a[href]')) {
            const to = new URL(link.getAttribute('href'), address), page = known.get(to.origin + to.pathname);
            if (page) link.setAttribute('href', '#' + page + (to.hash ? '--' + to.hash.slice(1) : ''));
            else if (to.origin === location.origin) link.removeAttribute('href');
        }
        article.querySelectorAll('.solution').forEach(e => answers.append(e));
        let opening = [];
        if (part) {
            const title = document.createElement('h1');
            title.textContent = part;
            title.className = 'part';
            opening = [title];
        }
        const chapter = document.createElement('article');
        chapter.id = slug(name);
        chapter.append(...article.childNodes);
        for (let level = 5; level >= 1; level--)  // a page is a chapter of its part
            chapter.querySelectorAll('h' + level).forEach(e => {
                const lower = document.createElement('h' + (level + 1));
                lower.append(...e.childNodes);
                if (e.id) lower.id = e.id;
                e.replaceWith(lower);
            });
        chapter.prepend(...opening);
        document.body.append(chapter);
    }
    const title = document.createElement('h1');
    title.textContent = 'Solutions';
    title.className = 'part';
    answers.prepend(title);
    document.body.append(answers);
    await MathJax.startup.promise;
    await MathJax.typesetPromise();
    await Promise.all([...document.images].map(i => i.decode().catch(() => 0)));
    return document.querySelectorAll('mjx-merror').length;
}"""
# Chromium takes bookmarks from the laid out lines of headings. It doubles the words of a heading whose margin is cut
# off by the end of a page, so the room above is padding. It joins two lines of a title without a space unless kept.
STYLE = """
html { scroll-padding: 0; }
body.printed { font-size: 10.5pt; margin: 0; background: white; color: black; }
body.printed > :is(article, section) { break-before: page; }
body.printed > article:first-of-type { break-before: auto; }
.printed :is(h1, h2, h3, h4, h5, h6) { margin-top: 0; padding-top: 1em; white-space: pre-wrap; }
.printed :is(h1, h2, h3, h4, h5, h6) { break-after: avoid; break-inside: avoid; }
h1.part { padding-top: 35vh; break-after: page; text-align: center; }
.printed :is(pre, .cell_output pre) { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 7.5pt; }
.printed img { max-width: 100%; break-inside: avoid; }
.printed table { font-size: 7.5pt !important; }
.printed .output.text_html, .printed .pst-scrollable-table-container { overflow: visible; }
.printed mjx-container[display] { overflow: visible; }
.printed :is(.dropdown > *, .toggle-hidden, .toggle > *) { display: block !important; height: auto !important; }
.printed :is(.dropdown > *, .toggle-hidden, .toggle > *) { opacity: 1 !important; visibility: visible !important; }
"""


def chapters(toc: Path) -> list[tuple[str, str]]:
    """The pages of the contents, each with the caption of the part that it opens ('' otherwise)."""
    contents = yaml.safe_load(toc.read_text(encoding="utf-8"))
    found = [(contents["root"], "")]
    for part in contents["parts"]:
        names = [chapter["file"] for chapter in part["chapters"] if chapter["file"] not in LEFT_OUT]
        found += [(name, part["caption"] if i == 0 else "") for i, name in enumerate(names)]
    return found


def chromium() -> str | None:
    """The system's Chromium: that of $CHROMIUM, or the first on the PATH."""
    names = [os.environ.get("CHROMIUM", ""), *CHROMIUM_NAMES]
    return next(filter(None, (shutil.which(name) for name in names if name)), None)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server over a folder, on a free port of this machine."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def print_book(html: Path, pages: list[tuple[str, str]], target: Path, browser: str) -> None:
    """Join built pages and print them to `target`. Raises RuntimeError where a formula cannot be set."""
    from playwright.sync_api import sync_playwright

    with (
        served(html) as site,
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=browser, args=FLAGS) as chrome,
    ):
        page = chrome.new_page()
        page.set_default_timeout(300_000)
        page.goto(f"{site}{pages[0][0]}.html", wait_until="load")
        page.add_style_tag(content=STYLE)
        if faults := page.evaluate(JOIN, [list(each) for each in pages]):
            raise RuntimeError(f"{faults} formulas of the book cannot be set")
        number = "<div style='font-size:8px;width:100%;text-align:center'><span class='pageNumber'></span></div>"
        page.pdf(
            path=target, format="A4", outline=True, tagged=True, print_background=True, display_header_footer=True,
            header_template="<span></span>", footer_template=number,
            margin={"top": "18mm", "bottom": "18mm", "left": "20mm", "right": "20mm"},
        )  # fmt: skip


def main() -> int:
    """Command line: where the PDF goes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, default=ROOT / "_build" / "book.pdf", metavar="FILE")
    target, html, browser = parser.parse_args().into, ROOT / "_build" / "html", chromium()
    if browser is None or not (html / "index.html").is_file():
        missing = "a built book (make book)" if browser else f"one of {', '.join(CHROMIUM_NAMES)}, or $CHROMIUM"
        print(f"make pdf: there is no {missing}", file=sys.stderr)
        return 1
    print_book(html, chapters(ROOT / "_toc.yml"), target, browser)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
