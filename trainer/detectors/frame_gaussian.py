"""How unlike normal frames is a frame as a whole? A Gaussian of the descriptors of normal frames.

Rippel, Mertens and Merhof, "Modeling the distribution of normal data in pre-trained deep features
for anomaly detection", ICPR 2020: the channel means of a frozen network's feature maps, and the
Mahalanobis distance to those of normal frames. Departs from it: one Gaussian of all levels together
instead of a sum over levels, and only valid pixels count.
"""

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ccdstream.errors import DataError

_LEAST = 1e-6
"""Of a deviation, which divides."""


class FrameGaussian(nn.Module):
    """Feature maps of a frame -> its distance to normal frames, in units of the dimensions' spread.

    The covariance's inverse is kept as W with W^T W = Sigma^-1, so the distance is |W d|.
    """

    mean: Tensor
    whitening: Tensor

    def __init__(self, channels: Mapping[int, int]) -> None:
        """`channels`: of the feature maps, by stride."""
        super().__init__()
        self.strides = sorted(channels)
        dim = sum(channels.values())
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("whitening", torch.eye(dim))

    def forward(self, maps: Mapping[int, Tensor], inside: Tensor) -> Tensor:
        """sqrt(d^T Sigma^-1 d / D) of the descriptor's difference d from the mean, D its length.

        Args:
            maps: by stride, float [N, C, S / stride, S / stride].
            inside: float [N, 1, S, S] of 0 and 1.

        Returns:
            float [N].
        """
        d = self.descriptor(maps, inside) - self.mean
        distance: Tensor = F.linear(d, self.whitening).square().mean(dim=1).sqrt()
        return distance

    def descriptor(self, maps: Mapping[int, Tensor], inside: Tensor) -> Tensor:
        """The mean over the valid pixels of every channel of every map: float [N, D]."""
        means = []
        for stride in self.strides:
            weight = F.avg_pool2d(inside, stride)
            total = (maps[stride] * weight).sum(dim=(2, 3))
            means.append(total / weight.sum(dim=(2, 3)).clamp(min=1e-3))
        return torch.cat(means, dim=1)


def fit_frame_gaussian(
    gaussian: FrameGaussian, frames: Iterable[tuple[Mapping[int, Tensor], Tensor]]
) -> None:
    """Estimate mean and covariance from normal frames, given as (maps, inside), read once.

    Raises:
        DataError: fewer than two frames.
    """
    with torch.no_grad():
        descriptors = [gaussian.descriptor(maps, inside) for maps, inside in frames]
    x = torch.cat(descriptors).double() if descriptors else torch.zeros(0, 1)
    if len(x) < 2:
        raise DataError(f"the frame Gaussian needs two or more normal frames, got {len(x)}.")
    # channels differ in scale: shrinking towards one variance means something once they do not
    scale = x.std(dim=0).clamp(min=_LEAST)
    factor = torch.linalg.cholesky(shrunk_covariance((x - x.mean(dim=0)) / scale))
    unit = torch.eye(len(scale), dtype=x.dtype, device=x.device)
    whitening = torch.linalg.solve_triangular(factor, unit, upper=False) / scale
    gaussian.mean.copy_(x.mean(dim=0))
    # to half precision, in which the program is stored
    gaussian.whitening.copy_(whitening.half())


def shrunk_covariance(x: Tensor) -> Tensor:
    """The covariance of centred rows [n, D], shrunk towards a multiple of the identity.

        Sigma = (1 - s) S + s m I,   S = x^T x / n,   m = tr(S) / D,
        s = min(b / d, 1),   d = |S - m I|^2,   b = (mean_i |x_i|^4 - |S|^2) / n

    Ledoit and Wolf, J. Multivariate Anal. 88 (2004), section 3.3, with |.| of Frobenius.
    """
    n, dim = x.shape
    sample = x.T @ x / n
    unit = torch.eye(dim, dtype=x.dtype, device=x.device)
    level = sample.trace() / dim
    spread = (sample - level * unit).square().sum()
    error = (x.square().sum(dim=1).square().mean() - sample.square().sum()) / n
    shrinkage = (error / spread.clamp(min=1e-30)).clamp(0, 1)
    return (1 - shrinkage) * sample + shrinkage * level * unit
