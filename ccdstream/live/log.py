"""What happens in a session, passed on to whoever keeps it and whoever tells it; and its gaps."""

import threading
from collections.abc import Callable

from ccdstream.live.records import Event, Gap

MOST_GAPS = 1000
"""Kept for run.json; events.jsonl has all."""


class EventLog:
    """Passes events on, one at a time, from any thread.

    Args:
        keep: writes the event down.
        tell: prints it.
    """

    def __init__(self, keep: Callable[[Event], None], tell: Callable[[Event], None]) -> None:
        self._keep = keep
        self._tell = tell
        self._alone = threading.RLock()  # whoever keeps one may have to tell that it failed
        self.gaps: list[Gap] = []
        """The first `MOST_GAPS`; the last may be open still."""

    def __call__(self, event: Event) -> None:
        with self._alone:
            if event.kind in ("gap_opened", "gap_closed"):
                self._put(event)
            self._keep(event)
            self._tell(event)

    def _put(self, event: Event) -> None:
        data = event.data
        gap = Gap(data["start_s"], data.get("end_s"), data["cause"])
        if self.gaps and self.gaps[-1].start_s == gap.start_s and self.gaps[-1].end_s is None:
            self.gaps[-1] = gap
        elif len(self.gaps) < MOST_GAPS:
            self.gaps.append(gap)
