"""A few hundred damaged recordings, and the tool that makes them: what it found and can find."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ccdstream.decode import VideoSource
from ccdstream.workers import Tell
from tests.videos import cut, make_video, picture, remux, textured
from tools import fuzz_decode
from tools.fuzz_decode import Outcome, Source, damaged, fuzz, read, sources, summary

COUNT = 250
SEED = 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def sound(folder: Path) -> list[Source]:
    return sources(folder)


def test_sound_files_are_many_and_whole(sound: list[Source]) -> None:
    assert len(sound) >= 25
    assert {name.split(".")[-1] for name in (s.name for s in sound)} >= {
        *("mp4", "mov", "mkv", "webm", "avi", "ts", "mpg", "flv", "wmv", "mxf", "nut"),
    }
    assert {s.name: s.frames for s in sound if s.frames < fuzz_decode.FRAMES - 1} == {}


def test_nothing_is_told_of_a_sound_file(folder: Path, sound: list[Source]) -> None:
    told = {}
    for one in sound:
        with VideoSource(folder / one.name) as source:
            list(source)
            told[one.name] = source.problems.sentences()
    assert {name for name, lines in told.items() if lines} == {"raw.h264", "raw.hevc"}
    assert told["raw.h264"] == ["40 frames had no time and follow the one before"]


def test_damaged_recordings_end_in_frames_counts_or_one_line(
    folder: Path, sound: list[Source]
) -> None:
    outcomes = fuzz(folder, sound, seed=SEED, numbers=range(COUNT), limit_s=60)
    failed = [(f"{SEED}:{o.number}", o.source, o.how, o.detail) for o in outcomes if o.failed]
    assert not failed, "see `python tools/fuzz_decode.py --replay SEED:NUMBER`"
    figures = summary(outcomes)
    assert figures["files"] == COUNT
    assert figures["shorter_and_told"] > COUNT / 10, "hardly anything was damaged"


def test_a_damage_is_the_same_in_every_run(sound: list[Source]) -> None:
    for number in range(40):
        one, other = damaged(3, number, sound), damaged(3, number, sound)
        assert (one.data, one.how) == (other.data, other.how)
    assert len({damaged(3, number, sound).data for number in range(40)}) == 40


@pytest.mark.parametrize("damage", fuzz_decode.DAMAGES, ids=lambda d: d.__name__)
def test_every_damage_changes_the_file_and_says_how(damage: Any, sound: list[Source]) -> None:
    changed = 0
    for seed in range(20):
        data = bytearray(sound[seed % len(sound)].data)
        before = bytes(data)
        assert damage(fuzz_decode.np.random.default_rng(seed), data)
        changed += before != data
    assert changed >= 10


# --- what counts as a failure ---


def _failing(folder: Path, seed: int, tell: Tell) -> tuple[None, Callable[..., Outcome]]:
    """A worker that meets the worst, by the number of the file."""

    def work(number: int, tell: Tell, stopped: Callable[[], bool]) -> Outcome:
        if number == 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        if number == 2:
            time.sleep(600)
        if number == 3:
            raise KeyError("a bug")
        return Outcome(number, "x.mp4", [], "frames")

    return None, work


def test_a_worker_that_dies_hangs_or_raises_costs_its_file_alone(
    folder: Path, sound: list[Source]
) -> None:
    outcomes = fuzz(folder, sound, seed=0, numbers=range(8), jobs=2, limit_s=10, setup=_failing)
    results = [o.result for o in outcomes]
    assert results == ["frames", "crashed", "hung", "error", *["frames"] * 4]
    assert outcomes[1].detail == "crashed (SIGSEGV)"
    assert outcomes[3].detail.strip().endswith("KeyError: 'a bug'")
    assert summary(outcomes)["failed"] == 3


def _untold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ccdstream.problems.Problems.sentences", lambda self: [])


def test_a_shorter_recording_of_which_nothing_tells_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_video(tmp_path / "w.mkv", codec="ffv1", frames=40)
    path = cut(whole, tmp_path / "c.mkv", 0.5)
    assert read(path, 40)["result"] == "frames"
    _untold(monkeypatch)
    outcome = read(path, 40)
    assert outcome["result"] == "silent"
    assert "of 38 announced frames, and no word of it" in outcome["detail"]
    assert read(whole, 40)["result"] == "frames"


def test_times_that_do_not_rise_are_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_video(tmp_path / "w.mkv", codec="ffv1")
    monkeypatch.setattr("ccdstream.clock.Clock.next", lambda self, pts, duration: 5)
    assert read(path, 12)["detail"] == "frame 12 at 5 follows one at 5"


def test_an_error_of_several_lines_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ccdstream.container.show_path", lambda path: "two\nlines")
    assert read(tmp_path / "none.mp4", 12)["result"] == "error"


def test_a_run_prints_a_table_and_a_replay_all_about_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        fuzz_decode, "KINDS", tuple(k for k in fuzz_decode.KINDS if k.name == "ffv1.mkv")
    )
    report = tmp_path / "report.json"
    assert fuzz_decode.main(["--count", "4", "--seed", "5", "--json", str(report)]) == 0
    assert "| files | 4 |" in capsys.readouterr().out
    told = json.loads(report.read_text())
    assert (told["files"], told["failed"], told["failures"], told["seed"]) == (4, 0, [], 5)
    keep = tmp_path / "kept"
    assert fuzz_decode.main(["--replay", "5:2", "--keep", str(keep)]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["number"] == 2 and outcome["how"]
    assert [path.name.split("-")[:2] for path in keep.iterdir()] == [["5", "2"]]


# --- what it found ---


def busy(path: Path, frames: int = 40, **options: Any) -> Path:
    return make_video(
        path, frames=frames, picture_of=lambda k: picture(textured(k, (48, 64))), **options
    )


def sentences(path: Path) -> list[str]:
    with VideoSource(path) as source:
        list(source)
        return source.problems.sentences()


@pytest.mark.parametrize("name", ["w.mkv", "w.mxf"])
def test_a_recording_that_breaks_off_within_its_last_second_says_so(
    tmp_path: Path, name: str
) -> None:
    codec = "ffv1" if name.endswith("mkv") else "mpeg2video"
    whole = busy(tmp_path / name, codec=codec)
    assert sentences(whole) == []
    assert "the recording breaks off before its announced end" in sentences(
        cut(whole, tmp_path / ("cut-" + name), 0.7)
    )


def test_an_avi_says_how_many_of_its_frames_are_absent(tmp_path: Path) -> None:
    """FFmpeg shortens the length by what it finds, and leaves the count."""
    whole = busy(tmp_path / "w.avi", codec="mjpeg", pix_fmt="yuvj420p")
    data = whole.read_bytes()
    begin, end = (data.index(b"00dc", len(data) * k // 10) for k in (3, 6))
    path = tmp_path / "d.avi"
    path.write_bytes(data[:begin] + data[end:])
    with VideoSource(path) as source:
        absent = 40 - len(list(source))
        assert absent > 5
        assert source.problems.missing_frames == absent


def test_what_is_lost_in_large_part_is_counted(tmp_path: Path) -> None:
    """Where fewer than nine steps in ten are even, the container's rate says what a step is."""
    whole = make_video(tmp_path / "w.mkv", codec="ffv1", frames=40)
    kept = {*range(6), *range(14, 18), *range(30, 34), 39}
    path = remux(whole, tmp_path / "d.mkv", lambda p, k: p if k in kept else None)
    with VideoSource(path) as source:
        assert len(list(source)) == len(kept)
        assert source.problems.missing_frames == 40 - len(kept)


def test_a_video_track_of_matroska_has_a_length_of_its_own(tmp_path: Path) -> None:
    """So sound that lasts longer hides nothing, though Matroska announces only the longest."""
    whole = busy(tmp_path / "w.mkv", codec="ffv1", audio="aac", audio_start_s=3.0)
    assert sentences(whole) == []
    data = whole.read_bytes()
    spoilt = bytearray(data)
    at = len(data) * 7 // 10
    spoilt[at : len(data) * 9 // 10] = bytes(len(data) * 9 // 10 - at)
    (tmp_path / "d.mkv").write_bytes(spoilt)
    assert sentences(tmp_path / "d.mkv")
