"""PaDiM: a Gaussian of the features at every place of the frame. Defard et al. 2021.

Departs from the paper: the grid is that of stride 16, onto which the finer maps are averaged, so
that the Gaussians stay a few MB (the paper enlarges all maps to stride 4); the score is the mean of
the highest cells, which with `top_fraction` 0 is the paper's maximum.
"""

import torch
from torch import Tensor

from ccdstream.errors import ConfigError
from trainer.backbone import Backbone
from trainer.config import PadimConfig
from trainer.detectors.cells import Batches, CellDetector, learned_from

_STRIDES = (4, 8, 16)
"""Of the feature maps that are joined: the paper's first three layers."""
REGULARISER = 0.01
"""Epsilon of eq. 1."""


class Padim(CellDetector):
    """Mahalanobis distance to the Gaussian of the place, in every 16x16 cell.

    Sigma^-1 is kept as W = L^-1 of the Cholesky factor L of Sigma, so that the distance is |W d|,
    which no rounding makes negative. Standard normal everywhere before the fit.
    """

    chosen: Tensor
    mean: Tensor
    whitening: Tensor

    def __init__(self, backbone: Backbone, config: PadimConfig, size_px: int = 256) -> None:
        """Raises:
        ConfigError: the backbone has no map of stride 4, 8 or 16, or `dims` is 0.
        """
        if not config.dims:
            raise ConfigError("PaDiM's dims must be at least 1, got 0.")
        super().__init__(
            backbone,
            size_px,
            strides=_STRIDES,
            stride_px=_STRIDES[-1],
            top_fraction=config.top_fraction,
        )
        dims = min(config.dims, self.channels)
        self.register_buffer("chosen", torch.arange(dims))
        self.register_buffer("mean", torch.zeros(self.grid**2, dims))
        self.register_buffer("whitening", torch.eye(dims).repeat(self.grid**2, 1, 1))

    def distance(self, features: Tensor) -> Tensor:
        """sqrt((f - mu)^T Sigma^-1 (f - mu)) over the chosen channels, eq. 2."""
        difference = (features.index_select(2, self.chosen) - self.mean).transpose(0, 1)
        white = difference @ self.whitening.transpose(1, 2)  # [P, N, dims]
        return white.square().sum(dim=2).sqrt().transpose(0, 1)


def fit_padim(detector: Padim, batches: Batches, generator: torch.Generator) -> None:
    """Draw the channels, and estimate each place's Gaussian from the frames valid there.

        mu = mean(f),   Sigma = sum (f - mu)(f - mu)^T / (n - 1) + 0.01 I    eq. 1

    A place where no more frames are valid than there are channels, too few for a covariance of full
    rank, gets the Gaussian of all places together.

    Raises:
        DataError: no cell of any batch is valid.
    """
    places, dims = detector.mean.shape
    device = detector.mean.device
    order = torch.randperm(detector.channels, generator=generator, device=generator.device)
    detector.chosen.copy_(order[:dims].sort().values)
    count = torch.zeros(places, dtype=torch.float64, device=device)
    total = torch.zeros(places, dims, dtype=torch.float64, device=device)
    products = torch.zeros(places, dims, dims, dtype=torch.float64, device=device)
    for features, scored in learned_from(detector, batches):
        weight = scored.double()
        f = features.index_select(2, detector.chosen).double() * weight[:, :, None]
        count += weight.sum(dim=0)
        total += f.sum(dim=0)
        products += f.permute(1, 2, 0) @ f.transpose(0, 1)
    few = count <= dims
    for sums in (count, total, products):
        sums[few] = sums.sum(dim=0)
    mean = total / count[:, None]
    spread = products - count[:, None, None] * mean[:, :, None] * mean[:, None, :]
    identity = torch.eye(dims, dtype=torch.float64, device=device)
    covariance = spread / (count - 1).clamp(min=1)[:, None, None] + REGULARISER * identity
    factor = torch.linalg.cholesky(covariance)
    detector.mean.copy_(mean)
    detector.whitening.copy_(torch.linalg.solve_triangular(factor, identity, upper=False))
    detector.eval()
