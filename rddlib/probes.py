"""Probes: short runs whose numbers tell whether an edit of the code changed any result.

A record bears the hash of the code that made it. An edit that only tidies or speeds up changes the hash and no number
beyond rounding; to run hours of experiments again for it would be waste, to call it the same without a check would be
faith. So each version of the code is probed: every method, variant, kernel, network, recipe and corruption does a few
steps on the embedded digits, and what comes out is kept in `data/lineage.json` beside the hashes of the code.
`provenance.current` takes a record of other code as today's where the probes of both agree.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import data as datasets
from . import distill, evaluate, groups, kip, prior, provenance, sets, synthetic
from .base import generator, repository_root, write_atomic
from .bench import TestBench
from .data import DataSet
from .experiment import Experiment
from .provenance import JUDGES, KIP_MAKERS, LOOP_MAKERS, MAKERS

TINY: dict[str, Any] = {
    "width": 8, "eval_width": 8, "depth": 2, "eval_depth": 2, "outer_steps": 2, "inner_steps": 2, "batch_real": 12,
    "net_steps": 2, "net_batch": 48, "lr_image": 0.3, "eval_steps": 6, "eval_batch": 40, "ipc": 2, "factor": 1,
    "match_augment": "color_crop_cutout_flip_scale_rotate", "net_augment": "color_crop_cutout_flip_scale_rotate",
    "eval_augment": "color_crop_cutout_flip_scale_rotate", "cutmix": 0.5, "eval_cutmix": 0.5,
}  # fmt: skip
RISKY: dict[str, Any] = {"risk": "upper", "alpha": 0.6}
# Name -> settings that differ from TINY, by the kind of code they go through.
LOOPED: dict[str, dict[str, Any]] = {
    "idc": {"factor": 2},
    "idc tiles 3": {"factor": 3, "ipc": 1, "batch_synthetic": 4},
    "idc upper": {**RISKY, "factor": 2},
    "idc lower": {**RISKY, "risk": "lower", "scope": "class", "space": "pixel"},
    "idc released": {**RISKY, "risk": "released"},
    "idc literal": {**RISKY, "risk": "literal", "lr_net": 1e-4},
    "idc matching": {**RISKY, "where": "matching"},
    "idc greedy": {**RISKY, "ipc": 3, "max_centres": 2, "centre_choice": "greedy"},
    "idc drawn centres": {**RISKY, "ipc": 3, "max_centres": 2},
    "idc cosine": {"metric": "dc", "net_data": "synthetic"},
    "dc": {"method": "dc", "match_augment": "none", "net_augment": "none", "cutmix": 0.0},
    "dsa": {"method": "dsa", "cutmix": 0.0, "ipc": 30, "net_batch": 128},
    "dm": {"method": "dm", "net_steps": 0, "lr_image": 3.0},
}
AT_ONCE: dict[str, dict[str, Any]] = {
    "idc at once": {"factor": 2, "classes_at_once": True},
    "dm at once": {"method": "dm", "net_steps": 0, "lr_image": 3.0, "classes_at_once": True},
}
BY_GENERATOR: dict[str, dict[str, Any]] = {
    "glad": {"method": "glad", "prior_layer": 1, "cutmix": 0.0},
    "glad projected": {"method": "glad", "prior_layer": 0, "prior_start": "project", "cutmix": 0.0, **RISKY},
}
BY_CHOICE: dict[str, dict[str, Any]] = {
    "idc representative": {"real_choice": "representative", "real_choice_interval": 1, "real_pool": 40},
    "dm representative": {"method": "dm", "net_steps": 0, "lr_image": 3.0, "real_choice": "representative"},
}
OTHER_NETWORKS: dict[str, dict[str, Any]] = {
    "idc resnet": {"network": "resnetap10", "width": 4, "size": 32, "outer_steps": 1},
}
BY_KERNEL: dict[str, dict[str, Any]] = {
    "kip": {"method": "kip", "kip_steps": 4, "kip_batch": 60},
    "kip conv": {"method": "kip", "kernel": "conv", "kip_pooling": "global", "kip_steps": 2, "kip_batch": 20,
                 "learn_labels": True, "kip_clamp": True, "zca": False},
}  # fmt: skip
TRAINED: dict[str, dict[str, Any]] = {
    "train idc": {},
    "train dc": {"eval_recipe": "dc", "eval_cutmix": 0.0},
    "train glad": {"eval_recipe": "glad", "eval_cutmix": 0.0},
}
ARCHS: dict[str, dict[str, Any]] = {
    f"train {name}": {"eval_network": name, "eval_width": width, "size": 32, "eval_steps": 2, "eval_batch": 20}
    for name, width in (("resnet10", 4), ("resnetap18", 4), ("vgg11", 4), ("vit", 16))
}
TOLERANCE = 1e-3  # relative to a probe's size: rounding shows at 1e-5, any change of meaning far above


@dataclass(frozen=True)
class Probe:
    """What a probe goes through: the modules that must be among a result's makers for it to matter, and its run."""

    modules: tuple[str, ...]
    run: Callable[[], list[float]]


def probes() -> dict[str, Probe]:
    """All probes by name. Together about ten seconds on one core."""
    judged, looped = MAKERS + JUDGES, MAKERS + LOOP_MAKERS
    found = {"draw": Probe(MAKERS, _drawn), "bench": Probe(judged, _benched), "judge": Probe(judged, _judged)}
    kinds = ((LOOPED, looped, _distilled), (AT_ONCE, (*looped, "classwise"), _distilled),
             (BY_GENERATOR, (*looped, "generator", "prior"), _distilled),
             (BY_CHOICE, (*looped, "representative"), _distilled),
             (OTHER_NETWORKS, (*looped, "archs"), _distilled), (BY_KERNEL, MAKERS + KIP_MAKERS, _distilled),
             (TRAINED, judged, _trained), (ARCHS, (*judged, "archs"), _trained))  # fmt: skip
    for settings, modules, run in kinds:
        for name, own in settings.items():
            found[name] = Probe(modules, lambda own=own, run=run: run(tiny(**own)))  # type: ignore[misc]
    return found


def tiny(**own: Any) -> Experiment:
    """The experiment of a probe."""
    return Experiment.preset("smoke", **(TINY | own), dataset="digits", seed=5)


def measured(x: Tensor) -> list[float]:
    """Three numbers that tell two tensors apart: norm, mean, and a fixed pseudo-random projection."""
    flat = x.detach().double().flatten()
    weights = torch.cos(torch.arange(len(flat), dtype=torch.float64) * 1.2345)
    return [float(v) for v in (flat.norm(), flat.mean() * len(flat) ** 0.5, flat @ weights)]


def _data(e: Experiment) -> DataSet:
    return datasets.load("digits", None, "cpu", e.size, None, None, False)


def _distilled(e: Experiment) -> list[float]:
    """How far the images have moved, and what the last history entry says."""
    data = _data(e)
    made, history = distill.distill(data, e)
    if e.method == "kip":
        return [*measured(made.images), *history[-1].values(), kip.kernel_accuracy(made, data, e)]
    source = prior.load(e.parts().prior, data, e.prior_layer, e.prior_start)
    with torch.no_grad():
        start = source.decode(distill.begin(data, e, source).codes, distill.labels(data, e))
    return [*measured(made.images - start), *history[-1].values()]


def _trained(e: Experiment) -> list[float]:
    """Logits of a network trained for a few steps on drawn images."""
    data = _data(e)
    small = sets.drawn(data, tiny(method="random", ipc=12))
    images = datasets.load("digits", None, "cpu", e.size, None, None, False).train_images[: len(small.labels)]
    net = evaluate.train(images, data.train_labels[: len(images)], data, e, 3)
    with torch.inference_mode():
        return measured(net(data.normalise(data.test_images[:50])))


def _drawn() -> list[float]:
    """The sets that nobody distils, and the data itself."""
    e, found = tiny(), []
    data = _data(e)
    for method, factor in (("random", 1), ("first_n", 1), ("mix", 2), ("full", 1)):
        small = sets.drawn(data, tiny(method=method, factor=factor))
        found += measured(data.normalise(small.images) * (1 + small.labels.view(-1, 1, 1, 1)))
    start = synthetic.start(data, 2, 3, generator(1, "start"))
    return found + measured(synthetic.decode(start.images, 3))


def _benched() -> list[float]:
    """Every shifted and corrupted image, at a size at which all of them do something, and the published groups."""
    data = datasets.load("digits", None, "cpu", 32, None, 100, False)
    bench = TestBench.of(data, 10, True, False, (), True)
    found = [v for images in (*bench.images.values(), *bench.corrupted.values()) for v in measured(images.double())[:2]]
    made, _ = groups.kmeans_groups(data.normalise(data.test_images), 10, 0)
    return found + measured(made.double())


def _judged() -> list[float]:
    """All metrics of an evaluation: groups of every kind and the audit; one number a metric."""
    e = tiny(eval_honest_groups=True, eval_audit=2, eval_steps=12, eval_seeds=1, method="random", ipc=12)
    data = _data(e)
    small = sets.drawn(data, e)
    metrics = evaluate.evaluate(small.images, small.labels, data, e, e.seed, (repository_root() / "data" / "groups",))
    numbers = {name: torch.tensor(v, dtype=torch.float64) for name, v in metrics.items() if not name.endswith("sha256")}
    return [measured(numbers[name])[2] for name in sorted(numbers)]


# --- the ledger -------------------------------------------------------------------------------------------


def all_makers() -> list[tuple[str, ...]]:
    """The sets of modules that results are made by, one for each kind of result."""
    found = set()
    networks = (("convnet", "vit"), ("convnet", "resnetap10"))
    kinds = (
        ("random", "idc", "glad", "kip"),
        *networks,
        ("random", "representative"),
        (False, True),
        ("all", "distill"),
    )
    for method, network, own, choice, at_once, part in itertools.product(*kinds):
        e = {"method": method, "eval_network": network, "network": own, "real_choice": choice}
        found.add(provenance.makers(e | {"classes_at_once": at_once}, part))
    return sorted(found)


def version() -> dict[str, Any]:
    """Today's code: its hash for each kind of result, and what the probes give."""
    values = {name: [float(f"{v:.6g}") for v in probe.run()] for name, probe in probes().items()}
    return {"commit": provenance.commit(), "values": values,
            "hashes": sorted({provenance.source_hash(modules) for modules in all_makers()})}  # fmt: skip


def note() -> str:
    """Add today's code to `data/lineage.json`, unless it is there; says what was found."""
    path, now = provenance.lineage_file(), version()
    kept = json.loads(path.read_text()) if path.is_file() else {"versions": []}
    kept["modules"] = {name: sorted(probe.modules) for name, probe in probes().items()}
    kept["tolerance"] = TOLERANCE
    known = [v for v in kept["versions"] if v["hashes"] == now["hashes"]]
    if not known:
        kept["versions"].append(now)
        write_atomic(path, _text(kept))
    last = known[0] if known else (kept["versions"][-2] if len(kept["versions"]) > 1 else now)
    old = last["values"]
    changed = [n for n, v in now["values"].items() if n in old and not provenance.agree(v, old[n], TOLERANCE)]
    what = f"changed: {', '.join(changed)}" if changed else "all probes agree"
    what += f"; new: {', '.join(sorted(new))}" if (new := set(now["values"]) - set(old)) else ""
    return f"{'known' if known else 'noted'}; against {last['commit'] or 'the last version'}: {what}"


def _text(kept: dict[str, Any]) -> str:
    """JSON with one line a probe, so that a change can be read in a diff."""
    text = json.dumps(kept, indent=1)
    return re.sub(r"\[[^][{}]*\]", lambda found: " ".join(found[0].split()), text) + "\n"
