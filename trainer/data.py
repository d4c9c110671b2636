"""Folders of still images in; a list of labelled items, and their 256x256 views, out.

Three layouts are understood, tried in this order:

1. `index.csv` in the folder: one row an image with the columns path, label, split and, where known,
   source, position_box (1 where the scope-guide inset is there) and group (of near-duplicates).
   The lesion mask of `x/images/name.jpg` is `x/masks/name.png`, where that file exists.
2. Subfolders `train/` and, where there, `calibration/`, `patches/` (pre-training only) and `test/`,
   all of normal frames. An `index.csv` in the folder above that lists these files adds its source,
   group and position_box. Without `calibration/`, a part of `train/` is held out.
3. Any other folder of normal frames, searched recursively: a part is held out for calibration.

What is held out is fixed by the file names and the pictures alone, and near-duplicates stay on one
side. Nothing of a test split is opened here before `load_views` is asked for it.
"""

import csv
import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from ccdstream.errors import DataError
from ccdstream.frames import VIEW_SIZE, FieldOfView
from ccdstream.view import Profile, view_of_image

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
LABELS = ("normal", "abnormal", "unclean")
SPLITS = ("train", "calibration", "pretrain", "test")

SMALLEST_SIDE_PX = 32
"""Below this an image holds less than one patch of the local model (32x32 in the paper)."""
FEWEST_FRAMES = 8
"""Fewer frames than this make neither a mini-batch to train on nor a quantile to calibrate with."""
CALIBRATION_FRACTION = 0.15
NEAR_DUPLICATE_BITS = 3
"""Images whose 64-bit difference hashes differ in at most this many bits count as near-duplicates.
Among 817 normal stills of HyperKvasir and Kvasir the largest group is then 14; at 4 bits chance
likenesses chain 72 images into one."""
NAMED_IN_A_MESSAGE = 5

Progress = Callable[[int, int], None]
"""Called with (done, total) while something long is under way."""


@dataclass(frozen=True, slots=True)
class Item:
    """One still image and what is known about it."""

    path: Path
    label: str
    """One of `LABELS`. Unclean is stool or poor preparation: neither normal nor lesion."""
    split: str
    """One of `SPLITS`."""
    source: str
    """The data set that the image comes from."""
    group: str
    """Images that share it show nearly the same thing; never empty."""
    position_box: bool | None = None
    """Whether the scope-guide inset is in the picture; None where nobody said."""
    mask: Path | None = None
    """Lesion mask, at the image's size; None where there is none."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """The items of a folder, ordered by path."""

    folder: Path
    items: tuple[Item, ...]

    def of_split(self, split: str) -> list[Item]:
        """The items of one split, in order."""
        if split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        return [item for item in self.items if item.split == split]

    @property
    def train(self) -> list[Item]:
        """Normal frames to train on."""
        return self.of_split("train")

    @property
    def calibration(self) -> list[Item]:
        """Normal frames, apart from `train`: thresholds and the score scale are set here."""
        return self.of_split("calibration")

    @property
    def pretrain(self) -> list[Item]:
        """Normal images that only pre-training may see: other optics, no border."""
        return self.of_split("pretrain")

    @property
    def test(self) -> list[Item]:
        """For measuring only: nothing may be chosen on these."""
        return self.of_split("test")


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


def find_data(folder: Path) -> Dataset:
    """The images under `folder`, by one of the three layouts of this module's docstring.

    Raises:
        DataError: if the folder is missing or holds no images; if `train` or `calibration` has
            fewer than `FEWEST_FRAMES` frames, holds one that is not normal, or shares a group with
            the other; if an image of `train`, `calibration` or `pretrain` cannot be read or is
            smaller than `SMALLEST_SIDE_PX`; if `index.csv` names files or values that are unknown.
    """
    folder = Path(os.path.abspath(folder))  # so that "." has a name and a folder above
    if not folder.is_dir():
        raise DataError(
            f"no data folder at {folder}. Give a folder of normal frames, or one with an index.csv."
        )
    if (folder / "index.csv").is_file():
        items = _items_of_index(folder / "index.csv")
    elif (folder / "train").is_dir() or (folder / "calibration").is_dir():
        items = _items_of_split_folders(folder)
    else:
        items = _items_of_plain_folder(folder)
    if not items:
        raise DataError(
            f"no images in {folder}. Expected {', '.join(sorted(IMAGE_SUFFIXES))} files, "
            "in the folder or below it."
        )
    dataset = Dataset(folder, tuple(sorted(items, key=lambda item: item.path.as_posix())))
    _check_splits(dataset)
    _check_sizes([item for item in dataset.items if item.split != "test"], folder)
    return dataset


def load_views(
    items: Sequence[Item],
    profile: Profile,
    *,
    size: int = VIEW_SIZE[0],
    progress: Progress | None = None,
) -> Views:
    """Decode `items` and cut each to the model's view.

    Args:
        items: any number, of any split.
        profile: what to mask on stills of this kind.
        size: side of the square view, in pixels.
        progress: told after every image.

    Raises:
        DataError: if images cannot be decoded; the first few are named and all are counted.
    """
    images = np.zeros((len(items), 3, size, size), np.uint8)
    valid = np.zeros((len(items), size, size), bool)

    def load(index: int) -> tuple[FieldOfView, tuple[int, int]] | None:
        rgb = read_image(items[index].path)
        if rgb is None:
            return None
        view = view_of_image(rgb, profile)
        image, mask = view.image, view.valid
        if image.shape[:2] != (size, size):
            image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
            resized = cv2.resize(
                mask.astype(np.uint8), (size, size), interpolation=cv2.INTER_NEAREST
            )
            mask = resized.astype(bool)
        images[index] = image.transpose(2, 0, 1)
        valid[index] = mask
        height, width = rgb.shape[:2]
        return view.field, (height, width)

    unreadable, fields, sizes = [], [], []
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for index, loaded in enumerate(pool.map(load, range(len(items)))):
            if loaded is None:
                unreadable.append(items[index].path)
            else:
                fields.append(loaded[0])
                sizes.append(loaded[1])
            if progress is not None:
                progress(index + 1, len(items))
    if unreadable:
        raise _unreadable(unreadable)
    return Views(images, valid, tuple(items), tuple(fields), tuple(sizes))


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
        raise _unreadable([path])
    mask: np.ndarray = grey > 127
    return mask


def _decoded(path: Path, flags: int) -> np.ndarray | None:
    try:
        encoded = np.fromfile(path, np.uint8)  # cv2.imread fails on unicode paths on Windows
    except OSError:
        return None  # gone or not ours to read: the caller names it with the damaged ones
    return cv2.imdecode(encoded, flags) if encoded.size else None


def content_hash(items: Sequence[Item]) -> str:
    """SHA-256, in hex, of what `items` are: their number, and each one's name and content.

    Names are relative to the items' common folder, so the hash is the same on every machine and
    for every order of `items`.
    """
    if not items:
        return hashlib.sha256(b"0\n").hexdigest()
    root = Path(os.path.commonpath([item.path.parent.absolute() for item in items]))
    lines = sorted(
        f"{item.path.absolute().relative_to(root).as_posix()}\t"
        f"{hashlib.sha256(item.path.read_bytes()).hexdigest()}\n"
        for item in items
    )
    return hashlib.sha256("".join([f"{len(items)}\n", *lines]).encode()).hexdigest()


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

    signs = np.where(hashes, 1, -1).astype(np.float32)  # [N, B]; a . b = B - 2 * Hamming(a, b)
    rows_at_a_time = 1024
    for start in range(0, len(signs), rows_at_a_time):
        chunk = signs[start : start + rows_at_a_time]
        close = chunk @ signs.T >= hashes.shape[1] - 2 * most_bits - 0.5
        for row, column in np.argwhere(close):
            first, second = root(start + int(row)), root(int(column))
            if first != second:
                parent[max(first, second)] = min(first, second)
    return [root(index) for index in range(len(hashes))]


def difference_hash(grey: np.ndarray) -> np.ndarray:
    """Bool [64]: for an 8x9 thumbnail of `grey` uint8 [H, W], is each pixel darker than the next?

    The dHash of N. Krawetz ("Kind of like that", 2013): blind to size, brightness and compression.
    """
    thumbnail = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA)  # [8, 9]
    bits: np.ndarray = (thumbnail[:, :-1] < thumbnail[:, 1:]).ravel()
    return bits


def _items_of_index(index: Path) -> list[Item]:
    items = _read_index(index)
    absent = [path for path in items if not path.is_file()]
    if absent:
        raise DataError(
            f"{index} lists {len(absent)} files that are not there: {_names(absent)}. "
            "Copy them or remove their rows."
        )
    return list(items.values())


def _read_index(index: Path) -> dict[Path, Item]:
    """The items that an index.csv lists, by path; they need not be there."""
    with index.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = {"path", "label", "split"} - set(reader.fieldnames or ())
        if missing:
            raise DataError(
                f"{index} lacks the columns {', '.join(sorted(missing))}. "
                "Expected path, label, split and, where known, source, position_box, group."
            )
        rows = list(reader)
    items = {}
    for line, row in enumerate(rows, start=2):
        for column, known in (("label", LABELS), ("split", SPLITS)):
            if row[column] not in known:
                raise DataError(
                    f"{index}, line {line}: {column} is {row[column]!r}. "
                    f"Expected one of {', '.join(known)}."
                )
        path = index.parent / row["path"]
        items[path] = Item(
            path=path,
            label=row["label"],
            split=row["split"],
            source=row.get("source") or path.parent.name,
            group=row.get("group") or row["path"],
            position_box={"1": True, "0": False}.get(row.get("position_box") or ""),
            mask=_mask_of(path),
        )
    return items


def _mask_of(image: Path) -> Path | None:
    if image.parent.name != "images":
        return None
    mask = image.parent.parent / "masks" / f"{image.stem}.png"
    return mask if mask.is_file() else None


def _items_of_split_folders(folder: Path) -> list[Item]:
    if not (folder / "train").is_dir():
        raise DataError(
            f"{folder} holds calibration/ but no train/. Put the frames to train on into train/."
        )
    above = folder.parent / "index.csv"
    listed = _read_index(above) if above.is_file() else {}
    items = []
    for subfolder, split in (
        ("train", "train"),
        ("calibration", "calibration"),
        ("patches", "pretrain"),
        ("test", "test"),
    ):
        for path in _images_below(folder / subfolder):
            known = listed.get(path)
            name = path.relative_to(folder).as_posix()
            items.append(
                replace(known, split=split)
                if known
                else Item(path, "normal", split, source=folder.name, group=name)
            )
    if not (folder / "calibration").is_dir():
        train = [item for item in items if item.split == "train"]
        rest = [item for item in items if item.split != "train"]
        items = rest + _hold_out(train, folder)
    return items


def _items_of_plain_folder(folder: Path) -> list[Item]:
    if any(path.is_dir() for path in folder.rglob("masks")):
        raise DataError(
            f"{folder} holds a folder of lesion masks, so its images are not all normal. "
            "List them in an index.csv, or give a folder of normal frames only."
        )
    items = [
        Item(path, "normal", "train", source=folder.name, group="")
        for path in _images_below(folder)
    ]
    return _hold_out(items, folder) if items else []


def _images_below(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith(".")  # macOS leaves "._name.jpg" beside name.jpg
        and path.is_file()
    )


def _hold_out(items: Sequence[Item], folder: Path) -> list[Item]:
    """Give every k-th near-duplicate group to calibration, so that it gets its share of frames."""
    ordered = sorted(items, key=lambda item: item.path.as_posix())
    _check_sizes(ordered, folder)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        hashes = list(pool.map(_hash_of_file, (item.path for item in ordered)))
    unreadable = [item.path for item, bits in zip(ordered, hashes, strict=True) if bits is None]
    if unreadable:
        raise _unreadable(unreadable)
    groups = defaultdict(list)
    for item, first in zip(ordered, near_duplicate_groups(np.array(hashes)), strict=True):
        group = ordered[first].path.relative_to(folder).as_posix()
        groups[first].append(replace(item, group=group))
    fraction = max(CALIBRATION_FRACTION, FEWEST_FRAMES / max(len(ordered), 1))
    share = fraction * len(ordered)
    seen = held = 0
    result = []
    for members in groups.values():
        seen += len(members)
        # A group larger than the whole share would starve the training side.
        calibrate = held < fraction * seen and len(members) <= share
        held += len(members) if calibrate else 0
        result += [replace(i, split="calibration") if calibrate else i for i in members]
    return result


def _hash_of_file(path: Path) -> np.ndarray | None:
    rgb = read_image(path)
    return None if rgb is None else difference_hash(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY))


def _check_splits(dataset: Dataset) -> None:
    for split in ("train", "calibration", "pretrain"):
        items = dataset.of_split(split)
        strange = [item.path for item in items if item.label != "normal"]
        if strange:
            raise DataError(
                f"{len(strange)} images of {split} are not labelled normal: {_names(strange)}. "
                "Only normal frames train and calibrate; move these to test."
            )
        if split != "pretrain" and len(items) < FEWEST_FRAMES:
            raise DataError(
                f"{dataset.folder} has {len(items)} {split} frames. Expected at least "
                f"{FEWEST_FRAMES}, apart from near-duplicates; add normal frames."
            )
    shared = {item.group for item in dataset.train} & {item.group for item in dataset.calibration}
    if shared:
        raise DataError(
            f"{len(shared)} near-duplicate groups lie in both train and calibration, such as "
            f"{sorted(shared)[0]!r}. Keep each group on one side, or thresholds come out too low."
        )


def _check_sizes(items: Iterable[Item], folder: Path) -> None:
    """Read headers only: whole images are decoded by `load_views`, once."""
    unreadable, small = [], []
    for item in items:
        try:
            with Image.open(item.path) as image:
                width, height = image.size
        except (UnidentifiedImageError, OSError):
            unreadable.append(item.path)
            continue
        if min(width, height) < SMALLEST_SIDE_PX:
            small.append(item.path)
    if unreadable:
        raise _unreadable(unreadable)
    if small:
        raise DataError(
            f"{len(small)} images in {folder} are smaller than {SMALLEST_SIDE_PX} px: "
            f"{_names(small)}. Remove them, or give the frames at their own size."
        )


def _unreadable(paths: Sequence[Path]) -> DataError:
    return DataError(
        f"{len(paths)} images cannot be read: {_names(paths)}. "
        "Expected whole image files; copy them again or remove them."
    )


def _names(paths: Sequence[Path]) -> str:
    """The first few paths, and how many more there are."""
    shown = ", ".join(str(path) for path in paths[:NAMED_IN_A_MESSAGE])
    more = len(paths) - NAMED_IN_A_MESSAGE
    return f"{shown} and {more} more" if more > 0 else shown
