"""Copies between the host's memory and a GPU's, through pinned memory and waiting for nothing.

The same lines run on torch's CPU device, where nothing is copied.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from ccdstream.engine.base import one_line
from ccdstream.errors import EngineError
from ccdstream.frames import DeviceFrame, Frame

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def to_device(array: np.ndarray, device: "torch.device") -> "Tensor":
    """The array as a tensor on the device, there before whatever is queued next on this stream."""
    import torch

    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def frame_to_device(frame: Frame, device: "torch.device") -> DeviceFrame:
    """A frame of the host's as a GPU's decoder leaves it: one copy of luma and one of chroma."""
    uv = np.stack([frame.u, frame.v], axis=-1)
    y = np.array(frame.y)  # the decoder's own memory may be read-only, and is not pinned
    planes = to_device(y, device), to_device(uv, device)
    return DeviceFrame(*planes, frame.pts, frame.time_base, frame.colour)


@contextmanager
def device_failures() -> Iterator[None]:
    """Tell a failure of the GPU, for instance for want of memory, as an EngineError."""
    import torch

    try:
        yield
    except (torch.AcceleratorError, torch.OutOfMemoryError) as error:
        raise EngineError(
            f"the GPU failed ({one_line(error)}). Use a smaller --batch, fewer --jobs or --device "
            "cpu."
        ) from error


class ToHost:
    """A tensor on its way to the host's memory."""

    def __init__(self, tensor: "Tensor") -> None:
        """Queue the copy on the current stream of the tensor's GPU."""
        import torch

        self._copied: torch.cuda.Event | None = None
        self._host = tensor
        if tensor.is_cuda:
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(tensor.device))

    def array(self) -> np.ndarray:
        """What arrived. Waits for the copy, but not for what was queued after it."""
        if self._copied is not None:
            self._copied.synchronize()
        array: np.ndarray = self._host.numpy()
        return array
