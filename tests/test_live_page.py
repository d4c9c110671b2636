"""The page in headless Chromium: what someone in front of it sees, and what their keys do."""

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from ccdstream.live.board import Board, Request
from ccdstream.live.records import AlertCard, Shown, Status
from ccdstream.live.serve import Watch
from tests.browser import CHROMIUM, FirefoxTab, Tab, chromium
from tests.live import grey
from tests.live_feed import FACTS, Feed

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")

PICTURE = "!document.getElementById('picture').hidden"
SLOW = {"max_latency_s": 20.0}
"""A bound that a busy machine keeps; tests of withdrawal set a shorter one."""
MESSAGES_STAY = """(window.setTimeout = ((later) => (what, ms, ...more) =>
    ms < 4000 ? later(what, ms, ...more) : 0)(window.setTimeout)) && 1"""
"""Run in the page: no message goes by itself before a busy machine has looked for it."""


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    """One browser for all: starting it takes longer than a test."""
    with chromium() as opened:
        yield opened


@pytest.fixture
def open_tab(tab: Tab) -> Iterator[Tab]:
    tab.errors.clear()
    tab.requested.clear()
    yield tab
    tab.call("Page.navigate", url="about:blank")


@pytest.fixture
def feed() -> Iterator[Feed]:
    with Feed(Board(), size=(144, 180), rate=10, loop_s=4.0, facts=FACTS | SLOW) as running:
        yield running


def text(tab: Tab, name: str) -> str:
    return str(tab.run(f"document.getElementById('{name}').textContent"))


def faults(tab: Tab | FirefoxTab) -> list[str]:
    """What the page logged as an error, but for a connection that a busy machine kept waiting."""
    return [error for error in tab.errors if "ws://" not in error]


def kind_is(kind: str) -> str:
    return f"document.getElementById('kind').textContent === '{kind}'"


def asked(board: Board) -> Request:
    """What the page asks for, once it does."""
    for _ in range(3000):
        if found := board.requests():
            return found[0]
        board.wait(10**9, 0.01)
    raise AssertionError("nothing was asked for")


def card(number: int, **more: object) -> AlertCard:
    base = AlertCard(number, 3.0 * number, 1.7e9, 3.0 * number + 2, 3.5, 0.9939, 4, b"")
    return replace(base, **more)


def test_the_picture_moves_and_everything_comes_from_the_one_server(
    open_tab: Tab, feed: Feed
) -> None:
    with Watch(feed.board) as watch:
        open_tab.open(watch.url)
        open_tab.until(PICTURE)
        seen = "JSON.stringify([...pen.getImageData(0, 0, 180, 144).data.slice(40000, 44000)])"
        open_tab.run(f"window.before = {seen}")
        open_tab.until(f"{seen} !== window.before")
        assert open_tab.run("[picture.width, picture.height]") == [180, 144]
        open_tab.until(kind_is("READY"))
        open_tab.until("document.getElementById('score').textContent.startsWith('0.')")
        assert text(open_tab, "source") == FACTS["source"]
        assert "Research use only. Not a medical device." in open_tab.run("document.body.innerText")
        assert faults(open_tab) == []
        address = watch.url.removeprefix("http")
        assert open_tab.requested
        assert [url for url in open_tab.requested if not url.endswith(address.rstrip("/"))
                and not url.startswith(("http" + address, "ws" + address))] == []  # fmt: skip


def test_a_picture_of_pixels_that_are_not_square_is_shown_in_its_shape(
    open_tab: Tab, feed: Feed
) -> None:
    feed.board.tell({"sample_aspect_ratio": 64 / 45})
    with Watch(feed.board) as watch:
        open_tab.open(watch.url)
        open_tab.until(PICTURE)
        assert open_tab.run("[picture.width, picture.height]") == [256, 144]


def test_a_lost_signal_withdraws_the_picture_and_says_why_and_it_comes_back(
    open_tab: Tab, feed: Feed
) -> None:
    with Watch(feed.board) as watch:
        open_tab.open(watch.url)
        open_tab.until(PICTURE)
        feed.status = Status("NO SIGNAL", "connection refused, next try in 4 s")
        open_tab.until(kind_is("NO SIGNAL"))
        assert open_tab.run("picture.hidden")
        assert text(open_tab, "detail") == "connection refused, next try in 4 s"
        assert text(open_tab, "recording-word") == "Recording waits"
        assert text(open_tab, "score") == "\u2013"
        open_tab.until("document.getElementById('speak').textContent.includes('NO SIGNAL')")
        assert (
            max(
                open_tab.run(
                    "[...pen.getImageData(0, 0, 180, 144).data].filter((v, k) => k % 4 < 3)"
                )
            )
            == 0
        )
        feed.status = None
        open_tab.until(PICTURE)
        open_tab.until(kind_is("READY"))


def test_a_page_that_is_opened_without_a_signal_knows_for_how_long_there_is_none(
    open_tab: Tab,
) -> None:
    board, now_s = Board(), time.monotonic()
    board.tell(FACTS)
    board.show(Shown(grey(90), 1, 100.0, now_s - 300, Status("READY"), "NORMAL", 0.5, 0.02))
    board.show(Shown(None, 2, 400.0, now_s, Status("NO SIGNAL", "unplugged"), "", None, 0.0))
    with Watch(board) as watch:
        open_tab.open(watch.url)
        open_tab.until("document.getElementById('blank-since').textContent.startsWith('for 5 min')")
        assert open_tab.run("points.length === 1 && streamNow() - points[0][0]") >= 300


def test_a_late_analysis_says_by_how_much(open_tab: Tab, feed: Feed) -> None:
    feed.status = Status("LAG", "230 ms")
    with Watch(feed.board) as watch:
        open_tab.open(watch.url)
        open_tab.until(kind_is("LAG 230 ms"))


def test_when_no_newer_picture_comes_the_page_withdraws_the_old_one_itself(
    open_tab: Tab, feed: Feed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ccdstream.live.metrics.STALLED_S", 1e9)  # the server notices nothing
    with Watch(feed.board) as watch:
        open_tab.open(watch.url)
        open_tab.until(PICTURE)
        feed.paused.set()
        feed.board.wait(10**9, 0.3)  # a frame may be on its way to the board
        last = feed.board.shown
        assert last is not None
        open_tab.until(f"drawn === {last.number}")
        feed.board.tell({"max_latency_s": 0.1})
        open_tab.until("picture.hidden")
        open_tab.until("document.getElementById('kind').textContent.startsWith('LAG ')")
        # the second where the page itself stood still for a while
        told = ("no newer picture", "this browser or the network is slow")
        assert text(open_tab, "detail") in told
        feed.board.tell(SLOW)
        feed.paused.clear()
        open_tab.until(PICTURE)


def test_when_the_server_goes_the_page_says_so_and_it_reconnects_by_itself(
    open_tab: Tab, feed: Feed
) -> None:
    with Watch(feed.board) as watch:
        port = int(watch.url.rstrip("/").rpartition(":")[2])
        open_tab.open(watch.url)
        open_tab.until(PICTURE)
    open_tab.until(kind_is("NO CONNECTION"))
    assert open_tab.run("picture.hidden")
    assert open_tab.run("document.getElementById('mark').disabled")
    assert text(open_tab, "recording-word") == "RECORDING UNKNOWN"
    with Watch(feed.board, port=port):
        open_tab.until(PICTURE)
        open_tab.until(kind_is("READY"))
    with Watch(feed.board, port=port, token="another-one"):
        open_tab.until("document.getElementById('detail').textContent.includes('new token')")


def test_a_page_without_its_token_says_what_to_do_and_with_it_works(
    open_tab: Tab, feed: Feed
) -> None:
    with Watch(feed.board, token="let-me-see") as watch:
        open_tab.open(watch.url.partition("?")[0])
        open_tab.until("document.body.innerText.includes('needs its token')")
        open_tab.open(watch.url)
        open_tab.until(PICTURE)
        assert "token" not in open_tab.run("location.href")  # not on a screen that others see


@pytest.mark.parametrize("how", ["key", "button"])
def test_mark_and_snapshot_make_a_request_with_the_moment_that_was_seen(
    open_tab: Tab, feed: Feed, how: str
) -> None:
    with Watch(feed.board) as watch:
        open_tab.open(watch.url)
        open_tab.until(PICTURE)
        for kind in ("mark", "snapshot"):
            if how == "key":
                open_tab.press(kind[0])
            else:
                open_tab.run(f"document.getElementById('{kind}').click()")
            request = asked(feed.board)
            assert request.kind == kind and request.note == ""
            assert request.at_s is not None and 0 <= request.at_s < 600


def test_where_a_snapshot_is_the_page_tells(open_tab: Tab, feed: Feed) -> None:
    toasts = "document.getElementById('toasts').innerText"
    feed.board.tell({"output": "live-1", "snapshot": {"number": 1, "file": "snapshots/old.jpg"}})
    with Watch(feed.board) as watch:
        open_tab.open(watch.url)
        open_tab.until(PICTURE)
        open_tab.run(MESSAGES_STAY)
        feed.board.tell({"snapshot": {"number": 2, "file": "snapshots/new.jpg"}})
        open_tab.until(f"{toasts}.includes('Snapshot kept: live-1/snapshots/new.jpg')")
        feed.board.tell({"snapshot": {"number": 3, "failed": "No space left on device"}})
        open_tab.until(f"{toasts}.includes('No snapshot: No space left on device')")
        assert "old.jpg" not in open_tab.run(toasts), "of before this page was opened"


def test_the_end_of_a_session_closes_a_note_and_gives_back_what_was_typed(
    open_tab: Tab, feed: Feed
) -> None:
    feed.board.tell({"output": "live-1"})
    with Watch(feed.board) as watch:
        open_tab.open(watch.url)
        open_tab.until(PICTURE)
        open_tab.until("document.getElementById('recording-word').textContent === 'Recording'")
        open_tab.press("n")
        open_tab.until("document.getElementById('noting').open")
        open_tab.run("document.getElementById('noting-text').value = 'look again'; 1")
        feed.board.close()
        open_tab.until(kind_is("SESSION OVER"))
        assert text(open_tab, "detail") == "the results are in live-1"
        assert not open_tab.run("document.getElementById('noting').open")
        told = "The session is over. This note was not kept: look again"
        open_tab.until(f"document.getElementById('toasts').innerText.includes('{told}')")
        assert text(open_tab, "recording-word") == "Recording ended"
        assert feed.board.requests() == []
    open_tab.until("channel === null")
    assert text(open_tab, "kind") == "SESSION OVER"
    assert text(open_tab, "recording-word") == "Recording ended"


@pytest.mark.parametrize(
    "size",
    [(1920, 1080), (1366, 768), (820, 1180), (390, 844)],
    ids=lambda size: "x".join(map(str, size)),
)
def test_an_open_alert_is_the_loudest_thing_and_moves_no_button(
    open_tab: Tab, size: tuple[int, int]
) -> None:
    board = Board()
    board.tell(FACTS | SLOW)
    board.show(Shown(None, 1, 3.0, 0.0, Status("READY"), "NORMAL", 0.5, 0.0))
    places = "JSON.stringify([...document.querySelectorAll('button')].map((b) => b.offsetTop))"
    with Watch(board) as watch:
        open_tab.open(watch.url, size)
        open_tab.until(kind_is("READY"))
        before = open_tab.run(places)
        board.put_alert(card(1, closed_s=None))
        open_tab.until("document.body.dataset.alert === 'open'")
        seen = open_tab.run(
            """[...document.querySelectorAll('body *')]
               .filter((e) => e.offsetWidth && e.childElementCount === 0 && e.textContent.trim())
               .map((e) => [parseFloat(getComputedStyle(e).fontSize), e.id, e.textContent])
               .sort((a, b) => b[0] - a[0])"""
        )
        assert seen[0][1:] == ["alarm", "ALERT"] and seen[0][0] > 1.2 * seen[1][0], seen[:3]
        assert text(open_tab, "meanwhile") == "READY", "the status is told beside it"
        assert "at 4 o'clock" in text(open_tab, "alarm-detail")
        assert open_tab.run("document.title").startswith("ALERT")
        assert open_tab.run(places) == before
        board.put_alert(card(1))
        open_tab.until("document.body.dataset.alert === ''")
        assert open_tab.run("document.getElementById('alarm').hidden")
        assert not open_tab.run("document.getElementById('word').hidden")
        assert open_tab.run(places) == before


def test_a_long_source_keeps_its_end(open_tab: Tab) -> None:
    board = Board()
    long = "/mnt/" + "deep/" * 60 + "case12_left_colon.mp4"
    board.tell(FACTS | {"source": long})
    with Watch(board) as watch:
        open_tab.open(watch.url)
        open_tab.until("document.getElementById('source').textContent !== ''")
        assert text(open_tab, "source") == long
        assert open_tab.run("document.getElementById('source').title") == long
        way, name = (
            open_tab.run(f"(({{scrollWidth, clientWidth}}) => scrollWidth - clientWidth)"
                         f"(document.getElementById('source-{part}'))")
            for part in ("way", "name")
        )  # fmt: skip
        assert way > 0 and name <= 1


def test_a_note_belongs_to_the_moment_at_which_it_was_begun(open_tab: Tab, feed: Feed) -> None:
    with Watch(feed.board) as watch:
        open_tab.open(watch.url)
        open_tab.until(PICTURE)
        open_tab.press("n")
        open_tab.until("document.getElementById('noting').open")
        begun_s = open_tab.run("notingAt")
        open_tab.until(f"shownAt > {begun_s} + 0.3")
        for letter in "ms":  # letters here, and no commands
            open_tab.press(letter)
        open_tab.run("document.getElementById('noting-ok').click()")
        assert asked(feed.board) == Request("mark", "ms", begun_s)


def test_space_on_a_button_presses_it_and_leaves_the_sound(open_tab: Tab, feed: Feed) -> None:
    with Watch(feed.board) as watch:
        open_tab.open(watch.url)
        open_tab.until(PICTURE)
        open_tab.run("document.getElementById('mark').focus()")
        open_tab.press(" ", "Space")
        assert asked(feed.board).kind == "mark"
        assert open_tab.run("document.getElementById('sound').ariaPressed") == "false"


def test_alerts_are_listed_newest_first_and_gone_through_by_arrow_keys(open_tab: Tab) -> None:
    board = Board()
    board.tell(FACTS)
    board.put_alert(card(1))
    board.put_alert(card(2, closed_s=None, clock="centre", peak_score=0.99999))
    with Watch(board) as watch:
        open_tab.open(watch.url)
        open_tab.until("document.querySelectorAll('.card').length === 2")
        numbers = "[...document.querySelectorAll('.card')].map((c) => c.dataset.number)"
        assert open_tab.run(numbers) == ["2", "1"]
        newest, first = (
            open_tab.run(f"document.querySelector('.card[data-number=\"{n}\"]').innerText")
            for n in (2, 1)
        )
        assert "OPEN" in newest and "at centre" in newest and "peak 0.999" in newest
        assert "OPEN" not in first and "2.0 s, peak 0.993" in first and "at 4 o'clock" in first
        focus = "document.activeElement.dataset.number"
        for key, number in (("ArrowDown", "2"), ("ArrowDown", "1"), ("ArrowUp", "2")):
            open_tab.press(key)
            assert open_tab.run(focus) == number
        board.drop_alert(2)
        open_tab.until("document.querySelectorAll('.card').length === 1")


def test_the_sound_is_off_until_it_is_switched_on_and_then_an_opening_alert_sounds(
    open_tab: Tab,
) -> None:
    board = Board()
    board.tell(FACTS)
    board.put_alert(card(1, closed_s=None))
    with Watch(board) as watch:
        open_tab.open(watch.url)
        open_tab.until("document.querySelectorAll('.card').length === 1")
        open_tab.run(
            "window.tones = 0; const old = tone; tone = () => { if (sounding) tones++; old(); }; 1"
        )
        board.put_alert(card(2, closed_s=None))
        open_tab.until("document.querySelectorAll('.card').length === 2")
        assert open_tab.run("[tones, document.getElementById('sound').ariaPressed]") == [0, "false"]
        open_tab.press(" ", "Space")
        assert open_tab.run("[tones, document.getElementById('sound').ariaPressed]") == [1, "true"]
        board.put_alert(card(3, closed_s=None))
        open_tab.until("tones === 2")
        board.put_alert(card(3))  # its end is silent
        open_tab.until("!document.querySelector('.card').classList.contains('open')")
        open_tab.press("a")
        assert open_tab.run("[tones, document.getElementById('sound').ariaPressed]") == [2, "false"]


def test_where_no_sound_can_come_the_page_says_so(open_tab: Tab, feed: Feed) -> None:
    with Watch(feed.board) as watch:
        open_tab.open(watch.url)
        open_tab.until(PICTURE)
        open_tab.run(MESSAGES_STAY)
        open_tab.run("audio = {state: 'suspended', resume() {}}; tone = () => {}; 1")
        open_tab.press("a")
        told = "This browser plays no sound here"
        open_tab.until(f"document.getElementById('toasts').innerText === '{told}'")


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"recording": "a.mp4"}, "Recording waits for a picture"),
        ({"recording": None}, "NOT RECORDING (not asked for)"),
        ({"recording": "a.mp4", "recording_failed": "disk full"}, "NOT RECORDING: disk full"),
    ],
    ids=["no picture", "off", "failed"],
)
def test_whether_it_records_is_always_told(open_tab: Tab, facts: dict, words: str) -> None:
    board = Board()
    board.tell(FACTS | {"recording_failed": None} | facts)
    with Watch(board) as watch:
        open_tab.open(watch.url)
        open_tab.until(
            f"document.getElementById('recording').innerText.replace(/\\s+/g, ' ') === '{words}'"
        )


def test_what_the_session_tells_is_text_and_never_code(open_tab: Tab) -> None:
    board = Board()
    evil = "<img src=x onerror=window.hit=1>"
    board.tell(FACTS | {"source": evil, "notice": evil, "recording_failed": evil, "model": evil})
    board.put_alert(card(1, clock=evil))
    with Watch(board) as watch:
        open_tab.open(watch.url)
        open_tab.until("document.querySelectorAll('.card').length === 1")
        assert text(open_tab, "source") == evil
        assert evil in open_tab.run("document.querySelector('.card').innerText")
        assert open_tab.run("window.hit === undefined")
        assert "x" not in {url.rpartition("/")[2] for url in open_tab.requested}


def test_the_line_tells_time_and_score_and_leaves_gaps_empty(open_tab: Tab, feed: Feed) -> None:
    with Watch(feed.board) as watch:
        open_tab.open(watch.url)
        open_tab.until(PICTURE)
        open_tab.run(
            "points = []; for (let s = 0; s < 40; s += 0.1) points.push([s, 0.9, 1]);"
            "for (let s = 60; s < 100; s += 0.1) points.push([s, 0.99, 3]);"
            "addPoints = () => {}; streamNow = () => 100; drawLine(); 1"
        )
        box = open_tab.run("(({left, top, width, height}) => [left, top, width, height])"
                           "(line.getBoundingClientRect())")  # fmt: skip

        def hover(seconds: float) -> str:
            right, left = box[2] - 12, 52
            at = right - (100 - seconds) / 120 * (right - left)
            open_tab.call(
                "Input.dispatchMouseEvent", type="mouseMoved", x=box[0] + at, y=box[1] + 20
            )
            return text(open_tab, "hover")

        assert "0.900" in hover(30) and "NORMAL" in text(open_tab, "hover")
        assert hover(30).startswith("0:")
        assert "0.990" in hover(80) and "ALERT" in text(open_tab, "hover")
        assert "nothing analysed" in hover(50)


@pytest.mark.parametrize(
    "size",
    [(1920, 1080), (1366, 768), (1024, 768), (820, 1180)],
    ids=lambda size: "x".join(map(str, size)),
)
def test_everything_that_matters_is_in_the_window_at_each_size(
    open_tab: Tab, feed: Feed, size: tuple[int, int]
) -> None:
    feed.board.put_alert(card(900))
    with Watch(feed.board) as watch:
        open_tab.open(watch.url, size)
        open_tab.until(PICTURE)
        open_tab.until("document.querySelectorAll('.card').length > 0")
        feed.status = Status("OUT OF VIEW", "the scope is outside of the body")
        open_tab.until(kind_is("OUT OF VIEW"))
        outside = """['#picture', '#score', '#delay', '#dropped',
               '#recording', '#mark', '#note', '#snapshot', '#sound', '#line', '.card',
               'footer strong', ...(document.body.dataset.alert
                 ? ['#alarm', '#alarm-detail', '#meanwhile'] : ['#kind', '#detail', '#state'])]
               .filter((name) => {
                 const b = document.querySelector(name).getBoundingClientRect();
                 return b.width < 8 || b.height < 8 || b.left < 0 || b.top < 0
                   || b.right > innerWidth + 1 || b.bottom > innerHeight + 1;
               })"""
        open_tab.until(f"({outside}).length === 0")  # the feed may stand still for a while
        assert open_tab.run("document.getElementById('kind').scrollWidth"
                            " <= document.querySelector('.status').clientWidth")  # fmt: skip
        tall = open_tab.run(
            "parseFloat(getComputedStyle(document.querySelector('.word')).fontSize)"
        )
        assert tall >= (80 if size[0] == 1920 else 36)


def test_a_tab_that_is_not_looked_at_gets_no_pictures(open_tab: Tab, feed: Feed) -> None:
    with Watch(feed.board) as watch:
        open_tab.open(watch.url)
        open_tab.until(PICTURE)
        open_tab.run(
            "Object.defineProperty(document, 'hidden', {value: true, configurable: true});"
            "document.dispatchEvent(new Event('visibilitychange')); 1"
        )
        assert open_tab.run("picture.hidden")

        def frames_later(count: int) -> float:
            assert feed.board.shown is not None
            feed.board.wait(feed.board.shown.number + count, 30)
            return feed.board.counters()["pictures"]

        before = frames_later(15)  # what was on its way is counted by then
        known = open_tab.run("points.length")
        assert frames_later(15) == before
        open_tab.until(f"points.length > {known}")  # scores go on
        open_tab.run(
            "Object.defineProperty(document, 'hidden', {value: false, configurable: true});"
            "document.dispatchEvent(new Event('visibilitychange')); 1"
        )
        open_tab.until(PICTURE)


@pytest.mark.parametrize(
    "size",
    [(1920, 1080), (1366, 768), (820, 1180), (390, 844), (844, 390)],
    ids=lambda size: "x".join(map(str, size)),
)
def test_messages_lie_over_nothing_and_buttons_stay(
    open_tab: Tab, feed: Feed, size: tuple[int, int]
) -> None:
    feed.board.put_alert(card(900))
    places = "JSON.stringify([...document.querySelectorAll('button')].map((b) => b.offsetTop))"
    covered = """['picture', 'line', 'kind', 'alarm', 'state', 'score', 'delay', 'recording',
        'mark', 'sound', 'alerts'].filter((name) => {
          const a = document.getElementById(name).getBoundingClientRect();
          const b = document.getElementById('toasts').getBoundingClientRect();
          return a.width && a.left < b.right && b.left < a.right
            && a.top < b.bottom && b.top < a.bottom;
        })"""
    with Watch(feed.board) as watch:
        open_tab.open(watch.url, size)
        open_tab.until(PICTURE)
        open_tab.run(MESSAGES_STAY)
        before = open_tab.run(places)
        open_tab.press("m")
        open_tab.until("document.getElementById('toasts').innerText.startsWith('Marked at ')")
        assert (
            open_tab.run("getComputedStyle(document.getElementById('toasts')).position") == "static"
        )
        assert open_tab.run(covered) == []
        assert open_tab.run(places) == before
        open_tab.press("s")
        open_tab.until("document.getElementById('toasts').innerText.startsWith('Snapshot asked')")
        assert open_tab.run("document.getElementById('toasts').children.length") == 1


@pytest.mark.parametrize("size", [(390, 844), (844, 390)], ids=["upright", "across"])
def test_on_a_phone_the_status_stays_however_far_it_is_scrolled(
    open_tab: Tab, feed: Feed, size: tuple[int, int]
) -> None:
    scroller = "document.querySelector(innerWidth < innerHeight ? 'main' : 'aside')"
    feed.status = Status("NO SIGNAL", "unplugged")
    with Watch(feed.board) as watch:
        open_tab.open(watch.url, size)
        open_tab.until(kind_is("NO SIGNAL"))
        open_tab.run(f"{scroller}.scrollTop = 1e6; 1")
        assert open_tab.run(f"{scroller}.scrollTop") > 60, "there is more than the window holds"
        seen = """((name) => { const b = document.getElementById(name).getBoundingClientRect();
            return document.elementFromPoint(b.left + b.width / 2, b.top + b.height / 2)?.id; })"""
        assert open_tab.run(f"{seen}('kind')") == "kind"
        assert open_tab.run(f"{seen}('detail')") == "detail"


def test_a_note_is_written_beside_the_picture(open_tab: Tab, feed: Feed) -> None:
    with Watch(feed.board) as watch:
        for size in ((1366, 768), (390, 844)):
            open_tab.open(watch.url, size)
            open_tab.until(PICTURE)
            open_tab.press("n")
            open_tab.until("document.getElementById('noting').open")
            assert open_tab.run(
                """(({left, top}, {right, bottom}) => left >= right || top >= bottom)(
                    document.getElementById('noting').getBoundingClientRect(),
                    picture.getBoundingClientRect())"""
            )


def test_on_a_phone_the_keys_are_told_and_escape_closes_them(open_tab: Tab, feed: Feed) -> None:
    with Watch(feed.board) as watch:
        open_tab.open(watch.url, (390, 844))
        open_tab.until(PICTURE)
        open_tab.press("?")
        open_tab.until("document.getElementById('keys').open")
        shown = "[...document.querySelectorAll('#keys kbd')].every((k) => k.offsetWidth > 5)"
        assert open_tab.run(shown)
        assert not open_tab.run("document.querySelector('#mark kbd').offsetWidth")
        open_tab.press("Escape")
        assert not open_tab.run("document.getElementById('keys').open")


@pytest.mark.parametrize("size", [(1366, 768), (1000, 768)], ids=str)
def test_no_figure_is_cut(open_tab: Tab, feed: Feed, size: tuple[int, int]) -> None:
    with Watch(feed.board) as watch:
        open_tab.open(watch.url, size)
        open_tab.until(PICTURE)
        for name, figure in (("dropped", "100.0 %"), ("delay", "1345 ms"), ("rate", "25.0/s")):
            element = f"document.getElementById('{name}')"
            open_tab.run(f"{element}.textContent = '{figure}'")
            assert not open_tab.run(f"{element}.scrollWidth > {element}.clientWidth"), name
        boxes = "[...document.querySelectorAll('.figures div')]"
        assert open_tab.run(f"{boxes}.every((box) => box.scrollWidth <= box.clientWidth)")
