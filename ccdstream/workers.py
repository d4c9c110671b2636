"""Several recordings at once: who does which, and what their threads do together.

`prefetch` runs the stages of one recording side by side; here whole recordings are. Nothing waits
for what may not come: there are no time-outs that a result depends on.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, suppress
from queue import Empty, Queue, SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_POLL_S = 0.2
"""How soon a caller that waits notices a signal, on systems where waiting cannot be interrupted."""


class Joined(Generic[T, R]):
    """A function of many items, called from several threads with one each: those that wait go into
    one call together.

    A caller that finds the function free calls it at once. Whoever comes while it is busy waits,
    and the first of them to get its turn takes along what else waits, in the order it came, up to
    `most`. So a lone caller never waits for company, and there is no thread of its own to stop.
    """

    def __init__(
        self,
        call: Callable[[list[T]], Sequence[R]],
        *,
        size: Callable[[T], int],
        most: int,
    ) -> None:
        """
        Args:
            call: gives a result an item, in order; called by one thread at a time.
            size: what an item counts.
            most: items of a call count no more than this together. One that alone counts more has
                a call to itself.
        """
        self._call = call
        self._size = size
        self._most = most
        self._waiting: deque[tuple[T, Future[R]]] = deque()
        self._turn = threading.Lock()

    def __call__(self, item: T) -> R:
        """The result of `item`.

        Raises:
            BaseException: what `call` raised for it. Where a call of several items fails, each is
                tried alone, so that the error is that of the item and not of its company.
        """
        future: Future[R] = Future()
        self._waiting.append((item, future))
        with self._turn:
            while not future.done():  # else another caller took it along
                self._serve(self._take())
        try:
            return future.result()
        finally:
            del future  # it holds the error, whose traceback holds this frame

    def _take(self) -> list[tuple[T, "Future[R]"]]:
        """The longest-waiting items that go into one call, at least one."""
        taken = [self._waiting.popleft()]
        room = self._most - self._size(taken[0][0])
        # others append meanwhile, but only the holder of the turn takes
        while self._waiting and (size := self._size(self._waiting[0][0])) <= room:
            taken.append(self._waiting.popleft())
            room -= size
        return taken

    def _serve(self, taken: list[tuple[T, "Future[R]"]]) -> None:
        try:
            results = self._call([item for item, _ in taken])
        except BaseException as error:  # not swallowed: each caller raises its own
            if len(taken) > 1 and isinstance(error, Exception):
                for one in taken:
                    self._serve([one])
                return
            for _, future in taken:
                future.set_exception(error)
        else:
            for (_, future), result in zip(taken, results, strict=True):
                future.set_result(result)


class GivenUp(BaseException):
    """Raised in the middle of work that nobody wants any more; whoever gave it up says why."""


Worker = Callable[[T, Callable[[], None]], None]
"""Does an item. It calls its second argument now and then, which raises `GivenUp` once the work is
not wanted any more, and lets that through."""


def share_out(items: Iterable[T], workers: Sequence[Worker[T]]) -> None:
    """Hand out `items`, in order, to whichever of `workers` is free: each item to one of them.

    Each worker has a thread of its own; a single one works in the caller's, where signals arrive.
    When the block is left every thread has ended: where a worker raises, or the caller is
    interrupted, the others are told to give up, and what was not begun never is.

    Raises:
        BaseException: the first error of a worker.
    """
    if len(workers) == 1:
        for item in items:
            workers[0](item, lambda: None)
        return
    waiting: SimpleQueue[T] = SimpleQueue()
    for item in items:
        waiting.put(item)
    ended: Queue[BaseException | None] = Queue()
    given_up = threading.Event()

    def check() -> None:
        if given_up.is_set():
            raise GivenUp

    def serve(worker: Worker[T]) -> None:
        try:
            while not given_up.is_set():
                try:
                    item = waiting.get_nowait()
                except Empty:
                    break
                worker(item, check)
            ended.put(None)
        except GivenUp:
            ended.put(None)
        except BaseException as error:  # not swallowed: the caller raises it
            ended.put(error)

    threads = [
        threading.Thread(target=serve, args=(worker,), name="worker", daemon=True)
        for worker in workers
    ]
    try:
        for thread in threads:
            thread.start()
        for _ in threads:
            _raise_next(ended)
    finally:
        given_up.set()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        while not ended.empty():  # an error left in there would hold on to all that it went through
            ended.get_nowait()


def _raise_next(ended: "Queue[BaseException | None]") -> None:
    """Wait until a worker ends, and raise its error."""
    error = None
    try:
        while True:
            with suppress(Empty):
                error = ended.get(timeout=_POLL_S)
                break
        if error is not None:
            raise error
    finally:
        del error  # its traceback holds this frame


def one_at_a_time() -> AbstractContextManager[object]:
    """A block that one thread at a time is in; enter it as often as you like."""
    return threading.Lock()
