"""Build the book: run the quickstart, lay out the sources, run jupyter-book. Called by ``make book``.

Standard library only, so that a broken environment fails with this script's words. A step whose inputs have the same
content as last time is skipped. The tracked notebook is never written: the executed copy lies under ``_build``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = Path("notebooks/00_quickstart.ipynb")
TOP_FILES = ("_config.yml", "_toc.yml")
OFFERED = ("book.pdf", "class.zip")  # made by `make pdf` and `make class`, on the site where they are there
LAUNCH = "  thebe: false\n  binderhub_url: https://mybinder.org\n  colab_url: https://colab.research.google.com\n"
PRINTED = ("rddlib/distillation/reference.py",)  # code that a page shows
SCRIPTS = (
    "build.py",
    "equations.py",
    "performance.py",
    "verdicts.py",
    "costs.py",
    "explorer.py",
    "classroom.py",
    "print_pdf.py",
    "drawings.py",
    "lessons",
)  # no pages
CELL, KEY = re.compile(r"(?<=<td>)[^<]*(?=</td>)"), re.compile(r"\b[0-9a-f]{8}(?:[0-9a-f]{8})?\b")
ASSIGNED = re.compile(r"^(\w+) = (.*)$", re.MULTILINE)
FRAGMENT = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)


class StepError(RuntimeError):
    """A step that failed. The message says which, and what to do."""

    def __init__(self, step: str, advice: str) -> None:
        super().__init__(f"step '{step}' failed. {advice}")


def fingerprint(files: Iterable[Path], *extra: str) -> str:
    """SHA-256 over the names and contents of files, and over what else decides the outcome."""
    sha = hashlib.sha256(json.dumps(extra).encode())
    for path in sorted(files):
        sha.update(f"{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return sha.hexdigest()


def run(step: str, command: list[str], advice: str, root: Path) -> None:
    """Run one command from the root of the repository; a failure names the step."""
    environment = {**os.environ, "JUPYTER_PREFER_ENV_PATH": "1"}
    environment.pop("MPLBACKEND", None)  # a backend set for scripts would leave the notebook without figures
    if subprocess.run(command, cwd=root, env=environment, check=False).returncode:
        raise StepError(step, advice)


def fresh(stamp: Path, key: str, product: Path) -> bool:
    """Whether a product was made from exactly these inputs."""
    return product.exists() and stamp.exists() and stamp.read_text() == key


def without_stamps(notebook: dict) -> dict:
    """The notebook without what papermill adds: paths, clock times, and the cell of parameters that it injects.

    The values of that cell take the place of those in the page's own cell of parameters, whose comments stay.
    """
    for part in [notebook, *notebook["cells"]]:
        part["metadata"].pop("papermill", None)
        part["metadata"].pop("execution", None)
    by_tag = {tag: cell for cell in notebook["cells"] for tag in cell["metadata"].get("tags", ())}
    injected = by_tag.get("injected-parameters")
    if injected is not None:
        source = "".join(by_tag["parameters"]["source"])
        for name, value in ASSIGNED.findall("".join(injected["source"])):
            line = re.compile(rf"^{name} = .*?(?=  #|$)", re.MULTILINE)
            source = line.sub(lambda _, text=f"{name} = {value}": text, source)
        by_tag["parameters"]["source"] = source
        notebook["cells"].remove(injected)
    return notebook


def execute_quickstart(root: Path, build: Path) -> str:
    """Run the quickstart by papermill at scale smoke, unless neither it nor the library changed."""
    source, target, stamp = root / QUICKSTART, build / "executed" / QUICKSTART.name, build / "executed" / "stamp"
    if not source.exists():
        return f"no {QUICKSTART} yet"
    key = fingerprint([source, *(root / "rddlib").rglob("*.py"), root / "constraints.txt"], sys.version)
    if fresh(stamp, key, target):
        return "up to date"
    target.parent.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    scratch = target.with_suffix(".running.ipynb")
    options = ["--no-progress-bar", "-k", "python3", "-p", "mode", "live", "-p", "scale", "smoke"]
    command = [sys.executable, "-m", "papermill", str(source.relative_to(root)), str(scratch), *options]
    advice = f"The notebook {QUICKSTART} raised the error above; the cells that ran are in {scratch}."
    run("quickstart", command, advice, root)
    target.write_text(
        json.dumps(without_stamps(json.loads(scratch.read_text(encoding="utf-8"))), indent=1), encoding="utf-8"
    )
    scratch.unlink()
    stamp.write_text(key)
    return "ran here, just now"


def _checked(root: Path, name: str, absent: str, outcome: str, fault: str) -> str:
    """Have a script of book/ compare its page with what the page is made from."""
    script = root / "book" / f"{name}.py"
    if not script.exists():
        return absent
    advice = f"The lines above name {fault}; python book/{name}.py writes the page anew."
    run(name, [sys.executable, str(script), "--check"], advice, root)
    return outcome


def equations(root: Path, build: Path) -> str:
    """Check that every equation of the paper has its function, its test and its page."""
    return _checked(root, "equations", "no table of equations", "complete", "the equation")


def performance(root: Path, build: Path) -> str:
    """Check that the page on performance shows the measurements that are there."""
    return _checked(root, "performance", "no measurements", "up to date", "what differs")


def with_repository(config: str, address: str) -> str:
    """The settings of a book whose repository has an address: launch buttons, "suggest edit" and "open issue"."""
    settings = config.replace("  thebe: false\n", LAUNCH)
    for button in ("repository", "issues", "edit_page"):
        settings = settings.replace(f"  use_{button}_button: false\n", f"  use_{button}_button: true\n")
    return settings + f"\nrepository:\n  url: {json.dumps(address)}\n  branch: main\n  path_to_book: ''\n"


def stage(root: Path, build: Path) -> str:
    """Copy what Sphinx reads to _build/source, with the executed quickstart in the place of the tracked one."""
    source = build / "source"
    shutil.rmtree(source, ignore_errors=True)
    hidden = shutil.ignore_patterns(".*", "__pycache__", *SCRIPTS)
    for folder in ("book", "notebooks"):
        if (root / folder).is_dir():
            shutil.copytree(root / folder, source / folder, ignore=hidden)
    for name in TOP_FILES:
        shutil.copy2(root / name, source / name)
    for name in (n for n in PRINTED if (root / n).is_file()):  # Sphinx names a page whose code is missing
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, source / name)
    executed = build / "executed" / QUICKSTART.name
    if executed.exists() and (root / QUICKSTART).exists():
        shutil.copy2(executed, source / QUICKSTART)
    (source / "book" / "_static").mkdir(exist_ok=True)
    for name in (n for n in OFFERED if (build / n).is_file()):  # book/_ext/book_tidy.py links what is there
        shutil.copy2(build / name, source / "book" / "_static" / name)
    address = os.environ.get("REPOSITORY_URL", "").rstrip("/")
    if address:
        config = source / "_config.yml"
        config.write_text(with_repository(config.read_text(encoding="utf-8"), address), encoding="utf-8")
    return "laid out" + (f", with buttons for {address}" if address else "")


def overlay(executed: Path, notebooks: Path) -> str:
    """Put notebooks that were run elsewhere (the Snakefile does) in the place of the tracked ones of the same name."""
    ran = sorted(executed.glob("*.ipynb"))
    for path in ran:
        if not (notebooks / path.name).exists():
            raise StepError("stage", f"{path} has no page of its name in notebooks/: remove it.")
        text = json.dumps(without_stamps(json.loads(path.read_text(encoding="utf-8"))), indent=1)
        (notebooks / path.name).write_text(text, encoding="utf-8")
    return f"laid out, {len(ran)} notebooks as they ran"


def verdicts(root: Path, build: Path) -> str:
    """Compute verdicts and costs from the records, put them on their pages, and mark pages whose runs are stale."""
    made, source = build / "generated", build / "source"
    script = root / "book" / "verdicts.py"
    if not script.exists():
        return "no verdicts"
    folders = ("data/runs/*/*.json", "data/grids/*.toml", "data/coverage/*.json", "data/*.json", "data/claims.csv",
               "data/distilled/*.npz", "rddlib/**/*.py", "notebooks/*.ipynb", "book/*.md", "book/*.py")  # fmt: skip
    key = fingerprint((p for pattern in folders for p in root.glob(pattern)), sys.version)
    if not fresh(build / "generated.stamp", key, made):
        shutil.rmtree(made, ignore_errors=True)
        advice = "The error above names the claim, the record or the grid."
        run("verdicts", [sys.executable, str(script), "--into", str(made)], advice, root)
        (build / "generated.stamp").write_text(key)
    return fill(source, made, sorted(root.glob("data/runs/*/*.json")))


def fill(source: Path, made: Path, records: Iterable[Path]) -> str:
    """Put fragments in the place of their marks, the records and links to them, and a note on each stale page."""
    records = list(records)
    for page in (source / "book").glob("*.md"):
        text = page.read_text(encoding="utf-8")
        if absent := [m[1] for m in FRAGMENT.finditer(text) if not (made / f"{m[1]}.md").is_file()]:
            raise StepError(
                "verdicts", f"book/{page.name} asks for {', '.join(absent)}, which no script of book/ makes."
            )
        full = FRAGMENT.sub(lambda mark: (made / f"{mark[1]}.md").read_text(encoding="utf-8"), text)
        if full != text:
            page.write_text(full, encoding="utf-8")
    for picture in made.glob("*.png"):
        shutil.copy2(picture, source / "book" / picture.name)
    if (made / "sets").is_dir():
        shutil.copytree(made / "sets", source / "book" / "_static" / "sets")
    (source / "book" / "_static" / "records").mkdir(parents=True, exist_ok=True)
    for record in records:
        shutil.copyfile(record, source / "book" / "_static" / "records" / record.name)
    for page in (source / "notebooks").glob("*.ipynb"):
        link_records(page, [record.stem for record in records])
    stale = json.loads((made / "stale.json").read_text(encoding="utf-8"))
    for name, why in stale.items():
        mark_stale(source / "notebooks" / name, why)
    return "filled in" + (f"; stale pages: {', '.join(stale)}" if stale else "")


def link_records(page: Path, keys: Iterable[str]) -> None:
    """Make each key in a table that a page shows, whole or its first eight digits, a link to its record."""
    whole = {start: key for key in keys for start in (key, key[:8])}

    def linked(found: re.Match[str]) -> str:
        key = whole.get(found[0])
        return f'<a href="../book/records.html#record-{key}">{found[0]}</a>' if key else found[0]

    notebook = json.loads(page.read_text(encoding="utf-8"))
    shown = [o["data"] for c in notebook["cells"] for o in c.get("outputs", ()) if "text/html" in o.get("data", {})]
    for data in shown:
        data["text/html"] = CELL.sub(lambda cell: KEY.sub(linked, cell[0]), "".join(data["text/html"]))
    if shown:
        page.write_text(json.dumps(notebook, indent=1), encoding="utf-8")


def mark_stale(page: Path, why: list[str]) -> None:
    """Say below a page's title that its numbers are not those of today's code and records."""
    notebook = json.loads(page.read_text(encoding="utf-8"))
    said = ":::{warning}\nThis page is stale: " + "; ".join(why) + ".\n:::"
    cell = {"cell_type": "markdown", "id": "stale", "metadata": {}, "source": said}
    notebook["cells"].insert(1, cell)
    page.write_text(json.dumps(notebook, indent=1), encoding="utf-8")


def render(root: Path, build: Path) -> str:
    """Run jupyter-book; every warning is an error. Nothing changed: nothing is done.

    Sphinx forgets the warnings of pages that it does not read again, so a build always starts from nothing:
    otherwise a second try would pass where the first failed.
    """
    stamp, index = build / "html.stamp", build / "html" / "index.html"
    sources = [p for p in (build / "source").rglob("*") if p.is_file()]
    key = fingerprint(sources, sys.version, (root / "constraints.txt").read_text())
    if fresh(stamp, key, index):
        return "up to date"
    for leftover in (build / "html", build / ".doctrees"):
        shutil.rmtree(leftover, ignore_errors=True)
    stamp.unlink(missing_ok=True)
    program = "from jupyter_book.cli.main import main; main()"
    places = ["build", str(build / "source"), "--path-output", str(build.parent)]
    advice = (
        "Sphinx names the file and line of each warning above (the file to mend is the one outside _build/source); "
        "a warning is an error here."
    )
    run("render", [sys.executable, "-c", program, *places, *["-n", "-W", "--keep-going", "-q"]], advice, root)
    stamp.write_text(key)
    return "built"


STEPS: dict[str, Callable[[Path, Path], str]] = {
    "equations": equations,
    "performance": performance,
    "quickstart": execute_quickstart,
    "stage": stage,
    "verdicts": verdicts,
    "render": render,
}


def build_book(root: Path = ROOT, executed: Path | None = None) -> Path:
    """Take every step, print how long each took, return the path of the front page.

    `executed`: a folder with notebooks that have just run, shown in the place of the tracked ones.
    """
    build, lines = root / "_build", []
    build.mkdir(exist_ok=True)
    for name, step in STEPS.items():
        print(f"[{name}] {(step.__doc__ or '').splitlines()[0]}", flush=True)
        start = time.perf_counter()
        outcome = step(root, build)
        if name == "stage" and executed is not None:
            outcome = overlay(executed, build / "source" / "notebooks")
        lines.append(f"  {name:<12} {time.perf_counter() - start:6.1f} s   {outcome}")
    index = build / "html" / "index.html"
    print("\n".join(["", "Steps:", *lines, "", "The book:", f"  {index}"]))
    return index


def main() -> int:
    """Command line: where notebooks that have just run lie, if any do."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--executed", type=Path, metavar="DIR", help="show the notebooks in DIR, not the tracked ones")
    executed = parser.parse_args().executed
    try:
        build_book(executed=None if executed is None else executed.resolve())
    except StepError as error:
        print(f"make book: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
