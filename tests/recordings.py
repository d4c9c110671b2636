"""Small recordings of made-up tissue, for tests of what is taken of recordings."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from tests.videos import make_video

SIZE = (96, 128)
RATE = 4
"""Frames a second: enough to take one of several, and quick to encode."""


def tissue(k: int, seed: int = 0) -> np.ndarray:
    """uint8 [H, W, 3]: reddish texture that moves by a few pixels a frame."""
    random = np.random.default_rng(seed)
    noise = random.normal(0, 1, (SIZE[0] + 60, SIZE[1] + 60)).astype(np.float32)
    texture = 80 * cv2.GaussianBlur(noise, (0, 0), 1) + 400 * cv2.GaussianBlur(noise, (0, 0), 9)
    shift = 3 * k % 60
    moved = texture[shift : shift + SIZE[0], shift : shift + SIZE[1], None]
    return np.clip(moved + np.array((170, 95, 75)), 0, 255).astype(np.uint8)


def record(
    path: Path, seconds: int, picture_of: Callable[[int], np.ndarray] = tissue, **options: object
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return make_video(
        path,
        size=SIZE,
        frames=RATE * seconds,
        rate=RATE,
        time_base=Fraction(1, RATE),
        picture_of=lambda k: av.VideoFrame.from_ndarray(picture_of(k), format="rgb24").reformat(
            format="yuv420p"
        ),
        options={"preset": "ultrafast", "crf": "12"},
        **options,  # type: ignore[arg-type]
    )
