"""Cameras: what the kernel says of them, byte for byte, and pictures that OpenCV has to get."""

import errno
import os
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from ccdstream.errors import VideoOpenError
from ccdstream.live import camera as camera_module
from ccdstream.live.camera import Camera, CameraMode, CameraSource, Kernel, list_cameras
from ccdstream.live.records import SourceLost, Wanted
from tests.videos import make_video

# Numbers and offsets below are those that a C compiler gives for <linux/videodev2.h> on x86-64.
QUERYCAP, ENUM_FMT = 0x80685600, 0xC0405602
ENUM_FRAMESIZES, ENUM_FRAMEINTERVALS = 0xC02C564A, 0xC034564B
VIDEO_CAPTURE, CAPTURE_MPLANE, META_CAPTURE = 0x1, 0x1000, 0x800000
STREAMING, DEVICE_CAPS = 0x04000000, 0x80000000
LINUX = "linux"


class FakeNode:
    """A video node: what it is, and its formats as {code: [(size or range, [interval ...])]}."""

    def __init__(
        self,
        name: str,
        node_caps: int,
        formats: dict[str, list[tuple[tuple[int, ...], list[tuple[int, ...]]]]] | None = None,
        *,
        buffers: int = 1,
        all_caps: int | None = None,
    ) -> None:
        self.name = name
        self.node_caps = node_caps
        self.all_caps = all_caps
        self.formats = formats or {}
        self.buffers = buffers

    def answer(self, request: int, data: bytearray) -> None:
        if request == QUERYCAP:
            assert len(data) == 104
            caps = DEVICE_CAPS | VIDEO_CAPTURE | META_CAPTURE
            struct.pack_into("16s32s32s", data, 0, b"uvcvideo", self.name.encode(), b"usb-1")
            struct.pack_into("=I", data, 84, caps if self.all_caps is None else self.all_caps)
            struct.pack_into("=I", data, 88, self.node_caps)
            return
        (index,) = struct.unpack_from("=I", data, 0)
        if request == ENUM_FMT:
            assert len(data) == 64
            if struct.unpack_from("=I", data, 4)[0] != self.buffers:
                raise OSError(errno.EINVAL, "Invalid argument")
            code = self._nth(list(self.formats), index)
            struct.pack_into("32s4s", data, 12, b"what people call it", code.encode())
            return
        code = bytes(data[4:8]).decode()
        if request == ENUM_FRAMESIZES:
            assert len(data) == 44
            size, _ = self._nth(self.formats[code], index)
            kind = {2: 1, 6: 3}[len(size)]
            struct.pack_into(f"=I{len(size)}I", data, 8, kind, *size)
            return
        assert request == ENUM_FRAMEINTERVALS and len(data) == 52
        asked = struct.unpack_from("=II", data, 8)
        intervals = next(
            found
            for size, found in self.formats[code]
            if asked in (size, (size[1], size[4]) if len(size) == 6 else None)
        )
        interval = self._nth(intervals, index)
        kind = {2: 1, 6: 3}[len(interval)]
        struct.pack_into(f"=I{len(interval)}I", data, 16, kind, *interval)

    @staticmethod
    def _nth(items: list[Any], index: int) -> Any:
        if index >= len(items):
            raise OSError(errno.EINVAL, "Invalid argument")
        return items[index]


class FakeKernel(Kernel):
    """Nodes in place of the system's: a node, or the error that opening it gives."""

    def __init__(self, nodes: dict[str, "FakeNode | int"]) -> None:
        self._nodes = nodes
        self.open_now: dict[int, FakeNode] = {}

    def devices(self) -> list[str]:
        return list(self._nodes)

    def open(self, path: str) -> int:
        node = self._nodes[path]
        if isinstance(node, int):
            raise OSError(node, os.strerror(node))
        self.open_now[100] = node
        return 100

    def ioctl(self, fd: int, request: int, data: bytearray) -> None:
        self.open_now[fd].answer(request, data)

    def close(self, fd: int) -> None:
        del self.open_now[fd]


UVC = FakeNode(
    "HD Capture: USB Video",
    VIDEO_CAPTURE | STREAMING,
    {
        "YUYV": [((640, 480), [(1, 30), (1, 15)]), ((720, 576), [(1, 25)])],
        "MJPG": [((1920, 1080), [(1001, 30000), (1, 60)])],
    },
)


def test_a_camera_is_listed_with_its_modes_as_the_kernel_tells_them() -> None:
    kernel = FakeKernel({"/dev/video0": UVC})
    assert list_cameras(platform=LINUX, kernel=kernel) == [
        Camera(
            "/dev/video0",
            "HD Capture: USB Video",
            (
                CameraMode("yuyv422", (480, 640), (480, 640), (Fraction(30), Fraction(15))),
                CameraMode("yuyv422", (576, 720), (576, 720), (Fraction(25),)),
                CameraMode(
                    "mjpeg", (1080, 1920), (1080, 1920), (Fraction(60), Fraction(30000, 1001))
                ),
            ),
        )
    ]
    assert not kernel.open_now


def test_ranges_of_sizes_and_rates_are_told_as_such() -> None:
    node = FakeNode(
        "HDMI card",
        CAPTURE_MPLANE | STREAMING,
        {"NV12": [((320, 4096, 2, 200, 2160, 4), [(1, 60, 1, 1, 1, 60)])]},
        buffers=9,
    )
    (found,) = list_cameras(platform=LINUX, kernel=FakeKernel({"/dev/video2": node}))
    assert found.modes == (
        CameraMode("nv12", (200, 320), (2160, 4096), (Fraction(60), Fraction(1)), any_rate=True),
    )


def test_nodes_without_pictures_are_left_out() -> None:
    nodes: dict[str, FakeNode | int] = {
        "/dev/video0": UVC,
        "/dev/video1": FakeNode("HD Capture: USB Video", META_CAPTURE | STREAMING),
        "/dev/video2": errno.ENODEV,
    }
    found = list_cameras(platform=LINUX, kernel=FakeKernel(nodes))
    assert [camera.id for camera in found] == ["/dev/video0"]


def test_an_old_driver_that_tells_no_node_and_no_sizes_is_listed_all_the_same() -> None:
    node = FakeNode("old card", 0, {"UYVY": []}, all_caps=VIDEO_CAPTURE)
    (found,) = list_cameras(platform=LINUX, kernel=FakeKernel({"/dev/video0": node}))
    assert found.modes == (CameraMode("uyvy422", None, None, ()),)


def test_a_camera_that_may_not_be_read_is_listed_with_what_to_do() -> None:
    (found,) = list_cameras(platform=LINUX, kernel=FakeKernel({"/dev/video0": errno.EACCES}))
    assert found.id == "/dev/video0" and found.modes == ()
    assert "Permission denied" in found.problem and "group `video`" in found.problem


def test_a_driver_that_fails_in_the_middle_is_told() -> None:
    class Broken(FakeKernel):
        def ioctl(self, fd: int, request: int, data: bytearray) -> None:
            if request != QUERYCAP:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            super().ioctl(fd, request, data)

    kernel = Broken({"/dev/video0": UVC})
    (found,) = list_cameras(platform=LINUX, kernel=kernel)
    assert found.name == "HD Capture: USB Video" and "Input/output error" in found.problem
    assert not kernel.open_now


def test_the_requests_are_those_of_linux() -> None:
    assert camera_module.VIDIOC_QUERYCAP == QUERYCAP
    assert camera_module.VIDIOC_ENUM_FMT == ENUM_FMT
    assert camera_module.VIDIOC_ENUM_FRAMESIZES == ENUM_FRAMESIZES
    assert camera_module.VIDIOC_ENUM_FRAMEINTERVALS == ENUM_FRAMEINTERVALS


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="no /dev")
def test_the_real_kernel_is_asked_and_says_what_is_no_camera() -> None:
    class JustNull(Kernel):
        def devices(self) -> list[str]:
            return ["/dev/null"]

    assert list_cameras(platform=LINUX, kernel=JustNull()) == []


# --- OpenCV --------------------------------------------------------------------------------------


class FakeCapture:
    """A camera of OpenCV's that has one mode, whatever it is asked for."""

    def __init__(self, images: list[np.ndarray | None], rate: float = 25.0, code: str = "MJPG"):
        self.images = images
        self.asked: dict[int, float] = {}
        self.released = False
        height, width = images[0].shape[:2] if images and images[0] is not None else (0, 0)
        self._has = {
            cv2.CAP_PROP_FRAME_HEIGHT: height,
            cv2.CAP_PROP_FRAME_WIDTH: width,
            cv2.CAP_PROP_FPS: rate,
            cv2.CAP_PROP_FOURCC: int.from_bytes(code.encode(), "little"),
        }

    def isOpened(self) -> bool:
        return bool(self.images)

    def set(self, key: int, value: float) -> bool:
        self.asked[key] = value
        return False

    def get(self, key: int) -> float:
        return float(self._has[key])

    def getBackendName(self) -> str:
        return "V4L2"

    def read(self) -> tuple[bool, np.ndarray | None]:
        image = self.images.pop(0) if self.images else None
        return image is not None, image

    def release(self) -> None:
        self.released = True


def colours(size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """uint8 [H, W, 3], BGR: the left half red, the right half white."""
    image = np.full((*size, 3), 255, np.uint8)
    image[:, : size[1] // 2] = (0, 0, 255)
    return image


def opener(capture: FakeCapture) -> Callable[[Any, int], FakeCapture]:
    return lambda device, backend: capture


def test_a_camera_that_ffmpeg_refuses_is_read_by_opencv() -> None:
    """/dev/null opens, and is no V4L2 device to FFmpeg."""
    capture = FakeCapture([colours(), colours(), None])
    source = CameraSource("/dev/null", Wanted(), platform=LINUX, open_capture=opener(capture))
    with source.connect() as connection:
        assert connection.mode.through == "OpenCV V4L2"
        assert (connection.mode.size, connection.mode.rate) == ((48, 64), 25)
        assert connection.mode.pixel_format == "mjpeg"
        first, second = connection.read(), connection.read()
        assert first is not None and second is not None and second.pts > first.pts
        red = (first.y[5, 5], first.u[5, 5], first.v[5, 5])
        assert np.abs(np.array(red, int) - (81, 90, 240)).max() <= 1  # BT.601, limited range
        assert abs(int(first.y[5, 60]) - 235) <= 1
        assert first.colour.matrix == "bt601" and not first.colour.full_range
        with pytest.raises(SourceLost, match="no picture"):
            connection.read()
    assert capture.released and not source.ends


def test_an_odd_size_keeps_its_last_row_and_column() -> None:
    capture = FakeCapture([colours((49, 65))])
    source = CameraSource("/dev/null", Wanted(), platform=LINUX, open_capture=opener(capture))
    with source.connect() as connection:
        frame = connection.read()
    assert frame is not None and frame.size == (49, 65) and frame.u.shape == (25, 33)
    assert abs(int(frame.y[48, 64]) - 235) <= 1


def test_opencv_is_asked_for_what_is_wanted_and_getting_something_else_is_an_error() -> None:
    capture = FakeCapture([colours()], rate=30.0)
    wanted = Wanted(size=(1080, 1920), rate=Fraction(60), pixel_format="MJPG")
    source = CameraSource("/dev/null", wanted, platform=LINUX, open_capture=opener(capture))
    with pytest.raises(VideoOpenError) as caught, source.connect():
        pass
    assert "asked for 1920x1080, 60 frames/s, and delivers 64x48, 30 frames/s, mjpeg" in str(
        caught.value
    )
    assert "`ccdstream devices`" in str(caught.value)
    assert capture.asked[cv2.CAP_PROP_FRAME_WIDTH] == 1920
    assert capture.asked[cv2.CAP_PROP_FPS] == 60
    assert capture.asked[cv2.CAP_PROP_FOURCC] == cv2.VideoWriter.fourcc(*"MJPG")
    assert capture.released


def test_opencv_itself_gives_the_pictures_of_a_recording(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", frames=3)
    source = CameraSource(
        "/dev/null",
        Wanted(),
        platform=LINUX,
        open_capture=lambda device, backend: cv2.VideoCapture(str(path)),
    )
    with source.connect() as connection:
        assert connection.mode.rate == 25 and connection.mode.pixel_format == "h264"
        levels = []
        for _ in range(3):
            frame = connection.read()
            assert frame is not None
            levels.append(int(frame.y.mean()))
    assert [
        abs(level - expected) <= 2 for level, expected in zip(levels, (32, 38, 44), strict=True)
    ]


def test_a_camera_that_nothing_opens_is_an_error_that_names_both(
    capfd: pytest.CaptureFixture[str],
) -> None:
    source = CameraSource("/dev/null", Wanted(), platform=LINUX)  # with the real OpenCV
    with pytest.raises(VideoOpenError, match=r"by FFmpeg \(.+\) nor by OpenCV"), source.connect():
        pass
    assert "".join(capfd.readouterr()) == "", "no library writes to the screen"


def test_a_camera_that_is_not_there_is_an_error_at_once() -> None:
    source = CameraSource("97", Wanted(), platform=LINUX)
    assert source.name == "/dev/video97"
    with (
        pytest.raises(VideoOpenError, match=r"no camera /dev/video97\. `ccdstream devices`"),
        source.connect(),
    ):
        pass


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (errno.ENOENT, "there is no camera /dev/video0. `ccdstream devices` lists"),
        (errno.EACCES, "/dev/video0 cannot be opened: Permission denied. Add this user"),
        (errno.EBUSY, None),
        (UVC, None),
    ],
    ids=["absent", "refused", "busy", "there"],
)
def test_whether_a_camera_is_there_is_known_without_opening_its_pictures(
    node: Any, message: str | None
) -> None:
    source = CameraSource("0", Wanted(), platform=LINUX, kernel=FakeKernel({"/dev/video0": node}))
    if message is None:
        source.check()  # one that is busy now is waited for
        return
    with pytest.raises(VideoOpenError) as found:
        source.check()
    assert str(found.value).startswith(message)


def test_where_nothing_lists_cameras_numbers_are_tried_until_one_is_missing() -> None:
    captures = [FakeCapture([colours()]), FakeCapture([])]
    found = list_cameras(platform="aix", open_capture=lambda number, backend: captures[number])
    assert found == [
        Camera("0", "camera 0", (CameraMode("mjpeg", (48, 64), (48, 64), (Fraction(25),)),))
    ]
    assert all(capture.released for capture in captures)
