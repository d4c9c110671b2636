"""Smoothed scores -> alerts, each with its reasons. Pure: no video, no model, no clock.

In: one `Observation` a frame, in presentation order. Out: `Alert`, as soon as nothing can be added
to it. An alert says that a stretch of video is unusual against normal training frames, and no more.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import cv2
import numpy as np

from ccdstream.errors import BundleError
from ccdstream.frames import FieldOfView

State = Literal["NORMAL", "WATCH", "ALERT", "UNCLEAR"]
"""NORMAL: below `enter`; inside an alert too, while its merge gap lasts. WATCH: unusual, not yet
for long enough. ALERT: an alert is open. UNCLEAR: the frame tells nothing."""

Clock = int | Literal["centre"]
"""Direction from the centre of the field of view, 1 to 12 with 12 up, or "centre"."""

LONGEST_BLIND_S = 10.0
"""An alert is not carried over a longer stretch without any informative frame: nobody saw that the
unusual thing stayed, so it ends where it was last seen."""

LONGEST_HOLE_S = 2.0
"""Nor over a longer time without any frame: so long after the last one a live session says by
default that the signal is lost. Recordings of a frame a second still have alerts of several."""

LIMITS = {"blind_s": LONGEST_BLIND_S, "hole_s": LONGEST_HOLE_S}
"""Both, for the records of a run."""

CENTRE_RADIUS = 0.15
"""Nearer than this to the centre of the field, in half axes, a direction means nothing."""


@dataclass(frozen=True, slots=True)
class AlertRule:
    """When alerts open and close. Scores are calibrated, times are seconds of stream time."""

    enter: float
    """An alert opens at this score."""
    leave: float
    """It closes below this one; the gap between the two keeps a hovering score from flapping."""
    min_duration_s: float
    """Shorter alerts are dropped."""
    merge_gap_s: float
    """An alert that opens again within this time of its end goes on instead. Merging comes first,
    then the minimum length: two short stretches close together are one finding."""
    refractory_s: float
    """After the end of an alert none opens for this long."""

    def __post_init__(self) -> None:
        if not 0 < self.leave <= self.enter <= 1:
            raise ValueError(
                f"expected 0 < leave <= enter <= 1, got leave {self.leave} and enter {self.enter}"
            )
        for name in ("min_duration_s", "merge_gap_s", "refractory_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be 0 or more, got {value}")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "AlertRule":
        """The rule in a bundle's manifest; its `time_constant_s` is for `fuse` and left alone.

        Raises:
            BundleError: A key is missing or unknown, or a value is out of range.
        """
        names = [field.name for field in fields(cls)]
        found = sorted(set(data) - {"time_constant_s"})
        if found != sorted(names):
            raise BundleError(
                f"the bundle's alert rule has the keys {', '.join(found) or '(none)'}; expected "
                f"{', '.join(names)}. Export the bundle again."
            )
        try:
            return cls(**{name: float(data[name]) for name in names})
        except (TypeError, ValueError) as error:
            raise BundleError(
                f"the bundle's alert rule is damaged: {error}. Export the bundle again."
            ) from error


@dataclass(frozen=True, slots=True)
class Region:
    """Where in the frame the anomaly map is hottest."""

    box: tuple[int, int, int, int]
    """(x, y, width, height), in frame pixels."""
    clock: Clock


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """What one frame adds."""

    seconds: float
    pts: int
    score: float
    """Smoothed, calibrated score."""
    raw: float
    informative: bool
    evidence: Callable[[], Region | None]
    """Finds the hottest region of this frame; called only for the peak of an alert so far."""


@dataclass(frozen=True, slots=True)
class Alert:
    """A stretch of video that stayed unusual against normal training frames, and why."""

    number: int
    """From 1, in order of time."""
    start_pts: int
    start_s: float
    """First frame at or above `enter`."""
    end_pts: int
    end_s: float
    """Last informative frame at or above `leave`."""
    peak_pts: int
    peak_s: float
    """Informative frame with the highest smoothed score; the first of equals."""
    peak_score: float
    """Smoothed, calibrated score at the peak."""
    peak_raw: float
    """Raw score of the peak frame."""
    box: tuple[int, int, int, int] | None
    """(x, y, width, height) in frame pixels of the hottest region at the peak; None where no region
    stands out and the frame as a whole is unusual."""
    clock: Clock | None
    """Direction of the box from the centre of the field of view; None where there is no box."""
    frames: int
    """Frames from start to end, both included."""
    informative_frames: int
    """Those of them that were informative."""
    model: str
    """The bundle's id."""
    open_at_end: bool = False
    """Whether it had not ended when the frames did: nobody saw its end."""

    @property
    def duration_s(self) -> float:
        """Stream time from the first frame to the last one."""
        return self.end_s - self.start_s


@dataclass(frozen=True, slots=True)
class OpenAlert:
    """An alert that is not over yet, as far as it goes. The `Alert` that it becomes has its number,
    its start, and a peak that is this one or a higher one."""

    number: int
    start_pts: int
    start_s: float
    peak_pts: int
    peak_s: float
    peak_score: float
    """Smoothed, calibrated."""
    clock: Clock | None


@dataclass(slots=True)
class _Stretch:
    """An alert in the making."""

    start: Observation
    end: Observation
    peak: Observation
    region: Region | None
    frames: int = 1
    informative: int = 1
    frames_after: int = 0
    """Frames since `end`; they count once the stretch goes on beyond them."""
    informative_after: int = 0
    falling: bool = False
    """Below `leave`; waits for the merge gap to pass."""


class AlertTracker:
    """Turns observations, one by one, into alerts by an `AlertRule`.

    Uninformative frames neither open nor close an alert. Time does: an alert whose merge gap has
    passed is complete, and none is carried over `LONGEST_BLIND_S` without an informative frame,
    `LONGEST_HOLE_S` without any, or time that runs backwards.
    """

    def __init__(self, rule: AlertRule, *, model: str) -> None:
        self._rule = rule
        self._model = model
        self._stretch: _Stretch | None = None
        self._alerts = 0
        self._ready_at_s = -math.inf
        self._last: Observation | None = None
        self._informed_at_s = -math.inf

    @property
    def state(self) -> State:
        """What to show on the last frame."""
        if self._last is None or not self._last.informative:
            return "UNCLEAR"
        stretch = self._stretch
        if stretch is not None and not stretch.falling:
            return "ALERT" if self._is_long_enough(stretch) else "WATCH"
        return "WATCH" if self._last.score >= self._rule.enter else "NORMAL"

    @property
    def open(self) -> OpenAlert | None:
        """The alert that is open: from the frame on that makes it long enough to stay one, until
        the frame, or the `finish`, that gives it back as an `Alert`."""
        stretch = self._stretch
        if stretch is None or not self._is_long_enough(stretch):
            return None
        return OpenAlert(
            number=self._alerts + 1,
            start_pts=stretch.start.pts,
            start_s=stretch.start.seconds,
            peak_pts=stretch.peak.pts,
            peak_s=stretch.peak.seconds,
            peak_score=stretch.peak.score,
            clock=stretch.region.clock if stretch.region else None,
        )

    def update(self, observation: Observation) -> list[Alert]:
        """Take the next frame; return the alerts that it completes, most often none."""
        seconds = observation.seconds
        since_s = 0.0 if self._last is None else seconds - self._last.seconds
        self._last = observation
        closed: list[Alert] = []
        if since_s < 0:
            closed += self._close()
            self._ready_at_s = -math.inf  # the time it was set in is over
        elif since_s > LONGEST_HOLE_S or seconds - self._informed_at_s > LONGEST_BLIND_S:
            closed += self._close()
        closed += self._close_if_complete(seconds)
        if observation.informative:
            self._informed_at_s = seconds
        if self._stretch is not None:
            self._follow(self._stretch, observation)
            closed += self._close_if_complete(seconds)
        elif (
            observation.informative
            and observation.score >= self._rule.enter
            and seconds >= self._ready_at_s
        ):
            self._stretch = _Stretch(observation, observation, observation, observation.evidence())
        return closed

    def finish(self) -> list[Alert]:
        """Close the alert that is open where the stream ends, or breaks off; a live one goes on."""
        stretch = self._stretch
        cut_off = stretch is not None and not stretch.falling
        return [replace(alert, open_at_end=cut_off) for alert in self._close()]

    def _follow(self, stretch: _Stretch, observation: Observation) -> None:
        """Add a frame to the open stretch."""
        stretch.frames_after += 1
        if not observation.informative:
            return
        stretch.informative_after += 1
        if observation.score < (self._rule.enter if stretch.falling else self._rule.leave):
            stretch.falling = True
            return
        stretch.falling = False
        stretch.end = observation
        stretch.frames += stretch.frames_after
        stretch.informative += stretch.informative_after
        stretch.frames_after = stretch.informative_after = 0
        if observation.score > stretch.peak.score:
            stretch.peak, stretch.region = observation, observation.evidence()

    def _close_if_complete(self, seconds: float) -> list[Alert]:
        """End the open stretch once it can no longer go on."""
        stretch = self._stretch
        if stretch and stretch.falling and seconds - stretch.end.seconds > self._rule.merge_gap_s:
            return self._close()
        return []

    def _close(self) -> list[Alert]:
        """End the open stretch; an alert of it where it was long enough."""
        stretch, self._stretch = self._stretch, None
        if stretch is None or not self._is_long_enough(stretch):
            return []
        self._alerts += 1
        self._ready_at_s = stretch.end.seconds + self._rule.refractory_s
        region = stretch.region
        return [
            Alert(
                number=self._alerts,
                start_pts=stretch.start.pts,
                start_s=stretch.start.seconds,
                end_pts=stretch.end.pts,
                end_s=stretch.end.seconds,
                peak_pts=stretch.peak.pts,
                peak_s=stretch.peak.seconds,
                peak_score=stretch.peak.score,
                peak_raw=stretch.peak.raw,
                box=region.box if region else None,
                clock=region.clock if region else None,
                frames=stretch.frames,
                informative_frames=stretch.informative,
                model=self._model,
            )
        ]

    def _is_long_enough(self, stretch: _Stretch) -> bool:
        return stretch.end.seconds - stretch.start.seconds >= self._rule.min_duration_s


def hottest_region(heat: np.ndarray, field: FieldOfView, threshold: float = 0.99) -> Region | None:
    """The connected part of the heat that weighs most, or None where nothing reaches `threshold`.

    Parts are 8-connected cells at or above `threshold`; the weight of one is the sum of how far its
    cells are above, so that one stray cell at 1 does not win over a patch.

    Args:
        heat: float32 [h, w] over the field of view, calibrated, in [0, 1]; NaN where invalid.
        field: where the map lies in the frame.
        threshold: fraction of normal pixels below which a cell is not hot.
    """
    hot = np.nan_to_num(heat, nan=-1.0) >= threshold
    count, labels = cv2.connectedComponents(hot.astype(np.uint8), connectivity=8)
    if count < 2:
        return None
    # The small addend lets the larger part win where all cells are at the threshold itself.
    excess = np.where(hot, heat - threshold + 1e-6, 0.0).ravel()
    weights = np.bincount(labels.ravel(), weights=excess, minlength=count)
    rows, columns = np.nonzero(labels == 1 + int(np.argmax(weights[1:])))
    height, width = heat.shape
    x0 = field.x + columns.min() * field.width / width
    x1 = field.x + (columns.max() + 1) * field.width / width
    y0 = field.y + rows.min() * field.height / height
    y1 = field.y + (rows.max() + 1) * field.height / height
    left, top = math.floor(x0), math.floor(y0)
    return Region(
        box=(left, top, math.ceil(x1) - left, math.ceil(y1) - top),
        clock=clock_position(field, (x0 + x1) / 2, (y0 + y1) / 2),
    )


def clock_position(field: FieldOfView, x: float, y: float) -> Clock:
    """Direction of the point (x, y), in frame pixels, from the centre of the field of view.

    The hand of a clock that points there: 12 is up in the picture, 3 is to the right.
    """
    right = x - (field.x + field.width / 2)
    up = (field.y + field.height / 2) - y
    if math.hypot(right / (field.width / 2), up / (field.height / 2)) < CENTRE_RADIUS:
        return "centre"
    return round(math.degrees(math.atan2(right, up)) / 30) % 12 or 12
