"""How late a live session is, and what it drops.

    python tools/bench_live.py [--model BUNDLE] [--rates 25,30,50,60] [--sizes 720x576,1920x1080]
                               [--seconds 20] [--record] [--json FILE]
    python tools/bench_live.py --soak HOURS [--speed N]

A source gives frames of the rendered sample procedure in real time, each with its number burned in
as blocks of black and white. So what is put on the board, and with --record what is in the file,
says which frame it is: the bench proves that pictures come in order, and that none was older than
the bound when it was shown. Decoding is not part of it: the frames are in memory.

    to result     from capture until score, state and alerts of the frame are known
    to overlay    from capture until the frame with its overlay is on the board
    overtaken     a newer frame came before the analysis was free
    late          analysed, though too late to be shown; the newest was shown plain instead
    missed        drawn, and then too old to be shown

--soak runs as many frames as HOURS of 25 frames/s have, N times as fast, with recordings that
rotate and a source that is lost now and then, and says what the process holds at the start, in the
middle and at the end: that must stay flat.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ccdstream import __version__, sample
from ccdstream.bundle import Bundle, load_bundle
from ccdstream.decode import VideoSource
from ccdstream.doctor import machine
from ccdstream.engine.base import BuildOptions
from ccdstream.engine.select import SelectedEngine, open_engine
from ccdstream.errors import CcdstreamError
from ccdstream.frames import Colour, Frame
from ccdstream.live.board import Board
from ccdstream.live.capture import Capture
from ccdstream.live.gallery import LiveGallery
from ccdstream.live.journal import Journal
from ccdstream.live.record import ClipRule, Recorder
from ccdstream.live.records import Mode, Shown, SourceLost
from ccdstream.live.session import Counts, LiveOptions, LiveResult, StreamClock, run_live
from ccdstream.packaged import find_model
from ccdstream.process import settle
from ccdstream.render import with_heat
from ccdstream.report.files import write_text
from ccdstream.sample import SampleOptions

Size = tuple[int, int]

BLOCK_PX = 8
BITS = 24
"""Of a frame's number; as many blocks follow with their inverse, so that damage is seen."""
COLOUR = Colour("bt601", full_range=False)
LOOP_S = 2.0
"""So much of the sample is kept in memory, and played forwards and backwards."""
LOSE_EVERY = 5000
"""Frames after which the source of a soak is lost."""


# -- numbers in pictures --------------------------------------------------------------------------


def burn(luma: np.ndarray, number: int) -> None:
    """Write a number into the top of a picture, in place.

    Args:
        luma: uint8 [H, W], W of 400 or more.
        number: 0 to 2**24 - 1.
    """
    bits = (number >> np.arange(BITS)) & 1
    blocks = np.where(np.concatenate([bits, 1 - bits]) > 0, 235, 16).astype(np.uint8)
    left = luma.shape[1] // 2 - BITS * BLOCK_PX // 2
    row = blocks.reshape(2, BITS).repeat(BLOCK_PX, axis=0).repeat(BLOCK_PX, axis=1)
    luma[: 2 * BLOCK_PX, left : left + BITS * BLOCK_PX] = row


def number_in(luma: np.ndarray) -> int:
    """The number that was burned in.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    left = luma.shape[1] // 2 - BITS * BLOCK_PX // 2
    strip = luma[: 2 * BLOCK_PX, left : left + BITS * BLOCK_PX].astype(np.float32)
    blocks = strip.reshape(2, BLOCK_PX, BITS, BLOCK_PX).mean((1, 3))
    bits = blocks > 126
    if (bits[0] == bits[1]).any() or (np.abs(blocks - 126) < 40).any():
        raise ValueError("no frame number can be read in this picture")
    return int((bits[0].astype(np.int64) << np.arange(BITS)).sum())


# -- the source -----------------------------------------------------------------------------------


def sample_frames(size: Size) -> list[Frame]:
    """Some of the rendered procedure, forwards and backwards, in another size."""
    frames = [scaled(frame, size) for frame, _ in sample.frames(SampleOptions(seconds=LOOP_S))]
    return frames + frames[-2:0:-1]


def scaled(frame: Frame, size: Size) -> Frame:
    """The frame in another size, both even."""
    height, width = size
    if frame.size == size:
        return frame
    half = (width // 2, height // 2)
    return replace(
        frame,
        y=cv2.resize(frame.y, (width, height), interpolation=cv2.INTER_AREA),
        u=cv2.resize(frame.u, half, interpolation=cv2.INTER_AREA),
        v=cv2.resize(frame.v, half, interpolation=cv2.INTER_AREA),
    )


class NumberedSource:
    """Gives numbered frames in real time, as a camera does: what nobody reads in time is gone.

    Args:
        frames: to play in a loop.
        rate: frames a second.
        count: frames until its end.
        lose_every: frames after which the signal is lost for a moment; None: never.
    """

    name = "bench"

    def __init__(
        self, frames: Sequence[Frame], rate: Fraction, count: int, lose_every: int | None = None
    ) -> None:
        self.ends = lose_every is None
        self.given_at_s: dict[int, float] = {}
        """When each frame was given, by its number; the last few thousand."""
        self.number = 0
        self.missed = 0
        """Frames whose time had passed before anyone asked for them."""
        self._frames = frames
        self._rate = rate
        self._count = count
        self._lose_every = lose_every
        self._began_s: float | None = None

    @property
    def over(self) -> bool:
        """Whether all were given."""
        return self.number >= self._count

    @contextmanager
    def connect(self) -> Iterator["NumberedSource"]:
        self._began_s = None
        self._first = self.number
        yield self

    @property
    def mode(self) -> Mode:
        return Mode(self._frames[0].size, self._rate, "yuv420p", "memory")

    def read(self) -> Frame | None:
        """The next frame, when its time has come."""
        if self.over:
            if self.ends:
                return None
            raise SourceLost("all frames were given")
        if self._lose_every and self.number > self._first and self.number % self._lose_every == 0:
            self.number += 1
            raise SourceLost("pulled out")
        if self._began_s is None:
            self._began_s = time.monotonic()
        due = (time.monotonic() - self._began_s) * self._rate
        number = min(self._first + max(self.number - self._first, int(due)), self._count)
        self.missed += number - self.number
        self.number = number
        if self.over:
            return self.read()
        left_s = self._began_s + float((number - self._first) / self._rate) - time.monotonic()
        if left_s > 0:
            time.sleep(left_s)
        frame = self._frames[number % len(self._frames)]
        luma = frame.y.copy()
        burn(luma, number)
        self.number = number + 1
        self.given_at_s[number] = time.monotonic()
        self.given_at_s.pop(number - 4000, None)
        return replace(frame, y=luma, pts=number, time_base=1 / self._rate)


# -- what is looked at ----------------------------------------------------------------------------


class ProvingBoard(Board):
    """Reads the number of each picture as it is shown, and how old it is at that moment."""

    def __init__(self, source: NumberedSource) -> None:
        super().__init__()
        self.oldest_s = 0.0
        self.disordered = 0
        self.pictures = 0
        self._source = source
        self._last = -1

    def show(self, shown: Shown) -> None:
        super().show(shown)
        if shown.frame is None:
            return
        age_s = time.monotonic() - self._source.given_at_s[number := number_in(shown.frame.y)]
        self.oldest_s = max(self.oldest_s, age_s)
        self.disordered += number < self._last
        self.pictures += 1
        self._last = number


@dataclass(frozen=True, slots=True)
class Held:
    """What the process holds."""

    at_s: float
    rss_mb: float
    threads: int
    files: int


def held(began_s: float) -> Held:
    """Of this process, now; Linux only."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Held(
        time.monotonic() - began_s,
        pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        len(os.listdir("/proc/self/task")),
        len(os.listdir("/proc/self/fd")),
    )


# -- sessions -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Case:
    """A session of the bench, and what came of it."""

    size: Size
    rate: float
    recorded: bool
    result: LiveResult
    missed: int
    oldest_shown_s: float
    disordered: int
    pictures: int
    in_file: int | None
    """Frames of the recording whose numbers rise; None where nothing was recorded."""
    load: float


def play(
    source: NumberedSource,
    bundle: Bundle,
    engine: SelectedEngine,
    folder: Path,
    *,
    bound_s: float,
    record: bool,
    segment_s: float | None = None,
    on_count: Callable[[Counts], None] = lambda _: None,
) -> tuple[LiveResult, ProvingBoard]:
    """A whole session, with its journal and pictures, and recordings on request."""
    board, clock = ProvingBoard(source), StreamClock()
    with ExitStack() as stack:
        journal = stack.enter_context(
            Journal(folder, "live", parts=bundle.parts, start_wall=clock.wall_of)
        )
        overlay = None
        if record:
            overlay = stack.enter_context(
                Recorder(
                    folder,
                    "live.overlay",
                    size=source.mode.size,
                    colour=COLOUR,
                    rate_hint=source.mode.rate or Fraction(25),
                    segment_s=segment_s,
                    clips=ClipRule(),
                    on_event=journal.event,
                )
            )
        capture = Capture(source, first_retry_s=0.2, longest_retry_s=0.2, on_event=journal.event)
        result = run_live(
            capture,
            bundle,
            engine,
            options=LiveOptions(bound_s),
            board=board,
            clock=clock,
            journal=journal,
            overlay=overlay,
            gallery=stack.enter_context(LiveGallery(start_s=0.0, heated=with_heat)),
            stopped=lambda: source.over and not source.ends,
            on_event=journal.event,
            on_count=lambda counts, _: on_count(counts),
        )
    if result.failures:
        raise SystemExit(f"the session could not write: {result.failures}")
    return result, board


def measure(
    size: Size,
    rate: Fraction,
    frames: Sequence[Frame],
    bundle: Bundle,
    engine: SelectedEngine,
    *,
    seconds: float,
    bound_s: float,
    record: bool,
) -> Case:
    """One row of the table."""
    source = NumberedSource(frames, rate, round(seconds * rate))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result, board = play(source, bundle, engine, folder, bound_s=bound_s, record=record)
        in_file = rising_numbers(folder / "live.overlay.000.mp4") if record else None
    return Case(
        size,
        float(rate),
        record,
        result,
        source.missed,
        board.oldest_s,
        board.disordered,
        board.pictures,
        in_file,
        os.getloadavg()[0],
    )


def rising_numbers(path: Path) -> int:
    """How many frames a recording has; each must have a higher number than the one before.

    Raises:
        SystemExit: one has not, or has none.
    """
    last, count = -1, 0
    with VideoSource(path) as source:
        for frame in source:
            number = number_in(frame.y)
            if number <= last:
                raise SystemExit(f"{path.name}: frame {number} follows frame {last}")
            last, count = number, count + 1
    return count


def speed_of(text: str) -> Fraction:
    """What --speed says, exactly: 1.8 as a float is a fraction that no time base can hold.

    Raises:
        ValueError: it is no number above 0.
    """
    speed = Fraction(text)
    if speed <= 0:
        raise ValueError(f"a speed is above 0, not {text}")
    return speed


def soak(
    hours: float, speed: Fraction, bundle: Bundle, engine: SelectedEngine, bound_s: float
) -> dict[str, Any]:
    """Play an hour's frames and more, and see what the process holds meanwhile."""
    count = round(hours * 3600 * 25)
    source = NumberedSource(sample_frames((576, 720)), 25 * speed, count, lose_every=LOSE_EVERY)
    samples: list[tuple[int, Held]] = []
    began_s = time.monotonic()

    def look(_: Counts) -> None:
        # the first tenth is for warming up: caches, the time line, the first segments
        due = count * (0.1 + 0.9 * len(samples) / 40)
        if source.number >= due:
            samples.append((source.number, held(began_s)))

    with tempfile.TemporaryDirectory() as name:
        result, board = play(
            source,
            bundle,
            engine,
            Path(name),
            bound_s=bound_s,
            record=True,
            segment_s=60.0,
            on_count=look,
        )
        written = sum(path.stat().st_size for path in Path(name).rglob("*") if path.is_file())
        files = len(list(Path(name).rglob("*.mp4")))
    return {
        "hours": hours,
        "speed": float(speed),
        "wall_s": result.wall_s,
        "held": [{"frame": frame, **asdict(what)} for frame, what in samples],
        "counts": asdict(result.counts),
        "oldest_shown_s": board.oldest_s,
        "disordered": board.disordered,
        "written_mb": written / 2**20,
        "videos": files,
        "load": os.getloadavg()[0],
    }


# -- what is told ---------------------------------------------------------------------------------


def table(cases: Sequence[Case]) -> str:
    """Markdown."""
    head = (
        "| size, frames/s | analysed | to result: p50, p95, p99, max (ms) "
        "| to overlay: p50, p95, p99, max (ms) | overtaken | late | missed | oldest shown (ms) "
        "| load |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    )
    rows = []
    for case in cases:
        counts, delays = case.result.counts, case.result.delays
        height, width = case.size
        share = 100 * counts.analysed / max(counts.captured, 1)
        recorded = ", recorded" if case.recorded else ""
        rows.append(
            f"| {width}x{height}, {case.rate:g}{recorded} | {share:.1f} % of {counts.captured} "
            f"| {_figures(delays['capture_to_result'])} | {_figures(delays['capture_to_overlay'])} "
            f"| {counts.dropped_slot} | {counts.dropped_late} | {counts.deadline_misses} "
            f"| {1000 * case.oldest_shown_s:.0f} | {case.load:.1f} |"
        )
    return "\n".join([head, *rows])


def _figures(delays: Any) -> str:
    if not delays.count:
        return "none"
    quantiles = [1000 * delays.quantile(share) for share in (0.5, 0.95, 0.99)]
    return ", ".join(f"{value:.0f}" for value in [*quantiles, 1000 * delays.max_s])


def soak_table(report: dict[str, Any]) -> str:
    """Markdown."""
    held_at = report["held"]
    chosen = [held_at[0], held_at[len(held_at) // 2], held_at[-1]]
    lines = ["| | frame | RSS (MB) | threads | open files |", "| --- | --- | --- | --- | --- |"]
    for name, at in zip(("start", "middle", "end"), chosen, strict=True):
        lines.append(
            f"| {name} | {at['frame']} | {at['rss_mb']:.0f} | {at['threads']} | {at['files']} |"
        )
    return "\n".join(lines)


def as_json(case: Case) -> dict[str, Any]:
    """What --json holds of a row."""
    record = asdict(replace(case, result=None))  # type: ignore[arg-type]
    return record | {
        "counts": asdict(case.result.counts),
        "delays_s": case.result.delays.summary(),
        "wall_s": case.result.wall_s,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a bundle's folder, or a packaged one's name")
    parser.add_argument("--rates", default="25,30,50,60")
    parser.add_argument("--sizes", default="720x576,1920x1080")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--max-latency", type=float, default=0.1, metavar="S")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--soak", type=float, metavar="HOURS")
    parser.add_argument("--speed", type=speed_of, default=Fraction(4))
    options = parser.parse_args(arguments)
    settle()
    try:
        bundle = load_bundle(find_model(options.model).path)
        engine = open_engine(bundle, build=BuildOptions(batch=(1, 1, 1)))
    except CcdstreamError as error:
        raise SystemExit(f"error: {error}") from error
    report: dict[str, Any] = {
        "command": sys.argv,
        "ccdstream": __version__,
        "machine": machine(),
        "model": bundle.model_id,
        "engine": engine.reason,
    }
    print(f"{bundle.model_id}, {engine.name} {engine.version} on {engine.device}", file=sys.stderr)
    if options.soak:
        report["soak"] = soak(options.soak, options.speed, bundle, engine, options.max_latency)
        print(soak_table(report["soak"]))
        print(json.dumps({k: v for k, v in report["soak"].items() if k != "held"}), file=sys.stderr)
    else:
        cases = []
        for text in options.sizes.split(","):
            width, height = map(int, text.split("x"))
            frames = sample_frames((height, width))
            for rate in options.rates.split(","):
                case = measure(
                    (height, width),
                    Fraction(rate),
                    frames,
                    bundle,
                    engine,
                    seconds=options.seconds,
                    bound_s=options.max_latency,
                    record=options.record,
                )
                if case.disordered:
                    raise SystemExit(f"{case.disordered} pictures were shown out of order")
                cases.append(case)
                print(table([case]).splitlines()[-1], file=sys.stderr)
        report["cases"] = [as_json(case) for case in cases]
        print(table(cases))
    if options.json is not None:
        write_text(options.json, json.dumps(report, indent=2) + "\n", overwrite=True)


if __name__ == "__main__":
    main()
