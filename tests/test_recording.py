"""A recording and its results, with the toy bundle whose score is brightness: bright alerts."""

import csv
import json
import os
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from ccdstream import recording
from ccdstream.bundle import Bundle
from ccdstream.engine.base import BuildOptions, EngineOutput
from ccdstream.engine.cuda import HostQueue
from ccdstream.engine.parity import check_parity
from ccdstream.engine.select import SelectedEngine, open_engine
from ccdstream.engine.torch_cuda import make_engine
from ccdstream.errors import OutputError, VideoDecodeError, VideoOpenError
from ccdstream.frames import Frame
from ccdstream.recording import OutputFiles, RunOptions, run
from ccdstream.render import Overlay
from tests.commands import analysed, bright_between, rows_of
from tests.videos import make_video, packets_of

TICKS = Fraction(1, 25)


def times(path: Path) -> list[Fraction]:
    with av.open(str(path)) as container:
        return [f.pts * Fraction(f.time_base) for f in container.decode(video=0)]  # type: ignore[operator]


def test_a_bright_stretch_becomes_one_alert_with_its_times_in_every_file(
    tmp_path: Path, bundle: Bundle, engine: SelectedEngine
) -> None:
    video = bright_between(tmp_path / "case.mp4", 20, 69, 100, audio="aac")
    result = analysed(video, tmp_path / "out", bundle, engine)
    assert (result.frames, len(result.alerts), result.warnings) == (100, 1, [])
    alert = result.alerts[0]
    assert 20 / 25 <= alert.start_s <= 46 / 25  # smoothing opens it late
    assert 69 / 25 <= alert.end_s <= 75 / 25
    out = tmp_path / "out"
    line = json.loads((out / "case.alerts.jsonl").read_text())
    assert Fraction(line["time_base"]) * line["start_pts"] == pytest.approx(alert.start_s)
    assert len((out / "case.alerts.csv").read_text().splitlines()) == 2
    assert "-->" in (out / "case.alerts.vtt").read_text()
    rows = rows_of(out / "case.scores.csv")
    assert [int(row["frame"]) for row in rows] == list(range(100))
    assert {row["state"] for row in rows} >= {"NORMAL", "ALERT"}
    record = json.loads((out / "case.run.json").read_text())
    assert record["counts"]["frames"] == 100
    assert record["model"]["id"] == bundle.model_id
    assert sorted(p.name for p in out.iterdir()) == sorted(record["outputs"])


def test_the_overlay_has_the_times_sound_and_chapters_of_the_run(
    tmp_path: Path, bundle: Bundle, engine: SelectedEngine
) -> None:
    pts = [*range(0, 30), *range(40, 80), *range(85, 100)]  # variable frame rate
    video = bright_between(
        tmp_path / "vfr.mkv", 30, 84, len(pts), pts=pts, time_base=TICKS, audio="aac"
    )
    analysed(video, tmp_path / "out", bundle, engine)
    overlay = tmp_path / "out" / "vfr.overlay.mp4"
    assert times(overlay) == times(video)
    with av.open(str(overlay)) as container:
        assert len(container.streams.audio) == 1
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
        titles = [chapter["metadata"]["title"] for chapter in container.chapters()]
    assert any("unusual against normal training frames" in title for title in titles)


def test_the_result_does_not_depend_on_the_batch(
    tmp_path: Path, bundle: Bundle, engine: SelectedEngine
) -> None:
    video = bright_between(tmp_path / "case.mp4", 10, 29, 41)
    for batch in (1, 3, 16):
        analysed(video, tmp_path / f"b{batch}", bundle, engine, batch=batch, video="none")
    texts = {(tmp_path / f"b{b}" / "case.scores.csv").read_text() for b in (1, 3, 16)}
    assert len(texts) == 1


def test_a_run_leaves_the_cores_to_its_stages_and_none_to_threads_of_opencv(
    bundle: Bundle, engine: SelectedEngine, tmp_path: Path
) -> None:
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(2)
        analysed(bright_between(tmp_path / "a.mp4", 1, 1, 3), tmp_path, bundle, engine)
        assert cv2.getNumThreads() == 1
    finally:
        cv2.setNumThreads(before)


def test_a_stretch_keeps_the_clock_of_the_recording_and_its_overlay_starts_at_zero(
    tmp_path: Path, bundle: Bundle, engine: SelectedEngine
) -> None:
    video = bright_between(tmp_path / "case.mp4", 30, 60, 75)
    result = analysed(video, tmp_path / "out", bundle, engine, start_s=1.0, end_s=2.0)
    assert result.frames == 25
    rows = rows_of(tmp_path / "out" / "case.scores.csv")
    assert float(rows[0]["seconds"]) == 1.0
    assert times(tmp_path / "out" / "case.overlay.mp4")[0] == 0
    record = json.loads((tmp_path / "out" / "case.run.json").read_text())
    assert record["overlay_offset_s"] == 1.0


def test_an_existing_result_is_refused_before_any_work_and_replaced_if_asked(
    tmp_path: Path, bundle: Bundle, engine: SelectedEngine
) -> None:
    video = bright_between(tmp_path / "case.mp4", 1, 2, 5)
    out = tmp_path / "out"
    out.mkdir()
    (out / "case.alerts.vtt").write_text("mine")
    with pytest.raises(OutputError, match=r"case\.alerts\.vtt"):
        analysed(video, out, bundle, engine)
    assert [p.name for p in out.iterdir()] == ["case.alerts.vtt"]
    analysed(video, out, bundle, engine, overwrite=True)
    assert (out / "case.alerts.vtt").read_text().startswith("WEBVTT")


def test_stopping_ends_the_input_and_finishes_every_file(
    tmp_path: Path, bundle: Bundle, engine: SelectedEngine
) -> None:
    video = bright_between(tmp_path / "case.mp4", 1, 2, 60, audio="aac")
    asked = iter(range(1000))
    result = run(
        video,
        OutputFiles(tmp_path / "out", "case"),
        bundle=bundle,
        engine=engine,
        options=RunOptions(),
        stopped=lambda: next(asked) >= 20,
    )
    assert result.interrupted
    assert result.frames == 20
    assert len(times(tmp_path / "out" / "case.overlay.mp4")) == 20
    sound = packets_of(tmp_path / "out" / "case.overlay.mp4", "audio")
    assert 0.7 < sound[-1][0] <= 0.8, "no sound of what was not analysed"
    assert json.loads((tmp_path / "out" / "case.run.json").read_text())["interrupted"]


def test_a_change_while_the_recording_is_hashed_is_told(
    tmp_path: Path, bundle: Bundle, engine: SelectedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its results would pass for those of what it became."""
    video = bright_between(tmp_path / "case.mp4", 1, 2, 5)
    sha256_of = recording.sha256_of

    def changed_meanwhile(path: Path) -> str:
        os.utime(path, ns=(1, 1))
        return sha256_of(path)

    monkeypatch.setattr(recording, "sha256_of", changed_meanwhile)
    result = analysed(video, tmp_path / "out", bundle, engine, video="none")
    assert result.changed and "the recording changed" in result.warnings[0]


@pytest.mark.parametrize("name", ["photo.png", "photo.jpg", "photo.mp4"])
def test_a_still_picture_is_no_recording_whatever_it_is_called(
    tmp_path: Path, bundle: Bundle, engine: SelectedEngine, name: str
) -> None:
    ending = ".png" if name.endswith("png") else ".jpg"
    written, data = cv2.imencode(ending, np.full((96, 128, 3), 200, np.uint8))
    assert written
    (tmp_path / name).write_bytes(data.tobytes())
    with pytest.raises(VideoOpenError, match=f"{name} is a still picture. Pass a recording; ccds"):
        analysed(tmp_path / name, tmp_path / "out", bundle, engine)
    assert not (tmp_path / "out").exists()


class Failing:
    """An engine that fails at its third call."""

    name, device, version, reason = "failing", "cpu", "0", "a test"
    on_device = None

    def __init__(self, error: Exception) -> None:
        self._error = error
        self._calls = 0

    def run(self, frames: np.ndarray, valid: np.ndarray) -> EngineOutput:
        self._calls += 1
        if self._calls == 3:
            raise self._error
        n = len(frames)
        zeros = np.zeros((n, 64, 64), np.float32)
        return EngineOutput(np.zeros(n, np.float32), zeros, np.zeros((n, 2), np.float32))


@pytest.mark.parametrize("stage", ["decode", "view", "score", "render", "encode"])
def test_a_failing_stage_ends_the_run_with_its_error_and_leaves_no_file(
    tmp_path: Path,
    bundle: Bundle,
    engine: SelectedEngine,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
) -> None:
    video = bright_between(tmp_path / "case.mp4", 1, 2, 30)
    error = VideoDecodeError(f"{stage} broke")

    def broken(*_: object, **__: object) -> None:
        raise error

    chosen: object = engine
    if stage == "decode":
        from ccdstream.decode import VideoSource

        whole = VideoSource.__iter__

        def ends_early(self: VideoSource) -> Iterator[Frame]:
            yield from islice(whole(self), 7)
            raise error

        monkeypatch.setattr(VideoSource, "__iter__", ends_early)
    elif stage == "view":
        monkeypatch.setattr("ccdstream.pipeline.measure", broken)
    elif stage == "score":
        chosen = Failing(error)
    elif stage == "render":
        monkeypatch.setattr(Overlay, "draw", broken)
    else:
        monkeypatch.setattr("ccdstream.encode.VideoSink.write", broken)
    with pytest.raises(VideoDecodeError, match=f"{stage} broke"):
        run(
            video,
            OutputFiles(tmp_path / "out", "case"),
            bundle=bundle,
            engine=chosen,  # type: ignore[arg-type]
            options=RunOptions(),
        )
    assert list((tmp_path / "out").iterdir()) == []


# -- the routes -----------------------------------------------------------------------------------


def test_a_run_with_an_engine_that_takes_frames_on_a_device_leaves_the_same_results(
    bundle: Bundle, tmp_path: Path
) -> None:
    """The torch engine on the CPU in place of a GPU: the whole way, from file to files."""
    video = make_video(tmp_path / "a.mp4", frames=30, audio="aac")
    torch_engine = make_engine(bundle, HostQueue(), BuildOptions("fp32", (1, 4, 8)))
    on_device = SelectedEngine(torch_engine, check_parity(torch_engine, bundle), ())
    assert on_device.on_device is torch_engine
    results = {}
    for name, engine in (("host", open_engine(bundle, device="cpu")), ("device", on_device)):
        files = OutputFiles(tmp_path / name, "a")
        results[name] = run(video, files, bundle=bundle, engine=engine, options=RunOptions())
    assert results["device"].frames == results["host"].frames == 30
    assert results["device"].warnings == results["host"].warnings
    rows = {
        name: list(csv.DictReader((tmp_path / name / "a.scores.csv").read_text().splitlines()))
        for name in ("host", "device")
    }
    for one, other in zip(rows["device"], rows["host"], strict=True):
        for column in one:
            if column in ("frame", "pts", "seconds", "state", "quality"):
                assert one[column] == other[column]
            else:
                assert float(one[column]) == pytest.approx(float(other[column]), abs=2e-3)
    record = json.loads((tmp_path / "device/a.run.json").read_text())
    assert record["video"] == {
        "decoder": "software", "decoder_notes": [], "encoder": "x264", "encoder_note": "",
        "notes": [], "clips": [],
    }  # fmt: skip
    assert record["engine"]["name"] == "torch"


def test_results_are_named_after_the_recording() -> None:
    files = OutputFiles(Path("x"), "case.12")
    assert [p.name for p in files.all(RunOptions(video="none"))] == [
        "case.12.alerts.jsonl",
        "case.12.alerts.csv",
        "case.12.alerts.vtt",
        "case.12.alerts.edl",
        "case.12.scores.csv",
        "case.12.run.json",
        "case.12.report.html",
    ]
    assert files.all(RunOptions())[-1].name == "case.12.overlay.mp4"


def test_an_overlay_of_an_earlier_run_is_not_taken_for_one_of_this(
    bundle: Bundle, tmp_path: Path
) -> None:
    video = make_video(tmp_path / "a.mp4")
    engine = open_engine(bundle, device="cpu")
    files = OutputFiles(tmp_path / "out", "a")
    run(video, files, bundle=bundle, engine=engine, options=RunOptions())
    again = RunOptions(video="none", overwrite=True)
    result = run(video, files, bundle=bundle, engine=engine, options=again)
    assert [w for w in result.warnings if "a.overlay.mp4 is of an earlier run" in w]


@pytest.mark.parametrize(
    ("later_s", "audio", "zero_s"),
    [(0, "aac", 0), (Fraction(2, 5), "aac", 0), (10, "aac", 10), (10, None, 10)],
    ids=["at-0", "soon", "late", "late-and-silent"],
)
def test_the_overlay_of_a_recording_that_begins_late_begins_at_zero(
    tmp_path: Path,
    bundle: Bundle,
    engine: SelectedEngine,
    later_s: Fraction,
    audio: str | None,
    zero_s: int,
) -> None:
    first = int(later_s * 25)
    sound = {} if audio is None else {"audio": audio, "audio_start_s": float(later_s)}
    video = bright_between(
        tmp_path / "case.mkv", 20, 69, 100, pts=range(first, first + 100), time_base=TICKS, **sound
    )
    result = analysed(video, tmp_path / "out", bundle, engine)
    overlay = tmp_path / "out" / "case.overlay.mp4"
    assert times(video)[0] == later_s
    assert times(overlay) == [time - zero_s for time in times(video)]
    record = json.loads((tmp_path / "out" / "case.run.json").read_text())
    assert record["overlay_offset_s"] == zero_s
    assert float(rows_of(tmp_path / "out" / "case.scores.csv")[0]["seconds"]) == float(later_s)
    if audio is not None:
        assert heard_from(overlay) == pytest.approx(heard_from(video) - zero_s, abs=0.001)
    with av.open(str(overlay)) as container:
        alert = next(c for c in container.chapters() if "Alert 1" in c["metadata"]["title"])
    began_s = float(alert["start"] * alert["time_base"])
    assert began_s == pytest.approx(result.alerts[0].start_s - zero_s, abs=0.001)


def test_sound_before_the_first_frame_is_kept_in_its_place(
    tmp_path: Path, bundle: Bundle, engine: SelectedEngine
) -> None:
    pts = range(250, 300)
    video = bright_between(tmp_path / "a.mkv", 1, 1, 50, pts=pts, time_base=TICKS, audio="aac")
    assert heard_from(video) < 0.1
    analysed(video, tmp_path / "out", bundle, engine)
    overlay = tmp_path / "out" / "a.overlay.mp4"
    assert times(overlay)[0] == 10
    assert heard_from(overlay) == pytest.approx(heard_from(video), abs=0.001)


def heard_from(path: Path) -> float:
    """When the first sound of a file is heard, in seconds."""
    with av.open(str(path)) as container:
        packet = next(p for p in container.demux(audio=0) if p.size and p.pts is not None)
        return float(packet.pts * packet.time_base)  # type: ignore[operator]
