"""The field of view is found, cropped, squashed and masked alike for stills and for streams."""

import csv
import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from ccdstream.frames import VIEW_SIZE, Colour, FieldOfView, Frame, View
from ccdstream.view import (
    HYPERKVASIR,
    NEUTRAL,
    NONE,
    Profile,
    ViewTracker,
    find_field,
    map_to_image,
    mask_to_view,
    view_of_image,
    whole_frame,
)
from tests.scopes import (
    BOX,
    COLOURS,
    RATE,
    SHAPES,
    SIZE,
    SMALL,
    SMALL_BOX,
    WEIGHTS,
    burned_in,
    colour_name,
    frame_of,
    scene,
    stream,
    tissue,
    wandering,
)

DATA = Path(__file__).parents[2] / "shared" / "data"


def luma(rgb: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)


def iou(field: FieldOfView, box: tuple[int, int, int, int]) -> float:
    x, y, width, height = box
    across = min(field.x + field.width, x + width) - max(field.x, x)
    down = min(field.y + field.height, y + height) - max(field.y, y)
    shared = max(across, 0) * max(down, 0)
    return shared / (field.width * field.height + width * height - shared)


def box_of(field: FieldOfView) -> tuple[int, int, int, int]:
    return field.x, field.y, field.width, field.height


# -- finding the field ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("border", [0, 16, 22])
def test_the_box_of_every_shape_is_found(shape: str, border: int) -> None:
    field = find_field(luma(scene(shape, border=border)))
    assert iou(field, BOX) > 0.985


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((288, 384), (43, 14, 315, 266)),
        ((480, 560), (20, 10, 520, 460)),
        ((1080, 1920), (560, 20, 1180, 1040)),
        ((531, 633), (10, 0, 623, 531)),
    ],
    ids=["288", "480", "1080", "odd"],
)
def test_the_field_is_found_at_any_frame_size(size, box) -> None:
    field = find_field(luma(scene(size=size, box=box, inside=tissue(size))))
    assert iou(field, box) > 0.98


@pytest.mark.parametrize("shape", SHAPES)
def test_the_outline_covers_what_is_visible(shape: str) -> None:
    image = scene(shape)
    seen = luma(image) > 0
    drawn = np.zeros(SIZE, np.uint8)
    cv2.fillPoly(drawn, [find_field(luma(image)).outline], 1)
    shared = np.count_nonzero(seen & (drawn > 0))
    assert shared / np.count_nonzero(seen | (drawn > 0)) > 0.975


def test_the_outline_lies_within_the_box_and_is_convex() -> None:
    field = find_field(luma(scene("disc")))
    low, high = field.outline.min(axis=0), field.outline.max(axis=0)
    assert low[0] >= field.x and low[1] >= field.y
    assert high[0] <= field.x + field.width and high[1] <= field.y + field.height
    assert field.outline.dtype == np.int32
    assert cv2.isContourConvex(field.outline)


def test_the_field_starts_and_ends_on_even_pixels_or_at_the_frame() -> None:
    for x in range(40, 48):
        field = find_field(luma(scene(box=(x, 21, 600, 501))))
        assert all(value % 2 == 0 for value in box_of(field))


def with_dark_lumen(image: np.ndarray) -> None:
    cv2.circle(image, (640, 300), 130, (3, 2, 2), cv2.FILLED)


def with_black_inset(image: np.ndarray) -> None:
    image[390:556, 46:250] = 0


def with_framed_inset_that_sticks_out(image: np.ndarray) -> None:
    image[390:556, 10:250] = 17
    image[400:546, 20:240] = 0


def with_live_inset_that_sticks_out(image: np.ndarray) -> None:
    image[400:556, 6:200] = tissue((156, 194), seed=5)


def with_text(image: np.ndarray) -> None:
    for row, line in enumerate(("ID: 4711", "24/02/2014", "00:06:47")):
        at = (4, 60 + 40 * row)
        cv2.putText(image, line, at, cv2.FONT_HERSHEY_PLAIN, 1.2, (235, 235, 235), 1)


def with_noise(image: np.ndarray) -> None:
    noise = np.random.default_rng(3).normal(0, 6, image.shape)
    image[:] = np.clip(image + 8 + noise, 0, 255).astype(np.uint8)


DISTURBANCES = [
    with_dark_lumen,
    with_black_inset,
    with_framed_inset_that_sticks_out,
    with_live_inset_that_sticks_out,
    with_text,
    with_noise,
]


@pytest.mark.parametrize("disturb", DISTURBANCES, ids=lambda disturb: disturb.__name__)
def test_the_field_is_found_all_the_same(disturb) -> None:
    image = scene()
    disturb(image)
    assert iou(find_field(luma(image)), BOX) > 0.97


@pytest.mark.parametrize("level", [0, 16, 255], ids=["black", "video-black", "white"])
def test_a_frame_of_one_grey_is_a_whole_field(level: int) -> None:
    field = find_field(np.full(SIZE, level, np.uint8))
    assert box_of(field) == (0, 0, 720, 576)


def test_a_frame_without_a_border_is_a_whole_field() -> None:
    image = tissue(SIZE)
    cv2.circle(image, (300, 300), 120, (8, 4, 4), cv2.FILLED)  # the lumen is no border
    assert box_of(find_field(luma(image))) == (0, 0, 720, 576)


def test_a_light_in_the_dark_is_not_a_field() -> None:
    image = np.zeros(SIZE, np.uint8)
    image[300:340, 300:340] = 200
    assert box_of(find_field(image)) == (0, 0, 720, 576)


@pytest.mark.parametrize("size", [(8, 8), (17, 31), (256, 256)])
def test_small_images_have_a_field(size) -> None:
    assert find_field(np.full(size, 120, np.uint8)).width == size[1]


def test_fields_of_real_normal_frames_agree_with_the_index() -> None:
    if not (DATA / "index.csv").exists():
        pytest.skip("the real data is not beside this checkout")
    with (DATA / "index.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["path"].startswith("normal/train/")]
    found = []
    for row in rows[::40]:
        image = cv2.imread(str(DATA / row["path"]), cv2.IMREAD_GRAYSCALE)
        x, y, width, height = (int(row[f"fov_{name}"]) for name in "xywh")
        found.append(iou(find_field(image), (x, y, width, height)))
    assert np.mean(found) > 0.985


# -- pixels ---------------------------------------------------------------------------------------


def test_each_pixel_of_the_view_is_the_mean_of_its_area() -> None:
    image = np.random.default_rng(0).integers(90, 150, (512, 768, 3), dtype=np.uint8)
    expected = image.reshape(256, 2, 256, 3, 3).mean(axis=(1, 3))
    view = view_of_image(image, NONE, field=whole_frame((512, 768)))
    assert np.abs(view.image - expected)[view.valid].max() <= 0.51


def test_a_large_image_is_the_mean_of_its_areas_as_well() -> None:
    image = np.random.default_rng(0).integers(90, 150, (1536, 2048, 3), dtype=np.uint8)
    expected = image.reshape(256, 6, 256, 8, 3).mean(axis=(1, 3))
    view = view_of_image(image, NONE, field=whole_frame((1536, 2048)))
    assert np.abs(view.image - expected)[view.valid].max() <= 1.01  # rounded twice


def test_a_small_image_is_enlarged_without_steps() -> None:
    ramp = np.repeat(np.arange(80, 144, dtype=np.uint8)[None, :, None], 64, axis=0)
    view = view_of_image(np.repeat(ramp, 3, axis=2), NONE, field=whole_frame((64, 64)))
    assert np.diff(view.image[128, 8:-8, 0].astype(int)).max() <= 1


@pytest.mark.parametrize("colour", COLOURS, ids=colour_name)
def test_still_and_frame_give_the_same_view(colour: Colour) -> None:
    image = scene(inside=tissue(SIZE, smallest_px=60))
    still = view_of_image(image, HYPERKVASIR)
    frame = ViewTracker(HYPERKVASIR).update(frame_of(image, colour))
    assert iou(frame.field, box_of(still.field)) > 0.99
    both = still.valid & frame.valid
    assert np.count_nonzero(both) > 0.97 * np.count_nonzero(still.valid)
    difference = np.abs(still.image.astype(int) - frame.image)[both]
    assert difference.mean() < 2


@pytest.mark.parametrize("colour", COLOURS, ids=colour_name)
@pytest.mark.parametrize(
    "rgb", [(200, 90, 70), (70, 190, 80), (90, 80, 200), (128, 128, 128)], ids=str
)
def test_every_matrix_and_range_gives_back_the_colour(rgb, colour: Colour) -> None:
    image = np.full((300, 400, 3), rgb, np.uint8)
    view = ViewTracker(NONE).update(frame_of(image, colour))
    assert view.valid.mean() > 0.9
    assert np.abs(view.image[view.valid].astype(int) - rgb).max() <= 2


@pytest.mark.parametrize("colour", COLOURS, ids=colour_name)
def test_conversion_is_that_of_the_slow_reference(colour: Colour) -> None:
    """Planes in cells of one view pixel each, so that nothing is averaged but equals."""
    random = np.random.default_rng(0)
    y = random.integers(40, 90, VIEW_SIZE, dtype=np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    u, v = random.integers(60, 196, (2, *VIEW_SIZE), dtype=np.uint8)
    frame = Frame(y, u, v, 0, Fraction(1, 25), colour)
    luma_at, blue_at, red_at = (plane.astype(np.float64) for plane in (y[::2, ::2], u, v))
    if colour.full_range:
        luma_at, blue_at, red_at = luma_at / 255, (blue_at - 128) / 255, (red_at - 128) / 255
    else:
        luma_at = (luma_at - 16) / 219
        blue_at, red_at = (blue_at - 128) / 224, (red_at - 128) / 224
    kr, kb = WEIGHTS[colour.matrix]
    red = luma_at + 2 * (1 - kr) * red_at
    blue = luma_at + 2 * (1 - kb) * blue_at
    green = (luma_at - kr * red - kb * blue) / (1 - kr - kb)
    expected = np.clip(255 * np.stack([red, green, blue], axis=2), 0, 255)
    view = ViewTracker(NONE).update(frame)
    assert view.field.width == 512 and view.valid_fraction > 0.5
    assert np.abs(view.image - expected)[view.valid].max() < 0.51


def test_chroma_lies_on_its_luma() -> None:
    image = np.full((512, 512, 3), (180, 100, 90), np.uint8)
    image[200:280, 200:280] = (100, 100, 190)
    still = view_of_image(image, NONE).image.astype(int)
    frame = ViewTracker(NONE).update(frame_of(image)).image.astype(int)
    inner = np.s_[102:138, 102:138]
    assert np.abs(still - frame)[inner].max() <= 3
    outer = np.ones(VIEW_SIZE, bool)
    outer[97:143, 97:143] = False
    assert np.abs(still - frame)[outer].max() <= 3


def test_the_crop_is_the_field() -> None:
    image = scene("rectangle", inside=np.full((*SIZE, 3), (200, 120, 100), np.uint8))
    for view in (view_of_image(image, NONE), ViewTracker(NONE).update(frame_of(image))):
        assert np.abs(view.image[view.valid].astype(int) - (200, 120, 100)).max() <= 2
        assert view.valid_fraction > 0.93


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((64, 64), np.uint8),
        np.zeros((64, 64, 4), np.uint8),
        np.zeros((64, 64, 3), np.float32),
    ],
    ids=["grey", "rgba", "float"],
)
def test_an_image_that_is_not_rgb_is_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"image must be uint8 \[H, W, 3\], got"):
        view_of_image(image, NONE)


# -- masks on stills ------------------------------------------------------------------------------


def test_masked_pixels_are_neutral() -> None:
    view = view_of_image(scene(), HYPERKVASIR)
    assert (view.image[~view.valid] == NEUTRAL).all()
    assert view.image.shape == (*VIEW_SIZE, 3)
    assert view.valid.shape == VIEW_SIZE


def test_no_border_pixel_is_valid() -> None:
    """The nearest valid pixel is so far inside that next to nothing of the border bleeds in."""
    bright = np.full((*SIZE, 3), (200, 120, 100), np.uint8)
    for shape in SHAPES:
        view = view_of_image(scene(shape, inside=bright), NONE)
        assert np.abs(view.image[view.valid].astype(int) - (200, 120, 100)).max() <= 3


def test_the_profile_masks_every_still_alike() -> None:
    """Where an inset is and where none is must look the same: else the mask tells the label."""
    plain = scene("rectangle", box=(0, 0, 720, 576))
    marked = plain.copy()
    marked[int(0.60 * 576) :, : int(0.38 * 720)] = 0
    with_text(marked)
    one, other = (
        view_of_image(image, HYPERKVASIR, field=whole_frame(SIZE)) for image in (plain, marked)
    )
    np.testing.assert_array_equal(one.valid, other.valid)
    np.testing.assert_array_equal(one.image, other.image)


def test_the_profile_masks_inset_and_strip_and_no_more() -> None:
    profile = Profile("made up", inset=(0.0, 0.75, 0.25, 1.0), text_strip=0.125)
    view = view_of_image(tissue((256, 256)), profile, field=whole_frame((256, 256)))
    expected = np.ones(VIEW_SIZE, bool)
    expected[192:, :64] = False
    expected[:, :32] = False
    inner = np.s_[4:-4, 4:-4]  # but for the margin of the outline
    np.testing.assert_array_equal(view.valid[inner], expected[inner])


def test_highlights_are_masked_with_a_rim() -> None:
    image = tissue((512, 512))
    cv2.circle(image, (300, 200), 12, (255, 255, 250), cv2.FILLED)
    valid = view_of_image(image, NONE).valid
    assert not valid[100 - 7 : 100 + 8, 150 - 2 : 150 + 3].any()
    assert valid[100 - 14, 150] and valid[100, 150 + 14]


def test_a_glint_dimmed_by_the_squash_is_masked() -> None:
    image = tissue((1024, 1024))
    image[500:503, 600:603] = 255
    plain = view_of_image(tissue((1024, 1024)), NONE)
    view = view_of_image(image, NONE)
    assert view.image[125, 150].max() < 250
    assert plain.valid[125, 150] and not view.valid[125, 150]


@pytest.mark.parametrize(
    "rgb", [(250, 190, 150), (245, 225, 120), (215, 195, 180)], ids=["pink", "yellow", "pale"]
)
def test_bright_tissue_is_not_a_highlight(rgb) -> None:
    image = tissue((512, 512))
    cv2.circle(image, (300, 200), 60, rgb, cv2.FILLED)
    assert view_of_image(image, NONE).valid[90:110, 140:160].all()


def test_a_profile_survives_json() -> None:
    for profile in (HYPERKVASIR, NONE):
        assert Profile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile


@pytest.mark.parametrize(
    "change",
    [{"inset": [0.4, 0.5, 0.4, 1.0]}, {"text_strip": 1.5}, {"marks": [[0, 0, 2, 1]]}],
    ids=["empty", "too wide", "outside"],
)
def test_a_profile_with_an_impossible_box_is_refused(change) -> None:
    with pytest.raises(ValueError, match="0 <= x0 < x1 <= 1"):
        Profile.from_dict(HYPERKVASIR.to_dict() | change)


def test_a_profile_with_unknown_keys_is_refused() -> None:
    with pytest.raises(ValueError, match="a profile has the keys"):
        Profile.from_dict(HYPERKVASIR.to_dict() | {"colour": "red"})


# -- streams --------------------------------------------------------------------------------------


def views(tracker: ViewTracker, images, start_s: float = 0.0) -> list[View]:
    return [tracker.update(frame) for frame in stream(images, start_s)]


def share_valid(view: View, x0: int, y0: int, x1: int, y1: int) -> float:
    """Of a box in frame pixels, how much the view scores."""
    mask = np.zeros(SMALL, bool)
    mask[y0:y1, x0:x1] = True
    inside = mask_to_view(mask, view.field)
    return float(view.valid[inside].mean())


def test_a_stream_tells_its_own_overlay() -> None:
    seen = views(ViewTracker(NONE), wandering(80, decorate=burned_in))
    assert share_valid(seen[0], 30, 195, 120, 262) > 0.5  # not told yet
    assert share_valid(seen[-1], 30, 195, 120, 262) < 0.02
    assert share_valid(seen[-1], 32, 82, 92, 88) < 0.2
    assert share_valid(seen[-1], 150, 80, 300, 260) > 0.97


def test_a_stream_without_overlay_frees_what_the_profile_masks() -> None:
    seen = views(ViewTracker(HYPERKVASIR), wandering(80))
    assert seen[10].valid_fraction < 0.7
    assert seen[-1].valid_fraction > seen[10].valid_fraction + 0.2


def test_the_profile_stays_where_the_stream_shows_overlay() -> None:
    seen = views(ViewTracker(HYPERKVASIR), wandering(80, decorate=burned_in))
    _, top, right, _ = HYPERKVASIR.inset
    height, width = VIEW_SIZE
    assert not seen[-1].valid[int(top * height) + 1 :, : int(right * width)].any()


def test_the_profile_counts_until_seconds_of_motion_have_told() -> None:
    tracker = ViewTracker(HYPERKVASIR)
    still = next(iter(wandering(1)))
    first = tracker.update(frame_of(still, rate=RATE))
    for view in views(tracker, [still] * 60, start_s=0.1):
        np.testing.assert_array_equal(view.valid, first.valid)


def test_a_scope_that_hovers_over_a_lesion_does_not_learn_it_as_overlay() -> None:
    random = np.random.default_rng(0)
    wide = tissue((400, 500), seed=4, smallest_px=12)
    lesion = cv2.circle(np.zeros((400, 500, 1), np.uint8), (250, 200), 30, 1, cv2.FILLED)
    wide = np.where(lesion > 0, wide // 3 + np.array([150, 110, 100], np.uint8), wide)

    def hovering():
        for _ in range(150):
            x, y = np.clip(70 + random.normal(0, 5, 2), 0, 140).astype(int)
            inside = wide[y - 14 : y - 14 + SMALL[0], x : x + SMALL[1]]
            yield scene(size=SMALL, box=SMALL_BOX, inside=inside)

    seen = views(ViewTracker(NONE), hovering())
    assert share_valid(seen[-1], 140, 100, 220, 190) > 0.95


def test_a_scope_held_nearly_still_teaches_nothing() -> None:
    random = np.random.default_rng(0)
    wide = tissue((400, 500), seed=4, smallest_px=12)

    def trembling():
        for _ in range(100):
            x, y = random.integers(70, 72, 2)
            inside = wide[y : y + SMALL[0], x : x + SMALL[1]]
            yield scene(size=SMALL, box=SMALL_BOX, inside=inside)

    seen = views(ViewTracker(NONE), trembling())
    assert seen[-1].valid_fraction == pytest.approx(seen[0].valid_fraction, abs=0.01)


def test_the_field_does_not_jitter() -> None:
    def noisy():
        random = np.random.default_rng(2)
        for image in wandering(60):
            yield np.clip(image + random.normal(4, 4, image.shape), 0, 255).astype(np.uint8)

    fields = [view.field for view in views(ViewTracker(NONE), noisy())]
    settled = fields[15:]
    assert all(field is settled[0] for field in settled)


def test_a_dark_start_grows_to_the_field() -> None:
    images = list(wandering(30))
    for index in range(8):
        images[index] = np.zeros_like(images[index])
    images[8][:, 180:] //= 40  # only one side is lit
    seen = views(ViewTracker(NONE), images)
    assert box_of(seen[0].field) == (0, 0, 360, 288)
    assert iou(seen[-1].field, SMALL_BOX) > 0.97


def test_a_black_stretch_keeps_the_field() -> None:
    tracker = ViewTracker(NONE)
    before = views(tracker, wandering(20))[-1].field
    black = [np.zeros((*SMALL, 3), np.uint8)] * 100
    assert all(view.field is before for view in views(tracker, black, start_s=2.0))


def test_a_passing_shadow_does_not_move_the_field() -> None:
    images = list(wandering(100))
    for image in images[30:75]:
        image[:, 240:] //= 40
    fields = [view.field for view in views(ViewTracker(NONE), images)]
    assert all(field is fields[15] for field in fields[15:])


def test_another_source_is_found_after_a_while() -> None:
    tracker = ViewTracker(NONE)
    views(tracker, wandering(30))
    smaller = (120, 60, 200, 180)
    seen = views(tracker, wandering(100, box=smaller), start_s=3.0)
    assert iou(seen[0].field, SMALL_BOX) > 0.97
    assert iou(seen[-1].field, smaller) > 0.95


def test_another_frame_size_starts_anew() -> None:
    tracker = ViewTracker(NONE)
    tracker.update(frame_of(scene()))
    view = tracker.update(frame_of(scene(size=SMALL, box=SMALL_BOX, inside=tissue(SMALL)), pts=1))
    assert iou(view.field, SMALL_BOX) > 0.97


def test_a_stream_wound_back_goes_on() -> None:
    tracker = ViewTracker(HYPERKVASIR)
    views(tracker, wandering(20), start_s=100.0)
    seen = views(tracker, wandering(20))
    assert iou(seen[-1].field, SMALL_BOX) > 0.97


def test_two_trackers_of_one_stream_agree_and_look_only_back() -> None:
    frames = list(stream(wandering(60, decorate=burned_in)))
    whole, part = ViewTracker(HYPERKVASIR), ViewTracker(HYPERKVASIR)
    ahead = [whole.update(frame) for frame in frames]
    for expected, frame in zip(ahead[:40], frames[:40], strict=True):
        view = part.update(frame)
        np.testing.assert_array_equal(view.image, expected.image)
        np.testing.assert_array_equal(view.valid, expected.valid)


def test_views_handed_out_are_not_changed_later() -> None:
    tracker = ViewTracker(NONE)
    frames = list(stream(wandering(40, decorate=burned_in)))
    first = tracker.update(frames[0])
    kept = first.image.copy(), first.valid.copy(), replace(first.field)
    for frame in frames[1:]:
        tracker.update(frame)
    np.testing.assert_array_equal(first.image, kept[0])
    np.testing.assert_array_equal(first.valid, kept[1])
    assert box_of(first.field) == box_of(kept[2])


# -- and back -------------------------------------------------------------------------------------


def test_a_map_is_laid_over_its_field() -> None:
    ramp = np.repeat((np.arange(64, dtype=np.float32) + 0.5)[None, :] / 64, 64, axis=0)
    field = whole_frame((200, 300))
    laid = map_to_image(ramp, field, (200, 300))
    expected = (np.arange(300) + 0.5) / 300
    assert laid.dtype == np.float32
    np.testing.assert_allclose(laid[100, 5:-5], expected[5:-5], atol=1e-4)


def test_nothing_is_laid_outside_the_outline() -> None:
    image = scene("disc")
    field = find_field(luma(image))
    laid = map_to_image(np.ones((64, 64), np.float32), field, SIZE)
    assert np.isnan(laid[luma(image) == 0]).mean() > 0.95
    assert (laid[np.isfinite(laid)] == 1).all()
    assert np.isfinite(laid[luma(image) > 0]).mean() > 0.97


def test_what_a_map_does_not_know_does_not_bleed() -> None:
    anomaly_map = np.full((8, 8), 3.0, np.float32)
    anomaly_map[2:4, 5] = np.nan
    laid = map_to_image(anomaly_map, whole_frame((80, 160)), (80, 160))
    unknown = np.zeros((80, 160), bool)
    unknown[20:40, 100:120] = True
    np.testing.assert_array_equal(np.isnan(laid), unknown)
    np.testing.assert_allclose(laid[~unknown], 3.0, rtol=1e-6)


def test_a_map_is_nan_where_the_view_is_not_valid() -> None:
    valid = np.ones(VIEW_SIZE, bool)
    valid[:, :128] = False
    laid = map_to_image(np.ones((64, 64), np.float32), whole_frame((90, 80)), (90, 80), valid)
    assert np.isnan(laid[:, :40]).all() and np.isfinite(laid[:, 40:]).all()


def test_a_map_comes_back_where_the_mask_went() -> None:
    field = find_field(luma(scene("rectangle")))
    mask = np.zeros(SIZE, bool)
    mask[200:300, 300:460] = True
    laid = map_to_image(mask_to_view(mask, field).astype(np.float32), field, SIZE)
    again = np.nan_to_num(laid) > 0.5
    assert np.count_nonzero(again & mask) / np.count_nonzero(again | mask) > 0.97


def test_a_mask_is_cropped_and_squashed() -> None:
    mask = np.zeros(SIZE, bool)
    mask[:, : 46 + 313] = True
    field = FieldOfView(46, 22, 626, 534, np.zeros((4, 2), np.int32))
    squashed = mask_to_view(mask, field)
    assert squashed.shape == VIEW_SIZE and squashed.dtype == bool
    assert squashed[:, :128].all() and not squashed[:, 128:].any()
