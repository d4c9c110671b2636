"""Batches drawn from a pool of views."""

import pytest
import torch

from ccdstream.errors import DataError
from trainer.augment import NEIGHBOURS
from trainer.sampling import MIN_VALID, Patches, Places, Pool, Squares, shrink


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
    empty = Pool(pool().images, torch.zeros(2, 64, 64, dtype=torch.bool))
    with pytest.raises(DataError, match="none of 2 frames has a 16 px square of which 50% is"):
        Patches(empty, 16)


def test_every_place_of_a_square_and_no_other_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    valid = torch.rand(3, 20, 20, generator=generator) > 0.3
    valid[2] = False
    places = Places(Pool(torch.zeros(3, 3, 20, 20, dtype=torch.uint8), valid), [8, 4], 0.8)
    for frame in range(3):
        side = 0
        for wanted in (8, 4):
            fits = [
                (top, left)
                for top in range(20 - wanted + 1)
                for left in range(20 - wanted + 1)
                if valid[frame, top : top + wanted, left : left + wanted].float().mean() >= 0.8
            ]
            if fits:
                side = wanted
                break
        assert places.side[frame] == side
        assert list(map(tuple, places.usable[frame].nonzero().tolist())) == (fits if side else [])
    assert places.frames.tolist() == [0, 1]


def test_a_square_is_the_largest_valid_part_of_its_frame() -> None:
    images = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    images[0, :, :40, 24:] = 200
    valid = torch.zeros(1, 64, 64, dtype=torch.bool)
    valid[0, :40, 24:] = True
    x, inside = Squares(Pool(images, valid), 32, 1.0).draw(4, torch.Generator().manual_seed(0))
    assert x.shape == (4, 3, 32, 32)
    torch.testing.assert_close(x, torch.full_like(x, 200 / 255))
    assert inside.all()


def test_the_mask_of_a_square_does_not_tell_its_strong_class() -> None:
    """Whole frames do: their mask moves with the halves."""
    frames = pool()
    squares, _ = Squares(frames, 32, 0.95).draw(16, torch.Generator().manual_seed(0))
    assert (squares[:, 1] > 30 / 255).all()  # green tells the column: 32 is the first valid one


def test_a_shrunk_pool_is_its_frames_averaged() -> None:
    small = pool().shrunk(32)
    assert small.images.shape == (2, 3, 32, 32)
    assert small.images[1, 0].unique().tolist() == [100]
    assert small.valid[0, 0].tolist() == [False] * 16 + [True] * 16
    assert pool().shrunk(64).images.shape == (2, 3, 64, 64)


def test_pairs_of_neighbours_lie_in_their_direction_and_are_valid() -> None:
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    images[:, 0] = torch.arange(64, dtype=torch.uint8)[:, None]  # red tells the row
    images[:, 1] = torch.arange(64, dtype=torch.uint8)  # green the column
    images[1, 2] = 255  # blue the frame
    valid = torch.ones(2, 64, 64, dtype=torch.bool)
    valid[:, 60:] = False
    patches = Patches(Pool(images, valid), 16, 1.0)
    first, second, direction = patches.draw_pairs(400, torch.Generator().manual_seed(0))
    assert torch.equal(first[:, 2], second[:, 2])
    step = ((second - first)[:, :2, 0, 0] * 255).round().long()
    expected = torch.tensor(NEIGHBOURS)[direction]
    assert torch.equal(step.sign(), expected)
    assert set(step.abs().unique().tolist()) <= {0, 12, 13, 14, 15}
    for patch in (first, second):
        assert (patch[:, 0] * 255).round().max() < 60
    shares = direction.bincount(minlength=8) / 400
    assert shares.min() > 0.06


def test_a_pair_for_which_there_is_no_place_is_another_one_again() -> None:
    """Frames as wide as two neighbours side by side and no higher than one."""
    images = torch.zeros(1, 3, 16, 64, dtype=torch.uint8)
    images[0, 1] = torch.arange(64, dtype=torch.uint8)
    patches = Patches(Pool(images, torch.ones(1, 16, 64, dtype=torch.bool)), 16)
    first, second, direction = patches.draw_pairs(64, torch.Generator().manual_seed(0))
    assert set(direction.tolist()) == {3, 4}  # west and east alone have a place
    east = (second - first)[:, 1, 0, 0] > 0
    assert torch.equal(east, direction == 4)
