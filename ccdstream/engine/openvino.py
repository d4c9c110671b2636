"""OpenVINO on the CPU: the program as it is, in single precision."""

import sys
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np

from ccdstream.bundle import Bundle
from ccdstream.engine.base import (
    OUTPUTS,
    BuildOptions,
    Device,
    EngineInfo,
    EngineOutput,
    check_inputs,
    check_names,
    import_library,
    one_line,
)
from ccdstream.errors import EngineError

NAME = "openvino"


_FRAMES_AT_ONCE = 4
"""Frames of a batch that are computed side by side, where there are as many cores."""


class OpenVinoEngine:
    """A program compiled by OpenVINO for this CPU and for one frame.

    Where every size is known OpenVINO fuses what it must keep apart for a batch of any size. That
    saves a third of the time; batches save it nothing. So each frame of a batch is a request of its
    own, on its share of the threads: those of one frame would wait for each other at every layer,
    and take turns on the cores with the decoder and the encoder while they do.
    """

    name = NAME
    device: Device = "cpu"

    def __init__(self, compiled: Any, version: str) -> None:
        self.version = version
        count = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        self._requests = [compiled.create_infer_request() for _ in range(count)]

    def run(self, frames: np.ndarray, valid: np.ndarray) -> EngineOutput:
        """Score a batch; see `Engine.run`."""
        check_inputs(frames, valid)
        try:
            rows = list(self._rows(frames, valid))
        except RuntimeError as error:
            raise EngineError(
                f"openvino could not score a batch of {len(frames)}: {_reason(error)}"
            ) from error
        return EngineOutput(*(np.stack(column) for column in zip(*rows, strict=True)))

    def _rows(self, frames: np.ndarray, valid: np.ndarray) -> Iterator[list[np.ndarray]]:
        """The outputs of each frame, in order."""
        running: deque[Any] = deque()
        try:
            for row in range(len(frames)):
                if len(running) == len(self._requests):
                    yield _outputs(running.popleft())
                request = self._requests[row % len(self._requests)]
                # the inputs are only read
                inputs = {"frames": frames[row : row + 1], "valid": valid[row : row + 1]}
                request.start_async(inputs, share_inputs=True)
                running.append(request)
            while running:
                yield _outputs(running.popleft())
        finally:
            for request in running:  # after an error: none may be at work when the next batch comes
                with suppress(RuntimeError):
                    request.wait()


def _outputs(request: Any) -> list[np.ndarray]:
    """What a request found, copied out of its own memory; waits for it."""
    request.wait()
    return [request.get_tensor(name).data[0].copy() for name in OUTPUTS]


def probe() -> list[EngineInfo]:
    """Whether OpenVINO is here and starts."""
    try:
        version = _import().__version__.partition("-")[0]
    except EngineError as error:
        return [EngineInfo(NAME, "cpu", False, None, str(error))]
    return [EngineInfo(NAME, "cpu", True, version, "")]


def open_engine(
    bundle: Bundle,
    device: Device,
    *,
    threads: int | None = None,
    build: BuildOptions | None = None,
) -> OpenVinoEngine:
    """Compile a bundle's program for the CPU.

    Args:
        threads: most threads to compute with; None for one per core that OpenVINO may use.
        build: its batch says how many frames are there at a time. For one alone all threads work
            on it: what a live session wants.

    Raises:
        EngineError: OpenVINO is not here, or cannot read or compile the program, or `device` is
            not the CPU.
    """
    if device != "cpu":
        raise EngineError(f"openvino runs on the cpu only, not on {device}")
    openvino = _import()
    settings: dict[str, Any] = {
        # On CPUs with native bfloat16 OpenVINO computes in it unless told otherwise: a score would
        # then depend on the machine, and miss the golden ones in the third digit.
        "INFERENCE_PRECISION_HINT": "f32",
        "EXECUTION_MODE_HINT": "ACCURACY",
        "NUM_STREAMS": min(_FRAMES_AT_ONCE, (build or BuildOptions()).batch[2]),
        # Decoder and encoder run beside the engine: where to run is for the system to decide.
        "ENABLE_CPU_PINNING": False,
    }
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    try:
        # Core.read_model would try the readers of other formats on what is not ONNX.
        reader = openvino.frontend.FrontEndManager().load_by_framework("onnx")
        program = reader.convert(reader.load(str(bundle.program)))
        program.reshape({port: [1, *list(port.partial_shape)[1:]] for port in program.inputs})
        compiled = _core(openvino).compile_model(program, "CPU", settings)
    except Exception as error:  # its reader has exception types of its own
        raise EngineError(f"openvino cannot compile {bundle.program}: {_reason(error)}") from error
    check_names(
        bundle,
        {port.get_any_name() for port in compiled.inputs},
        {port.get_any_name() for port in compiled.outputs},
    )
    return OpenVinoEngine(compiled, openvino.__version__.partition("-")[0])


@cache
def _core(openvino: Any) -> Any:
    """One for the life of the process. Its CPU plugin gives the thread that loads it a stack for
    signals, and unmaps that when it goes itself, in whichever thread the garbage collector finds
    it: the next Ctrl-C would then end in a segmentation fault."""
    return openvino.Core()


def _import() -> Any:
    # `import openvino` reports itself to Google Analytics by way of this package, and leaves an id
    # in the home folder. It does without the package where it is not installed: so it is told.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return import_library(NAME)


def _reason(error: Exception) -> str:
    """The last line of an OpenVINO error: those before it say where in its source."""
    return one_line(str(error).strip().rpartition("\n")[2].strip(" -"))
