"""`run` says what it did; begins from a finished set; several seeds; `list` in order; small data of one's own."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import rddlib
from rddlib import cli
from rddlib.base import SettingError
from rddlib.distillation import synthetic
from rddlib.experiments import provenance
from rddlib.experiments.experiment import Experiment, gather, identified, run
from rddlib.experiments.records import Store

QUICK: dict[str, Any] = {
    "train_limit": 200, "test_limit": 100, "width": 4, "eval_width": 4, "outer_steps": 1, "inner_steps": 1,
    "batch_real": 8, "net_batch": 32, "eval_steps": 4, "eval_groups": 4, "eval_seeds": 1, "eval_shifts": False,
}  # fmt: skip


def words(command: str, store: Path, *more: str, **settings: Any) -> list[str]:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in (QUICK | settings).items()]
    return [command, "--store", str(store), *options, *more]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Any:
    """A function that gives a command and returns what it printed."""

    def tell(*command: str, status: int = 0) -> str:
        assert cli.main(command) == status
        printed = capsys.readouterr()
        assert status == 0 or printed.err.count("\n") == 1
        return printed.err if status else printed.out

    return tell


def test_run_says_what_it_did_and_its_last_line_loads_the_set(tmp_path: Path, told: Any) -> None:
    first = told(*words("run", tmp_path))
    key = first[:16]
    (record,) = tmp_path.glob(f"runs/*/{key}.json")
    assert f"computed now: {record}\n" in first
    code = re.search(r"to train on it: (.*)", first)
    assert code is not None
    names: dict[str, Any] = {"rddlib": rddlib}
    exec(code[1], names)
    assert names["images"].shape == (10, 1, 8, 8) and names["labels"].tolist() == list(range(10))
    assert 0 <= names["images"].min() <= names["images"].max() <= 1
    assert told(*words("run", tmp_path)) == first.replace("computed now", "found, nothing was computed")
    assert "rddlib.load_set" not in told(*words("run", tmp_path, method="random"))  # real images are never kept
    loaded = rddlib.load_set(key[:8], Store(tmp_path)).decoded()
    assert all(torch.equal(a, b) for a, b in zip(loaded, (names["images"], names["labels"]), strict=True))


def test_several_seeds_and_what_they_would_cost(tmp_path: Path, told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(*words("run", tmp_path, "--dry-run")).endswith("no record is like it, so its cost is unknown\n")
    assert list(tmp_path.iterdir()) == []
    told(*words("run", tmp_path, "--seeds", "1-2,5"))
    assert sorted(r.experiment["seed"] for r in Store(tmp_path).records()) == [1, 2, 5]
    estimates = told(*words("run", tmp_path, "--seeds", "4-5", "--dry-run")).splitlines()
    assert re.search(r"to compute: about \d+ s, the median of the records most like it$", estimates[0])
    assert estimates[1].endswith("is there: nothing to compute") and len(Store(tmp_path).files()) == 3
    monkeypatch.setattr(provenance, "RESULTS", provenance.RESULTS + 1)
    assert "made by earlier code: nothing to compute" in told(*words("run", tmp_path, "--dry-run", seed=5))
    assert "made by earlier code, which gives other numbers" in told(*words("run", tmp_path, seed=5))
    monkeypatch.undo()
    for seeds in ("2-1", "a", "", "1,", "-3", "0-"):
        assert f"seeds = {seeds!r}" in told(*words("run", tmp_path, f"--seeds={seeds}"), status=2)
    assert "instead of --seed" in told(*words("run", tmp_path, "--seeds", "0-1", seed=3), status=2)


def test_what_the_data_do_not_have_is_refused_before_the_first_run(tmp_path: Path, told: Any) -> None:
    common = "".join(f"{name} = {json.dumps(value)}\n" for name, value in (QUICK | {"dataset": "digits"}).items())
    arms = "".join(f"[[arm]]\nname = 'a{ipc}'\nwhy = 'a test'\nvalue = 1\nipc = {ipc}\n" for ipc in (1, 500))
    (tmp_path / "own.toml").write_text(f"[common]\n{common}{arms}")
    for more in ([], ["--dry-run"]):
        command = ["grid", str(tmp_path / "own.toml"), "--scale", "smoke", "--store", str(tmp_path / "store"), *more]
        assert "ipc = 500" in told(*command, status=2)
    assert not list(tmp_path.rglob("*.json"))
    assert "group = 'a/b'" in told(*words("run", tmp_path, "--dry-run", "--group", "a/b"), status=2)


def test_list_is_sorted_filtered_and_a_spreadsheet(tmp_path: Path, told: Any) -> None:
    for seed, method in ((2, "random"), (0, "random"), (1, "mix")):
        told(*words("run", tmp_path, method=method, seed=seed))
    rows = [line.split() for line in told("list", "--store", str(tmp_path)).splitlines()]
    assert rows[0][:2] == ["key", "dataset"]
    assert [(row[2], row[7]) for row in rows[1:]] == [("mix", "1"), ("random", "0"), ("random", "2")]
    table = list(csv.DictReader(io.StringIO(told("list", "--csv", "--method=random", "--store", str(tmp_path)))))
    assert [row["seed"] for row in table] == ["0", "2"]
    records = {record.key: record for record in Store(tmp_path).records()}
    for row in table:
        assert float(row["accuracy"]) == pytest.approx(records[row["key"]].metrics["accuracy"][0], abs=0.005)
    assert "method = 'rnadom'" in told("list", "--method", "rnadom", "--store", str(tmp_path), status=2)


# --- from a finished set ----------------------------------------------------------------------------------


def test_a_run_begins_from_a_finished_set(tmp_path: Path, told: Any) -> None:
    """At rate 0 the images stay where they began: at those of the set, not at real ones."""
    key = told(*words("run", tmp_path, ipc=2))[:16]
    store = Store(tmp_path)
    begun = rddlib.load_set(key, store)
    told(*words("run", tmp_path, "--from-set", key, lr_image=0.0, risk="upper"))
    (still,) = (r for r in store.records() if r.experiment["start_sha256"])
    assert (still.experiment["ipc"], still.experiment["start_sha256"]) == (2, begun.sha256)
    assert torch.equal(rddlib.load_set(still.key, store).images, begun.images)
    file = store.distilled(store.match(key).set_key)
    again = told(*words("run", tmp_path, "--from-set", str(file), lr_image=0.0, risk="upper"))
    assert again.startswith(still.key) and "found" in again  # known by content, not by name
    plain = Experiment(**still.experiment | {"start_sha256": None})
    assert plain.key != still.key and plain.set_key != still.set_key


def test_a_run_from_a_key_is_on_the_data_of_its_record(tmp_path: Path, told: Any) -> None:
    """Data, size, limits and scale need no naming; what is named counts; of own data the path is not known."""
    of_record = {"dataset": "rare_digits", "size": 9, "train_limit": 150, "scale": "laptop"}
    short = {name: value for name, value in QUICK.items() if "limit" not in name}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in short.items()]
    key = told(*words("run", tmp_path, **of_record, factor=1, ipc=2))[:16]
    told("run", "--store", str(tmp_path), "--from-set", key, "--train-limit=160", "--eval-lr=0.02", *options)
    (later,) = (r for r in Store(tmp_path).records() if r.experiment["start_sha256"])
    of_record |= {"train_limit": 160, "test_limit": 100, "ipc": 2, "factor": 1, "eval_lr": 0.02}
    assert {name: later.experiment[name] for name in of_record} == of_record

    rng = np.random.default_rng(0)
    arrays = {f"{part}_images": rng.integers(0, 256, (40, 8, 8, 1), np.uint8) for part in ("train", "test")}
    labels = {f"{part}_labels": np.arange(40) % 2 for part in ("train", "test")}
    np.savez(tmp_path / "mine.npz", classes=np.array(["a", "b"]), **arrays, **labels)
    own = told("run", "--store", str(tmp_path), f"--dataset=npz:{tmp_path}/mine.npz", "--depth=2", *options)[:16]
    more = ["run", "--store", str(tmp_path), "--from-set", own, "--depth=2", "--dry-run", *options]
    assert "dataset = None: allowed is the path of npz:mine.npz" in told(*more, status=2)
    assert "npz:mine.npz idc" in told(*more, f"--dataset=npz:{tmp_path}/mine.npz")


def test_a_set_that_does_not_fit_is_refused_before_work(tmp_path: Path, told: Any) -> None:
    made = synthetic.SyntheticSet(torch.zeros(10, 1, 8, 8), 1)
    file = synthetic.save(tmp_path / "a.npz", made)
    store = tmp_path / "store"
    assert "from_set = '(10, 1, 8, 8), ipc 1" in told(*words("run", store, f"--from-set={file}", ipc=2), status=2)
    assert "start_sha256" in told(*words("run", store, f"--from-set={file}", method="kip"), status=2)
    assert "0 records in" in told(*words("run", store, "--from-set=0123"), status=2)
    e = Experiment.preset("smoke", **QUICK, start_sha256=made.sha256)
    with pytest.raises(SettingError, match="that of the set that is begun from, None"):
        run(e, Store(store))
    assert not list(store.rglob("*.npz"))


# --- small data of one's own ------------------------------------------------------------------------------


def test_batch_sizes_follow_small_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two classes of twelve images, with nothing set by hand; the same record is found again by a page."""
    rng = np.random.default_rng(0)
    for part, each in (("train", 12), ("test", 4)):
        for name in ("cat", "dog"):
            place = tmp_path / "pets" / part / name
            place.mkdir(parents=True)
            for i in range(each):
                Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(place / f"{i}.png")
    short = {"outer_steps": 1, "inner_steps": 1, "eval_steps": 2, "eval_seeds": 1, "width": 4, "eval_width": 4}
    e = Experiment.preset("smoke", dataset=f"folder:{tmp_path / 'pets'}", **short)
    assert (e.batch_real, e.net_batch, e.eval_groups) == (32, 128, 10)
    with caplog.at_level(logging.WARNING):
        record = run(e, Store(tmp_path / "store"))
    assert caplog.messages == ["folder:pets is small: batch_real = 12, eval_groups = 4, net_batch = 24"]
    assert (record.experiment["batch_real"], record.experiment["net_batch"]) == (12, 24)
    assert gather([e], "load", Store(tmp_path / "store"))[0] == [record] and identified(e).key == record.key
    data = rddlib.load_dataset(e.dataset)
    made = rddlib.distill(data, **{name: short[name] for name in ("outer_steps", "inner_steps", "width")})
    assert torch.equal(synthetic.quantised(made).images, rddlib.load_set(record.key, Store(tmp_path / "store")).images)
    scores = rddlib.evaluate(made, data, **{name: short[name] for name in short if name.startswith("eval_")})
    assert len(scores["group_sizes"]) == 4
    by_hand = Experiment.preset("smoke", dataset=e.dataset, **short, batch_real=13, net_batch=25)
    with pytest.raises(SettingError, match="batch_real = 13: allowed is at most 12.*; net_batch = 25"):
        run(by_hand, Store(tmp_path / "store"))
    paper = Experiment.preset("cpu", dataset=e.dataset, **short)
    with pytest.raises(SettingError, match="ipc = 10.*; batch_real = 64.*; net_batch = 256.*; eval_groups = 10"):
        run(paper, Store(tmp_path / "store"))
