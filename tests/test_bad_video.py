"""Damaged, strange and hostile input: a clear line, or what can be had and a count of what cannot.

Every error is one line, and nothing hangs: leaving a decoder early is tested here too.
"""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import pytest

from ccdstream import container, decode
from ccdstream.decode import VideoSource
from ccdstream.encode import VideoSink
from ccdstream.errors import CcdstreamError, VideoDecodeError
from ccdstream.prefetch import prefetch
from tests.hostile import refused
from tests.videos import (
    busy_video,
    cut,
    flip_bits,
    index_of,
    make_video,
    picture,
    remux,
    textured,
)

SIZE = (48, 64)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.avi", "{} has a video stream without a single picture. Copy the recording again."),
        ("none.mp4", "{} holds no video: the index of an MP4 is written last"),
        ("none.mkv", "cannot read {} as a video: End of file."),
    ],
    ids=["avi", "mp4", "mkv"],
)
def test_a_video_without_a_frame_says_so(tmp_path: Path, name: str, message: str) -> None:
    whole = make_video(tmp_path / "w.avi", codec="mpeg4")
    path = remux(whole, tmp_path / name, lambda packet, k: None)
    assert refused(path, CcdstreamError).startswith(message.format(path))


def test_a_video_that_cannot_be_decoded_says_so(tmp_path: Path) -> None:
    def spoilt(packet: av.Packet, k: int) -> av.Packet:
        wrong = av.Packet(b"\xff" * 200)
        wrong.pts, wrong.dts, wrong.time_base = packet.pts, packet.dts, packet.time_base
        return wrong

    whole = make_video(tmp_path / "w.avi", codec="mpeg4")
    path = remux(whole, tmp_path / "junk.avi", spoilt)
    assert refused(path, VideoDecodeError) == (
        f"nothing in {path} can be decoded: 12 packets of mpeg4 gave no picture. "
        "Check that it plays in ffplay."
    )


# --- hostile ---


def test_a_picture_too_large_to_hold_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_video(tmp_path / "l.mp4")
    for module in (container, decode):
        monkeypatch.setattr(module, "MAX_PIXELS", 48 * 64 - 1)
    refused(path, VideoDecodeError)
    for module in (container, decode):
        monkeypatch.setattr(module, "MAX_PIXELS", 48 * 64)
    with VideoSource(path) as source:
        assert len(list(source)) == 12


@pytest.mark.parametrize("codec", ["libx264", "libvpx-vp9", "ffv1"])
def test_leaving_early_never_hangs(tmp_path: Path, codec: str) -> None:
    """A threaded decoder is at work when it is closed."""
    path = make_video(tmp_path / "h.mkv", codec=codec, frames=60, size=(96, 128))
    for taken in (0, 1, 2, 5) * 5:
        with VideoSource(path) as source:
            for k, _ in enumerate(source):
                if k >= taken:
                    break
    for _ in range(5):
        with (
            pytest.raises(KeyError),
            VideoSource(path) as source,
            prefetch(source, depth=4) as frames,
        ):
            next(frames)
            raise KeyError("mine")


def test_log_levels_are_left_alone() -> None:
    """Setting one, to any level, makes the test above hang."""
    assert av.logging.get_level() is None


# --- damaged ---

STREAMS = {
    "h264-mp4": ("a.mp4", {"options": {"g": "12"}}),
    "h264-ts": ("a.ts", {"options": {"g": "12"}, "format": "mpegts"}),
    "hevc-mkv": ("a.mkv", {"codec": "libx265", "options": {"g": "12"}}),
    "vp9-webm": ("a.webm", {"codec": "libvpx-vp9", "options": {"g": "12", "cpu-used": "8"}}),
    "mpeg2-ts": ("a.ts", {"codec": "mpeg2video", "options": {"g": "12"}, "format": "mpegts"}),
    "mpeg2-ps": ("a.mpg", {"codec": "mpeg2video", "options": {"g": "12"}}),
    "mpeg4-avi": ("a.avi", {"codec": "mpeg4", "options": {"g": "12"}}),
    "mjpeg-avi": ("a.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
    "ffv1-mkv": ("a.mkv", {"codec": "ffv1"}),
}


DAMAGE_IS_TOLD = {"h264-mp4", "h264-ts", "mpeg2-ts", "mpeg2-ps", "mpeg4-avi"}
"""Where FFmpeg marks pictures that it had to patch; it does not in HEVC, VP9 and FFV1."""


def damaged(tmp_path: Path, kind: str, how: Callable[[Path, Path], Path]) -> Path:
    name, options = STREAMS[kind]
    size = (64, 64) if kind.startswith("hevc") else SIZE
    whole = make_video(
        tmp_path / name,
        frames=50,
        size=size,
        picture_of=lambda k: picture(textured(k, size)),
        **options,
    )
    return how(whole, tmp_path / ("damaged-" + name))


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("kind", STREAMS)
def test_flipped_bits_lose_no_more_than_they_hit_and_the_rest_can_be_written(
    tmp_path: Path, kind: str, seed: int
) -> None:
    path = damaged(tmp_path, kind, lambda a, b: flip_bits(a, b, seed=seed, flips=12))
    out = tmp_path / "out.mp4"
    with VideoSource(path) as source, VideoSink(out, source, preset="ultrafast") as sink:
        times = []
        for frame in source:
            times.append(frame.pts * frame.time_base)
            sink.write(frame)
        problems = source.problems
    assert len(times) == problems.decoded >= 15
    assert times == sorted(set(times))
    with VideoSource(out) as copy:
        assert [f.pts * f.time_base for f in copy] == times
    assert problems.decoded + problems.skipped_frames + problems.missing_frames >= 45
    if problems.decoded < 50:
        assert problems.sentences()
    if kind in DAMAGE_IS_TOLD:
        assert problems.corrupt_frames


@pytest.mark.parametrize("kind", [k for k in STREAMS if k != "h264-mp4"])
def test_a_stream_that_breaks_off_gives_what_is_there(tmp_path: Path, kind: str) -> None:
    path = damaged(tmp_path, kind, lambda a, b: cut(a, b, 0.6))
    with VideoSource(path) as source:
        count = len(list(source))
    assert 15 <= count <= 45


def test_damage_is_told_the_same_in_every_pass(tmp_path: Path) -> None:
    """A decoder with a thread a picture tells of this one in about half of the passes."""
    path = damaged(tmp_path, "h264-ts", lambda a, b: cut(a, b, 0.6))
    told = []
    for _ in range(12):
        with VideoSource(path) as source:
            told.append((len(list(source)), source.problems.sentences()))
    assert all(one == told[0] for one in told)
    assert told[0][1]


def test_an_mp4_that_breaks_off_behind_its_index_says_what_is_missing(tmp_path: Path) -> None:
    with av.open(
        str(tmp_path / "w.mp4"), "w", container_options={"movflags": "+faststart"}
    ) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width = SIZE
        stream.pix_fmt = "yuv420p"
        for k in range(50):
            frame = picture(textured(k, SIZE))
            frame.pts, frame.time_base = k, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with VideoSource(cut(tmp_path / "w.mp4", tmp_path / "cut.mp4", 0.4)) as source:
        assert source.frame_count_hint == 50
        count = len(list(source))
        problems = source.problems
    assert 10 < count < 25
    assert problems.truncated
    assert problems.decoded + problems.skipped_frames + problems.missing_frames >= 50
    assert problems.sentences()[0] == "the recording breaks off before its announced end"


def test_pictures_after_a_damaged_one_are_still_given(tmp_path: Path) -> None:
    """HEVC drops them in silence where the decoder is not told to output them."""
    whole = make_video(
        tmp_path / "w.mkv",
        codec="libx265",
        size=(64, 64),
        frames=25,
        picture_of=lambda k: picture(textured(k, (64, 64))),
        options={"x265-params": "log-level=none:keyint=250:bframes=0"},
    )

    def spoil_second(packet: av.Packet, k: int) -> av.Packet | None:
        return None if k == 2 else packet

    with VideoSource(remux(whole, tmp_path / "d.mkv", spoil_second)) as source:
        assert len(list(source)) >= 23
        assert source.problems.missing_frames == 1


@pytest.mark.parametrize("name", ["l.mkv", "l.mp4", "l.flv"])
def test_sound_that_lasts_longer_than_the_video_is_no_damage(tmp_path: Path, name: str) -> None:
    path = make_video(tmp_path / name, frames=50, audio="aac", audio_start_s=8.0)
    with VideoSource(path) as source:
        assert len(list(source)) == 50
        assert not source.problems.truncated


def test_a_matroska_file_that_breaks_off_says_so_though_it_has_sound(tmp_path: Path) -> None:
    whole = busy_video(tmp_path / "w.mkv", frames=200, audio="aac", codec="ffv1")
    with VideoSource(cut(whole, tmp_path / "c.mkv", 0.5)) as source:
        assert 80 < len(list(source)) < 120
        assert source.problems.sentences() == ["the recording breaks off before its announced end"]


# --- sizes ---


@pytest.mark.parametrize("raw", ["h264", "mpegts"])
def test_a_picture_that_changes_size_is_scaled_to_the_first(tmp_path: Path, raw: str) -> None:
    parts = [
        make_video(tmp_path / f"{k}.bin", format=raw, size=size, options={"bf": "0"})
        for k, size in enumerate(((48, 64), (96, 80), (48, 64)))
    ]
    path = tmp_path / "all.bin"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with VideoSource(path) as source:
        frames = list(source)
        assert source.problems.size_changes == 2
        assert source.size == (48, 64)
    assert {frame.size for frame in frames} == {(48, 64)}
    assert [index_of(frame.y) for frame in frames] == list(range(12)) * 3


def test_one_frame_is_a_video(tmp_path: Path) -> None:
    with VideoSource(make_video(tmp_path / "1.mp4", frames=1)) as source:
        assert [frame.pts for frame in source] == [0]
        assert source.problems.sentences() == []


def test_metadata_that_is_no_text_does_no_harm(tmp_path: Path) -> None:
    path = make_video(tmp_path / "m.mkv", codec="ffv1", metadata={"title": "MARKER-MARKER"})
    data = path.read_bytes()
    assert b"MARKER-MARKER" in data
    path.write_bytes(data.replace(b"MARKER-MARKER", b"\xff\xfe\xfdKER-MARKER"))
    with VideoSource(path) as source:
        assert len(list(source)) == 12
