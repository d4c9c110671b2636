"""A live session: takes the newest frame, analyses it, has it shown and written; from start to end.

    capture's thread     newest frame --+--------------------------------> source recorder
                                        |                  +-------------> screen (plain, on lag)
    the caller's thread                 +-> look, score, fuse, alert ----> screen, journal
    screen's thread                              draw --> board, overlay recorder

One frame at a time, and always the newest: what arrives during an analysis and is overtaken is
dropped and counted. A gap closes the alert that is open and starts the smoothing anew.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ccdstream.alert import Alert, AlertRule, AlertTracker
from ccdstream.bundle import Bundle
from ccdstream.engine.base import Engine
from ccdstream.frames import Frame, Fused
from ccdstream.live.board import Board, Request
from ccdstream.live.jpeg import jpeg_of
from ccdstream.live.latency import StageDelays
from ccdstream.live.records import Captured, Event, Mode
from ccdstream.live.screen import Analysed, Screen, Tally
from ccdstream.pipeline import Judged, Looker, make_fuser, observation
from ccdstream.process import settle
from ccdstream.score import Scorer

STAGES = (
    "wait", "look", "score", "fuse", "capture_to_result",
    "draw", "capture_to_overlay", "capture_to_plain",
)  # fmt: skip
"""wait: from capture until the analysis begins. look: field of view, view, quality. fuse: with the
alerts. draw: overlay or plain label. capture_to_result: until all of the frame is known;
_to_overlay: until its overlay is on the board; _to_plain: until it is there without one, on lag."""

POLL_S = 0.1
"""How soon a session without frames notices that it is to end, or what is asked of it."""
COUNT_EVERY_S = 0.5


class CaptureLike(Protocol):
    """What a session reads of a `Capture`."""

    def newest(self, timeout_s: float) -> Captured | None: ...
    def listen(self, listener: Callable[[Captured], object]) -> None: ...
    @property
    def signal(self) -> bool: ...
    @property
    def cause(self) -> str: ...
    @property
    def gaps(self) -> int: ...
    @property
    def mode(self) -> Mode | None: ...
    @property
    def over(self) -> bool: ...
    @property
    def captured(self) -> int: ...
    @property
    def dropped(self) -> int: ...
    @property
    def connections(self) -> int: ...


class JournalLike(Protocol):
    """What a session writes of frames and alerts. None of it raises: what fails is told."""

    @property
    def failed(self) -> str | None: ...
    def score(
        self, number: int, pts: int, seconds: float, fused: Fused, state: str, parts: np.ndarray
    ) -> None: ...
    def alert(self, alert: Alert) -> None: ...


class RecordingLike(Protocol):
    """A video that a session leaves. None of it blocks or raises."""

    @property
    def dropped(self) -> int: ...
    @property
    def failed(self) -> str | None: ...
    def write(self, frame: Frame) -> bool: ...
    def alert_opened(self, number: int, stream_s: float) -> None: ...
    def alert_closed(self, number: int, stream_s: float) -> None: ...


class StreamClock:
    """Stream time of the frame that is analysed, and which wall-clock time stream times are."""

    def __init__(self) -> None:
        self.stream_s = 0.0
        self._offset_s = time.time()

    def set(self, captured: Captured) -> None:
        """A frame is taken."""
        self.stream_s = captured.frame.seconds
        self._offset_s = captured.wall_s - self.stream_s

    def wall_of(self, stream_s: float) -> float:
        """`time.time()` at a stream time."""
        return self._offset_s + stream_s


@dataclass(frozen=True, slots=True)
class LiveOptions:
    """How a session goes."""

    max_latency_s: float = 0.1
    """From capture: nothing older is shown."""
    duration_s: float | None = None
    """It ends by itself after this long; None for when it is told to."""


@dataclass(slots=True)
class Counts:
    """What a session counted."""

    captured: int = 0
    analysed: int = 0
    informative: int = 0
    shown: int = 0
    shown_plain: int = 0
    dropped_slot: int = 0
    """Overtaken before the analysis was free."""
    dropped_late: int = 0
    """Analysed, and then too late to be shown."""
    dropped_recorder: int = 0
    deadline_misses: int = 0
    """Drawn, and then too old to be shown."""
    gaps: int = 0
    connections: int = 0
    alerts: int = 0

    def counters(self) -> dict[str, float]:
        """By the names of a board."""
        return {
            "captured": self.captured,
            "analysed": self.analysed,
            "shown": self.shown,
            "dropped.slot": self.dropped_slot,
            "dropped.late": self.dropped_late,
            "dropped.recorder": self.dropped_recorder,
            "gaps": self.gaps,
            "connections": self.connections,
            "alerts": self.alerts,
        }


@dataclass(slots=True)
class LiveResult:
    """What a session was."""

    delays: StageDelays
    counts: Counts = field(default_factory=Counts)
    started_wall_s: float = 0.0
    wall_s: float = 0.0
    stream_s: float = 0.0
    """Stream time of the last frame that was analysed."""
    ended: str = ""
    """Why: "stopped", "end of the source", "duration"."""
    failures: dict[str, str] = field(default_factory=dict)
    """What could not be written, and why; empty where all is well."""


def run_live(
    capture: CaptureLike,
    bundle: Bundle,
    engine: Engine,
    *,
    options: LiveOptions,
    board: Board,
    clock: StreamClock,
    journal: JournalLike,
    overlay: RecordingLike | None = None,
    source: RecordingLike | None = None,
    folder: Path | None = None,
    stopped: Callable[[], bool] = lambda: False,
    on_event: Callable[[Event], None] = lambda _: None,
    on_alert: Callable[[Alert], None] = lambda _: None,
    on_count: Callable[[Counts, StageDelays], None] = lambda *_: None,
) -> LiveResult:
    """Analyse what a capture gives until it is over, `stopped` says so, or the duration is.

    Settles the process first, for its life: see `ccdstream.process`.

    Args:
        capture: open; frames come from it as long as the call lasts.
        clock: set by each frame, for those who tell the wall-clock time of an alert.
        overlay, source: recordings of what is shown, and of what was captured.
        folder: of snapshots; None: none can be taken.
        on_event: told what happens, also in the screen's thread.
        on_alert: told of each as it closes.
        on_count: told twice a second how far the session is.

    Raises:
        EngineError: the engine failed.
    """
    settle()
    delays = StageDelays(STAGES)
    result = LiveResult(delays, started_wall_s=time.time())
    began_s = time.monotonic()
    analysis = _Analysis(bundle, engine, delays)
    recordings = {
        name: recording
        for name, recording in (("overlay recording", overlay), ("source recording", source))
        if recording is not None
    }

    def tell(kind: str, **data: Any) -> None:
        on_event(Event(kind, time.time(), clock.stream_s, data))

    def close(alerts: list[Alert]) -> None:
        for alert in alerts:
            journal.alert(alert)
            tell("alert_closed", alert=alert.number, end_s=alert.end_s, peak=alert.peak_score)
            for recording in recordings.values():
                recording.alert_closed(alert.number, alert.end_s)
            on_alert(alert)
        screen.close_alerts(alerts)

    with Screen(
        board,
        bound_s=options.max_latency_s,
        enter=bundle.alert["enter"],
        delays=delays,
        wall_of=clock.wall_of,
        keep=_keeper(overlay),
        on_event=on_event,
    ) as screen:
        capture.listen(screen.arrived)
        if source is not None:
            capture.listen(lambda captured: source.write(captured.frame))
        counted_s = 0.0
        opened, connection = 0, -1
        size: tuple[int, int] | None = None
        while True:
            screen.check()
            if stopped():
                result.ended = "stopped"
                break
            now_s = time.monotonic()
            if options.duration_s is not None and now_s - began_s >= options.duration_s:
                result.ended = "duration"
                break
            if now_s - counted_s >= COUNT_EVERY_S:
                counted_s = now_s
                _count(result, capture, screen.tally, recordings.values())
                board.count({**result.counts.counters(), **delays.counters()})
                on_count(result.counts, delays)
                _tell_failures(result, {"journal": journal, **recordings}, board, tell)
            for request in board.requests():
                _answer(request, board, folder, tell)

            captured = capture.newest(POLL_S)
            if captured is None:
                if capture.over:
                    result.ended = "end of the source"
                    break
                if not capture.signal:
                    close(analysis.interrupt())
                    screen.lost(capture.cause)
                continue
            if captured.connection != connection or captured.frame.size != size:
                # what came before is another picture
                close(analysis.interrupt())
                connection, size = captured.connection, captured.frame.size
            clock.set(captured)
            screen.analysing(captured)
            done = analysis(captured)
            screen.analysed(done.analysed)
            journal.score(
                captured.number,
                captured.frame.pts,
                captured.frame.seconds,
                done.analysed.fused,
                done.analysed.state,
                done.parts,
            )
            result.counts.analysed += 1
            result.counts.informative += done.analysed.fused.informative
            close(done.closed)
            alert = done.analysed.alert
            if alert is not None and alert.number > opened:
                opened = alert.number
                result.counts.alerts += 1
                tell("alert_opened", alert=alert.number, start_s=alert.start_s)
                for recording in recordings.values():
                    recording.alert_opened(alert.number, alert.start_s)
        close(analysis.interrupt())
    _count(result, capture, screen.tally, recordings.values())
    _tell_failures(result, {"journal": journal, **recordings}, board, tell)
    board.count({**result.counts.counters(), **delays.counters()})
    on_count(result.counts, delays)
    result.wall_s = time.monotonic() - began_s
    result.stream_s = clock.stream_s
    return result


@dataclass(frozen=True, slots=True, eq=False)
class _Done:
    """An analysed frame, and what else came of it."""

    analysed: Analysed
    parts: np.ndarray
    closed: list[Alert]


class _Analysis:
    """look -> score -> fuse -> alert, one frame at a time."""

    def __init__(self, bundle: Bundle, engine: Engine, delays: StageDelays) -> None:
        self._bundle = bundle
        self._delays = delays
        self._look = Looker(bundle)
        self._scorer = Scorer(engine)
        self._fuser = make_fuser(bundle)
        self._tracker = AlertTracker(AlertRule.from_dict(bundle.alert), model=bundle.model_id)

    def __call__(self, captured: Captured) -> _Done:
        frame = captured.frame
        taken_s = time.monotonic()
        seen = self._look(frame)
        looked_s = time.monotonic()
        (scored,) = self._scorer.score([seen.view])
        scored_s = time.monotonic()
        judged = Judged(
            frame, frame.seconds, seen.view.field, seen.valid_fraction, seen.quality, scored
        )
        fused = self._fuser.update(judged.seconds, seen.valid_fraction, scored, seen.quality)
        closed = self._tracker.update(observation(judged, fused))
        at_s = time.monotonic()
        for stage, seconds in (
            ("wait", taken_s - captured.at_s),
            ("look", looked_s - taken_s),
            ("score", scored_s - looked_s),
            ("fuse", at_s - scored_s),
            ("capture_to_result", at_s - captured.at_s),
        ):
            self._delays.add(stage, seconds)
        tracker = self._tracker
        analysed = Analysed(captured, seen.view.field, fused, tracker.state, tracker.open, at_s)
        return _Done(analysed, scored.parts, closed)

    def interrupt(self) -> list[Alert]:
        """The stream breaks off: close the alert that is open, and smooth anew after it."""
        self._fuser = make_fuser(self._bundle)
        return self._tracker.finish()


def _keeper(overlay: RecordingLike | None) -> Callable[[Frame], None]:
    def keep(frame: Frame) -> None:
        if overlay is not None:
            overlay.write(frame)

    return keep


def _count(
    result: LiveResult,
    capture: CaptureLike,
    tally: Tally,
    recordings: Iterable[RecordingLike],
) -> None:
    """Collect what the others counted."""
    counts = result.counts
    counts.captured, counts.dropped_slot = capture.captured, capture.dropped
    counts.gaps, counts.connections = capture.gaps, capture.connections
    counts.shown, counts.shown_plain = tally.shown, tally.plain
    counts.dropped_late, counts.deadline_misses = tally.late, tally.deadline_misses
    counts.dropped_recorder = sum(recording.dropped for recording in recordings)


class _Fails(Protocol):
    @property
    def failed(self) -> str | None: ...


def _tell_failures(
    result: LiveResult,
    writers: Mapping[str, _Fails],
    board: Board,
    tell: Callable[..., None],
) -> None:
    """Say once of each writer that it cannot write any longer; the session goes on."""
    for name, writer in writers.items():
        if writer.failed and name not in result.failures:
            result.failures[name] = writer.failed
            board.tell({"recording_failed": "; ".join(result.failures.values())})
            if name != "journal":
                tell("recorder_failed", recorder=name, cause=writer.failed)


def _answer(request: Request, board: Board, folder: Path | None, tell: Callable[..., None]) -> None:
    """Do what a watcher asked for: an event, and a file for a snapshot."""
    data: dict[str, Any] = {"note": request.note} if request.note else {}
    if request.kind == "snapshot":
        shown = board.shown
        if shown is None or shown.frame is None:
            data["failed"] = "there is no picture"
        elif folder is not None:
            taken = datetime.now().astimezone()
            path = folder / f"snapshot-{taken:%Y%m%d-%H%M%S-%f}.jpg"
            try:
                _write_whole(path, jpeg_of(shown.frame, quality=95))
                data["file"] = path.name
            except OSError as error:
                data["failed"] = error.strerror or str(error)
    tell(request.kind, **data)


def _write_whole(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
