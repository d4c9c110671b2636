"""A live session: takes the newest frame, analyses it, has it shown and written; from start to end.

    capture's thread     newest frame --+--------------------------------> source recorder
                                        |                  +-------------> screen (plain, on lag)
    the caller's thread                 +-> look, score, fuse, alert ----> screen, journal, gallery
    screen's thread                              draw --> board, overlay recorder

One frame at a time, and always the newest: what arrives during an analysis and is overtaken is
dropped and counted. A gap closes the alert that is open and starts the smoothing anew.
"""

import gc
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ccdstream.alert import Alert, AlertRule, AlertTracker
from ccdstream.bundle import Bundle
from ccdstream.engine.base import Engine
from ccdstream.frames import Colour, Frame, Fused
from ccdstream.jpeg import jpeg_of
from ccdstream.live.board import Board, Request
from ccdstream.live.failures import Beside, Failures, bug
from ccdstream.live.latency import StageDelays
from ccdstream.live.records import TIME_BASE, Captured, Event, Mode
from ccdstream.live.screen import Analysed, Screen
from ccdstream.pipeline import Judged, Looker, make_fuser, observation
from ccdstream.process import settle
from ccdstream.render import Overlay, with_heat
from ccdstream.report.gallery import PEAK_PX, Gallery
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
OVERLAY, SOURCE = "overlay recording", "source recording"
"""What they are called where they fail."""


class CaptureLike(AbstractContextManager[Any], Protocol):
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


class RecordingLike(Beside, Protocol):
    """A video that a session leaves. None of it blocks or raises."""

    @property
    def given(self) -> int: ...
    @property
    def dropped(self) -> int: ...
    @property
    def lost(self) -> int: ...
    @property
    def until_s(self) -> float | None: ...
    @property
    def pauses(self) -> int: ...
    def write(self, frame: Frame, sample_aspect_ratio: Fraction | None = None) -> bool: ...
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
    """It ends by itself so long after its first frame, or after the gap that it begins with; None
    for when it is told to."""


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
    """Missing from the recordings, of each that it belongs in."""
    deadline_misses: int = 0
    """Drawn, and then too old to be shown."""
    gaps: int = 0
    pauses: int = 0
    """Of the recordings together: each goes on in a new file."""
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
            "pauses": self.pauses,
            "connections": self.connections,
            "alerts": self.alerts,
        }


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of a recording."""

    given: int
    """Frames: that of the overlay gets what is shown, that of the source what was captured."""
    left_out: int
    """Those of them that its encoder had no time for."""
    lost: int
    """Those that are missing because it failed."""
    failed: bool
    until_s: float | None
    """Where it failed: stream time up to which it can be played; None where nothing was kept."""

    @property
    def missing(self) -> int:
        """Frames that were given, and are not in it."""
        return self.left_out + self.lost


@dataclass(slots=True)
class LiveResult:
    """What a session was."""

    delays: StageDelays
    counts: Counts = field(default_factory=Counts)
    uninformative: Counter[str] = field(default_factory=Counter)
    """Analysed frames by why they tell nothing; one may have several reasons."""
    started_wall_s: float = 0.0
    ended_wall_s: float = 0.0
    """`time.time()`: as far apart as `wall_s` says, unless the clock was set meanwhile."""
    wall_s: float = 0.0
    stream_s: float = 0.0
    """Stream time of the last frame that was analysed."""
    ended: str = ""
    """Why: "stopped", "end of the source", "duration"."""
    recorded: dict[str, Recorded] = field(default_factory=dict)
    """By name, of each recording that was asked for."""
    failures: dict[str, str] = field(default_factory=dict)
    """What could not be written, or was not there any more, and why; empty where all is well."""
    tracebacks: dict[str, str] = field(default_factory=dict)
    """Of failures that are bugs."""

    def count_recorded(self, recordings: Mapping[str, RecordingLike]) -> None:
        """Take in what the recordings counted; again once they are finished, which may fail."""
        self.recorded = {
            name: Recorded(
                each.given, each.dropped, each.lost, each.failed is not None, each.until_s
            )
            for name, each in recordings.items()
        }
        self.counts.dropped_recorder = sum(each.missing for each in self.recorded.values())


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
    gallery: Gallery | None = None,
    beside: Mapping[str, Beside] | None = None,
    failures: Failures | None = None,
    stopped: Callable[[], bool] = lambda: False,
    on_event: Callable[[Event], None] = lambda _: None,
    on_alert: Callable[[Alert], None] = lambda _: None,
    on_count: Callable[[Counts, StageDelays], None] = lambda *_: None,
) -> LiveResult:
    """Analyse what a capture gives until it is over, `stopped` says so, or the duration is.

    Settles the process first, for its life: see `ccdstream.process`.

    Args:
        capture: not entered yet; it reads as long as the call lasts.
        clock: set by each frame, for those who tell the wall-clock time of an alert.
        overlay, source: recordings of what is shown, and of what was captured.
        folder: of snapshots; None: none can be taken.
        gallery: given every frame that was analysed, and the alerts.
        beside: more that the session goes on without, by name, to look whether it has failed.
        failures: told what fails so; None for one that tells `on_event`.
        on_event: told what happens, also in other threads.
        on_alert: told of each as it closes.
        on_count: told twice a second how far the session is.

    Raises:
        EngineError: the engine failed.
    """
    settle()
    recordings = {
        name: recording
        for name, recording in ((OVERLAY, overlay), (SOURCE, source))
        if recording is not None
    }
    _warm_up(bundle, engine)
    failures = failures or Failures(on_event=on_event)
    failures.stream_s = lambda: clock.stream_s
    result = LiveResult(
        StageDelays(STAGES),
        started_wall_s=time.time(),
        failures=failures.reasons,
        tracebacks=failures.tracebacks,
    )
    analysis = _Analysis(bundle, engine, result.delays, gallery)

    def keep(name: str, recording: RecordingLike, frame: Frame) -> None:
        with failures.spare(name, "A picture is not in it."):
            mode = capture.mode
            recording.write(frame, None if mode is None else mode.sample_aspect_ratio)

    screen = Screen(
        board,
        bound_s=options.max_latency_s,
        enter=bundle.alert["enter"],
        delays=result.delays,
        wall_of=clock.wall_of,
        keep=partial(keep, OVERLAY, overlay) if overlay is not None else lambda _: None,
        on_event=on_event,
    )
    session = _Session(
        result, capture, screen, board, clock, journal, recordings, folder, gallery,
        beside or {}, failures, on_event, on_alert,
    )  # fmt: skip
    capture.listen(screen.arrived)
    if source is not None:
        capture.listen(lambda captured: keep(SOURCE, source, captured.frame))
    began_s, counted_s = time.monotonic(), -math.inf
    duration_s = math.inf if options.duration_s is None else options.duration_s
    ends_s = math.inf
    kind: tuple[int, tuple[int, int]] | None = None
    with screen, capture, _short_pauses(), ExitStack() as ending:
        # also where it fails: an alert that was open is kept
        ending.callback(lambda: session.close_alerts(analysis.interrupt()))
        while not result.ended:
            screen.check()
            now_s = time.monotonic()
            if now_s - counted_s >= COUNT_EVERY_S:
                counted_s = now_s
                session.count()
                on_count(result.counts, result.delays)
            session.answer_requests()
            if stopped():
                result.ended = "stopped"
            elif now_s >= ends_s:
                result.ended = "duration"
            elif (captured := capture.newest(POLL_S)) is not None:
                ends_s = min(ends_s, captured.at_s + duration_s)  # counts from the first
                if (captured.connection, captured.frame.size) != kind:  # another picture
                    kind = captured.connection, captured.frame.size
                    session.close_alerts(analysis.interrupt())
                clock.set(captured)
                screen.analysing(captured)
                done = analysis(captured)
                screen.analysed(done.analysed)
                session.write_down(done)
            elif capture.over:
                result.ended = "end of the source"
            elif not capture.signal:
                if capture.gaps:  # not while a source that opens slowly is waited for
                    ends_s = min(ends_s, now_s + duration_s)
                session.close_alerts(analysis.interrupt())
                screen.lost(capture.cause)
    session.answer_requests()  # of the time that leaving took
    session.count()
    on_count(result.counts, result.delays)
    result.wall_s, result.ended_wall_s = time.monotonic() - began_s, time.time()
    result.stream_s = clock.stream_s
    return result


@dataclass(slots=True, eq=False)
class _Session:
    """All that a session tells, and whom."""

    result: LiveResult
    capture: CaptureLike
    screen: Screen
    board: Board
    clock: StreamClock
    journal: JournalLike
    recordings: Mapping[str, RecordingLike]
    folder: Path | None
    gallery: Gallery | None
    beside: Mapping[str, Beside]
    failures: Failures
    on_event: Callable[[Event], None]
    on_alert: Callable[[Alert], None]
    opened: int = 0
    """Number of the newest alert."""
    snapshots: int = 0
    """That were asked for."""
    told: int = 0
    """How many failures the board knows of."""

    def tell(self, kind: str, **data: Any) -> None:
        """Something happened."""
        self.on_event(Event(kind, time.time(), self.clock.stream_s, data))

    def write_down(self, done: "_Done") -> None:
        """Keep what an analysed frame gave."""
        analysed, counts = done.analysed, self.result.counts
        captured, fused = analysed.captured, analysed.fused
        frame = captured.frame
        self.journal.score(
            captured.number, frame.pts, frame.seconds, fused, analysed.state, done.parts
        )
        counts.analysed += 1
        counts.informative += fused.informative
        self.result.uninformative.update(fused.quality)
        if self.gallery is not None:
            self.gallery.add(frame, frame.seconds, fused, analysed.state)
        self.close_alerts(done.closed)
        alert = analysed.alert
        if alert is not None and alert.number > self.opened:
            self.opened = alert.number
            counts.alerts += 1
            self.tell("alert_opened", alert=alert.number, start_s=alert.start_s)
            for recording in self.recordings.values():
                recording.alert_opened(alert.number, alert.start_s)

    def close_alerts(self, alerts: list[Alert]) -> None:
        """Alerts are over."""
        for alert in alerts:
            self.journal.alert(alert)
            self.tell("alert_closed", alert=alert.number, end_s=alert.end_s, peak=alert.peak_score)
            for recording in self.recordings.values():
                recording.alert_closed(alert.number, alert.end_s)
            self.on_alert(alert)
        self.screen.close_alerts(alerts)
        if self.gallery is not None:
            for alert in alerts:
                self.gallery.close(alert)

    def count(self) -> None:
        """Collect what the others counted and where they failed, and put it on the board."""
        counts, tally, capture = self.result.counts, self.screen.tally, self.capture
        counts.captured, counts.dropped_slot = capture.captured, capture.dropped
        counts.gaps, counts.connections = capture.gaps, capture.connections
        counts.shown, counts.shown_plain = tally.shown, tally.plain
        counts.dropped_late, counts.deadline_misses = tally.late, tally.deadline_misses
        self.result.count_recorded(self.recordings)
        counts.pauses = sum(each.pauses for each in self.recordings.values())
        self.board.count({**counts.counters(), **self.result.delays.counters()})
        failures = self.failures
        if self.journal.failed is not None:
            failures.add("journal", self.journal.failed, has_event=True)
        for name, recording in self.recordings.items():
            failures.look(name, recording, has_event=True)
        for name, part in self.beside.items():
            failures.look(name, part)
        known = dict(failures.reasons)
        if len(known) > self.told:
            self.told = len(known)
            recorded = {"journal", *self.recordings}
            others = [f"{name}: {why}" for name, why in known.items() if name not in recorded]
            lost = [why for name, why in known.items() if name in recorded]
            self.board.tell(
                {"recording_failed": " ".join(lost) or None, "failed": " ".join(others) or None}
            )

    def answer_requests(self) -> None:
        """Do what watchers asked for: an event each, and a file for a snapshot."""
        for request in self.board.requests():
            data: dict[str, Any] = {"note": request.note} if request.note else {}
            if request.kind == "snapshot":
                data |= self._snapshot()
                self.snapshots += 1
                said = {key: data[key] for key in ("note", "file", "failed") if key in data}
                self.board.tell({"snapshot": {"number": self.snapshots, **said}})
            self.on_event(Event(request.kind, *self._moment_of(request), data))

    def _moment_of(self, request: Request) -> tuple[float, float]:
        """(`time.time()`, stream time) that it is about: a note is of when it was begun."""
        now_s = self.clock.stream_s
        if request.kind != "mark" or request.at_s is None or not 0 <= request.at_s <= now_s:
            return time.time(), now_s
        return self.clock.wall_of(request.at_s), request.at_s

    def _snapshot(self) -> dict[str, str]:
        shown = self.board.shown
        if shown is None or shown.frame is None or self.folder is None:
            return {"failed": "there is no picture"}
        taken = datetime.now().astimezone()
        path = self.folder / f"snapshot-{taken:%Y%m%d-%H%M%S-%f}.jpg"
        try:
            _write_whole(path, jpeg_of(shown.frame, quality=95))
        except OSError as error:
            return {"failed": error.strerror or str(error)}
        except Exception as error:  # not swallowed: an event holds it
            why, trace = bug(error, "")
            return {"failed": why, "traceback": trace}
        return {"file": f"{path.parent.name}/{path.name}"}


@dataclass(frozen=True, slots=True, eq=False)
class _Done:
    """An analysed frame, and what else came of it."""

    analysed: Analysed
    parts: np.ndarray
    closed: list[Alert]


class _Analysis:
    """look -> score -> fuse -> alert, one frame at a time."""

    def __init__(
        self, bundle: Bundle, engine: Engine, delays: StageDelays, gallery: Gallery | None
    ) -> None:
        self._bundle = bundle
        self._delays = delays
        self._gallery = gallery
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
        closed = self._tracker.update(observation(judged, fused, self._gallery))
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


def _warm_up(bundle: Bundle, engine: Engine) -> None:
    """Do once what takes longer the first time, so that the first frames are not late for it."""
    size, colour = (576, 720), Colour("bt601", full_range=False)
    chroma = np.full((size[0] // 2, size[1] // 2), 128, np.uint8)
    frame = Frame(np.full(size, 128, np.uint8), chroma, chroma, 0, TIME_BASE, colour)
    captured = Captured(frame, 0, time.monotonic(), time.time(), 0)
    done = _Analysis(bundle, engine, StageDelays(STAGES), None)(captured).analysed
    overlay = Overlay(size, colour, enter=bundle.alert["enter"])
    overlay.draw(frame, done.field, done.fused, done.state, 0.0)
    overlay.draw_late(frame, 0.0)
    jpeg_of(with_heat(frame, done.field, done.fused.heat), width=PEAK_PX)


@contextmanager
def _short_pauses() -> Iterator[None]:
    """Keep the garbage collector from going through all that was loaded before, again and again:
    every thread would wait for it, as long as for a frame or two."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _write_whole(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
