"""Worker processes: each does one task at a time, and one that dies costs the task it was at.

A worker is started once and keeps what it opened (a model) from task to task. The caller gives
tasks and takes in events; it needs no thread for it. Signals are the caller's: workers ignore
SIGINT and SIGTERM, which a terminal or a service sends to them too, and are told over their pipe to
end their input or to give up. Where the caller dies, however that comes, they end at once.
"""

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

from ccdstream.errors import CcdstreamError

_POLL_S = 0.2
"""How soon a caller that waits notices a signal."""

_GIVE_UP_S = 10.0
"""How long a worker that is to give up may take to tidy up, before it is killed."""


class GivenUp(BaseException):
    """Raised in the middle of work that nobody wants any more."""


Tell = Callable[[Any], None]
"""Sends something to the caller while a task is at work."""
Stopped = Callable[[], bool]
"""Whether the input of a task is to end here. Raises `GivenUp` where nobody wants the task."""
Work = Callable[[Any, Tell, Stopped], Any]
"""Does a task, and gives what is sent back."""
Setup = Callable[[Tell], tuple[Any, Work]]
"""Run once in each worker: what the worker says of itself when it is ready, and what it does."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker has opened what it needs, and can be given a task."""

    about: Any


@dataclass(frozen=True, slots=True)
class Told:
    """What a worker sent while it was at work, or while it got ready."""

    what: Any


@dataclass(frozen=True, slots=True)
class Done:
    """A task has ended."""

    result: Any


@dataclass(frozen=True, slots=True)
class Raised:
    """A task, or getting ready, has failed."""

    error: CcdstreamError | None
    """None where it was a bug."""
    trace: str
    """Of a bug, as Python prints it."""


@dataclass(frozen=True, slots=True)
class Died:
    """A worker's process is gone."""

    how: str
    """Such as "crashed (SIGSEGV)"."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker is gone with the machine that it was on, which says nothing of its task. Workers of
    this machine are never lost; those of `ccdstream.cluster` may be."""

    how: str


Event = Ready | Told | Done | Raised | Died | Lost


class Worker:
    """The caller's side of one worker process."""

    def __init__(self, setup: Setup) -> None:
        context = multiprocessing.get_context("spawn")  # no copy of threads, locks or a GPU's state
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, setup), name="ccdstream-worker", daemon=True
        )
        with _signals_held_back():
            self._process.start()
        theirs.close()
        self.task: Any = None
        """What it is at."""

    @property
    def pid(self) -> int:
        """Of its process."""
        assert self._process.pid is not None, "it was started"
        return self._process.pid

    def give(self, task: Any) -> None:
        """Let it do `task`; only when it has none."""
        self.task = task
        self._send("task", task)

    def stop(self) -> None:
        """End the input of what it is at, so that it is finished properly."""
        self._send("stop")

    def _send(self, what: str, task: Any = None) -> None:
        with suppress(OSError):  # it is gone, which its events tell
            self._pipe.send((what, task))

    def _events(self) -> Iterator[Event]:
        """What has come from it, and its end."""
        try:
            while self._pipe.poll():
                yield self._pipe.recv()
        except (EOFError, OSError):
            yield self._end()

    def _end(self) -> Died:
        self._process.join()
        self._pipe.close()
        code = self._process.exitcode or 0
        if code >= 0:
            return Died(f"ended by itself, with exit status {code}")
        name = next((s.name for s in signal.Signals if s == -code), f"signal {-code}")
        if name == "SIGKILL":
            return Died("was killed (SIGKILL), as is done where memory runs out")
        return Died(f"crashed ({name})")

    def kill(self) -> None:
        """End its process, whatever it is at; one that waits for storage that is gone may outlive
        this."""
        self._process.kill()
        self._process.join(_GIVE_UP_S)
        self._pipe.close()

    def _wait(self) -> None:
        """Wait for its process, which was told to end, for as long as that may take."""
        self._process.join(_GIVE_UP_S)
        self.kill()


class Workers:
    """Worker processes; a context manager. Leaving the block ends them all: after an error those
    at work give up and tidy up, which costs what they were at."""

    def __init__(self) -> None:
        self.alive: list[Worker] = []

    def add(self, setup: Setup) -> Worker:
        """Start one more; `setup` must be picklable."""
        worker = Worker(setup)
        self.alive.append(worker)
        return worker

    def events(self) -> Iterator[tuple[Worker, Event]]:
        """What has come from whom, after waiting a moment if nothing has; a worker that died is
        among `alive` no more."""
        pipes = {worker._pipe: worker for worker in self.alive}
        for pipe in wait(list(pipes), timeout=_POLL_S):
            worker = pipes[pipe]  # type: ignore[index]
            for event in worker._events():
                if isinstance(event, Died) and worker in self.alive:
                    self.alive.remove(worker)
                yield worker, event

    def retire(self, worker: Worker) -> None:
        """End a worker that has no task."""
        self.alive.remove(worker)
        worker.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self.alive:
            worker._send("give up" if kind else "end")
        while self.alive:
            self.alive.pop()._wait()


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Within it what is started begins with SIGINT and SIGTERM held back, until it ignores them."""
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# -- the worker's side ----------------------------------------------------------------------------


def _serve(pipe: "Connection[Any, Any]", setup: Setup) -> None:
    """What a worker process does from beginning to end."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    tasks: SimpleQueue[Any] = SimpleQueue()
    stop, give_up = threading.Event(), threading.Event()

    def listen() -> None:
        """In a thread, so that a decoder that hangs cannot keep a process whose caller is gone."""
        try:
            while True:
                what, task = pipe.recv()
                if what == "stop":
                    stop.set()
                elif what == "task":
                    tasks.put((task,))
                else:
                    if what == "give up":
                        give_up.set()
                    tasks.put(None)
        except (EOFError, OSError):
            os._exit(1)

    def stopped() -> bool:
        if give_up.is_set():
            raise GivenUp
        return stop.is_set()

    def tell(what: Any) -> None:
        pipe.send(Told(what))

    threading.Thread(target=listen, name="listener", daemon=True).start()
    try:
        about, work = setup(tell)
        pipe.send(Ready(about))
        while (item := tasks.get()) is not None:
            try:
                pipe.send(Done(work(item[0], tell, stopped)))
            except Exception as error:
                pipe.send(_raised(error))
    except GivenUp:
        pass
    except BrokenPipeError:  # the caller is gone
        os._exit(1)
    except Exception as error:
        pipe.send(_raised(error))


def _raised(error: Exception) -> Raised:
    if isinstance(error, CcdstreamError):
        return Raised(error, "")
    return Raised(None, traceback.format_exc())
