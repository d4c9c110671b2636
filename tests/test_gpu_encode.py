"""What encoding from a GPU's memory promises: the file that the same frames of the host give.

Without a GPU, frames "on the GPU" are tensors on the CPU, and NVENC is played by x264 fed with what
NVENC would get (`played`). What only NVENC can show is marked `cuda`.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from ccdstream import encode, nv12
from ccdstream.decode import VideoSource
from ccdstream.encode import Chapter, StreamInfo, VideoSink
from ccdstream.errors import OutputError
from ccdstream.frames import Colour, DeviceFrame, Frame
from tests.videos import beep_time, make_video, packets_of, picture, textured, times_of

INFO = StreamInfo(
    size=(48, 64),
    time_base=Fraction(1, 90_000),
    average_rate=Fraction(25),
    colour=Colour("bt709", full_range=True),
    sample_aspect_ratio=Fraction(16, 11),
    last_duration=7200,
)
UNEVEN = [900, 4500, 8100, 30_000, 33_601, 900_000]


def frames(info: StreamInfo = INFO, pts: list[int] = UNEVEN) -> Iterator[Frame]:
    for k, time in enumerate(pts):
        yield Frame(*textured(k, info.size), time, info.time_base, info.colour)


def on_device(frame: Frame, device: str = "cpu") -> DeviceFrame:
    uv = torch.from_numpy(np.stack([frame.u, frame.v], axis=-1))
    y = torch.from_numpy(frame.y.copy())
    return DeviceFrame(y.to(device), uv.to(device), frame.pts, frame.time_base, frame.colour)


def written(
    path: Path, given: Iterator[Frame | DeviceFrame], info: StreamInfo = INFO, **options: object
) -> VideoSink:
    # one thread, and sizes that x264 gives the same bytes for every time: of 50x70 it does not
    with VideoSink(path, info, threads=1, **options) as sink:
        for frame in given:
            sink.write(frame)
        sink.chapters([Chapter(0.1, 0.4, "alert 1")])
    return sink


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> None:
    """An NVENC, played by x264: it takes NV12 by DLPack, and the options of NVENC that it knows."""
    monkeypatch.setattr(nv12, "context_of", lambda gpu: nullcontext())
    monkeypatch.setattr(encode, "HWAccel", lambda *args, **kwargs: None)
    monkeypatch.setattr(encode, "_NVENC", "libx264")
    monkeypatch.setattr(encode, "_NVENC_OPTIONS", {"preset": "ultrafast", "bf": "0"})


# --- to x264 ---


# at some sizes, such as 32x48, x264 does not give the same bytes twice
@pytest.mark.parametrize("size", [(48, 64), (33, 35)], ids=str)
def test_frames_of_a_gpu_give_the_bytes_that_frames_of_the_host_give(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    info = replace(INFO, size=size)
    written(tmp_path / "host.mp4", frames(info), info)
    sink = written(tmp_path / "gpu.mp4", map(on_device, frames(info)), info)
    assert (tmp_path / "gpu.mp4").read_bytes() == (tmp_path / "host.mp4").read_bytes()
    assert (sink.encoder, sink.notes, sink.frames) == ("x264", [], len(UNEVEN))


def test_a_frame_of_a_gpu_may_be_changed_once_it_is_written(tmp_path: Path) -> None:
    written(tmp_path / "host.mp4", frames())

    def changed() -> Iterator[DeviceFrame]:
        for frame in map(on_device, frames()):
            yield frame
            frame.y.zero_()
            frame.uv.zero_()

    written(tmp_path / "gpu.mp4", changed())
    assert (tmp_path / "gpu.mp4").read_bytes() == (tmp_path / "host.mp4").read_bytes()


def test_a_frame_of_a_gpu_of_another_size_is_a_mistake(tmp_path: Path) -> None:
    frame = on_device(next(frames(replace(INFO, size=(32, 32)))))
    with (
        pytest.raises(ValueError, match=r"frames must be \(48, 64\), got \(32, 32\)"),
        VideoSink(tmp_path / "s.mp4", INFO) as sink,
    ):
        sink.write(frame)
    assert not list(tmp_path.iterdir())


# --- an NVENC that cannot be used ---


@pytest.mark.parametrize("asked", ["torch", "ffmpeg"])
def test_without_nvenc_x264_encodes_the_same_and_it_is_said(
    tmp_path: Path, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First torch refuses; once it is not asked, FFmpeg does, which has the encoder."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    if asked == "ffmpeg":
        monkeypatch.setattr(nv12, "context_of", lambda gpu: nullcontext())
    written(tmp_path / "x264.mp4", frames())
    sink = written(tmp_path / "asked.mp4", frames(), encode_on=0)
    assert (tmp_path / "asked.mp4").read_bytes() == (tmp_path / "x264.mp4").read_bytes()
    assert sink.encoder == "x264"
    assert sink.notes == []  # it is no warning
    note = sink.encoder_note
    if asked == "torch":
        assert note.startswith("encoded by x264: torch cannot use GPU 0 (")
    else:
        assert note == "encoded by x264: NVENC does not open (Operation not permitted)"


def test_a_place_that_cannot_be_written_is_told_before_nvenc_is_tried(tmp_path: Path) -> None:
    sink = VideoSink(tmp_path / "missing" / "o.mp4", INFO, encode_on=0)
    with pytest.raises(OutputError, match="Check that the folder exists"), sink:
        pass
    assert sink.notes == []


def test_nvencs_options_are_ones_that_it_has() -> None:
    """FFmpeg passes over an option that an encoder does not have, in silence."""
    options = av.CodecContext.create(encode._NVENC, "w").supported_options
    known = {o.name: [c.name for c in o.choices] for o in (*options.generic, *options.private)}
    assert {*encode._NVENC_OPTIONS, "qp"} <= set(known)
    assert encode._NVENC_OPTIONS["preset"] in known["preset"]
    assert encode._NVENC_OPTIONS["rc"] in known["rc"]


# --- what NVENC gets ---


@pytest.mark.parametrize("size", [(48, 64), (33, 35), (32, 48)], ids=str)
def test_nvenc_gets_one_piece_of_memory_with_the_chroma_below_the_luma(
    size: tuple[int, int],
) -> None:
    frame = next(frames(replace(INFO, size=size)))
    y, uv = nv12.for_nvenc(on_device(frame))
    expected = encode.planar(frame).reformat(format="nv12").to_ndarray()
    height, width = y.shape
    assert height % 2 == width % 2 == 0
    np.testing.assert_array_equal(torch.cat([y, uv]).numpy(), expected)
    assert y.stride() == uv.stride() and y.stride(1) == 1
    assert y.stride(0) >= width and y.stride(0) % 4 == 0
    assert uv.data_ptr() == y.data_ptr() + height * y.stride(0)


def pictures_of(path: Path) -> list[np.ndarray]:
    with VideoSource(path) as source:
        return [np.concatenate([f.y.ravel(), f.u.ravel(), f.v.ravel()]) for f in source]


def assert_same_but_for_the_encoder(path: Path, x264: Path) -> None:
    """Times, durations, tags and chapters of `path` are those of `x264`, and its pictures near."""
    assert times_of(path) == times_of(x264)
    with av.open(str(path)) as a, av.open(str(x264)) as b:
        assert a.duration == b.duration
        assert a.chapters() == b.chapters()
        one, other = a.streams.video[0], b.streams.video[0]
        assert (one.time_base, one.duration, one.frames) == (
            *(other.time_base, other.duration),
            other.frames,
        )
        assert one.sample_aspect_ratio == other.sample_aspect_ratio
        for name in ("color_primaries", "color_trc", "colorspace", "color_range", "pix_fmt"):
            context, expected = one.codec_context, other.codec_context
            assert getattr(context, name) == getattr(expected, name), name
    for got, want in zip(pictures_of(path), pictures_of(x264), strict=True):
        assert np.abs(got.astype(int) - want).mean() < 4


@pytest.mark.parametrize("kind", ["gpu", "host", "both"])
@pytest.mark.parametrize("size", [(48, 64), (33, 35)], ids=str)
def test_with_nvenc_times_tags_and_chapters_are_those_of_x264(
    tmp_path: Path, played: None, kind: str, size: tuple[int, int]
) -> None:
    info = replace(INFO, size=size)
    written(tmp_path / "x264.mp4", frames(info), info)
    given = (
        on_device(frame) if kind == "gpu" or (kind == "both" and k % 2) else frame
        for k, frame in enumerate(frames(info))
    )
    sink = written(tmp_path / "nvenc.mp4", given, info, encode_on=0)
    assert (sink.encoder, sink.notes) == ("nvenc", [])
    assert_same_but_for_the_encoder(tmp_path / "nvenc.mp4", tmp_path / "x264.mp4")


def test_on_the_way_to_nvenc_a_frame_of_a_gpu_does_not_pass_through_the_host(
    tmp_path: Path, played: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_host(frame: DeviceFrame) -> Frame:
        raise AssertionError("copied to the host")

    monkeypatch.setattr(DeviceFrame, "on_host", on_host)
    assert written(tmp_path / "o.mp4", map(on_device, frames()), encode_on=0).encoder == "nvenc"


def test_with_nvenc_sound_is_in_time(tmp_path: Path, played: None) -> None:
    path = make_video(tmp_path / "s.mp4", frames=25, audio="aac", beep_s=0.5)
    with (
        VideoSource(path) as source,
        source.open_audio() as audio,
        VideoSink(tmp_path / "o.mp4", source, audio=audio, encode_on=0) as sink,
    ):
        for frame in source:
            sink.write(on_device(frame))
    assert beep_time(tmp_path / "o.mp4") == pytest.approx(beep_time(path), abs=0.003)
    assert packets_of(tmp_path / "o.mp4", "audio") == packets_of(path, "audio")


def test_with_nvenc_an_error_leaves_no_trace(tmp_path: Path, played: None) -> None:
    with (
        pytest.raises(RuntimeError, match="stop"),
        VideoSink(tmp_path / "o.mp4", INFO, encode_on=0) as sink,
    ):
        for frame in frames():
            sink.write(on_device(frame))
        raise RuntimeError("stop")
    assert not list(tmp_path.iterdir())


# --- on a GPU ---


@pytest.mark.cuda
@pytest.mark.parametrize("size", [(360, 640), (481, 719)], ids=str)
def test_x264_takes_frames_from_a_gpu(tmp_path: Path, size: tuple[int, int]) -> None:
    info = replace(INFO, size=size)
    written(tmp_path / "host.mp4", frames(info), info)
    written(tmp_path / "gpu.mp4", (on_device(f, "cuda:0") for f in frames(info)), info)
    assert (tmp_path / "gpu.mp4").read_bytes() == (tmp_path / "host.mp4").read_bytes()


@pytest.mark.cuda
@pytest.mark.parametrize("kind", ["gpu", "host", "both"])
@pytest.mark.parametrize("size", [(360, 640), (481, 719)], ids=str)
def test_nvenc_writes_what_x264_writes(tmp_path: Path, kind: str, size: tuple[int, int]) -> None:
    """Skipped where the GPU has no NVENC: data-centre GPUs of some generations lack it."""
    info = replace(INFO, size=size)
    written(tmp_path / "x264.mp4", frames(info), info)
    given = (
        on_device(frame, "cuda:0") if kind == "gpu" or (kind == "both" and k % 2) else frame
        for k, frame in enumerate(frames(info))
    )
    sink = written(tmp_path / "nvenc.mp4", given, info, encode_on=0)
    if sink.encoder == "x264":
        pytest.skip(sink.notes[0])
    assert_same_but_for_the_encoder(tmp_path / "nvenc.mp4", tmp_path / "x264.mp4")


@pytest.mark.cuda
def test_from_nvdec_to_nvenc_nothing_passes_through_the_host(tmp_path: Path) -> None:
    path = make_video(
        tmp_path / "n.mp4",
        size=(360, 640),
        frames=150,
        picture_of=lambda k: picture(textured(k, (360, 640))),
    )
    with (
        VideoSource(path, decode_on=0) as source,
        VideoSink(tmp_path / "o.mp4", source, encode_on=0) as sink,
    ):
        for frame in source.frames():
            assert isinstance(frame, DeviceFrame)
            sink.write(frame)
    if sink.encoder == "x264":
        pytest.skip(sink.notes[0])
    assert times_of(tmp_path / "o.mp4") == times_of(path)
    for got, want in zip(pictures_of(tmp_path / "o.mp4"), pictures_of(path), strict=True):
        assert np.abs(got.astype(int) - want).mean() < 4
