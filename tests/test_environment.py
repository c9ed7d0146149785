"""pyproject.toml, constraints.txt and environment.yml say the same, and the core needs the core's packages only."""

from __future__ import annotations

import importlib
import importlib.metadata as metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
Pins = dict[str, Version]


# --- what the three files say -----------------------------------------------------------------------------------


def read_requirements(pyproject: str) -> dict[str, list[Requirement]]:
    """The requirements of pyproject.toml: key "" for the core, else the name of the extra."""
    project = tomllib.loads(pyproject)["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {group: [Requirement(line) for line in lines] for group, lines in groups.items()}


def read_pins(lines: list[str]) -> Pins:
    """Exact pins, NAME==VERSION each; anything else than a pin, an option or a comment is an error."""
    pins: Pins = {}
    for line in (line.partition("#")[0].strip() for line in lines):
        if not line or line.startswith("-"):
            continue
        requirement = Requirement(line)
        (clause,) = requirement.specifier
        if clause.operator != "==" or requirement.url or "*" in clause.version:
            raise ValueError(f"not an exact pin: {line}")
        pins[canonicalize_name(requirement.name)] = Version(clause.version)
    return pins


def read_environment(text: str) -> tuple[Version, list[str]]:
    """Python's version and pip's lines in environment.yml."""
    entries = yaml.safe_load(text)["dependencies"]
    (python,) = [e.partition("=")[2] for e in entries if isinstance(e, str) and e.startswith("python=")]
    (pip_lines,) = [e["pip"] for e in entries if isinstance(e, dict)]
    return Version(python), pip_lines


def differences(pyproject: str, constraints: str, environment: str) -> list[str]:
    """Every statement in which the three files disagree, in words."""
    requirements, pins = read_requirements(pyproject), read_pins(constraints.splitlines())
    python, pip_lines = read_environment(environment)
    said = read_pins(pip_lines)
    found = []
    for group, wanted in requirements.items():
        for requirement in wanted:
            name = canonicalize_name(requirement.name)
            if name not in pins:
                found.append(f"{name}: wanted by pyproject.toml [{group}], has no pin in constraints.txt")
            elif pins[name] not in requirement.specifier:
                found.append(f"{name}: pin {pins[name]} is outside pyproject's {requirement.specifier}")
            if group != "grid" and name not in said:
                found.append(f"{name}: wanted by pyproject.toml [{group}], is not in environment.yml")
    found += [
        f"{name}: {version} in environment.yml, {pins.get(name, 'no pin')} in constraints.txt"
        for name, version in said.items()
        if pins.get(name) != version
    ]
    found += [
        f"{name}: a local version, {version}" for name, version in [*pins.items(), *said.items()] if version.local
    ]
    allowed = Requirement("python" + tomllib.loads(pyproject)["project"]["requires-python"]).specifier
    return found + ([] if python in allowed else [f"python: {python} in environment.yml is outside {allowed}"])


def three_files() -> tuple[str, str, str]:
    pyproject, constraints, environment = (
        (ROOT / name).read_text() for name in ("pyproject.toml", "constraints.txt", "environment.yml")
    )
    return pyproject, constraints, environment


def test_the_three_files_agree() -> None:
    assert differences(*three_files()) == []


@pytest.mark.parametrize("name", ["constraints.txt", "environment.yml", "pyproject.toml"])
def test_no_registry_address_and_no_path_of_a_machine(name: str) -> None:
    text = (ROOT / name).read_text()
    assert not re.search(
        r"https?://|file:|--(extra-)?index-url|--find-links|(?<![\w.])/(home|root|opt|usr|tmp)\b", text
    )


@pytest.mark.skipif(bool(os.environ.get("RDDLIB_UNPINNED")), reason="RDDLIB_UNPINNED: other versions on purpose")
def test_the_installed_versions_are_the_pinned_ones() -> None:
    requirements, pins = read_requirements(three_files()[0]), read_pins(three_files()[1].splitlines())
    direct = {canonicalize_name(r.name) for group in ("", "book", "dev") for r in requirements[group]}
    off = {
        name: metadata.version(name)
        for name in sorted(direct)
        if Version(metadata.version(name)).public != pins[name].public
    }
    assert off == {}, "run `make env`, or set RDDLIB_UNPINNED=1 to test other versions on purpose"


def test_the_command_of_the_package_is_there() -> None:
    scripts = tomllib.loads(three_files()[0])["project"]["scripts"]
    module, _, function = scripts["rddlib"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


# --- the core alone ---------------------------------------------------------------------------------------------


def closure(names: list[str]) -> set[str]:
    """Distributions that these ones need, with what those need, as installed here."""
    needed, todo = set(), [canonicalize_name(name) for name in names]
    while todo:
        name = todo.pop()
        if name in needed:
            continue
        needed.add(name)
        try:
            lines = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # needed on another system only
        required = [Requirement(line) for line in lines]
        todo += [canonicalize_name(r.name) for r in required if not r.marker or r.marker.evaluate({"extra": ""})]
    return needed


def optional_modules() -> set[str]:
    """Top-level modules that only distributions outside the core's closure provide."""
    core = closure([requirement.name for requirement in read_requirements(three_files()[0])[""]]) | {"rddlib"}
    provided = metadata.packages_distributions()
    return {
        module
        for module, owners in provided.items()
        if not module.startswith("_") and not core & {canonicalize_name(owner) for owner in owners}
    }


IMPORT_ALONE = """
import importlib, importlib.abc, json, sys

class Block(importlib.abc.MetaPathFinder):
    blocked = set(json.loads(sys.argv[1]))
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.blocked:
            raise ModuleNotFoundError(f"{name} is not part of the core", name=name)

sys.meta_path.insert(0, Block())
failed = {}
for name in json.loads(sys.argv[2]):
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = f"{type(error).__name__}: {error}"
print(json.dumps(failed))
"""


def import_without(blocked: set[str], names: list[str]) -> dict[str, str]:
    """Import modules in a fresh process where some top-level modules are missing; what failed, and how."""
    command = [sys.executable, "-c", IMPORT_ALONE, json.dumps(sorted(blocked)), json.dumps(names)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=500)
    return json.loads(done.stdout.splitlines()[-1])


def test_every_module_imports_with_the_core_packages_alone() -> None:
    files = sorted((ROOT / "rddlib").rglob("*.py"))
    modules = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in files if not p.stem.startswith("__")]
    blocked = optional_modules()
    assert {
        "torchvision",
        "seaborn",
        "papermill",
        "plotly",
        "nbformat",
        "jupyter_core",
        "yaml",
        "hypothesis",
    } <= blocked
    assert {"torch", "numpy", "scipy", "pandas", "sklearn", "matplotlib", "PIL", "tqdm"}.isdisjoint(blocked)
    failed = import_without(blocked, ["rddlib", *modules, "seaborn"])
    assert failed.pop("seaborn", "").endswith("is not part of the core"), "the block did not work"
    assert failed == {}


def test_without_the_package_of_the_command_line_the_library_works_and_a_command_says_what_is_missing() -> None:
    files = sorted((ROOT / "rddlib").rglob("*.py"))
    modules = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in files if not p.stem.startswith("__")]
    modules.remove("rddlib.commands")
    assert import_without({"cyclopts", "rich"}, [*modules, "rddlib.commands"]).keys() == {"rddlib.commands"}
    code = "import sys; sys.modules['cyclopts'] = None; from rddlib import cli; sys.exit(cli.main(['list']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "rddlib: the command line needs the package cyclopts; the library does not\n"
