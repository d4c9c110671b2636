"""`ccdstream live` and `devices`, as their users call them."""

import json
import signal
import socket
import time
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import pytest

from ccdstream.console import Bar
from ccdstream.live.board import Board, Request
from ccdstream.live.cli import _seconds, _size, _stem
from ccdstream.live.cli import _Told as Told
from ccdstream.live.cli import _warnings as live_warnings
from ccdstream.live.latency import StageDelays
from ccdstream.live.record import Recorder
from ccdstream.live.records import Event
from ccdstream.live.session import Counts, LiveOptions, LiveResult, run_live
from tests.bundles import write_toy_bundle
from tests.commands import (
    SIZE,
    bright_between,
    ccdstream,
    everything_in,
    outcome,
    refusal,
    rows_of,
    start,
)
from tests.disks import SmallFile

RESULTS = {
    f"live.{ending}"
    for ending in (
        "scores.csv", "alerts.jsonl", "alerts.csv", "alerts.vtt", "events.jsonl", "report.html",
        "run.json",
    )
}  # fmt: skip


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "toy"
    write_toy_bundle(
        folder,
        alert={
            "enter": 0.99, "leave": 0.9, "min_duration_s": 0.0, "merge_gap_s": 0.2,
            "refractory_s": 0.0, "time_constant_s": 0.0,
        },
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second and a half: dark, but for its last frame, which no busy machine drops."""
    return bright_between(tmp_path_factory.mktemp("clip") / "case.mp4", 37, 37, 38)


def events_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "live.events.jsonl").read_text().splitlines()]


def live(toy: Path, device: object, output: Path, *more: object) -> Any:
    """A session whose bound no machine misses."""
    return ccdstream(
        "live", "--device", device, "-o", output, "--model", toy, "--max-latency", "60s", *more
    )


def test_a_recording_at_its_own_rate_leaves_every_file(
    toy: Path, clip: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = live(toy, clip, out, "--pace", "--record", "case.mp4", "--record-source")
    assert result.exit_code == 0, result.stderr
    videos = {"case.overlay.000.mp4", "case.source.000.mp4", "clips/alert-001.mp4"}
    assert everything_in(out) == RESULTS | videos
    record = json.loads((out / "live.run.json").read_text())
    assert record["schema"] == "ccdstream.live/1"
    assert record["source"]["mode"]["size"] == list(SIZE)
    assert record["ended_by"] == "end of the source"
    assert set(record["outputs"]) == (RESULTS | videos) - {"live.run.json"}
    counts, dropped = record["counts"], record["dropped"]
    assert counts["captured"] == 38 and counts["alerts"] == 1
    assert counts["analysed"] + dropped["slot"] == 38, "every frame is analysed, or counted"
    assert len(rows_of(out / "live.scores.csv")) == counts["analysed"]
    assert record["delays_s"]["capture_to_overlay"]["count"] <= counts["shown"]
    assert record["model"]["id"].startswith("toy-") and record["failures"] == {}
    with av.open(str(out / "case.source.000.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) == 38 - dropped["recorder"]
    kinds = [event["kind"] for event in events_of(out)]
    assert kinds[0] == "session_started" and kinds[-1] == "session_ended"
    assert kinds.count("connected") == 1  # a recording may have begun before that is told
    assert kinds.count("alert_opened") == kinds.count("alert_closed") == 1
    assert counts["pauses"] == 0 and "pause" not in result.stderr
    assert f"source recording: {38 - dropped['recorder']} of 38 frames captured" in result.stderr


def test_what_was_negotiated_is_printed_and_alerts_are_data(
    toy: Path, clip: Path, tmp_path: Path
) -> None:
    result = live(toy, clip, tmp_path / "out", "--pace")
    height, width = SIZE
    assert f"case.mp4: {width}x{height}, 25 frames/s, yuv420p" in result.stderr
    assert "overlay recording" not in result.stderr
    assert "nothing older than 60000 ms is shown" in result.stderr, "not the bound by default"
    head, row = result.stdout.splitlines()
    assert head.startswith("alert  start") and row.split()[0] == "1"
    assert "Not a medical device" in result.stderr
    quiet = live(toy, clip, tmp_path / "quiet", "--pace", "--quiet", "--json")
    assert quiet.stderr == ""
    (line,) = quiet.stdout.splitlines()
    assert json.loads(line)["alert"] == 1


def test_what_happens_is_told_as_json_lines_on_request(
    toy: Path, clip: Path, tmp_path: Path
) -> None:
    result = live(toy, clip, tmp_path / "out", "--pace", "--log-json")
    told = [json.loads(line) for line in result.stderr.splitlines()]
    assert told == events_of(tmp_path / "out")


def test_clips_alone_can_be_asked_for(toy: Path, clip: Path, tmp_path: Path) -> None:
    live(toy, clip, tmp_path / "out", "--pace", "--pre", 0, "--post", 0)
    assert everything_in(tmp_path / "out") == RESULTS | {"clips/alert-001.mp4"}


def test_it_ends_by_itself_after_the_duration(toy: Path, tmp_path: Path) -> None:
    """Which counts from the first frame, however long the source takes to open."""
    source = "lavfi:testsrc2=size=128x96:rate=25"
    result = live(toy, source, tmp_path / "out", "--duration", "0.5s", "--timeout", "60s")
    assert result.exit_code == 0, result.stderr
    record = json.loads((tmp_path / "out" / "live.run.json").read_text())
    assert record["ended_by"] == "duration" and record["counts"]["captured"] > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_ctrl_c_and_sigterm_finish_every_file(
    toy: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "out"
    process = start(
        *("live", "--device", "lavfi:color=c=white:size=128x96:rate=25", "-o", out),
        *("--model", toy, "--record", "case", "--max-latency", "60s"),
        text=True,
    )
    with process:
        scores = out / "live.scores.csv"
        for _ in range(1200):
            if scores.exists() and len(scores.read_text().splitlines()) > 5:
                break
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert json.loads((out / "live.run.json").read_text())["ended_by"] == "stopped"
    with av.open(str(out / "case.overlay.000.mp4")) as video:
        assert sum(1 for _ in video.decode(video=0)) > 3
    assert events_of(out)[-1]["kind"] == "session_ended"
    assert "It ended because it was stopped." in (out / "live.report.html").read_text()
    assert not [name for name in everything_in(out) if name.endswith(".part")]


def test_a_source_that_dies_leaves_a_gap_with_its_cause_and_comes_back(
    toy: Path, tmp_path: Path
) -> None:
    """A sender that hangs up twice in mid-stream."""
    out = tmp_path / "out"
    clip = bright_between(tmp_path / "stream.ts", 0, 100, 101, format="mpegts").read_bytes()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        process = start(
            *("live", "--device", f"tcp://127.0.0.1:{server.getsockname()[1]}", "-o", out),
            *("--model", toy, "--max-latency", "60s"),
            text=True,
        )
        with process:
            try:
                for _ in range(2):
                    sender, _ = server.accept()
                    with sender:
                        sender.sendall(clip[: len(clip) * 3 // 4])
                third, _ = server.accept()  # it has tried again, and gets nothing
                third.close()
            finally:
                process.send_signal(signal.SIGTERM)
                _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    record = json.loads((out / "live.run.json").read_text())
    assert record["counts"]["connections"] == 2, stderr
    first, last = record["gaps"]
    assert first["cause"] and first["end_s"] > first["start_s"] > 0
    assert last["end_s"] is None, "it was still lost at the end"
    closed = [json.loads(line) for line in (out / "live.alerts.jsonl").read_text().splitlines()]
    assert closed[0]["end_s"] <= first["start_s"] + 1e-6, "no alert goes on across the gap"
    assert closed[1]["start_s"] >= first["end_s"] - 1e-6


def test_a_full_disk_ends_the_recording_the_session_goes_on_and_the_exit_is_1(
    toy: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = partial(SmallFile, room=2000)
    monkeypatch.setitem(Recorder.__init__.__kwdefaults__, "open_file", small)
    out = tmp_path / "out"
    result = live(toy, clip, out, "--pace", "--record", "case")
    assert result.exit_code == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "No space left on device" in errors[0]
    assert result.stderr.count("No space left") == 1, "said once, as it happens"
    assert "not whole: overlay recording" in result.stderr.partition(errors[0])[2]
    written = json.loads((out / "live.run.json").read_text())
    assert written["counts"]["analysed"] + written["dropped"]["slot"] == 38
    assert "No space left" in next(iter(written["failures"].values()))
    assert "recorder_failed" in [event["kind"] for event in events_of(out)]
    recorded = written["recorded"]["overlay recording"]
    assert recorded["failed"] and recorded["until_s"] is None
    assert written["dropped"]["recorder"] == recorded["given"] == written["counts"]["shown"] > 0
    shown = recorded["given"]
    said = f"overlay recording: nothing was kept; {shown} of {shown} frames shown are missing"
    assert said in result.stderr
    page = " ".join((out / "live.report.html").read_text().split())
    assert "shown, and missing from it" in page


def test_a_full_disk_is_said_when_it_is_known_at_the_end_only_and_also_when_quiet(
    toy: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The room is used up by what is written while the files are finished."""
    small = partial(SmallFile, room=2000)
    monkeypatch.setitem(Recorder.__init__.__kwdefaults__, "open_file", small)
    monkeypatch.setattr("ccdstream.live.record.KEYFRAME_S", 60.0)  # so all is written at the end
    out = tmp_path / "out"
    result = live(toy, clip, out, "--pace", "--record", "case", "--quiet")
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: overlay recording: cannot write ") and "No space left" in line


def live_unheard(
    toy: Path, clip: Path, out: Path, *more: object, **unwritable: str
) -> tuple[int, bytes, bytes]:
    """A session whose stdout or stderr cannot be written."""
    session = ("live", "--device", clip, "--pace", "-o", out, "--model", toy, *more)
    return outcome(*session, "--max-latency", "60s", cwd=out.parent, **unwritable)


def test_a_disk_that_is_gone_at_the_end_is_told_and_the_exit_is_1(
    toy: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def unplugged(*arguments: Any, **more: Any) -> LiveResult:
        result = run_live(*arguments, **more)
        out.rename(tmp_path / "elsewhere")
        return result

    monkeypatch.setattr("ccdstream.live.session.run_live", unplugged)
    result = live(toy, clip, out, "--pace")
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert f"error: results: cannot list {out}: No such file" in result.stderr


@pytest.mark.parametrize("why", ["full", "gone"])
def test_alerts_that_cannot_be_printed_end_no_session_and_the_exit_is_1(
    toy: Path, clip: Path, tmp_path: Path, why: str
) -> None:
    out = tmp_path / "out"
    status, _, said = live_unheard(toy, clip, out, "--json", stdout=why)
    record = json.loads((out / "live.run.json").read_text())
    assert status == 1, said
    assert record["counts"]["captured"] == 38 and record["ended_by"] == "end of the source"
    assert list(record["failures"]) == ["standard output"] and record["tracebacks"] == {}
    assert "part_failed" in [event["kind"] for event in events_of(out)]
    errors = [line for line in said.decode().splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "cannot write to the standard output" in errors[0]
    assert len((out / "live.alerts.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("why", ["full", "gone", "closed"])
def test_a_session_goes_on_where_nobody_can_be_told(
    toy: Path, clip: Path, tmp_path: Path, why: str
) -> None:
    out = tmp_path / "out"
    status, data, _ = live_unheard(toy, clip, out, "--json", stderr=why)
    record = json.loads((out / "live.run.json").read_text())
    assert (status, record["failures"]) == (0, {})
    assert record["counts"]["captured"] == 38 and record["ended_by"] == "end of the source"
    assert [json.loads(line)["alert"] for line in data.splitlines()] == [1]


@pytest.mark.parametrize("why", ["full", "gone"])
def test_json_lines_on_stderr_that_cannot_be_written_are_a_failure(
    toy: Path, clip: Path, tmp_path: Path, why: str
) -> None:
    out = tmp_path / "out"
    status, _, _ = live_unheard(toy, clip, out, "--log-json", stderr=why)
    record = json.loads((out / "live.run.json").read_text())
    assert (status, list(record["failures"])) == (1, ["standard error"])
    assert record["counts"]["captured"] == 38
    assert events_of(out)[-1]["kind"] == "session_ended"


def broken(*_: object, **__: object) -> Any:
    raise ValueError("a bug")


@pytest.mark.parametrize("more", [[], ["--log-json"]], ids=["to people", "as JSON"])
@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("pictures of the report", "ccdstream.report.gallery.jpeg_of"),
        ("overlay recording", "ccdstream.live.record.planar"),
        ("contents of the report", "ccdstream.live.report.Story.event"),
        ("report.html", "ccdstream.live.report._tiles"),
    ],
)
def test_a_bug_beside_the_session_ends_nothing_and_is_told_with_its_traceback(
    toy: Path,
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    where: str,
    more: list[str],
) -> None:
    monkeypatch.setattr(where, broken)
    out = tmp_path / "out"
    result = live(toy, clip, out, "--pace", "--record", "case", *more)
    assert result.exit_code == 1
    record = json.loads((out / "live.run.json").read_text())
    assert record["counts"]["analysed"] + record["dropped"]["slot"] == 38
    assert record["ended_by"] == "end of the source" and record["counts"]["alerts"] == 1
    assert list(record["failures"]) == [name] == list(record["tracebacks"])
    assert "ValueError: a bug" in record["failures"][name]
    assert "in broken" in record["tracebacks"][name]
    if more:
        told = [json.loads(line) for line in result.stderr.splitlines()]
        assert [e for e in told if "in broken" in e.get("traceback", "")]
    else:
        (error,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
        assert error.startswith(f"error: {name}: ") and "live.run.json" in error
        assert f"not whole: {name}, as said above" in result.stderr
        assert "Traceback" not in result.stderr
    if name == "report.html":
        assert not (out / "live.report.html").exists()
        assert "report, for a browser" not in result.stderr
    else:
        assert f"{name}: a fault in ccdstream" in (out / "live.report.html").read_text()
        assert "in broken" in (out / "live.events.jsonl").read_text()


def test_pixels_that_are_not_square_keep_their_shape_everywhere(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    source = "lavfi:testsrc2=size=128x96:rate=25:duration=1,setsar=64/45"
    result = live(toy, source, out, "--record", "case", "--record-source")
    assert result.exit_code == 0, result.stderr
    assert "128x96, pixels 64/45, 25 frames/s" in result.stderr
    record = json.loads((out / "live.run.json").read_text())
    assert record["source"]["mode"]["sample_aspect_ratio"] == "64/45"
    assert "--aspect: 1.89630;" in (out / "live.report.html").read_text()
    for kind in ("overlay", "source"):
        with av.open(str(out / f"case.{kind}.000.mp4")) as video:
            assert video.streams.video[0].sample_aspect_ratio == Fraction(64, 45)
        assert not (out / f"case.{kind}.001.mp4").exists()


def test_marks_are_told_to_people(
    toy: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [[Request("mark", "look here", 0.0)], [Request("mark")]]
    monkeypatch.setattr(Board, "requests", lambda _: asked.pop() if asked else [])
    result = live(toy, clip, tmp_path / "out", "--pace")
    assert "mark: 00:00:00.000\n" in result.stderr
    assert "mark: 00:00:00.000, look here\n" in result.stderr


@pytest.mark.parametrize(
    ("device", "message"),
    [
        (["/dev/video63"], "there is no camera"),
        (["srt://127.0.0.1:9"], "does not know srt://"),
        (["nowhere://127.0.0.1:9"], "does not know nowhere://"),
        (["missing.mp4", "--pace"], "nothing called missing.mp4"),
        (["text.mp4", "--pace"], "text.mp4"),
        (["lavfi:no_such_filter"], "Check its filters"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_wrong_source_is_told_before_the_model_is_loaded_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: list[str], message: str
) -> None:
    def open_model(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("ccdstream.live.cli.open_model", open_model)
    monkeypatch.chdir(tmp_path)
    Path("text.mp4").write_text("no video at all")
    result = ccdstream("live", "--device", *device)
    assert message in refusal(result) and result.stdout == ""
    assert "results:" not in result.stderr
    assert everything_in(tmp_path) == {"text.mp4"} and len(list(tmp_path.iterdir())) == 1


def test_a_source_that_cannot_be_had_as_asked_leaves_nothing(
    toy: Path, clip: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    told = refusal(live(toy, clip, out, "--pace", "--size", "1920x1080"))
    assert "1920x1080" in told
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("kept")
    refusal(live(toy, clip, out, "--pace", "--size", "1920x1080"))
    assert everything_in(out) == {"mine.txt"}


def test_results_of_an_earlier_session_are_never_replaced(
    toy: Path, clip: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    live(toy, clip, out, "--pace")
    before = (out / "live.run.json").read_bytes()
    assert "Choose a new folder with --output." in refusal(live(toy, clip, out, "--pace"))
    assert (out / "live.run.json").read_bytes() == before


def test_without_a_picture_the_exit_is_1_and_a_password_is_neither_printed_nor_written(
    toy: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = live(
        toy, "rtsp://user:s3cret@127.0.0.1:9/x", out, "--duration", "0.5s", "--timeout", "60s"
    )
    assert result.exit_code == 1, result.stderr
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "no picture came from rtsp://user:***@127.0.0.1:9/x: connection refused." in error
    assert "not whole" not in result.stderr
    said = result.stdout + result.stderr
    for file in out.iterdir():
        said += file.read_text()
    assert "127.0.0.1" in said and "s3cret" not in said


def test_a_recording_without_pace_is_refused(toy: Path, clip: Path, tmp_path: Path) -> None:
    assert "--pace" in refusal(live(toy, clip, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_window_needs_a_screen(
    toy: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    told = refusal(live(toy, clip, tmp_path / "out" / "deep", "--pace", "--window"))
    assert "no screen" in told and "--view" in told
    assert not (tmp_path / "out").exists()


def test_the_address_of_the_page_is_printed_also_when_quiet(
    toy: Path, clip: Path, tmp_path: Path
) -> None:
    result = live(toy, clip, tmp_path / "out", "--pace", "--view", "--port", 0, "--quiet")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.startswith("watch: http://127.0.0.1:")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--size", "big"], "--size is WIDTHxHEIGHT"),
        (["--rate", "0"], "--rate is frames a second"),
        (["--rate", "1/0"], "--rate is frames a second"),
        (["--max-latency", "soon"], "a time with its unit"),
        (["--timeout", "0"], "--timeout must be"),
        (["--max-latency", "300"], "--max-latency is a time with its unit, 300ms or 0.3s, not"),
        (["--record", "a/b.mp4"], "--record takes a name"),
        (["--record", ".mp4"], "--record takes a name"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_opened(
    clip: Path, tmp_path: Path, options: list[str], says: str
) -> None:
    result = ccdstream("live", "--device", clip, "--pace", "-o", tmp_path / "out", *options)
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("100ms", 0.1), ("2s", 2), ("10m", 600), ("1.5h", 5400), ("90", 90), ("00:01:30", 90)],
)
def test_times_are_read_in_the_units_that_people_write(text: str, seconds: float) -> None:
    assert _seconds("--x", text) == pytest.approx(seconds)


def test_sizes_are_width_by_height_and_names_may_have_an_ending() -> None:
    assert _size("720x576") == (576, 720)
    assert _stem("case.mp4") == _stem("case") == "case"


def test_devices_lists_cameras_with_what_to_pass_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from ccdstream.live.camera import Camera, CameraMode

    modes = (
        CameraMode("mjpeg", (576, 720), (576, 720), (Fraction(50), Fraction(25))),
        CameraMode("yuyv422", (120, 160), (1080, 1920), (Fraction(30), Fraction(5)), True),
    )
    found = [Camera("/dev/video7", "A capture card", modes), Camera("1", "x", (), "it is busy")]
    monkeypatch.setattr("ccdstream.live.camera.list_cameras", lambda: found)
    told = ccdstream("devices").stdout
    assert "/dev/video7  A capture card" in told and "it is busy" in told
    assert "720x576" in told and "50, 25 frames/s" in told
    assert "160x120 to 1920x1080" in told and "30 to 5 frames/s" in told
    first, _ = ccdstream("devices", "--json").stdout.splitlines()
    assert json.loads(first)["modes"][0]["rates"] == ["50/1", "25/1"]
    monkeypatch.setattr("ccdstream.live.camera.list_cameras", list)
    assert "no cameras found" in ccdstream("devices").stderr


@pytest.mark.parametrize(("plain", "said"), [(4, False), (40, True)])
def test_delays_of_few_pictures_are_told_with_a_warning(plain: int, said: bool) -> None:
    result = LiveResult(StageDelays(("x",)), Counts(shown=100, shown_plain=plain))
    warnings = live_warnings(result, LiveOptions(max_latency_s=0.1))
    assert bool(warnings) is said
    assert all(f"{plain} of 100 frames" in w and "longer than 100 ms" in w for w in warnings)


@pytest.mark.parametrize(
    ("set_by_s", "says"), [(0.5, ""), (3600, "ahead by 3600 s"), (-60, "back by 60 s")]
)
def test_a_clock_that_was_set_meanwhile_is_a_warning(set_by_s: float, says: str) -> None:
    result = LiveResult(StageDelays(("x",)), started_wall_s=1e9, wall_s=100.0)
    result.ended_wall_s = 1e9 + 100.0 + set_by_s
    warnings = live_warnings(result, LiveOptions())
    assert len(warnings) == bool(says) and says in "".join(warnings)


def test_the_page_is_told_of_another_size_with_the_shape_of_its_pixels(tmp_path: Path) -> None:
    board = Board()
    told = Told(
        Bar("frame"), print, board, "x", tmp_path,
        bound_s=0.1, silent=True, as_json=False, log_json=False,
    )  # fmt: skip
    about = {"rate": 25.0, "pixel_format": "h264", "through": "FFmpeg udp"}
    about |= {"size": (576, 720), "sample_aspect_ratio": "16/15"}
    told.event(Event("connected", 0.0, 0.0, about))
    sizes = {"before": (576, 720), "after": (720, 1280)}
    told.event(Event("size_changed", 0.0, 1.0, {**sizes, "sample_aspect_ratio": "1"}))
    mode = "1280x720, 25 frames/s, h264, through FFmpeg udp"
    assert board.facts() == {"mode": mode, "sample_aspect_ratio": 1.0}
