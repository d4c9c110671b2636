"""Which videos a run leaves of each kind, and that none of an earlier run passes for one of it.

To the toy, bright is unusual.
"""

import json
import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from ccdstream.batch import Job, Wanted, standing, videos_in
from ccdstream.bundle import Bundle
from ccdstream.engine.select import SelectedEngine
from ccdstream.errors import OutputError, VideoOpenError
from ccdstream.frames import Colour, DeviceFrame, Frame
from ccdstream.recording import OutputFiles, RunOptions, RunResult, run
from ccdstream.report import page as page_module
from ccdstream.videos import MOST_PX, SideBySide, videos_there
from tests.commands import EARLIER, SIZE, bright_between, everything_in, shade
from tests.devices import on_device
from tests.videos import flat, make_video, packets_of, picture, times_of

G = {"g": "25", "bf": "2"}


Analyse = Callable[..., RunResult]


@pytest.fixture
def analyse(tmp_path: Path, bundle: Bundle, engine: SelectedEngine) -> Analyse:
    def analysed(recording: Path, stopped: Callable[[], bool] = lambda: False, **options: Any):  # type: ignore[no-untyped-def]
        return run(
            recording,
            OutputFiles(tmp_path / "out", recording.stem),
            bundle=bundle,
            engine=engine,
            options=RunOptions(**options),
            stopped=stopped,
        )

    return analysed


def record_of(folder: Path, stem: str = "a") -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / f"{stem}.run.json").read_text())
    return record


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in everything_in(folder)}


def two_alerts(path: Path, frames: int = 580, **options: Any) -> Path:
    """A recording with alerts from about 6 s to 8 s and from about 16 s to 18 s."""
    bright = {*range(150, 195), *range(400, 445)}
    return make_video(
        path,
        size=SIZE,
        frames=frames,
        options=G,
        picture_of=lambda k: picture(shade(200 if k in bright else 50)),
        **options,
    )


# -- chapters -------------------------------------------------------------------------------------


def test_chapters_are_a_copy_with_the_alerts_marked_and_the_record_says_copy(
    tmp_path: Path, analyse: Analyse
) -> None:
    recording = bright_between(tmp_path / "a.mp4", 20, 69, 100, audio="aac", options=G)
    result = analyse(recording, video="chapters")
    copy = tmp_path / "out" / "a.chapters.mp4"
    for kind in ("video", "audio"):
        assert packets_of(copy, kind) == packets_of(recording, kind)
    with av.open(str(copy)) as container:
        titles = [chapter["metadata"]["title"] for chapter in container.chapters()]
        begins = [float(c["start"] * c["time_base"]) for c in container.chapters()]
    assert titles[0] == "No alert"
    assert titles[1].startswith("Alert 1: unusual against normal training")
    assert begins[1] == pytest.approx(result.alerts[0].start_s, abs=0.001)
    record = record_of(tmp_path / "out")
    assert (record["video"]["encoder"], record["overlay_offset_s"]) == ("copy", 0)
    assert result.warnings == []
    assert set(record["outputs"]) == everything_in(tmp_path / "out")
    assert record["output_bytes"]["a.chapters.mp4"] == copy.stat().st_size
    page = (tmp_path / "out" / "a.report.html").read_text()
    assert '<source src="./a.chapters.mp4"' in page


def test_chapters_of_a_stretch_say_where_the_copy_begins(tmp_path: Path, analyse: Analyse) -> None:
    recording = bright_between(tmp_path / "a.mp4", 40, 69, 100, options=G)
    result = analyse(recording, video="chapters", start_s=1.4, end_s=3.0)
    record = record_of(tmp_path / "out")
    assert record["overlay_offset_s"] == 1.0
    assert any("begins at 1.000 s" in note for note in record["video"]["notes"])
    assert record["video"]["notes"] == result.notes
    copied = times_of(tmp_path / "out" / "a.chapters.mp4")
    assert copied[0] == 0 and 2 - Fraction(1, 25) <= copied[-1] <= Fraction(21, 10)


def test_a_run_that_is_ended_early_copies_what_was_analysed(
    tmp_path: Path, analyse: Analyse
) -> None:
    recording = bright_between(tmp_path / "a.mp4", 1, 2, 100, options=G)
    asked = iter(range(1000))
    result = analyse(recording, lambda: next(asked) >= 40, video="chapters")
    assert (result.interrupted, result.frames) == (True, 40)
    assert 40 <= len(times_of(tmp_path / "out" / "a.chapters.mp4")) <= 44


def test_what_browsers_cannot_play_is_not_in_the_page(tmp_path: Path, analyse: Analyse) -> None:
    recording = bright_between(tmp_path / "a.avi", 5, 49, 60, codec="ffv1")
    result = analyse(recording, video="chapters")
    assert (tmp_path / "out" / "a.chapters.mkv").exists()
    assert any("Matroska" in note for note in result.notes)
    assert 'data-video="no"' in (tmp_path / "out" / "a.report.html").read_text()


def test_a_codec_that_cannot_be_copied_is_refused_before_any_work(
    tmp_path: Path, analyse: Analyse
) -> None:
    recording = make_video(tmp_path / "a.asf", codec="wmv2")
    with pytest.raises(OutputError, match=r"wmv2, which cannot be copied"):
        analyse(recording, video="chapters")
    assert everything_in(tmp_path / "out") == set()


# -- clips ----------------------------------------------------------------------------------------


def test_each_alert_has_a_clip_of_5_s_before_and_after(tmp_path: Path, analyse: Analyse) -> None:
    recording = two_alerts(tmp_path / "a.mp4", audio="aac")
    result = analyse(recording, video="clips")
    record = record_of(tmp_path / "out")
    assert [(c["alert"], c["file"]) for c in record["video"]["clips"]] == [
        (1, "a.alert-1.mp4"), (2, "a.alert-2.mp4"),
    ]  # fmt: skip
    whole = dict(packets_of(recording, "video"))
    for alert, clip in zip(result.alerts, record["video"]["clips"], strict=True):
        packets = packets_of(tmp_path / "out" / clip["file"], "video")
        offset = Fraction(clip["offset_s"])
        assert all(whole[time + offset] == data for time, data in packets)
        times = sorted(time + offset for time, _ in packets)
        assert alert.start_s - 6 < times[0] <= alert.start_s - 5
        assert alert.end_s + 5 - 0.05 <= times[-1] <= alert.end_s + 5.2
        with av.open(str(tmp_path / "out" / clip["file"])) as container:
            assert len(container.streams.audio) == 1
    assert set(record["outputs"]) == everything_in(tmp_path / "out")
    assert {"a.alert-1.mp4", "a.alert-2.mp4"} <= set(record["output_bytes"])
    page = (tmp_path / "out" / "a.report.html").read_text()
    assert page.count('<video class="clip"') == 2 and 'href="./a.alert-2.mp4"' in page


def test_a_clip_has_a_chapter_at_its_alert(tmp_path: Path, analyse: Analyse) -> None:
    result = analyse(two_alerts(tmp_path / "a.mp4"), video="clips")
    for alert, clip in zip(
        result.alerts, record_of(tmp_path / "out")["video"]["clips"], strict=True
    ):
        with av.open(str(tmp_path / "out" / clip["file"])) as container:
            marks = {
                c["metadata"]["title"]: float(c["start"] * c["time_base"])
                for c in container.chapters()
            }
        (begins,) = [at for title, at in marks.items() if title.startswith(f"Alert {alert.number}")]
        assert begins == pytest.approx(alert.start_s - clip["offset_s"], abs=0.001)
        assert len(marks) == 2 and "Around the alert" in marks


def test_clips_stay_within_the_stretch_that_was_asked_for(tmp_path: Path, analyse: Analyse) -> None:
    recording = two_alerts(tmp_path / "a.mp4")
    result = analyse(recording, video="clips", start_s=4.5, end_s=7.5)
    (alert,) = result.alerts
    assert alert.start_s - 5 < 4 and alert.end_s + 5 > 8, "a whole clip would leave the stretch"
    (clip,) = record_of(tmp_path / "out")["video"]["clips"]
    times = sorted(time + Fraction(clip["offset_s"]) for time in times_of(
        tmp_path / "out" / clip["file"]
    ))  # fmt: skip
    assert times[0] == 4, "the last keyframe before the stretch, one a second"
    assert Fraction(15, 2) - Fraction(2, 25) <= times[-1] <= Fraction(15, 2) + Fraction(3, 25)


def test_a_recording_without_alerts_leaves_no_clips_and_says_so(
    tmp_path: Path, analyse: Analyse
) -> None:
    recording = bright_between(tmp_path / "a.mp4", -1, -1, 30)
    result = analyse(recording, video="clips")
    assert result.notes == ["no alerts, so no clips"]
    assert not [name for name in everything_in(tmp_path / "out") if ".alert-" in name]


def test_clips_of_an_earlier_run_are_replaced_where_its_record_names_them_and_told_otherwise(
    tmp_path: Path, analyse: Analyse
) -> None:
    recording = two_alerts(tmp_path / "a.mp4")
    out = tmp_path / "out"
    analyse(recording, video="clips")
    (out / "a.alert-7.mp4").write_bytes(b"of somebody else")
    with pytest.raises(OutputError, match="is there already"):
        analyse(recording, video="clips")
    result = analyse(recording, video="clips", overwrite=True, end_s=12.0)  # one alert
    assert not (out / "a.alert-2.mp4").exists()
    assert (out / "a.alert-7.mp4").read_bytes() == b"of somebody else"
    assert result.warnings == [f"a.alert-7.mp4 {EARLIER}"]
    result = analyse(recording, video="none", overwrite=True)
    assert [f.name for f in videos_there(out, "a")] == ["a.alert-1.mp4", "a.alert-7.mp4"]
    assert [w.split("/")[-1] for w in result.warnings] == [
        f"a.alert-1.mp4 {EARLIER}", f"a.alert-7.mp4 {EARLIER}",
    ]  # fmt: skip
    assert "a.alert-1.mp4" not in record_of(out)["outputs"]


@pytest.mark.parametrize("fails", ["ccdstream.recording.write_page", "ccdstream.remux.open_mp4"])
def test_a_run_that_fails_keeps_the_clips_of_the_earlier_one(
    tmp_path: Path, analyse: Analyse, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    recording = two_alerts(tmp_path / "a.mp4")
    analyse(recording, video="clips")
    before = {
        name: (tmp_path / "out" / name).read_bytes() for name in everything_in(tmp_path / "out")
    }

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(fails, broken)
    with pytest.raises(RuntimeError, match="broken"):
        analyse(recording, video="clips", overwrite=True, end_s=12.0)
    after = {
        name: (tmp_path / "out" / name).read_bytes() for name in everything_in(tmp_path / "out")
    }
    assert after == before


@pytest.mark.parametrize(
    ("video", "name"), [("clips", "a.alert-3.mkv"), ("chapters", "a.chapters.mkv")]
)
def test_a_file_that_nobody_knows_is_refused_and_stands_as_foreign(
    tmp_path: Path, analyse: Analyse, bundle: Bundle, video: Any, name: str
) -> None:
    recording = bright_between(tmp_path / "a.mp4", 5, 49, 60)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_bytes(b"mine")
    job = Job(recording, OutputFiles(tmp_path / "out", "a"), "a.mp4")
    assert standing(job, Wanted(bundle, RunOptions(video=video))).state == "foreign"
    assert standing(job, Wanted(bundle, RunOptions(video="none"))).state == "none"
    with pytest.raises(OutputError, match=name.replace(".", r"\.")):
        analyse(recording, video=video)
    assert everything_in(tmp_path / "out") == {name}


def test_results_whose_clips_are_gone_or_changed_are_not_whole(
    tmp_path: Path, analyse: Analyse, bundle: Bundle
) -> None:
    recording = bright_between(tmp_path / "a.mp4", 5, 49, 60)
    analyse(recording, video="clips")
    job = Job(recording, OutputFiles(tmp_path / "out", "a"), "a.mp4")
    wanted = Wanted(bundle, RunOptions(video="clips"))
    assert standing(job, wanted).state == "whole"
    clip = tmp_path / "out" / "a.alert-1.mp4"
    data = clip.read_bytes()
    clip.write_bytes(data[:-1])
    assert standing(job, wanted).state == "other"
    clip.unlink()
    assert standing(job, wanted).state == "unfinished"


# -- side by side ---------------------------------------------------------------------------------


def planes_of(path: Path, number: int) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    picture = frames[number].to_ndarray()
    height, width = frames[number].height, frames[number].width
    return [picture[:height, :width]]


@pytest.mark.parametrize("size", [(96, 128), (97, 131)], ids=["even", "odd"])
def test_side_by_side_shows_the_source_at_the_left_and_the_overlay_at_the_right(
    tmp_path: Path, analyse: Analyse, size: tuple[int, int]
) -> None:
    recording = make_video(
        tmp_path / "a.mkv", codec="ffv1", size=size, frames=40, audio="flac",
        picture_of=lambda k: picture((np.full(size, 200 if k > 4 else 50, np.uint8),
                                      *flat(k, size)[1:])),
    )  # fmt: skip
    result = analyse(recording, video="side-by-side")
    made = tmp_path / "out" / "a.side-by-side.mp4"
    assert times_of(made) == times_of(recording) and len(result.alerts) == 1
    half = size[1] + size[1] % 2
    (luma,) = planes_of(made, 30)
    assert luma.shape == (size[0] + size[0] % 2, 2 * half)
    left, right = luma[: size[0], : size[1]], luma[: size[0], half : half + size[1]]
    assert np.abs(left.astype(int) - 200).max() <= 6, "the source, without marks"
    assert np.abs(right.astype(int) - 200).max() > 60, "with marks"
    with av.open(str(made)) as container:
        assert len(container.streams.audio) == 1
        assert len(container.chapters()) >= 2
    record = record_of(tmp_path / "out")
    assert record["video"]["encoder"] == "x264"
    page = (tmp_path / "out" / "a.report.html").read_text()
    aspect = size[1] / size[0]
    assert f"--video-aspect: {2 * aspect:.5f}" in page and f"--aspect: {aspect:.5f}" in page


class Inverted:
    def draw(self, frame: Frame, *_: Any) -> Frame:
        return Frame(255 - frame.y, frame.u, frame.v, frame.pts, frame.time_base, frame.colour)


def frame_of(size: tuple[int, int]) -> Frame:
    return Frame(*flat(9, size), 3, Fraction(1, 25), Colour("bt709", False))


@pytest.mark.parametrize(
    ("source", "made"),
    [
        ((2160, 3840), (1152, 4096)),
        ((1080, 1920), (1080, 3840)),
        ((4320, 8192), (1080, 4096)),
        ((5001, 301), (4096, 492)),
    ],
)
def test_what_is_wider_or_higher_than_players_expect_is_scaled_down_alike(
    source: tuple[int, int], made: tuple[int, int]
) -> None:
    drawer = SideBySide(Inverted(), source)
    assert drawer.size == made and max(drawer.size) <= MOST_PX
    drawn = drawer.draw(frame_of(source), None, None, "NORMAL", 0.0)  # type: ignore[arg-type]
    assert drawn.size == made
    middle = made[1] // 2
    level = flat(9, (2, 2))[0][0, 0]
    assert np.all(drawn.y[:, :middle] == level) and np.all(drawn.y[:, middle:] == 255 - level)
    shape = made[0] / (made[1] / 2) / (source[0] / source[1])
    assert shape == pytest.approx(1, abs=0.02)


def test_a_scaled_side_by_side_says_so(
    tmp_path: Path, analyse: Analyse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ccdstream.videos.MOST_PX", 160)
    result = analyse(bright_between(tmp_path / "a.mp4", 1, 2, 5), video="side-by-side")
    assert any("scaled from 128 x 96 to 80 x 60" in note for note in result.notes)


def test_frames_of_a_gpu_are_brought_to_the_host_once_for_both_halves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With torch's CPU in place of the GPU, and an encoder of the GPU in mind."""
    from ccdstream.pipeline import Judged, _drawn

    brought = []
    whole = DeviceFrame.on_host

    def counted(self: DeviceFrame) -> Frame:
        brought.append(self)
        return whole(self)

    monkeypatch.setattr(DeviceFrame, "on_host", counted)
    frame = on_device(frame_of((48, 64)), torch.device("cpu"))
    judged = Judged(frame, 0.12, None, 1.0, (), None)  # type: ignore[arg-type]
    drawn = _drawn(SideBySide(Inverted(), (48, 64)), judged, None, "NORMAL", on_device=True)  # type: ignore[arg-type]
    assert isinstance(drawn, Frame) and drawn.size == (48, 128) and len(brought) == 1


# -- names ----------------------------------------------------------------------------------------


def test_videos_that_runs_left_are_no_recordings_of_a_folder(tmp_path: Path) -> None:
    made = (
        "a.overlay.mp4", "a.side-by-side.mp4", "a.chapters.mp4", "a.chapters.mkv",
        "a.alert-1.mp4", "a b.alert-12.mkv", "two\nlines.alert-3.mp4",
    )  # fmt: skip
    for name in made:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(VideoOpenError, match="no videos"):
        videos_in(tmp_path)
    recordings = ("alert-1.mp4", "chapters.mp4", "a.alert-x.mp4", "a.chapters.avi")
    for name in recordings:
        (tmp_path / name).write_bytes(b"x")
    assert sorted(path.name for path in videos_in(tmp_path)) == sorted(recordings)


def test_only_the_videos_of_the_recording_are_found(tmp_path: Path) -> None:
    for name in ("a.alert-10.mp4", "a.alert-2.mp4", "a.b.alert-1.mp4", "ab.alert-1.mp4"):
        (tmp_path / name).write_bytes(b"x")
    assert [p.name for p in videos_there(tmp_path, "a")] == ["a.alert-2.mp4", "a.alert-10.mp4"]
    assert videos_there(tmp_path, "a", "none") == []
    assert videos_there(tmp_path / "missing", "a") == []


def test_a_clip_beside_the_page_is_addressed_whatever_it_is_called(
    tmp_path: Path, analyse: Analyse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "EMBED_BYTES", 0)
    recording = bright_between(tmp_path / "made.mp4", 5, 49, 60).rename(
        tmp_path / "<b> #1?&\"'.mp4"
    )
    analyse(recording, video="clips")
    page = (tmp_path / "out" / f"{recording.stem}.report.html").read_text()
    assert 'src="./%3Cb%3E%20%231%3F%26%22%27.alert-1.mp4"' in page
    assert "<b> #1?" not in page and os.listdir(tmp_path / "out")
