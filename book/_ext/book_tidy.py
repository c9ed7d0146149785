"""Sphinx extension: mends, page by page, what the theme and its helpers get wrong for this book.

* sphinx-thebe writes its constants twice (a JavaScript error) although the book offers no live kernel;
* the theme starts without a colour mode (an error on the console) instead of following the reader's system;
* bibliographies carry the role "list" around items that are none for a screen reader;
* intervals and counts in the cells of tables break in the middle where a column is narrow, and long names nowhere;
* a page does not say how it is run, or that there is a PDF;
* a picture on white is a grey slab on a dark page: it is marked, and the style sheet turns it dark, but for the
  photographs in it;
* a full stop after a formula begins the next line, and the link of a solution is underlined from its space;
* a table of pandas has a second header row for the name of its index, a column that only counts rows, and numbers
  that are not aligned;
* the theme brings two thousand icons (1.5 MB of script), of which the pages show about fifteen.
"""

from __future__ import annotations

import html
import importlib.util
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

UNUSED_SCRIPTS = ("thebe", "require.min.js", "@jupyter-widgets")
ROLES = (' role="list"', ' role="doc-biblioentry"')
CELL = re.compile(r"<td[^>]*>[^<]*</td>")
FRAME = re.compile(r'<table border="1" class="dataframe">.*?</table>', re.DOTALL)
ROW = re.compile(r"<tr[^>]*>.*?</tr>", re.DOTALL)
FIELD = re.compile(r"<(t[hd])(?=[ >])([^>]*)>(.*?)</t[hd]>", re.DOTALL)
NUMBER = re.compile(r"[-+\N{MINUS SIGN}]?[\d.,]+( ?%)?(\s*\[[^]]*\])?|\d+ of \d+|-|")
OFFERS = {
    "book/index": ("book.pdf", "The whole book as one PDF"),
    "book/teaching": ("class.zip", "Notebooks and slides for a class"),
}
PICTURE = re.compile(r'<img (?![^>]*class=)(?=[^>]*src="(\.\./_images/([^"]+))")[^>]*>')
MOSTLY = 0.8  # white share of charts in lines; those with bands and bars have less, as pictures with photographs have
SOME = 0.3
SMALLEST = 14  # pixels a side of an image in a figure; letters are smaller
Box = tuple[int, int, int, int]  # left, top, width, height in pixels
COLUMN = 688  # pixels that a page 1280 pixels wide has for its text
LONG_NAME = re.compile(r"(?<=[\w)])([_/.])(?=\w)")
CODE_IN_CELL = re.compile(r'(?<=<span class="pre">)[^<\s]{16,}(?=</span>)')
# What stands in brackets, "3 of 5", "1.2 - 3.4".
TOGETHER = re.compile(r"(?<=\[)[^][]+(?=\])|\b\d+ of \d+\b|\b[\d.]+ - [\d.]+\b")
FORMULA = re.compile(r'(<span class="math[^>]*>[^<]*</span>)([.,;:)?!]+)')
ICON = re.compile(
    r'(?:"([\w-]+)"|([\w$]+)):\[\d+,\d+,\[([^][]*)\],"[0-9a-f]*",(?:"[^"]*"|\["[^"]*"(?:,"[^"]*")*\])\],?'
)
ICONS = Path("_static") / "scripts" / "fontawesome.js"
SOLUTION = re.compile(r"(Solution to)(<a [^>]*>) ")


def is_unused(script: Any) -> bool:
    """Whether a script belongs to live kernels or widgets, which a static page has none of."""
    said = f"{getattr(script, 'filename', None) or ''} {getattr(script, 'attributes', {}).get('body') or ''}"
    return any(name in said.lower() for name in UNUSED_SCRIPTS)


def held_together(body: str) -> str:
    """The page with intervals and counts in cells of tables that do not break across lines."""

    def cell(found: re.Match[str]) -> str:
        return TOGETHER.sub(lambda part: part[0].replace(" ", "\N{NO-BREAK SPACE}"), found[0])

    return CELL.sub(cell, body)


def frame(found: re.Match[str]) -> str:
    """A table of pandas without a header row for the index alone or a column of row numbers; numbers are marked."""
    head, body = found[0].split("</thead>", 1)
    rows = ROW.findall(head)
    if len(rows) > 1:
        upper, lower = ([field[2].strip() for field in FIELD.findall(row)] for row in rows[-2:])
        named = sum(1 for text in lower if text)
        if not any(lower[named:]) and not any(upper[:named]):  # names of the index, then nothing
            cells = "".join(f"<th>{text}</th>" for text in [*lower[:named], *upper[named:]])
            head = head.replace(rows[-2], f"<tr>{cells}</tr>", 1).replace(rows[-1], "", 1)
    lines = ROW.findall(body)
    firsts = [field[2].strip() for line in lines for field in FIELD.findall(line)[:1]]
    unnamed = re.fullmatch(r".*?<tr[^>]*>\s*<th></th>(?!.*<tr).*", head, re.DOTALL)
    if len(firsts) > 1 and firsts == [str(i) for i in range(len(firsts))] and unnamed:
        head = head.replace("<th></th>", "", 1)
        body = re.sub(r"(<tr[^>]*>\s*)<th[^>]*>\d+</th>", r"\1", body)
    if _least_width(ROW.findall(head)[-1:] + ROW.findall(body)) > COLUMN:
        head = re.sub(r"(?<=<th>)\w+(?=</th>)", lambda name: name[0].replace("_", "_<wbr>"), head)
        head = head.replace('class="dataframe"', 'class="dataframe wide"', 1)
    return _aligned(head + "</thead>" + body)


def _least_width(rows: list[str]) -> float:
    """Pixels that a table takes with every line broken where it may: its longest words and the padding."""
    words = [[max(map(len, re.split(r" (?![^[]*\])|<br>", field[2]))) for field in FIELD.findall(row)] for row in rows]
    columns = max(map(len, words), default=0)
    return sum(7.4 * max(row[-k] for row in words if len(row) >= k) + 18 for k in range(1, columns + 1))


def _aligned(table: str) -> str:
    """Mark the cells of columns in which nothing but numbers stands, and their heading in a plain header."""
    head, body = table.split("</thead>", 1)
    rows = [FIELD.findall(row) for row in ROW.findall(body)]
    width = max(map(len, rows), default=0)
    # Columns are counted from the right: row labels may span several rows.
    numeric = {
        k for k in range(1, width + 1)
        if all(row[-k][0] == "td" and NUMBER.fullmatch(row[-k][2].strip()) for row in rows if len(row) >= k)
    }  # fmt: skip

    def marked(row: re.Match[str]) -> str:
        fields = FIELD.findall(row[0])
        count = len(fields)
        place = iter(range(count, 0, -1))

        def one(field: re.Match[str]) -> str:
            name = ' class="number"' if next(place) in numeric else ""
            return f"<{field[1]}{field[2]}{name}>{field[3]}</{field[1]}>"

        return FIELD.sub(one, row[0])

    head = ROW.sub(lambda row: row[0] if "colspan" in row[0] else marked(row), head)
    return head + "</thead>" + ROW.sub(marked, body)


def breakable(body: str) -> str:
    """Long names in cells of tables may break after an underscore, a point or a slash, and nowhere else."""

    def cell(found: re.Match[str]) -> str:
        return CODE_IN_CELL.sub(lambda name: LONG_NAME.sub(r"\1<wbr>", name[0]), found[0])

    return re.sub(r"<td[^>]*>.*?</td>", cell, body, flags=re.DOTALL)


def pictures(body: str, files: Mapping[str, Path]) -> str:
    """Mark pictures on white, for the style sheet to turn dark; photographs in them keep their colours.

    files: name of a picture on the site -> its file. Over a picture with photographs lies a second copy, cut to them.
    """

    def marked(found: re.Match[str]) -> str:
        path = files.get(found[2])
        if path is None or path.suffix not in {".png", ".svg"}:
            return found[0]
        chart = found[0].replace("<img ", '<img class="chart" ', 1)
        white = 1.0 if path.suffix == ".svg" else white_share(path)
        if white > MOSTLY:
            return chart
        photographs, size = photographs_in(path)
        if not photographs:  # bands and bars, unless the picture as a whole is a photograph
            return chart if white > SOME else found[0]
        copy = f'<span class="photographs" style="background-image: url({found[1]})"></span>'
        return f'<span class="sheet" style="--boxes: {outlines(photographs, size)}">{chart}{copy}</span>'

    return PICTURE.sub(marked, body)


def white_share(path: Path) -> float:
    """The share of a picture that is white, or nearly."""
    with Image.open(path) as picture:
        darkest = np.asarray(picture.convert("RGB")).min(axis=2)
    return float((darkest >= 240).mean())


def photographs_in(path: Path) -> tuple[list[Box], tuple[int, int]]:
    """Where a figure on white has images or maps of colour, which are rectangles of ink; and its width and height.

    Axes, shaded bands and bars are open at a side or hold much white.
    """
    with Image.open(path) as picture:
        ink = np.asarray(picture.convert("RGB")).min(axis=2) < 254  # (height, width)
    parts, _ = ndimage.label(ink, np.ones((3, 3)))
    boxes = []
    for rows, columns in ndimage.find_objects(parts):
        top, bottom, left, right = _trimmed(ink, rows.start, rows.stop, columns.start, columns.stop)
        part = ink[top:bottom, left:right]
        if min(part.shape) < SMALLEST:
            continue
        outline = np.concatenate([part[0], part[-1], part[:, 0], part[:, -1]]).mean()
        full = 0.7 if max(part.shape) <= 150 else 0.85  # strokes of digits are white, too
        if part.mean() >= full and outline >= 0.4:
            boxes.append((left, top, right - left, bottom - top))
    height, width = ink.shape
    return boxes, (width, height)


def _trimmed(ink: NDArray[np.bool_], top: int, bottom: int, left: int, right: int) -> tuple[int, int, int, int]:
    """A box without the ticks that stand out of it: at most eight lines a side that are mostly white."""
    for _ in range(8):
        part = ink[top:bottom, left:right]
        if min(part.shape) < SMALLEST:
            break
        top += int(part[0].mean() < 0.3)
        bottom -= int(part[-1].mean() < 0.3)
        left += int(part[:, 0].mean() < 0.3)
        right -= int(part[:, -1].mean() < 0.3)
    return top, bottom, left, right


def outlines(boxes: list[Box], size: tuple[int, int]) -> str:
    """Points for a polygon of CSS around the boxes of a picture: from its corner around one box, back, and so on."""
    points = ["0 0"]
    for left, top, width, height in boxes:
        xs = [f"{100 * x / size[0]:.3f}%" for x in (left, left + width)]
        ys = [f"{100 * y / size[1]:.3f}%" for y in (top, top + height)]
        corners = [(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)]
        points += [f"{xs[x]} {ys[y]}" for x, y in corners] + ["0 0"]
    return ", ".join(points)


def joined(body: str) -> str:
    """The page with punctuation that stays at its formula, and links of solutions that begin with their first word."""
    body = FORMULA.sub(r'<span class="joined">\1\2</span>', body)
    return SOLUTION.sub(r"\1 \2", body)


def offer(folder: Path, pagename: str, address: str) -> str:
    """A line below a page's title: what can be downloaded there, or how the page is run. '' for most pages.

    folder: what lies beside the pages (`book/_static`); address: that of the repository, '' if it is not known.
    """
    name, words = OFFERS.get(pagename, ("", ""))
    if name and (folder / name).is_file():
        size = (folder / name).stat().st_size / 1e6
        return f'<p class="offer"><a href="../_static/{name}" download>{words}</a> ({size:.0f} MB)</p>'
    if not pagename.startswith("notebooks/"):
        return ""
    notebook = f'<a href="../_sources/{pagename}.ipynb" download>Download this notebook</a>'
    if not address:
        return f'<p class="offer">{notebook}. It needs the library: <code>make env</code> in the project\'s folder.</p>'
    commands = f"!git clone --depth 1 {address} project\n!pip install -q -e project\n%cd project/notebooks"
    return (
        f'<p class="offer">{notebook}, or use the rocket above. On Colab, run this in a first cell:</p>'
        f'<pre class="offer">{html.escape(commands)}</pre>'
    )


def tidy(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Change what is handed to the template of one page."""
    context["default_mode"] = "auto"
    context["script_files"] = [s for s in context.get("script_files", []) if not is_unused(s)]
    if "citation-list" in (body := context.get("body") or ""):
        for role in ROLES:
            body = body.replace(role, "")
        context["body"] = body
    folder = Path(app.srcdir) / "book" / "_static"
    if added := offer(folder, pagename, os.environ.get("REPOSITORY_URL", "").rstrip("/")):
        body = body.replace("</h1>", f"</h1>\n{added}", 1)
        context["body"] = body
    if "/_images/" in body:
        files = {name: Path(app.srcdir) / source for source, name in app.builder.images.items()}
        context["body"] = body = pictures(body, files)
    body = joined(body)
    if "<td" in body:
        body = breakable(held_together(FRAME.sub(frame, body)))
    if body:
        context["body"] = body


def icons_of(script: str, used: set[str]) -> str:
    """The script of the icons with those of `used` alone; an icon has a name and may have others."""

    def kept(found: re.Match[str]) -> str:
        names = {found[1] or found[2], *re.findall(r'"([^"]+)"', found[3])}
        return found[0] if names & used else ""

    return ICON.sub(kept, script)


def lighten(app: Any, exception: Exception | None) -> None:
    """Keep of the theme's icons those that a page or a script of the site names."""
    site = Path(app.outdir)
    theme = importlib.util.find_spec("pydata_sphinx_theme")
    if exception or theme is None or theme.origin is None or not (site / ICONS).is_file():
        return
    # from the theme, not from the site: an earlier build may have left too few
    whole = Path(theme.origin).parent / "theme" / "pydata_sphinx_theme" / "static" / ICONS.relative_to("_static")
    named = [*site.rglob("*.html"), *(p for p in site.rglob("*.js") if p != site / ICONS)]
    used = {name for path in named for name in re.findall(r"fa-([a-z0-9-]+)", path.read_text(encoding="utf-8"))}
    script = icons_of(whole.read_text(encoding="utf-8"), used)
    (site / ICONS).write_text(re.sub(r"\n//# sourceMappingURL=.*", "\n", script), encoding="utf-8")
    (site / ICONS).with_suffix(".js.map").unlink(missing_ok=True)


def setup(app: Any) -> dict[str, bool]:
    """Sphinx calls this; the late priority lets every other extension speak first."""
    app.connect("html-page-context", tidy, priority=900)
    app.connect("build-finished", lighten)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
