"""Container -> frames. The only reader of video files.

In: the path of a recording, in any container and codec that the PyAV wheel knows. Out: its pictures
as `Frame`s in the order they are shown, upright, progressive, 8-bit YUV 4:2:0, each with its exact
time; and the packets of picture and sound, for `remux` and `encode` to copy.

Times are those of the file: `pts` counts in the stream's own `time_base`, from wherever the file
starts. Where a file has no usable times, `_Clock` says what is done, and `Problems` counts it;
where it holds times of decoding alone, `_AsShown`.

Colour is what the file is tagged with. What is not tagged follows one rule, in `colour_of`.

A recording can be damaged, and can be made to do harm. Damaged packets are skipped and counted, and
nothing is raised while anything can be decoded. What FFmpeg passes over without a word is found by
following the parts of the container as it reads them (`parts`). FFmpeg gets the bytes of one file
and may open nothing else (`_open`), so a playlist that poses as a video cannot make it read other
files or the network. It reads only the formats that recordings come in (`_FORMATS`), makes no
picture larger than `MAX_PIXELS`, and is given no index that claims more than a recording holds
(`mp4_index`). The level of `av.logging` stays as it is: setting it makes leaving a threaded decoder
early hang.
Decoders thread within a picture only: with a thread a picture, FFmpeg hands out a picture's marks
of damage before another thread may have found it, and the count differs from pass to pass.

NVIDIA's decoder, NVDEC, can take the place of FFmpeg's: demuxer, clock, counts and all that is done
about damage stay the same code. It leaves its pictures on the GPU, as `DeviceFrame`s, while they
are what nearly every recording holds. From the first one on that is anything else, they are brought
to the host as FFmpeg's decoder would have given them, and go the way of those. NVDEC does not tell
of damage inside a picture, so `Problems.corrupt_frames` can be lower with it.
"""

import errno
import heapq
import os
import re
import stat
import time
from collections import Counter, deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Literal

import av
import av.error
from av.audio.stream import AudioStream
from av.bitstream import BitStreamFilterContext
from av.codec.hwaccel import HWAccel
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard, Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from ccdstream import mp4_index, nv12
from ccdstream.errors import EngineError, VideoDecodeError, VideoOpenError, reason_of, show_path
from ccdstream.frames import Colour, DeviceFrame, Frame
from ccdstream.parts import Parts, parts_of
from ccdstream.picture import (
    MATRICES,
    MAX_PIXELS,
    METADATA,
    SWS_OF,
    Deinterlacer,
    Orientation,
    Planes,
    colour_of,
    exact,
)

_FORMATS = (
    *("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "asf", "flv", "live_flv", "ogg", "nut"),
    *("mpegts", "mpeg", "mxf", "gxf", "wtv", "rm", "dhav"),
    *("h264", "hevc", "vvc", "m4v", "mpegvideo", "mjpeg", "mjpeg_2000", "mpjpeg", "dv", "vc1"),
    *("h261", "h263", "av1", "obu", "ivf", "dirac", "dnxhd", "yuv4mpegpipe"),
    *("gif", "apng", "jpeg_pipe", "png_pipe"),
)
"""What recordings come in: FFmpeg's names, as a whole. The other three hundred, of games, of sound
and of subtitles, are not there to be attacked; nor is any that names other files, hosts or scripts
instead of holding a recording."""

_PROTOCOLS = "none"
"""What FFmpeg may open by a name. No protocol has this one."""

_OPEN_CPU_S = 20.0
"""CPU time that opening a recording may take. FFmpeg compares each tag with all before it, so that
100 000 of them, 2 MB, take minutes. Usual recordings take well below a second."""

_TAGS: dict[bytes, tuple[bytes, int]] = {
    b"\x1a\x45\xdf\xa3": (b"\x67\xc8", 10_000),  # Matroska: SimpleTag (RFC 9559, 5.1.8.1.2)
    b"OggS": (b"=", 40_000),  # by chance 20 000 come in the 5 MB that FFmpeg reads at most
}
"""Bytes that every tag has, and how many of them at most, by how a file begins: of formats whose
tags FFmpeg reads all before it compares them, so that nothing stops it in between."""

_READ_BYTES = 1 << 18
"""Bytes that FFmpeg asks the file for at a time."""

_OUTPUT_CORRUPT = 1 << 3
"""AV_CODEC_FLAG_OUTPUT_CORRUPT: without it some decoders drop every picture after a damaged one,
in silence."""

_DEFAULT_RATE = Fraction(25)
"""Frames a second where the container does not say: FFmpeg's own default for raw streams."""

_GLITCH_S = 1
"""A time that goes back by less is a slip of one frame; by more, the clock was set anew."""

_MAX_GAP_S = 3600
"""A time further ahead than this is a damaged one: no recording pauses for an hour."""

_MAX_GAP_TICKS = 2**31 - 1
"""Longest time a frame can be shown in MP4, in ticks (ISO/IEC 14496-12: `sample_delta`)."""

_MAX_START_S = 10 * 366 * 86_400
"""A first time beyond ten years is a damaged one."""

_TRIES = 3
"""How often reading is tried again at a damaged spot before a seek."""

_MAX_SKIPS = 16
"""How often reading goes on behind a damaged spot of the file before it gives up."""

_OF_THE_FILE = frozenset((
    *("major_brand", "minor_version", "compatible_brands", "vendor_id", "encoder", "duration"),
    *("rotate", "timecode", "number_of_frames", "number_of_bytes", "bps"),
))  # fmt: skip
"""Metadata about how the file is written, in small letters: not true of another file."""

_LEAST_SLACK_S = 0.1
"""By how much less than announced a recording of an even clock may last: containers round, and a
length is often that of the sound, to the end of its packet."""

_ONE_LENGTH = ("matroska", "asf", "nut", "flv")
"""Formats that say how long the recording lasts, and not how long each stream does."""

_ROUGH_LENGTHS = frozenset(
    ("h264", "hevc", "vvc", "m4v", "mpegvideo", "mjpeg", "vc1", "h261", "h263")
)
"""Formats without times, whose length FFmpeg guesses from size and bit rate."""

_DECODED_AHEAD = 16
"""Pictures that may be decoded later than one, and shown before it: what H.264 and HEVC allow, and
the most that x264 makes."""

_SEEK_MARGINS_S = (0, 10, 60)
"""How long before the wanted time to look for a keyframe, one after the other."""


# --- what was wrong with a recording ---------------------------------------------------------


@dataclass(slots=True)
class Problems:
    """What was wrong with a recording, counted while it is decoded and complete at its end."""

    decoded: int = 0
    """Frames that were handed out."""
    corrupt_packets: int = 0
    """Packets that the container marks as damaged or that the decoder refused."""
    corrupt_frames: int = 0
    """Pictures that the decoder marks as damaged. They are handed out: part of them is true."""
    skipped_frames: int = 0
    """Pictures that were in the file and could not be decoded."""
    missing_frames: int = 0
    """Pictures that are not in the file, by the gaps in an otherwise even clock, or by the
    container's own count."""
    size_changes: int = 0
    """How often the size of the picture changed; frames are scaled to the first size."""
    colour_changes: int = 0
    """How often matrix or range changed; frames are converted to the first ones."""
    missing_pts: int = 0
    """Frames without a time of their own; each follows the one before it."""
    non_monotonic: int = 0
    """Frames whose time was not after the one before, moved by a tick to come after it."""
    clock_jumps: int = 0
    """How often the clock was set anew; the frames behind go on where those before it ended."""
    demux_errors: int = 0
    """How often a spot of the file could not be read."""
    truncated: bool = False
    """Whether the recording breaks off before its announced end, or could not be read to it."""

    unread_recording: bool = False
    """Whether another recording follows in the file, which is not read."""

    def as_dict(self) -> dict[str, int | bool]:
        """The counts by name."""
        return asdict(self)

    def sentences(self) -> list[str]:
        """What a person should know, one sentence a problem; empty for a sound recording."""
        told = (
            (self.corrupt_packets, "{} packet{s} of the file {are} damaged"),
            (self.corrupt_frames, "{} frame{s} {are} shown though partly damaged"),
            (self.skipped_frames, "{} frame{s} could not be decoded"),
            (
                self.missing_frames,
                "{} frame{s} {are} missing, by the gaps in clock or index",
            ),
            (self.size_changes, "the picture changed size {} time{s}; scaled to the first size"),
            (self.colour_changes, "the colour tags changed {} time{s}; converted to the first"),
            (self.missing_pts, "{} frame{s} had no time and follow{v} the one before"),
            (self.non_monotonic, "{} frame{s} had a time no later than the one before"),
            (self.clock_jumps, "the clock of the file jumped {} time{s}; closed up"),
            (self.demux_errors, "the file could not be read in {} place{s}"),
        )
        sentences = [
            text.format(
                count,
                s="" if count == 1 else "s",
                are="is" if count == 1 else "are",
                v="s" if count == 1 else "",
            )
            for count, text in told
            if count
        ]
        if self.truncated:
            sentences.append("the recording breaks off before its announced end")
        if self.unread_recording:
            sentences.append("another recording follows in the same file, and is not read")
        return sentences


# --- opening ---------------------------------------------------------------------------------


def refuse_picture(source: "VideoSource") -> None:
    """Stop where a still picture is given for a recording: of one frame "no alert" means nothing.

    Raises:
        VideoOpenError: it is one.
    """
    if source.format.endswith("_pipe"):
        raise VideoOpenError(
            f"{show_path(source.path)} is a still picture. Pass a recording; ccdstream score takes "
            "pictures."
        )


class _OneFile:
    """The bytes of one file, and not its name: what a file is called decides nothing.

    Errors are kept until `check`, because PyAV prints a traceback where two come in a row.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115  closed by close()
        self.error: OSError | None = None
        """The last one."""
        self.overtagged = False
        """Whether it ended early while it was opened: it has more tags than FFmpeg can take."""
        self.parts: Parts | None = None
        """What follows the parts of the file as they are read."""
        self._opening = False

    @contextmanager
    def opening(self, tag: bytes, most: int) -> Iterator[None]:
        """Within it the file ends once it takes too long, or `tag` has come more often than `most`
        times; an empty `tag` never comes."""
        self._opening, self._began_s = True, time.thread_time()
        self._tag, self._left = tag, most
        try:
            yield
        finally:
            self._opening = False

    def read(self, count: int) -> bytes:
        try:
            at = 0 if self.parts is None else self._file.tell()
            data = self._file.read(count)
            if self.parts is not None:
                self.parts.feed(at, data)
            if self._opening:
                self._left -= data.count(self._tag) if self._tag else 0
                too_long = time.thread_time() - self._began_s > _OPEN_CPU_S
                if too_long or self._left < 0:
                    self.overtagged = True
                    return b""
            return data
        except OSError as error:
            self.error = error
            return b""

    def seek(self, offset: int, whence: int) -> int:
        try:
            return self._file.seek(offset, whence)
        except OSError as error:  # FFmpeg tries places that do not exist
            return -(error.errno or errno.EINVAL)

    def tell(self) -> int:
        return self._file.tell()

    def check(self) -> None:
        """Raise what went wrong since the last check."""
        error, self.error = self.error, None
        if error is not None:
            raise error

    def close(self) -> None:
        self._file.close()


def _open(path: Path, hwaccel: HWAccel | None = None) -> tuple[InputContainer, _OneFile]:
    """The container in `path`, and the file to close after it.

    Its video is decoded by `hwaccel`, or by FFmpeg's own decoder where there is none.

    FFmpeg never sees the name: it reads through a file object, and may open nothing by a name
    (`_PROTOCOLS`). So no format can make it open anything else, and those that would try are not
    among `_FORMATS`.

    Raises:
        VideoOpenError: it is no readable file, or no recording, or `hwaccel` cannot be used.
    """
    shown = show_path(path)
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise VideoOpenError(f"{shown} is a folder. Pass the recordings in it, as files.")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe could wait for ever
            raise VideoOpenError(f"{shown} is not a regular file. Pass a recording on a disk.")
        if status.st_size == 0:
            raise VideoOpenError(f"{shown} is empty (0 bytes). Copy the recording again.")
        file = _OneFile(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise VideoOpenError(
            f"cannot open {shown}: {reason_of(error)}. Check that the path exists and may be read."
        ) from error
    try:
        return _container_in(file, shown, hwaccel), file
    except BaseException:
        file.close()
        raise


def _container_in(file: _OneFile, shown: str, hwaccel: HWAccel | None) -> InputContainer:
    head = file.read(512)
    size = max(0, file.seek(0, os.SEEK_END))
    excess = mp4_index.excess_of(file, size)
    if excess:
        raise VideoOpenError(
            f"{shown} is refused: its index claims {excess}. The file is damaged, or made to harm: "
            "copy it again."
        )
    file.seek(0, os.SEEK_SET)
    file.error = None  # a bad spot is told where it is in the way
    file.parts = parts_of(head, size)
    is_mp4 = head[4:8] in (b"ftyp", b"mdat", b"wide", b"free")
    cut_off = (
        f"{shown} holds no video: the index of an MP4 is written last, and it is missing or not "
        "whole. The recording was cut off: copy it again, or repair it with the recorder's tool."
    )
    tagged = (
        f"cannot read {shown} as a video: it has more tags than a recording has. "
        "Write it anew without them."
    )
    tag, most = next((_TAGS[start] for start in _TAGS if head.startswith(start)), (b"", 0))
    try:
        with file.opening(tag, most):
            container: InputContainer = av.open(
                file,
                mode="r",
                options={
                    "protocol_whitelist": _PROTOCOLS,
                    "format_whitelist": ",".join(_FORMATS),
                    "max_pixels": str(MAX_PIXELS),
                },
                buffer_size=_READ_BYTES,
                hwaccel=hwaccel,
                **METADATA,
            )
    except (av.FFmpegError, OSError) as error:
        if file.overtagged:
            raise VideoOpenError(tagged) from error
        if file.error is not None:  # the disk's words say more than FFmpeg's
            advice, reason = "Check the disk.", reason_of(file.error)
        elif head.lstrip(b"\xef\xbb\xbf \r\n").startswith((b"#EXTM3U", b"ffconcat", b"v=0")):
            raise VideoOpenError(
                f"{shown} names other files instead of holding a recording. "
                "Pass the recording itself."
            ) from error
        elif is_mp4:
            raise VideoOpenError(cut_off) from error
        elif isinstance(error, ValueError):  # EINVAL, of a format that is not among `_FORMATS`
            reason = "it is not a video, or of a format that is not read"
            advice = "If it is one, convert it to MP4."
        else:
            advice, reason = "Pass a recording that plays in ffplay.", reason_of(error)
        raise VideoOpenError(f"cannot read {shown} as a video: {reason}. {advice}") from error
    if file.overtagged:
        container.close()
        raise VideoOpenError(tagged)
    if is_mp4 and not container.streams:
        container.close()
        raise VideoOpenError(cut_off)
    return container


def _best_video(container: InputContainer, shown: str) -> VideoStream:
    """The stream that holds the recording: never a cover picture, and FFmpeg's best of the rest."""
    moving = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not moving:
        found = "has only a cover picture" if container.streams.video else "has no video stream"
        raise VideoOpenError(f"{shown} {found}. Pass the recording itself, not its sound.")
    known = [s for s in moving if s.codec_context is not None]
    if not known:
        raise VideoOpenError(
            f"{shown} holds video in a codec that this build of FFmpeg does not know. "
            "Convert it to H.264 first."
        )
    best = container.streams.best("video")
    for stream in known:
        if best is not None and stream.index == best.index:
            return stream
    return max(known, key=lambda s: (s.width * s.height, s.frames, -s.index))


def _set_up_decoder(stream: VideoStream) -> None:
    # one thread: several make H.264 damage pass unmarked (slices) or told by chance (pictures)
    stream.thread_type = "SLICE"
    stream.codec_context.thread_count = 1
    stream.codec_context.flags |= _OUTPUT_CORRUPT
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}


def _rate_of(stream: VideoStream) -> Fraction:
    """Frames a second as the container claims it, `_DEFAULT_RATE` where it does not."""
    rate = exact(stream.average_rate, Fraction(0)) or exact(stream.guessed_rate, _DEFAULT_RATE)
    return rate if 0 < rate <= 1000 else _DEFAULT_RATE


def _keyframe_at(
    container: InputContainer,
    file: _OneFile,
    stream: VideoStream,
    target: int,
    *,
    as_decoded: bool,
) -> "Packet[VideoStream] | None":
    """Set reading to a keyframe at or before `target`, and give it; None: cannot.

    Some containers seek to any packet: those before the next keyframe are passed over.
    `as_decoded` is that of `_demuxed`.
    """
    try:
        container.seek(target, stream=stream)
        for packet in _demuxed(container, stream, as_decoded=as_decoded):
            if packet.size and packet.is_keyframe:
                if _time_of(packet) is None:
                    return None
                file.error = None  # looking around may touch a damaged spot again
                return packet
    except (av.FFmpegError, OSError, IndexError):  # IndexError: as in `VideoSource._packets`
        return None
    return None


def _time_of(packet: "Packet[VideoStream]") -> int | None:
    return packet.pts if packet.pts is not None else packet.dts


def _demuxed(
    container: InputContainer, stream: VideoStream, *, as_decoded: bool
) -> "Iterator[Packet[VideoStream]]":
    """The packets of a stream.

    Args:
        as_decoded: whether their pts is to be the time of decoding, as `_AsShown` wants it, and not
            what FFmpeg guesses from that.
    """
    for packet in container.demux(stream):
        if as_decoded:
            packet.pts = packet.dts
        yield packet


def _lacks_pts(format: str, stream: VideoStream) -> bool:
    """Whether pictures are shown in another order than that of all the times there are.

    AVI holds none but those of decoding. Of MPEG-4 and MPEG-2, FFmpeg works out the others.
    """
    context = stream.codec_context
    reorders = context.codec.canonical_name in ("h264", "hevc") and context.has_b_frames
    return format == "avi" and bool(reorders)


# --- time ------------------------------------------------------------------------------------


class _AsShown:
    """Pictures in the order they are shown, with times of decoding -> with the same times, sorted.

    A sorted time is known once no picture that is shown later can have been decoded earlier.
    """

    def __init__(self) -> None:
        self._pictures: deque[VideoFrame] = deque()
        self._times: list[int] = []  # a heap
        self._latest = -1

    def push(self, picture: VideoFrame) -> Iterator[VideoFrame]:
        """What is known once `picture` came."""
        if picture.pts is None:
            picture.pts = self._latest + 1
        self._latest = max(self._latest, picture.pts)
        self._pictures.append(picture)
        heapq.heappush(self._times, picture.pts)
        if len(self._pictures) > _DECODED_AHEAD:
            yield self._next()

    def finish(self) -> Iterator[VideoFrame]:
        """The others, where none follows."""
        while self._pictures:
            yield self._next()

    def _next(self) -> VideoFrame:
        picture = self._pictures.popleft()
        picture.pts = heapq.heappop(self._times)
        return picture


class _Clock:
    """Gives every frame a time after the one before it, and changes no more than that takes.

    * A frame without a pts is shown when the one before it ends; the first, where the stream
      starts.
    * One that is not after the frame before, by less than `_GLITCH_S`, is moved to one tick after
      it; what follows keeps its own time.
    * Where the times go back further, or ahead by more than `_MAX_GAP_S`, the clock was set anew:
      the frame follows the one before, and those after it are shifted alike until their own times
      fit again.
    """

    def __init__(self, time_base: Fraction, rate: Fraction, start: int, problems: Problems) -> None:
        self._interval = max(1, round(1 / (rate * time_base)))
        self._glitch = round(_GLITCH_S / time_base)
        self._max_gap = min(round(_MAX_GAP_S / time_base), _MAX_GAP_TICKS)
        self._max_start = round(_MAX_START_S / time_base)
        self._start = start if abs(start) <= self._max_start else 0
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
        slack = max(1, usual // 10)
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
        return sum(
            n * (round(step / usual) - 1) for step, n in self._steps.items() if step > 1.5 * usual
        )


# --- a GPU's decoder -------------------------------------------------------------------------

_TO_THE_BIT = frozenset(("h264", "hevc", "vp9"))
"""Codecs that define every bit of a picture, so that NVDEC gives what FFmpeg's decoder gives."""

_AS_DECODED: dict[str, tuple[str, ...]] = {
    "nv12": ("yuv420p", "yuvj420p"),
    "p010le": ("yuv420p10le",),
    "p016le": ("yuv420p12le",),
}
"""Formats that NVDEC leaves on the GPU: what FFmpeg's own decoders call the same pictures."""

_FITTING = frozenset(name for names in _AS_DECODED.values() for name in names)


class _Nvdec:
    """NVDEC as FFmpeg gives it: how it is opened, and what its pictures are."""

    def __init__(self, gpu: int) -> None:
        self._gpu = gpu
        self._reformatter = VideoReformatter()

    def open(self, path: Path) -> tuple[InputContainer, _OneFile]:
        """As `_open`, with the video decoded on the GPU.

        Raises:
            EngineError, VideoOpenError: that cannot be.
        """
        hwaccel = HWAccel(
            "cuda",
            device=str(self._gpu),
            allow_software_fallback=True,  # where the chip lacks a profile, FFmpeg's own goes on
            options=nv12.CONTEXT_OPTIONS,
            is_hw_owned=True,
        )
        with nv12.context_of(self._gpu):
            return _open(path, hwaccel)

    def decode(
        self, decoder: VideoCodecContext, packet: "Packet[VideoStream] | None"
    ) -> list[VideoFrame]:
        """As `decoder` does it.

        Raises:
            EngineError: it failed, and not for what is in the packet.
        """
        try:
            return decoder.decode(packet)
        except av.FFmpegError as error:
            if isinstance(error, av.error.EOFError | ValueError):  # drained; the packet is damaged
                raise
            raise EngineError(f"NVDEC failed ({reason_of(error)})") from error

    @staticmethod
    def layout(picture: VideoFrame) -> str | None:
        """The format of a picture in the GPU's memory; None for one in the host's."""
        if picture.format.name != "cuda":
            return None
        return picture.sw_format.name if picture.sw_format is not None else "unknown"

    def on_host(self, picture: VideoFrame, layout: str) -> VideoFrame:
        """`picture` as FFmpeg's own decoder would have given it: the same samples, planar.

        Raises:
            EngineError: the GPU failed.
        """
        name = _AS_DECODED.get(layout, (layout,))[0]
        try:
            planar = self._reformatter.reformat(picture, format=name, threads=1)
        except av.FFmpegError as error:
            raise EngineError(f"NVDEC did not give back a picture ({reason_of(error)})") from error
        planar.colorspace = picture.colorspace  # which reformat may rewrite
        return planar


# --- the source ------------------------------------------------------------------------------


class VideoSource:
    """The frames of a recording, in the order they are shown.

    Opening decodes the first frame, so whatever is wrong from the start is told here, and `size`,
    `colour` and the rest are those of real frames. The rest is decoded while iterating.

        with VideoSource(path) as source:
            for frame in source: ...

    The planes of a frame are read-only views of the decoder's own memory; copy before drawing.

    Args:
        path: a regular file. Its name is never interpreted.
        start_s, end_s: hand out only the frames with start_s <= `Frame.seconds` < end_s. Decoding
            starts at a keyframe before `start_s`.
        decode_on: the GPU whose NVDEC is to decode, counted among those that are visible; `frames`
            then leaves what it can there. Where it cannot be used, or fails, `notes` says why, and
            all is as without it. None: FFmpeg's own decoder.

    Attributes:
        path, format, codec, pix_fmt: what is read. `format` is the container's name in FFmpeg.
        size: (height, width) of every frame: upright, and after scaling where the size changes.
        time_base: the stream's own. Every `Frame.time_base` is equal to it.
        average_rate: frames a second as the container claims it, 25 where it does not.
        start_time_s: when the recording itself starts, which need not be 0.
        duration_s: how long what is asked for lasts, as the container claims; None: not known.
        frame_count_hint: about how many frames to expect; None: not known.
        sample_aspect_ratio: width to height of a pixel, upright.
        colour: what the planes of every frame mean.
        colour_tags: (primaries, transfer, matrix) as the stream is tagged, by the code points of
            ISO/IEC 23091-2; 2 is "not specified".
        rotation_deg, mirrored: what was done to stand the picture upright: mirrored left to right
            where `mirrored`, after a clockwise turn.
        interlaced: whether an interlaced picture came so far.
        first_pts, last_duration: pts of the first frame; how long the last one so far is shown.
        video_streams: how many there are to choose from.
        problems: what was wrong so far.
        decoder: what made the last picture.
        notes: why frames are not, or no longer, left on the GPU as asked; one sentence each.

    Raises:
        ValueError: `end_s` is not after `start_s`.
        VideoOpenError: no readable recording, or no frame between `start_s` and `end_s`.
        VideoDecodeError: there is video, and none of it can be decoded.
    """

    def __init__(
        self,
        path: Path,
        *,
        start_s: float | None = None,
        end_s: float | None = None,
        decode_on: int | None = None,
    ) -> None:
        if start_s is not None and end_s is not None and not start_s < end_s:
            raise ValueError(f"end_s must be after start_s, got {start_s} and {end_s}")
        self.path = path
        self.problems = Problems()
        self.decoder: Literal["nvdec", "software"] = "software"
        self.notes: list[str] = []
        self._span = (start_s, end_s)
        self._frames = self._run()
        self._nvdec: _Nvdec | None = None
        self._stays = False  # whether pictures are left on the GPU
        self._settled = False  # whether the first picture has said what holds for all
        self._given: int | None = None  # pts of the last frame that was handed out
        self._container, self._file = _open(path)
        try:
            self._describe()
            if decode_on is not None:
                self._move_to(_Nvdec(decode_on))
            first = self._next()
            if first is None and self._nvdec is not None:
                self._leave_gpu("NVDEC gave no picture")
                first = self._next()
            if first is None:
                raise self._nothing()
        except BaseException:
            self.close()
            raise
        self.first_pts = first.pts
        self._first: Frame | DeviceFrame | None = first

    def _move_to(self, nvdec: _Nvdec) -> None:
        """Have `nvdec` decode from the beginning; where it cannot, leave all as it is, and say so.

        A file that cannot be read is found out before, so what fails here is the GPU's fault.
        """
        if self.codec not in _TO_THE_BIT or self.pix_fmt not in _FITTING:
            self._note(f"NVDEC is not used for {self.codec} in {self.pix_fmt}")
            return
        if self._as_shown is not None:  # keeps more pictures waiting than NVDEC has room for
            self._note(f"NVDEC is not used for {self.codec} with B-frames in {self.format}")
            return
        try:
            container, file = nvdec.open(self.path)
        except EngineError as error:
            self._note(str(error))
            return
        except VideoOpenError as error:
            self._note(f"FFmpeg cannot use the GPU ({reason_of(error.__cause__ or error)})")
            return
        self._close()
        self._container, self._file = container, file
        self._nvdec, self._stays = nvdec, True
        self._describe()

    def _leave_gpu(self, reason: str) -> None:
        """Have FFmpeg's own decoder begin anew, and pass over the frames that were given already.

        Times are strictly increasing and the same in every pass, so none is lost or comes twice;
        and the problems are those of a recording that was decoded in software.
        """
        self._note(reason)
        self._nvdec, self._stays, self.decoder = None, False, "software"
        self.problems = Problems(decoded=self.problems.decoded)
        self._close()
        self._container, self._file = _open(self.path)
        self._describe()
        given = self._given
        self._frames = (f for f in self._run() if given is None or f.pts > given)

    def _note(self, reason: str) -> None:
        self.notes.append(f"decoded into the host's memory: {reason}")

    def _describe(self) -> None:
        """What can be told before anything is decoded."""
        container = self._container
        self._stream: VideoStream = _best_video(container, show_path(self.path))
        stream = self._stream
        _set_up_decoder(stream)
        self._claimed_size = (stream.height, stream.width)  # which a decoder that fails forgets
        self.format = container.format.name
        self.codec = stream.codec_context.codec.canonical_name
        self.video_streams = len(container.streams.video)
        self.time_base = exact(stream.time_base, Fraction(1, 90_000))
        self.average_rate = _rate_of(stream)
        if self._nvdec is None:  # else it is "cuda", and the file's own is known already
            self.pix_fmt = stream.codec_context.pix_fmt or "unknown"
        self._start = stream.start_time or 0
        if abs(self._start) * self.time_base > _MAX_START_S:
            self._start = 0
        self.start_time_s = float(self._start * self.time_base)
        self._announced = self._announced_end()
        start_s, end_s = self._span
        begin = self.start_time_s if start_s is None else max(start_s, self.start_time_s)
        end = self._announced if end_s is None else min(end_s, self._announced or end_s)
        self.duration_s = None if end is None else max(0.0, end - begin)
        whole = start_s is None and end_s is None
        self.frame_count_hint = (
            stream.frames
            if whole and stream.frames > 0
            else None
            if self.duration_s is None
            else round(self.duration_s * self.average_rate)
        )
        self._clock = _Clock(self.time_base, self.average_rate, self._start, self.problems)
        self._as_decoded = _lacks_pts(self.format, stream)
        self._as_shown = _AsShown() if self._as_decoded else None
        self._deinterlacer = Deinterlacer(self.codec)
        self._planes = Planes()
        self._ahead: list[Packet[VideoStream]] = []  # read from the file, not yet decoded
        self._resume_after: int | None = None  # pictures up to this pts are not wanted
        self._sought = False
        self._stride_s = 1
        self._stuck_at: int | None = None
        self._packets_read = self._packets_shown = self._pictures = 0

    def _announced_end(self) -> float | None:
        """Where the container says that the video ends, in seconds; None where it does not."""
        length_s = self._length_s()
        if length_s is not None:
            return self.start_time_s + length_s
        length_s = (self._container.duration or 0) / 1e6
        start_s = (self._container.start_time or 0) / 1e6
        if not length_s:
            return None
        if self.format.startswith(("matroska", "asf", "nut")) and length_s > start_s:
            return length_s  # FFmpeg writes the end there, whenever the recording starts
        return start_s + length_s

    def _length_s(self) -> float | None:
        """How long the video itself lasts, as the container says; None where it does not.

        Some say only how long the longest stream lasts, which FFmpeg may give as that of each. For
        Matroska, FFmpeg and mkvmerge say more in a tag: the time of the end, such as
        00:00:01.600000000.
        """
        if self._stream.duration and not self.format.startswith(_ONE_LENGTH):
            return float(self._stream.duration * self.time_base)
        told = re.fullmatch(r"(\d+):(\d\d):(\d\d\.\d+)", self._stream.metadata.get("DURATION", ""))
        if told is None:
            return None
        hours, minutes, seconds = map(float, told.groups())
        length_s = 3600 * hours + 60 * minutes + seconds - self.start_time_s
        return length_s if length_s > 0 else None

    def _nothing(self) -> VideoOpenError | VideoDecodeError:
        """Why there is not one frame."""
        shown = show_path(self.path)
        if self._pictures:
            start_s, end_s = self._span
            asked = " and ".join(
                f"{word} {value:g} s"
                for word, value in (("from", start_s), ("before", end_s))
                if value is not None
            )
            last = (self._clock.last or 0) * self.time_base
            return VideoOpenError(
                f"{shown} has no frame {asked}: its frames lie between {self.start_time_s:.3f} s "
                f"and {float(last):.3f} s."
            )
        if self._packets_shown == 0:
            return VideoDecodeError(
                f"{shown} has a video stream without a single picture. Copy the recording again."
            )
        height, width = self._claimed_size
        if height * width > MAX_PIXELS:
            return VideoDecodeError(
                f"{shown} has pictures of {width}x{height}; up to {MAX_PIXELS} pixels are decoded, "
                "such as 4096x2304. Scale the recording down first."
            )
        return VideoDecodeError(
            f"nothing in {shown} can be decoded: {self._packets_shown} packets of {self.codec} "
            "gave no picture. Check that it plays in ffplay."
        )

    @property
    def interlaced(self) -> bool:
        return self._deinterlacer.seen

    @property
    def metadata(self) -> dict[str, dict[str, str]]:
        """What the file says of itself, as "container", "video" and "audio": names, places, times.
        It can tell who was recorded. Nothing of how the file is written is among it."""
        sound = self._container.streams.best("audio")
        said = {"container": self._container.metadata, "video": self._stream.metadata}
        said["audio"] = sound.metadata if sound is not None else {}
        return {where: _portable(tags) for where, tags in said.items()}

    @property
    def last_duration(self) -> int:
        return self._clock.duration

    def open_audio(self) -> "AudioSource":
        """The sound of the same stretch of the recording, read on its own."""
        start_s, end_s = self._span
        first_s = None if start_s is None else float(self.first_pts * self.time_base)
        return AudioSource(self.path, start_s=first_s, end_s=end_s)

    def __iter__(self) -> Iterator[Frame]:
        """The frames that are left, in the host's memory. Can be left early, and gone on with."""
        for frame in self.frames():
            yield frame.on_host() if isinstance(frame, DeviceFrame) else frame

    def frames(self) -> Iterator[Frame | DeviceFrame]:
        """The frames that are left, each where it was decoded; otherwise as iterating.

        A `DeviceFrame` is complete in the order of the CUDA stream that is current here.
        """
        while True:
            frame, self._first = self._first or self._next(), None
            if frame is None:
                return
            self.problems.decoded += 1
            self._given = frame.pts
            yield frame

    def _next(self) -> Frame | DeviceFrame | None:
        """The next frame, None at the end. Where the GPU fails, it is FFmpeg's own decoder's."""
        try:
            return next(self._frames, None)
        except EngineError as error:
            if self._nvdec is None:
                raise
            self._leave_gpu(str(error))
            return next(self._frames, None)

    # The stages of decoding, from the outside in: each takes what the next one gives.

    def _run(self) -> Generator[Frame | DeviceFrame, None, None]:
        """The frames of the asked-for stretch."""
        start_s, end_s = self._span
        if start_s is not None:
            self._seek(start_s)
        before: tuple[tuple[int, int], Colour] | None = None
        for picture, pts in self._progressive():
            time = pts * self.time_base
            if start_s is not None and time < start_s:
                continue
            if end_s is not None and time >= end_s:
                return
            stored, colour = (picture.height, picture.width), colour_of(picture)
            orientation = Orientation.of(picture)
            if not self._settled:
                self._settle(picture, orientation, colour)
            upright = orientation.size(stored)
            if before is not None:
                self.problems.size_changes += upright != before[0]
                self.problems.colour_changes += colour != before[1]
            before = (upright, colour)
            if self._stays:
                yield DeviceFrame(*nv12.planes_of(picture), pts, self.time_base, self.colour)
                continue
            try:
                y, u, v = self._planes.of(picture, orientation.size(self.size), self.colour)
            except av.FFmpegError:  # a format that swscale cannot read
                self._pictures -= 1
                continue
            frame = Frame(
                orientation.apply(y),
                orientation.apply(u),
                orientation.apply(v),
                pts,
                self.time_base,
                self.colour,
            )
            yield frame
        if end_s is None:
            self._count_losses(whole=start_s is None)

    def _settle(self, picture: VideoFrame, orientation: Orientation, colour: Colour) -> None:
        """Take from the first picture what holds for all frames."""
        self._settled = True
        self.size = orientation.size((picture.height, picture.width))
        self.colour = colour
        self.colour_tags = (picture.color_primaries, picture.color_trc, picture.colorspace)
        if self._nvdec is None:
            self.pix_fmt = picture.format.name
        self.rotation_deg = orientation.rotation_deg
        self.mirrored = orientation.mirrored
        sar = exact(self._stream.sample_aspect_ratio, Fraction(1))
        sar = sar if Fraction(1, 10) <= sar <= 10 else Fraction(1)
        self.sample_aspect_ratio = 1 / sar if orientation.transpose else sar

    def _progressive(self) -> Iterator[tuple[VideoFrame, int]]:
        for picture, pts in self._timed():
            yield from self._deinterlacer.push(picture, pts)
        yield from self._deinterlacer.finish()

    def _timed(self) -> Iterator[tuple[VideoFrame, int]]:
        for picture in self._decoded():
            pts = picture.pts
            if self._resume_after is not None and pts is not None:
                if pts <= self._resume_after:  # came already, before the damaged spot
                    continue
                self._resume_after = None
            yield picture, self._clock.next(pts, picture.duration)

    def _decoded(self) -> Iterator[VideoFrame]:
        for packet in self._packets():
            for picture in self._decode(packet):
                self._pictures += 1
                self.problems.corrupt_frames += picture.is_corrupt
                if self._as_shown is not None:
                    yield from self._as_shown.push(picture)
                else:
                    yield picture if self._nvdec is None else self._placed(picture, self._nvdec)
            if packet is None and self._as_shown is not None:
                yield from self._as_shown.finish()

    def _placed(self, picture: VideoFrame, nvdec: _Nvdec) -> VideoFrame:
        """`picture` on the GPU, or from the first one on that does not fit there, on the host.

        Every picture passes here once, in the order they are shown: none is lost or comes twice
        where the way changes, and the decoder goes on.
        """
        layout = nvdec.layout(picture)
        self.decoder = "software" if layout is None else "nvdec"
        if self._stays:
            misfit = self._misfit(picture, layout)
            if not misfit:
                return picture
            self._stays = False
            self._note(f"picture {self._pictures} {misfit}")
        return picture if layout is None else nvdec.on_host(picture, layout)

    def _misfit(self, picture: VideoFrame, layout: str | None) -> str:
        """Why no `DeviceFrame` can be made of `picture` as it is; empty where one can."""
        size, colour = (picture.height, picture.width), colour_of(picture)
        exact = MATRICES.get(picture.colorspace, (colour.matrix, SWS_OF[colour.matrix]))[1]
        reasons = (
            (layout is None, "was left by NVDEC to FFmpeg's decoder"),
            (layout not in _AS_DECODED, f"is in {layout}"),
            (picture.interlaced_frame, "is interlaced"),
            (Orientation.of(picture) != Orientation(), "is turned or mirrored"),
            (picture.height % 2 or picture.width % 2, "is of odd size"),
            (exact != SWS_OF[colour.matrix], "is in the colours of FCC or SMPTE 240M"),
            (self._settled and size != self.size, "is of another size"),
            (
                self._settled
                and (colour.matrix, colour.full_range)
                != (self.colour.matrix, self.colour.full_range),
                "is of another colour",
            ),
        )
        return next((text for holds, text in reasons if holds), "")

    def _decode(self, packet: "Packet[VideoStream] | None") -> list[VideoFrame]:
        """The pictures that `packet` completes; those that are left for None."""
        if packet is not None and packet.size:
            self._packets_read += 1
            self._packets_shown += not packet.is_discard
        marked = packet is not None and packet.is_corrupt
        self.problems.corrupt_packets += marked
        try:
            decoder = self._stream.codec_context
            if self._nvdec is not None:
                return self._nvdec.decode(decoder, packet)
            return decoder.decode(packet)
        except av.error.EOFError:  # drained already
            return []
        except (av.FFmpegError, ValueError):  # ValueError: from PyAV 19 on, the decoder refused
            self.problems.corrupt_packets += not marked
            return []

    def _packets(self) -> Iterator["Packet[VideoStream] | None"]:
        """The packets of the stream; None to drain the decoder, at the end and before a seek.

        An error of the demuxer ends a pass of `demux`. Often the next pass goes on behind the
        damaged spot by itself; else, and where the disk failed, a seek may reach what lies behind.
        """
        failures = skips = 0
        while True:
            try:
                while self._ahead:
                    yield self._ahead.pop(0)
                for packet in _demuxed(self._container, self._stream, as_decoded=self._as_decoded):
                    if packet.size:  # an empty one would drain the decoder; PyAV ends with one
                        failures = 0
                        yield packet
                self._file.check()
                failures = 0
            except IndexError:  # PyAV, at the end of a file in which a stream appeared late
                failures = 0
            except av.FFmpegError:
                self.problems.demux_errors += failures == 0
                failures += 1
            except OSError:
                self.problems.demux_errors += failures == 0
                failures = _TRIES
            if 0 < failures < _TRIES:
                continue
            yield None
            if failures == 0:
                return
            skips += 1
            if skips > _MAX_SKIPS or not self._skip_ahead():
                self.problems.truncated = True
                return

    def _skip_ahead(self) -> bool:
        """Set reading to a keyframe behind a spot that cannot be read; False where there is none.

        It looks a second ahead of the last frame, and twice as far each time that nothing came of
        it, here or in reading on from there.
        """
        last = self._clock.last
        if last is None:
            return False
        stride_s = self._stride_s * 2 if last == self._stuck_at else 1
        limit = self._announced if self._announced is not None else _MAX_GAP_S
        while (last * self.time_base) + stride_s < limit:
            self._stuck_at, self._stride_s = last, stride_s
            if self._seek_keyframe(last + round(stride_s / self.time_base)) is not None:
                self._resume_after = max(last, self._resume_after or last)
                return True
            stride_s *= 2
        return False

    def _seek_keyframe(self, target: int) -> int | None:
        """Set reading to a keyframe at or before `target`, and give its time; None: cannot."""
        self._sought = True
        packet = _keyframe_at(
            self._container, self._file, self._stream, target, as_decoded=self._as_decoded
        )
        if packet is None:
            return None
        time = _time_of(packet)
        assert time is not None
        self._ahead = [packet]
        self._resume_after = time - 1  # pictures before it lack what they refer to
        return time

    def _seek(self, start_s: float) -> None:
        """Set reading to a keyframe before `start_s`; to the beginning where there is none."""
        target = int(start_s / self.time_base)
        for margin_s in _SEEK_MARGINS_S:
            if target <= self._start:
                break
            found = self._seek_keyframe(target - round(margin_s / self.time_base))
            if found is not None and found <= target:
                return
        self._close()
        self._container, self._file = (
            _open(self.path) if self._nvdec is None else self._nvdec.open(self.path)
        )
        self._describe()

    def _count_losses(self, *, whole: bool) -> None:
        """Compare what came with what was there, at the end of the recording."""
        problems = self.problems
        shown = self._packets_shown
        if self.interlaced and shown >= 1.8 * self._pictures:
            shown = (shown + 1) // 2  # a packet a field
        if self.codec != "vp8" and not self._sought:  # VP8 has packets that are never shown
            problems.skipped_frames = max(0, shown - self._pictures)
        problems.missing_frames = max(0, self._clock.missing() - problems.skipped_frames)
        if whole and self.format.startswith(("mov", "avi")) and self._stream.frames:
            absent = self._stream.frames - self._packets_read
            problems.missing_frames = max(problems.missing_frames, absent)
        parts = self._file.parts
        if parts is not None and whole:
            parts.read_on(self._file)
            problems.unread_recording = parts.another
            problems.demux_errors = max(problems.demux_errors, parts.broken)
            problems.truncated |= parts.cut_off
            if parts.complete and self._length_s() is None:
                return  # what is announced is the length of another stream
        last = self._clock.last
        if last is not None and self._announced is not None:
            end_s = float((last + self._clock.duration) * self.time_base)
            slack = self._slack_s()
            problems.truncated |= end_s < self._announced - slack and not self._sound_lasts(slack)

    def _slack_s(self) -> float:
        """By how much less than announced a recording may last."""
        assert self._announced is not None
        parts, step = self._file.parts, self._clock.step()
        even = step is not None and self.format not in _ROUGH_LENGTHS
        if not even and (parts is None or parts.broken):
            return max(1.0, 0.02 * self._announced)
        least = 0.0 if even and self._length_s() is not None else _LEAST_SLACK_S
        longest = step or 0
        if parts is not None and (parts.complete or not even):
            # no gap is a loss; and few containers say how long the last frame is shown
            longest = self._clock.longest()
        return max(least, float(longest * self.time_base) * 1.5)

    def _sound_lasts(self, slack: float) -> bool:
        """Whether what was announced is the length of the sound, and the sound is there."""
        sound = self._container.streams.best("audio")
        if self._length_s() is not None or self._announced is None or sound is None:
            return False
        time_base = exact(sound.time_base, Fraction(1, 90_000))
        late = int((self._announced - 2.0) / time_base)
        end = int((self._announced - slack) / time_base)
        try:
            self._container.seek(late, stream=sound)
            packets = self._container.demux(sound)
            return any(
                p.size and p.pts is not None and p.pts + (p.duration or 0) >= end for p in packets
            )
        except (av.FFmpegError, OSError, IndexError):  # IndexError: as in `_packets`
            return False

    def close(self) -> None:
        """Free decoder and file. Frames that were handed out stay good."""
        self._frames.close()
        self._close()

    def _close(self) -> None:
        self.__dict__.pop("_stream", None)  # with it goes the decoder, and its threads
        self._container.close()
        self._file.close()

    def __enter__(self) -> "VideoSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _portable(tags: Mapping[str, str]) -> dict[str, str]:
    """Those that are true of another file with the same pictures."""
    return {
        key: value
        for key, value in tags.items()
        if key.lower() not in _OF_THE_FILE and not key.startswith("_STATISTICS")
    }


class PacketSource:
    """The packets of a recording's pictures, as they are, in the order of decoding: for copying.

    They are those of the stream that a `VideoSource` decodes. Empty ones are left out, and where
    an AVI packs two pictures of MPEG-4 into a packet each gets its own, as other containers want.

    Args:
        path: a regular file.
        start_s: begin with the last keyframe that is not shown after this time; with the first
            packet where there is none. None: with the first packet.

    Attributes:
        format: the container's name in FFmpeg.
        stream: the stream; `time_base` is its own.
        codec: its name in FFmpeg.
        as_decoded: whether their pts are times of decoding, since the container holds no others.
        unread: how many spots of the file could not be read, so far.

    Raises:
        VideoOpenError: no readable recording.
    """

    def __init__(self, path: Path, *, start_s: float | None = None) -> None:
        self._path = path
        self._ahead: list[Packet[VideoStream]] = []
        self._passed = 0  # packets that come before what is wanted
        self.unread = 0
        self._begin()
        try:
            if start_s is not None:
                self._seek(start_s)
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        self._container, self._file = _open(self._path)
        self.stream = _best_video(self._container, show_path(self._path))
        for other in self._container.streams:
            if other.index != self.stream.index:
                other.discard = Discard.all  # so that containers need not read them
        self.codec = self.stream.codec_context.codec.canonical_name
        self.format = self._container.format.name
        self.time_base = exact(self.stream.time_base, Fraction(1, 90_000))
        self.as_decoded = _lacks_pts(self.format, self.stream)
        packed = self.codec == "mpeg4" and self.format == "avi"
        self._unpack = (
            BitStreamFilterContext("mpeg4_unpack_bframes", in_stream=self.stream)
            if packed
            else None
        )

    def _seek(self, start_s: float) -> None:
        """Set reading to the last keyframe that is not shown after `start_s`."""
        target = int(start_s / self.time_base)
        for margin_s in _SEEK_MARGINS_S:
            wanted = target - round(margin_s / self.time_base)
            packet = self._keyframe_at(wanted)
            if packet is not None and (_time_of(packet) or 0) <= target:
                self._passed = self._packets_before(packet, target)
                again = self._keyframe_at(wanted)
                if again is not None:
                    self._ahead = [again]
                    return
        self.close()
        self._begin()
        self._passed = self._packets_before(None, target)
        self.close()
        self._begin()

    def _keyframe_at(self, target: int) -> "Packet[VideoStream] | None":
        return _keyframe_at(
            self._container, self._file, self.stream, target, as_decoded=self.as_decoded
        )

    def _packets_before(self, first: "Packet[VideoStream] | None", target: int) -> int:
        """How many packets there are from `first` to the last keyframe up to `target`."""
        before, count = 0, 0 if first is None else 1
        with suppress(av.FFmpegError, OSError, IndexError):  # read on it is said
            for packet in _demuxed(self._container, self.stream, as_decoded=self.as_decoded):
                time = _time_of(packet)
                if packet.size == 0 or time is None:
                    continue
                if (packet.dts if packet.dts is not None else time) > target:
                    break
                if packet.is_keyframe and time <= target:
                    before = count
                count += 1
        self._file.error = None
        return before

    def __iter__(self) -> "Iterator[Packet[VideoStream]]":
        for packet in islice(self._readable(), self._passed, None):
            if self._unpack is None:
                yield packet
                continue
            time_base = packet.time_base  # which the filter takes away
            for each in self._unpack.filter(packet):
                each.time_base = time_base
                yield each

    def _readable(self) -> "Iterator[Packet[VideoStream]]":
        """As `VideoSource._packets`: past a spot that cannot be read it goes on behind it."""
        failures = skips = 0
        last = 0
        while True:
            try:
                while self._ahead:
                    yield self._ahead.pop(0)
                for packet in _demuxed(self._container, self.stream, as_decoded=self.as_decoded):
                    if packet.size:
                        failures = 0
                        last = max(last, _time_of(packet) or 0)
                        yield packet
                self._file.check()
                return
            except IndexError:  # as in `VideoSource._packets`
                return
            except av.FFmpegError:
                self.unread += failures == 0
                failures += 1
            except OSError:
                self.unread += failures == 0
                failures = _TRIES
            if failures < _TRIES:
                continue
            skips += 1
            if skips > _MAX_SKIPS or not self._skip_ahead(last):
                return
            failures = 0

    def _skip_ahead(self, last: int) -> bool:
        stride_s = 1
        while stride_s < _MAX_GAP_S:
            target = last + round(stride_s / self.time_base)
            packet = self._keyframe_at(target)
            if packet is not None and (_time_of(packet) or 0) > last:
                self._ahead = [packet]
                return True
            stride_s *= 2
        return False

    def close(self) -> None:
        """Free the file."""
        self.__dict__.pop("stream", None)  # with it goes the decoder
        self._container.close()
        self._file.close()

    def __enter__(self) -> "PacketSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def packet_times(path: Path) -> list[int]:
    """When the picture of each packet of a `PacketSource` is shown, by the clock of `VideoSource`.

    For recordings whose packets lack times, or have wrong ones: decodes all of it. A packet without
    a picture of its own gets the next free time after that of the packet before.

    Raises:
        VideoOpenError: no readable recording.
    """
    times: list[int | None] = []
    with PacketSource(path) as source:
        stream = source.stream
        clock = _Clock(source.time_base, _rate_of(stream), stream.start_time or 0, Problems())
        for picture in _numbered_pictures(source, times):
            time = clock.next(picture.pts, picture.duration)
            if isinstance(picture.opaque, int):
                times[picture.opaque] = time
    taken = {time for time in times if time is not None}
    found: list[int] = []
    for known in times:
        time = known if known is not None else found[-1] + 1 if found else min(taken, default=0) - 1
        while known is None and time in taken:
            time += 1
        taken.add(time)
        found.append(time)
    return found


def _numbered_pictures(source: PacketSource, times: list[int | None]) -> Iterator[VideoFrame]:
    """All pictures of a recording as they are shown, each with the number of its packet as
    `opaque`; `times` grows with the packets that are read."""
    _set_up_decoder(source.stream)
    decoder = source.stream.codec_context
    decoder.copy_opaque = True
    as_shown = _AsShown() if source.as_decoded else None
    for number, packet in enumerate(chain(source, [None])):
        if packet is not None:
            times.append(None)
            packet.opaque = number
        with suppress(av.FFmpegError, ValueError):  # what cannot be decoded is copied all the same
            for picture in decoder.decode(packet):
                yield from [picture] if as_shown is None else as_shown.push(picture)
    if as_shown is not None:
        yield from as_shown.finish()


class AudioSource:
    """The packets of a recording's sound, as they are, for copying.

    Opens the file on its own, so that the sound of a long recording is read when it is wanted and
    never waits in memory for the video.

    Args:
        path: a regular file, as for `VideoSource`.
        start_s, end_s: only packets that are heard after `start_s` and begin before `end_s`.

    Attributes:
        stream: None where there is no sound, or none that this build of FFmpeg can decode.

    Raises:
        VideoOpenError: no readable recording.
    """

    def __init__(
        self, path: Path, *, start_s: float | None = None, end_s: float | None = None
    ) -> None:
        self._span = (start_s, end_s)
        self._container, self._file = _open(path)
        best = self._container.streams.best("audio")
        self.stream: AudioStream | None = (
            best if isinstance(best, AudioStream) and best.codec_context is not None else None
        )

    def __iter__(self) -> "Iterator[Packet[AudioStream]]":
        """The packets in the order of the file, up to the first spot that cannot be read."""
        stream = self.stream
        if stream is None:
            return
        time_base = exact(stream.time_base, Fraction(1, 90_000))
        start_s, end_s = self._span
        if start_s is not None:
            with suppress(av.FFmpegError):  # cannot seek: read on from the beginning
                self._container.seek(int(start_s / time_base), stream=stream)
        try:
            for packet in self._container.demux(stream):
                if packet.size == 0 or packet.pts is None:
                    continue
                if start_s is not None:
                    heard_until = (packet.pts + (packet.duration or 1)) * time_base
                    if heard_until <= start_s:
                        continue
                if end_s is not None and packet.pts * time_base >= end_s:
                    return
                yield packet
        except (av.FFmpegError, OSError, IndexError):  # IndexError: as in `VideoSource`
            return  # what came is good; the video tells where the file is damaged

    def close(self) -> None:
        """Free decoder and file."""
        self._container.close()
        self._file.close()

    def __enter__(self) -> "AudioSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
