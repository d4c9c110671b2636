"""CCD pre-training: one true run of its loop, small enough to see the losses fall."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ccdstream.errors import ConfigError
from trainer.backbone import TinyNet
from trainer.compute import Compute
from trainer.config import PretrainConfig
from trainer.pretrain import FLOOR, Batches, FrozenLinear, Items, cosine, pretrain
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


def run_once(
    folder: Path,
    config: PretrainConfig,
    items: Items | None = None,
    images: Pool | None = None,
    size_px: int = 32,
) -> tuple[TinyNet, list[dict[str, float]]]:
    torch.manual_seed(0)
    net = TinyNet()
    run = Run(folder, {}, resume=False, say=lambda _: None, checkpoint_every_s=60)
    images = images or pool()
    pretrain(
        "p",
        net,
        items or Patches(images, 32).draw,
        Patches(images, config.position_patch_px).draw_pairs,
        config,
        config.steps,
        run,
        size_px=size_px,
        seed=0,
    )
    return net, run.metrics()


def last_of(metrics: list[dict[str, float]], key: str) -> float:
    """Mean over the last five steps."""
    return sum(entry[key] for entry in metrics[-5:]) / 5


def bright_above(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures whose upper half is bright, so that each shows how it was turned."""
    x = torch.full((count, 3, 16, 16), 0.2)
    x[:, :, :8] = 0.8
    return x, torch.ones(count, 1, 16, 16)


def coloured_by_place() -> Pool:
    """One picture, redder downwards and greener to the right."""
    ramp = torch.linspace(20, 220, 64)
    blue = torch.full((64, 64), 100.0)
    picture = torch.stack([ramp[:, None].expand(64, 64), ramp.expand(64, 64), blue])
    return Pool(picture.to(torch.uint8)[None], torch.ones(1, 64, 64, dtype=torch.bool))


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


def test_the_contrastive_term_falls_well_below_chance(tmp_path: Path) -> None:
    def patterns(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        coarse = torch.rand(count, 3, 4, 4, generator=generator)
        x = coarse.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
        return x, torch.ones(count, 1, 16, 16)

    config = PretrainConfig(
        steps=80,
        epochs=0,
        batch_size=16,
        learning_rate=0.05,
        strong="none",
        position_weight=0.0,
        crop_scale_min=0.9,
    )
    _, metrics = run_once(tmp_path, config, patterns, size_px=16)
    chance = math.log(2 * config.batch_size - 1)
    assert metrics[0]["contrastive"] > 0.9 * chance
    assert last_of(metrics, "contrastive") < chance / 2


@pytest.mark.parametrize("views", ["both", "first"])
def test_a_strong_class_that_is_plain_to_see_is_told_from_every_view(
    tmp_path: Path, views: str
) -> None:
    """Views and labels that lie in different orders (as in the released code) leave chance."""
    config = PretrainConfig(
        steps=25,
        epochs=0,
        batch_size=16,
        learning_rate=0.1,
        strong="rotation",
        classification_views=views,  # type: ignore[arg-type]
        contrastive_weight=0.0,
        position_weight=0.0,
        crop_scale_min=0.5,
    )
    _, metrics = run_once(tmp_path, config, bright_above, size_px=16)
    # not to zero: a mirror swaps two of the four turns, so half of the items cannot beat log 2
    assert last_of(metrics, "classification") < math.log(4) / 2


def test_the_direction_between_patches_is_learned_by_the_backbone(tmp_path: Path) -> None:
    config = PretrainConfig(
        steps=60,
        epochs=0,
        batch_size=16,
        learning_rate=0.1,
        weight_decay=0.0,  # so that nothing else moves the backbone
        contrastive_weight=0.0,
        classification_weight=0.0,
        position_patch_px=16,
    )
    torch.manual_seed(0)
    before = TinyNet().state_dict()["layers.0.weight"]
    net, metrics = run_once(tmp_path, config, bright_above, coloured_by_place(), size_px=16)
    # without the order of the two, opposite directions are one: log 2 at best
    assert last_of(metrics, "position") < 0.8 * math.log(2)
    assert not torch.equal(net.state_dict()["layers.0.weight"], before)


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


def test_the_last_step_is_taken_at_the_end_of_the_cosine(tmp_path: Path) -> None:
    config = PretrainConfig(steps=4, epochs=0, batch_size=4, position_weight=0.0)
    run_once(tmp_path, config, bright_above, size_px=16)
    saved = torch.load(tmp_path / "p.pt", weights_only=True)["optimizers"]["descent"]["optimizer"]
    assert saved["param_groups"][0]["lr"] == cosine(config.learning_rate, 3 / 4)
