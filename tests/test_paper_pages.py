"""The pages of the paper's tables and figures at smoke scale: with some records, with none, and computed live."""

from __future__ import annotations

import json
import re
from pathlib import Path

import matplotlib as mpl
import pytest

mpl.use("Agg")

import matplotlib.pyplot as plt
import matplotlib_inline.backend_inline
from test_notebooks import papermill, text_of

from rddlib.experiments.experiment import Experiment, run
from rddlib.experiments.records import Store

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    p for p in (ROOT / "notebooks").glob("[34][0-4]_*.ipynb") if p.stem.split("_")[1][:5] in ("table", "figur")
)
INTERVAL = re.compile(r"\d \[[-+]?\d|no interval")  # as a number of ours is shown
TAGS = ("exercise-gap", "exercise-check", "exercise-solution")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Control and upper of one seed, real ones; all else is missing."""
    folder = tmp_path_factory.mktemp("store")
    for risk in ("control", "upper"):
        chosen = {"dataset": "digits", "ipc": 1, "seed": 0, "risk": risk}
        run(Experiment.preset("smoke", **chosen), Store(folder))
    return folder


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every sentence that a page displays; figures are drawn and closed."""
    import IPython.display

    said: list[str] = []

    def draw() -> None:
        for number in plt.get_fignums():
            plt.figure(number).canvas.draw()
        plt.close("all")

    def markdown(text: str) -> str:
        said.append(text)
        return text

    monkeypatch.setattr(plt, "show", draw)
    monkeypatch.setattr(matplotlib_inline.backend_inline, "set_matplotlib_formats", lambda *_, **__: None)
    monkeypatch.setattr(IPython.display, "Markdown", markdown)
    monkeypatch.setattr(IPython.display, "display", lambda *things: said.extend(map(str, things)))
    return said


def play(page: Path, **parameters: object) -> dict[str, object]:
    """Run a page's code cells in this process with other parameters, exercises left out."""
    names: dict[str, object] = {"__name__": "__main__"}
    for cell in json.loads(page.read_text())["cells"]:
        tags = cell["metadata"].get("tags", [])
        if cell["cell_type"] == "code" and not set(tags) & set(TAGS):
            exec(compile("".join(cell["source"]), f"{page.stem}, {cell['id']}", "exec"), names)
            if "parameters" in tags:
                assert set(parameters) <= set(names), "a parameter that the page does not have"
                names |= parameters
    return names


def test_all_nine_pages_are_there() -> None:
    assert [p.stem[:2] for p in PAGES] == ["30", "31", "32", "33", "34", "40", "41", "42", "43"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_a_page_takes_scale_and_data_and_says_what_is_missing(
    page: Path, store: Path, shown: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RDD_STORE", str(store))
    names = play(page, dataset="digits", scale="smoke")
    assert {e.dataset for e in names["page"].experiments} == {"digits"}
    missing = ("not run yet", "measured", "Left: ", "no such run has been made")
    assert any(words in text for text in shown for words in missing)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_a_page_without_any_record_has_no_number_of_ours(
    page: Path, shown: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RDD_STORE", str(tmp_path))
    names = play(page, dataset="digits", scale="smoke")
    assert names["page"].records == {}
    assert not any(INTERVAL.search(text) for text in shown)


def test_a_page_is_computed_live(tmp_path: Path) -> None:
    """Table 5 through papermill, from a folder that is not the repository: two runs of GLaD on digits."""
    (page,) = [p for p in PAGES if p.stem.startswith("34")]
    cells = papermill(f"notebooks/{page.name}", tmp_path / "out.ipynb", tmp_path, mode="live")
    assert "(one seed: no interval)" in text_of(cells, "cell-11-levels")
    assert not list(tmp_path.glob("store/**/*.json"))
