"""What happens in a live session -> text files that grow under their final names.

    live.scores.csv     a row a frame that was analysed, as `report.scores` describes it
    live.alerts.jsonl   alerts as they close, as `report.alerts` describes them, with the wall clock
    live.alerts.csv, live.alerts.vtt         the same for spreadsheets and players
    live.events.jsonl   what happened, as it happened: one JSON object a line

A line is written whole, at once, so a crash leaves all lines so far. They are brought to the disk
once a second and at alerts, by a thread of their own: a slow disk does not delay the analysis.

An event has these keys, and those of its kind:

    schema              "ccdstream.event/1"
    kind                what happened; `live.records.Event` lists the kinds
    wall                when, by the wall clock: ISO 8601 with offset
    stream_s            when, in seconds of the session's clock
"""

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Self

from ccdstream.errors import OutputError
from ccdstream.frames import Fused
from ccdstream.live.append import Appended, OpenFile, new_file
from ccdstream.live.records import TIME_BASE, Event
from ccdstream.report.alerts import (
    AlertLike,
    AlertsCsv,
    AlertsJsonl,
    AlertsVtt,
    AlertWriter,
    json_line,
)
from ccdstream.report.audit import plain
from ccdstream.report.files import printable
from ccdstream.report.scores import ScoresCsv

SCHEMA = "ccdstream.event/1"

SYNC_S = 1.0
"""Between two times that the files are brought to the disk: what a power cut may cost."""


def wall_clock(wall_s: float) -> str:
    """Seconds since the epoch as local time, ISO 8601 with offset, to the millisecond."""
    return datetime.fromtimestamp(wall_s).astimezone().isoformat(timespec="milliseconds")


def event_line(event: Event) -> str:
    """The event as one line of events.jsonl, without the newline.

    Raises:
        ValueError: its data has a key that every event has.
        TypeError: its data has a value without a form in JSON.
    """
    record = {
        "schema": SCHEMA,
        "kind": event.kind,
        "wall": wall_clock(event.wall_s),
        "stream_s": round(event.stream_s, 6),
    }
    if taken := sorted(record.keys() & event.data.keys()):
        raise ValueError(f"data of {event.kind} has keys of the event itself: {', '.join(taken)}")
    return json_line(plain(record | dict(event.data)))


class GrowingFile:
    """A UTF-8 text file that grows under its final name, by whole lines; a context manager.

    Args:
        path: where nothing is yet.
        open_file: makes the file, unbuffered.

    Raises:
        OutputError: on entering, the file exists or cannot be made; later, once, a line cannot be
            written. Then the file ends with the line before, and takes no more.
    """

    def __init__(self, path: Path, *, open_file: OpenFile = new_file) -> None:
        self.path = path
        self._open_file = open_file
        self._file: Appended | None = None
        self._synced = 0  # bytes that are on the disk
        self._failed = False

    def __enter__(self) -> Self:
        try:
            self._file = Appended(self.path, self._open_file)
        except FileExistsError as error:
            raise OutputError(
                f"{printable(self.path)} is there already. Choose a new folder with --output."
            ) from error
        except OSError as error:
            raise self._failure(error) from error
        return self

    def write(self, text: str) -> None:
        """Append whole lines, at once, for readers to see."""
        if self._failed:
            return
        # an odd byte of a file name is written as an escape, not an error
        data = text.encode("utf-8", "backslashreplace")
        try:
            self._opened().append(data)
        except OSError as error:
            raise self._failure(error) from error

    def flush(self) -> None:
        """Nothing waits: `write` leaves nothing behind."""

    def sync(self) -> None:
        """Bring what was written to the disk. May be called from another thread."""
        file = self._opened()
        length = file.length
        if self._failed or length == self._synced:
            return
        try:
            file.sync()
        except OSError as error:
            raise self._failure(error) from error
        self._synced = length

    def __exit__(self, *_: object) -> None:
        if self._file is None:  # discarded
            return
        try:
            self.sync()
        finally:
            self._close()

    def discard(self) -> None:
        """Leave no trace of what was made here."""
        if self._file is not None:
            self._close()
            self.path.unlink(missing_ok=True)

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _opened(self) -> Appended:
        if self._file is None:
            raise ValueError(f"{self.path} is not open: use it in a with block")
        return self._file

    def _failure(self, error: OSError) -> OutputError:
        self._failed = True
        return OutputError(
            f"cannot write {printable(self.path)}: {error.strerror or error}. "
            "Check that the folder exists, is writable and has room, or choose another --output."
        )


class Journal:
    """The text files of a live session; a context manager. Its methods may be called from any
    thread, and where the disk is full the session goes on without it.

    Args:
        folder: where the files go; it is there.
        stem: files are called `STEM.scores.csv` and so on.
        parts: names of the terms of the score, in the bundle's order.
        time_base: seconds per unit of pts.
        start_wall: `time.time()` at stream time 0, or what gives it for any stream time.
        on_failed: called once, with the reason, where the files cannot be written any more.
        log_json: given every event as a line without the newline, whether or not the files fail.
        open_file: makes a new file.

    Attributes:
        failed: why nothing is written any more, in a sentence; None while all is well.

    Raises:
        OutputError: on entering, a file exists or cannot be made; none is left then.
    """

    def __init__(
        self,
        folder: Path,
        stem: str,
        *,
        parts: Sequence[str],
        time_base: Fraction = TIME_BASE,
        start_wall: float | Callable[[float], float],
        on_failed: Callable[[str], None] = lambda _: None,
        log_json: Callable[[str], None] | None = None,
        open_file: OpenFile = new_file,
    ) -> None:
        self.failed: str | None = None
        self._start_wall = start_wall
        self._on_failed = on_failed
        self._log_json = log_json
        self._files: list[GrowingFile] = []

        def file(ending: str) -> GrowingFile:
            path = folder / f"{stem}.{ending}"
            self._files.append(GrowingFile(path, open_file=open_file))
            return self._files[-1]

        scores, jsonl, table, cues = map(
            file, ("scores.csv", "alerts.jsonl", "alerts.csv", "alerts.vtt")
        )
        self._scores = ScoresCsv(scores.path, parts=parts, file=scores)
        lines = AlertsJsonl(jsonl.path, time_base=time_base, file=jsonl)
        lines.wall_at = self._wall_at
        self._alerts: list[AlertWriter] = [
            lines,
            AlertsCsv(table.path, time_base=time_base, file=table),
            AlertsVtt(cues.path, time_base=time_base, file=cues),
        ]
        self._events = file("events.jsonl")
        self._stream_s = 0.0  # of the latest that was written
        self._lock = threading.RLock()
        self._stack = ExitStack()
        self._wake = threading.Event()
        self._over = False
        self._syncing = threading.Thread(target=self._keep_synced, name="journal", daemon=True)

    def __enter__(self) -> Self:
        for file in self._files:
            if os.path.lexists(file.path):
                raise OutputError(
                    f"{printable(file.path)} is there already. Choose a new folder with --output."
                )
        try:
            self._stack.enter_context(self._scores)
            for writer in self._alerts:
                self._stack.enter_context(writer)
            self._stack.enter_context(self._events)
        except OutputError:
            for file in self._files:
                file.discard()
            raise
        self._syncing.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._wake.set()
        self._syncing.join()
        self._sync()
        with suppress(OutputError):  # one was said; others of a full disk are the same
            self._stack.close()

    def score(
        self,
        frame: int,
        pts: int,
        seconds: float,
        fused: Fused,
        state: str,
        parts: Sequence[float] | Any = (),
    ) -> None:
        """Append the row of a frame; as `ScoresCsv.write`."""
        self._write(seconds, partial(self._scores.write, frame, pts, seconds, fused, state, parts))

    def alert(self, alert: AlertLike) -> None:
        """Append an alert that has closed."""
        for writer in self._alerts:
            self._write(alert.end_s, partial(writer.write, alert))
        self._wake.set()

    def event(self, event: Event) -> None:
        """Append an event.

        Raises:
            ValueError, TypeError: as `event_line`.
        """
        line = event_line(event)
        if self._log_json is not None:
            self._log_json(line)
        self._write(event.stream_s, partial(self._events.write, line + "\n"))
        if event.kind.startswith("alert_"):
            self._wake.set()

    def _write(self, stream_s: float, write: Callable[[], None]) -> None:
        with self._lock:
            self._stream_s = max(self._stream_s, stream_s)
            if self.failed is not None:
                return
            try:
                write()
                return
            except OutputError as error:
                self.failed = self._sentence(error)
        self._tell()

    def _keep_synced(self) -> None:
        while not self._over:
            self._wake.wait(SYNC_S)
            self._wake.clear()
            self._sync()

    def _sync(self) -> None:
        if self.failed is not None:
            return
        try:
            for file in self._files:
                file.sync()
            return
        except OutputError as error:
            with self._lock:
                if self.failed is not None:
                    return
                self.failed = self._sentence(error)
        self._tell()

    def _sentence(self, error: OutputError) -> str:
        return f"{error} Nothing more is written to the text files; the session goes on."

    def _tell(self) -> None:
        """Say, once, why nothing is written any more."""
        assert self.failed is not None
        self._on_failed(self.failed)
        if self._log_json is not None:
            data = {"reason": self.failed}
            event = Event("journal_failed", time.time(), self._stream_s, data)
            self._log_json(event_line(event))

    def _wall_at(self, stream_s: float) -> str:
        start = self._start_wall
        return wall_clock(start(stream_s) if callable(start) else start + stream_s)
