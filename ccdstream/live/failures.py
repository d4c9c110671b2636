"""What a session goes on without, and what is said where that fails.

The capture, the engine and what is drawn are the session: where one of them fails, it ends with
that error. Recordings, text files, pictures of the report, the page, the window and the report are
beside it: where one of them fails, also by a bug, that is told once, kept for live.run.json, and
the session goes on.
"""

import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from ccdstream.errors import CcdstreamError
from ccdstream.live.records import Event


class Beside(Protocol):
    """Something that a session goes on without."""

    @property
    def failed(self) -> str | None:
        """What went wrong, and what is lacking by it; None while all is well."""

    @property
    def traceback(self) -> str:
        """Where the bug is; empty where it is none."""


class Failures:
    """What failed beside a session, by name, the first of each; safe to use from any thread.

    Args:
        on_event: told part_failed (part, reason, and traceback where it is a bug).
        on_failed: told the name, and why.

    Attributes:
        reasons: name -> why, in a sentence.
        tracebacks: name -> traceback, of those that are bugs.
    """

    def __init__(
        self,
        *,
        on_event: Callable[[Event], None] = lambda _: None,
        on_failed: Callable[[str, str], None] = lambda *_: None,
    ) -> None:
        self.reasons: dict[str, str] = {}
        self.tracebacks: dict[str, str] = {}
        self.stream_s: Callable[[], float] = lambda: 0.0
        """Stream time of what happens now."""
        self._on_event = on_event
        self._on_failed = on_failed
        self._alone = threading.Lock()

    def add(self, name: str, why: str, trace: str = "", *, has_event: bool = False) -> None:
        """Something failed; told where it is the first of that name.

        Args:
            has_event: whether it tells an event of its own.
        """
        with self._alone:
            if name in self.reasons:
                return
            self.reasons[name] = why
            if trace:
                self.tracebacks[name] = trace
        if not has_event:
            data = {"part": name, "reason": why} | ({"traceback": trace} if trace else {})
            self._on_event(Event("part_failed", time.time(), self.stream_s(), data))
        self._on_failed(name, why + " live.run.json keeps the traceback." * bool(trace))

    def look(self, name: str, part: Beside, *, has_event: bool = False) -> None:
        """Note it where `part` has failed."""
        if part.failed is not None:
            self.add(name, part.failed, part.traceback, has_event=has_event)

    @contextmanager
    def spare(self, name: str, lacking: str) -> Iterator[None]:
        """Let the session go on where the block fails.

        Args:
            lacking: a sentence: what is not there for it.
        """
        try:
            yield
        except CcdstreamError as error:
            self.add(name, str(error))
        except Exception as error:  # not swallowed: told, and kept with its traceback
            self.add(name, *bug(error, lacking))


def bug(error: BaseException, lacking: str) -> tuple[str, str]:
    """(why something failed, in a line; the traceback) of an error that nobody expected."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"a fault in ccdstream, {text}{where}. {lacking}", "".join(
        traceback.format_exception(error)
    )
