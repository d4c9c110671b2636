"""What frozen features say of a whole frame: where a lesion may be, and how odd the frame is.

One pass of one backbone serves both.
"""

import torch
from torch import Tensor

from trainer.backbone import Backbone
from trainer.config import FeaturesConfig, LocaliserConfig
from trainer.detectors.base import Detector
from trainer.detectors.frame_gaussian import FrameGaussian
from trainer.detectors.localiser import Localiser, cells_scored


class Features(Detector):
    """A frozen backbone with a localiser on it, a Gaussian of normal frames, or both."""

    def __init__(
        self,
        backbone: Backbone,
        config: FeaturesConfig,
        localiser: LocaliserConfig,
        size_px: int = 256,
    ) -> None:
        super().__init__()
        self.size_px = size_px
        self.backbone = backbone.requires_grad_(False)
        self.localiser = Localiser(backbone.channels, localiser) if localiser.steps else None
        self.gaussian = FrameGaussian(backbone.channels) if config.frame_gaussian else None
        self.map_terms = ("lesion",) if self.localiser else ()
        self.terms = self.map_terms + (("frame_distance",) if self.gaussian else ())

    def forward(self, x: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.backbone.maps(x)
        scores, pictures = [], []
        if self.localiser is not None:
            logits = self.localiser(maps)
            scores.append(self.localiser.score(logits, inside))
            pictures.append(logits * cells_scored(inside))
        if self.gaussian is not None:
            scores.append(self.gaussian(maps, inside))
        no_map = inside[:, :0]
        return torch.stack(scores, dim=1), torch.cat(pictures, dim=1) if pictures else no_map
