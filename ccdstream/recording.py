"""One recording in, its results out: all of them whole, or none.

`run` opens what the pipeline works on, and leaves beside the video what `report` writes.
"""

import hashlib
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ccdstream import NOTICE, __version__
from ccdstream.alert import Alert, AlertRule, AlertTracker, hottest_region
from ccdstream.bundle import Bundle
from ccdstream.decode import VideoSource
from ccdstream.deid import BurnedIn, Deidentifier, deidentified, find_burned_in
from ccdstream.doctor import versions
from ccdstream.engine.select import SelectedEngine
from ccdstream.errors import OutputError, VideoOpenError, show_path
from ccdstream.frames import Fused
from ccdstream.pipeline import Judged, StopWatch, analyse, make_fuser, make_scorer, route_of
from ccdstream.process import settle
from ccdstream.pseudonym import Alias, NameMap
from ccdstream.quality import FLAGS as QUALITY_FLAGS
from ccdstream.render import with_heat
from ccdstream.report import parquet
from ccdstream.report.alerts import (
    AlertsCsv,
    AlertsEdl,
    AlertsJsonl,
    AlertsVtt,
    AlertWriter,
)
from ccdstream.report.audit import write_audit
from ccdstream.report.coco import Predictions, coco_predictions
from ccdstream.report.files import Lock, Together, lock_path, refuse_existing
from ccdstream.report.gallery import Gallery
from ccdstream.report.page import write_page
from ccdstream.report.scores import ScoresCsv, ScoresWriter
from ccdstream.score import Scorer
from ccdstream.videos import VIDEO_NAME, Made, VideoKind, make_videos, videos_there
from ccdstream.view import Profile

Form = Literal["parquet", "coco"]
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
        """Every file that a run writes, whatever it finds. What `chapters` and `clips` are called,
        and how many there are, the recording decides: `RunResult.outputs` has them."""
        endings = ["alerts.jsonl", "alerts.csv", "alerts.vtt", "alerts.edl", "scores.csv"]
        endings += ["run.json", "report.html"]
        endings += [FORM_ENDINGS[form] for form in sorted(options.also)]
        if options.video in ("overlay", "side-by-side"):
            endings.append(f"{options.video}.mp4")
        return [self.path(ending) for ending in endings]

    def there(self, options: RunOptions) -> list[Path]:
        """The files that are there already of those that a run may write."""
        fixed = [file for file in self.all(options) if os.path.lexists(file)]
        videos = videos_there(self.folder, self.stem, options.video)
        return fixed + [file for file in videos if file not in fixed]


_RESULT_NAME = re.compile(
    r"(.+)\.(?:alerts\.(?:jsonl|csv|vtt|edl)|scores\.csv|run\.json|report\.html|"
    rf"{'|'.join(map(re.escape, FORM_ENDINGS.values()))})",
    re.DOTALL,
)


def refuse_other_names(folder: Path, names: NameMap) -> None:
    """Stop before results without names come to lie beside others in one folder.

    Raises:
        OutputError: in `folder` or below it are results that are not called by pseudonyms of
            `names`, but by the names of their recordings, or by pseudonyms of another key.
    """
    for file in sorted(folder.rglob("*")):
        match = _RESULT_NAME.fullmatch(file.name) or VIDEO_NAME.fullmatch(file.name)
        if match is not None and match[1] not in names:
            raise OutputError(
                f"{show_path(folder)} holds results that are not called by pseudonyms of "
                f"{show_path(names.path)}, such as {show_path(file.name)}: choose an empty "
                "--output."
            )


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
    notes: list[str] = field(default_factory=list)
    """What else people should know."""
    outputs: list[Path] = field(default_factory=list)
    """The files that it left."""


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
        for file in files.there(options):
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
        earlier = _outputs_of(audit)
        places: dict[Path, Path] = {}

        def place(file: Path) -> Path:
            if file not in places:
                if file.absolute() == source_path:
                    raise OutputError(
                        f"{show_path(file)} is the input itself. Choose another --output."
                    )
                # run.json comes last: once it has its name, so have the others
                places[file] = results.place(file, last=file == audit)
            return places[file]

        for file in files.all(options):
            place(file)
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
                written = places[files.path(FORM_ENDINGS["coco"])]
                coco = stack.enter_context(
                    coco_predictions(written, stem=files.stem, size=source.size)
                )
            made = Made(
                source,
                bundle,
                options.start_s,
                options.end_s,
                sound=not options.deid,
                metadata=source.metadata if options.keep_metadata else None,
                gpu=gpu,
                place=lambda ending: place(files.path(ending)),
            )
            videos = stack.enter_context(make_videos(options.video, made))

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
                overlay=videos.overlay,
                sink=videos.sink,
                on_frame=frame_done,
                on_alert=alert_closed,
                watch=watch,
                gallery=gallery,
            )
            result.interrupted = stopped()
            result.warnings = source.problems.sentences()
            if burned_in is not None:
                result.warnings += burned_in.warnings()
            shown_s = float(source.last_duration * source.time_base)
            with watch.measure("finish"):
                videos.finish(
                    result.alerts, result.last_s + shown_s if result.interrupted else None
                )
        result.warnings += videos.warnings
        result.notes += videos.notes
        stale = [f for f in videos_there(files.folder, files.stem) if f not in places]
        if options.video == "clips" and options.overwrite:
            # a clip that stays beside those of other alerts would pass for one of them
            clips = videos_there(files.folder, files.stem, "clips")
            gone = [f for f in stale if f in clips and earlier.get(f.name) == _size(f)]
            for file in gone:
                results.remove(file)
            stale = [file for file in stale if file not in gone]
        forms = [files.path(FORM_ENDINGS[form]) for form in get_args(Form)]
        stale += [file for file in forms if file not in places and file.exists()]
        result.warnings += [f"{show_path(file.name)} is of an earlier run" for file in stale]
        result.outputs = list(places)
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
            "encoder": videos.encoder,
            "encoder_note": videos.encoder_note,
            "notes": videos.notes,
            "clips": [
                {
                    "alert": clip.alert,
                    "file": clip.file.name,
                    "offset_s": clip.offset_s,
                    "end_s": clip.end_s,
                }
                for clip in videos.clips
            ],
        }
        record["overlay_offset_s"] = videos.offset_s
        record["deid"] = None if burned_in is None else burned_in.as_dict()
        write_page(
            places[files.path("report.html")],
            record,
            result.alerts,
            gallery,
            video=videos.whole if videos.playable else None,
            abreast=2 if options.video == "side-by-side" else 1,
            clips={clip.alert: clip.file.name for clip in videos.clips},
            clips_play=videos.playable,
        )
        record["output_bytes"] = {
            file.name: place.stat().st_size for file, place in places.items() if place.exists()
        }
        write_audit(places[audit], record)
    return result


def _outputs_of(audit: Path) -> dict[str, int]:
    """The files that the run left whose run.json this is, and their sizes in bytes."""
    try:
        record = json.loads(audit.read_text(encoding="utf-8"))
        sizes = record["output_bytes"]
        return {name: sizes[name] for name in record["outputs"] if name in sizes}
    except (OSError, ValueError, KeyError, TypeError):  # it is then none that says so
        return {}


def _size(file: Path) -> int | None:
    try:
        return file.lstat().st_size
    except OSError:
        return None


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
        "outputs": [file.name for file in result.outputs],
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
