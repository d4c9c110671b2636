"""The localiser: what it is shown, what it minimises, and that it learns."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onnxruntime import InferenceSession
from torch import nn

from ccdstream.errors import ConfigError
from trainer.backbone import Backbone, Normalise
from trainer.config import FeaturesConfig, LocaliserConfig, ProgramConfig
from trainer.detectors.features import Features
from trainer.detectors.localiser import (
    LesionDraw,
    Localiser,
    Picture,
    cells_scored,
    segmentation_losses,
    train_localiser,
)
from trainer.export import Program, onnx_program, prepare
from trainer.runs import Run
from trainer.sampling import Pool

CONFIG = LocaliserConfig(steps=24, batch_size=4, learning_rate=2e-2, width=16, average=0.5)


class Colours(Backbone):
    """Mean colours in cells of 8 and of 16 pixels, in place of learned features."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.AvgPool2d(8), nn.AvgPool2d(2)))


def pool(frames: int = 6, level: int = 110) -> Pool:
    generator = torch.Generator().manual_seed(level)
    images = torch.randint(
        level - 10, level + 10, (frames, 3, 256, 256), generator=generator, dtype=torch.uint8
    )
    valid = torch.ones(frames, 256, 256, dtype=torch.bool)
    valid[:, 160:, :100] = False
    return Pool(images, valid)


def blue_square(picture: Picture, _: Picture, rng: np.random.Generator) -> Picture:
    image, valid = picture
    row, column = rng.integers(0, 180, 2)
    mask = np.zeros_like(valid)
    mask[row : row + 70, column : column + 70] = True
    mask &= valid
    image = image.copy()
    image[mask] = (40, 60, 200)
    return image, mask


def dark_line(picture: Picture, _: Picture, rng: np.random.Generator) -> Picture:
    image, valid = picture
    mask = np.zeros_like(valid)
    mask[:, 128:132] = True
    image = image.copy()
    image[mask & valid] = 20
    return image, mask & valid


def drawn(config: LocaliserConfig, count: int = 10, seed: int = 0) -> tuple[torch.Tensor, ...]:
    with ThreadPoolExecutor(2) as workers:
        source = LesionDraw([pool()], config, [blue_square], [dark_line], workers)
        return source.draw(count, torch.Generator().manual_seed(seed))


def test_frames_come_with_and_without_lesions_as_often_as_asked() -> None:
    for clean_p, share in ((1.0, 0.0), (0.0, 1.0)):
        pixels, valid, lesions = drawn(LocaliserConfig(steps=1, clean_p=clean_p))
        assert pixels.shape == (10, 3, 256, 256)
        assert float(pixels.min()) >= 0
        assert float(pixels.max()) <= 1
        assert valid.shape == lesions.shape == (10, 1, 256, 256)
        some = lesions.flatten(1).any(dim=1).float().mean()
        assert some == pytest.approx(share, abs=0.2)


def test_a_lesion_is_where_its_mask_says() -> None:
    pixels, valid, lesions = drawn(LocaliserConfig(steps=1, clean_p=0.0, distractor_p=0.0))
    blueness = pixels[:, 2:] - pixels[:, :1]
    inside = blueness[(lesions * valid) > 0]
    outside = blueness[((1 - lesions) * valid) > 0]
    assert inside.mean() > outside.mean() + 0.2


def test_draws_depend_on_the_generator_alone() -> None:
    for a, b in zip(drawn(CONFIG, 4, seed=3), drawn(CONFIG, 4, seed=3), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(drawn(CONFIG, 4, seed=3)[0], drawn(CONFIG, 4, seed=4)[0])


def test_the_losses_are_those_of_their_formulas_on_the_scored_cells() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, 4, 4, generator=generator)
    lesions = torch.rand(2, 1, 4, 4, generator=generator)
    scored = torch.ones(2, 1, 4, 4)
    scored[1, :, :2] = 0
    parts = segmentation_losses(logits, lesions, scored)
    entropy, dice = [], []
    for x, y, s in zip(logits, lesions, scored, strict=True):
        x, y = x[s > 0], y[s > 0]
        entropy.append(F.binary_cross_entropy_with_logits(x, y))
        p = torch.sigmoid(x)
        dice.append(1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1))
    assert torch.allclose(parts["cross_entropy"], torch.stack(entropy).mean())
    assert torch.allclose(parts["dice"], torch.stack(dice).mean())


def test_it_learns_to_mark_what_it_is_shown(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = Colours()
    localiser = Localiser(backbone.channels, CONFIG)
    with Run(tmp_path / "run", {}, resume=False, checkpoint_every_s=60, say=lambda _: None) as run:
        train_localiser(
            "localiser",
            localiser,
            backbone,
            lambda workers: LesionDraw([pool()], CONFIG, [blue_square], [dark_line], workers),
            CONFIG,
            run,
            seed=0,
        )
    features = Features(backbone, FeaturesConfig(), CONFIG).eval()
    assert features.localiser is not None
    features.localiser.load_state_dict(localiser.state_dict())
    pixels, valid, lesions = drawn(LocaliserConfig(steps=1, clean_p=0.0, second_p=0.0), seed=9)
    with torch.no_grad():
        scores, maps = features(Normalise()(pixels * valid + (128 / 255) * (1 - valid)), valid)
    cells = F.avg_pool2d(lesions * valid, 4) > 0.5
    scored = cells_scored(valid) > 0
    assert maps[cells & scored].mean() > maps[~cells & scored].mean() + 1
    assert scores.shape == (10, 1)


def test_a_score_is_that_of_the_highest_valid_cells() -> None:
    localiser = Localiser({8: 3, 16: 4}, LocaliserConfig(steps=1, top_fraction=0.01))
    logits, inside = torch.full((1, 1, 64, 64), -5.0), torch.ones(1, 1, 256, 256)
    logits[..., :8, :8] = 3.0  # 64 cells; the score is of 41
    assert localiser.score(logits, inside) == pytest.approx(float(F.softplus(torch.tensor(3.0))))
    inside[..., :32, :32] = 0
    assert localiser.score(logits, inside) == pytest.approx(float(F.softplus(torch.tensor(-5.0))))


def test_a_backbone_without_those_maps_is_refused() -> None:
    with pytest.raises(ConfigError, match="stride 16"):
        Localiser({4: 8, 8: 16}, CONFIG)


def test_frozen_features_export_for_any_number_of_frames() -> None:
    program = Program(
        None,
        None,
        ProgramConfig(),
        features=Features(Colours(), FeaturesConfig(frame_gaussian=True), CONFIG),
    ).eval()
    assert program.parts == ["lesion", "frame_distance"]
    assert program.map_parts == ["lesion"]
    prepare(program)
    session = InferenceSession(onnx_program(program))
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 3, 256, 256), np.uint8)
    valid = rng.random((3, 256, 256)) < 0.9
    with torch.no_grad():
        expected = program(torch.from_numpy(frames), torch.from_numpy(valid))
    for one, other in zip(
        session.run(None, {"frames": frames, "valid": valid}), expected, strict=True
    ):
        assert np.allclose(one, other.numpy(), atol=1e-4)
