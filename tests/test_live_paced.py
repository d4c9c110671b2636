"""A recording as if it were live: at its own rate, by a clock that the tests hold."""

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from ccdstream.errors import VideoOpenError
from ccdstream.live.capture import Capture
from ccdstream.live.paced import Pace, PacedFile
from ccdstream.live.records import Wanted
from tests.videos import index_of, make_video


class Clock:
    """Stands still but for those who sleep."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept.append(round(seconds, 6))
        self.now += seconds


def test_each_time_is_waited_for_and_the_first_sets_the_clock() -> None:
    clock = Clock()
    pace = Pace(clock, clock.sleep)
    for seconds in (7.0, 7.04, 7.5):
        pace.wait(seconds)
    assert clock.slept == [0.04, 0.46]


def test_a_late_one_is_not_waited_for_and_does_not_move_those_after_it() -> None:
    clock = Clock()
    pace = Pace(clock, clock.sleep)
    pace.wait(0.0)
    clock.now += 0.1
    pace.wait(0.04)
    pace.wait(0.08)
    pace.wait(0.12)
    assert clock.slept == [0.02]


def test_a_recording_is_played_at_its_own_times(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mkv", codec="ffv1", frames=4, pts=[0, 1, 5, 6])
    clock = Clock()
    source = PacedFile(path, clock=clock, sleep=clock.sleep)
    assert source.ends and source.name == str(path)
    with source.connect() as connection:
        assert connection.mode.size == (48, 64) and connection.mode.pixel_format == "yuv420p"
        seen = [(index_of(frame.y), round(clock.now, 3)) for frame in iter(connection.read, None)]
        assert connection.read() is None
    assert seen == [(0, 100.0), (1, 100.04), (2, 100.2), (3, 100.24)]


def test_a_recording_played_into_a_capture_ends_the_session(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", frames=6)
    numbers = []
    with Capture(PacedFile(path), timeout_s=30.0, on_event=lambda _: None) as capture:
        while not capture.over:
            if (captured := capture.newest(30.0)) is not None:
                numbers.append(index_of(captured.frame.y))
        assert capture.captured == 6 and capture.gaps == 0
        assert len(numbers) + capture.dropped == 6
    assert numbers == sorted(numbers) and numbers[-1] == 5


def test_a_recording_that_is_not_as_wanted_is_an_error(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4")
    with (
        pytest.raises(VideoOpenError, match="asked for 50 frames/s, and delivers 64x48"),
        PacedFile(path, Wanted(size=(48, 64), rate=Fraction(50))).connect(),
    ):
        pass


def test_a_file_that_is_no_recording_is_the_error_of_any_run(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_text("nothing")
    with pytest.raises(VideoOpenError, match="as a video"), PacedFile(path).connect():
        pass


def test_a_still_picture_is_not_played(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    written, data = cv2.imencode(".png", np.full((48, 64, 3), 200, np.uint8))
    assert written
    path.write_bytes(data.tobytes())
    with (
        pytest.raises(VideoOpenError, match=r"photo\.png is a still picture"),
        PacedFile(path).connect(),
    ):
        pytest.fail("it was opened")


def test_the_shape_of_the_pixels_is_told(tmp_path: Path) -> None:
    for ratio in (None, Fraction(64, 45)):
        path = make_video(tmp_path / f"{ratio is None}.mp4", sample_aspect_ratio=ratio)
        with PacedFile(path).connect() as playing:
            assert playing.mode.sample_aspect_ratio == (ratio or 1)
