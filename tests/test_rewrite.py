"""A program that was rewritten for a compiler means the same."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from ccdstream.engine.rewrite import without_col2im
from tests.bundles import toy_program


def folding_program(
    image: tuple[int, int], block: tuple[int, int], channels: int, **attributes: list[int]
) -> bytes:
    height = channels * block[0] * block[1]
    sizes = {"image": np.array(image), "block": np.array(block)}
    graph = helper.make_graph(
        [
            helper.make_node("Abs", ["x"], ["columns"]),
            helper.make_node("Col2Im", ["columns", "image", "block"], ["y"], **attributes),
        ],
        "folding",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", height, "L"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", channels, *image])],
        [numpy_helper.from_array(value.astype(np.int64), name) for name, value in sizes.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def outputs(program: bytes, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def operators(program: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(program).graph.node]


@pytest.mark.parametrize(
    ("image", "block", "channels", "attributes", "blocks"),
    [
        pytest.param((64, 64), (8, 8), 1, {"strides": [4, 4]}, 225, id="the program's own"),
        pytest.param((6, 9), (2, 3), 3, {"strides": [2, 3]}, 9, id="channels and two sides"),
        pytest.param((8, 6), (3, 2), 2, {"strides": [2, 1], "pads": [1, 0, 0, 1]}, 24, id="pads"),
        pytest.param((9, 9), (2, 2), 1, {"strides": [2, 3], "dilations": [2, 1]}, 12, id="rest"),
    ],
)
def test_blocks_are_added_into_the_image_as_before(
    image, block, channels, attributes, blocks
) -> None:
    program = folding_program(image, block, channels, **attributes)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, channels * block[0] * block[1], blocks), np.float32)
    rewritten = without_col2im(program)
    assert operators(rewritten) == ["Abs", "Reshape", "ConvTranspose"]
    np.testing.assert_allclose(outputs(rewritten, x), outputs(program, x), atol=1e-5)


def test_a_program_without_the_operator_is_left_alone() -> None:
    program = toy_program()
    assert without_col2im(program) is program


def test_sizes_that_are_no_constants_are_left_to_the_compiler() -> None:
    model = onnx.load_from_string(folding_program((8, 8), (4, 4), 1))
    del model.graph.initializer[:]
    model.graph.input.extend(
        helper.make_tensor_value_info(name, TensorProto.INT64, [2]) for name in ("image", "block")
    )
    assert operators(without_col2im(model.SerializeToString())) == ["Abs", "Col2Im"]
