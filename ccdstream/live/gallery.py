"""The gallery of a live session: pictures are made in a thread of their own, so that the analysis
of the newest frame never waits for a JPEG, nor fails with one."""

import threading
from collections.abc import Callable
from functools import partial
from queue import Queue
from typing import Self

from ccdstream.frames import DeviceFrame, FieldOfView, Frame, Fused
from ccdstream.live.failures import bug
from ccdstream.report.gallery import Gallery, Heated, Peaked

MOST_WAITING = 8
"""Calls that may wait: frames are held as long. Only a caller that is further ahead waits."""


class LiveGallery(Gallery):
    """A `Gallery` whose calls return at once; a context manager. Read it when the block is left.

    A call that fails leaves out what it was to add, and those after it are made all the same.

    Attributes:
        failed: why something is left out, by the first call that failed; None while all is well.
        traceback: of that; empty while all is well.
    """

    def __init__(self, *, start_s: float, heated: Heated) -> None:
        super().__init__(start_s=start_s, heated=heated)
        self._calls: Queue[Callable[[], None] | None] = Queue(MOST_WAITING)
        self.failed: str | None = None
        self.traceback = ""
        self._thread = threading.Thread(target=self._run, name="live gallery", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._calls.put(None)
        self._thread.join()

    def add(self, frame: Frame | DeviceFrame, seconds: float, fused: Fused, state: str) -> None:
        self._calls.put(partial(super().add, frame, seconds, fused, state))

    def peak_so_far(self, frame: Frame | DeviceFrame, field: FieldOfView, fused: Fused) -> None:
        self._calls.put(partial(super().peak_so_far, frame, field, fused))

    def close(self, alert: Peaked) -> None:
        self._calls.put(partial(super().close, alert))

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except Exception as error:  # not swallowed: `failed` is looked at
                if self.failed is None:
                    why, self.traceback = bug(error, "The report lacks pictures or scores.")
                    self.failed = why  # last: whoever sees it finds the other
            del call  # or it would hold its frame while the next one is waited for
