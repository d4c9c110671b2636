"""Who may import whom. The architecture, as a test."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAGES = ["decode", "view", "score", "fuse", "alert", "render", "encode", "report"]
COMMANDS = ["cli", "console", "run_cli", "run_text", "train_cli"]
SHARED = set(["bundle", "engine", "errors", "frames", "fuse", "quality", "sample", "score", "view"])
SHARED.add("decode")  # the one reader of containers: a frame is the same on both sides
PRODUCT = set(["alert", "demo", "pipeline", "recording", "report"])
MEASURES_THE_PRODUCT = set([f"trainer.{m}" for m in ("clips", "coco", "evaluate_video", "truth")])
"""What is said about a video must be about what a user of `run` gets, so these run the pipeline
itself, and read the truth where `sample` puts it. A second pipeline here could differ unseen."""

READING = ("problems", "clock", "container", "packets", "decode")
"""What reads a recording: each may import those before it, and none behind it."""

# (modules, may not import, why)
RULES = [
    *[
        ("ccdstream." + a, "ccdstream." + b, "only pipeline knows the order of the stages")
        for a in STAGES
        for b in [*STAGES, "pipeline", *COMMANDS]
        if a != b
    ],
    ("ccdstream.engine", "ccdstream.pipeline", "an engine runs batches and knows no video"),
    ("ccdstream.bundle", "ccdstream.engine", "reading a bundle runs nothing"),
    *[
        (f"ccdstream.{lower}", f"ccdstream.{upper}", "a file is opened, then read, then decoded")
        for number, upper in enumerate(READING)
        for lower in READING[:number]
    ],
    ("ccdstream.mp4_index", "ccdstream", "it knows bytes, and neither frames nor FFmpeg"),
    ("ccdstream.parts", "ccdstream", "it knows bytes, and neither frames nor FFmpeg"),
]
# library -> the only modules that may import it
ONLY = {
    "typer": {
        "ccdstream.cli",
        "ccdstream.console",
        "ccdstream.live.cli",
        "ccdstream.run_cli",
        "ccdstream.run_text",
        "ccdstream.train_cli",
    },
    "av": {
        "ccdstream.container",
        "ccdstream.packets",
        "ccdstream.nvdec",
        "ccdstream.decode",
        "ccdstream.encode",
        "ccdstream.picture",
        "ccdstream.remux",
        "ccdstream.live.url",
        "ccdstream.live.record",
    },
    "threading": {
        "ccdstream.prefetch",
        "ccdstream.workers",
        "ccdstream.engine.cuda",  # torch records one CUDA graph at a time in a process
        "ccdstream.live.board",
        "ccdstream.live.capture",
        "ccdstream.live.failures",
        "ccdstream.live.gallery",
        "ccdstream.live.journal",
        "ccdstream.live.log",
        "ccdstream.live.record",
        "ccdstream.live.screen",
        "ccdstream.live.serve",
        "ccdstream.live.window",
    },
    "multiprocessing": {"ccdstream.workers"},
    "pyarrow": {"ccdstream.report.parquet"},
    "uvicorn": {"ccdstream.live.serve"},
    "starlette": {"ccdstream.live.serve"},
    "websockets": set(),  # uvicorn's, for the page
    "prometheus_client": {"ccdstream.live.metrics"},
    "ray": {"ccdstream.cluster"},
    "openvino": {"ccdstream.engine.openvino"},
    "onnxruntime": {"ccdstream.engine.onnxruntime", "ccdstream.engine.precision"},
    "tensorrt": {"ccdstream.engine.tensorrt"},
    "tensorrt_rtx": {"ccdstream.engine.tensorrt"},
    "torch_tensorrt": {"ccdstream.engine.torch_tensorrt"},
}


@cache
def imports() -> list[tuple[str, str]]:
    """(module, what it imports) over both packages."""
    found: list[tuple[str, str]] = []
    for path in [*ROOT.glob("ccdstream/**/*.py"), *ROOT.glob("trainer/**/*.py")]:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found += [(module, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{module}: relative import"
                found.append((module, node.module or ""))
                found += [(module, f"{node.module}.{alias.name}") for alias in node.names]
    return found


def at_import(module: str) -> set[str]:
    """The modules of both packages that importing `module` imports."""
    path = ROOT / Path(*module.split(".")).with_suffix(".py")
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found & {m for m, _ in imports()}


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize(("who", "what", "why"), RULES)
def test_boundary(who: str, what: str, why: str) -> None:
    broken = sorted({m for m, i in imports() if within(m, who) and within(i, what)})
    assert not broken, f"{broken} import {what}: {why}"


def test_only_the_commands_that_train_know_the_trainer() -> None:
    users = {m for m, i in imports() if within(m, "ccdstream") and within(i, "trainer")}
    assert users == {"ccdstream.train_cli"}, "the runtime runs exported programs, not training code"


def test_the_trainer_shares_only_what_must_be_the_same_on_both_sides() -> None:
    shared = {f"ccdstream.{name}" for name in SHARED}
    broken = {
        (m, i)
        for m, i in imports()
        if within(m, "trainer")
        and i.startswith("ccdstream.")
        and not any(within(i, module) for module in shared)
        and i not in ("ccdstream.NOTICE", "ccdstream.__version__")
    } - {(m, f"ccdstream.{n}") for m, _ in imports() for n in SHARED}
    product = {f"ccdstream.{name}" for name in PRODUCT}
    broken -= {
        (m, i)
        for m, i in broken
        if m in MEASURES_THE_PRODUCT and any(within(i, module) for module in product)
    }
    assert not broken


def test_no_module_imports_itself_by_way_of_others() -> None:
    waiting = {module: at_import(module) for module, _ in imports()}
    while ready := {module for module, wanted in waiting.items() if not wanted & set(waiting)}:
        waiting = {m: wanted for m, wanted in waiting.items() if m not in ready}
    assert sorted(waiting) == [], "a circle, and what stands on it"


@pytest.mark.parametrize("library", ONLY)
def test_library_stays_in_its_module(library: str) -> None:
    users = {m for m, i in imports() if within(i, library)}
    assert users <= ONLY[library]


def test_the_runtime_and_its_help_never_load_a_training_library() -> None:
    code = (
        "import sys, ccdstream.cli, ccdstream.pipeline, ccdstream.stills;"
        "import ccdstream.gpu.paint, ccdstream.gpu.view;"
        "print([m for m in ('torch', 'torchvision', 'onnx', 'matplotlib', 'trainer')"
        " if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_command_line_imports_nothing_heavy() -> None:
    code = (
        "import sys, ccdstream.cli;"
        "print([m for m in ('numpy', 'cv2', 'av', 'openvino', 'torch', 'rich')"
        " if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_run_loads_what_writes_parquet_only_when_it_is_asked_for() -> None:
    code = (
        "import sys, ccdstream.recording, ccdstream.batch, ccdstream.report.parquet;"
        "print('pyarrow' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_ray_is_loaded_only_where_a_cluster_is_joined() -> None:
    code = (
        "import sys, ccdstream.cli, ccdstream.batch, ccdstream.cluster;"
        "ccdstream.cluster.deal([ccdstream.cluster.Room('1', 'a', 2, 0)], 1,"
        " device='auto', per_gpu=2);"
        "print('ray' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_the_page_loads_its_server_only_when_it_is_served() -> None:
    code = (
        "import sys, ccdstream.live.serve, ccdstream.live.metrics;"
        "print([m for m in ('uvicorn', 'starlette', 'websockets', 'prometheus_client')"
        " if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
