import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from ccdstream.prefetch import prefetch


def test_gives_the_same_items_in_order() -> None:
    with prefetch(range(1000), depth=3) as items:
        assert list(items) == list(range(1000))


@pytest.mark.parametrize("depth", [1, 4])
def test_runs_at_most_depth_items_ahead(depth: int) -> None:
    produced = 0

    def source() -> Iterator[int]:
        nonlocal produced
        while True:
            produced += 1
            yield produced

    with prefetch(source(), depth=depth) as items:
        assert next(items) == 1
        time.sleep(0.2)
        assert produced == 1 + depth + 1  # taken, queued, and one in hand waiting for room


def test_runs_ahead_in_another_thread() -> None:
    threads: list[threading.Thread] = []

    def source() -> Iterator[int]:
        threads.append(threading.current_thread())
        yield 1

    with prefetch(source(), depth=1) as items:
        assert list(items) == [1]
    assert threads[0] is not threading.current_thread()


def test_error_arrives_after_the_items_before_it() -> None:
    def source() -> Iterator[int]:
        yield from range(3)
        raise OSError("stream broke")

    got: list[int] = []
    with pytest.raises(OSError, match="stream broke"), prefetch(source(), depth=2) as items:
        got.extend(items)
    assert got == [0, 1, 2]


@pytest.mark.parametrize("depth", [1, 8])
def test_leaving_early_stops_every_stage(depth: int) -> None:
    """no_thread_left_behind is what fails here."""
    with (
        prefetch(itertools.count(), depth=depth) as first,
        prefetch(first, depth=depth) as second,
        prefetch(second, depth=depth) as third,
    ):
        assert next(third) == 0


def test_an_error_of_the_consumer_stops_the_producer_and_stays_the_error() -> None:
    with (
        pytest.raises(KeyError, match="mine"),
        prefetch(itertools.count(), depth=2) as items,
    ):
        next(items)
        raise KeyError("mine")


def test_the_source_is_at_rest_once_the_block_is_left() -> None:
    """So that a file which it reads may be closed."""
    busy = threading.Event()

    def source() -> Iterator[int]:
        for k in itertools.count():
            busy.set()
            time.sleep(0.02)
            busy.clear()
            yield k

    with prefetch(source(), depth=1) as items:
        next(items)
    assert not busy.is_set()


def test_an_iterator_that_is_kept_beyond_the_block_ends() -> None:
    """Rather than waiting for a producer that is gone."""
    with prefetch(itertools.count(), depth=3) as items:
        assert next(items) == 0
    assert list(items) == []


@pytest.mark.parametrize("depth", [0, -1])
def test_a_depth_below_one_is_refused(depth: int) -> None:
    """A queue of size 0 would have no bound at all."""
    with pytest.raises(ValueError, match=f"at least 1, got {depth}"), prefetch([], depth=depth):
        pass
