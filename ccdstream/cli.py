"""The command line: arguments in, text out. Every decision is made elsewhere.

stdout is data, stderr is for people. Nothing heavy is imported before a command needs it.
"""

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from ccdstream import NOTICE, __version__
from ccdstream.console import (
    MODEL_HELP,
    MODEL_PANEL,
    Bar,
    BundleArgument,
    CalibrationOption,
    Device,
    DeviceOption,
    EngineName,
    EngineOption,
    Json,
    Model,
    Overwrite,
    PrecisionName,
    PrecisionOption,
    Quiet,
    alert_table,
    command,
    complain,
    count,
    interrupts_end_input,
    load_model,
    open_model,
    parse_time,
    progress,
    say,
    tell,
)
from ccdstream.errors import CcdstreamError, EngineError, OutputError, VideoOpenError, show_path
from ccdstream.live.cli import devices, live
from ccdstream.timecode import timecode

if TYPE_CHECKING:
    from ccdstream.alert import Alert
    from ccdstream.batch import Entry, Ledger, Opened, Place, Stored, Wanted
    from ccdstream.bundle import Bundle
    from ccdstream.decode import VideoSource
    from ccdstream.engine.select import SelectedEngine
    from ccdstream.pseudonym import Alias, NameMap
    from ccdstream.recording import OutputFiles, Progress, RunOptions, RunResult
    from trainer.runs import Progress as StageProgress


class Commands(TyperGroup):
    """All commands."""

    def invoke(self, ctx: Any) -> Any:
        """Do what `ctx` says; a wrong value of an option is told without pydantic's first words."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")
            raise


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="markdown",  # so that paragraphs are set anew to the width of the terminal
    context_settings={"help_option_names": ["-h", "--help"]},
)
model_app = typer.Typer(no_args_is_help=True, help="Look into a model bundle, or check it here.")
app.add_typer(model_app, name="model")
data_app = typer.Typer(no_args_is_help=True, help="Look at data before training on it.")
app.add_typer(data_app, name="data")

# the options of run, in groups
_RESULTS = "Results"
_STRETCH = "Stretch"
_MANY = "Many recordings"
_PRIVACY = "Privacy"

_STOPPING = "stopping: the files are being finished"


class VideoOutput(StrEnum):
    """Which video to write."""

    overlay = "overlay"
    none = "none"
    chapters = "chapters"
    clips = "clips"
    side_by_side = "side-by-side"


class AlsoOutput(StrEnum):
    """Further forms of the results."""

    parquet = "parquet"
    coco = "coco"


class Preset(StrEnum):
    """Sizes of a training."""

    smoke = "smoke"
    brief = "brief"
    quick = "quick"
    paper = "paper"
    paper_liu = "paper-liu"
    paper_lag = "paper-lag"


ConfigFile = Annotated[Path | None, typer.Option(help="TOML file on top of the preset.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="One setting on top; may be given several times. A wrong key lists the known ones.",
    ),
]
BatchOption = Annotated[
    str,
    typer.Option("--batch", metavar="MIN,OPT,MAX", help="Frames in a call: least, usual and most."),
]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"ccdstream {__version__}\n{NOTICE}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Show on colonoscopy video where the mucosa looks unlike anything normal.

    Research software. Not a medical device. Not for clinical decisions.
    """


@app.command(no_args_is_help=True)
def run(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="INPUT...", help="Recordings or folders.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder for the results; default INPUT.ccdstream, and ccdstream-results of "
            "several inputs.",
            rich_help_panel=_RESULTS,
        ),
    ] = None,
    model: Model = None,
    device: DeviceOption = Device.auto,
    engine: EngineOption = EngineName.auto,
    precision: PrecisionOption = PrecisionName.fp16,
    calibration: CalibrationOption = None,
    video: Annotated[
        VideoOutput,
        typer.Option(
            help="Which video to write. overlay: the recording with heatmap and score; "
            "side-by-side: the recording beside that; chapters: a copy with chapters at alerts; "
            "clips: a copy of 5 s before to 5 s after each alert; copies are not encoded anew.",
            rich_help_panel=_RESULTS,
        ),
    ] = VideoOutput.overlay,
    also: Annotated[
        list[AlsoOutput] | None,
        typer.Option(
            help="Further files: the scores as Parquet; the score and hottest box of each frame in "
            "COCO's form. May be given several times.",
            rich_help_panel=_RESULTS,
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="T",
            help="Start at T: 90, 90s or 00:01:30.",
            rich_help_panel=_STRETCH,
        ),
    ] = None,
    end: Annotated[
        str | None,
        typer.Option("--to", metavar="T", help="Stop before T.", rich_help_panel=_STRETCH),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=64,
            help="Frames in one model call; default 4 on a CPU, 8 on a GPU.",
            rich_help_panel=MODEL_PANEL,
        ),
    ] = None,
    keep_metadata: Annotated[
        bool,
        typer.Option(
            "--keep-metadata",
            help="Copy what the recording's file says of itself (title, time, place) into the "
            "video; left out otherwise.",
            rich_help_panel=_PRIVACY,
        ),
    ] = False,
    deid: Annotated[
        bool,
        typer.Option(
            "--deid",
            help="Results that do not say whose recording it is: border and lasting text black, "
            "no sound, out-of-body frames blurred, names replaced. Look at them before you share.",
            rich_help_panel=_PRIVACY,
        ),
    ] = False,
    deid_map: Annotated[
        Path | None,
        typer.Option(
            "--deid-map",
            metavar="FILE",
            help="CSV that keeps the key and the names behind the pseudonyms of --deid; default "
            "OUTPUT.names.csv.",
            rich_help_panel=_PRIVACY,
        ),
    ] = None,
    recursive: Annotated[
        bool,
        typer.Option(
            "--recursive",
            "-r",
            help="Look into the folders of a folder too.",
            rich_help_panel=_MANY,
        ),
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            min=1,
            max=64,
            help="Recordings at a time; default 1 on a CPU, 2 on each GPU.",
            rich_help_panel=_MANY,
        ),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="auto|ADDRESS",
            help="Analyse on the Ray cluster that this machine belongs to; ADDRESS is HOST:PORT of "
            "its head. Needs the extra ray.",
            rich_help_panel=_MANY,
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            help="Do again what is done, and replace its results.",
            rich_help_panel=_RESULTS,
        ),
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Analyse recordings: overlay video, alerts and scores.

    Example: ccdstream run case12.mp4 -o results --json > alerts.jsonl

    One recording: results of the same recording, model and options are left alone, and what they
    say is printed again; unfinished ones are done again, and others are refused without
    --overwrite.

    A folder, or several inputs, are a batch: each recording in a process of its own, results below
    OUTPUT as the recordings lie below their folder, and batch.json there, which says what became
    of each. The same command again does what is missing, changed (recording, model, options,
    version of ccdstream), failed or interrupted, and leaves the rest alone; --overwrite does all
    again.

    --ray does a batch on the nodes of a Ray cluster: --jobs recordings at a time, by default 2 on
    each GPU, or 1 on each node where none has a GPU. Recordings, results and a model that is given
    by its path must lie on storage that every node has at the same place, with file locks that
    reach from node to node, and every node needs the same ccdstream. What was at work on a node
    that is lost is begun again on another, three times in all.
    """
    with command():
        from ccdstream.batch import is_batch
        from ccdstream.recording import RunOptions, check_forms

        options = RunOptions(
            video=video.value,
            also=frozenset(form.value for form in also or ()),
            start_s=parse_time("--from", start),
            end_s=parse_time("--to", end),
            batch=batch,
            overwrite=overwrite,
            deid=deid,
            keep_metadata=keep_metadata,
        )
        names = _names_of(options, inputs, output, deid_map)
        if names is not None:
            output = names.output
        if None not in (options.start_s, options.end_s) and options.end_s <= options.start_s:  # type: ignore[operator]
            raise typer.BadParameter("--to must be later than --from.")
        if "coco" in options.also and options.start_s is not None:
            raise typer.BadParameter(
                "--also coco names frames by their number in the recording, which is not known "
                "with --from. Leave out one of them."
            )
        check_forms(options)
        choice = _Choice(model, device, engine, precision, tuple(calibration or ()), quiet)
        if ray is not None or is_batch(inputs):
            _run_batch(inputs, output, recursive, choice, options, jobs, as_json, names, ray)
        else:
            _run_one(inputs[0], output, choice, options, as_json, names)


@dataclass(frozen=True, slots=True)
class _Names:
    """With --deid: where results and the map of names lie."""

    output: Path
    map: "NameMap"

    def opened(self) -> "NameMap":
        """The map, to be entered: the folder is there that it lies in if nobody says another."""
        from ccdstream.report.files import make_folder

        make_folder(self.output.parent)
        return self.map

    def say_what_to_do(self, options: "RunOptions") -> None:
        """What is left to people, who alone can do it."""
        say(
            f"{show_path(self.map.path)} holds the names and the key. Keep it, and keep it apart "
            "from the results."
        )
        shown = "report" if str(options.video) == "none" else "video"
        say(f"Look at every {shown} before you share it.")


_DEID_OUTPUT = Path("ccdstream-deid")
"""Where results with --deid go, if nobody says: the name of an input may tell who it is of."""


def _names_of(
    options: "RunOptions", inputs: Sequence[Path], output: Path | None, deid_map: Path | None
) -> _Names | None:
    """What --deid needs; wrong usage where options do not go together. None without --deid."""
    from ccdstream.pseudonym import NameMap, default_map
    from ccdstream.videos import COPIED

    if not options.deid:
        if deid_map is not None:
            raise typer.BadParameter("--deid-map is for --deid: give both, or neither.")
        return None
    if options.keep_metadata:
        raise typer.BadParameter(
            "--deid leaves out what --keep-metadata copies, such as names and times: choose one."
        )
    if options.video in COPIED:
        raise typer.BadParameter(
            f"--video {options.video} copies the recording's pictures as they are, with all that "
            "--deid is to remove. Use --video overlay, side-by-side or none with --deid."
        )
    folder = output or _DEID_OUTPUT
    place = deid_map or default_map(folder)
    there = Path(os.path.realpath(place))
    if there.is_relative_to(os.path.realpath(folder)):
        raise typer.BadParameter(
            f"--deid-map {show_path(place)} lies among the results, which it is to be kept apart "
            "from. Choose another place."
        )
    if any(os.path.realpath(path) == str(there) for path in inputs):
        raise typer.BadParameter(f"--deid-map {show_path(place)} is an input.")
    return _Names(folder, NameMap(place))


@dataclass(frozen=True, slots=True)
class _Choice:
    """The model as the user asks for it; opens it, also in a worker process."""

    model: str | None
    device: Device
    engine: EngineName
    precision: PrecisionName
    calibration: tuple[Path, ...]
    quiet: bool

    def __call__(self, place: "Place") -> "tuple[Bundle, SelectedEngine]":
        return open_model(
            self.model,
            self.device,
            self.engine,
            self.precision,
            calibration=self.calibration,
            gpu=place.gpu,
            threads=place.threads,
            quiet=self.quiet or not place.first,
        )

    def anywhere(self) -> "_Choice":
        """The same, where the current directory is another."""
        from ccdstream.packaged import find_model

        model = self.model
        if model is not None and find_model(model).path == Path(model):
            model = os.path.abspath(model)
        images = tuple(Path(os.path.abspath(path)) for path in self.calibration)
        return replace(self, model=model, calibration=images)

    def results(self, bundle: "Bundle", options: "RunOptions") -> "Wanted":
        """What results must be of to be left alone."""
        from ccdstream.batch import Wanted

        return Wanted(bundle, options, self.device.value, self.engine.value, self.precision.value)


def _run_one(
    path: Path,
    output: Path | None,
    choice: _Choice,
    options: "RunOptions",
    as_json: bool,
    names: _Names | None,
) -> None:
    """Analyse one recording, in this process."""
    from ccdstream.batch import Job, Place, standing
    from ccdstream.recording import OutputFiles, refuse_other_names, refuse_pseudonyms
    from ccdstream.report.files import sweep

    files = OutputFiles(output or Path(f"{path.stem}.ccdstream"), path.stem)
    alias = None
    if names is not None:
        with names.opened() as known:
            refuse_other_names(names.output, known)
            alias = known.alias(path)
        files = OutputFiles(names.output, alias.name)
    else:
        refuse_pseudonyms([files.folder])
    if os.path.isdir(files.folder):
        sweep(files.folder)
    if not options.overwrite:
        bundle = load_model(choice.model, quiet=True)
        there = standing(Job(path, files, path.name, alias), choice.results(bundle, options))
        if there.stored is not None:
            called = path.name if alias is None else alias.name
            _tell_stored(there.stored, path.name, called, files, as_json, choice.quiet)
            if not choice.quiet:
                say(NOTICE)
            return
        if there.state == "other":
            raise OutputError(
                f"{show_path(files.path('run.json'))} is there already: {there.why}. "
                "Replace these results with --overwrite, or choose another place with --output."
            )
        if there.state == "unfinished":
            options = replace(options, overwrite=True)
    bundle, selected = choice(Place())
    analysis = _Analysis(bundle, selected, options, as_json, choice.quiet, alias)
    with interrupts_end_input() as stopped:
        analysis.run(path, files, stopped)
        if names is not None and not choice.quiet:
            names.say_what_to_do(options)
        if stopped():
            say("interrupted: what was analysed up to there is whole")
            raise typer.Exit(130)


def _run_batch(
    inputs: Sequence[Path],
    output: Path | None,
    recursive: bool,
    choice: _Choice,
    options: "RunOptions",
    jobs: int | None,
    as_json: bool,
    names: _Names | None,
    ray: str | None,
) -> None:
    from ccdstream.batch import find_jobs, is_batch, run_batch
    from ccdstream.cluster import Cluster
    from ccdstream.pipeline import check_bundle
    from ccdstream.recording import refuse_other_names, refuse_pseudonyms

    cluster = None if ray is None else Cluster(ray)
    if output is None and not is_batch(inputs):
        output = Path(f"{inputs[0].stem}.ccdstream")
    if names is None:
        found = find_jobs(inputs, output, recursive=recursive)
        refuse_pseudonyms({found.output, *(job.files.folder for job in found.jobs)})
    else:
        with names.opened() as known:
            refuse_other_names(names.output, known)
            found = find_jobs(inputs, output, recursive=recursive, alias_of=known.alias)
    if not found.jobs:
        for each in found.unusable:
            complain(each.why)
        raise typer.Exit(1)
    bundle = load_model(choice.model, quiet=True)
    check_bundle(bundle)
    with interrupts_end_input() as stopped:
        with progress("recording", choice.quiet) as bar:
            watcher = _BatchWatcher(bar, bundle.model_id, len(found.jobs), as_json, choice.quiet)
            ledger = run_batch(
                found,
                choice.results(bundle, options),
                choice if cluster is None else choice.anywhere(),
                jobs=jobs,
                watcher=watcher,
                stopped=stopped,
                gpus=_gpu_count,
                cluster=cluster,
            )
        if not choice.quiet:
            say("\n".join(_summary(ledger)))
            say(NOTICE)
            if names is not None:
                names.say_what_to_do(options)
        if stopped():
            say("interrupted: what was analysed up to there is whole")
            raise typer.Exit(130)
    if ledger.failed:
        raise typer.Exit(1)


def _gpu_count() -> int:
    from ccdstream.engine.gpu import find_gpus

    return len(find_gpus().found)


def _batch(text: str) -> tuple[int, int, int]:
    try:
        least, usual, most = (int(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"--batch is MIN,OPT,MAX, such as 1,8,32, not {text!r}") from error
    if not 1 <= least <= usual <= most <= 64:
        raise typer.BadParameter(f"--batch needs 1 <= MIN <= OPT <= MAX <= 64, got {text}")
    return least, usual, most


@dataclass(frozen=True, slots=True)
class _Analysis:
    """How one recording is analysed in this process, and what is said about it."""

    bundle: "Bundle"
    engine: "SelectedEngine"
    options: "RunOptions"
    as_json: bool
    quiet: bool
    alias: "Alias | None" = None

    def run(self, path: Path, files: "OutputFiles", stopped: Callable[[], bool]) -> None:
        """Analyse it."""
        from ccdstream import recording
        from ccdstream.report.alerts import alert_record

        with_what = (
            f"{show_path(path.name)}: {self.bundle.model_id}, {self.engine.name} on "
            f"{self.engine.device}"
        )
        with progress("frame", self.quiet) as bar:
            begun = told = self.quiet

            def on_progress(at: "Progress") -> None:
                nonlocal begun, told
                if not begun:  # not before: a recording that cannot be read has its error alone
                    begun = True
                    bar.aside(lambda: say(with_what))
                bar.update(at.frames, at.frame_count_hint, f", {count(at.alerts, 'alert')}")
                if not told and stopped():
                    told = True
                    bar.aside(lambda: say(_STOPPING))

            def on_alert(alert: "Alert", source: "VideoSource") -> None:
                if self.as_json:
                    record = alert_record(alert, source.time_base)
                    called = path.name if self.alias is None else self.alias.name
                    bar.aside(lambda: tell(_alert_line(called, record)))

            result = recording.run(
                path,
                files,
                bundle=self.bundle,
                engine=self.engine,
                options=self.options,
                alias=self.alias,
                stopped=stopped,
                on_progress=on_progress,
                on_alert=on_alert,
            )
        for warning in result.warnings:
            say(f"warning: {show_path(path.name)}: {warning}")
        if self.quiet:
            return
        say(_found_in(result))
        for note in result.notes:
            say(note)
        if not self.as_json:
            tell("\n".join(alert_table(result.alerts)))
        _name_outputs(files, [file.name for file in result.outputs])
        say(NOTICE)


def _name_outputs(files: "OutputFiles", names: Sequence[str]) -> None:
    """Say where results are: first the one for people."""
    report = files.path("report.html")
    say(f"report, for a browser: {show_path(report)}")
    others = ", ".join(show_path(name) for name in names if name != report.name)
    say(f"also in {show_path(files.folder)}{os.sep}: {others}")


def _tell_stored(
    stored: "Stored", name: str, called: str, files: "OutputFiles", as_json: bool, quiet: bool
) -> None:
    """Of a recording that is done already: what the run said of it."""
    for warning in stored.record["warnings"]:
        say(f"warning: {show_path(name)}: {warning}")
    if not quiet:
        say(f"{show_path(name)} is done already")
    if as_json:
        for line in stored.lines:
            tell(_alert_line(called, line))
    elif not quiet:
        tell("\n".join(alert_table(stored.alerts)))
    if not quiet:
        _name_outputs(files, stored.record["outputs"])


def _found_in(result: "RunResult") -> str:
    uninformative = result.frames - result.informative_frames
    of_them = f", {uninformative} of them uninformative" if uninformative else ""
    return (
        f"{count(result.frames, 'frame')} from {timecode(result.first_s)} to "
        f"{timecode(result.last_s)}{of_them}; "
        f"{result.frames / max(result.wall_s, 1e-9):.1f} frames/s"
    )


def _alert_line(recording: str, record: dict[str, Any]) -> str:
    return json.dumps({"recording": recording, **record}, allow_nan=False)


class _BatchWatcher:
    """What is said of a batch while it is at work: a bar for all, and one for each that is."""

    def __init__(self, bar: Bar, model: str, recordings: int, as_json: bool, quiet: bool) -> None:
        self._bar = bar
        self._model = model
        self._recordings = recordings
        self._as_json = as_json
        self._quiet = quiet
        self._open: dict[str, Progress] = {}
        self._frames = self._alerts = self._ended = 0

    def opened(self, opened: "Opened", at_a_time: int) -> None:
        if not self._quiet:
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

    def alert(self, entry: "Entry", record: dict[str, Any]) -> None:
        if self._as_json:
            self._bar.aside(lambda: self._tell_alerts(entry, [record]))

    def _tell_alerts(self, entry: "Entry", records: Sequence[dict[str, Any]]) -> None:
        alias = None if entry.job is None else entry.job.alias
        called = entry.name if alias is None else alias.name
        for record in records:
            tell(_alert_line(called, record))

    def ended(self, entry: "Entry", result: "RunResult | None") -> None:
        self._ended += entry.job is not None
        self._open.pop(entry.name, None)
        self._bar.drop(entry.name)
        if result is not None:
            self._frames += result.frames
            self._alerts += len(result.alerts)
            self._bar.aside(lambda: self._tell(entry, result))
        elif entry.stored is not None:
            stored = entry.stored
            self._bar.aside(lambda: self._tell_stored(entry, stored))
        elif entry.status in ("failed", "crashed"):
            about = f"{show_path(entry.name)}: " if entry.status == "crashed" else ""
            self._bar.aside(lambda: complain(CcdstreamError(f"{about}{entry.reason}")))
        self._show()

    def _tell(self, entry: "Entry", result: "RunResult") -> None:
        name = show_path(entry.name)
        for warning in result.warnings:
            say(f"warning: {name}: {warning}")
        if self._quiet:
            return
        say("; ".join([f"{name}: {_found_in(result)}", *result.notes]))
        if not self._as_json:
            tell("\n".join([name, *alert_table(result.alerts)]))

    def _tell_stored(self, entry: "Entry", stored: "Stored") -> None:
        name = show_path(entry.name)
        for warning in entry.warnings:
            say(f"warning: {name}: {warning}")
        if self._as_json:
            self._tell_alerts(entry, stored.lines)
        if self._quiet:
            return
        report = "" if entry.job is None else show_path(entry.job.files.path("report.html"))
        say(f"{name} is done already; report: {report}")
        if not self._as_json:
            tell("\n".join([name, *alert_table(stored.alerts)]))

    def warn(self, text: str) -> None:
        self.say(text)

    def stopping(self) -> None:
        if not self._quiet:
            self.say(_STOPPING)

    def say(self, text: str) -> None:
        self._bar.aside(lambda: say(text))


def _summary(ledger: "Ledger") -> list[str]:
    """A table of what a batch did and what was done before, a line for all, and where the page is.

    What was done before comes first, and dimmed: the end is where people look.
    """
    entries = ledger.entries
    width = max((len(show_path(entry.node)) for entry in entries if entry.node), default=-2)
    width = max(width, len("node")) + 2 if width > 0 else 0  # without a cluster there is none
    lines = [f"status        frames  alerts  seconds  {'node' if width else '':{width}s}recording"]
    for entry in sorted(entries, key=lambda entry: entry.status != "already_done"):
        frames, alerts = (entry.counts.get(each, "") for each in ("frames", "alerts"))
        seconds = "" if entry.seconds is None else f"{entry.seconds:.1f}"
        node = show_path(entry.node) if entry.node else ""
        status = _in_words(entry.status)
        warned = f"  ({count(len(entry.warnings), 'warning')})" if entry.warnings else ""
        line = (
            f"{status:12s}  {frames:>6}  {alerts:>6}  {seconds:>7}  {node:{width}s}"
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


app.command(no_args_is_help=True)(live)
app.command()(devices)


@app.command(no_args_is_help=True)
def score(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Images or folders.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV file to write.")],
    maps: Annotated[
        Path | None, typer.Option(help="Folder for anomaly maps, float32 .npy in image size.")
    ] = None,
    model: Model = None,
    device: DeviceOption = Device.auto,
    engine: EngineOption = EngineName.auto,
    batch: Annotated[int, typer.Option(min=1, max=64, help="Images in one model call.")] = 4,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Score still images: one CSV row an image, and maps if asked for.

    Example: ccdstream score frames/ -o scores.csv --maps maps
    """
    with command():
        from ccdstream.stills import find_images, score_stills

        images = find_images(paths)
        bundle, selected = open_model(model, device, engine, quiet=quiet)
        with progress("image", quiet) as bar:
            results = score_stills(
                images,
                output,
                bundle=bundle,
                engine=selected,
                maps=maps,
                batch=batch,
                overwrite=overwrite,
                on_image=lambda done: bar.update(done, len(images)),
                on_unreadable=lambda why: bar.aside(lambda: say(f"warning: {why}")),
            )
        if not quiet:
            left_out = len(images) - len(results)
            say(f"{count(len(results), 'image')} scored, {left_out} left out: {show_path(output)}")


@app.command()
def sample(
    output: Annotated[Path, typer.Option("--output", "-o", help="Video to write.")] = Path(
        "sample.mp4"
    ),
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="Length of the video.")] = 20.0,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal videos.")] = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Make a synthetic procedure with its truth: a test bed, not evidence of accuracy.

    Example: ccdstream sample -o sample.mp4 --seconds 20
    """
    with command():
        from ccdstream.demo import truth_path

        _write_sample(output, seconds, seed, overwrite, quiet)
        if not quiet:
            say(f"{show_path(output)} and {show_path(truth_path(output))}")


def _write_sample(video: Path, seconds: float, seed: int, overwrite: bool, quiet: bool) -> None:
    from ccdstream.demo import write_sample
    from ccdstream.sample import SampleOptions

    try:
        options = SampleOptions(seconds=seconds, seed=seed)
    except ValueError as error:  # not a number, which no range of an option excludes
        raise typer.BadParameter(str(error)) from error
    with progress("frame", quiet) as bar:
        write_sample(
            video,
            options,
            overwrite=overwrite,
            on_frame=lambda done: bar.update(done, options.frame_count),
        )


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the sample and its results.")
    ] = Path("ccdstream-demo"),
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="Length of the sample.")] = 20.0,
    seed: Annotated[int, typer.Option(min=0, help="Equal seeds give equal videos.")] = 0,
    model: Model = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Make a synthetic procedure and analyse it: shows what comes out, not how good it is.

    Example: ccdstream demo
    """
    with command():
        from ccdstream.demo import truth_path
        from ccdstream.recording import OutputFiles, RunOptions
        from ccdstream.report.files import make_folder, refuse_existing

        video, files = output / "sample.mp4", OutputFiles(output, "sample")
        if not overwrite:
            for file in (video, truth_path(video), *files.all(RunOptions())):
                refuse_existing(file)
        bundle, engine = open_model(model, quiet=quiet)
        make_folder(output)
        if not quiet:
            say(f"making {seconds:g} s of synthetic procedure: {show_path(video)}")
        _write_sample(video, seconds, seed, overwrite, quiet)
        analysis = _Analysis(bundle, engine, RunOptions(overwrite=overwrite), False, quiet)
        with interrupts_end_input() as stopped:
            analysis.run(video, files, stopped)
            interrupted = stopped()
        if not quiet:
            say(
                f"overlay video: {show_path(files.path('overlay.mp4'))}\n"
                f"truth:         {show_path(truth_path(video))}\n"
                "The sample is rendered: it shows how results look, not how accurate they are."
            )
        if interrupted:
            raise typer.Exit(130)


@app.command(no_args_is_help=True)
def train(
    data: Annotated[
        Path, typer.Argument(help="Folder of normal frames or recordings, or a public data set.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Bundle folder to write.")],
    preset: Annotated[Preset, typer.Option(help="Size of the training.")] = Preset.quick,
    config: ConfigFile = None,
    settings: Settings = None,
    student: Annotated[
        str | None,
        typer.Option(
            metavar="BUNDLE",
            help="Train a small, fast network that follows this bundle instead: a folder, or a "
            "packaged one's name.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with OUTPUT.run.")] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also log to OUTPUT.run/tensorboard.")
    ] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train a model bundle from normal frames: pre-training, a detector, calibration, export.

    Example: ccdstream train frames/ -o my-model --preset quick --set detector=fanogan

    Then: ccdstream train frames/ -o my-fast-model --student my-model
    """
    with command():
        from ccdstream.packaged import find_model
        from trainer.config import load_config
        from trainer.student import train_student
        from trainer.train import train as train_bundle

        chosen = load_config(preset.value, config, settings or ())
        with _training(quiet, "go on with --resume") as watch:
            train_it: Callable[..., Any] = train_bundle
            if student is not None:
                train_it = partial(train_student, reference=find_model(student).path)
            train_it(
                data,
                output,
                config=chosen,
                command=_typed(),
                resume=resume,
                overwrite=overwrite,
                tensorboard=tensorboard,
                say=watch.say,
                on_progress=watch.on_progress,
                stopped=watch.stopped,
            )


def _typed() -> str:
    """What the user typed, for a manifest."""
    return shlex.join(["ccdstream", *sys.argv[1:]])


@dataclass(frozen=True, slots=True)
class _Watch:
    """How a training tells what it does, and learns that it is to stop."""

    bar: "Bar"
    quiet: bool
    stopped: Callable[[], bool]

    def say(self, line: str) -> None:
        if not self.quiet:
            self.bar.aside(lambda: say(line))
            self.bar.show(0, None, "")  # what was under way before is over

    def on_progress(self, at: "StageProgress") -> None:
        if at.done < at.total:
            self.bar.show(at.done, at.total, at.brief if sys.stderr.isatty() else str(at))
        else:
            self.say(str(at))  # how the stage ended stays to be read


@contextmanager
def _training(quiet: bool, to_go_on: str) -> Iterator[_Watch]:
    """Show a training's progress; the first Ctrl-C lets it save what it did, then ends it."""
    with interrupts_end_input() as stopped, progress("step", quiet) as bar:
        try:
            yield _Watch(bar, quiet, stopped)
        except KeyboardInterrupt:
            bar.aside(lambda: say(f"interrupted: what was trained is saved; {to_go_on}"))
            raise typer.Exit(130) from None


@app.command("compile")
def compile_engine(
    model: Annotated[
        str | None,
        typer.Option(
            "--bundle", "--model", metavar="BUNDLE", help=f"{MODEL_HELP} Default: default."
        ),
    ] = None,
    engine: EngineOption = EngineName.auto,
    precision: PrecisionOption = PrecisionName.fp16,
    batch: BatchOption = "1,8,32",
    calibration: CalibrationOption = None,
) -> None:
    """Compile a bundle for this machine's GPU ahead of time, and hold it against the bundle.

    Without it the first run compiles. Example: ccdstream compile --precision fp16 --batch 1,8,32
    """
    with command():
        from ccdstream.engine.gpu import find_gpus

        profile = _batch(batch)

        if problem := find_gpus().problem:
            raise EngineError(
                f"nothing to compile for: {problem}. Engines are compiled for NVIDIA GPUs; on a "
                "CPU the bundle runs as it is."
            )
        loaded, selected = open_model(
            model,
            Device.cuda,
            engine,
            precision,
            batch=profile,
            calibration=calibration or (),
        )
        tell(f"{loaded.model_id}: {selected.reason}")


@app.command(no_args_is_help=True)
def ablate(
    data: Annotated[Path, typer.Argument(help="Folder with an index.csv of labelled frames.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for bundles and tables.")],
    preset: Annotated[Preset, typer.Option(help="Size of each training.")] = Preset.quick,
    config: ConfigFile = None,
    settings: Settings = None,
    tables: Annotated[
        list[str] | None,
        typer.Option(
            "--table",
            metavar="NAME",
            help="table1, table2, table3, figure2-batch, figure2-strong, today or switches; may be "
            "given several times. All if not given.",
        ),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--on", metavar="SET", help="Set of test images; may be given several times."),
    ] = None,
    device: DeviceOption = Device.auto,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train and measure the paper's ablations; what is there already is not done again.

    Example: ccdstream ablate data/ -o ablation --preset quick --table table1 --on polyp
    """
    with command():
        from trainer import ablate as ablation
        from trainer.config import load_config

        chosen = load_config(preset.value, config, settings or ())
        with _training(quiet, "give the same command again to go on") as watch:
            document = ablation.ablate(
                data,
                output,
                chosen,
                command=_typed(),
                tables=tables or (),
                sets=sets or (),
                device=device.value,
                say=watch.say,
                on_progress=watch.on_progress,
                stopped=watch.stopped,
            )
        tell(json.dumps(document) if as_json else ablation.markdown(document))
        if not quiet:
            say(f"tables and plot: {show_path(output / 'ablation.md')}, ablation.png, .json")
        if ablation.failed(document):
            raise typer.Exit(1)


@app.command(no_args_is_help=True)
def evaluate(
    data: Annotated[
        Path,
        typer.Argument(
            help="Folder with an index.csv of labelled frames; or a video with its truth beside "
            "it, or a folder of such."
        ),
    ],
    model: Model = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for scores, maps and figures.")
    ] = None,
    device: DeviceOption = Device.auto,
    engine: EngineOption = EngineName.auto,
    precision: PrecisionOption = PrecisionName.fp32,
    calibration: CalibrationOption = None,
    record: Annotated[
        bool,
        typer.Option(
            "--record", help="Also write the main figures into the bundle, for its model card."
        ),
    ] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure a bundle on labelled frames, beside the trivial baselines, or on marked videos.

    Example: ccdstream evaluate data/ -o figures --model my-model --record
    """
    with command():
        from trainer import evaluate as evaluation
        from trainer import evaluate_video

        videos = _videos_to_measure(data)
        if record:
            _check_recording(model)
        bundle, selected = open_model(
            model, device, engine, precision, calibration=calibration or ()
        )
        if videos:
            with progress("frame", False) as bar:
                document = evaluate_video.evaluate(
                    videos, bundle, selected, output, overwrite=overwrite, progress=bar.update
                )
            text = evaluate_video.table(document)
            written, first = "figures, scores and boxes", "timeline.png"
        else:
            with progress("image", False) as bar:
                document = evaluation.evaluate(
                    data,
                    bundle,
                    selected,
                    output,
                    overwrite=overwrite,
                    progress=lambda step, done, total: bar.show(
                        done, total, f"{step}: {done} of {total}"
                    ),
                )
            text = evaluation.table(document)
            written, first = "figures, page and scores", "evaluation.html"
        tell(json.dumps(document) if as_json else text)
        if output is not None:
            say(f"{written} in {show_path(output)}{os.sep}: open {show_path(output / first)}")
        if record:
            _record(bundle, selected, videos, document)


def _check_recording(model: str | None) -> None:
    """See before the work that figures can be written."""
    from ccdstream.bundle import refuse_unwritable

    refuse_unwritable(load_model(model, quiet=True).path)


def _record(
    bundle: "Bundle",
    engine: "SelectedEngine",
    videos: Sequence[Path],
    document: dict[str, Any],
) -> None:
    """Write the main figures of an evaluation into the manifest of its bundle."""
    from ccdstream.bundle import record_figures
    from ccdstream.doctor import machine
    from trainer import figures
    from trainer.manifest import code_commit

    made = figures.Made(_typed(), code_commit(), machine(), engine.precision or "fp32")
    if videos:
        entry = figures.of_videos(videos, document, made)
    else:
        entry = figures.of_frames(document, made)
    record_figures(bundle, entry)
    say(f"recorded in {show_path(bundle.path)}; see ccdstream model card {show_path(bundle.path)}")


def _videos_to_measure(data: Path) -> list[Path]:
    """The recordings that `data` names; none where it is a folder of frames, or nothing."""
    from ccdstream.batch import videos_in
    from ccdstream.errors import ImageError
    from ccdstream.stills import find_images
    from trainer.truth import find_truth

    if not os.path.isdir(data):
        return [data] if os.path.exists(data) else []
    try:
        videos = [] if os.path.exists(data / "index.csv") else videos_in(data)
    except VideoOpenError:
        return []
    if any(find_truth(video) for video in videos):
        return videos
    try:
        find_images([data])
    except ImageError:  # videos alone, so it is their truth that is missing
        return videos
    return []


@data_app.command()
def check(
    data: Annotated[Path, typer.Argument(help="Whatever train takes.")], as_json: Json = False
) -> None:
    """Count, find bad files and duplicates, and measure what gives the labels away.

    Exits with 1 where train would refuse the data. Example: ccdstream data check frames/
    """
    with command():
        from trainer import data_check

        with progress("image", quiet=False) as bar:
            document = data_check.check(data, progress=bar.update)
        tell(json.dumps(document) if as_json else data_check.table(document))
        if not document["usable"]:
            raise typer.Exit(1)


@model_app.command()
def show(
    bundle: BundleArgument = None,
    as_json: Json = False,
) -> None:
    """Show what a bundle is: data, configuration, calibration, thresholds.

    Example: ccdstream model show
    """
    with command():
        from ccdstream.card import describe

        loaded = load_model(bundle)
        tell(json.dumps(loaded.manifest) if as_json else describe(loaded))


@model_app.command("list")
def list_models(as_json: Json = False) -> None:
    """List the bundles that come with ccdstream, by the names that --model takes.

    Example: ccdstream model list
    """
    with command():
        from ccdstream.card import packaged_bundles, packaged_table

        listed = packaged_bundles()
        tell("\n".join(map(json.dumps, listed)) if as_json else packaged_table(listed))


@model_app.command()
def card(
    bundle: BundleArgument = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write, instead of printing.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Print a bundle's model card: what it is, data, terms, figures, what it was not tested on.

    Example: ccdstream model card reference -o reference.md
    """
    with command():
        from ccdstream.card import card as card_of
        from ccdstream.report.files import write_text

        text = card_of(load_model(bundle))
        if output is None:
            tell(text.rstrip("\n"))
        else:
            write_text(output, text, overwrite=overwrite)
            say(f"model card: {show_path(output)}")


@model_app.command()
def verify(
    bundle: BundleArgument = None,
    device: DeviceOption = Device.auto,
    engine: EngineOption = EngineName.auto,
    precision: PrecisionOption = PrecisionName.fp16,
    calibration: CalibrationOption = None,
) -> None:
    """Check a bundle's files, and that this machine gives its golden scores.

    Example: ccdstream model verify --engine onnxruntime --calibration normal/
    """
    with command():
        loaded, selected = open_model(
            bundle, device, engine, precision, calibration=calibration or ()
        )
        tell(f"{loaded.model_id}: files whole; {selected.reason}")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine has, and which way an analysis would take.

    Example: ccdstream doctor
    """
    with command():
        from ccdstream import doctor as examination

        found = examination.report(say=say)
        tell(json.dumps(found) if as_json else "\n".join(examination.lines(found)))
