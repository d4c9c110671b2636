"""The program in torch's own operators on a GPU, recorded as CUDA graphs: no compiler needed."""

from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from ccdstream.bundle import Bundle
from ccdstream.engine.base import BuildOptions, Device, EngineInfo, one_line
from ccdstream.engine.cuda import BatchedEngine, GpuQueue, Queue, Work, usable_gpu
from ccdstream.errors import EngineError

if TYPE_CHECKING:
    from torch import Tensor, nn

NAME = "torch"


def probe() -> list[EngineInfo]:
    """Whether torch reaches a GPU here."""
    try:
        usable_gpu(NAME, "cuda", BuildOptions())
    except EngineError as error:
        return [EngineInfo(NAME, "cuda", False, None, str(error))]
    return [EngineInfo(NAME, "cuda", True, version("torch"), "")]


def open_engine(
    bundle: Bundle,
    device: Device,
    *,
    threads: int | None = None,
    build: BuildOptions | None = None,
) -> BatchedEngine:
    """Put a bundle's program on a GPU.

    Args:
        threads: of no use here.

    Raises:
        EngineError: there is no GPU that torch reaches, or it cannot run or hold the program.
    """
    options = build or BuildOptions()
    usable_gpu(NAME, device, options)
    return make_engine(bundle, GpuQueue(options.gpu), options)


def make_engine(bundle: Bundle, queue: Queue, options: BuildOptions) -> BatchedEngine:
    """The engine of a bundle on a queue; see `open_engine`."""
    module = torch_module(NAME, floating_program(NAME, bundle, options), queue)
    work = module_work(module)
    return BatchedEngine(NAME, version("torch"), work, queue, bundle, batch=options.batch)


def floating_program(name: str, bundle: Bundle, options: BuildOptions) -> bytes:
    """A bundle's program in the precision of `options`, for engine `name`.

    Raises:
        EngineError: that precision is int8.
    """
    from ccdstream.engine.precision import program_in

    if options.precision == "int8":
        raise EngineError(f"{name} computes in fp16 or fp32; int8 is for tensorrt")
    return program_in(options.precision, bundle.program.read_bytes())


def torch_module(name: str, program: bytes, queue: Queue) -> "nn.Module":
    """A program for engine `name` in the memory of a queue's device, its kernels channels last.

    Raises:
        EngineError: it has an operator that is not known, or the GPU has too little memory.
    """
    import torch

    from ccdstream.engine.torch_program import torch_program

    module = torch_program(program).eval().requires_grad_(False)
    try:
        return module.to(queue.device).to(memory_format=torch.channels_last)
    except RuntimeError as error:
        raise EngineError(f"{name} cannot load the program: {one_line(error)}") from error


def module_work(module: "nn.Module") -> Work:
    """A module of frames and valid as a `Work`."""
    import torch

    def work(frames: "Tensor", valid: "Tensor", outputs: "Sequence[Tensor]") -> None:
        # single precision means single: TF32 would round the inputs of every product to 10 bits
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            given = module(frames.contiguous(memory_format=torch.channels_last), valid)
            for output, value in zip(outputs, given, strict=True):
                if value.shape != output.shape:
                    raise EngineError(
                        f"the program gives {list(value.shape)} where the bundle says "
                        f"{list(output.shape)}. Export the bundle again."
                    )
                output.copy_(value)

    return work
