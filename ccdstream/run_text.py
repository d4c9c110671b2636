"""What is printed of a run: of one recording, and of a batch while it is at work and at its end."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from ccdstream import NOTICE
from ccdstream.console import Bar, alert_table, complain, count, say
from ccdstream.errors import CcdstreamError, show_path
from ccdstream.timecode import timecode

if TYPE_CHECKING:
    from ccdstream.alert import Alert
    from ccdstream.batch import Entry, Ledger, Opened
    from ccdstream.recording import OutputFiles, Progress, RunResult

Record = dict[str, Any]
"""An alert, as it stands in alerts.jsonl."""

STOPPING = "stopping: the files are being finished"
INTERRUPTED = "interrupted: what was analysed up to there is whole"


def found_in(result: "RunResult") -> str:
    """Frames, from when to when, and how fast."""
    uninformative = result.frames - result.informative_frames
    empty = f", none for {timecode(result.empty_s)}" if result.empty_s else ""
    of_them = f", {uninformative} of them uninformative" if uninformative else ""
    return (
        f"{count(result.frames, 'frame')} from {timecode(result.first_s)} to "
        f"{timecode(result.last_s)}{empty}{of_them}; "
        f"{result.frames / max(result.wall_s, 1e-9):.1f} frames/s"
    )


@dataclass(frozen=True, slots=True)
class Printing:
    """How a run prints: data through `tell`, and words on stderr unless `quiet`."""

    tell: Callable[[str], None]
    as_json: bool = False
    quiet: bool = False

    def alert(self, called: str, record: Record) -> None:
        """An alert as it closes, with --json; the table comes at the end.

        Args:
            called: what the recording is called to those who read data.
        """
        if self.as_json:
            self.tell(json.dumps({"recording": called, **record}, allow_nan=False))

    def outcome(
        self,
        name: str,
        said: str,
        warnings: Sequence[str],
        alerts: "Sequence[Alert]",
        *,
        heading: Sequence[str] = (),
    ) -> None:
        """What came of a recording, or is there already. Its warnings are said also if quiet: its
        results are to be read with them."""
        for warning in warnings:
            say(f"warning: {show_path(name)}: {warning}")
        if self.quiet:
            return
        say(said)
        if not self.as_json:
            self.tell("\n".join([*heading, *alert_table(alerts)]))

    def outputs(self, files: "OutputFiles", names: Sequence[str]) -> None:
        """Where the results of the one recording are: first the one for people."""
        if self.quiet:
            return
        report = files.path("report.html")
        say(f"report, for a browser: {show_path(report)}")
        others = ", ".join(show_path(name) for name in names if name != report.name)
        say(f"also in {show_path(files.folder)}{os.sep}: {others}")
        say(NOTICE)


class BatchWatcher:
    """What is said of a batch while it is at work: a bar for all, and one for each that is."""

    def __init__(self, bar: Bar, model: str, recordings: int, printing: Printing) -> None:
        self._bar = bar
        self._printing = printing
        self._model = model
        self._recordings = recordings
        self._open: dict[str, Progress] = {}
        self._frames = self._alerts = self._ended = 0

    def opened(self, opened: "Opened", at_a_time: int) -> None:
        if not self._printing.quiet:
            what = f"{self._model}, {opened.engine} on {opened.device}"
            self.say(f"{what}, {count(at_a_time, 'recording')} at a time")

    def progressed(self, entry: "Entry", progress: "Progress") -> None:
        self._open[entry.name] = progress
        of = "" if progress.frame_count_hint is None else f" of {progress.frame_count_hint}"
        done = f"{progress.frames}{of} frames, {count(progress.alerts, 'alert')}"
        text = f"{show_path(entry.name)}: {done}"
        self._bar.line(entry.name, progress.frames, progress.frame_count_hint, text)
        self._show()

    def _show(self) -> None:
        frames = self._frames + sum(each.frames for each in self._open.values())
        alerts = self._alerts + sum(each.alerts for each in self._open.values())
        text = f"{self._ended} of {count(self._recordings, 'recording')}, {count(frames, 'frame')}"
        self._bar.show(self._ended, self._recordings, f"{text}, {count(alerts, 'alert')}")

    def alert(self, entry: "Entry", record: Record) -> None:
        alias = None if entry.job is None else entry.job.alias
        called = entry.name if alias is None else alias.name
        if self._printing.as_json:  # the bar flickers for it
            self._bar.aside(lambda: self._printing.alert(called, record))

    def ended(self, entry: "Entry", result: "RunResult | None") -> None:
        self._ended += entry.job is not None
        self._open.pop(entry.name, None)
        self._bar.drop(entry.name)
        if result is not None:
            self._frames += result.frames
            self._alerts += len(result.alerts)
            said = "; ".join([f": {found_in(result)}", *result.notes])
            self._bar.aside(lambda: self._tell(entry, said, result.alerts))
        elif entry.stored is not None:
            stored = entry.stored
            report = "" if entry.job is None else show_path(entry.job.files.path("report.html"))
            said = f" is done already; report: {report}"
            for record in stored.lines:
                self.alert(entry, record)
            self._bar.aside(lambda: self._tell(entry, said, stored.alerts))
        elif entry.status in ("failed", "crashed"):
            about = f"{show_path(entry.name)}: " if entry.status == "crashed" else ""
            self._bar.aside(lambda: complain(CcdstreamError(f"{about}{entry.reason}")))
        self._show()

    def _tell(self, entry: "Entry", said: str, alerts: "Sequence[Alert]") -> None:
        name = show_path(entry.name)
        self._printing.outcome(entry.name, f"{name}{said}", entry.warnings, alerts, heading=[name])

    def warn(self, text: str) -> None:
        self.say(text)

    def stopping(self) -> None:
        if not self._printing.quiet:
            self.say(STOPPING)

    def say(self, text: str) -> None:
        self._bar.aside(lambda: say(text))


def summary(ledger: "Ledger") -> list[str]:
    """A table of what a batch did and what was done before, a line for all, and where the page is.

    What was done before comes first, and dimmed: the end is where people look.
    """
    entries = ledger.entries
    width = max((len(show_path(entry.node)) for entry in entries if entry.node), default=-2)
    width = max(width, len("node")) + 2 if width > 0 else 0  # without a cluster there is none
    lines = [f"status        frames  alerts      took  {'node' if width else '':{width}s}recording"]
    for entry in sorted(entries, key=lambda entry: entry.status != "already_done"):
        frames, alerts = (entry.counts.get(each, "") for each in ("frames", "alerts"))
        took = "" if entry.seconds is None else f"{entry.seconds:.1f} s"
        node = show_path(entry.node) if entry.node else ""
        status = _in_words(entry.status)
        notes = [count(len(entry.warnings), "warning")] if entry.warnings else []
        if entry.incomplete:
            notes.insert(0, "incomplete")
        warned = f"  ({', '.join(notes)})" if notes else ""
        line = (
            f"{status:12s}  {frames:>6}  {alerts:>6}  {took:>8}  {node:{width}s}"
            f"{show_path(entry.name)}{warned}"
        )
        lines.append(typer.style(line, dim=True) if entry.status == "already_done" else line)
    number = ledger.count()
    told = ["done", "already_done", "failed", "not_begun"]
    told += [status for status in ("crashed", "interrupted") if number[status]]
    counts = ", ".join(f"{number[status]} {_in_words(status)}" for status in told)
    if warned_of := sum(bool(entry.warnings) for entry in entries):
        counts += f", {warned_of} with warnings"
    return [
        *lines,
        f"{counts}: {show_path(ledger.path)}",
        f"report of all, for a browser: {show_path(ledger.page)}",
    ]


def _in_words(status: str) -> str:
    return "done before" if status == "already_done" else status.replace("_", " ")
