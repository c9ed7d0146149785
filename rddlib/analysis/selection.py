"""The selection audit: what reading a training at its best step would add to a number, and to a comparison.

From one and the same training `evaluation.best_step` notes the last step, the step that validation images choose, and
the best on test. What a reading adds is its difference to the last step, in points of accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..base import SettingError, numpy_generator
from ..experiments.records import Record
from ..stats import Interval, mean_interval, paired_difference

READINGS = {"last": "audit_last", "chosen": "audit_chosen", "best": "audit_best"}


def readings(records: Sequence[Record], reading: str) -> NDArray[np.float64]:
    """Accuracy (D, E) in per cent at one of "last", "chosen" (by validation images), "best" (on test); seeds in order.

    Raises SettingError for another reading, or for a run without an audit.
    """
    if reading not in READINGS:
        raise SettingError("reading", reading, f"one of {', '.join(READINGS)}")
    own = sorted(records, key=lambda r: r.experiment["seed"])
    if plain := [r.key for r in own if READINGS[reading] not in r.metrics]:
        raise SettingError("records", plain[0], "runs with eval_audit above 0")
    return np.array([r.metrics[READINGS[reading]] for r in own], dtype=np.float64)


def added(records: Sequence[Record], reading: str) -> Interval:
    """What a reading adds to the last step of the same trainings, with an interval over distillation seeds."""
    return paired_difference(readings(records, reading), readings(records, "last"))


def gain(a: Sequence[Record], b: Sequence[Record], reading_a: str = "last", reading_b: str = "last") -> Interval | None:
    """Accuracy of a less that of b, paired over the seeds both have, each at its own reading; None without a pair."""
    both = {r.experiment["seed"] for r in a} & {r.experiment["seed"] for r in b}
    if not both:
        return None
    left, right = ([r for r in own if r.experiment["seed"] in both] for own in (a, b))
    return paired_difference(readings(left, reading_a), readings(right, reading_b))


def looks(records: Sequence[Record]) -> dict[int, Interval]:
    """What the best on test adds to the last step, by the number of looks: the last k checkpoints of each training.

    From 1, the last step alone, to all. Looking more often can only add.
    """
    curves = np.array(
        [r.metrics["audit_test"] for r in sorted(records, key=lambda r: r.experiment["seed"])]
    )  # (D, E, K)
    last = curves[:, :, -1]
    return {k: paired_difference(curves[:, :, -k:].max(2), last) for k in range(1, curves.shape[2] + 1)}


def over_trainings(records: Sequence[Record], test: str) -> Interval:
    """What the best of a set's trainings adds to their mean on a test, with an interval over distillation seeds.

    The other selection of published numbers: several networks are trained on one set and the largest value is told.
    """
    values = [r.metrics[test] for r in sorted(records, key=lambda r: r.experiment["seed"])]
    return mean_interval([[max(own) - float(np.mean(own))] for own in values])


def expected_best(error: float, looks: int, draws: int = 20000) -> float:
    """The mean of the largest of `looks` independent errors of this standard deviation: what chance alone would add.

    Checkpoints of one training share their test images and most of their weights, so that chance adds less than this.
    """
    if error < 0 or looks < 1:
        raise SettingError("looks", (error, looks), "an error of at least 0 and at least one look")
    rng = numpy_generator(0, "looks", looks)
    return error * float(rng.standard_normal((draws, looks)).max(1).mean())
