"""Run an iterable ahead of its consumer. With `workers` and `live` all that knows of threads."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from queue import Full, Queue
from typing import Literal, TypeVar, cast

T = TypeVar("T")

_POLL_S = 0.05
"""How soon a producer that waits for room notices that it was stopped."""


@contextmanager
def prefetch(items: Iterable[T], *, depth: int) -> Iterator[Iterator[T]]:
    """Give `items` unchanged, produced in a background thread at most `depth` items ahead.

        with prefetch(source, depth=8) as frames:
            for frame in frames: ...

    A slow consumer slows the producer (back-pressure); nothing is dropped. An exception in `items`
    is raised in the consumer, after the items that came before it. Leaving the block, in any way,
    stops the producer and waits for it, so whatever `items` reads may be closed right after. It
    cannot interrupt `next(items)`: a source that can stall needs a time-out of its own.

    Args:
        items: read in the background thread only, from the first item on.
        depth: most items waiting, at least 1. One more is with the consumer and one in the
            producer's hand, so `depth + 2` items are alive at a time.

    Raises:
        ValueError: `depth` is below 1.
    """
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    queue: Queue[tuple[Literal["item", "end", "error"], object]] = Queue(maxsize=depth)
    stopped = threading.Event()

    def offer(kind: Literal["item", "end", "error"], value: object = None) -> None:
        while not stopped.is_set():
            try:
                return queue.put((kind, value), timeout=_POLL_S)
            except Full:
                continue

    def produce() -> None:
        try:
            for item in items:
                offer("item", item)
                if stopped.is_set():
                    return
            offer("end")
        except BaseException as error:  # not swallowed: consume() raises it
            offer("error", error)

    def consume() -> Iterator[T]:
        while True:
            kind, value = queue.get()
            if kind == "error":
                raise cast(BaseException, value)
            if kind == "end":
                return
            yield cast(T, value)

    producer = threading.Thread(target=produce, name="prefetch", daemon=True)
    producer.start()
    try:
        yield consume()
    finally:
        stopped.set()
        producer.join()
        while not queue.empty():  # the producer is gone, so nothing comes in between
            queue.get_nowait()
        queue.put(("end", None))  # so that an iterator kept beyond the block ends, not waits
