"""decode -> view -> score -> fuse -> alert -> render -> encode, in one readable function.

    thread 1            thread 2           thread 3                     the caller's thread
    decode, view --queue--> score --queue--> fuse, alert, render --queue--> encode

The first two are a route: `host_route` for frames in the host's memory, `device_route` for frames
in a GPU's. `analyse` is what comes after, the same for both; without a video it has no thread 3.
`run` opens what they work on, and leaves beside the overlay what `report` writes.
"""

import hashlib
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from ccdstream import NOTICE, __version__
from ccdstream.alert import Alert, AlertRule, AlertTracker, Observation, Region, hottest_region
from ccdstream.bundle import Bundle
from ccdstream.decode import VideoSource
from ccdstream.doctor import versions
from ccdstream.encode import Chapter, VideoSink
from ccdstream.engine.select import SelectedEngine
from ccdstream.errors import BundleError, OutputError, VideoOpenError, show_path
from ccdstream.frames import DeviceFrame, FieldOfView, Frame, Fused, Scored, View
from ccdstream.fuse import Calibration, Fuser
from ccdstream.prefetch import prefetch
from ccdstream.process import settle
from ccdstream.quality import FLAGS as QUALITY_FLAGS
from ccdstream.quality import QualityLimits, flags, measure
from ccdstream.render import Overlay, with_heat
from ccdstream.report.alerts import (
    AlertsCsv,
    AlertsEdl,
    AlertsJsonl,
    AlertsVtt,
    AlertWriter,
    alert_title,
)
from ccdstream.report.audit import write_audit
from ccdstream.report.files import Lock, Together, lock_path, refuse_existing
from ccdstream.report.gallery import Gallery
from ccdstream.report.page import write_page
from ccdstream.report.scores import ScoresCsv
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

OnFrame = Callable[[Frame | DeviceFrame, Scored, Fused, str], None]
"""Called for every frame, in order, with its state."""


def analyse(
    route: Route,
    *,
    fuser: Fuser,
    tracker: AlertTracker,
    overlay: Overlay | None,
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
                on_frame(judged.frame, judged.scored, item.fused, item.state)
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
    overlay: Overlay | None,
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
    overlay: Overlay, judged: Judged, fused: Fused, state: str, *, on_device: bool
) -> Frame | DeviceFrame:
    """The frame with its marks; a frame of a GPU comes down for it unless it may stay."""
    frame = judged.frame
    if isinstance(frame, DeviceFrame) and on_device:
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


# -- a recording ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What of a recording is analysed, and how."""

    video: Literal["overlay", "none"] = "overlay"
    start_s: float | None = None
    end_s: float | None = None
    batch: int | None = None
    """Frames in one model call; None for `DEFAULT_BATCH`, or `DEVICE_BATCH` on a GPU."""
    overwrite: bool = False

    def of_results(self) -> dict[str, Any]:
        """Those that change what a run leaves, as run.json holds them."""
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in ("batch", "overwrite")
        }


@dataclass(frozen=True, slots=True)
class OutputFiles:
    """The files that a run of one recording leaves."""

    folder: Path
    stem: str

    def path(self, ending: str) -> Path:
        """`FOLDER/STEM.ENDING`."""
        return self.folder / f"{self.stem}.{ending}"

    def all(self, video: str) -> list[Path]:
        """Every file that a run writes."""
        endings = ["alerts.jsonl", "alerts.csv", "alerts.vtt", "alerts.edl", "scores.csv"]
        endings += ["run.json", "report.html", *(["overlay.mp4"] if video != "none" else [])]
        return [self.path(ending) for ending in endings]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is."""

    frames: int
    seconds: float
    """Stream time of the last frame, from the first one on."""
    alerts: int
    frame_count_hint: int | None
    duration_s: float | None


@dataclass(slots=True)
class RunResult:
    """What a run found."""

    files: OutputFiles
    frames: int = 0
    informative_frames: int = 0
    uninformative: Counter[str] = field(default_factory=Counter)
    """Frames by why they tell nothing; one may have several reasons."""
    first_s: float = 0.0
    last_s: float = 0.0
    wall_s: float = 0.0
    interrupted: bool = False
    changed: bool = False
    """Whether the recording was written to meanwhile."""
    alerts: list[Alert] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def run(
    path: Path,
    files: OutputFiles,
    *,
    bundle: Bundle,
    engine: SelectedEngine,
    options: RunOptions,
    stopped: Callable[[], bool] = lambda: False,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_alert: Callable[[Alert, VideoSource], None] = lambda *_: None,
) -> RunResult:
    """Analyse one recording and leave its results in `files`: all of them whole, or none.

    Settles the process first, for its life: see `ccdstream.process`.

    Args:
        stopped: asked before every frame; once it says so, the input ends there and every file is
            finished properly.

    Raises:
        VideoOpenError, VideoDecodeError: the recording cannot be read.
        OutputError: a result exists already or cannot be written, or another process is writing it.
    """
    started = time.perf_counter()
    settle()
    scorer = make_scorer(engine)
    gpu = None if isinstance(scorer, Scorer) else scorer.place.index
    result = RunResult(files)
    watch = StopWatch()
    source_path = path.absolute()
    for file in files.all(options.video):
        if file.absolute() == source_path:
            raise OutputError(f"{show_path(file)} is the input itself. Choose another --output.")
        if not options.overwrite:
            refuse_existing(file)
    with (
        VideoSource(path, start_s=options.start_s, end_s=options.end_s, decode_on=gpu) as source,
        ExitStack() as held,
    ):
        began_as = _stamp(path)
        try:
            files.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot make the folder {show_path(files.folder)}: {error.strerror}. "
                "Choose another --output."
            ) from error
        busy = (
            f"another process is analysing into {show_path(files.path('*'))}. Wait for it to end."
        )
        held.enter_context(Lock(lock_path(files.folder, files.stem), busy))
        results = held.enter_context(Together(overwrite=options.overwrite))
        audit = files.path("run.json")
        # run.json comes last: once it has its name, so have the others
        names = sorted(files.all(options.video), key=lambda file: file == audit)
        places = {file: results.place(file) for file in names}
        with ExitStack() as stack:
            writers: list[AlertWriter] = [
                stack.enter_context(kind(places[files.path(ending)], time_base=source.time_base))
                for kind, ending in (
                    (AlertsJsonl, "alerts.jsonl"),
                    (AlertsCsv, "alerts.csv"),
                    (AlertsVtt, "alerts.vtt"),
                )
            ]
            edl = AlertsEdl(
                places[files.path("alerts.edl")],
                time_base=source.time_base,
                rate=source.average_rate,
                clip=path.name,
            )
            writers.append(stack.enter_context(edl))
            scores = stack.enter_context(
                ScoresCsv(places[files.path("scores.csv")], parts=bundle.parts)
            )
            sink = _open_sink(stack, source, places.get(files.path("overlay.mp4")), options, gpu)

            def frame_done(
                frame: Frame | DeviceFrame, scored: Scored, fused: Fused, state: str
            ) -> None:
                seconds = frame.seconds
                if result.frames == 0:
                    result.first_s = seconds
                scores.write(result.frames, frame.pts, seconds, fused, state, scored.parts)
                result.frames += 1
                result.informative_frames += fused.informative
                result.uninformative.update(fused.quality)
                result.last_s = seconds
                on_progress(
                    Progress(
                        result.frames,
                        seconds - result.first_s,
                        len(result.alerts),
                        source.frame_count_hint,
                        source.duration_s,
                    )
                )

            def alert_closed(alert: Alert) -> None:
                result.alerts.append(alert)
                for writer in writers:
                    writer.write(alert)
                on_alert(alert, source)

            gallery = Gallery(start_s=float(source.first_pts * source.time_base), heated=with_heat)
            analyse(
                _route(source, bundle, scorer, options.batch, stopped, watch),
                fuser=make_fuser(bundle),
                tracker=AlertTracker(AlertRule.from_dict(bundle.alert), model=bundle.model_id),
                overlay=None if sink is None else _overlay(source, bundle),
                sink=sink,
                on_frame=frame_done,
                on_alert=alert_closed,
                watch=watch,
                gallery=gallery,
            )
            result.interrupted = stopped()
            result.warnings = source.problems.sentences()
            overlay = files.path("overlay.mp4")
            if sink is None and overlay.exists():
                result.warnings.append(f"{show_path(overlay)} is of an earlier run")
            if sink is not None:
                sink.chapters(
                    [
                        Chapter(a.start_s, max(a.end_s, a.start_s), alert_title(a))
                        for a in result.alerts
                    ]
                )
        if sink is not None:
            result.warnings += sink.notes
        result.wall_s = time.perf_counter() - started
        found = _fingerprint(path)
        if (found["bytes"], found["mtime_ns"]) != began_as:
            result.changed = True
            result.warnings.append("the recording changed while it was analysed: run it again")
        record = _record(path, found, source, bundle, engine, options, result, watch)
        record["video"] = {
            "decoder": source.decoder,
            "decoder_notes": source.notes,
            "encoder": None if sink is None else sink.encoder,
            "encoder_note": "" if sink is None else sink.encoder_note,
        }
        write_page(
            places[files.path("report.html")],
            record,
            result.alerts,
            gallery,
            video=places.get(files.path("overlay.mp4")),
        )
        record["output_bytes"] = {
            file.name: place.stat().st_size for file, place in places.items() if place.exists()
        }
        write_audit(places[audit], record)
    return result


def make_scorer(engine: SelectedEngine) -> "Scorer | DeviceScorer":
    """What scores recordings with an engine: on the GPU where it takes what is there."""
    on_device = engine.on_device
    if on_device is not None:
        from ccdstream.gpu.score import DeviceScorer

        return DeviceScorer(on_device)
    return Scorer(engine)


def _route(
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


def _open_sink(
    stack: ExitStack,
    source: VideoSource,
    path: Path | None,
    options: RunOptions,
    gpu: int | None,
) -> VideoSink | None:
    if path is None:
        return None
    audio = stack.enter_context(source.open_audio())
    segment = options.start_s is not None
    sink = VideoSink(
        path,
        source,
        audio=audio,
        offset_pts=source.first_pts if segment else 0,
        encode_on=gpu,
    )
    return stack.enter_context(sink)


def _overlay(source: VideoSource, bundle: Bundle) -> Overlay:
    return Overlay(
        source.size,
        source.colour,
        enter=bundle.alert["enter"],
        start_s=float(source.first_pts * source.time_base),
        duration_s=source.duration_s,
    )


def _record(
    path: Path,
    fingerprint: dict[str, Any],
    source: VideoSource,
    bundle: Bundle,
    engine: SelectedEngine,
    options: RunOptions,
    result: RunResult,
    watch: StopWatch,
) -> dict[str, Any]:
    """What run.json says."""
    height, width = source.size
    return {
        "notice": NOTICE,
        "ccdstream": __version__,
        "versions": versions(),
        "command": sys.argv[1:],
        "input": {
            "file": show_path(path.name),
            **fingerprint,
            "changed_meanwhile": result.changed,
            "format": source.format,
            "codec": source.codec,
            "pix_fmt": source.pix_fmt,
            "width": width,
            "height": height,
            "sample_aspect_ratio": source.sample_aspect_ratio,
            "rotation_deg": source.rotation_deg,
            "mirrored": source.mirrored,
            "interlaced": source.interlaced,
            "time_base": source.time_base,
            "average_rate": source.average_rate,
            "colour": {
                "matrix": source.colour.matrix,
                "full_range": source.colour.full_range,
                "assumed": source.colour.assumed,
            },
            "start_s": options.start_s,
            "end_s": options.end_s,
        },
        "options": options.of_results(),
        "model": {
            "id": bundle.model_id,
            "name": bundle.name,
            "commit": bundle.manifest["commit"],
            "files": bundle.manifest["files"],
        },
        "engine": {
            "taken": engine.reason,
            "name": engine.name,
            "device": engine.device,
            "precision": engine.precision,
        },
        "alert_rule": dict(bundle.alert),
        "counts": {
            "frames": result.frames,
            "informative_frames": result.informative_frames,
            "uninformative_by_reason": {
                reason: result.uninformative[reason] for reason in QUALITY_FLAGS
            },
            "alerts": len(result.alerts),
            **source.problems.as_dict(),
        },
        "stream": {"first_s": result.first_s, "last_s": result.last_s},
        "warnings": result.warnings,
        "interrupted": result.interrupted,
        "outputs": [file.name for file in result.files.all(options.video)],
        "overlay_offset_s": 0.0
        if options.start_s is None
        else float(source.first_pts * source.time_base),
        "timing": {
            "wall_s": result.wall_s,
            "frames_per_s": result.frames / result.wall_s,
            "stage_s": dict(watch.seconds),
            "note": "stages run in several threads and overlap",
        },
    }


def _stamp(path: Path) -> tuple[int, int]:
    """(bytes, time of the last change in ns): what tells quickly that a recording is another."""
    try:
        about = path.stat()
    except OSError as error:
        raise _gone(path, error) from error
    return about.st_size, about.st_mtime_ns


def _fingerprint(path: Path) -> dict[str, Any]:
    """Size, time and hash of the recording, by which it can be told again."""
    size, changed = _stamp(path)
    try:
        return {"bytes": size, "mtime_ns": changed, "sha256": sha256_of(path)}
    except OSError as error:
        raise _gone(path, error) from error


def _gone(path: Path, error: OSError) -> VideoOpenError:
    return VideoOpenError(
        f"{show_path(path)} can no longer be read: {error.strerror}. "
        "Keep the recording where it is until its analysis ends."
    )


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
