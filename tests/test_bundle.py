"""A bundle is what its manifest says, or it is refused with one line that says what to do."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccdstream import bundle as bundle_module
from ccdstream import packaged
from ccdstream.bundle import Golden, load_bundle
from ccdstream.card import describe
from ccdstream.errors import BundleError, OutputError
from tests.bundles import toy_golden, toy_manifest, toy_program, write_toy_bundle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole toy bundle, to be damaged."""
    return write_toy_bundle(tmp_path / "toy").path


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest of a bundle in place."""
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    change(manifest)
    file.write_text(json.dumps(manifest), encoding="utf-8")


def replace_file(folder: Path, name: str, data: bytes) -> None:
    """Put other content under a name, with the hash and size to match: a forged bundle."""
    (folder / name).write_bytes(data)
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    edit(folder, lambda manifest: manifest["files"].update({name: entry}))


def refusal(path: Path | None) -> str:
    """The message with which a bundle is refused; it is one line."""
    with pytest.raises(BundleError) as caught:
        load_bundle(path)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


# What is written is what is read


def test_a_written_bundle_reads_back_as_it_was_given(tmp_path: Path) -> None:
    golden = toy_golden()
    write_toy_bundle(tmp_path / "toy", golden=golden, note="kept")

    bundle = load_bundle(tmp_path / "toy")

    assert bundle.program.read_bytes() == toy_program()
    assert bundle.name == "toy"
    assert bundle.map_size == (64, 64)
    assert bundle.parts == ("brightness", "valid")
    assert bundle.manifest["note"] == "kept"
    expected = toy_manifest()
    for section in ("profile", "calibration", "quality", "alert", "parity"):
        assert getattr(bundle, section) == expected[section]
    for name in ("frames", "valid", "score", "anomaly_map", "parts"):
        array = getattr(bundle.golden, name)
        np.testing.assert_array_equal(array, getattr(golden, name))
        assert array.dtype == getattr(golden, name).dtype


def test_the_manifest_opens_with_what_it_is(folder: Path) -> None:
    keys = list(json.loads((folder / "manifest.json").read_text(encoding="utf-8")))
    assert keys[:3] == ["format", "format_version", "name"]


def test_nothing_but_the_bundle_is_left_beside_it(folder: Path) -> None:
    assert [path.name for path in folder.parent.iterdir()] == ["toy"]
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json",
        "program.onnx",
        "golden.npz",
    }


def test_further_files_are_listed_and_found(tmp_path: Path) -> None:
    bundle = write_toy_bundle(tmp_path / "toy", extra_files={"program.pt2": b"graph"})
    path = bundle.file("program.pt2")
    assert path is not None and path.read_bytes() == b"graph"
    assert bundle.sha256("program.pt2") == hashlib.sha256(b"graph").hexdigest()
    assert bundle.file("program.plan") is None


def test_the_model_id_is_the_name_and_the_hash_of_the_hashes(folder: Path) -> None:
    table = "".join(
        f"{name} {hashlib.sha256((folder / name).read_bytes()).hexdigest()}\n"
        for name in ("golden.npz", "program.onnx")
    )
    expected = hashlib.sha256(table.encode()).hexdigest()[:12]
    assert load_bundle(folder).model_id == f"toy-{expected}"


def test_the_model_id_is_that_of_the_content_and_of_nothing_else(tmp_path: Path) -> None:
    first = write_toy_bundle(tmp_path / "a", commit="1" * 40)
    same = write_toy_bundle(tmp_path / "b", commit="2" * 40)
    other = write_toy_bundle(tmp_path / "c", program=toy_program(gain=1.001))
    assert first.model_id == same.model_id
    assert first.model_id != other.model_id


# Loading runs nothing


def test_loading_imports_no_engine_and_no_network_library(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ccdstream.bundle import load_bundle; "
        f"load_bundle(Path({str(folder)!r})).golden; "
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'openvino', 'cv2', 'av'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Trap:
    """Leaves a file behind where something unpickles it."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.canary,))


def test_a_pickle_among_the_golden_frames_is_refused_and_not_run(
    folder: Path, tmp_path: Path
) -> None:
    canary = tmp_path / "ran"
    forged = tmp_path / "forged.npz"
    np.savez(forged, frames=np.array([Trap(canary)], dtype=object))
    replace_file(folder, "golden.npz", forged.read_bytes())

    bundle = load_bundle(folder)
    with pytest.raises(BundleError, match=r"golden\.npz does not hold golden frames"):
        _ = bundle.golden
    assert not canary.exists()


@pytest.mark.parametrize(
    "name",
    ["../stolen", "/etc/passwd", "a/b", "a\\b", "..", ".", "", ".hidden", "C:x", "a\nb", "a\0b"],
    ids=repr,
)
def test_a_file_name_that_could_lead_out_of_the_folder_is_refused(folder: Path, name: str) -> None:
    entry = {"sha256": "0" * 64, "bytes": 1}
    edit(folder, lambda manifest: manifest["files"].update({name: entry}))
    assert "is not a plain file name" in refusal(folder)


# Every file is checked


@pytest.mark.parametrize("name", ["program.onnx", "golden.npz"])
def test_one_flipped_bit_is_found(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    assert f"{name} is damaged" in refusal(folder)


@pytest.mark.parametrize("name", ["program.onnx", "golden.npz"])
def test_a_cut_file_is_found_and_both_sizes_are_told(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:-1])
    assert (f"{name} has {len(whole) - 1} bytes and its manifest says {len(whole)}") in refusal(
        folder
    )


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "golden.npz").unlink()
    assert "golden.npz is missing" in refusal(folder)


def test_a_folder_in_place_of_a_file_is_refused(folder: Path) -> None:
    (folder / "golden.npz").unlink()
    (folder / "golden.npz").mkdir()
    assert "golden.npz is not a file" in refusal(folder)


def test_a_file_that_the_manifest_does_not_name_is_refused(folder: Path) -> None:
    (folder / "helper.py").write_text("import os")
    assert "helper.py" in refusal(folder)


def test_a_hidden_file_of_the_desktop_does_no_harm(folder: Path) -> None:
    (folder / ".DS_Store").write_bytes(b"\0")
    assert load_bundle(folder).name == "toy"


@pytest.mark.parametrize("data", [b"", b"PK", b"PK\3\4" + bytes(60)], ids=repr)
def test_golden_frames_that_are_no_archive_are_refused(folder: Path, data: bytes) -> None:
    replace_file(folder, "golden.npz", data)
    with pytest.raises(BundleError, match="does not hold golden frames") as caught:
        _ = load_bundle(folder).golden
    assert "\n" not in str(caught.value)


def test_golden_maps_of_another_size_than_the_manifest_are_refused(folder: Path) -> None:
    edit(folder, lambda manifest: manifest.update(map_size=[32, 32]))
    with pytest.raises(BundleError, match=r"golden maps are \[64, 64\].*\[32, 32\]"):
        _ = load_bundle(folder).golden


# The manifest is checked


def test_a_newer_bundle_asks_for_an_upgrade(folder: Path) -> None:
    newer = {"format": "ccdstream-bundle", "format_version": 2, "nothing": "else is known of it"}
    (folder / "manifest.json").write_text(json.dumps(newer))
    assert refusal(folder) == (
        f"{folder} is a version 2 bundle and this ccdstream ({bundle_module.__version__}) reads "
        "version 1. Upgrade ccdstream."
    )


def test_an_older_bundle_asks_for_an_export(folder: Path) -> None:
    edit(folder, lambda manifest: manifest.update(format_version=0))
    assert "Export it again" in refusal(folder)


@pytest.mark.parametrize("version", [True, "1", 1.0, None, -1], ids=repr)
def test_a_format_version_must_be_a_whole_number(folder: Path, version: object) -> None:
    edit(folder, lambda manifest: manifest.update(format_version=version))
    assert "format_version must be a whole number" in refusal(folder)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff\xfe", b'{"format": NaN}', b"[" * 100_000, b"1" * 10_000],
    ids=["empty", "cut", "not UTF-8", "NaN", "too deep", "too long a number"],
)
def test_a_manifest_that_is_not_json_is_refused(folder: Path, text: bytes) -> None:
    (folder / "manifest.json").write_bytes(text)
    assert "is not valid JSON" in refusal(folder)


@pytest.mark.parametrize("text", [b"[]", b"null", b"{}", b'{"format": "other"}'])
def test_json_that_is_something_else_is_refused(folder: Path, text: bytes) -> None:
    (folder / "manifest.json").write_bytes(text)
    assert "is not a bundle" in refusal(folder)


@pytest.mark.parametrize("key", [*toy_manifest(), "version", "files", "notice"])
def test_each_missing_key_is_named(folder: Path, key: str) -> None:
    edit(folder, lambda manifest: manifest.pop(key))
    assert f"manifest lacks {key}." in refusal(folder)


@pytest.mark.parametrize("value", [None, 7, True], ids=repr)
@pytest.mark.parametrize("key", [*toy_manifest(), "version", "files", "notice"])
def test_each_value_of_a_wrong_type_is_named(folder: Path, key: str, value: object) -> None:
    edit(folder, lambda manifest: manifest.update({key: value}))
    assert f"{key} must be" in refusal(folder)


WRONG = {
    "calibration.frames": lambda m: m["calibration"].update(frames="many"),
    "calibration.score": lambda m: m["calibration"].pop("score"),
    "calibration.map.raw": lambda m: m["calibration"]["map"].update(raw=[0, "1"]),
    "calibration.score.fraction": lambda m: m["calibration"]["score"].update(fraction=0.5),
    "calibration.map.tail_scale": lambda m: m["calibration"]["map"].pop("tail_scale"),
    "alert.leave": lambda m: m["alert"].update(leave=None),
    "alert.enter": lambda m: m["alert"].update(enter=10**400),
    "parity.score_abs": lambda m: m["parity"].update(score_abs=0),
    "parity.map_abs": lambda m: m["parity"].pop("map_abs"),
    "files must give sha256 and bytes of program.onnx": lambda m: m["files"].update(
        {"program.onnx": {"sha256": "short", "bytes": 1}}
    ),
    "files lacks program.onnx": lambda m: m["files"].pop("program.onnx"),
    "input_size": lambda m: m.update(input_size=[224, 224]),
    "map_size": lambda m: m.update(map_size=[64, 0]),
    "parts": lambda m: m.update(parts=["a", "a"]),
    "name": lambda m: m.update(name="two\nlines"),
}


@pytest.mark.parametrize("what", WRONG)
def test_each_wrong_value_inside_is_named(folder: Path, what: str) -> None:
    edit(folder, WRONG[what])
    assert what in refusal(folder)


# Where there is none


def test_a_missing_bundle_is_told_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "none"
    assert refusal(path) == (f"no bundle at {path}. Check the path, or train one: ccdstream train.")


def test_a_path_that_no_system_takes_is_told_as_such(tmp_path: Path) -> None:
    assert "cannot read" in refusal(tmp_path / ("n" * 300))


def test_a_file_is_not_a_bundle(folder: Path) -> None:
    assert "expected a folder that holds manifest.json" in refusal(folder / "program.onnx")


def test_an_empty_folder_is_not_a_bundle(tmp_path: Path) -> None:
    assert "expected a folder that holds manifest.json" in refusal(tmp_path)


def test_a_missing_default_bundle_says_where_it_should_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packaged, "models_folder", lambda: tmp_path)
    assert str(tmp_path / "default") in refusal(None)


# Writing


def test_an_existing_bundle_is_kept_unless_overwriting_is_allowed(folder: Path) -> None:
    before = load_bundle(folder).model_id
    with pytest.raises(OutputError, match=r"is there already\..*pass --overwrite"):
        write_toy_bundle(folder, program=toy_program(gain=2))
    assert load_bundle(folder).model_id == before

    write_toy_bundle(folder, program=toy_program(gain=2), overwrite=True)
    assert load_bundle(folder).model_id != before
    assert [path.name for path in folder.parent.iterdir()] == ["toy"]


def test_overwriting_replaces_bundles_and_nothing_else(tmp_path: Path) -> None:
    thesis = tmp_path / "work" / "thesis.txt"
    thesis.parent.mkdir()
    thesis.write_text("years of it")
    with pytest.raises(OutputError, match="is not a bundle, so it is not replaced"):
        write_toy_bundle(thesis.parent, overwrite=True)
    assert thesis.read_text() == "years of it"


def test_a_write_that_fails_leaves_the_old_bundle_and_no_rest(folder: Path) -> None:
    before = load_bundle(folder).model_id
    too_long = "n" * 300  # no file system takes it, so writing fails half-way
    with pytest.raises(OutputError, match="cannot write the bundle"):
        write_toy_bundle(folder, extra_files={too_long: b""}, overwrite=True)
    assert load_bundle(folder).model_id == before
    assert [path.name for path in folder.parent.iterdir()] == ["toy"]


def test_a_file_in_the_way_of_the_parent_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write the bundle"):
        write_toy_bundle(tmp_path / "file" / "toy")


def test_a_name_that_no_system_takes_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write the bundle"):
        write_toy_bundle(tmp_path / ("n" * 300))


def test_a_wrong_manifest_is_the_writers_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the bundle's parts must be different names"):
        write_toy_bundle(tmp_path / "toy", parts=["a", "a"])
    with pytest.raises(ValueError, match="golden maps are"):
        write_toy_bundle(tmp_path / "toy", map_size=[8, 8])
    with pytest.raises(ValueError, match="JSON"):
        write_toy_bundle(tmp_path / "toy", figures={"auroc": float("nan")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"frames": np.zeros((3, 256, 256, 3), np.uint8)},
        {"valid": np.zeros((3, 256, 256), np.uint8)},
        {"score": np.zeros(3)},
        {"score": np.array([0, np.nan, 0], np.float32)},
        {"parts": np.zeros((2, 2), np.float32)},
        {"anomaly_map": np.zeros((3, 64), np.float32)},
    ],
    ids=["NHWC", "valid not bool", "double", "NaN", "a row short", "flat map"],
)
def test_golden_arrays_of_another_form_are_refused(change: dict[str, np.ndarray]) -> None:
    golden = toy_golden()
    arrays = {
        name: getattr(golden, name) for name in ("frames", "valid", "score", "anomaly_map", "parts")
    }
    with pytest.raises(ValueError, match="golden"):
        Golden(**{**arrays, **change})


# For people


def test_a_description_tells_where_the_model_comes_from_a_fact_a_line(tmp_path: Path) -> None:
    bundle = write_toy_bundle(
        tmp_path / "toy",
        commit="c0ffee",
        command="ccdstream train data",
        training={
            "config": {"seed": 3, "local": {"stride": 16}},
            "data": [{"name": "train", "count": 7, "licence": "CC BY 4.0"}, {"name": "held out"}],
        },
        licences=["Apache-2.0", "CC BY 4.0"],
    )
    lines = [line.strip() for line in describe(bundle).splitlines()]
    assert lines[0].split() == ["model", bundle.model_id]
    for fact in (
        "commit           c0ffee",
        "command          ccdstream train data",
        "parts            brightness, valid",
        "calibration      100 normal frames",
        "data             name train, count 7, licence CC BY 4.0",
        "name held out",
        "training config  seed 3, local stride 16",
        "figures          not measured",
        f"card             ccdstream model card {bundle.path}",
        "licence          Apache-2.0",
        "CC BY 4.0",
        f"file             golden.npz, {(bundle.path / 'golden.npz').stat().st_size} bytes",
        f"notice           {bundle_module.NOTICE}",
    ):
        assert fact in lines


@pytest.mark.parametrize("data", [None, "lost", [1], []], ids=repr)
def test_any_bundle_that_loads_can_be_described(folder: Path, data: object) -> None:
    edit(folder, lambda manifest: manifest.update(training={"data": data}))
    assert describe(load_bundle(folder))


def test_a_description_does_not_steer_the_terminal(folder: Path) -> None:
    edit(folder, lambda manifest: manifest.update(command="\x1b[2J\nmodel  forged"))
    text = describe(load_bundle(folder))
    assert "command          [2J model forged" in text
    assert "\x1b" not in text
