"""Hostile and broken files are refused in a sentence, text from records is no markup, and no litter stays."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, script, tiny, unmade

from rddlib import cli, files
from rddlib.base import DataError, SettingError
from rddlib.data import dataset, sources
from rddlib.distillation import synthetic
from rddlib.distillation.synthetic import SyntheticSet
from rddlib.evaluation.metrics import TestBench, nulls
from rddlib.experiments import foreign, grid, workers
from rddlib.experiments.experiment import run
from rddlib.experiments.grid import Ledger
from rddlib.experiments.records import Store, StoreError
from rddlib.experiments.workers import Scheduler

costs = script("costs")
E = tiny(method="random")
RECORD = unmade(E, {"accuracy": [50.0, 51.0]})
SCRIPT = "<script>alert(1)</script>"

SETTINGS = {k: v for k, v in dataclasses.asdict(E).items() if v is not None and k not in ("method", "scale")}
OPTIONS = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]

# --- bounds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", [sources.read_npz, synthetic.read, synthetic.about, "foreign", "tensors"])
def test_archives_of_zeros_are_refused_before_they_are_unpacked(
    reader: Callable[[Path], Any] | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small archive that unpacks to more than the bound, and to more than 100 times its size."""
    monkeypatch.setattr(files, "UNPACKED", 2**20)
    file, digits = tmp_path / "zeros.npz", dataset.load("digits", train_limit=50, test_limit=20)
    np.savez_compressed(file, images=np.zeros(2**23, np.uint8), labels=np.zeros(10))
    if reader == "tensors":  # the archive of torch.save, packed again by somebody who means harm
        file = file.rename(tmp_path / "zeros.pt")
    monkeypatch.setattr(np.lib.format, "read_array", lambda *_, **__: pytest.fail("was unpacked"))
    with pytest.raises(DataError, match=r"zeros\.(npz|pt): .*too large when unpacked"):
        foreign.read(file, digits) if isinstance(reader, str) else reader(file)


def test_large_archives_of_content_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "UNPACKED", 2**10)
    noise = np.random.default_rng(0).integers(0, 256, 2**16, np.uint8)
    np.savez_compressed(tmp_path / "noise.npz", noise=noise)
    assert np.array_equal(files.arrays((tmp_path / "noise.npz").read_bytes())["noise"], noise)


ARM = '[[arm]]\nname = "a"\nwhy = "b"\nvalue = 1\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (ARM + "".join(f"{name} = {list(range(1, 101))}\n" for name in ("seed", "ipc", "width", "depth")), "100000000"),
        (ARM + "seed = " + "[" * 100_000, "cannot be read"),
        ("a." * 1_500 + "b = 1", "line of more than 2000 characters"),
    ],
    ids=["cross", "brackets", "dots"],
)
def test_grids_without_bound_are_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "bomb.toml").write_text(text)
    with pytest.raises(SettingError, match=words):
        grid.read(tmp_path / "bomb.toml", "smoke")


@pytest.mark.timeout(60)
def test_a_pipe_among_records_is_named_and_not_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    store.add(RECORD, "toys")
    os.mkfifo(tmp_path / "runs" / "toys" / f"{'0' * 16}.json")
    assert store.records() == [RECORD] and "plain file" in caplog.text
    with pytest.raises(StoreError, match="plain file"):
        store.find("0" * 16)
    assert cli.main(["list", "--store", str(tmp_path)]) == 2 and "plain file" in capsys.readouterr().err
    assert set(costs.contents(store)) == {RECORD.key}
    os.mkfifo(tmp_path / "set.npz")
    with pytest.raises(DataError, match=r"set\.npz: .*plain file"):
        synthetic.read(tmp_path / "set.npz")
    (tmp_path / "work" / "k").mkdir(parents=True)
    os.mkfifo(tmp_path / "work" / "k" / "failed.json")
    assert "cannot be read" in grid.failure(store, "k")
    os.mkfifo(tmp_path / "state.pt")
    with pytest.raises(DataError, match="plain file"):
        files.read_state(tmp_path / "state.pt", "", torch.device("cpu"), dict)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "[" * 100_000, '{"rows": [], "checksum": "0"}', "\x00", '"text"'])
@pytest.mark.parametrize("name", ["evaluation.json", "clock.json", "record"])
def test_files_damaged_by_hand_are_one_sentence(
    text: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    file = store.root / "runs" / "g" / f"{E.key}.json" if name == "record" else store.work(E.key) / name
    file.parent.mkdir(parents=True)
    file.write_text(text)
    with pytest.raises(
        (DataError, StoreError), match=rf"{file.name}: damaged (record|checkpoint) .*delete it"
    ) as raised:
        run(E, store)
    assert "\n" not in str(raised.value) and file.read_text() == text
    command = ["list"] if name == "record" else ["run", "--method", "random", *OPTIONS]
    assert cli.main([*command, "--store", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_sets_in_which_zlib_finds_the_damage(tmp_path: Path) -> None:
    """Old sets have no checksum; every damage to one is a sentence, whoever notices it."""
    made = SyntheticSet(torch.rand(20, 1, 8, 8), 2, 1)
    synthetic.save(tmp_path / "set.npz", made)
    raw = (tmp_path / "set.npz").read_bytes()
    old = bytearray(raw[: files.SEAL.search(raw).start()])  # type: ignore[union-attr]
    old[-2:] = b"\0\0"
    kinds = set()
    for place in range(0, len(old), 7):
        (tmp_path / "set.npz").write_bytes(old[:place] + bytes([old[place] ^ 255]) + old[place + 1 :])
        try:
            synthetic.read(tmp_path / "set.npz")
        except DataError as error:
            kinds.add(type(error.__cause__).__name__)
    assert {"error", "BadZipFile"} <= kinds  # zlib.error among them


# --- text on pages ----------------------------------------------------------------------------------------


def test_markup_that_gets_to_a_page_stays_text(tmp_path: Path) -> None:
    """The second line of defence: records that nobody has checked, and the name of a folder."""
    bad = dataclasses.replace(RECORD, device=SCRIPT, commit=SCRIPT, experiment=RECORD.experiment | {"dataset": SCRIPT})
    store = Store(tmp_path / "data")
    path = store.root / "runs" / "<img onerror=alert(1)>" / f"{bad.key}.json"
    path.parent.mkdir(parents=True)
    path.write_text(bad.to_json())
    ledger = Ledger(store)
    ledger.records[bad.key] = bad
    cells = [{"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": ['mode = "load"'], "outputs": []}]
    cells += [{"cell_type": "code", "metadata": {}, "source": [], "outputs": [
        {"output_type": "stream", "text": bad.key}]}]  # fmt: skip
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "30_page.ipynb").write_text(json.dumps({"cells": cells}))
    made = (costs.runs_table(ledger), costs.records_table(ledger), costs.pages_table(tmp_path, ledger, ()))
    own = '<script src="../_static/records.js"></script>'
    for page in (text.replace(own, "") for text in made):
        assert "<script" not in page and "<img" not in page
    assert all("&lt;script&gt;" in page for page in made[:2])  # the devices of runs, as text


# --- threads, litter, temporary folders -------------------------------------------------------------------


def asked(_: dict[str, Any], root: str, *__: Any) -> None:
    """Stands for `workers.work`: notes what a process sees, then fails."""
    (Path(root) / "seen").write_text(f"{os.environ.get('OMP_NUM_THREADS')} {torch.get_num_threads()}")


def test_workers_side_by_side_have_one_openmp_thread_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(workers, "work", asked)
    scheduler = Scheduler([grid.Job(E, 1.0, ("g/a",))], Store(tmp_path), processes=2)
    scheduler.context = workers.multiprocessing.get_context("spawn")
    scheduler.go()
    assert (tmp_path / "seen").read_text() == "1 1" and "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert Scheduler([], Store(tmp_path), processes=2).threads is None


def test_what_killed_runs_left_is_collected_at_the_next_start(tmp_path: Path) -> None:
    store, later = Store(tmp_path), dataclasses.replace(E, seed=9)
    store.add(RECORD, "toys")
    litter = [tmp_path / "work" / "aa" / ".state.pt.abcd1234", tmp_path / "runs" / "toys" / ".x.json.abcd_234"]
    kept = [tmp_path / "work" / "aa" / "state.pt", tmp_path / "runs" / "toys" / ".keep"]
    kept.append(tmp_path / "work" / ".a.abcd1234")  # young: somebody is writing it
    done = store.work(RECORD.key) / "evaluation.json"
    for path in (*litter, *kept, done):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for path in (*litter, *kept[:2]):
        os.utime(path, (time.time() - 2 * files.LITTER_AGE,) * 2)
    run(later, store)
    assert not any(path.exists() for path in litter) and all(path.exists() for path in kept)
    assert not done.parent.exists()


@pytest.mark.parametrize("how", [signal.SIGTERM, None])
def test_the_folder_of_a_live_page_goes_with_the_process(how: signal.Signals | None, tmp_path: Path) -> None:
    code = (
        "import sys, time; from rddlib import files; one, two = files.vanishing_folder(), files.vanishing_folder(); "
        "open(one + '/a', 'w').close(); print(one, flush=True); sys.stdin.readline()"
    )
    dead = subprocess.Popen(["true"])
    dead.wait()
    ours = tmp_path / f"rddlib-live-{os.getpid()}-old"  # of a process that still runs
    for path in (left := tmp_path / f"rddlib-live-{dead.pid}-old", ours, notes := tmp_path / "rddlib-paper-notes"):
        path.mkdir()
        os.utime(path, (0, 0))
    (young := tmp_path / f"rddlib-live-{dead.pid}-young").mkdir()
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(tmp_path)}
    ) as process:
        assert process.stdout is not None and Path(process.stdout.readline().strip()).is_dir()
        assert not left.exists() and len(list(tmp_path.iterdir())) == 5
        if how is not None:
            process.send_signal(how)
        process.communicate("\n", timeout=60)
    assert process.returncode == (0 if how is None else -how)
    assert set(tmp_path.iterdir()) == {ours, notes, young}


# --- what records and metrics say -------------------------------------------------------------------------


def test_records_of_glad_carry_the_hash_of_the_generator(tmp_path: Path) -> None:
    store, e = Store(tmp_path), tiny(method="glad", prior_layer=1, factor=1, outer_steps=1, inner_steps=1)
    record = run(e, store)
    assert re.fullmatch("[0-9a-f]{64}", record.prior_sha256)
    assert synthetic.read(store.distilled(e.set_key)).prior_sha256 == record.prior_sha256
    assert synthetic.about(store.distilled(e.set_key))["prior_sha256"] == record.prior_sha256
    again = run(dataclasses.replace(e, eval_steps=e.eval_steps + 1), store)
    assert again.prior_sha256 == record.prior_sha256 == store.find(e.key).prior_sha256  # type: ignore[union-attr]
    assert run(E, store).prior_sha256 == "" and "prior_sha256" not in json.loads(RECORD.to_json())


def test_a_class_without_test_images_has_no_accuracy() -> None:
    whole = dataset.load("digits", train_limit=50, test_limit=60)
    some = whole.test_labels != 3
    data = dataclasses.replace(whole, test_images=whole.test_images[some], test_labels=whole.test_labels[some])
    bench = TestBench.of(data, k=2, shifts=False)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    scored = bench.score(net.eval(), data)
    by_class = scored["class_accuracy"]
    assert by_class[3] is None and scored["class_min"] == min(by_class[:3] + by_class[4:])
    metrics = {name: [value] for name, value in scored.items()} | bench.facts(data)
    assert 0 <= nulls(metrics)["class_min"].mean <= 100
    assert json.loads(json.dumps(scored))["class_accuracy"][3] is None


# --- the repository ---------------------------------------------------------------------------------------


def test_actions_are_pinned_by_commit() -> None:
    used = [
        line
        for path in sorted((ROOT / ".github" / "workflows").glob("*.yml"))
        for line in path.read_text().splitlines()
        if re.search(r"\buses:", line)
    ]
    assert len(used) >= 5
    assert all(re.search(r"uses: [\w.-]+/[\w.-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line) for line in used)
