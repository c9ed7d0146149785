"""The distilled set: decoding, starting, saving; no damaged file is taken for a set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from rddlib.base import SettingError, generator
from rddlib.data import dataset
from rddlib.data.sources import DataError
from rddlib.distillation import synthetic
from rddlib.distillation.synthetic import SyntheticSet


@pytest.mark.parametrize(("size", "factor"), [(8, 1), (8, 2), (32, 2), (9, 3), (32, 3), (8, 3)])
def test_decode_equals_a_plain_loop(size: int, factor: int) -> None:
    x = torch.rand(2, 3, size, size, generator=generator(0))
    padded = F.pad(x, (0, -size % factor, 0, -size % factor), value=0.5)
    side, tiles = padded.shape[-1] // factor, []
    for image in padded:
        for i in range(factor):
            for j in range(factor):
                tile = image[None, :, i * side : (i + 1) * side, j * side : (j + 1) * side]
                tiles.append(F.interpolate(tile, size=(size, size), mode="bilinear", align_corners=False))
    expected = torch.cat(tiles) if factor > 1 else x
    assert torch.allclose(synthetic.decode(x, factor), expected)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(2, 6))
def test_encode_undoes_nearest_enlargement(n: int, factor: int, side: int) -> None:
    small = torch.rand(n * factor**2, 1, side, side, generator=generator(n, factor, side))
    large = small.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    stored = synthetic.encode(large, factor)
    assert stored.shape == (n, 1, side * factor, side * factor)
    decoded = synthetic.decode(stored, factor)
    assert torch.allclose(decoded, F.interpolate(small, size=large.shape[2:], mode="bilinear"))


def test_decoding_is_differentiable_and_constant_images_stay() -> None:
    x = torch.rand(1, 1, 4, 4, dtype=torch.float64, generator=generator(1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: synthetic.decode(v, 2), (x,))
    assert torch.allclose(synthetic.decode(torch.full((1, 3, 8, 8), 0.3), 2), torch.tensor(0.3))


def test_start_uses_another_real_image_for_each_tile() -> None:
    d = dataset.load("digits")
    s = synthetic.start(d, 2, 2, generator(0, "start"))
    assert s.images.shape == (20, 1, 8, 8) and s.labels.tolist() == [c for c in range(10) for _ in range(2)]
    x, y = s.decoded()
    assert x.shape == (80, 1, 8, 8) and y.bincount().tolist() == [8] * 10
    assert len({t.numpy().tobytes() for t in x}) == 80
    other = synthetic.start(d, 2, 2, generator(1, "start"))
    assert not torch.equal(s.images, other.images)


def test_random_images_are_of_their_class_and_first_n_are_the_first() -> None:
    d = dataset.load("digits")
    index = synthetic.draw_real(d, 3, generator(0))
    assert d.train_labels[index].tolist() == [c for c in range(10) for _ in range(3)] and len(set(index.tolist())) == 30
    first = synthetic.draw_real(d, 2, None)
    for c in range(10):
        assert first[2 * c : 2 * c + 2].tolist() == (d.train_labels == c).nonzero().flatten()[:2].tolist()
    for draw in (lambda: synthetic.draw_real(d, 1000, generator(0)), lambda: synthetic.herded(d, 1000)):
        with pytest.raises(SettingError, match="ipc = 1000"):
            draw()


def test_what_is_saved_is_what_is_evaluated(tmp_path: Path) -> None:
    made = SyntheticSet(torch.rand(4, 3, 8, 8, generator=generator(2)), 2, 2)
    read = synthetic.read(synthetic.save(tmp_path / "a.npz", made, key="k"))
    assert torch.equal(read.images, synthetic.quantised(made).images) and (read.ipc, read.factor) == (2, 2)
    assert (read.images - made.images).abs().max() <= 0.5 / 255 + 1e-6


def test_damaged_sets_are_refused(tmp_path: Path) -> None:
    good = synthetic.save(tmp_path / "good.npz", SyntheticSet(torch.rand(4, 3, 8, 8), 2))
    (tmp_path / "cut.npz").write_bytes(good.read_bytes()[:200])
    np.savez(tmp_path / "odd.npz", images=np.zeros((3, 3, 8, 8), np.uint8), ipc=2, factor=1)
    np.savez(tmp_path / "short.npz", images=np.zeros((4, 3, 8, 8), np.uint8))
    turned = {"images": np.zeros((4, 3, 8, 8), np.uint8), "labels": np.array([1, 1, 0, 0])}
    np.savez(tmp_path / "turned.npz", **turned, ipc=2, factor=1)
    for name in ("cut", "odd", "short", "turned", "absent"):
        with pytest.raises(DataError, match=f"{name}.npz"):
            synthetic.read(tmp_path / f"{name}.npz")


def test_herded_images_are_the_greedy_choice_and_their_mean_is_near() -> None:
    """As by trying every image; their mean lies nearer to that of the class than the mean of drawn ones does."""
    data = dataset.load("digits", train_limit=200)
    index = synthetic.herded(data, 5).view(10, 5)
    drawn = [synthetic.draw_real(data, 5, generator(seed, "x")).view(10, 5) for seed in range(5)]
    x, gaps = data.normalise(data.train_images), torch.zeros(10, 6)
    for c in range(10):
        members = (data.train_labels == c).nonzero().flatten()
        mean, chosen = x[members].mean(0), list[int]()
        for _ in range(5):
            free = [int(i) for i in members if int(i) not in chosen]
            chosen.append(min(free, key=lambda i: float((x[[*chosen, i]].mean(0) - mean).norm())))
        assert index[c].tolist() == chosen
        gaps[c] = torch.stack([(x[own[c]].mean(0) - mean).norm() for own in (index, *drawn)])
    assert (gaps[:, 0] < gaps[:, 1:].mean(1)).all()
