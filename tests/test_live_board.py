"""The board of a live session: what watchers get, and that they never hold up the session."""

import threading

from ccdstream.live.board import HISTORY_S, MOST_ALERTS, MOST_REQUESTS, Board, Request
from ccdstream.live.records import AlertCard, Shown, Status


def shown(number: int, stream_s: float = 0.0, *, state: str = "NORMAL") -> Shown:
    return Shown(None, number, stream_s, 0.0, Status("READY"), state, 0.5, 0.02)


def card(number: int, closed_s: float | None = None) -> AlertCard:
    return AlertCard(number, 1.0, 1e9, closed_s, 1.0, 0.99, 3, b"")


def test_a_watcher_gets_the_newest_picture_and_skips_those_it_missed() -> None:
    board = Board()
    for number in (1, 2, 3):
        board.show(shown(number))
    found = board.wait(after=1, timeout_s=0)
    assert found is not None and found.number == 3
    assert board.wait(after=3, timeout_s=0) is None


def test_a_waiting_watcher_wakes_when_a_picture_comes_and_when_the_session_ends() -> None:
    board, found = Board(), []
    watcher = threading.Thread(target=lambda: found.append(board.wait(after=0, timeout_s=30)))
    watcher.start()
    board.show(shown(1))
    watcher.join(10)
    assert found and found[0] is not None and found[0].number == 1
    late = threading.Thread(target=lambda: found.append(board.wait(after=1, timeout_s=30)))
    late.start()
    board.close()
    late.join(10)
    assert found[1:] == [None] and board.closed


def test_without_a_picture_the_status_is_no_signal() -> None:
    assert Board().status.kind == "NO SIGNAL"


def test_scores_are_kept_for_a_while_and_only_of_frames_that_were_analysed() -> None:
    board = Board()
    board.show(shown(1, 0.0))
    board.show(shown(2, 5.0, state=""))
    board.show(shown(3, HISTORY_S + 1))
    assert [point.stream_s for point in board.points()] == [HISTORY_S + 1]
    assert board.points(after_s=HISTORY_S + 1) == []


def test_an_alert_is_replaced_by_its_number_and_only_the_newest_are_kept() -> None:
    board = Board()
    for number in range(1, MOST_ALERTS + 2):
        board.put_alert(card(number))
    board.put_alert(card(MOST_ALERTS + 1, closed_s=9.0))
    cards = board.alerts()
    assert [cards[0].number, len(cards), cards[-1].closed_s] == [2, MOST_ALERTS, 9.0]
    board.drop_alert(2)
    assert board.alerts()[0].number == 3


def test_requests_are_handed_over_once_and_do_not_pile_up() -> None:
    board = Board()
    for k in range(MOST_REQUESTS + 3):
        board.ask(Request("mark", str(k)))
    asked = board.requests()
    assert len(asked) == MOST_REQUESTS and asked[-1].note == str(MOST_REQUESTS + 2)
    assert board.requests() == []


def test_facts_and_counters_are_added_to_what_was_told() -> None:
    board = Board()
    board.tell({"source": "a", "model": "m"})
    board.tell({"source": "b"})
    board.count({"frames": 1})
    board.count({"dropped": 2})
    assert board.facts() == {"source": "b", "model": "m"}
    assert board.counters() == {"frames": 1, "dropped": 2}
