"""Workers on the nodes of a Ray cluster, with the same events as worker processes of this machine.

Each worker is a Ray actor that starts a process of `ccdstream.workers` beside it and passes on what
comes from that. So a decoder that crashes takes its process and not the actor, and is told as
`Died`, in the same words as without a cluster; and an actor that is gone says nothing of its task:
its machine, Ray there or the way to it is gone, which is told as `Lost`. Nothing has to be guessed
from Ray's own errors. The process ends when its actor does, and Ray ends actors with their driver.

Ray is imported where a cluster is joined, and nowhere before.
"""

import importlib.util
import logging
import math
import os
import pickle
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self

from ccdstream.errors import ConfigError, EngineError
from ccdstream.workers import Died, Event, Lost, Raised, Setup, Tell, Told, Work, Workers

INSTALL = "pip install 'ccdstream[ray]'"

_POLL_S = 0.2
"""How soon a caller that waits notices a signal."""

_CONNECT_S = 5.0
"""How long the cluster's address may take to answer. Ray itself tries for minutes, in silence."""

_END_S = 15.0
"""How long all workers together may take to end: more than each gives its own process."""

_SAY_AFTER_S = 30.0
"""A worker that nothing has been heard of for so long is waited for with a word. Others may have
taken what its node offers, which is no error."""


@dataclass(frozen=True, slots=True)
class Seat:
    """Room for one worker on a node."""

    node_id: str
    node: str
    """What people call it; unique in the cluster."""
    number: int
    cpus: int
    gpus: float
    """A share of one; 0 for a worker that computes on the CPU."""


class Room(NamedTuple):
    """What a node of a cluster offers."""

    node_id: str
    node: str
    cpus: int
    gpus: int


class ClusterWorker:
    """The caller's side of one worker on a node."""

    def __init__(self, actor: Any, seat: Seat) -> None:
        self.seat = seat
        self.task: Any = None
        """What it is at."""
        self._actor = actor
        self._coming = actor.events.remote()
        self._quiet_since: float | None = time.monotonic()
        """None once it was heard of, or waited for with a word."""

    def give(self, task: Any) -> None:
        """Let it do `task`; only when it has none."""
        self.task = task
        self._actor.give.remote(task)

    def stop(self) -> None:
        """End the input of what it is at, so that it is finished properly."""
        self._actor.stop.remote()


class Cluster:
    """Workers on a Ray cluster that this machine belongs to; a context manager. Entering joins the
    cluster, unless `joined` has. Leaving ends all workers, after an error those at work give up and
    tidy up."""

    def __init__(self, address: str) -> None:
        """
        Args:
            address: "auto" for the cluster that this machine belongs to, or HOST:PORT of its head.

        Raises:
            ConfigError: that is no such address, or Ray is not installed.
        """
        host, _, port = address.rpartition(":")
        if address != "auto" and not (host and "/" not in host and port.isdecimal()):
            raise ConfigError(
                f"--ray takes auto or HOST:PORT of the cluster's head, not {address!r}. "
                "Run ccdstream on a machine of the cluster."
            )
        if importlib.util.find_spec("ray") is None:
            raise ConfigError(f"--ray needs Ray, which is not installed: {INSTALL}")
        self.alive: list[ClusterWorker] = []
        self._address = address
        self._is_joined = False

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Join the cluster ahead of its workers; leaves it in the end.

        Raises:
            EngineError: there is no such cluster, or it cannot be joined.
        """
        self._join()
        try:
            yield
        finally:
            self._leave()

    def __enter__(self) -> Self:
        """
        Raises:
            EngineError: there is no such cluster, or it cannot be joined.
        """
        if not self._is_joined:
            self._join()
        return self

    def _join(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing leaves this network
        import ray
        import ray._private.worker

        # Ray tells of lost nodes on stdout, which is for data, and has no public way to stop it
        ray._private.worker._worker_logs_enabled = False
        if self._address != "auto":
            self._knock()
        before = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(
                address=self._address,
                log_to_driver=False,
                configure_logging=False,
                logging_level=logging.CRITICAL,
            )
        except (OSError, RuntimeError, ValueError) as error:
            where = "here" if self._address == "auto" else f"at {self._address}"
            why = "none runs." if isinstance(error, ConnectionError) else _first_line(error)
            raise EngineError(
                f"no Ray cluster can be joined {where}: {why} "
                "Start Ray on this machine with ray start, with the versions of Python and Ray "
                "that the cluster has, or leave out --ray."
            ) from error
        finally:
            if signal.getsignal(signal.SIGTERM) is not before:  # Ray's would end the program
                signal.signal(signal.SIGTERM, before)
        self._is_joined = True

    def _leave(self) -> None:
        import ray

        if self._is_joined:
            self._is_joined = False
            ray.shutdown()

    def _knock(self) -> None:
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
        except (OSError, OverflowError) as error:
            raise EngineError(
                f"no Ray cluster answers at {self._address}: {error}. "
                "Name HOST:PORT as ray start --head printed it, or auto; or leave out --ray."
            ) from error

    def seats(
        self, jobs: int | None, *, device: str, per_gpu: int
    ) -> tuple[list[Seat], list[Seat]]:
        """(where to start workers, where more could be started once a node is lost).

        Nodes with a GPU alone, where there is one and `device` does not speak against it: results
        must not depend on which node had a recording. Without GPUs a worker for each node, with
        all of its CPUs: one analysis uses them all, as it does without a cluster. So many `jobs`
        as are asked for are spread such that each has as many CPUs as can be.

        Args:
            jobs: workers at most; None for `per_gpu` on each GPU, or one for each node.
            device: "auto", "cpu" or "cuda".

        Raises:
            EngineError: no node has what is needed.
        """
        return deal(_rooms(), jobs, device=device, per_gpu=per_gpu)

    def add(self, setup: Setup, seat: Seat) -> ClusterWorker:
        """Start one more, when its node has room; `setup` must be picklable."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        actor = ray.remote(_Host).options(
            num_cpus=seat.cpus,
            num_gpus=seat.gpus or None,
            scheduling_strategy=NodeAffinitySchedulingStrategy(seat.node_id, soft=False),
        )
        worker = ClusterWorker(actor.remote(_Packed(pickle.dumps(setup))), seat)
        self.alive.append(worker)
        return worker

    def events(self) -> Iterator[tuple[ClusterWorker, Event]]:
        """What has come from whom, after waiting a moment if nothing has; a worker that died or was
        lost is among `alive` no more."""
        import ray
        from ray.exceptions import RayError, RayTaskError

        coming = {worker._coming: worker for worker in self.alive}
        ready, _ = ray.wait(list(coming), timeout=_POLL_S)
        if ready:  # all that are, so that none waits behind a busy one
            ready, _ = ray.wait(list(coming), num_returns=len(coming), timeout=0)
        for reference in ready:
            worker = coming[reference]
            try:
                events = ray.get(reference)
            except RayTaskError:  # a bug of ours
                raise
            except RayError as error:
                self._drop(worker)
                yield worker, _end_of(worker, error)
                continue
            worker._quiet_since = None
            worker._coming = worker._actor.events.remote()
            for event in events:
                if isinstance(event, Died):
                    self._drop(worker)
                yield worker, event
        for worker in self.alive:
            quiet_since = worker._quiet_since
            if quiet_since is not None and time.monotonic() - quiet_since > _SAY_AFTER_S:
                worker._quiet_since = None
                yield worker, Told(f"still waiting for a worker on {worker.seat.node}")

    def has(self, seat: Seat) -> bool:
        """Whether the node of a seat is there."""
        return any(room.node_id == seat.node_id for room in _rooms())

    def retire(self, worker: ClusterWorker) -> None:
        """End a worker that has no task."""
        self._drop(worker)

    def _drop(self, worker: ClusterWorker) -> None:
        import ray

        if worker in self.alive:
            self.alive.remove(worker)
            ray.kill(worker._actor)  # also one that cannot be reached just now

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        import ray

        try:
            ending = [worker._actor.end.remote(kind is not None) for worker in self.alive]
            if ending:
                ray.wait(ending, num_returns=len(ending), timeout=_END_S)
            for worker in list(self.alive):
                self._drop(worker)
        finally:
            self._leave()


def deal(
    rooms: list[Room], jobs: int | None, *, device: str, per_gpu: int
) -> tuple[list[Seat], list[Seat]]:
    """As `Cluster.seats`, of what nodes offer."""
    on_gpu = device != "cpu" and any(room.gpus for room in rooms)
    if device == "cuda" and not on_gpu:
        raise EngineError(
            "no node of the cluster offers a GPU. Start Ray there with --num-gpus, or leave out "
            "--device cuda."
        )
    most = {
        room: min(room.gpus * per_gpu, room.cpus) if on_gpu else room.cpus
        for room in sorted(rooms, key=lambda room: (-room.cpus, room.node))
    }
    most = {room: number for room, number in most.items() if number}
    if not most:
        raise EngineError("no node of the cluster offers a CPU. Start Ray there with --num-cpus.")
    order = [] if on_gpu or jobs is not None else list(most)
    taken = Counter(order)
    room_for = sum(most.values())
    number = min(jobs or len(order) or room_for, room_for)
    while len(order) < number:
        best = max(
            (room for room in most if taken[room] < most[room]),
            key=lambda room: (most[room] / (taken[room] + 1), -taken[room]),
        )
        order.append(best)
        taken[best] += 1
    spare = [room for room in most if not taken[room]]
    numbers: Counter[Room] = Counter()
    seats = []
    for room in [*order, *spare]:
        cpus = 1 if on_gpu else max(1, room.cpus // max(1, taken[room]))
        gpus = 1 / per_gpu if on_gpu else 0.0
        seats.append(Seat(room.node_id, room.node, numbers[room], cpus, gpus))
        numbers[room] += 1
    return seats[: len(order)], seats[len(order) :]


def _rooms() -> list[Room]:
    """What each node that is there offers, by a name that only it has."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    names = [
        node["NodeName"] if node["NodeName"] != node["NodeManagerAddress"] else "" for node in nodes
    ]
    names = [name or node["NodeManagerHostname"] for name, node in zip(names, nodes, strict=True)]
    several = Counter(names)
    rooms = []
    for name, node in zip(names, nodes, strict=True):
        offers = node["Resources"]
        rooms.append(
            Room(
                node["NodeID"],
                name if several[name] == 1 else f"{name}/{node['NodeID'][:6]}",
                math.floor(offers.get("CPU", 0)),
                math.floor(offers.get("GPU", 0)),
            )
        )
    return rooms


def _end_of(worker: ClusterWorker, error: Exception) -> Event:
    node = worker.seat.node
    if getattr(error, "actor_init_failed", False):
        why = str(error).strip().splitlines()[-1]
        return Raised(
            EngineError(f"no worker starts on it: {why}. Install there what is installed here."),
            "",
        )
    return Lost(f"the node {node} was lost, or Ray on it")


def _first_line(error: Exception) -> str:
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line if line.endswith(".") else f"{line}."


# -- on a node ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Packed:
    """A setup that only the worker process unpacks: its actor needs no library that it needs."""

    setup: bytes

    def __call__(self, tell: Tell) -> tuple[Any, Work]:
        setup: Setup = pickle.loads(self.setup)
        return setup(tell)


class _Host:
    """A Ray actor: starts a worker process and passes on what comes from it."""

    def __init__(self, setup: Setup) -> None:
        self._workers = Workers()
        # A spawned process imports its parent's main module again: here one of Ray, with all of it.
        main = sys.modules["__main__"]
        file = main.__dict__.pop("__file__", None)
        try:
            self._worker = self._workers.add(setup)
        finally:
            main.__file__ = file

    def events(self) -> list[Event]:
        """What has come from it, after waiting a moment if nothing has."""
        return [event for _, event in self._workers.events()]

    def give(self, task: Any) -> None:
        self._worker.give(task)

    def stop(self) -> None:
        self._worker.stop()

    def end(self, give_up: bool) -> None:
        """End the process; one that is to give up tidies up first."""
        with suppress(OSError):
            self._workers.__exit__(KeyboardInterrupt if give_up else None, None, None)
