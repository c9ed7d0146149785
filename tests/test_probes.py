"""Probes: they go through all code that makes results, they notice a change of meaning, and the ledger knows today."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from rddlib import augment, corruptions, groups, match, probes, provenance, recipes, risk, synthetic
from rddlib.experiment import Experiment

LIBRARY = Path(probes.__file__).parent
# Functions that no probe calls, each because it cannot change a result of today's kind.
UNPROBED = {
    "read or write files, or describe": """
        base.write_atomic corrupt.cached corrupt._read_images distill.load_state distill.save_state generator.save
        groups._feature_name groups._save_groups groups.clusters_a_class groups.depth groups.sizes kip.load_state
        kip.save_state nets.parameter_count synthetic.about synthetic.read synthetic.save prior.name prior.from_file
        base.allowed_values base.setting base.__init__""",
    "other sources of images: their content is hashed into the record": """
        readers._cifar10 readers._class_folders readers._imagenet readers._letters readers._read_image
        readers._read_images readers._read_mat readers._svhn readers.import_torchvision readers.path_label
        readers.read_folder readers.read_npz data.validation prior.from_stylegan prior._from_signed""",
    "groups of test images: kept in files with their hashes": """
        groups.make_feature_groups groups.train""",
    "measures beside the records": """
        bench.nulls groups._agreement groups.overlap groups.training_overlap kip.storage corrupt.network_severity""",
    "references and definitions, tested one by one": """
        risk._tail_items risk.cvar risk.cvar_as_printed risk.released_step risk.rockafellar_uryasev risk.tail_weights
        risk.value_at_risk""",
    "the exact derivative called from C++, where no profile is taken": "fused.backward",
    "switches and refusals": "fused.use fused.keep_memory evaluate.check_fit kip.ipc kip.seed methods.differs",
    "kept from the first call on, which may have been before": "data.by_channel",
    "several processes: compared with one in tests/test_split.py": "distill.assist distill._state",
}


@pytest.fixture(scope="module")
def probed() -> tuple[dict[str, list[float]], set[tuple[str, int]]]:
    """What all probes give, and the functions (module, line) that they go through."""
    files = {str(LIBRARY / f"{m}.py"): m for makers in probes.all_makers() for m in makers}
    called: set[tuple[str, int]] = set()

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and (module := files.get(frame.f_code.co_filename)):
            called.add((module, frame.f_code.co_firstlineno))

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        values = {name: probe.run() for name, probe in probes.probes().items()}
    finally:
        sys.setprofile(before)
    return values, called


def test_the_probes_go_through_every_function_that_makes_results(probed: Any) -> None:
    modules = sorted({m for makers in probes.all_makers() for m in makers})
    missed = set()
    for module in modules:
        for node in ast.walk(ast.parse((LIBRARY / f"{module}.py").read_text())):
            if isinstance(node, ast.FunctionDef):
                first = node.decorator_list[0].lineno if node.decorator_list else node.lineno
                if (module, first) not in probed[1]:
                    missed.add(f"{module}.{node.name}")
    allowed = {name for names in UNPROBED.values() for name in names.split()}
    assert missed <= allowed | OVERLOADED
    assert allowed <= {f"{m}.{n}" for m in modules for n in _functions(m)}, "an exception for what is no longer there"


# Names that several classes share: one of them is not probed (the user's StyleGAN, plain forms of fused layers).
OVERLOADED = {
    "archs.embed", "prior.decode", "prior.encode", "prior.project", "prior.rates", "generator.forward",
    "kernels.__call__", "kernels.__init__", "kernels._convolved", "kernels._next", "synthetic.to",
}  # fmt: skip


def _functions(module: str) -> set[str]:
    tree = ast.parse((LIBRARY / f"{module}.py").read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_the_ledger_knows_the_code_of_today(probed: Any) -> None:
    """After an edit of code that makes results, `python -m rddlib lineage` notes it; then its records are looked at."""
    kept = json.loads(provenance.lineage_file().read_text())
    today = {provenance.source_hash(makers) for makers in probes.all_makers()}
    versions = [v for v in kept["versions"] if today <= set(v["hashes"])]
    assert versions, "code that makes results has changed: run python -m rddlib lineage"
    for name, values in probed[0].items():
        assert provenance.agree(versions[-1]["values"][name], values, kept["tolerance"]), name
    assert kept["modules"] == {name: sorted(p.modules) for name, p in probes.probes().items()}


def _slightly(function: Callable[..., Any], factor: float = 1.03) -> Callable[..., Any]:
    return lambda *args, **kwargs: function(*args, **kwargs) * factor


def _mirrored(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda *args, **kwargs: function(*args, **kwargs).flip(0)


MUTATIONS: dict[str, tuple[Any, str, Any, str]] = {
    "a wider crop": (augment, "CROP", 2 * augment.CROP, "idc"),
    "a weaker contrast": (augment, "CONTRAST", 0.9 * augment.CONTRAST, "train idc"),
    "a distance that counts three per cent more": (match, "distance", _slightly(match.distance), "dc"),
    "a faster decay of averaged weights": (recipes, "AVERAGED", {**recipes.AVERAGED, "glad": 0.1}, "train glad"),
    "a risk that weighs three per cent more": (risk, "group_risk", _slightly(risk.group_risk), "idc upper"),
    "the first centre in the place of the nearest": (
        groups, "nearest", lambda points, centres: torch.zeros(len(points), dtype=torch.long), "idc upper"),
    "tiles in another order": (synthetic, "decode", _mirrored(synthetic.decode), "idc tiles 3"),
    "fog three per cent thicker": (corruptions, "plasma", _slightly(corruptions.plasma), "bench"),
}  # fmt: skip


@pytest.mark.parametrize("change", MUTATIONS)
def test_a_change_of_meaning_shows(change: str, monkeypatch: pytest.MonkeyPatch, probed: Any) -> None:
    module, name, value, probe = MUTATIONS[change]
    monkeypatch.setattr(module, name, value)
    assert not provenance.agree(probed[0][probe], probes.probes()[probe].run(), probes.TOLERANCE)


def ledger(folder: Path, *versions: dict[str, Any]) -> Path:
    file = folder / "lineage.json"
    file.write_text(
        json.dumps(
            {
                "versions": versions,
                "tolerance": 1e-3,
                "modules": {"draw": ["base"], "train idc": ["base", "evaluate"], "kip": ["kip"]},
            }
        )
    )
    return file


@pytest.mark.parametrize(
    ("old", "expected"),
    [
        ({"draw": [1.0], "train idc": [2.0, 3.0], "kip": [9.0]}, True),  # a kernel has changed: not this result's maker
        ({"draw": [1.0], "train idc": [2.0, 3.0001], "kip": [1.0]}, True),
        ({"draw": [1.0], "train idc": [2.0, 3.01], "kip": [1.0]}, False),
        ({"draw": [1.0], "kip": [1.0]}, False),  # never probed
        ({"draw": [1.0], "train idc": [2.0, float("nan")], "kip": [1.0]}, False),
    ],
)
def test_a_result_is_current_where_all_its_probes_agree(
    old: dict[str, list[float]], expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    e = vars(Experiment.preset("smoke", method="random"))
    now = provenance.source_hash(provenance.makers(e))
    new = {"draw": [1.0], "train idc": [2.0, 3.0], "kip": [1.0]}
    file = ledger(tmp_path, {"hashes": ["old"], "values": old}, {"hashes": [now], "values": new})
    monkeypatch.setattr(provenance, "lineage_file", lambda: file)
    provenance._same.cache_clear()
    try:
        assert provenance.current(e, "old") is expected
        assert provenance.current(e, now) and not provenance.current(e, "never heard of")
    finally:
        provenance._same.cache_clear()


def test_a_version_is_noted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "lineage_file", lambda: tmp_path / "data" / "lineage.json")
    chosen = {"draw": probes.probes()["draw"]}
    monkeypatch.setattr(probes, "probes", lambda: chosen)
    assert probes.note().startswith("noted") and probes.note().startswith("known")
    kept = json.loads((tmp_path / "data" / "lineage.json").read_text())
    assert len(kept["versions"]) == 1 and set(kept["versions"][0]["values"]) == {"draw"}
