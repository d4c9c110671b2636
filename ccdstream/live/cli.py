"""The commands `live` and `devices`: arguments in, text out."""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ccdstream import NOTICE
from ccdstream.console import (
    ALERT_HEAD,
    MODEL_PANEL,
    Bar,
    Data,
    Device,
    EngineName,
    EngineOption,
    Json,
    Model,
    PrecisionName,
    PrecisionOption,
    Quiet,
    alert_row,
    command,
    count,
    interrupts_end_input,
    open_model,
    progress,
    say,
    tell,
)
from ccdstream.errors import CcdstreamError, OutputError, show_path
from ccdstream.timecode import parse_timecode, short_time, timecode

if TYPE_CHECKING:
    from ccdstream.alert import Alert
    from ccdstream.bundle import Bundle
    from ccdstream.engine.select import SelectedEngine
    from ccdstream.live.board import Board
    from ccdstream.live.camera import Camera
    from ccdstream.live.failures import Failures
    from ccdstream.live.latency import StageDelays
    from ccdstream.live.log import EventLog
    from ccdstream.live.record import Recorder
    from ccdstream.live.records import Event, LiveSource, Wanted
    from ccdstream.live.serve import Watch
    from ccdstream.live.session import Counts, LiveOptions, LiveResult, Recorded
    from ccdstream.live.window import Window

STEM = "live"
MOST_PLAIN = 0.05
"""Share of pictures without heat from which on the figures need a word."""
CLOCK_SET_S, CLOCK_DRIFT = 2.0, 0.001
"""A clock that is further off at the end, in seconds and as a share of the session, was set; twice
what keeping it right by small steps can make of it."""
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}

# the options of live, in groups
_SOURCE = "Source"
_RECORDING = "Recording"
_WATCHING = "Watching"

SizeOption = Annotated[
    str | None,
    typer.Option(
        "--size",
        metavar="WxH",
        help="Picture to ask for, such as 720x576.",
        rich_help_panel=_SOURCE,
    ),
]
RateOption = Annotated[
    str | None,
    typer.Option(
        "--rate",
        metavar="R",
        help="Frames a second to ask for: 25, 30000/1001.",
        rich_help_panel=_SOURCE,
    ),
]


@dataclass(frozen=True, slots=True)
class _Recording:
    """What is to be recorded, as the user asked for it."""

    stem: str | None
    """Of the overlay; None: none."""
    source: bool
    segment_s: float | None
    clips: bool
    pre_s: float
    post_s: float

    def as_dict(self) -> dict[str, Any] | None:
        if self.stem is None and not self.source and not self.clips:
            return None
        clips = {"pre_s": self.pre_s, "post_s": self.post_s} if self.clips else None
        return {
            "overlay": self.stem,
            "source": self.source,
            "segment_s": self.segment_s,
            "clips": clips,
        }


def live(
    device: Annotated[
        str,
        typer.Option(
            "--device",
            metavar="SOURCE",
            help="Camera number or path (see devices), URL such as rtsp://HOST/PATH, - for a pipe, "
            "lavfi:FILTERS, or with --pace a recording.",
            rich_help_panel=_SOURCE,
        ),
    ],
    pace: Annotated[
        bool,
        typer.Option(
            "--pace",
            help="Play a recording at its own rate, as if it were live.",
            rich_help_panel=_SOURCE,
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Folder for the results; default live-DATE-TIME."
        ),
    ] = None,
    size: SizeOption = None,
    rate: RateOption = None,
    pixel_format: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT",
            help="Pixel format to ask for, such as mjpeg or yuyv422.",
            rich_help_panel=_SOURCE,
        ),
    ] = None,
    max_latency: Annotated[
        str,
        typer.Option(metavar="T", help="Nothing older than this is shown; with its unit: 300ms."),
    ] = "100ms",
    timeout: Annotated[
        str,
        typer.Option(
            metavar="T",
            help="Without a frame for so long the signal is lost.",
            rich_help_panel=_SOURCE,
        ),
    ] = "2s",
    record: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Record what is shown, as NAME.overlay.000.mp4 and so on in the output folder.",
            rich_help_panel=_RECORDING,
        ),
    ] = None,
    record_source: Annotated[
        bool,
        typer.Option(
            "--record-source", help="Record what the source gives, too.", rich_help_panel=_RECORDING
        ),
    ] = False,
    segment: Annotated[
        str,
        typer.Option(
            metavar="T",
            help="A new file begins after this time; 0 for never.",
            rich_help_panel=_RECORDING,
        ),
    ] = "10m",
    pre: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            min=0,
            max=300,
            help="Seconds before an alert in its clip; 5 with --record.",
            rich_help_panel=_RECORDING,
        ),
    ] = None,
    post: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            min=0,
            max=300,
            help="Seconds after an alert in its clip; 5 with --record.",
            rich_help_panel=_RECORDING,
        ),
    ] = None,
    view: Annotated[
        bool, typer.Option("--view", help="Serve a page to watch it on.", rich_help_panel=_WATCHING)
    ] = False,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Address of the page; others than this machine need a token.",
            rich_help_panel=_WATCHING,
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            max=65535,
            help="Its port; 0 for a free one.",
            rich_help_panel=_WATCHING,
        ),
    ] = 8080,
    window: Annotated[
        bool,
        typer.Option(
            "--window", help="Show it in a window on this screen.", rich_help_panel=_WATCHING
        ),
    ] = False,
    duration: Annotated[
        str | None, typer.Option(metavar="T", help="End by itself so long after the first frame.")
    ] = None,
    model: Model = None,
    compute: Annotated[
        Device, typer.Option("--compute", help="Where to compute.", rich_help_panel=MODEL_PANEL)
    ] = Device.auto,
    engine: EngineOption = EngineName.auto,
    precision: PrecisionOption = PrecisionName.fp16,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="What happens, as JSON lines on stderr.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Analyse a camera, a capture card or a stream as it comes: newest frame first, bounded delay.

    Example: ccdstream live --device /dev/video0 --size 720x576 --rate 25 --view --record case12
    """
    with command():
        from ccdstream.live.records import Wanted
        from ccdstream.live.session import LiveOptions
        from ccdstream.live.sources import open_source

        wanted = Wanted(_size(size), _rate(rate), pixel_format)
        timeout_s = _seconds("--timeout", timeout, least_s=0.1)
        options = LiveOptions(
            _seconds("--max-latency", max_latency, least_s=0.001, unit=True),
            None if duration is None else _seconds("--duration", duration),
        )
        clips = record is not None or pre is not None or post is not None
        recording = _Recording(
            _stem(record),
            record_source,
            _seconds("--segment", segment) or None,
            clips,
            5.0 if pre is None else pre,
            5.0 if post is None else post,
        )
        source = open_source(device, wanted, pace=pace, timeout_s=timeout_s)
        folder = output or Path(f"live-{datetime.now():%Y%m%d-%H%M%S}")
        _refuse_results(folder)
        source.check()
        bundle, selected = open_model(
            model, compute, engine, precision, batch=(1, 1, 1), quiet=quiet or log_json
        )
        session = _Session(
            source=source,
            wanted=wanted,
            timeout_s=timeout_s,
            bundle=bundle,
            engine=selected,
            options=options,
            recording=recording,
            folder=folder,
            page=(host, port) if view else None,
            window=window,
            as_json=as_json,
            log_json=log_json,
            quiet=quiet,
            command=[source.name if device in part else part for part in sys.argv[1:]],
        )
        with interrupts_end_input() as stopped:
            failed = session.run(stopped)
            interrupted = stopped()
        if failed:
            raise typer.Exit(1)
        if interrupted:
            raise typer.Exit(130)


@dataclass(frozen=True, slots=True)
class _Session:
    """A session with all that it writes to, and what is said about it."""

    source: "LiveSource"
    wanted: "Wanted"
    timeout_s: float
    bundle: "Bundle"
    engine: "SelectedEngine"
    options: "LiveOptions"
    recording: _Recording
    folder: Path
    page: tuple[str, int] | None
    window: bool
    as_json: bool
    log_json: bool
    quiet: bool
    command: list[str]

    def run(self, stopped: Callable[[], bool]) -> bool:
        """Run it to its end; whether something could not be written."""
        from ccdstream.live.audit import live_record
        from ccdstream.live.board import Board
        from ccdstream.live.capture import Capture
        from ccdstream.live.failures import Beside, Failures, bug
        from ccdstream.live.gallery import LiveGallery
        from ccdstream.live.journal import Journal
        from ccdstream.live.log import EventLog
        from ccdstream.live.records import Event
        from ccdstream.live.report import Story, write_live_page
        from ccdstream.live.session import OVERLAY, SOURCE, StreamClock, run_live
        from ccdstream.render import with_heat
        from ccdstream.report.audit import LIVE_SCHEMA, write_audit

        made = _make_folder(self.folder)
        before = _entries(self.folder)
        board, clock = Board(), StreamClock()
        story, gallery = Story(clock.wall_of), LiveGallery(start_s=0.0, heated=with_heat)
        with ExitStack() as stack:
            silent = self.quiet or self.log_json
            bar = stack.enter_context(progress("frame", silent))
            printed = Data(lambda why: failures.add("standard output", why))
            log_lines = Data(lambda why: failures.add("standard error", why), err=True)
            told = _Told(
                bar,
                printed.tell,
                board,
                self.source.name,
                self.folder,
                bound_s=self.options.max_latency_s,
                silent=silent,
                as_json=self.as_json,
                log_json=self.log_json,
            )
            stack.callback(told.no_bar)
            stack.enter_context(_nothing_left(self.folder, made, before, lambda: told.connected))
            journal = Journal(
                self.folder,
                STEM,
                parts=self.bundle.parts,
                start_wall=clock.wall_of,
                log_json=log_lines.tell if self.log_json else None,
            )
            stack.enter_context(journal)

            def keep(event: Event) -> None:
                journal.event(event)
                with failures.spare("contents of the report", "The report lacks an event."):
                    story.event(event)

            def alert_closed(alert: "Alert") -> None:
                with failures.spare("contents of the report", "The report lacks an alert."):
                    story.alert(alert)
                told.alert(alert)

            log = EventLog(keep, told.event)
            failures = Failures(on_event=log, on_failed=told.failed)
            ended = {"by": "an error"}
            stack.callback(
                lambda: log(Event("session_ended", time.time(), clock.stream_s, dict(ended)))
            )
            parts = stack.enter_context(ExitStack())
            overlay, source = self._recorders(parts, log)
            parts.callback(board.close)
            board.tell(self._facts())
            page = self._page(parts, board)
            window = self._window(parts, board)
            parts.enter_context(gallery)
            beside: dict[str, Beside | None] = {
                "pictures of the report": gallery,
                "page": page,
                "window": window,
            }
            log(Event("session_started", time.time(), 0.0, {"source": self.source.name}))
            told.started(self.bundle, self.engine, page.urls if page else [])
            capture = Capture(self.source, timeout_s=self.timeout_s, on_event=log)
            result = run_live(
                capture,
                self.bundle,
                self.engine,
                options=self.options,
                board=board,
                clock=clock,
                journal=journal,
                overlay=overlay,
                source=source,
                folder=self.folder / "snapshots",
                gallery=gallery,
                beside={name: part for name, part in beside.items() if part is not None},
                failures=failures,
                stopped=lambda: stopped() or (window is not None and window.closed),
                on_event=log,
                on_alert=alert_closed,
                on_count=told.count,
            )
            mode = capture.mode
            board.close()  # whoever watches learns it before the files are finished
            ended["by"] = result.ended
            if not result.counts.captured:
                why = log.gaps[-1].cause if log.gaps else "the session ended before the first"
                failures.add("source", f"no picture came from {self.source.name}: {why}.")
            parts.close()
            result.count_recorded(
                {name: each for name, each in ((OVERLAY, overlay), (SOURCE, source)) if each}
            )
            beside |= {OVERLAY: overlay, SOURCE: source}
            for name, part in beside.items():  # while the last files were finished
                if part is not None:
                    failures.look(name, part, has_event=name in (OVERLAY, SOURCE))
        if journal.failed:
            failures.add("journal", journal.failed, has_event=True)
        try:
            outputs = _new_files(self.folder, before)
        except OSError as error:  # the disk was unplugged, or the folder moved
            outputs = []
            why = f"cannot list {show_path(self.folder)}: {error.strerror or error}."
            self._unwritten(failures, "results", why)
        record = live_record(
            result,
            command=self.command,
            source=self.source.name,
            wanted=self.wanted,
            mode=mode,
            bundle=self.bundle,
            engine=self.engine,
            options=self.options,
            gaps=log.gaps,
            warnings=_warnings(result, self.options),
            outputs=outputs,
            recording=self.recording.as_dict(),
        )
        page_path = self.folder / f"{STEM}.report.html"
        try:
            write_live_page(page_path, record, story, gallery)
            record["outputs"] = sorted([*record["outputs"], page_path.name])
        except OutputError as error:
            self._unwritten(failures, "report.html", str(error))
        except Exception as error:  # not swallowed: told, and kept with its traceback
            self._unwritten(failures, "report.html", *bug(error, "There is no report."))
        record |= {"failures": failures.reasons, "tracebacks": failures.tracebacks}
        try:
            write_audit(self.folder / f"{STEM}.run.json", record, schema=LIVE_SCHEMA)
        except OutputError as error:
            if "report.html" in failures.reasons:  # of a full disk one line is enough
                failures.reasons["run.json"] = str(error)
                say(failures.tracebacks.get("report.html", ""))
            else:
                self._unwritten(failures, "run.json", str(error))
        self._sum_up(result)
        return bool(result.failures)

    def _unwritten(self, failures: "Failures", name: str, why: str, trace: str = "") -> None:
        """Tell what cannot be written at the end, when there is no journal any more."""
        from ccdstream.live.journal import event_line
        from ccdstream.live.records import Event

        failures.add(name, why, trace, has_event=True)
        if self.log_json:
            data = {"part": name, "reason": why} | ({"traceback": trace} if trace else {})
            say(event_line(Event("part_failed", time.time(), failures.stream_s(), data)))

    def _recorders(
        self, stack: ExitStack, log: "EventLog"
    ) -> "tuple[Recorder | None, Recorder | None]":
        from ccdstream.frames import Colour
        from ccdstream.live.record import ClipRule, Recorder

        asked = self.recording
        stem = asked.stem or STEM
        overlay = source = None

        def open_recorder(kind: str, clips: bool, segments: bool) -> Recorder:
            recorder = Recorder(
                self.folder,
                f"{stem}.{kind}",
                # what the source really has, its first frame says
                size=self.wanted.size or (576, 720),
                colour=Colour("bt601", full_range=False),
                rate_hint=self.wanted.rate or Fraction(25),
                segment_s=asked.segment_s,
                clips=ClipRule(asked.pre_s, asked.post_s) if clips else None,
                segments=segments,
                on_event=log,
            )
            return stack.enter_context(recorder)

        if asked.stem is not None or asked.clips:
            overlay = open_recorder("overlay", asked.clips, asked.stem is not None)
        if asked.source:
            source = open_recorder("source", False, True)
        return overlay, source

    def _recorded(self, name: str, recorded: "Recorded") -> str:
        """What became of a recording, in a line."""
        from ccdstream.live.session import OVERLAY

        if name == OVERLAY and self.recording.stem is None:
            missing = f", {recorded.missing} missing" if recorded.missing else ""
            return f"clips: made of {count(recorded.given, 'frame')} shown{missing}"
        of = "shown" if name == OVERLAY else "captured"
        whole = count(recorded.given, "frame")
        if not recorded.failed:
            return f"{name}: {recorded.given - recorded.missing} of {whole} {of}"
        until = "nothing was kept"
        if recorded.until_s is not None:
            until = f"until {short_time(recorded.until_s, 1)}, then it stopped"
        return f"{name}: {until}; {recorded.missing} of {whole} {of} are missing"

    def _facts(self) -> dict[str, Any]:
        """What the page is told once."""
        asked = self.recording
        names = [
            *([f"{asked.stem}.overlay"] if asked.stem is not None else []),
            *([f"{asked.stem or STEM}.source"] if asked.source else []),
            *(["clips"] if asked.clips else []),
        ]
        return {
            "source": self.source.name,
            "model": self.bundle.model_id,
            "engine": f"{self.engine.name} on {self.engine.device}",
            "enter": self.bundle.alert["enter"],
            "leave": self.bundle.alert["leave"],
            "max_latency_s": self.options.max_latency_s,
            "recording": ", ".join(names) or None,
            "output": self.folder.name,
            "notice": NOTICE,
        }

    def _page(self, stack: ExitStack, board: "Board") -> "Watch | None":
        if self.page is None:
            return None
        from ccdstream.live.serve import Watch

        host, port = self.page
        return stack.enter_context(Watch(board, host=host, port=port))

    def _window(self, stack: ExitStack, board: "Board") -> "Window | None":
        if not self.window:
            return None
        from ccdstream.live.window import Window

        return stack.enter_context(Window(board))

    def _sum_up(self, result: "LiveResult") -> None:
        if self.quiet or self.log_json:
            return
        counts, delays = result.counts, result.delays
        shown, known = delays["capture_to_overlay"], delays["capture_to_result"]
        lines = [
            f"{count(counts.captured, 'frame')} in {timecode(result.wall_s)}, "
            f"{counts.analysed} analysed, "
            f"{counts.dropped_slot + counts.dropped_late} without heat in time "
            f"({counts.dropped_slot} overtaken, {counts.dropped_late} late), "
            f"{count(counts.gaps, 'gap')}, {count(counts.alerts, 'alert')}"
        ]
        for name, of in (("result", known), ("overlay", shown)):
            if of.count:
                p50, p95, p99 = (1000 * of.quantile(share) for share in (0.5, 0.95, 0.99))
                lines.append(
                    f"capture to {name}: {p50:.0f} ms, p95 {p95:.0f}, p99 {p99:.0f}, "
                    f"max {1000 * of.max_s:.0f}"
                )
        lines += [self._recorded(name, each) for name, each in result.recorded.items()]
        if counts.pauses:
            lines.append(f"{count(counts.pauses, 'pause')}, after each of which a new file begins")
        lines += [f"warning: {warning}" for warning in _warnings(result, self.options)]
        if failed := [name for name in result.failures if name != "source"]:
            lines.append(f"not whole: {', '.join(failed)}, as said above")
        if "report.html" not in result.failures:
            report = show_path(self.folder / f"{STEM}.report.html")
            lines.append(f"report, for a browser: {report}")
        lines.append(f"results: {show_path(self.folder)}")
        say("\n".join([*lines, NOTICE]))


def _warnings(result: "LiveResult", options: "LiveOptions") -> list[str]:
    """What a reader of the figures has to know: delays are those of pictures that were in time,
    and times of day those of a clock that may be set."""
    counts, warnings = result.counts, []
    if counts.shown_plain > MOST_PLAIN * counts.shown:
        warnings.append(
            f"{counts.shown_plain} of {counts.shown} frames were shown without heat, some only at "
            f"first: their analysis took longer than {1000 * options.max_latency_s:.0f} ms. This "
            "machine is too slow or too busy; a longer --max-latency shows more."
        )
    set_by_s = result.ended_wall_s - result.started_wall_s - result.wall_s
    if abs(set_by_s) > CLOCK_SET_S + CLOCK_DRIFT * result.wall_s:
        way = "ahead" if set_by_s > 0 else "back"
        warnings.append(
            f"this machine's clock went {way} by {abs(set_by_s):.0f} s meanwhile: it was set, or "
            "the machine slept. Times of day before that may be off by as much; stream time goes "
            "on without it."
        )
    return warnings


class _Told:
    """What is printed while a session runs."""

    _SAID = ("connected", "gap_opened", "size_changed", "snapshot", "mark")

    def __init__(
        self,
        bar: Bar,
        tell: Callable[[str], None],
        board: "Board",
        source: str,
        folder: Path,
        *,
        bound_s: float,
        silent: bool,
        as_json: bool,
        log_json: bool,
    ) -> None:
        self.connected = False
        """Whether a frame came."""
        self._bar = bar
        self._tell = tell
        self._board = board
        self._source = source
        self._folder = folder
        self._bound_s = bound_s
        self._silent = silent
        self._as_json = as_json
        self._log_json = log_json
        self._headed = False
        self._negotiated: dict[str, Any] = {}
        self._last = (time.monotonic(), 0)

    def started(self, bundle: "Bundle", engine: "SelectedEngine", urls: Sequence[str]) -> None:
        if urls:  # said even when quiet: without it there is no way to the page
            self._bar.aside(lambda: say("\n".join(f"watch: {url}" for url in urls)))
        if not self._silent:
            taken = f"{self._source}: {bundle.model_id}, {engine.name} on {engine.device}"
            self._bar.aside(lambda: say(taken))

    def no_bar(self) -> None:
        """What is said from now on is below the bar."""
        self._bar = Bar("frame")

    def failed(self, name: str, why: str) -> None:
        """Say what cannot be written any more, even when quiet. Once: the summary only names it."""
        if not self._log_json:  # whose lines say it
            self._bar.aside(lambda: say(f"error: {name}: {why}", red=True))

    def event(self, event: "Event") -> None:
        """Say what a person at the screen has to know."""
        from ccdstream.live.session import LiveOptions

        data = event.data
        if event.kind == "connected":
            first, self.connected = not self.connected, True
            mode = self._tell_mode(data)
        elif event.kind == "size_changed":
            pixel = data["sample_aspect_ratio"]
            self._tell_mode({"size": data["after"], "sample_aspect_ratio": pixel})
        if self._silent or event.kind not in self._SAID:
            return
        match event.kind:
            case "connected":
                text = f"{self._source}: {mode}"
                if first and self._bound_s != LiveOptions().max_latency_s:
                    text += f"; nothing older than {1000 * self._bound_s:g} ms is shown"
                if first:  # from now on there are some
                    text += f"\nresults: {show_path(self._folder)}"
            case "mark":
                note = f", {data['note']}" if "note" in data else ""
                text = f"mark: {timecode(event.stream_s)}{note}"
            case "snapshot" if "failed" in data:
                text = f"warning: no snapshot: {data['failed']}"
            case "snapshot":
                text = f"snapshot: {show_path(self._folder / data['file'])}"
            case "gap_opened":
                text = f"no signal: {data['cause']}"
            case _:
                (height, width) = data["after"]
                text = f"the picture is {width}x{height} now"
        self._bar.aside(lambda: say(text))

    def _tell_mode(self, news: Mapping[str, Any]) -> str:
        """What is negotiated by now, for the page too, from what is new of it."""
        self._negotiated |= news
        pixel = float(Fraction(self._negotiated["sample_aspect_ratio"]))
        mode = _mode(self._negotiated)
        self._board.tell({"mode": mode, "sample_aspect_ratio": pixel})
        return mode

    def alert(self, alert: "Alert") -> None:
        """Print an alert that has closed: this is data."""
        from ccdstream.live.records import TIME_BASE
        from ccdstream.report.alerts import alert_record

        if self._as_json:
            record = {"source": self._source, **alert_record(alert, TIME_BASE)}
            line = json.dumps(record, allow_nan=False)
        else:
            line = alert_row(alert)
            if not self._headed:
                self._headed = True
                line = f"{ALERT_HEAD}\n{line}"
        self._bar.aside(lambda: self._tell(line))

    def count(self, counts: "Counts", delays: "StageDelays") -> None:
        """Say how it goes, on the status line."""
        now_s = time.monotonic()
        since_s, before = self._last
        rate = (counts.analysed - before) / max(now_s - since_s, 1e-6)
        self._last = (now_s, counts.analysed)
        status = self._board.status
        known = delays["capture_to_overlay"]
        delay = ""
        if known.count:
            delay = f", to overlay {1000 * known.quantile(0.5):.0f} ms (p99 "
            delay += f"{1000 * known.quantile(0.99):.0f})"
        late = counts.dropped_slot + counts.dropped_late
        text = f"{status.kind} {status.detail}".strip()
        text += f", {rate:.1f} frames/s{delay}, {late} without heat in time, "
        text += count(counts.alerts, "alert")
        self._bar.show(0, None, text)


def _mode(data: Mapping[str, Any]) -> str:
    """What was negotiated, from the data of a "connected"."""
    height, width = data["size"]
    rate = "rate not told" if data["rate"] is None else f"{data['rate']:g} frames/s"
    pixel = data["sample_aspect_ratio"]
    shape = "" if pixel == "1" else f", pixels {pixel}"
    return f"{width}x{height}{shape}, {rate}, {data['pixel_format']}, through {data['through']}"


def devices(as_json: Json = False) -> None:
    """List the cameras and capture cards of this machine, and their modes.

    Example: ccdstream devices
    """
    with command():
        from ccdstream.live.camera import list_cameras
        from ccdstream.report.audit import plain

        cameras = list_cameras()
        if as_json:
            for camera in cameras:
                tell(json.dumps(plain(camera)))
            return
        if not cameras:
            say("no cameras found. Check the cable, and that /dev/video* may be read by you.")
        for camera in cameras:
            tell("\n".join(_camera_lines(camera)))


def _camera_lines(camera: "Camera") -> list[str]:
    lines = [f"{camera.id}  {camera.name}"]
    if camera.problem:
        lines.append(f"    {camera.problem}")
    for mode in camera.modes:
        rates = ", ".join(f"{float(rate):g}" for rate in mode.rates) or "not told"
        if mode.any_rate:
            rates = " to ".join(rates.split(", ")[:: len(mode.rates) - 1 or 1])
        sizes = [f"{size[1]}x{size[0]}" for size in (mode.smallest, mode.largest) if size]
        size = " to ".join(dict.fromkeys(sizes)) or "size not told"
        lines.append(f"    {size:12}  {mode.pixel_format:10}  {rates} frames/s")
    return lines


# -- what was typed -------------------------------------------------------------------------------


def _seconds(option: str, text: str, *, least_s: float = 0.0, unit: bool = False) -> float:
    """Seconds of "100ms", "2s", "10m", "1h", "90" or a time code; with `unit` not of the last two,
    where some would mean milliseconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text.strip(), flags=re.ASCII)
    if unit and match is None:
        raise typer.BadParameter(f"{option} is a time with its unit, 300ms or 0.3s, not {text!r}")
    try:
        seconds = float(match[1]) * _UNITS_S[match[2]] if match else parse_timecode(text)
    except ValueError:
        raise typer.BadParameter(
            f"{option}: {text!r} is not a time. Write 100ms, 2s, 10m, 1h or 00:10:00."
        ) from None
    if seconds < least_s:
        raise typer.BadParameter(f"{option} must be {least_s:g} s or more, got {text}")
    return seconds


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", text.strip(), flags=re.ASCII)
    if match is None or not (int(match[1]) and int(match[2])):
        raise typer.BadParameter(f"--size is WIDTHxHEIGHT, such as 720x576, not {text!r}")
    return int(match[2]), int(match[1])


def _rate(text: str | None) -> Fraction | None:
    if text is None:
        return None
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not 0 < rate <= 1000:
        raise typer.BadParameter(
            f"--rate is frames a second, such as 25 or 30000/1001, not {text!r}"
        )
    return rate


def _stem(name: str | None) -> str | None:
    """What recordings are called, from `case12` or, as people write it, `case12.mp4`."""
    if name is None:
        return None
    stem = name[:-4] if name.lower().endswith(".mp4") else name
    if not stem or Path(stem).name != stem or stem.startswith(".") or "\0" in stem:
        raise typer.BadParameter(
            f"--record takes a name, such as case12, not {name!r}; --output says in which folder"
        )
    return stem


# -- the folder -----------------------------------------------------------------------------------


def _refuse_results(folder: Path) -> None:
    """Raise OutputError where a session left its results."""
    if (folder / f"{STEM}.run.json").exists():
        raise OutputError(
            f"{show_path(folder)} holds the results of a live session already. Choose a new folder "
            "with --output."
        )


def _make_folder(folder: Path) -> list[Path]:
    """Make it; gives what was not there, the innermost first."""
    from ccdstream.report.files import make_folder

    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    make_folder(folder)
    return missing


def _entries(folder: Path) -> set[Path]:
    return set(folder.iterdir())


def _new_files(folder: Path, before: set[Path]) -> list[str]:
    """Files that were not there before, relative to the folder."""
    new = _entries(folder) - before
    files = [path for entry in new for path in ([entry] if entry.is_file() else entry.rglob("*"))]
    return [path.relative_to(folder).as_posix() for path in files if path.is_file()]


@contextmanager
def _nothing_left(
    folder: Path, made: list[Path], before: set[Path], connected: Callable[[], bool]
) -> Iterator[None]:
    """Where a session fails before its first frame, leave the folder as it was.

    Args:
        made: folders that were made for it, the innermost first.
    """
    try:
        yield
    except CcdstreamError:
        if not connected():
            for name in _new_files(folder, before):
                (folder / name).unlink(missing_ok=True)
            for entry in sorted(_entries(folder) - before):
                entry.rmdir()
            for path in made:
                path.rmdir()
        raise
