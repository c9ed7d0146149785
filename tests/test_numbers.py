"""Short runs whose numbers are pinned: a change of any of them is a change of results, and needs a new version.

`tests/numbers.json` holds what each run gave under the results version `provenance.RESULTS`. An edit that only tidies
or speeds up moves a number by rounding alone. One that changes results on purpose raises `RESULTS` by one, which calls
all older records stale, and then writes the file anew: `python tests/test_numbers.py`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, tiny
from torch import Tensor

from rddlib import risk
from rddlib.base import generator, write_atomic
from rddlib.data import augment, corruptions, dataset
from rddlib.distillation import clusters, distill, matching, synthetic
from rddlib.distillation.glad import prior
from rddlib.distillation.kip import inducing_points
from rddlib.distillation.loop import stored_set
from rddlib.evaluation import evaluate, groups
from rddlib.evaluation.metrics import TestBench
from rddlib.experiments import provenance, small_sets
from rddlib.experiments.experiment import Experiment
from rddlib.models import training

FILE = Path(__file__).with_name("numbers.json")
TOLERANCE = 1e-3  # relative to the size of a run's numbers: rounding shows at 1e-5, a change of meaning far above
UPPER: dict[str, Any] = {"risk": "upper", "alpha": 0.6}
DM: dict[str, Any] = {"method": "dm", "net_steps": 0, "lr_image": 3.0}

DISTILLED: dict[str, dict[str, Any]] = {
    "idc": {"factor": 2},
    "idc, tiles of a third": {"factor": 3, "ipc": 1, "batch_synthetic": 4},
    "idc, upper tail": {**UPPER, "factor": 2},
    "idc, lower tail": {**UPPER, "risk": "lower", "scope": "class", "space": "pixel"},
    "idc, as released": {**UPPER, "risk": "released"},
    "idc, literal": {**UPPER, "risk": "literal", "lr_net": 1e-4},
    "idc, risk in matching": {**UPPER, "where": "matching"},
    "idc, greedy centres": {**UPPER, "ipc": 3, "max_centres": 2, "centre_choice": "greedy"},
    "idc, drawn centres": {**UPPER, "ipc": 3, "max_centres": 2},
    "idc, cosine": {"metric": "dc", "net_data": "synthetic"},
    "idc, classes at once": {"factor": 2, "classes_at_once": True},
    "idc, representative": {"real_choice": "representative", "real_choice_interval": 1, "real_pool": 40},
    "idc, resnet": {"network": "resnetap10", "width": 4, "size": 32, "outer_steps": 1},
    "dc": {"method": "dc", "match_augment": "none", "net_augment": "none", "cutmix": 0.0},
    "dsa": {"method": "dsa", "cutmix": 0.0, "ipc": 30, "net_batch": 128},
    "dm": DM,
    "dm, classes at once": {**DM, "classes_at_once": True},
    "dm, representative": {**DM, "real_choice": "representative"},
    "glad": {"method": "glad", "prior_layer": 1, "cutmix": 0.0},
    "glad, projected": {"method": "glad", "prior_layer": 0, "prior_start": "project", "cutmix": 0.0, **UPPER},
    "kip": {"method": "kip", "kip_steps": 4, "kip_batch": 60},
    "kip, convolutional": {
        "method": "kip", "kernel": "conv", "kip_pooling": "global", "kip_steps": 2, "kip_batch": 10, "ipc": 1,
        "learn_labels": True, "kip_clamp": True, "zca": False, "train_limit": 40, "test_limit": 40,
    },
}  # fmt: skip
TRAINED: dict[str, dict[str, Any]] = {
    "train, idc": {},
    "train, dc": {"eval_recipe": "dc", "eval_cutmix": 0.0},
    "train, glad": {"eval_recipe": "glad", "eval_cutmix": 0.0},
    "train, resnet10": {"eval_network": "resnet10", "eval_width": 4, "size": 32, "eval_steps": 2, "eval_batch": 20},
    "train, resnetap18": {"eval_network": "resnetap18", "eval_width": 4, "size": 32, "eval_steps": 2, "eval_batch": 20},
    "train, vgg11": {"eval_network": "vgg11", "eval_width": 4, "size": 32, "eval_steps": 2, "eval_batch": 20},
    "train, vit": {"eval_network": "vit", "eval_width": 16, "size": 32, "eval_steps": 2, "eval_batch": 20},
}


def three_numbers(x: Tensor) -> list[float]:
    """Norm, scaled mean and a fixed pseudo-random projection: they tell two tensors apart."""
    flat = x.detach().double().flatten()
    weights = torch.cos(torch.arange(len(flat), dtype=torch.float64) * 1.2345)
    return [float(value) for value in (flat.norm(), flat.mean() * len(flat) ** 0.5, flat @ weights)]


def digits(e: Experiment) -> dataset.DataSet:
    return dataset.load("digits", size=e.size, train_limit=e.train_limit, test_limit=e.test_limit)


def distilled(e: Experiment) -> list[float]:
    """How far the images have moved, and the matched distance (KIP: the losses) of the last step."""
    images = digits(e)
    made, history = distill.distill(images, e)
    if e.method == "kip":
        losses = [history[-1]["loss"], history[-1]["outside"]]
        return [*three_numbers(made.images), *losses, inducing_points.kernel_accuracy(made, images, e)]
    source = prior.load(e.parts().prior, images, e.prior_layer, e.prior_start)
    with torch.no_grad():
        labels = synthetic.class_labels(images.n_classes, e.ipc)
        start = stored_set(distill.begin(images, e, source).codes, labels, source, e).images
    return [*three_numbers(made.images - start), history[-1]["distance"]]


def trained(e: Experiment) -> list[float]:
    """Logits of a network trained for a few steps on real images."""
    images = digits(e)
    net = evaluate.train(images.train_images[:120], images.train_labels[:120], images, e, 3)
    with torch.inference_mode():
        return three_numbers(net(images.normalise(images.test_images[:50])))


def drawn() -> list[float]:
    """The sets that nobody distils, and the data itself."""
    images = digits(tiny())
    found = []
    for method, factor in (("random", 1), ("first_n", 1), ("mix", 2), ("full", 1)):
        small = small_sets.drawn(images, tiny(method=method, factor=factor))
        found += three_numbers(images.normalise(small.images) * (1 + small.labels.view(-1, 1, 1, 1)))
    start = synthetic.start(images, 2, 3, generator(1, "start"))
    return found + three_numbers(synthetic.decode(start.images, 3))


def benched() -> list[float]:
    """Every shifted and corrupted image, at a size at which all of them do something, and the published groups."""
    images = dataset.load("digits", size=32, test_limit=100)
    bench = TestBench.of(images, k=10, shifts=True, honest=False, corruptions=True)
    found = []
    for tested in (*bench.images.values(), *bench.corrupted.values()):
        found += three_numbers(tested.double())[:2]
    made, _ = groups.kmeans_groups(images.normalise(images.test_images), 10, 0)
    return found + three_numbers(made.double())


def judged() -> list[float]:
    """All metrics of an evaluation, groups of every kind and the audit included; one number a metric."""
    e = tiny(eval_honest_groups=True, eval_audit=2, eval_steps=12, eval_seeds=1, method="random", ipc=12)
    images = digits(e)
    small = small_sets.drawn(images, e)
    metrics = evaluate.evaluate(small.images, small.labels, images, e, e.seed, [ROOT / "data" / "groups"])
    names = sorted(name for name in metrics if not name.endswith("sha256"))
    return [three_numbers(torch.tensor(metrics[name], dtype=torch.float64))[2] for name in names]


RUNS: dict[str, Callable[[], list[float]]] = {"draw": drawn, "bench": benched, "judge": judged}
RUNS |= {name: lambda own=own: distilled(tiny(**own)) for name, own in DISTILLED.items()}
RUNS |= {name: lambda own=own: trained(tiny(**own)) for name, own in TRAINED.items()}


def agree(found: list[float], pinned: list[float]) -> bool:
    """Whether two lists of numbers differ by rounding at most."""
    if len(found) != len(pinned):
        return False
    size = max(map(abs, pinned))
    return all(abs(a - b) <= TOLERANCE * size for a, b in zip(found, pinned, strict=True))


def pinned() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", RUNS)
def test_a_short_run_gives_the_pinned_numbers(name: str) -> None:
    assert agree(RUNS[name](), pinned()["values"][name])


def test_the_pinned_numbers_are_those_of_this_results_version() -> None:
    assert pinned()["results"] == provenance.RESULTS
    assert pinned()["values"].keys() == RUNS.keys()


def slightly_more(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: function(*args, **kwargs) * 1.03


# What is changed in the code, and a run that must notice it.
CHANGES: dict[str, tuple[Any, str, Any, str]] = {
    "a wider crop": (augment, "CROP", 2 * augment.CROP, "idc"),
    "a weaker contrast": (augment, "CONTRAST", 0.9 * augment.CONTRAST, "train, idc"),
    "a distance that counts three per cent more": (matching, "distance", slightly_more(matching.distance), "dc"),
    "a faster decay of averaged weights": (training, "AVERAGED", {**training.AVERAGED, "glad": 0.1}, "train, glad"),
    "a risk that weighs three per cent more": (risk, "group_risk", slightly_more(risk.group_risk), "idc, upper tail"),
    "the first centre in the place of the nearest": (
        clusters,
        "assign",
        lambda points, *others: torch.zeros(len(points), dtype=torch.long),
        "idc, upper tail",
    ),
    "fog three per cent thicker": (corruptions, "plasma", slightly_more(corruptions.plasma), "bench"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_meaning_is_noticed(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, name, value, run = CHANGES[change]
    monkeypatch.setattr(module, name, value)
    assert not agree(RUNS[run](), pinned()["values"][run])


def write() -> str:
    """Pin today's numbers. What is pinned is changed under a new results version only."""
    values = {name: [float(f"{value:.6g}") for value in run()] for name, run in RUNS.items()}
    before = pinned() if FILE.is_file() else {"results": 0, "values": {}}
    changed = [name for name in values if name in before["values"] and not agree(values[name], before["values"][name])]
    if changed and before["results"] == provenance.RESULTS:
        return f"changed: {'; '.join(changed)}. Raise provenance.RESULTS if that is meant; nothing was written"
    lines = ",\n".join(f'  "{name}": {json.dumps(numbers)}' for name, numbers in values.items())
    write_atomic(FILE, f'{{\n "results": {provenance.RESULTS},\n "values": {{\n{lines}\n }}\n}}\n')
    return f"{len(values)} runs pinned for results version {provenance.RESULTS}; changed: {changed or 'none'}"


if __name__ == "__main__":
    sys.exit(print(write()))
