"""What the exported program asks of a detector, whatever it is."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from trainer.backbone import DATA_RANGE, Backbone
from trainer.config import ReconstructionConfig
from trainer.detectors.networks import Decoder
from trainer.msssim import Scales, residual_map

Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
"""Draws (count, generator): float [count, 3, S, S] in [0, 1], and what of it is valid, as float
[count, 1, S, S] of 0 and 1."""


class Detector(nn.Module, ABC):
    """What a trained detector ships: normalised pictures in, terms of the anomaly score and maps
    out."""

    size_px: int
    """Side S of the pictures it takes."""
    terms: tuple[str, ...]
    """Names of the terms of the score; each is higher where a picture is more anomalous."""
    map_terms: tuple[str, ...]
    """Those of them that have a value per pixel."""

    @abstractmethod
    def forward(self, x: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        """Score pictures.

        Args:
            x: float [N, 3, S, S], ImageNet-normalised.
            inside: float [N, 1, S, S] of 0 and 1, the valid pixels.

        Returns:
            scores float [N, len(terms)], and maps float [N, len(map_terms), s, s], where s is S or
            divides it; a map means nothing where the picture is not valid.
        """


class Encoder(nn.Module):
    """f: a backbone and the linear layer behind it: float [N, 3, S, S] -> latent z, float [N, D].

    The paper's 128 dimensions; the projection of pre-training is thrown away.
    """

    def __init__(self, backbone: Backbone, latent_dim: int, *, trains: bool) -> None:
        """`trains`: whether the backbone's weights are fine-tuned with the layer's."""
        super().__init__()
        self.backbone = backbone
        self.bottleneck = nn.Linear(backbone.dim, latent_dim)
        self.trains = trains
        backbone.requires_grad_(trains)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.bottleneck(self.backbone(x))
        return z

    def train(self, mode: bool = True) -> "Encoder":
        """Train mode for what is trained: a frozen backbone keeps its statistics."""
        super().train(mode)
        if not self.trains:
            self.backbone.eval()
        return self


class Reconstructing(Detector):
    """A detector that knows normal pictures by an encoder f and a decoder g."""

    def __init__(self, backbone: Backbone, config: ReconstructionConfig, size_px: int) -> None:
        super().__init__()
        self.size_px = size_px
        self.encoder = Encoder(backbone, config.latent_dim, trains=config.train_backbone)
        self.decoder = Decoder(config.latent_dim, size_px, config.width, config.decoder_norm)

    def reconstruct(self, x: Tensor) -> Tensor:
        """x^ = g(f(x)): float [N, 3, S, S], ImageNet-normalised, to the same."""
        x_hat: Tensor = self.decoder(self.encoder(x))
        return x_hat


def masked_mean(values: Tensor, inside: Tensor) -> Tensor:
    """Mean over the valid pixels, [N, 1, H, W] -> [N]; zero where there are none."""
    total = (values * inside).sum(dim=(1, 2, 3))
    return total / inside.sum(dim=(1, 2, 3)).clamp(min=1.0)


def residual_error_map(
    x: Tensor, x_hat: Tensor, inside: Tensor, scales: Scales, *, rho: float
) -> Tensor:
    """Per-pixel form of eq. 6 (`trainer.msssim.residual_map`), zero where not valid.

    Args:
        x, x_hat: float [N, 3, H, W], ImageNet-normalised. inside: float [N, 1, H, W] of 0 and 1.

    Returns:
        float [N, 1, H, W].
    """
    residual = residual_map(
        x,
        x_hat * inside + x * (1 - inside),
        rho=rho,
        window=scales.window,
        weights=scales.weights,
        data_range=DATA_RANGE,
    )
    return residual * inside


def squared_error_map(x: Tensor, x_hat: Tensor, inside: Tensor) -> Tensor:
    """Squared error, mean over the channels, zero where not valid: float [N, 1, H, W]."""
    return (x - x_hat).square().mean(dim=1, keepdim=True) * inside


def highest_mean(values: Tensor, scored: Tensor, top: int) -> Tensor:
    """Mean of the `top` highest scored values, or of all if fewer: [N, P] -> [N]; zero if none.

    Values are not negative.
    """
    highest = torch.where(scored > 0, values, -1.0).topk(top, dim=1).values
    counted = (highest >= 0).float()
    return (highest * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1.0)
