"""What the commands share: where output goes and where it cannot, progress, signals."""

import json
import os
import re
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ccdstream import cli, console, run_cli
from ccdstream.errors import OutputError
from tests.commands import OF_A_BATCH, ccdstream, everything_in, outcome, results_of, start


def test_progress_is_a_plain_line_now_and_then_where_there_is_no_terminal(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "PLAIN_PROGRESS_EVERY_S", 0)
    said = run("case12.mp4").stderr.splitlines()
    lines = [line for line in said if " of 70 frames, " in line]
    assert len(lines) == 70
    assert lines[0].startswith("1 of 70 frames, ") and lines[0].endswith(" frames/s, 0 alerts")
    assert lines[-1].startswith("70 of 70 frames, ") and lines[-1].endswith(", 1 alert")
    assert "\x1b" not in "".join(said) and "\r" not in "".join(said)


def test_short_runs_say_nothing_on_the_way(run: Callable[..., Any]) -> None:
    assert " of 12 frames" not in run("calm.mp4").stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["run", "score", "model"])
def test_a_signal_while_the_model_opens_ends_the_command(
    here: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch, command: str, number: signal.Signals
) -> None:
    arguments = {
        "run": ["run", "calm.mp4", "--model", shelf / "toy"],
        "score": ["score", "calm.mp4", "-o", "s.csv", "--model", shelf / "toy"],
        "model": ["model", "verify", shelf / "toy"],
    }
    before = everything_in(here)
    for module in (cli, run_cli):
        monkeypatch.setattr(module, "open_model", lambda *_, **__: signal.raise_signal(number))
    result = ccdstream(*arguments[command])
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "interrupted: what was not finished is gone\n"
    assert everything_in(here) == before


# --- where output goes ---


def on_a_terminal(*arguments: object, stdout_too: bool, cwd: Path) -> tuple[str, bytes]:
    """What a command shows on a terminal, and what it writes to its stdout if that is none."""
    ours, theirs = os.openpty()
    try:
        elsewhere = {"stdout": theirs} if stdout_too else {}
        with start(*arguments, stderr=theirs, cwd=cwd, **elsewhere) as process:
            os.close(theirs)
            shown = b""
            with suppress(OSError):  # the other side is closed
                while chunk := os.read(ours, 65536):
                    shown += chunk
            data = b"" if process.stdout is None else process.stdout.read()
    finally:
        os.close(ours)
    assert process.returncode == 0
    return shown.decode(), data


def test_a_terminal_gets_a_bar_and_stdout_still_gets_the_data(here: Path, shelf: Path) -> None:
    """rich would print on the terminal what is written to stdout meanwhile."""
    arguments = ("run", "case12.mp4", "--json", "--model", shelf / "toy")
    shown, data = on_a_terminal(*arguments, stdout_too=False, cwd=here)
    assert [json.loads(line)["alert"] for line in data.splitlines()] == [1]
    assert "━" in shown and "70 of 70 frames, " in shown and " frames/s, 1 alert" in shown
    assert "0:00:00" in shown  # the time left
    assert "ccdstream.alert/1" not in shown


def test_data_that_comes_on_the_same_terminal_has_a_line_of_its_own(
    here: Path, shelf: Path
) -> None:
    arguments = ("run", "case12.mp4", "--json", "--model", shelf / "toy")
    shown, _ = on_a_terminal(*arguments, stdout_too=True, cwd=here)
    before, line = re.search(r"([^{]*)(\{.*ccdstream\.alert/1.*\})\r\n", shown).groups()  # type: ignore[union-attr]
    assert json.loads(line)["alert"] == 1
    assert before.endswith(("\n", "\x1b[2K", "\x1b[?25h"))  # the bar is wiped off


# --- where output cannot go ---

NO_SPACE = "cannot write to the standard output: No space left on device."
ONE, MANY = ["case12.mp4"], ["case12.mp4", "calm.mp4"]
CANNOT = pytest.mark.parametrize("why", ["full", "gone", "closed"])


def test_a_command_that_only_prints_ends_with_one_line_where_the_disk_is_full(shelf: Path) -> None:
    assert outcome("model", "show", shelf / "toy", cwd=shelf, stdout="full") == (
        1,
        b"",
        f"error: {NO_SPACE}\n".encode(),
    )


def test_a_command_that_only_prints_ends_without_a_word_where_its_reader_has_gone(
    shelf: Path,
) -> None:
    assert outcome("model", "show", shelf / "toy", cwd=shelf, stdout="gone") == (1, b"", b"")


@pytest.mark.parametrize(("inputs", "why"), [(ONE, "full"), (MANY, "gone")], ids=["one", "many"])
def test_results_are_finished_where_stdout_cannot_be_written_and_the_exit_is_1(
    here: Path, shelf: Path, inputs: list[str], why: str
) -> None:
    arguments = ("run", *inputs, "--json", "-o", "out", "--model", shelf / "toy")
    for _ in range(2):  # the second one prints what is there already
        status, _, said = outcome(*arguments, cwd=here, stdout=why)
        errors = [line for line in said.decode().splitlines() if line.startswith("error: ")]
        assert (status, len(errors)) == (1, 1), said
        assert errors[0].endswith(" The files are finished all the same.")
        assert b"Traceback" not in said and b"Exception" not in said
        expected = results_of("case12")
        if len(inputs) > 1:
            expected |= results_of("calm") | OF_A_BATCH
        assert everything_in(here / "out") == expected
    assert outcome(*arguments, cwd=here)[0] == 0


@pytest.mark.parametrize(
    ("inputs", "why"),
    [(ONE, "closed"), (ONE, "full"), (MANY, "gone")],
    ids=["one-closed", "one-full", "many-gone"],
)
def test_a_run_that_has_nobody_to_tell_does_its_work(
    here: Path, shelf: Path, inputs: list[str], why: str
) -> None:
    arguments = ("run", *inputs, "--json", "-o", "out", "--model", shelf / "toy")
    status, data, _ = outcome(*arguments, cwd=here, stderr=why)
    assert status == 0
    assert [json.loads(line)["alert"] for line in data.splitlines()] == [1]
    assert results_of("case12") <= everything_in(here / "out")


@CANNOT
def test_an_error_that_nobody_can_be_told_is_still_exit_1(here: Path, why: str) -> None:
    assert outcome("run", "nothere.mp4", cwd=here, stderr=why)[:2] == (1, b"")


def test_a_terminal_that_goes_away_does_not_end_the_work(here: Path, shelf: Path) -> None:
    ours, theirs = os.openpty()
    arguments = ("run", "case12.mp4", "--json", "--model", shelf / "toy")
    with start(*arguments, stderr=theirs, cwd=here) as process:
        os.close(theirs)
        os.read(ours, 1)
        os.close(ours)
        data, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert [json.loads(line)["alert"] for line in data.splitlines()] == [1]


def test_data_that_is_lost_is_told_once_and_no_more_is_printed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried, lost = [], []

    def full(text: str, **_: object) -> None:
        tried.append(text)
        raise OutputError(NO_SPACE)

    monkeypatch.setattr(console, "tell", full)
    data = console.Data(lost.append)
    for text in ("a", "b"):
        data.tell(text)
    assert (tried, lost, data.lost) == (["a"], [NO_SPACE], True)
