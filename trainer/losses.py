"""The training losses: features, predictions and reconstructions in, losses out.

Stage 1 (constrained contrastive distribution learning, eq. 1) is the sum of `contrastive`,
`augmentation_classification` and `position_classification`; stage 2 (IGD) is the sum of
`reconstruction`, `gaussian_loss` and `interpolation_regulariser`, against `critic_loss`. Equation
numbers are those of Tian et al. 2021, "Constrained Contrastive Distribution Learning for
Unsupervised Anomaly Detection and Localisation in Medical Images". Every function is pure, and
computes in float32 also under autocast.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

DIRECTIONS = 8
"""Neighbours of a patch: classes of the position loss."""

CENTRE_MARGIN = 0.1
"""Least distance from zero of each coordinate of a centre (Ruff et al. 2018, Deep SVDD, whose
released code has it): a coordinate at zero could be met by switching all its weights off."""

MIN_SPREAD = 1.0
"""Least spread of the Gaussian classifier, as in IGD's code."""


def contrastive(
    z1: Tensor,
    z2: Tensor,
    *,
    temperature: float,
    strong: Tensor | None = None,
    negatives: Literal["batch", "same_strong"] = "batch",
    symmetric: bool = False,
) -> Tensor:
    """Contrastive distribution loss of a batch of positive pairs.

        l(i) = -log( exp(s(i, i') / t) / sum_{k != i} exp(s(i, k) / t) ),   s = cosine

    where i' is the other view of item i and k runs over the 2N rows of both views that are i' or a
    negative. Eq. 2, averaged over the anchors i.

    Departs from eq. 2 by default, as in the authors' code: a row of any strong class is a negative,
    where the text contrasts only items under the same strong augmentation
    (`negatives="same_strong"`). Anchors are the first views only, as in that code;
    `symmetric` takes both views, which is SimCLR's loss.

    Args:
        z1, z2: float [N, D], projections of two weak views of the same N items (an item is an image
            under one strong augmentation): row i of each is a positive pair. Any length.
        temperature: t > 0. Smaller weighs the hardest negatives more.
        strong: int64 [N], strong class of each item; needed for "same_strong".

    Returns:
        float32 [], in nats; log(2N - 1) where all projections are equal and every row counts.

    Raises:
        ValueError: shapes that do not fit, or "same_strong" without `strong`.
    """
    if z1.ndim != 2 or z1.shape != z2.shape:
        raise ValueError(
            f"z1 and z2 must both be [N, D], got {list(z1.shape)} and {list(z2.shape)}"
        )
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    n = len(z1)
    anchors = 2 * n if symmetric else n
    with torch.autocast(z1.device.type, enabled=False):
        z = F.normalize(torch.cat([z1, z2]).float(), dim=1)  # [2N, D]
        logits = z[:anchors] @ z.T / temperature  # [anchors, 2N]
    row = torch.arange(2 * n, device=z.device)
    left_out = row[:anchors, None] == row  # k = i
    if negatives == "same_strong":
        if strong is None:
            raise ValueError('negatives="same_strong" needs strong, int64 [N]')
        _expect("strong", strong, (n,))
        classes = view_labels(strong)
        left_out = left_out | (classes[:anchors, None] != classes)
    elif negatives != "batch":
        raise ValueError(f'negatives must be "batch" or "same_strong", got {negatives!r}')
    partner = row.roll(n)[:anchors]  # i <-> i + N
    return F.cross_entropy(logits.masked_fill(left_out, float("-inf")), partner)


def view_labels(strong: Tensor) -> Tensor:
    """Labels of a batch made by `torch.cat([view1, view2])`: the items' labels, twice over.

    Views stacked one after the other, never interleaved (item 0 view 1, item 0 view 2, ...): the
    authors' released code mixes the two orders, and so trains on shuffled labels.

    Args:
        strong: int64 [N].

    Returns:
        int64 [2N].
    """
    return torch.cat([strong, strong])


def augmentation_classification(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of the strong augmentation that each row has been through. Eq. 3.

        l = -mean_m log softmax(logits_m)[label_m]

    Departs from the authors' code, whose labels are in another order than its rows: use
    `view_labels` where the rows are both views.

    Args:
        logits: float [M, K], K strong classes.
        labels: int64 [M], in 0..K-1.

    Raises:
        ValueError: shapes that do not fit.
    """
    if logits.ndim != 2:
        raise ValueError(f"logits must be [M, K], got {list(logits.shape)}")
    _expect("labels", labels, (len(logits),))
    return F.cross_entropy(logits.float(), labels)


def position_classification(logits: Tensor, direction: Tensor) -> Tensor:
    """Cross entropy of the direction in which the second patch lies from the first. Eq. 4.

    Args:
        logits: float [N, 8], in the order of `trainer.augment.NEIGHBOURS`.
        direction: int64 [N], in 0..7.

    Raises:
        ValueError: shapes that do not fit.
    """
    if logits.ndim != 2 or logits.shape[1] != DIRECTIONS:
        raise ValueError(f"logits must be [N, {DIRECTIONS}], got {list(logits.shape)}")
    _expect("direction", direction, (len(logits),))
    return F.cross_entropy(logits.float(), direction)


def reconstruction(
    x: Tensor,
    x_hat: Tensor,
    *,
    rho: float = 0.15,
    data_range: float,
    valid: Tensor | None = None,
    ms_ssim: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Reconstruction error of each image.

        l = rho * mean|x - x^| / data_range + (1 - rho) * (1 - MSSSIM(x, x^))

    Eq. 6 for one of its two networks: the text's global and local MS-SSIM are those of two networks
    and meet in the final score only. The division by `data_range` is the authors' code's.

    Where `valid` is false x^ is replaced by x, and the mean is over valid pixels only: what lies
    there changes neither the loss nor any gradient through x^.

    Args:
        x, x_hat: float [N, C, H, W].
        rho: share of the absolute error, in [0, 1]; 0.15 in IGD's code.
        data_range: largest minus smallest value that x can take.
        valid: bool [N, 1, H, W], or the same as 0 and 1.
        ms_ssim: takes (x, x^), gives float [N] (`trainer.msssim.ms_ssim` with its settings bound).

    Returns:
        float32 [N]; 0 for a perfect reconstruction, and for an image with no valid pixel.

    Raises:
        ValueError: shapes that do not fit.
    """
    if x.ndim != 4:
        raise ValueError(f"x must be [N, C, H, W], got {list(x.shape)}")
    _expect("x_hat", x_hat, tuple(x.shape))
    n, channels, height, width = x.shape
    x, x_hat = x.float(), x_hat.float()
    if valid is None:
        absolute = (x - x_hat).abs().mean(dim=(1, 2, 3))
    else:
        _expect("valid", valid, (n, 1, height, width))
        valid = valid.bool()
        x_hat = torch.where(valid, x_hat, x)
        counted = (channels * valid.sum(dim=(1, 2, 3))).clamp(min=1)
        absolute = (x - x_hat).abs().sum(dim=(1, 2, 3)) / counted
    similarity = ms_ssim(x, x_hat)
    _expect("the result of ms_ssim", similarity, (n,))
    return rho * absolute / data_range + (1 - rho) * (1 - similarity)


def gaussian_score(z: Tensor, centre: Tensor, spread: Tensor | float) -> Tensor:
    """Squared distance from the centre in units of the spread: ||z - c||^2 / sigma.

    IGD's classifier is h = exp(-score). Rank with the score itself: in float32 1 - h is exactly 1
    from a score of about 17 on, and everything beyond ties.

    Args:
        z: float [N, D].
        centre: float [D], c.
        spread: float [] or a number, sigma > 0: a mean squared distance, not a standard deviation,
            and with no factor 1/2.

    Returns:
        float32 [N], at least 0.

    Raises:
        ValueError: shapes that do not fit.
    """
    if z.ndim != 2:
        raise ValueError(f"z must be [N, D], got {list(z.shape)}")
    _expect("centre", centre, (z.shape[1],))
    if isinstance(spread, Tensor):
        _expect("spread", spread, ())
    return (z.float() - centre.float()).square().sum(dim=1) / spread


def gaussian_loss(z: Tensor, centre: Tensor, spread: Tensor | float) -> Tensor:
    """One minus the likelihood of the normal class: mean(1 - exp(-||z - c||^2 / sigma)).

    The anomaly classification loss of IGD (Chen et al. 2022), as its code has it. Arguments as for
    `gaussian_score`. The gradient vanishes far from the centre: re-estimate c and sigma first.

    Returns:
        float32 [], in [0, 1].
    """
    return -torch.expm1(-gaussian_score(z, centre, spread)).mean()


def estimate_centre(z: Tensor) -> Tensor:
    """Mean of the latents of the training set, kept away from zero.

    A coordinate nearer to zero than `CENTRE_MARGIN` is pushed out to it, on its own side; one that
    is exactly zero stays.

    Args:
        z: float [M, D], latents of the whole training set, from networks in eval mode.

    Returns:
        float32 [D].

    Raises:
        ValueError: z is not [M, D] with M > 0.
    """
    if z.ndim != 2 or len(z) == 0:
        raise ValueError(f"z must be [M, D] with M > 0, got {list(z.shape)}")
    centre = z.double().mean(dim=0).float()
    return torch.where(centre.abs() < CENTRE_MARGIN, CENTRE_MARGIN * centre.sign(), centre)


def estimate_spread(z: Tensor, centre: Tensor) -> Tensor:
    """Mean squared distance of the latents from the centre, at least `MIN_SPREAD`.

        sigma = max(1, mean_m ||z_m - c||^2)

    Departs from IGD's code twice: that takes the distances from the centre *before* its
    re-estimation (call this with the new one), and averages the floored means of batches, so that
    its sigma depends on the batches drawn.

    Args:
        z: float [M, D], as for `estimate_centre`.
        centre: float [D].

    Returns:
        float32 [].
    """
    return gaussian_score(z, centre, 1.0).mean().clamp(min=MIN_SPREAD)


def interpolate(z: Tensor, alpha: Tensor) -> Tensor:
    """Mix each latent with its partner in the reversed batch: alpha z_i + (1 - alpha) z_{N-1-i}.

    Adversarially constrained interpolation, Berthelot et al. 2019 (ACAI). In a batch of odd size
    the item in the middle is its own partner: take even batches.

    Args:
        z: float [N, D].
        alpha: float [N], each in [0, 0.5]: the share of the item itself.

    Returns:
        float [N, D].

    Raises:
        ValueError: shapes that do not fit.
    """
    if z.ndim != 2:
        raise ValueError(f"z must be [N, D], got {list(z.shape)}")
    _expect("alpha", alpha, (len(z),))
    return torch.lerp(z.flip(0), z, alpha.to(z.dtype)[:, None])


def critic_loss(pred_mix: Tensor, alpha: Tensor, pred_reg: Tensor) -> Tensor:
    """The critic finds how far an image is interpolated: mean((D_mix - alpha)^2) + mean(D_reg^2).

    Berthelot et al. 2019, eq. 2. Departs from the authors' global network, which subtracts [N] from
    [N, 1] and so teaches every image the mean of all alphas: shapes are checked here.

    Args:
        pred_mix: float [N], critic of the decoded `interpolate(z, alpha)`.
        alpha: float [N], the alphas used.
        pred_reg: float [N], critic of x^ + 0.2 (x - x^): near to real, to be called 0.

    Returns:
        float32 [].

    Raises:
        ValueError: the three are not all [N].
    """
    if pred_mix.ndim != 1:
        raise ValueError(f"pred_mix must be [N], got {list(pred_mix.shape)}")
    _expect("alpha", alpha, (len(pred_mix),))
    _expect("pred_reg", pred_reg, (len(pred_mix),))
    return (pred_mix.float() - alpha.float()).square().mean() + pred_reg.float().square().mean()


def interpolation_regulariser(pred_mix: Tensor) -> Tensor:
    """What the decoder pays for interpolations that the critic notices: mean(D_mix^2).

    Berthelot et al. 2019, eq. 1, second term; weighted with 0.1 in IGD's code.

    Args:
        pred_mix: float [N], critic of the decoded `interpolate(z, alpha)`.

    Raises:
        ValueError: pred_mix is not [N].
    """
    if pred_mix.ndim != 1:
        raise ValueError(f"pred_mix must be [N], got {list(pred_mix.shape)}")
    return pred_mix.float().square().mean()


def _expect(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a shape that would otherwise broadcast in silence."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must be {list(shape)}, got {list(tensor.shape)}")
