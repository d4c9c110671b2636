from fractions import Fraction

import numpy as np
import pytest

import ccdstream.render
from ccdstream.frames import Colour, FieldOfView, Frame, Fused
from ccdstream.history import STATES
from ccdstream.quality import FLAGS
from ccdstream.render import Overlay
from tests.live import grey

COLOUR = Colour("bt601", full_range=False)
SIZES = [(576, 720), (1080, 1920), (288, 384), (240, 320), (48, 64), (35, 33), (33, 35), (3, 5)]


def frame_of(size: tuple[int, int], pts: int = 7, seed: int = 0) -> Frame:
    """Noise, so that any pixel that changes is seen."""
    rng = np.random.default_rng(seed)
    height, width = size
    half = ((height + 1) // 2, (width + 1) // 2)
    return Frame(
        y=rng.integers(0, 256, (height, width), dtype=np.uint8),
        u=rng.integers(0, 256, half, dtype=np.uint8),
        v=rng.integers(0, 256, half, dtype=np.uint8),
        pts=pts,
        time_base=Fraction(1, 25),
        colour=COLOUR,
    )


def octagon(size: tuple[int, int]) -> FieldOfView:
    """A field of view with odd edges, cut at the corners, a little inside the frame."""
    height, width = size
    x, y = min(1, width // 4), min(1, height // 4)
    w, h = width - 2 * x, height - 2 * y
    cut = min(w, h) // 4
    right, foot = x + w - 1, y + h - 1
    corners = [
        (x + cut, y), (right - cut, y), (right, y + cut), (right, foot - cut),
        (right - cut, foot), (x + cut, foot), (x, foot - cut), (x, y + cut),
    ]  # fmt: skip
    return FieldOfView(x, y, w, h, np.array(corners, np.int32))


def fused(
    heat: np.ndarray | float = 0.5, smoothed: float = 0.5, quality: tuple[str, ...] = ()
) -> Fused:
    cells = np.full((64, 64), heat, np.float32) if isinstance(heat, float) else heat
    return Fused(1.0, smoothed, smoothed, lambda: cells, quality, 0.9)


def patchy_heat(seed: int = 0) -> np.ndarray:
    """A hot patch, stray hot cells and invalid ones."""
    rng = np.random.default_rng(seed)
    heat = np.where(rng.random((64, 64)) < 0.03, 0.995, 0.4).astype(np.float32)
    heat[20:40, 10:34] = rng.uniform(0.97, 1.0, (20, 24))
    heat[rng.random((64, 64)) < 0.05] = np.nan
    return heat


def overlay(size: tuple[int, int], duration_s: float | None = 10.0) -> Overlay:
    return Overlay(size, COLOUR, enter=0.97, duration_s=duration_s)


def changed(one: Frame, other: Frame) -> tuple[np.ndarray, np.ndarray]:
    """(bool [H, W], bool [h, w]): where luma, and where either chroma plane, differs."""
    return one.y != other.y, (one.u != other.u) | (one.v != other.v)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_outside_the_marks_are_bit_for_bit_those_of_the_input(
    size: tuple[int, int], state: str
) -> None:
    marker = overlay(size)
    frame = frame_of(size)
    quality = ("blurred",) if state == "UNCLEAR" else ()
    for step in range(5):
        given = fused(patchy_heat(step), 0.2 * step, quality)
        drawn = marker.draw(frame, octagon(size), given, state, 2.0 * step)
        luma, chroma = changed(frame, drawn)
        marks = marker.marks()
        assert not (luma & ~marks.luma).any()
        assert not (chroma & ~marks.chroma).any()
        assert luma.any()


def test_marks_cover_little_of_a_normal_frame() -> None:
    marker = overlay((576, 720))
    marker.draw(frame_of((576, 720)), octagon((576, 720)), fused(), "NORMAL", 1.0)
    assert marker.marks().luma.mean() < 0.15


def test_input_frame_is_left_as_it_is_and_its_time_is_kept() -> None:
    frame = frame_of((48, 64), pts=2**53 + 1)
    y, u, v = frame.y.copy(), frame.u.copy(), frame.v.copy()
    drawn = overlay((48, 64)).draw(frame, octagon((48, 64)), fused(1.0, 1.0), "ALERT", 1.0)
    assert (drawn.pts, drawn.time_base, drawn.colour) == (2**53 + 1, Fraction(1, 25), COLOUR)
    for before, now in ((y, frame.y), (u, frame.u), (v, frame.v)):
        np.testing.assert_array_equal(before, now)


def test_same_stream_gives_the_same_pixels() -> None:
    drawn = []
    for _ in range(2):
        marker = overlay((240, 320))
        for step in range(3):
            out = marker.draw(
                frame_of((240, 320)), octagon((240, 320)), fused(patchy_heat()), "WATCH", step
            )
        drawn.append(out)
    assert not any(mask.any() for mask in changed(*drawn))


def drawn_with(heat: np.ndarray | float, size: tuple[int, int] = (576, 720)) -> Frame:
    """One frame of a fresh stream, all but the heat the same."""
    return overlay(size).draw(frame_of(size), octagon(size), fused(heat), "NORMAL", 1.0)


@pytest.mark.parametrize("heat", [0.0, 0.9, 0.979])
def test_heatmap_is_clear_where_nothing_is_unusual(heat: float) -> None:
    assert not any(mask.any() for mask in changed(drawn_with(heat), drawn_with(np.nan)))


def test_heatmap_marks_what_is_unusual_and_its_surroundings_only() -> None:
    heat = np.full((64, 64), 0.5, np.float32)
    heat[30:34, 10:14] = 0.9999
    luma, chroma = changed(drawn_with(heat), drawn_with(0.5))
    field = octagon((576, 720))
    rows, columns = np.nonzero(luma)
    cell_y, cell_x = field.height / 64, field.width / 64
    # a cell more on every side for the smooth edge, and the line around it
    assert field.y + 29 * cell_y - 2 <= rows.min() and rows.max() <= field.y + 35 * cell_y + 2
    assert field.x + 9 * cell_x - 2 <= columns.min() and columns.max() <= field.x + 15 * cell_x + 2
    middle = (int(field.y + 32 * cell_y), int(field.x + 12 * cell_x))
    assert luma[middle] and chroma[middle[0] // 2, middle[1] // 2]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_heat_stays_inside_the_outline(size: tuple[int, int]) -> None:
    luma, chroma = changed(drawn_with(1.0, size), drawn_with(0.5, size))
    field = octagon(size)
    # oracle: a pixel is inside if it is on the inner side of each edge of the convex outline
    y, x = np.mgrid[: size[0], : size[1]]
    inside = np.ones(size, bool)
    for (x0, y0), (x1, y1) in zip(field.outline, np.roll(field.outline, -1, axis=0), strict=True):
        dx, dy = int(x1 - x0), int(y1 - y0)
        inside &= dx * (y - y0) - dy * (x - x0) >= -max(abs(dx), abs(dy))  # a pixel of tolerance
    assert not (luma & ~inside).any()
    padded = np.pad(inside, ((0, size[0] % 2), (0, size[1] % 2)), mode="edge")
    cells = padded.reshape(chroma.shape[0], 2, chroma.shape[1], 2).any(axis=(1, 3))
    assert not (chroma & ~cells).any()
    assert luma.any() or min(size) < 10


@pytest.mark.parametrize("size", [(576, 720), (288, 384), (48, 64)], ids=str)
def test_heat_stays_out_of_invalid_cells(size: tuple[int, int]) -> None:
    heat = np.ones((64, 64), np.float32)
    heat[np.random.default_rng(3).random((64, 64)) < 0.3] = np.nan
    heat[40:, :20] = np.nan
    field = octagon(size)
    hot, _ = changed(drawn_with(heat, size), drawn_with(np.nan, size))
    y, x = np.mgrid[: size[0], : size[1]]
    row = ((y + 0.5 - field.y) * 64 / field.height).astype(int).clip(0, 63)
    column = ((x + 0.5 - field.x) * 64 / field.width).astype(int).clip(0, 63)
    assert not (hot & np.isnan(heat)[row, column]).any()
    assert hot.any()


def test_hotter_is_more_opaque() -> None:
    size, half = (576, 720), np.full((288, 360), 128, np.uint8)
    opacity = []
    for heat in (0.5, 0.985, 0.99, 0.995, 0.998, 0.9995, 1.0):
        # what remains of the difference between a dark and a bright frame was not covered
        dark, bright = (
            overlay(size).draw(
                Frame(np.full(size, level, np.uint8), half, half, 0, Fraction(1, 25), COLOUR),
                octagon(size),
                fused(heat),
                "NORMAL",
                1.0,
            )
            for level in (30, 230)
        )
        opacity.append(1 - (int(bright.y[280, 360]) - int(dark.y[280, 360])) / 200)
    assert opacity[0] == 0
    assert opacity == sorted(opacity)
    assert 0.02 < opacity[1] < opacity[3] < opacity[5] < 0.45


def test_tissue_stays_visible_under_the_hottest_heat() -> None:
    cold, hot = drawn_with(0.5).y[200:300, 200:400], drawn_with(1.0).y[200:300, 200:400]
    assert hot.std() > 0.6 * cold.std()
    assert np.corrcoef(cold.ravel(), hot.ravel())[0, 1] > 0.99


def test_no_heat_and_no_score_on_an_uninformative_frame() -> None:
    size = (576, 720)
    pictures = [
        overlay(size).draw(
            frame_of(size), octagon(size), fused(heat, score, ("blurred",)), "UNCLEAR", 1.0
        )
        for heat, score in ((1.0, 0.99), (0.1, 0.2))
    ]
    assert not any(mask.any() for mask in changed(*pictures))


def test_moved_field_moves_the_outline() -> None:
    size = (240, 320)
    marker = overlay(size)
    first = marker.draw(frame_of(size), octagon(size), fused(), "NORMAL", 1.0)
    there = octagon(size)
    moved = FieldOfView(40, 30, 200, 150, there.outline // 2 + 40)
    second = marker.draw(frame_of(size), moved, fused(), "NORMAL", 1.0)
    luma, _ = changed(first, second)
    x, y = there.outline[0]
    assert luma[y : y + 2, x + 10 : x + 60].any()


def test_time_line_is_that_of_the_history_though_many_frames_share_a_column() -> None:
    """One that is drawn once, of all of the past, is the same."""
    size, frame, field = (96, 128), frame_of((96, 128)), octagon((96, 128))
    kept = overlay(size, 1200.0)
    past = [(4.0 * k, 0.99 if k == 4 else 0.9, "ALERT" if k == 7 else "NORMAL") for k in range(12)]
    for step in range(len(past)):
        fresh = overlay(size, 1200.0)
        for seconds, score, state in past[:step]:
            fresh._history.add(seconds, score, state)
        seconds, score, state = past[step]
        drawn = [
            each.draw(frame, field, fused(smoothed=score), state, seconds) for each in (kept, fresh)
        ]
        assert not any(mask.any() for mask in changed(*drawn))


def test_frame_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a frame of size \(48, 64\), got \(33, 35\)"):
        overlay((48, 64)).draw(frame_of((33, 35)), octagon((33, 35)), fused(), "NORMAL", 0.0)


def test_unknown_state_is_refused() -> None:
    with pytest.raises(ValueError, match="state must be one of UNCLEAR, NORMAL, WATCH, ALERT"):
        overlay((48, 64)).draw(frame_of((48, 64)), octagon((48, 64)), fused(), "alert", 0.0)


def test_words_are_those_of_anomaly_not_of_diagnosis() -> None:
    words = (
        ccdstream.render.RESEARCH_TEXT + ccdstream.render.LEGEND_TEXT + " ".join(STATES)
    ).lower()
    assert "not a medical device" in words
    assert "unusual against normal training frames" in words
    assert not any(word in words for word in ("polyp", "lesion", "detect", "cancer", "adenoma"))


@pytest.mark.parametrize(
    ("size", "texts"),
    [((576, 720), 2), ((480, 560), 2), ((1080, 1920), 2), ((240, 320), 1), ((48, 64), 0)],
)
def test_words_are_there_where_they_fit_and_never_cross_the_foot(
    size: tuple[int, int], texts: int
) -> None:
    layout = ccdstream.render._layout(size)
    assert len(layout.words) == texts
    top, left, height, width = layout.foot
    assert top >= 0 and top + height <= size[0]
    for mask, y, x in layout.words:
        assert top <= y and y + mask.shape[0] <= layout.graph[0]
        assert left <= x and x + mask.shape[1] <= left + width


def test_a_late_frame_has_a_label_and_the_time_line_but_neither_heat_nor_score() -> None:
    size = (576, 720)
    marker = overlay(size)
    marker.draw(frame_of(size), octagon(size), fused(1.0, 0.999), "ALERT", 1.0)
    hot = marker.marks().luma
    late = marker.draw_late(frame_of(size, pts=9), 1.2)
    luma, _ = changed(frame_of(size), late)
    marks = marker.marks().luma
    assert late.pts == 9 and luma.any() and not (luma & ~marks).any()
    assert hot[288, 360] and not marks[100:400, 200:600].any(), "the heat is withdrawn"
    other = overlay(size)
    other.draw(frame_of(size), octagon(size), fused(0.5, 0.1), "ALERT", 1.0)
    again = other.draw_late(frame_of(size, pts=9), 1.2)
    bar = (slice(300, 500), slice(690, 712))
    assert (again.y[bar] == late.y[bar]).all(), "no bar tells the score of an earlier frame"


@pytest.mark.parametrize("size", [(240, 320), (576, 720), (1080, 1920)], ids=str)
def test_the_words_on_a_late_frame_are_not_cut_off(size: tuple[int, int]) -> None:
    frame = grey(90, size)
    late = overlay(size).draw_late(frame, 0.5).y[: size[0] // 2, : size[1] // 2]
    rows, columns = np.nonzero(late != 90)
    box = late[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert (box[:, -2:] == box[:, -1:]).all(), "they end before the edge of their panel"


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("luma", [16, 235], ids=["on black", "on white"])
def test_the_state_can_be_read_on_any_picture(state: str, luma: int) -> None:
    """A contrast of 3 to 1 at least, as WCAG 2.2 asks for large words."""
    frame = grey(luma, (576, 720))
    quality = ("washed_out",) if state == "UNCLEAR" else ()
    drawn = overlay(frame.size).draw(frame, octagon(frame.size), fused(0.5, 0.5, quality), state, 1)
    head = (drawn.y[12:32, 16:60].astype(float) - 16) / 219
    light, dark = (np.quantile(head, [0.99, 0.01]) ** 2.2)[[0, 1]]
    assert (light + 0.05) / (dark + 0.05) >= 3


@pytest.mark.parametrize("size", [(576, 720), (1080, 1920), (288, 384)], ids=str)
@pytest.mark.parametrize("flag", FLAGS)
def test_why_a_frame_tells_nothing_is_not_cut_off(size: tuple[int, int], flag: str) -> None:
    height, width = size
    corners = np.array([(width // 2, 0), (width - 1, 0), (width - 1, height // 2)], np.int32)
    field = FieldOfView(width // 2, 0, width // 2, height // 2, corners)  # not below the label
    marker = overlay(size)
    drawn = marker.draw(grey(90, size), field, fused(0.5, 0.5, (flag,)), "UNCLEAR", 1.0)
    assert marker._layout.label is not None
    top, left, tall, wide = marker._layout.label
    box = drawn.y[top : top + tall, left : left + wide]
    assert (box[:, -2:] == box[:, -1:]).all(), "it ends before the edge of its panel"


def test_a_frame_that_is_not_drawn_counts_in_the_time_line() -> None:
    drawn = []
    for noted in (False, True):
        marker = overlay((240, 320))
        if noted:
            marker.note(fused(0.5, 0.999), "ALERT", 1.0)
        drawn.append(marker.draw_late(frame_of((240, 320)), 1.2))
    luma, _ = changed(*drawn)
    assert luma[200:].any() and not luma[:200].any()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_late_frame_is_drawn_in_any_size(size: tuple[int, int]) -> None:
    late = overlay(size).draw_late(frame_of(size), 0.5)
    assert late.size == size
    with pytest.raises(ValueError, match="expected a frame of size"):
        overlay(size).draw_late(frame_of((50, 60)), 0.5)
