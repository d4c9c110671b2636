"""The README is the map: it names every module, command and file there is, and CI runs its word."""

import re
from pathlib import Path

import pytest

from ccdstream.cli import app, model_app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MODULES = [p for d in ("ccdstream", "trainer", "tools") for p in ROOT.glob(f"{d}/**/[!_]*.py")]
COMMANDS = [c.name or c.callback.__name__ for c in app.registered_commands if c.callback]
MODEL_COMMANDS = [
    c.name or c.callback.__name__ for c in model_app.registered_commands if c.callback
]
TEST_COMMAND = 'pip install -e ".[dev]" && pytest -n 3 --dist loadfile'


@pytest.mark.parametrize("module", MODULES, ids=lambda p: p.name)
def test_names_every_module(module: Path) -> None:
    assert module.name in README


@pytest.mark.parametrize("command", [*COMMANDS, *(f"model {c}" for c in MODEL_COMMANDS)])
def test_shows_every_command(command: str) -> None:
    assert f"ccdstream {command}" in README


def test_every_file_it_links_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_ci_runs_the_test_command_of_the_readme() -> None:
    assert f"```sh\n{TEST_COMMAND}\n```" in README
    assert TEST_COMMAND in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_says_what_it_is_not() -> None:
    assert "Research software. Not a medical device. Not for clinical decisions." in README


@pytest.mark.parametrize("document", ["README.md", "CHANGELOG.md", "trainer/EXPERIMENTS.md"])
def test_no_document_has_a_place_left_to_fill(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    assert "@@" not in text
    assert not re.search(r"\bT[O]DO\b|\bT[B]D\b", text)
