"""Normal calibration frames -> what the raw numbers mean: standardised terms, fractions, limits."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ccdstream.engine.base import Engine
from trainer.export import MAP_SIZE, Program
from trainer.modes import evaluating
from trainer.sampling import Pool

SCORE_LEVELS = tuple(np.round(np.arange(0, 1.0, 0.02), 4))
MAP_LEVELS = (*np.round(np.arange(0, 0.98, 0.02), 4), 0.98, 0.985, 0.99, 0.995, 0.998, 0.999)
_BATCH = 8


def batches(pool: Pool, size: int = _BATCH) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The pool's views in order: uint8 [n, 3, H, W] and bool [n, H, W]."""
    for start in range(0, len(pool.images), size):
        yield pool.images[start : start + size], pool.valid[start : start + size]


def valid_cells(valid: torch.Tensor) -> torch.Tensor:
    """Which cells of the anomaly map count: at least half valid. bool [N, H, W] -> [N, h, w]."""
    cell = valid.shape[-1] // MAP_SIZE
    return torch.nn.functional.avg_pool2d(valid.float().unsqueeze(1), cell).squeeze(1) >= 0.5


@torch.no_grad()
def standardise(program: Program, pool: Pool) -> None:
    """Give `program` the mean and deviation of each term over the calibration frames, in place.

    The map's terms over all valid cells of all frames together.
    """
    parts: list[torch.Tensor] = []
    cells: list[torch.Tensor] = []
    with evaluating(program):
        for frames, valid in batches(pool):
            part, maps = program.terms(frames, valid)
            parts.append(part)
            cells.append(maps.permute(0, 2, 3, 1)[valid_cells(valid)])
    all_parts, all_cells = torch.cat(parts), torch.cat(cells)
    program.part_mean.copy_(all_parts.mean(dim=0))
    program.part_std.copy_(all_parts.std(dim=0).clamp(min=1e-6))
    program.map_mean.copy_(all_cells.mean(dim=0))
    program.map_std.copy_(all_cells.std(dim=0).clamp(min=1e-6))


def knots(raw: np.ndarray, levels: tuple[float, ...]) -> dict[str, Any]:
    """The calibration curve of raw values of normal frames or pixels.

    Knots at the quantiles `levels`, and one at the largest value, whose fraction is
    n / (n + 1); beyond it an exponential tail, whose scale is the mean excess over the 0.9
    quantile (the maximum-likelihood scale of an exponential tail).

    Args:
        raw: float [n], finite.
        levels: ascending, from 0 to below 1.
    """
    if len(raw) < 2 or not np.isfinite(raw).all():
        raise ValueError(f"calibration needs two or more finite values, got {len(raw)}")
    usable = [level for level in levels if level < len(raw) / (len(raw) + 1)]
    values = [float(v) for v in np.quantile(raw, usable)] + [float(raw.max())]
    fractions = [float(level) for level in usable] + [len(raw) / (len(raw) + 1)]
    high = np.quantile(raw, 0.9)
    excess = raw[raw > high] - high
    scale = float(excess.mean()) if len(excess) else 0.0
    return {
        "raw": values,
        "fraction": fractions,
        "tail_scale": max(scale, 1e-6 * max(1.0, abs(values[-1]))),
    }


@dataclass(frozen=True, eq=False)
class Calibrated:
    """What calibration frames say of the program as it ships."""

    score: dict[str, Any]
    map: dict[str, Any]
    frames: int
    raw: np.ndarray
    """float32 [n], raw scores of the calibration frames."""

    def as_manifest(self) -> dict[str, Any]:
        """The manifest's `calibration`."""
        return {"score": self.score, "map": self.map, "frames": self.frames}


def calibrate(engine: Engine, pool: Pool) -> Calibrated:
    """Run the shipped program over the calibration frames and take its quantiles."""
    scores: list[np.ndarray] = []
    cells: list[np.ndarray] = []
    for frames, valid in batches(pool):
        output = engine.run(frames.numpy(), valid.numpy())
        scores.append(output.score)
        cells.append(output.anomaly_map[valid_cells(valid).numpy()])
    raw = np.concatenate(scores)
    return Calibrated(
        knots(raw, SCORE_LEVELS), knots(np.concatenate(cells), MAP_LEVELS), len(raw), raw
    )
