"""Whether TensorRT and TensorRT-RTX start here, and whether what they build runs on this GPU.

    python tools/gpu/try_tensorrt.py PACKAGE      tensorrt or tensorrt_rtx

One convolution is built, loaded and run, and held against torch: nothing of ccdstream takes part,
so that what fails here is the installation's or the GPU's. Prints a line; exits with 1 where it did
not come to the end, and with 2 where that is because there is no GPU.
"""

import argparse
import importlib
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper

LIMIT = 1e-2
"""Largest difference from torch: products may be in TF32, with a mantissa of 10 bits."""


class Stopped(Exception):
    """How far it came, and why no further."""


def convolution(weights: np.ndarray) -> bytes:
    """An ONNX program: x float32 [1, 3, 32, 32] -> y float32 [1, 8, 32, 32]."""
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])],
        "convolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 32, 32])],
        [numpy_helper.from_array(weights, "w")],
    )
    opsets = [helper.make_opsetid("", 18)]
    program: bytes = helper.make_model(
        graph, opset_imports=opsets, ir_version=10
    ).SerializeToString()
    return program


def build(trt: Any, program: bytes) -> tuple[Any, Any]:
    """The logger, which must outlive the rest, and the plan."""
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(program):
        raise Stopped(f"starts, and does not parse: {parser.get_error(0).desc()}")
    plan = builder.build_serialized_network(network, builder.create_builder_config())
    if plan is None:
        raise Stopped("starts and parses, and does not build")
    return logger, plan


def run(trt: Any, logger: Any, plan: Any, x: torch.Tensor) -> torch.Tensor:
    """What the plan gives for `x`, on its GPU."""
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise Stopped("builds, and does not load what it built")
    context = engine.create_execution_context()
    if context is None:
        raise Stopped("builds and loads, and makes no context to run in")
    y = torch.empty(1, 8, 32, 32, device=x.device)
    context.set_tensor_address("x", x.data_ptr())
    context.set_tensor_address("y", y.data_ptr())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    if not context.execute_async_v3(stream.cuda_stream):
        raise Stopped("builds and loads, and does not run")
    stream.synchronize()
    return y


def main() -> None:
    """Say how far it comes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", choices=("tensorrt", "tensorrt_rtx"))
    package: str = parser.parse_args().package
    try:
        trt = importlib.import_module(package)
    except Exception as error:  # a broken installation raises whatever it likes
        parser.exit(1, f"does not start: {' '.join(str(error).split())[:300]}\n")
    weights = np.random.default_rng(0).standard_normal((8, 3, 3, 3), np.float32) / 5
    try:
        logger, plan = build(trt, convolution(weights))
        if not torch.cuda.is_available():
            size = plan.nbytes / 1024
            parser.exit(2, f"{trt.__version__} builds ({size:.0f} KiB); not run: no GPU\n")
        x = torch.rand(1, 3, 32, 32, device="cuda")
        y = run(trt, logger, plan, x)
    except Stopped as error:
        parser.exit(1, f"{trt.__version__} {error}\n")
    wanted = torch.nn.functional.conv2d(
        x.double(), torch.from_numpy(weights).cuda().double(), padding=1
    )
    apart = float((y - wanted).abs().max())
    print(f"{trt.__version__} builds, loads and runs; largest difference from torch {apart:.1e}")
    if not apart <= LIMIT:
        parser.exit(1, f"expected at most {LIMIT:.0e}\n")


if __name__ == "__main__":
    main()
