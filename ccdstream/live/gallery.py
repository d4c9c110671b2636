"""The gallery of a live session: pictures are made in a thread of their own, so that the analysis
of the newest frame never waits for a JPEG."""

import threading
from collections.abc import Callable
from functools import partial
from queue import Queue
from types import TracebackType
from typing import Self

from ccdstream.frames import DeviceFrame, FieldOfView, Frame, Fused
from ccdstream.report.gallery import Gallery, Heated, Peaked

MOST_WAITING = 8
"""Calls that may wait: frames are held as long. Only a caller that is further ahead waits."""


class LiveGallery(Gallery):
    """A `Gallery` whose calls return at once; a context manager. Read it when the block is left.

    Raises:
        Exception: what a call failed with, once: from a later call, or on leaving.
    """

    def __init__(self, *, start_s: float, heated: Heated) -> None:
        super().__init__(start_s=start_s, heated=heated)
        self._calls: Queue[Callable[[], None] | None] = Queue(MOST_WAITING)
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="live gallery", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._calls.put(None)
        self._thread.join()
        if kind is None:
            self._check()

    def add(self, frame: Frame | DeviceFrame, seconds: float, fused: Fused, state: str) -> None:
        self._later(partial(super().add, frame, seconds, fused, state))

    def peak_so_far(self, frame: Frame | DeviceFrame, field: FieldOfView, fused: Fused) -> None:
        self._later(partial(super().peak_so_far, frame, field, fused))

    def close(self, alert: Peaked) -> None:
        self._later(partial(super().close, alert))

    def _later(self, call: Callable[[], None]) -> None:
        self._check()
        self._calls.put(call)

    def _check(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self) -> None:
        failed = False
        while (call := self._calls.get()) is not None:
            if failed:  # nobody may wait for ever
                continue
            try:
                call()
            except Exception as error:  # not swallowed: _check raises it
                self._error, failed = error, True
            del call  # or it would hold its frame while the next one is waited for
