"""ONNX Runtime: on the CPU, and on an NVIDIA GPU where onnxruntime-gpu is installed."""

import os
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
from ccdstream.engine.gpu import find_gpus
from ccdstream.errors import EngineError

NAME = "onnxruntime"
_PROVIDERS: dict[Device, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_CUDA_SETTINGS = {
    # TF32 would round the inputs of every product to 10 bits, and fail the parity gate.
    "use_tf32": "0",
    # The default tries every algorithm anew for each size of batch, the last one of a file too.
    "cudnn_conv_algo_search": "HEURISTIC",
}
_FOR_CUDA = "pip install onnxruntime-gpu"
_ERRORS_ONLY = 3
"""ONNX Runtime's log level: warnings on stderr would tear the progress line apart."""


class OnnxRuntimeEngine:
    """A program in an ONNX Runtime session."""

    name = NAME

    def __init__(self, session: Any, device: Device, version: str) -> None:
        self.device: Device = device
        self.version = version
        self._session = session

    def run(self, frames: np.ndarray, valid: np.ndarray) -> EngineOutput:
        """Score a batch; see `Engine.run`."""
        check_inputs(frames, valid)
        try:
            outputs = self._session.run(OUTPUTS, {"frames": frames, "valid": valid})
        except Exception as error:  # its exception types are private
            raise EngineError(
                f"onnxruntime could not score a batch of {len(frames)}: {one_line(error)}"
            ) from error
        return EngineOutput(*outputs)


def probe() -> list[EngineInfo]:
    """Whether ONNX Runtime is here and starts, and whether this build can use a GPU."""
    try:
        onnxruntime = _import()
    except EngineError as error:
        why = find_gpus().problem or str(error).replace("pip install onnxruntime", _FOR_CUDA)
        return [
            EngineInfo(NAME, "cuda", False, None, why),
            EngineInfo(NAME, "cpu", False, None, str(error)),
        ]
    version = onnxruntime.__version__
    try:
        _check_cuda(onnxruntime)
        cuda = EngineInfo(NAME, "cuda", True, version, "")
    except EngineError as error:
        cuda = EngineInfo(NAME, "cuda", False, None, str(error))
    return [cuda, EngineInfo(NAME, "cpu", True, version, "")]


def open_engine(
    bundle: Bundle,
    device: Device,
    *,
    threads: int | None = None,
    build: BuildOptions | None = None,
) -> OnnxRuntimeEngine:
    """Load a bundle's program for the CPU or a GPU.

    Args:
        threads: most threads to compute with on the CPU; None for one per core.
        build: which GPU; the rest is of no use here.

    Raises:
        EngineError: ONNX Runtime is not here, or cannot load the program, or cannot use the GPU.
    """
    if device == "cuda" and (problem := find_gpus().problem):
        raise EngineError(problem)
    onnxruntime = _import()
    if device == "cuda":
        _check_cuda(onnxruntime)
    provider = _PROVIDERS[device]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    if threads is not None:
        options.intra_op_num_threads = threads
    # Idle threads sleep: spinning ones would take the cores of the decoder and the encoder.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings = {}
    if device == "cuda":
        settings = {"device_id": str((build or BuildOptions()).gpu), **_CUDA_SETTINGS}
    try:
        session = onnxruntime.InferenceSession(
            str(bundle.program), options, providers=[(provider, settings)]
        )
    except Exception as error:  # its exception types are private
        raise EngineError(f"onnxruntime cannot load {bundle.program}: {one_line(error)}") from error
    if session.get_providers()[0] != provider:
        # without the GPU's libraries it warns and goes on with the CPU
        raise EngineError(
            f"onnxruntime did not start on {device}: a CUDA or cuDNN library, or the driver, is "
            "missing or of another version. See ccdstream doctor, or use the CPU."
        )
    check_names(
        bundle,
        {port.name for port in session.get_inputs()},
        {port.name for port in session.get_outputs()},
    )
    return OnnxRuntimeEngine(session, device, onnxruntime.__version__)


def _check_cuda(onnxruntime: Any) -> None:
    """Raise EngineError unless there is a GPU and this build of ONNX Runtime can use one."""
    if problem := find_gpus().problem:
        raise EngineError(problem)
    if _PROVIDERS["cuda"] not in onnxruntime.get_available_providers():
        raise EngineError(f"this onnxruntime is built without CUDA; {_FOR_CUDA}")


def _import() -> Any:
    # From 1.29 on it sends the model's name and hashes and the machine's kind to its maker, and
    # keeps an id of the machine in the home folder, unless told not to before it is imported.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    onnxruntime = import_library(NAME)
    onnxruntime.disable_telemetry_events()  # the switch of older versions, on Windows
    onnxruntime.set_default_logger_severity(_ERRORS_ONLY)
    return onnxruntime
