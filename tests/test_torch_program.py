"""A program run by torch's operators, held against ONNX Runtime on the same file."""

from functools import cache

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from ccdstream.bundle import load_bundle
from ccdstream.engine import torch_program as torch_program_module
from ccdstream.engine.base import OUTPUTS
from ccdstream.engine.torch_program import torch_program
from ccdstream.errors import EngineError
from ccdstream.packaged import find_model
from tests.bundles import toy_program
from trainer.config import load_config
from trainer.export import onnx_program, prepare
from trainer.train import _program, scales, untrained

DETECTORS = {
    "igd": ["scales=local", "local_backbone.name=mobilenet_v3_small"],
    "fanogan": ["detector=fanogan", "global_size_px=64"],
    "patchcore": ["detector=patchcore", "scales=global"],
    "padim": ["detector=padim", "scales=global"],
}


@cache
def exported(kind: str) -> bytes:
    random = [f"{scale}_backbone.weights=none" for scale in ("global", "local")]
    config = load_config("smoke", None, [*DETECTORS[kind], *random])
    program = _program(config, [untrained(config, scale) for scale in scales(config)])
    prepare(program)
    return onnx_program(program)


def views(count: int) -> tuple[np.ndarray, np.ndarray]:
    golden = load_bundle(None).golden
    rows = np.arange(count) % len(golden.frames)
    return golden.frames[rows], golden.valid[rows]


def by_onnxruntime(program: bytes, frames: np.ndarray, valid: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(program)
    outputs: list[np.ndarray] = session.run(OUTPUTS, {"frames": frames, "valid": valid})
    return outputs


@torch.no_grad()
def by_torch(program: bytes, frames: np.ndarray, valid: np.ndarray) -> list[np.ndarray]:
    outputs = torch_program(program)(torch.from_numpy(frames), torch.from_numpy(valid))
    return [output.numpy() for output in outputs]


@pytest.mark.parametrize("kind", DETECTORS)
def test_every_detector_gives_what_onnx_runtime_gives(kind: str) -> None:
    program = exported(kind)
    frames, valid = views(2)
    expected = by_onnxruntime(program, frames, valid)
    for got, wanted in zip(by_torch(program, frames, valid), expected, strict=True):
        assert got.dtype == np.float32 and got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["default", "reference"])
@pytest.mark.parametrize("count", [1, 3])
def test_the_packaged_bundles_give_their_golden_outputs_in_batches_of_any_size(
    count: int, name: str
) -> None:
    bundle = load_bundle(find_model(name).path)
    frames, valid = views(count)
    score, anomaly_map, parts = by_torch(bundle.program.read_bytes(), frames, valid)
    golden = bundle.golden
    assert np.abs(score - golden.score[:count]).max() < bundle.parity["score_abs"] / 2
    assert np.abs(anomaly_map - golden.anomaly_map[:count]).max() < bundle.parity["map_abs"] / 2
    np.testing.assert_allclose(parts, golden.parts[:count], atol=0.05)


def test_the_module_can_be_exported_with_a_batch_of_any_size() -> None:
    program = exported("igd")
    frames, valid = (torch.from_numpy(array) for array in views(2))
    module = torch_program(program).eval()
    batch = torch.export.Dim("batch", min=1, max=16)
    shapes = ({0: batch}, {0: batch})
    again = torch.export.export(module, (frames, valid), dynamic_shapes=shapes).module()
    frames, valid = (torch.from_numpy(array) for array in views(3))
    with torch.no_grad():
        for got, wanted in zip(again(frames, valid), module(frames, valid), strict=True):
            torch.testing.assert_close(got, wanted)


def test_sizes_are_gathered_without_reading_places_off_the_device() -> None:
    """Which would wait for a GPU, and end the recording of a graph."""
    gather, _ = torch_program_module._gather({}, [None, np.array([0, 2])])
    assert gather([8, 3, 256], torch.empty(2, device="meta")) == [8, 256]


def test_what_is_no_onnx_file_is_refused() -> None:
    with pytest.raises(EngineError, match="is not an ONNX file"):
        torch_program(b"nonsense that is long enough")


def test_an_unknown_operator_is_named() -> None:
    model = onnx.load_from_string(toy_program())
    model.graph.node.append(helper.make_node("Det", ["luma"], ["unused"]))
    with pytest.raises(EngineError, match="operator Det, which the torch engine does not know"):
        torch_program(model.SerializeToString())


def test_a_form_of_an_operator_that_is_not_known_is_named() -> None:
    model = onnx.load_from_string(toy_program())
    pool = next(node for node in model.graph.node if node.op_type == "AveragePool")
    pool.attribute.append(helper.make_attribute("ceil_mode", 1))
    with pytest.raises(EngineError, match=r"form of the operator AveragePool .*ceil_mode"):
        torch_program(model.SerializeToString())


def test_weights_that_are_stored_in_half_are_single_in_the_module() -> None:
    module = torch_program(load_bundle(None).program.read_bytes())
    assert {buffer.dtype for buffer in module.buffers() if buffer.is_floating_point()} == {
        torch.float32
    }
    assert TensorProto.FLOAT16 in {
        tensor.data_type for tensor in onnx.load(load_bundle(None).program).graph.initializer
    }
