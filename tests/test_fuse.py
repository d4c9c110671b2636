import math

import numpy as np
import pytest

from ccdstream.errors import BundleError
from ccdstream.frames import Fused, Scored
from ccdstream.fuse import RESET_GAP_S, Calibration, Fuser, extrapolation

KNOTS = {"raw": [1.0, 2.0, 4.0], "fraction": [0.0, 0.5, 0.9], "tail_scale": 2.0}
IDENTITY = Calibration(np.array([0.0, 0.999]), np.array([0.0, 0.999]), 1.0)


def scored(raw: float, anomaly_map: np.ndarray | None = None) -> Scored:
    """What a model might say, with a map of 2 x 2 cells."""
    cells = np.zeros((2, 2), np.float32) if anomaly_map is None else anomaly_map
    return Scored(raw, np.zeros(0, np.float32), cells)


def fuser(time_constant_s: float = 0.5) -> Fuser:
    return Fuser(IDENTITY, IDENTITY, time_constant_s)


def smoothed(
    times_s: list[float], scores: list[float], time_constant_s: float = 0.5
) -> list[float]:
    steady = fuser(time_constant_s)
    pairs = zip(times_s, scores, strict=True)
    return [steady.update(time_s, 0.75, scored(score)).smoothed for time_s, score in pairs]


@pytest.mark.parametrize(
    ("raw", "fraction"),
    [
        (-7.0, 0.0),
        (1.0, 0.0),
        (1.5, 0.25),
        (2.0, 0.5),
        (3.0, 0.7),
        (4.0, 0.9),
        (6.0, 1 - 0.1 * math.exp(-1)),
        (8.0, 1 - 0.1 * math.exp(-2)),
        (math.inf, 1.0),
    ],
)
def test_calibration_is_linear_between_knots_and_exponential_beyond(
    raw: float, fraction: float
) -> None:
    assert Calibration.from_dict(KNOTS).apply(np.array(raw)) == pytest.approx(fraction, abs=1e-12)


def test_calibration_of_the_scores_it_was_made_from_is_their_rank() -> None:
    raw = np.sort(np.random.default_rng(0).gamma(2.0, size=500))
    calibration = Calibration(raw, np.arange(500) / 500, tail_scale=1.0)
    counted = np.array([(raw < value).mean() for value in raw])
    np.testing.assert_allclose(calibration.apply(raw), counted, atol=1e-12)


def test_calibration_never_falls_and_stays_in_range() -> None:
    raw = np.linspace(-10, 40, 5001)
    fractions = Calibration.from_dict(KNOTS).apply(raw)
    assert (np.diff(fractions) >= 0).all()
    assert fractions.min() >= 0 and fractions.max() <= 1


def test_calibration_keeps_shape_and_nan() -> None:
    raw = np.array([[1.5, np.nan], [np.nan, 6.0]], np.float32)
    fractions = Calibration.from_dict(KNOTS).apply(raw)
    np.testing.assert_array_equal(np.isnan(fractions), np.isnan(raw))
    assert fractions[0, 0] == pytest.approx(0.25)


def test_calibration_survives_the_manifest() -> None:
    assert Calibration.from_dict(KNOTS).to_dict() == KNOTS


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"raw": [1.0, 2.0]}, "same length"),
        ({"raw": [], "fraction": []}, "same length"),
        ({"raw": [1.0, 4.0, 2.0]}, "raw must be finite and ascending"),
        ({"raw": [1.0, 2.0, math.nan]}, "raw must be finite and ascending"),
        ({"fraction": [0.0, 0.9, 0.5]}, "fraction must be finite and ascending"),
        ({"fraction": [0.0, 0.5, 1.0]}, r"fraction must lie in \[0, 1\)"),
        ({"fraction": [-0.1, 0.5, 0.9]}, r"fraction must lie in \[0, 1\)"),
        ({"tail_scale": 0.0}, "tail_scale must be above 0"),
        ({"tail_scale": "wide"}, "could not convert"),
        ({"raw": "abc"}, "could not convert"),
    ],
)
def test_damaged_calibration_is_refused(change: dict[str, object], says: str) -> None:
    with pytest.raises(BundleError, match=says) as caught:
        Calibration.from_dict(KNOTS | change)
    assert "\n" not in str(caught.value)


def test_missing_calibration_key_is_named() -> None:
    with pytest.raises(BundleError, match="lacks 'tail_scale'"):
        Calibration.from_dict({"raw": [1.0], "fraction": [0.5]})


def test_step_is_followed_to_63_percent_after_one_time_constant() -> None:
    times_s = [frame / 25 for frame in range(14)]
    curve = smoothed(times_s, [0.0] + [0.9] * 13, time_constant_s=0.5)
    for time_s, value in zip(times_s, curve, strict=True):
        assert value == pytest.approx(0.9 * (1 - math.exp(-time_s / 0.5)), abs=1e-9)


def test_smoothing_does_not_depend_on_the_frame_rate() -> None:
    even = smoothed([0.0, *(0.1 + i / 30 for i in range(19))], [0.0] + [0.8] * 19)
    odd = smoothed([0.0, 0.1, 0.11, 0.4, 0.41, 0.6 + 0.1], [0.0] + [0.8] * 5)
    assert even[-1] == pytest.approx(odd[-1], abs=1e-9)


def test_constant_score_stays_as_it_is() -> None:
    assert smoothed([0.0, 0.1, 0.5, 0.6], [0.7] * 4) == pytest.approx([0.7] * 4)


def test_smoothing_looks_back_only() -> None:
    times_s = [i / 25 for i in range(20)]
    scores = list(np.random.default_rng(1).random(20) * 0.9)
    assert smoothed(times_s[:10], scores[:10]) == smoothed(times_s, scores)[:10]


def test_time_constant_zero_does_not_smooth() -> None:
    assert smoothed([0.0, 0.1, 0.2], [0.1, 0.9, 0.2], 0.0) == pytest.approx([0.1, 0.9, 0.2])


@pytest.mark.parametrize(
    ("second_s", "expected"),
    [
        (RESET_GAP_S, 0.9 * (1 - math.exp(-RESET_GAP_S / 0.5))),
        (RESET_GAP_S + 0.001, 0.9),
        (-5.0, 0.9),
    ],
    ids=["longest-bridged", "gap", "time-runs-backwards"],
)
def test_smoothing_starts_anew_after_a_gap(second_s: float, expected: float) -> None:
    assert smoothed([0.0, second_s], [0.0, 0.9])[-1] == pytest.approx(expected)


def test_two_frames_at_the_same_time_leave_the_first_score() -> None:
    assert smoothed([0.0, 0.0], [0.2, 0.9])[-1] == pytest.approx(0.2)


def test_uninformative_frames_do_not_move_the_smoothed_score() -> None:
    steady = fuser()
    before = steady.update(0.0, 0.75, scored(0.3))
    during = [steady.update(t, 0.75, scored(0.9), ("blurred",)) for t in (0.1, 0.2, 0.3)]
    assert [fused.smoothed for fused in during] == [before.smoothed] * 3
    assert [fused.calibrated for fused in during] == pytest.approx([0.9] * 3)


def test_the_first_frame_after_uninformative_ones_weighs_as_one_frame() -> None:
    steady = fuser()
    steady.update(0.0, 0.75, scored(0.3))
    for t in (0.1, 0.2, 0.3):
        steady.update(t, 0.75, scored(0.9), ("washed_out",))
    after = steady.update(0.4, 0.75, scored(0.9))
    assert after.smoothed == pytest.approx(0.3 + (1 - math.exp(-0.1 / 0.5)) * 0.6)


@pytest.mark.parametrize("flagged_s", [0.8, 0.1], ids=["after it", "at it"])
def test_time_that_runs_backwards_among_uninformative_frames_starts_anew(flagged_s: float) -> None:
    steady = fuser()
    steady.update(0.5, 0.75, scored(0.1))
    steady.update(flagged_s, 0.75, scored(0.9), ("blurred",))
    at_s = 0.6 if flagged_s > 0.6 else 0.3
    assert steady.update(at_s, 0.75, scored(0.9)).smoothed == pytest.approx(0.9)


def test_long_uninformative_stretch_is_a_gap() -> None:
    steady = fuser()
    steady.update(0.0, 0.75, scored(0.1))
    for frame in range(1, 40):
        steady.update(frame / 25, 0.75, scored(0.9), ("out_of_body",))
    assert steady.update(40 / 25, 0.75, scored(0.9)).smoothed == pytest.approx(0.9)


def test_smoothed_is_zero_before_the_first_informative_frame() -> None:
    assert fuser().update(0.0, 0.75, scored(0.9), ("too_dark",)).smoothed == 0.0


def test_frame_without_a_score_is_uninformative() -> None:
    steady = fuser()
    steady.update(0.0, 0.75, scored(0.4))
    fused = steady.update(0.1, 0.75, scored(math.nan))
    assert fused.quality == ("mostly_invalid",)
    assert math.isnan(fused.calibrated)
    assert fused.smoothed == pytest.approx(0.4)


def test_heat_is_calibrated_cell_by_cell_with_its_own_calibration() -> None:
    heat_knots = Calibration(np.array([0.0, 10.0]), np.array([0.0, 0.5]), 5.0)
    cells = np.array([[2.0, np.nan], [10.0, 15.0]], np.float32)
    fused = Fuser(IDENTITY, heat_knots, 0.5).update(0.0, 0.75, scored(0.3, cells))
    assert isinstance(fused, Fused)
    assert fused.heat.dtype == np.float32
    expected = [[0.1, np.nan], [0.5, 1 - 0.5 * math.exp(-1)]]
    np.testing.assert_allclose(fused.heat, expected, rtol=1e-6)
    assert (fused.raw, fused.valid_fraction) == (0.3, 0.75)


@pytest.mark.parametrize("time_constant_s", [-0.1, math.nan, math.inf])
def test_time_constant_must_be_a_time(time_constant_s: float) -> None:
    with pytest.raises(ValueError, match="time_constant_s must be 0 or more"):
        fuser(time_constant_s)


@pytest.mark.parametrize(
    ("enter", "fewest"), [(0.5, 1), (0.9, 9), (0.95, 19), (0.99, 99), (0.995, 199), (0.999, 999)]
)
def test_alerts_beyond_the_calibration_frames_are_told_with_how_many_it_takes(
    enter: float, fewest: int
) -> None:
    assert extrapolation(fewest, enter) is None
    assert str(extrapolation(fewest - 1, enter)).endswith(f"Give at least {fewest}.")


def test_what_is_extrapolated_is_said_in_one_sentence() -> None:
    assert extrapolation(8, 0.95) == (
        "8 calibration frames resolve scores up to 0.889; higher ones, and so alerts from 0.95, "
        "are extrapolated. Give at least 19."
    )
    assert str(extrapolation(1, 0.95)).startswith("1 calibration frame resolves scores up to 0.500")
    assert str(extrapolation(1000, 1)).endswith("set alert.enter lower.")
