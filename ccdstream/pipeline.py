"""decode -> view -> score -> fuse -> alert -> render -> encode, in one readable function.

    thread 1            thread 2           thread 3                     the caller's thread
    decode, view --queue--> score --queue--> fuse, alert, render --queue--> encode

The first two are a route: `host_route` for frames in the host's memory, `device_route` for frames
in a GPU's. `analyse` is what comes after, the same for both; without a video it has no thread 3.
`recording.run` opens what they work on.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Protocol, TypeVar

from ccdstream.alert import Alert, AlertRule, AlertTracker, Observation, Region, hottest_region
from ccdstream.bundle import Bundle
from ccdstream.decode import VideoSource
from ccdstream.engine.select import SelectedEngine
from ccdstream.errors import BundleError, show_path
from ccdstream.frames import DeviceFrame, FieldOfView, Frame, Fused, Scored, View
from ccdstream.fuse import Calibration, Fuser
from ccdstream.prefetch import prefetch
from ccdstream.quality import QualityLimits, flags, measure
from ccdstream.render import Overlay
from ccdstream.report.gallery import Gallery
from ccdstream.score import Scorer
from ccdstream.view import Profile, ViewTracker

if TYPE_CHECKING:
    import torch

    from ccdstream.gpu.score import DeviceScorer, Scoring
    from ccdstream.gpu.view import DeviceViews

T = TypeVar("T")

DEFAULT_BATCH = 4
"""Frames in one model call. On a CPU more saves nothing and only waits longer."""
DEVICE_BATCH = 8
"""The same on a GPU: what its engines are tuned for."""


class StopWatch:
    """Seconds spent in each stage. Stages in different threads overlap: do not add them up."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._clock = clock

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time that the block takes to `stage`."""
        started = self._clock()
        try:
            yield
        finally:
            self.seconds[stage] += self._clock() - started

    def over(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """Give `items`, adding to `stage` the time that producing each takes."""
        iterator = iter(items)
        while True:
            with self.measure(stage):
                item = next(iterator, _END)
            if isinstance(item, _End):
                return
            yield item


class _End:
    """What `next` gives when there is nothing more."""


_END = _End()


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """A frame, what the model sees of it, and what that is worth."""

    frame: Frame
    view: View
    quality: tuple[str, ...]
    valid_fraction: float


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """A frame and all that is said of it alone: where the routes meet."""

    frame: Frame | DeviceFrame
    seconds: float
    """`frame.seconds`."""
    field: FieldOfView
    valid_fraction: float
    quality: tuple[str, ...]
    scored: Scored


@dataclass(frozen=True, slots=True, eq=False)
class Concluded:
    """A frame and what it means in the course of the recording."""

    judged: Judged
    fused: Fused
    state: str
    alerts: list[Alert]
    """Those that the frame completes."""
    drawn: Frame | DeviceFrame | None
    """The frame with its overlay, where one is drawn."""


class Drawer(Protocol):
    """Draws frames with their overlay. An `Overlay` is one, and draws on a GPU too."""

    def draw(
        self, frame: Frame, field: FieldOfView, fused: Fused, state: str, seconds: float
    ) -> Frame: ...


class Sink(Protocol):
    """Takes the overlay frames."""

    @property
    def encoder(self) -> str:
        """ "nvenc" where frames are best left on the GPU."""

    def write(self, frame: Frame | DeviceFrame) -> None: ...


Route = AbstractContextManager[Iterator[Judged]]
"""Frames as they are judged, in order, for as long as the block lasts. At most a few batches of
them are alive at a time, however long the video is. The error of whichever stage fails is raised
by the iterator, and leaving the block, in any way, stops every thread."""

OnFrame = Callable[[Judged, Fused, str], None]
"""Called for every frame, in order, with its state."""


def analyse(
    route: Route,
    *,
    fuser: Fuser,
    tracker: AlertTracker,
    overlay: Drawer | None,
    sink: Sink | None,
    on_frame: OnFrame,
    on_alert: Callable[[Alert], None],
    watch: StopWatch,
    gallery: Gallery | None = None,
) -> None:
    """Run the pipeline to the end of `route`, calling `on_alert` as soon as an alert closes.

    The error of whichever stage fails is raised here, with every thread stopped.
    """
    with route as frames:
        on_device = sink is not None and sink.encoder == "nvenc"
        ahead = concluded(
            frames, fuser, tracker, overlay, watch, on_device=on_device, gallery=gallery
        )
        # what is drawn is drawn while the frame before is encoded; the rest is not worth a thread
        with nullcontext(ahead) if overlay is None else prefetch(ahead, depth=2) as items:
            for item in items:
                judged = item.judged
                if sink is not None and item.drawn is not None:
                    with watch.measure("encode"):
                        sink.write(item.drawn)
                on_frame(judged, item.fused, item.state)
                for alert in item.alerts:
                    on_alert(alert)
    for alert in tracker.finish():
        if gallery is not None:
            gallery.close(alert)
        on_alert(alert)


def concluded(
    frames: Iterator[Judged],
    fuser: Fuser,
    tracker: AlertTracker,
    overlay: Drawer | None,
    watch: StopWatch,
    *,
    on_device: bool,
    gallery: Gallery | None = None,
) -> Iterator[Concluded]:
    """What frames mean as they follow each other, and their overlay where one is drawn."""
    for judged in frames:
        with watch.measure("fuse"):
            seconds = judged.seconds
            fused = fuser.update(seconds, judged.valid_fraction, judged.scored, judged.quality)
            alerts = tracker.update(observation(judged, fused, gallery))
        if gallery is not None:
            with watch.measure("gallery"):
                gallery.add(judged.frame, seconds, fused, tracker.state)
                for alert in alerts:
                    gallery.close(alert)
        drawn = None
        if overlay is not None:
            with watch.measure("render"):
                drawn = _drawn(overlay, judged, fused, tracker.state, on_device=on_device)
        yield Concluded(judged, fused, tracker.state, alerts, drawn)


def _drawn(
    overlay: Drawer, judged: Judged, fused: Fused, state: str, *, on_device: bool
) -> Frame | DeviceFrame:
    """The frame with its marks; a frame of a GPU comes down for it unless it may stay."""
    frame = judged.frame
    if isinstance(frame, DeviceFrame) and on_device and isinstance(overlay, Overlay):
        from ccdstream.gpu.paint import painted

        return painted(frame, overlay.layers(judged.field, fused, state, judged.seconds))
    host = frame.on_host() if isinstance(frame, DeviceFrame) else frame
    return overlay.draw(host, judged.field, fused, state, judged.seconds)


def observation(judged: Judged, fused: Fused, gallery: Gallery | None = None) -> Observation:
    """What the frame adds to the alerts; `gallery` learns which one is the peak so far."""

    def evidence() -> Region | None:
        if gallery is not None:
            gallery.peak_so_far(judged.frame, judged.field, fused)
        return hottest_region(fused.heat, judged.field)

    return Observation(
        seconds=judged.seconds,
        pts=judged.frame.pts,
        score=fused.smoothed,
        raw=fused.raw,
        informative=fused.informative,
        evidence=evidence,
    )


# -- the two routes -------------------------------------------------------------------------------


@contextmanager
def host_route(
    frames: Iterable[Frame],
    *,
    look: Callable[[Frame], Seen],
    scorer: Scorer,
    batch: int,
    watch: StopWatch,
) -> Iterator[Iterator[Judged]]:
    """Look at frames one by one and score them `batch` at a time."""
    with (
        prefetch(looked(frames, look, batch, watch), depth=2) as batches,
        prefetch(scored(batches, scorer, watch), depth=1) as judged,
    ):
        yield chain.from_iterable(judged)


def looked(
    frames: Iterable[Frame], look: Callable[[Frame], Seen], batch: int, watch: StopWatch
) -> Iterator[list[Seen]]:
    """Batches of `batch` frames (the last may be fewer)."""
    decoded = iter(watch.over("decode", frames))
    while items := list(islice(decoded, batch)):
        with watch.measure("view"):
            seen = [look(frame) for frame in items]
        yield seen


def scored(
    batches: Iterable[list[Seen]], scorer: Scorer, watch: StopWatch
) -> Iterator[list[Judged]]:
    """The same batches, with what the model says of them."""
    for batch in batches:
        with watch.measure("score"):
            results = scorer.score([item.view for item in batch])
        yield [
            Judged(
                item.frame,
                item.frame.seconds,
                item.view.field,
                item.valid_fraction,
                item.quality,
                scored,
            )
            for item, scored in zip(batch, results, strict=True)
        ]


@contextmanager
def device_route(
    frames: Iterable[Frame | DeviceFrame],
    *,
    look: "Callable[[Sequence[DeviceFrame]], DeviceViews]",
    scorer: "DeviceScorer",
    batch: int,
    watch: StopWatch,
) -> Iterator[Iterator[Judged]]:
    """Look at frames and score them `batch` at a time on a GPU; those of the host go up for it.

    Only scores, maps and what the quality is worked out from come to the host, in a copy a batch
    each, which is waited for while the next batches are at work.

    Args:
        batch: at most what the engine takes is used.

    Raises:
        EngineError: the GPU failed, in a stage or in what the block does with the frames.
    """
    from ccdstream.gpu.transfer import device_failures

    size = min(batch, scorer.most)
    with (
        device_failures(),
        prefetch(_looked_on_device(frames, look, scorer.place, size, watch), depth=1) as batches,
        prefetch(_begun(batches, scorer, watch), depth=1) as begun,
    ):
        yield chain.from_iterable(_arrived(begun, watch))


_Batch = tuple[list[Frame | DeviceFrame], "DeviceViews"]


def _looked_on_device(
    frames: Iterable[Frame | DeviceFrame],
    look: "Callable[[Sequence[DeviceFrame]], DeviceViews]",
    place: "torch.device",
    size: int,
    watch: StopWatch,
) -> Iterator[_Batch]:
    from ccdstream.gpu.transfer import frame_to_device

    decoded = iter(watch.over("decode", frames))
    while items := list(islice(decoded, size)):
        with watch.measure("view"):
            there = [
                frame_to_device(frame, place) if isinstance(frame, Frame) else frame
                for frame in items
            ]
            views = look(there)
        yield items, views


def _begun(
    batches: Iterable[_Batch], scorer: "DeviceScorer", watch: StopWatch
) -> "Iterator[tuple[_Batch, Scoring]]":
    for batch in batches:
        with watch.measure("score"):
            scoring = scorer.begin(batch[1])
        yield batch, scoring


def _arrived(begun: "Iterable[tuple[_Batch, Scoring]]", watch: StopWatch) -> Iterator[list[Judged]]:
    for (frames, views), scoring in begun:
        with watch.measure("wait"):
            results, worth = scoring.scored(), views.quality()
        rows = zip(frames, views.fields, worth, results, strict=True)
        yield [
            Judged(frame, frame.seconds, field, view.valid_fraction, view.flags, scored)
            for frame, field, view, scored in rows
        ]


# -- from a bundle ---------------------------------------------------------------------------------


def make_scorer(engine: SelectedEngine) -> "Scorer | DeviceScorer":
    """What scores recordings with an engine: on the GPU where it takes what is there."""
    on_device = engine.on_device
    if on_device is not None:
        from ccdstream.gpu.score import DeviceScorer

        return DeviceScorer(on_device)
    return Scorer(engine)


def route_of(
    source: VideoSource,
    bundle: Bundle,
    scorer: "Scorer | DeviceScorer",
    batch: int | None,
    stopped: Callable[[], bool],
    watch: StopWatch,
) -> Route:
    """The way of a recording's frames to where they are scored."""
    if isinstance(scorer, Scorer):
        return host_route(
            _until(stopped, source),
            look=Looker(bundle),
            scorer=scorer,
            batch=batch or DEFAULT_BATCH,
            watch=watch,
        )
    from ccdstream.gpu.view import DeviceViewTracker

    tracker = DeviceViewTracker(
        Profile.from_dict(bundle.profile), QualityLimits.from_dict(bundle.quality), scorer.place
    )
    return device_route(
        _until(stopped, source.frames()),
        look=tracker.update,
        scorer=scorer,
        batch=batch or DEVICE_BATCH,
        watch=watch,
    )


def _until(stopped: Callable[[], bool], frames: Iterable[T]) -> Iterator[T]:
    """`frames` up to where `stopped` says so, but never none: no file is whole without a frame."""
    for number, frame in enumerate(frames):
        if stopped() and number > 0:
            return
        yield frame


class Looker:
    """Frame -> what the model sees of it and whether that tells anything; keeps the view steady."""

    def __init__(self, bundle: Bundle) -> None:
        self._tracker = ViewTracker(Profile.from_dict(bundle.profile))
        self._limits = QualityLimits.from_dict(bundle.quality)

    def __call__(self, frame: Frame) -> Seen:
        view = self._tracker.update(frame)
        valid_fraction = view.valid_fraction
        quality = flags(measure(view), self._limits, valid_fraction)
        return Seen(frame, view, quality, valid_fraction)


def check_bundle(bundle: Bundle) -> None:
    """Find out, before any work, whether every stage can use what the manifest says.

    Raises:
        BundleError: one cannot.
    """
    try:
        Profile.from_dict(bundle.profile)
        QualityLimits.from_dict(bundle.quality)
        AlertRule.from_dict(bundle.alert)
        make_fuser(bundle)
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"the manifest of {show_path(bundle.path)} is damaged: {str(error).rstrip('.')}. "
            "Export the bundle again."
        ) from error


def make_fuser(bundle: Bundle) -> Fuser:
    """The fuser that a bundle's calibration asks for."""
    return Fuser(
        Calibration.from_dict(bundle.calibration["score"]),
        Calibration.from_dict(bundle.calibration["map"]),
        bundle.alert["time_constant_s"],
    )
