"""How well the field of view is found: mean IoU with the boxes in the data folder's index.csv.

    python tools/measure_view.py DATA_FOLDER

Reads normal/train and normal/calibration; `--also polyp cvc` reports others beside them, on which
nothing is ever tuned.
"""

import argparse
import csv
import time
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np

from ccdstream.frames import FieldOfView
from ccdstream.view import find_field


def iou(found: FieldOfView, x: int, y: int, width: int, height: int) -> float:
    """Intersection over union of the box found and the box (x, y, width, height)."""
    across = min(found.x + found.width, x + width) - max(found.x, x)
    down = min(found.y + found.height, y + height) - max(found.y, y)
    shared = max(across, 0) * max(down, 0)
    return shared / (found.width * found.height + width * height - shared)


def main() -> None:
    """Prints one line per source, and the total."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with index.csv")
    parser.add_argument("--also", nargs="*", default=[], help="folders to report beside")
    parser.add_argument("--worst", type=int, default=0, help="list so many of the worst images")
    arguments = parser.parse_args()
    folders = ("normal/train", "normal/calibration", *arguments.also)

    found: dict[str, list[tuple[float, str]]] = defaultdict(list)
    spent_s = 0.0
    with (arguments.data / "index.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if not row["path"].startswith(tuple(f"{folder}/" for folder in folders)):
                continue
            luma = cv2.imread(str(arguments.data / row["path"]), cv2.IMREAD_GRAYSCALE)
            started = time.perf_counter()
            field = find_field(luma)
            spent_s += time.perf_counter() - started
            box = (int(row[f"fov_{name}"]) for name in ("x", "y", "w", "h"))
            folder = next(f for f in folders if row["path"].startswith(f"{f}/"))
            found[f"{folder} {row['source']}"].append((iou(field, *box), row["path"]))

    print(f"{'images':45} {'count':>6} {'mean':>7} {'5 %':>7} {'lowest':>7}")
    everything = [each for group in found.values() for each in group]
    for name, group in [*sorted(found.items()), ("total", everything)]:
        values = np.array([value for value, _ in group])
        low = np.quantile(values, 0.05)
        print(f"{name:45} {len(values):6} {values.mean():7.4f} {low:7.4f} {values.min():7.4f}")
    print(f"{1000 * spent_s / len(everything):.2f} ms per image")
    for value, path in sorted(everything)[: arguments.worst]:
        print(f"{value:.4f} {path}")


if __name__ == "__main__":
    main()
