"""What was asked of a source beside what it delivers."""

from fractions import Fraction

import pytest

from ccdstream.errors import VideoOpenError
from ccdstream.live.negotiate import format_name, fourcc_of, require, show_mode
from ccdstream.live.records import Mode, Wanted

MODE = Mode((1080, 1920), Fraction(30000, 1001), "mjpeg", "FFmpeg v4l2")
UNTOLD = Mode((1080, 1920), None, "mjpeg", "OpenCV V4L2")


@pytest.mark.parametrize(
    "wanted",
    [
        Wanted(),
        Wanted(size=(1080, 1920)),
        Wanted(rate=Fraction(30)),  # of a 29.97 that everybody calls 30
        Wanted(pixel_format="MJPG"),
        Wanted(size=(1080, 1920), rate=Fraction(30000, 1001), pixel_format="mjpeg"),
    ],
)
def test_what_is_as_wanted_passes(wanted: Wanted) -> None:
    require("camera", MODE, wanted, "")


@pytest.mark.parametrize(
    ("mode", "wanted", "missed"),
    [
        (MODE, Wanted(size=(1920, 1080)), "1080x1920"),
        (MODE, Wanted(rate=Fraction(25)), "25 frames/s"),
        (MODE, Wanted(pixel_format="YUYV"), "yuyv422"),
        (UNTOLD, Wanted(rate=Fraction(25)), "25 frames/s"),
        (MODE, Wanted(size=(1080, 1920), rate=Fraction(60), pixel_format="nv12"), "60 .*, nv12"),
    ],
)
def test_what_is_not_is_an_error_that_tells_both(mode: Mode, wanted: Wanted, missed: str) -> None:
    with pytest.raises(VideoOpenError, match=rf"camera was asked for {missed}") as caught:
        require("camera", mode, wanted, "Try this.")
    assert f"delivers {show_mode(mode)}. Try this." in str(caught.value)


def test_a_mode_is_shown_on_one_line() -> None:
    assert show_mode(MODE) == "1920x1080, 29.97 frames/s, mjpeg, through FFmpeg v4l2"
    assert show_mode(UNTOLD) == "1920x1080, rate not told, mjpeg, through OpenCV V4L2"


@pytest.mark.parametrize("code", ["MJPG", "YUYV", "UYVY", "NV12", "YU12", "GREY"])
def test_four_character_codes_and_ffmpegs_words_are_the_same(code: str) -> None:
    assert fourcc_of(format_name(code)) == code
    assert format_name(format_name(code)) == format_name(code)
