"""Synthetic lesions pasted into normal frames: what the localiser learns from, without a label.

They are crude on purpose, and many-sided: a blob of shaded, smoothed, magnified or foreign texture
with another tint, a bright top, a dark rim or a shadow beside it, highlights, a sharp or a soft
edge, as MedMix (Tian et al., MedIA 2023) and its like paste. What is chosen (weights, constants)
may be chosen on such lesions and on normal frames, never on a test set.
"""

from dataclasses import dataclass

import cv2
import numpy as np

_HARMONICS = 5
"""Waves along the rim of an outline."""
_REACH = 1.6
"""How far from the centre the picture may change, in radii of the outline."""


@dataclass(frozen=True, slots=True)
class LesionLook:
    """Ranges that a lesion's look is drawn from; lengths are shares of the picture's side."""

    radius: tuple[float, float] = (0.04, 0.32)
    """Drawn evenly in its logarithm."""
    stretch: float = 1.9
    """Largest ratio of the outline's axes."""
    tint: float = 0.18
    """Largest relative change of a colour channel."""
    shade: tuple[float, float] = (0.0, 0.35)
    """Brightening of the top and darkening of the rim, relative."""
    smooth_px: tuple[float, float] = (0.8, 6.0)
    rim_px: tuple[float, float] = (0.7, 4.0)
    own_p: float = 0.35
    """How often the texture is the place's own, smoothed."""
    bulge_p: float = 0.25
    """How often it is the place's own, magnified towards the middle; else it comes, magnified, from
    elsewhere in this picture or in the donor."""
    shadow_p: float = 0.4
    highlight_p: float = 0.4


def paste_lesion(
    image: np.ndarray,
    valid: np.ndarray,
    rng: np.random.Generator,
    look: LesionLook = LesionLook(),
    *,
    donor: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Paste one lesion where the picture is valid.

    Args:
        image: uint8 [H, W, 3], RGB.
        valid: bool [H, W]; the lesion's centre is valid, and what is not valid stays as it is.
        donor: another picture uint8 [h, w, 3] and its valid pixels, that texture may come from.

    Returns:
        uint8 [H, W, 3], and the lesion's mask, bool [H, W], within what is valid.

    Raises:
        ValueError: nothing is valid.
    """
    places = np.flatnonzero(valid)
    if len(places) == 0:
        raise ValueError("valid must hold a place for the lesion, and is False everywhere")
    height, width = valid.shape
    centre = np.array(divmod(places[rng.integers(len(places))], width)[::-1], float)
    shortest = min(height, width)
    radius = float(np.exp(rng.uniform(*np.log(look.radius)))) * shortest
    stretch = rng.uniform(1.0, look.stretch)
    reach = int(np.ceil(_REACH * radius * stretch))
    left, top = (max(0, int(c) - reach) for c in centre)
    right, bottom = (
        min(n, int(c) + reach + 1) for c, n in zip(centre, (width, height), strict=True)
    )
    area = np.s_[top:bottom, left:right]

    offset = centre - (left, top)
    x, y, distance = _outline(offset, (bottom - top, right - left), radius, stretch, rng)
    here = image[area].astype(np.float32)
    whole = _filled(image, valid)
    foreign = _filled(*donor) if donor is not None and rng.random() < 0.5 else whole
    lesion = _texture(whole, area, centre, (x, y), radius, rng, look, foreign)
    lesion *= (_shading(x, y, distance, rng, look) * _tint(rng, look)).astype(np.float32)
    if rng.random() < look.highlight_p:
        lesion += _highlights(distance, rng)
    if rng.random() < look.shadow_p:  # on the side that the light does not reach
        here *= _shadow(x, y, distance, rng)
    inside = distance < 1
    soft = cv2.GaussianBlur(inside.astype(np.float32), (0, 0), float(rng.uniform(*look.rim_px)))
    mixed = here + (soft * rng.uniform(0.75, 1.0))[..., None] * (np.clip(lesion, 0, 255) - here)
    pasted = image.copy()
    counted = valid[area]
    pasted[area][counted] = np.rint(np.clip(mixed[counted], 0, 255)).astype(np.uint8)
    mask = np.zeros_like(valid)
    mask[area] = inside & counted
    return pasted, mask


def _outline(
    centre: np.ndarray,
    size: tuple[int, int],
    radius: float,
    stretch: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x and y from the centre in radii, and the distance in units of the outline's radius there,
    which is 1 on the rim: float32 [H, W] each."""
    height, width = size
    x, y = np.meshgrid(
        ((np.arange(width) - centre[0]) / radius).astype(np.float32),
        ((np.arange(height) - centre[1]) / radius).astype(np.float32),
    )
    turn = rng.uniform(0, np.pi)
    long, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    angle = np.arctan2(across, long / stretch)
    wave = np.zeros_like(angle)
    for k in range(2, 2 + _HARMONICS):
        wave += rng.normal(0, 0.12 / (k - 1)) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    distance: np.ndarray = np.hypot(long / stretch, across) / np.exp(wave)
    return x, y, distance.astype(np.float32)


def _shading(
    x: np.ndarray, y: np.ndarray, distance: np.ndarray, rng: np.random.Generator, look: LesionLook
) -> np.ndarray:
    """Light on a dome that is brightest away from its middle, with a dark rim: [H, W, 1]."""
    top, rim, slope = rng.uniform(*look.shade), rng.uniform(*look.shade), rng.uniform(0, 0.25)
    light = rng.uniform(0, 2 * np.pi)
    dome = np.clip(1 - distance**2, 0, 1)
    ring = np.exp(-(((distance - 1) / rng.uniform(0.08, 0.25)) ** 2))
    tilt = slope * np.clip(x * np.cos(light) + y * np.sin(light), -1, 1)
    shade: np.ndarray = (1 + top * dome - rim * ring + tilt)[..., None]
    return shade


def _tint(rng: np.random.Generator, look: LesionLook) -> np.ndarray:
    """Redder, paler or otherwise coloured: relative change of each channel."""
    kind = rng.integers(3)
    amount = rng.uniform(0, look.tint)
    if kind == 0:  # redder: less green and blue
        return np.array([1 + amount / 3, 1 - amount, 1 - amount])
    if kind == 1:  # paler: more of them
        return np.array([1.0, 1 + amount, 1 + amount * rng.uniform(0.5, 1.5)])
    return 1 + rng.uniform(-look.tint, look.tint, 3)


def _highlights(distance: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A few saturated spots on the dome, to be added: float32 [H, W, 1]."""
    spots = np.zeros_like(distance)
    rows, columns = np.nonzero(distance < 0.7)
    for _ in range(int(rng.integers(1, 6)) if len(rows) else 0):
        at = rng.integers(len(rows))
        axes = tuple(int(a) for a in rng.integers(1, 5, 2))
        place = (int(columns[at]), int(rows[at]))
        cv2.ellipse(spots, place, axes, float(rng.uniform(0, 180)), 0, 360, 1.0, -1)
    blurred: np.ndarray = cv2.GaussianBlur(spots, (0, 0), float(rng.uniform(0.5, 1.5)))
    return (blurred * rng.uniform(80, 220))[..., None]


def _shadow(
    x: np.ndarray, y: np.ndarray, distance: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """A darker crescent outside the rim, on one side: float32 [H, W, 1]."""
    side = rng.uniform(0, 2 * np.pi)
    towards = np.clip(
        (x * np.cos(side) + y * np.sin(side)) / np.maximum(np.hypot(x, y), 1e-3), 0, 1
    )
    near = np.exp(-np.clip(distance - 1, 0, None) / rng.uniform(0.05, 0.2))
    fades = np.clip((_REACH - distance) / 0.2, 0, 1)
    dark: np.ndarray = 1 - rng.uniform(0.1, 0.5) * towards * near * fades
    return dark.astype(np.float32)[..., None]


def _texture(
    image: np.ndarray,
    area: tuple[slice, slice],
    centre: np.ndarray,
    place: tuple[np.ndarray, np.ndarray],
    radius: float,
    rng: np.random.Generator,
    look: LesionLook,
    source: np.ndarray,
) -> np.ndarray:
    """What the lesion is made of, as bright as what it covers: float32 [H, W, 3]."""
    own = image[area]
    kind = rng.random()
    if kind < look.own_p:
        return cv2.GaussianBlur(own, (0, 0), float(rng.uniform(*look.smooth_px))).astype(np.float32)
    x, y = place
    if kind < look.own_p + look.bulge_p:
        squeeze = np.clip(np.hypot(x, y), 1e-3, 1) ** rng.uniform(
            0.3, 1.0
        )  # magnified in the middle
        columns = x * squeeze * radius + centre[0]
        rows = y * squeeze * radius + centre[1]
        bulged = cv2.remap(
            image,
            columns.astype(np.float32),
            rows.astype(np.float32),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT,
        )
        smooth = float(rng.uniform(0.3, 2.0))
        smoothed: np.ndarray = cv2.GaussianBlur(bulged, (0, 0), smooth).astype(np.float32)
        return smoothed
    height, width = source.shape[:2]
    turn, scale = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 3.0)
    middle = rng.uniform(0.25, 0.75, 2) * (width, height)
    columns = (x * np.cos(turn) - y * np.sin(turn)) * radius / scale + middle[0]
    rows = (x * np.sin(turn) + y * np.cos(turn)) * radius / scale + middle[1]
    foreign = cv2.remap(
        source,
        columns.astype(np.float32),
        rows.astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT,
    ).astype(np.float32)
    level = own.mean(axis=(0, 1)) if rng.random() < 0.7 else np.full(3, own.mean())
    gain = (level + 1) / (foreign.mean(axis=(0, 1)) + 1)
    lit: np.ndarray = foreign * np.clip(gain, 0.4, 2.5).astype(np.float32)
    return lit


def _filled(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The picture with what is not valid in the colour of its surroundings: uint8 [H, W, 3]."""
    small = (valid.shape[1] // 4, valid.shape[0] // 4)
    known = cv2.resize(valid.astype(np.float32), small, interpolation=cv2.INTER_AREA)
    colours = cv2.resize(
        image * valid[..., None].astype(np.float32), small, interpolation=cv2.INTER_AREA
    )
    spread = valid.shape[0] / 32  # in small pixels: an eighth of the side
    share = cv2.GaussianBlur(known, (0, 0), spread)[..., None] + 1e-6
    near = cv2.GaussianBlur(colours, (0, 0), spread) / share
    around = cv2.resize(near, valid.shape[::-1], interpolation=cv2.INTER_LINEAR)
    filled: np.ndarray = np.where(valid[..., None], image, np.clip(around, 0, 255).astype(np.uint8))
    return filled
