"""Frames on torch's devices: on the CPU always, and on a GPU in tests marked `cuda`."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from ccdstream.frames import DeviceFrame, Frame

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def on_device(frame: Frame, device: torch.device) -> DeviceFrame:
    """The frame as NV12, in rows that are longer than it is wide, as decoders leave it."""
    height, width = frame.size
    half_height, half_width = frame.u.shape
    y = np.full((height, width + 7), 99, np.uint8)
    uv = np.full((half_height, half_width + 5, 2), 99, np.uint8)
    y[:, :width] = frame.y
    uv[:, :half_width] = np.stack([frame.u, frame.v], axis=2)
    return DeviceFrame(
        torch.from_numpy(y).to(device)[:, :width],
        torch.from_numpy(uv).to(device)[:, :half_width],
        frame.pts,
        frame.time_base,
        frame.colour,
    )


@contextmanager
def no_hidden_wait() -> Iterator[None]:
    """Torch raises where an operator would make the host wait for the GPU; for events it may."""

    def set_mode(mode: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says that this is a prototype
            torch.cuda.set_sync_debug_mode(mode)

    set_mode("error")
    try:
        yield
    finally:
        set_mode("default")
