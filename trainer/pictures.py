"""Pictures of a training run: how its losses went, and what its detectors make of normal frames."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.augment import grid_patches
from trainer.backbone import Normalise
from trainer.detectors.base import Reconstructing
from trainer.detectors.networks import PATCH_PX
from trainer.runs import Run
from trainer.sampling import Pool

_SHOWN = 8
"""Frames in a picture of reconstructions."""
_TILE_PX, _CAPTION_PX = 192, 24
_BRIGHTEST = 0.995
"""Quantile of the residual that is drawn white."""
_FEW_POINTS = 20
_CAPTIONS = (
    "normal frames that were not trained on",
    "their reconstruction",
    f"residual; white: its {_BRIGHTEST} quantile over these frames",
)


@torch.no_grad()
def draw_reconstructions(detector: Reconstructing, pool: Pool, path: Path) -> None:
    """Normal frames above what the detector makes of them, above the first term of its map.

    A detector of patches is shown on the frame's patches, laid side by side.

    Args:
        detector: in eval mode.
        pool: frames that were not trained on; the first few are shown.
    """
    frames = pool.images[:_SHOWN].float() / 255
    inside = pool.valid[:_SHOWN, None].float()
    patches = detector.size_px <= PATCH_PX
    if patches:
        side = detector.size_px
        x, valid = (grid_patches(t, side, side).flatten(0, 1) for t in (frames, inside))
    else:
        x = F.interpolate(frames, size=detector.size_px, mode="area")
        valid = (F.interpolate(inside, size=detector.size_px, mode="area") > 0.5).float()
    device = next(detector.parameters()).device
    normalise = Normalise().to(device)
    x, valid = normalise(x.to(device)), valid.to(device)
    x_hat = detector.reconstruct(x)
    residual = detector(x, valid)[1][:, :1]
    scale = np.quantile(residual.cpu().numpy(), _BRIGHTEST).clip(min=1e-6)
    rows = [normalise.undo(x), normalise.undo(x_hat), (residual / scale).expand(-1, 3, -1, -1)]
    rows = [row.clamp(0, 1).cpu() for row in rows]
    if patches:
        rows = [_laid_out(row, len(frames)) for row in rows]
    picture = np.concatenate(
        [_captioned(row, caption) for row, caption in zip(rows, _CAPTIONS, strict=True)]
    )
    path.write_bytes(cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))[1].tobytes())


def _captioned(row: Tensor, caption: str) -> np.ndarray:
    """Pictures float [n, 3, H, H] in [0, 1] side by side below a line of text: uint8 [h, w, 3]."""
    strip = torch.cat(list(row), dim=2).permute(1, 2, 0).mul(255).round().to(torch.uint8).numpy()
    side = _TILE_PX / row.shape[-1]
    rgb = cv2.resize(np.ascontiguousarray(strip), None, fx=side, fy=side)
    title = np.zeros((_CAPTION_PX, rgb.shape[1], 3), np.uint8)
    place = (6, _CAPTION_PX - 7)
    font = cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(title, caption, place, font, 0.5, (255, 255, 255), 1, cv2.LINE_AA)
    return np.concatenate([title, rgb])


def _laid_out(tiles: Tensor, n: int) -> Tensor:
    """Patches of n frames back in place: [n g g, C, side, side] -> [n, C, g side, g side]."""
    side, c = tiles.shape[-1], tiles.shape[1]
    g = round((len(tiles) // n) ** 0.5)
    x = tiles.reshape(n, g, g, c, side, side).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(n, c, g * side, g * side)


def plot_losses(run: Run) -> Path:
    """Draw every stage's losses over its steps into losses.png."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    stages: dict[str, list[dict[str, Any]]] = {}
    for entry in run.metrics():
        stages.setdefault(entry["stage"], []).append(entry)
    figure = Figure(figsize=(9, 2.6 * max(len(stages), 1)), layout="constrained")
    FigureCanvasAgg(figure)
    for index, (name, entries) in enumerate(stages.items()):
        axes = figure.add_subplot(len(stages), 1, index + 1)
        keys = [k for k in entries[-1] if k not in ("stage", "step", "steps_per_s")]
        for key in keys:
            points = [(e["step"], e[key]) for e in entries if key in e]
            marker = "." if len(points) <= _FEW_POINTS else ""  # one point alone makes no line
            axes.plot(*zip(*points, strict=True), marker=marker, label=key)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    path = run.folder / "losses.png"
    figure.savefig(path, dpi=120)
    return path
