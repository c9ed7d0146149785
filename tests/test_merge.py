"""Records and sets of another store: merging twice is merging once, ours is kept, and nothing hostile comes in."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, unmade
from hypothesis import given, settings
from hypothesis import strategies as st

from rddlib import cli
from rddlib.base import write_atomic
from rddlib.distillation import synthetic
from rddlib.distillation.synthetic import SyntheticSet
from rddlib.experiments import merge as merging
from rddlib.experiments import validate
from rddlib.experiments.experiment import Experiment
from rddlib.experiments.grid import Ledger
from rddlib.experiments.merge import merge
from rddlib.experiments.records import Record, Store, StoreError

BASE = Experiment.preset("smoke", ipc=2, factor=1)
OTHER_JUDGE = dataclasses.replace(BASE, eval_lr=0.02)  # another evaluation of the same set
RUN, SET = f"runs/toys/{BASE.key}.json", f"distilled/{BASE.set_key}.npz"


def record(experiment: Experiment = BASE, **changes: Any) -> Record:
    known = {"history": [{"distance": 1.0}] if experiment.set_key else [], "seconds": {"distill": 1.0, "evaluate": 2.0},
             "versions": {"torch": "2"}, "created": "2026-01-01", "set_key": experiment.set_key}  # fmt: skip
    return unmade(experiment, {"accuracy": [50.0, 51.5]}, **known | changes)


def add(store: Store, found: Record, level: float = 0.5, group: str = "toys") -> Record:
    """Keep a record and, where it distils, a set of one grey level."""
    store.add(found, group)
    if found.set_key:
        ipc = found.experiment["ipc"]
        images = torch.full((10 * ipc, 1, 8, 8), level)
        about = {"key": found.set_key, "history": json.dumps(found.history), "seconds": '{"wall": 1.0, "cpu": 1.0}'}
        synthetic.save(store.distilled(found.set_key), SyntheticSet(images, ipc, 1), **about)
    return found


def full(root: Path) -> Store:
    """Three records, two of which share a set, in two groups."""
    store = Store(root)
    add(store, record())
    add(store, record(OTHER_JUDGE), group="others")
    add(store, record(dataclasses.replace(BASE, method="random")))
    return store


def files(root: Path) -> dict[str, bytes]:
    kept = (path for path in sorted(root.rglob("*")) if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(root)): path.read_bytes() for path in kept}


# --- there and back ---------------------------------------------------------------------------------------


def test_what_is_copied_comes_in_and_merging_again_changes_nothing(tmp_path: Path) -> None:
    source, target = full(tmp_path / "copy"), Store(tmp_path / "target")
    merged = merge(source.root, target)
    assert len(merged.added) == 3 and (merged.same, merged.kept_out, merged.status) == ([], {}, 0)
    assert files(target.root) == files(source.root) and len(files(target.root)) == 4
    before = {path: path.stat().st_mtime_ns for path in target.root.rglob("*.*") if path.suffix in (".json", ".npz")}
    again = merge(source.root, target)
    assert len(again.same) == 3 and again.added == [] and again.status == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_other_files_of_the_folder_are_left_there(tmp_path: Path) -> None:
    source = full(tmp_path / "copy")
    (source.root / "work").mkdir(exist_ok=True)
    for name in ("work/state.pt", "claims.csv", "runs/notes.txt", f"distilled/{'0' * 16}.npz", "runs/toys/.DS_Store"):
        (source.root / name).write_bytes(b"anything")
    assert len(merge(source.root, Store(tmp_path / "target")).added) == 3
    assert len(files(tmp_path / "target")) == 4


def test_the_records_of_the_book_pass_every_check(tmp_path: Path) -> None:
    """With sets named by the record, as they once were; their bytes survive the way."""
    source = ROOT / "data"
    merged = merge(source, Store(tmp_path))
    assert merged.status == 0 and len(merged.added) > 300
    here = files(tmp_path)
    assert all((source / name).read_bytes() == raw for name, raw in here.items())
    assert sum(name.startswith("distilled") for name in here) > 80


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = full(tmp_path / "copy"), str(tmp_path / "target")
    assert cli.main(["merge", str(source.root), "--store", target]) == 0
    assert "3 added, 0 already here, 0 kept out" in capsys.readouterr().out
    Store(target).add(record(created="2026-02-02"), "toys")
    assert cli.main(["merge", str(source.root), "--store", target]) == 2
    said, errors = capsys.readouterr()
    assert "0 added, 2 already here, 1 kept out" in said and BASE.key in errors


# --- what is here is kept ---------------------------------------------------------------------------------


def test_ours_is_kept_where_both_have_a_key(tmp_path: Path) -> None:
    source, target = full(tmp_path / "copy"), Store(tmp_path / "target")
    ours = target.add(record(created="2026-02-02"), "mine")
    merged = merge(source.root, target)
    assert list(merged.kept_out) == [BASE.key] and merged.status == 2 and len(merged.added) == 2
    assert f"runs/mine/{BASE.key}.json" in merged.kept_out[BASE.key] and "2026-02-02" in ours.read_text()


def test_a_set_that_differs_keeps_its_records_out(tmp_path: Path) -> None:
    source, target = full(tmp_path / "copy"), Store(tmp_path / "target")
    add(target, record(dataclasses.replace(BASE, eval_lr=0.5)), level=0.25)  # it judged another set of that name
    before = target.distilled(BASE.set_key).read_bytes()
    merged = merge(source.root, target)
    assert set(merged.kept_out) == {BASE.key, OTHER_JUDGE.key} and len(merged.added) == 1
    assert target.find(BASE.key) is None and target.distilled(BASE.set_key).read_bytes() == before


def test_a_set_in_other_bytes_is_the_same_set(tmp_path: Path) -> None:
    source, target = full(tmp_path / "copy"), Store(tmp_path / "target")
    merge(source.root, target)
    path = target.distilled(BASE.set_key)
    with np.load(path) as arrays:
        np.savez(path, **{name: arrays[name] for name in arrays.files})  # not compressed, as another zlib would write
    assert merge(source.root, target).status == 0


def test_a_record_without_its_set_must_fit_the_set_that_is_here(tmp_path: Path) -> None:
    source, target = Store(tmp_path / "copy"), Store(tmp_path / "target")
    source.add(record(history=[{"distance": 2.0}]), "toys")
    add(target, record(OTHER_JUDGE))
    assert "another distilled/" in merge(source.root, target).kept_out[BASE.key]
    source.add(record(), "toys")
    assert merge(source.root, target).added == [BASE.key]
    assert merge(source.root, Store(tmp_path / "empty")).status == 0


@pytest.mark.parametrize("which", ["key", "set_key"])
def test_what_is_being_run_here_is_left_alone(tmp_path: Path, which: str) -> None:
    source, target = full(tmp_path / "copy"), Store(tmp_path / "target")
    with target.lock(getattr(BASE, which)):
        merged = merge(source.root, target)
    assert "being run" in merged.kept_out[BASE.key] and target.find(BASE.key) is None
    assert merge(source.root, target).status == 0


def test_a_full_disk_leaves_no_record_without_its_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, write = full(tmp_path / "copy"), merging.write_atomic
    for allowed in range(4):
        left, target = iter(range(allowed)), Store(tmp_path / str(allowed))

        def limited(path: Path, content: bytes, left: Any = left) -> Path:
            if next(left, None) is None:
                raise OSError(28, "No space left on device")
            return write(path, content)

        monkeypatch.setattr(merging, "write_atomic", limited)
        with pytest.raises(StoreError, match="No space left"):
            merge(source.root, target)
        for found in target.records():
            assert not found.set_key or target.distilled(found.set_key).is_file()
        monkeypatch.setattr(merging, "write_atomic", write)
        merge(source.root, target)
        assert files(target.root) == files(source.root)


# --- what is not let in -----------------------------------------------------------------------------------


def refused(source: Path, folder: Path, words: str) -> None:
    """Merging raises, and leaves a store with something in it as it was, and nothing beside it."""
    target = add_seed_77(folder / "refusing" / "store")
    before = files(folder / "refusing")
    with pytest.raises(StoreError, match=words):
        merge(source, target)
    assert files(folder / "refusing") == before


def add_seed_77(root: Path) -> Store:
    store = Store(root)
    add(store, record(dataclasses.replace(BASE, seed=77)))
    return store


def npz(**changes: object) -> bytes:
    about = {"images": np.zeros((20, 1, 8, 8), np.uint8), "labels": np.arange(10).repeat(2), "ipc": 2, "factor": 1,
             "key": BASE.set_key, "history": '[{"distance": 1.0}]'}  # fmt: skip
    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.asarray(value) for name, value in (about | changes).items()})
    return buffer.getvalue()


def test_the_set_below_is_let_in_unchanged(tmp_path: Path) -> None:
    source = full(tmp_path / "copy")
    (source.root / SET).write_bytes(npz())
    assert len(merge(source.root, Store(tmp_path / "target")).added) == 3


def changed(name: str, value: object) -> dict[str, bytes]:
    """The file of the base record with one field changed, as from before there were checksums."""
    content = json.loads(record().to_json()) | {name: value}
    del content["checksum"]
    return {RUN: json.dumps(content).encode()}


def with_setting(name: str, value: object) -> dict[str, bytes]:
    return changed("experiment", dataclasses.asdict(BASE) | {name: value})


def without_setting(name: str) -> dict[str, bytes]:
    """A setting that has its default may be absent and the key is the same; what names a run may not."""
    return changed("experiment", {n: v for n, v in dataclasses.asdict(BASE).items() if n != name})


@pytest.mark.parametrize(
    ("files_there", "words"),
    [
        (changed("key", "f" * 16), "holds key"),
        (with_setting("seed", 5), "settings have key"),
        (with_setting("alpha", 7.0), "alpha = 7.0"),
        (with_setting("surprise", 1), "surprise"),
        (without_setting("method"), "settings do not say method"),
        (with_setting("ipc", [2]), "ipc"),
        (with_setting("dataset", "<script>"), "experiment.dataset holds"),
        (changed("surprise", 1), "surprise"),
        (changed("experiment", []), "experiment holds"),
        (changed("metrics", {}), "accuracies"),
        (changed("metrics", {"accuracy": [101.0]}), "accuracies"),
        (changed("metrics", {"accuracy": [10**400]}), "damaged record"),
        (changed("metrics", {"accuracy": [float("nan")]}), "metrics.accuracy"),
        (changed("metrics", {"accuracy": [True]}), "metrics.accuracy"),
        (changed("metrics", {"accuracy": [50.0], "noise": [float("inf")]}), "metrics.noise"),
        (changed("metrics", {"accuracy": [50.0], "noise": {}}), "metrics.noise"),
        (changed("metrics", {"accuracy": [50.0], "<b>": [1.0]}), "metrics.<b>"),
        (changed("metrics", {"accuracy": [50.0], "sha256": "[x](javascript:1)"}), "metrics.sha256"),
        (changed("seconds", {"distill": -1}), "seconds.distill"),
        (changed("peak_memory_mb", "much"), "peak_memory_mb"),
        (changed("results", True), "results"),
        (changed("device", "cpu\n"), "device"),
        (changed("commit", "x" * 201), "commit"),
        (changed("versions", {"torch": 2}), "versions"),
        (changed("history", [1]), "history"),
        (changed("history", [{"distance": float("nan")}]), "history"),
        (changed("history", [{"<b>": 1.0}]), "history"),
        (changed("created", "&lt;"), "created"),
        (changed("data_sha256", "a|b"), "data_sha256"),
        (changed("set_key", "0" * 16), "names the set"),
        ({RUN: b"[" * 100_000}, "damaged record"),
        ({RUN: b"\xff\xfe"}, "damaged record"),
        ({"runs/toys/short.json": record().to_json().encode()}, "short.json"),
        ({f"runs/.hidden/{BASE.key}.json": record().to_json().encode()}, "hidden|two groups"),
        ({f"runs/again/{BASE.key}.json": record().to_json().encode()}, "two groups"),
        ({SET: b"no zip"}, "is not the distilled set"),
        ({SET: npz(images=np.zeros((20, 1, 8, 8)))}, "images float64"),
        ({SET: npz(images=np.zeros((21, 1, 8, 8), np.uint8))}, "images a class"),
        ({SET: npz(labels=np.zeros(20, np.int64))}, "labels"),
        ({SET: npz(ipc=3)}, "ipc"),
        ({SET: npz(factor=2)}, "factor"),
        ({SET: npz(targets=np.full((20, 10), np.nan))}, "learned labels"),
        ({SET: npz(key="0" * 16)}, "set of"),
        ({SET: npz(history="[]")}, "history"),
        ({SET: npz(seconds="{}")}, "is not the distilled set"),
        ({SET: npz(images=np.array([{}], object))}, "is not the distilled set"),
        ({SET: npz(more=np.array([{}], object))}, "is not the distilled set"),
    ],
)
def test_files_that_lie_are_refused(tmp_path: Path, files_there: dict[str, bytes], words: str) -> None:
    source = full(tmp_path / "copy").root
    for name, raw in files_there.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(raw)
    refused(source, tmp_path, words)


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    """An array of objects whose unpickling would write a file."""

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path / 'owned'}",)

    source = full(tmp_path / "copy").root
    (source / SET).write_bytes(npz(images=np.array([Evil()], object)))
    refused(source, tmp_path, "is not the distilled set")
    assert not (tmp_path / "owned").exists()


def test_a_set_that_would_unpack_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, buffer = full(tmp_path / "copy").root, io.BytesIO()
    np.savez_compressed(buffer, images=np.zeros((20, 1, 512, 512), np.uint8), labels=np.arange(10).repeat(2), ipc=2)
    (source / SET).write_bytes(buffer.getvalue())
    monkeypatch.setitem(validate.LARGEST, ".npz", 2**20)
    refused(source, tmp_path, "too large when unpacked")
    monkeypatch.setitem(validate.LARGEST, ".npz", 2**10)
    refused(source, tmp_path, "is too large")


def link_record(source: Path) -> None:
    shutil.move(source / RUN, source / "elsewhere.json")
    (source / RUN).symlink_to(source / "elsewhere.json")


def link_set(source: Path) -> None:
    (source / SET).unlink()
    (source / SET).symlink_to("/dev/zero")


def link_group(source: Path) -> None:
    (source / "runs" / "toys").rename(source / "toys")
    (source / "runs" / "toys").symlink_to(source / "toys")


def pipe_for_record(source: Path) -> None:
    (source / RUN).unlink()
    os.mkfifo(source / RUN)


def pipe_for_set(source: Path) -> None:
    (source / SET).unlink()
    os.mkfifo(source / SET)


def folder_for_record(source: Path) -> None:
    (source / RUN).unlink()
    (source / RUN).mkdir()


@pytest.mark.parametrize(
    "change", [link_record, link_set, link_group, pipe_for_record, pipe_for_set, folder_for_record]
)
@pytest.mark.timeout(60)  # a pipe that is opened in the plain way is waited for without end
def test_links_pipes_and_folders_are_refused(tmp_path: Path, change: Callable[[Path], None]) -> None:
    source = full(tmp_path / "copy").root
    change(source)
    refused(source, tmp_path, "plain file|is a link")


def test_absent_and_empty_folders_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "absent", tmp_path, "absent: there is no such folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", tmp_path, "holds no records")
    (tmp_path / "file.zip").write_bytes(b"PK")
    refused(tmp_path / "file.zip", tmp_path, "there is no such folder")


@settings(deadline=None, derandomize=True, max_examples=150)
@given(name=st.sampled_from([RUN, SET]), flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True),
       st.integers(1, 255)), min_size=1, max_size=4))  # fmt: skip
def test_flipped_bytes_are_all_or_nothing(
    tmp_path_factory: pytest.TempPathFactory, name: str, flips: list[tuple[float, int]]
) -> None:
    folder = tmp_path_factory.mktemp("flipped")
    source, target = full(folder / "copy"), Store(folder / "target")
    raw = bytearray((source.root / name).read_bytes())
    for place, mask in flips:
        raw[int(place * len(raw))] ^= mask
    (source.root / name).write_bytes(raw)
    try:
        merge(source.root, target)
    except StoreError:
        assert files(target.root) == {}
    else:
        assert files(target.root) == files(source.root)
    shutil.rmtree(folder)


# --- the same check for `list` and `status` ---------------------------------------------------------------


def test_list_and_status_name_what_does_not_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = full(tmp_path / "store")
    (store.root / RUN).write_bytes(changed("metrics", {"accuracy": [float("nan")]})[RUN])
    assert cli.main(["list", "--store", str(store.root)]) == 2
    said, errors = capsys.readouterr()
    assert len(said.splitlines()) == 1 + 2 and BASE.key not in said
    assert RUN in errors and "metrics.accuracy" in errors
    ledger = Ledger(store)
    assert ledger.state(BASE.key) == "failed" and "metrics.accuracy" in ledger.error(BASE.key)
    assert ledger.state(OTHER_JUDGE.key) == "done"


def test_a_lock_that_is_not_waited_for(tmp_path: Path) -> None:
    store, answers = Store(tmp_path), []
    with store.lock("k") as free:
        assert free

        def ask() -> None:
            with store.lock("k", wait=False) as answer:
                answers.append(answer)

        other = threading.Thread(target=ask)
        other.start()
        other.join()
    with store.lock("k", wait=False) as free:
        answers.append(free)
    assert answers == [False, True]


def test_a_damaged_record_that_is_here_is_left_and_the_others_come_in(tmp_path: Path) -> None:
    source, here = full(tmp_path / "from"), Store(tmp_path / "to")
    damaged = source.files()[0]
    path = write_atomic(here.root / "runs" / damaged.parent.name / damaged.name, b"{}")
    merged = merge(source.root, here)
    assert "a damaged record is here" in merged.kept_out[damaged.stem] and path.read_bytes() == b"{}"
    assert len(here.files()) == len(source.files())
