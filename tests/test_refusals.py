"""What a user mistypes is answered by one sentence that names the option, before any data is read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rddlib import cli, commands
from rddlib.analysis.report import Page
from rddlib.base import SettingError, allowed_values
from rddlib.data import dataset
from rddlib.experiments.experiment import Experiment
from rddlib.experiments.records import Store

ALLOWED = {name: allowed_values(field) for name, field in Experiment.declared().items()}
NUMBERS = [name for name, allowed in ALLOWED.items() if "number" in allowed]
CHOICES = [name for name, allowed in ALLOWED.items() if allowed.startswith("one of") and name != "scale"]


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the command line says when it refuses: one line on stderr."""
    assert cli.main(words) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and told.err.startswith("rddlib: ")
    return told.err


@pytest.mark.parametrize("device", ["gpu", "tpu", "cuda:99", "CUDA", "", "meta"])
@pytest.mark.parametrize("command", [["run"], ["prior", "--dataset", "digits"]])
def test_a_device_that_is_not_here_is_refused_before_data_is_read(
    device: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "load", lambda *_, **__: pytest.fail("data was read"))
    told = refusal(capsys, *command, "--device", device, "--store", str(tmp_path))
    assert f"device = {device!r}: allowed is what there is here: cpu" in told
    assert not list(tmp_path.iterdir())


def test_a_grid_on_a_device_that_is_not_here_starts_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands.Scheduler, "go", lambda *_: pytest.fail("a run began"))
    words = ["grid", "table1", "--scale", "smoke", "--store", str(tmp_path), "--device"]
    assert cli.main([*words, "tpu"]) == 2
    assert "device = 'tpu'" in capsys.readouterr().err
    assert cli.main([*words, "cuda", "--dry-run"]) == 0  # what it would cost elsewhere may be asked here


@pytest.mark.parametrize("scale", ["smoke", "laptop", "cpu", "gpu", "paper"])
def test_every_setting_of_the_wrong_kind_is_named(scale: str) -> None:
    """Before a preset counts with it: 'lenet' has no width, 'ten' cannot be multiplied."""
    assert len(NUMBERS) > 30 and len(CHOICES) > 15
    for name, value in [*((n, "ten") for n in NUMBERS), *((c, "lenet") for c in CHOICES), ("dataset", 7)]:
        with pytest.raises(SettingError, match=f"^{name} = {value!r}: allowed is"):
            Experiment.preset(scale, **{name: value})


@pytest.mark.parametrize("words", [["run", "--see", "1"], ["grid", "table1", "--dry"], ["list", "--gro", "x"]])
def test_the_beginning_of_an_option_is_not_the_option(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert f"Unknown option: {words[-2] if len(words) > 2 and words[0] != 'grid' else words[-1]}." in refusal(
        capsys, *words
    )


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["run", "--dataset", "HERE"], "dataset = '.*Did you mean 'folder:"),
        (["run", "--method", "foreign"], "method = 'foreign'"),
        (["run", "--prior", "nothing"], "prior = 'nothing'"),
        (["run", "--method", "glad", "--prior-layer", "30"], "prior_layer = 30"),
        (["run", "--method", "glad", "--prior", "generator:none"], "none: "),
        (["data", "digits", "--picture", "a.bmp"], r"picture = 'a\.bmp'"),
        (["run", "--ipc", "many"], "ipc = 'many'"),
        (["run", "--alpha", "1.2"], r"alpha = 1\.2"),
        (["run", "--dataset", "mnist"], "dataset = 'mnist'"),
        (["run", "--network", "lenet"], "network = 'lenet'"),
        (["run", "--eval-shifts", "maybe"], "eval_shifts = 'maybe'"),
        (["run", "--group", "../x"], "group"),
        (["show", "abc"], "key 'abc'"),
        (["grid", "tabel1"], "did you mean table1"),
        (["grid", "table5", "--scale", "laptop"], "scale = 'laptop'"),
        (["grid", "table1", "--jobs", "0"], "jobs = 0"),
        (["status", "tabel1"], "grid = 'tabel1'"),
        (["merge", "absent"], "absent: there is no such folder"),
    ],
)
def test_what_is_refused_is_named_and_leaves_nothing(
    words: list[str], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = [] if words[0] == "data" else ["--store", str(tmp_path / "store")]
    told = refusal(capsys, *(str(tmp_path) if word == "HERE" else word for word in words), *place)
    assert re.search(name, told)
    assert [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".lock"] == []


def test_an_empty_folder_is_not_the_default(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "store = ''" in refusal(capsys, "run", "--store", "")
    assert "store = ''" in refusal(capsys, "list", "--store", "")
    assert "data_root = ''" in refusal(capsys, "run", "--data-root", "", "--store", str(tmp_path))


@pytest.mark.parametrize("name", ["cifra10", "tail", "CIFAR10", "npz:", "rare_svhn"])
def test_a_page_of_an_unknown_data_set_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=f"dataset = '{name}'"):
        Page.of("table2", "laptop", name, store=Store(tmp_path))


@pytest.mark.parametrize("name", ["all", "svhn", "svhn_mini", "folder:pets", "npz:pets.npz", "rare_digits"])
def test_a_page_of_data_that_may_be_elsewhere_is_a_page(name: str, tmp_path: Path) -> None:
    assert Page.of("table2", "laptop", name, store=Store(tmp_path)).records == {}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dataset", "nosuch"], "nosuch"),
        (["--dataset", "folder:nosuchdir"], "nosuchdir"),
        (["--dataset", "digits", "--ipc", "1000"], "ipc"),
        (["--dataset", "digits", "--batch-real", "5000"], "batch_real"),
    ],
)
def test_a_dry_run_promises_nothing_that_a_run_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    for more in (["--dry-run"], []):
        assert cli.main(["run", "--store", str(tmp_path), *words, *more]) == 2
        assert said in capsys.readouterr().err
