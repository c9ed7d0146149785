"""Benchmarks and their page: tables and numbers are those of their sources, the scripts run end to end."""

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
from pretend_gpu import DEVICE, pretended
from scipy import stats

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"


page = script("performance")
sys.path.insert(0, str(BENCHMARKS))  # its scripts import each other by their plain names
import card  # noqa: E402
import checks  # noqa: E402
import measure  # noqa: E402
import run_all  # noqa: E402

# --- results that nobody measured -------------------------------------------------------------------------------

WIDE = "ConvNet-3, width 128, batch 64"
TEMPLATE = "".join(f"<!-- table: {name} -->\nold\n<!-- end -->\n" for name in page.TABLES)


def spread(median: float, width: float = 0.1) -> dict[str, Any]:
    return {"median": median, "low": median * (1 - width), "high": median * (1 + width), "coverage": 0.98, "rounds": 7}


def entry(ratio: float, milliseconds: float = 100.0, flops: int = 10**10) -> dict[str, Any]:
    kinds = {}
    for kind, ms in (("reference", ratio * milliseconds), ("library", milliseconds)):
        kinds[kind] = {"milliseconds": spread(ms), "flops": flops, "operand_bytes": 10**9,
                       "gflop_per_second": flops / ms / 1e6}  # fmt: skip
    return {"ratio": spread(ratio), **kinds}


def results(kind: str = "cpu", milliseconds: float = 100.0, **changed: Any) -> dict[str, Any]:
    best = {"matmul_gflop_per_second": 100.0, "convolution_gflop_per_second": 200.0, "copy_gb_per_second": 20.0}
    parts: dict[str, Any] = {
        "training": {WIDE: entry(3.0, milliseconds)},
        "augmentation": {"matching": entry(3.0, flops=0)},
        "growth": {"ipc": [{"setting": {"ipc": n}} | entry(3.0, 100.0 * n) for n in (1, 10)]},
    }
    found = {"format": page.FORMAT, "device": f"{kind}-x", "kind": kind, "threads": 2, "quick": False,
             "ceilings": best, "results": parts}  # fmt: skip
    return found | changed


def repository(root: Path, *files: dict[str, Any]) -> Path:
    (root / "book").mkdir()
    (root / page.PAGE).write_text(TEMPLATE)
    (root / page.RESULTS).mkdir(parents=True)
    for number, found in enumerate(files):
        (root / page.RESULTS / f"{number}.json").write_text(json.dumps(found))
    (root / page.RESULTS / "other.json").write_text('{"device": "another format"}')
    return root


def rows(root: Path) -> dict[str, list[str]]:
    """All tables of a page: work -> its cells."""
    lines = [line for line in (root / page.PAGE).read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {f"{row[0]}, {len(row)}": row[1:] for row in cells}


# --- the page ---------------------------------------------------------------------------------------------------


def test_the_committed_tables_and_figures_are_those_of_their_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert page.main(["--check"]) == 0, capsys.readouterr().err


def test_numbers_of_the_committed_prose_are_those_of_the_results() -> None:
    """Those that the page takes from the benchmark; what was measured against the published code stands in issue 16."""
    text = " ".join((ROOT / page.PAGE).read_text().split())
    found = page.first(page.read(ROOT), "cpu")
    parts, best = found["results"], found["ceilings"]
    step = parts["inner_step"]["published"]
    number = page.number

    def told(spread: dict[str, Any]) -> str:
        return f"{number(spread['median'])} times ({number(spread['low'])} to {number(spread['high'])})"

    hours = [number(step[kind]["milliseconds"]["median"] * 200_000 / 3.6e6) for kind in ("library", "reference")]
    share = 100 * step["library"]["gflop_per_second"] / page.peak(found)
    ideas, risk = parts["ideas"], parts["risk"]["over_group_cvar"]
    compiled = [ideas[f"torch.compile, width {width}"] for width in (128, 32)]
    said = [
        f"takes {step['library']['milliseconds']['median'] / 1e3:.2f} s, {told(step['ratio'])} as fast",
        f"{share:.0f} % of what the processor can do", f"takes {hours[0]} hours", f"against {hours[1]} by the plain",
        f"at most {number(parts['laptop_memory']['largest_mb'] / 1e3)} GB",
        f"{number(best['convolution_gflop_per_second'])} GFLOP/s by a wide convolution",
        f"{number(best['matmul_gflop_per_second'])} GFLOP/s by a matrix",
        f"moves {number(best['copy_gb_per_second'])} GB",
        f"takes {told(ideas['Winograd F(4 x 4, 3 x 3)']['ratio'])}",
        f"{number(compiled[0]['ratio']['median'])} times as long", f"{told(compiled[1]['ratio'])}",
        " and ".join(number(each["first_call_seconds"]) for each in compiled),
        f"takes {number(parts['batched']['laptop']['ratio']['median'])} times as long",
        f"takes {told(risk['loop over groups and samples'])}", f"{number(risk['one torch.sort']['median'])} times",
    ]  # fmt: skip
    for name, low, high in (("ipc", 1, 30), ("width", 16, 128), ("resolution", 16, 64)):
        ends = [each["library"]["milliseconds"]["median"] for each in parts["growth"][name]]
        said.append(f"{number(ends[-1] / ends[0])} times")
        assert f"rom {low} to {high} " in text
    assert [words for words in said if words not in text] == []


def test_what_nobody_measured_is_called_so(tmp_path: Path) -> None:
    root = repository(tmp_path, results() | {"quick": True})
    assert page.main([], root) == 0
    assert len(rows(root)) >= len(page.TABLES)
    assert all(cell == "not measured" for name, row in rows(root).items() if name.startswith("not") for cell in row)
    assert "old" not in (root / page.PAGE).read_text()
    assert not (root / page.FIGURES).exists()


def test_cells_follow_from_the_results(tmp_path: Path) -> None:
    root = repository(tmp_path, results(), results("gpu", milliseconds=2.0))
    page.main([], root)
    table = rows(root)
    assert table[f"training: {WIDE}, 5"] == ["300", "100", "3 x (2.7 to 3.3)", "2"]
    assert table["DSA: matching, 5"][-1] == "100"
    assert table[f"training: {WIDE}, 4"] == ["10", "17 %", "50 %"]  # 10 GFLOP in 300 and 100 ms, of 200 GFLOP/s
    assert "DSA: matching, 4" not in table


@pytest.mark.parametrize("sd", [0.1, 0.48, 1.38, 3.0])
def test_the_seeds_for_an_interval_are_the_fewest(sd: float) -> None:
    seeds = page.seeds_for(1.0, sd)
    widths = [stats.t.interval(0.95, n - 1, scale=sd / np.sqrt(n))[1] for n in range(2, seeds + 1)]
    assert widths[-1] <= 1 and all(width > 1 for width in widths[:-1])


def test_figures_are_small_and_show_what_is_there(tmp_path: Path) -> None:
    root = repository(tmp_path, results())
    counted = {"work": "a step", "before": 10, "now": 5, "goal": None}
    (root / page.RESULTS / "operations.json").write_text(json.dumps({"operations": {"a": counted}, "waits": {}}))
    page.main([], root)
    shown = page.figures(root)
    assert [p["name"] for p in shown["roofline.svg"]["points"]] == [f"training: {WIDE}"]
    assert [point[0] for point in shown["growth.svg"]["ipc"]] == [1, 10]
    assert shown["operations.svg"] == {"a step": [10, 5]}
    for name in shown:
        assert 2_000 < (root / page.FIGURES / name).stat().st_size < 150_000
        assert f"{{figure}} _static/performance/{name}\n:alt: " in (ROOT / page.PAGE).read_text()


def test_check_writes_nothing_and_names_what_is_stale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = repository(tmp_path, results())
    assert page.main(["--check"], root) == 1
    assert (root / page.PAGE).read_text() == TEMPLATE
    page.main([], root)
    assert page.main(["--check"], root) == 0
    slower = copy.deepcopy(results())
    slower["results"]["growth"]["ipc"][0]["library"]["milliseconds"] = spread(150.0)
    (root / page.RESULTS / "0.json").write_text(json.dumps(slower))
    (root / page.FIGURES / "gone.svg").write_text("<svg/>")
    (root / page.PAGE).write_text((root / page.PAGE).read_text().replace("| 300 |", "| 299 |"))
    capsys.readouterr()
    assert page.main(["--check"], root) == 1
    said = capsys.readouterr().err
    assert "performance.md differs" in said
    assert "growth.svg shows other numbers" in said
    assert "gone.svg belongs to no results" in said
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


def test_a_part_without_time_is_left_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    kept: list[int] = []
    monkeypatch.setattr(run_all, "PARTS", {"first": (lambda how: {"x": 1}, 1.0)})
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
    assert len(found_checks) == 6
    assert all(check["passed"] for check in found_checks)
    (measured,) = out.glob("cpu-*.json")
    found = json.loads(measured.read_text())
    assert found["complete"]
    assert len(merge(out / "store", Store(tmp_path / "home")).added) == 1
    assert set(run_all.PARTS) == set(found["results"])

    root = repository(tmp_path, found | {"quick": False, "threads": 2})  # the page takes the very file
    assert page.main([], root) == 0
    assert page.main(["--check"], root) == 0
    assert f"training: {WIDE}, 4" in rows(root)

    monkeypatch.setattr(gpu_session.checks, "everything", lambda device: iter([]))
    monkeypatch.setattr(gpu_session.run_all, "measured", lambda *_: pytest.fail("measured twice"))
    assert gpu_session.main([*session(out), "--minutes", "10", "--runs", "0"]) == 0


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


@pytest.mark.parametrize("kind", measure.KINDS)
def test_both_ways_of_the_checks_run_on_a_card(kind: str) -> None:
    """A card found the plain loop mixing tensors of both devices; the pretended one would have."""
    start, end = checks.inner_steps((kind, "cpu"))
    with pretended():
        start_there, end_there = checks.inner_steps((kind, DEVICE))
        checks.training((kind, DEVICE))
    way = (end - start).abs().max()
    assert float((end_there.cpu() - end).abs().max()) <= checks.ROUNDING * float(way)
    assert torch.allclose(start_there.cpu(), start, atol=1e-5)


def test_inner_steps_of_a_card_are_timed_from_one_start() -> None:
    found = card.compare("upper", "cpu", 1, width=4, batch_real=8, net_batch=16)
    assert found["one_by_one_ms"] > 0
    assert found["two_runs_apart"] == 0  # a processor makes the same sums again


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
