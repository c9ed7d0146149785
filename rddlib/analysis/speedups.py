"""Time to accuracy: how the accuracy of a distilled set grows with processor seconds, and who arrives first.

A longer distillation begins as a shorter one of its seed does, so runs of several lengths are points of one curve. It
is read linearly between its points and never beyond them. Seeds are paired, the unit of replication as everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..stats import Interval, mean_interval
from .report import NOT_RUN, Arm, Page

Line = tuple[NDArray[np.float64], NDArray[np.float64]]  # processor seconds (P,), accuracy in per cent (P,)
CHOICES = ("random", "representative")


@dataclass(frozen=True)
class Curve:
    """The runs of one arm by the number of outer steps they did; 0 is the start, before any distillation."""

    points: Mapping[int, Arm]

    @classmethod
    def of(cls, page: Page, choice: str) -> Curve:
        """The curve of `real_choice` on a page of the grid speedups."""
        kind = {"method": "idc", "real_choice": choice}
        found = {n: page.arm(**kind, outer_steps=n) for n in page.values("outer_steps", **kind)}
        return cls({0: page.arm(method="mix")} | found)

    def seconds(self, steps: int) -> list[float]:
        """Processor seconds of distillation of each seed's run of so many outer steps."""
        return [r.cpu_seconds["distill"] for r in self.points[steps].records]

    def line(self, seed: int) -> Line:
        """One seed's curve: seconds and accuracies (mean over evaluations) of the runs there are, shortest first."""
        own = [r for n in sorted(self.points) for r in self.points[n].records if r.experiment["seed"] == seed]
        times = [r.cpu_seconds["distill"] for r in own]
        return np.array(times), np.array([np.mean(r.metrics["accuracy"]) for r in own])

    def seeds(self) -> set[int]:
        """The seeds whose run of the most outer steps is there, and at least one point before it."""
        last = set(self.points[max(self.points)].seeds())
        return {s for s in last if len(self.line(s)[0]) > 1}


def arrival(line: Line, level: float) -> float:
    """The first processor second at which a curve has the accuracy `level`; inf where it does not get there."""
    times, values = line
    if values[0] >= level:
        return float(times[0])
    for i in range(1, len(values)):
        if values[i] >= level:
            share = (level - values[i - 1]) / (values[i] - values[i - 1])
            return float(times[i - 1] + share * (times[i] - times[i - 1]))
    return float("inf")


def at(line: Line, second: float) -> float:
    """The accuracy of a curve at a processor second within its range; nan outside."""
    return float(np.interp(second, *line, left=np.nan, right=np.nan))


@dataclass(frozen=True)
class Race:
    """A curve against the random one, paired over the seeds that both have; None where nothing can be said yet.

    `same_steps`, `same_time`: gain in accuracy (points) after as many outer steps, and after as many processor seconds,
    at the end of the shorter curve. `price`: processor seconds of the whole run over those of the random one. `ratio`:
    time to the final accuracy of the random curve over its own time to get there, in `arrived` of `seeds` seeds; an
    interval only where all arrive. Ratios are averaged, and their intervals made, in logarithms.
    """

    same_steps: Interval | None = None
    same_time: Interval | None = None
    price: Interval | None = None
    ratio: Interval | None = None
    arrived: int = 0
    seeds: int = 0


def race(other: Curve, random: Curve) -> Race:
    """Compare a curve with the random one."""
    seeds = sorted(other.seeds() & random.seeds())
    if not seeds:
        return Race()
    pairs = [(other.line(seed), random.line(seed)) for seed in seeds]
    at_end, at_time, prices, times = [], [], [], []
    for (seconds, values), (random_seconds, random_values) in pairs:
        goal, shorter = random_values[-1], min(seconds[-1], random_seconds[-1])
        at_end.append(values[-1] - goal)
        at_time.append(at((seconds, values), shorter) - at((random_seconds, random_values), shorter))
        prices.append((seconds[-1], random_seconds[-1]))
        times.append((arrival((seconds, values), goal), arrival((random_seconds, random_values), goal)))
    arrived = sum(np.isfinite(own) for own, _ in times)
    has_ratio = arrived == len(seeds) and all(min(pair) > 0 for pair in times)
    return Race(
        mean_interval(at_end),
        mean_interval(at_time),
        geometric(prices),
        geometric(times) if has_ratio else None,
        arrived,
        len(seeds),
    )


def geometric(pairs: list[tuple[float, float]]) -> Interval:
    """Geometric mean of a / b with an interval over the pairs; both above 0."""
    logarithm = mean_interval(np.log([a / b for a, b in pairs]))
    mean, low, high = (float(np.exp(v)) for v in (logarithm.mean, logarithm.low, logarithm.high))
    return Interval(mean, low, high, logarithm.n)


def times(ratio: Interval | None) -> str:
    """A ratio with its interval as the cell of a table, '1.10 [1.02, 1.19] times'."""
    if ratio is None:
        return NOT_RUN
    span = f" [{ratio.low:.2f}, {ratio.high:.2f}]" if np.isfinite(ratio.low) else " (one seed: no interval)"
    return f"{ratio.mean:.2f}{span} times"
