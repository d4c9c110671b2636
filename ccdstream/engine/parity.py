"""Whether an engine gives what the shipped program gives: one gate for every engine and precision.

Two kinds of frames are compared. The golden frames of the bundle, with the outputs that the
exporting machine got; and, where they are given, views of normal frames such as the bundle was
calibrated on, with the outputs of a trusted engine on the CPU. The limits stand in the manifest:

    score_abs, map_abs              largest difference of raw score and raw map; golden frames
    calibrated_abs, calibrated_mean largest and mean difference of the calibrated score
    alert_flips                     share of frames of which one is above the alert threshold and
                                    the other is not
    map_correlation                 least Pearson correlation of a frame's map

A raw score means little by itself far from its normal range, so the raw limits hold on the golden
frames alone, and the others on all.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ccdstream.bundle import Bundle
from ccdstream.engine.base import CalibrationViews, Engine, EngineOutput
from ccdstream.errors import EngineError
from ccdstream.fuse import Calibration

BATCH = 8
"""Most frames in one call: bounds the memory that the gate takes."""


@dataclass(frozen=True, slots=True)
class Parity:
    """How far an engine's outputs are from the ones it should give."""

    max_abs_score: float
    mean_abs_score: float
    max_abs_map: float
    """Of the golden frames, raw."""
    max_abs_calibrated: float
    mean_abs_calibrated: float
    alert_flips: float
    """Share of frames, in [0, 1]."""
    map_correlation: float
    """The least of any frame, in [-1, 1]."""
    golden_frames: int
    normal_frames: int
    limits: dict[str, float]
    """As the manifest names them."""

    @property
    def failures(self) -> list[str]:
        """What is beyond its limit, in words; none where the engine may be used. NaN is beyond."""
        limits = self.limits
        measured = (
            ("score", self.max_abs_score, limits["score_abs"]),
            ("map", self.max_abs_map, limits["map_abs"]),
            ("calibrated score", self.max_abs_calibrated, limits["calibrated_abs"]),
            ("mean calibrated score", self.mean_abs_calibrated, limits["calibrated_mean"]),
            ("share of alert flips", self.alert_flips, limits["alert_flips"]),
        )
        failures = [
            f"{name} {value:.2g} (limit {limit:.2g})"
            for name, value, limit in measured
            if not value <= limit
        ]
        least = limits["map_correlation"]
        if not self.map_correlation >= least:
            failures.append(f"map correlation {self.map_correlation:.4g} (at least {least:.4g})")
        return failures

    @property
    def passed(self) -> bool:
        """Whether everything is within its limits."""
        return not self.failures

    def __str__(self) -> str:
        limits = self.limits
        frames = f"{self.golden_frames} golden frames"
        if self.normal_frames:
            frames += f" and {self.normal_frames} normal ones"
        return (
            f"largest differences over {frames}: score {self.max_abs_score:.2g} "
            f"(limit {limits['score_abs']:.2g}), map {self.max_abs_map:.2g} "
            f"({limits['map_abs']:.2g}), calibrated score {self.max_abs_calibrated:.2g} "
            f"({limits['calibrated_abs']:.2g}), {self.alert_flips:.2g} of the alerts flip "
            f"({limits['alert_flips']:.2g}), maps correlate by {self.map_correlation:.4f} "
            f"({limits['map_correlation']:.4g})"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """Views of normal frames and what a trusted engine says of them."""

    views: CalibrationViews
    output: EngineOutput


def refer(views: CalibrationViews, trusted: Engine) -> Reference:
    """Have a trusted engine say what another should.

    Raises:
        EngineError: it failed.
    """
    return Reference(views, _outputs(trusted, views.frames, views.valid))


def check_parity(engine: Engine, bundle: Bundle, reference: Reference | None = None) -> Parity:
    """Hold an engine against the golden outputs of a bundle, and against a reference.

    Raises:
        EngineError: the engine failed, or gives outputs of another type or size.
    """
    golden = bundle.golden
    expected = EngineOutput(golden.score, golden.anomaly_map, golden.parts)
    output = _outputs(engine, golden.frames, golden.valid)
    _same_sizes(engine, output, expected)
    pairs = [(output, expected)]
    if reference is not None:
        views = reference.views
        output = _outputs(engine, views.frames, views.valid)
        _same_sizes(engine, output, reference.output)
        pairs.append((output, reference.output))
    score_of = Calibration.from_dict(bundle.calibration["score"])
    enter = bundle.alert["enter"]
    with np.errstate(invalid="ignore"):  # infinity less infinity is NaN, and does not pass
        raw, raw_map = (
            np.abs(pairs[0][0].score - golden.score),
            np.abs(pairs[0][0].anomaly_map - golden.anomaly_map),
        )
        calibrated = [tuple(score_of.apply(each.score) for each in pair) for pair in pairs]
        apart = np.concatenate([np.abs(got - wanted) for got, wanted in calibrated])
    flips = np.concatenate([(got >= enter) != (wanted >= enter) for got, wanted in calibrated])
    return Parity(
        max_abs_score=float(raw.max()),
        mean_abs_score=float(raw.mean()),
        max_abs_map=float(raw_map.max()),
        max_abs_calibrated=float(apart.max()),
        mean_abs_calibrated=float(apart.mean()),
        alert_flips=float(flips.mean()),
        map_correlation=min(_correlations(pairs)),
        golden_frames=len(golden.score),
        normal_frames=0 if reference is None else len(reference.output.score),
        limits=bundle.parity,
    )


def _outputs(engine: Engine, frames: np.ndarray, valid: np.ndarray) -> EngineOutput:
    batches = [slice(start, start + BATCH) for start in range(0, len(frames), BATCH)]
    try:
        outputs = [engine.run(frames[rows], valid[rows]) for rows in batches]
    except ValueError as error:  # the frames are inputs, so it is what came out
        raise EngineError(f"{engine.name} gives what is not an output: {error}") from error
    return EngineOutput(
        np.concatenate([output.score for output in outputs]),
        np.concatenate([output.anomaly_map for output in outputs]),
        np.concatenate([output.parts for output in outputs]),
    )


def _same_sizes(engine: Engine, output: EngineOutput, expected: EngineOutput) -> None:
    for name, got, wanted in (
        ("scores", output.score, expected.score),
        ("maps", output.anomaly_map, expected.anomaly_map),
        ("parts", output.parts, expected.parts),
    ):
        if got.shape != wanted.shape:
            raise EngineError(
                f"{engine.name} gives {name} {list(got.shape)} for expected ones of "
                f"{list(wanted.shape)}"
            )


def _correlations(pairs: Iterable[tuple[EngineOutput, EngineOutput]]) -> list[float]:
    """Of each frame's map; 1 for two equal maps, also where nothing varies."""
    found = []
    for got, wanted in pairs:
        for one, other in zip(got.anomaly_map, wanted.anomaly_map, strict=True):
            if np.array_equal(one, other):
                found.append(1.0)
                continue
            a, b = one - one.mean(dtype=np.float64), other - other.mean(dtype=np.float64)
            scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
            found.append(float((a * b).sum()) / scale if scale > 0 else 0.0)
    return found
