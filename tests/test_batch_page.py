"""The page of a batch: what stands in it, where it leads, and that it is whole or not there."""

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from ccdstream import NOTICE, batch
from ccdstream.errors import OutputError
from ccdstream.history import STATES, score_text
from ccdstream.report.batch_page import FATES, LINE_COLUMNS, batch_page, read_glance
from ccdstream.report.document import length, percent
from ccdstream.report.scores import COLUMNS
from tests.browser import CHROMIUM, Tab, chromium
from tests.commands import OF_A_BATCH, bright_between, everything_in, refusal, rows_of, start
from tests.test_report_page import EVIL, Read, read
from tests.videos import cut, make_video

in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
FIELDS = (
    *("name", "status", "alerts", "in alert", "highest", "line", "length", "uninformative"),
    *("warnings", "took"),
)


def cells(page: str) -> list[dict[str, str]]:
    """The rows of the table, as text by what the column holds."""
    body = page.split("<tbody>")[1].split("</tbody>")[0]
    rows = [re.findall(r"<t[hd]\b[^>]*>(.*?)</t[hd]>", row) for row in body.splitlines()]
    return [
        dict(zip(FIELDS, (Read(cell).text for cell in row), strict=True)) for row in rows if row
    ]


def links(page: Read) -> list[str]:
    """Where the links lead to other files."""
    found = [str(tag["href"]) for tag in page.attributes("a")]
    return [address for address in found if not address.startswith("#")]


def page_of(output: Path, name: str = "batch.report.html") -> str:
    return (output / name).read_text("utf-8")


# -- what stands in it ----------------------------------------------------------------------------


def test_every_recording_is_in_the_page_with_what_became_of_it(
    run: Callable[..., Any], here: Path
) -> None:
    assert run("case12.mp4", "calm.mp4", "-o", "out", "--video", "none").exit_code == 0
    (here / "text.mp4").write_text("no video" * 50)
    shutil.copy("calm.mp4", "new.mp4")
    inputs = ("case12.mp4", "calm.mp4", "text.mp4", "gone.mp4", "new.mp4")
    result = run(*inputs, "-o", "out", "--video", "none")
    assert result.exit_code == 1
    assert "report of all, for a browser: out/batch.report.html" in result.stderr.splitlines()
    rows = cells(page_of(here / "out"))
    assert [row["status"] for row in rows] == [
        "Done before", "Done before", "Failed", "Failed", "Done",
    ]  # fmt: skip
    assert [row["name"].partition(".mp4")[0] for row in rows] == [
        "case12", "calm", "text", "gone", "new",
    ]  # fmt: skip
    why = {r["name"]: r["reason"] for r in json.loads(Path("out/batch.json").read_text())["inputs"]}
    for row, name in zip(rows[2:4], ("text.mp4", "gone.mp4"), strict=True):
        assert why[name] and row["name"] == name + why[name]
    page = read(here / "out/batch.report.html")
    assert links(page) == [f"./{name}.report.html" for name in ("case12", "calm", "new")]
    assert page.text.count(NOTICE) == 2 and "2 recordings failed" in page.text
    assert "1 done, 2 done before, 2 failed." in page.text
    for word in ("polyp", "detect"):
        assert word not in page.text.lower()


def test_figures_are_those_of_the_results(run: Callable[..., Any], here: Path) -> None:
    assert run("case12.mp4", "calm.mp4", "-o", "out", "--video", "none").exit_code == 0
    alerting, calm = cells(page_of(here / "out"))
    record = json.loads(Path("out/case12.run.json").read_text())
    alert = json.loads(Path("out/case12.alerts.jsonl").read_text())
    scores = [r for r in rows_of(here / "out/case12.scores.csv") if r["state"] != "UNCLEAR"]
    counts, stream = record["counts"], record["stream"]
    assert alerting["alerts"] == "1"
    assert alerting["in alert"] == length(alert["duration_s"])
    assert alerting["highest"] == score_text(max(float(row["smoothed"]) for row in scores))
    assert alerting["length"] == length(stream["last_s"] - stream["first_s"])
    unclear = counts["frames"] - counts["informative_frames"]
    assert alerting["uninformative"] == percent(unclear, counts["frames"])
    assert alerting["took"] == length(record["timing"]["wall_s"])
    assert (calm["alerts"], calm["in alert"]) == ("0", "")
    report = read(here / "out/case12.report.html").text
    assert f"Highest score{alerting['highest']}" in report
    total = re.sub(r"\s+", " ", read(here / "out/batch.report.html").text)
    assert "Analysed2 of 2 recordings" in total and "Alerts1 in 1 recording" in total
    assert "82 frames" in total


def test_names_are_text_and_nothing_else_and_links_lead_to_the_reports(
    run: Callable[..., Any], here: Path
) -> None:
    names = ["<script>alert(1)<", "a #1 50% ?", EVIL.removesuffix(".mp4").replace("/", "")]
    for name in names:
        (here / "in" / name).mkdir(parents=True)
        shutil.copy("calm.mp4", here / "in" / name / f"{name}.mp4")
    (here / "in/<b>no.mp4").write_text("no video")
    assert run("in", "-r", "-o", "out", "--video", "none").exit_code == 1
    page = read(here / "out/batch.report.html")
    assert len(page.attributes("script")) == 1
    assert not page.attributes("img") and "<b>no.mp4" in page.text
    assert len(links(page)) == 3
    for address in links(page):
        assert re.fullmatch(r"\./[A-Za-z0-9_./~%-]+", address)
        assert (here / "out" / unquote(address)).is_file()
    for name in names:
        assert f"{name}/{name}.mp4" in page.text


def test_a_name_that_is_no_text_is_linked_by_its_bytes(run: Callable[..., Any], here: Path) -> None:
    odd = b"caf\xe9"
    shutil.copy(b"calm.mp4", odd + b".mp4")
    assert run("calm.mp4", odd.decode(errors="surrogateescape") + ".mp4", "-o", "o").exit_code == 0
    page = read(here / "o/batch.report.html")
    assert links(page) == ["./calm.report.html", "./caf%E9.report.html"]
    assert "caf\\udce9.mp4" in page.text


def test_a_report_that_is_gone_is_not_linked(run: Callable[..., Any], here: Path) -> None:
    assert run("case12.mp4", "calm.mp4", "-o", "out").exit_code == 0
    record = json.loads(Path("out/batch.json").read_text())
    (here / "out/calm.report.html").unlink()
    batch.write_batch_page(here / "out/page.html", record, [None, None])
    page = read(here / "out/page.html")
    assert links(page) == ["./case12.report.html"] and "calm.mp4" in page.text


def test_the_page_asks_the_network_for_nothing(run: Callable[..., Any], here: Path) -> None:
    assert run("case12.mp4", "calm.mp4", "-o", "out", "--video", "none").exit_code == 0
    text, page = page_of(here / "out"), read(here / "out/batch.report.html")
    (policy,) = [
        str(tag["content"]) for tag in page.attributes("meta")
        if tag.get("http-equiv") == "Content-Security-Policy"
    ]  # fmt: skip
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy and "file:" not in policy
    assert "http://" not in text and "https://" not in text
    for _, attributes in page.tags:
        assert not {"src", "style", "srcset"} & attributes.keys()
        assert not [name for name in attributes if name.startswith("on")]


def test_deidentified_it_holds_pseudonyms_only(run: Callable[..., Any], here: Path) -> None:
    (here / "ward-SMITH").mkdir()
    shutil.copy("calm.mp4", "ward-SMITH/SMITH.mp4")
    (here / "ward-SMITH/SMITH-broken.mp4").write_text("no video")
    flags = ("-r", "-o", "out", "--deid", "--video", "none")
    for status in ("Done", "Done before"):
        assert run("ward-SMITH", "gone-SMITH", *flags).exit_code == 1
        page = page_of(here / "out")
        assert "SMITH" not in page
        record = json.loads(Path("out/batch.json").read_text())
        rows = cells(page)
        for row, told in zip(rows, record["inputs"], strict=True):
            assert re.match(r"rec-[0-9a-f]{12}|-", row["name"])
            assert row["name"].startswith(told["name"] + told["reason"])
        assert [row["status"] for row in rows].count(status) == 1
        assert [address[:6] for address in links(Read(page))] == ["./rec-"]


def given(*rows: dict[str, Any], ended: bool = True) -> dict[str, Any]:
    """What a batch.json says."""
    usual = {
        "input": "a.mp4", "name": "a.mp4", "folder": ".", "status": "done", "reason": "",
        "outputs": [], "counts": {}, "warnings": [], "seconds": None, "node": None, "tries": 1,
    }  # fmt: skip
    inputs = [{**usual, **row} for row in rows]
    counts = {status: sum(r["status"] == status for r in inputs) for status in batch.Status}
    return {
        "notice": NOTICE, "ccdstream": "1", "command": [], "page": "batch.report.html",
        "model": "toy", "options": {"video": "none"}, "ended": ended, "counts": counts,
        "inputs": inputs,
    }  # fmt: skip


def test_every_status_has_a_word() -> None:
    assert set(FATES) == set(batch.Status)
    record = given(*({"status": status.value} for status in batch.Status), ended=False)
    page = batch_page(record, [None] * len(FATES), [None] * len(FATES))
    assert [row["status"] for row in cells(page)] == [FATES[s].word for s in batch.Status]
    assert "at work when this was written" in page
    ended = given({"status": "done"}, {"status": "not_begun"})
    assert "the same command again does the rest" in batch_page(ended, [None] * 2, [None] * 2)


def test_warnings_and_the_node_stand_in_the_row() -> None:
    said = ["first <b>", "second", "third", "fourth"]
    row = {"warnings": said, "counts": {"frames": 4, "informative_frames": 1, "alerts": 0},
           "seconds": 3.0, "node": "node-b", "tries": 2}  # fmt: skip
    (found,) = cells(batch_page(given(row), [None], [None]))
    assert "first <b>" in found["name"] and "second" in found["name"]
    assert "third" not in found["name"] and "and 2 more warnings" in found["name"]
    assert "cannot be read" in found["name"]  # no glance at results that are there
    assert found["warnings"] == "4" and found["uninformative"] == "75.0 %"
    assert found["took"] == "3.0\u00a0snode-b, 2 tries"


def test_a_recording_that_breaks_off_is_not_called_done_and_that_is_said_first(
    run: Callable[..., Any], here: Path
) -> None:
    whole = make_video(here / "w.mkv", codec="ffv1", size=(576, 720), frames=20)
    cut(whole, here / "cut.mkv", 0.5)
    for before in ("", "done before"):
        result = run("cut.mkv", "calm.mp4", "-o", "out", "--video", "none")
        page = page_of(here / "out")
        broken, calm = cells(page)
        assert broken["status"] == "Incomplete" + before and calm["status"].startswith("Done")
        assert broken["name"].startswith("cut.mkvthe recording breaks off")
        assert "1 recording incomplete." in Read(page).text
        (row,) = [line for line in result.stderr.splitlines() if "cut.mkv  (" in line]
        assert "cut.mkv  (incomplete, " in row


# -- the line -------------------------------------------------------------------------------------


def results(
    folder: Path, frames: list[tuple[float, float, str]], alerts: list[tuple[float, float]]
) -> tuple[Path, Path, dict[str, Any]]:
    """Files of a run: seconds, smoothed score and state of each frame."""
    rows = [",".join(COLUMNS)]
    rows += [f"{k},{k},{s:.6f},1,0.5,{q},{state},,1" for k, (s, q, state) in enumerate(frames)]
    scores, told = folder / "a.scores.csv", folder / "a.alerts.jsonl"
    scores.write_text("\n".join(rows) + "\n")
    told.write_text("".join(
        json.dumps({"schema": "ccdstream.alert/1", "start_s": s, "end_s": e}) + "\n"
        for s, e in alerts
    ))  # fmt: skip
    last_s = frames[-1][0] if frames else 0.0
    run = {"stream": {"first_s": frames[0][0] if frames else 0.0, "last_s": last_s},
           "alert_rule": {"enter": 0.9}, "timing": {"wall_s": 7.0}}  # fmt: skip
    return scores, told, run


def test_a_line_shows_states_gaps_and_alerts_where_they_were(tmp_path: Path) -> None:
    def state(k: int) -> str:
        return "ALERT" if 200 <= k < 400 else "UNCLEAR" if 800 <= k < 900 else "NORMAL"

    frames = [(k / 25, 0.5, state(k)) for k in range(1600) if not 1000 <= k < 1300]
    glance = read_glance(*results(tmp_path, frames, [(8.0, 16.0)]))
    assert glance is not None and glance.empty_s == 0
    assert (glance.length_s, glance.alert_s) == (pytest.approx(63.96), 8.0)
    step_s = 63.96 / LINE_COLUMNS
    drawn = dict(re.findall(r'<path class="(UNCLEAR)" d="M(\d+)', glance.line))
    assert int(drawn["UNCLEAR"]) == int(32 / step_s)
    first = re.search(r'<path class="ALERT" d="M(\d+) 0H(\d+)V', glance.line)
    assert first is not None
    assert (int(first[1]), int(first[2])) == (int(8 / step_s), int(16 / step_s) + 1)
    gap = re.search(r'class="gap" x="([\d.]+)%" width="([\d.]+)%"', glance.line)
    assert gap is not None
    assert float(gap[1]) == pytest.approx(100 * 40 / 63.96, abs=1)
    assert float(gap[2]) == pytest.approx(100 * 12 / 63.96, abs=1)


def test_time_without_frames_is_said_and_no_share_is_taken_of_it(tmp_path: Path) -> None:
    frames = [(float(second), 0.5, "NORMAL") for second in (*range(11), *range(610, 621))]
    scores, alerts, run = results(tmp_path, frames, [(1.0, 6.0)])
    run["stream"]["empty_s"] = 600.0
    row = {"counts": {"frames": 22, "informative_frames": 22, "alerts": 1}}
    page = batch_page(given(row), [read_glance(scores, alerts, run)], [None])
    (found,) = cells(page)
    assert found["length"] == "10:2010:00 without frames"
    text = Read(page).text
    assert "Length10:20 22 frames, none for 10:00" in text
    assert "Time in alert5.0\u00a0s 25.0 %" in text


def test_the_peak_is_of_informative_frames_and_cut_not_rounded(tmp_path: Path) -> None:
    frames = [(0.0, 0.3, "NORMAL"), (0.1, 0.9999999, "WATCH"), (0.2, 1.0, "UNCLEAR")]
    glance = read_glance(*results(tmp_path, frames, []))
    assert glance is not None and glance.peak == 0.9999999
    (row,) = cells(batch_page(given({}), [glance], [None]))
    assert row["highest"] == "0.999"
    unclear = read_glance(*results(tmp_path, [(0.0, 0.7, "UNCLEAR")], []))
    assert unclear is not None and unclear.peak is None
    nothing = read_glance(*results(tmp_path, [], []))
    assert nothing is not None and (nothing.peak, nothing.line) == (None, "")


def test_a_line_is_of_a_bounded_size_however_long_the_recording_is(tmp_path: Path) -> None:
    frames = [
        (0.4 * k + 2 * (k % 97 == 0), (k * 7919 % 1000) / 1000, STATES[k * 31 % 4])
        for k in range(50_000)
    ]
    glance = read_glance(*results(tmp_path, frames, [(30.0 * k, 30.0 * k + 9) for k in range(600)]))
    assert glance is not None and len(glance.line) < 8_000


@pytest.mark.parametrize(
    "scores",
    ["", "frame,pts\n", "{head}\n1,1,0.1,1,0.5,0.5,NORM", "{head}\n1,1,x,1,0.5,0.5,NORMAL,,1\n",
     "{head}\n1,1,0.1,1,0.5,0.5,ODD,,1\n"],
)  # fmt: skip
def test_scores_that_cannot_be_read_are_told_and_not_drawn(tmp_path: Path, scores: str) -> None:
    place, alerts, run = results(tmp_path, [(0.0, 0.5, "NORMAL")], [])
    place.write_text(scores.format(head=",".join(COLUMNS)))
    assert read_glance(place, alerts, run) is None
    place.unlink()
    assert read_glance(place, alerts, run) is None


# -- when it is written ---------------------------------------------------------------------------


def test_a_rerun_covers_all_and_equal_results_give_equal_bytes(
    run: Callable[..., Any], here: Path
) -> None:
    arguments = ("case12.mp4", "calm.mp4", "-o", "out", "--video", "none")
    assert run(*arguments).exit_code == 0
    first = page_of(here / "out")
    assert run(*arguments).exit_code == 0
    second = page_of(here / "out")
    assert run(*arguments).exit_code == 0
    assert page_of(here / "out") == second
    for before, after in (
        ("2 done before.", "2 done."), ("Done before", "Done"), ('class="already_done"',
        'class="done"'), ('data-v="0"><span>Done', 'data-v="1"><span>Done'),
    ):  # fmt: skip
        second = second.replace(before, after)
    assert second == first


def test_killed_at_work_the_page_is_whole_and_a_rerun_completes_it(here: Path, shelf: Path) -> None:
    bright_between(here / "long.mp4", 5, 49, 500)
    arguments = ("run", "calm.mp4", "long.mp4", "-o", "out", "--model", shelf / "toy")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with start(*arguments, cwd=here, start_new_session=True, **quiet) as process:
        end = time.monotonic() + 120
        while not (here / "out/calm.run.json").exists() and time.monotonic() < end:
            page = here / "out/batch.report.html"
            if page.exists():  # at no moment a part of it
                assert page_of(here / "out").endswith("</html>\n")
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    page_text = page_of(here / "out")
    assert page_text.endswith("</html>\n") and "at work when this was written" in page_text
    assert len(cells(page_text)) == 2
    (here / "out/batch.report.html.part").write_text("<html>")  # killed while it was written
    with start(*arguments, cwd=here, **quiet) as process:
        assert process.wait(120) == 0
    assert "Done" in cells(page_of(here / "out"))[1]["status"]
    assert not [name for name in everything_in(here / "out") if name.endswith(".part")]


def test_where_the_page_cannot_be_written_one_line_says_so_before_any_work(
    run: Callable[..., Any], here: Path
) -> None:
    (here / "out/batch.report.html").mkdir(parents=True)
    message = refusal(run("case12.mp4", "calm.mp4", "-o", "out"))
    assert message.startswith("cannot write out/batch.report.html: Is a directory.")
    assert not (here / "out/calm.run.json").exists()


def test_a_disk_that_fills_meanwhile_is_a_warning_and_the_end_tells(
    run: Callable[..., Any], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = batch.write_batch_page, 0

    def full(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise OutputError("cannot write out/batch.report.html: No space left on device.")
        write(*arguments)

    monkeypatch.setattr(batch, "write_batch_page", full)
    result = run("case12.mp4", "calm.mp4", "-o", "out", "--video", "none")
    message = refusal(result)
    assert message == "cannot write out/batch.report.html: No space left on device."
    assert f"warning: {message}" in result.stderr.splitlines()
    record = json.loads(Path("out/batch.json").read_text())
    assert record["ended"] and record["counts"]["done"] == 2
    assert page_of(here / "out").endswith("</html>\n")  # the last one that could be written


def test_a_recording_that_is_called_batch_keeps_its_report(
    run: Callable[..., Any], here: Path
) -> None:
    flags = ("-o", "out", "--video", "none")
    assert run("case12.mp4", "calm.mp4", *flags).exit_code == 0
    assert json.loads(Path("out/batch.json").read_text())["page"] == "batch.report.html"
    shutil.copy("calm.mp4", "batch.mp4")
    result = run("case12.mp4", "batch.mp4", *flags)
    assert result.exit_code == 0 and "out/batch-2.report.html" in result.stderr
    assert json.loads(Path("out/batch.json").read_text())["page"] == "batch-2.report.html"
    assert "batch report" not in page_of(here / "out")  # the recording's own
    assert links(read(here / "out/batch-2.report.html")) == [
        "./case12.report.html", "./batch.report.html",
    ]  # fmt: skip
    # nor does a batch without it write over it
    own = page_of(here / "out")
    assert run("case12.mp4", "calm.mp4", *flags).exit_code == 0
    assert page_of(here / "out") == own
    # once it is gone the page has its name again, and there is one of them
    for path in (here / "out").glob("batch.*"):
        if path.name != "batch.json":
            path.unlink()
    assert run("case12.mp4", "calm.mp4", *flags).exit_code == 0
    there = everything_in(here / "out")
    assert there >= OF_A_BATCH and "batch-2.report.html" not in there


# -- in a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    with chromium() as found:
        yield found


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """Four recordings, one of them without results."""
    glance = read_glance(*results(tmp_path, [(k / 25, 0.5, "NORMAL") for k in range(100)], []))
    counts = {"frames": 100, "informative_frames": 90}
    record = given(
        {"name": "case10.mp4", "counts": {**counts, "alerts": 2}},
        {"name": "case2.mp4", "counts": {**counts, "alerts": 11}},
        {"name": "bad.mp4", "status": "failed", "reason": "it is a very long reason " * 20},
        {"name": "x" * 90 + ".mp4", "status": "already_done", "counts": {**counts, "alerts": 0}},
    )
    path = tmp_path / "batch.report.html"
    path.write_text(batch_page(record, [glance, glance, None, glance], [None] * 4))
    return path


ORDER = '[...document.querySelectorAll("#recordings tbody tr")].map((row) => row.id).join(" ")'


@in_browser
def test_a_click_or_a_key_sorts_by_a_column_and_what_is_not_known_comes_last(
    tab: Tab, page: Path
) -> None:
    tab.open(page.as_uri())
    tab.until("document.querySelectorAll('#recordings thead button').length === 9")
    assert tab.run(ORDER) == "r0 r1 r2 r3"
    for order in ("r1 r0 r3 r2", "r3 r0 r1 r2"):  # by alerts: most, then fewest
        tab.run("document.querySelectorAll('#recordings thead button')[2].click()")
        assert tab.run(ORDER) == order
    tab.run("document.querySelector('#recordings thead button').focus()")
    tab.call("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", text="\r",
             windowsVirtualKeyCode=13)  # fmt: skip
    tab.call("Input.dispatchKeyEvent", type="keyUp", key="Enter", code="Enter")
    assert tab.run(ORDER) == "r2 r1 r0 r3"  # 2 before 10
    sorted_by = "[...document.querySelectorAll('[aria-sort]')].map((h) => h.textContent + "
    assert tab.run(f"{sorted_by} h.getAttribute('aria-sort')).join()") == "Recordingascending"
    tab.run("document.querySelectorAll('#recordings thead button')[1].click()")
    assert str(tab.run(ORDER)).startswith("r2 ")  # what failed
    assert tab.errors == []


@in_browser
@pytest.mark.parametrize("size", [(1366, 768), (1024, 768), (390, 844)], ids=str)
def test_nothing_is_wider_than_the_window(tab: Tab, page: Path, size: tuple[int, int]) -> None:
    tab.open(page.as_uri(), size)
    tab.until("document.querySelectorAll('#recordings thead button').length === 9")
    assert tab.run("document.documentElement.scrollWidth") <= size[0]
    assert tab.run("document.querySelector('.over-time').getBoundingClientRect().width") >= 140


def test_without_its_script_it_is_a_plain_table(page: Path) -> None:
    found = read(page)
    assert not found.attributes("button") and len(found.attributes("tr")) == 1 + 4
    heads = [tag for tag in found.attributes("th") if tag.get("scope") == "col"]
    assert len(heads) == len(FIELDS) and len(cells(page.read_text())) == 4


@in_browser
def test_each_printed_page_says_what_stands_in_the_columns(tab: Tab, page: Path) -> None:
    tab.open(page.as_uri())
    tab.until("document.querySelectorAll('#recordings thead button').length === 9")
    tab.call("Emulation.setEmulatedMedia", media="print")
    try:
        said = "[...document.querySelectorAll('#recordings thead th')].map((head) => "
        after = "getComputedStyle(head, '::after').content.replace(/^none$/, head.textContent))"
        assert tab.run(f"{said}{after}.join()").replace('"', "") == (
            "Recording,Status,Alerts,In alert,Highest score,Score over time,Length,Uninformative,"
            "Warnings,Took"
        )
        assert tab.run("document.querySelector('#recordings thead button').offsetParent") is None
    finally:
        tab.call("Emulation.setEmulatedMedia", media="")
