"""Settings are declared once, checked wherever they are made, and refused all at once."""

from __future__ import annotations

import ast
import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rddlib.base import SettingError
from rddlib.data import dataset
from rddlib.distillation import distill, settings
from rddlib.experiments.experiment import Experiment
from rddlib.experiments.presets import SCALES
from rddlib.risk import RiskTerm

LIBRARY = Path(__file__).resolve().parent.parent / "rddlib"


def declarations() -> Counter[str]:
    """How often each name is declared with `setting` in the library."""
    found: Counter[str] = Counter()
    for file in LIBRARY.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.value or node).startswith("setting("):
                found[ast.unparse(node.target)] += 1
    return found


def test_what_term_and_experiment_share_is_declared_once() -> None:
    found = declarations()
    assert {found[name] for name in ("alpha", "average", "worst", "ipc", "risk", "eval_steps")} == {1}
    assert RiskTerm.declared()["alpha"] is not None
    for name in ("alpha", "average", "worst"):
        ours, theirs = Experiment.declared()[name], RiskTerm.declared()[name]
        assert (ours.default, ours.description, ours.metadata) == (theirs.default, theirs.description, theirs.metadata)


def test_every_setting_has_one_line_of_meaning_and_a_default_that_fits() -> None:
    for name, field in Experiment.declared().items():
        assert field.description and "\n" not in field.description, name
        assert Experiment.checked({name: field.default}) == {name: field.default}


@pytest.mark.parametrize("value", [1, 1.0, np.int64(1), np.float64(1), np.float32(1)])
def test_equal_numbers_are_one_key(value: object) -> None:
    made = Experiment.preset("smoke", risk="upper", alpha=value)
    assert type(made.alpha) is float and made.key == Experiment.preset("smoke", risk="upper", alpha=1.0).key
    assert dataclasses.replace(made, alpha=value).key == Experiment(**vars(made)).key == made.key
    assert type(Experiment(ipc=np.int32(3)).ipc) is int
    assert RiskTerm(alpha=value) == RiskTerm(alpha=1.0)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("chosen", [{}, {"dataset": "svhn", "method": "dm"}, {"method": "glad", "factor": 1}])
def test_texts_are_read_as_the_values_they_show(scale: str, chosen: dict) -> None:
    """What a command line says: no option needs to know its type."""
    made = vars(Experiment.preset(scale, **chosen))
    texts = {name: str(value) for name, value in made.items() if value is not None}
    texts |= {name: "none" for name in ("size", "centres_in_all", "metric") if made[name] is None}
    assert Experiment.checked(texts, texts=True) == {name: made[name] for name in texts}


@pytest.mark.parametrize(
    ("name", "value"),
    [("ipc", True), ("ipc", "3"), ("ipc", 2.5), ("alpha", "0.8"), ("alpha", True), ("eval_shifts", 1), ("factor", 4),
     ("alpha", float("nan")), ("lr_image", float("inf")), ("dataset", None), ("size", 3), ("risk", ["upper"])],
)  # fmt: skip
def test_other_kinds_are_not_taken_for_the_right_one(name: str, value: object) -> None:
    for make in (Experiment, lambda **s: dataclasses.replace(Experiment(), **s), Experiment.preset):
        with pytest.raises(SettingError) as caught:
            make(**{name: value})
        assert (caught.value.name, caught.value.others) == (name, ())


def test_all_misfits_are_listed_at_once() -> None:
    with pytest.raises(SettingError) as caught:
        Experiment.preset("smoke", alpha=2, ipc="ten", network="lenet", match_augment="sparkle", iqc=3)
    told = str(caught.value)
    for words in (
        "alpha = 2: allowed is a number above 0 and at most 1",
        "ipc = 'ten': allowed is a whole number of at least 1",
        "network = 'lenet': allowed is one of convnet, resnetap10",
        "match_augment = 'sparkle': allowed is 'none' or names of color, crop",
        "field = 'iqc': allowed is a field of Experiment; did you mean ipc?",
    ):
        assert words in told
    assert len(caught.value.others) == 4
    with pytest.raises(SettingError) as caught:
        Experiment.preset("smoke", method="dm", where="matching", start="covering", risk_images=3, eval_audit=10**6)
    assert [error.name for error in (caught.value, *caught.value.others)] == [
        "eval_audit", "where", "start", "risk_images",
    ]  # fmt: skip


def test_all_that_the_data_cannot_serve_is_listed_at_once() -> None:
    few = dataset.load("digits", train_limit=100, test_limit=20)
    e = Experiment.preset("smoke", ipc=3, factor=2, net_batch=101, groups_from="labels", depth=4)
    names = [error.name for error in settings.conflicts(few, e)]
    assert names == ["ipc", "batch_real", "net_batch", "groups_from", "depth"]
    with pytest.raises(SettingError) as caught:
        distill.distill(few, e)
    assert [caught.value.name, *(error.name for error in caught.value.others)] == names
