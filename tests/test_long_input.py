"""Recordings whose times or sizes do not fit into 32 bits, through to every result."""

import csv
import gc
import itertools
import json
import os
import re
import struct
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from ccdstream.bundle import Bundle
from ccdstream.decode import VideoSource
from ccdstream.engine.select import SelectedEngine
from ccdstream.packets import AudioSource
from ccdstream.recording import VideoKind
from ccdstream.timecode import parse_timecode, timecode
from tests.commands import analysed
from tests.videos import index_of, make_video, picture, times_of

HOUR = 3600
SIZE = (96, 128)
DENSE = 100
BRIGHT = range(20, 70)
"""Of the dense frames, 25 a second, that end every recording here."""


def shade(luma: int) -> av.VideoFrame:
    chroma = np.full((SIZE[0] // 2, SIZE[1] // 2), 128, np.uint8)
    return picture((np.full(SIZE, luma, np.uint8), chroma, chroma))


def late(
    path: Path, time_base: Fraction, first_s: int, lead_s: tuple[int, ...] = (), **options: object
) -> list[int]:
    """A recording of single dark frames at `lead_s`, then of dense ones from `first_s` on, some of
    them bright. Returns its pts."""
    tick = 1 / time_base
    pts = [int(s * tick) for s in lead_s]
    pts += [int((first_s + Fraction(k, 25)) * tick) for k in range(DENSE)]
    bright = range(len(lead_s) + BRIGHT.start, len(lead_s) + BRIGHT.stop)
    make_video(
        path,
        size=SIZE,
        frames=len(pts),
        pts=pts,
        time_base=time_base,
        picture_of=lambda k: shade(200 if k in bright else 50),
        **options,  # type: ignore[arg-type]
    )
    return pts


def chapters_of(path: Path) -> list[tuple[Fraction, Fraction, str]]:
    with av.open(str(path)) as container:
        return [
            (c["start"] * c["time_base"], c["end"] * c["time_base"], c["metadata"]["title"])  # type: ignore[operator]
            for c in container.chapters()
        ]


def page_data(path: Path) -> dict[str, object]:
    found = re.search(r'id="data">(.*?)</script>', path.read_text(encoding="utf-8"))
    assert found is not None
    return json.loads(found[1])  # type: ignore[no-any-return]


TICKS, MICRO = Fraction(1, 90_000), Fraction(1, 1_000_000)

KINDS: dict[str, Callable[[Path], list[int]]] = {
    # 15 h at 1/90000 s are 4.9e9 ticks: media header, durations and tables of version 1
    "fifteen hours.mp4": lambda p: late(p, TICKS, 15 * HOUR, tuple(range(0, 15 * HOUR, HOUR))),
    # 71 minutes of microseconds are 2**32
    "two hours.mov": lambda p: late(p, MICRO, 2 * HOUR, tuple(range(0, 2 * HOUR, 400))),
    # an edit list of 64 bits
    "from 20 h on.mp4": lambda p: late(p, TICKS, 20 * HOUR, audio="aac", audio_start_s=20 * HOUR),
    "from 20 h on.mov": lambda p: late(p, MICRO, 20 * HOUR),
    "from 20 h on.mkv": lambda p: late(p, Fraction(1, 1000), 20 * HOUR),
    "from 50 days on.mkv": lambda p: late(p, Fraction(1, 1000), 50 * 24 * HOUR),
    "from 20 h on.ts": lambda p: late(p, TICKS, 20 * HOUR, audio="mp2", audio_start_s=20 * HOUR),
    # the 33 bits of its clock are full at 95,443.7 s, behind the first frame by 100 s
    "wraps.ts": lambda p: late(p, TICKS, 95_443, tuple(range(95_343, 95_443, 5))),
}


@pytest.mark.parametrize("name", KINDS)
def test_times_beyond_32_bits_are_those_of_the_recording_in_every_result(
    tmp_path: Path, bundle: Bundle, engine: SelectedEngine, name: str
) -> None:
    video, out = tmp_path / name, tmp_path / "out"
    pts = KINDS[name](video)
    with VideoSource(video) as source:
        base = source.time_base
        assert [frame.pts for frame in source] == pts
    result = analysed(video, out, bundle, engine)
    assert result.warnings == []
    times = [time * base for time in pts]
    tail = times[-DENSE:]
    stem = video.stem

    rows = list(csv.DictReader((out / f"{stem}.scores.csv").read_text().splitlines()))
    assert [int(row["pts"]) for row in rows] == pts
    assert [row["seconds"] for row in rows] == [f"{float(time):.6f}" for time in times]

    (line,) = (out / f"{stem}.alerts.jsonl").read_text().splitlines()
    alert = json.loads(line)
    start, end, peak = (alert[f"{at}_pts"] * base for at in ("start", "end", "peak"))
    assert tail[BRIGHT.start] <= start <= peak <= end <= tail[BRIGHT.stop + 10]
    assert alert["start_s"] == pytest.approx(float(start), abs=1e-6)
    assert alert["start"] == timecode(float(start))
    assert f"{alert['start']} --> {alert['end']}" in (out / f"{stem}.alerts.vtt").read_text()

    overlay = out / f"{stem}.overlay.mp4"
    shown = times_of(overlay)
    offset = times[0] - shown[0]  # a late start is taken off: what is played begins at once
    assert shown == [time - offset for time in times] and shown[0] < 1
    chapters = chapters_of(overlay)
    assert chapters[0][0] == 0 and {title for *_, title in chapters[:-2]} == {"No alert"}
    assert all(a[1] == b[0] for a, b in itertools.pairwise(chapters))
    assert chapters[-2][2].startswith("Alert 1")
    assert chapters[-2][0] == pytest.approx(float(start - offset), abs=0.001)
    assert chapters[-2][1] == pytest.approx(float(end - offset), abs=0.001)

    record = json.loads((out / f"{stem}.run.json").read_text())
    steps = [float(after - before) for before, after in itertools.pairwise(times)]
    empty_s = sum(step for step in steps if step > 1)
    assert record["stream"] == {
        "first_s": float(times[0]), "last_s": float(times[-1]), "empty_s": empty_s,
    }  # fmt: skip
    data = page_data(out / f"{stem}.report.html")
    assert data["offset"] == float(offset) and data["end"] == float(times[-1])
    assert data["alerts"] == [[1, float(start), float(end), float(peak)]]
    assert all(int(time) < 2**53 for time in pts)  # so JSON's numbers hold them


@pytest.mark.parametrize("name", ["from 20 h on.mp4", "from 20 h on.mkv", "wraps.ts"])
def test_a_stretch_far_behind_is_found_by_its_timecode(
    tmp_path: Path, bundle: Bundle, engine: SelectedEngine, name: str
) -> None:
    video, out = tmp_path / name, tmp_path / "out"
    pts = KINDS[name](video)
    with VideoSource(video) as source:
        base = source.time_base
    asked = "26:30:45" if name == "wraps.ts" else "20:00:02"  # 1.3 s behind the wrap
    start_s = parse_timecode(asked)
    result = analysed(video, out, bundle, engine, start_s=start_s)
    wanted = [time for time in pts if time * base >= start_s]
    assert 0 < len(wanted) < DENSE and result.warnings == []
    rows = list(csv.DictReader((out / f"{video.stem}.scores.csv").read_text().splitlines()))
    assert [int(row["pts"]) for row in rows] == wanted
    times = times_of(out / f"{video.stem}.overlay.mp4")
    assert times == [(time - wanted[0]) * base for time in wanted]
    data = page_data(out / f"{video.stem}.report.html")
    assert data["offset"] == float(wanted[0] * base)


def test_a_recording_that_starts_before_zero_is_found_in_its_overlay(
    tmp_path: Path, bundle: Bundle, engine: SelectedEngine
) -> None:
    # FFmpeg counts from the wrap where MPEG-TS begins less than a minute before it
    video, out = tmp_path / "wraps soon.ts", tmp_path / "out"
    late(video, TICKS, 95_442)
    result = analysed(video, out, bundle, engine)
    assert -2 < result.first_s < -1
    assert len(result.warnings) == 1 and "before time 0" in result.warnings[0]
    first = times_of(out / "wraps soon.overlay.mp4")[0]
    data = page_data(out / "wraps soon.report.html")
    assert first == 0 and data["offset"] == pytest.approx(result.first_s)
    (alert,) = result.alerts
    marked = chapters_of(out / "wraps soon.overlay.mp4")[1]
    assert marked[0] == pytest.approx(alert.start_s - result.first_s, abs=0.001)


def test_what_is_far_beyond_any_recording_is_closed_up_and_said(tmp_path: Path) -> None:
    video = tmp_path / "absurd.mp4"
    late(video, TICKS, 2**29)
    with VideoSource(video) as source:
        pts = [frame.pts for frame in source]
        assert pts == [3600 * k for k in range(DENSE)]
        assert source.problems.sentences() == ["the clock of the file jumped 1 time; closed up"]


@pytest.mark.parametrize("video", ["overlay", "none"])
def test_no_object_stays_for_every_frame(
    tmp_path: Path, bundle: Bundle, engine: SelectedEngine, video: VideoKind
) -> None:
    """Not even until Python's collector of cycles comes by: a picture is megabytes to the system,
    and next to nothing to the collector, which waits for many."""
    path = make_video(tmp_path / "a.mp4", frames=200, audio="aac")
    analysed(path, tmp_path / "first", bundle, engine, video=video)  # what is kept once
    gc.collect()
    gc.disable()
    try:
        # not during a run: looking at the objects of other threads would disturb them
        before = Counter(type(each).__name__ for each in gc.get_objects())
        analysed(path, tmp_path / "second", bundle, engine, video=video)
        after = Counter(type(each).__name__ for each in gc.get_objects())
    finally:
        gc.enable()
    assert {kind: number for kind, number in (after - before).items() if number > 100} == {}


# -- files beyond 4 GiB ---------------------------------------------------------------------------

HOLE = 5 << 30
_CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")


def boxes(data: bytes) -> list[tuple[bytes, bytes]]:
    """(type, content) of the boxes of an MP4."""
    found, at = [], 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        found.append((kind, data[at + 8 : at + size]))
        at += size
    return found


def moved(data: bytes, by: int) -> bytes:
    """Boxes with chunk offsets of 64 bits, `by` bytes further on."""
    result = b""
    for kind, content in boxes(data):
        if kind in _CONTAINERS:
            content = moved(content, by)
        if kind == b"stco":
            kind, (count,) = b"co64", struct.unpack_from(">I", content, 4)
            offsets = struct.unpack_from(f">{count}I", content, 8)
            content = content[:8] + struct.pack(f">{count}Q", *(each + by for each in offsets))
        result += struct.pack(">I4s", len(content) + 8, kind) + content
    return result


def huge_mp4(small: Path, path: Path) -> None:
    """The same with a `free` box of 5 GiB, which takes no room on the disk, before the media."""
    with path.open("wb") as file:
        for kind, content in boxes(small.read_bytes()):
            if kind == b"mdat":
                file.write(struct.pack(">I4sQ", 1, b"free", HOLE))
                file.seek(HOLE - 16, os.SEEK_CUR)
            box = struct.pack(">I4s", len(content) + 8, kind) + content
            file.write(moved(box, HOLE) if kind == b"moov" else box)


def huge_mkv(small: Path, path: Path) -> None:
    """The same with voids of 5 GiB between two clusters; its index, now wrong, is made void.

    Five of them: FFmpeg passes over none of more than 2 GiB.
    """
    data = small.read_bytes()
    index = data.rindex(_CUES)
    size = len(data) - index - 9  # of 8 bytes, which begin with 01 in EBML
    data = data[:index] + b"\xec" + struct.pack(">Q", 1 << 56 | size) + bytes(size)
    start = data.index(_SEGMENT) + 4
    data = data[:start] + b"\x01" + 7 * b"\xff" + data[start + 8 :]  # of no known size
    clusters = [found.start() for found in re.finditer(_CLUSTER, data)]
    cut = clusters[len(clusters) // 2]
    with path.open("wb") as file:
        file.write(data[:cut])
        for _ in range(5):
            file.write(b"\xec" + struct.pack(">Q", 1 << 56 | HOLE // 5))
            file.seek(HOLE // 5, os.SEEK_CUR)
        file.write(data[cut:])


_SEGMENT, _CUES, _CLUSTER = b"\x18\x53\x80\x67", b"\x1c\x53\xbb\x6b", b"\x1f\x43\xb6\x75"


@pytest.mark.parametrize(
    ("name", "enlarge"), [("a.mp4", huge_mp4), ("a.mov", huge_mp4), ("a.mkv", huge_mkv)]
)
def test_a_file_beyond_4_gib_is_read_and_sought_as_a_small_one(
    tmp_path: Path, name: str, enlarge: Callable[[Path, Path], None]
) -> None:
    small = tmp_path / name
    make_video(small, frames=200, options={"g": "10"}, audio="aac")
    huge = tmp_path / f"huge.{name}"
    try:
        enlarge(small, huge)
    except OSError as error:
        pytest.skip(f"no file of 5 GiB here: {error}")
    if huge.stat().st_blocks * 512 > HOLE // 2:
        huge.unlink()
        pytest.skip("this file system has no sparse files")
    for start_s in (None, 6.0):
        with (
            VideoSource(small, start_s=start_s) as of_small,
            VideoSource(huge, start_s=start_s) as of_huge,
        ):
            wanted = [(frame.pts, index_of(frame.y)) for frame in of_small]
            assert [(frame.pts, index_of(frame.y)) for frame in of_huge] == wanted
            assert of_huge.problems.sentences() == []
        with AudioSource(small, start_s=start_s) as sound, AudioSource(huge, start_s=start_s) as it:
            heard = [(packet.pts, bytes(packet)) for packet in sound]
            assert [(packet.pts, bytes(packet)) for packet in it] == heard
