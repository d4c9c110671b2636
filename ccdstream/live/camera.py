"""Cameras and capture cards of this machine: which there are, what they offer, and their pictures.

FFmpeg opens a camera where it can, OpenCV where it cannot; `Mode.through` says which it was. On
Linux, cameras are listed by asking the kernel (V4L2), with no other program. The ways of Windows
(DirectShow) and macOS (AVFoundation) were written without one to try them on.
"""

import errno
import os
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ccdstream.errors import VideoOpenError
from ccdstream.frames import Colour, Frame
from ccdstream.live.negotiate import DEVICES_ADVICE, format_name, fourcc_of, require
from ccdstream.live.records import Connection, Mode, SourceLost, Wanted
from ccdstream.live.url import DeviceRefused, device_source, knows_format, list_devices

Size = tuple[int, int]

_MOST_ENTRIES = 512
"""Of an enumeration: a driver that never says "no more" is left there."""

_MOST_GUESSED = 10
"""Numbers that are tried where nothing lists the cameras."""

_MICROSECONDS = Fraction(1, 1_000_000)


@dataclass(frozen=True, slots=True)
class CameraMode:
    """Something that a camera offers: a size, or a range of sizes, in one format."""

    pixel_format: str
    """In FFmpeg's words, to ask for with `--pixel-format`."""
    smallest: Size | None
    """(height, width), in pixels; None where the driver does not say."""
    largest: Size | None
    """Equal to `smallest` where there is just one size."""
    rates: tuple[Fraction, ...]
    """Frames a second at the largest size, the fastest first; empty where it does not say."""
    any_rate: bool = False
    """Whether all rates between those two are offered too."""


@dataclass(frozen=True, slots=True)
class Camera:
    """A camera or a capture card."""

    id: str
    """To pass to `--device`."""
    name: str
    modes: tuple[CameraMode, ...]
    """In the driver's order; empty where nothing tells them."""
    problem: str = ""
    """Why it cannot be asked."""
    refused: bool = False
    """Whether this user may not open it."""


# --- Linux: the kernel's own answers -------------------------------------------------------------

_CAPABILITY = struct.Struct("=16s32s32sIII12x")
_FMTDESC = struct.Struct("=III32s4sI12x")
_FRMSIZE = struct.Struct("=I4sI6I8x")
_FRMIVAL = struct.Struct("=I4sIII6I8x")
"""v4l2_capability, v4l2_fmtdesc, v4l2_frmsizeenum, v4l2_frmivalenum of <linux/videodev2.h>. They
hold no pointer and no 64-bit number, so they are the same on every architecture but for its byte
order."""

_READ, _READ_WRITE = 2, 3


def _request(direction: int, number: int, layout: struct.Struct) -> int:
    """_IOR and _IOWR of the type 'V', as <asm-generic/ioctl.h> has them (x86, ARM, RISC-V)."""
    return direction << 30 | layout.size << 16 | ord("V") << 8 | number


VIDIOC_QUERYCAP = _request(_READ, 0, _CAPABILITY)
VIDIOC_ENUM_FMT = _request(_READ_WRITE, 2, _FMTDESC)
VIDIOC_ENUM_FRAMESIZES = _request(_READ_WRITE, 74, _FRMSIZE)
VIDIOC_ENUM_FRAMEINTERVALS = _request(_READ_WRITE, 75, _FRMIVAL)

_CAP_VIDEO_CAPTURE = 0x0000_0001
_CAP_VIDEO_CAPTURE_MPLANE = 0x0000_1000
_CAP_DEVICE_CAPS = 0x8000_0000
_BUF_TYPES = ((_CAP_VIDEO_CAPTURE, 1), (_CAP_VIDEO_CAPTURE_MPLANE, 9))
_DISCRETE = 1


class Kernel:
    """The system calls that asking cameras takes; tests put their own in its place."""

    def devices(self) -> list[str]:
        """Paths of the video nodes, in order."""
        nodes = [n for n in Path("/dev").glob("video*") if n.name[5:].isdigit()]
        return [str(node) for node in sorted(nodes, key=lambda node: int(node.name[5:]))]

    def open(self, path: str) -> int:
        """A file descriptor. It asks nothing of the camera: the picture of another user goes on."""
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def ioctl(self, fd: int, request: int, data: bytearray) -> None:
        """Fills `data`.

        Raises:
            OSError: the driver refuses.
        """
        import fcntl

        fcntl.ioctl(fd, request, data)

    def close(self, fd: int) -> None:
        os.close(fd)


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode("utf-8", "replace").strip()


class _Node:
    """An open video node."""

    def __init__(self, kernel: Kernel, fd: int) -> None:
        self._kernel = kernel
        self._fd = fd

    def _ask(self, request: int, layout: struct.Struct, *values: Any) -> tuple[Any, ...] | None:
        """The answer; None where there is none, which ends an enumeration.

        EINVAL is the end of a list; ENOTTY and ENODATA: a driver that does not have it.
        """
        data = bytearray(layout.pack(*values))
        try:
            self._kernel.ioctl(self._fd, request, data)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOTTY, errno.ENODATA):
                return None
            raise
        return layout.unpack(data)

    def capability(self) -> tuple[str, int] | None:
        """(name, capabilities of this node); None for what is no V4L2 device."""
        answer = self._ask(VIDIOC_QUERYCAP, _CAPABILITY, b"", b"", b"", 0, 0, 0)
        if answer is None:
            return None
        _, card, _, _, of_all, of_node = answer
        return _text(card), of_node if of_all & _CAP_DEVICE_CAPS else of_all

    def modes(self, capabilities: int) -> Iterator[CameraMode]:
        """All that it offers, in the driver's order."""
        for capability, buffers in _BUF_TYPES:
            if not capabilities & capability:
                continue
            for index in range(_MOST_ENTRIES):
                answer = self._ask(VIDIOC_ENUM_FMT, _FMTDESC, index, buffers, 0, b"", b"", 0)
                if answer is None:
                    break
                yield from self._sizes(answer[4])

    def _sizes(self, code: bytes) -> Iterator[CameraMode]:
        name = format_name(code.decode("latin-1"))
        for index in range(_MOST_ENTRIES):
            answer = self._ask(VIDIOC_ENUM_FRAMESIZES, _FRMSIZE, index, code, 0, *[0] * 6)
            if answer is None:
                if index == 0:
                    yield CameraMode(name, None, None, ())
                return
            kind, numbers = answer[2], answer[3:]
            if kind == _DISCRETE:
                smallest = largest = (numbers[1], numbers[0])
            else:  # stepwise or continuous: widths, then heights, each as least, most, step
                smallest, largest = (numbers[3], numbers[0]), (numbers[4], numbers[1])
            yield CameraMode(name, smallest, largest, *self._rates(code, largest))
            if kind != _DISCRETE:
                return

    def _rates(self, code: bytes, size: Size) -> tuple[tuple[Fraction, ...], bool]:
        """Rates, the fastest first, and whether all in between are offered."""
        rates = set()
        for index in range(_MOST_ENTRIES):
            answer = self._ask(
                VIDIOC_ENUM_FRAMEINTERVALS, _FRMIVAL, index, code, size[1], size[0], 0, *[0] * 6
            )
            if answer is None:
                break
            kind, numbers = answer[4], answer[5:]
            # a rate is one over an interval, so numerator and denominator change places
            pairs = [(numbers[1], numbers[0])]
            if kind != _DISCRETE:
                pairs.append((numbers[3], numbers[2]))
            rates |= {Fraction(over, under) for over, under in pairs if over and under}
            if kind != _DISCRETE:
                return tuple(sorted(rates, reverse=True)), True
        return tuple(sorted(rates, reverse=True)), False


def _camera_at(kernel: Kernel, path: str) -> Camera | None:
    """The camera behind a node; None for a node without pictures, such as one of metadata."""
    try:
        fd = kernel.open(path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            return None
        refused = error.errno == errno.EACCES
        advice = ". Add this user to the group `video`" if refused else ""
        problem = f"cannot be opened: {error.strerror}{advice}"
        return Camera(path, "", (), problem, refused=refused)
    try:
        node = _Node(kernel, fd)
        found = node.capability()
        if found is None or not found[1] & (_CAP_VIDEO_CAPTURE | _CAP_VIDEO_CAPTURE_MPLANE):
            return None
        name, capabilities = found
        try:
            return Camera(path, name, tuple(node.modes(capabilities)))
        except OSError as error:
            return Camera(path, name, (), f"does not answer: {error.strerror}")
    except OSError as error:
        return Camera(path, "", (), f"does not answer: {error.strerror}")
    finally:
        kernel.close(fd)


def list_cameras(
    *,
    platform: str = sys.platform,
    kernel: Kernel | None = None,
    open_capture: Callable[[int, int], Any] = cv2.VideoCapture,
) -> list[Camera]:
    """The cameras of this machine, in the order of their numbers.

    On Linux with all their modes, from the kernel. Elsewhere by name from FFmpeg; where FFmpeg
    cannot list them, by opening one number after the other with OpenCV, with the mode that it
    comes up in.

    Args:
        platform, kernel, open_capture: for tests: `sys.platform`, the system calls, and OpenCV.
    """
    if platform.startswith("linux"):
        kernel = kernel or Kernel()
        found = [_camera_at(kernel, path) for path in kernel.devices()]
        return [camera for camera in found if camera is not None]
    listed = list_devices(_format_on(platform))
    if listed:
        return [Camera(str(k), shown or name, ()) for k, (name, shown) in enumerate(listed)]
    guessed = []
    for number in range(_MOST_GUESSED):
        with _quiet_capture(open_capture, number, _backend_on(platform)) as capture:
            if not capture.isOpened():
                break
            mode = _mode_of(capture)
            offered = CameraMode(
                mode.pixel_format, mode.size, mode.size, (mode.rate,) if mode.rate else ()
            )
            guessed.append(Camera(str(number), f"camera {number}", (offered,)))
    return guessed


# --- its pictures --------------------------------------------------------------------------------


def _format_on(platform: str) -> str:
    if platform.startswith("linux"):
        return "v4l2"
    return {"win32": "dshow", "darwin": "avfoundation"}.get(platform, "v4l2")


def _backend_on(platform: str) -> int:
    if platform.startswith("linux"):
        return cv2.CAP_V4L2
    return {"win32": cv2.CAP_DSHOW, "darwin": cv2.CAP_AVFOUNDATION}.get(platform, cv2.CAP_ANY)


@contextmanager
def _quiet_capture(
    open_capture: Callable[[Any, int], Any], device: str | int, backend: int
) -> Iterator[Any]:
    """OpenCV's capture, whether open or not; what OpenCV writes to the screen of it is left out."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        capture = open_capture(device, backend)
    finally:
        cv2.utils.logging.setLogLevel(level)
    try:
        yield capture
    finally:
        capture.release()


def _mode_of(capture: Any) -> Mode:
    size = (
        round(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
        round(capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
    )
    rate = capture.get(cv2.CAP_PROP_FPS)
    code = int(capture.get(cv2.CAP_PROP_FOURCC))
    text = "".join(chr(code >> shift & 0xFF) for shift in (0, 8, 16, 24)) if code > 0 else ""
    known = text.isascii() and text.strip("\0 ").isprintable() and text.strip("\0 ")
    return Mode(
        size=size,
        rate=Fraction(rate).limit_denominator(1001) if 0 < rate <= 1000 else None,
        pixel_format=format_name(text.strip("\0")) if known else "unknown",
        through=f"OpenCV {capture.getBackendName()}",
    )


def _planes_of(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Y, U and V of uint8 [H, W, 3] BGR, BT.601 in limited range; the last odd row and column are
    doubled for OpenCV, which converts even sizes only."""
    height, width = image.shape[:2]
    if height % 2 or width % 2:
        image = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    flat = cv2.cvtColor(image, cv2.COLOR_BGR2YUV_I420).reshape(-1)
    rows, columns = image.shape[:2]
    luma = rows * columns
    y = flat[:luma].reshape(rows, columns)[:height, :width]
    u = flat[luma : luma + luma // 4].reshape(rows // 2, columns // 2)
    v = flat[luma + luma // 4 :].reshape(rows // 2, columns // 2)
    return np.ascontiguousarray(y), u, v


class _Captured:
    """A camera that OpenCV opened, as a `Connection`."""

    def __init__(self, capture: Any, mode: Mode, first: np.ndarray) -> None:
        self.mode = mode
        self._capture = capture
        self._first: np.ndarray | None = first
        self._began = time.monotonic()
        self._last_pts = -1

    def read(self) -> Frame | None:
        """The next frame, at the time of its arrival: OpenCV tells no other.

        Raises:
            SourceLost: the camera gave none.
        """
        image, self._first = self._first, None
        if image is None:
            good, image = self._capture.read()
            if not good or image is None:
                raise SourceLost("the camera gives no picture")
        if image.ndim == 2:
            image = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
        arrived = round((time.monotonic() - self._began) / _MICROSECONDS)
        self._last_pts = max(arrived, self._last_pts + 1)
        return Frame(
            *_planes_of(image), self._last_pts, _MICROSECONDS, Colour("bt601", full_range=False)
        )


class CameraSource:
    """A camera of this machine as a `LiveSource`.

    Args:
        device: its number, or on Linux its path.
        wanted: what it must deliver.
        platform, kernel, open_capture: for tests: as for `list_cameras`.
    """

    ends = False

    def __init__(
        self,
        device: str,
        wanted: Wanted,
        *,
        platform: str = sys.platform,
        kernel: Kernel | None = None,
        open_capture: Callable[[Any, int], Any] = cv2.VideoCapture,
    ) -> None:
        self._kernel = kernel or Kernel()
        self._platform = platform
        self._device = device
        if platform.startswith("linux") and device.isdigit():
            self._device = f"/dev/video{int(device)}"
        self._wanted = wanted
        self._open_capture = open_capture
        self.name = self._device if platform.startswith("linux") else f"camera {device}"

    def check(self) -> None:
        """Look whether it is there, without having it give pictures: that may take seconds, and
        some hand them out to one program only once.

        Raises:
            VideoOpenError: there is no such camera, or it may not be read.
        """
        if not self._platform.startswith("linux"):
            self._ffmpeg_name(_format_on(self._platform))
            return
        found = _camera_at(self._kernel, self._device)
        if found is None:
            raise VideoOpenError(f"there is no camera {self.name}. {DEVICES_ADVICE}")
        if found.refused:
            raise VideoOpenError(f"{self.name} {found.problem}.")

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """Open it, by FFmpeg or else by OpenCV.

        Raises:
            SourceLost: another program has it.
            VideoOpenError: there is no such camera, it may not be read, or it does not deliver what
                is wanted.
        """
        format = _format_on(self._platform)
        refused = f"it has no {format}"
        if knows_format(format):
            source = device_source(format, self._ffmpeg_name(format), self.name, self._wanted)
            with ExitStack() as opened:
                try:
                    connection = opened.enter_context(source.connect())
                except DeviceRefused as error:
                    refused = str(error)
                else:
                    yield connection
                    return
        with self._by_opencv(refused) as captured:
            yield captured

    def _ffmpeg_name(self, format: str) -> str:
        if format == "dshow":
            listed = list_devices(format)
            if not int(self._device) < len(listed):
                raise VideoOpenError(f"there is no {self.name}. {DEVICES_ADVICE}")
            return f"video={listed[int(self._device)][0]}"
        return self._device

    @contextmanager
    def _by_opencv(self, refused: str) -> Iterator[_Captured]:
        device = int(self._device) if self._device.isdigit() else self._device
        backend = _backend_on(self._platform)
        with _quiet_capture(self._open_capture, device, backend) as capture:
            if not capture.isOpened():
                raise VideoOpenError(
                    f"cannot open {self.name}, by FFmpeg ({refused}) nor by OpenCV. "
                    f"{DEVICES_ADVICE}"
                )
            self._ask(capture)
            good, first = capture.read()
            if not good or first is None:
                raise SourceLost("the camera gives no picture")
            mode = _mode_of(capture)
            mode = Mode(first.shape[:2], mode.rate, mode.pixel_format, mode.through)
            require(self.name, mode, self._wanted, DEVICES_ADVICE)
            yield _Captured(capture, mode, first)

    def _ask(self, capture: Any) -> None:
        """What is not granted shows in what is delivered; so nothing is checked here."""
        wanted = self._wanted
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        if wanted.pixel_format is not None:
            code = fourcc_of(wanted.pixel_format).ljust(4)[:4]
            capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*code))
        if wanted.size is not None:
            capture.set(cv2.CAP_PROP_FRAME_HEIGHT, wanted.size[0])
            capture.set(cv2.CAP_PROP_FRAME_WIDTH, wanted.size[1])
        if wanted.rate is not None:
            capture.set(cv2.CAP_PROP_FPS, float(wanted.rate))
