"""A tiny bundle whose outputs have a closed form: the brighter a view, the more anomalous.

    score = parts[0] = mean luma over the valid pixels, in [0, 1]; 0 where none is valid
    parts[1]         = fraction of valid pixels
    map              = luma, averaged over cells of 4x4 pixels

with luma = 0.299 R + 0.587 G + 0.114 B. `toy_output` computes the same with numpy.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ccdstream.bundle import Bundle, Golden, write_bundle
from ccdstream.engine.base import EngineOutput
from ccdstream.view import NONE

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def toy_program(*, gain: float = 1.0) -> bytes:
    """The ONNX graph, serialised. `gain` scales every output: a program that is not the golden one
    where it differs from 1."""
    constants = {
        "luma_weights": (LUMA * gain / 255).reshape(1, 3, 1, 1).astype(np.float32),
        "one": np.array(1, np.float32),
        "channel": np.array([1], np.int64),
        "space": np.array([1, 2], np.int64),
        "pixels": np.array(256 * 256, np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["frames"], ["rgb"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["valid"], ["weight"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["rgb", "luma_weights"], ["luma_nchw"]),
        helper.make_node(
            "AveragePool", ["luma_nchw"], ["cells"], kernel_shape=[4, 4], strides=[4, 4]
        ),
        helper.make_node("Squeeze", ["cells", "channel"], ["map"]),
        helper.make_node("Squeeze", ["luma_nchw", "channel"], ["luma"]),
        helper.make_node("Mul", ["luma", "weight"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "space"], ["total"], keepdims=0),
        helper.make_node("ReduceSum", ["weight", "space"], ["count"], keepdims=0),
        helper.make_node("Max", ["count", "one"], ["divisor"]),
        helper.make_node("Div", ["total", "divisor"], ["score"]),
        helper.make_node("Div", ["count", "pixels"], ["share"]),
        helper.make_node("Unsqueeze", ["score", "channel"], ["score_column"]),
        helper.make_node("Unsqueeze", ["share", "channel"], ["share_column"]),
        helper.make_node("Concat", ["score_column", "share_column"], ["parts"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [
            helper.make_tensor_value_info("frames", TensorProto.UINT8, ["N", 3, 256, 256]),
            helper.make_tensor_value_info("valid", TensorProto.BOOL, ["N", 256, 256]),
        ],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"]),
            helper.make_tensor_value_info("map", TensorProto.FLOAT, ["N", 64, 64]),
            helper.make_tensor_value_info("parts", TensorProto.FLOAT, ["N", 2]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def toy_output(frames: np.ndarray, valid: np.ndarray) -> EngineOutput:
    """What the program gives, computed with numpy in double precision."""
    luma = np.einsum("nchw,c->nhw", frames.astype(np.float64), LUMA.astype(np.float64)) / 255
    count = valid.sum((1, 2))
    score = (luma * valid).sum((1, 2)) / np.maximum(count, 1)
    cells = luma.reshape(len(luma), 64, 4, 64, 4).mean((2, 4))
    return EngineOutput(
        score=score.astype(np.float32),
        anomaly_map=cells.astype(np.float32),
        parts=np.stack([score, count / 256**2], axis=1).astype(np.float32),
    )


class ToyEngine:
    """The closed form as an engine, with no library under it."""

    name, device, version, reason = "toy", "cpu", "0", "a test"

    def __init__(self) -> None:
        self.batches: list[int] = []
        """Views in each call."""

    def run(self, frames: np.ndarray, valid: np.ndarray) -> EngineOutput:
        assert frames.flags.c_contiguous and valid.flags.c_contiguous
        self.batches.append(len(frames))
        return toy_output(frames, valid)


def toy_inputs(rows: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Blocky random frames uint8 [rows, 3, 256, 256] of differing brightness, and valid masks bool
    [rows, 256, 256] that differ too; the last of several is nowhere valid."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows, 3, 16, 16)) * rng.uniform(0.2, 1, (rows, 1, 1, 1))
    frames = blocks.astype(np.uint8).repeat(16, axis=2).repeat(16, axis=3)
    valid = rng.random((rows, 32, 32)).repeat(8, axis=1).repeat(8, axis=2) < 0.8
    if rows > 1:
        valid[-1] = False
    return frames, valid


def toy_golden(rows: int = 3, *, seed: int = 0) -> Golden:
    """Golden frames with outputs of the closed form: no engine is held against itself."""
    frames, valid = toy_inputs(rows, seed=seed)
    output = toy_output(frames, valid)
    return Golden(frames, valid, output.score, output.anomaly_map, output.parts)


def toy_manifest(**changes: Any) -> dict[str, Any]:
    """The fields that `write_bundle` wants; `changes` replace top-level keys."""
    knots = {"raw": [0.0, 0.25, 0.5], "fraction": [0.0, 0.5, 0.99], "tail_scale": 0.1}
    return {
        "name": "toy",
        "created": "2026-01-01T00:00:00+00:00",
        "commit": "0" * 40,
        "command": "tests/bundles.py",
        "input_size": [256, 256],
        "map_size": [64, 64],
        "parts": ["brightness", "valid"],
        "profile": NONE.to_dict(),
        "calibration": {"score": knots, "map": knots, "frames": 100},
        "quality": {},
        "alert": {
            "enter": 0.995,
            "leave": 0.9,
            "min_duration_s": 0.2,
            "merge_gap_s": 0.5,
            "refractory_s": 0.0,
            "time_constant_s": 0.2,
        },
        "parity": {
            "score_abs": 1e-4,
            "map_abs": 1e-4,
            "calibrated_abs": 0.02,
            "calibrated_mean": 0.01,
            "alert_flips": 0.1,
            "map_correlation": 0.99,
        },
        "training": {"config": {}, "data": []},
        "figures": {},
        "licences": [],
        **changes,
    }


def write_toy_bundle(
    path: Path,
    *,
    program: bytes | None = None,
    golden: Golden | None = None,
    extra_files: Mapping[str, bytes] | None = None,
    overwrite: bool = False,
    **changes: Any,
) -> Bundle:
    """Write the toy bundle as the folder `path`; `changes` replace keys of its manifest."""
    return write_bundle(
        path,
        program=toy_program() if program is None else program,
        golden=golden or toy_golden(),
        manifest=toy_manifest(**changes),
        extra_files=extra_files,
        overwrite=overwrite,
    )
