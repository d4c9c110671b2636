"""Whether the last hour of a long recording costs what the first does, in time and in memory.

    python tools/bench_long.py [--hours 2] [--size 1920x1080] [--rate 5] [--video overlay|none]
                               [--model BUNDLE] [--folder /tmp] [--keep] [--json FILE]

A stretch of the rendered sample procedure is encoded once, with sound, and its packets are repeated
with later times until the hours are full: nothing is encoded again, so a recording of two hours is
there in seconds. A child process analyses it with `recording.run`, and notes the time and its own
CPU time after every frame; this process looks meanwhile at what the child holds.

Out: Markdown on stdout, and all figures as JSON on request.

    resident, private    memory of the child and its children; private is what no file stands for
    wall, CPU            milliseconds a frame, by tenth of the recording; CPU over all threads,
                         which says what the work is where other programs take turns on the cores
    closing              from the last frame to the end of the process: the index of the overlay is
                         brought to its front, the recording is hashed, the report is written

Needs Linux, and room for the recording and the overlay: some gigabytes for two hours of 1920x1080.
They are removed at the end, unless --keep.
"""

import argparse
import json
import math
import os
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import av
import cv2
from av.packet import Packet

from ccdstream import __version__, sample
from ccdstream.bundle import load_bundle
from ccdstream.doctor import machine
from ccdstream.encode import PcmAudio, StreamInfo, VideoSink
from ccdstream.engine.select import open_engine
from ccdstream.errors import CcdstreamError
from ccdstream.frames import Colour, Frame
from ccdstream.packaged import find_model
from ccdstream.recording import OutputFiles, Progress, RunOptions, VideoKind, run
from ccdstream.report.files import write_text
from ccdstream.sample import SampleOptions

STRETCH_S = 20.0
"""Of the sample procedure: with its lesions, disturbances and a while of nothing."""
LOOK_EVERY_S = 0.5
STEM = "long"
_TICK = struct.Struct("dd")
"""After every frame: (wall clock, CPU time of the process), in seconds."""


# -- the recording --------------------------------------------------------------------------------


def make_stretch(path: Path, size: tuple[int, int], rate: Fraction, seconds: float) -> int:
    """Encode the beginning of the sample procedure, with sound; give its number of frames.

    It is rendered in its usual size and then scaled, which takes a tenth of the time.

    Args:
        size: (height, width), both even.
    """
    options = SampleOptions(seconds=seconds, rate=rate)
    stream = StreamInfo(size, options.time_base, Fraction(rate), Colour("bt601", full_range=False))
    sound = PcmAudio(sample.AUDIO_RATE_HZ, sample.audio_blocks(options))
    with VideoSink(path, stream, crf=23, audio=sound) as sink:
        for frame, _ in sample.frames(options):
            sink.write(scaled(frame, size))
    return sink.frames


def scaled(frame: Frame, size: tuple[int, int]) -> Frame:
    """The frame in another (height, width)."""
    height, width = size
    half = (width // 2, height // 2)
    return replace(
        frame,
        y=cv2.resize(frame.y, (width, height), interpolation=cv2.INTER_CUBIC),
        u=cv2.resize(frame.u, half, interpolation=cv2.INTER_CUBIC),
        v=cv2.resize(frame.v, half, interpolation=cv2.INTER_CUBIC),
    )


def repeat(stretch: Path, path: Path, copies: int) -> None:
    """Write a recording of `copies` times the stretch, packet by packet.

    The pictures of every copy follow those of the one before at the same pace; the packets of the
    sound come over and over without a gap, to the end of the pictures.
    """
    with av.open(str(stretch)) as source, av.open(str(path), "w", format="mp4") as target:
        videos = [packet for packet in source.demux(video=0) if packet.size]
        source.seek(0)
        sounds = [packet for packet in source.demux(audio=0) if packet.size]
        sounds.pop()  # shorter than the others
        video = target.add_stream_from_template(source.streams.video[0], opaque=True)
        sound = target.add_stream_from_template(source.streams.audio[0], opaque=True)
        target.start_encoding()
        length = sum(packet.duration or 0 for packet in videos)
        heard = _repeated_sound(sounds)
        waiting = next(heard)
        for copy in range(copies):
            for packet in videos:
                assert packet.pts is not None and packet.dts is not None
                at = packet.dts + copy * length
                while waiting.pts * waiting.time_base <= at * packet.time_base:
                    waiting.stream = sound
                    target.mux(waiting)
                    waiting = next(heard)
                again = _copy_of(packet, packet.pts + copy * length, at)
                again.stream = video
                target.mux(again)


def _repeated_sound(packets: "Sequence[Packet[Any]]") -> "Iterator[Packet[Any]]":
    pts = 0
    for number in count():
        packet = packets[number % len(packets)]
        yield _copy_of(packet, pts, pts)
        pts += packet.duration or 0


def _copy_of(packet: "Packet[Any]", pts: int, dts: int) -> "Packet[Any]":
    copy: Packet[Any] = Packet(bytes(packet))
    copy.pts, copy.dts, copy.duration = pts, dts, packet.duration
    copy.time_base, copy.is_keyframe = packet.time_base, packet.is_keyframe
    return copy


def frames_in(path: Path) -> int:
    """Pictures of a video, by its packets."""
    with av.open(str(path)) as container:
        return sum(1 for packet in container.demux(video=0) if packet.size)


# -- the child ------------------------------------------------------------------------------------


def analyse(recording: Path, folder: Path, model: str | None, video: VideoKind) -> None:
    """Run on the recording, with a tick in `folder`/ticks after every frame."""
    bundle = load_bundle(find_model(model).path)
    engine = open_engine(bundle)
    with (folder / "ticks").open("wb", buffering=0) as ticks:

        def tick(_: Progress) -> None:
            ticks.write(_TICK.pack(time.monotonic(), time.process_time()))

        run(
            recording,
            OutputFiles(folder / "results", STEM),
            bundle=bundle,
            engine=engine,
            options=RunOptions(video=video),
            on_progress=tick,
        )


# -- what is held ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Held:
    """What a process and its children hold at a moment."""

    at_s: float
    frames: int
    """How many were done."""
    resident_mb: float
    private_mb: float
    threads: int
    files: int
    load: float
    """Processes that want a core, over a minute, on the whole machine."""


def held(process: int, at_s: float, frames: int) -> Held | None:
    """Look at a process and its children; None where it is gone."""
    resident = private = threads = files = 0
    try:
        for each in _with_children(process):
            text = Path(f"/proc/{each}/status").read_text(encoding="utf-8")
            status = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
            resident += int(status["VmRSS"].split()[0])
            private += int(status["RssAnon"].split()[0])
            threads += int(status["Threads"])
            files += len(os.listdir(f"/proc/{each}/fd"))
    except (OSError, KeyError):  # a process that ends has no memory before it has no entry
        return None
    load = os.getloadavg()[0]
    return Held(at_s, frames, resident / 1024, private / 1024, threads, files, load)


def _with_children(process: int) -> list[int]:
    found = [process]
    for each in found:
        for thread in os.listdir(f"/proc/{each}/task"):
            children = Path(f"/proc/{each}/task/{thread}/children").read_text(encoding="ascii")
            found += [int(child) for child in children.split()]
    return found


def watch(command: Sequence[str], ticks: Path, say: Callable[[str], None]) -> list[Held]:
    """Run a child to its end and look at it every half second.

    Raises:
        SystemExit: it failed.
    """
    looks: list[Held] = []
    told_s = began_s = time.monotonic()
    with subprocess.Popen(command) as child:
        try:
            while True:
                try:
                    child.wait(LOOK_EVERY_S)
                    break
                except subprocess.TimeoutExpired:
                    pass
                now_s = time.monotonic()
                done = ticks.stat().st_size // _TICK.size if ticks.exists() else 0
                look = held(child.pid, now_s - began_s, done)
                if look is not None:
                    looks.append(look)
                if look is not None and now_s - told_s > 30:
                    told_s = now_s
                    say(f"{done} frames, {look.resident_mb:.0f} MB, load {look.load:.1f}")
        except BaseException:
            child.kill()
            raise
    if child.returncode != 0:
        raise SystemExit(f"the analysis failed with exit status {child.returncode}")
    return looks


# -- figures --------------------------------------------------------------------------------------


def deciles(ticks: Sequence[tuple[float, float]]) -> list[dict[str, float]]:
    """Milliseconds a frame, by tenth of the recording: wall time and CPU time.

    Args:
        ticks: (wall clock, CPU time) after every frame, in seconds; at least eleven.
    """
    last = len(ticks) - 1
    cuts = [round(last * k / 10) for k in range(11)]
    return [
        {
            kind: 1000 * (ticks[end][number] - ticks[first][number]) / (end - first)
            for number, kind in enumerate(("wall_ms", "cpu_ms"))
        }
        for first, end in pairwise(cuts)
    ]


def read_ticks(path: Path) -> list[tuple[float, float]]:
    """What `analyse` noted."""
    return [(wall, cpu) for wall, cpu in _TICK.iter_unpack(path.read_bytes())]


def moments(looks: Sequence[Held], frames: int) -> dict[str, Held]:
    """The looks when a tenth, half and all of the frames were done, and the one with the most
    memory."""
    chosen = {
        name: next((look for look in looks if look.frames >= share * frames), looks[-1])
        for name, share in (("10 %", 0.1), ("50 %", 0.5), ("100 %", 1.0))
    }
    return chosen | {"most": max(looks, key=lambda look: look.resident_mb)}


def bench(
    folder: Path,
    *,
    hours: float,
    size: tuple[int, int],
    rate: Fraction,
    video: VideoKind = "overlay",
    model: str | None = None,
    stretch_s: float = STRETCH_S,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Make a recording in `folder`, analyse it, and say what that took.

    Raises:
        SystemExit: the disk is too small, the child failed, or frames were lost.
    """
    stretch, recording = folder / "stretch.mp4", folder / f"{STEM}.mp4"
    began_s = time.monotonic()
    of_stretch = make_stretch(stretch, size, rate, stretch_s)
    copies = max(1, math.ceil(hours * 3600 * rate / of_stretch))
    need = 4 * copies * stretch.stat().st_size  # an overlay is up to three times the recording
    if shutil.disk_usage(folder).free < need:
        raise SystemExit(f"{folder} has no room for {need / 1e9:.1f} GB. Choose another --folder.")
    repeat(stretch, recording, copies)
    frames = of_stretch * copies
    made_s = time.monotonic() - began_s
    megabytes = recording.stat().st_size / 1e6
    say(f"{frames} frames, {megabytes:.0f} MB, made in {made_s:.0f} s")

    child = [sys.executable, "-c", "from tools import bench_long; bench_long.main()", "--child"]
    child += [str(recording), str(folder), model or "", video]
    before_s, ticks_file = time.monotonic(), folder / "ticks"
    looks = watch(child, ticks_file, say)
    ended_s = time.monotonic()
    ticks = read_ticks(ticks_file)
    results = OutputFiles(folder / "results", STEM)
    with results.path("scores.csv").open(encoding="utf-8") as scores:
        rows = sum(1 for _ in scores) - 1
    counted = {"frames": frames, "ticks": len(ticks), "rows": rows}
    if video == "overlay":
        counted["overlay_frames"] = frames_in(results.path("overlay.mp4"))
    if len(set(counted.values())) != 1:
        raise SystemExit(f"frames were lost: {counted}")
    record = json.loads(results.path("run.json").read_text(encoding="utf-8"))
    costs = deciles(ticks)
    return {
        "recording": {
            "hours": copies * float(of_stretch / rate) / 3600,
            "width": size[1],
            "height": size[0],
            "rate": float(rate),
            "copies": copies,
            "bytes": recording.stat().st_size,
            "made_s": made_s,
        },
        "video": video,
        "model": record["model"]["id"],
        "counted": counted,
        "alerts": record["counts"]["alerts"],
        "warnings": record["warnings"],
        "wall_s": ended_s - before_s,
        "closing_s": ended_s - ticks[-1][0],
        "stage_s": record["timing"]["stage_s"],
        "deciles": costs,
        "last_to_first": {kind: costs[-1][kind] / costs[0][kind] for kind in costs[0]},
        "moments": {name: asdict(look) for name, look in moments(looks, frames).items()},
        "looks": [asdict(look) for look in looks],
        "output_bytes": {file.name: file.stat().st_size for file in results.folder.iterdir()},
    }


# -- what is told ---------------------------------------------------------------------------------


def markdown(report: Mapping[str, Any]) -> str:
    """The report as tables."""
    recording, ratio = report["recording"], report["last_to_first"]
    first, last = report["looks"][0], report["looks"][-1]
    lines = [
        f"{recording['hours']:.2f} h of {recording['width']}x{recording['height']} at "
        f"{recording['rate']:g} frames/s: {report['counted']['frames']} frames, "
        f"{recording['bytes'] / 1e6:.0f} MB, {report['alerts']} alerts; video {report['video']}, "
        f"{report['model']}; {report['wall_s']:.0f} s, of it closing {report['closing_s']:.1f} s; "
        f"load {first['load']:.1f} to {last['load']:.1f}",
        "",
        "| done | frame | resident MB | private MB | threads | open files |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, look in report["moments"].items():
        lines.append(
            f"| {name} | {look['frames']} | {look['resident_mb']:.0f} | {look['private_mb']:.0f} "
            f"| {look['threads']} | {look['files']} |"
        )
    lines += [
        "",
        f"| ms a frame | {' | '.join(str(k) for k in range(1, 11))} | last to first |",
        f"| --- |{' ---: |' * 11}",
    ]
    for kind, name in (("wall_ms", "wall"), ("cpu_ms", "CPU")):
        cells = " | ".join(f"{each[kind]:.1f}" for each in report["deciles"])
        lines.append(f"| {name} | {cells} | {ratio[kind]:.3f} |")
    sizes = ", ".join(
        f"{name.partition('.')[2]} {size / 1e6:.2f}"
        for name, size in sorted(report["output_bytes"].items())
    )
    return (
        "\n".join([*lines, "", f"Frames, rows and overlay frames are equal. MB: {sizes}."]) + "\n"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables; writes the JSON where asked to."""
    given = sys.argv[1:] if argv is None else list(argv)
    if given[:1] == ["--child"]:
        recording, child_folder, model, kind = given[1:]
        video: VideoKind = "none" if kind == "none" else "overlay"
        analyse(Path(recording), Path(child_folder), model or None, video)
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=float, default=2.0, help="of stream (%(default)s)")
    parser.add_argument("--size", default="1920x1080", help="width x height (%(default)s)")
    parser.add_argument("--rate", type=Fraction, default=Fraction(5), help="frames/s (%(default)s)")
    parser.add_argument("--video", choices=("overlay", "none"), default="overlay")
    parser.add_argument("--model", help="a bundle's folder, or a packaged one's name")
    parser.add_argument("--stretch", type=float, default=STRETCH_S, metavar="S")
    parser.add_argument("--folder", type=Path, help="where to work; the system's if not given")
    parser.add_argument("--keep", action="store_true", help="leave recording and results there")
    parser.add_argument("--json", type=Path, help="file for all figures; replaced if there")
    options = parser.parse_args(given)
    width, height = map(int, options.size.split("x"))
    folder = Path(tempfile.mkdtemp(prefix="bench-long-", dir=options.folder))
    try:
        report = {
            "command": shlex.join(["python", "tools/bench_long.py", *given]),
            "ccdstream": __version__,
            "machine": machine(),
            **bench(
                folder,
                hours=options.hours,
                size=(height, width),
                rate=options.rate,
                video=options.video,
                model=options.model,
                stretch_s=options.stretch,
                say=lambda text: print(text, file=sys.stderr),
            ),
        }
    except CcdstreamError as error:
        raise SystemExit(f"error: {error}") from error
    finally:
        if options.keep:
            print(f"kept in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder)
    print(markdown(report), end="")
    if options.json is not None:
        write_text(options.json, json.dumps(report, indent=2) + "\n", overwrite=True)


if __name__ == "__main__":
    main()
