"""Made-up frames of a scope, tissue in an outline within a dark border, and streams of them."""

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction

import cv2
import numpy as np

from ccdstream.frames import Colour, Frame

SIZE = (576, 720)
BOX = (46, 22, 626, 534)
"""x, y, width, height of the scope's picture in the made-up frames."""


def octagon(x: int, y: int, width: int, height: int) -> np.ndarray:
    across, down = round(0.16 * width), round(0.24 * height)
    right, bottom = x + width - 1, y + height - 1
    return np.array(
        [
            (x + across, y),
            (right - across, y),
            (right, y + down),
            (right, bottom - down),
            (right - across, bottom),
            (x + across, bottom),
            (x, bottom - down),
            (x, y + down),
        ]
    )


def disc(x: int, y: int, width: int, height: int) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    centre = (x + (width - 1) / 2, y + (height - 1) / 2)
    radii = ((width - 1) / 2, (height - 1) / 2)
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii + centre
    return np.round(points).astype(int)


def rectangle(x: int, y: int, width: int, height: int) -> np.ndarray:
    right, bottom = x + width - 1, y + height - 1
    return np.array([(x, y), (right, y), (right, bottom), (x, bottom)])


SHAPES = {"octagon": octagon, "disc": disc, "rectangle": rectangle}


def tissue(size: tuple[int, int], seed: int = 0, smallest_px: int = 24) -> np.ndarray:
    """uint8 [H, W, 3], RGB: reddish, smooth patches between 60 and 220."""
    height, width = size
    random = np.random.default_rng(seed)
    coarse = random.random((height // smallest_px + 3, width // smallest_px + 3)).astype(np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    red = 130 + 90 * np.clip(smooth, 0, 1)
    return np.stack([red, 0.6 * red, 0.45 * red], axis=2).astype(np.uint8)


def scene(
    shape: str = "octagon",
    *,
    size: tuple[int, int] = SIZE,
    box: tuple[int, int, int, int] = BOX,
    border: int = 0,
    noise: float = 0.0,
    inside: np.ndarray | None = None,
) -> np.ndarray:
    """uint8 [H, W, 3], RGB: tissue within a scope's outline, within a dark border."""
    stencil = np.zeros(size, np.uint8)
    cv2.fillPoly(stencil, [SHAPES[shape](*box)], 1)
    inside = tissue(size) if inside is None else inside
    image = np.where(stencil[..., None] > 0, inside, border).astype(np.float64)
    if noise:
        image += np.random.default_rng(1).normal(0, noise, image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


WEIGHTS = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}
"""Kr and Kb of ITU-R BT.601, BT.709 and BT.2020."""
COLOURS = [
    Colour(matrix, full) for matrix in ("bt601", "bt709", "bt2020") for full in (False, True)
]


def colour_name(colour: Colour) -> str:
    return f"{colour.matrix}-{'full' if colour.full_range else 'limited'}"


def frame_of(rgb: np.ndarray, colour: Colour = COLOURS[0], pts: int = 0, rate: int = 25) -> Frame:
    """The frame of an image, converted by the definition of Y, Pb and Pr, in float64."""
    kr, kb = WEIGHTS[colour.matrix]
    red, green, blue = np.moveaxis(rgb.astype(np.float64) / 255, 2, 0)
    y = kr * red + (1 - kr - kb) * green + kb * blue
    planes = [y, (blue - y) / (2 * (1 - kb)), (red - y) / (2 * (1 - kr))]
    if colour.full_range:
        scaled = [255 * planes[0], 255 * planes[1] + 128, 255 * planes[2] + 128]
    else:
        scaled = [219 * planes[0] + 16, 224 * planes[1] + 128, 224 * planes[2] + 128]
    height, width = y.shape
    padded = [np.pad(p, ((0, height % 2), (0, width % 2)), mode="edge") for p in scaled[1:]]
    halved = [(p[::2, ::2] + p[1::2, ::2] + p[::2, 1::2] + p[1::2, 1::2]) / 4 for p in padded]
    whole = [np.clip(np.rint(p), 0, 255).astype(np.uint8) for p in (scaled[0], *halved)]
    return Frame(*whole, pts=pts, time_base=Fraction(1, rate), colour=colour)


SMALL = (288, 360)
SMALL_BOX = (24, 12, 312, 264)
RATE = 10


def stream(images: Iterable[np.ndarray], start_s: float = 0.0) -> Iterator[Frame]:
    """Frames of images, `RATE` a second."""
    for index, image in enumerate(images):
        yield frame_of(image, pts=round(start_s * RATE) + index, rate=RATE)


def wandering(
    count: int,
    *,
    step_px: float = 12.0,
    seed: int = 0,
    decorate: Callable[[np.ndarray, int], None] | None = None,
    box: tuple[int, int, int, int] = SMALL_BOX,
) -> Iterator[np.ndarray]:
    """A scope that moves over tissue; `decorate` draws on each frame."""
    random = np.random.default_rng(seed)
    wide = tissue((900, 900), seed=seed, smallest_px=12)
    at, heading = np.array([300.0, 300.0]), 0.3
    for index in range(count):
        heading += random.normal(0, 0.4)
        at += step_px * np.array([np.cos(heading), np.sin(heading)])
        if (at < 0).any() or (at > 540).any():
            at, heading = np.clip(at, 0, 540), heading + np.pi / 2
        x, y = at.astype(int)
        image = scene(size=SMALL, box=box, inside=wide[y : y + SMALL[0], x : x + SMALL[1]])
        if decorate is not None:
            decorate(image, index)
        yield image


def burned_in(image: np.ndarray, index: int) -> None:
    """An inset whose picture moves, and text."""
    image[190:270, 24:124] = 25
    image[194:266, 28:120] = 0
    cv2.circle(image, (74 + index % 20, 230), 8, (220, 220, 220), cv2.FILLED)
    for row, line in enumerate(("ID: 4711", "24/02/2014", f"00:06:{index // RATE:02d}")):
        at = (30, 90 + 24 * row)
        cv2.putText(image, line, at, cv2.FONT_HERSHEY_PLAIN, 0.8, (235, 235, 235), 1)
