"""The synthetic procedure: repeatable, on its timeline, and honest about where its lesions are."""

import json
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

import cv2
import numpy as np
import pytest

from ccdstream.frames import Colour, Frame
from ccdstream.sample import (
    AUDIO_RATE_HZ,
    LOOKS,
    NOTICE,
    Rle,
    SampleOptions,
    SampleTruth,
    audio,
    audio_blocks,
    decode_mask,
    encode_mask,
    frames,
    lesion_still,
    scenes,
    still,
    truth_document,
    truths,
)

# One short video serves most tests: every kind of scene, small and slow.
SHORT = SampleOptions(seconds=6, seed=3, size=(144, 180), rate=Fraction(10))


@pytest.fixture(scope="module")
def short() -> list[tuple[Frame, SampleTruth]]:
    return list(frames(SHORT))


@pytest.fixture(scope="module")
def without_lesions() -> list[tuple[Frame, SampleTruth]]:
    options = SampleOptions(
        seconds=SHORT.seconds, seed=SHORT.seed, size=SHORT.size, rate=SHORT.rate, lesions=False
    )
    return list(frames(options))


def seconds_of(options: SampleOptions, kind: str) -> list[float]:
    return [
        float((scene.end_frame - scene.start_frame) / options.rate)
        for scene in scenes(options)
        if scene.kind == kind
    ]


def planes(frame: Frame) -> bytes:
    return frame.y.tobytes() + frame.u.tobytes() + frame.v.tobytes()


# ------------------------------------------------------------------------------------ repeatable


def test_the_same_seed_gives_the_same_bytes(short: list[tuple[Frame, SampleTruth]]) -> None:
    again = frames(SHORT)
    for _, (first, first_truth), (second, second_truth) in zip(
        range(30), short, again, strict=False
    ):
        assert planes(first) == planes(second)
        assert first_truth == second_truth


def test_another_seed_gives_another_colon(short: list[tuple[Frame, SampleTruth]]) -> None:
    other, _ = next(frames(SampleOptions(seconds=6, seed=4, size=(144, 180), rate=Fraction(10))))
    difference = np.abs(other.y.astype(int) - short[0][0].y.astype(int))
    assert difference.mean() > 5


def test_stills_repeat_by_seed_and_differ_between_seeds() -> None:
    size = (96, 120)
    first = still(4, size=size)
    np.testing.assert_array_equal(first, still(4, size=size))
    for seed in (5, 6, 7, 8):  # 5 to 7 are the same colon, elsewhere
        assert np.abs(still(seed, size=size).astype(int) - first).mean() > 5


# ---------------------------------------------------------------------------- frames and timeline


def test_frames_come_in_order_and_as_many_as_promised(
    short: list[tuple[Frame, SampleTruth]],
) -> None:
    assert len(short) == SHORT.frame_count == 60
    assert [frame.pts for frame, _ in short] == list(range(60))
    for frame, truth in short:
        assert frame.size == SHORT.size
        assert frame.time_base == Fraction(1, 10)
        assert frame.colour == Colour("bt601", full_range=False)
        assert (truth.index, truth.pts, truth.seconds) == (frame.pts, frame.pts, frame.seconds)


def test_a_fractional_rate_keeps_exact_times() -> None:
    options = SampleOptions(seconds=1, size=(96, 120), rate=Fraction(30000, 1001))
    made = list(frames(options))
    assert len(made) == options.frame_count == 30
    assert made[-1][0].time_base == Fraction(1001, 30000)
    assert made[-1][1].seconds == float(29 * Fraction(1001, 30000))


def test_frames_are_made_one_by_one() -> None:
    hours = SampleOptions(seconds=3 * 3600, size=(96, 120), rate=Fraction(1))
    _, truth = next(frames(hours))
    assert truth.index == 0


@pytest.mark.parametrize("seconds", [1, 1.5, 3.9, 4, 7, 13.9, 14, 20, 29, 31, 65.3, 600])
def test_scenes_cover_the_video_without_gaps(seconds: float) -> None:
    options = SampleOptions(seconds=seconds)
    timeline = scenes(options)
    assert timeline[0].start_frame == 0
    assert timeline[-1].end_frame == options.frame_count
    assert all(left.end_frame == right.start_frame for left, right in pairwise(timeline))
    assert all(scene.end_frame > scene.start_frame for scene in timeline)
    assert all((scene.look is not None) == (scene.kind == "lesion") for scene in timeline)


def test_the_default_video_shows_what_the_readme_says() -> None:
    options = SampleOptions()
    timeline = scenes(options)
    assert options.size == (576, 720)
    assert options.rate == 25
    assert timeline[0].kind == "normal"
    assert timeline[0].end_frame >= 6 * 25
    assert {scene.look for scene in timeline if scene.kind == "lesion"} == set(LOOKS)
    assert all(2 <= length <= 3 for length in seconds_of(options, "lesion"))
    for kind in ("blur", "wash", "out_of_body"):
        assert seconds_of(options, kind) == pytest.approx([1], abs=0.05)
    assert timeline[-1].kind == "out_of_body"


@pytest.mark.parametrize("seconds", [4, 5, 10, 14, 40])
def test_from_four_seconds_on_there_is_a_lesion(seconds: float) -> None:
    lengths = seconds_of(SampleOptions(seconds=seconds), "lesion")
    assert lengths
    assert min(lengths) >= 1


def test_a_shorter_video_is_normal_throughout() -> None:
    assert [scene.kind for scene in scenes(SampleOptions(seconds=2))] == ["normal"]


def test_a_long_video_leaves_the_body_once_and_at_the_end() -> None:
    kinds = [scene.kind for scene in scenes(SampleOptions(seconds=300))]
    assert kinds.count("out_of_body") == 1
    assert kinds[-1] == "out_of_body"
    assert kinds.count("lesion") == 45


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seconds": 0.5}, "seconds must be at least 1"),
        ({"seconds": float("nan")}, "seconds must be at least 1"),
        ({"seed": -1}, "seed must not be negative"),
        ({"size": (40, 720)}, "size must be"),
        ({"size": (576, 99999)}, "size must be"),
        ({"rate": Fraction(0)}, "rate must be"),
        ({"rate": Fraction(1000)}, "rate must be"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SampleOptions(**change)  # type: ignore[arg-type]


def test_an_unknown_look_is_refused() -> None:
    with pytest.raises(ValueError, match="look must be one of"):
        lesion_still(0, "serrated")  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------- the pictures


def test_the_border_is_black_and_the_octagon_is_not(
    short: list[tuple[Frame, SampleTruth]],
) -> None:
    for frame, _ in short:
        assert (frame.y[0] == 16).all()
        assert (frame.y[-1] == 16).all()
        assert (frame.y[:, :8] == 16).all()
        assert (frame.y[:, -8:] == 16).all()
        assert (frame.y[8:16, 14:20] == 16).all()  # a cut corner
        assert frame.y[40:100, 40:140].mean() > 40
        assert frame.y[75, 14] > 30  # the octagon reaches further than its corners


def test_odd_sizes_work() -> None:
    options = SampleOptions(seconds=1, size=(97, 121), rate=Fraction(1))
    frame, _ = next(frames(options))
    assert frame.size == (97, 121)
    assert frame.u.shape == (49, 61)


def test_planes_mean_the_colours_that_stills_have() -> None:
    """The frame's planes turned back to RGB by the definition of BT.601 are reddish mucosa."""
    frame, _ = next(frames(SampleOptions(seconds=1, size=(96, 120), rate=Fraction(1))))
    inside = np.s_[20:76, 30:90]
    y = (frame.y.astype(float)[inside] - 16) * 255 / 219
    u = (np.kron(frame.u, np.ones((2, 2)))[inside] - 128) * 255 / 224
    v = (np.kron(frame.v, np.ones((2, 2)))[inside] - 128) * 255 / 224
    red, green, blue = y + 1.402 * v, y - 0.344 * u - 0.714 * v, y + 1.772 * u
    assert red.mean() > 1.4 * green.mean() > 1.4 * blue.mean()


def test_blur_takes_the_detail_away(short: list[tuple[Frame, SampleTruth]]) -> None:
    def detail(kind: str) -> float:
        values = [
            cv2.Laplacian(frame.y[40:100, 40:140].astype(np.float32), cv2.CV_32F).std()
            for frame, truth in short
            if truth.kind == kind
        ]
        return float(np.median(values))

    assert detail("blur") < 0.6 * detail("normal")


def test_out_of_body_is_not_red(short: list[tuple[Frame, SampleTruth]]) -> None:
    def redness(kind: str) -> list[float]:
        return [float(f.v[20:50, 20:70].mean()) - 128 for f, t in short if t.kind == kind]

    assert min(redness("normal")) > 10
    assert redness("out_of_body")[-1] < 5


# --------------------------------------------------------------------------------------- lesions


def test_lesions_are_seen_in_lesion_scenes_only(
    short: list[tuple[Frame, SampleTruth]],
) -> None:
    for _, truth in short:
        if truth.boxes:
            assert truth.kind == "lesion"
    shown = [bool(truth.boxes) for _, truth in short if truth.kind == "lesion"]
    assert np.mean(shown) > 0.6


def test_kinds_match_the_timeline(short: list[tuple[Frame, SampleTruth]]) -> None:
    for scene in scenes(SHORT):
        for _, truth in short[scene.start_frame : scene.end_frame]:
            assert (truth.kind, truth.look) == (scene.kind, scene.look)


def test_boxes_enclose_masks_tightly(short: list[tuple[Frame, SampleTruth]]) -> None:
    seen = [truth for _, truth in short if truth.mask is not None]
    assert seen
    for truth in seen:
        assert truth.mask is not None
        mask = decode_mask(truth.mask)
        assert mask.shape == SHORT.size
        assert truth.boxes == (cv2.boundingRect(mask.astype(np.uint8)),)


def test_a_lesion_changes_its_own_pixels_most(
    short: list[tuple[Frame, SampleTruth]], without_lesions: list[tuple[Frame, SampleTruth]]
) -> None:
    under = []
    for (frame, truth), (healthy, healthy_truth) in zip(short, without_lesions, strict=True):
        if truth.mask is None:
            if truth.kind != "lesion":
                assert planes(frame) == planes(healthy)
            continue
        assert healthy_truth.mask is None
        assert healthy_truth.kind == "normal"
        mask = decode_mask(truth.mask)
        if mask.sum() < 200:
            continue
        change = np.abs(frame.y.astype(float) - healthy.y)
        for ours, theirs in ((frame.u, healthy.u), (frame.v, healthy.v)):
            change += np.kron(np.abs(ours.astype(float) - theirs), np.ones((2, 2)))
        assert change[mask].mean() > 2 * change[~mask & (frame.y > 16)].mean()
        shifts = ((0, 0), (-5, 0), (5, 0), (0, -5), (0, 5))
        under.append([change[np.roll(mask, shift, (0, 1))].sum() for shift in shifts])
    assert len(under) >= 5
    # The mask lies where the lesion does: moved any way, it covers less of the change.
    assert np.argmax(np.mean(under, axis=0)) == 0


@pytest.mark.parametrize("look", LOOKS)
def test_lesion_stills_show_their_lesion(look: str) -> None:
    size = (144, 180)
    for seed in (16, 17, 18, 19):
        image, mask = lesion_still(seed, look, size=size)  # type: ignore[arg-type]
        assert image.shape == (*size, 3)
        assert image.dtype == np.uint8
        assert mask.dtype == bool
        assert 0.005 < mask.mean() < 0.4
        assert image[mask].mean() > 40


def test_lesions_have_different_colours() -> None:
    """Redness inside the mask over redness around it: two are redder, the flat one is paler."""
    ratios = {}
    for look in LOOKS:
        values = []
        for seed in (16, 17, 18, 19):
            image, mask = lesion_still(seed, look, size=(144, 180))
            around = cv2.dilate(mask.astype(np.uint8), np.ones((25, 25), np.uint8)) > 0
            around &= ~mask & (image.sum(-1) > 60)
            inside, outside = image[mask].mean(0), image[around].mean(0)
            values.append((inside[0] / inside[1]) / (outside[0] / outside[1]))
        ratios[look] = np.mean(values)
    assert ratios["sessile"] > 1.05
    assert ratios["pedunculated"] > 1.05
    assert ratios["flat"] < 0.98


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.zeros((3, 4), bool),
        lambda: np.ones((3, 4), bool),
        lambda: np.eye(5, dtype=bool),
        lambda: np.random.default_rng(0).random((7, 5)) > 0.5,
    ],
    ids=["empty", "full", "diagonal", "random"],
)
def test_masks_survive_run_length_coding(make: Callable[[], np.ndarray]) -> None:
    mask = make()
    np.testing.assert_array_equal(decode_mask(encode_mask(mask)), mask)


def test_run_lengths_go_down_the_columns_and_start_with_zeros() -> None:
    mask = np.array([[1, 0, 0], [1, 1, 0]], bool)
    assert encode_mask(mask) == Rle((2, 3), (0, 2, 1, 1, 2))


# ------------------------------------------------------------------------------- truth and sound


def test_truth_without_frames_equals_truth_with_them(
    short: list[tuple[Frame, SampleTruth]],
) -> None:
    assert list(truths(SHORT)) == [truth for _, truth in short]


def test_the_truth_document_survives_json_and_says_that_it_is_synthetic(
    short: list[tuple[Frame, SampleTruth]],
) -> None:
    document = truth_document(SHORT, (truth for _, truth in short))
    assert json.loads(json.dumps(document)) == document
    assert document["notice"] == NOTICE
    assert "not evidence" in NOTICE
    assert document["frame_count"] == 60
    assert document["scenes"][-1]["end_s"] == 6.0
    seen = [truth for _, truth in short if truth.boxes]
    assert [entry["frame"] for entry in document["lesions"]] == [truth.index for truth in seen]
    assert document["lesions"][3]["boxes"] == [list(seen[3].boxes[0])]


def test_the_truth_document_needs_no_frames() -> None:
    assert truth_document(SHORT) == truth_document(SHORT, truths(SHORT))


def test_a_video_without_lesions_says_so(
    without_lesions: list[tuple[Frame, SampleTruth]],
) -> None:
    assert not any(truth.boxes for _, truth in without_lesions)
    assert "lesion" not in {truth.kind for _, truth in without_lesions}


def test_sound_lasts_as_long_as_the_picture_and_is_soft() -> None:
    options = SampleOptions(seconds=5.5, seed=1)
    sound = audio(options)
    assert sound.dtype == np.int16
    assert sound.shape == (round(5.5 * AUDIO_RATE_HZ),)
    loudness = np.sqrt((sound.astype(float) ** 2).mean()) / 32768
    assert 0.005 < loudness < 0.1
    assert np.abs(sound.astype(int)).max() < 32767
    np.testing.assert_array_equal(sound, np.concatenate(list(audio_blocks(options))))


def test_sound_hisses_while_the_lens_is_washed() -> None:
    options = SampleOptions(seconds=10, seed=1)
    sound = np.diff(audio(options).astype(float))  # what is left of the hum is little
    wash = next(scene for scene in scenes(options) if scene.kind == "wash")
    middle = round(float((wash.start_frame + wash.end_frame) * options.time_base / 2) * 48_000)
    during = np.std(sound[middle - 4800 : middle + 4800])
    assert during > 3 * np.std(sound[48_000 : 2 * 48_000])
