"""IGD, the interpolated Gaussian descriptor: Chen et al. 2022, as CCD uses it (eq. 5 and 6).

A frozen CCD encoder, a linear layer to the latent z, a decoder g that reconstructs, a Gaussian
with centre c and spread sigma around the latents of normal images, and a critic that keeps
decoded interpolations plausible.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from trainer import losses
from trainer.backbone import DATA_RANGE, Backbone, Normalise
from trainer.config import IgdConfig
from trainer.modes import evaluating
from trainer.msssim import GLOBAL, LOCAL, Scales, ms_ssim
from trainer.runs import Run

PATCH_PX = 32
"""Side of the paper's patches; above it a model sees whole frames."""

Draw = Callable[[torch.Generator], tuple[Tensor, Tensor]]
"""Draws a batch: (float [N, 3, H, W] in [0, 1], valid float [N, 1, H, W] of 0 and 1)."""


class ChannelAffine(nn.Module):
    """A learned scale and shift per channel: batch norm that never normalises."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.shift = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class UpBlock(nn.Module):
    """Residual block that doubles height and width: [N, a, H, W] -> [N, b, 2H, 2W]."""

    def __init__(self, c_in: int, c_out: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        up = partial(nn.Upsample, scale_factor=2, mode="nearest")
        self.main = nn.Sequential(
            norm(c_in),
            nn.ReLU(),
            up(),
            nn.Conv2d(c_in, c_out, 3, padding=1, bias=False),
            norm(c_out),
            nn.ReLU(),
            nn.Conv2d(c_out, c_out, 3, padding=1),
        )
        # 1x1 before the upsampling: the same values as after it, at a quarter of the cost
        self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1), up())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.main(x) + self.shortcut(x)
        return out


class DownBlock(nn.Module):
    """Residual block that halves height and width: [N, a, H, W] -> [N, b, H/2, W/2].

    Layer norm over (C, H, W), as WGAN-GP critics have.
    """

    def __init__(self, c_in: int, c_out: int, size_px: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.LayerNorm([c_in, size_px, size_px]),
            nn.ReLU(),
            nn.Conv2d(c_in, c_in, 3, padding=1, bias=False),
            nn.LayerNorm([c_in, size_px, size_px]),
            nn.ReLU(),
            nn.Conv2d(c_in, c_out, 3, padding=1),
            nn.AvgPool2d(2),
        )
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(c_in, c_out, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.main(x) + self.shortcut(x)
        return out


def _widths(config: IgdConfig, channels: Iterable[int]) -> list[int]:
    return [max(8, int(c * config.width) // 8 * 8) for c in channels]


class Decoder(nn.Module):
    """g: latent float [N, D] -> normalised picture float [N, 3, size, size], no final squashing.

    At 256 an up-convolution to 8x8, four residual doublings to 128 and an up-convolution to the
    picture; at 32 three residual doublings.
    """

    def __init__(self, config: IgdConfig, size_px: int) -> None:
        super().__init__()

        def norm(channels: int) -> nn.Module:
            if config.decoder_norm == "batch":
                return nn.BatchNorm2d(channels)
            return ChannelAffine(channels)

        whole = size_px > PATCH_PX
        doublings = int(math.log2(size_px // 4)) - (2 if whole else 0)
        plan = [512, *([512, 256, 128, 64] if whole else [256, 128, 64])][: doublings + 1]
        widths = _widths(config, plan)
        self._start = widths[0]
        self.project = nn.Linear(config.latent_dim, widths[0] * 16)
        blocks: list[nn.Module] = []
        if whole:
            blocks += [nn.Upsample(scale_factor=2), nn.Conv2d(widths[0], widths[0], 3, padding=1)]
        blocks += [UpBlock(a, b, norm) for a, b in pairwise(widths)]
        blocks += [norm(widths[-1]), nn.ReLU()]
        if whole:
            blocks += [nn.Upsample(scale_factor=2), nn.Conv2d(widths[-1], 3, 5, padding=2)]
        else:
            blocks += [nn.Conv2d(widths[-1], 3, 3, padding=1)]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.blocks(self.project(z).view(-1, self._start, 4, 4))
        return out


class Critic(nn.Module):
    """D: picture float [N, 3, size, size] -> the mixing weight it sees, float [N]."""

    def __init__(self, config: IgdConfig, size_px: int) -> None:
        super().__init__()
        if size_px > PATCH_PX:
            first, *rest = _widths(config, [64, 128, 256, 512, 512])
            layers: list[nn.Module] = [nn.Conv2d(3, first, 5, stride=2, padding=2)]
            size = size_px // 2
        else:
            first, *rest = _widths(config, [64, 128, 256, 512])
            layers = [nn.Conv2d(3, first, 3, padding=1)]
            size = size_px
        channels = first
        for c_out in rest:
            layers.append(DownBlock(channels, c_out, size))
            channels, size = c_out, size // 2
        while size > 4:
            layers.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
            size //= 2
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.head = nn.Linear(channels * size * size, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layers(x)).squeeze(1)
        return out


class Igd(nn.Module):
    """A trained descriptor: everything that scoring needs."""

    centre: Tensor
    spread: Tensor

    def __init__(self, backbone: Backbone, config: IgdConfig, size_px: int) -> None:
        super().__init__()
        self.size_px = size_px
        self.normalise = Normalise()
        self.backbone = backbone
        self.bottleneck = nn.Linear(backbone.dim, config.latent_dim)
        self.decoder = Decoder(config, size_px)
        self.register_buffer("centre", torch.zeros(config.latent_dim))
        self.register_buffer("spread", torch.ones(()))

    @property
    def scales(self) -> Scales:
        """The MS-SSIM scales that belong to this size: as many as the window fits into."""
        if self.size_px <= PATCH_PX:
            return LOCAL
        fitting = int(math.log2(self.size_px / GLOBAL.window)) + 1
        weights = GLOBAL.weights[:fitting]
        return replace(GLOBAL, weights=tuple(w / sum(weights) for w in weights))

    def embed(self, x: Tensor) -> Tensor:
        """Normalised pictures float [N, 3, size, size] -> latents z, float [N, D]."""
        z: Tensor = self.bottleneck(self.backbone(x))
        return z

    def gaussian(self, z: Tensor) -> Tensor:
        """d^2 / sigma, float [N]: 1 - h = 1 - exp(-d^2 / sigma) in an order without ties."""
        return losses.gaussian_score(z, self.centre, self.spread)


def train_igd(
    name: str, igd: Igd, draw: Draw, config: IgdConfig, steps: int, run: Run, *, seed: int
) -> None:
    """Train bottleneck, decoder and critic on what `draw` gives; the backbone stays as it is.

    The generator minimises eq. 6 + gaussian_weight mean(1 - h) + interpolation_weight
    mean(D(g(mix))^2). The critic learns the mixing weight: mean((D(g(mix)) - alpha)^2) +
    mean(D(x^ + 0.2 (x - x^))^2), one step each. Centre and spread are estimated from draws at the
    start, every `estimate_every` steps and at the end: centre first, then the spread around it.
    (Departs from the released code, which uses the old centre for the new spread.)
    """
    critic = Critic(config, igd.size_px)
    igd.backbone.requires_grad_(False)
    trainable = [*igd.bottleneck.parameters(), *igd.decoder.parameters()]
    optimizer = torch.optim.Adam(
        trainable, config.learning_rate, betas=(0.0, 0.9), weight_decay=1e-6
    )
    critic_optimizer = torch.optim.Adam(critic.parameters(), config.learning_rate, betas=(0.0, 0.9))
    stage = run.stage(
        name,
        steps,
        {"igd": igd, "critic": critic},
        {"optimizer": optimizer, "critic": critic_optimizer},
    )
    similarity = partial(
        ms_ssim, window=igd.scales.window, weights=igd.scales.weights, data_range=DATA_RANGE
    )
    for module in (igd, critic):  # depthwise and small convolutions are twice as fast so on a CPU
        module.to(memory_format=torch.channels_last)
    igd.eval()
    igd.decoder.train()
    critic.train()
    for step, generator in stage.steps(seed):
        if step % config.estimate_every == 0:
            estimate_gaussian(igd, draw, generator, samples=config.estimate_samples)
        for group in (*optimizer.param_groups, *critic_optimizer.param_groups):
            group["lr"] = config.learning_rate * (1 - step / steps) ** 0.9
        pixels, valid = draw(generator)
        x = igd.normalise(pixels).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            features = igd.backbone(x)
        z = igd.bottleneck(features)
        x_hat = igd.decoder(z)
        reconstruction = losses.reconstruction(
            x, x_hat, rho=config.rho, data_range=DATA_RANGE, valid=valid, ms_ssim=similarity
        ).mean()
        gaussian = losses.gaussian_loss(z, igd.centre, igd.spread)
        alpha = 0.5 * torch.rand(len(z), generator=generator)
        mix = igd.decoder(losses.interpolate(z, alpha))
        interpolation = losses.interpolation_regulariser(critic(mix))
        total = (
            reconstruction
            + config.gaussian_weight * gaussian
            + config.interpolation_weight * interpolation
        )
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

        x_hat = x_hat.detach()
        criticism = losses.critic_loss(
            critic(mix.detach()), alpha, critic(x_hat + 0.2 * (x - x_hat))
        )
        critic_optimizer.zero_grad()
        criticism.backward()
        critic_optimizer.step()
        stage.report(
            {
                "reconstruction": reconstruction,
                "gaussian": gaussian,
                "interpolation": interpolation,
                "critic": criticism,
            }
        )
        if step == steps - 1:
            estimate_gaussian(igd, draw, generator, samples=config.estimate_samples)
    igd.eval()


@torch.no_grad()
def estimate_gaussian(igd: Igd, draw: Draw, generator: torch.Generator, *, samples: int) -> None:
    """Set the centre and the spread from the latents of at least `samples` draws."""
    latents: list[Tensor] = []
    with evaluating(igd):
        while sum(map(len, latents)) < samples:
            pixels, _ = draw(generator)
            latents.append(igd.embed(igd.normalise(pixels)))
    z = torch.cat(latents)
    igd.centre.copy_(losses.estimate_centre(z))
    igd.spread.copy_(losses.estimate_spread(z, igd.centre))
