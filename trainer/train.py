"""Normal frames in, model bundle out: the stages of a training, in order.

views -> pre-training (global, local) -> IGD (global, local) -> program -> calibration -> bundle
"""

import platform
import subprocess
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ccdstream import sample
from ccdstream.bundle import Bundle, Golden, load_bundle, write_bundle
from ccdstream.engine.select import open_engine
from ccdstream.errors import OutputError
from ccdstream.frames import View
from ccdstream.quality import QualityLimits, measure
from ccdstream.view import HYPERKVASIR, NONE, Profile, view_of_image, whole_frame
from trainer.augment import STRONG
from trainer.backbone import Backbone, make_backbone
from trainer.calibrate import Calibrated, calibrate, standardise
from trainer.config import IgdConfig, PretrainConfig, TrainConfig
from trainer.data import Item, Views, content_hash, find_data, load_views
from trainer.detectors.igd import PATCH_PX, Igd, train_igd
from trainer.export import FRAME_PX, MAP_SIZE, PARTS, Program, onnx_program, round_weights
from trainer.pretrain import pretrain
from trainer.runs import Run, Say, plot_losses, say_on_stderr
from trainer.sampling import Pool

PARITY = {"score_abs": 0.05, "map_abs": 0.25}
"""Largest difference from the golden outputs that an engine may show, in units of the standard
deviation of calibration frames (score) and pixels (map)."""
_PROFILES = {"hyperkvasir": HYPERKVASIR, "none": NONE}
_TERMS = {
    "hk_": "HyperKvasir, CC BY 4.0",
    "kvasirv1_": "Kvasir v1, research and education",
    "cp_child": "CP-CHILD, believed CC BY 4.0",
}
"""Terms of the public sets that an index.csv's `source` names, by the source's first letters."""


def train(
    data: Path,
    output: Path,
    config: TrainConfig,
    *,
    command: str,
    resume: bool = False,
    overwrite: bool = False,
    say: Say = say_on_stderr,
) -> Bundle:
    """Train a bundle from the normal frames in `data` and write it to `output`.

    The run's checkpoints, metrics and loss plot lie in the folder `OUTPUT.run` beside it.

    Args:
        command: what the user typed, for the manifest.
        resume: go on with the run in `OUTPUT.run`.

    Raises:
        DataError: the data is missing or not usable.
        ConfigError: backbone weights cannot be had.
        OutputError: `output` or its run folder exists, or cannot be written.
    """
    if output.exists() and not overwrite:
        raise OutputError(f"{output} is there already. Name another, or pass --overwrite.")
    started = time.monotonic()
    dataset = find_data(data)
    profile = _PROFILES[config.profile]
    limit = config.max_images or None
    train_items, calibration_items = dataset.train[:limit], dataset.calibration[:limit]
    pretrain_items = dataset.pretrain[:limit]
    say(
        f"data: {len(train_items)} normal frames to train on, {len(calibration_items)} to "
        f"calibrate with, {len(pretrain_items)} more patches for pre-training"
    )
    run = Run(
        output.with_name(output.name + ".run"),
        _what_checkpoints_depend_on(config)
        | {"data": content_hash([*train_items, *pretrain_items])},
        resume=resume,
        say=say,
        checkpoint_every_s=config.checkpoint_every_s,
    )
    torch.manual_seed(config.seed)  # the networks' random starts
    train_views = load_views(train_items, profile)
    calibration_views = load_views(calibration_items, profile)
    frames = _pool(train_views)
    patches_from = _joined(frames, _pool(load_views(pretrain_items, NONE)))
    held_out = _pool(calibration_views)

    whole_backbone, whole_start = make_backbone(config.global_backbone)
    local_backbone, local_start = make_backbone(config.local_backbone)
    say(f"global backbone: {config.global_backbone.name}, {whole_start.description}")
    say(f"local backbone: {config.local_backbone.name}, {local_start.description}")
    _pretrain_both(whole_backbone, local_backbone, frames, patches_from, config, run)
    whole = Igd(whole_backbone, config.global_igd, config.global_size_px)
    local = Igd(local_backbone, config.local_igd, PATCH_PX)
    _train_both(whole, local, frames, config, run)

    say("export: standardising the terms, writing the program, calibrating")
    program = Program(whole, local, config.program, config.global_igd.rho).eval()
    round_weights(program)
    standardise(program, held_out)
    manifest = {
        "name": config.name,
        "commit": _commit(),
        "command": command,
        "input_size": [FRAME_PX, FRAME_PX],
        "map_size": [MAP_SIZE, MAP_SIZE],
        "parts": list(PARTS),
        "profile": profile.to_dict(),
        "quality": _quality(train_views, calibration_views).to_dict(),
        "alert": config.as_dict()["alert"],
        "parity": PARITY,
        "licences": sorted({s.licence for s in (whole_start, local_start) if s.licence}),
        "figures": {},
        "training": {
            "config": config.as_dict(),
            "data": [
                _described("train", train_items),
                _described("calibration", calibration_items),
                _described("pretrain", pretrain_items),
            ],
            "backbones": {"global": whole_start.description, "local": local_start.description},
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, "
            f"torch {torch.__version__}, Python {platform.python_version()}",
        },
    }
    bundle = _export(program, held_out, manifest, output, overwrite)
    plot_losses(run)
    say(
        f"{output}: {sum(f['bytes'] for f in bundle.manifest['files'].values()) / 1e6:.1f} MB, "
        f"{time.monotonic() - started:.0f} s; losses in {run.folder / 'losses.png'}"
    )
    return bundle


def _what_checkpoints_depend_on(config: TrainConfig) -> dict[str, Any]:
    """The configuration without what is decided after the last stage: that may change on resume."""
    later = ("name", "preset", "checkpoint_every_s", "program", "alert")
    return {key: value for key, value in config.as_dict().items() if key not in later}


def _pretrain_both(
    whole: Backbone,
    local: Backbone,
    frames: Pool,
    patches_from: Pool,
    config: TrainConfig,
    run: Run,
) -> None:
    pretrain(
        "pretrain_global",
        whole,
        partial(frames.frames, size_px=config.global_size_px),
        frames.frames,
        config.global_pretrain,
        _pretrain_steps(config.global_pretrain, len(frames.images)),
        run,
        size_px=config.global_size_px,
        seed=config.seed,
    )
    grid = (FRAME_PX // PATCH_PX) ** 2  # the paper's code cuts a frame into 64 patches
    pretrain(
        "pretrain_local",
        local,
        partial(patches_from.patches, patch_px=PATCH_PX),
        patches_from.frames,
        config.local_pretrain,
        _pretrain_steps(config.local_pretrain, grid * len(patches_from.images)),
        run,
        size_px=PATCH_PX,
        seed=config.seed,
    )


def _train_both(whole: Igd, local: Igd, frames: Pool, config: TrainConfig, run: Run) -> None:
    train_igd(
        "igd_global",
        whole,
        partial(frames.frames, config.global_igd.batch_size, size_px=config.global_size_px),
        config.global_igd,
        _igd_steps(config.global_igd, len(frames.images)),
        run,
        seed=config.seed,
    )
    grid = 225  # the released code trains on the 15x15 patches of stride 16
    train_igd(
        "igd_local",
        local,
        partial(frames.patches, config.local_igd.batch_size, patch_px=PATCH_PX),
        config.local_igd,
        _igd_steps(config.local_igd, grid * len(frames.images)),
        run,
        seed=config.seed,
    )


def _pretrain_steps(config: PretrainConfig, items: int) -> int:
    """Steps of a pre-training over `items` images or patches: an epoch sees each in every class."""
    if config.steps:
        return config.steps
    return config.epochs * (items * STRONG[config.strong].classes // config.batch_size)


def _igd_steps(config: IgdConfig, items: int) -> int:
    return config.steps or config.epochs * max(1, items // config.batch_size)


def _pool(views: Views) -> Pool:
    return Pool(torch.from_numpy(views.images), torch.from_numpy(views.valid))


def _joined(a: Pool, b: Pool) -> Pool:
    return Pool(torch.cat([a.images, b.images]), torch.cat([a.valid, b.valid]))


def _quality(*several: Views) -> QualityLimits:
    field = whole_frame((FRAME_PX, FRAME_PX))
    return QualityLimits.fit(
        [
            measure(View(image.transpose(1, 2, 0), valid, field))
            for views in several
            for image, valid in zip(views.images, views.valid, strict=True)
        ]
    )


def _described(name: str, items: Sequence[Item]) -> dict[str, Any]:
    sources: dict[str, int] = {}
    for item in items:
        sources[item.source] = sources.get(item.source, 0) + 1
    return {
        "name": name,
        "count": len(items),
        "sources": sources,
        "licences": sorted({_terms_of(source) for source in sources}),
        "sha256": content_hash(items),
    }


def _terms_of(source: str) -> str:
    """Under which terms the images of a source may be used, as far as it is known."""
    return next((t for start, t in _TERMS.items() if source.startswith(start)), "not stated")


def _golden_views(profile: Profile) -> tuple[np.ndarray, np.ndarray]:
    """Rendered frames, so that a bundle carries no picture of anybody."""
    pictures = [sample.still(1), sample.still(2), sample.lesion_still(3)[0]]
    views = [view_of_image(picture, profile) for picture in pictures]
    return (
        np.stack([view.image.transpose(2, 0, 1) for view in views]),
        np.stack([view.valid for view in views]),
    )


@torch.no_grad()
def _export(
    program: Program, held_out: Pool, manifest: dict[str, Any], output: Path, overwrite: bool
) -> Bundle:
    """Write the bundle: golden outputs by the eager program, calibration by the engine."""
    frames, valid = _golden_views(Profile.from_dict(manifest["profile"]))
    score, anomaly_map, parts = program(torch.from_numpy(frames), torch.from_numpy(valid))
    golden = Golden(frames, valid, score.numpy(), anomaly_map.numpy(), parts.numpy())
    onnx_file = onnx_program(program)
    unset = {"raw": [0.0], "fraction": [0.0], "tail_scale": 1.0}
    with tempfile.TemporaryDirectory() as scratch:
        first = write_bundle(
            Path(scratch) / "bundle",
            program=onnx_file,
            golden=golden,
            manifest=manifest | {"calibration": {"score": unset, "map": unset, "frames": 1}},
        )
        calibrated: Calibrated = calibrate(open_engine(first, device="cpu"), held_out)
    write_bundle(
        output,
        program=onnx_file,
        golden=golden,
        manifest=manifest | {"calibration": calibrated.as_manifest()},
        overwrite=overwrite,
    )
    return load_bundle(output)


def _commit() -> str:
    """The commit this code is at, with "+changes" where files differ; "unknown" outside git."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip()
