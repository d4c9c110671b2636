"""Alerts -> alerts.jsonl, .csv, .vtt and .edl: for programs, spreadsheets, players and editors.

`case12.alerts.jsonl` holds one JSON object a line, of schema "ccdstream.alert/1":

    schema              "ccdstream.alert/1"
    alert               number of the alert, from 1, in order of time
    finding             what an alert says, the same sentence always
    start, end, peak    timecodes HH:MM:SS.mmm
    start_s, end_s, peak_s, duration_s       seconds of stream time, to the microsecond
    start_pts, end_pts, peak_pts             presentation timestamps of those frames, exact
    time_base           seconds per unit of pts, as "numerator/denominator"
    peak_score          smoothed score at the peak: fraction of normal frames that score lower
    peak_raw            raw score of the peak frame, or null
    box                 [x, y, width, height] of the hottest region at the peak, in pixels of the
                        upright frame, or null where no region stands out
    clock               direction of the box from the centre of the field of view: 1 to 12, with 12
                        up, or "centre"; null where there is no box
    frames, informative_frames               counted from start to end
    open_at_end         whether it was open at the last frame: it may go on behind it
    model               id of the bundle
    start_wall, end_wall, peak_wall          of a live session: the wall clock, ISO 8601 with offset

alerts.csv has the same fields as columns, the box as x, y, width and height, empty cells for null,
and no schema, finding, open_at_end and wall clock. alerts.vtt has one WebVTT cue an alert,
alerts.edl one event.
`schemas/alert-1.json` describes the lines as JSON Schema.
"""

import csv
import html
import json
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from io import StringIO
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from ccdstream.history import score_text
from ccdstream.report.files import Text, TextFile
from ccdstream.timecode import timecode

SCHEMA = "ccdstream.alert/1"
FINDING = "unusual against normal training frames"

CSV_COLUMNS = (
    "alert", "start", "end", "peak", "start_s", "end_s", "peak_s", "duration_s",
    "start_pts", "end_pts", "peak_pts", "time_base", "peak_score", "peak_raw",
    "x", "y", "width", "height", "clock", "frames", "informative_frames", "model",
)  # fmt: skip


class AlertLike(Protocol):
    """What the writers read of an alert; `ccdstream.alert.Alert` says what the fields mean."""

    @property
    def number(self) -> int: ...
    @property
    def start_pts(self) -> int: ...
    @property
    def start_s(self) -> float: ...
    @property
    def end_pts(self) -> int: ...
    @property
    def end_s(self) -> float: ...
    @property
    def peak_pts(self) -> int: ...
    @property
    def peak_s(self) -> float: ...
    @property
    def peak_score(self) -> float: ...
    @property
    def peak_raw(self) -> float: ...
    @property
    def box(self) -> tuple[int, int, int, int] | None: ...
    @property
    def clock(self) -> int | str | None: ...
    @property
    def frames(self) -> int: ...
    @property
    def informative_frames(self) -> int: ...
    @property
    def model(self) -> str: ...
    @property
    def open_at_end(self) -> bool: ...


def alert_record(alert: AlertLike, time_base: Fraction) -> dict[str, Any]:
    """The alert as the object of one line of alerts.jsonl."""
    return {
        "schema": SCHEMA,
        "alert": alert.number,
        "finding": FINDING,
        "start": timecode(alert.start_s),
        "end": timecode(alert.end_s),
        "peak": timecode(alert.peak_s),
        "start_s": round(alert.start_s, 6),
        "end_s": round(alert.end_s, 6),
        "peak_s": round(alert.peak_s, 6),
        "duration_s": round(alert.end_s - alert.start_s, 6),
        "start_pts": alert.start_pts,
        "end_pts": alert.end_pts,
        "peak_pts": alert.peak_pts,
        "time_base": f"{time_base.numerator}/{time_base.denominator}",
        "peak_score": round(alert.peak_score, 6),
        # nine significant digits tell any two float32 apart
        "peak_raw": float(f"{alert.peak_raw:.9g}") if math.isfinite(alert.peak_raw) else None,
        "box": None if alert.box is None else list(alert.box),
        "clock": alert.clock,
        "frames": alert.frames,
        "informative_frames": alert.informative_frames,
        "open_at_end": alert.open_at_end,
        "model": alert.model,
    }


def alert_line(alert: AlertLike, time_base: Fraction) -> str:
    """The alert as one line of alerts.jsonl, without the newline."""
    return json_line(alert_record(alert, time_base))


def read_alerts(path: Path) -> list[dict[str, Any]]:
    """The objects of an alerts.jsonl, in order.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not one of this version.
    """
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if not all(isinstance(each, dict) and each.get("schema") == SCHEMA for each in records):
        raise ValueError(f"not all lines are {SCHEMA}")
    return records


def json_line(record: Mapping[str, Any]) -> str:
    """`record`, in types that JSON knows, as a line without the newline."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False)


def alert_title(alert: AlertLike) -> str:
    """The alert in one line for people: titles of chapters, cues, tables."""
    match alert.clock:
        case None:
            where = ""
        case "centre":
            where = ", in the centre"
        case hour:
            where = f", at {hour} o'clock"
    return f"Alert {alert.number}: {FINDING}{where}, peak {score_text(alert.peak_score)}"


class AlertWriter:
    """A file of alerts in the making; a context manager.

    Raises:
        OutputError: The file exists or cannot be written.
    """

    header = ""

    def __init__(
        self,
        path: Path,
        *,
        time_base: Fraction,
        overwrite: bool = False,
        file: Text | None = None,
    ) -> None:
        """
        Args:
            path: final name of the file.
            time_base: seconds per unit of pts.
            overwrite: replace an existing file.
            file: what to write into; None: a `TextFile` at `path`.
        """
        self.path = path
        self._file = file or TextFile(path, overwrite=overwrite)
        self._time_base = time_base

    def write(self, alert: AlertLike) -> None:
        """Append an alert and let readers of the unfinished file see it."""
        self._file.write(self.format(alert))
        self._file.flush()

    def format(self, alert: AlertLike) -> str:
        """The alert as it stands in the file."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._file.__enter__()
        if self.header:
            self._file.write(self.header)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.__exit__(kind, error, trace)


class AlertsJsonl(AlertWriter):
    """One JSON object a line; no alerts, no lines."""

    wall_at: Callable[[float], str] | None = None
    """Of a live session: gives the wall-clock time of a stream time, ISO 8601."""

    def format(self, alert: AlertLike) -> str:
        record = alert_record(alert, self._time_base)
        if self.wall_at is not None:
            record |= {
                "start_wall": self.wall_at(alert.start_s),
                "end_wall": self.wall_at(alert.end_s),
                "peak_wall": self.wall_at(alert.peak_s),
            }
        return json_line(record) + "\n"


class AlertsCsv(AlertWriter):
    """A header row, then one row an alert."""

    header = ",".join(CSV_COLUMNS) + "\n"

    def format(self, alert: AlertLike) -> str:
        record = alert_record(alert, self._time_base)
        box = record["box"] or [None] * 4
        record |= dict(zip(("x", "y", "width", "height"), box, strict=True))
        for name in ("start_s", "end_s", "peak_s", "duration_s", "peak_score"):
            record[name] = f"{record[name]:.6f}"
        line = StringIO()
        csv.writer(line, lineterminator="\n").writerow(record[name] for name in CSV_COLUMNS)
        return line.getvalue()


class AlertsVtt(AlertWriter):
    """WebVTT, to load beside the video; https://www.w3.org/TR/webvtt1/.

    A cue must end after it starts and cannot start before zero: an alert of one frame lasts a
    millisecond here, and one that starts before zero starts at zero.
    """

    header = f"WEBVTT\n\nNOTE\nccdstream alerts: {FINDING}. Research use only.\n"

    def format(self, alert: AlertLike) -> str:
        start_s = round(max(alert.start_s, 0.0), 3)
        end_s = max(round(alert.end_s, 3), start_s + 0.001)
        text = html.escape(" ".join(alert_title(alert).split()), quote=False)
        return f"\nalert-{alert.number}\n{timecode(start_s)} --> {timecode(end_s)}\n{text}\n"


class AlertsEdl(AlertWriter):
    """A CMX 3600 edit decision list, to lay the alerts out in a video editor.

    One event an alert: source and record times alike, the out point after the last frame, and a
    locator. Times count frames from stream time zero at the recording's average rate, without drop
    frames; where frames are not evenly spaced that is only near. A timecode begins anew after 24
    hours, so an event that ends later has a comment with its whole time.
    """

    def __init__(
        self,
        path: Path,
        *,
        time_base: Fraction,
        rate: Fraction,
        clip: str,
        overwrite: bool = False,
    ) -> None:
        """
        Args:
            path: final name of the file.
            time_base: seconds per unit of pts.
            rate: frames a second.
            clip: name of the recording's file.
            overwrite: replace an existing file.
        """
        super().__init__(path, time_base=time_base, overwrite=overwrite)
        self._rate = rate
        self._base = max(math.ceil(rate), 1)
        """Frames that the timecode counts in a second."""
        self._clip = _ascii(clip)
        self.header = f"TITLE: {self._clip[:60]}\nFCM: NON-DROP FRAME\n"

    def format(self, alert: AlertLike) -> str:
        first = max(round(alert.start_pts * self._time_base * self._rate), 0)
        end = max(round(alert.end_pts * self._time_base * self._rate), first) + 1
        span = f"{self._time(first)} {self._time(end)}"
        late = end >= 86_400 * self._base
        whole = f"* STREAM TIME: {timecode(alert.start_s)}\n" if late else ""
        return (
            f"\n{alert.number:03d}  AX       V     C        {span} {span}\n"
            f"* FROM CLIP NAME: {self._clip}\n{whole}"
            f"* LOC: {self._time(first)} RED     {_ascii(alert_title(alert))}\n"
        )

    def _time(self, frame: int) -> str:
        """HH:MM:SS:FF of a frame by its number, at the next whole rate."""
        seconds, frames = divmod(frame, self._base)
        minutes, second = divmod(seconds, 60)
        hours, minute = divmod(minutes, 60)
        return f"{hours % 24:02d}:{minute:02d}:{second:02d}:{frames:02d}"


def _ascii(text: str) -> str:
    """The text on one line, in the letters that every editor reads."""
    return "".join(c if " " <= c <= "~" else "_" for c in text)
