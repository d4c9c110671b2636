"""Frames -> coco.json: predictions for tools that score detectors, in COCO's result form.

Such as the TRUE-Colon protocol's package `true-colon` (arXiv 2608.13711):

    create_evaluator(id_source="pred_string", canonicalizer="stem_int_suffix", ...)

A frame is `STEM_NUMBER`, counted from 0 at the first one of the recording. A box is
[x, y, width, height], in pixels of the upright frame.

The product scores frames, not boxes: a prediction is the score of a frame, smoothed and calibrated,
in the box where the frame is hottest, or in the whole frame where nothing stands out. So figures of
frames and lesions at IoU > 0 mean something; COCO's average precision of boxes hardly does.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ccdstream.report.files import Text, TextFile

Box = tuple[float, float, float, float]
"""(x, y, width, height), in pixels."""


def frame_name(stem: str, number: int) -> str:
    """What a frame is called; `stem` is the recording's file name without its ending."""
    return f"{stem}_{number}"


def prediction(
    stem: str, number: int, *, score: float, box: Box | None, size: tuple[int, int]
) -> dict[str, Any]:
    """What is said of an informative frame; of others nothing is.

    Args:
        score: smoothed and calibrated.
        box: where the frame is hottest; None where nothing stands out.
        size: (height, width) of the frame, in pixels.
    """
    height, width = size
    return {
        "image_id": frame_name(stem, number),
        "category_id": 1,
        "bbox": list(box or (0, 0, width, height)),
        "score": score,
    }


class Predictions:
    """A list of predictions in the making."""

    def __init__(self, file: Text, stem: str, size: tuple[int, int]) -> None:
        self._file = file
        self._stem = stem
        self._size = size
        self._between = "\n"

    def write(self, number: int, score: float, box: Box | None) -> None:
        """Append what is said of an informative frame, as `prediction`."""
        said = prediction(self._stem, number, score=score, box=box, size=self._size)
        self._file.write(self._between + json.dumps(said, allow_nan=False))
        self._between = ",\n"


@contextmanager
def coco_predictions(
    path: Path, *, stem: str, size: tuple[int, int], overwrite: bool = False
) -> Iterator[Predictions]:
    """A coco.json in the making, a prediction a line.

    Args:
        path: final name of the file.
        stem: what frames are called after.
        size: (height, width) of every frame, in pixels.
        overwrite: replace an existing file.

    Raises:
        OutputError: The file exists or cannot be written.
    """
    with TextFile(path, overwrite=overwrite) as file:
        file.write("[")
        yield Predictions(file, stem, size)
        file.write("\n]\n")
