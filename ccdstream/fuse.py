"""Raw scores -> scores that mean the same for every bundle, steadied over time.

In: what the model says of one frame (`Scored`), what the frame is worth (its quality flags), and
when it is shown. Out: `Fused`. State is one number, the last smoothed score; it looks back only, so
live and recorded streams give the same figures.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ccdstream.errors import BundleError
from ccdstream.frames import Fused, Scored

RESET_GAP_S = 1.0
"""After this long without an informative frame the picture is another one: smoothing starts anew.
At the end of such a gap the old score would say more about the past than about the frame."""


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """The share of normal calibration frames (or pixels) whose raw score is lower.

        F(raw) = piecewise linear through the knots (raw_i, fraction_i)
        F(raw) = 1 - (1 - f_last) exp(-(raw - raw_last) / tail_scale)    beyond the last knot

    The exponential tail keeps scores beyond the largest normal one apart instead of all at 1. Below
    the first knot F is the first fraction.
    """

    raw: np.ndarray
    """float64 [K], ascending."""
    fraction: np.ndarray
    """float64 [K], ascending, in [0, 1)."""
    tail_scale: float
    """Raw score by which the rest, 1 - F, falls by a factor e beyond the last knot."""

    def __post_init__(self) -> None:
        if self.raw.ndim != 1 or self.raw.shape != self.fraction.shape or not len(self.raw):
            raise ValueError(
                "raw and fraction must be lists of the same length, at least 1, got shapes "
                f"{list(self.raw.shape)} and {list(self.fraction.shape)}"
            )
        for name, knots in (("raw", self.raw), ("fraction", self.fraction)):
            if not np.isfinite(knots).all() or (np.diff(knots) < 0).any():
                raise ValueError(f"{name} must be finite and ascending, got {_excerpt(knots)}")
        if not (self.fraction[0] >= 0 and self.fraction[-1] < 1):
            raise ValueError(f"fraction must lie in [0, 1), got {_excerpt(self.fraction)}")
        if not (math.isfinite(self.tail_scale) and self.tail_scale > 0):
            raise ValueError(f"tail_scale must be above 0, got {self.tail_scale}")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Calibration":
        """The calibration in a bundle's manifest: keys raw, fraction, tail_scale.

        Raises:
            BundleError: A key is missing, or its value is not a calibration.
        """
        try:
            return cls(
                raw=np.asarray(data["raw"], np.float64),
                fraction=np.asarray(data["fraction"], np.float64),
                tail_scale=float(data["tail_scale"]),
            )
        except KeyError as error:
            raise BundleError(
                f"the bundle's calibration lacks {error}; expected raw, fraction and tail_scale. "
                "Export the bundle again."
            ) from error
        except (TypeError, ValueError) as error:
            raise BundleError(
                f"the bundle's calibration is damaged: {error}. Export the bundle again."
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """What `from_dict` reads, in types that JSON holds."""
        return {
            "raw": self.raw.tolist(),
            "fraction": self.fraction.tolist(),
            "tail_scale": self.tail_scale,
        }

    def apply(self, raw: np.ndarray) -> np.ndarray:
        """The fraction of each raw score.

        Args:
            raw: float, any shape; NaN stays NaN.

        Returns:
            float64, same shape, in [0, 1].
        """
        values = np.asarray(raw, np.float64)
        beyond = np.maximum(values - self.raw[-1], 0.0)
        rest = (1.0 - self.fraction[-1]) * np.exp(-beyond / self.tail_scale)
        within = np.interp(values, self.raw, self.fraction)
        fractions: np.ndarray = np.where(values > self.raw[-1], 1.0 - rest, within)
        return fractions


def extrapolation(frames: int, enter: float) -> str | None:
    """What to say where alerts open beyond what calibration frames tell; None where they do not.

    Args:
        frames: how many there are: the highest of n has the fraction n / (n + 1).
        enter: calibrated score at which an alert opens.
    """
    highest = frames / (frames + 1)
    if highest >= enter:
        return None
    if enter < 1:
        fewest = max(1, int(enter / (1 - enter)) - 1)  # less than wanted, as rounding goes
        while fewest / (fewest + 1) < enter:
            fewest += 1
        advice = f"Give at least {fewest}."
    else:
        advice = "No number of frames reaches that: set alert.enter lower."
    return (
        f"{frames} calibration frame{'' if frames == 1 else 's'} "
        f"resolve{'s' if frames == 1 else ''} scores up to {highest:.3f}; higher ones, and so "
        f"alerts from {enter:g}, are extrapolated. {advice}"
    )


class Fuser:
    """Takes frames one by one, in presentation order, and says what each is worth.

        smoothed += (1 - exp(-dt / time_constant_s)) (calibrated - smoothed)

    where dt is the stream time since the frame before, so a variable frame rate gives the same
    curve. A frame with quality flags leaves the smoothed score as it was, and its time is no
    evidence either: the first frame after it weighs as one frame, not as all that nobody saw. After
    more than `RESET_GAP_S` without an informative frame, or when time runs backwards, the next one
    starts anew.
    """

    def __init__(
        self, calibration: Calibration, map_calibration: Calibration, time_constant_s: float
    ) -> None:
        """
        Args:
            calibration: for the score of a frame.
            map_calibration: for each cell of the anomaly map.
            time_constant_s: stream time in which a step is followed to 63 %; 0 does not smooth.
        """
        if not (math.isfinite(time_constant_s) and time_constant_s >= 0):
            raise ValueError(f"time_constant_s must be 0 or more, got {time_constant_s}")
        self._calibration = calibration
        self._map_calibration = map_calibration
        self._time_constant_s = time_constant_s
        self._smoothed = 0.0
        self._informed_at_s: float | None = None
        self._before_s = 0.0

    def update(
        self,
        seconds: float,
        valid_fraction: float,
        scored: Scored,
        quality: tuple[str, ...] = (),
    ) -> Fused:
        """Fuse the next frame.

        Args:
            seconds: its presentation time.
            valid_fraction: share of the model's view of it that was scored.
            scored: what the model said.
            quality: why the frame is uninformative; empty for an informative one.

        Returns:
            Calibrated scores. `calibrated` is NaN, and "mostly_invalid" among the flags, where the
            model could give no score. `smoothed` is 0 until the first informative frame.
        """
        calibrated = float(self._calibration.apply(np.array(scored.raw)))
        if math.isnan(calibrated) and "mostly_invalid" not in quality:
            quality = (*quality, "mostly_invalid")
        if not quality:
            self._smoothed = self._next(seconds, calibrated)
            self._informed_at_s = seconds
        self._before_s = seconds
        return Fused(
            raw=scored.raw,
            calibrated=calibrated,
            smoothed=self._smoothed,
            find_heat=lambda: self._map_calibration.apply(scored.anomaly_map).astype(np.float32),
            quality=quality,
            valid_fraction=valid_fraction,
        )

    def _next(self, seconds: float, calibrated: float) -> float:
        """The smoothed score at an informative frame."""
        if self._informed_at_s is None or self._time_constant_s == 0:
            return calibrated
        step_s = seconds - self._before_s
        if step_s < 0 or not 0 <= seconds - self._informed_at_s <= RESET_GAP_S:
            return calibrated
        weight = -math.expm1(-step_s / self._time_constant_s)
        return self._smoothed + weight * (calibrated - self._smoothed)


def _excerpt(knots: np.ndarray) -> str:
    """The first and last of many numbers, for a message of one line."""
    if len(knots) <= 4:
        return str(knots.tolist())
    return f"[{knots[0]:g}, {knots[1]:g}, ..., {knots[-2]:g}, {knots[-1]:g}]"
