"""`ccdstream run --also`: further forms of the results, beside the others or not at all."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ccdstream.bundle import Bundle
from ccdstream.engine.select import SelectedEngine
from ccdstream.errors import OutputError
from tests.commands import (
    EARLIER,
    analysed,
    bright_between,
    ccdstream,
    everything_in,
    refusal,
    results_of,
    rows_of,
)
from tests.disks import small_disk

pq = pytest.importorskip("pyarrow.parquet")

BOTH: dict[str, Any] = {"video": "none", "also": frozenset(("parquet", "coco"))}
FORMS = {"case.scores.parquet", "case.coco.json"}


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark, then bright: an alert."""
    return bright_between(tmp_path_factory.mktemp("video") / "case.mp4", 10, 69, 80)


@pytest.fixture
def copy(recording: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(recording, tmp_path))


def command(recording: Path, bundle: Bundle, out: Path, *more: object) -> Iterator[object]:
    yield from ("run", recording, "--model", bundle.path, "--video", "none", "-o", out, *more)


def test_a_run_leaves_the_forms_that_are_asked_for_and_says_so(copy: Path, bundle: Bundle) -> None:
    out = copy.parent / "out"
    told = ccdstream(*command(copy, bundle, out, "--also", "parquet", "--also", "coco"))
    assert told.exit_code == 0, told.stderr
    assert everything_in(out) == results_of("case", video=False) | FORMS
    assert all(name in told.stderr for name in FORMS)
    record = json.loads((out / "case.run.json").read_text())
    assert record["options"]["also"] == ["coco", "parquet"]
    assert set(record["outputs"]) >= FORMS
    assert record["output_bytes"]["case.coco.json"] == (out / "case.coco.json").stat().st_size
    assert all(name in (out / "case.report.html").read_text() for name in FORMS)


def test_the_table_has_a_row_for_every_frame_of_the_csv(
    recording: Path, tmp_path: Path, bundle: Bundle, engine: SelectedEngine
) -> None:
    analysed(recording, tmp_path, bundle, engine, **BOTH)
    rows = rows_of(tmp_path / "case.scores.csv")
    table = pq.read_table(tmp_path / "case.scores.parquet")
    assert table["pts"].to_pylist() == [int(row["pts"]) for row in rows]
    assert table["state"].to_pylist() == [row["state"] for row in rows]
    smoothed = [float(row["smoothed"]) for row in rows]
    assert table["smoothed"].to_pylist() == pytest.approx(smoothed, abs=6e-7)
    assert "ALERT" in table["state"].to_pylist()
    record = json.loads((tmp_path / "case.run.json").read_text())
    metadata = table.schema.metadata
    assert metadata[b"model"].decode() == record["model"]["id"] == bundle.model_id
    assert metadata[b"time_base"].decode() == record["input"]["time_base"]
    assert metadata[b"notice"].decode() == record["notice"]


def test_predictions_are_of_informative_frames_with_the_score_that_opens_alerts(
    recording: Path, tmp_path: Path, bundle: Bundle, engine: SelectedEngine
) -> None:
    (alert,) = analysed(recording, tmp_path, bundle, engine, **BOTH).alerts
    rows = [row for row in rows_of(tmp_path / "case.scores.csv") if not row["quality"]]
    found = json.loads((tmp_path / "case.coco.json").read_text())
    assert 0 < len(found) == len(rows)
    for each, row in zip(found, rows, strict=True):
        assert each["image_id"] == f"case_{row['frame']}"
        assert each["score"] == pytest.approx(float(row["smoothed"]), abs=5e-7)
        if row["pts"] == str(alert.peak_pts):
            assert each["bbox"] == list(alert.box or ())
    assert found[0]["bbox"] == [0, 0, 128, 96]  # dark: nothing stands out
    assert len({tuple(each["bbox"]) for each in found}) == 2


def test_a_rerun_with_other_forms_does_the_run_again(copy: Path, bundle: Bundle) -> None:
    out = copy.parent / "out"
    batch = [copy, Path(shutil.copy(copy, copy.parent / "other.mp4"))]

    def statuses(*also: str) -> list[str]:
        named = [word for form in also for word in ("--also", form)]
        arguments = ("run", *batch, "--model", bundle.path, "--video", "none", "-o", out, *named)
        assert ccdstream(*arguments).exit_code == 0
        inputs = json.loads((out / "batch.json").read_text())["inputs"]
        return [each["status"] for each in inputs]

    assert statuses() == ["done", "done"]
    assert statuses("coco") == ["done", "done"]
    assert statuses("coco") == ["already_done", "already_done"]
    assert (out / "other.coco.json").exists()
    refused = ccdstream(*command(copy, bundle, out, "--also", "parquet"))
    assert "is there already" in refusal(refused)


def test_a_form_of_an_earlier_run_is_named(
    recording: Path, tmp_path: Path, bundle: Bundle, engine: SelectedEngine
) -> None:
    analysed(recording, tmp_path, bundle, engine, **BOTH)
    again = analysed(recording, tmp_path, bundle, engine, video="none", overwrite=True)
    assert again.warnings == [f"{name} {EARLIER}" for name in sorted(FORMS, reverse=True)]


def test_without_pyarrow_nothing_is_begun(
    copy: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    out = copy.parent / "out"
    told = ccdstream(*command(copy, bundle, out, "--also", "parquet"))
    assert "pip install 'ccdstream[parquet]'" in refusal(told)
    assert not out.exists()


def test_predictions_of_frames_whose_number_is_not_known_are_refused(
    copy: Path, bundle: Bundle
) -> None:
    out = copy.parent / "out"
    told = ccdstream(*command(copy, bundle, out, "--also", "coco", "--from", "0.5"))
    assert told.exit_code == 2 and "--also coco names frames by their number" in told.stderr
    assert not out.exists()


def test_a_full_disk_leaves_no_file_of_the_run(
    recording: Path, tmp_path: Path, bundle: Bundle, engine: SelectedEngine
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with small_disk(out, 4):
        with pytest.raises(OutputError, match="No space left on device"):
            analysed(recording, out, bundle, engine, **BOTH)
        assert everything_in(out) == set()
