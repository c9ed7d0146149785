"""What is on a disk is believed only as it was written: flipped bits, other data, full disks, bombs, pipes, litter."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import logging
import os
import random
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny, unmade

from rddlib import base, cli, files
from rddlib.base import DataError, WriteError
from rddlib.data import dataset
from rddlib.data.dataset import DataSet
from rddlib.distillation import distill, synthetic
from rddlib.distillation.glad import generator as generators
from rddlib.distillation.glad import prior
from rddlib.distillation.glad import training as gentrain
from rddlib.distillation.glad.generator import GeneratorSettings
from rddlib.distillation.kip import inducing_points
from rddlib.distillation.kip.kernels import Space
from rddlib.distillation.loop import State
from rddlib.distillation.synthetic import SyntheticSet
from rddlib.evaluation import groups
from rddlib.experiments import export, priors, provenance, records
from rddlib.experiments.experiment import Experiment, run
from rddlib.experiments.merge import merge
from rddlib.experiments.provenance import Clock
from rddlib.experiments.records import Store, StoreError
from rddlib.experiments.validate import check_set, read_record

LOOP = tiny(outer_steps=3, risk="upper")
KIP = tiny(method="kip", kip_steps=60, kip_batch=40, factor=1, learn_labels=True)
GENERATOR = GeneratorSettings(latent=4, width=8, convs=1, steps=8, batch=8, judge_steps=2, flip=True)
JUDGE = {"steps": 3, "width": 8}


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return dataset.load("digits", train_limit=300, test_limit=100)


@pytest.fixture(scope="module")
def others() -> DataSet:
    """As many images of the same shape and classes, but not the same."""
    whole = dataset.load("digits")
    kept = {"train_images": whole.train_images[-300:].clone(), "train_labels": whole.train_labels[-300:].clone()}
    return dataclasses.replace(whole, **kept, sha256=base.digest(kept["train_images"]))


# --- flipped bits -----------------------------------------------------------------------------------------

Kind = tuple[Path, Callable[[Path], Any]]  # a file, and what reads it to a value that can be compared


def tensors(state: dict[str, Any]) -> str:
    """All that a state holds, as a hash."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with zipfile.ZipFile(buffer) as pack:
        return base.digest(*(pack.read(name) for name in sorted(pack.namelist()) if "/data" in name))


def written(folder: Path, data: DataSet) -> dict[str, Kind]:
    """One file of every kind that we write, as its writer leaves it."""
    store, of = Store(folder), "ab" * 32
    record = unmade(LOOP, {"accuracy": [50.0, 51.5]}, set_key=LOOP.set_key, seconds={"distill": 1.5})
    images = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    about = {"key": LOOP.set_key, "history": "[]", "seconds": '{"wall": 1.0, "cpu": 1.0}'}
    synthetic.save(store.distilled(LOOP.set_key), SyntheticSet(images, 2, 1), **about)
    groups.kmeans_groups(data.normalise(data.test_images), 10, 0, folder / "groups")
    codes = {"pixels": images.unflatten(0, (10, 2))}
    like = State(codes, codes)
    distill.save_state(folder / "state.pt", State(codes, codes, 2, [{"loss": 1.25}]), of)
    kip = inducing_points._begin(data, KIP, Space.of(data, True))
    files.write_state(folder / "kip.pt", vars(kip), of)
    training = gentrain.Training(data, GENERATOR)
    training.update()
    gentrain._fit_codes(training.net, data)
    training.save(folder / "generator.pt")
    fields = set(gentrain.keep(folder / "priors", training.net.eval(), data, training.history))
    base.write_atomic(folder / "evaluation.json", files.to_json({"of": of, "rows": [{"accuracy": 51.5}] * 3}))
    clock = Clock(folder / "clock.json", of)
    with clock.part("train"):
        pass

    def read_set(path: Path) -> str:
        arrays = check_set(path.read_bytes(), store.distilled(LOOP.set_key), record)
        made = synthetic.read(path)
        return base.digest(made.images, made.labels, *(arrays[name] for name in sorted(arrays)))

    def read_generator_state(path: Path) -> object:
        if not training.load(path):
            return None
        return tensors({"net": training.net.state_dict(), "optimiser": training.optimiser.state_dict()})

    def read_groups(path: Path) -> str:
        return base.digest(groups._read_groups(path, len(data.test_labels), 10).groups)

    def read_prior_record(path: Path) -> dict[str, Any]:
        found = files.from_json(files.read_plain(path))
        return {name: found[name] for name in fields}  # a flip in the word "checksum" leaves a field without meaning

    def read_weights(path: Path) -> str:
        return tensors(generators.read(path, data).state_dict())

    return {
        "record": (store.add(record, "toys"), read_record),
        "set": (store.distilled(LOOP.set_key), read_set),
        "groups": (next((folder / "groups").glob("*.npz")), read_groups),
        "loop checkpoint": (folder / "state.pt", lambda p: state_of(distill.load_state(p, like, of))),
        "KIP checkpoint": (folder / "kip.pt", lambda p: state_of(inducing_points.load_state(p, kip, of))),
        "generator checkpoint": (folder / "generator.pt", read_generator_state),
        "generator": (folder / "priors" / "digits.safetensors", read_weights),
        "record of a generator": (folder / "priors" / "digits.json", read_prior_record),
        "evaluation": (folder / "evaluation.json", lambda p: files.state_json(p, of)),
        "clock": (folder / "clock.json", lambda p: files.state_json(p, of)),
    }


def state_of(state: Any) -> object:
    return None if state is None else tensors(vars(state))


def flip(kinds: dict[str, Kind], each: int, seed: int = 0) -> dict[str, Counter[str]]:
    """Flip one random bit in each kind of file, `each` times; how often it was refused, read as it was, or wrongly."""
    chance, counts = random.Random(seed), {}
    for name, (path, read) in kinds.items():
        raw, whole, counts[name] = path.read_bytes(), read(path), Counter[str]()
        assert whole is not None, name
        for _ in range(each):
            bit = chance.randrange(8 * len(raw))
            changed = bytearray(raw)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            try:
                found = read(path)
            except (DataError, StoreError, ValueError):
                counts[name]["refused"] += 1
            else:
                same = found == whole
                counts[name]["begun anew" if found is None else "as it was" if same else "wrong"] += 1
        path.write_bytes(raw)
    return counts


def test_no_flipped_bit_is_accepted_as_other_content(tmp_path: Path, digits: DataSet) -> None:
    logging.disable(logging.WARNING)
    counts = flip(written(tmp_path, digits), 25)
    logging.disable(logging.NOTSET)
    assert all(count["wrong"] == 0 for count in counts.values()), counts
    assert all(count["refused"] > 20 for count in counts.values()), counts


def test_other_readers_pass_over_the_seal_and_entries_are_what_they_were(tmp_path: Path, digits: DataSet) -> None:
    kinds = written(tmp_path, digits)
    with np.load(kinds["set"][0], allow_pickle=False) as pack:
        assert set(pack.files) == {"images", "labels", "ipc", "factor", "key", "history", "seconds"}
    assert set(torch.load(kinds["loop checkpoint"][0], weights_only=True)) == {"codes", "velocity", "outer", "history"}
    with pytest.raises(ValueError, match="comment already"):
        files.sealed(kinds["set"][0].read_bytes())


def test_json_comes_back_whatever_its_keys_and_numbers() -> None:
    content = {"b": {2: 1.5, 10: -0.0}, "a": [float("inf"), 1e300, None, "ä"], "c": {}}
    assert files.from_json(files.to_json(content).encode()) == json.loads(json.dumps(content))
    assert files.from_json(b'{"old": 1}') == {"old": 1}


def test_files_from_before_there_were_checksums_are_read() -> None:
    """Those that are committed, by their bytes; the writer of today adds a checksum to what it reads there."""
    sets = [path.read_bytes() for path in ROOT.glob("data/distilled/*.npz")]
    old_sets = [raw for raw in sets if files.sealed_origin(raw) is None]
    assert 5 <= len(old_sets) < len(sets)  # later ones have a checksum
    old_groups = [path.read_bytes() for path in sorted(ROOT.glob("data/groups/*.npz"))[:2]]
    assert all(files.sealed_origin(raw) is None for raw in old_groups)
    assert all(files.arrays(raw) for raw in (*old_sets[:5], *old_groups))
    path = sorted(ROOT.glob("data/runs/*/*.json"))[0]
    old, new = json.loads(path.read_text()), json.loads(read_record(path).to_json())
    assert new.pop("checksum") and new == {"set_key": "", "results": 1} | old


def test_a_record_under_a_key_that_is_not_that_of_its_settings_is_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    good = unmade(LOOP, {"accuracy": [50.0]})
    store.add(good, "toys")
    other = dataclasses.replace(LOOP, seed=77)
    wrong = dataclasses.replace(good, key=other.key)  # its checksum fits
    base.write_atomic(tmp_path / "runs" / "toys" / f"{other.key}.json", wrong.to_json())
    assert store.records() == [good]
    assert f"{other.key}.json" in caplog.text and len(caplog.records) == 1
    with pytest.raises(StoreError, match=f"its settings have key {LOOP.key}"):
        store.find(other.key)


# --- states of other data, settings or code ---------------------------------------------------------------


class Stop(Exception):
    """Stands for a kill."""


def stop_at(step: int, how: type[BaseException]) -> Callable[[int, Any], None]:
    def on_step(done: int, _: Any) -> None:
        if done == step:
            raise how

    return on_step


def images(
    data: DataSet, experiment: Experiment, file: Path | None, stop: int = 0, how: Any = Stop, every: int = 1
) -> str:
    made, history = distill.distill(data, experiment, file, every, stop_at(stop, how))
    return base.digest(made.images, json.dumps(history), *([] if made.targets is None else [made.targets]))


def weights(
    data: DataSet, settings: GeneratorSettings, file: Path | None, stop: int = 0, how: Any = Stop, every: int = 2
) -> str:
    net = gentrain.train_generator(data, settings, stop_at(stop, how), file, every)
    return tensors(net.state_dict())


STATES = {
    "loop": (images, LOOP, 2),
    "representative batches": (images, tiny(outer_steps=3, real_choice="representative", real_pool=20), 2),
    "KIP": (images, KIP, 40),
    "KIP, clamped": (images, dataclasses.replace(KIP, kip_clamp=True, learn_labels=False), 40),
    "generator": (weights, GENERATOR, 4),
}
CHANGE = {"loop": {"lr_image": 0.2}, "KIP": {"kip_lr": 0.1}, "generator": {"lr": 0.01}}


@pytest.mark.parametrize("how", [Stop, KeyboardInterrupt])
@pytest.mark.parametrize("kind", STATES)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    kind: str, how: type[BaseException], digits: DataSet, tmp_path: Path
) -> None:
    """A kill goes on from the last checkpoint; Ctrl-C writes one wherever it comes."""
    make, settings, step = STATES[kind]
    with pytest.raises(how):
        make(digits, settings, tmp_path / "state.pt", step, how, 1 if how is Stop else 100)  # type: ignore[operator]
    assert (tmp_path / "state.pt").is_file()
    assert make(digits, settings, tmp_path / "state.pt") == make(digits, settings, None)  # type: ignore[operator]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut off"])
@pytest.mark.parametrize("kind", CHANGE)
def test_a_damaged_checkpoint_is_named_and_left(kind: str, content: bytes, digits: DataSet, tmp_path: Path) -> None:
    make, settings, _ = STATES[kind]
    file = tmp_path / "state.pt"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"state\.pt: damaged checkpoint .*delete it"):
        make(digits, settings, file)  # type: ignore[operator]
    assert file.read_bytes() == content


def test_a_checkpoint_may_be_larger_than_files_of_others(
    digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = distill.begin(digits, LOOP, prior.load("none", digits, 1))
    distill.save_state(tmp_path / "state.pt", state, "ab" * 32)
    read_plain = files.read_plain

    def read_small(path: Path, most: int = 1000) -> bytes:
        return read_plain(path, most)

    monkeypatch.setattr(files, "read_plain", read_small)
    read = distill.load_state(tmp_path / "state.pt", state, "ab" * 32)
    assert read is not None and torch.equal(read.codes["pixels"], state.codes["pixels"])


def test_a_checkpoint_of_another_shape_is_refused(digits: DataSet, tmp_path: Path) -> None:
    zeros = {"pixels": torch.zeros(10, 1, 1, 8, 8)}
    distill.save_state(tmp_path / "loop.pt", State(zeros, zeros), distill.origin(digits, LOOP))
    with pytest.raises(DataError, match="expected"):
        distill.distill(digits, LOOP, tmp_path / "loop.pt")
    fewer = inducing_points._begin(digits, dataclasses.replace(KIP, ipc=1), Space.of(digits, True))
    files.write_state(tmp_path / "kip.pt", vars(fewer), inducing_points.origin(digits, KIP))
    with pytest.raises(DataError, match="expected"):
        distill.distill(digits, KIP, tmp_path / "kip.pt")


@pytest.mark.parametrize("kind", CHANGE)
@pytest.mark.parametrize("what", ["data", "settings", "code"])
def test_a_state_of_something_else_never_enters_a_new_result(
    kind: str, what: str, digits: DataSet, others: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    make, settings, step = STATES[kind]
    data, file = digits, tmp_path / "state.pt"
    with pytest.raises(Stop):
        make(digits, settings, file, step)  # type: ignore[operator]
    if what == "data":
        data = others
    if what == "settings":
        settings = dataclasses.replace(settings, **CHANGE[kind])  # type: ignore[type-var]
    if what == "code":
        monkeypatch.setattr(files, "RESULTS", base.RESULTS + 1)
    assert make(data, settings, file) == make(data, settings, None)  # type: ignore[operator]
    seen = [line.getMessage() for line in caplog.records if "state.pt" in line.getMessage()]
    assert len(seen) == 1 and "begins anew" in seen[0]


def mine(folder: Path, seed: int) -> Path:
    """A folder with a named pack `mine.npz` of coloured noise."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, Any] = {p: rng.integers(0, 256, (40, 8, 8, 3), np.uint8) for p in ("train_images", "test_images")}
    labels = {f"{part}_labels": np.arange(40) % 2 for part in ("train", "test")}
    folder.mkdir()
    np.savez(folder / "mine.npz", classes=np.array(["a", "b"]), **arrays, **labels)
    return folder


@pytest.mark.parametrize("method", ["idc", "random"])
@pytest.mark.parametrize("part", ["distill", "evaluate"])
def test_half_a_run_on_other_data_never_enters_a_record(
    method: str, part: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The issue's case: the same name, other images under it, and a run that was stopped half way."""
    if (method, part) == ("random", "distill"):
        pytest.skip("nothing is distilled")
    one, two = mine(tmp_path / "one", 1), mine(tmp_path / "two", 2)
    e = dataclasses.replace(tiny(method=method, batch_real=8, net_batch=16), dataset="mine", eval_groups=2)

    def stop(seen: str, *_: Any) -> None:
        if seen == part:
            raise Stop

    store = Store(tmp_path / "store")
    with pytest.raises(Stop):
        run(e, store, data_root=one, progress=stop)
    assert list(store.root.glob(f"work/*/{'state.pt' if part == 'distill' else 'evaluation.json'}"))
    record = run(e, store, data_root=two)
    clean = run(e, Store(tmp_path / "clean"), data_root=two)
    assert record.metrics == clean.metrics and record.history == clean.history
    assert record.metrics != run(e, Store(tmp_path / "other"), data_root=one).metrics
    assert "begins anew" in caplog.text
    assert sum(record.seconds.values()) < 60 and not list(store.root.glob("work/*/*"))


def test_a_setting_without_effect_does_not_make_a_checkpoint_another_runs(digits: DataSet) -> None:
    for risk, same in (("control", True), ("upper", False)):
        origins = {distill.origin(digits, tiny(risk=risk, alpha=alpha)) for alpha in (0.5, 0.8)}
        assert (len(origins) == 1) is same


def test_a_set_that_a_record_rests_on_is_not_replaced_by_one_of_other_data(tmp_path: Path) -> None:
    one, two = mine(tmp_path / "one", 1), mine(tmp_path / "two", 2)
    e = dataclasses.replace(tiny(batch_real=8, net_batch=16, outer_steps=1), dataset="mine", eval_groups=2)
    longer, store = dataclasses.replace(e, eval_steps=e.eval_steps + 1), Store(tmp_path / "store")
    file = store.distilled(run(e, store, data_root=one).set_name)
    before = file.read_bytes()
    with pytest.raises(StoreError, match="other data called 'mine'"):
        run(longer, store, data_root=two)
    assert file.read_bytes() == before
    assert run(longer, store, data_root=one).set_name == file.stem


def test_half_an_evaluation_by_other_code_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    e, trainings = tiny(method="random"), list[int]()

    def stop(part: str, done: int, *_: Any) -> None:
        trainings.append(done)
        if len(trainings) == 1:
            raise Stop

    with pytest.raises(Stop):
        run(e, Store(tmp_path), progress=stop)
    monkeypatch.setattr(provenance, "RESULTS", base.RESULTS + 1)
    run(e, Store(tmp_path), progress=stop)
    assert e.eval_seeds == 2 and trainings == [1, 1, 2]


# --- full disks -------------------------------------------------------------------------------------------


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A disk that is full from write number disk[0] on, for disk[1] writes; disk[2] counts them."""
    state, sync = [-1, 1, 0], os.fsync

    def fsync(number: int) -> None:
        place = state[2]
        state[2] += 1
        if state[0] <= place < state[0] + state[1] and state[0] >= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(number)

    monkeypatch.setattr(os, "fsync", fsync)
    return state


def left(folder: Path) -> list[str]:
    """Files that somebody began to write and did not finish."""
    return [str(path) for path in folder.rglob(".*") if path.is_file()]


def at_every_write(disk: list[int], work: Callable[[Path], Any], folder: Path) -> int:
    """Let each write of `work` find the disk full in turn: a sentence, nothing half written, and then it goes on."""
    disk[:] = [-1, 1, 0]
    clean = work(folder / "clean")
    count = disk[2]
    for place in range(count):
        disk[:] = [place, 10**6, 0]
        with pytest.raises((WriteError, StoreError), match="No space left on device") as raised:
            work(folder / str(place))
        assert "\n" not in str(raised.value) and left(folder) == []
        disk[:] = [-1, 1, 0]
        assert work(folder / str(place)) == clean
    return count


def test_a_disk_that_is_full_at_any_write_of_a_run(disk: list[int], tmp_path: Path) -> None:
    e = tiny(method="dm", outer_steps=2)

    def work(folder: Path) -> Any:
        record = run(e, Store(folder))
        return record.metrics, record.history

    assert at_every_write(disk, work, tmp_path) >= 8


def test_a_disk_that_is_full_at_any_write_of_a_prior(disk: list[int], digits: DataSet, tmp_path: Path) -> None:
    def work(folder: Path) -> Any:
        made = priors.make(digits, dataclasses.replace(GENERATOR, steps=2), Store(folder), judge=JUDGE)
        return made["weights_sha256"], made["scores"]

    assert at_every_write(disk, work, tmp_path) >= 8


def test_a_disk_that_is_full_at_any_write_of_a_merge_and_an_export(disk: list[int], tmp_path: Path) -> None:
    written_here = Store(tmp_path / "source")
    written_here.add(unmade(LOOP, {"accuracy": [50.0]}, set_key=LOOP.set_key), "toys")
    made = SyntheticSet(torch.zeros(20, 1, 8, 8), 2, 1)
    synthetic.save(written_here.distilled(LOOP.set_key), made, key=LOOP.set_key)

    def work(folder: Path) -> Any:
        merge(written_here.root, Store(folder))
        return Store(folder).records()

    assert at_every_write(disk, work, tmp_path / "merged") == 3
    assert at_every_write(disk, lambda folder: export.as_png(made, folder), tmp_path / "exported") == 20


def test_half_an_exported_folder_never_bears_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed or out of space: it is filled under another name. The folder may be there and empty."""
    seen: list[bool] = []
    sync = os.fsync

    def fsync(number: int) -> None:
        seen.append(any((tmp_path / "classes").iterdir()))
        sync(number)

    monkeypatch.setattr(os, "fsync", fsync)
    (tmp_path / "classes").mkdir()
    (tmp_path / ".classes.rddlib-killed").mkdir()
    os.utime(tmp_path / ".classes.rddlib-killed", (0, 0))
    made = SyntheticSet(torch.zeros(20, 1, 8, 8), 2, 1)
    export.as_png(made, tmp_path / "classes")
    assert seen == [False] * 20 and len(list((tmp_path / "classes").glob("*/*.png"))) == 20
    assert [p.name for p in tmp_path.iterdir()] == ["classes"]
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="cannot be written"):
        export.as_png(made, tmp_path / "file" / "classes")


def test_a_checkpoint_survives_a_full_disk(disk: list[int], digits: DataSet, tmp_path: Path) -> None:
    file = tmp_path / "state.pt"
    whole = images(digits, LOOP, None)
    disk[:] = [1, 10**6, 0]
    with pytest.raises(WriteError, match=r"state\.pt: cannot be written \(No space left on device\)"):
        images(digits, LOOP, file)
    disk[:] = [-1, 1, 0]
    begun = distill.begin(digits, LOOP, prior.Identity())
    state = distill.load_state(file, begun, distill.origin(digits, LOOP))
    assert state is not None and state.outer == 1
    assert images(digits, LOOP, file) == whole


def test_a_full_disk_is_one_sentence_of_the_command_line(
    disk: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`evaluate` of a set from elsewhere, at the first write after the probe."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "set.npz", images=rng.integers(0, 256, (10, 1, 8, 8), np.uint8), labels=np.arange(10))
    disk[:] = [1, 10**6, 0]
    words = ["evaluate", str(tmp_path / "set.npz"), "--dataset", "digits", "--store", str(tmp_path / "store")]
    short = ["--eval-steps", "2", "--eval-width", "4", "--eval-seeds", "1", "--eval-depth", "2"]
    assert cli.main(words + short) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "No space left on device" in said[0] and left(tmp_path) == []


def test_the_probe_of_a_store_writes_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk on which an empty file still fits may be full."""
    sizes: list[int] = []

    def write(path: Path, content: bytes) -> Path:
        sizes.append(len(content))
        return base.write_atomic(path, content)

    for module in (records, priors):
        monkeypatch.setattr(module, "write_atomic", write)
    Store(tmp_path).check_writable()
    priors._check_writable(tmp_path / "priors")
    assert sizes == [records.PROBE, records.PROBE] and not [path for path in tmp_path.rglob("*") if path.is_file()]
