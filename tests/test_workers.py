"""Worker processes: what they do comes back, and one that dies takes nobody with it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ccdstream.errors import OutputError
from ccdstream.workers import (
    Died,
    Done,
    Event,
    GivenUp,
    Raised,
    Ready,
    Stopped,
    Tell,
    Told,
    Work,
    Worker,
    Workers,
)
from tests.commands import ROOT


def set_up(_: Tell) -> tuple[int, Work]:
    """A worker that says which process it is, and does what its task is called after."""
    return os.getpid(), work


def work(task: Any, tell: Tell, stopped: Stopped) -> Any:
    match task:
        case ("square", number):
            tell(f"{number} times {number}")
            return number * number
        case ("refuse",):
            raise OutputError("the disk is full")
        case ("bug",):
            raise ZeroDivisionError("a bug")
        case ("die", number):
            os.kill(os.getpid(), number)
        case ("exit",):
            os._exit(7)
        case ("until stopped",):
            tell("begun")
            while not stopped():
                time.sleep(0.005)
            return "stopped"
        case ("until given up", place):
            tell("begun")
            try:
                while True:
                    stopped()
                    time.sleep(0.005)
            except GivenUp:
                Path(place).write_text("tidied up")
                raise
        case ("hang",):
            tell("begun")
            time.sleep(60)
    return None


def no_model(_: Tell) -> tuple[Any, Work]:
    raise OutputError("no model")


def next_event(workers: Workers) -> tuple[Worker, Event]:
    """What comes next; fails where nothing does."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for worker, event in workers.events():
            return worker, event
    pytest.fail("nothing came")


def results_of(workers: Workers, worker: Worker, task: Any) -> list[Event]:
    """What a task gives, up to its end."""
    worker.give(task)
    events = []
    while not (events and isinstance(events[-1], Done | Raised | Died)):
        events.append(next_event(workers)[1])
    return events


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(so: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not so():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_one_worker_does_task_after_task_in_a_process_of_its_own() -> None:
    with Workers() as workers:
        worker = workers.add(set_up)
        ready = next_event(workers)[1]
        assert ready == Ready(worker.pid) and worker.pid != os.getpid()
        assert results_of(workers, worker, ("square", 3)) == [Told("3 times 3"), Done(9)]
        # an error costs its task alone
        [refused] = results_of(workers, worker, ("refuse",))
        assert isinstance(refused, Raised) and isinstance(refused.error, OutputError)
        assert str(refused.error) == "the disk is full"
        [bug] = results_of(workers, worker, ("bug",))
        assert isinstance(bug, Raised) and bug.error is None
        assert bug.trace.strip().endswith("ZeroDivisionError: a bug")
        assert results_of(workers, worker, ("square", 4))[-1] == Done(16)
    assert not is_alive(ready.about)


@pytest.mark.parametrize(
    ("task", "how"),
    [
        (("die", signal.SIGSEGV), "crashed (SIGSEGV)"),
        (("die", signal.SIGKILL), "was killed (SIGKILL), as is done where memory runs out"),
        (("exit",), "ended by itself, with exit status 7"),
    ],
    ids=["segv", "kill", "exit"],
)
def test_a_worker_that_dies_is_told_with_how_and_the_others_go_on(task: Any, how: str) -> None:
    with Workers() as workers:
        one, other = workers.add(set_up), workers.add(set_up)
        assert {next_event(workers)[0], next_event(workers)[0]} == {one, other}
        one.give(task)
        assert next_event(workers) == (one, Died(how))
        assert workers.alive == [other]
        assert results_of(workers, other, ("square", 5))[-1] == Done(25)


def test_a_worker_that_cannot_get_ready_says_why_and_is_gone() -> None:
    with Workers() as workers:
        worker = workers.add(no_model)
        raised = next_event(workers)[1]
        assert isinstance(raised, Raised) and str(raised.error) == "no model"
        assert next_event(workers) == (worker, Died("ended by itself, with exit status 0"))
        assert workers.alive == []


def test_workers_pay_no_heed_to_signals_but_end_their_input_when_told() -> None:
    with Workers() as workers:
        worker = workers.add(set_up)
        next_event(workers)
        worker.give(("until stopped",))
        assert next_event(workers)[1] == Told("begun")
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(worker.pid, number)
        worker.stop()
        assert next_event(workers)[1] == Done("stopped")


def test_after_an_error_of_the_caller_workers_give_up_and_tidy_up(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Workers() as workers:
        worker = workers.add(set_up)
        next_event(workers)
        worker.give(("until given up", str(tmp_path / "told")))
        assert next_event(workers)[1] == Told("begun")
        raise KeyboardInterrupt
    assert (tmp_path / "told").read_text() == "tidied up"
    assert not is_alive(worker.pid)


def test_a_worker_that_hangs_is_killed_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ccdstream.workers._GIVE_UP_S", 0.1)
    with pytest.raises(KeyboardInterrupt), Workers() as workers:
        worker = workers.add(set_up)
        next_event(workers)
        worker.give(("hang",))
        assert next_event(workers)[1] == Told("begun")
        raise KeyboardInterrupt
    assert not is_alive(worker.pid)


CALLER = """
from tests.test_workers import next_event, set_up
from ccdstream.workers import Workers
with Workers() as workers:
    worker = workers.add(set_up)
    next_event(workers)
    worker.give(("hang",))
    next_event(workers)
    print(worker.pid, flush=True)
    next_event(workers)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_end_with_a_caller_that_is_killed_even_while_they_hang() -> None:
    command = [sys.executable, "-c", CALLER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as caller:
        assert caller.stdout is not None
        worker = int(caller.stdout.readline())
        assert is_alive(worker)
        caller.kill()
    wait_until(lambda: not is_alive(worker) or is_zombie(worker))


def is_zombie(pid: int) -> bool:
    """Ended, and nobody has asked how: not every first process of a machine does."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"
