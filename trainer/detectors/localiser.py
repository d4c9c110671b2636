"""A network that marks what does not belong: taught on synthetic lesions pasted into normal frames.

Self-supervised segmentation in the manner of DRAEM (Zavrtanik et al., ICCV 2021), on frozen
features in place of its reconstruction. It sees the same normal frames as everything else, and no
lesion of anybody.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ccdstream.errors import ConfigError
from trainer.backbone import Backbone, Normalise
from trainer.compute import Minimiser
from trainer.config import LocaliserConfig
from trainer.detectors.base import highest_mean
from trainer.distort import Distortion, moved, recoloured
from trainer.runs import Run
from trainer.sampling import MIN_VALID, Pool

Picture = tuple[np.ndarray, np.ndarray]
"""uint8 [H, W, 3], and its valid pixels, bool [H, W]."""
Change = Callable[[Picture, Picture, np.random.Generator], Picture]
"""(picture, another one, rng) -> the picture with something in it, and where that is, bool [H, W].
"""

CELL_PX = 4
"""Side of a cell of the map in pixels of the picture."""
_STRIDES = (8, 16)
"""Of the feature maps that are looked at; with coarser ones it learns the lesions it is shown by
heart and finds fewer others."""
_RARE = 0.02
"""A start that holds lesions for rare: the share of cells that show one."""
_DROPPED = 0.2
"""Share of the feature channels that a training step leaves out."""
_NOISE = 0.5
"""Of what it adds to the others, in units of their standard deviation."""
_WARM_UP = 0.05
"""Share of the steps in which the rate rises."""
_DILATIONS = (1, 2, 4)


class _Disturb(nn.Module):
    """In training, leaves channels out and adds noise, so that no single feature is relied on."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return F.dropout2d(x, _DROPPED) + _NOISE * torch.randn_like(x)


class Localiser(nn.Module):
    """Feature maps of a frame -> the logit of being a lesion, in every cell of 4x4 pixels.

    Every map, standardised, is brought to `width` channels; their sum on the grid of the finest
    goes through 3x3 convolutions of growing dilation.
    """

    def __init__(self, channels: Mapping[int, int], config: LocaliserConfig) -> None:
        """`channels`: of the feature maps, by stride.

        Raises:
            ConfigError: there is none of stride 8 or 16.
        """
        super().__init__()
        if missing := [stride for stride in _STRIDES if stride not in channels]:
            raise ConfigError(
                f"the localiser looks at feature maps of stride {missing[0]}, and the backbone has "
                f"only {', '.join(map(str, channels))}. Keep more blocks, or choose another."
            )
        self.strides = _STRIDES
        width = config.width
        self.laterals = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(channels[stride], affine=False),  # standardises
                _Disturb(),
                nn.Conv2d(channels[stride], width, 1),
            )
            for stride in self.strides
        )
        layers: list[nn.Module] = [nn.BatchNorm2d(width), nn.ReLU()]
        for dilation in _DILATIONS:
            layers += [
                nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            ]
        self.context = nn.Sequential(*layers)
        self.head = nn.Conv2d(width, 1, 1)
        assert self.head.bias is not None
        nn.init.constant_(self.head.bias, math.log(_RARE / (1 - _RARE)))
        self.top_fraction = config.top_fraction

    def forward(self, maps: Mapping[int, Tensor]) -> Tensor:
        """Maps by stride, float [N, C, S / stride, S / stride] -> logits [N, 1, S / 4, S / 4]."""
        finest = self.strides[0]
        size = maps[finest].shape[2:]
        joined = None
        for stride, lateral in zip(self.strides, self.laterals, strict=True):
            own = lateral(maps[stride])
            if stride != finest:
                own = F.interpolate(own, size=size, mode="bilinear", align_corners=False)
            joined = own if joined is None else joined + own
        return F.interpolate(
            self.head(self.context(joined)),
            scale_factor=finest / CELL_PX,
            mode="bilinear",
            align_corners=False,
        )

    def score(self, logits: Tensor, inside: Tensor) -> Tensor:
        """How sure it is of some lesion: mean logit of the highest valid cells, float [N]."""
        scored = cells_scored(inside).flatten(1)
        top = max(1, round(self.top_fraction * scored.shape[1]))
        # of the softplus, which is not negative and orders as the logits do
        return highest_mean(F.softplus(logits).flatten(1), scored, top)


def cells_scored(inside: Tensor) -> Tensor:
    """Which cells are mostly valid: float [N, 1, S, S] -> float [N, 1, S / 4, S / 4]."""
    return (F.avg_pool2d(inside, CELL_PX) >= MIN_VALID).float()


class LesionDraw:
    """Draws views of normal mucosa, with and without something in them, distorted as a whole."""

    def __init__(
        self,
        pools: Sequence[Pool],
        config: LocaliserConfig,
        lesions: Sequence[Change],
        distractors: Sequence[Change],
        workers: Executor,
    ) -> None:
        """
        Args:
            pools: the frames, then what else of normal mucosa there is; may be empty.
            lesions: each drawn as often as the others.
            distractors: what changes a picture and is no lesion.
        """
        self._pools = [pool.to(torch.device("cpu")) for pool in pools if len(pool)]
        self._config = config
        self._lesions = lesions
        self._distractors = distractors
        self._workers = workers

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw a batch, on the CPU.

        Returns:
            float [count, 3, H, W] in [0, 1], and of 0 and 1, float [count, 1, H, W], what of it is
            valid and what is a lesion.
        """
        seeds = torch.randint(2**62, (count,), generator=generator, device=generator.device)
        drawn = list(self._workers.map(self._one, seeds.tolist()))
        images, *masks = (torch.from_numpy(np.stack(each)) for each in zip(*drawn, strict=True))
        valid, lesions = (mask[:, None].float() for mask in masks)
        return images.permute(0, 3, 1, 2).float() / 255, valid, lesions

    def _one(self, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rng, config, distortion = np.random.default_rng(seed), self._config, Distortion()
        image, valid = moved(*self._normal(rng), rng, distortion)
        lesions = np.zeros_like(valid)
        if valid.any():
            if self._distractors and rng.random() < config.distractor_p:
                image, _ = self._one_of(self._distractors, (image, valid), rng)
            if rng.random() >= config.clean_p:
                for _ in range(1 + int(rng.random() < config.second_p)):
                    image, mask = self._one_of(self._lesions, (image, valid), rng)
                    lesions |= mask
        image, valid = recoloured(image, valid, rng, distortion)
        return image, valid, lesions

    def _one_of(
        self, changes: Sequence[Change], picture: Picture, rng: np.random.Generator
    ) -> Picture:
        return changes[int(rng.integers(len(changes)))](picture, self._normal(rng), rng)

    def _normal(self, rng: np.random.Generator) -> Picture:
        last = len(self._pools) - 1
        pool = self._pools[last if last and rng.random() < self._config.patches_p else 0]
        index = int(rng.integers(len(pool)))
        return pool.images[index].permute(1, 2, 0).numpy(), pool.valid[index].numpy()


def train_localiser(
    name: str,
    localiser: Localiser,
    backbone: Backbone,
    source: Callable[[Executor], LesionDraw],
    config: LocaliserConfig,
    run: Run,
    *,
    seed: int,
) -> None:
    """Train the localiser on what is drawn; the backbone stays as it is.

    Minimises, over the valid cells, cross-entropy + the Dice loss 1 - (2 |p y| + 1) / (|p| + |y| +
    1), mean over frames. AdamW; the rate rises, then falls along a cosine. What is left at the end
    is the running mean of the weights over the last steps.

    Args:
        source: given workers, what batches come from.
    """
    compute = run.compute
    normalise = compute.place(Normalise())
    compute.place(backbone).eval()
    compute.place(localiser).train()
    descent = Minimiser(
        torch.optim.AdamW(
            localiser.parameters(), config.learning_rate, weight_decay=config.weight_decay
        ),
        compute,
    )
    mean = torch.optim.swa_utils.AveragedModel(
        localiser,
        multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.average),
        use_buffers=True,
    )
    modules = {"localiser": localiser, "mean": mean}
    stage = run.stage(name, config.steps, modules, {"descent": descent})
    count = compute.share(config.batch_size, f"{name}.batch_size")
    with ThreadPoolExecutor() as workers:
        views = source(workers)
        for step, generator in stage.steps(seed):
            descent.set_learning_rate(config.learning_rate * _rate(step / config.steps))
            pixels, inside, lesions = (t.to(compute.device) for t in views.draw(count, generator))
            x = normalise(pixels * inside + (128 / 255) * (1 - inside))
            with compute.autocast():
                with torch.no_grad():
                    maps = backbone.maps(x.contiguous(memory_format=torch.channels_last))
                logits = localiser(maps)
            parts = segmentation_losses(logits.float(), *_in_cells(lesions, inside))
            descent.minimise(parts["cross_entropy"] + parts["dice"])
            mean.update_parameters(localiser)
            stage.report(parts)
    localiser.load_state_dict(mean.module.state_dict())
    localiser.eval()


def segmentation_losses(logits: Tensor, lesions: Tensor, scored: Tensor) -> dict[str, Tensor]:
    """Cross-entropy and Dice loss of logits against soft masks, over scored cells, each [N, 1, h,
    w]."""
    weights = scored / scored.sum(dim=(1, 2, 3), keepdim=True).clamp(min=1)
    entropy = F.binary_cross_entropy_with_logits(logits, lesions, reduction="none")
    p, y = torch.sigmoid(logits) * scored, lesions * scored
    both, either = (p * y).sum(dim=(1, 2, 3)), (p + y).sum(dim=(1, 2, 3))
    dice = 1 - (2 * both + 1) / (either + 1)
    return {"cross_entropy": (entropy * weights).sum(dim=(1, 2, 3)).mean(), "dice": dice.mean()}


def _in_cells(lesions: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """The share of lesion among a cell's valid pixels, and which cells are mostly valid."""
    valid = F.avg_pool2d(inside, CELL_PX)
    share = F.avg_pool2d(lesions * inside, CELL_PX) / valid.clamp(min=1e-3)
    return share, (valid >= MIN_VALID).float()


def _rate(done: float) -> float:
    """Of the learning rate, by the share of the steps that are done."""
    if done < _WARM_UP:
        return (done + 1e-3) / (_WARM_UP + 1e-3)
    return float(0.5 * (1 + np.cos(np.pi * (done - _WARM_UP) / (1 - _WARM_UP))))
