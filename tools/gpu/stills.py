"""Drawn stills as PNG files, for trying out what needs images: they show nobody and teach nothing.

python tools/gpu/stills.py FOLDER [--count 48]
"""

import argparse
from pathlib import Path

import cv2

from ccdstream import sample


def main() -> None:
    """Write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=48)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for seed in range(arguments.count):
        bgr = cv2.cvtColor(sample.still(seed, size=(256, 256)), cv2.COLOR_RGB2BGR)
        if not cv2.imwrite(str(arguments.folder / f"still_{seed:03d}.png"), bgr):
            parser.exit(1, f"error: cannot write into {arguments.folder}.\n")


if __name__ == "__main__":
    main()
