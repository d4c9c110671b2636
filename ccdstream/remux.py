"""A recording, or a stretch of it, in another container: its packets as they are, nothing encoded.

In: the recording, and what to mark in the player's time line. Out: an MP4 where MP4 holds picture
and sound and players show them, else Matroska. Every frame decodes to the same bytes as in the
source, at the same time; so rotation, shape of the pixels and colour tags stay, and so does what an
encoder wrote into the packets of itself. What the container says of the recording (titles, dates,
places) is left out unless it is asked for; cover pictures, subtitles and data streams always are.

MP4 and Matroska take only packets with a time each, in an order that can be decoded. Where a
recording has no such times every packet gets one: the order of decoding stays, the picture is shown
when `VideoSource` says, and none is left out.

Written as `encode` does it: under another name beside the final one until it is whole.
"""

import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import av.error
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from ccdstream.decode import packet_times
from ccdstream.encode import (
    COPIED_SOUND,
    FINEST_TICKS_PER_S,
    Chapter,
    cannot_write,
    chapter_marks,
    keep_name,
    open_mp4,
    part_of,
)
from ccdstream.errors import OutputError, show_path
from ccdstream.packets import AudioSource, PacketSource, tick_at

_IN_MP4 = frozenset(("h264", "hevc", "av1", "vp9", "mpeg4"))
"""Video that MP4 holds and players find there."""

_TIMES_GUESSED = frozenset(("avi", "mpeg"))
"""Containers that do not hold the time of every picture. FFmpeg guesses it, after a seek and where
pictures are not decoded in the order they are shown not well."""

Suffix = Literal["mp4", "mkv"]


@dataclass(frozen=True, slots=True)
class Copied:
    """What became of a copy."""

    offset_s: Fraction
    """The time on the recording's clock where the copy's is 0."""
    end_s: Fraction
    """Where its last picture ends, on the recording's clock."""
    packets: int
    """Of the video."""
    warnings: list[str]
    """What is not as in the source, one sentence each."""


@dataclass(frozen=True, slots=True)
class _Times:
    """Times for every packet of a recording that has no usable ones, in the order of decoding."""

    pts: list[int]
    dts: list[int]
    keyframes: list[int]
    """Their numbers."""


class _UnusableTimesError(Exception):
    """A packet lacks a time, or has one that no container takes."""


class Remuxer:
    """Copies of a recording.

        remuxer = Remuxer(path)
        remuxer.copy(folder / f"whole.{remuxer.suffix}", chapters=[Chapter(1.0, 2.5, "alert 1")])

    Args:
        path: a recording that a `VideoSource` opens.
        trust_times: False where `VideoSource` had to mend the times of frames: they are worked out
            anew, by decoding all of it once. Where packets lack times that is done in any case.
        metadata: what copies are to say of themselves, as in `VideoSource.metadata`; None: nothing.

    Attributes:
        codec: of the video, its name in FFmpeg.
        suffix: of the files that it writes.
        why_not_mp4: why it is not MP4; empty where it is.

    Raises:
        VideoOpenError: it cannot be read.
        OutputError: neither container holds its video.
    """

    def __init__(
        self,
        path: Path,
        *,
        trust_times: bool = True,
        metadata: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.path = path
        self.trust_times = trust_times
        self._metadata = metadata or {}
        self._times: _Times | None = None
        with PacketSource(path) as source, AudioSource(path) as sound:
            self.codec = source.codec
            self._guessed = source.format in _TIMES_GUESSED
            if self._guessed and source.stream.codec_context.has_b_frames:
                self.trust_times = False
            audio = None if sound.stream is None else sound.stream.codec_context.codec
            lacking = [
                name
                for name, held in (
                    (self.codec, _IN_MP4),
                    (audio.canonical_name if audio is not None else "", {*COPIED_SOUND, ""}),
                )
                if name not in held
            ]
            self.suffix: Suffix = "mkv" if lacking else "mp4"
            self.why_not_mp4 = (
                f"Matroska, since players do not expect {' and '.join(lacking)} in MP4"
                if lacking
                else ""
            )
            if self.suffix == "mp4" and sound.stream is not None and not self._holds(sound.stream):
                self.suffix = "mkv"  # such as MP3 of less than 16 kHz
                name = sound.stream.codec_context.codec.canonical_name
                self.why_not_mp4 = f"Matroska, since MP4 does not hold this {name}"
            self._sounds = sound.stream is not None and self._holds(sound.stream)
            self._sound_lost = sound.stream is not None and not self._sounds
            if not self._holds(source.stream):
                raise OutputError(
                    f"{show_path(path)} holds {self.codec}, which cannot be copied into another "
                    "container. Use --video overlay."
                )

    @property
    def _format(self) -> str:
        return "mp4" if self.suffix == "mp4" else "matroska"

    def _holds(self, stream: VideoStream | AudioStream) -> bool:
        try:
            with av.open(io.BytesIO(), "w", format=self._format) as container:
                container.add_stream_from_template(stream, opaque=True)
                container.start_encoding()
        except (av.FFmpegError, ValueError):
            return False
        return True

    def copy(
        self,
        target: Path,
        *,
        start_s: float | None = None,
        end_s: float | None = None,
        chapters: Sequence[Chapter] = (),
        between: str = "No alert",
    ) -> Copied:
        """Write a copy of the recording, or of a stretch of it.

        Args:
            target: the final name; a file there is replaced.
            start_s: the copy begins with the last keyframe that is not shown after this time, and
                at time 0; None: with the first packet, and with the times of the source.
            end_s: the copy holds every frame that is shown before this time, and at most a few
                more, which those before need.
            chapters, between: as in `VideoSink.chapters`.

        Raises:
            VideoOpenError: the recording can no longer be read.
            OutputError: there is nothing to copy, or it cannot be written.
        """
        guessed = start_s is not None and self._guessed
        if (guessed or not self.trust_times) and self._times is None:
            self._times = self._work_out_times()
        for _ in range(2):
            try:
                return self._copy(target, start_s, end_s, chapters, between)
            except _UnusableTimesError:
                self._times = self._work_out_times()
        raise AssertionError("times that were worked out are usable")

    def _copy(
        self,
        target: Path,
        start_s: float | None,
        end_s: float | None,
        chapters: Sequence[Chapter],
        between: str,
    ) -> Copied:
        part = part_of(target)
        with PacketSource(self.path, start_s=None if self._times else start_s) as source:
            timed = _checked(source) if self._times is None else self._retimed(source, start_s)
            packets = _stretch(
                timed,
                from_keyframe=start_s is not None,
                end=None if end_s is None else -tick_at(-end_s, source.time_base),
            )
            try:
                writing = _Writing(self, source, part, start_s, end_s)
                try:
                    copied = writing.run(packets)
                    if chapters:
                        marks = chapter_marks(
                            chapters,
                            between,
                            zero_s=copied.offset_s,
                            end_s=copied.end_s - copied.offset_s,
                            time_base=source.time_base,
                        )
                        writing.container.set_chapters(marks)
                    writing.container.close()
                finally:
                    writing.close()
                with open(part, "rb+") as file:
                    os.fsync(file.fileno())
                os.replace(part, target)
            except (av.FFmpegError, OSError) as error:
                raise cannot_write(target, error) from error
            finally:
                with suppress(OSError):  # renamed: all is well
                    os.unlink(part)
        keep_name(target)
        return copied

    # --- times ---

    def _work_out_times(self) -> _Times:
        """Times for packets, from their own if they have all, else by decoding."""
        pts: list[int] = []
        keyframes: list[int] = []
        lacking = not self.trust_times
        with PacketSource(self.path) as source:
            for number, packet in enumerate(source):
                if packet.is_keyframe:
                    keyframes.append(number)
                lacking |= packet.pts is None
                pts.append(packet.pts or 0)
        if lacking or len(set(pts)) < len(pts):
            pts = packet_times(self.path)
        shown = sorted(pts)
        lead = max((time - own for time, own in zip(shown, pts, strict=True)), default=0)
        return _Times(pts, [time - lead for time in shown], keyframes)

    def _retimed(
        self, source: PacketSource, start_s: float | None
    ) -> "Iterator[Packet[VideoStream]]":
        times = self._times
        assert times is not None
        first = 0
        if start_s is not None:
            start = tick_at(start_s, source.time_base)
            early = [number for number in times.keyframes if times.pts[number] <= start]
            first = early[-1] if early else 0
        for number, packet in enumerate(source):
            if number >= len(times.pts):  # it has grown since
                return
            if number < first:
                continue
            packet.pts, packet.dts = times.pts[number], times.dts[number]
            yield packet


def _checked(packets: "Iterable[Packet[VideoStream]]") -> "Iterator[Packet[VideoStream]]":
    """`packets` while a container takes their times.

    Raises:
        _UnusableTimesError: it would not take one.
    """
    last: int | None = None
    for packet in packets:
        pts, dts = packet.pts, packet.dts
        if pts is None or dts is None or pts < dts or (last is not None and dts <= last):
            raise _UnusableTimesError
        last = dts
        yield packet


def _stretch(
    packets: "Iterable[Packet[VideoStream]]", *, from_keyframe: bool, end: Fraction | float | None
) -> "Iterator[Packet[VideoStream]]":
    """Those of a stretch that can be decoded without the others, all that is shown before `end`
    among them; None: to the end."""
    first: int | None = None
    shown: int | None = None  # the latest of those that came
    lasts = 0
    for packet in packets:
        assert packet.pts is not None and packet.dts is not None
        if first is None:
            first = packet.pts
        elif from_keyframe and packet.pts < first:  # needs what comes before the keyframe
            continue
        # a packet that is shown after all others so far ends what these need
        if (
            end is not None
            and shown is not None
            and packet.pts > shown
            and (packet.dts >= end or shown + lasts >= end)
        ):
            return
        if shown is None or packet.pts > shown:
            shown, lasts = packet.pts, packet.duration or 0
        yield packet


class _Writing:
    """One copy in the making."""

    def __init__(
        self,
        remuxer: Remuxer,
        source: PacketSource,
        part: Path,
        start_s: float | None,
        end_s: float | None,
    ) -> None:
        self._remuxer = remuxer
        self._source = source
        self._span = (start_s, end_s)
        self._time_base = source.time_base
        self.warnings: list[str] = []
        if self._time_base.denominator > FINEST_TICKS_PER_S:
            self._time_base = Fraction(1, FINEST_TICKS_PER_S)
            self.warnings.append("times are rounded to 0.1 microseconds, the finest there are")
        elif remuxer.suffix == "mkv" and (1000 * self._time_base).denominator != 1:
            self.warnings.append("times are rounded to milliseconds, as Matroska keeps them")
        self._sound: AudioSource | None = None
        self._heard: Packet[AudioStream] | None = None
        self._last_sound: Fraction | None = None
        self._left_out = 0
        self.container = self._open(part)
        self._packets_of_sound: Iterator[Packet[AudioStream]] = iter(())

    def _open(self, part: Path) -> OutputContainer:
        if self._remuxer.suffix == "mp4":
            return open_mp4(part, self._time_base, tagged=bool(self._remuxer._metadata))
        # bitexact: without a random identity, so that equal runs leave equal files
        return av.open(
            f"file:{part}",
            mode="w",
            format="matroska",
            container_options={"fflags": "+bitexact"},
        )

    def close(self) -> None:
        """Free what is open; where it failed, for the reason that is being raised already."""
        with suppress(av.FFmpegError, OSError, ValueError):
            self.container.close()
        if self._sound is not None:
            self._sound.close()

    def run(self, packets: "Iterator[Packet[VideoStream]]") -> Copied:
        """Write all but the chapters."""
        head: list[Packet[VideoStream]] = []
        for packet in packets:
            head.append(packet)
            # what an edit list cuts off stays cut off in MP4; Matroska has none
            if self._remuxer.suffix == "mkv" or not packet.is_discard:
                break
        if not head:
            raise OutputError(
                f"there is nothing to copy of {show_path(self._remuxer.path)}. Copy it again."
            )
        first = head[-1].pts
        assert first is not None
        if len(head) > 1:  # what is decoded next may be shown before the first that is decoded
            for packet in packets:
                assert packet.pts is not None and packet.dts is not None
                head.append(packet)
                first = first if packet.is_discard else min(first, packet.pts)
                if packet.dts >= first:
                    break
        zero = first if self._span[0] is not None else min(0, first)
        tick = self._source.time_base
        if zero and self._span[0] is None:
            late_s = float(-zero * tick)
            self.warnings.append(f"the first frame came before time 0: all is {late_s:.6f} s later")
        self._zero_s = zero * tick
        video = self._add_video()
        self._open_sound(first * tick)
        self.container.start_encoding()
        number, end = 0, zero
        for packet in _chained(head, packets):
            assert packet.pts is not None and packet.dts is not None
            end = max(end, packet.pts + (packet.duration or 0))
            packet.pts -= zero
            packet.dts -= zero
            self._mux_sound(until=packet.dts * tick)
            packet.time_base = tick
            packet.stream = video
            self.container.mux(packet)
            number += 1
        self._mux_sound(until=None)
        if self._left_out:
            self.warnings.append(f"packets of the sound were left out: {self._left_out}")
        if self._remuxer._sound_lost:
            self.warnings.append("the sound cannot be copied: it is left out")
        if self._source.unread:
            self.warnings.append(
                f"the copy lacks what could not be read in {self._source.unread} place(s)"
            )
        return Copied(self._zero_s, end * tick, number, self.warnings)

    def _add_video(self) -> VideoStream:
        template = self._source.stream
        video = self.container.add_stream_from_template(template, opaque=True)
        assert isinstance(video, VideoStream)
        video.time_base = self._time_base
        if template.codec_context.codec_tag == "hvc1":  # else QuickTime does not play it
            video.codec_context.codec_tag = "hvc1"
        self.container.metadata.update(self._remuxer._metadata.get("container", {}))
        video.metadata.update(self._remuxer._metadata.get("video", {}))
        return video

    def _open_sound(self, first_s: Fraction) -> None:
        if not self._remuxer._sounds:
            return
        start_s, end_s = self._span
        self._sound = AudioSource(
            self._remuxer.path,
            start_s=None if start_s is None else float(first_s),
            end_s=end_s,
        )
        assert self._sound.stream is not None
        self._audio = self.container.add_stream_from_template(self._sound.stream, opaque=True)
        self._audio.metadata.update(self._remuxer._metadata.get("audio", {}))
        self._packets_of_sound = iter(self._sound)

    def _mux_sound(self, until: Fraction | None) -> None:
        """Write the sound up to `until` seconds of the copy; None: to its end."""
        while True:
            packet = self._heard or next(self._packets_of_sound, None)
            if packet is None:
                return
            if self._heard is None:
                assert packet.pts is not None
                packet.pts -= round(self._zero_s / packet.time_base)
                packet.dts = packet.pts
                packet.stream = self._audio
            time = packet.dts * Fraction(packet.time_base)  # type: ignore[operator]
            if until is not None and time > until:
                self._heard = packet
                return
            self._heard = None
            if self._last_sound is not None and time <= self._last_sound:
                self._left_out += 1
                continue
            self._last_sound = time
            try:
                self.container.mux(packet)
            except av.error.InvalidDataError:  # not a frame of its codec
                self._left_out += 1


def _chained(head: list[Any], rest: Iterator[Any]) -> Iterator[Any]:
    while head:
        yield head.pop(0)
    yield from rest
