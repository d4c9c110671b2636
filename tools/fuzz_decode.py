"""Damages small recordings in every way, and reads each to its end. Nothing may come of it but
frames, counts of what is wrong, or one clear line.

    python tools/fuzz_decode.py [--count 300] [--seed 0] [--jobs 2] [--keep DIR] [--json FILE]
    python tools/fuzz_decode.py --replay SEED:NUMBER [--keep DIR]

Small videos are made in the containers and codecs that FFmpeg here can write. The damage of file
NUMBER of SEED is always the same (what x264 makes is not quite: --keep keeps the file): bits
flipped, runs of bytes overwritten, pieces cut off, put in, taken out, doubled or swapped, numbers
beside the names of boxes and chunks set to hostile values, sectors lost, stale or never written,
cut off where a part of the container begins, or two files spliced. Some of the sound files have an
uneven clock, so that no gap shows in it. It is read with `VideoSource`, its sound with
`AudioSource`, in a worker process, and fails where

    crashed        the process died
    hung           it took longer than `--limit` seconds
    error          anything but a CcdstreamError was raised, or its message is more than one line
    memory         more than 1.5 GB was held at a time
    frames differ  times do not rise, or frames differ in size or time base
    silent         fewer frames came than of the sound file, and nothing tells of it

**Silent** is defined so that it can be held against any file: the frames are fewer than those of
the file before it was damaged, `Problems` has not one sentence, and the container still announces
more frames than came, give or take `SLACK`: by its count, or by as many as fit into its length,
less `SLACK_S`, at the pace at which they came (one a second where a single one came). Damage that
also changed what is announced, or a stream that announces nothing, has left nothing to compare
with; what of it cannot be decoded is counted in `Problems` as all damage is, but a cut between two
pictures of such a stream makes a shorter, sound recording.

Exit status 1 where a file failed. Out: a table on stdout, all figures as JSON on request.
"""

import argparse
import json
import os
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np

from ccdstream.decode import VideoSource
from ccdstream.encode import repeatable_x264
from ccdstream.errors import CcdstreamError
from ccdstream.packets import AudioSource
from ccdstream.workers import Died, Done, Raised, Ready, Tell, Worker, Workers

FRAMES = 40
"""Of a sound file: some groups of pictures, and 1.6 s."""

GOP = 10
LIMIT_S = 20.0
"""Longest time for one file."""

MEMORY_MB = 1500
"""Most memory for one file."""

ADDRESS_SPACE = 6 << 30
"""Bytes that a worker may map: a file that takes more costs the worker, and not the machine."""

SLACK = 1
"""Frames: a length times a rate is rounded."""

SLACK_S = 0.1
"""Seconds: a length is often that of the sound, to the end of its packet."""

SIZE = (64, 80)


@dataclass(frozen=True, slots=True)
class Kind:
    """How a sound file is made."""

    name: str
    codec: str
    format: str | None = None
    pix_fmt: str = "yuv420p"
    audio: str | None = None
    options: dict[str, str] = field(default_factory=dict)
    container: dict[str, str] = field(default_factory=dict)
    size: tuple[int, int] = SIZE
    uneven: bool = False
    """Whether frames are not all as far apart, so that the clock does not tell of gaps."""


_FAST_VPX = {"deadline": "realtime", "cpu-used": "8", "threads": "1"}

KINDS = (
    Kind("h264.mp4", "libx264", audio="aac", options={"preset": "veryfast"}),
    Kind("faststart.mp4", "libx264", container={"movflags": "+faststart"}),
    Kind(
        "fragments.mp4",
        "libx264",
        container={"movflags": "+frag_keyframe+empty_moov+default_base_moof"},
    ),
    Kind("hevc.mp4", "libx265", options={"x265-params": "log-level=none:pools=1"}),
    Kind("mpeg4.mov", "mpeg4", audio="pcm_s16le"),
    Kind("mjpeg.mov", "mjpeg", pix_fmt="yuvj420p"),
    Kind("h264.mkv", "libx264", audio="aac"),
    Kind("ffv1.mkv", "ffv1"),
    Kind("vp8.webm", "libvpx", options=_FAST_VPX),
    Kind("vp9.webm", "libvpx-vp9", options=_FAST_VPX),
    Kind("av1.mkv", "libsvtav1", options={"preset": "12", "svtav1-params": "lp=1"}),
    Kind("vp9.mp4", "libvpx-vp9", options=_FAST_VPX),
    Kind("mpeg4.avi", "mpeg4", audio="mp2"),
    Kind("h264.avi", "libx264"),
    Kind("mjpeg.avi", "mjpeg", pix_fmt="yuvj420p"),
    Kind("msmpeg4.avi", "msmpeg4"),
    Kind("huffyuv.avi", "huffyuv", pix_fmt="yuv422p"),
    Kind("h264.ts", "libx264", "mpegts", audio="aac"),
    Kind("mpeg2.ts", "mpeg2video", "mpegts"),
    Kind("mpeg2.mpg", "mpeg2video", "vob", audio="mp2"),
    Kind("mpeg1.mpg", "mpeg1video", "mpeg"),
    Kind("h264.flv", "libx264", audio="aac"),
    Kind("flv1.flv", "flv"),
    Kind("wmv2.wmv", "wmv2", "asf", audio="mp2"),
    Kind("vp8.ogv", "libvpx", "ogg", options=_FAST_VPX),
    Kind("mpeg2.mxf", "mpeg2video", "mxf"),
    Kind("ffv1.nut", "ffv1", "nut"),
    Kind("raw.h264", "libx264", "h264"),
    Kind("raw.hevc", "libx265", "hevc", options={"x265-params": "log-level=none:pools=1"}),
    Kind("raw.y4m", "rawvideo", "yuv4mpegpipe"),
    Kind("vp9.ivf", "libvpx-vp9", "ivf", options=_FAST_VPX),
    Kind("dv.avi", "dvvideo", pix_fmt="yuv420p", size=(576, 720)),
    Kind("prores.mov", "prores_ks", pix_fmt="yuv422p10le"),
    Kind("gif.gif", "gif", pix_fmt="rgb8"),
    Kind("uneven.mkv", "libx264", audio="aac", uneven=True),
    Kind("uneven-ffv1.mkv", "ffv1", uneven=True),
    Kind("uneven.webm", "libvpx", options=_FAST_VPX, uneven=True),
    Kind("uneven.mp4", "libx264", audio="aac", uneven=True),
    Kind(
        "uneven-fragments.mp4",
        "libx264",
        container={"movflags": "+frag_keyframe+empty_moov+default_base_moof"},
        uneven=True,
    ),
    Kind("uneven.flv", "libx264", audio="aac", uneven=True),
    Kind("uneven.ts", "libx264", "mpegts", uneven=True),
    Kind("uneven.ogv", "libvpx", "ogg", options=_FAST_VPX, uneven=True),
    Kind("uneven.nut", "ffv1", "nut", uneven=True),
)


@dataclass(frozen=True, slots=True)
class Source:
    """A sound file."""

    name: str
    data: bytes
    frames: int


def make(kind: Kind, path: Path) -> None:
    """Write the sound file of `kind`: a texture that moves."""
    height, width = kind.size
    noise = np.random.default_rng(0).integers(40, 200, (height + 64, width + 64), dtype=np.uint8)
    noise = (noise.astype(np.uint16) + np.roll(noise, 1, 0) + np.roll(noise, 1, 1)) // 3
    with av.open(
        str(path),
        "w",
        format=kind.format,
        options={"fflags": "+bitexact"},
        container_options=kind.container,
    ) as container:
        options = {"g": str(GOP), "threads": "1", "flags": "+bitexact", **kind.options}
        if kind.codec == "libx264":  # so that a seed gives the same files again
            options |= repeatable_x264()
        video: Any = container.add_stream(kind.codec, rate=25, options=options)
        video.height, video.width, video.pix_fmt = height, width, kind.pix_fmt
        time_base = Fraction(1, 1000) if kind.uneven else Fraction(1, 25)
        video.time_base = video.codec_context.time_base = time_base
        sound: Any = None
        if kind.audio is not None:
            sound = container.add_stream(kind.audio, rate=48_000, layout="mono")
        for k in range(FRAMES):
            grey = np.ascontiguousarray(noise[k : k + height, k : k + width]).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="gray").reformat(format=kind.pix_fmt)
            frame.pts = 40 * k + (0, 13, -9, 5, -15)[k % 5] if kind.uneven else k
            frame.time_base = time_base
            container.mux(video.encode(frame))
            if sound is not None:
                wave = np.zeros((1, 1920), np.int16)
                tone = av.AudioFrame.from_ndarray(wave, "s16", "mono")
                tone.sample_rate, tone.pts, tone.time_base = 48_000, 1920 * k, Fraction(1, 48_000)
                container.mux(sound.encode(tone))
        container.mux(video.encode(None))
        if sound is not None:
            container.mux(sound.encode(None))


@contextmanager
def _usual_priority() -> Iterator[None]:
    """Undo what SVT-AV1 does for root: it gives the thread that opens it, and the workers that this
    starts later, priority over every other program."""
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def sources(folder: Path) -> list[Source]:
    """The sound files of all kinds that can be written here; made in `folder` where not there."""
    made = []
    os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 talks
    for kind in KINDS:
        path = folder / kind.name
        if not path.exists():
            try:
                with _usual_priority():
                    make(kind, path)
            except (av.FFmpegError, ValueError):  # this build has no such encoder
                path.write_bytes(b"")
        if path.stat().st_size:
            with VideoSource(path) as source:
                frames = sum(1 for _ in source)
            made.append(Source(kind.name, path.read_bytes(), frames))
    return made


# --- damage ----------------------------------------------------------------------------------

Random = np.random.Generator
Damage = Callable[[Random, bytearray], str]
"""Changes the bytes, and says what it did."""


def _range(random: Random, data: bytearray, most: int) -> tuple[int, int]:
    """Some bytes: anywhere, or where headers and indexes are."""
    size = min(len(data), int(2 ** random.uniform(0, np.log2(most))))
    last = len(data) - size
    where = random.integers(4)
    if where == 0:
        begin = int(random.integers(min(2048, last) + 1))
    elif where == 1:
        begin = last - int(random.integers(min(2048, last) + 1))
    else:
        begin = int(random.integers(last + 1))
    return begin, begin + size


def _flip(random: Random, data: bytearray) -> str:
    count = int(2 ** random.uniform(0, 6))
    for _ in range(count):
        begin, _ = _range(random, data, 2)
        data[begin] ^= 1 << int(random.integers(8))
    return f"{count} bits flipped"


def _overwrite(random: Random, data: bytearray) -> str:
    begin, end = _range(random, data, 4000)
    fill = int(random.integers(3))
    size = end - begin
    data[begin:end] = random.bytes(size) if fill == 0 else (b"\0" if fill == 1 else b"\xff") * size
    return f"{begin}..{end} overwritten with {('noise', 'zeros', 'ones')[fill]}"


def _cut(random: Random, data: bytearray) -> str:
    keep = int(random.integers(1, len(data)))
    del data[keep:]
    return f"cut off at {keep}"


def _insert(random: Random, data: bytearray) -> str:
    begin, end = _range(random, data, 4000)
    piece = random.bytes(end - begin) if random.integers(2) else bytes(end - begin)
    data[begin:begin] = piece
    return f"{end - begin} bytes put in at {begin}"


def _remove(random: Random, data: bytearray) -> str:
    begin, end = _range(random, data, max(2, len(data) // 3))
    del data[begin:end]
    return f"{begin}..{end} taken out"


def _double(random: Random, data: bytearray) -> str:
    begin, end = _range(random, data, max(2, len(data) // 3))
    at = int(random.integers(len(data)))
    data[at:at] = data[begin:end]
    return f"{begin}..{end} doubled at {at}"


def _swap(random: Random, data: bytearray) -> str:
    (a, b), (c, d) = sorted(_range(random, data, max(2, len(data) // 4)) for _ in "ab")
    if c < b:
        c = b
        d = max(c, d)
    data[a:d] = data[c:d] + data[b:c] + data[a:b]
    return f"{a}..{b} and {c}..{d} swapped"


_SECTOR = 512
"""Bytes that a disk loses or repeats at least. They are 4096 today; the files here are small."""


def _sectors(random: Random, data: bytearray) -> tuple[int, int]:
    """Some whole sectors; the last one of a file may be shorter."""
    first = int(random.integers((len(data) - 1) // _SECTOR + 1))
    count = int(random.choice([1, 1, 2, 4, 8]))
    return first * _SECTOR, min(len(data), (first + count) * _SECTOR)


def _lost_sectors(random: Random, data: bytearray) -> str:
    """As a disk gives them that cannot read them."""
    begin, end = _sectors(random, data)
    data[begin:end] = bytes(end - begin)
    return f"sectors {begin}..{end} lost"


def _stale_sectors(random: Random, data: bytearray) -> str:
    """What lay on the disk before: here, an earlier piece of the file."""
    begin, end = _sectors(random, data)
    other = int(random.integers(begin // _SECTOR + 1)) * _SECTOR
    data[begin:end] = data[other : other + end - begin]
    return f"sectors {begin}..{end} as from {other}"


def _never_written(random: Random, data: bytearray) -> str:
    """The power failed: the file has its size already, and not what belongs into it."""
    begin, _ = _sectors(random, data)
    data[begin:] = bytes(len(data) - begin)
    return f"zeros from {begin}"


def _cut_at_part(random: Random, data: bytearray) -> str:
    """A transfer broke off between two parts of the container, and not within one."""
    found = [m.start() for m in _PARTS.finditer(data)]
    if data[:1] == b"G":
        found = list(range(188, len(data), 188))
    if not found:
        return _cut(random, data)
    keep = max(1, found[int(random.integers(len(found)))])
    del data[keep:]
    return f"cut off at {keep}, where a part begins"


_PARTS = re.compile(
    rb"....moof|....mdat|\x1f\x43\xb6\x75|[\xa0\xa3][\x40-\x7f].\x81|OggS|0[01](dc|wb)|idx1|"
    rb"\0\0\1[\xba\xe0]|[\x08\x09]\0...\0\0\0\0|NK\xe4\xad|\x06\x0e\x2b\x34|FRAME",
    re.DOTALL,
)
"""Where parts of the containers begin: boxes, clusters, blocks, pages, chunks, packs, tags."""

_NAMES = b"""
ftyp moov mvhd trak tkhd elst mdhd hdlr stsd stts ctts stss stsc stsz stco co64 mdat moof mfhd tfhd
tfdt trun sidx trex esds avcC hvcC vpcC av1C pasp colr RIFF LIST hdrl avih strl strh strf vprp movi
idx1 00dc 01wb indx OggS FLV DKIF YUV4MPEG2 FRAME BBCD
""".split()
_ID_DIGITS = """
1a45dfa3 18538067 114d9b74 1549a966 2ad7b1 4489 1654ae6b ae d7 83 86 e0 b0 ba 23e383 1f43b675 e7 a3
a0 a1 9b 1c53bb6b bb b3 b7 1254c367 63a2 000001b3 000001ba 000001e0 00000100 00000167
3026b2758e66cf11 060e2b34
"""
_IDS = tuple(map(bytes.fromhex, _ID_DIGITS.split()))
"""Of EBML, MPEG, ASF and MXF."""
_HOSTILE = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**63,
)


def _field(random: Random, data: bytearray) -> str:
    """A number after (or a size before) a name that a container has, or a start code."""
    names = [n for n in (*_NAMES, *_IDS) if n in data]
    if not names:
        return _overwrite(random, data)
    name = names[int(random.integers(len(names)))]
    found, at = [], data.find(name)
    while at >= 0 and len(found) < 200:
        found.append(at)
        at = data.find(name, at + 1)
    begin = found[int(random.integers(len(found)))]
    at = begin - 4 if random.integers(4) == 0 else begin + len(name) + int(random.integers(40))
    at = max(0, at)
    width = int(random.choice([1, 2, 4, 4, 8]))
    value = _HOSTILE[int(random.integers(len(_HOSTILE)))] % (1 << 8 * width)
    order = "big" if random.integers(3) else "little"
    data[at : at + width] = value.to_bytes(width, order)  # type: ignore[arg-type]
    return f"{value} in {width} bytes at {at}, near {name!r}"


DAMAGES: tuple[Damage, ...] = (
    *(_flip, _flip, _overwrite, _cut, _insert, _remove, _double, _swap),
    *(_field, _field, _field),
    *(_lost_sectors, _stale_sectors, _never_written, _cut_at_part),
)


@dataclass(frozen=True, slots=True)
class Damaged:
    """A file to read."""

    source: Source
    data: bytes
    how: list[str]


def damaged(seed: int, number: int, sound: Sequence[Source]) -> Damaged:
    """File `number` of `seed`: always the same."""
    random = np.random.default_rng([seed, number])
    source = sound[int(random.integers(len(sound)))]
    data = bytearray(source.data)
    how = []
    if random.integers(12) == 0:
        other = sound[int(random.integers(len(sound)))]
        head, tail = int(random.integers(len(data))), int(random.integers(len(other.data)))
        data[head:] = other.data[tail:]
        how.append(f"up to {head}, then {other.name} from {tail}")
    else:
        for _ in range(int(random.choice([1, 1, 1, 2, 4]))):
            if len(data) > 16:
                how.append(DAMAGES[int(random.integers(len(DAMAGES)))](random, data))
    return Damaged(source, bytes(data), how)


# --- reading ---------------------------------------------------------------------------------


@dataclass(slots=True)
class Outcome:
    """What came of one file."""

    number: int
    source: str
    how: list[str]
    result: str = ""
    """"frames", "refused", or what failed, as above."""
    detail: str = ""
    frames: int = 0
    expected: int = 0
    announced: int | None = None
    told: list[str] = field(default_factory=list)
    seconds: float = 0.0
    memory_mb: int = 0

    @property
    def failed(self) -> bool:
        return self.result not in ("frames", "refused")


def read(path: Path, expected: int, least_pace_s: float = 0.0) -> dict[str, Any]:
    """What comes of reading `path` to its end, as fields of an `Outcome`; a bug is raised.

    `least_pace_s` is how far apart frames are on an average, where their commonest distance does
    not say it.
    """
    frames, last, wrong = 0, None, ""
    steps: Counter[int] = Counter()
    try:
        with VideoSource(path) as source:
            announced = source.frame_count_hint
            for frame in source:
                frames += 1
                if frame.size != source.size or frame.time_base != source.time_base:
                    wrong = f"frame {frames} is {frame.size} in {frame.time_base}"
                if last is not None and frame.pts <= last:
                    wrong = f"frame {frames} at {frame.pts} follows one at {last}"
                steps[frame.pts - (last or 0)] += last is not None
                last = frame.pts
            if announced is not None and not wrong and not source.format.startswith(("mov", "avi")):
                usual = (+steps).most_common(1)
                pace_s = float(usual[0][0] * source.time_base) if usual else 1.0
                length_s = max(0.0, (source.duration_s or 0.0) - SLACK_S)
                announced = min(announced, round(length_s / max(pace_s, least_pace_s)))
            told = source.problems.sentences()
        with AudioSource(path) as sound:
            for _ in sound:
                pass
    except CcdstreamError as error:
        if not str(error).isprintable():
            return {"result": "error", "detail": f"more than one line: {str(error)!r}"}
        return {"result": "refused", "detail": str(error)}
    result, detail = "frames", ""
    if wrong:
        result, detail = "frames differ", wrong
    elif frames < expected and not told and announced is not None and frames < announced - SLACK:
        result, detail = "silent", f"{frames} of {announced} announced frames, and no word of it"
    return {
        **{"result": result, "detail": detail, "frames": frames},
        **{"announced": announced, "told": told},
    }


def _memory_mb(*, reset: bool = False) -> int:
    """Most memory since the last reset; where Linux does not tell, since the process began."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) // 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def set_up(folder: Path, seed: int, tell: Tell) -> tuple[None, Callable[..., Outcome]]:
    """What a worker does: file `number`, written to a file of its own and read."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sound = [
        Source(name, (folder / name).read_bytes(), frames)
        for name, frames in json.loads((folder / "sources.json").read_text())
    ]

    def work(number: int, tell: Tell, stopped: Callable[[], bool]) -> Outcome:
        file = damaged(seed, number, sound)
        with tempfile.TemporaryDirectory(dir=folder) as own:
            path = Path(own, "damaged.bin")
            path.write_bytes(file.data)
            outcome = Outcome(number, file.source.name, file.how, expected=file.source.frames)
            _memory_mb(reset=True)
            began = time.monotonic()
            pace_s = 0.04 if file.source.name.startswith("uneven") else 0.0
            for name, value in read(path, file.source.frames, pace_s).items():
                setattr(outcome, name, value)
            outcome.seconds = time.monotonic() - began
            outcome.memory_mb = _memory_mb()
            if outcome.memory_mb > MEMORY_MB and not outcome.failed:
                outcome.result, outcome.detail = "memory", f"{outcome.memory_mb} MB"
        return outcome

    return None, work


def fuzz(
    folder: Path,
    sound: Sequence[Source],
    *,
    seed: int,
    numbers: Sequence[int],
    jobs: int = 2,
    limit_s: float = LIMIT_S,
    seen: Callable[[Outcome], None] = lambda outcome: None,
    setup: Callable[..., Any] = set_up,
) -> list[Outcome]:
    """What came of files `numbers` of `seed`, in their order.

    `folder` holds what `sources` made there. A worker that died or hangs is replaced; what it was
    at is "crashed" or "hung".
    """
    (folder / "sources.json").write_text(json.dumps([(s.name, s.frames) for s in sound]))
    waiting, outcomes = list(reversed(numbers)), {}
    begun: dict[Worker, float] = {}

    def end(worker: Worker, outcome: Outcome) -> None:
        begun.pop(worker, None)
        outcomes[outcome.number] = outcome
        seen(outcome)

    def lost(worker: Worker, result: str, detail: str) -> None:
        file = damaged(seed, worker.task, sound)
        outcome = Outcome(worker.task, file.source.name, file.how, result, detail)
        outcome.expected, outcome.seconds = file.source.frames, time.monotonic() - begun[worker]
        end(worker, outcome)

    def go_on(worker: Worker) -> None:
        if waiting:
            worker.give(waiting.pop())
            begun[worker] = time.monotonic()

    start = partial(setup, folder, seed)
    with Workers() as workers:
        for _ in range(min(jobs, len(waiting))):
            workers.add(start)
        while len(outcomes) < len(numbers):
            for worker, event in list(workers.events()):
                if isinstance(event, Done):
                    end(worker, event.result)
                    go_on(worker)
                elif isinstance(event, Ready):
                    go_on(worker)
                elif isinstance(event, Raised | Died):
                    if worker not in begun:
                        raise RuntimeError(f"a worker could not begin: {event}")
                    if isinstance(event, Raised):
                        lost(worker, "error", event.trace or str(event.error))
                        go_on(worker)
                    else:
                        lost(worker, "crashed", event.how)
                        workers.add(start)
            for worker, since in list(begun.items()):
                if time.monotonic() - since > limit_s:
                    lost(worker, "hung", f"more than {limit_s:g} s")
                    workers.retire(worker)
                    workers.add(start)
    return [outcomes[number] for number in numbers]


# --- what is told of it ----------------------------------------------------------------------


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The figures of a run."""
    shorter = [o for o in outcomes if o.result == "frames" and o.frames < o.expected]
    return {
        "files": len(outcomes),
        "failed": sum(o.failed for o in outcomes),
        "results": dict(Counter(o.result for o in outcomes)),
        "shorter": len(shorter),
        "shorter_and_told": sum(bool(o.told) for o in shorter),
        "longest_s": round(max((o.seconds for o in outcomes), default=0.0), 2),
        "most_memory_mb": max((o.memory_mb for o in outcomes), default=0),
    }


def _line(seed: int, outcome: Outcome) -> str:
    detail = outcome.detail.strip().splitlines()[-1] if outcome.detail else ""
    how = "; ".join(outcome.how)
    return f"{seed}:{outcome.number} {outcome.result}: {outcome.source}, {how}: {detail}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for one file")
    parser.add_argument("--keep", type=Path, help="a folder for the files that failed")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--replay", metavar="SEED:NUMBER", help="one file again, and all about it")
    asked = parser.parse_args(arguments)
    numbers: Sequence[int] = range(asked.count)
    if asked.replay:
        asked.seed, number = map(int, asked.replay.split(":"))
        numbers = [number]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sound = sources(folder)
        print(f"{len(sound)} sound files: {', '.join(s.name for s in sound)}", file=sys.stderr)

        def seen(outcome: Outcome) -> None:
            if outcome.failed:
                print(_line(asked.seed, outcome), file=sys.stderr, flush=True)
            if asked.keep and (outcome.failed or asked.replay):
                asked.keep.mkdir(parents=True, exist_ok=True)
                suffix = Path(outcome.source).suffix
                name = f"{asked.seed}-{outcome.number}-{outcome.result.split()[0]}{suffix}"
                (asked.keep / name).write_bytes(damaged(asked.seed, outcome.number, sound).data)

        outcomes = fuzz(
            folder,
            sound,
            seed=asked.seed,
            numbers=numbers,
            jobs=asked.jobs,
            limit_s=asked.limit,
            seen=seen,
        )
    figures = summary(outcomes)
    if asked.replay:
        print(json.dumps(asdict(outcomes[0]), indent=2))
    else:
        print("| | |\n| --- | --- |")
        for name, value in figures.items():
            shown = ", ".join(f"{k} {v}" for k, v in value.items()) if name == "results" else value
            print(f"| {name.replace('_', ' ')} | {shown} |")
    if asked.json:
        failures = [asdict(o) for o in outcomes if o.failed]
        report = {"seed": asked.seed, **figures, "sources": [s.name for s in sound]}
        asked.json.write_text(json.dumps({**report, "failures": failures}, indent=2) + "\n")
    return 1 if figures["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
