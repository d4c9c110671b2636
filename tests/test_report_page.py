"""The report of a run: what stands in the page, and what someone in a browser can do with it."""

import html
import json
import re
import shutil
from collections.abc import Iterator
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ccdstream import NOTICE
from ccdstream.bundle import Bundle
from ccdstream.engine.select import SelectedEngine
from ccdstream.history import score_text
from ccdstream.recording import OutputFiles, RunOptions, run
from ccdstream.report import page as module
from ccdstream.report.document import length, percent
from ccdstream.report.gallery import Gallery
from ccdstream.timecode import short_time
from tests.browser import CHROMIUM, Tab, chromium
from tests.commands import bright_between

in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
EVIL = "<img src=x onerror=alert(1)>&\"'.mp4"


def analysed(
    recording: Path, folder: Path, bundle: Bundle, engine: SelectedEngine, **options: Any
) -> Path:
    """The report of a recording."""
    files = OutputFiles(folder, recording.stem)
    run(recording, files, bundle=bundle, engine=engine, options=RunOptions(**options))
    return files.path("report.html")


@pytest.fixture(scope="module")
def case12(
    tmp_path_factory: pytest.TempPathFactory, bundle: Bundle, engine: SelectedEngine
) -> Path:
    """The report of a recording of 5 s that is bright from 1 s to 3 s, so alerts before 2.5 s."""
    folder = tmp_path_factory.mktemp("case12")
    return analysed(bright_between(folder / "case12.mp4", 25, 74, 125), folder, bundle, engine)


class Read(HTMLParser):
    """What a page holds, as a browser's parser would see it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [found for name, found in self.tags if name == tag]


def read(path: Path) -> Read:
    return Read(path.read_text(encoding="utf-8"))


def data_of(path: Path) -> dict[str, Any]:
    found = re.search(r'id="data">(.*?)</script>', path.read_text(encoding="utf-8"))
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


# -- what stands in it ----------------------------------------------------------------------------


def test_the_page_says_what_the_run_found_and_what_it_is_not(case12: Path) -> None:
    page = read(case12)
    record = json.loads((case12.parent / "case12.run.json").read_text())
    alert = json.loads((case12.parent / "case12.alerts.jsonl").read_text())
    assert page.text.count(NOTICE) == 2
    assert "unusual against normal training frames" in page.text
    for word in ("polyp", "detect"):
        assert word not in page.text.lower()
    for fact in (
        record["model"]["id"], record["input"]["sha256"], record["ccdstream"],
        record["versions"]["openvino"], *(f["sha256"] for f in record["model"]["files"].values()),
    ):  # fmt: skip
        assert fact in page.text
    assert set(record["outputs"]) == {
        p.name for p in case12.parent.iterdir() if p.name != "case12.mp4"
    }
    assert f"not rounded: 0.9989 is shown as {score_text(0.9989)}" in page.text
    peak = f"{score_text(alert['peak_score'])} at 0:0"
    assert peak in page.text


def test_the_page_asks_the_network_for_nothing_and_allows_only_its_own_script(
    case12: Path,
) -> None:
    page = read(case12)
    (policy,) = [
        tag["content"] for tag in page.attributes("meta")
        if tag.get("http-equiv") == "Content-Security-Policy"
    ]  # fmt: skip
    assert policy is not None
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy
    addresses = [
        value for _, attributes in page.tags for name, value in attributes.items()
        if name in ("src", "href", "srcset", "poster", "data", "action") and value
    ]  # fmt: skip
    beside = [a for a in addresses if not a.startswith(("data:", "#"))]
    assert beside == ["./case12.overlay.mp4"]
    text = case12.read_text(encoding="utf-8")
    assert "http://" not in text and "https://" not in text
    assert not [tag for tag, attributes in page.tags if "style" in attributes]
    assert not [tag for tag, found in page.tags if any(name.startswith("on") for name in found)]


def test_a_name_and_a_warning_from_outside_are_text_and_nothing_else(
    tmp_path: Path, bundle: Bundle, engine: SelectedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ccdstream.problems import Problems

    warning = "</script><script>alert(2)</script>"
    monkeypatch.setattr(Problems, "sentences", lambda self: [warning])
    made = bright_between(tmp_path / "made.mp4", 2, 8, 12)
    recording = tmp_path / EVIL.replace("/", "")
    made.rename(recording)
    page = read(analysed(recording, tmp_path / "out", bundle, engine))
    assert len(page.attributes("script")) == 2
    assert all(
        str(tag["src"]).startswith("data:image/jpeg;base64,") for tag in page.attributes("img")
    )
    assert recording.name in page.text and warning in page.text
    (beside,) = [t["src"] for t in page.attributes("source") if str(t["src"])[:5] != "data:"]
    assert re.fullmatch(r"\./[A-Za-z0-9_.%-]+", str(beside))


def test_a_large_video_is_played_from_beside_and_a_small_one_from_inside(
    tmp_path: Path, bundle: Bundle, engine: SelectedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = bright_between(tmp_path / "a b.mp4", 2, 8, 12)
    small = read(analysed(recording, tmp_path / "small", bundle, engine))
    assert [str(t["src"])[:20] for t in small.attributes("source")] == [
        "data:video/mp4;base6", "./a%20b.overlay.mp4",
    ]  # fmt: skip
    monkeypatch.setattr(module, "EMBED_BYTES", 100)
    large = read(analysed(recording, tmp_path / "large", bundle, engine))
    assert [t["src"] for t in large.attributes("source")] == ["./a%20b.overlay.mp4"]


def test_without_a_video_there_is_none_in_the_page(
    tmp_path: Path, bundle: Bundle, engine: SelectedEngine
) -> None:
    recording = bright_between(tmp_path / "a.mp4", 25, 74, 80)
    page = read(analysed(recording, tmp_path / "out", bundle, engine, video="none"))
    assert page.attributes("video") == page.attributes("source") == []
    assert len([t for t in page.attributes("li") if t.get("class") == "card"]) == 1
    assert "Click or drag to read the score there" in page.text and "go there" not in page.text
    assert not [t for t in page.attributes("button") if t.get("class") == "go"], "nothing plays"


def test_keys_that_do_nothing_are_not_named(
    tmp_path: Path, bundle: Bundle, engine: SelectedEngine, case12: Path
) -> None:
    assert "next and previous alert" in read(case12).text
    assert "Click or drag to go there" in read(case12).text
    recording = bright_between(tmp_path / "a.mp4", -1, -1, 30)
    calm = read(analysed(recording, tmp_path / "out", bundle, engine, video="none"))
    assert "5 s, with" in calm.text and "previous alert" not in calm.text


def test_only_an_alert_that_nobody_saw_end_is_marked_open(
    tmp_path: Path, bundle: Bundle, engine: SelectedEngine, case12: Path
) -> None:
    words = "Open when the analysis ended"
    assert words not in read(case12).text
    recording = bright_between(tmp_path / "a.mp4", 25, 74, 125)
    report = analysed(recording, tmp_path / "out", bundle, engine, video="none", end_s=2.7)
    assert read(report).text.count(words) == 1


def test_only_an_alert_that_nobody_saw_begin_is_marked_so(
    tmp_path: Path, bundle: Bundle, engine: SelectedEngine, case12: Path
) -> None:
    words = "Open from the first frame that could be judged"
    assert words not in read(case12).text
    recording = bright_between(tmp_path / "a.mp4", 25, 74, 125)
    report = analysed(recording, tmp_path / "out", bundle, engine, video="none", start_s=1.5)
    assert read(report).text.count(words) == 1


def test_normal_is_not_called_the_absence_of_what_is_unusual(case12: Path) -> None:
    text = read(case12).text
    assert "nothing unusual" not in text
    assert "below the level at which alerts open" in text and "NORMAL inside an alert" in text


def test_the_line_holds_the_scores_of_their_time_and_gaps_are_empty(
    tmp_path: Path, bundle: Bundle, engine: SelectedEngine
) -> None:
    pts = [*range(25), *range(100, 125)]  # 1 s, a gap of 3 s, 1 s
    recording = bright_between(tmp_path / "gap.mkv", 25, 49, 50, pts=pts, time_base=Fraction(1, 25))
    report = analysed(recording, tmp_path / "out", bundle, engine)
    data = data_of(report)
    assert len(data["score"]) == len(data["state"])
    at = [data["start"] + data["span"] * k / len(data["state"]) for k in range(len(data["state"]))]
    seen = dict(zip(at, data["state"], strict=True))
    assert {state for s, state in seen.items() if 1.1 < s < 3.9} == {"-"}
    assert {state for s, state in seen.items() if s < 0.9} == {"1"}
    assert "3" in {state for s, state in seen.items() if s > 4.0}
    assert data["end"] == pytest.approx(124 / 25)
    text = report.read_text(encoding="utf-8")
    (gap,) = re.findall(r'<rect class="gap"[^>]* x="([\d.]+)%"[^>]* width="([\d.]+)%"', text)
    assert [float(each) for each in gap] == pytest.approx([19.4, 61.3], abs=0.5)
    page = read(report).text
    assert "Hatched: no frames." in page
    assert "Analysed1.9\u00a0s 50 frames, none for 3.0\u00a0s" in page
    alert = json.loads((tmp_path / "out/gap.alerts.jsonl").read_text())
    share = percent(alert["duration_s"], 1.92)
    assert f"Time in alert{length(alert['duration_s'])} {share}" in page


def test_nothing_is_hatched_where_every_stretch_has_frames(case12: Path) -> None:
    page = read(case12)
    assert "Hatched" not in page.text and "none for" not in page.text
    assert not [tag for tag in page.attributes("rect") if tag.get("class") == "gap"]


def test_the_shares_of_uninformative_frames_are_those_of_the_record(
    tmp_path: Path, engine: SelectedEngine, bundle: Bundle
) -> None:
    report = analysed(bright_between(tmp_path / "a.mp4", 2, 8, 12), tmp_path, bundle, engine)
    counts = json.loads((tmp_path / "a.run.json").read_text())["counts"]
    text = report.read_text(encoding="utf-8")
    rows = re.findall(r'<tr class="one"><th scope="row">(.*?)<small>.*?"number">(\d+)</td>', text)
    shown = {html.unescape(what): int(number) for what, number in rows}
    words = {module.REASONS[r][0]: n for r, n in counts["uninformative_by_reason"].items()}
    assert shown == words and set(counts["uninformative_by_reason"]) == set(module.REASONS)


def test_a_run_that_fails_leaves_no_page(
    tmp_path: Path, bundle: Bundle, engine: SelectedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    recording = bright_between(tmp_path / "a.mp4", 2, 8, 12)
    monkeypatch.setattr("ccdstream.recording.write_page", broken)
    with pytest.raises(RuntimeError, match="broken"):
        analysed(recording, tmp_path / "out", bundle, engine)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("start_s", "span_s"), [(0.0, 0.05), (0.0, 20.0), (3600.0, 7200.0), (-3.0, 40.0), (0.0, 1e9)]
)
def test_ticks_are_round_few_and_inside(start_s: float, span_s: float) -> None:
    ticks = module._ticks(start_s, span_s)
    assert 1 <= len(ticks) <= 8
    assert all(start_s - 1e-6 <= tick <= start_s + span_s + 1e-6 for tick in ticks)


# -- what someone in a browser can do with it -----------------------------------------------------


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    """One browser for all: starting it takes longer than a test."""
    with chromium() as opened:
        yield opened


READY = "document.getElementById('video').readyState >= 2"
TIME = "document.getElementById('video').currentTime"
NOW = "document.getElementById('now').textContent"
SETTLED = "!document.getElementById('video').seeking"


def opened(tab: Tab, page: Path, size: tuple[int, int] = (1366, 768), until: str = READY) -> Tab:
    tab.errors.clear()
    tab.requested.clear()
    tab.call("Page.navigate", url="about:blank")
    tab.open(page.as_uri(), size)
    tab.until(f"document.readyState === 'complete' && {until}")
    return tab


def mouse(tab: Tab, what: str, share: float, *kinds: str) -> None:
    """Point at an element, `share` of its width from its left."""
    box = tab.run(
        f"(() => {{ const e = document.querySelector('{what}'); e.scrollIntoView({{block: "
        "'center'}); const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, "
        "b.height]; })()"
    )
    x, y = box[0] + share * box[2], box[1] + box[3] / 2
    for kind in kinds:
        button = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
        tab.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)


CLICK = ("mouseMoved", "mousePressed", "mouseReleased")


@in_browser
@pytest.mark.parametrize("size", [(1366, 768), (390, 844)], ids=["laptop", "phone"])
def test_it_opens_offline_without_an_error_and_fits(
    tab: Tab, case12: Path, size: tuple[int, int]
) -> None:
    opened(tab, case12, size)
    assert tab.errors == []
    outside = {url for url in tab.requested if not url.startswith("data:")}
    assert outside == {case12.as_uri()}
    assert tab.run("document.documentElement.scrollWidth") == size[0]
    assert NOTICE in tab.run("document.body.innerText")


@in_browser
def test_the_line_tells_time_and_score_where_the_mouse_is_and_a_click_goes_there(
    tab: Tab, case12: Path
) -> None:
    opened(tab, case12)
    span = data_of(case12)["span"]
    mouse(tab, "#plot", 2.6 / span, "mouseMoved")
    tab.until("!document.getElementById('hover').hidden")
    assert re.fullmatch(r"0:02\.(5|6)\d  ALERT 0\.\d{3}", tab.run("hover.textContent"))
    mouse(tab, "#plot", 2.6 / span, *CLICK)
    tab.until(f"{SETTLED} && Math.abs({TIME} - 2.6) < 0.05")
    tab.until(f"{NOW}.startsWith('0:02.') && {NOW}.includes('ALERT')")
    assert tab.run("document.getElementById('alert-1').classList.contains('lit')")
    mouse(tab, "#plot", 4.5 / span, *CLICK)
    tab.until(f"{SETTLED} && Math.abs({TIME} - 4.5) < 0.05")
    assert not tab.run("document.getElementById('alert-1').classList.contains('lit')")


@in_browser
def test_keys_go_by_seconds_frames_and_alerts(tab: Tab, case12: Path) -> None:
    opened(tab, case12)
    alert = data_of(case12)["alerts"][0]
    tab.press("n")
    tab.until(f"{SETTLED} && Math.abs({TIME} - {alert[1]}) < 0.02")
    tab.press(".", "Period")
    tab.until(f"{SETTLED} && Math.abs({TIME} - {alert[1] + 0.04}) < 0.02")
    tab.press("ArrowLeft")
    tab.until(f"{SETTLED} && {TIME} < 0.02")
    tab.press("ArrowRight")
    tab.until(f"{SETTLED} && {TIME} > 4.9")
    tab.press("p")
    tab.until(f"{SETTLED} && Math.abs({TIME} - {alert[1]}) < 0.02")


@in_browser
def test_the_number_of_an_alert_stands_clear_of_its_bar_however_short_that_is(
    tab: Tab, case12: Path
) -> None:
    opened(tab, case12)
    tab.run("document.querySelector('.marks rect').setAttribute('width', '2')")
    bar, number, line = (
        tab.run(f"document.querySelector('{what}').getBoundingClientRect().toJSON()")
        for what in (".marks rect", ".marks text", "#plot .back")
    )
    assert number["width"] > bar["width"] == 2
    assert number["bottom"] - bar["top"] <= 1  # its box holds room for what hangs below letters
    assert bar["bottom"] < line["top"]
    ink, behind = (
        tab.run(f"getComputedStyle(document.querySelector('{what}')).{name}")
        for what, name in ((".marks text", "fill"), ("body", "color"))
    )
    assert ink == behind, "as legible as other text, as it stands on the page itself"


def test_numbers_of_alerts_do_not_lie_on_each_other(case12: Path) -> None:
    run = json.loads((case12.parent / "case12.run.json").read_text())
    line = json.loads((case12.parent / "case12.alerts.jsonl").read_text())
    gallery = Gallery(start_s=0.0, heated=lambda frame, *_: frame)
    gallery.line.add(100.0, 0.5, "NORMAL")
    at_s = (0.0, 1.0, 5.0, 50.0, 51.0, 99.9)
    alerts = [
        SimpleNamespace(**{**line, "number": k + 9, "start_s": at, "end_s": at, "peak_s": at})
        for k, at in enumerate(at_s)
    ]
    text = module.page(run, alerts, gallery, video=None)
    marks = text.split('<g class="marks">')[1].split("</g>")[0]
    shown = [(float(x), n) for x, n in re.findall(r'<text x="([\d.]+)%"[^>]*>(\d+)<', marks)]
    assert [number for _, number in shown] == ["9", "11", "12", "14"]
    assert shown[-1][0] == 96, "within the line"
    assert len(re.findall("<rect", marks)) == len(alerts)


@in_browser
def test_a_card_a_tile_and_a_mark_are_clicked_to_go_there(tab: Tab, case12: Path) -> None:
    opened(tab, case12)
    alert = data_of(case12)["alerts"][0]
    mouse(tab, ".peak", 0.5, *CLICK)
    tab.until(f"{SETTLED} && Math.abs({TIME} - {alert[3]}) < 0.02")
    mouse(tab, "#strip li:nth-child(7) button", 0.5, *CLICK)
    tab.until(f"{SETTLED} && Math.abs({TIME} - 3) < 0.02")
    assert tab.run("document.querySelector('#strip [aria-current] span').textContent") == "0:03.0"
    mouse(tab, ".marks rect", 0.5, *CLICK)
    tab.until(f"{SETTLED} && Math.abs({TIME} - {alert[1]}) < 0.02")
    mouse(tab, ".go", 0.5, *CLICK)
    tab.until("!document.getElementById('video').paused || document.getElementById('video').ended")
    tab.run("document.getElementById('video').pause()")


@in_browser
def test_the_video_beside_the_page_is_played_and_its_loss_is_said(
    tab: Tab,
    tmp_path: Path,
    bundle: Bundle,
    engine: SelectedEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "EMBED_BYTES", 0)
    recording = bright_between(tmp_path / "a #1?.mp4", 2, 8, 50)
    report = analysed(recording, tmp_path / "out", bundle, engine)
    opened(tab, report)
    assert tab.errors == []
    mouse(tab, "#plot", 1.2 / data_of(report)["span"], *CLICK)
    tab.until(f"{SETTLED} && Math.abs({TIME} - 1.2) < 0.05")
    alone = tmp_path / "alone.html"
    shutil.copy(report, alone)
    opened(tab, alone, until="!document.getElementById('lost').hidden")
    assert "a #1?.overlay.mp4" in tab.run("document.getElementById('lost').innerText")
    mouse(tab, "#plot", 0.5, *CLICK)
    tab.until(f"{NOW} !== ''")


@in_browser
def test_a_stretch_and_a_late_first_frame_are_sought_in_the_time_of_the_recording(
    tab: Tab, tmp_path: Path, bundle: Bundle, engine: SelectedEngine
) -> None:
    recording = bright_between(
        tmp_path / "late.mp4", 25, 74, 125, pts=range(250, 375), time_base=Fraction(1, 25)
    )
    whole = analysed(recording, tmp_path / "whole", bundle, engine)
    part = analysed(recording, tmp_path / "part", bundle, engine, start_s=10.5)
    for report, offset_s in ((whole, 10.0), (part, 10.5)):
        opened(tab, report)
        alert = data_of(report)["alerts"][0]
        tab.press("n")
        tab.until(f"{SETTLED} && Math.abs({TIME} - {alert[1] - offset_s}) < 0.02")
        assert tab.run(NOW).startswith(short_time(alert[1], 2))
        assert tab.run("document.getElementById('short').hidden")


@in_browser
def test_without_a_video_the_line_and_the_cards_still_answer(
    tab: Tab, tmp_path: Path, bundle: Bundle, engine: SelectedEngine
) -> None:
    recording = bright_between(tmp_path / "a.mp4", 25, 74, 125)
    report = analysed(recording, tmp_path / "out", bundle, engine, video="none")
    opened(tab, report, until="true")
    mouse(tab, "#plot", 2.6 / data_of(report)["span"], *CLICK)
    tab.until(f"{NOW}.includes('ALERT')")
    assert tab.run("document.getElementById('alert-1').classList.contains('lit')")
    tab.press("ArrowRight")
    tab.until(f"{NOW}.startsWith('0:04.96')")
    assert tab.errors == []


@in_browser
def test_a_hostile_name_runs_nothing(
    tab: Tab, tmp_path: Path, bundle: Bundle, engine: SelectedEngine
) -> None:
    made = bright_between(tmp_path / "made.mp4", 2, 8, 12)
    recording = made.rename(tmp_path / EVIL)
    opened(tab, analysed(recording, tmp_path / "out", bundle, engine))
    assert tab.errors == []
    assert tab.run("document.querySelector('h1').textContent") == EVIL
    assert tab.run("document.title") == f"{EVIL} - ccdstream report"


@in_browser
def test_print_leaves_out_the_video_and_what_is_clicked(tab: Tab, case12: Path) -> None:
    opened(tab, case12)
    tab.call("Emulation.setEmulatedMedia", media="print")
    try:
        shown = "getComputedStyle(document.querySelector('{}')).display"
        for hidden in (".screen", ".controls", ".go", "#cursor"):
            assert tab.run(shown.format(hidden)) == "none"
        for kept in (".plot", ".card", "#strip", ".facts", ".notice"):
            assert tab.run(shown.format(kept)) != "none"
        for whole in (".card", ".groups > div"):
            assert tab.run(shown.format(whole).replace("display", "breakInside")) == "avoid"
        assert tab.run("getComputedStyle(document.documentElement).backgroundColor") == (
            "rgb(255, 255, 255)"
        )
    finally:
        tab.call("Emulation.setEmulatedMedia", media="")


CLIP = "document.querySelector('.clip')"


@in_browser
def test_a_card_plays_the_clip_of_its_alert(
    tab: Tab, tmp_path: Path, bundle: Bundle, engine: SelectedEngine
) -> None:
    recording = bright_between(tmp_path / "a #1?.mp4", 25, 74, 125)
    report = analysed(recording, tmp_path / "out", bundle, engine, video="clips")
    opened(tab, report, until=f"{CLIP}.readyState >= 1")
    assert tab.errors == []
    tab.run(f"{CLIP}.muted = true")
    tab.until(f"{CLIP}.readyState >= 2 && {CLIP}.videoWidth === 128")
    assert tab.run("document.documentElement.scrollWidth") == 1366


@in_browser
def test_a_card_says_where_in_its_clip_the_alert_begins_and_goes_there(
    tab: Tab, tmp_path: Path, bundle: Bundle, engine: SelectedEngine
) -> None:
    recording = bright_between(tmp_path / "a.mp4", 200, 249, 300, options={"g": "25", "bf": "0"})
    report = analysed(recording, tmp_path / "out", bundle, engine, video="clips")
    (clip,) = json.loads((report.parent / "a.run.json").read_text())["video"]["clips"]
    ((_, start_s, _, peak_s),) = data_of(report)["alerts"]
    into_s = start_s - clip["offset_s"]
    assert clip["offset_s"] >= 2 and 5 <= into_s < 6.1
    assert f"The alert begins {into_s:.1f}\u00a0s into its clip" in read(report).text
    opened(tab, report, until=f"{CLIP}.readyState >= 2")
    tab.run(f"{CLIP}.muted = true")
    tab.run(f"{CLIP}.play = () => {{ {CLIP}.dataset.played = 'yes'; return Promise.resolve(); }}")
    mouse(tab, ".go", 0.5, *CLICK)
    tab.until(f"!{CLIP}.seeking && Math.abs({CLIP}.currentTime - {into_s}) < 0.02")
    assert tab.run(f"{CLIP}.dataset.played") == "yes"
    tab.until(f"{NOW}.startsWith('{short_time(start_s, 2)}')")
    mouse(tab, ".peak", 0.5, *CLICK)
    tab.until(
        f"!{CLIP}.seeking && Math.abs({CLIP}.currentTime - {peak_s - clip['offset_s']}) < 0.02"
    )
    assert tab.errors == []


WINDOWS = ((1366, 768), (1366, 900), (1920, 1080), (1080, 1920), (390, 844), (844, 390))


@in_browser
@pytest.mark.parametrize("size", WINDOWS)
def test_the_video_fills_its_box_across_or_leaves_room_for_the_line(
    tab: Tab, case12: Path, size: tuple[int, int]
) -> None:
    opened(tab, case12, size)
    (width, height), (wide, high) = tab.run(
        "['#video', '.screen'].map((name) => { const b = document.querySelector(name)"
        ".getBoundingClientRect(); return [b.width, b.height]; })"
    )
    assert width / height == pytest.approx(128 / 96, rel=0.01)
    assert high == pytest.approx(height, abs=1), "no black above or below"
    foot = tab.run("document.querySelector('.plot').getBoundingClientRect().bottom + scrollY")
    if size[0] > size[1] >= 768:
        assert foot <= size[1]
    elif size[0] < size[1]:
        assert width == pytest.approx(wide, abs=1)


@in_browser
def test_the_script_writes_times_and_scores_as_the_page_does(tab: Tab, case12: Path) -> None:
    opened(tab, case12)
    alert = json.loads((case12.parent / "case12.alerts.jsonl").read_text())
    mouse(tab, ".peak", 0.5, *CLICK)
    tab.until(f"{SETTLED} && {NOW}.startsWith('{short_time(alert['peak_s'], 2)}')")
    assert tab.run(NOW).split()[-1] == score_text(alert["peak_score"])


@in_browser
def test_a_side_by_side_video_keeps_the_shape_of_its_two_pictures(
    tab: Tab, tmp_path: Path, bundle: Bundle, engine: SelectedEngine
) -> None:
    recording = bright_between(tmp_path / "a.mp4", 25, 74, 125)
    report = analysed(recording, tmp_path / "out", bundle, engine, video="side-by-side")
    for size in ((1366, 768), (390, 844)):
        opened(tab, report, size)
        box = tab.run(
            "(() => { const b = document.getElementById('video').getBoundingClientRect(); "
            "return [b.width, b.height]; })()"
        )
        assert box[0] / box[1] == pytest.approx(2 * 128 / 96, rel=0.01)
        assert tab.run("document.documentElement.scrollWidth") == size[0]
