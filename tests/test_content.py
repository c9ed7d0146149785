"""Data are known by what they hold: the same images have one key anywhere, changed ones never an old number."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rddlib import cli
from rddlib.analysis.report import Page
from rddlib.base import DataError, SettingError
from rddlib.data import dataset
from rddlib.distillation.glad import generator as generators
from rddlib.experiments import experiment as runs
from rddlib.experiments.experiment import Experiment, gather, identified, load_data, run
from rddlib.experiments.records import Store, StoreError
from rddlib.experiments.validate import read_record

QUICK = {"method": "random", "eval_steps": 3, "eval_width": 4, "eval_depth": 2, "eval_seeds": 1, "eval_groups": 2}
SHORT = {"method": "idc", "outer_steps": 1, "inner_steps": 1, "width": 4, "depth": 2, "batch_real": 4, "net_batch": 8}


def pack(path: Path, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    arrays = {f"{part}_images": rng.integers(0, 256, (12, 8, 8, 3), np.uint8) for part in ("train", "test")}
    labels = {f"{part}_labels": np.arange(12) % 2 for part in ("train", "test")}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, classes=np.array(["a", "b"]), **arrays, **labels)
    return path


def folder(path: Path, n: int = 6) -> Path:
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("a", "b"):
            (path / part / name).mkdir(parents=True, exist_ok=True)
            for i in range(n):
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path / part / name / f"{i}.png")
    return path


def of(name: str, **changes: object) -> Experiment:
    return Experiment.preset("smoke", dataset=name, **(QUICK | changes))


def test_one_key_for_one_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    pack(tmp_path / "a.npz")
    (tmp_path / "other").mkdir()
    shutil.copy(tmp_path / "a.npz", tmp_path / "other" / "b.npz")
    places = ("npz:a.npz", "npz:./a.npz", "npz:~/a.npz", f"npz:{tmp_path}/a.npz", "npz:other/b.npz")
    store = Store(tmp_path / "store")
    records = [run(of(place), store) for place in places]
    assert len({record.key for record in records}) == 1 and len(store.files()) == 1
    text = store.files()[0].read_text()
    assert '"dataset": "npz:a.npz"' in text and str(tmp_path) not in text
    assert records[0].experiment["dataset_sha256"] == records[0].data_sha256
    assert read_record(store.files()[0]) == records[0]  # key and settings agree, as merge wants it
    pack(tmp_path / "a.npz", seed=1)
    assert run(of("npz:a.npz"), store).key != records[0].key


def test_settings_still_make_different_keys(tmp_path: Path) -> None:
    name = f"npz:{pack(tmp_path / 'a.npz')}"
    keys = {identified(of(name, **change)).key for change in ({}, {"seed": 1}, {"size": 16}, {"test_limit": 4}, SHORT)}
    assert len(keys) == 5


def test_a_grown_folder_is_other_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path / "store")
    words = ["run", "--dataset", f"folder:{folder(tmp_path / 'pets')}", "--store", str(store.root)]
    words += [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items()]
    assert cli.main(words) == 0
    first = capsys.readouterr().out
    assert cli.main(words) == 0 and "folder:pets random" in first
    again = capsys.readouterr().out
    assert again == first.replace("computed now", "found, nothing was computed")
    assert len(store.files()) == 1
    folder(tmp_path / "pets", n=7)
    assert cli.main(words) == 0
    assert capsys.readouterr().out.split()[0] != first.split()[0] and len(store.files()) == 2


def test_a_distilled_set_of_changed_data_is_made_anew(tmp_path: Path) -> None:
    store, name = Store(tmp_path / "store"), f"npz:{pack(tmp_path / 'a.npz')}"
    first = run(of(name, **SHORT), store)
    assert str(tmp_path).encode() not in store.distilled(first.set_key).read_bytes()
    pack(tmp_path / "a.npz", seed=1)
    second = run(of(name, **SHORT), store)
    assert first.set_key != second.set_key and store.distilled(second.set_key).is_file()


def test_pages_and_grids_find_what_a_run_has_kept(tmp_path: Path) -> None:
    store, name = Store(tmp_path / "store"), f"npz:{pack(tmp_path / 'a.npz')}"
    record = run(of(name), store)
    assert gather([of(name)], "load", store)[0] == [record]
    text = '[common]\ndataset = "PATH"\n[[arm]]\nname = "a"\nwhy = "b"\nvalue = 1\n'.replace("PATH", name)
    text = 'title = "t"\n' + text + "\n".join(f"{k} = {json.dumps(v)}" for k, v in QUICK.items())
    (tmp_path / "own.toml").write_text(text)
    page = Page.of(str(tmp_path / "own.toml"), "smoke", store=store)
    assert list(page.records) == [record.key] and page.arm().records == (record,)
    absent = of(f"npz:{tmp_path}/none.npz")
    assert identified(absent) == absent
    with pytest.raises(DataError, match=r"none\.npz"):
        run(absent, store)


def test_what_was_planned_with_other_images_is_not_run_with_these(tmp_path: Path) -> None:
    planned = identified(of(f"npz:{pack(tmp_path / 'a.npz')}"))
    assert load_data(planned).sha256 == planned.dataset_sha256
    pack(tmp_path / "a.npz", seed=1)
    with pytest.raises(DataError, match=r"npz:a\.npz: these data have changed"):
        run(planned, Store(tmp_path / "store"))
    assert identified(of(f"npz:{tmp_path}/a.npz")).key != planned.key  # what is remembered goes by time and size


def test_a_named_set_that_has_changed_is_said(tmp_path: Path) -> None:
    """Same name, other pack: neither the old number nor a new one under the same key."""
    store, roots = Store(tmp_path / "store"), [tmp_path / "one", tmp_path / "two"]
    for seed, root in enumerate(roots):
        pack(root / "mine.npz", seed)
    e = of("mine")
    record = run(e, store, data_root=roots[0])
    assert run(e, store, data_root=roots[0]) == record
    assert run(e, store, data_root=tmp_path / "nothing here") == record  # records are read without data
    with pytest.raises(StoreError, match=f"{record.key}: this record was made from other data called 'mine'"):
        run(e, store, data_root=roots[1])
    pack(roots[0] / "mine.npz", seed=5)
    with pytest.raises(StoreError, match="other data called 'mine'"):
        run(e, store, data_root=roots[0])


def test_records_of_held_out_parts_may_carry_the_hash_of_the_whole(tmp_path: Path) -> None:
    store, root = Store(tmp_path / "store"), pack(tmp_path / "mine.npz").parent
    e = of("mine", eval_part="validation")
    record = run(e, store, data_root=root)
    whole = dataset.load("mine", root).sha256
    assert record.data_sha256 != whole
    store.add(dataclasses.replace(record, data_sha256=whole), "mine_smoke")
    assert run(e, store, data_root=root).data_sha256 == whole


def test_a_pack_is_known_by_its_name_with_and_without_its_size(tmp_path: Path) -> None:
    pack(tmp_path / "pets128.npz")
    assert run(of("pets"), Store(tmp_path / "store"), data_root=tmp_path).experiment["dataset"] == "pets"


def test_digits_are_embedded_and_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    record = run(of("digits"), store)
    monkeypatch.setattr(runs.datasets, "load", lambda *_, **__: pytest.fail("data was read"))
    assert run(of("digits"), store) == record


def test_the_content_is_for_own_data_alone() -> None:
    with pytest.raises(SettingError, match="dataset_sha256"):
        of("digits", dataset_sha256="a" * 64)
    assert of("npz:x", dataset_sha256="a" * 64).key == of("folder:y", dataset_sha256="a" * 64).key
    assert Experiment().key == "44136fa355b3678a"


def test_a_held_out_part_with_known_groups_is_found_again(tmp_path: Path) -> None:
    """The groups are made of what the hold-out leaves, so its content is known by the same way round."""
    rng = np.random.default_rng(0)
    arrays = {f"{part}_images": rng.integers(0, 256, (60, 32, 32, 3), np.uint8) for part in ("train", "test")}
    labels = {f"{part}_labels": np.arange(60) % 2 for part in ("train", "test")}
    np.savez(tmp_path / "cifar10.npz", classes=np.array(["a", "b"]), **arrays, **labels)
    e = of("rare_cifar10:tinted:0.2", eval_part="validation", method="random", ipc=1)
    store = Store(tmp_path / "store")
    assert run(e, store, data_root=tmp_path) == run(e, store, data_root=tmp_path)


def test_a_set_is_not_shared_by_runs_that_test_on_other_images() -> None:
    """Its history has accuracies on them."""
    one, two = (of("digits", **(SHORT | {"test_limit": n})) for n in (100, 200))
    assert one.set_key != two.set_key != of("digits", **SHORT).set_key


def test_other_weights_under_the_same_name_are_said(tmp_path: Path) -> None:
    digits = dataset.load("digits")
    file = tmp_path / "own.safetensors"
    net = generators.Generator(generators.GeneratorSettings(latent=4, width=8, convs=1), digits.shape, 10)
    generators.save(file, net, digits)
    e = of("digits", **(SHORT | {"method": "glad", "prior": f"generator:{file}", "prior_layer": 1, "ipc": 1}))
    store = Store(tmp_path / "store")
    assert run(e, store) == run(e, store)
    with torch.no_grad():
        next(net.parameters()).add_(1.0)
    generators.save(file, net, digits)
    with pytest.raises(StoreError, match="made with other weights"):
        run(e, store)
    with pytest.raises(StoreError, match="made with other weights"):
        run(dataclasses.replace(e, eval_steps=4), store)
    file.unlink()
    assert run(e, store).key == e.key  # records are read without it
