"""Making a generative prior: it goes on where it was stopped, is made once, and is refused before any work."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from rddlib import cli
from rddlib.base import DataError, SettingError
from rddlib.data import dataset
from rddlib.data.dataset import DataSet
from rddlib.distillation.glad import generator as generators
from rddlib.distillation.glad import prior
from rddlib.distillation.glad import training as gentrain
from rddlib.distillation.glad.generator import GeneratorSettings
from rddlib.experiments import priors
from rddlib.experiments.experiment import HELD_OUT
from rddlib.experiments.records import Store, StoreError

TINY = GeneratorSettings(latent=4, width=8, convs=1, steps=12, batch=8, judge_steps=3, flip=True)
JUDGE = {"steps": 5, "width": 8}
ON_THE_LINE = ["prior", "--dataset", "digits", "--latent", "4", "--width", "8", "--convs", "1", "--steps", "12",
               "--batch", "8", "--judge-steps", "3", "--score-steps", "5", "--score-width", "8"]  # fmt: skip


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return dataset.load("digits", train_limit=300, test_limit=100)


class Stop(KeyboardInterrupt):
    """Ctrl-C at a moment that the test knows."""


# --- a checkpoint -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [7, 12])
def test_a_training_that_goes_on_reports_the_updates_that_it_has(digits: DataSet, tmp_path: Path, step: int) -> None:
    def stop(done: int, _: dict[str, float]) -> None:
        if done == step:
            raise Stop

    whole, history = [], []
    gentrain.train_generator(digits, TINY, lambda s, parts: whole.append((s, parts)))
    with pytest.raises(Stop):
        gentrain.train_generator(digits, TINY, stop, tmp_path / "state.pt", every=5)
    gentrain.train_generator(digits, TINY, lambda s, p: history.append((s, p)), tmp_path / "state.pt")
    assert history == whole and [s for s, _ in history] == list(range(1, 13))


def test_an_update_that_was_cut_short_is_not_kept(
    digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between two parts of an update: the streams have moved on and the weights have not."""
    file, calls, losses = tmp_path / "state.pt", iter(range(100)), gentrain._losses

    def stop(*given: Any) -> dict[str, torch.Tensor]:
        if next(calls) == 6:
            raise Stop
        return losses(*given)

    monkeypatch.setattr(gentrain, "_losses", stop)
    with pytest.raises(Stop):
        gentrain.train_generator(digits, TINY, None, file, every=5)
    training = gentrain.Training(digits, TINY)
    training.load(file)
    assert len(training.history) == 5


# --- the whole --------------------------------------------------------------------------------------------


def made(digits: DataSet, store: Store, **changes: object) -> dict[str, object]:
    return priors.make(digits, TINY, store, judge=JUDGE, **changes)  # type: ignore[arg-type]


def test_a_generator_is_trained_scored_and_kept_once(
    digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, seen = Store(tmp_path), []
    record = made(digits, store, progress=lambda part, done, of, _: seen.append((part, done, of)))
    assert seen == [*(("train", n, 12) for n in range(1, 13)), ("score", 1, 1)]
    kept = json.loads((tmp_path / "priors" / "digits.json").read_text())
    assert kept.pop("checksum")
    assert kept == json.loads(json.dumps(record)) and not re.search(str(tmp_path), json.dumps(kept))
    assert set(kept["scores"]) == {"frechet", "frechet_real", "share", "share_real", "images"}
    assert kept["score_settings"] == {"seed": 0} | JUDGE and kept["seconds"] > 0 < kept["peak_memory_mb"]
    assert {"device", "versions", "commit", "results", "cpu_seconds"} <= set(kept)
    assert not list(tmp_path.glob("work/prior-*/*")), "what it needed only while it ran is gone"
    source = prior.load(f"generator:{tmp_path / 'priors' / 'digits.safetensors'}", digits, layer=1)
    assert source.shape == digits.shape
    monkeypatch.setattr(gentrain, "train_generator", lambda *_: pytest.fail("trained twice"))
    assert made(digits, store) == kept


def test_settings_are_chosen_with_a_generator_that_has_not_seen_the_held_out_images(
    digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A held-out part has a generator of its own beside that of the whole, and neither stands in for the other."""
    monkeypatch.setattr(prior, "resources", lambda: tmp_path)
    held = digits.validation()
    made(digits, Store(tmp_path))
    with pytest.raises(SettingError, match="generator of digits_validation.*digits; or train it"):
        prior.load("generator", held, layer=1)
    record = made(held, Store(tmp_path))
    assert (record["dataset"], record["data_sha256"]) == ("digits", held.sha256) != ("digits", digits.sha256)
    files = ["digits.json", "digits.png", "digits.safetensors"]
    both = sorted([*files, *(name.replace("digits", "digits_validation") for name in files)])
    assert sorted(p.name for p in (tmp_path / "priors").iterdir()) == both
    own = [prior.load("generator", data, layer=1).sha256 for data in (digits, held)]
    assert own[0] != own[1]
    (tmp_path / "priors" / files[2]).replace(tmp_path / "priors" / both[-1])
    with pytest.raises(DataError, match="trained on other data"):
        prior.load("generator", held, layer=1)


def test_interrupted_in_scoring_it_is_kept_and_trained_no_further(
    digits: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(gentrain, "score", lambda *_, **__: (_ for _ in ()).throw(Stop()))
        with pytest.raises(Stop):
            made(digits, store)
    first = (tmp_path / "priors" / "digits.safetensors").read_bytes()
    assert "scores" not in json.loads((tmp_path / "priors" / "digits.json").read_text())
    with monkeypatch.context() as patch:
        patch.setattr(gentrain.Training, "update", lambda _: pytest.fail("trained further"))
        record = made(digits, store)
    assert record["scores"] and (tmp_path / "priors" / "digits.safetensors").read_bytes() == first


def test_what_is_kept_goes_only_when_told(digits: DataSet, tmp_path: Path) -> None:
    store, other = Store(tmp_path), dataclasses.replace(TINY, kl=0.5)
    made(digits, store)
    before = (tmp_path / "priors" / "digits.safetensors").read_bytes()
    with pytest.raises(StoreError, match=r"kl 0\.0001 \(not 0\.5\) is kept there.*--replace"):
        priors.make(digits, other, store, judge=JUDGE)
    with pytest.raises(StoreError, match="other images is kept"):
        made(dataset.load("digits", train_limit=200, test_limit=100), store)
    assert (tmp_path / "priors" / "digits.safetensors").read_bytes() == before
    assert priors.make(digits, other, store, tmp_path / "mine", JUDGE)["settings"]["kl"] == 0.5
    assert priors.make(digits, other, store, judge=JUDGE, replace=True)["settings"]["kl"] == 0.5
    assert generators.read(tmp_path / "priors" / "digits.safetensors").settings == other
    (tmp_path / "priors" / "digits.json").write_text("{")
    with pytest.raises(StoreError, match="damaged record"):
        priors.make(digits, other, store, judge=JUDGE)


def test_refusals_come_before_any_work(digits: DataSet, tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(SettingError, match="score_steps = 0"):
        priors.make(digits, TINY, store, judge={"steps": 0})
    few = {"test_images": digits.test_images[:2], "test_labels": digits.test_labels[:2]}
    with pytest.raises(SettingError, match=r"test images = 2"):
        priors.make(dataclasses.replace(digits, **few), TINY, store)
    with pytest.raises(SettingError, match="size = 12"):
        priors.make(dataset.load("digits", size=12, train_limit=100, test_limit=50), TINY, store)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="a generator cannot be written there"):
        made(digits, store, folder=tmp_path / "file" / "priors")
    with pytest.raises(StoreError, match="results cannot be written there"):
        made(digits, Store(tmp_path / "file" / "store"), folder=tmp_path / "mine")
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["file"]


# --- the command line -------------------------------------------------------------------------------------


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*ON_THE_LINE, "--store", str(tmp_path)]
    assert cli.main(options) == 0
    said = capsys.readouterr()
    assert re.search(r"^digits  0\.\d\d MB, 12 updates, \d+ s; of the class asked for: ", said.out)
    assert said.err == ""  # a pipe gets no progress bar
    record = json.loads((tmp_path / "priors" / "digits.json").read_text())
    assert record["settings"]["flip"] is False and record["data_sha256"] == dataset.load("digits").sha256
    assert cli.main(options) == 0 and "train" not in capsys.readouterr().err
    assert cli.main([*options, "--seed", "1"]) == 2
    assert "seed 0 (not 1) is kept there" in capsys.readouterr().err
    assert cli.main([*options, "--eval-part", "validation"]) == 0
    record = json.loads((tmp_path / "priors" / "digits_validation.json").read_text())
    assert record["data_sha256"] == dataset.load("digits", held_out=HELD_OUT).sha256


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--steps", "0"], "steps = 0"),
        (["--lr", "x"], "lr = 'x'"),
        (["--flip", "maybe"], "flip = 'maybe'"),
        (["--dataset", "absent"], "absent"),
        (["--size", "12"], "size = 12"),
        (["--score-width", "0"], "score_width = 0"),
        (["--eval-part", "train"], "eval_part = 'train'"),
    ],
)
def test_refusals_on_the_command_line(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*ON_THE_LINE, "--data-root", str(tmp_path), "--store", str(tmp_path / "s"), *options]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "s").exists()
