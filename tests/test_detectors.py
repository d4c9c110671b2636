"""Every detector: trains by its loop, scores what it was not trained on higher, and exports."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from ccdstream.errors import ConfigError
from trainer.backbone import Normalise, TinyNet
from trainer.config import (
    AutoencoderConfig,
    FanoganConfig,
    IgdConfig,
    ProgramConfig,
)
from trainer.detectors import fanogan
from trainer.detectors.autoencoder import Autoencoder, train_autoencoder
from trainer.detectors.base import Detector, Encoder, Reconstructing
from trainer.detectors.fanogan import Fanogan, gradient_penalty, train_encoder, train_gan
from trainer.detectors.igd import Igd, train_igd
from trainer.detectors.networks import Critic
from trainer.export import Program, onnx_program, prepare
from trainer.runs import Run
from trainer.sampling import Patches, Pool

AE = AutoencoderConfig(
    latent_dim=8, width=0.125, learning_rate=5e-3, batch_size=16, decoder_norm="batch"
)
GAN = FanoganConfig(
    latent_dim=8,
    width=0.0625,
    batch_size=8,
    critic_steps=2,
    learning_rate=1e-3,
    encoder_learning_rate=1e-3,
)


def stripes() -> Pool:
    """Eight 64x64 pictures of vertical stripes in a few colours."""
    generator = torch.Generator().manual_seed(0)
    wave = 40 * torch.sin(torch.arange(64) / 3)
    colour = torch.randint(100, 150, (8, 3, 1, 1), generator=generator)
    images = (colour + wave).expand(8, 3, 64, 64).to(torch.uint8)
    return Pool(images.contiguous(), torch.ones(8, 64, 64, dtype=torch.bool))


def half_white(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Dark pictures whose right half is white and not valid."""
    x = 0.1 + 0.1 * torch.rand(count, 3, 32, 32, generator=generator)
    x[..., 16:] = 1.0
    inside = torch.ones(count, 1, 32, 32)
    inside[..., 16:] = 0.0
    return x, inside


def a_run(
    folder: Path, *, resume: bool = False, stopped: Callable[[], bool] = lambda: False
) -> Run:
    return Run(
        folder, {}, resume=resume, say=lambda _: None, stopped=stopped, checkpoint_every_s=60
    )


def losses_of(run: Run, stage: str, key: str) -> list[float]:
    return [entry[key] for entry in run.metrics() if entry["stage"] == stage and key in entry]


@pytest.mark.parametrize("error", ["msssim", "squared"])
def test_an_autoencoder_learns_to_reconstruct_and_a_frozen_backbone_stays(
    tmp_path: Path, error: str
) -> None:
    torch.manual_seed(0)
    net = Autoencoder(TinyNet(), AE, 32, error)  # type: ignore[arg-type]
    before = {key: value.clone() for key, value in net.encoder.backbone.state_dict().items()}
    draw = Patches(stripes(), 32).draw
    pixels, inside = draw(16, torch.Generator().manual_seed(9))
    x = Normalise()(pixels)
    with torch.no_grad():
        untrained = net.eval()(x, inside)[0].mean()
    train_autoencoder("ae", net, draw, AE, 40, a_run(tmp_path), seed=0)
    with torch.no_grad():
        assert net(x, inside)[0].mean() < 0.97 * untrained
    for key, value in net.encoder.backbone.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", ["igd", "msssim_ae", "dae"])
def test_what_is_not_valid_is_not_learned(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    net = detector(name, 32)
    assert isinstance(net, Reconstructing)
    run = a_run(tmp_path)
    if isinstance(net, Igd):
        igd = IgdConfig(latent_dim=8, batch_size=8, learning_rate=5e-3, width=0.0625)
        igd = replace(igd, estimate_samples=8)
        train_igd("n", net, half_white, igd, 30, run, seed=0)
    elif isinstance(net, Autoencoder):
        config = AutoencoderConfig(latent_dim=8, batch_size=8, learning_rate=5e-3)
        train_autoencoder("n", net, half_white, config, 40, run, seed=0)
    x, _ = half_white(4, torch.Generator().manual_seed(9))
    with torch.no_grad():
        again = Normalise().undo(net.reconstruct(Normalise()(x)))
    assert again[..., 18:].mean() < 0.6
    assert again[..., :14].mean() < 0.5


@pytest.mark.parametrize(("error", "noise_std"), [("squared", 0.5), ("msssim", 0.0)])
def test_the_denoising_autoencoder_alone_sees_noise_and_none_of_it_in_its_loss(
    tmp_path: Path, error: str, noise_std: float
) -> None:
    torch.manual_seed(0)
    config = AutoencoderConfig(latent_dim=8, width=0.125, batch_size=8, noise_std=0.5)
    net = Autoencoder(TinyNet(), config, 32, error)  # type: ignore[arg-type]
    pixels, inside = half_white(8, torch.Generator().manual_seed(0))
    x = Normalise()(pixels)
    seen: list[torch.Tensor] = []
    made: list[torch.Tensor] = []
    net.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    net.decoder.register_forward_hook(lambda _, given, out: made.append(out.detach()))
    run = a_run(tmp_path)
    train_autoencoder("ae", net, lambda count, generator: (pixels, inside), config, 1, run, seed=0)
    assert (seen[0] - x).std().item() == pytest.approx(noise_std, rel=0.03)
    if error == "squared":
        expected = (x - made[0])[..., :16].square().mean().item()
        assert run.metrics()[-1]["reconstruction"] == pytest.approx(expected, rel=1e-5)


def test_a_backbone_is_fine_tuned_where_that_is_asked_for(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = AutoencoderConfig(latent_dim=8, width=0.125, train_backbone=True)
    net = Autoencoder(TinyNet(), config, 32, "squared")
    before = net.encoder.backbone.state_dict()["layers.0.weight"].clone()
    train_autoencoder("ae", net, Patches(stripes(), 32).draw, config, 2, a_run(tmp_path), seed=0)
    assert not torch.equal(net.encoder.backbone.state_dict()["layers.0.weight"], before)


def test_a_frozen_backbone_is_in_eval_mode_while_the_rest_trains() -> None:
    frozen = Encoder(TinyNet(), 8, trains=False).train()
    assert frozen.bottleneck.training
    assert not frozen.backbone.training
    assert Encoder(TinyNet(), 8, trains=True).train().backbone.training


def test_the_gradient_penalty_is_that_of_a_known_slope() -> None:
    weight = torch.randn(3 * 4 * 4)

    def plane(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1) @ weight

    real, fake = torch.randn(5, 3, 4, 4), torch.randn(5, 3, 4, 4)
    penalty = gradient_penalty(plane, real, fake, torch.Generator().manual_seed(0))
    torch.testing.assert_close(penalty, (weight.norm() - 1).square())


def test_each_stage_of_fanogan_trains_its_own_networks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Fanogan(TinyNet(), GAN, 32)
    draw = Patches(stripes(), 32).draw
    run = a_run(tmp_path)
    encoder = {key: value.clone() for key, value in net.encoder.state_dict().items()}
    critic = train_gan("gan", net, draw, GAN, 2, run, seed=0)
    assert {"wasserstein", "penalty", "generator"} <= set(run.metrics()[-1])
    for key, value in net.encoder.state_dict().items():
        assert torch.equal(value, encoder[key]), "stage one trains no encoder"
    generator = {key: value.clone() for key, value in net.decoder.state_dict().items()}
    train_encoder("encoder", net, critic, draw, GAN, 2, run, seed=0)
    assert not torch.equal(net.encoder.bottleneck.weight, encoder["bottleneck.weight"])
    for key, value in net.decoder.state_dict().items():
        assert torch.equal(value, generator[key]), "stage two trains no generator"


def test_a_generator_comes_to_make_what_the_critic_calls_real(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Fanogan(TinyNet(), GAN, 32)

    def white(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ones(count, 3, 32, 32), torch.ones(count, 1, 32, 32)

    run = a_run(tmp_path)
    z = torch.randn(16, 8)
    with torch.no_grad():
        before = net.eval().decoder(z).mean()
    critic = train_gan("gan", net, white, GAN, 15, run, seed=0)
    with torch.no_grad():
        made = net.decoder(z)
        assert made.mean() > before + 0.25
        assert critic(Normalise()(torch.ones(1, 3, 32, 32))) > critic(made).mean()
    assert run.metrics()[-1]["wasserstein"] > 0


class Watched(Critic):
    """Keeps what it is shown."""

    def __init__(self, size_px: int, width: float) -> None:
        super().__init__(size_px, width)
        self.seen: list[torch.Tensor] = []

    def features(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x.detach())
        return super().features(x)


def test_a_critic_sees_the_same_wherever_a_picture_is_not_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So neither stage can tell or match pictures by it."""
    monkeypatch.setattr(fanogan, "Critic", Watched)
    torch.manual_seed(0)
    net = Fanogan(TinyNet(), GAN, 32)
    run = a_run(tmp_path)
    critic = train_gan("gan", net, half_white, GAN, 1, run, seed=0)
    assert isinstance(critic, Watched)
    train_encoder("encoder", net, critic, half_white, GAN, 1, run, seed=0)
    # real, generated and between for each critic step, the generator's, and the encoder's pair
    assert len(critic.seen) == 3 * GAN.critic_steps + 1 + 2
    white = Normalise()(torch.ones(1, 3, 32, 16))
    for x in critic.seen:
        torch.testing.assert_close(x[..., 16:], white.expand(len(x), -1, -1, -1))
        assert (x[..., :16] - white).abs().mean() > 0.5


class Painter(torch.nn.Module):
    """A generator of pictures of one colour, the first three numbers of the latent."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z[:, :3, None, None].expand(-1, -1, 32, 32)


class Energy(torch.nn.Module):
    """A critic with one feature, the mean square of a picture."""

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return x.square().mean(dim=(1, 2, 3))[:, None]


@pytest.mark.parametrize(("kappa", "colour"), [(0.0, 1.0), (100.0, 2**0.5)])
def test_an_encoder_matches_pictures_and_by_kappa_the_critics_features(
    tmp_path: Path, kappa: float, colour: float
) -> None:
    """Of pictures of 0 and 2 in equal parts, 1 is the nearest of one colour; the square root of 2
    has as much energy."""
    torch.manual_seed(0)
    net = Fanogan(TinyNet(), GAN, 32)
    net.decoder = Painter()  # type: ignore[assignment]
    striped = torch.zeros(8, 3, 32, 32)
    striped[..., ::2] = 2.0

    def draw(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        return Normalise().undo(striped), torch.ones(count, 1, 32, 32)

    config = replace(GAN, kappa=kappa, encoder_learning_rate=0.02)
    run = a_run(tmp_path)
    train_encoder("e", net, Energy(), draw, config, 60, run, seed=0)  # type: ignore[arg-type]
    with torch.no_grad():
        reconstructed = net.reconstruct(striped)
    assert reconstructed.abs().mean().item() == pytest.approx(colour, abs=0.1)


def test_fanogan_stopped_in_and_between_its_stages_ends_bit_for_bit_as_undisturbed(
    tmp_path: Path,
) -> None:
    asked = 0

    def trained(folder: Path, stop_at: set[int], *, resume: bool = False) -> Fanogan:
        def stopped() -> bool:
            nonlocal asked
            asked += 1
            return asked in stop_at

        run = a_run(folder, resume=resume, stopped=stopped)
        torch.manual_seed(0)
        net = Fanogan(TinyNet(), GAN, 32)
        draw = Patches(stripes(), 32).draw
        critic = train_gan("gan", net, draw, GAN, 3, run, seed=0)
        train_encoder("encoder", net, critic, draw, GAN, 3, run, seed=0)
        return net

    whole = trained(tmp_path / "whole", set()).state_dict()
    asked, stop_at = 0, {2, 3, 5}  # in the first stage, at its end, in the second
    for _ in stop_at:
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path / "parted", stop_at, resume=True)
    parted = trained(tmp_path / "parted", stop_at, resume=True).state_dict()
    assert asked == 6
    for key, value in whole.items():
        assert torch.equal(value, parted[key]), key


def test_the_terms_are_how_far_a_picture_and_its_features_are_from_their_reconstruction() -> None:
    torch.manual_seed(0)
    net = Fanogan(TinyNet(), GAN, 32).eval()
    x, inside = torch.randn(2, 3, 32, 32), torch.ones(2, 1, 32, 32)
    inside[1, :, :, 16:] = 0.0
    with torch.no_grad():
        scores, residual = net(x, inside)
        z, x_hat = net.encoder(x), net.reconstruct(x)
        x_hat[1, :, :, 16:] = x[1, :, :, 16:]  # what is not valid tells nothing
        expected = (z - net.encoder(x_hat)).square().mean(dim=1)
    torch.testing.assert_close(scores[:, 1], expected)
    error = (x - x_hat).square()
    torch.testing.assert_close(scores[0, 0], error[0].mean())
    torch.testing.assert_close(scores[1, 0], error[1, :, :, :16].mean())
    assert residual.shape == (2, 1, 32, 32)


def detector(name: str, size: int) -> Detector:
    if name == "igd":
        return Igd(TinyNet(), IgdConfig(latent_dim=8, width=0.0625), size)
    if name == "fanogan":
        return Fanogan(TinyNet(), FanoganConfig(latent_dim=8, width=0.0625), size)
    config = AutoencoderConfig(latent_dim=8, width=0.0625)
    return Autoencoder(TinyNet(), config, size, "msssim" if name == "msssim_ae" else "squared")


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("fanogan", "both"),
        ("msssim_ae", "both"),
        ("dae", "global"),
        ("dae", "local"),
    ],
)
def test_every_detector_exports_at_every_scale(name: str, scale: str) -> None:
    torch.manual_seed(0)
    program = Program(
        detector(name, 64) if scale != "local" else None,
        detector(name, 32) if scale != "global" else None,
        ProgramConfig(patch_stride_px=32),
    )
    prepare(program)
    session = onnxruntime.InferenceSession(
        onnx_program(program), providers=["CPUExecutionProvider"]
    )
    generator = torch.Generator().manual_seed(1)
    for n in (1, 3):
        frames = torch.randint(0, 256, (n, 3, 256, 256), generator=generator, dtype=torch.uint8)
        valid = torch.ones(n, 256, 256, dtype=torch.bool)
        valid[:, 150:, :100] = False
        with torch.no_grad():
            expected = program(frames, valid)
        got = session.run(None, {"frames": frames.numpy(), "valid": valid.numpy()})
        assert expected[2].shape == (n, len(program.parts))
        for a, b in zip(expected, got, strict=True):
            np.testing.assert_allclose(b, a.numpy(), rtol=2e-3, atol=2e-3)


def test_patches_of_small_frames_make_a_map_of_the_whole() -> None:
    """Liu et al.'s frames: nine 32 px patches of a 64 px picture."""
    program = Program(
        None, detector("igd", 32), ProgramConfig(patch_stride_px=16), local_size_px=64
    ).eval()
    frames = torch.zeros(1, 3, 256, 256, dtype=torch.uint8)
    frames[:, :, :, 128:] = 255
    with torch.no_grad():
        score, anomaly_map, parts = program(frames, torch.ones(1, 256, 256, dtype=torch.bool))
    assert program.parts == ["local_reconstruction", "local_gaussian"]
    assert (score.shape, anomaly_map.shape, parts.shape) == ((1,), (1, 64, 64), (1, 2))
    assert anomaly_map.std() > 0


def test_weights_are_of_the_terms_that_there_are() -> None:
    whole = detector("dae", 64)
    program = Program(whole, None, ProgramConfig(score_weights={"global_reconstruction": 2.0}))
    assert program.part_weights.tolist() == [2.0]
    with pytest.raises(ConfigError, match=r"names local_gaussian.*Known terms: global_recon"):
        Program(whole, None, ProgramConfig(map_weights={"local_gaussian": 1.0}))
