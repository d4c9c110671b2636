"""Painting on the planes of a YUV 4:2:0 picture, in whole numbers.

`Canvas` collects colours over a rectangle and becomes a `Layer`; `Levels` is one whose colours come
from a ramp, `Dots` one for few pixels spread far apart. All blend as

    pixel <- (pixel keep + add) / 256,    keep = 256 (1 - opacity),   add = 256 opacity colour

rounded, in 16 bits. Where the opacity is 0 that is the identity, so what is not painted on keeps
its value exactly. Colours come in as RGB; nothing is converted to RGB and back.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ccdstream.frames import Colour, Matrix

Rgb = tuple[int, int, int]

Box = tuple[int, int, int, int]
"""(top, left, height, width), in frame pixels."""

LUMA_WEIGHTS: dict[Matrix, tuple[float, float]] = {
    "bt601": (0.299, 0.114),
    "bt709": (0.2126, 0.0722),
    "bt2020": (0.2627, 0.0593),
}
"""Weights of red and blue in luma; ITU-R BT.601, BT.709, BT.2020 (non-constant luminance)."""

BAND = 32

ROUND = 128
"""Half of 256: makes the shift of the blend round."""


def yuv_of(rgb: np.ndarray, colour: Colour) -> np.ndarray:
    """RGB colours as the planes of a stream hold them.

    Args:
        rgb: [..., 3], in [0, 255].
        colour: matrix and range of the stream.

    Returns:
        float32 [..., 3]: Y, U, V on the scale of 8 bits.
    """
    values = np.asarray(rgb, np.float64) / 255.0
    red_weight, blue_weight = LUMA_WEIGHTS[colour.matrix]
    red, green, blue = values[..., 0], values[..., 1], values[..., 2]
    luma = red_weight * red + (1 - red_weight - blue_weight) * green + blue_weight * blue
    u = (blue - luma) / (2 * (1 - blue_weight))
    v = (red - luma) / (2 * (1 - red_weight))
    zero, luma_span, chroma_span = (0, 255, 255) if colour.full_range else (16, 219, 224)
    return np.stack(
        [zero + luma_span * luma, 128 + chroma_span * u, 128 + chroma_span * v], axis=-1
    ).astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Marks:
    """Which pixels of the planes may have been painted on."""

    luma: np.ndarray
    """bool [H, W], for Y."""
    chroma: np.ndarray
    """bool [ceil(H / 2), ceil(W / 2)], for U and V."""


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """Colour over a rectangle of each plane. Its corner has even coordinates."""

    top: int
    left: int
    luma: tuple[np.ndarray, np.ndarray]
    """keep and add, uint16 [h, w]."""
    chroma: tuple[np.ndarray, np.ndarray, np.ndarray]
    """keep, add for U and add for V, uint16 [h / 2, w / 2]."""

    def blend(self, y: np.ndarray, u: np.ndarray, v: np.ndarray) -> None:
        """Paint on the three planes, in place."""
        keep, add_y = self.luma
        _blend(y[self._at(keep, 1)], keep, add_y)
        keep, add_u, add_v = self.chroma
        _blend(u[self._at(keep, 2)], keep, add_u)
        _blend(v[self._at(keep, 2)], keep, add_v)

    def mark(self, marks: Marks) -> None:
        """Add the pixels of this layer that are not clear."""
        keep = self.luma[0]
        marks.luma[self._at(keep, 1)] |= keep < 256
        keep = self.chroma[0]
        marks.chroma[self._at(keep, 2)] |= keep < 256

    def _at(self, plane: np.ndarray, step: int) -> tuple[slice, slice]:
        top, left = self.top // step, self.left // step
        return slice(top, top + plane.shape[0]), slice(left, left + plane.shape[1])


@dataclass(frozen=True, slots=True, eq=False)
class Dots:
    """One colour on single pixels of each plane, given by their index in the flat plane."""

    luma: tuple[np.ndarray, np.ndarray, np.ndarray]
    """index, keep and add, [n]."""
    chroma: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    """index, keep, add for U and add for V, [m]."""

    def blend(self, y: np.ndarray, u: np.ndarray, v: np.ndarray) -> None:
        """Paint on the three planes, in place. They must be contiguous."""
        index, keep, add_y = self.luma
        _blend_at(y.reshape(-1), index, keep, add_y)
        index, keep, add_u, add_v = self.chroma
        _blend_at(u.reshape(-1), index, keep, add_u)
        _blend_at(v.reshape(-1), index, keep, add_v)

    def mark(self, marks: Marks) -> None:
        """Add the pixels of these dots."""
        marks.luma.reshape(-1)[self.luma[0]] = True
        marks.chroma.reshape(-1)[self.chroma[0]] = True


@dataclass(frozen=True, slots=True, eq=False)
class Levels:
    """Colours of a ramp over a rectangle of each plane. Its corner has even coordinates.

    Blended in bands of `BAND` rows: temporary arrays as large as the frame cost more than the sums.
    """

    top: int
    left: int
    luma: np.ndarray
    """uint8 [h, w], place in the ramp; 0 is clear."""
    chroma: np.ndarray
    """uint8 [h / 2, w / 2]."""
    luma_ramp: tuple[np.ndarray, ...]
    """keep and add, uint16 [256]."""
    chroma_ramp: tuple[np.ndarray, ...]
    """keep, add for U and add for V, uint16 [256]."""

    def blend(self, y: np.ndarray, u: np.ndarray, v: np.ndarray) -> None:
        """Paint on the three planes, in place."""
        self._blend(self.luma, self.top, self.left, self.luma_ramp, [y])
        self._blend(self.chroma, self.top // 2, self.left // 2, self.chroma_ramp, [u, v])

    def mark(self, marks: Marks) -> None:
        """Add the pixels that are not clear."""
        for levels, step, ramp, marked in (
            (self.luma, 1, self.luma_ramp, marks.luma),
            (self.chroma, 2, self.chroma_ramp, marks.chroma),
        ):
            top, left = self.top // step, self.left // step
            part = marked[top : top + levels.shape[0], left : left + levels.shape[1]]
            part |= cv2.LUT(levels, ramp[0]) < 256

    @staticmethod
    def _blend(
        levels: np.ndarray,
        top: int,
        left: int,
        ramp: tuple[np.ndarray, ...],
        planes: list[np.ndarray],
    ) -> None:
        for row in range(0, levels.shape[0], BAND):
            band = levels[row : row + BAND]
            used = np.flatnonzero(band.any(axis=0))
            if not len(used):
                continue
            band = np.ascontiguousarray(band[:, used[0] : used[-1] + 1])
            keep = cv2.LUT(band, ramp[0])
            rows = slice(top + row, top + row + band.shape[0])
            columns = slice(left + used[0], left + used[-1] + 1)
            for plane, add in zip(planes, ramp[1:], strict=True):
                _blend(plane[rows, columns], keep, cv2.LUT(band, add))


Mark = Layer | Levels | Dots
"""What blends into the planes of a frame."""


class Canvas:
    """A rectangle of a frame to paint on, first to last. What lies outside the frame is cut off."""

    def __init__(self, size: tuple[int, int], box: Box) -> None:
        """
        Args:
            size: (height, width) of the frame.
            box: what is to be painted on; widened to even coordinates.
        """
        top, left, height, width = box
        bottom, right = min(top + height, size[0]), min(left + width, size[1])
        self._top, self._left = max(top, 0) // 2 * 2, max(left, 0) // 2 * 2
        shape = (_even(max(bottom - self._top, 0)), _even(max(right - self._left, 0)))
        self._size = size
        self.box = box
        self._opacity = np.zeros(shape, np.float32)
        self._painted = np.zeros((3, *shape), np.float32)  # Y, U, V times opacity

    def copy(self) -> "Canvas":
        """Another canvas with the same paint on it."""
        twin = Canvas(self._size, self.box)
        twin._opacity = self._opacity.copy()
        twin._painted = self._painted.copy()
        return twin

    def paint(self, mask: np.ndarray, top: int, left: int, yuv: np.ndarray) -> None:
        """Lay a colour over what is there.

        Args:
            mask: float32 [h, w], opacity in [0, 1].
            top, left: where its corner lies, in frame pixels.
            yuv: float32 [3].
        """
        y0, x0 = top - self._top, left - self._left
        y1 = min(y0 + mask.shape[0], self._opacity.shape[0], self._size[0] - self._top)
        x1 = min(x0 + mask.shape[1], self._opacity.shape[1], self._size[1] - self._left)
        cut_y, cut_x = max(-y0, 0), max(-x0, 0)
        y0, x0 = y0 + cut_y, x0 + cut_x
        if y0 >= y1 or x0 >= x1:
            return
        mask = mask[cut_y : cut_y + y1 - y0, cut_x : cut_x + x1 - x0]
        clear = 1.0 - mask
        opacity = self._opacity[y0:y1, x0:x1]
        opacity *= clear
        opacity += mask
        for plane, value in zip(self._painted, yuv.tolist(), strict=True):
            part = plane[y0:y1, x0:x1]
            part *= clear
            part += mask * value

    def fill(self, box: Box, yuv: np.ndarray, opacity: float) -> None:
        """Lay a colour over a rectangle in frame pixels."""
        top, left, height, width = box
        if height > 0 and width > 0:
            self.paint(np.full((height, width), opacity, np.float32), top, left, yuv)

    def layer(self) -> Layer:
        """What was painted so far, ready to blend."""
        height = min(self._opacity.shape[0], self._size[0] - self._top)
        width = min(self._opacity.shape[1], self._size[1] - self._left)
        keep, add_y = whole_numbers(self._opacity, self._painted[:1])
        half = (self._opacity.shape[1] // 2, self._opacity.shape[0] // 2)
        if 0 in half:
            empty = np.zeros((0, 0), np.uint16)
            return Layer(0, 0, (empty, empty), (empty, empty, empty))
        opacity, u, v = (
            cv2.resize(plane, half, interpolation=cv2.INTER_AREA)
            for plane in (self._opacity, self._painted[1], self._painted[2])
        )
        keep_half, add_u, add_v = whole_numbers(opacity, [u, v])
        return Layer(
            self._top,
            self._left,
            (keep[:height, :width], add_y[:height, :width]),
            (keep_half, add_u, add_v),
        )


def whole_numbers(
    opacity: np.ndarray, painted: np.ndarray | list[np.ndarray]
) -> tuple[np.ndarray, ...]:
    """keep, and an add for each plane of colour times opacity; uint16, same shape."""
    keep = np.rint(256.0 * (1.0 - opacity)).astype(np.int32)
    # Bounded: saturated blue is 255.5 in full range, and the blend must stay in 16 bits.
    most = (256 - keep) * 255
    adds = (
        (np.clip(np.rint(256.0 * plane), 0, most) + ROUND).astype(np.uint16) for plane in painted
    )
    return keep.astype(np.uint16), *adds


def dots_of(
    mask: np.ndarray,
    top: int,
    left: int,
    size: tuple[int, int],
    yuv: np.ndarray,
    opacity: float,
) -> Dots:
    """Dots where a mask is not zero.

    Args:
        mask: uint8 [h, w], 255 for all of `opacity`.
        top, left: where its corner lies in the frame; all of it lies inside.
        size: (height, width) of the frame.
        yuv: float32 [3].
        opacity: in [0, 1].
    """
    rows, columns = np.divmod(np.flatnonzero(mask != 0), mask.shape[1])
    alpha = mask[rows, columns].astype(np.float32) * (opacity / 255)
    rows, columns = rows + top, columns + left
    keep, add_y = whole_numbers(alpha, [alpha * yuv[0]])
    # Chroma takes the mean of its four pixels; only cells with ink are worth adding up.
    cell = (rows // 2) * ((size[1] + 1) // 2) + columns // 2
    cells, place = np.unique(cell, return_inverse=True)
    mean = np.bincount(place, weights=alpha, minlength=len(cells)) / 4
    keep_half, add_u, add_v = whole_numbers(mean, [mean * yuv[1], mean * yuv[2]])
    return Dots((rows * size[1] + columns, keep, add_y), (cells, keep_half, add_u, add_v))


@lru_cache(maxsize=256)
def text_mask(text: str, height_px: int) -> np.ndarray:
    """The text as opacity, float32 [h, w] in [0, 1].

    Capitals stand in the middle of `height_px`; what hangs below the line takes a quarter more.
    """
    font = _font(height_px)
    left, _, right, _ = font.getbbox(text)
    picture = Image.new("L", (max(round(right - left) + 1, 1), math.ceil(height_px * 1.25)))
    ImageDraw.Draw(picture).text((-left, round(height_px * 0.86)), text, 255, font, anchor="ls")
    return np.asarray(picture, np.float32) / 255.0


def number_mask(text: str, height_px: int) -> np.ndarray:
    """Like `text_mask` for changing numbers, character by character, so that nothing jumps.

    The digits of this font share one width.
    """
    return np.hstack([_cell(char, height_px) for char in text])


@lru_cache(maxsize=256)
def _cell(char: str, height_px: int) -> np.ndarray:
    """One character in a cell of its own advance."""
    font = _font(height_px)
    width = max(1, round(font.getlength(char)))
    picture = Image.new("L", (width, height_px))
    at = ((width - font.getlength(char)) / 2, round(height_px * 0.86))
    ImageDraw.Draw(picture).text(at, char, 255, font, anchor="ls")
    return np.asarray(picture, np.float32) / 255.0


@lru_cache(maxsize=16)
def _font(height_px: int) -> ImageFont.FreeTypeFont:
    """Aileron, which comes with Pillow, so that every machine draws the same letters."""
    font = ImageFont.load_default(height_px)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("this Pillow was built without FreeType; install it from a wheel")
    return font


def _blend(pixels: np.ndarray, keep: np.ndarray, add: np.ndarray) -> None:
    mixed = pixels * keep
    mixed += add
    mixed >>= 8
    pixels[...] = mixed


def _blend_at(pixels: np.ndarray, index: np.ndarray, keep: np.ndarray, add: np.ndarray) -> None:
    pixels[index] = (pixels[index] * keep + add) >> 8


def _even(length: int) -> int:
    return (length + 1) // 2 * 2
