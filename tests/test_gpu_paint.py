"""Marks blended on a device are bit for bit those of the CPU path."""

from dataclasses import replace
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch

from ccdstream.frames import Colour, DeviceFrame, FieldOfView, Frame, Fused
from ccdstream.gpu.paint import painted
from ccdstream.history import STATES
from ccdstream.paint import Canvas, Dots, Layer, Levels, Mark, dots_of, whole_numbers
from ccdstream.render import Overlay
from tests.devices import DEVICES, no_hidden_wait, on_device

COLOUR = Colour("bt709", full_range=False)
SIZES = [(576, 720), (288, 384), (48, 64), (35, 33), (33, 35), (3, 5), (1, 1)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def frame_of(size: tuple[int, int], seed: int = 0) -> Frame:
    """Noise, so that any pixel that differs is seen."""
    random = np.random.default_rng(seed)
    half = ((size[0] + 1) // 2, (size[1] + 1) // 2)
    planes = [random.integers(0, 256, shape, dtype=np.uint8) for shape in (size, half, half)]
    return Frame(*planes, pts=2**53 + 1, time_base=Fraction(1, 25), colour=COLOUR)


def assert_same_picture(drawn: DeviceFrame, expected: Frame) -> None:
    got = drawn.on_host()
    for name in ("y", "u", "v"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), err_msg=name)
    assert (got.pts, got.time_base, got.colour) == (
        expected.pts,
        expected.time_base,
        expected.colour,
    )


def blended(frame: Frame, layers: list[Mark]) -> Frame:
    """By the CPU path."""
    y, u, v = frame.y.copy(), frame.u.copy(), frame.v.copy()
    for layer in layers:
        layer.blend(y, u, v)
    return replace(frame, y=y, u=u, v=v)


def some_layer(size: tuple[int, int], box: tuple[int, int, int, int]) -> Layer:
    canvas = Canvas(size, box)
    opacity = np.random.default_rng(1).random(box[2:]).astype(np.float32)
    canvas.paint(opacity, box[0], box[1], np.float32([200, 60, 255.5]))
    return canvas.layer()


def some_dots(size: tuple[int, int]) -> Dots:
    mask = np.zeros(size, np.uint8)
    mask[np.random.default_rng(2).random(size) < 0.2] = 200
    return dots_of(mask, 0, 0, size, np.float32([180, 90, 200]), 0.6)


def some_levels(top: int, left: int, size: tuple[int, int]) -> Levels:
    """Of an even corner to the end of the frame."""
    random = np.random.default_rng(3)
    rows, columns = size[0] - top, size[1] - left
    luma = random.integers(0, 256, (rows, columns), dtype=np.uint8)
    chroma = random.integers(0, 256, ((rows + 1) // 2, (columns + 1) // 2), dtype=np.uint8)
    opacity = np.linspace(0, 1, 256)
    luma_ramp = whole_numbers(opacity, [opacity * 210])
    return Levels(
        top, left, luma, chroma, luma_ramp, whole_numbers(opacity, [opacity * 30, opacity * 240])
    )


def patchy_heat(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    heat = np.where(random.random((64, 64)) < 0.03, 0.995, 0.4).astype(np.float32)
    heat[20:40, 10:34] = random.uniform(0.97, 1.0, (20, 24))
    heat[random.random((64, 64)) < 0.05] = np.nan
    return heat


def field_in(size: tuple[int, int]) -> FieldOfView:
    """A field with odd edges, a little inside the frame."""
    height, width = size
    x, y = min(1, width // 4), min(1, height // 4)
    right, foot = width - x - 1, height - y - 1
    corners = np.array([(x, y), (right, y), (right, foot), (x, foot)], np.int32)
    return FieldOfView(x, y, width - 2 * x, height - 2 * y, corners)


@pytest.mark.parametrize("size", [(24, 40), (23, 39), (5, 7)], ids=str)
def test_each_kind_of_layer_is_blended_as_on_the_cpu(
    size: tuple[int, int], device: torch.device
) -> None:
    frame = frame_of(size)
    kinds: list[Mark] = [
        some_layer(size, (2, 2, 9, 11)),
        some_layer(size, (-4, -3, 10, 8)),
        some_layer(size, (60, 60, 4, 4)),  # outside
        some_levels(2, 4, size),
        some_dots(size),
    ]
    for layers in ([], *([kind] for kind in kinds), kinds, kinds[::-1]):
        drawn = painted(on_device(frame, device), layers)
        assert_same_picture(drawn, blended(frame, layers))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_an_overlay_is_drawn_as_on_the_cpu(size: tuple[int, int], device: torch.device) -> None:
    there, here = (Overlay(size, COLOUR, enter=0.97, duration_s=10.0) for _ in range(2))
    field, changed = field_in(size), False
    for step, state in enumerate(STATES):
        quality = ("blurred",) if state == "UNCLEAR" else ()
        fused = Fused(1.0, 0.9, 0.3 * step, partial(patchy_heat, step), quality, 0.9)
        frame = frame_of(size, seed=step)
        drawn = painted(on_device(frame, device), there.layers(field, fused, state, 2.0 * step))
        assert_same_picture(drawn, here.draw(frame, field, fused, state, 2.0 * step))
        changed |= bool((drawn.on_host().y != frame.y).any())
        np.testing.assert_array_equal(there.marks().luma, here.marks().luma)
    assert changed


@pytest.mark.parametrize("value", [0, 255])
def test_the_last_levels_do_not_wrap_round(value: int, device: torch.device) -> None:
    """256 opacity colour and its rounding need all 16 bits."""
    size = (8, 8)
    frame = frame_of(size)
    frame = replace(frame, y=np.full_like(frame.y, value), u=np.full_like(frame.u, value))
    for opacity in (0.002, 0.3, 0.999, 1.0):
        canvas = Canvas(size, (0, 0, 8, 8))
        canvas.fill((0, 0, 8, 8), np.float32([255, 255.5, 255]), opacity)
        drawn = painted(on_device(frame, device), [canvas.layer()])
        assert_same_picture(drawn, blended(frame, [canvas.layer()]))
    assert (drawn.on_host().y == 255).all()


def test_the_given_frame_is_left_as_it_is(device: torch.device) -> None:
    frame = frame_of((48, 64))
    given = on_device(frame, device)
    drawn = painted(given, [some_layer((48, 64), (4, 4, 20, 20)), some_dots((48, 64))])
    assert_same_picture(given, frame)
    assert (drawn.y != given.y).any() and drawn.y.device == given.y.device


@pytest.mark.cuda
def test_blending_does_not_wait_for_the_gpu() -> None:
    size = (48, 64)
    frame = on_device(frame_of(size), torch.device("cuda"))
    layers: list[Mark] = [
        some_layer(size, (2, 2, 9, 11)),
        some_levels(2, 4, size),
        some_dots(size),
    ]
    with no_hidden_wait():
        painted(frame, layers)
