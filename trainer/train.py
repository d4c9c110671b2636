"""Normal frames in, model bundle out: the stages of a training, in order.

views -> pre-training -> detector, each for whole frames and for patches -> program -> calibration
-> bundle
"""

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ccdstream import sample
from ccdstream.bundle import (
    PROGRAM,
    Bundle,
    Golden,
    load_bundle,
    refuse_to_replace,
    write_bundle,
)
from ccdstream.engine.base import BuildOptions, CalibrationViews
from ccdstream.engine.gpu import find_gpus
from ccdstream.engine.parity import refer
from ccdstream.engine.select import open_engine
from ccdstream.errors import BundleError, ConfigError, EngineError
from ccdstream.fuse import extrapolation
from ccdstream.view import HYPERKVASIR, NONE, Profile, view_of_image
from trainer.augment import STRONG
from trainer.backbone import Backbone, Normalise, Start, make_backbone
from trainer.calibrate import Calibrated, batches, calibrate, standardise
from trainer.compute import Compute, open_compute
from trainer.config import (
    AutoencoderConfig,
    BackboneConfig,
    FanoganConfig,
    IgdConfig,
    PretrainConfig,
    TrainConfig,
)
from trainer.data import FEWEST_FRAMES, Dataset, Views, content_hash, find_data, load_views
from trainer.detectors.autoencoder import Autoencoder, train_autoencoder
from trainer.detectors.base import Detector, Draw, Reconstructing
from trainer.detectors.fanogan import Fanogan, train_encoder, train_gan
from trainer.detectors.features import Features
from trainer.detectors.frame_gaussian import fit_frame_gaussian
from trainer.detectors.igd import Igd, train_igd
from trainer.detectors.localiser import LesionDraw, Picture, train_localiser
from trainer.detectors.networks import PATCH_PX
from trainer.detectors.padim import Padim, fit_padim
from trainer.detectors.patchcore import PatchCore, fit_patchcore
from trainer.export import Program, onnx_program, prepare
from trainer.manifest import manifest_of
from trainer.pictures import draw_reconstructions, plot_losses
from trainer.pretrain import Items, items_a_step, pretrain
from trainer.relief import render_distractor, render_lesion
from trainer.runs import Progress, Run, Say, say_on_stderr, say_progress
from trainer.sampling import MIN_VALID, Patches, Pool, Squares
from trainer.synthetic import paste_lesion

_MASKED = {
    HYPERKVASIR: "HyperKvasir's inset and text (profile=none masks nothing more)",
    NONE: "nothing (profile=hyperkvasir masks that set's inset and text)",
}
_HYPERKVASIR_SOURCES = ("hk_", "hyperkvasir", "kvasir")
"""What the names of sources start with whose stills look like HyperKvasir's."""
WHOLE_FRAME_ONLY = ("patchcore", "padim")
"""Detectors that have no model of patches: they look at every place of a frame already."""


@dataclass(frozen=True, eq=False)
class Scale:
    """One of the two sizes that everything is trained at: whole frames, or patches of them."""

    name: Literal["global", "local"]
    size_px: int
    """Side of the pictures that the networks see."""
    backbone: BackboneConfig
    pretrain: PretrainConfig
    igd: IgdConfig
    autoencoder: AutoencoderConfig
    fanogan: FanoganConfig


def scales(config: TrainConfig) -> list[Scale]:
    """The scales that `config` trains, whole frames first."""
    whole = Scale(
        "global",
        config.global_size_px,
        config.global_backbone,
        config.global_pretrain,
        config.global_igd,
        config.global_autoencoder,
        config.global_fanogan,
    )
    local = Scale(
        "local",
        PATCH_PX,
        config.local_backbone,
        config.local_pretrain,
        config.local_igd,
        config.local_autoencoder,
        config.local_fanogan,
    )
    if config.scales == "global" or config.detector in WHOLE_FRAME_ONLY:
        return [whole]
    return [local] if config.scales == "local" else [whole, local]


def train(
    data: Path,
    output: Path,
    config: TrainConfig,
    *,
    command: str,
    resume: bool = False,
    overwrite: bool = False,
    tensorboard: bool = False,
    say: Say = say_on_stderr,
    on_progress: Callable[[Progress], None] = say_progress,
    stopped: Callable[[], bool] = lambda: False,
) -> Bundle | None:
    """Train a bundle from the normal frames in `data` and write it to `output`.

    The run's checkpoints, metrics and plots lie in the folder `OUTPUT.run` beside it. Under
    torchrun the processes share every batch, and the first writes the files.

    Args:
        command: what the user typed, for the manifest.
        resume: go on with the run in `OUTPUT.run`.
        tensorboard: also write the losses for TensorBoard, into the run's folder.
        stopped: asked after every step; once true, what was done is saved and KeyboardInterrupt
            raised.

    Returns:
        The bundle; None in a process that is not the first.

    Raises:
        DataError: the data is missing or not usable.
        ConfigError: backbone weights cannot be had, or settings that do not fit together.
        OutputError: `output` or its run folder exists, or cannot be written.
    """
    started = time.monotonic()
    refuse_to_replace(output, overwrite)
    with open_compute(config.compute) as compute:
        _check(config, compute)
        networks = [untrained(config, scale) for scale in scales(config)]
        features = untrained_features(config, networks)
        program = _program(
            config, networks, features
        )  # so that settings that do not fit are said now
        dataset = find_data(
            data,
            progress=lambda done, total: (
                say(f"looked through {done} of {total} recordings") if compute.leads else None
            ),
        )
        limit = config.max_images or None
        items = {
            "train": dataset.train[:limit],
            "calibration": dataset.calibration[:limit],
            "pretrain": dataset.pretrain[:limit],
        }
        with Run(
            output.with_name(output.name + ".run"),
            checkpoint_config(config)
            | {"data": content_hash([*items["train"], *items["pretrain"]])},
            resume=resume,
            say=say,
            on_progress=on_progress,
            stopped=stopped,
            checkpoint_every_s=config.checkpoint_every_s,
            compute=compute,
            tensorboard=tensorboard,
        ) as run:
            run.say(f"data: {dataset.layout}")
            run.say(
                f"{len(items['train'])} normal frames to train on, {len(items['calibration'])} to "
                f"calibrate with, {len(items['pretrain'])} more for pre-training; "
                f"on {compute.description}"
            )
            for each in networks:
                backbone = each.scale.backbone.name
                run.say(f"{each.scale.name} backbone: {backbone}, {each.start.description}")
            profile = _profile(config, dataset)
            run.say(f"masked besides borders and glare: {_MASKED[profile]}")
            views = {
                name: load_views(
                    some, NONE if name == "pretrain" else profile, progress=run.reading(name)
                )
                for name, some in items.items()
            }
            frames, more, held_out = (
                pool_of(views[name]) for name in ("train", "pretrain", "calibration")
            )
            try:
                for each in networks:
                    _train_networks(config, each, frames, more, run)
                    if compute.leads and isinstance(each.detector, Reconstructing):
                        picture = run.folder / f"reconstructions_{each.scale.name}.png"
                        draw_reconstructions(each.detector, held_out.shrunk(each.side), picture)
                if features is not None:
                    _train_features(config, features, frames, more, run)
            finally:  # a stopped run has its plot too
                if compute.leads and run.metrics():
                    plot_losses(run)
            if not compute.leads:
                return None
            run.say("export: standardising the terms, writing the program, calibrating")
            program.cpu()
            prepare(program)
            standardise(program, held_out)
            manifest = manifest_of(
                program,
                config,
                profile=profile,
                command=command,
                views=views,
                starts={each.scale.name: each.start for each in networks},
                compute=compute,
            )
            bundle = export_bundle(program, held_out, manifest, output, overwrite, run.say)
            compile_here(bundle, held_out, run.say)
            size = sum(file["bytes"] for file in bundle.manifest["files"].values())
            run.say(
                f"{output}: {size / 1e6:.1f} MB, {time.monotonic() - started:.0f} s; losses and "
                f"pictures in {run.folder}. Next: ccdstream evaluate DATA --model {output}"
            )
            return bundle


def _check(config: TrainConfig, compute: Compute) -> None:
    """See before anything is read that the settings fit together.

    Raises:
        ConfigError: they do not.
    """
    if 0 < config.max_images < FEWEST_FRAMES:
        raise ConfigError(
            f"max_images is {config.max_images}. Expected 0 for all, or {FEWEST_FRAMES} or more."
        )
    if config.detector in WHOLE_FRAME_ONLY and config.scales == "local":
        raise ConfigError(
            f"{config.detector} looks at whole frames and has no model of patches. Set scales to "
            "global."
        )
    for scale in scales(config):
        name, pretraining = scale.name, scale.pretrain
        if scale.backbone.blocks and scale.backbone.name != "efficientnet_lite0":
            raise ConfigError(
                f"{name}_backbone.blocks cuts efficientnet_lite0 alone, and {name}_backbone.name "
                f"is {scale.backbone.name}. Leave it 0."
            )
        if pretraining.position_patch_px % 4:
            raise ConfigError(
                f"{name}_pretrain.position_patch_px is {pretraining.position_patch_px}. Expected "
                "a multiple of 4."
            )
        if pretraining.steps or pretraining.epochs:
            items_a_step(f"{name}_pretrain", pretraining, compute)
        for key, given in _detector_settings(config, scale).items():
            compute.share(given.batch_size, f"{key}.batch_size")
            lengths = (
                [given.gan_steps or given.gan_epochs, given.encoder_steps or given.encoder_epochs]
                if isinstance(given, FanoganConfig)
                else [given.steps or given.epochs]
            )
            if not all(lengths):
                raise ConfigError(f"{key} has no steps and no epochs. Set one of them.")


def _detector_settings(
    config: TrainConfig, scale: Scale
) -> dict[str, IgdConfig | AutoencoderConfig | FanoganConfig]:
    """The settings of the detector that is trained by steps, by the key that they stand under."""
    match config.detector:
        case "igd":
            return {f"{scale.name}_igd": scale.igd}
        case "msssim_ae" | "dae":
            return {f"{scale.name}_autoencoder": scale.autoencoder}
        case "fanogan":
            return {f"{scale.name}_fanogan": scale.fanogan}
    return {}


def _profile(config: TrainConfig, dataset: Dataset) -> Profile:
    if config.profile == "auto":
        ours = any(item.source.startswith(_HYPERKVASIR_SOURCES) for item in dataset.train)
        return HYPERKVASIR if ours else NONE
    return HYPERKVASIR if config.profile == "hyperkvasir" else NONE


def checkpoint_config(config: TrainConfig) -> dict[str, Any]:
    """What checkpoints depend on: the rest is decided after the last stage, or computes the same,
    and may change on resume."""
    later = ("name", "preset", "checkpoint_every_s", "compute", "program", "alert", "student")
    return {key: value for key, value in config.as_dict().items() if key not in later}


@dataclass(frozen=True, eq=False)
class Networks:
    """The backbone of a scale and the detector on it, which holds it."""

    scale: Scale
    backbone: Backbone
    start: Start
    detector: Detector
    side: int
    """Of the frames that the detector's pictures are, or are cut from, in pixels."""


def untrained(config: TrainConfig, scale: Scale) -> Networks:
    """The networks of a scale before any step.

    Raises:
        ConfigError: backbone weights cannot be had.
    """
    torch.manual_seed(config.seed)  # so that a scale does not depend on the other
    backbone, start = make_backbone(scale.backbone)
    size_px = scale.size_px
    detector: Detector
    match config.detector:
        case "igd":
            detector = Igd(backbone, scale.igd, size_px)
        case "msssim_ae":
            detector = Autoencoder(backbone, scale.autoencoder, size_px, "msssim")
        case "dae":
            detector = Autoencoder(backbone, scale.autoencoder, size_px, "squared")
        case "fanogan":
            detector = Fanogan(backbone, scale.fanogan, size_px)
        case "patchcore":
            detector = PatchCore(backbone, config.patchcore, size_px)
        case "padim":
            detector = Padim(backbone, config.padim, size_px)
    side = config.global_size_px if scale.name == "global" else config.local_size_px
    return Networks(scale, backbone, start, detector, side)


def untrained_features(config: TrainConfig, networks: Sequence[Networks]) -> Features | None:
    """The detector on frozen features before any step; None where the configuration has none.

    Raises:
        ConfigError: backbone weights cannot be had, or do not fit.
    """
    if not (config.features.frame_gaussian or config.localiser.steps):
        return None
    torch.manual_seed(config.seed)
    if config.features.encoder == "start":
        backbone, _ = make_backbone(config.global_backbone)
    elif networks[0].scale.name == "global":
        backbone = networks[0].backbone
    else:
        raise ConfigError(
            f"features.encoder is pretrained, and scales {config.scales} trains no global encoder. "
            "Set scales to both or global, or features.encoder to start."
        )
    return Features(backbone, config.features, config.localiser)


def _program(
    config: TrainConfig, networks: Sequence[Networks], features: Features | None = None
) -> Program:
    detectors = {each.scale.name: each.detector for each in networks}
    return Program(
        detectors.get("global"),
        detectors.get("local"),
        config.program,
        local_size_px=config.local_size_px,
        features=features,
    )


def _train_networks(
    config: TrainConfig, networks: Networks, frames: Pool, more: Pool, run: Run
) -> None:
    """Pre-train the backbone, then train the detector, in place.

    Args:
        more: seen by the pre-training of patches alone.
    """
    scale, share = networks.scale, networks.scale.pretrain.min_valid
    frames = frames.to(run.compute.device)
    patch_px = scale.pretrain.position_patch_px
    if scale.name == "global":
        normal = seen = frames.shrunk(networks.side)
        items: Items = Squares(frames, scale.size_px, share).draw if share else seen.frames
        draw: Draw = normal.frames
        grid, overlapping_grid = 1, 1
    else:
        side = networks.side
        normal = frames.shrunk(side)
        seen = joined(normal, more.to(run.compute.device).shrunk(side)) if len(more) else normal
        items = Patches(seen, PATCH_PX, max(share, MIN_VALID)).draw
        draw = Patches(normal, PATCH_PX).draw
        grid, overlapping_grid = (side // PATCH_PX) ** 2, (2 * side // PATCH_PX - 1) ** 2
    torch.manual_seed(config.seed)  # so that heads and critic depend on nothing that went before
    pretrain(
        f"pretrain_{scale.name}",
        networks.backbone,
        items,
        Patches(seen, patch_px, max(share, MIN_VALID)).draw_pairs,
        scale.pretrain,
        pretrain_steps(scale.pretrain, grid * len(seen)),
        run,
        size_px=scale.size_px,
        seed=config.seed,
    )
    torch.manual_seed(config.seed)
    _train_detector(config, networks, normal, draw, overlapping_grid * len(normal), run)


def pretrain_steps(config: PretrainConfig, items: int) -> int:
    """Steps of a pre-training over `items` images or patches: an epoch sees each in every class.

    The released code cuts a frame into the 64 patches of a grid without overlap.
    """
    if config.steps:
        return config.steps
    return config.epochs * max(1, items * STRONG[config.strong].classes // config.batch_size)


def _train_detector(
    config: TrainConfig, networks: Networks, frames: Pool, draw: Draw, items: int, run: Run
) -> None:
    """Train the detector on what `draw` gives: `items` make an epoch; or fit it to every frame."""

    def steps(given: int, epochs: int, batch_size: int) -> int:
        return given or epochs * max(1, items // batch_size)

    seed, scale, detector = config.seed, networks.scale, networks.detector
    if isinstance(detector, Igd):
        igd = scale.igd
        count = steps(igd.steps, igd.epochs, igd.batch_size)
        train_igd(f"igd_{scale.name}", detector, draw, igd, count, run, seed=seed)
    elif isinstance(detector, Autoencoder):
        ae = scale.autoencoder
        count = steps(ae.steps, ae.epochs, ae.batch_size)
        name = f"{config.detector}_{scale.name}"
        train_autoencoder(name, detector, draw, ae, count, run, seed=seed)
    elif isinstance(detector, Fanogan):
        gan = scale.fanogan
        count = steps(gan.gan_steps, gan.gan_epochs, gan.batch_size)
        critic = train_gan(f"gan_{scale.name}", detector, draw, gan, count, run, seed=seed)
        count = steps(gan.encoder_steps, gan.encoder_epochs, gan.batch_size)
        name = f"encoder_{scale.name}"
        train_encoder(name, detector, critic, draw, gan, count, run, seed=seed)
    else:
        run.say(f"{config.detector}: fitted to {len(frames)} frames")
        run.compute.place(detector)
        pictures, source = _pictures(frames, run.compute), run.compute.generator(seed)
        if isinstance(detector, PatchCore):
            fit_patchcore(detector, pictures, source)
        elif isinstance(detector, Padim):
            fit_padim(detector, pictures, source)


@torch.no_grad()
def fit_features(features: Features, frames: Pool, compute: Compute) -> None:
    """Fit the Gaussian, where there is one, to every frame; place the networks."""
    compute.place(features).eval()
    if features.gaussian is not None:
        pictures = (
            (features.backbone.maps(x.contiguous(memory_format=torch.channels_last)), inside)
            for x, inside in _pictures(frames.to(compute.device), compute)
        )
        fit_frame_gaussian(features.gaussian, pictures)


def _paste(picture: Picture, other: Picture, rng: np.random.Generator) -> Picture:
    return paste_lesion(*picture, rng, donor=other)


def _render(picture: Picture, _: Picture, rng: np.random.Generator) -> Picture:
    return render_lesion(*picture, rng)


def _distract(picture: Picture, _: Picture, rng: np.random.Generator) -> Picture:
    return render_distractor(*picture, rng)


def _train_features(
    config: TrainConfig, features: Features, frames: Pool, more: Pool, run: Run
) -> None:
    """Fit the Gaussian to every frame, and teach the localiser on synthetic lesions."""
    fit_features(features, frames, run.compute)
    run.say(f"features: fitted to {len(frames)} frames")
    if features.localiser is not None:
        train_localiser(
            "localiser",
            features.localiser,
            features.backbone,
            lambda workers: LesionDraw(
                [frames, more], config.localiser, [_paste, _render], [_distract], workers
            ),
            config.localiser,
            run,
            seed=config.seed,
        )


def _pictures(pool: Pool, compute: Compute) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Every frame once: normalised float [n, 3, S, S], and valid float [n, 1, S, S]."""
    normalise = compute.place(Normalise())
    for images, valid in batches(pool):
        yield normalise(images.float() / 255), valid[:, None].float()


def pool_of(views: Views) -> Pool:
    """Views as a pool, without a copy."""
    return Pool(torch.from_numpy(views.images), torch.from_numpy(views.valid))


def joined(a: Pool, b: Pool) -> Pool:
    """The views of both."""
    return Pool(torch.cat([a.images, b.images]), torch.cat([a.valid, b.valid]))


def _golden_views(profile: Profile) -> tuple[np.ndarray, np.ndarray]:
    """Rendered frames, so that a bundle carries no picture of anybody."""
    pictures = [sample.still(1), sample.still(2), sample.lesion_still(3)[0]]
    views = [view_of_image(picture, profile) for picture in pictures]
    return (
        np.stack([view.image.transpose(2, 0, 1) for view in views]),
        np.stack([view.valid for view in views]),
    )


@torch.no_grad()
def export_bundle(
    program: Program,
    held_out: Pool,
    manifest: dict[str, Any],
    output: Path,
    overwrite: bool,
    say: Say,
) -> Bundle:
    """Write the bundle: golden outputs by the eager program, calibration by the engine.

    The figures recorded in a bundle that it replaces stay where it gives the same scores and
    alerts. Says where they do not, and where alerts open beyond what calibration frames tell.

    Raises:
        OutputError: `output` exists and `overwrite` is not set, or it cannot be written.
    """
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
    whole = manifest | {"calibration": calibrated.as_manifest()}
    figures, same = _recorded(output, onnx_file, whole)
    bundle = write_bundle(
        output,
        program=onnx_file,
        golden=golden,
        manifest=whole | {"figures": figures if same else {}},
        overwrite=overwrite,
    )
    if figures and not same:
        say(
            "recorded figures are dropped, for the program, calibration or limits are others: "
            f"measure again with ccdstream evaluate DATA --model {output} --record"
        )
    if said := extrapolation(calibrated.frames, float(bundle.alert["enter"])):
        say(said)
    return bundle


def _recorded(
    output: Path, program: bytes, manifest: dict[str, Any]
) -> tuple[dict[str, Any], bool]:
    """The figures of the bundle at `output`, none where there is no bundle that loads; and whether
    they hold for one of this program and manifest too."""
    try:
        old = load_bundle(output)
    except BundleError:
        return {}, False
    fresh = json.loads(json.dumps(manifest))  # as it will be read: tuples have become lists
    decide = ("profile", "quality", "calibration", "alert")
    same = old.sha256(PROGRAM) == hashlib.sha256(program).hexdigest() and all(
        old.manifest[key] == fresh[key] for key in decide
    )
    return dict(old.manifest["figures"]), same


_GATE_FRAMES = 64
"""Most calibration frames that a compiled engine is compared on."""


def compile_here(bundle: Bundle, held_out: Pool, say: Say) -> None:
    """Compile for this machine's GPU, where it has one, and hold the engine against the bundle.

    The bundle is whole without it: what fails here is said, and the first run tries again.
    """
    if find_gpus().problem:
        return
    views = CalibrationViews(
        held_out.images[:_GATE_FRAMES].numpy(), held_out.valid[:_GATE_FRAMES].numpy()
    )
    try:
        reference = refer(views, open_engine(bundle, device="cpu"))
        engine = open_engine(
            bundle, device="cuda", build=BuildOptions(say=say), reference=reference
        )
    except EngineError as error:
        say(f"not compiled for this machine: {error}")
    else:
        say(f"compiled for this machine: {engine.reason}")
