"""What separates images, or finds lesions, without knowing anything of tissue.

A data set whose abnormal images come from another recorder, crop or distance than its normal ones
can be told apart by width or by black border alone. A model's figure means something only above
these, so `evaluate` puts them beside it. None of them sees the model.

Of an image:

    colour_and_texture   distance to the nearest training frame in colour and texture statistics
                         of the central square, before any mask
    image_width          pixels
    image_aspect         width over height
    black_pixels         share of the image that is black
    valid_fraction       share of the view that is scored at all: what the masks give away
    jpeg_tables          how rare the file's quantisation tables are among training frames
    position_box         whether the scope-guide inset is absent

Of a pixel: closeness to the centre of the view, and redness there.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ccdstream.errors import DataError
from ccdstream.frames import VIEW_SIZE
from ccdstream.view import NONE, rgb_of_frame
from trainer.data import Item, Progress, read_image
from trainer.images import read_header
from trainer.metrics import auroc
from trainer.recordings import views_at

BLACK_BELOW = 20
"""A pixel is black where all three channels are below this: JPEG leaves the border not quite 0."""
QUANTILES = np.array((0.05, 0.25, 0.5, 0.75, 0.95))
"""Of each colour channel."""
RED_BLUR_PX = 8.0
"""Standard deviation of the blur of the red channel, in pixels of the view: about a fold."""


@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    """What can be read off an image file without looking at tissue."""

    statistics: np.ndarray
    """float64 [K], colour and texture of the central square."""
    width_px: int
    aspect: float
    """Width over height."""
    black_fraction: float
    jpeg_tables: str
    """The quantisation tables, as text to compare; empty where the file is no JPEG."""
    position_box: bool | None


def surfaces(items: Sequence[Item], *, progress: Progress | None = None) -> list[Surface]:
    """The surface of each image, in order.

    Raises:
        DataError: if an image cannot be read.
    """
    found: dict[int, Surface] = {}
    stills = [index for index, item in enumerate(items) if item.pts is None]
    frames: dict[Path, dict[int, int]] = defaultdict(dict)
    for index, item in enumerate(items):
        if item.pts is not None:
            frames[item.path][item.pts] = index

    def keep(index: int, surface: Surface) -> None:
        found[index] = surface
        if progress is not None:
            progress(len(found), len(items))

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for index, surface in zip(
            stills, pool.map(_of_still, (items[i] for i in stills)), strict=True
        ):
            keep(index, surface)
    for path, indices in frames.items():
        for frame, _ in views_at(path, indices, NONE):
            index = indices[frame.pts]
            keep(index, surface_of(rgb_of_frame(frame), items[index]))
    return [found[index] for index in range(len(items))]


def surface_of(rgb: np.ndarray, item: Item) -> Surface:
    """The surface of an image whose pixels, uint8 [H, W, 3], are known already."""
    header = read_header(item.path) if item.pts is None else None
    black = cv2.inRange(rgb, (0, 0, 0), (BLACK_BELOW - 1,) * 3)
    height, width = rgb.shape[:2]
    return Surface(
        statistics=colour_and_texture(rgb),
        width_px=width,
        aspect=width / height,
        black_fraction=cv2.countNonZero(black) / black.size,
        jpeg_tables=header.jpeg_tables if header else "",
        position_box=item.position_box,
    )


def colour_and_texture(rgb: np.ndarray) -> np.ndarray:
    """Float64 [33] of the central square of uint8 [H, W, 3], half as wide as the shorter side.

    Mean and deviation of R, G, B, hue, saturation and value; five quantiles of R, G and B; log
    deviation of the Laplacian and of five bands of a Laplacian pyramid. In the image's own pixels,
    since the scale of the texture is one of the things that give a recorder away.
    """
    height, width = rgb.shape[:2]
    side = max(1, min(height, width) // 2)
    top, left = (height - side) // 2, (width - side) // 2
    square = np.ascontiguousarray(rgb[top : top + side, left : left + side])
    colours = [cv2.meanStdDev(square), cv2.meanStdDev(cv2.cvtColor(square, cv2.COLOR_RGB2HSV))]
    levels = [
        np.bincount(square[..., channel].ravel(), minlength=256).cumsum() for channel in range(3)
    ]
    quantiles = [np.searchsorted(level, QUANTILES * level[-1]) for level in levels]
    finer: np.ndarray = cv2.cvtColor(square, cv2.COLOR_RGB2GRAY).astype(np.float32)
    bands = [cv2.Laplacian(finer, cv2.CV_32F)]
    for _ in range(5):
        coarser = cv2.pyrDown(finer)
        bands.append(finer - cv2.pyrUp(coarser, dstsize=(finer.shape[1], finer.shape[0])))
        finer = coarser
    return np.concatenate(
        [
            np.ravel(colours),
            np.ravel(quantiles),
            np.log([band.std() + 0.01 for band in bands]),  # 0.01: a flat square has no logarithm
        ]
    ).astype(np.float64)


def nearest_distance(known: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """For each row of `asked` the distance to the nearest row of `known`.

    Euclidean, in units of each column's deviation over `known`; float [N, K], [M, K] -> [M].
    """
    centre, scale = known.mean(axis=0), known.std(axis=0) + 1e-6
    known, asked = (known - centre) / scale, (asked - centre) / scale
    squared = (
        (asked**2).sum(axis=1)[:, None] + (known**2).sum(axis=1)[None] - 2 * asked @ known.T
    )  # [M, N]
    distance: np.ndarray = np.sqrt(np.maximum(squared.min(axis=1), 0))
    return distance


def surface_cues(
    train: Sequence[Surface], normal: Sequence[Surface], abnormal: Sequence[Surface]
) -> dict[str, float | None]:
    """How well each surface cue alone separates abnormal from normal images, as an AUROC.

    The distance and the rarity are of normal training frames and keep their direction. Width,
    aspect, black share and the box have no direction of their own; a cheat takes the better, so
    theirs is at least 0.5.

    Args:
        train, normal, abnormal: at least one each.

    Returns:
        None where a cue is not known for every image.
    """
    statistics = [
        np.array([surface.statistics for surface in some]) for some in (train, normal, abnormal)
    ]
    tables = Counter(surface.jpeg_tables for surface in train)
    boxes = [[surface.position_box for surface in some] for some in (normal, abnormal)]
    return {
        "colour_and_texture": auroc(
            nearest_distance(statistics[0], statistics[1]),
            nearest_distance(statistics[0], statistics[2]),
        ),
        "image_width": _either_way(
            [surface.width_px for surface in normal], [surface.width_px for surface in abnormal]
        ),
        "image_aspect": _either_way(
            [surface.aspect for surface in normal], [surface.aspect for surface in abnormal]
        ),
        "black_pixels": _either_way(
            [surface.black_fraction for surface in normal],
            [surface.black_fraction for surface in abnormal],
        ),
        "jpeg_tables": auroc(
            np.array([-tables[surface.jpeg_tables] for surface in normal]),
            np.array([-tables[surface.jpeg_tables] for surface in abnormal]),
        ),
        "position_box": None
        if any(box is None for some in boxes for box in some)
        else _either_way(*([bool(box) for box in some] for some in boxes)),
    }


def image_baselines(
    train: Sequence[Surface],
    normal: Sequence[Surface],
    abnormal: Sequence[Surface],
    normal_valid: np.ndarray,
    abnormal_valid: np.ndarray,
) -> dict[str, float | None]:
    """`surface_cues`, and how well the share of each view that is valid separates the images.

    Args:
        normal_valid, abnormal_valid: float [N] and [M], the share of each view that is valid.
    """
    cues = surface_cues(train, normal, abnormal)
    return cues | {"valid_fraction": _either_way(normal_valid, abnormal_valid)}


def centre_map() -> np.ndarray:
    """Float32 [256, 256]: minus the distance to the centre of the view, in pixels."""
    height, width = VIEW_SIZE
    rows, columns = np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2
    closeness: np.ndarray = -np.hypot(rows[:, None], columns[None])
    return closeness.astype(np.float32)


def red_map(image: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Float32 [256, 256]: the red channel, blurred over valid pixels only.

    Args:
        image: uint8 [3, 256, 256], RGB.
        valid: bool [256, 256].
    """
    weight = valid.astype(np.float32)
    red = cv2.GaussianBlur(image[0] * weight, (0, 0), RED_BLUR_PX)
    blurred: np.ndarray = red / np.maximum(cv2.GaussianBlur(weight, (0, 0), RED_BLUR_PX), 1e-6)
    return blurred


def _of_still(item: Item) -> Surface:
    rgb = read_image(item.path)
    if rgb is None:
        raise DataError(f"cannot read {item.path}. Expected a whole image; copy it again.")
    return surface_of(rgb, item)


def _either_way(
    normal: Sequence[float] | np.ndarray, abnormal: Sequence[float] | np.ndarray
) -> float:
    value = auroc(np.asarray(normal, np.float64), np.asarray(abnormal, np.float64))
    return max(value, 1 - value)
