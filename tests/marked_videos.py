"""Made recordings whose scores, hottest boxes and lesions are known, and what scores them.

The left quarter of a frame is a flat grey whose level is the frame's score; on the rest lies a
bright patch where the frame is to be hottest. A frame without redness is uninformative.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ccdstream.bundle import Bundle
from ccdstream.engine.base import Device, EngineOutput
from ccdstream.view import NONE
from tests.videos import make_video, picture

SIZE = (96, 128)
LOW, MIDDLE, HIGH, HIGHEST = (70, 100, 130, 160)
"""Levels of luma. `HIGH` and above are called."""
SITES = {"a": (48, 12, 24, 24), "b": (96, 60, 24, 24)}
"""(x, y, width, height) of a patch, and of a lesion."""
ENTER = 0.5


def score(level: int) -> float:
    """What `Strip` gives for a level: limited-range luma as a fraction of white."""
    return round((level - 16) * 255 / 219) / 255


@dataclass(frozen=True)
class Shot:
    """One frame."""

    level: int = LOW
    hot: str | None = None
    """Where the patch is: a key of `SITES`."""
    shows: tuple[str, ...] = ()
    """Lesions: keys of `SITES`, each at its site."""
    clear: bool = True


@dataclass
class Strip:
    """An engine that reads the level of a frame, and takes its brightness for the map."""

    name: str = "strip"
    device: Device = "cpu"
    version: str = "1.0"
    reason: str = "a test"
    on_device: None = None
    precision: None = None

    def run(self, frames: np.ndarray, valid: np.ndarray) -> EngineOutput:
        grey = frames.mean(axis=1) / 255
        cells = grey.reshape(-1, 64, 4, 64, 4).mean(axis=(2, 4))
        cells[:, :, :18] = 0  # the level itself is no place
        level = grey[:, 64:192, 12:52].mean(axis=(1, 2)).astype(np.float32)
        return EngineOutput(level, cells.astype(np.float32), level[:, None])


def strip_bundle(**rule: float) -> Bundle:
    """Scores are raw, unsmoothed fractions; `rule` replaces parts of the alert rule."""
    return Bundle(
        Path("unused"),
        {
            "name": "strip",
            "commit": "none",
            "files": {"program.onnx": {"sha256": "0" * 64, "bytes": 1}},
            "profile": NONE.to_dict(),
            "parts": ["level"],
            "calibration": {
                "score": {"raw": [0.0, 0.999], "fraction": [0.0, 0.999], "tail_scale": 1.0},
                "map": {"raw": [0.0, 0.4, 0.5], "fraction": [0.0, 0.5, 0.995], "tail_scale": 0.1},
                "frames": 8,
            },
            "quality": {"least_redness": 0.3},
            "alert": {
                "enter": ENTER,
                "leave": 0.45,
                "min_duration_s": 0.07,
                "merge_gap_s": 0.0,
                "refractory_s": 0.0,
                "time_constant_s": 0.0,
                **rule,
            },
            "training": {},
        },
    )


def film(path: Path, shots: Sequence[Shot], *, ms: Sequence[int] | None = None) -> Path:
    """A lossless video of `shots`, 40 ms apart or at the times `ms`."""
    return make_video(
        path,
        codec="ffv1",
        size=SIZE,
        frames=len(shots),
        pts=[40 * k for k in range(len(shots))] if ms is None else ms,
        time_base=Fraction(1, 1000),
        picture_of=lambda k: picture(_planes(shots[k])),
    )


def mark(video: Path, shots: Sequence[Shot], *, named: bool = True, **changes: Any) -> Path:
    """The truth of `film`, beside the video; `changes` replace its keys."""
    frames = []
    for shot in shots:
        marks = []
        for lesion in shot.shows:
            x, y, width, height = SITES[lesion]
            bbox = [x, y, x + width, y + height]
            marks.append({"bbox": bbox, "lesion": lesion} if named else {"bbox": bbox})
        frames.append(marks)
    truth = video.with_name(f"{video.stem}_boxes.json")
    document = {"width": SIZE[1], "height": SIZE[0], "frames": frames, **changes}
    truth.write_text(json.dumps(document))
    return truth


def _planes(shot: Shot) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    height, width = SIZE
    luma = np.full(SIZE, LOW, np.uint8)
    luma[:, : width // 4] = shot.level
    if shot.hot is not None:
        x, y, w, h = SITES[shot.hot]
        luma[y : y + h, x : x + w] = 140
    blue = np.full((height // 2, width // 2), 128, np.uint8)
    red = blue.copy()
    if not shot.clear:
        red[:, width // 8 :] = 90
    return luma, blue, red
