"""decode -> view -> score -> fuse -> alert -> render -> encode, in one readable function.

    thread 1            thread 2           main thread
    decode, view --queue--> score --queue--> fuse, alert, render, encode

`run` opens what `analyse` works on, and leaves beside the overlay what `report` writes.
"""

import hashlib
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from ccdstream import NOTICE, __version__
from ccdstream.alert import Alert, AlertRule, AlertTracker, Observation, hottest_region
from ccdstream.bundle import Bundle
from ccdstream.decode import VideoSource
from ccdstream.doctor import versions
from ccdstream.encode import Chapter, VideoSink
from ccdstream.engine.select import SelectedEngine
from ccdstream.errors import BundleError, OutputError, VideoOpenError, show_path
from ccdstream.frames import Frame, Fused, Scored, View
from ccdstream.fuse import Calibration, Fuser
from ccdstream.prefetch import prefetch
from ccdstream.quality import QualityLimits, flags, measure
from ccdstream.render import Overlay
from ccdstream.report.alerts import AlertsCsv, AlertsJsonl, AlertsVtt, alert_title
from ccdstream.report.audit import write_audit
from ccdstream.report.files import Together, refuse_existing
from ccdstream.report.scores import ScoresCsv
from ccdstream.score import Scorer
from ccdstream.view import Profile, ViewTracker

T = TypeVar("T")

DEFAULT_BATCH = 4
"""Frames in one model call. On a CPU more saves nothing and only waits longer."""


class StopWatch:
    """Seconds spent in each stage. Stages in different threads overlap: do not add them up."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Add the time that the block takes to `stage`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - started

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


class Sink(Protocol):
    """Takes the overlay frames."""

    def write(self, frame: Frame) -> None: ...


OnFrame = Callable[[Frame, Scored, Fused, str], None]
"""Called for every frame, in order, with its state."""


def analyse(
    frames: Iterable[Frame],
    *,
    look: Callable[[Frame], Seen],
    scorer: Scorer,
    fuser: Fuser,
    tracker: AlertTracker,
    overlay: Overlay | None,
    sink: Sink | None,
    on_frame: OnFrame,
    on_alert: Callable[[Alert], None],
    batch: int,
    watch: StopWatch,
) -> None:
    """Run the pipeline to the end of `frames`, calling `on_alert` as soon as an alert closes.

    At most a few batches of frames are alive at a time, however long the video is. The error of
    whichever stage fails is raised here, with every thread stopped.
    """
    with (
        prefetch(_looked(frames, look, watch), depth=2 * batch) as seen,
        prefetch(_scored(seen, scorer, batch, watch), depth=batch) as scored_frames,
    ):
        for item, scored in scored_frames:
            frame, view = item.frame, item.view
            with watch.measure("fuse"):
                fused = fuser.update(frame.seconds, view, scored, item.quality)
                alerts = tracker.update(_observation(frame, view, fused))
            if overlay is not None and sink is not None:
                with watch.measure("render"):
                    drawn = overlay.draw(frame, view.field, fused, tracker.state, frame.seconds)
                with watch.measure("encode"):
                    sink.write(drawn)
            on_frame(frame, scored, fused, tracker.state)
            for alert in alerts:
                on_alert(alert)
    for alert in tracker.finish():
        on_alert(alert)


def _looked(
    frames: Iterable[Frame], look: Callable[[Frame], Seen], watch: StopWatch
) -> Iterator[Seen]:
    for frame in watch.over("decode", frames):
        with watch.measure("view"):
            seen = look(frame)
        yield seen


def _scored(
    seen: Iterator[Seen], scorer: Scorer, batch: int, watch: StopWatch
) -> Iterator[tuple[Seen, Scored]]:
    """Score frames `batch` at a time (the last may be fewer); give them singly."""
    while items := list(islice(seen, batch)):
        with watch.measure("score"):
            results = scorer.score([item.view for item in items])
        yield from zip(items, results, strict=True)


def _observation(frame: Frame, view: View, fused: Fused) -> Observation:
    return Observation(
        seconds=frame.seconds,
        pts=frame.pts,
        score=fused.smoothed,
        raw=fused.raw,
        informative=fused.informative,
        evidence=lambda: hottest_region(fused.heat, view.field),
    )


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What of a recording is analysed, and how."""

    video: Literal["overlay", "none"] = "overlay"
    start_s: float | None = None
    end_s: float | None = None
    batch: int = DEFAULT_BATCH
    overwrite: bool = False


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
        endings = ["alerts.jsonl", "alerts.csv", "alerts.vtt", "scores.csv", "run.json"]
        return [self.path(e) for e in ([*endings, "overlay.mp4"] if video != "none" else endings)]


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
    first_s: float = 0.0
    last_s: float = 0.0
    wall_s: float = 0.0
    interrupted: bool = False
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

    Args:
        stopped: asked before every frame; once it says so, the input ends there and every file is
            finished properly.

    Raises:
        VideoOpenError, VideoDecodeError: the recording cannot be read.
        OutputError: a result exists already or cannot be written.
    """
    started = time.perf_counter()
    result = RunResult(files)
    watch = StopWatch()
    source_path = path.absolute()
    for file in files.all(options.video):
        if file.absolute() == source_path:
            raise OutputError(f"{show_path(file)} is the input itself. Choose another --output.")
        if not options.overwrite:
            refuse_existing(file)
    with (
        VideoSource(path, start_s=options.start_s, end_s=options.end_s) as source,
        Together(overwrite=options.overwrite) as results,
    ):
        try:
            files.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot make the folder {show_path(files.folder)}: {error.strerror}. "
                "Choose another --output."
            ) from error
        places = {file: results.place(file) for file in files.all(options.video)}
        with ExitStack() as stack:
            writers = [
                stack.enter_context(kind(places[files.path(ending)], time_base=source.time_base))
                for kind, ending in (
                    (AlertsJsonl, "alerts.jsonl"),
                    (AlertsCsv, "alerts.csv"),
                    (AlertsVtt, "alerts.vtt"),
                )
            ]
            scores = stack.enter_context(
                ScoresCsv(places[files.path("scores.csv")], parts=bundle.parts)
            )
            sink = _open_sink(stack, source, places.get(files.path("overlay.mp4")), options)

            def frame_done(frame: Frame, scored: Scored, fused: Fused, state: str) -> None:
                if result.frames == 0:
                    result.first_s = frame.seconds
                scores.write(result.frames, frame.pts, frame.seconds, fused, state, scored.parts)
                result.frames += 1
                result.informative_frames += fused.informative
                result.last_s = frame.seconds
                on_progress(
                    Progress(
                        result.frames,
                        frame.seconds - result.first_s,
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

            analyse(
                _until(stopped, source),
                look=Looker(bundle),
                scorer=Scorer(engine),
                fuser=make_fuser(bundle),
                tracker=AlertTracker(AlertRule.from_dict(bundle.alert), model=bundle.model_id),
                overlay=None if sink is None else _overlay(source, bundle),
                sink=sink,
                on_frame=frame_done,
                on_alert=alert_closed,
                batch=options.batch,
                watch=watch,
            )
            result.interrupted = stopped()
            result.warnings = source.problems.sentences()
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
        record = _record(path, source, bundle, engine, options, result, watch)
        write_audit(places[files.path("run.json")], record)
    return result


def _until(stopped: Callable[[], bool], frames: Iterable[Frame]) -> Iterator[Frame]:
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
        return Seen(frame, view, flags(measure(view), self._limits, view.valid_fraction))


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
    stack: ExitStack, source: VideoSource, path: Path | None, options: RunOptions
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
            **_fingerprint(path),
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
        "model": {
            "id": bundle.model_id,
            "name": bundle.name,
            "commit": bundle.manifest["commit"],
            "files": bundle.manifest["files"],
        },
        "engine": {"taken": engine.reason, "name": engine.name, "device": engine.device},
        "alert_rule": dict(bundle.alert),
        "counts": {
            "frames": result.frames,
            "informative_frames": result.informative_frames,
            "alerts": len(result.alerts),
            **source.problems.as_dict(),
        },
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
            "note": "stages run in three threads and overlap",
        },
    }


def _fingerprint(path: Path) -> dict[str, Any]:
    """Size and hash of the recording, by which it can be told again."""
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            return {"bytes": file.tell(), "sha256": sha256}
    except OSError as error:
        raise VideoOpenError(
            f"{show_path(path)} can no longer be read: {error.strerror}. "
            "Keep the recording where it is until its analysis ends."
        ) from error
