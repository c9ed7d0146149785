"""Sets from elsewhere: every published layout gives back the same pixels, what does not fit is one sentence, and the
record is like any other. And the way out: what is exported is read back."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import unmade
from PIL import Image
from torch import Tensor

from rddlib import cli
from rddlib.base import DataError, SettingError
from rddlib.data import dataset, summary
from rddlib.data.dataset import DataSet
from rddlib.distillation import synthetic
from rddlib.distillation.synthetic import SyntheticSet
from rddlib.experiments import export, foreign
from rddlib.experiments.experiment import Experiment, run
from rddlib.experiments.records import Store, StoreError
from rddlib.experiments.validate import read_record

QUICK = {"eval_steps": 5, "eval_width": 4, "eval_seeds": 2, "eval_groups": 4, "test_limit": 100}


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return dataset.load("digits", test_limit=100)


@pytest.fixture(scope="module")
def coloured() -> DataSet:
    return dataset.load("coloured_digits", test_limit=100)


def some(data: DataSet, ipc: int = 2) -> tuple[Tensor, Tensor]:
    """Real images, `ipc` a class: uint8 and int64."""
    index = synthetic.draw_real(data, ipc, None)
    return data.train_images[index], data.train_labels[index]


def write_folder(path: Path, images: Tensor, labels: Tensor, names: Callable[[int], str]) -> Path:
    for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        place = path / names(label)
        place.mkdir(parents=True, exist_ok=True)
        pixels = image.permute(1, 2, 0).numpy()
        Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(place / f"{number:03d}.png")
    return path


def write(layout: str, path: Path, images: Tensor, labels: Tensor, data: DataSet) -> Path:
    """A file as the code of `layout` writes it."""
    normal = data.normalise(images)
    if layout == "dc":  # beside the sets DC keeps accuracies, as NumPy's numbers
        content = {"data": [[normal, labels]], "accs_all_exps": {"ConvNet": [np.float64(50.0), np.float32(1)]}}
        torch.save(content, path / "res_DC.pt")
        return path / "res_DC.pt"
    if layout == "idc":
        torch.save([images.float() / 255, labels], path / "data.pt")
        return path / "data.pt"
    if layout in ("mtt", "soft", "logits"):
        one_hot = torch.eye(data.n_classes)[labels]
        told = {"mtt": labels, "soft": one_hot, "logits": 1000 * one_hot}[layout]
        torch.save(normal, path / "images_best.pt")
        torch.save(told, path / "labels_best.pt")
        return path / "images_best.pt"
    if layout in ("npz", "last", "bytes"):
        own = {"npz": images, "last": images.permute(0, 2, 3, 1), "bytes": images.float()}[layout]
        np.savez(path / "set.npz", images=own.numpy(), labels=labels.numpy())
        return path / "set.npz"
    return write_folder(path / "set", images, labels, str)


TOLD = {
    "dc": "read as normalised with the statistics of",
    "idc": "values 0 to 1 read as unit",
    "mtt": "labels from labels_best.pt; ",
    "soft": "soft labels",
    "logits": "soft labels, through a softmax",
    "npz": "values 0 to 255",
    "last": "channels stood last; values 0 to 255",
    "bytes": "values 0 to 255 read as byte",
    "folder": "20 images of 10 classes",
}


@pytest.mark.parametrize("layout", TOLD)
@pytest.mark.parametrize("name", ["digits", "coloured"])
def test_each_layout_gives_the_same_pixels_and_labels(
    layout: str, name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    data = request.getfixturevalue(name)
    images, labels = some(data)
    found = foreign.read(write(layout, tmp_path, images, labels, data), data)
    assert torch.allclose(found.images, images.float() / 255, atol=1e-5)
    hard = found.labels.argmax(1) if found.labels.is_floating_point() else found.labels
    assert torch.equal(hard, labels) and (found.ipc, found.factor) == (2, 1)
    assert TOLD[layout] in found.words and str(tmp_path) not in found.words and "\n" not in found.words


def test_content_makes_the_hash_and_not_the_file(digits: DataSet, tmp_path: Path) -> None:
    images, labels = some(digits)
    found = {
        layout: foreign.read(write(layout, tmp_path, images, labels, digits), digits)
        for layout in ("idc", "npz", "last", "folder")
    }
    assert len({f.sha256 for f in found.values()}) == 1
    other = foreign.read(write("npz", tmp_path, images.flip(0), labels, digits), digits)
    assert other.sha256 != found["npz"].sha256


def test_several_sets_in_one_file(digits: DataSet, tmp_path: Path) -> None:
    images, labels = some(digits)
    both = [[digits.normalise(images), labels], [digits.normalise(255 - images), labels]]
    torch.save({"data": both}, tmp_path / "res.pt")
    second = foreign.read(tmp_path / "res.pt", digits, number=2)
    assert torch.allclose(second.images, 1 - images / 255, atol=1e-5) and "set 2 of 2" in second.words
    with pytest.raises(SettingError, match="number = 3: allowed is 1 to 2"):
        foreign.read(tmp_path / "res.pt", digits, number=3)


def test_an_option_that_would_not_be_looked_at_is_refused(digits: DataSet, tmp_path: Path) -> None:
    images, labels = some(digits)
    torch.save([images, labels], tmp_path / "pair.pt")
    np.savez(tmp_path / "set.npz", images=images.numpy(), labels=labels.numpy())
    for place in (tmp_path / "pair.pt", tmp_path / "set.npz", write_folder(tmp_path / "f", images, labels, str)):
        with pytest.raises(SettingError, match="labels = '/absent': allowed is"):
            foreign.read(place, digits, labels="/absent")
        with pytest.raises(SettingError, match="number = 5: allowed is 1"):
            foreign.read(place, digits, number=5)


def test_what_a_folder_holds_beside_images_is_told(digits: DataSet, tmp_path: Path) -> None:
    place = write_folder(tmp_path / "f", *some(digits), str)
    (place / "0" / "more.tif").touch()
    (place / "3" / "notes.txt").touch()
    assert "not taken: 1 .tif, 1 .txt" in foreign.read(place, digits).words


def test_tiles_are_decoded_as_told(digits: DataSet, tmp_path: Path) -> None:
    images, labels = some(digits, 1)
    found = foreign.read(write("idc", tmp_path, images, labels, digits), digits, factor=2)
    assert torch.equal(found.images, synthetic.decode(images / 255, 2)) and "each decoded to 4" in found.words
    assert found.labels.tolist() == [c for c in range(10) for _ in range(4)] and found.ipc == 1
    own = synthetic.save(tmp_path / "own.npz", SyntheticSet(images / 255, 1, 2))
    assert foreign.read(own, digits).sha256 == found.sha256
    with pytest.raises(DataError, match="factor = 3: allowed is 2, which the file says"):
        foreign.read(own, digits, factor=3)


def test_values_beyond_black_and_white_are_kept_and_told(digits: DataSet, tmp_path: Path) -> None:
    images, labels = some(digits)
    wild = digits.normalise(images) * 1.5
    torch.save([wild, labels], tmp_path / "a.pt")
    found = foreign.read(tmp_path / "a.pt", digits)
    assert found.images.min() < -0.1 and "% outside [0, 1], kept as they are" in found.words
    assert torch.allclose(digits.normalise(found.images), wild, atol=1e-5)  # the network sees what it saw there


def test_what_the_values_are_can_be_declared(digits: DataSet, tmp_path: Path) -> None:
    images, labels = some(digits)
    torch.save([images / 255 * 2 - 1, labels], tmp_path / "signed.pt")  # -1 to 1: nobody can tell
    dim = dataclasses.replace(digits, mean=(0.5,), std=(0.2,))
    for data in (digits, dim):
        with pytest.raises(DataError, match="values = '-1 to 1': allowed is declared with --range"):
            foreign.read(tmp_path / "signed.pt", data)
    found = foreign.read(tmp_path / "signed.pt", dim, "normalised")
    assert torch.allclose(found.images, (images / 255 * 2 - 1) * 0.2 + 0.5, atol=1e-6)
    assert "values -1 to 1 declared normalised" in found.words


class Evil:
    """What a pickle could do."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("touched"),))


def broken(path: Path, x: Tensor, y: Tensor, fault: str) -> None:
    """A file that is wrong in one way."""
    normal = (x / 255 - 0.3) / 0.37
    contents: dict[str, object] = {
        "alone": normal,
        "dict": {"images": normal},
        "three": [x, y, y],
        "text": "no set",
        "names": ["a", "b"],
        "size": [torch.zeros(20, 1, 16, 16), y],
        "channels": [x.expand(-1, 3, -1, -1) / 255, y],
        "flat": [x.flatten(1) / 255, y],
        "empty": [x[:0] / 255, y[:0]],
        "label 10": [x / 255, y + 1],
        "label -1": [x / 255, y - 1],
        "few labels": [x / 255, y[:-1]],
        "a class missing": [x / 255, y.clamp(max=8)],
        "half labels": [x / 255, y + 0.5],
        "soft of nine": [x / 255, torch.rand(20, 9)],
        "nan": [normal * torch.nan, y],
        "between": [x / 255 * 4, y],
        "whitened": [torch.randn(x.shape) * 30, y],
        "signed": [x / 255 - 0.1, y],
        "infinite labels": [x / 255, torch.full((20, 10), torch.inf)],
        "complex": [x / 255 + 0j, y],
        "sparse": [(x / 255).to_sparse(), y],
    }
    if fault == "pickled":
        path.write_bytes(pickle.dumps(Evil()))
    elif fault == "object":
        torch.save([x, Evil()], path)
    elif fault == "cut":
        torch.save([x, y], path)
        path.write_bytes(path.read_bytes()[:900])
    else:
        torch.save(contents[fault], path)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("alone", "holds images alone; name the file of their labels"),
        ("dict", "is neither"),
        ("three", "is neither"),
        ("text", "is neither"),
        ("names", "is neither"),
        ("size", r"shape \(20, 1, 16, 16\)': allowed is \(N, 1, 8, 8\)"),
        ("channels", r"shape \(20, 3, 8, 8\)"),
        ("flat", r"shape \(20, 64\)"),
        ("empty", "shape"),
        ("label 10", r"labels = '1\.\.10': allowed is 0\.\.9"),
        ("label -1", r"labels = '-1\.\.8'"),
        ("few labels", "labels = 19: allowed is one for each of 20 images"),
        ("a class missing", "none of class '9'"),
        ("half labels", "fractions"),
        ("soft of nine", "fractions"),
        ("infinite labels", "finite"),
        ("complex", "dense tensors of real numbers"),
        ("sparse", "dense tensors of real numbers"),
        ("nan", "finite numbers"),
        ("between", "values = '0 to 4'"),
        ("whitened", "whitened"),
        ("signed", r"values = '-0\.1 to 0\.9'"),
        ("pickled", "cannot be read as plain tensors"),
        ("object", "cannot be read as plain tensors"),
        ("cut", "cannot be read as plain tensors"),
    ],
)
def test_what_does_not_fit_is_one_sentence_with_the_file(
    fault: str, words: str, digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    broken(tmp_path / "bad.pt", *some(digits), fault)
    with pytest.raises(DataError, match=words) as caught:
        foreign.read(tmp_path / "bad.pt", digits)
    assert "bad.pt" in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "touched").exists()


def test_archives_and_folders_that_do_not_fit(digits: DataSet, tmp_path: Path) -> None:
    images, labels = some(digits)
    np.savez(tmp_path / "x.npz", x=images.numpy(), y=labels.numpy())
    with pytest.raises(DataError, match=r"x\.npz: cannot be read as an \.npz with the entries images and labels"):
        foreign.read(tmp_path / "x.npz", digits)
    np.savez(tmp_path / "text.npz", images=np.array(["a"]), labels=np.array([0]))
    with pytest.raises(DataError, match="not both numbers"):
        foreign.read(tmp_path / "text.npz", digits)
    np.savez(tmp_path / "object.npz", images=np.array([Evil()], dtype=object), labels=np.array([0]))
    with pytest.raises(DataError, match="cannot be read as an .npz"):
        foreign.read(tmp_path / "object.npz", digits)
    np.savez(tmp_path / "long.npz", images=images.numpy().astype(np.longdouble), labels=labels.numpy())
    with pytest.raises(DataError, match=r"long\.npz: numbers of a kind that PyTorch lacks"):
        foreign.read(tmp_path / "long.npz", digits)
    np.savez(tmp_path / "big.npz", images=images.numpy().astype(">f4"), labels=labels.numpy().astype(">i8"))
    assert torch.equal(foreign.read(tmp_path / "big.npz", digits).images, images / 255)
    for name in ("absent.pt", "set.csv"):
        with pytest.raises(DataError, match=f"{name}: is not there, or no"):
            foreign.read(tmp_path / name, digits)
    with pytest.raises(DataError, match="no folder '9'; each class"):
        foreign.read(write_folder(tmp_path / "nine", images[:18], labels[:18], str), digits)
    red = torch.cat([images, images * 0, images * 0], 1)
    with pytest.raises(DataError, match="have colours"):
        foreign.read(write_folder(tmp_path / "red", red, labels, str), digits)


# --- records ----------------------------------------------------------------------------------------------


def test_our_own_set_judged_as_foreign_has_the_numbers_of_its_record(tmp_path: Path, digits: DataSet) -> None:
    """The same set, data and evaluation: bit for bit the same accuracies, whatever way the set has gone."""
    store = Store(tmp_path)
    short = {"outer_steps": 1, "inner_steps": 2, "width": 4, "factor": 2} | QUICK
    record = run(Experiment.preset("smoke", **short), store)
    export.as_png(export.load_set(record.key, store), tmp_path / "png", stored=True)
    export.as_tensors(export.load_set(record.key, store), tmp_path / "decoded.pt")
    chosen = {"dataset": "digits"} | QUICK
    for file, factor in ((store.distilled(record.set_key), None), (tmp_path / "png", 2), (tmp_path / "decoded.pt", 1)):
        found = foreign.read(file, digits, factor=factor)
        again = run(foreign.experiment_of(found, **chosen), store, given=found.small)
        for name in ("accuracy", "noise", "cluster_accuracy", "class_min", "group_sizes"):
            assert again.metrics[name] == record.metrics[name], name
        assert again.experiment["method"] == "foreign" and again.set_key == "" and again.key != record.key
        assert read_record(store.files()[[p.stem for p in store.files()].index(again.key)]) == again


def test_a_setting_is_new_and_old_keys_are_not() -> None:
    assert Experiment().key == "44136fa355b3678a"
    with pytest.raises(SettingError, match="^method = 'foreign'.*evaluate FILE"):
        Experiment.preset("smoke", method="foreign")
    with pytest.raises(SettingError, match="set_sha256"):
        Experiment.preset("smoke", set_sha256="a" * 64)
    lone = Experiment.preset("smoke", method="foreign", set_sha256="a" * 64)
    assert dataclasses.replace(lone, set_sha256="b" * 64).key != lone.key
    with pytest.raises(SettingError, match="method = 'foreign'"):
        run(lone, Store("/nonexistent"))


def test_from_the_command_line_with_the_floor_beside_it(
    tmp_path: Path, digits: DataSet, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write("dc", tmp_path, *some(digits), digits)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items()]
    command = ["evaluate", str(file), "--dataset", "digits", "--store", str(tmp_path), *options]
    assert cli.main(command) == 0
    told = capsys.readouterr().out
    records = {r.experiment["method"]: r for r in Store(tmp_path).records()}
    assert set(records) == {"foreign", "random"} and records["random"].experiment["ipc"] == 2
    means = [f"{np.mean(records[m].metrics['accuracy']):.2f}" for m in ("foreign", "random")]
    assert told.split("\n")[2].split() == ["accuracy", *means]
    assert "cluster_min from chance alone" in told and f"record {records['foreign'].key}" in told
    assert cli.main(command) == 0 and capsys.readouterr().out == told  # found, not run again
    assert cli.main(["evaluate", str(file), "--store", str(tmp_path), "--eval-network", "vit2"]) == 2
    assert "eval_network = 'vit2'" in capsys.readouterr().err


# --- the way out ------------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path: Path, coloured: DataSet) -> tuple[Store, str, SyntheticSet]:
    """A store with a record of a set of two tiles a side, without the run."""
    store = Store(tmp_path / "store")
    e = Experiment.preset("smoke", dataset="coloured_digits", method="idc", ipc=2, factor=2, **QUICK)
    images, _ = some(coloured, 2)
    made = SyntheticSet(images / 255, 2, 2)
    synthetic.save(store.distilled(e.set_key), made)
    store.add(unmade(e, {"accuracy": [50.0]}, set_key=e.set_key), "coloured_digits_smoke")
    return store, e.key, made


@pytest.mark.parametrize("stored", [True, False])
def test_what_is_exported_is_read_back(
    made: tuple[Store, str, SyntheticSet], stored: bool, tmp_path: Path, coloured: DataSet
) -> None:
    store, key, original = made
    more = ["--stored"] * stored
    for option, name in (("--png", "png"), ("--pt", "a.pt"), ("--grid", "grid.png")):
        words = ["export", key[:8], option, str(tmp_path / name), "--store", str(store.root), *more]
        assert cli.main(words) == 0
        assert cli.main(words) == 2  # nothing is written over
    images, labels = (original.images, original.labels) if stored else original.decoded()
    tensors, told = torch.load(tmp_path / "a.pt", weights_only=True)
    assert torch.equal(tensors, images) and torch.equal(told, labels)
    for name, off in (("png", 0.5 / 255), ("a.pt", 0)):
        back = foreign.read(tmp_path / name, coloured)
        assert torch.equal(back.labels, labels) and (back.images - images).abs().max() <= off + 1e-6
    grid = torch.from_numpy(np.array(Image.open(tmp_path / "grid.png"))).permute(2, 0, 1)
    columns, step = len(images) // 10, 4 * 8 + summary.MARGIN
    assert grid.shape == (3, 10 * step + summary.MARGIN, columns * step + summary.MARGIN)
    corner = grid[:, summary.MARGIN + 3 * step :, summary.MARGIN + step :][:, : 4 * 8 : 4, : 4 * 8 : 4]
    assert torch.equal(corner, (images[3 * columns + 1] * 255).round().to(torch.uint8))


def test_a_record_without_a_set_says_why(made: tuple[Store, str, SyntheticSet], tmp_path: Path) -> None:
    store, key, _ = made
    next(store.root.glob("distilled/*.npz")).unlink()
    with pytest.raises(StoreError, match="is not here"):
        export.load_set(key, store)
    drawn = run(Experiment.preset("smoke", method="random", **QUICK), store)
    with pytest.raises(StoreError, match="never kept: its method is random"):
        export.load_set(drawn.key, store)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").touch()
    with pytest.raises(SettingError, match="png = 'full'"):
        export.as_png(made[2], tmp_path / "full")


# --- a data set at a glance -------------------------------------------------------------------------------


def test_a_data_set_at_a_glance(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    labels = {"train": [0] * 9 + [1] * 4, "test": [0] * 3}
    for part, own in labels.items():
        for i, label in enumerate(own):
            place = tmp_path / "pets" / part / ("cat", "dog")[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(place / f"{i:02d}.png")
    extra = tmp_path / "pets" / "test" / "dog"
    extra.mkdir()
    Image.new("RGB", (8, 8)).save(extra / "0.png")
    sheet = tmp_path / "sheet.png"
    assert cli.main(["data", f"folder:{tmp_path / 'pets'}", "--picture", str(sheet)]) == 0
    told = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["cat", "9", "3"] in told and ["dog", "4", "1"] in told and ["all", "13", "4"] in told
    assert " ".join(told[5]).startswith(
        "smallest class: 'dog' with 4 training images; largest ipc: 4 at factor 1, 1 at"
    )
    step = 32 + summary.MARGIN
    pixels = np.asarray(Image.open(sheet))
    assert pixels.shape == (2 * step + 2, 10 * step + 2, 3)
    data = dataset.load(f"folder:{tmp_path / 'pets'}")
    second = pixels[2 + step : 2 + step + 32 : 4, 2 + step : 2 + step + 32 : 4]  # the second dog
    assert (second == data.train_images[10].permute(1, 2, 0).numpy()).all()
    assert (pixels[step:, 2 + 4 * step :] == 255).all()  # there are four dogs
    assert cli.main(["data", "digits", "--picture", str(tmp_path / "a.bmp")]) == 2
    before = sheet.read_bytes()
    assert cli.main(["data", "digits", "--picture", str(sheet)]) == 2 and sheet.read_bytes() == before


def test_groups_are_counted(coloured: DataSet) -> None:
    lines = summary.lines(coloured)
    start = next(i for i, line in enumerate(lines) if line.startswith("group"))
    for name, line in zip(coloured.group_names, lines[start + 1 :], strict=False):
        group = coloured.group_names.index(name)
        sizes = [int((groups == group).sum()) for groups in (coloured.train_groups, coloured.test_groups)]
        assert line.removeprefix(name).split() == [str(n) for n in sizes]


@pytest.mark.parametrize("classes", [("1", "2", "3"), ("1", "0", "2")], ids=str)
def test_folders_called_by_number_are_not_taken_for_classes_called_so(
    digits: DataSet, tmp_path: Path, classes: tuple[str, ...]
) -> None:
    """Classes whose names are numbers: one way of naming holds for all folders, and none is taken by guess."""
    named = dataclasses.replace(digits, classes=classes)
    images, labels = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 8, 8), torch.arange(3)
    for name in ("by number", "by name"):
        of = str if name == "by number" else lambda c: classes[c]
        write_folder(tmp_path / name, images, labels, of)
        if classes == ("1", "0", "2"):  # 0 and 1 may be either
            with pytest.raises(DataError, match="names or numbers"):
                foreign.read(tmp_path / name, named)
            continue
        found = foreign.read(tmp_path / name, named)
        assert (found.images * 255).round().amax((1, 2, 3)).int().tolist() == found.labels.tolist() == [0, 1, 2]
    (tmp_path / "by name" / "zebra").mkdir()
    if classes == ("1", "2", "3"):
        with pytest.raises(DataError, match="'zebra' is no class"):
            foreign.read(tmp_path / "by name", named)
