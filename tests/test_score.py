"""A score depends on nothing but its view, and only valid cells of a map keep their value."""

import importlib.util

import numpy as np
import pytest

from ccdstream.engine.base import EngineOutput
from ccdstream.engine.select import open_engine
from ccdstream.errors import EngineError
from ccdstream.frames import FieldOfView, View
from ccdstream.score import Scorer, mask_map
from tests.bundles import ToyEngine, toy_inputs, toy_output, write_toy_bundle

FIELD = FieldOfView(0, 0, 256, 256, np.array([[0, 0], [255, 0], [255, 255], [0, 255]], np.int32))


def views_of(rows: int, *, seed: int = 0) -> list[View]:
    frames, valid = toy_inputs(rows, seed=seed)
    return [View(f.transpose(1, 2, 0), v, FIELD) for f, v in zip(frames, valid, strict=True)]


def test_scores_are_those_of_the_engine_in_the_order_of_the_views() -> None:
    frames, valid = toy_inputs(4)
    expected = toy_output(frames, valid)
    scored = Scorer(ToyEngine()).score(views_of(4))
    assert [one.raw for one in scored] == expected.score.tolist()
    np.testing.assert_array_equal([one.parts for one in scored], expected.parts)


def test_channels_keep_their_meaning() -> None:
    """Pure green is brighter than pure red, and blue is darkest: a swap of channels would show."""
    valid = np.ones((256, 256), bool)
    raw = []
    for channel in range(3):
        image = np.zeros((256, 256, 3), np.uint8)
        image[..., channel] = 255
        raw.append(Scorer(ToyEngine()).score([View(image, valid, FIELD)])[0].raw)
    assert raw == pytest.approx([0.299, 0.587, 0.114])


def test_one_call_of_the_engine_scores_all_views() -> None:
    engine = ToyEngine()
    Scorer(engine).score(views_of(5))
    assert engine.batches == [5]


def test_no_views_give_no_scores_and_no_call() -> None:
    engine = ToyEngine()
    assert Scorer(engine).score([]) == []
    assert engine.batches == []


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_score_does_not_depend_on_the_views_beside_it(tmp_path, name) -> None:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    bundle = write_toy_bundle(tmp_path / "toy")
    scorer = Scorer(open_engine(bundle, engine=name, device="cpu"))
    views = views_of(7)
    alone = [scorer.score([view])[0] for view in views]
    for size in (2, 3, 7):
        batched = [
            one for start in range(0, 7, size) for one in scorer.score(views[start : start + size])
        ]
        for one, other in zip(alone, batched, strict=True):
            assert one.raw == pytest.approx(other.raw, abs=1e-6)
            np.testing.assert_allclose(one.anomaly_map, other.anomaly_map, atol=1e-6)
            np.testing.assert_allclose(one.parts, other.parts, atol=1e-6)


def test_map_cells_are_nan_exactly_where_most_of_the_cell_is_not_valid() -> None:
    """Against a plain loop over the cells."""
    views = views_of(4, seed=3)
    for view, scored in zip(views, Scorer(ToyEngine()).score(views), strict=True):
        for row in range(64):
            for column in range(64):
                cell = view.valid[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
                assert np.isnan(scored.anomaly_map[row, column]) == (cell.mean() < 0.5)


@pytest.mark.parametrize(("pixels", "kept"), [(0, False), (7, False), (8, True), (16, True)])
def test_a_cell_is_kept_from_half_of_its_16_pixels_on(pixels: int, kept: bool) -> None:
    valid = np.zeros((8, 8), bool)
    valid[4:, 4:].flat[:pixels] = True  # a view of the lower right cell, row by row
    anomaly_map = mask_map(np.ones((2, 2), np.float32), valid)
    assert anomaly_map.dtype == np.float32
    assert np.isnan(anomaly_map[0]).all() and np.isnan(anomaly_map[1, 0])
    assert bool(np.isfinite(anomaly_map[1, 1])) is kept


def test_masking_leaves_the_engines_map_as_it_was() -> None:
    anomaly_map = np.ones((2, 2), np.float32)
    mask_map(anomaly_map, np.zeros((8, 8), bool))
    assert (anomaly_map == 1).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["score", "map"])
def test_a_score_or_map_that_is_not_finite_is_an_error(where: str, value: float) -> None:
    class Broken(ToyEngine):
        def run(self, frames: np.ndarray, valid: np.ndarray) -> EngineOutput:
            output = super().run(frames, valid)
            (output.score if where == "score" else output.anomaly_map[:, 5, 5])[-1] = value
            return output

    with pytest.raises(EngineError, match="toy on cpu gave a score or a map that is not finite"):
        Scorer(Broken()).score(views_of(3))
