"""A file that grows by pieces which are there whole or not at all."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

OpenFile = Callable[[Path], IO[bytes]]
"""Makes a new file, unbuffered."""


def new_file(path: Path) -> IO[bytes]:
    """An empty file, where nothing is yet.

    Raises:
        OSError: something is at `path`, or it cannot be made.
    """
    return open(path, "xb", buffering=0)


class Appended:
    """A new file to append to. Whoever makes it closes it.

    Raises:
        OSError: something is at `path`, or it cannot be made.
    """

    def __init__(self, path: Path, open_file: OpenFile = new_file) -> None:
        self.length = 0
        """Of the whole pieces in the file, in bytes."""
        self._file = open_file(path)

    def append(self, piece: bytes, *, sync: bool = False) -> None:
        """Write a piece at once, for readers to see; with `sync` bring it to the disk too.

        Raises:
            OSError: it cannot be written, and nothing of it is left in the file.
        """
        rest = piece
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
            if sync:
                self.sync()
        except OSError:
            with suppress(OSError):  # then the end of the file is torn, and stays so
                self._file.truncate(self.length)
            raise
        self.length += len(piece)

    def sync(self) -> None:
        """Bring to the disk what was written. May be called from another thread.

        Raises:
            OSError: the disk has no room for it, or a fault.
        """
        os.fsync(self._file.fileno())

    @property
    def closed(self) -> bool:
        return self._file.closed

    def close(self) -> None:
        """Leave the file as it is."""
        with suppress(OSError):  # what was appended is written
            self._file.close()
