"""Which engine runs a bundle here: the first that is installed and passes the parity gate.

Nothing falls back in silence: what `open_engine` returns says why it was taken and what was passed
over for which reason.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import numpy as np

from ccdstream.bundle import Bundle
from ccdstream.engine import onnxruntime, openvino, tensorrt, torch_cuda, torch_tensorrt
from ccdstream.engine.base import (
    BuildOptions,
    Device,
    DeviceEngine,
    Engine,
    EngineInfo,
    EngineOutput,
    Precision,
)
from ccdstream.engine.parity import Parity, Reference, check_parity
from ccdstream.errors import EngineError


class OpenEngine(Protocol):
    """`open_engine` of an engine's module."""

    def __call__(
        self,
        bundle: Bundle,
        device: Device,
        *,
        threads: int | None = None,
        build: BuildOptions | None = None,
    ) -> Engine: ...


@dataclass(frozen=True, slots=True)
class Backend:
    """An engine on one kind of device, as `auto` tries it."""

    name: str
    device: Device
    open_engine: OpenEngine
    probe: Callable[[], list[EngineInfo]]
    by_name_only: bool = False
    """Whether `auto` leaves it out."""
    takes_precision: bool = False
    """Whether it computes in the precision asked for; the others run the program as it is."""


BACKENDS: tuple[Backend, ...] = (
    Backend(tensorrt.NAME, "cuda", tensorrt.open_engine, tensorrt.probe, takes_precision=True),
    Backend(
        torch_cuda.NAME, "cuda", torch_cuda.open_engine, torch_cuda.probe, takes_precision=True
    ),
    Backend(
        torch_tensorrt.NAME,
        "cuda",
        torch_tensorrt.open_engine,
        torch_tensorrt.probe,
        by_name_only=True,
        takes_precision=True,
    ),
    Backend("onnxruntime", "cuda", onnxruntime.open_engine, onnxruntime.probe),
    Backend("openvino", "cpu", openvino.open_engine, openvino.probe),
    Backend("onnxruntime", "cpu", onnxruntime.open_engine, onnxruntime.probe),
)
"""In order of preference: a GPU before the CPU, and on it what compiles for it, then torch, which
every installation has, both in half precision, then ONNX Runtime in single. torch-tensorrt is for
those who name it: it compiles what TensorRT compiles, by a longer way. Of the two CPU engines ONNX
Runtime takes up to a fifth less time in single precision (MobileNetV2 and EfficientNet-B0 at
256x256 on a Zen 4; equal within a tenth on a Zen 3). OpenVINO still comes first: every installation
has it, so that the engine does not change with what else is installed. A new engine is one line
here."""

ENGINE_NAMES = tuple(dict.fromkeys(backend.name for backend in BACKENDS))


@dataclass(frozen=True, slots=True)
class PassedOver:
    """An engine that was tried and not taken."""

    name: str
    device: Device
    why: str


@dataclass(frozen=True, slots=True)
class SelectedEngine:
    """An engine that passed the parity gate, and why it was taken. It is an `Engine` itself."""

    engine: Engine
    parity: Parity
    passed_over: tuple[PassedOver, ...]
    """What comes before it in the order of preference."""
    precision: Precision | None = None
    """What its networks compute in; None where it runs the program as it is, in single."""

    @property
    def name(self) -> str:
        """Which engine."""
        return self.engine.name

    @property
    def device(self) -> Device:
        """What it runs on."""
        return self.engine.device

    @property
    def version(self) -> str:
        """Version of the engine's library."""
        return self.engine.version

    @property
    def on_device(self) -> DeviceEngine | None:
        """The engine as one that takes what is in the GPU's memory; None where it does not."""
        taken = hasattr(self.engine, "run_on_device")
        return cast(DeviceEngine, self.engine) if taken else None

    @property
    def reason(self) -> str:
        """What was taken and why, on one line."""
        precision = f" in {self.precision}" if self.precision else ""
        taken = f"{self.name} {self.version} on {self.device}{precision}: {self.parity}"
        return f"{taken}. Passed over {_told(self.passed_over)}." if self.passed_over else taken

    def run(self, frames: np.ndarray, valid: np.ndarray) -> EngineOutput:
        """Score a batch; see `Engine.run`."""
        return self.engine.run(frames, valid)


def open_engine(
    bundle: Bundle,
    *,
    device: Literal["auto"] | Device = "auto",
    engine: str = "auto",
    threads: int | None = None,
    build: BuildOptions | None = None,
    reference: Reference | None = None,
    backends: Sequence[Backend] = BACKENDS,
) -> SelectedEngine:
    """Open the first engine, in order of preference, that starts and passes the parity gate.

    Args:
        device: where to run; auto takes any.
        engine: one of `ENGINE_NAMES`; auto takes any.
        threads: most threads to compute with on the CPU; None for one per core.
        build: how engines that compile for a GPU do so.
        reference: what the gate compares beside the golden frames.
        backends: the engines to choose from.

    Raises:
        ValueError: there is no engine or device of that name.
        EngineError: no engine that was asked for starts and passes; says what each lacks.
    """
    names = dict.fromkeys(backend.name for backend in backends)
    if engine != "auto" and engine not in names:
        raise ValueError(f"engine must be auto or one of {', '.join(names)}, got {engine!r}")
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, got {device!r}")
    passed_over: list[PassedOver] = []
    for backend in backends:
        if engine not in ("auto", backend.name) or device not in ("auto", backend.device):
            continue
        if engine == "auto" and backend.by_name_only:
            continue
        try:
            candidate = backend.open_engine(bundle, backend.device, threads=threads, build=build)
            parity = check_parity(candidate, bundle, reference)
        except EngineError as error:
            passed_over.append(PassedOver(backend.name, backend.device, str(error)))
            continue
        if parity.passed:
            precision = (build or BuildOptions()).precision if backend.takes_precision else None
            return SelectedEngine(candidate, parity, tuple(passed_over), precision)
        passed_over.append(
            PassedOver(backend.name, backend.device, f"not in parity: {', '.join(parity.failures)}")
        )
    who = "no engine can" if engine == "auto" else f"{engine} cannot"
    where = "" if device == "auto" else f" on {device}"
    why = _told(passed_over) or f"it does not run on {device}"
    what_to_do = "Use the CPU" if device == "cuda" else "Install or name another engine"
    raise EngineError(
        f"{who} run {bundle.model_id}{where}: {why}. {what_to_do}; ccdstream doctor shows what is "
        "here."
    )


def _told(passed_over: Sequence[PassedOver]) -> str:
    """Who was passed over and why: those with the same reason together."""
    groups: dict[tuple[Device, str], list[str]] = {}
    for one in passed_over:
        groups.setdefault((one.device, one.why), []).append(one.name)
    return "; ".join(
        f"{', '.join(names)} on {device}: {why}" for (device, why), names in groups.items()
    )


def available() -> list[EngineInfo]:
    """Every engine that this version knows, in order of preference, and whether it starts here."""
    probed = {
        (info.name, info.device): info
        for probe in dict.fromkeys(backend.probe for backend in BACKENDS)
        for info in probe()
    }
    return [probed[backend.name, backend.device] for backend in BACKENDS]
