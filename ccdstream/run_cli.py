"""The command `run`: one recording in this process, or a batch of them.

What is printed of them stands in `run_text`. Nothing heavy is imported before it is needed.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ccdstream import NOTICE
from ccdstream.console import (
    MODEL_PANEL,
    CalibrationOption,
    Device,
    DeviceOption,
    EngineName,
    EngineOption,
    Json,
    Model,
    PrecisionName,
    PrecisionOption,
    Quiet,
    command,
    complain,
    count,
    data_beside,
    interrupts_end_input,
    load_model,
    open_model,
    parse_time,
    progress,
    say,
)
from ccdstream.errors import OutputError, show_path
from ccdstream.run_text import (
    INTERRUPTED,
    STOPPING,
    BatchWatcher,
    Printing,
    found_in,
    summary,
)

if TYPE_CHECKING:
    from ccdstream.alert import Alert
    from ccdstream.batch import Place, Wanted
    from ccdstream.bundle import Bundle
    from ccdstream.decode import VideoSource
    from ccdstream.engine.select import SelectedEngine
    from ccdstream.pseudonym import Alias, NameMap
    from ccdstream.recording import OutputFiles, Progress, RunOptions

_RESULTS = "Results"
_STRETCH = "Stretch"
_MANY = "Many recordings"
_PRIVACY = "Privacy"


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


def run(
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT", help="Recordings or folders.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
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
            metavar="KIND",
            help="Which video to write. overlay: the recording with heatmap and score; "
            "side-by-side: the recording beside that; chapters: a copy with chapters at alerts; "
            "clips: a copy of 5 s before to 5 s after each alert; none. Copies are not encoded "
            "anew.",
            rich_help_panel=_RESULTS,
        ),
    ] = VideoOutput.overlay,
    also: Annotated[
        list[AlsoOutput] | None,
        typer.Option(
            metavar="FORM",
            help="Further files. parquet: the scores; coco: the score and hottest box of each "
            "frame. May be given several times.",
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
            metavar="N",
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
            metavar="N",
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
            stored, said = there.stored, f"{show_path(path.name)} is done already"
            with data_beside() as tell:
                printing = Printing(tell, as_json, choice.quiet)
                for line in stored.lines:
                    printing.alert(path.name if alias is None else alias.name, line)
                printing.outcome(path.name, said, stored.record["warnings"], stored.alerts)
                printing.outputs(files, stored.record["outputs"])
            return
        if there.state == "other":
            raise OutputError(
                f"{show_path(files.path('run.json'))} is there already: {there.why}. "
                "Replace these results with --overwrite, or choose another place with --output."
            )
        if there.state == "unfinished":
            options = replace(options, overwrite=True)
    bundle, selected = choice(Place())
    with interrupts_end_input() as stopped, data_beside() as tell:
        printing = Printing(tell, as_json, choice.quiet)
        analyse(path, files, bundle, selected, options, printing, stopped=stopped, alias=alias)
        if names is not None and not choice.quiet:
            names.say_what_to_do(options)
        if stopped():
            say(INTERRUPTED)
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
    with interrupts_end_input() as stopped, data_beside() as tell:
        with progress("recording", choice.quiet) as bar:
            printing = Printing(tell, as_json, choice.quiet)
            watcher = BatchWatcher(bar, bundle.model_id, len(found.jobs), printing)
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
            say("\n".join(summary(ledger)))
            say(NOTICE)
            if names is not None:
                names.say_what_to_do(options)
        if stopped():
            say(INTERRUPTED)
            raise typer.Exit(130)
        if ledger.failed:
            raise typer.Exit(1)


def _gpu_count() -> int:
    from ccdstream.engine.gpu import find_gpus

    return len(find_gpus().found)


def analyse(
    path: Path,
    files: "OutputFiles",
    bundle: "Bundle",
    engine: "SelectedEngine",
    options: "RunOptions",
    printing: Printing,
    *,
    stopped: Callable[[], bool],
    alias: "Alias | None" = None,
) -> None:
    """Analyse one recording in this process, and print what it is doing and what came of it.

    Args:
        alias: what it is called, with `options.deid`.
    """
    from ccdstream import recording
    from ccdstream.report.alerts import alert_record

    called = path.name if alias is None else alias.name
    with_what = f"{show_path(path.name)}: {bundle.model_id}, {engine.name} on {engine.device}"
    with progress("frame", printing.quiet) as bar:
        begun = told = printing.quiet

        def on_progress(at: "Progress") -> None:
            nonlocal begun, told
            if not begun:  # not before: a recording that cannot be read has its error alone
                begun = True
                bar.aside(lambda: say(with_what))
            bar.update(at.frames, at.frame_count_hint, f", {count(at.alerts, 'alert')}")
            if not told and stopped():
                told = True
                bar.aside(lambda: say(STOPPING))

        def on_alert(alert: "Alert", source: "VideoSource") -> None:
            if printing.as_json:  # the bar flickers for it
                record = alert_record(alert, source.time_base)
                bar.aside(lambda: printing.alert(called, record))

        result = recording.run(
            path,
            files,
            bundle=bundle,
            engine=engine,
            options=options,
            alias=alias,
            stopped=stopped,
            on_progress=on_progress,
            on_alert=on_alert,
        )
    said = "\n".join([found_in(result), *result.notes])
    printing.outcome(path.name, said, result.warnings, result.alerts)
    printing.outputs(files, [file.name for file in result.outputs])
