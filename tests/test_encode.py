"""What the written file promises: the frames and times that went in, whole or not at all."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from ccdstream.decode import VideoSource
from ccdstream.encode import Chapter, PcmAudio, StreamInfo, VideoSink
from ccdstream.errors import OutputError
from ccdstream.frames import Colour, Frame
from tests.videos import (
    beep_time,
    flat,
    flip_bits,
    index_of,
    make_video,
    packets_of,
    textured,
    times_of,
)

INFO = StreamInfo(
    size=(48, 64),
    time_base=Fraction(1, 90_000),
    average_rate=Fraction(25),
    colour=Colour("bt709", full_range=False),
)


def frames(
    pts: list[int] | range = range(0, 36_000, 3600), info: StreamInfo = INFO
) -> Iterator[Frame]:
    for k, time in enumerate(pts):
        yield Frame(*flat(k, info.size), time, info.time_base, info.colour)


def transcode(source_path: Path, path: Path, **options: object) -> VideoSink:
    """A plain transcode, sound and all."""
    with (
        VideoSource(source_path) as source,
        source.open_audio() as audio,
        VideoSink(path, source, audio=audio, preset="ultrafast", **options) as sink,
    ):
        for frame in source:
            sink.write(frame)
    return sink


def seconds_of(path: Path) -> list[Fraction]:
    with VideoSource(path) as source:
        return [frame.pts * frame.time_base for frame in source]


# --- times ---


@pytest.mark.parametrize(
    ("time_base", "pts"),
    [
        (Fraction(1, 25), list(range(12))),
        (Fraction(1, 30), [0, 1, 2, 5, 6, 9, 30, 300, 301]),
        (Fraction(1, 1000), [0, 33, 67, 100, 133, 167, 200]),
        (Fraction(1001, 30_000), list(range(30))),
        (Fraction(1, 90_000), [21_021 + 3003 * k for k in range(12)]),
        (Fraction(1, 90_000), [3600 * 90_000 * 5 + 3600 * k for k in range(6)]),
        (Fraction(1, 1_200_000), [48_000 * k for k in range(12)]),
        (Fraction(1, 1_000_000), [0, 40_001, 79_999, 120_003]),
        (Fraction(125, 2997), [1, 2, 3, 5, 8]),
        (Fraction(1, 90_000), [0, 1, 2, 90_000 * 1800]),
        (Fraction(1, 25), [7]),
    ],
    ids=[
        "25-fps",
        "vfr",
        "milliseconds",
        "ntsc",
        "late-start",
        "starts-at-5-h",
        "raw-stream",
        "microseconds",
        "odd-base",
        "half-hour-pause",
        "one-frame",
    ],
)
@pytest.mark.parametrize("preset", ["ultrafast", "veryfast"], ids=["no-b-frames", "b-frames"])
def test_every_frame_keeps_its_exact_time(
    tmp_path: Path, time_base: Fraction, pts: list[int], preset: str
) -> None:
    info = replace(INFO, time_base=time_base)
    path = tmp_path / "t.mp4"
    with VideoSink(path, info, preset=preset) as sink:
        for frame in frames(pts, info):
            sink.write(frame)
    assert sink.frames == len(pts)
    assert sink.notes == []
    assert times_of(path) == [p * time_base for p in pts]
    with VideoSource(path) as source:
        decoded = list(source)
    assert [f.pts * f.time_base for f in decoded] == [p * time_base for p in pts]
    assert [index_of(f.y) for f in decoded] == list(range(len(pts)))


def test_b_frames_are_really_there_by_default(tmp_path: Path) -> None:
    """Or the test above would test half of what it says."""
    path = tmp_path / "b.mp4"
    with VideoSink(path, INFO) as sink:
        for k in range(30):
            sink.write(Frame(*textured(k, INFO.size), 3600 * k, INFO.time_base, INFO.colour))
    stored = [time for time, _ in packets_of(path, "video")]
    assert stored != sorted(stored)
    assert seconds_of(path) == [Fraction(k, 25) for k in range(30)]


@pytest.mark.parametrize("name", ["s.mkv", "s.ts", "s.avi", "s.webm", "s.h264"])
def test_a_plain_transcode_keeps_count_and_times(tmp_path: Path, name: str) -> None:
    codec = {"s.avi": "mpeg4", "s.webm": "libvpx-vp9"}.get(name, "libx264")
    path = make_video(
        tmp_path / name, codec=codec, format={"s.ts": "mpegts", "s.h264": "h264"}.get(name)
    )
    transcode(path, tmp_path / "o.mp4")
    assert seconds_of(tmp_path / "o.mp4") == seconds_of(path)


@pytest.mark.parametrize("preset", ["ultrafast", "veryfast"], ids=["no-b-frames", "b-frames"])
@pytest.mark.parametrize("shown", [1, 7, 250])
def test_the_last_frame_is_shown_as_long_as_the_source_says(
    tmp_path: Path, shown: int, preset: str
) -> None:
    info = replace(INFO, time_base=Fraction(1, 25), last_duration=shown)
    with VideoSink(tmp_path / "l.mp4", info, preset=preset) as sink:
        for frame in frames([0, 1, 2, 3], info):
            sink.write(frame)
    with av.open(str(tmp_path / "l.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.duration * stream.time_base == Fraction(3 + shown, 25)


def test_a_start_before_zero_moves_all_and_says_so(tmp_path: Path) -> None:
    """Players do not show what comes before 0."""
    with VideoSink(tmp_path / "n.mp4", INFO) as sink:
        for frame in frames(range(-7200, 18_000, 3600)):
            sink.write(frame)
    assert seconds_of(tmp_path / "n.mp4") == [Fraction(k, 25) for k in range(7)]
    assert sink.notes == ["the first frame came before time 0: all is 0.080000 s later"]


def test_a_stretch_can_start_at_zero(tmp_path: Path) -> None:
    with VideoSink(tmp_path / "z.mp4", INFO, offset_pts=90_000) as sink:
        for frame in frames(range(90_000, 126_000, 3600)):
            sink.write(frame)
    assert seconds_of(tmp_path / "z.mp4") == [Fraction(k, 25) for k in range(10)]
    assert sink.notes == []


def test_times_finer_than_mp4_holds_are_rounded_and_it_is_said(tmp_path: Path) -> None:
    info = replace(INFO, time_base=Fraction(1, 10**9))
    pts = [0, 33_333_333, 66_666_667, 10**9 * 60]
    with VideoSink(tmp_path / "f.mp4", info) as sink:
        for frame in frames(pts, info):
            sink.write(frame)
    assert [float(t) for t in seconds_of(tmp_path / "f.mp4")] == pytest.approx(
        [p / 1e9 for p in pts], abs=1e-7
    )
    assert sink.notes == ["times are rounded to 0.1 microseconds, the finest that is written"]


def test_a_frame_that_is_not_after_the_one_before_is_a_mistake(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="pts 0 is not after that of the frame before"),
        VideoSink(tmp_path / "m.mp4", INFO) as sink,
    ):
        for frame in frames([0, 0]):
            sink.write(frame)
    assert os.listdir(tmp_path) == []


# --- pictures ---


def test_pictures_come_back_nearly_as_they_were(tmp_path: Path) -> None:
    """Within 2 levels in the mean, at the default quality."""
    size = (240, 320)
    info = replace(INFO, size=size)
    ramp = np.add.outer(np.arange(240), np.arange(320)) * 0.35
    planes = [
        tuple(
            np.clip(plane + 2 * k, 16, 235).astype(np.uint8)
            for plane in (ramp + 16, ramp[::2, ::2] + 30, 220 - ramp[::2, ::2])
        )
        for k in range(12)
    ]
    with VideoSink(tmp_path / "p.mp4", info) as sink:
        for k, (y, u, v) in enumerate(planes):
            sink.write(Frame(y, u, v, 3600 * k, info.time_base, info.colour))
    with VideoSource(tmp_path / "p.mp4") as source:
        for frame, before in zip(source, planes, strict=True):
            for got, expected in zip((frame.y, frame.u, frame.v), before, strict=True):
                assert np.abs(got.astype(int) - expected).mean() < 2


def test_planes_may_be_changed_once_they_are_written(tmp_path: Path) -> None:
    with VideoSink(tmp_path / "c.mp4", INFO) as sink:
        for frame in frames():
            sink.write(frame)
            frame.y[:] = 16
    with VideoSource(tmp_path / "c.mp4") as source:
        assert [index_of(frame.y) for frame in source] == list(range(10))


@pytest.mark.parametrize("size", [(33, 35), (33, 36), (34, 35), (17, 101)], ids=str)
def test_an_odd_size_is_made_even_by_repeating_the_last_row_and_column(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    info = replace(INFO, size=size)
    height, width = size
    y = np.full(size, 60, np.uint8)
    y[-1, :] = 200
    y[:, -1] = 200
    grey = flat(0, size)[1]
    with VideoSink(tmp_path / "o.mp4", info, crf=1) as sink:
        sink.write(Frame(y, grey, grey, 0, info.time_base, info.colour))
    with VideoSource(tmp_path / "o.mp4") as source:
        frame = next(iter(source))
    assert frame.size == (height + height % 2, width + width % 2)
    np.testing.assert_allclose(frame.y[:height, :width].astype(int), y, atol=12)
    np.testing.assert_allclose(frame.y[height:, :].astype(int), 200, atol=12)
    np.testing.assert_allclose(frame.y[:, width:].astype(int), 200, atol=12)


def test_a_frame_of_another_size_is_a_mistake(tmp_path: Path) -> None:
    wrong = replace(INFO, size=(64, 48))
    with (
        pytest.raises(ValueError, match=r"frames must be \(48, 64\), got \(64, 48\)"),
        VideoSink(tmp_path / "s.mp4", INFO) as sink,
    ):
        sink.write(next(frames(info=wrong)))
    assert os.listdir(tmp_path) == []


# --- what players read ---


def boxes_of(path: Path) -> list[str]:
    """Names of the outermost boxes of an MP4, in order (ISO/IEC 14496-12, 4.2)."""
    data, names, at = path.read_bytes(), [], 0
    while at < len(data):
        names.append(data[at + 4 : at + 8].decode())
        at += int.from_bytes(data[at : at + 4], "big") or len(data)
    return names


def test_is_h264_yuv420p_in_mp4_with_the_index_in_front(tmp_path: Path) -> None:
    path = tmp_path / "any-name.overlay"
    with VideoSink(path, INFO) as sink:
        for frame in frames():
            sink.write(frame)
    boxes = boxes_of(path)
    assert boxes[0] == "ftyp" and boxes.index("moov") < boxes.index("mdat")
    with av.open(str(path)) as container:
        (stream,) = container.streams
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.codec_context.profile == "High"
        assert stream.frames == 10


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize(
    ("matrix", "tags", "written"),
    [
        ("bt709", (1, 1, 1), (1, 1, 1)),
        ("bt601", (5, 6, 5), (5, 6, 5)),
        ("bt601", (6, 6, 6), (6, 6, 6)),
        ("bt2020", (9, 14, 9), (9, 14, 9)),
        ("bt601", (2, 2, 2), (2, 2, 6)),
        ("bt709", (2, 2, 2), (2, 2, 1)),
        ("bt601", (4, 4, 4), (4, 4, 6)),
        ("bt709", (1, 13, 0), (1, 13, 1)),
    ],
    ids=["709", "625", "525", "2020", "untagged-sd", "untagged-hd", "fcc", "rgb"],
)
def test_colour_is_tagged_as_the_source_is_or_as_it_was_taken(
    tmp_path: Path,
    matrix: str,
    tags: tuple[int, int, int],
    written: tuple[int, int, int],
    full: bool,
) -> None:
    info = replace(INFO, colour=Colour(matrix, full, assumed=tags[2] == 2), colour_tags=tags)
    path = tmp_path / "c.mp4"
    with VideoSink(path, info) as sink:
        for frame in frames(info=info):
            sink.write(frame)
    with VideoSource(path) as source:
        assert source.colour == Colour(matrix, full)
        assert source.colour_tags == written


@pytest.mark.parametrize("ratio", [Fraction(1), Fraction(16, 11), Fraction(8, 9)], ids=str)
def test_pixels_keep_their_shape(tmp_path: Path, ratio: Fraction) -> None:
    path = tmp_path / "r.mp4"
    with VideoSink(path, replace(INFO, sample_aspect_ratio=ratio)) as sink:
        for frame in frames():
            sink.write(frame)
    with VideoSource(path) as source:
        assert source.sample_aspect_ratio == ratio


def test_metadata_is_not_copied(tmp_path: Path) -> None:
    """A recording can carry the name of a patient."""
    source = make_video(
        tmp_path / "s.mp4", metadata={"title": "DOE JANE 1950", "comment": "DOE"}, audio="aac"
    )
    transcode(source, tmp_path / "o.mp4")
    assert b"DOE" in source.read_bytes()
    assert b"DOE" not in (tmp_path / "o.mp4").read_bytes()


def test_the_same_frames_give_the_same_bytes_whatever_was_in_memory(tmp_path: Path) -> None:
    height, width = 480, 720  # large enough for x264 to leave memory as it finds it
    noise = np.random.default_rng(0).integers(0, 256, (height + 40, width + 40)).astype(np.uint8)
    scene = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 4), None, 20, 230, cv2.NORM_MINMAX)
    info = replace(INFO, size=(height, width))
    written = set()
    for k in range(12):
        dirt = [np.full(1_000_000, 255, np.uint8) for _ in range(60)]
        del dirt
        path = tmp_path / f"{k}.mp4"
        with VideoSink(path, info, threads=1) as sink:
            for n in range(4):  # a pan
                y = scene[5 * n : 5 * n + height, 7 * n : 7 * n + width]
                u = y[::2, ::2]
                sink.write(Frame(y, u, 255 - u, 3600 * n, info.time_base, info.colour))
        written.add(path.read_bytes())
    assert len(written) == 1


# --- sound ---

COPIED = {
    "aac-mp4": ("s.mp4", {"audio": "aac"}),
    "aac-ts": ("s.ts", {"audio": "aac", "format": "mpegts"}),
    "aac-mkv": ("s.mkv", {"audio": "aac"}),
    "mp3-mkv": ("s.mkv", {"audio": "libmp3lame", "audio_rate": 44_100}),
    "opus-mkv": ("s.mkv", {"audio": "libopus"}),
    "flac-mkv": ("s.mkv", {"audio": "flac"}),
    "ac3-ts": ("s.ts", {"audio": "ac3", "format": "mpegts"}),
    "mp2-ps": ("s.mpg", {"audio": "mp2", "codec": "mpeg2video"}),
    "alac-mov": ("s.mov", {"audio": "alac"}),
}
ENCODED = {
    "pcm-avi": ("s.avi", {"audio": "pcm_s16le", "codec": "mpeg4"}),
    "pcm24-mkv": ("s.mkv", {"audio": "pcm_s24le"}),
    "pcm-mov": ("s.mov", {"audio": "pcm_s16be"}),
    "alaw-mov": ("s.mov", {"audio": "pcm_alaw", "audio_rate": 8000}),
}


@pytest.mark.parametrize("kind", COPIED)
def test_sound_that_mp4_holds_is_copied_and_in_time(tmp_path: Path, kind: str) -> None:
    name, options = COPIED[kind]
    source = make_video(tmp_path / name, frames=50, **options)
    sink = transcode(source, tmp_path / "o.mp4")
    assert sink.notes == []
    before, after = packets_of(source, "audio"), packets_of(tmp_path / "o.mp4", "audio")
    header = 7 if kind == "aac-ts" else 0  # MP4 keeps it once, in front
    assert [data for _, data in after] == [data[header:] for _, data in before]
    assert float(after[0][0] - before[0][0]) == pytest.approx(0, abs=1e-3)
    assert beep_time(tmp_path / "o.mp4") == pytest.approx(beep_time(source), abs=2e-3)
    assert seconds_of(tmp_path / "o.mp4") == seconds_of(source)


@pytest.mark.parametrize("kind", ENCODED)
def test_sound_that_mp4_lacks_becomes_aac_in_time_and_it_is_said(tmp_path: Path, kind: str) -> None:
    name, options = ENCODED[kind]
    source = make_video(tmp_path / name, frames=50, **options)
    sink = transcode(source, tmp_path / "o.mp4")
    assert sink.notes == [f"the sound was {options['audio']}, which MP4 players lack: now AAC"]
    with av.open(str(tmp_path / "o.mp4")) as container:
        assert container.streams.audio[0].codec_context.name == "aac"
    assert beep_time(tmp_path / "o.mp4") == pytest.approx(beep_time(source), abs=3e-3)


@pytest.mark.parametrize("audio", ["aac", "pcm_s16le"], ids=["copied", "encoded"])
@pytest.mark.parametrize("late_s", [0.5, 1.25])
def test_sound_that_starts_later_than_the_video_still_does(
    tmp_path: Path, audio: str, late_s: float
) -> None:
    source = make_video(tmp_path / "s.mkv", frames=50, audio=audio, audio_start_s=late_s)
    transcode(source, tmp_path / "o.mp4")
    assert beep_time(source) == pytest.approx(late_s + 0.2, abs=2e-3)
    assert beep_time(tmp_path / "o.mp4") == pytest.approx(late_s + 0.2, abs=3e-3)


@pytest.mark.parametrize("audio", ["aac", "pcm_s16le"], ids=["copied", "encoded"])
def test_sound_of_a_stretch_stays_with_its_pictures(tmp_path: Path, audio: str) -> None:
    """A beep at 1.5 s of the recording is heard 0.5 s into a stretch from 1 s on."""
    path = make_video(tmp_path / "s.mkv", frames=100, audio=audio, beep_s=1.5)
    out = tmp_path / "o.mp4"
    with (
        VideoSource(path, start_s=1.0, end_s=3.0) as source,
        source.open_audio() as sound,
        VideoSink(out, source, audio=sound, offset_pts=source.first_pts) as sink,
    ):
        for frame in source:
            sink.write(frame)
    assert seconds_of(out) == [Fraction(k, 25) for k in range(50)]
    assert beep_time(out) == pytest.approx(0.5, abs=3e-3)
    with av.open(str(out)) as container:
        stream = container.streams.audio[0]
        assert float(stream.duration * stream.time_base) == pytest.approx(2.0, abs=0.06)


def test_damaged_sound_is_left_out_and_the_video_is_whole(tmp_path: Path) -> None:
    whole = make_video(
        tmp_path / "s.ts",
        format="mpegts",
        frames=50,
        audio="aac",
    )
    notes = []
    for seed in range(6):
        damaged = flip_bits(whole, tmp_path / "d.ts", seed=seed, flips=60)
        notes += transcode(damaged, tmp_path / "o.mp4", overwrite=True).notes
        assert seconds_of(tmp_path / "o.mp4") == seconds_of(damaged)
    assert any(note.startswith("damaged packets of the sound were left out") for note in notes)


def test_sound_is_never_read_far_ahead_of_the_video(tmp_path: Path) -> None:
    """Or that of hours would wait in memory."""
    path = make_video(tmp_path / "s.mkv", frames=400, audio="aac")
    ahead = []
    with VideoSource(path) as source, source.open_audio() as sound:

        class Watched:
            stream = sound.stream
            read_s = 0.0

            def __iter__(self):  # type: ignore[no-untyped-def]
                for packet in sound:
                    Watched.read_s = float(packet.pts * packet.time_base)
                    yield packet

        with VideoSink(tmp_path / "o.mp4", source, audio=Watched()) as sink:
            for frame in source:
                sink.write(frame)
                ahead.append(Watched.read_s - frame.seconds)
    assert max(ahead) < 0.1
    assert Watched.read_s > 15


def test_a_gap_in_sound_that_is_encoded_anew_becomes_silence(tmp_path: Path) -> None:
    """Players play one packet after the other: all that follows would come too early."""
    path = make_video(tmp_path / "s.mkv", frames=75, audio="pcm_s16le", beep_s=2.0)
    with VideoSource(path) as source, source.open_audio() as sound:

        class Broken:
            stream = sound.stream

            def __iter__(self):  # type: ignore[no-untyped-def]
                return (p for p in sound if not 0.5 < p.pts * p.time_base < 1.5)

        with VideoSink(tmp_path / "o.mp4", source, audio=Broken()) as sink:
            for frame in source:
                sink.write(frame)
    assert beep_time(tmp_path / "o.mp4") == pytest.approx(2.0, abs=3e-3)
    times = [time for time, _ in packets_of(tmp_path / "o.mp4", "audio")]
    assert {b - a for a, b in pairwise(times)} == {Fraction(1024, 48_000)}


def test_sound_can_be_given_as_samples(tmp_path: Path) -> None:
    t = np.arange(48_000) / 48_000
    wave = np.where((t >= 0.3) & (t < 0.4), 20_000 * np.sin(6283 * t), 0).astype(np.int16)
    blocks = [wave[:1000], wave[1000:1001], wave[1001:]]
    with VideoSink(tmp_path / "p.mp4", INFO, audio=PcmAudio(48_000, blocks)) as sink:
        for frame in frames(range(0, 90_000, 3600)):
            sink.write(frame)
    assert sink.notes == []
    assert beep_time(tmp_path / "p.mp4") == pytest.approx(0.3, abs=2e-3)
    with av.open(str(tmp_path / "p.mp4")) as container:
        stream = container.streams.audio[0]
        assert float(stream.duration * stream.time_base) == pytest.approx(1.0, abs=0.03)


# --- chapters ---


def chapters_of(path: Path) -> list[tuple[float, float, str]]:
    with av.open(str(path)) as container:
        return [
            (
                float(c["start"] * c["time_base"]),
                float(c["end"] * c["time_base"]),
                c["metadata"]["title"],
            )
            for c in container.chapters()
        ]


def test_chapters_are_where_they_were_put_with_something_in_between(tmp_path: Path) -> None:
    with VideoSink(tmp_path / "c.mp4", INFO) as sink:
        for frame in frames(range(0, 180_000, 3600)):
            sink.write(frame)
        sink.chapters(
            [Chapter(1.0, 1.5, "alert 2: ä"), Chapter(0.2, 0.6, "alert 1")], between="no alert"
        )
    assert chapters_of(tmp_path / "c.mp4") == [
        (0.0, 0.2, "no alert"),
        (0.2, 0.6, "alert 1"),
        (0.6, 1.0, "no alert"),
        (1.0, 1.5, "alert 2: ä"),
        (1.5, 2.0, "no alert"),
    ]
    assert seconds_of(tmp_path / "c.mp4") == [Fraction(k, 25) for k in range(50)]


def test_chapters_that_touch_overlap_or_fill_the_video_are_whole(tmp_path: Path) -> None:
    with VideoSink(tmp_path / "c.mp4", INFO) as sink:
        for frame in frames(range(0, 180_000, 3600)):
            sink.write(frame)
        sink.chapters([Chapter(0, 1, "a"), Chapter(1, 1.8, "b"), Chapter(1.5, 2, "c")])
    assert chapters_of(tmp_path / "c.mp4") == [(0, 1, "a"), (1, 1.5, "b"), (1.5, 2, "c")]


def test_frames_nearer_than_the_finest_time_are_all_there_in_order(tmp_path: Path) -> None:
    """As where a recording counts nanoseconds, and two frames had the same time."""
    info = replace(INFO, time_base=Fraction(1, 10**9))
    with VideoSink(tmp_path / "n.mp4", info) as sink:
        for frame in frames([0, 1, 2, 40_000_000, 80_000_000, 80_000_001], info):
            sink.write(frame)
    tick = Fraction(1, 10**7)
    assert seconds_of(tmp_path / "n.mp4") == [
        *(0, tick, 2 * tick, Fraction(1, 25), Fraction(2, 25), Fraction(2, 25) + tick),
    ]
    with pytest.raises(ValueError, match="not after"), VideoSink(tmp_path / "x.mp4", info) as sink:
        for frame in frames([5, 5], info):
            sink.write(frame)


@pytest.mark.parametrize("at", [0.0, 0.52, 1.96])
def test_a_chapter_of_a_single_moment_is_not_lost(tmp_path: Path, at: float) -> None:
    with VideoSink(tmp_path / "c.mp4", INFO) as sink:
        for frame in frames(range(0, 180_000, 3600)):
            sink.write(frame)
        sink.chapters([Chapter(at, at, "alert 1")])
    before = [(0.0, at, "No alert")] if at else []
    assert chapters_of(tmp_path / "c.mp4") == [
        *before,
        (at, pytest.approx(at + 0.001), "alert 1"),
        (pytest.approx(at + 0.001), 2.0, "No alert"),
    ]


def test_two_chapters_of_one_moment_are_both_there(tmp_path: Path) -> None:
    with VideoSink(tmp_path / "c.mp4", INFO) as sink:
        for frame in frames(range(0, 180_000, 3600)):
            sink.write(frame)
        sink.chapters([Chapter(1.0, 1.0, "a"), Chapter(1.0, 1.0, "b")])
    assert [title for *_, title in chapters_of(tmp_path / "c.mp4")] == [
        "No alert",
        "a",
        "b",
        "No alert",
    ]


def test_chapters_of_a_stretch_move_with_it(tmp_path: Path) -> None:
    with VideoSink(tmp_path / "c.mp4", INFO, offset_pts=900_000) as sink:
        for frame in frames(range(900_000, 1_080_000, 3600)):
            sink.write(frame)
        sink.chapters([Chapter(10.5, 11.0, "a")])
    assert chapters_of(tmp_path / "c.mp4") == [
        (0, 0.5, "No alert"),
        (0.5, 1, "a"),
        (1, 2, "No alert"),
    ]


def test_no_chapters_leave_no_track(tmp_path: Path) -> None:
    with VideoSink(tmp_path / "c.mp4", INFO) as sink:
        for frame in frames():
            sink.write(frame)
        sink.chapters([])
    assert chapters_of(tmp_path / "c.mp4") == []
    with av.open(str(tmp_path / "c.mp4")) as container:
        assert len(container.streams) == 1


# --- whole, or not at all ---


def test_the_file_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    with VideoSink(tmp_path / "w.mp4", INFO) as sink:
        for frame in frames():
            sink.write(frame)
            assert os.listdir(tmp_path) == ["w.mp4.part"]
    assert os.listdir(tmp_path) == ["w.mp4"]


@pytest.mark.parametrize("written", [0, 1, 200])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_no_trace(tmp_path: Path, error: type[BaseException], written: int) -> None:
    with pytest.raises(error), VideoSink(tmp_path / "e.mp4", INFO) as sink:
        for frame in frames(range(0, 3600 * written, 3600)):
            sink.write(frame)
        raise error
    assert os.listdir(tmp_path) == []


def test_an_error_leaves_the_file_that_was_to_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "o.mp4").write_bytes(b"precious")
    with (
        pytest.raises(RuntimeError),
        VideoSink(tmp_path / "o.mp4", INFO, overwrite=True) as sink,
    ):
        for frame in frames():
            sink.write(frame)
        raise RuntimeError
    assert (tmp_path / "o.mp4").read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["o.mp4"]


def test_an_existing_file_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    path = tmp_path / "o.mp4"
    path.write_bytes(b"precious")
    with (
        pytest.raises(
            OutputError, match=r"o\.mp4 is there already\. Choose another place, or overwrite\.$"
        ),
        VideoSink(path, INFO),
    ):
        pytest.fail("was opened")
    assert path.read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["o.mp4"]


def test_an_existing_file_is_replaced_where_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "o.mp4"
    path.write_bytes(b"old")
    with VideoSink(path, INFO, overwrite=True) as sink:
        for frame in frames():
            sink.write(frame)
            assert path.read_bytes() == b"old"
    assert len(seconds_of(path)) == 10


def output_error(path: Path, **options: object) -> str:
    """The message with which writing to `path` fails: one line, and no trace."""
    with pytest.raises(OutputError) as caught, VideoSink(path, INFO, **options) as sink:
        for frame in frames():
            sink.write(frame)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_no_frames_are_no_video(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"not one frame was given"),
        VideoSink(tmp_path / "n.mp4", INFO),
    ):
        pass
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert output_error(tmp_path / "no" / "o.mp4") == (
        f"cannot write {tmp_path}/no/o.mp4: No such file or directory. "
        "Check that the folder exists and may be written."
    )


def test_a_folder_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "o.mp4").mkdir()
    assert "o.mp4: Is a directory" in output_error(tmp_path / "o.mp4", overwrite=True)
    assert os.listdir(tmp_path) == ["o.mp4"]


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    if os.geteuid() == 0:  # root may write everywhere but to where nobody can
        message = output_error(Path("/proc/o.mp4"))
    else:
        (tmp_path / "locked").mkdir(mode=0o500)
        message = output_error(tmp_path / "locked" / "o.mp4")
    assert message.startswith("cannot write ") and message.endswith("may be written.")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: a full disk, without filling one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("share", [0, 0.01, 0.4, 0.995])
def test_a_full_disk_is_an_error_with_advice_and_leaves_no_trace(
    tmp_path: Path, share: float
) -> None:
    """At the start, on the way, and at the end, where the index is moved to the front."""
    path = tmp_path / "f.mp4"

    def write() -> None:
        with VideoSink(path, INFO, crf=1, preset="ultrafast") as sink:
            for k in range(50):
                planes = textured(k, INFO.size)
                sink.write(Frame(*planes, 3600 * k, INFO.time_base, INFO.colour))

    write()
    size = path.stat().st_size
    path.unlink()
    with largest_file(int(share * size)), pytest.raises(OutputError) as caught:
        write()
    assert str(caught.value) == (
        f"cannot write {path}: {os.strerror(errno.EFBIG)}. "
        "Free some space, or write to another disk."
    )
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "name",
    ["-o.mp4", "a b.mp4", "two\nlines.mp4", "a%03d.mp4", "pro:to.mp4", os.fsdecode(b"\xff.mp4")],
)
def test_a_name_is_only_a_name(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with VideoSink(Path(name), INFO) as sink:
        for frame in frames():
            sink.write(frame)
    assert os.listdir(tmp_path) == [name]
    assert len(seconds_of(Path(name))) == 10
    with pytest.raises(OutputError) as caught, VideoSink(Path(name), INFO):
        pass
    assert str(caught.value).isprintable()


def test_a_name_of_the_full_length_can_be_written(tmp_path: Path) -> None:
    """`.part` behind it would be too long."""
    path = tmp_path / ("x" * 251 + ".mp4")
    with VideoSink(path, INFO) as sink:
        for frame in frames():
            sink.write(frame)
            assert len(os.listdir(tmp_path)) == 1
    assert os.listdir(tmp_path) == [path.name]


def test_a_name_too_long_for_any_disk_is_an_error(tmp_path: Path) -> None:
    assert "File name too long" in output_error(tmp_path / ("x" * 300 + ".mp4"))


def test_sound_in_disorder_does_not_stop_the_video(tmp_path: Path) -> None:
    """MP4 refuses packets that are not after the one before."""
    path = make_video(tmp_path / "s.mkv", frames=50, audio="flac")
    with VideoSource(path) as source, source.open_audio() as sound:

        class Disordered:
            stream = sound.stream

            def __iter__(self):  # type: ignore[no-untyped-def]
                for k, packet in enumerate(sound):
                    if k == 5:
                        packet.pts = packet.dts = 0
                    yield packet

        with VideoSink(tmp_path / "o.mp4", source, audio=Disordered()) as sink:
            for frame in source:
                sink.write(frame)
    assert seconds_of(tmp_path / "o.mp4") == seconds_of(path)
    assert len(packets_of(tmp_path / "o.mp4", "audio")) == len(packets_of(path, "audio")) - 1
