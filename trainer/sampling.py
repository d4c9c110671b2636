"""Batches drawn from views held in memory: whole frames, patches of them, pairs of neighbours.

The set is decoded once and kept as uint8 on the device that trains, so a batch is a few gathers and
nothing is read, decoded or copied from the host while a loop runs.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.augment import cut_patches, neighbour_pairs

MIN_VALID = 0.5
"""Least share of valid pixels in a patch that is trained on or scored."""
PLACE_TRIES = 16
"""Draws of a patch's place before a place that is known to be valid is taken instead."""


@dataclass(frozen=True, eq=False)
class Pool:
    """Views in memory, decoded once."""

    images: Tensor
    """uint8 [M, 3, H, W], RGB."""
    valid: Tensor
    """bool [M, H, W]."""

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> "Pool":
        """The pool on `device`."""
        return Pool(self.images.to(device), self.valid.to(device))

    def shrunk(self, size_px: int) -> "Pool":
        """The pool averaged down to a side that divides its own; a pixel is valid if most of it
        was."""
        if self.images.shape[-1] == size_px:
            return self
        images, valid = [], []
        for chosen, inside in zip(self.images.split(64), self.valid.split(64), strict=True):
            x, v = shrink(chosen.float(), inside[:, None].float(), size_px)
            images.append(x.round().to(torch.uint8))
            valid.append(v[:, 0] > 0)
        return Pool(torch.cat(images), torch.cat(valid))

    def frames(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw whole frames with replacement, half of them mirrored.

        Returns:
            float [count, 3, H, W] in [0, 1], and valid as float [count, 1, H, W].
        """
        chosen = _draw(len(self), (count,), generator)
        return _mirror_half(_floats(self.images[chosen]), self.valid[chosen, None], generator)

    def neighbour_pairs(
        self, count: int, generator: torch.Generator, *, patch_px: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draw pairs of neighbouring patches for eq. 4: see `trainer.augment.neighbour_pairs`.

        Returns:
            two of float [count, 3, patch, patch] in [0, 1], and the direction, int64 [count].
        """
        image = _draw(len(self), (count,), generator)
        first, second, direction = neighbour_pairs(
            self.images, patch_px, pairs=count, generator=generator, image=image
        )
        return _floats(first), _floats(second), direction


class Patches:
    """The patches of a pool of which at least half is valid."""

    def __init__(self, pool: Pool, patch_px: int) -> None:
        """Find the places of patches, once.

        Raises:
            ValueError: no frame has a patch of which half is valid.
        """
        shares = [
            F.avg_pool2d(some[:, None].float(), patch_px, stride=1)[:, 0]
            for some in pool.valid.split(64)
        ]
        usable = torch.cat([share >= MIN_VALID for share in shares])  # [M, H - p + 1, W - p + 1]
        self._frames = usable.any(dim=(1, 2)).nonzero()[:, 0]  # [m]
        if not len(self._frames):
            raise ValueError(f"no frame has a {patch_px} px patch of which half is valid")
        self._usable = usable
        self._best = torch.cat([share.flatten(1).argmax(dim=1) for share in shares])  # [M]
        self._pool = pool
        self._patch_px = patch_px

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw patches: frames evenly, places evenly in a frame, half of them mirrored.

        Places are drawn until one fits, a fixed number of times, so that nothing waits for the
        device; the few that never fit lie where most of their frame is valid.

        Returns:
            float [count, 3, patch, patch] in [0, 1], and valid as float [count, 1, patch, patch].
        """
        height, width = self._usable.shape[1:]
        image = self._frames[_draw(len(self._frames), (count,), generator)]
        tops = _draw(height, (count, PLACE_TRIES), generator)
        lefts = _draw(width, (count, PLACE_TRIES), generator)
        fits = self._usable[image[:, None], tops, lefts]  # [count, tries]
        first = fits.int().argmax(dim=1, keepdim=True)
        found, best = fits.any(dim=1), self._best[image]
        top = torch.where(found, tops.gather(1, first)[:, 0], best // width)
        left = torch.where(found, lefts.gather(1, first)[:, 0], best % width)
        x = cut_patches(self._pool.images, image, top, left, self._patch_px)
        inside = cut_patches(self._pool.valid[:, None], image, top, left, self._patch_px)
        return _mirror_half(_floats(x), inside, generator)


def shrink(x: Tensor, valid: Tensor, size_px: int) -> tuple[Tensor, Tensor]:
    """Average pictures down to a side that divides theirs; a pixel is valid if most of it was.

    Args:
        x: float [N, 3, H, H]. valid: float [N, 1, H, H] of 0 and 1.
    """
    factor = x.shape[-1] // size_px
    if factor == 1:
        return x, valid
    return F.avg_pool2d(x, factor), (F.avg_pool2d(valid, factor) > 0.5).float()


def _draw(below: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(below, shape, generator=generator, device=generator.device)


def _floats(pixels: Tensor) -> Tensor:
    return pixels.float() / 255


def _mirror_half(x: Tensor, valid: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    flip = torch.rand(len(x), generator=generator, device=x.device).view(-1, 1, 1, 1) < 0.5
    valid = torch.where(flip, valid.flip(3), valid)
    return torch.where(flip, x.flip(3), x), valid.float()
