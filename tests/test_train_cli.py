"""The commands that train and measure refuse what they cannot use."""

from pathlib import Path

import pytest

from tests.commands import (
    ccdstream,
    everything_in,
    refusal,
)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "nope=1"], "nope"),
        (["--set", "nope"], "nope"),
        (["--config", "gone.toml"], "gone.toml"),
        ([], "no such folder"),
    ],
    ids=["unknown-key", "no-value", "missing-config", "missing-data"],
)
def test_train_refuses_what_it_cannot_use_on_one_line(
    here: Path, arguments: list[str], says: str
) -> None:
    before = everything_in(here)
    result = ccdstream("train", "no such folder", "-o", "b", "--preset", "smoke", *arguments)
    assert says in refusal(result)
    assert everything_in(here) == before


@pytest.mark.parametrize("data", ["no such folder", "empty"])
def test_evaluate_refuses_what_it_cannot_use_on_one_line(
    here: Path, shelf: Path, data: str
) -> None:
    (here / "empty").mkdir()
    before = everything_in(here)
    assert data in refusal(ccdstream("evaluate", data, "--model", shelf / "toy", "-o", "f"))
    assert everything_in(here) == before
