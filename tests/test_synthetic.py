"""Pasted lesions: where they are, and that nothing else moves."""

import numpy as np
import pytest

from trainer.synthetic import paste_lesion


def frame() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    image = rng.integers(80, 180, (16, 16, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    valid = np.ones((128, 128), bool)
    valid[:, :40] = False
    return image, valid


@pytest.mark.parametrize("seed", range(6))
def test_the_picture_changes_in_the_lesion_and_nowhere_far_from_it(seed: int) -> None:
    image, valid = frame()
    pasted, mask = paste_lesion(image, valid, np.random.default_rng(seed))
    changed = np.abs(pasted.astype(int) - image).max(axis=2) > 2
    assert changed[mask].mean() > 0.5
    assert not changed[~valid].any()
    assert not (mask & ~valid).any()
    rows, columns = np.nonzero(mask)
    box = np.zeros_like(mask)
    box[
        max(rows.min() - 16, 0) : rows.max() + 17, max(columns.min() - 16, 0) : columns.max() + 17
    ] = True
    assert not changed[~box].any()


def test_equal_seeds_paste_equal_lesions() -> None:
    image, valid = frame()
    a, b = (paste_lesion(image, valid, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(a[0], b[0])
    assert np.array_equal(a[1], b[1])


def test_a_picture_with_nothing_valid_is_refused() -> None:
    image, valid = frame()
    with pytest.raises(ValueError, match="False everywhere"):
        paste_lesion(image, np.zeros_like(valid), np.random.default_rng(0))
