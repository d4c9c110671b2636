"""The command line: arguments in, text out. Every decision is made elsewhere.

stdout is data, stderr is for people. Nothing heavy is imported before a command needs it.
"""

import json
import os
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ccdstream import NOTICE, __version__
from ccdstream.console import (
    MODEL_HELP,
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
    command,
    count,
    data_beside,
    interrupts_end_input,
    load_model,
    open_model,
    progress,
    say,
    tell,
)
from ccdstream.errors import EngineError, OutputError, show_path
from ccdstream.live.cli import devices, live
from ccdstream.run_cli import analyse, run
from ccdstream.run_text import Printing
from ccdstream.train_cli import ablate, check, evaluate, train


class Commands(TyperGroup):
    """All commands, or all of a group."""

    def get_params(self, ctx: Any) -> Any:
        """All its options and arguments."""
        return _plain_flags(super().get_params(ctx))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, or None."""
        found = super().get_command(ctx, cmd_name)
        if found is not None:
            _plain_flags(found.get_params(ctx))
        return found

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that `args` name; where a file stands in its place, what takes such a one is
        said."""
        name = args[0]
        looks_like_file = os.path.exists(name) or os.path.splitext(name)[1]
        if ctx.parent is None and looks_like_file and self.get_command(ctx, name) is None:
            from ccdstream.stills import SUFFIXES

            file = shlex.quote(show_path(name))
            still = Path(name).suffix.lower() in SUFFIXES
            what = f"score {file} -o scores.csv" if still else f"run {file}"
            ctx.fail(f"No such command {name!r}. To analyse it: ccdstream {what}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Do what `ctx` says; a wrong value of an option is told without pydantic's first words."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")
            raise


def _plain_flags(parameters: Any) -> Any:
    """Nothing stands beside a flag in --help, where typer shows <bool>; nor beside --help, which
    nobody declares."""
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return parameters


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    rich_markup_mode="markdown",  # so that paragraphs are set anew to the width of the terminal
    context_settings={"help_option_names": ["-h", "--help"]},
)
model_app = typer.Typer(
    cls=Commands, no_args_is_help=True, help="Look into a model bundle, or check it here."
)
app.add_typer(model_app, name="model")
data_app = typer.Typer(
    cls=Commands, no_args_is_help=True, help="Look at data before training on it."
)
app.add_typer(data_app, name="data")

SampleSeconds = Annotated[
    float, typer.Option(metavar="S", min=1, max=3600, help="Length of the video.")
]
SampleSeed = Annotated[int, typer.Option(metavar="N", min=0, help="Equal seeds give equal videos.")]
BatchOption = Annotated[
    str,
    typer.Option("--batch", metavar="MIN,OPT,MAX", help="Frames in a call: least, usual and most."),
]


def _version(value: bool) -> None:
    if value:
        with command():
            tell(f"ccdstream {__version__}\n{NOTICE}")
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


def score(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="Images or folders.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="CSV file to write.")
    ],
    maps: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for anomaly maps, float32 .npy in image size."),
    ] = None,
    model: Model = None,
    device: DeviceOption = Device.auto,
    engine: EngineOption = EngineName.auto,
    batch: Annotated[
        int, typer.Option(metavar="N", min=1, max=64, help="Images in one model call.")
    ] = 4,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Score still images: one CSV row an image, and maps if asked for.

    Example: ccdstream score frames/ -o scores.csv --maps maps
    """
    with command():
        from ccdstream.stills import find_images, score_stills

        if str(output) == "-":
            raise OutputError(
                "scores cannot be written to standard output: --output - would be a file called "
                "'-'. Name a file, such as --output scores.csv."
            )
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


def sample(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Video to write.")
    ] = Path("sample.mp4"),
    seconds: SampleSeconds = 20.0,
    seed: SampleSeed = 0,
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


def demo(
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Folder for the sample and its results."
        ),
    ] = Path("ccdstream-demo"),
    seconds: SampleSeconds = 20.0,
    seed: SampleSeed = 0,
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
        options = RunOptions(overwrite=overwrite)
        with interrupts_end_input() as stopped, data_beside() as tell:
            analyse(
                video, files, bundle, engine, options, Printing(tell, quiet=quiet), stopped=stopped
            )
            if not quiet:
                say(
                    f"overlay video: {show_path(files.path('overlay.mp4'))}\n"
                    f"truth:         {show_path(truth_path(video))}\n"
                    "The sample is rendered: it shows how results look, not how accurate they are."
                )
            if stopped():
                raise typer.Exit(130)


def compile_engine(
    model: Annotated[
        str | None,
        typer.Option("--bundle", "--model", metavar="BUNDLE", help=MODEL_HELP),
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


def _batch(text: str) -> tuple[int, int, int]:
    try:
        least, usual, most = (int(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"--batch is MIN,OPT,MAX, such as 1,8,32, not {text!r}") from error
    if not 1 <= least <= usual <= most <= 64:
        raise typer.BadParameter(f"--batch needs 1 <= MIN <= OPT <= MAX <= 64, got {text}")
    return least, usual, most


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


def list_models(as_json: Json = False) -> None:
    """List the bundles that come with ccdstream, by the names that --model takes.

    Example: ccdstream model list
    """
    with command():
        from ccdstream.card import packaged_bundles, packaged_table

        listed = packaged_bundles()
        tell("\n".join(map(json.dumps, listed)) if as_json else packaged_table(listed))


def card(
    bundle: BundleArgument = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="File to write, instead of printing."),
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


def doctor(as_json: Json = False) -> None:
    """Say what this machine has, and which way an analysis would take.

    Example: ccdstream doctor
    """
    with command():
        from ccdstream import doctor as examination

        found = examination.report(say=say)
        tell(json.dumps(found) if as_json else "\n".join(examination.lines(found)))


# in the order of --help
app.command(no_args_is_help=True)(run)
app.command(no_args_is_help=True)(live)
app.command()(devices)
app.command(no_args_is_help=True)(score)
app.command()(sample)
app.command()(demo)
app.command(no_args_is_help=True)(train)
app.command("compile")(compile_engine)
app.command(no_args_is_help=True)(ablate)
app.command(no_args_is_help=True)(evaluate)
app.command()(doctor)
model_app.command()(show)
model_app.command("list")(list_models)
model_app.command()(card)
model_app.command()(verify)
data_app.command()(check)
