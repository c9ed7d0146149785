"""The generated pages: what a claim's row says, what things cost, and which pages are stale."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import script, unmade

from rddlib.analysis import claims, rules, verdicts
from rddlib.experiments import grid
from rddlib.experiments.experiment import Experiment
from rddlib.experiments.grid import Ledger
from rddlib.experiments.records import Record, Store
from rddlib.stats import paired_difference

ROOT = Path(__file__).resolve().parent.parent


costs, build, pages = script("costs"), script("build"), script("verdicts")


def record(experiment: Experiment, accuracy: float = 50.0, **changed: Any) -> Record:
    metrics = {"accuracy": [accuracy, accuracy + 1], "cluster_min": [accuracy - 9, accuracy - 8],
               "group_sizes": [400, 600]}  # fmt: skip
    metrics = changed.pop("metrics", metrics)
    known = {"set_key": experiment.set_key, "seconds": {"distill": 100.0, "evaluate": 20.0},
             "cpu_seconds": {"distill": 60.0, "evaluate": 20.0}, "peak_memory_mb": 900.0, "device": "cpu, 1 threads",
             "commit": "abc"}  # fmt: skip
    return unmade(experiment, metrics, **known | changed)


def arm(seeds: int = 3, **settings: object) -> list[Experiment]:
    return [Experiment.preset("laptop", dataset="cifar10", seed=s, **settings) for s in range(seeds)]


def notebook(keys: list[str], mode: str = '"load"') -> str:
    output = {"output_type": "execute_result", "data": {"text/plain": " ".join(keys), "image/png": "0123456789abcdef"}}
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": ["# Title"]},
        {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "outputs": [],
         "source": ["ipc = 1\n", f"mode = {mode}  # load"]},
        {"cell_type": "code", "metadata": {}, "source": ["x"], "outputs": [output]},
    ]  # fmt: skip
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


@pytest.fixture
def book(tmp_path: Path) -> tuple[Path, Store, list[Record]]:
    """A repository with one page and the three records that it shows."""
    store, made = Store(tmp_path / "data"), [record(e) for e in arm()]
    for r in made:
        store.add(r, "group")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "30_page.ipynb").write_text(notebook([r.key for r in made]))
    (tmp_path / "notebooks" / "01_live.ipynb").write_text(notebook([made[0].key], '"live"'))
    costs.note(tmp_path, costs.notebooks(tmp_path), store)
    return tmp_path, store, made


# --- stale pages ------------------------------------------------------------------------------------------


def test_a_page_of_todays_records_and_code_is_not_stale(book: tuple[Path, Store, list[Record]]) -> None:
    root, store, _ = book
    assert costs.stale_pages(root, Ledger(store)) == {}


def test_a_changed_record_makes_its_pages_stale_and_noting_them_again_ends_that(
    book: tuple[Path, Store, list[Record]],
) -> None:
    root, store, made = book
    store.add(dataclasses.replace(made[1], created="2026-02-02"), "group")
    found = costs.stale_pages(root, Ledger(store))
    assert list(found) == ["30_page.ipynb"]
    assert found["30_page.ipynb"] == [f"1 of 3 records changed since the page was executed (first: {made[1].key})"]
    costs.note(root, costs.notebooks(root), store)
    assert costs.stale_pages(root, Ledger(store)) == {}


def test_a_page_of_a_grid_knows_its_records_without_naming_them(book: tuple[Path, Store, list[Record]]) -> None:
    """A record that arrives after the page was executed, or changes, is noticed."""
    root, store, made = book
    cells = json.loads(notebook([]))
    cells["cells"][2]["source"] = ['scale = "laptop"\n', 'page = Page.of("table2", scale, dataset, mode)']
    (root / "notebooks" / "31_sums.ipynb").write_text(json.dumps(cells))
    costs.note(root, costs.notebooks(root), store)
    assert costs.stale_pages(root, Ledger(store)) == {}
    store.add(dataclasses.replace(made[0], created="2026-02-02"), "group")
    store.add(record(Experiment.preset("laptop", dataset="cifar10", seed=3)), "group")
    said = " ".join(costs.stale_pages(root, Ledger(store))["31_sums.ipynb"])
    assert "1 of 4 records changed since" in said and "1 of 4 records are new since" in said


def test_a_page_of_two_scales_knows_the_records_of_both(tmp_path: Path) -> None:
    cells = json.loads(notebook([]))
    cells["cells"][1]["source"] = ['scale = "laptop"\n', 'judged = "cpu"\n']
    cells["cells"][2]["source"] = ['Page.of("table2", scale, dataset)\n', 'Page.of(\n    "table2", judged, dataset\n)']
    page = tmp_path / "31_both.ipynb"
    page.write_text(json.dumps(cells))
    of_scale = {scale: {job.key for job in grid.jobs(["table2"], scale)} for scale in ("laptop", "cpu")}
    assert set(costs.of_grid(page)) == of_scale["laptop"] | of_scale["cpu"]
    assert not of_scale["laptop"] & of_scale["cpu"]


def test_another_results_version_and_a_missing_record_make_a_page_stale(book: tuple[Path, Store, list[Record]]) -> None:
    root, store, made = book
    store.add(record(arm()[0], results=0), "group")
    (store.root / "runs" / "group" / f"{made[2].key}.json").unlink()
    said = " ".join(costs.stale_pages(root, Ledger(store))["30_page.ipynb"])
    assert "1 of 3 records made by code that has changed since" in said
    assert "1 of 3 records no longer there" in said


def test_the_build_marks_a_stale_page_and_fills_in_the_fragments(
    tmp_path: Path, book: tuple[Path, Store, list[Record]]
) -> None:
    _, store, made = book
    source, fragments = tmp_path / "source", tmp_path / "made"
    (source / "book").mkdir(parents=True)
    (source / "notebooks").mkdir()
    fragments.mkdir()
    (source / "book" / "a.md").write_text("# A\n\n<!-- generated: cost -->\n\nthe end\n")
    (source / "notebooks" / "30_page.ipynb").write_text(notebook([]))
    (fragments / "cost.md").write_text("a \\1 fragment")
    (fragments / "stale.json").write_text(json.dumps({"30_page.ipynb": ["2 records changed"]}))
    said = build.fill(source, fragments, sorted(store.root.glob("runs/*/*.json")))
    assert "30_page.ipynb" in said
    assert (source / "book" / "a.md").read_text() == "# A\n\na \\1 fragment\n\nthe end\n"
    cells = json.loads((source / "notebooks" / "30_page.ipynb").read_text())["cells"]
    assert len(cells) == 4 and "This page is stale: 2 records changed." in cells[1]["source"]
    copied = source / "book" / "_static" / "records" / f"{made[0].key}.json"
    assert json.loads(copied.read_text())["key"] == made[0].key
    (source / "book" / "b.md").write_text("<!-- generated: nothing -->")
    with pytest.raises(build.StepError, match=r"book/b\.md asks for nothing"):
        build.fill(source, fragments, [])


def test_keys_in_a_pages_tables_become_links_and_nothing_else_does(tmp_path: Path) -> None:
    keys, page = ["0123456789abcdef", "fedcba9876543210"], tmp_path / "page.ipynb"
    html = "<p>01234567</p><td>01234567 fedcba98</td><td>0123456789abcdef</td><td>deadbeef 012345678</td>"
    cells = [{"cell_type": "code", "source": "01234567", "outputs": [
        {"output_type": "execute_result", "data": {"text/html": list(html), "text/plain": "01234567"}}]}]  # fmt: skip
    page.write_text(json.dumps({"cells": cells}))
    build.link_records(page, keys)
    (output,) = (cell := json.loads(page.read_text())["cells"][0])["outputs"]
    found = re.findall(r'<a href="../book/records.html#record-(\w+)">(\w+)</a>', output["data"]["text/html"])
    assert found == [(keys[0], "01234567"), (keys[1], "fedcba98"), (keys[0], keys[0])]
    assert re.sub(r"</?a[^>]*>", "", output["data"]["text/html"]) == html
    assert cell["source"] == output["data"]["text/plain"] == "01234567"


def test_pages_of_the_book_are_named_where_they_are_stale() -> None:
    """Not a failure: an edit of the library may come before its runs. The build marks these pages."""
    if found := costs.stale_pages(ROOT, Ledger(Store(ROOT / "data"))):
        pytest.xfail("stale pages: " + "; ".join(f"{page}: {', '.join(why)}" for page, why in found.items()))


# --- what things cost -------------------------------------------------------------------------------------


def test_a_shared_set_is_paid_once_and_processor_time_counts_where_it_is_less() -> None:
    one, other = record(arm(1)[0]), record(arm(1, eval_network="vgg11")[0])
    assert one.set_key == other.set_key
    assert costs.seconds([one]) == 80 and costs.seconds([one, other]) == 100
    assert costs.seconds([record(e) for e in arm(2, method="random")]) == 160


def test_cost_tables_name_runs_memory_and_commands(book: tuple[Path, Store, list[Record]]) -> None:
    root, store, made = book
    found = costs.fragments(root, Ledger(store), stale=())
    assert "| `group` | 3 | 4 min | 80 s to 80 s | 900 MB | cpu, 1 thread |" in found["cost_runs"]
    assert (
        "| 30 [Title](../notebooks/30_page.ipynb) | not measured | - | 3 runs, 4 min | 900 MB |" in found["cost_pages"]
    )
    assert "computed live" in found["cost_pages"]
    assert found["cost_budgets"].count("python -m rddlib grid table1") == 4
    assert "--budget-minutes 10" in found["cost_budgets"] and "--scale gpu --device cuda" in found["cost_budgets"]
    assert all(f'id="record-{r.key}"' in found["records"] for r in made)


def test_a_budget_buys_runs_in_their_order_and_no_more_than_it_can_pay(book: tuple[Path, Store, list[Record]]) -> None:
    ledger = Ledger(book[1])
    chosen, spent, of, _ = costs.plan("laptop", ledger, 10)
    assert spent <= 600 and 0 < len(chosen) < of
    more = costs.plan("laptop", ledger, 60)
    assert [j.key for j in more[0]][: len(chosen)] == [j.key for j in chosen]


# --- a claim's row ----------------------------------------------------------------------------------------


def test_a_row_shows_both_numbers_floor_ceiling_null_and_links(tmp_path: Path) -> None:
    """The worst cluster of IDC with the upper tail, from records that gain five points in a loop that learns."""
    store = Store(tmp_path / "data")
    learnt = [{"cross_entropy": 1.5}]
    for risk, level in {"upper": 55.0, "control": 50.0}.items():
        for n, e in enumerate(arm(risk=risk, ipc=10)):
            store.add(record(e, level + n + (0.2 * n if risk == "upper" else 0), history=learnt), "runs")
    for e in arm(method="random", ipc=10):
        store.add(record(e, 30.0), "runs")
    ledger = Ledger(store)
    (claim,) = [c for c in claims.read() if c.id == "t2-cifar10-cluster_min-idc-upper"]
    (found,) = verdicts.judge([claim], ledger.records, claims.Plan(["table2"]))
    text = pages.row(found, ledger, ROOT, (0.04, 0.02))
    assert 'data-verdict="undecided"' in text and "gate not run" in text and "65.0 − 63.3 = +1.7" in text
    assert "47.7 − 42.5: +5.2 [" in text and "n = 3" in text
    assert "floor 21.5" in text and "ceiling" not in text and "p 0.040 (Holm), 0.020" in text
    assert "if all clusters were equally hard" in text and "2 clusters of 400 to 600" in text
    assert all(f'records.html#record-{k}"' in text for k in found.keys())  # noqa: SIM118 (a method)
    assert "laptop; " in text and "5 of the seeds were there when the threshold was fixed" in text
    noted = dataclasses.replace(found, claim=dataclasses.replace(claim, why="at <another> arm's rate"))
    assert "; at &lt;another&gt; arm&#x27;s rate</span></td>" in pages.row(noted, ledger, ROOT)


def test_the_figure_names_what_the_term_changes_and_leaves_out_what_cannot_be_judged(tmp_path: Path) -> None:
    by_id = {c.id: c for c in claims.read()}
    chosen = [by_id["t1-cifar10-10-idc-upper"], by_id["t1-cifar10-10-idc-lower"], by_id["t1-cifar10-1-idc-upper"]]
    names = (rules.SUPPORTED, rules.MECHANISM_OFF, rules.UNDECIDED)
    arms = {"control": {}, "upper": {"risk": "upper"}, "lower": {"risk": "lower"}, "dsa": {"method": "dsa"}}
    arms |= {"control 1": {"ipc": 1}, "upper 1": {"risk": "upper", "ipc": 1}}
    runs = {name: record(Experiment.preset("laptop", **settings)) for name, settings in arms.items()}
    records = {run.key: run for run in runs.values()}
    found = []
    for claim, name, ipc in zip(chosen, names, ("", "", " 1"), strict=True):
        (test,) = claims.comparisons(claim, by_id)
        values, keys = (1.0, 1.2, 0.9), ((runs[claim.reading + ipc].key,), (runs["control" + ipc].key,))
        finding = verdicts.Finding(test, name, "because", "cpu", rules.t_interval(values), values, (), keys)
        found.append(verdicts.Verdict(claim, name, "because", (finding,)))
    above = by_id["t1-cifar10-10-above-upper"]
    other = dataclasses.replace(finding, comparison=claims.comparisons(above, by_id)[1], verdict=rules.SUPPORTED)
    other = dataclasses.replace(other, keys=((runs["upper"].key,), (runs["dsa"].key,)))  # not an effect of the term
    found.append(verdicts.Verdict(above, rules.SUPPORTED, "because", (other,)))
    same = dataclasses.replace(found[0].findings[0], comparison=claims.comparisons(by_id["t3-idc-conv"], by_id)[0])
    found.append(verdicts.Verdict(by_id["t3-idc-conv"], rules.SUPPORTED, "because", (same,)))  # shown once
    shown = pages.effects(found, records)
    assert [f.comparison.claim.id for f in shown] == ["t1-cifar10-10-idc-upper", "t1-cifar10-1-idc-upper"]
    for changed in ({"worst": 0.0}, {"alpha": 0.2}):  # a part of the term, or another tail, is not the paper's term
        other_term = dataclasses.replace(runs["upper"], experiment=runs["upper"].experiment | changed)
        left = pages.effects(found, records | {other_term.key: other_term})
        assert [f.comparison.claim.id for f in left] == ["t1-cifar10-1-idc-upper"]
    text = pages.picture(shown)
    assert "IPC 10, IDC: accuracy, upper tail +1.0 [" in text and "lower tail" not in text
    assert [f.comparison.claim.id for f in pages.short_loop(found, records)] == ["t1-cifar10-10-idc-lower"]
    larger = dataclasses.replace(shown[0], keys=tuple((*keys, "another seed") for keys in shown[0].keys))
    assert pages.each_once([shown[0], larger]) == [larger]  # one comparison has one number, that of all its seeds
    off = pages.short_loop(found, records)
    assert "accuracy, lower tail +1.0 [" in pages.short_picture(off) and "upper tail" not in pages.short_picture(off)
    assert pages.bench(shown[0], records) == "CIFAR-10, 10 images a class, IDC"
    assert pages.bench(shown[1], records) == "CIFAR-10, 1 image a class, IDC"
    assert pages.tested(shown[0], records) == "accuracy"
    key = shown[0].keys[0][0]
    other = dataclasses.replace(
        records[key], experiment=records[key].experiment | {"eval_network": "resnetap10", "eval_width": 16}
    )
    assert pages.tested(shown[0], records | {key: other}) == "accuracy, ResNet-10"
    for verdict, drawn in ((True, shown), (False, off)):
        pages.forest(drawn, records, tmp_path / "forest.png", verdict)
        assert 1000 < (tmp_path / "forest.png").stat().st_size <= 150_000
    assert "No comparison" in pages.picture([]) and pages.short_picture([]) == ""


def test_what_comes_from_records_cannot_break_the_page() -> None:
    made = dataclasses.replace(claims.read()[0], claim="<script>alert(1)</script>", paper="1 < 2")
    text = pages.row(verdicts.Verdict(made, rules.NO_RUNS, "<b>"), Ledger(Store("/nowhere-at-all")), ROOT)
    assert "<script" not in text and "<b>" not in text and "1 &lt; 2" in text


def test_decided_claims_come_first_and_else_the_order_of_the_paper() -> None:
    every = claims.read()[:40]
    names = [("no runs", "contradicted", "supported", "mechanism off")[n % 4] for n in range(len(every))]
    found = [verdicts.Verdict(c, name, "") for c, name in zip(every, names, strict=True)]
    text = pages.table(found, Ledger(Store("/nowhere-at-all")), ROOT)
    shown = [(m[2], m[1]) for m in re.finditer(r'<tr id="claim-([^"]+)"[^>]*data-verdict="([^"]+)"', text)]
    rank, place = rules.VERDICTS.index, {c.id: n for n, c in enumerate(every)}
    assert [(rank(v), place[i]) for v, i in shown] == sorted((rank(v), place[i]) for v, i in shown)
    assert len(shown) == 40 and "40 claims, the 20 decided ones first" in text
    assert text.split("</tbody>")[0].count("<tr id") == 20


def test_the_summary_counts_every_claim_once() -> None:
    found = verdicts.judge(claims.read(), {}, claims.Plan(pages.GRIDS))
    rows = [line.split("|") for line in pages.summary(found).splitlines()[2:]]
    assert "without the term" not in pages.summary(found)  # no runs: nothing to say of those supported
    assert sum(int(cell) for row in rows for cell in row[2:-1] if cell.strip()) == len(found)
    assert [row[1].strip() for row in rows] == list(pages.FAMILIES.values())
    assert list(pages.FAMILIES) == list(claims.FAMILIES)
    assert set(rules.VERDICTS) == {name for names in pages.COLUMNS.values() for name in names}


def test_the_summary_says_which_supported_claims_do_not_speak_of_the_term() -> None:
    plain, term = (next(c for c in claims.read() if c.family == "accuracy" and c.reading == r) for r in ("-", "upper"))
    found = [verdicts.Verdict(claim, rules.SUPPORTED, "") for claim in (plain, term, term)]
    assert pages.summary(found).endswith("without the term: accuracy 1 of 3.\n")
    assert "without the term" not in pages.summary(found[1:])


def test_the_page_of_the_short_loop_says_of_the_details_what_their_records_show() -> None:
    """Rows 7 and 8 move accuracy by less than a point, the matched distance and the judge's recipe by several."""
    store = Store(ROOT / "data")

    def accuracy(**changed: object) -> list[float]:
        experiments = [Experiment.preset("laptop", dataset="cifar10", ipc=10, seed=s, **changed) for s in range(3)]
        records = [record for e in experiments if (record := store.find(e.key)) is not None]
        return [sum(r.metrics["accuracy"]) / len(r.metrics["accuracy"]) for r in records]

    base = accuracy()
    small, large = ({"net_data": "synthetic"}, {"net_steps": 0}), ({"metric": "dc"}, {"eval_recipe": "dc"})
    for changes, fits in ((small, lambda gap: abs(gap) < 1), (large, lambda gap: gap < -2)):
        for changed in changes:
            own = accuracy(**changed)
            assert len(own) == len(base) == 3 and fits(sum(own) / 3 - sum(base) / 3), changed

    said = " ".join((ROOT / "book" / "short_loop.md").read_text().replace(" points", "").split())
    for changed in ({"net_data": "synthetic"}, {"net_steps": 0}, {"metric": "dc"}, {"eval_recipe": "glad"}):
        assert str(paired_difference(accuracy(**changed), base)) in said, changed


def test_the_page_of_the_short_loop_says_of_five_seeds_what_their_records_show() -> None:
    store = Store(ROOT / "data")
    said = " ".join((ROOT / "book" / "short_loop.md").read_text().replace(" points", "").split())

    def means(test: str, **changed: object) -> list[float]:
        chosen = {"dataset": "cifar10", "ipc": 10} | changed
        keys = [Experiment.preset("laptop", seed=s, **chosen).key for s in range(5)]
        return [float(np.mean(record.metrics[test])) for key in keys if (record := store.find(key)) is not None]

    arms = [{"ipc": ipc, "risk": risk} for ipc in (1, 10) for risk in ("upper", "lower")]
    arms += [{"method": "glad", "risk": "upper", "ipc": ipc} for ipc in (1, 10)]
    arms += [{"risk": "upper", "where": "matching"}]
    told = [(arm, test) for arm in arms for test in ("accuracy", "cluster_min")]
    for arm, test in told:
        base = means(test, **{k: v for k, v in arm.items() if k not in ("risk", "where")})
        assert str(paired_difference(means(test, **arm), base)) in said, (arm, test)
