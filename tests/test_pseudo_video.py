"""Streams made of stills: what moves, what stays, and that the truth is true."""

import cv2
import numpy as np
import pytest

from ccdstream.frames import VIEW_SIZE
from ccdstream.view import HYPERKVASIR, NEUTRAL, NONE, view_of_image
from tests.scopes import SIZE, scene, tissue
from trainer import pseudo_video
from trainer.pseudo_video import (
    DISTURBANCES,
    STILL_PX,
    Disturbance,
    PseudoFrame,
    Still,
    film,
    make_still,
)


@pytest.fixture(scope="module")
def stills() -> list[Still]:
    return [make_still(scene(inside=tissue(SIZE, seed)), HYPERKVASIR) for seed in range(3)]


@pytest.fixture
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pseudo_video, "DISTURBANCES", dict.fromkeys(DISTURBANCES, 0.0))


def spot(
    image: np.ndarray, valid: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A green disc in the right half."""
    mask = np.zeros(valid.shape, np.uint8)
    centre = (round(0.7 * STILL_PX), round(float(rng.uniform(0.3, 0.6)) * STILL_PX))
    cv2.circle(mask, centre, 50, 1, cv2.FILLED)
    pasted = image.copy()
    pasted[mask > 0] = (40, 200, 60)
    return pasted, mask.astype(bool)


def shoot(stills: list[Still], seed: int = 0, **options) -> list[PseudoFrame]:
    chosen = {"seconds": 8.0, "rate": 3.0, **options}
    return list(film(stills, HYPERKVASIR, np.random.default_rng(seed), **chosen))


def test_equal_seeds_give_equal_films_and_others_do_not(stills: list[Still]) -> None:
    one, same = (shoot(stills, seconds=3.0, paste=spot) for _ in range(2))
    other = shoot(stills, 1, seconds=3.0, paste=spot)
    for a, b in zip(one, same, strict=True):
        np.testing.assert_array_equal(a.view.image, b.view.image)
        np.testing.assert_array_equal(a.view.valid, b.view.valid)
        assert (a.seconds, a.still, a.shot, a.lesion_visible, a.lesion_box, a.disturbances) == (
            b.seconds,
            b.still,
            b.shot,
            b.lesion_visible,
            b.lesion_box,
            b.disturbances,
        )
    assert not np.array_equal(one[0].view.image, other[0].view.image)


def test_two_rates_see_the_same_film(stills: list[Still]) -> None:
    slow = shoot(stills, seconds=7.0, rate=1.0, paste=spot)
    quick = shoot(stills, seconds=7.0, rate=3.0, paste=spot)[::3]
    assert [frame.seconds for frame in slow] == [0, 1, 2, 3, 4, 5, 6]
    for a, b in zip(slow, quick, strict=True):
        assert (a.still, a.shot, a.disturbances) == (b.still, b.shot, b.disturbances)
        assert a.lesion_visible == pytest.approx(b.lesion_visible)


def test_shots_last_two_to_six_seconds_and_a_cut_leads_to_another_still(
    stills: list[Still],
) -> None:
    frames = shoot(stills, seconds=60.0, rate=0.5)
    assert [frame.shot for frame in frames] == sorted(frame.shot for frame in frames)
    of_shot = {frame.shot: frame.still for frame in frames}
    assert 60 / 6 <= len(of_shot) <= 60 / 2
    assert all(of_shot[n] != of_shot[n + 1] for n in range(len(of_shot) - 1))


def test_the_mask_of_scope_and_profile_stays_while_the_picture_moves(stills: list[Still]) -> None:
    frames = shoot(stills, seconds=12.0, rate=2.0)
    for frame in frames:
        clear = stills[frame.still].clear
        assert not (frame.view.valid & ~clear).any()
        assert (frame.view.image[~frame.view.valid] == NEUTRAL).all()
        # what is lost of it beside: highlights, and a little beyond the still
        assert frame.view.valid.sum() > 0.85 * clear.sum()
    same = [frame for frame in frames if frame.shot == 0]
    moved = np.abs(same[0].view.image.astype(int) - same[-1].view.image)
    assert moved[same[0].view.valid].mean() > 3


@pytest.mark.usefixtures("undisturbed")
def test_a_camera_that_stands_before_the_whole_still_sees_the_view_of_the_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pseudo_video, "_ZOOM", (1.0, 1.0))
    for name in ("_TURN_DEG", "_TREMOR", "_DRIFT", "_SLOPE"):
        monkeypatch.setattr(pseudo_video, name, 0.0)
    monkeypatch.setattr(pseudo_video, "_GRAIN", (0.0, 0.0))
    rgb = scene(inside=tissue(SIZE, 5))
    expected = view_of_image(rgb, NONE)
    still = make_still(rgb, NONE)
    (frame,) = film([still], NONE, np.random.default_rng(0), seconds=1.0, rate=1.0)
    both = frame.view.valid & expected.valid
    assert both.sum() > 0.97 * expected.valid.sum()
    apart = np.abs(frame.view.image.astype(int) - expected.image)[both]
    assert apart.mean() < 2.5  # JPEG, and one more resize


@pytest.mark.usefixtures("undisturbed")
def test_the_truth_of_a_lesion_is_what_can_be_seen_of_it(stills: list[Still]) -> None:
    frames = shoot(stills, seconds=30.0, rate=2.0, paste=spot, lesion_share=1.0)
    shares = [frame.lesion_visible for frame in frames]
    assert min(shares) == 0 and max(shares) > 0.95
    for frame in frames:
        red, green, _ = np.moveaxis(frame.view.image.astype(int), -1, 0)
        seen = (green > red + 40) & frame.view.valid
        if frame.lesion_box is None:
            assert frame.lesion_visible == 0
            assert seen.sum() < 40
            continue
        x, y, width, height = frame.lesion_box
        inside = np.zeros(VIEW_SIZE, bool)
        inside[max(0, y - 3) : y + height + 3, max(0, x - 3) : x + width + 3] = True
        assert not (seen & ~inside).any()
        if frame.lesion_visible > 0.999:  # a disc: its area follows from its box
            area = np.pi / 4 * width * height
            assert seen.sum() == pytest.approx(area, rel=0.15)


def test_the_visible_share_is_the_area_in_view_over_the_whole_area() -> None:
    lesion = np.zeros((STILL_PX, STILL_PX), np.uint8)
    lesion[100:164, 200:300] = 1  # 100 wide, 64 high
    clear = np.ones(VIEW_SIZE, bool)
    clear[:10] = False
    # zoom 2: the view is 256 px of the still wide, at its own scale; its left edge is at 236
    left, top = 236, 110
    place = np.array([2.0, (left + 128) / STILL_PX, (top + 128) / STILL_PX, 0.0])
    share, box = pseudo_video._visible(lesion, place, clear)
    # 64 columns are right of the edge; rows 110 to 163, of which the view masks the first ten
    assert share == pytest.approx(64 * (54 - 10) / (100 * 64))
    assert box == (0, 10, 64, 44)


def test_disturbances_come_as_often_as_they_should() -> None:
    minutes = 200
    events = pseudo_video._draw_events(60.0 * minutes, np.random.default_rng(0))
    for kind, a_minute in DISTURBANCES.items():
        count = sum(event.kind == kind for event in events)
        assert count == pytest.approx(a_minute * minutes, rel=0.2)
    assert all(0.1 <= event.end_s - event.start_s <= 1.0 for event in events)


def test_what_disturbs_a_frame_is_told(stills: list[Still]) -> None:
    frames = shoot(stills, seconds=20.0)
    assert {bool(frame.disturbances) for frame in frames} == {True, False}
    assert all(not frame.disturbances for frame in frames if frame.clear)


@pytest.mark.parametrize("kind", DISTURBANCES)
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_a_disturbance_grows_from_nothing(kind: Disturbance, strength: float) -> None:
    rng = np.random.default_rng(0)
    side = pseudo_video.FRAME_PX
    image = cv2.GaussianBlur(rng.uniform(0, 255, (side, side, 3)).astype(np.float32), (0, 0), 2)
    event = pseudo_video._Event(kind, 0.0, 1.0, strength, 7)
    apart = [
        float(np.abs(pseudo_video._disturb(image.copy(), event, share, 0.2) - image).mean())
        for share in (0.001, 0.3, 1.0)
    ]
    assert apart[0] < 1.0
    assert apart[0] < apart[1] < apart[2]


def test_a_film_needs_a_still_and_time(stills: list[Still]) -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="at least one still"):
        next(film([], HYPERKVASIR, rng, seconds=1, rate=1))
    with pytest.raises(ValueError, match="must be above 0"):
        next(film(stills, HYPERKVASIR, rng, seconds=0, rate=1))
