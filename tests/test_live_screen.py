"""What is shown and what is not, with a drawing that the test holds in its hand."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from ccdstream.alert import Alert, OpenAlert
from ccdstream.frames import Frame, Fused
from ccdstream.live.board import Board
from ccdstream.live.latency import StageDelays
from ccdstream.live.records import TIME_BASE, Captured, Event, Shown
from ccdstream.live.screen import Analysed, Screen
from ccdstream.live.session import STAGES
from ccdstream.view import whole_frame
from tests.live import SIZE, grey

PATIENT_S = 60.0


def captured(number: int, *, late_s: float = 0.0) -> Captured:
    frame = grey(50, pts=number * 3600)
    return Captured(frame, number, time.monotonic() - late_s, time.time(), 0)


def analysed(of: Captured, *, alert: OpenAlert | None = None) -> Analysed:
    heat = np.full((64, 64), 0.5, np.float32)
    fused = Fused(1.0, 0.5, 0.5, lambda: heat, (), 0.9)
    return Analysed(of, whole_frame(SIZE), fused, "NORMAL", alert, time.monotonic())


def open_alert(number: int, peak: Captured) -> OpenAlert:
    pts, seconds = peak.frame.pts, peak.frame.seconds
    return OpenAlert(number, pts, seconds, pts, seconds, 0.99, 3)


class HandOverlay:
    """Draws nothing, and not before it is let."""

    gate = threading.Event()
    begun = threading.Event()
    until_s = 0.0

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def draw(self, frame: Frame, *_: Any) -> Frame:
        self.begun.set()
        assert self.gate.wait(PATIENT_S)
        while time.monotonic() < self.until_s:
            time.sleep(0.001)
        return frame

    def draw_late(self, frame: Frame, _seconds: float) -> Frame:
        return frame

    def note(self, *_: Any) -> None:
        pass


class KeepingBoard(Board):
    """Remembers all that was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[Shown] = []

    def show(self, shown: Shown) -> None:
        self.all.append(shown)
        super().show(shown)


@pytest.fixture
def overlay(monkeypatch: pytest.MonkeyPatch) -> type[HandOverlay]:
    monkeypatch.setattr("ccdstream.live.screen.Overlay", HandOverlay)
    monkeypatch.setattr("ccdstream.live.screen.STALE_S", PATIENT_S)
    HandOverlay.gate, HandOverlay.begun = threading.Event(), threading.Event()
    HandOverlay.until_s = 0.0
    HandOverlay.gate.set()
    return HandOverlay


@contextmanager
def screen(bound_s: float = PATIENT_S) -> Iterator[tuple[Screen, KeepingBoard, list[Event]]]:
    board, events = KeepingBoard(), []
    with Screen(
        board,
        bound_s=bound_s,
        enter=0.99,
        delays=StageDelays(STAGES),
        wall_of=lambda s: 1e9 + s,
        on_event=events.append,
    ) as shows:
        yield shows, board, events


def stream_of(shown: list[Shown]) -> list[int | None]:
    """Which frames; None where the picture was taken away."""
    return [None if s.frame is None else round(s.frame.pts * TIME_BASE * 25) for s in shown]


def test_what_took_too_long_to_draw_is_not_shown_and_counts_as_a_miss(
    overlay: type[HandOverlay],
) -> None:
    with screen(bound_s=0.2) as (shows, board, events):
        frame = captured(0)
        overlay.until_s = frame.at_s + 0.25
        shows.analysed(analysed(frame))
    assert board.all == []
    assert [point.score for point in board.points()] == [0.5], "the line of scores has it"
    assert (shows.tally.deadline_misses, shows.tally.late, shows.tally.shown) == (1, 1, 0)
    assert [event.kind for event in events] == ["lag_opened"]


def test_a_result_that_a_newer_plain_picture_overtook_is_not_shown(
    overlay: type[HandOverlay],
) -> None:
    with screen() as (shows, board, _):
        shows.analysing(captured(1, late_s=PATIENT_S))  # so the analysis lags
        shows.arrived(captured(2))
        assert board.wait(0, PATIENT_S) is not None
        shows.analysed(analysed(captured(1)))
        while shows._result is not None:  # or the next would take its place unseen
            time.sleep(0.001)
        shows.analysed(analysed(captured(3)))
        assert board.wait(1, PATIENT_S) is not None
    assert stream_of(board.all) == [2, 3]
    assert [s.status.kind for s in board.all] == ["LAG", "READY"]
    assert [s.state for s in board.all] == ["", "NORMAL"]


def test_a_plain_picture_gets_its_heat_when_the_analysis_comes_in_time_after_all(
    overlay: type[HandOverlay],
) -> None:
    with screen() as (shows, board, _):
        frame = captured(2)
        shows.analysing(captured(1, late_s=PATIENT_S))
        shows.arrived(frame)
        assert board.wait(0, PATIENT_S) is not None
        shows.analysed(analysed(frame))
        assert board.wait(1, PATIENT_S) is not None
    assert [(s.status.kind, s.state) for s in board.all] == [("LAG", ""), ("READY", "NORMAL")]
    assert stream_of(board.all) == [2, 2]
    assert (shows.tally.shown, shows.tally.plain) == (1, 1), "one frame"


def test_a_lost_signal_throws_away_what_still_waits_to_be_drawn(
    overlay: type[HandOverlay],
) -> None:
    overlay.gate.clear()
    with screen() as (shows, board, _):
        shows.analysed(analysed(captured(1)))
        assert overlay.begun.wait(PATIENT_S)
        shows.analysed(analysed(captured(2)))
        shows.lost("unplugged")
        overlay.gate.set()
        assert board.wait(1, PATIENT_S) is not None
    assert stream_of(board.all) == [1, None]
    assert (board.status.kind, board.status.detail) == ("NO SIGNAL", "unplugged")


def test_stream_time_goes_on_without_a_signal(overlay: type[HandOverlay]) -> None:
    with screen() as (shows, board, _):
        shows.analysed(analysed(captured(0, late_s=5.0)))
        assert board.wait(0, PATIENT_S) is not None
        shows.lost("unplugged")
        lost = board.wait(1, PATIENT_S)
    assert lost is not None and lost.stream_s >= 5.0
    assert board.lasts_s("NO SIGNAL") >= 5.0


def test_drawing_that_is_behind_skips_to_the_newest(overlay: type[HandOverlay]) -> None:
    overlay.gate.clear()
    with screen() as (shows, board, _):
        for number in (1, 2, 3):
            shows.analysed(analysed(captured(number)))
            assert overlay.begun.wait(PATIENT_S)
        overlay.gate.set()
    assert stream_of(board.all) == [1, 3]
    assert shows.tally.late == 1, "the one between counts"


def test_an_alert_that_is_over_is_not_opened_again_by_a_frame_that_was_drawn_late(
    overlay: type[HandOverlay],
) -> None:
    frame = captured(1)
    opened = open_alert(1, frame)
    pts, seconds = frame.frame.pts, frame.frame.seconds
    over = Alert(1, pts, seconds, pts, seconds, pts, seconds, 0.99, 1.0, (0, 0, 1, 1), 3, 1, 1, "m")
    overlay.gate.clear()
    with screen() as (shows, board, _):
        shows.analysed(analysed(captured(0)))
        assert overlay.begun.wait(PATIENT_S)
        shows.analysed(analysed(frame, alert=opened))
        shows.close_alerts([over])
        overlay.gate.set()
        assert board.wait(1, PATIENT_S) is not None
    (card,) = board.alerts()
    assert card.closed_s == seconds and card.opened_wall_s == 1e9 + seconds


def test_only_a_higher_peak_makes_a_new_thumbnail(
    overlay: type[HandOverlay], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def jpeg(frame: Frame, *, width: int) -> bytes:
        made.append(round(frame.pts * TIME_BASE * 25))
        return b"jpeg"

    monkeypatch.setattr("ccdstream.live.screen.jpeg_of", jpeg)
    first, third = captured(1), captured(3)
    steps = [
        (first, open_alert(1, first)),
        (captured(2), open_alert(1, first)),
        (third, open_alert(1, third)),
    ]
    with screen() as (shows, board, _):
        for number, (frame, alert) in enumerate(steps):
            shows.analysed(analysed(frame, alert=alert))
            assert board.wait(number, PATIENT_S) is not None
    assert made == [1, 3]


def test_an_alert_whose_frames_all_came_too_late_is_in_the_list_with_a_plain_picture(
    overlay: type[HandOverlay], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr(
        "ccdstream.live.screen.jpeg_of", lambda frame, **__: made.append(frame) or b"jpeg"
    )
    frame = captured(1, late_s=2 * PATIENT_S)
    alert = open_alert(1, frame)
    with screen() as (shows, board, _):
        shows.analysed(analysed(frame, alert=alert))
        while not board.alerts():
            time.sleep(0.001)
        assert board.alerts()[0].thumbnail == b"jpeg"
        assert made == [frame.frame], "as it came, without heat"
        shows.analysed(analysed(captured(2), alert=alert))
        assert board.wait(0, PATIENT_S) is not None
    assert len(made) == 1, "no higher peak, no new picture"


def test_within_a_long_bound_no_picture_is_taken_away(
    overlay: type[HandOverlay], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ccdstream.live.screen.STALE_S", 0.4)
    with screen() as (shows, board, events):
        shows.analysed(analysed(captured(0, late_s=2.0)))
        assert board.wait(0, PATIENT_S) is not None
        assert board.wait(1, 0.1) is None, "nothing takes its place"
        shows.analysed(analysed(captured(1)))
        assert board.wait(1, PATIENT_S) is not None
    assert stream_of(board.all) == [0, 1] and events == []


def test_a_picture_stays_while_frames_arrive_and_the_next_analysis_may_be_in_time(
    overlay: type[HandOverlay], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ccdstream.live.screen.STALE_S", 0.4)
    bound_s = 0.1
    with screen(bound_s) as (shows, _, _):
        last, at_work, newest = captured(0, late_s=20.0), captured(1, late_s=3.0), captured(2)
        assert shows._stale_at_s(last) == pytest.approx(last.at_s + 0.5)
        shows._at_work, shows._newest = at_work, newest  # no lock: the thread has no picture
        assert shows._stale_at_s(last) == shows._due_s(at_work), "then it is late"
        shows._newest = at_work
        shows._at_work = newest
        assert shows._stale_at_s(last) == pytest.approx(at_work.at_s + 0.4), "none arrives"


def test_where_the_session_is_stuck_frames_are_shown_plain_with_a_true_delay_and_it_is_told(
    overlay: type[HandOverlay], monkeypatch: pytest.MonkeyPatch
) -> None:
    with screen() as (shows, board, events):
        monkeypatch.setattr("ccdstream.live.screen.STALE_S", -PATIENT_S)  # by its intervals alone
        shows.arrived(captured(1))  # and nobody takes it
        shows.analysed(analysed(captured(0)))
        assert board.wait(1, PATIENT_S) is not None
    shown = board.all[1]
    assert shown.status.kind == "LAG" and int(shown.status.detail.removesuffix(" ms")) > 100
    assert stream_of(board.all)[:2] == [0, 1]
    assert events[0].kind == "lag_opened" and shows.tally.plain == 1


def test_whoever_is_told_of_a_lag_and_blocks_keeps_no_old_picture_standing(
    overlay: type[HandOverlay], monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go, board, told = threading.Event(), KeepingBoard(), list[str]()

    def blocked(event: Event) -> None:
        assert let_go.wait(PATIENT_S)  # as where a disk or a terminal is stuck
        told.append(event.kind)

    with Screen(
        board,
        bound_s=PATIENT_S,
        enter=0.99,
        delays=StageDelays(STAGES),
        wall_of=lambda s: s,
        on_event=blocked,
    ) as shows:
        shows.analysed(analysed(captured(0)))
        assert board.wait(0, PATIENT_S) is not None
        monkeypatch.setattr("ccdstream.live.screen.STALE_S", -PATIENT_S)
        shows.analysing(captured(1, late_s=PATIENT_S))  # so the analysis lags
        gone = board.wait(1, PATIENT_S / 2)
        let_go.set()
    assert gone is not None and gone.frame is None
    assert told == ["lag_opened"]
