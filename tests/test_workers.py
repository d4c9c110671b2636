"""Calls that are joined, and work that is shared out: nothing is lost, done twice, or left behind.

`no_thread_left_behind` holds for every test here.
"""

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from ccdstream.workers import GivenUp, Joined, share_out


class Slow:
    """Squares numbers; its first call waits for `go`. A negative number cannot be squared."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.go = threading.Event()

    def __call__(self, numbers: list[int]) -> list[int]:
        self.calls.append(numbers)
        if len(self.calls) == 1:
            assert self.go.wait(10)
        if min(numbers) < 0:
            raise ValueError(f"negative: {min(numbers)}")
        return [number * number for number in numbers]


def results_of(slow: Slow, joined: "Joined[int, int]", numbers: list[int]) -> list[object]:
    """What each of `numbers` gives, called in this order while the first call is at work."""

    def outcome(number: int) -> object:
        try:
            return joined(number)
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(len(numbers)) as pool:
        futures = []
        for count, number in enumerate(numbers):
            futures.append(pool.submit(outcome, number))
            wait_until(lambda count=count: len(slow.calls) == 1 and len(joined._waiting) == count)
        slow.go.set()
        return [future.result() for future in futures]


def wait_until(so: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not so():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_lone_caller_is_served_at_once_and_alone() -> None:
    slow = Slow()
    slow.go.set()
    joined = Joined(slow, size=lambda _: 1, most=8)
    assert [joined(number) for number in (3, 4)] == [9, 16]
    assert slow.calls == [[3], [4]]


def test_who_waits_while_a_call_is_at_work_shares_the_next_ones() -> None:
    slow = Slow()
    joined = Joined(slow, size=lambda _: 1, most=3)
    assert results_of(slow, joined, [1, 2, 3, 4, 5]) == [1, 4, 9, 16, 25]
    assert slow.calls == [[1], [2, 3, 4], [5]]


def test_a_call_takes_no_more_than_fits_and_what_never_fits_alone() -> None:
    slow = Slow()
    joined = Joined(slow, size=lambda number: number, most=5)
    assert results_of(slow, joined, [1, 2, 3, 9, 4]) == [1, 4, 9, 81, 16]
    assert slow.calls == [[1], [2, 3], [9], [4]]


def test_an_error_is_raised_where_it_belongs_and_nowhere_else() -> None:
    slow = Slow()
    joined = Joined(slow, size=lambda _: 1, most=8)
    assert results_of(slow, joined, [1, 2, -3, 4]) == [1, 4, "negative: -3", 16]
    assert slow.calls == [[1], [2, -3, 4], [2], [-3], [4]]
    assert joined(5) == 25  # and it goes on


def test_many_callers_each_get_their_own_result() -> None:
    slow = Slow()
    slow.go.set()
    joined = Joined(slow, size=lambda _: 1, most=4)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(joined, range(400))) == [k * k for k in range(400)]
    assert sorted(k for call in slow.calls for k in call) == list(range(400))
    assert max(map(len, slow.calls)) <= 4


def test_each_item_goes_to_one_worker_and_to_whoever_is_free() -> None:
    done: list[tuple[str, int]] = []
    quick_is_through = threading.Event()

    def slow(item: int, go_on: Callable[[], None]) -> None:
        assert quick_is_through.wait(10)
        done.append(("slow", item))

    def quick(item: int, go_on: Callable[[], None]) -> None:
        done.append(("quick", item))
        if len(done) == 3:
            quick_is_through.set()

    share_out(range(4), [slow, quick])
    assert sorted(item for _, item in done) == [0, 1, 2, 3]
    assert [who for who, _ in done] == ["quick"] * 3 + ["slow"]


def test_a_single_worker_works_in_the_callers_thread_in_order() -> None:
    done: list[tuple[int, threading.Thread]] = []
    share_out([3, 1, 2], [lambda item, _: done.append((item, threading.current_thread()))])
    assert done == [(item, threading.current_thread()) for item in (3, 1, 2)]


def test_more_workers_than_items_do_no_harm() -> None:
    done: list[int] = []
    share_out([1], [lambda item, _: done.append(item)] * 3)
    share_out([], [lambda item, _: done.append(item)] * 2)
    assert done == [1]


def waits_until_given_up(told: list[str]) -> Callable[[int, Callable[[], None]], None]:
    def work(item: int, go_on: Callable[[], None]) -> None:
        try:
            wait_until(lambda: bool(go_on()))
        except GivenUp:
            told.append(f"{item} was given up")
            raise

    return work


def test_the_error_of_one_worker_makes_the_others_give_up() -> None:
    told: list[str] = []

    def fails(item: int, go_on: Callable[[], None]) -> None:
        raise OSError(f"{item} broke")

    with pytest.raises(OSError, match=r"[01] broke"):
        share_out(range(9), [waits_until_given_up(told), fails])
    assert told in (["0 was given up"], ["1 was given up"], [])  # the other may not have begun


def test_an_interrupted_caller_makes_all_give_up() -> None:
    told: list[str] = []
    waiting = waits_until_given_up(told)

    def interrupts(item: int, go_on: Callable[[], None]) -> None:
        if item == 0:
            signal.raise_signal(signal.SIGINT)
        waiting(item, go_on)

    with pytest.raises(KeyboardInterrupt):
        share_out(range(9), [interrupts, interrupts])
    assert 1 <= len(told) <= 2
