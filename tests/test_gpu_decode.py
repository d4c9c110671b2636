"""What decoding into a GPU's memory promises: the frames, times and counts of decoding in software.

Without a GPU, NVDEC is played by FFmpeg's own decoder whose pictures are made NV12 or P010 in the
host's memory (`PlayedNvdec`): all that is done with NVDEC's pictures is then done with them, by
torch on the CPU. What only NVDEC can show is marked `cuda`.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from ccdstream import container, decode, nv12
from ccdstream.container import OneFile, open_container
from ccdstream.decode import VideoSource
from ccdstream.errors import VideoOpenError
from ccdstream.frames import DeviceFrame, Frame
from ccdstream.nvdec import Nvdec
from tests.videos import ALL_B, cut, flip_bits, make_video, picture, textured

SIZE = (48, 64)


TO_DEVICE = {"yuv420p": "nv12", "yuvj420p": "nv12", "yuv420p10le": "p010le"}


class PlayedNvdec(Nvdec):
    """Takes pictures in the host's memory for those of a GPU, where they are NV12 or P010."""

    def open(self, path: Path) -> tuple[av.container.InputContainer, OneFile]:
        return open_container(path)

    def decode(
        self, decoder: av.VideoCodecContext, packet: av.Packet | None
    ) -> list[av.VideoFrame]:
        return [self.on_device(picture) for picture in super().decode(decoder, packet)]

    @staticmethod
    def on_device(picture: av.VideoFrame) -> av.VideoFrame:
        if picture.format.name not in TO_DEVICE:
            return picture
        moved = picture.reformat(format=TO_DEVICE[picture.format.name])
        moved.colorspace = picture.colorspace
        return moved

    @staticmethod
    def layout(picture: av.VideoFrame) -> str | None:
        return picture.format.name if picture.format.name in TO_DEVICE.values() else None


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that decodes, played by the CPU."""
    monkeypatch.setattr(decode, "Nvdec", PlayedNvdec)


def textured_video(path: Path, **options: object) -> Path:
    size = options.setdefault("size", SIZE)
    return make_video(path, picture_of=lambda k: picture(textured(k, size)), **options)


def decoded(path: Path, **options: object) -> tuple[VideoSource, list[Frame | DeviceFrame]]:
    with VideoSource(path, **options) as source:
        return source, list(source.frames())


def assert_same(path: Path, *, within: int = 0, **span: float) -> tuple[VideoSource, list[bool]]:
    """Decode both ways and compare all; gives which frames were left on the GPU."""
    software, expected = decoded(path, **span)
    source, frames = decoded(path, decode_on=0, **span)
    assert len(frames) == len(expected) > 0
    for got, want in zip(frames, expected, strict=True):
        host = got.on_host() if isinstance(got, DeviceFrame) else got
        assert isinstance(want, Frame)
        assert (got.pts, got.time_base, got.colour) == (want.pts, want.time_base, want.colour)
        for name in ("y", "u", "v"):
            a, b = getattr(host, name).astype(int), getattr(want, name).astype(int)
            assert np.abs(a - b).max() <= within, f"{name} at {got.seconds} s"
    assert source.problems.as_dict() == software.problems.as_dict()
    for name in (
        *("size", "colour", "colour_tags", "pix_fmt", "codec", "interlaced", "rotation_deg"),
        *("mirrored", "first_pts", "last_duration", "duration_s", "frame_count_hint"),
        "sample_aspect_ratio",
    ):
        assert getattr(source, name) == getattr(software, name), name
    return source, [isinstance(frame, DeviceFrame) for frame in frames]


# --- pictures that fit ---


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {"options": {"bf": "3", "b_strategy": "0"}, "frames": 30}),
        ("a.ts", {"format": "mpegts"}),
        ("a.h264", {"format": "h264"}),
        ("a.mkv", {"pts": [0, 1, 2, 5, 6, 30, 31, 90], "frames": 8}),
        ("a.mp4", {"codec": "libx265", "size": (64, 64)}),
        ("a.webm", {"codec": "libvpx-vp9"}),
        ("a.mp4", {"tags": (1, 1, 1, 2)}),
        ("a.mp4", {"pix_fmt": "yuvj420p", "tags": (5, 6, 5, 2)}),
        ("a.mp4", {"size": (50, 70), "sample_aspect_ratio": Fraction(16, 11)}),
    ],
    ids=["b-frames", "ts", "no-times", "vfr", "hevc", "vp9", "bt709-full", "yuvj", "50x70"],
)
def test_frames_left_on_the_gpu_are_those_of_software_bit_for_bit(
    tmp_path: Path, played: None, name: str, options: dict[str, object]
) -> None:
    source, on_gpu = assert_same(textured_video(tmp_path / name, **options))
    assert all(on_gpu)
    assert (source.decoder, source.notes) == ("nvdec", [])


def test_frames_of_ten_bits_are_rounded_to_eight(tmp_path: Path, played: None) -> None:
    path = textured_video(tmp_path / "t.mp4", codec="libx265", pix_fmt="yuv420p10le", size=(64, 64))
    source, on_gpu = assert_same(path, within=1)
    assert all(on_gpu)
    assert source.pix_fmt == "yuv420p10le"


def test_ten_bits_are_rounded_to_the_nearest_level() -> None:
    """Every value of P010: code c of ten bits, stored as 64 c, becomes c / 4."""
    ten = av.VideoFrame(64, 16, "p010le")
    codes = np.arange(1024, dtype=np.uint16)
    luma = np.frombuffer(ten.planes[0], np.uint16).reshape(16, -1)
    luma[:, :64] = (codes * 64).reshape(16, 64)
    chroma = np.frombuffer(ten.planes[1], np.uint16).reshape(8, -1)
    chroma[:, :64] = (codes[::2] * 64).reshape(8, 64)
    y, uv = nv12.planes_of(ten)
    expected = np.minimum(np.floor(codes / 4 + 0.5), 255)
    np.testing.assert_array_equal(y.numpy().ravel(), expected)
    np.testing.assert_array_equal(uv.numpy().ravel(), expected[::2])
    assert y.dtype == uv.dtype == torch.uint8


def test_a_frame_keeps_its_picture_when_the_decoder_writes_the_next(
    tmp_path: Path, played: None
) -> None:
    """The surface of a picture is used anew: the frame must not be a view of it."""
    surface = av.VideoFrame(SIZE[1], SIZE[0], "nv12")
    np.frombuffer(surface.planes[0], np.uint8)[:] = 7
    y, uv = nv12.planes_of(surface)
    kept = y.clone(), uv.clone()
    for plane in surface.planes:
        np.frombuffer(plane, np.uint8)[:] = 200
    assert torch.equal(y, kept[0]) and torch.equal(uv, kept[1])
    assert y.is_contiguous() and uv.is_contiguous()
    assert y.shape == SIZE and uv.shape == (24, 32, 2)


def test_iterating_gives_host_frames_wherever_they_were_decoded(
    tmp_path: Path, played: None
) -> None:
    path = textured_video(tmp_path / "i.mp4")
    with VideoSource(path, decode_on=0) as source, VideoSource(path) as software:
        for got, want in zip(source, software, strict=True):
            assert isinstance(got, Frame)
            np.testing.assert_array_equal(got.v, want.v)
    assert source.problems.decoded == 12


def test_a_stretch_is_the_same_both_ways(tmp_path: Path, played: None) -> None:
    path = textured_video(tmp_path / "s.mp4", frames=60, options={"g": "10", "bf": "2"})
    _, on_gpu = assert_same(path, start_s=0.9, end_s=1.7)
    assert len(on_gpu) == 20 and all(on_gpu)


@pytest.mark.parametrize("kind", ["flipped", "cut", "ts"])
def test_damage_is_told_the_same_both_ways(tmp_path: Path, played: None, kind: str) -> None:
    name, format = ("d.ts", "mpegts") if kind == "ts" else ("d.mkv", None)
    whole = textured_video(tmp_path / name, frames=50, format=format, options={"g": "10"})
    path = tmp_path / f"damaged-{name}"
    if kind == "cut":
        cut(whole, path, 0.6)
    else:
        flip_bits(whole, path, seed=3)
    # what a damaged picture shows where nothing was decoded is by chance
    source, _ = assert_same(path, within=255)
    assert source.notes == []
    assert source.problems.sentences(), "nothing is damaged, so this test tests nothing"


# --- pictures that do not fit ---


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("i.mp4", {"options": {"x264-params": "tff=1"}}, "picture 1 is interlaced"),
        (
            "t.mp4",
            {"options": {"x264-params": "tff=1"}, "tags": (5, 6, 5, 1)},
            "picture 1 is interlaced",
        ),
        ("r.mp4", {"display": (90.0, False, False)}, "picture 1 is turned or mirrored"),
        ("o.webm", {"codec": "libvpx-vp9", "size": (47, 63)}, "picture 1 is of odd size"),
        ("f.mp4", {"tags": (4, 4, 4, 1)}, "picture 1 is in the colours of FCC or SMPTE 240M"),
    ],
)
def test_what_is_no_device_frame_goes_the_way_of_software(
    tmp_path: Path, played: None, name: str, options: dict[str, object], reason: str
) -> None:
    source, on_gpu = assert_same(textured_video(tmp_path / name, **options))
    assert not any(on_gpu)
    assert source.notes == [f"decoded into the host's memory: {reason}"]
    assert source.decoder == "nvdec"


@pytest.mark.parametrize(
    ("name", "options", "what"),
    [
        ("m.avi", {"codec": "mpeg4"}, "mpeg4 in yuv420p"),
        ("p.mov", {"codec": "prores_ks", "pix_fmt": "yuv422p10le"}, "prores in yuv422p10le"),
        ("h.mkv", {"pix_fmt": "yuv444p"}, "h264 in yuv444p"),
    ],
)
def test_codecs_and_formats_that_nvdec_would_give_otherwise_are_left_to_ffmpeg(
    tmp_path: Path, played: None, name: str, options: dict[str, object], what: str
) -> None:
    source, on_gpu = assert_same(make_video(tmp_path / name, **options))
    assert not any(on_gpu)
    assert source.decoder == "software"
    assert source.notes == [f"decoded into the host's memory: NVDEC is not used for {what}"]


def joined(path: Path, *parts: Path) -> Path:
    """The bytes of H.264 streams, one after the other."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"size": (32, 48)}, "is of another size"),
        ({"tags": (1, 1, 1, 2)}, "is of another colour"),
        ({"options": {"x264-params": "tff=1"}}, "is interlaced"),
        ({"pix_fmt": "yuv444p"}, "was left by NVDEC to FFmpeg's decoder"),
    ],
    ids=["size", "colour", "interlaced", "chroma"],
)
def test_a_change_midway_gives_every_frame_once_and_host_frames_from_there_on(
    tmp_path: Path, played: None, change: dict[str, object], reason: str
) -> None:
    raw: dict[str, object] = {"format": "h264", "frames": 8}
    plain = {**raw, "tags": (6, 6, 6, 1)}
    path = joined(
        tmp_path / "j.h264",
        textured_video(tmp_path / "a.h264", **plain),
        make_video(tmp_path / "b.h264", **{**plain, **change}),
        textured_video(tmp_path / "c.h264", **plain),
    )
    source, on_gpu = assert_same(path)
    assert on_gpu == [True] * 8 + [False] * 16
    assert source.notes == [f"decoded into the host's memory: picture 9 {reason}"]


# --- a GPU that cannot be used ---


def test_without_a_gpu_all_is_decoded_in_software_and_it_is_said(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    source, on_gpu = assert_same(textured_video(tmp_path / "n.mp4"))
    assert not any(on_gpu)
    assert source.decoder == "software"
    (note,) = source.notes
    assert note.startswith("decoded into the host's memory: torch cannot use GPU 0 (")
    assert "\n" not in note


def test_where_ffmpeg_finds_no_driver_all_is_decoded_in_software_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FFmpeg really is asked here, and refuses even though it may fall back by itself."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.setattr(nv12, "context_of", lambda gpu: nullcontext())
    source, on_gpu = assert_same(textured_video(tmp_path / "n.mp4"))
    assert not any(on_gpu)
    assert source.notes == [
        "decoded into the host's memory: FFmpeg cannot use the GPU (Operation not permitted)"
    ]


def test_b_frames_of_an_avi_are_not_left_to_nvdec_which_has_no_room_for_so_many(
    tmp_path: Path,
) -> None:
    path = make_video(tmp_path / "b.avi", frames=30, options=ALL_B)
    with VideoSource(path, decode_on=0) as source:
        assert [frame.pts for frame in source] == list(range(30))
        (note,) = source.notes
    assert "NVDEC is not used for h264 with B-frames in avi" in note


def test_a_file_that_cannot_be_read_is_still_told_from_a_gpu_that_cannot_be_used(
    tmp_path: Path,
) -> None:
    (tmp_path / "x.mp4").write_bytes(b"no video at all" * 100)
    with pytest.raises(VideoOpenError, match=r"cannot read .*x\.mp4 as a video"):
        VideoSource(tmp_path / "x.mp4", decode_on=0)


def test_no_file_stays_open_where_the_gpu_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[OneFile] = []

    class Watched(OneFile):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            opened.append(self)

    monkeypatch.setattr(container, "OneFile", Watched)
    monkeypatch.setattr(nv12, "context_of", lambda gpu: nullcontext())
    with VideoSource(make_video(tmp_path / "o.mp4"), decode_on=0) as source:
        list(source)
    assert len(opened) >= 2
    assert all(file._file.closed for file in opened)


# --- a GPU that fails ---


@pytest.mark.parametrize("fails_at", [1, 2, 17])
@pytest.mark.parametrize(
    ("name", "format", "span"),
    [
        ("f.mp4", None, {}),
        ("f.h264", "h264", {}),
        ("f.mp4", None, {"start_s": 0.3, "end_s": 1.1}),
    ],
    ids=["mp4", "no-times", "stretch"],
)
def test_where_the_gpu_fails_software_goes_on_and_every_frame_comes_once(
    tmp_path: Path,
    played: None,
    monkeypatch: pytest.MonkeyPatch,
    fails_at: int,
    name: str,
    format: str | None,
    span: dict[str, float],
) -> None:
    taken = iter(range(1, 1000))

    def in_8_bits(samples: torch.Tensor) -> torch.Tensor:
        if next(taken) == 2 * fails_at:  # two planes a picture
            raise torch.OutOfMemoryError("CUDA out of memory\nGPU 0 has ...")
        return samples.clone()

    monkeypatch.setattr(nv12, "_in_8_bits", in_8_bits)
    options = {"g": "10", "bf": "2"}
    path = textured_video(tmp_path / name, frames=40, format=format, options=options)
    source, on_gpu = assert_same(path, **span)
    assert on_gpu == [k < fails_at - 1 for k in range(len(on_gpu))]
    assert source.decoder == "software"
    assert source.notes == [
        "decoded into the host's memory: torch did not take over a picture (CUDA out of memory)"
    ]


class Broken:
    """A decoder that cannot."""

    def __init__(self, error: type[Exception]) -> None:
        self._error = error

    def decode(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        raise self._error(1, "broken")


@pytest.mark.parametrize("error", [av.error.ExternalError, av.error.MemoryError])
def test_an_error_of_nvdec_is_no_damage_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[av.FFmpegError]
) -> None:
    class FailsLate(PlayedNvdec):
        packets = 0

        def decode(
            self, decoder: av.VideoCodecContext, packet: av.Packet | None
        ) -> list[av.VideoFrame]:
            self.packets += 1
            return super().decode(decoder if self.packets < 20 else Broken(error), packet)

    monkeypatch.setattr(decode, "Nvdec", FailsLate)
    source, on_gpu = assert_same(textured_video(tmp_path / "e.mp4", frames=40))
    assert on_gpu == sorted(on_gpu, reverse=True) and 0 < sum(on_gpu) < 20
    assert source.notes == ["decoded into the host's memory: NVDEC failed (broken)"]


@pytest.mark.parametrize("error", [av.error.InvalidDataError, av.error.EOFError, ValueError])
def test_damage_of_the_file_is_no_error_of_nvdec(error: type[Exception]) -> None:
    with pytest.raises(error):
        Nvdec(0).decode(Broken(error), None)


def test_where_nvdec_gives_no_picture_software_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent(PlayedNvdec):
        def decode(
            self, decoder: av.VideoCodecContext, packet: av.Packet | None
        ) -> list[av.VideoFrame]:
            return []

    monkeypatch.setattr(decode, "Nvdec", Silent)
    source, on_gpu = assert_same(textured_video(tmp_path / "e.mp4"))
    assert not any(on_gpu)
    assert source.notes == ["decoded into the host's memory: NVDEC gave no picture"]


# --- on a GPU ---


@contextmanager
def another_stream() -> Iterator[None]:
    with torch.cuda.stream(torch.cuda.Stream()):
        yield


@pytest.mark.cuda
@pytest.mark.parametrize("stream", [nullcontext, another_stream], ids=["default", "own-stream"])
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_nvdec_gives_the_frames_of_software(tmp_path: Path, codec: str, stream: object) -> None:
    """Also where torch has begun its context before FFmpeg asks for one."""
    torch.zeros(1, device="cuda:0")
    path = textured_video(tmp_path / "n.mp4", codec=codec, size=(360, 640), frames=60)
    with stream():
        source, on_gpu = assert_same(path)
    assert all(on_gpu), source.notes
    assert source.decoder == "nvdec"


@pytest.mark.cuda
def test_many_frames_of_nvdec_can_be_held_at_once(tmp_path: Path) -> None:
    """More than its surfaces, and each keeps its own picture."""
    path = textured_video(tmp_path / "m.mp4", size=(144, 176), frames=200)
    _, on_gpu = assert_same(path)
    assert all(on_gpu)


@pytest.mark.cuda
def test_nvdec_rounds_ten_bits(tmp_path: Path) -> None:
    path = textured_video(
        tmp_path / "t.mp4", codec="libx265", pix_fmt="yuv420p10le", size=(144, 176)
    )
    _, on_gpu = assert_same(path, within=1)
    assert all(on_gpu)


@pytest.mark.cuda
def test_pictures_of_nvdec_come_to_the_host_where_they_change(tmp_path: Path) -> None:
    raw: dict[str, object] = {"format": "h264", "frames": 8}
    path = joined(
        tmp_path / "j.h264",
        textured_video(tmp_path / "a.h264", size=(144, 176), **raw),
        textured_video(tmp_path / "b.h264", size=(288, 352), **raw),
    )
    _, on_gpu = assert_same(path)
    assert on_gpu == [True] * 8 + [False] * 8
