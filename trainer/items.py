"""What is known about an image of a data set: records that the stages of training pass on.

An image is a file of its own, or one frame of a recording, named exactly by its pts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ccdstream.errors import show_path

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
LABELS = ("normal", "abnormal", "unclean")
SPLITS = ("train", "calibration", "pretrain", "test")

SMALLEST_SIDE_PX = 32
"""Below this an image holds less than one patch of the local model (32x32 in the paper)."""
FEWEST_FRAMES = 8
"""Fewer frames than this make neither a mini-batch to train on nor a quantile to calibrate with."""
CALIBRATION_FRACTION = 0.15
"""Share of the normal frames that is held out where the data names none to calibrate with."""
NAMED_IN_A_MESSAGE = 5

Progress = Callable[[int, int], None]
"""Called with (done, total) while something long is under way."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image and what is known about it."""

    path: Path
    """The image, or the recording that it is a frame of."""
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
    pts: int | None = None
    """Which frame of the recording `path`, in units of its time base; None for a still image."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """The items of a folder, ordered by path and, within a recording, by time."""

    folder: Path
    items: tuple[Item, ...]
    layout: str = ""
    """How the folder was understood, on one line."""

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


@dataclass(frozen=True, slots=True)
class Problem:
    """A reason not to train on a data set."""

    kind: str
    message: str
    """One line: what is wrong, and what to do."""
    paths: tuple[Path, ...] = ()
    """Every file that it is about."""


def counted(number: int, noun: str) -> str:
    """How many there are of a thing: "1 image", "2 images"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def are(number: int) -> str:
    """The verb after a number of things."""
    return "is" if number == 1 else "are"


def named(paths: Sequence[Path]) -> str:
    """The first few paths, and how many more there are."""
    shown = ", ".join(show_path(path) for path in paths[:NAMED_IN_A_MESSAGE])
    more = len(paths) - NAMED_IN_A_MESSAGE
    return f"{shown} and {more} more" if more > 0 else shown


def unreadable(paths: Sequence[Path], noun: str = "image") -> Problem:
    """These cannot be decoded."""
    return Problem(
        "unreadable",
        f"{counted(len(paths), noun)} cannot be read: {named(paths)}. "
        "Expected whole files: copy again or remove what is broken.",
        tuple(paths),
    )


def too_small(paths: Sequence[Path]) -> Problem:
    """These are smaller than `SMALLEST_SIDE_PX`."""
    return Problem(
        "small",
        f"{counted(len(paths), 'image')} {are(len(paths))} smaller than {SMALLEST_SIDE_PX} px: "
        f"{named(paths)}. Give the frames at their own size, or remove the small ones.",
        tuple(paths),
    )
