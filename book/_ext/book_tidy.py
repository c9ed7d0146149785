"""Sphinx extension: mends, page by page, what the theme and its helpers get wrong for this book.

* sphinx-thebe writes its constants twice (a JavaScript error) although the book offers no live kernel;
* the theme starts without a colour mode (an error on the console) instead of following the reader's system;
* bibliographies carry the role "list" around items that are none for a screen reader;
* intervals and counts in the cells of tables break in the middle where a column is narrow.
"""

from __future__ import annotations

import re
from typing import Any

UNUSED_SCRIPTS = ("thebe", "require.min.js", "@jupyter-widgets")
ROLES = (' role="list"', ' role="doc-biblioentry"')
CELL = re.compile(r"<td[^>]*>[^<]*</td>")
TOGETHER = re.compile(r"(?<=\[)[^][]+(?=\])|\b\d+ of \d+\b")  # what stands in brackets; "3 of 5"


def is_unused(script: Any) -> bool:
    """Whether a script belongs to live kernels or widgets, which a static page has none of."""
    said = f"{getattr(script, 'filename', None) or ''} {getattr(script, 'attributes', {}).get('body') or ''}"
    return any(name in said.lower() for name in UNUSED_SCRIPTS)


def held_together(body: str) -> str:
    """The page with intervals and counts in cells of tables that do not break across lines."""

    def cell(found: re.Match[str]) -> str:
        return TOGETHER.sub(lambda part: part[0].replace(" ", "\N{NO-BREAK SPACE}"), found[0])

    return CELL.sub(cell, body)


def tidy(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Change what is handed to the template of one page."""
    context["default_mode"] = "auto"
    context["script_files"] = [s for s in context.get("script_files", []) if not is_unused(s)]
    if "citation-list" in (body := context.get("body") or ""):
        for role in ROLES:
            body = body.replace(role, "")
        context["body"] = body
    if "<td" in body:
        context["body"] = held_together(body)


def setup(app: Any) -> dict[str, bool]:
    """Sphinx calls this; the late priority lets every other extension speak first."""
    app.connect("html-page-context", tidy, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
