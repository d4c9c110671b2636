"""Programs rewritten to other precisions: what is rewritten, and how little the outputs move."""

import sys
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from ccdstream.bundle import load_bundle
from ccdstream.engine.base import OUTPUTS, CalibrationViews
from ccdstream.engine.precision import program_in
from ccdstream.errors import EngineError
from ccdstream.packaged import REFERENCE

FLOATS = {TensorProto.FLOAT: "single", TensorProto.FLOAT16: "half"}


def outputs(program: bytes, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    got: list[np.ndarray] = onnxruntime.InferenceSession(program, options).run(None, feeds)
    return got


def kinds(model: onnx.ModelProto) -> dict[str, Counter[str]]:
    """Operator -> how many of its nodes give single and half numbers."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    types = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    types |= {v.name: v.type.tensor_type.elem_type for v in inferred.graph.output}
    found: dict[str, Counter[str]] = {}
    for node in inferred.graph.node:
        kind = FLOATS.get(types.get(node.output[0], 0), "other")
        found.setdefault(node.op_type, Counter())[kind] += 1
    return found


def small_program() -> bytes:
    """x -> conv -> relu -> conv -> y; residual (x - y)**2 blurred by a window; y * y."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.normal(size=(4, 3, 3, 3)).astype(np.float16).astype(np.float32),
        "b1": rng.normal(size=4).astype(np.float32),
        "w2": rng.normal(size=(3, 4, 3, 3)).astype(np.float16).astype(np.float32),
        "window": np.full((1, 3, 3, 3), 1 / 27, np.float32) + np.float32(0.001),
    }
    same = {"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], name="first", **same),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="second", **same),
        helper.make_node("Tanh", ["c"], ["y"]),
        helper.make_node("Sub", ["x", "y"], ["d"]),
        helper.make_node("Mul", ["y", "y"], ["square"]),
        helper.make_node("Add", ["square", "d"], ["e"]),
        helper.make_node("Conv", ["e", "window"], ["out"], name="blur", **same),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [
            helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 1, 8, 8]),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, ["n", 4, 8, 8]),
        ],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return model.SerializeToString()


def test_single_precision_is_the_program_itself() -> None:
    program = small_program()
    assert program_in("fp32", program) is program


def test_trained_products_and_what_lies_between_them_compute_in_half_and_nothing_else() -> None:
    found = kinds(onnx.load_from_string(program_in("fp16", small_program())))
    assert found["Conv"] == {"half": 2, "single": 1}  # the window is not exact in half
    assert found["Relu"] == {"half": 1}
    for operator in ("Tanh", "Sub", "Mul", "Add"):  # behind the last product
        assert found[operator] == {"single": 1}


def test_half_precision_moves_the_outputs_by_no_more_than_its_rounding() -> None:
    x = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)
    program = small_program()
    expected = outputs(program, {"x": x})
    got = outputs(program_in("fp16", program), {"x": x})
    for one, other in zip(got, expected, strict=True):
        assert 0 < np.abs(one - other).max() < 0.02 * np.abs(other).max()


@pytest.mark.parametrize("epsilon", [1e-5, 1e-3])
def test_a_batch_norm_between_products_becomes_a_product_and_a_sum(epsilon: float) -> None:
    model = onnx.load_from_string(small_program())
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    rng = np.random.default_rng(2)
    values = {
        "gamma": rng.normal(size=4), "beta": rng.normal(size=4), "mean": rng.normal(size=4),
        "variance": rng.uniform(0.001, 2, size=4),
    }  # fmt: skip
    model.graph.initializer.extend(
        numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()
    )
    norm = helper.make_node(
        "BatchNormalization", ["a", *values], ["normed"], name="norm", epsilon=epsilon
    )
    relu.input[0] = "normed"
    model.graph.node.insert(1, norm)
    program = model.SerializeToString()
    half = program_in("fp16", program)
    assert "BatchNormalization" not in kinds(onnx.load_from_string(half))
    x = rng.normal(size=(2, 3, 8, 8)).astype(np.float32)
    for one, other in zip(outputs(half, {"x": x}), outputs(program, {"x": x}), strict=True):
        assert np.abs(one - other).max() < 0.02 * np.abs(other).max()


def test_the_reference_in_half_stays_within_its_parity_limits() -> None:
    bundle = load_bundle(REFERENCE.path)
    golden = bundle.golden
    half = program_in("fp16", bundle.program.read_bytes())
    model = onnx.load_from_string(half)
    convolutions = kinds(model)["Conv"]
    assert convolutions["half"] > 80 and convolutions["single"] == 16  # the windows of SSIM
    session = onnxruntime.InferenceSession(half)
    score, anomaly_map, _ = session.run(OUTPUTS, {"frames": golden.frames, "valid": golden.valid})
    assert np.abs(score - golden.score).max() <= bundle.parity["score_abs"]
    assert np.abs(anomaly_map - golden.anomaly_map).max() <= bundle.parity["map_abs"]


def test_int8_quantises_all_but_the_encoders_as_tensorrt_reads_it(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Signed, zero points of zero, no quantised bias; encoders in half, windows single."""
    bundle = load_bundle(REFERENCE.path)
    views = CalibrationViews(bundle.golden.frames[:1], bundle.golden.valid[:1])
    model = onnx.load_from_string(program_in("int8", bundle.program.read_bytes(), views))
    onnx.checker.check_model(model)
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    quantised = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    made = {node.output[0] for node in quantised}
    for node in quantised:
        zero = weights[node.input[2]]
        assert zero.dtype == np.int8 and not zero.any()
    products = [node for node in model.graph.node if node.op_type == "Conv"]
    in_8_bits = [node for node in products if node.input[1] in made]
    trained = ("decoder", "localiser")
    assert len(in_8_bits) == 27
    assert all(any(name in node.input[1] for name in trained) for node in in_8_bits)
    in_half = [node for node in products if weights.get(node.input[1], np.zeros(0)).dtype == "f2"]
    assert all("backbone" in node.input[1] for node in in_half)
    assert len(products) - len(in_8_bits) - len(in_half) == 16
    assert not any(node.input[2] in made for node in products if len(node.input) > 2)
    assert capfd.readouterr() == ("", "")


def test_int8_without_calibration_views_says_what_it_needs() -> None:
    with pytest.raises(EngineError, match="int8 needs views of normal frames"):
        program_in("int8", small_program())


def test_quantising_needs_onnxruntime_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    golden = load_bundle(None).golden
    with pytest.raises(EngineError, match="onnxruntime is not installed"):
        program_in("int8", small_program(), CalibrationViews(golden.frames, golden.valid))
