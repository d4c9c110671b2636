"""IGD, the interpolated Gaussian descriptor: Chen et al. 2022, as CCD uses it (eq. 5 and 6).

A CCD encoder, a linear layer to the latent z, a decoder g that reconstructs, a Gaussian with centre
c and spread sigma around the latents of normal images, and a critic that keeps decoded
interpolations plausible.
"""

from functools import partial

import torch
from torch import Tensor

from trainer import losses
from trainer.backbone import DATA_RANGE, Backbone, Normalise
from trainer.compute import Minimiser
from trainer.config import IgdConfig
from trainer.detectors.base import Draw, Reconstructing, masked_mean, residual_error_map
from trainer.detectors.networks import Critic
from trainer.modes import evaluating
from trainer.msssim import Scales, ms_ssim, scales_of
from trainer.runs import Run


class Igd(Reconstructing):
    """The terms of eq. 5: a reconstruction error, and d^2 / sigma of the latent, which ranks as
    1 - h does and does not saturate.

    Departs from eq. 6 in the score: the error is the mean over valid pixels of the map, which is a
    weighted sum over scales, where MSSSIM is a product of means over all pixels. So score and map
    agree, and what is not valid dilutes no score.
    """

    terms = ("reconstruction", "gaussian")
    map_terms = ("reconstruction",)

    centre: Tensor
    spread: Tensor

    def __init__(self, backbone: Backbone, config: IgdConfig, size_px: int) -> None:
        super().__init__(backbone, config, size_px)
        self.rho = config.rho
        self.register_buffer("centre", torch.zeros(config.latent_dim))
        self.register_buffer("spread", torch.ones(()))

    @property
    def scales(self) -> Scales:
        """The MS-SSIM scales that belong to this size."""
        return scales_of(self.size_px)

    def gaussian(self, z: Tensor) -> Tensor:
        """d^2 / sigma, float [N]: 1 - h = 1 - exp(-d^2 / sigma) in an order without ties."""
        return losses.gaussian_score(z, self.centre, self.spread)

    def forward(self, x: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x)
        residual = residual_error_map(x, self.decoder(z), inside, self.scales, rho=self.rho)
        scores = torch.stack([masked_mean(residual, inside), self.gaussian(z)], dim=1)
        return scores, residual


def train_igd(
    name: str, igd: Igd, draw: Draw, config: IgdConfig, steps: int, run: Run, *, seed: int
) -> None:
    """Train bottleneck, decoder and critic on what `draw` gives; the backbone if configured.

    The generator minimises eq. 6 + gaussian_weight mean(1 - h) + interpolation_weight
    mean(D(g(mix))^2). The critic learns the mixing weight: mean((D(g(mix)) - alpha)^2) +
    mean(D(x^ + 0.2 (x - x^))^2), one step each. Centre and spread are estimated from draws at the
    start, every `estimate_every` steps and at the end: centre first, then the spread around it.
    (Departs from the released code, which uses the old centre for the new spread.)
    """
    compute = run.compute
    critic = Critic(igd.size_px, config.width)
    normalise = compute.place(Normalise())
    for module in (igd, critic):
        compute.place(module)
    trainable = [p for p in igd.parameters() if p.requires_grad]
    descent = Minimiser(
        torch.optim.Adam(trainable, config.learning_rate, betas=(0.0, 0.9), weight_decay=1e-6),
        compute,
    )
    critic_descent = Minimiser(
        torch.optim.Adam(critic.parameters(), config.learning_rate, betas=(0.0, 0.9)), compute
    )
    stage = run.stage(
        name, steps, {"igd": igd, "critic": critic}, {"descent": descent, "critic": critic_descent}
    )
    similarity = partial(
        ms_ssim, window=igd.scales.window, weights=igd.scales.weights, data_range=DATA_RANGE
    )
    encode, decode, criticise = (
        compute.compiled(module) for module in (igd.encoder, igd.decoder, critic)
    )
    igd.train()
    critic.train()
    count = compute.share(config.batch_size)
    for step, generator in stage.steps(seed):
        if step % config.estimate_every == 0:
            estimate_gaussian(igd, draw, config, generator, run)
        for each in (descent, critic_descent):
            each.set_learning_rate(config.learning_rate * (1 - step / steps) ** 0.9)
        pixels, inside = draw(count, generator)
        x = normalise(pixels).contiguous(memory_format=torch.channels_last)
        alpha = 0.5 * torch.rand(count, generator=generator, device=x.device)
        with compute.autocast():
            z = encode(x)
            x_hat = decode(z)
            mix = decode(losses.interpolate(z, alpha))
            seen = criticise(mix)
        parts = {
            "reconstruction": losses.reconstruction(
                x, x_hat, rho=config.rho, data_range=DATA_RANGE, valid=inside, ms_ssim=similarity
            ).mean(),
            "gaussian": losses.gaussian_loss(z, igd.centre, igd.spread),
            "interpolation": losses.interpolation_regulariser(seen),
        }
        descent.minimise(
            parts["reconstruction"]
            + config.gaussian_weight * parts["gaussian"]
            + config.interpolation_weight * parts["interpolation"]
        )
        x_hat, mix = x_hat.detach(), mix.detach()
        with compute.autocast():
            seen, regular = criticise(mix), criticise(x_hat + 0.2 * (x - x_hat))
        parts["critic"] = losses.critic_loss(seen, alpha, regular)
        critic_descent.minimise(parts["critic"])
        stage.report(parts)
        if step == steps - 1:
            estimate_gaussian(igd, draw, config, generator, run)
    igd.eval()


@torch.no_grad()
def estimate_gaussian(
    igd: Igd, draw: Draw, config: IgdConfig, generator: torch.Generator, run: Run
) -> None:
    """Set the centre and the spread from the latents of `config.estimate_samples` draws."""
    compute = run.compute
    normalise = compute.place(Normalise())
    latents: list[Tensor] = []
    with evaluating(igd), compute.autocast():
        while sum(map(len, latents)) * compute.processes < config.estimate_samples:
            pixels, _ = draw(compute.share(config.batch_size), generator)
            latents.append(igd.encoder(normalise(pixels)).float())
    z = compute.gather(torch.cat(latents))
    igd.centre.copy_(losses.estimate_centre(z))
    igd.spread.copy_(losses.estimate_spread(z, igd.centre))
