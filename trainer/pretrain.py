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
from typing import NamedTuple

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


class Batch(NamedTuple):
    """What one step sees: both views of its items, and pairs of neighbouring patches."""

    views: Tensor
    """float [2N, 3, S, S], ImageNet-normalised, first views first."""
    strong: Tensor
    """int64 [N], the strong class of each item."""
    pair: Tensor | None
    """float [2N, 3, p, p], ImageNet-normalised, first patches first; None without eq. 4."""
    direction: Tensor | None
    """int64 [N], in which the second patch lies from the first."""


class Batches:
    """Draws and augments what a step sees, on the device."""

    def __init__(
        self, items: Items, pairs: Pairs, config: PretrainConfig, size_px: int, compute: Compute
    ) -> None:
        """See `pretrain`.

        Raises:
            ConfigError: a batch that cannot be shared out as the configuration asks.
        """
        self._items = items
        self._pairs = pairs
        self._config = config
        self._family = STRONG[config.strong]
        self._count = items_a_step("pretrain", config, compute)
        self._weak = WeakAugment(
            size=size_px,
            scale=(config.crop_scale_min, 1.0),
            blur_p=config.blur_p,
            cutout_p=config.cutout_p,
        )
        self._weaker = WeakAugment(
            size=config.position_patch_px,
            scale=(config.crop_scale_min, 1.0),
            flip=0.5,
            jitter_p=0.0,
            grey_p=0.0,
        )
        self._normalise = compute.place(Normalise())

    def draw(self, generator: torch.Generator) -> Batch:
        """The batch of one step."""
        x, strong = self._strongly_augmented(generator)
        views = torch.cat([self._weak(x, None, generator)[0] for _ in range(2)])
        if not self._config.position_weight:
            return Batch(self._ready(views), strong, None, None)
        first, second, direction = self._pairs(self._count, generator)
        pair = torch.cat([self._weaker(patch, None, generator)[0] for patch in (first, second)])
        return Batch(self._ready(views), strong, self._ready(pair), direction)

    def _strongly_augmented(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Items after their strong augmentation, float [N, 3, H, W], and its class, int64 [N].

        "all_strong" draws fewer images and takes each in every class; else each item has a class of
        its own, drawn evenly.
        """
        classes = self._family.classes
        if self._config.negatives == "all_strong":
            x, _ = self._items(self._count // classes, generator)
            strong = torch.arange(classes, device=x.device).repeat_interleave(len(x))
            x = x.repeat(classes, 1, 1, 1)
        else:
            x, _ = self._items(self._count, generator)
            strong = torch.randint(classes, (len(x),), generator=generator, device=x.device)
        return self._family.apply(x, strong, generator), strong

    def _ready(self, x: Tensor) -> Tensor:
        out: Tensor = self._normalise(x).contiguous(memory_format=torch.channels_last)
        return out


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
    batches = Batches(items, pairs, config, size_px, compute)
    heads = compute.place(Heads(backbone.dim, STRONG[config.strong].classes, config))
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
            batch = batches.draw(generator)
            with compute.autocast():
                h = net(batch.views)  # [2N, D]
                projected, classified = heads.projection(h), heads.classification(h)
            z1, z2 = (compute.gather(z) for z in projected.float().chunk(2))
            labels = losses.view_labels(batch.strong)
            if config.classification_views == "first":
                classified, labels = classified[: len(batch.strong)], batch.strong
            parts = {
                "contrastive": losses.contrastive(
                    z1,
                    z2,
                    temperature=config.temperature,
                    negatives="same_strong" if config.negatives == "same_strong" else "batch",
                    strong=compute.gather(batch.strong[:, None])[:, 0],
                    symmetric=config.symmetric,
                ),
                "classification": losses.augmentation_classification(classified, labels),
            }
            total = (
                config.contrastive_weight * parts["contrastive"]
                + config.classification_weight * parts["classification"]
            )
            if batch.pair is not None and batch.direction is not None:
                with compute.autocast():
                    h1, h2 = net(batch.pair).chunk(2)
                    placed = heads.position(h1 - h2)
                parts["position"] = losses.position_classification(placed, batch.direction)
                total = total + config.position_weight * parts["position"]
            descent.minimise(total)
            stage.report(parts)


def cosine(rate: float, progress: float) -> float:
    """The learning rate at `progress` in [0, 1]: a half cosine from `rate` to `FLOOR` of it."""
    return rate * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * progress)))


def items_a_step(key: str, config: PretrainConfig, compute: Compute) -> int:
    """This process's share of the items of a step.

    Args:
        key: what `config` stands under, for the message.

    Raises:
        ConfigError: there is none of at least two items that makes whole groups.
    """
    count = compute.share(config.batch_size, f"{key}.batch_size")
    whole = STRONG[config.strong].classes if config.negatives == "all_strong" else 1
    if count < 2 or count % whole:
        raise ConfigError(
            f"{key}.batch_size is {config.batch_size}. Expected a multiple of "
            f"{max(2, whole) * compute.processes}: an image in its {whole} strong classes, or two "
            "items, for each process."
            if whole > 1
            else f"{key}.batch_size is {config.batch_size}. Expected at least "
            f"{2 * compute.processes}: two items for each process."
        )
    return count
