"""Every detector: trains by its loop, scores what it was not trained on higher, and exports."""

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
from trainer.detectors.autoencoder import Autoencoder, train_autoencoder
from trainer.detectors.base import Detector, Encoder
from trainer.detectors.fanogan import Fanogan, gradient_penalty, train_encoder, train_gan
from trainer.detectors.igd import Igd
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


def a_run(folder: Path) -> Run:
    return Run(folder, {}, resume=False, say=lambda _: None, checkpoint_every_s=60)


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


def test_fanogan_learns_both_its_stages(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Fanogan(TinyNet(), GAN, 32)
    draw = Patches(stripes(), 32).draw
    pixels, inside = draw(16, torch.Generator().manual_seed(9))
    x = Normalise()(pixels)
    run = a_run(tmp_path)
    encoder = {key: value.clone() for key, value in net.encoder.state_dict().items()}
    critic = train_gan("gan", net, draw, GAN, 10, run, seed=0)
    assert {"wasserstein", "penalty", "generator"} <= set(run.metrics()[-1])
    for key, value in net.encoder.state_dict().items():
        assert torch.equal(value, encoder[key]), "stage one trains no encoder"
    with torch.no_grad():
        before = net.eval()(x, inside)[0][:, 0].mean()
    generator = {key: value.clone() for key, value in net.decoder.state_dict().items()}
    train_encoder("encoder", net, critic, draw, GAN, 40, run, seed=0)
    with torch.no_grad():
        assert net(x, inside)[0][:, 0].mean() < before
    for key, value in net.decoder.state_dict().items():
        assert torch.equal(value, generator[key]), "stage two trains no generator"


def test_the_feature_term_is_the_distance_of_a_picture_from_its_reconstruction() -> None:
    torch.manual_seed(0)
    net = Fanogan(TinyNet(), GAN, 32).eval()
    x, inside = torch.randn(2, 3, 32, 32), torch.ones(2, 1, 32, 32)
    with torch.no_grad():
        scores, residual = net(x, inside)
        z, x_hat = net.encoder(x), net.reconstruct(x)
        expected = (z - net.encoder(x_hat)).square().mean(dim=1)
    torch.testing.assert_close(scores[:, 1], expected)
    torch.testing.assert_close(scores[:, 0], (x - x_hat).square().mean(dim=(1, 2, 3)))
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
        ("dae", "both"),
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
