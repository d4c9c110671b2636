"""Damaged, strange and hostile input: a clear line, or what can be had and a count of what cannot.

Every error is one line, and nothing hangs: leaving a decoder early is tested here too.
"""

import errno
import os
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import pytest

from ccdstream import decode
from ccdstream.decode import AudioSource, VideoSource
from ccdstream.encode import VideoSink
from ccdstream.errors import CcdstreamError, VideoDecodeError, VideoOpenError, show_path
from ccdstream.prefetch import prefetch
from tests.videos import (
    cut,
    flip_bits,
    index_of,
    make_video,
    picture,
    remux,
    textured,
)

SIZE = (48, 64)


def busy_video(path: Path, frames: int = 50, **options: object) -> Path:
    """With something in every packet, so that damage hits something."""
    return make_video(
        path, frames=frames, picture_of=lambda k: picture(textured(k, SIZE)), **options
    )


def refused(path: Path, kind: type[CcdstreamError] = VideoOpenError, **span: float) -> str:
    """The message with which `path` is refused: one line that names the file."""
    with pytest.raises(kind) as caught:
        VideoSource(path, **span)
    message = str(caught.value)
    assert "\n" not in message
    assert show_path(path) in message
    return message


# --- no recording at all ---


def test_a_missing_file_is_named_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "gone.mp4"
    assert refused(path) == (
        f"cannot open {path}: No such file or directory. "
        "Check that the path exists and may be read."
    )


def test_a_folder_is_no_recording(tmp_path: Path) -> None:
    assert refused(tmp_path) == f"{tmp_path} is a folder. Pass the recordings in it, as files."


def test_an_empty_file_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    path = tmp_path / "e.mp4"
    path.touch()
    assert refused(path) == f"{path} is empty (0 bytes). Copy the recording again."


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.mp4")
    assert "is not a regular file" in refused(tmp_path / "p.mp4")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_says_so(tmp_path: Path) -> None:
    path = make_video(tmp_path / "locked.mp4")
    path.chmod(0)
    assert "Permission denied" in refused(path)


def test_an_unreadable_file_says_so_even_to_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(decode, "_OneFile", denied)
    path = make_video(tmp_path / "locked.mp4")
    assert refused(path) == (
        f"cannot open {path}: Permission denied. Check that the path exists and may be read."
    )


NOT_VIDEO: dict[str, bytes] = {
    "text": b"The quick brown fox jumps over the lazy dog.\n" * 200,
    "terminal-text": b"\x1b[31mred\x1b[0m\r\n" * 300,
    "zeros": bytes(5000),
    "noise": bytes((k * k * 31 + k) % 251 for k in range(20_000)),
    "one-byte": b"\0",
    "subtitles": b"1\n00:00:01,000 --> 00:00:02,000\nhello\n\n" * 9,
    "xml": b'<?xml version="1.0"?><MPD></MPD>',
}


@pytest.mark.parametrize("kind", NOT_VIDEO)
@pytest.mark.parametrize("name", ["x.mp4", "x.txt", "x.yuv"])
def test_what_is_no_video_is_refused_whatever_its_name(
    tmp_path: Path, kind: str, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(NOT_VIDEO[kind])
    message = refused(path)
    assert "cannot read" in message or "has no video stream" in message


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    source = make_video(tmp_path / "both.mp4", audio="aac")
    with av.open(str(source)) as read, av.open(str(tmp_path / "a.mp4"), "w") as write:
        stream = write.add_stream_from_template(read.streams.audio[0], opaque=True)
        for packet in read.demux(audio=0):
            if packet.size:
                packet.stream = stream
                write.mux(packet)
    assert refused(tmp_path / "a.mp4").endswith(
        "a.mp4 has no video stream. Pass the recording itself, not its sound."
    )


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_an_mp4_without_its_index_says_what_happened(tmp_path: Path, share: float) -> None:
    whole = busy_video(tmp_path / "whole.mp4")
    assert "it is missing or not whole. The recording was cut off" in refused(
        cut(whole, tmp_path / "cut.mp4", share)
    )


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


# --- names ---

NAMES = {
    "blank": "a b.mp4",
    "blank-in-front": " a.mp4",
    "unicode": "Kolon 大腸 é.mp4",
    "dash": "-x.mp4",
    "newline": "two\nlines.mp4",
    "pattern": "a%03d.mp4",
    "protocol": "proto:name.mp4",
    "file-protocol": "file:name.mp4",
    "concat-protocol": "concat:a.mp4|b.mp4",
    "markup": "[bold]x.mp4",
    "not-utf8": os.fsdecode(b"\xff\xfe.mp4"),
    "longest": "x" * 251 + ".mp4",
    "no-suffix": "recording",
    "wrong-suffix": "recording.jpg",
}


@pytest.mark.parametrize("kind", NAMES)
def test_a_name_is_only_a_name(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it stands alone, without a folder in front."""
    data = make_video(tmp_path / "plain.mp4", audio="aac").read_bytes()
    path = tmp_path / NAMES[kind]
    path.write_bytes(data)
    monkeypatch.chdir(tmp_path)
    for named in (path, Path(NAMES[kind])):
        with VideoSource(named) as source, source.open_audio() as audio:
            assert [index_of(frame.y) for frame in source] == list(range(12))
            assert len(list(audio)) > 10


@pytest.mark.parametrize("name", ["two\nlines", " blank ", "\x1b[31m", os.fsdecode(b"\xff")])
def test_a_message_is_one_line_whatever_the_name(tmp_path: Path, name: str) -> None:
    message = refused(tmp_path / (name + ".mp4"))
    assert message.isprintable()


def test_plain_names_are_shown_as_they_are() -> None:
    assert show_path(Path("Kolon 大腸/a b.mp4")) == "Kolon 大腸/a b.mp4"
    assert show_path("a\nb") == "'a\\nb'"
    assert show_path("") == "''"


def test_a_name_with_a_null_byte_is_refused_and_not_a_crash() -> None:
    with pytest.raises(VideoOpenError, match="null byte"):
        VideoSource(Path("a\0b.mp4"))


# --- hostile ---


def hls(folder: Path) -> bytes:
    return b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.48,\nsecret.ts\n#EXT-X-ENDLIST\n"


def hls_absolute(folder: Path) -> bytes:
    url = f"file://{folder}/secret.ts"
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n".encode()


def concat(folder: Path) -> bytes:
    return b"ffconcat version 1.0\nfile secret.ts\n"


def sdp(folder: Path) -> bytes:
    return (
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        b"m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
    )


@pytest.mark.parametrize("locks", ["both", "protocols-alone", "formats-alone"])
@pytest.mark.parametrize("script", [hls, hls_absolute, concat, sdp])
@pytest.mark.parametrize("name", ["x.mp4", "x.m3u8"])
def test_a_script_that_poses_as_a_video_opens_nothing_else(
    tmp_path: Path,
    name: str,
    script: Callable[[Path], bytes],
    locks: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two locks, each tried: formats that refer are refused, and FFmpeg may open no other file."""
    make_video(tmp_path / "secret.ts", format="mpegts")
    path = tmp_path / name
    path.write_bytes(script(tmp_path))
    if (script, name) in ((concat, "x.mp4"), (hls, "x.m3u8")):
        with av.open(str(path)) as followed:
            assert followed.streams.video, "FFmpeg would not follow it: this test tests nothing"
    if locks == "protocols-alone":
        monkeypatch.setattr(decode, "_FORMATS", (*decode._FORMATS, "hls", "concat", "sdp"))
    if locks == "formats-alone":
        monkeypatch.setattr(decode, "_PROTOCOLS", "file,crypto,udp,rtp")
    monkeypatch.chdir(tmp_path)
    assert refused(path) == (
        f"{path} names other files instead of holding a recording. Pass the recording itself."
    )
    with pytest.raises(VideoOpenError):
        AudioSource(path)


def test_a_picture_too_large_to_hold_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_video(tmp_path / "l.mp4")
    monkeypatch.setattr(decode, "MAX_PIXELS", 48 * 64 - 1)
    refused(path, VideoDecodeError)
    monkeypatch.setattr(decode, "MAX_PIXELS", 48 * 64)
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
    assert problems.sentences()[-1] == "the recording breaks off before its announced end"


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


def test_gaps_in_an_even_clock_are_counted(tmp_path: Path) -> None:
    whole = make_video(tmp_path / "w.mkv", codec="ffv1", frames=60)
    lost = {20, 21, 22, 40}
    path = remux(whole, tmp_path / "g.mkv", lambda p, k: None if k in lost else p)
    with VideoSource(path) as source:
        assert len(list(source)) == 56
        assert source.problems.sentences() == [
            "4 frames are missing, by the gaps in clock or index"
        ]


def test_a_clock_that_is_uneven_by_nature_has_no_gaps(tmp_path: Path) -> None:
    pts = [k + 3 * (k % 3 == 0) + 40 * (k // 7) for k in range(40)]
    path = make_video(tmp_path / "v.mkv", codec="ffv1", pts=sorted(set(pts)))
    with VideoSource(path) as source:
        list(source)
        assert source.problems.sentences() == []


def test_a_spot_that_cannot_be_demuxed_is_passed_over(tmp_path: Path) -> None:
    """YUV4MPEG has nothing to find the next picture by: only a seek gets behind the spot."""
    whole = make_video(tmp_path / "w.y4m", codec="rawvideo", format="yuv4mpegpipe", frames=100)
    data = bytearray(whole.read_bytes())
    begin, end = len(data) * 30 // 100, len(data) * 32 // 100
    data[begin:end] = bytes(end - begin)
    (tmp_path / "z.y4m").write_bytes(data)
    with VideoSource(tmp_path / "z.y4m") as source:
        frames = list(source)
        problems = source.problems
    assert [index_of(frame.y) for frame in frames] == [frame.pts % 32 for frame in frames]
    assert frames[-1].pts == 99
    assert len(frames) + problems.missing_frames == 100
    assert problems.demux_errors == 1 and not problems.truncated


def test_empty_packets_are_passed_over(tmp_path: Path) -> None:
    """To a decoder an empty packet means the end."""

    def empty_fifth(packet: av.Packet, k: int) -> av.Packet:
        if k != 5:
            return packet
        empty = av.Packet(b"")
        empty.pts, empty.dts, empty.time_base = packet.pts, packet.dts, packet.time_base
        return empty

    whole = make_video(tmp_path / "w.nut", codec="ffv1")
    with VideoSource(remux(whole, tmp_path / "e.nut", empty_fifth)) as source:
        assert [index_of(frame.y) for frame in source] == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
        assert source.problems.sentences() == ["1 frame is missing, by the gaps in clock or index"]


def test_a_stream_that_appears_late_does_not_end_in_a_crash(tmp_path: Path) -> None:
    """Up to PyAV 18 an IndexError ends such a file: here the sound changes its codec."""
    parts = [
        make_video(tmp_path / f"{k}.flv", frames=50, audio=audio, audio_rate=44_100).read_bytes()
        for k, audio in enumerate(("aac", "libmp3lame"))
    ]
    path = tmp_path / "both.flv"
    path.write_bytes(parts[0] + parts[1][13:])  # without the second header
    with VideoSource(path) as source, source.open_audio() as audio:
        assert len(list(source)) == 100
        assert source.problems.clock_jumps == 1
        assert len(list(audio)) > 80


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


class _FailingDisk(decode._OneFile):
    """Cannot read the bytes between 40 % and 45 % of the file."""

    def read(self, count: int) -> bytes:
        size, at = os.fstat(self._file.fileno()).st_size, self._file.tell()
        if at < 0.45 * size and at + count > 0.4 * size:
            self.error = OSError(errno.EIO, os.strerror(errno.EIO))
            return b""
        return super().read(count)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("d.mkv", "libx264", {"g": "10"}),
        ("d.mp4", "libx264", {"g": "10"}),
        ("d.mkv", "libx264", {"x264-params": "open-gop=1:keyint=12:bframes=3:b-adapt=0"}),
    ],
    ids=["mkv", "mp4", "open-gop"],
)
def test_what_lies_behind_a_bad_spot_of_the_disk_is_reached(
    tmp_path: Path,
    name: str,
    codec: str,
    options: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From a keyframe on, so that nothing is shown that lacks what it refers to."""
    path = busy_video(tmp_path / name, frames=200, codec=codec, options=options)
    with VideoSource(path) as source:
        whole = {frame.pts: frame.y.copy() for frame in source}
    monkeypatch.setattr(decode, "_READ_BYTES", 4096)
    monkeypatch.setattr(decode, "_OneFile", _FailingDisk)
    with VideoSource(path) as source:
        frames = list(source)
        assert source.problems.demux_errors >= 1
        assert "could not be read in" in " ".join(source.problems.sentences())
    assert len(frames) > 90
    assert frames[-1].pts == max(whole)
    steps = [b.pts - a.pts for a, b in pairwise(frames)]
    behind = frames[steps.index(max(steps)) + 1 :]
    assert all((frame.y == whole[frame.pts]).all() for frame in behind)


def test_a_disk_that_fails_at_once_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dead(decode._OneFile):
        def read(self, count: int) -> bytes:
            self.error = OSError(errno.EIO, os.strerror(errno.EIO))
            return b""

    path = make_video(tmp_path / "d.mp4")
    monkeypatch.setattr(decode, "_OneFile", Dead)
    assert refused(path).endswith("as a video: Input/output error. Check the disk.")


def test_trying_places_that_do_not_exist_prints_no_traceback(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """PyAV prints one where two calls of a file object fail in a row."""
    path = make_video(tmp_path / "s.mp4")
    file = decode._OneFile(path)
    assert file.seek(-(10**9), os.SEEK_END) < 0
    file.close()
    for seed in range(30):
        broken = flip_bits(path, tmp_path / "b.mp4", seed=seed, flips=40)
        try:
            with VideoSource(broken) as source:
                list(source)
        except CcdstreamError as error:
            assert "\n" not in str(error)
    assert capfd.readouterr() == ("", "")


# --- times ---


def test_frames_at_one_time_are_moved_apart_and_the_rest_keeps_its_times(tmp_path: Path) -> None:
    whole = make_video(
        tmp_path / "w.mkv",
        codec="ffv1",
        time_base=Fraction(1, 1000),
        pts=[40 * k for k in range(12)],
    )

    def twice(packet: av.Packet, k: int) -> av.Packet:
        if k in (5, 6):
            packet.pts = packet.dts = 160
        return packet

    with VideoSource(remux(whole, tmp_path / "d.mkv", twice)) as source:
        pts = [frame.pts for frame in source]
        assert source.problems.non_monotonic == 2
    assert pts == [0, 40, 80, 120, 160, 161, 162, 280, 320, 360, 400, 440]


def test_a_clock_that_starts_anew_is_closed_up(tmp_path: Path) -> None:
    part = make_video(tmp_path / "p.ts", format="mpegts", frames=60, options={"bf": "0"})
    (tmp_path / "pp.ts").write_bytes(part.read_bytes() * 2)
    with VideoSource(tmp_path / "pp.ts") as source:
        frames = list(source)
        assert source.problems.clock_jumps == 1
        assert "the clock of the file jumped 1 time; closed up" in source.problems.sentences()
    assert [index_of(frame.y) for frame in frames] == [k % 32 for k in range(60)] * 2
    steps = {b.pts - a.pts for a, b in pairwise(frames)}
    assert steps == {3600}


@pytest.mark.parametrize("hours", [2, 200_000])
def test_a_time_far_ahead_is_a_damaged_one(tmp_path: Path, hours: int) -> None:
    """One frame, or the rest of the video; the others keep their times."""
    whole = make_video(
        tmp_path / "w.mkv",
        codec="ffv1",
        time_base=Fraction(1, 1000),
        pts=[40 * k for k in range(12)],
    )

    def leap(packet: av.Packet, k: int) -> av.Packet:
        if k >= 6:
            packet.pts = packet.dts = packet.pts + hours * 3_600_000
        return packet

    with VideoSource(remux(whole, tmp_path / "l.mkv", leap)) as source:
        assert [frame.pts for frame in source] == [40 * k for k in range(12)]
        assert source.problems.clock_jumps == 1


def test_a_pause_of_minutes_is_no_damage(tmp_path: Path) -> None:
    pts = [0, 40, 80, 80 + 15 * 60_000, 120 + 15 * 60_000]
    path = make_video(tmp_path / "p.mkv", codec="ffv1", time_base=Fraction(1, 1000), pts=pts)
    with VideoSource(path) as source:
        assert [frame.pts for frame in source] == pts
        assert source.problems.sentences() == []


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
