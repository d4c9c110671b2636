"""What a recording promises: all frames at their times, playable after a crash, and no waiting."""

import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from ccdstream.decode import VideoSource
from ccdstream.errors import OutputError
from ccdstream.frames import Colour, Frame
from ccdstream.live.record import (
    KEYFRAME_S,
    X264,
    ClipRule,
    Coded,
    Coding,
    PacketRing,
    Recorder,
)
from ccdstream.live.records import TIME_BASE, Event
from tests.disks import room_for, small_disk
from tests.videos import flat, index_of, textured

SIZE = (48, 64)
COLOUR = Colour("bt601", full_range=False)
STEP = 3600
"""25 frames a second."""
S = 90_000


@dataclass
class Told:
    """The events of a recorder, and a way to wait for one."""

    events: list[Event] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __call__(self, event: Event) -> None:
        with self.changed:
            self.events.append(event)
            self.changed.notify_all()

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [dict(event.data) for event in self.events if event.kind == kind]

    def wait_for(self, kind: str) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.of(kind), timeout=60), f"no {kind}"


def open_recorder(folder: Path, told: Told | None = None, **changes: Any) -> Recorder:
    """One that takes every frame of a test."""
    options: dict[str, Any] = {
        "size": SIZE,
        "colour": COLOUR,
        "rate_hint": Fraction(25),
        "segment_s": None,
        "clips": None,
        "preset": "ultrafast",
        "depth": 10_000,
        "on_event": told or Told(),
    }
    return Recorder(folder, "live.overlay", **(options | changes))


def frames(pts: Sequence[int], size: tuple[int, int] = SIZE, first: int = 0) -> Iterator[Frame]:
    for k, time in enumerate(pts, first):
        yield Frame(*flat(k, size), time, TIME_BASE, COLOUR)


def record(recorder: Recorder, pts: Sequence[int], **options: Any) -> None:
    for frame in frames(pts, **options):
        assert recorder.write(frame)


def read(*paths: Path) -> list[tuple[int, int]]:
    """(pts, which frame modulo 32) of all that can be decoded."""
    found = []
    for path in paths:
        with VideoSource(path) as source:
            assert source.time_base == TIME_BASE
            found += [(frame.pts, index_of(frame.y)) for frame in source]
    return found


def steady(seconds: float, start: int = 0) -> list[int]:
    return [start + STEP * k for k in range(round(seconds * 25))]


def numbered(pts: Sequence[int], first: int = 0) -> list[tuple[int, int]]:
    return [(time, k % 32) for k, time in enumerate(pts, first)]


# --- segments ---


def test_every_frame_is_in_one_segment_and_keeps_its_exact_time(tmp_path: Path) -> None:
    """With a rate that varies, and a start that is not 0."""
    dice = random.Random(3)
    pts = [17]
    while pts[-1] < 9 * S:
        pts.append(pts[-1] + dice.randint(1, 9000))
    told = Told()
    with open_recorder(tmp_path, told, segment_s=2.0) as recorder:
        record(recorder, pts)
    paths = sorted(tmp_path.iterdir())
    assert [path.name for path in paths] == [f"live.overlay.{k:03d}.mp4" for k in range(5)]
    assert read(*paths) == numbered(pts)
    assert (recorder.frames, recorder.dropped, recorder.failed) == (len(pts), 0, None)
    assert [event["cause"] for event in told.of("segment_opened")] == ["start", *["length"] * 4]
    closed = told.of("segment_closed")
    assert [event["file"] for event in closed] == [path.name for path in paths]
    assert [event["bytes"] for event in closed] == [path.stat().st_size for path in paths]
    assert sum(event["frames"] for event in closed) == len(pts)
    assert all(a["end_s"] == b["start_s"] for a, b in pairwise(closed))
    assert all(2.0 <= event["end_s"] - event["start_s"] < 3.2 for event in closed[:-1])


def test_a_second_is_a_fragment_and_frames_are_stored_as_they_are_shown(tmp_path: Path) -> None:
    with open_recorder(tmp_path) as recorder:
        record(recorder, steady(5))
    (path,) = tmp_path.iterdir()
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    assert [p.dts for p in packets] == [p.pts for p in packets] == steady(5)
    assert [p.pts for p in packets if p.is_keyframe] == [
        round(k * KEYFRAME_S * S) for k in range(5)
    ]
    assert path.read_bytes().count(b"moof") == 5
    with av.open(str(path)) as container:
        assert container.duration == 5_000_000  # the last frame is shown as long as the others


@pytest.mark.parametrize("size", [(47, 64), (48, 63), (47, 63)])
def test_an_odd_size_is_made_even(tmp_path: Path, size: tuple[int, int]) -> None:
    with open_recorder(tmp_path, size=size) as recorder:
        record(recorder, steady(0.2), size=size)
    (path,) = tmp_path.iterdir()
    with VideoSource(path) as source:
        assert source.size == SIZE
    assert read(path) == numbered(steady(0.2))


def test_colour_and_shape_of_pixels_are_told(tmp_path: Path) -> None:
    with open_recorder(tmp_path, sample_aspect_ratio=Fraction(16, 15)) as recorder:
        record(recorder, [0])
    with VideoSource(tmp_path / "live.overlay.000.mp4") as source:
        assert source.colour == COLOUR
        assert source.sample_aspect_ratio == Fraction(16, 15)


def test_a_picture_that_is_larger_than_was_known_gets_the_threads_that_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    opened: list[tuple[tuple[int, int], int]] = []

    def encoder(coding: Coding) -> X264:
        opened.append((coding.size, coding.threads))
        return X264(coding)

    with open_recorder(tmp_path, open_encoder=encoder) as recorder:
        record(recorder, [0], size=(1080, 1920))
    assert recorder.failed is None
    assert opened == [(SIZE, 1), ((1080, 1920), 2)]


def test_more_threads_change_nothing_of_what_is_written(tmp_path: Path) -> None:
    with open_recorder(tmp_path, threads=3) as recorder:
        record(recorder, steady(3))
    assert read(tmp_path / "live.overlay.000.mp4") == numbered(steady(3))


def test_another_size_begins_a_segment_and_loses_no_frame(tmp_path: Path) -> None:
    told = Told()
    with open_recorder(tmp_path, told) as recorder:
        record(recorder, steady(1.5))
        record(recorder, steady(1, start=2 * S), size=(64, 96))
        record(recorder, steady(1, start=4 * S))
    paths = sorted(tmp_path.iterdir())
    assert [read(path) for path in paths] == [
        numbered(steady(1.5)),
        numbered(steady(1, start=2 * S)),
        numbered(steady(1, start=4 * S)),
    ]
    opened = told.of("segment_opened")
    assert [event["cause"] for event in opened] == ["start", "size", "size"]
    assert [(event["height"], event["width"]) for event in opened] == [SIZE, (64, 96), SIZE]


def test_a_pause_begins_a_segment_so_that_no_old_picture_stands_for_it(tmp_path: Path) -> None:
    told = Told()
    with open_recorder(tmp_path, told) as recorder:
        record(recorder, steady(1))
        record(recorder, steady(1, start=30 * S), first=25)
    paths = sorted(tmp_path.iterdir())
    assert read(*paths) == numbered([*steady(1), *steady(1, start=30 * S)])
    first, second = told.of("segment_closed")
    assert (first["cause"], first["end_s"], second["start_s"]) == ("pause", 1.0, 30.0)
    assert recorder.pauses == 1


def test_without_a_frame_there_is_no_file(tmp_path: Path) -> None:
    told = Told()
    with open_recorder(tmp_path, told, clips=ClipRule()):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["clips"]
    assert told.events == []


def test_a_frame_that_is_not_after_the_last_one_is_refused(tmp_path: Path) -> None:
    with open_recorder(tmp_path) as recorder:
        record(recorder, [5])
        with pytest.raises(ValueError, match="pts 5 is not after"):
            record(recorder, [5])


def test_planes_may_be_changed_once_they_were_taken(tmp_path: Path) -> None:
    with open_recorder(tmp_path) as recorder:
        for frame in frames(steady(0.4)):
            recorder.write(frame)
            frame.y[:] = 255
    assert read(tmp_path / "live.overlay.000.mp4") == numbered(steady(0.4))


def test_files_that_are_there_are_refused_and_left_alone(tmp_path: Path) -> None:
    old = tmp_path / "live.overlay.000.mp4"
    old.write_text("old")
    with pytest.raises(OutputError, match=r"000\.mp4 is there already"), open_recorder(tmp_path):
        pass
    assert old.read_text() == "old"
    with open_recorder(tmp_path, segments=False):  # has no use for that name
        pass


def test_a_file_that_appears_meanwhile_is_never_overwritten(tmp_path: Path) -> None:
    told = Told()
    with open_recorder(tmp_path, told, segment_s=1.0) as recorder:
        (tmp_path / "live.overlay.001.mp4").write_text("theirs")
        record(recorder, steady(1))
        recorder.write(next(frames([2 * S])))
        recorder.write(next(frames([3 * S])))
        told.wait_for("recorder_failed")
    assert (tmp_path / "live.overlay.001.mp4").read_text() == "theirs"
    assert read(tmp_path / "live.overlay.000.mp4") == numbered(steady(1))
    assert recorder.failed is not None and "File exists" in recorder.failed


# --- a slow encoder ---


class Gated(X264):
    """Waits for leave to encode."""

    def __init__(self, coding: Coding, gate: threading.Event, entered: threading.Event) -> None:
        super().__init__(coding)
        self._gate, self._entered = gate, entered

    def encode(self, picture: Any) -> Any:
        self._entered.set()
        assert self._gate.wait(60)
        return super().encode(picture)


def test_a_slow_encoder_costs_frames_that_are_counted_and_no_time(tmp_path: Path) -> None:
    """A call that waited for the encoder would wait for ever here."""
    gate, entered = threading.Event(), threading.Event()
    with open_recorder(
        tmp_path, depth=3, open_encoder=lambda coding: Gated(coding, gate, entered)
    ) as recorder:
        pts = steady(1)
        first, *rest = frames(pts)
        assert recorder.write(first)
        assert entered.wait(60)
        taken = [recorder.write(frame) for frame in rest]
        assert taken == [True] * 3 + [False] * 21
        assert recorder.dropped == 21
        gate.set()
    assert read(tmp_path / "live.overlay.000.mp4") == numbered(pts[:4])


def test_a_fault_in_the_encoder_is_told_at_once_with_its_traceback_and_not_raised(
    tmp_path: Path,
) -> None:
    class Broken(X264):
        def encode(self, picture: Any) -> Any:
            raise KeyError("a bug")

    told = Told()
    with open_recorder(tmp_path, told, open_encoder=Broken) as recorder:
        recorder.write(next(frames([0])))
        told.wait_for("recorder_failed")
        (data,) = told.of("recorder_failed")
        assert not recorder.write(next(frames([STEP])))
    assert recorder.failed == data["reason"] and recorder.traceback == data["traceback"]
    assert "KeyError: 'a bug'" in recorder.failed and "in encode" in recorder.traceback
    assert list(tmp_path.iterdir()) == []


# --- clips ---


def clip_frames(path: Path, pts: Sequence[int]) -> list[int]:
    """Numbers of the frames of a clip, told by their pictures, at their times from its start on."""
    found = read(path)
    numbers = [found[0][1]]
    for _, index in found[1:]:
        numbers.append(numbers[-1] + (index - numbers[-1]) % 32)
    base = next(
        k for k in range(numbers[0], len(pts), 32)
        if [time - pts[k] for time in pts[k : k + len(found)]] == [time for time, _ in found]
    )  # fmt: skip
    return [k - numbers[0] + base for k in numbers]


def test_a_clip_holds_the_time_before_and_after_its_alert(tmp_path: Path) -> None:
    """From the keyframe at or before `pre_s`, to the last frame within `post_s`."""
    told = Told()
    pts = steady(20)
    pts = [time + (k * 977) % 1200 for k, time in enumerate(pts)]  # so that times tell frames apart
    with open_recorder(tmp_path, told, clips=ClipRule(3.0, 2.0)) as recorder:
        for k, frame in enumerate(frames(pts)):
            recorder.write(frame)
            if k == 250:
                recorder.alert_opened(3, frame.seconds)
            if k == 300:
                recorder.alert_closed(3, frame.seconds)
    numbers = clip_frames(tmp_path / "clips" / "alert-003.mp4", pts)
    assert pts[250] - 4.1 * S < pts[numbers[0]] <= pts[250] - 3 * S
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert pts[numbers[-1]] <= pts[300] + 2 * S < pts[numbers[-1] + 1]
    (event,) = told.of("clip_written")
    assert event["alert"] == 3 and event["file"] == "clips/alert-003.mp4"
    assert event["start_s"] == pytest.approx(pts[numbers[0]] / S, abs=1e-6)
    assert event["frames"] == len(numbers)
    assert not event["cut_short"]


def test_alerts_that_overlap_get_a_clip_each(tmp_path: Path) -> None:
    pts = [time + (k * 977) % 1200 for k, time in enumerate(steady(16))]
    calls = {100: (1, True), 150: (1, False), 175: (2, True), 190: (2, False)}
    with open_recorder(tmp_path, clips=ClipRule(2.0, 4.0), segments=False) as recorder:
        for k, frame in enumerate(frames(pts)):
            recorder.write(frame)
            if k in calls:
                number, opens = calls[k]
                tell = recorder.alert_opened if opens else recorder.alert_closed
                tell(number, frame.seconds)
    clips = tmp_path / "clips"
    assert sorted(path.name for path in clips.iterdir()) == ["alert-001.mp4", "alert-002.mp4"]
    assert [path.name for path in tmp_path.iterdir()] == ["clips"]
    for name, start, end in (("alert-001.mp4", 100, 150), ("alert-002.mp4", 175, 190)):
        numbers = clip_frames(clips / name, pts)
        assert pts[numbers[0]] <= pts[start] - 2 * S < pts[numbers[0]] + 1.1 * S
        assert pts[numbers[-1]] <= pts[end] + 4 * S < pts[numbers[-1] + 1]


def test_an_alert_that_is_told_late_has_all_of_the_time_before(tmp_path: Path) -> None:
    pts = steady(20)
    with open_recorder(tmp_path, clips=ClipRule(2.0, 1.0)) as recorder:
        for k, frame in enumerate(frames(pts)):
            recorder.write(frame)
            if k == 400:
                recorder.alert_opened(1, 16 - 4.9)
                recorder.alert_closed(1, 16 - 3)
    found = read(tmp_path / "clips" / "alert-001.mp4")
    assert found[0] == (0, (9 * 25) % 32)
    assert len(found) == 400 - 9 * 25  # all but the frame whose length is not known yet


def test_at_the_start_and_at_the_end_a_clip_is_as_long_as_can_be(tmp_path: Path) -> None:
    told = Told()
    with open_recorder(tmp_path, told, clips=ClipRule(5.0, 5.0)) as recorder:
        recorder.alert_opened(1, 0.0)
        record(recorder, steady(2))
        recorder.alert_closed(1, 2.0)
        recorder.alert_opened(2, 2.0)
    for number in (1, 2):
        assert read(tmp_path / "clips" / f"alert-{number:03d}.mp4") == numbered(steady(2))
    assert [event["cut_short"] for event in told.of("clip_written")] == [True, True]


def test_a_clip_ends_where_another_size_begins_and_waits_for_its_alert(tmp_path: Path) -> None:
    told = Told()
    with open_recorder(tmp_path, told, clips=ClipRule(5.0, 5.0)) as recorder:
        record(recorder, steady(1))
        recorder.alert_opened(1, 0.5)
        recorder.alert_opened(2, 0.5)
        record(recorder, steady(1, start=S), size=(64, 96))
        recorder.alert_closed(1, 1.0)
        recorder.alert_closed(2, 1.0, kept=False)
    assert [path.name for path in (tmp_path / "clips").iterdir()] == ["alert-001.mp4"]
    assert read(tmp_path / "clips" / "alert-001.mp4") == numbered(steady(1))


def test_a_clip_appears_whole_and_one_of_a_dropped_alert_never(tmp_path: Path) -> None:
    clips, told = tmp_path / "clips", Told()
    with open_recorder(tmp_path, told, clips=ClipRule(1.0, 1.0)) as recorder:
        record(recorder, steady(2))
        recorder.alert_opened(1, 1.0)
        recorder.alert_closed(1, 1.0, kept=False)  # the next one takes its number
        recorder.alert_opened(1, 1.5)
        recorder.alert_opened(2, 1.5)
        record(recorder, steady(2, start=2 * S), first=50)
        recorder.alert_closed(1, 1.5)
        told.wait_for("clip_written")
        assert sorted(path.name for path in clips.iterdir()) == [
            "alert-001.mp4",
            "alert-002.mp4.part",
        ]
        assert read(clips / "alert-001.mp4")[0] == (0, 0)
        recorder.alert_closed(2, 3.9, kept=False)
    assert [path.name for path in clips.iterdir()] == ["alert-001.mp4"]


def test_the_ring_is_bounded_in_time_and_in_bytes() -> None:
    ring = PacketRing(3.0, most_bytes=1000)
    for k in range(1000):
        ring.add(Coded(b"x" * 3, k * STEP, STEP, key=k % 25 == 0))
        assert ring.bytes <= 4 * 25 * 3
    (first, *_), newest = ring.since(0), 999 * STEP
    assert first.key and newest - 4 * S < first.pts <= newest - 3 * S
    for k in range(1000, 2000):
        ring.add(Coded(b"x" * 30, k * STEP, STEP, key=k % 25 == 0))
        assert ring.bytes <= 1000 + 30
    assert next(ring.since(0)).key
    assert sum(len(coded.data) for coded in ring.since(0)) == ring.bytes


# --- what goes wrong ---

CHILD = """
import sys, time
from pathlib import Path
from tests.test_live_record import frames, open_recorder, STEP
with open_recorder(Path(sys.argv[1]), depth=8, segment_s=3.0) as recorder:
    for k, frame in enumerate(frames([STEP * k for k in range(100_000)])):
        while not recorder.write(frame):
            time.sleep(0.001)
        print(k, flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_session_leaves_all_but_the_last_two_seconds(tmp_path: Path) -> None:
    root = str(Path(__file__).parent.parent)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert child.stdout is not None
    with child, child.stdout as lines:
        taken = next(k for k in map(int, lines) if k >= 10.6 * 25)
        child.kill()
    found = read(*sorted(tmp_path.iterdir()))
    assert len(list(tmp_path.iterdir())) >= 3
    assert found == numbered(steady(len(found) / 25))
    assert len(found) >= taken + 1 - 2 * 25


def record_until_failed(recorder: Recorder, told: Told) -> int:
    """How many frames were taken; they are hard to compress."""
    taken = 0
    noise = np.random.default_rng(1)
    while recorder.failed is None and taken < 1500:
        y = noise.integers(0, 255, SIZE, np.uint8)
        grey = np.full((SIZE[0] // 2, SIZE[1] // 2), 128, np.uint8)
        taken += recorder.write(Frame(y, grey, grey, STEP * taken, TIME_BASE, COLOUR))
    told.wait_for("recorder_failed")
    return taken


@pytest.mark.parametrize("clips", [None, ClipRule()], ids=["segments", "clips-too"])
def test_a_full_disk_ends_the_recording_and_not_the_session(
    tmp_path: Path, clips: ClipRule | None
) -> None:
    told = Told()
    with small_disk(tmp_path, 512):
        with open_recorder(tmp_path, told, clips=clips) as recorder:
            recorder.alert_opened(1, 0.0)
            record_until_failed(recorder, told)
            assert not recorder.write(next(frames([10_000 * S])))
        (event,) = told.of("recorder_failed")
        assert recorder.failed == event["reason"]
        assert "No space left on device. Free some space" in event["reason"]
        pts = [time for time, _ in read(tmp_path / "live.overlay.000.mp4")]
        assert len(pts) >= 25
        assert pts == steady(event["kept_to_s"])
        assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [
            "live.overlay.000.mp4"
        ]


@pytest.mark.parametrize("room", [0, 100, 5000, 200_000, 300_000])
def test_of_a_fragment_that_has_no_room_nothing_is_left(tmp_path: Path, room: int) -> None:
    told = Told()
    with open_recorder(tmp_path, told, open_file=room_for(room)) as recorder:
        taken = record_until_failed(recorder, told)
        given = recorder.given
        assert not recorder.write(next(frames([10_000 * S])))
    (event,) = told.of("recorder_failed")
    assert "No space left on device" in event["reason"]
    paths = list(tmp_path.iterdir())
    kept = len(read(*paths))
    assert recorder.until_s == event.get("kept_to_s") or not kept
    assert kept + recorder.dropped + recorder.lost == recorder.given == given + 1
    assert recorder.lost > 1 and taken < given + 1
    assert [time for time, _ in read(*paths)] == steady(event.get("kept_to_s", 0.0))
    assert len(paths) == (room >= 200_000)
    for path in paths:
        data = path.read_bytes()
        assert len(data) <= room and data.count(b"moof") == data.count(b"mdat") >= 1


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match=r"^cannot write .*file/x: ") as caught,
        open_recorder(tmp_path / "file" / "x"),
    ):
        pass
    assert "\n" not in str(caught.value)


def test_what_x264_does_not_know_is_said_before_the_session_begins(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="x264 does not open"),
        open_recorder(tmp_path, preset="warp"),
    ):
        pass


def test_leaving_by_an_error_finishes_every_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), open_recorder(tmp_path) as recorder:
        record(recorder, steady(1.5))
        raise RuntimeError
    assert read(tmp_path / "live.overlay.000.mp4") == numbered(steady(1.5))


def test_textured_pictures_come_back_as_they_were(tmp_path: Path) -> None:
    with open_recorder(tmp_path, preset="veryfast") as recorder:
        for k, time in enumerate(steady(1)):
            recorder.write(Frame(*textured(k, SIZE), time, TIME_BASE, COLOUR))
    with VideoSource(tmp_path / "live.overlay.000.mp4") as source:
        for k, frame in enumerate(source):
            expected = textured(k, SIZE)[0].astype(int)
            assert np.abs(frame.y.astype(int) - expected).mean() < 3
