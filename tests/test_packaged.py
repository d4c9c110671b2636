"""A word after --model means one bundle, and which one is said where it could be two."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from ccdstream import packaged
from ccdstream.bundle import load_bundle
from ccdstream.errors import BundleError
from ccdstream.packaged import PACKAGED, find_model
from tests.bundles import write_toy_bundle
from tests.commands import ccdstream, refusal

ROOT = Path(__file__).parent.parent
LARGEST_BYTES = 24_000_000
"""Of both bundles together: what a clone may cost."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, beside a package that ships both bundles."""
    for name in ("default", "reference"):
        write_toy_bundle(tmp_path / "models" / name, name=f"packaged-{name}")
    monkeypatch.setattr(packaged, "models_folder", lambda: tmp_path / "models")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def shown(*arguments: str) -> str:
    """The name of the bundle that `model show` shows."""
    result = ccdstream("model", "show", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return str(json.loads(result.stdout)["name"])


@pytest.mark.usefixtures("here")
def test_a_name_of_the_package_is_that_bundle_without_a_word() -> None:
    assert [shown(), shown("default"), shown("reference")] == [
        "packaged-default",
        "packaged-default",
        "packaged-reference",
    ]
    assert find_model("reference").note == ""
    assert load_bundle().name == "packaged-default"


def test_a_bundle_of_that_name_in_the_working_directory_is_not_passed_over(here: Path) -> None:
    write_toy_bundle(here / "reference", name="mine")
    assert shown("reference") == "mine"
    result = ccdstream("model", "verify", "reference", "--engine", "openvino", "--device", "cpu")
    assert result.stdout.startswith("mine-")
    assert f"model: reference is the folder {here / 'reference'}, not the package's" in (
        result.stderr
    )
    assert ccdstream("model", "show").stderr == ""


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_has_that_name_and_is_no_bundle_is_said_and_passed_over(here: Path, kind: str) -> None:
    if kind == "folder":
        (here / "reference").mkdir()
    else:
        (here / "reference").write_text("notes")
    found = find_model("reference")
    assert found.path == packaged.models_folder() / "reference"
    assert found.note == "reference is the package's bundle; what is called so here is none"


def test_a_path_is_never_a_name(here: Path) -> None:
    assert find_model(os.path.join(".", "reference")).path == Path("reference")
    message = refusal(ccdstream("model", "show", os.path.join(".", "reference")))
    assert message == "no bundle at reference. Check the path, or train one: ccdstream train."


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("command", [["model", "show"], ["model", "card"], ["model", "verify"]])
def test_an_unknown_name_is_told_the_known_ones(command: list[str]) -> None:
    message = refusal(ccdstream(*command, "refrence"))
    assert message == (
        "no bundle at refrence. Name a folder, or a bundle of the package: default, reference; or "
        "train one: ccdstream train."
    )


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("command", ["run", "score", "evaluate", "compile", "demo"])
def test_every_command_takes_a_name(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each resolves its model by `find_model`, and before anything is written."""
    monkeypatch.setattr("ccdstream.engine.gpu.find_gpus", lambda: type("G", (), {"problem": ""}))
    Path("a.png").write_bytes(b"")
    arguments = {"run": ["a.mp4"], "score": ["a.png", "-o", "s.csv"], "evaluate": ["."]}
    message = refusal(ccdstream(command, *arguments.get(command, []), "--model", "refrence"))
    assert "no bundle at refrence" in message
    assert os.listdir() == ["a.png"]


def test_a_bundle_that_is_not_shipped_is_told_with_what_there_is(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packaged, "models_folder", lambda: here)
    with pytest.raises(BundleError, match=r"the default model is missing.*Install ccdstream again"):
        find_model(None)
    write_toy_bundle(here / "default")
    monkeypatch.chdir(here.parent)
    assert refusal(ccdstream("model", "show", "reference")) == (
        f"the reference model is missing: expected it at {here / 'reference'}. "
        "Name default, or a bundle's folder, instead."
    )
    assert "of the package: default, reference (missing);" in refusal(
        ccdstream("model", "show", "big")
    )


def test_the_list_tells_what_is_there_what_is_missing_and_what_is_damaged(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = packaged.models_folder()
    lines = ccdstream("model", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["name", "default", "reference"]
    whole = load_bundle(models / "default")
    size = sum(path.stat().st_size for path in whole.path.iterdir() if path.suffix != ".json")
    assert lines[1].endswith(whole.model_id)
    first, second = map(json.loads, ccdstream("model", "list", "--json").stdout.splitlines())
    assert first["bytes"] == size and first["problem"] == "" and first["student"] is False
    assert second["id"].startswith("packaged-reference-")

    write_toy_bundle(models / "default", overwrite=True, student={"teacher": "packaged-reference"})
    (models / "reference" / "program.onnx").unlink()
    lines = ccdstream("model", "list").stdout.splitlines()
    assert lines[1].endswith(", a student")
    assert lines[2].endswith("program.onnx is missing. Copy or export the bundle again.")

    monkeypatch.setattr(packaged, "models_folder", lambda: here)
    lines = ccdstream("model", "list").stdout.splitlines()
    assert all(line.endswith("not in this installation") for line in lines[1:])


# What is in the package


def test_both_bundles_together_are_small_enough_for_a_clone() -> None:
    folders = [bundle.path for bundle in PACKAGED if bundle.shipped]
    assert PACKAGED[0].path in folders
    sizes = [file.stat().st_size for folder in folders for file in folder.rglob("*")]
    assert sum(sizes) <= LARGEST_BYTES
    named = {bundle.name for bundle in PACKAGED}
    extra = {path.name for path in packaged.models_folder().iterdir()} - named
    assert not extra, "a bundle that no name leads to"


def test_wheel_and_sdist_carry_every_file_of_both_bundles_and_of_the_page(tmp_path: Path) -> None:
    """Built from a tree with this repository's pyproject.toml and .gitignore, and small files."""
    pytest.importorskip("hatchling")
    tree = tmp_path / "tree"
    wanted = {
        f"ccdstream/models/{bundle.name}/{file}"
        for bundle in PACKAGED
        for file in ("manifest.json", "program.onnx", "golden.npz", "program.pt2")
    }
    page = ROOT / "ccdstream" / "live" / "page"
    wanted |= {f"ccdstream/live/page/{path.name}" for path in page.iterdir()}
    assert "ccdstream/live/page/index.html" in wanted
    report = ROOT / "ccdstream" / "report"
    kept = [*report.glob("page.*s*"), *report.glob("schemas/*.json")]
    wanted |= {str(path.relative_to(ROOT)) for path in kept}
    assert {"ccdstream/report/page.css", "ccdstream/report/page.js"} <= wanted
    assert "ccdstream/report/schemas/run-1.json" in wanted
    for file in (*wanted, "trainer/__init__.py", "LICENSE", "NOTICE"):
        (tree / file).parent.mkdir(parents=True, exist_ok=True)
        (tree / file).write_text(file)
    for file in ("pyproject.toml", ".gitignore", "README.md", "ccdstream/__init__.py"):
        (tree / file).write_bytes((ROOT / file).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(tmp_path / "dist")],
        cwd=tree,
        check=True,
        capture_output=True,
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        assert wanted <= set(archive.namelist())
    with tarfile.open(sdist) as archive:
        assert wanted <= {name.partition("/")[2] for name in archive.getnames()}
