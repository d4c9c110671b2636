"""Networks that detectors share: a decoder from a latent to a picture, a critic of pictures.

The residual blocks of WGAN-GP (Gulrajani et al. 2017), which f-AnoGAN's released code and IGD's
have in common, in the sizes of IGD's.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from trainer.config import Norm

PATCH_PX = 32
"""Side of the paper's patches; above it a model sees whole frames."""


class ChannelAffine(nn.Module):
    """A learned scale and shift per channel: batch norm that never normalises."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.shift = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class UpBlock(nn.Module):
    """Residual block that doubles height and width: [N, a, H, W] -> [N, b, 2H, 2W]."""

    def __init__(self, c_in: int, c_out: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        up = partial(nn.Upsample, scale_factor=2, mode="nearest")
        self.main = nn.Sequential(
            norm(c_in),
            nn.ReLU(),
            up(),
            nn.Conv2d(c_in, c_out, 3, padding=1, bias=False),
            norm(c_out),
            nn.ReLU(),
            nn.Conv2d(c_out, c_out, 3, padding=1),
        )
        # 1x1 before the upsampling: the same values as after it, at a quarter of the cost
        self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1), up())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.main(x) + self.shortcut(x)
        return out


class DownBlock(nn.Module):
    """Residual block that halves height and width: [N, a, H, W] -> [N, b, H/2, W/2].

    Layer norm over (C, H, W), as WGAN-GP critics have.
    """

    def __init__(self, c_in: int, c_out: int, size_px: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.LayerNorm([c_in, size_px, size_px]),
            nn.ReLU(),
            nn.Conv2d(c_in, c_in, 3, padding=1, bias=False),
            nn.LayerNorm([c_in, size_px, size_px]),
            nn.ReLU(),
            nn.Conv2d(c_in, c_out, 3, padding=1),
            nn.AvgPool2d(2),
        )
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(c_in, c_out, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.main(x) + self.shortcut(x)
        return out


def _widths(width: float, channels: Iterable[int]) -> list[int]:
    return [max(8, int(c * width) // 8 * 8) for c in channels]


class Decoder(nn.Module):
    """g: latent float [N, D] -> normalised picture float [N, 3, size, size], no final squashing.

    At 256 an up-convolution to 8x8, four residual doublings to 128 and an up-convolution to the
    picture; at 32 three residual doublings.
    """

    def __init__(self, latent_dim: int, size_px: int, width: float, norm_name: Norm) -> None:
        super().__init__()
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d if norm_name == "batch" else ChannelAffine
        whole = size_px > PATCH_PX
        doublings = int(math.log2(size_px // 4)) - (2 if whole else 0)
        plan = [512, *([512, 256, 128, 64] if whole else [256, 128, 64])][: doublings + 1]
        widths = _widths(width, plan)
        self._start = widths[0]
        self.project = nn.Linear(latent_dim, widths[0] * 16)
        blocks: list[nn.Module] = []
        if whole:
            blocks += [nn.Upsample(scale_factor=2), nn.Conv2d(widths[0], widths[0], 3, padding=1)]
        blocks += [UpBlock(a, b, norm) for a, b in pairwise(widths)]
        blocks += [norm(widths[-1]), nn.ReLU()]
        if whole:
            blocks += [nn.Upsample(scale_factor=2), nn.Conv2d(widths[-1], 3, 5, padding=2)]
        else:
            blocks += [nn.Conv2d(widths[-1], 3, 3, padding=1)]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.blocks(self.project(z).view(-1, self._start, 4, 4))
        return out


class Critic(nn.Module):
    """D: picture float [N, 3, size, size] -> one number each, float [N]; no final squashing.

    In IGD the mixing weight that it sees, in f-AnoGAN how real the picture looks.
    """

    def __init__(self, size_px: int, width: float) -> None:
        super().__init__()
        if size_px > PATCH_PX:
            first, *rest = _widths(width, [64, 128, 256, 512, 512])
            layers: list[nn.Module] = [nn.Conv2d(3, first, 5, stride=2, padding=2)]
            size = size_px // 2
        else:
            first, *rest = _widths(width, [64, 128, 256, 512])
            layers = [nn.Conv2d(3, first, 3, padding=1)]
            size = size_px
        channels = first
        for c_out in rest:
            layers.append(DownBlock(channels, c_out, size))
            channels, size = c_out, size // 2
        while size > 4:
            layers.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
            size //= 2
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.head = nn.Linear(channels * size * size, 1)

    def features(self, x: Tensor) -> Tensor:
        """What the last layer sees, float [N, F]."""
        out: Tensor = self.layers(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.features(x)).squeeze(1)
        return out
