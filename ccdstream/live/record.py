"""What is shown in a live session -> video files that survive a crash.

    write -> queue -> x264 in a thread of its own -> packets -> segments  STEM.000.mp4, STEM.001.mp4
                                                            +-> ring -> clips  clips/alert-003.mp4

The frames are encoded once. Everything written is H.264 in fragmented MP4, a fragment a second, and
a fragment is written whole and brought to the disk, so a crash or a power cut costs the last second
or two. Segments grow under their final names and keep the session's clock: a player shows the
stream time that the alerts are told in. Clips start at 0 and appear whole.

What cannot be held is not waited for: a frame that the encoder has no time for is left out and
counted, and where the disk is full the recording stops and the session goes on.

What is told, and the data of each:

    segment_opened    file, cause ("start", "length", "size", "colour" or "pause"), width, height
    segment_closed    file, cause (of the next segment, or "end"), start_s, end_s, frames, bytes
    clip_written      alert, file, start_s, end_s, frames, cut_short (it ends before its `post_s`)
    recorder_failed   recorder (its stem), reason; with a segment open file and kept_to_s, the
                      stream time up to which it can be played; traceback where it is a bug
"""

import glob
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self

import av
from av.packet import Packet
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from ccdstream.encode import cannot_write, keep_name, part_of, planar, tag_colour
from ccdstream.errors import OutputError, show_path
from ccdstream.frames import Colour, Frame
from ccdstream.live.append import Appended, OpenFile, new_file
from ccdstream.live.failures import bug
from ccdstream.live.records import TIME_BASE, Event

KEYFRAME_S = 1.0
"""From one keyframe to the next: what a crash may cost, and how exactly a clip can begin."""
GAP_S = 2.0
"""After a longer pause a new segment begins. In one file its last picture would be shown all the
while, as if it were still so."""
TOLD_WITHIN_S = 5.0
"""An alert may be told this long after its start, and its clip still has all of its `pre_s`."""

_PIXELS_PER_S = 40_000_000
"""For one thread of x264 by default: about half of what it encodes with this preset on a slow core,
so that it keeps up, and takes no more cores than it needs."""

_GLOBAL_HEADER = 1 << 22
"""AV_CODEC_FLAG_GLOBAL_HEADER: parameter sets go into the container, which MP4 wants."""

_MOVFLAGS = "frag_keyframe+empty_moov+default_base_moof+frag_discont"
"""The last one, with time stamps left as they are, keeps a start other than 0."""


@dataclass(frozen=True, slots=True)
class ClipRule:
    """How much of the video around an alert goes into its clip."""

    pre_s: float = 5.0
    post_s: float = 5.0
    most_bytes: int = 128 << 20
    """Of what is held for the time before alerts. Where the video needs more, a clip begins later;
    what came since the last keyframe is held in any case."""


@dataclass(frozen=True, slots=True)
class Coding:
    """What an encoder is told."""

    size: tuple[int, int]
    """(height, width) of every picture, both even."""
    colour: Colour
    sample_aspect_ratio: Fraction
    rate: Fraction
    """Frames a second, about; each comes with its own time."""
    crf: int
    preset: str
    threads: int


class Encoder(Protocol):
    """Pictures -> packets, in the order they came in."""

    @property
    def stream(self) -> VideoStream:
        """What a container must know of the packets."""

    def encode(self, picture: VideoFrame | None) -> "Iterable[Packet[VideoStream]]":
        """Take the next picture, or None at the end; give the packets that are ready."""

    def close(self) -> None: ...


class X264:
    """x264, without frames that depend on later ones and without looking ahead: a packet for each
    picture at once, so that little is lost in a crash."""

    def __init__(self, coding: Coding) -> None:
        # Its container goes nowhere: the packets are given to several others.
        self._container = av.open(os.devnull, "w", format="null")
        stream = self._container.add_stream("libx264", rate=coding.rate)
        assert isinstance(stream, VideoStream)
        stream.time_base = TIME_BASE
        context = stream.codec_context
        context.time_base = TIME_BASE
        context.height, context.width = coding.size
        context.pix_fmt = "yuv420p"
        context.thread_count = coding.threads
        context.sample_aspect_ratio = coding.sample_aspect_ratio
        tag_colour(context, coding.colour)
        context.flags |= _GLOBAL_HEADER
        context.gop_size = 10_000  # the recorder says when, by time and not by count
        context.options = {
            "crf": str(coding.crf),
            "preset": coding.preset,
            "tune": "zerolatency",
            "forced-idr": "1",
            "sc_threshold": "0",
        }
        self._container.start_encoding()
        self.stream = stream

    def encode(self, picture: VideoFrame | None) -> "list[Packet[VideoStream]]":
        return self.stream.encode(picture)

    def close(self) -> None:
        self._container.close()


@dataclass(frozen=True, slots=True)
class Coded:
    """An encoded frame. Times are in units of `TIME_BASE`."""

    data: bytes
    pts: int
    duration: int
    key: bool


class PacketRing:
    """The last stretch of encoded video, from a keyframe on."""

    def __init__(self, keep_s: float, most_bytes: int) -> None:
        self._keep = round(keep_s / TIME_BASE)
        self._most = most_bytes
        self._groups: deque[list[Coded]] = deque()  # each begins with its only keyframe
        self.bytes = 0

    def add(self, coded: Coded) -> None:
        """Append the next frame; forget what is not needed any more, or too much."""
        if coded.key:
            self._groups.append([])
        self._groups[-1].append(coded)
        self.bytes += len(coded.data)
        while len(self._groups) > 1 and (
            self._groups[1][0].pts <= coded.pts - self._keep or self.bytes > self._most
        ):
            self.bytes -= sum(len(old.data) for old in self._groups.popleft())

    def since(self, pts: int) -> Iterator[Coded]:
        """Frames from the last keyframe at or before `pts` on, or from the oldest."""
        later = [group for group in list(self._groups)[1:] if group[0].pts > pts]
        for group in list(self._groups)[-1 - len(later) :]:
            yield from group

    def clear(self) -> None:
        """Forget everything."""
        self._groups.clear()
        self.bytes = 0


class _Fragments:
    """A file that grows by whole fragments, for PyAV to write into."""

    def __init__(self, path: Path, open_file: OpenFile, *, sync: bool) -> None:
        self.file = Appended(path, open_file)
        self._fragment = bytearray()
        self._sync = sync

    def write(self, data: bytes) -> int:
        """Keep what belongs to a fragment until `commit`."""
        self._fragment += data
        return len(data)

    def commit(self) -> bool:
        """Append the fragment, if there is one; False where there was none.

        Raises:
            OSError: it cannot be written, and nothing of it is left in the file.
        """
        fragment = bytes(self._fragment)
        self._fragment.clear()
        if fragment:
            self.file.append(fragment, sync=self._sync)
        return bool(fragment)

    @property
    def closed(self) -> bool:
        """Asked by PyAV before it writes the end of a container that nobody closed."""
        return self.file.closed


class _Mp4:
    """A fragmented MP4 in the making. What fails is an OutputError that names the file."""

    def __init__(
        self,
        path: Path,
        stream: VideoStream,
        *,
        start: int,
        zero: int,
        open_file: OpenFile,
        sync: bool,
    ) -> None:
        self.path = path
        self.start = self.end = self.kept = start
        """Stream time of what was added, and up to where it is in the file."""
        self.frames = self.kept_frames = 0
        """Added, and of those in the file."""
        self._zero = zero  # of the file's clock
        try:
            self._fragments = _Fragments(path, open_file, sync=sync)
        except OSError as error:
            raise cannot_write(path, error) from error
        try:
            self._container = av.open(
                self._fragments,
                "w",
                format="mp4",
                buffer_size=1 << 18,
                container_options={"movflags": _MOVFLAGS, "avoid_negative_ts": "disabled"},
            )
            self._stream = self._container.add_stream_from_template(stream, opaque=True)
            self._stream.time_base = TIME_BASE
            self._container.start_encoding()
            self._fragments.commit()
        except (av.FFmpegError, OSError) as error:
            self.discard()
            raise cannot_write(path, error) from error

    @property
    def length(self) -> int:
        """Bytes in the file."""
        return self._fragments.file.length

    def add(self, coded: Coded) -> None:
        """Append a frame; the first one must be a keyframe."""
        packet = Packet(coded.data)
        packet.pts = packet.dts = coded.pts - self._zero
        packet.duration, packet.time_base = coded.duration, TIME_BASE
        packet.is_keyframe = coded.key
        packet.stream = self._stream
        try:
            self._container.mux(packet)
            if self._fragments.commit():  # all before this keyframe
                self.kept, self.kept_frames = coded.pts, self.frames
        except (av.FFmpegError, OSError) as error:
            raise cannot_write(self.path, error) from error
        self.end = coded.pts + coded.duration
        self.frames += 1

    def close(self) -> None:
        """Write what is left, and bring it to the disk."""
        try:
            self._container.close()
            self._fragments.commit()
            self._fragments.file.sync()
            self.kept, self.kept_frames = self.end, self.frames
        except (av.FFmpegError, OSError) as error:
            raise cannot_write(self.path, error) from error
        finally:
            self._fragments.file.close()

    def abandon(self) -> None:
        """Leave the whole fragments that are in the file; without one no file."""
        self._fragments.file.close()
        if self.kept == self.start:
            self.discard()

    def discard(self) -> None:
        """Leave no trace."""
        self._fragments.file.close()
        with suppress(OSError):
            self.path.unlink()


class _Clip:
    """The video around an alert, in the making."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.part = part_of(path)
        self.until: int | None = None
        """Stream time of its end; None while the alert is open."""
        self.mp4: _Mp4 | None = None
        self.is_over = False
        """Nothing can follow on what it holds."""

    def close(self) -> None:
        """End the video; it is still without its name."""
        if self.mp4 is not None and not self.is_over:
            self.mp4.close()
        self.is_over = True

    def publish(self) -> None:
        """Give it its name."""
        try:
            if os.path.lexists(self.path):
                raise FileExistsError(None, "it is there already")
            os.rename(self.part, self.path)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        keep_name(self.path)

    def discard(self) -> None:
        """Leave no trace."""
        if self.mp4 is not None:
            self.mp4.discard()


class Recorder:
    """Writes what a session gives it, and never holds it up; a context manager.

        with Recorder(folder, "live.overlay", segment_s=600, clips=ClipRule(), ...) as recorder:
            recorder.write(frame)
            recorder.alert_opened(1, 12.4)

    Frames keep their times, in units of `TIME_BASE`, so a rate that varies survives. A new segment,
    with a new encoder, begins where the size or the colour changes and after a pause of `GAP_S`.

    Args:
        folder: made where it is missing. No file in it is ever replaced.
        stem: segments are called `STEM.000.mp4`, `STEM.001.mp4` and so on.
        size, colour: of the first frame, (height, width) in pixels. An odd size is made even by
            repeating the last row or column.
        sample_aspect_ratio: width of a pixel by its height, until `write` says another.
        rate_hint: frames a second, about.
        segment_s: a new file begins with the first keyframe after this time; None: never.
        clips: what to write around alerts, as `clips/alert-NNN.mp4`; None: nothing.
        segments: whether there are files other than clips.
        crf, preset: of x264. The fastest one leaves the CPU to the analysis, for larger files.
        threads: of x264; None: as many as pictures of this size at this rate need.
        on_event: told segment_opened, segment_closed, clip_written and recorder_failed; called in
            the recorder's thread.
        depth: most frames that wait to be encoded.
        open_encoder, open_file: what encodes, and what makes a new file.

    Attributes:
        frames: how many were encoded.
        given: how many frames it was given.
        dropped: how many of them were left out because the encoder was behind.
        lost: how many are missing because it failed, those that came afterwards among them.
        until_s: where it failed, the stream time up to which its segments can be played; None
            where there are none.
        pauses: how often no frame came for longer than `GAP_S`, and then one did.
        failed: why nothing is recorded any more, in a sentence; None while all is well.
        traceback: of the bug that it failed by; empty where it is none.

    Raises:
        OutputError: on entering, files of this name are there already, or none can be made.
    """

    def __init__(
        self,
        folder: Path,
        stem: str,
        *,
        size: tuple[int, int],
        colour: Colour,
        sample_aspect_ratio: Fraction | int = 1,
        rate_hint: Fraction | int,
        segment_s: float | None,
        clips: ClipRule | None,
        segments: bool = True,
        crf: int = 18,
        preset: str = "ultrafast",
        threads: int | None = None,
        on_event: Callable[[Event], None],
        depth: int = 8,
        open_encoder: Callable[[Coding], Encoder] = X264,
        open_file: OpenFile = new_file,
    ) -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        height, width = size
        rate = Fraction(rate_hint) if 1 <= rate_hint <= 1000 else Fraction(25)
        size = height + height % 2, width + width % 2
        self._threads = threads
        self._coding = Coding(
            size,
            colour,
            Fraction(sample_aspect_ratio),
            rate,
            crf,
            preset,
            threads or _threads_for(size, rate),
        )
        self.folder = folder
        self.stem = stem
        self.frames = 0
        self.given = self.dropped = self.lost = 0
        self.until_s: float | None = None
        self.pauses = 0
        self.failed: str | None = None
        self.traceback = ""
        self._segment_ticks = None if segment_s is None else round(segment_s / TIME_BASE)
        self._rule = clips
        self._has_segments = segments
        self._on_event = on_event
        self._depth = depth
        self._open_encoder = open_encoder
        self._open_file = open_file
        # between the threads
        self._changed = threading.Condition()
        self._tasks: deque[tuple[bool, Callable[[], None]]] = deque()  # (is a frame, what to do)
        self._waiting = 0  # frames among them
        self._over = False
        self._thread = threading.Thread(target=self._run, name=f"record {stem}", daemon=True)
        self._written: int | None = None  # pts of the last frame that was given
        # of the recorder's thread
        self._encoder: Encoder | None = None
        self._newest: int | None = None  # pts of the last picture of this encoder
        self._key = 0  # pts of the last keyframe that was asked for
        self._held: Coded | None = None  # shown until the next one, so not yet written
        self._segment: _Mp4 | None = None
        self._segments = 0
        self._closed: tuple[int, int] | None = None  # end of the last segment, frames of all
        self._cause = "start"  # of the next segment
        self._reached = 0  # stream time up to which frames were written
        rule = clips or ClipRule()
        self._ring = PacketRing(rule.pre_s + TOLD_WITHIN_S, rule.most_bytes)
        self._clips: dict[int, _Clip] = {}

    # -- the session's side ---------------------------------------------------------------------

    def __enter__(self) -> Self:
        folders = [self.folder, *([self._clip_path(0).parent] if self._rule else [])]
        try:
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
                if not os.access(folder, os.W_OK):
                    raise PermissionError(None, "it may not be written")
        except OSError as error:
            raise cannot_write(folder, error) from error
        self._refuse_existing()
        try:
            self._encoder = self._open_encoder(self._coding)
        except (av.FFmpegError, OSError, ValueError) as error:
            raise OutputError(f"x264 does not open, so nothing can be recorded: {error}") from error
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Encode what waits and finish every file, however the block is left."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
        self._thread.join()

    def write(self, frame: Frame, sample_aspect_ratio: Fraction | None = None) -> bool:
        """Take a frame to record. Never blocks; the planes are copied, and may change afterwards.

        Args:
            sample_aspect_ratio: width of a pixel by its height; None: as it was.

        Returns:
            False where the frame is left out: the encoder is behind, or the recording has failed.

        Raises:
            ValueError: the frame is not after the last one that was taken.
        """
        pts = round(frame.pts * frame.time_base / TIME_BASE)
        if self._written is not None and pts <= self._written:
            raise ValueError(f"pts {frame.pts} is not after that of the frame before")
        with self._changed:
            self.given += 1
            if self.failed is not None:
                self.lost += 1
                return False
            if self._waiting >= self._depth:
                self.dropped += 1
                return False
        self._written = pts
        picture = planar(frame)
        picture.pts, picture.time_base = pts, TIME_BASE
        task = partial(self._encode, picture, frame.colour, sample_aspect_ratio)
        self._ask(task, is_frame=True)
        return True

    def alert_opened(self, number: int, stream_s: float) -> None:
        """Begin a clip, from `pre_s` before `stream_s` on."""
        if self._rule is not None:
            self._ask(partial(self._begin_clip, number, _ticks(stream_s - self._rule.pre_s)))

    def alert_closed(self, number: int, stream_s: float, *, kept: bool = True) -> None:
        """End the clip `post_s` after `stream_s`, or now where that is past; with `kept` False
        throw it away."""
        if self._rule is not None:
            self._ask(partial(self._end_clip, number, _ticks(stream_s + self._rule.post_s), kept))

    def _ask(self, task: Callable[[], None], *, is_frame: bool = False) -> None:
        with self._changed:
            if self.failed is None:
                self._tasks.append((is_frame, task))
                self._waiting += is_frame
                self._changed.notify_all()

    def _refuse_existing(self) -> None:
        found = list(self.folder.glob(f"{glob.escape(self.stem)}.[0-9][0-9][0-9]*.mp4"))
        if not self._has_segments:
            found = []
        if self._rule is not None:
            found += self._clip_path(0).parent.glob("alert-*")
        if found:
            raise OutputError(
                f"{show_path(min(found))} is there already. Choose a new folder with --output."
            )

    # -- the recorder's thread ------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while (task := self._next()) is not None:
                task()
            self._end_stretch("end")
            for number in list(self._clips):
                self._publish(number)
        except OutputError as error:
            self._fail(str(error))
        except av.FFmpegError as error:
            self._fail(f"x264 failed: {error.strerror or error}.")
        except Exception as error:  # not swallowed: told, and `failed` is looked at
            self._fail(*bug(error, ""))
        finally:
            self._close_encoder()

    def _next(self) -> Callable[[], None] | None:
        """What to do next; None when the session is over and all is done."""
        with self._changed:
            self._changed.wait_for(lambda: self._tasks or self._over)
            if not self._tasks:
                return None
            is_frame, task = self._tasks.popleft()
            self._waiting -= is_frame
            return task

    def _fail(self, reason: str, trace: str = "") -> None:
        """Give up recording, and leave what is whole."""
        with self._changed:
            self.traceback = trace
            self.failed = f"{reason.strip()} The recording stops here; the session goes on."
            self._tasks.clear()
            self._waiting = 0
            segment, self._segment = self._segment, None
            self.lost = self.given - self.dropped - self._keep(segment)
        data: dict[str, Any] = {"recorder": self.stem, "reason": self.failed}
        if trace:
            data["traceback"] = trace
        if segment is not None:
            segment.abandon()
            data |= {"file": segment.path.name, "kept_to_s": _seconds(segment.kept)}
        for clip in self._clips.values():
            clip.discard()
        self._clips.clear()
        self._ring.clear()
        self._say("recorder_failed", self._reached, data)

    def _keep(self, segment: _Mp4 | None) -> int:
        """Frames that are in files though recording stops; of clips alone, those encoded."""
        end, frames = self._closed or (None, 0)
        if segment is not None and segment.kept_frames:
            end, frames = segment.kept, frames + segment.kept_frames
        self.until_s = None if end is None else _seconds(end)
        return frames if self._has_segments else self.frames

    def _say(self, kind: str, pts: int, data: dict[str, Any]) -> None:
        self._on_event(Event(kind, time.time(), _seconds(pts), data))

    # -- encoding -------------------------------------------------------------------------------

    def _encode(self, picture: VideoFrame, colour: Colour, ratio: Fraction | None) -> None:
        pts = picture.pts
        assert pts is not None
        before = self._coding
        size = picture.height, picture.width
        coding = replace(
            before,
            size=size,
            colour=colour,
            sample_aspect_ratio=ratio or before.sample_aspect_ratio,
            threads=self._threads or _threads_for(size, before.rate),
        )
        if coding != before:
            self._end_stretch(
                "size" if replace(coding, colour=before.colour) != before else "colour"
            )
        elif self._newest is not None and pts - self._newest > _ticks(GAP_S):
            self.pauses += 1
            self._end_stretch("pause")
        self._coding = coding
        if self._encoder is None:
            self._encoder = self._open_encoder(coding)
        if self._newest is None or pts - self._key >= _ticks(KEYFRAME_S):
            picture.pict_type = PictureType.I
            self._key = pts
        self._newest = pts
        self.frames += 1
        for packet in self._encoder.encode(picture):
            self._hold(packet)

    def _hold(self, packet: "Packet[VideoStream]") -> None:
        """Keep a packet until the next one tells how long its frame is shown."""
        assert packet.pts is not None
        held = self._held
        self._held = Coded(bytes(packet), packet.pts, 0, packet.is_keyframe)
        if held is not None:
            self._deliver(replace(held, duration=packet.pts - held.pts))

    def _end_stretch(self, cause: str) -> None:
        """Nothing can follow on what was encoded so far: finish what holds it.

        Args:
            cause: why the next segment begins, or "end".
        """
        if self._encoder is not None:
            for packet in self._encoder.encode(None):
                self._hold(packet)
        if self._held is not None:
            last, self._held = self._held, None
            self._deliver(replace(last, duration=_ticks(float(1 / self._coding.rate))))
        self._close_segment(cause)
        for number, clip in list(self._clips.items()):
            if clip.until is not None:
                self._publish(number)
            elif clip.mp4 is not None:
                clip.close()  # once its alert closes it is known whether it is kept
        self._ring.clear()
        self._close_encoder()
        self._newest = None

    def _close_encoder(self) -> None:
        encoder, self._encoder = self._encoder, None
        if encoder is not None:
            encoder.close()

    # -- files ----------------------------------------------------------------------------------

    def _deliver(self, coded: Coded) -> None:
        """Give a frame to all that want it."""
        if self._has_segments:
            segment, limit = self._segment, self._segment_ticks
            if (
                segment is not None
                and limit is not None
                and coded.key
                and coded.pts - segment.start >= limit
            ):
                self._close_segment("length")
            if self._segment is None:
                self._open_segment(coded.pts)
            assert self._segment is not None
            self._segment.add(coded)
        if self._rule is not None:
            self._ring.add(coded)
            for number, clip in list(self._clips.items()):
                if clip.until is not None and coded.pts > clip.until:
                    self._publish(number)
                else:
                    self._add_to_clip(clip, coded)
        self._reached = coded.pts + coded.duration

    def _open_segment(self, pts: int) -> None:
        path = self.folder / f"{self.stem}.{self._segments:03d}.mp4"
        assert self._encoder is not None
        self._segment = _Mp4(
            path, self._encoder.stream, start=pts, zero=0, open_file=self._open_file, sync=True
        )
        keep_name(path)
        self._segments += 1
        height, width = self._coding.size
        self._say(
            "segment_opened",
            pts,
            {"file": path.name, "cause": self._cause, "width": width, "height": height},
        )

    def _close_segment(self, cause: str) -> None:
        segment = self._segment
        self._cause = cause if self._segments else "start"
        if segment is None:
            return
        segment.close()
        self._segment = None
        self._closed = segment.end, segment.frames + (self._closed[1] if self._closed else 0)
        self._say(
            "segment_closed",
            segment.end,
            {
                "file": segment.path.name,
                "cause": cause,
                "start_s": _seconds(segment.start),
                "end_s": _seconds(segment.end),
                "frames": segment.frames,
                "bytes": segment.length,
            },
        )

    # -- clips ----------------------------------------------------------------------------------

    def _clip_path(self, number: int) -> Path:
        return self.folder / "clips" / f"alert-{number:03d}.mp4"

    def _begin_clip(self, number: int, start: int) -> None:
        if number in self._clips:
            self._clips.pop(number).discard()
        clip = self._clips[number] = _Clip(self._clip_path(number))
        for coded in self._ring.since(start):
            self._add_to_clip(clip, coded)

    def _add_to_clip(self, clip: _Clip, coded: Coded) -> None:
        if clip.is_over:
            return
        if clip.mp4 is None:
            assert self._encoder is not None
            clip.mp4 = _Mp4(
                clip.part,
                self._encoder.stream,
                start=coded.pts,
                zero=coded.pts,
                open_file=self._open_file,
                sync=False,
            )
        clip.mp4.add(coded)

    def _end_clip(self, number: int, until: int, kept: bool) -> None:
        clip = self._clips.get(number)
        if clip is None:
            return
        if not kept:
            del self._clips[number]
            clip.discard()
            return
        clip.until = until
        if clip.is_over or self._reached > until:
            self._publish(number)

    def _publish(self, number: int) -> None:
        """Let the clip of an alert appear, as long as it is."""
        clip = self._clips[number]
        if clip.mp4 is not None:
            clip.close()
            clip.publish()
            self._say(
                "clip_written",
                self._reached,
                {
                    "alert": number,
                    "file": clip.path.relative_to(self.folder).as_posix(),
                    "start_s": _seconds(clip.mp4.start),
                    "end_s": _seconds(clip.mp4.end),
                    "frames": clip.mp4.frames,
                    "cut_short": clip.until is None or clip.mp4.end <= clip.until,
                },
            )
        del self._clips[number]


def _threads_for(size: tuple[int, int], rate: Fraction) -> int:
    most = os.cpu_count() or 1
    return 1 + min(int(size[0] * size[1] * rate / _PIXELS_PER_S), most - 1)


def _ticks(seconds: float) -> int:
    return round(seconds / TIME_BASE)


def _seconds(ticks: int) -> float:
    return round(float(ticks * TIME_BASE), 6)
