"""Batched augmentations against one image at a time, done by torchvision or numpy."""

import colorsys
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tv

from trainer import augment
from trainer.augment import STRONG, WeakAugment


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(n, 3, height, width, generator=seeded(seed))


def masks(n: int, size: int = 32, seed: int = 1) -> Tensor:
    return torch.rand(n, 1, size, size, generator=seeded(seed)) > 0.3


def plain(x: Tensor, **changes: Any) -> WeakAugment:
    """A weak augmentation that leaves x as it is, but for what `changes` turn on."""
    off: dict[str, Any] = {
        "size": x.shape[-1],
        "scale": (1.0, 1.0),
        "ratio": (1.0, 1.0),
        "flip": 0.0,
        "jitter_p": 0.0,
        "grey_p": 0.0,
    }
    return WeakAugment(**off | changes)


# --- strong families -----------------------------------------------------------------------------


def test_half_swap_is_a_cyclic_shift_by_half_the_size() -> None:
    x, k = images(8, 12, 20), torch.arange(8) % 4
    swapped = augment.half_swap(x, k)
    for i in range(8):
        rows, columns = divmod(int(k[i]), 2)
        expected = np.roll(x[i].numpy(), (6 * rows, 10 * columns), axis=(1, 2))
        np.testing.assert_array_equal(swapped[i].numpy(), expected)


def test_half_swap_undoes_itself() -> None:
    x, k = images(4), torch.arange(4)
    assert torch.equal(augment.half_swap(augment.half_swap(x, k), k), x)


def test_rotate90_is_numpys_turn() -> None:
    x, k = images(4), torch.arange(4)
    turned = augment.rotate90(x, k)
    for i in range(4):
        np.testing.assert_array_equal(turned[i].numpy(), np.rot90(x[i].numpy(), i, axes=(1, 2)))


def test_jigsaw_puts_quarters_in_the_order_of_its_class() -> None:
    x, k = images(24, 8, 12), torch.arange(24)
    moved = augment.jigsaw24(x, k)
    for i in range(24):
        quarters = [q for half in x[i].split(4, dim=1) for q in half.split(6, dim=2)]
        a, b, c, d = (quarters[j] for j in augment.JIGSAW_ORDERS[i])
        expected = torch.cat([torch.cat([a, b], dim=2), torch.cat([c, d], dim=2)], dim=1)
        assert torch.equal(moved[i], expected)
    assert len({tuple(m.flatten().tolist()) for m in augment.jigsaw24(x[:1].expand_as(x), k)}) == 24


def test_cutout_cuts_k_clipped_squares() -> None:
    x, k = 0.1 + images(400, 64, 64), torch.arange(400) % 4
    cut = augment.cutout(x, k, seeded())
    gone = (cut == 0).all(dim=1)
    assert torch.equal(cut[~gone[:, None].expand_as(x)], x[~gone[:, None].expand_as(x)])
    area = gone.sum(dim=(1, 2))
    assert (area[k == 0] == 0).all()
    assert (area[k == 1] >= 4 * 4).all() and area[k == 1].max() == 8 * 8
    assert (area <= 64 * k).all()
    assert area[k == 3].max() > 2 * 64
    # a single hole is a filled rectangle
    for hole in gone[k == 1]:
        rows, columns = hole.any(dim=1).sum(), hole.any(dim=0).sum()
        assert rows * columns == hole.sum() and max(rows, columns) <= 8


def test_noise_has_the_strength_that_it_says() -> None:
    x = torch.full((4, 3, 128, 128), 0.5)
    noisy = augment.noise(x, torch.arange(4), seeded())
    assert torch.equal(noisy[0], x[0])
    assert noisy.min() >= 0 and noisy.max() <= 1
    clipped = torch.distributions.Normal(0.0, 0.05**0.5)
    inside = (noisy[1] > 0) & (noisy[1] < 1)
    kept = (clipped.cdf(torch.tensor(0.5)) - clipped.cdf(torch.tensor(-0.5))).item()
    assert inside.float().mean().item() == pytest.approx(kept, abs=0.005)
    # x + x e with x = 0.5 has half the deviation
    assert (noisy[2] - 0.5).std().item() == pytest.approx(0.05**0.5 / 2, rel=0.02)
    assert (noisy[3] == 0).float().mean().item() == pytest.approx(0.025, abs=0.003)
    assert (noisy[3] == 1).float().mean().item() == pytest.approx(0.025, abs=0.003)
    assert ((noisy[3] == 0.5) | (noisy[3] == 0) | (noisy[3] == 1)).all()


@pytest.mark.parametrize("name", STRONG)
def test_class_0_of_every_family_leaves_the_image_as_it_is(name: str) -> None:
    x = images(3)
    k = torch.zeros(3, dtype=torch.long)
    assert torch.equal(STRONG[name].apply(x, k, seeded()), x)


@pytest.mark.parametrize("name", STRONG)
def test_the_classes_of_a_family_differ(name: str) -> None:
    family = STRONG[name]
    x = (0.1 + 0.8 * images(1)).expand(family.classes, -1, -1, -1)
    out = family.apply(x, torch.arange(family.classes), seeded())
    assert len({tuple(image.flatten().tolist()) for image in out}) == family.classes


@pytest.mark.parametrize("name", [name for name, family in STRONG.items() if family.moves])
def test_masks_move_with_their_images(name: str) -> None:
    family = STRONG[name]
    valid = masks(12)
    x = valid.float().expand(-1, 3, -1, -1)
    k = torch.arange(12) % family.classes
    moved = family.apply(valid, k, seeded())
    assert moved.dtype == torch.bool
    assert torch.equal(moved.float().expand(-1, 3, -1, -1), family.apply(x, k, seeded()))


@pytest.mark.parametrize("name", STRONG)
def test_the_same_generator_gives_the_same_batch(name: str) -> None:
    x, k = images(4), torch.arange(4)
    apply = STRONG[name].apply
    assert torch.equal(apply(x, k, seeded(7)), apply(x, k, seeded(7)))


# --- weak augmentation ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 32, 50])
def test_crop_resized_is_torchvisions_crop_and_resize_one_by_one(size: int) -> None:
    x = images(20, 40, 32)
    box = augment.random_crops(20, (40, 32), (0.1, 1.0), (0.5, 2.0), seeded(3))
    mirrored = torch.arange(20) % 2 == 1
    batch, _ = augment.crop_resized(x, None, box, mirrored, size)
    for i in range(20):
        one = tv.resized_crop(x[i], *box[i].tolist(), size=[size, size], antialias=False)
        if mirrored[i]:
            one = one.flip(2)
        torch.testing.assert_close(batch[i], one, atol=1e-5, rtol=0)


def test_a_crop_of_the_whole_image_is_the_image() -> None:
    x, valid = images(5), masks(5)
    same, same_valid = plain(x)(x, valid, seeded())
    torch.testing.assert_close(same, x, atol=1e-5, rtol=0)
    assert same_valid is not None and torch.equal(same_valid, valid)


def test_a_valid_sample_has_no_share_of_an_invalid_pixel() -> None:
    """Invalid pixels are set to 1 and all others to 0: valid samples must stay near 0."""
    valid = masks(16)
    x = (~valid).float().expand(-1, 3, -1, -1)
    view, seen = plain(x, scale=(0.2, 1.0), flip=0.5)(x, valid, seeded())
    assert seen is not None
    assert view[seen.expand_as(view)].max() <= 0.01
    assert torch.equal(seen, view[:, :1] < 0.01)


def test_crops_are_distributed_as_torchvisions() -> None:
    size, scale, ratio = (96, 128), (0.2, 0.5), (1 / 4, 2.0)
    boxes = augment.random_crops(6000, size, scale, ratio, seeded()).double()
    torch.manual_seed(0)
    blank = torch.empty(1, *size)
    theirs = torch.tensor(
        [RandomResizedCrop.get_params(blank, list(scale), list(ratio)) for _ in range(6000)]
    ).double()
    for ours, other in zip(boxes.T, theirs.T, strict=True):
        assert ours.mean().item() == pytest.approx(other.mean().item(), abs=1.5)
        assert ours.std().item() == pytest.approx(other.std().item(), abs=1.0)
    assert (boxes[:, 0] + boxes[:, 2] <= 96).all() and (boxes[:, 1] + boxes[:, 3] <= 128).all()
    assert boxes.min() >= 0 and (boxes[:, 2:] >= 1).all()


def test_a_crop_that_never_fits_becomes_the_largest_centred_one() -> None:
    box = augment.random_crops(3, (20, 100), (1.0, 1.0), (1.0, 1.0), seeded())
    assert box.tolist() == [[0, 40, 20, 20]] * 3


def test_mirroring_turns_left_and_right_about() -> None:
    x, valid = images(6), masks(6)
    view, seen = plain(x, flip=1.0)(x, valid, seeded())
    torch.testing.assert_close(view, x.flip(3), atol=1e-5, rtol=0)
    assert seen is not None and torch.equal(seen, valid.flip(3))


def colour(
    x: Tensor,
    valid: Tensor | None = None,
    *,
    brightness: float = 1,
    contrast: float = 1,
    saturation: float = 1,
    turn: float = 0,
    grey: bool = False,
) -> Tensor:
    def each(value: float) -> Tensor:
        return torch.full((len(x),), float(value))

    return augment.adjust_colour(
        x,
        valid,
        each(brightness),
        each(contrast),
        each(saturation),
        each(turn),
        torch.full((len(x),), grey),
    )


@pytest.mark.parametrize("factor", [0.6, 0.9, 1.3])
@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("brightness", tv.adjust_brightness),
        ("contrast", tv.adjust_contrast),
        ("saturation", tv.adjust_saturation),
    ],
)
def test_colour_factors_are_torchvisions(
    name: str, reference: Callable[[Tensor, float], Tensor], factor: float
) -> None:
    x = 0.3 + 0.4 * images(3)
    for got, image in zip(colour(x, **{name: factor}), x, strict=True):
        torch.testing.assert_close(got, reference(image, factor), atol=2e-4, rtol=0)


def test_jitter_in_one_map_is_torchvisions_in_steps_where_nothing_is_clipped() -> None:
    x = 0.4 + 0.2 * images(3)
    got = colour(x, brightness=1.2, contrast=0.7, saturation=1.3)
    for i in range(3):
        one = tv.adjust_saturation(tv.adjust_contrast(tv.adjust_brightness(x[i], 1.2), 0.7), 1.3)
        torch.testing.assert_close(got[i], one, atol=3e-4, rtol=0)


def test_each_image_has_its_own_factors() -> None:
    x = 0.5 * images(4)
    ones, zeros = torch.ones(4), torch.zeros(4)
    factors = torch.tensor([0.2, 0.5, 1.0, 1.5])
    got = augment.adjust_colour(x, None, factors, ones, ones, zeros, zeros.bool())
    torch.testing.assert_close(got, x * factors[:, None, None, None])


def test_grey_is_the_brightness_three_times() -> None:
    x = images(2)
    expected = tv.rgb_to_grayscale(x, num_output_channels=3)
    torch.testing.assert_close(colour(x, turn=0.1, grey=True), expected, atol=3e-4, rtol=0)


@pytest.mark.parametrize("turn", [-0.1, -0.03, 0.05, 0.1])
def test_a_turned_hue_turns_as_in_hsv_and_keeps_brightness(turn: float) -> None:
    x = 0.4 + 0.2 * images(1, 8, 8)
    got = colour(x, turn=turn)
    luma = torch.tensor(augment.LUMA)
    torch.testing.assert_close(
        torch.einsum("c,nchw->nhw", luma, got), torch.einsum("c,nchw->nhw", luma, x)
    )
    # the two hue circles are not the same, but go the same way about
    red = torch.tensor([0.6, 0.4, 0.4]).view(1, 3, 1, 1)
    hue = colorsys.rgb_to_hsv(*colour(red, turn=turn).flatten().tolist())[0]
    assert ((hue + 0.5) % 1 - 0.5) == pytest.approx(turn, abs=0.05)


def test_a_full_turn_of_the_hue_is_none() -> None:
    x = images(2)
    torch.testing.assert_close(colour(x, turn=1.0), x, atol=1e-5, rtol=0)
    half = colour(0.45 + 0.1 * x, turn=0.25)
    torch.testing.assert_close(colour(half, turn=0.75), 0.45 + 0.1 * x, atol=1e-5, rtol=0)


def test_contrast_does_not_see_invalid_pixels() -> None:
    x, valid = images(2), masks(2)
    black = torch.where(valid, x, 0.0)
    white = torch.where(valid, x, 1.0)
    a, b = colour(black, valid, contrast=0.5), colour(white, valid, contrast=0.5)
    torch.testing.assert_close(a[valid.expand_as(a)], b[valid.expand_as(b)])


def test_an_image_without_a_valid_pixel_stays_finite() -> None:
    x = images(1)
    view, seen = WeakAugment(32)(x, torch.zeros(1, 1, 32, 32, dtype=torch.bool), seeded())
    assert view.isfinite().all() and seen is not None and not seen.any()


def test_gaussian_blur_is_torchvisions_with_each_images_sigma() -> None:
    x, sigma = images(3), torch.tensor([0.1, 0.8, 2.0])
    got = augment.gaussian_blur(x, sigma, radius_px=6)
    for i in range(3):
        one = tv.gaussian_blur(x[i], [13, 13], [sigma[i].item()] * 2)
        torch.testing.assert_close(got[i], one, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "share"),
    [
        ({"flip": 0.3}, 0.3),
        ({"grey_p": 0.7}, 0.7),
        ({"blur_p": 0.4}, 0.4),
        ({"cutout_p": 0.6}, 0.6),
    ],
)
def test_probabilities_are_those_asked_for(changes: dict[str, float], share: float) -> None:
    x = images(1, 16, 16).expand(2000, -1, -1, -1)
    view, _ = plain(x, blur_sigma_px=(1.0, 1.5), **changes)(x, None, seeded())
    changed = (view - x).abs().amax(dim=(1, 2, 3)) > 1e-3
    assert changed.float().mean().item() == pytest.approx(share, abs=4 * math.sqrt(0.25 / 2000))


def test_the_weak_hole_is_one_clipped_square_of_the_mean_colour() -> None:
    x = torch.zeros(200, 3, 64, 64)
    view, _ = plain(x, cutout_p=1.0)(x, None, seeded())
    mean = torch.tensor(augment.IMAGENET_MEAN).view(3, 1, 1)
    sides = []
    for one in view:
        hole = one[0] > 0
        rows, columns = hole.any(dim=1).nonzero()[:, 0], hole.any(dim=0).nonzero()[:, 0]
        box = (slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1))
        assert hole[box].all()
        torch.testing.assert_close(one[:, hole], mean[:, 0].expand(3, int(hole.sum())))
        sides.append(max(len(rows), len(columns)))
    largest = round(augment.HOLE_FRACTION * 64)
    assert max(sides) in (largest - 1, largest, largest + 1)
    assert min(sides) <= 3


def test_jitter_factors_stay_in_their_ranges() -> None:
    x = torch.full((2000, 3, 4, 4), 0.5)  # grey: only brightness shows
    view, _ = plain(x, jitter=(0.4, 0.0, 0.0, 0.1), jitter_p=0.8)(x, None, seeded())
    factor = view[:, 0, 0, 0] / 0.5
    assert 0.6 <= factor.min() < 0.61 and 1.39 < factor.max() <= 1.4
    untouched = ((factor - 1).abs() < 1e-5).float().mean().item()
    assert untouched == pytest.approx(0.2, abs=0.04)


def test_the_hue_turns_both_ways_and_no_further_than_asked() -> None:
    x = torch.tensor([0.6, 0.5, 0.4]).view(1, 3, 1, 1).expand(2000, -1, 4, 4)
    view, _ = plain(x, jitter=(0.0, 0.0, 0.0, 0.1), jitter_p=1.0)(x, None, seeded())
    way = view[:, :, 0, 0] - x[:, :, 0, 0]
    ends = [colour(x[:1], turn=turn)[0, :, 0, 0] - x[0, :, 0, 0] for turn in (-0.1, 0.1)]
    low, high = torch.stack(ends).aminmax(dim=0)
    for channel in (0, 2):  # these two move one way only within a tenth of a turn
        torch.testing.assert_close(way[:, channel].amin(), low[channel], atol=1e-3, rtol=0)
        torch.testing.assert_close(way[:, channel].amax(), high[channel], atol=1e-3, rtol=0)
    assert (way[:, 2] > 0).float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_a_view_is_an_image_and_depends_on_the_generator_alone() -> None:
    x, valid = images(6, 48, 40), torch.ones(6, 1, 48, 40, dtype=torch.bool)
    weak = WeakAugment(32, blur_p=0.5)
    torch.manual_seed(1)
    view, seen = weak(x, valid, seeded(5))
    torch.manual_seed(2)
    again, _ = weak(x, valid, seeded(5))
    other, _ = weak(x, valid, seeded(6))
    assert view.shape == (6, 3, 32, 32) and view.min() >= 0 and view.max() <= 1
    assert seen is not None and seen.shape == (6, 1, 32, 32) and seen.all()
    assert torch.equal(view, again) and not torch.equal(view, other)


def test_no_augmentation_changes_its_input() -> None:
    x, valid = images(8), masks(8)
    before, k = x.clone(), torch.arange(8) % 4
    WeakAugment(32, blur_p=1.0)(x, valid, seeded())
    for family in STRONG.values():
        family.apply(x, k, seeded())
    assert torch.equal(x, before) and torch.equal(valid, masks(8))


# --- patches -------------------------------------------------------------------------------------


def coordinates(n: int, height: int, width: int) -> Tensor:
    """Images whose pixels say where they are: image index, row, column."""
    index, row, column = torch.meshgrid(
        torch.arange(n), torch.arange(height), torch.arange(width), indexing="ij"
    )
    return torch.stack([index, row, column], dim=1).float()


def test_patches_are_cut_whole_at_their_places() -> None:
    where = coordinates(3, 40, 48)
    image = torch.tensor([2, 0, 1, 0])
    top, left = torch.tensor([0, 32, 5, 7]), torch.tensor([40, 0, 9, 3])
    patches = augment.cut_patches(where, image, top, left, 8)
    for i in range(4):
        place = (int(image[i]), slice(None), slice(top[i], top[i] + 8), slice(left[i], left[i] + 8))
        assert torch.equal(patches[i], where[place])


def test_steps_to_neighbours_go_in_their_direction_with_a_small_overlap() -> None:
    direction, step = augment.neighbour_steps(8000, 32, seeded())
    assert torch.equal(step.sign(), torch.tensor(augment.NEIGHBOURS)[direction])
    assert sorted(set(step[step != 0].abs().tolist())) == list(range(24, 32))
    assert torch.bincount(direction, minlength=8).min() > 850


@pytest.mark.parametrize(("stride", "side"), [(16, 15), (32, 8), (24, 10)])
def test_grid_patches_go_row_by_row(stride: int, side: int) -> None:
    x = images(2, 256, 256)
    patches = augment.grid_patches(x, 32, stride)
    assert patches.shape == (2, side * side, 3, 32, 32)
    for i in range(side):
        for j in range(side):
            top, left = i * stride, j * stride
            window = x[:, :, top : top + 32, left : left + 32]
            assert torch.equal(patches[:, i * side + j], window)


class Grid(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return augment.grid_patches(x, 32, 16)


def test_the_grid_exports_once_for_any_batch_size() -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(Grid(), (images(3, 64, 64),), dynamic_shapes={"x": {0: batch}})
    for n in (1, 5):
        x = images(n, 64, 64)
        assert torch.equal(program.module()(x), Grid()(x))


# --- callers' mistakes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: augment.half_swap(images(1, 31, 32), torch.tensor([1])), "even"),
        (lambda: augment.jigsaw24(images(1, 32, 31), torch.tensor([1])), "even"),
        (lambda: augment.rotate90(images(1, 16, 32), torch.tensor([1])), "square"),
        (lambda: augment.half_swap(images(2), torch.tensor([1])), r"k \[N\]"),
        (lambda: augment.cutout(images(2), torch.tensor([[1], [2]]), seeded()), r"k \[N\]"),
        (lambda: augment.noise(images(2), torch.tensor([1]), seeded()), r"k \[N\]"),
        (lambda: WeakAugment(0), "size"),
        (lambda: WeakAugment(32, scale=(0.0, 1.0)), "scale"),
        (lambda: WeakAugment(32, ratio=(2.0, 1.0)), "ratio"),
        (lambda: WeakAugment(32, jitter=(0.4, 0.4, 0.4, 0.6)), "jitter"),
        (lambda: WeakAugment(32)(torch.zeros(1, 1, 32, 32), None, seeded()), "x must"),
        (
            lambda: augment.neighbour_steps(2, 30, seeded()),
            "multiple of 4",
        ),
        (lambda: augment.grid_patches(images(1), 32, 0), "stride_px"),
    ],
)
def test_callers_mistakes_are_named(call: Callable[[], object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        call()
