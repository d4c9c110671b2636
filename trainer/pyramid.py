"""A dense network: the feature maps of a backbone joined into one map of fine cells.

Top down as in feature pyramid networks (Lin et al., CVPR 2017, section 3), with separable
convolutions in place of the full ones.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.backbone import Backbone

FINEST_STRIDE = 4


class Pyramid(nn.Module):
    """Normalised pictures float [N, 3, H, W] -> float [N, `width`, H / 4, W / 4].

    From the coarsest of the backbone's maps down: what is known so far, twice as large, plus the
    next finer map brought to `width` channels; a separable 3x3 convolution smooths each sum.
    """

    def __init__(self, backbone: Backbone, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.width = width
        self.strides = sorted(backbone.channels, reverse=True)  # coarsest first
        self.laterals = nn.ModuleList(
            _Lateral(backbone.channels[stride], width) for stride in self.strides
        )
        self.smoothing = nn.ModuleList(_Separable(width) for _ in self.strides)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(self.backbone.maps(x))

    def join(self, maps: dict[int, Tensor]) -> Tensor:
        """What `forward` gives, of the backbone's maps by stride: for who needs these too."""
        joined = None
        for stride, lateral, smooth in zip(
            self.strides, self.laterals, self.smoothing, strict=True
        ):
            own = lateral(maps[stride])
            joined = smooth(own if joined is None else own + _twice(joined))
        assert joined is not None
        for _ in range(_halvings(self.strides[-1])):
            joined = _twice(joined)
        return joined


class _Lateral(nn.Sequential):
    """1x1 convolution and batch norm: to a common number of channels."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out))


class _Separable(nn.Sequential):
    """Depthwise 3x3, then 1x1, each with batch norm; ReLU6, which 8 bits hold well."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU6(inplace=True),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU6(inplace=True),
        )


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def _halvings(stride: int) -> int:
    """How often `stride` is halved down to the finest."""
    return (stride // FINEST_STRIDE).bit_length() - 1
