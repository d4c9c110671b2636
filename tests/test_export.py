"""The program: its terms against a slow reference, and the ONNX file against the program."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F

from ccdstream.errors import ConfigError
from trainer.backbone import DATA_RANGE, TinyNet
from trainer.config import IgdConfig, ProgramConfig
from trainer.detectors.base import Detector
from trainer.detectors.igd import Igd
from trainer.export import MAP_SIZE, Program, onnx_program, prepare
from trainer.msssim import residual_map

SMALL = IgdConfig(latent_dim=8, width=0.0625)
RHO = 0.15
MAP_WEIGHTS = {"global_reconstruction": 0.25, "local_reconstruction": 0.25, "local_gaussian": 0.5}


def make_program(stride: int = 16, whole_px: int = 64, top: float = 0.05) -> Program:
    torch.manual_seed(0)
    program = Program(
        Igd(TinyNet(), SMALL, whole_px),
        Igd(TinyNet(), SMALL, 32),
        ProgramConfig(patch_stride_px=stride, local_top_fraction=top, map_weights=MAP_WEIGHTS),
    )
    for igd in (program.whole, program.local):
        assert isinstance(igd, Igd)
        igd.centre.normal_()
        igd.spread.fill_(3.0)
    prepare(program)
    return program


def inputs(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randint(0, 256, (n, 3, 32, 32), generator=generator).float()
    frames = F.interpolate(coarse, size=256, mode="bilinear", align_corners=False)
    valid = torch.ones(n, 256, 256, dtype=torch.bool)
    valid[:, 150:, :100] = False
    return frames.to(torch.uint8), valid


@torch.no_grad()
def slow_local_terms(
    program: Program, frame: torch.Tensor, valid: torch.Tensor, stride: int
) -> tuple[list[float], list[float], np.ndarray]:
    """Patch by patch: reconstruction terms, Gaussian terms, and the averaged Gaussian per pixel."""
    igd = program.local
    assert isinstance(igd, Igd)
    inside = valid.float()[None, None]
    pixels = frame[None].float() / 255 * inside + 128 / 255 * (1 - inside)
    x = program.normalise(pixels)
    reconstruction, gaussian = [], []
    total, count = np.zeros((256, 256)), np.zeros((256, 256))
    for top in range(0, 256 - 32 + 1, stride):
        for left in range(0, 256 - 32 + 1, stride):
            place = (..., slice(top, top + 32), slice(left, left + 32))
            patch, mask = x[place], inside[place]
            if mask.mean() < 0.5:
                continue
            z = igd.encoder(patch)
            x_hat = igd.decoder(z) * mask + patch * (1 - mask)
            residual = residual_map(
                patch,
                x_hat,
                rho=RHO,
                window=igd.scales.window,
                weights=igd.scales.weights,
                data_range=DATA_RANGE,
            )
            reconstruction.append(float((residual * mask).sum() / mask.sum()))
            distance = float(((z - igd.centre) ** 2).sum() / igd.spread)
            gaussian.append(distance)
            total[place[1:]] += distance
            count[place[1:]] += 1
    return reconstruction, gaussian, total / np.maximum(count, 1)


def test_local_terms_are_the_mean_over_the_highest_valid_patches() -> None:
    program = make_program()
    frames, valid = inputs(1)
    parts, maps = (t.detach() for t in program.terms(frames, valid))
    reconstruction, gaussian, per_pixel = slow_local_terms(program, frames[0], valid[0], 16)
    top = max(1, round(0.05 * 15 * 15))
    assert parts[0, 2] == pytest.approx(np.sort(reconstruction)[-top:].mean(), rel=1e-4)
    assert parts[0, 3] == pytest.approx(np.sort(gaussian)[-top:].mean(), rel=1e-4)
    # away from the edges of its 16 px cells the map is the plain average of the patches there
    centres = slice(8, 256, 16)
    cells = maps[0, 2].numpy()[2::4, 2::4] * 0.25 + maps[0, 2].numpy()[1::4, 1::4] * 0.25
    cells += maps[0, 2].numpy()[1::4, 2::4] * 0.25 + maps[0, 2].numpy()[2::4, 1::4] * 0.25
    inner = np.s_[2:8, 2:14]
    expected = F.avg_pool2d(torch.from_numpy(per_pixel)[None, None], 16)[0, 0].numpy()
    assert np.corrcoef(cells[inner].ravel(), expected[inner].ravel())[0, 1] > 0.98
    assert per_pixel[centres, centres][inner] == pytest.approx(expected[inner])


def test_no_top_fraction_is_the_papers_maximum() -> None:
    program = make_program(top=0.0)
    frames, valid = inputs(1)
    parts, _ = program.terms(frames, valid)
    _, gaussian, _ = slow_local_terms(program, frames[0], valid[0], 16)
    assert parts[0, 3].item() == pytest.approx(max(gaussian), rel=1e-4)


@torch.no_grad()
def test_with_fewer_valid_patches_than_the_top_share_all_of_them_count() -> None:
    program = make_program(stride=32, top=0.5)
    frames, valid = inputs(1)
    valid[:, :, 96:] = False
    valid[:, 96:] = False
    parts, _ = program.terms(frames, valid)
    reconstruction, gaussian, _ = slow_local_terms(program, frames[0], valid[0], 32)
    assert len(gaussian) == 9 < 0.5 * 64
    assert parts[0, 2] == pytest.approx(np.mean(reconstruction), rel=1e-4)
    assert parts[0, 3] == pytest.approx(np.mean(gaussian), rel=1e-4)


class Red(Detector):
    """Its map is the red of a picture."""

    terms = map_terms = ("red",)

    def __init__(self, size_px: int, map_px: int) -> None:
        super().__init__()
        self.size_px = size_px
        self._factor = size_px // map_px

    def forward(self, x: torch.Tensor, inside: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        red = x[:, :1]
        return red.mean(dim=(1, 2, 3))[:, None], F.avg_pool2d(red, self._factor)


@pytest.mark.parametrize(("size_px", "map_px"), [(256, 256), (256, 128), (128, 128)])
def test_a_cell_that_is_half_valid_shows_the_mean_of_its_valid_part(
    size_px: int, map_px: int
) -> None:
    program = Program(Red(size_px, map_px), None, ProgramConfig())
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (1, 3, 256, 256), generator=generator, dtype=torch.uint8)
    valid = torch.ones(1, 256, 256, dtype=torch.bool)
    valid[:, 128:, 2::4] = valid[:, 128:, 3::4] = False  # the right half of every lower cell
    _, anomaly_map, _ = program(frames, valid)
    red = program.normalise(frames.float() / 255)[:, 0].view(1, 64, 4, 64, 4)
    torch.testing.assert_close(anomaly_map[:, :32], red[:, :32].mean(dim=(2, 4)))
    torch.testing.assert_close(anomaly_map[:, 32:], red[:, 32:, :, :, :2].mean(dim=(2, 4)))


@torch.no_grad()
def test_what_is_not_valid_changes_nothing() -> None:
    program = make_program()
    frames, valid = inputs(2)
    other = frames.clone()
    other[:, :, 150:, :100] = 255 - other[:, :, 150:, :100]
    for a, b in zip(program(frames, valid), program(other, valid), strict=True):
        torch.testing.assert_close(a, b)


@torch.no_grad()
def test_score_and_map_are_weighted_sums_of_standardised_terms() -> None:
    program = make_program()
    frames, valid = inputs(2)
    parts, maps = program.terms(frames, valid)
    program.part_mean.copy_(parts.mean(dim=0))
    program.part_std.fill_(2.0)
    score, anomaly_map, same = program(frames, valid)
    torch.testing.assert_close(same, parts)
    torch.testing.assert_close(score, ((parts - parts.mean(dim=0)) / 2).mean(dim=1))
    expected = 0.25 * maps[:, 0] + 0.25 * maps[:, 1] + 0.5 * maps[:, 2]
    torch.testing.assert_close(anomaly_map, expected)


@torch.no_grad()
def test_a_frame_with_nothing_valid_gives_finite_numbers() -> None:
    program = make_program()
    frames, valid = inputs(1)
    for out in program(frames, torch.zeros_like(valid)):
        assert torch.isfinite(out).all()


@pytest.mark.parametrize("stride", [20, 6])
def test_a_stride_that_does_not_fit_is_refused(stride: int) -> None:
    with pytest.raises(ConfigError, match=r"patch_stride_px is \d+\. Expected a multiple of 4"):
        make_program(stride=stride)


def test_the_onnx_file_gives_what_the_program_gives_for_any_batch_and_holds_half_weights() -> None:
    program = make_program(stride=32)
    data = onnx_program(program)
    model = onnx.load_from_string(data)
    large = [w for w in model.graph.initializer if np.prod(w.dims, dtype=int) >= 256]
    assert {w.data_type for w in large if w.data_type in (1, 10)} == {onnx.TensorProto.FLOAT16}
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    for n in (1, 2, 5):
        frames, valid = inputs(n)
        with torch.no_grad():
            expected = program(frames, valid)
        got = session.run(
            ["score", "map", "parts"], {"frames": frames.numpy(), "valid": valid.numpy()}
        )
        assert got[1].shape == (n, MAP_SIZE, MAP_SIZE)
        assert got[2].shape == (n, len(program.parts))
        for a, b in zip(expected, got, strict=True):
            np.testing.assert_allclose(b, a.numpy(), rtol=2e-3, atol=2e-3)
