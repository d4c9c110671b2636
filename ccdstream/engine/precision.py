"""A bundle's program rewritten to compute in another precision: ONNX in, ONNX out.

Every engine that compiles for a GPU gets the same rewritten graph, and the parity gate holds what
comes of it against the graph that was shipped.

fp16    Convolutions and matrix products whose weights half precision holds exactly (the trainer
        rounds every trained weight so; a window of SSIM is no such weight), and what lies between
        them, compute in half. Everything else stays single: normalisation, residual maps, variances
        that are differences of nearly equal numbers, distances, standardised terms.
int8    The decoders' convolutions, where most of the arithmetic is, from 8-bit activations and
        weights: signed, symmetric, weights by channel, biases left alone, ranges read off views of
        normal frames; what TensorRT's parser takes. Everything else as for fp16. The encoders are
        left out because distances between their features do not survive 8 bits.
"""

import io
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ccdstream.engine.base import CalibrationViews, Precision, import_library, one_line
from ccdstream.errors import EngineError

_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_BETWEEN = frozenset({
    "Add", "AveragePool", "BatchNormalization", "Clip", "Concat", "Flatten", "Gather",
    "GlobalAveragePool", "HardSigmoid", "HardSwish", "LeakyRelu", "MaxPool", "Mul", "Pad",
    "ReduceMean", "Relu", "Reshape", "Resize", "Sigmoid", "Slice", "Split", "Squeeze", "Tanh",
    "Transpose", "Unsqueeze",
})  # fmt: skip
"""What computes in half where it lies between products that do: activations, shapes, pooling."""

_WITH_SHAPES = frozenset({
    "Gather", "ReduceMean", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Unsqueeze"
})  # fmt: skip
"""Of these the first input alone is of the precision: others are shapes, axes or scales."""

_ENCODER = ".backbone."
"""In the names of an encoder's weights, and of no other's, as `trainer` exports them."""

_CALIBRATION_BATCH = 4


def program_in(
    precision: Precision, program: bytes, calibration: CalibrationViews | None = None
) -> bytes:
    """The program, its networks computing in `precision`. Inputs and outputs stay what they are.

    Args:
        program: an ONNX file as `trainer` exports it.
        calibration: views of normal frames; needed for int8.

    Raises:
        EngineError: int8 is asked for without calibration views, or onnxruntime, which quantises,
            is not installed or cannot.
    """
    if precision == "fp32":
        return program
    model = _with_plain_weights(program)
    if precision == "int8":
        if calibration is None:
            raise EngineError(
                "int8 needs views of normal frames to learn its ranges from. Give them with "
                "--calibration FOLDER, or use fp16."
            )
        model = _in_int8(model, calibration)
    return bytes(_in_half(model).SerializeToString())


def _with_plain_weights(program: bytes) -> onnx.ModelProto:
    """The model with weights that are stored in half as single ones, without their Cast."""
    model = onnx.load_from_string(program)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in list(model.graph.node):
        if node.op_type != "Cast" or node.input[0] not in weights:
            continue
        to = helper.tensor_dtype_to_np_dtype(node.attribute[0].i)
        value = numpy_helper.to_array(weights[node.input[0]]).astype(to)
        model.graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
        model.graph.node.remove(node)
    return _without_unused_weights(model)


def _without_unused_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [t for t in model.graph.initializer if t.name not in used]:
        model.graph.initializer.remove(tensor)
    return model


def _products(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The convolutions and matrix products with trained weights."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    return [
        node
        for node in model.graph.node
        if node.op_type in _PRODUCTS
        and node.input[1] in weights
        and _is_trained(numpy_helper.to_array(weights[node.input[1]]))
    ]


def _is_trained(weight: np.ndarray) -> bool:
    """Whether half precision holds a kernel exactly, and it is no mere sum of what it covers."""
    with np.errstate(over="ignore"):
        exact = np.array_equal(weight.astype(np.float16).astype(weight.dtype), weight)
    return exact and bool((weight != weight.flat[0]).any())


# --- half precision --------------------------------------------------------------------------


def _in_half(model: onnx.ModelProto) -> onnx.ModelProto:
    graph = model.graph
    half = _half_nodes(model)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    made = {name for number in half for name in graph.node[number].output}
    nodes: list[onnx.NodeProto] = []
    halves: dict[str, str] = {}
    """Single value or weight -> the same in half."""

    def in_half(name: str) -> str:
        if name not in halves:
            halves[name] = f"{name}.fp16"
            if name in weights:
                with np.errstate(over="ignore"):
                    value = weights[name].astype(np.float16)
                graph.initializer.append(numpy_helper.from_array(value, halves[name]))
            elif name not in made:
                nodes.append(_cast(name, halves[name], TensorProto.FLOAT16))
        return halves[name]

    wanted_single = {o.name for o in graph.output} | {
        name for number, node in enumerate(graph.node) if number not in half for name in node.input
    }
    for number, node in enumerate(graph.node):
        if number not in half:
            nodes.append(node)
            continue
        for one in _as_scale(node, weights, graph) if _is_batch_norm(node) else [node]:
            for index in _number_inputs(one, weights):
                one.input[index] = in_half(one.input[index])
            for index, name in enumerate(one.output):
                if name not in made:  # inside a node that became two
                    halves[name] = name
                    continue
                one.output[index] = halves.setdefault(name, f"{name}.fp16")
                if name in wanted_single:
                    nodes += [one, _cast(one.output[index], name, TensorProto.FLOAT)]
                    break
            else:
                nodes.append(one)
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]  # told the types that values had
    _without_unused_weights(model)
    onnx.checker.check_model(model)
    return model


def _half_nodes(model: onnx.ModelProto) -> set[int]:
    """Numbers of the nodes that compute in half: products, and what lies between two of them.

    A node lies between where everything it takes was made in half, and something that takes its
    output, at last a product, computes in half.
    """
    nodes = list(model.graph.node)
    products = {node.output[0] for node in _products(model)}
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    able: set[int] = set()
    made: set[str] = set()
    for number, node in enumerate(nodes):
        taken = [node.input[i] for i in _number_inputs(node, weights)]
        moving = [name for name in taken if name not in weights]
        between = node.op_type in _BETWEEN and moving and all(name in made for name in moving)
        if node.output[0] in products or between:
            able.add(number)
            made.update(node.output)
    half: set[int] = set()
    wanted: set[str] = set()
    for number in sorted(able, reverse=True):
        node = nodes[number]
        if node.output[0] in products or wanted.intersection(node.output):
            half.add(number)
            wanted.update(node.input)
    return half


def _number_inputs(node: onnx.NodeProto, weights: dict[str, np.ndarray]) -> list[int]:
    """Which inputs hold numbers of the precision, and not sizes or places."""
    count = 1 if node.op_type in _WITH_SHAPES else len(node.input)
    return [
        index
        for index, name in enumerate(node.input[:count])
        if name and (name not in weights or weights[name].dtype == np.float32)
    ]


def _is_batch_norm(node: onnx.NodeProto) -> bool:
    return node.op_type == "BatchNormalization"


def _as_scale(
    node: onnx.NodeProto, weights: dict[str, np.ndarray], graph: onnx.GraphProto
) -> list[onnx.NodeProto]:
    """A batch norm as a product and a sum, worked out before it is rounded:
    a x + b with a = gamma / sqrt(var + eps) and b = beta - a mean."""
    gamma, beta, mean, variance = (weights[name].astype(np.float64) for name in node.input[1:5])
    epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
    scale = gamma / np.sqrt(variance + epsilon)
    source, target = node.input[0], node.output[0]
    for name, value in (("scale", scale), ("shift", beta - scale * mean)):
        shaped = value.astype(np.float32).reshape(-1, 1, 1)
        weights[f"{target}.{name}"] = shaped
        graph.initializer.append(numpy_helper.from_array(shaped, f"{target}.{name}"))
    return [
        helper.make_node("Mul", [source, f"{target}.scale"], [f"{target}.scaled"]),
        helper.make_node("Add", [f"{target}.scaled", f"{target}.shift"], [target]),
    ]


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}.cast", to=to)


# --- 8 bits ----------------------------------------------------------------------------------


def _in_int8(model: onnx.ModelProto, calibration: CalibrationViews) -> onnx.ModelProto:
    library = import_library("onnxruntime")
    quantization = import_library("onnxruntime.quantization")
    library.set_default_logger_severity(3)
    names = [
        node.name
        for node in _products(model)
        if node.op_type == "Conv" and _ENCODER not in node.input[1]
    ]
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, target = Path(folder) / "single.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        try:
            quantization.quantize_static(
                source,
                target,
                _reader(quantization.CalibrationDataReader, calibration),
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
                op_types_to_quantize=["Conv"],  # or every tensor there is gets a histogram
                nodes_to_quantize=names,
                calibrate_method=quantization.CalibrationMethod.Percentile,
                extra_options={
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    "QuantizeBias": False,
                },
            )
        except Exception as error:  # its exception types are private
            raise EngineError(f"onnxruntime cannot quantise: {one_line(error)}") from error
        return onnx.load(target)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the quantiser prints and logs from the user: stdout is for data."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)


def _reader(base: type, views: CalibrationViews) -> object:
    """What onnxruntime reads calibration batches from."""

    class Reader(base):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = _batches(views)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._batches, None)

    return Reader()


def _batches(views: CalibrationViews) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, len(views.frames), _CALIBRATION_BATCH):
        rows = slice(start, start + _CALIBRATION_BATCH)
        yield {"frames": views.frames[rows], "valid": views.valid[rows]}
