"""One run over several processes of this host: the run of one process, refusals, and what happens when one is lost."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rddlib import classwise, data, distill, prior, probes
from rddlib.__main__ import main
from rddlib.base import SettingError, repository_root
from rddlib.classwise import ClassLoop
from rddlib.data import DataSet
from rddlib.experiment import Experiment, run
from rddlib.loop import Loop
from rddlib.methods import DistillSettings
from rddlib.split import ALONE, STARTED_BY, SplitError, Team, joined
from rddlib.store import Store

SMALL: dict[str, Any] = {
    "depth": 2, "width": 4, "ipc": 2, "factor": 1, "outer_steps": 2, "inner_steps": 2, "batch_real": 8, "net_steps": 1,
    "net_batch": 32, "lr_image": 1.0, "momentum_image": 0.7,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "idc": {},
    "idc upper": {"risk": "upper"},
    "idc matching": {"risk": "upper", "where": "matching"},
    "idc at once": {"classes_at_once": True},
    "dc": {"method": "dc", "lr_image": 0.1},
    "dm": {"method": "dm", "net_steps": 0},
}
WAITED = 300  # seconds after which processes count as hung
LOST = 9


def few(n_classes: int = 3) -> DataSet:
    """Digits of three classes in double precision: two processes have two and one of them."""
    d = data.load("digits", train_limit=200, test_limit=100)
    keep = d.train_labels < n_classes
    return dataclasses.replace(
        d, train_images=d.train_images[keep].double() / 255, train_labels=d.train_labels[keep],
        classes=d.classes[:n_classes],
    )  # fmt: skip


def settings(**chosen: Any) -> DistillSettings:
    return DistillSettings(**(SMALL | chosen))


# --- two processes, which go through everything in turn ---------------------------------------------------------


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number: int = free.getsockname()[1]
    return number


def join(rank: int, size: int, port: int) -> None:
    """What torchrun says to a process that it starts."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), STARTED_BY: "test",
    }  # fmt: skip


def make(team: Team, s: DistillSettings, *more: Any, d: Callable[[], DataSet] = few) -> Tensor | None:
    """The images that a team distils, in process 0."""
    team = dataclasses.replace(team, begun=False)
    if team.rank == 0:
        return distill.distill(d(), s, *more, team=team)[0].images
    return distill.assist(d, s, team)


def refused(team: Team, s: DistillSettings, *more: Any) -> str:
    """What a team's SplitError says."""
    with pytest.raises(SplitError) as found:
        make(team, s, *more)
    return str(found.value)


class Drifting(ClassLoop):
    """Trains another network in process 1."""

    def network_steps(self) -> Tensor:
        if self.team.rank == 1:
            with torch.no_grad():
                next(iter(self.net.parameters())).mul_(1 + 1e-7)
        return super().network_steps()


class Dying(ClassLoop):
    """Process 1 ends without a word in the second outer step."""

    steps = 0

    def image_steps(self) -> Tensor:
        type(self).steps += 1
        if self.team.rank == 1 and self.steps > 3:
            os._exit(LOST)
        return super().image_steps()


def told(words: list[str]) -> tuple[int, str]:
    """Exit status and error text of the command line in this process."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        return main(words), said.getvalue()


def member(rank: int, ports: list[int], folder: Path) -> None:
    """One of two processes; notes what it has found."""
    torch.set_num_threads(1)
    join(rank, 2, ports[0])
    found: dict[str, Any] = {"refused": told(command(folder / "store", method="random"))}
    join(rank, 2, ports[1])
    with joined("cpu") as team:
        for name, chosen in CASES.items():
            found[name] = make(team, settings(**chosen))
        found["glad"] = make(team, probes.tiny(method="glad", outer_steps=1), d=lambda: data.load("digits"))
        found["resumed"] = make(team, settings(), folder / "half.pt")
        found["other seed"] = refused(team, settings(seed=rank))
        own, classwise.ClassLoop = classwise.ClassLoop, Drifting  # type: ignore[misc]
        found["drift"] = refused(team, settings())
        classwise.ClassLoop = Dying  # type: ignore[misc]
        torch.save(found, folder / f"{rank}.pt")
        if rank == 0:
            found["lost"] = refused(team, settings(outer_steps=3), folder / "lost.pt", 100)
            torch.save(found, folder / "0.pt")
        else:
            make(team, settings(outer_steps=3))
        classwise.ClassLoop, team.begun = own, True  # type: ignore[misc]


class Stop(Exception):
    pass


def stop(*_: object) -> None:
    raise Stop


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]], list[int | None]]:
    """The folder of the two processes, what each has noted, and how each ended."""
    folder, ports = tmp_path_factory.mktemp("team"), [free_port(), free_port()]
    with pytest.raises(Stop):  # one process begins what the team goes on with
        distill.distill(few(), settings(), folder / "half.pt", on_step=stop)
    begin = multiprocessing.get_context("spawn")
    processes = [begin.Process(target=member, args=(rank, ports, folder)) for rank in range(2)]
    for p in processes:
        p.start()
    try:
        for p in processes:
            p.join(WAITED)
        codes = [p.exitcode for p in processes]
    finally:
        for p in processes:
            p.kill()
    return folder, [torch.load(folder / f"{rank}.pt") for rank in range(2)], codes


@pytest.mark.parametrize("case", CASES)
def test_two_processes_make_the_set_of_one(found: Any, case: str) -> None:
    alone = distill.distill(few(), settings(**CASES[case]))[0].images
    start = distill.begin(few(), settings(**CASES[case]), prior.load("none", few(), 1)).codes["pixels"]
    assert torch.allclose(found[1][0][case], alone, rtol=0, atol=1e-10)
    assert (alone - start).abs().max() > 0.01


def test_the_closed_form_in_one_process_is_the_same_to_the_bit(found: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classwise, "kind", lambda s, team=ALONE: ClassLoop)
    assert torch.equal(found[1][0]["idc"], distill.distill(few(), settings())[0].images)


def test_codes_of_a_prior_are_split_too(found: Any) -> None:
    alone = distill.distill(data.load("digits"), probes.tiny(method="glad", outer_steps=1))[0].images
    assert torch.equal(found[1][0]["glad"], alone)  # one step for the sum: nothing is reordered


def test_a_team_goes_on_from_the_checkpoint_of_one_process(found: Any) -> None:
    assert torch.allclose(found[1][0]["resumed"], found[1][0]["idc"], rtol=0, atol=1e-10)


def test_only_the_first_process_has_a_result(found: Any) -> None:
    assert all(found[1][1][name] is None for name in (*CASES, "glad", "resumed"))


def test_processes_that_differ_stop_and_say_in_what(found: Any) -> None:
    for one in found[1]:
        assert "settings, data or code" in one["other seed"] and "networks" in one["drift"]


def test_a_lost_process_ends_the_others_and_leaves_a_sound_checkpoint(found: Any) -> None:
    folder, (first, _), codes = found
    assert codes == [0, LOST] and "has ended" in first["lost"] and "goes on" in first["lost"]
    s = settings(outer_steps=3)
    begun = distill.begin(few(), s, prior.load("none", few(), 1))
    kept = distill.load_state(folder / "lost.pt", begun)
    assert kept.outer == 1  # the last whole outer step, though checkpoints were due each hundred
    resumed, _ = distill.distill(few(), s, folder / "lost.pt")
    assert torch.allclose(resumed.images, distill.distill(few(), s)[0].images, rtol=0, atol=1e-10)


def test_the_page_says_what_is_exchanged_and_what_is_divided() -> None:
    """Bytes as they are sent; shares by the factors of `rddlib.price`: 3 for weights' gradients, 6 for the images'."""
    page = (repository_root() / "book" / "scale_out.md").read_text()
    e = Experiment()
    numbers = 10 + 10 * e.ipc * 3 * 32 * 32
    divided = 10 * (3 * e.batch_real + 6 * e.ipc * e.factor**2)
    share = divided / (divided + 3 * e.net_steps * e.net_batch)
    two, ten = (1 / (1 - share + share / n) for n in (2, 10))
    for said in (f"{4 * numbers:,} bytes", f"{share:.0%}".replace("%", " %"), f"{two:.1f} x", f"{ten:.1f} x for ten"):
        assert said in page, said


# --- the command line ---------------------------------------------------------------------------------------------

TINY: dict[str, Any] = {
    "width": 8, "eval_width": 8, "outer_steps": 2, "inner_steps": 2, "batch_real": 8, "net_steps": 1, "net_batch": 32,
    "lr_image": 0.3, "eval_steps": 4, "eval_seeds": 1, "eval_shifts": False, "train_limit": 200, "test_limit": 100,
}  # fmt: skip


def command(store: Path, **chosen: Any) -> list[str]:
    """The words after `python -m rddlib` for the tiny run."""
    options = [w for n, v in (TINY | chosen).items() for w in (f"--{n.replace('_', '-')}", str(v).lower())]
    return ["run", "--dataset", "digits", *options, "--store", str(store)]


def torchrun(store: Path) -> subprocess.CompletedProcess[str]:
    """What a user types."""
    start = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port"]
    words = [*start, str(free_port()), "-m", "rddlib", *command(store)]
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=WAITED, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository_root())},
    )  # fmt: skip


def files(store: Path) -> set[str]:
    return {p.relative_to(store).as_posix() for p in store.rglob("*") if p.is_file() and p.suffix != ".lock"}


def images(store: Store, key: str) -> Any:
    with np.load(store.distilled(key)) as pack:
        return pack["images"].astype(int)


def test_torchrun_makes_the_record_of_one_process(tmp_path: Path) -> None:
    e = Experiment.preset("smoke", dataset="digits", **TINY)
    one, other = Store(tmp_path / "one"), Store(tmp_path / "other")
    alone, done = run(e, one), torchrun(other.root)
    assert done.returncode == 0, done.stderr
    assert files(one.root) == files(other.root)  # one record, one set, nothing left over
    record = other.find(e.key)
    assert record is not None and done.stdout.count(e.key) == 1  # one process speaks
    assert record.device.startswith("2 x cpu") and record.experiment == alone.experiment
    assert abs(images(one, e.set_key) - images(other, e.set_key)).max() <= 1  # float32 at the edge of a level
    for a, b in zip(record.history, alone.history, strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_what_cannot_be_split_is_refused_and_no_process_is_left_waiting(found: Any) -> None:
    folder, ((code, said), other), _ = found[0], [each["refused"] for each in found[1]], found[2]
    assert code == 2 and "rddlib: method = 'random': allowed is one of idc" in said
    assert other == (0, "") and not files(folder / "store")


@pytest.mark.parametrize(
    ("chosen", "size", "why"),
    [({}, 4, "--nproc-per-node = 4: allowed is at most 3"), ({"network": "vit", "metric": "dc"}, 2, "dropout"),
     ({"method": "kip"}, 2, "under torchrun")],
)  # fmt: skip
def test_refusals(chosen: dict[str, Any], size: int, why: str) -> None:
    with pytest.raises(SettingError, match=why):
        distill.distill(few(), settings(**chosen), team=Team(0, size))
    classwise.check_fit(few(), settings(**chosen), ALONE)


def test_a_card_for_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "2"), ("LOCAL_RANK", "1"), (STARTED_BY, "test")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SettingError, match="--nproc-per-node = 2: allowed is at most 1"), joined("cuda"):
        pass


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")  # some clusters set it for their own ends
    with joined("cpu") as team:
        assert team == Team() and list(team.own(3)) == [0, 1, 2] and team.words == ""
        team.send("nobody hears it")
        team.agree("nothing", 0)
        assert team.sum(torch.ones(2)).tolist() == [1, 1]
    assert classwise.kind(settings(), data.load("digits")) is Loop


def test_shares_are_even_and_whole() -> None:
    for size in (1, 2, 3, 4, 7, 10):
        shares = [list(Team(rank, size).own(10)) for rank in range(size)]
        assert sorted(c for share in shares for c in share) == list(range(10))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
