import csv
import json
import math
import os
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from ccdstream.alert import Alert
from ccdstream.errors import OutputError
from ccdstream.frames import Fused
from ccdstream.report.alerts import (
    CSV_COLUMNS,
    AlertsCsv,
    AlertsEdl,
    AlertsJsonl,
    AlertsVtt,
    AlertWriter,
    alert_line,
    alert_title,
)
from ccdstream.report.audit import write_audit
from ccdstream.report.files import TextFile, write_text
from ccdstream.report.scores import COLUMNS, ScoresCsv
from ccdstream.timecode import timecode

TIME_BASE = Fraction(1, 12800)
ALERT = Alert(
    number=1,
    start_pts=9007199254740993,
    start_s=61.5,
    end_pts=9007199254740995,
    end_s=63.04,
    peak_pts=9007199254740994,
    peak_s=62.0000004,
    peak_score=0.9987654321,
    peak_raw=float(np.float32(0.1)),
    box=(10, 20, 30, 40),
    clock=4,
    frames=40,
    informative_frames=38,
    model="default-1",
)
BARE = replace(ALERT, number=2, box=None, clock=None, peak_raw=math.nan)


def write_alerts(writer: AlertWriter, *alerts: Alert) -> str:
    path = writer.path
    with writer:
        for alert in alerts:
            writer.write(alert)
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.0, "00:00:00.000"),
        (0.0004, "00:00:00.000"),
        (0.0006, "00:00:00.001"),
        (59.9996, "00:01:00.000"),
        (3661.25, "01:01:01.250"),
        (360000.0, "100:00:00.000"),
        (-0.0001, "00:00:00.000"),
        (-1.5, "-00:00:01.500"),
    ],
)
def test_timecode(seconds: float, expected: str) -> None:
    assert timecode(seconds) == expected


def test_jsonl_holds_one_documented_object_a_line(tmp_path: Path) -> None:
    text = write_alerts(AlertsJsonl(tmp_path / "a.jsonl", time_base=TIME_BASE), ALERT, BARE)
    first, second = (json.loads(line) for line in text.splitlines())
    assert first == {
        "schema": "ccdstream.alert/1",
        "alert": 1,
        "finding": "unusual against normal training frames",
        "start": "00:01:01.500",
        "end": "00:01:03.040",
        "peak": "00:01:02.000",
        "start_s": 61.5,
        "end_s": 63.04,
        "peak_s": 62.0,
        "duration_s": 1.54,
        "start_pts": 9007199254740993,
        "end_pts": 9007199254740995,
        "peak_pts": 9007199254740994,
        "time_base": "1/12800",
        "peak_score": 0.998765,
        "peak_raw": 0.100000001,
        "box": [10, 20, 30, 40],
        "clock": 4,
        "frames": 40,
        "informative_frames": 38,
        "open_at_end": False,
        "model": "default-1",
    }
    assert (second["box"], second["clock"], second["peak_raw"]) == (None, None, None)
    assert text.splitlines()[0] == alert_line(ALERT, TIME_BASE)


def test_the_docstring_of_the_schema_names_every_key() -> None:
    import ccdstream.report.alerts as module

    documented = set(re.findall(r"\w+", module.__doc__ or ""))
    assert set(json.loads(alert_line(ALERT, TIME_BASE))) <= documented


def test_csv_reads_back_with_exact_pts(tmp_path: Path) -> None:
    write_alerts(AlertsCsv(tmp_path / "a.csv", time_base=TIME_BASE), ALERT, BARE)
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as file:
        first, second = csv.DictReader(file)
    assert tuple(first) == CSV_COLUMNS
    assert int(first["start_pts"]) == ALERT.start_pts
    assert first["peak_score"] == "0.998765"
    assert np.float32(first["peak_raw"]) == np.float32(0.1)
    assert [first[key] for key in ("x", "y", "width", "height", "clock")] == [
        "10", "20", "30", "40", "4",
    ]  # fmt: skip
    assert [second[key] for key in ("x", "height", "clock", "peak_raw")] == [""] * 4


def test_csv_survives_commas_quotes_and_newlines_in_the_model_name(tmp_path: Path) -> None:
    odd = replace(ALERT, model='a,"b"\nc')
    write_alerts(AlertsCsv(tmp_path / "a.csv", time_base=TIME_BASE), odd)
    with open(tmp_path / "a.csv", newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["model"] == odd.model


def test_vtt_is_valid_and_cues_are_in_place(tmp_path: Path) -> None:
    text = write_alerts(AlertsVtt(tmp_path / "a.vtt", time_base=TIME_BASE), ALERT)
    assert text.startswith("WEBVTT\n\n")
    head, note, cue = text.rstrip("\n").split("\n\n")
    assert (head, note.splitlines()[0]) == ("WEBVTT", "NOTE")
    assert cue.splitlines() == [
        "alert-1",
        "00:01:01.500 --> 00:01:03.040",
        "Alert 1: unusual against normal training frames, at 4 o'clock, peak 0.998",
    ]


@pytest.mark.parametrize(
    ("start_s", "end_s", "times"),
    [
        (5.0, 5.0, "00:00:05.000 --> 00:00:05.001"),
        (5.0004, 5.0006, "00:00:05.000 --> 00:00:05.001"),
        (5.0025, 5.0026, "00:00:05.003 --> 00:00:05.004"),
        (-2.0, 1.0, "00:00:00.000 --> 00:00:01.000"),
        (-2.0, -1.0, "00:00:00.000 --> 00:00:00.001"),
    ],
    ids=[
        "one-frame",
        "under-a-millisecond",
        "rounds-to-nothing",
        "starts-before-0",
        "ends-before-0",
    ],
)
def test_vtt_cues_end_after_they_start(
    tmp_path: Path, start_s: float, end_s: float, times: str
) -> None:
    alert = replace(ALERT, start_s=start_s, end_s=end_s)
    assert times in write_alerts(AlertsVtt(tmp_path / "a.vtt", time_base=TIME_BASE), alert)


@pytest.mark.parametrize(
    ("clock", "words"),
    [(None, "frames, peak"), ("centre", "frames, in the centre, peak"), (12, ", at 12 o'clock,")],
)
def test_title_says_where(clock: int | str | None, words: str) -> None:
    assert words in alert_title(replace(ALERT, clock=clock))


def test_title_never_rounds_a_score_up_to_one() -> None:
    assert alert_title(replace(ALERT, peak_score=0.99999)).endswith("peak 0.999")


@pytest.mark.parametrize(
    ("rate", "pts", "first", "end"),
    [
        # 1/90000 s a tick: frames 25 to 74 at 25 a second, the out point after the last
        (Fraction(25), (90_000, 266_400), "00:00:01:00", "00:00:03:00"),
        (Fraction(30), (0, 0), "00:00:00:00", "00:00:00:01"),
        # an hour by the clock is 3.6 s less in timecode without drop frames
        (Fraction(30000, 1001), (324_000_000, 324_000_000), "00:59:56:12", "00:59:56:13"),
        (Fraction(25), (-900_000, -90_000), "00:00:00:00", "00:00:00:01"),
    ],
)
def test_edl_events_name_the_frames_and_end_after_the_last(
    tmp_path: Path, rate: Fraction, pts: tuple[int, int], first: str, end: str
) -> None:
    alert = replace(
        ALERT, number=7, start_pts=pts[0], start_s=pts[0] / 90_000, end_pts=pts[1],
        end_s=pts[1] / 90_000,
    )  # fmt: skip
    writer = AlertsEdl(
        tmp_path / "a.edl", time_base=Fraction(1, 90_000), rate=rate, clip="Käse\n1.mp4"
    )
    title, mode, blank, event, clip, locator = write_alerts(writer, alert).splitlines()
    assert (title, mode, blank) == ("TITLE: K_se_1.mp4", "FCM: NON-DROP FRAME", "")
    assert event.split() == ["007", "AX", "V", "C", first, end, first, end]
    assert clip == "* FROM CLIP NAME: K_se_1.mp4"
    assert locator.startswith(f"* LOC: {first} RED     Alert 7: unusual against normal training")


def test_an_edit_list_begins_anew_after_24_hours_and_says_so(tmp_path: Path) -> None:
    day_s = 86_400
    alert = replace(
        ALERT, start_pts=day_s * 90_000 - 90_000, start_s=day_s - 1.0, end_pts=(day_s + 2) * 90_000,
        end_s=day_s + 2.0,
    )  # fmt: skip
    writer = AlertsEdl(
        tmp_path / "a.edl", time_base=Fraction(1, 90_000), rate=Fraction(25), clip=""
    )
    *_, event, _, whole, locator = write_alerts(writer, alert).splitlines()
    assert event.split()[4:] == ["23:59:59:00", "00:00:02:01"] * 2
    assert whole == "* STREAM TIME: 23:59:59.000"
    assert locator.startswith("* LOC: 23:59:59:00")


@pytest.mark.parametrize("writer", [AlertsJsonl, AlertsCsv, AlertsVtt])
def test_words_are_those_of_anomaly_not_of_diagnosis(
    writer: type[AlertWriter], tmp_path: Path
) -> None:
    text = write_alerts(writer(tmp_path / "a", time_base=TIME_BASE), ALERT).lower()
    assert not any(word in text for word in ("polyp", "lesion", "detect", "cancer", "adenoma"))


def test_alerts_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    with AlertsJsonl(tmp_path / "a.jsonl", time_base=TIME_BASE) as writer:
        writer.write(ALERT)
        assert json.loads((tmp_path / "a.jsonl.part").read_text())["alert"] == 1
        assert not (tmp_path / "a.jsonl").exists()


FUSED = Fused(
    raw=float(np.float32(1 / 3)),
    calibrated=0.99,
    smoothed=0.123456789,
    find_heat=lambda: np.zeros((2, 2), np.float32),
    quality=("blurred", "too_dark"),
    valid_fraction=0.5,
)


def test_scores_hold_one_row_a_frame(tmp_path: Path) -> None:
    path = tmp_path / "case 12.scores.csv"
    with ScoresCsv(path, parts=["global", "local"]) as scores:
        scores.write(0, 9007199254740993, 1 / 3, FUSED, "UNCLEAR", np.float32([1.5, np.nan]))
        lost = replace(FUSED, raw=math.nan, calibrated=math.nan, quality=())
        scores.write(1, -5, 2.0, lost, "NORMAL", np.float32([0, 1e-9]))
    assert path.read_text() == (
        ",".join([*COLUMNS, "part_global", "part_local"]) + "\n"
        "0,9007199254740993,0.333333,0.333333343,0.990000,0.123457,UNCLEAR,blurred;too_dark,"
        "0.5000,1.5,\n"
        "1,-5,2.000000,,,0.123457,NORMAL,,0.5000,0,9.99999972e-10\n"
    )


def test_raw_scores_are_told_apart_to_the_last_bit_of_a_float32(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random(200).astype(np.float32)
    with ScoresCsv(tmp_path / "s.csv", parts=[]) as scores:
        for number, value in enumerate(values):
            scores.write(number, number, 0.0, replace(FUSED, raw=float(value)), "NORMAL")
    with open(tmp_path / "s.csv", newline="") as file:
        read = [np.float32(row["raw"]) for row in csv.DictReader(file)]
    np.testing.assert_array_equal(read, values)


def test_scores_refuse_the_wrong_number_of_parts(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="expected 2 parts, got 1"),
        ScoresCsv(tmp_path / "s.csv", parts=["a", "b"]) as scores,
    ):
        scores.write(0, 0, 0.0, FUSED, "NORMAL", [1.0])
    assert list(tmp_path.iterdir()) == []


def test_audit_of_the_same_run_is_the_same_bytes(tmp_path: Path) -> None:
    record = {"frames": {"decoded": 53, "corrupt": 0}, "model": "m", "input": Path("a") / "b.mp4"}
    write_audit(tmp_path / "1.json", record)
    write_audit(tmp_path / "2.json", dict(reversed(record.items())))
    text = (tmp_path / "1.json").read_text()
    assert text == (tmp_path / "2.json").read_text()
    assert text.endswith("}\n")
    assert list(json.loads(text)) == sorted(["frames", "input", "model", "schema"])


def test_audit_writes_what_json_does_not_know(tmp_path: Path) -> None:
    record = {
        "rate": Fraction(30000, 1001),
        "path": Path("x"),
        "count": np.int64(3),
        "loss": np.float32(0.5),
        "none": math.nan,
        "size": (576, 720),
        "counts": np.arange(2),
        "flags": {"b", "a"},
        "alert": replace(ALERT, model="m").box,
        "yes": np.True_,
        1: "key",
    }
    write_audit(tmp_path / "run.json", record)
    read = json.loads((tmp_path / "run.json").read_text())
    assert read == {
        "schema": "ccdstream.run/1",
        "rate": "30000/1001",
        "path": "x",
        "count": 3,
        "loss": 0.5,
        "none": None,
        "size": [576, 720],
        "counts": [0, 1],
        "flags": ["a", "b"],
        "alert": [10, 20, 30, 40],
        "yes": True,
        "1": "key",
    }


def test_audit_refuses_what_has_no_form(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"object has no form in run\.json"):
        write_audit(tmp_path / "run.json", {"thing": object()})
    assert list(tmp_path.iterdir()) == []


def test_text_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with TextFile(path) as file:
        file.write("one\n")
        assert not path.exists()
    assert path.read_text() == "one\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_an_error_leaves_nothing_and_keeps_what_was_there(
    tmp_path: Path, error: type[BaseException]
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), TextFile(path, overwrite=True) as file:
        file.write("new")
        raise error
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_existing_file_is_refused_before_any_work(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OutputError) as caught, TextFile(path):
        pytest.fail("entered")
    assert str(caught.value) == (
        f"{path} is there already. "
        "Replace it with --overwrite, or choose another place with --output."
    )
    write_text(path, "new", overwrite=True)
    assert path.read_text() == "new"


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with pytest.raises(OutputError, match="is there already"), TextFile(path) as file:
        file.write("mine")
        path.write_text("theirs")
    assert path.read_text() == "theirs"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_dangling_link_counts_as_existing(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="is there already"), TextFile(path):
        pass


@pytest.mark.parametrize(
    ("name", "says"),
    [("no/such/folder.txt", "No such file or directory"), ("x" * 255, "File name too long")],
    ids=["missing-folder", "long-name"],
)
def test_output_that_cannot_be_made_is_one_clear_line(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(OutputError, match=f"^cannot write .*: {says}\\. ") as caught:
        write_text(tmp_path / name, "text")
    assert "\n" not in str(caught.value)


def test_message_stays_on_one_line_whatever_the_name(tmp_path: Path) -> None:
    path = tmp_path / "two\nlines\x1b[31m\udcff"
    with pytest.raises(OutputError) as caught:
        write_text(path / "a.txt", "text")
    assert "\n" not in str(caught.value)
    assert "\\n" in str(caught.value)
    str(caught.value).encode("utf-8")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("size", [10, 1_000_000], ids=["at-the-end", "while-writing"])
def test_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.txt"
    (tmp_path / "a.txt.part").symlink_to("/dev/full")
    with (
        pytest.raises(OutputError, match=r"cannot write .*: No space left on device"),
        TextFile(path) as file,
    ):
        file.write("x" * size)
    assert list(tmp_path.iterdir()) == []


def test_odd_bytes_of_a_file_name_survive_in_json(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.mp4")
    write_audit(tmp_path / "run.json", {"input": name, "other": "ä"})
    text = (tmp_path / "run.json").read_text(encoding="utf-8")
    assert json.loads(text)["input"] == name
    assert "ä" in text
