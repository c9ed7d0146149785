"""Cells of the grid, contrasts that mean what their names say, and verdicts at the right rate on known records."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import unmade

from rddlib.analysis import causes, factorial
from rddlib.analysis.results import tidy
from rddlib.base import numpy_generator
from rddlib.experiments import grid
from rddlib.experiments.experiment import Experiment
from rddlib.experiments.records import Record

ALL = [*causes.CELLS, causes.LONGER, causes.EQUAL, causes.LARGEST]


def values(
    rng: np.random.Generator, cells: list[str] = ALL, seeds: int = 3, sd: float = 0.5, **gains: float
) -> pd.DataFrame:
    """Cells x seeds around 45; `gains` by the number of the cell in `cells`, as c3=2.0."""
    table = 45 + 2 * rng.standard_normal((1, seeds)) + sd * rng.standard_normal((len(cells), seeds))
    for name, gain in gains.items():
        table[int(name[1:])] += gain
    return pd.DataFrame(table, index=cells, columns=range(seeds))


def record(experiment: Experiment, **metrics: list[float]) -> Record:
    return unmade(experiment, metrics)


@pytest.mark.parametrize("scale", ["smoke", "laptop"])
def test_every_run_of_the_grid_has_a_cell_of_its_own(scale: str) -> None:
    jobs = grid.jobs(["causes"], scale)
    for held in (False, True):
        names = [
            (causes.cell(vars(j.experiment)), j.experiment.seed) for j in jobs if j.experiment.eval_corruptions == held
        ]
        assert len(names) == len(set(names)) and "" not in {name for name, _ in names}
    plain = {causes.cell(vars(j.experiment)) for j in jobs if not j.experiment.eval_corruptions}
    assert set(ALL) <= plain


def test_runs_of_other_grids_have_none() -> None:
    others = [{"method": "dm"}, {"lr_net": 0.02}, {"risk": "upper", "scope": "class"}, {"risk": "upper", "alpha": 0.4}]
    assert [causes.cell(vars(Experiment.preset("laptop", **o))) for o in others] == [""] * 4


def test_effects_are_what_their_names_say() -> None:
    """Built from known parts: what each name says comes back, and nothing leaks into the others."""
    flat = dict.fromkeys(causes.CELLS, 45.0)
    parts = {
        "a term - none": {c: 1.0 for c in causes.CELLS if "none" not in c},
        "upper - lower tail": {c: 0.5 if "upper" in c else -0.5 for c in causes.CELLS if "none" not in c},
        "matching - network": {c: 0.5 if "matching" in c else -0.5 for c in causes.CELLS if "none" not in c},
        "synthetic - real images": {c: 1.0 for c in causes.CELLS if c.startswith("synthetic")},
    }
    for name, part in parts.items():
        means = pd.DataFrame({s: {c: flat[c] + 3 * part.get(c, 0.0) for c in flat} for s in range(2)})
        fit = factorial.fit(means)
        found = {n: fit.effect(w).mean for n, w in causes.effects().items()}
        assert found.pop(name) == pytest.approx(3.0)
        assert max(abs(v) for v in found.values()) == pytest.approx(0.0, abs=1e-9)


def test_an_interaction_is_the_effect_at_the_second_level_less_that_at_the_first() -> None:
    means = pd.Series(45.0, index=causes.CELLS)
    means["synthetic, upper"] += 2.0
    means["synthetic, upper, matching"] += 2.0
    fit = factorial.fit(pd.DataFrame({0: means, 1: means + 1}))
    found = {n: fit.effect(w).mean for n, w in causes.effects().items()}
    assert found["tail x images"] == pytest.approx(2.0) and found["upper - lower tail"] == pytest.approx(1.0)
    assert (found["tail x place"], found["tail x place x images"]) == pytest.approx((0.0, 0.0), abs=1e-9)


def test_the_nine_effects_are_all_that_ten_cells_have() -> None:
    matrix = np.array([[w.get(c, 0.0) for c in causes.CELLS] for w in causes.effects().values()])
    assert matrix.shape == (9, 10) and np.linalg.matrix_rank(matrix) == 9


def test_the_ladder_adds_up_to_the_papers_term() -> None:
    total = pd.DataFrame(list(causes.ladder().values())[:4]).sum()
    assert total[total != 0].to_dict() == factorial.contrast([causes.of("real", "upper")], [causes.CONTROL])


def test_false_alarms_and_finds_at_their_rates() -> None:
    """No effect: one stands in at most 5 % of tables. Two points of the synthetic cells: nearly always found."""
    rng = numpy_generator(0, "causes")
    none, found = 0, 0
    synthetic = {f"c{causes.CELLS.index(c)}": 2.0 for c in causes.CELLS if c.startswith("synthetic")}
    for _ in range(200):
        for gains, true in (({}, False), (synthetic, True)):
            fit = factorial.fit(values(rng, causes.CELLS, **gains))
            stands = factorial.holm({n: fit.effect(w) for n, w in causes.effects().items()})
            none += not true and any(stands.values())
            found += true and stands["synthetic - real images"]
    assert none / 200 <= 0.085 and found / 200 >= 0.95  # two standard errors above 5 %


def test_the_best_cell_is_chosen_and_chance_is_not_called_a_gain() -> None:
    rng = numpy_generator(1, "choose")
    helped = [causes.choose(values(rng, c3=4.0)) for _ in range(60)]
    assert {name for name, _ in helped} == {ALL[3]} and np.mean([ok for _, ok in helped]) > 0.95
    chance = [causes.choose(values(rng)) for _ in range(200)]
    assert np.mean([ok for _, ok in chance]) <= 0.08 and all(name != causes.CONTROL for name, _ in chance)
    hurt = causes.choose(values(rng, **{f"c{i}": -5.0 for i in range(1, len(ALL))}))
    assert not hurt[1]


def test_cells_that_lack_a_seed_are_not_chosen() -> None:
    table = values(numpy_generator(2, "holes"), c3=9.0)
    table.iloc[3, 1] = np.nan
    assert causes.choose(table)[0] != ALL[3]
    assert causes.choose(table.iloc[1:]) == ("", False)
    assert causes.choose(table.iloc[:1]) == ("", False)


def test_corruptions_are_averaged_and_published_shifts_left_out() -> None:
    experiment = Experiment.preset("smoke")
    made = record(experiment, fog_1=[10.0, 20.0], fog_3=[30.0, 40.0], noise=[99.0, 99.0])
    frame = causes.with_corruptions(tidy([made])).assign(cell="one")
    assert factorial.table(frame, "corruptions").loc["one"].tolist() == [25.0]
    assert factorial.table(frame, "noise").loc["one"].tolist() == [99.0]
