"""What PatchCore and PaDiM share: a frozen backbone's features in every cell of a grid."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ccdstream.errors import ConfigError, DataError
from trainer.backbone import Backbone
from trainer.detectors.base import Detector, highest_mean
from trainer.modes import evaluating
from trainer.sampling import MIN_VALID

Batches = Iterable[tuple[Tensor, Tensor]]
"""(x, inside) as `Detector.forward` takes them, on the detector's device; read once."""


class CellDetector(Detector):
    """A distance to what is normal in every cell; the score is the mean of the highest.

    A cell is `stride_px` wide and high. One of which less than half is valid neither scores nor is
    learned from, and is 0 in the map.
    """

    terms = ("distance",)
    map_terms = ("distance",)

    def __init__(
        self,
        backbone: Backbone,
        size_px: int,
        *,
        strides: tuple[int, ...],
        stride_px: int,
        top_fraction: float,
    ) -> None:
        """`strides`: of the feature maps that are joined.

        Raises:
            ConfigError: the backbone has no feature map of one of the strides.
        """
        super().__init__()
        if missing := [stride for stride in strides if stride not in backbone.channels]:
            raise ConfigError(
                f"the backbone has no feature map of stride {missing[0]}, only of "
                f"{', '.join(map(str, backbone.channels))}. Choose another, or keep more blocks."
            )
        self.size_px = size_px
        self.backbone = backbone.requires_grad_(False)
        self.strides = strides
        self.stride_px = stride_px
        self.grid = size_px // stride_px
        self.channels = sum(backbone.channels[stride] for stride in strides)
        self.top = max(1, round(top_fraction * self.grid**2))

    @abstractmethod
    def distance(self, features: Tensor) -> Tensor:
        """How far from normal: float [N, P, C] of all P cells, row by row -> float [N, P], >= 0."""

    def forward(self, x: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        scored = self.scored(inside)
        distance = self.distance(self.features(x)) * scored
        maps = distance.view(-1, 1, self.grid, self.grid)
        return highest_mean(distance, scored, self.top)[:, None], maps

    def features(self, x: Tensor) -> Tensor:
        """The joined maps on the grid, coarser ones enlarged, finer ones averaged: [N, P, C]."""
        maps = self.backbone.maps(x, coarsest=max(self.strides))
        joined = torch.cat(
            [self._on_grid(self.prepared(maps[stride]), stride) for stride in self.strides], dim=1
        )
        return joined.flatten(2).transpose(1, 2)

    def prepared(self, features: Tensor) -> Tensor:
        """What is done to a feature map before it is joined with the others."""
        return features

    def scored(self, inside: Tensor) -> Tensor:
        """1 for the cells that are valid for the most part, else 0: float [N, P]."""
        return (F.avg_pool2d(inside, self.stride_px) >= MIN_VALID).float().flatten(1)

    def _on_grid(self, features: Tensor, stride: int) -> Tensor:
        if stride > self.stride_px:
            size = (self.grid, self.grid)
            return F.interpolate(features, size=size, mode="bilinear", align_corners=False)
        return F.avg_pool2d(features, self.stride_px // stride)


def learned_from(detector: CellDetector, batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    """Features float [N, P, C] and the cells to learn from, bool [N, P], batch by batch.

    Raises:
        DataError: no cell of any batch is valid.
    """
    cells = 0
    with torch.no_grad(), evaluating(detector):
        for x, inside in batches:
            scored = detector.scored(inside) > 0
            cells += int(scored.sum())
            yield detector.features(x.contiguous(memory_format=torch.channels_last)), scored
    if not cells:
        raise DataError(
            "no frame to learn from has a valid part. Check the frames and the profile."
        )
