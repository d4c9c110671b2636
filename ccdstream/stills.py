"""Still images -> scores.csv, and anomaly maps in each image's own size.

The still image's way through the same view, program and calibration as a frame's; without time
there is no smoothing and no alert.

    path             of the image, what a terminal cannot show in it escaped
    score            fraction of normal calibration frames that score lower
    raw              raw score of the bundle's model, nine significant digits
    valid_fraction   share of the model's view that was scored
    quality          why the image is uninformative, joined with ";"; empty for informative ones
"""

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from ccdstream.bundle import Bundle
from ccdstream.engine.base import CalibrationViews
from ccdstream.engine.select import SelectedEngine
from ccdstream.errors import ImageError, OutputError, show_path
from ccdstream.frames import View
from ccdstream.fuse import Calibration
from ccdstream.quality import QualityLimits, flags, measure
from ccdstream.report.files import TextFile, Together, make_folder, printable, refuse_existing
from ccdstream.score import Scorer
from ccdstream.view import Profile, map_to_image, view_of_image

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
COLUMNS = ("path", "score", "raw", "valid_fraction", "quality")


@dataclass(frozen=True, slots=True)
class StillResult:
    """The row of one image."""

    path: Path
    score: float
    """Calibrated, in [0, 1]."""
    raw: float
    valid_fraction: float
    quality: tuple[str, ...]


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The images that `paths` name: files as they are, folders searched recursively, in order.

    Hidden files and folders are passed over: desktops and file servers leave such beside images.

    Raises:
        ImageError: a path does not exist, or a folder holds no image.
    """
    found: list[Path] = []
    for path in paths:
        # os.path, because Path's own raise where the name is too long
        if os.path.isdir(path):
            images = sorted(
                image
                for image in path.rglob("*")
                if image.suffix.lower() in SUFFIXES
                and not any(part.startswith(".") for part in image.relative_to(path).parts)
                and image.is_file()
            )
            if not images:
                raise ImageError(
                    f"no images in the folder {show_path(path)}. Expected files ending in "
                    f"{', '.join(sorted(SUFFIXES))}."
                )
            found += images
        elif os.path.exists(path):
            found.append(path)
        else:
            raise ImageError(f"no such file: {show_path(path)}. Check the path.")
    return found


def calibration_views(
    images: Sequence[Path], bundle: Bundle, *, most: int = 64
) -> CalibrationViews:
    """Views of normal frames, as a bundle's program sees them; at most `most`, evenly picked.

    Raises:
        ImageError: one cannot be read.
    """
    profile = Profile.from_dict(bundle.profile)
    picked = (
        [images[k * len(images) // most] for k in range(most)] if len(images) > most else images
    )
    views = [view_of_image(read_image(path), profile) for path in picked]
    return CalibrationViews(
        np.stack([view.image.transpose(2, 0, 1) for view in views]),
        np.stack([view.valid for view in views]),
    )


def read_image(path: Path) -> np.ndarray:
    """uint8 [H, W, 3], RGB, upright by its EXIF tag.

    Raises:
        ImageError: the file cannot be read or is not an image.
    """
    shown = show_path(path)
    if not os.path.isfile(path):  # reading a pipe could wait for ever
        raise ImageError(f"cannot read {shown}: there is no regular file of that name.")
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise ImageError(f"cannot read {shown}: {error.strerror}.") from error
    try:
        bgr = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except cv2.error as error:
        raise ImageError(f"cannot read {shown}: it is too large. Make it smaller first.") from error
    if bgr is None:
        raise ImageError(
            f"cannot read {shown}: {'damaged, or not an image' if data.size else 'it is empty'}."
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

    A map is `NAME.npy`, float32 [H, W] in the image's own size, upright: the fraction of normal
    calibration pixels that score lower, NaN where the image is not valid. Table and maps appear
    together at the end, or not at all. Images that cannot be read are told to `on_unreadable` and
    left out.

    Args:
        on_image: called after every image with how many there are.

    Raises:
        OutputError: `output` or a map exists or cannot be written.
        ImageError: not one image could be read, or two would write the same map.
    """
    score_curve = Calibration.from_dict(bundle.calibration["score"])
    map_curve = Calibration.from_dict(bundle.calibration["map"])
    limits = QualityLimits.from_dict(bundle.quality)
    scorer = Scorer(engine)
    views = _views(images, Profile.from_dict(bundle.profile), on_unreadable)
    results: list[StillResult] = []
    with Together(overwrite=overwrite) as files:
        table_place = files.place(output)
        if maps is not None:
            _prepare_maps(maps, images, overwrite)
        with TextFile(table_place) as table:
            rows = csv.writer(table, lineterminator="\n")
            rows.writerow(COLUMNS)
            while items := list(islice(views, batch)):
                scored = scorer.score([view for _, _, view in items])
                for (path, size, view), one in zip(items, scored, strict=True):
                    score = float(score_curve.apply(np.array(one.raw)))
                    quality = flags(measure(view), limits, view.valid_fraction)
                    results.append(StillResult(path, score, one.raw, view.valid_fraction, quality))
                    rows.writerow(_row(results[-1]))
                    if maps is not None:
                        heat = map_curve.apply(one.anomaly_map).astype(np.float32)
                        _write_map(
                            files.place(map_path(maps, path)),
                            map_to_image(heat, view.field, size, view.valid),
                        )
                    on_image(len(results))
            if not results:
                raise ImageError(
                    "there is nothing to score: not one of the images that were named can be read."
                )
    return results


def map_path(folder: Path, image: Path) -> Path:
    """Where the map of `image` goes."""
    return folder / f"{image.name}.npy"


def _views(
    images: Sequence[Path], profile: Profile, on_unreadable: Callable[[str], None]
) -> Iterator[tuple[Path, tuple[int, int], View]]:
    """(path, (height, width) of the image, what the model sees of it) of all that can be read."""
    for path in images:
        try:
            rgb = read_image(path)
        except ImageError as error:
            on_unreadable(str(error))
            continue
        height, width = rgb.shape[:2]
        yield path, (height, width), view_of_image(rgb, profile)


def _row(result: StillResult) -> list[str]:
    return [
        printable(result.path),
        f"{result.score:.6f}",
        f"{result.raw:.9g}",
        f"{result.valid_fraction:.4f}",
        ";".join(result.quality),
    ]


def _prepare_maps(folder: Path, images: Sequence[Path], overwrite: bool) -> None:
    """Refuse, before any work, what could not be written in the end."""
    owner: dict[Path, Path] = {}
    for image in images:
        target = map_path(folder, image)
        if target in owner:
            raise ImageError(
                f"{show_path(owner[target])} and {show_path(image)} have the same name, so their "
                "maps would be one file. Score them apart, with a --maps folder each."
            )
        owner[target] = image
        if not overwrite:
            refuse_existing(target)
    make_folder(folder, "Choose another --maps.")


def _write_map(path: Path, values: np.ndarray) -> None:
    data = BytesIO()
    np.save(data, values)  # into memory: of a full disk it says only "0 written"
    try:
        path.write_bytes(data.getbuffer())
    except OSError as error:
        raise OutputError(
            f"cannot write {show_path(path)}: {error.strerror or error}. "
            "Check that the folder is writable and has room, or choose another --maps."
        ) from error
