"""CCD pre-training: constrained contrastive distribution learning (paper, section 2.1).

    l_CCD = l_con + l_cla + l_pos        eq. 1

One step: draw items, give each a strong class and that augmentation, take two weak views of it,
contrast them (eq. 2), classify the strong augmentation (eq. 3), and tell in which of eight
directions one patch lies from another (eq. 4). The backbone stays; the heads are thrown away.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from trainer import losses
from trainer.augment import STRONG, WeakAugment, neighbour_pairs
from trainer.backbone import Backbone, Normalise
from trainer.config import PretrainConfig
from trainer.runs import Run

Items = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
"""Draws (count, generator): float [count, 3, H, W] in [0, 1], and what of it is valid."""


class Heads(nn.Module):
    """The three heads on the backbone's features h, float [N, D]."""

    def __init__(self, dim: int, classes: int, config: PretrainConfig) -> None:
        super().__init__()
        self.projection = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, config.projection_dim)
        )
        self.classification = nn.Linear(dim, classes)
        self.position = nn.Sequential(nn.Linear(dim, 128), nn.ReLU(), nn.Linear(128, 8))


def pretrain(
    name: str,
    backbone: Backbone,
    items: Items,
    images: Items,
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
        images: whole frames, from which the pairs of neighbouring patches of eq. 4 are cut.
    """
    family = STRONG[config.strong]
    weak = WeakAugment(size=size_px, scale=(config.crop_scale_min, 1.0), blur_p=config.blur_p)
    weaker = WeakAugment(
        size=config.position_patch_px,
        scale=(config.crop_scale_min, 1.0),
        flip=0.5,
        jitter_p=0.0,
        grey_p=0.0,
    )
    normalise = Normalise()
    heads = Heads(backbone.dim, family.classes, config)
    parameters = [*backbone.parameters(), *heads.parameters()]
    optimizer = torch.optim.SGD(
        parameters,
        config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    stage = run.stage(name, steps, {"backbone": backbone, "heads": heads}, {"optimizer": optimizer})
    backbone.to(memory_format=torch.channels_last)
    backbone.train()
    for step, generator in stage.steps(seed):
        progress = step / steps
        floor = config.learning_rate * 1e-3
        for group in optimizer.param_groups:  # cosine, to the released code's floor
            cosine = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * progress)).item())
            group["lr"] = floor + (config.learning_rate - floor) * cosine
        x, _ = items(config.batch_size, generator)
        strong = torch.randint(0, family.classes, (len(x),), generator=generator)
        x = family.apply(x, strong, generator)
        views = torch.cat([weak(x, None, generator)[0] for _ in range(2)])
        h = backbone(_channels_last(normalise(views)))  # [2N, D], first views first
        z1, z2 = heads.projection(h).chunk(2)
        parts = {
            "contrastive": losses.contrastive(
                z1, z2, temperature=config.temperature, negatives=config.negatives, strong=strong
            ),
            "classification": losses.augmentation_classification(
                heads.classification(h), losses.view_labels(strong)
            ),
        }
        total = parts["contrastive"] + config.classification_weight * parts["classification"]
        if config.position_weight:
            first, second, direction = neighbour_pairs(
                images(config.batch_size, generator)[0],
                patch_px=config.position_patch_px,
                pairs=config.batch_size,
                generator=generator,
            )
            pair = torch.cat([weaker(patch, None, generator)[0] for patch in (first, second)])
            h1, h2 = backbone(_channels_last(normalise(pair))).chunk(2)
            parts["position"] = losses.position_classification(heads.position(h1 - h2), direction)
            total = total + config.position_weight * parts["position"]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        stage.report(parts)
    backbone.eval()


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
