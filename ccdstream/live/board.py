"""What a live session shows right now: the session writes it, and whoever watches reads it.

Nothing here waits for a watcher. One that is slow misses pictures and costs the session no time.
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from ccdstream.live.records import AlertCard, Shown, Status

HISTORY_S = 600.0
"""Stream time of scores that are kept for those who come later."""
MOST_POINTS = 40_000
MOST_ALERTS = 200
"""Cards that are kept, the newest."""
MOST_REQUESTS = 32


@dataclass(frozen=True, slots=True)
class Point:
    """A frame in the line of scores."""

    stream_s: float
    score: float | None
    state: str


@dataclass(frozen=True, slots=True)
class Request:
    """What a watcher asks of the session: to mark this moment, or to keep this picture."""

    kind: str
    """ "mark" or "snapshot"."""
    note: str = ""
    at_s: float | None = None
    """Stream time of the picture that the watcher saw; None where none was to be seen."""


class Board:
    """The latest picture, status, scores, alerts and counters; safe to use from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._shown: Shown | None = None
        self._kind_since_s = time.monotonic()
        self._pictured_s: float | None = None  # when the last picture was captured
        self._points: deque[Point] = deque(maxlen=MOST_POINTS)
        self._alerts: OrderedDict[int, AlertCard] = OrderedDict()
        self._facts: dict[str, Any] = {}
        self._counters: dict[str, float] = {}
        self._requests: deque[Request] = deque(maxlen=MOST_REQUESTS)
        self._closed = False

    # -- the session's side ---------------------------------------------------------------------

    def show(self, shown: Shown) -> None:
        """Replace the picture."""
        with self._changed:
            if self._shown is None or self._shown.status.kind != shown.status.kind:
                self._kind_since_s = time.monotonic()
            if shown.frame is not None:
                self._pictured_s = shown.captured_at_s
            self._shown = shown
            if shown.state:
                self._add(Point(shown.stream_s, shown.score, shown.state))
            self._changed.notify_all()

    def note(self, point: Point) -> None:
        """Add to the line of scores a frame whose analysis was too late to be shown."""
        with self._changed:
            self._add(point)

    def _add(self, point: Point) -> None:
        self._points.append(point)
        while self._points[0].stream_s < point.stream_s - HISTORY_S:
            self._points.popleft()

    def put_alert(self, card: AlertCard) -> None:
        """Add an alert, or replace the one of its number."""
        with self._changed:
            self._alerts[card.number] = card
            while len(self._alerts) > MOST_ALERTS:
                self._alerts.popitem(last=False)
            self._changed.notify_all()

    def drop_alert(self, number: int) -> None:
        """Take back one that turned out too short."""
        with self._changed:
            self._alerts.pop(number, None)
            self._changed.notify_all()

    def tell(self, facts: Mapping[str, Any]) -> None:
        """What does not change from frame to frame, such as source, mode, model and thresholds, in
        types that JSON knows; added to what was told before."""
        with self._changed:
            self._facts |= facts

    def count(self, counters: Mapping[str, float]) -> None:
        """Totals since the session began and figures of delay, by name; each replaces its last."""
        with self._changed:
            self._counters |= counters

    def close(self) -> None:
        """The session is over: nobody waits any longer."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def requests(self) -> list[Request]:
        """What watchers asked for since the last call."""
        with self._changed:
            asked = list(self._requests)
            self._requests.clear()
            return asked

    # -- the watchers' side ---------------------------------------------------------------------

    def wait(self, after: int, timeout_s: float) -> Shown | None:
        """The newest picture, once its number is above `after`; None if there is none in time, or
        the session is over."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or (self._shown is not None and self._shown.number > after),
                timeout_s,
            )
            shown = self._shown
            return shown if shown is not None and shown.number > after else None

    def ask(self, request: Request) -> None:
        """Leave a request for the session."""
        with self._changed:
            self._requests.append(request)

    @property
    def shown(self) -> Shown | None:
        """The latest picture."""
        return self._shown

    @property
    def status(self) -> Status:
        """What is told of the picture right now."""
        shown = self._shown
        return Status("NO SIGNAL", "waiting for the first frame") if shown is None else shown.status

    def lasts_s(self, kind: str) -> float:
        """For how long it has been so, in seconds; without a signal, since the last picture."""
        with self._changed:
            since_s = self._kind_since_s
            if kind == "NO SIGNAL" and self._pictured_s is not None:
                since_s = self._pictured_s
            return max(time.monotonic() - since_s, 0.0)

    @property
    def closed(self) -> bool:
        """Whether the session is over."""
        return self._closed

    def points(self, after_s: float = -1.0) -> list[Point]:
        """Scores of stream time after `after_s`, the oldest first."""
        with self._changed:
            newer = list(takewhile(lambda point: point.stream_s > after_s, reversed(self._points)))
        return newer[::-1]

    def alerts(self) -> list[AlertCard]:
        """The oldest first."""
        with self._changed:
            return list(self._alerts.values())

    def facts(self) -> dict[str, Any]:
        """All that was told."""
        with self._changed:
            return dict(self._facts)

    def counters(self) -> dict[str, float]:
        """All that was counted."""
        with self._changed:
            return dict(self._counters)
