"""A copy shows what the source shows, at its times, and nothing of it is lost in silence."""

import errno
import hashlib
import os
import shutil
from fractions import Fraction
from pathlib import Path

import av
import pytest

from ccdstream.decode import VideoSource
from ccdstream.encode import Chapter
from ccdstream.errors import OutputError
from ccdstream.remux import Copied, Remuxer
from tests.test_encode import largest_file
from tests.videos import beep_time, make_video, packets_of, picture, remux, textured, times_of

B_FRAMES = {"bf": "3", "g": "10", "sc_threshold": "0"}
Seen = list[tuple[Fraction, str]]


def seen(path: Path) -> Seen:
    """(time, hash) of every frame as decoded, by PyAV alone."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return [
            (f.pts * Fraction(stream.time_base), hashlib.md5(f.to_ndarray()).hexdigest())
            for f in container.decode(stream)
        ]


def analysed(path: Path) -> Seen:
    """(time, hash) of every frame as the analysis has them."""
    with VideoSource(path) as source:
        return [(f.pts * f.time_base, hashlib.md5(f.y.tobytes()).hexdigest()) for f in source]


def copied(source: Path, *, trust_times: bool = True, **options: object) -> tuple[Path, Copied]:
    remuxer = Remuxer(source, trust_times=trust_times)
    target = source.with_name(f"copy-of-{source.name}.{remuxer.suffix}")
    return target, remuxer.copy(target, **options)  # type: ignore[arg-type]


MADE: dict[str, dict[str, object]] = {
    "b-frames.mp4": {"options": B_FRAMES, "audio": "aac"},
    "b-frames.mkv": {"options": B_FRAMES, "audio": "flac"},
    "b-frames.ts": {"options": B_FRAMES, "audio": "aac"},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"bf": "0"}},
    "hevc.mp4": {"codec": "libx265"},
    "vp9.webm": {"codec": "libvpx-vp9", "audio": "libopus"},
    "vfr.mp4": {"pts": [0, 1, 2, 5, 6, 9, 12, 13, 14, 20, 21, 50], "options": B_FRAMES},
    "late.mp4": {"pts": range(100, 112), "options": B_FRAMES},
    "ntsc.mp4": {"time_base": Fraction(1001, 30000), "rate": Fraction(30000, 1001)},
    "cut-by-an-edit-list.mp4": {"pts": range(-6, 14), "frames": 20, "options": B_FRAMES},
}


@pytest.mark.parametrize("name", MADE)
def test_a_copy_has_every_frame_bit_for_bit_at_its_time(tmp_path: Path, name: str) -> None:
    source = make_video(
        tmp_path / name,
        **{"frames": 24, **MADE[name]}
        if "pts" not in MADE[name]
        else {"frames": len(MADE[name]["pts"]), **MADE[name]},
    )  # type: ignore
    target, made = copied(source)
    assert target.suffix == ".mp4"
    assert seen(target) == seen(source)
    assert (made.warnings, made.offset_s) == ([], 0)


def test_packets_are_those_of_the_source_byte_for_byte(tmp_path: Path) -> None:
    source = make_video(tmp_path / "a.mp4", frames=40, options=B_FRAMES, audio="aac")
    target, made = copied(source)
    for kind in ("video", "audio"):
        assert packets_of(target, kind) == packets_of(source, kind)
    assert made.packets == 40


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "name", "audio", "why"),
    [
        ("ffv1", "yuv420p", "a.avi", None, "ffv1"),
        ("mjpeg", "yuvj420p", "a.avi", "pcm_s16le", "mjpeg and pcm_s16le"),
        ("libx264", "yuv420p", "a.mov", "pcm_s16le", "pcm_s16le"),
    ],
)
def test_what_mp4_players_lack_is_copied_into_matroska(
    tmp_path: Path, codec: str, pix_fmt: str, name: str, audio: str | None, why: str
) -> None:
    source = make_video(tmp_path / name, codec=codec, pix_fmt=pix_fmt, frames=50, audio=audio)
    remuxer = Remuxer(source)
    assert (remuxer.suffix, why in remuxer.why_not_mp4) == ("mkv", True)
    target, _ = copied(source, chapters=[Chapter(0.4, 0.8, "alert 1")])
    assert seen(target) == seen(source)
    with av.open(str(target)) as container:
        assert len(container.streams.audio) == (audio is not None)
        titles = [chapter["metadata"]["title"] for chapter in container.chapters()]
    assert titles == ["No alert", "alert 1", "No alert"]


def test_sound_that_mp4_refuses_at_that_rate_is_copied_into_matroska(tmp_path: Path) -> None:
    source = make_video(
        tmp_path / "a.mkv", frames=50, audio="libmp3lame", audio_rate=8000, beep_s=0.5
    )
    remuxer = Remuxer(source)
    assert remuxer.suffix == "mkv" and "mp3" in remuxer.why_not_mp4
    target, made = copied(source)
    assert made.warnings == [] and seen(target) == seen(source)
    assert packets_of(target, "audio") == packets_of(source, "audio")


def test_equal_copies_are_equal_files(tmp_path: Path) -> None:
    source = make_video(tmp_path / "a.avi", codec="ffv1")
    first, _ = copied(source)
    shutil.move(first, tmp_path / "first")
    second, _ = copied(source)
    assert (tmp_path / "first").read_bytes() == second.read_bytes()


def test_rotation_shape_of_pixels_and_colour_stay_and_metadata_does_not(tmp_path: Path) -> None:
    source = make_video(
        tmp_path / "a.mp4", display=(90, True, False), sample_aspect_ratio=Fraction(16, 15),
        tags=(5, 1, 5, 1), metadata={"title": "Anna Muster", "comment": "born 1960"},
    )  # fmt: skip
    target, _ = copied(source)
    with VideoSource(source) as before, VideoSource(target) as after:
        for what in (
            "size", "rotation_deg", "mirrored", "sample_aspect_ratio", "colour", "colour_tags",
        ):  # fmt: skip
            assert getattr(after, what) == getattr(before, what), what
        assert after.rotation_deg == 90 or after.rotation_deg == 270
    assert b"Anna" not in target.read_bytes()
    kept = tmp_path / "kept.mp4"
    with VideoSource(source) as tagged:
        Remuxer(source, metadata=tagged.metadata).copy(kept)
    with av.open(str(kept)) as container:
        assert container.metadata["title"] == "Anna Muster"
        assert container.metadata["comment"] == "born 1960"


def test_cover_pictures_are_not_copied(tmp_path: Path) -> None:
    source = make_video(tmp_path / "a.mp4", frames=20, cover=True, audio="aac")
    target, _ = copied(source)
    with av.open(str(target)) as container:
        assert [s.type for s in container.streams] == ["video", "audio"]
        assert container.streams.video[0].codec_context.name == "h264"


def test_chapters_are_on_the_clock_of_the_recording(tmp_path: Path) -> None:
    source = make_video(tmp_path / "a.mp4", frames=50, options=B_FRAMES)
    target, _ = copied(source, chapters=[Chapter(0.4, 0.8, "alert 1")], between="rest")
    with av.open(str(target)) as container:
        marks = [
            (float(c["start"] * c["time_base"]), c["metadata"]["title"])
            for c in container.chapters()
        ]
    assert marks == [(0, "rest"), (0.4, "alert 1"), (0.8, "rest")]


# -- a stretch ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.avi"])
@pytest.mark.parametrize(
    "options", [B_FRAMES, {**B_FRAMES, "x264-params": "open-gop=1"}], ids=["closed", "open"]
)
def test_a_stretch_begins_at_a_keyframe_and_holds_all_that_was_asked_for(
    tmp_path: Path, name: str, options: dict[str, str]
) -> None:
    source = make_video(
        tmp_path / name, frames=60, options=options, picture_of=lambda k: picture(
            textured(k, (48, 64))
        ),
    )  # fmt: skip
    whole = dict(analysed(source))
    target, made = copied(source, start_s=1.0, end_s=1.6)
    got = analysed(target)
    assert got[0][0] == 0
    shown = [(time + made.offset_s, digest) for time, digest in got]
    asked = [time for time in whole if 1 <= time < Fraction(8, 5)]
    assert set(asked) <= {time for time, _ in shown}
    assert all(whole[time] == digest for time, digest in shown), "no frame is damaged"
    assert 0.5 <= made.offset_s <= 1 and shown[-1][0] <= 1.8
    times = sorted(whole)
    first = times.index(shown[0][0])
    assert [time for time, _ in shown] == times[first : first + len(shown)], "none is left out"
    assert made.packets == len(shown)


@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
def test_a_stretch_begins_with_the_keyframe_at_its_first_moment(tmp_path: Path, name: str) -> None:
    """0.3 s are 2.9999999999999996 tenths to the machine."""
    source = make_video(
        tmp_path / name, frames=10, time_base=Fraction(1, 10), rate=10, options={"g": "1"}
    )
    _, made = copied(source, start_s=0.3)
    assert made.offset_s == Fraction(3, 10)


def test_a_stretch_ends_before_the_frame_at_its_last_moment(tmp_path: Path) -> None:
    """0.28 s are 7.000000000000001 frames to the machine."""
    source = make_video(tmp_path / "a.mp4", frames=20, options={"g": "1"})
    target, made = copied(source, end_s=0.28)
    assert made.end_s == Fraction(28, 100)
    assert [time for time, _ in seen(target)] == [Fraction(k, 25) for k in range(7)]


def test_the_sound_of_a_stretch_stays_in_time(tmp_path: Path) -> None:
    source = make_video(tmp_path / "a.mp4", frames=100, options=B_FRAMES, audio="aac", beep_s=2.5)
    before = beep_time(source)
    target, made = copied(source, start_s=1.9)
    after = beep_time(target)
    assert before is not None and after is not None
    assert after + float(made.offset_s) == pytest.approx(before, abs=0.03)


@pytest.mark.parametrize("first", [-6, -5, -4])
def test_the_first_stretch_of_a_trimmed_recording_lacks_no_frame(
    tmp_path: Path, first: int
) -> None:
    """The first frame that its edit list leaves need not be the first of them that is decoded."""
    source = make_video(
        tmp_path / "a.mp4", pts=range(first, first + 20), frames=20, options=B_FRAMES
    )
    assert seen(source)[0][0] == 0
    target, made = copied(source, start_s=-5.0, chapters=[Chapter(0.0, 0.2, "x")])
    assert made.offset_s == 0
    assert seen(target) == seen(source)


def test_a_stretch_before_the_first_keyframe_begins_with_it(tmp_path: Path) -> None:
    source = make_video(tmp_path / "a.mp4", pts=range(50, 75), frames=25, options=B_FRAMES)
    target, made = copied(source, start_s=-3.0, end_s=2.2)
    assert made.offset_s == 2
    assert seen(target)[0] == (0, seen(source)[0][1])


# -- broken times ---------------------------------------------------------------------------------


def without_pts(packet: av.Packet, _: int) -> av.Packet:
    packet.pts = None
    return packet


def backwards(packet: av.Packet, k: int) -> av.Packet:
    if k == 7:
        packet.pts -= 400 * (1 if packet.time_base < Fraction(1, 500) else 0) + 3
        packet.dts = packet.pts
    return packet


def test_a_recording_without_times_keeps_every_packet_and_frame(tmp_path: Path) -> None:
    source = make_video(tmp_path / "raw.h264", frames=40, format="h264", options=B_FRAMES)
    target, made = copied(source, chapters=[Chapter(0.4, 0.8, "x")])
    assert made.packets == 40
    assert analysed(target) == analysed(source)


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_pictures_of_an_avi_that_are_not_decoded_as_shown_are_shown_as_analysed(
    tmp_path: Path, codec: str
) -> None:
    """AVI holds no times, and FFmpeg guesses them in the order of decoding."""
    source = make_video(
        tmp_path / "a.avi", codec=codec, frames=40, options={"bf": "2", "g": "10"},
        picture_of=lambda k: picture(textured(k, (48, 64))),
    )  # fmt: skip
    target, made = copied(source)
    assert made.packets == 40
    assert analysed(target) == analysed(source)
    assert seen(target) == sorted(seen(target))


@pytest.mark.parametrize("start_s", [None, 0.9])
def test_frames_whose_times_were_mended_are_copied_at_the_mended_ones(
    tmp_path: Path, start_s: float | None
) -> None:
    """MPEG-PS with B-frames, where two frames claim the same time."""
    source = make_video(
        tmp_path / "a.mpg", codec="mpeg2video", frames=40, options={"bf": "2", "g": "10"}
    )
    expected = analysed(source)
    with VideoSource(source) as video:
        list(video)
        assert video.problems.sentences(), "a sound recording tests nothing"
    target, made = copied(source, trust_times=False, start_s=start_s)
    got = [(time + made.offset_s, digest) for time, digest in analysed(target)]
    assert [d for _, d in got] == [d for _, d in expected[-len(got) :]]
    assert all(
        abs(a - b) <= Fraction(2, 1000)  # Matroska: milliseconds
        for (a, _), (b, _) in zip(got, expected[-len(got) :], strict=True)
    )
    assert start_s is not None or len(got) == len(expected)
    assert any("milliseconds" in warning for warning in made.warnings)


def test_a_clock_that_was_set_anew_is_closed_up_as_in_the_analysis(tmp_path: Path) -> None:
    whole = make_video(tmp_path / "whole.ts", frames=40, options={"bf": "0", "g": "5"})

    def jumping(packet: av.Packet, k: int) -> av.Packet:
        if k >= 20:
            packet.pts -= 90_000 * 3600 * 2 - 90_000 * 7200
            packet.pts += 90_000 * 7200
            packet.dts = packet.pts
        return packet

    source = remux(whole, tmp_path / "jump.ts", jumping)
    with VideoSource(source) as video:
        list(video)
        assert video.problems.clock_jumps
    target, made = copied(source, trust_times=False)
    assert made.packets == 40
    assert analysed(target) == analysed(source)


def test_a_time_that_goes_back_loses_no_packet(tmp_path: Path) -> None:
    """AVI has no times of its own; a container with none that fit is refused by no copy."""
    source = make_video(tmp_path / "a.mkv", frames=24, options={"bf": "0", "g": "5"})

    def doubled(packet: av.Packet, k: int) -> av.Packet:
        packet.pts = packet.dts = 40 * (k - (k == 9))
        return packet

    broken = remux(source, tmp_path / "doubled.mkv", doubled)
    target, made = copied(broken, trust_times=False)
    assert made.packets == 24
    assert [d for _, d in analysed(target)] == [d for _, d in analysed(source)]
    assert len(set(times_of(target))) == 24


# -- what goes wrong ------------------------------------------------------------------------------


def test_a_codec_that_no_container_takes_is_refused_at_once(tmp_path: Path) -> None:
    source = make_video(tmp_path / "a.asf", codec="wmv2")
    with pytest.raises(OutputError, match=r"holds wmv2, .*Use --video overlay\."):
        Remuxer(source)
    raw = make_video(tmp_path / "a.avi", codec="rawvideo", pix_fmt="yuv420p")
    with pytest.raises(OutputError, match=r"holds rawvideo, .*Use --video overlay\."):
        Remuxer(raw)


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.995])
def test_a_full_disk_is_an_error_with_advice_and_leaves_no_trace(
    tmp_path: Path, share: float
) -> None:
    source = make_video(
        tmp_path / "a.mp4", frames=50, size=(240, 320),
        picture_of=lambda k: picture(textured(k, (240, 320))),
    )  # fmt: skip
    out = tmp_path / "out"
    out.mkdir()
    remuxer = Remuxer(source)
    with (
        largest_file(int(share * source.stat().st_size)),
        pytest.raises(OutputError) as caught,
    ):
        remuxer.copy(out / "f.mp4")
    assert str(caught.value) == (
        f"cannot write {out}/f.mp4: {os.strerror(errno.EFBIG)}. "
        "Free some space, or write to another disk."
    )
    assert os.listdir(out) == []


def test_a_truncated_recording_is_copied_as_far_as_it_goes(tmp_path: Path) -> None:
    whole = make_video(tmp_path / "whole.mkv", frames=100, options=B_FRAMES)
    data = whole.read_bytes()
    broken = tmp_path / "broken.mkv"
    broken.write_bytes(data[: len(data) * 2 // 3])
    target, _ = copied(broken)
    assert [d for _, d in analysed(target)] == [d for _, d in analysed(broken)]


def test_an_interrupted_copy_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_video(tmp_path / "a.mp4", frames=20)

    def interrupted(*_: object, **__: object) -> list[object]:
        raise KeyboardInterrupt

    monkeypatch.setattr("ccdstream.remux.chapter_marks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        copied(source, chapters=[Chapter(0.1, 0.2, "x")])
    assert os.listdir(tmp_path) == ["a.mp4"]


DATA = os.environ.get("CCDSTREAM_DATA")


@pytest.mark.skipif(DATA is None, reason="CCDSTREAM_DATA is not set")
@pytest.mark.parametrize("name", ["polyp_53f.mp4", "screen_capture_884f.mp4"])
def test_real_clips_are_copied_bit_for_bit(tmp_path: Path, name: str) -> None:
    source = Path(str(DATA)) / "video" / name
    remuxer = Remuxer(source)
    target = tmp_path / f"copy.{remuxer.suffix}"
    remuxer.copy(target)
    assert seen(target) == seen(source)
