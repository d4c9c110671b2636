"""Files that appear under their final names only when they are whole.

`TextFile` is written beside its place as `NAME.part` and renamed on a clean exit; after an error
nothing is left under either name. `Together` does the same for several files at once. An existing
file is refused unless the caller allows to replace it.
"""

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, Self

from ccdstream.errors import OutputError


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


class TextFile:
    """A UTF-8 text file in the making; a context manager.

    Raises:
        OutputError: On entering, the file exists or cannot be made; on writing or leaving, it
            cannot be written, for example because the disk is full.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        self.path = path
        self._overwrite = overwrite
        self._part = path.with_name(path.name + ".part")
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        if not self._overwrite:
            refuse_existing(self.path)
        try:
            # backslashreplace turns the odd bytes of a file name into a JSON escape, not an error.
            self._file = open(
                self._part, "w", encoding="utf-8", errors="backslashreplace", newline=""
            )
        except OSError as error:
            raise self._failure(error) from error
        return self

    def write(self, text: str) -> None:
        """Append text; lines end with a newline of the caller's."""
        try:
            self._open_file().write(text)
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

    def _finish(self, file: IO[str]) -> None:
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

    def _open_file(self) -> IO[str]:
        if self._file is None:
            raise ValueError(f"{self.path} is not open: use it in a with block")
        return self._file

    def _failure(self, error: OSError) -> OutputError:
        return OutputError(
            f"cannot write {printable(self.path)}: {error.strerror or error}. "
            "Check that the folder exists, is writable and has room, or choose another --output."
        )


def write_text(path: Path, text: str, *, overwrite: bool = False) -> None:
    """Write a whole text file at once.

    Raises:
        OutputError: The file exists or cannot be written.
    """
    with TextFile(path, overwrite=overwrite) as file:
        file.write(text)


class Together:
    """Files that appear together, once all of them are whole; a context manager.

        with Together() as results, TextFile(results.place(folder / "a.csv")) as a: ...

    They are written in a hidden folder beside their places. When the block is left without an error
    all move to their names; else, or where one cannot be moved, everything is as it was before.

    Raises:
        OutputError: A file exists already or cannot be written. Messages of the block that name the
            hidden folder are raised again without it.
    """

    def __init__(self, *, overwrite: bool = False) -> None:
        self._overwrite = overwrite
        self._hidden: dict[Path, Path] = {}  # folder: where its files are written
        self._places: list[tuple[Path, Path]] = []  # (where it is written, where it will appear)

    def place(self, path: Path) -> Path:
        """Where to write what will appear at `path`; its folder must be there."""
        if not self._overwrite:
            refuse_existing(path)
        if os.path.isdir(path) and not os.path.islink(path):
            raise OutputError(f"{printable(path)} is a folder. Choose another place.")
        if path.parent not in self._hidden:
            try:
                hidden = tempfile.mkdtemp(prefix=".ccdstream-", suffix=".part", dir=path.parent)
            except OSError as error:
                raise OutputError(
                    f"cannot write to the folder {printable(path.parent)}: {error.strerror}. "
                    "Check that it exists, is writable and has room, or choose another --output."
                ) from error
            self._hidden[path.parent] = Path(hidden)
        written = self._hidden[path.parent] / path.name
        self._places.append((written, path))
        return written

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
                shutil.rmtree(hidden, ignore_errors=True)

    def _publish(self) -> None:
        """Give every file its name, and take that back where one cannot have it."""
        waiting: list[tuple[Path, Path]] = []  # (where an old file waits, where it was)
        begun: list[Path] = []
        try:
            for number, (written, path) in enumerate(self._places):
                if os.path.lexists(path):
                    if not self._overwrite:
                        refuse_existing(path)
                    old = written.parent / f"{number}.old"
                    waiting.append((old, path))
                    os.replace(path, old)
                begun.append(path)
                os.replace(written, path)
        except BaseException as error:
            for done in begun:
                done.unlink(missing_ok=True)
            for old, place in waiting:
                if os.path.lexists(old):
                    os.replace(old, place)
            if isinstance(error, OSError):
                raise OutputError(
                    f"cannot write {printable(path)}: {error.strerror or error}. "
                    "Check that the folder is writable, or choose another --output."
                ) from error
            raise
