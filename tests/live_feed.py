"""A session that is none: puts rendered pictures with real overlays on a board, at their own pace.

    python tests/live_feed.py [--port 8765] [--seconds 60]

serves the page over it, to look at. Tests use `pictures` and `Feed` without a browser or with one.
"""

import argparse
import math
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from functools import cache
from typing import Any, Self

import cv2
import numpy as np

from ccdstream import sample
from ccdstream.alert import clock_position
from ccdstream.frames import FieldOfView, Frame, Fused
from ccdstream.jpeg import jpeg_of
from ccdstream.live.board import Board
from ccdstream.live.metrics import delay_figures
from ccdstream.live.records import TIME_BASE, AlertCard, Shown, Status
from ccdstream.render import Overlay

ENTER = 0.95
FACTS: Mapping[str, Any] = {
    "source": "/dev/video0  Capture HDMI",
    "mode": "720x576, 25/s, yuyv422, FFmpeg v4l2",
    "model": "ccd-quick-student-427c5c400b0f",
    "enter": ENTER,
    "max_latency_s": 0.1,
    "recording": "live.overlay.000.mp4",
    "recording_failed": None,
}


@cache
def plain_frames(seconds: float, size: tuple[int, int], rate: int) -> list[tuple[Frame, tuple]]:
    """Frames of the sample procedure and the lesion box of each, (x, y, w, h), or ()."""
    options = sample.SampleOptions(seconds=seconds, size=size, rate=Fraction(rate))
    return [
        (
            frame,
            truth.boxes[0] if truth.boxes else (),
        )
        for frame, truth in sample.frames(options)
    ]


def field_of(frame: Frame) -> FieldOfView:
    """Where the scope's picture lies: the box of what is not black, as an octagon."""
    bright = cv2.blur(frame.y, (9, 9)) > 28
    ys, xs = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
    if not len(ys):
        ys, xs = np.arange(frame.size[0]), np.arange(frame.size[1])
    x, y, w, h = int(xs[0]), int(ys[0]), int(xs[-1] - xs[0] + 1), int(ys[-1] - ys[0] + 1)
    cut = min(w, h) // 7
    corners = [(cut, 0), (w - cut, 0), (w, cut), (w, h - cut), (w - cut, h), (cut, h), (0, h - cut)]
    corners.append((0, cut))
    outline = np.array([(x + min(a, w - 1), y + min(b, h - 1)) for a, b in corners], np.int32)
    return FieldOfView(x, y, w, h, outline)


def fused_of(box: tuple, field: FieldOfView, score: float, quality: tuple[str, ...]) -> Fused:
    """Heat where the lesion is, and the score as given."""

    def heat() -> np.ndarray:
        ys, xs = np.mgrid[0:32, 0:32].astype(np.float32) / 32
        if not box:
            return np.full((32, 32), 0.5, np.float32)
        at_x = (box[0] + box[2] / 2 - field.x) / field.width
        at_y = (box[1] + box[3] / 2 - field.y) / field.height
        wide = max(box[2] / field.width, 0.1) * 0.6, max(box[3] / field.height, 0.1) * 0.6
        away = ((xs - at_x) / wide[0]) ** 2 + ((ys - at_y) / wide[1]) ** 2
        return (0.5 + 0.4999 * np.exp(-away / 2)).astype(np.float32)

    return Fused(score, score, score, heat, quality, 0.9)


class Feed:
    """Shows the procedure over and over on `board` while the block runs, in a thread."""

    def __init__(
        self,
        board: Board,
        *,
        size: tuple[int, int] = (576, 720),
        rate: int = 25,
        loop_s: float = 20.0,
        past_s: float = 0.0,
        facts: Mapping[str, Any] = FACTS,
    ) -> None:
        """
        Args:
            board: where it is shown.
            size: (height, width).
            rate: frames a second.
            loop_s: seconds of procedure that are repeated.
            past_s: seconds that the session has already gone on for.
            facts: told on the board.
        """
        self.board, self.rate, self.past_s = board, rate, past_s
        board.tell(facts)
        self.frames = plain_frames(loop_s, size, rate)
        self.status: Status | None = None
        """Shown in place of what the frame is; NO SIGNAL takes the picture away."""
        self.paused = threading.Event()
        """While set, nothing is put on the board: the session is stuck."""
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._alert: AlertCard | None = None
        self._alerts = 0
        self._smoothed = 0.6

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        size = self.frames[0][0].size
        overlay = Overlay(size, self.frames[0][0].colour, enter=ENTER)
        field = field_of(self.frames[0][0])
        self._started_wall = time.time() - self.past_s
        self.board.tell({"started_wall": self._started_wall})
        number, delays = 0, []
        dropped = 0
        past = int(self.past_s * self.rate)
        start = time.monotonic()
        index = -past
        while not self._end.is_set():
            stream_s = (index + past) / self.rate
            frame, box = self.frames[(index + past) % len(self.frames)]
            state, score, quality = self._judge(box, stream_s)
            if index < 0:  # what went before: scores and alerts without the waiting
                if index % 5 == 0:
                    self.board.show(Shown(None, 1, stream_s, 0.0, Status("READY"), state, score, 0))
                if self._alert_due(state):
                    self._track(frame, box, field, state, score, stream_s)
                index += 1
                start = time.monotonic()
                continue
            due = start + index / self.rate
            captured_s = time.monotonic()
            if captured_s < due:
                self._end.wait(due - captured_s)
            elif captured_s > due + 1 / self.rate:
                index += 1
                dropped += 1
                continue
            captured_s = time.monotonic()
            if self.paused.is_set():
                index += 1
                continue
            pts = int(stream_s / TIME_BASE)
            fused = fused_of(box, field, score or 0.0, quality)
            frame = replace(frame, pts=pts, time_base=TIME_BASE)
            drawn = overlay.draw(frame, field, fused, state, stream_s)
            number += 1
            status = self.status or Status("READY")
            delay_s = time.monotonic() - captured_s
            delays.append(delay_s)
            lost = status.kind == "NO SIGNAL"
            late = status.kind == "LAG"
            self.board.show(
                Shown(
                    None if lost else frame if late else drawn,
                    number,
                    stream_s,
                    captured_s,
                    status,
                    "" if lost or late else state,
                    None if lost or late else score,
                    delay_s,
                )
            )
            self._track(drawn, box, field, "" if lost else state, score, stream_s)
            counts = {"captured": number + dropped, "analysed": number, "shown": number}
            counts |= {"dropped.slot": dropped, "dropped.late": 0, "alerts": self._alerts}
            counts |= {"gaps": 0, "connections": 1}
            self.board.count(counts | delay_figures("capture_to_result", delays[-250:]))
            index += 1

    def _judge(self, box: tuple, stream_s: float) -> tuple[str, float | None, tuple[str, ...]]:
        if 10.2 <= stream_s % 20 < 11.2:
            return "UNCLEAR", None, ("blurred",)
        wobble = 0.12 * math.sin(stream_s * 1.7) + 0.08 * math.sin(stream_s * 5.3)
        target = 0.993 + 0.004 * wobble if box else 0.72 + wobble
        self._smoothed += 0.22 * (target - self._smoothed)
        score = float(np.clip(self._smoothed, 0, 0.9995))
        state = "ALERT" if score >= ENTER else "WATCH" if score >= 0.9 else "NORMAL"
        return state, score, ()

    def _alert_due(self, state: str) -> bool:
        return state == "ALERT" or self._alert is not None

    def _track(
        self,
        frame: Frame,
        box: tuple,
        field: FieldOfView,
        state: str,
        score: float | None,
        stream_s: float,
    ) -> None:
        card = self._alert
        if state == "ALERT" and score is not None:
            clock = clock_position(field, box[0] + box[2] / 2, box[1] + box[3] / 2) if box else None
            if card is None:
                self._alerts += 1
                wall = self._started_wall + stream_s
                picture = jpeg_of(frame, width=240)
                card = AlertCard(
                    self._alerts, stream_s, wall, None, stream_s, score, clock, picture
                )
                self.board.put_alert(card)
            elif score > card.peak_score + 0.004:
                card = replace(
                    card, peak_s=stream_s, peak_score=score, clock=clock or card.clock,
                    thumbnail=jpeg_of(frame, width=240),
                )  # fmt: skip
                self.board.put_alert(card)
            self._alert = card
        elif card is not None:
            self.board.put_alert(replace(card, closed_s=stream_s))
            self._alert = None


def _main() -> Iterator[str]:
    from ccdstream.live.serve import Watch

    parser = argparse.ArgumentParser(description="the page over a rendered procedure")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--past", type=float, default=90)
    parser.add_argument("--wide", action="store_true", help="1920x1080 in place of 720x576")
    given = parser.parse_args()
    board = Board()
    size = (1080, 1920) if given.wide else (576, 720)
    with (
        Feed(board, size=size, past_s=given.past),
        Watch(board, host=given.host, port=given.port) as watch,
    ):
        yield watch.url
        time.sleep(given.seconds)


if __name__ == "__main__":
    for url in _main():
        print(url, flush=True)
