"""The gate that every engine and precision passes, with engines that are wrong by design."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ccdstream.bundle import Bundle
from ccdstream.engine.base import CalibrationViews, Device, EngineOutput
from ccdstream.engine.parity import check_parity, refer
from ccdstream.errors import EngineError
from tests.bundles import toy_golden, toy_output, write_toy_bundle

Distort = Callable[[EngineOutput], EngineOutput]


class FakeEngine:
    """Gives the closed form, changed by `distort`; remembers the sizes of its batches."""

    name, version = "fake", "1.0"
    device: Device = "cpu"

    def __init__(self, distort: Distort = lambda output: output) -> None:
        self.distort = distort
        self.batches: list[int] = []

    def run(self, frames: np.ndarray, valid: np.ndarray) -> EngineOutput:
        self.batches.append(len(frames))
        return self.distort(toy_output(frames, valid))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_toy_bundle(tmp_path / "toy")


def plus(score: list[float], cell: float = 0.0) -> Distort:
    """Adds to the scores, row by row, and to one cell of the last map."""

    def distort(output: EngineOutput) -> EngineOutput:
        anomaly_map = output.anomaly_map.copy()
        anomaly_map[-1, 7, 9] += cell
        return EngineOutput(output.score + np.array(score, "f4"), anomaly_map, output.parts)

    return distort


def normal_views(count: int) -> CalibrationViews:
    rng = np.random.default_rng(5)
    frames = rng.integers(0, 256, (count, 3, 16, 16), dtype=np.uint8).repeat(16, 2).repeat(16, 3)
    return CalibrationViews(frames, np.ones((count, 256, 256), bool))


def test_an_engine_that_gives_the_same_differs_by_nothing(bundle: Bundle) -> None:
    parity = check_parity(FakeEngine(), bundle)
    assert parity.max_abs_score == parity.max_abs_map == parity.max_abs_calibrated == 0
    assert parity.alert_flips == 0 and parity.map_correlation == 1
    assert parity.passed and parity.failures == []


def test_raw_differences_are_the_largest_and_the_mean_over_golden_frames(bundle: Bundle) -> None:
    parity = check_parity(FakeEngine(plus([0.5, -0.25, 0.0], cell=-0.125)), bundle)
    assert parity.max_abs_score == pytest.approx(0.5)
    assert parity.mean_abs_score == pytest.approx(0.25)
    assert parity.max_abs_map == pytest.approx(0.125)
    assert (parity.golden_frames, parity.normal_frames) == (3, 0)


@pytest.mark.parametrize(
    ("score", "cell", "passed"),
    [
        ([0.0, 0.0, 0.0], 0.0, True),
        ([0.0, 5e-5, 0.0], 5e-5, True),
        ([0.0, 2e-4, 0.0], 0.0, False),
        ([0.0, -2e-4, 0.0], 0.0, False),
        ([0.0, 0.0, 0.0], 2e-4, False),
        ([0.0, np.nan, 0.0], 0.0, False),
        ([0.0, np.inf, 0.0], 0.0, False),
        ([0.0, 0.0, 0.0], np.nan, False),
    ],
)
def test_it_passes_within_both_raw_limits_only(
    bundle: Bundle, score: list[float], cell: float, passed: bool
) -> None:
    assert check_parity(FakeEngine(plus(score, cell)), bundle).passed is passed


def test_golden_frames_are_scored_in_batches_and_all_of_them(tmp_path: Path) -> None:
    bundle = write_toy_bundle(tmp_path / "toy", golden=toy_golden(rows=19))
    engine = FakeEngine()
    assert check_parity(engine, bundle).golden_frames == 19
    assert sum(engine.batches) == 19
    assert max(engine.batches) <= 8


def test_calibrated_scores_flips_and_maps_are_held_against_a_trusted_engine(
    bundle: Bundle,
) -> None:
    """Right on the golden frames, and off on the normal ones: a gate without them would pass it."""
    reference = refer(normal_views(5), FakeEngine())

    def off_where_five(output: EngineOutput) -> EngineOutput:
        if len(output.score) != 5:
            return output
        shift = np.array([-0.4, 0, 0, 0, 0], np.float32)
        return EngineOutput(output.score + shift, output.anomaly_map, output.parts)

    parity = check_parity(FakeEngine(off_where_five), bundle, reference)
    assert parity.normal_frames == 5 and parity.max_abs_score == 0
    assert parity.max_abs_calibrated > 0.1
    assert parity.mean_abs_calibrated == pytest.approx(parity.max_abs_calibrated / 8)
    assert [name.split(" ")[0] for name in parity.failures] == ["calibrated", "mean"]


def test_a_frame_on_the_other_side_of_the_threshold_is_a_flip(bundle: Bundle) -> None:
    enter = bundle.alert["enter"]
    knots = bundle.calibration["score"]
    raw = float(np.interp(enter, knots["fraction"], knots["raw"]))
    parity = check_parity(
        FakeEngine(lambda o: EngineOutput(np.full_like(o.score, raw + 1), o.anomaly_map, o.parts)),
        bundle,
    )
    golden = bundle.golden.score
    assert parity.alert_flips == pytest.approx(float((golden < raw).mean()))
    assert any("alert flips" in failure for failure in parity.failures)


def test_maps_that_do_not_correlate_fail(bundle: Bundle) -> None:
    def mirrored(output: EngineOutput) -> EngineOutput:
        return EngineOutput(output.score, output.anomaly_map[:, ::-1].copy(), output.parts)

    parity = check_parity(FakeEngine(mirrored), bundle, refer(normal_views(2), FakeEngine()))
    assert parity.map_correlation < 0.5
    assert any(failure.startswith("map correlation") for failure in parity.failures)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda o: EngineOutput(o.score.astype("f2"), o.anomaly_map, o.parts),
            "fake gives what is not an output",
        ),
        (
            lambda o: EngineOutput(o.score, o.anomaly_map[:, ::2].copy(), o.parts),
            r"fake gives maps \[3, 32, 64\] for expected ones of \[3, 64, 64\]",
        ),
    ],
)
def test_outputs_that_are_not_the_formats_fail_the_gate_with_a_sentence(
    bundle: Bundle, change: Distort, says: str
) -> None:
    with pytest.raises(EngineError, match=says):
        check_parity(FakeEngine(change), bundle)


def test_what_is_measured_stands_beside_its_limit_in_words(bundle: Bundle) -> None:
    text = str(check_parity(FakeEngine(), bundle, refer(normal_views(2), FakeEngine())))
    assert "3 golden frames and 2 normal ones" in text
    assert "score 0 (limit 0.0001)" in text and "maps correlate by 1.0000 (0.99)" in text
