"""Decoded pictures as PyAV gives them -> upright, progressive, 8-bit YUV 4:2:0 planes.

What `decode` and the live sources do alike to every picture, whatever it was decoded from.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import av
import av.error
import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import SideDataContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from ccdstream.frames import Colour, Matrix

MAX_PIXELS = 4096 * 2304
"""Largest picture that is decoded: 4K, in either of its shapes. A few bytes can claim a picture
that fills the memory, and a decoder keeps up to thirty: at 8K, H.264 of 105 kB took 1.5 GB."""

METADATA: dict[str, Any] = (
    {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
)
"""So that a title in another encoding is no error; from PyAV 19 on it is none anyway."""

HD_HEIGHT_PX = 720
"""From this height on, an untagged picture is taken for BT.709."""

MATRICES: dict[int, tuple[Matrix, int]] = {
    # ISO/IEC 23091-2 MatrixCoefficients: (what the frame is said to be, swscale's SWS_CS_*)
    1: ("bt709", 1),
    4: ("bt601", 4),
    5: ("bt601", 5),
    6: ("bt601", 5),
    7: ("bt709", 7),
    9: ("bt2020", 9),
    10: ("bt2020", 9),
}
SWS_OF: dict[Matrix, int] = {"bt601": 5, "bt709": 1, "bt2020": 9}
_LIMITED, _FULL = 1, 2  # AVColorRange
_QUICK = 0x2  # SWS_BILINEAR
_EXACT = 0x2 | 0x2000 | 0x40000  # and SWS_FULL_CHR_H_INT, SWS_ACCURATE_RND
"""For a change of colour: the error is then below 1 code, else up to 2; 2 ms more at 1080p."""

_READY = frozenset(("yuv420p", "yuvj420p", "yuva420p"))
"""Formats whose first three planes are those of a `Frame`."""


def _is_grey(picture: VideoFrame) -> bool:
    return picture.format.name.startswith(("gray", "ya8", "ya16", "mono"))


def _is_rgb(picture: VideoFrame) -> bool:
    return picture.format.is_rgb or picture.format.has_palette


def colour_of(picture: VideoFrame) -> Colour:
    """What the planes made of `picture` mean: as tagged, else by this rule.

    Matrix: BT.709 from 720 lines on, else BT.601, and `assumed` says so. (FCC counts as BT.601 and
    SMPTE 240M as BT.709; they are converted.) RGB becomes YUV by the same rule, but nothing is
    assumed there: RGB needs no matrix to be understood.
    Range: full where the format itself means full, as FFmpeg has it (yuvj*, grey), else limited.
    RGB becomes limited.
    """
    tagged = MATRICES.get(picture.colorspace)
    by_rule: Matrix = "bt709" if picture.height >= HD_HEIGHT_PX else "bt601"
    if _is_rgb(picture):
        return Colour(by_rule, full_range=False)
    means_full = _is_grey(picture) or picture.format.name.startswith("yuvj")
    full = picture.color_range == _FULL or (picture.color_range != _LIMITED and means_full)
    if tagged is None:
        return Colour(by_rule, full_range=full, assumed=not _is_grey(picture))
    return Colour(tagged[0], full_range=full)


def _view_of(picture: VideoFrame, index: int) -> np.ndarray:
    """uint8 [h, w], plane `index` of `picture`, without a copy.

    The view keeps the decoder's buffer alive, and the decoder does not write to a buffer that is
    still in use. It is read-only, because the decoder may yet predict from it.
    """
    plane = picture.planes[index]
    stride = abs(plane.line_size)
    rows = np.frombuffer(cast(Any, plane), np.uint8, count=stride * plane.height)
    view: np.ndarray = rows.reshape(plane.height, stride)[:, : plane.width]
    if plane.line_size < 0:  # stored from the lowest row up
        view = np.ascontiguousarray(view[::-1])
    view.flags.writeable = False
    return view


class Planes:
    """Makes pictures of any format into 8-bit YUV 4:2:0 of one size and one colour."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()  # keeps its tables between frames of one kind
        self._neutral = np.empty((0, 0), np.uint8)

    def of(
        self, picture: VideoFrame, size: tuple[int, int], colour: Colour
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Y, U and V, read-only, of `picture` scaled to `size` and converted to `colour`."""
        same_size = (picture.height, picture.width) == size
        own = colour_of(picture)
        same_colour = (own.matrix, own.full_range) == (colour.matrix, colour.full_range)
        # FCC and SMPTE 240M are near, not equal to, what they are counted as
        exact = MATRICES.get(picture.colorspace, (own.matrix, SWS_OF[own.matrix]))[1]
        if _is_grey(picture) and own.full_range == colour.full_range:
            luma = picture
            if picture.format.name != "gray" or not same_size:
                luma = self._reformatter.reformat(
                    picture, width=size[1], height=size[0], format="gray", threads=1
                )
            grey = self._grey((size[0] + 1) // 2, (size[1] + 1) // 2)
            return _view_of(luma, 0), grey, grey
        same_colour &= exact == SWS_OF[own.matrix] and not _is_rgb(picture)
        if not (picture.format.name in _READY and same_size and same_colour):
            picture = self._reformatter.reformat(
                picture,
                width=size[1],
                height=size[0],
                format="yuv420p",
                src_colorspace=exact,
                dst_colorspace=SWS_OF[colour.matrix],
                src_color_range=_FULL if own.full_range or _is_rgb(picture) else _LIMITED,
                dst_color_range=_FULL if colour.full_range else _LIMITED,
                interpolation=_QUICK if same_colour else _EXACT,
                threads=1,
            )
        return _view_of(picture, 0), _view_of(picture, 1), _view_of(picture, 2)

    def _grey(self, height: int, width: int) -> np.ndarray:
        """uint8 [height, width], no colour at all; the same array for every frame."""
        if self._neutral.shape != (height, width):
            self._neutral = np.full((height, width), 128, np.uint8)
            self._neutral.flags.writeable = False
        return self._neutral


@dataclass(frozen=True, slots=True)
class Orientation:
    """How a stored picture is turned upright: transposed first, then mirrored."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @staticmethod
    def of(picture: VideoFrame) -> "Orientation":
        """From the display matrix of `picture` (ISO/IEC 14496-12, 8.3.2); the nearest of eight.

        With (a, b; c, d) the upper left of the matrix, a stored pixel (x, y) is shown at
        (a x + c y, b x + d y).
        """
        try:
            # not `picture.side_data`: a picture keeps that, which keeps the picture, with all its
            # memory, until Python's collector of cycles comes by
            data = SideDataContainer(picture).get("DISPLAYMATRIX")  # type: ignore[call-arg]
        except ValueError:  # PyAV does not know some other side data of this picture, as EXIF
            turn = picture.rotation  # degrees, counterclockwise; a mirror image goes unnoticed
            return Orientation._turned(round(-turn / 90) % 4)
        if data is None:
            return Orientation()
        a, b, _, c, d, *_ = np.frombuffer(cast(Any, data), np.int32).tolist()
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return Orientation(False, flip_x=a < 0, flip_y=d < 0)
        return Orientation(True, flip_x=c < 0, flip_y=b < 0)

    @staticmethod
    def _turned(quarters: int) -> "Orientation":
        """Clockwise by `quarters` times 90 degrees."""
        return (
            Orientation(),
            Orientation(True, flip_x=True),
            Orientation(False, flip_x=True, flip_y=True),
            Orientation(True, flip_y=True),
        )[quarters]

    @property
    def rotation_deg(self) -> int:
        """Clockwise turn that makes the picture upright, apart from mirroring: 0, 90, 180, 270."""
        if self.transpose:
            return 270 if self.flip_y else 90
        return 180 if self.flip_y else 0

    @property
    def mirrored(self) -> bool:
        """Whether the stored picture is a mirror image."""
        return self.transpose ^ self.flip_x ^ self.flip_y

    def size(self, stored: tuple[int, int]) -> tuple[int, int]:
        """(height, width) upright, of a stored (height, width), or the other way round."""
        return (stored[1], stored[0]) if self.transpose else stored

    def apply(self, plane: np.ndarray) -> np.ndarray:
        """`plane` upright: itself where nothing is to do, else a copy."""
        if self == Orientation():
            return plane
        upright = plane.T if self.transpose else plane
        upright = upright[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]
        upright = np.ascontiguousarray(upright)
        upright.flags.writeable = False
        return upright


class Deinterlacer:
    """Makes interlaced pictures progressive: as many as before, each at its own time.

    Works from the first picture on that the decoder flags as interlaced (a stream that never has
    one pays nothing), and changes flagged pictures only. FFmpeg's bwdif, one picture for a frame.
    """

    def __init__(self, codec: str) -> None:
        # To PNG the flag means that the file holds a coarse picture first (Adam7), not two fields.
        self._works = codec not in ("png", "apng")
        self._graph: Graph | None = None
        self._kind: tuple[object, ...] = ()
        self._times: deque[int] = deque()
        self.seen = False

    def push(self, picture: VideoFrame, time: int) -> Iterator[tuple[VideoFrame, int]]:
        """What is finished once `picture` is known; the filter looks one picture ahead."""
        kind = (picture.format.name, picture.width, picture.height)
        if self._graph is not None and kind != self._kind:
            yield from self.finish()
        if self._graph is None and picture.interlaced_frame and self._works:
            try:
                self._graph, self._kind = self.new_graph(picture), kind
            except av.FFmpegError:  # fewer than three rows, for example: left as they are
                self._works = False
        if self._graph is None:
            yield picture, time
            return
        self.seen = True
        picture.pts = time
        self._times.append(time)
        self._graph.vpush(picture)
        yield from self._pull()

    def finish(self) -> Iterator[tuple[VideoFrame, int]]:
        """What is still inside."""
        if self._graph is not None:
            self._graph.vpush(None)
            yield from self._pull()
            self._graph = None
            self._times.clear()

    def _pull(self) -> Iterator[tuple[VideoFrame, int]]:
        assert self._graph is not None
        while True:
            try:
                picture = self._graph.vpull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            assert isinstance(picture, VideoFrame)
            yield picture, self._times.popleft()

    @staticmethod
    def new_graph(picture: VideoFrame) -> Graph:
        """bwdif for pictures like this one: push them, pull what is finished."""
        graph = Graph()
        source = graph.add(
            "buffer",
            video_size=f"{picture.width}x{picture.height}",
            pix_fmt=picture.format.name,
            time_base="1/1000000",  # any will do: times are kept beside the graph
        )
        bwdif = graph.add(
            "bwdif", mode="send_frame", parity="auto", deint="interlaced", threads="1"
        )
        graph.link_nodes(source, bwdif, graph.add("buffersink")).configure()
        return graph


class PromptDeinterlacer:
    """As `Deinterlacer`, but every picture is given back at once, for live video.

    bwdif wants the picture after, and waiting for it would make each one late by the time of a
    frame. Here it gets the one before and, by ending its input, is told that there is none after.
    The result is nearly the same (mean squared difference 0.5 on moving texture); a new graph for
    each picture costs 7 ms instead of 1 at 720x576, and 20 instead of 5 at 1920x1080.
    """

    def __init__(self, codec: str) -> None:
        self._works = codec not in ("png", "apng")  # as in `Deinterlacer`
        self._before: VideoFrame | None = None
        self._kind: tuple[object, ...] = ()

    def of(self, picture: VideoFrame) -> VideoFrame:
        """`picture`, progressive."""
        kind = (picture.format.name, picture.width, picture.height)
        before = self._before if kind == self._kind else None
        self._before, self._kind = picture, kind
        if not (picture.interlaced_frame and self._works):
            return picture
        try:
            graph = Deinterlacer.new_graph(picture)
        except av.FFmpegError:  # fewer than three rows, for example: left as they are
            self._works = False
            return picture
        pictures = [picture] if before is None else [before, picture]
        for each in pictures:
            graph.vpush(each)
        graph.vpush(None)
        progressive = [graph.vpull() for _ in pictures][-1]
        assert isinstance(progressive, VideoFrame)
        return progressive


def exact(value: Any, default: Fraction) -> Fraction:
    """`value` of PyAV, exact; `default` where it is not set: None, or from PyAV 19 on 0/1."""
    return Fraction(value.numerator, value.denominator) if value else default
