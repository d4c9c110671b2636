"""Scores and maps in; figures that say how well they tell abnormal from normal, out.

A figure of images is computed from one score an image; a figure of pixels inside one image, or over
those of many from counts in bins, over the pixels that count. All are of ranks or overlaps: none
knows a threshold of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of the ranks of two scores of the same things; ties share their mean rank.

    Args:
        a, b: float [N], both with two different values and no NaN.
    """
    return float(np.corrcoef(_ranks(_values("a", a)), _ranks(_values("b", b)))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    ordered = np.sort(values)
    below = np.searchsorted(ordered, values, side="left")
    return np.asarray(below + np.searchsorted(ordered, values, side="right")) / 2


def map_correlations(a: np.ndarray, b: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Pearson correlation of two maps over the cells that count, frame by frame.

    Args:
        a, b: float [N, h, w]. counted: bool [N, h, w].

    Returns:
        float64 [N]; NaN where a map does not vary over what counts.
    """
    found = np.full(len(a), np.nan)
    for index, cells in enumerate(counted):
        x, y = (np.asarray(each[index][cells], np.float64) for each in (a, b))
        if len(x) > 1 and x.std() > 0 and y.std() > 0:
            found[index] = np.corrcoef(x, y)[0, 1]
    return found


def roc_curve(normal: np.ndarray, abnormal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares of normal and of abnormal values at or above each threshold, from 0 to 1 each.

    Args:
        normal, abnormal: float [N] and [M], both with at least one value and no NaN.

    Returns:
        float64 [K] each, the corners of the curve; the area under it is `auroc`.
    """
    normal, abnormal = _values("normal", normal), _values("abnormal", abnormal)
    thresholds = np.unique(np.concatenate([normal, abnormal]))[::-1]
    rates = [
        1 - np.searchsorted(np.sort(values), thresholds, side="left") / len(values)
        for values in (normal, abnormal)
    ]
    return np.concatenate([[0.0], rates[0]]), np.concatenate([[0.0], rates[1]])


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


def dice_of(iou: np.ndarray) -> np.ndarray:
    """Dice of two masks from their IoU: 2 |A and B| / (|A| + |B|) = 2 IoU / (1 + IoU)."""
    dice: np.ndarray = 2 * iou / (1 + iou)
    return dice


def largest_component(mask: np.ndarray) -> np.ndarray:
    """Bool [H, W]: the largest connected part of `mask` (8 neighbours), empty where it is empty.

    The connected component analysis that the paper names after thresholding and does not spell out.
    """
    labels, label, _ = _largest(mask)
    largest: np.ndarray = labels == label
    return largest


def component_ious(
    anomaly_map: np.ndarray, lesion: np.ndarray, valid: np.ndarray, thresholds: Sequence[float]
) -> np.ndarray:
    """IoU of the lesion and the largest component of what lies above each of T thresholds.

    Args:
        anomaly_map: float [H, W]; anything where not valid.
        lesion: bool [H, W], with at least one valid pixel.
        valid: bool [H, W].
        thresholds: on the map's scale.

    Returns:
        float64 [T]; 0 where nothing lies above the threshold.
    """
    values = np.where(valid, anomaly_map, -np.inf)
    inside = np.flatnonzero(lesion & valid)
    ious = np.zeros(len(thresholds))
    for index, threshold in enumerate(thresholds):
        labels, label, found = _largest(values > threshold)
        both = np.count_nonzero(labels.ravel()[inside] == label)
        ious[index] = both / (found + len(inside) - both)
    return ious


def pooled_auroc(outside: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """AUROC of values that are known by how many of them lie in each of B bins.

    That of `auroc` with all values of a bin tied, so it is off by at most half the chance that a
    value of each kind share a bin: half the sum over bins of the product of their shares.

    Args:
        outside, inside: float [..., B], how many values of either kind; higher bins, higher values.

    Returns:
        float64 [...]; NaN where either kind has no values.
    """
    below = outside.cumsum(axis=-1) - outside / 2
    pairs = outside.sum(axis=-1) * inside.sum(axis=-1)
    return _share((inside * below).sum(axis=-1), pairs)


def area_under_pro(outside: np.ndarray, overlap: np.ndarray, *, most_fpr: float) -> np.ndarray:
    """Area under the curve of per-region overlap against false positive rate, up to `most_fpr`.

        PRO(t) = mean over regions k of |P_t and C_k| / |C_k|
        area   = 1 / f  integral over FPR from 0 to f of PRO,    f = most_fpr

    where P_t are the pixels above t. Bergmann et al. 2021, "The MVTec anomaly detection dataset"
    (IJCV), section 5.2. The curve is linear between the edges of B bins. A map that says nothing
    has f / 2.

    Args:
        outside: float [..., B], pixels outside all regions in each bin; higher bins, higher values.
        overlap: float [..., B], share of a region in each bin, mean over regions.
        most_fpr: f, in (0, 1].

    Returns:
        float64 [...], in [0, 1]; NaN where there are no pixels outside, or no regions.
    """
    total, whole = outside.sum(axis=-1), overlap.sum(axis=-1)
    fpr = _share(outside[..., ::-1].cumsum(axis=-1), total[..., None])
    pro = _share(overlap[..., ::-1].cumsum(axis=-1), whole[..., None])
    start = np.zeros((*fpr.shape[:-1], 1))
    before, lower = (
        np.concatenate([start, fpr[..., :-1]], -1),
        np.concatenate([start, pro[..., :-1]], -1),
    )
    width = np.clip(fpr, None, most_fpr) - np.clip(before, None, most_fpr)
    step = np.where(fpr > before, fpr - before, 1.0)
    upper = lower + (pro - lower) * np.clip(width / step, 0, 1)  # cut where the last step is cut
    area: np.ndarray = (width * (lower + upper) / 2).sum(axis=-1) / most_fpr
    return area


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


def estimate_weighted(
    statistic: Callable[[np.ndarray], np.ndarray],
    groups: Sequence[str],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """`estimate` of one sample, for a statistic that takes all resamples at once.

    Args:
        statistic: takes float64 [R, N], how often each resample holds each of the N values, and
            gives float [R]. A resample where it is not defined, NaN, is left out of the interval.
        groups: the group of each value, N of at least 1.
    """
    _, inverse = np.unique(np.asarray(groups), return_inverse=True)
    count = int(inverse.max()) + 1
    value = float(statistic(np.ones((1, len(groups))))[0])
    if count < 2:
        return Estimate(value, None, None, len(groups))
    draws = np.random.default_rng(seed).integers(count, size=(resamples, count))
    times = np.zeros((resamples, count))
    np.add.at(times, (np.arange(resamples)[:, None], draws), 1)
    drawn = statistic(times[:, inverse])
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return Estimate(value, float(low), float(high), len(groups))


def estimate_rate(hits: np.ndarray, groups: Sequence[str], *, resamples: int = 1000) -> Estimate:
    """The share of values that are 1, with its 95 % interval over groups.

    That of `estimate_weighted`, but where all values agree: every resample agrees too, and an
    interval of no width would claim certainty. There it is the exact one on the number of groups n
    (Clopper and Pearson 1934, "The use of confidence or fiducial limits illustrated in the case of
    the binomial", Biometrika 26), two-sided, so that it goes on from what one hit would give:

        none of n: 0 to 1 - 0.025^(1/n)        all of n: 0.025^(1/n) to 1

    Args:
        hits: float or bool [N], each 0 or 1, N of at least 1.
        groups: the group of each value.
    """
    hits = np.asarray(hits, np.float64)
    found = estimate_weighted(weighted_mean(hits), groups, resamples=resamples)
    if found.low is None or found.value not in (0.0, 1.0):
        return found
    edge = 0.025 ** (1 / len(set(groups)))
    return replace(found, high=1 - edge) if found.value == 0 else replace(found, low=edge)


def weighted_mean(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The mean of `values` float [N] for `estimate_weighted`."""
    return lambda times: times @ values / times.sum(axis=1)


def _largest(mask: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Labels of the parts of `mask`, int32 [H, W]; that of the largest, or -1; its area."""
    count, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
    if count == 1:
        return labels, -1, 0
    areas = np.bincount(labels.ravel(), minlength=count)
    label = 1 + int(areas[1:].argmax())
    return labels, label, int(areas[label])


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole; NaN where whole is 0."""
    share: np.ndarray = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return share


def _values(name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1 or not len(values) or np.isnan(values).any():
        raise ValueError(
            f"{name} must be [N] with N of 1 or more and no NaN, got {list(values.shape)} "
            f"with {int(np.isnan(values).sum())} NaN"
        )
    return values
