"""What the clock promises: a time for each frame after the one before, and no more changed."""

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import pytest

from ccdstream.clock import AsShown, Clock
from ccdstream.decode import VideoSource
from ccdstream.problems import Problems
from tests.videos import ALL_B, index_of, indices, make_video, remux

# --- times of decoding alone ---


def test_b_frames_of_an_avi_which_holds_times_of_decoding_alone_come_at_even_times(
    tmp_path: Path,
) -> None:
    path = make_video(tmp_path / "b.avi", frames=100, options=ALL_B)
    with VideoSource(path) as source:
        frames = list(source)
        assert source.problems.sentences() == []
    assert indices(frames) == [k % 32 for k in range(100)]
    assert [frame.pts for frame in frames] == list(range(100))


def test_a_lost_b_frame_of_an_avi_leaves_the_others_at_their_times(tmp_path: Path) -> None:
    whole = make_video(tmp_path / "w.avi", frames=100, options=ALL_B)
    path = remux(whole, tmp_path / "l.avi", lambda packet, k: packet if k != 30 else None)
    with VideoSource(path) as source:
        frames = list(source)
        assert source.problems.missing_frames == 1
        assert source.problems.non_monotonic == 0
    late = [(f.pts - k + 16) % 32 - 16 for f, k in zip(frames, indices(frames), strict=True)]
    assert len(frames) == 99
    assert set(late) <= {0, 1, -1}
    assert (late[:17], late[52:]) == ([0] * 17, [0] * 47)


# --- no times, and wrong ones ---


def test_a_stream_without_times_runs_at_its_own_rate(tmp_path: Path) -> None:
    path = make_video(tmp_path / "r.h264", frames=20, format="h264", options={"bf": "2"})
    with VideoSource(path) as source:
        frames = list(source)
        assert source.problems.missing_pts == 20
        assert source.problems.sentences() == ["20 frames had no time and follow the one before"]
    assert indices(frames) == list(range(20))
    assert [f.pts * f.time_base for f in frames] == [Fraction(k, 25) for k in range(20)]


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


# --- gaps ---


def test_gaps_in_an_even_clock_are_counted(tmp_path: Path) -> None:
    whole = make_video(tmp_path / "w.mkv", codec="ffv1", frames=60)
    lost = {20, 21, 22, 40}
    path = remux(whole, tmp_path / "g.mkv", lambda p, k: None if k in lost else p)
    with VideoSource(path) as source:
        assert len(list(source)) == 56
        assert source.problems.sentences() == [
            "4 frames are missing, by the gaps in clock or index"
        ]


def test_a_long_gap_is_counted_by_the_rate_and_not_by_a_step_that_was_rounded(
    tmp_path: Path,
) -> None:
    """30 frames a second are steps of 33, 33 and 34 ms."""
    pts = [round(k * 1000 / 30) for k in range(660) if not 30 <= k < 630]
    path = make_video(tmp_path / "g.mkv", pts=pts, time_base=Fraction(1, 1000), rate=30)
    with VideoSource(path) as source:
        assert len(list(source)) == 60
        assert source.problems.missing_frames == 600


def test_a_clock_that_is_uneven_by_nature_has_no_gaps(tmp_path: Path) -> None:
    pts = [k + 3 * (k % 3 == 0) + 40 * (k // 7) for k in range(40)]
    path = make_video(tmp_path / "v.mkv", codec="ffv1", pts=sorted(set(pts)))
    with VideoSource(path) as source:
        list(source)
        assert source.problems.sentences() == []


# --- without a recording ---


def times_of(*pts: int | None, start: int = 0) -> tuple[list[int], Problems]:
    """What a clock of 25 frames a second in milliseconds makes of `pts`."""
    problems = Problems()
    clock = Clock(Fraction(1, 1000), Fraction(25), start, problems)
    return [clock.next(each, 40) for each in pts], problems


def test_times_that_rise_are_left_as_they_are() -> None:
    times, problems = times_of(7, 40, 1000, 1001)
    assert times == [7, 40, 1000, 1001]
    assert problems == Problems()


def test_what_has_no_time_follows_and_begins_where_the_stream_does() -> None:
    times, problems = times_of(None, None, 200, None, start=20)
    assert times == [20, 60, 200, 240]
    assert problems == Problems(missing_pts=3)


def test_a_slip_moves_one_frame_and_a_clock_set_anew_all_behind_it() -> None:
    times, problems = times_of(0, 40, 30, 80)
    assert (times, problems) == ([0, 40, 41, 80], Problems(non_monotonic=1))
    times, problems = times_of(5000, 5040, 0, 40)
    assert (times, problems) == ([5000, 5040, 5080, 5120], Problems(clock_jumps=1))


@dataclass
class _Picture:
    pts: int | None
    number: int


def test_times_of_decoding_are_sorted_and_pictures_keep_their_order() -> None:
    decoded = [0, 3, 1, 2, None, 5]
    as_shown = AsShown[_Picture]()
    pictures = [_Picture(pts, number) for number, pts in enumerate(decoded)]
    shown = [each for picture in pictures for each in as_shown.push(picture)]
    shown += as_shown.finish()
    assert [picture.number for picture in shown] == list(range(6))
    assert [picture.pts for picture in shown] == [0, 1, 2, 3, 4, 5]
