"""Container -> packets: of the pictures and of the sound, as they are, with nothing decoded.

In: a recording. Out: its packets in the order of decoding. What is damaged is passed over: where a
spot of the file cannot be read, reading goes on behind it.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Self

import av
from av.audio.stream import AudioStream
from av.bitstream import BitStreamFilterContext
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard
from av.video.stream import VideoStream

from ccdstream.clock import MAX_GAP_S, MAX_START_S
from ccdstream.container import OneFile, best_video, open_container
from ccdstream.errors import show_path
from ccdstream.picture import exact

_TRIES = 3
"""How often reading is tried again at a damaged spot before a seek."""

_MAX_SKIPS = 16
"""How often reading goes on behind a damaged spot of the file before it gives up."""

_SEEK_MARGINS_S = (0, 10, 60)
"""How long before the wanted time to look for a keyframe, one after the other."""


class Demuxer:
    """The packets of the stream that holds the pictures of a recording.

    Args:
        path: a regular file.
        open: opens it.

    Attributes:
        container, file: what is open.
        stream: the stream, and `codec` its name in FFmpeg.
        format: the container's name in FFmpeg.
        time_base: the stream's own.
        start: when the stream starts, in ticks; 0 where that is not known, or absurd.
        as_decoded: whether pts are times of decoding, since the container holds no others. They
            are then not those that FFmpeg guesses, and `AsShown` sorts them.
        unread: how many spots of the file could not be read, so far.
        gave_up: whether the end was not reached for such a spot.
        sought: whether reading was set to another place, so that not every packet comes.

    Raises:
        VideoOpenError: no readable recording.
    """

    def __init__(
        self,
        path: Path,
        *,
        open: Callable[[Path], tuple[InputContainer, OneFile]] = open_container,
    ) -> None:
        self.path = path
        self._open = open
        self._begin()

    def _begin(self) -> None:
        self.container, self.file = self._open(self.path)
        try:
            self.stream: VideoStream = best_video(self.container, show_path(self.path))
        except BaseException:
            self.close()
            raise
        self.codec = self.stream.codec_context.codec.canonical_name
        self.format = self.container.format.name
        self.time_base = exact(self.stream.time_base, Fraction(1, 90_000))
        start = self.stream.start_time or 0
        self.start = start if abs(start) * self.time_base <= MAX_START_S else 0
        self.as_decoded = _lacks_pts(self.format, self.stream)
        self._ahead: list[Packet[VideoStream]] = []  # read from the file, not yet handed out
        self.unread = 0
        self.gave_up = self.sought = False
        self._stride_s = 1
        self._stuck_at: int | None = None

    def begin_anew(self) -> None:
        """Close the file, and open it again at its beginning."""
        self.close()
        self._begin()

    def packets(self, skip_ahead: Callable[[], bool]) -> "Iterator[Packet[VideoStream] | None]":
        """The packets that are left, without empty ones; None where a decoder has to be drained,
        at the end and before `skip_ahead`.

        An error of FFmpeg's demuxer ends a pass of `demux`. Often the next pass goes on behind the
        damaged spot by itself; else, and where the disk failed, a seek may reach what lies behind.

        Args:
            skip_ahead: does so, as by `self.skip_ahead`; False where it could not.
        """
        failures = skips = 0
        while True:
            try:
                while self._ahead:
                    yield self._ahead.pop(0)
                for packet in self.one_pass():
                    failures = 0
                    yield packet
                self.file.check()
                failures = 0
            except IndexError:  # PyAV, at the end of a file in which a stream appeared late
                failures = 0
            except av.FFmpegError:
                self.unread += failures == 0
                failures += 1
            except OSError:
                self.unread += failures == 0
                failures = _TRIES
            if 0 < failures < _TRIES:
                continue
            yield None
            if failures == 0:
                return
            skips += 1
            if skips > _MAX_SKIPS or not skip_ahead():
                self.gave_up = True
                return

    def one_pass(self) -> "Iterator[Packet[VideoStream]]":
        """What FFmpeg gives from where reading is, up to the first spot that cannot be read.

        Raises:
            av.FFmpegError, OSError: it cannot.
            IndexError: as in `packets`.
        """
        for packet in self.container.demux(self.stream):
            if self.as_decoded:
                packet.pts = packet.dts
            if packet.size:  # an empty one would drain the decoder; PyAV ends with one
                yield packet

    def seek(self, time: int) -> int | None:
        """Set reading to a keyframe that is not shown after `time`, in ticks, and give its time.

        None: no such one was found, and reading is anywhere.
        """
        for margin_s in _SEEK_MARGINS_S:
            if time <= self.start:
                break
            found = self._keyframe_at(time - round(margin_s / self.time_base))
            if found is not None and found[0] <= time:
                return self._go_on_with(*found)
        return None

    def skip_ahead(
        self, last: int, *, end_s: float | None = None, behind: bool = False
    ) -> int | None:
        """Set reading to a keyframe past a spot that cannot be read, and give its time.

        It looks a second ahead of `last`, and twice as far each time that nothing came of it, here
        or in reading on from there.

        Args:
            last: the time up to which all came, in ticks.
            end_s: when the recording ends; None: not known.
            behind: whether only a keyframe after `last` will do. Another comes before the spot, or
                within it.
        """
        stride_s = self._stride_s * 2 if last == self._stuck_at else 1
        limit_s = MAX_GAP_S if end_s is None else end_s - last * self.time_base
        while stride_s < limit_s:
            self._stuck_at, self._stride_s = last, stride_s
            found = self._keyframe_at(last + round(stride_s / self.time_base))
            if found is not None and (found[0] > last or not behind):
                return self._go_on_with(*found)
            stride_s *= 2
        return None

    def _keyframe_at(self, target: int) -> "tuple[int, Packet[VideoStream]] | None":
        """Set reading to a keyframe at or before `target`, and give its time and it; None: cannot.

        Some containers seek to any packet: those before the next keyframe are passed over.
        """
        self.sought = True
        try:
            self.container.seek(target, stream=self.stream)
            for packet in self.one_pass():
                if packet.is_keyframe:
                    time = time_of(packet)
                    if time is None:
                        return None
                    self.file.error = None  # looking around may touch a damaged spot again
                    return time, packet
        except (av.FFmpegError, OSError, IndexError):  # IndexError: as in `packets`
            return None
        return None

    def _go_on_with(self, time: int, packet: "Packet[VideoStream]") -> int:
        self._ahead = [packet]
        return time

    def close(self) -> None:
        """Free decoder and file."""
        self.__dict__.pop("stream", None)  # with it goes the decoder, and its threads
        self.container.close()
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def tick_at(seconds: float, time_base: Fraction) -> int:
    """The last tick up to `seconds`, where what is next to a tick counts as it: 0.3 s is the third
    tenth, though it is 2.9999999999999996 of them to the machine."""
    return math.floor(seconds / time_base + 1e-6)


def time_of(packet: "Packet[VideoStream]") -> int | None:
    """When its picture is shown; when it is decoded, where the container says no more."""
    return packet.pts if packet.pts is not None else packet.dts


def _lacks_pts(format: str, stream: VideoStream) -> bool:
    """Whether pictures are shown in another order than that of all the times there are.

    AVI holds none but those of decoding. Of MPEG-4 and MPEG-2, FFmpeg works out the others.
    """
    context = stream.codec_context
    reorders = context.codec.canonical_name in ("h264", "hevc") and context.has_b_frames
    return format == "avi" and bool(reorders)


class PacketSource(Demuxer):
    """The packets of a recording's pictures, for copying.

    They are those of the stream that a `VideoSource` decodes. Where an AVI packs two pictures of
    MPEG-4 into a packet each gets its own, as other containers want.

    Args:
        path: a regular file.
        start_s: begin with the last keyframe that is not shown after this time; with the first
            packet where there is none. None: with the first packet.

    Raises:
        VideoOpenError: no readable recording.
    """

    def __init__(self, path: Path, *, start_s: float | None = None) -> None:
        self._passed = 0  # packets that come before what is wanted
        self._last = 0
        super().__init__(path)
        try:
            if start_s is not None:
                self._start_at(tick_at(start_s, self.time_base))
        except BaseException:
            self.close()
            raise

    def _begin(self) -> None:
        super()._begin()
        for other in self.container.streams:
            if other.index != self.stream.index:
                other.discard = Discard.all  # so that containers need not read them
        packed = self.codec == "mpeg4" and self.format == "avi"
        self._unpack = (
            BitStreamFilterContext("mpeg4_unpack_bframes", in_stream=self.stream)
            if packed
            else None
        )

    def _start_at(self, time: int) -> None:
        """Set reading to the last keyframe that is not shown after `time`."""
        if self.seek(time) is not None:
            self._passed = self._packets_before(time, 1)
            if self.seek(time) is not None:
                return
        self.begin_anew()
        self._passed = self._packets_before(time, 0)
        self.begin_anew()

    def _packets_before(self, target: int, count: int) -> int:
        """How many packets there are before the last keyframe up to `target`: from the one that
        was sought, which counts as 1, or from the first."""
        before = 0
        with suppress(av.FFmpegError, OSError, IndexError):  # read on it is said
            for packet in self.one_pass():
                time = time_of(packet)
                if time is None:
                    continue
                if (packet.dts if packet.dts is not None else time) > target:
                    break
                if packet.is_keyframe and time <= target:
                    before = count
                count += 1
        self.file.error = None
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
        for packet in self.packets(lambda: self.skip_ahead(self._last, behind=True) is not None):
            if packet is not None:
                self._last = max(self._last, time_of(packet) or 0)
                yield packet


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
        self._container, self._file = open_container(path)
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
        except (av.FFmpegError, OSError, IndexError):  # IndexError: as in `Demuxer`
            return  # what came is good; the video tells where the file is damaged

    def close(self) -> None:
        """Free decoder and file."""
        self._container.close()
        self._file.close()

    def __enter__(self) -> "AudioSource":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
