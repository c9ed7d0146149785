"""Commands about users' own data and sets: ``rddlib data | evaluate | export``; `cli` hangs them beside the others."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from .base import SettingError, check_device
from .data import dataset, summary
from .data.summary import sheet
from .evaluation.metrics import nulls
from .experiments import export, foreign
from .experiments.experiment import Experiment, fields, load_data, run
from .experiments.presets import SCALES
from .experiments.records import Store

DATA_FIELDS = ("dataset", "size", "train_limit", "test_limit", "seed")


def add(commands: Any) -> None:
    """Add the parsers of these commands to a parser's `commands`."""
    look = commands.add_parser("data", help="what a data set holds, and what can be distilled from it")
    look.set_defaults(command=_data)
    look.add_argument("name", metavar="NAME", help="digits, cifar10, folder:PATH, npz:PATH, ... as for `run`")
    look.add_argument("--size", type=int, metavar="PX", help="resize images to this many pixels a side")
    look.add_argument("--picture", metavar="FILE", help="write a sheet of samples, a row a class, as PNG")
    _add_evaluate(commands)
    out = commands.add_parser("export", help="a distilled set as PNGs, as one picture, or as tensors")
    out.set_defaults(command=_export)
    out.add_argument("key", help="key of its record, or its first characters")
    form = out.add_mutually_exclusive_group(required=True)
    form.add_argument("--png", metavar="FOLDER", help="class folders of PNGs, in a new folder")
    form.add_argument("--grid", metavar="FILE", help="one PNG, a row a class")
    form.add_argument("--pt", metavar="FILE", help="[images, labels] for torch.load(FILE, weights_only=True)")
    out.add_argument("--stored", action="store_true", help="images as stored, tiles together (default: decoded)")
    for command in (look, commands.choices["evaluate"]):
        command.add_argument("--data-root", metavar="DIR", help="where data lies (default $RDD_DATA, else data/cache)")
    for command in (out, commands.choices["evaluate"]):
        command.add_argument("--store", metavar="DIR", help="where records are kept (default $RDD_STORE, else data/)")


def _add_evaluate(commands: Any) -> None:
    judge = commands.add_parser("evaluate", help="judge a set that was distilled elsewhere, beside random images")
    judge.set_defaults(command=_evaluate)
    judge.add_argument(
        "file", metavar="FILE", help=".npz, .pt of DC, DSA, DM, IDC or MTT (not whitened), or a folder of class folders"
    )
    judge.add_argument("--range", choices=foreign.RANGES, help="what its values are (default: told from them)")
    judge.add_argument("--factor", type=int, help="tiles a side of a stored image, as IDC has them (default 1)")
    judge.add_argument(
        "--labels", metavar="FILE", help="labels, where they are apart (default labels_X beside images_X)"
    )
    judge.add_argument("--number", type=int, default=1, help="which set of a file that has several (default 1)")
    judge.add_argument("--no-floor", action="store_true", help="do not judge random images beside it")
    judge.add_argument("--scale", choices=SCALES, default="smoke", help="preset of the evaluation (default smoke)")
    judge.add_argument("--device", default="cpu", help="cpu, cuda, mps (default cpu); not part of the key")
    for name, meaning, _, allowed in fields():
        if name in DATA_FIELDS or name.startswith("eval_"):
            judge.add_argument(
                f"--{name.replace('_', '-')}",
                type=reader(name),
                metavar="VALUE",
                default=argparse.SUPPRESS,
                help=f"{meaning}; {allowed}".replace("%", "%%"),
            )


def reader(name: str, settings: type = Experiment) -> Any:
    """A function from the option's text to the field's type; what it cannot read it leaves to the field's check."""
    kinds = str(next(f.type for f in dataclasses.fields(settings) if f.name == name)).split(" | ")

    def read(text: str) -> Any:
        if "bool" in kinds:
            return {"true": True, "false": False}.get(text.lower(), text)
        if "None" in kinds and "str" not in kinds and text.lower() == "none":
            return None
        for kind, convert in (("int", int), ("float", float)):
            if kind in kinds:
                try:
                    return convert(text)
                except ValueError:
                    return text
        return text

    return read


def _data(options: argparse.Namespace) -> None:
    data = dataset.load(options.name, options.data_root, size=options.size)
    print("\n".join(summary.lines(data)))
    if options.picture is not None:
        if Path(options.picture).suffix.lower() != ".png":
            raise SettingError("picture", options.picture, "a name that ends in .png")
        print(f"samples: {sheet(summary.samples(data), Path(options.picture).expanduser())}")


def _evaluate(options: argparse.Namespace) -> None:
    check_device(options.device)
    chosen = {n: v for n, v in vars(options).items() if n in DATA_FIELDS or n.startswith("eval_")}
    asked = Experiment.preset(options.scale, **chosen)  # refuses what cannot be before data is read
    store = Store(options.store)
    data = load_data(asked, root=options.data_root)
    found = foreign.read(options.file, data, options.range, options.factor, options.labels, options.number)
    print(found.words)
    experiment = foreign.experiment_of(found, options.scale, **chosen)
    records = {"this set": foreign.judge(found, experiment, store, options.device, options.data_root)}
    if not options.no_floor:
        floor = foreign.floor_of(experiment)
        try:
            records["random images"] = run(floor, store, device=options.device, data_root=options.data_root)
        except SettingError as error:
            print(f"no floor beside it: {error}")
    for row in foreign.rows(records):
        print(f"{row[0]:<24} " + " ".join(f"{cell:>14}" for cell in row[1:]))
    for name, interval in nulls(records["this set"].metrics).items():
        print(f"{name} from chance alone, with groups of these sizes: {interval}")
    print(f"record {records['this set'].key}")


def _export(options: argparse.Namespace) -> None:
    found = export.stored_set(Store(options.store), options.key)
    forms = {"png": export.as_png, "grid": export.as_grid, "pt": export.as_tensors}
    for name, write in forms.items():
        if (target := vars(options)[name]) is not None:
            print(f"{target}: {write(found, target, options.stored)} images")
