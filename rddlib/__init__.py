"""rddlib: group distributionally robust dataset distillation, executable and tested."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# The public names and where they live; each is imported when it is first asked for, so that `import rddlib` is quick.
_HOMES = {
    "value_at_risk": "risk",
    "cvar": "risk",
    "group_cvar": "risk",
    "RiskTerm": "risk",
    "robust_loss": "risk",
    "DataSet": "data.dataset",
    "SyntheticSet": "distillation.synthetic",
    "load_dataset": "api",
    "distill": "api",
    "evaluate": "api",
    "run": "api",
    "load_set": "experiments.export",
    "Experiment": "experiments.experiment",
    "Record": "experiments.records",
    "Store": "experiments.records",
    "results": "analysis.results",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rddlib' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
