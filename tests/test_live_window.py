"""The window of a live session: what it draws, and on a screen of its own where Xvfb is there."""

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from queue import Queue

import cv2
import numpy as np
import pytest

from ccdstream.errors import OutputError
from ccdstream.live.board import Board
from ccdstream.live.records import Shown, Status
from ccdstream.live.window import Window, no_screen, picture_of
from tests.bundles import write_toy_bundle
from tests.commands import start
from tests.live import SIZE, grey

SCREEN = (768, 1024)


def shown(luma: int | None, status: Status) -> Shown:
    frame = None if luma is None else grey(luma)
    return Shown(frame, 1, 0.0, 0.0, status, "NORMAL", 0.5, 0.02)


def test_the_picture_is_as_shown_with_the_status_below() -> None:
    image = picture_of(shown(126, Status("READY")), Board(), SIZE)
    height, width = SIZE
    assert image.shape == (height + 28, width, 3)
    assert (abs(image[:height].astype(int) - 128) <= 2).all(), "grey of limited range"
    assert image[height:].any(), "the status is written below"


def test_without_a_signal_no_picture_is_drawn_and_the_reason_is() -> None:
    image = picture_of(shown(None, Status("NO SIGNAL", "unplugged")), Board(), (200, 300))
    before = picture_of(None, Board(), (200, 300))
    assert image.shape == before.shape == (228, 300, 3)
    assert image[60:140].any() and not (image == before).all()


@pytest.mark.parametrize(
    ("platform", "display", "says"),
    [("linux", None, "no screen"), ("darwin", ":0", "macOS"), ("linux", ":0", "without windows")],
)
def test_where_there_can_be_no_window_it_says_why_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, platform: str, display: str | None, says: str
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    if display:
        monkeypatch.setenv("DISPLAY", display)
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GUI:   NONE\n")
    assert says in no_screen() and "--view" in no_screen()
    with pytest.raises(OutputError, match=says):
        Window(Board()).__enter__()


@pytest.mark.parametrize("why", ["the session is stuck", "the session is over"])
def test_a_picture_that_nobody_takes_away_is_withdrawn(
    monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    drawn: Queue[np.ndarray] = Queue()
    for name in ("namedWindow", "resizeWindow", "destroyWindow"):
        monkeypatch.setattr(cv2, name, lambda *_: None)
    monkeypatch.setattr(cv2, "imshow", lambda _, image: drawn.put(image[: SIZE[0], : SIZE[1]]))
    monkeypatch.setattr(cv2, "waitKey", lambda _: -1)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: 1.0)
    monkeypatch.setattr("ccdstream.live.window.no_screen", str)
    board = Board()
    now = replace(shown(126, Status("READY")), captured_at_s=time.monotonic())
    with Window(board):
        drawn.get(timeout=30)  # the empty window
        board.tell({"max_latency_s": 600.0})
        board.show(now)
        assert drawn.get(timeout=30).min() > 100
        if why == "the session is over":
            board.close()
        else:
            board.tell({"max_latency_s": 0.0})  # so it is too old, in a moment
        assert drawn.get(timeout=30)[-1].max() == 0, "no picture"


def test_a_window_that_fails_is_told_and_nothing_is_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> None:
        if _[1].status.kind == "READY":  # type: ignore[attr-defined]
            raise RuntimeError("the screen is gone")

    board = Board()
    for name in ("namedWindow", "resizeWindow", "imshow", "destroyWindow"):
        monkeypatch.setattr(cv2, name, lambda *_: None)
    monkeypatch.setattr(cv2, "waitKey", lambda _: -1)
    monkeypatch.setattr(cv2, "getWindowProperty", lambda *_: 1.0)
    monkeypatch.setattr("ccdstream.live.window.no_screen", str)
    monkeypatch.setattr("ccdstream.live.window.picture_of", broken)
    with Window(board) as window:
        assert window.failed is None
        board.show(shown(126, Status("READY")))
        window._thread.join(30)
        assert window.failed is not None and "the screen is gone" in window.failed
        assert not window.closed, "the session goes on"
    assert "in broken" in window.traceback


@pytest.fixture
def screen(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """(DISPLAY, file with its pixels) of an empty screen."""
    if shutil.which("Xvfb") is None:
        pytest.skip("no Xvfb here")
    if no_window := _headless():
        pytest.skip(no_window)
    height, width = SCREEN
    process = subprocess.Popen(
        ["Xvfb", "-displayfd", "1", "-screen", "0", f"{width}x{height}x24", "-fbdir", tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield f":{process.stdout.readline().strip()}", tmp_path / "Xvfb_screen0"
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


def _headless() -> str:
    gui = [line for line in cv2.getBuildInformation().splitlines() if "GUI:" in line]
    return "this OpenCV has no windows" if "NONE" in gui[0] else ""


def pixels(file: Path) -> np.ndarray:
    """uint8 [H, W, 3] of a screen, from the dump that Xvfb keeps of it."""
    height, width = SCREEN
    data = file.read_bytes()
    return np.frombuffer(data[-4 * height * width :], np.uint8).reshape(height, width, 4)[..., :3]


def test_a_session_is_seen_on_the_screen_and_ends_with_the_window_gone(
    screen: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    display, file = screen
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.setenv("QT_LOGGING_RULES", "*=false")
    write_toy_bundle(tmp_path / "toy")
    process = start(
        *("live", "--device", "lavfi:color=c=0x00C000:size=320x240:rate=10", "--window"),
        *("-o", tmp_path / "out", "--model", tmp_path / "toy", "--max-latency", "60s"),
        text=True,
    )

    def green() -> bool:
        blue, luma, red = np.moveaxis(pixels(file).astype(int), -1, 0)
        return bool(((luma > 150) & (blue < 60) & (red < 60)).mean() > 0.05)

    with process:
        for _ in range(1200):
            if green():
                break
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert not green(), "the window is gone"
