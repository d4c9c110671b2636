"""Reads a source without end: the newest frame wins, and a lost signal is a gap.

    reader (a thread a connection)  ->  one-frame slot  ->  newest()
    watch  (one thread)             opens connections, and gives up those that fall silent

A read that blocks in a driver cannot be ended from outside. The connection is then given up: its
thread is left to itself, whatever it may still read is never used, and it closes when it wakes.
"""

import re
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

from ccdstream.errors import CcdstreamError
from ccdstream.frames import Frame
from ccdstream.live.records import (
    TIME_BASE,
    Captured,
    Event,
    Gap,
    LiveSource,
    Mode,
    SourceLost,
)

_LEAVE_S = 1.0
"""How long leaving waits for a thread that reads; one that is blocked is left behind."""

_SILENCE = re.compile(r"(no frame|no data) for ([0-9.]+) s")
"""Causes that tell how long nothing came, when that was noticed."""

_MOST_STUCK = 4
"""Connections that may be blocked at a time: with more, no other is opened until one wakes."""


class Backoff:
    """Waiting times between tries: each twice the one before, up to a longest."""

    def __init__(self, first_s: float, longest_s: float) -> None:
        self.first_s = first_s
        self._longest_s = longest_s
        self._next_s = first_s

    def take(self) -> float:
        """The next waiting time, in seconds."""
        taken = min(self._next_s, self._longest_s)
        self._next_s = 2 * taken
        return taken

    def reset(self) -> None:
        """Begin anew."""
        self._next_s = self.first_s


class _Attempt:
    """A connection, from the try to open it to its end. Its fields are guarded by the capture."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.since_s = time.monotonic()
        """When it began; from its first frame on, when the last one came."""
        self.mode: Mode | None = None
        self.frames = 0
        self.wanted = True
        """False: given up; what it reads is not used."""
        self.ended = False
        self.cause = ""
        """Why it ended."""
        self.finished = False
        """Whether it ended because the source is at its end."""
        self.thread: threading.Thread | None = None


class Capture:
    """The frames of a source as they come, each with the time of its arrival.

        with Capture(source, on_event=events.append) as capture:
            while not capture.over:
                captured = capture.newest(timeout_s=0.1)

    Stream time is that of arrival, counted from the session's first frame, so it goes on through
    every connection and never goes back, whatever clocks the sources have.

    A source that has once given a frame is never given up: whatever goes wrong with it afterwards
    is a gap. One that cannot be had as asked from the start is an error. A source that ends cannot
    be opened again in its middle: where it falls silent it is waited for, as long as it takes.

    Args:
        source: what to read.
        timeout_s: without a frame for so long, the signal is lost.
        connect_timeout_s: longest time from the try to open a source to its first frame.
        first_retry_s, longest_retry_s: waiting time before the first retry after a frame came,
            doubled each time up to the longest.
        on_event: told what happened, in order, by `newest` and on leaving, in the caller's own
            thread. Events: connected (connection, source, size, rate, pixel_format, through,
            sample_aspect_ratio),
            gap_opened (cause), gap_closed (cause, start_s, end_s), size_changed (before, after,
            sample_aspect_ratio).
    """

    def __init__(
        self,
        source: LiveSource,
        *,
        timeout_s: float = 2.0,
        connect_timeout_s: float = 15.0,
        first_retry_s: float = 0.5,
        longest_retry_s: float = 8.0,
        on_event: Callable[[Event], None],
    ) -> None:
        self._source = source
        self._timeout_s = timeout_s
        self._connect_timeout_s = max(connect_timeout_s, timeout_s)
        self._backoff = Backoff(first_retry_s, longest_retry_s)
        self._on_event = on_event
        self._listeners: list[Callable[[Captured], object]] = []
        self._handing = threading.Lock()  # to the listeners, in order
        self._handed = -1  # number of the last one
        self._changed = threading.Condition()
        self._events: deque[Event] = deque()
        self._slot: Captured | None = None
        self._last: tuple[int, tuple[int, int]] | None = None  # pts and size, no picture
        self._began_s = 0.0  # monotonic time of the first frame
        self._waiting_since_s = 0.0  # when the last frame came, or the capture began
        self._attempt: _Attempt | None = None
        self._stuck: list[_Attempt] = []
        self._retry_at_s: float | None = None
        self._lost_by = "no frame yet"
        self._gap: Gap | None = None
        self._gaps = 0
        self._captured = 0
        self._dropped = 0
        self._connections = 0
        self._mode: Mode | None = None
        self._over = False
        self._leaving = False
        self._error: BaseException | None = None
        self._watch = threading.Thread(target=self._guarded, name="capture", daemon=True)

    # -- the session's side ---------------------------------------------------------------------

    def listen(self, listener: Callable[[Captured], object]) -> None:
        """Have every frame from now on given to `listener` too, also those that are dropped: in the
        thread that reads, which it must not hold up."""
        with self._changed:
            self._listeners.append(listener)

    def newest(self, timeout_s: float) -> Captured | None:
        """Take the newest frame out of the slot, waiting for one; None where none came in time, or
        the source is over.

        Raises:
            VideoOpenError: the source cannot be had as asked. Other errors of its code, as they
                are.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._slot or self._events or self._error or self._over,
                    max(0.0, deadline - time.monotonic()),
                )
                captured, self._slot = self._slot, None
                told = bool(self._events)
                error, over = self._error, self._over
            self._tell()
            if captured is not None:
                return captured
            if error is not None:
                raise error
            if over or (not told and time.monotonic() >= deadline):
                return None

    @property
    def signal(self) -> bool:
        """Whether a picture comes: one did, and no gap is open."""
        with self._changed:
            return self._last is not None and self._gap is None and not self._over

    @property
    def cause(self) -> str:
        """Why there is no signal, by the latest try, and when the next one is; empty while there is
        one. A gap keeps the cause that it began with."""
        with self._changed:
            if self._over:
                return "the source has ended"
            if self._last is not None and self._gap is None:
                return ""
            now_s, cause = time.monotonic(), self._lost_by
            if silence := _SILENCE.fullmatch(cause):  # as long as it is by now
                silent_s = max(now_s - self._waiting_since_s, float(silence[2]))
                cause = f"{silence[1]} for {silent_s:.1f} s"
            if self._retry_at_s is None:
                return cause
            return f"{cause}, next try in {max(0.0, self._retry_at_s - now_s):.1f} s"

    @property
    def gap(self) -> Gap | None:
        """The present one."""
        return self._gap

    @property
    def gaps(self) -> int:
        """How many there were, with the present one."""
        return self._gaps

    @property
    def mode(self) -> Mode | None:
        """What the source delivers, by its latest connection; None before the first."""
        return self._mode

    @property
    def over(self) -> bool:
        """Whether nothing will come any more: the source ended, and its last frame was taken."""
        with self._changed:
            return self._over and self._slot is None

    @property
    def captured(self) -> int:
        """Frames that came."""
        return self._captured

    @property
    def dropped(self) -> int:
        """Frames that a newer one replaced before they were taken."""
        return self._dropped

    @property
    def connections(self) -> int:
        """How many gave at least one frame."""
        return self._connections

    def stream_s(self) -> float:
        """What the session's clock shows now, in seconds; 0 before the first frame."""
        with self._changed:
            return self._now_s()

    def __enter__(self) -> "Capture":
        self._waiting_since_s = time.monotonic()
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._leaving = True
            self._changed.notify_all()
        self._watch.join()  # waits for nothing but the lock
        deadline = time.monotonic() + _LEAVE_S
        for attempt in [*self._stuck, self._attempt]:
            if attempt is not None and attempt.thread is not None:
                attempt.thread.join(max(0.0, deadline - time.monotonic()))
        with self._changed:
            self._slot = None
        self._tell()

    def _tell(self) -> None:
        while True:
            with self._changed:
                if not self._events:
                    return
                event = self._events.popleft()
            self._on_event(event)

    # -- all below here is called with the lock, where it does not say otherwise ----------------

    def _now_s(self) -> float:
        return 0.0 if self._last is None else time.monotonic() - self._began_s

    def _note(self, kind: str, **data: Any) -> None:
        self._events.append(Event(kind, time.time(), self._now_s(), data))
        self._changed.notify_all()

    def _open_gap(self, cause: str) -> None:
        self._lost_by = cause
        if self._gap is None:
            start_s = 0.0 if self._last is None else float(self._last[0] * TIME_BASE)
            self._gap = Gap(start_s, None, cause)
            self._gaps += 1
            self._note("gap_opened", start_s=start_s, cause=cause)

    # -- reading: a thread a connection ----------------------------------------------------------

    def _read(self, attempt: _Attempt) -> None:
        """Without the lock."""
        finished, cause = False, ""
        failure: BaseException | None = None
        try:
            with self._source.connect() as connection:
                with self._changed:
                    attempt.mode = connection.mode
                    wanted = self._wants(attempt)
                while wanted:
                    frame = connection.read()
                    if frame is None:
                        finished, cause = True, "the stream ended"
                        break
                    wanted = self._deliver(attempt, frame, connection.mode)
                    del frame  # or it would be kept while the next one is waited for
        except SourceLost as lost:
            cause = str(lost)
        except CcdstreamError as error:
            cause, failure = str(error).split(". ")[0], error
        except BaseException as error:  # not swallowed: newest() raises it
            cause, failure = str(error), error
        with self._changed:
            attempt.ended = True
            attempt.cause = cause
            attempt.finished = finished
            # a camera that was unplugged cannot be opened either: once it was there, wait for it
            waits = self._last is not None and isinstance(failure, CcdstreamError)
            if failure is not None and self._wants(attempt) and not waits:
                self._error = failure
            self._changed.notify_all()

    def _wants(self, attempt: _Attempt) -> bool:
        return attempt.wanted and not self._leaving

    def _deliver(self, attempt: _Attempt, frame: Frame, mode: Mode) -> bool:
        """Put `frame` into the slot; False where nobody wants it, nor another. Without the lock."""
        at_s, wall_s = time.monotonic(), time.time()
        with self._changed:
            if not self._wants(attempt):
                return False
            attempt.since_s = self._waiting_since_s = at_s
            attempt.frames += 1
            attempt.mode = self._mode = mode
            before = self._last
            if before is None:
                self._began_s = at_s
                pts = 0
            else:
                pts = round(Fraction(at_s - self._began_s) / TIME_BASE)
                pts = max(pts, before[0] + 1)
            if attempt.frames == 1:
                self._connected(attempt)
            stamped = replace(frame, pts=pts, time_base=TIME_BASE)
            captured = Captured(stamped, self._captured, at_s, wall_s, attempt.number)
            self._last = (pts, stamped.size)
            if self._gap is not None:
                gap, self._gap = replace(self._gap, end_s=stamped.seconds), None
                self._note("gap_closed", start_s=gap.start_s, end_s=gap.end_s, cause=gap.cause)
            if before is not None and before[1] != stamped.size:
                self._note(
                    "size_changed",
                    before=before[1],
                    after=stamped.size,
                    sample_aspect_ratio=str(mode.sample_aspect_ratio),
                )
            self._captured += 1
            self._dropped += self._slot is not None
            self._slot = captured
            listeners = list(self._listeners)
            self._changed.notify_all()
        with self._handing:
            if captured.number > self._handed:  # else a newer connection has overtaken this one
                self._handed = captured.number
                for listener in listeners:
                    listener(captured)
        return True

    def _connected(self, attempt: _Attempt) -> None:
        mode = attempt.mode
        assert mode is not None
        self._connections += 1
        self._backoff.reset()
        self._note(
            "connected",
            connection=attempt.number,
            source=self._source.name,
            size=mode.size,
            rate=None if mode.rate is None else float(mode.rate),
            pixel_format=mode.pixel_format,
            through=mode.through,
            sample_aspect_ratio=str(mode.sample_aspect_ratio),
        )

    # -- watching: one thread ---------------------------------------------------------------------

    def _guarded(self) -> None:
        """Without the lock."""
        try:
            with self._changed:
                self._watch_over()
        except BaseException as error:  # not swallowed: newest() raises it
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _watch_over(self) -> None:
        number = 0
        while not self._stopped():
            if not self._have_room():
                return
            self._attempt = attempt = _Attempt(number)
            attempt.thread = threading.Thread(
                target=self._read, args=(attempt,), name=f"capture {number}", daemon=True
            )
            attempt.thread.start()
            self._follow(attempt)
            number += bool(attempt.frames)
            if self._stopped():
                return
            if self._source.ends:  # read to its end, or broken off
                if not attempt.finished:
                    self._open_gap(attempt.cause)
                self._over = True
                self._changed.notify_all()
                return
            self._open_gap(attempt.cause)
            self._pause(self._backoff.take())

    def _stopped(self) -> bool:
        return self._leaving or self._error is not None

    def _follow(self, attempt: _Attempt) -> None:
        """Return when `attempt` has ended or is given up; open a gap when no frame comes."""
        while not (attempt.ended or self._stopped()):
            now = time.monotonic()
            silent_s = now - self._waiting_since_s
            waits = [self._timeout_s - silent_s] if self._gap is None else []
            if self._gap is None and silent_s >= self._timeout_s:
                self._open_gap(f"no frame for {self._timeout_s:.1f} s")
                continue
            if not self._source.ends:
                bound_s = self._timeout_s if attempt.frames else self._connect_timeout_s
                left_s = attempt.since_s + bound_s - now
                if left_s <= 0:
                    attempt.wanted = False
                    attempt.cause = f"no frame for {bound_s:.1f} s"
                    self._stuck.append(attempt)
                    return
                waits.append(left_s)
            self._changed.wait(min(waits) if waits else None)

    def _pause(self, seconds: float) -> None:
        """Wait before the next try; shorter where a blocked connection wakes, as its device is free
        again from then on."""
        began = time.monotonic()
        blocked = [attempt for attempt in self._stuck if not attempt.ended]

        def woken() -> bool:
            return self._stopped() or any(attempt.ended for attempt in blocked)

        self._retry_at_s = began + seconds
        self._changed.wait_for(woken, seconds)
        least_s = began + min(seconds, self._backoff.first_s) - time.monotonic()
        self._changed.wait_for(self._stopped, max(0.0, least_s))
        self._retry_at_s = None

    def _have_room(self) -> bool:
        """Wait until few enough connections are blocked; False when it is time to stop."""

        def room() -> bool:
            self._stuck = [attempt for attempt in self._stuck if not attempt.ended]
            return len(self._stuck) < _MOST_STUCK or self._stopped()

        if not room():
            self._open_gap(f"{_MOST_STUCK} connections are blocked in the driver")
            self._changed.wait_for(room)
        return not self._stopped()
