"""Frames as JPEGs: the colours of the frame, in its own size or smaller."""

from fractions import Fraction

import cv2
import numpy as np
import pytest

from ccdstream import sample
from ccdstream.frames import Colour, Frame
from ccdstream.jpeg import jpeg_of
from ccdstream.view import rgb_of_frame


def decoded(jpeg: bytes) -> np.ndarray:
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(jpeg, np.uint8), 1), cv2.COLOR_BGR2RGB)


@pytest.mark.parametrize("matrix", ["bt601", "bt709", "bt2020"])
@pytest.mark.parametrize("full_range", [False, True], ids=["limited", "full"])
def test_colours_are_those_of_the_frame(matrix: str, full_range: bool) -> None:
    drawn, _ = next(sample.frames(sample.SampleOptions(seconds=1, size=(288, 360))))
    frame = Frame(
        drawn.y, drawn.u, drawn.v, 0, drawn.time_base, Colour(matrix, full_range=full_range)
    )
    difference = decoded(jpeg_of(frame, quality=100)).astype(int) - rgb_of_frame(frame)
    assert abs(difference).mean() < 1.5
    assert abs(difference.mean(axis=(0, 1))).max() < 0.5  # no cast


def test_a_smaller_one_keeps_its_proportions_and_a_wider_one_its_size() -> None:
    frame = Frame(
        np.full((101, 201), 90, np.uint8), np.full((51, 101), 120, np.uint8),
        np.full((51, 101), 150, np.uint8), 0, Fraction(1, 25), Colour("bt601", full_range=False),
    )  # fmt: skip
    assert decoded(jpeg_of(frame, width=100)).shape == (50, 100, 3)
    assert decoded(jpeg_of(frame, width=400)).shape == (101, 201, 3)
