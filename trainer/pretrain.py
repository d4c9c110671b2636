"""CCD pre-training: constrained contrastive distribution learning (paper, section 2.1).

    l_CCD = l_con + l_cla + l_pos        eq. 1

One step: draw items, give each a strong class and that augmentation, take two weak views of it,
contrast them (eq. 2), classify the strong augmentation (eq. 3), and tell in which of eight
directions one patch lies from another (eq. 4). The backbone stays; the heads are thrown away.
Without eq. 2 and 4 and with rotations it is RotNet (Gidaris et al. 2018), without 3 and 4 and
without strong augmentation SimCLR.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ccdstream.errors import ConfigError
from trainer import losses
from trainer.augment import STRONG, WeakAugment
from trainer.backbone import Backbone, Normalise
from trainer.compute import Compute, Minimiser
from trainer.config import PretrainConfig
from trainer.modes import learning
from trainer.runs import Run

Items = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
"""Draws (count, generator): float [count, 3, H, W] in [0, 1], and what of it is valid."""
Pairs = Callable[[int, torch.Generator], tuple[Tensor, Tensor, Tensor]]
"""Draws (count, generator): neighbouring patches, two of float [count, 3, p, p] in [0, 1], and the
direction, int64 [count], in which the second lies from the first."""

FLOOR = 1e-3
"""Of the cosine schedule, as a share of the learning rate; the released code's 0.1^3."""


class FrozenLinear(nn.Module):
    """A linear layer whose weights stay as drawn, of unit length over the classes.

    The released code normalises the weight along its first axis without a gradient, so that only
    the bias learns and everything else is left to the backbone.
    """

    weight: Tensor

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        drawn = nn.Linear(features, classes).weight.detach()
        self.register_buffer("weight", F.normalize(drawn, dim=0))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Heads(nn.Module):
    """The three heads on the backbone's features h, float [N, D]."""

    def __init__(self, dim: int, classes: int, config: PretrainConfig) -> None:
        super().__init__()
        last = FrozenLinear if config.heads == "frozen" else nn.Linear
        hidden: list[nn.Module] = []
        for _ in range(config.projection_layers - 1):
            hidden += [nn.Linear(dim, dim), nn.ReLU()]
        self.projection = nn.Sequential(*hidden, nn.Linear(dim, config.projection_dim))
        self.classification = last(dim, classes)
        self.position = nn.Sequential(nn.Linear(dim, 128), nn.ReLU(), last(128, losses.DIRECTIONS))


def pretrain(
    name: str,
    backbone: Backbone,
    items: Items,
    pairs: Pairs,
    config: PretrainConfig,
    steps: int,
    run: Run,
    *,
    size_px: int,
    seed: int,
) -> None:
    """Train `backbone` in place.

    Args:
        items: what is augmented and contrasted: whole frames of `size_px`, or patches of it.
        pairs: of patches of `config.position_patch_px`, for eq. 4.

    Raises:
        ConfigError: a batch that cannot be shared out as the configuration asks.
    """
    compute = run.compute
    family = STRONG[config.strong]
    count = _items_a_step(config, family.classes, compute)
    weak = WeakAugment(
        size=size_px,
        scale=(config.crop_scale_min, 1.0),
        blur_p=config.blur_p,
        cutout_p=config.cutout_p,
    )
    weaker = WeakAugment(
        size=config.position_patch_px,
        scale=(config.crop_scale_min, 1.0),
        flip=0.5,
        jitter_p=0.0,
        grey_p=0.0,
    )
    normalise = compute.place(Normalise())
    heads = compute.place(Heads(backbone.dim, family.classes, config))
    compute.place(backbone)
    descent = Minimiser(
        torch.optim.SGD(
            [*backbone.parameters(), *heads.parameters()],
            config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        ),
        compute,
    )
    stage = run.stage(name, steps, {"backbone": backbone, "heads": heads}, {"descent": descent})
    net = compute.compiled(backbone)
    with learning(backbone):
        for step, generator in stage.steps(seed):
            descent.set_learning_rate(cosine(config.learning_rate, step / steps))
            x, strong = _strongly_augmented(items, count, config, generator)
            views = torch.cat([weak(x, None, generator)[0] for _ in range(2)])
            with compute.autocast():
                h = net(_channels_last(normalise(views)))  # [2N, D], first views first
                projected, classified = heads.projection(h), heads.classification(h)
            parts = {}
            z1, z2 = (compute.gather(z) for z in projected.float().chunk(2))
            parts["contrastive"] = losses.contrastive(
                z1,
                z2,
                temperature=config.temperature,
                negatives="same_strong" if config.negatives == "same_strong" else "batch",
                strong=compute.gather(strong[:, None])[:, 0],
                symmetric=config.symmetric,
            )
            labels = losses.view_labels(strong)
            if config.classification_views == "first":
                classified, labels = classified[: len(strong)], strong
            parts["classification"] = losses.augmentation_classification(classified, labels)
            total = (
                config.contrastive_weight * parts["contrastive"]
                + config.classification_weight * parts["classification"]
            )
            if config.position_weight:
                first, second, direction = pairs(count, generator)
                pair = torch.cat([weaker(patch, None, generator)[0] for patch in (first, second)])
                with compute.autocast():
                    h1, h2 = net(_channels_last(normalise(pair))).chunk(2)
                    placed = heads.position(h1 - h2)
                parts["position"] = losses.position_classification(placed, direction)
                total = total + config.position_weight * parts["position"]
            descent.minimise(total)
            stage.report(parts)


def cosine(rate: float, progress: float) -> float:
    """The learning rate at `progress` in [0, 1]: a half cosine from `rate` to `FLOOR` of it."""
    return rate * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * progress)))


def _items_a_step(config: PretrainConfig, classes: int, compute: Compute) -> int:
    """This process's share of the items of a step."""
    count = compute.share(config.batch_size)
    whole = classes if config.negatives == "all_strong" else 1
    if count < 2 or count % whole or count * compute.processes != config.batch_size:
        raise ConfigError(
            f"a batch of {config.batch_size} items cannot be shared by {compute.processes} "
            f"processes in whole groups of {whole}, at least two each. Set another batch_size."
        )
    return count


def _strongly_augmented(
    items: Items, count: int, config: PretrainConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Items after their strong augmentation, float [count, 3, H, W], and its class, int64 [count].

    "all_strong" draws fewer images and takes each in every class; else each item has a class of its
    own, drawn evenly.
    """
    family = STRONG[config.strong]
    if config.negatives == "all_strong":
        x, _ = items(count // family.classes, generator)
        strong = torch.arange(family.classes, device=x.device).repeat_interleave(len(x))
        x = x.repeat(family.classes, 1, 1, 1)
    else:
        x, _ = items(count, generator)
        strong = torch.randint(family.classes, (count,), generator=generator, device=x.device)
    return family.apply(x, strong, generator), strong


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
