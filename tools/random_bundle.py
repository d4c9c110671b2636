"""A bundle of a preset's networks with random weights: as fast as a trained one, good for nothing.

python tools/random_bundle.py paper -o FOLDER
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from ccdstream import sample
from ccdstream.bundle import Bundle, Golden, load_bundle, write_bundle
from ccdstream.errors import CcdstreamError
from ccdstream.view import Profile, view_of_image
from trainer.calibrate import MAP_LEVELS, SCORE_LEVELS, knots
from trainer.config import PRESETS, load_config
from trainer.export import Program, onnx_program, prepare
from trainer.train import scales, untrained

GOLDEN_SEEDS = (1, 2, 3)
_ANY_DIFFERENCE, _ANY_CORRELATION = 1e3, 1e-3
"""Limits of parity. Random networks see hardly a difference between frames, so there is no spread
of scores for a limit to be a share of; what is not finite still does not pass."""


def rendered_views(seeds: tuple[int, ...], profile: Profile) -> tuple[np.ndarray, np.ndarray]:
    """Views of drawn stills: uint8 [N, 3, 256, 256] and bool [N, 256, 256]."""
    views = [view_of_image(sample.still(seed), profile) for seed in seeds]
    return (
        np.stack([view.image.transpose(2, 0, 1) for view in views]),
        np.stack([view.valid for view in views]),
    )


@torch.no_grad()
def write_random_bundle(path: Path, preset: str) -> Bundle:
    """Write the bundle that `preset` would give, had its networks learnt nothing.

    Its golden outputs are those of its own program, its calibration that of three drawn frames, and
    all else is the default bundle's.

    Raises:
        ConfigError: there is no such preset.
        OutputError: something is at `path` already, or it cannot be written.
    """
    no_weights = [f"{scale}_backbone.weights=none" for scale in ("global", "local")]
    config = load_config(preset, None, no_weights)
    networks = {scale.name: untrained(config, scale).detector for scale in scales(config)}
    program = Program(
        networks.get("global"),
        networks.get("local"),
        config.program,
        local_size_px=config.local_size_px,
    )
    prepare(program)
    like = load_bundle().manifest
    frames, valid = rendered_views(GOLDEN_SEEDS, Profile.from_dict(like["profile"]))
    views = (torch.from_numpy(frames), torch.from_numpy(valid))
    terms, maps = program.terms(*views)
    program.part_mean.copy_(terms.mean(dim=0))
    program.map_mean.copy_(maps.mean(dim=(0, 2, 3)))
    score, anomaly_map, parts = (output.numpy() for output in program(*views))
    calibration = {
        "score": knots(score, SCORE_LEVELS),
        "map": knots(anomaly_map.ravel(), MAP_LEVELS),
        "frames": len(score),
    }
    return write_bundle(
        path,
        program=onnx_program(program),
        golden=Golden(frames, valid, score, anomaly_map, parts),
        manifest={
            **{key: like[key] for key in ("input_size", "map_size", "profile", "quality", "alert")},
            "name": f"random-{preset}",
            "commit": "unknown",
            "command": f"tools/random_bundle.py {preset}",
            "parts": list(program.parts),
            "calibration": calibration,
            "parity": dict.fromkeys(like["parity"], _ANY_DIFFERENCE)
            | {"map_correlation": _ANY_CORRELATION},
            "training": {"config": config.as_dict()},
            "figures": {},
            "licences": [],
        },
    )


def main() -> None:
    """Write the bundle and say how long it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("-o", "--output", type=Path, required=True, help="the bundle's folder")
    arguments = parser.parse_args()
    started = time.monotonic()
    try:
        bundle = write_random_bundle(arguments.output, arguments.preset)
    except CcdstreamError as error:
        parser.exit(1, f"error: {error}\n")
    print(f"{bundle.path}: {bundle.model_id}, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
