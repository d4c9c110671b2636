"""Batches drawn from a pool of views."""

import pytest
import torch

from trainer.augment import NEIGHBOURS
from trainer.sampling import MIN_VALID, Patches, Pool, shrink


def pool() -> Pool:
    """Two 64x64 frames, their left halves not valid. Red tells the frame, green the column."""
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    images[:, 0] = torch.tensor([50, 100], dtype=torch.uint8)[:, None, None]
    images[:, 1] = torch.arange(64, dtype=torch.uint8)
    valid = torch.zeros(2, 64, 64, dtype=torch.bool)
    valid[:, :, 32:] = True
    return Pool(images, valid)


def test_patches_are_cut_with_their_mask_and_mostly_valid() -> None:
    x, valid = Patches(pool(), 16).draw(200, torch.Generator().manual_seed(0))
    assert x.shape == (200, 3, 16, 16)
    assert valid.shape == (200, 1, 16, 16)
    assert valid.mean(dim=(1, 2, 3)).min() >= MIN_VALID
    columns = x[:, 1] * 255  # the mask says of every column what the pool says
    assert torch.equal((columns >= 31.5).float(), valid[:, 0])


def test_both_frames_and_both_mirrorings_are_drawn() -> None:
    x, valid = pool().frames(64, torch.Generator().manual_seed(1))
    assert set((x[:, 0, 0, 0] * 255).round().int().tolist()) == {50, 100}
    assert set(valid[:, 0, 0, 0].tolist()) == {0.0, 1.0}


def test_equal_generators_draw_equal_batches() -> None:
    a, b = (Patches(pool(), 16).draw(8, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])


def test_shrinking_averages_pixels_and_keeps_what_is_mostly_valid() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4)
    valid = torch.tensor([[1.0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 1], [0, 1, 1, 1]]).view(
        1, 1, 4, 4
    )
    small, mostly = shrink(x, valid, 2)
    assert small.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert mostly.flatten().tolist() == [1, 0, 0, 1]
    assert shrink(x, valid, 4)[0] is x


def test_a_frame_with_one_valid_place_gives_that_place_and_one_with_none_gives_nothing() -> None:
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    images[0] = 200
    valid = torch.zeros(2, 64, 64, dtype=torch.bool)
    valid[0, 40:56, 20:36] = True
    patches = Patches(Pool(images, valid), 16)
    x, inside = patches.draw(50, torch.Generator().manual_seed(0))
    assert (x == 200 / 255).all()
    assert inside.mean(dim=(1, 2, 3)).min() >= MIN_VALID


def test_frames_without_any_valid_patch_are_refused() -> None:
    with pytest.raises(ValueError, match="no frame has a 16 px patch"):
        Patches(Pool(pool().images, torch.zeros(2, 64, 64, dtype=torch.bool)), 16)


def test_a_shrunk_pool_is_its_frames_averaged() -> None:
    small = pool().shrunk(32)
    assert small.images.shape == (2, 3, 32, 32)
    assert small.images[1, 0].unique().tolist() == [100]
    assert small.valid[0, 0].tolist() == [False] * 16 + [True] * 16
    assert pool().shrunk(64).images.shape == (2, 3, 64, 64)


def test_pairs_of_neighbours_come_from_one_frame_and_differ_by_their_direction() -> None:
    first, second, direction = pool().neighbour_pairs(
        64, torch.Generator().manual_seed(0), patch_px=16
    )
    assert torch.equal(first[:, 0, 0, 0], second[:, 0, 0, 0])  # red tells the frame
    step = second[:, 1, 0, 0] - first[:, 1, 0, 0]  # green the column
    east = torch.tensor([dx for _, dx in NEIGHBOURS])[direction]
    assert (step[east == 0] == 0).all()
    assert (step[east > 0] >= 0).all()
    assert (step[east < 0] <= 0).all()
