"""Whether the parts of a container join up, while FFmpeg reads it.

Most containers are parts that follow each other, each with its size before it, or all of one size.
Where one does not end where the next begins, FFmpeg looks for the next that it knows and goes on,
and hands out what it finds: what lies between is lost without a word. The times of the pictures
tell of it where the clock is even; where it is not, or at the end, only the sizes do. So what
FFmpeg reads is followed here from part to part. It costs no reading of its own, and nothing is
kept.

Nothing is said of what FFmpeg did not read, nor of what lies behind the recording's own end, except
that it is another recording, which FFmpeg does not go on to in some containers. Nor can anything be
said where a recording breaks off between two parts and its container has no mark of its end: MPEG
streams, and MP4 in fragments.
"""

import os
import re
from typing import Literal, Protocol

_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_LEVEL_1_DIGITS = """
114d9b74 1549a966 1654ae6b 1f43b675 1c53bb6b 1941a469 1043a770 1254c367
"""
_LEVEL_1 = frozenset(map(bytes.fromhex, _LEVEL_1_DIGITS.split()))
"""Parts of a Matroska segment (RFC 9559, 5.1): none of them may lie in a cluster."""

_EBML, _SEGMENT, _CLUSTER = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
_MAX_PARTS = 5_000_000
"""Parts that are followed, in some seconds: 19 hours of 25 frames and 47 packets of sound a second.
Of what follows nothing is said."""

_KEPT = 3
"""Bytes at the end of what was read in which a start of four bytes can begin."""

_MAX_HOPS = 10_000
"""Heads that are read behind what FFmpeg read."""

_BOX = re.compile(rb"[ -~\xa9][ -~]{3}")
"""A name of a box in MP4."""


class Bytes(Protocol):
    """A file as it is read here."""

    def read(self, count: int, /) -> bytes: ...
    def seek(self, offset: int, whence: int, /) -> int: ...


class Parts:
    """The parts of one file, followed from its first byte.

    Attributes:
        broken: at how many places, so far, a part does not join the one before it.
        cut_off: whether the last part, as far as is known, is longer than the file.
        complete: whether all was followed to an end that the container marks, and is there.
        another: whether another recording follows, to which FFmpeg does not go on.
        from_zero: whether FFmpeg counts the length of the recording from time 0, and not from its
            start.
    """

    head_bytes = 16
    """Of the longest head: an ID of 4 and a size of 8 bytes in Matroska, 16 in MP4."""
    starts: re.Pattern[bytes]
    """Where to go on from a place where no part begins."""

    def __init__(self, size: int) -> None:
        self.broken = 0
        self.another = self.from_zero = False
        self._size = size
        self._at = 0  # where the next part begins
        self._left = _MAX_PARTS
        self._seeking = False  # whether that is not known, and a part is looked for from there on
        self._tail = b""  # what was read of a head that is not whole, from `_at` on
        self._done = False

    @property
    def cut_off(self) -> bool:
        return self._at > self._size

    @property
    def complete(self) -> bool:
        return False

    def feed(self, at: int, data: bytes) -> None:
        """What was read from offset `at` on. What does not hold the next head changes nothing."""
        if self._done:
            return
        known = self._at + len(self._tail)
        if not at <= known < at + len(data):
            return
        at, data, self._tail = self._at, self._tail + data[known - at :], b""
        while self._at < at + len(data) and not self._done:
            begin = self._at - at
            if self._seeking:
                found = self.starts.search(data, begin)
                if found is None:
                    self._at = max(self._at, at + len(data) - _KEPT)
                    self._tail = data[self._at - at :]
                    return
                self._at, self._seeking = at + found.start(), False
                continue
            if begin + self.head_bytes > len(data) and at + len(data) < self._size:
                self._tail = data[begin:]
                return
            self._left -= 1
            self._done |= self._left < 0
            self._step(data[begin : begin + self.head_bytes])

    def read_on(self, file: Bytes) -> None:
        """Look what follows behind what FFmpeg read, where it stops at the recording's own end."""

    def _step(self, head: bytes) -> None:
        """Pass the part at `_at`, that begins with `head`."""
        raise NotImplementedError

    def _break(self) -> None:
        """Here no part begins: look for the next one."""
        self.broken += 1
        self._seeking = True
        self._at += 1

    def _end_short(self) -> None:
        """The file ends within a head."""
        self._at = self._size + 1


class _Hopping(Parts):
    """Parts so few and long that those which FFmpeg leaves out can be read, a head each."""

    def read_on(self, file: Bytes) -> None:
        for _ in range(_MAX_HOPS):
            at = self._at
            if self._done or at >= self._size:
                return
            self._tail = b""
            file.seek(at, os.SEEK_SET)
            self.feed(at, file.read(self.head_bytes))
            if self._at == at:  # the disk failed
                return


_VOID, _CRC = b"\xec", b"\xbf"
_TRACKS, _TRACK, _NUMBER, _BLOCK = b"\x16\x54\xae\x6b", b"\xae", b"\xd7", b"\xa3"
_KNOWN = {
    "file": frozenset((_EBML, _SEGMENT, _VOID, _CRC)),
    "segment": _LEVEL_1 | {_VOID, _CRC},
    "cluster": frozenset((b"\xe7", b"\x58\x54", b"\xa7", b"\xab", b"\xa3", b"\xa0", _CRC)),
}
"""Elements that may lie in each (RFC 9559, 5.1)."""


class MatroskaParts(Parts):
    """Segment, clusters, and what is in those (RFC 9559; EBML is RFC 8794)."""

    starts = re.compile(b"|".join(map(re.escape, _LEVEL_1)))

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._segment: tuple[int, int | None] | None = None  # begin and end; no end: not told
        self._cluster_end: int | None = None
        self._in: Literal["file", "segment", "tracks", "cluster"] = "file"
        self._tracks_end = 0
        self._tracks: set[int] = set()
        self._all_known = True  # what is passed over as not known may hold any number of pictures

    @property
    def cut_off(self) -> bool:
        if super().cut_off:
            return True
        ends = [self._segment[1] if self._segment is not None else None]
        if self._in == "cluster":
            ends.append(self._cluster_end)
        return not self.broken and any(end is not None and end > self._size for end in ends)

    @property
    def complete(self) -> bool:
        end = self._segment[1] if self._segment is not None else None
        whole = end is not None and self._at == end <= self._size
        return whole and self._all_known and not self.broken

    def _break(self) -> None:
        self._in = "segment"
        super()._break()

    def _step(self, head: bytes) -> None:
        segment_end = self._segment[1] if self._segment is not None else None
        if self._in == "cluster" and self._at == self._cluster_end:
            self._in = "segment"
        if self._in == "tracks" and self._at == self._tracks_end:
            self._in = "segment"
        if self._in == "segment" and self._at == segment_end:
            self._done = True  # what comes behind is no part of the recording
            return
        try:
            name, length, size = _ebml(head)
        except IndexError:
            self._end_short()
            return
        unknown = self._in == "cluster" and self._cluster_end is None
        if unknown and (name in _LEVEL_1 or name == _EBML):
            self._in = "segment"
        if self._in == "segment" and name == _EBML and segment_end is None:
            self._done = True
            return
        end = None if size is None else self._at + length + size
        ends = {"tracks": self._tracks_end, "cluster": self._cluster_end}
        parent_end = ends.get(self._in, segment_end)
        content = head[length:]
        if (
            not name
            or (self._in == "file" and name not in _KNOWN["file"])
            or (self._in == "cluster" and name in _LEVEL_1)
            or (end is None and name not in (_SEGMENT, _CLUSTER))
            or (end is not None and parent_end is not None and end > parent_end)
            or (self._in == "cluster" and name == _BLOCK and not self._is_of_a_track(content))
        ):
            if self._in == "file":
                self._done = True  # not even a segment: FFmpeg tells
            else:
                self._break()
            return
        if name == _SEGMENT and self._in == "file":
            self._segment, self._in = (self._at, end), "segment"
        elif name == _CLUSTER:
            self._cluster_end, self._in = end, "cluster"
        elif name == _TRACKS and end is not None:
            self._tracks_end, self._in = end, "tracks"
        elif name != _TRACK or self._in != "tracks":
            assert end is not None and size is not None
            if name == _NUMBER and self._in == "tracks":
                self._tracks.add(int.from_bytes(content[:size]))
            self._all_known &= self._in == "tracks" or name in _KNOWN[self._in]
            self._at = end
            return
        self._at += length

    def _is_of_a_track(self, block: bytes) -> bool:
        """Whether the file tells of the track: FFmpeg passes over the rest of a cluster else."""
        try:
            _, _, number = _ebml(b"\xec" + block)
        except IndexError:
            return True  # the file ends here
        return not self._tracks or number in self._tracks


def _ebml(head: bytes) -> tuple[bytes, int, int | None]:
    """Name of an element, length of its head, size of its content; None: not told.

    The name is empty where there is none.

    Raises:
        IndexError: `head` is not whole.
    """
    wide = 9 - head[0].bit_length()
    if wide > 4:
        return b"", 0, None
    name, digits = head[:wide], 9 - head[wide].bit_length()
    if digits > 8:
        return b"", 0, None
    if len(head) < wide + digits:
        raise IndexError
    size = int.from_bytes(head[wide : wide + digits]) & ((1 << 7 * digits) - 1)
    return name, wide + digits, None if size == (1 << 7 * digits) - 1 else size


class Mp4Parts(_Hopping):
    """Boxes (ISO/IEC 14496-12, 4.2), and those of the index of each fragment (8.8.4 to 8.8.12).

    Whether they join is told from the first fragment on: before it, and where there is none, the
    index tells of all that there should be. FFmpeg passes over what it does not find in the index
    of a fragment, so a box there that is not as long as it has to be is a loss, and so are media
    of which no fragment tells.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._begun = False
        self._indexed = False
        self._ended = False
        self._moof_end = self._traf_end = 0
        self._samples = 0  # of which the fragments behind the last media tell
        self._before = b""

    @property
    def cut_off(self) -> bool:
        return self._begun and super().cut_off

    @property
    def complete(self) -> bool:
        return self._ended and not self.broken

    def _step(self, head: bytes) -> None:
        if self._at < self._moof_end:
            self._step_within(head)
            return
        if len(head) < 8:
            self._end_short()
            return
        size, name, start = _box(head)
        self._begun |= name == b"moof"
        if size == 0 and name != b"moof" and _BOX.fullmatch(name):  # up to the end of the file
            size = self._size - self._at
        if name == b"moov":
            self.another, self._indexed = self._indexed, True
        self.from_zero |= name == b"sidx"  # of which FFmpeg takes the end for a length
        if name == b"mfra":  # it comes last: what follows is no part of the recording
            self._begun, self._ended = False, True
        if size < 8 or not _BOX.fullmatch(name):
            self.broken += self._begun
            self._done = True  # nor does FFmpeg find another one
            return
        if name == b"mdat":
            untold = size > start and not self._samples and self._before != b"mdat"
            self.broken += self._begun and untold
            self._samples = 0
        self._before = name
        if name == b"moof" and self._at + size <= self._size:
            self._moof_end = self._at + size
            size = start
        self._at += size

    def _step_within(self, head: bytes) -> None:
        """Pass a box of the index of a fragment."""
        in_track = self._at < self._traf_end
        room = (self._traf_end if in_track else self._moof_end) - self._at
        size, name, start = _box(head) if room >= 8 else (0, b"", 0)
        if not 8 <= size <= room or (in_track and size != _size_in_track(name, size, head)):
            self.broken += 1
            self._at = self._moof_end
            self._samples = max(1, self._samples)  # one loss is told once
            return
        if name == b"traf" and not in_track:
            self._traf_end, size = self._at + size, start
        elif name == b"trun" and in_track:
            self._samples += int.from_bytes(head[12:16])
        self._at += size


def _box(head: bytes) -> tuple[int, bytes, int]:
    """Size and name of a box of MP4, and where its content begins."""
    size = int.from_bytes(head[:4])
    return (int.from_bytes(head[8:16]), head[4:8], 16) if size == 1 else (size, head[4:8], 8)


def _size_in_track(name: bytes, size: int, head: bytes) -> int:
    """How long the box that begins with `head` has to be; `size` where that is not known."""
    version, flags, count = head[8], int.from_bytes(head[9:12]), int.from_bytes(head[12:16])
    if name == b"tfhd":
        return 16 + 8 * (flags & 1) + 4 * (flags & 0x3A).bit_count()
    if name == b"tfdt":
        return 20 if version else 16
    if name == b"trun":
        return 16 + 4 * (flags & 5).bit_count() + 4 * count * (flags & 0xF00).bit_count()
    return size


class OggParts(Parts):
    """Pages, numbered for each stream, whose last one is marked (RFC 3533, 6)."""

    head_bytes = 27 + 255
    starts = re.compile(b"OggS")

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._numbers: dict[bytes, int] = {}  # of the next page of each stream that goes on

    @property
    def cut_off(self) -> bool:
        return super().cut_off or (self._at == self._size and bool(self._numbers))

    @property
    def complete(self) -> bool:
        return not self.broken and self._at > 0 and not self._numbers

    def _step(self, head: bytes) -> None:
        if not head.startswith(b"OggS"):
            if self._numbers:
                self._break()
            else:
                self._done = True
            return
        if len(head) < 27 or len(head) < 27 + head[26]:
            self._end_short()
            return
        begins, ends, stream = head[5] & 2, head[5] & 4, head[14:18]
        number = int.from_bytes(head[18:22], "little")
        wanted = None if begins else self._numbers.get(stream)
        self.broken += wanted is not None and wanted != number
        self._numbers[stream] = (number + 1) % 2**32
        if ends:
            del self._numbers[stream]
        self._at += 27 + head[26] + sum(head[27 : 27 + head[26]])


class FlvParts(Parts):
    """Tags of sound, picture and script (Adobe Flash Video File Format 10.1, E.4)."""

    head_bytes = 11

    def _step(self, head: bytes) -> None:
        if self._at == 0:
            self._at = int.from_bytes(head[5:9]) + 4
            return
        if len(head) < 11:
            self._end_short()
            return
        if head[0] & 0x1F not in (8, 9, 18) or head[8:11] != bytes(3):
            self.another = head.startswith(b"FLV\1")
            self.broken += not self.another
            self._done = True
            return
        self._at += 11 + int.from_bytes(head[1:4]) + 4


class AsfParts(_Hopping):
    """Objects (Advanced Systems Format 1.20, 3 to 6): header, packets and indexes."""

    head_bytes = 24

    def _step(self, head: bytes) -> None:
        size = int.from_bytes(head[16:24], "little")
        if head.startswith(_ASF_HEADER) and self._at:
            self.another = True
        if size < 24 or self.another:  # or it was not known when the header was written
            self._done = True
            return
        self._at += size


class TsParts(Parts):
    """Packets of 188 bytes (ISO/IEC 13818-1, 2.4.3.2)."""

    starts = re.compile(b"G(?=.{187}G.{187}G)", re.DOTALL)
    length = 188

    def feed(self, at: int, data: bytes) -> None:
        if not at <= self._at + len(self._tail) <= at + len(data):
            return
        data = self._tail + data[self._at + len(self._tail) - at :]
        offset = 0
        while offset < len(data):
            if self._seeking:
                found = self.starts.search(data, offset)
                if found is None:
                    offset = max(offset, len(data) - 2 * self.length)
                    break
                offset, self._seeking = found.start(), False
            marks = data[offset :: self.length]
            good = len(marks) - len(marks.lstrip(b"G"))
            offset += good * self.length
            if good == len(marks):
                break
            self.broken += 1
            self._seeking = True
        self._at += offset
        self._tail = data[offset:]

    @property
    def cut_off(self) -> bool:
        return not self._seeking and super().cut_off


def parts_of(head: bytes, size: int) -> Parts | None:
    """What follows the parts of a file of `size` bytes that begins with `head`; None: nothing does,
    or FFmpeg tells itself what is wrong."""
    kinds: tuple[tuple[bool, type[Parts]], ...] = (
        (head.startswith(_EBML), MatroskaParts),
        (head[4:8] in (b"ftyp", b"styp", b"moof"), Mp4Parts),
        (head.startswith(b"OggS"), OggParts),
        (head.startswith(b"FLV\1"), FlvParts),
        (head.startswith(_ASF_HEADER), AsfParts),
        (head[:1] == head[188:189] == head[376:377] == b"G", TsParts),
    )
    return next((kind(size) for holds, kind in kinds if holds), None)
