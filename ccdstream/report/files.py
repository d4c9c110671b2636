"""A text file that appears under its final name only when it is whole.

It is written beside its place as `NAME.part` and renamed on a clean exit; after an error nothing is
left under either name. An existing file is refused unless the caller allows to replace it.
"""

import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

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
