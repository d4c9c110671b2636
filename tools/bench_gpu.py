"""What ccdstream makes of a GPU, beside the least time that arithmetic and memory allow.

    python -m tools.bench_gpu --out FOLDER [--device cuda] [--minutes 9 [--resume]] [--dry-run]

The floors come first: this machine's rate of matrix products and of copies as measured, and what
each program needs of both as counted from its graph (`tools/count_ops.py`). Then the default bundle
and the paper's networks with random weights: every engine alone in every precision; the engine that
a user gets, with the view before it; decoding and encoding alone; whole runs with and without the
overlay; and frames that come at the pace of a live picture.

Out: Markdown on stdout and in FOLDER/bench.md, all figures in FOLDER/bench.json. What cannot be
measured here is a row that says why. The clips are drawn, so that nothing but this is needed.
`--dry-run` goes the same ways on a CPU with tiny pictures: its figures mean nothing.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from fractions import Fraction
from functools import cache, partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from ccdstream import __version__, doctor, sample
from ccdstream.bundle import Bundle, load_bundle
from ccdstream.decode import VideoSource
from ccdstream.encode import StreamInfo, VideoSink
from ccdstream.engine.base import (
    BuildOptions,
    CalibrationViews,
    Device,
    Precision,
    one_line,
)
from ccdstream.engine.gpu import find_gpus
from ccdstream.engine.select import BACKENDS, ENGINE_NAMES, SelectedEngine, open_engine
from ccdstream.errors import CcdstreamError
from ccdstream.frames import Colour, Frame
from ccdstream.pipeline import Looker
from ccdstream.quality import QualityLimits
from ccdstream.recording import RunOptions
from ccdstream.report.files import write_text
from ccdstream.score import Scorer
from ccdstream.view import Profile
from tools import bench_run
from tools.count_ops import Work, count, sentences
from tools.random_bundle import rendered_views, write_random_bundle

T = TypeVar("T")

GPU_ENGINES: dict[str, tuple[Precision, ...]] = {
    "tensorrt": ("fp32", "fp16", "int8"),
    "torch-tensorrt": ("fp32", "fp16", "int8"),
    "torch": ("fp32", "fp16", "int8"),
    "onnxruntime": ("fp32",),  # runs the program as it is
}
"""What is measured on a GPU, each a row whether it is there or not."""
CALIBRATION_SEEDS = tuple(range(100, 132))
"""Drawn stills that int8 learns its ranges from: for speed any will do."""
DEVICES: tuple[Device, ...] = ("cpu", "cuda")
DECODE, ENCODE, ENGINE, VIEWED = "decode", "encode", "engine", "view and engine"
RUN_NONE, RUN, LIVE = "run --video none", "run", "live"
WARM_UP = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is done for each figure."""

    preset: str = "paper"
    """Whose networks the second program has."""
    batches: tuple[int, ...] = (1, 8, 32)
    sizes: tuple[tuple[int, int], ...] = ((576, 720), (1080, 1920))
    rates: tuple[int, ...] = (25, 60)
    rounds: int = 5
    round_s: float = 0.5
    passes: int = 3
    """Rounds of what goes through a whole clip."""
    drawn_frames: int = 100
    clip_frames: int = 1000
    """The drawn frames there and back, as often as it takes."""
    live_s: float = 10.0
    matrix_side: Mapping[Device, int] = field(default_factory=lambda: {"cuda": 8192, "cpu": 2048})
    copy_bytes: Mapping[Device, int] = field(
        default_factory=lambda: {"cuda": 2**31, "cpu": 2**28}  # far beyond any cache
    )


DRY = Plan(
    preset="smoke",
    batches=(1, 2),
    sizes=((96, 128), (144, 176)),
    rounds=2,
    round_s=0.01,
    passes=1,
    drawn_frames=3,
    clip_frames=4,
    live_s=0.05,
    matrix_side={"cpu": 128},
    copy_bytes={"cpu": 2**20},
)


class NotMeasured(Exception):
    """Why a figure cannot be had here; becomes its row."""


# -- rows -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Key:
    """What a figure is of; what does not matter to it is empty or 0."""

    program: str
    stage: str
    device: Device
    """Where; of a view before an engine, where the view is made."""
    engine: str = ""
    precision: str = ""
    batch: int = 0
    size: tuple[int, int] = (0, 0)
    """(height, width) of the recording."""
    rate: int = 0
    """Frames a second at which frames come."""


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured, or why nothing was."""

    frames_per_s: tuple[float, ...] = ()
    """One for each round."""
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    """p50, p95 and p99, from when a frame was due to when its score was there."""
    with_what: str = ""
    """The engine that was taken, and why."""
    why_not: str = ""
    failed: bool = False
    """Not a reason that was foreseen, but an error."""

    @property
    def median(self) -> float:
        """Frames per second."""
        return statistics.median(self.frames_per_s)


@dataclass(frozen=True, slots=True)
class Refused:
    """Why there is no figure."""

    why: str
    failed: bool = False


class Rows:
    """The figures so far, in order, kept in a file as they come.

    Args:
        keep: called with the rows after every new one.
        deadline: by `time.monotonic`; nothing is begun after it.
        figures: what an earlier call measured, which is not measured again.
    """

    def __init__(
        self,
        keep: Callable[["Rows"], None] = lambda _: None,
        *,
        deadline: float = float("inf"),
        figures: Mapping[Key, Figure] | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.figures: dict[Key, Figure] = {}
        self._earlier = {key: one for key, one in (figures or {}).items() if not one.why_not}
        self._keep = keep
        self._deadline = deadline
        self._say = say

    def fill(
        self,
        keys: Sequence[Key],
        prepare: Callable[[], T],
        measure: Callable[[T, Key], Figure],
    ) -> None:
        """Measure what `keys` name with what `prepare` gives, or note why not.

        An error ends one row, not the table: it stands in it, and `failures` tells of it.
        """
        left = [key for key in keys if key not in self._earlier]
        for key in keys:
            self.figures[key] = self._earlier.get(key, Figure(why_not="not begun"))
        if not left:
            return
        ready = self._tried(prepare)
        for key in left:
            measured = (
                ready if isinstance(ready, Refused) else self._tried(partial(measure, ready, key))
            )
            if isinstance(measured, Refused):
                measured = Figure(why_not=measured.why, failed=measured.failed)
            self.figures[key] = measured
            self._say(f"{_named(key)}: {measured.why_not or _speed(measured)}")
            self._keep(self)

    def _tried(self, work: Callable[[], T]) -> "T | Refused":
        if time.monotonic() > self._deadline:
            return Refused("the time was up; go on with --resume")
        try:
            return work()
        except (NotMeasured, CcdstreamError) as error:
            return Refused(one_line(error))
        except Exception as error:
            return Refused(f"{type(error).__name__}: {one_line(error)}", failed=True)

    def failures(self) -> list[Key]:
        """Rows that an error ended."""
        return [key for key, figure in self.figures.items() if figure.failed]


# -- time -----------------------------------------------------------------------------------------


def seconds_for(call: Callable[[], object], times: int, queue: torch.device) -> float:
    """Seconds that `times` calls take, by the clock of the GPU where `queue` is one."""
    if queue.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(times):
            call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000
    started = time.perf_counter()
    for _ in range(times):
        call()
    return time.perf_counter() - started


def rates(call: Callable[[], object], each: float, plan: Plan, queue: torch.device) -> list[float]:
    """How much a second, by round, where a call does `each`."""
    for _ in range(WARM_UP):
        call()
    times = max(1, round(plan.round_s / max(seconds_for(call, 1, queue), 1e-9)))
    return [each * times / seconds_for(call, times, queue) for _ in range(plan.rounds)]


def latencies_ms(
    frames: Iterator[Frame],
    rate: int,
    count: int,
    route: Callable[[Sequence[Frame]], object],
    *,
    now: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> list[float]:
    """Of each of `count` frames that come at `rate` a second, done with the one before or not.

    From when a frame is due, so that waiting behind a slow one counts.
    """
    found = []
    started = now()
    for number, frame in enumerate(islice(frames, count)):
        due = started + number / rate
        if (early := due - now()) > 0:
            sleep(early)
        route([frame])
        found.append(1000 * (now() - due))
    return found


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99."""
    return {f"p{share}": float(np.percentile(values, share)) for share in (50, 95, 99)}


# -- floors ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Floors:
    """What the device does at most, as measured: medians of the rounds."""

    operations_per_s: dict[str, float]
    """Of large matrix products of random numbers: "fp32", and on a GPU "tf32" and "fp16"."""
    bytes_per_s: float
    """Of a large copy, read and written."""
    all: dict[str, list[float]]
    """Every round."""

    def rate_of(self, precision: str) -> float:
        """Operations per second that a program in `precision` can reach at most; for int8 that of
        fp16, since no product of integers is measured."""
        kinds = ("tf32", "fp32") if precision == "fp32" else ("fp16", "tf32", "fp32")
        return next(self.operations_per_s[kind] for kind in kinds if kind in self.operations_per_s)

    def frames_per_s(self, work: Work, precision: str) -> float:
        """More than this no engine can do: see `Work.least_s`."""
        return work.batch / work.least_s(self.rate_of(precision), self.bytes_per_s)


def measure_floors(device: Device, plan: Plan) -> Floors:
    """Time matrix products and a copy."""
    queue = torch.device(device)
    side = plan.matrix_side[device]
    found: dict[str, list[float]] = {}
    kinds = {"fp32": torch.float32}
    if device == "cuda":
        kinds |= {"tf32": torch.float32, "fp16": torch.float16}
    before = torch.get_float32_matmul_precision()
    try:
        for kind, dtype in kinds.items():
            torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
            a, b = (torch.randn(side, side, device=queue).to(dtype) for _ in range(2))
            product = torch.empty(side, side, dtype=dtype, device=queue)
            found[kind] = rates(partial(torch.mm, a, b, out=product), 2 * side**3, plan, queue)
    finally:
        torch.set_float32_matmul_precision(before)
    source = torch.zeros(plan.copy_bytes[device], dtype=torch.uint8, device=queue)
    copy = torch.empty_like(source)
    found["copy"] = rates(lambda: copy.copy_(source), 2 * source.numel(), plan, queue)
    return Floors(
        {kind: statistics.median(found[kind]) for kind in kinds},
        statistics.median(found["copy"]),
        found,
    )


# -- engines --------------------------------------------------------------------------------------


def engines_to_measure(device: Device) -> list[tuple[str, Device, Precision]]:
    """Every engine for GPUs in every precision; and where there is no GPU, those for the CPU."""
    on_gpu: list[tuple[str, Device, Precision]] = [
        (name, "cuda", precision)
        for name, precisions in GPU_ENGINES.items()
        for precision in precisions
    ]
    if device == "cuda":
        return on_gpu
    return [*((one.name, "cpu", "fp32") for one in BACKENDS if one.device == "cpu"), *on_gpu]


def opened(
    bundle: Bundle, name: str, device: Device, precision: Precision, plan: Plan, cache: Path | None
) -> SelectedEngine:
    """The engine `name`, built as it is for users.

    Args:
        cache: folder of compiled engines; None for the user's.

    Raises:
        NotMeasured: this version has none of that name.
        EngineError: it does not start, or is not in parity.
    """
    if name != "auto" and name not in ENGINE_NAMES:
        raise NotMeasured("this version has no engine of that name")
    batches = plan.batches
    options = BuildOptions(
        precision=precision,
        batch=(batches[0], batches[len(batches) // 2], batches[-1]),
        calibration=_calibration(bundle) if precision == "int8" else None,
        cache=cache,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    return open_engine(bundle, device=device, engine=name, build=options)


def _calibration(bundle: Bundle) -> CalibrationViews:
    return CalibrationViews(*rendered_views(CALIBRATION_SEEDS, Profile.from_dict(bundle.profile)))


def engine_rates(engine: Any, batch: int, plan: Plan) -> list[float]:
    """Frames a second through an `Engine` alone, by round: a `DeviceEngine` in its own memory."""
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 256, (batch, 3, 256, 256), np.uint8)
    valid = np.ones((batch, 256, 256), np.bool_)
    if not hasattr(engine, "run_on_device"):
        return rates(lambda: engine.run(frames, valid), batch, plan, torch.device("cpu"))
    if batch > engine.max_batch:
        raise NotMeasured(f"the engine takes {engine.max_batch} frames in a call at most")
    queue = torch.device(engine.device)
    tensors = [torch.from_numpy(array).to(queue) for array in (frames, valid)]
    return rates(lambda: engine.run_on_device(*tensors), batch, plan, queue)


Route = Callable[[Sequence[Frame]], object]
"""Takes frames in order and returns when their scores are on the host."""


def route_of(bundle: Bundle, engine: SelectedEngine, key: Key, device: Device) -> Route:
    """View and engine, with the view on `key.device`.

    Raises:
        NotMeasured: that is a GPU, and this is not about one.
    """
    if key.device == "cpu":
        return host_route(bundle, engine)
    return needing_gpu(device, lambda: device_route(bundle, engine, torch.device("cuda", 0)))


def host_route(bundle: Bundle, engine: SelectedEngine) -> Route:
    """The view on the CPU."""
    look, scorer = Looker(bundle), Scorer(engine)
    return lambda frames: scorer.score([look(frame).view for frame in frames])


def device_route(bundle: Bundle, engine: SelectedEngine, device: torch.device) -> Route:
    """The view where the engine is; the frames are brought there first, which counts.

    Raises:
        NotMeasured: the engine takes nothing from a GPU's memory.
    """
    from ccdstream.gpu.transfer import frame_to_device
    from ccdstream.gpu.view import DeviceViewTracker

    inner: Any = engine.engine
    if not hasattr(inner, "run_on_device"):
        raise NotMeasured(f"{engine.name} takes nothing from a GPU's memory")
    profile = Profile.from_dict(bundle.profile)
    tracker = DeviceViewTracker(profile, QualityLimits.from_dict(bundle.quality), device)

    def score(frames: Sequence[Frame]) -> object:
        views = tracker.update([frame_to_device(frame, device) for frame in frames])
        return [output.cpu() for output in inner.run_on_device(views.frames, views.valid)]

    return score


# -- clips ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """A drawn procedure, as pictures in memory and as a recording."""

    path: Path
    drawn: Sequence[Frame]
    stream: StreamInfo

    def frames(self) -> Iterator[Frame]:
        """The pictures there and back without end, each with a time of its own."""
        there_and_back = [*self.drawn, *self.drawn[-2:0:-1]]
        number = 0
        while True:
            for frame in there_and_back:
                yield replace(frame, pts=number)
                number += 1

    def write(self, path: Path, count: int, *, encode_on: int | None = None) -> None:
        """Encode `count` of them as a run does, without sound.

        Args:
            encode_on: the GPU whose NVENC is to do it; None for x264.

        Raises:
            NotMeasured: that GPU does not encode.
        """
        with VideoSink(path, self.stream, overwrite=True, encode_on=encode_on) as sink:
            if encode_on is not None and sink.encoder != "nvenc":
                raise NotMeasured("; ".join(sink.notes))
            for frame in islice(self.frames(), count):
                sink.write(frame)


def drawn_clip(folder: Path, size: tuple[int, int], plan: Plan) -> Clip:
    """Draw and encode: H.264 in MP4 at 25 frames a second."""
    options = sample.SampleOptions(seconds=max(1, plan.drawn_frames / 25), size=size)
    drawn = [frame for frame, _ in islice(sample.frames(options), plan.drawn_frames)]
    stream = StreamInfo(size, options.time_base, Fraction(25), Colour("bt601", full_range=False))
    clip = Clip(folder / f"{size[1]}x{size[0]}.mp4", drawn, stream)
    clip.write(clip.path, plan.clip_frames)
    return clip


def pass_rates(way: Callable[[], int], plan: Plan) -> tuple[float, ...]:
    """Frames a second of a way that says how many it saw, by round."""
    found = []
    for _ in range(plan.passes):
        started = time.perf_counter()
        frames = way()
        found.append(frames / (time.perf_counter() - started))
    return tuple(found)


# -- the table's rows -----------------------------------------------------------------------------


Clips = Callable[[tuple[int, int]], Clip]
"""The clip of a size; drawn when it is first asked for."""


def fill_clips(rows: Rows, device: Device, clips: Clips, plan: Plan) -> None:
    """Decoding and encoding alone, on the CPU and on the GPU."""

    def decoded(clip: Clip, key: Key) -> Figure:
        if key.device == "cpu":
            return Figure(pass_rates(lambda: bench_run.decode(clip.path).frames, plan))

        def on_gpu() -> int:
            with VideoSource(clip.path, decode_on=0) as source:
                frames = sum(1 for _ in source.frames())
                if source.decoder != "nvdec" or source.notes:
                    raise NotMeasured("; ".join(source.notes))
            torch.cuda.synchronize()
            return frames

        return Figure(pass_rates(on_gpu, plan))

    def encoded(clip: Clip, key: Key) -> Figure:
        where = 0 if key.device == "cuda" else None

        def once() -> int:
            clip.write(Path(folder, "encoded.mp4"), plan.clip_frames, encode_on=where)
            return plan.clip_frames

        with tempfile.TemporaryDirectory() as folder:
            return Figure(pass_rates(once, plan))

    for size in plan.sizes:
        for stage, way in ((DECODE, decoded), (ENCODE, encoded)):
            rows.fill([Key("-", stage, "cpu", size=size)], partial(clips, size), way)
            rows.fill(
                [Key("-", stage, "cuda", size=size)],
                partial(needing_gpu, device, partial(clips, size)),
                way,
            )


def needing_gpu(device: Device, work: Callable[[], T]) -> T:
    """What `work` gives, where this is about a GPU.

    Raises:
        NotMeasured: it is not.
    """
    if device != "cuda":
        raise NotMeasured(find_gpus().problem or f"measured on {device} only, as asked")
    return work()


def fill_engines(
    rows: Rows, name: str, bundle: Bundle, device: Device, plan: Plan, cache: Path | None
) -> None:
    """Every engine alone."""
    for engine_name, where, precision in engines_to_measure(device):
        open_it = partial(opened, bundle, engine_name, where, precision, plan, cache)
        rows.fill(
            [Key(name, ENGINE, where, engine_name, precision, batch) for batch in plan.batches],
            partial(needing_gpu, device, open_it) if where == "cuda" else open_it,
            lambda engine, key: Figure(
                tuple(engine_rates(engine.engine, key.batch, plan)), with_what=engine.reason
            ),
        )


def fill_ways(
    rows: Rows,
    name: str,
    bundle: Bundle,
    device: Device,
    clips: Clips,
    plan: Plan,
    cache: Path | None,
) -> None:
    """What a user gets from the engine that a user gets: with the view, in runs, and live."""
    usual: Precision = "fp16" if device == "cuda" else "fp32"

    def viewed(engine: SelectedEngine, key: Key) -> Figure:
        route, frames = route_of(bundle, engine, key, device), clips(key.size).frames()
        found = rates(
            lambda: route(list(islice(frames, key.batch))), key.batch, plan, torch.device("cpu")
        )
        return Figure(tuple(found), with_what=engine.reason)

    def ran(engine: SelectedEngine, key: Key) -> Figure:
        kind: Literal["overlay", "none"] = "overlay" if key.stage == RUN else "none"
        options, clip = RunOptions(video=kind, overwrite=True), clips(key.size)
        with tempfile.TemporaryDirectory() as folder:
            found = pass_rates(
                lambda: bench_run.analyse(clip.path, Path(folder), bundle, engine, options).frames,
                plan,
            )
        return Figure(found, with_what=engine.reason)

    def live(engine: SelectedEngine, key: Key) -> Figure:
        route, frames = route_of(bundle, engine, key, device), clips(key.size).frames()
        for frame in islice(frames, WARM_UP):
            route([frame])
        found = latencies_ms(frames, key.rate, max(2, round(key.rate * plan.live_s)), route)
        return Figure(latency_ms=percentiles(found), with_what=engine.reason)

    measures = {VIEWED: viewed, RUN_NONE: ran, RUN: ran, LIVE: live}
    keys = []
    for size in plan.sizes:
        key = Key(name, "", device, "auto", usual, size=size)
        for view_on in DEVICES:
            at = replace(key, device=view_on)
            keys += [replace(at, stage=VIEWED, batch=batch) for batch in plan.batches]
        keys += [replace(key, stage=stage) for stage in (RUN_NONE, RUN)]
        for view_on in DEVICES:
            at = replace(key, device=view_on, stage=LIVE, batch=1)
            keys += [replace(at, rate=rate) for rate in plan.rates]
    rows.fill(
        keys,
        lambda: opened(bundle, "auto", device, usual, plan, cache),
        lambda engine, key: measures[key.stage](engine, key),
    )


# -- what is printed ------------------------------------------------------------------------------


def slowest_part(key: Key, figures: Mapping[Key, Figure]) -> tuple[str, float] | None:
    """Of what a run is made of, measured alone: the slowest and its frames per second. None where a
    part is not measured."""
    parts = [DECODE, VIEWED, *([ENCODE] if key.stage == RUN else [])]
    found = []
    for part in parts:
        alike = [
            figure.median
            for other, figure in figures.items()
            if other.stage == part
            and other.size == key.size
            and other.program in ("-", key.program)
            and figure.frames_per_s
        ]
        if not alike:
            return None
        found.append((max(alike), part))  # the best batch, the better device
    rate, part = min(found)
    return part, rate


def _named(key: Key) -> str:
    size = f"{key.size[1]}x{key.size[0]}" if key.size[0] else ""
    told = (
        *(key.program, key.stage, "on", key.device, key.engine, key.precision),
        *(key.batch or "", size),
    )
    return " ".join(str(one) for one in [*told, f"at {key.rate}/s" if key.rate else ""] if one)


def _speed(figure: Figure) -> str:
    if figure.latency_ms:
        return " / ".join(f"{ms:.1f}" for ms in figure.latency_ms.values()) + " ms"
    least, most = min(figure.frames_per_s), max(figure.frames_per_s)
    return f"{figure.median:.1f} ({least:.1f} to {most:.1f})"


COLUMNS = (
    *("program", "what", "on", "engine", "precision", "batch", "picture"),
    "frames/s (least to most)",
    *("of the floor", "of the slowest part", "p50 / p95 / p99 ms"),
)


def table(
    figures: Mapping[Key, Figure], floors: Floors, works: Mapping[str, Mapping[int, Work]]
) -> list[str]:
    """Every row, in Markdown; rows that lack the same for the same reason are one."""
    lines = [f"| {' | '.join(COLUMNS)} |", "| --- " * 7 + "| ---: " * 4 + "|"]

    def alike(item: tuple[Key, Figure]) -> object:
        key, figure = item
        if not figure.why_not:
            return key
        return key.program, key.stage, key.device, key.engine, figure.why_not

    for _, group in groupby(figures.items(), alike):
        members = list(group)
        keys, (first, figure) = [key for key, _ in members], members[0]
        what = first.stage + (f" at {_listed(key.rate for key in keys)}/s" if first.rate else "")
        sizes = _listed(f"{key.size[1]}x{key.size[0]}" if key.size[0] else "" for key in keys)
        speed, of_floor, of_slowest, latency = "", "", "", ""
        if figure.why_not:
            speed = f"not measured: {figure.why_not}"
        elif figure.latency_ms:
            latency = _speed(figure).removesuffix(" ms")
        else:
            speed = _speed(figure)
            work = works.get(first.program, {}).get(first.batch)
            if work is not None:
                of_floor = f"{figure.median / floors.frames_per_s(work, first.precision):.3f}"
            if first.stage in (RUN, RUN_NONE) and (part := slowest_part(first, figures)):
                of_slowest = f"{figure.median / part[1]:.2f} ({part[0]})"
        cells = (
            first.program,
            what,
            first.device,
            first.engine,
            _listed(key.precision for key in keys),
            _listed(str(key.batch or "") for key in keys),
            sizes,
            *(speed, of_floor, of_slowest, latency),
        )
        lines.append(f"| {' | '.join(cell.replace('|', '/') or '-' for cell in cells)} |")
    return lines


def _listed(values: Any) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if str(value)))


def markdown(document: Mapping[str, Any], figures: Mapping[Key, Figure], floors: Floors) -> str:
    """The document as text: the machine, the floors, the table."""
    machine = document["machine"]
    works = {
        name: {int(batch): work for batch, work in by_batch.items()}
        for name, by_batch in document["works"].items()
    }
    libraries = ("python", "torch", "tensorrt", "tensorrt-rtx", "torch-tensorrt", "onnxruntime")
    versions = document["versions"]
    told = ", ".join(f"{name} {versions[name]}" for name in (*libraries, "av") if versions[name])
    rates_told = ", ".join(
        f"{kind} {rate / 1e12:.2f} TFLOP/s" for kind, rate in floors.operations_per_s.items()
    )
    lines = [f"    {document['command']}", ""]
    if document["dry_run"]:
        lines += ["**A dry run: it shows that the way is open, and no figure means anything.**", ""]
    lines += [
        f"- {document['date']}, commit {document['commit']}, ccdstream {document['ccdstream']}",
        f"- {machine['gpu']}; {machine['cpu']}",
        f"- {told}",
        f"- measured on {document['device']}: matrix products {rates_told}; copy "
        f"{floors.bytes_per_s / 1e9:.1f} GB/s, read and written",
    ]
    for name, by_batch in works.items():
        work = by_batch[max(by_batch)]
        precisions = ("fp32", "fp16") if document["device"] == "cuda" else ("fp32",)
        least = ", ".join(f"{p} {floors.frames_per_s(work, p):.0f}" for p in precisions)
        in_turn = work.batch / work.least_s_in_turn(
            floors.rate_of(precisions[-1]), floors.bytes_per_s
        )
        lines.append(
            f"- {name} ({document['models'][name]}): {'; '.join(sentences(work))}. "
            f"Floor, frames/s: {least}; {precisions[-1]} one operator after another {in_turn:.0f}"
        )
    return "\n".join([*lines, "", *table(figures, floors, works)]) + "\n"


# -- the machine ----------------------------------------------------------------------------------


def describe_machine() -> dict[str, str]:
    """Its GPU with memory and driver, and its CPU, as text."""
    gpus = find_gpus()
    cards = [f"{one.name}, {one.memory_bytes / 2**30:.0f} GiB" for one in gpus.found]
    return {
        "gpu": f"{'; '.join(cards)}, driver {_driver()} (CUDA {gpus.cuda_version})"
        if cards
        else f"no GPU: {gpus.problem}",
        "cpu": f"{_cpu()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads of torch",
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # another system than Linux
        return platform.processor() or platform.machine()
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return "of no known version"
    return said.stdout.strip()


# -- the command ----------------------------------------------------------------------------------


def earlier_figures(document: Mapping[str, Any], now: Mapping[str, Any]) -> dict[Key, Figure]:
    """The figures of an earlier call, for one that goes on with it.

    Raises:
        NotMeasured: it was made elsewhere or of something else.
    """
    for name in ("commit", "machine", "device", "dry_run", "versions"):
        if document[name] != now[name]:
            raise NotMeasured(
                f"{name} was {document[name]} and is {now[name]}. Leave --resume out, or give "
                "another --out."
            )
    return {
        Key(**row["key"] | {"size": tuple(row["key"]["size"])}): Figure(
            **row["figure"] | {"frames_per_s": tuple(row["figure"]["frames_per_s"])}
        )
        for row in document["rows"]
    }


def bench(
    out: Path,
    device: Device,
    plan: Plan,
    *,
    command: str,
    commit: str,
    dry_run: bool = False,
    deadline: float = float("inf"),
    resume: bool = False,
    cache_folder: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[str, Rows]:
    """Measure everything, and write bench.json and bench.md into `out` as it goes.

    Returns:
        The Markdown, and the rows.

    Raises:
        CcdstreamError: the default bundle cannot be read, or `out` not be written.
        NotMeasured: `resume` with figures of another machine, commit or plan.
    """
    document: dict[str, Any] = {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "ccdstream": __version__,
        "versions": doctor.versions(),
        "machine": describe_machine(),
        "device": device,
        "dry_run": dry_run,
        "plan": asdict(plan),
    }
    earlier: dict[Key, Figure] = {}
    if resume and (out / "bench.json").exists():
        kept = json.loads((out / "bench.json").read_text(encoding="utf-8"))
        earlier = earlier_figures(kept, document)
    out.mkdir(parents=True, exist_ok=True)
    say("floors")
    floors = measure_floors(device, plan)
    document["floors"] = asdict(floors)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        say(f"the bundle of {plan.preset}'s networks with random weights")
        bundles = {
            "default": load_bundle(),
            plan.preset: write_random_bundle(folder / plan.preset, plan.preset),
        }
        works = {
            name: {n: count(bundle.program.read_bytes(), n) for n in plan.batches}
            for name, bundle in bundles.items()
        }
        document["models"] = {name: bundle.model_id for name, bundle in bundles.items()}

        @cache
        def clips(size: tuple[int, int]) -> Clip:
            return drawn_clip(folder, size, plan)

        def keep(rows: Rows) -> None:
            whole = {
                **document,
                "works": {
                    name: {n: _counted(work, floors) for n, work in by_batch.items()}
                    for name, by_batch in works.items()
                },
                "rows": [
                    {"key": asdict(key), "figure": asdict(figure)}
                    for key, figure in rows.figures.items()
                ],
            }
            write_text(out / "bench.json", json.dumps(whole, indent=1) + "\n", overwrite=True)

        rows = Rows(keep, deadline=deadline, figures=earlier, say=say)
        fill_clips(rows, device, clips, plan)
        for name, bundle in bundles.items():
            fill_engines(rows, name, bundle, device, plan, cache_folder)
            fill_ways(rows, name, bundle, device, clips, plan, cache_folder)
        keep(rows)
    text = markdown({**document, "works": works}, rows.figures, floors)
    write_text(out / "bench.md", text, overwrite=True)
    return text, rows


def _counted(work: Work, floors: Floors) -> dict[str, Any]:
    return {
        "operations": work.operations,
        "weights": work.weights,
        "lower_bytes": work.lower_bytes,
        "upper_bytes": work.upper_bytes,
        "floor_frames_per_s": {
            precision: floors.frames_per_s(work, precision) for precision in ("fp32", "fp16")
        },
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table; says on stderr how far it is."""
    given = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for bench.json and bench.md"
    )
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing later")
    parser.add_argument(
        "--resume", action="store_true", help="measure what --out does not have yet"
    )
    parser.add_argument("--cache", type=Path, help="folder of compiled engines (the user's cache)")
    parser.add_argument("--commit", help="of this code, where git cannot tell")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on the CPU")
    arguments = parser.parse_args(given)
    problem = find_gpus().problem or ("" if torch.cuda.is_available() else "torch sees no GPU")
    if arguments.device == "cuda" and problem:
        parser.exit(1, f"error: {problem}. Use --device cpu, or --dry-run.\n")
    on_gpu = not problem and arguments.device != "cpu" and not arguments.dry_run
    try:
        text, rows = bench(
            arguments.out,
            "cuda" if on_gpu else "cpu",
            DRY if arguments.dry_run else Plan(),
            command=shlex.join(["python", "-m", "tools.bench_gpu", *given]),
            commit=arguments.commit or bench_run.commit(),
            dry_run=arguments.dry_run,
            deadline=time.monotonic() + 60 * arguments.minutes,
            resume=arguments.resume,
            cache_folder=arguments.cache,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except (CcdstreamError, NotMeasured, OSError) as error:
        parser.exit(1, f"error: {error}\n")
    print(text, end="")
    if failures := rows.failures():
        counted = Counter(key.stage for key in failures)
        told = ", ".join(f"{stage} {number}" for stage, number in counted.items())
        parser.exit(1, f"error: rows that an error ended: {told}. They are in the table.\n")


if __name__ == "__main__":
    main()
