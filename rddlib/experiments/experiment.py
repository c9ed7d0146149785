"""Experiment -> run() -> Record: every result of the book comes through here.

An experiment is a frozen dataclass of settings. Its key is the hash of the settings that differ from the defaults,
so a setting that is added later, with the old behaviour as its default, leaves the old keys as they are; a test pins
the defaults.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from tqdm import tqdm

from .. import files
from ..base import SettingError, check_choice, check_device, digest, raise_all, resources, setting, write_atomic
from ..data import dataset as datasets
from ..data import sources
from ..data.dataset import DataSet
from ..data.looks import base_name
from ..data.sources import DataError
from ..distillation import distill, settings, synthetic
from ..distillation.glad import prior
from ..distillation.kip import inducing_points
from ..distillation.kip.inducing_points import KipSettings
from ..distillation.settings import DistillSettings
from ..distillation.synthetic import SyntheticSet
from ..evaluation import evaluate
from ..evaluation.evaluate import EvaluateSettings
from ..evaluation.metrics import Metrics
from ..models import networks
from . import presets, provenance, small_sets
from .provenance import Clock
from .records import Record, Store, StoreError, plain_name
from .small_sets import Progress, SmallSet

MODES = ("load", "run", "live")
HELD_OUT = 0.1  # share of the training part that eval_part "validation" tests on
log = logging.getLogger(__name__)


class Experiment(DistillSettings, EvaluateSettings):
    """All settings of one run; each field's meaning and range stand beside it (see `Experiment.declared`)."""

    title: ClassVar[str] = "Data"

    dataset: str = setting(
        "cifar10",
        "digits, cifar10, svhn, an ImageNet subset, folder:PATH, npz:PATH, a pack's name, or one with known groups: "
        "rare_digits, rare_cifar10, coloured_digits, coloured_cifar10",
    )
    size: int | None = setting(None, "resize images to this many pixels a side", low=4)
    train_limit: int | None = setting(None, "use this many training images, the same number of each class", low=1)
    test_limit: int | None = setting(None, "use this many test images, the same number of each class", low=1)
    dataset_sha256: str | None = setting(
        None,
        "content of the user's own data (folder:PATH, npz:PATH), in the key instead of the path; a run fills it in",
    )
    set_sha256: str | None = setting(
        None,
        "content of a set that was distilled elsewhere, where method is foreign; `rddlib evaluate FILE` fills it in",
    )
    scale: presets.Scale = setting("paper", "the preset that settings which are not named take their numbers from")

    def conflicts(self) -> Iterator[SettingError]:
        """Hashes that a run or a command has to fill in."""
        yield from super().conflicts()
        if self.dataset_sha256 is not None and sources.own_path(self.dataset) is None:
            yield SettingError("dataset_sha256", self.dataset_sha256, "None for data sets that have a name")
        if self.method == "foreign" and self.set_sha256 is None:
            yield SettingError("method", "foreign", "another method; `rddlib evaluate FILE` judges sets from elsewhere")
        if self.method != "foreign" and self.set_sha256 is not None:
            yield SettingError("set_sha256", self.set_sha256, "None where a set is not from elsewhere")

    @property
    def key(self) -> str:
        """16 hex digits: the hash of the settings that matter here and differ from their defaults."""
        return digest(json.dumps(self._matter(), sort_keys=True))[:16]

    @property
    def set_key(self) -> str:
        """16 hex digits that name the distilled set, "" if there is none; other evaluations of it share it."""
        if self.method not in settings.DISTILLED:
            return ""
        # the tested images are among these: the history has accuracies on them
        names = {*DistillSettings.declared(), "dataset", "dataset_sha256", "size", "train_limit", "test_limit"}
        matter = {name: value for name, value in self._matter().items() if name in names}
        return digest("set", json.dumps([matter, self.eval_part == "validation"], sort_keys=True))[:16]

    @property
    def group(self) -> str:
        """The folder of its record under runs/, where nothing else is asked for."""
        return f"{self.dataset.split(':')[0]}_{self.scale}"

    def _matter(self) -> dict[str, Any]:
        idle = self.idle() | ({"dataset"} if self.dataset_sha256 is not None else set())
        values = {name: (getattr(self, name), field.default) for name, field in self.declared().items()}
        return {name: value for name, (value, default) in values.items() if name not in idle and value != default}

    def idle(self) -> set[str]:
        """Settings without effect on this run: alpha under control, the loop where nothing is distilled."""
        of_kip = set(KipSettings.declared()) - {"ipc", "seed"}
        fixed = {"eval_depth"} if self.eval_network in networks.FIXED_DEPTH else set()
        if self.method in settings.LOOPED:
            return of_kip | fixed | self.idle_in_loop()
        used = {"method", "seed"} | ({"ipc"} if self.method != "full" else set())
        used |= {"factor"} if self.method in ("mix", "foreign") else set()
        used |= of_kip if self.method == "kip" else set()
        return set(DistillSettings.declared()) - used | fixed

    @classmethod
    def preset(cls, scale: str = "smoke", **chosen: Any) -> Experiment:
        """The settings of a scale for a data set, with any field set by hand.

        `presets` says what a scale means. Raises SettingError for an unknown field or a value out of range.
        """
        chosen = cls.checked({"scale": scale, **chosen})  # before the presets count with them
        return cls(**presets.numbers(scale, chosen) | chosen)


# --- running ----------------------------------------------------------------------------------------------


def run(
    experiment: Experiment,
    store: Store,
    *,
    device: str = "cpu",
    data_root: str | Path | None = None,
    download: bool = False,
    group: str | None = None,
    progress: Progress | None = None,
    given: SmallSet | None = None,
    begun: SyntheticSet | None = None,
) -> Record:
    """The record of an experiment: the stored one if there is one, else made now and kept in `store`.

    A run that was killed goes on from its checkpoint. A second process that asks for the same key waits and gets the
    same record. `group` names the folder under runs/ (default <dataset>_<scale>). `given` is the set that is judged
    where the method is foreign (`foreign.experiment_of`), `begun` the one that the images begin from where
    `start_sha256` names one. All that can be refused is refused before any work: SettingError, DataError, StoreError.
    """
    check_device(device)
    data: DataSet | None = None
    if experiment.dataset_sha256 is None and sources.own_path(experiment.dataset) is not None:
        data = load_data(experiment, device, data_root, download)
        experiment = fitted(replace(experiment, dataset_sha256=data.sha256), Content.of(data))
    stored = store.find(experiment.key)
    if stored is not None:
        _check_same_data(stored, experiment, data_root)
        _check_same_prior(stored, experiment, data_root)
        return stored
    sources.check_name(base_name(experiment.dataset), datasets.data_root(data_root))
    group = plain_name(group or experiment.group)
    if (given is None) == (experiment.method == "foreign"):
        raise SettingError("method", experiment.method, "foreign where, and only where, a set from elsewhere is judged")
    store.check_writable()
    if data is None:
        data = load_data(experiment, device, data_root, download)
    _check_fits(data, experiment, begun)
    if experiment.method in settings.LOOPED:
        source = prior.load(experiment.parts().prior, data, experiment.prior_layer, experiment.prior_start)
        kept = store.distilled(experiment.set_key)
        if kept.is_file():
            _check_same_weights(kept.name, synthetic.about(kept).get("prior_sha256", ""), source.sha256)
    with store.lock(experiment.key):
        stored = store.find(experiment.key)  # another process may have made it since
        if stored is not None:
            return stored
        record = _make(experiment, data, store, progress or (lambda *_: None), given, begun)
        store.add(record, group)
        store.finish(experiment.key)
    return record


def check(
    experiments: Iterable[Experiment],
    data_root: str | Path | None = None,
    begun: SyntheticSet | None = None,
    unknown: bool = False,
) -> None:
    """Raise what `run` would refuse of the settings: SettingError, and DataError for the user's own data.

    Where a data set that has a name is not here, only the name is checked; with `unknown` not even that, because the
    packs of another machine have names that are not known here. `begun`: the set that they begin from, as in `run`.
    Cost: each data set is read once.
    """
    on_same: dict[tuple[Any, ...], list[Experiment]] = {}
    for experiment in experiments:
        on_same.setdefault(_asked(experiment, data_root), []).append(experiment)
    for same in on_same.values():
        name = same[0].dataset
        try:
            sources.check_name(base_name(name), datasets.data_root(data_root))
        except SettingError:
            if unknown:
                continue
            raise
        try:
            data = load_data(same[0], root=data_root)
        except DataError:
            if sources.own_path(name) is not None:
                raise
            continue
        for experiment in same:
            _check_fits(data, experiment, begun)


def _check_fits(data: DataSet, experiment: Experiment, begun: SyntheticSet | None) -> None:
    """Raise SettingError, naming all of them, where settings ask for what these data do not have."""
    in_evaluation = evaluate.conflicts(data, experiment, experiment.method == "full")
    raise_all([*settings.conflicts(data, experiment), *in_evaluation])
    distill.check_begun(data, experiment, begun)


def gather(
    experiments: Sequence[Experiment], mode: str = "load", store: Store | None = None, progress: bool = True
) -> tuple[list[Record], Store]:
    """The records that a page needs, in order, and the store that holds them and their distilled sets.

    mode "load": only what the store has; StoreError names what is missing and the mode that makes it, SettingError a
    data set that cannot be. "run": what is missing is made now and kept. "live": all is made now, in a folder that
    vanishes with the process.
    """
    check_choice("mode", mode, MODES)
    store = store or Store(files.vanishing_folder() if mode == "live" else None)
    if mode != "load":
        return [run(e, store) for e in tqdm(experiments, desc="runs", disable=not progress)], store
    experiments = [identified(e) for e in experiments]
    records = {e.key: store.find(e.key) for e in experiments}
    absent = [key for key, record in records.items() if record is None]
    if absent:
        for e in experiments:
            sources.check_name(base_name(e.dataset), datasets.data_root())  # a typing error is not a missing run
        raise StoreError(
            f"{len(absent)} of {len(records)} records are not in {store.root.name}/runs (first: {absent[0]}). "
            "Run this page with mode='run' to make them"
        )
    in_order = [records[e.key] for e in experiments]
    return [record for record in in_order if record is not None], store


def load_data(
    experiment: Experiment, device: str = "cpu", root: str | Path | None = None, download: bool = False
) -> DataSet:
    """The data an experiment asks for; with eval_part "validation" the test part is a tenth of the training part."""
    e = experiment
    held_out = HELD_OUT if e.eval_part == "validation" else None
    data = datasets.load(e.dataset, root, device, e.size, e.train_limit, e.test_limit, download, held_out)
    if e.dataset_sha256 not in (None, data.sha256):
        here, planned = data.sha256[:12], e.dataset_sha256[:12]
        raise DataError(f"{sources.label(e.dataset)}: these data have changed (sha256 {here}, not {planned})")
    return data


# --- data known by their content --------------------------------------------------------------------------


def identified(experiment: Experiment) -> Experiment:
    """The experiment as `run` keeps it: the user's own data known by their content; unchanged where they are not here.

    The data are read, once as long as no file of them changes. Sets that have a name keep their keys.
    """
    path = sources.own_path(experiment.dataset)
    if path is None or experiment.dataset_sha256 is not None:
        return experiment
    try:
        content = _content(_asked(experiment), sources.stamp(path))
    except DataError:
        return experiment
    return fitted(replace(experiment, dataset_sha256=content.sha256), content)


def fitted(experiment: Experiment, content: Content) -> Experiment:
    """The experiment with the numbers that own data ask for; a line says which.

    At the scales smoke and laptop batch sizes follow small data, at gpu and paper the updates of a pass follow the
    number of classes. Only the scale's own numbers change: what was set by hand stays, and is refused where it does
    not fit.
    """
    e = experiment
    if sources.own_path(e.dataset) is None:
        return e
    settings = dataclasses.asdict(e)
    usual = presets.numbers(e.scale, settings)
    wanted: dict[str, Any] = {}
    reason = "is small"
    if e.scale in ("smoke", "laptop"):
        most = {
            "batch_real": content.smallest,
            "net_batch": content.n_train,
            "kip_batch": content.n_train,
            "eval_groups": max(2, content.n_test // 2),
        }
        wanted = {name: number for name, number in most.items() if number < getattr(e, name)}
    elif e.scale in ("gpu", "paper"):
        for_these = presets.numbers(e.scale, settings, content.n_classes)
        wanted = {name: number for name, number in for_these.items() if number != usual[name]}
        reason = f"has {content.n_classes} classes"
    usual = {name: usual.get(name, field.default) for name, field in e.declared().items()}
    changed = {name: number for name, number in wanted.items() if getattr(e, name) == usual[name]}
    told = sorted(changed.keys() - e.idle())
    if told:
        words = ", ".join(f"{name} = {changed[name]}" for name in told)
        log.warning("%s %s: %s", sources.label(e.dataset), reason, words)
    return replace(e, **changed)


@dataclass(frozen=True)
class Content:
    """What tells a data set from others, and how large it is: its classes, images of the smallest, of its two parts."""

    sha256: str
    n_classes: int
    smallest: int
    n_train: int
    n_test: int
    whole_sha256: str = ""  # of the data that this part was taken from, where it was

    @classmethod
    def of(cls, data: DataSet, whole_sha256: str = "") -> Content:
        """The content of a data set as it is used."""
        smallest = int(data.train_labels.bincount(minlength=data.n_classes).min())
        return cls(data.sha256, data.n_classes, smallest, len(data.train_labels), len(data.test_labels), whole_sha256)


def _asked(experiment: Experiment, root: str | Path | None = None) -> tuple[Any, ...]:
    """What decides which images an experiment uses."""
    e = experiment
    return (e.dataset, str(datasets.data_root(root)), e.size, e.train_limit, e.test_limit, e.eval_part)


@functools.lru_cache(maxsize=64)
def _content(asked: tuple[Any, ...], _: tuple[Any, ...]) -> Content:
    """The content of the data that an experiment uses."""
    dataset, root, size, train_limit, test_limit, part = asked
    arguments = (dataset, root, "cpu", size, train_limit, test_limit)
    if part != "validation":
        return Content.of(datasets.load(*arguments))
    return Content.of(datasets.load(*arguments, held_out=HELD_OUT), datasets.load(*arguments).sha256)


def _check_same_data(record: Record, experiment: Experiment, root: str | Path | None) -> None:
    """Raise StoreError where a record found by its settings was made from other data than lie here under that name.

    Nothing is said where no data are here (records are read without), and nothing of digits, which are embedded. Early
    records of held-out parts carry the hash of the whole.
    """
    name = experiment.dataset
    if base_name(name) == "digits" or experiment.dataset_sha256 is not None:
        return
    folder = datasets.data_root(root)
    packs = [folder / f"{base_name(name)}{side}.npz" for side in ("", "128")]  # Imagenette's is called imagenette128
    try:
        here = _content(_asked(experiment, root), tuple(sources.stamp(pack) for pack in packs))
    except (DataError, SettingError):
        return
    if record.data_sha256 not in (here.sha256, here.whole_sha256):
        raise StoreError(
            f"{record.key}: this record was made from other data called {name!r} (sha256 {record.data_sha256[:12]}) "
            f"than lie here now ({here.sha256[:12]}). Give the data another name, or name another store"
        )


def _check_same_prior(record: Record, experiment: Experiment, root: str | Path | None) -> None:
    """`_check_same_weights` of a record; nothing is said where the generator's file or the data are not here."""
    name = experiment.parts().prior
    if experiment.method not in settings.LOOPED or ":" not in name:
        return
    try:
        here = prior.load(name, load_data(experiment, root=root), experiment.prior_layer, experiment.prior_start).sha256
    except (DataError, SettingError):
        return
    _check_same_weights(record.key, record.prior_sha256, here)


def _check_same_weights(what: str, made_with: str, here: str) -> None:
    """Raise StoreError where a record or a set has other weights than the generator's file, named in its key, holds."""
    if made_with not in ("", here):
        raise StoreError(
            f"{what} was made with other weights (sha256 {made_with[:12]}) than the generator's file holds now "
            f"({here[:12]}). Give the file another name, or name another store"
        )


def _make(
    experiment: Experiment,
    data: DataSet,
    store: Store,
    progress: Progress,
    given: SmallSet | None = None,
    begun: SyntheticSet | None = None,
) -> Record:
    e = experiment
    on_gpu = data.train_images.is_cuda
    origin = provenance.of_now(on_gpu)
    clock = Clock(store.work(e.key) / "clock.json", digest(e.key, data.sha256, str(provenance.RESULTS)))
    if given is not None:
        device = data.train_images.device
        small = replace(given, images=given.images.to(device), labels=given.labels.to(device))
    else:
        made_here = small_sets.distilled(data, e, e.set_key, store, progress, begun) if e.set_key else None
        small = made_here or small_sets.drawn(data, e)
    with clock.part("evaluate"):
        metrics = _judge(e, data, small, store, clock, progress)
    if e.method == "kip" and small.made is not None:
        metrics["kernel_accuracy"] = [inducing_points.kernel_accuracy(small.made, data, e)]
    told = dataclasses.asdict(e) | {"dataset": sources.label(e.dataset)}  # no folders of this machine
    return Record(
        key=e.key,
        set_key=e.set_key,
        experiment=told,
        metrics=metrics,
        history=small.history,
        seconds={"distill": small.wall, **clock.rounded("wall")},
        cpu_seconds={"distill": small.cpu, **clock.rounded("cpu")},
        peak_memory_mb=provenance.peak_memory_mb(on_gpu),
        data_sha256=data.sha256,
        prior_sha256=small.made.prior_sha256 if small.made is not None else "",
        created=datetime.now(UTC).strftime("%Y-%m-%d"),
        **origin,
    )


def _judge(
    experiment: Experiment, data: DataSet, small: SmallSet, store: Store, clock: Clock, progress: Progress
) -> Metrics:
    """Evaluate, going on after the trainings that an interrupted run has already finished."""
    file = store.work(experiment.key) / "evaluation.json"
    of = digest(experiment.key, data.sha256, str(provenance.RESULTS), small.images, small.labels)
    done: list[Metrics] = (files.state_json(file, of) or {"rows": []})["rows"]

    def note(rows: list[Metrics]) -> None:
        write_atomic(file, files.to_json({"of": of, "rows": rows}))
        clock.save()
        progress("evaluate", len(rows), experiment.eval_seeds, {"accuracy": rows[-1]["accuracy"]})

    folders = (resources() / "groups", store.root / "groups")  # the committed ones come first
    factor: int = experiment.factor if experiment.method in ("mix", "foreign") else 1
    if small.made is not None:
        factor = small.made.factor  # that of the set: KIP's is 1, whatever the setting says
    return evaluate.evaluate(small.images, small.labels, data, experiment, experiment.seed, folders, done, note, factor)
