"""Frames -> container: the video of a run that is encoded. `remux` writes copies, and `live.record`
what is recorded of a session.

In: frames, each with its time, and the packets of the recording's sound. Out: an MP4 that plays in
a browser: H.264, 8-bit 4:2:0, index in front, the same times and as many frames as went in, the
sound copied, chapters. The encoder is x264 on the CPU or, asked for and there, NVENC of a GPU; the
container, the times and all else are the same with both.

The file grows under another name beside the final one (`<name>.part`), and gets its name when it is
whole and on the disk. Nothing is left of it where something fails.
"""

import errno
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, cast

import av
import av.error
import cv2
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.codec.hwaccel import HWAccel
from av.container import OutputContainer
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import CudaContext, VideoFrame
from av.video.stream import VideoStream

from ccdstream import nv12
from ccdstream.errors import EngineError, OutputError, show_path
from ccdstream.frames import Colour, DeviceFrame, Frame, Matrix

COPIED_SOUND = frozenset(("aac", "mp3", "mp2", "ac3", "eac3", "alac", "flac", "opus"))
"""Sound that MP4 holds and players find there. FFmpeg also writes PCM and Vorbis into MP4, but
browsers do not play that."""

_AAC_RATES = (48_000, 44_100, 96_000, 88_200, 64_000, 32_000, 24_000, 22_050, 16_000, 12_000, 8_000)
"""Sample rates of AAC, in Hz (ISO/IEC 14496-3, table 1.18)."""

_AAC_BITS_PER_S = 128_000

FINEST_TICKS_PER_S = 10_000_000
"""Finest time base kept. In a finer one MP4 cannot show a frame for minutes (2**31 ticks)."""

_FRAME_DURATION = 1 << 8
"""AV_CODEC_FLAG_FRAME_DURATION: the encoder passes on how long each frame is shown."""

_MATRIX_CODE: dict[Matrix, int] = {"bt601": 6, "bt709": 1, "bt2020": 9}
"""ISO/IEC 23091-2 MatrixCoefficients written where the source has no tag that means the same."""

_SAME_MATRIX: dict[Matrix, tuple[int, ...]] = {"bt601": (5, 6), "bt709": (1,), "bt2020": (9, 10)}

_CHAPTER_TICKS_PER_S = 1000

_LONGEST_SAMPLE_TICKS = 2**31 - 1
"""Longest time that anything in an MP4 can be shown, in ticks of its clock (ISO/IEC 14496-12:
`sample_delta`, of which FFmpeg uses 31 bits)."""

_LONGEST_NAME_BYTES = 255
"""Of nearly every file system."""


_AVX_512F = 13
"""Of OpenCV's `cv::CpuFeatures`, which its Python package does not name."""

_NVENC = "h264_nvenc"
_NVENC_OPTIONS = {
    "preset": "p4",  # the middle of seven, p1 to p7
    "rc": "constqp",
    "bf": "0",  # so that frames are decoded in the order they are shown, at their own times
}


class StreamLike(Protocol):
    """What a sink must know of the video. A `VideoSource` is one."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of every frame."""

    @property
    def time_base(self) -> Fraction: ...
    @property
    def average_rate(self) -> Fraction:
        """Frames a second, about."""

    @property
    def sample_aspect_ratio(self) -> Fraction: ...
    @property
    def colour(self) -> Colour: ...
    @property
    def colour_tags(self) -> tuple[int, int, int]:
        """(primaries, transfer, matrix), code points of ISO/IEC 23091-2; 2: not specified."""

    @property
    def last_duration(self) -> int | None:
        """How long the last frame is shown, asked for when it was written; None: not known."""


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """A `StreamLike` for video that comes from no file."""

    size: tuple[int, int]
    time_base: Fraction
    average_rate: Fraction
    colour: Colour
    sample_aspect_ratio: Fraction = Fraction(1)
    colour_tags: tuple[int, int, int] = (2, 2, 2)
    last_duration: int | None = None


class AudioLike(Protocol):
    """Sound in packets. An `AudioSource` is one."""

    @property
    def stream(self) -> AudioStream | None: ...
    def __iter__(self) -> "Iterator[Packet[AudioStream]]": ...


@dataclass(frozen=True, slots=True)
class PcmAudio:
    """Sound that comes from no file: one channel, from time 0 on."""

    sample_rate: int
    """In Hz; one that AAC has."""
    blocks: Iterable[np.ndarray]
    """int16 [samples] each, of any lengths."""


@dataclass(frozen=True, slots=True)
class Chapter:
    """A mark in the time line of the player, in seconds of the source's clock."""

    start_s: float
    end_s: float
    title: str


class VideoSink:
    """Writes frames to an MP4 with the times they came with, so variable frame rate survives.

        with VideoSink(path, source, audio=audio) as sink:
            for frame in source:
                sink.write(frame)
            sink.chapters([Chapter(1.0, 2.5, "alert 1")])

    The file is there, whole, when the block is left without an error; else there is no trace of it.
    An odd size is made even by repeating the last row or column. Metadata is not copied unless it
    is given: a recording can carry the name of a patient.

    Args:
        path: the final name, whatever its suffix: what is written is MP4.
        source: what the frames have in common. It is asked for `last_duration` at the end.
        crf: x264's quality, 0 (lossless) to 51. At 18 a plane differs by less than 2 levels in the
            mean, also where the source is noisy. NVENC quantises every picture by this number,
            which x264 raises where the eye sees it least: meant to be no coarser, not measured.
        preset: x264's trade of time for size. NVENC takes no notice.
        audio: copied as it is, or made AAC where MP4 cannot hold it. None: no sound.
        offset_pts: taken off every pts, and as much off the sound and the chapters: with the pts of
            its first frame a stretch of a recording starts at 0.
        overwrite: whether a file at `path` may be replaced.
        threads: of x264; 0: as many as it likes.
        encode_on: the GPU whose NVENC is to encode, counted among those that are visible. Where it
            cannot, x264 does, and a note says why. None: x264.
        metadata: what the file is to say of itself, as in `VideoSource.metadata`; None: nothing.

    Attributes:
        frames: how many were written.
        encoder: what encodes, known once the block is entered.
        encoder_note: why it is x264 though a GPU was asked for; empty for no reason.
        zero_s: where on the source's clock time 0 of the output lies, known from the first frame
            on. What is shown at `t` there is at `t - zero_s` here.
        notes: what is not as in the source, one sentence each.

    Raises:
        ValueError: a frame of another size, one that is not after the one before, or for NVENC one
            in the memory of another GPU.
        OutputError: `path` exists, or cannot be written.
    """

    def __init__(
        self,
        path: Path,
        source: StreamLike,
        *,
        crf: int = 18,
        preset: str = "veryfast",
        audio: AudioLike | PcmAudio | None = None,
        offset_pts: int = 0,
        overwrite: bool = False,
        threads: int = 0,
        encode_on: int | None = None,
        metadata: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.path = path
        self.frames = 0
        self.encoder: Literal["x264", "nvenc"] = "x264"
        self.encoder_note = ""
        self.notes: list[str] = []
        self._source = source
        self._quality = str(crf)
        self._preset = preset
        self._threads = threads
        self._encode_on = encode_on
        self._metadata = metadata or {}
        self._hwaccel: HWAccel | None = None  # None for x264
        self._cuda_context: CudaContext | None = None
        self._audio = audio
        self._offset_pts = offset_pts
        self._overwrite = overwrite
        self._part = part_of(path)
        self._chapters: Sequence[Chapter] = ()
        self._between = "No alert"
        self._time_base = source.time_base
        if self._time_base.denominator > FINEST_TICKS_PER_S:
            self._time_base = Fraction(1, FINEST_TICKS_PER_S)
            self.notes.append("times are rounded to 0.1 microseconds, the finest that is written")
        self._held: VideoFrame | None = None  # shown until the next one, so not yet encoded
        self._last_time = Fraction(0)  # of that one, on the source's clock
        self._encoded: Packet[VideoStream] | None = None  # not yet written
        self._zero = Fraction(0)
        self._lead = 0  # how far the encoder decodes ahead of showing, in ticks
        self._sound: Iterator[Packet[AudioStream]] = iter(())
        self._heard: Packet[AudioStream] | None = None  # the next packet of the sound
        self._damaged = 0  # packets of the sound that were left out
        self._sound_ends_too = False

    @property
    def zero_s(self) -> float:
        return float(self._zero)

    # --- opening and closing ---

    def __enter__(self) -> "VideoSink":
        try:
            if os.path.lexists(self.path) and not self._overwrite:
                raise OutputError(
                    f"{show_path(self.path)} is there already. Choose another place, or overwrite."
                )
            if os.path.isdir(self.path):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            open(self._part, "wb").close()
        except OSError as error:
            raise self._cannot_write(error) from error
        try:
            self._open()
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            self._finish()
        except BaseException:
            self._discard()
            raise

    def _open(self) -> None:
        """Write the header: with the sound as it is, else as AAC, else without."""
        if self._encode_on is not None:
            self._try_nvenc(self._encode_on)
        ways: tuple[Literal["copy", "aac", "none"], ...] = ("none",)
        if isinstance(self._audio, PcmAudio):
            ways = ("aac",)
        elif self._audio is not None and self._audio.stream is not None:
            codec = self._audio.stream.codec_context.codec.canonical_name
            ways = ("copy", "aac", "none") if codec in COPIED_SOUND else ("aac", "none")
        for way in ways:
            self._container: OutputContainer = open_mp4(
                self._part, self._time_base, tagged=bool(self._metadata)
            )
            try:
                self._video = self._new_video()
                self._audio_stream = self._new_audio(way)
                self._tag()
                self._container.start_encoding()
            except (av.FFmpegError, OSError, ValueError) as error:
                self._close_container()
                if way == ways[-1]:
                    raise self._cannot_write(error) from error
                continue
            if way != ways[0]:
                self.notes.append(
                    "the sound could not be copied: it is left out"
                    if way == "none"
                    else "the sound could not be copied: it was encoded anew, as AAC"
                )
            elif way == "aac" and not isinstance(self._audio, PcmAudio):
                self.notes.append(f"the sound was {codec}, which MP4 players lack: now AAC")
            self._way = way
            return

    def _tag(self) -> None:
        """Write into the container what it is to say of itself."""
        said = self._metadata
        self._container.metadata.update(said.get("container", {}))
        self._video.metadata.update(said.get("video", {}))
        if self._audio_stream is not None:
            self._audio_stream.metadata.update(said.get("audio", {}))

    def _new_video(self) -> VideoStream:
        source = self._source
        rate = source.average_rate if 1 <= source.average_rate <= 1000 else Fraction(25)
        codec = _NVENC if self.encoder == "nvenc" else "libx264"
        with self._context():
            video = self._container.add_stream(codec, rate=rate, hwaccel=self._hwaccel)
        assert isinstance(video, VideoStream)
        video.time_base = self._time_base
        self._configure(video.codec_context)
        return video

    def _configure(self, context: VideoCodecContext) -> None:
        """Tell an encoder what comes and what is wanted of it."""
        source = self._source
        height, width = source.size
        if context.codec.name == _NVENC:
            context.options = {**_NVENC_OPTIONS, "qp": self._quality}
            context.pix_fmt = "nv12"
        else:
            context.options = {"crf": self._quality, "preset": self._preset, **repeatable_x264()}
            context.pix_fmt = "yuv420p"
            context.thread_count = self._threads
        context.time_base = self._time_base
        context.height, context.width = height + height % 2, width + width % 2
        context.flags |= _FRAME_DURATION
        context.sample_aspect_ratio = source.sample_aspect_ratio
        tag_colour(context, source.colour, source.colour_tags)

    def _try_nvenc(self, gpu: int) -> None:
        """Make NVENC the encoder where it opens for frames of this size; else say why it does not.

        FFmpeg has the encoder wherever it runs; the driver and the chip need not have it.
        """
        hwaccel = HWAccel("cuda", device=str(gpu), options=nv12.CONTEXT_OPTIONS)
        try:
            with nv12.context_of(gpu):
                trial = av.CodecContext.create(_NVENC, "w", hwaccel)
                assert isinstance(trial, VideoCodecContext)
                self._configure(trial)
                trial.open()
        except EngineError as error:
            self.encoder_note = f"encoded by x264: {error}"
        except (av.FFmpegError, NotImplementedError) as error:
            self.encoder_note = f"encoded by x264: NVENC does not open ({_reason(error)})"
        else:
            self.encoder, self._hwaccel = "nvenc", hwaccel
            self._cuda_context = CudaContext(gpu, primary_ctx=False, current_ctx=True)

    def _context(self) -> AbstractContextManager[None]:
        """Within it, what NVENC needs is current in this thread."""
        if self._encode_on is None or self.encoder != "nvenc":
            return nullcontext()
        return nv12.context_of(self._encode_on)

    def _new_audio(self, way: Literal["copy", "aac", "none"]) -> AudioStream | None:
        if way == "none" or self._audio is None:
            return None
        if isinstance(self._audio, PcmAudio):
            sample_rate, layout = self._audio.sample_rate, "mono"
        else:
            template = self._audio.stream
            assert template is not None
            if way == "copy":
                return self._container.add_stream_from_template(template, opaque=True)
            sample_rate = template.sample_rate if template.sample_rate in _AAC_RATES else 48_000
            layout = "mono" if template.layout.nb_channels == 1 else "stereo"
        stream = self._container.add_stream("aac", rate=sample_rate)
        assert isinstance(stream, AudioStream)
        stream.codec_context.layout = layout
        stream.codec_context.bit_rate = _AAC_BITS_PER_S
        stream.codec_context.time_base = Fraction(1, sample_rate)
        return stream

    def _finish(self) -> None:
        """Write what is still held, close the file, and give it its name."""
        try:
            if self._held is None:
                raise OutputError(
                    f"nothing to write to {show_path(self.path)}: not one frame was given."
                )
            assert self._held.pts is not None
            last = self._source.last_duration
            shown_s = last * self._source.time_base if last else 1 / self._source.average_rate
            self._held.duration = max(1, round(shown_s / self._time_base))
            self._encode(self._held)
            self._encode(None)
            self._mux_last()
            end = (self._held.pts + self._held.duration) * self._time_base
            self._mux_sound(until=end if self._sound_ends_too else None)
            if self._damaged:
                self.notes.append(f"damaged packets of the sound were left out: {self._damaged}")
            self._container.set_chapters(self._marks())
            self._container.close()
            with open(self._part, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(self._part, self.path)
        except (av.FFmpegError, OSError) as error:
            raise self._cannot_write(error) from error
        keep_name(self.path)

    def _discard(self) -> None:
        """Leave no trace."""
        with suppress(OSError):  # already gone, or cannot be removed while it is open
            os.unlink(self._part)
        self._close_container()
        with suppress(OSError):
            os.unlink(self._part)

    def _close_container(self) -> None:
        """Close what was begun. It fails here for the reason that is being raised already."""
        container = getattr(self, "_container", None)
        if container is not None:
            with suppress(av.FFmpegError, OSError, ValueError):
                container.close()

    def _cannot_write(self, error: Exception) -> OutputError:
        return cannot_write(self.path, error)

    # --- frames ---

    def write(self, frame: Frame | DeviceFrame) -> None:
        """Append `frame`. Its planes are copied, and may be changed afterwards.

        A `DeviceFrame` goes to NVENC without leaving the GPU, and to x264 by one copy.
        """
        if frame.size != tuple(self._source.size):
            raise ValueError(f"frames must be {self._source.size}, got {frame.size}")
        picture = self._picture(frame)
        assert picture.pts is not None
        try:
            if self._held is None:
                self._start(picture)
            else:
                assert self._held.pts is not None
                picture.pts -= self._shift
                if frame.pts * frame.time_base <= self._last_time:
                    raise ValueError(f"pts {frame.pts} is not after that of the frame before")
                # where times are rounded two may fall together
                picture.pts = max(picture.pts, self._held.pts + 1)
                self._held.duration = picture.pts - self._held.pts
                self._encode(self._held)
        except (av.FFmpegError, OSError) as error:
            raise self._cannot_write(error) from error
        self._held = picture
        self._last_time = frame.pts * frame.time_base
        self.frames += 1

    def _picture(self, frame: Frame | DeviceFrame) -> VideoFrame:
        """`frame` as the encoder takes it: a copy, of even size, on the sink's clock."""
        if isinstance(frame, Frame):
            picture = planar(frame)
        elif self.encoder == "x264":
            picture = planar(frame.on_host())
        else:
            with self._context():
                picture = VideoFrame.from_dlpack(
                    nv12.for_nvenc(frame), format="nv12", cuda_context=self._cuda_context
                )
        time = (frame.pts - self._offset_pts) * frame.time_base
        picture.pts = round(time / self._time_base)
        picture.time_base = self._time_base
        return picture

    def _start(self, picture: VideoFrame) -> None:
        """Fix the zero of the output, and begin with the sound."""
        assert picture.pts is not None
        self._shift = min(0, picture.pts)  # players skip what comes before 0
        if self._shift:
            late_s = float(-self._shift * self._time_base)
            self.notes.append(f"the first frame came before time 0: all is {late_s:.6f} s later")
            picture.pts -= self._shift
        self._zero = self._offset_pts * self._source.time_base + self._shift * self._time_base
        if self._audio_stream is not None:
            self._sound = _in_order(
                self._copied_sound() if self._way == "copy" else self._encoded_sound()
            )

    def _encode(self, picture: VideoFrame | None) -> None:
        """Encode, and write what comes out, with the sound up to there."""
        for packet in self._video.encode(picture):
            if self._encoded is not None:
                self._mux_video(self._encoded)
            else:
                assert packet.pts is not None and packet.dts is not None
                self._lead = packet.pts - packet.dts
            self._encoded = packet

    def _mux_video(self, packet: "Packet[VideoStream]") -> None:
        assert packet.dts is not None
        self._mux_sound(until=packet.dts * packet.time_base)
        self._container.mux(packet)

    def _mux_last(self) -> None:
        """Write the last packet, shown so long that the video ends when its last frame does.

        In MP4 the samples' durations, in the order of decoding, add up to the length of the track.
        The last packet need not be the last frame.
        """
        held, last = self._held, self._encoded
        assert held is not None and held.pts is not None
        assert last is not None and last.dts is not None
        last.duration = max(1, held.pts + held.duration - (last.dts + self._lead))
        self._mux_video(last)

    # --- sound ---

    def _mux_sound(self, until: Fraction | None) -> None:
        """Write the sound up to `until` seconds of the output; None: to its end.

        It is read only as far as the video has come, so it never piles up.
        """
        while True:
            packet = self._heard or next(self._sound, None)
            if packet is None:
                return
            assert packet.dts is not None
            if until is not None and packet.dts * packet.time_base > until:
                self._heard = packet
                return
            self._heard = None
            try:
                self._container.mux(packet)
            except av.error.InvalidDataError:  # not a frame of its codec
                self._damaged += 1

    def _copied_sound(self) -> "Iterator[Packet[AudioStream]]":
        assert self._audio is not None and not isinstance(self._audio, PcmAudio)
        assert self._audio_stream is not None
        for packet in self._audio:
            assert packet.pts is not None
            packet.pts -= round(self._zero / packet.time_base)
            packet.dts = packet.pts
            packet.stream = self._audio_stream
            yield packet

    def _encoded_sound(self) -> "Iterator[Packet[AudioStream]]":
        stream = self._audio_stream
        assert stream is not None
        for frame in self._frames_of_sound():
            yield from stream.encode(frame)
        yield from stream.encode(None)

    def _frames_of_sound(self) -> Iterator[AudioFrame]:
        """On the clock of the output, at the rate and layout of the encoder, without gaps."""
        assert self._audio_stream is not None and self._audio is not None
        context = self._audio_stream.codec_context
        resampler: AudioResampler | None = None
        kind: tuple[object, ...] = ()
        decoded = (
            _frames_of_pcm(self._audio)
            if isinstance(self._audio, PcmAudio)
            else _decoded_sound(self._audio)
        )
        for frame in decoded:
            if frame.pts is not None and frame.time_base:
                frame.pts -= round(self._zero / frame.time_base)
            if (frame.format.name, frame.layout.name, frame.sample_rate) != kind:
                if resampler is not None:
                    yield from resampler.resample(None)
                kind = (frame.format.name, frame.layout.name, frame.sample_rate)
                resampler = AudioResampler(
                    format=context.format,
                    layout=context.layout,
                    rate=context.sample_rate,
                    options={"async": "1"},  # fills a gap with silence, so that sound stays in time
                )
            assert resampler is not None
            yield from resampler.resample(frame)
        if resampler is not None:
            yield from resampler.resample(None)

    def end_sound_with_video(self) -> None:
        """Leave out what is heard after the last frame: what was to be shown with it is not there.
        May be called until the block is left."""
        self._sound_ends_too = True

    # --- chapters ---

    def chapters(self, chapters: Sequence[Chapter], *, between: str = "No alert") -> None:
        """Mark `chapters` in the player's time line; may be called until the block is left.

        A chapter lasts until the next one begins, in MP4 as in every player. So the time between
        two gets a chapter too, called `between`. Of two that overlap the first ends early. One that
        is longer than MP4 can say becomes several of the same title: after 35 minutes where the
        source's clock counts microseconds, after 6 hours where it counts 1/90000 s.
        """
        self._chapters = chapters
        self._between = between

    def _marks(self) -> list[Any]:
        assert self._held is not None and self._held.pts is not None
        end_s = (self._held.pts + self._held.duration) * self._time_base
        return chapter_marks(
            self._chapters,
            self._between,
            zero_s=self._zero,
            end_s=end_s,
            time_base=self._time_base,
        )


def open_mp4(part: Path, time_base: Fraction, *, tagged: bool = False) -> OutputContainer:
    """An MP4 in the making, for a video whose times are counted in `time_base`.

    Args:
        tagged: whether it is to say something of itself.

    Raises:
        OSError, av.FFmpegError: it cannot be made.
    """
    return av.open(
        f"file:{part}",  # so that no name is taken for a protocol
        mode="w",
        format="mp4",
        container_options={
            # MP4 has few tags of its own; the others are kept as QuickTime keeps them
            "movflags": "+faststart" + "+use_metadata_tags" * tagged,
            # the start of a track is kept in these units, and the default is 1/1000 s
            "movie_timescale": str(_movie_ticks_per_s(time_base)),
        },
    )


def _movie_ticks_per_s(time_base: Fraction) -> int:
    ticks = time_base.denominator
    while ticks < 10_000:  # as the muxer does for the track
        ticks *= 2
    return ticks


def chapter_marks(
    chapters: Sequence[Chapter],
    between: str,
    *,
    zero_s: Fraction,
    end_s: Fraction,
    time_base: Fraction,
) -> list[Any]:
    """`chapters` as PyAV takes them, without gaps from 0 to the end of the video. One that is
    longer than MP4 can say is cut into several of one title.

    Args:
        between: the title of what lies between two.
        zero_s: the time on the source's clock where the video's is 0.
        end_s: where the video ends, on its own clock.
        time_base: of the video.
    """
    end = round(end_s * _CHAPTER_TICKS_PER_S)
    marks: list[tuple[int, str]] = []  # (from here on, title)
    reached = 0
    for chapter in sorted(chapters, key=lambda c: (c.start_s, c.end_s)):
        start = max(0, round((chapter.start_s - float(zero_s)) * _CHAPTER_TICKS_PER_S))
        if start > reached:
            marks.append((reached, between))
        elif marks:
            start = max(start, marks[-1][0] + 1)
        marks.append((start, chapter.title))
        # an alert of a single frame has a chapter too, of the shortest length there is
        reached = max(round((chapter.end_s - float(zero_s)) * _CHAPTER_TICKS_PER_S), start + 1)
    if marks and reached < end:
        marks.append((reached, between))
    ends = [start for start, _ in marks[1:]] + [max(end, reached)]
    longest = _LONGEST_SAMPLE_TICKS * _CHAPTER_TICKS_PER_S // _movie_ticks_per_s(time_base)
    pieces = [
        (begin, min(begin + longest, stop), title)
        for (start, title), stop in zip(marks, ends, strict=False)
        for begin in range(start, stop, longest)
    ]
    return [
        {
            "id": k,
            "start": start,
            "end": stop,
            "time_base": Fraction(1, _CHAPTER_TICKS_PER_S),
            "metadata": {"title": title},
        }
        for k, (start, stop, title) in enumerate(pieces)
    ]


def planar(frame: Frame) -> VideoFrame:
    """A copy of `frame` for x264, without its time; an odd size is made even by repeating the last
    row or column."""
    height, width = frame.size
    picture = VideoFrame(width + width % 2, height + height % 2, "yuv420p")
    for plane, source in zip(picture.planes, (frame.y, frame.u, frame.v), strict=True):
        rows = np.frombuffer(cast(Any, plane), np.uint8).reshape(plane.height, plane.line_size)
        h, w = source.shape
        rows[:h, :w] = source
        rows[:h, w : plane.width] = rows[:h, w - 1 : w]
        rows[h:] = rows[h - 1]
    return picture


def tag_colour(
    context: VideoCodecContext, colour: Colour, tags: tuple[int, int, int] = (2, 2, 2)
) -> None:
    """Have an encoder write what the planes mean.

    Args:
        tags: the source's own, as in `StreamLike.colour_tags`.
    """
    primaries, transfer, matrix = tags
    context.color_primaries, context.color_trc = primaries, transfer
    same = _SAME_MATRIX[colour.matrix]
    context.colorspace = matrix if matrix in same else _MATRIX_CODE[colour.matrix]
    context.color_range = 2 if colour.full_range else 1


def cannot_write(path: Path, error: Exception) -> OutputError:
    """The error to raise where the system or FFmpeg says that `path` cannot be written."""
    advice = "Check that the folder exists and may be written."
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        advice = "Free some space, or write to another disk."
    return OutputError(f"cannot write {show_path(path)}: {_reason(error)}. {advice}")


def keep_name(path: Path) -> None:
    """Bring the name of a file to the disk, as `os.fsync` does with what is in it."""
    with suppress(OSError):  # not every file system can; the file itself is safe
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def repeatable_x264() -> dict[str, str]:
    """Options of libx264 with which it writes the same bytes for the same frames.

    Its AVX-512 code for macroblock trees reads memory that nothing was written to, and a frame now
    and then comes out a little other than before. With AVX2 it is always what it mostly is.
    """
    return {"x264-params": "asm=AVX2"} if cv2.checkHardwareSupport(_AVX_512F) else {}


def _reason(error: Exception) -> str:
    """The system's or FFmpeg's words for `error`, on one line."""
    return " ".join(str(getattr(error, "strerror", None) or error).split())


def part_of(path: Path) -> Path:
    """Where a file grows: `<name>.part`, or a shorter name where that would be too long."""
    name = path.name + ".part"
    if len(os.fsencode(name)) > _LONGEST_NAME_BYTES:
        name = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16] + ".part"
    return path.with_name(name)


def _in_order(packets: "Iterable[Packet[AudioStream]]") -> "Iterator[Packet[AudioStream]]":
    """Leave out packets that are not after the one before: MP4 refuses them."""
    last: Fraction | None = None
    for packet in packets:
        if packet.dts is None:
            continue
        time = packet.dts * Fraction(packet.time_base)
        if last is None or time > last:
            last = time
            yield packet


def _decoded_sound(audio: AudioLike) -> Iterator[AudioFrame]:
    """The sound of `audio`, without what is damaged."""
    assert audio.stream is not None
    for packet in audio:
        with suppress(av.FFmpegError):  # silence takes its place
            yield from packet.decode()
    with suppress(av.FFmpegError):
        yield from audio.stream.codec_context.decode(None)


def _frames_of_pcm(audio: PcmAudio) -> Iterator[AudioFrame]:
    samples = 0
    for block in audio.blocks:
        frame = AudioFrame.from_ndarray(block[np.newaxis, :], format="s16", layout="mono")
        frame.sample_rate = audio.sample_rate
        frame.time_base = Fraction(1, audio.sample_rate)
        frame.pts = samples
        samples += len(block)
        yield frame
