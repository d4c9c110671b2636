"""CCD pre-training: one true run of its loop, small enough to see the losses fall."""

from functools import partial
from pathlib import Path

import pytest
import torch

from trainer.backbone import TinyNet
from trainer.config import PretrainConfig
from trainer.pretrain import pretrain
from trainer.runs import Run
from trainer.sampling import Patches, Pool

CONFIG = PretrainConfig(steps=30, epochs=0, batch_size=16, learning_rate=0.05)


def pool() -> Pool:
    """Sixteen 64x64 pictures, each of a colour of its own, brighter to the right and the bottom."""
    generator = torch.Generator().manual_seed(0)
    colour = torch.randint(40, 200, (16, 3, 1, 1), generator=generator)
    ramp = torch.linspace(-40, 40, 64)
    pictures = colour + ramp.view(1, 1, 1, 64) + ramp.view(1, 1, 64, 1) / 2
    images = pictures.clamp(0, 255).to(torch.uint8)
    return Pool(images, torch.ones(16, 64, 64, dtype=torch.bool))


def run_once(folder: Path, config: PretrainConfig) -> tuple[TinyNet, list[dict[str, float]]]:
    torch.manual_seed(0)
    net = TinyNet()
    run = Run(folder, {}, resume=False, say=lambda _: None, checkpoint_every_s=60)
    images = pool()
    pretrain(
        "p",
        net,
        Patches(images, 32).draw,
        partial(images.neighbour_pairs, patch_px=config.position_patch_px),
        config,
        config.steps,
        run,
        size_px=32,
        seed=0,
    )
    return net, run.metrics()


def test_every_term_of_the_loss_is_reported_and_the_network_moves(tmp_path: Path) -> None:
    torch.manual_seed(0)
    before = TinyNet().state_dict()
    net, metrics = run_once(tmp_path, CONFIG)
    assert {"contrastive", "classification", "position"} <= set(metrics[-1])
    assert not torch.equal(net.state_dict()["layers.0.weight"], before["layers.0.weight"])
    assert not net.training


def test_position_can_be_left_out_as_the_released_global_code_does(tmp_path: Path) -> None:
    _, metrics = run_once(
        tmp_path, PretrainConfig(steps=1, epochs=0, batch_size=4, position_weight=0.0)
    )
    assert "position" not in metrics[-1]


def test_the_contrastive_term_falls_below_chance(tmp_path: Path) -> None:
    _, metrics = run_once(tmp_path, CONFIG)
    chance = torch.log(torch.tensor(2.0 * CONFIG.batch_size - 1)).item()
    assert metrics[-1]["contrastive"] < chance


@pytest.mark.parametrize("strong", ["rotation", "cutout", "noise", "jigsaw"])
def test_every_strong_family_trains(tmp_path: Path, strong: str) -> None:
    config = PretrainConfig(steps=1, epochs=0, batch_size=4, strong=strong)  # type: ignore[arg-type]
    _, metrics = run_once(tmp_path, config)
    assert metrics[-1]["classification"] > 0
