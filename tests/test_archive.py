"""Archives: the same results give the same bytes, merging twice is merging once, and nothing hostile comes in."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import stat
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import unmade
from hypothesis import given, settings
from hypothesis import strategies as st

from rddlib import cli
from rddlib.base import generator
from rddlib.distillation import synthetic
from rddlib.distillation.synthetic import SyntheticSet
from rddlib.experiments import archive
from rddlib.experiments.archive import merge, pack
from rddlib.experiments.experiment import Experiment
from rddlib.experiments.records import Record, Store, StoreError
from rddlib.experiments.validate import LARGEST, MANIFEST

BASE = Experiment.preset("smoke", ipc=2)


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
    add(store, record(dataclasses.replace(BASE, eval_lr=0.02)), group="others")
    add(store, record(dataclasses.replace(BASE, method="random")))
    return store


def files(root: Path) -> dict[str, bytes]:
    kept = (p for p in sorted(root.rglob("*")) if p.is_file() and p.suffix != ".lock")
    return {str(p.relative_to(root)): p.read_bytes() for p in kept}


@pytest.fixture(scope="module")
def packed() -> Iterator[tuple[Store, Path]]:
    with tempfile.TemporaryDirectory() as folder:
        store = full(Path(folder) / "store")
        pack(store, Path(folder) / "a.zip")
        yield store, Path(folder) / "a.zip"


# --- there and back ---------------------------------------------------------------------------------------


def test_what_is_packed_comes_back_and_merging_again_changes_nothing(
    packed: tuple[Store, Path], tmp_path: Path
) -> None:
    store, file = packed
    target = Store(tmp_path / "target")
    merged = merge(file, target)
    assert len(merged.added) == 3 and (merged.same, merged.clashes, merged.status) == ([], {}, 0)
    assert files(target.root) == files(store.root) and len(files(target.root)) == 4
    before = {p: p.stat().st_mtime_ns for p in target.root.rglob("*.*") if p.suffix in (".json", ".npz")}
    again = merge(file, target)
    assert len(again.same) == 3 and again.added == [] and again.status == 0
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_the_same_results_give_the_same_bytes(packed: tuple[Store, Path], tmp_path: Path) -> None:
    store, file = packed
    names = pack(store, tmp_path / "b.zip")
    assert (tmp_path / "b.zip").read_bytes() == file.read_bytes()
    with zipfile.ZipFile(file) as found:
        assert found.namelist() == [MANIFEST, *names] and found.testzip() is None
        listed = json.loads(found.read(MANIFEST))["files"]
        assert {n: hashlib.sha256(found.read(n)).hexdigest() for n in names} == {
            n: e["sha256"] for n, e in listed.items()
        }
        assert all(i.date_time == (1980, 1, 1, 0, 0, 0) and i.compress_type == 0 for i in found.infolist())


def test_a_part_of_a_store_can_be_packed(packed: tuple[Store, Path], tmp_path: Path) -> None:
    store, _ = packed
    assert [n.split("/")[:2] for n in pack(store, tmp_path / "b", groups=["others"])] == [
        ["distilled", f"{BASE.set_key}.npz"], ["runs", "others"]]  # fmt: skip
    assert len(pack(store, tmp_path / "b", keys=[BASE.key])) == 2
    with pytest.raises(StoreError, match="nothing was packed"):
        pack(store, tmp_path / "c", groups=["absent"])
    assert not (tmp_path / "c").exists()


def test_a_real_store_can_be_packed_and_merged(tmp_path: Path) -> None:
    """Records of the book, with sets named by the record as they once were, survive the way."""
    own = Store(Path(__file__).parent.parent / "data")
    if not list(own.root.glob("runs/*/*.json")):
        pytest.skip("data/runs holds no records")
    names = pack(own, tmp_path / "a.zip")
    assert merge(tmp_path / "a.zip", Store(tmp_path / "s")).status == 0
    assert all((tmp_path / "s" / n).read_bytes() == (own.root / n).read_bytes() for n in names)


def test_the_command_line(packed: tuple[Store, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, _ = packed
    out, target = str(tmp_path / "x.zip"), str(tmp_path / "target")
    assert cli.main(["pack", "--out", out, "--store", str(store.root)]) == 0
    assert "3 records, 1 distilled sets" in capsys.readouterr().out
    assert cli.main(["merge", out, "--store", target]) == 0
    assert "3 added, 0 already here, 0 kept out" in capsys.readouterr().out
    Store(target).add(record(created="2026-02-02"), "toys")
    assert cli.main(["merge", out, "--store", target]) == 2
    said, errors = capsys.readouterr()
    assert "0 added, 2 already here, 1 kept out" in said and BASE.key in errors and "--theirs" in errors
    assert cli.main(["merge", out, "--store", target, "--theirs"]) == 0 and "1 added" in capsys.readouterr().out
    with pytest.raises(StoreError, match="nothing was packed"):
        archive.pack(store, tmp_path / "y.zip", keys=[])
    assert cli.main(["pack", "--grid", "table5", "--out", out, "--store", str(store.root)]) == 2


# --- clashes ----------------------------------------------------------------------------------------------


def test_ours_is_kept_where_both_have_a_key(packed: tuple[Store, Path], tmp_path: Path) -> None:
    store, file = packed
    target = Store(tmp_path)
    ours = target.add(record(created="2026-02-02"), "mine")
    merged = merge(file, target)
    assert list(merged.clashes) == [BASE.key] and merged.status == 2 and len(merged.added) == 2
    assert f"runs/mine/{BASE.key}.json" in merged.clashes[BASE.key] and "2026-02-02" in ours.read_text()
    assert merge(file, target, theirs=True).added == [BASE.key]
    assert target.find(BASE.key) == store.find(BASE.key)
    assert len(list(target.root.glob(f"runs/*/{BASE.key}.json"))) == 1  # in our folder, and only there


def test_a_set_that_differs_keeps_its_records_out(packed: tuple[Store, Path], tmp_path: Path) -> None:
    store, file = packed
    target = Store(tmp_path)
    add(target, record(dataclasses.replace(BASE, eval_lr=0.5)), level=0.25)  # it judged another set of that name
    before = target.distilled(BASE.set_key).read_bytes()
    merged = merge(file, target)
    assert len(merged.clashes) == 2 and len(merged.added) == 1 and target.find(BASE.key) is None
    assert target.distilled(BASE.set_key).read_bytes() == before
    kept = files(target.root)
    with pytest.raises(StoreError, match=dataclasses.replace(BASE, eval_lr=0.5).key):
        merge(file, target, theirs=True)  # ours would be left without its set
    assert files(target.root) == kept
    next(target.root.glob(f"runs/*/{dataclasses.replace(BASE, eval_lr=0.5).key}.json")).unlink()
    assert len(merge(file, target, theirs=True).added) == 2
    assert target.distilled(BASE.set_key).read_bytes() == store.distilled(BASE.set_key).read_bytes()


def test_a_set_in_other_bytes_is_the_same_set(packed: tuple[Store, Path], tmp_path: Path) -> None:
    _, file = packed
    target = Store(tmp_path)
    merge(file, target)
    path = target.distilled(BASE.set_key)
    with np.load(path) as arrays:
        np.savez(path, **{name: arrays[name] for name in arrays.files})  # not compressed, as another zlib would write
    assert merge(file, target).status == 0


def test_a_record_without_its_set_is_no_match_for_a_set_that_is_here(tmp_path: Path) -> None:
    bare, target = Store(tmp_path / "bare"), Store(tmp_path / "target")
    bare.add(record(), "toys")
    pack(bare, tmp_path / "a.zip")
    add(target, record(dataclasses.replace(BASE, eval_lr=0.5)))
    for theirs in (False, True):
        assert "another distilled/" in merge(tmp_path / "a.zip", target, theirs).clashes[BASE.key]
    assert merge(tmp_path / "a.zip", Store(tmp_path / "empty")).status == 0


@pytest.mark.parametrize("which", ["key", "set_key"])
def test_what_is_being_run_here_is_left_alone(packed: tuple[Store, Path], tmp_path: Path, which: str) -> None:
    _, file = packed
    target = Store(tmp_path)
    with target.lock(getattr(BASE, which)):
        merged = merge(file, target)
    assert "being run" in merged.clashes[BASE.key] and target.find(BASE.key) is None
    assert BASE.key in merge(file, target).added


def test_an_interrupted_merge_leaves_whole_files_and_can_be_repeated(
    packed: tuple[Store, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, file = packed
    write, target = archive.write_atomic, Store(tmp_path / "target")
    for allowed in range(6):
        left = iter(range(allowed))

        def limited(path: Path, content: bytes, left: Iterator[int] = left) -> Path:
            if next(left, None) is None:
                raise OSError(28, "No space left on device")
            return write(path, content)

        monkeypatch.setattr(archive, "write_atomic", limited)
        if allowed < 5:
            target = Store(tmp_path / str(allowed))
            with pytest.raises(StoreError, match="No space left"):
                merge(file, target)
        here = files(target.root)
        assert all(files(store.root)[name] == raw for name, raw in here.items())
        for found in target.records():  # wherever it stopped, a record that is here has its set
            assert not found.set_key or target.distilled(found.set_key).is_file()
    monkeypatch.setattr(archive, "write_atomic", write)
    merge(file, target)
    assert files(target.root) == files(store.root)


# --- what is not let in -----------------------------------------------------------------------------------


Change = Callable[[dict[str, bytes]], dict[str, bytes]]


def rebuilt(file: Path, out: Path, change: Change) -> Path:
    """The archive with other members and a manifest that agrees with them: what a hostile packer would write."""
    with zipfile.ZipFile(file) as old:
        out.write_bytes(archive._zipped(change({n: old.read(n) for n in old.namelist() if n != MANIFEST})))
    return out


def refused(file: Path, folder: Path, words: str = "") -> None:
    """Merging raises, names the file or the member, and leaves a store with something in it as it was."""
    target = Store(folder / "refusing" / "store")
    if not target.root.exists():
        add(target, record(dataclasses.replace(BASE, seed=77)))
    before = files(folder / "refusing")
    with pytest.raises(StoreError, match=words):
        merge(file, target)
    assert files(folder / "refusing") == before


HOSTILE = [
    "../evil.json", "/etc/evil", "runs/../../evil.json", "runs/a/../../../x.json", "runs\\a\\b.json", "C:/evil",
    "runs/toys/short.json", "runs/toys/0123456789abcdeF.json", "runs/.hidden/0123456789abcdef.json",
    "runs/a/b/0123456789abcdef.json", "work/0123456789abcdef/state.pt", "distilled/../x.npz", "distilled/", "x",
    "distilled/0123456789abcdef.npz/", "runs/to\u00e9s/0123456789abcdef.json", "groups/x.npz",
    "runs//0123456789abcdef.json",
    "runs/a\n/0123456789abcdef.json", "runs/" + "a" * 200 + "/0123456789abcdef.json", "MANIFEST.json",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused(packed: tuple[Store, Path], tmp_path: Path, name: str) -> None:
    raw = record().to_json().encode()
    refused(
        rebuilt(packed[1], tmp_path / "x.zip", lambda m: m | {name: raw}), tmp_path, "is not a name|damaged|cannot be"
    )


def changed(field: str, value: object) -> Change:
    """A record of the archive with one field of it changed."""

    def change(members: dict[str, bytes]) -> dict[str, bytes]:
        name = f"runs/toys/{BASE.key}.json"
        return members | {name: json.dumps(json.loads(members[name]) | {field: value}).encode()}

    return change


def with_setting(name: str, value: object) -> Change:
    return changed("experiment", dataclasses.asdict(BASE) | {name: value})


RUN, SET = f"runs/toys/{BASE.key}.json", f"distilled/{BASE.set_key}.npz"


def npz(**changes: object) -> bytes:
    about = {"images": np.zeros((20, 1, 8, 8), np.uint8), "ipc": 2, "factor": 1, "key": BASE.set_key}
    buffer = io.BytesIO()
    np.savez(buffer, **{k: np.asarray(v) for k, v in (about | changes).items()})
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (changed("key", "f" * 16), "holds key"),
        (with_setting("seed", 5), "settings have key"),
        (with_setting("alpha", 7.0), "alpha = 7.0"),
        (with_setting("surprise", 1), "surprise"),
        (with_setting("ipc", [2]), "ipc"),
        (changed("surprise", 1), "surprise"),
        (changed("experiment", []), "record"),
        (changed("metrics", {}), "accuracies"),
        (changed("metrics", {"accuracy": [101.0]}), "accuracies"),
        (changed("metrics", {"accuracy": [10**400]}), "accuracies"),
        (changed("metrics", {"accuracy": [float("nan")]}), "accuracies"),
        (changed("seconds", {"distill": -1}), "cost"),
        (changed("peak_memory_mb", "much"), "peak_memory_mb"),
        (changed("device", "<script>\n"), "device"),
        (changed("commit", "x" * 201), "commit"),
        (changed("history", [1]), "history"),
        (changed("set_key", "0" * 16), "names the set"),
        (lambda m: m | {RUN: b"[" * 100_000}, "record"),
        (lambda m: m | {RUN: b"\xff\xfe"}, "record"),
        (lambda m: {k: v for k, v in m.items() if k.startswith("distilled")}, "set of no record"),
        (lambda m: m | {"distilled/" + "0" * 16 + ".npz": m[SET]}, "set of no record"),
        (lambda m: m | {"runs/again/" + BASE.key + ".json": m[RUN]}, "two groups"),
        (lambda m: m | {SET: b"no zip"}, "is not the distilled set"),
        (lambda m: m | {SET: npz(images=np.zeros((20, 1, 8, 8)))}, "is not the distilled set"),
        (lambda m: m | {SET: npz(images=np.zeros((21, 1, 8, 8), np.uint8))}, "images a class"),
        (lambda m: m | {SET: npz(ipc=3)}, "ipc"),
        (lambda m: m | {SET: npz(key="0" * 16)}, "is the set of"),
        (lambda m: m | {SET: npz(history="[]")}, "history"),
        (lambda m: m | {SET: npz(seconds="{}")}, "cost"),
        (lambda m: m | {SET: npz(images=np.array([{}], object))}, "is not the distilled set"),
    ],
)
def test_members_that_lie_are_refused(packed: tuple[Store, Path], tmp_path: Path, change: Change, words: str) -> None:
    refused(rebuilt(packed[1], tmp_path / "x.zip", change), tmp_path, words)


def test_a_set_that_would_unpack_to_too_much_is_refused(
    packed: tuple[Store, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LARGEST, "npz", 2**20)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=np.zeros((20, 1, 512, 512), np.uint8), ipc=2, factor=1)
    assert len(buffer.getvalue()) < 2**15
    hostile = rebuilt(packed[1], tmp_path / "x.zip", lambda m: m | {SET: buffer.getvalue()})
    refused(hostile, tmp_path, "too large when unpacked")
    monkeypatch.setitem(LARGEST, "npz", 2**12)
    refused(hostile, tmp_path, f"{SET} is too large")


def entries(file: Path, out: Path, tell: Callable[[zipfile.ZipInfo], None], manifest: bytes | None = None) -> Path:
    """The archive with other entries: same members, but what the directory says of them is changed by `tell`."""
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            raw = old.read(info)
            tell(info)
            new.writestr(info, manifest if manifest is not None and info.filename == MANIFEST else raw)
    return out


def link(info: zipfile.ZipInfo) -> None:
    info.external_attr = (stat.S_IFLNK | 0o777) << 16


def squeezed(info: zipfile.ZipInfo) -> None:
    info.compress_type = zipfile.ZIP_DEFLATED


@pytest.mark.parametrize(
    ("tell", "manifest", "words"),
    [
        (link, None, "is a link"),
        (squeezed, None, "is compressed"),
        (lambda info: None, b"{}", "missing or damaged"),
        (lambda info: None, b"[]", "missing or damaged"),
        (lambda info: None, b'{"format": "rddlib archive 2", "files": {}}', "format 'rddlib archive 2'"),
        (lambda info: None, b'{"format": "rddlib archive 1", "files": {}}', "do not name the same"),
        (lambda info: None, b'{"files": {"x": {"sha256": 3}}}', "format None"),
        (lambda info: None, b"[" * 100_000, "missing or damaged"),
    ],
)
def test_entries_and_manifests_that_lie_are_refused(
    packed: tuple[Store, Path], tmp_path: Path, tell: Callable[[zipfile.ZipInfo], None], manifest: bytes, words: str
) -> None:
    refused(entries(packed[1], tmp_path / "x.zip", tell, manifest), tmp_path, words)


def test_a_changed_member_is_named(packed: tuple[Store, Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(packed[1]) as old, zipfile.ZipFile(tmp_path / "x.zip", "w") as new:
        for name in old.namelist():
            raw = old.read(name)
            new.writestr(name, raw.replace(b"51.5", b"91.5") if name == RUN else raw)
    refused(tmp_path / "x.zip", tmp_path, f"{RUN} does not have the SHA-256")


def test_members_that_overlap_or_occur_twice_are_refused(packed: tuple[Store, Path], tmp_path: Path) -> None:
    raw = packed[1].read_bytes()
    end = raw.rindex(b"PK\x05\x06")
    start = int.from_bytes(raw[end + 16 : end + 20], "little")
    directory = raw[start:end]
    double = bytearray(raw[:start] + directory * 2 + raw[end:])
    at = start + 2 * len(directory)
    count = 2 * int.from_bytes(raw[end + 10 : end + 12], "little")
    for offset in (8, 10):
        double[at + offset : at + offset + 2] = count.to_bytes(2, "little")
    double[at + 12 : at + 16] = (2 * len(directory)).to_bytes(4, "little")
    (tmp_path / "x.zip").write_bytes(double)
    refused(tmp_path / "x.zip", tmp_path, "occurs twice")


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + bytes(18), b"no archive at all", b"PK\x03\x04" + bytes(40)])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.zip").write_bytes(content)
    refused(tmp_path / "x.zip", tmp_path, "x.zip")


def test_absent_files_and_folders_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "absent.zip", tmp_path, "absent.zip: there is no such file")
    refused(tmp_path, tmp_path, "cannot be read as an archive")


# --- fuzz -------------------------------------------------------------------------------------------------


def merged_or_refused(raw: bytes, whole: dict[str, bytes]) -> None:
    """Whatever the bytes: all of the archive is in the store, or nothing; and nothing is beside the store."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "x.zip").write_bytes(raw)
        target = Store(Path(folder) / "in" / "store")
        try:
            merge(Path(folder) / "x.zip", target)
        except StoreError:
            assert files(target.root) == {}
        else:
            assert files(target.root) == whole
        assert set(os.listdir(folder)) <= {"x.zip", "in"} and set(os.listdir(Path(folder) / "in") if (
            Path(folder) / "in").exists() else []) <= {"store"}  # fmt: skip


@settings(deadline=None, derandomize=True, max_examples=150)
@given(flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4))
def test_flipped_bytes_are_all_or_nothing(packed: tuple[Store, Path], flips: list[tuple[float, int]]) -> None:
    raw = bytearray(packed[1].read_bytes())
    for place, mask in flips:
        raw[int(place * len(raw))] ^= mask
    merged_or_refused(bytes(raw), files(packed[0].root))


@settings(deadline=None, derandomize=True, max_examples=150)
@given(place=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
def test_a_flipped_byte_of_the_directory_is_all_or_nothing(packed: tuple[Store, Path], place: float, mask: int) -> None:
    raw = bytearray(packed[1].read_bytes())
    end = raw.rindex(b"PK\x05\x06")
    start = int.from_bytes(raw[end + 16 : end + 20], "little")
    raw[start + int(place * (len(raw) - start))] ^= mask
    merged_or_refused(bytes(raw), files(packed[0].root))


@settings(deadline=None, derandomize=True, max_examples=40)
@given(cut=st.floats(0, 1, exclude_max=True), more=st.binary(max_size=64))
def test_truncated_and_prolonged_archives_are_all_or_nothing(
    packed: tuple[Store, Path], cut: float, more: bytes
) -> None:
    raw = packed[1].read_bytes()
    merged_or_refused(raw[: int(cut * len(raw))] + more, files(packed[0].root))
    merged_or_refused(raw + more, files(packed[0].root))


PARTS = st.sampled_from(["..", ".", "runs", "distilled", "toys", BASE.key + ".json", "x", "", "~", "C:", "\x00", "con"])


@settings(deadline=None, derandomize=True, max_examples=80)
@given(parts=st.lists(PARTS | st.text(max_size=6), min_size=1, max_size=6), slash=st.sampled_from("/\\"))
def test_no_name_leads_out_of_the_store(packed: tuple[Store, Path], parts: list[str], slash: str) -> None:
    name = slash.join(parts)
    buffer = io.BytesIO()
    raw = record().to_json().encode()
    listed = json.dumps({"format": archive.FORMAT, "files": {name: {"sha256": hashlib.sha256(raw).hexdigest()}}})
    try:
        with zipfile.ZipFile(buffer, "w") as new:
            new.writestr(MANIFEST, listed)
            new.writestr(name, raw)
    except (ValueError, IndexError):  # a name that no zip can hold
        return
    good = f"runs/toys/{BASE.key}.json"
    merged_or_refused(buffer.getvalue(), {good: raw} if name == good else {})


def test_the_fuzz_reaches_a_merge(packed: tuple[Store, Path]) -> None:
    """The untouched archive goes in, so the tests above do not pass by refusing everything."""
    merged_or_refused(packed[1].read_bytes(), files(packed[0].root))
    with tempfile.TemporaryDirectory() as folder:
        assert len(merge(packed[1], Store(folder)).added) == 3


def test_generated_sets_of_any_content_survive(tmp_path: Path) -> None:
    store = Store(tmp_path / "a")
    add(store, record())
    images = torch.rand(20, 1, 8, 8, generator=generator(0, "archive test"))
    synthetic.save(store.distilled(BASE.set_key), SyntheticSet(images, 2, 1), key=BASE.set_key, dataset="digits")
    pack(store, tmp_path / "a.zip")
    merge(tmp_path / "a.zip", Store(tmp_path / "b"))
    one, two = (synthetic.read(Store(tmp_path / s).distilled(BASE.set_key)).images for s in "ab")
    assert torch.equal(one, two)
