"""The command line as its users call it, in the test's process or in one of its own; and the call
behind it."""

import csv
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from ccdstream.bundle import Bundle
from ccdstream.cli import app
from ccdstream.engine.select import SelectedEngine
from ccdstream.recording import OutputFiles, RunOptions, RunResult, run
from tests.videos import Planes, make_video, picture

ROOT = Path(__file__).parent.parent
SIZE = (96, 128)
RUNNER = CliRunner()
EARLIER = "is of an earlier run: it may show other results than these, and can be removed"
"""What is said of a file that is not of this run."""


def ccdstream(*arguments: object) -> Any:
    """What a command does, in this process: exit_code, stdout, stderr. A bug is raised."""
    result = RUNNER.invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def start(*arguments: object, **options: Any) -> "subprocess.Popen[bytes]":
    """`python -m ccdstream`, started; its output is piped unless `options` say otherwise."""
    return subprocess.Popen(
        [sys.executable, "-m", "ccdstream", *map(str, arguments)],
        env={
            **os.environ,
            **{"PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100"},
            "PYTHONUNBUFFERED": "",  # as for most users: Python keeps what it could not write
        },
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


@contextmanager
def unwritable(why: str) -> Iterator[int]:
    """A file descriptor that cannot be written: of a full disk, or of a pipe whose reader has
    gone."""
    if why == "full":
        if not os.path.exists("/dev/full"):
            pytest.skip("needs /dev/full")
        writing = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, writing = os.pipe()
        os.close(reading)
    yield writing
    os.close(writing)


def outcome(
    *arguments: object, cwd: Path, stdout: str = "", stderr: str = ""
) -> tuple[int, bytes, bytes]:
    """Exit status, stdout and stderr of a command whose stdout or stderr cannot be written."""
    with ExitStack() as stack:
        options: dict[str, Any] = {}
        for name, why in (("stdout", stdout), ("stderr", stderr)):
            if why == "closed":
                number = {"stdout": 1, "stderr": 2}[name]
                options["preexec_fn"] = partial(os.close, number)
            elif why:
                options[name] = stack.enter_context(unwritable(why))
        process = stack.enter_context(start(*arguments, cwd=cwd, **options))
        data, said = process.communicate(timeout=60)
    return process.returncode, data or b"", said or b""


def refusal(result: Any, *, exit_code: int = 1) -> str:
    """The one error that a failed command tells: one line, without "error: "."""
    assert result.exit_code == exit_code, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    assert lines[0].isprintable()
    return str(lines[0].removeprefix("error: "))


def everything_in(folder: Path) -> set[str]:
    """Every file under `folder`, hidden ones and unfinished ones too."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()}


def results_of(stem: str, *, video: bool = True) -> set[str]:
    """The files that a run leaves for a recording."""
    endings = ["alerts.jsonl", "alerts.csv", "alerts.vtt", "alerts.edl", "scores.csv"]
    endings += ["run.json", "report.html"]
    return {f"{stem}.{ending}" for ending in (*endings, *["overlay.mp4"] * video)}


OF_A_BATCH = {"batch.json", "batch.report.html"}
"""The files that a batch leaves beside the results of its recordings."""


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def shade(luma: int) -> Planes:
    """A flat grey picture."""
    grey = np.full((SIZE[0] // 2, SIZE[1] // 2), 128, np.uint8)
    return np.full(SIZE, luma, np.uint8), grey, grey


def bright_between(path: Path, first: int, last: int, frames: int, **options: Any) -> Path:
    """A dark video whose frames `first` to `last` (included) are bright: an alert of the toy."""
    return make_video(
        path,
        size=SIZE,
        frames=frames,
        picture_of=lambda k: picture(shade(200 if first <= k <= last else 50)),
        **options,
    )


def analysed(
    recording: Path, folder: Path, bundle: Bundle, engine: SelectedEngine, **options: Any
) -> RunResult:
    """What `ccdstream run` does with one recording, into `folder`."""
    return run(
        recording,
        OutputFiles(folder, recording.stem),
        bundle=bundle,
        engine=engine,
        options=RunOptions(**options),
    )
