"""A student that takes over frozen features: the reference's map, and a head for the rest."""

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
from trainer.inherit import REST, Heir, heir_program, inheritance, leave_rest_unscaled, read
from trainer.sampling import Pool
from trainer.student import train_student


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
    assert taken is not None and list(taken.terms) == ["lesion", "frame_distance"]
    said = open_engine(reference, device="cpu").run(pool.images.numpy(), pool.valid.numpy())
    inside = pool.valid[:, None].float()
    x = Normalise()(pool.images.float() / 255 * inside + (128 / 255) * (1 - inside))
    with torch.no_grad():
        scores, _ = taken.features(x, inside)
    rows = [reference.parts.index(term) for term in taken.terms]
    np.testing.assert_allclose(scores, said.parts[:, rows], rtol=1e-4, atol=1e-4)


def test_the_score_is_the_inherited_terms_as_they_weigh_in_the_reference_and_the_rest(
    reference: Bundle,
) -> None:
    taken, pool = inheritance(reference), views()
    assert taken is not None
    torch.manual_seed(0)
    heir = Heir(taken.features, 8).eval()
    program = heir_program(heir, taken.terms).eval()
    for name, row in (("part_mean", 0), ("part_std", 1)):  # as calibration frames would give them
        values = [term[row] for term in taken.terms.values()]
        getattr(program, name).copy_(torch.tensor([*values, (0.0, 3.0)[row]]))
    leave_rest_unscaled(program)
    vectors, known = read(heir, pool, taken.terms)
    with torch.no_grad():
        score, anomaly_map, parts = program(pool.images, pool.valid)
        rest = heir.rest(vectors)[:, 0]
    assert program.parts[-1] == REST
    torch.testing.assert_close(parts[:, -1], rest, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(score, known + rest, rtol=1e-4, atol=1e-4)
    said = open_engine(reference, device="cpu").run(pool.images.numpy(), pool.valid.numpy())
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


def test_a_training_learns_the_rest_and_says_what_it_took_over(
    reference: Bundle, tmp_path: Path
) -> None:
    write_frames(tmp_path / "data")
    said: list[str] = []
    config = load_config("smoke", None, ["max_images=8", "student.views=32"])
    made = train_student(
        tmp_path / "data",
        tmp_path / "heir",
        reference.path,
        config,
        command="a test",
        say=said.append,
    )
    assert made is not None and open_engine(made, device="cpu").parity.passed
    assert list(made.parts) == ["lesion", "frame_distance", REST]
    assert made.manifest["training"]["backbones"] == {
        "student": f"frozen features of {reference.model_id}"
    }
    assert any("takes over the reference's lesion and frame_distance" in line for line in said)
    saved = torch.load(tmp_path / "heir.run" / "student.pt", weights_only=True)
    assert saved["step"] == config.student.rest_steps
    # on the frames that it learned from it follows the rest better than a constant would
    assert made.manifest["student"]["spearman"] > 0.9


def test_a_student_may_be_asked_to_learn_everything() -> None:
    assert StudentConfig().inherit
    assert not load_config("smoke", None, ["student.inherit=false"]).student.inherit
