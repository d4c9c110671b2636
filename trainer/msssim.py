"""Structural similarity on several scales: two images in, one similarity or one residual map out.

`ms_ssim` is the training loss's number per image (filters see whole windows only); `residual_map`
is the picture of where two images differ, and is built so that it can be exported: fixed control
flow, any batch size. Both work at 32 px and at 256 px; the settings for the two are `LOCAL` and
`GLOBAL`.

Wang, Simoncelli, Bovik 2003, "Multi-scale structural similarity for image quality assessment".
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SIGMA_PX = 1.5
"""Standard deviation of the Gaussian window (Wang et al. 2004)."""

K1, K2 = 0.01, 0.03
"""Stabilisers of luminance and contrast, as shares of the data range (Wang et al. 2004)."""

LUMA = (0.299, 0.587, 0.114)
"""Shares of R, G, B in brightness (ITU-R BT.601)."""


@dataclass(frozen=True, slots=True)
class Scales:
    """Window and weights of the scales, finest first."""

    window: int
    """Side of the Gaussian window, in pixels; odd."""
    weights: tuple[float, ...]
    """Exponent of each scale in `ms_ssim`, weight of each in the maps."""


GLOBAL = Scales(window=11, weights=(0.0448, 0.2856, 0.3001, 0.2363, 0.1333))
"""For 256 px: the five scales of Wang et al. 2003."""

LOCAL = Scales(window=3, weights=(0.0516, 0.3295, 0.3463, 0.2726))
"""For 32 px: the first four of those, made to sum to 1, as in IGD's code."""


def scales_of(size_px: int) -> Scales:
    """The scales for pictures of a side: LOCAL to 32 px, above it as many of GLOBAL as fit."""
    if size_px <= 32:
        return LOCAL
    fitting = int(math.log2(size_px / GLOBAL.window)) + 1
    weights = GLOBAL.weights[:fitting]
    return Scales(GLOBAL.window, tuple(w / sum(weights) for w in weights))


def ms_ssim(
    x: Tensor,
    y: Tensor,
    *,
    window: int,
    weights: tuple[float, ...],
    data_range: float,
    eps: float = 1e-4,
) -> Tensor:
    """Multi-scale structural similarity of each pair of images.

        MSSSIM = mean_channels( l_S^w_S * prod_s cs_s^w_s )

        l  = (2 mu_x mu_y + C1) / (mu_x^2 + mu_y^2 + C1)                 mean over pixels
        cs = (2 sigma_xy + C2) / (sigma_x^2 + sigma_y^2 + C2)            mean over pixels

    where l enters at the coarsest scale S only (as the mean of l * cs). Wang et al. 2003, eq. 7.
    Statistics are of a Gaussian window that lies inside the image; each coarser scale is the 2x2
    mean of the one before (an odd last row or column is left out).

    Departs from the usual code (pytorch-msssim, IGD) in one thing: a factor below `eps` counts as
    `eps`, where theirs counts as 0. With zero, one scale that disagrees takes away the gradient of
    all the others. The size is checked scale by scale, so four scales of window 3 fit 32 px.

    Args:
        x, y: float [N, C, H, W].
        window: side of the window, in pixels; odd.
        weights: exponent of each scale, finest first.
        data_range: largest minus smallest value that a pixel can take.
        eps: least value of a factor, > 0. It also bounds the gradient, which grows as
            factor^(weight - 1) towards it.

    Returns:
        float32 [N], in (0, 1]; 1 for identical images.

    Raises:
        ValueError: shapes differ, an even window, or images too small for the coarsest scale.
    """
    _check(x, y, window, weights)
    smallest = min(x.shape[2:]) >> (len(weights) - 1)
    if smallest < window:
        raise ValueError(
            f"images of {x.shape[2]}x{x.shape[3]} px are {smallest} px small at scale "
            f"{len(weights)}, and the window needs {window}: take fewer scales or a smaller window"
        )
    with torch.autocast(x.device.type, enabled=False):
        x, y = x.float(), y.float()
        similarity = x.new_ones(x.shape[:2])  # [N, C]
        for scale, weight in enumerate(weights):
            if scale > 0:
                x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
            luminance, structure = _luminance_and_structure(x, y, window, data_range)
            if scale == len(weights) - 1:
                structure = luminance * structure
            factor = structure.mean(dim=(2, 3)).clamp(min=eps)
            similarity = similarity * factor**weight
        return similarity.mean(dim=1)


def ssim_residual_map(
    x: Tensor,
    y: Tensor,
    *,
    window: int,
    weights: tuple[float, ...],
    data_range: float,
    valid: Tensor | None = None,
) -> Tensor:
    """Where, and how much, two images differ in structure.

        r(p) = sum_s w_s * sum_c luma_c * (1 - max(l_s, 0) * max(cs_s, 0))(p)

    with l and cs per pixel as in `ms_ssim`; coarser scales are enlarged bilinearly. The map of
    IGD's code, with three departures. (1) Images are padded by reflection before filtering: theirs
    filters inside the image only and stretches the smaller result over the whole, which shows
    what lies at the border up to 67 px away from its place (256 px, fifth scale). (2) Bilinear
    instead of nearest enlargement. (3) The two factors are cut at 0 one by one, so that two
    negative ones do not make a likeness.

    Where `valid` is false y counts as equal to x, and the map is 0. A window that reaches over such
    pixels sees agreement there, so the residual beside them is lowered, never raised.

    An engine must run it in float32: the variances are small differences of large means, and in
    bfloat16 single pixels come out wrong by up to 0.5.

    Args:
        x, y: float [N, 3, H, W], RGB.
        window, weights, data_range: as for `ms_ssim`.
        valid: bool [N, 1, H, W], or the same as 0 and 1.

    Returns:
        float32 [N, 1, H, W], in [0, sum of weights]; 0 for identical images.

    Raises:
        ValueError: shapes that do not fit, or images too small for the coarsest scale.
    """
    _check(x, y, window, weights)
    size = (x.shape[2], x.shape[3])
    smallest = min(size) >> (len(weights) - 1)
    if smallest <= window // 2:
        raise ValueError(
            f"images of {size[0]}x{size[1]} px are {smallest} px small at scale {len(weights)}, "
            f"and a window of {window} needs {window // 2 + 1} to be padded by reflection"
        )
    x, y = x.float(), y.float()
    if valid is not None:
        y = torch.where(valid.bool(), y, x)
    padding = (window // 2,) * 4
    total = x.new_zeros(())
    for scale, weight in enumerate(weights):
        if scale > 0:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        luminance, structure = _luminance_and_structure(
            F.pad(x, padding, mode="reflect"), F.pad(y, padding, mode="reflect"), window, data_range
        )
        unlike = _brightness(1 - F.relu(luminance) * F.relu(structure))  # [N, 1, h, w]
        if scale > 0:
            unlike = F.interpolate(unlike, size=size, mode="bilinear", align_corners=False)
        total = total + weight * unlike
    # rounding can leave -1e-7 where images agree
    total = F.relu(total)
    return total if valid is None else total * valid


def residual_map(
    x: Tensor,
    x_hat: Tensor,
    *,
    rho: float = 0.15,
    window: int,
    weights: tuple[float, ...],
    data_range: float,
    valid: Tensor | None = None,
) -> Tensor:
    """The anomaly map of a reconstruction: the per-pixel counterpart of `losses.reconstruction`.

        r(p) = (1 - rho) * ssim_residual_map(p) + rho * sum_c luma_c |x - x^|(p) / data_range

    As in IGD's code; there is no Gaussian term, which eq. 5 of the paper would have.

    Args:
        x, x_hat: float [N, 3, H, W], RGB.
        rho: share of the absolute error, in [0, 1].
        window, weights, data_range, valid: as for `ssim_residual_map`.

    Returns:
        float32 [N, 1, H, W], at least 0; 0 for a perfect reconstruction and where not valid.

    Raises:
        ValueError: as `ssim_residual_map`.
    """
    structure = ssim_residual_map(
        x, x_hat, window=window, weights=weights, data_range=data_range, valid=valid
    )
    absolute = _brightness((x.float() - x_hat.float()).abs()) / data_range
    if valid is not None:
        absolute = absolute * valid
    return (1 - rho) * structure + rho * absolute


def _luminance_and_structure(
    x: Tensor, y: Tensor, window: int, data_range: float
) -> tuple[Tensor, Tensor]:
    """l and cs of every window that fits: each float [N, C, H - window + 1, W - window + 1]."""
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    # only sigma_x^2 + sigma_y^2 is ever needed, so four filtered planes do instead of five
    planes = torch.cat([x, y, x * x + y * y, 2 * (x * y)], dim=1)
    mean_x, mean_y, mean_squares, mean_product = _blur(planes, window).chunk(4, dim=1)
    squares = mean_x * mean_x + mean_y * mean_y
    product = 2 * (mean_x * mean_y)
    luminance = (product + c1) / (squares + c1)
    structure = (mean_product - product + c2) / (mean_squares - squares + c2)
    return luminance, structure


def _blur(planes: Tensor, window: int) -> Tensor:
    """Gaussian mean of each plane over windows that fit: rows first, then columns."""
    channels = planes.shape[1]
    taps = [math.exp(-((i - window // 2) ** 2) / (2 * SIGMA_PX**2)) for i in range(window)]
    kernel = torch.tensor(
        [tap / sum(taps) for tap in taps], dtype=planes.dtype, device=planes.device
    ).repeat(channels, 1, 1, 1)  # [C, 1, 1, window]
    planes = F.conv2d(planes, kernel, groups=channels)
    return F.conv2d(planes, kernel.transpose(2, 3), groups=channels)


def _brightness(rgb: Tensor) -> Tensor:
    """float [N, 3, H, W] -> float [N, 1, H, W]."""
    return LUMA[0] * rgb[:, 0:1] + LUMA[1] * rgb[:, 1:2] + LUMA[2] * rgb[:, 2:3]


def _check(x: Tensor, y: Tensor, window: int, weights: tuple[float, ...]) -> None:
    if x.ndim != 4 or x.shape != y.shape:
        raise ValueError(
            f"both images must be [N, C, H, W], got {list(x.shape)} and {list(y.shape)}"
        )
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd, got {window}")
    if not weights:
        raise ValueError("weights must have one entry a scale, got none")
