"""The command line: arguments in, text out. Every decision is made elsewhere.

stdout is data, stderr is for people. Nothing heavy is imported before a command needs it.
"""

import json
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ccdstream import NOTICE, __version__
from ccdstream.errors import CcdstreamError, OutputError, VideoOpenError, show_path
from ccdstream.timecode import parse_timecode, timecode

if TYPE_CHECKING:
    from ccdstream.alert import Alert
    from ccdstream.bundle import Bundle
    from ccdstream.decode import VideoSource
    from ccdstream.engine.select import SelectedEngine
    from ccdstream.pipeline import OutputFiles, Progress, RunResult

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
model_app = typer.Typer(no_args_is_help=True, help="Look into a model bundle, or check it here.")
app.add_typer(model_app, name="model")

VIDEO_SUFFIXES = frozenset(
    [
        ".3gp",
        ".asf",
        ".avi",
        ".dv",
        ".flv",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".mxf",
        ".ogv",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
    ]
)


class Device(StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class VideoOutput(StrEnum):
    """Which video to write."""

    overlay = "overlay"
    none = "none"


class Preset(StrEnum):
    """Sizes of a training."""

    smoke = "smoke"
    quick = "quick"
    paper = "paper"


Model = Annotated[
    Path | None, typer.Option("--model", help="Model bundle; the built-in one if not given.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace results that exist.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON lines instead of tables.")]
DeviceOption = Annotated[Device, typer.Option(help="Where to compute.")]


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


@contextmanager
def _errors_as_messages() -> Iterator[None]:
    """Print errors that the user can act on, and let bugs keep their traceback."""
    try:
        yield
    except CcdstreamError as error:
        _say(f"error: {error}", red=True)
        raise typer.Exit(1) from None
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has gone; there is nobody to tell
        raise typer.Exit(1) from None


def _say(text: str, *, red: bool = False) -> None:
    typer.secho(text, err=True, fg=typer.colors.RED if red else None)


@contextmanager
def _interrupts_end_input() -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C or SIGTERM end the video, so that open work is finished; the next aborts.

    A KeyboardInterrupt would land between encoding a packet and writing it, and lose the packet.
    """
    pressed = False

    def on_signal(number: int, _frame: object) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(number, signal.default_int_handler)

    before = {n: signal.signal(n, on_signal) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: pressed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@app.command(no_args_is_help=True)
def run(
    inputs: Annotated[
        list[Path], typer.Argument(metavar="INPUT...", help="Recordings or folders.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for the results; default INPUT.ccdstream."),
    ] = None,
    model: Model = None,
    device: DeviceOption = Device.auto,
    video: Annotated[VideoOutput, typer.Option(help="Which video to write.")] = VideoOutput.overlay,
    start: Annotated[
        str | None, typer.Option("--from", metavar="T", help="Start at T: 90, 90s or 00:01:30.")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="T", help="Stop before T.")] = None,
    batch: Annotated[int, typer.Option(min=1, max=64, help="Frames in one model call.")] = 4,
    overwrite: Overwrite = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Analyse recordings: overlay video, alerts and scores.

    Example: ccdstream run case12.mp4 -o results --json > alerts.jsonl
    """
    with _errors_as_messages():
        from ccdstream.pipeline import RunOptions

        options = RunOptions(
            video.value, _time("--from", start), _time("--to", end), batch, overwrite
        )
        if None not in (options.start_s, options.end_s) and options.end_s <= options.start_s:  # type: ignore[operator]
            raise typer.BadParameter("--to must be later than --from.")
        jobs = _jobs(inputs, output)
        bundle, engine = _open_model(model, device)
        failed = False
        with _interrupts_end_input() as stopped:
            for path, files in jobs:
                try:
                    _run_one(path, files, bundle, engine, options, stopped, as_json, quiet)
                except CcdstreamError as error:
                    _say(f"error: {error}", red=True)
                    failed = True
                if stopped():
                    break
        if stopped():
            _say("interrupted: every file up to there is finished")
            raise typer.Exit(130)
        if failed:
            raise typer.Exit(1)


def _jobs(inputs: list[Path], output: Path | None) -> "list[tuple[Path, OutputFiles]]":
    """Each recording with where its results go."""
    from ccdstream.pipeline import OutputFiles

    recordings: list[Path] = []
    for path in inputs:
        if path.is_dir():
            videos = sorted(p for p in path.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES)
            if not videos:
                raise VideoOpenError(
                    f"no videos in the folder {show_path(path)}. Expected files such as .mp4, .mkv "
                    "or .avi directly in it."
                )
            recordings += videos
        else:
            recordings.append(path)
    jobs = [(p, OutputFiles(output or Path(f"{p.stem}.ccdstream"), p.stem)) for p in recordings]
    owner: dict[Path, Path] = {}
    for path, files in jobs:
        place = files.path("run.json")
        if place in owner:
            raise OutputError(
                f"{show_path(owner[place])} and {show_path(path)} would write the same results. "
                "Run them apart, with an --output each."
            )
        owner[place] = path
    return jobs


def _open_model(model: Path | None, device: Device) -> "tuple[Bundle, SelectedEngine]":
    from ccdstream.bundle import load_bundle
    from ccdstream.engine.select import open_engine

    bundle = load_bundle(model)
    return bundle, open_engine(bundle, device=device.value)


def _time(option: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return parse_timecode(text)
    except ValueError as error:
        raise typer.BadParameter(f"{option}: {error}") from error


def _run_one(
    path: Path,
    files: "OutputFiles",
    bundle: "Bundle",
    engine: "SelectedEngine",
    options: Any,
    stopped: Callable[[], bool],
    as_json: bool,
    quiet: bool,
) -> None:
    from ccdstream import pipeline
    from ccdstream.report.alerts import alert_line

    if not quiet:
        _say(f"{show_path(path.name)}: {bundle.model_id}, {engine.name} on {engine.device}")

    def print_alert(alert: "Alert", source: "VideoSource") -> None:
        if as_json:
            typer.echo(alert_line(alert, source.time_base))

    with _progress(quiet) as on_progress:
        result = pipeline.run(
            path,
            files,
            bundle=bundle,
            engine=engine,
            options=options,
            stopped=stopped,
            on_progress=on_progress,
            on_alert=print_alert,
        )
    for warning in result.warnings:
        _say(f"warning: {show_path(path.name)}: {warning}")
    if not quiet:
        _summary(path, result, options.video, as_json)


def _summary(path: Path, result: "RunResult", video: str, as_json: bool) -> None:
    """What was found, as a short table, and where it lies."""
    unclear = result.frames - result.informative_frames
    seconds = result.last_s - result.first_s
    _say(
        f"{result.frames} frames, {seconds:.1f} s of video in {result.wall_s:.1f} s "
        f"({result.frames / max(result.wall_s, 1e-9):.1f} frames/s); "
        f"{unclear} frames told nothing"
    )
    if not as_json:
        if result.alerts:
            typer.echo("alert  start         end           peak          score  where")
        for a in result.alerts:
            where = (
                "whole frame"
                if a.clock is None
                else "centre"
                if a.clock == "centre"
                else (f"{a.clock} o'clock")
            )
            typer.echo(
                f"{a.number:5d}  {timecode(a.start_s)}  {timecode(a.end_s)}  {timecode(a.peak_s)}  "
                f"{int(a.peak_score * 1000) / 1000:.3f}  {where}"
            )
        if not result.alerts:
            typer.echo("no alerts: nothing stayed unusual against normal training frames")
    for file in result.files.all(video):
        _say(f"  {show_path(file)}")
    _say(NOTICE)


@contextmanager
def _progress(quiet: bool) -> "Iterator[Callable[[Progress], None]]":
    """A bar on a terminal, a plain line every ten seconds elsewhere, nothing if quiet."""
    if quiet:
        yield lambda _: None
        return
    if not sys.stderr.isatty():
        started = last = time.monotonic()

        def line(progress: "Progress") -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= 10:
                last = now
                rate = progress.frames / (now - started)
                total = progress.frame_count_hint
                _say(
                    f"{progress.frames}{f' of {total}' if total else ''} frames, "
                    f"{rate:.1f} frames/s, {progress.alerts} alerts"
                )

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        TextColumn("{task.completed}/{task.total} frames"),
        TextColumn("{task.fields[rate]:.1f}/s"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[alerts]} alerts"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, rate=0.0, alerts=0)
        began = time.monotonic()

        def update(progress: "Progress") -> None:
            rate = progress.frames / max(time.monotonic() - began, 1e-6)
            bar.update(
                task,
                completed=progress.frames,
                total=progress.frame_count_hint,
                rate=rate,
                alerts=progress.alerts,
            )

        yield update


@app.command(no_args_is_help=True)
def score(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Images or folders.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV file to write.")],
    maps: Annotated[
        Path | None, typer.Option(help="Folder for anomaly maps, float32 .npy in image size.")
    ] = None,
    model: Model = None,
    device: DeviceOption = Device.auto,
    batch: Annotated[int, typer.Option(min=1, max=64, help="Images in one model call.")] = 4,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Score still images: one CSV row an image, and maps if asked for.

    Example: ccdstream score frames/ -o scores.csv --maps maps
    """
    with _errors_as_messages():
        from ccdstream.stills import find_images, score_stills

        images = find_images(paths)
        bundle, engine = _open_model(model, device)
        unreadable: list[str] = []
        results = score_stills(
            images,
            output,
            bundle=bundle,
            engine=engine,
            maps=maps,
            batch=batch,
            overwrite=overwrite,
            on_unreadable=unreadable.append,
        )
        for warning in unreadable:
            _say(f"warning: {warning}")
        if not quiet:
            _say(f"{len(results)} images scored, {len(unreadable)} could not be read: "
                 f"{show_path(output)}")  # fmt: skip


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
    with _errors_as_messages(), _interrupts_end_input() as stopped:
        from ccdstream.demo import truth_path, write_sample
        from ccdstream.sample import SampleOptions

        write_sample(
            output, SampleOptions(seconds=seconds, seed=seed), overwrite=overwrite, stopped=stopped
        )
        if not quiet:
            _say(f"{show_path(output)} and {show_path(truth_path(output))}")
        if stopped():
            raise typer.Exit(130)


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
    with _errors_as_messages(), _interrupts_end_input() as stopped:
        from ccdstream.demo import truth_path, write_sample
        from ccdstream.pipeline import OutputFiles, RunOptions
        from ccdstream.sample import SampleOptions

        video = output / "sample.mp4"
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot make the folder {show_path(output)}: {error.strerror}. "
                "Choose another --output."
            ) from error
        bundle, engine = _open_model(model, Device.auto)
        if not quiet:
            _say(f"making {seconds:g} s of synthetic procedure: {show_path(video)}")
        write_sample(
            video, SampleOptions(seconds=seconds, seed=seed), overwrite=overwrite, stopped=stopped
        )
        if not stopped():
            files = OutputFiles(output, "sample")
            options = RunOptions(overwrite=overwrite)
            _run_one(video, files, bundle, engine, options, stopped, False, quiet)
        if not quiet:
            _say(
                f"overlay video: {show_path(output / 'sample.overlay.mp4')}\n"
                f"alerts:        {show_path(output / 'sample.alerts.csv')}\n"
                f"report:        {show_path(output / 'sample.run.json')}\n"
                f"truth:         {show_path(truth_path(video))}\n"
                "The sample is rendered: it shows how results look, not how accurate they are."
            )
        if stopped():
            raise typer.Exit(130)


@app.command(no_args_is_help=True)
def train(
    data: Annotated[Path, typer.Argument(help="Folder of normal frames.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Bundle folder to write.")],
    preset: Annotated[Preset, typer.Option(help="Size of the training.")] = Preset.quick,
    config: Annotated[Path | None, typer.Option(help="TOML file on top of the preset.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One setting on top.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with OUTPUT.run.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Train a model bundle from normal frames: pre-training, IGD, calibration, export.

    Example: ccdstream train frames/ -o my-model --preset quick
    """
    with _errors_as_messages():
        from trainer.config import load_config
        from trainer.train import train as train_bundle

        try:
            train_bundle(
                data,
                output,
                load_config(preset.value, config, settings or ()),
                command=shlex.join(["ccdstream", *sys.argv[1:]]),
                resume=resume,
                overwrite=overwrite,
            )
        except KeyboardInterrupt:
            _say("interrupted: go on with --resume")
            raise typer.Exit(130) from None


@app.command(no_args_is_help=True)
def evaluate(
    data: Annotated[Path, typer.Argument(help="Folder with an index.csv of labelled frames.")],
    model: Model = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for scores, maps and figures.")
    ] = None,
    device: DeviceOption = Device.auto,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure a bundle on labelled frames, beside the trivial baselines.

    Example: ccdstream evaluate data/ -o figures
    """
    with _errors_as_messages():
        from trainer import evaluate as evaluation

        bundle, engine = _open_model(model, device)
        document = evaluation.evaluate(data, bundle, engine, output, overwrite=overwrite)
        typer.echo(json.dumps(document) if as_json else evaluation.table(document))


@model_app.command()
def show(
    bundle: Annotated[
        Path | None, typer.Argument(help="Bundle; the built-in one if left out.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a bundle is: data, configuration, calibration, thresholds.

    Example: ccdstream model show
    """
    with _errors_as_messages():
        from ccdstream.bundle import describe, load_bundle

        loaded = load_bundle(bundle)
        typer.echo(json.dumps(loaded.manifest) if as_json else describe(loaded))


@model_app.command()
def verify(
    bundle: Annotated[
        Path | None, typer.Argument(help="Bundle; the built-in one if left out.")
    ] = None,
    device: DeviceOption = Device.auto,
) -> None:
    """Check a bundle's files, and that this machine gives its golden scores.

    Example: ccdstream model verify
    """
    with _errors_as_messages():
        loaded, engine = _open_model(bundle, device)
        typer.echo(f"{loaded.model_id}: files whole; {engine.reason}")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine has, and which way an analysis would take.

    Example: ccdstream doctor
    """
    with _errors_as_messages():
        from ccdstream import doctor as examination

        found = examination.report()
        typer.echo(json.dumps(found) if as_json else "\n".join(examination.lines(found)))
