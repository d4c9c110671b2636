"""MS-SSIM and residual maps: a slow version from the equations, pytorch-msssim, closed forms."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.msssim import GLOBAL, LOCAL, LUMA, Scales, ms_ssim, residual_map, ssim_residual_map

RANGE = 4.7579
"""Largest minus smallest value of an image normalised with ImageNet's statistics."""


def pair(n: int, size: int, seed: int = 0, noise: float = 0.5) -> tuple[Tensor, Tensor]:
    """Smooth images in about ImageNet's normalised range, and noisy ones."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, 3, size // 4, size // 4, generator=generator)
    x = F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(-2.1, 2.6)
    return x, x + noise * torch.randn(n, 3, size, size, generator=generator)


def settings(scales: Scales) -> dict[str, Any]:
    return {"window": scales.window, "weights": scales.weights, "data_range": RANGE}


def gaussian_window(window: int) -> np.ndarray:
    offset = np.arange(window) - window // 2
    kernel = np.exp(-(offset**2) / (2 * 1.5**2))
    kernel = np.outer(kernel, kernel)
    return kernel / kernel.sum()


def slow_statistics(x: np.ndarray, y: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """l and cs of every whole window of one channel, float64, from the definitions of variance."""
    kernel = gaussian_window(window)
    c1, c2 = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2
    rows, columns = x.shape[0] - window + 1, x.shape[1] - window + 1
    luminance, structure = np.empty((rows, columns)), np.empty((rows, columns))
    for i in range(rows):
        for j in range(columns):
            a = x[i : i + window, j : j + window]
            b = y[i : i + window, j : j + window]
            mean_a, mean_b = (kernel * a).sum(), (kernel * b).sum()
            variance_a = (kernel * (a - mean_a) ** 2).sum()
            variance_b = (kernel * (b - mean_b) ** 2).sum()
            covariance = (kernel * (a - mean_a) * (b - mean_b)).sum()
            luminance[i, j] = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
            structure[i, j] = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return luminance, structure


def halve(x: np.ndarray) -> np.ndarray:
    return (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4


def slow_ms_ssim(x: np.ndarray, y: np.ndarray, scales: Scales) -> float:
    """Wang et al. 2003, eq. 7, channel by channel; x and y [C, H, W]."""
    values = []
    for a, b in zip(x.astype(np.float64), y.astype(np.float64), strict=True):
        value = 1.0
        for scale, weight in enumerate(scales.weights):
            if scale > 0:
                a, b = halve(a), halve(b)
            luminance, structure = slow_statistics(a, b, scales.window)
            last = scale == len(scales.weights) - 1
            value *= (luminance * structure if last else structure).mean() ** weight
        values.append(value)
    return float(np.mean(values))


def test_ms_ssim_at_32_px_is_the_papers_equation() -> None:
    x, y = pair(2, 32)
    fast = ms_ssim(x, y, **settings(LOCAL))
    for i in range(2):
        slow = slow_ms_ssim(x[i].numpy(), y[i].numpy(), LOCAL)
        assert 0.2 < slow < 0.98  # far enough from both ends to tell
        assert fast[i].item() == pytest.approx(slow, rel=1e-5)


@pytest.mark.parametrize("noise", [0.05, 0.5, 2.0])
def test_ms_ssim_at_256_px_agrees_with_pytorch_msssim(noise: float) -> None:
    other = pytest.importorskip("pytorch_msssim", reason="the other implementation is absent")
    x, y = pair(2, 256, noise=noise)
    expected = other.ms_ssim(x, y, data_range=RANGE, size_average=False, win_size=11)
    torch.testing.assert_close(ms_ssim(x, y, **settings(GLOBAL)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("scales", "size"), [(LOCAL, 32), (GLOBAL, 256), (GLOBAL, 176)])
def test_identical_images_are_alike_everywhere(scales: Scales, size: int) -> None:
    x, _ = pair(2, size)
    torch.testing.assert_close(ms_ssim(x, x, **settings(scales)), torch.ones(2))
    residual = residual_map(x, x, **settings(scales))
    torch.testing.assert_close(residual, torch.zeros(2, 1, size, size), atol=1e-6, rtol=0)


def test_ms_ssim_is_symmetric_and_falls_with_noise() -> None:
    x, noise = pair(1, 32)[0], torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    values = [ms_ssim(x, x + s * noise, **settings(LOCAL)).item() for s in (0.0, 0.2, 0.6, 2.0)]
    assert values == sorted(values, reverse=True) and len(set(values)) == 4
    y = x + noise
    torch.testing.assert_close(ms_ssim(x, y, **settings(LOCAL)), ms_ssim(y, x, **settings(LOCAL)))


def test_two_plain_images_differ_by_luminance_at_the_coarsest_scale_alone() -> None:
    a, b = 1.0, 2.0
    x, y = torch.full((1, 3, 32, 32), a), torch.full((1, 3, 32, 32), b)
    c1 = (0.01 * RANGE) ** 2
    luminance = (2 * a * b + c1) / (a * a + b * b + c1)
    expected = luminance ** LOCAL.weights[-1]
    assert ms_ssim(x, y, **settings(LOCAL)).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("scales", "size"), [(LOCAL, 32), (GLOBAL, 256)])
def test_the_negative_of_an_image_is_unlike_it_and_breaks_nothing(
    scales: Scales, size: int
) -> None:
    """Every factor is negative there: powers of them would be NaN."""
    x, _ = pair(1, size)
    y = (-x).requires_grad_()
    value = ms_ssim(x, y, **settings(scales))
    (gradient,) = torch.autograd.grad(value.sum(), y)
    assert 0 < value.item() < 0.05
    assert gradient.isfinite().all()


def test_one_disagreeing_scale_leaves_the_gradient_of_the_others() -> None:
    """A checkerboard turned over disagrees at the finest scale and is grey at every other."""
    checks = torch.ones(32, 32)
    checks[::2, ::2] = checks[1::2, 1::2] = -1
    x, _ = pair(1, 32)
    y = (x - 3 * checks).requires_grad_()
    value = ms_ssim(x + 3 * checks, y, **settings(LOCAL))
    (gradient,) = torch.autograd.grad(value.sum(), y)
    assert value.item() > 0.2
    assert gradient.abs().sum() > 0


def test_gradients_are_finite_at_a_perfect_and_at_a_plain_reconstruction() -> None:
    x, _ = pair(1, 32)
    for y in (x.clone(), torch.zeros_like(x), torch.full_like(x, -2.0)):
        y.requires_grad_()
        (gradient,) = torch.autograd.grad(ms_ssim(x, y, **settings(LOCAL)).sum(), y)
        assert gradient.isfinite().all()


def test_autocast_does_not_change_ms_ssim() -> None:
    x, y = pair(1, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = ms_ssim(x, y, **settings(LOCAL))
    assert low.dtype == torch.float32
    assert torch.equal(low, ms_ssim(x, y, **settings(LOCAL)))


def test_images_too_small_for_the_coarsest_scale_are_refused() -> None:
    x, y = pair(1, 32)
    with pytest.raises(ValueError, match="at scale 5, and the window needs 11"):
        ms_ssim(x, y, **settings(GLOBAL))
    with pytest.raises(ValueError, match="at scale 5, and a window of 11 needs 6"):
        ssim_residual_map(x, y, **settings(GLOBAL))
    with pytest.raises(ValueError, match="odd"):
        ms_ssim(x, y, window=4, weights=(1.0,), data_range=1.0)
    with pytest.raises(ValueError, match=r"\[N, C, H, W\]"):
        ms_ssim(x, y[..., :16], **settings(LOCAL))
    with pytest.raises(ValueError, match="weights"):
        ms_ssim(x, y, window=3, weights=(), data_range=1.0)


def slow_residual_map(x: np.ndarray, y: np.ndarray, scales: Scales) -> np.ndarray:
    """One image [3, H, W]: statistics by loops, numpy's reflection, enlargement by definition."""
    height, width = x.shape[1:]
    total = np.zeros((height, width))
    for channel in range(3):
        a, b = x[channel].astype(np.float64), y[channel].astype(np.float64)
        for scale, weight in enumerate(scales.weights):
            if scale > 0:
                a, b = halve(a), halve(b)
            pad = scales.window // 2
            luminance, structure = slow_statistics(
                np.pad(a, pad, mode="reflect"), np.pad(b, pad, mode="reflect"), scales.window
            )
            unlike = 1 - np.maximum(luminance, 0) * np.maximum(structure, 0)
            total += weight * LUMA[channel] * enlarge(unlike, height, width)
    return total


def enlarge(small: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear with half-pixel centres, repeated borders."""

    def weights(full: int, size: int) -> np.ndarray:
        matrix = np.zeros((full, size))
        for i in range(full):
            at = min(max((i + 0.5) * size / full - 0.5, 0), size - 1)
            low = min(int(at), size - 2)
            matrix[i, low], matrix[i, low + 1] = 1 - (at - low), at - low
        return matrix

    return weights(height, small.shape[0]) @ small @ weights(width, small.shape[1]).T


def test_the_residual_map_is_its_equation() -> None:
    x, y = pair(2, 32)
    structure = ssim_residual_map(x, y, **settings(LOCAL))
    both = residual_map(x, y, rho=0.15, **settings(LOCAL))
    assert both.shape == (2, 1, 32, 32)
    for i in range(2):
        slow = slow_residual_map(x[i].numpy(), y[i].numpy(), LOCAL)
        np.testing.assert_allclose(structure[i, 0].numpy(), slow, atol=1e-5)
        absolute = np.tensordot(LUMA, np.abs(x[i].numpy() - y[i].numpy()), axes=1) / RANGE
        np.testing.assert_allclose(both[i, 0].numpy(), 0.85 * slow + 0.15 * absolute, atol=1e-5)


@pytest.mark.parametrize("corner", [(0, 0), (0, 240), (240, 0), (120, 120)])
def test_a_difference_shows_where_it_is_even_in_a_corner(corner: tuple[int, int]) -> None:
    """With unpadded filters stretched back, the coarsest scale alone is 67 px off there."""
    x, _ = pair(1, 256)
    y = x.clone()
    top, left = corner
    y[:, :, top : top + 16, left : left + 16] += 2 * torch.randn(
        1, 3, 16, 16, generator=torch.Generator().manual_seed(4)
    )
    residual = residual_map(x, y, **settings(GLOBAL))[0, 0]
    row, column = divmod(int(residual.argmax()), 256)
    assert top <= row < top + 16 and left <= column < left + 16
    near = F.pad(torch.ones(16, 16), (left, 240 - left, top, 240 - top))
    near = F.max_pool2d(near[None], 2 * 48 + 1, stride=1, padding=48)[0] > 0
    assert residual[near].sum() > 0.9 * residual.sum()


@pytest.mark.parametrize("flip", [(2,), (3,), (2, 3)])
def test_the_map_of_mirrored_images_is_the_mirrored_map(flip: tuple[int, ...]) -> None:
    x, y = pair(1, 32)
    turned = residual_map(x.flip(flip), y.flip(flip), **settings(LOCAL))
    torch.testing.assert_close(turned.flip(flip), residual_map(x, y, **settings(LOCAL)))


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_invalid_pixels_show_nothing_and_change_nothing(dtype: torch.dtype) -> None:
    x, y = pair(1, 32)
    mask = torch.ones(1, 1, 32, 32, dtype=torch.bool)
    mask[..., 20:] = False
    scrambled = torch.where(mask, y, torch.randn(1, 3, 32, 32))
    shown = residual_map(x, y, valid=mask.to(dtype), **settings(LOCAL))
    assert (shown[~mask] == 0).all() and (shown[mask] > 0).any()
    assert torch.equal(shown, residual_map(x, scrambled, valid=mask.to(dtype), **settings(LOCAL)))


def test_opposite_luminance_and_opposite_structure_do_not_make_a_likeness() -> None:
    """-1.5 + texture against 1.5 - texture: both factors are negative, their product is not."""
    texture = 0.5 * torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    x, y = -1.5 + texture, 1.5 - texture
    residual = ssim_residual_map(x, y, window=3, weights=(1.0,), data_range=RANGE)
    assert residual.min().item() > 0.99


class Residual(nn.Module):
    def forward(self, x: Tensor, x_hat: Tensor, valid: Tensor) -> Tensor:
        return residual_map(
            x, x_hat, window=LOCAL.window, weights=LOCAL.weights, data_range=RANGE, valid=valid
        )


def test_the_map_exports_once_for_any_batch_size() -> None:
    batch = torch.export.Dim("batch", min=1, max=256)
    x, y = pair(3, 32)
    valid = torch.ones(3, 1, 32, 32, dtype=torch.bool)
    program = torch.export.export(
        Residual(),
        (x, y, valid),
        dynamic_shapes={"x": {0: batch}, "x_hat": {0: batch}, "valid": {0: batch}},
    )
    for n in (1, 5):
        x, y = pair(n, 32, seed=n)
        valid = torch.rand(n, 1, 32, 32) > 0.2
        torch.testing.assert_close(program.module()(x, y, valid), Residual()(x, y, valid))


def test_the_weights_for_32_px_are_the_first_four_made_to_sum_to_one() -> None:
    first = np.array(GLOBAL.weights[:4])
    np.testing.assert_allclose(LOCAL.weights, first / first.sum(), atol=1e-4)
    assert math.isclose(sum(GLOBAL.weights), 1, abs_tol=1e-3)
