"""The page "Use a distilled set": its code is short of lines and runs, as it stands, from top to bottom."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from rddlib import cli
from rddlib.experiments.records import Store

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "book" / "use_a_set.md").read_text(), re.M | re.S)


def test_code_fits_its_column() -> None:
    assert [kind for kind, _ in BLOCKS] == ["python", "bash", "python", "python", "bash", "python", "bash"]
    assert max(len(line) for _, code in BLOCKS for line in code.splitlines()) <= 80


def test_the_code_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RDD_STORE", str(tmp_path / "store"))
    names: dict[str, Any] = {}
    for kind, code in BLOCKS:
        if kind == "python":
            exec(code, names)
            continue
        for line in code.splitlines():
            command = shlex.split(line.replace("KEY", names["record"].key))
            assert command[:3] == ["python", "-m", "rddlib"]
            assert cli.main(command[3:]) == 0, line
    printed = capsys.readouterr().out
    assert "found, nothing was computed" in printed and names["record"].key in printed
    assert names["accuracy"] > 25  # ten classes
    assert names["distilled"]["accuracy"] == names["record"].metrics["accuracy"]  # what the run itself has found
    assert names["images"].shape == (10, 1, 8, 8) and names["labels"].tolist() == list(range(10))
    assert len(list((tmp_path / "classes").glob("*/*.png"))) == 10 and (tmp_path / "set.png").is_file()
    records = Store().records()
    assert sorted(r.experiment["risk"] for r in records) == ["lower", "upper", "upper"]
    assert [r.experiment["method"] for r in records if r.experiment["start_sha256"]] == ["idc"]
