"""Maps against lesions, beside slow references over all pixels at once."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from trainer.localisation import (
    BINS,
    FIGURES,
    PRO_FPR,
    SMALLEST_REGION_PX,
    Localisation,
    figures,
    localise,
    paper_groups,
)
from trainer.metrics import component_ious, dice_of

N = 6
GROUPS = ["a", "a", "b", "c", "d", "e"]


def disc(x: int, y: int, radius: int) -> np.ndarray:
    mask = np.zeros((256, 256), np.uint8)
    cv2.circle(mask, (x, y), radius, 1, -1)
    return mask.astype(bool)


class Made:
    """Images of one or two lesions that a noisy map half sees; a corner does not count."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self.lesions = [disc(90 + 12 * n, 100, 18 + 3 * n) for n in range(N)]
        self.lesions[0] |= disc(45, 210, 16)  # half of it where nothing counts
        self.counted = [~disc(0, 255, 60 + n) for n in range(N)]
        self.maps = []
        for n in range(N):
            noise = cv2.resize(random.normal(size=(32, 32)), (256, 256)).astype(np.float32)
            anomaly_map = (
                n / 4 + noise + cv2.GaussianBlur(2 * np.float32(self.lesions[n]), (0, 0), 6)
            )
            self.maps.append(np.where(self.counted[n], anomaly_map, np.float32(np.nan)))

    def localise(self, threshold: float = 2.0) -> Localisation:
        return localise(
            self.maps.__getitem__, self.counted, self.lesions, threshold, lambda done, total: None
        )


@pytest.fixture(scope="module")
def made() -> Made:
    return Made()


@pytest.fixture(scope="module")
def found(made: Made) -> Localisation:
    return made.localise()


def test_pooled_auroc_is_that_of_all_pixels_together(made: Made, found: Localisation) -> None:
    scores = np.concatenate([m[c] for m, c in zip(made.maps, made.counted, strict=True)])
    labels = np.concatenate([m[c] for m, c in zip(made.lesions, made.counted, strict=True)])

    value = figures(found, GROUPS, resamples=20)["auroc_pooled"]

    assert value["value"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-5)
    assert value["low"] < value["value"] < value["high"]
    assert found.outside.shape == found.inside.shape == (N, BINS)
    assert found.outside.sum() + found.inside.sum() == len(scores)


def slow_pro(made: Made, most_fpr: float) -> float:
    """By 400 thresholds over all images at once."""
    together = np.concatenate([m[c] for m, c in zip(made.maps, made.counted, strict=True)])
    corners = [(0.0, 0.0)]
    for threshold in np.quantile(together, np.linspace(1, 0, 400)):
        overlaps, wrong, free = [], 0, 0
        for anomaly_map, counted, lesion in zip(made.maps, made.counted, made.lesions, strict=True):
            above = counted & (np.where(counted, anomaly_map, -np.inf) >= threshold)
            count, labels = cv2.connectedComponents(lesion.astype(np.uint8))
            overlaps += [
                (above & (labels == k)).sum() / (counted & (labels == k)).sum()
                for k in range(1, count)
            ]
            wrong += (above & ~lesion).sum()
            free += (counted & ~lesion).sum()
        corners.append((wrong / free, float(np.mean(overlaps))))
    fpr, pro = zip(*corners, strict=True)
    return float(np.interp(np.linspace(0, most_fpr, 20001), fpr, pro).mean())


def test_pro_takes_every_region_of_every_image_alike(made: Made, found: Localisation) -> None:
    value = figures(found, GROUPS, resamples=20)["pro"]

    assert len(found.regions) == N + 1
    assert value["value"] == pytest.approx(slow_pro(made, PRO_FPR), abs=2e-3)
    assert value["low"] < value["value"] < value["high"]


def test_specks_are_no_regions(made: Made, found: Localisation) -> None:
    specked = Made()
    specked.lesions[3] = specked.lesions[3] | disc(20, 20, 2)
    assert 0 < disc(20, 20, 2).sum() < SMALLEST_REGION_PX

    again = specked.localise()

    assert len(again.regions) == len(found.regions)
    assert again.inside.sum() > found.inside.sum()


def test_oracle_is_the_best_candidate_and_the_label_free_threshold_is_not_chosen(
    made: Made, found: Localisation
) -> None:
    result = figures(found, GROUPS, resamples=20)

    def ious(threshold: float) -> np.ndarray:
        return np.array(
            [
                component_ious(*image, [threshold])[0]
                for image in zip(made.maps, made.lesions, made.counted, strict=True)
            ]
        )

    means = [ious(threshold).mean() for threshold in found.candidates]
    oracle = result["oracle"]
    assert oracle["threshold"] == found.candidates[int(np.argmax(means))]
    assert oracle["iou"]["value"] == pytest.approx(max(means))
    assert oracle["dice"]["value"] == pytest.approx(dice_of(ious(oracle["threshold"])).mean())
    assert result["iou"]["value"] == pytest.approx(ious(2.0).mean())
    assert result["dice"]["value"] == pytest.approx(dice_of(ious(2.0)).mean())
    assert oracle["iou"]["value"] > result["iou"]["value"]


def test_oracle_interval_chooses_anew_in_every_resample(found: Localisation) -> None:
    # one candidate finds the lesions of even images, the other those of odd ones
    either = np.stack([np.arange(N) % 2, 1 - np.arange(N) % 2], axis=1).astype(float)
    apart = replace(found, candidates=np.array([1.0, 2.0]), iou_at=either)

    oracle = figures(apart, [str(n) for n in range(N)], resamples=200)["oracle"]

    assert oracle["iou"]["value"] == oracle["dice"]["value"] == 0.5
    assert oracle["iou"]["low"] == oracle["dice"]["low"] == 0.5, "the better half is half or more"
    assert oracle["iou"]["high"] == oracle["dice"]["high"] > 0.75


def test_a_map_of_few_values_is_counted_exactly(made: Made) -> None:
    coarse = Made()
    coarse.maps = [np.round(anomaly_map) for anomaly_map in coarse.maps]
    scores = np.concatenate([m[c] for m, c in zip(coarse.maps, coarse.counted, strict=True)])
    labels = np.concatenate([m[c] for m, c in zip(coarse.lesions, coarse.counted, strict=True)])

    value = figures(coarse.localise(), GROUPS, resamples=2)["auroc_pooled"]["value"]

    assert value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_a_lesion_that_fills_the_view_leaves_its_overlap_only(made: Made) -> None:
    full = Made()
    full.lesions = [np.ones((256, 256), bool)] * N

    result = figures(full.localise(), GROUPS, resamples=5)

    assert tuple(result) == FIGURES
    assert result["auroc"] is result["auroc_pooled"] is result["pro"] is None
    assert result["iou"]["n"] == N


@pytest.mark.parametrize(("images", "size"), [(1000, 100), (500, 100), (299, 59), (5, 1)])
def test_paper_groups_are_five_disjoint_ones_of_up_to_100(images: int, size: int) -> None:
    groups = paper_groups(images)

    together = np.concatenate(groups)
    assert [len(group) for group in groups] == [size] * 5
    assert len(set(together)) == len(together) and together.max() < images
    np.testing.assert_array_equal(together, np.concatenate(paper_groups(images)))
    assert size == 1 or (np.diff(together) < 0).any(), "drawn, not cut off the front"


def test_paper_figures_are_the_means_of_their_groups(found: Localisation) -> None:
    result = figures(found, GROUPS, resamples=5)["paper_groups"]["iou"]

    means = [found.iou[group].mean() for group in paper_groups(N)]
    assert result["values"] == pytest.approx(means)
    assert result["mean"] == pytest.approx(np.mean(means))
    assert result["spread"] == pytest.approx(np.std(means, ddof=1))
    assert paper_groups(4) == []
