"""Scores and maps in; figures that say how well they tell abnormal from normal, out.

A figure of images is computed from one score an image, a figure of pixels inside one image, over
the pixels that count. All are of ranks or overlaps: none knows a threshold of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95 % interval."""

    value: float
    low: float | None
    """None where there are too few groups to say."""
    high: float | None
    n: int
    """How many values it rests on, over all samples."""


def auroc(normal: np.ndarray, abnormal: np.ndarray) -> float:
    """Chance that a random abnormal value exceeds a random normal one, ties counting half.

        AUROC = mean over (i, j) of [a_j > n_i] + 1/2 [a_j = n_i]

    The Mann-Whitney U statistic over the number of pairs; 0.5 where the values say nothing.

    Args:
        normal, abnormal: float [N] and [M], both with at least one value and no NaN.
    """
    normal, abnormal = _values("normal", normal), _values("abnormal", abnormal)
    ordered = np.sort(normal)
    below = np.searchsorted(ordered, abnormal, side="left")
    not_above = np.searchsorted(ordered, abnormal, side="right")
    return float((below + not_above).mean() / 2 / len(normal))


def average_precision(normal: np.ndarray, abnormal: np.ndarray) -> float:
    """Precision averaged over the recalls that the abnormal values reach, without interpolation.

        AP = sum over thresholds k of (R_k - R_k-1) P_k

    With scores that say nothing it is the share of abnormal values, so it depends on the mix.

    Args:
        normal, abnormal: float [N] and [M], both with at least one value and no NaN.
    """
    normal, abnormal = _values("normal", normal), _values("abnormal", abnormal)
    thresholds, abnormal_at = np.unique(abnormal, return_counts=True)
    normal_at_or_above = len(normal) - np.searchsorted(np.sort(normal), thresholds, side="left")
    abnormal_at_or_above = abnormal_at[::-1].cumsum()[::-1]
    precision = abnormal_at_or_above / (abnormal_at_or_above + normal_at_or_above)
    return float((precision * abnormal_at).sum() / len(abnormal))


def pixel_auroc(anomaly_map: np.ndarray, lesion: np.ndarray, valid: np.ndarray) -> float | None:
    """AUROC of the pixels of one image: does the map rank the lesion above the rest?

    Args:
        anomaly_map: float [H, W]; anything where not valid.
        lesion: bool [H, W].
        valid: bool [H, W].

    Returns:
        None where the valid pixels are all lesion or all not.
    """
    inside, outside = anomaly_map[valid & lesion], anomaly_map[valid & ~lesion]
    return auroc(outside, inside) if len(inside) and len(outside) else None


def iou(predicted: np.ndarray, lesion: np.ndarray, valid: np.ndarray) -> float:
    """Intersection over union of two masks, bool [H, W], over valid pixels.

    Raises:
        ValueError: if both are empty there, where it is not defined.
    """
    both, either, _ = _overlap(predicted, lesion, valid)
    return both / either


def dice(predicted: np.ndarray, lesion: np.ndarray, valid: np.ndarray) -> float:
    """Twice the intersection over the sum of two masks, bool [H, W], over valid pixels.

    Raises:
        ValueError: if both are empty there, where it is not defined.
    """
    both, _, total = _overlap(predicted, lesion, valid)
    return 2 * both / total


def largest_component(mask: np.ndarray) -> np.ndarray:
    """Bool [H, W]: the largest connected part of `mask` (8 neighbours), empty where it is empty.

    The connected component analysis that the paper names after thresholding and does not spell out.
    """
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = stats[1:, cv2.CC_STAT_AREA]
    if not len(areas):
        return np.zeros_like(mask, bool)
    largest: np.ndarray = labels == 1 + int(areas.argmax())
    return largest


def mean(values: np.ndarray) -> float:
    """The mean as a plain float, for `estimate`."""
    return float(np.mean(values))


def estimate(
    statistic: Callable[..., float],
    *samples: tuple[np.ndarray, Sequence[str]],
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """A statistic of one or more samples, with the 95 % interval of a bootstrap over groups.

    Near-duplicates say little more than one image, so whole groups are drawn, with replacement, as
    many as there are; each sample by itself, so its share stays. The interval is that between
    the 0.025 and 0.975 quantiles of the resampled statistics (Efron's percentile interval).

    Args:
        statistic: takes as many arrays as there are samples.
        samples: (values [N], the group of each).
    """
    members = []
    for values, groups in samples:
        if len(values) != len(groups):
            raise ValueError(f"each value needs a group, got {len(values)} and {len(groups)}")
        _, inverse = np.unique(np.asarray(groups), return_inverse=True)
        members.append([np.flatnonzero(inverse == index) for index in range(inverse.max() + 1)])
    value = statistic(*(values for values, _ in samples))
    count = sum(len(values) for values, _ in samples)
    if any(len(groups) < 2 for groups in members):
        return Estimate(value, None, None, count)
    random = np.random.default_rng(seed)
    drawn = [
        statistic(
            *(
                values[
                    np.concatenate(
                        [groups[g] for g in random.integers(len(groups), size=len(groups))]
                    )
                ]
                for (values, _), groups in zip(samples, members, strict=True)
            )
        )
        for _ in range(resamples)
    ]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Estimate(value, float(low), float(high), count)


def _values(name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1 or not len(values) or np.isnan(values).any():
        raise ValueError(
            f"{name} must be [N] with N of 1 or more and no NaN, got {list(values.shape)} "
            f"with {int(np.isnan(values).sum())} NaN"
        )
    return values


def _overlap(predicted: np.ndarray, lesion: np.ndarray, valid: np.ndarray) -> tuple[int, int, int]:
    """Pixels in both masks, in either, and the sum of the two, where valid."""
    predicted, lesion = predicted & valid, lesion & valid
    both, total = int((predicted & lesion).sum()), int(predicted.sum()) + int(lesion.sum())
    if not total:
        raise ValueError("overlap is not defined: predicted and lesion are both empty where valid")
    return both, total - both, total
