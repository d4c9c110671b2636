"""Frame + what is known of it -> the same frame with the overlay's marks.

In: a `Frame`, where its field of view lies, its `Fused` scores and the alert state. Out: a new
`Frame` with the same pts. Marks are blended into the YUV planes; a pixel without a mark keeps its
value exactly.

The marks: a heatmap, clear where nothing is unusual; the outline of the field of view in use; a
label with state, time and score; a score bar; a time line at the foot; and what this is not for.
They say "unusual against normal training frames", which is all that the model can know.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from ccdstream.frames import Colour, FieldOfView, Frame, Fused
from ccdstream.history import STATES, History, on_scale, score_text
from ccdstream.paint import (
    Box,
    Canvas,
    Dots,
    Layer,
    Levels,
    Mark,
    Marks,
    Rgb,
    dots_of,
    number_mask,
    text_mask,
    whole_numbers,
    yuv_of,
)
from ccdstream.quality import FLAGS, gravest
from ccdstream.timecode import timecode

RESEARCH_TEXT = "Research use only - not a medical device"
LEGEND_TEXT = "Colour: unusual against normal training frames"

STATE_COLOURS: dict[str, Rgb] = {
    "UNCLEAR": (134, 140, 146),
    "NORMAL": (140, 178, 200),
    "WATCH": (255, 196, 64),
    "ALERT": (255, 84, 84),
}
LATE_COLOUR: Rgb = (196, 120, 255)
"""Of the label on a live frame that was not analysed in time."""
LATE_TEXT = "no result in time"
WHITE: Rgb = (236, 240, 243)
BLACK: Rgb = (10, 12, 14)

HEAT_FROM = 0.98
"""Calibrated heat where colour begins: of normal pixels, one in fifty is as unusual."""
HEAT_FULL = 0.9998
"""Calibrated heat that has the full colour."""
HEAT_RAMP: tuple[tuple[float, Rgb], ...] = (
    (0.0, (60, 70, 225)),
    (0.35, (0, 140, 240)),
    (0.7, (0, 220, 200)),
    (1.0, (140, 255, 110)),
)
"""From rare to rarest, and lighter with it, so that it reads without colour vision too. Blue, cyan,
green: hues that mucosa, blood and stool do not have; chosen by looking, on real frames."""
HEAT_LUMA_OPACITY = 0.32
"""At the top of the ramp; low, for luma holds the vessels and pits that a reader looks for."""
HEAT_CHROMA_OPACITY = 0.66
HEAT_GRID = 4
"""Points per map cell and axis on which the heat is smoothed, before it is scaled to the frame."""
CONTOUR_AT = 0.998
"""Calibrated heat along which a thin line runs."""
CONTOUR_OPACITY = 0.55

PANEL_OPACITY = 0.55
SMALLEST_TEXT_PX = 9
"""Text that ought to be smaller is drawn at this size where it fits, else left out."""


class Overlay:
    """Draws the marks on the frames of one stream, in presentation order."""

    def __init__(
        self,
        size: tuple[int, int],
        colour: Colour,
        *,
        enter: float,
        start_s: float = 0.0,
        duration_s: float | None = None,
    ) -> None:
        """
        Args:
            size: (height, width) of every frame.
            colour: how its planes mean colour.
            enter: smoothed score at which alerts open; marked on the scales.
            start_s: stream time at the left end of the time line.
            duration_s: stream time that it spans; None lets it rescale as the video grows.
        """
        self._size = size
        self._yuv = {rgb: yuv_of(np.array(rgb), colour) for rgb in (*STATE_COLOURS.values(), WHITE)}
        self._yuv |= {rgb: yuv_of(np.array(rgb), colour) for rgb in (BLACK, LATE_COLOUR)}
        self._enter = _height(enter)
        self._layout = _layout(size)
        self._history = History(self._layout.graph[3], start_s=start_s, span_s=duration_s)
        self._heat = _HeatPainter(size, colour)
        self._outline = _OutlinePainter(size, self._layout.line_px, self._yuv)
        self._foot = self._empty_foot()
        self._drawn_line: tuple[object, Layer] | None = None  # of which history, and the time line
        self._layers: list[Mark] = []

    def draw(
        self, frame: Frame, field: FieldOfView, fused: Fused, state: str, seconds: float
    ) -> Frame:
        """The frame with its marks.

        Args:
            frame: of the size given to the overlay; left as it is.
            field: where the field of view lies in it.
            fused: its scores. Of an uninformative frame no heat is drawn, and no score shown.
            state: NORMAL, WATCH, ALERT or UNCLEAR.
            seconds: presentation time to show.
        """
        if frame.size != self._size:
            raise ValueError(f"expected a frame of size {self._size}, got {frame.size}")
        return _blended(frame, self.layers(field, fused, state, seconds))

    def draw_late(self, frame: Frame, seconds: float) -> Frame:
        """A live frame whose analysis did not come in time: no heat, no outline, no score, and a
        label that says so. The time line stays as it was."""
        if frame.size != self._size:
            raise ValueError(f"expected a frame of size {self._size}, got {frame.size}")
        layers: list[Mark] = []
        if self._layout.label is not None:
            note = text_mask(LATE_TEXT, self._layout.text_px)
            top, left, height, width = self._layout.label
            wide = max(width, min(note.shape[1] + 4 * self._layout.pad_px, self._size[1] - left))
            colour = self._yuv[LATE_COLOUR]
            box = (top, left, height, wide)
            layers.append(self._label(box, "LAG", colour, True, seconds, note))
        layers += [self._bar(None, ""), self._time_line()]
        self._layers = layers
        return _blended(frame, layers)

    def note(self, fused: Fused, state: str, seconds: float) -> None:
        """Enter a frame that is not drawn into the time line."""
        self._history.add(seconds, fused.smoothed, state)

    def layers(self, field: FieldOfView, fused: Fused, state: str, seconds: float) -> list[Mark]:
        """What `draw` blends into the next frame, first to last; for whoever blends elsewhere."""
        if state not in STATES:
            raise ValueError(f"state must be one of {', '.join(STATES)}, got {state!r}")
        self._history.add(seconds, fused.smoothed, state)
        layers: list[Mark] = []
        if fused.informative:
            layers += self._heat.layers(fused.heat, field, self._outline.inside(field))
        layers.append(self._outline.dots(field, state))
        if self._layout.label is not None:
            loud = state in ("WATCH", "ALERT")
            worth = self._worth(fused)
            label = self._label(self._layout.label, state, self._state(state), loud, seconds, worth)
            layers.append(label)
        layers.append(self._bar(fused, state))
        layers.append(self._time_line())
        self._layers = layers
        return layers

    def marks(self) -> Marks:
        """Which pixels the last `layers` may change; all others are bit for bit the input's."""
        height, width = self._size
        marks = Marks(
            np.zeros((height, width), bool),
            np.zeros(((height + 1) // 2, (width + 1) // 2), bool),
        )
        for layer in self._layers:
            layer.mark(marks)
        return marks

    def _worth(self, fused: Fused) -> np.ndarray:
        """The score as a text mask, or why there is none."""
        if not fused.informative:
            return text_mask(gravest(fused.quality).replace("_", " "), self._layout.text_px)
        return number_mask(f"score {score_text(fused.smoothed)}", self._layout.text_px)

    def _label(
        self,
        box: Box,
        head: str,
        colour: np.ndarray,
        loud: bool,
        seconds: float,
        last: np.ndarray,
    ) -> Layer:
        """State, time, and a last line."""
        pad, text_px, head_px = self._layout.pad_px, self._layout.text_px, self._layout.head_px
        top, left, height, width = box
        head_height = head_px + 2 * pad
        canvas = Canvas(self._size, box)
        over = (top, left, head_height, width)
        canvas.fill(over, self._yuv[BLACK], 0.75)  # it may lie on white
        canvas.fill(over, colour, 0.92 if loud else 0.6)
        rest = (top + head_height, left, height - head_height, width)
        canvas.fill(rest, self._yuv[BLACK], PANEL_OPACITY)
        time = number_mask(timecode(seconds)[:-1], text_px)
        below, inset = top + head_height + pad, left + 2 * pad
        ink = self._yuv[BLACK if loud else WHITE]
        canvas.paint(text_mask(head, head_px), top + pad, inset, ink)
        canvas.paint(time, below, inset, self._yuv[WHITE])
        canvas.paint(last, below + text_px + pad, inset, self._yuv[WHITE])
        return canvas.layer()

    def _bar(self, fused: Fused | None, state: str) -> Layer:
        """The smoothed score, upright, with a notch where alerts open; empty where it is stale, or
        there is none."""
        top, left, height, width = self._layout.bar
        line = self._layout.line_px
        canvas = Canvas(self._size, self._layout.bar)
        canvas.fill(self._layout.bar, self._yuv[BLACK], PANEL_OPACITY)
        room = max(height - 2 * line, 1)
        if fused is not None and fused.informative:
            full = round(room * _height(fused.smoothed))
            inner = (top + line + room - full, left + line, full, max(width - 2 * line, 1))
            canvas.fill(inner, self._state(state), 0.9)
        notch = top + line + round(room * (1 - self._enter))
        canvas.fill((notch, left, line, width), self._yuv[WHITE], 0.95)
        return canvas.layer()

    def _time_line(self) -> Layer:
        """Score against time so far, coloured by state, below the words; kept while it is the same.

        A column stands for a second or more of most recordings.
        """
        history = self._history
        shown = (history.now, history.score.tobytes(), history.state.tobytes())
        if self._drawn_line is None or self._drawn_line[0] != shown:
            self._drawn_line = shown, self._new_time_line()
        return self._drawn_line[1]

    def _new_time_line(self) -> Layer:
        top, left, height, width = self._layout.graph
        line = self._layout.line_px
        canvas = self._foot.copy()
        state = self._history.state
        # an unclear frame has no score of its own: a stub says that time passed
        share = np.where(state == 0, 0.2, on_scale(self._history.score))
        tall = np.where(state >= 0, np.maximum(np.rint(share * height), 1), 0)  # [width]
        filled = height - np.arange(height)[:, None] <= tall  # [height, width]
        for number, name in enumerate(STATES):
            of_state = state == number
            if of_state.any():
                mask = (filled & of_state).astype(np.float32) * 0.9
                canvas.paint(mask, top, left, self._state(name))
        enter = top + height - 1 - round(self._enter * (height - 1))
        canvas.fill((enter, left, 1, width), self._yuv[WHITE], 0.45)
        cursor = left + min(self._history.now, width - line)
        canvas.fill((top, cursor, height, line), self._yuv[WHITE], 0.95)
        return canvas.layer()

    def _empty_foot(self) -> Canvas:
        """What of the time line is the same on every frame."""
        canvas = Canvas(self._size, self._layout.foot)
        canvas.fill(self._layout.foot, self._yuv[BLACK], PANEL_OPACITY)
        for mask, top, left in self._layout.words:
            canvas.paint(mask * 0.85, top, left, self._yuv[WHITE])
        top, left, height, width = self._layout.graph
        canvas.fill((top + height - 1, left, 1, width), self._yuv[WHITE], 0.25)
        return canvas

    def _state(self, state: str) -> np.ndarray:
        return self._yuv[STATE_COLOURS[state]]


def with_heat(frame: Frame, field: FieldOfView, heat: np.ndarray) -> Frame:
    """The frame with its heatmap and nothing else, for a still picture.

    Args:
        frame: left as it is.
        field: where the field of view lies in it.
        heat: float32 [h, w] over the field of view, calibrated; NaN where invalid.
    """
    yuv = {rgb: yuv_of(np.array(rgb), frame.colour) for rgb in STATE_COLOURS.values()}
    inside = _OutlinePainter(frame.size, 1, yuv).inside(field)
    return _blended(frame, _HeatPainter(frame.size, frame.colour).layers(heat, field, inside))


def _blended(frame: Frame, layers: Sequence[Mark]) -> Frame:
    """A copy of the frame with the layers on it."""
    y, u, v = frame.y.copy(), frame.u.copy(), frame.v.copy()
    for layer in layers:
        layer.blend(y, u, v)
    return replace(frame, y=y, u=u, v=v)


@dataclass(frozen=True, slots=True, eq=False)
class _Layout:
    """Where the marks go: the same place on every frame, since an eye learns places."""

    line_px: int
    pad_px: int
    head_px: int
    text_px: int
    label: Box | None
    """None where the frame is too small for it."""
    bar: Box
    foot: Box
    graph: Box
    """The time line inside the foot: a column a pixel."""
    words: tuple[tuple[np.ndarray, int, int], ...]
    """(mask, top, left) of the texts in the foot; none where they do not fit."""


def _layout(size: tuple[int, int]) -> _Layout:
    """Everything in proportion to a 720x576 frame; the corners are where scopes leave black."""
    height, width = size
    unit = min(height / 576, width / 720)
    line, pad, margin = max(1, round(1.5 * unit)), max(2, round(4 * unit)), round(8 * unit)
    head_px = max(SMALLEST_TEXT_PX, round(18 * unit))
    text_px = max(SMALLEST_TEXT_PX, round(15 * unit))
    small_px = max(SMALLEST_TEXT_PX, round(12 * unit))

    lines = [number_mask("00:00:00.00", text_px)]
    lines += [text_mask(flag.replace("_", " "), text_px) for flag in FLAGS]
    label_width = max(mask.shape[1] for mask in lines) + 4 * pad
    label: Box = (margin, margin, head_px + 2 * text_px + 5 * pad, label_width)
    label_fits = label[2] <= 0.4 * height and label[3] <= 0.5 * width

    inner = max(width - 2 * margin, 1)
    texts = [text_mask(text, small_px) for text in (RESEARCH_TEXT, LEGEND_TEXT)]
    while texts and sum(text.shape[1] + 4 * pad for text in texts) > inner:
        texts.pop()
    if height < 10 * small_px:
        texts = []
    graph_height = max(3, round(20 * unit))
    row = texts[0].shape[0] if texts else 0
    foot_height = graph_height + (row + 2 * pad if texts else 0)
    foot_top = height - margin - foot_height
    side = pad if texts else 0
    graph = (
        foot_top + (pad + row if texts else 0),
        margin + side,
        graph_height,
        max(inner - 2 * side, 1),
    )
    at_left, at_right = margin + pad, margin + inner - pad
    words = tuple(
        (text, foot_top + pad, at_right - text.shape[1] if number else at_left)
        for number, text in enumerate(texts)
    )
    bar_height, bar_width = max(6, round(0.32 * height)), max(3, round(12 * unit))
    bar = (foot_top - margin - bar_height, width - margin - bar_width, bar_height, bar_width)
    foot = (foot_top, margin, foot_height, inner)
    return _Layout(
        line, pad, head_px, text_px, label if label_fits else None, bar, foot, graph, words
    )


class _OutlinePainter:
    """The outline of the field of view in use; what depends on the field alone is kept."""

    def __init__(self, size: tuple[int, int], line_px: int, yuv: dict[Rgb, np.ndarray]) -> None:
        self._size = size
        self._line_px = line_px
        self._yuv = yuv
        self._key: tuple[object, ...] = ()
        self._inside = np.zeros((0, 0), np.uint8)
        self._dots: dict[str, Dots] = {}

    def inside(self, field: FieldOfView) -> np.ndarray:
        """uint8 [H, W], 1 inside the outline."""
        self._prepare(field)
        return self._inside

    def dots(self, field: FieldOfView, state: str) -> Dots:
        """The line: quiet, and louder while an alert is open."""
        self._prepare(field)
        if state not in self._dots:
            line = np.zeros(self._size, np.uint8)
            corners = np.clip(field.outline, 0, np.array(self._size)[::-1] - 1)
            cv2.polylines(
                line,
                [corners.astype(np.int32)],
                isClosed=True,
                color=255,
                thickness=self._line_px,
                lineType=cv2.LINE_AA,
            )
            colour = self._yuv[STATE_COLOURS[state]]
            self._dots[state] = dots_of(
                line, 0, 0, self._size, colour, 0.75 if state == "ALERT" else 0.4
            )
        return self._dots[state]

    def _prepare(self, field: FieldOfView) -> None:
        key = (field.x, field.y, field.width, field.height, field.outline.tobytes())
        if key == self._key:
            return
        self._key = key
        self._dots = {}
        self._inside = np.zeros(self._size, np.uint8)
        cv2.fillPoly(self._inside, [field.outline.astype(np.int32)], 1)


class _HeatPainter:
    """The heatmap: colour of the ramp, more of it the rarer the heat."""

    def __init__(self, size: tuple[int, int], colour: Colour) -> None:
        self._size = size
        level = np.arange(256) / 255.0
        stops, colours = zip(*HEAT_RAMP, strict=True)
        ramp = np.stack(
            [np.interp(level, stops, channel) for channel in np.array(colours).T], axis=-1
        )
        y, u, v = yuv_of(ramp, colour).T
        # Steep at first, so that an edge is seen; level 0 is clear.
        strength = np.where(level > 0, level**0.6, 0.0)
        luma, chroma = HEAT_LUMA_OPACITY * strength, HEAT_CHROMA_OPACITY * strength
        self._luma = whole_numbers(luma, [luma * y])
        self._chroma = whole_numbers(chroma, [chroma * u, chroma * v])
        self._contour_yuv = yuv_of(np.array(HEAT_RAMP[-1][1]), colour)
        self._contour_level = math.ceil(255 * float(_heat_level(np.array(CONTOUR_AT))))

    def layers(self, heat: np.ndarray, field: FieldOfView, inside: np.ndarray) -> list[Mark]:
        """The heat of a frame.

        Args:
            heat: float32 [h, w] over the field of view, calibrated; NaN where invalid.
            field: where that lies in the frame.
            inside: uint8 [H, W], 1 inside the outline.
        """
        level = _smooth_level(heat)
        rows, columns = np.flatnonzero(level.any(axis=1)), np.flatnonzero(level.any(axis=0))
        if not len(rows):
            return []
        grid_height, grid_width = level.shape
        # What is hot, in frame pixels: two points more than it, and even for the chroma planes.
        y0 = max(field.y + (int(rows[0]) - 2) * field.height // grid_height, field.y)
        x0 = max(field.x + (int(columns[0]) - 2) * field.width // grid_width, field.x)
        y1 = field.y + min((int(rows[-1]) + 3) * field.height // grid_height + 1, field.height)
        x1 = field.x + min((int(columns[-1]) + 3) * field.width // grid_width + 1, field.width)
        y1, x1 = min(y1, self._size[0]), min(x1, self._size[1])
        top, left = y0 // 2 * 2, x0 // 2 * 2
        scaled = cv2.resize(level, (field.width, field.height), interpolation=cv2.INTER_LINEAR)
        hot = scaled[y0 - field.y : y1 - field.y, x0 - field.x : x1 - field.x]
        hot = cv2.convertScaleAbs(hot, alpha=255.0) * inside[y0:y1, x0:x1]
        block = np.zeros(((y1 - top + 1) // 2 * 2, (x1 - left + 1) // 2 * 2), np.uint8)
        block[y0 - top : y1 - top, x0 - left : x1 - left] = hot
        # A chroma cell is as hot as the coldest of its four pixels: no colour leaks out.
        quarter = np.minimum(
            np.minimum(block[::2, ::2], block[1::2, ::2]),
            np.minimum(block[::2, 1::2], block[1::2, 1::2]),
        )
        block = block[: self._size[0] - top, : self._size[1] - left]
        layer = Levels(top, left, block, quarter, self._luma, self._chroma)
        return [layer, self._contour(block, top, left)]

    def _contour(self, block: np.ndarray, top: int, left: int) -> Dots:
        """A thin line around what is hotter than `CONTOUR_AT`."""
        above = (block >= self._contour_level).astype(np.uint8)
        curves, _ = cv2.findContours(above, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        line = np.zeros(block.shape, np.uint8)
        cv2.polylines(line, list(curves), True, 255, 1, cv2.LINE_AA)
        line[block == 0] = 0  # its soft edge may not leave the heat
        return dots_of(line, top, left, self._size, self._contour_yuv, CONTOUR_OPACITY)


def _heat_level(heat: np.ndarray) -> np.ndarray:
    """Place in the heat ramp, in [0, 1]: straight in the decades of how rare the heat is."""
    rare = -np.log10(np.maximum(1.0 - heat, 1e-9))
    low, high = -math.log10(1 - HEAT_FROM), -math.log10(1 - HEAT_FULL)
    level: np.ndarray = np.clip((rare - low) / (high - low), 0.0, 1.0)
    return level


def _smooth_level(heat: np.ndarray) -> np.ndarray:
    """Place in the heat ramp, on a finer grid and smooth.

    Returns:
        float32 [HEAT_GRID h, HEAT_GRID w], in [0, 1]; 0 in invalid cells, and in the points next to
        them, so that nothing reaches into them however it is scaled up linearly.
    """
    height, width = heat.shape
    grid = (HEAT_GRID * width, HEAT_GRID * height)
    valid = ~np.isnan(heat)
    level = _heat_level(np.where(valid, heat, 0.0)).astype(np.float32)
    fine = _finer(level, grid)
    if not valid.all():
        # weighed by validity, or invalid cells would darken their neighbours
        fine /= np.maximum(_finer(valid.astype(np.float32), grid), 0.25)
        blocks = cv2.resize(valid.astype(np.uint8), grid, interpolation=cv2.INTER_NEAREST)
        fine *= cv2.erode(blocks, np.ones((3, 3), np.uint8))
    clipped: np.ndarray = np.clip(fine, 0.0, 1.0)
    return clipped


def _finer(cells: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Cells on a finer grid (width, height): smooth, and unlike cubic splines without ripples."""
    return cv2.blur(cv2.resize(cells, grid, interpolation=cv2.INTER_LINEAR), (3, 3))


def _height(score: float) -> float:
    return float(on_scale(np.array(score)))
