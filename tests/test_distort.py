"""Views as another scope or light would have given them."""

import numpy as np
import pytest

from ccdstream.view import NEUTRAL
from trainer.distort import Distortion, moved, recoloured

STILL = Distortion(move_p=0)


def picture(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = rng.integers(60, 160, (256, 256, 3), np.uint8)
    valid = np.ones((256, 256), bool)
    valid[150:, :100] = False
    image[~valid] = NEUTRAL
    return image, valid


def test_what_does_not_move_is_mirrored_at_most() -> None:
    image, valid = picture()
    seen = set()
    for seed in range(12):
        turned, inside = moved(image, valid, np.random.default_rng(seed), STILL)
        same = np.array_equal(turned, image)
        assert same or np.array_equal(turned, image[:, ::-1])
        assert np.array_equal(inside, valid if same else valid[:, ::-1])
        seen.add(same)
    assert seen == {True, False}


@pytest.mark.parametrize("seed", range(4))
def test_what_is_not_valid_moves_with_the_picture(seed: int) -> None:
    image, valid = picture()
    image[:] = np.where(valid[..., None], 90, 250)
    turned, inside = moved(image, valid, np.random.default_rng(seed), Distortion(move_p=1))
    assert not np.array_equal(turned, image)
    # away from edges, where pixels mix
    assert (turned[inside].max(axis=1) < 250).mean() > 0.98


def test_another_light_keeps_what_is_not_valid_grey_and_finds_new_glare() -> None:
    image, valid = picture()
    image[40:60, 200:220] = 230  # a gain makes it burn out
    found = 0
    for seed in range(20):
        lit, inside = recoloured(image, valid, np.random.default_rng(seed), Distortion())
        assert lit.dtype == np.uint8
        assert (lit[~inside] == NEUTRAL).all()
        assert not (inside & ~valid).any()
        found += not inside[45:55, 205:215].any()
    assert 0 < found < 20


def test_equal_seeds_distort_alike() -> None:
    image, valid = picture()
    for change in (moved, recoloured):
        a, b = (change(image, valid, np.random.default_rng(5), Distortion()) for _ in range(2))
        assert np.array_equal(a[0], b[0])
        assert np.array_equal(a[1], b[1])
