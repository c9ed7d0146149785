"""One reader of records: what stands in a record stands in the table, once, beside its settings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import unmade

from rddlib.analysis.results import by_seed, results, tidy
from rddlib.base import SettingError
from rddlib.experiments.experiment import Experiment
from rddlib.experiments.records import Store


def store_of(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    for seed in (0, 1):
        for risk, gain in (("control", 0.0), ("upper", 2.0)):
            e = Experiment.preset("smoke", seed=seed, risk=risk)
            metrics = {
                "accuracy": [50 + seed + gain, 52 + seed + gain],
                "class_accuracy": [[10.0, 90.0 + gain], [20.0, None]],
                "class_sizes": [5, 7],
                "steps": 120,
            }
            store.add(unmade(e, metrics), "g")
    return store


def test_every_number_of_a_record_has_one_row(tmp_path: Path) -> None:
    frame = results(store=store_of(tmp_path))
    assert set(frame["test"]) == {"accuracy", "class_accuracy"}  # sizes and steps are not of a training
    assert len(frame[frame["test"] == "accuracy"]) == 2 * 2 * 2
    classes = frame[(frame["test"] == "class_accuracy") & (frame["risk"] == "upper") & (frame["seed"] == 0)]
    assert classes["group"].tolist() == [0, 1, 0, 1] and classes["training"].tolist() == [0, 0, 1, 1]
    assert classes["value"].tolist()[:3] == [10.0, 92.0, 20.0] and np.isnan(classes["value"].iloc[3])


def test_settings_choose_and_defaults_fill(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    upper = results(store=store, risk="upper", seed=[0, 1])
    assert set(upper["risk"]) == {"upper"} and set(upper["image_rule"]) == {"sgd"}
    assert results(store=store, scale="paper").empty
    with pytest.raises(SettingError, match="alhpa"):
        results(store=store, alhpa=0.8)


def test_trainings_are_averaged_within_a_seed(tmp_path: Path) -> None:
    means = by_seed(results(store=store_of(tmp_path)), "risk")
    accuracy = means[means["test"] == "accuracy"].set_index(["risk", "seed"])["value"]
    assert accuracy.to_dict() == {("control", 0): 51, ("control", 1): 52, ("upper", 0): 53, ("upper", 1): 54}


def test_a_grid_at_a_scale_has_the_records_of_the_store() -> None:
    """Table 1's runs at laptop scale, against the records read one by one."""
    frame = results("table1", "laptop", dataset="cifar10", ipc=10, method="idc", risk="upper", where="network")
    records = {r.key: r for r in Store().records() if r.key in set(frame["key"])}
    assert len(records) == 5 and set(frame["seed"]) == {0, 1, 2, 3, 4}
    mean = frame[frame["test"] == "accuracy"]["value"].mean()
    assert mean == pytest.approx(np.mean([r.metrics["accuracy"] for r in records.values()]))
    assert tidy([]).empty


@pytest.mark.parametrize("wrong", [{"seed": "1"}, {"method": "idk"}, {"ipc": 0}, {"risk": ["upper", "uper"]}], ids=str)
def test_a_value_that_no_run_can_have_is_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(SettingError, match=next(iter(wrong))):
        results(store=Store(tmp_path), **wrong)
