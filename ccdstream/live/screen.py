"""What is shown, and when: draws in a thread of its own, so that the next look never waits for it.

    captured frames ----(newest)----+
                                    +--> draw --> board, recorder
    analysed frames --(newest)------+

In order of capture, and never older than the bound. An analysed frame that cannot be shown within
the bound is not shown at all: its heat is withdrawn, and the newest frame there is is shown plain,
until the analysis is in time again. A picture stays while the next analysis may still be in time;
where nothing new can be shown it is taken away.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import Self

from ccdstream.alert import Alert, OpenAlert
from ccdstream.frames import Colour, FieldOfView, Frame, Fused
from ccdstream.jpeg import jpeg_of
from ccdstream.live.board import Board, Point
from ccdstream.live.latency import StageDelays
from ccdstream.live.records import AlertCard, Captured, Event, Shown, Status
from ccdstream.quality import gravest
from ccdstream.render import Overlay

STALE_S = 0.4
"""A picture that is older than the bound by so much makes room where none follows ..."""
STALE_INTERVALS = 3.0
"""... and is as old as so many of the source's usual intervals, for one that sends few frames."""
LAG_OVER_S = 1.0
"""So long nothing may be late for the lag to count as over in the record."""
THUMBNAIL_PX = 240
_OFTEN = 0.1
"""Weight of the last value in a running mean of intervals and drawing times."""


@dataclass(frozen=True, slots=True, eq=False)
class Analysed:
    """A frame, and what it means in the course of the session."""

    captured: Captured
    field: FieldOfView
    fused: Fused
    state: str
    alert: OpenAlert | None
    """The one that is open with it."""
    at_s: float
    """`time.monotonic()` when that was known."""


@dataclass(slots=True)
class Tally:
    """How many frames went which way."""

    shown: int = 0
    """Frames, each once: where a frame was shown plain, its heat may have followed."""
    plain: int = 0
    """Those of them that were shown plain, as their analysis took too long."""
    late: int = 0
    """Frames that were analysed, but not in time to be shown."""
    deadline_misses: int = 0
    """Frames that were drawn, and then too old to be shown."""


class Screen:
    """Shows a session on its board; a context manager, whose threads end with the block.

    Args:
        bound_s: from capture; nothing older is shown.
        enter: smoothed score at which alerts open.
        keep: given each picture that is shown, once, in order: for a recorder. It must not block.
        wall_of: stream time in seconds -> `time.time()`.
        on_event: told lag_opened and lag_closed, in a thread of its own: where it is held up by a
            disk or a terminal, no old picture stays for it.
    """

    def __init__(
        self,
        board: Board,
        *,
        bound_s: float,
        enter: float,
        delays: StageDelays,
        wall_of: Callable[[float], float],
        keep: Callable[[Frame], object] = lambda _: None,
        on_event: Callable[[Event], None] = lambda _: None,
    ) -> None:
        self.tally = Tally()
        self._board = board
        self._bound_s = bound_s
        self._enter = enter
        self._delays = delays
        self._wall_of = wall_of
        self._keep = keep
        self._on_event = on_event
        self._thread = threading.Thread(target=self._run, name="live screen", daemon=True)
        self._changed = threading.Condition()
        # what the session and the capture leave here
        self._newest: Captured | None = None
        self._at_work: Captured | None = None
        self._result: Analysed | None = None
        self._lost: str | None = None
        self._closed: list[Alert] = []
        self._ended = False
        self._error: BaseException | None = None
        self._untold: SimpleQueue[Event | None] = SimpleQueue()
        self._teller = threading.Thread(target=self._tell_all, name="live events", daemon=True)
        # the thread's own
        self._overlay: tuple[tuple[tuple[int, int], Colour], Overlay] | None = None
        self._number = 0
        self._last: Captured | None = None  # of what is shown; None where that is no picture
        self._last_plain = False
        self._reached = -1  # number of the newest frame that was shown
        self._stream_s = 0.0  # of the latest that was shown, and when it was captured
        self._stream_at_s: float | None = None
        self._lag_since_s: float | None = None
        self._lag_s = 0.0
        self._lag_told_s: float | None = None
        self._lagged_at_s = 0.0
        self._draw_s = 0.005
        self._interval_s = 0.04
        self._told_lost: str | None = None
        self._card: AlertCard | None = None  # of the alert that is open
        self._closed_number = 0

    # -- the session's side ---------------------------------------------------------------------

    def arrived(self, captured: Captured) -> None:
        """A frame was captured; called in the capture's thread."""
        with self._changed:
            if self._newest is not None:
                passed_s = min(captured.at_s - self._newest.at_s, 10.0)
                self._interval_s += _OFTEN * (passed_s - self._interval_s)
            self._newest = captured
            self._changed.notify()

    def analysing(self, captured: Captured) -> None:
        """The analysis of a frame begins."""
        with self._changed:
            self._at_work = captured
            self._lost = None
            self._changed.notify()

    def analysed(self, analysed: Analysed) -> None:
        """It is done. One that is not drawn yet makes room."""
        with self._changed:
            if self._result is not None:
                self.tally.late += 1
            self._at_work = None
            self._result = analysed
            self._changed.notify()

    def close_alerts(self, alerts: list[Alert]) -> None:
        """Alerts are over."""
        if alerts:
            with self._changed:
                self._closed += alerts
                self._changed.notify()

    def lost(self, detail: str) -> None:
        """There is no signal: the picture is taken away."""
        with self._changed:
            self._newest = self._at_work = self._result = None
            self._lost = detail
            self._changed.notify()

    def check(self) -> None:
        """Raise what went wrong in the threads."""
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Self:
        self._thread.start()
        self._teller.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join()
        self._untold.put(None)
        self._teller.join()
        if kind is None:
            self.check()

    # -- the thread's side ----------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while (step := self._next()) is not None:
                step()
        except BaseException as error:  # not swallowed: check() raises it
            self._error = error

    def _next(self) -> Callable[[], None] | None:
        """What to do next, once there is something; None at the end."""
        with self._changed:
            while True:
                now_s = time.monotonic()
                if self._closed:
                    closed, self._closed = self._closed, []
                    return lambda: self._close_cards(closed)
                if self._result is not None:
                    result, self._result = self._result, None
                    return lambda: self._take(result)
                if self._ended:
                    return None
                if self._lost is not None and self._lost != self._told_lost:
                    detail = self._lost
                    return lambda: self._show_lost(detail)
                if self._lost is None:
                    newest, at_work, last = self._newest, self._at_work, self._last
                    in_time = self._lag_since_s is None
                    if in_time and at_work is not None and now_s >= self._due_s(at_work):
                        late = at_work
                        return lambda: self._lags(now_s, now_s - late.at_s)
                    newer = (
                        newest is not None
                        and newest.number > self._reached
                        and now_s < self._due_s(newest)
                    )
                    if not in_time and newer and newest is not None:
                        return lambda: self._show_plain(newest)
                    if last is not None and now_s >= self._stale_at_s(last):
                        if newer:  # the session is stuck, while frames arrive
                            return lambda: self._lags(now_s, now_s - last.at_s)
                        return self._take_away
                self._changed.wait(self._patience_s(now_s))

    def _due_s(self, captured: Captured) -> float:
        """When drawing it has to begin."""
        return captured.at_s + self._bound_s - self._draw_s

    def _stale_at_s(self, last: Captured) -> float:
        """When the picture that is shown has stood too long."""
        usual_s = STALE_INTERVALS * self._interval_s
        stale_at_s = last.at_s + max(self._bound_s + STALE_S, usual_s)
        at_work, newest = self._at_work, self._newest
        if at_work is None or newest is None or at_work.number <= last.number:
            return stale_at_s
        # while frames arrive it stays until the next one is there in time, or is late
        arrives_s = newest.at_s + max(STALE_S, usual_s)
        return max(stale_at_s, min(self._due_s(at_work), arrives_s))

    def _patience_s(self, now_s: float) -> float | None:
        """How long nothing changes by itself."""
        times = []
        if self._at_work is not None and self._lag_since_s is None:
            times.append(self._due_s(self._at_work))
        if self._last is not None:
            times.append(self._stale_at_s(self._last))
        return max(min(times) - now_s, 0.001) if times else None

    def _take(self, result: Analysed) -> None:
        """Show an analysed frame, if it is in time."""
        captured = result.captured
        seconds = captured.frame.seconds
        began_s = time.monotonic()
        overlay = self._overlay_for(captured.frame, seconds)
        if began_s >= self._due_s(captured):
            self._note(overlay, result)
            self._late(began_s, began_s - captured.at_s)
            self._open_card(result.alert, captured.frame)
            return
        older = captured.number < self._reached or (
            captured.number == self._reached and not self._last_plain
        )
        if older:  # in time, though a newer one was shown plain meanwhile
            self._note(overlay, result)
            self._in_time(began_s)
            self._open_card(result.alert, captured.frame)
            return
        drawn = overlay.draw(captured.frame, result.field, result.fused, result.state, seconds)
        self._drew(began_s)
        status, score = _status(result.fused), _score(result.fused)
        if not self._show(captured, drawn, status, result.state, score, plain=False):
            self._board.note(Point(seconds, score, result.state))
            now_s = time.monotonic()
            self._late(now_s, now_s - captured.at_s)
            self._open_card(result.alert, drawn)
            return
        self._in_time(time.monotonic())
        self._open_card(result.alert, drawn)

    def _note(self, overlay: Overlay, result: Analysed) -> None:
        """It is not shown; what it says belongs into the lines of scores all the same."""
        seconds = result.captured.frame.seconds
        overlay.note(result.fused, result.state, seconds)
        self._board.note(Point(seconds, _score(result.fused), result.state))

    def _show_plain(self, captured: Captured) -> None:
        """Show the newest frame without its analysis."""
        seconds = captured.frame.seconds
        began_s = time.monotonic()
        drawn = self._overlay_for(captured.frame, seconds).draw_late(captured.frame, seconds)
        self._drew(began_s)
        at_work = self._at_work
        if at_work is not None:
            self._lag_s = max(self._lag_s, time.monotonic() - at_work.at_s)
        self._show(captured, drawn, self._lag_status(), "", None, plain=True)

    def _show(
        self,
        captured: Captured,
        drawn: Frame,
        status: Status,
        state: str,
        score: float | None,
        *,
        plain: bool,
    ) -> bool:
        """Put a picture on the board, unless it is too old by now."""
        seconds = captured.frame.seconds
        delay_s = time.monotonic() - captured.at_s
        if delay_s > self._bound_s:
            self.tally.deadline_misses += 1
            return False
        self._number += 1
        self._board.show(
            Shown(drawn, self._number, seconds, captured.at_s, status, state, score, delay_s)
        )
        self._delays.add("capture_to_plain" if plain else "capture_to_overlay", delay_s)
        self.tally.shown += captured.number > self._reached
        self.tally.plain += plain
        self._told_lost = None
        self._stream_s, self._stream_at_s = seconds, captured.at_s
        if captured.number > self._reached:
            self._keep(drawn)
        self._reached, self._last, self._last_plain = captured.number, captured, plain
        return True

    def _show_lost(self, detail: str) -> None:
        self._told_lost = detail
        self._show_nothing(Status("NO SIGNAL", detail))
        self._lag_since_s = None

    def _take_away(self) -> None:
        """What is shown is old, and nothing newer can be shown."""
        last, newest, now_s = self._last, self._newest, time.monotonic()
        assert last is not None
        arrived = last if newest is None or newest.number <= last.number else newest
        silent_s = now_s - arrived.at_s
        if arrived is last or silent_s >= max(STALE_S, STALE_INTERVALS * self._interval_s):
            self._show_nothing(Status("LAG", f"no new picture for {silent_s:.1f} s"))
        else:  # it comes, and drawing it takes longer than the bound
            self._lags(now_s, now_s - last.at_s)
            self._lag_s = now_s - last.at_s
            self._show_nothing(self._lag_status())

    def _show_nothing(self, status: Status) -> None:
        self._number += 1
        self._last = None
        now_s = time.monotonic()
        since_s = 0.0 if self._stream_at_s is None else now_s - self._stream_at_s
        stream_s = self._stream_s + since_s  # goes on without a picture
        self._board.show(Shown(None, self._number, stream_s, now_s, status, "", None, 0.0))

    def _overlay_for(self, frame: Frame, seconds: float) -> Overlay:
        """The one for frames like this; a new one where size or colour change."""
        kind = (frame.size, frame.colour)
        if self._overlay is None or self._overlay[0] != kind:
            self._overlay = kind, Overlay(*kind, enter=self._enter, start_s=seconds)
        return self._overlay[1]

    def _drew(self, began_s: float) -> None:
        took_s = time.monotonic() - began_s
        self._delays.add("draw", took_s)
        self._draw_s += _OFTEN * (took_s - self._draw_s)

    # -- lag ------------------------------------------------------------------------------------

    def _late(self, now_s: float, lag_s: float) -> None:
        self.tally.late += 1
        self._lag_s = lag_s
        self._lags(now_s, lag_s)

    def _lags(self, now_s: float, lag_s: float) -> None:
        if self._lag_since_s is None:
            self._lag_since_s, self._lag_s = now_s, lag_s
        if self._lag_told_s is None:
            self._lag_told_s = now_s
            self._tell("lag_opened", {"lag_s": round(lag_s, 4)})
        self._lagged_at_s = now_s

    def _in_time(self, now_s: float) -> None:
        self._lag_since_s = None
        if self._lag_told_s is not None and now_s - self._lagged_at_s >= LAG_OVER_S:
            self._tell("lag_closed", {"duration_s": round(self._lagged_at_s - self._lag_told_s, 3)})
            self._lag_told_s = None

    def _lag_status(self) -> Status:
        late = f"{1000 * self._lag_s:.0f} ms"
        return Status("LAG", late if self._card is None else f"{late}, ALERT open")

    def _tell(self, kind: str, data: dict[str, float]) -> None:
        self._untold.put(Event(kind, time.time(), self._stream_s, data))

    def _tell_all(self) -> None:
        try:
            while (event := self._untold.get()) is not None:
                self._on_event(event)
        except BaseException as error:  # not swallowed: check() raises it
            self._error = error

    # -- alerts ---------------------------------------------------------------------------------

    def _open_card(self, alert: OpenAlert | None, picture: Frame) -> None:
        """Show the alert that is open, with its peak so far as it was shown; plain where that came
        too late to be shown at all."""
        if alert is None or alert.number <= self._closed_number:
            return
        card = self._card
        if card is not None and card.number != alert.number:
            card = None
        if card is not None and card.peak_s == alert.peak_s:
            return
        self._card = AlertCard(
            number=alert.number,
            opened_s=alert.start_s,
            opened_wall_s=self._wall_of(alert.start_s),
            closed_s=None,
            peak_s=alert.peak_s,
            peak_score=alert.peak_score,
            clock=alert.clock,
            thumbnail=jpeg_of(picture, width=THUMBNAIL_PX),
        )
        self._board.put_alert(self._card)

    def _close_cards(self, alerts: list[Alert]) -> None:
        for alert in alerts:
            card = self._card
            thumbnail = card.thumbnail if card is not None and card.number == alert.number else b""
            self._card, self._closed_number = None, alert.number
            self._board.put_alert(
                AlertCard(
                    number=alert.number,
                    opened_s=alert.start_s,
                    opened_wall_s=self._wall_of(alert.start_s),
                    closed_s=alert.end_s,
                    peak_s=alert.peak_s,
                    peak_score=alert.peak_score,
                    clock=alert.clock,
                    thumbnail=thumbnail,
                )
            )


def _score(fused: Fused) -> float | None:
    return fused.smoothed if fused.informative else None


def _status(fused: Fused) -> Status:
    """What a frame that was analysed in time is worth."""
    if fused.informative:
        return Status("READY")
    reason = gravest(fused.quality)
    if reason == "out_of_body":
        return Status("OUT OF VIEW", "no bowel in the picture")
    return Status("UNCLEAR", reason.replace("_", " "))
