"""The shape of the library, read from its source: who imports whom, how long things are, what is documented."""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

LIBRARY = Path(__file__).resolve().parent.parent / "rddlib"

# A folder imports from itself and from those before it. On the ground floor stand `base` (declared settings, seeds,
# whole files), `files` (checksums, bounds), `risk` and `stats`, which everybody may use; `cli` stands above all.
FLOOR = ("base", "files", "risk", "stats")
ROOMS = ("theory", "data", "models", "distillation", "evaluation", "experiments", "analysis")
ENTRY_POINTS = ("__init__", "__main__", "cli", "commands", "api")
THIRD_PARTY = {"torch", "numpy", "scipy", "pandas", "sklearn", "matplotlib", "mpl_toolkits", "PIL", "tqdm"}
THIRD_PARTY |= {"safetensors", "pydantic", "filelock"}
THIRD_PARTY |= {"cycler"}  # a part of Matplotlib under its own name
LAZY_ONLY = {"torchvision": ("data.sources", "data.dataset"), "cyclopts": ("cli",)}  # inside a function, only there
ONLY = {"cyclopts": "commands"}  # imported by `cli` when a command is called, so that the library does without

FUNCTION_LINES, MEDIAN_LINES = 60, 12

Function = ast.FunctionDef | ast.AsyncFunctionDef
Sources = dict[str, str]


def library_sources() -> Sources:
    """Source of each module by its dotted name below rddlib."""
    files = sorted(LIBRARY.rglob("*.py"))
    return {".".join(p.relative_to(LIBRARY).with_suffix("").parts): p.read_text(encoding="utf-8") for p in files}


def imports(tree: ast.Module, module: str) -> Iterator[tuple[str, bool]]:
    """Dotted names of everything imported, relative ones resolved, and whether at the top of the module."""
    at_top = {id(node) for node in tree.body}
    package = ["rddlib", *module.split(".")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in at_top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            yield from ((f"{base}.{alias.name}", id(node) in at_top) for alias in node.names)


def layer_faults(sources: Sources) -> list[str]:
    """Imports of a room above one's own, of the ground floor from a room, and modules that stand in no room."""
    faults = []
    for name, source in sources.items():
        room = name.split(".")[0]
        if name in ENTRY_POINTS:
            continue
        if room not in FLOOR + ROOMS:
            faults.append(f"{name}: stands in no room")
            continue
        allowed = {*FLOOR, "__version__"} | set(ROOMS[: ROOMS.index(room) + 1] if room in ROOMS else ())
        for target, _ in imports(ast.parse(source), name):
            root, _, rest = target.partition(".")
            if root == "rddlib" and rest.split(".")[0] not in allowed:
                faults.append(f"{name}: imports {target}, which does not stand below it")
    return faults


def third_party_faults(sources: Sources) -> list[str]:
    """Imports of packages outside the core, and lazy ones that are not lazy."""
    faults = []
    for name, source in sources.items():
        for target, at_top in imports(ast.parse(source), name):
            root = target.split(".")[0]
            if ONLY.get(root) == name:
                continue
            if root in LAZY_ONLY and (at_top or name not in LAZY_ONLY[root]):
                faults.append(f"{name}: {root} is for functions of {' and '.join(LAZY_ONLY[root])} only")
            elif root not in sys.stdlib_module_names | THIRD_PARTY | {"rddlib"} | set(LAZY_ONLY):
                faults.append(f"{name}: imports {root}, which the core does without")
    return faults


def functions(tree: ast.Module) -> Iterator[Function]:
    yield from (node for node in ast.walk(tree) if isinstance(node, Function))


def code_lines(function: Function) -> int:
    """Lines of a function without its docstring, which may be as long as it needs to be."""
    start = function.body[0]
    documented = (
        isinstance(start, ast.Expr) and isinstance(start.value, ast.Constant) and isinstance(start.value.value, str)
    )
    docstring = (start.end_lineno or 0) - start.lineno + 1 if documented else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def length_faults(sources: Sources) -> list[str]:
    """Functions that grew too long, and a library whose typical function did. A file ends where its idea ends."""
    faults, lengths = [], []
    for name, source in sources.items():
        for function in functions(ast.parse(source)):
            lengths.append(code_lines(function))
            if lengths[-1] > FUNCTION_LINES:
                faults.append(f"{name}.{function.name}: {lengths[-1]} lines, at most {FUNCTION_LINES}")
    if lengths and (median := statistics.median(lengths)) > MEDIAN_LINES:
        faults.append(f"the median function has {median} lines, at most {MEDIAN_LINES}")
    return faults


def public_functions(tree: ast.Module) -> Iterator[Function]:
    """Functions and methods that a user can call by name."""
    scopes: list[ast.Module | ast.ClassDef] = [tree]
    scopes += [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    for scope in scopes:
        yield from (n for n in scope.body if isinstance(n, Function) and not n.name.startswith("_"))


def unannotated(function: Function) -> list[str]:
    """What lacks a type: parameters (self and cls aside) and the return value."""
    spec = function.args
    parameters = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, *filter(None, [spec.vararg, spec.kwarg])]
    missing = [p.arg for p in parameters if p.annotation is None and p.arg not in ("self", "cls")]
    return missing + (["return"] if function.returns is None else [])


def documentation_faults(sources: Sources) -> list[str]:
    """Public functions without a docstring or with a gap in their types; modules without a docstring."""
    faults = []
    for name, source in sources.items():
        tree = ast.parse(source)
        if not ast.get_docstring(tree):
            faults.append(f"{name}: no module docstring")
        for function in public_functions(tree):
            if not ast.get_docstring(function):
                faults.append(f"{name}.{function.name}: no docstring")
            if missing := unannotated(function):
                faults.append(f"{name}.{function.name}: no type for {', '.join(missing)}")
    return faults


CHECKS = [layer_faults, third_party_faults, length_faults, documentation_faults]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_library(check) -> None:
    sources = library_sources()
    assert "base" in sources, "the library was not found, so nothing was checked"
    assert check(sources) == []


def test_the_guide_for_contributors_states_this_order() -> None:
    guide = (LIBRARY.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert " -> ".join(ROOMS) in " ".join(guide.split())


SHORT = "def g(): pass\n"
PLANTED = [
    (layer_faults, {"risk": "from .distillation.loop import Loop"}, "rddlib.distillation"),
    (layer_faults, {"data.dataset": "from ..models import networks"}, "rddlib.models"),
    (layer_faults, {"distillation.kip.kernels": "def f():\n    from ...evaluation import groups"}, "rddlib.evaluation"),
    (layer_faults, {"models.fused": "def f():\n    import rddlib.analysis.report"}, "rddlib.analysis"),
    (layer_faults, {"evaluation.metrics": "from rddlib.experiments import grid"}, "rddlib.experiments"),
    (layer_faults, {"helpers": ""}, "no room"),
    (third_party_faults, {"risk": "import seaborn.objects"}, "seaborn"),
    (third_party_faults, {"data.sources": "import torchvision"}, "torchvision"),
    (third_party_faults, {"models.networks": "def f():\n    from torchvision import models"}, "torchvision"),
    (length_faults, {"risk": "def f():\n    '''a\n    b'''\n" + "    x = 1\n" * 60 + SHORT * 2}, "61 lines"),
    (length_faults, {"risk": "def f():\n" + "    x = 1\n" * 12}, "median"),
    (documentation_faults, {"risk": "'''m'''\ndef f() -> int:\n    return 1"}, "no docstring"),
    (documentation_faults, {"risk": "'''m'''\ndef f(a, *, b: int):\n    '''d'''"}, "a, return"),
    (documentation_faults, {"risk": "'''m'''\nclass A:\n    def f(self) -> int:\n        return 1"}, "risk.f"),
    (documentation_faults, {"risk": ""}, "module docstring"),
]


@pytest.mark.parametrize(("check", "sources", "said"), PLANTED)
def test_planted_fault_is_found(check, sources: Sources, said: str) -> None:
    faults = check(sources)
    assert len(faults) == 1
    assert said in faults[0]


def test_what_is_allowed_passes() -> None:
    good = '"""Meaning."""\nfrom . import base\nfrom .base import SettingError\nimport json\nimport torch.nn\n'
    good += 'def f(a: int, *b: int) -> int:\n    """Meaning."""\n    return a\ndef _g(x):\n    return x\n'
    reader = '"""Meaning."""\ndef _f():\n    import torchvision\n'
    assert [fault for check in CHECKS for fault in check({"risk": good, "data.sources": reader})] == []
