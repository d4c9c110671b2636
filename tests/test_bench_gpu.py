"""What the GPU benchmark counts, notes and prints. Never how long anything took."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from ccdstream import sample
from ccdstream.bundle import Bundle, load_bundle
from ccdstream.engine.gpu import find_gpus
from ccdstream.engine.select import open_engine
from ccdstream.engine.torch_program import torch_program
from ccdstream.errors import EngineError
from ccdstream.frames import Colour, Frame
from tests.bundles import write_toy_bundle
from tools import bench_gpu
from tools.bench_gpu import (
    DRY,
    ENCODE,
    ENGINE,
    LIVE,
    RUN,
    RUN_NONE,
    VIEWED,
    Figure,
    Floors,
    Key,
    NotMeasured,
    Rows,
)
from tools.count_ops import Operator, Work, count

TINY = replace(DRY, sizes=((96, 128),), rates=(50,), batches=(1, 2))
FLOORS = Floors({"fp32": 100.0}, 50.0, {"fp32": [100.0], "copy": [50.0]})


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_toy_bundle(tmp_path_factory.mktemp("bench") / "toy")


def one_node(
    node: onnx.NodeProto, weights: np.ndarray, ins: list[int], outs: list[int], **more: np.ndarray
) -> bytes:
    """A program of one operator on the weights `w`, batch first and of any size."""
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *ins])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", *outs])],
        [numpy_helper.from_array(v, name) for name, v in {"w": weights, **more}.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


# -- counting -------------------------------------------------------------------------------------


def test_a_convolution_is_counted_by_its_closed_form() -> None:
    """8 filters of 3x3 over 4 channels in 2 groups, stride 2: 16x16 -> 8x8."""
    node = helper.make_node(
        "Conv", ["x", "w"], ["y"], strides=[2, 2], pads=[1, 1, 1, 1], group=2, name="conv"
    )
    weights = np.zeros((8, 2, 3, 3), np.float32)
    work = count(one_node(node, weights, [4, 16, 16], [8, 8, 8]), batch=3)
    values = 3 * 4 * 256 + 8 * 2 * 9 + 3 * 8 * 64
    assert work.operators == (Operator("conv", 2 * 3 * 8 * 64 * 2 * 9, 2 * values),)
    assert work.weights == 8 * 2 * 9
    assert work.ends_bytes == 4 * (3 * 4 * 256 + 3 * 8 * 64)
    assert work.upper_bytes == 4 * values
    assert work.lower_bytes == work.ends_bytes + 2 * values


def test_a_transposed_convolution_and_a_product_are_counted_as_torch_counts_them() -> None:
    turned = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])
    program = one_node(turned, np.zeros((4, 6, 2, 2), np.float32), [4, 5, 5], [6, 10, 10])
    with FlopCounterMode(display=False) as counted:
        torch.nn.ConvTranspose2d(4, 6, 2, stride=2)(torch.zeros(3, 4, 5, 5))
    assert count(program, 3).operations == counted.get_total_flops()
    product = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)
    bias = np.zeros(5, np.float32)
    program = one_node(product, np.zeros((5, 7), np.float32), [7], [5], b=bias)
    with FlopCounterMode(display=False) as counted:
        torch.nn.Linear(7, 5)(torch.zeros(3, 7))
    assert count(program, 3).operations == counted.get_total_flops()


@torch.no_grad()
def test_the_default_bundle_is_counted_as_torch_counts_the_same_program() -> None:
    bundle = load_bundle()
    program = bundle.program.read_bytes()
    module = torch_program(program)
    with FlopCounterMode(display=False) as counted:
        module(torch.zeros(2, 3, 256, 256, dtype=torch.uint8), torch.ones(2, 256, 256).bool())
    work = count(program, 2)
    assert work.operations == counted.get_total_flops()
    assert work.ends_bytes == 2 * (
        4 * 256 * 256 + 4 * (1 + 64 * 64 + len(bundle.manifest["parts"]))
    )
    assert work.lower_bytes < work.upper_bytes


def test_work_grows_with_the_batch_and_weights_do_not() -> None:
    program = load_bundle().program.read_bytes()
    one, eight = count(program, 1), count(program, 8)
    assert eight.operations == 8 * one.operations
    assert eight.weights == one.weights
    assert one.lower_bytes < eight.lower_bytes < 8 * one.lower_bytes


def test_a_shape_that_nothing_tells_is_an_error() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    model = onnx.load_from_string(
        one_node(node, np.zeros((1, 1, 1, 1), np.float32), [1, 4, 4], [1, 4, 4])
    )
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_param = "H"
    with pytest.raises(ValueError, match=r"the shape of 'x' does not follow from a batch of 2"):
        count(model.SerializeToString(), 2)


def test_the_floor_is_the_slower_of_arithmetic_and_memory() -> None:
    ops = (Operator("a", 1000, 10), Operator("b", 10, 300))
    work = Work(2, ops, weights=0, ends_bytes=90, upper_bytes=0, nodes=2)
    assert work.least_s(100.0, 50.0) == pytest.approx(10.1)  # 1010 / 100 against 400 / 50
    assert work.least_s(100.0, 10.0) == pytest.approx(40.0)
    assert work.least_s_in_turn(100.0, 50.0) == pytest.approx(10 + 300 / 50 + 90 / 50)
    assert FLOORS.frames_per_s(work, "fp32") == pytest.approx(2 / 10.1)


def test_each_precision_has_the_floor_of_its_own_arithmetic() -> None:
    on_gpu = Floors({"fp32": 1.0, "tf32": 4.0, "fp16": 8.0}, 1.0, {})
    assert [on_gpu.rate_of(p) for p in ("fp32", "fp16", "int8")] == [4.0, 8.0, 8.0]


# -- rows -----------------------------------------------------------------------------------------


KEYS = [Key("toy", ENGINE, "cuda", "tensorrt", "fp16", batch) for batch in (1, 8)]


def refuse() -> None:
    raise EngineError("tensorrt is not installed")


def crash() -> None:
    raise RuntimeError("illegal memory access")


def test_what_cannot_be_measured_is_a_row_that_says_why() -> None:
    rows = Rows()
    rows.fill(KEYS, refuse, lambda *_: pytest.fail("measured without an engine"))
    assert [rows.figures[key].why_not for key in KEYS] == 2 * ["tensorrt is not installed"]
    assert rows.failures() == []


def test_an_error_that_nobody_foresaw_ends_its_row_and_not_the_table() -> None:
    rows = Rows()
    rows.fill(KEYS[:1], lambda: 0, lambda *_: crash())
    rows.fill(KEYS[1:], lambda: 0, lambda *_: Figure((2.0,)))
    assert rows.figures[KEYS[0]].why_not == "RuntimeError: illegal memory access"
    assert rows.figures[KEYS[1]].median == 2.0
    assert rows.failures() == KEYS[:1]


def test_nothing_is_begun_when_the_time_is_up() -> None:
    rows = Rows(deadline=0.0)
    rows.fill(KEYS, lambda: pytest.fail("begun"), lambda *_: pytest.fail("begun"))
    assert {rows.figures[key].why_not for key in KEYS} == {"the time was up; go on with --resume"}


def test_a_later_call_measures_only_what_is_missing() -> None:
    earlier = {KEYS[0]: Figure((5.0,)), KEYS[1]: Figure(why_not="the time was up")}
    rows = Rows(figures=earlier)
    rows.fill(KEYS, lambda: 0, lambda _, key: Figure((float(key.batch),)))
    assert [rows.figures[key].median for key in KEYS] == [5.0, 8.0]
    full = Rows(figures=rows.figures)
    full.fill(KEYS, lambda: pytest.fail("opened for nothing"), lambda *_: pytest.fail("again"))
    assert full.figures == rows.figures


def document_of(rows: Rows) -> dict:
    same = {"commit": "c", "machine": {"gpu": "g"}, "device": "cpu", "dry_run": True}
    return json.loads(
        json.dumps(
            {
                **same,
                "versions": {"torch": "1"},
                "rows": [
                    {"key": bench_gpu.asdict(key), "figure": bench_gpu.asdict(figure)}
                    for key, figure in rows.figures.items()
                ],
            }
        )
    )


def test_figures_come_back_from_their_file_as_they_were() -> None:
    rows = Rows()
    key = Key("toy", LIVE, "cpu", "auto", "fp32", 1, (96, 128), 25)
    rows.fill([key], lambda: 0, lambda *_: Figure(latency_ms={"p50": 1.0, "p95": 2.0, "p99": 3.0}))
    rows.fill(KEYS, refuse, lambda *_: Figure())
    kept = document_of(rows)
    assert bench_gpu.earlier_figures(kept, kept) == rows.figures


def test_figures_of_another_machine_are_not_gone_on_with() -> None:
    kept = document_of(Rows())
    with pytest.raises(NotMeasured, match=r"machine was \{'gpu': 'g'\} and is \{'gpu': 'h'\}"):
        bench_gpu.earlier_figures(kept, kept | {"machine": {"gpu": "h"}})


# -- time -----------------------------------------------------------------------------------------


def still(number: int) -> Frame:
    grey = np.full((4, 4), 128, np.uint8)
    half = np.full((2, 2), 128, np.uint8)
    return Frame(grey, half, half, number, Fraction(1, 25), Colour("bt601", full_range=False))


def test_a_frame_waits_behind_a_slow_one_and_that_counts() -> None:
    """At 10 a second with 50 ms of work, but 250 ms for the first: the queue takes two frames."""
    clock = [0.0]
    work_s = iter([0.25, 0.05, 0.05, 0.05, 0.05])

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    frames = (still(number) for number in range(10))
    found = bench_gpu.latencies_ms(
        frames, 10, 5, lambda _: sleep(next(work_s)), now=lambda: clock[0], sleep=sleep
    )
    assert found == pytest.approx([250, 200, 150, 100, 50])
    assert bench_gpu.percentiles([*range(101)]) == {"p50": 50.0, "p95": 95.0, "p99": 99.0}


def test_a_rate_is_what_the_calls_of_a_round_did(monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds_for(call: Callable[[], object], times: int, _: torch.device) -> float:
        call()
        return 0.1 * times

    calls: list[int] = []
    monkeypatch.setattr(bench_gpu, "seconds_for", seconds_for)
    plan = replace(DRY, rounds=3, round_s=1.0)
    found = bench_gpu.rates(lambda: calls.append(1), 8, plan, torch.device("cpu"))
    assert found == pytest.approx([80.0] * 3)
    assert len(calls) == bench_gpu.WARM_UP + 1 + 3


def test_a_clip_goes_there_and_back_and_its_time_goes_on() -> None:
    clip = bench_gpu.Clip(Path("none.mp4"), [still(n) for n in range(3)], None)  # type: ignore[arg-type]
    assert [frame.pts for frame in islice(clip.frames(), 6)] == [*range(6)]
    planes = [id(frame.y) for frame in islice(clip.frames(), 5)]
    assert planes == [id(clip.drawn[n].y) for n in (0, 1, 2, 1, 0)]


# -- engines --------------------------------------------------------------------------------------


class OnDevice:
    """An engine that takes tensors; the CPU stands for its GPU."""

    device, max_batch, called = "cpu", 2, 0

    def run_on_device(self, frames: torch.Tensor, valid: torch.Tensor) -> None:
        assert (frames.dtype, tuple(frames.shape)) == (torch.uint8, (2, 3, 256, 256))
        assert (valid.dtype, tuple(valid.shape)) == (torch.bool, (2, 256, 256))
        self.called += 1


def test_an_engine_of_a_gpu_is_timed_on_what_is_there_already() -> None:
    engine = OnDevice()
    assert len(bench_gpu.engine_rates(engine, 2, DRY)) == DRY.rounds
    assert engine.called > DRY.rounds
    with pytest.raises(NotMeasured, match="takes 2 frames in a call at most"):
        bench_gpu.engine_rates(engine, 8, DRY)


class ToyOnDevice:
    """The toy program by torch, as an engine that takes tensors of a GPU; the CPU stands for it."""

    name, device, max_batch = "toy", "cpu", 8

    def __init__(self, bundle: Bundle) -> None:
        self.program = torch_program(bundle.program.read_bytes())
        self.scores: list[torch.Tensor] = []

    def run_on_device(
        self, frames: torch.Tensor, valid: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        outputs = self.program(frames, valid)
        self.scores.append(outputs[0])
        return outputs


def test_with_the_view_on_the_device_the_scores_are_those_of_the_host(toy: Bundle) -> None:
    frames = list(islice(sample.frames(sample.SampleOptions(seconds=1, size=(96, 128))), 2))
    pictures = [frame for frame, _ in frames]
    engine = SimpleNamespace(name="toy", engine=ToyOnDevice(toy))
    bench_gpu.device_route(toy, engine, torch.device("cpu"))(pictures)
    with_host = bench_gpu.host_route(toy, open_engine(toy, device="cpu"))(pictures)
    wanted = [scored.raw for scored in with_host]
    assert engine.engine.scores[0].tolist() == pytest.approx(wanted, abs=1e-3)


def test_an_engine_for_the_host_has_no_view_on_a_gpu(toy: Bundle) -> None:
    with pytest.raises(NotMeasured, match="takes nothing from a GPU's memory"):
        bench_gpu.device_route(toy, open_engine(toy, device="cpu"), torch.device("cpu"))


def test_every_engine_and_precision_has_rows_wherever_this_runs() -> None:
    for device in ("cpu", "cuda"):
        rows = bench_gpu.engines_to_measure(device)
        assert len(rows) == len(set(rows))
        for name in ("tensorrt", "torch-tensorrt", "torch"):
            assert {p for n, _, p in rows if n == name} == {"fp32", "fp16", "int8"}
    assert ("openvino", "cpu", "fp32") in bench_gpu.engines_to_measure("cpu")


def test_an_engine_that_this_version_has_not_is_said_to_be_missing() -> None:
    with pytest.raises(NotMeasured, match="this version has no engine of that name"):
        bench_gpu.opened(load_bundle(), "abacus", "cpu", "fp32", DRY, None)


# -- a small table --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def benched(
    toy: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, str, Rows]]:
    """Everything that is measured on the CPU, with the toy bundle in place of both."""
    out = tmp_path_factory.mktemp("benched")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_gpu, "load_bundle", lambda: toy)
        patch.setattr(bench_gpu, "write_random_bundle", lambda path, _: write_toy_bundle(path))
        text, rows = bench_gpu.bench(
            out, "cpu", TINY, command="bench", commit="c0ffee", dry_run=True
        )
    yield out, text, rows


@pytest.fixture
def rows(benched: tuple[Path, str, Rows]) -> Rows:
    return benched[2]


def test_a_bench_leaves_its_table_and_its_figures(benched: tuple[Path, str, Rows]) -> None:
    out, text, rows = benched
    assert (out / "bench.md").read_text(encoding="utf-8") == text
    assert "**A dry run: it shows that the way is open, and no figure means anything.**" in text
    assert "commit c0ffee" in text
    document = json.loads((out / "bench.json").read_text(encoding="utf-8"))
    assert bench_gpu.earlier_figures(document, document) == rows.figures
    assert document["floors"]["operations_per_s"]["fp32"] > 0
    assert document["works"]["default"]["2"]["operations"] == 2 * 2 * 256 * 256 * 3
    assert set(document["machine"]) == {"gpu", "cpu"}


def test_on_a_cpu_all_ways_are_gone_and_the_gpus_say_why_not(rows: Rows) -> None:
    assert rows.failures() == []
    measured = {
        (key.stage, key.device) for key, figure in rows.figures.items() if not figure.why_not
    }
    stages = {"decode", ENCODE, ENGINE, VIEWED, RUN_NONE, RUN, LIVE}
    assert measured == {(stage, "cpu") for stage in stages}
    on_gpu = {key.stage: f.why_not for key, f in rows.figures.items() if key.device == "cuda"}
    assert set(on_gpu) == stages - {RUN_NONE, RUN}
    why = find_gpus().problem or "measured on cpu only, as asked"
    assert set(on_gpu.values()) == {why}


def test_the_table_has_every_row_once(rows: Rows, toy: Bundle) -> None:
    works = {"default": {n: count(toy.program.read_bytes(), n) for n in TINY.batches}}
    lines = bench_gpu.table(rows.figures, FLOORS, works)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {len(row) for row in cells} == {len(bench_gpu.COLUMNS)}
    body = [dict(zip(bench_gpu.COLUMNS, row, strict=True)) for row in cells[2:]]
    measured = [f for f in rows.figures.values() if not f.why_not]
    missing = [row for row in body if row["frames/s (least to most)"].startswith("not measured: ")]
    assert len(body) == len(measured) + len(missing)
    tensorrt = [row for row in missing if row["engine"] == "tensorrt"]
    both = [(name, "fp32, fp16, int8", "1, 2") for name in ("default", "smoke")]
    assert [(r["program"], r["precision"], r["batch"]) for r in tensorrt] == both
    openvino = next(row for row in body if row["engine"] == "openvino" and row["batch"] == "2")
    figure = rows.figures[Key("default", ENGINE, "cpu", "openvino", "fp32", 2)]
    floor = FLOORS.frames_per_s(works["default"][2], "fp32")
    assert openvino["of the floor"] == f"{figure.median / floor:.3f}"


def test_a_run_is_held_against_the_slowest_of_its_parts() -> None:
    size = (96, 128)
    run, none = (Key("toy", stage, "cuda", "auto", "fp16", size=size) for stage in (RUN, RUN_NONE))
    figures = {
        Key("-", "decode", "cpu", size=size): Figure((50.0,)),
        Key("-", "decode", "cuda", size=size): Figure((200.0,)),
        Key("-", ENCODE, "cpu", size=size): Figure((40.0,)),
        Key("-", ENCODE, "cpu", size=(8, 8)): Figure((1.0,)),
        Key("toy", VIEWED, "cuda", "auto", "fp16", 1, size): Figure((90.0,)),
        Key("toy", VIEWED, "cuda", "auto", "fp16", 8, size): Figure((100.0,)),
        Key("other", VIEWED, "cuda", "auto", "fp16", 8, size): Figure((2.0,)),
        run: Figure((36.0,)),
        none: Figure((90.0,)),
    }
    assert bench_gpu.slowest_part(run, figures) == (ENCODE, 40.0)
    assert bench_gpu.slowest_part(none, figures) == (VIEWED, 100.0)
    lines = bench_gpu.table(figures, FLOORS, {})
    assert "| 0.90 (encode) |" in lines[-2]
    assert "| 0.90 (view and engine) |" in lines[-1]
    figures[Key("-", ENCODE, "cpu", size=size)] = Figure(why_not="no")
    assert bench_gpu.slowest_part(run, figures) is None


def test_without_a_gpu_asking_for_one_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        bench_gpu.main(["--out", str(tmp_path / "out"), "--device", "cuda"])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert said.endswith("Use --device cpu, or --dry-run.\n")
    assert not (tmp_path / "out").exists()
