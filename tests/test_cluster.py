"""A batch on a Ray cluster of two nodes, both on this machine: the same results, whatever becomes
of one of them.

Each test that needs a cluster shares it; one that takes a node away brings its own, as the third.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ccdstream import __version__
from ccdstream.batch import Away, Opened, Status, Wanted, find_jobs, run_batch
from ccdstream.cluster import Cluster, Room, Seat, deal
from ccdstream.errors import CcdstreamError, ConfigError, EngineError
from ccdstream.recording import RunOptions
from ccdstream.report.files import Lock
from ccdstream.workers import Lost, Ready
from tests.bundles import write_toy_bundle
from tests.commands import (
    OF_A_BATCH,
    ROOT,
    bright_between,
    ccdstream,
    everything_in,
    refusal,
    results_of,
)
from tests.commands import start as start_here
from tests.test_batch import Heard, Opens, bright, final, record_of, statuses
from tests.test_workers import is_zombie, wait_until
from tests.videos import make_video

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed"
)
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="needs /proc to find the processes of a node"
)


# -- where workers go -----------------------------------------------------------------------------


def seats_of(*rooms: tuple[str, int, int], jobs: int | None = None, device: str = "auto") -> Any:
    """(node, CPUs, GPUs) of each seat, and how many more there are."""
    taken, spare = deal([Room(r[0], *r) for r in rooms], jobs, device=device, per_gpu=2)
    return [(seat.node, seat.cpus, seat.gpus) for seat in taken], [seat.node for seat in spare]


def test_a_node_without_gpus_has_one_recording_and_all_its_cpus() -> None:
    assert seats_of(("a", 8, 0), ("b", 16, 0), ("head", 0, 0)) == (
        [("b", 16, 0), ("a", 8, 0)],
        [],
    )


def test_a_gpu_has_two_recordings_and_nodes_without_one_have_none() -> None:
    assert seats_of(("a", 8, 1), ("b", 64, 0)) == ([("a", 1, 0.5)] * 2, [])
    assert seats_of(("a", 8, 1), ("b", 64, 0), device="cpu")[0] == [("b", 64, 0), ("a", 8, 0)]


@pytest.mark.parametrize(
    ("jobs", "seats", "spare"),
    [
        (1, [("a", 8, 0)], ["b"]),
        (2, [("a", 8, 0), ("b", 4, 0)], []),
        (3, [("a", 4, 0), ("b", 4, 0), ("a", 4, 0)], []),
        (64, None, []),
    ],
)
def test_jobs_are_spread_so_that_each_has_as_many_cpus_as_can_be(
    jobs: int, seats: Any, spare: list[str]
) -> None:
    found = seats_of(("a", 8, 0), ("b", 4, 0), jobs=jobs)
    assert found[1] == spare
    if seats is None:  # no more than there are CPUs
        assert sorted(found[0]) == [("a", 1, 0)] * 8 + [("b", 1, 0)] * 4
    else:
        assert found[0] == seats


def test_every_seat_is_another() -> None:
    taken, _ = deal([Room("1", "a", 4, 0)], 4, device="auto", per_gpu=2)
    assert len(set(taken)) == 4


@pytest.mark.parametrize(
    ("rooms", "device", "says"),
    [([], "auto", "no node of the cluster offers a CPU"), ([("a", 8, 0)], "cuda", "offers a GPU")],
    ids=["none", "no-gpu"],
)
def test_a_cluster_without_what_is_needed_is_refused(
    rooms: list[tuple[str, int, int]], device: str, says: str
) -> None:
    with pytest.raises(EngineError, match=says):
        seats_of(*rooms, device=device)


# -- what is checked on a node --------------------------------------------------------------------


def away(lock: Path, **changes: str) -> Away:
    return Away(lock.parent, lock, **{"version": __version__, "model": "", **changes}, command=())


def test_a_node_that_could_not_leave_the_same_results_says_why(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with pytest.raises(CcdstreamError, match=r"it has ccdstream .*, not 0"):
        away(lock, version="0").check()
    with pytest.raises(CcdstreamError, match="it does not see "):
        away(lock).check()
    lock.touch()
    with pytest.raises(CcdstreamError, match="is not locked on it"):
        away(lock).check()
    assert lock.exists()
    lock.unlink()
    with Lock(lock, ""):
        away(lock).check()


# -- what a loss means ----------------------------------------------------------------------------


class OneTask:
    """A worker whose node is as the test says."""

    def __init__(self, seat: Seat) -> None:
        self.seat, self.task = seat, None
        self.began = False

    def give(self, task: Any) -> None:
        self.task = task

    def stop(self) -> None: ...


class Losing(Cluster):
    """A cluster without Ray whose nodes are lost once they are at work, or open the model."""

    def __init__(self, nodes: str, opens: bool = True) -> None:
        self.alive = []
        self._is_joined = False
        self.nodes, self.opens = nodes, opens

    def _join(self) -> None: ...

    def __enter__(self) -> "Losing":
        return self

    def __exit__(self, *_: object) -> None: ...

    def seats(self, jobs: int | None, **_: Any) -> Any:
        return deal([Room(n, n, 1, 0) for n in self.nodes], jobs, device="cpu", per_gpu=2)

    def has(self, seat: Seat) -> bool:
        return True

    def add(self, setup: Any, seat: Seat) -> Any:
        self.alive.append(OneTask(seat))  # type: ignore[arg-type]
        return self.alive[-1]

    def events(self) -> Iterator[Any]:
        for worker in list(self.alive):
            if self.opens and worker.task is None:
                yield worker, Ready(Opened("toy", "cpu"))
            else:
                self.alive.remove(worker)
                yield worker, Lost(f"the node {worker.seat.node} was lost")


def batch_on(cluster: Cluster, folder: Path, **options: Any) -> tuple[Any, Heard]:
    model = write_toy_bundle(folder / "toy")
    (folder / "a.mp4").touch()
    heard = Heard()
    ledger = run_batch(
        find_jobs([folder / "a.mp4"], folder / "out", recursive=False),
        Wanted(model, RunOptions()),
        Opens(folder / "toy", "deadly"),
        watcher=heard,
        stopped=lambda: False,
        cluster=cluster,
        **{"jobs": None, **options},
    )
    return ledger.entries[0], heard


@pytest.mark.parametrize("jobs", [None, 1])
@pytest.mark.parametrize("names", ["a", "ab", "abcd"])
def test_a_recording_whose_nodes_are_all_lost_is_tried_three_times(
    tmp_path: Path, names: str, jobs: int | None
) -> None:
    entry, heard = batch_on(Losing(names), tmp_path, jobs=jobs)
    assert (entry.status, entry.tries) == (Status.crashed, 3)
    assert entry.reason.endswith("was lost, as with each of 3 tries")
    assert [warning[-3:] for warning in heard.warnings] == ["ost", "ost"]
    assert record_of(tmp_path / "out")["inputs"][0]["tries"] == 3


def test_a_cluster_that_cannot_open_the_model_names_its_last_node(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        batch_on(Losing("ab", opens=False), tmp_path)
    last = str(caught.value)
    assert last in [
        f"no node of the cluster can analyse. {n}: the node {n} was lost" for n in ("a", "b")
    ]


# -- without a cluster ----------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["", "head", "ray://head:10001", "http://head:8265", ":1"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="--ray takes auto or HOST:PORT"):
        Cluster(address)


def test_without_ray_one_line_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "ray" else find(n))
    (tmp_path / "a.mp4").touch()
    message = refusal(ccdstream("run", tmp_path / "a.mp4", "-o", tmp_path / "o", "--ray", "auto"))
    assert message == ("--ray needs Ray, which is not installed: pip install 'ccdstream[ray]'")
    assert not (tmp_path / "o").exists()


@needs_ray
def test_an_address_where_nobody_answers_is_one_line(tmp_path: Path) -> None:
    write_toy_bundle(tmp_path / "toy")
    (tmp_path / "a.mp4").touch()
    arguments = ("run", tmp_path / "a.mp4", "-o", tmp_path / "o", "--model", tmp_path / "toy")
    message = refusal(ccdstream(*arguments, "--ray", "127.0.0.1:1"))
    assert message.startswith("no Ray cluster answers at 127.0.0.1:1: ")
    assert message.endswith("or auto; or leave out --ray.")
    assert not (tmp_path / "o").exists()


@needs_ray
def test_auto_without_a_cluster_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def none_runs(**_: object) -> None:
        raise ConnectionError("none")

    monkeypatch.setattr(ray, "init", none_runs)  # one may run here, of somebody else
    write_toy_bundle(tmp_path / "toy")
    (tmp_path / "a.mp4").touch()
    arguments = ("run", tmp_path / "a.mp4", "-o", tmp_path / "o", "--model", tmp_path / "toy")
    message = refusal(ccdstream(*arguments, "--ray", "auto"))
    assert message.startswith("no Ray cluster can be joined here: none runs. Start Ray on this")
    assert message.endswith(", or leave out --ray.")
    assert not (tmp_path / "o").exists()


@needs_ray
def test_what_ray_tells_of_nodes_does_not_come_among_the_data(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray
    from ray._private import worker

    monkeypatch.setattr(worker, "_worker_logs_enabled", True)
    monkeypatch.setattr(ray, "init", lambda **_: None)
    lost = {"lines": ["The node is lost."], "pid": "raylet", "is_err": False}
    with Cluster("auto").joined():
        worker.print_to_stdstream(lost, ignore_prefix=False)
    assert capsys.readouterr().out == ""


# -- on a cluster ---------------------------------------------------------------------------------


def children_of(pid: int) -> list[int]:
    """The processes below one, those furthest down first."""
    below: list[int] = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        below += [*children_of(int(child)), int(child)]
    return below


def mentioning(text: str) -> set[int]:
    """Processes with `text` in their command line or environment, but for this one."""
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        try:
            about = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:  # it has ended
            continue
        if text.encode() in about and not is_zombie(int(entry.name)):
            found.add(int(entry.name))
    return found


NODES = """
import sys
from ray.cluster_utils import Cluster

cluster = Cluster()
for line in sys.stdin:
    node = cluster.add_node(
        node_name=line.strip(),
        num_cpus=1,
        num_gpus=0,
        object_store_memory=80_000_000,
        include_dashboard=False,
    )
    print("started", cluster.address, node.all_processes["raylet"][0].process.pid, flush=True)
"""


@dataclass
class Nodes:
    """A cluster of one CPU a node, on loopback."""

    folder: Path
    starter: "subprocess.Popen[str]"
    raylets: dict[str, int]
    """The processes of nodes, by their names."""
    address: str = ""

    def add(self, name: str) -> None:
        """Start a node."""
        assert self.starter.stdin is not None and self.starter.stdout is not None
        print(name, file=self.starter.stdin, flush=True)
        said = ""
        for line in self.starter.stdout:
            said += line
            if line.startswith("started "):
                _, self.address, raylet = line.split()
                self.raylets[name] = int(raylet)
                return
        pytest.fail(f"the node {name} does not start: {said}")

    def kill(self, name: str) -> None:
        """Take a node away at once, with every process on it."""
        raylet = self.raylets.pop(name)
        os.kill(raylet, signal.SIGSTOP)  # so that it starts no other
        for pid in [*children_of(raylet), raylet]:
            os.kill(pid, signal.SIGKILL)


@contextmanager
def some_nodes(*names: str) -> Iterator[Nodes]:
    # Ray's sockets lie in it, and the path of a socket is short
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    (folder / "ray").mkdir()
    command = [sys.executable, "-c", NODES]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    environment = environment_of(folder)
    try:
        with subprocess.Popen(command, text=True, env=environment, **pipes) as starter:
            try:
                nodes = Nodes(folder, starter, {})
                for name in names:
                    nodes.add(name)
                yield nodes
            finally:
                for pid in mentioning(str(folder)):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not mentioning(str(folder)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def environment_of(folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # all of it on loopback, as on those systems
        # on a busy machine processes of Ray take long to start
        "RAY_raylet_start_wait_time_s": "120",
        "RAY_worker_register_timeout_seconds": "180",
        # a connection that is closed tells of a dead node sooner; this is for one that is not
        "RAY_health_check_timeout_ms": "20000",
    }


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """The cluster that tests share: "one", where the batch is, and "two"."""
    with some_nodes("one", "two") as nodes:
        yield nodes


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, four recordings, and what a batch on this machine makes of them."""
    folder = tmp_path_factory.mktemp("shelf")
    write_toy_bundle(folder / "toy")
    (folder / "in/deep").mkdir(parents=True)
    for k, name in enumerate(("a", "b", "c", "deep/d")):
        bright_between(folder / f"in/{name}.mp4", 5, 49, 70 + k)
    said = ccdstream("run", folder / "in", "-r", "-o", folder / "here", "--model", folder / "toy")
    assert said.exit_code == 0
    return folder


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording whose alert closes early, and that then goes on for a while."""
    return bright_between(tmp_path_factory.mktemp("long") / "long.mp4", 5, 49, 400)


@pytest.fixture
def here(tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with the recordings alone."""
    shutil.copytree(shelf / "in", tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextmanager
def start(nodes: Nodes, shelf: Path, *arguments: object) -> Iterator["subprocess.Popen[bytes]"]:
    """`ccdstream run ... --ray`, started in the current directory, and gone after the block."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment_of(nodes.folder).items():
            patch.setenv(name, value)
        model = os.path.relpath(shelf / "toy")  # every path is relative
        process = start_here("run", *arguments, "--ray", nodes.address, "--model", model)
    with process:
        try:
            yield process
        finally:
            process.kill()


def nodes_used(folder: Path) -> dict[str, str | None]:
    return {row["name"]: row["node"] for row in record_of(folder)["inputs"]}


@needs_ray
@needs_proc
def test_a_cluster_leaves_what_this_machine_does_and_says_which_node_did_it(
    nodes: Nodes, here: Path, shelf: Path
) -> None:
    with start(nodes, shelf, "in", "-r", "-o", "out") as process:
        out, said = process.communicate(timeout=270)
    assert process.returncode == 0, said.decode()
    assert final(here / "out") == final(shelf / "here")
    assert {row["tries"] for row in record_of(here / "out")["inputs"]} == {1}
    used = nodes_used(here / "out")
    assert set(used.values()) <= {"one", "two"}
    # a busy node is waited for, which is said
    lines = [line for line in said.decode().splitlines() if not line.startswith("still waiting")]
    assert lines[0].endswith("on cpu, 2 recordings at a time")
    head = lines.index("status        frames  alerts      took  node  recording")
    rows = [line.split() for line in lines[head + 1 : head + 5]]
    assert {row[6]: row[5] for row in rows} == used
    assert out.decode().count("alert  start ") == 4
    command = json.loads((here / "out/a.run.json").read_text())["command"]
    assert command[:3] == ["run", "in", "-r"]
    # once more: nobody is asked to do anything
    with start(nodes, shelf, "in", "-r", "-o", "out") as process:
        process.communicate(timeout=270)
    assert set(statuses(here / "out").values()) == {"already_done"}


def wait_for_alerts(process: "subprocess.Popen[bytes]", number: int) -> list[str]:
    """The recordings that have so many alerts, each still at work."""
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(number)]
    return [json.loads(line)["recording"] for line in lines]


@needs_ray
@needs_proc
def test_a_node_that_is_killed_costs_no_recording(
    nodes: Nodes, here: Path, shelf: Path, long: Path
) -> None:
    nodes.add("three")
    (here / "long").mkdir()
    for name in ("k", "l"):
        shutil.copy(long, here / f"long/{name}.mp4")
    arguments = ("long", "--video", "none", "-o")
    with start(nodes, shelf, *arguments, "out", "--json", "--jobs", "3") as process:
        at_work = wait_for_alerts(process, 2)
        assert sorted(at_work) == ["k.mp4", "l.mp4"]
        [lost] = [name for name, node in nodes_used(here / "out").items() if node == "three"]
        nodes.kill("three")
        _, said = process.communicate(timeout=270)
    assert process.returncode == 0, said.decode()
    assert f"warning: {lost} is begun again: the node three was lost" in said.decode()
    assert {row["name"]: row["tries"] for row in record_of(here / "out")["inputs"]} == {
        name: 1 + (name == lost) for name in at_work
    }
    assert "three" not in nodes_used(here / "out").values()
    undisturbed = ccdstream("run", *arguments, "undisturbed", "--model", shelf / "toy")
    assert undisturbed.exit_code == 0
    assert final(here / "out") == final(here / "undisturbed")


CRASH = """
import sys
from pathlib import Path
from ccdstream.batch import Wanted, find_jobs, run_batch
from ccdstream.bundle import load_bundle
from ccdstream.cluster import Cluster
from ccdstream.recording import RunOptions
from tests.test_batch import Heard, Opens

inputs = [Path(f"in/{name}.mp4") for name in ("a", "gone", "b", "c")]
bundle = Path(sys.argv[2])
run_batch(
    find_jobs(inputs, Path("out"), recursive=False),
    Wanted(load_bundle(bundle), RunOptions(video="none")),
    Opens(bundle, "deadly"),
    jobs=1,  # so that the place of the process that died is used again
    watcher=Heard(),
    stopped=lambda: False,
    cluster=Cluster(sys.argv[1]),
)
"""


@needs_ray
@needs_proc
def test_on_a_cluster_too_a_crash_costs_its_recording_alone(
    nodes: Nodes, here: Path, shelf: Path
) -> None:
    shown = partial(bright, 220)
    make_video(here / "in/a.mp4", size=(96, 128), picture_of=shown)
    for name in ("b", "c"):  # of which it does not die
        bright_between(here / f"in/{name}.mp4", -1, -1, 12)
    command = [sys.executable, "-c", CRASH, nodes.address, str(shelf / "toy")]
    environment = environment_of(nodes.folder)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=270)
    assert done.returncode == 0, done.stderr
    entries = {row["name"]: row for row in record_of(here / "out")["inputs"]}
    assert {name: row["status"] for name, row in entries.items()} == {
        "a.mp4": "crashed",
        "gone.mp4": "failed",
        "b.mp4": "done",
        "c.mp4": "done",
    }
    assert entries["a.mp4"]["reason"] == "the process that analysed it crashed (SIGSEGV)"
    # what a node does not see, it names with the path that it was looked for at
    expected = f"on one: cannot open {here}/in/gone.mp4: No such"
    assert entries["gone.mp4"]["reason"].startswith(expected)
    assert {row["tries"] for row in entries.values()} == {1}


@needs_ray
@needs_proc
def test_a_signal_ends_the_inputs_on_every_node(
    nodes: Nodes, here: Path, shelf: Path, long: Path
) -> None:
    for name in ("k", "l"):
        shutil.copy(long, here / f"{name}.mp4")
    arguments = ("k.mp4", "l.mp4", "in/a.mp4", "-o", "out", "--json", "--video", "none")
    with start(nodes, shelf, *arguments) as process:
        wait_for_alerts(process, 2)
        assert sorted(filter(None, nodes_used(here / "out").values())) == ["one", "two"]
        process.send_signal(signal.SIGTERM)  # Ray would end the program at once
        _, said = process.communicate(timeout=270)
    assert process.returncode == 130, said.decode()
    assert b"stopping: the files are being finished" in said and b"Traceback" not in said
    assert statuses(here / "out") == {
        "k.mp4": "interrupted",
        "l.mp4": "interrupted",
        "in/a.mp4": "not_begun",
    }
    expected = results_of("k", video=False) | results_of("l", video=False) | OF_A_BATCH
    assert everything_in(here / "out") == expected
    wait_until(lambda: not workers_of(nodes))


def workers_of(nodes: Nodes) -> list[int]:
    """Processes that analyse."""
    return [
        pid
        for pid in mentioning(str(nodes.folder))
        if b"multiprocessing" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


@needs_ray
@needs_proc
def test_workers_end_with_a_batch_that_is_killed_and_a_rerun_completes(
    nodes: Nodes, here: Path, shelf: Path, long: Path
) -> None:
    shutil.copy(long, here / "k.mp4")
    arguments = ("k.mp4", "in/a.mp4", "-o", "out", "--json", "--video", "none")
    with start(nodes, shelf, *arguments) as process:
        wait_for_alerts(process, 2)
        assert workers_of(nodes)
        process.kill()
    with start(nodes, shelf, *arguments) as process:  # at once: some may still be at work
        _, said = process.communicate(timeout=270)
    assert process.returncode == 0, said.decode()
    undisturbed = ccdstream(
        "run", *arguments[:2], "-o", "u", *arguments[5:], "--model", shelf / "toy"
    )
    assert undisturbed.exit_code == 0
    assert final(here / "out") == final(here / "u")
    assert everything_in(here / "out") == everything_in(here / "u")
    wait_until(lambda: not workers_of(nodes))
