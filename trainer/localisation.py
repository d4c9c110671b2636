"""Where in an image is the lesion? A map and lesion masks in, figures of how well they agree out.

Over the images of one set that show a lesion, on pixels of the 256x256 view that count; a part is
connected through any of a pixel's 8 neighbours:

    auroc           AUROC of the pixels of each image by itself, mean over images
    auroc_pooled    AUROC of the pixels of all images together
    pro             per-region overlap, area to a false positive rate of 0.3 (`area_under_pro`)
    iou, dice       of the lesion and the largest connected part above the label-free threshold,
                    mean over images
    oracle          the same above the one threshold of a set, among `CANDIDATES`, that gives the
                    highest mean IoU. It is chosen with the lesion masks in hand, so it says what
                    the map could do at best and is never the figure to quote
    paper_groups    mean IoU of five disjoint groups of 100 images, as in the paper's Table 2, at
                    both thresholds. Tian et al. name neither their threshold nor their groups

Pooled figures count in `BINS` bins of about equally many pixels. PRO takes the false positive rate
over the set's own images only, unlike Bergmann et al., who add anomaly-free ones: normal frames of
this field show another kind of view, which is the question of the image figures. A region is a
connected part of the mask as the view sees it, `SMALLEST_REGION_PX` or larger: each counts alike,
and smaller ones are specks that drawing left.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np

from trainer.metrics import (
    area_under_pro,
    component_ious,
    dice_of,
    estimate_weighted,
    pixel_auroc,
    pooled_auroc,
    weighted_mean,
)

FIGURES = ("auroc", "auroc_pooled", "pro", "iou", "dice", "oracle", "paper_groups")
"""The keys of `figures`."""
PRO_FPR = 0.3
"""False positive rate up to which PRO is integrated, as in Bergmann et al."""
BINS = 2048
"""Of the pooled figures: exact ranks would need every pixel of a set at once, in each resample.
Equally full bins keep the error of AUROC below 0.00031 while lesions cover a fifth or less."""
CANDIDATES = np.arange(0, 100, 3) / 100
"""Quantiles of the set's pixels that the oracle tries as thresholds: every third percentile."""
SAMPLE_STEP = 16
"""Bins and candidates are quantiles of every 16th pixel of each image."""
SMALLEST_REGION_PX = 32
"""Two cells of a 64x64 map."""
PAPER_GROUPS = 5
PAPER_GROUP_IMAGES = 100
PAPER_SEED = 0
"""Draws the groups: the same for every map and bundle."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class Lesion:
    """The lesion of one image, as the view sees it."""

    mask: np.ndarray
    """bool [256, 256]."""
    shown: float
    """Share of the lesion's area that lies on pixels that count, in [0, 1]."""


@dataclass(frozen=True, slots=True, eq=False)
class Localisation:
    """What one map finds in the N images of a set that show a lesion."""

    pixel_auroc: np.ndarray
    """float64 [N]; NaN where the lesion fills every pixel that counts."""
    iou: np.ndarray
    """float64 [N], at the label-free threshold."""
    candidates: np.ndarray
    """float64 [T], thresholds among which the oracle chooses."""
    iou_at: np.ndarray
    """float64 [N, T], at each of them."""
    outside: np.ndarray
    """int64 [N, B], pixels outside the lesion by bin of the map, lowest first."""
    inside: np.ndarray
    """int64 [N, B], pixels of the lesion."""
    regions: np.ndarray
    """int64 [K, B], pixels of each region."""
    image_of_region: np.ndarray
    """int64 [K], index into N."""

    def __len__(self) -> int:
        return len(self.iou)

    @property
    def dice(self) -> np.ndarray:
        """float64 [N], at the label-free threshold."""
        return dice_of(self.iou)


@dataclass(frozen=True, slots=True, eq=False)
class _Image:
    """What one map finds in one image."""

    pixel_auroc: float | None
    ious: np.ndarray
    """float64 [1 + T], at the label-free threshold and at each candidate."""
    outside: np.ndarray
    inside: np.ndarray
    regions: list[np.ndarray]


def localise(
    map_of: Callable[[int], np.ndarray],
    counted: Sequence[np.ndarray],
    lesions: Sequence[np.ndarray],
    threshold: float,
    progress: Progress,
) -> Localisation:
    """Lay a map over the lesions of N images, one image at a time.

    Args:
        map_of: gives float32 [256, 256] of image 0 to N - 1; asked twice for each.
        counted: bool [256, 256] of each image, the pixels that count.
        lesions: bool [256, 256] of each image, with at least one pixel that counts.
        threshold: label-free, above it a pixel counts as found.
        progress: told after each image.
    """
    indices = range(len(lesions))
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        sample = np.concatenate(
            list(pool.map(lambda i: map_of(i)[counted[i]][::SAMPLE_STEP], indices))
        )
        # values that occur: a map of few values then has a bin for each of them
        edges, candidates = (
            np.quantile(sample, levels, method="inverted_cdf")
            for levels in (np.linspace(0, 1, BINS + 1)[1:-1], CANDIDATES)
        )
        thresholds = [threshold, *candidates]

        def look(index: int) -> _Image:
            return _look(map_of(index), lesions[index], counted[index], thresholds, edges)

        images = []
        for image in pool.map(look, indices):
            images.append(image)
            progress(len(images), len(lesions))
    ious = np.stack([image.ious for image in images])
    return Localisation(
        pixel_auroc=np.array([image.pixel_auroc for image in images], np.float64),
        iou=ious[:, 0],
        candidates=candidates.astype(np.float64),
        iou_at=ious[:, 1:],
        outside=np.stack([image.outside for image in images]),
        inside=np.stack([image.inside for image in images]),
        regions=np.array([r for image in images for r in image.regions]).reshape(-1, BINS),
        image_of_region=np.repeat(indices, [len(image.regions) for image in images]),
    )


def figures(found: Localisation, groups: Sequence[str], *, resamples: int) -> dict[str, Any]:
    """The figures that this module's docstring lists, in types that JSON holds.

    Args:
        found: of N images.
        groups: the near-duplicate group of each.
        resamples: of the bootstrap; the oracle chooses its threshold anew in each.

    Returns:
        {auroc, auroc_pooled, pro, iou, dice, oracle {threshold, iou, dice}, paper_groups {iou,
        oracle_iou}}. Figures are {value, low, high, n}, n the images, and null where there was
        nothing to measure. Those of `paper_groups` are {mean, spread, values}, spread being
        the standard deviation over the groups; null where there are fewer images than groups.
    """

    def estimate(statistic: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
        return asdict(estimate_weighted(statistic, groups, resamples=resamples))

    ranked = np.flatnonzero(np.isfinite(found.pixel_auroc))
    of_ranked = [groups[int(index)] for index in ranked]
    dice_at = dice_of(found.iou_at)
    region_shares = found.regions / np.maximum(found.regions.sum(axis=1, keepdims=True), 1)

    def pooled(times: np.ndarray) -> np.ndarray:
        return pooled_auroc(times @ found.outside, times @ found.inside)

    def pro(times: np.ndarray) -> np.ndarray:
        overlap = times[:, found.image_of_region] @ region_shares
        return area_under_pro(times @ found.outside, overlap, most_fpr=PRO_FPR)

    def oracle_iou(times: np.ndarray) -> np.ndarray:
        best: np.ndarray = (times @ found.iou_at).max(axis=1) / times.sum(axis=1)
        return best

    def oracle_dice(times: np.ndarray) -> np.ndarray:
        best = (times @ found.iou_at).argmax(axis=1)
        dice: np.ndarray = (times @ dice_at)[np.arange(len(times)), best] / times.sum(axis=1)
        return dice

    best = int(found.iou_at.mean(axis=0).argmax())
    some_outside = bool(found.outside.any())
    return {
        "auroc": asdict(
            estimate_weighted(
                weighted_mean(found.pixel_auroc[ranked]), of_ranked, resamples=resamples
            )
        )
        if len(ranked)
        else None,
        "auroc_pooled": estimate(pooled) if some_outside else None,
        "pro": estimate(pro) if some_outside and len(found.regions) else None,
        "iou": estimate(weighted_mean(found.iou)),
        "dice": estimate(weighted_mean(found.dice)),
        "oracle": {
            "threshold": float(found.candidates[best]),
            "iou": estimate(oracle_iou),
            "dice": estimate(oracle_dice),
        },
        "paper_groups": {
            "iou": _over_paper_groups(found.iou),
            "oracle_iou": _over_paper_groups(found.iou_at[:, best]),
        },
    }


def paper_groups(images: int) -> list[np.ndarray]:
    """Five disjoint groups of 100 of `images` indices, drawn with a fixed seed.

    Where there are fewer than 500 images each group has a fifth of them, rounded down, so up to
    four images are in none; where there are fewer than five there are no groups.
    """
    size = min(PAPER_GROUP_IMAGES, images // PAPER_GROUPS)
    if not size:
        return []
    drawn = np.random.default_rng(PAPER_SEED).permutation(images)[: PAPER_GROUPS * size]
    return list(drawn.reshape(PAPER_GROUPS, size))


def _look(
    anomaly_map: np.ndarray,
    lesion: np.ndarray,
    counted: np.ndarray,
    thresholds: Sequence[float],
    edges: np.ndarray,
) -> _Image:
    count, labels = cv2.connectedComponents(lesion.astype(np.uint8), connectivity=8)
    regions = []
    for label in range(1, count):
        pixels = anomaly_map[(labels == label) & counted]
        if len(pixels) >= SMALLEST_REGION_PX:
            regions.append(_histogram(pixels, edges))
    return _Image(
        pixel_auroc(anomaly_map, lesion, counted),
        component_ious(anomaly_map, lesion, counted, thresholds),
        _histogram(anomaly_map[counted & ~lesion], edges),
        _histogram(anomaly_map[counted & lesion], edges),
        regions,
    )


def _histogram(pixels: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """int64 [E + 1]: how many lie up to the first edge, from there up to the next, and beyond."""
    up_to = np.searchsorted(np.sort(pixels), edges, side="right")
    return np.diff(up_to, prepend=0, append=len(pixels))


def _over_paper_groups(ious: np.ndarray) -> dict[str, Any] | None:
    means = [float(ious[group].mean()) for group in paper_groups(len(ious))]
    if not means:
        return None
    return {
        "mean": float(np.mean(means)),
        "spread": float(np.std(means, ddof=1)),
        "values": means,
    }
