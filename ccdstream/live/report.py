"""A live session for people -> live.report.html: `report.page`, given what only a session has.

`Story` collects while the session runs, in memory that does not grow: of what happens again and
again the page shows the first, and says how many more there are. live.events.jsonl has all.
"""

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import Any, Generic, TypeVar

from ccdstream.alert import Alert
from ccdstream.live.records import Event
from ccdstream.live.session import OVERLAY, SOURCE
from ccdstream.report.audit import plain
from ccdstream.report.document import Facts
from ccdstream.report.gallery import Gallery
from ccdstream.report.page import (
    Beside,
    Listing,
    Live,
    Moment,
    model_facts,
    rule_facts,
    software_facts,
    write_page,
)
from ccdstream.timecode import short_time

MOST_ALERTS = 300
"""Cards: those with the highest peaks."""
MOST_LISTED = 200
"""Gaps, marks with snapshots, and files of recordings, the first of each."""
MOST_RESULTS = 30
"""Files that are named among the facts."""

ENDED = {
    "stopped": "it was stopped",
    "end of the source": "the source ended",
    "duration": "the time that was asked for was over",
}
_DELAYS = (
    ("capture_to_result", "To the result"),
    ("capture_to_overlay", "To the overlay"),
    ("capture_to_plain", "To the picture without heat"),
)
_STAGES = ("wait", "look", "score", "fuse", "draw")
_DROPS = (
    ("slot", "Overtaken", "a newer frame came before the analysis was free"),
    ("late", "Too late", "analysed, and then too late to be shown"),
)
_RECORDED = {
    OVERLAY: ("Not in the overlay's recording", "shown, and missing from it"),
    SOURCE: ("Not in the source's recording", "captured, and missing from it"),
}
_SEGMENT_ENDED = {
    "end": "the session ended",
    "length": "its length",
    "size": "the picture changed its size",
    "colour": "the picture changed its colours",
    "pause": "a pause of the picture",
}

Item = TypeVar("Item")


class _First(Generic[Item]):
    """The first `MOST_LISTED` of what comes, and how many there were."""

    def __init__(self) -> None:
        self.kept: list[Item] = []
        self.total = 0

    def add(self, item: Item) -> None:
        self.total += 1
        if len(self.kept) < MOST_LISTED:
            self.kept.append(item)

    def more(self) -> str:
        """What to say of those that are not kept."""
        left = self.total - len(self.kept)
        return f"The first {len(self.kept)}; live.events.jsonl has {left:,} more." if left else ""


@dataclass(slots=True)
class _Lost:
    """A stretch without a signal."""

    start_s: float
    cause: str
    began_wall_s: float
    pictured: bool
    """Whether a picture came before it."""
    end_s: float | None = None
    ended_wall_s: float | None = None

    def lasted_s(self) -> float:
        """By the stream's clock; by the wall's before its first frame, when that clock stood."""
        assert self.end_s is not None and self.ended_wall_s is not None
        return self.end_s - self.start_s or max(self.ended_wall_s - self.began_wall_s, 0.0)


@dataclass(frozen=True, slots=True)
class _Segment:
    """A file of a recording."""

    file: str
    start_s: float | None
    end_s: float
    bytes: int | None
    cause: str


@dataclass(slots=True)
class Story:
    """What happened in a session, as far as its page shows it.

    Args:
        wall_of: stream time in seconds -> `time.time()`.
    """

    wall_of: Callable[[float], float]
    alerts: dict[int, Alert] = field(default_factory=dict)
    """By number, in order of time; at most `MOST_ALERTS`."""
    alert_s: float = 0.0
    """Stream time within alerts, of all there were."""
    clocks: dict[int, str] = field(default_factory=dict)
    clips: dict[int, dict[str, Any]] = field(default_factory=dict)
    lost_s: float = 0.0
    """Stream time without a signal, of all gaps."""
    away_s: float = 0.0
    """The same with the time before the first picture."""
    size_changes: int = 0
    gaps: _First[_Lost] = field(default_factory=_First)
    lags: _First[tuple[float, float]] = field(default_factory=_First)
    """Stretches in which pictures were shown without their heat, as it came too late."""
    moments: _First[Event] = field(default_factory=_First)
    segments: _First[_Segment] = field(default_factory=_First)
    _gap: _Lost | None = None
    _lag_s: float | None = None
    _peaks: list[tuple[float, int]] = field(default_factory=list)

    def alert(self, alert: Alert) -> None:
        """An alert has closed."""
        self.alert_s += max(alert.end_s - alert.start_s, 0.0)
        self.alerts[alert.number] = alert
        self.clocks[alert.number] = self._from_to(alert.start_s, alert.end_s)
        heapq.heappush(self._peaks, (alert.peak_score, alert.number))
        if len(self._peaks) > MOST_ALERTS:
            _, number = heapq.heappop(self._peaks)
            del self.alerts[number], self.clocks[number]
            self.clips.pop(number, None)

    def event(self, event: Event) -> None:
        """Something happened; called by one thread at a time."""
        data = event.data
        match event.kind:
            case "mark" | "snapshot":
                self.moments.add(event)
            case "gap_opened":
                self._gap = _Lost(
                    data["start_s"], data["cause"], event.wall_s, pictured=event.stream_s > 0
                )
                self.gaps.add(self._gap)
            case "gap_closed" if self._gap is not None:
                gap, self._gap = self._gap, None
                self._close(gap, data["end_s"], event.wall_s)
            case "lag_opened":
                self._lag_s = event.stream_s
            case "lag_closed":
                self._end_lag(event.stream_s)
            case "size_changed":
                self.size_changes += 1
            case "segment_closed":
                why = _SEGMENT_ENDED.get(data["cause"], data["cause"])
                self.segments.add(
                    _Segment(data["file"], data["start_s"], data["end_s"], data["bytes"], why)
                )
            case "recorder_failed" if "file" in data:
                why = f"it failed; kept until {short_time(data['kept_to_s'], 1)}"
                self.segments.add(_Segment(data["file"], None, data["kept_to_s"], None, why))
            case "clip_written" if data["alert"] in self.alerts:
                self.clips[data["alert"]] = {
                    "alert": data["alert"],
                    "file": data["file"],
                    "offset_s": data["start_s"],
                    "end_s": data["end_s"],
                }

    def end(self, wall_s: float, last_s: float) -> float:
        """The session is over, at `time.time()` and after the frame at `last_s`: a gap or a lag
        that is open ends. Gives the stream time where the gap does, 0 without one."""
        self._end_lag(last_s)
        gap, self._gap = self._gap, None
        if gap is None:
            return 0.0
        end_s = max(wall_s - self.wall_of(0.0), gap.start_s) if gap.pictured else 0.0
        self._close(gap, end_s, wall_s)
        return end_s

    def _end_lag(self, end_s: float) -> None:
        start_s, self._lag_s = self._lag_s, None
        if start_s is not None and end_s > start_s:
            self.lags.add((start_s, end_s))

    def _close(self, gap: _Lost, end_s: float, wall_s: float) -> None:
        gap.end_s, gap.ended_wall_s = end_s, wall_s
        self.lost_s += end_s - gap.start_s
        self.away_s += gap.lasted_s()

    def _from_to(self, start_s: float, end_s: float) -> str:
        start, end = _clock(self.wall_of(start_s)), _clock(self.wall_of(end_s))
        return start if start == end else f"{start} to {end}"


def write_live_page(path: Path, record: Mapping[str, Any], story: Story, gallery: Gallery) -> None:
    """Write the page of a session that is over.

    Args:
        path: its final name; what it names lies in the same folder.
        record: what live.run.json says.
        story, gallery: given all of it.

    Raises:
        OutputError: the file exists or cannot be written.
    """
    record = plain(record)
    started, ended = (datetime.fromisoformat(record[key]) for key in ("started", "ended"))
    last_s = record["timing"]["stream_s"]
    last_s = max(last_s, story.end(ended.timestamp(), last_s))
    gallery.line.reach(last_s)
    mode = record["source"]["mode"] or {"size": (576, 720), "sample_aspect_ratio": "1/1"}
    height, width = mode["size"]
    counts = record["counts"]
    warnings = [f"{name}: {why}" for name, why in record["failures"].items()]
    if not counts["captured"] and "source" not in record["failures"]:
        warnings.append("no picture came from the source")
    run = {
        **record,
        "input": {
            "file": record["source"]["name"],
            "width": width,
            "height": height,
            "sample_aspect_ratio": mode["sample_aspect_ratio"],
        },
        "counts": {
            "frames": counts["analysed"],
            "informative_frames": counts["informative"],
            "uninformative_by_reason": counts["uninformative_by_reason"],
            "alerts": counts["alerts"],
        },
        "stream": {"first_s": 0.0, "last_s": last_s, "lost_s": story.lost_s},
        "warnings": [*warnings, *record["warnings"]],
        "interrupted": False,
        "video": {"clips": list(story.clips.values())},
        "overlay_offset_s": 0.0,
        "outputs": _few([*record["outputs"], path.name]),
    }
    why = ENDED.get(record["ended_by"], record["ended_by"])
    zero_s = story.wall_of(0.0)
    live = Live(
        when=f"{_stretch(started, ended)}. It ended because {why}.",
        wall_s=zero_s + _east_s(zero_s),
        tiles=_tiles(record, story),
        gaps=[(g.start_s, g.end_s) for g in story.gaps.kept if g.end_s and g.end_s > g.start_s],
        lags=story.lags.kept,
        flags=[(each.stream_s, _named(each)) for each in story.moments.kept],
        alert_s=story.alert_s,
        clocks=story.clocks,
        drops=_drops(record),
        captured=counts["captured"],
        delays=_delays(record),
        listings=[each for each in _listings(story) if each.rows],
        facts=_facts(record, run, story, started, ended),
    )
    write_page(path, run, list(story.alerts.values()), gallery, video=None, live=live)


# -- sections -------------------------------------------------------------------------------------


def _tiles(record: Mapping[str, Any], story: Story) -> Sequence[tuple[str, str, str]]:
    times, known = story.gaps.total, record["delays_s"].get("capture_to_result")
    lost = _lasted(story.away_s) if times else "never"
    more = f"{times:,} time{'s' * (times != 1)}" if times else ""
    if known is None:
        return ("Signal lost", lost, more), ("Delay", "-", "no frame was analysed")
    bound = f"p99, capture to result; bound {_ms(record['max_latency_s'])}"
    return ("Signal lost", lost, more), ("Delay", _ms(known["p99"]), bound)


def _drops(record: Mapping[str, Any]) -> Sequence[tuple[str, str, int]]:
    dropped = [(what, why, record["dropped"][key]) for key, what, why in _DROPS]
    for name, each in record["recorded"].items():
        dropped.append((*_RECORDED[name], each["left_out"] + each["lost"]))
    return dropped


def _delays(record: Mapping[str, Any]) -> Listing:
    rows = [
        [
            what,
            *(_in_ms(delays[name]) for name in ("p50", "p95", "p99", "max")),
            f"{delays['count']:,}",
        ]
        for key, what in _DELAYS
        if (delays := record["delays_s"].get(key))
    ]
    return Listing(
        "Delay from the capture",
        f"In milliseconds. Nothing older than {_ms(record['max_latency_s'])} is shown. The figures "
        "to the overlay are of what was shown.",
        ("", "p50", "p95", "p99", "max", "frames"),
        rows,
    )


def _listings(story: Story) -> Sequence[Listing]:
    return (
        Listing(
            "Marks and snapshots",
            story.moments.more(),
            ("Time", "Wall clock", "What", "Note", "File"),
            [
                [
                    Moment(each.stream_s),
                    _clock(each.wall_s),
                    _kind(each),
                    each.data.get("note", ""),
                    Beside(each.data["file"]) if "file" in each.data else "",
                ]
                for each in story.moments.kept
            ],
        ),
        Listing(
            "Signal lost",
            story.gaps.more(),
            ("Time", "Wall clock", "Lasted", "Cause"),
            [
                [
                    Moment(gap.start_s) if gap.pictured else "before the first picture",
                    _clock(story.wall_of(gap.start_s) if gap.pictured else gap.began_wall_s),
                    _lasted(gap.lasted_s()),
                    gap.cause,
                ]
                for gap in story.gaps.kept
            ],
        ),
        Listing(
            "Recordings",
            story.segments.more() or "Their times are those of the line above.",
            ("File", "Begins", "Wall clock", "Length", "Size", "Ended by"),
            [
                [
                    Beside(each.file),
                    "" if each.start_s is None else Moment(each.start_s),
                    "" if each.start_s is None else _clock(story.wall_of(each.start_s)),
                    "" if each.start_s is None else _lasted(each.end_s - each.start_s),
                    "" if each.bytes is None else f"{each.bytes / 1e6:,.1f} MB",
                    each.cause,
                ]
                for each in sorted(story.segments.kept, key=lambda each: each.file)
            ],
        ),
    )


def _facts(
    record: Mapping[str, Any],
    run: Mapping[str, Any],
    story: Story,
    started: datetime,
    ended: datetime,
) -> Sequence[Facts]:
    source, counts, rate = record["source"], record["counts"], record["rate"]
    mode, asked = source["mode"], source["asked"]
    wanted = [
        _size(asked["size"]) if asked["size"] else "",
        _rate(asked["rate"]) if asked["rate"] else "",
        asked["pixel_format"] or "",
    ]
    got = [("Picture", "none came")]
    if mode is not None:
        got = [
            ("Picture", f"{_size(mode['size'])}, {mode['pixel_format']}"),
            ("Rate", _rate(mode["rate"]) if mode["rate"] else "not told"),
            ("Read through", mode["through"]),
        ]
    stages = [
        (
            f"Stage {stage}",
            f"p50 {_ms(each['p50'])}, p99 {_ms(each['p99'])}, max {_ms(each['max'])}",
        )
        for stage in _STAGES
        if (each := record["delays_s"].get(stage))
    ]
    return (
        (
            "Source",
            (
                ("Source", source["name"]),
                ("Asked for", ", ".join(filter(None, wanted)) or "nothing in particular"),
                *got,
                ("Connections", f"{counts['connections']:,}"),
                ("Changes of size", f"{story.size_changes:,}"),
                ("Times without signal", f"{counts['gaps']:,}"),
            ),
        ),
        (
            "Session",
            (
                ("Began", record["started"]),
                ("Ended", record["ended"]),
                ("Lasted", _lasted(record["timing"]["wall_s"])),
                ("Ended by", record["ended_by"]),
                ("Bound of the delay", _ms(record["max_latency_s"])),
                ("Captured", f"{rate['captured_per_s']:.1f} frames/s"),
                ("Analysed", f"{rate['analysed_per_s']:.1f} frames/s"),
            ),
        ),
        model_facts(run),
        rule_facts(run),
        (
            "Counts",
            (
                ("Captured", f"{counts['captured']:,}"),
                ("Analysed", f"{counts['analysed']:,}"),
                ("Informative", f"{counts['informative']:,}"),
                (
                    "Shown",
                    f"{counts['shown']:,}, {counts['shown_plain']:,} of them first without heat",
                ),
                ("Drawn too late", f"{counts['deadline_misses']:,}"),
                ("Alerts", f"{counts['alerts']:,}"),
                ("Pauses of recordings", f"{counts['pauses']:,}"),
            ),
        ),
        ("Timing", stages),
        software_facts(run),
    )


# -- words ----------------------------------------------------------------------------------------


def _kind(event: Event) -> str:
    failed = event.data.get("failed")
    return f"{event.kind.capitalize()}{f' failed: {failed}' if failed else ''}"


def _named(event: Event) -> str:
    note = event.data.get("note")
    return f"{event.kind.capitalize()} at {short_time(event.stream_s, 2)}{f': {note}' * bool(note)}"


def _few(names: Sequence[str]) -> list[str]:
    """Some of them, and how many more there are."""
    left = len(names) - MOST_RESULTS
    return [*names[:MOST_RESULTS], *([f"and {left:,} more"] if left > 0 else [])]


def _local(wall_s: float) -> datetime:
    return datetime.fromtimestamp(wall_s).astimezone()


def _east_s(wall_s: float) -> float:
    """By how much this place's clocks are ahead of UTC."""
    offset = _local(wall_s).utcoffset()
    return 0.0 if offset is None else offset.total_seconds()


def _clock(wall_s: float) -> str:
    return f"{_local(wall_s):%H:%M:%S}"


def _stretch(started: datetime, ended: datetime) -> str:
    """Such as "28 November 2026, 20:41:40 to 20:55:12 (UTC+01:00)"."""
    days = [f"{each.day} {each:%B %Y}" for each in (started, ended)]
    last = f"{ended:%H:%M:%S}" if days[0] == days[1] else f"{days[1]}, {ended:%H:%M:%S}"
    return f"{days[0]}, {started:%H:%M:%S} to {last} (UTC{ended.isoformat()[-6:]})"


def _lasted(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 59.95 else short_time(seconds)


def _in_ms(seconds: float) -> str:
    milliseconds = 1000 * seconds
    return f"{milliseconds:.0f}" if milliseconds >= 9.95 else f"{milliseconds:.1f}"


def _ms(seconds: float) -> str:
    return f"{_in_ms(seconds)} ms"


def _size(size: Sequence[int]) -> str:
    height, width = size
    return f"{width} x {height}"


def _rate(rate: str) -> str:
    return f"{float(Fraction(rate)):g} frames/s"
