"""NVIDIA's decoder, NVDEC, as FFmpeg gives it: how it is opened, and what its pictures are.

It does not tell of damage inside a picture, so `Problems.corrupt_frames` can be lower with it.
"""

from pathlib import Path

import av
import av.error
from av.codec.hwaccel import HWAccel
from av.container import InputContainer
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from ccdstream import nv12
from ccdstream.container import OneFile, open_container
from ccdstream.errors import EngineError, reason_of

_TO_THE_BIT = frozenset(("h264", "hevc", "vp9"))
"""Codecs that define every bit of a picture, so that NVDEC gives what FFmpeg's decoder gives."""

LAYOUTS: dict[str, tuple[str, ...]] = {
    "nv12": ("yuv420p", "yuvj420p"),
    "p010le": ("yuv420p10le",),
    "p016le": ("yuv420p12le",),
}
"""Formats that NVDEC leaves on the GPU: what FFmpeg's own decoders call the same pictures."""

_FITTING = frozenset(name for names in LAYOUTS.values() for name in names)


class Nvdec:
    """NVDEC as FFmpeg gives it: how it is opened, and what its pictures are."""

    def __init__(self, gpu: int) -> None:
        self._gpu = gpu
        self._reformatter = VideoReformatter()

    @staticmethod
    def fits(codec: str, pix_fmt: str) -> bool:
        """Whether it gives the pictures that FFmpeg's decoder gives, in a format known here."""
        return codec in _TO_THE_BIT and pix_fmt in _FITTING

    def open(self, path: Path) -> tuple[InputContainer, OneFile]:
        """As `open_container`, with the video decoded on the GPU.

        Raises:
            EngineError, VideoOpenError: that cannot be.
        """
        hwaccel = HWAccel(
            "cuda",
            device=str(self._gpu),
            allow_software_fallback=True,  # where the chip lacks a profile, FFmpeg's own goes on
            options=nv12.CONTEXT_OPTIONS,
            is_hw_owned=True,
        )
        with nv12.context_of(self._gpu):
            return open_container(path, hwaccel)

    def decode(
        self, decoder: VideoCodecContext, packet: "Packet[VideoStream] | None"
    ) -> list[VideoFrame]:
        """As `decoder` does it.

        Raises:
            EngineError: it failed, and not for what is in the packet.
        """
        try:
            return decoder.decode(packet)
        except av.FFmpegError as error:
            if isinstance(error, av.error.EOFError | ValueError):  # drained; the packet is damaged
                raise
            raise EngineError(f"NVDEC failed ({reason_of(error)})") from error

    @staticmethod
    def layout(picture: VideoFrame) -> str | None:
        """The format of a picture in the GPU's memory; None for one in the host's."""
        if picture.format.name != "cuda":
            return None
        return picture.sw_format.name if picture.sw_format is not None else "unknown"

    def on_host(self, picture: VideoFrame, layout: str) -> VideoFrame:
        """`picture` as FFmpeg's own decoder would have given it: the same samples, planar.

        Raises:
            EngineError: the GPU failed.
        """
        name = LAYOUTS.get(layout, (layout,))[0]
        try:
            planar = self._reformatter.reformat(picture, format=name, threads=1)
        except av.FFmpegError as error:
            raise EngineError(f"NVDEC did not give back a picture ({reason_of(error)})") from error
        planar.colorspace = picture.colorspace  # which reformat may rewrite
        return planar
