"""Batches drawn from views held in memory: whole frames, or patches of them."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_VALID = 0.5
"""Least share of valid pixels in a patch that is trained on or scored."""


@dataclass(frozen=True, eq=False)
class Pool:
    """Views in memory, decoded once."""

    images: Tensor
    """uint8 [M, 3, H, W], RGB."""
    valid: Tensor
    """bool [M, H, W]."""

    def frames(
        self, count: int, generator: torch.Generator, *, size_px: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Draw whole frames with replacement, half of them mirrored.

        Args:
            size_px: side that the frames are averaged down to; 0: as they are.

        Returns:
            float [count, 3, H, W] in [0, 1], and valid as float [count, 1, H, W].
        """
        chosen = torch.randint(len(self.images), (count,), generator=generator)
        x, valid = shrink(_floats(self.images[chosen]), self.valid[chosen, None].float(), size_px)
        return _mirror_half(x, valid, generator)

    def patches(
        self, count: int, generator: torch.Generator, *, patch_px: int
    ) -> tuple[Tensor, Tensor]:
        """Draw patches, uniform over frames and places, of which at least half is valid.

        Returns:
            float [count, 3, patch, patch] in [0, 1], and valid as float [count, 1, patch, patch].
        """
        height, width = self.images.shape[2:]
        pixels: list[Tensor] = []
        valid: list[Tensor] = []
        while len(pixels) < count:
            chosen = torch.randint(len(self.images), (count,), generator=generator).tolist()
            tops = torch.randint(height - patch_px + 1, (count,), generator=generator).tolist()
            lefts = torch.randint(width - patch_px + 1, (count,), generator=generator).tolist()
            for index, top, left in zip(chosen, tops, lefts, strict=True):
                place = (slice(top, top + patch_px), slice(left, left + patch_px))
                inside = self.valid[(index, *place)]
                if inside.float().mean() >= MIN_VALID:
                    pixels.append(self.images[(index, slice(None), *place)])
                    valid.append(inside)
        x, v = torch.stack(pixels[:count]), torch.stack(valid[:count])
        return _mirror_half(_floats(x), v[:, None].float(), generator)


def shrink(x: Tensor, valid: Tensor, size_px: int) -> tuple[Tensor, Tensor]:
    """Average pictures down to a side that divides theirs; a pixel is valid if most of it was.

    Args:
        x: float [N, 3, H, H]. valid: float [N, 1, H, H] of 0 and 1. size_px: 0 changes nothing.
    """
    factor = x.shape[-1] // size_px if size_px else 1
    if factor == 1:
        return x, valid
    return F.avg_pool2d(x, factor), (F.avg_pool2d(valid, factor) > 0.5).float()


def _floats(pixels: Tensor) -> Tensor:
    return pixels.float() / 255


def _mirror_half(x: Tensor, valid: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    flip = torch.rand(len(x), generator=generator).view(-1, 1, 1, 1) < 0.5
    return torch.where(flip, x.flip(3), x), torch.where(flip, valid.flip(3), valid)
