"""Recordings made to do harm, built in code: MP4 boxes that claim what is not there, and files that
name other files."""

import ctypes
import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ccdstream.decode import VideoSource
from ccdstream.errors import CcdstreamError, VideoOpenError, show_path

_MATRIX = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)


def box(kind: bytes, *parts: bytes) -> bytes:
    """A box of ISO/IEC 14496-12."""
    content = b"".join(parts)
    return struct.pack(">I4s", 8 + len(content), kind) + content


def full_box(kind: bytes, *parts: bytes) -> bytes:
    """A box with version 0 and no flags."""
    return box(kind, bytes(4), *parts)


def uint32(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


def mp4(
    picture: bytes,
    *,
    codec: bytes = b"jpeg",
    size: tuple[int, int] = (48, 64),
    samples: int = 1,
    sample_bytes: int | None = None,
    timescale: int = 25,
    delta: int = 1,
    edits: bytes = b"",
    tracks: int = 1,
    data_reference: bytes = b"",
    user_data: bytes = b"",
    handler: bytes = b"vide",
) -> bytes:
    """An MP4 that says each of its samples is `sample_bytes` long, and holds `picture` once."""
    height, width = size
    duration = min(samples * delta, 2**32 - 1)
    reference = data_reference or box(b"url ", uint32(1))

    def moov(offset: int) -> bytes:
        entry = box(
            codec,
            *(bytes(7), b"\x01", bytes(16), struct.pack(">HH", width, height)),
            *(uint32(72 << 16, 72 << 16, 0), b"\0\x01", bytes(32), b"\0\x18\xff\xff"),
        )
        table = box(
            b"stbl",
            full_box(b"stsd", uint32(1), entry),
            full_box(b"stts", uint32(1, samples, delta)),
            full_box(
                b"stsz",
                uint32(len(picture) if sample_bytes is None else sample_bytes),
                uint32(samples),
            ),
            full_box(b"stsc", uint32(1, 1, samples, 1)),
            full_box(b"stco", uint32(1, offset)),
        )
        media = box(
            b"mdia",
            full_box(b"mdhd", uint32(0, 0, timescale, duration), b"\x55\xc4\0\0"),
            full_box(b"hdlr", bytes(4), handler, bytes(13)),
            box(
                b"minf",
                full_box(b"vmhd", bytes(8)),
                box(b"dinf", full_box(b"dref", uint32(1), reference)),
                table,
            ),
        )
        traks = [
            box(
                b"trak",
                full_box(
                    b"tkhd",
                    *(uint32(0, 0, 1 + k, 0, duration), bytes(16), _MATRIX),
                    uint32(width << 16, height << 16),
                ),
                box(b"edts", full_box(b"elst", edits)) if edits else b"",
                media,
            )
            for k in range(tracks)
        ]
        head = full_box(
            b"mvhd",
            *(uint32(0, 0, timescale, duration), b"\0\x01\0\0\x01\0", bytes(10), _MATRIX),
            *(bytes(24), uint32(1 + tracks)),
        )
        return box(b"moov", head, *traks, user_data)

    start = box(b"ftyp", b"isom", bytes(4), b"isom")
    offset = len(start) + len(moov(0)) + 8
    return start + moov(offset) + box(b"mdat", picture)


def ogg_pages(packet: bytes, stream: bytes, number: int) -> bytes:
    """A packet in Ogg pages (RFC 3533, 6), the first with a number.

    Args:
        stream: its serial number, as pages have it.
    """
    lengths = [255] * (len(packet) // 255) + [len(packet) % 255]
    pages = b""
    for first in range(0, len(lengths), 255):
        own = lengths[first : first + 255]
        content, packet = packet[: sum(own)], packet[sum(own) :]
        granule = b"\0" * 8 if not packet else b"\xff" * 8
        number_here = struct.pack("<I", number + first // 255)
        head = b"OggS\0" + bytes([first > 0]) + granule + stream + number_here
        pages += _checked(head + bytes(4) + bytes([len(own), *own]) + content)
    return pages


def renumbered(page: bytes, number: int) -> bytes:
    """An Ogg page with another number."""
    return _checked(page[:18] + struct.pack("<I", number) + bytes(4) + page[26:])


def _checked(page: bytes) -> bytes:
    """An Ogg page without a checksum, with it."""
    return page[:22] + struct.pack("<I", _ogg_crc(page)) + page[26:]


def _ogg_crc(page: bytes) -> int:
    crc = 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1) & 0xFFFFFFFF ^ (0x04C11DB7 if crc >> 31 else 0)
    return crc


def data_in(path: Path) -> bytes:
    """A `dref` entry that says that the samples are in another file: QuickTime's alias record."""
    folder, name = os.fsencode(path.parent), os.fsencode(path.name)
    path_record = struct.pack(">hH", 2, len(os.fsencode(path))) + os.fsencode(path)
    path_record += b"\0" * (len(path_record) % 2)
    folder_record = struct.pack(">hH", 0, len(folder)) + folder + b"\0" * (len(folder) % 2)
    alias = (
        bytes(8 + 2)
        + bytes(1 + 27 + 12)  # a volume without a name
        + bytes([min(63, len(name))])
        + name[:63].ljust(63, b"\0")
        + bytes(16)
        + struct.pack(">hh", 0, 0)
        + bytes(16)
    )
    return box(b"alis", bytes(4), alias, folder_record, path_record, struct.pack(">hH", -1, 0))


_IN_OPEN = 0x20


@contextmanager
def opens_in(folder: Path) -> Iterator[list[str]]:
    """Within it: nothing. After it: the names of files in `folder` that any code opened, C too.

    By Linux's inotify.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    names: list[str] = []
    try:
        assert libc.inotify_add_watch(watch, os.fsencode(folder), _IN_OPEN) >= 0
        yield names
        with open(watch, "rb", buffering=0, closefd=False) as events:
            data = events.read(1 << 20) or b""
        while data:
            length = struct.unpack_from("iIII", data)[3]
            names.append(os.fsdecode(data[16 : 16 + length].rstrip(b"\0")))
            data = data[16 + length :]
    finally:
        os.close(watch)


def refused(path: Path, kind: type[CcdstreamError] = VideoOpenError, **span: float) -> str:
    """The message with which `path` is refused: one line that names the file."""
    with pytest.raises(kind) as caught:
        VideoSource(path, **span)
    message = str(caught.value)
    assert "\n" not in message
    assert show_path(path) in message
    return message


LIMIT_S = 60
"""For one file; it takes 1 to 5 s by itself, and tests share their cores."""
MEMORY_MB = 1500

READ = """
import json, resource, sys, time
from pathlib import Path
from ccdstream.decode import VideoSource
from ccdstream.errors import CcdstreamError
try:
    with VideoSource(Path(sys.argv[1])) as source:
        count = sum(1 for _ in source)
        ended = source.problems.sentences()
except CcdstreamError as error:
    count, ended = 0, [str(error)]
if sys.platform == "linux":  # where ru_maxrss is also that of the process that started this one
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 20
print(json.dumps([count, ended, peak]))
"""


def cost(path: Path) -> tuple[int, list[str]]:
    """Frames, and what is told, of reading `path` in a process within the limits above."""
    run = subprocess.run(
        [sys.executable, "-c", READ, path],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert run.returncode == 0, run.stderr
    count, told, peak_mb = json.loads(run.stdout)
    assert peak_mb < MEMORY_MB
    assert all(line.isprintable() for line in told)
    return count, told
