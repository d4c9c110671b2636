"""Augmentations of batches of images: float [N, 3, H, W] in [0, 1] in, the same out.

Strong families (`STRONG`) make the classes of the augmentation classification; `WeakAugment` makes
the views of the contrastive loss; patches are cut by `cut_patches` (training, at places that
`trainer.sampling` draws) and `grid_patches` (inference). All work on whole batches, on the images'
device, with parameters drawn for each image. Masks (bool [N, 1, H, W], true where a pixel counts)
go the way of their images.

Randomness comes from the generator that is passed and from nowhere else. It may live on the CPU
while the images do not: the few numbers per image are then copied over.
"""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.backbone import IMAGENET_MEAN
from trainer.msssim import LUMA

NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
"""(row, column) steps of the eight directions, in the order of their class index."""

CUTOUT_FRACTION = 1 / 8
"""Side of a hole over the side of the image: 32 px at 256, as in the authors' code."""

HOLE_FRACTION = 75 / 256
"""Largest side of a hole of the weak cutout over the side of the image, as in the authors' code."""

NOISE_VARIANCE = 0.05
SALT_AND_PEPPER_FRACTION = 0.05
"""Strengths of the noise family, for images in [0, 1]; scikit-image's defaults and the code's."""

CROP_ATTEMPTS = 10
"""Draws of a crop before the whole image is taken, as in torchvision."""

# Rows are Y, I, Q (NTSC 1953): a turn of the I-Q plane changes the hue and keeps the brightness.
_RGB_TO_YIQ = (LUMA, (0.59590059, -0.27455667, -0.32134392), (0.21153661, -0.52273617, 0.31119955))

_YIQ_TO_RGB = tuple(
    map(tuple, torch.linalg.inv(torch.tensor(_RGB_TO_YIQ, dtype=torch.float64)).tolist())
)

JIGSAW_ORDERS = tuple(itertools.permutations(range(4)))
"""For each of the 24 classes, which tile (row-major) comes to each place; class 0 leaves all."""


# --- strong families -----------------------------------------------------------------------------


def half_swap(x: Tensor, k: Tensor) -> Tensor:
    """Exchange halves: bit 1 of the class top and bottom, bit 0 left and right.

    The four cyclic shifts by half the height and half the width; class 0 leaves the image as it is.
    The "permutation" of Tian et al. 2021 as in the authors' code (CSI's "CutPerm", Tack et al.
    2020); tiles are moved, never turned.

    Args:
        x: any dtype [N, C, H, W], H and W even.
        k: int64 [N], in 0..3.

    Returns:
        As x.

    Raises:
        ValueError: an odd height or width, or k is not [N].
    """
    _check_classes(x, k)
    return _move_tiles(x, torch.arange(4, device=x.device) ^ k[:, None])


def jigsaw24(x: Tensor, k: Tensor) -> Tensor:
    """Put the four quarters of the image in the order `JIGSAW_ORDERS[k]`.

    Args:
        x: any dtype [N, C, H, W], H and W even.
        k: int64 [N], in 0..23; 0 leaves the image as it is.

    Raises:
        ValueError: an odd height or width, or k is not [N].
    """
    _check_classes(x, k)
    return _move_tiles(x, _constant(JIGSAW_ORDERS, x.device, torch.int64)[k])


def rotate90(x: Tensor, k: Tensor) -> Tensor:
    """Turn each image by k quarter turns, counter-clockwise.

    Args:
        x: any dtype [N, C, S, S].
        k: int64 [N], in 0..3.

    Raises:
        ValueError: images that are not square, or k is not [N].
    """
    _check_classes(x, k)
    if x.shape[2] != x.shape[3]:
        raise ValueError(f"images must be square to be turned, got {x.shape[2]}x{x.shape[3]}")
    k = k[:, None, None, None]
    x = torch.where(k >= 2, x.flip((2, 3)), x)
    return torch.where(k % 2 == 1, x.rot90(1, (2, 3)), x)


def cutout(x: Tensor, k: Tensor, generator: torch.Generator) -> Tensor:
    """Cut k square holes, filled with 0, into each image.

    A hole's centre is uniform over [0, size - side) and the hole is clipped to the image, as in the
    authors' code: holes keep away from the right and the bottom edge.

    Args:
        x: float [N, C, H, W].
        k: int64 [N], in 0..3.

    Raises:
        ValueError: k is not [N].
    """
    _check_classes(x, k)
    n, _, height, width = x.shape
    side = max(1, round(min(height, width) * CUTOUT_FRACTION))
    kept = torch.ones((n, 1, height, width), dtype=torch.bool, device=x.device)
    rows = torch.arange(height, device=x.device)
    columns = torch.arange(width, device=x.device)
    for hole in range(3):
        place = _uniform(x, generator, n, 2)
        top = (place[:, :1] * (height - side)).floor() - side // 2
        left = (place[:, 1:] * (width - side)).floor() - side // 2
        in_rows = (rows >= top) & (rows < top + side)  # [N, H]
        in_columns = (columns >= left) & (columns < left + side)  # [N, W]
        inside = in_rows[:, None, :, None] & in_columns[:, None, None, :]
        kept = kept.logical_and(~(inside & (k > hole)[:, None, None, None]))
    return x * kept


def noise(x: Tensor, k: Tensor, generator: torch.Generator) -> Tensor:
    """Add noise of kind k: none, Gaussian, speckle, salt and pepper.

        Gaussian  x + e        speckle  x + x e        e ~ N(0, 0.05)

    clipped to [0, 1]; salt and pepper sets 5 % of all values, half to 0 and half to 1. Departs from
    the authors' code, which stretches each image to [0, 1] before.

    Args:
        x: float [N, C, H, W], in [0, 1].
        k: int64 [N], in 0..3.

    Raises:
        ValueError: k is not [N].
    """
    _check_classes(x, k)
    k = k[:, None, None, None]
    normal = torch.randn(x.shape, generator=generator, device=generator.device).to(x.device)
    scale = (k == 1) + (k == 2) * x
    noisy: Tensor = (x + scale * (NOISE_VARIANCE**0.5 * normal).to(x.dtype)).clamp(0, 1)
    draw = _uniform(x, generator, *x.shape)
    noisy.masked_fill_((k == 3) & (draw < SALT_AND_PEPPER_FRACTION / 2), 0.0)
    noisy.masked_fill_((k == 3) & (draw > 1 - SALT_AND_PEPPER_FRACTION / 2), 1.0)
    return noisy


@dataclass(frozen=True, slots=True)
class StrongFamily:
    """One set A_n of strong augmentations; class 0 always leaves the image as it is."""

    classes: int
    """Number of classes, numbered from 0."""
    apply: Callable[[Tensor, Tensor, torch.Generator], Tensor]
    """(x float [N, 3, H, W], k int64 [N], generator) gives the augmented x."""
    moves: bool
    """Whether it moves pixels. If so, `apply` draws nothing and takes masks too: pass the mask with
    the same k. If not, masks stay as they are."""


STRONG: Mapping[str, StrongFamily] = MappingProxyType(
    {
        "none": StrongFamily(1, lambda x, k, generator: x, moves=False),
        "permutation": StrongFamily(4, lambda x, k, generator: half_swap(x, k), moves=True),
        "rotation": StrongFamily(4, lambda x, k, generator: rotate90(x, k), moves=True),
        "cutout": StrongFamily(4, cutout, moves=False),
        "noise": StrongFamily(4, noise, moves=False),
        "jigsaw": StrongFamily(24, lambda x, k, generator: jigsaw24(x, k), moves=True),
    }
)
"""The strong families by name. Permutation suits colonoscopy best, rotation fundus images (Tian et
al. 2021, section 3.3); "jigsaw" is ours, for comparison; "none" is plain contrastive learning."""


# --- weak augmentation ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WeakAugment:
    """Random resized crop, mirror, colour jitter, grey: the weak set A_p.

    Strengths are those of the authors' code. Departs from the torchvision transforms of that code:

    - order is fixed (brightness, contrast, saturation, hue, grey) and the five are one affine map
      of the colours, so values are clipped to [0, 1] once, at the end, and not after each;
    - the hue is turned in YIQ, which keeps brightness, and not in HSV;
    - contrast is about the mean brightness of the valid pixels;
    - no antialiasing: give images that are not much larger than `size`.

    Each image has its own parameters.
    """

    size: int
    """Side of the result, in pixels."""
    scale: tuple[float, float] = (0.2, 1.0)
    """Range of the crop's share of the area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the crop's width over height."""
    flip: float = 0.5
    """Probability of mirroring left and right."""
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    """Strengths of brightness, contrast, saturation (factors in 1 +- strength) and hue (turns)."""
    jitter_p: float = 0.8
    """Probability of colour jitter."""
    grey_p: float = 0.2
    """Probability of taking the colour away."""
    blur_p: float = 0.0
    """Probability of a Gaussian blur. In the paper's list, not in the authors' code: off."""
    blur_sigma_px: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's standard deviation, in pixels of the result (SimCLR's, at 224 px)."""
    cutout_p: float = 0.0
    """Probability of a square hole, filled with ImageNet's mean colour. In one released version of
    the authors' code, not in the paper: off."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1 px, got {self.size}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale must be a range within (0, 1], got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio must be a range above 0, got {self.ratio}")
        if min(self.jitter) < 0 or self.jitter[3] > 0.5:
            raise ValueError(f"jitter must be at least 0 and its hue at most 0.5: {self.jitter}")

    def __call__(
        self, x: Tensor, valid: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """One random view of each image.

        Args:
            x: float [N, 3, H, W], RGB in [0, 1].
            valid: bool [N, 1, H, W].
            generator: source of all randomness.

        Returns:
            float [N, 3, size, size] in [0, 1], and bool [N, 1, size, size] (None for None).
        """
        n, channels, height, width = x.shape
        if channels != 3:
            raise ValueError(f"x must be [N, 3, H, W], got {list(x.shape)}")
        box = random_crops(n, (height, width), self.scale, self.ratio, generator).to(x.device)
        mirrored = _uniform(x, generator, n) < self.flip
        x, valid = crop_resized(x, valid, box, mirrored, self.size)
        if self.jitter_p > 0 or self.grey_p > 0:
            x = adjust_colour(x, valid, *self._draw_colour(x, generator))
        if self.blur_p > 0:
            low, high = self.blur_sigma_px
            sigma_px = low + (high - low) * _uniform(x, generator, n)
            blurred = _uniform(x, generator, n) < self.blur_p
            soft = gaussian_blur(x, sigma_px, radius_px=math.ceil(3 * high))
            x = torch.where(blurred[:, None, None, None], soft, x)
        if self.cutout_p > 0:
            has_hole = _uniform(x, generator, n) < self.cutout_p
            hole = self._draw_holes(x, generator) & has_hole[:, None, None, None]
            x = torch.where(hole, _constant((IMAGENET_MEAN,), x.device, x.dtype).view(3, 1, 1), x)
        return x, valid

    def _draw_holes(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """One square an image, clipped to it, as bool [N, 1, size, size]."""
        side, row, column = _uniform(x, generator, 3, len(x), 1)
        half = (1 + side * (HOLE_FRACTION * self.size - 1)) / 2  # [N, 1]
        places = torch.arange(self.size, device=x.device) + 0.5
        in_rows = (places - row * self.size).abs() < half  # [N, size]
        in_columns = (places - column * self.size).abs() < half
        hole: Tensor = in_rows[:, None, :, None] & in_columns[:, None, None, :]
        return hole

    def _draw_colour(
        self, x: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Arguments of `adjust_colour`; an image without jitter gets factors of 1 and no turn."""
        n = len(x)
        jittered = _uniform(x, generator, n) < self.jitter_p
        draws = _uniform(x, generator, 4, n)
        factors = []
        for strength, draw in zip(self.jitter[:3], draws[:3], strict=True):
            low, high = max(0.0, 1 - strength), 1 + strength
            factors.append(torch.where(jittered, low + (high - low) * draw, 1.0))
        turn = torch.where(jittered, (2 * draws[3] - 1) * self.jitter[3], 0.0)
        grey = _uniform(x, generator, n) < self.grey_p
        return factors[0], factors[1], factors[2], turn, grey


def random_crops(
    count: int,
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: torch.Generator,
) -> Tensor:
    """Crop boxes, drawn as torchvision's RandomResizedCrop draws them.

    Area uniform, ratio log-uniform, ten attempts for a box that fits; then the largest centred box
    whose ratio is allowed.

    Returns:
        int64 [count, 4]: top, left, height, width in pixels, on the generator's device.
    """
    height, width = size
    draw = torch.rand((4, count, CROP_ATTEMPTS), generator=generator, device=generator.device)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draw[0])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + (high - low) * draw[1])
    widths, heights = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    first = fits.int().argmax(dim=1, keepdim=True)
    any_fits = fits.any(dim=1)
    whole_aspect = min(max(width / height, ratio[0]), ratio[1])
    whole_width = min(width, round(height * whole_aspect))
    whole_height = min(height, round(width / whole_aspect))
    h = torch.where(any_fits, heights.gather(1, first)[:, 0], float(whole_height))
    w = torch.where(any_fits, widths.gather(1, first)[:, 0], float(whole_width))
    room_y, room_x = height - h, width - w
    u, v = draw[2, :, 0], draw[3, :, 0]
    # a draw just below 1 may round up to room + 1
    top = torch.where(any_fits, torch.minimum((u * (room_y + 1)).floor(), room_y), room_y // 2)
    left = torch.where(any_fits, torch.minimum((v * (room_x + 1)).floor(), room_x), room_x // 2)
    return torch.stack([top, left, h, w], dim=1).long()


def crop_resized(
    x: Tensor, valid: Tensor | None, box: Tensor, mirrored: Tensor, size: int
) -> tuple[Tensor, Tensor | None]:
    """Cut a box out of each image, mirror it where asked, and resize it bilinearly.

    The same as cropping and then resizing one by one (half-pixel centres, no antialiasing): samples
    never reach beyond the box.

    Args:
        x: float [N, C, H, W].
        valid: bool [N, 1, H, W].
        box: int64 [N, 4]: top, left, height, width in pixels, inside the image.
        mirrored: bool [N].
        size: side of the result, in pixels.

    Returns:
        float [N, C, size, size]; bool [N, 1, size, size], true where at least 99 % of the sample's
        weight is on valid pixels (None for None).
    """
    top, left, h, w = box.to(torch.float32).unbind(1)
    centres = (torch.arange(size, device=x.device) + 0.5) / size  # [size], in boxes
    rows = _sample_positions(top, h, centres, x.shape[2])
    columns = _sample_positions(left, w, centres, x.shape[3])
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    grid = torch.stack(
        [
            columns[:, None, :].expand(-1, size, -1),
            rows[:, :, None].expand(-1, -1, size),
        ],
        dim=-1,
    ).to(x.dtype)  # [N, size, size, 2]
    sampled = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    if valid is None:
        return sampled, None
    share = F.grid_sample(
        valid.to(x.dtype), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    return sampled, share > 0.99


def adjust_colour(
    x: Tensor,
    valid: Tensor | None,
    brightness: Tensor,
    contrast: Tensor,
    saturation: Tensor,
    turn: Tensor,
    grey: Tensor,
) -> Tensor:
    """Brightness, contrast, saturation, hue and grey, in this order, as one affine map per image.

        x -> b x;   x -> c x + (1 - c) mean(Y);   x -> s x + (1 - s) Y;   turn of (I, Q);   x -> Y

    where Y is brightness (`LUMA`) and the mean is over the image's valid pixels.

    Args:
        x: float [N, 3, H, W], RGB in [0, 1].
        valid: bool [N, 1, H, W].
        brightness, contrast, saturation: float [N], factors; 1 changes nothing.
        turn: float [N], turns of the hue, from red towards yellow; 0 and 1 change nothing.
        grey: bool [N].

    Returns:
        float [N, 3, H, W], clipped to [0, 1].
    """
    n, _, height, width = x.shape
    luma = _constant((LUMA,), x.device, x.dtype)[0]
    to_yiq = _constant(_RGB_TO_YIQ, x.device, x.dtype)
    to_rgb = _constant(_YIQ_TO_RGB, x.device, x.dtype)
    if valid is None:
        mean_rgb = x.mean(dim=(2, 3))
    else:
        counted = valid.sum(dim=(2, 3)).clamp(min=1)
        mean_rgb = (x * valid).sum(dim=(2, 3)) / counted  # [N, 3]
    mean_luma = brightness * (mean_rgb @ luma)  # [N]

    # chroma scales by saturation and turns by the hue; grey sets it to 0: all in the YIQ frame
    angle = 2 * math.pi * turn
    chroma = saturation * ~grey
    cosine, sine = chroma * angle.cos(), chroma * angle.sin()
    in_yiq = torch.zeros((n, 3, 3), device=x.device, dtype=x.dtype)
    in_yiq[:, 0, 0] = 1
    in_yiq[:, 1, 1] = cosine
    in_yiq[:, 1, 2] = sine  # clockwise: red, yellow, green, as in HSV
    in_yiq[:, 2, 1] = -sine
    in_yiq[:, 2, 2] = cosine
    matrix = to_rgb @ in_yiq @ to_yiq * (brightness * contrast)[:, None, None]
    # a grey offset has no chroma: the steps after contrast leave it as it is
    offset = ((1 - contrast) * mean_luma)[:, None, None].expand(n, 3, 1)
    return torch.baddbmm(offset, matrix, x.reshape(n, 3, -1)).clamp_(0, 1).view(n, 3, height, width)


def gaussian_blur(x: Tensor, sigma_px: Tensor, *, radius_px: int) -> Tensor:
    """Blur each image with its own Gaussian, cut at `radius_px`; borders are reflected.

    Args:
        x: float [N, C, H, W], H and W above `radius_px`.
        sigma_px: float [N], standard deviations.

    Returns:
        As x.
    """
    n, channels, height, width = x.shape
    taps = torch.arange(-radius_px, radius_px + 1, device=x.device)
    kernel = torch.softmax(-(taps**2) / (2 * sigma_px[:, None] ** 2), dim=1).to(x.dtype)
    kernel = kernel.repeat_interleave(channels, dim=0)[:, None, None]  # [N*C, 1, 1, taps]
    planes = F.pad(x, (radius_px,) * 4, mode="reflect")
    planes = planes.view(1, n * channels, height + 2 * radius_px, width + 2 * radius_px)
    planes = F.conv2d(planes, kernel, groups=n * channels)
    planes = F.conv2d(planes, kernel.transpose(2, 3), groups=n * channels)
    return planes.view(n, channels, height, width)


# --- patches -------------------------------------------------------------------------------------


def neighbour_steps(count: int, patch_px: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """How far, and in which of eight directions, second patches lie from first ones.

    The direction is uniform, and the step along each axis is

        d * (3p/4 + U{0 .. p/4 - 1}),   d in {-1, 0, 1}

    so that neighbours overlap by 1 to 8 px (p = 32). Tian et al. 2021, eq. 4; sampling as in the
    authors' code, from Yi & Yoon 2020 (Patch SVDD).

    Args:
        patch_px: side p of a patch; a multiple of 4.

    Returns:
        direction int64 [count], index in `NEIGHBOURS`, and step int64 [count, 2]: rows, columns; on
        the generator's device.

    Raises:
        ValueError: a side that is no multiple of 4.
    """
    if patch_px < 4 or patch_px % 4:
        raise ValueError(f"patch_px must be a multiple of 4, got {patch_px}")
    device = generator.device
    direction = torch.randint(len(NEIGHBOURS), (count,), generator=generator, device=device)
    extra = torch.randint(patch_px // 4, (count, 2), generator=generator, device=device)
    signs = _constant(NEIGHBOURS, device, torch.int64)[direction]
    return direction, signs * (3 * patch_px // 4 + extra)


def cut_patches(images: Tensor, image: Tensor, top: Tensor, left: Tensor, patch_px: int) -> Tensor:
    """Patch i out of `images[image[i]]`, its top left corner at (top[i], left[i]).

    Args:
        images: any dtype [N, C, H, W]. image, top, left: int64 [count].

    Returns:
        As images, [count, C, p, p].
    """
    windows = images.unfold(2, patch_px, 1).unfold(3, patch_px, 1)  # a view, nothing is copied
    return windows[image, :, top, left]


def grid_patches(images: Tensor, patch_px: int, stride_px: int) -> Tensor:
    """All patches of a regular grid, row by row; fixed control flow, for export.

    Args:
        images: any dtype [N, C, H, W].
        patch_px: side p of a patch.
        stride_px: step between patches; 16 px gives 225 patches of 32 px in an image of 256 px.

    Returns:
        As images, [N, P, C, p, p]; patch (i, j) of the grid is at index i * columns + j, with its
        top left corner at (i * stride_px, j * stride_px). A rest at the right and bottom is not
        covered.

    Raises:
        ValueError: images smaller than a patch, or a stride below 1.
    """
    _check_patch(images, patch_px)
    if stride_px < 1:
        raise ValueError(f"stride_px must be at least 1, got {stride_px}")
    patches = images.unfold(2, patch_px, stride_px).unfold(3, patch_px, stride_px)
    # [N, C, rows, columns, p, p] -> [N, rows, columns, C, p, p]
    return patches.permute(0, 2, 3, 1, 4, 5).flatten(1, 2)


# --- inner workings ------------------------------------------------------------------------------


@cache
def _constant(
    values: tuple[tuple[float, ...], ...], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """`values` on the device, copied there once: a copy in every step would wait for the device."""
    return torch.tensor(values, device=device, dtype=dtype)


def _uniform(like: Tensor, generator: torch.Generator, *shape: int) -> Tensor:
    """float32 in [0, 1), drawn where the generator lives, brought to where `like` does."""
    return torch.rand(shape, generator=generator, device=generator.device).to(like.device)


def _check_classes(x: Tensor, k: Tensor) -> None:
    if x.ndim != 4 or tuple(k.shape) != (len(x),):
        raise ValueError(
            f"x must be [N, C, H, W] and k [N], got {list(x.shape)} and {list(k.shape)}"
        )


def _move_tiles(x: Tensor, order: Tensor) -> Tensor:
    """Rearrange quarters: place q of image n gets quarter `order[n, q]`; int64 [N, 4]."""
    n, c, height, width = x.shape
    if height % 2 or width % 2:
        raise ValueError(f"height and width must be even to be halved, got {height}x{width}")
    h, w = height // 2, width // 2
    tiles = x.view(n, c, 2, h, 2, w).permute(0, 2, 4, 1, 3, 5).reshape(4 * n, c, h, w)
    source = order + 4 * torch.arange(n, device=x.device)[:, None]
    tiles = tiles.index_select(0, source.flatten()).view(n, 2, 2, c, h, w)
    return tiles.permute(0, 3, 1, 4, 2, 5).reshape(n, c, height, width)


def _sample_positions(start: Tensor, length: Tensor, centres: Tensor, full: int) -> Tensor:
    """Where to sample along one axis, in grid_sample's units (-1 and 1 are the image's edges).

    Positions stay between the centres of the first and last pixel of the box, as a crop that is
    resized by itself repeats its border.
    """
    start, length = start[:, None], length[:, None]
    positions = start + length * centres  # [N, size], in pixels, 0 is the image's edge
    positions = torch.maximum(positions, start + 0.5)
    positions = torch.minimum(positions, start + length - 0.5)
    return 2 * positions / full - 1


def _check_patch(images: Tensor, patch_px: int) -> None:
    if images.ndim != 4 or patch_px < 1 or min(images.shape[2:]) < patch_px:
        raise ValueError(
            f"images must be [N, C, H, W] with H and W at least {patch_px} px, "
            f"got {list(images.shape)}"
        )
