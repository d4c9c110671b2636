"""The page in headless Firefox: what differs between browsers. `test_live_page.py` has the rest."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from ccdstream.live.board import Board
from ccdstream.live.records import Status
from ccdstream.live.serve import Watch
from tests.browser import FIREFOX, FirefoxTab, firefox
from tests.live_feed import FACTS, Feed
from tests.test_live_page import MESSAGES_STAY, PICTURE, SLOW, asked, card, faults, kind_is

pytestmark = pytest.mark.skipif(FIREFOX is None, reason="no Firefox")


@pytest.fixture(scope="module")
def tab() -> Iterator[FirefoxTab]:
    """One browser for all: starting it takes longer than a test."""
    with firefox() as opened:
        yield opened


@pytest.fixture
def feed() -> Iterator[Feed]:
    with Feed(Board(), size=(144, 180), rate=10, loop_s=4.0, facts=FACTS | SLOW) as running:
        yield running


def test_picture_and_line_move_and_nothing_is_refused(tab: FirefoxTab, feed: Feed) -> None:
    with Watch(feed.board) as watch:
        tab.open(watch.url)
        tab.until(PICTURE)
        tab.until(kind_is("READY"))
        picture = "pen.getImageData(0, 0, 180, 144).data.slice(40000, 44000).join()"
        line = "ink.getImageData(0, 0, line.width, line.height).data.join()"
        for seen in (picture, line):
            tab.run(f"(window.before = {seen}) && 1")
            tab.until(f"{seen} !== window.before")
        assert tab.run("[picture.width, picture.height]") == [180, 144]
        feed.status = Status("LAG", "230 ms")
        tab.until(kind_is("LAG 230 ms"))
        feed.status = Status("NO SIGNAL", "unplugged")
        tab.until(kind_is("NO SIGNAL"))
        assert tab.run("picture.hidden")
        feed.status = None
        tab.until(PICTURE)
        assert faults(tab) == []


def test_keys_mark_note_keep_and_mute(tab: FirefoxTab, feed: Feed) -> None:
    with Watch(feed.board) as watch:
        tab.open(watch.url)
        tab.until(PICTURE)
        tab.press("m")
        assert asked(feed.board).kind == "mark"
        tab.press("s")
        assert asked(feed.board).kind == "snapshot"
        tab.press("n")
        tab.until("document.getElementById('noting').open")
        for letter in "ok":
            tab.press(letter)
        tab.press("\ue007")  # Enter
        assert asked(feed.board).note == "ok"
        for state in ("true", "false"):
            tab.press("a")
            tab.until(
                f"document.getElementById('sound').getAttribute('aria-pressed') === '{state}'"
            )
        assert faults(tab) == []


def test_an_alert_is_shown_and_listed(tab: FirefoxTab, feed: Feed) -> None:
    opened = card(900, closed_s=None)
    feed.board.put_alert(opened)
    with Watch(feed.board) as watch:
        tab.open(watch.url)
        tab.until(PICTURE)
        tab.until("document.body.dataset.alert === 'open'")
        assert "OPEN" in tab.run("document.querySelector('.card').innerText")
        tab.press("\ue015")  # down
        assert tab.run("document.activeElement.dataset.number") == "900"
        feed.board.put_alert(replace(opened, closed_s=opened.peak_s))
        tab.until("!document.querySelector('[data-number=\"900\"]').classList.contains('open')")


def test_on_a_phone_the_status_stays_and_nothing_lies_over_the_line(
    tab: FirefoxTab, feed: Feed
) -> None:
    with Watch(feed.board) as watch:
        tab.open(watch.url, (390, 844))
        tab.until(PICTURE)
        tab.run(MESSAGES_STAY)
        tab.press("m")
        tab.until("document.getElementById('toasts').innerText.startsWith('Marked at ')")
        tab.run("(document.querySelector('main').scrollTop = 1e6) && 1")
        assert tab.run("document.querySelector('main').scrollTop") > 60
        seen = """((name) => { const b = document.getElementById(name).getBoundingClientRect();
            return document.elementFromPoint(b.left + b.width / 2, b.top + b.height / 2)?.id; })"""
        shown = tab.run("document.body.dataset.alert ? 'alarm' : 'kind'")
        assert tab.run(f"{seen}('{shown}')") == shown
