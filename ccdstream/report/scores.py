"""Fused scores -> scores.csv, one row a frame, as it comes.

    frame            number of the frame in this run, from 0
    pts              presentation timestamp, exact; its time_base is in run.json
    seconds          presentation time, to the microsecond
    raw              raw score of the bundle's model, nine significant digits
    calibrated       fraction of normal calibration frames that score lower
    smoothed         `calibrated` over time, causal; on uninformative frames the last one holds
    state            NORMAL, WATCH, ALERT or UNCLEAR: what the overlay shows on this frame
    quality          why the frame is uninformative, joined with ";"; empty for informative ones
    valid_fraction   share of the model's view that was scored
    part_NAME        raw terms of the score, one column for each part that the bundle names

A number that does not exist, such as the score of a frame without a valid pixel, is an empty cell.
"""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ccdstream.frames import Fused
from ccdstream.report.files import Text, TextFile

COLUMNS = (
    "frame", "pts", "seconds", "raw", "calibrated", "smoothed", "state", "quality",
    "valid_fraction",
)  # fmt: skip


class ScoresCsv:
    """A scores.csv in the making; a context manager.

    Raises:
        OutputError: The file exists or cannot be written.
    """

    def __init__(
        self,
        path: Path,
        *,
        parts: Sequence[str],
        overwrite: bool = False,
        file: Text | None = None,
    ) -> None:
        """
        Args:
            path: final name of the file.
            parts: names of the terms of the score, in the bundle's order.
            overwrite: replace an existing file.
            file: what to write into; None: a `TextFile` at `path`.
        """
        self._file = file or TextFile(path, overwrite=overwrite)
        self._rows = csv.writer(self._file, lineterminator="\n")
        self._parts = tuple(parts)

    def write(
        self,
        frame: int,
        pts: int,
        seconds: float,
        fused: Fused,
        state: str,
        parts: Sequence[float] | Any = (),
    ) -> None:
        """Append the row of a frame; `parts` are its terms of the score, float [k]."""
        if len(parts) != len(self._parts):
            raise ValueError(f"expected {len(self._parts)} parts, got {len(parts)}")
        self._rows.writerow(
            [
                frame,
                pts,
                f"{seconds:.6f}",
                _number(fused.raw, ".9g"),
                _number(fused.calibrated, ".6f"),
                _number(fused.smoothed, ".6f"),
                state,
                ";".join(fused.quality),
                _number(fused.valid_fraction, ".4f"),
                *(_number(float(part), ".9g") for part in parts),
            ]
        )

    def __enter__(self) -> Self:
        self._file.__enter__()
        self._rows.writerow([*COLUMNS, *(f"part_{name}" for name in self._parts)])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.__exit__(kind, error, trace)


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else ""
