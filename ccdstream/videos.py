"""Which videos a run leaves, and what makes each kind.

A kind takes what a run has for it: the drawn frames, through `overlay` and `sink`, or only the
alerts, when the last frame is through. What it leaves, and from what time on, it says afterwards.

    none            nothing
    overlay         the recording with its overlay, encoded
    side-by-side    the recording, and beside it the same with its overlay, encoded
    chapters        a copy of the recording, not encoded, with chapters at alerts
    clips           a copy around each alert, not encoded, with a chapter at it
"""

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import cv2
import numpy as np

from ccdstream.alert import Alert
from ccdstream.bundle import Bundle
from ccdstream.decode import VideoSource
from ccdstream.encode import Chapter, VideoSink
from ccdstream.frames import Colour, FieldOfView, Frame, Fused
from ccdstream.packets import AudioSource
from ccdstream.pipeline import Drawer, Sink
from ccdstream.remux import Remuxer
from ccdstream.render import Overlay
from ccdstream.report.alerts import alert_title

VideoKind = Literal["overlay", "none", "chapters", "clips", "side-by-side"]

COPIED: frozenset[VideoKind] = frozenset(("chapters", "clips"))
"""Kinds that hold the recording's pictures as they are."""

CLIP_S = 5.0
"""How much of the recording a clip shows before an alert, and after it."""

LATEST_START_S = Fraction(1, 2)
"""The overlay of a recording whose clock begins later begins at 0: Chromium takes the time before
the first frame off the end of what it plays, and cannot seek in the rest."""

MOST_PX = 4096
"""Widest and highest picture of a side-by-side video: what hardware decodes of H.264."""

_NAMES: dict[VideoKind, str] = {
    "overlay": r"overlay\.mp4",
    "side-by-side": r"side-by-side\.mp4",
    "chapters": r"chapters\.(?:mp4|mkv)",
    "clips": r"alert-\d+\.(?:mp4|mkv)",
}
"""What follows `STEM.` in the names of each kind."""

VIDEO_NAME = re.compile(rf"(.+)\.(?:{'|'.join(_NAMES.values())})", re.DOTALL)
"""What videos that runs leave are called, and so no recording of the folder that they lie in. Its
group is what their recording is called."""


def videos_there(folder: Path, stem: str, kind: VideoKind | None = None) -> list[Path]:
    """The videos of a recording that runs left in `folder`: of one kind, or of any."""
    kinds = _NAMES.values() if kind is None else [_NAMES[kind]] if kind in _NAMES else []
    name = re.compile(rf"{re.escape(stem)}\.(?:{'|'.join(kinds)})") if kinds else None
    try:
        there = os.listdir(folder)
    except OSError:  # it is then no place with videos
        return []
    found = [each for each in there if name is not None and name.fullmatch(each)]
    return [folder / each for each in sorted(found, key=lambda each: (len(each), each))]


@dataclass(frozen=True, slots=True)
class Clip:
    """The clip of an alert."""

    alert: int
    """Its number."""
    file: Path
    offset_s: float
    """Stream time at the start of the clip."""
    end_s: float
    """Stream time at its end."""


@dataclass(frozen=True, slots=True)
class Made:
    """What videos are made of, and where they go."""

    source: VideoSource
    bundle: Bundle
    start_s: float | None
    end_s: float | None
    sound: bool
    """Whether they are to have the recording's sound."""
    metadata: Mapping[str, Mapping[str, str]] | None
    """What they are to say of themselves, as in `VideoSource.metadata`; None: nothing."""
    gpu: int | None
    """Whose encoder may be used."""
    place: Callable[[str], Path]
    """Where to write what will be called `STEM.ENDING`, by its ending."""


@dataclass(slots=True)
class Videos:
    """The videos of one run; a context manager, and they are whole when the block is left. This
    one leaves none.

    Raises:
        OutputError: one cannot be written.
    """

    made: Made
    overlay: Drawer | None = None
    """Draws the frames that `sink` takes; None where none are drawn."""
    sink: Sink | None = None
    encoder: str | None = None
    """What encodes; "copy" where nothing is encoded, None where there is no video."""
    encoder_note: str = ""
    offset_s: float = 0.0
    """Stream time at the start of the video."""
    whole: Path | None = None
    """Where the one video of all that was analysed is written; None where there is none."""
    clips: list[Clip] = field(default_factory=list)
    playable: bool = True
    """Whether browsers play what is left."""
    notes: list[str] = field(default_factory=list)
    """What people should know, one sentence each."""
    warnings: list[str] = field(default_factory=list)
    """What is not as in the source, one sentence each."""

    def finish(self, alerts: Sequence[Alert], until_s: float | None) -> None:
        """Take the alerts, once the last frame was written.

        Args:
            until_s: the end of what was analysed, where that is not the end of what was asked for.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing is open."""


def make_videos(kind: VideoKind, made: Made) -> Videos:
    """What makes the videos of a kind."""
    kinds: dict[VideoKind, type[Videos]] = {
        "none": Videos,
        "overlay": OverlayVideo,
        "side-by-side": SideBySideVideo,
        "chapters": ChapteredCopy,
        "clips": AlertClips,
    }
    return kinds[kind](made)


# -- encoded ---------------------------------------------------------------------------------------


class OverlayVideo(Videos):
    """The recording with its overlay."""

    ending = "overlay.mp4"

    def __enter__(self) -> Self:
        made = self.made
        self.overlay = self._drawer()
        self._stack = ExitStack()
        self.whole = made.place(self.ending)
        with ExitStack() as stack:
            audio = stack.enter_context(made.source.open_audio()) if made.sound else None
            self._file = VideoSink(
                self.whole,
                self._stream(),
                audio=audio,
                offset_pts=made.source.first_pts
                if made.start_s is not None
                else _late_start(made.source, audio),
                encode_on=made.gpu,
                metadata=made.metadata,
            )
            stack.enter_context(self._file)
            self._stack = stack.pop_all()
        self.sink = self._file
        self.encoder, self.encoder_note = self._file.encoder, self._file.encoder_note
        return self

    def _drawer(self) -> Drawer:
        source = self.made.source
        return Overlay(
            source.size,
            source.colour,
            enter=self.made.bundle.alert["enter"],
            start_s=float(source.first_pts * source.time_base),
            duration_s=source.duration_s,
        )

    def _stream(self) -> Any:
        return self.made.source

    def finish(self, alerts: Sequence[Alert], until_s: float | None) -> None:
        self._file.chapters(_chapters(alerts))
        if until_s is not None:
            self._file.end_sound_with_video()
        self.offset_s = self._file.zero_s

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)
        self.warnings += self._file.notes


class SideBySideVideo(OverlayVideo):
    """The recording at the left, and at the right the same with its overlay."""

    ending = "side-by-side.mp4"

    def _drawer(self) -> Drawer:
        drawer = SideBySide(super()._drawer(), self.made.source.size)
        height, width = self.made.source.size
        if drawer.scaled:
            high, wide = drawer.size
            self.notes.append(
                f"each half is scaled from {width} x {height} to {wide // 2} x {high}: players do "
                f"not expect pictures of more than {MOST_PX} pixels a side"
            )
        self._size = drawer.size
        return drawer

    def _stream(self) -> Any:
        return _Resized(self.made.source, self._size)


class SideBySide:
    """Draws frames with their overlay beside themselves.

    Args:
        overlay: what draws the overlay.
        source: (height, width) of the frames.

    Attributes:
        size: (height, width) of what it draws. An odd width is made even first, by repeating the
            last column, and what would be larger than `MOST_PX` is scaled down.
        scaled: whether it is scaled down.
    """

    def __init__(self, overlay: Drawer, source: tuple[int, int]) -> None:
        self._overlay = overlay
        height, width = source
        half = width + width % 2
        factor = min(1.0, MOST_PX / (2 * half), MOST_PX / height)
        self.scaled = factor < 1
        if self.scaled:
            height = max(2, int(height * factor) // 2 * 2)
            half = max(2, int(half * factor) // 2 * 2)
        self.size = (height, 2 * half)

    def draw(
        self, frame: Frame, field: FieldOfView, fused: Fused, state: str, seconds: float
    ) -> Frame:
        """As `Overlay.draw`: a frame of `size`."""
        drawn = self._overlay.draw(frame, field, fused, state, seconds)
        height, width = self.size
        luma, chroma = (height, width // 2), ((height + 1) // 2, width // 4)

        def pair(left: np.ndarray, right: np.ndarray, size: tuple[int, int]) -> np.ndarray:
            return np.concatenate([self._fit(left, size), self._fit(right, size)], axis=1)

        return Frame(
            pair(frame.y, drawn.y, luma),
            pair(frame.u, drawn.u, chroma),
            pair(frame.v, drawn.v, chroma),
            frame.pts,
            frame.time_base,
            frame.colour,
        )

    def _fit(self, plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        if self.scaled:
            return cv2.resize(plane, size[::-1], interpolation=cv2.INTER_AREA)
        if plane.shape[1] < size[1]:
            return np.concatenate([plane, plane[:, -1:]], axis=1)
        return plane


class _Resized:
    """A `StreamLike` whose frames have another size."""

    def __init__(self, source: VideoSource, size: tuple[int, int]) -> None:
        self._source = source
        self.size = size
        self.time_base: Fraction = source.time_base
        self.average_rate: Fraction = source.average_rate
        self.sample_aspect_ratio: Fraction = source.sample_aspect_ratio
        self.colour: Colour = source.colour
        self.colour_tags: tuple[int, int, int] = source.colour_tags

    @property
    def last_duration(self) -> int | None:
        return self._source.last_duration


def _late_start(source: VideoSource, audio: AudioSource | None) -> int:
    """The pts at which a whole recording begins, its sound too, if that is late; else 0."""
    starts_s = [source.first_pts * source.time_base]
    stream = None if audio is None else audio.stream
    if stream is not None and stream.start_time is not None and stream.time_base is not None:
        starts_s.append(stream.start_time * stream.time_base)
    late = min(starts_s) > LATEST_START_S
    return math.floor(min(starts_s) / source.time_base) if late else 0


def _chapters(alerts: Sequence[Alert]) -> list[Chapter]:
    return [Chapter(a.start_s, max(a.end_s, a.start_s), alert_title(a)) for a in alerts]


# -- copied ----------------------------------------------------------------------------------------

_BROWSERS_PLAY = frozenset(("h264", "vp9", "av1"))
_BROWSERS_SHOW = frozenset(("yuv420p", "yuvj420p"))


class _Copies(Videos):
    """What is copied of the recording, once its alerts are known."""

    def __enter__(self) -> Self:
        made = self.made
        self._remuxer = Remuxer(made.source.path, metadata=made.metadata)
        self.encoder = "copy"
        self.playable = (
            self._remuxer.suffix == "mp4"
            and self._remuxer.codec in _BROWSERS_PLAY
            and made.source.pix_fmt in _BROWSERS_SHOW
        )
        if self._remuxer.why_not_mp4:
            self.notes.append(f"written as {self._remuxer.why_not_mp4}")
        return self

    def finish(self, alerts: Sequence[Alert], until_s: float | None) -> None:
        problems = self.made.source.problems
        mended = problems.missing_pts + problems.non_monotonic + problems.clock_jumps
        self._remuxer.trust_times &= not mended
        ends = [end for end in (self.made.end_s, until_s) if end is not None]
        self._copy(alerts, min(ends, default=None))

    def _copy(self, alerts: Sequence[Alert], end_s: float | None) -> None:
        raise NotImplementedError


class ChapteredCopy(_Copies):
    """A copy of the recording with chapters at alerts."""

    def __enter__(self) -> Self:
        super().__enter__()
        self.whole = self.made.place(f"chapters.{self._remuxer.suffix}")
        return self

    def _copy(self, alerts: Sequence[Alert], end_s: float | None) -> None:
        assert self.whole is not None
        start_s = self.made.start_s
        copied = self._remuxer.copy(
            self.whole, start_s=start_s, end_s=end_s, chapters=_chapters(alerts)
        )
        self.offset_s = float(copied.offset_s)
        self.warnings += copied.warnings
        if start_s is not None:
            self.notes.append(
                f"the copy begins at {self.offset_s:.3f} s of the recording, with the last "
                f"keyframe up to {start_s:g} s"
            )


class AlertClips(_Copies):
    """A copy around each alert."""

    def _copy(self, alerts: Sequence[Alert], end_s: float | None) -> None:
        told: dict[str, None] = {}
        start_s = self.made.start_s
        for alert in alerts:
            place = self.made.place(f"alert-{alert.number}.{self._remuxer.suffix}")
            since, until = alert.start_s - CLIP_S, alert.end_s + CLIP_S
            copied = self._remuxer.copy(
                place,
                # not beyond the stretch: who asks for it may have reasons to leave out the rest
                start_s=since if start_s is None else max(since, start_s),
                end_s=until if end_s is None else min(until, end_s),
                chapters=_chapters([alert]),
                between="Around the alert",  # another alert may lie there
            )
            told.update(dict.fromkeys(copied.warnings))
            self.clips.append(
                Clip(alert.number, place, float(copied.offset_s), float(copied.end_s))
            )
        self.warnings += told
        if not alerts:
            self.notes.append("no alerts, so no clips")
