"""Recordings run through the product itself, with what it said of every frame beside the truth.

`ccdstream.pipeline.analyse` does it all, from decoding to alerts: what is measured here is what a
user of `ccdstream run` sees, at the same times.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import numpy as np

from ccdstream.alert import Alert, AlertRule, AlertTracker, Observation
from ccdstream.bundle import Bundle
from ccdstream.decode import VideoSource
from ccdstream.engine.base import Engine
from ccdstream.errors import DataError, show_path
from ccdstream.frames import Fused
from ccdstream.pipeline import Judged, Looker, StopWatch, analyse, host_route, make_fuser
from ccdstream.score import Scorer
from trainer.truth import Box, Lesions, Truth, iou, link


@dataclass(frozen=True, eq=False)
class Clip:
    """What the product says of the T frames of one recording, and what they show."""

    video: Path
    truth: Truth
    size: tuple[int, int]
    """(height, width), in pixels."""
    time_base: Fraction
    """Seconds per tick, exact."""
    average_rate: Fraction
    """Frames a second as the container claims it: to tell other tools, never to count time by."""
    pts: np.ndarray
    """int64 [T], ticks."""
    shown: np.ndarray
    """int64 [T], ticks for which each frame is shown: until the next one comes."""
    raw: np.ndarray
    """float64 [T]; NaN where no pixel is valid."""
    calibrated: np.ndarray
    """float64 [T]; NaN likewise."""
    smoothed: np.ndarray
    """float64 [T]: the score that opens alerts. It holds on uninformative frames."""
    informative: np.ndarray
    """bool [T]."""
    alerting: np.ndarray
    """bool [T]: the product's state is ALERT, as its overlay shows it on this frame."""
    regions: tuple[Box | None, ...]
    """Where each frame is hottest, as an alert would show it; None where nothing stands out."""
    lesions: tuple[Lesions, ...]
    """What each frame shows."""
    alerts: tuple[Alert, ...]
    warnings: tuple[str, ...]
    """What was wrong with the recording."""

    def __len__(self) -> int:
        return len(self.pts)

    @cached_property
    def seconds(self) -> np.ndarray:
        """float64 [T]: pts * time_base."""
        return np.array([float(int(pts) * self.time_base) for pts in self.pts])

    @cached_property
    def visible(self) -> np.ndarray:
        """bool [T]: the frame shows a lesion."""
        return np.array([bool(lesions) for lesions in self.lesions], bool)

    @cached_property
    def scores(self) -> np.ndarray:
        """float64 [T]: `smoothed`, and 0 on uninformative frames, of which nothing is said."""
        return np.where(self.informative, self.smoothed, 0.0)

    @cached_property
    def overlapping(self) -> np.ndarray:
        """bool [T]: where the frame is hottest overlaps one of its lesions."""
        return np.array([bool(self.overlapped(index)) for index in range(len(self))], bool)

    def overlapped(self, index: int) -> set[str]:
        """The lesions that where the frame is hottest overlaps, by however little."""
        pointed = self.pointed_at(index)
        return {lesion for lesion, box in self.lesions[index] if iou(pointed, box) > 0}

    def pointed_at(self, index: int) -> Box:
        """Where a frame is hottest: the whole frame where nothing stands out."""
        height, width = self.size
        return self.regions[index] or (0, 0, width, height)


@dataclass(slots=True)
class _Seen:
    """What is noted while a recording runs."""

    pts: list[int] = field(default_factory=list)
    raw: list[float] = field(default_factory=list)
    calibrated: list[float] = field(default_factory=list)
    smoothed: list[float] = field(default_factory=list)
    informative: list[bool] = field(default_factory=list)
    alerting: list[bool] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)


class _PointingTracker(AlertTracker):
    """The product's tracker, which also notes where every frame is hottest."""

    def __init__(self, rule: AlertRule, *, model: str) -> None:
        super().__init__(rule, model=model)
        self.regions: list[Box | None] = []

    def update(self, observation: Observation) -> list[Alert]:
        region = observation.evidence()
        self.regions.append(region.box if region else None)
        return super().update(observation)


def check_size(video: Path, truth: Truth) -> int | None:
    """About how many frames `video` has, once it is sure that `truth` is for frames of its size.

    Raises:
        VideoOpenError, VideoDecodeError: the video cannot be read.
        DataError: its size is another.
    """
    with VideoSource(video) as source:
        if truth.size is not None and truth.size != source.size:
            height, width = truth.size
            raise DataError(
                f"{show_path(truth.path)} is for frames of {width}x{height} pixels, and those of "
                f"{show_path(video.name)} are {source.size[1]}x{source.size[0]}. "
                "Give the truth of this very video."
            )
        return source.frame_count_hint


def watch(
    video: Path,
    truth: Truth,
    bundle: Bundle,
    engine: Engine,
    *,
    batch: int,
    on_frame: Callable[[], None] = lambda: None,
) -> Clip:
    """Analyse a recording as `ccdstream run` does.

    Args:
        on_frame: called after every frame.

    Raises:
        VideoOpenError, VideoDecodeError: the video cannot be read.
        EngineError: the engine failed, or gave values that are not finite.
        DataError: the video has more or fewer frames than the truth.
    """
    seen = _Seen()
    tracker = _PointingTracker(AlertRule.from_dict(bundle.alert), model=bundle.model_id)

    def frame_done(judged: Judged, fused: Fused, state: str) -> None:
        seen.pts.append(judged.frame.pts)
        seen.raw.append(judged.scored.raw)
        seen.calibrated.append(fused.calibrated)
        seen.smoothed.append(fused.smoothed)
        seen.informative.append(fused.informative)
        seen.alerting.append(state == "ALERT")
        if truth.frames is not None and len(seen.pts) > len(truth.frames):
            raise _count_mismatch(video, truth, f"at least {len(seen.pts)}")
        on_frame()

    with VideoSource(video) as source:
        watch = StopWatch()
        route = host_route(
            source, look=Looker(bundle), scorer=Scorer(engine), batch=batch, watch=watch
        )
        analyse(
            route,
            fuser=make_fuser(bundle),
            tracker=tracker,
            overlay=None,
            sink=None,
            on_frame=frame_done,
            on_alert=seen.alerts.append,
            watch=watch,
        )
        pts = np.array(seen.pts, np.int64)
        if truth.frames is not None and len(pts) != len(truth.frames):
            raise _count_mismatch(video, truth, str(len(pts)))
        return Clip(
            video=video,
            truth=truth,
            size=source.size,
            time_base=source.time_base,
            average_rate=source.average_rate,
            pts=pts,
            shown=np.diff(pts, append=pts[-1] + source.last_duration),
            raw=np.array(seen.raw),
            calibrated=np.array(seen.calibrated),
            smoothed=np.array(seen.smoothed),
            informative=np.array(seen.informative, bool),
            alerting=np.array(seen.alerting, bool),
            regions=tuple(tracker.regions),
            lesions=_lesions(truth, seen.pts, source.time_base),
            alerts=tuple(seen.alerts),
            warnings=tuple(source.problems.sentences()),
        )


def _lesions(truth: Truth, pts: list[int], time_base: Fraction) -> tuple[Lesions, ...]:
    if truth.frames is None:
        return ((),) * len(pts)
    if truth.lesions_by == "place":
        boxes = [[mark.box for mark in marks] for marks in truth.frames]
        return tuple(link(boxes, [float(time * time_base) for time in pts]))
    return tuple(tuple((str(mark.lesion), mark.box) for mark in marks) for marks in truth.frames)


def _count_mismatch(video: Path, truth: Truth, found: str) -> DataError:
    assert truth.frames is not None
    return DataError(
        f"{show_path(truth.path)} marks {len(truth.frames)} frames, and {show_path(video.name)} "
        f"has {found}. Give the truth of this very video, with one list for each of its frames."
    )
