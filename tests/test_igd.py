"""IGD: network shapes as published, and one true run of its loop."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trainer import losses
from trainer.backbone import Normalise, TinyNet, TorchvisionNet
from trainer.config import IgdConfig
from trainer.detectors import igd as module
from trainer.detectors.igd import Igd, estimate_gaussian, train_igd
from trainer.detectors.networks import Critic, Decoder, UpBlock
from trainer.runs import Run
from trainer.sampling import Patches, Pool

SMALL = IgdConfig(
    steps=20,
    epochs=0,
    batch_size=16,
    learning_rate=2e-3,
    latent_dim=8,
    width=0.125,
    estimate_every=10,
    estimate_samples=32,
)


def pool() -> Pool:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(90, 110, (8, 3, 64, 64), generator=generator).to(torch.uint8)
    return Pool(images, torch.ones(8, 64, 64, dtype=torch.bool))


@pytest.mark.parametrize(("size", "millions"), [(256, 10.90), (32, 3.56)])
def test_the_full_size_decoder_has_the_published_parameter_count(
    size: int, millions: float
) -> None:
    decoder = Decoder(128, size, 1.0, "affine")
    count = sum(parameter.numel() for parameter in decoder.parameters()) / 1e6
    assert count == pytest.approx(millions, abs=0.02)


@pytest.mark.parametrize(("size", "millions"), [(256, 17.7), (32, 2.96)])
def test_the_full_size_critic_is_of_the_published_order(size: int, millions: float) -> None:
    critic = Critic(size, 1.0)
    count = sum(parameter.numel() for parameter in critic.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.25)


@pytest.mark.parametrize("size", [256, 128, 32])
@pytest.mark.parametrize("norm", ["affine", "batch"])
def test_pictures_come_back_in_their_size_and_the_critic_gives_one_number_each(
    size: int, norm: str
) -> None:
    config = IgdConfig(latent_dim=8, width=0.0625, decoder_norm=norm)  # type: ignore[arg-type]
    igd = Igd(TinyNet(), config, size).eval()
    x = torch.randn(2, 3, size, size)
    z = igd.encoder(x)
    assert z.shape == (2, 8)
    assert igd.decoder(z).shape == x.shape
    assert Critic(size, config.width)(x).shape == (2,)


def test_the_shortcut_before_upsampling_equals_the_one_after_it() -> None:
    block = UpBlock(4, 6, torch.nn.BatchNorm2d)
    x = torch.randn(1, 4, 5, 5)
    conv, up = block.shortcut
    torch.testing.assert_close(block.shortcut(x), conv(up(x)))


def test_training_lowers_the_reconstruction_error_and_leaves_the_backbone_alone(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    igd = Igd(TinyNet(), SMALL, 32)
    frozen = {key: value.clone() for key, value in igd.encoder.backbone.state_dict().items()}
    run = Run(tmp_path, {}, resume=False, say=lambda _: None, checkpoint_every_s=60)
    draw = Patches(pool(), 32).draw
    x = Normalise()(draw(16, torch.Generator().manual_seed(9))[0])

    @torch.no_grad()
    def error() -> float:
        return float((igd.eval().decoder(igd.encoder(x)) - x).abs().mean())

    before = error()
    train_igd("igd", igd, draw, SMALL, SMALL.steps, run, seed=0)
    assert error() < 0.8 * before
    for key, value in igd.encoder.backbone.state_dict().items():
        assert torch.equal(value, frozen[key]), key
    assert {"reconstruction", "gaussian", "interpolation", "critic"} <= set(run.metrics()[-1])
    assert not igd.training


def test_centre_and_spread_are_those_of_the_latents(tmp_path: Path) -> None:
    torch.manual_seed(0)
    igd = Igd(TinyNet(), SMALL, 32).eval()
    draw = Patches(pool(), 32).draw
    run = Run(tmp_path, {}, resume=False, say=lambda _: None, checkpoint_every_s=60)
    estimate_gaussian(igd, draw, SMALL, torch.Generator().manual_seed(3), run)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        z = torch.cat([igd.encoder(Normalise()(draw(16, generator)[0])) for _ in range(2)])
    torch.testing.assert_close(igd.centre, losses.estimate_centre(z))
    torch.testing.assert_close(igd.spread, losses.estimate_spread(z, igd.centre))


def trained(folder: Path, config: IgdConfig) -> tuple[Igd, Run]:
    """After `config.steps` steps."""
    torch.manual_seed(0)
    igd = Igd(TinyNet(), config, 32)
    run = Run(folder, {}, resume=False, say=lambda _: None, checkpoint_every_s=60)
    train_igd("igd", igd, Patches(pool(), 32).draw, config, config.steps, run, seed=0)
    return igd, run


def test_latents_are_drawn_to_the_centre(tmp_path: Path) -> None:
    config = replace(SMALL, steps=12, learning_rate=1e-2, width=0.0625, estimate_every=1000)
    _, run = trained(tmp_path, replace(config, gaussian_weight=10.0))
    gaussian = [entry["gaussian"] for entry in run.metrics()]
    assert gaussian[-1] < 0.5 * gaussian[0]


class Brightness(torch.nn.Module):
    """A critic that sees the mean of a picture and learns a bias."""

    def __init__(self, size_px: int, width: float) -> None:
        super().__init__()
        self.bias = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(1, 2, 3)) + self.bias


def test_decoder_and_critic_answer_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The decoder makes interpolations that the critic calls 0; the critic calls them alpha, which
    is less than what this one starts with."""
    monkeypatch.setattr(module, "Critic", Brightness)
    config = replace(SMALL, steps=15, width=0.0625, interpolation_weight=10.0)
    _, run = trained(tmp_path, config)
    noticed = [entry["interpolation"] for entry in run.metrics()]
    assert noticed[0] > 0.5
    assert noticed[-1] < 0.2
    saved = torch.load(tmp_path / "igd.pt", weights_only=True)
    assert saved["modules"]["critic"]["bias"] < 1 - config.learning_rate


def test_learning_rates_fall_to_zero(tmp_path: Path) -> None:
    config = replace(SMALL, steps=4, width=0.0625)
    trained(tmp_path, config)
    saved = torch.load(tmp_path / "igd.pt", weights_only=True)["optimizers"]
    assert saved.keys() == {"descent", "critic"}
    for each in saved.values():
        (group,) = each["optimizer"]["param_groups"]
        assert group["lr"] == pytest.approx(config.learning_rate * 0.25**0.9)


def test_a_trained_igd_has_the_centre_and_spread_of_its_last_weights(tmp_path: Path) -> None:
    config = replace(SMALL, steps=3, width=0.0625, learning_rate=0.1, estimate_samples=16)
    x, inside = Patches(pool(), 32).draw(16, torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    igd = Igd(TinyNet(), config, 32)
    run = Run(tmp_path, {}, resume=False, say=lambda _: None, checkpoint_every_s=60)
    train_igd("igd", igd, lambda count, generator: (x, inside), config, 3, run, seed=0)
    with torch.no_grad():
        z = igd.encoder(Normalise()(x))
    torch.testing.assert_close(igd.centre, losses.estimate_centre(z))
    torch.testing.assert_close(igd.spread, losses.estimate_spread(z, igd.centre))
    saved = torch.load(tmp_path / "igd.pt", weights_only=True)["modules"]["igd"]
    assert torch.equal(saved["centre"], igd.centre)


def test_a_frozen_resnet_is_the_papers_encoder() -> None:
    igd = Igd(TorchvisionNet("resnet18"), IgdConfig(width=0.0625), 32)
    assert igd.encoder.bottleneck.weight.shape == (128, 512)
