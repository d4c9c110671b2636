"""Streams and devices that FFmpeg opens -> frames, with as little delay as it allows.

**When a peer falls silent.** Measured with PyAV 18.1.0 (FFmpeg 8) on loopback, a sender that stops
in mid-stream and keeps its socket open, `timeout=(5, 2)` of `av.open`:

* `tcp://`, `http://` and `udp://`: the read ends with `ExitError` 2.0 s later. `rtsp://` over TCP
  takes twice that, because the first time-out gives out what the demuxer still held, which by then
  is an old picture. Here a read that took that long is a lost signal, whatever it gave.
* A peer that accepts and says nothing: opening ends after the 5 s, with `ExitError`, over RTSP with
  `InvalidDataError`.
* FFmpeg's own `rw_timeout` and `timeout` options end such reads too, with other errors and 0.1 s
  later. One way is enough: `av.open`'s.
* A pipe (`pipe:`) blocks in the kernel, and `timeout=` does not end that read: it is waited for.
  So does a V4L2 device by what FFmpeg's code says (VIDIOC_DQBUF; no device was there to measure):
  the capture gives it up, and it closes when it wakes.

**Delay.** Measured with H.264 in MPEG-TS, 720x576 at 25 frames/s, over TCP on loopback: a frame
comes out 85 ms after it was sent, 46 ms with `fflags=noparse`. MPEG-TS tells the end of a picture
by the beginning of the next, which costs the time of a frame; FFmpeg's parser waits for the same
once more. So the parser is left out where packets hold whole pictures (`_WHOLE`); those of RTP do
not, and what comes by a pipe cannot be opened again to find out. (3 ms in NUT, which says how long
a picture is.) No clock here sees that delay: a frame arrives when it comes out. With 3 B-frames it
is 377 ms: have the sender use none. `fpsprobesize=2` brings the first frame after 0.2 s instead of
0.97, with the rate still known. `fflags=nobuffer` loses the first group of pictures, because the
packets that FFmpeg looked at are gone; the decoder's `low_delay` changes nothing that could be
measured: neither is set. Frame threads are off, as each holds a picture back.
"""

import errno
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from fractions import Fraction
from typing import Any, NoReturn

import av
import av.device
import av.error
from av.container import InputContainer
from av.format import ContainerFormat
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from ccdstream.errors import VideoOpenError, reason_of
from ccdstream.frames import Frame
from ccdstream.live.negotiate import DEVICES_ADVICE, format_name, require
from ccdstream.live.paced import Pace
from ccdstream.live.records import Mode, SourceLost, Wanted
from ccdstream.picture import (
    MAX_PIXELS,
    METADATA,
    Orientation,
    Planes,
    PromptDeinterlacer,
    colour_of,
    exact,
)

OPEN_TIMEOUT_S = 10.0
"""Longest time that opening a stream may take, by FFmpeg's own time-out."""

_NETWORK = (
    "tcp,udp,udplite,unix,tls,rtp,srtp,http,https,httpproxy,crypto,data,rtmp,rtmps,rtmpt,rtmpe,"
    "rtmpte,rtmpts,ffrtmphttp,ffrtmpcrypt,mmsh,mmst,srt,rist,gopher,gophers,ftp,sctp,rtsp,rtsps"
)
"""Protocols that a stream may lead FFmpeg to. No files: a playlist cannot make it read one."""

_WHOLE = frozenset(
    ("mpegts", "matroska,webm", "nut", "flv", "mpjpeg", "yuv4mpegpipe", "mov,mp4,m4a,3gp,3g2,mj2")
)
"""Formats whose packets hold a whole picture each. MPEG-TS allows otherwise; encoders do so."""

_TRIES = 3
"""How often reading is tried again at a damaged spot."""


class DeviceRefused(VideoOpenError):
    """A device is there, and FFmpeg cannot open it: another library may."""


_ABSENT = (errno.ENOENT, errno.ENODEV, errno.ENXIO)

_PROMPT = {"fpsprobesize": "2", "analyzeduration": "2000000"}
_UNPARSED = {"fflags": "noparse"}
"""Options of FFmpeg for streams; see above."""

_SILENCE_S = 0.3
"""A read that waits longer, and several times longer than usual, was a silence of the sender."""

_REFUSED = (
    av.error.ProtocolNotFoundError,
    av.error.DemuxerNotFoundError,
    av.error.OptionNotFoundError,
    av.error.HTTPUnauthorizedError,
    av.error.HTTPForbiddenError,
)
"""Errors that trying again does not help against."""


def _pixel_format(stream: VideoStream, picture: VideoFrame) -> str:
    codec = stream.codec_context.codec.canonical_name
    return picture.format.name if codec in ("rawvideo", "wrapped_avframe") else codec


class _Stream:
    """The best video stream of an open container, as a `Connection`."""

    def __init__(
        self,
        container: InputContainer,
        *,
        through: str,
        timeout_s: float | None,
        paced: bool,
        holds: int,
    ) -> None:
        """Decodes up to the first picture, so that the mode is that of real frames.

        Raises:
            SourceLost: no picture came.
        """
        self._container = container
        self._timeout_s = timeout_s
        self._video = _best_video(container)
        self._holds = holds  # pictures that the demuxer may hold back
        self._old = 0  # and how many of those to come are from before a silence
        self._video.thread_type = "SLICE"
        self._video.codec_context.thread_count = 1  # with more, damage in H.264 is not patched
        self._video.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        self._time_base = exact(self._video.time_base, Fraction(1, 90_000))
        self._deinterlacer = PromptDeinterlacer(
            self._video.codec_context.codec.canonical_name  # of the codec, not of the container
        )
        self._planes = Planes()
        self._pace = Pace() if paced else None
        self._decoded: deque[VideoFrame] = deque()
        self._last_pts = -1
        self._over = False
        self._packets = container.demux(self._video)
        self._usual_wait_s = 1.0
        while not self._decoded and not self._over:
            self._decode_more()
        if not self._decoded:
            raise SourceLost("the stream ended before its first picture")
        first = self._decoded[0]
        rate = exact(self._video.average_rate, Fraction(0)) or exact(
            self._video.guessed_rate, Fraction(0)
        )
        orientation = Orientation.of(first)
        self._kind = self._kind_of(first)
        self.mode = Mode(
            size=orientation.size((first.height, first.width)),
            rate=rate if 0 < rate <= 1000 else None,
            pixel_format=_pixel_format(self._video, first),
            through=through,
            sample_aspect_ratio=_pixel(self._video.sample_aspect_ratio, orientation),
        )

    def _kind_of(self, decoded: VideoFrame) -> tuple[int, int, Any]:
        return decoded.height, decoded.width, self._video.codec_context.sample_aspect_ratio

    def read(self) -> Frame | None:
        """The next frame; None at the end.

        Raises:
            SourceLost: nothing came in time, or reading failed.
        """
        while True:
            while not self._decoded and not self._over:
                self._decode_more()
            if not self._decoded:
                return None
            frame = self._frame_of(self._decoded.popleft())
            if frame is not None:
                break
        if self._pace is not None:
            self._pace.wait(frame.seconds)
        return frame

    def _frame_of(self, decoded: VideoFrame) -> Frame | None:
        """None for a picture that swscale cannot read."""
        pts = decoded.pts if decoded.pts is not None else self._last_pts + 1
        self._last_pts = pts
        orientation = Orientation.of(decoded)
        if (kind := self._kind_of(decoded)) != self._kind:  # the sender changed it
            self._kind = kind
            self.mode = replace(
                self.mode,
                size=orientation.size((decoded.height, decoded.width)),
                sample_aspect_ratio=_pixel(kind[2], orientation),
            )
        picture = self._deinterlacer.of(decoded)
        colour = colour_of(picture)
        try:
            planes = self._planes.of(picture, (picture.height, picture.width), colour)
        except av.FFmpegError:
            return None
        y, u, v = (orientation.apply(plane) for plane in planes)
        return Frame(y, u, v, pts, self._time_base, colour)

    def _decode_more(self) -> None:
        packet = self._next_packet()
        # a damaged packet, or one from before the first key frame, gives nothing; where nothing
        # more comes at all, the capture says so
        with suppress(av.FFmpegError, ValueError):
            pictures = self._video.codec_context.decode(packet)
            self._decoded.extend([] if self._old else pictures)
        self._old = max(0, self._old - 1)

    def _next_packet(self) -> "Packet[VideoStream] | None":
        """The next packet; None at the end to drain the decoder.

        MPEG-TS and RTP tell the end of a picture by the beginning of the next, so the demuxer holds
        one back. What comes first after a silence may be from before it, and is not shown.
        """
        for _ in range(_TRIES):
            began = time.monotonic()
            try:
                packet = next(self._packets, None)
            except av.error.InvalidDataError:
                self._packets = self._container.demux(self._video)
                continue
            except (av.FFmpegError, IndexError) as error:
                raise self._lost(error) from None  # FFmpeg's own error names the whole URL
            waited_s = time.monotonic() - began
            if self._timeout_s is not None and waited_s >= self._timeout_s:
                raise SourceLost(f"no data for {self._timeout_s:.1f} s")
            if packet is None or not packet.size:
                self._over = True
                return None
            if waited_s > max(_SILENCE_S, 4 * self._usual_wait_s):
                self._old = self._holds
            self._usual_wait_s += 0.1 * (waited_s - self._usual_wait_s)
            return packet
        raise SourceLost("nothing in it can be read any more")

    def _lost(self, error: Exception) -> SourceLost:
        if isinstance(error, av.error.ExitError) and self._timeout_s is not None:
            return SourceLost(f"no data for {self._timeout_s:.1f} s")
        return SourceLost(reason_of(error).lower())


def _pixel(told: Any, orientation: Orientation) -> Fraction:
    """Width of a pixel by its height, upright; 1 for what cannot be."""
    sar = exact(told, Fraction(1))
    sar = sar if Fraction(1, 10) <= sar <= 10 else Fraction(1)
    return 1 / sar if orientation.transpose else sar


def _best_video(container: InputContainer) -> VideoStream:
    best = container.streams.best("video")
    moving = [
        stream
        for stream in container.streams.video
        if stream.codec_context is not None and not stream.disposition & Disposition.attached_pic
    ]
    if not moving:
        raise SourceLost("no video in it")
    return next((s for s in moving if best is not None and s.index == best.index), moving[0])


class FfmpegSource:
    """A `LiveSource` of whatever FFmpeg opens by a name.

    Args:
        name: to show; holds no password.
        url: what FFmpeg is told.
        wanted: what it must deliver.
        format: FFmpeg's name of the input format; None: found out.
        options: of FFmpeg, for the input.
        ends: whether its end is that of the session.
        paced: whether frames are held until their time has come.
        timeout_s: longest time without data; None where no time-out can end a read.
        device: whether it is one of this machine's.
        unparsed: whether to do without FFmpeg's parser, where the format can.
        advice: what to do where it is not as wanted.
    """

    def __init__(
        self,
        name: str,
        url: str,
        wanted: Wanted,
        *,
        format: str | None = None,
        options: Mapping[str, str] | None = None,
        through: str,
        ends: bool = False,
        paced: bool = False,
        timeout_s: float | None = None,
        device: bool = False,
        unparsed: bool = False,
        advice: str,
    ) -> None:
        self.name = name
        self.ends = ends
        self._url = url
        self._wanted = wanted
        self._format = format
        self._options = {"max_pixels": str(MAX_PIXELS), **(options or {})}
        self._through = through
        self._paced = paced
        self._timeout_s = timeout_s
        self._device = device
        self._unparsed = unparsed
        self._advice = advice

    def check(self) -> None:
        """Tell what can be told without a connection: a sender may serve one only, and a pipe can
        be read only once.

        Raises:
            VideoOpenError: no FFmpeg here knows such a URL, or its filters give no picture.
        """
        if self._format == "lavfi":
            with self.connect():
                pass
        elif self._timeout_s is not None and not knows_protocol(self._url):
            self._fail_protocol()

    @contextmanager
    def connect(self) -> Iterator[_Stream]:
        """Open it, and decode up to its first picture.

        Raises:
            SourceLost: it is not there right now.
            VideoOpenError: it cannot be opened at all, or not as wanted; `DeviceRefused` where it
                is FFmpeg that cannot.
        """
        container = self._open()
        if self._unparsed and container.format.name not in _WHOLE:
            self._unparsed = False  # from now on, as some senders serve one connection only
            container.close()
            container = self._open()
        with container:
            try:
                stream = _Stream(
                    container,
                    through=self._through,
                    timeout_s=self._timeout_s,
                    paced=self._paced,
                    holds=1 if self._unparsed else 2,
                )
            except SourceLost as lost:
                if self.ends:
                    raise VideoOpenError(
                        f"cannot read {self.name}: {lost}. {self._advice}"
                    ) from None
                raise
            require(self.name, stream.mode, self._wanted, self._advice)
            yield stream
            del stream  # with it goes the decoder, and its threads

    def _open(self) -> InputContainer:
        began = time.monotonic()
        try:
            container: InputContainer = av.open(
                self._url,
                format=self._format,
                options={**self._options, **(_UNPARSED if self._unparsed else {})},
                timeout=None if self._timeout_s is None else (OPEN_TIMEOUT_S, self._timeout_s),
                **METADATA,
            )
            return container
        except (av.FFmpegError, ValueError, OSError) as error:
            self._fail(error, time.monotonic() - began)

    def _fail(self, error: Exception, waited_s: float) -> NoReturn:
        """Say what became of opening. FFmpeg's own error names the whole URL: it is not kept."""
        reason = reason_of(error)
        if self._device:
            self._fail_device(getattr(error, "errno", None), reason)
        if isinstance(error, av.error.ProtocolNotFoundError):
            self._fail_protocol()
        if self._timeout_s is not None and waited_s >= OPEN_TIMEOUT_S:
            raise SourceLost(f"no answer for {OPEN_TIMEOUT_S:.0f} s") from None
        if self.ends or isinstance(error, _REFUSED) or not isinstance(error, av.FFmpegError):
            raise VideoOpenError(f"cannot open {self.name}: {reason}. {self._advice}") from None
        if getattr(error, "errno", None) == errno.EIO:  # all that FFmpeg says of a wrong name
            reason = "the host is not known, or does not answer"
        raise SourceLost(reason.lower()) from None

    def _fail_protocol(self) -> NoReturn:
        scheme = self._url.partition(":")[0]
        raise VideoOpenError(
            f"cannot open {self.name}: the FFmpeg in this PyAV does not know {scheme}://. "
            "Have an ffmpeg that does hand it on: `ffmpeg -i URL -c copy -f mpegts - | "
            "ccdstream live --device -`."
        ) from None

    def _fail_device(self, number: int | None, reason: str) -> NoReturn:
        if number == errno.EBUSY:
            raise SourceLost("in use by another program") from None
        if number in _ABSENT:
            raise VideoOpenError(f"there is no camera {self.name}. {DEVICES_ADVICE}") from None
        if number in (errno.EACCES, errno.EPERM):
            raise VideoOpenError(
                f"cannot open {self.name}: {reason}. Let this user read it: on Linux, add the user "
                "to the group `video`."
            ) from None
        raise DeviceRefused(reason) from None


def knows_protocol(url: str) -> bool:
    """Whether this FFmpeg has what reads such a URL. Nothing is sent to anyone."""
    try:
        # none is allowed, which is found out after whether it is known
        av.open(url, options={"protocol_whitelist": "none"}, timeout=OPEN_TIMEOUT_S).close()
    except av.error.ProtocolNotFoundError:
        return False
    except (av.FFmpegError, ValueError, OSError):
        pass
    return True


def url_source(url: str, name: str, wanted: Wanted, *, timeout_s: float) -> FfmpegSource:
    """A network stream, RTSP over TCP unless the URL ends in `?udp`.

    Args:
        url: with its password.
        name: without.
        timeout_s: longest time without data, in seconds.
    """
    options = {**_PROMPT, "protocol_whitelist": _NETWORK}
    scheme = url.partition(":")[0].lower()
    if scheme in ("rtsp", "rtsps") and not url.endswith(("?udp", "?udp_multicast", "?http")):
        options["rtsp_transport"] = "tcp"
    return FfmpegSource(
        name,
        url,
        wanted,
        options=options,
        through=f"FFmpeg {scheme}",
        timeout_s=timeout_s,
        unparsed=scheme not in ("rtsp", "rtsps", "rtp"),
        advice="A stream is taken as it is: check the URL, and set size and rate at the sender.",
    )


def pipe_source(url: str, name: str, wanted: Wanted) -> FfmpegSource:
    """What another program writes into a pipe: it cannot be opened again, so its end is the end."""
    return FfmpegSource(
        name,
        url,
        wanted,
        options=_PROMPT,
        through="FFmpeg pipe",
        ends=True,
        advice="Of a file, such as an MP4 with its index at its end: play it with --device FILE "
        "--pace. Of another program: have it write what can be read as it comes, such as MPEG-TS "
        "or Matroska (`ffmpeg -i INPUT -c copy -f mpegts -`).",
    )


def lavfi_source(graph: str, wanted: Wanted) -> FfmpegSource:
    """A picture that FFmpeg's filters make up, at its own rate."""
    return FfmpegSource(
        f"lavfi:{graph}",
        graph,
        wanted,
        format="lavfi",
        through="FFmpeg lavfi",
        ends=True,
        paced=True,
        advice="Check its filters, where size and rate stand: lavfi:testsrc2=size=64x48:rate=25.",
    )


# --- devices -------------------------------------------------------------------------------------


def knows_format(name: str) -> bool:
    """Whether this FFmpeg has the input format, such as "v4l2"."""
    try:
        return ContainerFormat(name, "r").is_input
    except ValueError:
        return False


def device_source(format: str, device: str, name: str, wanted: Wanted) -> FfmpegSource:
    """A camera or capture card through FFmpeg's `v4l2`, `dshow` or `avfoundation`."""
    options = {}
    if wanted.size is not None:
        options["video_size"] = f"{wanted.size[1]}x{wanted.size[0]}"
    if wanted.rate is not None:
        options["framerate"] = str(wanted.rate)
    if wanted.pixel_format is not None:
        options.update(_format_option(format, format_name(wanted.pixel_format)))
    return FfmpegSource(
        name,
        device,
        wanted,
        format=format,
        options=options,
        through=f"FFmpeg {format}",
        device=True,
        advice=DEVICES_ADVICE,
    )


def _format_option(format: str, name: str) -> dict[str, str]:
    if format == "v4l2":
        return {"input_format": name}
    compressed = name in ("mjpeg", "h264", "hevc")
    return {"vcodec" if compressed and format == "dshow" else "pixel_format": name}


def list_devices(format: str) -> list[tuple[str, str]]:
    """(what FFmpeg is told, name) of the video devices of an input format."""
    if not knows_format(format):
        return []
    return [
        (device.name, device.description)
        for device in av.device.enumerate_input_devices(format)
        if "video" in device.media_types or not device.media_types
    ]
