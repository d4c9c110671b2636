"""Two auto-encoders that score by reconstruction alone: MS-SSIM's and the denoising one.

MS-SSIM (Chen et al. 2022's baseline, "Ours - MS-SSIM" in the paper's table 3): 1 - MSSSIM is the
loss. Score and map depart from it, as IGD's do: see `trainer.detectors.igd.Igd`. Denoising (Masci
et al. 2011; Vincent et al. 2008): the squared error of a picture reconstructed from itself with
noise; at test no noise is added.
"""

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from trainer import losses
from trainer.backbone import DATA_RANGE, Backbone, Normalise
from trainer.compute import Minimiser
from trainer.config import AutoencoderConfig
from trainer.detectors.base import (
    Draw,
    Reconstructing,
    masked_mean,
    residual_error_map,
    squared_error_map,
)
from trainer.msssim import ms_ssim, scales_of
from trainer.runs import Run

Error = Literal["msssim", "squared"]


class Autoencoder(Reconstructing):
    """x^ = g(f(x)), and how far it is from x."""

    terms = ("reconstruction",)
    map_terms = ("reconstruction",)

    def __init__(
        self, backbone: Backbone, config: AutoencoderConfig, size_px: int, error: Error
    ) -> None:
        super().__init__(backbone, config, size_px)
        self.error = error

    def forward(self, x: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        x_hat = self.reconstruct(x)
        if self.error == "msssim":
            residual = residual_error_map(x, x_hat, inside, scales_of(self.size_px), rho=0.0)
        else:
            residual = squared_error_map(x, x_hat, inside)
        return masked_mean(residual, inside)[:, None], residual


def train_autoencoder(
    name: str,
    net: Autoencoder,
    draw: Draw,
    config: AutoencoderConfig,
    steps: int,
    run: Run,
    *,
    seed: int,
) -> None:
    """Train bottleneck and decoder on what `draw` gives; the backbone if configured.

    Minimises mean(1 - MSSSIM(x, x^)), or mean((x - g(f(x + noise)))^2) over valid pixels.
    """
    compute = run.compute
    normalise = compute.place(Normalise())
    compute.place(net)
    trainable = [p for p in net.parameters() if p.requires_grad]
    descent = Minimiser(
        torch.optim.Adam(trainable, config.learning_rate, betas=(0.0, 0.9), weight_decay=1e-6),
        compute,
    )
    stage = run.stage(name, steps, {"net": net}, {"descent": descent})
    scales = scales_of(net.size_px)
    similarity = partial(
        ms_ssim, window=scales.window, weights=scales.weights, data_range=DATA_RANGE
    )
    encode, decode = compute.compiled(net.encoder), compute.compiled(net.decoder)
    net.train()
    for step, generator in stage.steps(seed):
        descent.set_learning_rate(config.learning_rate * (1 - step / steps) ** 0.9)
        pixels, inside = draw(compute.share(config.batch_size), generator)
        x = normalise(pixels).contiguous(memory_format=torch.channels_last)
        seen = x
        if net.error == "squared":
            noise = torch.randn(x.shape, generator=generator, device=x.device)
            seen = x + config.noise_std * noise
        with compute.autocast():
            x_hat = decode(encode(seen))
        if net.error == "msssim":
            loss = losses.reconstruction(
                x, x_hat, rho=0.0, data_range=DATA_RANGE, valid=inside, ms_ssim=similarity
            ).mean()
        else:
            loss = masked_mean(squared_error_map(x, x_hat.float(), inside), inside).mean()
        descent.minimise(loss)
        stage.report({"reconstruction": loss})
    net.eval()
