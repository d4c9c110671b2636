"""Pictures in a GPU's memory, handed between FFmpeg and torch.

NVDEC leaves its pictures on the GPU, and NVENC takes them from there, as NV12: a plane of luma, and
one of interleaved chroma. FFmpeg and torch must share one CUDA context for that, and agree on an
order of work:

* The context is torch's, current in the thread that opens FFmpeg's decoder or encoder
  (`context_of`). FFmpeg could ask for the device's primary context by itself, but refuses it where
  torch was there first, because torch begins it with other flags.
* FFmpeg's decoder and encoder work in CUDA's default stream: a device context that FFmpeg makes
  itself has no other. So what touches their pictures is queued there, and other streams wait for it
  (`_in_ffmpegs_stream`); the host waits for nothing.

Both are taken from FFmpeg's source (`hwcontext_cuda.c`, `nvdec.c`, `nvenc.c`); no GPU was at hand
when this was written, and the tests marked `cuda` are there to show it. All else runs on the CPU
as well.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from ccdstream.engine.base import one_line
from ccdstream.errors import EngineError
from ccdstream.frames import DeviceFrame

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CONTEXT_OPTIONS: dict[str, object] = {"primary_ctx": "0", "current_ctx": "1"}
"""What FFmpeg is told when it opens a CUDA device: join the context that is current."""

_PITCH_BYTES = 256
"""Rows for NVENC start at multiples of it; NVENC itself asks for 4."""


class PictureLike(Protocol):
    """What PyAV gives: planes that export DLPack. The samples are NV12, P010 or P016."""

    @property
    def planes(self) -> Sequence[Any]: ...


@contextmanager
def context_of(gpu: int) -> Iterator[None]:
    """Within it, torch's context on `gpu` is current in this thread.

    Raises:
        EngineError: torch cannot use that GPU.
    """
    import torch

    try:
        device = torch.device("cuda", gpu)
        torch.zeros(1, device=device)  # begins the context
    except (AssertionError, RuntimeError) as error:  # AssertionError: a torch without CUDA
        raise EngineError(f"torch cannot use GPU {gpu} ({one_line(error)})") from error
    with torch.cuda.device(device):
        yield


def planes_of(picture: PictureLike) -> "tuple[Tensor, Tensor]":
    """A copy of `picture` in 8 bits that torch owns, on the device where the picture is.

    A copy, because FFmpeg writes to a picture's memory again once it is let go, and knows nothing
    of the streams that may still read it. Samples of more bits are rounded to the nearest of 8.

    Returns:
        y uint8 [H, W] and uv uint8 [H / 2, W / 2, 2], contiguous.

    Raises:
        EngineError: the GPU failed, for instance for want of memory.
    """
    from torch.utils.dlpack import from_dlpack

    try:
        # The capsule, not the plane: torch would ask the plane for a stream, which PyAV refuses.
        y, uv = (from_dlpack(plane.__dlpack__()) for plane in picture.planes[:2])
        with _in_ffmpegs_stream(y.device) as shared:
            return shared(_in_8_bits(y)), shared(_in_8_bits(uv))
    except RuntimeError as error:
        raise EngineError(f"torch did not take over a picture ({one_line(error)})") from error


def for_nvenc(frame: DeviceFrame) -> "tuple[Tensor, Tensor]":
    """A copy of `frame` as NVENC reads it: of even size, in one piece, chroma after luma.

    NVENC is given the address of the luma and the length of a row, and finds the chroma below the
    last row. An odd size is made even by repeating the last row or column.

    Returns:
        y uint8 [H, W] and uv uint8 [H / 2, W], both with the same row stride.
    """
    import torch

    height, width = frame.size
    even_height, even_width = height + height % 2, width + width % 2
    pitch = -(-even_width // _PITCH_BYTES) * _PITCH_BYTES
    device = frame.y.device
    with _in_ffmpegs_stream(device) as shared:
        rows = torch.empty((even_height * 3 // 2, pitch), dtype=torch.uint8, device=device)
        y, uv = rows[:even_height, :even_width], rows[even_height:, :even_width]
        y[:height, :width] = shared(frame.y)
        y[:height, width:] = frame.y[:, -1:]
        y[height:] = y[height - 1]
        uv.copy_(shared(frame.uv).flatten(1))
        return y, uv


def _in_8_bits(samples: "Tensor") -> "Tensor":
    """uint8, contiguous; of uint16 the upper eight bits, rounded."""
    import torch

    if samples.dtype == torch.uint8:
        return samples.clone(memory_format=torch.contiguous_format)
    rounded = (samples.to(torch.int32) + 128) >> 8
    return rounded.clamp_(max=255).to(torch.uint8)


@contextmanager
def _in_ffmpegs_stream(device: "torch.device") -> "Iterator[Callable[[Tensor], Tensor]]":
    """What is queued within comes after FFmpeg's work and before what is queued here later.

    It gives a function for the tensors that both streams use: their memory is then not used anew
    before both are done with it.
    """
    import torch

    if device.type != "cuda":
        yield lambda tensor: tensor
        return
    here, ffmpegs = torch.cuda.current_stream(device), torch.cuda.default_stream(device)

    def shared(tensor: "Tensor") -> "Tensor":
        for stream in (here, ffmpegs):
            tensor.record_stream(stream)
        return tensor

    ffmpegs.wait_stream(here)
    with torch.cuda.stream(ffmpegs):
        yield shared
    here.wait_stream(ffmpegs)
