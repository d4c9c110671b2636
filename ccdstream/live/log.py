"""What happens in a session, for the record and for whoever reads along: safe from any thread."""

import json
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any

from ccdstream.live.records import Event, Gap
from ccdstream.report.audit import plain

MOST_GAPS = 1000
"""Kept for run.json; events.jsonl has all."""


def wall_clock(wall_s: float) -> str:
    """`time.time()` as ISO 8601, to the millisecond, in local time with its offset."""
    return datetime.fromtimestamp(wall_s).astimezone().isoformat(timespec="milliseconds")


def event_record(event: Event) -> dict[str, Any]:
    """The event as the object of one line."""
    return {
        "time": wall_clock(event.wall_s),
        "stream_s": round(event.stream_s, 3),
        "event": event.kind,
        **plain(event.data),
    }


def event_line(event: Event) -> str:
    """The event as one line of JSON, without the newline."""
    return json.dumps(event_record(event), ensure_ascii=False, allow_nan=False)


class EventLog:
    """Passes events on, one at a time, and keeps the gaps.

    Args:
        keep: writes the event down.
        tell: prints it.
    """

    def __init__(self, keep: Callable[[Event], None], tell: Callable[[Event], None]) -> None:
        self._keep = keep
        self._tell = tell
        self._alone = threading.Lock()
        self.gaps: list[Gap] = []
        """The first `MOST_GAPS`; the last may still be open."""

    def __call__(self, event: Event) -> None:
        with self._alone:
            self._follow(event)
            self._keep(event)
            self._tell(event)

    def _follow(self, event: Event) -> None:
        data = event.data
        if event.kind == "gap_opened":
            self._put(Gap(data["start_s"], None, data["cause"]))
        elif event.kind == "gap_closed":
            gap = Gap(data["start_s"], data["end_s"], data["cause"])
            if self.gaps and self.gaps[-1].end_s is None:
                self.gaps.pop()
            self._put(gap)

    def _put(self, gap: Gap) -> None:
        if len(self.gaps) < MOST_GAPS:
            self.gaps.append(gap)
