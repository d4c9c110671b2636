"""`ccdstream run` with one recording, as scripts rely on it. To the toy, bright is unusual."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest

from ccdstream import NOTICE, pipeline, recording
from ccdstream.encode import VideoSink
from ccdstream.errors import OutputError
from tests.commands import (
    EARLIER,
    bright_between,
    everything_in,
    refusal,
    results_of,
    rows_of,
    start,
)

NO_ALERTS = "no alerts: nothing stayed unusual against normal training frames\n"


# --- what a run leaves, and what it says ---


def test_results_lie_in_a_folder_named_after_the_recording(
    run: Callable[..., Any], here: Path
) -> None:
    result = run("case12.mp4")
    assert result.exit_code == 0
    assert everything_in(here / "case12.ccdstream") == results_of("case12")
    # stdout is data: a short table
    header, row = result.stdout.splitlines()
    assert header.split() == ["alert", "start", "end", "peak", "score", "where"]
    assert row.split()[0] == "1" and row.split()[1].startswith("00:00:01.")
    # stderr is for people
    said = result.stderr.splitlines()
    assert said[0].startswith("case12.mp4: toy-") and said[0].endswith(" on cpu")
    assert said[1].startswith("70 frames from 00:00:00.000 to 00:00:02.760; ")
    assert said[2:] == [
        "report, for a browser: case12.ccdstream/case12.report.html",
        "also in case12.ccdstream/: case12.alerts.jsonl, case12.alerts.csv, case12.alerts.vtt, "
        "case12.alerts.edl, case12.scores.csv, case12.run.json, case12.overlay.mp4",
        NOTICE,
    ]


def test_a_recording_without_alerts_says_so_on_stdout(run: Callable[..., Any]) -> None:
    result = run("calm.mp4")
    assert result.stdout == NO_ALERTS


def test_json_is_the_alerts_and_nothing_else(run: Callable[..., Any], here: Path) -> None:
    result = run("case12.mp4", "--json", "-o", "out")
    assert result.exit_code == 0
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    filed = [json.loads(x) for x in (here / "out/case12.alerts.jsonl").read_text().splitlines()]
    assert lines == [{"recording": "case12.mp4", **alert} for alert in filed]
    assert len(lines) == 1 and lines[0]["schema"] == "ccdstream.alert/1"
    assert "frames/s" in result.stderr


@pytest.mark.parametrize(("flags", "lines"), [(["--quiet"], 0), (["--quiet", "--json"], 1)])
def test_quiet_leaves_only_what_was_asked_for(
    run: Callable[..., Any], flags: list[str], lines: int
) -> None:
    result = run("case12.mp4", *flags)
    assert (result.exit_code, result.stderr) == (0, "")
    assert len(result.stdout.splitlines()) == lines


def test_video_none_writes_all_but_the_video(run: Callable[..., Any], here: Path) -> None:
    assert run("case12.mp4", "-o", "out", "--video", "none").exit_code == 0
    assert everything_in(here / "out") == results_of("case12", video=False)


def test_an_alert_that_the_end_of_the_stretch_cuts_off_is_marked(
    run: Callable[..., Any], here: Path
) -> None:
    row = run("case12.mp4", "--to", "1.5").stdout.splitlines()[1]
    assert row.endswith("(open at the end)")
    assert float(rows_of(here / "case12.ccdstream/case12.alerts.csv")[0]["end_s"]) == 1.48
    assert run("case12.mp4", "--to", "1.5").stdout.splitlines()[1] == row, "also from the file"
    assert "open" not in run("case12.mp4", "-o", "all").stdout


def test_from_and_to_choose_a_stretch(run: Callable[..., Any], here: Path) -> None:
    assert run("case12.mp4", "-o", "out", "--from", "0:01", "--to", "1.4s").exit_code == 0
    seconds = [float(row["seconds"]) for row in rows_of(here / "out/case12.scores.csv")]
    assert seconds == pytest.approx([1 + k / 25 for k in range(10)])


def test_a_stretch_without_frames_is_one_clear_line(run: Callable[..., Any], here: Path) -> None:
    before = everything_in(here)
    assert refusal(run("case12.mp4", "--from", "1:00")) == (
        "case12.mp4 has no frame from 60 s: its frames lie between 0.000 s and 2.760 s."
    )
    assert everything_in(here) == before


@pytest.mark.parametrize(
    "arguments", [["nothere.mp4"], ["text.mp4"], ["case12.mp4", "--from", "1:00"]], ids=" ".join
)
def test_a_recording_that_cannot_be_read_has_its_error_and_nothing_else(
    run: Callable[..., Any], here: Path, arguments: list[str]
) -> None:
    (here / "text.mp4").write_text("no video" * 50)
    result = run(*arguments)
    assert refusal(result) and len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


@pytest.mark.parametrize("batch", ["1", "64"])
def test_any_batch_will_do(run: Callable[..., Any], here: Path, batch: str) -> None:
    assert run("calm.mp4", "--batch", batch, "--video", "none").exit_code == 0
    assert len(rows_of(here / "calm.ccdstream/calm.scores.csv")) == 12


# --- results that exist, or cannot be written ---


def test_an_existing_result_is_refused_and_replaced_if_asked(
    run: Callable[..., Any], here: Path
) -> None:
    out = here / "calm.ccdstream"
    out.mkdir()
    (out / "calm.alerts.vtt").write_text("mine")
    assert "calm.alerts.vtt is there already. Replace it with --overwrite" in refusal(
        run("calm.mp4")
    )
    assert everything_in(out) == {"calm.alerts.vtt"}
    assert run("calm.mp4", "--overwrite").exit_code == 0
    assert (out / "calm.alerts.vtt").read_text().startswith("WEBVTT")
    assert everything_in(out) == results_of("calm")


def test_what_is_done_already_is_left_alone_with_a_word(
    run: Callable[..., Any], here: Path
) -> None:
    assert run("calm.mp4", "--video", "none").exit_code == 0
    before = {path: path.stat().st_mtime_ns for path in (here / "calm.ccdstream").iterdir()}
    again = run("calm.mp4", "--video", "none")
    assert (again.exit_code, again.stdout) == (0, NO_ALERTS)
    assert again.stderr.splitlines() == [
        "calm.mp4 is done already",
        "report, for a browser: calm.ccdstream/calm.report.html",
        "also in calm.ccdstream/: calm.alerts.jsonl, calm.alerts.csv, calm.alerts.vtt, "
        "calm.alerts.edl, calm.scores.csv, calm.run.json",
        NOTICE,
    ]
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("flags", [[], ["--json"], ["--json", "--quiet"], ["--quiet"]], ids=str)
def test_stdout_of_a_second_run_is_that_of_the_first(
    run: Callable[..., Any], flags: list[str]
) -> None:
    first, second = (run("case12.mp4", *flags) for _ in range(2))
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert second.stdout == first.stdout and bool(first.stdout) == (flags != ["--quiet"])
    assert ("is done already" in second.stderr) == ("--quiet" not in flags)


def test_a_second_run_names_what_its_results_are_to_be_read_with(
    run: Callable[..., Any], here: Path
) -> None:
    (here / "case12.ccdstream").mkdir()
    (here / "case12.ccdstream/case12.coco.json").write_text("{}")
    first, second = (run("case12.mp4", "--quiet") for _ in range(2))
    assert first.stderr == f"warning: case12.mp4: case12.coco.json {EARLIER}\n"
    assert (second.stderr, second.stdout) == (first.stderr, "")


def test_results_of_other_options_are_refused_with_which(
    run: Callable[..., Any], here: Path
) -> None:
    assert run("calm.mp4", "--also", "coco").exit_code == 0
    before = {path: path.stat().st_mtime_ns for path in (here / "calm.ccdstream").iterdir()}
    assert refusal(run("calm.mp4", "--video", "none", "--to", "0.2", "--keep-metadata")) == (
        "calm.ccdstream/calm.run.json is there already: its results are of other options (video: "
        "overlay there, none asked for; also: coco there, nothing asked for; keep-metadata: no "
        "there, yes asked for; to: nothing there, 0.2 s asked for). Replace these results with "
        "--overwrite, or choose another place with --output."
    )
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_was_not_done_to_the_end_is_done_again(run: Callable[..., Any], here: Path) -> None:
    assert run("calm.mp4").exit_code == 0
    (here / "calm.ccdstream/calm.alerts.csv").unlink()
    assert run("calm.mp4").exit_code == 0
    assert everything_in(here / "calm.ccdstream") == results_of("calm")


@pytest.mark.parametrize("old", [False, True], ids=["new", "overwrite"])
def test_a_late_failure_leaves_all_results_or_none(
    run: Callable[..., Any], here: Path, monkeypatch: pytest.MonkeyPatch, old: bool
) -> None:
    """The overlay is whole when the last file fails, and still must not appear without it."""
    out = here / "calm.ccdstream"
    if old:
        assert run("calm.mp4").exit_code == 0
    before = {name: (out / name).read_bytes() for name in everything_in(out)}

    def full(path: Path, *_: object, **__: object) -> None:
        raise OutputError(f"cannot write {path}: No space left on device.")

    monkeypatch.setattr(recording, "write_audit", full)
    message = refusal(run("calm.mp4", "--overwrite", "--to", "0.2"))
    assert message == "cannot write calm.ccdstream/calm.run.json: No space left on device."
    assert {name: (out / name).read_bytes() for name in everything_in(out)} == before


def test_a_name_that_cannot_be_given_takes_back_the_others(
    run: Callable[..., Any], here: Path
) -> None:
    blocked = here / "calm.ccdstream" / "calm.run.json"
    blocked.mkdir(parents=True)
    assert "is a folder" in refusal(run("calm.mp4", "--overwrite"))
    assert everything_in(here / "calm.ccdstream") == set()
    assert [p.name for p in blocked.parent.iterdir()] == ["calm.run.json"]


# --- wrong usage ---


@pytest.mark.parametrize(
    "arguments",
    [
        ["--batch", "0"],
        ["--batch", "65"],
        ["--batch", "x"],
        ["--jobs", "0"],
        ["--video", "both"],
        ["--device", "tpu"],
        ["--from", "soon"],
        ["--to", "[/bold]"],
        ["--from", "-1"],
        ["--from", "2", "--to", "1"],
        ["--from", "1", "--to", "0:01"],
        ["--from", "1", "--also", "coco"],
        ["--no-such-option"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2_and_does_nothing(
    run: Callable[..., Any], here: Path, arguments: list[str]
) -> None:
    before = everything_in(here)
    result = run("case12.mp4", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Error" in result.stderr and "Traceback" not in result.stderr
    assert everything_in(here) == before


# --- interruptions ---


@pytest.fixture
def signals_at(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Send this process signals when the overlay gets its n-th frame."""

    def arrange(frame: int, *signals: signal.Signals) -> None:
        write, written = VideoSink.write, [0]

        def interrupted(self: VideoSink, picture: Any) -> None:
            written[0] += 1
            if written[0] == frame:
                for one in signals:
                    signal.raise_signal(one)
            write(self, picture)

        monkeypatch.setattr(VideoSink, "write", interrupted)

    return arrange


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_ends_the_input_and_finishes_every_file(
    run: Callable[..., Any],
    here: Path,
    signals_at: Callable[..., None],
    number: signal.Signals,
) -> None:
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    signals_at(5, number)
    result = run("case12.mp4", "-o", "out")
    assert result.exit_code == 130
    assert "stopping: the files are being finished" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("interrupted: ")
    assert everything_in(here / "out") == results_of("case12")
    rows = rows_of(here / "out/case12.scores.csv")
    assert 5 <= len(rows) < 70
    assert [int(row["frame"]) for row in rows] == list(range(len(rows)))
    with av.open("out/case12.overlay.mp4") as overlay:
        assert len(list(overlay.decode(video=0))) == len(rows)
    record = json.loads((here / "out/case12.run.json").read_text())
    assert record["interrupted"] and record["counts"]["frames"] == len(rows)
    assert handlers == {n: signal.getsignal(n) for n in handlers}


@pytest.mark.parametrize(
    "signals",
    [
        [signal.SIGINT, signal.SIGINT],
        [signal.SIGTERM, signal.SIGTERM],
        [signal.SIGINT, signal.SIGTERM],
    ],
    ids=["int-int", "term-term", "int-term"],
)
def test_the_second_signal_aborts_and_leaves_nothing(
    run: Callable[..., Any],
    here: Path,
    signals_at: Callable[..., None],
    signals: list[signal.Signals],
) -> None:
    signals_at(5, *signals)
    result = run("case12.mp4", "-o", "out")
    assert (result.exit_code, result.stdout) == (130, "")
    assert "interrupted: what was not finished is gone" in result.stderr
    assert "Traceback" not in result.stderr
    assert everything_in(here / "out") == set()


def test_a_third_signal_does_not_disturb_the_tidying_up(
    run: Callable[..., Any],
    here: Path,
    signals_at: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rmtree = shutil.rmtree

    def impatient(*arguments: Any, **options: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        rmtree(*arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", impatient)
    signals_at(5, signal.SIGINT, signal.SIGINT)
    assert run("case12.mp4", "-o", "out").exit_code == 130
    assert list((here / "out").iterdir()) == []


def test_a_signal_before_the_first_frame_still_leaves_whole_files(
    run: Callable[..., Any], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_fuser = recording.make_fuser

    def interrupted(bundle: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return make_fuser(bundle)

    monkeypatch.setattr(recording, "make_fuser", interrupted)
    assert run("calm.mp4", "-o", "out").exit_code == 130
    assert everything_in(here / "out") == results_of("calm")
    assert len(rows_of(here / "out/calm.scores.csv")) == 1


def test_alerts_are_told_as_they_close_and_a_real_ctrl_c_leaves_whole_files(
    tmp_path: Path, shelf: Path
) -> None:
    """The process as a shell sees it: the first alert comes while the recording is at work."""
    bright_between(tmp_path / "long.mp4", 5, 49, 1500)
    with start(*("run", "long.mp4", "--json", "--model", shelf / "toy"), cwd=tmp_path) as process:
        assert process.stdout is not None and process.stderr is not None
        first = json.loads(process.stdout.readline())
        assert first["alert"] == 1
        assert process.poll() is None
        assert not (tmp_path / "long.ccdstream" / "long.run.json").exists()
        process.send_signal(signal.SIGINT)
        rest, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert rest == b"" and b"Traceback" not in said
    assert everything_in(tmp_path / "long.ccdstream") == results_of("long")
    record = json.loads((tmp_path / "long.ccdstream/long.run.json").read_text())
    assert record["interrupted"] and 30 <= record["counts"]["frames"] < 1500
    with av.open(str(tmp_path / "long.ccdstream/long.overlay.mp4")) as overlay:
        assert len(list(overlay.decode(video=0))) == record["counts"]["frames"]


# --- names ---


@pytest.mark.parametrize(
    "name",
    [
        "a b.mp4",
        "Kolon 大腸 é😀.mp4",
        "-x.mp4",
        "[/bold].mp4",
        "[red]x[/red].mp4",
        "%03d.mp4",
        "proto:x.mp4",
        "two\nlines.mp4",
        " blank .mp4",
        os.fsdecode(b"\xff\xfe.mp4"),
        "x" * 236 + ".mp4",
        "no-suffix",
    ],
)
def test_a_name_is_only_a_name(run: Callable[..., Any], here: Path, name: str) -> None:
    Path(name).parent.mkdir(exist_ok=True)  # "[/bold]" has a slash
    Path("calm.mp4").rename(name)
    before = everything_in(here)
    result = run("--", name)
    assert result.exit_code == 0
    stem = Path(name).stem
    results = {f"{stem}.ccdstream/{file}" for file in results_of(stem)}
    assert everything_in(here) - before == results
    assert len(result.stderr.splitlines()) == 5  # as for any other name
    assert len(result.stdout.splitlines()) == 1
    record = json.loads((here / f"{stem}.ccdstream/{stem}.run.json").read_text("utf-8"))
    assert record["counts"]["frames"] == 12


@pytest.mark.parametrize("length", [238, 243, 248, 251])
def test_a_name_with_no_room_for_its_suffixes_is_one_clear_line(
    run: Callable[..., Any], here: Path, length: int
) -> None:
    name = "x" * length + ".mp4"
    Path("calm.mp4").rename(name)
    before = everything_in(here)
    assert "File name too long" in refusal(run(name, "-o", "out"))
    assert everything_in(here) == before


def test_a_message_about_a_strange_name_is_one_line(run: Callable[..., Any]) -> None:
    for name in ("two\nlines.mp4", "\x1b[31mred.mp4", os.fsdecode(b"\xff.mp4"), "x" * 300):
        assert "cannot open" in refusal(run("--", name))


def test_a_message_about_a_strangely_named_bundle_is_one_line(run: Callable[..., Any]) -> None:
    result = run("calm.mp4", "--model", "two\nlines\x1b[31m")
    assert "no bundle at two lines\\x1b[31m." in refusal(result)
    assert len(result.stderr.splitlines()) == 1


# --- bugs ---


def test_a_bug_keeps_its_traceback(
    run: Callable[..., Any], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(pipeline, "measure", broken)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run("calm.mp4")
    assert everything_in(here / "calm.ccdstream") == set()
