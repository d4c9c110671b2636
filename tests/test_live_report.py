"""The page that a live session leaves: what stands in it, and what someone in a browser sees."""

import errno
import json
import os
import re
import time
from collections.abc import Iterator
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import pytest

from ccdstream import NOTICE
from ccdstream.alert import Alert
from ccdstream.bundle import Bundle
from ccdstream.engine.select import SelectedEngine, open_engine
from ccdstream.live import report as module
from ccdstream.live.audit import live_record
from ccdstream.live.journal import wall_clock
from ccdstream.live.latency import StageDelays
from ccdstream.live.records import Event, Mode, Wanted
from ccdstream.live.report import Story, write_live_page
from ccdstream.live.session import STAGES, Counts, LiveOptions, LiveResult
from ccdstream.render import with_heat
from ccdstream.report.files import TextFile
from ccdstream.report.gallery import Gallery
from tests.browser import CHROMIUM, Tab, chromium
from tests.bundles import write_toy_bundle
from tests.commands import bright_between, ccdstream, everything_in
from tests.test_gallery import FIELD, frame, fused
from tests.test_report_page import EVIL, NOW, Read, data_of, mouse, opened, read

in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
BEGAN_S = 1_700_000_000.0
"""`time.time()` at stream time 0."""
QUICK = {
    "enter": 0.99, "leave": 0.9, "min_duration_s": 0.0, "merge_gap_s": 0.2,
    "refractory_s": 0.0, "time_constant_s": 0.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "toy"
    write_toy_bundle(folder, alert=QUICK)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_toy_bundle(tmp_path_factory.mktemp("bundle") / "toy", alert=QUICK)


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> SelectedEngine:
    return open_engine(bundle, device="cpu")


def alert(number: int, start_s: float, end_s: float, **more: Any) -> Alert:
    values = {
        "start_pts": 0, "end_pts": 0, "peak_pts": round(10 * start_s), "peak_s": start_s,
        "peak_score": 0.995, "peak_raw": 1.0, "box": None, "clock": None, "frames": 5,
        "informative_frames": 5, "model": "toy",
    }  # fmt: skip
    return Alert(number=number, start_s=start_s, end_s=end_s, **(values | more))


class Played:
    """A session of 10 frames a second, without a camera: the test says what happens."""

    def __init__(self, bundle: Bundle, engine: SelectedEngine, folder: Path) -> None:
        self.story = Story(lambda stream_s: BEGAN_S + stream_s)
        self.gallery = Gallery(start_s=0.0, heated=with_heat)
        self.result = LiveResult(StageDelays(STAGES), Counts(), started_wall_s=BEGAN_S)
        self.result.ended = "stopped"
        self.mode: Mode | None = Mode((48, 64), Fraction(10), "mjpeg", "a test")
        self.source = "a camera"
        self.warnings: list[str] = []
        self.set_by_s = 0.0
        """How far the machine's clock was put forward during the session."""
        self.path = folder / "live.report.html"
        self._kit = bundle, engine

    def frames(self, start_s: float, end_s: float, score: float = 0.5, *quality: str) -> None:
        counts = self.result.counts
        for k in range(round(10 * start_s), round(10 * end_s)):
            state = "ALERT" if score > 0.99 else "UNCLEAR" if quality else "NORMAL"
            shown = frame(k)
            if score > 0.99:
                self.gallery.peak_so_far(shown, FIELD, fused(score))
            self.gallery.add(shown, k / 10, fused(score, *quality), state)
            counts.captured += 1
            counts.analysed += 1
            counts.informative += not quality
            self.result.uninformative.update(quality)
            self.result.delays.add("capture_to_result", 0.07)
            self.result.stream_s = k / 10

    def close(self, closed: Alert) -> None:
        self.result.counts.alerts += 1
        self.story.alert(closed)
        self.gallery.close(closed)

    def happens(self, kind: str, at_s: float, **data: Any) -> None:
        self.result.counts.gaps += kind == "gap_opened"
        self.story.event(Event(kind, BEGAN_S + at_s, at_s, data))

    def page(self, lasted_s: float) -> Read:
        """What it leaves, when it ends."""
        bundle, engine = self._kit
        self.result.wall_s, self.result.ended_wall_s = lasted_s, BEGAN_S + lasted_s
        self.result.ended_wall_s += self.set_by_s
        record = live_record(
            self.result,
            command=["live"],
            source=self.source,
            wanted=Wanted(),
            mode=self.mode,
            bundle=bundle,
            engine=engine,
            options=LiveOptions(),
            gaps=[],
            warnings=self.warnings,
            outputs=[],
            recording=None,
        )
        write_live_page(self.path, record, self.story, self.gallery)
        return read(self.path)


@pytest.fixture
def played(bundle: Bundle, engine: SelectedEngine, tmp_path: Path) -> Played:
    return Played(bundle, engine, tmp_path)


def words(page: Read) -> str:
    """What is to be read, on one line."""
    return " ".join(page.text.split())


def says(page: Read, text: str) -> bool:
    """Whether it does, spaces aside: between two cells there may be none."""
    return "".join(text.split()) in "".join(page.text.split())


def clock_at(stream_s: float) -> str:
    return f"{datetime.fromtimestamp(BEGAN_S + stream_s):%H:%M:%S}"


# -- a whole session ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def session(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a paced recording of 3 s that is bright from 1 s to 1.6 s."""
    folder = tmp_path_factory.mktemp("session")
    clip = bright_between(folder / "case.mp4", 25, 40, 75)
    result = ccdstream(
        "live", "--device", clip, "--pace", "-o", folder / "out", "--model", toy,
        "--max-latency", "60s", "--record", "case", "--record-source", "--pre", 1, "--post", 1,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert f"report, for a browser: {folder / 'out' / 'live.report.html'}" in result.stderr
    return folder / "out" / "live.report.html"


def test_the_page_of_a_session_says_what_its_record_says(session: Path) -> None:
    page, record = read(session), json.loads((session.parent / "live.run.json").read_text())
    text = words(page)
    assert "live.report.html" in record["outputs"]
    assert page.text.count(NOTICE) == 2
    for word in ("polyp", "detect"):
        assert word not in text.lower()
    counts, source = record["counts"], record["source"]
    for fact in (
        source["name"], source["mode"]["through"], record["model"]["id"], record["started"],
        record["ended"], record["versions"]["openvino"], record["ccdstream"],
        "It ended because the source ended.",
        f"{counts['analysed']} of {counts['captured']} frames",
        *(each["sha256"] for each in record["model"]["files"].values()),
    ):  # fmt: skip
        assert fact in text
    known = record["delays_s"]["capture_to_result"]
    assert f"{1000 * known['p99']:.0f} ms p99, capture to result" in text


def test_an_alert_has_its_pictures_its_clip_and_its_time_by_both_clocks(session: Path) -> None:
    page = read(session)
    (found,) = map(json.loads, (session.parent / "live.alerts.jsonl").read_text().splitlines())
    start, end = (datetime.fromisoformat(found[key]) for key in ("start_wall", "end_wall"))
    said = words(page)
    assert f"Wall clock{start:%H:%M:%S}" in said and f"{end:%H:%M:%S}" in said
    (card,) = [tag for tag in page.attributes("li") if tag.get("class") == "card"]
    assert card["id"] == "alert-1"
    (clip,) = page.attributes("video")
    assert clip["src"] == "./clips/alert-001.mp4"
    assert (session.parent / "clips" / "alert-001.mp4").is_file()
    assert sum(tag.get("class") == "peak" for tag in page.attributes("button")) == 1


def test_every_file_of_a_recording_is_linked_with_its_time(session: Path) -> None:
    page = read(session)
    links = {str(tag["href"]) for tag in page.attributes("a") if str(tag["href"])[0] == "."}
    recorded = {p.name for p in session.parent.glob("case.*.mp4")}
    assert links == {f"./{name}" for name in recorded} | {"./clips/alert-001.mp4"}
    assert "the session ended" in words(page)


def test_the_record_says_why_frames_tell_nothing(session: Path) -> None:
    counts = json.loads((session.parent / "live.run.json").read_text())["counts"]
    unclear = counts["analysed"] - counts["informative"]
    assert max(counts["uninformative_by_reason"].values()) <= unclear
    assert sum(counts["uninformative_by_reason"].values()) >= unclear


# -- what only a session has ----------------------------------------------------------------------


def test_a_gap_is_drawn_and_listed_with_its_cause_and_no_score_stands_in_it(
    played: Played,
) -> None:
    played.frames(0, 4)
    played.happens("gap_opened", 6.0, start_s=3.9, cause="no frame for 2.0 s")
    played.happens("gap_closed", 9.0, start_s=3.9, end_s=9.0, cause="no frame for 2.0 s")
    played.frames(9, 12)
    page = played.page(12)
    data = data_of(played.path)
    assert data["gaps"] == [[3.9, 9.0]]
    at = [data["span"] * k / len(data["state"]) for k in range(len(data["state"]))]
    inside = {state for s, state in zip(at, data["state"], strict=True) if 4.0 < s < 8.9}
    assert inside == {"-"}
    assert 'class="gap"' in played.path.read_text() and "Hatched: no signal" in page.text
    assert says(page, f"0:03.90 {clock_at(3.9)} 5.1 s no frame for 2.0 s")
    assert says(page, "Signal lost 5.1 s 1 time")
    assert says(page, "Analysed 6.8 s 70 of 70 frames"), "the time without a picture is not in it"


def test_a_signal_that_is_still_lost_at_the_end_is_lost_up_to_there(played: Played) -> None:
    played.frames(0, 4)
    played.happens("gap_opened", 5.9, start_s=3.9, cause="unplugged")
    page = played.page(10)
    data = data_of(played.path)
    assert data["gaps"] == [[3.9, 10.0]] and data["end"] == 10.0
    assert data["span"] == pytest.approx(10.0, abs=0.1), "the line goes to the end"
    assert says(page, "Signal lost 6.1 s 1 time")


def test_a_signal_that_is_lost_after_the_very_first_picture_is_not_lost_before_it(
    played: Played,
) -> None:
    played.frames(0, 0.1)
    played.happens("gap_opened", 2.0, start_s=0.0, cause="unplugged")
    page = played.page(60)
    assert data_of(played.path)["gaps"] == [[0.0, 60.0]]
    assert says(page, "Signal lost 1:00 1 time")
    assert not says(page, "before the first picture")


def test_where_heat_came_too_late_a_band_lies_under_the_line(played: Played) -> None:
    played.frames(0, 8)
    for kind, at_s in (("lag_opened", 1.0), ("lag_closed", 3.0), ("lag_opened", 6.0)):
        played.happens(kind, at_s)
    page = played.page(8)
    text = played.path.read_text()
    bands = re.findall(r'<rect class="lag" x="([0-9.]+)%" y="132" width="([0-9.]+)%"', text)
    assert [float(left) for left, _ in bands] == pytest.approx([100 / 8, 600 / 8], abs=1)
    assert [float(width) for _, width in bands] == pytest.approx([200 / 8, 190 / 8], abs=1)
    assert "Band below: shown without heat, which came too late." in page.text


def test_a_session_without_a_picture_says_so(played: Played) -> None:
    played.mode = None
    played.happens("gap_opened", 0.0, start_s=0.0, cause="connection refused")
    page = played.page(3)
    text = words(page)
    assert "no picture came from the source" in text and "No frame was analysed." in text
    assert "connection refused" in text and "before the first picture" in text
    assert says(page, "Signal lost 3.0 s 1 time")
    assert "Nothing stayed" not in text


def test_marks_and_snapshots_are_listed_with_notes_and_files_and_stand_in_the_line(
    played: Played,
) -> None:
    played.frames(0, 10)
    played.happens("mark", 2.5, note="caecum")
    played.happens("snapshot", 4.0, file="snapshots/snapshot-1.jpg")
    played.happens("snapshot", 5.0, failed="there is no picture")
    page = played.page(10)
    text = words(page)
    assert says(page, f"0:02.50 {clock_at(2.5)} Mark caecum")
    assert "Snapshot failed: there is no picture" in text
    assert [t["href"] for t in page.attributes("a")] == ["./snapshots/snapshot-1.jpg"]
    assert sum(tag.get("class") == "flag" for tag in page.attributes("g")) == 3
    seeks = [t["data-seek"] for t in page.attributes("button") if t.get("class") == "at"]
    assert seeks == ["2.500000", "4.000000", "5.000000"]


def test_what_could_not_be_written_is_a_warning_at_the_top(played: Played) -> None:
    played.frames(0, 1)
    played.result.failures["overlay recording"] = "cannot write x.mp4: No space left on device."
    played.warnings = ["this machine is too slow"]
    played.happens(
        "recorder_failed", 0.9, recorder="x", reason="full", file="x.000.mp4", kept_to_s=0.5
    )
    page = played.page(1)
    text = words(page)
    assert "2 warnings overlay recording: cannot write x.mp4: No space left on device." in text
    assert text.index("this machine is too slow") < text.index("Score over time")
    assert "x.000.mp4" in text and "it failed; kept until 0:00.5" in text


def test_drops_and_delays_are_those_of_the_session(played: Played) -> None:
    played.frames(0, 5)
    counts = played.result.counts
    counts.captured, counts.dropped_slot, counts.dropped_late = 200, 30, 7
    played.result.delays.add("capture_to_overlay", 0.0884)
    page = played.page(5)
    assert says(page, "Of 200 frames that were captured")
    assert says(page, "15.0 % 30") and says(page, "3.5 % 7")
    assert says(page, "To the overlay 88 88 88 88 1")


# -- bounds ---------------------------------------------------------------------------------------


def test_a_session_of_many_hours_keeps_the_first_of_what_repeats_and_counts_the_rest(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_LISTED", 3)
    played.frames(0, 4)
    for k in range(10):
        played.happens("mark", k / 10)
        played.happens("gap_opened", k, start_s=k / 10, cause="x")
        played.happens("gap_closed", k, start_s=k / 10, end_s=k / 10 + 0.05, cause="x")
        played.happens(
            "segment_closed", k, file=f"a.{k:03d}.mp4", start_s=k, end_s=k + 1, bytes=1, cause="end"
        )
    story = played.story
    assert [len(each.kept) for each in (story.moments, story.gaps, story.segments)] == [3, 3, 3]
    page = played.page(4)
    assert words(page).count("The first 3; live.events.jsonl has 7 more.") == 3
    assert "10 times" in words(page)
    assert story.lost_s == pytest.approx(0.5), "those that are not listed count"


def test_of_many_alerts_the_highest_are_shown_and_all_are_counted(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_ALERTS", 3)
    played.frames(0, 10)
    for k, score in enumerate((0.995, 0.999, 0.991, 0.998, 0.992, 0.997), 1):
        played.close(alert(k, k, k + 0.5, peak_score=score))
        played.happens("clip_written", k, alert=k, file=f"clips/{k}.mp4", start_s=k, end_s=k + 1)
    assert set(played.story.clips) == set(played.story.alerts) == set(played.story.clocks)
    page = played.page(10)
    cards = [tag["id"] for tag in page.attributes("li") if tag.get("class") == "card"]
    assert cards == ["alert-2", "alert-4", "alert-6"]
    assert says(page, "Alerts 6 Time in alert 3.0 s")
    assert says(page, "The 3 with the highest peaks are shown")


# -- what comes from outside ----------------------------------------------------------------------


def test_names_notes_and_causes_are_text_and_nothing_else(played: Played) -> None:
    played.source = EVIL
    played.mode = Mode((48, 64), Fraction(10), EVIL, EVIL)
    played.warnings = [EVIL]
    played.result.failures["journal"] = EVIL
    played.frames(0, 4)
    played.happens("mark", 1.0, note=EVIL)
    played.happens("snapshot", 1.0, note=EVIL, file=EVIL)
    played.happens("gap_opened", 3.0, start_s=2.0, cause=EVIL)
    played.happens("gap_closed", 3.0, start_s=2.0, end_s=3.0, cause=EVIL)
    played.happens(
        "segment_closed", 4.0, file=EVIL, start_s=0.0, end_s=4.0, bytes=1, cause=EVIL
    )  # fmt: skip
    page = played.page(4)
    assert len(page.attributes("script")) == 2
    assert all(str(tag["src"]).startswith("data:") for tag in page.attributes("img"))
    assert page.text.count(EVIL) >= 8
    assert not [tag for tag, found in page.tags if any(name.startswith("on") for name in found)]
    assert all("<" not in str(tag["href"]) for tag in page.attributes("a"))


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "America/New_York", "UTC"])
def test_the_wall_clock_is_that_of_the_place(
    played: Played, monkeypatch: pytest.MonkeyPatch, zone: str
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        played.frames(0, 4)
        text = words(played.page(4))
        wall_s = data_of(played.path)["wall"]
        shown = time.strftime("%H:%M:%S", time.gmtime(wall_s + 2.0))
        assert shown == clock_at(2.0)
        assert f"{clock_at(0)} to {clock_at(4)} (UTC{wall_clock(BEGAN_S)[-6:]})" in text
    finally:
        monkeypatch.undo()
        time.tzset()


def test_where_the_clock_was_set_the_end_is_by_the_new_time_and_the_length_as_it_was(
    played: Played,
) -> None:
    played.set_by_s = -3600.0
    played.frames(0, 4)
    page = played.page(4)
    assert says(page, f"Ended {wall_clock(BEGAN_S - 3596)} Lasted 4.0 s")


# -- a disk that is full --------------------------------------------------------------------------


@pytest.mark.parametrize("names", [["report.html"], ["report.html", "run.json"]], ids=str)
def test_a_full_disk_at_the_end_is_one_line_exit_1_and_nothing_half_written(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str]
) -> None:
    class Full:
        def __init__(self, file: IO[str]) -> None:
            self._file = file

        def write(self, text: str) -> int:
            self._file.write(text[:1000])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    usual = TextFile._open

    def open_file(self: TextFile, path: Path) -> Any:
        file = usual(self, path)
        return Full(file) if any(f"live.{name}" in path.name for name in names) else file

    monkeypatch.setattr(TextFile, "_open", open_file)
    clip = bright_between(tmp_path / "case.mp4", 2, 4, 12)
    out = tmp_path / "out"
    result = ccdstream(
        "live", "--device", clip, "--pace", "-o", out, "--model", toy, "--max-latency", "60s"
    )
    assert result.exit_code == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "live.report.html: No space left on device" in errors[0]
    assert f"not whole: {', '.join(names)}, as said above" in result.stderr
    assert "report, for a browser" not in result.stderr
    left = everything_in(out)
    assert not [name for name in left if "report" in name or name.endswith(".part")]
    assert ("live.run.json" in left) is (len(names) == 1)
    if len(names) == 1:
        record = json.loads((out / "live.run.json").read_text())
        assert "No space left" in record["failures"]["report.html"]
        assert "live.report.html" not in record["outputs"]


# -- in a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    """One browser for all: starting it takes longer than a test."""
    with chromium() as running:
        yield running


@in_browser
@pytest.mark.parametrize("size", [(1366, 768), (1000, 768), (390, 844)], ids=str)
def test_it_opens_offline_without_an_error_and_fits(
    tab: Tab, session: Path, size: tuple[int, int]
) -> None:
    opened(tab, session, size, until="true")
    assert tab.errors == []
    outside = {url for url in tab.requested if not url.startswith("data:")}
    assert outside <= {session.as_uri(), (session.parent / "clips/alert-001.mp4").as_uri()}
    assert tab.run("document.documentElement.scrollWidth") == size[0]


@in_browser
def test_every_table_fits_a_phone(tab: Tab, played: Played) -> None:
    played.frames(0, 10)
    played.happens("mark", 2.5, note="a" * 200)
    played.happens("snapshot", 4.0, file="snapshots/snapshot-20261128-210126-106009.jpg")
    played.happens("gap_opened", 6.0, start_s=5.0, cause="b" * 200)
    played.happens("gap_closed", 7.0, start_s=5.0, end_s=7.0, cause="b" * 200)
    played.happens(
        "segment_closed", 9, file=f"{'c' * 100}.mp4", start_s=0.0, end_s=9.0, bytes=10**9,
        cause="end",
    )  # fmt: skip
    for stage in ("capture_to_overlay", "capture_to_plain"):
        played.result.delays.add(stage, 0.1)
    played.page(10)
    for size in ((390, 844), (1000, 768), (1366, 768)):
        opened(tab, played.path, size, until="true")
        assert tab.run("document.documentElement.scrollWidth") == size[0]


@in_browser
def test_the_line_tells_both_clocks_and_that_there_was_no_signal(tab: Tab, played: Played) -> None:
    played.frames(0, 4)
    played.happens("gap_opened", 6.0, start_s=3.9, cause="unplugged")
    played.happens("gap_closed", 8.0, start_s=3.9, end_s=8.0, cause="unplugged")
    played.frames(8, 10)
    played.happens("mark", 8.5)
    played.page(10)
    opened(tab, played.path, until="true")
    span = data_of(played.path)["span"]
    mouse(tab, "#plot", 2.0 / span, "mouseMoved")
    tab.until(f"hover.textContent.includes('  {clock_at(2.0)}  NORMAL 0.500')")
    mouse(tab, "#plot", 6.0 / span, "mouseMoved", "mousePressed", "mouseReleased")
    tab.until(f"hover.textContent.endsWith('no signal') && {NOW}.endsWith('no signal')")
    mouse(tab, ".at", 0.5, "mouseMoved", "mousePressed", "mouseReleased")
    tab.until(f"{NOW}.startsWith('0:08.50 {clock_at(8.5)} NORMAL')")
    assert tab.errors == []


@in_browser
def test_a_card_plays_the_clip_of_its_alert(tab: Tab, session: Path) -> None:
    clip = "document.querySelector('.clip')"
    opened(tab, session, until=f"{clip}.readyState >= 1")
    assert tab.run(f"{clip}.poster.startsWith('data:image/jpeg')"), "no black box until it plays"
    tab.run(f"{clip}.muted = true")
    (_, start_s, _, _), *_ = data_of(session)["alerts"]
    mouse(tab, ".go", 0.5, "mouseMoved", "mousePressed", "mouseReleased")
    tab.until(f"{clip}.currentTime > 0 && {clip}.videoWidth === 128")
    tab.run(f"{clip}.pause()")
    offset_s = float(tab.run(f"{clip}.dataset.offset"))
    assert 0.5 < start_s - offset_s < 2.1
    assert tab.errors == []
