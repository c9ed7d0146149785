"""Shifts and corruptions: the released bytes, one severity for all sizes, twelve corruptions against plain loops."""

from __future__ import annotations

import io
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter
from scipy import ndimage
from torch import Tensor

from rddlib.base import SettingError, digest, generator
from rddlib.data import corruptions, shifts
from rddlib.data.shifts import CORRUPTIONS, SEVERITIES, SHIFTS


def smooth(n: int = 6, channels: int = 3, side: int = 32) -> Tensor:
    """Pictures of slow waves with one edge: uint8 (n, channels, side, side)."""
    turn = torch.rand(n, channels, 3, generator=generator(0, "waves")) * 6
    line = torch.arange(side) / side
    waves = torch.sin(turn[..., 0, None, None] + 7 * line[:, None] + turn[..., 1, None, None] * line)
    pictures = 0.5 + 0.3 * waves
    pictures[..., side // 3 : side // 2, side // 4 : side // 2] += 0.2
    return (pictures * 255).round().to(torch.uint8)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).square().mean())


# --- the paper's shifts -----------------------------------------------------------------------------------


def test_released_shifts_keep_their_bytes() -> None:
    """Records made so far rest on these images."""
    x = (torch.arange(2 * 3 * 32 * 32) * 7 % 256).to(torch.uint8).view(2, 3, 32, 32)
    assert {kind: digest(shifts.shifted(x, kind))[:16] for kind in SHIFTS} == {
        "noise": "41129344e2971989", "blur": "c60c369378847855", "invert": "ea02a95b97387a1e",
    }  # fmt: skip


@pytest.mark.parametrize("side", [8, 32, 64])
def test_matched_blur_is_pillows_with_the_same_share_of_the_side(side: int) -> None:
    x = smooth(2, side=side)
    found = shifts.shifted_as_defined(x, "blur_matched", "cifar10")
    soft = ImageFilter.GaussianBlur(side / 16)
    for image, blurred in zip(x, found, strict=True):
        plain = np.array(Image.fromarray(image.permute(1, 2, 0).numpy()).filter(soft))
        assert torch.equal(blurred.permute(1, 2, 0), torch.from_numpy(plain))


@pytest.mark.parametrize(("dataset", "side"), [("cifar10", 32), ("svhn", 32), ("imagenet_a", 128), ("digits", 8)])
def test_matched_noise_has_one_variance_everywhere(dataset: str, side: int) -> None:
    grey = torch.full((400_000 // side**2, 1, side, side), 128, dtype=torch.uint8)
    found = shifts.shifted_as_defined(grey, "noise_matched", dataset)
    assert ((found.double() - 128) / 255).var().item() == pytest.approx(0.005, rel=0.03)


def test_at_32_px_matched_is_released() -> None:
    x = smooth()
    for kind in ("noise", "blur"):
        plain, matched = (shifts.shifted_as_defined(x, k, "cifar10") for k in (kind, f"{kind}_matched"))
        assert torch.equal(plain, matched) and torch.equal(plain, shifts.shifted(x, kind))


def test_released_shifts_come_before_the_resize_and_matched_ones_after() -> None:
    x = smooth(3, side=64)
    small = shifts.resized(x, 32)
    early = shifts.shifted_as_defined(x, "noise", "imagenet_b", size=32)
    assert torch.equal(early, shifts.resized(shifts.shifted(x, "noise", sigma=0.2), 32))
    late = shifts.shifted_as_defined(x, "blur_matched", "imagenet_b", size=32)
    assert torch.equal(late, shifts.shifted(small, "blur", radius=2.0))


def test_parameters_are_the_released_ones() -> None:
    assert shifts.shift_parameters("imagenet10", "noise") == shifts.shift_parameters("imagenette", "noise")
    assert shifts.shift_parameters("imagenet10", "noise") == {"sigma": 0.2}
    assert shifts.shift_parameters("cifar10", "noise")["sigma"] ** 2 == pytest.approx(0.005)
    assert shifts.shift_parameters("imagenet10", "blur") == shifts.shift_parameters("cifar10", "blur") == {"radius": 2}
    assert shifts.shift_parameters("imagenet10", "blur_matched", 128) == {"radius": 8}
    assert shifts.shift_parameters("svhn", "invert") == {}


def test_severity_at_the_network_is_what_is_measured_there() -> None:
    """Sigma 0.2 on a photograph of 500 px is about half of CIFAR-10's noise at 128 px; the blur is a sixteenth."""
    grey = torch.full((8, 1, 128, 128), 128, dtype=torch.uint8)
    noisy = shifts.resized(shifts.shifted(grey, "noise", sigma=0.1), 64)  # 0.1: clipping does nothing
    measured = ((noisy.double() - 128) / 255).std().item()
    assert measured == pytest.approx(shifts.network_severity("imagenette", "noise", 128, 64) / 2, rel=0.03)
    photo = shifts.network_severity("imagenet10", "noise", 500, 128)
    assert 0.45 < photo / shifts.network_severity("cifar10", "noise", 32, 32) < 0.55
    blurs = [
        shifts.network_severity(n, "blur", side, to) for n, side, to in (("imagenet10", 500, 128), ("svhn", 32, 32))
    ]
    assert blurs == [pytest.approx(0.004), pytest.approx(0.0625)]
    for kind, value in (("noise_matched", 0.005**0.5), ("blur_matched", 0.0625), ("invert", 1)):
        assert shifts.network_severity("imagenet10", kind, 500, 128) == pytest.approx(value)


# --- twelve corruptions: what all share -------------------------------------------------------------------


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize(("channels", "side"), [(3, 32), (1, 32), (1, 8), (3, 20), (3, 64)])
def test_kind_keeps_form_repeats_itself_and_leaves_the_global_streams_alone(
    kind: str, channels: int, side: int
) -> None:
    x = smooth(5, channels, side)
    before = x.clone()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tobytes()  # noqa: NPY002
    found = [shifts.corrupted(x, kind, severity, seed=1) for severity in SEVERITIES]
    assert all(y.dtype == torch.uint8 and y.shape == x.shape and y.is_contiguous() for y in found)
    assert torch.equal(found[2], shifts.corrupted(x, kind, 3, seed=1)) and torch.equal(x, before)
    assert torch.equal(torch_state, torch.get_rng_state()) and numpy_state == np.random.get_state()[1].tobytes()  # noqa: NPY002
    assert len(shifts.corrupted(x[:0], kind, 1)) == 0


RANDOM = ("gaussian_noise", "shot_noise", "impulse_noise", "motion_blur", "fog", "elastic_transform")


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_seed_matters_where_there_is_chance_and_only_there(kind: str) -> None:
    x = smooth()
    assert torch.equal(shifts.corrupted(x, kind, 4, 0), shifts.corrupted(x, kind, 4, 1)) == (kind not in RANDOM)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_severity_moves_images_further_away(kind: str) -> None:
    """Two of the published scales are not ordered at each step: see the exceptions, which follow from the numbers."""
    x = smooth(20)
    if kind == "pixelate":  # boxes that meet the one edge of a smooth picture count more than their size
        rough = ndimage.gaussian_filter(np.random.default_rng(0).random(x.shape), (0, 0, 0.7, 0.7))
        x = torch.from_numpy((rough * 255).astype(np.uint8))
    found = [distance(shifts.corrupted(x, kind, severity), x) for severity in SEVERITIES]
    assert found[0] > 0
    if kind == "elastic_transform":  # its affine part shrinks while its waves grow: no order of distances is meant
        assert min(found) > 10
    elif kind == "motion_blur":  # from 3 to 4 only the reach grows, from three sigma to four
        assert found[4] > found[3] >= 0.99 * found[2] > found[1] > found[0]
    else:
        assert all(a < b for a, b in itertools.pairwise(found)), found


def test_blocks_do_not_repeat_their_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    grey = torch.full((8, 1, 32, 32), 128, dtype=torch.uint8)
    monkeypatch.setattr(shifts, "BLOCK", 4)
    found = shifts.corrupted(grey, "gaussian_noise", 3)
    assert not torch.equal(found[:4], found[4:])


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"kind": "frost"}, "kind"),
        ({"severity": 0}, "severity"),
        ({"severity": 6}, "severity"),
        ({"severity": 2.5}, "severity"),
        ({"severity": True}, "severity"),
        ({"images": torch.zeros(1, 3, 32, 32)}, "images"),
        ({"images": torch.zeros(1, 3, 32, 16, dtype=torch.uint8)}, "images"),
        ({"images": torch.zeros(1, 3, 4, 4, dtype=torch.uint8)}, "images"),
        ({"images": torch.zeros(3, 32, 32, dtype=torch.uint8)}, "images"),
    ],
)
def test_bad_input_is_named(change: dict, name: str) -> None:
    with pytest.raises(SettingError, match=f"{name} = "):
        shifts.corrupted(**({"images": smooth(1), "kind": "fog", "severity": 1} | change))


# --- each against its definition --------------------------------------------------------------------------


def test_noise_has_its_nominal_size() -> None:
    x = torch.full((40, 3, 32, 32), 0.5)
    stream = generator(0, "nominal")
    assert corruptions.gaussian_noise(x, 0.1, stream).std().item() == pytest.approx(0.1, rel=0.02)
    shot = corruptions.shot_noise(x, 50, stream)
    assert shot.mean().item() == pytest.approx(0.5, rel=0.01) and shot.var().item() == pytest.approx(0.01, rel=0.03)
    hit = corruptions.impulse_noise(x, 0.07, stream)
    assert (hit == 0).double().mean().item() == pytest.approx(0.035, rel=0.1)
    assert (hit == 1).double().mean().item() == pytest.approx(0.035, rel=0.1)
    assert set(hit.unique().tolist()) == {0.0, 0.5, 1.0}


def test_defocus_is_a_mirrored_convolution_with_a_disc() -> None:
    x = smooth(1).double()[0] / 255
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]]) / 5  # a disc of radius 1, hardly softened
    found = corruptions.defocus_blur(x.float()[None], (1, 0.2), generator(0))[0]
    for plane, expected in zip(found, x, strict=True):
        assert np.abs(plane.numpy() - ndimage.convolve(expected.numpy(), cross, mode="mirror")).max() < 1e-4
    assert corruptions.disc(6, 0.4, 4).sum().item() == pytest.approx(1)
    assert corruptions.disc(0.3, 0.4, 1).shape == (5, 5) and corruptions.disc(0.3, 0.4, 1)[2, 2] > 0.8


def test_motion_blur_equals_a_loop_over_images_and_taps() -> None:
    x = smooth(7).float() / 255
    found = corruptions.motion_blur(x, (8, 2), generator(5))
    angles = (torch.rand(7, generator=generator(5)) - 0.5) * math.pi / 2
    weights = [math.exp(-i * i / 8) for i in range(17)]
    for image, angle, blurred in zip(x, angles.tolist(), found, strict=True):
        expected = torch.zeros_like(image)
        for i, weight in enumerate(weights):
            rows = torch.arange(32).add(math.ceil(i * math.sin(angle) - 0.5)).clamp(0, 31)
            columns = torch.arange(32).add(math.ceil(i * math.cos(angle) - 0.5)).clamp(0, 31)
            expected += weight / sum(weights) * image[:, rows][:, :, columns]
        assert torch.allclose(blurred, expected, atol=1e-4)


@pytest.mark.parametrize("side", [8, 32, 33, 64])
@pytest.mark.parametrize("factor", [1.0, 1.03, 1.1, 1.25])
def test_zoom_is_scipys_of_the_middle(side: int, factor: float) -> None:
    x = np.random.default_rng(0).random((side, side))
    crop = math.ceil(side / factor)
    top = (side - crop) // 2
    whole = ndimage.zoom(x[top : top + crop, top : top + crop], factor, order=1)
    trim = (len(whole) - side) // 2
    matrix = corruptions.zoom_matrix(side, factor).double().numpy()
    assert np.abs(matrix @ x @ matrix.T - whole[trim : trim + side, trim : trim + side]).max() < 1e-5


def test_plasma_is_rough_by_levels_and_fills_its_range() -> None:
    coarse, fine = (corruptions.plasma(50, 32, decay, generator(0)) for decay in (3, 1.75))
    for field in (coarse, fine):
        assert field.shape == (50, 32, 32)
        assert torch.all(field.amin((1, 2)) == 0) and torch.all(field.amax((1, 2)) == 1)
    steps = [field.diff(dim=1).abs().mean().item() for field in (coarse, fine)]
    assert steps[0] < 0.7 * steps[1]
    assert corruptions.plasma(2, 20, 3, generator(0)).shape == (2, 20, 20)


def test_fog_keeps_the_highest_level_within_reach_and_black_black() -> None:
    x = smooth().float() / 255
    foggy = corruptions.fog(x, (1.5, 1.75), generator(0))
    assert torch.all(foggy.amax((1, 2, 3)) <= x.amax((1, 2, 3)) + 1e-6) and foggy.std() < x.std()
    assert corruptions.fog(torch.zeros(1, 3, 32, 32), (0.2, 3), generator(0)).max() == 0


@settings(deadline=None, derandomize=True, max_examples=30)
@given(st.tuples(*[st.integers(0, 255)] * 3), st.sampled_from([0.05, 0.3]))
def test_brightness_is_that_of_colorsys(colour: tuple[int, int, int], step: float) -> None:
    import colorsys

    hue, saturation, value = colorsys.rgb_to_hsv(*(c / 255 for c in colour))
    expected = colorsys.hsv_to_rgb(hue, saturation, min(1, value + step))
    x = torch.tensor(colour).view(1, 3, 1, 1) / 255
    assert corruptions.brightness(x, step, generator(0)).flatten().tolist() == pytest.approx(expected, abs=1e-5)


def test_contrast_keeps_the_mean_and_scales_the_spread() -> None:
    x = smooth().double() / 255
    found = corruptions.contrast(x, 0.3, generator(0))
    assert torch.allclose(found.mean((2, 3)), x.mean((2, 3))) and torch.allclose(found.std((2, 3)), 0.3 * x.std((2, 3)))


def test_elastic_transform_equals_scipys_on_one_image() -> None:
    """Affine map and waves drawn alike, the picture then looked up at the bent places."""
    x = smooth(1).float() / 255
    found = corruptions.elastic_transform(x, (0.1, 0.04, 0.05), generator(2))[0]
    stream = generator(2)
    moves, waves = torch.rand(1, 3, 2, generator=stream)[0], torch.rand(1, 2, 32, 32, generator=stream)[0]
    corners = np.array([[26, 26], [26, 6], [6, 6]], float)
    moved = corners + 1.6 * (2 * moves.double().numpy() - 1)
    affine = np.linalg.solve(np.c_[moved, np.ones(3)], corners)  # (3, 2): from a place of the result to its source
    dx, dy = (3.2 * ndimage.gaussian_filter(2 * w.double().numpy() - 1, 1.28, truncate=3) for w in waves)
    columns, rows = np.meshgrid(np.arange(32), np.arange(32))
    source = np.stack([columns + dx, rows + dy, np.ones((32, 32))], 2) @ affine  # (32, 32, 2): x, y
    for plane, original in zip(found, x[0].double().numpy(), strict=True):
        expected = ndimage.map_coordinates(original, [source[..., 1], source[..., 0]], order=1, mode="mirror")
        assert np.abs(plane.numpy() - expected).max() < 1e-3


@pytest.mark.parametrize("channels", [1, 3])
def test_pixelate_and_jpeg_are_pillows(channels: int) -> None:
    x = smooth(3, channels)
    blocks, coded = shifts.corrupted(x, "pixelate", 5), shifts.corrupted(x, "jpeg_compression", 5)
    for image, block, code in zip(x, blocks, coded, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy().squeeze())
        box = Image.Resampling.BOX
        small = picture.resize((20, 20), box).resize((32, 32), box)
        assert np.array_equal(np.asarray(small), block.permute(1, 2, 0).numpy().squeeze())
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=40)
        assert np.array_equal(np.asarray(Image.open(file)), code.permute(1, 2, 0).numpy().squeeze())
