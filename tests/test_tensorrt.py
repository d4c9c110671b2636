"""TensorRT: the executor against a fake runtime, and real programs built by TensorRT-RTX."""

import ctypes
import importlib.util
import sys
from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper

from ccdstream.bundle import Bundle, load_bundle
from ccdstream.engine import tensorrt
from ccdstream.engine.base import BuildOptions, CalibrationViews
from ccdstream.engine.cuda import BatchedEngine, HostQueue
from ccdstream.engine.gpu import Gpu, find_gpus
from ccdstream.engine.parity import check_parity
from ccdstream.engine.precision import program_in
from ccdstream.engine.rewrite import without_col2im
from ccdstream.engine.tensorrt import Library, build_engine, load_library, make_engine
from ccdstream.errors import EngineError
from ccdstream.packaged import find_model
from tests.bundles import toy_inputs, toy_output, toy_program

GPU = Gpu("NVIDIA H100", (9, 0), 80 << 30)
BATCH = (1, 2, 4)
SHAPES = {
    "parts": (2,),  # not in the order of the format: engines bind by name
    "valid": (256, 256),
    "score": (),
    "frames": (3, 256, 256),
    "map": (64, 64),
}


class FakeTensorRt:
    """The part of TensorRT's Python interface that is used here. An engine computes the toy program
    from and to addresses; what an engine must not do with TensorRT, it refuses."""

    __version__ = "11.1.0"
    NetworkDefinitionCreationFlag = IntEnum("NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 3})
    BuilderFlag = IntEnum("BuilderFlag", "TF32 REFIT")
    TensorIOMode = IntEnum("TensorIOMode", "INPUT OUTPUT")
    DataType = IntEnum("DataType", "FLOAT HALF")
    ExecutionContextAllocationStrategy = IntEnum(
        "ExecutionContextAllocationStrategy", "STATIC USER_MANAGED"
    )

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING = range(3)

    def __init__(self) -> None:
        self.built: list[SimpleNamespace] = []
        self.contexts: list[FakeContext] = []
        self.refused = 0  # of the engines that come next
        self.parser_error = self.build_error = self.run_error = ""
        self.shapes = dict(SHAPES)

    def Builder(self, log: Any) -> Any:
        return SimpleNamespace(
            create_network=lambda flags: SimpleNamespace(
                flags=flags,
                num_inputs=2,
                get_input=lambda index: SimpleNamespace(
                    name=("valid", "frames")[index],
                    shape=[-1, *SHAPES[("valid", "frames")[index]]],
                ),
            ),
            create_builder_config=FakeConfig,
            create_optimization_profile=FakeProfile,
            build_serialized_network=lambda network, config: self._build(log, network, config),
        )

    def _build(self, log: Any, network: Any, config: Any) -> bytes | None:
        if self.build_error:
            log.log(self.ILogger.WARNING, "not this one")
            log.log(self.ILogger.ERROR, self.build_error)
            return None
        self.built.append(SimpleNamespace(network=network, config=config))
        return f"engine {len(self.built)} for {','.join(map(str, config.profile.batch))}".encode()

    def OnnxParser(self, network: Any, log: Any) -> Any:
        error = SimpleNamespace(
            node_operator=lambda: "Col2Im", node_name=lambda: "fold", desc=lambda: self.parser_error
        )
        return SimpleNamespace(
            parse=lambda program: not self.parser_error,
            num_errors=int(bool(self.parser_error)),
            get_error=lambda index: error,
        )

    def Runtime(self, log: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=lambda blob: self._deserialize(log, blob))

    def _deserialize(self, log: Any, blob: bytes) -> Any:
        assert isinstance(blob, bytes) and blob.startswith(b"engine ")
        if self.refused:
            self.refused -= 1
            return None
        names = list(self.shapes)
        batch = tuple(map(int, blob.rpartition(b" ")[2].split(b",")))
        inputs = ("frames", "valid", "images")
        engine = SimpleNamespace(
            log=log,
            batch=batch,
            num_io_tensors=len(names),
            get_tensor_name=lambda index: names[index],
            get_tensor_mode=lambda name: (
                self.TensorIOMode.INPUT if name in inputs else self.TensorIOMode.OUTPUT
            ),
            get_tensor_shape=lambda name: [-1, *self.shapes[name]],
            get_tensor_dtype=lambda name: self.DataType.FLOAT,
            get_tensor_profile_shape=lambda name, index: [
                [views, *self.shapes[name]] for views in batch
            ],
            device_memory_size_v2=1000,
        )
        engine.create_runtime_config = FakeRuntimeConfig
        engine.create_execution_context = lambda how: FakeContext(self, engine, how)
        return engine


class FakeTensorRtRtx(FakeTensorRt):
    """The same with what TensorRT-RTX has of its own."""

    BuilderFlag = IntEnum("BuilderFlag", "TF32 REQUIRE_USER_ALLOCATION")
    DynamicShapesKernelSpecializationStrategy = IntEnum(
        "DynamicShapesKernelSpecializationStrategy", "LAZY EAGER"
    )


class FakeRuntimeConfig:
    """Of an execution context; TensorRT has it too, without the kernels' strategy."""

    strategy: Any = None
    dynamic_shapes_kernel_specialization_strategy: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy


@dataclass
class FakeConfig:
    cleared: list[Any] = field(default_factory=list)
    flags: list[Any] = field(default_factory=list)
    profile: Any = None
    given_timings: bytes | None = None

    def set_flag(self, flag: Any) -> None:
        self.flags.append(flag)

    def clear_flag(self, flag: Any) -> None:
        self.cleared.append(flag)

    def add_optimization_profile(self, profile: Any) -> None:
        self.profile = profile

    def create_timing_cache(self, content: bytes) -> bytes:
        return content

    def set_timing_cache(self, timings: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.given_timings = timings
        return True

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(
            serialize=lambda: bytearray(self.given_timings or b"") + b"one more;"
        )


class FakeProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.shapes[name] = list(shapes)

    @property
    def batch(self) -> list[int]:
        return [shape[0] for shape in self.shapes["frames"]]


class FakeContext:
    def __init__(self, api: FakeTensorRt, engine: Any, how: Any) -> None:
        if isinstance(api, FakeTensorRtRtx):
            strategies = api.DynamicShapesKernelSpecializationStrategy
            assert how.dynamic_shapes_kernel_specialization_strategy == strategies.EAGER
            how = how.strategy
        assert how == api.ExecutionContextAllocationStrategy.USER_MANAGED
        self.api, self.engine = api, engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.memory: tuple[int, int] | None = None
        self.runs = 0
        api.contexts.append(self)

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory = (address, size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        least, _, most = self.engine.batch
        return least <= shape[0] <= most and shape[1:] == SHAPES[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in SHAPES

    def execute_async_v3(self, stream: int) -> bool:
        assert self.memory and self.memory[1] >= 1000 and set(self.addresses) == set(SHAPES)
        if self.api.run_error:
            self.engine.log.log(self.api.ILogger.ERROR, self.api.run_error)
            return False
        self.runs += 1
        rows = self.shapes["frames"][0]
        output = toy_output(self.at("frames", rows, np.uint8), self.at("valid", rows, np.bool_))
        self.at("score", rows, np.float32)[:] = output.score
        self.at("map", rows, np.float32)[:] = output.anomaly_map
        self.at("parts", rows, np.float32)[:] = output.parts
        return True

    def at(self, name: str, rows: int, dtype: Any) -> np.ndarray:
        """What lies at the address of a tensor."""
        shape = (rows, *SHAPES[name])
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        memory = (ctypes.c_uint8 * size).from_address(self.addresses[name])
        return np.frombuffer(memory, dtype).reshape(shape)


class CountingQueue(HostQueue):
    """The CPU, counting what would be CUDA graphs."""

    recordings = 0

    def recorded(self, work: Any) -> Any:
        self.recordings += 1
        return super().recorded(work)


@pytest.fixture
def api() -> FakeTensorRt:
    return FakeTensorRt()


@pytest.fixture
def options(tmp_path: Path) -> BuildOptions:
    return BuildOptions("fp32", BATCH, cache=tmp_path / "cache")


def opened(
    bundle: Bundle,
    api: FakeTensorRt,
    options: BuildOptions,
    *,
    queue: HostQueue | None = None,
    package: str = "tensorrt",
) -> BatchedEngine:
    return make_engine(bundle, Library(package, api), queue or HostQueue(), GPU, options)


def assert_closed_form(engine: BatchedEngine, rows: int, seed: int = 0) -> None:
    frames, valid = toy_inputs(rows, seed=seed)
    got, expected = engine.run(frames, valid), toy_output(frames, valid)
    np.testing.assert_allclose(got.score, expected.score, atol=1e-5)
    np.testing.assert_allclose(got.anomaly_map, expected.anomaly_map, atol=1e-5)
    np.testing.assert_allclose(got.parts, expected.parts, atol=1e-5)


# Running an engine


@pytest.mark.parametrize("rows", [1, 4, 9])
def test_any_number_of_views_is_scored_by_name_in_chunks(bundle, api, options, rows) -> None:
    assert_closed_form(opened(bundle, api, options), rows, seed=rows)


def test_each_size_of_batch_is_recorded_once_on_a_context_of_its_own(bundle, api, options) -> None:
    queue = CountingQueue()
    engine = opened(bundle, api, options, queue=queue)
    for rows in (2, 4, 2, 9, 4):  # 9 is 4, 4 and 1
        assert_closed_form(engine, rows, seed=rows)
    assert queue.recordings == len(api.contexts) == 3
    assert len({context.memory for context in api.contexts}) == 1
    assert len({context.addresses["frames"] for context in api.contexts}) == 1


def test_views_on_the_device_are_scored_there(bundle, api, options) -> None:
    engine = opened(bundle, api, options)
    frames, valid = (torch.from_numpy(each) for each in toy_inputs(3))
    expected = toy_output(frames.numpy(), valid.numpy())
    for given in (frames, frames.contiguous(memory_format=torch.channels_last)):
        score, anomaly_map, parts = engine.run_on_device(given, valid)
        np.testing.assert_allclose(score.numpy(), expected.score, atol=1e-5)
        np.testing.assert_allclose(anomaly_map.numpy(), expected.anomaly_map, atol=1e-5)
        np.testing.assert_allclose(parts.numpy(), expected.parts, atol=1e-5)
    assert engine.max_batch == 4


def test_views_of_another_form_are_the_callers_mistake(bundle, api, options) -> None:
    engine = opened(bundle, api, options)
    frames, valid = (torch.from_numpy(each) for each in toy_inputs(2))
    for wrong_frames, wrong_valid, message in (
        (frames.float(), valid, r"frames must be torch.uint8 \[2, 3, 256, 256\] on cpu, got"),
        (frames, valid.to("meta"), "valid must be .* on cpu, got .* on meta"),
        (frames, valid[:1], "valid must be"),
        (frames[:0], valid[:0], "1 to 4 frames, got 0"),
        (frames.repeat(3, 1, 1, 1), valid.repeat(3, 1, 1), "1 to 4 frames, got 6"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.run_on_device(wrong_frames, wrong_valid)
    with pytest.raises(ValueError, match="frames must be uint8"):
        engine.run(frames.float().numpy(), valid.numpy())


def test_fewer_views_than_the_least_are_scored_beside_others(bundle, api, options) -> None:
    engine = opened(bundle, api, replace(options, batch=(3, 3, 4)))
    for rows in (1, 4, 5):
        assert_closed_form(engine, rows, seed=rows)
    assert sorted(context.shapes["frames"][0] for context in api.contexts) == [3, 4]


def test_a_later_call_does_not_change_what_an_earlier_one_gave(bundle, api, options) -> None:
    engine = opened(bundle, api, options)
    frames, valid = toy_inputs(2)
    earlier = engine.run(frames, valid)
    engine.run(255 - frames, valid)
    np.testing.assert_allclose(earlier.score, toy_output(frames, valid).score, atol=1e-5)


def test_an_engine_says_which_of_the_two_libraries_it_is(bundle, api, options) -> None:
    ours = opened(bundle, api, options)
    assert (ours.name, ours.version, ours.device) == ("tensorrt", "11.1.0", "cpu")
    assert opened(bundle, api, options, package="tensorrt_rtx").version == "11.1.0 (tensorrt_rtx)"


def test_a_failure_of_the_device_is_told_on_one_line(bundle, api, options) -> None:
    engine = opened(bundle, api, options)
    api.run_error = "CUDA error 700\nat line 12"
    with pytest.raises(EngineError, match=r"could not score a batch of 1: CUDA error 700$"):
        engine.run(*toy_inputs(1))


def test_the_fake_passes_the_parity_gate_as_an_engine_does(bundle, api, options) -> None:
    assert check_parity(opened(bundle, api, options), bundle).passed


# Compiling, and what was compiled before


def test_what_is_compiled_is_typed_by_the_program_and_takes_the_batches_asked_for(
    bundle, api, options
) -> None:
    opened(bundle, api, options)
    (built,) = api.built
    assert built.network.flags == 1 << 3
    assert built.config.cleared == [api.BuilderFlag.TF32]
    assert built.config.profile.shapes == {
        "frames": [(1, 3, 256, 256), (2, 3, 256, 256), (4, 3, 256, 256)],
        "valid": [(1, 256, 256), (2, 256, 256), (4, 256, 256)],
    }


def test_an_engine_is_compiled_once_and_a_line_says_so(bundle, api, options) -> None:
    lines: list[str] = []
    options = replace(options, say=lines.append)
    opened(bundle, api, options)
    assert_closed_form(opened(bundle, api, options), 2)
    assert len(api.built) == 1
    assert lines == [
        f"compiling {bundle.model_id} for NVIDIA H100 with tensorrt 11.1.0: fp32, batches of 1 to "
        f"4; kept in {options.cache}"
    ]


def test_a_newer_library_compiles_anew_and_says_why(bundle, api, options) -> None:
    lines: list[str] = []
    options = replace(options, say=lines.append)
    opened(bundle, api, options)
    api.__version__ = "11.4.0"
    opened(bundle, api, options)
    assert len(api.built) == 2
    assert lines[1] == "engine rebuilt: it was made for tensorrt 11.1.0, this is 11.4.0"


def test_an_engine_that_the_runtime_refuses_is_compiled_once_more(bundle, api, options) -> None:
    lines: list[str] = []
    options = replace(options, say=lines.append)
    opened(bundle, api, options)
    api.refused = 1
    assert_closed_form(opened(bundle, api, options), 1)
    assert len(api.built) == 2
    assert lines[1] == "engine rebuilt: tensorrt does not load what was kept"


@pytest.mark.parametrize("kept", [False, True])
def test_a_runtime_that_refuses_a_fresh_engine_is_an_error(bundle, api, options, kept) -> None:
    if kept:
        opened(bundle, api, options)
    api.refused = 2
    with pytest.raises(EngineError, match="does not load what it compiled for NVIDIA H100"):
        opened(bundle, api, options)
    assert len(api.built) == 1 + kept
    assert len(list(options.cache.glob("*.engine"))) == 1 + kept  # the timings, and what was there


def test_an_operator_that_the_parser_refuses_is_named_on_one_line(bundle, api, options) -> None:
    api.parser_error = "no importer\nfor this"
    with pytest.raises(EngineError, match=r"not read the program: Col2Im \(fold\): no importer$"):
        opened(bundle, api, options)


def test_a_build_that_fails_says_what_the_library_logged(bundle, api, options) -> None:
    api.build_error = "out of memory\nsomewhere"
    with pytest.raises(EngineError, match=r"tensorrt does not compile the program: out of memory$"):
        opened(bundle, api, options)
    assert not list(options.cache.glob("*.engine"))


@pytest.mark.parametrize("kind", ["Builder", "Runtime"])
def test_a_library_that_does_not_start_is_an_error_and_no_bug(
    bundle, api, options, monkeypatch, kind
) -> None:
    """Where the driver is too old for it, say: what the bindings of TensorRT raise then."""

    def refuse(_: Any) -> Any:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(api, kind, refuse)
    with pytest.raises(EngineError, match=r"^tensorrt .*(does not start|does not load)"):
        opened(bundle, api, options)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"images": (3, 256, 256)}, "takes images, valid and gives map, parts, score"),
        ({"map": (32, 32)}, r"gives map .*\[-1, 32, 32\]; expected float32 \[-1, 64, 64\]"),
        ({"parts": (5,)}, r"gives parts .*\[-1, 5\]; expected float32 \[-1, 2\]"),
    ],
    ids=["names", "map", "parts"],
)
def test_an_engine_that_would_write_elsewhere_never_runs(
    bundle, api, options, shapes, message
) -> None:
    api.shapes |= shapes
    if "images" in shapes:
        del api.shapes["frames"]
    with pytest.raises(EngineError, match=message):
        opened(bundle, api, options)
    assert not api.contexts


def test_measurements_of_kernels_are_kept_for_the_next_program(bundle, api, options) -> None:
    for batch in ((1, 2, 4), (1, 1, 2)):
        opened(bundle, api, replace(options, batch=batch))
    assert [one.config.given_timings for one in api.built] == [b"", b"one more;"]


def test_tensorrt_rtx_is_built_and_run_by_what_it_has_of_its_own(bundle, options) -> None:
    api = FakeTensorRtRtx()
    assert_closed_form(opened(bundle, api, options, package="tensorrt_rtx"), 3)
    (built,) = api.built
    assert built.config.flags == [api.BuilderFlag.REQUIRE_USER_ALLOCATION]
    assert built.config.given_timings is None  # it measures nothing


# Libraries that are missing or broken


def library_files(folder: Path, monkeypatch: pytest.MonkeyPatch, **sources: str | None) -> None:
    """Let `import NAME` find these sources; None: nothing of that name."""
    for name, source in sources.items():
        monkeypatch.setitem(sys.modules, name, None)  # undone with what is imported
        if source is not None:
            monkeypatch.delitem(sys.modules, name)
            (folder / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(folder)


def test_tensorrt_comes_before_tensorrt_rtx(tmp_path, monkeypatch) -> None:
    library_files(
        tmp_path, monkeypatch, tensorrt="__version__ = '11'", tensorrt_rtx="__version__ = '1'"
    )
    assert load_library().version == "11"


@pytest.mark.parametrize("source", [None, "raise RuntimeError('libnvinfer.so.11 is missing')"])
def test_tensorrt_rtx_is_taken_where_tensorrt_is_not_or_broken(
    tmp_path, monkeypatch, source
) -> None:
    library_files(tmp_path, monkeypatch, tensorrt=source, tensorrt_rtx="__version__ = '1.7'")
    assert load_library().version == "1.7 (tensorrt_rtx)"


def test_a_broken_installation_is_told_and_a_missing_one_says_what_to_install(
    tmp_path, monkeypatch
) -> None:
    library_files(tmp_path, monkeypatch, tensorrt="raise Exception('no\\nlib')", tensorrt_rtx=None)
    with pytest.raises(EngineError, match=r"^tensorrt does not start: no$"):
        load_library()
    library_files(tmp_path, monkeypatch, tensorrt="import no_such_bindings")
    with pytest.raises(EngineError, match="tensorrt does not start: No module"):
        load_library()
    library_files(tmp_path, monkeypatch, tensorrt=None)
    with pytest.raises(EngineError, match="tensorrt is not installed; pip install tensorrt"):
        load_library()


def test_it_runs_on_a_gpu_only(bundle) -> None:
    with pytest.raises(EngineError, match="tensorrt runs on cuda only, not on cpu"):
        tensorrt.open_engine(bundle, "cpu")


@pytest.mark.skipif(bool(find_gpus().found), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_and_loads_nothing(bundle) -> None:
    with pytest.raises(EngineError, match="NVIDIA driver"):
        tensorrt.open_engine(bundle, "cuda")
    (info,) = tensorrt.probe()
    assert not info.installed and "NVIDIA driver" in info.note


# Real programs, compiled by TensorRT-RTX, which needs no GPU for it


@pytest.fixture(scope="module")
def rtx() -> Library:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed")
    import tensorrt_rtx

    return Library("tensorrt_rtx", tensorrt_rtx)


@pytest.fixture(scope="module")
def default_bundle() -> Bundle:
    return load_bundle()


@pytest.fixture(scope="module")
def paper_program() -> bytes:
    """What the paper's size is of, the program of whole frames; its weights random."""
    from trainer.config import load_config
    from trainer.export import Program, onnx_program, prepare
    from trainer.train import scales, untrained

    config = load_config("paper", None, ["scales=global"])
    (whole,) = (untrained(config, scale).detector for scale in scales(config))
    program = Program(whole, None, config.program)
    prepare(program)
    return onnx_program(program)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_default_bundle_compiles(rtx, default_bundle, precision) -> None:
    program = program_in(precision, default_bundle.program.read_bytes())
    assert build_engine(without_col2im(program), rtx, BATCH)


def test_the_reference_bundle_which_has_patches_compiles(rtx) -> None:
    program = load_bundle(find_model("reference").path).program.read_bytes()
    assert "Col2Im" in {node.op_type for node in onnx.load_from_string(program).graph.node}
    assert build_engine(without_col2im(program_in("fp16", program)), rtx, BATCH)


def test_the_default_bundle_compiles_in_8_bits(rtx, default_bundle) -> None:
    golden = default_bundle.golden
    views = CalibrationViews(golden.frames[:1], golden.valid[:1])
    program = program_in("int8", default_bundle.program.read_bytes(), views)
    assert build_engine(without_col2im(program), rtx, BATCH)


def test_the_program_of_the_papers_size_compiles(rtx, paper_program) -> None:
    sizes = {}
    for precision in ("fp32", "fp16"):
        program = without_col2im(program_in(precision, paper_program))
        sizes[precision] = len(build_engine(program, rtx, BATCH))
    assert sizes["fp16"] < 0.7 * sizes["fp32"], "the weights are not in half precision"


def test_a_real_parser_names_the_operator_that_it_does_not_know(rtx) -> None:
    model = onnx.load_from_string(toy_program())
    model.graph.node.insert(0, helper.make_node("Hardmax", ["pixels"], ["nothing"], name="odd"))
    model.graph.node[0].op_type = "StringNormalizer"
    with pytest.raises(EngineError, match=r"tensorrt_rtx does not read the program: .*odd") as one:
        build_engine(model.SerializeToString(), rtx, BATCH)
    assert "\n" not in str(one.value)


@pytest.mark.skipif(bool(find_gpus().found), reason="there is a GPU here")
def test_a_real_runtime_without_a_gpu_is_an_error_and_not_a_crash(rtx, bundle, options) -> None:
    with pytest.raises(EngineError, match="does not load what it compiled for NVIDIA H100"):
        make_engine(bundle, rtx, HostQueue(), GPU, options)


# What only a GPU can show


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_default_bundle_passes_the_parity_gate_on_the_gpu(
    default_bundle, tmp_path, precision
) -> None:
    engine = tensorrt.open_engine(
        default_bundle, "cuda", build=BuildOptions(precision, cache=tmp_path)
    )
    parity = check_parity(engine, default_bundle)
    assert parity.passed, str(parity)


@pytest.mark.cuda
def test_graphs_of_several_sizes_do_not_disturb_each_other_on_the_gpu(
    default_bundle, tmp_path
) -> None:
    engine = tensorrt.open_engine(
        default_bundle, "cuda", build=BuildOptions("fp32", (1, 2, 3), cache=tmp_path)
    )
    golden = default_bundle.golden
    for rows in (3, 1, 2, 3, 1, 2):
        score = engine.run(golden.frames[:rows], golden.valid[:rows]).score
        np.testing.assert_allclose(
            score, golden.score[:rows], atol=default_bundle.parity["score_abs"]
        )
