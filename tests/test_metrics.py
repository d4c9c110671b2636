"""Figures against scikit-learn, closed forms and invariances; the bootstrap against what it is."""

from dataclasses import astuple

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, jaccard_score, roc_auc_score
from sklearn.metrics import roc_curve as sklearn_roc_curve

from trainer.metrics import (
    area_under_pro,
    auroc,
    average_precision,
    component_ious,
    dice_of,
    estimate,
    estimate_rate,
    estimate_weighted,
    largest_component,
    map_correlations,
    mean,
    pixel_auroc,
    pooled_auroc,
    roc_curve,
    spearman,
    weighted_mean,
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


@pytest.mark.parametrize("ties", [False, True], ids=["no ties", "ties"])
def test_roc_curve_is_that_of_scikit_learn_and_holds_the_auroc(ties: bool) -> None:
    normal, abnormal = two_samples(2, ties=ties)

    false_rate, true_rate = roc_curve(normal, abnormal)

    expected = sklearn_roc_curve(
        np.repeat([0, 1], [57, 31]), np.concatenate([normal, abnormal]), drop_intermediate=False
    )
    np.testing.assert_allclose(false_rate, expected[0], atol=1e-12)
    np.testing.assert_allclose(true_rate, expected[1], atol=1e-12)
    area = (np.diff(false_rate) * (true_rate[1:] + true_rate[:-1]) / 2).sum()
    assert area == pytest.approx(auroc(normal, abnormal), abs=1e-12)


def smooth_map(seed: int, size: int = 48) -> np.ndarray:
    noise = np.random.default_rng(seed).random((size // 6, size // 6))
    return np.kron(noise, np.ones((6, 6))) + np.random.default_rng(seed).random((size, size)) / 9


@pytest.mark.parametrize("seed", range(4))
def test_component_ious_are_those_of_scikit_learn(seed: int) -> None:
    anomaly_map, lesion = smooth_map(seed), square(10, 14, 20, size=48)
    valid = ~square(0, 30, 18, size=48)
    garbage = np.where(valid, anomaly_map, 1e6)
    thresholds = [-1.0, 0.2, 0.5, 0.8, 9.0]

    ious = component_ious(garbage, lesion, valid, thresholds)

    for threshold, iou in zip(thresholds, ious, strict=True):
        found = largest_component(valid & (anomaly_map > threshold))
        pixels = (lesion[valid], found[valid])
        assert iou == pytest.approx(jaccard_score(*pixels), abs=1e-12)
        assert dice_of(iou) == pytest.approx(f1_score(*pixels), abs=1e-12)
    assert ious[-1] == 0.0, "nothing lies above the last threshold"


def counts_of(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.diff(np.searchsorted(np.sort(values), edges, side="right"), prepend=0)


def test_pooled_auroc_is_that_of_the_values_in_their_bins() -> None:
    random = np.random.default_rng(0)
    outside, inside = random.normal(size=4000), random.normal(1, size=900)
    together = np.concatenate([outside, inside])
    edges = np.append(np.quantile(together, np.linspace(0, 1, 513)[1:-1]), np.inf)
    counts = [counts_of(values, edges) for values in (outside, inside)]

    value = pooled_auroc(*counts)

    binned = [np.searchsorted(edges, values, side="left") for values in (outside, inside)]
    assert value == pytest.approx(auroc(*binned), abs=1e-12)
    shared = (counts[0] / 4000 * counts[1] / 900).sum()
    assert abs(value - auroc(outside, inside)) <= shared / 2 < 0.0012
    # every row by itself
    both = pooled_auroc(np.stack([counts[0], counts[1]]), np.stack([counts[1], counts[0]]))
    np.testing.assert_allclose(both, [value, 1 - value], atol=1e-12)
    assert np.isnan(pooled_auroc(np.zeros(3), np.ones(3)))


def slow_pro(
    anomaly_map: np.ndarray, regions: list[np.ndarray], outside: np.ndarray, most_fpr: float
) -> float:
    """By every threshold there is, and a fine integral."""
    corners = [(0.0, 0.0)]
    for threshold in np.unique(anomaly_map)[::-1]:
        above = anomaly_map >= threshold
        overlaps = [above[region].mean() for region in regions]
        corners.append((above[outside].mean(), float(np.mean(overlaps))))
    fpr, pro = zip(*corners, strict=True)
    grid = np.linspace(0, most_fpr, 20001)
    return float(np.interp(grid, fpr, pro).mean())


def test_area_under_pro_is_that_of_every_threshold() -> None:
    anomaly_map = smooth_map(7)
    regions = [square(4, 4, 5, size=48), square(20, 20, 16, size=48), square(40, 2, 3, size=48)]
    outside = ~(regions[0] | regions[1] | regions[2])
    edges = np.unique(anomaly_map)
    overlap = np.mean([counts_of(anomaly_map[r], edges) / r.sum() for r in regions], axis=0)

    for most_fpr in (0.05, 0.3, 1.0):
        area = area_under_pro(counts_of(anomaly_map[outside], edges), overlap, most_fpr=most_fpr)
        expected = slow_pro(anomaly_map, regions, outside, most_fpr)
        assert area == pytest.approx(expected, abs=3e-4)


def test_a_small_region_weighs_as_much_in_pro_as_a_large_one() -> None:
    # the large region in the top bin, the small one in the lowest
    shares = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    outside = np.array([10.0, 90.0, 0.0])

    area = area_under_pro(outside, shares.mean(axis=0), most_fpr=0.3)

    assert area == pytest.approx(0.5)
    assert area_under_pro(outside, shares[0], most_fpr=0.3) == pytest.approx(1.0)
    flat = area_under_pro(np.array([5.0]), np.array([1.0]), most_fpr=0.3)
    assert flat == pytest.approx(0.15), "a map that says nothing has half the limit"
    assert np.isnan(area_under_pro(np.zeros(3), shares[0], most_fpr=0.3))


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


@pytest.mark.parametrize("groups", [2, 15, 200])
def test_a_rate_of_none_or_all_is_as_uncertain_as_the_exact_binomial(groups: int) -> None:
    names = [str(n // 3) for n in range(3 * groups)]  # three copies say no more than one

    none, every = (estimate_rate(np.full(3 * groups, hit), names) for hit in (0.0, 1.0))

    assert (none.value, none.low, every.value, every.high) == (0.0, 0.0, 1.0, 1.0)
    for end in (none.high, 1 - (every.low or 0.0)):  # where seeing none has a chance of 2.5 %
        assert end is not None and (1 - end) ** groups == pytest.approx(0.025)
    assert none.n == 3 * groups


def test_a_rate_between_is_the_bootstraps_and_one_group_has_no_interval() -> None:
    hits, names = np.array([0.0, 1.0, 0.0]), list("abc")

    assert estimate_rate(hits, names) == estimate_weighted(weighted_mean(hits), names)
    assert estimate_rate(hits[:1], ["a"]).high is None


def test_weights_say_the_same_as_copies() -> None:
    values = np.random.default_rng(0).normal(size=60)
    groups = [str(n // 3) for n in range(60)]

    weighted = estimate_weighted(weighted_mean(values), groups)
    copied = estimate(mean, (values, groups))

    assert astuple(weighted) == pytest.approx(astuple(copied), abs=1e-12)


def test_resamples_where_a_statistic_is_not_defined_are_left_out() -> None:
    values = np.array([np.nan, 1.0, 2.0, 3.0])

    def without_the_first(times: np.ndarray) -> np.ndarray:
        drawn = times[:, 1:].sum(axis=1)
        total = times[:, 1:] @ values[1:]
        return np.divide(total, drawn, out=np.full(len(times), np.nan), where=drawn > 0)

    figure = estimate_weighted(without_the_first, list("abcd"))

    assert (figure.value, figure.low, figure.high, figure.n) == (2.0, 1.0, 3.0, 4)
    alone = estimate_weighted(weighted_mean(values[1:]), ["a"] * 3)
    assert (alone.value, alone.low, alone.high) == (2.0, None, None)


def test_spearman_is_its_closed_form_without_ties_and_knows_no_scale() -> None:
    random = np.random.default_rng(0)
    a, b = random.permutation(40), random.permutation(40)
    wanted = 1 - 6 * ((a - b) ** 2).sum() / (40 * (40**2 - 1))
    assert spearman(a, b) == pytest.approx(wanted)
    assert spearman(np.exp(a / 9), 3.0 * b - 7) == pytest.approx(wanted)


def test_values_that_are_tied_share_their_mean_rank() -> None:
    wanted = np.corrcoef([1, 2.5, 2.5, 4], [2, 1, 3, 4])[0, 1]
    assert spearman(np.array([0, 5, 5, 9.0]), np.array([2, 1, 3, 4.0])) == pytest.approx(wanted)


def test_maps_correlate_over_what_counts_alone() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 3, 8, 8))
    counted = random.random((3, 8, 8)) < 0.5
    a[~counted] = 1e9
    b[2] = 4.0
    found = map_correlations(a, b, counted)
    for index in range(2):
        cells = counted[index]
        assert found[index] == pytest.approx(np.corrcoef(a[index][cells], b[index][cells])[0, 1])
    assert np.isnan(found[2])
