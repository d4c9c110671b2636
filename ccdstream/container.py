"""One local file, opened for FFmpeg, and nothing else.

A recording can be made to do harm. FFmpeg gets the bytes of one file and may open nothing by a
name, so a playlist that poses as a video cannot make it read other files or the network. It reads
only the formats that recordings come in (`_FORMATS`), makes no picture larger than `MAX_PIXELS`,
is given no index that claims more than a recording holds (`mp4_index`), and gets no more time to
open a file than that takes. What it passes over without a word is found by following the parts of
the container as it reads them (`parts`).

The level of `av.logging` stays as it is: setting it makes leaving a threaded decoder early hang.
"""

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import av.error
from av.codec.hwaccel import HWAccel
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from ccdstream import mp4_index
from ccdstream.errors import VideoOpenError, reason_of, show_path
from ccdstream.parts import Parts, parts_of
from ccdstream.picture import MAX_PIXELS, METADATA

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


class OneFile:
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
        self.unedited = False
        """Whether it is an MP4 that leaves out no picture that it holds."""
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


def open_container(path: Path, hwaccel: HWAccel | None = None) -> tuple[InputContainer, OneFile]:
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
        file = OneFile(path)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise VideoOpenError(
            f"cannot open {shown}: {reason_of(error)}. Check that the path exists and may be read."
        ) from error
    try:
        return _container_in(file, shown, hwaccel), file
    except BaseException:
        file.close()
        raise


def _container_in(file: OneFile, shown: str, hwaccel: HWAccel | None) -> InputContainer:
    head = file.read(512)
    size = max(0, file.seek(0, os.SEEK_END))
    claims = mp4_index.claims_of(file, size)
    file.unedited = claims.unedited
    if claims.excess:
        raise VideoOpenError(
            f"{shown} is refused: its index claims {claims.excess}. The file is damaged, or made "
            "to harm: copy it again."
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


def best_video(container: InputContainer, shown: str) -> VideoStream:
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
