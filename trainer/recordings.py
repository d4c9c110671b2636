"""Recordings of normal procedures in; the frames of them to train on, and their views, out.

Frames are taken evenly in time, and those that show little are left out. No bundle exists yet that
could say what is informative, so the limits are rough and, for sharpness, relative: the usual
sharpness of one recorder is more than twice that of another.

A frame is named by the pts that `ccdstream.decode` gives it when the recording is decoded from its
beginning, and is found again in the same way, so the name is exact on any recording. Its view is
the runtime's: made by a `ViewTracker` that has watched the recording up to there.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from ccdstream.decode import VideoSource
from ccdstream.errors import DataError, VideoDecodeError, VideoOpenError, show_path
from ccdstream.frames import Frame, View
from ccdstream.quality import QualityLimits, flags, measure
from ccdstream.view import NONE, Profile, ViewTracker
from trainer.images import hold_out
from trainer.items import (
    CALIBRATION_FRACTION,
    FEWEST_FRAMES,
    SMALLEST_SIDE_PX,
    Item,
    Problem,
    Progress,
    counted,
    too_small,
    unreadable,
)

RECORDING_SUFFIXES = frozenset({
    ".3gp", ".asf", ".avi", ".dv", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg",
    ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv",
})  # fmt: skip
"""Those of `ccdstream run`; the command line is not for the trainer to import."""
VIDEO_NAME = re.compile(
    r"(.+)\.(?:overlay\.mp4|side-by-side\.mp4|chapters\.(?:mp4|mkv)|alert-\d+\.(?:mp4|mkv))",
    re.DOTALL,
)
"""What `ccdstream run` leaves, and so no recording."""

EVERY_S = Fraction(1)
"""A frame is taken this often: sooner, a slow scope shows the same fold again."""
MOST_FRAMES = 600
"""Of one recording, so that a long one does not outweigh the others; they stay spread evenly."""
GAP_S = Fraction(5)
"""Frames nearer in time than this to a held-out stretch of their own recording are not used."""

ROUGH_LIMITS = QualityLimits(
    least_evenness=0.45, least_brightness=60.0, least_contrast=8.0, most_haze=80.0,
    least_redness=0.36,
)  # fmt: skip
"""All wider than what 99 % of 817 normal stills of HyperKvasir and Kvasir keep, fitted with a
margin (0.47, 82, 13, 57 and 0.40), since other scopes differ; grey has a redness of 0.33."""
BLURRED_BELOW = 0.4
"""Of the recording's median sharpness. Of 31 such stills none is below that of theirs, and all are
once blurred by 3 px of the view."""

_WATCH_EVERY_S = 0.1
"""A `ViewTracker` looks no more often; the frames between are not worth making a view of."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """What was taken of one recording."""

    path: Path
    size: tuple[int, int]
    """(height, width) of its frames."""
    pts: tuple[int, ...]
    """Of the informative frames, in order."""
    seconds: tuple[Fraction, ...]
    """When each of them is shown, exact."""
    left_out: Counter[str]
    """Frames that were looked at and are uninformative, by their reasons."""


def recordings_below(folder: Path) -> list[Path]:
    """The recordings under `folder`, in order."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in RECORDING_SUFFIXES
        and not path.name.startswith(".")
        and not VIDEO_NAME.fullmatch(path.name)
        and path.is_file()
    )


def sample(path: Path, *, every_s: Fraction = EVERY_S, most: int = MOST_FRAMES) -> Sampled:
    """The informative frames of a recording, one every `every_s`, `most` of them at most.

    Raises:
        VideoOpenError, VideoDecodeError: the recording cannot be read.
    """
    times: list[tuple[int, Fraction]] = []
    measured: list[tuple[dict[str, float], float]] = []
    with VideoSource(path) as source:
        size = source.size
        due = source.first_pts * source.time_base

        def is_due(frame: Frame) -> bool:
            nonlocal due
            late = frame.pts * frame.time_base - due
            if late < 0:
                return False
            due += every_s * (1 + late // every_s)
            return True

        for frame, view in _views(source, NONE, is_due):
            times.append((frame.pts, frame.pts * frame.time_base))
            measured.append((measure(view), view.valid_fraction))
    sharpness = [values["sharpness"] for values, _ in measured]
    usual = float(np.nanmedian(sharpness)) if not np.isnan(sharpness).all() else 0.0
    limits = replace(ROUGH_LIMITS, least_sharpness=BLURRED_BELOW * usual)
    why = [flags(values, limits, valid) for values, valid in measured]
    kept = [time for time, reasons in zip(times, why, strict=True) if not reasons]
    if len(kept) > most:
        kept = [kept[i] for i in np.linspace(0, len(kept) - 1, most).round().astype(int)]
    return Sampled(
        path,
        size,
        tuple(pts for pts, _ in kept),
        tuple(seconds for _, seconds in kept),
        Counter(" and ".join(reasons) for reasons in why if reasons),
    )


def sample_all(
    paths: Sequence[Path], *, progress: Progress | None = None
) -> tuple[list[Sampled], list[Problem]]:
    """`sample` of each recording; those that cannot be used are named."""
    sampled: list[Sampled] = []
    small: list[Sampled] = []
    broken = []
    for done, path in enumerate(paths, start=1):
        try:
            one = sample(path)
        except (VideoOpenError, VideoDecodeError):
            broken.append(path)
        else:
            (small if min(one.size) < SMALLEST_SIDE_PX else sampled).append(one)
        if progress is not None:
            progress(done, len(paths))
    problems = [unreadable(broken, "recording")] if broken else []
    problems += [too_small([one.path for one in small])] if small else []
    return sampled, problems


def said(sampled: Sequence[Sampled]) -> str:
    """How many frames came of how many recordings, and why others did not."""
    left_out = sum((one.left_out for one in sampled), Counter[str]())
    why = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
    frames = sum(len(one.pts) for one in sampled)
    of = counted(len(sampled), "recording")
    return f"{counted(frames, 'frame')} of {of}, one a second" + (
        f"; left out as uninformative: {why}" if why else ""
    )


def items_of(sampled: Sampled, folder: Path, split: str, source: str) -> list[Item]:
    """The frames of one recording as items; they share a group."""
    group = sampled.path.relative_to(folder).as_posix()
    return [
        Item(sampled.path, "normal", split, source, group=group, pts=pts) for pts in sampled.pts
    ]


def held_out(sampled: Sequence[Sampled], folder: Path, source: str) -> list[Item]:
    """The frames of all recordings, a part of them for calibration.

    Whole recordings are held out where there are several, or a stretch from the middle of the
    longest one, with `GAP_S` on either side, where that would leave too few frames.
    """
    each = [items_of(one, folder, "train", source) for one in sampled]
    split = hold_out([item for items in each for item in items])
    if sum(item.split == "calibration" for item in split) >= FEWEST_FRAMES:
        return split
    total = len(split)
    enough = [n for n in map(len, each) if FEWEST_FRAMES <= n <= total - FEWEST_FRAMES]
    if enough:  # the shortest of them: all are larger than the share
        chosen = next(i for i, items in enumerate(each) if len(items) == min(enough))
        return [
            replace(item, split="calibration") if i == chosen else item
            for i, items in enumerate(each)
            for item in items
        ]
    longest = max(range(len(each)), key=lambda i: len(each[i]), default=None)
    if longest is None:
        return []
    each[longest] = _stretch_held_out(each[longest], sampled[longest].seconds, total)
    return [item for items in each for item in items]


def _stretch_held_out(items: Sequence[Item], seconds: Sequence[Fraction], total: int) -> list[Item]:
    count = min(len(items), max(FEWEST_FRAMES, math.ceil(CALIBRATION_FRACTION * total)))
    first = (len(items) - count) // 2
    last = first + count - 1
    result = []
    for i, (item, time) in enumerate(zip(items, seconds, strict=True)):
        if first <= i <= last:
            group = f"{item.group}, held-out stretch"
            result.append(replace(item, split="calibration", group=group))
        elif max(seconds[first] - time, time - seconds[last]) >= GAP_S:
            result.append(item)
    return result


def views_at(path: Path, pts: Collection[int], profile: Profile) -> Iterator[tuple[Frame, View]]:
    """The frames of a recording that are shown at `pts`, in order, and what the model sees of them.

    Raises:
        DataError: the recording cannot be read, or has no frame at one of them.
    """
    wanted = set(pts)
    try:
        with VideoSource(path) as source:
            for frame, view in _views(source, profile, lambda frame: frame.pts in wanted):
                yield frame, view
                wanted.remove(frame.pts)
                if not wanted:
                    return
    except (VideoOpenError, VideoDecodeError) as error:
        raise DataError(str(error)) from error
    if wanted:
        raise DataError(
            f"{show_path(path)} has no frame at {len(wanted)} of the times that were taken from it "
            f"(the first has pts {min(wanted)}). It was changed meanwhile: start again."
        )


def _views(
    source: VideoSource, profile: Profile, asked: Callable[[Frame], bool]
) -> Iterator[tuple[Frame, View]]:
    """The asked-for frames, each with the view that the runtime would have of it."""
    tracker = ViewTracker(profile)
    watched_s = -math.inf
    for frame in source:
        is_asked = asked(frame)
        watches = frame.seconds - watched_s >= _WATCH_EVERY_S
        if watches:
            watched_s = frame.seconds
        if watches or is_asked:
            view = tracker.update(frame)
            if is_asked:
                yield frame, view
