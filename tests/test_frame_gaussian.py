"""The Gaussian of whole frames, held against scikit-learn and a closed form."""

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf

from ccdstream.errors import DataError
from trainer.detectors.frame_gaussian import FrameGaussian, fit_frame_gaussian, shrunk_covariance

CHANNELS = {8: 3, 16: 4}


def maps_of(count: int, seed: int) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        stride: torch.randn(count, channels, 64 // stride, 64 // stride, generator=generator)
        * torch.arange(1, channels + 1).view(1, -1, 1, 1)
        for stride, channels in CHANNELS.items()
    }


@pytest.mark.parametrize("rows", [12, 40])
def test_the_covariance_shrinks_as_scikit_learn_says(rows: int) -> None:
    x = torch.randn(rows, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = (x - x.mean(dim=0)) * torch.arange(1, 10)
    expected, _ = ledoit_wolf(x.numpy(), assume_centered=True)
    assert np.allclose(shrunk_covariance(x), expected)


def test_a_descriptor_is_the_mean_over_what_is_valid() -> None:
    maps = {stride: torch.zeros(1, c, 64 // stride, 64 // stride) for stride, c in CHANNELS.items()}
    for stride in maps:
        maps[stride][..., : 32 // stride] = 5.0  # the left half
    inside = torch.zeros(1, 1, 64, 64)
    inside[..., :32] = 1
    gaussian = FrameGaussian(CHANNELS)
    assert torch.allclose(gaussian.descriptor(maps, inside), torch.full((1, 7), 5.0))
    assert torch.allclose(
        gaussian.descriptor(maps, torch.ones_like(inside)), torch.full((1, 7), 2.5)
    )
    nothing = gaussian.descriptor(maps, torch.zeros_like(inside))
    assert torch.equal(nothing, torch.zeros(1, 7))


def test_the_distance_is_that_of_mahalanobis() -> None:
    gaussian, maps, inside = FrameGaussian(CHANNELS), maps_of(60, 2), torch.ones(60, 1, 64, 64)
    batches = [({k: m[i : i + 20] for k, m in maps.items()}, inside[:20]) for i in (0, 20, 40)]
    fit_frame_gaussian(gaussian, batches)
    x = gaussian.descriptor(maps, inside).double()
    scale = x.std(dim=0)
    z = (x - x.mean(dim=0)) / scale
    expected = ((z @ torch.linalg.inv(shrunk_covariance(z))) * z).sum(dim=1).div(7).sqrt()
    assert torch.allclose(gaussian(maps, inside).double(), expected, rtol=2e-3)
    odd = {stride: m + 3 * m.std() for stride, m in maps.items()}
    assert gaussian(odd, inside).min() > gaussian(maps, inside).max()


def test_no_frames_are_refused() -> None:
    with pytest.raises(DataError, match="two or more normal frames, got 0"):
        fit_frame_gaussian(FrameGaussian(CHANNELS), [])
