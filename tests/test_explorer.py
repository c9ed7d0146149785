"""book/explorer.py and the table of records: what the page embeds, the pictures of sets, what a row says of itself."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import script, unmade
from PIL import Image

from rddlib.distillation import synthetic
from rddlib.distillation.synthetic import SyntheticSet
from rddlib.experiments.experiment import Experiment
from rddlib.experiments.grid import Ledger
from rddlib.experiments.records import Record, Store

explorer, costs = script("explorer"), script("costs")
TESTS = {"accuracy": [50.0, 52.0], "cluster_min": [40.0, 41.0]}
PRICE = {"seconds": {"distill": 120.0, "evaluate": 60.0}, "cpu_seconds": {"distill": 60.0, "evaluate": 90.0}}


def record(**settings: object) -> Record:
    """A run at the laptop's scale that nobody made."""
    of = Experiment.preset("laptop", **settings)
    history = [{"probe_last": 0.5, "gradient_ratio_last": 2.0}]
    set_key = "" if of.method == "full" else of.set_key
    return unmade(of, TESTS, history=history, set_key=set_key, commit="0123456789ab", **PRICE)


def test_a_run_has_the_numbers_that_it_can_have() -> None:
    found = explorer.values(record(risk="upper", alpha=0.8, ipc=10))
    assert (found["accuracy"], found["cluster_min"], found["noise"]) == (51.0, 40.5, None)
    assert found["minutes"] == 2.0  # processor time where it is less, the clock's where that is less
    assert (found["probe"], found["ratio"], found["alpha"], found["ipc"]) == (50.0, 2.0, 0.8, 10)
    assert found["image_steps"] == record().experiment["outer_steps"] * record().experiment["inner_steps"]


def test_what_has_no_such_number_has_none() -> None:
    control, real = explorer.values(record()), explorer.values(record(method="full"))
    assert (control["alpha"], control["ratio"]) == (None, None) and control["lr_image"] is not None
    assert {name for name, value in real.items() if value is not None} == {"accuracy", "cluster_min", "minutes", "seed"}
    broken = dataclasses.replace(record(), metrics={"accuracy": [float("nan")]})
    assert explorer.values(broken)["accuracy"] is None


def test_the_embedded_data_say_what_the_script_reads() -> None:
    runs = [record(risk="upper"), record(method="random")]
    hostile = dataclasses.replace(runs[0], key="f" * 16, experiment=runs[0].experiment | {"dataset": "</script><b>"})
    text = explorer.data([*runs, hostile], {runs[0].set_key})
    assert "<" not in text
    made = json.loads(text)
    rows = [dict(zip(made["fields"], row, strict=True)) for row in made["runs"]]
    assert [row["picture"] for row in rows][:2] == [runs[0].set_key, ""]
    assert [row["term"] for row in rows] == ["upper tail", "not distilled", "upper tail"]
    assert rows[2]["dataset"] == "</script><b>"
    assert all(len(row["values"]) == len(made["measures"]) for row in rows)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_has_a_column_for_each_class_and_few_kilobytes(tmp_path: Path, channels: int) -> None:
    levels = torch.arange(12).repeat_interleave(7) / 12  # 12 classes of 7 images, each class of its own grey
    made = SyntheticSet(levels[:, None, None, None].expand(-1, channels, 8, 8).clone(), ipc=7)
    sheet = np.asarray(explorer.picture(made).convert("L"))
    assert sheet.shape == (5 * 9 - 1, 10 * 9 - 1)
    for row in (4, -4):
        assert np.abs(sheet[row, 4::9] - 255 * np.arange(10) / 12).max() < 1
    run = record(risk="upper")
    store = Store(tmp_path / "store")
    synthetic.save(store.distilled(run.set_key), made)
    assert explorer.pictures([run, record(risk="lower")], store, tmp_path / "sets") == [run.set_key]
    (file,) = (tmp_path / "sets").iterdir()
    assert file.stat().st_size < 40_000
    with Image.open(file) as kept:
        assert kept.size == (10 * 9 - 1, 5 * 9 - 1)


def test_a_row_of_the_table_says_what_the_filters_ask(tmp_path: Path) -> None:
    store = Store(tmp_path)
    runs = [record(risk="upper", lr_image=0.25), record(method="random")]
    for run in runs:
        store.add(run, "group")
    table = costs.records_table(Ledger(store))
    rows = {m[1]: m[0] for m in re.finditer(r'<tr id="record-(\w+)".*?</tr>', table)}
    assert set(rows) == {run.key for run in runs}
    upper, random = rows[runs[0].key], rows[runs[1].key]
    for name, value in {"method": "IDC", "term": "upper tail", "scale": "laptop", "dataset": "CIFAR-10"}.items():
        assert f'data-{name}="{value}"' in upper and f'<option value="{value}">{value}</option>' in table
    assert 'data-term="not distilled"' in random
    assert "lr_image=0.25" in upper and 'data-value="51.000">51.0' in upper and 'data-value="180"' in upper
    changed = re.search(r'data-settings="([^"]*)"', upper)
    assert changed is not None and "eval_groups" not in html.unescape(changed[1])  # as by default


def test_the_lists_offer_what_the_runs_carry_and_the_script_knows_their_terms(tmp_path: Path) -> None:
    runs = [record(risk="upper"), record(risk="lower"), record(method="dm"), record(method="random")]
    text = explorer.fragment(runs, Store(tmp_path), tmp_path)
    made = json.loads(text.split('id="explorer-data">')[1].split("</script>")[0])
    rows = [dict(zip(made["fields"], row, strict=True)) for row in made["runs"]]
    for name in ("dataset", "method"):
        offered = text.split(f'<select name="{name}">')[1].split("</select>")[0]
        assert set(re.findall(r"<option(?: selected)?>([^<]+)<", offered)) == {row[name] for row in rows}
    script = (Path(explorer.__file__).parent / "_static" / "explorer.js").read_text()
    assert all(f'"{row["term"]}": "M' in script or row["term"] == "control" for row in rows)
