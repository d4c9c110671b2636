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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ccdstream import NOTICE, __version__
from ccdstream.alert import LIMITS, Alert, AlertRule, AlertTracker, hottest_region
from ccdstream.bundle import Bundle
from ccdstream.decode import VideoSource, refuse_picture
from ccdstream.deid import BurnedIn, Deidentifier, deidentified, find_burned_in
from ccdstream.doctor import versions
from ccdstream.engine.select import SelectedEngine
from ccdstream.errors import OutputError, VideoOpenError, show_path
from ccdstream.frames import Fused
from ccdstream.history import HISTORY_GAP_S
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
from ccdstream.report.batch_page import PAGE_NAME
from ccdstream.report.coco import Predictions, coco_predictions
from ccdstream.report.files import Lock, Together, lock_path, make_folder, refuse_existing
from ccdstream.report.gallery import Gallery
from ccdstream.report.page import write_page
from ccdstream.report.scores import ScoresCsv, ScoresWriter
from ccdstream.score import Scorer
from ccdstream.videos import (
    COPIED,
    VIDEO_NAME,
    Made,
    VideoKind,
    Videos,
    make_videos,
    videos_there,
)
from ccdstream.view import Profile

if TYPE_CHECKING:
    from ccdstream.gpu.score import DeviceScorer

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
        return [self.path(ending) for ending in self.endings(options)]

    def endings(self, options: RunOptions) -> list[str]:
        """What follows `STEM.` in their names."""
        endings = ["alerts.jsonl", "alerts.csv", "alerts.vtt", "alerts.edl", "scores.csv"]
        endings += ["run.json", "report.html"]
        endings += [FORM_ENDINGS[form] for form in sorted(options.also)]
        if options.video in ("overlay", "side-by-side"):
            endings.append(f"{options.video}.mp4")
        return endings

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
            `names`, but by the names of their recordings, or by pseudonyms of another key; or a
            batch with names was at work there, even if it left no result but folders.
    """
    for file in sorted(folder.rglob("*")):
        match = _RESULT_NAME.fullmatch(file.name) or VIDEO_NAME.fullmatch(file.name)
        named = match is not None and match[1] not in names and file.name != PAGE_NAME
        if named or (file.name == "batch.json" and _is_deidentified(file) is False):
            raise OutputError(
                f"{show_path(folder)} holds results that are not called by pseudonyms of "
                f"{show_path(names.path)}, such as {show_path(file.name)}: choose an empty "
                "--output."
            )


def refuse_pseudonyms(folders: Iterable[Path]) -> None:
    """Stop before results with names come to lie beside de-identified ones.

    Raises:
        OutputError: one of `folders` holds results of a run with `deid`.
    """
    for folder in filter(os.path.isdir, folders):
        for file in sorted([*folder.glob("*.run.json"), *folder.glob("batch.json")]):
            if _is_deidentified(file):
                raise OutputError(
                    f"{show_path(folder)} holds de-identified results, as "
                    f"{show_path(file.name)} says: add --deid, or choose another --output."
                )


def _is_deidentified(record: Path) -> bool | None:
    """Whether a run.json or batch.json is of a run with `deid`; None where it does not say."""
    try:
        deid = json.loads(record.read_text(encoding="utf-8"))["options"]["deid"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return deid if isinstance(deid, bool) else None


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
    empty_s: float = 0.0
    """Between these, in gaps that hold no frame."""
    wall_s: float = 0.0
    interrupted: bool = False
    changed: bool = False
    """Whether the recording was written to meanwhile."""
    alerts: list[Alert] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What else people should know."""
    deid: dict[str, Any] | None = None
    """What --deid took away, as run.json says it; None without."""
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
    if options.deid and (options.keep_metadata or options.video in COPIED):
        raise ValueError("deid takes away what copies and keep_metadata keep")
    settle()
    scorer = make_scorer(engine)
    gpu = None if isinstance(scorer, Scorer) else scorer.place.index
    _refuse(path, files, options)
    with VideoSource(path, start_s=options.start_s, end_s=options.end_s, decode_on=gpu) as source:
        refuse_picture(source)
        began_as = _stamp(path)
        this = _Run(path, files, bundle, engine, options, alias, source, gpu, RunResult(files))
        result = this.result
        with _outputs(path, files, options) as outputs:
            with this.tables(outputs) as tables, this.videos(outputs) as videos:
                gallery = this.analyse(scorer, tables, videos, stopped, on_progress, on_alert)
                this.finish(videos)
            result.warnings += videos.warnings
            result.notes += videos.notes
            outputs.remove_earlier_clips()
            result.warnings += outputs.stale()
            result.outputs = list(outputs.places)
            result.wall_s = time.perf_counter() - started
            found = _fingerprint(path)
            if (found["bytes"], found["mtime_ns"]) != began_as:
                result.changed = True
                result.warnings.append("the recording changed while it was analysed: run it again")
            this.report(found, outputs, videos, gallery)
    return result


def _refuse(path: Path, files: OutputFiles, options: RunOptions) -> None:
    """Stop before any work where a result would take the place of the recording, or of another
    that may not be replaced.

    Raises:
        OutputError: one would.
    """
    for file in files.all(options):
        _refuse_input(file, path)
    if not options.overwrite:
        for file in files.there(options):
            refuse_existing(file)


def _refuse_input(file: Path, path: Path) -> None:
    if file.absolute() == path.absolute():
        raise OutputError(f"{show_path(file)} is the input itself. Choose another --output.")


# -- the files -------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Outputs:
    """The files of a run in the making, and those of the run before it."""

    path: Path
    """Of the recording."""
    files: OutputFiles
    options: RunOptions
    together: Together
    earlier: dict[str, int]
    """What the run before left, by its run.json: names and bytes."""
    places: dict[Path, Path] = field(default_factory=dict)
    """Where each is written, by where it will appear."""
    removed: set[Path] = field(default_factory=set)
    """What vanishes when they appear."""

    def place(self, ending: str) -> Path:
        """Where to write what will be called `STEM.ENDING`."""
        file = self.files.path(ending)
        if file not in self.places:
            _refuse_input(file, self.path)
            # run.json comes last: once it has its name, so have the others
            self.places[file] = self.together.place(file, last=ending == "run.json")
        return self.places[file]

    def remove_earlier_clips(self) -> None:
        """Have those vanish that the run before left, and this one does not replace: a clip that
        stays beside those of other alerts would pass for one of them."""
        if self.options.video != "clips" or not self.options.overwrite:
            return
        for file in videos_there(self.files.folder, self.files.stem, "clips"):
            if file not in self.places and self.earlier.get(file.name) == _size(file):
                self.together.remove(file)
                self.removed.add(file)

    def stale(self) -> list[str]:
        """Warnings of what stays there of runs before."""
        videos = videos_there(self.files.folder, self.files.stem)
        forms = [self.files.path(FORM_ENDINGS[form]) for form in get_args(Form)]
        there = [*videos, *(file for file in forms if file.exists())]
        stale = [file for file in there if file not in self.places and file not in self.removed]
        what = "is of an earlier run: it may show other results than these, and can be removed"
        return [f"{show_path(file.name)} {what}" for file in stale]

    def sizes(self) -> dict[str, int]:
        """Bytes of those that are written, by name."""
        return {
            file.name: place.stat().st_size for file, place in self.places.items() if place.exists()
        }


@contextmanager
def _outputs(path: Path, files: OutputFiles, options: RunOptions) -> Iterator[_Outputs]:
    """The files of a run, which appear together when the block is left without an error.

    Raises:
        OutputError: one cannot be written, or another process is writing it.
    """
    make_folder(files.folder)
    busy = f"another process is analysing into {show_path(files.path('*'))}. Wait for it to end."
    with (
        Lock(lock_path(files.folder, files.stem), busy),
        Together(overwrite=options.overwrite) as together,
    ):
        earlier = _left_by(files.path("run.json"))
        outputs = _Outputs(path, files, options, together, earlier)
        for ending in files.endings(options):
            outputs.place(ending)
        yield outputs


@dataclass(frozen=True, slots=True)
class _Tables:
    """The files that grow with frames and alerts."""

    scores: list[ScoresWriter]
    alerts: list[AlertWriter]
    coco: Predictions | None


# -- one run, in the order of its parts ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Run:
    """What the parts of a run share."""

    path: Path
    files: OutputFiles
    bundle: Bundle
    engine: SelectedEngine
    options: RunOptions
    alias: Alias | None
    source: VideoSource
    gpu: int | None
    """Whose decoder and encoder may be used."""
    result: RunResult
    watch: StopWatch = field(default_factory=StopWatch)

    @contextmanager
    def tables(self, outputs: _Outputs) -> Iterator[_Tables]:
        """What frames and alerts are written to; whole when the block is left without an error."""
        place, source = outputs.place, self.source
        alerts: list[AlertWriter] = [
            kind(place(ending), time_base=source.time_base)
            for kind, ending in (
                (AlertsJsonl, "alerts.jsonl"),
                (AlertsCsv, "alerts.csv"),
                (AlertsVtt, "alerts.vtt"),
            )
        ]
        alerts.append(
            AlertsEdl(
                place("alerts.edl"),
                time_base=source.time_base,
                rate=source.average_rate,
                clip=self.path.name if self.alias is None else self.alias.name,
            )
        )
        scores: list[ScoresWriter] = [ScoresCsv(place("scores.csv"), parts=self.bundle.parts)]
        if "parquet" in self.options.also:
            scores.append(
                parquet.ScoresParquet(
                    place(FORM_ENDINGS["parquet"]),
                    parts=self.bundle.parts,
                    model=self.bundle.model_id,
                    time_base=source.time_base,
                )
            )
        with ExitStack() as stack:
            for each in alerts:
                stack.enter_context(each)
            for table in scores:
                stack.enter_context(table)
            coco = None
            if "coco" in self.options.also:
                written = place(FORM_ENDINGS["coco"])
                coco = stack.enter_context(
                    coco_predictions(written, stem=self.files.stem, size=source.size)
                )
            yield _Tables(scores, alerts, coco)

    def videos(self, outputs: _Outputs) -> Videos:
        """What makes the videos."""
        options, source = self.options, self.source
        made = Made(
            source,
            self.bundle,
            options.start_s,
            options.end_s,
            sound=not options.deid,
            metadata=source.metadata if options.keep_metadata else None,
            gpu=self.gpu,
            place=outputs.place,
        )
        return make_videos(options.video, made)

    def analyse(
        self,
        scorer: "Scorer | DeviceScorer",
        tables: _Tables,
        videos: Videos,
        stopped: Callable[[], bool],
        on_progress: Callable[[Progress], None],
        on_alert: Callable[[Alert, VideoSource], None],
    ) -> Gallery:
        """Take every frame through the pipeline, and into the files; gives pictures for the
        report."""
        bundle, source, result, watch = self.bundle, self.source, self.result, self.watch

        def frame_done(judged: Judged, fused: Fused, state: str) -> None:
            seconds, pts, parts = judged.seconds, judged.frame.pts, judged.scored.parts
            if result.frames == 0:
                result.first_s = seconds
            elif seconds - result.last_s > HISTORY_GAP_S:
                result.empty_s += seconds - result.last_s
            for writer in tables.scores:
                writer.write(result.frames, pts, seconds, fused, state, parts)
            if tables.coco is not None and fused.informative:
                with watch.measure("coco"):
                    hottest = hottest_region(fused.heat, judged.field)
                    box = None if hottest is None else hottest.box
                    tables.coco.write(result.frames, fused.smoothed, box)
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
            for writer in tables.alerts:
                writer.write(alert)
            on_alert(alert, source)

        route = route_of(source, bundle, scorer, self.options.batch, stopped, watch)
        burned_in: BurnedIn | None = None
        if self.options.deid:
            burned_in = self._burned_in(stopped)
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
            result.deid = burned_in.as_dict()
        return gallery

    def _burned_in(self, stopped: Callable[[], bool]) -> BurnedIn:
        with self.watch.measure("burned_in"):
            return find_burned_in(
                self.source,
                Profile.from_dict(self.bundle.profile),
                start_s=self.options.start_s,
                end_s=self.options.end_s,
                stopped=stopped,
            )

    def finish(self, videos: Videos) -> None:
        """Let the videos know the alerts, and where the analysis ended if that was early."""
        shown_s = float(self.source.last_duration * self.source.time_base)
        until_s = self.result.last_s + shown_s if self.result.interrupted else None
        with self.watch.measure("finish"):
            videos.finish(self.result.alerts, until_s)

    def report(
        self,
        fingerprint: dict[str, Any],
        outputs: _Outputs,
        videos: Videos,
        gallery: Gallery,
    ) -> None:
        """Write report.html, and run.json, which names all the others."""
        record = {
            **_record(
                self.path,
                fingerprint,
                self.source,
                self.bundle,
                self.engine,
                self.options,
                self.result,
                self.watch,
            ),
            "video": _video_record(self.source, videos),
            "overlay_offset_s": videos.offset_s,
            "deid": self.result.deid,
        }
        if self.alias is not None:
            _rename(record, self.alias)
        write_page(
            outputs.place("report.html"),
            record,
            self.result.alerts,
            gallery,
            video=videos.whole if videos.playable else None,
            abreast=2 if self.options.video == "side-by-side" else 1,
            clips_play=videos.playable,
        )
        record["output_bytes"] = outputs.sizes()
        write_audit(outputs.place("run.json"), record)


def _left_by(audit: Path) -> dict[str, int]:
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
        "alert_limits": LIMITS,
        "counts": {
            "frames": result.frames,
            "informative_frames": result.informative_frames,
            "uninformative_by_reason": {
                reason: result.uninformative[reason] for reason in QUALITY_FLAGS
            },
            "alerts": len(result.alerts),
            **source.problems.as_dict(),
        },
        "stream": {
            "first_s": result.first_s,
            "last_s": result.last_s,
            "empty_s": result.empty_s,
        },
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


def _video_record(source: VideoSource, videos: Videos) -> dict[str, Any]:
    """What run.json says of the videos."""
    return {
        "decoder": source.decoder,
        "decoder_notes": source.notes,
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
    if record["video"]["decoder_notes"]:
        record["video"]["decoder_notes"] = ["notes are left out: they may name the recording"]


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
    try:
        digest = sha256_of(path)
    except OSError as error:
        raise _gone(path, error) from error
    size, changed = _stamp(path)  # afterwards: a change while it was hashed shows
    return {"bytes": size, "mtime_ns": changed, "sha256": digest}


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
