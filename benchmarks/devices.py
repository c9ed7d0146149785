"""One arm, two devices: what a set, and what its distillation, give on another machine: `python benchmarks/devices.py`.

The primary comparison of the fair test was made on a graphics card, later runs on a processor. Without options this
trains new networks on control's committed sets, by the settings of their records and with the same seeds. With
`--distil` it makes the sets anew as well: same settings and draws, only the rounding differs. Both keep the recorded
number and the one measured here, in data/loop/devices.json. It needs CIFAR-10 ($RDD_DATA); on one core two
minutes a set, and twenty for one that is made anew at the scale cpu. Seeds that are there are not measured again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from rddlib import files  # noqa: E402
from rddlib.analysis import coverage, inner_loop  # noqa: E402
from rddlib.base import write_atomic  # noqa: E402
from rddlib.data.dataset import DataSet  # noqa: E402
from rddlib.distillation import distill, synthetic  # noqa: E402
from rddlib.evaluation import evaluate  # noqa: E402
from rddlib.experiments import provenance  # noqa: E402
from rddlib.experiments.experiment import Experiment, load_data  # noqa: E402
from rddlib.experiments.records import Store  # noqa: E402

MEASURES = ("accuracy", "cluster_min", "noise", "blur", "invert")
FILE = ROOT / "data" / "loop" / "devices.json"


def measured(experiment: Experiment, data: DataSet, anew: bool) -> dict[str, object]:
    """The recorded measures of this experiment, and those of its set here: means over the trainings, in per cent.

    `anew`: the set is distilled here; then "apart" is its root mean square distance from the recorded one and
    "roughness" that of both, in per cent of the pixel range.
    """
    store = Store(ROOT / "data")
    record = store.match(experiment.key)
    kept = synthetic.read(store.distilled(record.set_name))
    found: dict[str, object] = {"record": record.key, "set": record.set_key, "recorded_on": record.device}
    made = kept
    if anew:
        checkpoint = Store().work(record.set_key) / "again.pt"  # one that was stopped goes on
        made = synthetic.quantised(distill.distill(data, experiment, checkpoint)[0])
        checkpoint.unlink()  # the next measurement is a new one
        both = [100 * coverage.roughness(images) for images in (kept.images, made.images)]
        found["apart"] = round(100 * float((made.images - kept.images).square().mean().sqrt()), 3)
        found["roughness"] = [round(value, 3) for value in both]
    folders = (ROOT / "data" / "groups",)
    here = evaluate.evaluate(*made.decoded(), data, experiment, experiment.seed, folders, factor=made.factor)
    for name, values in (("recorded", record.metrics), ("here", here)):
        found[name] = {measure: round(float(np.mean(values[measure])), 3) for measure in MEASURES}
    return found


def main() -> None:
    """Measure every seed that is missing, and write the file after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--scale", choices=("laptop", "cpu"), default="cpu")
    parser.add_argument("--distil", action="store_true", help="make the sets anew")
    asked = parser.parse_args()
    origin = {"device": provenance.of_now(on_gpu=False)["device"], "torch": torch.__version__}
    name = f"{'distilled' if asked.distil else 'judged'}, {asked.scale}"
    runs = {s: Experiment.preset(asked.scale, dataset="cifar10", ipc=10, risk="control", seed=s) for s in asked.seeds}
    data = load_data(next(iter(runs.values())))  # the same for all of them
    for seed, experiment in runs.items():
        if str(seed) in inner_loop.read(FILE).get(name, {}):
            continue
        entry = origin | measured(experiment, data, asked.distil)
        found = inner_loop.read(FILE)  # another process may have written meanwhile
        found.setdefault(name, {})[str(seed)] = entry
        write_atomic(FILE, files.to_json(found))
        print(name, seed, entry, flush=True)


if __name__ == "__main__":
    main()
