"""What the user wrote after `--device` -> a source."""

import os
import re
import stat
import sys
from pathlib import Path
from urllib.parse import urlsplit

from ccdstream.errors import VideoOpenError, show_path
from ccdstream.live.camera import CameraSource
from ccdstream.live.paced import PacedFile
from ccdstream.live.records import Wanted
from ccdstream.live.url import FfmpegSource, lavfi_source, pipe_source, url_source

Source = CameraSource | PacedFile | FfmpegSource
"""What a user can name. Beside what each `LiveSource` does, `check` tells early what can be."""

_EXPECTED = (
    "Pass a camera's number or path (`ccdstream devices` lists them), a URL such as "
    "rtsp://HOST/PATH, `-` for what another program pipes in, lavfi:FILTERS, or a recording with "
    "--pace."
)

_WITH_PORT = ("tcp", "tls", "udp", "udplite", "rtp", "srtp", "sctp", "srt", "rist")
"""Of what has no port of its own."""
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")  # two letters or more: C: is a drive
_USER = re.compile(r"(://[^:@]*):.*@", re.DOTALL)  # up to the last @, wherever a password ends
_SECRET = re.compile(
    r"([?&;][^=&;#]*(?:pass|pwd|token|secret|key|auth|sig|credential)[^=&;#]*=)[^&;#]*", re.I
)


def show_url(url: str) -> str:
    """`url` on one line, without its password, and without the values of what is called so."""
    return show_path(_SECRET.sub(r"\1***", _USER.sub(r"\1:***@", url)))


def open_source(
    device: str, wanted: Wanted, *, pace: bool = False, timeout_s: float = 2.0
) -> Source:
    """The source that `device` names. Nothing is opened yet.

    Args:
        device: a camera's number or path; a URL; `-` or `pipe:` for the standard input;
            `lavfi:FILTERS`; a named pipe; a recording.
        wanted: what it must deliver.
        pace: play a recording at its own rate; for nothing else.
        timeout_s: longest time that a stream may be silent, in seconds.

    Raises:
        VideoOpenError: it names nothing of these, or a recording without `pace`.
    """
    found = _find(device, wanted, timeout_s)
    if isinstance(found, PacedFile) and not pace:
        raise VideoOpenError(
            f"{found.name} is a recording. Add --pace to play it at its own rate as if it were "
            "live, or analyse it with `ccdstream run`."
        )
    if pace and not isinstance(found, PacedFile):
        raise VideoOpenError(f"{found.name} comes at its own rate. --pace is for recordings.")
    return found


def _find(device: str, wanted: Wanted, timeout_s: float) -> Source:
    if device.isascii() and device.isdigit():
        return CameraSource(device, wanted)
    if device in ("-", "pipe:", "pipe:0"):
        return pipe_source("pipe:0", "the standard input", wanted)
    if sys.platform.startswith("linux") and re.fullmatch(r"/dev/video\d+", device):
        return CameraSource(device, wanted)
    scheme = _SCHEME.match(device)
    kind = None if scheme and "://" in device else _kind_of(device)
    if kind is not None:
        shown = show_path(device)
        if stat.S_ISCHR(kind) and sys.platform.startswith("linux"):
            return CameraSource(device, wanted)
        if stat.S_ISFIFO(kind):
            return pipe_source(os.path.abspath(device), shown, wanted)
        if stat.S_ISDIR(kind):
            raise VideoOpenError(f"{shown} is a folder. {_EXPECTED}")
        if not stat.S_ISREG(kind):
            raise VideoOpenError(f"{shown} is neither a recording nor a camera. {_EXPECTED}")
        return PacedFile(Path(device), wanted)
    if scheme is None:
        raise VideoOpenError(f"there is nothing called {show_path(device)}. {_EXPECTED}")
    name, rest = scheme[1].lower(), device[scheme.end() :]
    if name == "lavfi" and rest:
        return lavfi_source(rest, wanted)
    if name == "file":
        raise VideoOpenError(f"{show_path(device)} names a file by a URL. Pass its path.")
    if rest.startswith("//") and len(rest) > 2:
        if name in _WITH_PORT and not _port_of(device):
            raise VideoOpenError(
                f"{show_url(device)} names no port. Write {name}://HOST:PORT, with the port that "
                "the sender uses."
            )
        return url_source(device, show_url(device), wanted, timeout_s=timeout_s)
    raise VideoOpenError(f"cannot tell what {show_url(device)} names. {_EXPECTED}")


def _port_of(url: str) -> int | None:
    """None where there is none, or what stands there is no port."""
    try:
        return urlsplit(url).port
    except ValueError:
        return None


def _kind_of(device: str) -> int | None:
    """The mode bits of a path that exists; None where it does not."""
    try:
        return os.stat(device).st_mode
    except (OSError, ValueError):  # ValueError: a NUL in it
        return None
