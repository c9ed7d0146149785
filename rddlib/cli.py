"""Command line: ``python -m rddlib run | show | list | grid | status | merge | prior | data | evaluate | export``."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from . import __version__
from . import commands as own_sets
from .base import SettingError, allowed_values, check_device
from .commands import reader
from .data import dataset, looks
from .data.sources import DataError
from .distillation.glad.generator import GeneratorSettings
from .experiments import grid, priors
from .experiments.experiment import Experiment, fields, run
from .experiments.grid import Job, Ledger, Tally
from .experiments.merge import merge
from .experiments.presets import SCALES
from .experiments.records import Record, Store, StoreError
from .experiments.validate import read_record
from .experiments.workers import Scheduler, Where


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    0: done. 1: a run of a grid failed. 2: refused, or kept out of a merge. 3: a grid's time is
    spent and work is left. 130: interrupted. 141: nobody reads what is printed.
    """
    options = parser().parse_args(arguments)
    try:
        return options.command(options) or 0
    except (SettingError, DataError, StoreError) as error:
        print(f"rddlib: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, `head` say, has seen enough; Python would complain at its end once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("\nrddlib: interrupted. What is done is kept; the same command goes on from there.", file=sys.stderr)
        return 130


class Parser(argparse.ArgumentParser):
    """A parser, and with it those of its commands, that takes no beginning of an option's name for the option."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named | {"allow_abbrev": False})


def parser() -> argparse.ArgumentParser:
    """The command line's parser; every field of Experiment is an option of `run`."""
    top = Parser("python -m rddlib", description="Group distributionally robust dataset distillation.")
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    one = commands.add_parser("run", help="run one experiment, or print its record")
    one.set_defaults(command=_run)
    one.add_argument(
        "--scale", choices=SCALES, default="smoke", help="preset that every other option overrides (default smoke)"
    )
    for name, meaning, default, allowed in fields():
        if name != "scale":
            option = f"--{name.replace('_', '-')}"
            one.add_argument(option, type=reader(name), metavar="VALUE", default=argparse.SUPPRESS,
                             help=f"{meaning}; {allowed}; paper scale: {default}".replace("%", "%%"))  # fmt: skip
    one.add_argument("--group", help="folder of the record under runs/ (default DATASET_SCALE)")

    show = commands.add_parser("show", help="print one record")
    show.set_defaults(command=_show)
    show.add_argument("key", help="key, or its first characters")
    listing = commands.add_parser("list", help="one line a record")
    listing.set_defaults(command=_list)
    listing.add_argument("--group", default="*", help="only the records of this folder under runs/")
    many, status = _grid_parser(commands), _status_parser(commands)
    merging, prior = _merge_parser(commands), _prior_parser(commands)
    own_sets.add(commands)
    for command in (one, many, prior):
        command.add_argument("--device", default="cpu", help="cpu, cuda, mps (default cpu); not part of the key")
        command.add_argument("--data-root", metavar="DIR", help="where data lies (default $RDD_DATA, else data/cache)")
        command.add_argument("--download", action="store_true", help="let torchvision download CIFAR-10 or SVHN")
    for command in (one, show, listing, many, status, merging, prior):
        command.add_argument("--store", metavar="DIR", help="where records are kept (default $RDD_STORE, else data/)")
    return top


def _grid_parser(commands: Any) -> argparse.ArgumentParser:
    many: argparse.ArgumentParser = commands.add_parser("grid", help="run what is missing of a grid of experiments")
    many.set_defaults(command=_grid)
    many.add_argument("grids", nargs="+", metavar="GRID", help="a name in data/grids, or a .toml file")
    many.add_argument("--scale", choices=SCALES, default="laptop", help="at which scale (default laptop)")
    many.add_argument("--jobs", type=int, default=1, metavar="N", help="runs side by side, each with one thread")
    many.add_argument("--budget-minutes", type=float, metavar="M", help="stop then; what runs keeps its checkpoint")
    many.add_argument("--dry-run", action="store_true", help="say what would run and what it costs; write nothing")
    return many


def _status_parser(commands: Any) -> argparse.ArgumentParser:
    status: argparse.ArgumentParser = commands.add_parser("status", help="what is done and missing of each grid")
    status.set_defaults(command=_status)
    status.add_argument("grids", nargs="*", metavar="GRID", help="arm by arm, most valuable first (default all grids)")
    status.add_argument("--scale", choices=SCALES, action="append", help="only this scale; may be repeated")
    status.add_argument("--device", default="cpu", help="where the missing would run, for the cost (default cpu)")
    return status


def _merge_parser(commands: Any) -> argparse.ArgumentParser:
    merging: argparse.ArgumentParser = commands.add_parser("merge", help="take in records and sets of another store")
    merging.set_defaults(command=_merge)
    merging.add_argument("folder", metavar="FOLDER", help="a copy of the other store: runs/ and distilled/")
    return merging


def _prior_parser(commands: Any) -> argparse.ArgumentParser:
    prior: argparse.ArgumentParser = commands.add_parser("prior", help="train, score and keep a generator for GLaD")
    prior.set_defaults(command=_prior)
    prior.add_argument("--dataset", required=True, metavar="NAME", help="as for `run`; the generator bears its name")
    prior.add_argument("--image-size", type=int, metavar="PX", help="resize images to this many pixels a side")
    prior.add_argument("--out", metavar="DIR", help="where it is kept (default priors/ of the store)")
    prior.add_argument("--replace", action="store_true", help="let go the one that is kept there under this name")
    for f in dataclasses.fields(GeneratorSettings):
        prior.add_argument(f"--{f.name.replace('_', '-')}", type=reader(f.name, GeneratorSettings), metavar="VALUE",
                           default=argparse.SUPPRESS, help=f"{f.metadata['meaning']}; {allowed_values(f)}; default "
                           f"{f.default}" + " (false for digits and svhn)" * (f.name == "flip"))  # fmt: skip
    for name, default in list(priors.JUDGE.items())[1:]:
        prior.add_argument(f"--score-{name}", type=int, metavar="N", default=default,
                           help=f"{name} of the classifier that scores (default {default})")  # fmt: skip
    return prior


def _run(options: argparse.Namespace) -> None:
    experiment = Experiment.preset(**{name: vars(options)[name] for name, *_ in fields() if name in options})
    with Bars() as bars:
        record = run(
            experiment,
            Store(options.store),
            device=options.device,
            data_root=options.data_root,
            download=options.download,
            group=options.group,
            progress=bars.show,
        )
    print(summary(record))


def _show(options: argparse.Namespace) -> None:
    print(Store(options.store).match(options.key).to_json(), end="")


def _list(options: argparse.Namespace) -> int:
    faults = []
    for path in Store(options.store).files(options.group):
        try:
            print(summary(read_record(path)))
        except StoreError as error:
            faults.append(str(error))
    for fault in faults:
        print(f"rddlib: {fault}", file=sys.stderr)
    return 2 if faults else 0


def _grid(options: argparse.Namespace) -> int:
    jobs = grid.jobs(options.grids, options.scale)
    if not jobs:
        raise SettingError("scale", options.scale, "one for which an arm of the grid is meant")
    store = Store(options.store)
    ledger = Ledger(store, options.device)
    states, tally = [ledger.state(job.key) for job in jobs], Tally.of(jobs, ledger)
    print(f"{' '.join(options.grids)}, {options.scale}: {len(jobs)} experiments, "
          + ", ".join(f"{n} {state}" for state, n in tally.counts.items()))  # fmt: skip
    todo = [job for job, state in zip(jobs, states, strict=True) if state in ("missing", "failed")]
    scheduler = Scheduler(todo, store, options.jobs, Where(options.device, options.data_root, options.download))
    print(f"to run: {len(todo)}, cost {tally.price()} in all, {options.jobs} side by side")
    if options.dry_run or not todo:
        print("\n".join(f"  {_line(job, ledger)}" for job in scheduler.queue))
        return 0
    check_device(options.device)
    with tqdm(total=len(todo), desc="runs", unit="run", disable=None) as bar:

        def note(job: Job, error: str) -> None:
            bar.update()
            bar.write(f"{job.key}  failed: {error}" if error else _done(job, store), file=sys.stdout)

        outcome = scheduler.go(options.budget_minutes, note)
    print(f"{len(todo) - len(outcome.failed) - len(outcome.left)} done, {len(outcome.failed)} failed, "
          f"{len(outcome.left)} left" + ("; the same command goes on from there" if outcome.left else ""))  # fmt: skip
    for key, error in outcome.failed.items():
        print(f"rddlib: {key} failed: {error} (all of it: {grid.failure_file(store, key)})", file=sys.stderr)
    return outcome.status


def _line(job: Job, ledger: Ledger) -> str:
    cost = ledger.cost(job)
    price, what = "unknown" if cost is None else grid.duration(cost), describe(dataclasses.asdict(job.experiment))
    return f"{job.key}  value {job.value:<4g} {price:>10}  {what}  ({', '.join(job.arms)})"


def _done(job: Job, store: Store) -> str:
    record = store.find(job.key)
    return summary(record) if record else f"{job.key}  done"


def _status(options: argparse.Namespace) -> None:
    ledger = Ledger(Store(options.store), options.device)
    rows = [["grid" + "/arm" * bool(options.grids), "scale", *grid.STATES, "cost of the missing"]]
    for name in options.grids or grid.names():
        for scale in options.scale or SCALES:
            for part, jobs in _parts(name, scale, arm_by_arm=bool(options.grids)).items():
                tally = Tally.of(jobs, ledger)
                rows.append([part, scale, *(str(tally.counts[s]) for s in grid.STATES), tally.price()])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        name, scale, *counts, price = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join([name, scale, *(c.strip().rjust(len(c)) for c in counts), price]).rstrip())


def _parts(name: str, scale: str, arm_by_arm: bool) -> dict[str, list[Job]]:
    """The jobs of a grid at a scale as one, or by arm in order of value."""
    jobs = grid.jobs([name], scale)
    if not arm_by_arm:
        return {name: jobs}
    arms = dict.fromkeys(arm for job in jobs for arm in job.arms)
    return {arm: [job for job in jobs if arm in job.arms] for arm in arms}


def _merge(options: argparse.Namespace) -> int:
    merged = merge(options.folder, Store(options.store))
    counts = f"{len(merged.added)} added, {len(merged.same)} already here, {len(merged.kept_out)} kept out"
    print(f"{options.folder}: {counts}")
    for key, why in merged.kept_out.items():
        print(f"rddlib: {key}: {why}; ours is kept", file=sys.stderr)
    return merged.status


def _prior(options: argparse.Namespace) -> None:
    check_device(options.device)
    read = looks.base_name(options.dataset).partition("_")[0] in ("digits", "svhn")
    chosen = {"flip": not read}  # where digits are read: no mirror
    chosen |= {f.name: vars(options)[f.name] for f in dataclasses.fields(GeneratorSettings) if f.name in options}
    settings, judge = GeneratorSettings(**chosen), {"steps": options.score_steps, "width": options.score_width}
    images = dataset.load(options.dataset, options.data_root, options.device, options.image_size,
                       download=options.download)  # fmt: skip
    with Bars() as bars:
        made = priors.make(images, settings, Store(options.store), options.out, judge, options.replace, bars.show)
    print(priors.summary(made))


def describe(settings: dict[str, Any]) -> str:
    """The settings that tell most runs apart, in one line."""
    e = settings
    return f"{e['dataset']} {e['method']} {e['risk']} ipc {e['ipc']} factor {e['factor']} seed {e['seed']} {e['scale']}"


def summary(record: Record) -> str:
    """One line: key, what was run, mean accuracy over evaluation seeds, worst named group if any, seconds."""
    accuracy, worst = record.metrics["accuracy"], record.metrics.get("known_min")
    of_groups = f", worst group {sum(worst) / len(worst):.2f} %" if worst else ""
    return (
        f"{record.key}  {describe(record.experiment)}  accuracy {sum(accuracy) / len(accuracy):.2f} %{of_groups} "
        f"({len(accuracy)} trainings)  {sum(record.seconds.values()):.0f} s"
    )


class Bars:
    """A progress bar for each part of a run, with the time left and the last figures."""

    def __init__(self) -> None:
        self.bars: dict[str, tqdm[Any]] = {}

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        for bar in self.bars.values():
            bar.close()

    def show(self, part: str, done: int, of: int, figures: dict[str, float]) -> None:
        """Move the bar of `part` to `done` of `of`."""
        if part not in self.bars:
            # None: a pipe or a file gets no bar
            self.bars[part] = tqdm(total=of, desc=part, unit="step", initial=done - 1, disable=None)
        self.bars[part].update(done - self.bars[part].n)
        self.bars[part].set_postfix({k: f"{v:.3g}" for k, v in figures.items()})


if __name__ == "__main__":
    sys.exit(main())
