"""What PatchCore and PaDiM have in common: grid, validity, score, export."""

import io
import warnings
from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from ccdstream.errors import ConfigError, DataError
from trainer.backbone import Backbone, TinyNet, make_backbone
from trainer.config import BackboneConfig, PadimConfig, PatchcoreConfig
from trainer.detectors.cells import CellDetector
from trainer.detectors.padim import Padim, fit_padim
from trainer.detectors.patchcore import PatchCore, fit_patchcore

SIZE = 64

Make = Callable[..., CellDetector]


def patchcore(backbone: Backbone, top: float = 0.0) -> CellDetector:
    config = PatchcoreConfig(bank_size=1500, candidates=1200, top_fraction=top)
    return PatchCore(backbone, config, SIZE)


def padim(backbone: Backbone, top: float = 0.0) -> CellDetector:
    return Padim(backbone, PadimConfig(dims=16, top_fraction=top), SIZE)


BOTH = pytest.mark.parametrize("make", [patchcore, padim])


class Colours(Backbone):
    """A cell's features are its mean colours: nothing of its neighbours."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(*[nn.AvgPool2d(k) for k in (4, 2, 2)]))


def pictures(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, SIZE, SIZE, generator=generator)
    inside = torch.ones(n, 1, SIZE, SIZE)
    inside[:, :, 40:, :16] = 0
    return x, inside


def fit(detector: CellDetector, *batches: tuple[Tensor, Tensor], seed: int = 0) -> CellDetector:
    generator = torch.Generator().manual_seed(seed)
    if isinstance(detector, PatchCore):
        fit_patchcore(detector, iter(batches), generator)
    else:
        assert isinstance(detector, Padim)
        fit_padim(detector, iter(batches), generator)
    return detector


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Networks start at random."""
    torch.manual_seed(0)


def fitted(make: Make, backbone: Backbone, top: float = 0.0) -> CellDetector:
    return fit(make(backbone, top), pictures(20, 0), pictures(20, 1))


@BOTH
def test_terms_maps_and_shapes_are_those_that_the_program_asks_for(make: Make) -> None:
    detector = fitted(make, TinyNet())
    scores, maps = detector(*pictures(3, 5))
    assert detector.terms == detector.map_terms == ("distance",)
    assert scores.shape == (3, 1)
    assert maps.shape[:2] == (3, 1)
    assert SIZE % maps.shape[2] == 0
    assert not detector.training
    assert not any(p.requires_grad for p in detector.parameters())


@BOTH
@torch.no_grad()
def test_a_foreign_spot_raises_the_score_and_the_map_there(make: Make) -> None:
    detector = fitted(make, Colours())
    x, inside = pictures(1, 9)
    before, _ = detector(x, inside)
    x[..., 16:32, 32:48] += 6
    after, maps = detector(x, inside)
    assert float(after) > 1.5 * float(before)
    cells = maps.shape[2]
    row, column = divmod(int(maps[0, 0].argmax()), cells)
    assert 16 < (row + 0.5) * SIZE / cells < 32
    assert 32 < (column + 0.5) * SIZE / cells < 48


@BOTH
@torch.no_grad()
def test_cells_that_are_not_valid_are_neither_learned_from_nor_scored(make: Make) -> None:
    def half(n: int, seed: int) -> tuple[Tensor, Tensor]:
        x, inside = pictures(n, seed)
        inside[..., :40] = 0
        return x, inside

    def spoilt(x: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        x = x.clone()
        x[..., :16] = 1e3  # as far from the valid part as PatchCore's average and enlarging reach
        return x, inside

    clean = fit(make(Colours()), half(20, 0))
    spoiled = fit(make(Colours()), spoilt(*half(20, 0)))
    x, inside = half(2, 7)
    for name, value in clean.state_dict().items():
        assert torch.equal(value, spoiled.state_dict()[name]), name
    for a, b in zip(clean(x, inside), spoiled(*spoilt(x, inside)), strict=True):
        assert torch.equal(a, b)


@BOTH
@torch.no_grad()
def test_the_score_is_the_mean_of_the_highest_valid_cells(make: Make) -> None:
    x, inside = pictures(2, 7)
    inside[1, :, :, 16:] = 0  # few valid cells: fewer than the share asked for
    for top in (0.0, 0.3, 1.0):
        detector = fitted(make, TinyNet(), top)
        scores, maps = detector(x, inside)
        cells = maps.shape[2]
        block = SIZE // cells
        for n in range(2):
            values = [
                float(maps[n, 0, row, column])
                for row in range(cells)
                for column in range(cells)
                if inside[n, 0, row * block : (row + 1) * block, column * block :][:, :block].mean()
                >= 0.5
            ]
            count = max(1, round(top * cells * cells))
            expected = np.sort(values)[::-1][:count].mean()
            assert float(scores[n]) == pytest.approx(expected, rel=1e-5)


@BOTH
@torch.no_grad()
def test_a_picture_with_nothing_valid_scores_zero(make: Make) -> None:
    x, inside = pictures(1)
    for out in fitted(make, TinyNet())(x, torch.zeros_like(inside)):
        assert not out.any()


@BOTH
def test_frames_without_a_valid_part_cannot_be_learned_from(make: Make) -> None:
    x, inside = pictures(2)
    with pytest.raises(DataError, match="no frame to learn from has a valid part"):
        fit(make(TinyNet()), (x, torch.zeros_like(inside)))


@BOTH
def test_the_seed_decides_what_is_learned(make: Make) -> None:
    states = [fit(make(Colours()), pictures(20), seed=seed).state_dict() for seed in (3, 3, 4)]
    name = "bank" if make is patchcore else "chosen"
    assert torch.equal(states[0][name], states[1][name])
    if make is patchcore:  # Colours has too few channels for PaDiM to leave any out
        assert not torch.equal(states[0][name], states[2][name])


@BOTH
def test_a_backbone_without_the_strides_is_refused(make: Make) -> None:
    short = Backbone(nn.Sequential(nn.AvgPool2d(4), nn.AvgPool2d(2)))
    with pytest.raises(ConfigError, match="no feature map of stride 16, only of 4, 8"):
        make(short)


@BOTH
@torch.no_grad()
def test_the_exported_graph_gives_the_same_for_every_batch(make: Make) -> None:
    detector = fitted(make, TinyNet(), 0.1)
    batch = torch.export.Dim("batch", min=1, max=64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        exported = torch.onnx.export(
            detector,
            pictures(2),
            input_names=["x", "inside"],
            output_names=["scores", "maps"],
            dynamic_shapes=({0: batch}, {0: batch}),
            dynamo=True,
            verbose=False,
        )
    assert exported is not None
    file = io.BytesIO()
    exported.save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    for n in (1, 2, 3):
        x, inside = pictures(n, 8)
        got = session.run(["scores", "maps"], {"x": x.numpy(), "inside": inside.numpy()})
        for a, b in zip(detector(x, inside), got, strict=True):
            np.testing.assert_allclose(b, a.numpy(), rtol=1e-3, atol=1e-4)


def test_the_buffers_that_a_bundle_carries_by_default_are_a_few_mb() -> None:
    lite0, _ = make_backbone(BackboneConfig(name="efficientnet_lite0", weights="none"))
    for detector in (PatchCore(lite0, PatchcoreConfig()), Padim(lite0, PadimConfig())):
        own = [b for name, b in detector.named_buffers() if not name.startswith("backbone.")]
        assert 2e6 < sum(b.numel() * b.element_size() for b in own) < 5e6
