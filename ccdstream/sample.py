"""A synthetic colonoscopy: frames with sound and known lesions, made from a seed and nothing else.

In: `SampleOptions` (length, seed, size, rate). Out: `Frame`s in presentation order with a
`SampleTruth` for each, an audio track, and a document that says where every lesion is. It is a test
bed and a demonstration: no picture of a patient went into it, and how a model scores on it says
nothing about how it scores on a patient.

How a frame is made. The colon is a bent tube of radius 1 whose wall has folds: its radius is a
height field over (depth, angle). For every angle around the lumen the wall seen along a ray of
slope s = r / z is the first depth where R(z) / z falls to s, so one running minimum along z
finds what is visible and what a fold hides. Light and camera sit at the same place, so shading is
cos(angle between wall and ray) with fall-off, and a highlight needs only that same cosine. The
wall's texture (vessels, mottling, relief) is drawn once per seed and looked up per pixel.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

import cv2
import numpy as np

from ccdstream.frames import Colour, Frame

NOTICE = (
    "Synthetic: a drawn scene, no patient. A test bed and a demonstration; results on it are not "
    "evidence of accuracy on real colonoscopy."
)
AUDIO_RATE_HZ = 48_000

SceneKind = Literal["normal", "lesion", "blur", "wash", "out_of_body"]
Look = Literal["sessile", "pedunculated", "flat"]
LOOKS: tuple[Look, ...] = ("sessile", "pedunculated", "flat")

_CYCLE_S = 20.0
# One cycle of the timeline: kind, look, seconds. Longer videos repeat it and stretch the normal
# scenes; what happens in between keeps its length.
_CYCLE: tuple[tuple[SceneKind, Look | None, float], ...] = (
    ("normal", None, 6.2),
    ("lesion", "sessile", 2.6),
    ("normal", None, 1.4),
    ("blur", None, 1.0),
    ("normal", None, 0.6),
    ("lesion", "pedunculated", 2.6),
    ("normal", None, 0.8),
    ("wash", None, 1.0),
    ("normal", None, 0.6),
    ("lesion", "flat", 2.0),
    ("normal", None, 0.2),
    ("out_of_body", None, 1.0),
)
# Too short for a cycle: everything once, as shares of the length.
_SHORT: tuple[tuple[SceneKind, Look | None, float], ...] = (
    ("normal", None, 0.42),
    ("lesion", "sessile", 0.26),
    ("normal", None, 0.08),
    ("blur", None, 0.08),
    ("wash", None, 0.08),
    ("out_of_body", None, 0.08),
)
_SHORT_S = 4.0  # below this there is time for normal mucosa only
_CYCLE_FROM_S = 14.0  # from this length on the events of a cycle leave room for normal mucosa


@dataclass(frozen=True, slots=True)
class SampleOptions:
    """What to make. Equal options make equal bytes on one machine.

    Raises:
        ValueError: a value is out of its range.
    """

    seconds: float = 20.0
    seed: int = 0
    size: tuple[int, int] = (576, 720)
    """(height, width), in pixels."""
    rate: Fraction = Fraction(25)
    """Frames per second."""
    lesions: bool = True
    """False: the same colon, camera and disturbances with healthy wall where lesions would be."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.seconds) or self.seconds < 1:
            raise ValueError(f"seconds must be at least 1, got {self.seconds}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        if len(self.size) != 2 or not all(96 <= side <= 4096 for side in self.size):
            raise ValueError(
                f"size must be (height, width) with both from 96 to 4096 pixels, got {self.size}"
            )
        if not 1 <= self.rate <= 240:
            raise ValueError(f"rate must be from 1 to 240 frames per second, got {self.rate}")

    @property
    def frame_count(self) -> int:
        """Frames that `frames` yields."""
        return round(Fraction(self.seconds) * self.rate)

    @property
    def time_base(self) -> Fraction:
        """Seconds per unit of pts: pts counts frames."""
        return 1 / Fraction(self.rate)


@dataclass(frozen=True, slots=True)
class Scene:
    """A stretch of the video that shows one thing."""

    kind: SceneKind
    start_frame: int
    end_frame: int
    """First frame after the scene."""
    look: Look | None = None
    """What the lesion looks like; None in scenes without one."""


@dataclass(frozen=True, slots=True)
class Rle:
    """A mask as run lengths, down the columns, first run of zeros: COCO's uncompressed form."""

    size: tuple[int, int]
    """(height, width) of the mask."""
    counts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SampleTruth:
    """What one frame shows."""

    index: int
    pts: int
    seconds: float
    kind: SceneKind
    look: Look | None
    boxes: tuple[tuple[int, int, int, int], ...]
    """(x, y, width, height) in frame pixels of each lesion that can be seen; empty if none can."""
    mask: Rle | None
    """Pixels of all lesions; None where `boxes` is empty."""


def encode_mask(mask: np.ndarray) -> Rle:
    """Run lengths of `mask`, bool [H, W]."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    edges = np.concatenate([[0], changes, [mask.size]])
    height, width = mask.shape
    return Rle((height, width), tuple(int(run) for run in np.diff(edges)))


def decode_mask(rle: Rle) -> np.ndarray:
    """The bool [H, W] mask that `encode_mask` was given."""
    values = np.arange(len(rle.counts)) % 2 == 1
    return np.repeat(values, rle.counts).reshape(rle.size, order="F")


def scenes(options: SampleOptions) -> list[Scene]:
    """The timeline: scenes without gaps from frame 0 to the last, in order."""
    plan = _plan(options)
    if options.lesions:
        return plan
    return [
        Scene("normal", scene.start_frame, scene.end_frame) if scene.kind == "lesion" else scene
        for scene in plan
    ]


def frames(options: SampleOptions) -> Iterator[tuple[Frame, SampleTruth]]:
    """Every frame with its truth, in presentation order, made one at a time as they are asked for.

    Frames are YUV 4:2:0, BT.601 limited range; pts counts frames, time_base is 1 / rate.
    """
    video = _Video(options)
    for index in range(options.frame_count):
        rgb, mask = video.picture(index)
        truth = video.truth(index, mask)
        yield _to_frame(rgb, truth.pts, options.time_base), truth


def truths(options: SampleOptions) -> Iterator[SampleTruth]:
    """The truths that `frames` yields, without painting the frames."""
    video = _Video(options)
    for index in range(options.frame_count):
        yield video.truth(index, video.mask(index))


def truth_document(
    options: SampleOptions, found: Iterable[SampleTruth] | None = None
) -> dict[str, Any]:
    """What truth.json holds: the notice, the options, the timeline and every lesion's whereabouts.

    Args:
        found: the truths that came with the frames, where the caller has kept them; else they are
            worked out again.
    """
    time_base = options.time_base
    lesions = []
    for truth in truths(options) if found is None else found:
        if truth.mask is None:
            continue
        lesions.append(
            {
                "frame": truth.index,
                "pts": truth.pts,
                "seconds": truth.seconds,
                "look": truth.look,
                "boxes": [list(box) for box in truth.boxes],
                "mask": {"size": list(truth.mask.size), "counts": list(truth.mask.counts)},
            }
        )
    return {
        "format": "ccdstream-sample-truth",
        "format_version": 1,
        "notice": NOTICE,
        "seconds": options.seconds,
        "seed": options.seed,
        "size": list(options.size),
        "rate": str(Fraction(options.rate)),
        "time_base": str(time_base),
        "frame_count": options.frame_count,
        "scenes": [
            {
                "kind": scene.kind,
                "look": scene.look,
                "start_frame": scene.start_frame,
                "end_frame": scene.end_frame,
                "start_s": float(scene.start_frame * time_base),
                "end_s": float(scene.end_frame * time_base),
            }
            for scene in scenes(options)
        ],
        "lesions": lesions,
    }


def still(seed: int, *, size: tuple[int, int] = (576, 720)) -> np.ndarray:
    """One frame of healthy colon, uint8 [H, W, 3] RGB; another for every seed."""
    return _still(seed, size, None)[0]


def lesion_still(
    seed: int, look: Look = "sessile", *, size: tuple[int, int] = (576, 720)
) -> tuple[np.ndarray, np.ndarray]:
    """One frame with a lesion, uint8 [H, W, 3] RGB, and where the lesion is, bool [H, W]."""
    if look not in LOOKS:
        raise ValueError(f"look must be one of {', '.join(LOOKS)}, got {look!r}")
    return _still(seed, size, look)


def audio_blocks(options: SampleOptions) -> Iterator[np.ndarray]:
    """The sound track in pieces of at most a second: int16 [samples], mono, 48 kHz.

    A room's hum and air, a monitor's soft beep at every heartbeat, hiss while the lens is washed.
    """
    total = round(Fraction(options.seconds) * AUDIO_RATE_HZ)
    washes = [scene for scene in _plan(options) if scene.kind == "wash"]
    for block, start in enumerate(range(0, total, AUDIO_RATE_HZ)):
        length = min(AUDIO_RATE_HZ, total - start)
        seconds = (start + np.arange(length)) / AUDIO_RATE_HZ
        rng = np.random.default_rng([options.seed, 7, block])
        white = rng.standard_normal(length)
        air = np.convolve(white, np.full(24, 1 / 24), mode="same")
        sound = 0.020 * np.sin(math.tau * 50 * seconds) + 0.008 * np.sin(math.tau * 150 * seconds)
        sound += 0.020 * air * (1 + 0.3 * np.sin(math.tau * 0.23 * seconds))
        beat = np.mod(seconds, 60 / 72)
        sound += 0.05 * np.sin(math.tau * 880 * seconds) * np.exp(-(((beat - 0.1) / 0.035) ** 4))
        for scene in washes:
            middle = float((scene.start_frame + scene.end_frame) * options.time_base / 2)
            half = float((scene.end_frame - scene.start_frame) * options.time_base / 2)
            if abs(middle - block) > half + 2:
                continue
            sound += 0.06 * white * np.exp(-(((seconds - middle) / half) ** 4))
        yield np.clip(np.rint(sound * 32767), -32768, 32767).astype(np.int16)


def audio(options: SampleOptions) -> np.ndarray:
    """The whole of `audio_blocks`: int16 [samples], mono, 48 kHz."""
    return np.concatenate(list(audio_blocks(options)))


# ---------------------------------------------------------------------------------- the timeline


def _plan(options: SampleOptions) -> list[Scene]:
    """The timeline with its lesions, whether or not they are to be drawn."""
    parts: list[tuple[SceneKind, Look | None, float]] = []
    if options.seconds < _SHORT_S:
        parts = [("normal", None, options.seconds)]
    elif options.seconds < _CYCLE_FROM_S:
        parts = [(kind, look, share * options.seconds) for kind, look, share in _SHORT]
    else:
        cycles = max(1, round(options.seconds / _CYCLE_S))
        normal_s = sum(seconds for kind, _, seconds in _CYCLE if kind == "normal")
        stretch = 1 + (options.seconds / cycles - _CYCLE_S) / normal_s
        for cycle in range(cycles):
            for kind, look, seconds in _CYCLE:
                if kind == "normal":
                    seconds *= stretch
                if kind == "out_of_body" and cycle < cycles - 1:
                    kind = "normal"
                parts.append((kind, look, seconds))
    ends = np.rint(np.cumsum([seconds for _, _, seconds in parts]) * float(options.rate))
    ends[-1] = options.frame_count
    edges = [0, *(int(end) for end in ends)]
    return [
        Scene(kind, start, end, look)
        for (kind, look, _), (start, end) in zip(parts, pairwise(edges), strict=True)
        if end > start
    ]


# ------------------------------------------------------------------------------- the colon's wall

# Units: the colon's radius is 1. The wall repeats every _PERIOD along the colon, further than one
# can see.
_PERIOD = 16
_RELIEF_ROWS, _RELIEF_COLS = 64 * _PERIOD, 512  # height field over (depth, angle)
_PAINT_ROWS, _PAINT_COLS = 192 * _PERIOD, 1152  # texture over (depth, angle)


@dataclass(frozen=True, slots=True, eq=False)
class _Wall:
    """The wall of one colon, periodic both ways."""

    relief: np.ndarray
    """float32 [_RELIEF_ROWS, _RELIEF_COLS]: how far the wall stands in from radius 1."""
    paint: np.ndarray
    """uint8 [_PAINT_ROWS, _PAINT_COLS, 4]: red, green, blue share of the light that comes back
    (150 is all), and the roughness that breaks highlights up."""
    spot: np.ndarray
    """float32 [256, 256]: mottling of a lesion's surface, about 0, periodic."""


def _noise(rng: np.random.Generator, rows: int, cols: int, cells: tuple[int, int]) -> np.ndarray:
    """Smooth periodic noise, float32 [rows, cols], of about unit variance at its grid points.

    `cells` (down, across) is how many grid points there are; they must divide rows and cols.
    """
    down, across = cells
    margin = 2
    grid = rng.standard_normal((down, across), dtype=np.float32)
    grid = np.pad(grid, margin, mode="wrap")
    step_r, step_c = rows // down, cols // across
    full = cv2.resize(
        grid,
        ((across + 2 * margin) * step_c, (down + 2 * margin) * step_r),
        interpolation=cv2.INTER_CUBIC,
    )
    r0, c0 = margin * step_r, margin * step_c
    return full[r0 : r0 + rows, c0 : c0 + cols]


def _vessels(rng: np.random.Generator, trees: int) -> np.ndarray:
    """Branching vessels, float32 [_PAINT_ROWS, _PAINT_COLS] in [0, 1], periodic."""
    rows, cols = _PAINT_ROWS, _PAINT_COLS
    canvas = np.zeros((rows, cols), np.uint8)
    # (row, column, heading in radians, thickness in pixels, steps left)
    stack = [
        (rng.uniform(0, rows), rng.uniform(0, cols), rng.uniform(0, math.tau), 4.5, 26)
        for _ in range(trees)
    ]
    while stack:
        row, col, heading, width, steps = stack.pop()
        points = [(col, row)]
        for step in range(steps):
            heading += rng.normal(0, 0.24)
            row += 11 * math.sin(heading)
            col += 11 * math.cos(heading)
            points.append((col, row))
            if width > 1.3 and step > 2 and rng.random() < 0.16:
                turn = heading + rng.choice((-1, 1)) * rng.uniform(0.4, 1.0)
                stack.append((row, col, turn, width * 0.66, int(steps * 0.75)))
        line = np.array(points)
        shade = int(min(255, 90 + 34 * width))
        for shift_r in (-rows, 0, rows):
            for shift_c in (-cols, 0, cols):
                moved = line + np.array([shift_c, shift_r])
                low, high = moved.min(0), moved.max(0)
                if high[0] < 0 or high[1] < 0 or low[0] > cols or low[1] > rows:
                    continue
                fixed = np.rint(moved * 8).astype(np.int32)
                thick = max(1, round(width))
                cv2.polylines(canvas, [fixed], False, shade, thick, cv2.LINE_AA, shift=3)
    return cv2.GaussianBlur(canvas.astype(np.float32) / 255, (0, 0), 1.1)


def _folds(rng: np.random.Generator) -> np.ndarray:
    """Haustral folds, float32 [_RELIEF_ROWS, _RELIEF_COLS]: how far they stand in, 0 to about 0.5.

    Each is a crescent between two of the colon's three bands, so lumens look rounded triangular.
    """
    rows, cols = _RELIEF_ROWS, _RELIEF_COLS
    window = np.arange(-96, 97)  # rows that a fold may reach from where it is
    nearby = window[:, None].astype(np.float32) * (_PERIOD / rows)
    angle = np.arange(cols, dtype=np.float32)[None] * (math.tau / cols)
    relief = np.zeros((rows, cols), np.float32)
    at = 0.0
    turn = rng.uniform(0, math.tau)
    while at < _PERIOD - 0.55:
        for band in range(3):
            middle = turn + band * math.tau / 3 + rng.normal(0, 0.18)
            reach = rng.uniform(0.75, 1.25)  # half-width in radians
            tall = rng.uniform(0.16, 0.42)
            thin = rng.uniform(0.07, 0.13)
            slant, bow = rng.normal(0, 0.10), rng.uniform(0.0, 0.16)
            around = np.mod(angle - middle + math.pi, math.tau) - math.pi
            share = np.clip(1 - (around / reach) ** 2, 0, 1) ** 0.8
            start = at + rng.normal(0, 0.12)
            crest = slant * around + bow * around**2
            along = nearby - crest
            rise = np.exp(-(np.abs(along / thin) ** 1.7)) + 0.25 * np.exp(-((along / 0.35) ** 2))
            here = (round(start * rows / _PERIOD) + window) % rows
            relief[here] = np.maximum(relief[here], tall * share * rise)
        at += rng.uniform(0.75, 1.35)
        turn += rng.normal(0, 0.25)
    return relief


def _grain_noise(rng: np.random.Generator, rows: int, cols: int, sigma: float) -> np.ndarray:
    """Noise without a grid's grain, `sigma` pixels fine, unit variance; float32 [rows, cols]."""
    shrink = max(1, int(sigma / 1.5))
    white = rng.standard_normal((rows // shrink, cols // shrink), dtype=np.float32)
    margin = 12
    white = np.pad(white, margin, mode="wrap")
    smooth = cv2.GaussianBlur(white, (0, 0), sigma / shrink)[margin:-margin, margin:-margin]
    smooth = cv2.resize(smooth, (cols, rows), interpolation=cv2.INTER_CUBIC)
    return np.asarray(smooth / smooth.std())


def _hollow(relief: np.ndarray) -> np.ndarray:
    """Share of the light that creases between folds lose, float32 in [0, 0.3]."""
    margin = 64
    padded = np.pad(relief, margin, mode="wrap")
    around = cv2.GaussianBlur(padded, (0, 0), 9.0)[margin:-margin, margin:-margin]
    return np.asarray(np.clip(2.2 * (around - relief), 0, 0.3))


@lru_cache(maxsize=2)
def _wall(seed: int) -> _Wall:
    """The wall that belongs to `seed`."""
    rng = np.random.default_rng([seed, 1])
    rows, cols = _RELIEF_ROWS, _RELIEF_COLS
    relief = _folds(rng)
    relief += 0.055 * _noise(rng, rows, cols, (16, 4))
    relief += 0.016 * _noise(rng, rows, cols, (64, 16))
    relief += 0.004 * _noise(rng, rows, cols, (128, 32))

    rows, cols = _PAINT_ROWS, _PAINT_COLS
    fine = _grain_noise(rng, rows, cols, 2.2)
    bumps = _grain_noise(rng, rows, cols, 7.0)
    # Light comes from the camera, so what leans towards it (down the rows) is brighter.
    lean = cv2.Sobel(bumps + 0.25 * fine, cv2.CV_32F, 0, 1, ksize=3, scale=0.125)
    mottle = 0.5 * _noise(rng, rows, cols, (96, 36)) + 0.8 * _noise(rng, rows, cols, (48, 18))
    patch = _noise(rng, rows, cols, (16, 6))
    vessels = _vessels(rng, trees=52)
    hollow = cv2.resize(_hollow(relief), (cols, rows), interpolation=cv2.INTER_LINEAR)
    light = (1 + 0.22 * lean + 0.012 * fine + 0.025 * mottle) * (1 - hollow)
    red = light * (1 + 0.012 * patch) - 0.07 * vessels
    green = light * (1 - 0.035 * mottle - 0.05 * patch) - 0.22 * vessels
    blue = light * (1 - 0.03 * mottle - 0.07 * patch) - 0.16 * vessels
    beads = _grain_noise(rng, rows, cols, 3.6)
    rough = 0.42 + 0.14 * beads + 0.09 * _noise(rng, rows, cols, (64, 24))
    paint = cv2.merge(
        [
            np.clip(scale * channel + 0.5, 0, 255).astype(np.uint8)
            for scale, channel in ((150, red), (150, green), (150, blue), (255, rough))
        ]
    )
    spot_rng = np.random.default_rng([seed, 2])
    spot = sum(
        (
            share * _noise(spot_rng, 256, 256, (cells, cells))
            for share, cells in ((0.9, 16), (0.8, 32), (0.6, 64))
        ),
        np.zeros((256, 256), np.float32),
    )
    return _Wall(relief, paint, spot)


# ---------------------------------------------------------------------- what the camera looks at


@dataclass(frozen=True, slots=True)
class _Lesion:
    """A lesion on the wall; lengths in colon radii."""

    look: Look
    depth: float
    angle: float
    """Radians around the lumen, as the wall counts them."""
    radius: float
    height: float
    tint: tuple[float, float, float]
    """Red, green, blue relative to the mucosa around it."""
    lobes: tuple[float, float]
    """Phases in radians of its outline's irregularity."""


@dataclass(frozen=True, slots=True)
class _Pose:
    """Where the scope is."""

    depth: float
    offset: tuple[float, float]
    """From the colon's centre line, in radii."""
    pan: tuple[float, float]
    """Where the lumen lies from the picture's middle (x, y), in shares of the focal length."""
    roll: float
    """Radians."""


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """Geometry per pixel of the field of view's box; all float32 [h, w]."""

    angle: np.ndarray
    """Around the lumen, as the wall counts it, in radians."""
    depth: np.ndarray
    """How far ahead of the camera along the lumen."""
    track: np.ndarray
    """How far along the wall: depth and the way up the folds, so paint does not smear on them."""
    light: np.ndarray
    """Light that a white wall would return."""
    facing: np.ndarray
    """Cosine between the wall's normal and the ray."""


_Cover = tuple[
    tuple[slice, slice], np.ndarray, np.ndarray | None, np.ndarray | None, np.ndarray, np.ndarray
]

_NEAR, _FAR = 0.14, 14.0
_GRAIN_ZERO = 16  # grey level of the grain picture that changes nothing
_DEPTHS = 320
_RAYS = 450
_STEEPEST = 3.4  # slope r / z of the outermost ray
_Z = np.geomspace(_NEAR, _FAR, _DEPTHS, dtype=np.float32)
_Z_STEP = math.log(_FAR / _NEAR) / (_DEPTHS - 1)


def _lesion_of(seed: int, number: int, look: Look, depth: float) -> _Lesion:
    """The lesion that the `number`-th lesion scene shows."""
    rng = np.random.default_rng([seed, 3, number])
    radius = {"sessile": 0.42, "pedunculated": 0.25, "flat": 0.50}[look] * rng.uniform(0.9, 1.1)
    height = {"sessile": 0.36, "pedunculated": 0.56, "flat": 0.06}[look] * rng.uniform(0.9, 1.1)
    tint = {
        "sessile": (1.02, 0.80, 0.80),
        "pedunculated": (1.0, 0.76, 0.76),
        "flat": (1.06, 1.12, 1.18),
    }[look]
    return _Lesion(
        look,
        depth,
        rng.uniform(0, math.tau),
        radius,
        height,
        tint,
        (rng.uniform(0, math.tau), rng.uniform(0, math.tau)),
    )


def _footprint(lesion: _Lesion, depth: np.ndarray, angle: np.ndarray) -> np.ndarray:
    """Distance from the lesion's middle along the wall, 1 at its outline; `depth` is absolute.

    The outline is r(a) = radius (1 + 0.10 cos(2a + p) + 0.07 cos(3a + q)), with the cosines of
    multiples written as polynomials of the direction.
    """
    turn = angle - np.float32(lesion.angle)
    across = turn - np.float32(math.tau) * np.rint(turn * np.float32(1 / math.tau))
    along = depth - np.float32(lesion.depth)
    away = np.sqrt(across * across + along * along) + np.float32(1e-6)
    c, s = across / away, along / away
    p, q = lesion.lobes
    c2, s2 = c * c - s * s, 2 * c * s
    outline = 1 + 0.10 * (math.cos(p) * c2 - math.sin(p) * s2)
    outline += 0.07 * (math.cos(q) * (c2 * c - s2 * s) - math.sin(q) * (s2 * c + c2 * s))
    return np.asarray(away / (np.float32(lesion.radius) * outline))


def _rise(lesion: _Lesion, distance: np.ndarray) -> np.ndarray:
    """How far the lesion stands in from the wall at `distance` (1 at the outline)."""
    if lesion.look == "pedunculated":
        return np.zeros(distance.shape, np.float32)
    inside: np.ndarray = np.clip(1 - distance**2, 0, 1)
    if lesion.look == "sessile":
        return np.asarray(lesion.height * np.sqrt(inside))
    margin = 0.6 + 0.4 * np.clip(distance, 0, 1) ** 2  # a little higher than the middle
    return np.asarray(lesion.height * np.minimum(1, 3 * inside) * margin)


class _Scope:
    """A camera in one colon: turns a pose into geometry, and geometry into a picture."""

    def __init__(self, seed: int, size: tuple[int, int], *, balance: int = 0) -> None:
        height, width = size
        scale = min(height / 576, width / 720)
        self.size = size
        self.scale = scale
        self.seed = seed
        self.wall = _wall(seed)
        # Like the common 720x576 recordings: an octagon of about 630x549 inside a black border.
        self.field_height, self.field_width = round(549 * scale), round(630 * scale)
        self.top = round((height - self.field_height) * 0.52)
        self.left = round((width - self.field_width) * 0.49)
        self.focal_px = 230 * scale
        cut = 105 * scale
        right, bottom = self.field_width - 1, self.field_height - 1
        self.outline = np.array(
            [
                (cut, 0),
                (right - cut, 0),
                (right, cut),
                (right, bottom - cut),
                (right - cut, bottom),
                (cut, bottom),
                (0, bottom - cut),
                (0, cut),
            ],
            np.float32,
        )
        window = np.zeros((self.field_height, self.field_width), np.uint8)
        cv2.fillPoly(window, [np.rint(self.outline * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        self.inside = window >= 128
        self.window = cv2.merge([window] * 3)
        self.x = np.arange(self.field_width, dtype=np.float32)[None] - right / 2
        self.y = np.arange(self.field_height, dtype=np.float32)[:, None] - bottom / 2
        self.vignette = (
            1 - 0.30 * ((self.x / self.focal_px) ** 2 + (self.y / self.focal_px) ** 2) / 2.6
        )

        rng = np.random.default_rng([seed, 4])
        self._bends = [
            (
                rng.uniform(0.7, 1.3) * tall,
                math.tau / rng.uniform(0.85, 1.15) / long,
                rng.uniform(0, math.tau),
                axis,
            )
            for tall, long in ((0.42, 10.0), (0.07, 4.7))
            for axis in (0, 1)
        ]
        self._ramp = _colour_ramp(np.random.default_rng([seed, 11, balance]))
        grain = rng.standard_normal((self.field_height + 64, self.field_width + 64, 3))
        grain = 1.5 * grain[..., :1] + 0.8 * grain
        grain = np.rint(grain + _GRAIN_ZERO)
        self._grain = np.clip(grain, 0, 2 * _GRAIN_ZERO).astype(np.uint8)

    def _centre_line(self, depth: np.ndarray) -> np.ndarray:
        """Where the colon's middle lies, float64 [2, ...]."""
        at = np.zeros((2, *depth.shape))
        for tall, pitch, phase, axis in self._bends:
            at[axis] += tall * np.sin(pitch * depth + phase)
        return at

    def _radius(self, pose: _Pose, lesion: _Lesion | None) -> tuple[np.ndarray, np.ndarray]:
        """Wall's distance from the line of sight, and its relief: float32 [_DEPTHS, angles]."""
        rows = np.mod((pose.depth + _Z) * (_RELIEF_ROWS / _PERIOD), _RELIEF_ROWS)
        whole = np.floor(rows).astype(np.int64) % _RELIEF_ROWS
        part = (rows - np.floor(rows)).astype(np.float32)[:, None]
        relief = self.wall.relief[whole]
        relief += part * (self.wall.relief[(whole + 1) % _RELIEF_ROWS] - relief)
        angle = np.arange(_RELIEF_COLS, dtype=np.float32) * (math.tau / _RELIEF_COLS)
        if lesion is not None:
            reach = 2.0 * lesion.radius
            near = np.flatnonzero(np.abs(pose.depth + _Z - lesion.depth) < reach)
            if near.size:
                block = slice(near[0], near[-1] + 1)
                depths = np.broadcast_to((pose.depth + _Z[block])[:, None], relief[block].shape)
                distance = _footprint(lesion, depths, angle[None])
                # It sits between folds: on a crest it would close the lumen.
                relief[block] *= 1 - 0.75 * np.clip(1.8 - distance, 0, 1)
                relief[block] += _rise(lesion, distance)
        # The line of sight leads from the camera to the colon's middle some way ahead.
        ahead = 3.2
        here = self._centre_line(np.array(pose.depth)) + np.array(pose.offset)
        there = self._centre_line(np.array(pose.depth + ahead))
        line = here[:, None] + (there - here)[:, None] * (_Z / ahead)
        middle = (self._centre_line(pose.depth + _Z) - line).astype(np.float32)
        cos, sin = np.cos(angle)[None], np.sin(angle)[None]
        towards = middle[0][:, None] * cos + middle[1][:, None] * sin
        beside = middle[0][:, None] * sin - middle[1][:, None] * cos
        radius = 1 - relief
        radius *= radius
        beside *= beside
        radius -= beside
        np.maximum(radius, 1e-4, out=radius)
        radius = np.sqrt(radius)
        radius += towards
        return np.maximum(radius, 0.02, out=radius), relief

    def look(self, pose: _Pose, lesion: _Lesion | None) -> tuple[_Seen, np.ndarray]:
        """What every pixel of the field of view's box sees; and the radius grid behind it."""
        radius, relief = self._radius(pose, lesion)
        z = _Z[:, None]

        # Visibility: along each angle the slope of what is seen only ever falls with depth.
        steep = radius / z
        slope = steep.copy()  # [_DEPTHS, angles]
        for lower, upper in pairwise(slope):  # row by row: numpy's accumulate is ten times slower
            np.minimum(lower, upper, out=upper)
        step = _STEEPEST / (_RAYS - 1)
        first = np.minimum(np.ceil(slope * (1 / step)), _RAYS).astype(np.int32)
        columns = np.arange(_RELIEF_COLS, dtype=np.int32)
        first *= _RELIEF_COLS
        first += columns
        falls = np.bincount(first.ravel(), minlength=(_RAYS + 1) * _RELIEF_COLS)
        falls = falls.reshape(_RAYS + 1, _RELIEF_COLS).astype(np.int32)
        for lower, upper in pairwise(falls[::-1]):
            np.add(lower, upper, out=upper)
        low = np.clip(falls[1:], 1, _DEPTHS - 1)  # samples that are still steeper than the ray
        low *= _RELIEF_COLS
        low += columns
        last = low - _RELIEF_COLS
        above, below = slope.ravel().take(last), slope.ravel().take(low)
        rays = (np.arange(_RAYS, dtype=np.float32) * step)[:, None]
        part = np.clip((above - rays) / np.maximum(above - below, 1e-6), 0, 1)
        part[steep.ravel().take(last) > above] = 1  # past a fold's edge nothing is in between
        row = (last // _RELIEF_COLS).astype(np.float32) + part  # [_RAYS, angles]

        # Shading on the grid of depths, looked up where rays end.
        along = np.empty_like(radius)
        along[1:-1] = (radius[2:] - radius[:-2]) / (z[2:] - z[:-2])
        along[0], along[-1] = along[1], along[-2]
        wrapped = np.concatenate([radius[:, -1:], radius, radius[:, :1]], axis=1)
        across = (wrapped[:, 2:] - wrapped[:, :-2]) / radius
        across *= _RELIEF_COLS / (2 * math.tau)
        squared = radius * radius + z * z
        facing = (radius - along * z) / np.sqrt(squared * (1 + along * along + across * across))
        np.clip(facing, 0, 1, out=facing)
        shining = _light(facing, squared) * np.exp(-((z / 8) ** 2))
        grid = cv2.merge([shining, facing, relief])
        column_map = np.tile(columns.astype(np.float32), (_RAYS, 1))
        hit = cv2.remap(grid, column_map, row, cv2.INTER_LINEAR)
        depth = _NEAR * np.exp(row * np.float32(_Z_STEP))
        light, facing, track = cv2.split(hit)
        # A fold's very edge is dark for less than a ray's width: sampled, it would be dotted.
        light = cv2.dilate(light, np.ones((3, 3), np.uint8))
        polar = cv2.merge([depth, light, facing, track])
        polar = np.concatenate([polar, polar[:, :2]], axis=1)

        reach, angle = cv2.cartToPolar(
            self.x * np.float32(1 / self.focal_px) - np.float32(pose.pan[0]) + 0 * self.y,
            self.y * np.float32(1 / self.focal_px) - np.float32(pose.pan[1]) + 0 * self.x,
        )
        angle -= np.float32(pose.roll % math.tau)
        angle += math.tau * (angle < 0)
        screen = cv2.remap(
            polar,
            angle * (_RELIEF_COLS / math.tau),
            reach * (1 / step),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        ahead, lit, faced, rise = cv2.split(screen)
        return _Seen(angle, ahead, ahead + rise, lit, faced), radius

    def paint(self, pose: _Pose, lesion: _Lesion | None) -> tuple[np.ndarray, np.ndarray | None]:
        """The field of view's box, uint8 [h, w, 3] RGB, and the lesion's pixels, bool [h, w]."""
        seen, radius = self.look(pose, lesion)
        rows = np.float32(pose.depth % _PERIOD) + np.minimum(seen.track, 9.0)
        texture = cv2.remap(
            self.wall.paint,
            seen.angle * (_PAINT_COLS / math.tau),
            rows * (_PAINT_ROWS / _PERIOD),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_WRAP,
        )
        exposure = (0.16 / float(seen.light[::8, ::8].mean())) ** 0.75 * 6.0
        shade = seen.light * self.vignette
        facing = seen.facing
        colour = texture[..., :3].astype(np.float32)
        rough = texture[..., 3].astype(np.float32)
        cover = None if lesion is None else self._cover(pose, lesion, seen, radius)
        if cover is not None:
            box, alpha, lit, faced, spot, tone = cover
            if lit is not None and faced is not None:
                shade[box] += alpha * (lit * self.vignette[box] - shade[box])
                facing[box] += alpha * (faced - facing[box])
                rough[box] += alpha * (110 + 34 * spot - rough[box])
            colour[box] += (0.8 * alpha)[..., None] * (tone - colour[box])
        shade *= np.float32(exposure)
        shade /= 1 + shade
        shade = 0.42 * np.sqrt(shade) + 1.02 * shade
        picture = cv2.convertScaleAbs(colour * cv2.merge([shade] * 3))
        picture = cv2.LUT(picture, self._ramp)
        glint = 0.5 * facing + rough * np.float32(1 / 255)
        glint -= 1.22
        glint *= 7.0
        np.clip(glint, 0, 1, out=glint)
        glint *= np.clip(shade * 1.5, 0, 1)
        glint = cv2.convertScaleAbs(glint, alpha=235)
        return cv2.add(picture, cv2.merge([glint] * 3)), self._mask(cover)

    def find(self, pose: _Pose, lesion: _Lesion) -> np.ndarray | None:
        """The lesion's pixels as `paint` gives them, without painting."""
        return self._mask(self._cover(pose, lesion, *self.look(pose, lesion)))

    def _mask(self, cover: _Cover | None) -> np.ndarray | None:
        if cover is None:
            return None
        box, alpha = cover[:2]
        mask = np.zeros(self.inside.shape, bool)
        mask[box] = alpha > 0.5
        mask &= self.inside
        return mask

    def _cover(
        self, pose: _Pose, lesion: _Lesion, seen: _Seen, radius: np.ndarray
    ) -> _Cover | None:
        """Where the lesion hides the wall, and what is seen of it there."""
        if lesion.look == "pedunculated":
            return self._polyp(pose, lesion, seen, radius)
        coarse = _footprint(lesion, pose.depth + seen.depth[::4, ::4], seen.angle[::4, ::4]) < 1.4
        if not coarse.any():
            return None
        ys, xs = np.flatnonzero(coarse.any(1)) * 4, np.flatnonzero(coarse.any(0)) * 4
        box = np.s_[max(0, ys[0] - 4) : ys[-1] + 5, max(0, xs[0] - 4) : xs[-1] + 5]
        depth, angle = pose.depth + seen.depth[box], seen.angle[box]
        distance = _footprint(lesion, depth, angle)
        alpha = np.clip((1.06 - distance) * 8, 0, 1).astype(np.float32)
        spot = cv2.remap(
            self.wall.spot,
            np.mod((angle - lesion.angle) * 190, 256).astype(np.float32),
            np.mod((pose.depth + seen.track[box] - lesion.depth) * 190, 256).astype(np.float32),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_WRAP,
        )
        return box, alpha, None, None, spot, _tone(lesion, spot)

    def _polyp(
        self, pose: _Pose, lesion: _Lesion, seen: _Seen, radius: np.ndarray
    ) -> _Cover | None:
        """A head on a stalk, by sphere tracing its distance function at half resolution."""
        ahead = lesion.depth - pose.depth
        if not _NEAR < ahead < _FAR:
            return None
        row = math.log(ahead / _NEAR) / _Z_STEP
        column = round(lesion.angle * _RELIEF_COLS / math.tau) % _RELIEF_COLS
        foot_r = float(radius[min(round(row), _DEPTHS - 1), column])
        out = np.array([math.cos(lesion.angle), math.sin(lesion.angle), 0.0])
        foot = out * (foot_r + 0.02) + (0, 0, ahead)
        head = out * max(foot_r - lesion.height, 0.22) + (0, 0, ahead - 0.10)
        sx = self.x[:, ::2] / self.focal_px - pose.pan[0]
        sy = self.y[::2] / self.focal_px - pose.pan[1]
        cos, sin = math.cos(pose.roll), math.sin(pose.roll)
        rx = (sx * cos + sy * sin).astype(np.float32)
        ry = (sy * cos - sx * sin).astype(np.float32)
        length = np.sqrt(rx * rx + ry * ry + 1)
        bound = 1.5 * lesion.radius
        hits = np.zeros(rx.shape, bool)
        for share in (0.0, 0.35, 0.7, 1.0):
            ball = head + share * (foot - head)
            nearest = (rx * ball[0] + ry * ball[1] + ball[2]) / length
            hits |= (nearest > 0) & (nearest**2 > ball @ ball - bound**2)
        if not hits.any():
            return None
        ys, xs = np.flatnonzero(hits.any(1)), np.flatnonzero(hits.any(0))
        half = np.s_[ys[0] : ys[-1] + 1, xs[0] : xs[-1] + 1]
        hits = hits[half]
        ray = np.stack([rx[half][hits], ry[half][hits], np.ones(np.count_nonzero(hits))])
        ray = (ray / length[half][hits]).astype(np.float32)  # [3, N]

        def gap(at: np.ndarray) -> np.ndarray:
            return _polyp_gap(lesion, at, head, foot)

        start = min(float(np.linalg.norm(head)), float(np.linalg.norm(foot))) - bound
        reach = np.full(ray.shape[1], max(start, 0.02), np.float32)
        for _ in range(12):
            reach += 0.9 * gap(ray * reach)
        at = ray * reach
        miss = gap(at)
        tiny = 0.008
        normal = np.stack(
            [
                gap(at + np.array(shift, np.float32)[:, None]) - miss
                for shift in ((tiny, 0, 0), (0, tiny, 0), (0, 0, tiny))
            ]
        )
        normal /= np.maximum(np.sqrt((normal**2).sum(0)), 1e-6)
        faced = np.clip(-(normal * ray).sum(0), 0, 1)
        lit = _light(0.12 + 0.88 * faced, reach**2)
        local = at - head.astype(np.float32)[:, None]
        spot = self.wall.spot[
            (local[1] * 300 - local[2] * 180).astype(np.int32) % 256,
            (local[0] * 300 + local[2] * 180).astype(np.int32) % 256,
        ]
        tone = _tone(lesion, spot)
        along = np.clip(1.6 * np.sqrt((local**2).sum(0)) / lesion.radius - 1.8, 0, 1)
        tone += along[:, None] * (150 * np.array((1.0, 0.96, 0.95), np.float32) - tone)
        y0, x0 = 2 * ys[0], 2 * xs[0]
        height = min(2 * (ys[-1] + 1), self.field_height) - y0
        width = min(2 * (xs[-1] + 1), self.field_width) - x0
        box = np.s_[y0 : y0 + height, x0 : x0 + width]
        wall_z = seen.depth[box][::2, ::2][hits]
        cover = np.clip(1.3 - miss / (0.012 * reach), 0, 1) * (at[2] < wall_z + 0.03)
        scaled = []
        for values in (cover, lit, faced, spot, tone):
            plane = np.zeros((*hits.shape, *values.shape[1:]), np.float32)
            plane[hits] = values
            scaled.append(cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR))
        alpha = np.clip((scaled[0] - 0.7) * 3 + 0.5, 0, 1)
        return box, alpha, scaled[1], scaled[2], scaled[3], scaled[4]

    def finish(self, picture: np.ndarray, seed: int) -> np.ndarray:
        """`picture` with the sensor's grain, inside the black border: uint8 [H, W, 3] RGB."""
        rng = np.random.default_rng([self.seed, 5, seed])
        dy, dx = (int(shift) for shift in rng.integers(0, 64, 2))
        grain = self._grain[dy : dy + self.field_height, dx : dx + self.field_width]
        picture = cv2.subtract(cv2.add(picture, grain), np.full_like(picture, _GRAIN_ZERO))
        picture = cv2.multiply(picture, self.window, scale=1 / 255)
        full = np.zeros((*self.size, 3), np.uint8)
        full[self._box] = picture
        return full

    @property
    def _box(self) -> tuple[slice, slice]:
        return (
            slice(self.top, self.top + self.field_height),
            slice(self.left, self.left + self.field_width),
        )

    def in_frame(self, mask: np.ndarray) -> np.ndarray:
        """`mask` of the field of view's box as bool [H, W] of the frame."""
        full = np.zeros(self.size, bool)
        full[self._box] = mask
        return full


def _light(facing: np.ndarray, squared: np.ndarray) -> np.ndarray:
    """Light that tissue sends back, at the square of its distance.

    Tissue scatters, so it is not black where it turns away; other walls send a little light too.
    """
    straight = (0.10 + 0.90 * facing) / (squared + 0.12)
    return np.asarray(straight + 0.012 / (np.sqrt(squared) + 0.3))


def _tone(lesion: _Lesion, spot: np.ndarray) -> np.ndarray:
    """Colour of a lesion's surface, float32 [..., 3], in the wall texture's units."""
    mottled = 1 + 0.045 * spot[..., None] * np.array((0.5, 1.0, 1.0), np.float32)
    return (150 * np.array(lesion.tint, np.float32) * mottled).astype(np.float32)


def _polyp_gap(lesion: _Lesion, at: np.ndarray, head: np.ndarray, foot: np.ndarray) -> np.ndarray:
    """Distance of `at`, float32 [3, ...], from a polyp with that head and foot; below 0 inside."""
    x, y, z = (at[axis] - np.float32(head[axis]) for axis in range(3))
    first, second = lesion.lobes
    size = np.float32(lesion.radius)
    from_head = np.sqrt(x * x + y * y + z * z) - size
    # A second, smaller lobe on one side.
    lobe = 0.62 * size * np.array((math.cos(first), math.sin(first), 0.3 * math.sin(second)))
    lx, ly, lz = (part - np.float32(shift) for part, shift in zip((x, y, z), lobe, strict=True))
    from_lobe = np.sqrt(lx * lx + ly * ly + lz * lz) - 0.68 * size
    from_head = _smooth_min(from_head, from_lobe, 0.06)
    from_head += 0.016 * np.sin(17 * x + first) * np.sin(17 * y + second) * np.sin(17 * z + first)
    stalk = (foot - head).astype(np.float32)
    share = (x * stalk[0] + y * stalk[1] + z * stalk[2]) / np.float32(stalk @ stalk)
    share = np.clip(share, 0, 1)
    dx, dy, dz = x - share * stalk[0], y - share * stalk[1], z - share * stalk[2]
    from_stalk = np.sqrt(dx * dx + dy * dy + dz * dz) - (0.055 + 0.09 * share**4)
    return _smooth_min(from_stalk, from_head, 0.05)


def _smooth_min(a: np.ndarray, b: np.ndarray, soft: float) -> np.ndarray:
    """The lesser of `a` and `b`, rounded where they are within `soft`: Quilez's polynomial form."""
    mix = np.clip(0.5 + (b - a) * np.float32(-0.5 / soft), 0, 1)
    return np.asarray(a + mix * (b - a) - np.float32(soft) * mix * (1 - mix))


def _colour_ramp(rng: np.random.Generator) -> np.ndarray:
    """Lit mucosa from black to glare as a lookup table, uint8 [256, 1, 3] RGB.

    The knots are the look of white-light colonoscopy: red-brown in the dark, salmon in the light,
    pale in glare. Every colon gets its own white balance.
    """
    knots = (0, 24, 56, 88, 120, 152, 184, 216, 255)
    red = np.array((2, 42, 92, 141, 189, 225, 243, 250, 255))
    green = np.array((1, 20, 44, 72, 100, 133, 172, 212, 250))
    blue = np.array((1, 14, 30, 49, 69, 95, 132, 175, 232))
    green = green * rng.uniform(0.94, 1.06)
    blue = blue * rng.uniform(0.88, 1.25)
    level = np.arange(256)
    ramp = np.stack([np.interp(level, knots, values) for values in (red, green, blue)], axis=-1)
    return np.asarray(np.clip(np.rint(ramp), 0, 255).astype(np.uint8)[:, None])


# ----------------------------------------------------------------------------- what goes wrong


def _blurred(picture: np.ndarray, sigma_px: float) -> np.ndarray:
    """`picture` out of focus."""
    if sigma_px < 0.4:
        return picture
    return cv2.GaussianBlur(picture, (0, 0), sigma_px)


def _washed(picture: np.ndarray, share: float, seed: int, scale: float) -> np.ndarray:
    """`picture` through water that runs down the lens; `share` of the wash's time is over."""
    height, width = picture.shape[:2]
    rng = np.random.default_rng([seed, 8])
    amount = math.sin(math.pi * share) ** 0.5
    streaks = _noise(rng, 512, 256, (16, 8)) + 0.35 * _noise(rng, 512, 256, (64, 32))
    streaks = np.asarray(streaks, np.float32)
    start = int((1 - share) * (height - 1))
    film = cv2.resize(streaks, (width, 2 * height))[start : start + height]
    x = np.arange(width, dtype=np.float32)[None] + np.float32(22 * scale * amount) * film
    y = np.arange(height, dtype=np.float32)[:, None] + np.float32(38 * scale * amount) * film
    picture = cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    picture = _blurred(picture, 4.5 * scale * amount)
    veil = np.clip(0.42 + 0.16 * film, 0, 0.8) * np.float32(amount)
    white = np.array((232, 216, 200), np.float32)
    washed = cv2.convertScaleAbs(picture + veil[..., None] * (white - picture))
    drops = washed.copy()
    for _ in range(40):
        size = rng.uniform(5, 26) * scale
        at = (rng.uniform(0, width), (rng.uniform(-0.7, 1) + 0.7 * share) * height)
        middle = rng.uniform(0.1, 0.9)
        if abs(middle - share) > 0.35:
            continue
        centre = (round(at[0] * 16), round(at[1] * 16))
        cv2.circle(drops, centre, round(size * 16), (238, 222, 206), -1, cv2.LINE_AA, 4)
        cv2.circle(drops, centre, round(size * 16), (150, 96, 74), 2, cv2.LINE_AA, 4)
        glint = (centre[0] - round(size * 6), centre[1] - round(size * 6))
        cv2.circle(drops, glint, round(size * 4), (255, 253, 248), -1, cv2.LINE_AA, 4)
    drops = _blurred(drops, 1.6 * scale)
    share_of_drops = 0.55 * amount
    return cv2.addWeighted(drops, share_of_drops, washed, 1 - share_of_drops, 0)


def _room(seed: int, size: tuple[int, int], share: float) -> np.ndarray:
    """The scope out of the body: drapes, floor and a lamp, out of focus; uint8 [h, w, 3] RGB."""
    height, width = size
    rng = np.random.default_rng([seed, 9])
    base = np.empty((96, 128, 3), np.float32)
    base[:] = (118, 126, 124)
    base *= 1 + 0.07 * _noise(rng, 96, 128, (3, 4))[..., None]
    folds = 1 + 0.24 * _noise(rng, 96, 128, (4, 16))[..., None]
    drape = folds * np.array((44, 112, 118), np.float32)
    floor = (58 + 10 * np.sin(np.arange(128) / 17)).astype(np.int32)
    below = np.arange(96)[:, None] > floor[None]
    base[below] = drape[below]
    cv2.rectangle(base, (10, 14), (42, 36), (20, 24, 30), -1)  # a monitor
    cv2.ellipse(base, (26, 25), (11, 8), 0, 0, 360, (132, 84, 70), -1)
    lamp = (int(rng.integers(82, 104)), 16)
    cv2.circle(base, lamp, 9, (255, 253, 246), -1)
    cv2.ellipse(base, (int(rng.integers(60, 96)), 76), (44, 7), -14, 0, 360, (186, 200, 204), -1)
    base += 60 * cv2.GaussianBlur(base, (0, 0), 12) / 255
    unfocused = cv2.GaussianBlur(base, (0, 0), 2.2)
    zoom = 1.35 - 0.2 * share
    turn = math.degrees(0.5 * (share - 0.5))
    matrix = cv2.getRotationMatrix2D((64.0, 48.0), turn, zoom * width / 128)
    matrix[0, 2] += width / 2 - 64 + width / 16 * math.sin(5 * share)
    matrix[1, 2] += height / 2 - 48 - height / 18 * share
    picture = cv2.warpAffine(
        unfocused, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
    return cv2.convertScaleAbs(picture)


# ------------------------------------------------------------------------------------- the video

_CRUISE = 0.34  # radii per second
# How the camera passes a lesion: after these shares of the scene it is that far ahead. It comes up
# quickly, stays a while, and leaves.
_PASS = ((0.0, 3.1), (0.4, 1.35), (0.75, 1.0), (1.0, 0.42))
_SMALLEST_PX = 60  # at 720x576: what shows less of a lesion than this counts as not showing it


def _smooth(values: np.ndarray, sigma: float) -> np.ndarray:
    """`values`, float [T, ...], without jerks: a Gaussian of `sigma` frames, ends held."""
    reach = max(1, math.ceil(3 * sigma))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-3)) ** 2)
    taps /= taps.sum()
    padded = np.pad(values, (reach, reach), mode="edge")
    return np.convolve(padded, taps, mode="valid")


def _eased(at: np.ndarray, times: Sequence[float], values: Sequence[float]) -> np.ndarray:
    """`values` at `times` (ascending), joined by half cosines and held beyond both ends."""
    steps = np.interp(at, times, np.arange(len(times)))
    whole = np.minimum(steps.astype(int), len(times) - 2)
    share = 0.5 - 0.5 * np.cos(math.pi * (steps - whole))
    levels = np.asarray(values)
    return np.asarray(levels[whole] + share * (levels[whole + 1] - levels[whole]))


class _Video:
    """One sample video: its plan, the camera's way, and every picture on demand."""

    def __init__(self, options: SampleOptions) -> None:
        self.options = options
        self.plan = _plan(options)
        self.shown = scenes(options)
        self._scene_of = np.repeat(
            np.arange(len(self.plan)), [s.end_frame - s.start_frame for s in self.plan]
        )
        self.scope = _Scope(options.seed, options.size)
        self._travel()

    def _travel(self) -> None:
        """Lay out the camera's way and put the lesions beside it."""
        options = self.options
        rate = float(options.rate)
        rng = np.random.default_rng([options.seed, 6])
        speed = np.full(options.frame_count, _CRUISE)
        aside = np.zeros((2, options.frame_count))
        seconds = np.arange(options.frame_count) / rate
        number = 0
        for scene in self.plan:
            span = slice(scene.start_frame, scene.end_frame)
            length = scene.end_frame - scene.start_frame
            if scene.kind == "lesion":
                shares, ahead = zip(*_PASS, strict=True)
                speed[span] = (
                    -np.diff(np.interp(np.arange(length + 1) / length, shares, ahead)) * rate
                )
                assert scene.look is not None
                angle = _lesion_of(options.seed, number, scene.look, 0.0).angle
                number += 1
                # Turn to it, hold, turn away as it is passed, and come back to the lumen.
                start, end = scene.start_frame / rate, scene.end_frame / rate
                near = slice(*np.searchsorted(seconds, (start - 0.2, end + 1.0)))
                turn = _eased(
                    seconds[near],
                    (start - 0.2, start + 0.3 * (end - start), end - 0.5, end, end + 1.0),
                    (0.0, -0.45, -0.45, 1.45, 0.0),
                )
                aside[:, near] += turn * np.array([[math.cos(angle)], [math.sin(angle)]])
            elif scene.kind == "out_of_body":
                speed[span] = 0
        speed = _smooth(speed, 0.12 * rate)
        self._depth = np.cumsum(speed) / rate + rng.uniform(0, _PERIOD)

        def sway(tall: float, slow_s: float) -> np.ndarray:
            waves = [
                share
                * np.sin(
                    math.tau * seconds / (slow_s * rng.uniform(0.8, 1.2)) * speedup
                    + rng.uniform(0, math.tau)
                )
                for share, speedup in ((1.0, 1.0), (0.4, 2.3), (0.12, 6.1))
            ]
            return np.asarray(tall * np.sum(waves, axis=0))

        self._roll = sway(0.30, 9.0)
        cos, sin = np.cos(self._roll), np.sin(self._roll)
        # Lesion angles are the wall's, which the picture shows turned by the roll.
        self._pan = np.stack([aside[0] * cos - aside[1] * sin, aside[0] * sin + aside[1] * cos])
        self._pan += np.stack([sway(0.17, 6.0), sway(0.14, 5.0)])
        self._offset = np.stack([sway(0.09, 5.5), sway(0.09, 6.5)])
        self._lesions: dict[int, _Lesion] = {}
        number = 0
        for at, scene in enumerate(self.plan):
            if scene.kind == "lesion" and scene.look is not None:
                depth = float(self._depth[scene.end_frame - 1]) + _PASS[-1][1]
                self._lesions[at] = _lesion_of(options.seed, number, scene.look, depth)
                number += 1

    def _pose(self, index: int) -> _Pose:
        return _Pose(
            float(self._depth[index]),
            (float(self._offset[0, index]), float(self._offset[1, index])),
            (float(self._pan[0, index]), float(self._pan[1, index])),
            float(self._roll[index]),
        )

    def _lesion(self, index: int) -> _Lesion | None:
        if not self.options.lesions:
            return None
        at = int(self._scene_of[index])
        lesion = self._lesions.get(at)
        if lesion is None:
            return None
        # Far away and in the dark it comes up within half a second, so none is there before.
        seen_s = float((index + 1 - self.plan[at].start_frame) * self.options.time_base)
        grown = 0.25 + 0.75 * min(1.0, seen_s / 0.5)
        return replace(lesion, radius=grown * lesion.radius, height=grown * lesion.height)

    def mask(self, index: int) -> np.ndarray | None:
        """Where frame `index` shows a lesion, bool [H, W]; None where it shows none."""
        lesion = self._lesion(index)
        if lesion is None:
            return None
        return self._kept(self.scope.find(self._pose(index), lesion))

    def _kept(self, mask: np.ndarray | None) -> np.ndarray | None:
        if mask is None or np.count_nonzero(mask) < _SMALLEST_PX * self.scope.scale**2:
            return None
        return self.scope.in_frame(mask)

    def picture(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Frame `index`, uint8 [H, W, 3] RGB, and its lesion's pixels as `mask` gives them."""
        scope, seed = self.scope, self.options.seed
        scene = self.shown[int(self._scene_of[index])]
        length = scene.end_frame - scene.start_frame
        share = (index - scene.start_frame + 0.5) / length
        mask = None
        if scene.kind == "out_of_body":
            picture = _room(seed, (scope.field_height, scope.field_width), share)
            leaving = 1 - share / 0.2
            if leaving > 0:
                colon, _ = scope.paint(self._pose(index), None)
                colon = _blurred(colon, 14 * scope.scale)
                picture = cv2.addWeighted(colon, leaving, picture, 1 - leaving, 0)
        else:
            picture, mask = scope.paint(self._pose(index), self._lesion(index))
        if scene.kind == "blur":
            picture = _blurred(picture, 11 * scope.scale * math.sin(math.pi * share) ** 0.6)
        elif scene.kind == "wash":
            picture = _washed(picture, share, seed, scope.scale)
        return scope.finish(picture, index), self._kept(mask)

    def truth(self, index: int, mask: np.ndarray | None) -> SampleTruth:
        """The record of frame `index`, given its mask."""
        scene = self.shown[int(self._scene_of[index])]
        boxes: tuple[tuple[int, int, int, int], ...] = ()
        if mask is not None:
            xs, ys = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
            x, y = int(xs[0]), int(ys[0])
            boxes = ((x, y, int(xs[-1]) + 1 - x, int(ys[-1]) + 1 - y),)
        return SampleTruth(
            index=index,
            pts=index,
            seconds=float(index * self.options.time_base),
            kind=scene.kind,
            look=scene.look,
            boxes=boxes,
            mask=None if mask is None else encode_mask(mask),
        )


def _still(seed: int, size: tuple[int, int], look: Look | None) -> tuple[np.ndarray, np.ndarray]:
    SampleOptions(seed=seed, size=size)  # the same limits
    # Four views of each colon: the wall takes longer to make than the views.
    scope = _Scope(seed // 4, size, balance=seed % 4)
    rng = np.random.default_rng([seed, 10])
    depth = float(rng.uniform(0, _PERIOD))
    lesion = None
    pan = rng.uniform(-0.25, 0.25, 2)
    roll = float(rng.uniform(0, math.tau))
    if look is not None:
        ahead = float(rng.uniform(1.0, 1.5))
        lesion = _lesion_of(seed, 0, look, depth + ahead)
        turned = lesion.angle + roll
        pan = pan * 0.4 - 0.5 * np.array((math.cos(turned), math.sin(turned)))
    offset = rng.uniform(-0.12, 0.12, 2)
    pose = _Pose(depth, (float(offset[0]), float(offset[1])), (float(pan[0]), float(pan[1])), roll)
    picture, mask = scope.paint(pose, lesion)
    shown = np.zeros(size, bool) if mask is None else scope.in_frame(mask)
    return scope.finish(picture, 0), shown


def _to_frame(rgb: np.ndarray, pts: int, time_base: Fraction) -> Frame:
    """`rgb`, uint8 [H, W, 3], as a frame: BT.601, limited range."""
    height, width = rgb.shape[:2]
    rows, cols = height + height % 2, width + width % 2  # 4:2:0 of odd sides repeats the last line
    if (rows, cols) != (height, width):
        rgb = cv2.copyMakeBorder(rgb, 0, rows - height, 0, cols - width, cv2.BORDER_REPLICATE)
    planes = cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420).ravel()
    luma, chroma = rows * cols, rows * cols // 4
    half = (rows // 2, cols // 2)
    y = np.ascontiguousarray(planes[:luma].reshape(rows, cols)[:height, :width])
    u = planes[luma : luma + chroma].reshape(half)
    v = planes[luma + chroma :].reshape(half)
    return Frame(y, u, v, pts, time_base, Colour("bt601", full_range=False))
