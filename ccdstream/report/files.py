"""Files that appear under their final names only when they are whole.

`TextFile` and `BytesFile` are written beside their place as `NAME.part` and renamed on a clean
exit; after an error nothing is left under either name. `Together` does the same for several files
at once. An existing file is refused unless the caller allows to replace it. `Lock` keeps two
writers apart. What a killed process left undone `sweep` undoes: it can be told from what one is at.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, AnyStr, Generic, Protocol, Self

from ccdstream.errors import OutputError, show_path


def printable(path: Path) -> str:
    """The path on one line: what a terminal cannot show, such as a newline, is escaped."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in os.fspath(path)
    )


def refuse_existing(path: Path) -> None:
    """Stop before work is done for a result that may not be written.

    Raises:
        OutputError: There is something at `path`.
    """
    if os.path.lexists(path):
        raise OutputError(
            f"{printable(path)} is there already. "
            "Replace it with --overwrite, or choose another place with --output."
        )


def make_folder(folder: Path, otherwise: str = "Choose another --output.") -> None:
    """Make `folder` and those above it, as far as they are not there.

    Args:
        otherwise: what to do where it cannot be made.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot make the folder {show_path(folder)}: {error.strerror}. {otherwise}"
        ) from error


class Text(Protocol):
    """A text file to write into; a context manager."""

    def write(self, text: str) -> None:
        """Append whole lines."""

    def flush(self) -> None:
        """Let readers see what was written so far."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class _NewFile(Generic[AnyStr]):
    """A file in the making; a context manager."""

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        self.path = path
        self._overwrite = overwrite
        self._part = path.with_name(path.name + ".part")
        self._file: IO[AnyStr] | None = None

    def __enter__(self) -> Self:
        if not self._overwrite:
            refuse_existing(self.path)
        try:
            self._file = self._open(self._part)
        except OSError as error:
            raise self._failure(error) from error
        return self

    def _open(self, path: Path) -> IO[AnyStr]:
        raise NotImplementedError

    def write(self, data: AnyStr) -> None:
        """Append; lines of text end with a newline of the caller's."""
        try:
            self._open_file().write(data)
        except OSError as error:
            raise self._failure(error) from error

    def flush(self) -> None:
        """Let readers of the unfinished file see what was written so far."""
        try:
            self._open_file().flush()
        except OSError as error:
            raise self._failure(error) from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        file = self._open_file()
        try:
            if kind is None:
                self._finish(file)
        finally:
            self._file = None
            with suppress(OSError):  # what close could not flush was lost, and said, before
                file.close()
            with suppress(FileNotFoundError):  # renamed: all is well
                self._part.unlink()

    def _finish(self, file: IO[AnyStr]) -> None:
        """Bring all of it to the disk, then under its name."""
        try:
            file.flush()
            os.fsync(file.fileno())
            file.close()
            if not self._overwrite:
                refuse_existing(self.path)
            self._part.replace(self.path)
        except OSError as error:
            raise self._failure(error) from error

    def _open_file(self) -> IO[AnyStr]:
        if self._file is None:
            raise ValueError(f"{self.path} is not open: use it in a with block")
        return self._file

    def _failure(self, error: OSError) -> OutputError:
        return OutputError(
            f"cannot write {printable(self.path)}: {error.strerror or error}. "
            "Check that the folder exists, is writable and has room, or choose another --output."
        )


class TextFile(_NewFile[str]):
    """A UTF-8 text file in the making; a context manager.

    Raises:
        OutputError: On entering, the file exists or cannot be made; on writing or leaving, it
            cannot be written, for example because the disk is full.
    """

    def _open(self, path: Path) -> IO[str]:
        # backslashreplace turns the odd bytes of a file name into a JSON escape, not an error.
        return open(path, "w", encoding="utf-8", errors="backslashreplace", newline="")


class BytesFile(_NewFile[bytes]):
    """A file in the making, as `TextFile`, that takes bytes."""

    def _open(self, path: Path) -> IO[bytes]:
        return open(path, "wb")


def write_text(path: Path, text: str, *, overwrite: bool = False) -> None:
    """Write a whole text file at once.

    Raises:
        OutputError: The file exists or cannot be written.
    """
    with TextFile(path, overwrite=overwrite) as file:
        file.write(text)


_TRIES, _AGAIN_S = 10, 0.02
"""How often a lock that is held is tried again, and after how long."""


class Lock:
    """A hidden file that one process at a time holds; a context manager.

    What counts is the system's lock on the file (flock), which ends with its process however that
    ends: a file that a killed one left behind holds nobody up. On Windows nothing is locked.

    Raises:
        OutputError: On entering, another process holds it, or it cannot be made.
    """

    def __init__(self, path: Path, taken: str, *, tries: int = _TRIES) -> None:
        """
        Args:
            taken: what to say where another process holds it.
            tries: how often to try: `sweep` and `is_locked` hold a lock for a moment.
        """
        self.path = path
        self._taken = taken
        self._tries = tries
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        try:
            descriptor = _locked(self.path)
            for _ in range(self._tries - 1):
                if descriptor is not None:
                    break
                time.sleep(_AGAIN_S)
                descriptor = _locked(self.path)
        except OSError as error:
            raise OutputError(
                f"cannot write to the folder {printable(self.path.parent)}: {error.strerror}. "
                "Check that it exists, is writable and has room, or choose another --output."
            ) from error
        if descriptor is None:
            raise OutputError(self._taken)
        self._descriptor = descriptor
        return self

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            with suppress(OSError):  # before it is let go: see _locked
                self.path.unlink()
            os.close(self._descriptor)
            self._descriptor = None


def _locked(path: Path) -> int | None:
    """An open descriptor of `path`, made if need be, with the lock on it; None where another
    process holds that.

    Raises:
        OSError: it cannot be opened or made.
    """
    if sys.platform == "win32":
        return os.open(os.devnull, os.O_RDWR)
    import fcntl

    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:  # a file system without locks: nobody can be told from anybody
            return descriptor
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)  # who held it before has removed it meanwhile


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock on a file that is there; also where that cannot be
    told, as on a file system without locks."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError as error:
        return not isinstance(error, FileNotFoundError)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


_HIDDEN, _PART = ".ccdstream-", ".part"
_OWNER, _JOURNAL = "owner.lock", "publishing.json"
"""In the hidden folder of a `Together`: what its process holds; which files are getting names."""
_LOCK_SUFFIX = ".ccdstream.lock"


def lock_path(folder: Path, name: str) -> Path:
    """Where the lock of what is called `name` lies in `folder`."""
    return folder / f".{name}{_LOCK_SUFFIX}"


def sweep(folder: Path) -> None:
    """Make `folder` as if processes that were killed in it had failed: files of a `Together` that
    had begun to appear are taken back, those that they replaced are there again, and nothing
    hidden is left. What a process is at stays.

    Raises:
        OutputError: it cannot be done.
    """
    _undo_killed(folder)
    for lock in folder.glob(f".*{_LOCK_SUFFIX}"):
        with suppress(OutputError), Lock(lock, "held", tries=1):
            pass


def _undo_killed(folder: Path) -> None:
    for hidden in folder.glob(f"{_HIDDEN}*{_PART}"):
        descriptor = _orphaned(hidden)
        if descriptor is None:
            continue
        try:
            _take_back(hidden)
        except (OSError, ValueError) as error:
            raise OutputError(
                f"cannot tidy up {printable(hidden)}, which a process that was killed left: "
                f"{error}. Check that the folder is writable, or choose another --output."
            ) from error
        else:
            _remove(hidden)
        finally:
            os.close(descriptor)


def _orphaned(hidden: Path) -> int | None:
    """A descriptor with the lock on `hidden` where its process is gone; None where it is alive.

    One without a lock is about to get it, or never will: it goes if it is empty, which its maker
    bears.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        descriptor = os.open(hidden / _OWNER, os.O_RDWR)
    except OSError:
        with suppress(OSError):
            hidden.rmdir()
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _take_back(hidden: Path) -> None:
    """Undo what a `Together` did of giving its files their names, if it did not get to the end.

    May itself be killed at any moment, and is then done again.
    """
    journal = hidden / _JOURNAL
    if not journal.exists():
        return
    for number, name, *removed in json.loads(journal.read_text(encoding="utf-8")):
        written, old, place = hidden / name, hidden / f"{number}.old", hidden.parent / name
        if not removed and not os.path.lexists(written) and os.path.lexists(place):
            os.replace(place, written)
        if os.path.lexists(old):
            os.replace(old, place)
    journal.unlink()  # done: what is removed from now on may not count as moved


def _remove(hidden: Path) -> None:
    """Remove a hidden folder, its lock last, by which it is found again if this is cut short."""
    with suppress(OSError):  # what stays is hidden, and tried again
        for path in hidden.iterdir():
            if path.name != _OWNER:
                path.unlink()
    shutil.rmtree(hidden, ignore_errors=True)


class Together:
    """Files that appear together, once all of them are whole; a context manager.

        with Together() as results, TextFile(results.place(folder / "a.csv")) as a: ...

    They are written in a hidden folder beside their places. When the block is left without an error
    all move to their names; else, or where one cannot be moved, everything is as it was before.
    Where the process is killed, `sweep` makes it so.

    Raises:
        OutputError: A file exists already or cannot be written. Messages of the block that name the
            hidden folder are raised again without it.
    """

    def __init__(self, *, overwrite: bool = False) -> None:
        self._overwrite = overwrite
        self._hidden: dict[Path, Path] = {}  # folder: where its files are written
        self._owned: list[int] = []  # descriptors that tell others that this process is alive
        self._places: list[tuple[Path, Path]] = []  # (where it is written, where it will appear)
        self._removed: set[Path] = set()
        self._last: set[Path] = set()

    def remove(self, path: Path) -> None:
        """Have what is at `path` vanish when the files appear, in a folder that gets some."""
        self._places.append((self._hidden[path.parent] / path.name, path))
        self._removed.add(path)

    def place(self, path: Path, *, last: bool = False) -> Path:
        """Where to write what will appear at `path`; its folder must be there.

        Args:
            last: it appears after all others.
        """
        if last:
            self._last.add(path)
        if path.parent not in self._hidden:
            # before anything is written: what is undone later would be undone to new files
            _undo_killed(path.parent)
        if not self._overwrite:
            refuse_existing(path)
        if os.path.isdir(path) and not os.path.islink(path):
            raise OutputError(f"{printable(path)} is a folder. Choose another place.")
        if path.parent not in self._hidden:
            try:
                self._hidden[path.parent] = self._make_hidden(path.parent)
            except OSError as error:
                raise OutputError(
                    f"cannot write to the folder {printable(path.parent)}: {error.strerror}. "
                    "Check that it exists, is writable and has room, or choose another --output."
                ) from error
        written = self._hidden[path.parent] / path.name
        self._places.append((written, path))
        return written

    def _make_hidden(self, folder: Path) -> Path:
        while True:
            hidden = Path(tempfile.mkdtemp(prefix=_HIDDEN, suffix=_PART, dir=folder))
            if sys.platform == "win32":
                return hidden
            unlocked = hidden / f"{_OWNER}.new"  # so that the lock is never seen without its owner
            with suppress(FileNotFoundError):  # another process swept the empty folder
                descriptor = _locked(unlocked)
                if descriptor is not None:
                    self._owned.append(descriptor)
                    unlocked.rename(hidden / _OWNER)
                    return hidden

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._publish()
            elif isinstance(error, OutputError):
                message = str(error)
                for hidden in self._hidden.values():
                    message = message.replace(f"{hidden.name}{os.sep}", "")
                raise type(error)(message) from error
        finally:
            for hidden in self._hidden.values():
                _remove(hidden)
            while self._owned:
                os.close(self._owned.pop())

    def _publish(self) -> None:
        """Give every file its name, and take that back where one cannot have it."""
        path = Path()
        self._places.sort(key=lambda each: each[1] in self._last)
        try:
            for path, hidden in self._hidden.items():
                mine = [
                    (number, place.name, *["removed"] * (place in self._removed))
                    for number, (written, place) in enumerate(self._places)
                    if place.parent == path and (os.path.lexists(written) or place in self._removed)
                ]
                (hidden / _JOURNAL).write_text(json.dumps(mine), encoding="utf-8")
            for number, (written, path) in enumerate(self._places):
                if os.path.lexists(path):
                    if not self._overwrite:
                        refuse_existing(path)
                    os.replace(path, written.parent / f"{number}.old")
                if path not in self._removed:
                    os.replace(written, path)
            for hidden in self._hidden.values():
                (hidden / _JOURNAL).unlink()
        except BaseException as error:
            for hidden in self._hidden.values():
                _take_back(hidden)
            if isinstance(error, OSError):
                raise OutputError(
                    f"cannot write {printable(path)}: {error.strerror or error}. "
                    "Check that the folder is writable, or choose another --output."
                ) from error
            raise
