"""Benchmarks and their page: the page equals its sources, verdicts follow from numbers, the scripts run end to end."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import script

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"


page = script("performance")
sys.path.insert(0, str(BENCHMARKS))  # its scripts import each other by their plain names
import ceilings  # noqa: E402
import measure  # noqa: E402
import run_all  # noqa: E402

# --- results that nobody measured -------------------------------------------------------------------------------


def spread(median: float, width: float = 0.1) -> dict[str, Any]:
    return {"median": median, "low": median * (1 - width), "high": median * (1 + width), "coverage": 0.98, "rounds": 7}


def entry(ratio: float, milliseconds: float = 100.0, flops: int = 10**10) -> dict[str, Any]:
    kinds = {}
    for kind, ms in (("reference", ratio * milliseconds), ("library", milliseconds)):
        kinds[kind] = {"milliseconds": spread(ms), "flops": flops, "operand_bytes": 10**9, "peak_memory_mb": 300,
                       "gflop_per_second": flops / ms / 1e6, "operand_gb_per_second": 1e3 / ms}  # fmt: skip
    return {"ratio": spread(ratio), **kinds}


def results(kind: str = "cpu", ratio: float = 3.0, **changed: Any) -> dict[str, Any]:
    """A results file in which every ratio is `ratio`."""
    best = {"matmul_gflop_per_second": 200.0, "convolution_gflop_per_second": 100.0, "copy_gb_per_second": 20.0}
    best |= {"stack_bf16_images_per_second": 8000.0} if kind == "gpu" else {}
    parts: dict[str, Any] = {
        "training": {"ConvNet-3, width 128, batch 64": entry(ratio)},
        "augmentation": {"matching: shared draw, with gradient, 64 images": entry(ratio, flops=0)},
        "inner_step": {"published": entry(ratio, 9000.0)},
        "evaluation": {"5 networks, ConvNet-3, width 128": entry(ratio)},
        "growth": {"ipc": [{"setting": {"ipc": n}} | entry(ratio, 100.0 * n) for n in (1, 10)]},
        "laptop_memory": {"runs": 2, "largest_mb": 1500.0, "by_method": {"idc": {"runs": 2, "largest_mb": 1500.0}}},
    }
    parts["training"]["ConvNet-3, width 128, batch 64"]["library"]["images_per_second"] = 5000.0
    found = {"format": page.FORMAT, "device": f"{kind}-x", "kind": kind, "words": kind, "threads": 2, "clock": "wall",
             "quick": False, "complete": True, "versions": {"python": "3.12.0", "torch": "2.6.0"}, "commit": "",
             "seconds": 1, "ceilings": best, "results": ceilings.with_shares(parts, best)}  # fmt: skip
    return found | changed


def repository(root: Path, *files: dict[str, Any]) -> Path:
    (root / "book").mkdir()
    (root / page.RESULTS).mkdir(parents=True)
    for number, found in enumerate(files):
        (root / page.RESULTS / f"{number}.json").write_text(json.dumps(found))
    (root / page.RESULTS / "risk_old.json").write_text('{"device": "another format"}')
    return root


def rows(root: Path) -> dict[str, list[str]]:
    """The table of targets: work -> its cells."""
    lines = [line for line in (root / page.PAGE).read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in cells if len(row) == 7}


# --- the page ---------------------------------------------------------------------------------------------------


def test_the_committed_page_equals_its_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert page.main(["--check"]) == 0, capsys.readouterr().err


def test_what_nobody_measured_is_called_so(tmp_path: Path) -> None:
    root = repository(tmp_path, results() | {"quick": True})
    assert page.main([], root) == 0
    table = rows(root)
    assert all(cell in ("not measured", "-") for row in list(table.values())[2:] for cell in (*row[1:3], *row[4:6]))
    assert "nothing has been measured" in (root / page.PAGE).read_text()
    assert not (root / page.FIGURES).exists()


@pytest.mark.parametrize(("ratio", "verdict"), [(3.0, "yes"), (2.1, "the median only"), (1.9, "no")])
def test_a_verdict_follows_from_the_interval(tmp_path: Path, ratio: float, verdict: str) -> None:
    root = repository(tmp_path, results(ratio=ratio))
    page.main([], root)
    (row,) = [cells for work, cells in rows(root).items() if work.startswith("network training")]
    assert row[2] == verdict
    assert row[5] == "not measured"


def test_upper_bounds_predictions_and_the_gpu_column(tmp_path: Path) -> None:
    run = {"dataset": "cifar10", "method": "idc", "ipc": 10, "scale": "gpu", "seconds": 300.0}
    gpu = results("gpu", 9.0, runs=[run, run | {"seconds": 660.0}, run | {"ipc": 1, "seconds": 1.0}])
    root = repository(tmp_path, results(), gpu)
    page.main([], root)
    table = {work.split(" (")[0].split(",")[0]: cells for work, cells in rows(root).items()}
    assert table["peak memory of a laptop run on CIFAR-10"][1:3] == ["1.5 GB", "yes"]
    assert table["CIFAR-10"][4:] == ["8 (5 to 11) min", "the median only"]
    assert table["full protocol"][5] == "no"  # 200,000 steps of 9 s
    assert table["network training on a distilled set"][5] == "yes"
    assert table["training: share of the arithmetic peak"][4:] == ["62.5 %", "yes"]
    assert "takes 500 hours here" in (root / page.PAGE).read_text()


def test_figures_are_small_labelled_and_described(tmp_path: Path) -> None:
    root = repository(tmp_path, results())
    page.main([], root)
    text = (root / page.PAGE).read_text()
    for name in ("roofline-cpu-x.svg", "growth-cpu-x.svg"):
        file = root / page.FIGURES / name
        assert 2_000 < file.stat().st_size < 150_000
        assert f"{{figure}} _static/performance/{name}\n:alt: " in text
    shown = page.figures([results()])
    assert [p["name"] for p in shown["roofline-cpu-x.svg"]["points"]] == [
        "training: ConvNet-3, width 128, batch 64", "evaluation: 5 networks, ConvNet-3, width 128",
        "IDC inner step: published",
    ]  # fmt: skip
    assert [point[0] for point in shown["growth-cpu-x.svg"]["ipc"]] == [1, 10]
    assert "From 1 to 10 images a class it costs 10 times as much (plain loop: 10)" in text


def test_every_colour_is_one_of_the_book() -> None:
    from rddlib.analysis.report import COLOURS

    assert {page.BLUE, page.ORANGE} <= set(COLOURS)


def test_check_writes_nothing_and_names_what_is_stale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = repository(tmp_path, results())
    assert page.main(["--check"], root) == 1
    assert not (root / page.PAGE).exists()
    page.main([], root)
    assert page.main(["--check"], root) == 0
    slower = copy.deepcopy(results())
    slower["results"]["growth"]["ipc"][0]["library"]["milliseconds"] = spread(150.0)
    (root / page.RESULTS / "0.json").write_text(json.dumps(slower))
    (root / page.FIGURES / "growth-gone.svg").write_text("<svg/>")
    capsys.readouterr()
    assert page.main(["--check"], root) == 1
    said = capsys.readouterr().err
    assert "performance.md differs" in said
    assert "growth-cpu-x.svg shows other numbers" in said
    assert "growth-gone.svg belongs to no results" in said
    assert "roofline" not in said
    page.main([], root)
    assert page.main(["--check"], root) == 0


# --- measuring --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3, 6, 9, 15])
def test_the_interval_of_a_median_covers_it_as_often_as_it_says(n: int) -> None:
    found = measure.spread([float(i) for i in range(n)])
    draws = np.random.default_rng(n).standard_exponential((20_000, n))
    draws.sort(axis=1)
    low, high = int(found["low"]), int(found["high"])
    covered = ((draws[:, low] <= np.log(2)) & (np.log(2) <= draws[:, high])).mean()
    assert abs(covered - found["coverage"]) < 0.02
    assert found["coverage"] >= 0.95 or (low, high) == (0, n - 1)


def test_rounds_end_with_their_time_but_not_before_the_least() -> None:
    assert measure.How(effort=0.1).rounds(9) == measure.LEAST
    assert measure.How(effort=2).rounds(9) == 18
    assert measure.How(quick=True).rounds(9) == 1


def test_names_of_devices_say_no_machine() -> None:
    assert measure.device_name("cpu", 2).startswith("cpu-2-threads-")


def test_shares_are_of_the_higher_ceiling() -> None:
    best = {"matmul_gflop_per_second": 50.0, "convolution_gflop_per_second": 200.0, "copy_gb_per_second": 20.0}
    found = ceilings.with_shares({"a": [entry(2.0)]}, best)["a"][0]
    assert found["library"]["share_of_arithmetic_peak"] == pytest.approx(0.5)
    assert found["library"]["share_of_copy"] == pytest.approx(0.5)


def test_a_part_without_time_is_left_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    kept: list[int] = []
    monkeypatch.setattr(run_all, "PARTS", {"first": (lambda how: {"x": 1}, 1.0)})
    monkeypatch.setattr(run_all, "ON_A_PROCESSOR", {})
    how = measure.How(quick=True)
    assert run_all.measured(how, 1.0, lambda found: kept.append(len(found["results"])))["results"] == {
        "first": {"x": 1}
    }
    assert run_all.measured(how, -1.0, lambda found: kept.append(0))["results"] == {}
    assert kept == [1]
    assert "not measured" in capsys.readouterr().out


def test_quick_results_need_a_place_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_all.main(["--quick"])
    assert "--out" in capsys.readouterr().err


def test_memory_is_that_of_laptop_runs_on_cifar10_by_a_processor(tmp_path: Path) -> None:
    import small

    (tmp_path / "runs" / "x").mkdir(parents=True)
    fits = {"scale": "laptop", "dataset": "cifar10", "method": "idc"}
    others = [fits | {"scale": "smoke"}, fits | {"dataset": "digits"}]
    kept = [(fits, 900.0, "cpu, 1 threads"), (fits, 1200.0, "cpu, 2 threads"), (fits, 9e3, "A100"),
            *((e, 9e3, "cpu") for e in others)]  # fmt: skip
    for number, (experiment, peak, device) in enumerate(kept):
        text = json.dumps({"experiment": experiment, "peak_memory_mb": peak, "device": device})
        (tmp_path / "runs" / "x" / f"{number}.json").write_text(text)
    assert small.laptop_memory(tmp_path)["by_method"] == {"idc": {"runs": 2, "largest_mb": 1200.0}}
    assert small.laptop_memory(tmp_path / "nothing")["largest_mb"] is None


# --- the session on a lent machine ------------------------------------------------------------------------------

SESSION = BENCHMARKS / "gpu_session.py"


def session(out: Path) -> list[str]:
    return ["--device", "cpu", "--scale", "smoke", "--out", str(out), "--grid", "sanity"]


def test_a_session_checks_measures_runs_and_can_be_merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_session

    from rddlib.experiments.merge import merge
    from rddlib.experiments.records import Store

    out = tmp_path / "out"
    command = [sys.executable, str(SESSION), *session(out), "--minutes", "10", "--runs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    found_checks = json.loads((out / "checks.json").read_text())
    assert len(found_checks) == 9
    assert all(check["passed"] for check in found_checks)
    (measured,) = out.glob("cpu-*.json")
    found = json.loads(measured.read_text())
    assert found["complete"]
    (key,) = [run["key"] for run in found["runs"]]
    assert merge(out / "store", Store(tmp_path / "home")).added == [key]
    assert {*run_all.PARTS, *run_all.ON_A_PROCESSOR} == set(found["results"])

    root = repository(tmp_path, found | {"quick": False})  # the page takes the very file
    assert page.main([], root) == 0
    assert page.main(["--check"], root) == 0
    assert torch.__version__.split("+")[0] in (root / page.PAGE).read_text()

    monkeypatch.setattr(gpu_session.checks, "everything", lambda device: iter([]))
    monkeypatch.setattr(gpu_session.run_all, "measured", lambda *_: pytest.fail("measured twice"))
    assert gpu_session.main([*session(out), "--minutes", "10", "--runs", "0"]) == 0
    assert json.loads(measured.read_text())["runs"] == found["runs"]


def test_a_failed_check_ends_the_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import checks
    import gpu_session

    wrong = checks.Check("planted", float("nan"), 1.0)
    monkeypatch.setattr(checks, "everything", lambda device: iter([wrong]))
    assert gpu_session.main(["--device", "cpu", "--scale", "smoke", "--minutes", "1", "--out", str(tmp_path)]) == 1
    (check,) = json.loads((tmp_path / "checks.json").read_text())
    assert not check["passed"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checks.json"]


def test_a_session_without_a_gpu_says_how_to_try_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import gpu_session

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert gpu_session.main(["--minutes", "1", "--out", str(tmp_path)]) == 2
    assert "--device cpu --scale smoke" in capsys.readouterr().err


def test_a_wrong_fast_form_is_seen_by_the_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    import checks

    from rddlib.distillation import loop

    right = loop.Loop._move
    monkeypatch.setattr(
        loop.Loop, "_move", lambda self, g: right(self, {c: {k: -v for k, v in g[c].items()} for c in g})
    )
    found = next(checks.pairs("planted", ("reference", "cpu"), ("library", "cpu")))
    assert not found.passed


def test_a_stopped_session_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu_session

    def stopped(how: measure.How, minutes: float, keep: Any) -> dict[str, Any]:
        keep({"results": {"training": 1}, "complete": False})
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu_session.checks, "everything", lambda device: iter([]))
    monkeypatch.setattr(gpu_session.run_all, "measured", stopped)
    with pytest.raises(KeyboardInterrupt):
        gpu_session.main([*session(tmp_path), "--minutes", "1"])
    (measured,) = tmp_path.glob("cpu-*.json")
    assert json.loads(measured.read_text())["results"] == {"training": 1}


# --- ideas weighed and left out -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1, 4, 4, 1), (2, 5, 12, 8, 7)], ids=str)
def test_the_minimal_filtering_is_a_convolution(shape: tuple[int, ...]) -> None:
    import bench_ideas

    n, c, h, w, o = shape
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(n, c, h, w, dtype=torch.float64, generator=rng)
    weight = torch.randn(o, c, 3, 3, dtype=torch.float64, generator=rng)
    plain = torch.nn.functional.conv2d(x, weight, padding=1)
    assert torch.allclose(bench_ideas.winograd(x, weight), plain, rtol=0, atol=1e-11)


def test_a_rival_that_takes_twice_as_long_has_a_ratio_of_two() -> None:
    import bench_ideas

    now = [0.0]

    def takes(seconds: float) -> Any:
        return lambda: now.__setitem__(0, now[0] + seconds)

    class Clock(measure.How):
        def clock(self) -> float:
            return now[0]

    found = bench_ideas.in_turn(takes(2.0), takes(1.0), Clock(), 5)["ratio"]
    assert (found["low"], found["median"], found["high"], found["rounds"]) == pytest.approx((2, 2, 2, 5))


# --- classes at once instead of one after another ---------------------------------------------------------------


def test_the_benchmark_of_the_switch_times_two_ways_to_one_end() -> None:
    """Equality in double precision is tested in test_classwise.py; here that the two kinds are what they say."""
    import batched

    from rddlib.distillation.batched import ClassLoop

    loops = []
    for kind in measure.KINDS:
        step = batched.work(kind, "cpu", batched.TINY | {"lr_image": 5.0})
        loop = step.__self__  # type: ignore[attr-defined]
        start = loop.codes["pixels"].clone()
        step()
        loops.append((type(loop), loop.codes["pixels"] - start))
    (one, way), (other, same) = loops
    assert one is not ClassLoop and other is ClassLoop
    assert way.abs().max() > 0.1 and torch.allclose(way, same, rtol=0, atol=1e-4)
