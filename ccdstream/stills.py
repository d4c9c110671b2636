"""Still images -> scores.csv, and anomaly maps in each image's own size.

The still image's way through the same view, program and calibration as a frame's; without time
there is no smoothing and no alert.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from ccdstream.bundle import Bundle
from ccdstream.engine.select import SelectedEngine
from ccdstream.errors import ImageError, OutputError, show_path
from ccdstream.frames import View
from ccdstream.fuse import Calibration
from ccdstream.quality import QualityLimits, flags, measure
from ccdstream.report.files import TextFile, printable
from ccdstream.score import Scorer
from ccdstream.view import Profile, map_to_image, view_of_image

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
COLUMNS = ("path", "score", "raw", "valid_fraction", "quality")


@dataclass(frozen=True, slots=True)
class StillResult:
    """The row of one image."""

    path: Path
    score: float
    """Calibrated, in [0, 1]; NaN where nothing of the image is valid."""
    raw: float
    valid_fraction: float
    quality: tuple[str, ...]


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The images that `paths` name: files as they are, folders searched recursively, in order.

    Raises:
        ImageError: a path does not exist, or a folder holds no image.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            images = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
            if not images:
                raise ImageError(
                    f"no images in {show_path(path)}. Expected {', '.join(sorted(SUFFIXES))} files."
                )
            found += images
        elif path.exists():
            found.append(path)
        else:
            raise ImageError(f"no such file: {show_path(path)}. Check the path.")
    return found


def read_image(path: Path) -> np.ndarray:
    """uint8 [H, W, 3], RGB, as it is stored: an EXIF orientation is applied.

    Raises:
        ImageError: the file cannot be read or is not an image.
    """
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise ImageError(f"cannot read {show_path(path)}: {error.strerror}.") from error
    try:
        bgr = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except cv2.error as error:
        raise ImageError(
            f"cannot read {show_path(path)}: it is too large. Make it smaller first."
        ) from error
    if bgr is None:
        raise ImageError(
            f"cannot read {show_path(path)}: not an image, or damaged. Expected "
            f"{', '.join(sorted(SUFFIXES))} content."
        )
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


def score_stills(
    images: Sequence[Path],
    output: Path,
    *,
    bundle: Bundle,
    engine: SelectedEngine,
    maps: Path | None = None,
    batch: int = 4,
    overwrite: bool = False,
    on_image: Callable[[int], None] = lambda _: None,
    on_unreadable: Callable[[str], None] = lambda _: None,
) -> list[StillResult]:
    """Score `images` into `output`, one row an image, and their maps into the folder `maps`.

    A map is `NAME.npy`, float32 [H, W] in the image's own size: the fraction of normal calibration
    pixels that score lower, NaN where the image is not valid. Images that cannot be read are told
    to `on_unreadable` and left out.

    Raises:
        OutputError: `output` or a map exists or cannot be written.
        ImageError: not one image could be read, or two would write the same map.
    """
    score_curve = Calibration.from_dict(bundle.calibration["score"])
    map_curve = Calibration.from_dict(bundle.calibration["map"])
    profile, limits = Profile.from_dict(bundle.profile), QualityLimits.from_dict(bundle.quality)
    scorer = Scorer(engine)
    results: list[StillResult] = []
    if maps is not None:
        _prepare_maps(maps, images, overwrite)

    def readable() -> Iterator[tuple[Path, tuple[int, int], View]]:
        for path in images:
            try:
                rgb = read_image(path)
            except ImageError as error:
                on_unreadable(str(error))
                continue
            height, width = rgb.shape[:2]
            yield path, (height, width), view_of_image(rgb, profile)

    views = readable()
    with ExitStack() as stack:
        table = csv.writer(
            stack.enter_context(TextFile(output, overwrite=overwrite)), lineterminator="\n"
        )
        table.writerow(COLUMNS)
        while items := list(islice(views, batch)):
            scored = scorer.score([view for _, _, view in items])
            for (path, size, view), one in zip(items, scored, strict=True):
                quality = flags(measure(view), limits, view.valid_fraction)
                score = float(score_curve.apply(np.array(one.raw)))
                result = StillResult(path, score, one.raw, view.valid_fraction, quality)
                results.append(result)
                table.writerow(
                    [
                        printable(path),
                        f"{score:.6f}",
                        f"{one.raw:.9g}",
                        f"{view.valid_fraction:.4f}",
                        ";".join(quality),
                    ]
                )
                if maps is not None:
                    heat = map_curve.apply(one.anomaly_map).astype(np.float32)
                    _write_map(
                        map_path(maps, path), map_to_image(heat, view.field, size, view.valid)
                    )
                on_image(len(results))
        if not results:
            raise ImageError(
                f"none of {len(images)} images could be read, so there is nothing to score."
            )
    return results


def map_path(folder: Path, image: Path) -> Path:
    """Where the map of `image` goes."""
    return folder / f"{image.name}.npy"


def _prepare_maps(folder: Path, images: Sequence[Path], overwrite: bool) -> None:
    seen: dict[Path, Path] = {}
    for image in images:
        target = map_path(folder, image)
        if target in seen:
            raise ImageError(
                f"{show_path(seen[target])} and {show_path(image)} have the same name, so their "
                "maps would be one file. Score them apart, with a --maps folder each."
            )
        seen[target] = image
        if target.exists() and not overwrite:
            raise OutputError(
                f"{show_path(target)} is there already. Pass --overwrite, or remove it."
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot make the folder {show_path(folder)}: {error.strerror}."
        ) from error


def _write_map(path: Path, values: np.ndarray) -> None:
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            np.save(file, values.astype(np.float32))
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(f"cannot write {show_path(path)}: {error.strerror}.") from error
