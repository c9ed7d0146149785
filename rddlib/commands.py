"""What the commands of the command line do; `cli` says which there are, and what is printed where one is refused.

Options are the parameters of these functions. A command that takes settings gets the named ones as texts, and an
experiment of them from `Experiment.checked`, which knows types and ranges.
"""

from __future__ import annotations

import contextlib
import csv as tables
import dataclasses
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Group, Parameter
from tqdm import tqdm

from . import cli
from .base import SettingError, Settings, allowed_values, check_choice, check_device
from .data import dataset as datasets
from .data import looks, summary
from .data.sources import label, own_path
from .distillation.glad.generator import GeneratorSettings
from .evaluation.metrics import nulls
from .experiments import experiment as runs
from .experiments import export as forms
from .experiments import foreign, priors
from .experiments import grid as grids
from .experiments.experiment import HELD_OUT, Experiment
from .experiments.grid import Job, Ledger, Tally
from .experiments.merge import merge as merge_folder
from .experiments.presets import SCALES
from .experiments.records import Record, Store, plain_name
from .experiments.small_sets import Progress
from .experiments.workers import Scheduler, Where

# Settings that everybody needs come first in a help; those that commands and runs fill in are no options.
EVERYBODY = ("scale", "dataset", "method", "risk", "alpha", "ipc", "factor", "seed")
BY_HAND = [name for name in Experiment.declared() if not name.endswith("_sha256")]
COLUMNS = ("dataset", "method", "risk", "ipc", "factor", "scale", "seed")  # of a list of records
OF_DATA = ("scale", "dataset", "size", "train_limit", "test_limit")
JUDGED = (*OF_DATA, "seed")  # what `evaluate` takes beside eval_*

ELSEWHERE = Group("Where from, where to", sort_key=1)
Else = Annotated[str | None, Parameter(group=ELSEWHERE)]
StoreDir = Annotated[
    str | None, Parameter(help="where records are kept (default: $RDD_STORE, else data/ or ~/rddlib_data)")
]
Device = Annotated[str, Parameter(help="cpu, cuda or cuda:NUMBER; not part of the key")]
DataRoot = Annotated[
    str | None,
    Parameter(group=ELSEWHERE, help="where data lies (default: $RDD_DATA, else cache/ of the default store)"),
]


@Parameter(name="*")
@dataclasses.dataclass(frozen=True)
class Place(Where):
    """Where a command computes, finds its data and keeps its results."""

    device: Device = "cpu"
    store: StoreDir = None
    data_root: DataRoot = None
    download: Annotated[bool, Parameter(group=ELSEWHERE, help="let torchvision download CIFAR-10 or SVHN")] = False


HERE = Place()


def takes(settings: type[Settings], names: Sequence[str], defaults: bool = True) -> Callable[..., Any]:
    """Give a command one option a setting; it gets those that were named, as texts, in **settings.

    `defaults`: whether the help shows what a setting is where it is not named.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def named(*words: Any, **options: Any) -> Any:
            return command(*words, **{name: v for name, v in options.items() if name not in names or v is not None})

        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind != p.VAR_KEYWORD]
        both = [*(_option(settings, name, defaults) for name in names), *own]
        both.sort(key=lambda option: option.kind)  # those by position first
        named.__signature__ = inspect.Signature(both)  # type: ignore[attr-defined]
        return named

    return decorate


def _option(settings: type[Settings], name: str, shown: bool) -> inspect.Parameter:
    """The option of one setting: a text, whose help is the setting's meaning, what it may be, and its default.

    Its group in the help is the title of the class that declares it.
    """
    field = settings.declared()[name]
    owner = next(cls for cls in settings.__mro__ if name in vars(cls).get("__annotations__", {}))

    def default(_: object) -> Any:
        return _defaults(tuple(cli.words))[name] if settings is Experiment else field.default

    about = Parameter(
        help=f"{field.description}; {allowed_values(field)}".removesuffix("; a text"),
        metavar="VALUE",
        group="Parameters" if name in EVERYBODY else Group(getattr(owner, "title", "Settings"), sort_key=2),
        show_default=default if shown else False,
    )
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=None, annotation=Annotated[str | None, about])


@functools.lru_cache(maxsize=1)
def _defaults(words: tuple[str, ...]) -> dict[str, Any]:
    """The settings of an experiment where these words are said: those of the chosen scale, data and method."""
    said: dict[str, str] = {}
    for word, following in zip(words, (*words[1:], ""), strict=True):
        name, _, value = word.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if name in Experiment.declared():
            said[name] = value or following
    try:
        return vars(Experiment.preset(**Experiment.checked(said, texts=True)))
    except SettingError:
        return vars(Experiment.preset())


# --- one experiment, its record ---------------------------------------------------------------------------


@takes(Experiment, [*EVERYBODY, *(name for name in BY_HAND if name not in EVERYBODY)])
def run(
    *,
    at: Place = HERE,
    seeds: Else = None,
    from_set: Else = None,
    dry_run: Annotated[bool, Parameter(group=ELSEWHERE)] = False,
    group: Else = None,
    **settings: str,
) -> None:
    """Run one experiment, or find its record. Ten options are enough; the others override numbers of the scale.

    Args:
        seeds: several distillation seeds one after the other: 0-4, or 0,3,7
        from_set: begin from a finished set: an .npz FILE, or a record's KEY, whose data and scale then need no naming
        dry_run: say the key, whether its record is there, and what a run may cost, or what is refused; write nothing
        group: folder of the record under runs/ (default: DATASET_SCALE)
    """
    store = Store(at.store)
    if group is not None:
        plain_name(group)
    chosen = Experiment.checked(settings, texts=True)
    begun = None
    if from_set is not None:
        begun = forms.load_set(from_set, store)
        usual = {"ipc": begun.ipc, "factor": begun.factor} | _data_of(from_set, store, named="dataset" in settings)
        chosen = usual | chosen | {"start_sha256": begun.sha256}
    asked = [Experiment.preset(**chosen | seed) for seed in _seeds(seeds, settings)]
    if dry_run:
        ledger = Ledger(store, at.device)
        planned = [runs.identified(experiment) for experiment in asked]
        runs.check((e for e in planned if ledger.state(e.key) != "done"), at.data_root, begun)
        for experiment in planned:
            print(_estimate(experiment, ledger))
        return
    known = {path.stem for path in store.files()}
    for experiment in asked:
        with progress_bars() as progress:
            record = runs.run(
                experiment,
                store,
                device=at.device,
                data_root=at.data_root,
                download=at.download,
                group=group,
                progress=progress,
                begun=begun,
            )
        print(summary_line(record))
        _tell_where(record, store, record.key in known)


def _data_of(source: str, store: Store, named: bool) -> dict[str, Any]:
    """Data and scale of the record whose key `source` begins; nothing of a file. `named`: the data are, by hand."""
    if Path(source).suffix == ".npz":
        return {}
    told = vars(Experiment(**store.match(source).experiment))
    if not named and own_path(told["dataset"]) is not None:
        raise SettingError("dataset", None, f"the path of {told['dataset']}: records keep no folders of a machine")
    return {name: told[name] for name in OF_DATA}


def _seeds(seeds: str | None, settings: dict[str, str]) -> list[dict[str, int]]:
    """What each of several runs adds to the settings; one run and nothing to add where no seeds are named."""
    if seeds is None:
        return [{}]
    if "seed" in settings:
        raise SettingError("seeds", seeds, "given instead of --seed, not beside it")
    chosen: list[int] = []
    for part in seeds.split(","):
        low, dash, high = part.partition("-")
        high = high if dash else low
        if not (low.isdecimal() and high.isdecimal() and int(low) <= int(high)):
            raise SettingError("seeds", seeds, "a range as 0-4, or a list as 0,3,7")
        chosen += range(int(low), int(high) + 1)
    return [{"seed": seed} for seed in dict.fromkeys(chosen)]


def _estimate(experiment: Experiment, ledger: Ledger) -> str:
    """One line: key, settings, and what a run would cost by the records most like it."""
    line = f"{experiment.key}  {describe(dataclasses.asdict(experiment))}  "
    state = ledger.state(experiment.key)
    if state in ("done", "stale"):
        return line + f"is there{', made by earlier code' * (state == 'stale')}: nothing to compute"
    seconds = ledger.cost(Job(experiment, 0.0, ()))
    if seconds is None:
        return line + "to compute; no record is like it, so its cost is unknown"
    return line + f"to compute: about {grids.duration(seconds)}, the median of the records most like it"


def _tell_where(record: Record, store: Store, found: bool) -> None:
    """Print whether a record was computed or found, where it and its set lie, and how to train on the set."""
    print(f"  {'found, nothing was computed' if found else 'computed now'}: {store.file(record.key)}")
    if not record.current:
        print("  made by earlier code, which gives other numbers; delete the file to have it made again")
    if record.set_key and store.distilled(record.set_key).is_file():
        file = store.distilled(record.set_key)
        print(f"  its set: {file}")
        print(f'  to train on it: images, labels = rddlib.load_set("{file}").decoded()')


def show(key: str, /, *, store: StoreDir = None) -> None:
    """Print one record.

    Args:
        key: its key, or the first characters
    """
    print(Store(store).match(key).to_json(), end="")


@takes(Experiment, COLUMNS, defaults=False)
def list_(*, group: str = "*", csv: bool = False, store: StoreDir = None, **settings: str) -> int:
    """The records, one a line, sorted by their settings; of those with the settings that are named.

    Args:
        group: only those of this folder under runs/
        csv: comma-separated, for a spreadsheet or pandas
    """
    wanted = Experiment.checked(settings, texts=True)
    if "dataset" in wanted:
        wanted["dataset"] = label(wanted["dataset"])  # as records have it, without folders
    rows: list[list[Any]] = []
    records, damaged = Store(store).read(group)
    for path, record in records.items():
        own = vars(Experiment(**record.experiment))
        if all(own[name] == value for name, value in wanted.items()):
            rows.append([record.key, *(own[name] for name in COLUMNS), *_results(record), path.parent.name])
    rows.sort(key=lambda row: row[1:])
    _print_table([["key", *COLUMNS, "accuracy", "worst group", "trainings", "seconds", "folder"], *rows], csv)
    for fault in damaged.values():
        print(f"rddlib: {fault}", file=sys.stderr)
    return 2 if damaged else 0


def _results(record: Record) -> list[Any]:
    """Accuracy and worst known group, means in per cent, or "" where there is none; trainings; seconds."""
    accuracy, worst = record.metrics["accuracy"], record.metrics.get("known_min")
    means = [f"{sum(values) / len(values):.2f}" if values else "" for values in (accuracy, worst)]
    return [*means, len(accuracy), round(sum(record.seconds.values()))]


def _print_table(rows: Sequence[Sequence[Any]], csv: bool = False) -> None:
    """Print rows in columns, numbers to the right, or comma-separated."""
    if csv:
        tables.writer(sys.stdout, lineterminator="\n").writerows(rows)
        return
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        aligned = (
            cell.rjust(width) if cell.replace(".", "").isdecimal() else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        )
        print("  ".join(aligned).rstrip())


# --- grids and stores -------------------------------------------------------------------------------------


def grid(
    *grid: str,
    scale: str = "laptop",
    jobs: int = 1,
    budget_minutes: float | None = None,
    only: str | None = None,
    dry_run: bool = False,
    json: bool = False,
    at: Place = HERE,
) -> int:
    """Run what is missing of a grid of experiments, the most valuable first.

    Args:
        grid: names in data/grids, or .toml files
        scale: at which scale: smoke, laptop, cpu, gpu, paper
        jobs: runs side by side, each with one thread
        budget_minutes: stop then; what runs keeps its checkpoint
        only: the run whose key begins so, no other
        dry_run: say what would run and what it costs; write nothing
        json: print the runs that are wanted, done or not, for a program that schedules them; write nothing
    """
    if not grid:
        raise SettingError("grid", "", f"a .toml file, or one of {', '.join(grids.names())}")
    wanted = grids.jobs(grid, scale)
    if not wanted:
        raise SettingError("scale", scale, "one for which an arm of the grid is meant")
    if only is not None:
        wanted = [job for job in wanted if job.key.startswith(only)]
        if not wanted:
            raise SettingError("only", only, "the key, or its first characters, of a run of the grid")
    if json:
        print(grids.to_json(wanted))
        return 0
    store = Store(at.store)
    ledger = Ledger(store, at.device)
    tally = Tally.of(wanted, ledger)
    todo = [job for job in wanted if ledger.state(job.key) in ("missing", "failed")]
    scheduler = Scheduler(todo, store, jobs, Where(at.device, at.data_root, at.download))
    counts = ", ".join(f"{n} {state}" for state, n in tally.counts.items())
    print(f"{' '.join(grid)}, {scale}: {len(wanted)} experiments, {counts}")
    print(f"to run: {len(todo)}, cost {tally.price()} in all, {jobs} side by side")
    runs.check((job.experiment for job in todo), at.data_root, unknown=True)
    if dry_run or not todo:
        for job in scheduler.queue:
            cost = ledger.cost(job)
            price = "unknown" if cost is None else grids.duration(cost)
            what = describe(dataclasses.asdict(job.experiment))
            print(f"  {job.key}  value {job.value:<4g} {price:>10}  {what}  ({', '.join(job.arms)})")
        return 0
    check_device(at.device)
    return _go(scheduler, len(todo), budget_minutes, store)


def _go(scheduler: Scheduler, number: int, minutes: float | None, store: Store) -> int:
    """Run the jobs of a scheduler, a line for each that ends; the exit status."""
    with tqdm(total=number, desc="runs", unit="run", disable=None) as bar:

        def note(job: Job, error: str) -> None:
            bar.update()
            record = None if error else store.find(job.key)
            told = summary_line(record) if record else f"{job.key}  {'failed: ' + error if error else 'done'}"
            bar.write(told, file=sys.stdout)

        outcome = scheduler.go(minutes, note)
    failed, left = len(outcome.failed), len(outcome.left)
    going_on = "; the same command goes on from there" if left else ""
    print(f"{number - failed - left} done, {failed} failed, {left} left{going_on}")
    for key, error in outcome.failed.items():
        print(f"rddlib: {key} failed: {error} (all of it: {grids.failure_file(store, key)})", file=sys.stderr)
    return outcome.status


def status(*grid: str, scale: Sequence[str] = (), device: Device = "cpu", store: StoreDir = None) -> None:
    """What is done and missing of each grid.

    Args:
        grid: these grids arm by arm, the most valuable first (default: all grids)
        scale: only this scale; may be repeated
    """
    ledger = Ledger(Store(store), device)
    rows = [["grid/arm" if grid else "grid", "scale", *grids.STATES, "cost of the missing"]]
    for name in grid or grids.names():
        for at in scale or SCALES:
            jobs = grids.jobs([name], at)
            arms = dict.fromkeys(arm for job in jobs for arm in job.arms)
            parts = {arm: [job for job in jobs if arm in job.arms] for arm in arms} if grid else {name: jobs}
            for part, own in parts.items():
                tally = Tally.of(own, ledger)
                rows.append([part, at, *(str(tally.counts[state]) for state in grids.STATES), tally.price()])
    _print_table(rows)


def merge(folder: str, /, *, store: StoreDir = None) -> int:
    """Take in records and sets of another store.

    Args:
        folder: a copy of the other store: runs/ and distilled/
    """
    merged = merge_folder(folder, Store(store))
    print(f"{folder}: {len(merged.added)} added, {len(merged.same)} already here, {len(merged.kept_out)} kept out")
    for key, why in merged.kept_out.items():
        print(f"rddlib: {key}: {why}; ours is kept", file=sys.stderr)
    return merged.status


@takes(GeneratorSettings, [*GeneratorSettings.declared()])
def prior(
    *,
    dataset: str,
    size: int | None = None,
    eval_part: str = "test",
    out: str | None = None,
    replace: bool = False,
    score_steps: int = priors.JUDGE["steps"],
    score_width: int = priors.JUDGE["width"],
    at: Place = HERE,
    **settings: str,
) -> None:
    """Train, score and keep a generator for GLaD. Images are mirrored (flip) unless they show digits.

    Args:
        dataset: as for `run`; the generator bears its name
        size: resize images to this many pixels a side
        eval_part: test: of all training images; validation: without those that are held out for choosing settings
        out: where it is kept (default: priors/ of the store)
        replace: let go the one that is kept there under this name
        score_steps: updates of the classifier that scores
        score_width: width of the classifier that scores
    """
    check_device(at.device)
    figures = looks.base_name(dataset).partition("_")[0] in ("digits", "svhn")
    chosen = {"flip": not figures} | GeneratorSettings.checked(settings, texts=True)
    judge = {"steps": score_steps, "width": score_width}
    check_choice("eval_part", eval_part, ("test", "validation"))
    held_out = HELD_OUT if eval_part == "validation" else None
    images = datasets.load(dataset, at.data_root, at.device, size, download=at.download, held_out=held_out)
    with progress_bars() as progress:
        made = priors.make(images, GeneratorSettings(**chosen), Store(at.store), out, judge, replace, progress)
    print(priors.summary(made))


# --- users' own data and sets -----------------------------------------------------------------------------


def data(name: str, /, *, size: int | None = None, picture: str | None = None, data_root: DataRoot = None) -> None:
    """What a data set holds, and what can be distilled from it.

    Args:
        name: digits, cifar10, folder:PATH, npz:PATH, ... as for `run`
        size: resize images to this many pixels a side
        picture: write a sheet of samples, a row a class, as PNG
    """
    if picture is not None and Path(picture).suffix.lower() != ".png":
        raise SettingError("picture", picture, "a name that ends in .png")
    sheet = None if picture is None else forms.new_file(picture, "picture")
    held = datasets.load(name, data_root, size=size)
    print("\n".join(summary.lines(held)))
    if sheet is not None:
        print(f"samples: {summary.sheet(summary.samples(held), sheet)}")


@takes(Experiment, [*JUDGED, *(name for name in BY_HAND if name.startswith("eval_"))])
def evaluate(
    file: str,
    /,
    *,
    range: str | None = None,
    factor: int | None = None,
    labels: str | None = None,
    number: int = 1,
    no_floor: bool = False,
    at: Place = HERE,
    **settings: str,
) -> None:
    """Judge a set that was distilled elsewhere, beside random images.

    Args:
        file: .npz, .pt of DC, DSA, DM, IDC or MTT (not whitened), or a folder of class folders
        range: what its values are: unit, byte or normalised (default: told from them)
        factor: tiles a side of a stored image, as IDC has them (default: 1)
        labels: labels, where they are apart (default: labels_X beside images_X)
        number: which set of a file that has several
        no_floor: do not judge random images beside it
    """
    check_device(at.device)
    if range is not None:
        check_choice("range", range, foreign.RANGES)
    chosen = Experiment.checked(settings, texts=True)
    asked = Experiment.preset(**chosen)  # refuses what cannot be before data is read
    data = runs.load_data(asked, root=at.data_root, download=at.download)
    foreign_set = foreign.read(file, data, range, factor, labels, number)
    print(foreign_set.words)
    store = Store(at.store)
    experiment = foreign.experiment_of(foreign_set, **chosen)
    judge = functools.partial(runs.run, store=store, device=at.device, data_root=at.data_root)
    record = judge(experiment, given=foreign_set.small)
    columns = {"this set": record}
    if not no_floor:
        try:
            columns["random images"] = judge(dataclasses.replace(experiment, method="random", set_sha256=None))
        except SettingError as error:
            print(f"no floor beside it: {error}")
    _print_means(columns)
    for name, interval in nulls(record.metrics).items():
        print(f"{name} from chance alone, with groups of these sizes: {interval}")
    print(f"record {record.key}")


def _print_means(columns: dict[str, Record]) -> None:
    """Print one line a test that all records have, accuracy first: means over trainings, in per cent."""
    from .analysis.results import by_test, tidy  # pandas takes half a second to import

    keys = [record.key for record in columns.values()]
    means = by_test(tidy(columns.values())).T[keys].dropna()  # tests x records
    means = means.loc[["accuracy", *means.index.drop("accuracy")]]
    print(f"{'':<24} " + " ".join(f"{head:>14}" for head in columns))
    for test, values in means.iterrows():
        print(f"{test!s:<24} " + " ".join(f"{value:>14.2f}" for value in values))


def export(
    key: str,
    /,
    *,
    png: str | None = None,
    grid: str | None = None,
    pt: str | None = None,
    stored: bool = False,
    store: StoreDir = None,
) -> None:
    """A distilled set as PNGs, as one picture, or as tensors.

    Args:
        key: key of its record, or the first characters; or an .npz file
        png: class folders of PNGs, in a new folder
        grid: one PNG, a row a class
        pt: [images, labels] for torch.load(FILE, weights_only=True)
        stored: images as stored, tiles together (default: decoded)
    """
    targets = {"png": png, "grid": grid, "pt": pt}
    named = {name: target for name, target in targets.items() if target is not None}
    if len(named) != 1:
        raise SettingError("form", " ".join(named), "exactly one of --png, --grid and --pt")
    ((form, target),) = named.items()
    write = {"png": forms.as_png, "grid": forms.as_grid, "pt": forms.as_tensors}[form]
    print(f"{target}: {write(forms.load_set(key, Store(store)), target, stored)} images")


# --- what is printed --------------------------------------------------------------------------------------


def describe(settings: dict[str, Any]) -> str:
    """The settings that tell most runs apart, in one line."""
    e = settings | {"dataset": label(settings["dataset"])}
    return f"{e['dataset']} {e['method']} {e['risk']} ipc {e['ipc']} factor {e['factor']} seed {e['seed']} {e['scale']}"


def summary_line(record: Record) -> str:
    """One line: key, what was run, mean accuracy over evaluation seeds, worst named group if any, seconds."""
    accuracy, worst, trainings, seconds = _results(record)
    of_groups = f", worst group {worst} %" if worst else ""
    what = describe(record.experiment)
    return f"{record.key}  {what}  accuracy {accuracy} %{of_groups} ({trainings} trainings)  {seconds} s"


@contextlib.contextmanager
def progress_bars() -> Iterator[Progress]:
    """A progress bar for each part of a run, with the time left and the last figures: what a run calls to move them."""
    bars: dict[str, tqdm[Any]] = {}
    with contextlib.ExitStack() as closing:

        def show(part: str, done: int, of: int, figures: dict[str, float]) -> None:
            if part not in bars:
                # None: a pipe or a file gets no bar
                bar = tqdm(total=of, desc=part, unit="step", initial=done - 1, disable=None)
                bars[part] = closing.enter_context(bar)
            bars[part].update(done - bars[part].n)
            bars[part].set_postfix({name: f"{figure:.3g}" for name, figure in figures.items()})

        yield show
