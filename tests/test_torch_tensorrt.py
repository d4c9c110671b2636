"""torch-tensorrt: the way through it against a stand-in, and its own word on our operators."""

import importlib.metadata
import importlib.util
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ccdstream.bundle import Bundle, load_bundle
from ccdstream.engine import torch_tensorrt
from ccdstream.engine.base import BuildOptions
from ccdstream.engine.cuda import BatchedEngine, HostQueue
from ccdstream.engine.gpu import Gpu, find_gpus
from ccdstream.engine.parity import check_parity
from ccdstream.engine.torch_tensorrt import make_engine
from ccdstream.errors import EngineError
from tests.bundles import toy_inputs, toy_output

GPU = Gpu("NVIDIA H100", (9, 0), 80 << 30)


@dataclass
class StandIn:
    """The part of torch-tensorrt that is used here; what it compiles is what was exported."""

    __version__ = "2.14.0"
    compiled: list[SimpleNamespace] = field(default_factory=list)
    failure: str = ""
    unreadable: int = 0

    @property
    def dynamo(self) -> Any:
        return SimpleNamespace(compile=self._compile)

    def Input(self, **given: Any) -> Any:
        return SimpleNamespace(**given)

    def _compile(self, exported: Any, **given: Any) -> Any:
        if self.failure:
            raise RuntimeError(self.failure)
        self.compiled.append(SimpleNamespace(exported=exported, **given))
        return exported

    def save(self, compiled: Any, path: str, **given: Any) -> None:
        torch.export.save(compiled, path)

    def load(self, path: str) -> Any:
        if self.unreadable:
            self.unreadable -= 1
            raise ValueError("not a valid\nprogram")
        return torch.export.load(path)


@pytest.fixture
def options(tmp_path: Path) -> BuildOptions:
    return BuildOptions("fp32", (1, 2, 4), cache=tmp_path / "cache")


@pytest.fixture
def library() -> StandIn:
    return StandIn()


def assert_closed_form(engine: BatchedEngine, rows: int) -> None:
    frames, valid = toy_inputs(rows, seed=rows)
    got, expected = engine.run(frames, valid), toy_output(frames, valid)
    np.testing.assert_allclose(got.score, expected.score, atol=1e-5)
    np.testing.assert_allclose(got.anomaly_map, expected.anomaly_map, atol=1e-5)
    np.testing.assert_allclose(got.parts, expected.parts, atol=1e-5)


def opened(bundle: Bundle, library: StandIn, options: BuildOptions) -> BatchedEngine:
    return make_engine(bundle, library, HostQueue(), GPU, options)


def test_any_number_of_views_is_scored(bundle, library, options) -> None:
    engine = opened(bundle, library, options)
    for rows in (1, 2, 4, 9):
        assert_closed_form(engine, rows)
    assert (engine.name, engine.version) == ("torch-tensorrt", "2.14.0")


def test_it_compiles_for_the_batches_asked_for_without_tf32(bundle, library, options) -> None:
    opened(bundle, library, options)
    (compiled,) = library.compiled
    frames, valid = compiled.arg_inputs
    assert (frames.min_shape, frames.opt_shape, frames.max_shape) == tuple(
        (rows, 3, 256, 256) for rows in (2, 2, 4)
    )
    assert (valid.max_shape, frames.dtype, valid.dtype) == ((4, 256, 256), torch.uint8, torch.bool)
    assert compiled.disable_tf32 is True


@pytest.mark.parametrize("batch", [(1, 1, 1), (4, 4, 4), (1, 2, 2)])
def test_an_engine_for_one_size_of_batch_takes_any_number_too(
    bundle, library, options, batch
) -> None:
    engine = opened(bundle, library, replace(options, batch=batch))
    for rows in (1, 3):
        assert_closed_form(engine, rows)


def test_what_was_compiled_is_used_again(bundle, library, options) -> None:
    lines: list[str] = []
    options = replace(options, say=lines.append)
    opened(bundle, library, options)
    assert_closed_form(opened(bundle, library, options), 3)
    assert len(library.compiled) == len(lines) == 1
    assert lines[0].startswith(f"compiling {bundle.model_id} for NVIDIA H100 with torch-tensorrt")


def test_what_cannot_be_read_is_compiled_anew_and_a_line_says_why(bundle, library, options) -> None:
    lines: list[str] = []
    options = replace(options, say=lines.append)
    opened(bundle, library, options)
    library.unreadable = 1
    assert_closed_form(opened(bundle, library, options), 1)
    assert lines[1] == "engine rebuilt: torch-tensorrt does not read it (not a valid)"
    assert len(library.compiled) == 2


def test_a_failure_to_compile_is_told_on_one_line_and_nothing_is_kept(
    bundle, library, options
) -> None:
    library.failure = "unsupported\nmany lines"
    with pytest.raises(
        EngineError, match=r"torch-tensorrt cannot compile the program: unsupported$"
    ):
        opened(bundle, library, options)
    assert not options.cache.exists()


def test_8_bits_are_refused(bundle, library, options) -> None:
    with pytest.raises(EngineError, match="torch-tensorrt computes in fp16 or fp32"):
        opened(bundle, library, replace(options, precision="int8"))


@pytest.mark.skipif(bool(find_gpus().found), reason="there is a GPU here")
def test_without_a_gpu_the_library_is_not_even_imported(bundle) -> None:
    before = "torch_tensorrt" in sys.modules
    with pytest.raises(EngineError, match="NVIDIA driver"):
        torch_tensorrt.open_engine(bundle, "cuda")
    (info,) = torch_tensorrt.probe()
    assert not info.installed and "NVIDIA driver" in info.note
    assert ("torch_tensorrt" in sys.modules) == before


DRY_RUN = """
import sys, types
import torch

# An RTX 3090, for the questions that the library asks when it is imported. It compiles nothing.
card = types.SimpleNamespace(
    name="NVIDIA GeForce RTX 3090", major=8, minor=6, total_memory=24 << 30,
    multi_processor_count=82,
)
torch.cuda.get_device_capability = lambda device=None: (card.major, card.minor)
torch.cuda.get_device_properties = lambda device=None: card
torch.cuda.get_device_name = lambda device=None: card.name
torch.cuda.current_device = lambda: 0
torch.cuda.mem_get_info = lambda device=None: (20 << 30, 24 << 30)
import torch_tensorrt

from ccdstream.bundle import load_bundle
from ccdstream.engine.base import BuildOptions
from ccdstream.engine.cuda import HostQueue
from ccdstream.engine.rewrite import without_col2im
from ccdstream.engine.torch_cuda import floating_program, torch_module
from ccdstream.engine import torch_tensorrt as ours

compile = torch_tensorrt.dynamo.compile

def dry(exported, **given):
    given.pop("device")
    compile(exported, **given, dryrun=sys.argv[1])
    raise SystemExit(0)

torch_tensorrt.dynamo.compile = dry
options = BuildOptions("fp16", (1, 2, 4))
program = without_col2im(floating_program("", load_bundle(), options))
queue = HostQueue()
ours._compiled(torch_tensorrt, torch_module("", program, queue), queue, (2, 2, 4))
"""


def test_every_operator_of_the_default_bundle_is_known_and_in_one_engine(tmp_path: Path) -> None:
    """torch-tensorrt's own dry run. It needs no GPU where TensorRT-RTX stands in for TensorRT."""
    if importlib.util.find_spec("tensorrt_rtx") is None or not list(
        importlib.metadata.Distribution.discover(name="torch-tensorrt-rtx")
    ):
        pytest.skip("torch-tensorrt-rtx is not installed")
    report = tmp_path / "report.txt"
    done = subprocess.run(
        [sys.executable, "-c", DRY_RUN, str(report)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    text = report.read_text()
    assert "100.0% coverage" in text
    assert text.count("TRT Engine #") == 1


# What only a GPU can show


@pytest.mark.cuda
def test_the_default_bundle_passes_the_parity_gate_on_the_gpu(tmp_path: Path) -> None:
    bundle = load_bundle()
    engine = torch_tensorrt.open_engine(bundle, "cuda", build=BuildOptions(cache=tmp_path))
    parity = check_parity(engine, bundle)
    assert parity.passed, str(parity)
