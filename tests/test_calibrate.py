"""Calibration: what a fraction means, and that it is monotone."""

import numpy as np
import pytest
import torch

from ccdstream.fuse import Calibration
from trainer.calibrate import MAP_LEVELS, SCORE_LEVELS, knots, valid_cells


@pytest.mark.parametrize("levels", [SCORE_LEVELS, MAP_LEVELS])
def test_the_fraction_of_a_quantile_is_that_quantile(levels: tuple[float, ...]) -> None:
    raw = np.random.default_rng(0).gamma(2.0, size=20_000)
    curve = Calibration.from_dict(knots(raw, levels))
    for fraction in (0.1, 0.5, 0.9, 0.97):
        assert float(curve.apply(np.quantile(raw, fraction))) == pytest.approx(fraction, abs=0.004)


def test_beyond_the_largest_normal_frame_the_fraction_still_grows_and_stays_below_one() -> None:
    raw = np.random.default_rng(0).exponential(size=100)
    curve = Calibration.from_dict(knots(raw, SCORE_LEVELS))
    at = curve.apply(raw.max() + np.array([0.0, 1.0, 2.0, 5.0]))
    assert at[0] == pytest.approx(100 / 101)
    assert (np.diff(at) > 0).all()
    assert at[-1] < 1


def test_the_tail_of_exponential_scores_is_found() -> None:
    raw = np.random.default_rng(0).exponential(3.0, size=50_000)
    assert knots(raw, SCORE_LEVELS)["tail_scale"] == pytest.approx(3.0, rel=0.05)


@pytest.mark.parametrize("raw", [[1.0], [1.0, float("nan")], []])
def test_too_few_or_broken_values_are_refused(raw: list[float]) -> None:
    with pytest.raises(ValueError, match="two or more finite values"):
        knots(np.array(raw), SCORE_LEVELS)


def test_a_cell_counts_where_half_of_it_is_valid() -> None:
    valid = torch.zeros(1, 256, 256, dtype=torch.bool)
    valid[:, :2, :4] = True  # 8 of 16 pixels of the first cell
    valid[:, :2, 4:7] = True  # 6 of the second
    cells = valid_cells(valid)
    assert cells.shape == (1, 64, 64)
    assert cells.nonzero().tolist() == [[0, 0, 0]]
