"""Frames as they were judged -> frames that may be shown to others, for `--deid`.

    border        black all around the field of view, and a margin inwards
    burned in     what stays in its place inside the field while the rest moves: text, insets. It is
                  looked for beforehand, in frames from all over the recording (`find_burned_in`)
    out of body   blurred to 8x8 cells, with what comes shortly before and after

It stands behind the scores and before all that draws, so what is computed stays the same and no
original frame gets farther. It removes what can be told by rule; what it cannot do stands in the
README. Text that moves or shows briefly inside the field stays.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import cv2
import numpy as np

from ccdstream.decode import VideoSource
from ccdstream.errors import VideoDecodeError, VideoOpenError
from ccdstream.frames import DeviceFrame, FieldOfView, Frame
from ccdstream.pipeline import Judged, Route
from ccdstream.view import (
    GRID,
    FieldWatch,
    Profile,
    alike,
    full_range,
    lit_field,
    shrunk,
    without_holes,
)

SAMPLES = 64
"""Frames that are searched for what is burned in: so many that tissue, which differs from one to
the next, washes out, and few enough to be found by seeking in a long recording."""
SEEK_FROM_S = 120.0
"""Longer recordings are searched by seeking, shorter ones in one pass."""
_STEP_S = 0.5
"""What two samples are apart on the clock of the watches: the most that counts as one movement."""
_INDEXED = ("mov", "matroska", "avi", "mpegts", "asf", "mxf", "flv")
"""Beginnings of the names of formats that can be sought in; others are searched in one pass."""
_SURROUNDINGS = 7
"""Cells across that a cell's detail is measured against, as in `ccdstream.view`."""
_SAME_VIEW = 0.4
"""Views whose detail correlates by more are one view."""
_LEAST_VIEWS = 12
_LEAST_LUMA = 4.0
"""So many different views, and so much change in the usual cell, tell; noise alone is below 1."""
_WINDOW, _WINDOW_STEP = 24, 8
"""Views that are taken together, so that what lasts for a part of the recording is found too."""
_STILL_SHARE, _STILL_LUMA = 0.1, 2.0
"""A cell is still whose deviation is below this share of the usual, and below this."""
_DRAWN_LUMA = 8.0
"""A cell is drawn on whose mean detail is above this, and above its deviation."""
_PROFILE_SHARE = 0.25
"""A place of the profile is blanked as a whole where more than this share of its cells in the field
last. Between what was measured with real recorders: insets 0.7, columns of text 0.3 to 0.5, tissue
below 0.2."""
_MUCH_BLANKED = 0.25
"""A larger share of the field of view that is blanked gives a warning."""
_CLOSE_CELLS = (7, 3)
"""Across and down, in the grid's 128: gaps in a line of text up to this size are blanked with it,
such as digits that change."""

MARGIN_SHARE = 0.016
"""Width of the margin along the outline, as a share of the field's shorter side: a little more than
what the view leaves out."""
OUTSIDE_MARGIN_S = 1.0
"""Frames this shortly before and after one out of body are blurred too: on the way through the anus
and in the moment when the scope is turned, single frames pass for tissue."""
_MOST_HELD = 64
_MOST_HELD_BYTES = 256_000_000
"""Bounds of what is held back to look ahead; where the margin before would take more, it is
shorter."""
BLUR_CELLS = 8
"""A blurred picture has so many cells a side: neither a face nor a letter is left."""


# -- what is burned in ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class BurnedIn:
    """What stays in its place inside the field of view of a recording."""

    mask: np.ndarray
    """bool [H, W]: True where it is."""
    told: bool
    """Whether the recording moves enough to tell; where it does not, `mask` is what the profile
    says."""
    samples: int
    """Frames that were looked at."""
    blanked_fraction: float
    """Share of the field of view that `mask` takes, 0 to 1. The border is no part of it."""

    def warnings(self) -> list[str]:
        """What a person should know."""
        said = []
        if not self.told:
            said.append(
                "text inside the picture could not be looked for, since the picture moves too "
                f"little in the {self.samples} frames that were searched: only the places where "
                "recorders like that of the model's training write are blanked. Look at the video "
                "before you share it."
            )
        if self.blanked_fraction > _MUCH_BLANKED:
            said.append(
                f"--deid blanks {100 * self.blanked_fraction:.0f} % of the field of view: tissue, "
                "and perhaps a lesion, lies behind the black parts of the video and the pictures. "
                "Scores and alerts are of the whole picture."
            )
        return said

    def as_dict(self) -> dict[str, float | int]:
        """What run.json says of it."""
        return {"blanked_fraction": round(self.blanked_fraction, 4), "samples": self.samples}


def find_burned_in(
    source: VideoSource,
    profile: Profile,
    *,
    start_s: float | None = None,
    end_s: float | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> BurnedIn:
    """Search a recording for what stays in its place while the rest moves.

    What lasts in a good part of the recording is blanked in all of it. What shows briefly or runs
    through the picture is not found. A field of view that is left too soon to tell anything of it
    does not count, unless there is no other.

    Args:
        source: the recording, opened; it is read anew, and left where it is.
        profile: where its recorder writes, for a recording that is itself still.
        start_s, end_s: the stretch to search.
        stopped: asked before every sample; once it says so, no more are looked at.
    """
    fields = FieldWatch(source.size)
    places: list[tuple[FieldOfView, list[np.ndarray]]] = []
    samples = 0
    for sample in _samples(source, start_s, end_s):
        if stopped():
            break
        luma = full_range(_fitted(sample.y, source.size), source.colour)
        field = fields.update(samples * _STEP_S, partial(shrunk, luma))
        samples += 1
        if not places or places[-1][0] is not field:
            places.append((field, []))
        box = luma[field.y : field.y + field.height, field.x : field.x + field.width]
        places[-1][1].append(cv2.resize(box, GRID[::-1], interpolation=cv2.INTER_AREA))
    places = [place for place in places if len(place[1]) >= _LEAST_VIEWS] or places
    mask = np.zeros(source.size, bool)
    told = bool(places)
    for field, grids in places:
        inside = _inside(field, source.size)
        watched = _on_grid(inside, field)
        found = _lasting(grids, watched)
        told &= found is not None
        mask |= _laid_out(_with_profile(found, watched > 0, profile), field, inside)
    blanked = 0.0
    if places:
        usual, _ = max(places, key=lambda place: len(place[1]))
        blanked = float(mask[_inside(usual, source.size)].mean())
    return BurnedIn(mask, told, samples, blanked)


def _lasting(grids: list[np.ndarray], watched: np.ndarray) -> np.ndarray | None:
    """bool [128, 128]: cells that stay while the rest moves; None where too little moves to tell.

    As the watch over a stream tells it (`ccdstream.view`), but with what follows known too: a cell
    is still, or its detail stays where that of tissue washes out. Of views that are alike one
    counts, after what they all share is taken off: else much text would make all views alike.

    Args:
        grids: uint8 [128, 128] each, luma of one field of view over time.
        watched: float32 [128, 128], 1 inside the field.
    """
    around = np.maximum(_blur(watched), 1e-6)
    values = [grid * watched for grid in grids]
    details = [(value - _blur(value) / around) * watched for value in values]
    shared = np.mean(details, axis=0)
    kept: list[int] = []
    for number, detail in enumerate(details):
        if not kept or _correlation(detail - shared, details[kept[-1]] - shared) < _SAME_VIEW:
            kept.append(number)
    value, detail = np.array([values[k] for k in kept]), np.array([details[k] for k in kept])
    inside = watched > 0
    if len(kept) < _LEAST_VIEWS or np.median(value.std(axis=0)[inside]) < _LEAST_LUMA:
        return None
    found = np.zeros(GRID, bool)
    for first in range(0, max(len(kept) - _WINDOW, 0) + _WINDOW_STEP, _WINDOW_STEP):
        window = slice(max(min(first, len(kept) - _WINDOW), 0), first + _WINDOW)
        deviation = value[window].std(axis=0)
        still = deviation < min(_STILL_LUMA, _STILL_SHARE * float(np.median(deviation[inside])))
        drawn = abs(detail[window].mean(axis=0)) > np.maximum(
            _DRAWN_LUMA, detail[window].std(axis=0)
        )
        found |= (still | drawn) & inside
    grown = cv2.dilate(found.astype(np.uint8), np.ones((3, 3), np.uint8))
    return without_holes(grown) > 0


def _blur(value: np.ndarray) -> np.ndarray:
    return cv2.blur(value, (_SURROUNDINGS, _SURROUNDINGS), borderType=cv2.BORDER_CONSTANT)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Of two grids; 1 where one is flat."""
    energy = float((one * one).sum()) * float((other * other).sum())
    return float((one * other).sum()) / energy**0.5 if energy > 0 else 1.0


def _with_profile(found: np.ndarray | None, watched: np.ndarray, profile: Profile) -> np.ndarray:
    """bool [128, 128]: what was found, and those places of the profile that it fills in good part;
    all of its places where nothing can be told.

    Args:
        found: bool [128, 128]: what lasts; None where that cannot be told.
        watched: bool [128, 128]: what is inside the field.
    """
    cells = np.zeros(GRID, bool) if found is None else found.copy()
    counted = np.zeros(GRID, bool)  # what lasts in the inset says nothing of the text above it
    for x0, y0, x1, y1 in profile.boxes():
        place = np.zeros(GRID, bool)
        rows = slice(int(y0 * GRID[0]), round(y1 * GRID[0] + 0.5))
        place[rows, int(x0 * GRID[1]) : round(x1 * GRID[1] + 0.5)] = True
        inside = place & watched & ~counted
        if found is None or (inside.any() and found[inside].mean() > _PROFILE_SHARE):
            cells |= place
        counted |= place
    return cells


def _samples(source: VideoSource, start_s: float | None, end_s: float | None) -> Iterator[Frame]:
    """About `SAMPLES` frames, spread over the stretch; none of a spot that cannot be read. Where it
    is longer than its file says, they lie farther and farther apart: memory is bounded."""
    length_s = source.duration_s
    if length_s is not None and length_s > SEEK_FROM_S and source.format.startswith(_INDEXED):
        begin_s = source.start_time_s if start_s is None else max(start_s, source.start_time_s)
        for number in range(SAMPLES):
            at_s = begin_s + length_s * (number + 0.5) / SAMPLES
            try:
                with VideoSource(source.path, start_s=at_s, end_s=end_s) as there:
                    frame = next(iter(there), None)
                    if frame is not None:
                        yield frame
            except (VideoOpenError, VideoDecodeError):  # the analysis itself tells of damage
                continue
        return
    step_s = _STEP_S if length_s is None else length_s / SAMPLES
    last_s, number = -np.inf, 0
    with VideoSource(source.path, start_s=start_s, end_s=end_s) as whole:
        for frame in whole:
            if frame.seconds - last_s >= step_s:
                last_s, number = frame.seconds, number + 1
                yield frame
                if number % SAMPLES == 0:
                    step_s = max(2 * step_s, _STEP_S)


def _fitted(luma: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The luma in the size of the recording, which a stretch of it need not have."""
    if luma.shape == size:
        return luma
    return cv2.resize(luma, size[::-1], interpolation=cv2.INTER_AREA)


def _on_grid(inside: np.ndarray, field: FieldOfView) -> np.ndarray:
    """float32 [128, 128]: 1 where `inside`, bool [H, W], holds."""
    box = inside[field.y : field.y + field.height, field.x : field.x + field.width]
    return cv2.resize(box.astype(np.float32), GRID[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def _laid_out(cells: np.ndarray, field: FieldOfView, inside: np.ndarray) -> np.ndarray:
    """bool [H, W]: cells, bool [128, 128], with small gaps closed; only where `inside` holds, since
    beyond all is blanked anyway."""
    grown = cv2.morphologyEx(
        cells.astype(np.uint8), cv2.MORPH_CLOSE, np.ones(_CLOSE_CELLS[::-1], np.uint8)
    )
    grown = cv2.dilate(grown, np.ones((2, 2), np.uint8))
    size = (field.width, field.height)
    mask = np.zeros(inside.shape, bool)
    mask[field.y : field.y + field.height, field.x : field.x + field.width] = (
        cv2.resize(grown, size, interpolation=cv2.INTER_NEAREST) > 0
    )
    mask &= inside
    return mask


def _inside(field: FieldOfView, size: tuple[int, int]) -> np.ndarray:
    """bool [H, W]: True inside the outline, a margin away from it; none where the frame ends."""
    height, width = size
    mask = np.zeros(size, np.uint8)
    outline = field.outline.reshape(-1, 2)
    cv2.fillConvexPoly(mask, outline, 1)
    margin = max(2, round(MARGIN_SHARE * min(field.width, field.height)))
    for one, other in zip(outline, np.roll(outline, -1, axis=0), strict=True):
        ends = np.stack([one, other])
        at_the_end = (ends <= 0).all(0) | (ends >= (width - 1, height - 1)).all(0)
        if not at_the_end.any():
            start, stop = (tuple(map(int, end)) for end in ends)
            cv2.line(mask, start, stop, 0, thickness=2 * margin + 1)
    return mask.astype(bool)


# -- frames ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Held:
    """A frame that waits for what comes after it; its border and what is burned in are gone."""

    judged: Judged
    outside: bool


class Deidentifier:
    """Gives the frames of one recording as they may be shown, in order, a moment later."""

    def __init__(self, size: tuple[int, int], burned_in: np.ndarray) -> None:
        """
        Args:
            size: (height, width) of every frame.
            burned_in: bool [H, W], True where nothing is shown.
        """
        self._size = size
        self._burned_in = burned_in
        height, width = size
        self._most = max(8, min(_MOST_HELD, _MOST_HELD_BYTES // (height * width * 3 // 2)))
        self._field: FieldOfView | None = None
        self._hidden = np.ones(size, bool)
        self._outside = True  # a recording may begin in the room: shown from its first sure frame
        self._unsure_s: float | None = None  # None: nothing was out of body so far

    def shown(self, frames: Iterable[Judged]) -> Iterator[Judged]:
        """The same, each with a frame in the host's memory that may be shown.

        A frame is blurred where one within `OUTSIDE_MARGIN_S` of it is out of body; also, from
        there on, until the frames have been informative for as long, since what tells nothing may
        be the room as well. At most 64 frames and 256 MB of them wait, but always eight frames.
        """
        held: deque[_Held] = deque()
        for judged in frames:
            outside = self._is_outside(judged)
            if "out_of_body" in judged.quality:
                for earlier in held:
                    earlier.outside |= judged.seconds - earlier.judged.seconds <= OUTSIDE_MARGIN_S
            host = judged.frame.on_host() if isinstance(judged.frame, DeviceFrame) else judged.frame
            held.append(_Held(replace(judged, frame=self.blanked(host, judged.field)), outside))
            while len(held) > self._most or (
                judged.seconds - held[0].judged.seconds >= OUTSIDE_MARGIN_S
            ):
                yield self._released(held.popleft())
        while held:
            yield self._released(held.popleft())

    def _is_outside(self, judged: Judged) -> bool:
        """Whether a frame is to be blurred for what it is, or for what came before it."""
        now_s = judged.seconds
        if "out_of_body" in judged.quality:
            self._outside, self._unsure_s = True, now_s
        elif judged.quality:
            if self._outside and self._unsure_s is not None:
                self._unsure_s = now_s
        elif self._unsure_s is None or now_s - self._unsure_s >= OUTSIDE_MARGIN_S:
            self._outside = False
        return self._outside

    def blanked(self, frame: Frame, field: FieldOfView) -> Frame:
        """The frame without its border and what is burned in.

        The field of a stream follows a change only after seconds. Meanwhile a frame that is lit
        less far is shown only where it is lit, and one that is not lit at all is black.

        Args:
            frame: in the host's memory; left as it is.
            field: where the field of view lies, as far as is known.
        """
        lit = lit_field(frame.y)
        if lit is None:
            return _hidden_in(frame, np.ones(self._size, bool))
        if self._field is not field:
            self._field = field
            self._hidden = self._burned_in | ~_inside(field, self._size)
        if alike(lit, field):
            return _hidden_in(frame, self._hidden)
        return _hidden_in(frame, self._hidden | ~_inside(lit, self._size))

    def _released(self, held: _Held) -> Judged:
        frame = held.judged.frame
        assert isinstance(frame, Frame), "it was brought to the host"
        return replace(held.judged, frame=blurred(frame)) if held.outside else held.judged


def _hidden_in(frame: Frame, hidden: np.ndarray) -> Frame:
    """The frame, black where `hidden`, bool [H, W]."""
    height, width = frame.size
    even = np.pad(hidden, ((0, height % 2), (0, width % 2)), mode="edge")
    halved = even[::2, ::2] | even[1::2, ::2] | even[::2, 1::2] | even[1::2, 1::2]
    black = 0 if frame.colour.full_range else 16
    return replace(
        frame,
        y=np.where(hidden, np.uint8(black), frame.y),
        u=np.where(halved, np.uint8(128), frame.u),
        v=np.where(halved, np.uint8(128), frame.v),
    )


def blurred(frame: Frame) -> Frame:
    """The frame as `BLUR_CELLS` cells a side, with soft borders between them."""
    planes = []
    for plane in (frame.y, frame.u, frame.v):
        cells = cv2.resize(plane, (BLUR_CELLS, BLUR_CELLS), interpolation=cv2.INTER_AREA)
        planes.append(cv2.resize(cells, plane.shape[::-1], interpolation=cv2.INTER_LINEAR))
    return replace(frame, y=planes[0], u=planes[1], v=planes[2])


@contextmanager
def deidentified(route: Route, deidentifier: Deidentifier) -> Iterator[Iterator[Judged]]:
    """A route whose frames may be shown; what is said of them is that of the originals."""
    with route as frames:
        yield deidentifier.shown(frames)
