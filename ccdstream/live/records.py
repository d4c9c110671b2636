"""Records that travel between the parts of a live session. They hold data; they do no work."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, Protocol

from ccdstream.frames import Frame

TIME_BASE = Fraction(1, 90_000)
"""Of a live session's own clock: stream time is the time since its first frame arrived."""

StatusKind = Literal["READY", "NO SIGNAL", "OUT OF VIEW", "UNCLEAR", "LAG"]
"""READY: the picture is analysed within the bound. NO SIGNAL: none comes. OUT OF VIEW: it shows no
bowel. UNCLEAR: it tells nothing. LAG: the analysis is later than the bound, its heat withdrawn."""


@dataclass(frozen=True, slots=True)
class Mode:
    """What a source delivers, as it was negotiated."""

    size: tuple[int, int]
    """(height, width), in pixels."""
    rate: Fraction | None
    """Frames a second; None where the source does not say."""
    pixel_format: str
    """In the source's own words, such as "mjpeg" or "yuyv422"."""
    through: str
    """What reads it, such as "FFmpeg v4l2" or "OpenCV V4L2"."""
    sample_aspect_ratio: Fraction = Fraction(1)
    """Width of a pixel by its height; 1 where the source does not say."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of a source; None for whatever it likes."""

    size: tuple[int, int] | None = None
    """(height, width), in pixels."""
    rate: Fraction | None = None
    pixel_format: str | None = None


class Connection(Protocol):
    """An open source."""

    @property
    def mode(self) -> Mode:
        """What it delivers, as of the frame that was read last."""

    def read(self) -> Frame | None:
        """The next frame, on the source's own clock and of any size; None at its end.

        May block. A network source ends its own reads by a time-out; where nothing can end one, the
        capture gives the connection up and opens another.

        Raises:
            SourceLost: the signal was lost; another connection may find it again.
        """


class LiveSource(Protocol):
    """Something that frames can be had from, again and again."""

    @property
    def name(self) -> str:
        """To show: as the user wrote it, without a password."""

    @property
    def ends(self) -> bool:
        """Whether its end is the end of the session (a file), and not a lost signal."""

    def connect(self) -> AbstractContextManager[Connection]:
        """Open it.

        Raises:
            SourceLost: it is not there right now.
            VideoOpenError: it cannot be had as asked, now or later: no such device, another mode.
        """


class SourceLost(Exception):
    """The signal is lost, for the reason that the message gives in a few words."""


@dataclass(frozen=True, slots=True, eq=False)
class Captured:
    """A frame as it arrived: its pts is on the session's clock, in units of `TIME_BASE`."""

    frame: Frame
    number: int
    """Of the frames that were captured in the session, from 0; what is skipped was dropped."""
    at_s: float
    """`time.monotonic()` when the whole picture was there."""
    wall_s: float
    """`time.time()` of that moment."""
    connection: int
    """Number of the connection that it came by, from 0; a new one follows a gap."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch without a picture."""

    start_s: float
    """Stream time of the last frame before it; 0 where there was none."""
    end_s: float | None
    """Stream time of the first frame after it; None while it lasts."""
    cause: str
    """In a few words, such as "no frame for 2.0 s" or "connection refused"."""


@dataclass(frozen=True, slots=True)
class Status:
    """What the viewer is told of the picture, always."""

    kind: StatusKind
    detail: str = ""
    """Such as "230 ms", "blurred", "connection refused, next try in 4 s"."""


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """A picture for those who watch."""

    frame: Frame | None
    """With its overlay; the plain picture where its analysis came too late; None without a signal:
    an old picture is never shown again."""
    number: int
    """Of what was shown, from 1."""
    stream_s: float
    captured_at_s: float
    """`time.monotonic()` of the capture."""
    status: Status
    state: str
    """NORMAL, WATCH, ALERT or UNCLEAR; empty where there is no analysis."""
    score: float | None
    """Smoothed, calibrated; None where the frame has none."""
    delay_s: float
    """From capture to here."""


@dataclass(frozen=True, slots=True, eq=False)
class AlertCard:
    """An alert in the list of those who watch: open first, then replaced by the closed one."""

    number: int
    opened_s: float
    """Stream time of its first frame."""
    opened_wall_s: float
    closed_s: float | None
    """Stream time of its last frame; None while it is open."""
    peak_s: float
    peak_score: float
    clock: int | str | None
    thumbnail: bytes
    """JPEG of the peak so far, with its overlay."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened: a line of events.jsonl, and of `--log-json`."""

    kind: str
    """session_started, connected, gap_opened, gap_closed, size_changed, alert_opened, alert_closed,
    segment_opened, segment_closed, clip_written, mark, snapshot, recorder_failed, journal_failed,
    part_failed, lag_opened, lag_closed, session_ended."""
    wall_s: float
    stream_s: float
    data: Mapping[str, Any] = field(default_factory=dict)
    """More of it, by kind, in types that JSON knows."""
