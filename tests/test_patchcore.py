"""PatchCore: distances against float64, and the coreset against the paper's loops."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ccdstream.errors import ConfigError
from trainer.backbone import TinyNet
from trainer.config import PatchcoreConfig
from trainer.detectors.patchcore import PatchCore, fit_patchcore, greedy_coreset


def slow_coreset(features: np.ndarray, first: int, count: int) -> list[int]:
    """Algorithm 1, every distance anew."""
    chosen = [first]
    while len(chosen) < count:
        gaps = [
            -1.0 if m in chosen else min(np.linalg.norm(features[m] - features[n]) for n in chosen)
            for m in range(len(features))
        ]
        chosen.append(int(np.argmax(gaps)))
    return chosen


def covering_radius(features: Tensor, chosen: Tensor) -> float:
    return float(torch.cdist(features, features[chosen]).amin(dim=1).max())


@pytest.mark.parametrize("offset", [0.0, 100.0])
@torch.no_grad()
def test_distances_are_those_to_the_nearest_row_in_float64(offset: float) -> None:
    torch.manual_seed(0)
    detector = PatchCore(TinyNet(), PatchcoreConfig(bank_size=2500), 64)
    bank = torch.randn(2500, detector.channels) + offset
    detector.centre.copy_(bank.mean(dim=0))
    detector.bank.copy_(bank - detector.centre)
    features = torch.randn(2, 64, detector.channels) * 3 + offset
    features[0, :5] = bank[[0, 1023, 1024, 2048, 2499]] + 0.05
    got = detector.distance(features)
    stored = detector.bank.double() + detector.centre.double()
    gaps = features.double()[:, :, None] - stored
    torch.testing.assert_close(got.double(), gaps.norm(dim=3).amin(dim=2), rtol=1e-4, atol=1e-4)
    assert got[0, :5].tolist() == pytest.approx([0.05 * detector.channels**0.5] * 5, rel=1e-2)


@torch.no_grad()
def test_features_are_averages_over_the_neighbours_inside_the_frame() -> None:
    torch.manual_seed(0)
    detector, x = (
        PatchCore(TinyNet(), PatchcoreConfig(bank_size=1), 64).eval(),
        torch.randn(1, 3, 64, 64),
    )
    maps = detector.backbone.maps(x)
    got = detector.features(x)[0].view(8, 8, -1)
    for row in range(8):
        for column in range(8):
            rows, columns = (range(max(0, i - 1), min(8, i + 2)) for i in (row, column))
            near = [maps[8][0, :, r, c] for r in rows for c in columns]
            torch.testing.assert_close(got[row, column, :32], torch.stack(near).mean(dim=0))
    # the coarser map is enlarged linearly: the middle between two of its cells lies between them
    middle = (got[1, 3, 32:] + got[2, 3, 32:] + got[1, 4, 32:] + got[2, 4, 32:]) / 4
    coarse = detector.prepared(maps[16])[0]
    expected = (coarse[:, 0, 1] + coarse[:, 1, 1] + coarse[:, 0, 2] + coarse[:, 1, 2]) / 4
    torch.testing.assert_close(middle, expected)


def test_the_coreset_is_the_papers() -> None:
    torch.manual_seed(0)
    features = torch.randn(60, 5)
    chosen = greedy_coreset(features, 20, 128, torch.Generator().manual_seed(1)).tolist()
    assert chosen == slow_coreset(features.double().numpy(), chosen[0], 20)


def test_a_projected_search_covers_far_better_than_chance() -> None:
    torch.manual_seed(0)
    centres = torch.randn(40, 200) * 5
    sizes = [400] * 4 + [5] * 36  # most kinds are rare
    features = torch.cat(
        [centre + 0.1 * torch.randn(n, 200) for centre, n in zip(centres, sizes, strict=True)]
    )
    chosen = greedy_coreset(features, 40, 32, torch.Generator().manual_seed(1))
    chance = torch.randperm(len(features))[:40]
    assert covering_radius(features, chosen) < 5 < 50 < covering_radius(features, chance)


def test_no_row_is_chosen_twice_before_all_were() -> None:
    features = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    features[10:] = features[0]  # equal rows too
    chosen = greedy_coreset(features, 35, 128, torch.Generator().manual_seed(0))
    assert sorted(chosen[:30].tolist()) == list(range(30))
    assert set(chosen[30:].tolist()) <= set(range(30))


@torch.no_grad()
def test_what_was_learned_is_at_no_distance() -> None:
    torch.manual_seed(0)
    x, inside = torch.randn(2, 3, 64, 64), torch.ones(2, 1, 64, 64)
    detector = PatchCore(TinyNet(), PatchcoreConfig(bank_size=200), 64)
    fit_patchcore(detector, [(x, inside)], torch.Generator().manual_seed(0))
    _, maps = detector(x, inside)
    _, other = detector(torch.randn(2, 3, 64, 64), inside)
    assert float(maps.max()) < 0.01 * float(other.mean())


@torch.no_grad()
def test_at_most_the_candidates_are_kept_and_from_all_batches_alike() -> None:
    def frame(level: float) -> tuple[Tensor, Tensor]:
        return torch.full((1, 3, 64, 64), level), torch.ones(1, 1, 64, 64)

    torch.manual_seed(0)
    config = PatchcoreConfig(bank_size=60, candidates=60)
    detector = PatchCore(TinyNet(), config, 64)
    levels = [float(k) for k in range(8)]
    fit_patchcore(detector, map(frame, levels), torch.Generator().manual_seed(0))
    inner = [detector.features(frame(level)[0])[0, 27] - detector.centre for level in levels]
    nearest = torch.cdist(detector.bank, torch.stack(inner)).argmin(dim=1)
    counts = torch.bincount(nearest, minlength=8)
    assert int(counts.min()) >= 2


def test_an_empty_bank_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be at least 1"):
        PatchCore(TinyNet(), PatchcoreConfig(bank_size=0))
