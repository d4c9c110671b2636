"""Many recordings: which there are, which are done already, and the record of what became of each.

A folder or several inputs are a batch. Each recording is a job; jobs are done in worker processes,
so that one whose decoder crashes costs itself alone. What is done is left alone, so the same
command again does what is missing, changed or failed; killed at any moment and given again, a batch
ends in the files that an undisturbed one leaves. `batch.json` says at all times what is known, and
`batch.report.html` says it to people.
"""

import json
import math
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from ccdstream import NOTICE, __version__
from ccdstream.alert import Alert
from ccdstream.bundle import Bundle
from ccdstream.cluster import Cluster, ClusterWorker, Seat
from ccdstream.engine.select import SelectedEngine
from ccdstream.errors import CcdstreamError, EngineError, OutputError, VideoOpenError, show_path
from ccdstream.pseudonym import Alias
from ccdstream.recording import OutputFiles, Progress, RunOptions, RunResult, is_of, run
from ccdstream.report.alerts import alert_record, read_alerts
from ccdstream.report.audit import SCHEMA as RUN_SCHEMA
from ccdstream.report.audit import write_audit
from ccdstream.report.batch_page import (
    PAGE_NAME,
    Glance,
    is_incomplete,
    read_glance,
    write_batch_page,
)
from ccdstream.report.files import (
    Lock,
    is_locked,
    lock_path,
    make_folder,
    refuse_existing,
    sweep,
)
from ccdstream.stills import SUFFIXES as STILL_SUFFIXES
from ccdstream.videos import VIDEO_NAME
from ccdstream.workers import (
    Died,
    Done,
    Lost,
    Raised,
    Ready,
    Stopped,
    Tell,
    Told,
    Work,
    Worker,
    Workers,
)

SCHEMA = "ccdstream.batch/1"

VIDEO_SUFFIXES = frozenset({
    ".3gp", ".asf", ".avi", ".dv", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg",
    ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv",
})  # fmt: skip
"""Which files of a folder are recordings. A file that is named itself may be called anything."""

RESULTS_SUFFIX = ".ccdstream"
"""Of a folder that holds results, if nobody names another."""

SEVERAL = Path("ccdstream-results")
"""Where the results of several inputs go, if nobody says."""

JOBS_PER_GPU = 2
"""Recordings at a time on a GPU, so that one is at work while another is opened, or its last frames
are written. More would share the same decoder. Reasoned, not measured."""

TRIES = 3
"""How often a recording is begun whose node is lost: it may be what takes the node down."""

STILL_S = 3600.0
"""How long nothing may come of a recording: a frame, or its end. Far more than it takes to hash the
largest of them: this is for a decoder that never returns, and for storage that is gone."""

_ASLEEP_S = 60.0
"""After so long between two looks at the workers the whole machine was asleep, and they with it."""

_PROGRESS_EVERY_S = 0.1
"""Between what a worker tells of how far it is."""

_PAGE_REST = 50
"""After the page was written, so many times as long passes before it is written again while the
batch is at work: it then costs two percent of this process at most, however many recordings."""

_LET_GO_S = 120.0
"""How long what a lost node had locked may stay so. Processes are gone within seconds; a server of
files waits longer before it takes a machine for dead, NFS 90 s."""


# -- which recordings there are -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Job:
    """A recording, and where its results go."""

    path: Path
    files: OutputFiles
    name: str
    """What it is called in what is said: its path below the folder that all inputs lie in."""
    alias: Alias | None = None
    """What it is called in what is written, where its name may not stand there."""


class Unusable(NamedTuple):
    """An input that cannot be analysed."""

    path: Path
    name: str
    """What it is called in what is said."""
    why: CcdstreamError


@dataclass(frozen=True, slots=True)
class Found:
    """What inputs name."""

    output: Path
    jobs: list[Job]
    unusable: list[Unusable]


def is_batch(inputs: Sequence[Path]) -> bool:
    """Whether these are a batch; else they are one recording."""
    return len(inputs) > 1 or any(os.path.isdir(path) for path in inputs)


def find_jobs(
    inputs: Sequence[Path],
    output: Path | None,
    *,
    recursive: bool,
    alias_of: Callable[[Path], Alias] | None = None,
) -> Found:
    """The jobs of a batch: in the order of the inputs, and of the names in each folder; with
    pseudonyms in the order of these: that of names would hint at who is who.

    Below `output` results lie as the recordings do below the folder that all inputs have in common.
    A recording that is named twice is one job. Two that would write the same results are unusable.

    Args:
        output: None for `INPUT.ccdstream` of a single folder, and `SEVERAL` of several inputs.
        alias_of: gives recordings pseudonyms. Results are called by them, and lie side by side: a
            folder's name can tell as much.
    """
    if output is None:
        only = Path(os.path.abspath(inputs[0])).name or "root"
        output = Path(f"{only}{RESULTS_SUFFIX}") if len(inputs) == 1 else SEVERAL
    recordings: list[Path] = []
    unusable: list[Unusable] = []
    for path in inputs:
        if not os.path.isdir(path):
            recordings.append(path)
            continue
        try:
            recordings += videos_in(path, recursive=recursive, leave_out=output)
        except VideoOpenError as error:
            unusable.append(Unusable(path, str(path), error))
    common = os.path.commonpath(
        [os.path.abspath(path if os.path.isdir(path) else path.parent) for path in inputs]
    )
    claims: dict[Path, dict[tuple[str, str], Job]] = {}  # by the results, and the recording
    for path in recordings:
        absolute = os.path.abspath(path)
        below = Path(os.path.relpath(absolute, common))
        if alias_of is None:
            job = Job(path, OutputFiles(output / below.parent, path.stem), str(below))
        else:
            alias = alias_of(path)
            job = Job(path, OutputFiles(output, alias.name), str(below), alias)
        recording = (absolute, os.path.realpath(path))  # beyond a link ".." leads elsewhere
        claims.setdefault(job.files.path("run.json"), {}).setdefault(recording, job)
    jobs: list[Job] = []
    for claim in claims.values():
        mine = list(claim.values())
        if len(mine) == 1:
            jobs += mine
            continue
        for job in mine:
            others = " and ".join(show_path(other.path) for other in mine if other is not job)
            clash = OutputError(
                f"{show_path(job.path)} would write the same results as {others}. "
                "Run them apart, with an --output each."
            )
            unusable.append(Unusable(job.path, job.name, clash))
    if alias_of is not None:
        jobs.sort(key=lambda job: job.files.stem)
    return Found(output, jobs, unusable)


def videos_in(
    folder: Path, *, recursive: bool = False, leave_out: Path | None = None
) -> list[Path]:
    """The recordings directly in a folder, or anywhere below it: no hidden files, nor what past
    runs left.

    Args:
        leave_out: a folder below `folder` that holds results.

    Raises:
        VideoOpenError: there is none, or a folder cannot be read.
    """
    results = None if leave_out is None else os.path.abspath(leave_out)
    videos: list[Path] = []
    stills = False
    folders = [folder]
    while folders:
        here = folders.pop(0)
        try:
            entries = sorted(here.iterdir())
        except OSError as error:
            raise VideoOpenError(
                f"cannot look into the folder {show_path(here)}: {error.strerror}. "
                "Check that it may be read."
            ) from error
        entries = [path for path in entries if not path.name.startswith(".")]
        made = _made_by_runs(entries)
        stills = stills or any(path.suffix.lower() in STILL_SUFFIXES for path in entries)
        videos += [
            path
            for path in entries
            if path.suffix.lower() in VIDEO_SUFFIXES
            and not VIDEO_NAME.fullmatch(path.name)
            and path.name not in made
            and not path.is_dir()  # a link to nothing is named as failed, not passed over
        ]
        if recursive:
            folders += [
                path
                for path in entries
                if path.is_dir()
                and not path.is_symlink()
                and path.suffix != RESULTS_SUFFIX
                and os.path.abspath(path) != results
            ]
    if not videos:
        where = "in it or below it" if recursive else "directly in it"
        more = "" if recursive else "; --recursive looks into its folders too"
        pictures = f" For its still images: ccdstream score {show_path(folder)} -o scores.csv"
        raise VideoOpenError(
            f"no videos in the folder {show_path(folder)}. "
            f"Expected files such as .mp4, .mkv or .avi {where}{more}." + pictures * stills
        )
    return sorted(videos) if recursive else videos


def _made_by_runs(entries: Iterable[Path]) -> set[str]:
    """Names of the files that runs left among `entries`, as their run.json say."""
    made: set[str] = set()
    for path in entries:
        if path.name.endswith(".run.json"):
            outputs = _read(path).get("outputs")
            made.update(map(str, outputs if isinstance(outputs, list) else ()))
    return made


# -- what is done already -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Wanted:
    """What results must be of to be left alone."""

    bundle: Bundle
    options: RunOptions
    device: str = "auto"
    engine: str = "auto"
    precision: str = "fp16"
    """Of the engines that take one."""


class Stored(NamedTuple):
    """What whole results say."""

    record: dict[str, Any]
    """run.json."""
    lines: list[dict[str, Any]]
    """alerts.jsonl."""
    alerts: list[Alert]
    """The same: times to the microsecond, scores to six digits."""


class Standing(NamedTuple):
    """What of a job's results is there."""

    state: Literal["none", "whole", "unfinished", "other", "foreign"]
    """whole: all of what is wanted; unfinished: of that, but not to the end, or not all of it;
    other: of another input, model, option or version; foreign: files that no run.json speaks of."""
    why: str = ""
    stored: Stored | None = None
    """Of those that are whole."""
    of_other_wishes: bool = False
    """Whether it is the model, an option or the version that is another."""


def standing(job: Job, wanted: Wanted) -> Standing:
    """Whether a job is done already. Hashes the recording only where its time has changed.

    Raises:
        VideoOpenError: the recording cannot be read.
    """
    audit = job.files.path("run.json")
    if not os.path.lexists(audit):
        there = job.files.there(wanted.options)
        return Standing("foreign", f"{show_path(there[0])} is there") if there else Standing("none")
    record = _read(audit)
    if record.get("schema") != RUN_SCHEMA:
        return Standing("other", f"{show_path(audit)} is not one of this version")
    try:
        if why := _difference(record, wanted):
            return Standing("other", why, of_other_wishes=True)
        if not _is_of(record, job):
            return Standing("other", "its results are of another recording")
        for name in record["outputs"]:
            file = job.files.folder / name
            if not file.is_file():
                return Standing("unfinished", f"{show_path(file)} is missing")
            size = record["output_bytes"].get(name)
            if size is not None and file.stat().st_size != size:
                return Standing("other", f"{show_path(file)} is not as it was left")
        if record["interrupted"]:
            return Standing("unfinished", "it was interrupted")
        if record["input"]["changed_meanwhile"]:
            return Standing("unfinished", "the recording changed while it was analysed")
    except (KeyError, TypeError, AttributeError):
        return Standing("other", f"{show_path(audit)} is not one of this version")
    told = job.files.path("alerts.jsonl")
    try:
        lines = read_alerts(told)
        stored = Stored(record, lines, [_alert_of(line) for line in lines])
    except (OSError, ValueError, KeyError):
        return Standing("other", f"{show_path(told)} is not as it was left")
    return Standing("whole", stored=stored)


def _alert_of(line: dict[str, Any]) -> Alert:
    values = {each.name: line[each.name] for each in fields(Alert) if each.name != "number"}
    if values["peak_raw"] is None:
        values["peak_raw"] = math.nan
    if values["box"] is not None:
        values["box"] = tuple(values["box"])
    return Alert(number=line["alert"], **values)


def _difference(record: dict[str, Any], wanted: Wanted) -> str:
    """What results are of that is not what is wanted, the recording aside; nothing where they are
    of just that."""
    bundle, used = wanted.bundle, record["engine"]
    if record["ccdstream"] != __version__:
        return f"its results are of ccdstream {record['ccdstream']}"
    model = record["model"]
    if (model["id"], model["files"]) != (bundle.model_id, bundle.manifest["files"]):
        return f"its results are of the model {model['id']}"
    if record["alert_rule"] != dict(bundle.alert):
        return "its results are of other alert settings"
    if other := _other_options(record["options"], wanted.options.of_results()):
        return f"its results are of other options ({other})"
    if wanted.device not in ("auto", used["device"]):
        return f"its results were computed on {used['device']}"
    if wanted.engine not in ("auto", used["name"]):
        return f"its results were computed with {used['name']}"
    if used["precision"] not in (None, wanted.precision):
        return f"its results were computed in {used['precision']}"
    return ""


def _is_of(record: dict[str, Any], job: Job) -> bool:
    """Whether results are of the recording as it is now."""
    try:
        return is_of(record["input"], job.path, job.alias)
    except OSError as error:
        raise VideoOpenError(
            f"cannot open {show_path(job.path)}: {error.strerror}. "
            "Check that it is there and readable."
        ) from error


OPTION_NAMES = {"start_s": "from", "end_s": "to"}
"""Of options that people know by another name than run.json does."""


def _other_options(there: dict[str, Any], asked: dict[str, Any]) -> str:
    """Each option that is not as asked, in the words of the command line."""
    return "; ".join(
        f"{OPTION_NAMES.get(name, name.replace('_', '-'))}: {_in_words(there.get(name))} there, "
        f"{_in_words(asked.get(name))} asked for"
        for name in {**asked, **there}
        if there.get(name) != asked.get(name)
    )


def _in_words(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case None | []:
            return "nothing"
        case float() | int():
            return f"{value:g} s"
        case list():
            return " and ".join(map(str, value))
    return str(value)


def _read(audit: Path) -> dict[str, Any]:
    """What a run.json holds; nothing where it is none."""
    try:
        record = json.loads(audit.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # it is then no record, which is what the caller asks
        return {}
    return record if isinstance(record, dict) else {}


# -- what becomes of each -------------------------------------------------------------------------


class Status(StrEnum):
    """What became of an input."""

    done = "done"
    already_done = "already_done"
    failed = "failed"
    crashed = "crashed"
    """The process that analysed it died, or was ended since nothing came of it any more."""
    interrupted = "interrupted"
    """Its input was ended early; what was analysed up to there is whole. A rerun does it again."""
    begun = "begun"
    """It had not ended when this was written."""
    not_begun = "not_begun"


@dataclass(slots=True)
class Entry:
    """An input of a batch, and what became of it."""

    path: Path
    name: str
    job: Job | None
    """None where it cannot be analysed."""
    status: Status = Status.not_begun
    reason: str = ""
    outputs: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    """What its results are to be read with."""
    replaces: str = ""
    """What the results were of that its own take the place of, where nobody asked for that."""
    stored: Stored | None = None
    """What its results say, where it was done already."""
    seconds: float | None = None
    """How long it was at work; None where it was not."""
    node: str | None = None
    """Of a cluster, where it was last begun."""
    tries: int = 0
    """How often it was begun; more than once where a node was lost."""
    glance: Glance | None = None
    """What its results say, for the page."""

    @property
    def incomplete(self) -> bool:
        """Whether it is done, but its recording breaks off or is not all that its file holds."""
        return is_incomplete(self.status.value, self.counts)

    def take_in(self, job: Job) -> None:
        """Take outputs, counts, warnings and what the page shows from what the run left."""
        record = _read(job.files.path("run.json"))
        self.outputs = list(record.get("outputs", ()))
        self.counts = dict(record.get("counts", {}))
        self.warnings = list(record.get("warnings", ()))
        scores, alerts = job.files.path("scores.csv"), job.files.path("alerts.jsonl")
        self.glance = read_glance(scores, alerts, record)


@dataclass(slots=True)
class Ledger:
    """What is known of every input, and `batch.json` and the page, where it can be read."""

    output: Path
    wanted: Wanted
    entries: list[Entry]
    page_name: str = PAGE_NAME
    ended: bool = False

    def count(self) -> Counter[str]:
        """How many inputs have each status."""
        return Counter(entry.status.value for entry in self.entries)

    @property
    def failed(self) -> bool:
        """Whether an input failed or crashed."""
        return any(entry.status in (Status.failed, Status.crashed) for entry in self.entries)

    @property
    def path(self) -> Path:
        """Where `batch.json` lies."""
        return self.output / "batch.json"

    @property
    def page(self) -> Path:
        """Where the page for people lies."""
        return self.output / self.page_name

    def write(self) -> None:
        """Write `batch.json` anew, whole.

        Raises:
            OutputError: it cannot be written.
        """
        write_audit(self.path, self._record(), schema=SCHEMA, overwrite=True)

    def write_page(self) -> None:
        """Write the page for people anew, whole.

        Raises:
            OutputError: it cannot be written.
        """
        write_batch_page(self.page, self._record(), [entry.glance for entry in self.entries])

    def _record(self) -> dict[str, Any]:
        """What `batch.json` says, and the page."""
        count = self.count()
        return {
            "notice": NOTICE,
            "ccdstream": __version__,
            "command": [] if self.wanted.options.deid else sys.argv[1:],
            "page": self.page_name,
            "model": self.wanted.bundle.model_id,
            "options": self.wanted.options.of_results(),
            "ended": self.ended,
            "counts": {status.value: count[status.value] for status in Status},
            "inputs": [self._row(entry) for entry in self.entries],
        }

    def _row(self, entry: Entry) -> dict[str, Any]:
        folder = None
        if entry.job is not None:
            folder = Path(os.path.relpath(entry.job.files.folder, self.output)).as_posix()
        called, name, reason = str(entry.path), entry.name, entry.reason
        if self.wanted.options.deid:
            alias = None if entry.job is None else entry.job.alias
            called = name = "-" if alias is None else alias.name
            if reason and entry.status not in (Status.crashed, Status.interrupted):
                reason = (
                    "reason withheld here, as it may name the recording; it was printed on the "
                    "terminal"
                )
        return {
            "input": called,
            "name": name,
            "folder": folder,
            "status": entry.status.value,
            "reason": reason,
            "outputs": entry.outputs,
            "counts": entry.counts,
            "warnings": entry.warnings,
            "seconds": entry.seconds,
            "node": entry.node,
            "tries": entry.tries,
        }


# -- doing it -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker is to open the model."""

    gpu: int = 0
    threads: int | None = None
    """Of a CPU; None for all."""
    first: bool = True
    """Whether it is the first worker, which says what there is to say."""
    seat: Seat | None = None
    """On a node of a cluster."""


OpenModel = Callable[[Place], tuple[Bundle, SelectedEngine]]
"""Opens the model in a worker process; must be picklable."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What a worker computes with."""

    engine: str
    device: str


class Watcher(Protocol):
    """Is told what happens, one thing at a time, in the caller's thread."""

    def opened(self, opened: Opened, at_a_time: int) -> None:
        """The model is open, and so many recordings are analysed at a time."""

    def progressed(self, entry: Entry, progress: Progress) -> None:
        """So far is one that is at work."""

    def alert(self, entry: Entry, record: dict[str, Any]) -> None:
        """An alert has closed; `record` as in alerts.jsonl."""

    def ended(self, entry: Entry, result: RunResult | None) -> None:
        """An input is done, was already, or came to nothing: the last two without a result."""

    def warn(self, text: str) -> None:
        """Something else that people should know."""

    def stopping(self) -> None:
        """The inputs are being ended early."""


def run_batch(
    found: Found,
    wanted: Wanted,
    open_model: OpenModel,
    *,
    jobs: int | None,
    watcher: Watcher,
    stopped: Callable[[], bool],
    gpus: Callable[[], int] = lambda: 1,
    cluster: Cluster | None = None,
) -> Ledger:
    """Do the jobs that are not done already, each in one of a few worker processes.

    Args:
        jobs: recordings at a time; None for 1 on a CPU and `JOBS_PER_GPU` on each GPU.
        cluster: where the workers are; None for this machine. What was at work on a node that is
            lost is begun again on another, `TRIES` times in all.
        stopped: once it says so, open jobs are finished with what they have, and no other begins.
        gpus: how many GPUs there are, asked where one is used.

    Raises:
        OutputError: the results' folder cannot be written, or another batch is at work in it.
        EngineError, BundleError: the model cannot be opened.
    """
    busy = (
        f"another run is at work in {show_path(found.output)}. "
        "Wait for it, or choose another --output."
    )
    with ExitStack() as held:
        if cluster is not None and not os.path.lexists(found.output / "batch.json"):
            held.enter_context(cluster.joined())  # where it cannot be, nothing is left behind
        make_folder(found.output)
        held.enter_context(Lock(batch_lock(found.output), busy))
        for folder in sorted({job.files.folder for job in found.jobs}):
            sweep(folder)
        entries = [
            *(Entry(each.path, each.name, None, Status.failed, str(each.why))
              for each in found.unusable),
            *(Entry(job.path, job.name, job) for job in found.jobs),
        ]  # fmt: skip
        ledger = Ledger(found.output, wanted, entries, _place_of_page(found))
        for entry in ledger.entries:
            if entry.job is not None:
                _look(entry, entry.job, wanted)
            if entry.status is not Status.not_begun:
                watcher.ended(entry, None)
        ledger.write()  # before any work: it shows that the folder can be written
        ledger.write_page()
        try:
            _Batch(ledger, open_model, watcher, jobs, gpus, stopped, cluster).run()
        finally:
            ledger.ended = True
            for entry in ledger.entries:
                if entry.status is Status.begun:
                    entry.status, entry.reason = Status.not_begun, "given up: nothing of it is left"
            ledger.write()
            ledger.write_page()
    return ledger


def batch_lock(output: Path) -> Path:
    """What a batch holds while it is at work in `output`."""
    return output / ".ccdstream.lock"


def _place_of_page(found: Found) -> str:
    """What the page of a batch is called: not as the report of a recording that is itself called
    "batch", in this batch or an earlier run. A page that an earlier batch left under another name
    goes.

    Raises:
        OutputError: it cannot be removed.
    """
    output = found.output
    stems = {job.files.stem.casefold() for job in found.jobs if job.files.folder == output}

    def is_report(name: str) -> bool:
        stem = name.removesuffix(".report.html")
        return stem.casefold() in stems or os.path.lexists(output / f"{stem}.run.json")

    others = (f"batch-{number}.report.html" for number in count(2))
    page = next(name for name in chain([PAGE_NAME], others) if not is_report(name))
    left = _read(output / "batch.json").get("page")
    if (
        isinstance(left, str)
        and left != page
        and left == Path(left).name
        and left.endswith(".report.html")
        and not os.path.lexists(output / f"{left.removesuffix('.report.html')}.run.json")
    ):
        try:
            (output / left).unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot remove {show_path(output / left)}, the page of an earlier batch: "
                f"{error.strerror}. Check that the folder is writable, or choose another --output."
            ) from error
    return page


def _look(entry: Entry, job: Job, wanted: Wanted) -> None:
    """Take in what of a job is there."""
    if wanted.options.overwrite:
        return
    try:
        found = standing(job, wanted)
        if found.state == "foreign":
            for file in job.files.there(wanted.options):
                refuse_existing(file)
    except CcdstreamError as error:
        entry.status, entry.reason = Status.failed, str(error)
        return
    entry.reason = found.why
    if found.of_other_wishes:
        entry.replaces = found.why
    if found.state == "whole":
        entry.status, entry.stored = Status.already_done, found.stored
        entry.take_in(job)


AnyWorker = Worker | ClusterWorker


class _Batch:
    """The jobs of a batch on their way through the workers."""

    def __init__(
        self,
        ledger: Ledger,
        open_model: OpenModel,
        watcher: Watcher,
        jobs: int | None,
        gpus: Callable[[], int],
        stopped: Callable[[], bool],
        cluster: Cluster | None,
    ) -> None:
        self._ledger = ledger
        self._open_model = open_model
        self._watcher = watcher
        self._jobs = jobs
        self._gpus = gpus
        self._stopped = stopped
        self._waiting = deque(e for e in ledger.entries if e.status is Status.not_begun)
        self._options = ledger.wanted.options
        self._cluster = cluster
        self._workers: Workers | Cluster = cluster or Workers()
        self._began: dict[AnyWorker, float] = {}
        self._heard: dict[AnyWorker, float] = {}
        self._looked = time.monotonic()
        self._page_due = 0.0
        self._places: dict[AnyWorker, Place] = {}
        self._idle: set[AnyWorker] = set()  # could do a task
        self._spare: deque[Seat] = deque()
        self._losses: Counter[Seat] = Counter()
        self._opened: Opened | None = None
        self._stopping = False
        self._left_out: set[str] = set()

    def run(self) -> None:
        """Do all that wait, or those that are begun until the caller says that it is enough."""
        if not self._waiting:
            return
        with self._workers:
            self._begin()
            while self._began or (self._workers.alive and self._waiting and not self._stopped()):
                if self._stopped() and not self._stopping:
                    self._stopping = True
                    self._watcher.stopping()
                    for worker in self._workers.alive:
                        worker.stop()
                for worker, event in self._workers.events():
                    self._heard[worker] = time.monotonic()
                    self._take_in(worker, event)
                self._end_what_stands_still()
        while self._waiting and not self._stopped():
            entry = self._waiting.popleft()
            entry.status, entry.reason = Status.failed, "no worker was left to analyse it"
            self._watcher.ended(entry, None)

    def _begin(self) -> None:
        if self._cluster is None:
            threads = _share_of_cores(min(self._jobs or 1, len(self._waiting)))
            self._start(Place(threads=threads))
            return
        number = len(self._waiting)
        seats, spare = self._cluster.seats(
            None if self._jobs is None else min(self._jobs, number),
            device=self._ledger.wanted.device,
            per_gpu=JOBS_PER_GPU,
        )
        self._spare.extend([*seats[number:], *spare])
        for seat in seats[:number]:
            self._sit(seat)

    def _sit(self, seat: Seat) -> None:
        """Start a worker on a node. Ray shows it no GPU but its own, so that is number 0."""
        self._start(Place(threads=None if seat.gpus else seat.cpus, first=False, seat=seat))

    def _start(self, place: Place) -> None:
        setup = _Setup(self._open_model, self._options, place)
        worker: AnyWorker
        if isinstance(self._workers, Cluster):
            assert place.seat is not None, "every place of a cluster is on a node"
            away = Away(
                base=Path.cwd(),
                lock=Path(os.path.abspath(batch_lock(self._ledger.output))),
                version=__version__,
                model=self._ledger.wanted.bundle.model_id,
                command=tuple(sys.argv[1:]),
            )
            worker = self._workers.add(replace(setup, away=away), place.seat)
        else:
            worker = self._workers.add(setup)
        self._places[worker] = place

    def _take_in(self, worker: AnyWorker, event: Any) -> None:
        if worker.task is None:
            self._take_in_idle(worker, event)
            return
        entry = self._entry(worker.task)
        match event:
            case Told():
                if isinstance(event.what, Progress):
                    self._watcher.progressed(entry, event.what)
                else:
                    self._watcher.alert(entry, event.what)
            case Done():
                self._end(worker, entry, event.result)
                self._give(worker)
            case Raised():
                if event.error is None:
                    self._watcher.warn(event.trace.rstrip())
                reason = str(event.error or f"a bug: {event.trace.strip().splitlines()[-1]}")
                if entry.node is not None:
                    reason = f"on {entry.node}: {reason}"
                self._end(worker, entry, Status.failed, reason)
                if isinstance(event.error, EngineError):  # a GPU that failed once fails again
                    self._retire(worker)
                    self._replace(worker)
                else:
                    self._give(worker)
            case Died():
                reason = f"the process that analysed it {event.how}"
                self._end(worker, entry, Status.crashed, reason)
                self._replace(worker)
            case Lost():
                self._begin_elsewhere(worker, entry, event)
                self._after_loss(worker)

    def _end_what_stands_still(self) -> None:
        """End the process of a recording of which nothing has come for too long."""
        now = time.monotonic()
        if now - self._looked > _ASLEEP_S:
            self._heard.update(dict.fromkeys(self._began, now))
        self._looked = now
        for worker, began in list(self._began.items()):
            if now - max(began, self._heard.get(worker, began)) < STILL_S:
                continue
            entry = self._entry(worker.task)
            self._retire(worker)
            reason = f"nothing came of it for {STILL_S / 60:.0f} minutes: its process was ended"
            self._end(worker, entry, Status.crashed, reason)
            self._replace(worker)

    def _begin_elsewhere(self, worker: AnyWorker, entry: Entry, event: Lost) -> None:
        """The node of a recording is lost, which says nothing of the recording."""
        if entry.tries >= TRIES:
            reason = f"{event.how}, as with each of {TRIES} tries"
            self._end(worker, entry, Status.crashed, reason)
            return
        entry.seconds = time.monotonic() - self._began.pop(worker)
        entry.status, entry.reason = Status.not_begun, event.how
        self._waiting.appendleft(entry)
        self._watcher.warn(f"warning: {show_path(entry.name)} is begun again: {event.how}")
        self._write()

    def _after_loss(self, worker: AnyWorker) -> None:
        """Put to work who can be, in the stead of one that was lost."""
        self._idle.discard(worker)
        seat = self._places.pop(worker).seat
        assert self._cluster is not None and seat is not None, "nobody else is ever lost"
        self._losses[seat] += 1
        if self._losses[seat] < TRIES and self._cluster.has(seat):
            self._spare.append(seat)
        self._put_to_work()

    def _put_to_work(self) -> None:
        for worker in list(self._idle):
            self._give(worker)
        while self._spare and len(self._places) - len(self._began) < len(self._waiting):
            self._sit(self._spare.popleft())

    def _take_in_idle(self, worker: AnyWorker, event: Any) -> None:
        match event:
            case Ready():
                if self._opened is None:
                    self._open_others(event.about, self._places[worker])
                if event.about == self._opened:
                    self._give(worker)
                else:  # results must not depend on which worker had the recording
                    self._retire(worker)
                    self._leave_out(worker, f"it would compute with {event.about.engine}")
            case Told():
                self._watcher.warn(event.what)
            case Lost() if worker in self._idle:
                self._after_loss(worker)
            case Raised() | Died() | Lost() if worker in self._places:  # not after an error told
                self._not_opened(worker, event)

    def _open_others(self, opened: Opened, first: Place) -> None:
        self._opened = opened
        if self._cluster is not None:  # where all have begun to open it
            self._watcher.opened(opened, len(self._places))
            return
        gpus = self._gpus() if opened.device == "cuda" else 1
        usual = JOBS_PER_GPU * gpus if opened.device == "cuda" else 1
        at_a_time = min(self._jobs or usual, len(self._waiting))
        self._watcher.opened(opened, at_a_time)
        for number in range(1, at_a_time):
            self._start(Place(number % gpus, first.threads, first=False))

    def _give(self, worker: AnyWorker) -> None:
        self._idle.add(worker)
        if not self._waiting or self._stopped():
            return
        self._idle.discard(worker)
        entry = self._waiting.popleft()
        entry.status, entry.reason = Status.begun, ""
        entry.tries += 1
        seat = self._places[worker].seat
        entry.node = None if seat is None else seat.node
        self._began[worker] = time.monotonic()
        self._write()
        worker.give(entry.job)

    def _retire(self, worker: AnyWorker) -> None:
        self._workers.retire(worker)  # type: ignore[arg-type]  # each is of its own kind

    def _replace(self, worker: AnyWorker) -> None:
        place = self._places.pop(worker)
        if self._waiting and not self._stopped() and self._opened is not None:
            self._start(replace(place, first=False))

    def _not_opened(self, worker: AnyWorker, event: Raised | Died | Lost) -> None:
        """A worker could not open the model: nobody can if it is the only one, else one fewer
        does."""
        if isinstance(event, Raised) and event.error is None:
            raise RuntimeError(f"in a worker process:\n{event.trace}")
        match event:
            case Raised():
                why = str(event.error)
            case Died():
                why = f"the process {event.how}"
            case Lost():
                why = event.how
        seat = self._places[worker].seat
        if self._opened is None and len(self._places) == 1 and not self._spare:
            if seat is not None:
                raise EngineError(f"no node of the cluster can analyse. {seat.node}: {why}")
            if isinstance(event, Raised) and event.error is not None:
                raise event.error
            raise EngineError(
                f"the model cannot be opened: {why}. Try another --engine; ccdstream doctor shows "
                "what is here."
            )
        self._leave_out(worker, why)

    def _leave_out(self, worker: AnyWorker, why: str) -> None:
        place = self._places.pop(worker)
        if place.seat is not None:
            who = place.seat.node
        else:
            assert self._opened is not None, "the first is never left out"
            who = f"GPU {place.gpu}" if self._opened.device == "cuda" else "a worker"
        if who not in self._left_out:
            self._left_out.add(who)
            self._watcher.warn(f"warning: {who} is left out: {why}")
        self._put_to_work()

    def _entry(self, job: Job) -> Entry:
        return next(entry for entry in self._ledger.entries if entry.job == job)

    def _end(
        self, worker: AnyWorker, entry: Entry, outcome: RunResult | Status, reason: str = ""
    ) -> None:
        """Take in what became of the task of a worker."""
        entry.seconds = time.monotonic() - self._began.pop(worker)
        worker.task = None
        result = outcome if isinstance(outcome, RunResult) else None
        if result is None:
            assert isinstance(outcome, Status)
            entry.status, entry.reason = outcome, reason
        else:
            entry.status = Status.done
            if entry.job is not None:
                entry.take_in(entry.job)
            if entry.replaces:
                entry.warnings.append(f"an earlier run was replaced: {entry.replaces}")
            if result.interrupted:
                entry.status, entry.reason = Status.interrupted, "its input was ended early"
            elif result.changed:
                entry.status = Status.failed
                entry.reason = "the recording changed while it was analysed"
        self._watcher.ended(entry, result)
        self._write()

    def _write(self) -> None:
        """Write the record, and now and then the page. Where they cannot be, on a full disk, the
        last ones stay and the jobs go on; the end tells."""
        try:
            self._ledger.write()
            began = time.monotonic()
            if began >= self._page_due:
                try:
                    self._ledger.write_page()
                finally:
                    ended = time.monotonic()
                    self._page_due = ended + _PAGE_REST * (ended - began)
        except OutputError as error:
            self._watcher.warn(f"warning: {error}")


def _share_of_cores(among: int) -> int | None:
    """Threads for each of so many workers; None, for all there are, where there is one."""
    if among == 1:
        return None
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        cores = os.cpu_count() or 1
    return max(1, cores // among)


# -- in a worker process --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Away:
    """What a worker on another machine must know of the caller's, to leave the same results."""

    base: Path
    """The folder that paths are below, where they are not absolute."""
    lock: Path
    """A file that the caller has locked, where the results go."""
    version: str
    """Of ccdstream."""
    model: str
    command: tuple[str, ...]

    def check(self) -> None:
        """
        Raises:
            EngineError, OutputError: results of this machine could not be those of the caller's.
        """
        if __version__ != self.version:
            raise EngineError(f"it has ccdstream {__version__}, not {self.version}. Install that.")
        folder = show_path(self.lock.parent)
        if not self.lock.exists():
            raise OutputError(
                f"it does not see {folder}. Recordings and results must lie on storage that every "
                "node has at the same place."
            )
        if not is_locked(self.lock):
            raise OutputError(
                f"a file locked elsewhere in {folder} is not locked on it. Mount that storage with "
                "locks: without them two nodes cannot write into one folder."
            )

    def job(self, job: Job) -> Job:
        """`job` with absolute paths."""
        files = replace(job.files, folder=self.base / job.files.folder)
        return replace(job, path=self.base / job.path, files=files)


def _wait_until_let_go(job: Job, stopped: Stopped) -> None:
    """Wait for a lost node to let go of the results of a job."""
    lock = lock_path(job.files.folder, job.files.stem)
    end = time.monotonic() + _LET_GO_S
    while lock.exists() and is_locked(lock) and time.monotonic() < end and not stopped():
        time.sleep(0.1)


@dataclass(frozen=True, slots=True)
class _Setup:
    """Opens the model in a worker, and analyses with it."""

    open_model: OpenModel
    options: RunOptions
    place: Place
    away: Away | None = None
    """On a node of a cluster."""

    def __call__(self, _: Tell) -> tuple[Opened, Work]:
        away = self.away
        if away is not None:
            away.check()
            sys.argv[1:] = away.command  # for run.json
        bundle, engine = self.open_model(self.place)
        if away is not None and bundle.model_id != away.model:
            raise EngineError(f"the model there is {bundle.model_id}, not {away.model}.")
        options = replace(self.options, overwrite=True)

        def work(job: Job, tell: Tell, stopped: Stopped) -> RunResult:
            told = 0.0
            if away is not None:
                job = away.job(job)
                _wait_until_let_go(job, stopped)

            def on_progress(progress: Progress) -> None:
                nonlocal told
                if time.monotonic() - told >= _PROGRESS_EVERY_S:
                    told = time.monotonic()
                    tell(progress)

            return run(
                job.path,
                job.files,
                bundle=bundle,
                engine=engine,
                options=options,
                alias=job.alias,
                stopped=stopped,
                on_progress=on_progress,
                on_alert=lambda alert, source: tell(alert_record(alert, source.time_base)),
            )

        return Opened(engine.name, engine.device), work
