"""Image files in; pixels, and how alike they are, out."""

import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ccdstream.errors import DataError
from trainer.items import (
    CALIBRATION_FRACTION,
    FEWEST_FRAMES,
    SMALLEST_SIDE_PX,
    Item,
    Problem,
    too_small,
    unreadable,
)

NEAR_DUPLICATE_BITS = 3
"""Images whose 64-bit difference hashes differ in at most this many bits count as near-duplicates.
Among 817 normal stills of HyperKvasir and Kvasir the largest group is then 14; at 4 bits chance
likenesses chain 72 images into one."""


def read_image(path: Path) -> np.ndarray | None:
    """uint8 [H, W, 3], RGB, upright by its EXIF tag; None where the file is not a whole image."""
    bgr = _decoded(path, cv2.IMREAD_COLOR)
    return None if bgr is None else cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def read_mask(path: Path) -> np.ndarray:
    """Bool [H, W], True on the lesion.

    Values above 127 count: masks that were stored as JPEG hold more than 0 and 255.

    Raises:
        DataError: if the file is not a whole image.
    """
    grey = _decoded(path, cv2.IMREAD_GRAYSCALE)
    if grey is None:
        raise DataError(unreadable([path]).message)
    mask: np.ndarray = grey > 127
    return mask


def _decoded(path: Path, flags: int) -> np.ndarray | None:
    try:
        encoded = np.fromfile(path, np.uint8)  # cv2.imread fails on unicode paths on Windows
    except OSError:
        return None  # gone or not ours to read: the caller names it with the damaged ones
    try:
        return cv2.imdecode(encoded, flags) if encoded.size else None
    except cv2.error:
        return None  # claims more pixels than OpenCV decodes


@dataclass(frozen=True, slots=True)
class Header:
    """What an image file says of itself."""

    size: tuple[int, int]
    """(height, width), as stored."""
    jpeg_tables: str
    """The quantisation tables, as text to compare; empty where the file is no JPEG."""


def read_header(path: Path) -> Header | None:
    """The header of an image file, without decoding it; None where it has none that is known."""
    try:
        with Image.open(path) as image:
            tables = getattr(image, "quantization", None)  # only JPEG files have it
            return Header(
                (image.height, image.width), str(sorted(tables.items())) if tables else ""
            )
    except (OSError, Image.DecompressionBombError):  # UnidentifiedImageError is an OSError
        return None


def difference_hash(grey: np.ndarray) -> np.ndarray:
    """Bool [64]: for an 8x9 thumbnail of `grey` uint8 [H, W], is each pixel darker than the next?

    The dHash of N. Krawetz ("Kind of like that", 2013): blind to size, brightness and compression.
    """
    thumbnail = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA)  # [8, 9]
    bits: np.ndarray = (thumbnail[:, :-1] < thumbnail[:, 1:]).ravel()
    return bits


def near_duplicate_pairs(
    hashes: np.ndarray, *, most_bits: int = NEAR_DUPLICATE_BITS
) -> list[tuple[int, int]]:
    """All (i, j) with i < j whose hashes differ in at most `most_bits` bits.

    Args:
        hashes: bool [N, B], one row of bits an image.
    """
    signs = np.where(hashes, 1, -1).astype(np.float32)  # [N, B]; a . b = B - 2 * Hamming(a, b)
    rows_at_a_time = 1024
    pairs = []
    for start in range(0, len(signs), rows_at_a_time):
        chunk = signs[start : start + rows_at_a_time]
        close = chunk @ signs.T >= hashes.shape[1] - 2 * most_bits - 0.5
        rows, columns = np.nonzero(np.triu(close, k=start + 1))
        pairs += list(zip((rows + start).tolist(), columns.tolist(), strict=True))
    return pairs


def near_duplicate_groups(hashes: np.ndarray, *, most_bits: int = NEAR_DUPLICATE_BITS) -> list[int]:
    """For each image the index of the first image of its group.

    Two images are in one group where a chain of images joins them in which neighbours differ in at
    most `most_bits` bits.

    Args:
        hashes: bool [N, B], one row of bits an image.
    """
    parent = list(range(len(hashes)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for one, other in near_duplicate_pairs(hashes, most_bits=most_bits):
        first, second = root(one), root(other)
        if first != second:
            parent[max(first, second)] = min(first, second)
    return [root(index) for index in range(len(hashes))]


def grouped(items: Sequence[Item], folder: Path) -> tuple[list[Item], list[Problem]]:
    """`items` by path, each in the group of its near-duplicates, named by the first of them.

    Every image is decoded once. Those that cannot be, or are too small, are left out and named.
    """
    ordered = sorted(items, key=lambda item: item.path.as_posix())
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        seen = list(pool.map(_hash_and_side, (item.path for item in ordered)))
    broken = [item.path for item, one in zip(ordered, seen, strict=True) if one is None]
    small = [
        item.path
        for item, one in zip(ordered, seen, strict=True)
        if one is not None and one[1] < SMALLEST_SIDE_PX
    ]
    problems = [unreadable(broken)] if broken else []
    problems += [too_small(small)] if small else []
    whole = [
        (item, one[0])
        for item, one in zip(ordered, seen, strict=True)
        if one is not None and one[1] >= SMALLEST_SIDE_PX
    ]
    if not whole:
        return [], problems
    firsts = near_duplicate_groups(np.array([bits for _, bits in whole]))
    return [
        replace(item, group=whole[first][0].path.relative_to(folder).as_posix())
        for (item, _), first in zip(whole, firsts, strict=True)
    ], problems


def _hash_and_side(path: Path) -> tuple[np.ndarray, int] | None:
    rgb = read_image(path)
    if rgb is None:
        return None
    return difference_hash(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)), min(rgb.shape[:2])


def hold_out(items: Sequence[Item]) -> list[Item]:
    """Give every k-th group of `items` to calibration, so that it gets its share of frames."""
    groups = defaultdict(list)
    for item in items:
        groups[item.group].append(item)
    fraction = max(CALIBRATION_FRACTION, FEWEST_FRAMES / max(len(items), 1))
    share = fraction * len(items)
    seen = held = 0
    result = []
    for members in groups.values():
        seen += len(members)
        # A group larger than the whole share would starve the training side.
        calibrate = held < fraction * seen and len(members) <= share
        held += len(members) if calibrate else 0
        result += [replace(i, split="calibration") if calibrate else i for i in members]
    return result
