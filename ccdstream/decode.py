"""Container -> frames. The only reader of video files.

In: the path of a recording, in any container and codec that the PyAV wheel knows. Out: its pictures
as `Frame`s in the order they are shown, upright, progressive, 8-bit YUV 4:2:0, each with its exact
time.

The file is opened by `container`, its packets are read by `packets`. Times are those of the file:
`pts` counts in the stream's own `time_base`, from wherever the file starts. Where a file has no
usable times, `Clock` says what is done, and `Problems` counts it; where it holds times of decoding
alone, `AsShown`.

Colour is what the file is tagged with. What is not tagged follows one rule, in `colour_of`.

Damaged packets are skipped and counted, and nothing is raised while anything can be decoded.
Decoders thread within a picture only: with a thread a picture, FFmpeg hands out a picture's marks
of damage before another thread may have found it, and the count differs from pass to pass.

NVIDIA's decoder, `Nvdec`, can take the place of FFmpeg's: demuxer, clock, counts and all that is
done about damage stay the same code. It leaves its pictures on the GPU, as `DeviceFrame`s, while
they are what nearly every recording holds. From the first one on that is anything else, they are
brought to the host as FFmpeg's decoder would have given them, and go the way of those.
"""

import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Literal

import av
import av.error
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ccdstream import nv12
from ccdstream.clock import AsShown, Clock
from ccdstream.errors import EngineError, VideoDecodeError, VideoOpenError, reason_of, show_path
from ccdstream.frames import Colour, DeviceFrame, Frame
from ccdstream.nvdec import LAYOUTS, Nvdec
from ccdstream.packets import AudioSource, Demuxer, PacketSource
from ccdstream.picture import (
    MATRICES,
    MAX_PIXELS,
    SWS_OF,
    Deinterlacer,
    Orientation,
    Planes,
    colour_of,
    exact,
)
from ccdstream.problems import Problems

_OUTPUT_CORRUPT = 1 << 3
"""AV_CODEC_FLAG_OUTPUT_CORRUPT: without it some decoders drop every picture after a damaged one,
in silence."""

_DEFAULT_RATE = Fraction(25)
"""Frames a second where the container does not say: FFmpeg's own default for raw streams."""

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

_RECENT = 2048
"""Packets among which one that comes twice is known: some fragments of 10 s at 60 frames a second.
Further back, the recording was begun anew."""

_ROUGH_LENGTHS = frozenset(
    ("h264", "hevc", "vvc", "m4v", "mpegvideo", "mjpeg", "vc1", "h261", "h263")
)
"""Formats without times, whose length FFmpeg guesses from size and bit rate."""


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
        self._nvdec: Nvdec | None = None
        self._stays = False  # whether pictures are left on the GPU
        self._settled = False  # whether the first picture has said what holds for all
        self._given: int | None = None  # pts of the last frame that was handed out
        self._demuxer = Demuxer(path)
        try:
            self._describe()
            if decode_on is not None:
                self._move_to(Nvdec(decode_on))
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

    def _move_to(self, nvdec: Nvdec) -> None:
        """Have `nvdec` decode from the beginning; where it cannot, leave all as it is, and say so.

        A file that cannot be read is found out before, so what fails here is the GPU's fault.
        """
        if not nvdec.fits(self.codec, self.pix_fmt):
            self._note(f"NVDEC is not used for {self.codec} in {self.pix_fmt}")
            return
        if self._as_shown is not None:  # keeps more pictures waiting than NVDEC has room for
            self._note(f"NVDEC is not used for {self.codec} with B-frames in {self.format}")
            return
        try:
            demuxer = Demuxer(self.path, open=nvdec.open)
        except EngineError as error:
            self._note(str(error))
            return
        except VideoOpenError as error:
            self._note(f"FFmpeg cannot use the GPU ({reason_of(error.__cause__ or error)})")
            return
        self._demuxer.close()
        self._demuxer = demuxer
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
        self._demuxer.close()
        self._demuxer = Demuxer(self.path)
        self._describe()
        given = self._given
        self._frames = (f for f in self._run() if given is None or f.pts > given)

    def _note(self, reason: str) -> None:
        self.notes.append(f"decoded into the host's memory: {reason}")

    def _describe(self) -> None:
        """What can be told before anything is decoded."""
        demuxer, stream = self._demuxer, self._demuxer.stream
        _set_up_decoder(stream)
        self._claimed_size = (stream.height, stream.width)  # which a decoder that fails forgets
        self.format, self.codec = demuxer.format, demuxer.codec
        self.video_streams = len(demuxer.container.streams.video)
        self.time_base = demuxer.time_base
        self.average_rate = _rate_of(stream)
        if self._nvdec is None:  # else it is "cuda", and the file's own is known already
            self.pix_fmt = stream.codec_context.pix_fmt or "unknown"
        self.start_time_s = float(demuxer.start * self.time_base)
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
        self._clock = Clock(self.time_base, self.average_rate, demuxer.start, self.problems)
        self._as_shown = AsShown[VideoFrame]() if demuxer.as_decoded else None
        self._deinterlacer = Deinterlacer(self.codec)
        self._planes = Planes()
        self._resume_after: int | None = None  # pictures up to this pts are not wanted
        self._recent: dict[tuple[int | None, int], None] = {}  # pts and size; the oldest first
        self._packets_read = self._packets_shown = self._pictures = 0

    def _announced_end(self) -> float | None:
        """Where the container says that the video ends, in seconds; None where it does not."""
        length_s = self._length_s()
        if length_s is not None:
            return self.start_time_s + length_s
        length_s = (self._demuxer.container.duration or 0) / 1e6
        start_s = (self._demuxer.container.start_time or 0) / 1e6
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
        if self._demuxer.stream.duration and not self.format.startswith(_ONE_LENGTH):
            return float(self._demuxer.stream.duration * self.time_base)
        told = re.fullmatch(
            r"(\d+):(\d\d):(\d\d\.\d+)", self._demuxer.stream.metadata.get("DURATION", "")
        )
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
        sound = self._demuxer.container.streams.best("audio")
        said = {
            "container": self._demuxer.container.metadata,
            "video": self._demuxer.stream.metadata,
        }
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
            time = float(pts * self.time_base)  # as exact as what people write: 0.1 is 0.1
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
        sar = exact(self._demuxer.stream.sample_aspect_ratio, Fraction(1))
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

    def _placed(self, picture: VideoFrame, nvdec: Nvdec) -> VideoFrame:
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
            (layout not in LAYOUTS, f"is in {layout}"),
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
            self._packets_shown += self._is_to_be_shown(packet)
        marked = packet is not None and packet.is_corrupt
        self.problems.corrupt_packets += marked
        try:
            decoder = self._demuxer.stream.codec_context
            if self._nvdec is not None:
                return self._nvdec.decode(decoder, packet)
            return decoder.decode(packet)
        except av.error.EOFError:  # drained already
            return []
        except (av.FFmpegError, ValueError):  # ValueError: from PyAV 19 on, the decoder refused
            self.problems.corrupt_packets += not marked
            return []

    def _is_to_be_shown(self, packet: "Packet[VideoStream]") -> bool:
        """Whether its picture is one of the recording: an edit list leaves out others.

        FFmpeg marks for leaving out what goes back in time, too, as a fragment of damaged time
        does; and one that comes twice, of which nothing is lost.
        """
        if not self._demuxer.file.unedited:
            return not packet.is_discard
        known = (packet.pts, packet.size)
        if packet.is_discard:
            return known not in self._recent
        self._recent[known] = None
        if len(self._recent) > _RECENT:
            del self._recent[next(iter(self._recent))]
        return True

    def _packets(self) -> Iterator["Packet[VideoStream] | None"]:
        """The packets of the stream; None to drain the decoder."""
        for packet in self._demuxer.packets(self._skip_ahead):
            self.problems.demux_errors = self._demuxer.unread
            yield packet
        self.problems.truncated = self._demuxer.gave_up

    def _skip_ahead(self) -> bool:
        """Go on behind a spot that cannot be read; False where there is nothing."""
        last = self._clock.last
        if last is None:
            return False
        time = self._demuxer.skip_ahead(last, end_s=self._announced)
        if time is None:
            return False
        self._resume_after = max(last, time - 1)
        return True

    def _seek(self, start_s: float) -> None:
        """Set reading to a keyframe before `start_s`; to the beginning where there is none."""
        time = self._demuxer.seek(int(start_s / self.time_base))
        if time is None:
            self._demuxer.begin_anew()
            self._describe()
        else:
            self._resume_after = time - 1  # pictures before it lack what they refer to

    def _count_losses(self, *, whole: bool) -> None:
        """Compare what came with what was there, at the end of the recording."""
        problems = self.problems
        shown = self._packets_shown
        if self.interlaced and shown >= 1.8 * self._pictures:
            shown = (shown + 1) // 2  # a packet a field
        if self.codec != "vp8" and not self._demuxer.sought:  # VP8 has packets that are never shown
            problems.skipped_frames = max(0, shown - self._pictures)
        problems.missing_frames = max(0, self._clock.missing() - problems.skipped_frames)
        if whole and self.format.startswith(("mov", "avi")) and self._demuxer.stream.frames:
            absent = self._demuxer.stream.frames - self._packets_read
            problems.missing_frames = max(problems.missing_frames, absent)
        parts = self._demuxer.file.parts
        if parts is not None and whole:
            parts.read_on(self._demuxer.file)
            problems.unread_recording = parts.another
            problems.demux_errors = max(problems.demux_errors, parts.broken)
            problems.truncated |= parts.cut_off
            if parts.complete and self._length_s() is None:
                return  # what is announced is the length of another stream
        last = self._clock.last
        if last is not None and self._announced is not None:
            end_s = float((last + self._clock.duration) * self.time_base)
            if parts is not None and parts.from_zero:
                end_s += max(0.0, self.start_time_s)
            slack = self._slack_s()
            problems.truncated |= end_s < self._announced - slack and not self._sound_lasts(slack)

    def _slack_s(self) -> float:
        """By how much less than announced a recording may last."""
        assert self._announced is not None
        parts, step = self._demuxer.file.parts, self._clock.step()
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
        sound = self._demuxer.container.streams.best("audio")
        if self._length_s() is not None or self._announced is None or sound is None:
            return False
        time_base = exact(sound.time_base, Fraction(1, 90_000))
        late = int((self._announced - 2.0) / time_base)
        end = int((self._announced - slack) / time_base)
        try:
            self._demuxer.container.seek(late, stream=sound)
            packets = self._demuxer.container.demux(sound)
            return any(
                p.size and p.pts is not None and p.pts + (p.duration or 0) >= end for p in packets
            )
        except (av.FFmpegError, OSError, IndexError):  # IndexError: as in `_packets`
            return False

    def close(self) -> None:
        """Free decoder and file. Frames that were handed out stay good."""
        self._frames.close()
        self._demuxer.close()

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
        clock = Clock(source.time_base, _rate_of(stream), source.start, Problems())
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
    as_shown = AsShown[VideoFrame]() if source.as_decoded else None
    for number, packet in enumerate(chain(source, [None])):
        if packet is not None:
            times.append(None)
            packet.opaque = number
        with suppress(av.FFmpegError, ValueError):  # what cannot be decoded is copied all the same
            for picture in decoder.decode(packet):
                yield from [picture] if as_shown is None else as_shown.push(picture)
    if as_shown is not None:
        yield from as_shown.finish()
