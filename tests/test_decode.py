"""What decoding promises of sound recordings. Damaged ones are in test_bad_video.py."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from ccdstream import container
from ccdstream.decode import VideoSource
from ccdstream.errors import VideoOpenError
from ccdstream.frames import Colour, Frame
from tests.videos import (
    flat,
    index_of,
    indices,
    level,
    make_video,
    packets_of,
    picture,
    textured,
    times_of,
)

MILLISECONDS = Fraction(1, 1000)


def frames_of(path: Path, **kwargs: float) -> list[Frame]:
    with VideoSource(path, **kwargs) as source:
        return list(source)


# --- containers and codecs ---

KINDS = {
    "mp4-h264": ("a.mp4", {}),
    "mkv-h264": ("a.mkv", {}),
    "mov-prores": ("a.mov", {"codec": "prores_ks", "pix_fmt": "yuv422p10le"}),
    "mp4-hevc": ("a.mp4", {"codec": "libx265", "size": (64, 64)}),
    "webm-vp9": ("a.webm", {"codec": "libvpx-vp9"}),
    "ivf-vp8": ("a.ivf", {"codec": "libvpx"}),
    "mkv-av1": ("a.mkv", {"codec": "libsvtav1", "size": (64, 64), "options": {"preset": "12"}}),
    "avi-mpeg4": ("a.avi", {"codec": "mpeg4"}),
    "avi-mjpeg": ("a.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
    "ts-h264": ("a.ts", {"format": "mpegts"}),
    "ts-mpeg2": ("a.ts", {"codec": "mpeg2video", "format": "mpegts"}),
    "mxf-mpeg2": ("a.mxf", {"codec": "mpeg2video"}),
    "asf-wmv2": ("a.wmv", {"codec": "wmv2", "format": "asf"}),
    "flv-h264": ("a.flv", {}),
    "nut-ffv1": ("a.nut", {"codec": "ffv1"}),
    "y4m-raw": ("a.y4m", {"codec": "rawvideo", "format": "yuv4mpegpipe"}),
    "gif": ("a.gif", {"codec": "gif", "pix_fmt": "gray"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_gives_every_frame_of_every_kind_of_file_at_its_time(tmp_path: Path, kind: str) -> None:
    name, options = KINDS[kind]
    path = make_video(tmp_path / name, **options)
    with VideoSource(path) as source:
        frames = list(source)
        assert source.problems.sentences() == []
    if kind not in ("gif", "avi-mjpeg"):  # their greys are others: a palette, full range
        assert indices(frames) == list(range(12))
    times = [frame.pts * frame.time_base for frame in frames]
    assert times == times_of(path)
    assert [time - times[0] for time in times] == [Fraction(k, 25) for k in range(12)]
    assert source.size == frames[0].size
    assert {frame.time_base for frame in frames} == {source.time_base}


def test_b_frames_come_in_the_order_they_are_shown(tmp_path: Path) -> None:
    path = make_video(tmp_path / "b.mp4", frames=30, options={"bf": "3", "b_strategy": "0"})
    stored = [time for time, _ in packets_of(path, "video")]
    assert stored != sorted(stored), "the file has no B-frames, so this test tests nothing"
    frames = frames_of(path)
    assert indices(frames) == list(range(30))
    assert [frame.pts * frame.time_base for frame in frames] == sorted(stored)


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.ts"])
def test_a_variable_frame_rate_keeps_its_times(tmp_path: Path, name: str) -> None:
    thirtieths = [0, 1, 2, 5, 6, 9, 30, 90, 91]
    path = make_video(tmp_path / name, pts=thirtieths, time_base=Fraction(1, 30), rate=30)
    frames = frames_of(path)
    start = frames[0].seconds
    assert [f.seconds - start for f in frames] == pytest.approx(
        [t / 30 for t in thirtieths], abs=6e-4 if name == "v.mkv" else 1e-9
    )
    assert indices(frames) == list(range(len(thirtieths)))


def test_a_rate_of_30000_over_1001_does_not_drift(tmp_path: Path) -> None:
    path = make_video(
        tmp_path / "n.mp4",
        pts=[1001 * k for k in range(90)],
        time_base=Fraction(1, 30_000),
        rate=Fraction(30_000, 1001),
    )
    with VideoSource(path) as source:
        times = [frame.pts * frame.time_base for frame in source]
        assert source.average_rate == Fraction(30_000, 1001)
    assert times == [Fraction(1001 * k, 30_000) for k in range(90)]


def test_a_start_that_is_not_zero_is_kept(tmp_path: Path) -> None:
    pts = [27_000 + 3003 * k for k in range(12)]
    path = make_video(tmp_path / "s.mp4", pts=pts, time_base=Fraction(1, 90_000))
    with VideoSource(path) as source:
        assert [frame.pts for frame in source] == pts
        assert source.start_time_s == pytest.approx(0.3)
        assert source.first_pts == 27_000


@pytest.mark.parametrize("first", [-5, -6])
def test_frames_that_the_edit_list_cuts_off_are_not_shown(tmp_path: Path, first: int) -> None:
    """MP4 holds them for the sake of those that refer to them."""
    path = make_video(tmp_path / "e.mp4", pts=range(first, 12), options={"bf": "2"})
    with VideoSource(path) as source:
        frames = list(source)
        assert source.problems.sentences() == []
    assert indices(frames) == list(range(-first, 12 - first))
    assert [frame.pts * frame.time_base for frame in frames] == [Fraction(k, 25) for k in range(12)]


def test_the_last_frame_says_how_long_it_is_shown(tmp_path: Path) -> None:
    path = make_video(tmp_path / "l.mkv", codec="ffv1", time_base=MILLISECONDS, pts=[0, 40, 80])
    with VideoSource(path) as source:
        list(source)
        assert source.last_duration * source.time_base == Fraction(1, 25)


# --- what the source says of itself ---


def test_says_what_it_reads(tmp_path: Path) -> None:
    path = make_video(
        tmp_path / "w.mp4", frames=50, size=(48, 64), sample_aspect_ratio=Fraction(16, 11)
    )
    with VideoSource(path) as source:
        assert source.size == (48, 64)
        assert source.average_rate == 25
        assert source.duration_s == pytest.approx(2.0)
        assert source.frame_count_hint == 50
        assert source.sample_aspect_ratio == Fraction(16, 11)
        assert (source.codec, source.pix_fmt) == ("h264", "yuv420p")
        assert source.format.startswith("mov")
        assert source.rotation_deg == 0 and not source.mirrored and not source.interlaced
        assert source.video_streams == 1
        assert source.problems.decoded == 0  # nothing was handed out yet, though one was looked at
        list(source)
        assert source.problems.as_dict()["decoded"] == 50
        assert sum(source.problems.as_dict().values()) == 50


def test_can_be_left_and_gone_on_with(tmp_path: Path) -> None:
    with VideoSource(make_video(tmp_path / "g.mp4")) as source:
        first = [index_of(next(iter(source)).y) for _ in range(1)]
        rest = indices(list(source))
    assert first + rest == list(range(12))


def test_a_cover_picture_is_not_the_video(tmp_path: Path) -> None:
    path = make_video(tmp_path / "c.mp4", cover=True)
    with av.open(str(path)) as container:
        kinds = [bool(s.disposition.value) and s.frames == 1 for s in container.streams.video]
        assert len(kinds) == 2
    with VideoSource(path) as source:
        assert source.size == (48, 64)
        assert indices(list(source)) == list(range(12))


def test_a_cover_picture_alone_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "x.mp4"), "w") as container:
        art = container.add_stream("mjpeg", rate=25)
        art.width = art.height = 32
        art.pix_fmt = "yuvj420p"
        art.disposition = av.stream.Disposition.attached_pic
        sound = container.add_stream("aac", rate=48_000, layout="mono")
        cover = av.VideoFrame(32, 32, "yuvj420p")
        cover.pts = 0
        container.mux(art.encode(cover))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), "s16", "mono")
        silence.sample_rate, silence.pts = 48_000, 0
        container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
    with pytest.raises(VideoOpenError, match=r"x\.mp4 has only a cover picture\. Pass the"):
        VideoSource(tmp_path / "x.mp4")


def test_of_two_videos_the_better_one_is_taken(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "two.mkv"), "w") as container:
        streams = []
        for height, width in ((48, 64), (96, 128)):
            stream = container.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            streams.append(stream)
        streams[0].disposition = 0
        streams[1].disposition = av.stream.Disposition.default
        for k in range(6):
            for stream in streams:
                frame = picture(flat(k, (stream.height, stream.width)))
                frame.pts, frame.time_base = k, Fraction(1, 25)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    with VideoSource(tmp_path / "two.mkv") as source:
        assert source.size == (96, 128)
        assert source.video_streams == 2


# --- the planes ---


@pytest.mark.parametrize("size", [(48, 64), (50, 70), (33, 35), (17, 129)], ids=str)
def test_planes_are_those_of_the_picture_whatever_the_row_stride(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    path = make_video(
        tmp_path / "p.mkv", codec="ffv1", size=size, picture_of=lambda k: picture(textured(k, size))
    )
    for k, frame in enumerate(frames_of(path)):
        for got, expected in zip((frame.y, frame.u, frame.v), textured(k, size), strict=True):
            np.testing.assert_array_equal(got, expected)


def test_planes_stay_good_when_the_decoder_goes_on_and_when_it_is_gone(tmp_path: Path) -> None:
    """They are views of the decoder's memory: it must not be used again while they live."""
    size = (96, 128)
    path = make_video(
        tmp_path / "k.mp4", frames=60, size=size, picture_of=lambda k: picture(textured(k, size))
    )
    held: list[Frame] = []
    copies: list[np.ndarray] = []
    with VideoSource(path) as source:
        for frame in source:
            held.append(frame)
            copies.append(np.concatenate([frame.y.ravel(), frame.u.ravel(), frame.v.ravel()]))
    for frame, copy in zip(held, copies, strict=True):
        now = np.concatenate([frame.y.ravel(), frame.u.ravel(), frame.v.ravel()])
        np.testing.assert_array_equal(now, copy)


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p", "gray"])
def test_planes_cannot_be_drawn_into(tmp_path: Path, pix_fmt: str) -> None:
    """The decoder may yet predict from them."""
    frame = frames_of(make_video(tmp_path / "w.mkv", codec="ffv1", pix_fmt=pix_fmt))[0]
    for plane in (frame.y, frame.u, frame.v):
        with pytest.raises(ValueError, match="read-only"):
            plane[0, 0] = 1


# --- colour ---

SIZE = (48, 64)
ORANGE = (200, 60, 40)

KR_KB = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}
"""Luma weights of red and blue: ITU-R BT.601, BT.709, BT.2020."""

TAG = {"bt601": 6, "bt709": 1, "bt2020": 9}


def ycbcr(
    rgb: tuple[int, int, int], matrix: str, *, full: bool, bits: int = 8
) -> tuple[float, float, float]:
    """`rgb` (8 bit) by the definition of the matrix, in codes of `bits` bits."""
    red, green, blue = (value / 255 for value in rgb)
    kr, kb = KR_KB[matrix]
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    cb, cr = (blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)
    unit = 2 ** (bits - 8)
    if full:
        top = 2**bits - 1
        return luma * top, cb * top + 128 * unit, cr * top + 128 * unit
    return (219 * luma + 16) * unit, (224 * cb + 128) * unit, (224 * cr + 128) * unit


def filled(pix_fmt: str, codes: tuple[float, float, float]) -> av.VideoFrame:
    """A picture of one colour, by its codes, in a planar or semi-planar format."""
    frame = av.VideoFrame(SIZE[1], SIZE[0], pix_fmt)
    y, u, v = (round(code) for code in codes)
    if pix_fmt == "yuyv422":
        np.frombuffer(frame.planes[0], np.uint8).reshape(-1, 4)[:] = (y, u, y, v)
        return frame
    dtype = np.uint16 if frame.format.components[0].bits > 8 else np.uint8
    for plane, code in zip(frame.planes, (y, u, v), strict=False):
        np.frombuffer(plane, dtype)[:] = code
    if pix_fmt == "nv12":
        np.frombuffer(frame.planes[1], np.uint8).reshape(-1, 2)[:] = (u, v)
    return frame


def assert_colour(frame: Frame, codes: tuple[float, float, float], within: float = 1.0) -> None:
    for name, plane, code in zip("yuv", (frame.y, frame.u, frame.v), codes, strict=True):
        worst = np.abs(plane.astype(float) - code).max()
        assert worst <= within, f"{name}: {plane.min()} to {plane.max()}, expected {code:.1f}"


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", ["bt601", "bt709", "bt2020"])
@pytest.mark.parametrize(
    ("pix_fmt", "bits", "codec"),
    [
        ("yuv420p", 8, "ffv1"),
        ("yuv422p", 8, "ffv1"),
        ("yuv444p", 8, "ffv1"),
        ("yuv420p10le", 10, "ffv1"),
        ("yuv422p10le", 10, "ffv1"),
        ("yuv444p12le", 12, "ffv1"),
        ("yuv420p16le", 16, "ffv1"),
        ("yuva420p", 8, "ffv1"),
        ("nv12", 8, "rawvideo"),
        ("yuyv422", 8, "rawvideo"),
    ],
)
def test_any_layout_keeps_its_colour_matrix_and_range(
    tmp_path: Path, pix_fmt: str, bits: int, codec: str, matrix: str, full: bool
) -> None:
    path = make_video(
        tmp_path / "c.mkv",
        codec=codec,
        pix_fmt=pix_fmt,
        size=SIZE,
        frames=2,
        picture_of=lambda k: filled(pix_fmt, ycbcr(ORANGE, matrix, full=full, bits=bits)),
        tags=(1, 1, TAG[matrix], 2 if full else 1),
    )
    with VideoSource(path) as source:
        frame = next(iter(source))
        assert source.colour == frame.colour == Colour(matrix, full)
        assert source.colour_tags == (1, 1, TAG[matrix])
        assert source.pix_fmt == pix_fmt
    # fewer bits are dithered, and full range is divided by 4, 16 ..., not by 1023/255 ...
    assert_colour(frame, ycbcr(ORANGE, matrix, full=full), within=1.25 if bits > 8 else 0.5)


@pytest.mark.parametrize(("size", "matrix"), [((576, 720), "bt601"), ((720, 64), "bt709")])
def test_untagged_colour_follows_the_rule_and_says_so(
    tmp_path: Path, size: tuple[int, int], matrix: str
) -> None:
    path = make_video(tmp_path / "u.mp4", size=size, frames=1, options={"preset": "ultrafast"})
    with VideoSource(path) as source:
        assert source.colour == Colour(matrix, full_range=False, assumed=True)
        assert source.colour_tags == (2, 2, 2)


@pytest.mark.parametrize(("size", "matrix"), [((48, 64), "bt601"), ((720, 16), "bt709")])
@pytest.mark.parametrize(
    ("pix_fmt", "codec"), [("bgr0", "ffv1"), ("gbrp", "utvideo"), ("gbrp10le", "ffv1")]
)
def test_rgb_becomes_limited_yuv_and_nothing_is_assumed(
    tmp_path: Path, pix_fmt: str, codec: str, size: tuple[int, int], matrix: str
) -> None:
    def rgb(k: int) -> av.VideoFrame:
        return av.VideoFrame.from_ndarray(np.full((*size, 3), ORANGE, np.uint8), format="rgb24")

    path = make_video(
        tmp_path / "r.avi" if codec == "utvideo" else tmp_path / "r.mkv",
        codec=codec,
        pix_fmt=pix_fmt,
        size=size,
        frames=1,
        picture_of=rgb,
    )
    with VideoSource(path) as source:
        assert source.colour == Colour(matrix, full_range=False, assumed=False)
        assert_colour(next(iter(source)), ycbcr(ORANGE, matrix, full=False))


@pytest.mark.parametrize(("pix_fmt", "bits"), [("gray", 8), ("gray10le", 10), ("gray16le", 16)])
def test_grey_is_full_range_without_colour(tmp_path: Path, pix_fmt: str, bits: int) -> None:
    path = make_video(
        tmp_path / "g.mkv",
        codec="ffv1",
        pix_fmt=pix_fmt,
        size=SIZE,
        frames=1,
        picture_of=lambda k: filled(pix_fmt, (77 * 2 ** (bits - 8), 0, 0)),
    )
    with VideoSource(path) as source:
        assert source.colour.full_range
        assert_colour(next(iter(source)), (77, 128, 128))


def test_fcc_colour_is_converted_to_bt601(tmp_path: Path) -> None:
    """FCC (1953) weighs red 0.30, blue 0.11: not quite BT.601."""
    kr, kb = 0.30, 0.11
    red, green, blue = (value / 255 for value in ORANGE)
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    codes = (
        219 * luma + 16,
        224 * (blue - luma) / (2 - 2 * kb) + 128,
        224 * (red - luma) / (2 - 2 * kr) + 128,
    )
    path = make_video(
        tmp_path / "f.mkv",
        codec="ffv1",
        size=SIZE,
        frames=1,
        picture_of=lambda k: filled("yuv420p", codes),
        tags=(4, 4, 4, 1),
    )
    frame = frames_of(path)[0]
    assert frame.colour == Colour("bt601", full_range=False)
    assert_colour(frame, ycbcr(ORANGE, "bt601", full=False), within=1.5)


def test_colour_that_changes_midway_is_converted_to_the_first(tmp_path: Path) -> None:
    parts = []
    for k, (matrix, full) in enumerate((("bt709", False), ("bt601", True))):
        part = make_video(
            tmp_path / f"{k}.h264",
            format="h264",
            size=SIZE,
            frames=5,
            picture_of=lambda _, m=matrix, f=full: filled("yuv420p", ycbcr(ORANGE, m, full=f)),
            tags=(1, 1, TAG[matrix], 2 if full else 1),
            options={"crf": "4"},
        )
        parts.append(part.read_bytes())
    (tmp_path / "both.h264").write_bytes(b"".join(parts))
    with VideoSource(tmp_path / "both.h264") as source:
        frames = list(source)
        assert source.problems.colour_changes == 1
    assert {frame.colour for frame in frames} == {Colour("bt709", full_range=False)}
    for frame in frames:
        assert_colour(frame, ycbcr(ORANGE, "bt709", full=False), within=2.5)


# --- upright ---


def quadrants(size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Four corners that no turn or mirror image confuses."""
    height, width = size
    y = np.full(size, 40, np.uint8)
    y[: height // 2, : width // 2] = 200
    y[: height // 2, width // 2 :] = 140
    y[height // 2 :, : width // 2] = 90
    return y, y[::2, ::2].copy(), 255 - y[::2, ::2]


@pytest.mark.parametrize("mirror", [False, True], ids=["plain", "mirrored"])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_all_eight_orientations_are_turned_upright(
    tmp_path: Path, degrees: int, mirror: bool
) -> None:
    """The display matrix turns counterclockwise by `degrees`, then mirrors left to right."""
    size = (48, 80)
    stored = quadrants(size)
    path = make_video(
        tmp_path / "o.mp4",
        size=size,
        frames=2,
        picture_of=lambda k: picture(stored),
        display=(degrees, mirror, False),
        sample_aspect_ratio=Fraction(4, 3),
        options={"crf": "8"},
    )

    def shown(plane: np.ndarray) -> np.ndarray:
        turned = np.rot90(plane, degrees // 90)
        return turned[:, ::-1] if mirror else turned

    with VideoSource(path) as source:
        frame = next(iter(source))
        assert source.size == shown(stored[0]).shape == frame.size
        assert source.rotation_deg == -degrees % 360
        assert source.mirrored == mirror
        sideways = degrees in (90, 270)
        assert source.sample_aspect_ratio == (Fraction(3, 4) if sideways else Fraction(4, 3))
    for got, expected in zip((frame.y, frame.u, frame.v), map(shown, stored), strict=True):
        assert got.flags.c_contiguous or not sideways
        assert np.abs(got.astype(int) - expected.astype(int)).mean() < 3


def test_a_mirror_image_top_to_bottom_is_a_half_turn_and_a_mirror_image(tmp_path: Path) -> None:
    path = make_video(
        tmp_path / "v.mp4",
        frames=1,
        picture_of=lambda k: picture(quadrants((48, 64))),
        display=(0, False, True),
        options={"crf": "8"},
    )
    with VideoSource(path) as source:
        frame = next(iter(source))
        assert (source.rotation_deg, source.mirrored) == (180, True)
    assert np.abs(frame.y.astype(int) - quadrants((48, 64))[0][::-1].astype(int)).mean() < 3


@pytest.mark.parametrize(("orientation", "quarters"), [(1, 0), (3, 2), (6, 3), (8, 1)])
def test_exif_turns_a_picture_too(tmp_path: Path, orientation: int, quarters: int) -> None:
    """PyAV knows nothing of EXIF and refuses to list the side data of such a picture."""
    stored = quadrants((48, 80))[0]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "e.jpg", exif=exif, quality=95)
    with VideoSource(tmp_path / "e.jpg") as source:
        luma = next(iter(source)).y
        assert source.rotation_deg == -90 * quarters % 360
    assert np.abs(luma.astype(int) - np.rot90(stored, quarters).astype(int)).mean() < 3


# --- interlaced ---


def moving_bar(k: int) -> av.VideoFrame:
    """A bar that moves by 8 pixels a frame; the odd rows were seen half a frame later."""
    y = np.full((96, 128), 60, np.uint8)
    x = 8 * (k % 10)
    y[0::2, x : x + 16] = 200
    y[1::2, x + 4 : x + 20] = 200
    grey = np.full((48, 64), 128, np.uint8)
    return picture((y, grey, grey))


def combing(luma: np.ndarray) -> float:
    """How far rows differ from the mean of those above and below."""
    rows = luma.astype(int)
    return float(np.abs(2 * rows[1:-1] - rows[:-2] - rows[2:]).mean())


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "options"),
    [
        ("m.ts", "mpeg2video", "yuv420p", {"flags": "+ildct+ilme", "qscale": "2"}),
        ("h.mkv", "libx264", "yuv420p", {"x264-params": "interlaced=1:tff=1", "crf": "8"}),
        ("p.mov", "prores_ks", "yuv422p10le", {"flags": "+ildct+ilme"}),
    ],
    ids=["mpeg2", "h264", "prores-10-bit"],
)
def test_interlaced_video_becomes_progressive_frame_for_frame(
    tmp_path: Path, name: str, codec: str, pix_fmt: str, options: dict[str, str]
) -> None:
    path = make_video(
        tmp_path / name,
        codec=codec,
        pix_fmt=pix_fmt,
        size=(96, 128),
        options=options,
        picture_of=moving_bar,
    )
    with VideoSource(path) as source:
        frames = list(source)
        assert source.interlaced
        assert source.problems.sentences() == []
    assert [frame.pts * frame.time_base for frame in frames] == times_of(path)
    assert len(frames) == 12
    woven = np.frombuffer(moving_bar(5).planes[0], np.uint8).reshape(96, -1)
    assert combing(woven) > 10
    assert max(combing(frame.y) for frame in frames) < 1


def test_one_interlaced_frame_is_one_frame(tmp_path: Path) -> None:
    path = make_video(
        tmp_path / "1.mkv",
        codec="mpeg2video",
        size=(96, 128),
        frames=1,
        options={"flags": "+ildct+ilme"},
        picture_of=moving_bar,
    )
    with VideoSource(path) as source:
        assert len(list(source)) == 1
        assert source.interlaced


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("p.mov", {"codec": "png", "pix_fmt": "rgb24", "options": {"flags": "+ildct"}}),
        (
            "s.mkv",
            {"codec": "mpeg2video", "options": {"flags": "+ildct+ilme"}, "size": (2, 16)},
        ),
    ],
    ids=["png-in-passes", "two-rows"],
)
def test_what_has_no_two_fields_is_left_as_it_is(
    tmp_path: Path, name: str, options: dict[str, object]
) -> None:
    path = make_video(tmp_path / name, **options)
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).interlaced_frame
    with VideoSource(path) as source:
        assert len(list(source)) == 12
        assert not source.interlaced


def test_progressive_frames_among_interlaced_ones_are_left_as_they_are(tmp_path: Path) -> None:
    """In place, in time and in every pixel, though the filter looks one picture ahead."""
    size = (96, 128)
    parts = []
    for base, flags in ((0, "+loop"), (4, "+ildct+ilme"), (8, "+loop")):
        part = make_video(
            tmp_path / f"{base}.m2v",
            codec="mpeg2video",
            format="mpeg2video",
            size=size,
            frames=4,
            options={"flags": flags, "qscale": "2", "bf": "0"},
            picture_of=lambda k, base=base: picture(textured(base + k, size)),
        )
        parts.append(part.read_bytes())
    path = tmp_path / "mixed.m2v"
    path.write_bytes(b"".join(parts))
    with av.open(str(path)) as container:
        stored = [
            (p.interlaced_frame, p.to_ndarray(format="yuv420p")[: size[0]])
            for p in container.decode(video=0)
        ]
    assert [interlaced for interlaced, _ in stored] == [False] * 4 + [True] * 4 + [False] * 4
    with VideoSource(path) as source:
        frames = list(source)
        assert source.interlaced
    assert [(f.y == luma).all() for f, (_, luma) in zip(frames, stored, strict=True)] == [
        not interlaced for interlaced, _ in stored
    ]
    times = [frame.pts for frame in frames]
    assert times == sorted(set(times))


# --- a stretch of a recording ---

STRETCHES = {
    "middle": (1.0, 2.0),
    "before-the-first-keyframe": (0.0, 0.4),
    "from-the-first-frame": (None, 0.4),
    "to-the-end": (3.0, None),
    "one-frame": (2.0, 2.04),
    "last-frame": (3.96, None),
}


@pytest.mark.parametrize("stretch", STRETCHES)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("s.mp4", {"options": {"g": "24", "bf": "3"}}),
        ("s.mkv", {"options": {"g": "24", "bf": "3"}}),
        ("s.ts", {"options": {"g": "24", "bf": "3"}, "format": "mpegts"}),
        ("s.h264", {"options": {"g": "24", "bf": "3"}, "format": "h264"}),
        ("s.avi", {"codec": "mpeg4", "options": {"g": "12"}}),
        ("s.avi", {"options": {"g": "24", "bf": "3"}}),
        ("s.ffv1.mkv", {"codec": "ffv1"}),
    ],
    ids=["mp4", "mkv", "ts", "raw-h264", "avi", "avi-h264", "intra"],
)
def test_a_stretch_is_the_same_frames_as_in_the_whole(
    tmp_path: Path, name: str, options: dict, stretch: str
) -> None:
    path = make_video(tmp_path / name, frames=100, **options)
    whole = [(frame.pts, frame.y.copy()) for frame in frames_of(path)]
    with VideoSource(path) as source:
        tick, origin = source.time_base, source.first_pts * source.time_base
    start, end = (
        None if t is None else float(origin + Fraction(str(t))) - 1e-6 for t in STRETCHES[stretch]
    )
    expected = [
        (pts, y)
        for pts, y in whole
        if (start is None or pts * tick >= start) and (end is None or pts * tick < end)
    ]
    with VideoSource(path, start_s=start, end_s=end) as source:
        got = [(frame.pts, frame.y.copy()) for frame in source]
        assert source.first_pts == expected[0][0]
        if name != "s.h264":
            assert source.problems.sentences() == []
    assert [pts for pts, _ in got] == [pts for pts, _ in expected]
    for (_, y), (_, wanted) in zip(got, expected, strict=True):
        np.testing.assert_array_equal(y, wanted)


def test_a_stretch_holds_its_first_moment_and_not_its_last(tmp_path: Path) -> None:
    path = make_video(tmp_path / "x.mp4", frames=75)
    frames = frames_of(path, start_s=1.0, end_s=2.0)
    assert [frame.pts * frame.time_base for frame in frames] == [
        Fraction(k, 25) for k in range(25, 50)
    ]


@pytest.mark.parametrize("tenths", [1, 3, 7, 11])
def test_the_moment_of_a_frame_as_it_is_written_is_its_first_moment(
    tmp_path: Path, tenths: int
) -> None:
    """No number of the machine is 0.1: the nearest one is a little more."""
    path = make_video(tmp_path / "x.mp4", frames=20, time_base=Fraction(1, 10), rate=10)
    after, before = frames_of(path, start_s=tenths / 10), frames_of(path, end_s=tenths / 10)
    assert after[0].seconds == tenths / 10
    assert before[-1].seconds == (tenths - 1) / 10
    assert len(before) + len(after) == 20


def test_a_late_stretch_is_sought_and_not_decoded_up_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = 0

    class Counted(container.OneFile):
        def read(self, count: int) -> bytes:
            nonlocal read
            data = super().read(count)
            read += len(data)
            return data

    size = (96, 128)
    path = make_video(
        tmp_path / "l.mkv",
        frames=500,
        size=size,
        options={"g": "25", "preset": "ultrafast"},
        picture_of=lambda k: picture(textured(k, size)),
    )
    monkeypatch.setattr(container, "OneFile", Counted)
    monkeypatch.setattr(container, "_READ_BYTES", 4096)
    assert len(frames_of(path, start_s=19.0)) == 25
    assert read < 0.3 * path.stat().st_size


def test_a_stretch_says_how_long_it_is(tmp_path: Path) -> None:
    path = make_video(tmp_path / "d.mp4", frames=100)
    with VideoSource(path, start_s=1.0, end_s=3.0) as source:
        assert source.duration_s == pytest.approx(2.0)
        assert source.frame_count_hint == 50
    with VideoSource(path, start_s=3.0, end_s=99.0) as source:
        assert source.duration_s == pytest.approx(1.0)


def test_a_stretch_without_frames_says_where_the_frames_are(tmp_path: Path) -> None:
    path = make_video(tmp_path / "d.mp4", frames=50)
    with pytest.raises(
        VideoOpenError,
        match=r"d\.mp4 has no frame from 5 s and before 6 s: its frames lie between 0\.000 s and "
        r"1\.960 s\.$",
    ):
        VideoSource(path, start_s=5.0, end_s=6.0)


def test_a_stretch_that_ends_before_it_starts_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"end_s must be after start_s, got 2\.0 and 1\.0"):
        VideoSource(tmp_path / "any.mp4", start_s=2.0, end_s=1.0)


# --- the videos of these tests ---


def test_levels_of_the_test_videos_tell_frames_apart() -> None:
    """The ground that the other tests stand on."""
    assert len({level(k) for k in range(32)}) == 32
    assert [index_of(flat(k, (4, 4))[0]) for k in range(32)] == list(range(32))
