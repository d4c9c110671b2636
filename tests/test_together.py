"""Several files appear together or not at all, and what was there before comes back."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from ccdstream.errors import OutputError
from ccdstream.report import files
from ccdstream.report.files import Lock, TextFile, Together, lock_path, sweep, write_text
from tests.commands import everything_in


def write(results: Together, path: Path, text: str = "new") -> None:
    write_text(results.place(path), text)


def contents(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in everything_in(folder)}


def test_files_appear_when_all_are_whole(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    paths = [tmp_path / "a.txt", tmp_path / "deep" / "b.txt"]
    with Together() as results:
        for path in paths:
            write(results, path)
        assert not any(path.exists() for path in paths)
    assert contents(tmp_path) == {"a.txt": "new", "deep/b.txt": "new"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "deep"]  # nothing hidden is left


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_everything_as_it_was(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(error), Together(overwrite=True) as results:
        write(results, tmp_path / "a.txt")
        write(results, tmp_path / "b.txt")
        raise error
    assert contents(tmp_path) == {"a.txt": "old"}
    assert len(list(tmp_path.iterdir())) == 1


def test_what_is_removed_vanishes_when_the_files_appear_and_comes_back_if_they_cannot(
    tmp_path: Path,
) -> None:
    for name in ("a.txt", "gone.txt"):
        (tmp_path / name).write_text("old")
    with suppress(RuntimeError), Together(overwrite=True) as results:
        write(results, tmp_path / "a.txt")
        results.remove(tmp_path / "gone.txt")
        raise RuntimeError
    assert contents(tmp_path) == {"a.txt": "old", "gone.txt": "old"}
    (tmp_path / "b.txt").mkdir()
    (tmp_path / "b.txt" / "c").write_text("in the way")
    with pytest.raises(OutputError), Together(overwrite=True) as results:
        results.place(tmp_path / "missing.txt")  # never written, so it cannot be moved
        results.remove(tmp_path / "gone.txt")
        write(results, tmp_path / "a.txt")
    assert contents(tmp_path)["gone.txt"] == "old"
    with Together(overwrite=True) as results:
        write(results, tmp_path / "a.txt")
        results.remove(tmp_path / "gone.txt")
    assert contents(tmp_path) == {"a.txt": "new", "b.txt/c": "in the way"}


@pytest.mark.parametrize("cut_at", [1, 2, 3])
def test_what_is_removed_comes_back_after_a_process_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut_at: int
) -> None:
    """The moves: gone.txt away, a.txt away, the new a.txt to its name."""
    code = (
        "import os, sys; from pathlib import Path\n"
        "from ccdstream.report.files import Together, write_text\n"
        "move, moves = os.replace, [0]\n"
        "def dying(source, target):\n"
        "    moves[0] += not str(source).endswith('.part')\n"
        f"    if moves[0] == {cut_at}: os._exit(9)\n"
        "    move(source, target)\n"
        "folder = Path(sys.argv[1])\n"
        "with Together(overwrite=True) as results:\n"
        "    write_text(results.place(folder / 'a.txt', last=True), 'new')\n"
        "    results.remove(folder / 'gone.txt')\n"
        "    os.replace = dying\n"
    )
    for name in ("a.txt", "gone.txt"):
        (tmp_path / name).write_text("old")
    died = subprocess.run([sys.executable, "-c", code, tmp_path], check=False)
    assert died.returncode == 9
    sweep(tmp_path)
    assert contents(tmp_path) == {"a.txt": "old", "gone.txt": "old"}


def test_the_last_appears_after_all_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    with Together() as results:
        for name, last in (("run.json", True), ("a.txt", False), ("b.txt", False)):
            write_text(results.place(tmp_path / name, last=last), name)
        move = os.replace
        monkeypatch.setattr(os, "replace", lambda a, b: (order.append(Path(b).name), move(a, b))[1])
    assert order == ["a.txt", "b.txt", "run.json"]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), KeyboardInterrupt()])
@pytest.mark.parametrize("fails_at", range(1, 6))
def test_a_move_that_fails_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, fails_at: int
) -> None:
    """Of three files two replace old ones, so there are five moves."""
    (tmp_path / "a.txt").write_text("old a")
    (tmp_path / "c.txt").write_text("old c")
    move, moves = os.replace, [0]

    def failing(source: Path, target: Path) -> None:
        moves[0] += 1
        if moves[0] == fails_at:
            raise error
        move(source, target)

    with (
        pytest.raises(OutputError if isinstance(error, OSError) else KeyboardInterrupt),
        Together(overwrite=True) as results,
    ):
        for name in "abc":
            write(results, tmp_path / f"{name}.txt")
        monkeypatch.setattr(os, "replace", failing)
    assert contents(tmp_path) == {"a.txt": "old a", "c.txt": "old c"}
    assert len(list(tmp_path.iterdir())) == 2


def test_a_message_names_the_place_and_not_where_it_was_written(tmp_path: Path) -> None:
    folder = tmp_path / "two\nlines"
    folder.mkdir()
    with pytest.raises(OutputError) as caught, Together() as results:
        place = results.place(folder / ("x" * 255))
        TextFile(place).__enter__()
    assert ".ccdstream-" not in str(caught.value)
    assert f"lines/{'x' * 255}: File name too long." in str(caught.value)


def test_an_existing_file_is_refused_before_and_after(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(OutputError, match=r"a\.txt is there already"), Together() as results:
        results.place(tmp_path / "a.txt")
        pytest.fail("went on")
    with pytest.raises(OutputError, match=r"b\.txt is there already"), Together() as results:
        write(results, tmp_path / "b.txt")
        (tmp_path / "b.txt").write_text("theirs")
    assert contents(tmp_path) == {"a.txt": "old", "b.txt": "theirs"}


def test_a_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    (tmp_path / "a.txt" / "b").write_text("old")
    with (
        pytest.raises(OutputError, match=r"a\.txt is a folder"),
        Together(overwrite=True) as results,
    ):
        results.place(tmp_path / "a.txt")
    assert contents(tmp_path) == {"a.txt/b": "old"}


def test_a_link_is_replaced_and_what_it_points_to_is_not(tmp_path: Path) -> None:
    (tmp_path / "target.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("target.txt")
    with Together(overwrite=True) as results:
        write(results, tmp_path / "link.txt")
    assert contents(tmp_path) == {"target.txt": "old", "link.txt": "new"}


def test_a_folder_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"^cannot write to the folder .*: No such file or dir"),
        Together() as results,
    ):
        results.place(tmp_path / "no" / "a.txt")


# -- what a killed process leaves -----------------------------------------------------------------


KILLED = """
import os, sys
from pathlib import Path
from ccdstream.report.files import Together
folder, moment = Path(sys.argv[1]), int(sys.argv[2])
calls, replace = [0], os.replace
def killed(*arguments):
    calls[0] += 1
    if calls[0] == moment:
        os.kill(os.getpid(), 9)
    replace(*arguments)
os.replace = killed
with Together(overwrite=True) as results:
    for name in "abc":
        results.place(folder / name).write_text("new " + name)
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize("moment", range(1, 7))
def test_names_that_a_killed_process_had_begun_to_give_are_taken_back(
    tmp_path: Path, moment: int
) -> None:
    """Of a, b and c there were a and b: five replacements in all, so that the sixth never comes."""
    for name in "ab":
        (tmp_path / name).write_text(f"old {name}")
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path, str(moment)])
    assert done.returncode == -signal.SIGKILL
    sweep(tmp_path)
    expected = {"a": "old a", "b": "old b"}
    if moment == 6:
        expected = {name: f"new {name}" for name in "abc"}
    assert contents(tmp_path) == expected
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(expected)


def test_taking_back_can_itself_be_killed_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        (tmp_path / name).write_text(f"old {name}")
    subprocess.run([sys.executable, "-c", KILLED, tmp_path, "5"])
    assert contents(tmp_path)["a"] == "new a"
    replace = os.replace

    class Killed(BaseException):
        pass

    def once(*arguments: Any) -> None:
        replace(*arguments)
        raise Killed

    for _ in range(4):  # to put two back, and two in their place
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(os, "replace", once)
            sweep(tmp_path)

    def once_more(path: Path, **options: Any) -> None:
        unlink(path, **options)
        raise Killed

    unlink = Path.unlink
    for _ in range(4):  # removing what is hidden is cut short too; its lock comes last
        with monkeypatch.context() as patch, suppress(Killed):
            patch.setattr(Path, "unlink", once_more)
            sweep(tmp_path)
        assert contents(tmp_path).items() >= {"a": "old a", "b": "old b"}.items()
    sweep(tmp_path)
    assert contents(tmp_path) == {"a": "old a", "b": "old b"}
    assert len(list(tmp_path.iterdir())) == 2


def test_who_writes_after_a_kill_is_not_undone_by_a_later_sweep(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_text(f"old {name}")
    subprocess.run([sys.executable, "-c", KILLED, tmp_path, "5"])
    with Together(overwrite=True) as results:
        for name in "ab":
            write(results, tmp_path / name, f"newest {name}")
    sweep(tmp_path)
    assert contents(tmp_path) == {"a": "newest a", "b": "newest b"}


def test_what_a_process_is_at_is_not_swept_away(tmp_path: Path) -> None:
    with Together() as results, Lock(lock_path(tmp_path, "x"), "taken"):
        place = results.place(tmp_path / "a")
        place.write_text("a")
        sweep(tmp_path)
        assert place.read_text() == "a" and lock_path(tmp_path, "x").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_lock_that_another_process_looks_at_for_a_moment_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `sweep` does with every lock of a folder, and `is_locked` with one."""
    path = lock_path(tmp_path, "x")
    descriptors = [os.open(path, os.O_RDWR | os.O_CREAT)]
    fcntl.flock(descriptors[0], fcntl.LOCK_EX)
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        while descriptors:
            os.close(descriptors.pop())

    monkeypatch.setattr(files.time, "sleep", wait)
    with Lock(path, "taken"):
        assert len(waited) == 1


def test_a_sweep_waits_for_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    with Lock(lock_path(tmp_path, "x"), "taken"):
        monkeypatch.setattr(files.time, "sleep", waited.append)
        sweep(tmp_path)
    assert waited == []


def test_one_at_a_time_holds_a_lock_and_a_stale_one_holds_nobody_up(tmp_path: Path) -> None:
    path = lock_path(tmp_path, "x")
    path.write_text("left by a process that was killed")
    with Lock(path, "taken"):
        with pytest.raises(OutputError, match="taken"), Lock(path, "taken"):
            pytest.fail("two held it")
        assert path.exists()
    assert not path.exists()
    with Lock(path, "taken"):
        pass
    path.touch()
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []
