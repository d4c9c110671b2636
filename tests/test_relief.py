"""Lesions rendered as relief: where they are, what they keep, and that nothing else moves."""

import cv2
import numpy as np
import pytest

from ccdstream.frames import VIEW_SIZE
from ccdstream.sample import still
from ccdstream.view import NONE, view_of_image, whole_frame
from trainer.relief import (
    DISTRACTOR_KINDS,
    LESION_KINDS,
    DistractorKind,
    DistractorLook,
    LesionKind,
    ReliefLook,
    _facing,
    _see,
    render_distractor,
    render_lesion,
)

SIDE = 192
SEEDS = range(6)


@pytest.fixture(scope="module")
def frame() -> tuple[np.ndarray, np.ndarray]:
    """A drawn colon, with a part and a few holes that are not valid."""
    scene = still(5)[80:500, 130:590]
    image = cv2.resize(scene, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    valid = np.ones((SIDE, SIDE), bool)
    valid[110:, :70] = False
    valid[40:46, 90:97] = False
    image[~valid] = 128
    return image, valid


def lesion(
    frame: tuple[np.ndarray, np.ndarray], kind: LesionKind, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    return render_lesion(*frame, np.random.default_rng(seed), ReliefLook(kinds=(kind,)))


def distractor(
    frame: tuple[np.ndarray, np.ndarray], kind: DistractorKind, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    return render_distractor(*frame, np.random.default_rng(seed), DistractorLook(kinds=(kind,)))


@pytest.mark.parametrize("kind", LESION_KINDS)
def test_a_lesion_changes_its_mask_and_a_shadow_around_it_and_nothing_else(
    frame: tuple[np.ndarray, np.ndarray], kind: LesionKind
) -> None:
    image, valid = frame
    before = image.copy()
    for seed in SEEDS:
        rendered, mask = lesion(frame, kind, seed)
        assert rendered.dtype == np.uint8 and rendered.shape == image.shape
        assert mask.dtype == bool and mask.any()
        assert not (mask & ~valid).any()
        assert np.array_equal(rendered[~valid], image[~valid])
        changed = (rendered != image).any(axis=2)
        assert changed[mask].mean() > 0.8
        # the outline's softness, and the shadow at the foot: a share of the lesion's size; a mask
        # cut by what is not valid says less about that size, so the most of any kind is allowed
        room = round(0.14 * SIDE)
        near = cv2.dilate(mask.view(np.uint8), np.ones((2 * room + 1, 2 * room + 1), np.uint8))
        assert not (changed & (near == 0) & ~_reached_behind(mask, valid, room)).any()
    assert np.array_equal(image, before)


def _reached_behind(mask: np.ndarray, valid: np.ndarray, room: int) -> np.ndarray:
    """Pixels close to invalid ones that the lesion touches: it may go on beneath those."""
    hidden = (~valid).astype(np.uint8)
    kernel = np.ones((2 * room + 1, 2 * room + 1), np.uint8)
    _, parts = cv2.connectedComponents(hidden)
    touched = np.unique(parts[cv2.dilate(mask.view(np.uint8), kernel) > 0])
    beneath = np.isin(parts, touched[touched > 0]).astype(np.uint8)
    return np.asarray(cv2.dilate(beneath, kernel) > 0)


@pytest.mark.parametrize("share", [0.2, 0.4])
@pytest.mark.parametrize("kind", LESION_KINDS)
def test_a_lesion_is_as_large_as_the_bounds_say(kind: LesionKind, share: float) -> None:
    plain = np.full((SIDE, SIDE, 3), 120, np.uint8)
    valid = np.ones((SIDE, SIDE), bool)
    look = ReliefLook(kinds=(kind,), size=(share, share))
    disc = np.pi / 4 * share**2
    areas = [
        render_lesion(plain, valid, np.random.default_rng(seed), look)[1].mean() / disc
        for seed in range(8)
    ]
    assert max(areas) < 3  # a leaning height, lobes, a stalk
    assert np.median(areas) > 0.5  # and some are cut by the picture's border


@pytest.mark.parametrize("kind", LESION_KINDS)
def test_a_place_keeps_its_brightness(
    frame: tuple[np.ndarray, np.ndarray], kind: LesionKind
) -> None:
    image, valid = frame
    flat = np.full_like(image, (170, 100, 80))
    for seed in SEEDS:
        rendered, mask = render_lesion(
            flat, valid, np.random.default_rng(seed), ReliefLook(kinds=(kind,))
        )
        assert 0.75 < rendered[mask].mean() / flat[mask].mean() < 1.3
        around = valid & ~mask
        assert 0.97 < rendered[around].mean() / flat[around].mean() < 1.005


def test_every_kind_is_drawn_and_a_seed_draws_the_same_again(
    frame: tuple[np.ndarray, np.ndarray],
) -> None:
    seen = []
    for seed in range(20):
        drawn, mask = render_lesion(*frame, np.random.default_rng(seed))
        alone = {kind: lesion(frame, kind, seed) for kind in LESION_KINDS}
        same = [kind for kind, (image, _) in alone.items() if np.array_equal(image, drawn)]
        assert len(same) == 1
        assert np.array_equal(mask, alone[same[0]][1])
        seen += same
    assert set(seen) == set(LESION_KINDS)


def test_reflections_stay_below_what_the_view_masks() -> None:
    plain = np.full((*VIEW_SIZE, 3), (170, 100, 80), np.uint8)
    whole = whole_frame(VIEW_SIZE)
    clear = view_of_image(plain, NONE, field=whole).valid
    masked = total = 0
    for seed in range(24):
        rendered, mask = render_lesion(plain, clear, np.random.default_rng(seed))
        masked += int((mask & ~view_of_image(rendered, NONE, field=whole).valid).sum())
        total += int(mask.sum())
    assert masked < 0.01 * total


def test_a_mask_may_be_cut_by_the_pictures_border(frame: tuple[np.ndarray, np.ndarray]) -> None:
    cut = [
        mask[0].any() or mask[-1].any() or mask[:, -1].any()
        for mask in (lesion(frame, "IIa", seed)[1] for seed in range(12))
    ]
    assert any(cut) and not all(cut)


@pytest.mark.parametrize("kind", DISTRACTOR_KINDS)
def test_a_distractor_is_put_where_its_mask_says(
    frame: tuple[np.ndarray, np.ndarray], kind: DistractorKind
) -> None:
    image, valid = frame
    for seed in SEEDS:
        painted, where = distractor(frame, kind, seed)
        assert painted.dtype == np.uint8 and painted.shape == image.shape
        assert where.any() and not (where & ~valid).any()
        assert np.array_equal(painted[~valid], image[~valid])
        change = np.abs(painted.astype(int) - image).max(axis=2)
        assert change[where].mean() > 1
        if (~where & valid).any():
            assert change[where].mean() > 1.5 * change[~where & valid].mean()
        again, where_again = distractor(frame, kind, seed)
        assert np.array_equal(painted, again) and np.array_equal(where, where_again)


@pytest.mark.parametrize("render", [render_lesion, render_distractor])
def test_a_picture_with_nothing_valid_is_refused(
    frame: tuple[np.ndarray, np.ndarray], render: object
) -> None:
    image, valid = frame
    with pytest.raises(ValueError, match="False everywhere"):
        render(image, np.zeros_like(valid), np.random.default_rng(0))  # type: ignore[operator]


@pytest.mark.parametrize("size", [(48, 64), (96, 60), (300, 256)])
def test_pictures_of_any_size_are_taken(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(60, 200, (*size, 3), np.uint8)
    valid = np.ones(size, bool)
    for seed in range(12):
        mask = render_lesion(image, valid, np.random.default_rng(seed))[1]
        assert mask.shape == size and mask.any()
    for kind in DISTRACTOR_KINDS:
        look = DistractorLook(kinds=(kind,))
        assert render_distractor(image, valid, np.random.default_rng(1), look)[1].shape == size


def test_what_is_seen_is_the_first_point_along_the_ray() -> None:
    rng = np.random.default_rng(0)
    height = cv2.GaussianBlur(rng.uniform(-60, 120, (40, 40)).astype(np.float32), (0, 0), 3)
    height[:6] = height[-14:] = 0
    tilt = np.deg2rad(50)
    seen = _see(height, tilt)
    for column in range(0, 40, 5):
        fine = np.linspace(0, 39, 3901)
        place = fine + np.interp(fine, np.arange(40), height[:, column]) * np.sin(tilt)
        for row in range(1, 39):
            first = fine[np.argmax(place >= row - 1e-6)]
            assert seen[row, column] == pytest.approx(first, abs=0.05)


def test_a_bare_wall_is_seen_as_it_is_and_faces_by_its_tilt() -> None:
    flat = np.zeros((9, 9), np.float32)
    assert np.allclose(_see(flat, 0.7), np.arange(9)[:, None], atol=1e-4)
    assert np.allclose(_facing(flat, 0.7), np.cos(0.7))


def test_a_slope_towards_the_camera_faces_it_wholly() -> None:
    tilt = 0.5  # a plane that rises by tan(tilt) along the wall stands across the ray
    rows = np.arange(20, dtype=np.float32)[:, None] + np.zeros((1, 20), np.float32)
    height = rows * np.float32(
        np.tan(tilt) / np.cos(tilt)
    )  # the wall is foreshortened by cos(tilt)
    assert np.allclose(_facing(height, tilt)[5:-5, 5:-5], 1, atol=1e-3)
