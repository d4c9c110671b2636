"""What a process is told once, so that the stages of a run do not hinder each other."""

import ctypes
import sys

import cv2

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt, from its malloc.h."""
_LARGEST_MMAP_THRESHOLD_BYTES = 32 << 20
"""glibc takes no more on systems of 64 bits, and leaves the setting as it was."""
_KEPT_BYTES = 256 << 20
"""Freed memory that each of its arenas may keep."""


def settle() -> None:
    """Settle OpenCV and the C library for the life of the process; may be called again.

    OpenCV computes in the thread that calls it: threads of its own would take the cores from the
    other stages, and make the one that calls it wait.

    glibc keeps what one frame frees for the next. It would give arrays of that size back to the
    system, which clears every page of them anew when it is touched: hundreds of page faults a
    frame. Other C libraries are left alone.
    """
    cv2.setNumThreads(1)
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        if hasattr(library, "gnu_get_libc_version"):
            library.mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD_BYTES)
            library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
