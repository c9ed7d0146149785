"""Difference maps, and a slider that is HTML alone."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from rddlib.analysis.pictures import difference, slider
from rddlib.base import SettingError


def test_a_difference_is_grey_where_two_are_equal_and_is_enlarged() -> None:
    one = torch.full((2, 1, 4, 4), 0.5)
    other = one.clone()
    other[1] += 0.1
    found = difference(one, other, 4)
    assert torch.allclose(found[0], torch.tensor(0.5, dtype=torch.float64))
    assert torch.allclose(found[1], torch.tensor(0.9, dtype=torch.float64))
    assert torch.allclose(difference(other, one, 4)[1], torch.tensor(0.1, dtype=torch.float64))
    assert difference(one, other, 100).max() == 1
    bytes_ = (torch.stack([one, other]) * 255).to(torch.uint8)
    assert torch.allclose(difference(*bytes_, 4), found, atol=0.02)
    with pytest.raises(SettingError, match="other"):
        difference(one, other[:1], 4)


def strip(made: str) -> np.ndarray:
    """The picture within the HTML of a slider, as grey levels."""
    source = re.search(r"base64,([^)]*)\)", made)
    assert source is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source[1]))).convert("L"))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_slider_holds_every_frame_and_says_which(channels: int) -> None:
    frames = [torch.full((6, channels, 8, 8), level) for level in (0.0, 0.4, 0.8)]
    made = slider(frames, 3, ["control", "<upper>"], ["0", "1", "2"], 'what "it" shows')
    picture = strip(made)
    height = 2 * 9 - 1 + 2  # two rows with a line between, and a line above and below
    assert picture.shape == (3 * height, 3 * 9 - 1)
    assert [int(picture[k * height + 4, 4]) for k in range(3)] == [0, 102, 204]
    assert 'max="2"' in made and 'data-steps="0|1|2"' in made and "<output>0</output>" in made
    assert "&lt;upper&gt;" in made and "<upper>" not in made
    assert 'aria-label="what &quot;it&quot; shows"' in made and "<script" not in made


def test_what_does_not_fit_a_slider_is_refused() -> None:
    frame = torch.zeros(4, 1, 8, 8)
    with pytest.raises(SettingError, match="steps"):
        slider([frame, frame], 2, ["a", "b"], ["0"], "alt")
    with pytest.raises(SettingError, match="steps"):
        slider([], 2, ["a", "b"], [], "alt")
    with pytest.raises(SettingError, match="frames"):
        slider([frame], 3, ["a", "b"], ["0"], "alt")
