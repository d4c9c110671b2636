"""Views as another scope, light or recording would have given them: whole-picture changes.

One view at a time, with OpenCV: uint8 [H, W, 3] and bool [H, W] in, the same out. What is not valid
is grey, as in `ccdstream.view`.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from ccdstream.view import NEUTRAL, highlights


@dataclass(frozen=True, slots=True)
class Distortion:
    """How much a view may change."""

    move_p: float = 0.6
    """How often it is turned, zoomed into and shifted; else it is at most mirrored."""
    zoom: float = 2.2
    """Largest magnification."""
    gain: float = 0.2
    """Largest relative change of a colour channel."""
    gamma: float = 0.35
    """Largest logarithm of the exponent."""
    saturation: float = 0.5
    blur_px: float = 1.8
    """Largest standard deviation of the Gaussian blur."""
    noise: float = 8.0
    """Largest standard deviation of the noise, in grey levels."""


def moved(
    image: np.ndarray, valid: np.ndarray, rng: np.random.Generator, distortion: Distortion
) -> tuple[np.ndarray, np.ndarray]:
    """The view from elsewhere: mirrored, turned, zoomed into and shifted."""
    if rng.random() < 0.5:
        image, valid = image[:, ::-1], valid[:, ::-1]
    if rng.random() >= distortion.move_p:
        return np.ascontiguousarray(image), np.ascontiguousarray(valid)
    height, width = valid.shape
    zoom = float(np.exp(rng.uniform(0, np.log(distortion.zoom))))
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), float(rng.uniform(-180, 180)), zoom)
    free = 0.5 * (1 - 1 / zoom)  # so far the middle may move without showing more than there is
    shift = rng.uniform(-free - 0.1, free + 0.1, 2) * zoom
    matrix[0, 2] += shift[0] * width
    matrix[1, 2] += shift[1] * height
    size = (width, height)
    image = cv2.warpAffine(np.ascontiguousarray(image), matrix, size, borderMode=cv2.BORDER_REFLECT)
    inside = cv2.warpAffine(valid.astype(np.uint8), matrix, size, flags=cv2.INTER_NEAREST)
    return image, inside.astype(bool)


def recoloured(
    image: np.ndarray, valid: np.ndarray, rng: np.random.Generator, distortion: Distortion
) -> tuple[np.ndarray, np.ndarray]:
    """The view in another light, by another sensor and codec; new glare is not valid."""
    x = image.astype(np.float32) / 255
    gains = (1 + rng.uniform(-distortion.gain, distortion.gain)) * (
        1 + rng.uniform(-distortion.gain, distortion.gain, 3) * rng.uniform()
    )
    x = np.clip(x * gains.astype(np.float32), 0, 1) ** np.float32(
        np.exp(rng.uniform(-distortion.gamma, distortion.gamma))
    )
    grey = x.mean(axis=2, keepdims=True)
    x = grey + (x - grey) * np.float32(1 + rng.uniform(-1, 1) * distortion.saturation)
    if rng.random() < 0.4:
        x = cv2.GaussianBlur(x, (0, 0), float(rng.uniform(0.2, distortion.blur_px)))
    elif rng.random() < 0.4:
        x += np.float32(rng.uniform(0.2, 1.0)) * (x - cv2.GaussianBlur(x, (0, 0), 1.5))
    if rng.random() < 0.5:
        x += rng.standard_normal(x.shape, np.float32) * np.float32(
            rng.uniform(0, distortion.noise) / 255
        )
    out: np.ndarray = np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)
    if rng.random() < 0.5:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(40, 96))]
        encoded = cv2.imencode(".jpg", out, quality)[1]
        out = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR))
    valid = valid & ~highlights(out)
    out[~valid] = NEUTRAL
    return out, valid
