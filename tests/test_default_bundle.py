"""The bundles in the package: whole, small, say what made them, and run here."""

from pathlib import Path

import pytest

from ccdstream.bundle import Bundle, load_bundle
from ccdstream.demo import write_sample
from ccdstream.engine.select import SelectedEngine, open_engine
from ccdstream.packaged import PACKAGED, Packaged
from ccdstream.recording import OutputFiles, RunOptions, run
from ccdstream.sample import SampleOptions

LARGEST_BYTES = 24_000_000
"""Of both together, so that a clone and a wheel stay quick."""


@pytest.fixture(scope="module", params=PACKAGED, ids=lambda packaged: packaged.name)
def bundle(request: pytest.FixtureRequest) -> Bundle:
    packaged: Packaged = request.param
    return load_bundle(packaged.path)


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> SelectedEngine:
    return open_engine(bundle, device="cpu")


def test_they_are_small_enough_for_a_clone() -> None:
    files = [file for packaged in PACKAGED for file in packaged.path.iterdir()]
    assert sum(file.stat().st_size for file in files) <= LARGEST_BYTES


def test_this_machine_gives_its_golden_scores(engine: SelectedEngine) -> None:
    assert engine.parity.passed, str(engine.parity)


def test_it_says_what_it_was_trained_on_and_by_which_code(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert "--preset quick" in manifest["command"]
    assert len(manifest["commit"]) >= 40 and "+" not in manifest["commit"], "uncommitted code"
    data = {entry["name"]: entry for entry in manifest["training"]["data"]}
    assert data["train"]["count"] == 695
    assert data["calibration"]["count"] == manifest["calibration"]["frames"] == 122
    assert all(len(entry["sha256"]) == 64 for entry in data.values())
    assert data["train"]["licences"] == [
        "HyperKvasir, CC BY 4.0",
        "Kvasir v1, research and education",
    ]
    assert any("Apache-2.0" in licence for licence in manifest["licences"])


def test_the_default_follows_the_reference_that_is_shipped_beside_it() -> None:
    default, reference = (load_bundle(packaged.path) for packaged in PACKAGED)
    assert default.manifest["student"]["of"] == reference.model_id
    for same in ("profile", "alert", "quality"):
        assert default.manifest[same] == reference.manifest[same]


def test_it_runs_from_a_sample_to_an_overlay(
    tmp_path: Path, bundle: Bundle, engine: SelectedEngine
) -> None:
    video = tmp_path / "s.mp4"
    write_sample(video, SampleOptions(seconds=1.0, size=(144, 180)))
    files = OutputFiles(tmp_path / "out", "s")
    result = run(video, files, bundle=bundle, engine=engine, options=RunOptions())
    assert result.frames == 25
    assert files.path("overlay.mp4").stat().st_size > 0
