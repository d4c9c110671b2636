"""The same program in the operators that a compiler knows.

TensorRT's reader does not know all of ONNX, and a bundle is not made anew for it: what it lacks is
written in other operators while the program is loaded.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


def without_col2im(program: bytes) -> bytes:
    """Write every Col2Im whose sizes are constants as a ConvTranspose, which TensorRT knows.

    Col2Im adds each column of [N, C * kh * kw, L] as a block of [C, kh, kw] into the image, the
    blocks in rows of L / rows: a transposed convolution of the columns laid out as a picture
    [N, C * kh * kw, rows, L / rows], with the identity for its kernel. The sums are the same; only
    the order of the additions may differ. A value that is not finite spreads to its block.
    """
    import onnx

    model = onnx.load_from_string(program)
    if not any(node.op_type == "Col2Im" for node in model.graph.node):
        return program
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {
        value.name: value.type.tensor_type for value in [*inferred.value_info, *inferred.input]
    }
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        replaced = None
        if node.op_type == "Col2Im" and node.input[0] in types:
            columns = types[node.input[0]]
            height = columns.shape.dim[1].dim_value
            replaced = _transposed_convolution(model, node, height, columns.elem_type)
        model.graph.node.extend(replaced or [node])
    rewritten: bytes = model.SerializeToString()
    return rewritten


def _transposed_convolution(
    model: "ModelProto", node: "NodeProto", height: int, elem_type: int
) -> "list[NodeProto] | None":
    """What stands for a Col2Im of columns of `height` values; None where a size is not known.

    Its constants are added to the graph of `model`.
    """
    from onnx import helper, numpy_helper

    constants = {each.name: each for each in model.graph.initializer}
    if not height or not all(name in constants for name in node.input[1:3]):
        return None
    image, block = (numpy_helper.to_array(constants[name]) for name in node.input[1:3])
    given = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    rank = len(block)
    strides = np.array(given.get("strides", [1] * rank))
    dilations = np.array(given.get("dilations", [1] * rank))
    pads = np.array(given.get("pads", [0] * 2 * rank))
    # as of a convolution of the image: how often a block fits, and what is left at the end
    room = image + pads[:rank] + pads[rank:] - dilations * (block - 1) - 1
    values = math.prod(block.tolist())
    kernel = np.eye(height).reshape(height, height // values, *block)
    layout = np.array([0, height, *(room // strides + 1)], np.int64)  # 0: as many as there are
    names = [f"{node.output[0]}_{each}" for each in ("layout", "kernel", "picture")]
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(layout, names[0]),
            numpy_helper.from_array(
                kernel.astype(helper.tensor_dtype_to_np_dtype(elem_type)), names[1]
            ),
        ]
    )
    return [
        helper.make_node("Reshape", [node.input[0], names[0]], [names[2]]),
        helper.make_node(
            "ConvTranspose",
            [names[2], names[1]],
            list(node.output),
            kernel_shape=block.tolist(),
            strides=strides.tolist(),
            dilations=dilations.tolist(),
            pads=pads.tolist(),
            output_padding=(room % strides).tolist(),
        ),
    ]
