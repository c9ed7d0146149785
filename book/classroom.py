"""What a class is handed: notebooks without solutions, notebooks with them, slides, and one zip of it all.

Called by ``make class``. A student's notebook has no solution and no output; an instructor's has both. The lessons are
written in Markdown (book/lessons/N_name.md): slides between lines of three hyphens, what the speaker says after a line
"Notes:", and pictures and tables taken from the notebooks, ``![what one sees](01_risk_measures#tails-figure)``.
"""

from __future__ import annotations

import argparse
import copy
import html
import json
import re
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "book" / "_ext"))
import book_tidy  # noqa: E402  (tables on slides look like those on pages)

LESSONS, STATIC = ROOT / "book" / "lessons", ROOT / "book" / "_static"
NEEDED = {"mathjax": STATIC / "mathjax", "reveal": LESSONS / "reveal"}  # what slides load, beside them

EXERCISE = re.compile(r"^```\{exercise\} ?([^\n]*)\n:label: (\S+)\n(.*?)^```\n?", re.MULTILINE | re.DOTALL)
SOLUTION = re.compile(r"^```\{solution\} (\S+)\n:class: dropdown\n(.*?)^```\n?", re.MULTILINE | re.DOTALL)
GATED_EXERCISE = re.compile(r"^```\{exercise-start\} ?([^\n]*)\n:label: (\S+)\n```(?:\n|\Z)", re.MULTILINE)
GATED_SOLUTION = re.compile(r"^```\{solution-start\} (\S+)\n:class: dropdown\n```(?:\n|\Z)", re.MULTILINE)
GATE_CLOSED = re.compile(r"^```\{(?:exercise|solution)-end\}\n```\n?", re.MULTILINE)
# The answer at the head of a page stands above the prediction that it would spoil; it ends where "Rests on" begins.
ANSWER = re.compile(r"^\*\*Answer\.\*\*.*?(?=^\*\*Rests on\.\*\*)", re.MULTILINE | re.DOTALL)
END_OF_SOLUTION = "```{solution-end}\n```"
PICTURE = re.compile(r"!\[([^]]+)\]\((\w+)#([\w-]+)\)")
COURSE = """This is what `make class` made of an open, executable replication of a paper on robust dataset distillation.

* student/: notebooks without solutions, outputs and the answers at their heads.
* instructor/: the same notebooks with solutions and outputs.
* slides/: nine lessons; open one in a browser, press S for the speaker's notes. lessons/ has their sources.

The notebooks need the project: run `make env` in its folder once, and start Jupyter from that environment.
"""

Notebook = dict[str, Any]


# --- notebooks --------------------------------------------------------------------------------------------


def without_solutions(notebook: Notebook) -> Notebook:
    """The notebook of a student: no answer at its head, no solution in text or code, no output, nothing folded."""
    made, inside = copy.deepcopy(notebook), False
    kept = []
    for cell in made["cells"]:
        tags = cell["metadata"].get("tags", [])
        if cell["cell_type"] == "code":
            if inside or "exercise-solution" in tags:
                continue
            cell |= {"outputs": [], "execution_count": None}
        else:
            text, inside = _outside_solutions(ANSWER.sub("", "".join(cell["source"])), inside)
            if not text.strip():
                continue
            cell["source"] = text
        kept.append(cell)
    made["cells"] = kept
    return plain(made)


def _outside_solutions(text: str, inside: bool) -> tuple[str, bool]:
    """What of a text stands outside of solutions, and whether one is open at its end."""
    parts = []
    while text:
        if inside:
            _, closed, text = text.partition(END_OF_SOLUTION)
            inside = not closed
        else:
            opened = GATED_SOLUTION.search(text)
            parts.append(text[: opened.start()] if opened else text)
            text, inside = (text[opened.end() :], True) if opened else ("", False)
    return SOLUTION.sub("", "".join(parts)), inside


def plain(notebook: Notebook) -> Notebook:
    """Exercises and solutions as headings that any notebook viewer shows, in the place of the book's directives."""
    made = copy.deepcopy(notebook)
    for cell in made["cells"]:
        if cell["cell_type"] == "markdown":
            text = "".join(cell["source"])
            text = EXERCISE.sub(lambda m: f"**Exercise {m[2]}.** {m[1]}\n\n{m[3]}\n", text)
            text = SOLUTION.sub(lambda m: f"**Solution of {m[1]}.**\n\n{m[2]}\n", text)
            text = GATED_EXERCISE.sub(lambda m: f"**Exercise {m[2]}.** {m[1]}\n\n", text)
            text = GATED_SOLUTION.sub(lambda m: f"**Solution of {m[1]}.**\n\n", text)
            cell["source"] = GATE_CLOSED.sub("", text)
    return made


# --- slides -----------------------------------------------------------------------------------------------


def shown(notebooks: Path, alt: str, name: str, identity: str) -> str:
    """What a cell of a notebook shows, as HTML that stands alone: its picture, or else its table, or its text."""
    path = notebooks / f"{name}.ipynb"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"] if path.is_file() else []
    outputs = [o for c in cells if c.get("id") == identity for o in c.get("outputs", ())]
    data = {kind: text for o in outputs for kind, text in {"text": o.get("text", ""), **o.get("data", {})}.items()}
    for kind in ("image/png", "image/jpeg"):
        if kind in data:
            source = "".join(data[kind]).replace("\n", "")
            return f'<img alt="{html.escape(alt)}" src="data:{kind};base64,{source}">'
    if "text/html" in data:
        table = book_tidy.FRAME.search("".join(data["text/html"]))
        if table:
            return re.sub(r"\n\s*", "", book_tidy.frame(table))
    if text := "".join(data.get("text", "")).strip():
        return f"<pre>{html.escape(text)}</pre>"
    raise ValueError(f"{name}#{identity}: no such cell, or one that shows nothing")


def lesson(text: str, notebooks: Path) -> Notebook:
    """The notebook of a lesson: a cell a slide, and a cell for what the speaker says."""
    cells = []
    for slide in re.split(r"^---$", text, flags=re.MULTILINE):
        said, _, notes = slide.strip().partition("\nNotes:")
        said = PICTURE.sub(lambda m: shown(notebooks, *m.groups()), said)
        cells += [_cell(said, "slide", len(cells)), _cell(notes.strip(), "notes", len(cells) + 1)]
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def _cell(source: str, kind: str, number: int) -> Notebook:
    metadata = {"slideshow": {"slide_type": kind}}
    return {"cell_type": "markdown", "id": f"cell-{number}", "metadata": metadata, "source": source}


def slides(source: Path, notebooks: Path) -> str:
    """A lesson as one page of slides; it loads `reveal/` and `mathjax/` from its own folder and nothing else."""
    import nbformat
    from nbconvert.exporters import SlidesExporter

    exporter = SlidesExporter(
        template_name="offline", extra_template_basedirs=[str(LESSONS)], reveal_url_prefix="reveal",
        reveal_theme="white",
    )  # fmt: skip
    text = source.read_text(encoding="utf-8")
    node = nbformat.from_dict(lesson(text, notebooks))
    title = text.splitlines()[0].lstrip("# ")
    body, _ = exporter.from_notebook_node(node, resources={"metadata": {"name": title}})
    return str(body)


# --- all of it --------------------------------------------------------------------------------------------


def make(root: Path = ROOT, target: Path | None = None) -> Path:
    """Write the folder `class` and `class.zip` under `target` (default `_build`); the path of the zip."""
    folder = (target or root / "_build") / "class"
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("student", "instructor", "slides", "lessons"):
        (folder / name).mkdir(parents=True)
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for kind, made in (("student", without_solutions(notebook)), ("instructor", plain(notebook))):
            (folder / kind / path.name).write_text(json.dumps(made, indent=1, ensure_ascii=False), encoding="utf-8")
    for source in sorted((root / "book" / "lessons").glob("*.md")):
        shutil.copy2(source, folder / "lessons" / source.name)
        page = folder / "slides" / f"{source.stem}.html"
        page.write_text(slides(source, root / "notebooks"), encoding="utf-8")
    for name, where in NEEDED.items():
        shutil.copytree(where, folder / "slides" / name)
    (folder / "README.txt").write_text(COURSE, encoding="utf-8")
    packed = folder.with_suffix(".zip")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(path, Path("class") / path.relative_to(folder))
    return packed


def main() -> int:
    """Command line: where to write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--into", type=Path, metavar="DIR", help="write here (default: _build)")
    packed = make(target=parser.parse_args().into)
    print(f"{packed}: {packed.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
