"""Live sources that a test holds in its hand."""

import threading
import time
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from ccdstream.frames import Colour, Frame
from ccdstream.live.records import TIME_BASE, Captured, Mode

COLOUR = Colour("bt601", full_range=False)
SIZE = (96, 128)


def grey(luma: int, size: tuple[int, int] = SIZE, pts: int = 0) -> Frame:
    """A flat grey picture: the brighter, the more the toy bundle alerts."""
    half = ((size[0] + 1) // 2, (size[1] + 1) // 2)
    neutral = np.full(half, 128, np.uint8)
    return Frame(np.full(size, luma, np.uint8), neutral, neutral, pts, TIME_BASE, COLOUR)


class HandCapture:
    """A capture without a thread: the test says what arrives, and when the signal is lost."""

    def __init__(self) -> None:
        self.signal, self.cause, self.over = True, "", False
        self.gaps = self.captured = self.dropped = 0
        self.connections = 1
        self.mode: Mode | None = Mode(SIZE, Fraction(25), "yuv420p", "a test")
        self._listeners: list[Callable[[Captured], object]] = []
        self._changed = threading.Condition()
        self._slot: Captured | None = None
        self._entered = threading.Event()
        self._began_s = time.monotonic()

    def __enter__(self) -> "HandCapture":
        self._entered.set()
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait_until_entered(self) -> None:
        """Until the session reads."""
        assert self._entered.wait(20.0)

    def listen(self, listener: Callable[[Captured], object]) -> None:
        self._listeners.append(listener)

    def arrive(self, frame: Frame, *, late_s: float = 0.0) -> Captured:
        """A frame is there now; one that waits makes room."""
        self.wait_until_entered()
        now_s = time.monotonic() - late_s
        pts = round((now_s - self._began_s) * 90_000)
        frame = Frame(frame.y, frame.u, frame.v, pts, TIME_BASE, frame.colour)
        captured = Captured(frame, self.captured, now_s, time.time(), self.connections - 1)
        with self._changed:
            self.captured += 1
            self.dropped += self._slot is not None
            self._slot = captured
            self._changed.notify_all()
        for listener in self._listeners:
            listener(captured)
        return captured

    def lose(self, cause: str) -> None:
        """The signal is gone."""
        self.signal, self.cause = False, cause
        self.gaps += 1

    def find(self) -> None:
        """It is there again, by another connection."""
        self.signal, self.cause = True, ""
        self.connections += 1

    def wait_until_taken(self, timeout_s: float = 20.0) -> None:
        """Until the session has taken what arrived."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._slot is None, timeout_s)

    def newest(self, timeout_s: float) -> Captured | None:
        with self._changed:
            self._changed.wait_for(lambda: self._slot is not None or self.over, timeout_s)
            captured, self._slot = self._slot, None
            self._changed.notify_all()
            return captured
