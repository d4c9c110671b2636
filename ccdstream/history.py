"""Scores and states over time, however long the video is, and how scores are shown."""

import math

import numpy as np

STATES = ("UNCLEAR", "NORMAL", "WATCH", "ALERT")
"""From harmless to grave: where several frames share a column, the gravest shows."""

SCALE_DECADES = 3.0
"""Scores are shown as -log10(1 - score), up to this: 0.9, 0.99 and 0.999 stand at equal steps. On a
straight scale all that matters would be the topmost pixel."""
UNKNOWN_SPAN_S = 30.0
"""What the time line spans at first where the duration is not known; doubled when it is full."""
HISTORY_GAP_S = 1.0
"""A longer time without frames stays empty in the time line."""


class History:
    """Scores and states over time in a fixed number of columns, however long the video is.

    A column holds the highest score and the gravest state of the frames that share it. When time
    passes the right end, pairs of columns become one and the span doubles.
    """

    def __init__(self, columns: int, *, start_s: float, span_s: float | None) -> None:
        self.score = np.zeros(columns, np.float32)
        """[columns], 0 where no frame was."""
        self.state = np.full(columns, -1, np.int8)
        """[columns], index into STATES, or -1 where no frame was."""
        self.span_s = span_s if span_s is not None and span_s > 0 else UNKNOWN_SPAN_S
        """Stream time from the left end to the right."""
        self.now = 0
        """Column of the last frame, or of what `reach` was told."""
        self._start_s = start_s
        self._last_s: float | None = None

    def add(self, seconds: float, score: float, state: str) -> None:
        """Enter the next frame. It also fills the columns since the one before, but not a gap."""
        now = self._column(seconds)
        first = now
        if self._last_s is not None and 0 <= seconds - self._last_s <= HISTORY_GAP_S:
            first = min(self.now + 1, now)
        columns = slice(first, now + 1)
        self.score[columns] = np.maximum(self.score[columns], score)
        self.state[columns] = np.maximum(self.state[columns], STATES.index(state))
        self.now, self._last_s = now, seconds

    def reach(self, seconds: float) -> None:
        """Let the line go on, empty, to a time after its last frame."""
        self.now = max(self._column(seconds), self.now)

    def _column(self, seconds: float) -> int:
        """Where a time lies; what is beyond the right end makes the span longer."""
        count = len(self.state)
        offset_s = max(seconds - self._start_s, 0.0)
        # a container's duration may leave out the last frame: half a column is no reason to rescale
        while offset_s > self.span_s * (1 + 0.5 / count):
            self._halve()
        return min(int(offset_s / self.span_s * count), count - 1)

    def _halve(self) -> None:
        """Let the same columns span twice the time."""
        self.score = _pairs(self.score, 0)
        self.state = _pairs(self.state, -1)
        self.span_s *= 2
        self.now //= 2


_INEXACT = 1e-4
"""In thousandths: a float32 of a score may lie so far below what was meant."""


def thousandths(score: float) -> int:
    """A score as people read it: cut, so that what reads like a limit has reached it, and never
    1000. None is the highest there can be."""
    return min(math.floor(1000 * score + _INEXACT), 999)


def score_text(score: float) -> str:
    """A score as text, the one way everywhere: "0.999", never "1.000"."""
    return f"{thousandths(score) / 1000:.3f}"


def on_scale(score: np.ndarray) -> np.ndarray:
    """Place on the score scales, in [0, 1]."""
    decades = -np.log10(np.maximum(1.0 - score, 10.0**-SCALE_DECADES))
    place: np.ndarray = np.clip(decades / SCALE_DECADES, 0.0, 1.0)
    return place


def _pairs(columns: np.ndarray, empty: int) -> np.ndarray:
    """The larger of each pair of columns, then as many empty ones."""
    count = len(columns)
    padded = np.append(columns, np.full(count % 2, empty, columns.dtype))
    halved = padded.reshape(-1, 2).max(axis=1)
    return np.append(halved, np.full(count - len(halved), empty, columns.dtype))
