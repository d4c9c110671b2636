import numpy as np
import pytest

from ccdstream.frames import Colour
from ccdstream.paint import (
    Canvas,
    Layer,
    Levels,
    Marks,
    dots_of,
    number_mask,
    text_mask,
    whole_numbers,
    yuv_of,
)

LIMITED = Colour("bt601", full_range=False)


def planes(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random Y, U, V of a frame."""
    rng = np.random.default_rng(seed)
    half = ((height + 1) // 2, (width + 1) // 2)
    return (
        rng.integers(0, 256, (height, width), dtype=np.uint8),
        rng.integers(0, 256, half, dtype=np.uint8),
        rng.integers(0, 256, half, dtype=np.uint8),
    )


def marks_of(height: int, width: int) -> Marks:
    half = ((height + 1) // 2, (width + 1) // 2)
    return Marks(np.zeros((height, width), bool), np.zeros(half, bool))


@pytest.mark.parametrize(
    ("colour", "rgb", "expected"),
    [
        (LIMITED, (255, 255, 255), (235, 128, 128)),
        (LIMITED, (0, 0, 0), (16, 128, 128)),
        (LIMITED, (255, 0, 0), (81.481, 90.203, 240)),
        (LIMITED, (0, 0, 255), (40.966, 240, 109.786)),
        (Colour("bt709", full_range=False), (255, 0, 0), (62.559, 102.336, 240)),
        (Colour("bt709", full_range=True), (0, 0, 255), (18.411, 255.5, 116.306)),
        (Colour("bt2020", full_range=True), (255, 255, 255), (255, 128, 128)),
    ],
)
def test_colours_are_those_of_the_standards(
    colour: Colour, rgb: tuple[int, int, int], expected: tuple[float, float, float]
) -> None:
    """Expected: E'Y = Kr R + Kg G + Kb B, E'Cb = (B - Y) / (2 - 2 Kb), scaled, by hand."""
    np.testing.assert_allclose(yuv_of(np.array(rgb), colour), expected, atol=0.1)


def test_layer_blends_as_the_equation_says() -> None:
    height, width = 24, 40
    y, u, v = planes(height, width)
    opacity = np.random.default_rng(1).random((10, 16)).astype(np.float32)
    colour = np.array([200.0, 60.0, 180.0], np.float32)
    canvas = Canvas((height, width), (4, 8, 10, 16))
    canvas.paint(opacity, 4, 8, colour)
    expected_y = y.astype(float)
    expected_y[4:14, 8:24] += opacity * (200 - expected_y[4:14, 8:24])
    mean = opacity.reshape(5, 2, 8, 2).mean(axis=(1, 3))
    expected_u, expected_v = u.astype(float), v.astype(float)
    expected_u[2:7, 4:12] += mean * (60 - expected_u[2:7, 4:12])
    expected_v[2:7, 4:12] += mean * (180 - expected_v[2:7, 4:12])
    canvas.layer().blend(y, u, v)
    for got, expected in ((y, expected_y), (u, expected_u), (v, expected_v)):
        # opacity is kept in 256 steps, each worth up to half a level more
        np.testing.assert_allclose(got, expected, atol=1.1)


def test_later_paint_covers_earlier_paint() -> None:
    y, u, v = planes(8, 8)
    canvas = Canvas((8, 8), (0, 0, 8, 8))
    canvas.fill((0, 0, 8, 8), np.float32([200, 50, 50]), 1.0)
    canvas.fill((0, 0, 8, 8), np.float32([100, 90, 90]), 0.5)
    canvas.layer().blend(y, u, v)
    assert (np.unique(y), np.unique(u)) == (150, 70)


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("opacity", [0.001, 0.0019, 0.002, 0.3, 0.999, 1.0])
def test_extreme_values_do_not_wrap_round(value: int, opacity: float) -> None:
    y, u, v = (np.full(shape, 255 - value, np.uint8) for shape in ((4, 4), (2, 2), (2, 2)))
    canvas = Canvas((4, 4), (0, 0, 4, 4))
    canvas.fill((0, 0, 4, 4), np.full(3, value, np.float32), opacity)
    canvas.layer().blend(y, u, v)
    expected = 255 - value + opacity * (2 * value - 255)
    np.testing.assert_allclose([y[0, 0], u[0, 0], v[0, 0]], expected, atol=1.1)


def test_colour_beyond_the_last_level_is_clipped() -> None:
    y, u, v = (np.full(shape, 9, np.uint8) for shape in ((4, 4), (2, 2), (2, 2)))
    canvas = Canvas((4, 4), (0, 0, 4, 4))
    blue = yuv_of(np.array([0, 0, 255]), Colour("bt709", full_range=True))
    canvas.fill((0, 0, 4, 4), blue, 1.0)
    canvas.layer().blend(y, u, v)
    assert (u == 255).all()


@pytest.mark.parametrize("size", [(24, 40), (23, 39), (5, 7), (1, 1), (2, 3)], ids=str)
@pytest.mark.parametrize(
    "box", [(3, 5, 9, 11), (-4, -3, 10, 8), (20, 35, 30, 30), (0, 0, 99, 99), (60, 60, 4, 4)]
)
def test_only_marked_pixels_change(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    before = planes(*size)
    after = tuple(plane.copy() for plane in before)
    canvas = Canvas(size, box)
    canvas.fill(box, np.float32([250, 20, 240]), 0.7)
    layer = canvas.layer()
    layer.blend(*after)
    marks = marks_of(*size)
    layer.mark(marks)
    top, left, height, width = box
    expected = np.zeros(size, bool)
    expected[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)] = True
    np.testing.assert_array_equal(marks.luma, expected)
    for was, now, mask in zip(before, after, (marks.luma, *[marks.chroma] * 2), strict=True):
        np.testing.assert_array_equal(was[~mask], now[~mask])


@pytest.mark.parametrize("size", [(24, 40), (23, 39)], ids=str)
def test_dots_blend_as_a_layer_does(size: tuple[int, int]) -> None:
    mask = np.zeros((10, 14), np.uint8)
    mask[np.random.default_rng(2).random(mask.shape) < 0.2] = 200
    colour = np.float32([180, 90, 200])
    y, u, v = planes(*size)
    dots_of(mask, 6, 8, size, colour, 0.6).blend(y, u, v)
    y2, u2, v2 = planes(*size)
    canvas = Canvas(size, (6, 8, 10, 14))
    canvas.paint(mask.astype(np.float32) * np.float32(0.6 / 255), 6, 8, colour)
    canvas.layer().blend(y2, u2, v2)
    np.testing.assert_array_equal(y, y2)
    np.testing.assert_allclose(u.astype(int), u2, atol=1)
    np.testing.assert_allclose(v.astype(int), v2, atol=1)


def test_dots_change_only_what_they_mark() -> None:
    size = (23, 39)
    mask = np.zeros(size, np.uint8)
    mask[[0, 22, 22, 11], [0, 38, 0, 20]] = 255
    dots = dots_of(mask, 0, 0, size, np.float32([250, 20, 240]), 1.0)
    before = planes(*size)
    after = tuple(plane.copy() for plane in before)
    dots.blend(*after)
    marks = marks_of(*size)
    dots.mark(marks)
    assert (marks.luma.sum(), marks.chroma.sum()) == (4, 4)
    for was, now, where in zip(before, after, (marks.luma, *[marks.chroma] * 2), strict=True):
        np.testing.assert_array_equal(was[~where], now[~where])


@pytest.mark.parametrize("size", [(120, 80), (119, 79)], ids=str)
def test_levels_blend_as_a_layer_with_the_ramp_does(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(4)
    place = np.arange(256) / 255
    luma_ramp = whole_numbers(0.4 * place, [0.4 * place * 200])
    chroma_ramp = whole_numbers(0.7 * place, [0.7 * place * 50, 0.7 * place * 220])
    luma = rng.integers(0, 256, (size[0] - 6, size[1] - 8), dtype=np.uint8)
    luma[10:90] = 0  # bands without a mark
    luma[100:, :30] = 0
    chroma = luma[::2, ::2].copy()
    y, u, v = planes(*size)
    before = (y.copy(), u.copy(), v.copy())
    layer = Layer(
        6,
        8,
        (luma_ramp[0][luma], luma_ramp[1][luma]),
        (chroma_ramp[0][chroma], chroma_ramp[1][chroma], chroma_ramp[2][chroma]),
    )
    levels = Levels(6, 8, luma, chroma, luma_ramp, chroma_ramp)
    expected = tuple(plane.copy() for plane in before)
    layer.blend(*expected)
    levels.blend(y, u, v)
    for got, wanted in zip((y, u, v), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)
    marks, same = marks_of(*size), marks_of(*size)
    levels.mark(marks)
    layer.mark(same)
    np.testing.assert_array_equal(marks.luma, same.luma)
    np.testing.assert_array_equal(marks.chroma, same.chroma)
    assert (y != before[0])[marks.luma].any() and (y == before[0])[~marks.luma].all()


def test_copy_of_a_canvas_is_painted_on_its_own() -> None:
    canvas = Canvas((8, 8), (0, 0, 8, 8))
    canvas.copy().fill((0, 0, 8, 8), np.float32([200, 50, 50]), 1.0)
    layer = canvas.layer()
    assert isinstance(layer, Layer)
    assert (layer.luma[0] == 256).all()


def test_changing_numbers_keep_their_width() -> None:
    for size in range(9, 40):
        widths = {number_mask(text, size).shape for text in ("00:00:11.11", "23:45:67.89")}
        assert len(widths) == 1


def test_text_is_ink_on_nothing() -> None:
    mask = text_mask("Research use only", 14)
    assert mask.shape[1] > mask.shape[0]
    assert 0.9 < mask.max() <= 1.0
    assert mask.min() == 0.0
    assert not mask[:, 0].any() or mask[:, 0].max() < 1.0


def test_letters_below_the_line_are_not_cut_off() -> None:
    for size in (9, 12, 18, 34):
        assert text_mask("gjpqy", size)[-1].max() < 0.5
