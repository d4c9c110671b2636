"""PatchCore: distance to the nearest of a few thousand normal features. Roth et al. 2022.

Departs from the paper: channels are not pooled to 1024; no re-weighting of the score by the
neighbours of the nearest feature (eq. 7); the score is the mean of the highest cells, which with
`top_fraction` 0 is the paper's maximum.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ccdstream.errors import ConfigError
from trainer.backbone import Backbone
from trainer.config import PatchcoreConfig
from trainer.detectors.cells import Batches, CellDetector, learned_from

_STRIDES = (8, 16)
"""Of the feature maps that are joined: the paper's hierarchies 2 and 3."""
_ROWS_AT_ONCE = 1024
"""Of the bank: keeps the distances of a 256x256 frame at 4 MB."""


class PatchCore(CellDetector):
    """Distance to the nearest feature in `bank`, in every 8x8 cell. All zero before the fit."""

    bank: Tensor
    centre: Tensor

    def __init__(self, backbone: Backbone, config: PatchcoreConfig, size_px: int = 256) -> None:
        """Raises:
        ConfigError: the backbone has no map of stride 8 or 16, or a size is 0.
        """
        if not (config.bank_size and config.candidates and config.projection_dim):
            raise ConfigError(
                "PatchCore's bank_size, candidates and projection_dim must be at least 1, got "
                f"{config.bank_size}, {config.candidates} and {config.projection_dim}."
            )
        super().__init__(
            backbone,
            size_px,
            strides=_STRIDES,
            stride_px=_STRIDES[0],
            top_fraction=config.top_fraction,
        )
        self.config = config
        # The bank lies around the mean of all features: short vectors lose less in `distance`.
        self.register_buffer("bank", torch.zeros(config.bank_size, self.channels))
        self.register_buffer("centre", torch.zeros(self.channels))

    def prepared(self, features: Tensor) -> Tensor:
        """Averaged over 3x3 positions: the paper's locally aware features, eq. 2."""
        return F.avg_pool2d(features, 3, stride=1, padding=1, count_include_pad=False)

    def distance(self, features: Tensor) -> Tensor:
        """min over m in bank of |f - m|, eq. 6, as sqrt(|f|^2 + min(|m|^2 - 2 f m))."""
        f = features - self.centre
        nearest = torch.stack(
            [
                F.linear(-2 * f, m, m.square().sum(dim=1)).amin(dim=2)
                for m in self.bank.split(_ROWS_AT_ONCE)
            ]
        ).amin(dim=0)
        return (f.square().sum(dim=2) + nearest).clamp(min=0).sqrt()


def fit_patchcore(detector: PatchCore, batches: Batches, generator: torch.Generator) -> None:
    """Fill the bank: a coreset of the valid cells' features, of at most `candidates` at random.

    Where there are fewer valid cells than the bank has rows, some rows are the same.

    Raises:
        DataError: no cell of any batch is valid.
    """
    config = detector.config
    candidates = torch.empty(0, detector.channels, device=detector.bank.device)
    keys = torch.empty(0, device=detector.bank.device)
    for features, scored in learned_from(detector, batches):
        candidates = torch.cat([candidates, features[scored]])
        drawn = torch.rand(int(scored.sum()), generator=generator, device=generator.device)
        keys = torch.cat([keys, drawn.to(keys.device)])
        if len(keys) > config.candidates:  # those with the smallest keys: a uniform draw of all
            keys, kept = keys.topk(config.candidates, largest=False)
            candidates = candidates[kept]
    chosen = greedy_coreset(candidates, config.bank_size, config.projection_dim, generator)
    detector.centre.copy_(candidates.mean(dim=0))
    detector.bank.copy_(candidates[chosen] - detector.centre)
    detector.eval()


def greedy_coreset(
    features: Tensor, count: int, projection_dim: int, generator: torch.Generator
) -> Tensor:
    """Rows that cover all others: after a random first, ever the one farthest from those chosen.

        m_i = argmax_m min_{n chosen} |psi(m) - psi(n)|    Roth et al. 2022, algorithm 1

    psi is a random projection, by which distances are kept well enough (Johnson and Lindenstrauss)
    for the search alone.

    Args:
        features: float [M, C].
        projection_dim: of psi; features of no more dimensions are searched as they are.

    Returns:
        int64 [count], indices of rows; from the M-th on, repeated ones.
    """
    z = features - features.mean(dim=0)
    if z.shape[1] > projection_dim:
        psi = torch.randn(
            z.shape[1], projection_dim, generator=generator, device=generator.device
        ).to(z.device)
        z = z @ psi
    squared = z.square().sum(dim=1)
    first = torch.randint(len(z), (), generator=generator, device=generator.device)
    farthest = first.to(z.device)
    nearest = torch.full_like(squared, torch.inf)  # squared distance to the nearest chosen
    chosen = torch.empty(count, dtype=torch.int64, device=z.device)
    for index in range(count):
        chosen[index] = farthest
        distance = squared - 2 * (z @ z[farthest]) + squared[farthest]
        nearest = torch.minimum(nearest, distance)
        nearest[farthest] = -torch.inf  # rounding must not choose it again
        farthest = nearest.argmax()
    return chosen
