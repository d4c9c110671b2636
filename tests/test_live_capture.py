"""The capture of a live session: the newest frame wins, and every kind of trouble is a gap."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from queue import SimpleQueue
from time import monotonic

import numpy as np
import pytest

from ccdstream.errors import VideoOpenError
from ccdstream.frames import Colour, Frame
from ccdstream.live import capture as capture_module
from ccdstream.live.capture import Backoff, Capture
from ccdstream.live.records import TIME_BASE, Captured, Event, Mode, SourceLost

LIMIT_S = 30.0
"""Of every wait: what takes longer has failed."""
QUIET_S = 0.15
"""Time-out of the capture in most tests."""


def frame(level: int, size: tuple[int, int] = (4, 6), pts: int = 0) -> Frame:
    grey = np.full((size[0] // 2, size[1] // 2), 128, np.uint8)
    luma = np.full(size, level, np.uint8)
    return Frame(luma, grey, grey, pts, Fraction(1, 25), Colour("bt601", False))


class Device:
    """A source that does what a test tells it: each of `opens` is what an opening leads to.

    "open" opens, an event opens once it is set, an error is raised. A connection gives what is put
    into its queue: a frame; None, its end; an error, which it raises. With nothing in there it
    blocks, for ever if need be.
    """

    name = "device"

    def __init__(self, opens: list[object], *, ends: bool = False) -> None:
        self.ends = ends
        self.opens = opens
        self.opened = 0
        self.closed = 0
        self.queues: list[SimpleQueue[object]] = [SimpleQueue() for _ in opens]
        self.reads = threading.Semaphore(0)
        """Released whenever a connection waits for something to give."""

    @contextmanager
    def connect(self) -> Iterator["Device.Opened"]:
        number = self.opened
        self.opened += 1
        what = self.opens[min(number, len(self.opens) - 1)]
        if isinstance(what, threading.Event):
            assert what.wait(LIMIT_S)
        if isinstance(what, BaseException):
            raise what
        try:
            yield self.Opened(self, self.queues[number])
        finally:
            self.closed += 1

    class Opened:
        mode = Mode((4, 6), Fraction(25), "gray", "a test")

        def __init__(self, device: "Device", queue: "SimpleQueue[object]") -> None:
            self._device = device
            self._queue = queue

        def read(self) -> Frame | None:
            if self._queue.empty():
                self._device.reads.release()
            what = self._queue.get(timeout=LIMIT_S)
            if isinstance(what, BaseException):
                raise what
            assert what is None or isinstance(what, Frame)
            return what

    def give(self, number: int, *what: object) -> None:
        for item in what:
            self.queues[number].put(item)


@contextmanager
def capturing(
    device: Device, events: list[Event], **options: float
) -> Iterator[tuple[Capture, Callable[[], Captured]]]:
    """A capture of `device`, and what gives its next frame. All blocked reads wake at the end."""
    settings = {"timeout_s": QUIET_S, "first_retry_s": 0.01, "longest_retry_s": 0.02, **options}
    try:
        with Capture(device, on_event=events.append, **settings) as capture:

            def take() -> Captured:
                taken = capture.newest(LIMIT_S)
                assert taken is not None
                return taken

            yield capture, take
    finally:
        for queue in device.queues:
            queue.put(None)
        for what in device.opens:
            if isinstance(what, threading.Event):
                what.set()
        for thread in threading.enumerate():
            if thread.name.startswith("capture"):
                thread.join(LIMIT_S)


def wait_until(capture: Capture, holds: Callable[[], bool]) -> None:
    """Let events come in until `holds`; no frame may come."""
    deadline = monotonic() + LIMIT_S
    while not holds():
        assert monotonic() < deadline
        assert capture.newest(0.02) is None


def kinds(events: list[Event]) -> list[str]:
    return [event.kind for event in events]


# --- the slot ------------------------------------------------------------------------------------


def test_the_newest_frame_wins_and_what_it_replaced_is_counted() -> None:
    device = Device(["open"])
    device.give(0, frame(1), frame(2), frame(3))
    with capturing(device, [], timeout_s=LIMIT_S) as (capture, take):
        assert device.reads.acquire(timeout=LIMIT_S)  # it waits for a fourth: three were delivered
        taken = take()
        assert taken.frame.y[0, 0] == 3 and taken.number == 2 and taken.connection == 0
        assert (capture.captured, capture.dropped, capture.connections) == (3, 2, 1)
        assert capture.newest(0) is None, "a frame is taken once"


def test_a_frame_carries_the_moment_it_came_and_no_clock_of_the_source() -> None:
    device = Device(["open"])
    with capturing(device, [], timeout_s=LIMIT_S) as (_, take):
        pts = []
        for source_pts in (10**12, 5, 5, -7):
            before = monotonic()
            device.give(0, frame(1, pts=source_pts))
            taken = take()
            assert before <= taken.at_s <= monotonic()
            assert taken.frame.time_base == TIME_BASE
            pts.append(taken.frame.pts)
        assert pts[0] == 0 and pts == sorted(set(pts))


def test_frames_of_one_tick_still_have_increasing_times(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped:
        monotonic = staticmethod(lambda: 5.0)
        time = staticmethod(lambda: 1e9)

    device = Device(["open"])
    with capturing(device, [], timeout_s=LIMIT_S) as (_, take):
        monkeypatch.setattr(capture_module, "time", Stopped)
        pts = []
        for _ in range(3):
            device.give(0, frame(1))
            pts.append(take().frame.pts)
        monkeypatch.undo()
    assert pts == [0, 1, 2]


# --- trouble -------------------------------------------------------------------------------------


def test_a_blocked_connection_is_given_up_and_its_late_frame_is_never_used() -> None:
    device, events = Device(["open", "open"]), []
    device.give(0, frame(1))
    with capturing(device, events) as (capture, take):
        first = take()
        assert capture.signal and capture.cause == "" and capture.gap is None
        wait_until(capture, lambda: "gap_opened" in kinds(events))
        assert not capture.signal
        assert capture.gap is not None and capture.gap.end_s is None
        assert capture.gap.cause == "no frame for 0.1 s" or "0.2 s" in capture.gap.cause
        capture._waiting_since_s -= 60.0
        assert capture.cause.startswith("no frame for 6"), "as long as it is by now"
        device.give(0, frame(99))  # the blocked read wakes
        device.give(1, frame(2))
        second = take()
        assert second.frame.y[0, 0] == 2 and second.connection == 1
        assert second.frame.pts > first.frame.pts
        assert (capture.gaps, capture.captured, capture.connections) == (1, 2, 2)
        assert capture.gap is None
    assert kinds(events) == ["connected", "gap_opened", "connected", "gap_closed"]
    closed = events[3].data
    assert closed["start_s"] == first.frame.seconds and closed["end_s"] == second.frame.seconds
    assert device.closed == 2, "the one that was given up closed when it woke"


def test_a_lost_signal_is_a_gap_at_once_that_keeps_its_cause_and_tells_the_next_try() -> None:
    opens = ["open", SourceLost("connection refused"), SourceLost("connection refused"), "open"]
    device, events = Device(opens), []
    with capturing(device, events, timeout_s=LIMIT_S, first_retry_s=0.1, longest_retry_s=0.2) as (
        capture,
        take,
    ):
        assert capture.newest(0) is None and not capture.signal
        device.give(0, frame(1), SourceLost("cable out"))
        take()
        wait_until(capture, lambda: capture.gap is not None and "refused" in capture.cause)
        assert capture.gap is not None and capture.gap.cause == "cable out"
        wait_until(capture, lambda: "next try in 0." in capture.cause or device.opened == 4)
        device.give(3, frame(2))
        assert take().connection == 1, "tries that gave nothing are not counted"
    assert events[1].kind == "gap_opened" and events[1].data["cause"] == "cable out"
    assert events[-1].kind == "gap_closed" and events[-1].data["cause"] == "cable out"


def test_the_end_of_a_stream_is_a_lost_signal() -> None:
    device, events = Device(["open", "open"]), []
    device.give(0, frame(1), None)
    device.give(1, frame(2))
    with capturing(device, events, timeout_s=LIMIT_S) as (capture, take):
        while take().connection == 0:
            pass
        assert not capture.over
    assert "the stream ended" in [event.data.get("cause") for event in events]


def test_a_source_that_is_not_there_yet_is_a_gap_from_the_start() -> None:
    device, events = Device([SourceLost("no route"), SourceLost("no route"), "open"]), []
    device.give(2, frame(1))
    with capturing(device, events, timeout_s=LIMIT_S) as (capture, take):
        assert take().frame.pts == 0
        assert capture.gaps == 1
    assert kinds(events) == ["gap_opened", "connected", "gap_closed"]
    assert events[2].data == {"start_s": 0.0, "end_s": 0.0, "cause": "no route"}


def test_opening_that_blocks_is_given_up_too() -> None:
    woken = threading.Event()
    device, events = Device([woken, "open"]), []
    device.give(1, frame(1))
    with capturing(device, events, connect_timeout_s=0.2) as (capture, take):
        assert take().connection == 0
        assert capture.gaps == 1 and device.opened == 2


def test_opening_that_takes_its_time_is_waited_for_though_the_signal_is_lost_meanwhile() -> None:
    slow = threading.Event()
    device, events = Device([slow]), []
    with capturing(device, events) as (capture, take):
        wait_until(capture, lambda: capture.gap is not None)
        slow.set()
        device.give(0, frame(1))
        assert take().connection == 0 and capture.gap is None
    assert device.opened == 1


def test_connections_that_block_for_ever_do_not_pile_up() -> None:
    woken = [threading.Event() for _ in range(4)]
    device, events = Device([*woken, "open"]), []
    with capturing(device, events, timeout_s=0.02, connect_timeout_s=0.02) as (capture, take):
        wait_until(capture, lambda: "4 connections are blocked" in capture.cause)
        assert device.opened == 4
        woken[0].set()
        device.give(4, frame(1))
        take()
        assert device.opened == 5


def test_a_blocked_connection_that_wakes_brings_the_next_try_forward(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Hours(Backoff):
        def take(self) -> float:
            return 3600.0

    monkeypatch.setattr(capture_module, "Backoff", Hours)
    device, events = Device(["open", "open"]), []
    device.give(0, frame(1))
    with capturing(device, events) as (capture, take):
        take()
        wait_until(capture, lambda: "next try" in capture.cause)
        assert device.opened == 1
        device.give(0, frame(99))  # wakes, and frees the device
        device.give(1, frame(2))
        assert take().frame.y[0, 0] == 2


def test_another_size_is_told_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    device, events = Device(["open"]), []
    with capturing(device, events, timeout_s=LIMIT_S) as (capture, take):
        device.give(0, frame(1))
        take()
        mode = replace(Device.Opened.mode, size=(8, 10), sample_aspect_ratio=Fraction(4, 3))
        monkeypatch.setattr(Device.Opened, "mode", mode)
        device.give(0, frame(2, size=(8, 10)))
        assert take().frame.size == (8, 10)
        assert capture.mode == mode
    assert events[-1].kind == "size_changed"
    ratio = "4/3"
    assert events[-1].data == {"before": (4, 6), "after": (8, 10), "sample_aspect_ratio": ratio}


def test_listeners_get_frames_in_order_though_one_held_up_a_connection_that_is_given_up() -> None:
    # what comes after these two does not open before the end
    device = Device(["open", "open", *(threading.Event() for _ in range(8))])
    held, both = threading.Event(), threading.Event()
    heard: list[int] = []

    def listener(captured: Captured) -> None:
        assert captured.number or held.wait(LIMIT_S)
        heard.append(captured.number)
        if len(heard) == 2:
            both.set()

    with capturing(device, []) as (capture, take):
        capture.listen(listener)
        device.give(0, frame(1))
        device.give(1, frame(2))
        while take().number < 1:
            pass
        held.set()
        assert both.wait(LIMIT_S)
    assert heard == [0, 1]


# --- the end -------------------------------------------------------------------------------------


def test_a_source_that_ends_is_over_once_its_last_frame_was_taken() -> None:
    device, events = Device(["open"], ends=True), []
    device.give(0, frame(1), None)
    with capturing(device, events) as (capture, take):
        take()
        wait_until(capture, lambda: capture.over)
        assert capture.newest(LIMIT_S) is None, "it does not wait for what cannot come"
        assert not capture.signal and capture.gaps == 0
    assert device.opened == 1


def test_a_source_that_ends_is_waited_for_where_it_falls_silent() -> None:
    device, events = Device(["open"], ends=True), []
    device.give(0, frame(1))
    with capturing(device, events, connect_timeout_s=QUIET_S) as (capture, take):
        take()
        wait_until(capture, lambda: capture.gap is not None)
        device.give(0, frame(2))
        assert take().connection == 0
        assert capture.gap is None
    assert kinds(events) == ["connected", "gap_opened", "gap_closed"]
    assert device.opened == 1


def test_a_source_that_ends_and_breaks_off_is_over_with_the_cause() -> None:
    device, events = Device(["open"], ends=True), []
    device.give(0, frame(1), SourceLost("damaged"))
    with capturing(device, events) as (capture, take):
        take()
        wait_until(capture, lambda: capture.over)
    assert events[-1].kind == "gap_opened" and events[-1].data["cause"] == "damaged"


def test_a_source_that_cannot_be_had_as_asked_is_an_error() -> None:
    device = Device([VideoOpenError("no such mode")])
    with (
        capturing(device, []) as (capture, _),
        pytest.raises(VideoOpenError, match="no such mode"),
    ):
        capture.newest(LIMIT_S)
    assert device.opened == 1


def test_a_camera_that_was_there_and_cannot_be_opened_is_waited_for() -> None:
    device = Device(["open", VideoOpenError("there is no camera. List them."), "open"])
    events: list[Event] = []
    device.give(0, frame(1))
    with capturing(device, events, timeout_s=LIMIT_S) as (capture, take):
        take()
        device.give(0, SourceLost("unplugged"))
        wait_until(capture, lambda: device.opened == 3)
        assert capture.cause.startswith("there is no camera")
        device.give(2, frame(2))
        take()


@pytest.mark.parametrize("when", ["opening", "reading"])
def test_a_bug_in_a_source_is_raised_as_it_is(when: str) -> None:
    device = Device([ZeroDivisionError("bug") if when == "opening" else "open"])
    device.give(0, ZeroDivisionError("bug"))
    with capturing(device, []) as (capture, _), pytest.raises(ZeroDivisionError, match="bug"):
        capture.newest(LIMIT_S)


def test_an_error_of_whoever_is_told_is_raised_to_the_caller() -> None:
    def fail(event: Event) -> None:
        raise OSError("disk full")

    device = Device(["open"], ends=True)
    device.give(0, frame(1), None)
    with Capture(device, on_event=fail) as capture, pytest.raises(OSError, match="disk full"):
        capture.newest(LIMIT_S)


def test_events_are_told_in_the_callers_thread() -> None:
    device, threads = Device(["open"]), []
    device.give(0, frame(1))
    with Capture(device, on_event=lambda _: threads.append(threading.current_thread())) as capture:
        capture.newest(LIMIT_S)
        device.give(0, None)
    for thread in threading.enumerate():
        if thread.name.startswith("capture"):
            thread.join(LIMIT_S)
    assert threads and set(threads) == {threading.current_thread()}


def test_leaving_does_not_wait_for_a_read_that_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture_module, "_LEAVE_S", 0.05)
    device = Device(["open"])
    device.give(0, frame(1))
    left = threading.Event()

    def session() -> None:
        with Capture(device, on_event=lambda _: None, timeout_s=LIMIT_S) as capture:
            capture.newest(LIMIT_S)
        left.set()

    thread = threading.Thread(target=session)
    thread.start()
    assert left.wait(LIMIT_S / 2)
    thread.join()
    (reader,) = [t for t in threading.enumerate() if t.name.startswith("capture")]
    assert reader.daemon and device.closed == 0
    device.give(0, frame(2))
    reader.join(LIMIT_S)
    assert device.closed == 1


def test_leaving_ends_the_wait_for_the_next_try() -> None:
    device = Device([SourceLost("gone")])
    with capturing(device, [], first_retry_s=3600, longest_retry_s=3600) as (capture, _):
        wait_until(capture, lambda: "next try in" in capture.cause)


def test_waiting_times_double_up_to_a_longest_and_begin_anew() -> None:
    backoff = Backoff(0.5, 8.0)
    assert [backoff.take() for _ in range(6)] == [0.5, 1, 2, 4, 8, 8]
    backoff.reset()
    assert backoff.take() == 0.5


def test_a_connection_that_gave_a_frame_begins_the_waiting_times_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(Capture, "_pause", lambda _, seconds: waits.append(seconds))
    refused = SourceLost("refused")
    device, events = Device([refused, refused, refused, "open", "open"]), []
    device.give(3, frame(1), refused)
    device.give(4, frame(2))
    with capturing(device, events, timeout_s=LIMIT_S, first_retry_s=0.2, longest_retry_s=0.8) as (
        _,
        take,
    ):
        while take().connection == 0:
            pass
    assert waits == [0.2, 0.4, 0.8, 0.2]
