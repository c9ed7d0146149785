"""Pictures of a loop: those of the very run, the groups of its network, and a file that grows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny

from rddlib.analysis import frames, inner_loop
from rddlib.base import DataError
from rddlib.data.dataset import load
from rddlib.distillation import distill, synthetic

UPPER = dataclasses.replace(tiny(risk="upper"), ipc=3, centres_in_all=5, inner_steps=3, outer_steps=2)
DIGITS = load("digits", train_limit=300, test_limit=100)


def test_frames_are_the_images_of_the_run_itself(tmp_path: Path) -> None:
    checkpoint = tmp_path / "again.pt"
    made, _ = distill.distill(DIGITS, UPPER, checkpoint)
    found = frames.of_run(DIGITS, UPPER, (4, 7), checkpoint)  # a finished checkpoint drops no frame
    assert found.shape == (2, 4, *DIGITS.shape) and found.dtype == np.uint8
    last = synthetic.quantised(made)
    expected = torch.cat([last.of_class(c)[: frames.SHOWN] for c in (4, 7)])
    assert np.array_equal(found[-1], (expected * 255).round().numpy().astype(np.uint8))
    assert not np.array_equal(found[0], found[-1])
    assert torch.equal(distill.distill(DIGITS, UPPER, checkpoint)[0].images, made.images)  # and leaves its own


def test_groups_are_those_of_the_last_update_from_the_set_that_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MEMBERS", 4)
    begun, _ = distill.distill(DIGITS, dataclasses.replace(UPPER, risk="control"))
    found = frames.of_groups(DIGITS, UPPER, begun)
    last = []
    inner_loop.watch(DIGITS, UPPER, lambda loop: last.append(loop.every_image()), begun=begun)
    images = last[-1]
    names = {row["name"]: row for row in found["rows"]}
    sizes = images.groupby("group").size()
    assert (names["smallest"]["size"], names["largest"]["size"]) == (sizes.min(), sizes.max())
    worst = images[images["group"] == images.groupby("group")["weight"].sum().idxmax()]
    row = names["worst"]
    assert row["size"] == len(worst) and row["loss"] == pytest.approx(worst["loss"].mean(), abs=1e-4)
    assert row["share"] == pytest.approx((worst["label"] == row["label"]).mean(), abs=1e-4)
    ends = min(4, max(1, len(worst) // 2))
    order = np.argsort(worst["distance"].to_numpy(), kind="stable")
    for picture, part in ((1, order[:ends]), (2, order[-ends:])):
        of_part = DIGITS.train_images[torch.tensor(worst.index.to_numpy()[part])].double().mean(0)
        assert np.abs(found["pictures"][2, picture] - of_part.numpy()).max() <= 0.51  # rounded to levels
    assert found["pictures"].shape == (3, 3, *DIGITS.shape)


def test_the_file_grows_by_what_is_made_and_refuses_damage(tmp_path: Path) -> None:
    path = tmp_path / "pictures.npz"
    first, second = np.zeros((2, 3, 1, 8, 8), np.uint8), np.ones((2, 3, 1, 8, 8), np.uint8)
    frames.keep(path, {"control": first}, {"control": {"key": "a"}})
    frames.keep(path, {"upper": second}, {"upper": {"key": "b"}})
    found = frames.read(path)
    assert np.array_equal(found["control"], first) and np.array_equal(found["upper"], second)
    assert found["about"] == {"control": {"key": "a"}, "upper": {"key": "b"}}
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match="pictures"):
        frames.read(path)
