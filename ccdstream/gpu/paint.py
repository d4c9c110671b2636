"""Frame in a GPU's memory + the overlay's layers in -> the frame with its marks out, there as well.

On the host stands what draws, `Overlay.layers`: text, contours and smoothing of a few marks. On the
device stands the blending, in the whole numbers of `ccdstream.paint` and so bit for bit the same,
because the frame is there and stays there. Only the layers go to the device, a copy a frame for
each type of number in them; nothing comes back and nothing is waited for.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from ccdstream.frames import DeviceFrame
from ccdstream.gpu.transfer import to_device
from ccdstream.paint import Dots, Levels, Mark

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def painted(frame: DeviceFrame, layers: Sequence[Mark]) -> DeviceFrame:
    """The frame with its marks; the one given is left as it is.

    Args:
        frame: of the size that the layers were made for.
        layers: blended first to last.
    """
    import torch

    y = frame.y.clone(memory_format=torch.contiguous_format)
    uv = frame.uv.clone(memory_format=torch.contiguous_format)
    planes = ((y[..., None], 1), (uv, 2))
    blends = [
        (plane, step, layer, arrays)
        for layer in layers
        for (plane, step), arrays in zip(planes, _arrays(layer), strict=True)
    ]
    sent = iter(_sent([array for *_, arrays in blends for array in arrays], y.device))
    for plane, step, layer, arrays in blends:
        _blend(plane, step, layer, list(islice(sent, len(arrays))))
    return replace(frame, y=y, uv=uv)


def _arrays(layer: Mark) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What there is to blend, for luma and for chroma: index of dots or levels, if the layer has
    such; keep [...]; and add [..., c] of c channels, which lie side by side in the planes."""
    if isinstance(layer, Levels):
        luma, chroma = [layer.luma, *layer.luma_ramp], [layer.chroma, *layer.chroma_ramp]
    else:
        luma, chroma = [*layer.luma], [*layer.chroma]
    *of_luma, add_y = luma
    *of_chroma, add_u, add_v = chroma
    return [*of_luma, add_y[..., None]], [*of_chroma, np.stack([add_u, add_v], axis=-1)]


def _blend(plane: "Tensor", step: int, layer: Mark, arrays: Sequence["Tensor"]) -> None:
    """Paint on a plane uint8 [h, w, c], `step` frame pixels to each of its own, in place."""
    if isinstance(layer, Dots):
        index, keep, add = arrays
        pixels = plane.view(-1, plane.shape[2])
        pixels.index_copy_(0, index, _mixed(pixels[index], keep, add).to(plane.dtype))
        return
    *levels, keep, add = arrays
    for level in levels:
        keep, add = keep[level.int()], add[level.int()]
    top, left = layer.top // step, layer.left // step
    part = plane[top : top + keep.shape[0], left : left + keep.shape[1]]
    part.copy_(_mixed(part, keep, add))


def _mixed(pixels: "Tensor", keep: "Tensor", add: "Tensor") -> "Tensor":
    """int32 [..., c], by the equation of `ccdstream.paint`, of keep int32 [...], add [..., c]."""
    return (pixels * keep[..., None] + add) >> 8


def _sent(arrays: Sequence[np.ndarray], device: "torch.device") -> list["Tensor"]:
    """The arrays on the device, uint16 as int32: torch hardly knows the former."""
    sent: dict[int, Tensor] = {}
    for dtype in dict.fromkeys(array.dtype for array in arrays):
        numbers = [number for number, array in enumerate(arrays) if array.dtype == dtype]
        together = np.concatenate([arrays[number].ravel() for number in numbers])
        if dtype == np.uint16:
            tensor = to_device(together.view(np.int16), device).int() & 0xFFFF
        else:
            tensor = to_device(together, device)
        pieces = tensor.split([arrays[number].size for number in numbers])
        for number, piece in zip(numbers, pieces, strict=True):
            sent[number] = piece.reshape(arrays[number].shape)
    return [sent[number] for number in range(len(arrays))]
