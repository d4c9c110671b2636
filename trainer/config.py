"""What a training may change, in one typed place per stage.

A configuration is a preset (`trainer/presets/*.toml`), then a TOML file of the user's, then
`KEY=VALUE` settings with dotted keys, each on top of the one before. Unknown keys are refused.
"""

import math
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ccdstream.errors import ConfigError

PRESETS = ("smoke", "brief", "quick", "paper", "paper-liu", "paper-lag")

Side = Literal[64, 128, 256]
"""Side of a picture that a 256x256 view is averaged down to, in pixels."""
Norm = Literal["affine", "batch"]
""""affine": a learned per-channel scale and shift, which is what the released code's batch norm,
kept in eval mode, amounts to; "batch": batch norm in train mode."""
DetectorName = Literal["igd", "fanogan", "msssim_ae", "dae", "patchcore", "padim"]


_AT_LEAST_1 = (1, math.inf)
_SHARE = (0, 1)
_ABOVE_0 = (1e-12, math.inf)
_LIMITS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(
        (
            *("bank_size", "batch_size", "candidates", "critic_steps", "dims", "estimate_every"),
            *("estimate_samples", "hidden_dim", "latent_dim", "patch_stride_px", "projection_dim"),
            "views",
        ),
        _AT_LEAST_1,
    ),
    **dict.fromkeys(
        (
            *("average", "blur_p", "clean_p", "cutout_p", "distractor_p", "enter", "leave"),
            *("lesion_share", "local_top_fraction", "min_valid", "momentum", "patch_share"),
            *("patches_p", "rho", "second_p", "top_fraction", "unclean_share"),
        ),
        _SHARE,
    ),
    **dict.fromkeys(
        ("encoder_learning_rate", "learning_rate", "temperature", "time_constant_s", "width"),
        _ABOVE_0,
    ),
    "crop_scale_min": (1e-3, 1),
    "position_patch_px": (8, 64),
}
"""What numbers may be, by the setting's name, which means the same wherever it stands; others are 0
or more."""


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The feature network f. Defaults are the paper's."""

    name: Literal[
        "resnet18",
        "resnet34",
        "resnet50",
        "mobilenet_v3_small",
        "mobilenet_v3_large",
        "efficientnet_b0",
        "efficientnet_b1",
        "efficientnet_b2",
        "efficientnet_b3",
        "efficientnet_lite0",
        "tiny",
    ] = "resnet18"
    weights: str = "auto"
    """"auto": ImageNet weights where they are installed or cached, else a random start, which is
    said; "imagenet": the same, but their absence is an error; "none": random; or a file: the state
    dict of that network, as published or as `Backbone.state_dict` gives it."""
    blocks: int = 0
    """Leading blocks of efficientnet_lite0 to keep (1 to 16); 0 keeps all."""


@dataclass(frozen=True, kw_only=True)
class PatchcoreConfig:
    """PatchCore: a bank of normal features."""

    bank_size: int = 4096
    """Features kept: 0.9 % of those of 700 frames, two thirds valid; the paper keeps 1 to 25 %."""
    candidates: int = 50_000
    """Features at most, drawn at random, that the bank is chosen from: bounds memory and time."""
    projection_dim: int = 128
    """Of the random projection in which they are compared for that choice; the released code's."""
    top_fraction: float = 0.05
    """The score is the mean over this share of a frame's cells; 0: the highest, as in the paper."""


@dataclass(frozen=True, kw_only=True)
class PadimConfig:
    """PaDiM: a Gaussian at every place."""

    dims: int = 64
    """Channels drawn at random. The Gaussians grow with the square; the paper takes 100."""
    top_fraction: float = 0.05
    """The score is the mean over this share of a frame's cells; 0: the highest, as in the paper."""


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Where and how a training computes."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the networks' arithmetic; losses are always float32. "auto": bf16 on a GPU that has it,
    fp16 on an older one, fp32 on a CPU."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether networks go through torch.compile. "auto": on a GPU."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Constrained contrastive distribution learning, eq. 1 to 4.

    Both `steps` and `epochs` 0: no pre-training, the backbone keeps its start.
    """

    steps: int = 0
    """Optimiser steps; 0: `epochs` decide."""
    epochs: int = 2000
    """Passes over the images times the strong classes, as the paper counts."""
    batch_size: int = 32
    """Items a step, an item being an image under one strong class; each gives two views."""
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 3e-4  # the released code's
    temperature: float = 0.2
    projection_dim: int = 128
    projection_layers: Literal[2, 3] = 2
    strong: Literal["none", "permutation", "rotation", "cutout", "noise", "jigsaw"] = "permutation"
    """The set A_n of strong augmentations; "none" leaves plain SimCLR."""
    negatives: Literal["batch", "same_strong", "all_strong"] = "batch"
    """What an item is contrasted with. "batch": every other item, of any strong class (the released
    code); "same_strong": items of its own strong class (eq. 2 read literally); "all_strong": every
    other item, where a batch holds each of its images under all strong classes (CSI, Tack et al.
    2020)."""
    symmetric: bool = False
    """Both views are anchors, as in SimCLR and CSI; the released code takes the first only."""
    contrastive_weight: float = 1.0
    """Of eq. 2 in eq. 1; 0 with rotations leaves RotNet."""
    classification_weight: float = 1.0
    """Of eq. 3; an early version of the released code has 0.7."""
    classification_views: Literal["both", "first"] = "both"
    """Which views the strong class is told from; "first" in that early version."""
    position_weight: float = 1.0
    """Of eq. 4; 0 leaves it out, as the released code does for the global model."""
    position_patch_px: int = 32
    heads: Literal["trained", "frozen"] = "trained"
    """"frozen": the last layers of classification and position have fixed weights of unit length
    over the classes and learn their bias alone, as in the released code."""
    min_valid: float = 0.95
    """Least share of valid pixels in what is contrasted, which is the largest such square of each
    frame, or a patch: see `trainer.sampling.Squares`. 0: whole frames, and patches of which half is
    valid."""
    crop_scale_min: float = 0.2
    blur_p: float = 0.0  # the paper lists blur, the released code has none
    cutout_p: float = 0.0  # in the weak set of one released version, not in the paper


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """What detectors that reconstruct have in common; defaults are IGD's released code's."""

    batch_size: int = 16
    """Images a step (the global model) or patches a step (the local one)."""
    learning_rate: float = 1e-4
    latent_dim: int = 128
    width: float = 1.0
    """Scales every channel count of decoder and critic; 1 is the released code's."""
    decoder_norm: Norm = "affine"
    train_backbone: bool = False
    """Fine-tune the backbone too. The paper's text says so, the released code freezes it."""


@dataclass(frozen=True, kw_only=True)
class IgdConfig(ReconstructionConfig):
    """Interpolated Gaussian descriptor, eq. 5 and 6; defaults are the released code's."""

    steps: int = 0
    """Optimiser steps; 0: `epochs` decide."""
    epochs: int = 256
    rho: float = 0.15
    gaussian_weight: float = 1.0
    interpolation_weight: float = 0.1
    estimate_every: int = 1000
    """Steps between two estimates of the Gaussian's centre and spread."""
    estimate_samples: int = 2048
    """Pictures or patches, at least, that an estimate is made from."""


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(ReconstructionConfig):
    """The MS-SSIM auto-encoder and the denoising one: a reconstruction loss and nothing else."""

    steps: int = 0
    """Optimiser steps; 0: `epochs` decide."""
    epochs: int = 256
    noise_std: float = 0.2
    """Of the noise that the denoising auto-encoder takes away, in units of a normalised pixel."""


@dataclass(frozen=True, kw_only=True)
class FanoganConfig(ReconstructionConfig):
    """f-AnoGAN, eq. 7; rates, critic steps, penalty and kappa are those of Schlegl et al. 2019, the
    lengths and the batch IGD's.

    `learning_rate` is that of generator and critic.
    """

    gan_steps: int = 0
    """Generator steps of the first stage, WGAN-GP; 0: `gan_epochs` decide."""
    gan_epochs: int = 256
    encoder_steps: int = 0
    """Steps of the second stage, the encoder; 0: `encoder_epochs` decide."""
    encoder_epochs: int = 256
    encoder_learning_rate: float = 5e-5
    critic_steps: int = 5
    """Critic steps to one of the generator."""
    gradient_penalty: float = 10.0
    kappa: float = 1.0
    """Weight of the critic's features in the encoder's loss."""
    decoder_norm: Norm = "batch"  # as the original


@dataclass(frozen=True, kw_only=True)
class FeaturesConfig:
    """What frozen features of the whole frame add to the detector."""

    encoder: Literal["start", "pretrained"] = "start"
    """Whose they are: the start's of `global_backbone` (ImageNet's, where there are such weights),
    or the pre-trained global encoder's."""
    frame_gaussian: bool = False
    """The Mahalanobis distance of the frame's descriptor to those of normal frames."""


@dataclass(frozen=True, kw_only=True)
class LocaliserConfig:
    """The network on frozen features that is taught on synthetic lesions."""

    steps: int = 0
    """Optimiser steps; 0: no localiser."""
    batch_size: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    width: int = 64
    """Channels of its layers."""
    average: float = 0.99
    """Share of the running mean of the weights that a step keeps."""
    clean_p: float = 0.25
    """How often a frame gets no lesion."""
    second_p: float = 0.2
    """How often one with a lesion gets another."""
    distractor_p: float = 0.35
    """How often a frame gets something else that a normal colon shows."""
    patches_p: float = 0.3
    """How often the frame is one of the pictures that are for pre-training alone."""
    top_fraction: float = 0.02
    """The score is the mean over this share of a frame's cells, the highest."""


@dataclass(frozen=True, kw_only=True)
class ProgramConfig:
    """The exported graph: patch grid and how its terms become one score and one map."""

    patch_stride_px: int = 16
    local_top_fraction: float = 0.05
    """The local terms are the mean over this share of a frame's highest patches. The released
    code takes the maximum (0 here), which on video follows single bubbles and highlights."""
    score_weights: dict[str, float] = field(default_factory=dict)
    """Weight of each term of the score, as `global_gaussian`, after each was standardised on
    calibration frames; empty: all the same. The released constants (0.1/0.9 and 0.9/0.1) are
    MVTec's and belong to terms that were not standardised."""
    map_weights: dict[str, float] = field(default_factory=dict)
    """Weight of each term of the map, likewise."""


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """A small network that predicts another bundle's score and map.

    Defaults take two CPU cores 20 to 25 minutes: the reference answers for every view once, then
    the student passes over them.
    """

    name: str = ""
    """Of the bundle; empty: the reference's with "-student"."""
    inherit: bool = True
    """Take over the reference's localiser and Gaussian on frozen features as they are, where it has
    them: then nothing is trained, and the settings below count for nothing."""
    backbone: BackboneConfig = BackboneConfig(name="efficientnet_lite0", blocks=8)
    frozen_layers: int = 5
    """Leading layers of the backbone that keep a trained start: efficientnet_lite0's stem (3) and
    two blocks, half of the arithmetic of a step. A random start is trained whole."""
    width: int = 32
    """Channels of the fine map."""
    hidden_dim: int = 64
    """Of the layer before the score."""
    views: int = 6000
    """Augmented views that the reference answers for."""
    lesion_share: float = 0.5
    """Of the views of normal frames and patches: into how many a synthetic lesion is pasted."""
    patch_share: float = 0.15
    """Of the views: how many are made of images for pre-training alone, where there are any."""
    unclean_share: float = 0.15
    """Likewise of unclean frames."""
    steps: int = 0
    """Optimiser steps; 0: `epochs` decide."""
    epochs: int = 5
    """Passes over the views."""
    batch_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    hot_weight: float = 1.0
    """How much more a cell counts for each standard deviation that the reference's map is above the
    frame's mean there, up to three."""
    correlation_weight: float = 0.5
    """Of one minus the correlation of each frame's map with the reference's."""
    score_weight: float = 1.0
    """Of the score's distance."""
    ranking_weight: float = 0.5
    """Of the pairs of a batch whose scores are in the wrong order."""


@dataclass(frozen=True, kw_only=True)
class AlertConfig:
    """When the runtime raises an alert. Scores are fractions of normal frames that lie lower."""

    enter: float = 0.95
    leave: float = 0.90
    min_duration_s: float = 0.5
    merge_gap_s: float = 1.0
    refractory_s: float = 0.0
    time_constant_s: float = 0.2


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole training: from normal frames to a bundle."""

    name: str = "ccd"
    preset: str = ""
    seed: int = 0
    profile: Literal["auto", "hyperkvasir", "none"] = "auto"
    """Which part of every still is masked: see `ccdstream.view.Profile`. "auto": HyperKvasir's
    inset and text where the data names that set as its source, else borders and glare alone."""
    max_images: int = 0
    """Use only this many images each to train on, to calibrate with and for pre-training alone; 0:
    all."""
    checkpoint_every_s: float = 60.0
    detector: DetectorName = "igd"
    """What scores on the pre-trained features; "patchcore" and "padim" on whole frames only."""
    scales: Literal["both", "global", "local"] = "both"
    """Whole frames, patches, or both."""
    global_size_px: Side = 256
    """Side of the global model's picture; below 256 the program averages the view down to it."""
    local_size_px: Side = 256
    """Side of the picture that the local model's 32x32 patches are cut from."""
    compute: ComputeConfig = ComputeConfig()
    global_backbone: BackboneConfig = BackboneConfig()
    local_backbone: BackboneConfig = BackboneConfig()
    global_pretrain: PretrainConfig = PretrainConfig(position_weight=0.0)
    local_pretrain: PretrainConfig = PretrainConfig()
    global_igd: IgdConfig = IgdConfig()
    local_igd: IgdConfig = IgdConfig(batch_size=450)
    global_autoencoder: AutoencoderConfig = AutoencoderConfig()
    local_autoencoder: AutoencoderConfig = AutoencoderConfig(batch_size=450)
    global_fanogan: FanoganConfig = FanoganConfig()
    local_fanogan: FanoganConfig = FanoganConfig(batch_size=450)
    patchcore: PatchcoreConfig = PatchcoreConfig()
    padim: PadimConfig = PadimConfig()
    features: FeaturesConfig = FeaturesConfig()
    localiser: LocaliserConfig = LocaliserConfig()
    program: ProgramConfig = ProgramConfig()
    alert: AlertConfig = AlertConfig()
    student: StudentConfig = StudentConfig()
    """With `ccdstream train --student` alone."""

    def as_dict(self) -> dict[str, Any]:
        """Plain nested dict, for JSON."""
        return asdict(self)


def load_config(preset: str, file: Path | None = None, settings: Sequence[str] = ()) -> TrainConfig:
    """Build a configuration from a preset, a TOML file and `KEY=VALUE` settings.

    Raises:
        ConfigError: the preset, a key or a value is not known, or the alert rule is none.
    """
    if preset not in PRESETS:
        raise ConfigError(f"no preset named {preset!r}. Known presets: {', '.join(PRESETS)}.")
    preset_file = Path(__file__).parent / "presets" / f"{preset}.toml"
    table = _read(preset_file)
    config: TrainConfig = _merge(TrainConfig(preset=preset), table, f"preset {preset}", "")
    if file is not None:
        config = _merge(config, _read(file), str(file), "")
    return with_settings(config, settings)


def with_settings(config: TrainConfig, settings: Sequence[str]) -> TrainConfig:
    """`config` with `KEY=VALUE` settings on top.

    Raises:
        ConfigError: a key or a value is not known, or the alert rule is none.
    """
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator:
            raise ConfigError(
                f"--set {setting} has no '='. Write --set KEY=VALUE, e.g. "
                "--set local_igd.steps=2000."
            )
        if not all(key.strip().split(".")):
            raise ConfigError(f"--set {setting} names no key. Write --set KEY=VALUE.")
        change: Any = _parse_value(value)
        for name in reversed(key.strip().split(".")):
            change = {name: change}
        config = _merge(config, change, f"--set {setting}", "")
    _check_alert(config.alert)
    return config


def _check_alert(alert: AlertConfig) -> None:
    """See that the runtime takes the rule: both thresholds, wherever each was set."""
    if not 0 < alert.leave <= alert.enter <= 1:
        raise ConfigError(
            f"alert.leave is {alert.leave} and alert.enter is {alert.enter}. Expected 0 < leave <= "
            "enter <= 1: an alert closes at the score that it opens at, or a lower one. Set both."
        )


def _parse_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word, as in backbone.weights=none


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read configuration {path}: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a TOML file: {error}.") from error


def _merge(config: Any, table: dict[str, Any], source: str, prefix: str) -> Any:
    types = get_type_hints(type(config))
    known = {f.name for f in fields(config)}
    if unknown := sorted(set(table) - known):
        near = [name for name in sorted(known) if name.endswith(f"_{unknown[0]}")]
        near = near or get_close_matches(unknown[0], known, n=2)
        meant = f" Did you mean {' or '.join(prefix + name for name in near)}?" if near else ""
        raise ConfigError(
            f"{source}: unknown key {prefix}{unknown[0]}.{meant} Known keys"
            f"{' of ' + prefix.rstrip('.') if prefix else ''}: {', '.join(sorted(known))}."
        )
    changes = {}
    for key, value in table.items():
        before = getattr(config, key)
        if is_dataclass(before):
            if not isinstance(value, dict):
                name = next(f.name for f in fields(before))
                raise ConfigError(
                    f"{source}: {prefix}{key} is a table, got {value!r}. Set one of its keys, as "
                    f"{prefix}{key}.{name}."
                )
            changes[key] = _merge(before, value, source, f"{prefix}{key}.")
        else:
            changes[key] = _checked(value, before, types[key], source, prefix + key)
    return replace(config, **changes)


def _checked(value: Any, before: Any, kind: Any, source: str, key: str) -> Any:
    """`value` as type `kind`; in a dict, keys that are not given keep their value."""
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ConfigError(
                f"{source}: {key} must be one of {', '.join(map(str, get_args(kind)))}, "
                f"got {value!r}."
            )
        return value
    if isinstance(before, dict):
        numbers = isinstance(value, dict) and all(
            isinstance(v, (int, float)) and not isinstance(v, bool) for v in value.values()
        )
        if not numbers:
            raise ConfigError(f"{source}: {key} is a table of numbers, got {value!r}.")
        return before | {name: float(v) for name, v in value.items()}
    if kind is bool and not isinstance(value, bool):
        raise ConfigError(f"{source}: {key} must be true or false, got {value!r}.")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{source}: {key} must be {kind.__name__}, got {value!r}.")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        low, high = _LIMITS.get(key.rpartition(".")[2], (0, math.inf))
        if not (low <= value <= high and math.isfinite(value)):
            expected = "above 0" if (low, high) == _ABOVE_0 else f"{low:g} or more"
            expected = expected if math.isinf(high) else f"from {low:g} to {high:g}"
            raise ConfigError(f"{source}: {key} must be {expected}, got {value!r}.")
    return value
