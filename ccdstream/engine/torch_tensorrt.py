"""The torch program through torch-tensorrt's dynamo path: TensorRT inside a torch module.

Half precision is that of the module's own types: current versions take no notice of
`enabled_precisions`. Importing the library asks for the GPU, so it is only done where there is one.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccdstream.bundle import Bundle
from ccdstream.engine.base import BuildOptions, Device, EngineInfo, import_library, one_line
from ccdstream.engine.cache import EngineCache, engine_key
from ccdstream.engine.cuda import BatchedEngine, GpuQueue, Queue, usable_gpu
from ccdstream.engine.gpu import Gpu
from ccdstream.engine.rewrite import without_col2im
from ccdstream.engine.torch_cuda import floating_program, module_work, torch_module
from ccdstream.errors import EngineError
from ccdstream.frames import VIEW_SIZE

if TYPE_CHECKING:
    from torch import nn

NAME = "torch-tensorrt"
_LIBRARY = "torch_tensorrt"
_LEAST = 2
"""torch.export takes a batch of one for a constant: an engine for batches of any size starts at
two, and a single view is computed beside an empty one."""


def probe() -> list[EngineInfo]:
    """Whether torch-tensorrt is here and starts; it cannot without a GPU."""
    try:
        usable_gpu(NAME, "cuda", BuildOptions())
        library = _import()
    except EngineError as error:
        return [EngineInfo(NAME, "cuda", False, None, str(error))]
    return [EngineInfo(NAME, "cuda", True, library.__version__, "")]


def open_engine(
    bundle: Bundle,
    device: Device,
    *,
    threads: int | None = None,
    build: BuildOptions | None = None,
) -> BatchedEngine:
    """Load a bundle's compiled module from the cache; compile it first where there is none.

    Args:
        threads: of no use here.

    Raises:
        EngineError: torch-tensorrt or the GPU is not here, or cannot compile or hold the program.
    """
    options = build or BuildOptions()
    gpu = usable_gpu(NAME, device, options)
    return make_engine(bundle, _import(), GpuQueue(options.gpu), gpu, options)


def make_engine(
    bundle: Bundle, library: Any, queue: Queue, gpu: Gpu, options: BuildOptions
) -> BatchedEngine:
    """The engine of a bundle on a queue of the GPU `gpu`; see `open_engine`."""
    import torch

    program = without_col2im(floating_program(NAME, bundle, options))
    version = str(library.__version__)
    key = engine_key(
        program,
        library=_LIBRARY,
        version=f"{version} with torch {torch.__version__}",
        gpu=gpu,
        options=options,
    )
    least, usual, most = options.batch
    batch = (min(max(least, _LEAST), most), max(usual, min(_LEAST, most)), most)
    cache = EngineCache(options.cache, options.say)
    module = None
    with queue.entered():
        kept = cache.load(key)
        if kept is not None:
            try:
                module = _loaded(library, kept)
            except Exception as error:  # of torch, of TensorRT or of Python's own
                options.say(f"engine rebuilt: {NAME} does not read it ({one_line(error)})")
        if module is None:
            options.say(
                f"compiling {bundle.model_id} for {gpu.name} with {NAME} {version}: "
                f"{options.precision}, batches of {least} to {most}; kept in {cache.folder}"
            )
            try:
                compiled = _compiled(library, torch_module(NAME, program, queue), queue, batch)
                module = _loaded(library, compiled)
            except Exception as error:
                raise EngineError(
                    f"{NAME} cannot compile the program: {one_line(error)}"
                ) from error
            cache.store(key, compiled)
    # Not recorded: a graph holds the state of an execution context, and torch-tensorrt has one
    # context for all sizes of batch.
    work = module_work(module)
    return BatchedEngine(NAME, version, work, queue, bundle, batch=batch, record=False)


def _compiled(
    library: Any, module: "nn.Module", queue: Queue, batch: tuple[int, int, int]
) -> bytes:
    """A module compiled for the current GPU, as a file's content."""
    import torch

    shapes = ((3, *VIEW_SIZE), VIEW_SIZE)
    dtypes = (torch.uint8, torch.bool)
    example = tuple(
        torch.zeros(batch[1], *shape, dtype=dtype, device=queue.device)
        for shape, dtype in zip(shapes, dtypes, strict=True)
    )
    dynamic = None
    if batch[0] < batch[2]:
        views = torch.export.Dim("views", min=batch[0], max=batch[2])
        dynamic = ({0: views}, {0: views})
    with torch.no_grad():
        exported = torch.export.export(module, example, dynamic_shapes=dynamic)
    compiled = library.dynamo.compile(
        exported,
        arg_inputs=[
            library.Input(
                **{
                    f"{which}_shape": (views, *shape)
                    for which, views in zip(("min", "opt", "max"), batch, strict=True)
                },
                dtype=dtype,
            )
            for shape, dtype in zip(shapes, dtypes, strict=True)
        ],
        device=queue.device,
        disable_tf32=True,
        min_block_size=1,
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "engine.ep"
        library.save(compiled, str(file), arg_inputs=list(example), dynamic_shapes=dynamic)
        return file.read_bytes()


def _loaded(library: Any, content: bytes) -> "nn.Module":
    """The module in a file that `_compiled` wrote."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "engine.ep"
        file.write_bytes(content)
        module: nn.Module = library.load(str(file)).module()
        return module


def _import() -> Any:
    return import_library(_LIBRARY)
