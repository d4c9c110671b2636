"""Frame in a GPU's memory + the overlay's layers in -> the frame with its marks out, there as well.

On the host stands what draws, `Overlay.layers`: text, contours and smoothing of a few marks. On the
device stands the blending, in the whole numbers of `ccdstream.paint` and so bit for bit the same,
because the frame is there and stays there. Only the layers go to the device, those of a frame in
one copy; nothing comes back and nothing is waited for.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, islice
from typing import TYPE_CHECKING

import numpy as np

from ccdstream.frames import DeviceFrame
from ccdstream.gpu.transfer import to_device
from ccdstream.paint import Dots, Levels, Mark

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_ALIGNMENT = 8
"""Bytes at a multiple of which every array of a copy begins, for numbers of up to 64 bits."""


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
        pixels.index_copy_(0, index, _mixed(pixels[index], keep, add))
        return
    *levels, keep, add = arrays
    for level in levels:
        keep, add = keep[level.int()], add[level.int()]
    top, left = layer.top // step, layer.left // step
    part = plane[top : top + keep.shape[0], left : left + keep.shape[1]]
    part.copy_(_mixed(part, keep, add))


def _mixed(pixels: "Tensor", keep: "Tensor", add: "Tensor") -> "Tensor":
    """uint8 [..., c], by the equation of `ccdstream.paint`: keep int32 [...], add [..., c]."""
    return ((pixels * keep[..., None] + add) >> 8).to(pixels.dtype)


def _sent(arrays: Sequence[np.ndarray], device: "torch.device") -> list["Tensor"]:
    """The arrays on the device, uint16 as int32: torch hardly knows the former."""
    import torch

    sizes = [-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays]
    places = [
        slice(end - size, end - size + array.nbytes)
        for end, size, array in zip(accumulate(sizes), sizes, arrays, strict=True)
    ]
    packed = np.empty(max(sum(sizes), 1), np.uint8)  # torch gives no view of an empty one
    for place, array in zip(places, arrays, strict=True):
        packed[place].view(array.dtype).reshape(array.shape)[...] = array
    on_device = to_device(packed, device)
    types = {"uint8": torch.uint8, "uint16": torch.int16, "int64": torch.int64}
    sent = []
    for place, array in zip(places, arrays, strict=True):
        tensor = on_device[place].view(types[array.dtype.name]).reshape(array.shape)
        sent.append(tensor.int() & 0xFFFF if array.dtype == np.uint16 else tensor)
    return sent
