"""The commands that train and measure: train, ablate, evaluate, data check.

The one module of the runtime that knows the trainer, and no command imports it before it is needed.
"""

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ccdstream.console import (
    Bar,
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
    TerminalBar,
    command,
    data_beside,
    interrupts_end_input,
    load_model,
    one_of,
    open_model,
    progress,
    say,
    tell,
)
from ccdstream.errors import VideoOpenError, show_path

if TYPE_CHECKING:
    from ccdstream.bundle import Bundle
    from ccdstream.engine.select import SelectedEngine
    from trainer.runs import Progress


class Preset(StrEnum):
    """Sizes of a training."""

    smoke = "smoke"
    brief = "brief"
    quick = "quick"
    paper = "paper"
    paper_liu = "paper-liu"
    paper_lag = "paper-lag"


PresetOption = Annotated[
    Preset, typer.Option(metavar="NAME", help=f"Size of the training: {one_of(Preset)}.")
]
ConfigFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="TOML file on top of the preset.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="One setting on top; may be given several times. A wrong key lists the known ones.",
    ),
]


def train(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA", help="Folder of normal frames or recordings, or a public data set."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Bundle folder to write.")
    ],
    preset: PresetOption = Preset.quick,
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


def ablate(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Folder with an index.csv of labelled frames.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for bundles and tables.")
    ],
    preset: PresetOption = Preset.quick,
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


def evaluate(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA",
            help="Folder with an index.csv of labelled frames; or a video with its truth beside "
            "it, or a folder of such.",
        ),
    ],
    model: Model = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Folder for scores, maps and figures."),
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
        with data_beside() as tell_data:
            tell_data(json.dumps(document) if as_json else text)
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


def check(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Whatever train takes.")],
    as_json: Json = False,
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


def _typed() -> str:
    """What the user typed, for a manifest."""
    return shlex.join(["ccdstream", *sys.argv[1:]])


@dataclass(frozen=True, slots=True)
class _Watch:
    """How a training tells what it does, and learns that it is to stop."""

    bar: Bar
    quiet: bool
    stopped: Callable[[], bool]

    def say(self, line: str) -> None:
        if not self.quiet:
            self.bar.aside(lambda: say(line))
            self.bar.show(0, None, "")  # what was under way before is over

    def on_progress(self, at: "Progress") -> None:
        if at.done < at.total:
            self.bar.show(
                at.done, at.total, at.brief if isinstance(self.bar, TerminalBar) else str(at)
            )
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
