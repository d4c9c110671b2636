"""Views made on a device are those of the CPU path, however a stream is cut into batches.

Tolerance, for sums that another order rounds the other way: three levels in a pixel, which is what
one level of chroma is worth; 0.0001 on average; and 0.1 % of the pixels of a mask. Measured on the
CPU, over 176 views: one level, 0.0000006 on average, and no pixel of a mask.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice, pairwise

import cv2
import numpy as np
import pytest
import torch

import ccdstream.gpu.view
from ccdstream import sample
from ccdstream.frames import Colour, FieldOfView, Frame, View
from ccdstream.gpu.view import DeviceViewTracker, ViewQuality
from ccdstream.quality import MEASURES, QualityLimits, flags, measure
from ccdstream.view import HYPERKVASIR, NEUTRAL, NONE, Profile, ViewTracker
from tests.devices import DEVICES, no_hidden_wait, on_device
from tests.scopes import (
    COLOURS,
    SMALL,
    burned_in,
    colour_name,
    frame_of,
    scene,
    stream,
    tissue,
    wandering,
)

LARGEST_DIFFERENCE = 3
MEAN_DIFFERENCE = 0.0001
MASK_DIFFERENCE = 0.001
LIMITS = QualityLimits()


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@dataclass
class Seen:
    """A view that came from a device, on the host."""

    view: View
    quality: ViewQuality


def seen_on(
    device: torch.device,
    frames: Iterable[Frame],
    profile: Profile = NONE,
    limits: QualityLimits = LIMITS,
    batches: Sequence[int] = (8,),
) -> list[Seen]:
    """Every frame's view by one tracker; batches of these sizes, in turn."""
    tracker = DeviceViewTracker(profile, limits, device)
    left, turn, seen = iter(frames), 0, []
    while batch := list(islice(left, batches[turn % len(batches)])):
        turn += 1
        made = tracker.update([on_device(frame, device) for frame in batch])
        assert made.frames.device.type == made.valid.device.type == device.type
        for image, valid, field, quality in zip(
            made.frames.permute(0, 2, 3, 1).cpu().numpy(),
            made.valid.cpu().numpy(),
            made.fields,
            made.quality(),
            strict=True,
        ):
            seen.append(Seen(View(image, valid, field), quality))
    return seen


def seen_on_cpu(frames: Iterable[Frame], profile: Profile = NONE) -> list[View]:
    tracker = ViewTracker(profile)
    return [tracker.update(frame) for frame in frames]


def assert_same_field(one: FieldOfView, other: FieldOfView) -> None:
    assert (one.x, one.y, one.width, one.height) == (other.x, other.y, other.width, other.height)
    np.testing.assert_array_equal(one.outline, other.outline)


def assert_alike(
    seen: Sequence[Seen], expected: Sequence[View], limits: QualityLimits = LIMITS
) -> None:
    differences = []
    for one, view in zip(seen, expected, strict=True):
        assert_same_field(one.view.field, view.field)
        assert one.view.image.dtype == np.uint8 and one.view.valid.dtype == bool
        assert (one.view.image[~one.view.valid] == NEUTRAL).all()
        same = one.view.valid == view.valid
        assert (~same).mean() <= MASK_DIFFERENCE
        differences.append(np.abs(one.view.image.astype(int) - view.image)[same])
        assert one.quality.valid_fraction == pytest.approx(view.valid_fraction, abs=MASK_DIFFERENCE)
        measures = measure(view)
        assert one.quality.flags == flags(measures, limits, view.valid_fraction)
        assert tuple(one.quality.measures) == MEASURES
        assert one.quality.measures == pytest.approx(measures, rel=1e-3, abs=1e-3, nan_ok=True)
    together = np.concatenate(differences)
    assert together.max() <= LARGEST_DIFFERENCE
    assert together.mean() <= MEAN_DIFFERENCE


def lively(size: tuple[int, int], shape: str = "octagon", seed: int = 0) -> np.ndarray:
    """uint8 [H, W, 3]: a scope's picture with grain, reflections, an inset and text."""
    random = np.random.default_rng(seed)
    height, width = size
    inside = tissue(size, seed=seed, smallest_px=max(4, height // 24)).astype(np.float32)
    inside += random.normal(0, 8, (*size, 1))
    inside = np.clip(inside, 0, 255).astype(np.uint8)
    for _ in range(12):
        x, y = (int(random.uniform(0.2, 0.8) * side) for side in (width, height))
        radius = int(random.integers(1, max(2, height // 40)))
        cv2.circle(inside, (x, y), radius, (255, 252, 248), cv2.FILLED)
    box = (round(0.1 * width), round(0.04 * height), round(0.8 * width), round(0.92 * height))
    image = scene(shape, size=size, box=box, inside=inside)
    image[round(0.7 * height) :, : round(0.3 * width)] = 20
    cv2.putText(image, "ID 4711", (2, height // 3), cv2.FONT_HERSHEY_PLAIN, 0.9, (235,) * 3, 1)
    return image


# -- single frames --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ((576, 720), "octagon"),
        ((1080, 1920), "disc"),
        ((480, 560), "octagon"),
        ((288, 384), "octagon"),
        ((531, 633), "disc"),
        ((131, 175), "rectangle"),
        ((48, 64), "rectangle"),
        ((60, 1201), "rectangle"),
        ((1540, 1537), "disc"),
    ],
    ids=str,
)
def test_a_view_is_that_of_the_cpu_at_any_size(
    size: tuple[int, int], shape: str, device: torch.device
) -> None:
    frames = [frame_of(lively(size, shape))]
    expected = seen_on_cpu(frames, HYPERKVASIR)
    assert expected[0].field.width < size[1], "the border should have been found"
    assert_alike(seen_on(device, frames, HYPERKVASIR), expected)


@pytest.mark.parametrize("size", [(256, 256), (512, 512), (768, 512), (1024, 1536), (255, 257)])
def test_a_frame_without_a_border_is_squashed_as_on_the_cpu(
    size: tuple[int, int], device: torch.device
) -> None:
    """Where both axes shrink by whole numbers OpenCV takes other paths, and rounds otherwise."""
    random = np.random.default_rng(0)
    half = ((size[0] + 1) // 2, (size[1] + 1) // 2)
    planes = [random.integers(60, 256, shape, dtype=np.uint8) for shape in (size, half, half)]
    frames = [Frame(*planes, pts=0, time_base=Fraction(1, 25), colour=COLOURS[0])]
    expected = seen_on_cpu(frames)
    assert (expected[0].field.height, expected[0].field.width) == size
    assert_alike(seen_on(device, frames), expected)


@pytest.mark.parametrize("colour", COLOURS, ids=colour_name)
def test_every_matrix_and_range_gives_the_colours_of_the_cpu(
    colour: Colour, device: torch.device
) -> None:
    frames = [frame_of(lively((288, 384)), colour)]
    assert_alike(seen_on(device, frames), seen_on_cpu(frames))


def test_reflections_are_masked_as_on_the_cpu(device: torch.device) -> None:
    random = np.random.default_rng(0)
    image = tissue((512, 512), smallest_px=8)
    speckled = np.where(random.random((512, 512, 1)) < 0.01, 255, image).astype(np.uint8)
    for radius in range(1, 9):
        cv2.circle(speckled, (40 + 50 * radius, 250), radius, (255, 255, 250), cv2.FILLED)
    frames = [frame_of(speckled)]
    expected = seen_on_cpu(frames)
    assert 0.1 < 1 - expected[0].valid_fraction < 0.9
    assert_alike(seen_on(device, frames), expected)


# -- streams --------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", [NONE, HYPERKVASIR], ids=lambda profile: profile.name)
def test_overlay_is_learned_as_on_the_cpu(profile: Profile, device: torch.device) -> None:
    frames = list(stream(wandering(46, decorate=burned_in)))
    expected = seen_on_cpu(frames, profile)
    learned = [not np.array_equal(one.valid, other.valid) for one, other in pairwise(expected)]
    assert sum(learned) >= 2, "the stream should have told something"
    assert_alike(seen_on(device, frames, profile, batches=(7,)), expected)


def test_a_recording_with_all_that_happens_has_the_views_and_flags_of_the_cpu(
    device: torch.device,
) -> None:
    options = sample.SampleOptions(seconds=7, size=(288, 360), rate=Fraction(6))
    frames = [frame for frame, _ in sample.frames(options)]
    normal = sample.SampleOptions(seconds=3, size=(288, 360), rate=Fraction(6), lesions=False)
    limits = QualityLimits.fit(
        [measure(view) for view in seen_on_cpu(frame for frame, _ in sample.frames(normal))]
    )
    seen = seen_on(device, frames, HYPERKVASIR, limits)
    assert_alike(seen, seen_on_cpu(frames, HYPERKVASIR), limits)
    assert {"blurred", "washed_out", "out_of_body"} <= {
        flag for one in seen for flag in one.quality.flags
    }


def changing() -> list[Frame]:
    """A dark start, a jump back in time, another colour, another size, and back at 40 a second."""
    images = list(wandering(18))
    for image in images[:6]:
        image[...] = 0
    images[6][:, 180:] //= 40
    first = list(stream(images, start_s=5.0))
    again = list(stream(wandering(6, seed=2)))
    white = frame_of(np.full((*SMALL, 3), 255, np.uint8), pts=6, rate=10)
    full = [frame_of(image, COLOURS[3], pts=7 + n, rate=10) for n, image in enumerate(images[6:10])]
    other = [frame_of(lively((131, 175), seed=n), pts=20 + n, rate=10) for n in range(3)]
    quick = enumerate(stream(wandering(12, seed=3)))
    back = [replace(frame, pts=120 + n, time_base=Fraction(1, 40)) for n, frame in quick]
    return [*first, *again, white, *full, *other, *back]


def test_a_stream_that_changes_is_followed_as_on_the_cpu(device: torch.device) -> None:
    frames = changing()
    expected = seen_on_cpu(frames, HYPERKVASIR)
    seen = seen_on(device, frames, HYPERKVASIR, batches=(64,))
    assert_alike(seen, expected)
    assert any(np.isnan(one.quality.measures["sharpness"]) for one in seen)


def test_a_view_does_not_depend_on_its_batch(device: torch.device) -> None:
    frames = changing()
    alone = seen_on(device, frames, batches=(1,))
    for one, other in zip(seen_on(device, frames, batches=(4, 1, 9)), alone, strict=True):
        np.testing.assert_array_equal(one.view.image, other.view.image)
        np.testing.assert_array_equal(one.view.valid, other.view.valid)
        assert one.quality.flags == other.quality.flags
        assert one.quality.measures == pytest.approx(
            other.quality.measures, rel=1e-12, abs=1e-12, nan_ok=True
        )


def test_views_handed_out_and_frames_taken_are_left_as_they_are(device: torch.device) -> None:
    frames = list(stream(wandering(24, decorate=burned_in)))
    given = [on_device(frame, device) for frame in frames]
    tracker = DeviceViewTracker(NONE, LIMITS, device)
    first = tracker.update(given[:8])
    kept = first.frames.clone(), first.valid.clone(), first.quality()
    for start in (8, 16):
        tracker.update(given[start : start + 8])
    assert torch.equal(first.frames, kept[0]) and torch.equal(first.valid, kept[1])
    assert first.quality() == kept[2]
    for frame, taken in zip(frames, given, strict=True):
        np.testing.assert_array_equal(taken.on_host().y, frame.y)


def test_no_batch_is_no_batch(device: torch.device) -> None:
    with pytest.raises(ValueError, match="a batch must hold at least one frame, got 0"):
        DeviceViewTracker(NONE, LIMITS, device).update([])


# -- copies ---------------------------------------------------------------------------------------


def test_copies_go_by_the_batch_and_not_by_the_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """Luma and green of the frames that are looked at, each fourth of 32 a second; sums of all."""
    device = torch.device("cpu")
    copies: list[tuple[int, ...]] = []

    class Counted(ccdstream.gpu.view.ToHost):
        def __init__(self, tensor: torch.Tensor) -> None:
            super().__init__(tensor)
            copies.append(tuple(tensor.shape))

    def counted(array: np.ndarray, to: torch.device) -> torch.Tensor:
        copies.append(array.shape)
        return torch.from_numpy(array).to(to)

    frames = [
        on_device(replace(frame, time_base=Fraction(1, 32)), device)
        for frame in stream(wandering(25))
    ]
    tracker = DeviceViewTracker(NONE, LIMITS, device)
    tracker.update(frames[:1])  # finds the field, and sends its mask
    monkeypatch.setattr(ccdstream.gpu.view, "ToHost", Counted)
    monkeypatch.setattr(ccdstream.gpu.view, "to_device", counted)
    tracker.update(frames[1:5])
    assert copies == [(1, 144, 180), (1, 128, 128), (4, 522)]
    copies.clear()
    tracker.update(frames[5:25])
    assert copies == [(5, 144, 180), (5, 128, 128), (20, 522)]


@pytest.mark.cuda
def test_nothing_waits_for_the_gpu_unseen() -> None:
    device = torch.device("cuda")
    frames = [on_device(frame, device) for frame in stream(wandering(48, decorate=burned_in))]
    tracker = DeviceViewTracker(HYPERKVASIR, LIMITS, device)
    with no_hidden_wait():
        for start in range(0, 48, 8):
            tracker.update(frames[start : start + 8]).quality()
