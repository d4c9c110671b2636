"""Disks and files that have little room."""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from ccdstream.live.append import new_file


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[None]:
    """A file system of its own at `folder`."""
    size = f"size={kilobytes}k"
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder], check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("cannot mount a small disk here")
    try:
        yield
    finally:
        # a test that failed may hold a file open: the disk goes once that is closed
        subprocess.run(["umount", "--lazy", folder], check=True)


class SmallFile:
    """A file that has room for so many bytes."""

    def __init__(self, path: Path, room: int) -> None:
        self._file = new_file(path)
        self._room = room

    def write(self, data: bytes) -> int:
        if self._room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self._file.write(data[: self._room])
        self._room -= written
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def room_for(size: int, name: str = "") -> Callable[[Path], IO[bytes]]:
    """Makes files; those whose name ends with `name` have room for `size` bytes."""

    def open_file(path: Path) -> IO[bytes]:
        if not path.name.endswith(name):
            return new_file(path)
        return SmallFile(path, size)  # type: ignore[return-value]

    return open_file
