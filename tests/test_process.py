"""What is settled once for the life of a process."""

import platform
import subprocess
import sys

import pytest

TOUCHED = """
import resource
import sys
import cv2
import numpy as np
from ccdstream.process import settle
if sys.argv[1] == "settled":
    settle()
pages = 1 << 10
def frame():
    np.empty(pages * 4096, np.uint8)[::4096] = 1
for _ in range(10):
    frame(), [np.ones(1 << 18, np.uint8) for _ in range(40)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    frame(), [np.ones(1 << 18, np.uint8) for _ in range(40)]
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults, cv2.getNumThreads())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_memory_that_a_frame_frees_is_kept_for_the_next_and_opencv_has_no_threads() -> None:
    def faults_and_threads(how: str) -> list[int]:
        command = [sys.executable, "-c", TOUCHED, how]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return [int(word) for word in out.split()]

    (left, _), (settled, threads) = faults_and_threads("left"), faults_and_threads("settled")
    assert settled < 200 < left
    assert threads == 1
