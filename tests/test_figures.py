"""What a bundle says was measured of it is what was measured, of this program, and nothing else."""

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ccdstream import packaged
from ccdstream.bundle import PROGRAM, Bundle, load_bundle, record_figures
from ccdstream.errors import BundleError, OutputError
from tests.bundles import ToyEngine, toy_program, write_toy_bundle
from tests.commands import bright_between, ccdstream, everything_in, outcome, refusal
from tests.test_evaluate import Folder, filled
from trainer.evaluate import evaluate
from trainer.figures import Made, of_frames, of_videos
from trainer.manifest import code_commit

MADE = Made("ccdstream evaluate data --record", "c0ffee", "a processor", "fp32")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Labelled frames that no test changes."""
    return filled(tmp_path_factory.mktemp("figures") / "data")


@pytest.fixture(scope="module")
def document(data: Folder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The evaluation of the toy on them."""
    toy = write_toy_bundle(tmp_path_factory.mktemp("toy") / "toy")
    return evaluate(data.path, toy, ToyEngine(), resamples=50)


@pytest.fixture
def toy(tmp_path: Path) -> Bundle:
    return write_toy_bundle(tmp_path / "toy")


def files_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in everything_in(folder)}


def rows_of(entry: dict[str, Any], figure: str, of: str = "bundle") -> dict[str, dict[str, Any]]:
    return {r["set"]: r for r in entry["rows"] if (r["figure"], r["of"]) == (figure, of)}


# What is kept of an evaluation


def test_the_main_figures_are_those_of_the_document(document: dict[str, Any]) -> None:
    entry = of_frames(document, MADE)
    image = document["image"]["polyp"]
    pixel = document["pixel"]["sets"]["polyp"]["maps"]
    for figure, of, expected in (
        ("image AUROC", "bundle", image["all"]["auroc"]),
        ("image AUROC, with position box", "bundle", image["with_position_box"]["auroc"]),
        ("pixel AUROC", "bundle", pixel["bundle"]["auroc"]),
        ("pixel AUROC", "redness", pixel["redness"]["auroc"]),
        ("PRO", "closeness_to_centre", pixel["closeness_to_centre"]["pro"]),
        ("IoU", "bundle", pixel["bundle"]["iou"]),
    ):
        row = rows_of(entry, figure, of)["polyp"]
        assert row["n"] == expected["n"]
        for key in ("value", "low", "high"):
            assert row[key] == pytest.approx(expected[key], abs=5e-5)
    width = rows_of(entry, "image AUROC", "image_width")["polyp"]
    assert width["value"] == round(document["baselines"]["polyp"]["image_width"], 4)
    assert width["low"] is width["high"] is width["n"] is None
    rates = rows_of(entry, "alert rate")
    assert rates.keys() == {"normal", "polyp", "unclean"}
    assert rates["unclean"]["value"] == document["alerts"]["rates"]["unclean"]["value"]


def test_an_entry_says_what_was_measured_on_what_by_which_code(document: dict[str, Any]) -> None:
    entry = of_frames(document, MADE)
    assert entry["data"] == {
        "name": "data",
        "sha256": document["data"]["test_sha256"],
        "calibration_sha256": document["data"]["calibration_sha256"],
        "counts": document["counts"],
    }
    assert (entry["command"], entry["commit"], entry["machine"]) == (
        MADE.command,
        MADE.commit,
        MADE.machine,
    )
    assert entry["engine"] == {**document["engine"], "precision": "fp32"}
    assert entry["created"] == document["created"]
    assert entry["notes"][1:] == document["notes"]


def test_what_was_not_measured_has_no_row(document: dict[str, Any]) -> None:
    bare = json.loads(json.dumps(document))
    bare["image"]["polyp"] = {"all": None, "with_position_box": None}
    bare["baselines"]["polyp"] = bare["baselines_with_position_box"]["polyp"] = None
    for figures in bare["pixel"]["sets"]["polyp"]["maps"].values():
        figures["auroc"] = None
    figures = {row["figure"] for row in of_frames(bare, MADE)["rows"]}
    assert figures == {"PRO", "IoU", "alert rate"}


# Into the manifest


def test_recording_changes_the_figures_and_nothing_else(
    toy: Bundle, document: dict[str, Any]
) -> None:
    before = files_of(toy.path)
    manifest = toy.path / "manifest.json"
    manifest.chmod(0o640)
    entry = of_frames(document, MADE)
    recorded = record_figures(toy, entry)
    assert recorded.model_id == toy.model_id == load_bundle(toy.path).model_id
    assert recorded.manifest["figures"] == {entry["data"]["sha256"][:12]: entry}
    assert stat.S_IMODE(manifest.stat().st_mode) == 0o640
    after = files_of(toy.path)
    written = json.loads(after.pop("manifest.json"))
    old = json.loads(before.pop("manifest.json"))
    assert after == before
    assert list(written) == list(old)
    assert written | {"figures": {}} == old


def test_a_figure_of_the_same_data_is_replaced_and_of_other_data_kept(
    toy: Bundle, document: dict[str, Any]
) -> None:
    first, other = of_frames(document, MADE), of_frames(document, MADE)
    other["data"] = {"name": "elsewhere", "sha256": "ab" * 32, "counts": {}}
    record_figures(toy, first)
    record_figures(toy, other)
    again = {**first, "command": "later", "data": {**first["data"], "name": "moved"}}
    figures = record_figures(toy, again).manifest["figures"]
    assert figures == {first["data"]["sha256"][:12]: again, "ab" * 6: other}


def test_figures_of_another_program_are_refused(toy: Bundle, document: dict[str, Any]) -> None:
    entry = of_frames(document, MADE)
    with pytest.raises(ValueError, match="of another program"):
        record_figures(toy, {**entry, "program_sha256": "0" * 64})
    write_toy_bundle(toy.path, program=toy_program(gain=2), overwrite=True)
    with pytest.raises(BundleError, match=f"{toy.model_id} was measured. Measure it again"):
        record_figures(toy, entry)
    assert load_bundle(toy.path).manifest["figures"] == {}


def test_a_manifest_that_cannot_be_replaced_stays_as_it_was(
    toy: Bundle, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_of(toy.path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="No space left on device"):
        record_figures(toy, of_frames(document, MADE))
    assert files_of(toy.path) == before


# A manifest whose figures are damaged


def _row(**changes: Any) -> "Change":
    return lambda entry: entry["rows"][0].update(changes)


Change = Callable[[dict[str, Any]], object]

DAMAGES: dict[str, tuple[Change, str]] = {
    "kind": (lambda e: e.update(kind=1), "kind must be a string, got 1"),
    "machine": (lambda e: e.pop("machine"), "machine must be a string, got None"),
    "program": (lambda e: e.update(program_sha256="0" * 64), "is of another program"),
    "data": (lambda e: e["data"].pop("name"), "data must be an object with a name"),
    "hash": (lambda e: e["data"].update(sha256="x"), "data.sha256 must be 64 hex digits, got 'x'"),
    "counts": (lambda e: e["data"].update(counts={"polyp": -1}), "data.counts must be counts"),
    "engine": (lambda e: e["engine"].pop("precision"), "engine must give name, version, device"),
    "notes": (lambda e: e.update(notes="none"), "notes must be a list of strings, got 'none'"),
    "rows": (lambda e: e.update(rows={}), "rows must be a list, got {}"),
    "key": (lambda e: e["data"].update(sha256="1" * 64), f"what was measured on {'1' * 64}"),
    "row": (lambda e: e["rows"].append("lost"), "row 'lost' is damaged"),
    "figure": (_row(figure=1), "row {'figure': 1"),
    "no value": (_row(value=None), "is damaged"),
    "no number": (_row(value=True), "is damaged"),
    "interval upside down": (_row(low=0.9, high=0.1), "is damaged"),
    "half an interval": (_row(low=0.1, high=None), "is damaged"),
    "n": (_row(n=-1), "is damaged"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bundle_whose_figures_are_damaged_is_refused(
    toy: Bundle, document: dict[str, Any], damage: str
) -> None:
    change, problem = DAMAGES[damage]
    entry = of_frames(document, MADE)
    record_figures(toy, entry)
    file = toy.path / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    change(manifest["figures"][entry["data"]["sha256"][:12]])
    file.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(BundleError) as caught:
        load_bundle(toy.path)
    message = str(caught.value)
    assert problem in message and "\n" not in message
    assert message.startswith(f"{file}: figures ")


@pytest.mark.parametrize("figures", [{"auroc": 0.9}, {"x": [1]}], ids=["number", "list"])
def test_a_number_without_its_origin_is_no_figure(
    tmp_path: Path, figures: dict[str, object]
) -> None:
    with pytest.raises(ValueError, match="entry must be an object"):
        write_toy_bundle(tmp_path / "toy", figures=figures)


# The command


def test_evaluate_records_what_it_measured_and_the_bundle_still_verifies(
    toy: Bundle, data: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(data.path.parent)
    on_cpu = ["--device", "cpu"]
    measured = ccdstream("evaluate", "data", "--model", toy.path, *on_cpu, "--record", "--json")
    assert measured.exit_code == 0, measured.stderr
    assert f"recorded in {toy.path}; see ccdstream model card {toy.path}" in measured.stderr
    document = json.loads(measured.stdout)
    bundle = load_bundle(toy.path)
    (entry,) = bundle.manifest["figures"].values()
    assert entry["command"].startswith("ccdstream")
    assert entry["commit"] == code_commit()
    assert "cores" in entry["machine"]
    made = Made(entry["command"], entry["commit"], entry["machine"], "fp32")
    assert entry == of_frames(document, made)

    assert ccdstream("model", "verify", toy.path, *on_cpu).stdout.startswith(toy.model_id)
    auroc = rows_of(entry, "image AUROC")["polyp"]
    told = f"image AUROC {auroc['value']:.3f} ({auroc['low']:.3f}-{auroc['high']:.3f})"
    (line,) = [
        line
        for line in ccdstream("model", "show", toy.path).stdout.splitlines()
        if line.startswith("figures ")
    ]
    assert told in line and "alert rate" in line


def test_figures_are_recorded_where_nobody_reads_stdout_and_the_exit_is_1(
    toy: Bundle, data: Folder
) -> None:
    arguments = ("evaluate", data.path, "--model", toy.path, "--device", "cpu", "--record")
    status, _, said = outcome(*arguments, cwd=data.path.parent, stdout="gone")
    assert status == 1 and b"cannot write to the standard output" in said
    assert len(load_bundle(toy.path).manifest["figures"]) == 1


def test_evaluate_records_videos_under_the_hash_of_videos_and_truths(
    toy: Bundle, tmp_path: Path
) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    video = bright_between(clips / "case.mp4", 10, 49, 60)
    frames = [[{"bbox": [0, 0, 128, 96]}] if 10 <= k <= 49 else [] for k in range(60)]
    truth = clips / "case_boxes.json"
    truth.write_text(json.dumps({"width": 128, "height": 96, "frames": frames}))
    options = ["--model", toy.path, "--device", "cpu", "--record", "--json"]
    document = json.loads(ccdstream("evaluate", video, *options).stdout)
    (entry,) = load_bundle(toy.path).manifest["figures"].values()
    assert entry["kind"] == "videos" and entry["data"]["name"] == "case.mp4"
    assert entry["data"]["counts"] == {"videos": 1, "frames": 60, "lesion_frames": 40, "lesions": 1}
    sensitivity = document["frames"]["counted"]["at_enter"]["sensitivity"]["value"]
    assert rows_of(entry, "frame sensitivity")["videos"]["value"] == round(sensitivity, 4)
    assert rows_of(entry, "lesions pointed at")["videos"]["value"] == 1

    hashes = [of_videos([video], document, MADE)["data"]["sha256"]]
    assert hashes == [entry["data"]["sha256"]]
    truth.write_text(truth.read_text() + "\n")
    assert of_videos([video], document, MADE)["data"]["sha256"] not in hashes


def test_a_bundle_that_cannot_be_written_is_told_before_the_work(
    data: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a site-packages that belongs to somebody else; permissions do not bind root."""
    write_toy_bundle(tmp_path / "models" / "default")
    monkeypatch.setattr(packaged, "models_folder", lambda: tmp_path / "models")

    def read_only(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    result = ccdstream("evaluate", data.path, "-o", tmp_path / "out", "--record")
    assert refusal(result) == (
        f"cannot record figures in {tmp_path}/models/default/manifest.json: Read-only file system. "
        "Copy the bundle to a folder that can be written, and name that with --model."
    )
    assert everything_in(tmp_path / "out") == set()
    assert load_bundle().sha256(PROGRAM)
