"""A recording played at its own rate, as if it came from a camera."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ccdstream.decode import VideoSource, refuse_picture
from ccdstream.errors import show_path
from ccdstream.frames import DeviceFrame, Frame
from ccdstream.live.negotiate import require
from ccdstream.live.records import Mode, Wanted


class Pace:
    """Waits until the time of a frame has come. The first one comes at once and sets the clock.

    Args:
        clock: seconds, never going back.
        sleep: waits for so many seconds.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._origin: float | None = None

    def wait(self, seconds: float) -> None:
        """Return when `seconds` of stream time have come; at once where they are past."""
        if self._origin is None:
            self._origin = self._clock() - seconds
        due = self._origin + seconds
        while (left := due - self._clock()) > 0:
            self._sleep(left)


class _Playing:
    """A recording that is being played."""

    def __init__(self, source: VideoSource, pace: Pace) -> None:
        self.mode = Mode(
            size=source.size,
            rate=source.average_rate,
            pixel_format=source.pix_fmt,
            through="FFmpeg, at the recording's own rate",
            sample_aspect_ratio=source.sample_aspect_ratio,
        )
        self._frames: Iterator[Frame | DeviceFrame] = iter(source)
        self._pace = pace

    def read(self) -> Frame | None:
        """The next frame, when its time has come; None at the end."""
        frame = next(self._frames, None)
        if frame is None:
            return None
        assert isinstance(frame, Frame)  # no GPU was asked to decode
        self._pace.wait(frame.seconds)
        return frame


class PacedFile:
    """A recording as a `LiveSource`: its end is the end of the session.

    A frame is never handed out before its time. One that is late, because decoding or whoever reads
    was slow, is handed out at once, and the clock stays as it is.

    Args:
        path: as for `VideoSource`.
        wanted: what it must be, as nothing is converted.
        clock, sleep: as for `Pace`.
    """

    ends = True

    def __init__(
        self,
        path: Path,
        wanted: Wanted | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._path = path
        self._wanted = wanted or Wanted()
        self._clock = clock
        self._sleep = sleep
        self.name = show_path(path)

    def check(self) -> None:
        """Raise what `connect` would."""
        with self.connect():
            pass

    @contextmanager
    def connect(self) -> Iterator[_Playing]:
        """Open it, from its beginning.

        Raises:
            VideoOpenError, VideoDecodeError: as `VideoSource`; or it is not as wanted.
        """
        with VideoSource(self._path) as source:
            refuse_picture(source)
            playing = _Playing(source, Pace(self._clock, self._sleep))
            require(self.name, playing.mode, self._wanted, "A recording is taken as it is.")
            yield playing
