"""The whole way of a frame, with the toy bundle whose score is brightness: bright frames alert."""

from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch

from ccdstream.alert import Alert, AlertRule, AlertTracker
from ccdstream.bundle import Bundle
from ccdstream.errors import EngineError
from ccdstream.frames import Colour, DeviceFrame, Frame
from ccdstream.gpu.score import DeviceScorer
from ccdstream.gpu.transfer import frame_to_device
from ccdstream.gpu.view import DeviceViews, DeviceViewTracker
from ccdstream.pipeline import (
    Looker,
    Route,
    StopWatch,
    analyse,
    device_route,
    host_route,
    make_fuser,
)
from ccdstream.quality import QualityLimits
from ccdstream.render import Overlay
from ccdstream.score import Scorer
from ccdstream.view import Profile
from tests.bundles import ToyEngine

SIZE = (96, 128)
TICKS = Fraction(1, 25)


def frame_of(k: int, luma: int) -> Frame:
    y, grey = np.full(SIZE, luma, np.uint8), np.full((SIZE[0] // 2, SIZE[1] // 2), 128, np.uint8)
    return Frame(y, grey, grey, k, TICKS, Colour("bt601", full_range=True))


def test_frames_are_scored_in_batches_and_come_singly_in_order(bundle: Bundle) -> None:
    engine = ToyEngine()
    frames = [frame_of(k, 20 * k) for k in range(7)]
    with host_route(
        frames, look=Looker(bundle), scorer=Scorer(engine), batch=3, watch=StopWatch()
    ) as judged:
        found = [(item.frame.pts, item.seconds, item.scored.raw) for item in judged]
    assert engine.batches == [3, 3, 1]
    assert [pts for pts, _, _ in found] == list(range(7))
    assert [seconds for _, seconds, _ in found] == [k / 25 for k in range(7)]
    assert [raw for _, _, raw in found] == pytest.approx([20 * k / 255 for k in range(7)], abs=0.01)


HOST = torch.device("cpu")


class ToyDeviceEngine(ToyEngine):
    """The toy on torch's CPU device; as a real one it overwrites what it gave before."""

    max_batch = 6
    place = HOST

    def __init__(self) -> None:
        super().__init__()
        rows = self.max_batch
        self._out = (torch.zeros(rows), torch.zeros(rows, 64, 64), torch.zeros(rows, 2))

    def run_on_device(
        self, frames: torch.Tensor, valid: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        assert len(frames) <= self.max_batch
        output = self.run(frames.numpy(), valid.numpy())
        for own, new in zip(
            self._out, (output.score, output.anomaly_map, output.parts), strict=True
        ):
            own.fill_(torch.nan)
            own[: len(new)] = torch.from_numpy(new)
        score, anomaly_map, parts = (own[: len(frames)] for own in self._out)
        return score, anomaly_map, parts


def looking_on_device(bundle: Bundle) -> Callable[[Sequence[DeviceFrame]], DeviceViews]:
    profile, limits = Profile.from_dict(bundle.profile), QualityLimits.from_dict(bundle.quality)
    return DeviceViewTracker(profile, limits, HOST).update


class Kept(list[Frame]):
    """A sink."""

    encoder = "x264"
    write = list.append


def all_of(route: Route, bundle: Bundle, size: tuple[int, int]) -> tuple[list[object], list[Alert]]:
    """What `analyse` says of every frame, and the alerts."""
    rows: list[object] = []
    alerts: list[Alert] = []
    drawn = Kept()
    analyse(
        route,
        fuser=make_fuser(bundle),
        tracker=AlertTracker(AlertRule.from_dict(bundle.alert), model=bundle.model_id),
        overlay=Overlay(size, Colour("bt601", full_range=True), enter=bundle.alert["enter"]),
        sink=drawn,
        on_frame=lambda judged, fused, state: rows.append(
            (
                *(judged.frame.pts, state, fused.smoothed, fused.quality, fused.valid_fraction),
                *(judged.scored.parts.tolist(), fused.heat.tobytes()),
            )
        ),
        on_alert=alerts.append,
        watch=StopWatch(),
    )
    pictures = [(frame.y.tobytes(), frame.u.tobytes(), frame.v.tobytes()) for frame in drawn]
    return [rows, pictures], alerts


def bright_frames() -> list[Frame]:
    """Three seconds, the last two of them bright but for a dark corner."""
    frames = []
    for k in range(75):
        frame = frame_of(k, 200 if k >= 25 else 50)
        frame.y[:24, :32] = k
        frames.append(frame)
    return frames


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_the_way_over_a_device_says_and_draws_what_the_hosts_does(
    bundle: Bundle, batch: int
) -> None:
    frames = bright_frames()
    watch = StopWatch()
    host = host_route(frames, look=Looker(bundle), scorer=Scorer(ToyEngine()), batch=4, watch=watch)
    device = device_route(
        [frame_to_device(frame, HOST) for frame in frames],
        look=looking_on_device(bundle),
        scorer=DeviceScorer(ToyDeviceEngine()),
        batch=batch,
        watch=watch,
    )
    expected = all_of(host, bundle, SIZE)
    assert len(expected[1]) == 1
    assert all_of(device, bundle, SIZE) == expected


def test_with_nvenc_what_is_drawn_stays_on_the_device(bundle: Bundle) -> None:
    """Frames that are there are drawn on there; those of the host stay on the host."""

    class Nvenc(Kept):
        encoder = "nvenc"

    def drawn_by(sink: Kept) -> list[Frame | DeviceFrame]:
        frames: list[Frame | DeviceFrame] = list(bright_frames()[:50])
        frames[::2] = [frame_to_device(frame, HOST) for frame in frames[::2]]
        analyse(
            device_route(
                frames,
                look=looking_on_device(bundle),
                scorer=DeviceScorer(ToyDeviceEngine()),
                batch=4,
                watch=StopWatch(),
            ),
            fuser=make_fuser(bundle),
            tracker=AlertTracker(AlertRule.from_dict(bundle.alert), model=bundle.model_id),
            overlay=Overlay(SIZE, Colour("bt601", full_range=True), enter=bundle.alert["enter"]),
            sink=sink,
            on_frame=lambda *_: None,
            on_alert=lambda _: None,
            watch=StopWatch(),
        )
        return list(sink)

    on_host, mixed = drawn_by(Kept()), drawn_by(Nvenc())
    assert all(isinstance(frame, Frame) for frame in on_host)
    assert [type(frame) for frame in mixed] == [DeviceFrame, Frame] * 25
    for expected, frame in zip(on_host, mixed, strict=True):
        got = frame.on_host() if isinstance(frame, DeviceFrame) else frame
        for plane in ("y", "u", "v"):
            np.testing.assert_array_equal(getattr(got, plane), getattr(expected, plane))


def test_a_score_of_a_device_that_is_not_finite_is_an_error(bundle: Bundle) -> None:
    class Broken(ToyDeviceEngine):
        def run_on_device(
            self, frames: torch.Tensor, valid: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            output = super().run_on_device(frames, valid)
            output[1][-1, 3, 3] = torch.inf
            return output

    route = device_route(
        bright_frames(),  # of the host: they go up
        look=looking_on_device(bundle),
        scorer=DeviceScorer(Broken()),
        batch=4,
        watch=StopWatch(),
    )
    with pytest.raises(EngineError, match="toy on cpu gave a score or a map that is not finite"):
        all_of(route, bundle, SIZE)


def test_too_little_memory_on_the_device_is_an_error_on_one_line(bundle: Bundle) -> None:
    def look(frames: Sequence[DeviceFrame]) -> DeviceViews:
        raise torch.OutOfMemoryError("CUDA out of memory.\nGPU 0 has 80 GiB")

    route = device_route(
        bright_frames(),
        look=look,
        scorer=DeviceScorer(ToyDeviceEngine()),
        batch=4,
        watch=StopWatch(),
    )
    with pytest.raises(EngineError, match=r"^the GPU failed \(CUDA out of memory\.\)\. Use"):
        all_of(route, bundle, SIZE)
