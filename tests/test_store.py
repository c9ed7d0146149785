"""Records: whole or not at all, found by key, refused when damaged, and nothing written outside the store."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rddlib import base
from rddlib.base import SettingError
from rddlib.experiments import records
from rddlib.experiments.experiment import Experiment
from rddlib.experiments.records import Record, Store, StoreError

SETTINGS = Experiment.preset("smoke", method="random")
RECORD = Record(
    key=SETTINGS.key,
    experiment=dataclasses.asdict(SETTINGS),
    metrics={"accuracy": [50.0]},
    history=[],
    seconds={"distill": 1.0},
    cpu_seconds={"distill": 1.0},
    peak_memory_mb=1.0,
    device="cpu",
    versions={"torch": "2"},
    commit="",
    data_sha256="",
    created="2026-01-01",
)


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    store = Store(tmp_path)
    file = store.add(RECORD, "toys")
    assert file == tmp_path / "runs" / "toys" / f"{RECORD.key}.json"
    assert store.find(RECORD.key) == store.match(RECORD.key[:4]) == RECORD
    assert store.records() == store.records("toys") == [RECORD]
    assert store.find("f" * 16) is None and store.records("other") == []
    assert file.read_text() == RECORD.to_json() and json.loads(file.read_text())["metrics"] == {"accuracy": [50.0]}


def test_a_start_of_a_key_must_fit_one_record(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add(RECORD, "toys")
    alike = dataclasses.replace(RECORD, key=RECORD.key[:5] + "f" * 11)
    base.write_atomic(tmp_path / "runs" / "toys" / f"{alike.key}.json", alike.to_json())
    for start, error in (
        (RECORD.key[:2], StoreError),
        ("x", StoreError),
        ("", SettingError),
        ("../x", SettingError),
        ("*", SettingError),
    ):
        with pytest.raises(error):
            store.match(start)


@pytest.mark.parametrize("group", ["..", "../out", "a/b", "", ".hidden", "a b"])
def test_no_group_leads_out_of_the_store(tmp_path: Path, group: str) -> None:
    with pytest.raises(SettingError, match="group"):
        Store(tmp_path / "store").add(RECORD, group)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base.write_atomic(tmp_path / "a.txt", "old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        base.write_atomic(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@contextmanager
def no_rights() -> Iterator[None]:
    """Root may write anywhere; for the check it takes the rights of an ordinary user."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_read_only_store_can_be_read_and_refuses_to_be_written(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.add(RECORD, "toys")
    above = [
        p for p in tmp_path.parents if p.is_relative_to(tempfile.gettempdir()) and p != Path(tempfile.gettempdir())
    ]
    own = [store.root, store.root / "runs", store.root / "runs" / "toys"]
    before = {p: p.stat().st_mode for p in (tmp_path, *above, *own)}
    for folder in above:  # pytest keeps its folders to their owner; the other user must get through them
        folder.chmod(0o755)
    for folder in (tmp_path, *own):
        folder.chmod(0o555)
    try:
        with no_rights():
            assert store.find(RECORD.key) == RECORD
            with pytest.raises(StoreError, match="--store"):
                store.check_writable()
    finally:
        for folder, mode in before.items():
            folder.chmod(mode)


def test_a_key_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    store, events = Store(tmp_path), []

    def hold(name: str) -> None:
        with store.lock("k"):
            events.append(f"{name} in")
            time.sleep(0.05)
            events.append(f"{name} out")

    threads = [threading.Thread(target=hold, args=(n,)) for n in "abc"]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert all(events[i][0] == events[i + 1][0] for i in range(0, 6, 2)) and len(events) == 6


def test_a_killed_holder_lets_go(tmp_path: Path) -> None:
    code = (
        "import time; from rddlib.experiments.records import Store; "
        f"s = Store({str(tmp_path)!r}); c = s.lock('k'); c.__enter__(); "
        "print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        process.kill()
    with Store(tmp_path).lock("k"):
        pass


def test_a_record_that_could_not_be_read_again_is_not_kept(tmp_path: Path) -> None:
    store, broken = Store(tmp_path), dataclasses.replace(RECORD, metrics={"accuracy": [float("nan")]})
    with pytest.raises(StoreError, match="damaged record"):
        store.add(broken, "toys")
    assert store.files() == []


def test_the_stores_own_record_stands_for_that_of_the_book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book, own = Store(tmp_path / "book"), Store(tmp_path / "own")
    book.add(RECORD, "toys")
    own.add(dataclasses.replace(RECORD, created="2020-01-01"), "toys")
    monkeypatch.setattr(records, "resources", lambda: book.root)
    monkeypatch.setenv("RDD_STORE", str(own.root))
    assert [record.created for record in records.known_records()] == ["2020-01-01"]
