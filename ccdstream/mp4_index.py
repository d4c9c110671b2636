"""How much the index of an MP4 claims to hold, before FFmpeg believes it.

FFmpeg makes an entry for every sample that an index tells of, and a few bytes can tell of as many
as they like: 700 bytes that claim 80 million samples of one byte each took 48 s and 2.9 GB, and an
edit list of 100 000 entries, 1.2 MB, makes 100 000 frames of a single picture. Nothing that FFmpeg
can be told bounds that, so the claims are added up here, by what ISO/IEC 14496-12 says of them, and
a file that claims more than any recording holds is refused.

Only boxes that have such claims are looked at; whatever else is wrong with a file is FFmpeg's to
tell. What is no MP4 ends the walk at its first bytes.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

MAX_SAMPLES = 20_000_000
"""Samples of all tracks together, with each edit of a track counting them anew: at 60 frames a
second and 47 packets of sound, two days. FFmpeg takes 7 s and 750 MB for so many."""

MAX_EDITS = 1_000
"""Entries of one edit list. Recorders write one or two, editors one a cut."""

MAX_TRACKS = 1_000
"""FFmpeg's own: beyond it the whole file is refused, with words that say nothing of it."""

MAX_BOXES = 2_000_000
"""Boxes that are walked through, in some seconds. A fragment has about ten: one a second for two
days, or one a frame for two hours."""

_WINDOW_BYTES = 4096
"""What is read at a time: a fragment's boxes lie close together."""

_MAX_DEPTH = 10
"""FFmpeg's own."""

_HOLDERS = frozenset(
    b"moov trak mdia minf stbl edts moof traf mvex udta dinf tref sinf schi meta ilst wave wide"
    b" free skip hoov".split()
)
"""Boxes that FFmpeg looks into."""

_PCM_RUN = 1024
"""Samples of sound that share an entry where each is a single tick long."""


class Bytes(Protocol):
    """A file as it is read here."""

    def read(self, count: int, /) -> bytes: ...
    def seek(self, offset: int, whence: int, /) -> int: ...


@dataclass(slots=True)
class _Track:
    """What the boxes of one track claim."""

    samples: int = 0
    in_chunks: int = 0
    edits: int = 0
    sound: bool = False
    single_ticks: bool = False

    def entries(self) -> int:
        each = self.samples
        if self.sound and self.single_ticks:
            each = self.in_chunks // _PCM_RUN
        return each * max(1, self.edits)


class _Walk:
    def __init__(self, file: Bytes, size: int) -> None:
        self._file, self._size = file, size
        self._boxes = 0
        self._samples = 0  # of fragments, which belong to no track here
        self._tracks: list[_Track] = [_Track()]  # the first: what lies outside of tracks
        self._window, self._window_at = b"", 0

    def reason(self) -> str:
        try:
            self._within(0, self._size, 0)
        except _TooMuch as error:
            return str(error)
        samples = self._samples + sum(track.entries() for track in self._tracks)
        if samples > MAX_SAMPLES:
            return f"{samples} samples, and no recording has more than {MAX_SAMPLES}"
        return ""

    def unedited(self) -> bool:
        return len(self._tracks) > 1 and not any(track.edits for track in self._tracks)

    def _within(self, begin: int, end: int, depth: int) -> None:
        for kind, start, stop in self._children(begin, end):
            if kind == b"cmov":
                raise _TooMuch("a compressed index, whose size is not known")
            if kind == b"trak":
                self._tracks.append(_Track())
                if len(self._tracks) > MAX_TRACKS + 1:
                    raise _TooMuch(f"more than {MAX_TRACKS} tracks")
            if kind in _HOLDERS and depth < _MAX_DEPTH:
                self._within(start, stop, depth + 1)
            else:
                self._claim(kind, start, stop)

    def _children(self, begin: int, end: int) -> Iterator[tuple[bytes, int, int]]:
        """(type, begin, end) of what the boxes from `begin` to `end` hold."""
        while begin + 8 <= end:
            self._boxes += 1
            if self._boxes > MAX_BOXES:
                raise _TooMuch(f"more than {MAX_BOXES} boxes")
            head = self._at(begin, 16)
            if len(head) < 8:
                return
            size, kind = struct.unpack_from(">I4s", head)
            start = begin + 8
            if size == 1 and len(head) == 16:
                size, start = struct.unpack_from(">Q", head, 8)[0], begin + 16
            stop = end if size == 0 else min(end, begin + size)
            if stop < start:
                return
            if kind == b"meta":  # with version and flags, or in QuickTime without
                start += 4 if self._at(start, 4) == bytes(4) else 0
            yield kind, start, stop
            begin = stop

    def _claim(self, kind: bytes, start: int, stop: int) -> None:
        track = self._tracks[-1]
        if kind == b"hdlr":
            track.sound = self._at(start + 8, 4) == b"soun"
        elif kind in (b"stsz", b"stz2"):
            each, count = self._ints(start + 4, 2)
            if kind == b"stz2":
                each = 0
            bits = 8 * max(0, stop - start - 12)
            track.samples += count if each else min(count, bits // 4)
        elif kind == b"stts":
            count, _, ticks = self._ints(start + 4, 3)
            track.single_ticks = (count, ticks) == (1, 1)
        elif kind == b"stsc":
            (count,) = self._ints(start + 4, 1)
            data = self._at(start + 8, min(12 * count, max(0, stop - start - 8)))
            runs = struct.iter_unpack(">III", data[: len(data) // 12 * 12])
            track.in_chunks = max((each for _, each, _ in runs), default=0)
        elif kind in (b"stco", b"co64"):
            track.in_chunks *= min(self._ints(start + 4, 1)[0], max(0, stop - start - 8) // 4)
        elif kind == b"elst":
            (count,) = self._ints(start + 4, 1)
            track.edits = min(count, max(0, stop - start - 8) // 12)
            if track.edits > MAX_EDITS:
                raise _TooMuch(f"{track.edits} edits, and no recording has more than {MAX_EDITS}")
        elif kind == b"trun":
            flags, count = self._ints(start, 2)
            each = 4 * (flags >> 8 & 0xF).bit_count()
            self._samples += min(count, max(0, stop - start) // each) if each else count

    def _at(self, offset: int, count: int) -> bytes:
        skip = offset - self._window_at
        if not 0 <= skip <= len(self._window) - count:
            if self._file.seek(offset, 0) < 0:
                return b""
            self._window = self._file.read(max(count, _WINDOW_BYTES))
            self._window_at, skip = offset, 0
        return self._window[skip : skip + count]

    def _ints(self, offset: int, count: int) -> tuple[int, ...]:
        """So many numbers of 32 bits; 0 where the file ends before."""
        return struct.unpack(f">{count}I", self._at(offset, 4 * count).ljust(4 * count, b"\0"))


class _TooMuch(Exception):
    """What is claimed goes beyond a limit."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What the index of an MP4 claims."""

    excess: str
    """What of it is beyond the limits above; empty where nothing."""
    unedited: bool
    """Whether it has tracks, and no edit list, so that every picture is to be shown."""


def claims_of(file: Bytes, size: int) -> Claims:
    """What the index of an MP4 of `size` bytes claims.

    Errors of the file, as a short read, end the walk: they are told where the file is read.
    """
    walk = _Walk(file, size)
    excess = walk.reason()
    return Claims(excess, walk.unedited())
