"""Views in, raw anomaly scores and maps out: a batch at a time through an engine."""

from collections.abc import Sequence

import cv2
import numpy as np

from ccdstream.engine.base import Engine
from ccdstream.errors import EngineError
from ccdstream.frames import VIEW_SIZE, Scored, View

MIN_VALID_SHARE = 0.5
"""A map cell is kept where at least this share of its pixels is valid."""


class Scorer:
    """Scores views with an engine.

    A score does not depend on which views share its batch, nor on how many.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def score(self, views: Sequence[View]) -> list[Scored]:
        """Score `views` in one call of the engine, in order.

        Raises:
            EngineError: the engine failed, or gave a score or a map that is not finite.
        """
        if not views:
            return []
        frames = np.empty((len(views), 3, *VIEW_SIZE), np.uint8)
        valid = np.empty((len(views), *VIEW_SIZE), np.bool_)
        for row, view in enumerate(views):
            cv2.split(view.image, list(frames[row]))  # into them; a sixth of a transposed copy
            valid[row] = view.valid
        output = self._engine.run(frames, valid)
        finite = np.isfinite(output.score) & np.isfinite(output.anomaly_map).all(axis=(1, 2))
        if not finite.all():
            raise not_finite(self._engine)
        return [
            Scored(
                raw=float(output.score[row]),
                parts=output.parts[row],
                anomaly_map=mask_map(output.anomaly_map[row], valid[row]),
            )
            for row in range(len(views))
        ]


def not_finite(engine: Engine) -> EngineError:
    """What to raise for a score or a map that is not finite: a NaN would pass every later
    comparison as "not anomalous"."""
    return EngineError(
        f"{engine.name} on {engine.device} gave a score or a map that is not finite. "
        "Check the model here with: ccdstream model verify."
    )


def mask_map(anomaly_map: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """A map with NaN in the cells that show mostly pixels which are not valid.

    Args:
        anomaly_map: float32 [h, w].
        valid: bool [H, W], over the same area.

    Returns:
        float32 [h, w]; NaN where the share of valid pixels in the cell is below 0.5.
    """
    height, width = anomaly_map.shape
    share = cv2.resize(valid.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return np.where(share < MIN_VALID_SHARE, np.float32(np.nan), anomaly_map)
