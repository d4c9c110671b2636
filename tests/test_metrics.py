"""Figures against scikit-learn, closed forms and invariances; the bootstrap against what it is."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from trainer.metrics import (
    auroc,
    average_precision,
    dice,
    estimate,
    iou,
    largest_component,
    mean,
    pixel_auroc,
)


def two_samples(seed: int, *, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    normal, abnormal = random.normal(size=57), random.normal(0.7, size=31)
    return (normal.round(), abnormal.round()) if ties else (normal, abnormal)


@pytest.mark.parametrize("ties", [False, True], ids=["no ties", "ties"])
@pytest.mark.parametrize("seed", range(5))
def test_auroc_and_average_precision_are_those_of_scikit_learn(seed: int, ties: bool) -> None:
    normal, abnormal = two_samples(seed, ties=ties)
    labels = np.repeat([0, 1], [len(normal), len(abnormal)])
    scores = np.concatenate([normal, abnormal])

    assert auroc(normal, abnormal) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert average_precision(normal, abnormal) == pytest.approx(
        average_precision_score(labels, scores), abs=1e-12
    )


@pytest.mark.parametrize(
    ("normal", "abnormal", "value"),
    [([0, 1], [2, 3], 1.0), ([2, 3], [0, 1], 0.0), ([5, 5], [5], 0.5), ([0, 2], [1], 0.5)],
    ids=["apart", "upside down", "all equal", "between"],
)
def test_auroc_of(normal: list[float], abnormal: list[float], value: float) -> None:
    assert auroc(np.array(normal), np.array(abnormal)) == value


def test_auroc_is_of_ranks_and_turns_over_with_the_sign() -> None:
    normal, abnormal = two_samples(3, ties=True)

    value = auroc(normal, abnormal)

    assert auroc(np.exp(normal), np.exp(abnormal)) == value
    assert auroc(-normal, -abnormal) == pytest.approx(1 - value, abs=1e-12)


def test_average_precision_of_equal_scores_is_the_share_of_abnormal() -> None:
    assert average_precision(np.zeros(30), np.zeros(10)) == 0.25


@pytest.mark.parametrize("bad", [np.array([]), np.array([0.0, np.nan]), np.zeros((2, 2))])
def test_what_cannot_be_ranked_is_a_mistake(bad: np.ndarray) -> None:
    for figure in (auroc, average_precision):
        with pytest.raises(ValueError, match=r"normal must be \[N\]"):
            figure(bad, np.ones(3))
        with pytest.raises(ValueError, match=r"abnormal must be \[N\]"):
            figure(np.ones(3), bad)


def square(top: int, left: int, side: int, size: int = 16) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_pixel_auroc_ignores_what_is_not_valid() -> None:
    lesion, valid = square(4, 4, 6), square(0, 0, 8)
    anomaly_map = np.random.default_rng(0).random((16, 16))
    expected = roc_auc_score(lesion[valid], anomaly_map[valid])

    assert pixel_auroc(anomaly_map, lesion, valid) == pytest.approx(expected, abs=1e-12)
    garbage = np.where(valid, anomaly_map, np.nan)
    assert pixel_auroc(garbage, lesion, valid) == pytest.approx(expected, abs=1e-12)


def test_pixel_auroc_needs_pixels_of_both_kinds() -> None:
    anomaly_map, valid = np.ones((16, 16)), square(0, 0, 4)

    assert pixel_auroc(anomaly_map, square(8, 8, 4), valid) is None
    assert pixel_auroc(anomaly_map, square(0, 0, 8), valid) is None


def test_overlap_of_two_squares() -> None:
    a, b, everywhere = square(0, 0, 4), square(2, 2, 4), np.ones((16, 16), bool)

    assert iou(a, b, everywhere) == pytest.approx(4 / 28)
    assert dice(a, b, everywhere) == pytest.approx(8 / 32)
    assert iou(a, a, everywhere) == dice(a, a, everywhere) == 1.0
    assert iou(a, square(8, 8, 4), everywhere) == dice(a, square(8, 8, 4), everywhere) == 0.0


def test_overlap_counts_valid_pixels_only() -> None:
    a, b, valid = square(0, 0, 4), square(2, 2, 4), square(0, 0, 4)

    assert iou(a, b, valid) == pytest.approx(4 / 16)
    assert dice(a, b, valid) == pytest.approx(8 / 20)
    with pytest.raises(ValueError, match="both empty"):
        iou(a, b, square(10, 10, 4))


def test_largest_component_is_one_part_with_its_diagonal_neighbours() -> None:
    staircase = np.eye(16, dtype=bool)
    staircase[12:, 12:] = False
    mask = staircase | square(13, 2, 3)

    largest = largest_component(mask)

    np.testing.assert_array_equal(largest, staircase)  # 12 pixels against 9
    assert largest.dtype == np.bool_
    assert not largest_component(np.zeros((4, 4), bool)).any()


def test_estimate_is_the_figure_with_an_interval_around_it() -> None:
    normal, abnormal = two_samples(1, ties=False)
    samples = ((normal, list("ab" * 28 + "c")), (abnormal, [str(n) for n in range(31)]))

    figure = estimate(auroc, *samples)

    assert figure.value == auroc(normal, abnormal)
    assert figure.low is not None and figure.high is not None
    assert figure.low < figure.value < figure.high
    assert figure.n == 88
    assert estimate(auroc, *samples) == figure
    assert estimate(auroc, *samples, seed=1) != figure


def test_interval_of_a_mean_is_that_of_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=400)

    figure = estimate(mean, (values, [str(n) for n in range(400)]), resamples=4000)

    error = values.std() / 20
    assert figure.low == pytest.approx(figure.value - 1.96 * error, abs=0.15 * error)
    assert figure.high == pytest.approx(figure.value + 1.96 * error, abs=0.15 * error)


def test_repeating_every_image_in_its_group_makes_nothing_surer() -> None:
    values = np.random.default_rng(0).normal(size=40)
    groups = [f"{n:02d}" for n in range(40)]

    once = estimate(mean, (values, groups))
    thrice = estimate(mean, (np.repeat(values, 3), list(np.repeat(groups, 3))))

    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))


def test_one_group_has_no_interval() -> None:
    figure = estimate(mean, (np.arange(5.0), ["same"] * 5))

    assert (figure.value, figure.low, figure.high, figure.n) == (2.0, None, None, 5)


def test_each_value_needs_a_group() -> None:
    with pytest.raises(ValueError, match="each value needs a group, got 2 and 1"):
        estimate(mean, (np.arange(2.0), ["a"]))
