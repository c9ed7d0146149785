"""Every committed record bears the key of its own settings, whatever the library's defaults have become since."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from rddlib.distillation import settings
from rddlib.experiments.experiment import Experiment
from rddlib.experiments.provenance import SUPERSEDED
from rddlib.experiments.validate import read_record

ROOT = Path(__file__).resolve().parent.parent
RECORDS = sorted(ROOT.glob("data/runs/*/*.json"))


def raw(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_there_are_records_to_check() -> None:
    assert len(RECORDS) > 300


@pytest.mark.parametrize("group", sorted({path.parent.name for path in RECORDS}))
def test_keys_follow_from_the_flat_settings(group: str) -> None:
    """A record that was written before a setting existed takes that setting's default, under which its key stays."""
    for path in (path for path in RECORDS if path.parent.name == group):
        record = raw(path)
        experiment = Experiment(**record["experiment"])
        assert experiment.key == record["key"] == path.stem, path
        if experiment.method not in settings.DISTILLED:
            assert record.get("set_key", "") == experiment.set_key == "", path
        elif "set_key" in record:  # the oldest records were written before sets had keys of their own
            assert record["set_key"] == experiment.set_key, path


def test_the_keys_would_notice_another_default() -> None:
    """The check above can fail: an experiment that differs in one setting has another key and another set."""
    experiment = Experiment(**raw(RECORDS[0])["experiment"])
    other = dataclasses.replace(experiment, seed=experiment.seed + 1)
    assert other.key != experiment.key
    assert other.set_key != experiment.set_key or not experiment.set_key


def test_records_without_a_results_version_are_of_the_first() -> None:
    """But for the early ones whose code was never compared with that of version 1: choices of the image rate."""
    records = [read_record(path) for path in RECORDS]
    groups = [path.parent.name for path in RECORDS]
    early = {group for group, record in zip(groups, records, strict=True) if record.source_hash in SUPERSEDED}
    assert early == {"cifar10_choice", "cifar10_method_choice"}
    for record in records:
        if record.source_hash in SUPERSEDED:
            assert not record.current
        elif record.source_hash:  # from before versions were written down
            assert record.results == 1
