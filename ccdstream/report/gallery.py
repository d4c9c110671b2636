"""Frames as they pass -> what the report page shows of them, in memory that does not grow.

    line      scores and states over time, in a fixed number of columns
    strip     a small picture of every few seconds, of the whole recording
    peaks     the peak frame of each alert, plain and with its heatmap

Pictures are made as JPEG while the frames are there, so that nothing is decoded twice. Most frames
cost a look at the clock.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ccdstream.frames import DeviceFrame, FieldOfView, Frame, Fused
from ccdstream.history import STATES, History
from ccdstream.jpeg import jpeg_of

COLUMNS = 2400
"""Of the line: at least half of them are used once the recording is longer than its first span."""
MOST_TILES = 160
"""Pictures in the strip; where there would be more, every two become one."""
FIRST_TILE_S = 0.5
"""Stream time that a picture of the strip stands for, until there are too many."""
MOST_PEAKS = 100
"""Alerts that are shown with pictures: those with the highest peaks."""
TILE_PX, PEAK_PX = 144, 360
TILE_QUALITY, PEAK_QUALITY = 75, 84

Heated = Callable[[Frame, FieldOfView, np.ndarray], Frame]
"""Draws a heat map, float32 [h, w], over the field of view of a frame."""


class Peaked(Protocol):
    """What is read of an alert; `ccdstream.alert.Alert` says what the fields mean."""

    @property
    def number(self) -> int: ...
    @property
    def peak_pts(self) -> int: ...
    @property
    def peak_score(self) -> float: ...


@dataclass(slots=True)
class Tile:
    """A stretch of the strip."""

    seconds: float
    """Stream time of the picture: of the first informative frame of the stretch, else the first."""
    jpeg: bytes
    informative: bool
    """Whether the picture is of an informative frame."""
    score: float
    """The highest smoothed score in the stretch; 0 where no frame was informative."""
    state: str
    """The gravest state in the stretch."""


@dataclass(frozen=True, slots=True)
class Peak:
    """The peak frame of an alert."""

    plain: bytes
    """JPEG."""
    heat: bytes
    """JPEG: the same with its heatmap."""


@dataclass(frozen=True, slots=True, eq=False)
class _Candidate:
    """A frame that is the peak of the open alert so far."""

    frame: Frame | DeviceFrame
    field: FieldOfView
    fused: Fused


class Gallery:
    """Collects pictures and scores of one recording; every method is called in order of frames."""

    def __init__(self, *, start_s: float, heated: Heated) -> None:
        """
        Args:
            start_s: stream time of the first frame.
            heated: draws a heatmap.
        """
        self.line = History(COLUMNS, start_s=start_s, span_s=None)
        self.start_s = start_s
        self.tile_s = FIRST_TILE_S
        """Stream time that a tile stands for."""
        self.informed_from_s: float | None = None
        """Stream time of the first informative frame."""
        self.peaks: dict[int, Peak] = {}
        """By number of the alert; at most `MOST_PEAKS`."""
        self._heated = heated
        self._tiles: dict[int, Tile] = {}
        self._candidates: list[_Candidate] = []
        self._heights: list[tuple[float, int]] = []

    @property
    def strip(self) -> list[Tile]:
        """The tiles in order of time; a stretch without frames has none."""
        return [self._tiles[place] for place in sorted(self._tiles)]

    def add(self, frame: Frame | DeviceFrame, seconds: float, fused: Fused, state: str) -> None:
        """Enter the next frame.

        Args:
            frame: as it was decoded, or as it may be shown.
            seconds: `frame.seconds`.
            fused: its scores.
            state: one of `STATES`.
        """
        self.line.add(seconds, fused.smoothed, state)
        if fused.informative and self.informed_from_s is None:
            self.informed_from_s = seconds
        place = max(int((seconds - self.start_s) / self.tile_s), 0)
        while place >= MOST_TILES:
            self._merge()
            place //= 2
        tile = self._tiles.get(place)
        if tile is None or (fused.informative and not tile.informative):
            host = frame.on_host() if isinstance(frame, DeviceFrame) else frame
            jpeg = jpeg_of(host, width=TILE_PX, quality=TILE_QUALITY)
            fresh = Tile(seconds, jpeg, fused.informative, 0.0, state)
            self._tiles[place] = fresh if tile is None else _one_of(tile, fresh)
            tile = self._tiles[place]
        if fused.informative:
            tile.score = max(tile.score, fused.smoothed)
        tile.state = max(tile.state, state, key=STATES.index)

    def peak_so_far(self, frame: Frame | DeviceFrame, field: FieldOfView, fused: Fused) -> None:
        """Keep the frame until its alert is over, or another one is higher.

        Two are kept: the frame that ends an alert may open the next.
        """
        self._candidates = [*self._candidates[-1:], _Candidate(frame, field, fused)]

    def close(self, alert: Peaked) -> None:
        """Make the pictures of an alert that is over."""
        found = [c for c in self._candidates if c.frame.pts == alert.peak_pts]
        if not found or (
            len(self._heights) == MOST_PEAKS and alert.peak_score <= self._heights[0][0]
        ):
            return
        peak = found[-1]
        frame = peak.frame.on_host() if isinstance(peak.frame, DeviceFrame) else peak.frame
        hot = self._heated(frame, peak.field, peak.fused.heat)
        self.peaks[alert.number] = Peak(
            jpeg_of(frame, width=PEAK_PX, quality=PEAK_QUALITY),
            jpeg_of(hot, width=PEAK_PX, quality=PEAK_QUALITY),
        )
        heapq.heappush(self._heights, (alert.peak_score, alert.number))
        if len(self._heights) > MOST_PEAKS:
            del self.peaks[heapq.heappop(self._heights)[1]]

    def _merge(self) -> None:
        """Make one tile of every two."""
        merged: dict[int, Tile] = {}
        for place in sorted(self._tiles):
            tile = self._tiles[place]
            earlier = merged.get(place // 2)
            merged[place // 2] = tile if earlier is None else _one_of(earlier, tile)
        self._tiles = merged
        self.tile_s *= 2


def _one_of(first: Tile, second: Tile) -> Tile:
    """The two as one, with the picture that tells more."""
    shown = second if second.informative and not first.informative else first
    return Tile(
        shown.seconds,
        shown.jpeg,
        shown.informative,
        max(first.score, second.score),
        max(first.state, second.state, key=STATES.index),
    )
