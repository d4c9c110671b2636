"""Which NVIDIA GPUs this machine has, asked of the driver itself: no GPU library is needed."""

import ctypes
import sys
from dataclasses import dataclass

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_MANAGEMENT = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"

# CUdevice_attribute, from the driver's public header cuda.h
_CC_MAJOR = 75
_CC_MINOR = 76


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, as the driver describes it."""

    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Gpus:
    """What the driver says."""

    found: tuple[Gpu, ...]
    cuda_version: str | None
    """Newest CUDA that the driver runs, such as "13.0"; None without a driver."""
    problem: str
    """Why none was found; empty where one was."""


def find_gpus() -> Gpus:
    """Ask the NVIDIA driver for its GPUs. CUDA_VISIBLE_DEVICES hides them here as everywhere."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return Gpus((), None, f"no NVIDIA driver ({_DRIVER} is not here)")
    if status := driver.cuInit(0):
        return Gpus((), None, f"the NVIDIA driver does not start (cuInit gives {status})")
    version = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    cuda_version = f"{version.value // 1000}.{version.value % 1000 // 10}"
    count = ctypes.c_int()
    if status := driver.cuDeviceGetCount(ctypes.byref(count)):
        return Gpus((), cuda_version, f"the NVIDIA driver does not count its GPUs ({status})")
    if count.value == 0:
        return Gpus((), cuda_version, "the NVIDIA driver sees no GPU")
    return Gpus(
        tuple(_describe(driver, ordinal) for ordinal in range(count.value)), cuda_version, ""
    )


def driver_version() -> str:
    """Release of the NVIDIA driver, such as "580.95.05"; "unknown" where it does not say."""
    try:
        management = ctypes.CDLL(_MANAGEMENT)
    except OSError:  # a part of the driver that some containers leave out
        return "unknown"
    version = ctypes.create_string_buffer(96)
    if management.nvmlInit_v2():
        return "unknown"
    try:
        failed = management.nvmlSystemGetDriverVersion(version, len(version))
    finally:
        management.nvmlShutdown()
    return "unknown" if failed else version.value.decode(errors="replace")


def _describe(driver: ctypes.CDLL, ordinal: int) -> Gpu:
    device = ctypes.c_int()
    driver.cuDeviceGet(ctypes.byref(device), ordinal)
    name = ctypes.create_string_buffer(128)
    driver.cuDeviceGetName(name, len(name), device)
    memory = ctypes.c_size_t()
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    major, minor = ctypes.c_int(), ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(major), _CC_MAJOR, device)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), _CC_MINOR, device)
    return Gpu(name.value.decode(errors="replace"), (major.value, minor.value), memory.value)
