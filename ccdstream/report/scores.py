"""Fused scores -> scores.csv, one row a frame, as it comes; `report.parquet` writes the same rows.

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from ccdstream.frames import Fused
from ccdstream.report.files import Text, TextFile

SCHEMA = "ccdstream.scores/1"


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """What is said of a frame."""

    frame: int
    pts: int
    seconds: float
    fused: Fused
    state: str
    parts: Sequence[float] | Any
    """Terms of the score, float [k]."""


Kind = Literal["int64", "float64", "float32", "word", "words"]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the scores, in whatever form they are written."""

    name: str
    kind: Kind
    """word: one of a few; words: any number of a few."""
    value: Callable[[Row], Any]
    """Of a frame: an int, str or tuple of str, or a float; None for a number that is not there."""
    form: str = ""
    """How a number is printed."""


def columns(parts: Sequence[str]) -> list[Column]:
    """All columns of the scores; `parts` are the names of the terms of the score."""
    return [
        Column("frame", "int64", lambda row: row.frame, "d"),
        Column("pts", "int64", lambda row: row.pts, "d"),
        Column("seconds", "float64", lambda row: row.seconds, ".6f"),
        Column("raw", "float32", lambda row: _number(row.fused.raw), ".9g"),
        Column("calibrated", "float32", lambda row: _number(row.fused.calibrated), ".6f"),
        Column("smoothed", "float32", lambda row: _number(row.fused.smoothed), ".6f"),
        Column("state", "word", lambda row: row.state),
        Column("quality", "words", lambda row: row.fused.quality),
        Column("valid_fraction", "float32", lambda row: _number(row.fused.valid_fraction), ".4f"),
        *(Column(f"part_{name}", "float32", _part(k), ".9g") for k, name in enumerate(parts)),
    ]


def _part(number: int) -> Callable[[Row], float | None]:
    return lambda row: _number(row.parts[number])


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


COLUMNS = tuple(column.name for column in columns(()))
"""Names of the columns that all scores have."""


class ScoresWriter:
    """A file of scores in the making; a context manager.

    Raises:
        OutputError: The file exists or cannot be written.
    """

    def __init__(self, parts: Sequence[str]) -> None:
        self._columns = columns(parts)
        self._parts = len(parts)

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
        if len(parts) != self._parts:
            raise ValueError(f"expected {self._parts} parts, got {len(parts)}")
        row = Row(frame, pts, seconds, fused, state, parts)
        self._append([column.value(row) for column in self._columns])

    def _append(self, values: list[Any]) -> None:
        """Append a row, one value for each of the columns."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        raise NotImplementedError


class ScoresCsv(ScoresWriter):
    """A header row, then one row a frame."""

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
        super().__init__(parts)
        self._file = file or TextFile(path, overwrite=overwrite)
        self._rows = csv.writer(self._file, lineterminator="\n")

    def _append(self, values: list[Any]) -> None:
        cells = zip(self._columns, values, strict=True)
        self._rows.writerow([_cell(column, value) for column, value in cells])

    def __enter__(self) -> Self:
        self._file.__enter__()
        self._rows.writerow([column.name for column in self._columns])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.__exit__(kind, error, trace)


def _cell(column: Column, value: Any) -> str:
    if value is None:
        return ""
    return ";".join(value) if column.kind == "words" else format(value, column.form)
