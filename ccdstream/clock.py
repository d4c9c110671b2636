"""The times of a recording's pictures, where those of the file are not usable as they are.

In: what the file says of each picture. Out: a time for each, after that of the one before it.
"""

import heapq
from collections import Counter, deque
from collections.abc import Iterator
from fractions import Fraction
from typing import Generic, Protocol, TypeVar

from ccdstream.problems import Problems

MAX_GAP_S = 3600
"""A time further ahead than this is a damaged one: no recording pauses for an hour."""

MAX_START_S = 10 * 366 * 86_400
"""A first time beyond ten years is a damaged one."""

_GLITCH_S = 1
"""A time that goes back by less is a slip of one frame; by more, the clock was set anew."""

_MAX_GAP_TICKS = 2**31 - 1
"""Longest time a frame can be shown in MP4, in ticks (ISO/IEC 14496-12: `sample_delta`)."""

_DECODED_AHEAD = 16
"""Pictures that may be decoded later than one, and shown before it: what H.264 and HEVC allow, and
the most that x264 makes."""


class Timed(Protocol):
    """A picture, as far as it is known here."""

    pts: int | None


P = TypeVar("P", bound=Timed)


class AsShown(Generic[P]):
    """Pictures in the order they are shown, with times of decoding -> with the same times, sorted.

    A sorted time is known once no picture that is shown later can have been decoded earlier.
    """

    def __init__(self) -> None:
        self._pictures: deque[P] = deque()
        self._times: list[int] = []  # a heap
        self._latest = -1

    def push(self, picture: P) -> Iterator[P]:
        """What is known once `picture` came."""
        if picture.pts is None:
            picture.pts = self._latest + 1
        self._latest = max(self._latest, picture.pts)
        self._pictures.append(picture)
        heapq.heappush(self._times, picture.pts)
        if len(self._pictures) > _DECODED_AHEAD:
            yield self._next()

    def finish(self) -> Iterator[P]:
        """The others, where none follows."""
        while self._pictures:
            yield self._next()

    def _next(self) -> P:
        picture = self._pictures.popleft()
        picture.pts = heapq.heappop(self._times)
        return picture


class Clock:
    """Gives every frame a time after the one before it, and changes no more than that takes.

    * A frame without a pts is shown when the one before it ends; the first, where the stream
      starts.
    * One that is not after the frame before, by less than `_GLITCH_S`, is moved to one tick after
      it; what follows keeps its own time.
    * Where the times go back further, or ahead by more than `MAX_GAP_S`, the clock was set anew:
      the frame follows the one before, and those after it are shifted alike until their own times
      fit again.
    """

    def __init__(self, time_base: Fraction, rate: Fraction, start: int, problems: Problems) -> None:
        self._interval = max(1, round(1 / (rate * time_base)))
        self._glitch = round(_GLITCH_S / time_base)
        self._max_gap = min(round(MAX_GAP_S / time_base), _MAX_GAP_TICKS)
        self._max_start = round(MAX_START_S / time_base)
        self._start = start
        self._shift = 0
        self._problems = problems
        self._steps: Counter[int] = Counter()
        self.last: int | None = None
        self.duration = self._interval
        """How long the last frame is shown, in ticks."""

    def next(self, pts: int | None, duration: int) -> int:
        """The time of the next frame, from what the file says."""
        time = self._time_of(pts)
        if self.last is not None and len(self._steps) < 1000:
            self._steps[time - self.last] += 1
        self.last = time
        self.duration = duration if 0 < duration <= self._max_gap else self._interval
        return time

    def _time_of(self, pts: int | None) -> int:
        last = self.last
        if pts is None:
            self._problems.missing_pts += 1
            return self._start if last is None else last + self.duration
        if last is None:
            if abs(pts) <= self._max_start:
                return pts
            self._problems.clock_jumps += 1
            self._shift = self._start - pts
            return self._start
        for shift in (0, self._shift):
            if 0 < pts + shift - last <= self._max_gap:
                self._shift = shift
                return pts + shift
        for shift in (0, self._shift):
            if -self._glitch < pts + shift - last <= 0:
                self._problems.non_monotonic += 1
                return last + 1
        self._problems.clock_jumps += 1
        self._shift = last + self.duration - pts
        return last + self.duration

    def step(self) -> int | None:
        """Ticks from frame to frame, where the clock is even; None where it is not.

        Even means that nine steps in ten are the commonest one, give or take a tenth or a tick. Two
        in three are enough where that one is the container's own rate, and the others are whole
        numbers of it and no pauses: so a recording looks of which much is lost.
        """
        if not self._steps:
            return None
        usual, _ = self._steps.most_common(1)[0]
        slack = _slack(usual)
        even = sum(n for step, n in self._steps.items() if abs(step - usual) <= slack)
        if even >= 0.9 * self._steps.total():
            return usual
        by_rate = abs(usual - self._interval) <= slack and even * 3 >= self._steps.total() * 2
        whole = all(
            step <= self._glitch and abs(step - usual * round(step / usual)) <= slack
            for step in self._steps
        )
        return usual if by_rate and whole else None

    def longest(self) -> int:
        """Ticks of the longest step."""
        return max(self._steps, default=0)

    def missing(self) -> int:
        """Frames that would fill the gaps, where the clock is otherwise even; 0 where it is not."""
        usual = self.step()
        if usual is None:
            return 0
        near = {step: n for step, n in self._steps.items() if abs(step - usual) <= _slack(usual)}
        mean = sum(step * n for step, n in near.items()) / sum(near.values())  # 33, 33 and 34 ms
        return sum(
            n * (round(step / mean) - 1) for step, n in self._steps.items() if step > 1.5 * usual
        )


def _slack(step: int) -> int:
    """By how many ticks a step of an even clock may differ from the usual one."""
    return max(1, step // 10)
