"""CCD pre-training: one true run of its loop, small enough to see the losses fall."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ccdstream.errors import ConfigError
from trainer.backbone import TinyNet
from trainer.compute import Compute
from trainer.config import PretrainConfig
from trainer.pretrain import FLOOR, Batches, FrozenLinear, cosine, pretrain
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
        Patches(images, config.position_patch_px).draw_pairs,
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


@pytest.mark.parametrize("strong", ["none", "rotation", "cutout", "noise", "jigsaw"])
def test_every_strong_family_trains(tmp_path: Path, strong: str) -> None:
    config = PretrainConfig(steps=1, epochs=0, batch_size=4, strong=strong)  # type: ignore[arg-type]
    _, metrics = run_once(tmp_path, config)
    assert (metrics[-1]["classification"] > 0) == (strong != "none")  # one class is always right


def test_all_classes_of_an_image_are_in_one_batch_where_csi_is_asked_for() -> None:
    config = PretrainConfig(negatives="all_strong", strong="rotation", batch_size=8)
    asked = []

    def items(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(count)
        return torch.rand(count, 3, 8, 8, generator=generator), torch.ones(count, 1, 8, 8)

    batches = Batches(items, Patches(pool(), 32).draw_pairs, config, 8, Compute())
    x, strong = batches._strongly_augmented(torch.Generator().manual_seed(0))
    assert asked == [2]
    assert strong.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    for k in range(4):
        torch.testing.assert_close(x[2 * k : 2 * k + 2], x[:2].rot90(k, (2, 3)))


def test_a_batch_that_is_no_whole_group_of_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"batch_size is 6\. Expected a multiple of 4"):
        run_once(tmp_path, PretrainConfig(steps=1, epochs=0, batch_size=6, negatives="all_strong"))


@pytest.mark.parametrize(
    "change",
    [
        {"negatives": "same_strong"},
        {"negatives": "all_strong"},
        {"symmetric": True},
        {"classification_views": "first"},
        {"projection_layers": 3},
        {"heads": "frozen"},
        {"blur_p": 1.0},
        {"cutout_p": 1.0},
        {"classification_weight": 0.0},
        {"contrastive_weight": 0.0},
    ],
    ids=lambda change: "-".join(map(str, *change.items())),
)
def test_every_switch_changes_what_is_learned(tmp_path: Path, change: dict[str, Any]) -> None:
    config = PretrainConfig(steps=2, epochs=0, batch_size=8, learning_rate=0.05)
    plain, _ = run_once(tmp_path / "plain", config)
    other, metrics = run_once(tmp_path / "other", replace(config, **change))
    weight = "layers.0.weight"
    assert not torch.equal(plain.state_dict()[weight], other.state_dict()[weight])
    assert all(value == value for value in metrics[-1].values())  # no NaN


def test_a_frozen_head_learns_its_bias_alone() -> None:
    torch.manual_seed(0)
    head = FrozenLinear(6, 4)
    torch.testing.assert_close(head.weight.norm(dim=0), torch.ones(6))
    assert [name for name, _ in head.named_parameters()] == ["bias"]
    x = torch.randn(2, 6, requires_grad=True)
    head(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad[0], head.weight.sum(dim=0))


def test_a_pretraining_without_steps_leaves_the_start_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    before = TinyNet().state_dict()
    net, metrics = run_once(tmp_path, PretrainConfig(steps=0, epochs=0))
    assert metrics == []
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_backbone_that_was_frozen_learns_and_is_frozen_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = TinyNet().requires_grad_(False)
    before = net.state_dict()["layers.0.weight"].clone()
    images = pool()
    pretrain(
        "p",
        net,
        Patches(images, 32).draw,
        Patches(images, 32).draw_pairs,
        CONFIG,
        1,
        Run(tmp_path, {}, resume=False, say=lambda _: None, checkpoint_every_s=60),
        size_px=32,
        seed=0,
    )
    assert not torch.equal(net.state_dict()["layers.0.weight"], before)
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_the_learning_rate_is_a_half_cosine_to_its_floor() -> None:
    assert cosine(0.1, 0.0) == pytest.approx(0.1)
    assert cosine(0.1, 0.5) == pytest.approx(0.1 * (1 + FLOOR) / 2)
    assert cosine(0.1, 1.0) == pytest.approx(0.1 * FLOOR)
