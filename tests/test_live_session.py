"""A live session: what is shown, when it may not be, and what is written, with the toy bundle.

Most tests hold the capture in their hand (`HandCapture`), so nothing depends on how fast this
machine is.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from ccdstream.alert import Alert
from ccdstream.bundle import Bundle
from ccdstream.engine.base import EngineOutput
from ccdstream.errors import EngineError
from ccdstream.frames import Frame, Fused
from ccdstream.history import STATES
from ccdstream.live.board import Board, Request
from ccdstream.live.failures import Failures
from ccdstream.live.records import Event, Shown
from ccdstream.live.session import LiveOptions, LiveResult, StreamClock, run_live
from ccdstream.render import with_heat
from ccdstream.report.gallery import Gallery
from tests.bundles import ToyEngine, write_toy_bundle
from tests.live import SIZE, HandCapture, grey

BRIGHT, DARK = 200, 50
BOUND_S = 1.0
"""A bound that a frame at work can be held beyond, and that a busy machine keeps otherwise."""
PATIENT_S = 60.0
"""A bound that no machine misses; and how long a test waits for what must come."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    alert = {
        "enter": 0.99, "leave": 0.9, "min_duration_s": 0.0, "merge_gap_s": 60.0,
        "refractory_s": 0.0, "time_constant_s": 0.0,
    }  # fmt: skip
    return write_toy_bundle(tmp_path_factory.mktemp("bundle") / "toy", alert=alert)


class ListJournal:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.failed: str | None = None
        self.rows: list[tuple[int, float, str]] = []
        self.alerts: list[Alert] = []
        self.raw: list[float] = []

    def score(
        self, number: int, pts: int, seconds: float, fused: Fused, state: str, parts: np.ndarray
    ) -> None:
        self.rows.append((number, seconds, state))
        self.raw.append(fused.smoothed)

    def alert(self, alert: Alert) -> None:
        self.alerts.append(alert)


class ListRecorder:
    """Keeps what it is given; `full` makes it fail at the next frame."""

    def __init__(self) -> None:
        self.failed: str | None = None
        self.traceback = ""
        self.given = self.dropped = self.lost = self.pauses = 0
        self.until_s: float | None = None
        self.full = False
        self.frames: list[Frame] = []
        self.told: list[tuple[str, int]] = []

    def write(self, frame: Frame, sample_aspect_ratio: Fraction | None = None) -> bool:
        if self.full:
            self.failed = "cannot write x.mp4: No space left on device."
            return False
        assert not self.frames or frame.pts > self.frames[-1].pts
        self.frames.append(frame)
        return True

    def alert_opened(self, number: int, stream_s: float) -> None:
        self.told.append(("opened", number))

    def alert_closed(self, number: int, stream_s: float) -> None:
        self.told.append(("closed", number))


class GatedEngine(ToyEngine):
    """Computes when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()
        self.waits = threading.Event()

    def run(self, frames: np.ndarray, valid: np.ndarray) -> EngineOutput:
        if not self.gate.is_set():
            self.waits.set()
            assert self.gate.wait(PATIENT_S)
        return super().run(frames, valid)


class Session:
    """A session in a thread, and what the test sees of it."""

    def __init__(self, bundle: Bundle, engine: ToyEngine, **options: Any) -> None:
        self.capture = HandCapture()
        self.board = Board()
        self.journal = ListJournal()
        self.overlay, self.source = ListRecorder(), ListRecorder()
        self.events: list[Event] = []
        self.alerts: list[Alert] = []
        self.failed: list[tuple[str, str]] = []
        self.shown: list[Shown] = []
        self.result: LiveResult | None = None
        self.error: BaseException | None = None
        self.told = threading.Condition()
        limits = {"max_latency_s": options.pop("max_latency_s", PATIENT_S)}
        limits["duration_s"] = options.pop("duration_s", None)
        self._run = lambda: run_live(
            self.capture,
            bundle,
            engine,
            options=LiveOptions(**limits),
            board=self.board,
            clock=StreamClock(),
            journal=self.journal,
            overlay=self.overlay,
            source=self.source,
            on_event=self.events.append,
            on_alert=self.alerts.append,
            failures=Failures(
                on_event=self.events.append,
                on_failed=lambda name, why: self.failed.append((name, why)),
            ),
            **options,
        )
        self._threads = [
            threading.Thread(target=self._session), threading.Thread(target=self._watch)
        ]  # fmt: skip

    def _session(self) -> None:
        try:
            self.result = self._run()
        except BaseException as error:
            self.error = error
        finally:
            self.board.close()

    def _watch(self) -> None:
        number = 0
        while not self.board.closed:
            shown = self.board.wait(number, 0.05)
            if shown is not None:
                number = shown.number
                with self.told:
                    self.shown.append(shown)
                    self.told.notify_all()

    def until(self, promise: Callable[[Shown], bool]) -> Shown:
        """The first picture that is as promised; it is waited for."""
        with self.told:
            kept = self.told.wait_for(lambda: any(map(promise, self.shown)), PATIENT_S)
            assert kept, [(s.status, s.state) for s in self.shown]
            return next(filter(promise, self.shown))

    def feed(self, luma: int, **more: Any) -> Any:
        """A frame arrives, and is shown with its analysis."""
        captured = self.capture.arrive(grey(luma, **more))
        self.until(lambda s: bool(s.state) and s.captured_at_s == captured.at_s)
        return captured

    def wait(self) -> None:
        """Until the session is over."""
        for thread in self._threads:
            thread.join(PATIENT_S)
            assert not thread.is_alive()

    def end(self) -> LiveResult:
        """The source ends; what the session was."""
        self.capture.over = True
        self.wait()
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


@contextmanager
def session(bundle: Bundle, engine: ToyEngine | None = None, **options: Any) -> Iterator[Session]:
    running = Session(bundle, engine or ToyEngine(), **options)
    for thread in running._threads:
        thread.start()
    try:
        yield running
    finally:
        running.capture.over = True
        for thread in running._threads:
            thread.join(PATIENT_S)


def test_each_frame_is_analysed_shown_recorded_and_written_down(bundle: Bundle) -> None:
    with session(bundle) as live:
        for luma in (DARK, DARK, BRIGHT, DARK):
            live.feed(luma)
        result = live.end()
    assert [row[0] for row in live.journal.rows] == [0, 1, 2, 3]
    assert [row[2] for row in live.journal.rows] == ["NORMAL", "NORMAL", "ALERT", "NORMAL"]
    assert [s.status.kind for s in live.shown] == ["READY"] * 4
    assert [f.pts for f in live.overlay.frames] == [f.pts for f in live.source.frames]
    assert (live.source.frames[0].y == DARK).all(), "the source is recorded as it came"
    assert (live.overlay.frames[0].y != DARK).any()
    counts = result.counts
    assert (counts.captured, counts.analysed, counts.shown, counts.shown_plain) == (4, 4, 4, 0)
    assert result.ended == "end of the source" and result.failures == {}
    assert live.board.counters()["analysed"] == 4
    assert result.delays["capture_to_overlay"].count == 4


def test_every_analysed_frame_and_the_peak_of_every_alert_are_in_the_gallery(
    bundle: Bundle,
) -> None:
    gallery = Gallery(start_s=0.0, heated=with_heat)
    with session(bundle, gallery=gallery) as live:
        for luma in (DARK, BRIGHT, DARK, BRIGHT):
            live.feed(luma)
        live.capture.lose("unplugged")
        live.until(lambda s: s.status.kind == "NO SIGNAL")
        live.end()
    assert gallery.line.state.max() == STATES.index("ALERT")
    assert gallery.strip[0].informative
    assert [a.number for a in live.alerts] == [1] == list(gallery.peaks), "one goes on: it merges"
    plain = cv2.imdecode(np.frombuffer(gallery.peaks[1].plain, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert plain.mean() > 150, "the peak is a bright frame"


def test_the_duration_counts_from_the_first_frame(bundle: Bundle) -> None:
    with session(bundle, duration_s=0.3) as live:
        live.capture.signal = False
        live.capture.wait_until_entered()
        time.sleep(0.6)  # a source that takes longer to open than the session is to last
        live.capture.find()
        first = live.capture.arrive(grey(DARK))
        live.wait()
        ended_s = time.monotonic()
        result = live.end()
    assert result.ended == "duration" and result.counts.analysed == 1
    assert ended_s - first.at_s >= 0.3


def test_a_source_that_never_gives_a_frame_does_not_outlast_the_duration(bundle: Bundle) -> None:
    with session(bundle, duration_s=0.1) as live:
        live.capture.lose("unplugged")
        live.wait()
        result = live.end()
    assert result.ended == "duration" and result.counts.captured == 0


def test_an_alert_is_on_the_board_while_it_is_open_and_replaced_when_it_closes(
    bundle: Bundle,
) -> None:
    with session(bundle) as live:
        live.feed(DARK)
        opened = live.feed(BRIGHT)
        while not live.board.alerts():
            time.sleep(0.001)
        (card,) = live.board.alerts()
        assert (card.number, card.closed_s) == (1, None)
        assert card.opened_s == opened.frame.seconds
        assert abs(card.opened_wall_s - opened.wall_s) < 0.01
        image = cv2.imdecode(np.frombuffer(card.thumbnail, np.uint8), cv2.IMREAD_COLOR)
        assert image.shape == (*SIZE, 3)
        live.feed(DARK)
        live.end()
    (card,) = live.board.alerts()
    assert card.closed_s == opened.frame.seconds and card.thumbnail
    assert [alert.number for alert in live.journal.alerts] == [1] == [a.number for a in live.alerts]
    assert live.overlay.told == [("opened", 1), ("closed", 1)] == live.source.told
    assert live.kinds() == ["alert_opened", "alert_closed"]


def test_a_scorer_that_is_too_slow_shows_the_newest_frame_plain_and_counts_the_rest(
    bundle: Bundle,
) -> None:
    engine = GatedEngine()
    with session(bundle, engine, max_latency_s=BOUND_S) as live:
        live.feed(BRIGHT)
        engine.gate.clear()
        stuck = live.capture.arrive(grey(BRIGHT))
        assert engine.waits.wait(PATIENT_S)
        # the frame at work grows older than the bound; newer ones are shown without heat
        while "lag_opened" not in live.kinds():
            time.sleep(0.001)
        later = []
        for _ in range(5):
            newest = live.capture.arrive(grey(BRIGHT))
            later.append(newest)
            plain = live.until(lambda s, n=newest: s.captured_at_s == n.at_s)  # type: ignore[misc]
            assert (plain.status.kind, plain.state, plain.score) == ("LAG", "", None)
            assert " ms" in plain.status.detail and plain.frame is not None
            assert plain.delay_s <= BOUND_S
        engine.gate.set()
        result = live.end()
    assert stuck.at_s not in {s.captured_at_s for s in live.shown if s.state}
    assert result.counts.dropped_late >= 1, "it was analysed, and too late to be shown"
    assert result.counts.dropped_slot == 4, "of five that came meanwhile the newest was analysed"
    assert result.counts.shown_plain == 5
    assert [row[0] for row in live.journal.rows] == [0, 1, 6], "late scores are written down"
    times = [s.captured_at_s for s in live.shown if s.frame is not None]
    assert times == sorted(times), "no picture is older than the one before"


def test_in_time_again_the_heat_is_back(bundle: Bundle) -> None:
    engine = GatedEngine()
    with session(bundle, engine, max_latency_s=BOUND_S) as live:
        live.capture.wait_until_entered()
        engine.gate.clear()
        live.capture.arrive(grey(BRIGHT))
        while "lag_opened" not in live.kinds():
            time.sleep(0.001)
        engine.gate.set()
        for _ in range(100):  # what was shown plain comes first
            captured = live.capture.arrive(grey(BRIGHT))
            live.capture.wait_until_taken()
            if any(s.state and s.captured_at_s == captured.at_s for s in live.shown):
                break
            time.sleep(0.02)
        live.until(lambda s: s.status.kind == "READY")
        live.end()


def test_a_lost_signal_takes_the_picture_away_and_closes_the_alert(bundle: Bundle) -> None:
    with session(bundle) as live:
        live.feed(DARK)
        live.feed(BRIGHT)
        live.capture.lose("no frame for 2.0 s, next try in 0.5 s")
        lost = live.until(lambda s: s.status.kind == "NO SIGNAL")
        assert lost.frame is None and lost.state == "" and lost.score is None
        assert lost.status.detail == "no frame for 2.0 s, next try in 0.5 s"
        assert live.board.shown is lost or live.board.shown.frame is None
        while not live.journal.alerts:
            time.sleep(0.001)
        live.capture.find()
        live.feed(BRIGHT)
        result = live.end()
    assert [(a.number, a.frames) for a in live.journal.alerts] == [(1, 1), (2, 1)], (
        "an alert does not go on across a gap, although the rule would merge the two"
    )
    assert result.counts.gaps == 1 and result.counts.connections == 2


def test_a_gap_that_nobody_noticed_in_time_still_parts_the_alerts(bundle: Bundle) -> None:
    with session(bundle) as live:
        live.feed(BRIGHT)
        live.capture.connections += 1  # the next frame comes by another connection
        live.feed(BRIGHT)
        live.end()
    assert [a.frames for a in live.journal.alerts] == [1, 1]


def test_smoothing_starts_anew_after_a_gap_and_a_change_of_size(tmp_path: Path) -> None:
    slow = write_toy_bundle(
        tmp_path / "slow",
        alert={
            "enter": 0.99, "leave": 0.9, "min_duration_s": 0.0, "merge_gap_s": 0.0,
            "refractory_s": 0.0, "time_constant_s": 1e6,
        },
    )  # fmt: skip
    with session(slow) as live:
        live.feed(DARK)
        live.feed(BRIGHT)
        live.feed(BRIGHT, size=(64, 80))
        live.end()
    first, second, third = live.journal.raw
    assert second == pytest.approx(first, abs=1e-3), "smoothed over a very long time"
    assert third > 0.9, "another picture"
    assert live.overlay.frames[-1].size == (64, 80)


def test_a_picture_that_nothing_follows_is_taken_away(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ccdstream.live.screen.STALE_S", 0.4 - PATIENT_S)  # after the bound
    with session(bundle) as live:
        live.feed(DARK)
        gone = live.until(lambda s: s.frame is None)
        assert gone.status.kind == "LAG" and "no new picture for" in gone.status.detail
        live.feed(DARK)
        live.end()


@pytest.mark.parametrize("which", ["overlay", "source", "journal"])
def test_a_full_disk_ends_the_recording_and_not_the_session(bundle: Bundle, which: str) -> None:
    with session(bundle) as live:
        live.feed(DARK)
        if which == "journal":
            live.journal.failed = "cannot write live.scores.csv: No space left on device."
        else:
            getattr(live, which).full = True
        live.feed(DARK)
        live.feed(DARK)
        result = live.end()
    assert result.counts.analysed == 3
    assert len(result.failures) == 1 and live.failed == list(result.failures.items())
    assert "No space left" in next(iter(result.failures.values()))
    assert "No space left" in live.board.facts()["recording_failed"]


@pytest.mark.parametrize("which", ["overlay", "source"])
def test_a_recording_with_a_bug_is_told_once_and_the_session_goes_on(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    with session(bundle) as live:

        def broken(*_: object) -> bool:
            raise KeyError("a bug")

        monkeypatch.setattr(getattr(live, which), "write", broken)
        for _ in range(3):
            live.feed(DARK)
        result = live.end()
    assert result.counts.analysed == 3 and result.ended == "end of the source"
    name = f"{which} recording"
    assert list(result.failures) == [name] and live.failed[0][0] == name and len(live.failed) == 1
    assert "KeyError: 'a bug' (test_live_session.py, line " in result.failures[name]
    assert "in broken" in result.tracebacks[name]
    (event,) = (event for event in live.events if event.kind == "part_failed")
    assert event.data["part"] == name and "in broken" in event.data["traceback"]


def test_what_fails_beside_the_session_is_told_once_and_not_as_a_recording(bundle: Bundle) -> None:
    class Page:
        failed: str | None = None
        traceback = "the traceback"

    page = Page()
    with session(bundle, beside={"page": page}) as live:
        live.feed(DARK)
        page.failed = "the page is gone."
        live.feed(DARK)
        result = live.end()
    assert result.failures == {"page": "the page is gone."}
    assert result.tracebacks == {"page": "the traceback"}
    assert live.failed == [("page", "the page is gone. live.run.json keeps the traceback.")]
    facts = live.board.facts()
    assert facts["failed"] == "page: the page is gone." and facts["recording_failed"] is None
    assert live.kinds().count("part_failed") == 1


def test_a_snapshot_with_a_bug_is_told_and_the_session_goes_on(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> bytes:
        raise ValueError("no JPEG")

    with session(bundle, folder=tmp_path) as live:
        live.feed(DARK)
        monkeypatch.setattr("ccdstream.live.session.jpeg_of", broken)
        live.board.ask(Request("snapshot"))
        while "snapshot" not in live.kinds():
            time.sleep(0.001)
        live.feed(DARK)
        live.end()
    (event,) = (event for event in live.events if event.kind == "snapshot")
    assert "no JPEG" in event.data["failed"] and "in broken" in event.data["traceback"]
    assert "traceback" not in live.board.facts()["snapshot"]


def test_a_note_is_of_the_moment_that_it_was_begun_at(bundle: Bundle) -> None:
    with session(bundle) as live:
        first, _, last = (live.feed(DARK) for _ in range(3))
        begun_s = first.frame.seconds
        live.board.ask(Request("mark", "look", begun_s))
        live.board.ask(Request("mark", "", begun_s + 1e6))  # of a session before
        while live.kinds().count("mark") < 2:
            time.sleep(0.001)
        live.end()
    told, odd = (event for event in live.events if event.kind == "mark")
    assert told.stream_s == begun_s
    assert told.wall_s == pytest.approx(first.wall_s, abs=0.1)
    assert odd.stream_s == last.frame.seconds


def test_what_a_watcher_asks_for_becomes_events_and_a_file(bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "snapshots"
    with session(bundle, folder=folder) as live:
        live.board.ask(Request("snapshot"))
        while "snapshot" not in live.kinds():
            time.sleep(0.001)
        captured = live.feed(DARK)
        live.board.ask(Request("mark", "look here"))
        live.board.ask(Request("snapshot"))
        while live.kinds().count("snapshot") < 2:
            time.sleep(0.001)
        live.end()
    early, mark, snapshot = live.events
    assert early.data == {"failed": "there is no picture"}
    assert mark.kind == "mark" and mark.data == {"note": "look here"}
    assert mark.stream_s == captured.frame.seconds
    (file,) = folder.iterdir()
    assert snapshot.data["file"] == f"snapshots/{file.name}"
    assert live.board.facts()["snapshot"] == {"number": 2, "file": f"snapshots/{file.name}"}
    assert cv2.imread(str(file)).shape == (*SIZE, 3)


@pytest.mark.parametrize(
    ("quality", "kind"),
    [({"least_redness": 0.5}, "OUT OF VIEW"), ({"least_brightness": 250.0}, "UNCLEAR")],
)
def test_an_uninformative_frame_says_so(
    tmp_path: Path, quality: dict[str, float], kind: str
) -> None:
    flagged = write_toy_bundle(tmp_path / "toy", quality=quality)
    with session(flagged) as live:
        live.feed(DARK)
        result = live.end()
    (shown,) = (s for s in live.shown if s.frame is not None)
    assert (shown.status.kind, shown.state, shown.score) == (kind, "UNCLEAR", None)
    assert result.counts.informative == 0


def test_an_engine_that_fails_ends_the_session_with_its_error(bundle: Bundle) -> None:
    class Breaks(ToyEngine):
        broken = False

        def run(self, frames: np.ndarray, valid: np.ndarray) -> EngineOutput:
            if self.broken:
                raise EngineError("the device is gone")
            return super().run(frames, valid)

    engine = Breaks()
    with session(bundle, engine) as live:
        live.feed(BRIGHT)
        engine.broken = True
        live.capture.arrive(grey(DARK))
        with pytest.raises(EngineError, match="the device is gone"):
            live.end()
    assert [a.number for a in live.journal.alerts] == [1], "what was open is closed"


def test_a_drawing_that_fails_ends_the_session_with_its_error(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bad:
        def __init__(self, *_: Any, **__: Any) -> None:
            raise MemoryError("no room for the overlay")

    monkeypatch.setattr("ccdstream.live.screen.Overlay", Bad)
    with session(bundle) as live:
        live.capture.arrive(grey(DARK))
        for thread in live._threads:
            thread.join(PATIENT_S)
        assert isinstance(live.error, MemoryError)


def test_it_ends_when_it_is_told_to(bundle: Bundle) -> None:
    stop = threading.Event()
    with session(bundle, stopped=stop.is_set) as live:
        live.feed(BRIGHT)
        stop.set()
        for thread in live._threads:
            thread.join(PATIENT_S)
    assert live.result is not None and live.result.ended == "stopped"
    assert [a.number for a in live.journal.alerts] == [1], "what was open is closed"


def test_its_end_is_by_the_clock_of_then_though_that_was_set_meanwhile(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_clock = time.time
    with session(bundle) as live:
        live.feed(DARK)
        monkeypatch.setattr(time, "time", lambda: true_clock() + 1e6)
        result = live.end()
    assert result.ended_wall_s - result.started_wall_s == pytest.approx(
        1e6 + result.wall_s, abs=PATIENT_S
    )


def test_what_a_watcher_asks_for_while_it_ends_is_kept(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    boards: list[Board] = []

    def leave(*_: object) -> None:  # takes up to a second, where a camera is stuck
        boards[0].ask(Request("mark", "the end"))

    monkeypatch.setattr(HandCapture, "__exit__", leave)
    with session(bundle) as live:
        boards.append(live.board)
        live.feed(DARK)
        live.end()
    assert [event.data for event in live.events if event.kind == "mark"] == [{"note": "the end"}]
