"""Whether the parts of a container join up, while FFmpeg reads it.

Matroska and fragmented MP4 are parts that follow each other, each with its size before it. Where
one does not end where the next begins, FFmpeg looks for the next that it knows and goes on, and
hands out what it finds: what lies between is lost without a word. The times of the pictures tell
of it where the clock is even; where it is not, only the sizes do. So what FFmpeg reads is followed
here from part to part. It costs no reading of its own, and nothing is kept.

Nothing is said of what FFmpeg did not read, nor of what lies behind the recording's own end.
"""

import re
from typing import Literal

_LEVEL_1_DIGITS = """
114d9b74 1549a966 1654ae6b 1f43b675 1c53bb6b 1941a469 1043a770 1254c367
"""
_LEVEL_1 = frozenset(map(bytes.fromhex, _LEVEL_1_DIGITS.split()))
"""Parts of a Matroska segment (RFC 9559, 5.1): none of them may lie in a cluster."""

_EBML, _SEGMENT, _CLUSTER = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
_NEXT = re.compile(b"|".join(map(re.escape, _LEVEL_1)))
_BOX = re.compile(rb"[ -~\xa9][ -~]{3}")
"""A name of a box in MP4."""

_HEAD_BYTES = 16
"""Of the longest head: an ID of 4 and a size of 8 bytes in Matroska; 16 in MP4."""


class Parts:
    """The parts of one file, followed from its first byte.

    Attributes:
        broken: at how many places, so far, a part does not join the one before it.
        cut_off: whether the last part, as far as is known, is longer than the file.
    """

    def __init__(self, size: int) -> None:
        self.broken = 0
        self._size = size
        self._at = 0  # where the next part begins
        self._seeking = False  # whether that is not known, and a part is looked for from there on
        self._tail = b""  # what was read of a head that is not whole, from `_at` on
        self._done = False

    @property
    def cut_off(self) -> bool:
        return self._at > self._size

    def feed(self, at: int, data: bytes) -> None:
        """What was read from offset `at` on. What does not hold the next head changes nothing."""
        if self._done:
            return
        if self._tail and at == self._at + len(self._tail):
            at, data = self._at, self._tail + data
        self._tail = b""
        while at <= self._at < at + len(data) and not self._done:
            begin = self._at - at
            if self._seeking:
                found = _NEXT.search(data, begin)
                if found is None:
                    self._at = max(self._at, at + len(data) - 3)
                    self._tail = data[self._at - at :]
                    return
                self._at, self._seeking = at + found.start(), False
                continue
            if begin + _HEAD_BYTES > len(data) and at + len(data) < self._size:
                self._tail = data[begin:]
                return
            self._step(data[begin : begin + _HEAD_BYTES])

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


class MatroskaParts(Parts):
    """Segment, clusters, and what is in those (RFC 9559; EBML is RFC 8794)."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._segment: tuple[int, int | None] | None = None  # begin and end; no end: not told
        self._cluster_end: int | None = None
        self._in: Literal["file", "segment", "cluster"] = "file"

    @property
    def cut_off(self) -> bool:
        if super().cut_off:
            return True
        ends = [self._segment[1] if self._segment is not None else None]
        if self._in == "cluster":
            ends.append(self._cluster_end)
        return not self.broken and any(end is not None and end > self._size for end in ends)

    def _break(self) -> None:
        self._in = "segment"
        super()._break()

    def _step(self, head: bytes) -> None:
        segment_end = self._segment[1] if self._segment is not None else None
        if self._in == "cluster" and self._at == self._cluster_end:
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
        parent_end = self._cluster_end if self._in == "cluster" else segment_end
        if (
            not name
            or (self._in == "file" and name not in (_EBML, _SEGMENT, b"\xec", b"\xbf"))
            or (self._in == "cluster" and name in _LEVEL_1)
            or (end is None and name not in (_SEGMENT, _CLUSTER))
            or (end is not None and parent_end is not None and end > parent_end)
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
        else:
            assert end is not None
            self._at = end
            return
        self._at += length


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


class FragmentParts(Parts):
    """The boxes of an MP4 in fragments (ISO/IEC 14496-12, 4.2), from the first fragment on.

    Before it, and where there is none, the index tells of all that there should be.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self._begun = False

    @property
    def cut_off(self) -> bool:
        return self._begun and super().cut_off

    def _step(self, head: bytes) -> None:
        if len(head) < 8:
            self._end_short()
            return
        size, name = int.from_bytes(head[:4]), head[4:8]
        if size == 1:
            size = int.from_bytes(head[8:16])
        elif size == 0 and _BOX.fullmatch(name):  # up to the end of the file
            size = self._size - self._at
        self._begun |= name == b"moof"
        if size < 8 or not _BOX.fullmatch(name):
            self.broken += self._begun
            self._done = True  # nor does FFmpeg find another one
            return
        self._at += size


def parts_of(head: bytes, size: int) -> Parts | None:
    """What follows the parts of a file of `size` bytes that begins with `head`; None: nothing does,
    or FFmpeg tells itself what is wrong."""
    if head.startswith(_EBML):
        return MatroskaParts(size)
    if head[4:8] in (b"ftyp", b"styp", b"moof"):
        return FragmentParts(size)
    return None
