"""Runs end to end: keys, presets, resuming after kill -9, two processes and one key, the command line."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rddlib import cli, commands
from rddlib.analysis import results
from rddlib.base import SettingError
from rddlib.data.sources import DataError
from rddlib.distillation import synthetic
from rddlib.evaluation import evaluate
from rddlib.experiments import provenance
from rddlib.experiments.experiment import MODES, Experiment, gather, load_data, run
from rddlib.experiments.presets import SCALES
from rddlib.experiments.records import Store, StoreError

TINY = {
    "train_limit": 200,
    "test_limit": 100,
    "width": 4,
    "eval_width": 4,
    "outer_steps": 2,
    "inner_steps": 2,
    "batch_real": 8,
    "net_batch": 32,
    "eval_steps": 5,
    "eval_groups": 4,
    "eval_seeds": 2,
}


def tiny(**changes: object) -> Experiment:
    return Experiment.preset("smoke", **(TINY | changes))


# --- keys and presets -------------------------------------------------------------------------------------


def test_defaults_are_pinned() -> None:
    """A key hashes what differs from the defaults: a default that moved would give old keys a new meaning.

    A new setting may be added at the end; its default must be the behaviour before it.
    """
    first = {name: field.default for name, field in Experiment.declared().items()}
    pinned = json.loads((Path(__file__).parent / "defaults.json").read_text())
    assert {k: first[k] for k in pinned} == pinned
    assert tiny().key == "1d4ceb33253a5e76" and Experiment().key == "44136fa355b3678a"


def test_every_setting_that_matters_changes_the_key() -> None:
    base = tiny(risk="upper")
    for change in (
        {"alpha": 0.5},
        {"seed": 1},
        {"ipc": 2},
        {"scope": "class"},
        {"lr_image": 0.1},
        {"eval_steps": 6},
        {"dataset": "cifar10"},
        {"risk": "lower"},
        {"size": 16},
    ):
        assert dataclasses.replace(base, **change).key != base.key, change


def test_settings_without_effect_leave_the_key() -> None:
    assert tiny(risk="control", alpha=0.5, scope="class").key == tiny(risk="control").key
    assert tiny(method="random", risk="upper", lr_image=9.0, factor=2).key == tiny(method="random").key
    assert tiny(method="full", ipc=5).key == tiny(method="full").key
    assert tiny(method="mix", factor=2).key != tiny(method="mix").key


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("dataset", ["digits", "cifar10", "svhn", "imagenet_a"])
@pytest.mark.parametrize("ipc", [1, 10, 50])
def test_presets_exist_for_every_row(scale: str, dataset: str, ipc: int) -> None:
    e = Experiment.preset(scale, dataset=dataset, ipc=ipc)
    assert (e.scale, e.dataset, e.ipc) == (scale, dataset, ipc)


def test_paper_preset_is_the_protocol() -> None:
    e = Experiment.preset("paper", dataset="cifar10", ipc=10)
    assert (e.outer_steps, e.inner_steps, e.batch_real, e.lr_image, e.width, e.depth) == (2000, 100, 64, 5e-3, 128, 3)
    assert e.eval_steps == 7000 and e.net_batch == 256 and e.alpha == 0.8  # 1000 epochs of 400 images in batches of 64
    assert Experiment.preset("paper", ipc=1).lr_image == pytest.approx(5e-4)
    assert Experiment.preset("paper", ipc=50).lr_image == pytest.approx(2.5e-2)
    assert Experiment.preset("paper", dataset="svhn").net_steps == 2
    assert "flip" not in Experiment.preset("paper", dataset="svhn").eval_augment


def test_arms_differ_in_the_risk_alone() -> None:
    a, b = (dataclasses.asdict(Experiment.preset("laptop", risk=r)) for r in ("control", "upper"))
    assert {k for k in a if a[k] != b[k]} == {"risk"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dataste": "x"}, "field = 'dataste'"),
        ({"ipc": 0}, "ipc = 0"),
        ({"alpha": 2.0}, "alpha = 2.0"),
        ({"risk": "max"}, "risk = 'max'"),
        ({"seed": -1}, "seed = -1"),
        ({"eval_part": "train"}, "eval_part"),
    ],
)
def test_bad_settings_are_named(change: dict, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        Experiment.preset("smoke", **change)
    with pytest.raises(SettingError, match="scale = 'huge'"):
        Experiment.preset("huge")


# --- runs -------------------------------------------------------------------------------------------------


def test_a_run_leaves_a_record_and_its_set(tmp_path: Path) -> None:
    store, e = Store(tmp_path), tiny(risk="upper")
    record = run(e, store)
    assert store.records("digits_smoke") == [record] and record.key == e.key
    assert Experiment(**record.experiment) == e
    assert len(record.metrics["accuracy"]) == 2 and sum(record.metrics["group_sizes"]) == 100
    assert set(record.metrics) >= {"noise", "blur", "invert", "cluster_min", "class_min", "groups_sha256"}
    assert record.seconds["distill"] > 0 and record.peak_memory_mb > 50 and record.versions["torch"]
    assert record.current and record.results == provenance.RESULTS
    made = synthetic.read(store.distilled(e.set_key))
    data = load_data(e)
    again = evaluate.evaluate(*made.decoded(), data, e, e.seed)
    assert again["accuracy"] == record.metrics["accuracy"]  # what is kept is what was judged
    assert not store.work(e.key).exists()


@pytest.mark.parametrize("method", ["random", "first_n", "herding", "mix", "full"])
def test_real_images_are_never_kept(tmp_path: Path, method: str) -> None:
    store = Store(tmp_path)
    run(tiny(method=method), store)
    assert not (tmp_path / "distilled").exists()
    assert len(store.records()) == 1


def test_the_same_key_never_runs_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, e = Store(tmp_path), tiny()
    first = run(e, store)
    monkeypatch.setattr("rddlib.experiments.experiment._make", lambda *_: pytest.fail("ran again"))
    assert run(e, store) == first


def test_refusals_come_before_any_work(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for e, error in (
        (tiny(dataset="nothing"), SettingError),
        (tiny(dataset="cifar10"), DataError),
        (tiny(ipc=150), SettingError),
    ):
        with pytest.raises(error):
            run(e, store, data_root=tmp_path)
    assert not list(store.root.rglob("*.json")) and not list(store.root.rglob("*.pt"))


@pytest.mark.parametrize(("name", "value"), [("eval_depth", 4), ("eval_groups", 101)])
def test_evaluation_that_cannot_be_is_refused_before_distilling(tmp_path: Path, name: str, value: int) -> None:
    with pytest.raises(SettingError, match=f"{name} = {value}"):
        run(tiny(**{name: value}), Store(tmp_path))
    assert not list(tmp_path.rglob("*.pt")) and not list(tmp_path.rglob("*.npz"))


def test_modes_of_a_page(tmp_path: Path) -> None:
    store, experiments = Store(tmp_path), [tiny(seed=s, method="random") for s in range(2)]
    with pytest.raises(StoreError, match="2 of 2 records .* mode='run'"):
        gather(experiments, "load", store)
    made, _ = gather(experiments, "run", store, progress=False)
    assert gather(experiments, "load", store)[0] == made
    live, elsewhere = gather(experiments[:1], "live", progress=False)
    assert live[0].metrics == made[0].metrics and elsewhere.root != store.root
    with pytest.raises(SettingError, match="mode = 'fast'"):
        gather(experiments, "fast", store)
    assert MODES == ("load", "run", "live")


# --- processes --------------------------------------------------------------------------------------------

SLOW = {**TINY, "outer_steps": 24, "inner_steps": 3, "risk": "upper"}


def command(store: Path, settings: dict, *more: str) -> list[str]:
    options = [text for k, v in settings.items() for text in (f"--{k.replace('_', '-')}", str(v))]
    return [sys.executable, "-m", "rddlib", "run", "--store", str(store), *options, *more]


def start(store: Path, settings: dict) -> subprocess.Popen[str]:
    quiet = os.environ | {"OMP_NUM_THREADS": "1"}
    # A shell that starts the tests in the background has them ignore Ctrl-C, and children inherit that.
    listen = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        command(store, settings), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=quiet,
        preexec_fn=listen,
    )  # fmt: skip


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.is_file():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.02)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_goes_on_and_equals_the_uninterrupted_one(tmp_path: Path, how: signal.Signals) -> None:
    e = Experiment.preset("smoke", **SLOW)
    process = start(tmp_path / "broken", SLOW)
    wait_for(Store(tmp_path / "broken").work(e.set_key) / "state.pt", process)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (130 if how == signal.SIGINT else -9)
    if how == signal.SIGINT:
        assert "interrupted" in errors and "goes on from there" in errors
    assert Store(tmp_path / "broken").find(e.key) is None
    finished = subprocess.run(
        command(tmp_path / "broken", SLOW),
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert e.key in finished.stdout
    resumed, whole = Store(tmp_path / "broken").match(e.key), run(e, Store(tmp_path / "whole"))
    assert resumed.metrics == whole.metrics and resumed.history == whole.history
    one, two = (synthetic.read(tmp_path / d / "distilled" / f"{e.set_key}.npz") for d in ("broken", "whole"))
    assert (one.images == two.images).all()


def test_two_processes_one_key_one_result(tmp_path: Path) -> None:
    settings = {**TINY, "outer_steps": 8}
    both = [start(tmp_path, settings) for _ in range(2)]
    outputs = [p.communicate(timeout=180) for p in both]
    assert [p.returncode for p in both] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0] != ""  # the very same record, seconds and all
    assert len(Store(tmp_path).records()) == 1


# --- the command line -------------------------------------------------------------------------------------


def test_command_line_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = command(tmp_path, {**TINY, "method": "random", "eval_shifts": "false", "size": "none"})[3:]
    assert cli.main(options) == 0
    line = capsys.readouterr().out
    assert "digits random" in line and "accuracy" in line and "computed now" in line
    assert cli.main(options) == 0 and "found, nothing was computed" in capsys.readouterr().out
    assert cli.main(["list", "--store", str(tmp_path)]) == 0 and line[:16] in capsys.readouterr().out.splitlines()[1]
    assert cli.main(["show", line[:6], "--store", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["experiment"]["eval_shifts"] is False


def test_unknown_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--ipcs", "3"]) == 2
    assert capsys.readouterr().err == "rddlib: Unknown option: --ipcs. Did you mean --ipc?\n"


def test_help_names_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name, field in Experiment.declared().items():
        by_hand = name in commands.BY_HAND
        assert (f"--{name.replace('_', '-')} VALUE {field.description}" in text) == by_hand


def test_help_opens_with_ten_options_and_shows_the_defaults_of_the_scale(capsys: pytest.CaptureFixture[str]) -> None:
    """Of the data set and the method that are named, too: their presets differ."""
    for chosen in (["--scale", "smoke"], ["--scale=laptop", "--method", "dm"], ["--scale", "huge"], []):
        assert cli.main(["run", *chosen, "--help"]) == 0
        lines = capsys.readouterr().out.replace("│", " ").splitlines()
        first = lines[: next(i for i, line in enumerate(lines) if line.startswith("╰"))]
        assert len([line for line in first if line.split()[:1] and line.split()[0].startswith("--")]) == 10
        made = Experiment.preset("laptop", method="dm") if "dm" in chosen else Experiment.preset("smoke")
        text = " ".join(" ".join(lines).split())
        for name in ("outer_steps", "lr_image", "eval_steps"):
            option = text[text.index(f"--{name.replace('_', '-')} VALUE") :]
            assert option[option.index("[default: ") :].startswith(f"[default: {getattr(made, name)}]")


@pytest.mark.realdata
def test_cifar10_run_on_real_images(real_data: Path, tmp_path: Path) -> None:
    """Distilled images must beat their own start, by a margin that a loop without effect does not reach."""
    small = {"dataset": "cifar10", "train_limit": 5000, "test_limit": 1000, "ipc": 5, "factor": 1, "outer_steps": 2}
    small |= {
        "inner_steps": 10,
        "width": 16,
        "eval_width": 16,
        "eval_steps": 150,
        "eval_seeds": 2,
        "eval_shifts": False,
    }
    drawn = run(Experiment.preset("laptop", **small, method="mix"), Store(tmp_path), data_root=real_data)
    made = run(Experiment.preset("laptop", **small), Store(tmp_path), data_root=real_data)
    gain = sum(made.metrics["accuracy"]) / 2 - sum(drawn.metrics["accuracy"]) / 2
    assert gain > 2, gain


def test_runs_that_differ_in_their_evaluation_share_one_distilled_set(tmp_path: Path) -> None:
    """The set is made once; its price is named by both records, and other distillation settings make another."""
    store, one = Store(tmp_path), tiny()
    other = dataclasses.replace(one, eval_steps=one.eval_steps + 1)
    assert one.set_key == other.set_key != dataclasses.replace(one, seed=9).set_key
    assert one.set_key != dataclasses.replace(one, eval_part="validation").set_key  # less training data
    first = run(one, store)
    written = store.distilled(one.set_key).stat().st_mtime_ns
    second = run(other, store)
    assert store.distilled(one.set_key).stat().st_mtime_ns == written and len(list(tmp_path.glob("distilled/*"))) == 1
    assert first.seconds["distill"] == second.seconds["distill"] > 0 and first.history == second.history
    assert tiny(method="random").set_key == ""


def test_a_distilled_set_of_another_results_version_is_made_again(tmp_path: Path) -> None:
    store, one = Store(tmp_path), tiny()
    run(one, store)
    file = store.distilled(one.set_key)
    made, about = synthetic.read(file), synthetic.about(file)
    synthetic.save(file, made, **(about | {"results": str(provenance.RESULTS + 1)}))
    run(dataclasses.replace(one, eval_steps=one.eval_steps + 1), store)
    assert synthetic.about(file)["results"] == about["results"]


def test_presets_bring_the_numbers_of_the_recipe_and_of_the_network() -> None:
    glad = Experiment.preset("laptop", dataset="cifar10", eval_recipe="glad")
    assert (glad.eval_lr, glad.eval_batch, glad.eval_cutmix) == (0.001, 256, 0.0)
    assert "flip" not in Experiment.preset("smoke", eval_recipe="dc").eval_augment  # digits are read
    assert Experiment.preset("paper", eval_network="vit").eval_width == 512
    assert Experiment.preset("laptop", eval_network="resnet18").eval_width == 8
    assert Experiment.preset("paper", method="dsa", ipc=10).net_steps == 50
    assert Experiment.preset("paper", method="dsa", ipc=50).inner_steps == 50
    twenty = Experiment.preset("paper", method="dc", ipc=20)
    assert (twenty.inner_steps, twenty.net_steps) == (20, 25)


@pytest.mark.parametrize("method", ["dc", "dsa", "dm"])
def test_every_method_runs_at_smoke_scale(tmp_path: Path, method: str) -> None:
    record = run(tiny(**{"method": method, "outer_steps": 2, "factor": 1}), Store(tmp_path))
    assert record.set_key and record.metrics["accuracy"] and record.history[0]["distance"] > 0


def test_kip_is_refused_before_any_work_and_judged_by_its_own_kernel_too(tmp_path: Path) -> None:
    seen = []
    kip = tiny(method="kip", kip_steps=40, kip_batch=50, factor=1)
    record = run(kip, Store(tmp_path), progress=lambda *step: seen.append(step[:3]))
    assert [step for step in seen if step[0] == "distill"] == [("distill", 20, 40), ("distill", 40, 40)]
    assert 0 <= record.metrics["kernel_accuracy"][0] <= 100 and results.arm(record.experiment) == "KIP"
    with pytest.raises(SettingError, match="kip_batch"):
        run(tiny(method="kip", kip_batch=10**6, factor=1), Store(tmp_path))
