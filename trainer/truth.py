"""Where the lesions of a recording are, as a JSON file beside it says.

`STEM_boxes.json` or `STEM.truth.json` for the video `STEM.mp4`; what is in it decides how it is
read, not its name.

Boxes, one list a frame in the order of presentation, empty where no lesion can be seen:

    {"width": 560, "height": 480, "frames": [[{"bbox": [x0, y0, x1, y1], "lesion": "a"}], [], ...]}

in pixels, x1 and y1 exclusive. "lesion", a text, says which lesion it is; every box has one, or
none has, and `link` tells the lesions apart. A recording without any lesion has an empty list a
frame, or says so without them: {"lesion_free": true}. A bare "frames": [] is refused, for it may as
well be a file that nobody has filled yet.

The truth of `ccdstream sample`: each of its lesion scenes is one lesion.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ccdstream.demo import truth_path
from ccdstream.errors import DataError, show_path

SAMPLE_FORMAT = "ccdstream-sample-truth"
LINK_GAP_S = 1.0
"""A lesion without a name that was out of sight for longer is another one when it comes back."""

Box = tuple[float, float, float, float]
"""(x, y, width, height), in frame pixels."""
Lesions = tuple[tuple[str, Box], ...]
"""What one frame shows: (which lesion, where)."""


@dataclass(frozen=True, slots=True)
class Marked:
    """A lesion in one frame."""

    box: Box
    lesion: str | None
    """None: the file does not say which."""


@dataclass(frozen=True, slots=True)
class Truth:
    """Where lesions can be seen in a recording."""

    path: Path
    size: tuple[int, int] | None
    """(height, width) of the frames that were marked; None where the file does not say."""
    frames: tuple[tuple[Marked, ...], ...] | None
    """Each frame's lesions; None: a recording without any, however long."""
    lesions_by: Literal["name", "scene", "place"]
    """How the lesions of different frames are told to be one."""


def find_truth(video: Path) -> Path | None:
    """The truth file beside `video`, if there is one.

    Raises:
        DataError: there are two.
    """
    found = [path for path in _places(video) if path.is_file()]
    if len(found) > 1:
        raise DataError(
            f"{show_path(video)} has two truths beside it, {show_path(found[0].name)} and "
            f"{show_path(found[1].name)}. Keep one."
        )
    return found[0] if found else None


def no_truth(video: Path) -> DataError:
    """What to say of a video that has none."""
    names = " or ".join(show_path(path.name) for path in _places(video))
    return DataError(
        f"no truth beside {show_path(video)}: expected {names}, which says in which frames lesions "
        'are; {"lesion_free": true} where there are none.'
    )


def read_truth(path: Path) -> Truth:
    """Read a truth file.

    Raises:
        DataError: it cannot be read, or is neither of the forms that this module's docstring names.
    """
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {show_path(path)}: {error.strerror}.") from error
    except ValueError as error:
        raise _unusable(path, "it is no JSON") from error
    if not isinstance(document, dict):
        raise _unusable(path, "it holds no JSON object")
    if "format" in document:
        return _read_sample(path, document)
    return _read_boxes(path, document)


def link(frames: Sequence[Sequence[Box]], seconds: Sequence[float]) -> list[Lesions]:
    """Lesions without names, told apart by where they are.

    A box is the lesion whose last box, at most `LINK_GAP_S` ago, it overlaps most, both drawn twice
    as wide and high, for a scope can turn by the size of a lesion within a frame. The largest
    intersection over union comes first, and each lesion takes one box a frame. A box that overlaps
    none is a new lesion. They are named "1", "2", ... in the order in which they appear.

    Args:
        frames: the boxes of each frame.
        seconds: when each frame is shown.
    """
    last: dict[str, tuple[Box, float]] = {}
    linked: list[Lesions] = []
    names = 0
    for boxes, now in zip(frames, seconds, strict=True):
        pairs = sorted(
            (
                (-near, name, index)
                for name, (before, then) in last.items()
                for index, box in enumerate(boxes)
                if now - then <= LINK_GAP_S and (near := iou(_doubled(before), _doubled(box))) > 0
            ),
            key=lambda pair: (pair[0], int(pair[1]), pair[2]),
        )
        named: dict[int, str] = {}
        for _, name, index in pairs:
            if index not in named and name not in named.values():
                named[index] = name
        for index in range(len(boxes)):
            if index not in named:
                names += 1
                named[index] = str(names)
        linked.append(tuple((named[index], box) for index, box in enumerate(boxes)))
        last |= {name: (box, now) for name, box in linked[-1]}
    return linked


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes; 0 where they only touch."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / (a[2] * a[3] + b[2] * b[3] - both)


def centred_in(box: Box, other: Box) -> bool:
    """Whether the middle of a box lies in another one, or on its edge."""
    x, y = box[0] + box[2] / 2, box[1] + box[3] / 2
    return other[0] <= x <= other[0] + other[2] and other[1] <= y <= other[1] + other[3]


def _doubled(box: Box) -> Box:
    """Twice as wide and high, about the same centre."""
    x, y, width, height = box
    return x - width / 2, y - height / 2, 2 * width, 2 * height


def _places(video: Path) -> tuple[Path, Path]:
    return video.with_name(f"{video.stem}_boxes.json"), truth_path(video)


def _unusable(path: Path, why: str) -> DataError:
    return DataError(
        f"{show_path(path)} is no usable truth: {why}. "
        'Expected {"width", "height", "frames": [[{"bbox": [x0, y0, x1, y1]}, ...], ...]} with one '
        "list a frame, or what ccdstream sample writes."
    )


def _read_boxes(path: Path, document: dict[str, Any]) -> Truth:
    lesion_free, frames = document.get("lesion_free", False), document.get("frames")
    if not isinstance(lesion_free, bool):
        raise _unusable(path, '"lesion_free" is neither true nor false')
    sides = document.get("height"), document.get("width")
    size = None if lesion_free and sides == (None, None) else _size(path, sides)
    if frames is None and lesion_free:
        return Truth(path, size, None, "name")
    if not isinstance(frames, list) or not all(isinstance(boxes, list) for boxes in frames):
        raise _unusable(path, '"frames" is no list of lists')
    if not frames and not lesion_free:
        raise _unusable(
            path,
            '"frames" is empty, which may mean a recording without lesions or an unfinished file; '
            'say "lesion_free": true if there are none',
        )
    if lesion_free and any(frames):
        raise _unusable(path, '"lesion_free" is true and yet there are boxes')
    if not frames:
        return Truth(path, size, None, "name")
    marked = tuple(
        tuple(_marked(path, number, mark, size) for mark in marks)
        for number, marks in enumerate(frames)
    )
    nameless = {mark.lesion is None for marks in marked for mark in marks}
    if len(nameless) > 1:
        raise _unusable(path, 'some boxes name their "lesion" and some do not')
    return Truth(path, size, marked, "place" if True in nameless else "name")


def _read_sample(path: Path, document: dict[str, Any]) -> Truth:
    if document["format"] != SAMPLE_FORMAT or document.get("format_version") != 1:
        raise _unusable(
            path, f"its format is {document['format']!r} {document.get('format_version')!r}"
        )
    try:
        height, width = document["size"]
        size = _size(path, (height, width))
        spans = [
            range(scene["start_frame"], scene["end_frame"])
            for scene in document["scenes"]
            if scene["kind"] == "lesion"
        ]
        frames: list[tuple[Marked, ...]] = [()] * document["frame_count"]
        for lesion in document["lesions"]:
            number = lesion["frame"]
            name = next(str(k) for k, span in enumerate(spans, 1) if number in span)
            frames[number] = tuple(
                Marked(_box(path, number, (x, y, x + w, y + h), size), name)
                for x, y, w, h in lesion["boxes"]
            )
    except (IndexError, KeyError, StopIteration, TypeError, ValueError) as error:
        raise _unusable(path, f"it is damaged ({type(error).__name__}: {error})") from error
    return Truth(path, size, tuple(frames), "scene")


def _size(path: Path, sides: tuple[Any, Any]) -> tuple[int, int]:
    height, width = sides
    if not all(isinstance(side, int) and side > 0 for side in (height, width)):
        raise _unusable(path, f"its frames are {width!r} wide and {height!r} high")
    return height, width


def _marked(path: Path, number: int, mark: Any, size: tuple[int, int] | None) -> Marked:
    if not isinstance(mark, dict) or "bbox" not in mark:
        raise _unusable(path, f'frame {number} has a mark without a "bbox"')
    lesion = mark.get("lesion")
    if lesion is not None and not (isinstance(lesion, str) and lesion):
        raise _unusable(path, f"frame {number} has the lesion {lesion!r}, which is no text")
    return Marked(_box(path, number, mark["bbox"], size), lesion)


def _box(path: Path, number: int, corners: Any, size: tuple[int, int] | None) -> Box:
    """(x, y, width, height) of [x0, y0, x1, y1]."""
    good = isinstance(corners, list | tuple) and len(corners) == 4
    if good:
        good = all(isinstance(c, int | float) and math.isfinite(c) for c in corners)
    if good and size is not None:
        x0, y0, x1, y1 = corners
        good = 0 <= x0 < x1 <= size[1] and 0 <= y0 < y1 <= size[0]
    if not good:
        raise _unusable(path, f"frame {number} has the box {corners!r}, which is not in the frame")
    x0, y0, x1, y1 = corners
    return x0, y0, x1 - x0, y1 - y0
