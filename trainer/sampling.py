"""Batches drawn from views held in memory: whole frames, patches of them, pairs of neighbours.

The set is decoded once and kept as uint8 on the device that trains, so a batch is a few gathers and
no picture is read, decoded or copied from the host while a loop runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ccdstream.errors import DataError
from trainer.augment import crop_resized, cut_patches, neighbour_steps

MIN_VALID = 0.5
"""Least share of valid pixels in a patch that is trained on or scored."""
PLACE_TRIES = 16
"""Draws of a place before one that is known to be valid is taken instead."""
PAIR_TRIES = 64
"""Draws of the place of a pair before another pair is taken instead."""


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


class Places:
    """Where in the frames of a pool a square of mostly valid pixels lies."""

    def __init__(self, pool: Pool, sides_px: Sequence[int], min_valid: float) -> None:
        """Find them, once.

        Args:
            sides_px: each frame takes the first of these for which it has such a square.
            min_valid: least share of valid pixels in a square.

        Raises:
            DataError: no frame has one.
        """
        m, height, width = pool.valid.shape
        device = pool.valid.device
        self.usable = torch.zeros(m, height, width, dtype=torch.bool, device=device)
        """bool [M, H, W], true at the top left corners of squares."""
        self.side = torch.zeros(m, dtype=torch.int64, device=device)
        """int64 [M], of each frame's squares, in pixels; 0: it has none."""
        self._best = torch.zeros(m, dtype=torch.int64, device=device)
        for start in range(0, m, 64):
            some = slice(start, start + 64)
            counts = F.pad(pool.valid[some].int().cumsum(1).cumsum(2), (1, 0, 1, 0))
            for side in sides_px:
                if not (waiting := (self.side[some] == 0)).any():
                    break
                inside = (
                    counts[:, side:, side:]
                    - counts[:, :-side, side:]
                    - counts[:, side:, :-side]
                    + counts[:, :-side, :-side]
                )
                fits = (inside >= min_valid * side**2) & waiting[:, None, None]
                found = fits.any(dim=(1, 2))
                rows, columns = inside.shape[1:]
                self.usable[some, :rows, :columns] |= fits
                self.side[some][found] = side
                best = inside.flatten(1).argmax(dim=1)
                at = best // columns * width + best % columns
                self._best[some] = torch.where(found, at, self._best[some])
        self.frames = (self.side > 0).nonzero()[:, 0]
        """int64 [m], the frames that have one."""
        if not len(self.frames):
            raise DataError(
                f"none of {m} frames has a {min(sides_px)} px square of which {min_valid:.0%} is "
                "valid. Use a profile that fits these frames, or lower pretrain.min_valid."
            )

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Frame, top and left of squares, each int64 [count]: frames evenly, places evenly in one.

        Places are drawn until one fits, a fixed number of times, so that nothing waits for the
        device; the few that never fit lie where most of their frame is valid.
        """
        height, width = self.usable.shape[1:]
        frame = self.frames[_draw(len(self.frames), (count,), generator)]
        tops = _draw(height, (count, PLACE_TRIES), generator)
        lefts = _draw(width, (count, PLACE_TRIES), generator)
        first, found = _first(self.usable[frame[:, None], tops, lefts])
        best = self._best[frame]
        top = torch.where(found, tops.gather(1, first)[:, 0], best // width)
        left = torch.where(found, lefts.gather(1, first)[:, 0], best % width)
        return frame, top, left


class Patches:
    """The patches of a pool that are mostly valid."""

    def __init__(self, pool: Pool, patch_px: int, min_valid: float = MIN_VALID) -> None:
        """Find them, once.

        Raises:
            DataError: no frame has one.
        """
        self._pool = pool
        self._patch_px = patch_px
        self._places = Places(pool, [patch_px], min_valid)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw patches, half of them mirrored.

        Returns:
            float [count, 3, patch, patch] in [0, 1], and valid as float [count, 1, patch, patch].
        """
        frame, top, left = self._places.draw(count, generator)
        x = cut_patches(self._pool.images, frame, top, left, self._patch_px)
        inside = cut_patches(self._pool.valid[:, None], frame, top, left, self._patch_px)
        return _mirror_half(_floats(x), inside, generator)

    def draw_pairs(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw pairs of neighbouring patches for eq. 4, both mostly valid.

        Directions are uniform and steps are `trainer.augment.neighbour_steps`. Departs from the
        authors' code, which moves a second patch that would leave the frame back inside, whatever
        that does to its direction: here the first is drawn again. A pair for which no place is
        found is another one of the batch over again.

        Returns:
            two of float [count, 3, patch, patch] in [0, 1], and the direction, int64 [count].
        """
        places, last = self._places, [n - self._patch_px for n in self._pool.images.shape[2:]]
        direction, step = neighbour_steps(count, self._patch_px, generator)
        frame = places.frames[_draw(len(places.frames), (count,), generator)]
        first = torch.stack([_draw(n + 1, (count, PAIR_TRIES), generator) for n in last], dim=2)
        second = first + step[:, None]  # [count, tries, 2]
        moved = torch.stack([second[..., i].clamp(0, last[i]) for i in range(2)], dim=2)
        fits = (
            places.usable[frame[:, None], first[..., 0], first[..., 1]]
            & places.usable[frame[:, None], moved[..., 0], moved[..., 1]]
            & (moved == second).all(dim=2)
        )
        chosen, found = _first(fits)
        item = torch.arange(count, device=frame.device)
        item = torch.where(found, item, found.int().argmax())
        frame, direction = frame[item], direction[item]
        first_patch, second_patch = (
            _floats(cut_patches(self._pool.images, frame, at[:, 0], at[:, 1], self._patch_px))
            for at in (corners[item, chosen[item, 0]] for corners in (first, moved))
        )
        return first_patch, second_patch, direction


class Squares:
    """The largest mostly valid square of every frame, as a picture of its own.

    What a whole frame has that is not valid moves with its halves and turns with it, so it would
    tell the strong class of eq. 3 by itself: on HyperKvasir's stills always. The authors' code cuts
    the margin off instead, which leaves the scope guide's inset.
    """

    def __init__(self, pool: Pool, size_px: int, min_valid: float) -> None:
        """Find them, once.

        Args:
            size_px: side that they are resized to.

        Raises:
            DataError: no frame has one.
        """
        whole = pool.images.shape[-1]
        self._pool = pool
        self._size_px = size_px
        self._places = Places(pool, range(whole, whole // 8 - 1, -whole // 16), min_valid)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw squares, half of them mirrored.

        Returns:
            float [count, 3, size, size] in [0, 1], and valid as float [count, 1, size, size].
        """
        frame, top, left = self._places.draw(count, generator)
        side = self._places.side[frame]
        x, valid = crop_resized(
            _floats(self._pool.images[frame]),
            self._pool.valid[frame, None],
            torch.stack([top, left, side, side], dim=1),
            torch.rand(count, generator=generator, device=frame.device) < 0.5,
            self._size_px,
        )
        assert valid is not None
        return x, valid.float()


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


def _first(fits: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the first that fits, int64 [N, 1], and whether there is one, bool [N]."""
    return fits.int().argmax(dim=1, keepdim=True), fits.any(dim=1)


def _floats(pixels: Tensor) -> Tensor:
    return pixels.float() / 255


def _mirror_half(x: Tensor, valid: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    flip = torch.rand(len(x), generator=generator, device=x.device).view(-1, 1, 1, 1) < 0.5
    valid = torch.where(flip, valid.flip(3), valid)
    return torch.where(flip, x.flip(3), x), valid.float()
