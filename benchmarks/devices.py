"""One set, two devices: control's sets from a card, trained on and tested again here: `python benchmarks/devices.py`.

The primary comparison of the fair test was made on a graphics card, later runs on a processor. This trains new networks
on the committed sets of the first, by the settings of their records and with the same seeds, and keeps both numbers:
benchmarks/results/devices.json. It needs CIFAR-10 ($RDD_DATA); two minutes a set on one core.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from rddlib.base import write_atomic  # noqa: E402
from rddlib.data.dataset import DataSet  # noqa: E402
from rddlib.distillation import synthetic  # noqa: E402
from rddlib.evaluation import evaluate  # noqa: E402
from rddlib.experiments import provenance  # noqa: E402
from rddlib.experiments.experiment import Experiment, load_data  # noqa: E402
from rddlib.experiments.records import Store  # noqa: E402

MEASURES = ("accuracy", "cluster_min", "noise", "blur", "invert")


def again(experiment: Experiment, data: DataSet) -> dict[str, object]:
    """Means over the trainings on the set of this experiment, as recorded and as measured here, in per cent."""
    store = Store(ROOT / "data")
    record = store.match(experiment.key)
    made = synthetic.read(store.distilled(record.set_name))
    folders = (ROOT / "data" / "groups",)
    here = evaluate.evaluate(*made.decoded(), data, experiment, experiment.seed, folders, factor=made.factor)
    return {
        "record": record.key,
        "recorded_on": record.device,
        "recorded": {name: round(float(np.mean(record.metrics[name])), 3) for name in MEASURES},
        "here": {name: round(float(np.mean(here[name])), 3) for name in MEASURES},
    }


def main() -> None:
    """Measure every seed, and write the file after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    asked = parser.parse_args()
    origin = provenance.of_now(on_gpu=False)
    found = {"about": __doc__.splitlines()[0], "device": origin["device"], "torch": torch.__version__, "seeds": {}}
    runs = [Experiment.preset("cpu", dataset="cifar10", ipc=10, risk="control", seed=seed) for seed in asked.seeds]
    data = load_data(runs[0])  # the same for all of them
    for seed, experiment in zip(asked.seeds, runs, strict=True):
        found["seeds"][str(seed)] = again(experiment, data)
        text = json.dumps(found, indent=1) + "\n"
        write_atomic(ROOT / "benchmarks" / "results" / "devices.json", text)
        print(seed, found["seeds"][str(seed)], flush=True)


if __name__ == "__main__":
    main()
