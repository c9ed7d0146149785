"""Inner steps at the scale `cpu` on a card, launched one by one and as a CUDA graph: `python benchmarks/card.py`.

For each arm: milliseconds an inner step of both ways (random images, the mean of 20 steps after four), and how far the
images of the graph part from those without it, beside how far two runs without it part: on a card sums are made in
another order each time. `--device cpu` tries the script out, without a graph. It has not run on a card in this form:
an earlier one made benchmarks/results/card_h100.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [folder for folder in (str(ROOT), str(ROOT / "benchmarks")) if folder not in sys.path]

import torch  # noqa: E402
from measure import How, device_name, random_data, significant  # noqa: E402
from torch import Tensor  # noqa: E402

from rddlib.distillation import distill  # noqa: E402
from rddlib.distillation.batched import ClassLoop  # noqa: E402
from rddlib.distillation.glad import prior  # noqa: E402
from rddlib.distillation.graph import GraphLoop  # noqa: E402
from rddlib.experiments.experiment import Experiment  # noqa: E402

STEPS, WARM = 20, 4


def timed(
    loop_class: type[ClassLoop], risk: str, device: str, steps: int, **chosen: Any
) -> tuple[float, Tensor, Tensor]:
    """Milliseconds an inner step, and the images before the first and after the last one."""
    settings = Experiment.preset("cpu", ipc=10, seed=0, risk=risk, inner_steps=steps + WARM + 1, **chosen)
    data = random_data(5000, device=device)
    source = prior.load("none", data, settings.prior_layer, settings.prior_start)
    state = distill.begin(data, settings, source)
    loop = loop_class(data, settings, state, source)
    loop.start_network()
    loop.inner_step(first=True)
    for _ in range(WARM - 1):
        loop.inner_step()
    clock = How(device=device).clock  # waits for the card
    start = clock()
    for _ in range(steps):
        loop.inner_step()
    return 1e3 * (clock() - start) / steps, state.codes["pixels"], loop.codes["pixels"]


def compare(risk: str, device: str, steps: int, **chosen: Any) -> dict[str, float]:
    """Times of an arm, and distances as shares of the way of the image that moved most."""
    ways = [ClassLoop, ClassLoop, *([GraphLoop] if device == "cuda" else [])]
    times, starts, ends = zip(*(timed(way, risk, device, steps, **chosen) for way in ways), strict=True)
    way = (ends[0] - starts[0]).abs().max()
    apart = [float((end - ends[0]).abs().max() / way) for end in ends[1:]]
    found = {"one_by_one_ms": times[1], "two_runs_apart": apart[0]}
    if device == "cuda":
        found |= {"graph_ms": times[2], "graph_apart": apart[1]}
    return {name: significant(value, 3) for name, value in found.items()}


def main() -> None:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default cuda")
    device = top.parse_args().device
    small = {} if device == "cuda" else {"width": 4, "batch_real": 8, "net_batch": 16}
    found = {risk: compare(risk, device, STEPS if device == "cuda" else 1, **small) for risk in ("control", "upper")}
    print(json.dumps({"device": device_name(device, 1), "torch": torch.__version__} | found, indent=1))


if __name__ == "__main__":
    main()
