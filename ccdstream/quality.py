"""View in -> what it is worth out: measures of its picture, and why it may be uninformative.

No lesion label goes in: the measures are plain image statistics over the valid pixels, and their
limits are the extremes of normal frames, with a margin. A frame that is flagged is still scored and
written, but it neither opens nor closes an alert.

    blurred           motion, or the lens on the wall
    washed_out        water or mist before the lens, or too much light
    too_dark          even the bright parts are dark
    out_of_body       not reddish
    mostly_invalid    too little is left beside border, overlay and highlights
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import cv2
import numpy as np

from ccdstream.frames import View

FLAGS = ("blurred", "washed_out", "too_dark", "out_of_body", "mostly_invalid")
_GRAVEST_FIRST = ("out_of_body", "mostly_invalid", "too_dark", "washed_out", "blurred")
MEASURES = ("sharpness", "evenness", "brightness", "contrast", "haze", "glare", "redness")

_GLARE_LUMA = 215
COARSE_PX = 4
INNER_PX = 7
"""Fine detail is measured where such a box around is valid: the edge of the grey fill is none."""
FEWEST_PX = 1000
"""Measures of fewer pixels say nothing."""
_SMOOTHING = np.array((0.25, 0.5, 0.25), np.float32)
_SECOND_DIFFERENCES = tuple(
    np.array(kernel, np.float32)
    for kernel in (
        ((0, 0, 0), (1, -2, 1), (0, 0, 0)),
        ((0, 1, 0), (0, -2, 0), (0, 1, 0)),
        ((0.5, 0, 0), (0, -1, 0), (0, 0, 0.5)),  # halved: the diagonal neighbour is sqrt(2) away
        ((0, 0, 0.5), (0, -1, 0), (0.5, 0, 0)),
    )
)


def gravest(quality: Sequence[str]) -> str:
    """Of why a frame tells nothing, the reason to name where there is room for one."""
    return min(quality, key=_GRAVEST_FIRST.index)


def measure(view: View) -> dict[str, float]:
    """Statistics of the valid pixels of a view, by name.

    Returns:
        sharpness: f / sqrt(c) with f the fine detail along the direction that has least, and c the
            coarse detail. Detail is the root mean square of second differences of luma, fine over
            one pixel and coarse over four. f alone would call plain mucosa blurred, and f / c a
            picture of noise sharp.
        evenness: detail along the direction that has least over that along the one that has most.
            Motion smears along one direction only.
        brightness: 0.9 quantile of luma.
        contrast: standard deviation of luma.
        haze: 0.05 quantile of the darkest channel. Without a veil of water or light some pixel has
            a dark channel nearly everywhere (the dark channel prior, He, Sun, Tang 2009).
        glare: share of pixels brighter than `_GLARE_LUMA`, though not so white as to be masked.
        redness: red's share of the sum of the three channels; 1/3 for grey.

        All are nan where too few pixels are valid.
    """
    valid = view.valid.astype(np.uint8)
    inner = cv2.erode(valid, np.ones((INNER_PX, INNER_PX), np.uint8))
    if np.count_nonzero(inner) < FEWEST_PX:
        return dict.fromkeys(MEASURES, float("nan"))
    luma = cv2.cvtColor(view.image, cv2.COLOR_RGB2GRAY)
    red, green, blue = cv2.split(view.image)
    darkest = cv2.min(cv2.min(red, green), blue)
    return measures_from(
        fine=_fine_detail(luma, inner),
        coarse=_coarse_detail(luma, valid),
        luma=_histogram(luma, valid),
        darkest=_histogram(darkest, valid),
        mean_rgb=cv2.mean(view.image, mask=valid)[:3],
    )


def measures_from(
    *,
    fine: Sequence[float],
    coarse: float,
    luma: np.ndarray,
    darkest: np.ndarray,
    mean_rgb: Sequence[float],
) -> dict[str, float]:
    """The measures of a view, from what was summed up over its valid pixels.

    Args:
        fine: fine detail by direction.
        coarse: coarse detail.
        luma: float64 [256], share of the pixels of each level.
        darkest: float64 [256], the same of the darkest channel.
        mean_rgb: mean of each channel.
    """
    shares, levels = np.cumsum(luma), np.arange(256.0)
    return {
        "sharpness": min(fine) / max(coarse, 0.01) ** 0.5,
        "evenness": min(fine) / max(*fine, 0.01),
        "brightness": float(np.searchsorted(shares, 0.9)),
        "contrast": math.sqrt(np.square(levels - levels @ luma) @ luma),
        "haze": float(np.searchsorted(np.cumsum(darkest), 0.05)),
        "glare": max(0.0, float(1 - shares[_GLARE_LUMA])),
        "redness": mean_rgb[0] / max(sum(mean_rgb), 1.0),
    }


def _fine_detail(luma: np.ndarray, inner: np.ndarray) -> list[float]:
    """Of the luma, by direction; slightly smoothed, since grain is no detail."""
    smooth = cv2.sepFilter2D(luma, cv2.CV_32F, _SMOOTHING, _SMOOTHING)
    return [_rms(cv2.filter2D(smooth, -1, kernel), inner) for kernel in _SECOND_DIFFERENCES]


def _coarse_detail(luma: np.ndarray, valid: np.ndarray) -> float:
    size = (luma.shape[1] // COARSE_PX, luma.shape[0] // COARSE_PX)
    small = cv2.resize(luma.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    whole = cv2.resize(valid.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.999
    inner = cv2.erode(whole.astype(np.uint8), np.ones((3, 3), np.uint8))
    return _rms(cv2.Laplacian(small, cv2.CV_32F), inner)


def _rms(values: np.ndarray, where: np.ndarray) -> float:
    count = max(cv2.countNonZero(where), 1)
    return cv2.norm(values, cv2.NORM_L2, where) / math.sqrt(count)


def _histogram(plane: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """float64 [256]: share of the valid pixels of each level."""
    counts = cv2.calcHist([plane], [0], valid, [256], [0, 256]).ravel().astype(np.float64)
    shares: np.ndarray = counts / counts.sum()
    return shares


_TAIL = 0.005
"""Share of normal frames beyond a limit before its margin: extreme, yet not the one worst frame."""
_MARGIN = 1.15
_GREY_REDNESS = 1 / 3


@dataclass(frozen=True, slots=True)
class QualityLimits:
    """Beyond these a frame is uninformative. Most defaults limit nothing."""

    least_sharpness: float = 0.0
    least_evenness: float = 0.0
    least_brightness: float = 0.0
    least_contrast: float = 0.0
    most_haze: float = 255.0
    most_glare: float = 0.25
    """Ours: one bright fold is seen all the same, a quarter of the picture in it is not."""
    least_redness: float = 0.0
    least_valid_fraction: float = 0.2
    """Ours: with the widest profile a normal frame keeps half; below a fifth hardly a lesion
    fits."""

    @classmethod
    def fit(cls, measures: Sequence[Mapping[str, float]]) -> "QualityLimits":
        """Limits that normal frames keep: their extreme quantiles, and a margin.

        A margin is a factor, but for redness: other scopes are balanced otherwise, so its limit
        lies half way from the least red of the normal frames to grey.

        Args:
            measures: what `measure` said of normal frames, hundreds of them.

        Raises:
            ValueError: no frame could be measured.
        """
        known = [each for each in measures if not np.isnan(each["sharpness"])]
        if not known:
            raise ValueError(
                f"no frame to fit quality limits on: none of {len(measures)} could be measured"
            )

        def quantile(name: str, at: float) -> float:
            return float(np.quantile([each[name] for each in known], at))

        return cls(
            least_sharpness=quantile("sharpness", _TAIL) / _MARGIN,
            least_evenness=quantile("evenness", _TAIL) / _MARGIN,
            least_brightness=quantile("brightness", _TAIL) / _MARGIN,
            least_contrast=quantile("contrast", _TAIL) / _MARGIN,
            most_haze=quantile("haze", 1 - _TAIL) * _MARGIN,
            least_redness=(quantile("redness", _TAIL) + _GREY_REDNESS) / 2,
        )

    def to_dict(self) -> dict[str, float]:
        """The limits as plain JSON values, for a manifest."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, float]) -> "QualityLimits":
        """The limits that `to_dict` wrote; one that is left out has its default.

        Raises:
            ValueError: a key is unknown.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(
                f"quality limits have unknown keys: {', '.join(unknown)}. "
                f"Known keys: {', '.join(sorted(known))}."
            )
        return cls(**{name: float(value) for name, value in values.items()})


def flags(
    measures: Mapping[str, float], limits: QualityLimits, valid_fraction: float
) -> tuple[str, ...]:
    """Why a frame is uninformative; empty for an informative one.

    Args:
        measures: what `measure` said of the frame's view.
        limits: beyond which it is uninformative.
        valid_fraction: share of the view that is valid.
    """
    blurred = (
        measures["sharpness"] < limits.least_sharpness
        or measures["evenness"] < limits.least_evenness
    )
    washed_out = (
        measures["haze"] > limits.most_haze
        or measures["glare"] > limits.most_glare
        or measures["contrast"] < limits.least_contrast
    )
    found = {
        "blurred": blurred,
        "washed_out": washed_out,
        "too_dark": measures["brightness"] < limits.least_brightness,
        "out_of_body": measures["redness"] < limits.least_redness,
        "mostly_invalid": valid_fraction < limits.least_valid_fraction,
    }
    return tuple(name for name, is_so in found.items() if is_so)
