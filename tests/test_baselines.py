"""Each trivial cue finds what it looks for, and nothing else; maps against closed forms."""

import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ccdstream.errors import DataError
from trainer.baselines import (
    Surface,
    centre_map,
    colour_and_texture,
    image_baselines,
    nearest_distance,
    red_map,
    surfaces,
)
from trainer.data import Item

REAL_DATA = Path(os.environ.get("CCDSTREAM_DATA", "no such folder"))


def tissue(seed: int, size: tuple[int, int] = (60, 80)) -> np.ndarray:
    random = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(random.normal(0, 40, (*size, 3)), (0, 0), 3)
    return np.clip(noise + np.array((170, 100, 80)), 0, 255).astype(np.uint8)


def item(path: Path, *, position_box: bool | None = None) -> Item:
    return Item(path, "normal", "test", "made", path.name, position_box)


def surface(seed: int) -> Surface:
    """One that says nothing: all cues equal but the statistics, which are of one kind."""
    statistics = np.random.default_rng(seed).normal(size=4)
    return Surface(
        statistics, 640, aspect=1.25, black_fraction=0.2, jpeg_tables="a", position_box=True
    )


@pytest.fixture
def alike() -> tuple[list[Surface], list[Surface], list[Surface]]:
    """Train, normal and abnormal surfaces that nothing tells apart."""
    return (
        [surface(n) for n in range(60)],
        [surface(n) for n in range(60, 100)],
        [surface(n) for n in range(100, 140)],
    )


VALID = np.full(40, 0.7)


def test_cues_that_are_equal_separate_nothing(
    alike: tuple[list[Surface], list[Surface], list[Surface]],
) -> None:
    found = image_baselines(*alike, VALID, VALID)

    assert found.pop("colour_and_texture") == pytest.approx(0.5, abs=0.15)
    equal = ("image_width", "image_aspect", "black_pixels", "jpeg_tables", "position_box")
    assert found == dict.fromkeys((*equal, "valid_fraction"), 0.5)


@pytest.mark.parametrize(
    ("cue", "change"),
    [
        pytest.param("colour_and_texture", {"statistics": np.full(4, 9.0)}, id="other colours"),
        pytest.param("image_width", {"width_px": 600}, id="narrower"),
        pytest.param("image_width", {"width_px": 700}, id="wider"),
        pytest.param("image_aspect", {"aspect": 1.0}, id="squarer"),
        pytest.param("black_pixels", {"black_fraction": 0.1}, id="less black"),
        pytest.param("black_pixels", {"black_fraction": 0.3}, id="more black"),
        pytest.param("jpeg_tables", {"jpeg_tables": "b"}, id="other encoder"),
        pytest.param("position_box", {"position_box": False}, id="no position box"),
    ],
)
def test_one_cue_finds_what_differs_in_it_alone(
    alike: tuple[list[Surface], list[Surface], list[Surface]], cue: str, change: dict[str, object]
) -> None:
    train, normal, abnormal = alike
    before = image_baselines(train, normal, abnormal, VALID, VALID)

    after = image_baselines(
        train, normal, [replace(one, **change) for one in abnormal], VALID, VALID
    )

    assert after.pop(cue) == 1.0
    before.pop(cue)
    assert after == before


def test_share_of_valid_pixels_is_a_cue_too(
    alike: tuple[list[Surface], list[Surface], list[Surface]],
) -> None:
    assert image_baselines(*alike, VALID, VALID - 0.1)["valid_fraction"] == 1.0


def test_unknown_position_box_is_not_measured(
    alike: tuple[list[Surface], list[Surface], list[Surface]],
) -> None:
    train, normal, abnormal = alike
    abnormal[7] = replace(abnormal[7], position_box=None)

    assert image_baselines(train, normal, abnormal, VALID, VALID)["position_box"] is None


def test_surface_is_read_off_the_file(tmp_path: Path) -> None:
    rgb = tissue(0, (60, 80))
    rgb[:, :20] = (19, 0, 10)  # a quarter; one channel at 20 or more is not black
    rgb[:, 20:40] = (20, 0, 0)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    for quality in (60, 90):
        Image.fromarray(rgb).save(tmp_path / f"{quality}.jpg", quality=quality)
    seen: list[tuple[int, int]] = []

    png, coarse, fine = surfaces(
        [item(tmp_path / "a.png", position_box=True)]
        + [item(tmp_path / f"{quality}.jpg") for quality in (60, 90)],
        progress=lambda done, total: seen.append((done, total)),
    )

    assert png.width_px == 80 and png.aspect == 80 / 60
    assert png.black_fraction == pytest.approx(0.25)
    assert png.position_box is True and coarse.position_box is None
    assert png.jpeg_tables == "" and coarse.jpeg_tables != fine.jpeg_tables != ""
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")

    with pytest.raises(DataError, match=r"cannot read .*a\.png"):
        surfaces([item(tmp_path / "a.png")])


def test_statistics_look_at_the_central_square_only() -> None:
    rgb = tissue(1, (80, 120))
    framed = rgb.copy()
    framed[:20], framed[60:], framed[:, :40], framed[:, 80:] = 0, 0, 0, 0

    statistics = colour_and_texture(rgb)

    assert statistics.shape == (33,)
    np.testing.assert_array_equal(colour_and_texture(framed), statistics)
    square = rgb[20:60, 40:80].reshape(-1, 3)
    np.testing.assert_allclose(statistics[:3], square.mean(axis=0))
    np.testing.assert_allclose(statistics[3:6], square.std(axis=0))
    median = np.sort(square, axis=0)[len(square) // 2 - 1]
    np.testing.assert_array_equal(statistics[12:27].reshape(3, 5)[:, 2], median)


def test_statistics_know_blur_and_colour() -> None:
    known = np.array([colour_and_texture(tissue(n)) for n in range(30)])
    same = np.array([colour_and_texture(tissue(n)) for n in range(30, 40)])
    paler = [np.clip(tissue(n).astype(int) + 25, 0, 255).astype(np.uint8) for n in range(30, 40)]
    softer = [cv2.GaussianBlur(tissue(n), (0, 0), 2) for n in range(30, 40)]

    limit = nearest_distance(known, same).max()

    for other in (paler, softer):
        distances = nearest_distance(known, np.array([colour_and_texture(one) for one in other]))
        assert (distances > limit).mean() >= 0.9


def test_statistics_of_a_flat_or_tiny_image_are_finite() -> None:
    for size in ((40, 40), (1, 1), (33, 35)):
        assert np.isfinite(colour_and_texture(np.full((*size, 3), 90, np.uint8))).all()


def test_nearest_distance_is_that_of_every_pair() -> None:
    random = np.random.default_rng(0)
    known = random.normal(size=(30, 5)) * (1, 10, 100, 0.1, 1)
    asked = np.concatenate([random.normal(size=(6, 5)), known[:2]])

    distances = nearest_distance(known, asked)

    scale = known.std(axis=0)
    expected = [min(np.linalg.norm((row - other) / scale) for other in known) for row in asked]
    np.testing.assert_allclose(distances, expected, rtol=1e-4, atol=1e-6)


def test_centre_map_falls_with_the_distance_to_the_centre() -> None:
    closeness = centre_map()

    assert closeness.shape == (256, 256) and closeness.dtype == np.float32
    assert closeness[127, 127] == closeness[128, 128] == closeness.max()
    assert closeness[0, 0] == pytest.approx(-np.hypot(127.5, 127.5))
    np.testing.assert_array_equal(closeness, closeness[::-1].T)


def test_red_map_does_not_see_invalid_pixels_or_other_channels() -> None:
    random = np.random.default_rng(0)
    valid = random.random((256, 256)) < 0.6
    image = random.integers(0, 256, (3, 256, 256), dtype=np.uint8)
    image[0] = 90
    image[0][~valid] = 255

    np.testing.assert_allclose(red_map(image, valid)[valid], 90, rtol=1e-4)


def test_red_map_is_highest_where_red_is() -> None:
    image = np.zeros((3, 256, 256), np.uint8)
    image[0, 60:100, 150:190] = 200

    redness = red_map(image, np.ones((256, 256), bool))

    row, column = np.unravel_index(redness.argmax(), redness.shape)
    assert abs(row - 79.5) <= 1 and abs(column - 169.5) <= 1
    assert redness.dtype == np.float32


def test_red_map_of_a_view_without_valid_pixels_is_finite() -> None:
    redness = red_map(np.full((3, 256, 256), 99, np.uint8), np.zeros((256, 256), bool))

    assert np.isfinite(redness).all()


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="the real frames are not on this machine")
def test_width_and_box_give_real_polyps_away() -> None:
    """As the data's own notes say: 0.92 and 0.73. Headers and the index suffice."""
    from trainer.data import find_data

    test = find_data(REAL_DATA).test
    some = {
        name: [
            replace(surface(0), width_px=width_of(one), position_box=one.position_box)
            for one in test
            if one.path.is_relative_to(REAL_DATA / name)
        ]
        for name in ("normal", "polyp")
    }
    shares = {name: np.zeros(len(members)) for name, members in some.items()}

    found = image_baselines(
        [surface(0)], some["normal"], some["polyp"], shares["normal"], shares["polyp"]
    )

    assert found["image_width"] == pytest.approx(0.92, abs=0.01)
    assert found["position_box"] == pytest.approx(0.73, abs=0.01)


def width_of(one: Item) -> int:
    with Image.open(one.path) as image:
        return image.size[0]
