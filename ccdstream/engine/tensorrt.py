"""TensorRT from the bundle's ONNX: compiled for one GPU, kept, and run by CUDA graphs.

Written for `tensorrt` 10.15 to 11 and for `tensorrt_rtx`, whose Python interface is nearly the
same; `tensorrt` is taken where both are installed. The network is strongly typed: it computes in
the types that `precision.program_in` wrote into the program, and nothing else decides them.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ccdstream.bundle import Bundle
from ccdstream.engine.base import (
    INPUTS,
    OUTPUTS,
    BuildOptions,
    Device,
    EngineInfo,
    check_names,
    import_library,
    one_line,
)
from ccdstream.engine.cache import EngineCache, EngineKey, engine_key
from ccdstream.engine.cuda import BatchedEngine, GpuQueue, Queue, usable_gpu
from ccdstream.engine.gpu import Gpu
from ccdstream.engine.rewrite import without_col2im
from ccdstream.errors import EngineError

if TYPE_CHECKING:
    from torch import Tensor

NAME = "tensorrt"
PACKAGES = ("tensorrt", "tensorrt_rtx")
"""In order of preference: TensorRT itself measures on the GPU which kernel is fastest."""

_SILENT = "it does not say why"


@dataclass(frozen=True, slots=True)
class Library:
    """One of `PACKAGES`, imported."""

    package: str
    api: Any

    @property
    def version(self) -> str:
        """Its version, and its name where that is not the engine's."""
        version = str(self.api.__version__)
        return version if self.package == NAME else f"{version} ({self.package})"


def probe() -> list[EngineInfo]:
    """Whether TensorRT or TensorRT-RTX is here and starts, and whether there is a GPU."""
    try:
        usable_gpu(NAME, "cuda", BuildOptions())
        library = load_library()
    except EngineError as error:
        return [EngineInfo(NAME, "cuda", False, None, str(error))]
    return [EngineInfo(NAME, "cuda", True, library.version, "")]


def open_engine(
    bundle: Bundle,
    device: Device,
    *,
    threads: int | None = None,
    build: BuildOptions | None = None,
) -> BatchedEngine:
    """Load a bundle's compiled engine from the cache; compile it first where there is none.

    Args:
        threads: of no use here.

    Raises:
        EngineError: TensorRT or the GPU is not here, or cannot compile, load or hold the program.
    """
    options = build or BuildOptions()
    gpu = usable_gpu(NAME, device, options)
    return make_engine(bundle, load_library(), GpuQueue(options.gpu), gpu, options)


def load_library() -> Library:
    """The first of `PACKAGES` that starts.

    Raises:
        EngineError: none does; says why of each that is installed.
    """
    broken = []
    for package in PACKAGES:
        try:
            return Library(package, import_library(package))
        except EngineError as error:
            why = error.__cause__
            if not (isinstance(why, ModuleNotFoundError) and why.name == package):
                broken.append(str(error))
    raise EngineError(
        "; ".join(broken)
        or "tensorrt is not installed; pip install tensorrt (tensorrt-rtx for GeForce and RTX GPUs)"
    )


def make_engine(
    bundle: Bundle, library: Library, queue: Queue, gpu: Gpu, options: BuildOptions
) -> BatchedEngine:
    """The engine of a bundle on a queue of the GPU `gpu`; see `open_engine`."""
    from ccdstream.engine.precision import program_in  # loads onnx

    program = without_col2im(
        program_in(options.precision, bundle.program.read_bytes(), options.calibration)
    )
    key = engine_key(
        program,
        library=library.package,
        version=str(library.api.__version__),
        gpu=gpu,
        options=options,
    )
    cache = EngineCache(options.cache, options.say)

    with queue.entered():
        kept, loaded = cache.load(key), None
        if kept is not None:
            loaded = _deserialized(library, kept)
            if loaded is None:
                options.say(f"engine rebuilt: {library.package} does not load what was kept")
        if loaded is None:
            options.say(
                f"compiling {bundle.model_id} for {gpu.name} with {library.package} "
                f"{library.api.__version__}: {options.precision}, batches of {options.batch[0]} to "
                f"{options.batch[2]}; kept in {cache.folder}"
            )
            engine = build_engine(program, library, options.batch, timings=Timings(cache, key))
            loaded = _deserialized(library, engine)
            if loaded is None:
                raise EngineError(
                    f"{library.package} {library.api.__version__} does not load what it compiled "
                    f"for {gpu.name}, which it may not support: {_log(library.api).told}"
                )
            cache.store(key, engine)
        work = _Executor(library, loaded, queue, bundle, options.batch)
    return BatchedEngine(NAME, library.version, work, queue, bundle, batch=options.batch)


@dataclass(frozen=True, slots=True)
class Timings:
    """TensorRT's measurements of kernels on one GPU, kept beside the engines: the next program
    needs only those that are new."""

    cache: EngineCache
    engine: EngineKey
    """Of an engine for that GPU."""

    def load(self) -> bytes:
        """What was measured so far; nothing at first."""
        return self._quiet().load(self._key()) or b""

    def store(self, timings: bytes) -> None:
        """Keep measurements."""
        self._quiet().store(self._key(), timings)

    def _key(self) -> EngineKey:
        return replace(self.engine, program="timings", precision="any", batch="any")

    def _quiet(self) -> EngineCache:
        # what there is to say is said of the engine, in the same folder
        return EngineCache(self.cache.folder, lambda _: None)


def build_engine(
    program: bytes,
    library: Library,
    batch: tuple[int, int, int],
    *,
    timings: Timings | None = None,
) -> bytes:
    """Compile an ONNX program for the current GPU; TensorRT-RTX does it without one too.

    Args:
        batch: least, usual and most views in a call; the engine is tuned for the usual.
        timings: where TensorRT's measurements are kept; None for nowhere.

    Raises:
        EngineError: the program has an operator that it does not know, or it cannot be compiled.
    """
    api = library.api
    log = _cleared_log(library)
    builder = _started(api.Builder, log)
    if builder is None:
        raise EngineError(f"{library.package} does not start: {log.told}")
    strongly_typed = 1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly_typed)
    parser = api.OnnxParser(network, log)
    if not parser.parse(program):
        raise EngineError(f"{library.package} does not read the program: {_why(parser, log)}")
    config = builder.create_builder_config()
    if hasattr(api.BuilderFlag, "TF32"):
        # it would round the inputs of every product of single precision to 10 bits
        config.clear_flag(api.BuilderFlag.TF32)
    if hasattr(api.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        # TensorRT-RTX: an engine that allocates while it runs cannot be recorded
        config.set_flag(api.BuilderFlag.REQUIRE_USER_ALLOCATION)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)[1:]
        profile.set_shape(tensor.name, *((views, *shape) for views in batch))
    config.add_optimization_profile(profile)
    measured = None
    if timings is not None and library.package == NAME:  # TensorRT-RTX measures nothing
        measured = config.create_timing_cache(timings.load())
        config.set_timing_cache(measured, ignore_mismatch=False)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise EngineError(f"{library.package} does not compile the program: {log.told}")
    if timings is not None and measured is not None:
        timings.store(bytes(config.get_timing_cache().serialize()))
    return bytes(engine)


class _Executor:
    """Runs a deserialised engine: a `Work`.

    A recorded graph holds the state of its execution context, so each size of batch has a context.
    They share the memory for what lies between, since no two run at once.
    """

    def __init__(
        self,
        library: Library,
        loaded: "_Loaded",
        queue: Queue,
        bundle: Bundle,
        batch: tuple[int, int, int],
    ) -> None:
        import torch

        self._library = library
        self._loaded = loaded
        self._queue = queue
        self._contexts: dict[int, Any] = {}
        _check_tensors(library, loaded.engine, bundle, batch)
        size = loaded.engine.device_memory_size_v2
        try:
            self._memory = torch.empty(max(size, 1), dtype=torch.uint8, device=queue.device)
        except RuntimeError as error:
            raise EngineError(
                f"tensorrt needs {size / 1e6:.0f} MB for batches of {batch[2]}: {one_line(error)}"
            ) from error

    def __call__(self, frames: "Tensor", valid: "Tensor", outputs: "Sequence[Tensor]") -> None:
        rows = len(frames)
        if rows not in self._contexts:
            self._contexts[rows] = self._context()
        context = self._contexts[rows]
        bound = True
        for name, tensor in zip(INPUTS, (frames, valid), strict=True):
            bound &= context.set_input_shape(name, tuple(tensor.shape))
        for name, tensor in zip((*INPUTS, *OUTPUTS), (frames, valid, *outputs), strict=True):
            bound &= context.set_tensor_address(name, tensor.data_ptr())
        if not bound or not context.execute_async_v3(self._queue.stream):
            raise EngineError(
                f"tensorrt could not score a batch of {rows}: {_log(self._library.api).told}"
            )

    def _context(self) -> Any:
        api, engine = self._library.api, self._loaded.engine
        user_managed = api.ExecutionContextAllocationStrategy.USER_MANAGED
        if hasattr(api, "DynamicShapesKernelSpecializationStrategy"):
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(user_managed)
            # TensorRT-RTX: the kernels for a size of batch are made before it is recorded, not
            # some time after
            config.dynamic_shapes_kernel_specialization_strategy = (
                api.DynamicShapesKernelSpecializationStrategy.EAGER
            )
            context = engine.create_execution_context(config)
        else:
            context = engine.create_execution_context(user_managed)
        if context is None:
            raise EngineError(f"tensorrt cannot prepare to run: {_log(api).told}")
        context.set_device_memory(self._memory.data_ptr(), self._memory.numel())
        return context


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A deserialised engine, and the runtime, which must live as long."""

    engine: Any
    runtime: Any


def _deserialized(library: Library, engine: bytes) -> _Loaded | None:
    """The engine, ready on the current GPU; None where the library refuses it."""
    log = _cleared_log(library)
    runtime = _started(library.api.Runtime, log)
    loaded = None if runtime is None else runtime.deserialize_cuda_engine(engine)
    return None if loaded is None else _Loaded(loaded, runtime)


def _started(kind: Any, log: Any) -> Any | None:
    """A builder or runtime; None where the library gives none, for instance because the driver is
    too old for it: its binding raises a TypeError then, which says no more than "nullptr"."""
    try:
        return kind(log)
    except TypeError:
        return None


def _check_tensors(
    library: Library, engine: Any, bundle: Bundle, batch: tuple[int, int, int]
) -> None:
    """Raise EngineError unless an engine reads and writes what is reserved for it: it is given
    addresses, and would write past them without a word."""
    api = library.api
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = {name for name in names if engine.get_tensor_mode(name) == api.TensorIOMode.INPUT}
    check_names(bundle, inputs, set(names) - inputs)
    shapes = {"score": (), "map": bundle.map_size, "parts": (len(bundle.parts),)}
    for name, shape in shapes.items():
        given = tuple(engine.get_tensor_shape(name))
        if given[1:] != tuple(shape) or engine.get_tensor_dtype(name) != api.DataType.FLOAT:
            raise EngineError(
                f"{bundle.program} gives {name} {engine.get_tensor_dtype(name)} {list(given)}; "
                f"expected float32 {[-1, *shape]}. Export the bundle again."
            )
    least, _, most = (tuple(each) for each in engine.get_tensor_profile_shape("frames", 0))
    if least[0] > batch[0] or most[0] < batch[2]:
        raise EngineError(
            f"{bundle.program} takes batches of {least[0]} to {most[0]}, not of {batch[0]} to "
            f"{batch[2]}"
        )


@functools.cache
def _log(api: Any) -> Any:
    """The logger of this process: keeps the last error of the library and prints nothing.

    One for all: the library goes on with the first that it is given after what it was given for is
    gone.
    """

    class Log(api.ILogger):  # type: ignore[misc]
        told = _SILENT

        def __init__(self) -> None:
            api.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (api.ILogger.INTERNAL_ERROR, api.ILogger.ERROR):
                self.told = one_line(message)

    return Log()


def _cleared_log(library: Library) -> Any:
    """The logger, without what it was told before."""
    log = _log(library.api)
    log.told = _SILENT
    return log


def _why(parser: Any, log: Any) -> str:
    """What a parser says of its first error, on one line."""
    if parser.num_errors == 0:
        return str(log.told)
    error = parser.get_error(0)
    return one_line(f"{error.node_operator()} ({error.node_name()}): {error.desc()}")
