"""Normal stills -> streams of views, as a run would see them if a scope were moved over the stills.

In: `Still`s and a random generator. Out: `PseudoFrame`s in order of time, each with what the model
would get of it and the truth: how much of a lesion can be seen, what disturbs the picture. What
happens over time (smoothing, hysteresis, the gate for uninformative frames) may be chosen on these,
for no frame of a test set is in them.

    camera        shots of 2-6 s, each inside one still: pan, zoom, slight rotation, hand tremor
    light         a slow drift of exposure, and a slope of brightness across the picture
    disturbances  `DISTURBANCES`, 0.1-1 s each
    recorder      grain, other on every frame; JPEG
    view          `ccdstream.view` itself; the scope's outline and the profile's boxes stay in place

The plan of a stream is drawn first and does not depend on the frame rate: two rates see the same
film. A lesion is pasted into the still, so it enters and leaves the picture with the camera. What
is missing beside a recording: parallax, folds that hide and show, stool, tools, the codec's memory.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from ccdstream.frames import VIEW_SIZE, FieldOfView, View
from ccdstream.view import NEUTRAL, Profile, find_field, view_of_image

Paste = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]
"""Puts a lesion into a picture: (image uint8 [H, W, 3], valid bool [H, W], rng) -> the picture with
it, and where it is, bool [H, W]."""

Disturbance = Literal["defocus", "motion", "dark", "white", "red", "bubbles"]
DISTURBANCES: dict[Disturbance, float] = {
    "defocus": 3.0,
    "motion": 4.0,
    "dark": 1.5,
    "white": 1.5,
    "red": 1.5,
    "bubbles": 2.0,
}
"""What disturbs a picture, and how often a minute: out of focus, moved during exposure, the light
falls, water or light washes it out, the lens is on the wall, bubbles before the lens."""

STILL_PX = 512
"""Side of a still; about that of HyperKvasir's field of view, so a zoom of 1.3 loses nothing."""
FRAME_PX = 384
"""Side of a frame before it is squashed to the view."""

_SHOT_S = (2.0, 6.0)
_LEG_S = (0.8, 2.0)
"""From one place of the camera to the next."""
_ZOOM = (1.05, 1.8)
_ZOOM_ON_LESIONS = (1.3, 2.2)
"""Closer, so that a lesion finds room to be out of the picture."""
_TURN_DEG = 4.0
"""Standard deviation of the rotation."""
_TREMOR = 0.004
"""Amplitude of the tremor, as a share of the view."""
_TREMOR_HZ = (1.0, 8.0)
_OUT_OF_STILL = 0.02
"""Share of the view's valid part that a place of the camera may show from beyond the still."""
_PLACES = 40
"""Places that are tried; the last resort is the one that shows least from beyond."""
_STARTS_AWAY = 0.5
"""Share of the shots with a lesion that begin where least of it can be seen."""
_DISTURBED_S = (0.1, 1.0)
_HALF = 0.5
"""A frame counts as disturbed from half of the disturbance's strength on."""
_DRIFT = 0.12
_DRIFT_S = (5.0, 12.0)
_SLOPE = 0.15
_GRAIN = (1.5, 4.0)
"""Standard deviation, in grey levels."""
_JPEG_QUALITY = (65, 90)

_GRID = np.stack(np.meshgrid(np.arange(48), np.arange(48)), axis=-1).reshape(-1, 2) / 47.0
"""float64 [2304, 2]: points (x, y) all over a view."""


@dataclass(frozen=True, slots=True, eq=False)
class Still:
    """The field of view of a normal still."""

    image: np.ndarray
    """uint8 [STILL_PX, STILL_PX, 3], RGB."""
    clear: np.ndarray
    """bool [256, 256], of the view of the whole still: False on border and overlay."""
    outline: np.ndarray
    """float64 [K, 2], the corners of what the scope shows, as fractions of the field."""


def make_still(rgb: np.ndarray, profile: Profile) -> Still:
    """Cut a still to its field of view.

    Args:
        rgb: uint8 [H, W, 3].
        profile: what is burned into it.
    """
    field = find_field(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY))
    crop = rgb[field.y : field.y + field.height, field.x : field.x + field.width]
    shrinks = min(field.width, field.height) >= STILL_PX
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    # a plain picture has no highlights: what is left is border and overlay
    plain = np.full_like(rgb, 100)
    return Still(
        cv2.resize(crop, (STILL_PX, STILL_PX), interpolation=interpolation),
        view_of_image(plain, profile, field=field).valid,
        (field.outline - (field.x, field.y)) / (field.width, field.height),
    )


@dataclass(frozen=True, slots=True, eq=False)
class PseudoFrame:
    """A frame of a stream, as the model would get it, and what it shows."""

    seconds: float
    view: View
    still: int
    """Which of the stills it is taken from."""
    shot: int
    """Counted from 0; a cut lies between two."""
    lesion_visible: float
    """Share of the lesion's area that is in the valid part of the view, in [0, 1]; 0 without a
    lesion. What disturbs the picture does not count."""
    lesion_box: tuple[int, int, int, int] | None
    """(x, y, width, height) of what can be seen of it, in pixels of the view."""
    disturbances: tuple[Disturbance, ...]
    """Those at half of their strength or more."""
    clear: bool
    """Whether nothing disturbs it, however little."""


@dataclass(frozen=True, slots=True)
class _Event:
    """A disturbance."""

    kind: Disturbance
    start_s: float
    end_s: float
    strength: float
    """In [0, 1], between the least and the most of its kind."""
    seed: int

    def at(self, seconds: float) -> float:
        """How far it has come, 0 to 1: up in a quarter of its time, and down in the last one."""
        passed = (seconds - self.start_s) / (self.end_s - self.start_s)
        return float(np.clip(4 * min(passed, 1 - passed), 0, 1))


@dataclass(frozen=True, slots=True, eq=False)
class _Shot:
    """One camera path inside one still."""

    number: int
    start_s: float
    end_s: float
    still: int
    image: np.ndarray
    inside: np.ndarray
    """uint8 [STILL_PX, STILL_PX]: 1 where the still shows tissue."""
    lesion: np.ndarray | None
    """uint8 [STILL_PX, STILL_PX]: 1 on the lesion."""
    times_s: np.ndarray
    """float64 [P], since the start."""
    places: np.ndarray
    """float64 [P, 4]: zoom, centre x and y as fractions of the still, rotation in radians."""
    tremor: np.ndarray
    """float64 [3, 2, 3]: for three waves of x and of y amplitude, angular frequency and phase."""

    def place(self, seconds: float) -> np.ndarray:
        """Where the camera is, float64 [4] as a row of `places`."""
        passed = seconds - self.start_s
        leg = int(np.clip(np.searchsorted(self.times_s, passed) - 1, 0, len(self.places) - 2))
        share = (passed - self.times_s[leg]) / (self.times_s[leg + 1] - self.times_s[leg])
        share = share * share * (3 - 2 * share)  # starts and stops gently
        place: np.ndarray = (1 - share) * self.places[leg] + share * self.places[leg + 1]
        amplitude, frequency, phase = np.moveaxis(self.tremor, -1, 0)
        place[1:3] += (amplitude * np.sin(frequency * passed + phase)).sum(axis=0) / place[0]
        return place


def film(
    stills: Sequence[Still],
    profile: Profile,
    rng: np.random.Generator,
    *,
    seconds: float,
    rate: float,
    paste: Paste | None = None,
    lesion_share: float = 0.5,
) -> Iterator[PseudoFrame]:
    """A stream of frames at k / rate for k = 0, 1, ... below `seconds`.

    Args:
        profile: what is masked in every frame.
        rng: all chance comes from it; it is drawn from as frames are taken.
        paste: puts a lesion into a still; None: no lesions.
        lesion_share: how often a shot's still gets one.

    Raises:
        ValueError: there are no stills, or the length or the rate is not above 0.
    """
    if not stills:
        raise ValueError("a film needs at least one still, got 0")
    if not (seconds > 0 and rate > 0):
        raise ValueError(f"seconds and rate must be above 0, got {seconds = } and {rate = }")
    events = _draw_events(seconds, rng)
    recorder = _Recorder.draw(rng)
    frames = math.ceil(seconds * rate - 1e-9)
    shot: _Shot | None = None
    for index in range(frames):
        now_s = index / rate
        while shot is None or now_s >= shot.end_s:
            shot = _draw_shot(shot, stills, profile, rng, paste, lesion_share)
        yield _take(shot, stills[shot.still], profile, events, recorder, now_s, index)


# -- the plan -------------------------------------------------------------------------------------


def _draw_events(seconds: float, rng: np.random.Generator) -> list[_Event]:
    events = []
    for kind, a_minute in DISTURBANCES.items():
        for start_s in rng.uniform(-1, seconds, rng.poisson(a_minute * (seconds + 1) / 60)):
            length_s = rng.uniform(*_DISTURBED_S)
            seed = int(rng.integers(2**31))
            events.append(_Event(kind, start_s, start_s + length_s, float(rng.random()), seed))
    return sorted(events, key=lambda event: event.start_s)


def _draw_shot(
    last: _Shot | None,
    stills: Sequence[Still],
    profile: Profile,
    rng: np.random.Generator,
    paste: Paste | None,
    lesion_share: float,
) -> _Shot:
    chosen = int(rng.integers(len(stills)))
    if last is not None and len(stills) > 1:  # a cut leads to another still
        chosen = (last.still + 1 + int(rng.integers(len(stills) - 1))) % len(stills)
    still = stills[chosen]
    inside = cv2.resize(
        still.clear.astype(np.uint8), (STILL_PX, STILL_PX), interpolation=cv2.INTER_NEAREST_EXACT
    )
    image, lesion = still.image, None
    if paste is not None and rng.random() < lesion_share:
        image, mask = paste(image, inside.astype(bool), rng)
        lesion = mask.astype(np.uint8)
    start_s = last.end_s if last else 0.0
    length_s = float(rng.uniform(*_SHOT_S))
    times_s = [0.0]
    while times_s[-1] < length_s:
        times_s.append(times_s[-1] + float(rng.uniform(*_LEG_S)))
    zoom = _ZOOM if lesion is None else _ZOOM_ON_LESIONS
    places = [_draw_place(still, inside, zoom, rng) for _ in times_s]
    if lesion is not None and rng.random() < _STARTS_AWAY:
        away = [places[0], *(_draw_place(still, inside, zoom, rng) for _ in range(12))]
        places[0] = min(away, key=lambda place: _seen(place, lesion, still.clear).sum())
    waves = (3, 2)
    tremor = np.stack(
        [
            rng.normal(0, _TREMOR, waves),
            2 * np.pi * rng.uniform(*_TREMOR_HZ, waves),
            rng.uniform(0, 2 * np.pi, waves),
        ],
        axis=-1,
    )
    number = last.number + 1 if last else 0
    return _Shot(
        number,
        start_s,
        start_s + length_s,
        chosen,
        image,
        inside,
        lesion,
        np.array(times_s),
        np.array(places),
        tremor,
    )


def _draw_place(
    still: Still, inside: np.ndarray, zoom: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    """A place of the camera from where the view shows hardly anything beyond the still."""
    best, least = np.zeros(4), math.inf
    for _ in range(_PLACES):
        z = float(rng.uniform(*zoom))
        centre = rng.uniform(0.5 / z, 1 - 0.5 / z, 2)
        place = np.array([z, *centre, np.deg2rad(rng.normal(0, _TURN_DEG))])
        beyond = 1 - float(_seen(place, inside, still.clear).mean())
        if beyond <= _OUT_OF_STILL:
            return place
        if beyond < least:
            best, least = place, beyond
    return best


def _seen(place: np.ndarray, mask: np.ndarray, clear: np.ndarray) -> np.ndarray:
    """bool [n]: whether each of the valid points of `_GRID` shows a place of the still's mask."""
    cells = np.rint(_GRID * (np.array(clear.shape[::-1]) - 1)).astype(int)
    points = _GRID[clear[cells[:, 1], cells[:, 0]]]
    homogeneous = np.column_stack([points, np.ones(len(points))])
    x, y = np.floor(_matrix(place, 1.0, mask.shape[0]) @ homogeneous.T).astype(int)
    within = (x >= 0) & (y >= 0) & (x < mask.shape[1]) & (y < mask.shape[0])
    seen: np.ndarray = within & (mask[y * within, x * within] > 0)
    return seen


def _matrix(place: np.ndarray, view: float, still: float) -> np.ndarray:
    """float64 [2, 3]: points of a view of side `view` -> points of the still of side `still`.

    Of points, not of centres of pixels: a pixel's centre is at its index and a half.
    """
    zoom, x, y, turn = place
    c, s = math.cos(turn) / zoom, math.sin(turn) / zoom
    matrix = np.array([[c, -s, x - (c - s) / 2], [s, c, y - (s + c) / 2]]) * still
    matrix[:, :2] /= view
    return matrix


# -- a frame --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class _Recorder:
    """Light and grain of a whole stream."""

    drift: np.ndarray
    """float64 [3, 2]: period in seconds and phase, of the exposure and of the slope in x and y."""
    grain: np.ndarray
    """int16 [FRAME_PX + 64, FRAME_PX + 64, 3]."""
    quality: int
    seed: int

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "_Recorder":
        side = FRAME_PX + 64
        strength = rng.uniform(*_GRAIN)
        return cls(
            np.stack([rng.uniform(*_DRIFT_S, 3), rng.uniform(0, 2 * np.pi, 3)], axis=1),
            np.rint(rng.normal(0, strength, (side, side, 3))).astype(np.int16),
            int(rng.integers(*_JPEG_QUALITY)),
            int(rng.integers(2**31)),
        )

    def light(self, seconds: float) -> np.ndarray:
        """float32 [FRAME_PX, FRAME_PX, 1]: factor of brightness."""
        exposure, across, down = np.sin(2 * np.pi * seconds / self.drift[:, 0] + self.drift[:, 1])
        steps = np.linspace(-1, 1, FRAME_PX, dtype=np.float32)
        slope = np.float32(across) * steps[None] + np.float32(down) * steps[:, None]
        light: np.ndarray = (1 + np.float32(_DRIFT * exposure)) * (1 + np.float32(_SLOPE) * slope)
        return light[..., None]

    def record(self, image: np.ndarray, index: int) -> np.ndarray:
        """uint8 [H, W, 3] with the grain and the compression of frame `index`; `image` float32."""
        x, y = np.random.default_rng([self.seed, index]).integers(0, 64, 2)
        grainy = np.rint(image + self.grain[y : y + FRAME_PX, x : x + FRAME_PX])
        bgr = cv2.cvtColor(np.clip(grainy, 0, 255).astype(np.uint8), cv2.COLOR_RGB2BGR)
        _, code = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, self.quality])
        recorded = cv2.imdecode(code, cv2.IMREAD_COLOR)
        assert recorded is not None  # it was coded here
        return cv2.cvtColor(recorded, cv2.COLOR_BGR2RGB)


def _take(
    shot: _Shot,
    still: Still,
    profile: Profile,
    events: Sequence[_Event],
    recorder: _Recorder,
    seconds: float,
    index: int,
) -> PseudoFrame:
    place = shot.place(seconds)
    image = _warp(shot.image, place, FRAME_PX, cv2.INTER_LINEAR).astype(np.float32)
    image *= recorder.light(seconds)
    present = [(event, event.at(seconds)) for event in events]
    present = [(event, share) for event, share in present if share > 0]
    for event, share in present:
        image = _disturb(image, event, share, seconds)
    outline = np.rint(still.outline * FRAME_PX).astype(np.int32)
    field = FieldOfView(0, 0, FRAME_PX, FRAME_PX, outline)
    frame = recorder.record(image, index)
    view = view_of_image(frame, profile, field=field)
    within = _warp(shot.inside, place, VIEW_SIZE[0], cv2.INTER_NEAREST).astype(bool)
    valid = view.valid & still.clear & within
    view.image[~valid] = NEUTRAL
    visible, box = 0.0, None
    if shot.lesion is not None:
        visible, box = _visible(shot.lesion, place, still.clear)
    return PseudoFrame(
        seconds,
        View(view.image, valid, field),
        shot.still,
        shot.number,
        visible,
        box,
        tuple(event.kind for event, share in present if share >= _HALF),
        not present,
    )


def _warp(plane: np.ndarray, place: np.ndarray, side: int, interpolation: int) -> np.ndarray:
    """What the camera sees of a plane of the still, [side, side]."""
    matrix = _matrix(place, side, plane.shape[0])
    matrix[:, 2] += matrix[:, :2].sum(axis=1) / 2 - 0.5  # centres of pixels
    flags = interpolation | cv2.WARP_INVERSE_MAP
    border = cv2.BORDER_CONSTANT if interpolation == cv2.INTER_NEAREST else cv2.BORDER_REFLECT
    warped: np.ndarray = cv2.warpAffine(plane, matrix, (side, side), flags=flags, borderMode=border)
    return warped


def _visible(
    lesion: np.ndarray, place: np.ndarray, clear: np.ndarray
) -> tuple[float, tuple[int, int, int, int] | None]:
    """Share of a lesion that is in the valid part of the view, and the box of that part."""
    side = clear.shape[0]
    seen = _warp(lesion, place, side, cv2.INTER_NEAREST).astype(bool) & clear
    whole = float(lesion.sum()) * (place[0] * side / lesion.shape[0]) ** 2
    if not seen.any() or whole == 0:
        return 0.0, None
    x, y, width, height = cv2.boundingRect(seen.astype(np.uint8))
    return min(1.0, float(seen.sum()) / whole), (x, y, width, height)


# -- disturbances ---------------------------------------------------------------------------------


def _between(low: float, high: float, share: float) -> float:
    return low + share * (high - low)


def _disturb(image: np.ndarray, event: _Event, share: float, seconds: float) -> np.ndarray:
    """A frame, float32 [FRAME_PX, FRAME_PX, 3], under a disturbance that has come so far."""
    rng = np.random.default_rng(event.seed)
    if event.kind == "defocus":
        sigma = share * _between(3.0, 8.0, event.strength)
        return cv2.GaussianBlur(image, (0, 0), max(sigma, 0.1))
    if event.kind == "motion":
        return _smear(image, share * _between(16, 48, event.strength), float(rng.uniform(0, np.pi)))
    if event.kind == "dark":
        return image * np.float32(1 - share * _between(0.55, 0.9, event.strength))
    if event.kind == "white":
        mist = _clouds(rng) * 0.2 + _between(0.6, 0.95, event.strength)
        return _blend(image, (232, 226, 216), share * mist)
    if event.kind == "red":
        wall = rng.uniform((150, 35, 25), (225, 85, 60))
        blurred = cv2.GaussianBlur(image, (0, 0), max(10 * share, 0.1))
        return _blend(blurred, wall, share * (0.15 * _clouds(rng) + _between(0.6, 0.85, 0.5)))
    return _bubbles(image, rng, share, event, seconds)


def _smear(image: np.ndarray, length_px: float, angle: float) -> np.ndarray:
    """The mean along a line."""
    side = 2 * math.ceil(length_px / 2) + 1
    kernel = np.zeros((side, side), np.float32)
    middle = side // 2
    x, y = math.cos(angle) * length_px / 2, math.sin(angle) * length_px / 2
    ends = [(round((middle + s * x) * 16), round((middle + s * y) * 16)) for s in (-1, 1)]
    cv2.line(kernel, ends[0], ends[1], 1.0, 1, cv2.LINE_8, shift=4)
    smeared: np.ndarray = cv2.filter2D(image, -1, kernel / kernel.sum())
    return smeared


def _clouds(rng: np.random.Generator) -> np.ndarray:
    """float32 [FRAME_PX, FRAME_PX]: smooth noise about 0, mostly within 1."""
    coarse = rng.normal(0, 0.6, (5, 5)).astype(np.float32)
    return cv2.resize(coarse, (FRAME_PX, FRAME_PX), interpolation=cv2.INTER_CUBIC)


def _blend(
    image: np.ndarray, colour: Sequence[float] | np.ndarray, weight: np.ndarray
) -> np.ndarray:
    weight = np.clip(weight, 0, 1).astype(np.float32)[..., None]
    blended: np.ndarray = image * (1 - weight) + np.asarray(colour, np.float32) * weight
    return blended


def _bubbles(
    image: np.ndarray, rng: np.random.Generator, share: float, event: _Event, seconds: float
) -> np.ndarray:
    """Bubbles that drift: dull inside, with a bright rim and a reflection of the light."""
    count = round(_between(8, 60, event.strength))
    centres = rng.uniform(0, FRAME_PX, (count, 2))
    centres += rng.normal(0, 40, 2) * (seconds - event.start_s)
    radii = rng.gamma(3.0, 6.0, count) + 4
    inside, bright = np.zeros((2, FRAME_PX, FRAME_PX), np.float32)
    for (x, y), radius in zip(centres, radii, strict=True):
        at, r = (round(x), round(y)), round(radius)
        cv2.circle(inside, at, r, 1.0, cv2.FILLED, cv2.LINE_AA)
        cv2.circle(bright, at, r, 0.6, max(1, r // 8), cv2.LINE_AA)
        spot = (round(x - 0.4 * radius), round(y - 0.4 * radius))
        cv2.circle(bright, spot, max(1, r // 5), 1.0, cv2.FILLED, cv2.LINE_AA)
    dull = cv2.GaussianBlur(image, (0, 0), 4)
    weight = (share * inside)[..., None]
    image = image * (1 - weight) + dull * weight
    return _blend(image, (245, 240, 235), share * bright)
