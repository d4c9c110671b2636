"""What a training may change, in one typed place per stage.

A configuration is a preset (`trainer/presets/*.toml`), then a TOML file of the user's, then
`KEY=VALUE` settings with dotted keys, each on top of the one before. Unknown keys are refused.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ccdstream.errors import ConfigError

PRESETS = ("smoke", "quick", "paper")


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
class PretrainConfig:
    """Constrained contrastive distribution learning, eq. 1 to 4."""

    steps: int = 0
    """Optimiser steps; 0: `epochs` decide."""
    epochs: int = 2000
    """Passes over the images times the strong classes, as the paper counts."""
    batch_size: int = 32
    """Items a step; each gives two views."""
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 3e-4  # the released code's
    temperature: float = 0.2
    projection_dim: int = 128
    strong: Literal["permutation", "rotation", "cutout", "noise", "jigsaw"] = "permutation"
    negatives: Literal["batch", "same_strong"] = "batch"  # eq. 2 read literally: same_strong
    classification_weight: float = 1.0
    position_weight: float = 1.0
    """0 leaves eq. 4 out, as the released code does for the global model."""
    position_patch_px: int = 32
    crop_scale_min: float = 0.2
    blur_p: float = 0.0  # the paper lists blur, the released code has none


@dataclass(frozen=True, kw_only=True)
class IgdConfig:
    """Interpolated Gaussian descriptor, eq. 5 and 6; defaults are the released code's."""

    steps: int = 0
    """Optimiser steps; 0: `epochs` decide."""
    epochs: int = 256
    batch_size: int = 16
    """Images a step (the global model) or patches a step (the local one)."""
    learning_rate: float = 1e-4
    latent_dim: int = 128
    width: float = 1.0
    """Scales every channel count of decoder and critic; 1 is the released code's."""
    rho: float = 0.15
    gaussian_weight: float = 1.0
    interpolation_weight: float = 0.1
    decoder_norm: Literal["affine", "batch"] = "affine"
    """"affine": a learned per-channel scale and shift, which is what the released code's batch
    norm, kept in eval mode, amounts to; "batch": batch norm in train mode."""
    estimate_every: int = 1000
    """Steps between two estimates of the Gaussian's centre and spread."""
    estimate_samples: int = 2048
    """Pictures or patches, at least, that an estimate is made from."""


@dataclass(frozen=True, kw_only=True)
class ProgramConfig:
    """The exported graph: patch grid and how its terms become one score and one map."""

    patch_stride_px: int = 16
    local_top_fraction: float = 0.05
    """The local terms are the mean over this share of a frame's highest patches. The paper takes
    the maximum (0 here), which on video follows single bubbles and highlights."""
    score_weights: dict[str, float] = field(
        default_factory=lambda: {
            "global_reconstruction": 0.25,
            "global_gaussian": 0.25,
            "local_reconstruction": 0.25,
            "local_gaussian": 0.25,
        }
    )
    """Weights of the terms after each was standardised on calibration frames. The released
    constants (0.1/0.9 and 0.9/0.1) are MVTec's and belong to terms that were not standardised."""
    map_weights: dict[str, float] = field(
        default_factory=lambda: {
            "global_reconstruction": 0.25,
            "local_reconstruction": 0.25,
            "local_gaussian": 0.5,
        }
    )


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
    profile: Literal["hyperkvasir", "none"] = "hyperkvasir"
    """Which part of every still is masked: see `ccdstream.view.Profile`."""
    max_images: int = 0
    """Use only this many training and calibration images each; 0: all."""
    checkpoint_every_s: float = 60.0
    global_size_px: Literal[64, 128, 256] = 256
    """Side of the global model's picture; below 256 the program averages the view down to it."""
    global_backbone: BackboneConfig = BackboneConfig()
    local_backbone: BackboneConfig = BackboneConfig()
    global_pretrain: PretrainConfig = PretrainConfig(position_weight=0.0)
    local_pretrain: PretrainConfig = PretrainConfig()
    global_igd: IgdConfig = IgdConfig()
    local_igd: IgdConfig = IgdConfig(batch_size=450)
    program: ProgramConfig = ProgramConfig()
    alert: AlertConfig = AlertConfig()

    def as_dict(self) -> dict[str, Any]:
        """Plain nested dict, for JSON."""
        return asdict(self)


def load_config(preset: str, file: Path | None = None, settings: Sequence[str] = ()) -> TrainConfig:
    """Build a configuration from a preset, a TOML file and `KEY=VALUE` settings.

    Raises:
        ConfigError: the preset, a key or a value is not known.
    """
    if preset not in PRESETS:
        raise ConfigError(f"no preset named {preset!r}. Known presets: {', '.join(PRESETS)}.")
    preset_file = Path(__file__).parent / "presets" / f"{preset}.toml"
    table = _read(preset_file)
    config: TrainConfig = _merge(TrainConfig(preset=preset), table, f"preset {preset}", "")
    if file is not None:
        config = _merge(config, _read(file), str(file), "")
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator:
            raise ConfigError(
                f"--set {setting} has no '='. Write --set KEY=VALUE, e.g. "
                "--set local_igd.steps=2000."
            )
        change: Any = _parse_value(value)
        for name in reversed(key.strip().split(".")):
            change = {name: change}
        config = _merge(config, change, f"--set {setting}", "")
    return config


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
        raise ConfigError(
            f"{source}: unknown key {prefix}{unknown[0]}. Known keys"
            f"{' of ' + prefix.rstrip('.') if prefix else ''}: {', '.join(sorted(known))}."
        )
    changes = {}
    for key, value in table.items():
        before = getattr(config, key)
        if is_dataclass(before):
            if not isinstance(value, dict):
                raise ConfigError(f"{source}: {prefix}{key} is a table, got {value!r}.")
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
        if not isinstance(value, dict) or set(value) - set(before):
            raise ConfigError(f"{source}: {key} takes the keys {', '.join(before)}.")
        return before | {name: float(v) for name, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{source}: {key} must be {kind.__name__}, got {value!r}.")
    if isinstance(value, (int, float)) and value < 0:
        raise ConfigError(f"{source}: {key} must not be negative, got {value!r}.")
    return value
