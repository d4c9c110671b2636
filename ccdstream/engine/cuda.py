"""A GPU as the engines on torch see it: memory, a stream of its own, CUDA graphs.

`HostQueue` does the same on the CPU, where there is nothing to wait for and nothing to record: all
that stands on a queue runs, and is tested, without a GPU.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ccdstream.bundle import Bundle
from ccdstream.engine.base import BuildOptions, Device, EngineOutput, check_inputs, one_line
from ccdstream.engine.gpu import Gpu, find_gpus
from ccdstream.errors import EngineError
from ccdstream.frames import VIEW_SIZE

if TYPE_CHECKING:
    import torch
    from torch import Tensor

WARM_UPS = 2
"""Runs before one is recorded: the first allocates and chooses kernels, which no graph may hold."""

_RECORDING = threading.Lock()
"""Torch allows one recording at a time in a process, also where each is on a GPU of its own."""

Work = Callable[["Tensor", "Tensor", "Sequence[Tensor]"], None]
"""Computes score, map and parts of frames and valid, all in the device's memory, into the tensors
of the third argument; on a GPU without waiting for it."""


class Queue(Protocol):
    """Memory of a device, and work that it does in order."""

    @property
    def device(self) -> "torch.device":
        """Where the memory is."""

    @property
    def stream(self) -> int:
        """Address of the CUDA stream; 0 where there is none."""

    def entered(self) -> AbstractContextManager[None]:
        """Within it, work goes to this queue: after what the caller's stream holds by then, and
        before what it holds later."""

    def host_buffer(self, shape: Sequence[int], dtype: "torch.dtype") -> "Tensor":
        """Zeros in the host's memory, from which the device copies without a detour."""

    def recorded(self, work: Callable[[], None]) -> Callable[[], None]:
        """Run `work`, and give what repeats it on the same memory. Only within `entered`."""

    def wait(self) -> None:
        """Wait until all is done. Only within `entered`."""


class GpuQueue:
    """A stream of its own on one GPU; what is repeated is recorded as a CUDA graph."""

    def __init__(self, gpu: int = 0) -> None:
        """Raises EngineError where torch cannot use that GPU."""
        import torch

        self.device = torch.device("cuda", gpu)
        try:
            with torch.cuda.device(self.device):
                self._stream = torch.cuda.Stream()
                self._graph_memory = torch.cuda.graph_pool_handle()
        except (AssertionError, RuntimeError) as error:  # AssertionError: a torch without CUDA
            raise EngineError(f"torch cannot use GPU {gpu} ({one_line(error)})") from error

    @property
    def stream(self) -> int:
        """See `Queue.stream`."""
        return self._stream.cuda_stream

    @contextmanager
    def entered(self) -> Iterator[None]:
        """See `Queue.entered`."""
        import torch

        # TensorRT builds, loads and runs on the current GPU, whatever stream it is given
        with torch.cuda.device(self.device):
            callers = torch.cuda.current_stream()
            self._stream.wait_stream(callers)
            with torch.cuda.stream(self._stream):
                yield
            callers.wait_stream(self._stream)

    def host_buffer(self, shape: Sequence[int], dtype: "torch.dtype") -> "Tensor":
        """See `Queue.host_buffer`."""
        import torch

        return torch.zeros(*shape, dtype=dtype, pin_memory=True)

    def recorded(self, work: Callable[[], None]) -> Callable[[], None]:
        """See `Queue.recorded`."""
        import torch

        graph = torch.cuda.CUDAGraph()
        with _RECORDING:
            for _ in range(WARM_UPS):
                work()
            # Graphs share the memory of what lies between: they never run at the same time, and
            # what they read and write is not in it. Other threads may allocate meanwhile.
            with torch.cuda.graph(
                graph,
                pool=self._graph_memory,
                stream=self._stream,
                capture_error_mode="thread_local",
            ):
                work()
        graph.replay()  # recording computes nothing
        return graph.replay

    def wait(self) -> None:
        """See `Queue.wait`."""
        self._stream.synchronize()


class HostQueue:
    """The CPU in place of a GPU: work is done when the call returns."""

    stream = 0

    def __init__(self) -> None:
        import torch

        self.device = torch.device("cpu")

    @contextmanager
    def entered(self) -> Iterator[None]:
        """See `Queue.entered`."""
        yield

    def host_buffer(self, shape: Sequence[int], dtype: "torch.dtype") -> "Tensor":
        """See `Queue.host_buffer`."""
        import torch

        return torch.zeros(*shape, dtype=dtype)

    def recorded(self, work: Callable[[], None]) -> Callable[[], None]:
        """See `Queue.recorded`."""
        work()
        return work

    def wait(self) -> None:
        """See `Queue.wait`."""


class BatchedEngine:
    """A program on a queue: a `DeviceEngine` over fixed memory, with one recording for each size
    of batch."""

    def __init__(
        self,
        name: str,
        version: str,
        work: Work,
        queue: Queue,
        bundle: Bundle,
        *,
        batch: tuple[int, int, int],
        record: bool = True,
    ) -> None:
        """Reserve the memory for batches of up to the most that `batch` allows.

        Args:
            work: computes a batch; every call has tensors in the same memory.
            batch: least, usual and most views that `work` takes.
            record: repeat what was recorded, and do not call `work` for every batch.

        Raises:
            EngineError: the GPU has too little memory.
        """
        import torch

        self.name = name
        self.version = version
        self.device: Device = "cuda" if queue.device.type == "cuda" else "cpu"
        self.max_batch = batch[2]
        self._min_batch = batch[0]
        self._work = work
        self._queue = queue
        self._record = record
        self._repeats: dict[int, Callable[[], None]] = {}
        inputs = [((3, *VIEW_SIZE), torch.uint8), (VIEW_SIZE, torch.bool)]
        outputs = [(shape, torch.float32) for shape in ((), bundle.map_size, (len(bundle.parts),))]
        with self._failures(self.max_batch), queue.entered():
            # zeros: where a batch is smaller than the least, the rest is computed and not given
            self._inputs, self._outputs = (
                [
                    torch.zeros(self.max_batch, *shape, dtype=dtype, device=queue.device)
                    for shape, dtype in each
                ]
                for each in (inputs, outputs)
            )
            self._host_inputs, self._host_outputs = (
                [queue.host_buffer((self.max_batch, *shape), dtype) for shape, dtype in each]
                for each in (inputs, outputs)
            )

    @property
    def place(self) -> "torch.device":
        """See `DeviceEngine.place`."""
        return self._queue.device

    def run(self, frames: np.ndarray, valid: np.ndarray) -> EngineOutput:
        """Score a batch of any size; see `Engine.run`."""
        check_inputs(frames, valid)
        starts = range(0, len(frames), self.max_batch)
        rows = [slice(start, start + self.max_batch) for start in starts]
        chunks = [self._run_chunk(frames[each], valid[each]) for each in rows]
        return EngineOutput(*map(np.concatenate, zip(*chunks, strict=True)))

    def run_on_device(self, frames: "Tensor", valid: "Tensor") -> "tuple[Tensor, Tensor, Tensor]":
        """Score what is in the device's memory; see `DeviceEngine.run_on_device`."""
        rows = len(frames)
        for name, given, reserved in zip(
            ("frames", "valid"), (frames, valid), self._inputs, strict=True
        ):
            expected = (reserved.dtype, (rows, *reserved.shape[1:]), reserved.device)
            if (given.dtype, tuple(given.shape), given.device) != expected:
                raise ValueError(
                    f"{name} must be {reserved.dtype} {list(expected[1])} on {reserved.device}, "
                    f"got {given.dtype} {list(given.shape)} on {given.device}"
                )
        if not 1 <= rows <= self.max_batch:
            raise ValueError(f"a batch must hold 1 to {self.max_batch} frames, got {rows}")
        with self._failures(rows), self._queue.entered():
            score, anomaly_map, parts = self._computed([frames, valid])
        return score, anomaly_map, parts

    def _run_chunk(self, frames: np.ndarray, valid: np.ndarray) -> list[np.ndarray]:
        """What `run` gives, of no more rows than there is memory for."""
        rows = len(frames)
        host_inputs = [each[:rows] for each in self._host_inputs]
        host_outputs = [each[:rows] for each in self._host_outputs]
        for host, given in zip(host_inputs, (frames, valid), strict=True):
            np.copyto(host.numpy(), given)
        with self._failures(rows), self._queue.entered():
            for host, output in zip(host_outputs, self._computed(host_inputs), strict=True):
                host.copy_(output, non_blocking=True)
            self._queue.wait()
        return [host.numpy().copy() for host in host_outputs]

    def _computed(self, inputs: "Sequence[Tensor]") -> "list[Tensor]":
        """The outputs for `inputs`, in this engine's memory."""
        rows = len(inputs[0])
        for reserved, given in zip(self._inputs, inputs, strict=True):
            reserved[:rows].copy_(given, non_blocking=True)
        computed = max(rows, self._min_batch)
        if computed in self._repeats:
            self._repeats[computed]()
        else:
            self._repeats[computed] = self._first_run(computed)
        return [each[:rows] for each in self._outputs]

    def _first_run(self, rows: int) -> Callable[[], None]:
        """Compute the first `rows` views, and give what does it again."""
        frames, valid = (each[:rows] for each in self._inputs)
        outputs = [each[:rows] for each in self._outputs]

        def work() -> None:
            self._work(frames, valid, outputs)

        if self._record:
            return self._queue.recorded(work)
        work()
        return work

    @contextmanager
    def _failures(self, rows: int) -> Iterator[None]:
        """Tell a failure of the device as an EngineError."""
        try:
            yield
        except RuntimeError as error:  # torch's errors of the device are kinds of it
            raise EngineError(
                f"{self.name} could not score a batch of {rows}: {one_line(error)}"
            ) from error


def usable_gpu(name: str, device: Device, options: BuildOptions) -> Gpu:
    """The GPU that engine `name` is to run on, once driver and torch have said that they can.

    Raises:
        EngineError: they cannot, there is no such GPU, or `device` is none.
    """
    if device != "cuda":
        raise EngineError(f"{name} runs on cuda only, not on {device}")
    gpus = find_gpus()
    if gpus.problem:
        raise EngineError(gpus.problem)
    if options.gpu >= len(gpus.found):
        raise EngineError(
            f"there is no GPU {options.gpu}: the driver sees {len(gpus.found)}, counted from 0"
        )
    import torch

    if not torch.cuda.is_available():
        raise EngineError(
            f"torch {torch.__version__} does not reach the GPU; install a build of torch for CUDA "
            f"{gpus.cuda_version} or older"
        )
    return gpus.found[options.gpu]
