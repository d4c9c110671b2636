"""Small images for tests, that differ from seed to seed, and lists of them."""

import csv
from pathlib import Path

import cv2
import numpy as np
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """uint8 [H, W, 3]: smooth blobs that differ from seed to seed."""
    coarse = np.random.default_rng(seed).integers(60, 220, (6, 7, 3), dtype=np.uint8)
    return cv2.resize(coarse, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)


def save(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def save_many(folder: Path, seeds: range) -> None:
    for seed in seeds:
        save(folder / f"{seed:03d}.png", picture(seed))


def write_index(folder: Path, rows: list[dict[str, object]]) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with (folder / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
