"""PaDiM: Gaussians and distances against numpy in float64."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ccdstream.errors import ConfigError
from trainer.backbone import TinyNet
from trainer.config import PadimConfig
from trainer.detectors.padim import REGULARISER, Padim, fit_padim

DIMS = 6


@torch.no_grad()
def fitted() -> tuple[Padim, Tensor, Tensor]:
    """A detector of 16 places; place 0 valid in 5 frames only, place 1 in none."""
    torch.manual_seed(0)
    detector = Padim(TinyNet(), PadimConfig(dims=DIMS), 64)
    x = 20 * (torch.randn(40, 3, 64, 64) + torch.linspace(0, 2, 64))  # far above the regulariser
    inside = torch.ones(40, 1, 64, 64)
    inside[5:, :, :16, :16] = 0
    inside[:, :, :16, 16:32] = 0
    batches = zip(x.split(15), inside.split(15), strict=True)
    fit_padim(detector, batches, torch.Generator().manual_seed(0))
    return detector, x, inside


def gaussian(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return samples.mean(axis=0), np.cov(samples, rowvar=False) + REGULARISER * np.eye(DIMS)


@torch.no_grad()
def test_a_place_has_the_gaussian_of_its_valid_frames_or_with_too_few_that_of_all() -> None:
    detector, x, inside = fitted()
    features = detector.features(x)[:, :, detector.chosen].double().numpy()
    scored = detector.scored(inside).numpy() > 0
    assert scored.sum(axis=0)[:3].tolist() == [5, 0, 40]
    pooled = gaussian(features[scored])
    for place in range(16):
        own = gaussian(features[:, place]) if place > 1 else pooled
        w = detector.whitening[place].double().numpy()
        np.testing.assert_allclose(detector.mean[place], own[0], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(np.linalg.inv(w.T @ w), own[1], rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_distances_are_mahalanobis_in_float64() -> None:
    detector, x, _ = fitted()
    features = detector.features(x)[:, :, detector.chosen].double().numpy()
    got = detector.distance(detector.features(x)).numpy()
    for place in range(2, 16):
        mean, covariance = gaussian(features[:, place])
        gap = features[:, place] - mean
        expected = np.sqrt(np.einsum("ni,ij,nj->n", gap, np.linalg.inv(covariance), gap))
        np.testing.assert_allclose(got[:, place], expected, rtol=1e-3)


def test_channels_are_drawn_without_repetition_by_the_seed() -> None:
    chosen = []
    for seed in (0, 0, 1):
        detector = Padim(TinyNet(), PadimConfig(dims=DIMS), 64)
        batch = (torch.randn(2, 3, 64, 64), torch.ones(2, 1, 64, 64))
        fit_padim(detector, [batch], torch.Generator().manual_seed(seed))
        chosen.append(detector.chosen.tolist())
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(set(chosen[0])) == DIMS
    assert max(chosen[0]) < detector.channels


@torch.no_grad()
def test_a_single_valid_cell_still_gives_finite_numbers() -> None:
    torch.manual_seed(0)
    detector = Padim(TinyNet(), PadimConfig(dims=DIMS), 64)
    x, inside = torch.randn(1, 3, 64, 64), torch.zeros(1, 1, 64, 64)
    inside[:, :, :16, :16] = 1
    fit_padim(detector, [(x, inside)], torch.Generator().manual_seed(0))
    assert torch.isfinite(detector(x, torch.ones_like(inside))[0]).all()


def test_more_channels_than_there_are_takes_all_and_none_is_refused() -> None:
    assert Padim(TinyNet(), PadimConfig(dims=999), 64).mean.shape == (16, 16 + 32 + 32)
    with pytest.raises(ConfigError, match="must be at least 1"):
        Padim(TinyNet(), PadimConfig(dims=0), 64)
