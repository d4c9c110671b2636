"""How far half precision and 8 bits move a bundle's outputs: the parity gate, without a GPU.

    python tools/measure_precision.py normal/calibration [--model BUNDLE] [--frames 64]

The rewritten programs run in ONNX Runtime on the CPU, which computes in half what it can. Of the
frames every other one gives int8 its ranges; the gate compares on the rest.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from ccdstream.bundle import load_bundle
from ccdstream.engine.base import (
    INPUTS,
    OUTPUTS,
    CalibrationViews,
    Device,
    EngineOutput,
    Precision,
    import_library,
)
from ccdstream.engine.parity import check_parity, refer
from ccdstream.engine.precision import program_in
from ccdstream.engine.select import open_engine
from ccdstream.errors import CcdstreamError
from ccdstream.stills import calibration_views, find_images

PRECISIONS: tuple[Precision, ...] = ("fp16", "int8")


class CpuEngine:
    """A program as it is, in ONNX Runtime."""

    name, version = "onnxruntime", ""
    device: Device = "cpu"

    def __init__(self, program: bytes) -> None:
        onnxruntime = import_library("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(program, options)

    def run(self, frames: np.ndarray, valid: np.ndarray) -> EngineOutput:
        """See `Engine.run`."""
        feeds = dict(zip(INPUTS, (frames, valid), strict=True))
        return EngineOutput(*self._session.run(OUTPUTS, feeds))


def main() -> None:
    parser = argparse.ArgumentParser(description="Parity of half precision and 8 bits on a CPU.")
    parser.add_argument("images", type=Path, nargs="+", help="Images of normal frames, or folders.")
    parser.add_argument("--model", type=Path, help="Bundle; the built-in one if not given.")
    parser.add_argument("--frames", type=int, default=64, help="Most frames to use.")
    given = parser.parse_args()
    try:
        bundle = load_bundle(given.model)
        views = calibration_views(find_images(given.images), bundle, most=given.frames)
        learned, held_out = (
            CalibrationViews(views.frames[part], views.valid[part])
            for part in (slice(0, None, 2), slice(1, None, 2))
        )
        reference = refer(held_out, open_engine(bundle, device="cpu"))
        program = bundle.program.read_bytes()
        for precision in PRECISIONS:
            started = time.monotonic()
            rewritten = program_in(precision, program, learned)
            seconds = time.monotonic() - started
            parity = check_parity(CpuEngine(rewritten), bundle, reference)
            verdict = "passes" if parity.passed else f"fails: {', '.join(parity.failures)}"
            print(f"{bundle.model_id} in {precision}: {verdict}")
            print(f"  {parity}; mean calibrated score {parity.mean_abs_calibrated:.2g}")
            print(f"  rewritten in {seconds:.1f} s to {len(rewritten) / 1e6:.1f} MB")
    except CcdstreamError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
