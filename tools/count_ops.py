"""How much work a program is, counted from its graph: arithmetic, and bytes to and from memory.

    python tools/count_ops.py [BUNDLE | PROGRAM.onnx] [--batch 8]

No clock is read: what is counted is a floor under every time. Two pictures of the memory:

    lower    operators between two matrix operators cost nothing, and all is in half precision: each
             matrix operator reads its input and its weights and writes its output; besides, the
             program's inputs are read and its outputs written.
    upper    every operator reads its inputs from memory and writes its outputs there, in the types
             that the graph has.

A compiled program lies between them; one that also fuses matrix operators may lie below `lower`.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto

from ccdstream.bundle import load_bundle
from ccdstream.errors import CcdstreamError

MATRIX_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""What multiplies by matrices; the arithmetic of everything else is left out."""
HALF_BYTES = 2
_FREE = ("Shape", "Constant", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity")
"""Move no element: they describe the same memory in another way."""


@dataclass(frozen=True, slots=True)
class Operator:
    """One matrix operator."""

    name: str
    operations: int
    """Multiplications and additions: two for each product."""
    lower_bytes: int
    """Input, weights and output, in half precision."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one call of a program with `batch` frames takes at least."""

    batch: int
    operators: tuple[Operator, ...]
    weights: int
    """Values that matrix operators multiply by and add, counted once."""
    ends_bytes: int
    """The program's inputs and outputs, in their own types."""
    upper_bytes: int
    nodes: int

    @property
    def operations(self) -> int:
        """Of all matrix operators."""
        return sum(one.operations for one in self.operators)

    @property
    def lower_bytes(self) -> int:
        """See the module's `lower`."""
        return self.ends_bytes + sum(one.lower_bytes for one in self.operators)

    def least_s(self, operations_per_s: float, bytes_per_s: float) -> float:
        """Seconds of a call where arithmetic and memory overlap wholly: the floor."""
        return max(self.operations / operations_per_s, self.lower_bytes / bytes_per_s)

    def least_s_in_turn(self, operations_per_s: float, bytes_per_s: float) -> float:
        """Seconds where they overlap within each operator alone, one operator after another."""
        ends = self.ends_bytes / bytes_per_s
        return ends + sum(
            max(one.operations / operations_per_s, one.lower_bytes / bytes_per_s)
            for one in self.operators
        )


def count(program: bytes, batch: int) -> Work:
    """The work of an ONNX program for `batch` frames.

    A convolution takes 2 * (output values) * (input channels / groups) * (kernel) operations, a
    transposed one 2 * (input values) * (output channels / groups) * (kernel), a product of matrices
    2 * (output values) * (inner size). A bias is not counted.

    Raises:
        ValueError: the shape of a value does not follow from the batch.
    """
    model = onnx.load_from_string(program)
    for end in [*model.graph.input, *model.graph.output]:
        end.type.tensor_type.shape.dim[0].dim_value = batch
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    tensors = {one.name: _described(one) for one in _values(graph)}
    weights = {one.name: tuple(one.dims) for one in graph.initializer}
    tensors |= {one.name: (tuple(one.dims), one.data_type) for one in graph.initializer}
    aliases: dict[str, str] = {}  # a weight's name after a Cast -> its own
    for node in graph.node:
        if node.op_type in ("Cast", "Identity") and node.input[0] in weights:
            weights[node.output[0]] = weights[node.input[0]]
            aliases[node.output[0]] = node.input[0]

    def shape(name: str) -> tuple[int, ...]:
        if name not in tensors or min(tensors[name][0], default=1) < 0:
            raise ValueError(f"the shape of {name!r} does not follow from a batch of {batch}")
        return tensors[name][0]

    def held(name: str) -> int:
        return math.prod(shape(name)) * _item_bytes(tensors[name][1])

    operators, used, upper = [], set(), 0
    nodes = [node for node in graph.node if node.output[0] not in weights]
    for node in nodes:
        if node.op_type in _FREE:
            continue
        names = [name for name in [*node.input, *node.output] if name]
        upper += sum(held(name) for name in names)
        if node.op_type not in MATRIX_OPS:
            continue
        used |= {aliases.get(name, name) for name in node.input if name in weights}
        operators.append(
            Operator(
                node.name or node.output[0],
                _operations(node, [shape(n) for n in node.input if n], shape(node.output[0])),
                HALF_BYTES * sum(math.prod(shape(name)) for name in names),
            )
        )
    return Work(
        batch=batch,
        operators=tuple(operators),
        weights=sum(math.prod(weights[name]) for name in used),
        ends_bytes=sum(held(end.name) for end in [*graph.input, *graph.output]),
        upper_bytes=upper,
        nodes=len(nodes),
    )


def _values(graph: GraphProto) -> Iterator[ValueInfoProto]:
    yield from graph.input
    yield from graph.value_info
    yield from graph.output


def _described(value: ValueInfoProto) -> tuple[tuple[int, ...], int]:
    """Shape, with -1 for what is not known, and ONNX type."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return (-1,), tensor.elem_type
    sizes = (d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)
    return tuple(sizes), tensor.elem_type


def _item_bytes(kind: int) -> int:
    if kind == TensorProto.BOOL:
        return 1
    return int(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind)).itemsize)


def _operations(node: NodeProto, ins: Sequence[tuple[int, ...]], out: tuple[int, ...]) -> int:
    if node.op_type == "Conv":  # weights [C_out, C_in / groups, *kernel]
        return 2 * math.prod(out) * math.prod(ins[1][1:])
    if node.op_type == "ConvTranspose":  # weights [C_in, C_out / groups, *kernel]
        return 2 * math.prod(ins[0]) * math.prod(ins[1][1:])
    if node.op_type == "Gemm":
        turned = any(a.name == "transA" and a.i for a in _attributes(node))
        return 2 * math.prod(out) * ins[0][0 if turned else 1]
    return 2 * math.prod(out) * ins[0][-1]


def _attributes(node: NodeProto) -> Sequence[AttributeProto]:
    return list(node.attribute)


def sentences(work: Work) -> list[str]:
    """What was counted, for people to read; per frame."""
    n = work.batch
    return [
        f"{len(work.operators)} matrix operators among {work.nodes}, "
        f"{work.weights / 1e6:.2f} million weights",
        f"{work.operations / n / 1e9:.2f} GFLOP a frame",
        f"{work.lower_bytes / n / 1e6:.1f} MB a frame at a batch of {n} (half precision, fused), "
        f"{work.upper_bytes / n / 1e6:.1f} MB (nothing fused, the graph's own types)",
    ]


def main() -> None:
    """Print what a program takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "program", type=Path, nargs="?", help="bundle or ONNX file (default bundle)"
    )
    parser.add_argument("--batch", type=int, default=8, help="frames in a call (%(default)s)")
    arguments = parser.parse_args()
    given: Path | None = arguments.program
    try:
        file = given if given and given.suffix == ".onnx" else load_bundle(given).program
        print("\n".join(sentences(count(file.read_bytes(), arguments.batch))))
    except (CcdstreamError, OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()
