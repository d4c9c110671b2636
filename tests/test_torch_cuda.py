"""The torch engine gives what the program means, on the CPU in place of a GPU."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import sleep
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ccdstream.bundle import Bundle, load_bundle
from ccdstream.engine import torch_cuda
from ccdstream.engine.base import BuildOptions
from ccdstream.engine.cuda import BatchedEngine, GpuQueue, HostQueue
from ccdstream.engine.gpu import find_gpus
from ccdstream.engine.parity import check_parity
from ccdstream.engine.torch_cuda import make_engine
from ccdstream.errors import EngineError
from tests.bundles import toy_golden, toy_inputs, toy_output, toy_program, write_toy_bundle

SINGLE = BuildOptions("fp32", (1, 2, 4))


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> BatchedEngine:
    return make_engine(bundle, HostQueue(), SINGLE)


@pytest.mark.parametrize("rows", [1, 4, 9])
def test_outputs_are_those_of_the_closed_form(engine, rows) -> None:
    frames, valid = toy_inputs(rows, seed=rows)
    got, expected = engine.run(frames, valid), toy_output(frames, valid)
    np.testing.assert_allclose(got.score, expected.score, atol=1e-5)
    np.testing.assert_allclose(got.anomaly_map, expected.anomaly_map, atol=1e-5)
    np.testing.assert_allclose(got.parts, expected.parts, atol=1e-5)


def test_views_on_the_device_are_scored_there(engine) -> None:
    frames, valid = toy_inputs(3)
    score, anomaly_map, parts = engine.run_on_device(
        torch.from_numpy(frames), torch.from_numpy(valid)
    )
    expected = toy_output(frames, valid)
    np.testing.assert_allclose(score.numpy(), expected.score, atol=1e-5)
    np.testing.assert_allclose(anomaly_map.numpy(), expected.anomaly_map, atol=1e-5)
    np.testing.assert_allclose(parts.numpy(), expected.parts, atol=1e-5)


def test_inputs_may_be_read_only_and_in_any_order_of_memory(engine) -> None:
    frames, valid = toy_inputs(2)
    turned = np.ascontiguousarray(frames.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    turned.flags.writeable = False
    np.testing.assert_allclose(
        engine.run(turned, valid).score, toy_output(frames, valid).score, atol=1e-5
    )


def test_it_says_what_it_is(engine) -> None:
    assert (engine.name, engine.device, engine.version) == (
        "torch",
        "cpu",
        torch.__version__.split("+")[0],
    )
    assert engine.max_batch == 4


def test_half_precision_passes_the_parity_gate_of_the_toy(bundle) -> None:
    engine = make_engine(bundle, HostQueue(), replace(SINGLE, precision="fp16"))
    assert check_parity(engine, bundle).passed


def test_the_default_bundle_passes_the_parity_gate() -> None:
    bundle = load_bundle()
    engine = make_engine(bundle, HostQueue(), SINGLE)
    parity = check_parity(engine, bundle)
    assert parity.passed, str(parity)


def test_the_switches_of_torch_are_as_they_were(engine) -> None:
    before = torch.backends.cudnn.allow_tf32, torch.is_grad_enabled()
    engine.run(*toy_inputs(1))
    assert (torch.backends.cudnn.allow_tf32, torch.is_grad_enabled()) == before


def test_single_precision_is_not_rounded_to_tf32_on_the_way(bundle) -> None:
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, frames, valid):
            seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cudnn.enabled))
            rows = len(frames)
            return torch.zeros(rows), torch.zeros(rows, 64, 64), torch.zeros(rows, 2)

    work = torch_cuda.module_work(Spy())
    BatchedEngine("spy", "1", work, HostQueue(), bundle, batch=(1, 1, 1)).run(*toy_inputs(1))
    assert seen == [(False, True)]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_nothing_of_the_default_bundle_touches_the_host_while_it_runs(precision) -> None:
    """A CUDA graph records no copy from pageable memory and no value that decides what comes next.
    Tensors without content, said to be on a GPU, show both without one."""
    bundle = load_bundle()
    program = torch_cuda.floating_program("torch", bundle, BuildOptions(precision))
    module = torch_cuda.torch_module("torch", program, HostQueue())
    devices = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            result = operator(*args, **(kwargs or {}))
            leaves = tree_leaves((args, kwargs, result))
            devices.update(leaf.device for leaf in leaves if isinstance(leaf, torch.Tensor))
            return result

    def on_gpu(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="cuda:0")

    with FakeTensorMode():
        state = {
            name: on_gpu(tuple(value.shape), value.dtype)
            for name, value in [*module.named_parameters(), *module.named_buffers()]
        }
        frames = on_gpu((2, 3, 256, 256), torch.uint8)
        valid = on_gpu((2, 256, 256), torch.bool)
        with Watch(), torch.no_grad():
            score, _, _ = torch.func.functional_call(module, state, (frames, valid))
    assert state and score.shape == (2,)
    assert devices == {torch.device("cuda:0")}


def test_8_bits_are_refused(bundle) -> None:
    with pytest.raises(EngineError, match="torch computes in fp16 or fp32; int8 is for tensorrt"):
        make_engine(bundle, HostQueue(), replace(SINGLE, precision="int8"))


def test_a_map_of_another_size_than_the_bundles_is_an_error(tmp_path: Path) -> None:
    golden = toy_golden()
    small = replace(golden, anomaly_map=golden.anomaly_map[:, ::2, ::2])
    bundle = write_toy_bundle(tmp_path / "toy", golden=small, map_size=[32, 32])
    engine = make_engine(bundle, HostQueue(), SINGLE)
    with pytest.raises(
        EngineError, match=r"gives \[1, 64, 64\] where the bundle says \[1, 32, 32\]"
    ):
        engine.run(*toy_inputs(1))


def test_a_failure_of_the_device_is_told_on_one_line(tmp_path: Path) -> None:
    class Failing(torch.nn.Module):
        def forward(self, frames, valid):
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    bundle = write_toy_bundle(tmp_path / "toy")
    engine = BatchedEngine(
        "torch", "2", torch_cuda.module_work(Failing()), HostQueue(), bundle, batch=(1, 2, 2)
    )
    with pytest.raises(EngineError, match=r"could not score a batch of 2: CUDA out of memory\.$"):
        engine.run(*toy_inputs(2))


def test_an_operator_that_torch_does_not_know_is_an_error(tmp_path: Path) -> None:
    model = onnx.load_from_string(toy_program())
    model.graph.node[2].op_type = "Einsum"
    bundle = write_toy_bundle(tmp_path / "toy", program=model.SerializeToString())
    with pytest.raises(EngineError, match="Einsum"):
        make_engine(bundle, HostQueue(), SINGLE)


def test_it_runs_on_a_gpu_only(bundle) -> None:
    with pytest.raises(EngineError, match="torch runs on cuda only, not on cpu"):
        torch_cuda.open_engine(bundle, "cpu")


@pytest.mark.skipif(bool(find_gpus().found), reason="there is a GPU here")
def test_without_a_gpu_it_says_so(bundle) -> None:
    with pytest.raises(EngineError, match="NVIDIA driver"):
        torch_cuda.open_engine(bundle, "cuda")
    (info,) = torch_cuda.probe()
    assert not info.installed and "NVIDIA driver" in info.note


@pytest.mark.skipif(bool(find_gpus().found), reason="there is a GPU here")
def test_a_gpu_that_torch_cannot_use_is_an_error_that_another_engine_can_follow() -> None:
    with pytest.raises(EngineError, match=r"torch cannot use GPU 0 \(.+\)"):
        GpuQueue(0)


def test_one_graph_at_a_time_is_recorded_in_a_process(monkeypatch) -> None:
    recording = 0

    @contextmanager
    def graph(*_: object, **__: object) -> Iterator[None]:
        nonlocal recording
        recording += 1
        assert recording == 1
        sleep(0.01)  # for the other thread to come in between
        yield
        recording -= 1

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    monkeypatch.setattr(torch.cuda, "graph", graph)
    queues = [GpuQueue.__new__(GpuQueue) for _ in range(2)]
    for queue in queues:
        queue._stream = queue._graph_memory = None
    with ThreadPoolExecutor(2) as pool:
        for again in pool.map(lambda queue: queue.recorded(lambda: None), queues):
            again()


# What only a GPU can show


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_default_bundle_passes_the_parity_gate_on_the_gpu(precision) -> None:
    bundle = load_bundle()
    engine = torch_cuda.open_engine(bundle, "cuda", build=BuildOptions(precision))
    parity = check_parity(engine, bundle)
    assert parity.passed, str(parity)


@pytest.mark.cuda
def test_a_graph_computes_anew_and_in_the_order_of_the_callers_stream(bundle) -> None:
    engine = torch_cuda.open_engine(bundle, "cuda", build=SINGLE)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for seed in range(8):
            frames, valid = toy_inputs(2, seed=seed)
            given = torch.zeros(2, 3, 256, 256, dtype=torch.uint8, device="cuda")
            torch.cuda._sleep(10_000_000)  # the copy is late, and the engine must wait for it
            given.copy_(torch.from_numpy(frames))
            score, _, _ = engine.run_on_device(given, torch.from_numpy(valid).cuda())
            given.zero_()
            expected = toy_output(frames, valid).score
            np.testing.assert_allclose(score.cpu().numpy(), expected, atol=1e-5)


@pytest.mark.cuda
def test_work_is_recorded_while_another_thread_uses_the_gpu() -> None:
    import threading

    stop = threading.Event()

    def allocate() -> None:
        sizes = iter(range(1, 1 << 30))
        while not stop.is_set():
            torch.empty(next(sizes) << 12, dtype=torch.uint8, device="cuda").fill_(1).sum().item()

    queue = GpuQueue()
    x = torch.ones(1 << 20, device="cuda")
    thread = threading.Thread(target=allocate)
    thread.start()
    try:
        for _ in range(20):
            with queue.entered():
                again = queue.recorded(lambda: x.add_(1.0))
                again()
    finally:
        stop.set()
        thread.join()
    torch.cuda.synchronize()
    assert x.unique().tolist() == [1.0 + 20 * 4]  # two warm-ups, once after recording, once again
