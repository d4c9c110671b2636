"""A bundle's ONNX program as a torch module: the same graph, run by torch's operators.

So torch, with or without a GPU, runs what every other engine runs, and no code comes with a bundle.
Known are the operators that `trainer` exports; a graph with another one is refused when it is read.
What is known before any frame (shapes, axes, pads) is worked out then too, so that the module has
nothing but tensor operators left, can be captured in a CUDA graph and exported by `torch.export`.

Meaning of each operator: https://onnx.ai/onnx/operators, opset 18 to 20.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from torch import Tensor, nn

from ccdstream.engine.base import INPUTS, OUTPUTS, one_line
from ccdstream.errors import EngineError

Shape = list[Any]
"""Sizes as whole numbers, some of which may be symbols while a module is exported."""

Value = Tensor | Shape
Step = Callable[..., Any]
"""One node: its inputs in, its output, or a tuple of them, out."""

_DTYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.BOOL: torch.bool,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.INT32: torch.int32,
}


def torch_program(program: bytes) -> "TorchProgram":
    """The module of an ONNX file.

    Raises:
        EngineError: it is no ONNX file, or has an operator that is not known here.
    """
    try:
        model = onnx.load_from_string(program)
    except Exception as error:  # protobuf's exception types differ with its version
        raise EngineError(f"the program is not an ONNX file: {one_line(error)}") from error
    return TorchProgram(model)


class TorchProgram(nn.Module):
    """forward(frames uint8 [N, 3, 256, 256], valid bool [N, 256, 256]) ->
    score float32 [N], map float32 [N, h, w], parts float32 [N, k]."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Raises EngineError where an operator is not known."""
        super().__init__()
        graph = model.graph
        known: dict[str, np.ndarray] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer
        }
        self._steps: list[tuple[Step, tuple[str, ...], tuple[str, ...]]] = []
        weights: set[str] = set()
        for node in graph.node:
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            inputs = list(node.input)
            if node.op_type in _FOLDED and all(name in known for name in inputs):
                fold = _FOLDED[node.op_type]
                known[node.output[0]] = fold(attributes, known[inputs[0]])
                continue
            build = _OPERATORS.get(node.op_type)
            if build is None or node.domain not in ("", "ai.onnx"):
                raise EngineError(
                    f"the program has the operator {node.op_type}, which the torch engine does not "
                    "know. Use another engine."
                )
            fixed = [known.get(name) for name in inputs]
            try:
                step, taken = build(attributes, fixed)
            except (KeyError, ValueError) as error:
                raise EngineError(
                    f"the torch engine does not know this form of the operator {node.op_type} "
                    f"({node.name}): {one_line(error)}. Use another engine."
                ) from error
            names = tuple(inputs[i] for i in range(len(inputs)) if i < taken and inputs[i])
            weights.update(name for name in names if name in known)
            self._steps.append((step, names, tuple(node.output)))
        for number, name in enumerate(sorted(weights)):
            self.register_buffer(f"w{number}", torch.from_numpy(known[name].copy()))
        self._weights = {name: f"w{number}" for number, name in enumerate(sorted(weights))}
        self._last_use = _last_uses(self._steps)

    def forward(self, frames: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values: dict[str, Any] = {
            **dict(zip(INPUTS, (frames, valid), strict=True)),
            **{name: getattr(self, buffer) for name, buffer in self._weights.items()},
        }
        for number, (step, inputs, outputs) in enumerate(self._steps):
            result = step(*(values[name] for name in inputs))
            several = result if isinstance(result, tuple) else (result,)
            values.update(zip(outputs, several, strict=False))
            for name in self._last_use[number]:  # so that memory does not grow with the depth
                del values[name]
        score, anomaly_map, parts = (values[name] for name in OUTPUTS)
        return score, anomaly_map, parts


def _last_uses(steps: Sequence[tuple[Step, tuple[str, ...], tuple[str, ...]]]) -> list[list[str]]:
    """For each step the values that no later one takes."""
    last = {name: number for number, (_, inputs, _) in enumerate(steps) for name in inputs}
    uses: list[list[str]] = [[] for _ in steps]
    for name, number in last.items():
        if name not in OUTPUTS:
            uses[number].append(name)
    return uses


# --- what is worked out when a program is read ---------------------------------------------------


def _fold_cast(attributes: "Attributes", value: np.ndarray) -> np.ndarray:
    """Weights that are stored in half, for one."""
    kind = helper.tensor_dtype_to_np_dtype(attributes["to"])
    folded: np.ndarray = value.astype(kind)
    return folded


def _fold_constant_of_shape(attributes: "Attributes", shape: np.ndarray) -> np.ndarray:
    one = numpy_helper.to_array(attributes["value"]) if "value" in attributes else np.float32(0)
    return np.full([int(n) for n in shape], one)


_FOLDED = {"Cast": _fold_cast, "ConstantOfShape": _fold_constant_of_shape}


# --- operators: (attributes, known inputs) -> (step, how many inputs it takes at run time) -------

Attributes = Mapping[str, Any]
Known = Sequence[np.ndarray | None]
Built = tuple[Step, int]


def _all(step: Step) -> Callable[[Attributes, Known], Built]:
    """An operator without attributes or inputs that must be known before."""
    return lambda attributes, known: (step, len(known))


def _given(known: Known, index: int) -> list[int] | None:
    """A further input as whole numbers, which must be known before; None where it is left out."""
    if index >= len(known):
        return None
    value = known[index]
    if value is None:
        raise ValueError(f"input {index} is not a constant")
    whole: list[int] = [int(v) for v in np.atleast_1d(value)]
    return whole


def _wanted(known: Known, index: int) -> list[int]:
    value = _given(known, index)
    if value is None:
        raise ValueError(f"input {index} is missing")
    return value


def _cast(attributes: Attributes, known: Known) -> Built:
    kind = _DTYPES[attributes["to"]]
    return (lambda x: x.to(kind)), 1


def _clip(attributes: Attributes, known: Known) -> Built:
    bounds = [None if v is None or not v.size else float(v) for v in (*known, None, None)[1:3]]
    low, high = bounds
    return (lambda x: torch.clamp(x, low, high)), 1


def _pads(attributes: Attributes, rank: int) -> tuple[list[int], list[int]]:
    """Padding before and after each axis of space."""
    if attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise ValueError("auto_pad")
    pads = list(attributes.get("pads", [0] * (2 * rank)))
    return pads[:rank], pads[rank:]


def _conv(attributes: Attributes, known: Known) -> Built:
    kernel = known[1]
    if kernel is None:
        raise ValueError("a kernel that is not a constant")
    rank = kernel.ndim - 2
    before, after = _pads(attributes, rank)
    stride = attributes.get("strides", [1] * rank)
    dilation = attributes.get("dilations", [1] * rank)
    groups = attributes.get("group", 1)
    even = before == after

    def step(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if not even:
            x = F.pad(x, _torch_pads(before, after))
        return F.conv2d(x, weight, bias, stride, before if even else 0, dilation, groups)

    return step, len(known)


def _conv_transpose(attributes: Attributes, known: Known) -> Built:
    kernel = known[1]
    if kernel is None:
        raise ValueError("a kernel that is not a constant")
    rank = kernel.ndim - 2
    before, after = _pads(attributes, rank)
    if before != after:
        raise ValueError("uneven pads")
    stride = attributes.get("strides", [1] * rank)
    extra = attributes.get("output_padding", [0] * rank)
    groups, dilation = attributes.get("group", 1), attributes.get("dilations", [1] * rank)

    def step(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.conv_transpose2d(x, weight, bias, stride, before, extra, groups, dilation)

    return step, len(known)


def _torch_pads(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Pads in torch's order: the last axis first, before and after."""
    return [pad for pair in zip(before[::-1], after[::-1], strict=True) for pad in pair]


def _pool(average: bool) -> Callable[[Attributes, Known], Built]:
    def build(attributes: Attributes, known: Known) -> Built:
        kernel = attributes["kernel_shape"]
        before, after = _pads(attributes, len(kernel))
        if before != after or attributes.get("ceil_mode", 0):
            raise ValueError("uneven pads or ceil_mode")
        stride = attributes.get("strides", [1] * len(kernel))
        if not average:
            return (lambda x: F.max_pool2d(x, kernel, stride, before)), 1
        padded = bool(attributes.get("count_include_pad", 0))
        return (lambda x: F.avg_pool2d(x, kernel, stride, before, False, padded)), 1

    return build


def _gemm(attributes: Attributes, known: Known) -> Built:
    if attributes.get("alpha", 1.0) != 1 or attributes.get("beta", 1.0) != 1:
        raise ValueError("alpha and beta")
    turn_a, turn_b = attributes.get("transA", 0), attributes.get("transB", 0)

    def step(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        return F.linear(a.t() if turn_a else a, b if turn_b else b.t(), c)

    return step, len(known)


def _batch_norm(attributes: Attributes, known: Known) -> Built:
    epsilon = attributes.get("epsilon", 1e-5)

    def step(x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return F.batch_norm(x, mean, variance, scale, shift, training=False, eps=epsilon)

    return step, len(known)


def _col2im(attributes: Attributes, known: Known) -> Built:
    image, block = tuple(_wanted(known, 1)), tuple(_wanted(known, 2))
    before, after = _pads(attributes, 2)
    if before != after:
        raise ValueError("uneven pads")
    dilation, stride = (tuple(attributes.get(key, (1, 1))) for key in ("dilations", "strides"))
    return (lambda x: F.fold(x, image, block, dilation, tuple(before), stride)), 1


def _concat(attributes: Attributes, known: Known) -> Built:
    axis = attributes["axis"]
    shapes = [None if v is None else [int(n) for n in np.atleast_1d(v)] for v in known]
    if any(shape is not None for shape in shapes):  # a shape, of which a part is known

        def join(*parts: Shape | Tensor) -> Shape:
            rest = iter(parts)
            joined: Shape = []
            for shape in shapes:
                part = next(rest)
                joined += shape if shape is not None else list(part)
            return joined

        return join, len(known)
    return (lambda *parts: torch.cat(parts, dim=axis)), len(known)


def _shape(attributes: Attributes, known: Known) -> Built:
    start, end = attributes.get("start", 0), attributes.get("end")
    return (lambda x: list(x.shape)[start:end]), 1


def _reshape(attributes: Attributes, known: Known) -> Built:
    if known[1] is None:
        return (lambda x, shape: x.reshape(shape)), 2
    shape = _wanted(known, 1)
    if 0 in shape and not attributes.get("allowzero", 0):  # 0: as it was
        return (lambda x: x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(shape)])), 1
    return (lambda x: x.reshape(shape)), 1


def _resize(attributes: Attributes, known: Known) -> Built:
    mode, places = attributes["mode"], attributes["coordinate_transformation_mode"]
    how: dict[str, Any]
    if mode == b"linear" and places == b"half_pixel":
        how = {"mode": "bilinear", "align_corners": False}
    elif mode == b"nearest" and places == b"asymmetric" and attributes["nearest_mode"] == b"floor":
        how = {"mode": "nearest"}
    else:
        raise ValueError(f"{mode!r} with {places!r}")
    if len(known) == 4:  # batch and channels of the sizes are known at run time alone
        return (lambda x, *rest: F.interpolate(x, size=rest[-1][2:], **how)), 4
    scales = known[2]
    if scales is None:
        raise ValueError("scales that are not constants")
    factors = [float(scale) for scale in scales[2:]]
    return (lambda x: F.interpolate(x, scale_factor=factors, **how)), 1


def _slice(attributes: Attributes, known: Known) -> Built:
    starts, ends = _wanted(known, 1), _wanted(known, 2)
    axes = _given(known, 3) or list(range(len(starts)))
    steps = _given(known, 4) or [1] * len(starts)
    spans = list(zip(axes, starts, ends, steps, strict=True))
    if any(step < 1 for *_, step in spans):
        raise ValueError("steps below 1")

    def step(x: Tensor | Shape) -> Any:
        if isinstance(x, list):
            (_, start, end, stride) = spans[0]
            return x[start:end:stride]
        for axis, start, end, stride in spans:
            parts = [slice(None)] * x.dim()
            parts[axis] = slice(start, None if end >= 2**31 - 1 else end, stride)
            x = x[tuple(parts)]
        return x

    return step, 1


def _split(attributes: Attributes, known: Known) -> Built:
    axis = attributes.get("axis", 0)
    if sizes := _given(known, 1):
        return (lambda x: tuple(torch.split(x, sizes, axis))), 1
    count = attributes["num_outputs"]
    return (lambda x: tuple(torch.chunk(x, count, axis))), 1


def _pad(attributes: Attributes, known: Known) -> Built:
    mode = attributes.get("mode", b"constant").decode()
    pads = _wanted(known, 1)
    rank = len(pads) // 2
    before, after = pads[:rank], pads[rank:]
    if mode not in ("constant", "reflect"):
        raise ValueError(mode)
    if mode == "reflect":  # torch pads the axes of space alone
        if any(before[:2]) or any(after[:2]):
            raise ValueError(f"{mode} of batch or channels")
        before, after = before[2:], after[2:]
    value = 0.0 if len(known) < 3 or known[2] is None else float(known[2])
    shape = _torch_pads(before, after)
    if mode == "constant":
        return (lambda x: F.pad(x, shape, value=value)), 1
    return (lambda x: F.pad(x, shape, mode=mode)), 1


def _reduce(step: Callable[[Tensor, list[int], bool], Tensor]) -> Callable[..., Built]:
    def build(attributes: Attributes, known: Known) -> Built:
        axes, keep = _given(known, 1), bool(attributes.get("keepdims", 1))

        def reduce(x: Tensor) -> Tensor:
            return step(x, list(range(x.dim())) if axes is None else axes, keep)

        return reduce, 1

    return build


def _gather(attributes: Attributes, known: Known) -> Built:
    axis, index = attributes.get("axis", 0), known[1]
    if index is None:
        raise ValueError("an index that is not a constant")
    if index.ndim == 0:
        at = int(index)
        return (lambda x: x[at] if isinstance(x, list) else x.select(axis, at)), 1
    shape = list(index.shape)
    places = [int(place) for place in index.flat]  # to read them off a GPU would wait for it

    def step(x: Tensor | Shape, index: Tensor) -> Any:
        if isinstance(x, list):
            return [x[place] for place in places]
        taken = torch.index_select(x, axis, index.reshape(-1))
        return taken.reshape([*x.shape[:axis], *shape, *x.shape[axis + 1 :]])

    return step, 2


def _top_k(attributes: Attributes, known: Known) -> Built:
    (count,) = _wanted(known, 1)
    axis, largest = attributes.get("axis", -1), bool(attributes.get("largest", 1))
    return (lambda x: tuple(torch.topk(x, count, axis, largest))), 1


def _unsqueeze(attributes: Attributes, known: Known) -> Built:
    axes = sorted(_wanted(known, 1))
    if any(axis < 0 for axis in axes):
        raise ValueError("negative axes")

    def step(x: Any) -> Any:
        if isinstance(x, int | torch.SymInt):  # one size, as a shape
            return [x]
        for axis in axes:
            x = x.unsqueeze(axis)
        return x

    return step, 1


def _squeeze(attributes: Attributes, known: Known) -> Built:
    axes = _wanted(known, 1)
    return (lambda x: x.squeeze(tuple(axes))), 1


def _transpose(attributes: Attributes, known: Known) -> Built:
    order = attributes["perm"]
    return (lambda x: x.permute(order)), 1


def _expand(attributes: Attributes, known: Known) -> Built:
    if known[1] is None:
        return (lambda x, shape: x.expand(shape)), 2
    shape = _wanted(known, 1)
    return (lambda x: x.expand(shape)), 1


def _leaky(attributes: Attributes, known: Known) -> Built:
    slope = attributes.get("alpha", 0.01)
    return (lambda x: F.leaky_relu(x, slope)), 1


def _hard_sigmoid(attributes: Attributes, known: Known) -> Built:
    slope, offset = attributes.get("alpha", 0.2), attributes.get("beta", 0.5)
    return (lambda x: torch.clamp(x * slope + offset, 0, 1)), 1


def _largest(*several: Tensor) -> Tensor:
    first, *rest = several
    for other in rest:
        first = torch.maximum(first, other)
    return first


_OPERATORS: dict[str, Callable[[Attributes, Known], Built]] = {
    "Abs": _all(torch.abs),
    "Add": _all(torch.add),
    "AveragePool": _pool(average=True),
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Col2Im": _col2im,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Div": _all(torch.div),
    "Exp": _all(torch.exp),
    "Expand": _expand,
    "Gather": _gather,
    "Gemm": _gemm,
    "Greater": _all(torch.gt),
    "GreaterOrEqual": _all(torch.ge),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _all(F.hardswish),
    "LeakyRelu": _leaky,
    "MatMul": _all(torch.matmul),
    "Max": _all(_largest),
    "MaxPool": _pool(average=False),
    "Mul": _all(torch.mul),
    "Pad": _pad,
    "Pow": _all(torch.pow),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceMin": _reduce(torch.amin),
    "ReduceSum": _reduce(torch.sum),
    "Relu": _all(torch.relu),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Sigmoid": _all(torch.sigmoid),
    "Slice": _slice,
    "Softplus": _all(F.softplus),
    "Split": _split,
    "Sqrt": _all(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _all(torch.sub),
    "Tanh": _all(torch.tanh),
    "TopK": _top_k,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _all(torch.where),
}
