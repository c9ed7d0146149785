"""Make book/equations.md: every equation of the paper, what computes it, which tests bear its number, where it stands.

`python book/equations.py` writes the page; with ``--check`` it only says whether the page is up to date. Both exit 1
and name the gap where an equation has no function, no test or no page, or a test bears a number that is not in
data/paper/equations.toml. Standard library only: tests and functions are read from the source, nothing is imported.
"""

from __future__ import annotations

import argparse
import ast
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = Path("book/equations.md")

HEAD = """<!-- Made by book/equations.py from data/paper/equations.toml and the tests. Do not edit. -->
# Equations, code and tests

The table lists every numbered equation, algorithm, assumption and step of a proof of
{cite:t}`vahidian2025group`, in the order of the paper. Each row has what the item says, what in `rddlib` computes or
demonstrates it, how many tests bear its number, and the page that shows it. A test that bears a number need not
*confirm* the statement: some tests show where it fails. The page says which. The displays of Section 3.3 that are no
copy of another have no row: {doc}`theory` says why they cannot be tested.
"""


@dataclass
class Equation:
    """One row: an entry of the table, and the tests found for it (file, name)."""

    id: str
    says: str
    functions: list[str]
    page: str
    tests: list[tuple[str, str]] = field(default_factory=list)

    @property
    def title(self) -> str:
        """As the paper calls it: (3) for a number, else the name."""
        return f"({self.id})" if self.id.isdigit() else {"f_alpha": "$f_\\alpha$"}.get(self.id, self.id)


def same(name: str) -> str:
    """One spelling of an id: 'algorithm-1' and 'Algorithm 1' are the same."""
    return name.casefold().replace("-", " ")


def marked_tests(folder: Path) -> Iterator[tuple[str, str, str]]:
    """(id, file, test) for each @pytest.mark.equation("id") on a test function or class of a folder."""
    for path in sorted(folder.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                for mark in node.decorator_list:
                    if isinstance(mark, ast.Call) and ast.unparse(mark.func).endswith("mark.equation"):
                        yield from ((str(ast.literal_eval(a)), path.name, node.name) for a in mark.args)


def defined(root: Path, name: str) -> bool:
    """Whether rddlib/<folder>/<module>.py defines a public function or class of this name at its top."""
    module, _, wanted = name.rpartition(".")
    path = (root / "rddlib" / module.replace(".", "/")).with_suffix(".py")
    if not module or not path.is_file() or wanted.startswith("_"):
        return False
    kinds = ast.FunctionDef | ast.ClassDef
    return any(isinstance(node, kinds) and node.name == wanted for node in ast.parse(path.read_text("utf-8")).body)


def read(root: Path) -> tuple[list[Equation], list[str]]:
    """The equations with their tests, and every gap in words."""
    table = tomllib.loads((root / "data/paper/equations.toml").read_text(encoding="utf-8"))["equation"]
    equations = [Equation(**row) for row in table]
    by_id = {same(e.id): e for e in equations}
    gaps = [] if len(by_id) == len(equations) else ["two equations have the same id"]
    for number, file, test in marked_tests(root / "tests"):
        if same(number) in by_id:
            by_id[same(number)].tests.append((file, test))
        else:
            gaps.append(f"{file}::{test} bears the number {number!r}, which data/paper/equations.toml does not have")
    for e in equations:
        gaps += [f"equation {e.id} has no function"] * (not e.functions)
        gaps += [f"equation {e.id}: rddlib.{f} does not exist" for f in e.functions if not defined(root, f)]
        gaps += [f"equation {e.id} has no test"] * (not e.tests)
        if not (e.page and (root / e.page).is_file()):
            gaps.append(f"equation {e.id}: its page {e.page or '(none)'} does not exist")
    return equations, gaps


def render(equations: list[Equation]) -> str:
    """The page, MyST Markdown."""
    lines = [HEAD, "| Equation | Says | Computed by | Tests | Page |", "|---|---|---|---|---|"]
    for e in equations:
        functions = ", ".join(f"`{f}`" for f in e.functions)
        lines.append(f"| {e.title} | {e.says} | {functions} | {len(e.tests)} | {link(e.page)} |")
    lines += ["", "## The tests by equation", ""]
    for e in equations:
        lines += [f"**{e.title}**", ""]
        lines += [f"* `tests/{file}`: `{test}`" for file, test in e.tests] + [""]
    return "\n".join(lines).rstrip() + "\n"


def link(page: str) -> str:
    """A link from book/ to another page: 'notebook 2' for notebooks/02_x.ipynb, else the file's name."""
    name = Path(page).stem
    words = f"notebook {int(name[:2])}" if page.startswith("notebooks/") else name
    return f"[{words}]({page.removeprefix('book/') if page.startswith('book/') else '../' + page})"


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Write or check the page; 0 if all is well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; say whether the page is up to date")
    check = parser.parse_args(arguments).check
    equations, gaps = read(root)
    page, text = root / PAGE, render(equations)
    stale = not page.is_file() or page.read_text(encoding="utf-8") != text
    if check and stale:
        gaps.append(f"{PAGE} is not up to date: run python book/equations.py")
    elif stale:
        page.write_text(text, encoding="utf-8")
    for gap in gaps:
        print(f"equations: {gap}", file=sys.stderr)
    return 1 if gaps else 0


if __name__ == "__main__":
    sys.exit(main())
