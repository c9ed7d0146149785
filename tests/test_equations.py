"""book/equations.md: up to date, without a gap; and a planted gap of each kind is found."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import script

ROOT = Path(__file__).resolve().parent.parent


equations = script("equations")

ENTRY = '[[equation]]\nid = "2"\nsays = "a"\nfunctions = ["risk.cvar"]\npage = "book/theory.md"\n'
TEST = 'import pytest\n@pytest.mark.equation("2")\ndef test_eq2(): pass\n'


def repository(
    root: Path, entry: str = ENTRY, test: str = TEST, code: str = "def cvar(): pass\n", page: bool = True
) -> Path:
    files = {"data/paper/equations.toml": entry, "tests/test_a.py": test, "rddlib/risk.py": code, "book/other.md": ""}
    for name, text in (files | ({"book/theory.md": "x"} if page else {})).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_the_committed_page_is_up_to_date_and_has_no_gap(capsys: pytest.CaptureFixture[str]) -> None:
    code = equations.main(["--check"])
    assert code == 0, capsys.readouterr().err


def test_the_table_has_every_number_of_the_paper() -> None:
    ids = {e.id for e in equations.read(ROOT)[0]}
    named = {
        "CVaR",
        "f_alpha",
        "Algorithm 1",
        "Algorithm 2",
        "Assumption 3.1",
        "Assumption 3.2",
        "Proposition 3.3",
        "Step 1",
        "Step 2",
        "Step 3",
        "A.1.1",
        "A.1.2",
    }
    assert ids == named | {str(k) for k in range(1, 11)}


def test_a_complete_table_passes_is_written_and_then_up_to_date(tmp_path: Path) -> None:
    root = repository(tmp_path)
    assert equations.main(["--check"], root) == 1
    assert equations.main([], root) == 0
    assert "| (2) | a | `risk.cvar` | 1 | [theory](theory.md) |" in (root / "book/equations.md").read_text()
    assert equations.main(["--check"], root) == 0
    (root / "tests/test_b.py").write_text(TEST.replace("test_eq2", "test_another"))
    assert equations.main(["--check"], root) == 1


PLANTED = [
    ({"test": ""}, "has no test"),
    ({"test": TEST.replace('"2"', '"3"')}, "bears the number '3'"),
    ({"entry": ENTRY.replace('["risk.cvar"]', "[]")}, "has no function"),
    ({"entry": ENTRY.replace("risk.cvar", "risk.group_cvar")}, "rddlib.risk.group_cvar does not exist"),
    ({"entry": ENTRY.replace("risk.cvar", "gone.cvar")}, "rddlib.gone.cvar does not exist"),
    ({"code": "if True:\n    def cvar(): pass\n"}, "rddlib.risk.cvar does not exist"),
    ({"page": False}, "its page book/theory.md does not exist"),
    ({"entry": ENTRY.replace("book/theory.md", "")}, "its page (none) does not exist"),
    ({"entry": ENTRY + ENTRY}, "same id"),
]


@pytest.mark.parametrize(("change", "said"), PLANTED)
def test_a_planted_gap_fails(change: dict, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert equations.main([], repository(tmp_path, **change)) == 1
    assert said in capsys.readouterr().err
