"""What is printed of a run and of a batch."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ccdstream import recording
from ccdstream.run_text import found_in
from tests.commands import (
    bright_between,
    start,
)


def test_frames_that_tell_nothing_are_named_where_there_are_some() -> None:
    result = recording.RunResult(
        recording.OutputFiles(Path(), "a"), 12, 10, last_s=0.44, wall_s=1.0
    )
    assert found_in(result) == (
        "12 frames from 00:00:00.000 to 00:00:00.440, 2 of them uninformative; 12.0 frames/s"
    )


@pytest.mark.parametrize("flags", [[], ["--json"]], ids=str)
def test_stdout_of_a_rerun_is_that_of_the_first(run: Callable[..., Any], flags: list[str]) -> None:
    arguments = ("case12.mp4", "calm.mp4", "-o", "out", "--video", "none", *flags)
    first, second = run(*arguments), run(*arguments)
    assert second.stdout == first.stdout and first.stdout
    assert "0 done, 2 done before" in second.stderr


def test_a_terminal_gets_a_bar_for_each_and_one_for_all(here: Path, shelf: Path) -> None:
    for name in ("one", "two"):
        bright_between(here / f"{name}.mp4", 5, 49, 1500)
    ours, theirs = os.openpty()
    arguments = ("run", "one.mp4", "two.mp4", "-o", "out", "--jobs", "2", "--video", "none")
    try:
        with start(*arguments, "--model", shelf / "toy", stderr=theirs, cwd=here) as process:
            os.close(theirs)
            shown = b""
            try:
                while chunk := os.read(ours, 65536):
                    shown += chunk
            except OSError:  # the other side is closed
                pass
    finally:
        os.close(ours)
    assert process.returncode == 0
    text = shown.decode()
    for name in ("one.mp4", "two.mp4"):
        assert f"{name}: " in text
    assert " of 1500 frames, " in text and "0 of 2 recordings, " in text
    assert "━" in text and "2 done, 0 done before" in text


def test_plain_progress_is_one_line_for_all(
    here: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any]
) -> None:
    monkeypatch.setattr("ccdstream.console.PLAIN_PROGRESS_EVERY_S", 0)
    said = run("case12.mp4", "calm.mp4", "-o", "out", "--jobs", "2").stderr
    lines = [line for line in said.splitlines() if " recordings, " in line]
    assert "2 of 2 recordings, 82 frames, 1 alert" in lines
    assert "\x1b" not in said and "\r" not in said
