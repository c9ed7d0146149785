"""Every page takes other values of its parameters: those of theory, of methods, and of first looks, small and quick.

The pages of the paper's tables and figures are played so in test_paper_pages.py, those of causes in
test_causes_pages.py, time to accuracy in test_speedups.py, and the quickstart in test_notebooks.py; here are the
others, and a check that none is forgotten.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import test_causes_pages
import test_paper_pages
import test_speedups

from rddlib.base import SettingError
from rddlib.experiments.records import StoreError

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
LOOK = {"dataset": "digits", "scale": "smoke", "ipc": 1, "seeds": 1}
CHANGED: dict[str, dict[str, object]] = {
    "01_risk_measures": {
        "alpha": 0.4,
        "rule_alpha": 0.5,
        "paper_alpha": 0.6,
        "tail": "lower",
        "samples": 300,
        "seed": 1,
    },
    "02_groups_and_dro": {"rare": 0.08, "noise": 0.04, "tail_mass": 0.4, "rate": 0.1, "samples": 150, "seed": 1},
    "03_large_deviations": {"r": 0.1, "alphas": [0.5, 0.7], "draws": 500, "seed": 1},
    "04_algorithm_1_2": {"alpha": 0.6, "rare": 0.1, "seeds": 2, "epochs": 3, "probes": 4, "sigma": 0.2},
    "05_own_data": {"ipc": 1, "risk": "upper", "rare": 4, "seed": 1},
    "22_generative_prior": {"dataset": "digits", "columns": 2, "steps": 2, "seeds": 1, "seed": 1},
    "26_fair_test": {"grid": "sanity", "scale": "smoke"},
    "27_real_groups": {"seeds": 3},
    "28_losing_a_group": {"seed": 1},
    "29_one_image": {"rates": "sanity", "scale": "smoke"},
    "23_kip": {"points": [1], "seeds": 1, "steps": 2, "batch": 50, "zca": False, "depth": 2},
}
READERS = {
    "10_cifar10_first_look": LOOK | {"factor": 1, "alpha": 0.5},
    "20_methods": LOOK,
    "21_robustness_tests": LOOK,
    "24_implementation_details": LOOK,
}
ELSEWHERE = {"00_quickstart", test_speedups.PAGE, *test_causes_pages.PAGES, *(p.stem for p in test_paper_pages.PAGES)}
shown = test_paper_pages.shown  # the fixture: figures are drawn and closed


@pytest.fixture(autouse=True)
def _where_a_kernel_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page may go elsewhere; the tests after it do not."""
    monkeypatch.chdir(NOTEBOOKS)


def test_no_page_is_forgotten() -> None:
    assert {p.stem for p in NOTEBOOKS.glob("*.ipynb")} == set(CHANGED) | set(READERS) | ELSEWHERE


@pytest.mark.usefixtures("shown")
@pytest.mark.parametrize("name", CHANGED)
def test_a_page_runs_with_other_parameters(name: str) -> None:
    names = test_paper_pages.play(NOTEBOOKS / f"{name}.ipynb", **CHANGED[name])
    assert {key: names[key] for key in CHANGED[name]} == CHANGED[name]  # no cell sets a parameter anew


@pytest.mark.usefixtures("shown")
@pytest.mark.parametrize("name", READERS)
def test_a_page_asks_for_the_runs_of_its_parameters(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without records a page that reads them stops and says how to make them."""
    monkeypatch.setenv("RDD_STORE", str(tmp_path))
    with pytest.raises(StoreError, match="Run this page with mode='run' to make them"):
        test_paper_pages.play(NOTEBOOKS / f"{name}.ipynb", **READERS[name])
    assert not list(tmp_path.rglob("*.json"))


MISTYPED: list[tuple[str, dict[str, object]]] = [
    ("01_risk_measures", {"tail": "middle"}),
    ("05_own_data", {"risk": "max"}),
    ("10_cifar10_first_look", {"dataset": "cifra10"}),
    ("20_methods", {"scale": "huge"}),
    ("22_generative_prior", {"dataset": "cifra10"}),
    ("23_kip", {"kernel": "relu"}),
    ("24_implementation_details", {"mode": "red"}),
    ("25_time_to_accuracy", {"dataset": "cifra10"}),
    ("26_fair_test", {"grid": "fair"}),
    ("27_real_groups", {"scale": "huge"}),
    ("29_one_image", {"gate": "gate_2"}),
    ("41_figure3_same_start", {"method": "icd"}),
    ("43_figures5_8_galleries", {"method": "icd"}),
    ("44_power", {"dataset": "cifra10"}),
    ("50_causes", {"dataset": "cifra10"}),
    ("51_selection_audit", {"dataset": "cifra10"}),
    ("52_multiverse", {"scale": "huge"}),
]


@pytest.mark.usefixtures("shown")
@pytest.mark.parametrize(("name", "wrong"), MISTYPED, ids=[name for name, _ in MISTYPED])
def test_a_mistyped_parameter_stops_the_page(name: str, wrong: dict[str, object]) -> None:
    """Not a page without numbers: the error names the parameter, or the setting that it becomes, and its value."""
    (value,) = wrong.values()
    with pytest.raises(SettingError, match=f"{value}': allowed is"):
        test_paper_pages.play(NOTEBOOKS / f"{name}.ipynb", **wrong)
