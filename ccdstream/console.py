"""What the commands share: their options, their output, their errors, Ctrl-C.

stdout is data, stderr is for people. Nothing heavy is imported before a command needs it.
"""

import io
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ccdstream.errors import CcdstreamError, OutputError, reason_of
from ccdstream.timecode import parse_timecode, timecode

if TYPE_CHECKING:
    from rich.progress import TaskID

    from ccdstream.alert import Alert
    from ccdstream.bundle import Bundle
    from ccdstream.engine.select import SelectedEngine

PLAIN_PROGRESS_EVERY_S = 10.0


class Device(StrEnum):
    """Where to compute."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class EngineName(StrEnum):
    """What computes."""

    auto = "auto"
    tensorrt = "tensorrt"
    torch_tensorrt = "torch-tensorrt"
    torch = "torch"
    onnxruntime = "onnxruntime"
    openvino = "openvino"


class PrecisionName(StrEnum):
    """What the networks compute in, on a GPU."""

    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"


def one_of(names: type[StrEnum]) -> str:
    """What there is to choose from, in words: a wide column of --help leaves its text no room."""
    *others, last = names
    return f"{', '.join(others)} or {last}"


MODEL_PANEL = "Model and engine"
MODEL_HELP = (
    "Model bundle: a folder, or a packaged one's name (see model list). The default one if left "
    "out."
)
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="BUNDLE",
        help=MODEL_HELP,
        rich_help_panel=MODEL_PANEL,
    ),
]
BundleArgument = Annotated[str | None, typer.Argument(metavar="BUNDLE", help=MODEL_HELP)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace results that exist.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON lines instead of tables.")]
DeviceOption = Annotated[
    Device, typer.Option(help="Where to compute.", rich_help_panel=MODEL_PANEL)
]
EngineOption = Annotated[
    EngineName,
    typer.Option(
        metavar="NAME",
        help=f"What computes: {one_of(EngineName)}. auto takes the first that passes the gate.",
        rich_help_panel=MODEL_PANEL,
    ),
]
PrecisionOption = Annotated[
    PrecisionName,
    typer.Option(help="What the networks compute in, on a GPU.", rich_help_panel=MODEL_PANEL),
]
CalibrationOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--calibration",
        metavar="PATH",
        help="Images of normal frames: int8 learns its ranges from them, and the parity gate "
        "compares them too; may be given several times.",
        rich_help_panel=MODEL_PANEL,
    ),
]


@contextmanager
def command() -> Iterator[None]:
    """What every command does alike: errors that the user can act on become one line and exit 1;
    Ctrl-C and SIGTERM leave nothing unfinished behind, and exit 130. Bugs keep their traceback."""
    # SIGINT too: a shell starts what it runs in the background with SIGINT ignored
    before = {
        n: signal.signal(n, signal.default_int_handler) for n in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    except CcdstreamError as error:
        if not isinstance(error.__cause__, BrokenPipeError):  # who read stdout has gone, and knows
            complain(error)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        say("interrupted: what was not finished is gone")
        raise typer.Exit(130) from None
    finally:
        _restore(before)


@contextmanager
def interrupts_end_input() -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C or SIGTERM end the video, so that open work is finished.

    A KeyboardInterrupt would land between encoding a packet and writing it, and lose the packet.
    The second one is a KeyboardInterrupt; no third one can disturb the tidying up after that.
    """
    pressed = False

    def on_signal(_number: int, _frame: object) -> None:
        nonlocal pressed
        if pressed:
            for number in before:
                signal.signal(number, signal.SIG_IGN)
            raise KeyboardInterrupt
        pressed = True

    before = {n: signal.signal(n, on_signal) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: pressed
    finally:
        _restore(before)


def _restore(handlers: "dict[signal.Signals, Any]") -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def tell(text: str, *, err: bool = False) -> None:
    """Print data, at once: on stdout, or where data is what goes to stderr, there.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        typer.echo(text, err=err)
    except OSError as error:
        _forget_unwritten(err)
        name = "error" if err else "output"
        raise OutputError(f"cannot write to the standard {name}: {reason_of(error)}.") from error


def say(text: str, *, red: bool = False) -> None:
    """Print a word to people: on stderr. Where that cannot be written there is nobody to tell, and
    what is under way goes on."""
    with suppress(OutputError):
        tell(typer.style(text, fg=typer.colors.RED) if red else text, err=True)


def _forget_unwritten(err: bool) -> None:
    """Have a stream try anew each time: it would keep what it could not write, and Python would
    end with status 120 for that, even where all else is well."""
    stream = sys.stderr if err else sys.stdout
    anew = io.TextIOWrapper(
        io.FileIO(stream.fileno(), "w", closefd=False),
        encoding=stream.encoding,
        errors=stream.errors,
        write_through=True,
    )
    if err:
        sys.stderr = anew
    else:
        sys.stdout = anew


class Data:
    """Data for stdout, or stderr, beside work that goes on where it cannot be written.

    Args:
        on_lost: told once, with why; nothing more is printed then.
        err: for stderr.

    Attributes:
        lost: whether some could not be written.
    """

    def __init__(self, on_lost: Callable[[str], None], *, err: bool = False) -> None:
        self.lost = False
        self._on_lost = on_lost
        self._err = err

    def tell(self, text: str) -> None:
        """Print it, at once."""
        if self.lost:
            return
        try:
            tell(text, err=self._err)
        except OutputError as error:
            self.lost = True
            self._on_lost(str(error))


@contextmanager
def data_beside() -> Iterator[Callable[[str], None]]:
    """What prints data beside files, which are worth finishing without it. The exit status is 1
    then."""
    data = Data(lambda why: complain(OutputError(f"{why} The files are finished all the same.")))
    yield data.tell
    if data.lost:
        raise typer.Exit(1)


def complain(error: CcdstreamError) -> None:
    """Print what went wrong, on one line whatever a library or a file name put into it."""
    line = " ".join(str(error).splitlines())
    say(f"error: {''.join(c if c.isprintable() else ascii(c)[1:-1] for c in line)}", red=True)


def count(number: int, noun: str) -> str:
    """Such as "1 frame" and "2 frames"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def open_model(
    model: str | None,
    device: Device = Device.auto,
    engine: EngineName = EngineName.auto,
    precision: PrecisionName = PrecisionName.fp16,
    *,
    batch: tuple[int, int, int] = (1, 8, 32),
    calibration: Sequence[Path] = (),
    gpu: int = 0,
    threads: int | None = None,
    quiet: bool = False,
) -> "tuple[Bundle, SelectedEngine]":
    """A bundle, and an engine that passed the gate for it, as the options ask."""
    from ccdstream.engine.base import BuildOptions
    from ccdstream.engine.parity import refer
    from ccdstream.engine.select import open_engine
    from ccdstream.pipeline import check_bundle
    from ccdstream.stills import calibration_views, find_images

    bundle = load_model(model, quiet=quiet)
    check_bundle(bundle)
    views = reference = trusted = None
    if calibration:
        views = calibration_views(find_images(calibration), bundle)
        trusted = open_engine(bundle, device="cpu")
        reference = refer(views, trusted)
    build = BuildOptions(
        precision.value, batch, gpu, calibration=views, say=(lambda _: None) if quiet else say
    )
    chosen = open_engine(
        bundle,
        device=device.value,
        engine=engine.value,
        threads=threads,
        build=build,
        reference=reference,
    )
    if not quiet:
        on = f"{chosen.name} on {chosen.device}"
        if chosen.precision is None and precision is PrecisionName.int8:
            say(f"warning: {on} computes in fp32; --precision is for the engines of a GPU.")
        if trusted is not None and trusted.name == chosen.name and chosen.device == "cpu":
            say(
                f"warning: the frames of --calibration are compared with {on}, and so with "
                "itself. Name another --engine to compare."
            )
    return bundle, chosen


def load_model(model: str | None, *, quiet: bool = False) -> "Bundle":
    """The bundle that a user means; a word where there are two of that name."""
    from ccdstream.bundle import load_bundle
    from ccdstream.packaged import find_model

    found = find_model(model)
    if found.note and not quiet:
        say(f"model: {found.note}")
    return load_bundle(found.path)


def parse_time(option: str, text: str | None) -> float | None:
    """Seconds of what a person gave to `option`; wrong usage where it is no time."""
    if text is None:
        return None
    try:
        return parse_timecode(text)
    except ValueError as error:
        raise typer.BadParameter(f"{option}: {error}") from error


ALERT_HEAD = "alert  start         end           peak          score  where"


def alert_table(alerts: "Sequence[Alert]") -> list[str]:
    """The alerts as a short table."""
    if not alerts:
        return ["no alerts: nothing stayed unusual against normal training frames"]
    return [ALERT_HEAD, *map(alert_row, alerts)]


def alert_row(alert: "Alert") -> str:
    """One alert, under `ALERT_HEAD`."""
    from ccdstream.history import score_text

    clock = alert.clock
    where = f"{clock} o'clock" if isinstance(clock, int) else clock or "whole frame"
    return (
        f"{alert.number:5d}  {timecode(alert.start_s)}  {timecode(alert.end_s)}  "
        f"{timecode(alert.peak_s)}  {score_text(alert.peak_score)}  {where}"
        f"{' (open at the end)' if alert.open_at_end else ''}"
    )


class Bar:
    """Progress that nobody sees, and what the kinds that can be seen have in common."""

    def __init__(self, noun: str) -> None:
        self._noun = noun
        self._began = time.monotonic()

    def update(self, done: int, total: int | None, more: str = "") -> None:
        """Say that `done` of `total` are done."""
        self.show(done, total, self._text(done, total, more))

    def show(self, done: int, total: int | None, text: str) -> None:
        """Say so in words of the caller's."""

    def line(self, name: str, done: int, total: int | None, text: str) -> None:
        """Say how far one of several is, beside the progress of all."""

    def drop(self, name: str) -> None:
        """Say no more of that one."""

    def aside(self, say: Callable[[], None]) -> None:
        """Print something else meanwhile."""
        say()

    def _text(self, done: int, total: int | None, more: str) -> str:
        rate = done / max(time.monotonic() - self._began, 1e-6)
        of = "" if total is None else f" of {total}"
        return f"{done}{of} {self._noun}s, {rate:.1f} {self._noun}s/s{more}"


class PlainBar(Bar):
    """A line now and then, for a log."""

    def __init__(self, noun: str) -> None:
        super().__init__(noun)
        self._last = self._began

    def show(self, done: int, total: int | None, text: str) -> None:
        if time.monotonic() - self._last >= PLAIN_PROGRESS_EVERY_S:
            self._last = time.monotonic()
            say(text)


class _Terminal:
    """stderr for a bar, which goes on where there is no terminal any more, as `say` does."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)

    def write(self, text: str) -> None:
        with suppress(OSError):
            sys.stderr.write(text)

    def flush(self) -> None:
        try:
            sys.stderr.flush()
        except OSError:
            _forget_unwritten(err=True)


class TerminalBar(Bar):
    """A bar on the terminal, with the time left."""

    def __init__(self, noun: str) -> None:
        super().__init__(noun)
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.table import Column

        self.rich = Progress(
            BarColumn(bar_width=12),
            TimeRemainingColumn(),
            # the text is what a narrow terminal cuts
            TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            expand=True,
            console=Console(file=_Terminal()),  # type: ignore[arg-type]
            transient=True,
            # rich would print on stderr what is written to stdout meanwhile
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self.rich.add_task("", total=None)
        self._lines: dict[str, TaskID] = {}

    def show(self, done: int, total: int | None, text: str) -> None:
        self.rich.update(self._task, completed=done, total=total, description=text)

    def line(self, name: str, done: int, total: int | None, text: str) -> None:
        if name not in self._lines:
            self._lines[name] = self.rich.add_task(text, total=total)
        self.rich.update(self._lines[name], completed=done, total=total, description=text)

    def drop(self, name: str) -> None:
        if name in self._lines:
            self.rich.remove_task(self._lines.pop(name))

    def aside(self, say: Callable[[], None]) -> None:
        self.rich.stop()
        say()
        self.rich.start()


@contextmanager
def progress(noun: str, quiet: bool) -> Iterator[Bar]:
    """A bar on a terminal, a plain line now and then elsewhere, nothing if quiet."""
    if quiet:
        yield Bar(noun)
    elif sys.stderr is None or not sys.stderr.isatty():  # None: closed
        yield PlainBar(noun)
    else:
        bar = TerminalBar(noun)
        with bar.rich:
            yield bar
