"""What a crash or a full disk finds in a file that grows: whole pieces."""

import errno
import os
from pathlib import Path

import pytest

from ccdstream.live.append import Appended
from tests.disks import SmallFile, room_for


def test_a_piece_is_there_at_once_and_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a"
    file = Appended(path, room_for(8))
    file.append(b"12345")
    assert path.read_bytes() == b"12345"
    with pytest.raises(OSError, match="No space left on device"):
        file.append(b"6789")
    assert (path.read_bytes(), file.length) == (b"12345", 5)
    file.close()
    assert file.closed


def test_a_piece_that_does_not_reach_the_disk_is_taken_back(tmp_path: Path) -> None:
    class Unsyncable(SmallFile):
        def fileno(self) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    file = Appended(tmp_path / "a", lambda path: Unsyncable(path, 100))
    file.append(b"12345")
    with pytest.raises(OSError, match="Input/output error"):
        file.append(b"6789", sync=True)
    assert (tmp_path / "a").read_bytes() == b"12345"
    file.close()


def test_what_is_there_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(FileExistsError):
        Appended(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "old"
