"""What every engine is: a bundle's program made to run on one device of this machine.

An engine is one module of this package. It imports its library inside functions, so that a missing
or broken installation is a sentence and not a traceback, and it offers two functions:

    probe() -> list[EngineInfo]         the devices it could run on here, and what is missing
    open_engine(bundle, device, *, threads, build) -> Engine     raises EngineError where it cannot

`select` lists the modules and chooses.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from ccdstream.bundle import Bundle
from ccdstream.errors import EngineError
from ccdstream.frames import VIEW_SIZE

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Device = Literal["cpu", "cuda"]
Precision = Literal["fp32", "fp16", "int8"]

INPUTS = ("frames", "valid")
OUTPUTS = ("score", "map", "parts")
"""Names of the program's inputs and outputs: engines bind by name, never by position."""


@dataclass(frozen=True, slots=True, eq=False)
class EngineOutput:
    """What a program says of a batch of views."""

    score: np.ndarray
    """float32 [N], raw; higher is more anomalous."""
    anomaly_map: np.ndarray
    """float32 [N, h, w], raw."""
    parts: np.ndarray
    """float32 [N, k], the terms of the score."""

    def __post_init__(self) -> None:
        rows = len(self.score)
        for name, array, ndim in (
            ("score", self.score, 1),
            ("map", self.anomaly_map, 3),
            ("parts", self.parts, 2),
        ):
            if array.dtype != np.float32 or array.ndim != ndim or len(array) != rows:
                raise ValueError(
                    f"{name} must be float32 with {ndim} dimensions and {rows} rows, "
                    f"got {array.dtype} {list(array.shape)}"
                )


class Engine(Protocol):
    """Runs a program. One thread at a time may call `run`."""

    @property
    def name(self) -> str:
        """Which engine: "openvino", "onnxruntime" ..."""

    @property
    def device(self) -> Device:
        """What it runs on."""

    @property
    def version(self) -> str:
        """Version of the engine's library."""

    def run(self, frames: np.ndarray, valid: np.ndarray) -> EngineOutput:
        """Score a batch.

        Args:
            frames: uint8 [N, 3, 256, 256], RGB, N of 1 or more.
            valid: bool [N, 256, 256].

        Returns:
            Arrays that belong to the caller: a later call does not change them.

        Raises:
            ValueError: an input has another type or shape.
            EngineError: the device failed, for instance for want of memory.
        """


class DeviceEngine(Engine, Protocol):
    """An engine that also takes what is in the GPU's memory already."""

    @property
    def place(self) -> "torch.device":
        """The GPU that `run_on_device` reads from and writes to."""

    @property
    def max_batch(self) -> int:
        """Most views in one call of `run_on_device`; `run` takes any number."""

    def run_on_device(self, frames: "Tensor", valid: "Tensor") -> "tuple[Tensor, Tensor, Tensor]":
        """Score a batch without a copy through the host, in the order of the current stream.

        Args:
            frames: uint8 [N, 3, 256, 256], RGB, on the engine's GPU; N of 1 to `max_batch`.
            valid: bool [N, 256, 256], on the same GPU.

        Returns:
            score float32 [N], map float32 [N, h, w] and parts float32 [N, k], on the GPU. They are
            the engine's own memory: the next call overwrites them.

        Raises:
            ValueError: an input has another type, shape or device.
            EngineError: the device failed.
        """


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationViews:
    """Views of normal frames, from which an int8 engine learns its ranges."""

    frames: np.ndarray
    """uint8 [N, 3, 256, 256]."""
    valid: np.ndarray
    """bool [N, 256, 256]."""


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How an engine is made for a GPU. Engines that compile nothing take no notice."""

    precision: Precision = "fp16"
    """What the networks compute in; normalisation, residual maps and scores are single always."""
    batch: tuple[int, int, int] = (1, 8, 32)
    """Least, usual and most views in a call."""
    gpu: int = 0
    """Which GPU, counted among those that are visible."""
    cache: Path | None = None
    """Folder of compiled engines; None for the user's cache folder."""
    calibration: CalibrationViews | None = None
    """Needed for int8."""
    say: Callable[[str], None] = lambda _: None
    """Told what takes long, and why a compiled engine is made anew; a line each."""

    def __post_init__(self) -> None:
        least, usual, most = self.batch
        if not 1 <= least <= usual <= most:
            raise ValueError(f"batch must be 1 <= least <= usual <= most, got {self.batch}")


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """One way in which this machine could run a bundle, for people to read."""

    name: str
    device: Device
    installed: bool
    """Whether the engine can be opened for this device here."""
    version: str | None
    """Version of the library; None where it is not installed."""
    note: str
    """What is missing and what to do; empty where nothing is."""


def check_inputs(frames: np.ndarray, valid: np.ndarray) -> None:
    """Raise ValueError unless `frames` and `valid` are a batch that a program takes."""
    rows = len(frames)
    for name, array, dtype, shape in (
        ("frames", frames, np.uint8, (rows, 3, *VIEW_SIZE)),
        ("valid", valid, np.bool_, (rows, *VIEW_SIZE)),
    ):
        if array.dtype != dtype or array.shape != shape:
            raise ValueError(
                f"{name} must be {np.dtype(dtype)} {list(shape)}, "
                f"got {array.dtype} {list(array.shape)}"
            )
    if rows == 0:
        raise ValueError("a batch must hold at least one frame, got 0")


def check_names(bundle: Bundle, inputs: set[str], outputs: set[str]) -> None:
    """Raise EngineError unless a program has the inputs and outputs of the bundle format."""
    if inputs != set(INPUTS) or outputs != set(OUTPUTS):
        raise EngineError(
            f"{bundle.program} takes {_listed(inputs)} and gives {_listed(outputs)}; expected "
            f"{_listed(set(INPUTS))} and {_listed(set(OUTPUTS))}. Export the bundle again."
        )


def import_library(name: str) -> Any:
    """The library of an engine, imported now.

    Raises:
        EngineError: it is not installed, or its installation is broken.
    """
    try:
        return importlib.import_module(name)
    except Exception as error:  # a broken installation raises whatever it likes
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            raise EngineError(f"{name} is not installed; pip install {name}") from error
        raise EngineError(f"{name} does not start: {one_line(error)}") from error


def one_line(error: BaseException | str) -> str:
    """A library's error on one line: the first one that says something, and not endless."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    text = text or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
