"""f-AnoGAN: Schlegl et al. 2019, on CCD's features (eq. 7).

Stage one trains a generator g and a critic on normal pictures (WGAN-GP, Gulrajani et al. 2017),
stage two an encoder f so that g(f(x)) comes back as x (their "izi_f"). Pictures are ImageNet-
normalised throughout, so the generator has no final tanh.

    score(x) = ||x - g(f(x))||^2 + kappa ||f(x) - f(g(f(x)))||^2        eq. 7, as means

Departs from the original, whose feature term is of the critic: the paper's is of the encoder. The
critic's features still enter the encoder's loss, as in the original.
"""

from typing import Protocol

import torch
from torch import Tensor

from trainer.backbone import Normalise
from trainer.compute import Minimiser
from trainer.config import FanoganConfig
from trainer.detectors.base import Draw, Reconstructing, masked_mean, squared_error_map
from trainer.detectors.networks import Critic
from trainer.runs import Run


class Fanogan(Reconstructing):
    """The two terms of eq. 7; kappa is the weight that the program gives the second."""

    terms = ("reconstruction", "feature")
    map_terms = ("reconstruction",)

    def forward(self, x: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x)
        x_hat = self.decoder(z)
        residual = squared_error_map(x, x_hat, inside)
        # what is not valid is the same on both sides, so it tells nothing
        seen_again = self.encoder(x_hat * inside + x * (1 - inside))
        feature = (z - seen_again).square().mean(dim=1)
        return torch.stack([masked_mean(residual, inside), feature], dim=1), residual


class _Critic(Protocol):
    def __call__(self, x: Tensor) -> Tensor: ...


def gradient_penalty(
    critic: _Critic, real: Tensor, fake: Tensor, generator: torch.Generator
) -> Tensor:
    """How far the critic's slope is from 1 between real and generated pictures.

        mean((||grad D(e x + (1 - e) x~)||_2 - 1)^2),   e ~ U(0, 1) for each picture

    Gulrajani et al. 2017, eq. 3, without its weight; the norm is over all pixels and channels.

    Args:
        critic: float [N, 3, H, W] -> float [N].
        real, fake: float [N, 3, H, W].

    Returns:
        float32 [], with a gradient towards the critic's weights.
    """
    share = torch.rand(len(real), 1, 1, 1, generator=generator, device=real.device)
    mixed = torch.lerp(fake.float(), real.float(), share).requires_grad_()
    (slope,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
    penalty: Tensor = (slope.flatten(1).norm(dim=1) - 1).square().mean()
    return penalty


def train_gan(
    name: str, net: Fanogan, draw: Draw, config: FanoganConfig, steps: int, run: Run, *, seed: int
) -> Critic:
    """Stage one: the generator, `net.decoder`, and a critic, on what `draw` gives.

        critic     mean(D(g(z))) - mean(D(x)) + gradient_penalty * penalty
        generator  -mean(D(g(z))),   z ~ N(0, I)

    `critic_steps` of the first to one of the second.

    Returns:
        The critic, whose features stage two compares.
    """
    compute = run.compute
    critic = Critic(net.size_px, config.width)
    normalise = compute.place(Normalise())
    for module in (net, critic):
        compute.place(module)
    descent, critic_descent = (
        Minimiser(
            torch.optim.Adam(module.parameters(), config.learning_rate, betas=(0.0, 0.9)), compute
        )
        for module in (net.decoder, critic)
    )
    stage = run.stage(
        name,
        steps,
        {"generator": net.decoder, "critic": critic},
        {"descent": descent, "critic": critic_descent},
    )
    generate = compute.compiled(net.decoder)
    net.decoder.train()
    critic.train()
    count = compute.share(config.batch_size)
    for _, generator in stage.steps(seed):

        def latents(source: torch.Generator = generator) -> Tensor:
            return torch.randn(count, config.latent_dim, generator=source, device=compute.device)

        for _ in range(config.critic_steps):
            pixels, inside = draw(count, generator)
            x = normalise(pixels)
            with torch.no_grad(), compute.autocast():
                fake = generate(latents()).float()
            fake = fake * inside + x * (1 - inside)
            with compute.autocast():
                reals, fakes = critic(x).float(), critic(fake).float()
            distance = reals.mean() - fakes.mean()
            # in float32: second derivatives of half precision are mostly rounding
            penalty = gradient_penalty(critic, x, fake, generator)
            critic_descent.minimise(config.gradient_penalty * penalty - distance)
        with compute.autocast():
            fake = generate(latents())
            fooled = critic(fake * inside + x * (1 - inside)).float().mean()
        descent.minimise(-fooled)
        stage.report({"wasserstein": distance, "penalty": penalty, "generator": -fooled})
    net.decoder.eval()
    return critic.eval()


def train_encoder(
    name: str,
    net: Fanogan,
    critic: Critic,
    draw: Draw,
    config: FanoganConfig,
    steps: int,
    run: Run,
    *,
    seed: int,
) -> None:
    """Stage two: `net.encoder` for the fixed generator and critic of stage one.

        mean((x - g(f(x)))^2) + kappa mean((f_D(x) - f_D(g(f(x))))^2)

    where f_D are the critic's features. Schlegl et al. 2019, eq. 4.
    """
    compute = run.compute
    normalise = compute.place(Normalise())
    net.decoder.requires_grad_(False)
    critic.requires_grad_(False)
    compute.same_start(net.decoder, critic)  # the batch norms of each process have seen other rows
    trainable = [p for p in net.encoder.parameters() if p.requires_grad]
    descent = Minimiser(torch.optim.RMSprop(trainable, config.encoder_learning_rate), compute)
    stage = run.stage(name, steps, {"encoder": net.encoder}, {"descent": descent})
    encode, generate = compute.compiled(net.encoder), compute.compiled(net.decoder)
    net.encoder.train()
    for _, generator in stage.steps(seed):
        pixels, inside = draw(compute.share(config.batch_size), generator)
        x = normalise(pixels)
        with compute.autocast():
            x_hat = generate(encode(x))
            # what is not valid is the same on both sides, so it teaches nothing
            x_hat = x_hat * inside + x * (1 - inside)
            features, again = critic.features(x), critic.features(x_hat)
        picture = masked_mean(squared_error_map(x, x_hat.float(), inside), inside).mean()
        feature = (features.float() - again.float()).square().mean()
        descent.minimise(picture + config.kappa * feature)
        stage.report({"reconstruction": picture, "feature": feature})
    net.eval()
