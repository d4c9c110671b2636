"""The commands of the command line, which scripts rely on: their help, and the short ones."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from ccdstream import NOTICE, __version__, cli
from ccdstream.cli import app, model_app
from ccdstream.engine.gpu import find_gpus
from ccdstream.engine.select import ENGINE_NAMES
from tests.bundles import write_toy_bundle
from tests.commands import (
    ccdstream,
    everything_in,
    refusal,
    start,
)

COMMANDS = sorted(c.name or c.callback.__name__ for c in app.registered_commands if c.callback)
MODEL_COMMANDS = sorted(
    c.name or c.callback.__name__ for c in model_app.registered_commands if c.callback
)


def test_a_wrong_value_of_an_option_is_told_in_words_of_ours(run: Callable[..., Any]) -> None:
    said = run("case12.mp4", "--video", "both").stderr
    assert "Invalid value for '--video': 'both' is not one of" in said


@pytest.mark.parametrize("command", [[], ["nonsense"], ["run"], ["score"], ["model", "nonsense"]])
def test_a_command_that_is_not_one_is_wrong_usage(command: list[str]) -> None:
    assert ccdstream(*command).exit_code == 2


@pytest.mark.parametrize(
    ("name", "what"),
    [("my.mp4", "run my.mp4"), ("a b", "run 'a b'"), ("x.JPG", "score x.JPG -o scores.csv")],
)
def test_a_file_in_place_of_a_command_is_told_what_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, what: str
) -> None:
    (tmp_path / "a b").mkdir()
    monkeypatch.chdir(tmp_path)
    result = ccdstream(name)
    assert result.exit_code == 2
    said = " ".join(result.stderr.translate({ord("│"): None}).split())
    assert f"No such command {name!r}. To analyse it: ccdstream {what}" in said


# --- models ---


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    return write_toy_bundle(tmp_path / "toy").path


def edit_manifest(bundle: Path, **changes: Any) -> None:
    file = bundle / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def cut_program(bundle: Path) -> None:
    file = bundle / "program.onnx"
    file.write_bytes(file.read_bytes()[:-20])


def flip_program(bundle: Path) -> None:
    data = bytearray((bundle / "program.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "program.onnx").write_bytes(data)


def not_json(bundle: Path) -> None:
    (bundle / "manifest.json").write_text("{")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (shutil.rmtree, "no bundle at {}"),
    "a-file": (lambda b: (shutil.rmtree(b), b.touch()), "{} is not a bundle"),
    "not-json": (not_json, "{}/manifest.json is not valid JSON"),
    "cut": (cut_program, "{}: program.onnx has "),
    "bit-flipped": (flip_program, "{}: program.onnx is damaged"),
    "part-missing": (lambda b: (b / "golden.npz").unlink(), "{}: golden.npz is missing"),
    "newer": (lambda b: edit_manifest(b, format_version=2), "{} is a version 2 bundle and this"),
    "bad-limit": (
        lambda b: edit_manifest(b, quality={"no such": 1}),
        "the manifest of {} is damaged: quality limits have unknown keys: no such.",
    ),
    "bad-profile": (lambda b: edit_manifest(b, profile={}), "the manifest of {} is damaged: "),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_bundle_that_cannot_be_used_is_one_clear_line_everywhere(
    toy: Path, here: Path, kind: str
) -> None:
    spoil, says = DAMAGE[kind]
    spoil(toy)
    before = everything_in(here)
    for arguments in (
        ["run", "calm.mp4", "--model", toy],
        ["score", "calm.mp4", "-o", "s.csv", "--model", toy],
        ["model", "verify", toy],
    ):
        result = ccdstream(*arguments)
        assert refusal(result).startswith(says.format(toy))
        assert result.stdout == ""
    assert everything_in(here) == before


def test_a_bundle_whose_scores_differ_here_is_refused(tmp_path: Path) -> None:
    from tests.bundles import toy_program

    other = write_toy_bundle(tmp_path / "other", program=toy_program(gain=1.5)).path
    assert "not in parity" in refusal(ccdstream("model", "verify", other))


def test_model_show_tells_what_a_bundle_is(toy: Path) -> None:
    result = ccdstream("model", "show", toy)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("model") and "toy-" in result.stdout
    shown = ccdstream("model", "show", toy, "--json")
    assert json.loads(shown.stdout) == json.loads((toy / "manifest.json").read_text())


def test_model_show_refuses_a_damaged_bundle(toy: Path) -> None:
    cut_program(toy)
    assert "program.onnx" in refusal(ccdstream("model", "show", toy))


def test_model_verify_says_that_files_and_scores_are_right(toy: Path) -> None:
    result = ccdstream("model", "verify", toy)
    assert (result.exit_code, result.stderr) == (0, "")
    assert len(result.stdout.splitlines()) == 1
    assert "files whole" in result.stdout and "golden frames" in result.stdout


# --- engines ---


def test_the_engines_to_choose_from_are_those_there_are() -> None:
    assert {name.value for name in cli.EngineName} == {"auto", *ENGINE_NAMES}


def test_an_engine_can_be_asked_for_by_name(here: Path, shelf: Path) -> None:
    result = ccdstream(
        "model", "verify", shelf / "toy", "--engine", "onnxruntime", "--device", "cpu"
    )
    assert (result.exit_code, result.stderr) == (0, "")
    assert "files whole; onnxruntime " in result.stdout and "Passed over" not in result.stdout


def test_a_precision_that_a_cpu_does_not_take_is_not_passed_over_in_silence(shelf: Path) -> None:
    result = ccdstream("model", "verify", shelf / "toy", "--device", "cpu", "--precision", "int8")
    assert result.exit_code == 0
    assert result.stderr == (
        "warning: openvino on cpu computes in fp32; --precision is for the engines of a GPU.\n"
    )


def test_verify_compares_normal_frames_too(here: Path, shelf: Path) -> None:
    images = here / "normal"
    images.mkdir()
    for seed in (1, 2):
        rgb = np.random.default_rng(seed).integers(0, 256, (64, 80, 3), dtype=np.uint8)
        cv2.imwrite(str(images / f"{seed}.png"), rgb)
    compare = ["model", "verify", shelf / "toy", "--device", "cpu", "--calibration", images]
    result = ccdstream(*compare, "--engine", "onnxruntime")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "3 golden frames and 2 normal ones" in result.stdout
    with_itself = ccdstream(*compare, "--engine", "openvino")
    assert with_itself.exit_code == 0
    assert "compared with openvino on cpu, and so with itself" in with_itself.stderr
    missing = ccdstream("model", "verify", shelf / "toy", "--calibration", here / "gone")
    assert "no such file" in refusal(missing)


@pytest.mark.skipif(bool(find_gpus().found), reason="there is a GPU here")
def test_compiling_without_a_gpu_says_that_there_is_nothing_to_compile_for(shelf: Path) -> None:
    result = ccdstream("compile", "--bundle", shelf / "toy")
    assert refusal(result).startswith("nothing to compile for: no NVIDIA driver")


@pytest.mark.parametrize("batch", ["1,2", "a,b,c", "4,2,8", "0,1,2", "1,8,65"])
def test_a_batch_profile_that_is_none_is_a_usage_error(shelf: Path, batch: str) -> None:
    result = ccdstream("compile", "--bundle", shelf / "toy", "--batch", batch)
    assert result.exit_code == 2 and "--batch" in result.stderr


# --- the other commands ---


def test_version_comes_with_the_research_notice() -> None:
    result = ccdstream("--version")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"ccdstream {__version__}\n{NOTICE}\n"


@pytest.mark.parametrize("command", [*COMMANDS, *(f"model {name}" for name in MODEL_COMMANDS)])
def test_help_of_every_command_has_an_example(command: str) -> None:
    for flag in ("--help", "-h"):
        result = ccdstream(*command.split(), flag)
        assert (result.exit_code, result.stderr) == (0, "")
        assert f"Example: ccdstream {command}" in result.stdout


@pytest.mark.parametrize("command", ["", "model", "data", *COMMANDS, "model card", "data check"])
def test_nothing_stands_beside_a_flag_in_help(command: str) -> None:
    """typer would show <bool>."""
    shown = ccdstream(*command.split(), "--help").stdout
    assert "--help" in shown and "bool" not in shown


def test_help_of_run_shows_its_options_in_groups() -> None:
    shown = ccdstream("run", "--help").stdout
    marks = ["One recording:", "A folder, or several", "--ray does", "─ Options", "─ Results"]
    marks += ["--output", "─ Model and engine", "─ Stretch", "─ Privacy", "--deid-map"]
    marks += ["─ Many recordings", "--recursive"]
    places = [shown.index(mark) for mark in marks]
    assert places == sorted(places)


def test_help_names_every_command_and_the_notice() -> None:
    shown = ccdstream("--help").stdout
    assert all(command in shown for command in [*COMMANDS, "model"])
    assert NOTICE in " ".join(shown.replace("│", " ").split())


def test_the_options_of_the_contract_are_there() -> None:
    contract = {
        "run": "-o --output --recursive --model --device --video --from --to --batch --jobs"
        " --overwrite --json --quiet",
        "score": "-o --output --maps --model --device --overwrite",
        "sample": "-o --output --seconds --seed",
        "train": "-o --output --preset --config --set --resume --tensorboard",
        "ablate": "-o --output --preset --config --set --table --on --json",
        "evaluate": "--model -o --output --record --json",
    }  # fmt: skip
    for command, options in contract.items():
        shown = ccdstream(command, "--help").stdout.split()
        assert [option for option in options.split() if option not in shown] == []


def test_it_runs_as_a_module() -> None:
    done = start("--version").communicate(timeout=60)
    assert done == (f"ccdstream {__version__}\n{NOTICE}\n".encode(), b"")


def test_doctor_says_what_is_here() -> None:
    result = ccdstream("doctor")
    assert (result.exit_code, result.stderr) == (0, "")
    labels = [line.split()[0] for line in result.stdout.splitlines() if line[0] != " "]
    assert {"ccdstream", "cpu", "gpu", "engines", "takes"} <= set(labels)
    found = json.loads(ccdstream("doctor", "--json").stdout)
    assert found["ccdstream"] == __version__


def test_the_console_script_is_the_app() -> None:
    script = Path(sys.executable).with_name("ccdstream")
    if not script.exists():
        pytest.skip("not installed: run from a checkout")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ccdstream ")
