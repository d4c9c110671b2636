"""What this machine has, and which way `ccdstream run` would take on it.

Out: a dict that JSON holds (`report`) and the same as text (`lines`). Nothing heavy is imported but
the engines, and each of those only to see whether it starts.
"""

import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ccdstream import __version__
from ccdstream.bundle import load_bundle
from ccdstream.engine.base import BuildOptions
from ccdstream.engine.gpu import find_gpus
from ccdstream.engine.select import available, open_engine
from ccdstream.errors import CcdstreamError
from ccdstream.packaged import DEFAULT

PACKAGES = (
    ("numpy",),
    ("opencv-python", "opencv-python-headless", "opencv-contrib-python"),
    ("av",),
    ("openvino",),
    ("onnxruntime", "onnxruntime-gpu"),
    ("onnx",),
    ("pyarrow",),
    ("torch",),
    ("torchvision",),
    ("tensorrt",),
    ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
    ("torch-tensorrt", "torch-tensorrt-rtx"),
)
"""Distributions, with the other names under which the same library is installed."""

CPU_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
"""What decides how fast an engine is on a CPU, by the names of /proc/cpuinfo."""

ENVIRONMENT = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "CUDA_VISIBLE_DEVICES")
"""Variables that change speed, or hide a GPU."""

_CGROUP = Path("/sys/fs/cgroup")


def report(
    model: Path | None = None, *, say: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """What is here, and what would be used.

    Args:
        model: the bundle to choose an engine for; None for the default bundle.
        say: told when an engine is compiled for it, which can take minutes.

    Returns:
        A dict of plain values. What is not known is None, and each "problem" is a sentence that is
        empty where there is none: a report never raises for what a machine lacks.
    """
    return {
        "ccdstream": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "memory": _memory(),
        "disk": {"path": str(Path.cwd()), "free_bytes": shutil.disk_usage(Path.cwd()).free},
        "gpu": asdict(find_gpus()),
        "packages": {names[0]: _version(names) for names in PACKAGES},
        "ffmpeg": _ffmpeg(),
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "engines": [asdict(info) for info in available()],
        "model": _model(model, say),
    }


def versions() -> dict[str, str | None]:
    """Version of Python and of every library that a result can depend on; None: not installed."""
    return {
        "python": platform.python_version(),
        **{names[0]: _version(names) for names in PACKAGES},
        **_ffmpeg(),
    }


def machine() -> str:
    """This machine's processor and GPUs, for a record of what was measured here."""
    return "; ".join([_cpu_line(_cpu()), *(gpu.name for gpu in find_gpus().found)])


def lines(found: dict[str, Any]) -> list[str]:
    """A report as lines of text, for a terminal or an issue."""
    memory, disk, model = found["memory"], found["disk"], found["model"]
    libraries = [f"{name} {version}" for name, version in found["ffmpeg"].items()]
    sections = {
        "ccdstream": [f"{found['ccdstream']} on Python {found['python']}"],
        "system": [found["platform"]],
        "cpu": [_cpu_line(found["cpu"])],
        "memory": [f"{_gib(memory['available_bytes'])} of {_gib(memory['total_bytes'])} free"],
        "disk": [f"{_gib(disk['free_bytes'])} free at {disk['path']}"],
        "gpu": _gpu_lines(found["gpu"]),
        "packages": [f"{name} {version or '-'}" for name, version in found["packages"].items()],
        "ffmpeg": [", ".join(libraries) or "version not told by the av package"],
        "environment": [f"{name}={value}" for name, value in found["environment"].items()],
        "engines": [_engine_line(info) for info in found["engines"]],
        "model": [text for text in (model["id"], model["problem"]) if text],
        "takes": [model["reason"] or "no engine"],
    }
    width = max(map(len, sections))
    return [
        f"{'' if row else label:<{width}}  {text}"
        for label, texts in sections.items()
        for row, text in enumerate(texts)
    ]


def _cpu_line(cpu: dict[str, Any]) -> str:
    model = cpu["model"] or "model not known"
    features = f" ({' '.join(cpu['features'])})" if cpu["features"] else ""
    return f"{model}, {cpu['cores_usable']} of {cpu['cores']} cores{features}"


def _gpu_lines(gpu: dict[str, Any]) -> list[str]:
    driver = gpu["problem"] or f"driver for CUDA {gpu['cuda_version']}"
    cards = [
        f"{one['name']}, {_gib(one['memory_bytes'])}, compute capability "
        f"{'.'.join(map(str, one['compute_capability']))}"
        for one in gpu["found"]
    ]
    return [driver, *cards]


def _engine_line(info: dict[str, Any]) -> str:
    state = info["version"] if info["installed"] else info["note"]
    return f"{info['name']} on {info['device']}: {state}"


def _model(path: Path | None, say: Callable[[str], None]) -> dict[str, str | None]:
    """The bundle at `path`, and the engine that would run it."""
    found: dict[str, str | None] = {
        "path": str(path or DEFAULT.path),
        "id": None,
        "engine": None,
        "device": None,
        "reason": None,
        "problem": "",
    }
    try:
        bundle = load_bundle(path)
        found["id"] = bundle.model_id
        engine = open_engine(bundle, build=BuildOptions(say=say))
    except CcdstreamError as error:  # what is wrong is what a report is for
        return {**found, "problem": str(error)}
    return {
        **found,
        "engine": engine.name,
        "device": engine.device,
        "reason": engine.reason,
    }


def _version(names: tuple[str, ...]) -> str | None:
    """Version of the first of `names` that is installed, without importing it."""
    for name in names:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        return version if name == names[0] else f"{version} ({name})"
    return None


def _ffmpeg() -> dict[str, str]:
    """Versions of the FFmpeg libraries inside the av wheel, by the names of its files; empty where
    it has none, or names them otherwise."""
    try:
        files = importlib.metadata.files("av") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    pattern = re.compile(r"^lib(avcodec|avformat|swscale)\b.*?(\d+\.\d+\.\d+)")
    matches = [pattern.match(file.name) for file in files]
    return {match[1]: match[2] for match in matches if match}


def _cpu() -> dict[str, Any]:
    cores = os.cpu_count() or 1
    # what this process may use: affinity, and the share that a container allows
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    quota, _, period = _read(_CGROUP / "cpu.max").partition(" ")
    if quota.isdigit() and period.strip().isdigit():
        usable = max(1, min(usable, int(quota) // int(period)))
    info = _read(Path("/proc/cpuinfo"))
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.+)$", info, re.MULTILINE)
    present = set(flags[1].split()) if flags else set()
    return {
        "model": model[1] if model else platform.processor() or None,
        "cores": cores,
        "cores_usable": usable,
        "features": [name for name in CPU_FEATURES if name in present],
    }


def _memory() -> dict[str, int | None]:
    """Bytes of memory, within the limit of a container."""
    info = dict(re.findall(r"^(\w+):\s*(\d+) kB$", _read(Path("/proc/meminfo")), re.MULTILINE))
    total = int(info["MemTotal"]) * 1024 if "MemTotal" in info else None
    free = int(info["MemAvailable"]) * 1024 if "MemAvailable" in info else None
    limit, used = _read(_CGROUP / "memory.max").strip(), _read(_CGROUP / "memory.current").strip()
    if limit.isdigit() and used.isdigit() and total is not None and free is not None:
        total = min(total, int(limit))
        free = min(free, max(0, int(limit) - int(used)))
    return {"total_bytes": total, "available_bytes": free}


def _read(path: Path) -> str:
    """A file of the system, empty where this system has none such."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _gib(size: int | None) -> str:
    return "not known" if size is None else f"{size / 2**30:.1f} GiB"
