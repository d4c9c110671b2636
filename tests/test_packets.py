"""What reading packets promises: all that can be read, of picture and sound, as it is."""

import errno
import os
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import pytest

from ccdstream import container
from ccdstream.decode import VideoSource
from ccdstream.packets import AudioSource, Demuxer, PacketSource
from tests.videos import beep_time, busy_video, index_of, make_video, packets_of, remux

MILLISECONDS = Fraction(1, 1000)


# --- what cannot be read ---


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


class _FailingDisk(container.OneFile):
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
    monkeypatch.setattr(container, "_READ_BYTES", 4096)
    monkeypatch.setattr(container, "OneFile", _FailingDisk)
    with VideoSource(path) as source:
        frames = list(source)
        assert source.problems.demux_errors >= 1
        assert "could not be read in" in " ".join(source.problems.sentences())
    assert len(frames) > 90
    assert frames[-1].pts == max(whole)
    steps = [b.pts - a.pts for a, b in pairwise(frames)]
    behind = frames[steps.index(max(steps)) + 1 :]
    assert all((frame.y == whole[frame.pts]).all() for frame in behind)


def test_packets_for_copying_come_once_each_before_and_behind_a_bad_spot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = busy_video(tmp_path / "d.mkv", frames=200, options={"g": "10"})
    with PacketSource(path) as source:
        whole = [(packet.pts, bytes(packet)) for packet in source]
    assert len(whole) == 200
    monkeypatch.setattr(container, "_READ_BYTES", 4096)
    monkeypatch.setattr(container, "OneFile", _FailingDisk)
    with PacketSource(path) as source:
        got = [(packet.pts, bytes(packet)) for packet in source]
        assert source.unread >= 1
    assert 90 < len(got) < 200
    assert got == [packet for packet in whole if packet in got]
    assert (got[0], got[-1]) == (whole[0], whole[-1])


def test_reading_goes_on_behind_a_spot_hours_into_a_recording_of_unknown_length(
    tmp_path: Path,
) -> None:
    late = [25 * 2 * 3600 + 25 * k for k in range(12)]
    path = make_video(tmp_path / "h.mp4", codec="mpeg4", options={"g": "1"}, pts=[0, *late])
    with Demuxer(path) as demuxer:
        last = round(2 * 3600 / demuxer.time_base)
        assert demuxer.skip_ahead(last, behind=True) == last + round(1 / demuxer.time_base)
        assert demuxer.skip_ahead(last, behind=True) == last + round(2 / demuxer.time_base)
        assert demuxer.skip_ahead(last, end_s=2 * 3600 + 0.5) is None


# --- a stretch ---


@pytest.mark.parametrize(
    ("start_s", "first"), [(None, 0), (0.0, 0), (0.39, 0), (0.4, 10), (1.0, 20), (9.0, 40)]
)
@pytest.mark.parametrize("name", ["s.mp4", "s.mkv", "s.ts"])
def test_a_stretch_begins_with_the_last_keyframe_before_it(
    tmp_path: Path, name: str, start_s: float | None, first: int
) -> None:
    path = make_video(tmp_path / name, frames=50, options={"g": "10", "bf": "0"})
    whole = packets_of(path, "video")
    with VideoSource(path) as source:
        origin_s = source.start_time_s
    start_s = None if start_s is None else start_s + origin_s + 1e-6
    with PacketSource(path, start_s=start_s) as packets:
        assert [bytes(packet) for packet in packets] == [data for _, data in whole[first:]]


# --- sound ---


def test_sound_comes_in_the_packets_of_the_file(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", frames=50, audio="aac")
    with VideoSource(path) as source, source.open_audio() as audio:
        got = [bytes(packet) for packet in audio]
    assert got == [data for _, data in packets_of(path, "audio")]
    assert beep_time(path) == pytest.approx(0.2, abs=2e-3)


def test_sound_of_a_stretch_is_what_is_heard_in_it(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mkv", frames=100, audio="flac")
    with VideoSource(path, start_s=1.0, end_s=2.0) as source, source.open_audio() as audio:
        spans = [(p.pts * p.time_base, (p.pts + (p.duration or 0)) * p.time_base) for p in audio]
    assert spans[0][0] <= 1 < spans[0][1]
    assert spans[-1][0] < 2 <= spans[-1][1] + MILLISECONDS


def test_a_silent_recording_has_no_sound(tmp_path: Path) -> None:
    with AudioSource(make_video(tmp_path / "s.mp4")) as audio:
        assert audio.stream is None
        assert list(audio) == []
