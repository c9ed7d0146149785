"""Augmentation: shared draws act alike on any batch, per-image draws act as one by one, gradients pass."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rddlib.base import SettingError, generator
from rddlib.data import augment
from rddlib.data.augment import Draw

STRATEGY = "color_crop_cutout_flip_scale_rotate"


def images(n: int = 6, size: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, size, size, generator=generator(seed, "images"), dtype=torch.float64)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from(["color_crop_cutout", "color_crop", "scale", "rotate", STRATEGY]))
def test_a_shared_draw_treats_every_batch_alike(seed: int, strategy: str) -> None:
    """Siamese: the transformation of an image does not depend on what stands beside it."""
    x = images()
    theta = augment.draw(strategy, 1, 16, generator(seed))
    whole = augment.apply(x, theta)
    assert whole.shape == x.shape
    assert torch.allclose(whole[2:3], augment.apply(x[2:3], theta), atol=1e-12)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from(["color_crop", "flip", "cutout", "scale", "rotate", STRATEGY]))
def test_per_image_draws_equal_one_by_one(seed: int, strategy: str) -> None:
    x = images()
    theta = augment.draw(strategy, len(x), 16, generator(seed))
    rows = {f: getattr(theta, f) for f in ("flip", "color", "crop", "affine", "cutout")}
    alone = [
        augment.apply(x[i : i + 1], Draw(**{k: None if v is None else v[i : i + 1] for k, v in rows.items()}))
        for i in range(len(x))
    ]
    assert torch.allclose(augment.apply(x, theta), torch.cat(alone), atol=1e-12)


def test_same_stream_same_draw_and_no_global_stream() -> None:
    before = torch.random.get_rng_state()
    a, b = (augment.draw(STRATEGY, 5, 16, generator(3)) for _ in range(2))
    assert torch.equal(augment.apply(images(5), a), augment.apply(images(5), b))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_one_of_crop_scale_and_rotate_is_chosen() -> None:
    stream, seen = generator(0), set()
    for _ in range(60):
        theta = augment.draw("color_crop_scale_rotate", 4, 16, stream)
        assert (theta.crop is None) != (theta.affine is None) and theta.color is not None and theta.flip is None
        seen.add("crop" if theta.crop is not None else "rotate" if theta.affine[0, 0, 1] != 0 else "scale")
    assert seen == {"crop", "scale", "rotate"}


def test_none_changes_nothing() -> None:
    assert torch.equal(augment.apply(images(), augment.draw("none", 6, 16, generator(0))), images())


def test_flip_and_shift_move_pixels_as_said() -> None:
    x = images(2)
    assert torch.equal(augment.apply(x, Draw(flip=torch.tensor([True, False])))[0], x[0].flip(2))
    moved = augment.apply(x, Draw(crop=torch.tensor([[2, -1]])))
    assert torch.equal(moved[:, :, :14, 1:], x[:, :, 2:, :15]) and (moved[:, :, 14:] == 0).all()


def test_affine_identity_and_right_angles() -> None:
    x = images(1)
    still = torch.eye(2, 3)[None]
    assert torch.allclose(augment.apply(x, Draw(affine=still)), x, atol=1e-9)
    turned = torch.tensor([[[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]]])
    assert torch.allclose(augment.apply(x, Draw(affine=turned)), x.rot90(1, (2, 3)), atol=1e-6) or torch.allclose(
        augment.apply(x, Draw(affine=turned)), x.rot90(-1, (2, 3)), atol=1e-6
    )


def test_colour_by_hand() -> None:
    x = images(1)
    neutral = torch.tensor([[0.5, 0.5, 0.5]])  # brightness +0, saturation x1, contrast x1
    assert torch.allclose(augment.apply(x, Draw(color=neutral)), x, atol=1e-12)
    brighter = augment.apply(x, Draw(color=torch.tensor([[1.0, 0.5, 0.5]])))
    assert torch.allclose(brighter, x + 0.5, atol=1e-12)
    grey = augment.apply(x, Draw(color=torch.tensor([[0.5, 0.0, 0.5]])))
    assert torch.allclose(grey, x.mean(1, keepdim=True).expand_as(x), atol=1e-12)
    flat = augment.apply(x, Draw(color=torch.tensor([[0.5, 0.5, 0.0]])))
    assert flat.std().item() == pytest.approx(0.5 * x.std().item(), rel=1e-2)


def test_cutout_takes_a_quarter_in_the_middle_and_less_at_the_border() -> None:
    x = torch.ones(1, 1, 16, 16)
    assert augment.apply(x, Draw(cutout=torch.tensor([[8.0, 8.0]]))).sum() == 256 - 64
    assert augment.apply(x, Draw(cutout=torch.tensor([[0.0, 0.0]]))).sum() == 256 - 16


@pytest.mark.parametrize("strategy", ["color", "crop", "cutout", "flip", "scale", "rotate"])
def test_gradients_pass(strategy: str) -> None:
    x = images(2, 6).requires_grad_()
    theta = augment.draw(strategy, 2, 6, generator(1))
    assert torch.autograd.gradcheck(lambda v: augment.apply(v, theta), (x,))


def test_cutmix_share_is_the_share_of_pixels_kept() -> None:
    x = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 16, 16)
    stream, mixed = generator(5), 0
    for _ in range(50):
        y, partner, share = augment.cutmix(x, stream)
        kept = torch.where(partner == torch.arange(4), 1.0, (y == x).double().mean((1, 2, 3)))
        other = partner != torch.arange(4)
        assert torch.allclose(kept[other], torch.full_like(kept[other], share), atol=1e-6)
        mixed += share < 1
    assert 10 < mixed < 40  # probability one half
    assert augment.cutmix(x, stream, probability=0.0)[2] == 1.0


def test_unknown_operation() -> None:
    with pytest.raises(SettingError, match="strategy = 'color_sparkle'"):
        augment.draw("color_sparkle", 1, 8, generator(0))


def test_rule_one_chooses_one_operation_a_call_all_of_them_equally_often() -> None:
    stream, seen = generator(0, "one"), dict.fromkeys(augment.OPERATIONS, 0)
    for _ in range(600):
        drawn = augment.draw("color_crop_cutout_flip_scale_rotate", 1, 32, stream, rule="one")
        acting = [n for n in ("flip", "color", "crop", "affine", "cutout") if getattr(drawn, n) is not None]
        assert len(acting) == 1
        name = acting[0]
        if name == "affine":
            name = "rotate" if drawn.affine[0, 0, 1] != 0 else "scale"
        seen[name] += 1
    assert min(seen.values()) > 70 and max(seen.values()) < 130  # 100 expected, standard deviation 9


def test_unknown_rule_is_refused() -> None:
    with pytest.raises(SettingError, match="rule = 'two'"):
        augment.draw("color", 1, 32, generator(0), rule="two")
