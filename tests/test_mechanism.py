"""Whether the mechanism is on, and the choice of a rate, on runs whose answers are known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import unmade

from rddlib.analysis import inner_loop, mechanism
from rddlib.analysis.results import histories, tidy
from rddlib.experiments.experiment import Experiment
from rddlib.experiments.records import Record


def run(value: float, probe: float | None = 0.5, **changes: object) -> Record:
    e = Experiment.preset("cpu", eval_part="validation", eval_seeds=2, **changes)
    history = [{"distance": 1.0} | ({} if probe is None else {"probe_first": 0.1, "probe_last": probe})] * 3
    return unmade(e, {"accuracy": [value - 1, value + 1]}, history=history)


def test_arms_have_names() -> None:
    names = [
        mechanism.arm(vars(Experiment.preset(scale, **changes)))
        for scale, changes in [
            ("cpu", {"risk": "control"}),
            ("cpu", {"risk": "control", "net_steps": 0}),
            ("cpu", {"risk": "upper"}),
            ("cpu", {"risk": "upper", "ipc": 1}),
            ("cpu", {"risk": "lower", "centres_in_all": 100}),
            ("cpu", {"risk": "upper", "where": "matching"}),
            ("laptop", {"risk": "upper"}),
        ]
    ]
    assert names == [
        "control",
        "control, network untrained",
        "upper, 10 groups",
        "upper, 1 group",
        "lower, 100 groups",
        "upper in the matched gradient, 10 groups",
        "upper, 10 groups a class",
    ]


def test_the_best_rate_is_chosen_over_both_seeds_and_an_end_is_said() -> None:
    values = {0.02: (47, 45), 0.05: (46, 47), 0.15: (50, None)}  # .15 has one seed: it is not in the running
    records = [
        run(value, lr_image=rate, seed=100 + i)
        for rate, pair in values.items()
        for i, value in enumerate(pair)
        if value is not None
    ]
    records += [run(40 + i, risk="upper", lr_image=rate, seed=100) for i, rate in enumerate((0.02, 0.05, 0.15, 0.005))]
    records += [run(30, risk="lower", lr_image=rate, seed=100) for rate in (0.02,)]
    found = mechanism.chosen_rates(mechanism.rates(tidy(records)))
    assert found.loc["control"].tolist() == [0.05, 46.5, 2, False]
    assert found.loc["upper, 10 groups"].tolist() == [0.005, 43, 4, False]
    inside = [run(v, lr_image=rate, seed=100) for rate, v in ((0.02, 45), (0.05, 48), (0.15, 44))]
    assert mechanism.chosen_rates(mechanism.rates(tidy(inside))).loc["control"].tolist() == [0.05, 48, 3, True]
    equal = [run(v, lr_image=rate, seed=100) for rate, v in ((0.005, 48), (0.02, 48), (0.05, 44))]
    assert mechanism.chosen_rates(mechanism.rates(tidy(equal))).loc["control"].tolist() == [0.02, 48, 3, True]


def test_the_table_of_rates_has_a_gap_where_none_was_tried() -> None:
    records = [run(40 + i, risk="upper", lr_image=rate, seed=100) for i, rate in enumerate((0.02, 0.05, 0.15, 0.005))]
    records += [run(30, risk="lower", lr_image=0.02, seed=seed) for seed in (100, 101)]
    shown = mechanism.rates_table(mechanism.rates(tidy(records)))
    assert shown.loc["upper, 10 groups"].tolist() == ["43.00", "40.00", "41.00", "42.00", 0.005, False]
    assert shown.loc["lower, 10 groups"].tolist() == ["", "30.00", "", "", 0.02, False]


def test_a_history_is_a_table_of_arms_steps_and_quantities() -> None:
    records = [run(47, 0.5), run(46, 0.29, risk="upper"), run(45, None, net_steps=0)]
    history = mechanism.with_arms(histories(records))
    assert set(history["outer"]) == {1, 2, 3}
    last = history[history["quantity"] == "probe_last"].groupby("arm")["value"].mean()
    assert last.to_dict() == {"control": 0.5, "upper, 10 groups": 0.29}  # an untrained network has no probes


@pytest.mark.parametrize(("cycles", "share"), [(0.125, 0.0), (0.375, 1.0)])
def test_detail_is_the_share_above_a_quarter_of_a_cycle_a_pixel(cycles: float, share: float) -> None:
    wave = torch.cos(2 * torch.pi * cycles * torch.arange(32.0)).expand(32, 32)
    images = torch.stack([wave, wave.T, 5 * wave + 2]).reshape(1, 3, 32, 32)
    assert mechanism.detail(images) == pytest.approx(share, abs=1e-5)


def test_white_noise_has_the_detail_of_the_plane_outside_a_circle() -> None:
    noise = torch.rand(50, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert mechanism.detail(noise) == pytest.approx(1 - torch.pi / 16, abs=0.02)


def test_a_processor_and_a_card_judge_the_same_sets_alike() -> None:
    """What page 26 and the rules of the fair test say of control's sets from the card, judged on a processor."""
    file = Path(__file__).parent.parent / "data" / "loop" / "devices.json"
    found = inner_loop.read(file)
    seeds = found["judged, cpu"].values()
    assert len(seeds) == 5
    for measure, mean in (("accuracy", 0.0), ("blur", 0.1)):
        moved = [seed["here"][measure] - seed["recorded"][measure] for seed in seeds]
        assert abs(sum(moved) / 5 - mean) < 0.05
        assert max(map(abs, moved)) < 0.5
    anew = [seed["here"]["accuracy"] - seed["recorded"]["accuracy"] for seed in found["distilled, cpu"].values()]
    assert [f"{gap:.1f}" for gap in (sum(anew) / 3, min(anew), max(anew))] == ["-0.4", "-0.9", "0.2"]
