"""Synthetic lesions pasted into normal frames: a yardstick that needs no label.

What is chosen (weights, constants) may be chosen on these and on normal frames, never on a test
set. They are crude on purpose: a dome of shaded, smoothed or foreign texture with another tint and
a soft rim, as MedMix (Tian et al., MedIA 2023) and its like paste.
"""

from dataclasses import dataclass

import cv2
import numpy as np

_HARMONICS = 4
"""Waves along the rim of an outline."""


@dataclass(frozen=True, slots=True)
class LesionLook:
    """Ranges that a lesion's look is drawn from; lengths are shares of the picture's side."""

    radius: tuple[float, float] = (0.06, 0.2)
    tint: float = 0.18
    """Largest relative change of a colour channel."""
    shade: tuple[float, float] = (0.05, 0.3)
    """Brightening of the dome's top and darkening of its rim, relative."""
    smooth_px: tuple[float, float] = (1.0, 5.0)
    foreign_p: float = 0.5
    """How often the texture comes, magnified, from elsewhere in the picture."""
    rim_px: tuple[float, float] = (1.0, 4.0)


def paste_lesion(
    image: np.ndarray,
    valid: np.ndarray,
    rng: np.random.Generator,
    look: LesionLook = LesionLook(),
) -> tuple[np.ndarray, np.ndarray]:
    """Paste one lesion where the picture is valid.

    Args:
        image: uint8 [H, W, 3], RGB.
        valid: bool [H, W]; the lesion's centre is valid, and what is not valid stays as it is.

    Returns:
        uint8 [H, W, 3], and the lesion's mask, bool [H, W], within what is valid.

    Raises:
        ValueError: nothing is valid.
    """
    rows, columns = np.nonzero(valid)
    if len(rows) == 0:
        raise ValueError("valid must hold a place for the lesion, and is False everywhere")
    height, width = valid.shape
    chosen = rng.integers(len(rows))
    centre = np.array([columns[chosen], rows[chosen]], float)
    distance = _outline_distance(centre, (height, width), rng, look)  # 0 centre, 1 rim
    soft = cv2.GaussianBlur(
        (distance < 1).astype(np.float32), (0, 0), float(rng.uniform(*look.rim_px))
    )
    texture = _texture(image, centre, rng, look).astype(np.float32)
    dome = np.clip(1 - distance**2, 0, 1)
    top, rim = rng.uniform(*look.shade), rng.uniform(*look.shade)
    shading = 1 + top * dome - rim * np.exp(-(((distance - 1) / 0.15) ** 2))
    tint = 1 + rng.uniform(-look.tint, look.tint, 3)
    lesion = np.clip(texture * shading[..., None] * tint, 0, 255)
    weight = (soft * valid)[..., None]
    pasted = np.rint(image * (1 - weight) + lesion * weight).astype(np.uint8)
    return pasted, (distance < 1) & valid


def _outline_distance(
    centre: np.ndarray, size: tuple[int, int], rng: np.random.Generator, look: LesionLook
) -> np.ndarray:
    """Distance from the centre in units of the outline's radius there, float32 [H, W]."""
    height, width = size
    x, y = np.meshgrid(np.arange(width) - centre[0], np.arange(height) - centre[1])
    turn = rng.uniform(0, np.pi)
    long, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    radius = rng.uniform(*look.radius) * min(height, width)
    stretch = rng.uniform(1.0, 1.8)
    angle = np.arctan2(across, long)
    wave = sum(
        rng.normal(0, 0.12 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
        for k in range(2, 2 + _HARMONICS)
    )
    distance: np.ndarray = np.hypot(long / stretch, across) / (radius * np.exp(wave))
    return distance.astype(np.float32)


def _texture(
    image: np.ndarray, centre: np.ndarray, rng: np.random.Generator, look: LesionLook
) -> np.ndarray:
    """What the lesion is made of: the place's own texture smoothed, or another's magnified."""
    smooth = float(rng.uniform(*look.smooth_px))
    if rng.random() >= look.foreign_p:
        return cv2.GaussianBlur(image, (0, 0), smooth)
    height, width = image.shape[:2]
    scale = rng.uniform(1.2, 2.5)
    source = rng.uniform(0.25, 0.75, 2) * (width, height)
    matrix = cv2.getRotationMatrix2D(
        (float(source[0]), float(source[1])), float(rng.uniform(0, 360)), float(scale)
    )
    matrix[0, 2] += centre[0] - source[0]
    matrix[1, 2] += centre[1] - source[1]
    moved = cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)
    gain = (image.mean(axis=(0, 1)) + 1) / (moved.mean(axis=(0, 1)) + 1)
    lit: np.ndarray = np.clip(moved * gain, 0, 255).astype(np.uint8)
    return lit
