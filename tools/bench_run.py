"""What `ccdstream run` costs, beside a plain decode and encode of the same recording.

    python tools/bench_run.py VIDEO... [--model BUNDLE] [--repeats 3] [--json FILE]

Five ways, in turn, `--repeats` times over, in one process; so each round has them side by side, and
what else the machine does meets them alike:

    decode       the frames are read and dropped
    transcode    decode -> encode: the settings, the sound and the threads of a run, nothing drawn
    run          the whole of `ccdstream run`
    run_none     `ccdstream run --video none`
    in_turn      the stages of a run one after another, so that CPU time is known for each

Out: Markdown tables on stdout, and all figures as JSON on request. Wall time is what a user waits
for; CPU time, over all threads of the process, says what the work is even where other programs take
turns on the cores. A short recording is gone through several times a round. Opening the engine is
timed apart and in no other figure.
"""

import argparse
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from ccdstream import __version__, doctor
from ccdstream.alert import AlertRule, AlertTracker
from ccdstream.bundle import Bundle, load_bundle
from ccdstream.decode import VideoSource
from ccdstream.encode import VideoSink
from ccdstream.engine.select import SelectedEngine, open_engine
from ccdstream.errors import CcdstreamError, show_path
from ccdstream.pipeline import (
    DEFAULT_BATCH,
    Looker,
    StopWatch,
    concluded,
    looked,
    make_fuser,
    scored,
)
from ccdstream.prefetch import prefetch
from ccdstream.process import settle
from ccdstream.recording import OutputFiles, RunOptions, run
from ccdstream.render import Overlay
from ccdstream.report.files import write_text
from ccdstream.report.scores import ScoresCsv
from ccdstream.score import Scorer

LEAST_FRAMES = 250
"""A recording with fewer is gone through as often as it takes: its opening and closing then stand
against some seconds of work."""

WAYS = {
    "decode": "decode only",
    "transcode": "plain decode-encode",
    "run": "`ccdstream run`",
    "run_none": "`ccdstream run --video none`",
    "in_turn": "its stages in turn",
}
"""In the order of a round, with their names in the tables."""

STAGES = ("decode", "view", "score", "fuse", "render", "encode")
"""Of `ccdstream.pipeline`, in the order of a frame's path; `run_none` has not all. The quality of a
frame is part of view."""
IN_TURN = (*STAGES, "report")


@dataclass(frozen=True, slots=True)
class Work:
    """What one way of going through a recording did."""

    frames: int
    stage_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds in each stage, where the way has stages: wall time, but CPU time of `in_turn`."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What it took."""

    work: Work
    wall_s: float
    cpu_s: float
    """Of all threads of this process."""


# -- the five ways --------------------------------------------------------------------------------


def decode(video: Path) -> Work:
    """Reads every frame."""
    with VideoSource(video) as source:
        return Work(sum(1 for _ in source))


def transcode(video: Path, output: Path) -> Work:
    """Writes every frame as it came, with the sound; decoding runs ahead as it does in a run."""
    with (
        VideoSource(video) as source,
        source.open_audio() as audio,
        VideoSink(output, source, audio=audio, overwrite=True) as sink,
        prefetch(source, depth=2 * DEFAULT_BATCH) as frames,
    ):
        for frame in frames:
            sink.write(frame)
    return Work(sink.frames)


def analyse(
    video: Path, folder: Path, bundle: Bundle, engine: SelectedEngine, options: RunOptions
) -> Work:
    """A run with all that it leaves; its seconds per stage are those of run.json."""
    files = OutputFiles(folder, "bench")
    result = run(video, files, bundle=bundle, engine=engine, options=options)
    record = json.loads(files.path("run.json").read_text(encoding="utf-8"))
    return Work(result.frames, record["timing"]["stage_s"])


def in_turn(video: Path, folder: Path, bundle: Bundle, engine: SelectedEngine) -> Work:
    """A run's stages without its threads: what the process spends in one is that stage's.

    x264 too has the one thread, or it would go on in the stages that follow.
    """
    folder.mkdir(exist_ok=True)
    watch = StopWatch(time.process_time)
    with (
        VideoSource(video) as source,
        VideoSink(folder / "in_turn.mp4", source, overwrite=True, threads=1) as sink,
        ScoresCsv(folder / "in_turn.csv", parts=bundle.parts, overwrite=True) as scores,
    ):
        enter, duration_s = bundle.alert["enter"], source.duration_s
        overlay = Overlay(source.size, source.colour, enter=enter, duration_s=duration_s)
        tracker = AlertTracker(AlertRule.from_dict(bundle.alert), model=bundle.model_id)
        batches = scored(
            looked(source, Looker(bundle), DEFAULT_BATCH, watch), Scorer(engine), watch
        )
        frames = chain.from_iterable(batches)
        for each in concluded(frames, make_fuser(bundle), tracker, overlay, watch, on_device=False):
            judged = each.judged
            with watch.measure("encode"):
                sink.write(each.drawn)
            with watch.measure("report"):
                row = (judged.frame.pts, judged.seconds, each.fused, each.state)
                scores.write(sink.frames - 1, *row, judged.scored.parts)
    return Work(sink.frames, watch.seconds)


def again(way: Callable[[], Work], times: int) -> Work:
    """Goes that way several times, and adds up."""
    works = [way() for _ in range(times)]
    stage_s: Counter[str] = Counter()
    for work in works:
        stage_s.update(work.stage_s)
    return Work(sum(work.frames for work in works), dict(stage_s))


# -- measuring ------------------------------------------------------------------------------------


def measure(
    ways: Mapping[str, Callable[[], Work]],
    repeats: int,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, list[Cost]]:
    """Goes every way once, then every way again ...: a cost a round, by way.

    Raises:
        RuntimeError: two of them saw another number of frames, so they cannot be compared.
    """
    costs: dict[str, list[Cost]] = {name: [] for name in ways}
    for number in range(1, repeats + 1):
        for name, way in ways.items():
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            work = way()
            cost = Cost(work, time.perf_counter() - wall_s, time.process_time() - cpu_s)
            costs[name].append(cost)
            say(f"round {number} of {repeats}: {name} {cost.wall_s:.2f} s")
    counts = {name: {cost.work.frames for cost in each} for name, each in costs.items()}
    if len(set().union(*counts.values())) != 1:
        raise RuntimeError(f"expected the same number of frames every time, got {counts}")
    return costs


def bench(
    video: Path,
    bundle: Bundle,
    engine: SelectedEngine,
    *,
    repeats: int,
    least_frames: int = LEAST_FRAMES,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure one recording: its frames, how often a round goes through them, and `figures`.

    Raises:
        CcdstreamError: it cannot be read.
    """
    frames = decode(video).frames  # also brings the file into memory, for all ways alike
    passes = math.ceil(least_frames / frames)
    with tempfile.TemporaryDirectory() as folder:

        def analysed(kind: Literal["overlay", "none"]) -> Callable[[], Work]:
            options = RunOptions(video=kind, overwrite=True)
            return partial(analyse, video, Path(folder, kind), bundle, engine, options)

        once: dict[str, Callable[[], Work]] = {
            "decode": partial(decode, video),
            "transcode": partial(transcode, video, Path(folder, "plain.mp4")),
            "run": analysed("overlay"),
            "run_none": analysed("none"),
            "in_turn": partial(in_turn, video, Path(folder, "in_turn"), bundle, engine),
        }
        ways = {name: partial(again, once[name], passes) for name in WAYS}
        costs = measure(ways, repeats, lambda text: say(f"{show_path(video.name)}: {text}"))
    return {"frames": frames, "passes": passes, **figures(costs)}


def what_it_is(video: Path) -> dict[str, Any]:
    """What of a recording decides how much work it is."""
    with VideoSource(video) as source:
        height, width = source.size
        return {
            "video": show_path(video.name),
            "codec": source.codec,
            "pix_fmt": source.pix_fmt,
            "width": width,
            "height": height,
        }


# -- figures --------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> dict[str, Any]:
    """The least, the middle and every one."""
    return {"min": min(values), "median": statistics.median(values), "all": list(values)}


def figures(costs: Mapping[str, Sequence[Cost]]) -> dict[str, Any]:
    """What costs say. A ratio or difference is taken within each round; then the middle one counts.

    Returns:
        frames_per_round: in every way.
        ways: by way, wall_s, cpu_s, frames_per_s (of each round) and cpu_ms_per_frame.
        to_transcode: by way, wall and CPU time over that of transcode.
        stage_ms_per_frame: by run, wall time in each stage; stages overlap.
        stage_cpu_ms_per_frame: CPU time in each stage, one after another.
        cpu_ms_per_frame_of: by difference of ways, CPU time that decoding, encoding, analysing
            (view, score, fuse) and drawing take, whatever thread it is in.
    """
    frames = costs["decode"][0].work.frames

    def cpu_ms(name: str) -> list[float]:
        return [1000 * cost.cpu_s / frames for cost in costs[name]]

    def ratios(name: str, kind: str) -> dict[str, Any]:
        pairs = zip(costs[name], costs["transcode"], strict=True)
        return spread([getattr(one, kind) / getattr(plain, kind) for one, plain in pairs])

    def stages(name: str) -> dict[str, Any]:
        spent = [cost.work.stage_s for cost in costs[name]]
        return {
            stage: spread([1000 * stage_s[stage] / frames for stage_s in spent])
            for stage in IN_TURN
            if stage in spent[0]
        }

    ways = ("decode", "transcode", "run", "run_none")
    rounds = zip(*(cpu_ms(name) for name in ways), strict=True)
    parts = [
        {
            "decode": decoded,
            "encode": plain - decoded,
            "analyse": none - decoded,
            "draw": whole - none - (plain - decoded),
        }
        for decoded, plain, whole, none in rounds
    ]
    return {
        "frames_per_round": frames,
        "ways": {
            name: {
                "wall_s": spread([cost.wall_s for cost in each]),
                "cpu_s": spread([cost.cpu_s for cost in each]),
                "frames_per_s": spread([frames / cost.wall_s for cost in each]),
                "cpu_ms_per_frame": spread(cpu_ms(name)),
            }
            for name, each in costs.items()
        },
        "to_transcode": {
            name: {"wall": ratios(name, "wall_s"), "cpu": ratios(name, "cpu_s")} for name in costs
        },
        "stage_ms_per_frame": {name: stages(name) for name in ("run", "run_none")},
        "stage_cpu_ms_per_frame": stages("in_turn"),
        "cpu_ms_per_frame_of": {
            part: spread([each[part] for each in parts])
            for part in ("decode", "encode", "analyse", "draw")
        },
    }


def commit() -> str:
    """The commit of this code, with "+changes" where files differ; "unknown" outside git."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"]
    try:
        said = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return said.stdout.strip()


def _load() -> list[float] | None:
    """Processes that want a core, over 1, 5 and 15 minutes; None where the system does not say."""
    return list(os.getloadavg()) if hasattr(os, "getloadavg") else None


# -- what is printed ------------------------------------------------------------------------------


def markdown(report: Mapping[str, Any]) -> str:
    """The report as tables."""
    cpu, engine = report["machine"]["cpu"], report["engine"]
    libraries = ("python", "numpy", "opencv-python", "av", "avcodec", engine["name"])
    versions = ", ".join(f"{name} {report['versions'].get(name) or '-'}" for name in libraries)
    load = " to ".join(
        f"{each[0]:.1f}" if each else "not known"
        for each in (report["load_before"], report["load_after"])
    )
    lines = [
        f"    {report['command']}",
        "",
        f"- commit {report['commit']}, ccdstream {report['ccdstream']}, {versions}",
        f"- {cpu['model'] or 'a CPU of no known model'}, {cpu['cores_usable']} of {cpu['cores']} "
        f"cores, load {load}",
        f"- model {report['model']}; {engine['taken']}",
        f"- engine opened and checked in {engine['open_s']:.1f} s, not counted below",
        f"- middle of {report['repeats']} rounds; least in brackets",
    ]
    for video in report["videos"]:
        tables = (_table(video), _cpu_table(video), _stage_table(video), [_by_difference(video)])
        for table in tables:
            lines += ["", *table]
    return "\n".join(lines) + "\n"


def _table(video: Mapping[str, Any]) -> list[str]:
    loop = f", gone through {video['passes']} times a round" if video["passes"] > 1 else ""
    lines = [
        f"**{video['video']}**: {video['width']}x{video['height']} {video['codec']}, "
        f"{video['frames']} frames{loop}",
        "",
        "| | frames/s | wall s | CPU s | CPU ms a frame | wall to plain | CPU to plain |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, label in WAYS.items():
        way, ratio = video["ways"][name], video["to_transcode"][name]
        cells = (
            f"{way['frames_per_s']['median']:.1f}",
            *(f"{way[k]['median']:.2f} ({way[k]['min']:.2f})" for k in ("wall_s", "cpu_s")),
            f"{way['cpu_ms_per_frame']['median']:.1f}",
            *(_ratio(ratio[kind]) for kind in ("wall", "cpu")),
        )
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def _ratio(spread: Mapping[str, Any]) -> str:
    return f"{spread['median']:.2f} ({min(spread['all']):.2f} to {max(spread['all']):.2f})"


def _stage_table(video: Mapping[str, Any]) -> list[str]:
    """Wall time: a stage that waits for a core, or for the encoder's threads, counts the wait."""
    lines = [
        f"| wall ms a frame in | {' | '.join(STAGES)} |",
        f"| --- |{' ---: |' * len(STAGES)}",
    ]
    for name, stages in video["stage_ms_per_frame"].items():
        cells = (f"{stages[s]['median']:.1f}" if s in stages else "-" for s in STAGES)
        lines.append(f"| {WAYS[name]} | {' | '.join(cells)} |")
    return lines


def _cpu_table(video: Mapping[str, Any]) -> list[str]:
    """Which stage the work is in. A run costs more: its threads share caches and cores."""
    stages = video["stage_cpu_ms_per_frame"]
    middle, least = ([f"{stages[s][kind]:.2f}" for s in IN_TURN] for kind in ("median", "min"))
    return [
        f"| CPU ms a frame in | {' | '.join(IN_TURN)} |",
        f"| --- |{' ---: |' * len(IN_TURN)}",
        f"| {WAYS['in_turn']} | {' | '.join(middle)} |",
        f"| least | {' | '.join(least)} |",
    ]


def _by_difference(video: Mapping[str, Any]) -> str:
    parts = video["cpu_ms_per_frame_of"]
    told = ", ".join(f"{name} {part['median']:.1f}" for name, part in parts.items())
    return f"CPU ms a frame, by difference of the ways above: {told}."


# -- the command ----------------------------------------------------------------------------------


def report_on(
    videos: Sequence[Path],
    model: Path | None,
    *,
    command: str,
    repeats: int,
    least_frames: int = LEAST_FRAMES,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure `videos` with the bundle `model` (None: the default one), and say on what.

    Raises:
        CcdstreamError: a recording, the bundle or the engine cannot be used.
    """
    recordings = [what_it_is(video) for video in videos]  # a bad one is told before the work
    found = doctor.report(model)
    load_before = _load()
    settle()  # for every way alike
    bundle = load_bundle(model)
    started = time.perf_counter()
    engine = open_engine(bundle)
    open_s = time.perf_counter() - started
    measured = [
        looks | bench(video, bundle, engine, repeats=repeats, least_frames=least_frames, say=say)
        for video, looks in zip(videos, recordings, strict=True)
    ]
    return {
        "command": command,
        "commit": commit(),
        "ccdstream": __version__,
        "versions": doctor.versions(),
        "machine": {key: found[key] for key in ("platform", "cpu", "memory", "environment")},
        "load_before": load_before,
        "load_after": _load(),
        "model": bundle.model_id,
        "engine": {
            "name": engine.name,
            "version": engine.version,
            "device": engine.device,
            "taken": engine.reason,
            "open_s": open_s,
        },
        "batch": DEFAULT_BATCH,
        "repeats": repeats,
        "videos": measured,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables; writes the JSON where asked to."""
    given = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", type=Path, nargs="+", metavar="VIDEO", help="recordings")
    parser.add_argument("--model", type=Path, help="model bundle; the built-in one if not given")
    parser.add_argument("--repeats", type=_at_least_one, default=3, help="rounds (%(default)s)")
    parser.add_argument(
        "--least-frames",
        type=_at_least_one,
        default=LEAST_FRAMES,
        help="frames a round and way; a shorter recording is repeated (%(default)s)",
    )
    parser.add_argument("--json", type=Path, help="file for all figures; replaced if there")
    arguments = parser.parse_args(given)
    try:
        report = report_on(
            arguments.videos,
            arguments.model,
            command=shlex.join(["python", "tools/bench_run.py", *given]),
            repeats=arguments.repeats,
            least_frames=arguments.least_frames,
            say=lambda text: print(text, file=sys.stderr),
        )
        print(markdown(report), end="")
        if arguments.json is not None:
            write_text(arguments.json, json.dumps(report, indent=2) + "\n", overwrite=True)
    except CcdstreamError as error:
        parser.exit(1, f"error: {error}\n")


def _at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


if __name__ == "__main__":
    main()
