"""A report says what is here and what would be used, and never fails for what is not."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ccdstream import __version__, doctor
from ccdstream.bundle import Bundle
from ccdstream.engine import select
from ccdstream.engine.base import BuildOptions
from ccdstream.engine.select import BACKENDS, SelectedEngine
from tests.bundles import write_toy_bundle


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_bundle(tmp_path_factory.mktemp("bundle") / "toy").path


@pytest.fixture(scope="module")
def found(model: Path) -> dict:
    return doctor.report(model)


def test_a_report_is_json(found) -> None:
    assert json.loads(json.dumps(found, allow_nan=False))["ccdstream"] == __version__


def test_versions_are_those_that_are_installed(found) -> None:
    assert found["python"] == platform.python_version()
    assert found["packages"]["numpy"] == np.__version__
    assert found["packages"]["av"] == importlib.metadata.version("av")


def test_a_package_under_another_name_is_told_with_that_name() -> None:
    numpy = importlib.metadata.version("numpy")
    assert doctor._version(("no-such-package", "numpy")) == f"{numpy} (numpy)"
    assert doctor._version(("numpy", "no-such-package")) == numpy
    assert doctor._version(("no-such-package",)) is None


def test_cores_and_memory_are_those_of_this_machine(found) -> None:
    assert found["cpu"]["cores"] == os.cpu_count()
    assert 1 <= found["cpu"]["cores_usable"] <= found["cpu"]["cores"]
    memory = found["memory"]
    if memory["total_bytes"] is not None:
        assert 0 < memory["available_bytes"] <= memory["total_bytes"]
    assert found["disk"]["free_bytes"] > 0


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("", 8)],
    ids=["no limit", "two and a half", "half a core", "no cgroup"],
)
def test_the_share_of_a_container_counts_as_its_cores(tmp_path, monkeypatch, quota, cores) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(doctor, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert doctor._cpu()["cores_usable"] == cores


def test_every_engine_is_there_and_the_one_that_is_taken_too(found) -> None:
    engines = [(one["name"], one["device"]) for one in found["engines"]]
    assert engines == [(one.name, one.device) for one in BACKENDS]
    assert found["model"]["id"].startswith("toy-")
    assert (found["model"]["engine"], found["model"]["device"]) in engines
    assert found["model"]["problem"] == ""


def test_lines_tell_all_of_it_one_thing_a_line(found) -> None:
    lines = doctor.lines(found)
    assert all("\n" not in line for line in lines)
    text = "\n".join(lines)
    for shown in (
        __version__,
        platform.platform(),
        f"numpy {np.__version__}",
        found["model"]["id"],
        found["model"]["reason"],
        found["gpu"]["problem"] or found["gpu"]["found"][0]["name"],
    ):
        assert shown in text
    for name in found["packages"]:
        assert name in text


def test_a_gpu_is_told_with_its_memory_and_capability(found) -> None:
    card = {"name": "GPU X", "compute_capability": (9, 0), "memory_bytes": 80 * 2**30}
    gpu = {"found": [card, card], "cuda_version": "13.0", "problem": ""}
    lines = doctor.lines({**found, "gpu": gpu})
    assert sum("GPU X, 80.0 GiB, compute capability 9.0" in line for line in lines) == 2
    assert any("driver for CUDA 13.0" in line for line in lines)


def test_a_missing_model_is_a_line_and_not_an_error(tmp_path) -> None:
    found = doctor.report(tmp_path / "none")
    assert found["model"]["id"] is None and found["model"]["engine"] is None
    assert found["model"]["problem"].startswith("no bundle at ")
    assert any("no bundle at" in line for line in doctor.lines(found))


def test_a_model_that_no_engine_runs_is_a_line_and_not_an_error(tmp_path) -> None:
    model = write_toy_bundle(tmp_path / "toy", program=b"not onnx").path
    found = doctor.report(model)
    assert found["model"]["id"].startswith("toy-")
    assert "no engine can run" in found["model"]["problem"]
    assert any("no engine can run" in line for line in doctor.lines(found))


def test_it_says_when_an_engine_is_compiled_for_the_report(model: Path, monkeypatch) -> None:
    said: list[str] = []

    def open_engine(bundle: Bundle, *, build: BuildOptions) -> SelectedEngine:
        build.say("compiling")
        return select.open_engine(bundle, device="cpu")

    monkeypatch.setattr(doctor, "open_engine", open_engine)
    doctor.report(model, say=said.append)
    assert said == ["compiling"]


def test_a_system_without_proc_gives_not_known(found, monkeypatch) -> None:
    monkeypatch.setattr(doctor, "_read", lambda path: "")
    bare = {**found, "cpu": doctor._cpu(), "memory": doctor._memory(), "ffmpeg": {}}
    assert bare["memory"] == {"total_bytes": None, "available_bytes": None}
    assert any("not known of not known free" in line for line in doctor.lines(bare))


def test_a_report_imports_neither_torch_nor_av(model: Path) -> None:
    """torch alone takes seconds; av is for the decoder and the encoder only."""
    code = (
        "import sys; from pathlib import Path; from ccdstream.doctor import report; "
        f"report(Path({str(model)!r})); print(sorted({{'torch', 'av'}} & {{*sys.modules}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
