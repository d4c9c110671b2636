"""Every engine gives what the program means, and the choice among them is never silent."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from ccdstream.bundle import Bundle
from ccdstream.engine import tensorrt
from ccdstream.engine.base import BuildOptions, Device, Engine, EngineInfo, EngineOutput
from ccdstream.engine.gpu import find_gpus
from ccdstream.engine.openvino import OpenVinoEngine
from ccdstream.engine.select import (
    BACKENDS,
    Backend,
    PassedOver,
    available,
    open_engine,
)
from ccdstream.errors import EngineError
from tests.bundles import toy_golden, toy_inputs, toy_output, toy_program, write_toy_bundle

ENGINES = [
    pytest.param("openvino", "cpu", id="openvino-cpu"),
    pytest.param("onnxruntime", "cpu", id="onnxruntime-cpu"),
    *(
        pytest.param(name, "cuda", id=f"{name}-cuda", marks=pytest.mark.cuda)
        for name in ("tensorrt", "torch", "torch-tensorrt", "onnxruntime")
    ),
]


@pytest.fixture(scope="module")
def engines(bundle: Bundle) -> Callable[[str, Device], Engine]:
    """Opens each engine once for all tests of this file."""
    opened: dict[tuple[str, Device], Engine] = {}

    def engine(name: str, device: Device) -> Engine:
        needs(name)
        if (name, device) not in opened:
            opened[name, device] = open_engine(
                bundle,
                engine=name,
                device=device,
                build=BuildOptions(batch=(1, 2, 4), cache=bundle.path.parent / "engines"),
            )
        return opened[name, device]

    return engine


def needs(engine: str) -> None:
    """Skip where no library of an engine is installed. Not importorskip: only the engines know how
    to import theirs without reporting it over the network."""
    libraries = {"tensorrt": tensorrt.PACKAGES, "torch-tensorrt": ["torch_tensorrt"]}
    if not any(map(importlib.util.find_spec, libraries.get(engine, [engine]))):
        pytest.skip(f"{engine} is not installed")


def assert_same(got: EngineOutput, expected: EngineOutput, *, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(got.score, expected.score, atol=atol, rtol=0)
    np.testing.assert_allclose(got.anomaly_map, expected.anomaly_map, atol=atol, rtol=0)
    np.testing.assert_allclose(got.parts, expected.parts, atol=atol, rtol=0)


# What an engine gives


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize(("name", "device"), ENGINES)
def test_outputs_are_those_of_the_closed_form(engines, name, device, rows) -> None:
    """In single precision: bfloat16 or TF32 would be off by a hundred times the tolerance."""
    frames, valid = toy_inputs(rows, seed=rows)
    assert_same(engines(name, device).run(frames, valid), toy_output(frames, valid))


@pytest.mark.parametrize(("name", "device"), ENGINES)
def test_outputs_do_not_depend_on_the_batch(engines, name, device) -> None:
    engine = engines(name, device)
    frames, valid = toy_inputs(5)
    together = engine.run(frames, valid)
    for row in range(5):
        alone = engine.run(frames[row : row + 1], valid[row : row + 1])
        np.testing.assert_allclose(alone.score[0], together.score[row], atol=1e-6)
        np.testing.assert_allclose(alone.anomaly_map[0], together.anomaly_map[row], atol=1e-6)


@pytest.mark.parametrize(("name", "device"), ENGINES)
def test_a_later_call_does_not_change_what_an_earlier_one_gave(engines, name, device) -> None:
    engine = engines(name, device)
    frames, valid = toy_inputs(2, seed=1)
    earlier = engine.run(frames, valid)
    copy = EngineOutput(earlier.score.copy(), earlier.anomaly_map.copy(), earlier.parts.copy())
    engine.run(255 - frames, valid)
    assert_same(earlier, copy, atol=0)


@pytest.mark.parametrize(("name", "device"), ENGINES)
def test_inputs_may_lie_in_memory_in_any_order_and_are_not_changed(engines, name, device) -> None:
    frames, valid = toy_inputs(3)
    channels_last = np.ascontiguousarray(frames.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    read_only = valid[::-1].copy()[::-1]
    channels_last.flags.writeable = read_only.flags.writeable = False
    assert_same(engines(name, device).run(channels_last, read_only), toy_output(frames, valid))
    np.testing.assert_array_equal(channels_last, frames)


@pytest.mark.parametrize(("name", "device"), ENGINES)
def test_inputs_of_another_form_are_the_callers_mistake(engines, name, device) -> None:
    engine = engines(name, device)
    frames, valid = toy_inputs(2)
    for wrong_frames, wrong_valid, message in (
        (frames.astype(np.float32), valid, "frames must be uint8"),
        (frames.transpose(0, 2, 3, 1), valid, "frames must be uint8"),
        (frames, valid.astype(np.uint8), "valid must be bool"),
        (frames, valid[:1], "valid must be bool"),
        (frames[:0], valid[:0], "at least one frame"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.run(wrong_frames, wrong_valid)


@pytest.mark.parametrize(("name", "device"), ENGINES)
def test_an_engine_says_what_it_is(engines, name, device) -> None:
    engine = engines(name, device)
    assert (engine.name, engine.device) == (name, device)
    assert engine.version[0].isdigit()


def test_openvino_gives_a_frame_that_comes_alone_all_its_threads(bundle: Bundle) -> None:
    build = BuildOptions(batch=(1, 1, 1))
    engine = open_engine(bundle, engine="openvino", build=build).engine
    assert isinstance(engine, OpenVinoEngine)
    assert len(engine._requests) == 1, "one stream has all threads"
    frames, valid = toy_inputs(3)
    assert_same(engine.run(frames, valid), toy_output(frames, valid))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_the_number_of_threads_does_not_change_a_score(bundle, name, threads) -> None:
    needs(name)
    frames, valid = toy_inputs(2)
    engine = open_engine(bundle, device="cpu", engine=name, threads=threads)
    assert_same(engine.run(frames, valid), toy_output(frames, valid))


class FailingRequest:
    """A request of OpenVINO whose frame cannot be computed where it is black."""

    def __init__(self) -> None:
        self.busy = False
        self.fails = False

    def start_async(self, inputs: dict[str, np.ndarray], share_inputs: bool) -> None:
        assert not self.busy, "a request was begun that is at work still"
        self.busy = True
        self.fails = not inputs["frames"].any()

    def wait(self) -> None:
        self.busy = False
        if self.fails:
            raise RuntimeError("no memory left")

    def get_tensor(self, name: str) -> SimpleNamespace:
        shapes = {"score": (1,), "map": (1, 64, 64), "parts": (1, 2)}
        return SimpleNamespace(data=np.ones(shapes[name], np.float32))


@pytest.mark.parametrize("black", range(5))
def test_openvino_takes_the_next_batch_after_one_with_a_frame_that_fails(black: int) -> None:
    compiled = SimpleNamespace(
        get_property=lambda _: 2, create_infer_request=lambda: FailingRequest()
    )
    engine = OpenVinoEngine(compiled, "1")
    frames, valid = toy_inputs(5)
    assert len(engine.run(frames, valid).score) == 5
    broken = frames.copy()
    broken[black] = 0
    with pytest.raises(EngineError, match=r"could not score a batch of 5: no memory left"):
        engine.run(broken, valid)
    assert len(engine.run(frames, valid).score) == 5


def test_output_arrays_of_another_form_are_refused() -> None:
    score, maps, parts = np.zeros(2, "f4"), np.zeros((2, 4, 4), "f4"), np.zeros((2, 1), "f4")
    EngineOutput(score, maps, parts)
    for wrong in (
        (score.astype("f2"), maps, parts),
        (score, maps[:1], parts),
        (score, maps[:, None], parts),
        (score, maps, parts[:, 0]),
    ):
        with pytest.raises(ValueError, match="must be float32"):
            EngineOutput(*wrong)


# Programs that are not one


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_program_that_is_not_onnx_is_told_on_one_line(tmp_path, name) -> None:
    needs(name)
    bundle = write_toy_bundle(tmp_path / "toy", program=b"no protobuf at all")
    with pytest.raises(EngineError, match=rf"{name} cannot .*program\.onnx") as caught:
        open_engine(bundle, engine=name, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_program_with_other_inputs_is_refused_by_name(tmp_path, name) -> None:
    needs(name)
    model = onnx.load_from_string(toy_program())
    model.graph.input[0].name = model.graph.node[0].input[0] = "images"
    bundle = write_toy_bundle(tmp_path / "toy", program=model.SerializeToString())
    with pytest.raises(EngineError, match="takes images, valid and gives map, parts, score"):
        open_engine(bundle, engine=name, device="cpu")


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_program_whose_map_has_another_size_is_refused(tmp_path, name) -> None:
    needs(name)
    golden = toy_golden()
    small = type(golden)(
        golden.frames, golden.valid, golden.score, golden.anomaly_map[:, ::2, ::2], golden.parts
    )
    bundle = write_toy_bundle(tmp_path / "toy", golden=small, map_size=[32, 32])
    with pytest.raises(EngineError, match=r"maps \[3, 64, 64\] for expected ones of \[3, 32, 32\]"):
        open_engine(bundle, engine=name, device="cpu")


# Libraries that are missing or broken


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_missing_library_is_a_sentence_that_says_what_to_install(
    bundle, name, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EngineError, match=f"{name} is not installed; pip install {name}"):
        open_engine(bundle, engine=name, device="cpu")
    info = {one.name: one for one in available() if one.device == "cpu"}[name]
    assert info == EngineInfo(
        name, "cpu", False, None, f"{name} is not installed; pip install {name}"
    )


@pytest.mark.parametrize(
    "failure",
    ["raise RuntimeError('bad driver\\nlong story')", "import no_such_dependency"],
    ids=["error at import", "dependency missing"],
)
def test_a_broken_library_is_passed_over_and_named(bundle, tmp_path, monkeypatch, failure) -> None:
    needs("onnxruntime")
    (tmp_path / "openvino.py").write_text(failure)
    monkeypatch.delitem(sys.modules, "openvino", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    engine = open_engine(bundle, device="cpu")
    assert engine.name == "onnxruntime"
    assert "openvino does not start" in engine.reason
    assert "\n" not in engine.reason


def test_importing_the_engines_imports_none_of_their_libraries() -> None:
    code = (
        "import sys, ccdstream.engine.select; "
        "print(sorted({'torch', 'onnxruntime', 'openvino', 'tensorrt'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_running_an_engine_reports_to_nobody(bundle, tmp_path, name) -> None:
    """Both libraries report their use over the network unless told not to, and keep an id of the
    machine in the home folder. (In CI they do not: hence the bare environment.)"""
    code = f"""
import sys
from pathlib import Path

def refuse_network(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "urllib.Request"):
        print("network:", event, args)

sys.addaudithook(refuse_network)
from ccdstream.bundle import load_bundle
from ccdstream.engine.select import available, check_parity, open_engine
available()
bundle = load_bundle(Path({str(bundle.path)!r}))
check_parity(open_engine(bundle, engine={name!r}, device="cpu"), bundle)
"""
    needs(name)
    home = tmp_path / "home"
    home.mkdir()
    keep = {key: os.environ[key] for key in ("PATH", "SYSTEMROOT") if key in os.environ}
    environment = {**keep, "HOME": str(home), "USERPROFILE": str(home), "LOCALAPPDATA": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout == ""
    assert [path.relative_to(home) for path in home.rglob("*")] == []


def test_opening_an_engine_writes_nothing_to_the_terminal(bundle) -> None:
    code = (
        "import sys; from pathlib import Path; from ccdstream.bundle import load_bundle; "
        "from ccdstream.engine.select import available, open_engine; "
        f"available(); open_engine(load_bundle(Path({str(bundle.path)!r})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


# The choice


def one_more(output: EngineOutput) -> EngineOutput:
    return EngineOutput(output.score + 1, output.anomaly_map, output.parts)


class FakeEngine:
    """Gives the closed form, changed by `distort`; remembers the sizes of its batches."""

    version = "1.0"

    def __init__(
        self,
        name: str = "fake",
        device: Device = "cpu",
        distort: Callable[[EngineOutput], EngineOutput] = lambda output: output,
    ) -> None:
        self.name = name
        self.device: Device = device
        self.distort = distort
        self.batches: list[int] = []

    def run(self, frames: np.ndarray, valid: np.ndarray) -> EngineOutput:
        self.batches.append(len(frames))
        return self.distort(toy_output(frames, valid))


def backend(name: str, device: Device, outcome: str) -> Backend:
    """An engine that works, is off, or cannot start for the reason given."""

    def open_it(bundle: Bundle, device: Device, **_: object) -> Engine:
        if outcome == "works":
            return FakeEngine(name, device)
        if outcome == "is off":
            return FakeEngine(name, device, one_more)
        raise EngineError(outcome)

    return Backend(name, device, open_it, list)


def test_the_first_that_works_is_taken(bundle) -> None:
    fast, slow = backend("fast", "cuda", "works"), backend("slow", "cpu", "works")
    engine = open_engine(bundle, backends=[fast, slow])
    assert (engine.name, engine.device, engine.passed_over) == ("fast", "cuda", ())
    assert engine.reason.startswith("fast 1.0 on cuda: largest differences over 3 golden frames")


def test_the_precision_is_told_of_engines_that_take_one_and_of_no_other(bundle) -> None:
    other = backend("whole", "cuda", "works")
    halves = replace(other, name="halves", takes_precision=True)
    build = BuildOptions("fp16")
    engine = open_engine(bundle, build=build, backends=[halves])
    assert engine.precision == "fp16"
    assert engine.reason.startswith("whole 1.0 on cuda in fp16: largest")
    engine = open_engine(bundle, build=build, backends=[other])
    assert engine.precision is None
    assert engine.reason.startswith("whole 1.0 on cuda: largest")


def test_what_is_passed_over_is_told_with_its_reason(bundle) -> None:
    engine = open_engine(
        bundle,
        backends=[
            backend("a", "cuda", "no GPU"),
            backend("b", "cuda", "no GPU"),
            backend("c", "cpu", "is off"),
            backend("d", "cpu", "works"),
        ],
    )
    assert engine.name == "d"
    assert engine.passed_over[:2] == (
        PassedOver("a", "cuda", "no GPU"),
        PassedOver("b", "cuda", "no GPU"),
    )
    assert ". Passed over a, b on cuda: no GPU; c on cpu: not in parity: " in engine.reason
    assert "score 1 (limit 0.0001)" in engine.reason


def test_a_device_that_is_asked_for_is_never_replaced(bundle) -> None:
    backends = [
        backend("a", "cuda", "a.so is missing; pip install a"),
        backend("b", "cpu", "works"),
    ]
    with pytest.raises(EngineError) as caught:
        open_engine(bundle, device="cuda", backends=backends)
    assert str(caught.value) == (
        f"no engine can run {bundle.model_id} on cuda: a on cuda: a.so is missing; pip install a. "
        "Use the CPU; ccdstream doctor shows what is here."
    )
    assert open_engine(bundle, device="cpu", backends=backends).name == "b"


def test_an_engine_that_is_asked_for_is_never_replaced(bundle) -> None:
    backends = [backend("a", "cpu", "is off"), backend("b", "cpu", "works")]
    with pytest.raises(EngineError, match=r"^a cannot run toy-\w+: a on cpu: not in parity"):
        open_engine(bundle, engine="a", backends=backends)
    assert open_engine(bundle, engine="b", backends=backends).passed_over == ()


def test_an_engine_without_the_device_that_is_asked_for_says_so(bundle) -> None:
    with pytest.raises(EngineError, match=r"openvino cannot run .* on cuda: it does not run on"):
        open_engine(bundle, engine="openvino", device="cuda")


def test_names_that_are_not_known_are_the_callers_mistake(bundle) -> None:
    with pytest.raises(ValueError, match="engine must be auto or one of tensorrt, torch, "):
        open_engine(bundle, engine="openvnio")
    with pytest.raises(ValueError, match="device must be auto, cpu or cuda"):
        open_engine(bundle, device="gpu")


def test_an_error_that_is_a_bug_is_not_taken_for_a_missing_engine(bundle) -> None:
    def broken(bundle: Bundle, device: Device, **_: object) -> Engine:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        open_engine(bundle, backends=[Backend("a", "cpu", broken, list)])


def test_this_machine_runs_the_toy_bundle(bundle) -> None:
    assert open_engine(bundle).parity.passed


def test_every_engine_is_listed_in_order_with_what_it_lacks() -> None:
    listed = available()
    assert [(one.name, one.device) for one in listed] == [(b.name, b.device) for b in BACKENDS]
    for one in listed:
        assert (one.version is not None) == one.installed
        assert bool(one.note) != one.installed


@pytest.mark.skipif(bool(find_gpus().found), reason="there is a GPU here")
def test_cuda_without_a_gpu_is_an_error_that_names_the_driver(bundle) -> None:
    with pytest.raises(EngineError, match=r"on cuda: .*NVIDIA driver.* Use the CPU"):
        open_engine(bundle, device="cuda")


@pytest.mark.cuda
def test_a_gpu_is_described_by_its_driver() -> None:
    gpus = find_gpus()
    assert gpus.problem == "" and gpus.cuda_version
    for gpu in gpus.found:
        assert gpu.name and gpu.compute_capability >= (5, 0) and gpu.memory_bytes > 2**30


def test_a_machine_without_a_gpu_says_why() -> None:
    gpus = find_gpus()
    assert bool(gpus.found) != bool(gpus.problem)


def test_a_bundle_is_only_read(bundle, engines) -> None:
    """No compiled file, cache or lock is left in what may be a read-only installation."""
    before = {path.name: path.stat().st_mtime_ns for path in Path(bundle.path).iterdir()}
    engines("openvino", "cpu")
    assert {path.name: path.stat().st_mtime_ns for path in bundle.path.iterdir()} == before


def test_a_signal_is_heard_after_an_engine_went_in_another_thread(tmp_path) -> None:
    """OpenVINO's plugin would take the stack for signals of the thread that opened it along."""
    write_toy_bundle(tmp_path / "toy")
    code = """
import signal, sys, threading
from pathlib import Path
from ccdstream.bundle import load_bundle
from ccdstream.engine.select import open_engine
held = [open_engine(load_bundle(Path(sys.argv[1])), engine="openvino", device="cpu")]
thread = threading.Thread(target=held.clear)
thread.start()
thread.join()
signal.signal(signal.SIGINT, lambda *_: print("heard"))
signal.raise_signal(signal.SIGINT)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "toy")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr
