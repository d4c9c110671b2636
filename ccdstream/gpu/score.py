"""Views on a GPU in, raw scores and maps on the host out: one copy a batch."""

from collections import deque
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import numpy as np

from ccdstream.engine.base import DeviceEngine
from ccdstream.frames import Scored
from ccdstream.gpu.transfer import ToHost
from ccdstream.gpu.view import DeviceViews
from ccdstream.score import MIN_VALID_SHARE, not_finite

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_CALLS_AHEAD = 2
"""Calls of the engine that are queued on the device: one at work and one that follows at once."""


class DeviceScorer:
    """`ccdstream.score.Scorer` for views in a GPU's memory.

    Whatever it queues goes to the current stream of the views' GPU.
    """

    def __init__(self, engine: DeviceEngine) -> None:
        self._engine = engine
        self._ahead: deque[ToHost] = deque()

    @property
    def place(self) -> "torch.device":
        """The GPU that the views must be on."""
        return self._engine.place

    @property
    def most(self) -> int:
        """Views in one call of the engine."""
        return self._engine.max_batch

    def begin(self, views: DeviceViews) -> "Scoring":
        """Queue the scoring of `views`, at most `most`; waits only while enough is queued.

        Raises:
            EngineError: the engine failed.
        """
        while len(self._ahead) >= _CALLS_AHEAD:
            self._ahead.popleft().array()
        with _on(views.frames.device):
            score, anomaly_map, parts = self._engine.run_on_device(views.frames, views.valid)
            arriving = ToHost(_packed(score, anomaly_map, parts, views.valid))
        self._ahead.append(arriving)
        return Scoring(self._engine, arriving, tuple(anomaly_map.shape[1:]))


class Scoring:
    """Scores on their way to the host."""

    def __init__(self, engine: DeviceEngine, arriving: ToHost, map_size: tuple[int, ...]) -> None:
        self._engine = engine
        self._arriving = arriving
        self._map_size = map_size

    def scored(self) -> list[Scored]:
        """What `Scorer.score` gives. Waits for this batch alone.

        Raises:
            EngineError: a score or a map is not finite.
        """
        packed = self._arriving.array()
        if not packed[:, 1].all():
            raise not_finite(self._engine)
        cells = self._map_size[0] * self._map_size[1]
        parts, maps = np.split(packed[:, 2:], [packed.shape[1] - 2 - cells], axis=1)
        return [
            Scored(raw, part, anomaly_map.reshape(self._map_size))
            for raw, part, anomaly_map in zip(packed[:, 0].tolist(), parts, maps, strict=True)
        ]


def _packed(score: "Tensor", anomaly_map: "Tensor", parts: "Tensor", valid: "Tensor") -> "Tensor":
    """All that the host wants of a batch, in one tensor: the engine's own may be overwritten after.

    Returns:
        float32 [N, 2 + k + h w]: score, 1 where score and map are finite (else 0), parts, and the
        map with NaN as by `ccdstream.score.mask_map`.
    """
    import torch
    from torch.nn import functional as F

    finite = torch.isfinite(score) & torch.isfinite(anomaly_map).flatten(1).all(1)
    height, width = anomaly_map.shape[1:]
    share = F.adaptive_avg_pool2d(valid[:, None].float(), (height, width))[:, 0]
    masked = anomaly_map.masked_fill(share < MIN_VALID_SHARE, torch.nan)
    columns = [score[:, None], finite[:, None].float(), parts, masked.flatten(1)]
    return torch.cat(columns, dim=1)


def _on(device: "torch.device") -> AbstractContextManager[None]:
    """The block queues on this GPU, whichever the thread would take."""
    import torch

    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
