"""The book's sources: the table of contents, the notebooks, the size and wording of what is tracked."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROSE = sorted((ROOT / "book").glob("*.md"))
MEGABYTE = 1_000_000
LARGER = {"book/_static/mathjax/tex-chtml-full.js": "MathJax in one file, unchanged; formulas render without a network"}
MACHINE_PATH = re.compile(r"(?<![\w./:])/(?:home|root|Users|srv|tmp|opt|mnt|content)/[\w.~-]+")
STAMPS = ("papermill", "execution")

Notebook = dict


def read(path: Path) -> Notebook:
    return json.loads(path.read_text(encoding="utf-8"))


def toc_files(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from ([value] if key in ("file", "root") else toc_files(value))
    elif isinstance(node, list):
        for item in node:
            yield from toc_files(item)


def source_of(page: str) -> Path | None:
    return next((p for suffix in (".md", ".ipynb") if (p := ROOT / f"{page}{suffix}").exists()), None)


# --- the table of contents --------------------------------------------------------------------------------------


def test_every_page_of_the_contents_exists_once() -> None:
    pages = list(toc_files(yaml.safe_load((ROOT / "_toc.yml").read_text())))
    assert [page for page in pages if source_of(page) is None] == []
    assert len(pages) == len(set(pages))


def test_every_page_is_in_the_contents() -> None:
    listed = set(toc_files(yaml.safe_load((ROOT / "_toc.yml").read_text())))
    there = {f"book/{p.stem}" for p in PROSE} | {f"notebooks/{p.stem}" for p in NOTEBOOKS}
    assert there - listed == set(), "add these pages to _toc.yml"


def test_settings_keep_the_book_offline_and_unexecuted() -> None:
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    sphinx = config["sphinx"]["config"]
    assert config["execute"]["execute_notebooks"] == sphinx["nb_execution_mode"] == "off"
    assert (ROOT / "book/_static" / sphinx["mathjax_path"]).exists()
    assert all((ROOT / file).exists() for file in config["bibtex_bibfiles"])


# --- notebooks --------------------------------------------------------------------------------------------------


def notebook_faults(notebook: Notebook) -> list[str]:
    """What would make a notebook unfit to be a chapter, in words."""
    cells = notebook["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    tagged = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
    found = [] if len(tagged) == 1 else [f"{len(tagged)} code cells are tagged parameters, not 1"]
    found += [f"stamp of papermill: {key}" for part in [notebook, *cells] for key in STAMPS if key in part["metadata"]]
    if any("injected-parameters" in cell["metadata"].get("tags", []) for cell in cells):
        found.append("a cell that papermill injected")
    if notebook["metadata"].get("kernelspec", {}).get("name") != "python3":
        found.append("kernel is not python3")
    if not cells or cells[0]["cell_type"] != "markdown" or not "".join(cells[0]["source"]).startswith("# "):
        found.append("does not begin with a title")
    return found + [f"cell {n}: {fault}" for n, cell in enumerate(cells) for fault in cell_faults(cell)]


def cell_faults(cell: Notebook) -> list[str]:
    if cell["cell_type"] != "code":
        return []
    found = [] if "".join(cell["source"]).strip() else ["empty"]
    outputs = cell["outputs"]
    found += ["an error output" for output in outputs if output["output_type"] == "error"]
    found += ["text on stderr" for output in outputs if output.get("name") == "stderr"]
    if any("image/png" in output.get("data", {}) for output in outputs):
        alt = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")
        found += [] if len(alt) >= 20 else ["a figure without an alternative text (metadata mystnb.image.alt)"]
        found += [] if len(outputs) == 1 else ["a figure beside another output: the alternative text would be lost"]
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_fit_to_be_a_chapter(path: Path) -> None:
    assert notebook_faults(read(path)) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_was_run_from_top_to_bottom(path: Path) -> None:
    counts = [cell["execution_count"] for cell in read(path)["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_committed_page_has_left_its_statements_unchecked(path: Path) -> None:
    """A page whose text speaks of other runs than its numbers says "Not checked"; new records make it say so."""
    outputs = [output for cell in read(path)["cells"] for output in cell.get("outputs", [])]
    assert not any("not checked" in "".join(output.get("text", "")).lower() for output in outputs)


# --- prose ------------------------------------------------------------------------------------------------------


def missing_names(text: str) -> list[str]:
    """Names `rddlib.x` and `rddlib.x.y` in code spans that the library does not have."""
    missing = []
    for name in sorted(set(re.findall(r"`(rddlib(?:\.\w+)+)`", text))):
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            missing.append(name)
    return missing


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.stem)
def test_prose_names_what_the_library_has(path: Path) -> None:
    assert missing_names(path.read_text(encoding="utf-8")) == []


def test_notation_rows_name_things_of_their_module() -> None:
    """In the tables of notation.md a CamelCase or snake_case name stands in the module of its last column."""
    lines = (ROOT / "book/notation.md").read_text().splitlines()
    lines = [line for line in lines if re.search(r"\| `[\w.]+` \|$", line)]
    off = []
    for line in lines:
        *cells, where, _ = line.split("|")
        module = importlib.import_module(f"rddlib.{where.strip(' `')}")
        source = Path(module.__file__ or "").read_text()
        names = re.findall(r"`([A-Z]\w+|[a-z]+_[a-z_]+|cvar|nearest|assign)`", " ".join(cells))
        off += [f"{where.strip()}: {name}" for name in names if not re.search(rf"\b{name}\b", source)]
    assert len(lines) > 20
    assert off == []


# --- what is tracked --------------------------------------------------------------------------------------------


def tracked() -> list[Path]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what is tracked is not known")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def test_no_tracked_file_is_larger_than_a_megabyte() -> None:
    large = {str(p.relative_to(ROOT)) for p in tracked() if p.stat().st_size > MEGABYTE}
    assert large == set(LARGER)


def test_no_tracked_text_names_a_path_of_somebodys_machine() -> None:
    named = {}
    for path in tracked():
        if (
            path.suffix in (".md", ".ipynb", ".py", ".json", ".toml", ".yml", ".csv", ".cff")
            and "_static" not in path.parts
        ):
            found = MACHINE_PATH.findall(path.read_text(encoding="utf-8"))
            if found and path.name != Path(__file__).name:
                named[str(path.relative_to(ROOT))] = found
    assert named == {}


# --- heads of pages ---------------------------------------------------------------------------------------------

INTERVAL = re.compile(r"([-+]?\d+\.\d)(?: points?| hundredths| %)? \[([-+]?\d+\.\d), ([-+]?\d+\.\d)\]")
ANSWER = re.compile(r"\*\*Answer\.\*\*(.*?)(?:\n\n|$)", re.DOTALL)
ANSWERED = [p for p in NOTEBOOKS if ANSWER.search("".join(json.loads(p.read_text())["cells"][0]["source"]))]


def intervals(text: str) -> set[tuple[str, ...]]:
    """Mean, low and high of every interval in a text, without plus signs."""
    found = INTERVAL.findall(" ".join(text.split()))
    return {tuple(number.lstrip("+") for number in each) for each in found}


@pytest.mark.parametrize("page", ANSWERED, ids=lambda p: p.stem)
def test_an_interval_in_the_answer_of_a_page_stands_in_one_of_its_outputs(page: Path) -> None:
    cells = json.loads(page.read_text())["cells"]
    answer = ANSWER.search("".join(cells[0]["source"]))
    assert answer is not None
    outputs = json.dumps([out for c in cells for out in c.get("outputs", [])], ensure_ascii=False)
    assert intervals(answer[1]) <= intervals(outputs)


def test_pages_have_an_answer_with_an_interval() -> None:
    texts = [ANSWER.search("".join(json.loads(p.read_text())["cells"][0]["source"])) for p in ANSWERED]
    assert sum(bool(intervals(text[1])) for text in texts if text is not None) >= 9


PAGES_OF_TEXT = sorted((ROOT / "book").glob("*.md"))


def broken_formulas(text: str) -> list[str]:
    """Lines that begin an item of a list inside a formula of the line above: Markdown then ends the formula."""
    found, paragraph = [], ""
    for line in text.split("\n"):
        item = re.match(r"\s*([-+*]|\d+[.)])\s", line)
        if item and "$$" not in paragraph and paragraph.count("$") % 2:
            found.append(line)
        paragraph = line if item or not line.strip() else f"{paragraph}\n{line}"
    return found


@pytest.mark.parametrize("path", [*NOTEBOOKS, *PAGES_OF_TEXT], ids=lambda p: p.stem)
def test_no_formula_is_taken_for_a_list(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    cells = json.loads(text)["cells"] if path.suffix == ".ipynb" else [{"cell_type": "markdown", "source": [text]}]
    prose = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
    assert [line for part in prose for line in broken_formulas(part)] == []


def test_a_formula_that_is_taken_for_a_list_is_found() -> None:
    assert broken_formulas("the bound $(N\n+ 1) e^{-Nr}$ is") == ["+ 1) e^{-Nr}$ is"]
    assert broken_formulas("the bound $N + 1$ is\n\n* one\n* two $x$") == []
    assert broken_formulas("$$\na\n+ b\n$$") == []
