"""A student that takes over what its reference reads from frozen features."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ccdstream.bundle import Bundle, load_bundle
from ccdstream.engine.select import open_engine
from ccdstream.packaged import find_model
from tests.bundles import write_toy_bundle
from tests.test_train import write_frames
from trainer.backbone import Normalise
from trainer.config import StudentConfig, load_config
from trainer.inherit import inheritance
from trainer.sampling import Pool
from trainer.student import train_student
from trainer.synthetic import paste_lesion


@pytest.fixture(scope="module")
def reference() -> Bundle:
    return load_bundle(find_model("reference").path)


def views(count: int = 3) -> Pool:
    """Smooth pictures in mucosa's colours, a corner of each not valid."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(60, 220, (count, 3, 8, 8)).astype(np.float32))
    images = torch.nn.functional.interpolate(coarse, size=(256, 256), mode="bilinear").byte()
    valid = torch.ones(count, 256, 256, dtype=torch.bool)
    valid[:, 200:, :80] = False
    return Pool(images, valid)


def test_what_is_taken_over_says_what_the_reference_says(reference: Bundle) -> None:
    taken, pool = inheritance(reference), views()
    assert taken is not None and list(taken.score_weights) == ["lesion", "frame_distance"]
    said = open_engine(reference, device="cpu").run(pool.images.numpy(), pool.valid.numpy())
    inside = pool.valid[:, None].float()
    x = Normalise()(pool.images.float() / 255 * inside + (128 / 255) * (1 - inside))
    with torch.no_grad():
        scores, _ = taken.features(x, inside)
    rows = [reference.parts.index(term) for term in taken.score_weights]
    np.testing.assert_allclose(scores, said.parts[:, rows], rtol=1e-4, atol=1e-4)


def test_a_term_weighs_what_it_weighs_in_the_reference(reference: Bundle) -> None:
    taken, pool = inheritance(reference), views()
    assert taken is not None
    assert taken.score_weights == {"lesion": 0.5, "frame_distance": 0.25}
    program = taken.program().eval()
    said = open_engine(reference, device="cpu").run(pool.images.numpy(), pool.valid.numpy())
    with torch.no_grad():
        score, anomaly_map, parts = program(pool.images, pool.valid)
    torch.testing.assert_close(score, 0.5 * parts[:, 0] + 0.25 * parts[:, 1])
    flat = [np.ravel(m) for m in (anomaly_map.numpy(), said.anomaly_map)]
    assert np.corrcoef(flat)[0, 1] > 0.9999  # the map is the reference's but for its standard


def test_a_reference_without_such_features_is_learned_whole(tmp_path: Path) -> None:
    assert inheritance(write_toy_bundle(tmp_path / "toy")) is None


def test_a_map_that_is_more_than_the_localisers_is_not_taken_over(reference: Bundle) -> None:
    weights = reference.manifest["training"]["config"]["program"]["map_weights"]
    weights["local_gaussian"] = 0.5
    try:
        assert inheritance(reference) is None
    finally:
        del weights["local_gaussian"]


def test_a_student_is_made_without_training_and_says_what_it_took_over(
    reference: Bundle, tmp_path: Path
) -> None:
    write_frames(tmp_path / "data")
    said: list[str] = []
    config = load_config("smoke", None, ["max_images=8"])
    made = train_student(
        tmp_path / "data",
        tmp_path / "heir",
        reference.path,
        config,
        command="a test",
        say=said.append,
        paste=paste_lesion,
    )
    assert made is not None and open_engine(made, device="cpu").parity.passed
    assert list(made.parts) == ["lesion", "frame_distance"]
    assert made.manifest["training"]["backbones"] == {
        "student": f"frozen features of {reference.model_id}"
    }
    assert [one["name"] for one in made.manifest["training"]["data"]] == [
        *("train", "calibration", "pretrain")
    ]
    assert any("takes over its lesion and frame_distance: nothing is trained" in s for s in said)
    assert not list((tmp_path / "heir.run").glob("lessons*"))
    assert made.manifest["student"]["map_correlation"] > 0.999


def test_a_student_may_be_asked_to_learn_everything() -> None:
    assert StudentConfig().inherit
    assert not load_config("smoke", None, ["student.inherit=false"]).student.inherit
