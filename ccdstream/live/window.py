"""What a session shows, in a plain window on this machine's screen."""

import os
import sys
import threading
from dataclasses import replace
from typing import Self

import cv2
import numpy as np

from ccdstream import NOTICE
from ccdstream.errors import OutputError
from ccdstream.frames import Frame
from ccdstream.live.board import Board
from ccdstream.live.failures import bug
from ccdstream.live.metrics import status_now
from ccdstream.live.records import Shown
from ccdstream.view import rgb_of_frame

TITLE = "ccdstream live - research use only, not a medical device"
_EMPTY = (576, 720)
"""(height, width) of the window while there is no picture yet."""
_BAR_PX = 28
_COLOURS = {"READY": (140, 178, 120), "LAG": (255, 120, 196), "NO SIGNAL": (84, 84, 255)}
"""Blue, green, red; others are grey."""
_POLL_S = 0.1


class Window:
    """Shows what is on a board until the block is left; q, Escape or closing it says `closed`.

    The window lives in a thread of its own, so a session that is held up does not freeze it; and
    where it fails, the session goes on without it.

    Attributes:
        failed: why it is not there any more; None while all is well.
        traceback: of that; empty while all is well.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self._closed = threading.Event()
        self._ended = threading.Event()
        self._opened = threading.Event()
        self._error: BaseException | None = None
        self.failed: str | None = None
        self.traceback = ""
        self._size = _EMPTY
        self._thread = threading.Thread(target=self._run, name="window", daemon=True)

    @property
    def closed(self) -> bool:
        """Whether whoever watches has closed it."""
        return self._closed.is_set()

    def __enter__(self) -> Self:
        """Open it.

        Raises:
            OutputError: there is no screen, or OpenCV cannot draw on it.
        """
        if problem := no_screen():
            raise OutputError(problem)
        self._thread.start()
        self._opened.wait()
        if self._error is not None:
            self._thread.join()
            raise OutputError(
                f"OpenCV cannot open a window here: {_reason(self._error)}. Use --view instead."
            ) from self._error
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            cv2.namedWindow(TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO)
            cv2.resizeWindow(TITLE, _EMPTY[1], _EMPTY[0] + _BAR_PX)
            cv2.imshow(TITLE, picture_of(None, self._board, self._size))
            cv2.waitKey(1)
            self._opened.set()
            try:
                self._follow()
            finally:
                cv2.destroyWindow(TITLE)
                cv2.waitKey(1)
        except BaseException as error:  # not swallowed: raised on entering, or `failed` says it
            self._error = error
            why, self.traceback = bug(error, "The window is gone; end the session with Ctrl-C.")
            self.failed = why  # last: whoever sees it finds the other
        finally:
            self._opened.set()

    def _follow(self) -> None:
        number, pictured = 0, False
        while not self._ended.is_set() and not self._closed.is_set():
            if self._board.closed:  # then nothing on it waits
                self._ended.wait(_POLL_S)
            shown = self._board.wait(number, _POLL_S)
            if shown is None and pictured:
                shown = self._withdrawn()
            if shown is not None:
                pictured = shown.frame is not None
                number = shown.number
                if shown.frame is not None:
                    self._size = shown.frame.size
                cv2.imshow(TITLE, picture_of(shown, self._board, self._size))
            key = cv2.waitKey(1) & 0xFF
            visible = cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) >= 1
            if key in (ord("q"), 27) or not visible:
                self._closed.set()
        self._closed.set()

    def _withdrawn(self) -> Shown | None:
        """What takes the place of a picture that may not stand any longer, whatever was said of it:
        the session is stuck, or over. None where it may."""
        status, shown = status_now(self._board), self._board.shown
        if status.kind != "NO SIGNAL" or shown is None:
            return None
        return replace(shown, frame=None, status=status)


def no_screen() -> str:
    """Why there can be no window; empty where there can."""
    if sys.platform == "darwin":
        return "--window is not there on macOS, where a window needs the main thread. Use --view."
    if sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        return "there is no screen for --window: DISPLAY is not set. Use --view instead."
    if not _has_windows():
        return (
            "this OpenCV was built without windows. Install opencv-python instead of "
            "opencv-python-headless, or use --view."
        )
    return ""


def _has_windows() -> bool:
    lines = cv2.getBuildInformation().splitlines()
    gui = next((line for line in lines if line.strip().startswith("GUI:")), "")
    return "NONE" not in gui


def picture_of(shown: Shown | None, board: Board, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H + 28, W, 3], BGR: the picture, or black where there is none, above the status."""
    status = board.status if shown is None else shown.status
    frame: Frame | None = None if shown is None else shown.frame
    height, width = size if frame is None else frame.size
    image = np.zeros((height + _BAR_PX, width, 3), np.uint8)
    if frame is not None:
        image[:height] = rgb_of_frame(frame)[..., ::-1]
    text = f"{status.kind} {status.detail}".strip()
    colour = _COLOURS.get(status.kind, (180, 180, 180))
    where = (8, height + _BAR_PX - 9)
    cv2.putText(image, text, where, cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1, cv2.LINE_AA)
    if frame is None:
        middle = (8, height // 2)
        cv2.putText(image, text, middle, cv2.FONT_HERSHEY_SIMPLEX, 0.8, colour, 2, cv2.LINE_AA)
        notice = (8, height // 2 + 32)
        cv2.putText(image, NOTICE, notice, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (180, 180, 180), 1)
    return image


def _reason(error: BaseException) -> str:
    """The last line of an OpenCV error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__
