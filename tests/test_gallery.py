"""What the report page shows of a recording, collected while its frames pass."""

from dataclasses import dataclass
from fractions import Fraction

import cv2
import numpy as np
import pytest

from ccdstream.frames import Colour, DeviceFrame, FieldOfView, Frame, Fused
from ccdstream.quality import FLAGS, QualityLimits, flags
from ccdstream.render import with_heat
from ccdstream.report import gallery as module
from ccdstream.report.gallery import MOST_PEAKS, MOST_TILES, Gallery

SIZE = (48, 64)
FIELD = FieldOfView(0, 0, 64, 48, np.array([[0, 0], [63, 0], [63, 47], [0, 47]], np.int32))


@dataclass(frozen=True)
class Ended:
    number: int
    peak_pts: int
    peak_score: float


def frame(pts: int, luma: int = 90) -> Frame:
    grey = np.full((24, 32), 128, np.uint8)
    plane = np.full(SIZE, luma, np.uint8)
    return Frame(plane, grey, grey, pts, Fraction(1, 10), Colour("bt601", full_range=True))


def fused(score: float, *quality: str, heat: float = 0.0) -> Fused:
    return Fused(0.0, score, score, lambda: np.full((8, 8), heat, np.float32), quality, 1.0)


def new(start_s: float = 0.0) -> Gallery:
    return Gallery(start_s=start_s, heated=with_heat)


def luma_of(jpeg: bytes) -> float:
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
    return float(picture.mean())


def saturation_of(jpeg: bytes) -> float:
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).astype(int)
    return float((picture.max(axis=2) - picture.min(axis=2)).mean())


def test_a_tile_has_the_first_picture_of_its_stretch_and_the_gravest_of_all_its_frames() -> None:
    found = new(start_s=2.0)
    states = ("NORMAL", "ALERT", "WATCH", "NORMAL", "NORMAL", "NORMAL")
    for k, (score, state) in enumerate(zip((0.2, 0.99, 0.5, 0.1, 0.1, 0.3), states, strict=True)):
        found.add(frame(k, 40 + 20 * k), 2.0 + k / 10, fused(score), state)
    first, second = found.strip
    assert (first.seconds, second.seconds) == (2.0, 2.5)
    assert (first.score, first.state) == (0.99, "ALERT")
    assert (second.score, second.state) == (0.3, "NORMAL")
    assert luma_of(first.jpeg) == pytest.approx(40, abs=2)
    assert luma_of(second.jpeg) == pytest.approx(140, abs=2)


def test_it_knows_the_first_frame_that_tells_something() -> None:
    found = new()
    found.add(frame(0), 0.0, fused(0.9, "blurred"), "UNCLEAR")
    assert found.informed_from_s is None
    found.add(frame(1), 0.1, fused(0.4), "NORMAL")
    found.add(frame(2), 0.2, fused(0.3), "NORMAL")
    assert found.informed_from_s == 0.1


def test_a_tile_rather_shows_a_frame_that_tells_something() -> None:
    found = new()
    found.add(frame(0, 40), 0.0, fused(0.9, "blurred"), "UNCLEAR")
    (tile,) = found.strip
    assert (tile.informative, tile.score, tile.state) == (False, 0.0, "UNCLEAR")
    found.add(frame(1, 120), 0.1, fused(0.4), "NORMAL")
    found.add(frame(2, 200), 0.2, fused(0.3), "NORMAL")
    (tile,) = found.strip
    assert (tile.informative, tile.score, tile.state, tile.seconds) == (True, 0.4, "NORMAL", 0.1)
    assert luma_of(tile.jpeg) == pytest.approx(120, abs=2)


def test_tiles_stay_few_and_cover_all_of_a_recording_of_two_hours() -> None:
    found = new()
    for second in range(7200):
        state = "ALERT" if second == 5000 else "NORMAL"
        found.add(frame(second), float(second), fused(0.99 if second == 5000 else 0.1), state)
    strip = found.strip
    assert MOST_TILES / 2 <= len(strip) <= MOST_TILES
    assert found.tile_s == 64.0
    assert [tile.seconds for tile in strip] == [64.0 * k for k in range(113)]
    assert [k for k, tile in enumerate(strip) if tile.state == "ALERT"] == [5000 // 64]
    assert strip[5000 // 64].score == 0.99


def test_most_frames_make_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    real = module.jpeg_of

    def counting(shown: Frame, **how: int) -> bytes:
        made.append(shown.pts)
        return real(shown, **how)

    monkeypatch.setattr(module, "jpeg_of", counting)
    found = new()
    for k in range(3000):  # five minutes
        found.add(frame(k), k / 10, fused(0.1), "NORMAL")
    assert len(made) < 400


@pytest.mark.parametrize("seconds", [1e12, -5.0])
def test_a_time_that_jumps_is_taken(seconds: float) -> None:
    found = new()
    found.add(frame(0), 0.0, fused(0.1), "NORMAL")
    found.add(frame(1), seconds, fused(0.1), "NORMAL")
    assert 1 <= len(found.strip) <= 2


def test_the_peak_is_kept_plain_and_with_its_heat() -> None:
    found = new()
    for k in range(4):
        found.peak_so_far(frame(k, 60 + 20 * k), FIELD, fused(0.99, heat=0.9999))
    found.close(Ended(1, 3, 0.99))
    peak = found.peaks[1]
    assert luma_of(peak.plain) == pytest.approx(120, abs=2)
    assert saturation_of(peak.plain) < 3 < 20 < saturation_of(peak.heat)


def test_the_frame_that_ends_an_alert_may_open_the_next() -> None:
    found = new()
    found.peak_so_far(frame(7, 60), FIELD, fused(0.99))
    found.peak_so_far(frame(9, 200), FIELD, fused(0.99))
    found.close(Ended(1, 7, 0.99))
    found.close(Ended(2, 9, 0.99))
    assert luma_of(found.peaks[1].plain) == pytest.approx(60, abs=2)
    assert luma_of(found.peaks[2].plain) == pytest.approx(200, abs=2)


def test_pictures_are_kept_of_the_highest_alerts_only() -> None:
    found = new()
    for number in range(1, 3 * MOST_PEAKS + 1):
        found.peak_so_far(frame(number), FIELD, fused(0.99))
        found.close(Ended(number, number, 0.9 + number % 7 / 100))
    assert len(found.peaks) == MOST_PEAKS
    assert {number % 7 for number in found.peaks} <= {4, 5, 6}


def test_a_frame_on_a_device_is_brought_down_only_for_a_picture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    brought: list[int] = []

    def on_host(self: DeviceFrame) -> Frame:
        brought.append(self.pts)
        return frame(self.pts)

    monkeypatch.setattr(DeviceFrame, "on_host", on_host)
    found, colour = new(), Colour("bt601", full_range=True)
    y, uv = torch.zeros(SIZE, dtype=torch.uint8), torch.zeros((24, 32, 2), dtype=torch.uint8)
    for k in range(10):
        shown = DeviceFrame(y, uv, k, Fraction(1, 10), colour)
        found.peak_so_far(shown, FIELD, fused(0.99))
        found.add(shown, k / 10, fused(0.99), "ALERT")
    assert brought == [0, 5]
    found.close(Ended(1, 9, 0.99))
    assert brought == [0, 5, 9] and 1 in found.peaks


def test_every_reason_that_quality_gives_is_known() -> None:
    bad = {
        "sharpness": 0.0, "evenness": 0.0, "brightness": 0.0, "contrast": 0.0,
        "haze": 999.0, "glare": 1.0, "redness": 0.0,
    }  # fmt: skip
    limits = QualityLimits(*(1.0,) * 4, 255.0, 0.25, 1.0)
    assert flags(bad, limits, 0.0) == FLAGS
