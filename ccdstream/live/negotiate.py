"""What was asked of a source beside what it delivers. Getting something else is an error."""

from fractions import Fraction

from ccdstream.errors import VideoOpenError
from ccdstream.live.records import Mode, Wanted

_FOURCC = {
    "MJPG": "mjpeg",
    "JPEG": "mjpeg",
    "H264": "h264",
    "HEVC": "hevc",
    "YUYV": "yuyv422",
    "YUY2": "yuyv422",
    "UYVY": "uyvy422",
    "YVYU": "yvyu422",
    "NV12": "nv12",
    "NV16": "nv16",
    "YU12": "yuv420p",
    "I420": "yuv420p",
    "422P": "yuv422p",
    "RGB3": "rgb24",
    "BGR3": "bgr24",
    "GREY": "gray",
}
"""Four-character codes of Linux (videodev2.h) and Windows -> what FFmpeg calls the same."""

RATE_TOLERANCE = Fraction(1, 200)
"""Share by which a rate may differ from what was asked: 30000/1001 is 30."""

DEVICES_ADVICE = "`ccdstream devices` lists what each camera offers."


def format_name(text: str) -> str:
    """A pixel format or codec in FFmpeg's words, from those or a four-character code."""
    return _FOURCC.get(text.strip().upper(), text.strip().lower())


def fourcc_of(name: str) -> str:
    """The four-character code of what FFmpeg calls `name`; of an unknown one, itself."""
    wanted = format_name(name)
    return next((code for code, known in _FOURCC.items() if known == wanted), name.upper())


def show_size(size: tuple[int, int]) -> str:
    """(height, width) as people write it: width first."""
    return f"{size[1]}x{size[0]}"


def show_rate(rate: Fraction) -> str:
    """Frames a second, with as many digits as it takes."""
    return f"{float(rate):.5g} frames/s"


def show_mode(mode: Mode) -> str:
    """What was negotiated, on one line."""
    rate = show_rate(mode.rate) if mode.rate is not None else "rate not told"
    return f"{show_size(mode.size)}, {rate}, {mode.pixel_format}, through {mode.through}"


def require(name: str, mode: Mode, wanted: Wanted, advice: str) -> None:
    """Do nothing where `mode` is as wanted.

    Raises:
        VideoOpenError: it is not; ends with `advice`.
    """
    missed = []
    if wanted.size is not None and mode.size != wanted.size:
        missed.append(show_size(wanted.size))
    if wanted.rate is not None and (
        mode.rate is None or abs(mode.rate - wanted.rate) > RATE_TOLERANCE * wanted.rate
    ):
        missed.append(show_rate(wanted.rate))
    if wanted.pixel_format is not None and (
        format_name(mode.pixel_format) != format_name(wanted.pixel_format)
    ):
        missed.append(format_name(wanted.pixel_format))
    if missed:
        raise VideoOpenError(
            f"{name} was asked for {', '.join(missed)}, and delivers {show_mode(mode)}. {advice}"
        )
