"""One recording in, its results out: all of them whole, or none.

`run` opens what the pipeline works on, and leaves beside the video what `report` writes.
"""

import hashlib
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args

from ccdstream import NOTICE, __version__
from ccdstream.alert import Alert, AlertRule, AlertTracker, hottest_region
from ccdstream.bundle import Bundle
from ccdstream.decode import AudioSource, VideoSource
from ccdstream.deid import BurnedIn, Deidentifier, deidentified, find_burned_in
from ccdstream.doctor import versions
from ccdstream.encode import Chapter, VideoSink
from ccdstream.engine.select import SelectedEngine
from ccdstream.errors import OutputError, VideoOpenError, show_path
from ccdstream.frames import Fused
from ccdstream.pipeline import Judged, StopWatch, analyse, make_fuser, make_scorer, route_of
from ccdstream.process import settle
from ccdstream.pseudonym import Alias
from ccdstream.quality import FLAGS as QUALITY_FLAGS
from ccdstream.render import Overlay, with_heat
from ccdstream.report import parquet
from ccdstream.report.alerts import (
    AlertsCsv,
    AlertsEdl,
    AlertsJsonl,
    AlertsVtt,
    AlertWriter,
    alert_title,
)
from ccdstream.report.audit import write_audit
from ccdstream.report.coco import Predictions, coco_predictions
from ccdstream.report.files import Lock, Together, lock_path, refuse_existing
from ccdstream.report.gallery import Gallery
from ccdstream.report.page import write_page
from ccdstream.report.scores import ScoresCsv, ScoresWriter
from ccdstream.score import Scorer
from ccdstream.view import Profile

VideoKind = Literal["overlay", "none"]
Form = Literal["parquet", "coco"]
LATEST_START_S = Fraction(1, 2)
"""The overlay of a recording whose clock begins later begins at 0: Chromium takes the time before
the first frame off the end of what it plays, and cannot seek in the rest."""
FORM_ENDINGS: dict[Form, str] = {"parquet": "scores.parquet", "coco": "coco.json"}


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What of a recording is analysed, and how."""

    video: VideoKind = "overlay"
    also: frozenset[Form] = frozenset()
    """Further files with results: parquet, the scores; coco, predictions for tools that score
    detectors."""
    deid: bool = False
    """Whether results are made such that they do not say whose recording it is."""
    keep_metadata: bool = False
    """Whether videos that are written keep what the recording's container says of itself."""
    start_s: float | None = None
    end_s: float | None = None
    batch: int | None = None
    """Frames in one model call; None for `DEFAULT_BATCH`, or `DEVICE_BATCH` on a GPU."""
    overwrite: bool = False

    def of_results(self) -> dict[str, Any]:
        """Those that change what a run leaves, as run.json holds them."""
        values = {**asdict(self), "also": sorted(self.also)}
        return {name: values[name] for name in values if name not in ("batch", "overwrite")}


@dataclass(frozen=True, slots=True)
class OutputFiles:
    """The files that a run of one recording leaves."""

    folder: Path
    stem: str

    def path(self, ending: str) -> Path:
        """`FOLDER/STEM.ENDING`."""
        return self.folder / f"{self.stem}.{ending}"

    def all(self, options: RunOptions) -> list[Path]:
        """Every file that a run writes."""
        endings = ["alerts.jsonl", "alerts.csv", "alerts.vtt", "alerts.edl", "scores.csv"]
        endings += ["run.json", "report.html"]
        endings += [FORM_ENDINGS[form] for form in sorted(options.also)]
        endings += ["overlay.mp4"] if options.video == "overlay" else []
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


def check_forms(options: RunOptions) -> None:
    """Find out, before any work, whether the forms that are asked for can be written.

    Raises:
        OutputError: one cannot.
    """
    if "parquet" in options.also:
        parquet.require()
    if "coco" in options.also and options.start_s is not None:
        raise OutputError(
            "predictions in COCO's form name frames by their number in the recording, which is not "
            "known where the analysis begins later. Leave out --from or --also coco."
        )


def run(
    path: Path,
    files: OutputFiles,
    *,
    bundle: Bundle,
    engine: SelectedEngine,
    options: RunOptions,
    alias: Alias | None = None,
    stopped: Callable[[], bool] = lambda: False,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_alert: Callable[[Alert, VideoSource], None] = lambda *_: None,
) -> RunResult:
    """Analyse one recording and leave its results in `files`: all of them whole, or none.

    Settles the process first, for its life: see `ccdstream.process`.

    Args:
        alias: what the recording is called in results; with `options.deid`, and only then.
        stopped: asked before every frame; once it says so, the input ends there and every file is
            finished properly.

    Raises:
        VideoOpenError, VideoDecodeError: the recording cannot be read.
        OutputError: a result exists already or cannot be written, or another process is writing it.
    """
    started = time.perf_counter()
    check_forms(options)
    if options.deid != (alias is not None):
        raise ValueError("a pseudonym goes with deid, and deid with a pseudonym")
    settle()
    scorer = make_scorer(engine)
    gpu = None if isinstance(scorer, Scorer) else scorer.place.index
    result = RunResult(files)
    watch = StopWatch()
    source_path = path.absolute()
    for file in files.all(options):
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
        names = sorted(files.all(options), key=lambda file: file == audit)
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
                clip=path.name if alias is None else alias.name,
            )
            writers.append(stack.enter_context(edl))
            scores: list[ScoresWriter] = [
                stack.enter_context(ScoresCsv(places[files.path("scores.csv")], parts=bundle.parts))
            ]
            if "parquet" in options.also:
                table = parquet.ScoresParquet(
                    places[files.path(FORM_ENDINGS["parquet"])],
                    parts=bundle.parts,
                    model=bundle.model_id,
                    time_base=source.time_base,
                )
                scores.append(stack.enter_context(table))
            coco: Predictions | None = None
            if "coco" in options.also:
                place = places[files.path(FORM_ENDINGS["coco"])]
                coco = stack.enter_context(
                    coco_predictions(place, stem=files.stem, size=source.size)
                )
            sink = _open_sink(stack, source, places.get(files.path("overlay.mp4")), options, gpu)

            def frame_done(judged: Judged, fused: Fused, state: str) -> None:
                seconds, pts, parts = judged.seconds, judged.frame.pts, judged.scored.parts
                if result.frames == 0:
                    result.first_s = seconds
                for writer in scores:
                    writer.write(result.frames, pts, seconds, fused, state, parts)
                if coco is not None and fused.informative:
                    with watch.measure("coco"):
                        hottest = hottest_region(fused.heat, judged.field)
                        box = None if hottest is None else hottest.box
                        coco.write(result.frames, fused.smoothed, box)
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

            route = route_of(source, bundle, scorer, options.batch, stopped, watch)
            burned_in: BurnedIn | None = None
            if options.deid:
                with watch.measure("burned_in"):
                    burned_in = find_burned_in(
                        source,
                        Profile.from_dict(bundle.profile),
                        start_s=options.start_s,
                        end_s=options.end_s,
                        stopped=stopped,
                    )
                route = deidentified(route, Deidentifier(source.size, burned_in.mask))
            gallery = Gallery(start_s=float(source.first_pts * source.time_base), heated=with_heat)
            analyse(
                route,
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
            if burned_in is not None:
                result.warnings += burned_in.warnings()
            overlay = files.path("overlay.mp4")
            if sink is None and overlay.exists():
                result.warnings.append(f"{show_path(overlay.name)} is of an earlier run")
            for form in get_args(Form):
                file = files.path(FORM_ENDINGS[form])
                if form not in options.also and file.exists():
                    result.warnings.append(f"{show_path(file.name)} is of an earlier run")
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
        notes = source.notes
        if alias is not None:
            _rename(record, alias)
            notes = ["notes are left out: they may name the recording"] if notes else []
        record["video"] = {
            "decoder": source.decoder,
            "decoder_notes": notes,
            "encoder": None if sink is None else sink.encoder,
            "encoder_note": "" if sink is None else sink.encoder_note,
        }
        if sink is not None:
            record["overlay_offset_s"] = sink.zero_s
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


def _open_sink(
    stack: ExitStack,
    source: VideoSource,
    path: Path | None,
    options: RunOptions,
    gpu: int | None,
) -> VideoSink | None:
    if path is None:
        return None
    audio = None if options.deid else stack.enter_context(source.open_audio())
    sink = VideoSink(
        path,
        source,
        audio=audio,
        offset_pts=source.first_pts if options.start_s is not None else _late_start(source, audio),
        encode_on=gpu,
        metadata=source.metadata if options.keep_metadata else None,
    )
    return stack.enter_context(sink)


def _late_start(source: VideoSource, audio: AudioSource | None) -> int:
    """The pts at which a whole recording begins, its sound too, if that is late; else 0."""
    starts_s = [source.first_pts * source.time_base]
    stream = None if audio is None else audio.stream
    if stream is not None and stream.start_time is not None and stream.time_base is not None:
        starts_s.append(stream.start_time * stream.time_base)
    late = min(starts_s) > LATEST_START_S
    return math.floor(min(starts_s) / source.time_base) if late else 0


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
        "outputs": [file.name for file in result.files.all(options)],
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


def _rename(record: dict[str, Any], alias: Alias) -> None:
    """Take from a record what tells which recording it is of, or when that was made; but what the
    holder of the key can tell it by again stays."""
    about = record["input"]
    size, changed = about["bytes"], about.pop("mtime_ns")
    about.update(
        file=alias.name,
        bytes=None,
        sha256=alias.keyed("sha256", about["sha256"]),
        stamp=alias.keyed("stamp", f"{size} {changed}"),
    )
    record["command"] = []


def is_of(known: Mapping[str, Any], path: Path, alias: Alias | None) -> bool:
    """Whether the "input" of a run.json is this recording. Hashes it only where its size or time is
    not as it was.

    Raises:
        OSError: it cannot be read.
        KeyError: `known` is not of this version.
    """
    about = path.stat()
    if alias is not None:
        stamp = alias.keyed("stamp", f"{about.st_size} {about.st_mtime_ns}")
        if known["stamp"] == stamp:
            return True
        return bool(known["sha256"] == alias.keyed("sha256", sha256_of(path)))
    if about.st_size != known["bytes"]:
        return False
    unchanged = known["mtime_ns"] == about.st_mtime_ns
    return bool(unchanged or known["sha256"] == sha256_of(path))


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
