"""Frame or still in -> `View` out: the field of view, squashed to 256x256, and what of it counts.

Training and runtime both come through here, so they see the same pixels:

    find the field     the scope's octagon, disc or rectangle inside its black border
    crop, squash       area-resized to 256x256 RGB; a `Frame` is scaled plane by plane, and only the
                       256x256 result is converted to RGB
    mask               False on the border, the inset, burned-in text and saturated highlights;
                       masked pixels become neutral grey

What a recorder burns in separates normal from abnormal images better than tissue does on public
data, so the masks decide whether a figure means anything. A still is masked as the `Profile` says.
On a stream, `ViewTracker` watches: what stays for seconds while the rest moves is overlay.

And back: `map_to_image` lays an anomaly map over a frame; `mask_to_view` takes a lesion mask along.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from ccdstream.frames import VIEW_SIZE, Colour, FieldOfView, Frame, View

NEUTRAL = 128
"""Grey of every masked pixel, in all three channels."""
_GREY = np.full((*VIEW_SIZE, 3), NEUTRAL, np.uint8)

Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1), as fractions of the field of view's width and height."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Where a recorder burns things into the field of view."""

    name: str
    inset: Box | None = None
    """The scope-guide picture, or the black box left where it was."""
    text_strip: float = 0.0
    """Width of the column of text at the left edge, as a fraction of the field's width."""
    marks: tuple[Box, ...] = ()
    """Whatever else is drawn at a fixed place."""

    def __post_init__(self) -> None:
        for box in self.boxes():
            x0, y0, x1, y1 = box
            if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
                raise ValueError(
                    f"profile {self.name}: boxes are (x0, y0, x1, y1) with 0 <= x0 < x1 <= 1 and "
                    f"0 <= y0 < y1 <= 1, got {box}"
                )

    def boxes(self) -> tuple[Box, ...]:
        """Every region to mask."""
        inset = (self.inset,) if self.inset is not None else ()
        strip = ((0.0, 0.0, self.text_strip, 1.0),) if self.text_strip else ()
        return inset + strip + self.marks

    def to_dict(self) -> dict[str, Any]:
        """The profile as plain JSON values, for a manifest."""
        return {
            "name": self.name,
            "inset": None if self.inset is None else list(self.inset),
            "text_strip": self.text_strip,
            "marks": [list(box) for box in self.marks],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Profile":
        """The profile that `to_dict` wrote.

        Raises:
            ValueError: a key is missing or unknown, or a box is not one.
        """
        known = {"name", "inset", "text_strip", "marks"}
        if set(values) != known:
            raise ValueError(f"a profile has the keys {sorted(known)}, got {sorted(values)}")
        inset = values["inset"]
        return cls(
            name=str(values["name"]),
            inset=None if inset is None else _box(inset),
            text_strip=float(values["text_strip"]),
            marks=tuple(_box(mark) for mark in values["marks"]),
        )


def _box(values: Any) -> Box:
    x0, y0, x1, y1 = (float(value) for value in values)
    return x0, y0, x1, y1


NONE = Profile("none")
"""Nothing burned in: only the border and highlights are masked."""

HYPERKVASIR = Profile(
    "hyperkvasir",
    inset=(0.0, 0.58, 0.40, 1.0),
    text_strip=0.18,
    marks=((0.93, 0.74, 1.0, 0.88), (0.18, 0.33, 0.23, 0.47)),
)
"""The recorders of HyperKvasir and Kvasir v1: inset bottom left, text at the left edge, a scope
icon at the right, and on older recordings a setting beside the text.

Read off the normal training images: the inset ends at 0.35 of the width and, but for one image,
begins below 0.585 of the height; the text ends at 0.175, the setting at 0.22 of the width.
"""


# -- the field of view ----------------------------------------------------------------------------

_SEARCH_PX = 180
"""The longer side of the picture that the field is searched in."""
_BORDER_LUMA = 40
"""A frame whose darkest part is brighter than this has no black border."""
_BORDER_SHARE = 0.02
"""The border's luma is this quantile of the frame's: the corners alone make up more."""
_MARGIN_LUMA = 7
"""How much brighter than the border a cell must be to belong to the scope's picture."""
_LEAST_SHARE = 0.05
"""A picture covers at least this share of the frame: less is a light in the dark."""
_PIECE_SHARE = 0.08
"""A piece of the picture is at least this share of the largest one."""


def whole_frame(size: tuple[int, int]) -> FieldOfView:
    """The field of a frame without a border: all of it."""
    height, width = size
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.int32)
    return FieldOfView(0, 0, width, height, corners)


def find_field(luma: np.ndarray) -> FieldOfView:
    """Where the scope's picture lies in one frame.

    Args:
        luma: uint8 [H, W]; full or limited range.

    Returns:
        The field, snapped to even pixels so that 4:2:0 planes are cropped alike. The whole frame
        where there is no border, or nothing but border.
    """
    return lit_field(luma) or whole_frame(_size(luma))


def lit_field(luma: np.ndarray) -> FieldOfView | None:
    """As `find_field`; None where nothing is lit."""
    small, factor = _shrink(luma)
    return _find_in(small, factor, _size(luma))


def _size(plane: np.ndarray) -> tuple[int, int]:
    height, width = plane.shape[:2]
    return height, width


def _shrink(luma: np.ndarray) -> tuple[np.ndarray, int]:
    """Area-averaged to about `_SEARCH_PX`, and by which whole number.

    Rows and columns that do not fill a cell are left out, at most factor - 1 of each.
    """
    height, width = luma.shape
    factor = search_factor((height, width))
    if factor == 1:
        return luma, 1
    rows, columns = height // factor, width // factor
    whole = luma[: rows * factor, : columns * factor]
    return cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA), factor


def shrunk(luma: np.ndarray) -> np.ndarray:
    """uint8 [h, w]: area-averaged by `search_factor`, as `FieldWatch` looks at it."""
    return _shrink(luma)[0]


def search_factor(size: tuple[int, int]) -> int:
    """The whole number by which the luma of a frame is shrunk to be searched for its field."""
    height, width = size
    return max(1, min(round(max(height, width) / _SEARCH_PX), height // 8, width // 8))


def _find_in(small: np.ndarray, factor: int, size: tuple[int, int]) -> FieldOfView | None:
    """The field of a frame of `size`, from its luma in cells of `factor` pixels.

    Returns:
        None where nothing is lit.
    """
    counts = np.bincount(small.ravel(), minlength=256)
    border = int(np.searchsorted(np.cumsum(counts), _BORDER_SHARE * small.size))
    if border > _BORDER_LUMA:
        return whole_frame(size)
    bright = (small > border + _MARGIN_LUMA).astype(np.uint8)
    # Burned-in text is thinner than three cells, the scope's picture is not.
    solid = cv2.morphologyEx(bright, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(solid)
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0  # the background
    if areas.max() < _LEAST_SHARE * small.size:
        return None
    # A dark fold or lumen may cut the picture in two: large pieces belong to it as well.
    lit = (areas >= _PIECE_SHARE * areas.max())[labels]
    # A disc, an octagon and a box reach farthest out near their middle; an inset does so at a
    # corner. Twice, since the middle of the height moves when an inset leaves the width.
    for _ in range(2):
        lit[:, ~_reaches_middle(lit)] = False
        lit[~_reaches_middle(lit.T)] = False
    if not lit.any():
        return None
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    above = np.maximum(small, border) - border
    y0, y1 = _edges(above, lit, int(rows[0]), int(rows[-1]))
    x0, x1 = _edges(above.T, lit.T, int(columns[0]), int(columns[-1]))
    height, width = size
    box = (
        _even_up(x0 * factor),
        _even_up(y0 * factor),
        width if x1 == lit.shape[1] else _even_down(x1 * factor),
        height if y1 == lit.shape[0] else _even_down(y1 * factor),
    )
    first = lit[rows].argmax(axis=1)
    last = lit.shape[1] - 1 - lit[rows, ::-1].argmax(axis=1)
    ends = np.concatenate([np.stack([side, rows], axis=1) for side in (first, last)])
    # A cell on the outline is lit in part: it runs through the centres, on average. Cells that end
    # the grid reach to the end of the frame, over the pixels that fill no cell.
    grid = (lit.shape[1] - 1, lit.shape[0] - 1)
    points = np.where(ends == 0, 0, np.where(ends == grid, (width, height), (ends + 0.5) * factor))
    hull = cv2.convexHull(np.clip(np.rint(points), box[:2], box[2:]).astype(np.int32))
    outline = cv2.approxPolyDP(hull, 0.5 * factor, True).reshape(-1, 2)
    return FieldOfView(box[0], box[1], box[2] - box[0], box[3] - box[1], outline)


def _reaches_middle(lit: np.ndarray) -> np.ndarray:
    """bool [columns]: whether the lit part of each column reaches the middle of the lit height."""
    rows = np.flatnonzero(lit.any(axis=1))
    if not len(rows):
        return np.zeros(lit.shape[1], bool)
    top, height = int(rows[0]), int(rows[-1] - rows[0] + 1)
    first = lit.argmax(axis=0)
    last = lit.shape[0] - 1 - lit[::-1].argmax(axis=0)
    middle = (first <= top + 0.6 * height) & (last >= top + 0.4 * height)
    reaches: np.ndarray = lit.any(axis=0) & middle
    return reaches


def _edges(above: np.ndarray, lit: np.ndarray, first: int, last: int) -> tuple[float, float]:
    """Where the lit rows begin and end, in cells, to a fraction of a cell.

    A cell on the edge is as much darker than its inner neighbour as the border covers it.
    """
    return first + 1 - _cover(above, lit, first, 1), last + _cover(above, lit, last, -1)


def _cover(above: np.ndarray, lit: np.ndarray, row: int, inwards: int) -> float:
    """Which fraction of the cells of a row, in (0, 1], the picture covers."""
    if row in (0, len(lit) - 1) or not 0 <= row + 2 * inwards < len(lit):
        return 1.0
    on = lit[row]
    return float(np.median(np.minimum(above[row, on] / np.maximum(above[row + inwards, on], 1), 1)))


def _even_up(value: float) -> int:
    return 2 * round(value / 2 + 0.25)


def _even_down(value: float) -> int:
    return 2 * round(value / 2 - 0.25)


# -- pixels ---------------------------------------------------------------------------------------


def view_of_image(rgb: np.ndarray, profile: Profile, *, field: FieldOfView | None = None) -> View:
    """The view of a still image, masked as the profile says.

    Args:
        rgb: uint8 [H, W, 3].
        profile: what is burned in.
        field: where to look, if known; found in the image by default.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"image must be uint8 [H, W, 3], got {rgb.dtype} {list(rgb.shape)}")
    if field is None:
        field = find_field(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY))
    crop = rgb[field.y : field.y + field.height, field.x : field.x + field.width]
    image = _squash(crop)
    return _masked(image, field, _inside(field) & _clear_of(profile.boxes()))


def _squash(plane: np.ndarray) -> np.ndarray:
    """uint8 [256, 256] or [256, 256, C]: each pixel is the mean of the area that it stands for."""
    height, width = VIEW_SIZE
    rows, columns = plane.shape[:2]
    down, across = whole_steps((rows, columns))
    if down * across > 1:  # first by whole numbers, which is several times as quick
        rows, columns = rows // down, columns // across
        plane = plane[: rows * down, : columns * across]
        plane = cv2.resize(plane, (columns, rows), interpolation=cv2.INTER_AREA)
    shrinks = rows >= height and columns >= width
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(plane, (width, height), interpolation=interpolation)


def whole_steps(size: tuple[int, int]) -> tuple[int, int]:
    """By which whole numbers (down, across) a plane is shrunk before it is squashed."""
    return max(1, size[0] // (2 * VIEW_SIZE[0])), max(1, size[1] // (2 * VIEW_SIZE[1]))


def _clear_of(boxes: Iterable[Box]) -> np.ndarray:
    """bool [256, 256]: False in the boxes."""
    clear = np.ones(VIEW_SIZE, bool)
    for box in boxes:
        clear[_cells(box, VIEW_SIZE)] = False
    return clear


def _cells(box: Box, size: tuple[int, int]) -> tuple[slice, slice]:
    """The rows and columns of a grid that a box touches."""
    x0, y0, x1, y1 = box
    height, width = size
    return (
        slice(math.floor(y0 * height), math.ceil(y1 * height)),
        slice(math.floor(x0 * width), math.ceil(x1 * width)),
    )


_OUTLINE_MARGIN_PX = 3
"""Pixels of the view inside the outline that the border still bleeds into."""


def _inside(field: FieldOfView) -> np.ndarray:
    """bool [256, 256]: True inside the outline, `_OUTLINE_MARGIN_PX` away from it."""
    height, width = VIEW_SIZE
    scale = np.array([width / field.width, height / field.height])
    points = (field.outline - (field.x, field.y)) * scale - 0.5
    mask = np.zeros((height + 2, width + 2), np.uint8)
    shifted = np.round((points + 1) * 16).astype(np.int32)
    cv2.fillConvexPoly(mask, shifted, 1, lineType=cv2.LINE_8, shift=4)
    mask[0], mask[-1], mask[:, 0], mask[:, -1] = 0, 0, 0, 0
    eroded = cv2.erode(mask, ball(_OUTLINE_MARGIN_PX))
    return eroded[1:-1, 1:-1].astype(bool)


HIGHLIGHT_VALUE = 240
HIGHLIGHT_SPREAD = 40
"""A pixel of this value (brightest channel) and at most this spread of channels is burned out."""
GLINT_SIZE_PX = 11
GLINT_RISE = 50
GLINT_VALUE = 170
GLINT_WHITENESS = 0.6
"""Small reflections are dimmed by the squash. They still rise out of the tissue within so many
pixels by so much in their darkest channel, and are bright and whitish: the darkest channel is at
least this share of the brightest. Chosen by eye on normal training images, where lower rises or
less white begin to take the tissue between vessels."""
HIGHLIGHT_RIM_PX = 2


def highlights(image: np.ndarray) -> np.ndarray:
    """bool [256, 256]: True on reflections, and on a rim around them that glare bleeds into."""
    red, green, blue = cv2.split(image)
    brightest = cv2.max(cv2.max(red, green), blue)
    darkest = cv2.min(cv2.min(red, green), blue)
    burned = (brightest >= HIGHLIGHT_VALUE) & (brightest - darkest <= HIGHLIGHT_SPREAD)
    window = np.ones((GLINT_SIZE_PX, GLINT_SIZE_PX), np.uint8)
    rise = cv2.morphologyEx(darkest, cv2.MORPH_TOPHAT, window)
    whitish = darkest >= cv2.convertScaleAbs(brightest, alpha=GLINT_WHITENESS)
    glint = (rise > GLINT_RISE) & (brightest >= GLINT_VALUE) & whitish
    rim = cv2.dilate((burned | glint).astype(np.uint8), ball(HIGHLIGHT_RIM_PX))
    return rim.astype(bool)


def ball(radius_px: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius_px + 1, 2 * radius_px + 1))


def _masked(image: np.ndarray, field: FieldOfView, clear: np.ndarray) -> View:
    """The view of `image`, which is filled in place, from what is `clear` of border and overlay."""
    valid = clear & ~highlights(image)
    cv2.copyTo(_GREY, (~valid).view(np.uint8), image)
    return View(image, valid, field)


_LUMA_WEIGHTS = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}
"""Kr and Kb, the weights of red and blue in luma: ITU-R BT.601, BT.709 and BT.2020 (NCL)."""


def rgb_matrix(colour: Colour) -> np.ndarray:
    """float32 [3, 4] that takes (Y, U, V, 1) to (R, G, B), all in 0 to 255.

    R = Y + 2 (1 - Kr) Pr, B = Y + 2 (1 - Kb) Pb and Y = Kr R + Kg G + Kb B, with Y, Pb and Pr
    stretched from 16..235 and 16..240 where the range is limited.
    """
    kr, kb = _LUMA_WEIGHTS[colour.matrix]
    kg = 1 - kr - kb
    to_rgb = np.array(
        [
            (1, 0, 2 * (1 - kr)),
            (1, -2 * (1 - kb) * kb / kg, -2 * (1 - kr) * kr / kg),
            (1, 2 * (1 - kb), 0),
        ]
    )
    offset = np.array((0 if colour.full_range else 16, 128, 128))
    stretch = np.ones(3) if colour.full_range else np.array((255 / 219, 255 / 224, 255 / 224))
    matrix = to_rgb * stretch
    return np.column_stack([matrix, -matrix @ offset]).astype(np.float32)


def _image_of_frame(frame: Frame, field: FieldOfView) -> np.ndarray:
    """uint8 [256, 256, 3], RGB, of the field; full-size RGB is never made."""
    y = frame.y[field.y : field.y + field.height, field.x : field.x + field.width]
    rows = slice(field.y // 2, (field.y + field.height + 1) // 2)
    columns = slice(field.x // 2, (field.x + field.width + 1) // 2)
    planes = [_squash(y), _squash(frame.u[rows, columns]), _squash(frame.v[rows, columns])]
    return _rgb(cv2.merge(planes), frame.colour)


def rgb_of_frame(frame: Frame) -> np.ndarray:
    """uint8 [H, W, 3], RGB, in the frame's own size: to measure pictures, not to score them."""
    height, width = frame.size
    u, v = (
        cv2.resize(c, (width, height), interpolation=cv2.INTER_LINEAR) for c in (frame.u, frame.v)
    )
    return _rgb(cv2.merge([frame.y, u, v]), frame.colour)


def _rgb(yuv: np.ndarray, colour: Colour) -> np.ndarray:
    """uint8 [h, w, 3], RGB, of the planes uint8 [h, w, 3] of a frame of this colour."""
    rgb = cv2.transform(yuv.astype(np.float32), rgb_matrix(colour))
    return cv2.addWeighted(rgb, 1.0, rgb, 0.0, 0.0, dtype=cv2.CV_8U)  # rounds and clips


# -- streams --------------------------------------------------------------------------------------


_LOOK_EVERY_S = 0.1
"""How often a stream is looked at, for its field and its overlay: more tells no more."""


class ViewTracker:
    """Views of a stream, frame by frame; causal, deterministic, and of bounded state."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self._fields: FieldWatch | None = None
        self._overlay: OverlayWatch | None = None

    def update(self, frame: Frame) -> View:
        """The view of the next frame, in presentation order."""
        if self._fields is None or self._fields.size != frame.size:
            self._fields, self._overlay = FieldWatch(frame.size), None
        field = self._fields.update(
            frame.seconds, lambda: full_range(_shrink(frame.y)[0], frame.colour)
        )
        if self._overlay is None or field is not self._overlay.field:
            self._overlay = OverlayWatch(self.profile, field)
        image = _image_of_frame(frame, field)
        self._overlay.update(frame.seconds, lambda: green_grid(image))
        return _masked(image, field, self._overlay.clear)


_SETTLE_S = 1.0
"""For so long the field follows every growth: the first frames may be dark."""
_WINDOW_S = 2.0
"""The brightest of the last one to two windows is searched, so that a passing shadow is lit."""
_CHECK_EVERY_S = 0.5
_SAME_SHARE = 0.97
"""Fields that overlap by this much are the same: the one in use stays."""
_GROW_AFTER_S = 1.5
_SHRINK_AFTER_S = 3.0
"""For so long a field must look larger or smaller before it does become so."""


class FieldWatch:
    """The field of view of a stream of frames of one size, steady."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self._field: FieldOfView | None = None
        self._settled_s = 0.0
        self._windows: list[np.ndarray] = []  # brightest luma of the last window and of this one
        self._window_s = self._looked_s = self._checked_s = -math.inf
        self._other: FieldOfView | None = None
        self._other_since_s = 0.0

    def may_look_at(self, seconds: Sequence[float]) -> list[bool]:
        """Which of the next frames `update` looks at: those, and before there is a field all."""
        if self._field is None:
            return [True] * len(seconds)
        return _looks(seconds, self._looked_s)

    def update(self, now_s: float, look: Callable[[], np.ndarray]) -> FieldOfView:
        """The field to use for the next frame.

        Args:
            now_s: its presentation time.
            look: gives its luma when asked: uint8, area-averaged by `search_factor`, full range.
        """
        if now_s < self._looked_s:  # the stream was wound back
            self._window_s = self._looked_s = self._checked_s = -math.inf
            self._settled_s = self._other_since_s = now_s
        if now_s - self._looked_s < _LOOK_EVERY_S and self._field is not None:
            return self._field
        self._looked_s = now_s
        small = look()
        if now_s - self._window_s >= _WINDOW_S:
            self._windows = [*self._windows[-1:], small.copy()]
            self._window_s = now_s
        else:
            np.maximum(self._windows[-1], small, out=self._windows[-1])
        settling = self._field is None or now_s < self._settled_s
        if settling or now_s - self._checked_s >= _CHECK_EVERY_S:
            self._checked_s = now_s
            brightest = np.maximum(self._windows[0], self._windows[-1])
            found = _find_in(brightest, search_factor(self.size), self.size)
            if found is not None:
                self._consider(found, now_s)
        return self._field or whole_frame(self.size)

    def _consider(self, found: FieldOfView, now_s: float) -> None:
        if self._field is None:
            self._field, self._settled_s = found, now_s + _SETTLE_S
        elif alike(found, self._field):
            self._other = None
        elif now_s < self._settled_s:
            if _area(found) > _area(self._field):
                self._field = found
        elif self._other is None or not alike(found, self._other):
            self._other, self._other_since_s = found, now_s
        else:
            grows = _area(found) > _area(self._field)
            if now_s - self._other_since_s >= (_GROW_AFTER_S if grows else _SHRINK_AFTER_S):
                self._field, self._other = found, None


def _looks(seconds: Sequence[float], looked_s: float) -> list[bool]:
    """At which of these times a stream is looked at, that was last looked at at `looked_s`."""
    looks = []
    for now_s in seconds:
        looks.append(not 0 <= now_s - looked_s < _LOOK_EVERY_S)
        if looks[-1]:
            looked_s = now_s
    return looks


def full_range(luma: np.ndarray, colour: Colour) -> np.ndarray:
    """uint8 luma stretched from 16..235 to 0..255 where it is limited."""
    if colour.full_range:
        return luma
    table = np.clip(np.rint((np.arange(256) - 16) * (255 / 219)), 0, 255)
    return cv2.LUT(luma, table.astype(np.uint8))


def _area(field: FieldOfView) -> float:
    """Of the outline, in pixels."""
    return float(cv2.contourArea(field.outline))


def alike(one: FieldOfView, other: FieldOfView) -> bool:
    """Whether box and outline of two fields agree but for noise."""
    across = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
    down = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
    shared = max(across, 0) * max(down, 0)
    boxes = one.width * one.height + other.width * other.height - shared
    areas = sorted((_area(one), _area(other)))
    return shared >= _SAME_SHARE * boxes and areas[0] >= _SAME_SHARE * areas[1]


GRID = (128, 128)
"""Cells that the overlay is watched in; a stroke of text fills a good part of one."""
_SURROUNDINGS = 7
"""Cells across that a cell's detail is measured against."""
_DETAIL_CLIP = 8.0
"""Detail beyond this counts no more in telling motion: sharp text must not hide it."""
_MOVED_CORRELATION = 0.4
"""A view is another one when its detail correlates with the last one's by less than this. A scope
held still on a lesion must not teach that the lesion is overlay."""
_TOLD_VIEWS = 12
_TOLD_AFTER_S = 3.0
"""So many different views and seconds of motion tell what is overlay; until then the profile
does."""
_MEMORY_VIEWS = 30
"""Views after which the picture's mean and variance have forgotten two thirds."""
_LONGEST_STEP_S = 0.5
"""Two views farther apart count as no more motion than this."""
_TELL_EVERY_S = 1.0
_STILL_SHARE = 0.1
_STILL_LUMA = 2.0
"""A cell is still whose deviation over time is below this share of the usual, and below this."""
_DRAWN_LUMA = 8.0
_DRAWN_DEVIATIONS = 1.0
"""A cell is drawn on whose mean detail is above this, and above so many of its own deviations: the
detail of what moves washes out, as one over the root of the number of views."""
_KEEP_CHECKS = 3
"""Overlay is forgotten when so many checks have not seen it."""
_LARGEST_HOLE_SHARE = 0.1
"""Of the grid: a larger gap in the overlay is the picture."""
_PROFILE_SHARE = 0.05
"""A region of the profile stays masked where at least this share of it looks like overlay."""


class OverlayWatch:
    """What is clear of border, text and insets in one field of view of a stream."""

    def __init__(self, profile: Profile, field: FieldOfView) -> None:
        self.field = field
        self.told = False
        """Whether the stream has moved enough to tell; the profile is what counts until then."""
        self._profile = profile
        self._inside = _inside(field)
        self.clear = self._inside & _clear_of(profile.boxes())
        """bool [256, 256]."""
        self._watched = cv2.resize(
            self._inside.astype(np.float32), GRID[::-1], interpolation=cv2.INTER_NEAREST_EXACT
        )
        self._surroundings = np.maximum(_blur(self._watched), 1e-6)
        self._looked_s = self._moved_s = self._told_s = -math.inf
        self._detail: np.ndarray | None = None
        self._views = 0
        self._moving_s = 0.0
        self._value = _Moments()
        self._details = _Moments()
        self._seen = np.zeros(GRID, np.uint8)  # checks until forgotten

    def looks_at(self, seconds: Sequence[float]) -> list[bool]:
        """Which of the next frames `update` looks at."""
        return _looks(seconds, self._looked_s)

    def update(self, now_s: float, look: Callable[[], np.ndarray]) -> None:
        """Takes in the next frame.

        Args:
            now_s: its presentation time.
            look: gives `green_grid` of its view, not yet masked, when asked.
        """
        if 0 <= now_s - self._looked_s < _LOOK_EVERY_S:
            return
        self._looked_s = now_s
        value = look() * self._watched
        detail = (value - _blur(value) / self._surroundings) * self._watched
        if self._detail is not None and _correlation(detail, self._detail) > _MOVED_CORRELATION:
            return
        self._detail = detail
        self._views += 1
        self._moving_s += min(max(now_s - self._moved_s, 0.0), _LONGEST_STEP_S)
        self._moved_s = now_s
        self._value.add(value)
        self._details.add(detail)
        if self._views >= _TOLD_VIEWS and self._moving_s >= _TOLD_AFTER_S:
            self._tell(now_s)

    def _tell(self, now_s: float) -> None:
        if 0 <= now_s - self._told_s < _TELL_EVERY_S:
            return
        self._told_s, self.told = now_s, True
        _, deviation = self._value.mean_and_deviation()
        usual = float(np.median(deviation[self._watched > 0]))
        still = deviation < min(_STILL_LUMA, _STILL_SHARE * usual)
        detail, deviation = self._details.mean_and_deviation()
        drawn = np.abs(detail) > np.maximum(_DRAWN_LUMA, _DRAWN_DEVIATIONS * deviation)
        found = (still | drawn) & (self._watched > 0)
        self._seen = np.where(found, _KEEP_CHECKS, np.maximum(self._seen, 1) - 1)
        overlay = cv2.dilate((self._seen > 0).astype(np.uint8), np.ones((3, 3), np.uint8))
        overlay = without_holes(overlay)
        kept = [box for box in self._profile.boxes() if self._share(overlay, box) > _PROFILE_SHARE]
        height, width = VIEW_SIZE
        burned_in = cv2.resize(overlay, (width, height), interpolation=cv2.INTER_NEAREST)
        self.clear = self._inside & _clear_of(kept) & (burned_in == 0)

    def _share(self, overlay: np.ndarray, box: Box) -> float:
        """How much of the box, as far as it is inside the outline, is overlay."""
        cells = _cells(box, GRID)
        watched = self._watched[cells] > 0
        return float(overlay[cells][watched].mean()) if watched.any() else 1.0


def green_grid(image: np.ndarray) -> np.ndarray:
    """uint8 [128, 128]: the green of a view, uint8 [256, 256, 3], in the cells of the watch."""
    return cv2.resize(image[..., 1], GRID[::-1], interpolation=cv2.INTER_AREA)


def without_holes(overlay: np.ndarray) -> np.ndarray:
    """uint8 [h, w]: what moves inside an inset is inset."""
    contours, tree = cv2.findContours(overlay, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if tree is None:
        return overlay
    holes = [
        contour
        for contour, (_, _, _, parent) in zip(contours, tree.reshape(-1, 4), strict=True)
        if parent >= 0 and cv2.contourArea(contour) < _LARGEST_HOLE_SHARE * overlay.size
    ]
    return cv2.drawContours(overlay, holes, -1, 1, cv2.FILLED)


class _Moments:
    """Running mean and deviation of a grid of cells, forgetting."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._sum = np.zeros(GRID, np.float32)
        self._sum_of_squares = np.zeros(GRID, np.float32)

    def add(self, value: np.ndarray) -> None:
        keep = math.exp(-1 / _MEMORY_VIEWS)
        self._weight = keep * self._weight + 1
        self._sum = keep * self._sum + value
        self._sum_of_squares = keep * self._sum_of_squares + value * value

    def mean_and_deviation(self) -> tuple[np.ndarray, np.ndarray]:
        mean = self._sum / self._weight
        variance = self._sum_of_squares / self._weight - mean * mean
        return mean, np.sqrt(np.maximum(variance, 0))


def _blur(value: np.ndarray) -> np.ndarray:
    return cv2.blur(value, (_SURROUNDINGS, _SURROUNDINGS), borderType=cv2.BORDER_CONSTANT)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Of the detail of two views, clipped; 1 where neither has any."""
    one, other = (np.clip(detail, -_DETAIL_CLIP, _DETAIL_CLIP) for detail in (one, other))
    energy = float((one * one).sum()) * float((other * other).sum())
    return float((one * other).sum()) / math.sqrt(energy) if energy > 0 else 1.0


# -- and back -------------------------------------------------------------------------------------


def map_to_image(
    anomaly_map: np.ndarray,
    field: FieldOfView,
    size: tuple[int, int],
    valid: np.ndarray | None = None,
) -> np.ndarray:
    """An anomaly map laid over its frame, bilinear.

    Args:
        anomaly_map: float32 [h, w] over the field's box; NaN cells stay NaN and do not bleed.
        field: where the map belongs.
        size: (H, W) of the frame.
        valid: bool [256, 256], the view's mask; where it is False the result is NaN.

    Returns:
        float32 [H, W]; NaN outside the field's outline.
    """
    known = np.isfinite(anomaly_map)
    target = (field.width, field.height)
    total = cv2.resize(
        np.where(known, anomaly_map, 0).astype(np.float32), target, interpolation=cv2.INTER_LINEAR
    )
    weight = cv2.resize(known.astype(np.float32), target, interpolation=cv2.INTER_LINEAR)
    shown = _nearest(known, target)
    if valid is not None:
        shown &= _nearest(valid, target)
    inside = np.zeros(size, np.uint8)
    cv2.fillConvexPoly(inside, field.outline, 1)
    box = (slice(field.y, field.y + field.height), slice(field.x, field.x + field.width))
    shown &= inside[box].astype(bool)
    image = np.full(size, np.nan, np.float32)
    np.divide(total, weight, out=image[box], where=shown)
    return image


def mask_to_view(mask: np.ndarray, field: FieldOfView) -> np.ndarray:
    """bool [256, 256]: a mask of the frame, bool [H, W], as the view sees it (nearest)."""
    crop = mask[field.y : field.y + field.height, field.x : field.x + field.width]
    return _nearest(crop, (VIEW_SIZE[1], VIEW_SIZE[0]))


def _nearest(mask: np.ndarray, target: tuple[int, int]) -> np.ndarray:
    """bool, resized to (width, height); centres of pixels on centres of pixels."""
    resized = cv2.resize(mask.astype(np.uint8), target, interpolation=cv2.INTER_NEAREST_EXACT)
    return resized.astype(bool)
