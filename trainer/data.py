"""Everything that training and evaluation can take, in; labelled items, and their views, out.

`trainer.layouts` says how folders are understood, `trainer.recordings` how recordings are. Nothing
of a test split is opened here before `load_views` is asked for it, unless the layout must choose
it. The names of `trainer.items` and `trainer.images` that go with items are found here too.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ccdstream.errors import DataError, show_path
from ccdstream.frames import VIEW_SIZE, FieldOfView, View
from ccdstream.view import Profile, view_of_image
from trainer.images import (
    NEAR_DUPLICATE_BITS,
    difference_hash,
    near_duplicate_groups,
    read_header,
    read_image,
    read_mask,
)
from trainer.items import (
    CALIBRATION_FRACTION,
    FEWEST_FRAMES,
    IMAGE_SUFFIXES,
    LABELS,
    SMALLEST_SIDE_PX,
    SPLITS,
    Dataset,
    Item,
    Problem,
    Progress,
    are,
    counted,
    named,
    too_small,
    unreadable,
)
from trainer.layouts import recognise
from trainer.recordings import views_at

__all__ = [
    "CALIBRATION_FRACTION",
    "FEWEST_FRAMES",
    "IMAGE_SUFFIXES",
    "LABELS",
    "NEAR_DUPLICATE_BITS",
    "SMALLEST_SIDE_PX",
    "SPLITS",
    "Dataset",
    "Item",
    "Progress",
    "Views",
    "content_hash",
    "difference_hash",
    "file_hash",
    "find_data",
    "load_views",
    "near_duplicate_groups",
    "read_image",
    "read_mask",
    "survey",
]


@dataclass(frozen=True, slots=True, eq=False)
class Views:
    """What the model sees of N images."""

    images: np.ndarray
    """uint8 [N, 3, H, W], RGB; neutral grey where not valid."""
    valid: np.ndarray
    """bool [N, H, W]."""
    items: tuple[Item, ...]
    fields: tuple[FieldOfView, ...]
    """Where in each image the view was cut: takes masks along."""
    sizes: tuple[tuple[int, int], ...]
    """(height, width) of each image, in pixels."""

    def __len__(self) -> int:
        return len(self.items)


def find_data(data: Path, *, progress: Progress | None = None) -> Dataset:
    """The images of a folder or of one recording, by one of the layouts of `trainer.layouts`.

    Args:
        progress: told after every recording that was looked through.

    Raises:
        DataError: if nothing is there, or no images; if `train` or `calibration` has fewer than
            `FEWEST_FRAMES` frames, holds one that is not normal or is named abnormal, is of a
            recording in which lesions are marked, or shares a group with the other; if an image or
            recording of `train`, `calibration` or `pretrain` cannot be read or is smaller than
            `SMALLEST_SIDE_PX`; if images and recordings are mixed; if a list names files or values
            that are unknown.
    """
    dataset, problems = survey(data, progress=progress)
    if problems:
        raise DataError(problems[0].message)
    return dataset


def survey(data: Path, *, progress: Progress | None = None) -> tuple[Dataset, list[Problem]]:
    """What `find_data` finds, and every reason for which it would refuse it.

    Raises:
        DataError: if there is nothing to look into, or its list cannot be understood.
    """
    data = Path(os.path.abspath(data))  # so that "." has a name and a folder above
    found = recognise(data, progress=progress)
    folder = data.parent if data.is_file() else data
    items = sorted(found.items, key=lambda item: (item.path.as_posix(), item.pts or 0))
    dataset = Dataset(folder, tuple(items), found.layout)
    if not items and not found.problems:
        message = (
            f"no images in {show_path(folder)}. Expected {', '.join(sorted(IMAGE_SUFFIXES))} files "
            "or recordings, in the folder or below it."
        )
        return dataset, [Problem("empty", message)]
    known = {path for problem in found.problems for path in problem.paths}
    openable = [
        item
        for item in items
        if item.split != "test" and item.pts is None and item.path not in known
    ]
    return dataset, [*found.problems, *_of_headers(openable), *_of_splits(dataset, data)]


def load_views(
    items: Sequence[Item],
    profile: Profile,
    *,
    size: int = VIEW_SIZE[0],
    progress: Progress | None = None,
) -> Views:
    """Decode `items` and cut each to the model's view.

    Args:
        items: any number, of any split; each recording is decoded once for all its frames.
        profile: what to mask on stills of this kind, and on a recording until it has told.
        size: side of the square view, in pixels.
        progress: told after every image.

    Raises:
        DataError: if images cannot be decoded; the first few are named and all are counted.
    """
    images = np.zeros((len(items), 3, size, size), np.uint8)
    valid = np.zeros((len(items), size, size), bool)
    places: dict[int, tuple[FieldOfView, tuple[int, int]]] = {}  # a place for every whole image

    def keep(index: int, view: View, image_size: tuple[int, int]) -> None:
        image, mask = view.image, view.valid
        if image.shape[:2] != (size, size):
            image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
            resized = cv2.resize(
                mask.astype(np.uint8), (size, size), interpolation=cv2.INTER_NEAREST
            )
            mask = resized.astype(bool)
        images[index] = image.transpose(2, 0, 1)
        valid[index] = mask
        places[index] = (view.field, image_size)

    def load(index: int) -> None:
        rgb = read_image(items[index].path)
        if rgb is not None:
            height, width = rgb.shape[:2]
            keep(index, view_of_image(rgb, profile), (height, width))

    stills = [index for index, item in enumerate(items) if item.pts is None]
    frames: dict[Path, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for index, item in enumerate(items):
        if item.pts is not None:
            frames[item.path][item.pts].append(index)
    done = 0
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for done, _ in enumerate(pool.map(load, stills), start=1):
            if progress is not None:
                progress(done, len(items))
    broken = [items[index].path for index in stills if index not in places]
    if broken:
        raise DataError(unreadable(broken).message)
    for path, indices in frames.items():
        for frame, view in views_at(path, indices, profile):
            for index in indices[frame.pts]:
                keep(index, view, frame.size)
                done += 1
                if progress is not None:
                    progress(done, len(items))
    return Views(
        images,
        valid,
        tuple(items),
        tuple(places[index][0] for index in range(len(items))),
        tuple(places[index][1] for index in range(len(items))),
    )


def content_hash(items: Sequence[Item]) -> str:
    """SHA-256, in hex, of what `items` are: their number, and each one's name and content.

    Names are relative to the items' common folder, so the hash is the same on every machine and
    for every order of `items`. That of a frame is its recording's with the pts.
    """
    if not items:
        return hashlib.sha256(b"0\n").hexdigest()
    root = Path(os.path.commonpath([item.path.parent.absolute() for item in items]))
    of_file = {path: file_hash(path) for path in {item.path for item in items}}
    lines = sorted(
        f"{item.path.absolute().relative_to(root).as_posix()}"
        f"{'' if item.pts is None else f'@{item.pts}'}\t{of_file[item.path]}\n"
        for item in items
    )
    # the odd bytes of a file name are surrogates in it
    text = "".join([f"{len(items)}\n", *lines]).encode("utf-8", "surrogateescape")
    return hashlib.sha256(text).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256, in hex, of the content of a file: files of one hash are exact duplicates."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _of_splits(dataset: Dataset, data: Path) -> list[Problem]:
    problems = []
    usable = len(dataset.train) + len(dataset.calibration)
    if usable < 2 * FEWEST_FRAMES:
        message = (
            f"{show_path(data)} has {counted(usable, 'frame')} to train on and calibrate with. "
            f"Expected at least {2 * FEWEST_FRAMES}, apart from near-duplicates: {FEWEST_FRAMES} "
            f"to train on and {FEWEST_FRAMES} to calibrate with; add normal frames."
        )
        problems.append(Problem("few", message))
    for split in ("train", "calibration", "pretrain"):
        items = dataset.of_split(split)
        strange = [item.path for item in items if item.label != "normal"]
        if strange:
            message = (
                f"{counted(len(strange), 'image')} of {split} {are(len(strange))} not labelled "
                f"normal: {named(strange)}. Only normal frames train and calibrate: the "
                "others belong in test."
            )
            problems.append(Problem("label", message, tuple(strange)))
        if split != "pretrain" and len(items) < FEWEST_FRAMES and usable >= 2 * FEWEST_FRAMES:
            message = (
                f"{show_path(data)} has {counted(len(items), f'{split} frame')}. Expected at least "
                f"{FEWEST_FRAMES}, apart from near-duplicates; add normal frames."
            )
            problems.append(Problem("few", message))
    shared = {item.group for item in dataset.train} & {item.group for item in dataset.calibration}
    if shared:
        message = (
            f"{counted(len(shared), 'near-duplicate group')} "
            f"{'lies' if len(shared) == 1 else 'lie'} in both train and calibration, such as "
            f"{sorted(shared)[0]!r}. Keep each group on one side, or thresholds come out too low."
        )
        paths = tuple(item.path for item in dataset.items if item.group in shared)
        problems.append(Problem("shared group", message, paths))
    return problems


def _of_headers(items: Iterable[Item]) -> list[Problem]:
    """Read headers only: whole images are decoded by `load_views`, once."""
    broken, small = [], []
    for item in items:
        header = read_header(item.path)
        if header is None:
            broken.append(item.path)
        elif min(header.size) < SMALLEST_SIDE_PX:
            small.append(item.path)
    problems = [unreadable(broken)] if broken else []
    return problems + ([too_small(small)] if small else [])
