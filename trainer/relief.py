"""Synthetic lesions rendered as relief: a second yardstick that needs no label, unlike the first.

`trainer.synthetic` blends a shaded blob over the picture. Here the wall itself is raised: a height
field after one of the forms of the Paris classification (Gastrointest Endosc 2003; 58: S3-S43) is
looked at obliquely, with the light at the camera.

    form       a height over the wall: domes, lobes, a plateau, nodules, a stalk with a head
    see        along each line of sight, the first point of the surface: the top covers what is
               behind it and spreads what is before it
    shade      Lambert, cos(normal, ray) relative to the wall's own, with fall-off over depth
    tissue     the place's texture where the surface took it, its vessels faded; a tint, a grain of
               pits, and at times mucus or blood
    put        over the wall with a soft edge, and a contact shadow around it

And what a colon without lesions shows as well (`render_distractor`): folds, glints, foam, stool, a
dark lumen, motion, vignetting. What is chosen on the former must leave the latter unmarked.

The view masks saturated reflections (`ccdstream.view`), so reflections here stay below what it
masks; a picture that holds its own is to be rendered on before the view is cut.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import cv2
import numpy as np

LesionKind = Literal["Is", "Isp", "Ip", "IIa", "LST-G", "IIc"]
"""Sessile, semi-pedunculated, pedunculated, flat elevated, laterally spreading with nodules
(granular), slightly depressed."""
LESION_KINDS: tuple[LesionKind, ...] = get_args(LesionKind)

DistractorKind = Literal[
    "fold", "glints", "bubbles", "stool", "pool", "lumen", "streak", "vignette"
]
DISTRACTOR_KINDS: tuple[DistractorKind, ...] = get_args(DistractorKind)


@dataclass(frozen=True, slots=True)
class ReliefLook:
    """What lesions to draw from."""

    kinds: tuple[LesionKind, ...] = LESION_KINDS
    size: tuple[float, float] = (0.05, 0.65)
    """Bounds of the diameter, as a share of the picture's shorter side; each kind has its own
    range within."""
    shine: float = 45.0
    """Most that a reflection adds, in grey levels; the view masks what rises by 50."""


@dataclass(frozen=True, slots=True)
class DistractorLook:
    """What distractors to draw from."""

    kinds: tuple[DistractorKind, ...] = DISTRACTOR_KINDS
    shine: float = 40.0
    """As a lesion's; small reflections rise more steeply."""


# -- lesions --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Form:
    """Ranges of one kind's geometry."""

    size: tuple[float, float]
    """Diameter, as a share of the picture's shorter side."""
    height: tuple[float, float]
    """In radii."""
    tilt: tuple[float, float]
    """Between the wall's normal and the line of sight, in degrees."""
    shadow: tuple[float, float]
    """Share of the light that the wall loses at the lesion's foot."""
    edge_px: tuple[float, float]
    """Softness of the outline."""
    tints: int = 3
    """How many of `_TINTS` it may take: what hardly rises is seen by its colour only."""


_FORMS: Mapping[LesionKind, _Form] = {
    "Is": _Form((0.05, 0.55), (0.4, 0.85), (15, 50), (0.05, 0.3), (0.6, 1.6)),
    "Isp": _Form((0.10, 0.60), (0.8, 1.2), (25, 55), (0.15, 0.4), (0.6, 1.2)),
    "Ip": _Form((0.08, 0.45), (0.75, 1.0), (0, 20), (0.1, 0.3), (0.6, 1.2)),
    "IIa": _Form((0.20, 0.65), (0.10, 0.24), (15, 55), (0.0, 0.2), (0.8, 2.5)),
    "LST-G": _Form((0.30, 0.65), (0.10, 0.22), (15, 50), (0.05, 0.25), (0.8, 2.0)),
    "IIc": _Form((0.08, 0.45), (0.06, 0.16), (10, 45), (0.0, 0.15), (0.8, 2.5), tints=2),
}
_LEAST_RADIUS_PX = 3.0
_CELLS = 48
"""Most cells per radius: larger lesions are drawn on a coarser grid."""
_SAFE = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class _Surface:
    """A lesion over the wall, on a grid whose rows go up the way that it leans."""

    step: float
    """Pixels of the picture per cell."""
    radius: float
    """In cells."""
    height: np.ndarray
    """float32 [n, n], in cells."""
    outline: np.ndarray
    """float32 [n, n]: below 1 within the lesion."""
    head: np.ndarray
    """float32 [n, n]: 1 where the tissue is the lesion's, 0 where it is the wall's (a stalk)."""


def render_lesion(
    image: np.ndarray,
    valid: np.ndarray,
    rng: np.random.Generator,
    look: ReliefLook = ReliefLook(),
) -> tuple[np.ndarray, np.ndarray]:
    """Raise one lesion from the wall where the picture is valid.

    Args:
        image: uint8 [H, W, 3], RGB.
        valid: bool [H, W]; the lesion's centre is valid, and what is not valid stays as it is.

    Returns:
        uint8 [H, W, 3], and the lesion's mask, bool [H, W], within what is valid.

    Raises:
        ValueError: nothing is valid.
    """
    centre = _place(valid, rng)
    kind = look.kinds[int(rng.random() * len(look.kinds))]
    form = _FORMS[kind]
    smallest, largest = np.clip(form.size, *look.size)
    radius = max(rng.uniform(smallest, largest) * min(valid.shape) / 2, _LEAST_RADIUS_PX)
    wall = _wall_without_holes(image, valid)
    lean = _way_to_lumen(wall, valid, centre) + rng.normal(0, 0.5)
    tilt = math.radians(rng.uniform(*form.tilt))
    surface = _surface(kind, radius, form, rng)
    return _put(image, wall, valid, surface, (centre, lean, tilt), form, look, rng)


def _place(valid: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """(column, row) of a valid pixel, each as likely as any other."""
    places = np.flatnonzero(valid)
    if len(places) == 0:
        raise ValueError("valid must hold a place to render at, and is False everywhere")
    row, column = divmod(int(places[rng.integers(len(places))]), valid.shape[1])
    return float(column), float(row)


def _wall_without_holes(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The picture with what is not valid filled in smoothly, uint8 [H, W, 3]."""
    if valid.all():
        return image
    height, width = valid.shape
    small = (max(1, width // 8), max(1, height // 8))
    known = valid.view(np.uint8)
    lit = cv2.resize(cv2.copyTo(image, known), small, interpolation=cv2.INTER_AREA)
    share = cv2.resize(255 * known, small, interpolation=cv2.INTER_AREA) / np.float32(255)
    total, weight = lit.astype(np.float32), share
    for sigma, trust in ((2.0, 0.1), (12.0, 1e-3)):  # what is near counts; far holes need far light
        total = total + trust * cv2.GaussianBlur(lit.astype(np.float32), (0, 0), sigma)
        weight = weight + trust * cv2.GaussianBlur(share, (0, 0), sigma)
    smooth = np.clip(total / np.maximum(weight, _SAFE)[..., None], 0, 255).astype(np.uint8)
    filled = cv2.resize(smooth, (width, height), interpolation=cv2.INTER_LINEAR)
    return cv2.copyTo(image, known, filled)


def _way_to_lumen(wall: np.ndarray, valid: np.ndarray, centre: tuple[float, float]) -> float:
    """The direction from `centre` to the darkest part of the picture, in radians."""
    height, width = valid.shape
    small = cv2.resize(wall, (32, 32), interpolation=cv2.INTER_AREA)
    luma = cv2.GaussianBlur(small.astype(np.float32) @ _LUMA, (0, 0), 2.5)
    seen = cv2.resize(valid.astype(np.float32), (32, 32), interpolation=cv2.INTER_AREA)
    row, column = divmod(int(np.argmin(luma + 255 * (seen < 0.3))), 32)
    return math.atan2(
        (row + 0.5) / 32 * height - centre[1], (column + 0.5) / 32 * width - centre[0]
    )


_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


# ---- form


def _surface(kind: LesionKind, radius: float, form: _Form, rng: np.random.Generator) -> _Surface:
    """A lesion of `kind`, in the middle of its grid."""
    step = max(1.0, radius / _CELLS)
    radius /= step
    half = math.ceil(_REACH[kind] * radius) + 4
    axis = np.arange(-half, half + 1, dtype=np.float32) / np.float32(radius)
    x, y = np.meshgrid(axis, axis)
    n = len(axis)
    tall = rng.uniform(*form.height)
    warp = rng.uniform(0.04, 0.14) if kind in ("Is", "Isp", "Ip") else rng.uniform(0.12, 0.26)
    x = x + np.float32(warp) * _noise(n, 5, rng)
    y = y + np.float32(warp) * _noise(n, 5, rng)
    head = np.ones((n, n), np.float32)
    if kind in ("Is", "Isp"):
        lobes = int(rng.integers(1, 3) if kind == "Is" else rng.integers(1, 4))
        outline = _lobes(x, y, lobes, rng)
        rise = np.clip(1 - outline**2, 0, 1) ** np.float32(rng.uniform(0.55, 1.1))
    elif kind == "Ip":
        return _on_stalk(x, y, tall, step, radius, rng)
    elif kind == "IIc":
        outline = _lobes(x, y, 1, rng)
        rim = np.exp(-(((outline - 0.72) / 0.24) ** 2)) * (0.7 + 0.35 * _noise(n, 5, rng))
        rise = rim * _step(1.0, 0.8, outline) - rng.uniform(0.4, 1.0) * _step(0.8, 0.25, outline)
    else:
        outline = _lobes(x, y, int(rng.integers(1, 4)), rng)
        if kind == "LST-G":
            nodules = _nodules(n, radius * rng.uniform(0.18, 0.36), rng)
            outline = outline - np.float32(0.12) * nodules
        rise = _step(1.0, rng.uniform(0.4, 0.85), outline) ** np.float32(rng.uniform(0.5, 1.0))
        if kind == "LST-G":
            rise = rise * (0.5 + rng.uniform(0.3, 1.0) * nodules)
        else:
            middle = rng.uniform(-0.4, 0.9) * _step(1.0, 0.1, outline)  # lower, or domed
            rise = rise * (0.8 + middle + 0.25 * _noise(n, 5, rng))
    unevenness = rng.uniform(0.04, 0.15) * _noise(n, 9, rng) + 0.02 * _noise(n, 21, rng)
    rise = rise + unevenness * _step(1.0, 0.6, outline)
    return _Surface(step, radius, np.float32(tall * radius) * rise, outline, head)


_REACH: Mapping[LesionKind, float] = {
    "Is": 2.0,
    "Isp": 2.4,
    "Ip": 2.8,
    "IIa": 1.55,
    "LST-G": 1.6,
    "IIc": 1.5,
}
"""Half the grid's side, in radii: the outline's waves, and what the height leans out by."""


def _lobes(x: np.ndarray, y: np.ndarray, lobes: int, rng: np.random.Generator) -> np.ndarray:
    """Outline of joined superellipses, float32 [n, n]: 0 in a lobe's middle, 1 at the rim."""
    inside: np.ndarray = np.zeros_like(x)
    turn = rng.uniform(0, math.tau)
    for lobe in range(lobes):
        away = 0.0 if lobes == 1 else rng.uniform(0.25, 0.45)
        size = 1.0 if lobes == 1 else rng.uniform(0.6, 0.8)
        where = turn + math.tau * lobe / lobes + rng.normal(0, 0.3)
        dx, dy = x - away * math.cos(where), y - away * math.sin(where)
        slant, stretch = rng.uniform(0, math.pi), rng.uniform(1.0, 1.45)
        long = np.abs(dx * math.cos(slant) + dy * math.sin(slant)) / (size * math.sqrt(stretch))
        wide = np.abs(dy * math.cos(slant) - dx * math.sin(slant)) / (size / math.sqrt(stretch))
        power = rng.uniform(1.8, 2.6)
        f2 = cv2.pow(cv2.pow(long, power) + cv2.pow(wide, power), 2 / power)
        inside = inside + np.exp(np.float32(4.0) * (1 - f2))  # a soft maximum joins them
    return np.sqrt(np.clip(1 - np.log(inside + np.float32(1e-30)) / np.float32(4.0), 0, 9))


def _nodules(n: int, pitch: float, rng: np.random.Generator) -> np.ndarray:
    """Domes about `pitch` pixels apart, float32 [n, n] in [0, 1]."""
    pitch = max(pitch, 3.0)
    count = math.ceil(n / pitch)
    grid = np.stack(np.meshgrid(np.arange(count), np.arange(count)), -1).astype(float)
    grid[1::2, :, 0] += 0.5
    at = ((grid + rng.uniform(-0.32, 0.32, grid.shape)) * pitch).reshape(-1, 2).astype(int)
    at = at[(at < n).all(1) & (at >= 0).all(1)]
    free = np.ones((n, n), np.uint8)
    free[at[:, 1], at[:, 0]] = 0
    away = cv2.distanceTransform(free, cv2.DIST_L2, 5)
    size = pitch * (0.72 + 0.14 * _noise(n, max(2, count // 2), rng))
    return np.clip(1 - (away / np.maximum(size, 1)) ** 2, 0, 1)


def _on_stalk(
    x: np.ndarray,
    y: np.ndarray,
    tall: float,
    step: float,
    radius: float,
    rng: np.random.Generator,
) -> _Surface:
    """A head in the middle, and its stalk that leads against the lean down to the wall."""
    n = len(x)
    outline = _lobes(x, y, int(rng.integers(1, 4)), rng)
    length, bow = rng.uniform(1.6, 2.4), rng.normal(0, 0.4)
    down = np.clip(-y / length, 0, 1.3)
    across = np.abs(x - bow * down * down - 0.25 * rng.normal() * down)
    flare = 1 + rng.uniform(0.5, 1.2) * np.exp(-np.clip(y + length, -0.3, 9) / 0.22)
    width = np.float32(rng.uniform(0.28, 0.45)) * flare
    stalk = np.maximum(across / width, _step(-length + 0.1, -length - 0.25, y) * 2)
    stalk = np.where(y > 0, 9, stalk).astype(np.float32)
    foot = _step(-length, -length + 0.35, y)
    tube = np.minimum(width, 0.45) * np.sqrt(np.clip(1 - stalk**2, 0, 1)) * foot
    dome = 0.1 + np.sqrt(np.clip(1 - outline**2, 0, 1)) + 0.05 * _noise(n, 9, rng)
    is_head = outline < 1
    rise = np.where(is_head, tall * dome, tall * tube)
    # the stalk melts into the wall: its outline reaches 1 where its foot is flat
    melted = np.minimum(stalk + 0.9 * _step(0.5, 0.0, foot), 9)
    return _Surface(
        step,
        radius,
        (radius * rise).astype(np.float32),
        np.where(is_head, outline, np.minimum(outline, melted)).astype(np.float32),
        is_head.astype(np.float32),
    )


# ---- see, shade, put


def _see(height: np.ndarray, tilt: float) -> np.ndarray:
    """Row of the surface that is seen at each pixel of the grid, float32 [n, n].

    A point at row y and height h appears at y + h sin(tilt). What is seen at row r is the first
    point on the way up whose place reaches r: everything behind it is hidden.
    """
    n = len(height)
    rows = np.arange(n, dtype=np.float32)[:, None]
    place = rows + height * np.float32(math.sin(tilt))
    reached = place.copy()
    for lower, upper in pairwise(reached):
        np.maximum(lower, upper, out=upper)
    first = np.clip(np.ceil(reached), 0, n).astype(np.int32)  # the row at or behind it
    columns = np.arange(n, dtype=np.int32)
    counts = np.bincount((first * n + columns).ravel(), minlength=(n + 1) * n)
    counts = counts.reshape(n + 1, n)[:n].astype(np.int32)
    for before, here in pairwise(counts):
        np.add(before, here, out=here)
    # counts[r] points lie at or below row r: the next is the first that reaches beyond it
    after = np.clip(counts, 1, n - 1)
    flat = after * n + columns
    above, below = place.ravel().take(flat), place.ravel().take(flat - n)
    part = np.clip((rows - below) / np.maximum(above - below, _SAFE), 0, 1)
    return (after - 1 + part).astype(np.float32)


def _facing(height: np.ndarray, tilt: float) -> np.ndarray:
    """Cosine between the surface's normal and the ray, float32 [n, n] in [0, 1]."""
    smooth = cv2.GaussianBlur(height, (0, 0), 0.7)
    across = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, ksize=3, scale=0.125)
    along = cv2.Sobel(smooth, cv2.CV_32F, 0, 1, ksize=3, scale=0.125 * math.cos(tilt))
    upright = np.sqrt(1 + across * across + along * along)
    return np.clip((along * math.sin(tilt) + math.cos(tilt)) / upright, 0, 1)


@dataclass(frozen=True, slots=True, eq=False)
class _Sight:
    """What each pixel of a box of the picture sees; float32 [h, w] each."""

    box: tuple[slice, slice]
    """Rows and columns of the picture."""
    x: np.ndarray
    y: np.ndarray
    """Where on the surface's grid."""
    wall_x: np.ndarray
    wall_y: np.ndarray
    """Which place of the box the surface's texture was at, before it was raised."""
    tall: np.ndarray
    """Height over the wall, in radii."""
    outline: np.ndarray
    head: np.ndarray
    facing: np.ndarray
    """Cosine between normal and ray."""


def _sight(
    surface: _Surface,
    centre: tuple[float, float],
    lean: float,
    tilt: float,
    size: tuple[int, ...],
    spread: float,
) -> _Sight:
    """The surface, its middle at `centre`, as it appears in a picture of `size`."""
    step, n = surface.step, len(surface.height)
    half = n // 2
    seen = _see(surface.height, tilt)
    columns = np.tile(np.arange(n, dtype=np.float32), (n, 1))
    outline = cv2.remap(surface.outline, columns, seen, cv2.INTER_LINEAR)
    box = _box(outline < 1, centre, lean, step, size, 6 + 0.28 * step * surface.radius)
    dx = np.arange(box[1].start, box[1].stop, dtype=np.float32)[None] - np.float32(centre[0])
    dy = np.arange(box[0].start, box[0].stop, dtype=np.float32)[:, None] - np.float32(centre[1])
    cos, sin = math.cos(lean), math.sin(lean)
    x = dy * (cos / step) - dx * (sin / step) + half
    y = dx * (cos / step) + dy * (sin / step) + half
    y = cv2.remap(seen, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    facing = _facing(surface.height, tilt)
    layers = cv2.merge([surface.height / surface.radius, surface.outline, surface.head, facing])
    layers = cv2.remap(layers, x, y, cv2.INTER_LINEAR, borderValue=(0, 9, 0, 1))
    tall, outline, head, facing = cv2.split(layers)
    closer = step * (1 - spread * np.clip(tall, 0, 1))
    across, along = (x - half) * closer, (y - half) * closer
    wall_x = along * cos - across * sin + (centre[0] - box[1].start)
    wall_y = along * sin + across * cos + (centre[1] - box[0].start)
    return _Sight(box, x, y, wall_x, wall_y, tall, outline, head, facing)


def _box(
    inside: np.ndarray,
    centre: tuple[float, float],
    lean: float,
    step: float,
    size: tuple[int, ...],
    room: float,
) -> tuple[slice, slice]:
    """Rows and columns of the picture that what is `inside` on the grid falls into, with room."""
    rows, columns = np.nonzero(inside)
    half = len(inside) // 2
    along, across = (rows - half) * step, (columns - half) * step
    x = centre[0] + along * math.cos(lean) - across * math.sin(lean)
    y = centre[1] + along * math.sin(lean) + across * math.cos(lean)
    return (
        slice(max(int(y.min() - room), 0), min(int(y.max() + room) + 1, size[0])),
        slice(max(int(x.min() - room), 0), min(int(x.max() + room) + 1, size[1])),
    )


def _put(
    image: np.ndarray,
    wall: np.ndarray,
    valid: np.ndarray,
    surface: _Surface,
    pose: tuple[tuple[float, float], float, float],
    form: _Form,
    look: ReliefLook,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """The lesion as the camera sees it, over its place in the picture."""
    centre, lean, tilt = pose
    radius = surface.radius * surface.step
    sight = _sight(surface, centre, lean, tilt, valid.shape, rng.uniform(0, 0.3))
    box, n = sight.box, len(surface.height)
    tissue = _tissue(wall[box], radius, _usual_colour(wall, valid), rng)
    tissue = cv2.remap(
        tissue,
        sight.wall_x,
        sight.wall_y,
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    inside = (sight.outline < 1).astype(np.float32)
    ambient = rng.uniform(0.4, 0.65)  # light that comes round, and through the tissue
    light = ambient + (1 - ambient) * np.minimum(sight.facing / math.cos(tilt), 1.7)
    light *= (1 + sight.tall * (1 / rng.uniform(3, 6))) ** 2
    light *= rng.uniform(0.95, 1.15) * float(inside.sum() / max((light * inside).sum(), _SAFE))
    gloss = np.clip(1 - (1 - sight.facing) / rng.uniform(0.004, 0.03), 0, 1)
    gloss *= rng.uniform(0.2, 1) * look.shine
    planes = [
        _shoulder(plane * light * albedo + gloss)
        for plane, albedo in zip(
            cv2.split(tissue), _albedo(sight, n, radius, form.tints, rng), strict=True
        )
    ]
    planes = _films(planes, sight, n, rng)

    alpha = cv2.GaussianBlur(inside, (0, 0), float(rng.uniform(*form.edge_px)))
    foot = _shadow(alpha, radius, rng.uniform(*form.shadow), rng)
    under = (1 - alpha) * (1 - (1 - alpha) * foot)
    place = cv2.split(image[box])
    over = [wall * under + lit * alpha for wall, lit in zip(place, planes, strict=True)]
    put = np.rint(np.clip(cv2.merge(over), 0, 255)).astype(np.uint8)
    keep = valid[box]
    out = image.copy()
    out[box] = np.where(keep[..., None], put, out[box])
    mask = np.zeros(valid.shape, bool)
    mask[box] = (alpha > 0.5) & keep
    return out, mask


def _usual_colour(wall: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Median of each channel over what is valid, float32 [3], at least 1."""
    small = cv2.resize(wall, (32, 32), interpolation=cv2.INTER_AREA)
    seen = cv2.resize(valid.view(np.uint8), (32, 32), interpolation=cv2.INTER_NEAREST) > 0
    colours = small[seen] if seen.any() else small.reshape(-1, 3)
    return np.asarray(np.maximum(np.median(colours, axis=0), 1), np.float32)


def _tissue(
    crop: np.ndarray, radius: float, usual: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The place's texture with its vessels faded, and no darker than a lesion near the camera."""
    sharp = crop.astype(np.float32)
    soft = cv2.GaussianBlur(sharp, (0, 0), 1.1)
    step = max(1, int(0.15 * radius))
    rows, columns = crop.shape[:2]
    low = cv2.resize(
        sharp, (max(1, columns // step), max(1, rows // step)), interpolation=cv2.INTER_AREA
    )
    low = cv2.GaussianBlur(low, (0, 0), max(0.45 * radius / step, 0.3))
    bright = float(usual @ _LUMA)
    dark = np.maximum(rng.uniform(0.45, 0.75) * bright - low @ _LUMA, 0) / bright
    base = low + dark[..., None] * usual
    # a lesion stands before the folds that it covers, and does not show their light and dark
    base += rng.uniform(0.3, 0.8) * (base.mean(axis=(0, 1)) - base)
    vessels, grain = rng.uniform(0.0, 0.35), rng.uniform(0.5, 1.0)
    base = cv2.resize(base - vessels * low, (columns, rows), interpolation=cv2.INTER_LINEAR)
    detail = cv2.addWeighted(sharp, grain, soft, vessels - grain, 0)
    return cv2.add(base, detail)


def _broad(picture: np.ndarray, sigma: float) -> np.ndarray:
    """A wide Gaussian blur, made on fewer pixels."""
    step = max(1, int(sigma / 3))
    rows, columns = picture.shape[:2]
    small = cv2.resize(
        picture, (max(1, columns // step), max(1, rows // step)), interpolation=cv2.INTER_AREA
    )
    small = cv2.GaussianBlur(small, (0, 0), max(sigma / step, 0.3))
    return cv2.resize(small, (columns, rows), interpolation=cv2.INTER_LINEAR)


_TINTS: tuple[tuple[tuple[float, float], ...], ...] = (
    ((0.98, 1.05), (0.80, 0.94), (0.82, 0.99)),  # redder
    ((0.99, 1.06), (1.04, 1.20), (1.05, 1.25)),  # paler
    ((0.97, 1.03), (0.95, 1.03), (0.95, 1.03)),  # as the wall
)
"""Ranges of red, green and blue relative to the mucosa."""


_BLOOD = (0.2, 1.0, 0.9)
_PIT = (0.6, 1.0, 1.0)
"""Share of red, green and blue in what blotches and pits change: blood takes green and blue."""


def _albedo(
    sight: _Sight, n: int, radius: float, tints: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Tint, blotches and pits, relative to the wall: a float32 [h, w] for red, green and blue."""
    ranges = _TINTS[rng.integers(tints)]
    close = min(1.0, radius / 30)  # pits are seen from near only
    grain = rng.uniform(0.01, 0.06) * close * _pits(n, rng)
    mottle = rng.uniform(0.01, 0.07) * _noise(n, 11, rng)
    pattern = cv2.remap(cv2.merge([grain, mottle]), sight.x, sight.y, cv2.INTER_LINEAR)
    pits, blotches = cv2.split(pattern)
    return [
        1 + sight.head * (rng.uniform(*tint) - 1 + blood * blotches + pit * pits)
        for tint, blood, pit in zip(ranges, _BLOOD, _PIT, strict=True)
    ]


def _pits(n: int, rng: np.random.Generator) -> np.ndarray:
    """A band-passed grain of pits, tubes or ridges, float32 [n, n] of unit deviation."""
    fine, stretch = rng.uniform(0.8, 1.8), rng.choice([1.0, 2.0, 3.0])
    white = rng.standard_normal((n, n), dtype=np.float32)
    band = cv2.subtract(
        cv2.GaussianBlur(white, (0, 0), fine * stretch, sigmaY=fine),
        cv2.GaussianBlur(white, (0, 0), fine * stretch * 1.6, sigmaY=fine * 1.6),
    )
    if rng.random() < 0.4:  # ridges between, as a villous or gyrus-like surface has
        band = np.abs(band)
    mean, deviation = (float(value[0, 0]) for value in cv2.meanStdDev(band))
    return np.asarray((band - mean) / (deviation + _SAFE), np.float32)


def _films(
    planes: list[np.ndarray], sight: _Sight, n: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """At times mucus over a part, or spots of blood."""
    kind = rng.random()
    if kind < 0.12:
        film = rng.uniform(0.15, 0.5) * _step(0.2, 1.2, _noise(n, 5, rng))
        film = sight.head * cv2.remap(film, sight.x, sight.y, cv2.INTER_LINEAR)
        luma = sum(float(share) * plane for share, plane in zip(_LUMA, planes, strict=True))
        yellow = (1.2, 1.02, 0.65)
        return [p + film * (y * luma - p) for y, p in zip(yellow, planes, strict=True)]
    if kind < 0.24:
        spots = rng.uniform(0.3, 1) * _step(1.1, 1.9, _noise(n, int(rng.integers(11, 31)), rng))
        spots = sight.head * cv2.remap(spots, sight.x, sight.y, cv2.INTER_LINEAR)
        return [p * (1 - t * spots) for t, p in zip((0.15, 0.45, 0.4), planes, strict=True)]
    return planes


def _shadow(
    alpha: np.ndarray, radius: float, strength: float, rng: np.random.Generator
) -> np.ndarray:
    """Share of its light that the wall loses close to the lesion's foot, float32 [h, w]."""
    width = max(0.08 * radius, 1.2) * rng.uniform(0.7, 1.5)
    side = rng.uniform(0, math.tau)
    shift = np.array([[1, 0, 0.5 * width * math.cos(side)], [0, 1, 0.5 * width * math.sin(side)]])
    rows, columns = alpha.shape
    near = cv2.warpAffine(_broad(alpha, width), shift, (columns, rows))
    return np.asarray(2 * strength * np.clip(near - 0.04, 0, 0.5))


def _shoulder(picture: np.ndarray) -> np.ndarray:
    """Grey levels above 215 pressed below 255, as a camera does: a parabola from slope 1 to 0."""
    over = np.clip(picture - 215, 0, 80)
    return np.asarray(np.minimum(picture, 295) - over * over * (1 / 160))


# ---- noise and steps


def _noise(n: int, cells: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise of about unit deviation, `cells` bumps a side; float32 [n, n]."""
    grid = rng.standard_normal((cells, cells), dtype=np.float32)
    return cv2.resize(grid, (n, n), interpolation=cv2.INTER_CUBIC)


def _step(zero: float, one: float, value: np.ndarray) -> np.ndarray:
    """Smooth from 0 at `zero` to 1 at `one`."""
    share = np.clip((value - np.float32(zero)) / np.float32(one - zero), 0, 1)
    return np.asarray(share * share * (3 - 2 * share))


# -- what is normal -------------------------------------------------------------------------------


def render_distractor(
    image: np.ndarray,
    valid: np.ndarray,
    rng: np.random.Generator,
    look: DistractorLook = DistractorLook(),
) -> tuple[np.ndarray, np.ndarray]:
    """Put something that a colon without lesions shows where the picture is valid.

    Args:
        image: uint8 [H, W, 3], RGB.
        valid: bool [H, W]; what is put is centred where it is valid, and what is not valid stays.

    Returns:
        uint8 [H, W, 3], and where it was put, bool [H, W], within what is valid.

    Raises:
        ValueError: nothing is valid.
    """
    centre = _place(valid, rng)
    paint = _PAINTERS[look.kinds[int(rng.random() * len(look.kinds))]]
    wall = _wall_without_holes(image, valid).astype(np.float32)
    painted, where = paint(wall, centre, look.shine, rng)
    out = image.copy()
    out[valid] = np.rint(np.clip(painted[valid], 0, 255)).astype(np.uint8)
    return out, where & valid


def _turned(
    size: tuple[int, ...], centre: tuple[float, float], turn: float
) -> tuple[np.ndarray, np.ndarray]:
    """How far each pixel lies from `centre` along and across a direction; float32 [H, W]."""
    dx = np.arange(size[1], dtype=np.float32)[None] - np.float32(centre[0])
    dy = np.arange(size[0], dtype=np.float32)[:, None] - np.float32(centre[1])
    cos, sin = math.cos(turn), math.sin(turn)
    return dx * cos + dy * sin, dy * cos - dx * sin


def _wavy(size: tuple[int, ...], cells: int, rng: np.random.Generator) -> np.ndarray:
    """`_noise` for a picture that need not be square."""
    grid = rng.standard_normal((cells, cells), dtype=np.float32)
    return cv2.resize(grid, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)


_Painted = tuple[np.ndarray, np.ndarray]
_Painter = Callable[[np.ndarray, tuple[float, float], float, np.random.Generator], _Painted]
"""(wall float32 [H, W, 3], centre, shine, rng) -> (painted float32 [H, W, 3], bool [H, W])."""


def _fold(
    wall: np.ndarray, centre: tuple[float, float], shine: float, rng: np.random.Generator
) -> _Painted:
    """A ridge from border to border: light on the near side, its shadow behind a sharp crest."""
    size, side = wall.shape[:2], min(wall.shape[:2])
    lumen = _way_to_lumen(np.clip(wall, 0, 255).astype(np.uint8), np.ones(size, bool), centre)
    along, across = _turned(size, centre, lumen + rng.normal(0, 0.3))
    bend = side * rng.uniform(0.3, 1.2)  # folds run around the lumen
    behind = bend - np.hypot(along - bend, across) + 0.02 * side * _wavy(size, 6, rng)
    width = side * rng.uniform(0.03, 0.09)
    crest = 1 / (1 + np.exp(np.clip(-behind / rng.uniform(0.6, 1.2), -30, 30)))
    near = rng.uniform(0.1, 0.3) * np.exp(-((behind / width) ** 2))
    far = rng.uniform(0.12, 0.4) * np.exp(-np.abs(behind) / (0.9 * width))
    light = 1 + near * (1 - crest) - far * crest
    return _shoulder(wall * light[..., None]), np.abs(behind) < 1.3 * width


def _glints(
    wall: np.ndarray, centre: tuple[float, float], shine: float, rng: np.random.Generator
) -> _Painted:
    """Reflections along a wet fold."""
    size, side = wall.shape[:2], min(wall.shape[:2])
    spots = np.zeros(size, np.uint8)
    turn, bow = rng.uniform(0, math.tau), rng.normal(0, 2 / side)
    for spot in range(rng.integers(6, 40)):
        along = rng.normal(0, 0.12 * side) if spot else 0.0
        across = bow * along * along + (rng.normal(0, 0.025 * side) if spot else 0.0)
        x = centre[0] + along * math.cos(turn) - across * math.sin(turn)
        y = centre[1] + along * math.sin(turn) + across * math.cos(turn)
        axes = tuple(round(16 * side / 256 * rng.uniform(0.5, 2.2)) for _ in range(2))
        cv2.ellipse(
            spots,
            (round(16 * x), round(16 * y)),
            axes,
            rng.uniform(0, 180),
            0,
            360,
            255,
            -1,
            cv2.LINE_AA,
            4,
        )
    glow = cv2.GaussianBlur(spots, (0, 0), 0.7).astype(np.float32) / 255
    return wall + (shine * glow)[..., None], glow > 0.1


def _bubbles(
    wall: np.ndarray, centre: tuple[float, float], shine: float, rng: np.random.Generator
) -> _Painted:
    """Foam: clear discs with a bright rim and a reflection each."""
    size, side = wall.shape[:2], min(wall.shape[:2])
    discs, rims, dots = (np.zeros(size, np.uint8) for _ in range(3))
    spread = side * rng.uniform(0.03, 0.14)
    biggest = side * rng.uniform(0.01, 0.035)
    for bubble in range(rng.integers(8, 70)):
        x, y = rng.normal(centre, spread) if bubble else centre
        radius = max(1.2, biggest * rng.uniform(0.3, 1.0))
        at = (round(16 * x), round(16 * y))
        cv2.circle(discs, at, round(16 * radius), 255, -1, cv2.LINE_AA, 4)
        cv2.circle(rims, at, round(16 * radius), int(rng.integers(90, 255)), 1, cv2.LINE_AA, 4)
        glint = (round(16 * (x - 0.35 * radius)), round(16 * (y - 0.35 * radius)))
        cv2.circle(dots, glint, round(16 * max(0.5, 0.2 * radius)), 255, -1, cv2.LINE_AA, 4)
    disc, rim, dot = (
        cv2.GaussianBlur(c, (0, 0), 0.6) / np.float32(255) for c in (discs, rims, dots)
    )
    clear = wall * (1 - 0.1 * disc * (1 - rim))[..., None]
    bright = shine * np.maximum(rng.uniform(0.3, 0.7) * rim, dot)
    return clear + bright[..., None], disc > 0.5


def _stool(
    wall: np.ndarray, centre: tuple[float, float], shine: float, rng: np.random.Generator
) -> _Painted:
    """Specks of residual stool."""
    size, side = wall.shape[:2], min(wall.shape[:2])
    along, across = _turned(size, centre, 0.0)
    reach = side * rng.uniform(0.02, 0.11)
    close = np.exp(-(along**2 + across**2) / (2 * reach * reach))
    lumps = _wavy(size, int(rng.integers(12, 40)), rng) + 0.35 * _wavy(size, 64, rng)
    lumps -= lumps[int(centre[1]), int(centre[0])]
    thick = close * (rng.uniform(1.2, 1.9) + lumps)
    cover = _step(1.0, 1.25, thick)
    slope = cv2.Sobel(cv2.GaussianBlur(thick, (0, 0), 1.0), cv2.CV_32F, 0, 1, ksize=3)
    brown = np.array([rng.uniform(1.2, 1.55), rng.uniform(0.82, 1.0), rng.uniform(0.25, 0.55)])
    luma = _broad(wall @ _LUMA, 0.05 * side) * rng.uniform(0.55, 1.1)
    luma *= 1 + 0.3 * np.clip(slope, -1, 1) + 0.1 * _wavy(size, 80, rng)
    stool = luma[..., None] * brown.astype(np.float32)
    return wall + cover[..., None] * (stool - wall), cover > 0.5


def _pool(
    wall: np.ndarray, centre: tuple[float, float], shine: float, rng: np.random.Generator
) -> _Painted:
    """A pool of turbid liquid, with a bright line where it meets the wall."""
    size, side = wall.shape[:2], min(wall.shape[:2])
    along, across = _turned(size, centre, rng.uniform(0, math.tau))
    radius, stretch = side * rng.uniform(0.08, 0.28), rng.uniform(1.0, 2.2)
    inner = np.hypot(along / stretch, across) - radius + 0.02 * side * _wavy(size, 7, rng)
    cover = rng.uniform(0.4, 0.9) * _step(1.5, -1.5, inner)
    yellow = np.array([rng.uniform(1.2, 1.45), rng.uniform(0.88, 1.02), rng.uniform(0.3, 0.7)])
    luma = _broad(wall @ _LUMA, 0.06 * side) * rng.uniform(0.8, 1.15)
    liquid = luma[..., None] * yellow.astype(np.float32)
    edge = rng.uniform(0, 0.25) * shine * np.exp(-((inner / 1.5) ** 2))
    return wall + cover[..., None] * (liquid - wall) + edge[..., None], inner < 0


def _lumen(
    wall: np.ndarray, centre: tuple[float, float], shine: float, rng: np.random.Generator
) -> _Painted:
    """The colon's dark way ahead, where it was not."""
    size, side = wall.shape[:2], min(wall.shape[:2])
    along, across = _turned(size, centre, rng.uniform(0, math.tau))
    radius, stretch = side * rng.uniform(0.07, 0.25), rng.uniform(1.0, 1.7)
    away = np.hypot(along / stretch, across) / radius + 0.12 * _wavy(size, 5, rng)
    dark = rng.uniform(0.5, 0.85) * _step(rng.uniform(1.2, 1.8), rng.uniform(0.3, 0.9), away)
    return wall * (1 - dark[..., None] * np.array([0.93, 1, 1], np.float32)), away < 1


def _streak(
    wall: np.ndarray, centre: tuple[float, float], shine: float, rng: np.random.Generator
) -> _Painted:
    """A part that moved while the picture was taken."""
    size, side = wall.shape[:2], min(wall.shape[:2])
    along, across = _turned(size, centre, rng.uniform(0, math.tau))
    radius, stretch = side * rng.uniform(0.08, 0.3), rng.uniform(1.0, 2.0)
    away = np.hypot(along / stretch, across) / radius
    length = max(3, int(side * rng.uniform(0.03, 0.1)) | 1)
    turn, middle = rng.uniform(0, math.pi), length // 2
    kernel = np.zeros((length, length), np.float32)
    end = (middle * math.cos(turn), middle * math.sin(turn))
    ends = [(round(16 * (middle + s * end[0])), round(16 * (middle + s * end[1]))) for s in (-1, 1)]
    cv2.line(kernel, ends[0], ends[1], 1.0, 1, cv2.LINE_8, 4)
    moved = cv2.filter2D(wall, -1, kernel / kernel.sum())
    return wall + _step(1.2, 0.8, away)[..., None] * (moved - wall), away < 1


def _vignette(
    wall: np.ndarray, centre: tuple[float, float], shine: float, rng: np.random.Generator
) -> _Painted:
    """Light that falls off, or glares, towards one side of the picture."""
    size, side = wall.shape[:2], min(wall.shape[:2])
    along, _ = _turned(size, centre, rng.uniform(0, math.tau))
    share = _step(-side * rng.uniform(0.3, 0.7), 0.05 * side, along)
    change = rng.uniform(-0.6, -0.3) if rng.random() < 0.6 else rng.uniform(0.15, 0.35)
    lit = wall * (1 + change * share)[..., None]
    return _shoulder(lit) if change > 0 else lit, share > 0.5


_PAINTERS: Mapping[DistractorKind, _Painter] = {
    "fold": _fold,
    "glints": _glints,
    "bubbles": _bubbles,
    "stool": _stool,
    "pool": _pool,
    "lumen": _lumen,
    "streak": _streak,
    "vignette": _vignette,
}
