"""Frames that tell nothing are told from frames that do, without a label."""

import json

import cv2
import numpy as np
import pytest

from ccdstream.frames import VIEW_SIZE, View
from ccdstream.quality import FLAGS, MEASURES, QualityLimits, flags, gravest, measure
from ccdstream.view import HYPERKVASIR, NEUTRAL, NONE, view_of_image, whole_frame

FIELD = whole_frame(VIEW_SIZE)


def mucosa(seed: int = 0) -> np.ndarray:
    """uint8 [256, 256, 3]: reddish, with shading, vessels and texture."""
    random = np.random.default_rng(seed)

    def patches(cells: int) -> np.ndarray:
        coarse = random.random((cells, cells)).astype(np.float32)
        return cv2.resize(coarse, (256, 256), interpolation=cv2.INTER_CUBIC)

    light = 90 + 100 * patches(4) + 20 * patches(24) + 12 * patches(100)
    vessels = np.zeros(VIEW_SIZE, np.uint8)
    for _ in range(12):
        points = np.cumsum(random.normal(0, 14, (14, 2)), axis=0) + random.integers(40, 216, 2)
        cv2.polylines(vessels, [points.astype(np.int32)], False, 25, 1, cv2.LINE_AA)
    red = np.clip(light - vessels, 30, 225)
    return np.stack([red, 0.55 * red, 0.4 * red], axis=2).astype(np.uint8)


def seen(image: np.ndarray, profile=NONE) -> View:
    return view_of_image(image, profile, field=FIELD)


def flagged(image: np.ndarray, limits: QualityLimits) -> tuple[str, ...]:
    view = seen(image)
    return flags(measure(view), limits, view.valid_fraction)


@pytest.fixture(scope="module")
def limits() -> QualityLimits:
    return QualityLimits.fit([measure(seen(mucosa(seed))) for seed in range(100)])


def smeared(image: np.ndarray, length_px: int, axis: int) -> np.ndarray:
    kernel = np.full((length_px, 1) if axis == 0 else (1, length_px), 1 / length_px, np.float32)
    return cv2.filter2D(image, -1, kernel)


def veiled(image: np.ndarray, share: float) -> np.ndarray:
    return ((1 - share) * image + share * np.array([230, 225, 215])).astype(np.uint8)


def room(seed: int = 0) -> np.ndarray:
    """Grey and blue things with edges."""
    random = np.random.default_rng(seed)
    image = np.full((*VIEW_SIZE, 3), 90, np.uint8)
    for _ in range(60):
        x, y, width, height = random.integers(10, 200, 4)
        grey = int(random.integers(30, 190))
        colour = (grey, grey, min(255, grey + 25))
        cv2.rectangle(image, (int(x), int(y)), (int(x + width), int(y + height)), colour, 2)
    return image


def test_normal_frames_are_informative(limits: QualityLimits) -> None:
    others = [flagged(mucosa(seed), limits) for seed in range(100, 200)]
    assert np.mean([bool(found) for found in others]) <= 0.01


@pytest.mark.parametrize(
    ("spoil", "flag"),
    [
        (lambda image: cv2.GaussianBlur(image, (0, 0), 3), "blurred"),
        (lambda image: cv2.GaussianBlur(image, (0, 0), 6), "blurred"),
        (lambda image: smeared(image, 11, axis=0), "blurred"),
        (lambda image: smeared(image, 11, axis=1), "blurred"),
        (lambda image: veiled(image, 0.5), "washed_out"),
        (lambda image: np.minimum(image.astype(int) * 3, (255, 235, 200)), "washed_out"),
        (lambda image: np.full_like(image, (150, 90, 70)), "washed_out"),
        (lambda image: image // 5, "too_dark"),
        (lambda image: np.zeros_like(image), "too_dark"),
        (lambda image: image[..., [2, 1, 0]], "out_of_body"),
        (lambda image: np.repeat(image[..., :1] // 2, 3, axis=2), "out_of_body"),
        (lambda image: room(), "out_of_body"),
        (lambda image: np.full_like(image, 250), "mostly_invalid"),
    ],
    ids=[
        "blur 3",
        "blur 6",
        "smeared down",
        "smeared across",
        "veil",
        "overexposed",
        "flat",
        "dim",
        "black",
        "blue",
        "grey",
        "room",
        "white",
    ],
)
def test_spoilt_frames_are_flagged(spoil, flag: str, limits: QualityLimits) -> None:
    for seed in range(100, 105):
        assert flag in flagged(spoil(mucosa(seed)).astype(np.uint8), limits)


def test_the_gravest_reason_is_named_where_there_is_room_for_one() -> None:
    assert gravest(("blurred", "out_of_body")) == "out_of_body"
    assert gravest(("blurred", "too_dark")) == "too_dark"
    assert {gravest((flag,)) for flag in FLAGS} == set(FLAGS)


def test_one_bright_fold_does_not_wash_a_frame_out(limits: QualityLimits) -> None:
    image = mucosa(100)
    cv2.ellipse(image, (128, 60), (60, 16), 20, 0, 360, (248, 226, 170), cv2.FILLED)
    assert measure(seen(image))["glare"] > 0.03
    assert "washed_out" not in flagged(image, limits)


def test_only_valid_pixels_are_measured() -> None:
    """What is masked may hold anything: an inset must not make a frame sharp or grey."""
    image, other = mucosa(1), mucosa(1)
    other[160:, :90] = np.random.default_rng(0).integers(0, 256, (96, 90, 3))
    assert measure(seen(image, HYPERKVASIR)) == measure(seen(other, HYPERKVASIR))


def test_the_grey_fill_is_no_detail() -> None:
    image = cv2.GaussianBlur(mucosa(2), (0, 0), 4)
    valid = np.ones(VIEW_SIZE, bool)
    valid[::40] = False
    holes = View(np.where(valid[..., None], image, NEUTRAL).astype(np.uint8), valid, FIELD)
    plain = View(image, np.ones(VIEW_SIZE, bool), FIELD)
    assert measure(holes)["sharpness"] == pytest.approx(measure(plain)["sharpness"], rel=0.2)


def test_measures_of_a_flat_colour_are_known() -> None:
    image = np.full((*VIEW_SIZE, 3), (150, 90, 60), np.uint8)
    found = measure(View(image, np.ones(VIEW_SIZE, bool), FIELD))
    luma = round(0.299 * 150 + 0.587 * 90 + 0.114 * 60)
    assert tuple(found) == MEASURES
    assert found["sharpness"] == found["evenness"] == found["contrast"] == found["glare"] == 0
    assert found["brightness"] == luma
    assert found["haze"] == 60
    assert found["redness"] == pytest.approx(0.5)


def test_detail_of_a_wave_is_its_second_difference() -> None:
    """Across a wave of period p, u(x-1) - 2 u(x) + u(x+1) = -4 sin^2(pi / p) u(x)."""
    period, amplitude = 16, 60
    wave = 128 + amplitude * np.sin(2 * np.pi * np.arange(256) / period)
    image = np.repeat(np.repeat(np.rint(wave)[None, :, None], 256, axis=0), 3, axis=2)
    found = measure(View(image.astype(np.uint8), np.ones(VIEW_SIZE, bool), FIELD))
    assert found["contrast"] == pytest.approx(amplitude / np.sqrt(2), rel=0.02)
    assert found["evenness"] < 0.01  # nothing changes down the columns
    assert found["sharpness"] < 0.01


def test_sharpness_goes_with_the_root_of_contrast() -> None:
    """Detail that is faint fine and coarse is plain mucosa: half way to counting it as blur."""
    image = cv2.GaussianBlur(mucosa(4), (0, 0), 1.0)
    faint = np.rint(image.mean(axis=(0, 1)) + 0.5 * (image - image.mean(axis=(0, 1))))
    strong, weak = (measure(seen(each.astype(np.uint8)))["sharpness"] for each in (image, faint))
    assert weak / strong == pytest.approx(0.5**0.5, rel=0.12)


def test_sharpness_falls_with_blur() -> None:
    sharp = mucosa(3)
    found = [
        measure(seen(cv2.GaussianBlur(sharp, (0, 0), sigma)))["sharpness"]
        for sigma in (0.5, 1, 2, 4)
    ]
    assert found == sorted(found, reverse=True)


def test_a_view_with_nothing_valid_is_mostly_invalid_and_nothing_else(
    limits: QualityLimits,
) -> None:
    blind = View(np.full((*VIEW_SIZE, 3), NEUTRAL, np.uint8), np.zeros(VIEW_SIZE, bool), FIELD)
    found = measure(blind)
    assert all(np.isnan(value) for value in found.values())
    assert flags(found, limits, blind.valid_fraction) == ("mostly_invalid",)


def test_limits_are_quantiles_with_a_margin() -> None:
    normal = [dict.fromkeys(MEASURES, 100.0) | {"redness": 0.5} for _ in range(300)]
    limits = QualityLimits.fit(normal)
    assert limits.least_sharpness == limits.least_contrast == pytest.approx(100 / 1.15)
    assert limits.most_haze == pytest.approx(115)
    assert limits.least_redness == pytest.approx((0.5 + 1 / 3) / 2)


def test_one_odd_frame_does_not_set_the_limits() -> None:
    normal = [measure(seen(mucosa(seed))) for seed in range(20)] * 20
    odd = dict.fromkeys(MEASURES, 0.0) | {"haze": 255.0}
    with_it, without = QualityLimits.fit([*normal, odd]), QualityLimits.fit(normal)
    assert with_it.to_dict() == pytest.approx(without.to_dict(), rel=0.02)


def test_limits_survive_json(limits: QualityLimits) -> None:
    assert QualityLimits.from_dict(json.loads(json.dumps(limits.to_dict()))) == limits


def test_limits_left_out_flag_no_normal_frame() -> None:
    assert flagged(mucosa(0), QualityLimits.from_dict({})) == ()


def test_unknown_limits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown keys: least_sharpnes\. Known keys: "):
        QualityLimits.from_dict({"least_sharpnes": 1.0})


def test_limits_need_a_frame_that_could_be_measured() -> None:
    blind = dict.fromkeys(MEASURES, float("nan"))
    for measures in ([], [blind, blind]):
        with pytest.raises(ValueError, match="no frame to fit quality limits on"):
            QualityLimits.fit(measures)
