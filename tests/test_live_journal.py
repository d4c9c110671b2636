"""What a journal promises: whole lines whatever happens, and a session that goes on without it."""

import csv
import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from ccdstream.alert import Alert
from ccdstream.errors import OutputError
from ccdstream.frames import Fused
from ccdstream.live import journal as module
from ccdstream.live.append import new_file
from ccdstream.live.journal import GrowingFile, Journal, event_line
from ccdstream.live.records import Event
from ccdstream.report.alerts import AlertsCsv, AlertsJsonl, AlertsVtt
from ccdstream.report.scores import COLUMNS, ScoresCsv
from tests.disks import SmallFile, room_for

TIME_BASE = Fraction(1, 90_000)
START = datetime.fromisoformat("2026-03-01T09:30:00.250+01:00").timestamp()
ALERT = Alert(
    number=1,
    start_pts=90_000,
    start_s=1.0,
    end_pts=270_000,
    end_s=3.0,
    peak_pts=180_000,
    peak_s=2.0,
    peak_score=0.99,
    peak_raw=1.5,
    box=(1, 2, 3, 4),
    clock=4,
    frames=50,
    informative_frames=48,
    model="default-1",
)
FUSED = Fused(1.5, 0.99, 0.98, lambda: np.zeros((2, 2), np.float32), ("blurred",), 0.5)
NAMES = [
    f"live.{ending}"
    for ending in ("alerts.csv", "alerts.jsonl", "alerts.vtt", "events.jsonl", "scores.csv")
]


def open_journal(folder: Path, **options: Any) -> Journal:
    return Journal(folder, "live", **({"parts": ["a"], "start_wall": START} | options))


def told(stream_s: float = 1.0, kind: str = "mark", **data: Any) -> Event:
    return Event(kind, START + stream_s, stream_s, data)


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_files_hold_what_those_of_a_run_hold(tmp_path: Path) -> None:
    row = (0, 90_000, 1.0, FUSED, "ALERT", [0.25])
    with open_journal(tmp_path) as journal:
        journal.score(*row)
        journal.alert(ALERT)
    with ScoresCsv(tmp_path / "run.scores.csv", parts=["a"]) as scores:
        scores.write(*row)
    for kind, ending in ((AlertsCsv, "csv"), (AlertsVtt, "vtt"), (AlertsJsonl, "jsonl")):
        with kind(tmp_path / f"run.alerts.{ending}", time_base=TIME_BASE) as writer:
            writer.write(ALERT)
    for ending in ("scores.csv", "alerts.csv", "alerts.vtt"):
        live, run = (tmp_path / f"{stem}.{ending}" for stem in ("live", "run"))
        assert live.read_text() == run.read_text()
    (live_alert,) = lines(tmp_path / "live.alerts.jsonl")
    (run_alert,) = lines(tmp_path / "run.alerts.jsonl")
    walls = {name: live_alert.pop(f"{name}_wall") for name in ("start", "end", "peak")}
    assert live_alert == run_alert
    for name, second in (("start", 1), ("end", 3), ("peak", 2)):
        assert datetime.fromisoformat(walls[name]).timestamp() == pytest.approx(START + second)
        assert re.fullmatch(r".*T\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", walls[name])


def test_wall_clock_can_be_known_later_than_the_journal(tmp_path: Path) -> None:
    start: list[float] = []
    with open_journal(tmp_path, start_wall=lambda stream_s: start[0] + stream_s) as journal:
        start.append(START + 60)
        journal.alert(ALERT)
    (alert,) = lines(tmp_path / "live.alerts.jsonl")
    assert datetime.fromisoformat(alert["start_wall"]).timestamp() == pytest.approx(START + 61)


def test_every_line_can_be_read_under_its_final_name_at_once(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        assert sorted(os.listdir(tmp_path)) == NAMES
        assert (tmp_path / "live.scores.csv").read_text() == ",".join([*COLUMNS, "part_a"]) + "\n"
        journal.score(0, 5, 0.1, FUSED, "NORMAL", [1.0])
        journal.alert(ALERT)
        journal.event(told())
        with open(tmp_path / "live.scores.csv", newline="") as file:
            assert [row["pts"] for row in csv.DictReader(file)] == ["5"]
        assert [len((tmp_path / f"live.{e}.jsonl").read_text().splitlines()) for e in
                ("alerts", "events")] == [1, 1]  # fmt: skip
        assert "alert-1\n" in (tmp_path / "live.alerts.vtt").read_text()
    assert sorted(os.listdir(tmp_path)) == NAMES


def test_an_event_is_a_documented_line_with_its_data(tmp_path: Path) -> None:
    logged: list[str] = []
    with open_journal(tmp_path, log_json=logged.append) as journal:
        journal.event(told(2.5, "alert_closed", kept=False, rate=Fraction(25), path=Path("x")))
        journal.event(told(3, "mark", note="Kolon 大腸\nzwei"))
    first, second = lines(tmp_path / "live.events.jsonl")
    wall = first.pop("wall")
    assert datetime.fromisoformat(wall).timestamp() == pytest.approx(START + 2.5)
    assert first == {
        "schema": "ccdstream.event/1",
        "kind": "alert_closed",
        "stream_s": 2.5,
        "kept": False,
        "rate": "25/1",
        "path": "x",
    }
    assert second["note"] == "Kolon 大腸\nzwei"
    assert (tmp_path / "live.events.jsonl").read_text() == "".join(f"{line}\n" for line in logged)
    assert {"schema", "kind", "wall", "stream_s"} <= set(re.findall(r"\w+", module.__doc__ or ""))


def test_data_may_not_hide_what_every_event_has() -> None:
    with pytest.raises(ValueError, match="data of mark has keys of the event itself: wall"):
        event_line(told(wall=3))


def test_lines_of_many_threads_stay_whole(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:

        def write(number: int) -> None:
            for k in range(200):
                journal.event(told(k, number=number, long="x" * 500))

        threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = [event["number"] for event in lines(tmp_path / "live.events.jsonl")]
    assert [found.count(n) for n in range(4)] == [200] * 4


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_there_is_refused_and_no_other_is_made(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("old")
    with pytest.raises(OutputError, match=f"{name} is there already"), open_journal(tmp_path):
        pass
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_text() == "old"


def test_a_file_that_cannot_be_made_leaves_none(tmp_path: Path) -> None:
    def open_file(path: Path) -> IO[bytes]:
        if path.name == "live.alerts.vtt":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return new_file(path)

    with (
        pytest.raises(OutputError, match=r"cannot write .*live\.alerts\.vtt: Permission denied"),
        open_journal(tmp_path, open_file=open_file),
    ):
        pass
    assert os.listdir(tmp_path) == []


# --- crashes and full disks ---

CHILD = """
import sys
from pathlib import Path
from tests.test_live_journal import ALERT, FUSED, open_journal, told
with open_journal(Path(sys.argv[1])) as journal:
    for k in range(1_000_000):
        journal.score(k, k, k / 25, FUSED, "ALERT", [0.5])
        journal.event(told(k, note="x" * 100))
        journal.alert(ALERT)
        print(k, flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_session_leaves_every_line_whole(tmp_path: Path) -> None:
    root = str(Path(__file__).parent.parent)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert child.stdout is not None
    with child, child.stdout as numbers:
        written = next(k for k in map(int, numbers) if k >= 500)
        child.kill()
    assert all((tmp_path / name).read_bytes().endswith(b"\n") for name in NAMES)
    with open(tmp_path / "live.scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["frame"]) for row in rows] == list(range(len(rows)))
    assert len(rows) > written
    assert len(lines(tmp_path / "live.events.jsonl")) > written
    assert len(lines(tmp_path / "live.alerts.jsonl")) > written


def test_a_full_disk_is_said_once_and_leaves_whole_lines(tmp_path: Path) -> None:
    failed: list[str] = []
    logged: list[str] = []
    with open_journal(
        tmp_path,
        open_file=room_for(1000, "live.scores.csv"),
        on_failed=failed.append,
        log_json=logged.append,
    ) as journal:
        for k in range(100):
            journal.score(k, k, k / 25, FUSED, "ALERT", [0.5])
        journal.alert(ALERT)
        journal.event(told(9.0))
    assert failed == [journal.failed]
    assert re.fullmatch(
        r"cannot write .*live\.scores\.csv: No space left on device\. .* the session goes on\.",
        failed[0],
    )
    text = (tmp_path / "live.scores.csv").read_text()
    assert text.endswith("\n") and len(text) <= 1000
    rows = list(csv.DictReader(text.splitlines()))
    assert [int(row["frame"]) for row in rows] == list(range(len(rows))) and len(rows) > 5
    assert [json.loads(line)["kind"] for line in logged] == ["journal_failed", "mark"]
    assert json.loads(logged[0])["stream_s"] == pytest.approx(len(rows) / 25)
    assert (tmp_path / "live.events.jsonl").read_text() == ""


def test_a_fault_of_the_disk_itself_is_said_by_the_thread_that_meets_it(tmp_path: Path) -> None:
    """A file that takes lines, but cannot be brought to the disk."""
    said = threading.Event()

    class Unsyncable(SmallFile):
        def fileno(self) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with open_journal(
        tmp_path,
        open_file=lambda path: Unsyncable(path, 10_000),
        on_failed=lambda _: said.set(),
    ) as journal:
        journal.event(told(1.0, "alert_opened"))
        assert said.wait(60)
        assert journal.failed is not None and "Input/output error" in journal.failed


class Watched(SmallFile):
    """Tells when it is brought to the disk, and how much of it."""

    def __init__(self, path: Path, synced: dict[str, int], told: threading.Condition) -> None:
        super().__init__(path, 10_000)
        self._synced, self._told = synced, told

    def fileno(self) -> int:
        number = self._file.fileno()
        with self._told:
            self._synced[Path(self.name).name] = os.fstat(number).st_size
            self._told.notify_all()
        return number


@pytest.mark.parametrize(
    ("every_s", "name"),
    [(3600.0, "live.alerts.jsonl"), (0.01, "live.scores.csv")],
    ids=["alerts-at-once", "the-rest-by-and-by"],
)
def test_lines_are_brought_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_s: float, name: str
) -> None:
    monkeypatch.setattr(module, "SYNC_S", every_s)
    synced: dict[str, int] = {}
    told = threading.Condition()
    with open_journal(tmp_path, open_file=lambda path: Watched(path, synced, told)) as journal:
        if name == "live.alerts.jsonl":
            journal.alert(ALERT)
        else:
            journal.score(0, 0, 0.0, FUSED, "NORMAL", [1.0])
        size = (tmp_path / name).stat().st_size
        with told:
            assert told.wait_for(lambda: synced.get(name) == size, timeout=60)


def test_a_line_that_does_not_fit_raises_once_and_the_file_takes_no_more(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with GrowingFile(path, open_file=room_for(8)) as file:
        file.write("one\n")
        with pytest.raises(OutputError, match="No space left on device"):
            file.write("three\n")
        file.write("x\n")
    assert path.read_text() == "one\n"


def test_odd_bytes_of_a_name_are_escaped_and_no_error(tmp_path: Path) -> None:
    with GrowingFile(tmp_path / "a.txt") as file:
        file.write(os.fsdecode(b"caf\xe9") + "\n")
    assert (tmp_path / "a.txt").read_text() == "caf\\udce9\n"
