"""What a run costs: its arithmetic counted from its settings, and a model of seconds and memory fitted on records.

The arithmetic is exact in the number of passes of a network and counts one pass by running it (convolutions and matrix
products, in multiply-adds). The model has few rates, of all methods together, and a factor a method where there are
records of it. Its error is that on records it has not seen: each group of like runs is left out in turn. Beyond what
was recorded (another device, wider networks, larger images) a prediction is an extrapolation, and says so.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.special import stdtrit
from torch.utils.flop_counter import FlopCounterMode

from . import nets, recipes
from .base import SettingError, generator, repository_root
from .bench import LEVELS, MOST_CORRUPTED
from .corrupt import CORRUPTIONS, MATCHED, SHIFTS
from .experiment import Experiment
from .generator import Generator, GeneratorSettings
from .methods import LOOPED
from .stats import Interval
from .store import Record

# Channels, pixels a side, classes, training and test images, where nothing else is asked for.
DATA = {
    "digits": (1, 8, 10, 1078, 719), "cifar10": (3, 32, 10, 50_000, 10_000), "svhn": (3, 32, 10, 73_257, 26_032),
    "svhn_mini": (3, 32, 10, 650, 433), "imagenette": (3, 128, 10, 9469, 3925),
    "imagenette128": (3, 128, 10, 9469, 3925), "imagenet10": (3, 128, 10, 13_000, 500),
} | {f"imagenet_{x}": (3, 128, 10, 13_000, 500) for x in "abcde"}  # fmt: skip

# Passes of a network, in forward passes: its gradient in the weights takes three, that of the distance of two gradients
# in the images six (`fused.image_gradient`: two forward and two backward ones), that of a mean of features three.
GRADIENT, MATCHED_GRADIENT, MATCHED_MEAN = 3, 6, 3
ROUNDS, LEVEL = 20, 0.95  # in which rates and factors are fitted in turn; of every prediction interval
# What runs share that are left out together; the loop knows nothing of the evaluation.
LOOP_LIKE = ("dataset", "size", "method", "ipc", "factor", "network", "width", "outer_steps", "net_steps")
LIKE = {
    "distill": LOOP_LIKE, "memory": (*LOOP_LIKE, "eval_network", "eval_width", "eval_corruptions", "eval_audit"),
    "evaluate": ("dataset", "size", "method", "ipc", "factor", "eval_network", "eval_width", "eval_steps",
                 "eval_corruptions", "eval_audit"),
}  # fmt: skip
PARTS = ("distill", "evaluate", "memory")  # seconds, seconds, MB


@dataclass(frozen=True)
class Work:
    """What a run does: multiply-adds (in units of 10^9) and network passes of each part, and what it holds (MB)."""

    distill: float
    distill_passes: float
    training: float
    training_passes: float
    testing: float
    images_mb: float
    batch_mb: float

    @property
    def madds(self) -> float:
        """Multiply-adds of the whole run, in units of 10^9."""
        return self.distill + self.training + self.testing


# --- counting ---------------------------------------------------------------------------------------------


@functools.cache
def forward(network: str, shape: tuple[int, int, int], classes: int, depth: int, width: int) -> tuple[float, float]:
    """Of one image's forward pass: multiply-adds, and numbers that its layers give (activations). Takes milliseconds.

    Normalisation, activation and pooling are not counted as arithmetic.
    """
    net = nets.build(network, shape, classes, depth=depth, width=width, generator=generator(0, "price")).eval()
    kept: list[int] = []
    for layer in (m for m in net.modules() if not list(m.children())):
        layer.register_forward_hook(lambda _m, _i, out: kept.append(out.numel()))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, *shape))
    return counter.get_total_flops() / 2, float(sum(kept))


@functools.cache
def decoding(dataset: str, shape: tuple[int, int, int], classes: int) -> float:
    """Multiply-adds of one image of our generator for a data set: the kept one, or the default settings."""
    file = repository_root() / "data" / "priors" / f"{dataset}.json"
    settings = GeneratorSettings(**json.loads(file.read_text())["settings"]) if file.is_file() else GeneratorSettings()
    try:
        net = Generator(settings, shape, classes).eval()
    except SettingError:  # no generator of ours for this size; a reader's own is not counted
        return 0.0
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, settings.latent), torch.zeros(1, dtype=torch.long))
    return float(counter.get_total_flops()) / 2


def shape_of(e: Experiment) -> tuple[tuple[int, int, int], int, int, int]:
    """Shape, classes, training and test images of an experiment's data. SettingError for data of unknown size."""
    if e.dataset not in DATA:
        raise SettingError("dataset", e.dataset, f"one of known size: {', '.join(DATA)}")
    channels, size, classes, n_train, n_test = DATA[e.dataset]
    n_train, n_test = min(n_train, e.train_limit or n_train), min(n_test, e.test_limit or n_test)
    if e.eval_part == "validation":
        n_train, n_test = n_train - n_train // 10, n_train // 10
    return (channels, e.size or size, e.size or size), classes, n_train, n_test


def work(experiment: Experiment | Mapping[str, Any]) -> Work:
    """The arithmetic of an experiment, or of a record's settings. SettingError for KIP, which trains no network."""
    e = experiment if isinstance(experiment, Experiment) else Experiment(**experiment)
    if e.method == "kip":
        raise SettingError("method", e.method, "one that matches or draws; kernels are not counted in passes")
    shape, classes, n_train, n_test = shape_of(e)
    passes, calls = _distilling(e, shape, classes) if e.method in LOOPED else (0.0, 0.0)
    one, held = forward(e.eval_network, shape, classes, e.eval_depth, e.eval_width)
    factor = e.factor if e.method in (*LOOPED, "mix") else 1
    n_set = n_train if e.method == "full" else classes * e.ipc * factor**2
    steps = recipes.updates(e.eval_steps, n_set, e.eval_batch, factor, e.eval_scale_steps)
    batch, tests = min(e.eval_batch, n_set), 1 + len(SHIFTS) * e.eval_shifts
    whole, more = divmod(steps, a_pass := -(-n_set // batch))  # the last batch of a pass is smaller
    tested = n_test * tests + e.eval_audit * (n_test + min(n_test, n_train))
    tested += min(MOST_CORRUPTED, n_test) * (len(CORRUPTIONS) * len(LEVELS) + len(MATCHED)) * e.eval_corruptions
    return Work(
        distill=passes / 1e9, distill_passes=calls,
        training=e.eval_seeds * (whole * n_set + more * batch) * GRADIENT * one / 1e9,
        training_passes=float(e.eval_seeds * (whole * a_pass + more)),
        testing=e.eval_seeds * tested * one / 1e9,
        images_mb=(n_train + n_test * tests) * math.prod(shape) / 1e6,
        batch_mb=max(_largest(e, shape, classes), batch * held) * 4 / 1e6,
    )  # fmt: skip


def _distilling(e: Experiment, shape: tuple[int, int, int], classes: int) -> tuple[float, float]:
    """Multiply-adds and network passes of the loop."""
    one, _ = forward(e.network, shape, classes, e.depth, e.width)
    parts, tiles, steps = e.parts(), e.factor**2, e.outer_steps * e.inner_steps
    shown, mean, risky = min(e.batch_synthetic, e.ipc * tiles), parts.objective == "mean", e.risk in ("upper", "lower")
    image: float = e.batch_real * (1 if mean else GRADIENT) + shown * (MATCHED_MEAN if mean else MATCHED_GRADIENT)
    n_net = e.net_batch if parts.net_data == "real" else min(e.net_batch, classes * e.ipc * tiles)
    updates = e.outer_steps * (e.inner_steps - (not parts.train_last)) * e.net_steps
    network = float(n_net * GRADIENT)
    if risky and e.space == "feature":  # images and the tiles of the centres are embedded once more
        centres = min(e.ipc, e.max_centres) * tiles  # of a class
        network += classes * centres + n_net if e.where == "network" else 0
        image += centres + e.batch_real if e.where == "matching" else 0
    clusterings = e.outer_steps * -(-e.inner_steps // e.real_choice_interval) * (e.real_choice == "representative")
    embedded = clusterings * (e.real_pool or shape_of(e)[2] // classes)  # of a class
    madds = (steps * classes * image + updates * network + classes * embedded) * one
    if parts.prior != "none":
        madds += steps * classes * e.ipc * GRADIENT * decoding(e.dataset, shape, classes)
    return madds, float(2 * steps * classes + updates)


def _largest(e: Experiment, shape: tuple[int, int, int], classes: int) -> float:
    """Activations that the loop holds at once: of a matching step, which keeps two graphs, or of a network update."""
    if e.method not in LOOPED:
        return 0.0
    _, held = forward(e.network, shape, classes, e.depth, e.width)
    shown = min(e.batch_synthetic, e.ipc * e.factor**2)
    return max(2 * max(shown, e.batch_real), e.net_batch if e.net_steps else 0) * held


# --- the model --------------------------------------------------------------------------------------------


def tell(part: str, w: Work, rates: NDArray[np.float64]) -> float:
    """Seconds of a part, or MB for `memory`, at given rates."""
    return max(_given(part, w) + float(_features(part, w) @ rates), 1e-9)


@dataclass(frozen=True)
class CostModel:
    """Rates of one kind of device: `rates` of each part's features, `factors` of methods with records.

    `spread` is the standard deviation of the log error on groups left out, `groups` how many there were.
    """

    rates: dict[str, NDArray[np.float64]]
    factors: dict[tuple[str, str], float]
    spread: dict[str, float]
    groups: dict[str, int]

    def point(self, part: str, w: Work, method: str) -> float:
        """Seconds of a part, or MB for `memory`, without an interval."""
        return tell(part, w, self.rates[part]) * self.factors.get((part, method), 1.0)

    def predict(self, part: str, experiment: Experiment | Mapping[str, Any]) -> Interval:
        """The prediction for a run like none of those recorded, with a 95 % interval; `n` counts the groups behind it.

        The interval holds the error between groups of like runs, of the same device and code, and nothing else.
        """
        e = experiment if isinstance(experiment, Experiment) else Experiment(**experiment)
        if part not in self.rates:
            raise SettingError("part", part, f"one that records tell of: {', '.join(self.rates)}")
        n, value = self.groups[part], self.point(part, work(e), e.method)
        wide = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * self.spread[part] * math.sqrt(1 + 1 / n) if n > 1 else math.inf
        return Interval(value, value * math.exp(-wide), value * math.exp(wide), n)


def fit(records: Iterable[Record], device: str = "cpu") -> CostModel:
    """The model of the records of a device. Raises SettingError where there are none of it."""
    records = list(records)
    known = {part: rows(part, records, device) for part in PARTS}
    if not known["evaluate"]:
        raise SettingError("device", device, "one that records of known data were made on")
    found = {part: _fitted(part, own) for part, own in known.items() if own}
    errors = {part: [math.log(told / made) for _, made, told in held_out(part, own)] for part, own in known.items()}
    return CostModel(
        rates={part: rates for part, (rates, _) in found.items()},
        factors={(part, m): f for part, (_, factors) in found.items() for m, f in factors.items()},
        spread={part: math.sqrt(sum(e * e for e in own) / len(own)) if own else math.inf
                for part, own in errors.items()},
        groups={part: max(len(own), 1) for part, own in errors.items()},
    )  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One record for one part: its group of like runs, method, counted work, and what was measured."""

    group: str
    method: str
    work: Work
    value: float


def rows(part: str, records: Iterable[Record], device: str = "cpu") -> list[Row]:
    """The records of a device as the model sees them, for one part: those of known data that have such a part."""
    found, defaults = [], asdict(Experiment())
    for record in records:
        settings = defaults | record.experiment
        if not record.device.startswith(device) or settings["method"] == "kip" or settings["dataset"] not in DATA:
            continue
        # A machine shared with other work inflates the wall's seconds, several threads the processor's.
        seconds = min(record.seconds.get(part, 0.0), record.cpu_seconds.get(part, math.inf))
        value = record.peak_memory_mb if part == "memory" else seconds
        if value > 0:
            group = json.dumps([settings[name] for name in LIKE[part]])
            found.append(Row(group, settings["method"], work(settings), value))
    return found


def _features(part: str, w: Work) -> NDArray[np.float64]:
    """What a part's price is linear in: arithmetic and calls; for memory the program and the images."""
    return np.array({
        "distill": [w.distill, w.distill_passes], "evaluate": [w.training, w.testing, w.training_passes],
        "memory": [1.0, w.images_mb],
    }[part])  # fmt: skip


def _given(part: str, w: Work) -> float:
    """What is known without a fit: the largest batch's activations are held once, for the backward pass."""
    return w.batch_mb if part == "memory" else 0.0


def _fitted(part: str, own: Sequence[Row]) -> tuple[NDArray[np.float64], dict[str, float]]:
    """Non-negative rates by least squares of relative errors, groups weighing the same; in turn with factors."""
    sizes = {r.group: sum(q.group == r.group for q in own) for r in own}
    factors: dict[str, float] = {}
    for _ in range(ROUNDS if part == "distill" else 1):
        value = np.array([r.value / factors.get(r.method, 1.0) for r in own])
        weight = 1 / (value * np.sqrt([sizes[r.group] for r in own]))
        table = np.array([_features(part, r.work) for r in own]) * weight[:, None]
        scale = np.maximum(table.max(0), 1e-300)
        given = np.array([_given(part, r.work) for r in own])
        rates = nnls(table / scale, weight * (value - given))[0] / scale
        factors = _factors(part, own, rates) if part == "distill" else {}
    return rates, factors


def _factors(part: str, own: Sequence[Row], rates: NDArray[np.float64]) -> dict[str, float]:
    """Geometric mean of measured over told, by method over its groups; scaled so that their own mean is 1."""
    logs: dict[str, dict[str, list[float]]] = {}
    for r in own:
        ratio = math.log(r.value / tell(part, r.work, rates))
        logs.setdefault(r.method, {}).setdefault(r.group, []).append(ratio)
    means = {method: float(np.mean([np.mean(v) for v in of.values()])) for method, of in logs.items()}
    middle = float(np.mean(list(means.values())))
    return {method: math.exp(mean - middle) for method, mean in means.items()}


def held_out(part: str, own: Sequence[Row]) -> list[tuple[str, float, float]]:
    """(group, measured, predicted) of each group by the model of all others; a method that is new has factor 1."""
    found: list[tuple[str, float, float]] = []
    for group in dict.fromkeys(r.group for r in own):
        rest, left = [r for r in own if r.group != group], [r for r in own if r.group == group]
        if rest:
            rates, factors = _fitted(part, rest)
            told = [tell(part, r.work, rates) * factors.get(r.method, 1.0) for r in left]
            found.append((group, math.exp(np.mean(np.log([r.value for r in left]))), float(np.mean(told))))
    return found
