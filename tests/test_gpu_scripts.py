"""The scripts for a machine with a GPU: what they take and refuse. Their dry runs take minutes."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tools.gpu.lighten import without_momentum

FOLDER = Path(__file__).parent.parent / "tools" / "gpu"
SCRIPTS = ("verify.sh", "bench.sh", "train.sh")


def call(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run(
        ["bash", FOLDER / script, *arguments], capture_output=True, text=True, env=environment
    )


def refusal(script: str, *arguments: str | Path) -> str:
    """The one line that a script ends with."""
    ended = call(script, *arguments)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1
    return ended.stderr.removeprefix("error: ").removesuffix("\n")


@pytest.mark.parametrize("script", [*SCRIPTS, "common.sh"])
def test_a_script_is_bash(script: str) -> None:
    checked = subprocess.run(["bash", "-n", FOLDER / script], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_option_that_is_taken(script: str) -> None:
    said = call(script, "--help")
    assert (said.returncode, said.stderr) == (0, "")
    assert f"tools/gpu/{script} --" in said.stdout
    text = (FOLDER / script).read_text(encoding="utf-8")
    taken = set(re.findall(r"^ *(--[a-z-]+)\)", text, re.MULTILINE))
    assert {"--out", "--wheels", "--minutes", "--resume", "--dry-run"} <= taken
    assert {option for option in taken if option not in said.stdout} == set()


@pytest.mark.parametrize("script", SCRIPTS)
def test_wrong_arguments_are_one_line_and_leave_nothing(script: str, tmp_path: Path) -> None:
    out, data = tmp_path / "out", tmp_path
    more = ("--data", data) if script == "train.sh" else ()
    assert refusal(script, *more) == "--out DIR is missing. See --help."
    assert refusal(script, "--out") == "--out needs a value. See --help."
    assert refusal(script, "--faster") == "no option --faster. See --help."
    for minutes in ("0", "1.5", "ten", "-3"):
        said = refusal(script, *more, "--out", out, "--minutes", minutes)
        assert said == f"--minutes is {minutes}. Expected whole minutes, from 1."
    assert not out.exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_wheels_must_be_there(script: str, tmp_path: Path) -> None:
    more = ("--data", tmp_path) if script == "train.sh" else ()
    begun = (*more, "--out", tmp_path / "out", "--wheels")
    assert refusal(script, *begun, tmp_path / "none") == f"--wheels {tmp_path}/none is no folder."
    (tmp_path / "empty").mkdir()
    said = refusal(script, *begun, tmp_path / "empty")
    assert said == f"no wheels in {tmp_path}/empty. Expected files *.whl."


def test_training_needs_frames(tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    assert refusal("train.sh", *out) == "--data DIR is missing. See --help."
    said = refusal("train.sh", *out, "--data", tmp_path / "none")
    assert said == f"--data {tmp_path}/none is no folder."
    said = refusal("train.sh", *out, "--piece-mib", "half")
    assert said == "--piece-mib needs whole MiB, from 1."


def pieces_of(content: bytes, folder: Path, *, name: str = "pretrain_global.pt") -> list[Path]:
    """A checkpoint in pieces of three bytes, as a call leaves them."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    stem = f"{name}.{hashlib.sha256(content).hexdigest()[:16]}"
    pieces = []
    for number, start in enumerate(range(0, len(content), 3)):
        pieces.append(folder / f"{stem}.{number:03d}")
        pieces[-1].write_bytes(content[start : start + 3])
    return pieces


def test_a_run_is_not_gone_on_with_from_pieces_that_do_not_make_it_whole(tmp_path: Path) -> None:
    carry = tmp_path / "carry"
    given = ("--data", tmp_path, "--out", tmp_path / "out", "--carry", carry, "--resume")
    none = f"--resume: no run in --out, no pieces in {carry}."
    assert refusal("train.sh", *given) == none
    pieces = pieces_of(b"checkpoint", carry)
    pieces[2].unlink()
    assert refusal("train.sh", *given) == (
        f"the pieces of pretrain_global.pt in {carry} do not make it whole. Bring every one of "
        "them."
    )
    pieces_of(b"checkpoint", carry)
    pieces_of(b"a later checkpoint", carry)
    assert refusal("train.sh", *given) == (
        f"{carry} has pieces of two states of pretrain_global.pt. Remove the older ones."
    )
    assert not list((tmp_path / "out").glob("*.run"))


def test_a_lighter_checkpoint_loads_into_the_same_descent_without_its_momentum() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    descent = torch.optim.SGD([weight], 0.1, momentum=0.9)
    weight.sum().backward()
    descent.step()
    whole = {
        "step": 7,
        "modules": {"net": {"weight": weight.detach()}},
        "optimizers": {"descent": {"optimizer": descent.state_dict(), "scaler": {}}},
    }
    light = without_momentum(whole)
    assert light["optimizers"]["descent"]["optimizer"]["state"] == {}
    assert whole["optimizers"]["descent"]["optimizer"]["state"] != {}
    assert (light["step"], light["modules"]) == (7, whole["modules"])
    again = torch.optim.SGD([weight], 0.5, momentum=0.9)
    again.load_state_dict(light["optimizers"]["descent"]["optimizer"])
    assert again.param_groups[0]["lr"] == 0.1
    again.step()


def test_tensorrt_that_builds_without_a_gpu_says_that_it_was_not_run() -> None:
    pytest.importorskip("tensorrt_rtx")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU; verify.sh runs the plan on it")
    script = [sys.executable, FOLDER / "try_tensorrt.py", "tensorrt_rtx"]
    ended = subprocess.run(script, capture_output=True, text=True)
    assert ended.returncode == 2
    assert re.search(r"^[\d.]+ builds \(\d+ KiB\); not run: no GPU\n$", ended.stderr)
